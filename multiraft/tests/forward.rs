//! Three hosts that forward to each other over a network of our own: what a client is told is what happened.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::forward::{
    CallReply, Calls, ForwardLimits, ForwardMessage, Forwarding, OPEN_SEQUENCES_MAX, Origin,
    Outcomes, Question,
};
use multiraft::{HostCore, HostError, HostHandle, HostOptions, InboxLimits, Outbox};
use raft_log::vfs::SimFs;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, StoreId};
use raft_node::core::{Config, Membership, Message};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Applied, ApplyError, Entry, Index, StateMachine, TickContext};

const GROUP: GroupId = GroupId(1);
const BOOT: u64 = 4;
const ELECTION_TICKS: u64 = 100;

fn stamp(origin: &Origin, payload: &[u8]) -> Bytes {
    let Origin {
        member,
        boot,
        sequence,
        lowest_open,
    } = origin;
    let text = String::from_utf8_lossy(payload);
    format!("{} {boot} {sequence} {lowest_open}|{text}", member.0).into()
}

fn unstamp(payload: &Bytes) -> (Option<Origin>, String) {
    let text = String::from_utf8(payload.to_vec()).unwrap();
    let Some((origin, command)) = text.split_once('|') else {
        return (None, text);
    };
    let numbers: Vec<u64> = origin
        .split(' ')
        .map(|word| word.parse().unwrap())
        .collect();
    let origin = Origin {
        member: NodeId(numbers[0]),
        boot: numbers[1],
        sequence: numbers[2],
        lowest_open: numbers[3],
    };
    (Some(origin), command.to_owned())
}

/// A list of what was applied, each forwarded command once.
struct List {
    applied: Applied,
    list: Vec<String>,
    seen: BTreeSet<(NodeId, u64, u64)>,
    closed: BTreeMap<NodeId, u64>,
    outcomes: Arc<Outcomes<usize>>,
}

impl StateMachine for List {
    /// The length of the list after the entry.
    type Output = usize;

    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable_index(&self) -> Index {
        Index::ZERO
    }

    fn request_persist(&mut self) {}

    fn apply(
        &mut self,
        entries: &[Entry],
        _: Option<&Membership>,
        outputs: &mut Vec<usize>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            self.applied.index = entry.index;
            self.applied.term = entry.term;
            let (origin, command) = unstamp(&entry.payload);
            let mut is_new = !command.is_empty();
            if let Some(origin) = origin {
                let closed = self.closed.entry(origin.member).or_default();
                *closed = (*closed).max(origin.lowest_open);
                let name = (origin.member, origin.boot, origin.sequence);
                is_new = origin.sequence >= *closed && self.seen.insert(name);
            }
            if is_new {
                self.list.push(command);
            }
            outputs.push(self.list.len());
            if let Some(origin) = origin.filter(|_| is_new) {
                self.outcomes.applied(GROUP, &origin, &self.list.len());
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

#[derive(Clone, Debug)]
enum Packet {
    Raft(Message),
    Forward(ForwardMessage),
}

type Wire = Arc<Mutex<Vec<(NodeId, NodeId, Packet)>>>;

struct Sender {
    me: NodeId,
    wire: Wire,
}

impl Outbox for Sender {
    fn send(&mut self, _: GroupId, to: NodeId, message: Message) {
        let packet = (self.me, to, Packet::Raft(message));
        self.wire.lock().unwrap().push(packet);
    }

    fn forward(&mut self, _: GroupId, to: NodeId, message: ForwardMessage) {
        let packet = (self.me, to, Packet::Forward(message));
        self.wire.lock().unwrap().push(packet);
    }
}

/// Answers a call with who answers it, when it leads.
struct WhoLeads {
    me: NodeId,
    handle: Mutex<Option<HostHandle<List>>>,
}

impl Calls for WhoLeads {
    fn call(&self, group: GroupId, payload: Bytes, reply: CallReply) {
        let status = self.handle.lock().unwrap().as_ref().unwrap().status(group);
        let leads = status.unwrap().leader == Some(self.me);
        let text = String::from_utf8(payload.to_vec()).unwrap();
        reply(leads.then(|| format!("{text} by {}", self.me).into()));
    }
}

struct Node {
    id: NodeId,
    log: Log,
    core: HostCore<List>,
    handle: HostHandle<List>,
}

type Heard = Arc<Mutex<Vec<(String, Result<usize, HostError>)>>>;

struct World {
    nodes: Vec<Node>,
    wire: Wire,
    now: u64,
    heard: Heard,
}

impl World {
    fn new(members: u64) -> Self {
        Self::with(members, InboxLimits::default())
    }

    fn with(members: u64, inbox: InboxLimits) -> Self {
        let wire = Wire::default();
        let ids: Vec<_> = (1..=members).map(NodeId).collect();
        let nodes = ids.iter().map(|id| node(*id, &ids, inbox, &wire)).collect();
        Self {
            nodes,
            wire,
            now: 0,
            heard: Heard::default(),
        }
    }

    fn at(&mut self, id: NodeId) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).unwrap()
    }

    /// One tick; `pass` decides how many copies of a packet arrive.
    fn tick(&mut self, mut pass: impl FnMut(NodeId, NodeId, &Packet) -> usize) {
        self.now += 1;
        for _ in 0..4 {
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
                for _ in 0..pass(from, to, &packet) {
                    let handle = &self.at(to).handle;
                    match packet.clone() {
                        Packet::Raft(message) => handle.deliver(GROUP, from, message),
                        Packet::Forward(message) => handle.deliver_forward(GROUP, from, message),
                    }
                }
            }
        }
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.tick(|_, _, _| 1);
        }
    }

    /// The member that all who are not `except` take for the leader.
    fn leader(&mut self) -> NodeId {
        for _ in 0..50 * ELECTION_TICKS {
            self.run(1);
            let leaders: BTreeSet<_> = self
                .nodes
                .iter()
                .map(|node| node.handle.status(GROUP).unwrap().leader)
                .collect();
            if let (1, Some(Some(leader))) = (leaders.len(), leaders.first()) {
                let leader = *leader;
                self.run(20);
                return leader;
            }
        }
        panic!("no leader");
    }

    fn other(&self, than: NodeId) -> NodeId {
        self.nodes
            .iter()
            .map(|node| node.id)
            .find(|id| *id != than)
            .unwrap()
    }

    fn propose(&mut self, at: NodeId, command: &str) {
        let (heard, name) = (Arc::clone(&self.heard), command.to_owned());
        let reply = Box::new(move |result| heard.lock().unwrap().push((name, result)));
        let payload = Bytes::copy_from_slice(command.as_bytes());
        self.at(at).handle.propose(GROUP, payload, reply);
    }

    fn heard(&self) -> Vec<(String, Result<usize, HostError>)> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn list(&self, id: NodeId) -> Vec<String> {
        let node = self.nodes.iter().find(|node| node.id == id).unwrap();
        node.core.machine(GROUP).unwrap().list.clone()
    }
}

fn node(id: NodeId, members: &[NodeId], inbox: InboxLimits, wire: &Wire) -> Node {
    let mut options = LogOptions::new("/log", StoreId(id.0));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(SimFs::new(id.0).shared(), options).unwrap();
    let membership = Membership::of_voters(members.iter().copied());
    bootstrap(&log, GROUP, 1, &membership).unwrap();
    let core = Config {
        id,
        group: GROUP,
        seed: id.0,
        election_ticks: ELECTION_TICKS,
        ..Config::default()
    };
    let config = GroupConfig {
        core: core.validate().unwrap(),
        catch_up_entries: 100,
    };
    let outcomes = Arc::new(Outcomes::new(id, BOOT));
    let machine = List {
        applied: Applied::default(),
        list: Vec::new(),
        seen: BTreeSet::new(),
        closed: BTreeMap::new(),
        outcomes: Arc::clone(&outcomes),
    };
    let group = Group::open(GROUP, config, log.clone(), machine).unwrap();
    let sender = Box::new(Sender {
        me: id,
        wire: Arc::clone(wire),
    });
    let options = HostOptions {
        inbox,
        ..HostOptions::default()
    };
    let (mut core, handle) =
        HostCore::new(log.clone(), vec![group], options, sender, Box::new(|| {}));
    let calls = Arc::new(WhoLeads {
        me: id,
        handle: Mutex::new(Some(handle.clone())),
    });
    core.forward(Forwarding {
        outcomes,
        stamp,
        calls,
        limits: ForwardLimits::new(ELECTION_TICKS),
    });
    Node {
        id,
        log,
        core,
        handle,
    }
}

fn is_propose(packet: &Packet) -> bool {
    matches!(packet, Packet::Forward(ForwardMessage::Propose { .. }))
}

#[test]
fn command_at_a_follower_is_answered_when_the_follower_has_applied_it() {
    let mut world = World::new(3);
    let leader = world.leader();
    let follower = world.other(leader);
    world.propose(follower, "a");
    world.propose(leader, "b");
    world.run(20);
    let mut heard = world.heard();
    heard.sort_by_key(|(name, _)| name.clone());
    assert_eq!(heard, [("a".to_owned(), Ok(2)), ("b".to_owned(), Ok(1))]);
    assert_eq!(world.list(follower), ["b", "a"]);
}

#[test]
fn leader_that_is_told_to_hand_over_does_and_commands_go_on() {
    let mut world = World::new(3);
    let leader = world.leader();
    let next = world.other(leader);
    world.at(next).handle.transfer(GROUP, leader);
    world.run(1);
    assert_eq!(
        world.leader(),
        leader,
        "who does not lead hands nothing over"
    );
    world.at(leader).handle.transfer(GROUP, next);
    world.propose(leader, "a");
    world.run(1);
    assert_eq!(world.leader(), next);
    world.propose(leader, "b");
    world.run(20);
    let heard = world.heard();
    assert!(heard.contains(&("b".to_owned(), Ok(world.list(next).len()))));
}

#[test]
fn command_whose_message_is_doubled_is_applied_once() {
    let mut world = World::new(3);
    let leader = world.leader();
    let follower = world.other(leader);
    world.propose(follower, "a");
    for _ in 0..20 {
        world.tick(|_, _, packet| 1 + usize::from(is_propose(packet)));
    }
    assert_eq!(world.heard(), [("a".to_owned(), Ok(1))]);
    assert_eq!(world.list(leader), ["a"]);
}

#[test]
fn command_whose_message_is_lost_is_not_sent_again_and_ends_unknown() {
    let mut world = World::new(3);
    let leader = world.leader();
    let follower = world.other(leader);
    let begin = world.now;
    world.propose(follower, "a");
    let timeout = ForwardLimits::new(ELECTION_TICKS).timeout_ticks;
    assert_eq!(timeout, 500 + 2 * ELECTION_TICKS);
    let mut sent = 0;
    while world.heard.lock().unwrap().is_empty() {
        world.tick(|_, _, packet| {
            sent += usize::from(is_propose(packet));
            usize::from(!is_propose(packet))
        });
        assert!(world.now <= begin + timeout + 2);
    }
    assert_eq!(
        world.heard(),
        [("a".to_owned(), Err(HostError::OutcomeUnknown))]
    );
    assert!(world.now > begin + timeout);
    assert_eq!(sent, 1);
}

#[test]
fn command_that_finds_no_leader_waits_for_one() {
    let mut world = World::new(3);
    world.propose(NodeId(1), "a");
    world.leader();
    world.run(30);
    assert_eq!(world.heard(), [("a".to_owned(), Ok(1))]);
}

#[test]
fn command_that_never_finds_a_leader_was_not_proposed() {
    let mut world = World::new(3);
    world.propose(NodeId(1), "a");
    for _ in 0..=ForwardLimits::new(ELECTION_TICKS).timeout_ticks + 1 {
        world.tick(|_, _, _| 0);
    }
    assert_eq!(world.heard(), [("a".to_owned(), Err(HostError::Timeout))]);
}

#[test]
fn command_refused_by_a_full_inbox_is_tried_again() {
    let mut world = World::with(
        3,
        InboxLimits {
            bytes_max: 1,
            ..InboxLimits::default()
        },
    );
    let leader = world.leader();
    // Both arrive at once, and there is room for one.
    for id in [1, 2, 3].map(NodeId).into_iter().filter(|id| *id != leader) {
        world.propose(id, &format!("from {id}"));
    }
    let mut refused = 0;
    for _ in 0..40 {
        world.tick(|_, _, packet| {
            let is_refusal = matches!(packet, Packet::Forward(ForwardMessage::NotProposed { .. }));
            refused += usize::from(is_refusal);
            1
        });
    }
    assert_eq!(refused, 1);
    let results: Vec<_> = world
        .heard()
        .into_iter()
        .map(|(_, result)| result)
        .collect();
    assert_eq!(results, [Ok(1), Ok(2)]);
}

#[test]
fn read_at_a_follower_sees_what_was_acknowledged_before() {
    let mut world = World::new(3);
    let leader = world.leader();
    let follower = world.other(leader);
    world.propose(leader, "a");
    // The follower hears nothing of it at first.
    for _ in 0..5 {
        world.tick(|_, to, _| usize::from(to != follower));
    }
    assert_eq!(world.heard(), [("a".to_owned(), Ok(1))]);
    let seen = Arc::new(Mutex::new(None));
    let into = Arc::clone(&seen);
    let done = Box::new(move |result| *into.lock().unwrap() = Some(result));
    world.at(follower).handle.read_barrier(GROUP, done);
    for _ in 0..5 {
        world.tick(|_, to, packet| {
            usize::from(to != follower || !matches!(packet, Packet::Raft(_)))
        });
    }
    assert_eq!(*seen.lock().unwrap(), None, "it has not applied it yet");
    world.run(60);
    assert_eq!(*seen.lock().unwrap(), Some(Ok(())));
    assert_eq!(world.list(follower), ["a"]);
}

#[test]
fn call_at_any_member_is_answered_by_the_leader() {
    let mut world = World::new(3);
    let leader = world.leader();
    let heard = Arc::new(Mutex::new(Vec::new()));
    for id in [1, 2, 3].map(NodeId) {
        let into = Arc::clone(&heard);
        let reply =
            Box::new(move |result: Result<Bytes, HostError>| into.lock().unwrap().push(result));
        let handle = world.at(id).handle.clone();
        handle.call_leader(GROUP, format!("call {id}").into(), reply);
    }
    world.run(10);
    let mut heard: Vec<_> = heard.lock().unwrap().drain(..).collect();
    heard.sort_by_key(|answer| answer.clone().unwrap());
    let expected = [1, 2, 3].map(NodeId);
    let expected = expected.map(|id| Ok(Bytes::from(format!("call {id} by {leader}"))));
    assert_eq!(heard, expected);
}

#[test]
fn question_that_is_lost_is_asked_again() {
    let mut world = World::new(3);
    let leader = world.leader();
    let follower = world.other(leader);
    let seen: Arc<Mutex<Option<Result<Bytes, HostError>>>> = Arc::default();
    let into = Arc::clone(&seen);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    let handle = world.at(follower).handle.clone();
    handle.call_leader(GROUP, Bytes::from("call"), reply);
    let mut asked = 0;
    for _ in 0..100 {
        world.tick(|_, _, packet| {
            let is_question = matches!(
                packet,
                Packet::Forward(ForwardMessage::Ask {
                    question: Question::Call(_),
                    ..
                })
            );
            asked += usize::from(is_question);
            usize::from(!is_question || asked > 1)
        });
    }
    assert_eq!(asked, 2, "once in vain, once more");
    let answer = seen.lock().unwrap().take();
    assert_eq!(answer, Some(Ok(Bytes::from(format!("call by {leader}")))));
}

/// Small and reproducible.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}

/// Under loss, doubling, and members that are cut off for a while: what was answered was applied once, what is unknown at
/// most once, what was refused never.
#[test]
fn random_faults_never_make_an_answer_wrong() {
    for seed in 1..=20 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let mut world = World::new(3);
        let mut cut = None;
        let mut count = 0;
        for tick in 0..3_000 {
            if tick % 150 == 0 {
                cut = (rng.below(2) == 0).then(|| NodeId(1 + rng.below(3)));
            }
            if rng.below(4) == 0 {
                count += 1;
                let at = NodeId(1 + rng.below(3));
                world.propose(at, &format!("c{count}"));
            }
            world.tick(|from, to, _| {
                if cut == Some(from) || cut == Some(to) {
                    return 0;
                }
                [0, 1, 1, 1, 1, 1, 1, 2][usize::try_from(rng.below(8)).unwrap()]
            });
        }
        world.run(1_000);
        let list = world.list(NodeId(1));
        for id in [2, 3].map(NodeId) {
            assert_eq!(world.list(id), list, "seed {seed}");
        }
        let times = |name: &String| list.iter().filter(|command| *command == name).count();
        let heard = world.heard();
        assert_eq!(heard.len(), count, "seed {seed}: everybody is answered");
        let mut answered = 0;
        for (name, result) in heard {
            match result {
                Ok(length) => {
                    assert_eq!(list[length - 1], name, "seed {seed}");
                    assert_eq!(times(&name), 1, "seed {seed}");
                    answered += 1;
                }
                Err(HostError::OutcomeUnknown) => {
                    assert!(times(&name) <= 1, "seed {seed}: {name} twice");
                }
                Err(error) => assert_eq!(times(&name), 0, "seed {seed}: {name} {error}"),
            }
        }
        assert!(answered > count / 4, "seed {seed}: {answered} of {count}");
    }
    assert_eq!(
        OPEN_SEQUENCES_MAX, 4_096,
        "part of the format of applied state"
    );
}
