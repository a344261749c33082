//! Exactly-once apply: each command takes effect at one index only, and each process applies every index once, in order.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice", section 6.3; openraft's list of invariants ("exactly-once
//! apply per token").

use std::collections::{BTreeMap, HashMap};

use super::Verdict;

/// Where each command took effect, and where each process stands.
#[derive(Debug, Default)]
pub struct AppliedOnce {
    commands: HashMap<u64, u64>,
    applied: BTreeMap<u64, u64>,
}

impl AppliedOnce {
    /// A process starts with what its engine holds.
    pub fn started(&mut self, node: u64, applied: u64) {
        self.applied.insert(node, applied);
    }

    /// A process has applied an index, which holds a command with this tag, or none.
    ///
    /// # Errors
    /// When the command took effect elsewhere, or the index is not the next one.
    pub fn applied(&mut self, node: u64, index: u64, tag: Option<u64>) -> Verdict {
        let before = self.applied.insert(node, index).unwrap_or(0);
        if index != before + 1 {
            return Err(format!("member {node} applied {index} after {before}"));
        }
        let Some(tag) = tag else {
            return Ok(());
        };
        match *self.commands.entry(tag).or_insert(index) {
            known if known == index => Ok(()),
            known => Err(format!(
                "command {tag} takes effect at index {known} and at index {index}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_at_two_indexes_is_refused() {
        let mut checker = AppliedOnce::default();
        assert_eq!(checker.applied(1, 1, Some(70)), Ok(()));
        assert_eq!(checker.applied(2, 1, Some(70)), Ok(()));
        assert_eq!(checker.applied(1, 2, None), Ok(()));
        assert!(checker.applied(1, 3, Some(70)).is_err());
    }

    #[test]
    fn index_that_is_applied_twice_or_left_out_is_refused() {
        let mut checker = AppliedOnce::default();
        checker.started(1, 4);
        assert_eq!(checker.applied(1, 5, None), Ok(()));
        assert!(checker.applied(1, 5, None).is_err());
        assert!(checker.applied(1, 9, None).is_err());
    }
}
