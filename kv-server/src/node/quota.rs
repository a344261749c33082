//! How many bytes a keyspace of a member may take, and whether something was refused for it.
//!
//! What counts is what its own records take, see `crate::mvcc`. The directory takes more, since what was removed is given
//! back later, and nobody can say whose that is; so that quotas bound the disk as well, the directory may take as much as
//! all quotas together: a keyspace counts an equal share of it, where that is more than its own.
//!
//! The front end asks for each request that grows; the thread that looks after the member raises the alarm, and clears it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crate::ApiError;
use crate::api::DataSize;
use crate::engine::Engine;
use crate::mvcc::Store;

/// The data directory of a member, and how many keyspaces share it.
#[derive(Clone)]
pub(super) struct SharedDirectory {
    engine: Arc<dyn Engine>,
    keyspaces: Arc<AtomicU64>,
}

impl SharedDirectory {
    pub(super) fn new(engine: Arc<dyn Engine>) -> Self {
        let keyspaces = Arc::default();
        Self { engine, keyspaces }
    }

    /// An equal share of its bytes.
    fn share(&self) -> u64 {
        self.engine.data_bytes() / self.keyspaces.load(Ordering::Relaxed).max(1)
    }
}

/// The quota of one keyspace.
pub(super) struct Quota {
    store: Arc<Store>,
    directory: SharedDirectory,
    /// 0 for none.
    pub(super) limit: u64,
    refused: AtomicBool,
    /// Who wants to hear of a refusal.
    watcher: OnceLock<Thread>,
}

impl Quota {
    /// One more keyspace shares the directory.
    pub(super) fn new(store: Arc<Store>, directory: SharedDirectory, limit: u64) -> Self {
        directory.keyspaces.fetch_add(1, Ordering::Relaxed);
        Self {
            store,
            directory,
            limit,
            refused: AtomicBool::new(false),
            watcher: OnceLock::new(),
        }
    }

    /// Names the thread that is woken by a refusal.
    pub(super) fn wake(&self, watcher: Thread) {
        // There is one.
        let _ = self.watcher.set(watcher);
    }

    /// Its share of the directory.
    pub(super) fn share(&self) -> u64 {
        self.directory.share()
    }

    /// The bytes that count, and those of them that are in use.
    pub(super) fn size(&self) -> DataSize {
        let in_use = self.store.bytes();
        let bytes = in_use.max(self.share());
        DataSize { bytes, in_use }
    }

    /// Refuses what does not fit.
    pub(super) fn check(&self, bytes: usize) -> Result<(), ApiError> {
        if self.limit == 0 || self.size().bytes.saturating_add(bytes as u64) < self.limit {
            return Ok(());
        }
        self.refused.store(true, Ordering::Release);
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
        Err(ApiError::NoSpace)
    }

    /// Whether something was refused since this was asked last.
    pub(super) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::AcqRel)
    }
}
