//! Groups on logs in simulated file systems, joined by hand: no thread, no clock, and a network that loses nothing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_log::vfs::sim::SimFs;
use raft_log::{IoMode, Log, LogOptions, StoreId, WriteBatch};
use raft_node::core::{Config, Membership, Role};
use raft_node::driver::{Event, Group, GroupConfig, bootstrap};
use raft_node::{
    Applied, ApplyError, Entry, EntryKind, GroupId, Index, NodeId, StateMachine, TickContext,
};

pub(crate) const GROUP: GroupId = GroupId(1);

/// Keeps what it is told of memberships, durably or not as a test wants it.
#[derive(Clone, Default)]
pub(crate) struct Members {
    pub(crate) applied: Applied,
    /// Index, membership and context of each change.
    pub(crate) seen: Vec<(Index, Membership, Bytes)>,
    /// The commands.
    pub(crate) values: Vec<Bytes>,
    pub(crate) durable: Index,
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
            if entry.kind == EntryKind::Normal && !entry.payload.is_empty() {
                self.values.push(entry.payload.clone());
            }
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

pub(crate) struct Node {
    pub(crate) fs: SimFs,
    pub(crate) log: Log,
    pub(crate) group: Group<Members>,
    pub(crate) events: Vec<Event<Index>>,
    pub(crate) now: u64,
}

pub(crate) fn open_log(fs: &SimFs) -> Log {
    let mut options = LogOptions::new("/log", StoreId(5));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(fs.shared(), options).expect("opens");
    log
}

pub(crate) fn open(id: NodeId, fs: SimFs, first: &Membership, machine: Members) -> Node {
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

pub(crate) fn nodes(count: u64, first: &Membership) -> BTreeMap<NodeId, Node> {
    let node = |id| {
        let fs = SimFs::new(id);
        (NodeId(id), open(NodeId(id), fs, first, Members::default()))
    };
    (1..=count).map(node).collect()
}

/// Persists, applies and delivers until nothing moves; ticks in between.
pub(crate) fn run(nodes: &mut BTreeMap<NodeId, Node>, ticks: u64) {
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

pub(crate) fn turn(node: &mut Node) {
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

pub(crate) fn leader(nodes: &BTreeMap<NodeId, Node>) -> NodeId {
    let lead = nodes
        .iter()
        .find(|(_, node)| node.group.status().role == Role::Leader);
    *lead.expect("there is a leader").0
}

pub(crate) fn of(ids: impl IntoIterator<Item = u64>) -> Membership {
    Membership::of_voters(ids.into_iter().map(NodeId))
}
