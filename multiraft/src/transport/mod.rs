//! The network between members: one gRPC stream per direction and pair of them, whatever groups they share.
//!
//! Each member dials every other one and sends its own messages on the stream that it opened; what it receives comes on
//! the streams that were opened to it. So a link either works in one direction or is gone, and the end that sends is the
//! one that dials again.
//!
//! ```text
//! host thread ── Outbox ──> queue per member (bounded) ──> frames ──> the member's Inbound ──> its host's inbox
//!                           lost without a link            CRC, at most about 1 MiB
//! ```
//!
//! - A stream begins with a handshake, judged on both sides: cluster, member, disk and log on it, version (`hello.rs`).
//!   Below it may be TLS, chosen for each listener, and for each link by the scheme of its URL (`stream.rs`).
//! - A queue never blocks the host. Raft sends again what is lost; a forwarded command that never left is reported as not
//!   proposed, so that it is sent to the next leader at once (`queue.rs`).
//! - Who is not reached is dialled again after a pause that grows to a second, with jitter; a member that dials us is
//!   dialled back without a pause.
//! - A snapshot has a connection and a stream of its own, so that it keeps no message waiting: chunk by chunk, at a
//!   bounded rate, one at a time to a member, and after a failure from the chunk on that is missing (`sending.rs`,
//!   `receiving.rs`).
//! - Members come, move and go while it runs ([`Links::update`]). One that was removed is told so, on each stream that it
//!   opens; the transport of the member that hears this of itself ends.
//! - Beats of [`crate::liveness`] ride on the same streams; of one that waits the next one takes the place. They show how
//!   long a round trip takes (`trips.rs`).
//!
//! One thread does all of it, with a few more that read and write the files of snapshots. It knows nothing of Raft and keeps
//! nothing on disk: whoever owns the data directory remembers disks (see [`StoreGate`]) and has the store of snapshots.

#[cfg(test)]
mod carrying;
mod codec;
mod dial;
mod directory;
mod hello;
mod outbox;
mod queue;
mod receiving;
mod sending;
mod serve;
mod stats;
mod stream;
mod trips;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use raft_log::{GroupId, NodeId, StoreId};
use raft_node::StateMachine;
use raft_node::core::Message;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::HostHandle;
use crate::forward::ForwardMessage;
use crate::liveness::Beat;
use crate::tls::{ClientTls, Listener};

use stats::{Counters, Strangers};

pub use directory::{ClusterView, Directory, ListedMember, ask_members};
pub use hello::{Me, REMOVED_ADVICE};
pub use outbox::{Links, Members};
pub use receiving::{SnapshotInbound, SnapshotInbox};
pub use stats::PeerStatus;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto file describes it"
)]
mod pb {
    tonic::include_proto!("flotilla.transport");
}

/// The longest frame: an entry of the log, and what goes around it.
const FRAME_BYTES_MAX: usize = (64 << 20) + (4 << 20);
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection on which nothing comes back for so long is given up: a ping, and the wait for its answer.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection and its handshake may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Where messages of other members go. Called by the transport's thread, and by the host's for what it cannot send: it
/// must not block.
pub trait Inbound: Send + Sync + 'static {
    /// A message of a group.
    fn deliver(&self, group: GroupId, from: NodeId, message: Message);

    /// A message about clients' work.
    fn forward(&self, group: GroupId, from: NodeId, message: ForwardMessage);

    /// A beat of a member's store.
    fn beat(&self, from: NodeId, beat: Beat);
}

impl<S: StateMachine> Inbound for HostHandle<S>
where
    Self: Send + Sync + 'static,
{
    fn deliver(&self, group: GroupId, from: NodeId, message: Message) {
        Self::deliver(self, group, from, message);
    }

    fn forward(&self, group: GroupId, from: NodeId, message: ForwardMessage) {
        self.deliver_forward(group, from, message);
    }

    fn beat(&self, from: NodeId, beat: Beat) {
        self.deliver_beat(from, beat);
    }
}

/// Remembers the disk of each member and the newest log on it, durably.
pub trait StoreGate: Send + Sync + 'static {
    /// Takes a member's disk at the first handshake, and only that one from then on; and its log, if that is not older than
    /// the newest one that was seen. `incarnation` is none where a member's version does not tell. It may write and sync:
    /// what is not durable here is not admitted.
    ///
    /// # Errors
    /// Why the member is refused; both sides show it.
    fn admit(&self, member: NodeId, store: StoreId, incarnation: Option<u64>)
    -> Result<(), String>;
}

/// Bounds of what waits to be sent to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Messages; more are lost. Default 4,096.
    pub messages_max: usize,
    /// Their bytes; more are lost. The entries are the same buffers as the core's. Default 32 MiB: more than the core has
    /// on its way to one member.
    pub bytes_max: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            messages_max: 4_096,
            bytes_max: 32 << 20,
        }
    }
}

/// What a transport is started with.
pub struct TransportSetup {
    /// Who this is.
    pub me: Me,
    /// Where messages of others go.
    pub inbound: Arc<dyn Inbound>,
    /// Remembers disks.
    pub gate: Arc<dyn StoreGate>,
    /// Says which members there are; without it who asks is refused.
    pub directory: Option<Arc<dyn Directory>>,
    /// Takes the snapshots that others send; without it they are refused.
    pub snapshots: Option<Arc<dyn SnapshotInbound>>,
    /// Bytes of a snapshot that are sent to a member in a second, at most: what is left of the disks and of the network is
    /// for clients. [`SNAPSHOT_BYTES_PER_SECOND`] is a good choice.
    pub snapshot_bytes_per_second: u64,
    /// Where the jitter of pauses comes from.
    pub seed: u64,
    /// Protects links to members whose URLs begin with `https`; without it they cannot be dialled.
    pub tls: Option<ClientTls>,
}

/// What a disk and a network of today hardly notice.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 32 << 20;
/// Threads that read and write snapshots for the transport: more snapshots wait.
const BLOCKING_THREADS_MAX: usize = 8;

/// What all tasks of a transport share.
struct Shared {
    me: Me,
    links: Links,
    inbound: Arc<dyn Inbound>,
    gate: Arc<dyn StoreGate>,
    directory: Option<Arc<dyn Directory>>,
    snapshots: Option<Arc<dyn SnapshotInbound>>,
    snapshot_bytes_per_second: u64,
    tls: Option<ClientTls>,
    /// Who called and is no member; only the newest refusal counts.
    strangers: Counters,
    /// Who called and is not known.
    unknown: Strangers,
    trip_observer: OnceLock<TripObserver>,
}

/// Is told how long it took to a member and back. Called by the transport's thread: it must not block.
pub type TripObserver = Box<dyn Fn(NodeId, Duration) + Send + Sync>;

/// A transport that runs.
pub struct Transport {
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("me", &self.shared.me)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Starts the thread: it listens, and dials every member of `links`. `on_failure` is called on it, once, when it
    /// cannot go on.
    ///
    /// # Errors
    /// When there is no thread, or a listener cannot be used.
    pub fn start(
        listeners: Vec<Listener>,
        links: Links,
        setup: TransportSetup,
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> io::Result<Self> {
        for listener in &listeners {
            listener.socket.set_nonblocking(true)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("flotilla-carry")
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .build()?;
        // The host bounces by the same way in. A second transport over the same links would have the same one.
        let _ = links.inbound.set(Arc::clone(&setup.inbound));
        let shared = Arc::new(Shared {
            me: setup.me,
            links,
            strangers: Counters::default(),
            unknown: Strangers::default(),
            trip_observer: OnceLock::new(),
            inbound: setup.inbound,
            gate: setup.gate,
            directory: setup.directory,
            snapshots: setup.snapshots,
            snapshot_bytes_per_second: setup.snapshot_bytes_per_second.max(1),
            tls: setup.tls,
        });
        let (stop, stopped) = oneshot::channel();
        let for_thread = Arc::clone(&shared);
        let seed = setup.seed;
        let thread = std::thread::Builder::new()
            .name("flotilla-peers".to_owned())
            .spawn(move || {
                let failed = runtime.block_on(async {
                    tokio::select! {
                        failed = run(for_thread, listeners, seed) => Some(failed),
                        // Stopped, or its owner is gone.
                        _ = stopped => None,
                    }
                });
                if let Some(error) = failed {
                    tracing::error!(error, "the transport stopped");
                    on_failure(&error);
                }
                // Streams that are open end with the runtime.
            })?;
        Ok(Self {
            shared,
            stop,
            thread,
        })
    }

    /// How the links are doing.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        self.watcher().status()
    }

    /// Says how the links are doing, also where the transport itself is not at hand.
    #[must_use]
    pub fn watcher(&self) -> TransportWatcher {
        TransportWatcher(Arc::clone(&self.shared))
    }

    /// Ends all links and the thread.
    pub fn stop(self) {
        // A thread that failed has nobody to tell.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the transport's thread panicked");
        }
    }
}

/// Says how the links of a transport are doing. Cheap to clone.
#[derive(Clone)]
pub struct TransportWatcher(Arc<Shared>);

impl std::fmt::Debug for TransportWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransportWatcher").finish_non_exhaustive()
    }
}

impl TransportWatcher {
    /// One line per other member, by id.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let peers = self.0.links.all().into_iter();
        peers
            .map(|(id, peer)| peer.counters.status(id, peer.queue.waiting()))
            .collect()
    }

    /// Tells `observer` of each round trip from now on; only the first one that is named. There is one with each beat
    /// that a member answers by its next one.
    pub fn observe_trips(&self, observer: TripObserver) {
        // A second one would have nobody to tell that it is not called.
        drop(self.0.trip_observer.set(observer));
    }
}

/// Runs all tasks; returns only when one of them cannot go on.
async fn run(shared: Arc<Shared>, listeners: Vec<Listener>, seed: u64) -> String {
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move { Some(serve::listen(listener, shared).await) });
    }
    loop {
        for (id, peer) in shared.links.all() {
            if peer.is_served.swap(true, Ordering::Relaxed) {
                continue;
            }
            let (for_snapshots, to) = (Arc::clone(&shared), Arc::clone(&peer));
            tasks.spawn(async move { sending::keep(for_snapshots, id, to).await });
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { dial::keep(shared, id, peer, seed ^ id.0).await });
        }
        let ended = tokio::select! {
            () = shared.links.changed.notified() => continue,
            Some(ended) = tasks.join_next() => ended,
        };
        match ended {
            // Its member is gone.
            Ok(None) => {}
            Ok(Some(error)) => return error,
            Err(error) => return format!("a task of the transport panicked: {error}"),
        }
    }
}
