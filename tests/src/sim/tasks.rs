//! Long work of a simulated member: it waits until the world lets it be done, as on a thread that is slow.

use std::collections::VecDeque;
use std::fmt;

use multiraft::{Task, Tasks};

use super::oracle::Shared;

/// Tasks that wait; more are refused.
const WAITING_MAX: usize = 4;

/// Tasks in the order in which they were given.
#[derive(Clone, Default)]
pub struct TaskQueue(Shared<VecDeque<Task>>);

impl TaskQueue {
    /// True when nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.get().is_empty()
    }

    /// The oldest task.
    #[must_use]
    pub fn take(&self) -> Option<Task> {
        self.0.get().pop_front()
    }
}

impl Tasks for TaskQueue {
    fn run(&self, task: Task) -> Result<(), Task> {
        let mut waiting = self.0.get();
        if waiting.len() >= WAITING_MAX {
            return Err(task);
        }
        waiting.push_back(task);
        Ok(())
    }
}

impl fmt::Debug for TaskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskQueue").finish_non_exhaustive()
    }
}
