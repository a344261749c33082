//! The Raft core, without IO.

use crate::NodeId;

/// Who votes and who only follows. While both voter lists are set, decisions need a majority of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters, sorted.
    pub voters: Vec<NodeId>,
    /// The voters before the change that is under way, sorted; empty outside a joint configuration.
    pub voters_outgoing: Vec<NodeId>,
    /// Members that get the log but do not vote, sorted.
    pub learners: Vec<NodeId>,
}
