//! Threads that wait for somebody else's sync. Each parks by itself and is woken by itself.
//!
//! One condition variable for all would wake every thread after every sync: those whose batch still waits only to sleep
//! again, and all of them into the log's one lock. Here a thread whose batch is durable is told so and returns without
//! the lock, and one of the others is told to write what has gathered. The lists are kept under the log's lock; waking
//! is a system call each and happens outside of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Thread;

/// Why a waiter was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Woken {
    /// The batch that it waits for is synced.
    Durable = 1,
    /// Something else is up: the writer's role is free, or the log has failed.
    Look = 2,
}

const WAITING: u8 = 0;

/// Where one thread sleeps. A thread waits for one batch at a time, so it needs only one in its life.
#[derive(Debug)]
pub(super) struct Parker {
    state: AtomicU8,
    thread: Thread,
}

thread_local! {
    static PARKER: Arc<Parker> = Arc::new(Parker {
        state: AtomicU8::new(WAITING),
        thread: std::thread::current(),
    });
}

impl Parker {
    /// Sleeps until the waiter that this thread joined as is woken.
    pub(super) fn park(&self) -> Woken {
        loop {
            match self.state.load(Ordering::Acquire) {
                // A wake-up of an earlier wait may arrive late, so waking alone says nothing.
                WAITING => std::thread::park(),
                state if state == Woken::Durable as u8 => return Woken::Durable,
                _ => return Woken::Look,
            }
        }
    }
}

/// Waiters taken off the list, to be woken once the log's lock is released.
#[derive(Debug)]
#[must_use]
pub(super) struct Wakes(Vec<Waiter>, Woken);

impl Wakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn wake(self) {
        for waiter in self.0 {
            waiter.parker.state.store(self.1 as u8, Ordering::Release);
            waiter.parker.thread.unpark();
        }
    }
}

#[derive(Debug)]
struct Waiter {
    seq: u64,
    parker: Arc<Parker>,
}

/// Who waits, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<Waiter>);

impl Waiters {
    /// Adds the calling thread, which waits for a batch. It parks after it has released the log's lock.
    pub(super) fn join(&mut self, seq: u64) -> Arc<Parker> {
        let parker = PARKER.with(Arc::clone);
        parker.state.store(WAITING, Ordering::Relaxed);
        self.0.push(Waiter {
            seq,
            parker: Arc::clone(&parker),
        });
        parker
    }

    /// Takes those whose batch is synced.
    pub(super) fn take_durable(&mut self, durable: u64) -> Wakes {
        let ready = self.0.extract_if(.., |waiter| waiter.seq <= durable);
        Wakes(ready.collect(), Woken::Durable)
    }

    /// Takes up to so many that have waited longest, to write.
    pub(super) fn take_first(&mut self, count: usize) -> Wakes {
        let first = self.0.drain(..self.0.len().min(count));
        Wakes(first.collect(), Woken::Look)
    }

    /// Takes all, to see what has become of the log.
    pub(super) fn take_all(&mut self) -> Wakes {
        Wakes(std::mem::take(&mut self.0), Woken::Look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_of_three_batches_are_woken_by_what_became_of_each() {
        let mut waiters = Waiters::default();
        // One parker of this thread stands for all three: it keeps the last thing that it was told.
        let parker = [7, 3, 5].map(|seq| waiters.join(seq))[0].clone();
        let ready = waiters.take_durable(5);
        assert_eq!(
            ready.0.iter().map(|w| w.seq).collect::<Vec<_>>(),
            vec![3, 5]
        );
        ready.wake();
        assert_eq!(parker.park(), Woken::Durable);
        waiters.join(9);
        let first = waiters.take_first(1);
        assert_eq!(first.0[0].seq, 7);
        first.wake();
        assert_eq!(parker.park(), Woken::Look);
        assert_eq!(waiters.take_all().0[0].seq, 9);
        assert!(waiters.take_first(1).is_empty());
    }

    #[test]
    fn park_after_a_late_wake_up_of_an_earlier_wait_sleeps_on() {
        let mut waiters = Waiters::default();
        waiters.join(1);
        waiters.take_durable(1).wake();
        // The token of the wake-up above is still there when this thread parks again.
        let parker = waiters.join(2);
        std::thread::scope(|scope| {
            scope.spawn(|| waiters.take_all().wake());
            assert_eq!(parker.park(), Woken::Look);
        });
    }
}
