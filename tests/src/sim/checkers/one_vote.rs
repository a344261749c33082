//! One vote per term, durable before it is sent: a member grants its vote to at most one candidate in a term, and what
//! it granted is still there after a crash at any later moment.
//!
//! Source: Raft (extended version), figure 2: `votedFor` is updated on stable storage before responding.

use std::collections::BTreeMap;

use super::Verdict;

/// The newest vote that each member let out, with its term.
#[derive(Debug, Default)]
pub struct OneVote(BTreeMap<u64, (u64, u64)>);

impl OneVote {
    /// A granted vote, or a request that shows the own one, leaves a member.
    ///
    /// # Errors
    /// When it had voted for somebody else in this term.
    pub fn sent(&mut self, node: u64, term: u64, candidate: u64) -> Verdict {
        match self.0.get(&node) {
            Some((known, other)) if *known == term && *other != candidate => Err(format!(
                "member {node} voted for {other} and for {candidate} in term {term}"
            )),
            Some((known, _)) if *known > term => Ok(()),
            _ => {
                self.0.insert(node, (term, candidate));
                Ok(())
            }
        }
    }

    /// A member starts with this term and vote.
    ///
    /// # Errors
    /// When it has forgotten a vote that it let out.
    pub fn started(&self, node: u64, term: u64, vote: Option<u64>) -> Verdict {
        match self.0.get(&node) {
            Some((voted, candidate))
                if term < *voted || (term == *voted && vote != Some(*candidate)) =>
            {
                Err(format!(
                    "member {node} voted for {candidate} in term {voted}, and starts in term {term} with vote {vote:?}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The newest term in which a member let out a vote.
    #[must_use]
    pub fn newest_term(&self, node: u64) -> u64 {
        self.0.get(&node).map_or(0, |(term, _)| *term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_vote_of_a_term_is_refused() {
        let mut checker = OneVote::default();
        assert_eq!(checker.sent(1, 4, 2), Ok(()));
        assert_eq!(checker.sent(1, 4, 2), Ok(()));
        assert!(checker.sent(1, 4, 3).is_err());
        assert_eq!(checker.sent(1, 5, 3), Ok(()));
    }

    #[test]
    fn vote_that_is_forgotten_over_a_restart_is_refused() {
        let mut checker = OneVote::default();
        assert_eq!(checker.sent(1, 4, 2), Ok(()));
        assert_eq!(checker.started(1, 4, Some(2)), Ok(()));
        assert_eq!(checker.started(1, 6, None), Ok(()));
        assert!(checker.started(1, 4, None).is_err());
        assert!(checker.started(1, 3, None).is_err());
    }
}
