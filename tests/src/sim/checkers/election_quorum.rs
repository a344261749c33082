//! Leaders are elected by a majority: who leads in a term has the votes of a majority of the voters, of both lists while two
//! are in force. What others grant does not count.
//!
//! Source: Raft (extended version), section 5.2; Ongaro's dissertation, section 4.3, for joint configurations.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, Voters};

/// Who voted for whom in each term.
#[derive(Debug, Default)]
pub struct ElectionQuorum(BTreeMap<(u64, u64), BTreeSet<u64>>);

impl ElectionQuorum {
    /// A granted vote leaves a member, or a candidate asks for others beside its own.
    pub fn voted(&mut self, node: u64, term: u64, candidate: u64) {
        self.0.entry((term, candidate)).or_default().insert(node);
    }

    /// A member has won the election of a term, with one of these lists of voters in force.
    ///
    /// # Errors
    /// When it has no majority in any of them.
    pub fn leads(&self, node: u64, term: u64, voters: &[&Voters]) -> Verdict {
        let none = BTreeSet::new();
        let votes = self.0.get(&(term, node)).unwrap_or(&none);
        if voters.iter().any(|voters| voters.majority(votes)) {
            return Ok(());
        }
        Err(format!(
            "member {node} leads in term {term} with the votes of {votes:?}; {voters:?} decide"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_without_a_majority_in_both_lists_is_refused() {
        let mut checker = ElectionQuorum::default();
        for voter in [1, 4, 5] {
            checker.voted(voter, 7, 4);
        }
        let new = Voters::of([3, 4, 5]);
        let joint = Voters {
            outgoing: [1, 2, 3].into(),
            ..new.clone()
        };
        assert_eq!(checker.leads(4, 7, &[&joint, &new]), Ok(()));
        let joint = [&joint];
        assert!(checker.leads(4, 7, &joint).is_err());
        checker.voted(2, 7, 4);
        assert_eq!(checker.leads(4, 7, &joint), Ok(()));
        assert!(checker.leads(4, 8, &joint).is_err());
    }
}
