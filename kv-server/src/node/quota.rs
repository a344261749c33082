//! How many bytes the data of a member may take, and whether something was refused for it.
//!
//! The front end asks for each request that grows; the thread that looks after the member raises the alarm, and clears it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crate::ApiError;
use crate::engine::Engine;

/// The quota of one member.
pub(super) struct Quota {
    engine: Arc<dyn Engine>,
    /// 0 for none.
    pub(super) limit: u64,
    refused: AtomicBool,
    /// Who wants to hear of a refusal.
    watcher: OnceLock<Thread>,
}

impl Quota {
    pub(super) fn new(engine: Arc<dyn Engine>, limit: u64) -> Self {
        Self {
            engine,
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

    /// Bytes that count.
    pub(super) fn used(&self) -> u64 {
        self.engine.data_bytes()
    }

    /// Refuses what does not fit.
    pub(super) fn check(&self, bytes: usize) -> Result<(), ApiError> {
        if self.limit == 0 || self.used().saturating_add(bytes as u64) < self.limit {
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
