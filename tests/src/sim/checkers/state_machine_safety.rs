//! State machine safety: if a member has applied an entry at a given index, no other member will ever apply a different
//! entry for the same index.
//!
//! Source: Raft (extended version), figure 3.

use super::{Seen, Verdict};

/// What was applied, by index from 1.
#[derive(Debug, Default)]
pub struct StateMachineSafety(Vec<(u64, u64)>);

impl StateMachineSafety {
    /// The first index that nobody has applied.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.0.len() as u64 + 1
    }

    /// A member has applied an entry.
    ///
    /// # Errors
    /// When another one was applied there, or one before it never was.
    pub fn applied(&mut self, node: u64, entry: Seen) -> Verdict {
        let Seen { index, term, hash } = entry;
        let known = self.0.len() as u64;
        if index > known + 1 {
            return Err(format!(
                "member {node} applied entry {index}, but nobody has applied {}",
                known + 1
            ));
        }
        if index == known + 1 {
            self.0.push((term, hash));
            return Ok(());
        }
        match self.0[index as usize - 1] {
            found if found == (term, hash) => Ok(()),
            found => Err(format!(
                "member {node} applied entry {index} of term {term}, another one of term {}",
                found.0
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_entry_at_an_applied_index_is_refused() {
        let entry = |index, hash| Seen {
            index,
            term: 1,
            hash,
        };
        let mut checker = StateMachineSafety::default();
        assert_eq!(checker.applied(1, entry(1, 7)), Ok(()));
        assert_eq!(checker.applied(2, entry(1, 7)), Ok(()));
        assert!(checker.applied(3, entry(1, 8)).is_err());
        assert!(checker.applied(1, entry(3, 9)).is_err());
    }
}
