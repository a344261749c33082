//! Log matching: if two logs contain an entry with the same index and term, then the logs are identical in all entries
//! up through that index.
//!
//! Source: Raft (extended version), figure 3. Checked by induction: entries with one index and term are equal, and
//! follow entries of one term. Within a log, terms never go down.

use std::collections::HashMap;

use super::{Seen, Verdict};

/// Each entry that was ever in a log, by index and term: its hash, and the term before it.
#[derive(Debug, Default)]
pub struct LogMatching(HashMap<(u64, u64), (u64, u64)>);

impl LogMatching {
    /// A log holds an entry, after one of term `before`.
    ///
    /// # Errors
    /// When another log holds, or held, something else with this index and term.
    pub fn holds(&mut self, node: u64, entry: Seen, before: u64) -> Verdict {
        let Seen { index, term, hash } = entry;
        if before > term {
            return Err(format!(
                "the log of member {node} goes from term {before} back to {term} at index {index}"
            ));
        }
        match *self.0.entry((index, term)).or_insert((hash, before)) {
            known if known == (hash, before) => Ok(()),
            (known, was) => Err(format!(
                "member {node} has another entry at index {index} of term {term} than was seen: {hash:x} after term \
                 {before}, and {known:x} after term {was}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, hash: u64) -> Seen {
        Seen { index, term, hash }
    }

    #[test]
    fn different_entries_of_one_index_and_term_are_refused() {
        let mut checker = LogMatching::default();
        assert_eq!(checker.holds(1, entry(5, 2, 10), 1), Ok(()));
        assert_eq!(checker.holds(2, entry(5, 3, 11), 1), Ok(()));
        assert_eq!(checker.holds(3, entry(5, 2, 10), 1), Ok(()));
        assert!(checker.holds(2, entry(5, 2, 12), 1).is_err());
    }

    #[test]
    fn equal_entries_after_different_ones_are_refused() {
        let mut checker = LogMatching::default();
        assert_eq!(checker.holds(1, entry(5, 4, 10), 1), Ok(()));
        assert!(checker.holds(2, entry(5, 4, 10), 3).is_err());
    }

    #[test]
    fn terms_that_go_down_are_refused() {
        assert!(LogMatching::default().holds(1, entry(5, 4, 10), 5).is_err());
    }
}
