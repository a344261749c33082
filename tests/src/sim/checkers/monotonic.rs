//! Monotonic term, commit and applied index: none of them goes back while a process runs, and the term does not go back
//! over a restart either. Applied never passes commit, and commit never passes the log.
//!
//! Source: Raft (extended version), figure 2, persistent and volatile state on all servers.

use std::collections::BTreeMap;

use super::Verdict;

/// Where a member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its term.
    pub term: u64,
    /// Its commit index.
    pub commit: u64,
    /// Its applied index.
    pub applied: u64,
    /// The last index of its log.
    pub last: u64,
}

/// Where each member stood last.
#[derive(Debug, Default)]
pub struct Monotonic(BTreeMap<u64, Place>);

impl Monotonic {
    /// A member stands here now.
    ///
    /// # Errors
    /// When something went back, or is ahead of what it depends on.
    pub fn at(&mut self, node: u64, now: Place) -> Verdict {
        let before = self.0.insert(node, now).unwrap_or_default();
        let back =
            now.term < before.term || now.commit < before.commit || now.applied < before.applied;
        if back || now.applied > now.commit || now.commit > now.last {
            return Err(format!("member {node} goes from {before:?} to {now:?}"));
        }
        Ok(())
    }

    /// A member's process has ended. It had promised something in `promised`, which it must remember.
    pub fn ended(&mut self, node: u64, promised: u64) {
        let place = Place {
            term: promised,
            ..Place::default()
        };
        self.0.insert(node, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = Place {
        term: 3,
        commit: 8,
        applied: 7,
        last: 9,
    };

    #[test]
    fn anything_that_goes_back_is_refused() {
        for back in [
            Place { term: 2, ..HERE },
            Place { commit: 7, ..HERE },
            Place { applied: 6, ..HERE },
        ] {
            let mut checker = Monotonic::default();
            assert_eq!(checker.at(1, HERE), Ok(()));
            assert!(checker.at(1, back).is_err(), "{back:?}");
        }
    }

    #[test]
    fn applied_beyond_commit_is_refused() {
        let beyond = Place { applied: 9, ..HERE };
        assert!(Monotonic::default().at(1, beyond).is_err());
    }

    #[test]
    fn restart_may_lose_what_was_applied_but_not_a_promised_term() {
        let mut checker = Monotonic::default();
        assert_eq!(checker.at(1, HERE), Ok(()));
        checker.ended(1, 3);
        assert_eq!(
            checker.at(
                1,
                Place {
                    commit: 2,
                    applied: 1,
                    ..HERE
                }
            ),
            Ok(())
        );
        checker.ended(1, 3);
        assert!(checker.at(1, Place { term: 2, ..HERE }).is_err());
    }
}
