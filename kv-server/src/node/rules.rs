//! When a change of the members is refused: etcd's rules, as a function of what the leader knows.
//!
//! With strict checks, which are the default, a change must not leave the cluster without a quorum of members that have
//! started, and not touch it while members are away. A member that was added as a voter counts as one from then on, as in
//! etcd; that it does not decide anything before it holds the log is nothing that these rules know.
//!
//! Source: etcd's documented reconfiguration checks, and its error texts.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_log::NodeId;

use super::roster::{Member, Roster};
use crate::ApiError;

/// A member that was not connected for so long does not count as there.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// How changes are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeRules {
    /// Refuse what could cost the quorum. Default true.
    pub strict: bool,
    /// Learners at a time. Default 1.
    pub learners_max: usize,
}

impl Default for ChangeRules {
    fn default() -> Self {
        let strict = true;
        Self {
            strict,
            learners_max: 1,
        }
    }
}

/// What the leader knows when it is asked for a change.
pub(super) struct Picture<'a> {
    pub(super) rules: ChangeRules,
    pub(super) roster: &'a Roster,
    /// The leader.
    pub(super) me: NodeId,
    /// How long the others have been connected without a break.
    pub(super) linked: &'a BTreeMap<NodeId, Duration>,
}

impl Picture<'_> {
    /// A new member.
    pub(super) fn check_add(
        &self,
        id: NodeId,
        peer_urls: &[String],
        is_learner: bool,
    ) -> Result<(), ApiError> {
        if self.rules.strict {
            if !is_learner && !self.may_add_voter() {
                return Err(ApiError::NotEnoughStarted);
            }
            if self.healthy() < self.voters().count() {
                return Err(ApiError::Unhealthy);
            }
        }
        if self.roster.table.removed.contains_key(&id) {
            return Err(ApiError::MemberNotFound);
        }
        if self.roster.get(id).is_some() {
            return Err(ApiError::MemberExists);
        }
        self.check_urls(id, peer_urls)?;
        let learners = self.roster.members.iter().filter(|one| one.is_learner());
        if is_learner && learners.count() >= self.rules.learners_max {
            return Err(ApiError::TooManyLearners);
        }
        Ok(())
    }

    /// A member leaves. One that is on its way out already is proposed again until it is gone: by then it is known who asked.
    pub(super) fn check_remove(&self, id: NodeId) -> Result<(), ApiError> {
        if self.roster.leaving.contains(&id) {
            return Ok(());
        }
        let member = self.roster.get(id).ok_or(ApiError::MemberNotFound)?;
        if !self.rules.strict || member.is_learner() {
            return Ok(());
        }
        let left = self.voters().filter(|other| other.id != id);
        let (voters, started) = count(left);
        if voters == 0 || started < quorum(voters) {
            return Err(ApiError::NotEnoughStarted);
        }
        // One that is down decides nothing.
        if id != self.me && !self.linked.contains_key(&id) {
            return Ok(());
        }
        let voters = self.voters().count();
        if self.healthy().saturating_sub(1) < 1 + (voters - 1) / 2 {
            return Err(ApiError::Unhealthy);
        }
        Ok(())
    }

    /// A learner becomes a voter. Whether it holds the log is not looked at here.
    pub(super) fn check_promote(&self, id: NodeId) -> Result<(), ApiError> {
        let member = self.roster.get(id).ok_or(ApiError::MemberNotFound)?;
        if !member.is_learner() {
            return Err(ApiError::NotLearner);
        }
        let (voters, started) = count(self.voters());
        // The learner itself counts as started: it holds the log.
        if self.rules.strict && started + 1 < quorum(voters + 1) {
            return Err(ApiError::NotEnoughStarted);
        }
        Ok(())
    }

    /// A member is reached elsewhere from now on.
    pub(super) fn check_urls(&self, id: NodeId, peer_urls: &[String]) -> Result<(), ApiError> {
        let others = self.roster.members.iter().filter(|other| other.id != id);
        let mut taken = others.flat_map(|other| &other.peer_urls);
        if taken.any(|url| peer_urls.contains(url)) {
            return Err(ApiError::PeerUrlExists);
        }
        Ok(())
    }

    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.roster.members.iter().filter(|one| !one.is_learner())
    }

    fn may_add_voter(&self) -> bool {
        let (voters, started) = count(self.voters());
        // A member alone may always get a second one.
        (voters == 1 && started == 1) || started >= quorum(voters + 1)
    }

    /// Voters that are connected for long enough.
    fn healthy(&self) -> usize {
        let is_there = |member: &&Member| {
            let linked = self.linked.get(&member.id);
            member.id == self.me || linked.is_some_and(|since| *since >= HEALTHY_AFTER)
        };
        self.voters().filter(is_there).count()
    }
}

/// How many of so many decide.
fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many there are, and how many of them have started.
fn count<'a>(voters: impl Iterator<Item = &'a Member>) -> (usize, usize) {
    voters.fold((0, 0), |(all, started), voter| {
        (all + 1, started + usize::from(voter.is_started()))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mvcc::MemberTable;

    const ME: NodeId = NodeId(1);

    /// Members as `world` takes them, and what becomes of a change among them.
    type Added = (&'static [(u64, char)], Result<(), ApiError>);
    type Removed = (&'static [(u64, char)], u64, Result<(), ApiError>);

    /// What a member is: its id, and one letter. `v` votes, `n` votes and is connected for a moment only, `d` votes and is
    /// down, `u` was added as a voter and never started, `l` learns.
    fn world(members: &[(u64, char)]) -> (Roster, BTreeMap<NodeId, Duration>) {
        let mut linked = BTreeMap::new();
        let member = |(id, kind): &(u64, char)| {
            let since = match kind {
                'v' | 'l' => Some(60),
                'n' => Some(1),
                _ => None,
            };
            if let Some(since) = since.filter(|_| NodeId(*id) != ME) {
                linked.insert(NodeId(*id), Duration::from_secs(since));
            }
            Member {
                id: NodeId(*id),
                name: if *kind == 'u' { "" } else { "started" }.to_owned(),
                peer_urls: vec![format!("http://{id}:1")],
                votes: "vnd".contains(*kind),
                joins_as_voter: *kind == 'u',
                ..Member::default()
            }
        };
        let members = members.iter().map(member).collect();
        let table = MemberTable {
            removed: BTreeMap::from([(NodeId(99), 5)]),
            ..MemberTable::default()
        };
        let roster = Roster {
            members,
            table: Arc::new(table),
            ..Roster::default()
        };
        (roster, linked)
    }

    fn check(
        members: &[(u64, char)],
        rules: ChangeRules,
        check: impl FnOnce(&Picture<'_>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let (roster, linked) = world(members);
        check(&Picture {
            rules,
            roster: &roster,
            me: ME,
            linked: &linked,
        })
    }

    fn lax() -> ChangeRules {
        let strict = false;
        ChangeRules {
            strict,
            ..ChangeRules::default()
        }
    }

    #[test]
    fn voter_is_added_where_a_quorum_of_what_there_will_be_has_started_and_all_are_there() {
        use ApiError::{NotEnoughStarted, Unhealthy};
        let cases: [Added; 8] = [
            (&[(1, 'v')], Ok(())),
            (&[(1, 'v'), (2, 'u')], Err(NotEnoughStarted)),
            (&[(1, 'v'), (2, 'v')], Ok(())),
            (&[(1, 'v'), (2, 'n')], Err(Unhealthy)),
            (&[(1, 'v'), (2, 'v'), (3, 'd')], Err(Unhealthy)),
            (&[(1, 'v'), (2, 'v'), (3, 'v')], Ok(())),
            (&[(1, 'v'), (2, 'v'), (3, 'v'), (4, 'u')], Err(Unhealthy)),
            (
                &[(1, 'v'), (2, 'v'), (3, 'v'), (4, 'u'), (5, 'u')],
                Err(NotEnoughStarted),
            ),
        ];
        let urls = ["http://new:1".to_owned()];
        let add = |picture: &Picture<'_>| picture.check_add(NodeId(50), &urls, false);
        for (members, expected) in cases {
            let strict = ChangeRules::default();
            assert_eq!(check(members, strict, add), expected, "{members:?}");
            assert_eq!(check(members, lax(), add), Ok(()), "{members:?}");
        }
    }

    #[test]
    fn learner_is_added_once_and_whatever_is_taken_is_refused() {
        let rules = ChangeRules::default();
        let add = |members: &[(u64, char)], id, url: &str, is_learner| {
            let urls = [url.to_owned()];
            check(members, rules, |picture| {
                picture.check_add(NodeId(id), &urls, is_learner)
            })
        };
        let one = &[(1, 'v')][..];
        assert_eq!(add(one, 50, "http://new:1", true), Ok(()));
        let taken = Err(ApiError::PeerUrlExists);
        assert_eq!(add(one, 50, "http://1:1", true), taken);
        let exists = Err(ApiError::MemberExists);
        assert_eq!(add(one, 1, "http://new:1", true), exists);
        let banned = Err(ApiError::MemberNotFound);
        assert_eq!(add(one, 99, "http://new:1", false), banned);
        let two = &[(1, 'v'), (2, 'l')][..];
        let full = Err(ApiError::TooManyLearners);
        assert_eq!(add(two, 50, "http://new:1", true), full);
        assert_eq!(add(two, 50, "http://new:1", false), Ok(()));
        let away = Err(ApiError::Unhealthy);
        assert_eq!(add(&[(1, 'v'), (2, 'd')], 50, "http://new:1", true), away);
    }

    #[test]
    fn member_is_removed_where_a_quorum_is_left_that_is_there() {
        use ApiError::{MemberNotFound, NotEnoughStarted, Unhealthy};
        let cases: [Removed; 11] = [
            (&[(1, 'v')], 1, Err(NotEnoughStarted)),
            (&[(1, 'v')], 7, Err(MemberNotFound)),
            (&[(1, 'v')], 99, Err(MemberNotFound)),
            (&[(1, 'v'), (2, 'l')], 2, Ok(())),
            (&[(1, 'v'), (2, 'u')], 2, Ok(())),
            (&[(1, 'v'), (2, 'u')], 1, Err(NotEnoughStarted)),
            (&[(1, 'v'), (2, 'v'), (3, 'v')], 3, Ok(())),
            (&[(1, 'v'), (2, 'v'), (3, 'v')], 1, Ok(())),
            (&[(1, 'v'), (2, 'v'), (3, 'd')], 3, Ok(())),
            (&[(1, 'v'), (2, 'v'), (3, 'd')], 2, Err(Unhealthy)),
            (&[(1, 'v'), (2, 'v'), (3, 'n')], 2, Err(Unhealthy)),
        ];
        for (members, id, expected) in cases {
            let remove = |picture: &Picture<'_>| picture.check_remove(NodeId(id));
            let strict = ChangeRules::default();
            let found = check(members, strict, remove);
            assert_eq!(found, expected, "{members:?}, {id}");
            let exists = expected != Err(MemberNotFound);
            let without = check(members, lax(), remove);
            assert_eq!(without.is_ok(), exists, "{members:?}, {id}");
        }
    }

    /// The leader changed between the two entries of the change: the next one was asked again, and knew no such member.
    #[test]
    fn member_on_its_way_out_may_be_removed_until_it_is_gone() {
        let (mut roster, linked) = world(&[(1, 'v'), (2, 'v')]);
        roster.leaving.insert(NodeId(3));
        let picture = Picture {
            rules: ChangeRules::default(),
            roster: &roster,
            me: ME,
            linked: &linked,
        };
        assert_eq!(picture.check_remove(NodeId(3)), Ok(()));
    }

    #[test]
    fn learner_is_promoted_and_nobody_else() {
        let promote = |members: &[(u64, char)], id| {
            check(members, ChangeRules::default(), |picture| {
                picture.check_promote(NodeId(id))
            })
        };
        assert_eq!(promote(&[(1, 'v'), (2, 'l')], 2), Ok(()));
        let votes = Err(ApiError::NotLearner);
        assert_eq!(promote(&[(1, 'v'), (2, 'u')], 2), votes);
        let missing = Err(ApiError::MemberNotFound);
        assert_eq!(promote(&[(1, 'v')], 2), missing);
        let few = Err(ApiError::NotEnoughStarted);
        let members = [(1, 'v'), (3, 'u'), (4, 'u'), (2, 'l')];
        assert_eq!(promote(&members, 2), few);
    }
}
