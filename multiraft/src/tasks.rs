//! Where long work goes, so that the host's thread does not do it: snapshots are encoded and written, and space is given
//! back, by tasks.
//!
//! In a server a thread of its own runs them, one at a time; a simulator runs each inline, where it was asked for.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Tasks that wait for the thread; more are refused.
const WAITING_MAX: usize = 64;

/// A piece of work. It reports by what it captured.
pub type Task = Box<dyn FnOnce() + Send>;

/// Runs tasks.
pub trait Tasks: Send + Sync + 'static {
    /// Runs a task, now or later; gives it back when too many wait, or when nobody runs tasks any more.
    ///
    /// # Errors
    /// The task itself.
    fn run(&self, task: Task) -> Result<(), Task>;
}

/// Runs each task where it was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct InlineTasks;

impl Tasks for InlineTasks {
    fn run(&self, task: Task) -> Result<(), Task> {
        task();
        Ok(())
    }
}

/// Runs tasks one after the other on a thread of its own. Dropped, it finishes those that wait.
pub struct TaskThread {
    sender: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for TaskThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskThread").finish_non_exhaustive()
    }
}

impl TaskThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there are no more threads.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<Task>(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("flotilla-tasks".to_owned())
            .spawn(move || {
                for task in receiver {
                    // What a task captured tells its owner that it did not end well.
                    if catch_unwind(AssertUnwindSafe(task)).is_err() {
                        tracing::error!("a background task panicked");
                    }
                }
            })?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }
}

impl Tasks for TaskThread {
    fn run(&self, task: Task) -> Result<(), Task> {
        let Some(sender) = &self.sender else {
            return Err(task);
        };
        sender.try_send(task).map_err(|refused| match refused {
            TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
        })
    }
}

impl Drop for TaskThread {
    fn drop(&mut self) {
        self.sender = None;
        let own = self.thread.take().filter(|thread| {
            // The last handle may be dropped by a task.
            thread.thread().id() != std::thread::current().id()
        });
        if let Some(thread) = own {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn thread_runs_tasks_in_order_also_after_one_that_panics() {
        let tasks = TaskThread::start().unwrap();
        let (sender, receiver) = channel();
        for number in 0..3 {
            let sender = sender.clone();
            let task = Box::new(move || {
                assert_ne!(number, 1, "this one panics");
                sender.send(number).unwrap();
            });
            assert!(tasks.run(task).is_ok());
        }
        drop(tasks);
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn thread_with_too_much_to_do_gives_tasks_back() {
        let tasks = TaskThread::start().unwrap();
        let (sender, receiver) = channel::<()>();
        let wait = Box::new(move || assert!(receiver.recv().is_err()));
        assert!(tasks.run(wait).is_ok());
        let refused = (0..2 * WAITING_MAX).filter(|_| tasks.run(Box::new(|| {})).is_err());
        assert!(refused.count() >= WAITING_MAX - 1);
        drop(sender);
    }
}
