//! Election safety: at most one leader can be elected in a given term.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (extended version), figure 3.

use std::collections::BTreeMap;

use super::Verdict;

/// Who led in each term.
#[derive(Debug, Default)]
pub struct ElectionSafety(BTreeMap<u64, u64>);

impl ElectionSafety {
    /// A member leads in a term.
    ///
    /// # Errors
    /// When another one led in it.
    pub fn leads(&mut self, node: u64, term: u64) -> Verdict {
        match *self.0.entry(term).or_insert(node) {
            known if known == node => Ok(()),
            known => Err(format!(
                "members {known} and {node} both led in term {term}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_leader_of_a_term_is_refused() {
        let mut checker = ElectionSafety::default();
        assert_eq!(checker.leads(1, 4), Ok(()));
        assert_eq!(checker.leads(1, 4), Ok(()));
        assert_eq!(checker.leads(2, 5), Ok(()));
        assert!(checker.leads(2, 4).is_err());
    }
}
