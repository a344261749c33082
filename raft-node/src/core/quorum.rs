//! Majorities. Pure functions, recomputed by sorting each time: incremental quorum state has lost commits elsewhere.

use super::change::VOTERS_MAX;
use super::membership::Membership;
use crate::testing::{Bug, bug};
use crate::{Index, NodeId};

/// Changes of the membership lead to no more voters than this; a group may have been created with more.
const VOTERS_ON_STACK: usize = VOTERS_MAX;

/// The outcome of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteResult {
    /// A majority granted.
    Won,
    /// A majority can no longer grant.
    Lost,
    /// Not decided yet.
    Pending,
}

/// The lists of which each must have a majority; an empty one does not constrain.
fn lists(membership: &Membership) -> [&[NodeId]; 2] {
    let outgoing: &[NodeId] = if bug(Bug::JointByOneMajority) {
        &[]
    } else {
        &membership.voters_outgoing
    };
    [&membership.voters, outgoing]
}

/// The highest index that a majority of each voter list has acknowledged. `acked` gives zero for members that have
/// acknowledged nothing.
pub(super) fn committed(membership: &Membership, acked: impl Fn(NodeId) -> Index) -> Index {
    let [voters, outgoing] = lists(membership);
    let reached = majority_index(voters, &acked).min(majority_index(outgoing, &acked));
    debug_assert!(
        has_majority(membership, |id| acked(id) >= reached)
            && !has_majority(membership, |id| acked(id) > reached),
        "{reached} is not the highest index that a majority has"
    );
    reached
}

/// True when a majority of each voter list fulfils `has`.
pub(super) fn has_majority(membership: &Membership, has: impl Fn(NodeId) -> bool) -> bool {
    lists(membership).into_iter().all(|voters| {
        voters.is_empty() || voters.iter().filter(|id| has(**id)).count() > voters.len() / 2
    })
}

/// Counts votes: `vote` gives none for members that have not answered.
pub(super) fn tally(membership: &Membership, vote: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
    if has_majority(membership, |id| vote(id) == Some(true)) {
        return VoteResult::Won;
    }
    if has_majority(membership, |id| vote(id) != Some(false)) {
        return VoteResult::Pending;
    }
    VoteResult::Lost
}

/// An empty list does not constrain: the other one decides.
fn majority_index(voters: &[NodeId], acked: &impl Fn(NodeId) -> Index) -> Index {
    if voters.is_empty() {
        return Index(u64::MAX);
    }
    let mut buffer = [Index::ZERO; VOTERS_ON_STACK];
    let mut heap;
    let acks = if voters.len() <= VOTERS_ON_STACK {
        &mut buffer[..voters.len()]
    } else {
        heap = vec![Index::ZERO; voters.len()];
        &mut heap[..]
    };
    for (ack, voter) in acks.iter_mut().zip(voters) {
        *ack = acked(*voter);
    }
    acks.sort_unstable();
    acks[voters.len() - (voters.len() / 2 + 1)]
}

#[cfg(test)]
mod tests {
    use super::super::change::ChangeStep;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Counts, for every candidate index, who has reached it: slow, obvious, and nothing like the sort.
    fn naive(voters: &[NodeId], acks: &BTreeMap<NodeId, u64>) -> u64 {
        if voters.is_empty() {
            return u64::MAX;
        }
        let reached = |at: &u64| {
            voters
                .iter()
                .filter(|id| acks.get(id).copied().unwrap_or(0) >= *at)
                .count()
        };
        acks.values()
            .copied()
            .chain([0])
            .filter(|at| 2 * reached(at) > voters.len())
            .max()
            .unwrap_or(0)
    }

    fn ids(raw: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
        let ids: BTreeSet<_> = raw.into_iter().map(NodeId).collect();
        ids.into_iter().collect()
    }

    fn joint(voters: Vec<u64>, outgoing: Vec<u64>) -> Membership {
        Membership {
            voters: ids(voters),
            voters_outgoing: ids(outgoing),
            learners: Vec::new(),
        }
    }

    /// Every set of voters, by brute force; a membership of the tests has at most 10.
    fn sets(membership: &Membership) -> Vec<BTreeSet<NodeId>> {
        let members = membership.members();
        let of = |bits: u32| {
            let chosen = members
                .iter()
                .enumerate()
                .filter(move |(at, _)| bits >> at & 1 == 1);
            chosen.map(|(_, id)| *id).collect()
        };
        (0..1 << members.len()).map(of).collect()
    }

    /// The definition, by set arithmetic: more than half of each list that is not empty.
    fn is_quorum(membership: &Membership, set: &BTreeSet<NodeId>) -> bool {
        let more_than_half = |list: &Vec<NodeId>| {
            let list: BTreeSet<_> = list.iter().copied().collect();
            let inside = list.intersection(set).count();
            list.is_empty() || inside > list.difference(set).count()
        };
        more_than_half(&membership.voters) && more_than_half(&membership.voters_outgoing)
    }

    fn quorums(membership: &Membership) -> Vec<BTreeSet<NodeId>> {
        let mut sets = sets(membership);
        sets.retain(|set| is_quorum(membership, set));
        sets
    }

    proptest! {
        #[test]
        fn sorted_commit_equals_naive_count(
            voters in prop::collection::vec(1u64..20, 1..20),
            outgoing in prop::collection::vec(1u64..20, 0..8),
            acks in prop::collection::btree_map(1u64..20, 0u64..30, 0..20),
        ) {
            let membership = joint(voters, outgoing);
            let acks: BTreeMap<_, _> = acks.into_iter().map(|(id, at)| (NodeId(id), at)).collect();
            let fast = committed(&membership, |id| Index(acks.get(&id).copied().unwrap_or(0)));
            let slow =
                naive(&membership.voters, &acks).min(naive(&membership.voters_outgoing, &acks));
            prop_assert_eq!(fast.0, slow);
        }

        /// What is committed is what some quorum holds as a whole, and no other quorum holds more.
        #[test]
        fn commit_is_what_the_best_quorum_holds(
            voters in prop::collection::vec(1u64..9, 1..6),
            outgoing in prop::collection::vec(1u64..9, 0..6),
            acks in prop::collection::vec(0u64..6, 9),
        ) {
            let membership = joint(voters, outgoing);
            let held = |id: &NodeId| acks[id.0 as usize];
            let best = quorums(&membership)
                .iter()
                .map(|set| set.iter().map(held).min().expect("a quorum is not empty"))
                .max();
            let fast = committed(&membership, |id| Index(held(&id)));
            prop_assert_eq!(Some(fast.0), best);
        }

        /// Won, lost and pending, by trying all ways in which those that have not answered could answer.
        #[test]
        fn tally_equals_what_all_answers_could_lead_to(
            voters in prop::collection::vec(1u64..9, 1..6),
            outgoing in prop::collection::vec(1u64..9, 0..6),
            votes in prop::collection::btree_map(1u64..9, any::<bool>(), 0..9),
        ) {
            let membership = joint(voters, outgoing);
            let possible = sets(&membership).into_iter().filter(|yes| {
                let fits = |id: &NodeId| match votes.get(&id.0) {
                    Some(granted) => *granted == yes.contains(id),
                    None => true,
                };
                membership.members().iter().all(fits)
            });
            let (mut won, mut lost) = (0, 0);
            for yes in possible {
                *(if is_quorum(&membership, &yes) { &mut won } else { &mut lost }) += 1;
            }
            let expected = match (won, lost) {
                (_, 0) => VoteResult::Won,
                (0, _) => VoteResult::Lost,
                _ => VoteResult::Pending,
            };
            prop_assert_eq!(tally(&membership, |id| votes.get(&id.0).copied()), expected);
        }

        /// Why a change is safe: all quorums on its way meet those before and after them.
        #[test]
        fn quorums_meet_from_one_step_of_a_change_to_the_next(
            voters in prop::collection::vec(1u64..5, 1..5),
            learners in prop::collection::vec(5u64..7, 0..3),
            steps in prop::collection::vec((0u8..4, 1u64..9), 1..5),
        ) {
            let before = Membership { learners: ids(learners), ..joint(voters, vec![]) };
            let steps: Vec<_> = steps
                .into_iter()
                .map(|(kind, id)| match kind {
                    0 => ChangeStep::AddVoter(NodeId(id)),
                    1 => ChangeStep::AddLearner(NodeId(id)),
                    2 => ChangeStep::Promote(NodeId(id)),
                    _ => ChangeStep::Remove(NodeId(id)),
                })
                .collect();
            if let Ok(entered) = before.changed(&steps) {
                let left = entered.left();
                for (one, other) in [(&before, &entered), (&entered, &left)] {
                    for a in quorums(one) {
                        for b in quorums(other) {
                            prop_assert!(!a.is_disjoint(&b), "{one:?} {a:?} and {other:?} {b:?}");
                        }
                    }
                }
                for step in steps {
                    let id = step.member();
                    let (votes, learns) = (left.voters.contains(&id), left.learners.contains(&id));
                    let expected = match step {
                        ChangeStep::AddVoter(_) | ChangeStep::Promote(_) => (true, false),
                        ChangeStep::AddLearner(_) => (false, true),
                        ChangeStep::Remove(_) => (false, false),
                    };
                    prop_assert_eq!((votes, learns), expected);
                }
            }
        }
    }
}
