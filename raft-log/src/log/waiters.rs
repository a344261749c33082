//! Threads that wait for somebody else's sync: who sleeps where, and what each is told.
//!
//! Those whose batches one writer has taken sleep at one gate, and are told at once, by one system call, when the sync
//! is done; none of them needs the log's lock to hear it. Those whose batches are queued sleep at the next gate, all but
//! the first, which sleeps by itself: it is woken to write what has gathered as soon as the writer's role is free. So a
//! sync wakes whom it concerns and one more thread. All of this is kept under the log's lock; opening a gate is a system
//! call and happens outside of it.

use std::sync::{Arc, OnceLock};

use super::Shared;
use crate::{ErrorKind, LogError};

/// Why a waiter was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The batch that it waits for is synced.
    Durable,
    /// Something else is up: the writer's role is free, or the log has failed.
    Look,
}

/// Where threads sleep until it opens.
#[derive(Debug, Default)]
struct Gate(OnceLock<Woken>);

/// A place at a gate. The log's lock is released before [`Place::wait`].
#[derive(Debug)]
#[must_use]
pub(super) struct Place(Arc<Gate>);

impl Place {
    /// Sleeps until the gate opens.
    pub(super) fn wait(&self) -> Woken {
        *self.0.0.wait()
    }
}

/// Gates taken off the log, to be opened once its lock is released.
#[derive(Debug)]
#[must_use]
pub(super) struct Wakes([Option<Arc<Gate>>; 3], Woken);

impl Wakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    pub(super) fn wake(self) {
        for gate in self.0.into_iter().flatten() {
            // A gate is taken once, so nobody has opened it before.
            let _ = gate.0.set(self.1);
        }
    }
}

/// The gates of a log.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// The newest batch that a writer has taken from the queue.
    taken: u64,
    /// Whose batches are taken.
    written: Option<Arc<Gate>>,
    /// Who writes next.
    first: Option<Arc<Gate>>,
    /// Whose batches are queued, but for the first.
    queued: Option<Arc<Gate>>,
}

impl Waiters {
    /// Adds the calling thread, which waits for a batch, while another thread writes.
    pub(super) fn join(&mut self, seq: u64) -> Place {
        let gate = if seq <= self.taken {
            self.written.get_or_insert_default()
        } else if self.first.is_none() {
            self.first.insert(Arc::default())
        } else {
            self.queued.get_or_insert_default()
        };
        Place(Arc::clone(gate))
    }

    /// A writer takes all batches up to this one.
    pub(super) fn queue_taken(&mut self, newest: u64) {
        assert!(
            self.written.is_none() && self.first.is_none(),
            "the writer before has woken them"
        );
        self.taken = newest;
        self.written = self.queued.take();
    }

    /// Takes those whose batches were written; they are told that it is done only if all of it is.
    pub(super) fn take_written(&mut self, durable: u64) -> Wakes {
        let told = if durable >= self.taken {
            Woken::Durable
        } else {
            Woken::Look
        };
        Wakes([self.written.take(), None, None], told)
    }

    /// Takes the one that writes next.
    pub(super) fn take_first(&mut self) -> Wakes {
        Wakes([self.first.take(), None, None], Woken::Look)
    }

    /// Takes all, to see what has become of the log.
    pub(super) fn take_all(&mut self) -> Wakes {
        let gates = [self.written.take(), self.first.take(), self.queued.take()];
        Wakes(gates, Woken::Look)
    }
}

/// The writer's role: given back when dropped; a panic while it is held fails the log.
pub(super) struct Role<'a>(&'a Shared);

impl<'a> Role<'a> {
    /// The caller has seen that nobody has it, and has said that it is busy.
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self(shared)
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let mut core = self.0.core();
        core.busy = false;
        let panicked = std::thread::panicking();
        if panicked {
            core.error.get_or_insert_with(|| {
                LogError::new(
                    ErrorKind::Failed,
                    "the log's writer panicked; restart the process",
                )
            });
        }
        if core.dozing && core.unproven() {
            core.wake(&self.0.work);
        }
        let durable = core.durable;
        let failed = core.stuck || core.error.is_some();
        let written = core.waiters.take_written(durable);
        let next = if failed {
            core.waiters.take_all()
        } else {
            core.waiters.take_first()
        };
        // What nobody waits for is its thread's to write, and a full disk to watch; a failure ends it.
        if failed || (!core.queue.is_empty() && next.is_empty()) {
            core.wake(&self.0.work);
        }
        // Else the writer itself tells who polls.
        let progress = core.progress.clone().filter(|_| panicked);
        drop(core);
        // The next writer first: the disk works while the others are woken.
        next.wake();
        written.wake();
        if let Some(call) = progress {
            call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::vfs::SimFs;
    use crate::{IoMode, Log, LogOptions, StoreId};

    #[test]
    fn panic_of_a_writer_is_told_to_who_polls() {
        let mut options = LogOptions::new("/log", StoreId(1));
        options.io = IoMode::Inline;
        let (log, _) = Log::open(SimFs::new(1).shared(), options).unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&told);
        let shared = Arc::clone(&log.0.0);
        log.on_progress(Box::new(move || {
            // Whoever is told can ask at once, and hears of the failure.
            tell.store(shared.core().error.is_some(), Ordering::Relaxed);
        }));
        let writer = || {
            log.0.core().busy = true;
            let _role = Role::new(&log.0);
            panic!("put in on purpose");
        };
        assert!(catch_unwind(AssertUnwindSafe(writer)).is_err());
        assert!(told.load(Ordering::Relaxed));
        log.on_progress(Box::new(|| ()));
    }

    #[test]
    fn waiters_of_taken_and_queued_batches_are_told_what_became_of_each() {
        let mut waiters = Waiters::default();
        waiters.queue_taken(5);
        let written = [waiters.join(3), waiters.join(5)];
        let (first, queued) = (waiters.join(7), waiters.join(6));
        waiters.take_written(5).wake();
        assert_eq!(written.map(|place| place.wait()), [Woken::Durable; 2]);
        waiters.take_first().wake();
        assert_eq!(first.wait(), Woken::Look);
        waiters.queue_taken(7);
        // The first has found another writer at work; its batch is among those that are taken.
        let first = waiters.join(7);
        waiters.take_written(7).wake();
        assert_eq!(
            [first, queued].map(|place| place.wait()),
            [Woken::Durable; 2]
        );
        assert!(waiters.take_all().is_empty());
    }

    #[test]
    fn waiters_of_a_writer_that_got_half_way_look_again() {
        let mut waiters = Waiters::default();
        waiters.queue_taken(5);
        let place = waiters.join(4);
        waiters.take_written(4).wake();
        assert_eq!(place.wait(), Woken::Look);
    }

    #[test]
    fn waiters_of_a_failed_log_all_look() {
        let mut waiters = Waiters::default();
        waiters.queue_taken(1);
        let places = [waiters.join(1), waiters.join(2), waiters.join(3)];
        waiters.take_all().wake();
        assert_eq!(places.map(|place| place.wait()), [Woken::Look; 3]);
    }
}
