//! The host's way out: an [`Outbox`] over the queues, one for each other member, which come and go with their members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use raft_log::{GroupId, NodeId};
use raft_node::core::Message;
use tokio::sync::{Notify, mpsc, watch};

use super::codec::Item;
use super::queue::Queue;
use super::stats::Counters;
use super::trips::Trips;
use super::{Inbound, QueueLimits};
use crate::forward::ForwardMessage;
use crate::liveness::Beat;
use crate::{Outbox, SnapshotTransfer};

/// Snapshots of groups that wait for the one that is on its way to the same member.
const TRANSFERS_MAX: usize = 16;

/// The other members: where they are, and who is none any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The peer URLs of every other member; at least one each.
    pub urls: BTreeMap<NodeId, Vec<String>>,
    /// Who was removed: they are told so, whatever they say.
    pub removed: BTreeSet<NodeId>,
}

/// One member as seen from here.
pub(super) struct Peer {
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    pub(super) trips: Trips,
    pub(super) transfers: mpsc::Sender<SnapshotTransfer>,
    /// Until the transport takes it.
    pub(super) carried: Mutex<Option<mpsc::Receiver<SnapshotTransfer>>>,
    /// It was heard of: whoever waits to dial it need not wait longer.
    pub(super) heard: Notify,
    /// Where it is; empty once it is no member any more.
    pub(super) urls: watch::Sender<Vec<String>>,
    /// Its tasks run.
    pub(super) is_served: AtomicBool,
    /// The number of the newest link to it.
    links: AtomicU64,
}

impl Peer {
    fn new(id: NodeId, urls: Vec<String>, limits: QueueLimits) -> Self {
        let (transfers, carried) = mpsc::channel(TRANSFERS_MAX);
        Self {
            queue: Queue::new(id, limits),
            counters: Counters::default(),
            trips: Trips::default(),
            transfers,
            carried: Mutex::new(Some(carried)),
            heard: Notify::new(),
            urls: watch::Sender::new(urls),
            is_served: AtomicBool::new(false),
            links: AtomicU64::new(0),
        }
    }

    /// A number for the next link to it.
    pub(super) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[derive(Default)]
struct Table {
    peers: BTreeMap<NodeId, Arc<Peer>>,
    removed: BTreeSet<NodeId>,
}

/// The queues to all other members. Made before the host, which gets [`Links::outbox`].
#[derive(Clone)]
pub struct Links {
    table: Arc<RwLock<Table>>,
    limits: QueueLimits,
    /// A member came.
    pub(super) changed: Arc<Notify>,
    pub(super) inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links")
            .field("peers", &self.all().len())
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Queues to these members.
    #[must_use]
    pub fn new(members: &Members, limits: QueueLimits) -> Self {
        let links = Self {
            table: Arc::default(),
            limits,
            changed: Arc::default(),
            inbound: Arc::default(),
        };
        links.update(members);
        links
    }

    /// There are these members from now on. Links to those that are gone end, new ones are dialled, and those whose URLs
    /// are others are dialled there.
    pub fn update(&self, members: &Members) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.removed.clone_from(&members.removed);
        table.peers.retain(|id, peer| {
            let stays = members.urls.contains_key(id);
            if !stays {
                peer.urls.send_replace(Vec::new());
            }
            stays
        });
        for (id, urls) in &members.urls {
            let peer = table.peers.entry(*id);
            let peer = peer.or_insert_with(|| Arc::new(Peer::new(*id, urls.clone(), self.limits)));
            peer.urls.send_if_modified(|now| {
                let differ = now != urls;
                if differ {
                    now.clone_from(urls);
                }
                differ
            });
        }
        drop(table);
        self.changed.notify_one();
    }

    /// The way out for a host.
    #[must_use]
    pub fn outbox(&self) -> Box<dyn Outbox> {
        Box::new(self.clone())
    }

    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Peer>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.peers.get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<(NodeId, Arc<Peer>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let peers = table.peers.iter();
        peers.map(|(id, peer)| (*id, Arc::clone(peer))).collect()
    }

    pub(super) fn is_removed(&self, id: NodeId) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.removed.contains(&id)
    }

    fn push(&self, to: NodeId, item: Item) {
        // A member that is none of ours cannot be reached, and who sent to it will look again.
        let Some(peer) = self.get(to) else {
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
        if let Some(peer) = self.get(to) {
            peer.queue.beat(beat);
        }
    }

    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        if let Some(peer) = self.get(transfer.to()) {
            // One that comes back here has failed when it is dropped.
            drop(peer.transfers.try_send(transfer));
        }
    }
}
