//! Leader completeness: if an entry is committed in a given term, it is present in the logs of the leaders of all
//! higher-numbered terms.
//!
//! Source: Raft (extended version), figure 3.

use std::collections::BTreeMap;

use super::Verdict;

/// The last entry known to be committed when a leader of each term said so: index and the entry's term.
#[derive(Debug, Default)]
pub struct LeaderCompleteness(BTreeMap<u64, (u64, u64)>);

impl LeaderCompleteness {
    /// The leader of `term` has committed up to `index`, whose entry is of `entry_term`.
    pub fn committed(&mut self, term: u64, index: u64, entry_term: u64) {
        let newest = self.0.entry(term).or_default();
        *newest = (*newest).max((index, entry_term));
    }

    /// A member leads in a term; `term_at` is its log. By log matching the last entry stands for all before it.
    ///
    /// # Errors
    /// When an entry that was committed in an earlier term is not there.
    pub fn leads(&self, node: u64, term: u64, term_at: impl Fn(u64) -> Option<u64>) -> Verdict {
        let newest = self.0.range(..term).map(|(_, committed)| *committed).max();
        let Some((index, entry_term)) = newest.filter(|(index, _)| *index > 0) else {
            return Ok(());
        };
        match term_at(index) {
            Some(found) if found == entry_term => Ok(()),
            found => Err(format!(
                "member {node} leads in term {term} without the committed entry {index} of term {entry_term}; it has \
                 {found:?}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_without_a_committed_entry_is_refused() {
        let mut checker = LeaderCompleteness::default();
        checker.committed(2, 9, 2);
        assert_eq!(
            checker.leads(1, 3, |index| (index <= 9).then_some(2)),
            Ok(())
        );
        assert!(
            checker
                .leads(3, 3, |index| (index <= 8).then_some(2))
                .is_err()
        );
        assert!(checker.leads(3, 3, |_| Some(1)).is_err());
    }

    #[test]
    fn old_leader_without_what_a_newer_one_committed_is_allowed() {
        let mut checker = LeaderCompleteness::default();
        checker.committed(4, 9, 4);
        assert_eq!(checker.leads(1, 3, |_| None), Ok(()));
    }
}
