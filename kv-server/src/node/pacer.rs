//! Holds the making of snapshots back to a rate: what is left of the disk and of the processors is for clients.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many bytes pass in a second, until it is released.
#[derive(Debug)]
pub(super) struct Pacer {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
    is_released: AtomicBool,
}

/// How long one wait may take: who releases it waits no longer.
const WAIT_MAX: Duration = Duration::from_millis(100);

impl Pacer {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(None),
            is_released: AtomicBool::new(false),
        }
    }

    /// Nobody waits any more.
    pub(super) fn release(&self) {
        self.is_released.store(true, Ordering::Relaxed);
    }

    /// Waits until `bytes` may have been written. Time that nobody used is not saved up.
    pub(super) fn pass(&self, bytes: u64) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a rate is about time, and nothing is decided by it"
        )]
        let now = Instant::now();
        let took = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.bytes_per_second);
        let mut wait = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let free = free_at.map_or(now, |at| at.max(now)) + took;
            *free_at = Some(free);
            free.duration_since(now)
        };
        while !wait.is_zero() && !self.is_released.load(Ordering::Relaxed) {
            let part = wait.min(WAIT_MAX);
            std::thread::park_timeout(part);
            wait -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_until_nobody_wants_that() {
        let pacer = Pacer::new(1 << 20);
        #[expect(clippy::disallowed_methods, reason = "a rate is about time")]
        let begun = Instant::now();
        for _ in 0..4 {
            pacer.pass(64 << 10);
        }
        assert!(begun.elapsed() >= Duration::from_millis(200));
        pacer.release();
        // An hour's worth.
        pacer.pass(3_600 << 20);
        assert!(begun.elapsed() < Duration::from_secs(3_000));
    }
}
