//! Tests of the way of a snapshot between two transports on loopback.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft_log::snapshot::{
    PendingSnapshot, SnapshotError, SnapshotManifest, SnapshotMeta, SnapshotOptions,
    SnapshotReceiver, SnapshotStore,
};
use raft_log::vfs::RealFs;
use raft_log::{GroupId, Index, NodeId, StoreId, Term};
use raft_node::core::{Message, SnapshotReport};

use super::{
    Inbound, Links, Me, Members, QueueLimits, SNAPSHOT_BYTES_PER_SECOND, SnapshotInbound,
    StoreGate, Transport, TransportSetup,
};
use crate::forward::ForwardMessage;
use crate::liveness::Beat;
use crate::transfer::{TransferNews, Transfers};
use crate::{HostError, Outbox, Reply, SnapshotTransfer};

const PATIENCE: Duration = Duration::from_secs(20);
const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);
const GROUP: GroupId = GroupId(1);
const CHUNK: u32 = 16 << 10;
const CHUNKS: usize = 40;

/// A host that hears no message.
struct Deaf;

impl Inbound for Deaf {
    fn deliver(&self, _: GroupId, _: NodeId, _: Message) {}
    fn forward(&self, _: GroupId, _: NodeId, _: ForwardMessage) {}
    fn beat(&self, _: NodeId, _: Beat) {}
}

/// Knows two disks.
struct Disks;

impl StoreGate for Disks {
    fn admit(&self, member: NodeId, store: StoreId, _: Option<u64>) -> Result<(), String> {
        let same = store == StoreId(member.0);
        same.then_some(()).ok_or_else(|| "another disk".to_owned())
    }
}

#[derive(Debug)]
enum Got {
    /// A receive begins with this chunk.
    Begin(u64),
    Whole(NodeId, Term, Vec<u8>),
}

/// Receives into a store, and answers as it is told.
struct Taker {
    store: SnapshotStore,
    got: Mutex<Sender<Got>>,
    answer: Result<(), HostError>,
    covered: bool,
}

impl SnapshotInbound for Taker {
    fn begin(&self, manifest: SnapshotManifest) -> Result<Option<SnapshotReceiver>, SnapshotError> {
        if self.covered {
            return Ok(None);
        }
        let receiver = self.store.receive(manifest, 7)?;
        let begin = Got::Begin(receiver.next());
        self.got.lock().unwrap().send(begin).unwrap();
        Ok(Some(receiver))
    }

    fn deliver(&self, from: NodeId, sent_in: Term, pending: PendingSnapshot, reply: Reply<()>) {
        let mut reader = self
            .store
            .open_snapshot(GROUP, pending.reference())
            .unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        let whole = Got::Whole(from, sent_in, content);
        self.got.lock().unwrap().send(whole).unwrap();
        reply(self.answer.clone());
    }
}

fn store(dir: &std::path::Path, of: NodeId) -> SnapshotStore {
    let mut options = SnapshotOptions::new(dir.join(format!("{of}")), StoreId(of.0));
    options.chunk_bytes = CHUNK;
    // Written as it comes.
    options.sync_bytes = u64::from(CHUNK);
    SnapshotStore::open_with(Arc::new(RealFs::default()), options).unwrap()
}

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn start(
    me: NodeId,
    listener: TcpListener,
    other: (NodeId, SocketAddr),
    snapshots: Option<Arc<dyn SnapshotInbound>>,
    bytes_per_second: u64,
) -> (Box<dyn Outbox>, Transport) {
    let members = Members {
        urls: BTreeMap::from([(other.0, vec![format!("http://{}", other.1)])]),
        ..Members::default()
    };
    let links = Links::new(&members, QueueLimits::default());
    let setup = TransportSetup {
        me: Me {
            cluster: 0xc,
            member: me,
            store: StoreId(me.0),
            boot: 1,
            log_incarnation: 0,
        },
        inbound: Arc::new(Deaf),
        gate: Arc::new(Disks),
        directory: None,
        snapshots,
        snapshot_bytes_per_second: bytes_per_second,
        seed: me.0,
        tls: None,
    };
    let outbox = links.outbox();
    let failed = Box::new(|error: &str| panic!("{error}"));
    let transport = Transport::start(vec![listener.into()], links, setup, failed).unwrap();
    (outbox, transport)
}

/// Member A with a snapshot, and member B's place.
struct World {
    dir: tempfile::TempDir,
    content: Vec<u8>,
    store: SnapshotStore,
    /// Unfinished, so that the file stays.
    pending: PendingSnapshot,
    transfers: Transfers,
    news: (Sender<TransferNews>, Receiver<TransferNews>),
    a: (Box<dyn Outbox>, Transport),
    a_address: SocketAddr,
    b_address: SocketAddr,
}

/// A world with B's listener.
fn world(bytes_per_second: u64) -> (World, TcpListener) {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..CHUNKS * CHUNK as usize - 9)
        .map(|at| (at % 251) as u8)
        .collect();
    let store = store(dir.path(), A);
    let meta = SnapshotMeta {
        group: GROUP,
        creation: 7,
        index: Index(90),
        term: Term(4),
        membership: Bytes::from_static(b"members"),
    };
    let mut writer = store.create(meta).unwrap();
    writer.write_all(&content).unwrap();
    let pending = writer.finish().unwrap();
    let ((at_a, a_address), (at_b, b_address)) = (bind(), bind());
    let a = start(A, at_a, (B, b_address), None, bytes_per_second);
    let world = World {
        dir,
        content,
        store,
        pending,
        transfers: Transfers::default(),
        news: channel(),
        a,
        a_address,
        b_address,
    };
    (world, at_b)
}

impl World {
    fn start_b(&self, listener: TcpListener, taker: Taker) -> Transport {
        let snapshots: Arc<dyn SnapshotInbound> = Arc::new(taker);
        let rate = SNAPSHOT_BYTES_PER_SECOND;
        start(B, listener, (A, self.a_address), Some(snapshots), rate).1
    }

    fn taker(&self) -> (Taker, Receiver<Got>) {
        let (sender, got) = channel();
        let taker = Taker {
            store: store(self.dir.path(), B),
            got: Mutex::new(sender),
            answer: Ok(()),
            covered: false,
        };
        (taker, got)
    }

    fn transfer(&mut self) -> SnapshotTransfer {
        let sender = self.news.0.clone();
        // A test that is over does not listen.
        let tell = Box::new(move |news| sender.send(news).unwrap_or_default());
        let snapshot = self.pending.reference().clone();
        self.transfers
            .begin(&self.store, GROUP, (B, Term(5)), snapshot, tell)
    }

    fn send(&mut self) {
        let transfer = self.transfer();
        self.a.0.send_snapshot(transfer);
    }

    /// How the transfer ended.
    fn end(&self) -> SnapshotReport {
        loop {
            let news = self.news.1.recv_timeout(PATIENCE).unwrap();
            if news.report != SnapshotReport::Moving {
                return news.report;
            }
        }
    }
}

fn next(got: &Receiver<Got>) -> Got {
    got.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn snapshot_arrives_whole_and_is_taken() {
    let (mut world, at_b) = world(SNAPSHOT_BYTES_PER_SECOND);
    let (taker, got) = world.taker();
    let _b = world.start_b(at_b, taker);
    world.send();
    assert_eq!(world.end(), SnapshotReport::Taken(Index(90)));
    assert!(matches!(next(&got), Got::Begin(0)));
    let Got::Whole(from, sent_in, content) = next(&got) else {
        panic!("one receive is enough");
    };
    assert_eq!((from, sent_in), (A, Term(5)));
    assert!(content == world.content);
}

#[test]
fn snapshot_that_is_covered_is_taken_without_a_chunk() {
    let (mut world, at_b) = world(SNAPSHOT_BYTES_PER_SECOND);
    let (mut taker, got) = world.taker();
    taker.covered = true;
    let _b = world.start_b(at_b, taker);
    world.send();
    assert_eq!(world.end(), SnapshotReport::Taken(Index(90)));
    assert!(got.try_recv().is_err());
}

#[test]
fn snapshot_that_the_host_refuses_has_failed() {
    let (mut world, at_b) = world(SNAPSHOT_BYTES_PER_SECOND);
    let (mut taker, _got) = world.taker();
    taker.answer = Err(HostError::Busy);
    let _b = world.start_b(at_b, taker);
    world.send();
    assert_eq!(world.end(), SnapshotReport::Failed);
}

#[test]
fn snapshot_to_a_member_with_another_disk_or_nobody_has_failed() {
    let (mut world, at_b) = world(SNAPSHOT_BYTES_PER_SECOND);
    world.a.1.stop();
    let (at_a, a_address) = bind();
    world.a_address = a_address;
    // It believes that member B is member C, which is none.
    world.a = start(A, at_a, (NodeId(0xc), world.b_address), None, 1 << 20);
    world.send();
    assert_eq!(world.end(), SnapshotReport::Failed, "nobody is there");
    drop(at_b);
    let transfer = world.transfer();
    let (at_a, _) = bind();
    world.a = start(A, at_a, (B, world.b_address), None, 1 << 20);
    world.a.0.send_snapshot(transfer);
    assert_eq!(world.end(), SnapshotReport::Failed, "nobody listens");
}

#[test]
fn snapshot_cut_short_goes_on_where_it_ended() {
    // A chunk in four milliseconds: it is cut somewhere in the middle.
    let (mut world, at_b) = world(4 << 20);
    let (taker, got) = world.taker();
    let parts = world.dir.path().join(format!("{B}"));
    let b = world.start_b(at_b, taker);
    world.send();
    assert!(matches!(next(&got), Got::Begin(0)));
    // Some chunks have come when the file is that long.
    let grown = || {
        let mut waiting = vec![parts.clone()];
        let mut len = 0;
        while let Some(dir) = waiting.pop() {
            for entry in std::path::Path::read_dir(&dir).unwrap().flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    waiting.push(entry.path());
                } else {
                    len += meta.len();
                }
            }
        }
        len > 3 * u64::from(CHUNK)
    };
    while !grown() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    b.stop();
    assert_eq!(world.end(), SnapshotReport::Failed);
    drop(got);

    let (taker, got) = world.taker();
    let at_b = TcpListener::bind(world.b_address).unwrap();
    let _b = world.start_b(at_b, taker);
    world.send();
    assert_eq!(world.end(), SnapshotReport::Taken(Index(90)));
    let Got::Begin(first) = next(&got) else {
        panic!("a receive begins");
    };
    assert!(
        first > 0 && first < CHUNKS as u64,
        "chunk {first} of {CHUNKS}"
    );
    let Got::Whole(_, _, content) = next(&got) else {
        panic!("it went on");
    };
    assert!(content == world.content);
}

#[test]
fn transfer_that_another_one_replaced_is_given_up() {
    let (mut world, at_b) = world(64 << 10);
    let (taker, got) = world.taker();
    let _b = world.start_b(at_b, taker);
    let former = world.transfer();
    world.a.0.send_snapshot(former);
    assert!(matches!(next(&got), Got::Begin(0)));
    let later = world.transfer();
    assert_eq!(later.to(), B);
    assert_eq!(world.end(), SnapshotReport::Failed);
}
