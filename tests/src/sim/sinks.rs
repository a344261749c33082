//! What the state machine talks to: a watch hub and a lessor that record and check, and a wrapper that shows the
//! oracle what is applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_server::mvcc::{
    CommandOutput, EventSink, KvStateMachine, LeaseInfo, LeaseSink, RevisionEvents,
};
use raft_log::{Entry, Index, NodeId};
use raft_node::core::Membership;
use raft_node::{Applied, ApplyError, StateMachine, TickContext};

use super::oracle::{Oracle, Shared};

/// Hears of revisions: each once, in order, as the model has them.
pub struct Hub {
    node: NodeId,
    oracle: Shared<Oracle>,
    heard: Shared<Heard>,
}

/// The newest revision and floor that a hub knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Consecutive revisions up to here were published, or were there when the hub was made.
    pub revision: i64,
    /// The compaction floor.
    pub floor: i64,
}

impl Hub {
    /// A hub of a state machine that is opened later; [`Hub::begin`] says where it stands.
    #[must_use]
    pub fn new(node: NodeId, oracle: Shared<Oracle>) -> Self {
        let heard = Shared::new(Heard::default());
        Self {
            node,
            oracle,
            heard,
        }
    }

    /// The state machine was opened at this point.
    pub fn begin(&self, heard: Heard) {
        *self.heard.get() = heard;
    }

    /// What was heard so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        *self.heard.get()
    }
}

impl EventSink for Hub {
    fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        for revision in revisions {
            let mut heard = self.heard.get();
            assert_eq!(
                revision.revision,
                heard.revision + 1,
                "member {} publishes a revision twice or leaves one out",
                self.node
            );
            heard.revision = revision.revision;
            self.oracle.get().published(self.node, revision);
        }
    }

    fn compacted(&self, revision: i64) {
        let mut heard = self.heard.get();
        assert!(
            revision > heard.floor,
            "member {} moves its floor back from {} to {revision}",
            self.node,
            heard.floor
        );
        heard.floor = revision;
    }
}

/// Follows the leases, and proposes what it is given when the member leads.
#[derive(Clone)]
pub struct Lessor {
    leases: Shared<BTreeMap<i64, LeaseInfo>>,
    proposals: Shared<Vec<Bytes>>,
}

impl Default for Lessor {
    fn default() -> Self {
        Self {
            leases: Shared::new(BTreeMap::new()),
            proposals: Shared::new(Vec::new()),
        }
    }
}

impl Lessor {
    /// The leases that it was told of.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.leases.get().values().copied().collect()
    }

    /// Proposes a command at the next tick, if the member leads then.
    pub fn propose(&self, payload: Bytes) {
        self.proposals.get().push(payload);
    }
}

impl LeaseSink for Lessor {
    fn granted(&self, lease: LeaseInfo) {
        let before = self.leases.get().insert(lease.id, lease);
        assert_eq!(before, None, "lease {} is granted twice", lease.id);
    }

    fn revoked(&self, id: i64) {
        let before = self.leases.get().remove(&id);
        assert!(before.is_some(), "lease {id} is revoked twice");
    }

    fn checkpointed(&self, id: i64, remaining_ttl: Option<i64>) {
        let mut leases = self.leases.get();
        let lease = leases.get_mut(&id).expect("a checkpointed lease exists");
        lease.remaining_ttl = remaining_ttl;
    }

    fn tick(&self, context: TickContext, proposals: &mut Vec<Bytes>) {
        if context.leading.is_some() {
            proposals.append(&mut self.proposals.get());
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        (!self.proposals.get().is_empty()).then_some(0)
    }
}

/// The product's state machine; what it applies and answers is compared with the oracle.
pub struct Observed {
    inner: KvStateMachine,
    node: NodeId,
    oracle: Shared<Oracle>,
}

impl Observed {
    /// Wraps a state machine.
    #[must_use]
    pub fn new(inner: KvStateMachine, node: NodeId, oracle: Shared<Oracle>) -> Self {
        Self {
            inner,
            node,
            oracle,
        }
    }
}

impl StateMachine for Observed {
    type Output = CommandOutput;

    fn applied(&self) -> Applied {
        self.inner.applied()
    }

    fn durable_index(&self) -> Index {
        self.inner.durable_index()
    }

    fn request_persist(&mut self) {
        self.inner.request_persist();
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<CommandOutput>,
    ) -> Result<(), ApplyError> {
        self.oracle.get().applying(self.node, entries);
        let before = outputs.len();
        self.inner.apply(entries, membership, outputs)?;
        let oracle = self.oracle.get();
        oracle.applied(self.node, entries, &outputs[before..]);
        Ok(())
    }

    fn tick(&mut self, context: TickContext, proposals: &mut Vec<Bytes>) {
        self.inner.tick(context, proposals);
    }

    fn next_deadline(&self) -> Option<u64> {
        self.inner.next_deadline()
    }
}
