//! The seam between a group and what it replicates.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

use crate::core::Membership;
use crate::{Entry, Index, Term};

/// Where a state machine stands: the last entry that it has applied, and what that implies for Raft.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last applied index.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// The newest membership change at or below `index`, and its index; none when no applied entry was one.
    pub membership: Option<(Index, Membership)>,
}

/// What a state machine is told about time and role on each tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickContext {
    /// Ticks of 10 ms since this process opened the group.
    pub tick: u64,
    /// The term in which this member leads and has committed an entry of its own, if it does.
    pub leading: Option<Term>,
}

/// An error after which a state machine cannot go on: the member stops, because going on would let replicas diverge.
/// Errors that belong to one command are part of its output instead.
#[derive(Debug)]
pub struct ApplyError(pub Box<dyn Error + Send + Sync>);

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state machine cannot apply: {}", self.0)
    }
}

impl Error for ApplyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.0.as_ref())
    }
}

/// What a group replicates.
///
/// Applying is deterministic: the same entries give the same logical state and the same outputs on every member and
/// in every run. It reads no clock and no random number, and iterates no hash map.
pub trait StateMachine: Send + 'static {
    /// What applying a command gives back to whoever proposed it.
    type Output: Send + 'static;

    /// Where the state machine stands now, read at open: after a crash that is some earlier batch.
    fn applied(&self) -> Applied;

    /// The applied index that would survive a crash now. The log may be purged up to it.
    fn durable_index(&self) -> Index;

    /// Asks that what is applied becomes durable soon, in the background.
    fn request_persist(&mut self);

    /// Applies contiguous committed entries, the first at `applied().index + 1`, as one atomic step or as several, each
    /// with its applied index. Pushes exactly one output per entry, in order, also for entries without a command (empty
    /// payloads and membership changes), whose output nobody reads.
    /// `membership` has the membership that a [`crate::EntryKind::Config`] entry among them leads to.
    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), ApplyError>;

    /// Called once per tick that is not skipped. Pushes the commands that the leader should propose now, such as the
    /// expiry of leases; they are dropped when this member does not lead.
    fn tick(&mut self, context: TickContext, proposals: &mut Vec<Bytes>);

    /// The next tick at which [`StateMachine::tick`] has something to do; idle stretches are skipped up to it.
    fn next_deadline(&self) -> Option<u64>;
}
