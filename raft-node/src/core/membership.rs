//! Who votes and who only follows, and its durable encoding.
//!
//! Layout, little-endian: version `u8` = 1, then three lists (voters, outgoing voters, learners), each a count `u32` and
//! that many node ids `u64` in ascending order.

use std::fmt;

use bytes::Bytes;

use crate::NodeId;

const VERSION: u8 = 1;
/// More members than this in one list is damage, not a cluster.
const MEMBERS_MAX: usize = 1024;

/// Who votes and who only follows. While both voter lists are set, decisions need a majority of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters, sorted.
    pub voters: Vec<NodeId>,
    /// The voters before the change that is under way, sorted; empty outside a joint configuration.
    pub voters_outgoing: Vec<NodeId>,
    /// Members that get the log but do not vote, sorted.
    pub learners: Vec<NodeId>,
}

/// Bytes that are not a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipError {
    /// The offset at which they stop making sense.
    pub offset: usize,
}

impl fmt::Display for MembershipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a membership: unexpected content at offset {}",
            self.offset
        )
    }
}

impl std::error::Error for MembershipError {}

impl Membership {
    /// Voters only.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        let mut voters: Vec<_> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Self {
            voters,
            ..Self::default()
        }
    }

    /// True when the member votes, in either list.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }

    /// True when this member alone decides.
    #[must_use]
    pub fn is_sole_voter(&self, id: NodeId) -> bool {
        self.voters == [id] && self.voters_outgoing.is_empty()
    }

    /// Every member, each once, ascending.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        let lists = [&self.voters, &self.voters_outgoing, &self.learners];
        let mut members: Vec<_> = lists.into_iter().flatten().copied().collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    /// Asserts what every membership in force fulfils.
    pub(crate) fn assert_valid(&self) {
        assert!(!self.voters.is_empty(), "a group needs a voter");
        for list in [&self.voters, &self.voters_outgoing, &self.learners] {
            assert!(
                list.is_sorted_by(|a, b| a < b),
                "members are sorted and unique: {self:?}"
            );
        }
        for learner in &self.learners {
            assert!(!self.is_voter(*learner), "{learner} both votes and learns");
        }
    }

    /// The durable form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        for list in [&self.voters, &self.voters_outgoing, &self.learners] {
            let count = u32::try_from(list.len()).expect("a list of members is short");
            out.extend_from_slice(&count.to_le_bytes());
            for id in list {
                out.extend_from_slice(&id.0.to_le_bytes());
            }
        }
        out.into()
    }

    /// Reads the durable form.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        let mut rest = match bytes.split_first() {
            Some((&VERSION, rest)) => rest,
            _ => return Err(MembershipError { offset: 0 }),
        };
        let mut lists = [Vec::new(), Vec::new(), Vec::new()];
        for list in &mut lists {
            let offset = bytes.len() - rest.len();
            let (count, tail) = rest
                .split_first_chunk::<4>()
                .ok_or(MembershipError { offset })?;
            let count = u32::from_le_bytes(*count) as usize;
            if count > MEMBERS_MAX || tail.len() < count * 8 {
                return Err(MembershipError { offset });
            }
            rest = tail;
            for _ in 0..count {
                let (id, tail) = rest
                    .split_first_chunk::<8>()
                    .expect("the length was checked");
                list.push(NodeId(u64::from_le_bytes(*id)));
                rest = tail;
            }
            if !list.is_sorted_by(|a, b| a < b) {
                return Err(MembershipError { offset });
            }
        }
        if !rest.is_empty() || lists[0].is_empty() {
            return Err(MembershipError {
                offset: bytes.len() - rest.len(),
            });
        }
        let [voters, voters_outgoing, learners] = lists;
        Ok(Self {
            voters,
            voters_outgoing,
            learners,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_membership_decodes() {
        let membership = Membership {
            voters: vec![NodeId(1), NodeId(2)],
            voters_outgoing: vec![NodeId(1)],
            learners: vec![NodeId(9)],
        };
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership));
    }

    #[test]
    fn cut_or_unsorted_bytes_are_refused() {
        let bytes = Membership::of_voters([NodeId(1), NodeId(2)]).encode();
        for len in 0..bytes.len() {
            assert!(Membership::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let unsorted = Membership {
            voters: vec![NodeId(2), NodeId(1)],
            ..Membership::default()
        };
        assert!(Membership::decode(&unsorted.encode()).is_err());
    }
}
