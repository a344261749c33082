//! The handshake: who is at the other end, and whether it is who it should be.
//!
//! Both sides judge, by the same rules, and each says why it refuses. A member that lost its disk comes back under a new
//! store id; it may have voted and acknowledged with the old one, so it is no member any more until it is removed and
//! added again.

use raft_log::{NodeId, StoreId};

use super::{Links, StoreGate, pb};

/// The version of the messages in `transport.proto`.
pub(super) const FORMAT: u32 = 1;

/// Who this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    /// The cluster.
    pub cluster: u64,
    /// The member.
    pub member: NodeId,
    /// Its data directory.
    pub store: StoreId,
    /// Which run of it this is; from 1.
    pub boot: u64,
}

impl Me {
    pub(super) fn hello(&self, to: NodeId) -> pb::Hello {
        pb::Hello {
            format: FORMAT,
            cluster: self.cluster,
            member: self.member.0,
            to: to.0,
            store: self.store.0,
            boot: self.boot,
        }
    }

    /// Who sent the hello, if that is a member of this cluster with the disk that it always had.
    pub(super) fn judge(
        &self,
        hello: Option<pb::Hello>,
        links: &Links,
        gate: &dyn StoreGate,
    ) -> Result<NodeId, String> {
        let Some(hello) = hello else {
            return Err("the other side does not begin with a hello: it is no flotilla".to_owned());
        };
        let (member, store) = (NodeId(hello.member), StoreId(hello.store));
        if hello.format != FORMAT {
            return Err(format!(
                "member {:x} speaks version {} of the peer protocol, this one version {FORMAT}",
                hello.member, hello.format
            ));
        }
        if hello.cluster != self.cluster {
            return Err(format!(
                "cluster ID mismatch: member {:x} belongs to cluster {:x}, this one to {:x}; compare \
                 --initial-cluster and --initial-cluster-token, which count at the first start only",
                hello.member, hello.cluster, self.cluster
            ));
        }
        if NodeId(hello.to) != self.member {
            return Err(format!(
                "member {:x} is looking for member {:x}, but this is {:x}: peer URLs are mixed up",
                hello.member, hello.to, self.member.0
            ));
        }
        if !links.peers.contains_key(&member) {
            return Err(format!(
                "{:x} is not another member of this cluster",
                hello.member
            ));
        }
        gate.admit(member, store)?;
        Ok(member)
    }

    /// Judges the hello of who answered when `to` was called.
    pub(super) fn judge_answer(
        &self,
        to: NodeId,
        hello: Option<pb::Hello>,
        links: &Links,
        gate: &dyn StoreGate,
    ) -> Result<(), String> {
        let from = self.judge(hello, links, gate)?;
        if from != to {
            return Err(format!(
                "member {:x} answers where member {:x} should: peer URLs are mixed up",
                from.0, to.0
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::QueueLimits;
    use super::*;

    const ME: Me = Me {
        cluster: 9,
        member: NodeId(1),
        store: StoreId(11),
        boot: 1,
    };

    /// Knows one store.
    struct Known;

    impl StoreGate for Known {
        fn admit(&self, _: NodeId, store: StoreId) -> Result<(), String> {
            let known = store == StoreId(22);
            known.then_some(()).ok_or_else(|| "another disk".to_owned())
        }
    }

    fn judge(change: impl FnOnce(&mut pb::Hello)) -> Result<NodeId, String> {
        let other = Me {
            member: NodeId(2),
            store: StoreId(22),
            ..ME
        };
        let mut hello = other.hello(NodeId(1));
        change(&mut hello);
        let links = Links::new([NodeId(2)], QueueLimits::default());
        ME.judge(Some(hello), &links, &Known)
    }

    #[test]
    fn hello_of_a_member_with_its_disk_is_taken() {
        assert_eq!(judge(|_| ()), Ok(NodeId(2)));
    }

    #[test]
    fn hello_of_anybody_else_is_refused_with_the_reason() {
        type Change = fn(&mut pb::Hello);
        let cases: [(Change, &str); 6] = [
            (|hello| hello.format = 2, "version 2 of the peer protocol"),
            (|hello| hello.cluster = 10, "cluster ID mismatch"),
            (|hello| hello.to = 3, "peer URLs are mixed up"),
            (|hello| hello.member = 7, "7 is not another member"),
            (|hello| hello.member = 1, "1 is not another member"),
            (|hello| hello.store = 23, "another disk"),
        ];
        for (change, reason) in cases {
            let error = judge(change).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let links = Links::new([NodeId(2)], QueueLimits::default());
        assert!(ME.judge(None, &links, &Known).is_err());
    }
}
