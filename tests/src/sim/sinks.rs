//! What the state machine talks to: a watch hub and a lessor that record and check, and a wrapper that shows the
//! oracle what is applied.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_server::lease;
use kv_server::mvcc::{
    CommandOutput, EventSink, KvStateMachine, LeaseInfo, LeaseSink, RevisionEvents, Store,
};
use kv_server::watch::WatchHub;
use multiraft::{Cut, SnapshotState};
use raft_log::{Entry, Index, NodeId, SnapshotRef};
use raft_node::core::Membership;
use raft_node::{Applied, ApplyError, StateMachine, TickContext};

use super::oracle::{Oracle, Shared};
use super::workload;

/// Bytes that the watch hub keeps in memory.
const WATCH_BYTES: usize = 1 << 20;

/// Hears of revisions: each once, in order, as the model has them.
pub struct Hub {
    node: NodeId,
    oracle: Shared<Oracle>,
    heard: Shared<Heard>,
    watch: Arc<WatchHub>,
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
    /// A hub of a state machine that is opened later, with so many revisions in memory; [`Hub::begin`] says where it
    /// stands.
    #[must_use]
    pub fn new(node: NodeId, oracle: Shared<Oracle>, revisions: usize) -> Self {
        let heard = Shared::new(Heard::default());
        Self {
            node,
            oracle,
            heard,
            watch: Arc::new(WatchHub::with_bounds(WATCH_BYTES, revisions)),
        }
    }

    /// The state machine was opened at this point.
    pub fn begin(&self, heard: Heard) {
        *self.heard.get() = heard;
        self.watch.start(heard.revision);
    }

    /// The product's hub, which gets what this one has checked.
    #[must_use]
    pub fn watch(&self) -> &Arc<WatchHub> {
        &self.watch
    }

    /// A snapshot has brought another floor.
    pub fn installed(&self, floor: i64) {
        self.heard.get().floor = floor;
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
        self.watch.publish(revisions);
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

    fn jumped(&self, revision: i64) {
        self.heard.get().revision = revision;
        self.watch.jumped(revision);
    }
}

/// Follows the leases, and proposes what it is given when the member leads; and what the product's lessor proposes, if
/// there is one.
#[derive(Clone, Default)]
pub struct Lessor {
    leases: Shared<BTreeMap<i64, LeaseInfo>>,
    proposals: Shared<Vec<Bytes>>,
    product: Option<Product>,
}

#[derive(Clone)]
struct Product {
    lessor: Arc<lease::Lessor>,
    node: NodeId,
    oracle: Shared<Oracle>,
}

impl Lessor {
    /// One that lets leases end as the product does.
    #[must_use]
    pub fn with_product(node: NodeId, oracle: Shared<Oracle>) -> Self {
        let product = Product {
            lessor: Arc::new(lease::Lessor::new()),
            node,
            oracle,
        };
        Self {
            product: Some(product),
            ..Self::default()
        }
    }

    /// The product's lessor, if there is one.
    #[must_use]
    pub fn product(&self) -> Option<Arc<lease::Lessor>> {
        self.product.as_ref().map(|p| Arc::clone(&p.lessor))
    }

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
        if let Some(product) = &self.product {
            product.lessor.granted(lease);
        }
    }

    fn revoked(&self, id: i64) {
        let before = self.leases.get().remove(&id);
        assert!(before.is_some(), "lease {id} is revoked twice");
        if let Some(product) = &self.product {
            product.lessor.revoked(id);
        }
    }

    fn checkpointed(&self, id: i64, remaining_ttl: Option<i64>) {
        let mut leases = self.leases.get();
        let lease = leases.get_mut(&id).expect("a checkpointed lease exists");
        lease.remaining_ttl = remaining_ttl;
        drop(leases);
        if let Some(product) = &self.product {
            product.lessor.checkpointed(id, remaining_ttl);
        }
    }

    fn tick(&self, context: TickContext, proposals: &mut Vec<Bytes>) {
        if context.leading.is_some() {
            proposals.append(&mut self.proposals.get());
        }
        if let Some(product) = &self.product {
            let mut drawn = Vec::new();
            product.lessor.tick(context, &mut drawn);
            for payload in drawn {
                let tag = product.oracle.get().sent(product.node, false);
                proposals.push(workload::tagged(&payload, tag));
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        let own = (!self.proposals.get().is_empty()).then_some(0);
        let product = self.product.as_ref().and_then(|p| p.lessor.next_deadline());
        own.into_iter().chain(product).min()
    }
}

/// The product's state machine; what it applies and answers is compared with the oracle.
pub struct Observed {
    inner: KvStateMachine,
    node: NodeId,
    oracle: Shared<Oracle>,
    hub: Arc<Hub>,
    store: Arc<Store>,
}

impl Observed {
    /// Wraps a state machine.
    #[must_use]
    pub fn new(
        inner: KvStateMachine,
        node: NodeId,
        oracle: Shared<Oracle>,
        hub: Arc<Hub>,
        store: Arc<Store>,
    ) -> Self {
        Self {
            inner,
            node,
            oracle,
            hub,
            store,
        }
    }
}

impl SnapshotState for Observed {
    fn cut(&self) -> Box<dyn Cut> {
        let (index, hash) = (self.inner.applied().index, self.store.state_hash());
        let hash = hash.expect("an engine in memory can be read");
        self.oracle.get().cut(self.node, index, hash);
        self.inner.cut()
    }

    fn begin_install(
        &mut self,
        snapshot: &SnapshotRef,
        content: Box<dyn io::Read + Send>,
    ) -> Result<(), ApplyError> {
        self.inner.begin_install(snapshot, content)
    }

    fn install_step(&mut self) -> Result<bool, ApplyError> {
        let done = self.inner.install_step()?;
        if done {
            let (index, hash) = (self.inner.applied().index, self.store.state_hash());
            let hash = hash.expect("an engine in memory can be read");
            let mark = self.oracle.get().installed(self.node, index, hash);
            self.hub.installed(mark.floor);
        }
        Ok(done)
    }

    fn install_waits(&self) -> bool {
        self.inner.install_waits()
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
        let mut oracle = self.oracle.get();
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
