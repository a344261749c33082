//! The handshake: who is at the other end, and whether it is who it should be.
//!
//! Both sides judge, by the same rules, and each says why it refuses. A member that lost its disk comes back under a new
//! store id; it may have voted and acknowledged with the old one, so it is no member any more until it is removed and
//! added again. So it is with one whose log was begun anew and that comes with an older one: somebody put an old copy of
//! its disk back. A copy from after the last renewal is not told from the disk itself.

use std::fmt;

use raft_log::{NodeId, StoreId};
use tonic::Status;

use super::{Links, StoreGate, pb};

/// The version of the messages in `transport.proto`.
pub(super) const FORMAT: u32 = 1;

/// What a member hears that was removed, in etcd's words.
pub(super) const REMOVED: &str = "the member has been permanently removed from the cluster";
/// The same, and what to do, for whoever looks after the member.
pub const REMOVED_ADVICE: &str = "the member has been permanently removed from the cluster; if it is to come back, remove its \
     data directory, add it again as a new member, and start it with --initial-cluster-state existing";

/// Why the other side is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It was removed: it may stop, and never comes back under its id.
    Removed,
    /// It is not among the members that are known here. It may be in a moment.
    Unknown(String),
    /// It may try again.
    Other(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str(REMOVED),
            Self::Unknown(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Removed => Self::permission_denied(REMOVED),
            Refusal::Unknown(reason) => Self::not_found(reason),
            Refusal::Other(reason) => Self::failed_precondition(reason),
        }
    }
}

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
    /// Which of the logs it is that this data directory has had; 0 for the first. It never goes back.
    pub log_incarnation: u64,
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
            log_incarnation: Some(self.log_incarnation),
        }
    }

    /// Who sent the hello, if that is a member of this cluster with the disk that it always had.
    pub(super) fn judge(
        &self,
        hello: Option<pb::Hello>,
        links: &Links,
        gate: &dyn StoreGate,
    ) -> Result<NodeId, Refusal> {
        let Some(hello) = hello else {
            let text = "the other side does not begin with a hello: it is no flotilla";
            return Err(text.to_owned().into());
        };
        let (member, store) = (NodeId(hello.member), StoreId(hello.store));
        if hello.format != FORMAT {
            return Err(format!(
                "member {:x} speaks version {} of the peer protocol, this one version {FORMAT}",
                hello.member, hello.format
            )
            .into());
        }
        if hello.cluster != self.cluster {
            return Err(format!(
                "cluster ID mismatch: member {:x} belongs to cluster {:x}, member {:x} to {:x}; if one of them was added \
                 with `member add` and started without --initial-cluster-state existing, it began a cluster of its own: \
                 stop it, remove its data directory, and start it with --initial-cluster-state existing; else compare \
                 --initial-cluster and --initial-cluster-token, which count at the first start only",
                hello.member, hello.cluster, self.member.0, self.cluster
            )
            .into());
        }
        if links.is_removed(member) {
            return Err(Refusal::Removed);
        }
        if NodeId(hello.to) != self.member {
            return Err(format!(
                "member {:x} is looking for member {:x}, but this is {:x}: peer URLs are mixed up",
                hello.member, hello.to, self.member.0
            )
            .into());
        }
        if links.get(member).is_none() {
            return Err(Refusal::Unknown(format!(
                "{:x} is not another member of this cluster: it was not added, or that is not known here yet",
                hello.member
            )));
        }
        gate.admit(member, store, hello.log_incarnation)?;
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
        let from = self.judge(hello, links, gate);
        let from = from.map_err(|refusal| refusal.to_string())?;
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
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::{Members, QueueLimits};
    use super::*;

    const ME: Me = Me {
        cluster: 9,
        member: NodeId(1),
        store: StoreId(11),
        boot: 1,
        log_incarnation: 0,
    };

    /// Knows one store, and has seen the second log that was begun anew on it.
    struct Known;

    impl StoreGate for Known {
        fn admit(&self, _: NodeId, store: StoreId, incarnation: Option<u64>) -> Result<(), String> {
            if incarnation.is_some_and(|number| number < 2) {
                return Err("an old copy".to_owned());
            }
            let known = store == StoreId(22);
            known.then_some(()).ok_or_else(|| "another disk".to_owned())
        }
    }

    fn links() -> Links {
        let members = Members {
            urls: BTreeMap::from([(NodeId(2), vec!["http://two".to_owned()])]),
            removed: BTreeSet::from([NodeId(8)]),
        };
        Links::new(&members, QueueLimits::default())
    }

    fn judge(change: impl FnOnce(&mut pb::Hello)) -> Result<NodeId, Refusal> {
        let other = Me {
            member: NodeId(2),
            store: StoreId(22),
            log_incarnation: 2,
            ..ME
        };
        let mut hello = other.hello(NodeId(1));
        change(&mut hello);
        ME.judge(Some(hello), &links(), &Known)
    }

    #[test]
    fn hello_of_a_member_with_its_disk_is_taken() {
        assert_eq!(judge(|_| ()), Ok(NodeId(2)));
        let newer = |hello: &mut pb::Hello| hello.log_incarnation = Some(3);
        assert_eq!(judge(newer), Ok(NodeId(2)));
    }

    #[test]
    fn hello_of_a_version_that_does_not_tell_its_log_is_taken() {
        let silent = |hello: &mut pb::Hello| hello.log_incarnation = None;
        assert_eq!(judge(silent), Ok(NodeId(2)));
    }

    #[test]
    fn hello_of_anybody_else_is_refused_with_the_reason() {
        type Change = fn(&mut pb::Hello);
        let cases: [(Change, &str); 9] = [
            (|hello| hello.format = 2, "version 2 of the peer protocol"),
            (|hello| hello.cluster = 10, "cluster ID mismatch"),
            (|hello| hello.to = 3, "peer URLs are mixed up"),
            (|hello| hello.member = 7, "7 is not another member"),
            (|hello| hello.member = 1, "1 is not another member"),
            (|hello| hello.store = 23, "another disk"),
            (|hello| hello.log_incarnation = Some(1), "an old copy"),
            (|hello| hello.log_incarnation = Some(0), "an old copy"),
            (|hello| hello.member = 8, REMOVED),
        ];
        for (change, reason) in cases {
            let error = judge(change).unwrap_err();
            assert_eq!(error == Refusal::Removed, reason == REMOVED);
            let error = error.to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(ME.judge(None, &links(), &Known).is_err());
    }
}
