//! What must hold of a cluster, whatever goes wrong: one property per file, each with its source.
//!
//! A checker sees what happens from outside and remembers what it needs. It returns what it refuses as text; the
//! [world](super::world) ends the run with it.

use std::collections::BTreeSet;

mod applied_once;
mod commit_quorum;
mod election_quorum;
mod election_safety;
mod leader_append_only;
mod leader_completeness;
mod lease_life;
pub mod linearizable;
mod log_matching;
mod monotonic;
mod one_vote;
mod serializable_reads;
mod state_hash;
mod state_machine_safety;
mod watch_guarantees;

pub use applied_once::AppliedOnce;
pub use commit_quorum::CommitQuorum;
pub use election_quorum::ElectionQuorum;
pub use election_safety::ElectionSafety;
pub use leader_append_only::LeaderAppendOnly;
pub use leader_completeness::LeaderCompleteness;
pub use lease_life::{CLOCK_PERCENT_MAX, LeaseLife};
pub use log_matching::LogMatching;
pub use monotonic::{Monotonic, Place};
pub use one_vote::OneVote;
pub use serializable_reads::SerializableReads;
pub use state_hash::StateHash;
pub use state_machine_safety::StateMachineSafety;
pub use watch_guarantees::WatchGuarantees;

/// What a checker says: nothing, or why it refuses.
pub type Verdict = Result<(), String>;

/// Who decides: a majority of each list; the outgoing one is empty outside a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters {
    /// The voters.
    pub incoming: BTreeSet<u64>,
    /// Those of the configuration before, while both decide.
    pub outgoing: BTreeSet<u64>,
}

impl Voters {
    /// One list.
    #[must_use]
    pub fn of(voters: impl IntoIterator<Item = u64>) -> Self {
        Self {
            incoming: voters.into_iter().collect(),
            ..Self::default()
        }
    }

    /// True when these members are a majority of each list.
    #[must_use]
    pub fn majority(&self, members: &BTreeSet<u64>) -> bool {
        [&self.incoming, &self.outgoing].into_iter().all(|voters| {
            let there = voters.intersection(members).count();
            voters.is_empty() || there > voters.len() / 2
        })
    }
}

/// An entry as checkers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// A hash of its kind and payload.
    pub hash: u64,
}
