//! Transports on loopback: what is sent arrives, who is not who it should be is refused, and a link comes back.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed expectation of a test harness is a failed test, and a test has to end some time"
)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use multiraft::Outbox;
use multiraft::forward::ForwardMessage;
use multiraft::liveness::Beat;
use multiraft::transport::{
    Inbound, Links, Me, Members, PeerStatus, QueueLimits, SNAPSHOT_BYTES_PER_SECOND, StoreGate,
    Transport, TransportSetup,
};
use raft_log::{Entry, EntryKind, GroupId, Index, NodeId, StoreId, Term};
use raft_node::core::{Body, Message};

const PATIENCE: Duration = Duration::from_secs(20);
const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);
const GROUP: GroupId = GroupId(1);

#[derive(Debug, PartialEq)]
enum Got {
    Raft(GroupId, NodeId, Message),
    Forward(GroupId, NodeId, ForwardMessage),
    Beat(NodeId, Beat),
}

struct Host(Mutex<Sender<Got>>);

impl Inbound for Host {
    fn deliver(&self, group: GroupId, from: NodeId, message: Message) {
        // A test that is over does not listen.
        let _ = (self.0.lock().unwrap()).send(Got::Raft(group, from, message));
    }

    fn forward(&self, group: GroupId, from: NodeId, message: ForwardMessage) {
        let _ = (self.0.lock().unwrap()).send(Got::Forward(group, from, message));
    }

    fn beat(&self, from: NodeId, beat: Beat) {
        let _ = (self.0.lock().unwrap()).send(Got::Beat(from, beat));
    }
}

/// Takes each member's first disk.
#[derive(Default)]
struct Disks(Mutex<BTreeMap<NodeId, StoreId>>);

impl StoreGate for Disks {
    fn admit(&self, member: NodeId, store: StoreId, _: Option<u64>) -> Result<(), String> {
        let known = *self.0.lock().unwrap().entry(member).or_insert(store);
        let same = known == store;
        same.then_some(())
            .ok_or_else(|| format!("member {:x} has lost its disk", member.0))
    }
}

fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// One member's transport, and what its host gets.
struct Member {
    outbox: Box<dyn Outbox>,
    transport: Transport,
    got: Receiver<Got>,
}

fn start(me: Me, listener: TcpListener, other: (NodeId, SocketAddr), disks: &Arc<Disks>) -> Member {
    let members = Members {
        urls: BTreeMap::from([(other.0, vec![format!("http://{}", other.1)])]),
        ..Members::default()
    };
    let links = Links::new(&members, QueueLimits::default());
    let (sender, got) = channel();
    let setup = TransportSetup {
        me,
        inbound: Arc::new(Host(Mutex::new(sender))),
        gate: Arc::<Disks>::clone(disks),
        directory: None,
        snapshots: None,
        snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
        seed: me.member.0,
        tls: None,
    };
    let outbox = links.outbox();
    let failed = Box::new(|error: &str| panic!("{error}"));
    let transport = Transport::start(vec![listener.into()], links, setup, failed).unwrap();
    Member {
        outbox,
        transport,
        got,
    }
}

impl Member {
    /// Waits until the link's status is as wanted.
    fn wait(&self, what: &str, wanted: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.transport.status().remove(0);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not {what} in time: {status:?}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn next(&self) -> Got {
        self.got.recv_timeout(PATIENCE).unwrap()
    }
}

fn me(member: NodeId, store: u64) -> Me {
    Me {
        cluster: 0xc,
        member,
        store: StoreId(store),
        boot: 1,
        log_incarnation: 0,
    }
}

fn pair(a: Me, b: Me) -> (Member, Member) {
    let (at_a, at_b) = (bind(), bind());
    let (a_addr, b_addr) = (at_a.local_addr().unwrap(), at_b.local_addr().unwrap());
    let other = start(b, at_b, (A, a_addr), &Arc::default());
    (start(a, at_a, (B, b_addr), &Arc::default()), other)
}

fn append(index: u64, bytes: usize) -> Message {
    let entry = Entry {
        index: Index(index),
        term: Term(3),
        kind: EntryKind::Normal,
        payload: Bytes::from(vec![7; bytes]),
    };
    let body = Body::Append {
        prev_index: Index(index - 1),
        prev_term: Term(3),
        entries: vec![entry],
        commit: Index(0),
    };
    let term = Term(3);
    Message {
        term,
        incarnation: 0,
        body,
    }
}

fn propose(sequence: u64) -> ForwardMessage {
    ForwardMessage::Propose {
        boot: 1,
        sequence,
        attempt: 1,
        payload: Bytes::from("put"),
    }
}

#[test]
fn messages_of_many_groups_arrive_in_order_in_both_directions() {
    let (mut a, mut b) = pair(me(A, 1), me(B, 2));
    a.wait("linked", |status| status.linked);
    b.wait("linked", |status| status.linked);
    for number in 1..=500 {
        let group = GroupId(number % 7);
        a.outbox.send(group, B, append(number, 100));
        b.outbox.send(group, A, append(number, 3_000));
    }
    a.outbox.forward(GROUP, B, propose(4));
    for number in 1..=500 {
        let group = GroupId(number % 7);
        assert_eq!(b.next(), Got::Raft(group, A, append(number, 100)));
        assert_eq!(a.next(), Got::Raft(group, B, append(number, 3_000)));
    }
    assert_eq!(b.next(), Got::Forward(GROUP, A, propose(4)));
    let sent = a.wait("linked", |status| status.linked);
    assert_eq!(b.wait("linked", |status| status.linked).messages_dropped, 0);
    assert!(sent.bytes_sent > 50_000, "{sent:?}");
    a.transport.stop();
    b.wait("down", |status| !status.linked);
    b.transport.stop();
}

#[test]
fn beat_arrives_and_one_without_a_link_is_lost() {
    let (mut a, b) = pair(me(A, 1), me(B, 2));
    a.wait("linked", |status| status.linked);
    let beat = |number| Beat {
        store: StoreId(1),
        epoch: 1,
        number,
        heard: 7,
        full: true,
    };
    a.outbox.beat(NodeId(0xd), beat(1));
    a.outbox.beat(B, beat(2));
    assert_eq!(b.next(), Got::Beat(A, beat(2)));
    b.transport.stop();
    a.wait("down", |status| !status.linked);
    a.outbox.beat(B, beat(3));
    assert_eq!(a.wait("down", |status| !status.linked).messages_waiting, 0);
}

#[test]
fn entry_of_the_greatest_size_arrives() {
    let (mut a, b) = pair(me(A, 1), me(B, 2));
    a.wait("linked", |status| status.linked);
    a.outbox.send(GROUP, B, append(1, 64 << 20));
    assert!(b.next() == Got::Raft(GROUP, A, append(1, 64 << 20)));
}

#[test]
fn member_of_another_cluster_is_refused_and_told_why() {
    let other = Me {
        cluster: 0xd,
        ..me(B, 2)
    };
    let (mut a, b) = pair(me(A, 1), other);
    for member in [&a, &b] {
        let refused = member.wait("refused", |status| status.refusal.is_some());
        let reason = refused.refusal.unwrap();
        assert!(reason.contains("cluster ID mismatch"), "{reason}");
    }
    a.outbox.send(GROUP, B, append(1, 1));
    assert!(
        a.wait("dropped", |status| status.messages_dropped == 1)
            .links
            == 0
    );
}

#[test]
fn member_that_answers_for_another_is_refused() {
    let (a, _b) = pair(me(A, 1), me(NodeId(0xe), 2));
    let refused = a.wait("refused", |status| status.refusal.is_some());
    let reason = refused.refusal.unwrap();
    assert!(reason.contains("peer URLs are mixed up"), "{reason}");
}

#[test]
fn member_that_comes_back_is_linked_again_but_not_with_another_disk() {
    let (at_a, at_b) = (bind(), bind());
    let (a_addr, b_addr) = (at_a.local_addr().unwrap(), at_b.local_addr().unwrap());
    let disks = Arc::default();
    let mut a = start(me(A, 1), at_a, (B, b_addr), &disks);
    let b = start(me(B, 2), at_b, (A, a_addr), &Arc::default());
    a.wait("linked", |status| status.linked);
    b.wait("linked", |status| status.linked);
    b.transport.stop();
    a.wait("down", |status| !status.linked);

    // What cannot leave is known not to have been proposed.
    a.outbox.forward(GROUP, B, propose(9));
    let refused = ForwardMessage::NotProposed {
        boot: 1,
        sequence: 9,
        attempt: 1,
    };
    assert_eq!(a.next(), Got::Forward(GROUP, B, refused));

    let again = Me {
        boot: 2,
        ..me(B, 2)
    };
    let at_b = TcpListener::bind(b_addr).unwrap();
    let b = start(again, at_b, (A, a_addr), &Arc::default());
    a.wait("linked again", |status| status.linked && status.links == 2);
    a.outbox.send(GROUP, B, append(5, 5));
    assert_eq!(b.next(), Got::Raft(GROUP, A, append(5, 5)));
    b.transport.stop();

    let at_b = TcpListener::bind(b_addr).unwrap();
    let wiped = start(me(B, 77), at_b, (A, a_addr), &Arc::default());
    for member in [&a, &wiped] {
        let reason = |status: &PeerStatus| status.refusal.clone().unwrap_or_default();
        member.wait("refused for its disk", |status| {
            reason(status).contains("member b has lost its disk")
        });
    }
}
