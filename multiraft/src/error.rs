//! Why the host gives no answer of the state machine.

use std::error::Error;
use std::fmt;

use raft_log::NodeId;
use raft_node::core::ChangeError;

/// Why a proposal or a read did not get an answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// An inbox is at its bound. Nothing was proposed.
    Busy,
    /// The disk is full. Nothing was proposed.
    NoSpace,
    /// This member does not lead. Nothing was proposed; the leader, if known, is named.
    NotLeader(Option<NodeId>),
    /// The leader changed, or gave no answer in time, while the proposal was under way: it may or may not take effect.
    OutcomeUnknown,
    /// The leader changed while a read waited.
    LeaderChanged,
    /// No leader took it in time. Nothing was proposed.
    Timeout,
    /// The change of the membership is not allowed, now or at all. Nothing was proposed.
    Change(ChangeError),
    /// The host is stopping, or has failed.
    Stopped,
    /// There is no such group on this host.
    NoGroup,
    /// No snapshot could be made, and why.
    Snapshot(String),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the group's inbox is full"),
            Self::NoSpace => f.write_str("the disk is full"),
            Self::NotLeader(Some(leader)) => write!(f, "not the leader; the leader is {leader}"),
            Self::NotLeader(None) => f.write_str("not the leader; no leader is known"),
            Self::OutcomeUnknown => f.write_str("the leader changed; the outcome is unknown"),
            Self::LeaderChanged => f.write_str("the leader changed"),
            Self::Timeout => f.write_str("no leader answered in time"),
            Self::Change(error) => error.fmt(f),
            Self::Stopped => f.write_str("the host stopped"),
            Self::NoGroup => f.write_str("no such group on this host"),
            Self::Snapshot(cause) => write!(f, "no snapshot was made: {cause}"),
        }
    }
}

impl Error for HostError {}
