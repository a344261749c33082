//! The seam to the storage engine: one ordered key space per store.
//!
//! The log is the truth. An engine keeps batches atomic and in order, and after a crash it is at exactly some earlier
//! batch; the log is replayed from the applied index of that batch. It has no journal of its own.
//!
//! One thread writes; any number of threads read, each on a snapshot that costs next to nothing.

#[cfg(test)]
mod conformance;
pub mod lsm;
pub mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::{GroupId, Index};

/// What a batch does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace.
    Put(Bytes),
    /// Remove; removing a missing key is fine.
    Delete,
}

/// Changes that become visible, and durable, together. A key occurs at most once.
#[derive(Clone, Debug, Default)]
pub struct EngineBatch {
    /// Sorted by key, because engines like it and tests can compare it.
    pub changes: BTreeMap<Bytes, Change>,
    /// The applied index of a group that this batch brings it to. The record that says so is among `changes`; this is
    /// for [`Engine::durable_index`].
    pub applied: Option<(GroupId, Index)>,
}

/// An error of the engine. The store stops on it: what it holds can be rebuilt from the log.
#[derive(Debug)]
pub struct EngineError {
    /// What was being done, to which file where there is one.
    pub context: String,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl EngineError {
    fn new(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            context: context.into(),
            source: source.into(),
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "storage engine: {}: {}", self.context, self.source)
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// A key with its value.
pub type Pair = (Bytes, Bytes);

/// Pairs in key order.
pub type PairIter<'a> = Box<dyn Iterator<Item = Result<Pair, EngineError>> + Send + 'a>;

/// A consistent view. Holding one keeps superseded values from being reclaimed: let it go soon.
pub trait Snapshot: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The pairs between two bounds.
    fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> PairIter<'_>;
}

/// An ordered key space with atomic batches.
pub trait Engine: Send + Sync + 'static {
    /// Makes all changes of a batch visible at once. Called by one thread at a time, never concurrently.
    fn write(&self, batch: EngineBatch) -> Result<(), EngineError>;

    /// The value of a key in the newest batch; the same as `snapshot().get(key)`, without its cost.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// A view of the newest batch.
    fn snapshot(&self) -> Arc<dyn Snapshot>;

    /// Asks that everything written so far becomes durable, in the background. Cheap when nothing changed.
    fn request_persist(&self) -> Result<(), EngineError>;

    /// Waits until everything written so far is durable.
    fn persist(&self) -> Result<(), EngineError>;

    /// The newest applied index of a group whose batch would survive a crash now; zero when none would. An index found
    /// at open counts only after the files that hold it were synced in this run.
    fn durable_index(&self, group: GroupId) -> Index;

    /// Removes all keys in a range that no snapshot reads any more. Whole tables only go at once; the rest of the range
    /// is the caller's to delete. Not part of any batch.
    fn drop_range(&self, from: &[u8], to: &[u8]) -> Result<(), EngineError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// Bytes on disk, and in memory on their way there.
    fn data_bytes(&self) -> u64 {
        self.disk_bytes()
    }

    /// Asks that the space of what was removed is given back, in the background: everything is written anew. An
    /// engine that gives space back at once has nothing to do.
    fn request_reclaim(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// True while the engine cannot write to disk because there is no space.
    fn out_of_space(&self) -> bool;

    /// Persists, and stops the background work. Idempotent.
    fn close(&self) -> Result<(), EngineError>;
}

/// Whether no key can lie between two bounds.
fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
    }
}
