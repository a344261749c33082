//! A view of all applied state as of one entry, which every member takes at the same one: so their hashes can be compared.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_log::Index;

use super::codec::{self, Meta, PREFIX};
use super::read::{Fail, Read};
use super::store::{Opened, for_each_version};
use crate::engine::EngineError;
use crate::error::ApiError;

/// All tables that count beside the versions.
const TABLES: [u8; 11] = [
    codec::LATEST,
    codec::LEASE_KEY,
    codec::LEASE,
    codec::DUPLICATE,
    codec::MEMBER,
    codec::ALARM,
    codec::REMOVED,
    codec::AUTH,
    codec::USER,
    codec::ROLE,
    codec::KEYSPACE,
];

/// Takes the cuts. Called by the applying thread: it must not block, and may let one go.
pub trait CheckSink: Send + Sync {
    /// The state as of an entry that asked for it.
    fn cut(&self, cut: StateCut);
}

/// All applied state as of one index. Holding it keeps superseded values from being reclaimed.
pub struct StateCut(Opened);

impl fmt::Debug for StateCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateCut").field(&self.index()).finish()
    }
}

impl StateCut {
    pub(super) fn new(opened: Opened) -> Self {
        Self(opened)
    }

    /// The applied index.
    #[must_use]
    pub fn index(&self) -> Index {
        self.0.meta.index
    }

    /// A hash over the logical state: live keys, history above the compaction floor, leases, membership, alarms, users
    /// and roles, which forwarded commands were applied, revision. Replicas at the same applied index have the same one, however far
    /// compaction has come. None when it was stopped before it was done.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn hash(&self, stop: &AtomicBool) -> Result<Option<u64>, ApiError> {
        Ok(self.hash_all(stop).map_err(Fail::Engine)?)
    }

    fn hash_all(&self, stop: &AtomicBool) -> Result<Option<u64>, EngineError> {
        let Opened {
            meta,
            snapshot,
            keys,
            ..
        } = &self.0;
        let mut hash = Fnv::default();
        let logical = Meta {
            compact_finished: 0,
            generation: 0,
            bytes: None,
            ..meta.clone()
        };
        hash.add(&logical.encode());
        for_each_version(&self.0, meta.revision, |key, record| {
            hash.add(key);
            hash.add(record);
            !stop.load(Ordering::Relaxed)
        })?;
        for table in TABLES {
            for pair in snapshot.scan(&keys.first(table), &keys.end(table)) {
                let (key, record) = pair?;
                hash.add(&[table]);
                hash.add(&key[PREFIX..]);
                hash.add(&record);
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
        }
        Ok((!stop.load(Ordering::Relaxed)).then_some(hash.0))
    }
}

/// FNV-1a over length-prefixed pieces: stable across runs and machines.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
