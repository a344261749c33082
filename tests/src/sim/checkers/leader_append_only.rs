//! Leader append-only: a leader never overwrites or deletes entries in its log; it only appends new ones.
//!
//! Source: Raft (extended version), figure 3.

use std::collections::BTreeMap;

use super::Verdict;

/// The term in which each member leads, and how long its log was.
#[derive(Debug, Default)]
pub struct LeaderAppendOnly(BTreeMap<u64, (u64, u64)>);

impl LeaderAppendOnly {
    /// A member leads, and `kept` of its log's entries are those of the last look.
    ///
    /// # Errors
    /// When it led in the same term then and had more entries.
    pub fn leads(&mut self, node: u64, term: u64, kept: u64, last: u64) -> Verdict {
        match self.0.insert(node, (term, last)) {
            Some((before, length)) if before == term && kept < length => Err(format!(
                "member {node} leads in term {term} and cut its log from {length} to {kept}"
            )),
            _ => Ok(()),
        }
    }

    /// A member does not lead, or has ended.
    pub fn follows(&mut self, node: u64) {
        self.0.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_that_cuts_its_log_is_refused() {
        let mut checker = LeaderAppendOnly::default();
        assert_eq!(checker.leads(1, 3, 0, 7), Ok(()));
        assert_eq!(checker.leads(1, 3, 7, 9), Ok(()));
        assert!(checker.leads(1, 3, 8, 9).is_err());
    }

    #[test]
    fn log_that_was_cut_between_two_terms_is_allowed() {
        let mut checker = LeaderAppendOnly::default();
        assert_eq!(checker.leads(1, 3, 0, 7), Ok(()));
        checker.follows(1);
        assert_eq!(checker.leads(1, 5, 4, 5), Ok(()));
    }
}
