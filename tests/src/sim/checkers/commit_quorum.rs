//! Commit only by quorum in the own term: a leader moves its commit index to an entry of its own term that a majority
//! of voters has on disk; entries of earlier terms are committed with it, never by counting replicas.
//!
//! Source: Raft (extended version), sections 5.3 and 5.4.2, figure 8.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, Voters};

/// The commit index that was last seen at the leader of each term.
#[derive(Debug, Default)]
pub struct CommitQuorum(BTreeMap<u64, u64>);

impl CommitQuorum {
    /// The leader of `term` says that `commit` is committed. It was at `before` when the election was won.
    /// `entry_term` is the term of that entry, `holders` finds those who have it on disk, and is asked when the index has
    /// moved. `voters` are the lists that were in force since the last look.
    ///
    /// # Errors
    /// When it has moved without a majority in any of them, or to an entry of another term.
    pub fn leads(
        &mut self,
        term: u64,
        commit: u64,
        entry_term: Option<u64>,
        holders: impl FnOnce() -> BTreeSet<u64>,
        voters: &[&Voters],
    ) -> Verdict {
        let Some(before) = self.0.insert(term, commit) else {
            // What it knew as a follower is not its own decision.
            return Ok(());
        };
        if commit == before {
            return Ok(());
        }
        if entry_term != Some(term) {
            return Err(format!(
                "the leader of term {term} committed entry {commit} of term {entry_term:?} by counting"
            ));
        }
        let holders = holders();
        if !voters.iter().any(|voters| voters.majority(&holders)) {
            return Err(format!(
                "the leader of term {term} committed entry {commit}, which {holders:?} have on disk; {voters:?} decide"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Voters {
        Voters::of([1, 2, 3])
    }

    #[test]
    fn commit_without_a_majority_is_refused() {
        let (mut checker, three) = (CommitQuorum::default(), three());
        let mut leads = |commit, entry_term, holders: [u64; 2]| {
            checker.leads(3, commit, Some(entry_term), || holders.into(), &[&three])
        };
        assert_eq!(leads(4, 2, [1, 1]), Ok(()));
        assert_eq!(leads(5, 3, [1, 3]), Ok(()));
        assert!(leads(6, 3, [1, 4]).is_err());
    }

    #[test]
    fn commit_of_an_older_term_by_counting_is_refused() {
        let (mut checker, three) = (CommitQuorum::default(), three());
        let mut leads =
            |commit| checker.leads(4, commit, Some(commit), || [1, 2, 3].into(), &[&three]);
        assert_eq!(leads(1), Ok(()));
        assert!(leads(2).is_err());
    }
}
