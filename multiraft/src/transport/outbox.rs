//! The host's way out: an [`Outbox`] over the queues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use raft_log::{GroupId, NodeId};
use raft_node::core::Message;
use tokio::sync::mpsc;

use super::codec::Item;
use super::queue::Queue;
use super::stats::Counters;
use super::{Inbound, QueueLimits};
use crate::forward::ForwardMessage;
use crate::liveness::Beat;
use crate::{Outbox, SnapshotTransfer};

/// Snapshots of groups that wait for the one that is on its way to the same member.
const TRANSFERS_MAX: usize = 16;

/// One member as seen from here.
pub(super) struct Peer {
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    pub(super) transfers: mpsc::Sender<SnapshotTransfer>,
    /// Until the transport takes it.
    pub(super) carried: Mutex<Option<mpsc::Receiver<SnapshotTransfer>>>,
}

/// The queues to all other members. Made before the host, which gets [`Links::outbox`].
#[derive(Clone)]
pub struct Links {
    pub(super) peers: Arc<BTreeMap<NodeId, Arc<Peer>>>,
    pub(super) inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links")
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Queues to these members.
    #[must_use]
    pub fn new(peers: impl IntoIterator<Item = NodeId>, limits: QueueLimits) -> Self {
        let peer = |id| {
            let (transfers, carried) = mpsc::channel(TRANSFERS_MAX);
            let peer = Peer {
                queue: Queue::new(id, limits),
                counters: Counters::default(),
                transfers,
                carried: Mutex::new(Some(carried)),
            };
            (id, Arc::new(peer))
        };
        Self {
            peers: Arc::new(peers.into_iter().map(peer).collect()),
            inbound: Arc::default(),
        }
    }

    /// The way out for a host.
    #[must_use]
    pub fn outbox(&self) -> Box<dyn Outbox> {
        Box::new(self.clone())
    }

    fn push(&self, to: NodeId, item: Item) {
        // A member that is none of ours cannot be reached, and who sent to it will look again.
        let Some(peer) = self.peers.get(&to) else {
            return;
        };
        if let Err(item) = peer.queue.push(item) {
            peer.counters.dropped();
            let inbound = self.inbound.get().map(AsRef::as_ref);
            peer.queue.bounce(inbound, item);
        }
    }
}

impl Outbox for Links {
    fn send(&mut self, group: GroupId, to: NodeId, message: Message) {
        self.push(to, Item::Raft(group, message));
    }

    fn forward(&mut self, group: GroupId, to: NodeId, message: ForwardMessage) {
        self.push(to, Item::Forward(group, message));
    }

    fn beat(&mut self, to: NodeId, beat: Beat) {
        if let Some(peer) = self.peers.get(&to) {
            peer.queue.beat(beat);
        }
    }

    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        if let Some(peer) = self.peers.get(&transfer.to()) {
            // One that comes back here has failed when it is dropped.
            drop(peer.transfers.try_send(transfer));
        }
    }
}
