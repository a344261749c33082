//! Majorities. Pure functions, recomputed by sorting each time: incremental quorum state has lost commits elsewhere.

use super::membership::Membership;
use crate::{Index, NodeId};

/// Groups with more voters than this are refused where memberships are made; it bounds the stack buffer here.
const VOTERS_ON_STACK: usize = 16;

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

/// The highest index that a majority of each voter list has acknowledged. `acked` gives zero for members that have
/// acknowledged nothing.
pub(super) fn committed(membership: &Membership, acked: impl Fn(NodeId) -> Index) -> Index {
    majority_index(&membership.voters, &acked)
        .min(majority_index(&membership.voters_outgoing, &acked))
}

/// True when a majority of each voter list fulfils `has`.
pub(super) fn has_majority(membership: &Membership, has: impl Fn(NodeId) -> bool) -> bool {
    [&membership.voters, &membership.voters_outgoing]
        .into_iter()
        .all(|voters| {
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
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

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

    fn ids(raw: Vec<u64>) -> Vec<NodeId> {
        let mut ids: Vec<_> = raw.into_iter().map(NodeId).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    proptest! {
        #[test]
        fn sorted_commit_equals_naive_count(
            voters in prop::collection::vec(1u64..20, 1..20),
            outgoing in prop::collection::vec(1u64..20, 0..8),
            acks in prop::collection::btree_map(1u64..20, 0u64..30, 0..20),
        ) {
            let membership = Membership {
                voters: ids(voters),
                voters_outgoing: ids(outgoing),
                learners: Vec::new(),
            };
            let acks: BTreeMap<_, _> = acks.into_iter().map(|(id, at)| (NodeId(id), at)).collect();
            let fast = committed(&membership, |id| Index(acks.get(&id).copied().unwrap_or(0)));
            let slow =
                naive(&membership.voters, &acks).min(naive(&membership.voters_outgoing, &acks));
            prop_assert_eq!(fast.0, slow);
        }

        #[test]
        fn vote_is_lost_exactly_when_it_can_no_longer_be_won(
            voters in prop::collection::vec(1u64..8, 1..8),
            votes in prop::collection::btree_map(1u64..8, any::<bool>(), 0..8),
        ) {
            let membership = Membership::of_voters(voters.into_iter().map(NodeId));
            let count = membership.voters.len();
            let of = |want| {
                membership.voters.iter().filter(|id| votes.get(&id.0) == Some(&want)).count()
            };
            let (yes, no) = (of(true), of(false));
            let expected = if 2 * yes > count {
                VoteResult::Won
            } else if 2 * (count - no) > count {
                VoteResult::Pending
            } else {
                VoteResult::Lost
            };
            prop_assert_eq!(tally(&membership, |id| votes.get(&id.0).copied()), expected);
        }
    }
}
