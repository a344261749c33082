//! Who votes and who only follows, and its durable encoding.
//!
//! Layout, little-endian: version `u8`, then three lists (voters, outgoing voters, learners), each a count `u32` and that
//! many node ids `u64` in ascending order. With version 1 that is all; with version 2 the rest is the context of the
//! change, which is not empty.

use std::fmt;

use bytes::Bytes;

use crate::NodeId;

const VERSION: u8 = 1;
const VERSION_WITH_CONTEXT: u8 = 2;
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

    /// True when the member votes or learns.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.is_voter(id) || self.learners.contains(&id)
    }

    /// True while a change of the voters is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// True when there is one member.
    pub(crate) fn is_alone(&self) -> bool {
        let first = self.voters.first().or(self.voters_outgoing.first());
        let lists = [&self.voters, &self.voters_outgoing, &self.learners];
        lists.into_iter().flatten().all(|id| Some(id) == first)
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
        self.encode_with(&Bytes::new())
    }

    /// The durable form, with the context of the change that leads to it.
    pub(super) fn encode_with(&self, context: &Bytes) -> Bytes {
        let version = if context.is_empty() {
            VERSION
        } else {
            VERSION_WITH_CONTEXT
        };
        let mut out = vec![version];
        for list in [&self.voters, &self.voters_outgoing, &self.learners] {
            let count = u32::try_from(list.len()).expect("a list of members is short");
            out.extend_from_slice(&count.to_le_bytes());
            for id in list {
                out.extend_from_slice(&id.0.to_le_bytes());
            }
        }
        out.extend_from_slice(context);
        out.into()
    }

    /// Reads the durable form.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        Self::decode_with(bytes).map(|(membership, _)| membership)
    }

    /// The context of the change whose entry this is the payload of; empty when it has none.
    pub fn context(payload: &Bytes) -> Result<Bytes, MembershipError> {
        let (_, len) = Self::decode_with(payload)?;
        Ok(payload.slice(payload.len() - len..))
    }

    /// The membership, and the length of the context behind it.
    fn decode_with(bytes: &[u8]) -> Result<(Self, usize), MembershipError> {
        let (version, mut rest) = match bytes.split_first() {
            Some((&version, rest)) if version == VERSION || version == VERSION_WITH_CONTEXT => {
                (version, rest)
            }
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
        let [voters, voters_outgoing, learners] = lists;
        let membership = Self {
            voters,
            voters_outgoing,
            learners,
        };
        let has_context = version == VERSION_WITH_CONTEXT;
        let both = |id: &NodeId| membership.is_voter(*id);
        if rest.is_empty() == has_context
            || membership.voters.is_empty()
            || membership.learners.iter().any(both)
        {
            return Err(MembershipError {
                offset: bytes.len() - rest.len(),
            });
        }
        Ok((membership, rest.len()))
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
        let bytes = membership.encode();
        assert_eq!(Membership::decode(&bytes), Ok(membership.clone()));
        assert_eq!(Membership::context(&bytes), Ok(Bytes::new()));
        let context = Bytes::from_static(b"addresses");
        let bytes = membership.encode_with(&context);
        assert_eq!(Membership::decode(&bytes), Ok(membership));
        assert_eq!(Membership::context(&bytes), Ok(context));
    }

    #[test]
    fn member_that_votes_and_learns_is_refused() {
        let membership = Membership {
            learners: vec![NodeId(2)],
            ..Membership::of_voters([NodeId(1), NodeId(2)])
        };
        assert!(Membership::decode(&membership.encode()).is_err());
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
