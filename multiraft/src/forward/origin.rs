//! What names a forwarded command, so that applying it twice can be told from applying it once.

use raft_log::NodeId;

/// Sequences that one member may have open at a time: from its lowest open one on, so many. Both sides rely on it: the
/// forwarder refuses callers past it, and applied state keeps no more than this per member.
pub const OPEN_SEQUENCES_MAX: u64 = 4_096;

/// The name of a forwarded command. It is part of the command's log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The member that forwards it for a client.
    pub member: NodeId,
    /// Which run of that member: a durable counter, so that sequences of an earlier run are never met again.
    pub boot: u64,
    /// Counts the forwarded commands of that run, from 1.
    pub sequence: u64,
    /// The lowest sequence whose caller had no answer yet. What lies below it may be forgotten, and is never applied
    /// any more.
    ///
    /// Invariant: `lowest_open <= sequence < lowest_open + OPEN_SEQUENCES_MAX`.
    pub lowest_open: u64,
}
