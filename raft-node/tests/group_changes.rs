//! Membership changes through the driver: what a caller and a state machine learn, and what a log gives back at a start.
//! Groups on logs in simulated file systems, joined by hand.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_log::vfs::sim::{CrashKind, SimFs};
use raft_log::{IoMode, Log, LogOptions, StoreId, WriteBatch};
use raft_node::core::{Change, ChangeError, ChangeStep, Config, DropReason, Membership, Role};
use raft_node::driver::{Event, Group, GroupConfig, bootstrap};
use raft_node::{
    Applied, ApplyError, Entry, EntryKind, GroupId, Index, NodeId, StateMachine, TickContext,
};

const GROUP: GroupId = GroupId(1);

/// Keeps what it is told of memberships, durably or not as a test wants it.
#[derive(Clone, Default)]
struct Members {
    applied: Applied,
    /// Index, membership and context of each change.
    seen: Vec<(Index, Membership, Bytes)>,
    durable: Index,
}

impl StateMachine for Members {
    type Output = Index;

    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable_index(&self) -> Index {
        self.durable
    }

    fn request_persist(&mut self) {
        self.durable = self.applied.index;
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<Index>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            self.applied.index = entry.index;
            self.applied.term = entry.term;
            outputs.push(entry.index);
            if entry.kind == EntryKind::Config {
                let membership = membership.expect("told of each change").clone();
                let context = Membership::context(&entry.payload).expect("decoded before");
                self.applied.membership = Some((entry.index, membership.clone()));
                self.seen.push((entry.index, membership, context));
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

struct Node {
    fs: SimFs,
    log: Log,
    group: Group<Members>,
    events: Vec<Event<Index>>,
    now: u64,
}

fn open_log(fs: &SimFs) -> Log {
    let mut options = LogOptions::new("/log", StoreId(5));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(fs.shared(), options).expect("opens");
    log
}

fn open(id: NodeId, fs: SimFs, first: &Membership, machine: Members) -> Node {
    let log = open_log(&fs);
    bootstrap(&log, GROUP, 1, first).expect("created");
    let core = Config {
        id,
        heartbeat_ticks: 2,
        election_ticks: 10,
        ..Config::default()
    };
    let config = GroupConfig {
        core: core.validate().expect("valid"),
        catch_up_entries: 0,
    };
    let group = Group::open(GROUP, config, log.clone(), machine).expect("opens");
    Node {
        fs,
        log,
        group,
        events: Vec::new(),
        now: 0,
    }
}

fn nodes(count: u64, first: &Membership) -> BTreeMap<NodeId, Node> {
    let node = |id| {
        let fs = SimFs::new(id);
        (NodeId(id), open(NodeId(id), fs, first, Members::default()))
    };
    (1..=count).map(node).collect()
}

/// Persists, applies and delivers until nothing moves; ticks in between.
fn run(nodes: &mut BTreeMap<NodeId, Node>, ticks: u64) {
    for _ in 0..ticks {
        let mut network = VecDeque::new();
        for node in nodes.values_mut() {
            node.now += 1;
            node.group.tick(node.now, 1);
        }
        for _ in 0..50 {
            for (id, node) in nodes.iter_mut() {
                turn(node);
                network.extend(node.group.take_messages().map(|(to, m)| (*id, to, m)));
            }
            while let Some((from, to, message)) = network.pop_front() {
                if let Some(node) = nodes.get_mut(&to) {
                    node.group.receive(from, message);
                }
            }
        }
    }
}

fn turn(node: &mut Node) {
    let mut batch = WriteBatch::new();
    if let Some(id) = node.group.collect(&mut batch) {
        let ticket = node.log.submit(batch).expect("submitted");
        node.log.wait(ticket).expect("synced");
        node.group.persisted(id);
    }
    node.group.fetch().expect("readable");
    while node.group.apply().expect("applies") {}
    node.events.extend(node.group.take_events());
}

fn leader(nodes: &BTreeMap<NodeId, Node>) -> NodeId {
    let lead = nodes
        .iter()
        .find(|(_, node)| node.group.status().role == Role::Leader);
    *lead.expect("there is a leader").0
}

fn of(ids: impl IntoIterator<Item = u64>) -> Membership {
    Membership::of_voters(ids.into_iter().map(NodeId))
}

#[test]
fn change_ends_when_joint_configuration_is_left() {
    let mut nodes = nodes(3, &of(1..=2));
    run(&mut nodes, 40);
    let lead = leader(&nodes);
    let change = Change {
        steps: vec![ChangeStep::AddVoter(NodeId(3))],
        context: Bytes::from_static(b"at home"),
    };
    let node = nodes.get_mut(&lead).expect("it leads");
    node.group.propose_change(7, change.clone());
    node.group.propose_change(8, change);
    run(&mut nodes, 5);

    let node = &nodes[&lead];
    let (first, last) = (
        node.group.machine().seen.first(),
        node.group.machine().seen.last(),
    );
    let joint = Membership {
        voters_outgoing: vec![NodeId(1), NodeId(2)],
        ..of(1..=3)
    };
    let (entered, _, _) = first.expect("entered").clone();
    assert_eq!(
        first,
        Some(&(entered, joint, Bytes::from_static(b"at home")))
    );
    assert_eq!(last, Some(&(entered.next(), of(1..=3), Bytes::new())));
    // The output is that of the entry which carried the context; it came after the joint configuration was left.
    match &node.events[..] {
        [
            Event::Dropped(8, DropReason::Change(ChangeError::InProgress(at))),
            Event::Applied(7, output),
        ] => {
            assert_eq!((*at, *output), (entered, entered));
        }
        other => panic!("unexpected events: {other:?}"),
    }
    for node in nodes.values() {
        assert_eq!(node.group.membership(), &of(1..=3));
        assert_eq!(node.group.machine().seen.len(), 2);
    }
}

#[test]
fn change_not_applied_before_a_crash_is_in_force_after_it() {
    let mut nodes = nodes(2, &of(1..=2));
    run(&mut nodes, 40);
    let lead = leader(&nodes);
    let mut node = nodes.remove(&lead).expect("it leads");
    let steps = vec![
        ChangeStep::AddVoter(NodeId(3)),
        ChangeStep::AddVoter(NodeId(4)),
    ];
    let context = Bytes::new();
    node.group.propose_change(7, Change { steps, context });
    turn(&mut node);
    assert!(node.events.is_empty(), "nobody else has it");
    let machine = node.group.machine().clone();
    let fs = node.fs.clone();
    drop(node);
    fs.crash(CrashKind::Power);
    let node = open(lead, fs, &of(1..=2), machine);
    let joint = Membership {
        voters_outgoing: vec![NodeId(1), NodeId(2)],
        ..of(1..=4)
    };
    assert_eq!(node.group.membership(), &joint);
}

#[test]
fn membership_outlives_the_entries_that_led_to_it() {
    let mut nodes = nodes(1, &of([1]));
    run(&mut nodes, 2);
    let mut node = nodes.remove(&NodeId(1)).expect("there");
    let steps = vec![ChangeStep::AddLearner(NodeId(2))];
    let context = Bytes::new();
    node.group.propose_change(7, Change { steps, context });
    turn(&mut node);
    assert!(matches!(node.events[..], [Event::Applied(7, _)]));
    node.group.request_persist();
    let mut batch = WriteBatch::new();
    node.group.compact(&mut batch, false);
    let ticket = node.log.submit(batch).expect("submitted");
    node.log.wait(ticket).expect("synced");
    let info = node.log.group(GROUP).expect("there");
    assert_eq!(info.base.index, info.last_index, "no entry is left");

    // A state machine that knows of no change, as one that is restored to the base.
    let mut machine = node.group.machine().clone();
    machine.applied.membership = None;
    let fs = node.fs.clone();
    drop(node);
    fs.crash(CrashKind::Power);
    let node = open(NodeId(1), fs, &of([1]), machine);
    let expected = Membership {
        learners: vec![NodeId(2)],
        ..of([1])
    };
    assert_eq!(node.group.membership(), &expected);
}
