//! How a state machine says what became of this member's forwarded commands.

use std::sync::{Mutex, MutexGuard, PoisonError};

use raft_log::{GroupId, NodeId};

use super::Origin;

/// What happened to forwarded commands, by applying.
#[derive(Debug)]
pub(crate) enum Outcome<O> {
    /// A command of this run was applied.
    Applied(GroupId, u64, O),
    /// The state jumped: what was sent may be among what it jumped over.
    Jumped(GroupId),
}

/// Collects the outputs of this run's forwarded commands. The state machine fills it while it applies, the host empties
/// it in the same turn, so that it holds no more than one turn applies.
#[derive(Debug)]
pub struct Outcomes<O> {
    member: NodeId,
    boot: u64,
    found: Mutex<Vec<Outcome<O>>>,
}

impl<O> Outcomes<O> {
    /// For the run `boot` of `member`.
    #[must_use]
    pub fn new(member: NodeId, boot: u64) -> Self {
        Self {
            member,
            boot,
            found: Mutex::new(Vec::new()),
        }
    }

    /// A forwarded command was applied, for the first time. Only this run's outputs are kept.
    pub fn applied(&self, group: GroupId, origin: &Origin, output: &O)
    where
        O: Clone,
    {
        if origin.member == self.member && origin.boot == self.boot {
            self.lock()
                .push(Outcome::Applied(group, origin.sequence, output.clone()));
        }
    }

    /// The state was replaced by a snapshot: what it covers was not applied here and has no output.
    pub fn jumped(&self, group: GroupId) {
        self.lock().push(Outcome::Jumped(group));
    }

    pub(crate) fn member(&self) -> NodeId {
        self.member
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    pub(crate) fn take(&self) -> Vec<Outcome<O>> {
        std::mem::take(&mut *self.lock())
    }

    /// A push is all or nothing, so what a panicked thread left can be used.
    fn lock(&self) -> MutexGuard<'_, Vec<Outcome<O>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
