//! Commands, reads and calls that a member passes on to the leader for its clients.
//!
//! Any member serves any request. One that does not lead
//!
//! - sends a *command* to the leader under a name of its own ([`Origin`]) and answers its client when it applies the
//!   command itself. It sends it once more only after the receiver said that it did not propose it. Otherwise the
//!   outcome is unknown when the time is over: the command may have been applied, or may still be. The name lets the
//!   state machine drop a second copy, wherever it came from.
//! - asks the leader for the index of a *read*, and serves the read from its own state once that has applied so far.
//!   Reads that come while one question is out share the next.
//! - asks the leader to do what only a leader can, such as the renewal of a lease: a *call*, which [`Calls`] answers.
//!
//! Reads and calls may be done twice, so they are sent again until they are answered.
//!
//! Time is the host's ticks. Nothing here knows how messages travel: they leave by [`crate::Outbox::forward`] and come in
//! by [`crate::HostHandle::deliver_forward`], in a simulator and on a network alike.

mod asks;
mod lane;
mod message;
mod origin;
mod outcomes;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::GroupId;

use crate::TICK_MS;

pub(crate) use asks::Asks;
pub(crate) use lane::{Lane, Outgoing};
pub use message::{Answer, ForwardMessage, Question};
pub use origin::{OPEN_SEQUENCES_MAX, Origin};
pub(crate) use outcomes::Outcome;
pub use outcomes::Outcomes;

/// Ticks until what was refused is sent again, unless another leader appears before.
const RETRY_TICKS: u64 = 100 / TICK_MS;

/// Puts an origin into an encoded command.
pub type Stamp = fn(&Origin, &[u8]) -> Bytes;

/// Answers calls at the leader.
pub trait Calls: Send + Sync + 'static {
    /// Does what `payload` says, if this member leads, and gives `reply` the answer, now or later; none when it does
    /// not lead. Called by the host's thread: it must not block. The same call may come twice.
    fn call(&self, group: GroupId, payload: Bytes, reply: CallReply);
}

/// Takes the answer of a call, once.
pub type CallReply = Box<dyn FnOnce(Option<Bytes>) + Send>;

/// Refuses every call.
impl Calls for () {
    fn call(&self, _: GroupId, _: Bytes, reply: CallReply) {
        reply(None);
    }
}

/// Bounds of what one member has under way at leaders, per group.
#[derive(Clone, Copy, Debug)]
pub struct ForwardLimits {
    /// Bytes of open commands. Default 16 MiB. Their number is bounded by [`OPEN_SEQUENCES_MAX`].
    pub bytes_max: usize,
    /// Reads and calls that wait. Default 16,384.
    pub asks_max: usize,
    /// Ticks until a caller hears that there is no answer: 5 s and two election timeouts.
    pub timeout_ticks: u64,
}

impl ForwardLimits {
    /// The defaults, for an election timeout of so many ticks.
    #[must_use]
    pub fn new(election_ticks: u64) -> Self {
        Self {
            bytes_max: 16 << 20,
            asks_max: 16_384,
            timeout_ticks: 5_000 / TICK_MS + 2 * election_ticks,
        }
    }
}

/// What a host needs to forward.
pub struct Forwarding<O> {
    /// This member's run, and the way back from its state machines.
    pub outcomes: Arc<Outcomes<O>>,
    /// Names commands.
    pub stamp: Stamp,
    /// Answers calls of other members, and of this one while it leads.
    pub calls: Arc<dyn Calls>,
    /// Bounds.
    pub limits: ForwardLimits,
}

impl<O> fmt::Debug for Forwarding<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarding")
            .field("member", &self.outcomes.member())
            .field("boot", &self.outcomes.boot())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
