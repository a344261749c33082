//! Replicas are equal: the hash over the logical state is the same on all members at the same applied index.
//!
//! Source: the deterministic state machine of Schneider, "Implementing Fault-Tolerant Services Using the State Machine
//! Approach", section 2; etcd's corruption check compares hashes at a revision in the same way.

use std::collections::BTreeMap;

use super::Verdict;

/// The first hash that was seen at each applied index.
#[derive(Debug, Default)]
pub struct StateHash {
    hashes: BTreeMap<u64, u64>,
    compared: u64,
}

impl StateHash {
    /// A member's state has this hash at this applied index.
    ///
    /// # Errors
    /// When another one's was different.
    pub fn at(&mut self, node: u64, applied: u64, hash: u64) -> Verdict {
        match self.hashes.get(&applied) {
            None => {
                self.hashes.insert(applied, hash);
                Ok(())
            }
            Some(known) if *known == hash => {
                self.compared += 1;
                Ok(())
            }
            Some(known) => Err(format!(
                "member {node} has state {hash:x} at index {applied}, another one {known:x}"
            )),
        }
    }

    /// How often two hashes were compared.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_states_at_one_index_are_refused() {
        let mut checker = StateHash::default();
        assert_eq!(checker.at(1, 4, 0xa), Ok(()));
        assert_eq!(checker.at(2, 5, 0xb), Ok(()));
        assert_eq!(checker.at(2, 4, 0xa), Ok(()));
        assert_eq!(checker.compared(), 1);
        assert!(checker.at(3, 4, 0xc).is_err());
    }
}
