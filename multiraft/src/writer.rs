//! Writes and syncs the log for a host that must not wait for the disk itself, because others wait for its ticks.
//!
//! The log has a thread of its own, but that one also fills the next segment with zeros, which takes as long as the disk
//! likes: measured with three members on one disk, up to a second in which nothing else was written. Whoever waits for a
//! ticket writes on its own thread, so this thread waits for tickets.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use raft_log::{Log, Ticket};

#[derive(Default)]
struct State {
    /// The newest ticket that nobody waited for yet.
    wanted: Option<Ticket>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Each change is complete when the lock is let go, whatever panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread. Dropped, it finishes the ticket at hand.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// The newest ticket that was handed over.
    given: Option<Ticket>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(log: Log) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("flotilla-writer".to_owned())
            .spawn(move || run(&own, &log))?;
        Ok(Self {
            shared,
            given: None,
            thread: Some(thread),
        })
    }

    /// Lets everything up to a ticket become durable; the log says when it is.
    pub(crate) fn write(&mut self, ticket: Ticket) {
        if self.given.replace(ticket) != Some(ticket) {
            self.shared.lock().wanted = Some(ticket);
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the log panicked");
        }
    }
}

fn run(shared: &Shared, log: &Log) {
    loop {
        let mut state = shared.lock();
        let ticket = loop {
            if state.closed {
                return;
            }
            if let Some(ticket) = state.wanted.take() {
                break ticket;
            }
            let woken = shared.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        if log.wait(ticket).is_err() {
            // On a full disk the log's own thread tries again; any other failure stops the host, which hears of it from
            // the log.
            log.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use raft_log::{Base, GroupId, Index, LogOptions, Record, StoreId, Term, WriteBatch};

    use super::*;

    #[test]
    fn enqueued_batches_become_durable_without_the_thread_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let vfs = Arc::new(raft_log::vfs::RealFs::default());
        let options = LogOptions::new(dir.path().join("log"), StoreId(1));
        let (log, _) = Log::open(vfs, options).unwrap();
        let (sender, progress) = channel();
        let sender = Mutex::new(sender);
        log.on_progress(Box::new(move || {
            // The test may be over.
            let _ = sender.lock().unwrap().send(());
        }));
        let mut writer = Writer::start(log.clone()).unwrap();
        for group in 1..=20 {
            let mut batch = WriteBatch::new();
            let base = Base {
                index: Index::ZERO,
                term: Term::ZERO,
                creation: 1,
                membership: bytes::Bytes::new(),
            };
            batch.push(GroupId(group), Record::Compact(base));
            let ticket = log.enqueue(batch).unwrap();
            writer.write(ticket);
            writer.write(ticket);
            while !log.is_durable(ticket).unwrap() {
                progress.recv_timeout(Duration::from_secs(20)).unwrap();
            }
        }
        drop(writer);
        log.close().unwrap();
    }
}
