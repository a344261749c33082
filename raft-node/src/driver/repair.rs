//! Where a damaged log begins anew: what a state machine tells `raft_log::log::renewal`.

use raft_log::Base;
use raft_log::log::salvage::Covered;

use crate::Applied;
use crate::core::Membership;

/// What a state machine that stands at `applied` covers of a group's log, whose base is `base` as far as it can be read.
/// `first` is the membership with which the group began.
#[must_use]
pub fn covered(base: &Base, applied: &Applied, first: &Membership) -> Covered {
    let membership = match &applied.membership {
        Some((index, membership)) if *index > base.index || applied.index < base.index => {
            membership.clone()
        }
        None if applied.index < base.index => first.clone(),
        _ => membership_of(base, first),
    };
    Covered {
        index: applied.index,
        term: applied.term,
        membership: Some(membership.encode()),
    }
}

/// The newest membership that log and state machine tell of, without the log's entries.
#[must_use]
pub fn newest_membership(base: &Base, applied: &Applied, first: &Membership) -> Membership {
    match &applied.membership {
        Some((index, membership)) if *index > base.index => membership.clone(),
        _ => membership_of(base, first),
    }
}

/// A log that cannot be read has none in its base.
fn membership_of(base: &Base, first: &Membership) -> Membership {
    Membership::decode(&base.membership).unwrap_or_else(|_| first.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Index, NodeId, Term};

    #[test]
    fn membership_is_the_one_in_force_where_the_state_stands() {
        let of = |ids: &[u64]| Membership::of_voters(ids.iter().copied().map(NodeId));
        let (first, second, third) = (of(&[1]), of(&[1, 2]), of(&[1, 2, 3]));
        let base = |index| Base {
            index: Index(index),
            membership: second.encode(),
            ..Base::default()
        };
        let applied = |index, membership: Option<(u64, &Membership)>| Applied {
            index: Index(index),
            term: Term(1),
            membership: membership.map(|(at, membership)| (Index(at), membership.clone())),
        };
        let cases = [
            (base(5), applied(9, None), &second, &second),
            (base(5), applied(9, Some((4, &first))), &second, &second),
            (base(5), applied(9, Some((7, &third))), &third, &third),
            // The state is older than the log's base.
            (base(5), applied(4, Some((3, &third))), &third, &second),
            (base(5), applied(4, None), &first, &second),
            (Base::default(), applied(4, None), &first, &first),
        ];
        for (base, applied, there, newest) in cases {
            let found = covered(&base, &applied, &first);
            assert_eq!(found.index, applied.index);
            assert_eq!(
                found.membership,
                Some(there.encode()),
                "{base:?} {applied:?}"
            );
            assert_eq!(&newest_membership(&base, &applied, &first), newest);
        }
    }
}
