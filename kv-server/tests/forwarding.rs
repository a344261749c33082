//! Three members with real state machines: whichever a client asks, the leader does it, and once.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use kv_server::api::Replica;
use kv_server::engine::memory::MemoryEngine;
use kv_server::lease::{LeaseCalls, Lessor, decode_answer, encode_call};
use kv_server::mvcc::{
    self, CommandOutput, CommandResult, EventSink, KvOptions, KvStateMachine, RevisionEvents,
    Sinks, Store,
};
use kv_server::pb::command::{Command, LeaseGrant, command::Op};
use kv_server::pb::etcdserverpb::PutRequest;
use kv_server::pb::peer::lease_call;
use multiraft::forward::{ForwardLimits, ForwardMessage, Forwarding, Outcomes};
use multiraft::{GroupStatus, HostCore, HostError, HostHandle, HostOptions, Outbox, Reply};
use prost::Message as _;
use raft_log::vfs::SimFs;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, StoreId};
use raft_node::core::{Config, Membership, Message};
use raft_node::driver::{Group, GroupConfig, bootstrap};

const GROUP: GroupId = GroupId(1);
const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const SECOND: u64 = 100;

struct NoWatchers;

impl EventSink for NoWatchers {
    fn publish(&self, _: &[Arc<RevisionEvents>]) {}
    fn compacted(&self, _: i64) {}
}

/// The group as a member's front end sees it.
#[derive(Clone)]
struct Member(Arc<OnceLock<HostHandle<KvStateMachine>>>);

impl Member {
    fn handle(&self) -> &HostHandle<KvStateMachine> {
        self.0.get().expect("set when the host was made")
    }
}

impl Replica for Member {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        self.handle().propose(GROUP, payload, reply);
    }

    fn read_barrier(&self, done: Reply<()>) {
        self.handle().read_barrier(GROUP, done);
    }

    fn read_now(&self) -> bool {
        self.handle().read_now(GROUP)
    }

    fn call_leader(&self, payload: Bytes, reply: Reply<Bytes>) {
        self.handle().call_leader(GROUP, payload, reply);
    }

    fn status(&self) -> GroupStatus {
        self.handle().status(GROUP).unwrap()
    }
}

enum Packet {
    Raft(Message),
    Forward(ForwardMessage),
}

type Wire = Arc<Mutex<Vec<(NodeId, NodeId, Packet)>>>;

struct Sender(NodeId, Wire);

impl Outbox for Sender {
    fn send(&mut self, _: GroupId, to: NodeId, message: Message) {
        let packet = (self.0, to, Packet::Raft(message));
        self.1.lock().unwrap().push(packet);
    }

    fn forward(&mut self, _: GroupId, to: NodeId, message: ForwardMessage) {
        let packet = (self.0, to, Packet::Forward(message));
        self.1.lock().unwrap().push(packet);
    }
}

struct Node {
    log: Log,
    core: HostCore<KvStateMachine>,
    member: Member,
    lessor: Arc<Lessor>,
    store: Arc<Store>,
}

fn node(id: NodeId, wire: &Wire) -> Node {
    let mut options = LogOptions::new("/log", StoreId(id.0));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(SimFs::new(id.0).shared(), options).unwrap();
    bootstrap(&log, GROUP, 1, &Membership::of_voters(MEMBERS)).unwrap();
    let core = Config {
        id,
        group: GROUP,
        seed: id.0,
        ..Config::default()
    };
    let config = GroupConfig {
        core: core.validate().unwrap(),
        catch_up_entries: 100,
    };
    let lessor = Arc::new(Lessor::new());
    let sinks = Sinks {
        events: Arc::new(NoWatchers),
        leases: lessor.clone(),
    };
    let engine = Arc::new(MemoryEngine::new());
    let (mut machine, store) = KvStateMachine::open(engine, KvOptions::default(), sinks).unwrap();
    let outcomes = Arc::new(Outcomes::new(id, 1));
    machine.report_forwarded(Arc::clone(&outcomes));
    let group = Group::open(GROUP, config, log.clone(), machine).unwrap();
    let sender = Box::new(Sender(id, Arc::clone(wire)));
    let options = HostOptions::default();
    let (mut core, handle) =
        HostCore::new(log.clone(), vec![group], options, sender, Box::new(|| {}));
    let member = Member(Arc::default());
    assert!(member.0.set(handle).is_ok());
    core.forward(Forwarding {
        outcomes,
        stamp: mvcc::stamp,
        calls: Arc::new(LeaseCalls::new(GROUP, member.clone(), lessor.clone())),
        limits: ForwardLimits::new(100),
    });
    Node {
        log,
        core,
        member,
        lessor,
        store,
    }
}

struct World {
    nodes: Vec<Node>,
    wire: Wire,
    now: u64,
}

impl World {
    /// Three members, one of which leads, and whose place in the list comes with it.
    fn new() -> (Self, usize) {
        let wire = Wire::default();
        let mut world = Self {
            nodes: MEMBERS.iter().map(|id| node(*id, &wire)).collect(),
            wire,
            now: 0,
        };
        world.run(10 * SECOND, 1);
        let leader = world.nodes[0].member.status().leader.unwrap();
        let at = MEMBERS.iter().position(|id| *id == leader).unwrap();
        (world, at)
    }

    /// Lets time pass, with so many copies of each forwarded command on the wire.
    fn run(&mut self, ticks: u64, copies: usize) {
        for _ in 0..ticks {
            self.now += 1;
            for _ in 0..4 {
                self.step(copies);
            }
        }
    }

    fn step(&mut self, copies: usize) {
        for node in &mut self.nodes {
            loop {
                let turn = node.core.turn(self.now).unwrap();
                if !(node.log.drive().unwrap() || turn.busy) {
                    break;
                }
            }
        }
        let packets = std::mem::take(&mut *self.wire.lock().unwrap());
        for (from, to, packet) in packets {
            let at = MEMBERS.iter().position(|id| *id == to).unwrap();
            let handle = self.nodes[at].member.handle();
            match packet {
                Packet::Raft(message) => handle.deliver(GROUP, from, message),
                Packet::Forward(message) => {
                    for _ in 0..copies {
                        handle.deliver_forward(GROUP, from, message.clone());
                    }
                }
            }
        }
    }

    fn propose(&mut self, at: usize, op: Op, copies: usize) -> CommandOutput {
        let heard = Arc::new(Mutex::new(None));
        let into = Arc::clone(&heard);
        let payload = Command { op: Some(op) }.encode_to_vec().into();
        let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
        self.nodes[at].member.propose(payload, reply);
        self.run(20, copies);
        let heard = heard.lock().unwrap().take();
        heard.expect("it is answered in time").unwrap()
    }

    fn call(&mut self, at: usize, op: lease_call::Op) -> Result<i64, HostError> {
        let heard = Arc::new(Mutex::new(None));
        let into = Arc::clone(&heard);
        let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
        self.nodes[at].member.call_leader(encode_call(op), reply);
        self.run(60, 1);
        let heard = heard.lock().unwrap().take();
        let answer = heard.expect("it is answered in time")?;
        Ok(decode_answer(answer).expect("the leader encodes it"))
    }
}

fn put(key: &'static str, lease: i64) -> Op {
    Op::Put(PutRequest {
        key: key.into(),
        value: "v".into(),
        lease,
        ..PutRequest::default()
    })
}

#[test]
fn put_at_any_member_is_answered_there_and_applied_once_everywhere() {
    let (mut world, leader) = World::new();
    for at in 0..3 {
        let output = world.propose(at, put("a", 0), 3);
        let Ok(CommandResult::Put(answer)) = output else {
            panic!("{output:?}");
        };
        assert_eq!(answer.header.unwrap().revision, 2 + at as i64);
    }
    let hash = world.nodes[leader].store.state_hash().unwrap();
    for node in &world.nodes {
        assert_eq!(node.store.revision(), 4);
        assert_eq!(node.store.state_hash().unwrap(), hash);
    }
}

#[test]
fn error_of_the_state_machine_reaches_the_client_of_a_follower() {
    let (mut world, leader) = World::new();
    let output = world.propose((leader + 1) % 3, put("a", 9), 1);
    assert_eq!(output, Err(kv_server::ApiError::LeaseNotFound));
}

#[test]
fn lease_calls_at_any_member_are_answered_by_the_lessor_that_counts() {
    let (mut world, leader) = World::new();
    let follower = (leader + 1) % 3;
    let (id, ttl) = (7, 60);
    let grant = Op::LeaseGrant(LeaseGrant { id, ttl });
    world.propose(follower, grant, 1).unwrap();
    world.run(2 * SECOND, 1);
    for at in 0..3 {
        let left = world.call(at, lease_call::Op::TimeToLive(id)).unwrap();
        assert!((50..60).contains(&left), "{left}");
        assert_eq!(world.call(at, lease_call::Op::TimeToLive(8)), Ok(-1));
        assert_eq!(world.call(at, lease_call::Op::KeepAlive(8)), Ok(0));
    }
    // Half of its time is over, and a checkpoint says so: the renewal commits that it is not.
    world.run(33 * SECOND, 1);
    assert!(
        world.nodes[follower]
            .store
            .lease(id)
            .unwrap()
            .remaining_ttl
            .is_some()
    );
    assert_eq!(world.call(follower, lease_call::Op::KeepAlive(id)), Ok(ttl));
    assert_eq!(
        world.nodes[follower].store.lease(id).unwrap().remaining_ttl,
        None
    );
    let (_, left) = world.nodes[leader].lessor.time_to_live(id).unwrap();
    assert!(left >= 58, "{left}");
    assert_eq!(world.nodes[follower].lessor.time_to_live(id), None);
}

#[test]
fn call_that_finds_no_leader_in_time_says_so() {
    let (mut world, leader) = World::new();
    let heard = Arc::new(Mutex::new(None));
    let into = Arc::clone(&heard);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    let call = encode_call(lease_call::Op::KeepAlive(1));
    let member = world.nodes[(leader + 1) % 3].member.clone();
    member.call_leader(call, reply);
    world.run(8 * SECOND, 0);
    assert_eq!(heard.lock().unwrap().take(), Some(Err(HostError::Timeout)));
}
