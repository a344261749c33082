//! Transports whose members come, move and go while they run.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed expectation of a test harness is a failed test, and a test has to end some time"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use multiraft::forward::ForwardMessage;
use multiraft::liveness::Beat;
use multiraft::transport::{
    ClusterView, Directory, Inbound, Links, ListedMember, Me, Members, PeerStatus, QueueLimits,
    REMOVED_ADVICE, SNAPSHOT_BYTES_PER_SECOND, StoreGate, Transport, TransportSetup, ask_members,
};
use raft_log::{GroupId, Index, NodeId, StoreId};
use raft_node::core::Message;

const PATIENCE: Duration = Duration::from_secs(20);
const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);

struct Deaf;

impl Inbound for Deaf {
    fn deliver(&self, _: GroupId, _: NodeId, _: Message) {}
    fn forward(&self, _: GroupId, _: NodeId, _: ForwardMessage) {}
    fn beat(&self, _: NodeId, _: Beat) {}
}

struct AnyDisk;

impl StoreGate for AnyDisk {
    fn admit(&self, _: NodeId, _: StoreId, _: Option<u64>) -> Result<(), String> {
        Ok(())
    }
}

struct List;

fn view() -> ClusterView {
    let member = ListedMember {
        id: A,
        name: "a".to_owned(),
        peer_urls: vec!["http://a:1".to_owned(), "http://a:2".to_owned()],
        votes: true,
        store: Some(StoreId(7)),
        log_incarnation: 3,
    };
    ClusterView {
        cluster: 0xc,
        creation: 0xd,
        index: Index(9),
        members: vec![member, ListedMember::default()],
    }
}

impl Directory for List {
    fn view(&self) -> ClusterView {
        view()
    }
}

struct Member {
    links: Links,
    transport: Transport,
    failed: Receiver<String>,
}

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn at(id: NodeId, address: SocketAddr) -> Members {
    Members {
        urls: BTreeMap::from([(id, vec![format!("http://{address}")])]),
        ..Members::default()
    }
}

fn start(me: NodeId, listener: TcpListener, members: &Members) -> Member {
    let links = Links::new(members, QueueLimits::default());
    let setup = TransportSetup {
        me: Me {
            cluster: 0xc,
            member: me,
            store: StoreId(me.0),
            boot: 1,
            log_incarnation: 0,
        },
        inbound: Arc::new(Deaf),
        gate: Arc::new(AnyDisk),
        directory: Some(Arc::new(List)),
        snapshots: None,
        snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
        seed: me.0,
        tls: None,
    };
    let (sender, failed) = channel();
    let on_failure = Box::new(move |error: &str| sender.send(error.to_owned()).unwrap());
    let transport =
        Transport::start(vec![listener.into()], links.clone(), setup, on_failure).unwrap();
    Member {
        links,
        transport,
        failed,
    }
}

impl Member {
    fn wait(&self, what: &str, wanted: impl Fn(&[PeerStatus]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.transport.status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "not {what} in time: {status:?}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn wait_for_link(&self) {
        self.wait("linked", |status| status.len() == 1 && status[0].linked);
    }
}

#[test]
fn member_that_comes_is_linked_and_one_that_moves_is_dialled_where_it_is() {
    let ((at_a, a_addr), (at_b, b_addr)) = (bind(), bind());
    let a = start(A, at_a, &Members::default());
    assert_eq!(a.transport.status(), []);
    let b = start(B, at_b, &at(A, a_addr));
    b.wait("refused", |status| {
        let refusal = status[0].refusal.as_ref();
        refusal.is_some_and(|reason| reason.contains("b is not another member"))
    });
    a.links.update(&at(B, b_addr));
    a.wait_for_link();
    b.wait_for_link();

    b.transport.stop();
    a.wait("down", |status| !status[0].linked);
    let (at_b, elsewhere) = bind();
    let b = start(B, at_b, &at(A, a_addr));
    // Its own link comes up; the other one waits at the old address until it is told.
    b.wait_for_link();
    a.links.update(&at(B, elsewhere));
    a.wait_for_link();
    let since = |status: &[PeerStatus]| status[0].linked_for > Some(Duration::from_millis(5));
    a.wait("linked for a while", since);
    a.links.update(&at(B, elsewhere));
    assert_eq!(a.transport.status()[0].links, 2, "nothing has changed");
}

#[test]
fn member_that_was_removed_hears_of_it_whenever_it_comes() {
    let ((at_a, a_addr), (at_b, b_addr)) = (bind(), bind());
    let a = start(A, at_a, &at(B, b_addr));
    let b = start(B, at_b, &at(A, a_addr));
    a.wait_for_link();
    b.wait_for_link();
    a.links.update(&Members {
        removed: BTreeSet::from([B]),
        ..Members::default()
    });
    let removed = REMOVED_ADVICE;
    assert_eq!(b.failed.recv_timeout(PATIENCE).unwrap(), removed);
    assert_eq!(a.transport.status(), []);

    let (at_b, _) = bind();
    let b = start(B, at_b, &at(A, a_addr));
    assert_eq!(b.failed.recv_timeout(PATIENCE).unwrap(), removed);
    assert!(a.failed.try_recv().is_err(), "who stays goes on");
}

#[test]
fn member_that_is_gone_without_a_word_may_come_back() {
    let ((at_a, a_addr), (at_b, b_addr)) = (bind(), bind());
    let a = start(A, at_a, &at(B, b_addr));
    let b = start(B, at_b, &at(A, a_addr));
    b.wait_for_link();
    a.links.update(&Members::default());
    b.wait("down", |status| !status[0].linked);
    a.links.update(&at(B, b_addr));
    a.wait_for_link();
    b.wait_for_link();
    assert!(b.failed.try_recv().is_err());
}

#[test]
fn who_asks_is_told_which_members_there_are() {
    let (at_a, a_addr) = bind();
    let a = start(A, at_a, &Members::default());
    let url = format!("http://{a_addr}");
    assert_eq!(ask_members(&url, None, PATIENCE), Ok(view()));
    a.transport.stop();
    assert!(ask_members(&url, None, PATIENCE).is_err());
}
