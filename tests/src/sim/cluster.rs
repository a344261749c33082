//! Several members on disks of their own and a network between them that loses, delays and partitions.
//!
//! Time is one tick per [`Cluster::tick`]. Kept small: messages of one link stay in order and are not duplicated, and
//! the log is never compacted, so that no member needs a snapshot.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kv_server::engine::Engine;
use multiraft::{GroupStatus, Outbox};
use raft_log::vfs::sim::{CrashKind, Rng};
use raft_log::{GroupId, NodeId};
use raft_node::core::Message;

use super::node::{GROUP, Node, Stopped};
use super::oracle::{Oracle, Shared, everything};
use super::solo::{Coverage, settings};
use super::workload;

/// Ticks within which a healed cluster must agree.
const AGREEMENT_TICKS_MAX: u64 = 3_000;

type Link = (NodeId, NodeId);

/// What is on its way, and what becomes of it.
#[derive(Debug)]
pub struct Network {
    links: BTreeMap<Link, VecDeque<(u64, Message)>>,
    cut: BTreeSet<Link>,
    rng: Rng,
    now: u64,
    /// Of a hundred messages, how many are lost.
    pub loss_percent: u64,
    /// Ticks that a message takes at most, beyond the next one.
    pub delay_ticks_max: u64,
}

impl Network {
    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let lost = self.rng.chance(self.loss_percent, 100);
        if lost || self.cut.contains(&(from, to)) {
            return;
        }
        let due = self.now + 1 + self.rng.below(self.delay_ticks_max + 1);
        let link = self.links.entry((from, to)).or_default();
        let due = link.back().map_or(due, |(last, _)| due.max(*last));
        link.push_back((due, message));
    }

    /// What arrives now, link by link.
    fn arriving(&mut self, now: u64) -> Vec<(Link, Message)> {
        self.now = now;
        let mut arriving = Vec::new();
        for (link, waiting) in &mut self.links {
            while waiting.front().is_some_and(|(due, _)| *due <= now) {
                let (_, message) = waiting.pop_front().expect("the front was just seen");
                if !self.cut.contains(link) {
                    arriving.push((*link, message));
                }
            }
        }
        arriving
    }
}

struct Wire {
    from: NodeId,
    network: Shared<Network>,
}

impl Outbox for Wire {
    fn send(&mut self, group: GroupId, to: NodeId, message: Message) {
        assert_eq!(group, GROUP, "there is one group");
        self.network.get().send(self.from, to, message);
    }
}

/// Members, network, clients, and what they know.
pub struct Cluster {
    /// The members, by id, from 1.
    pub nodes: Vec<Node>,
    /// What is between them.
    pub network: Shared<Network>,
    /// What is known.
    pub oracle: Shared<Oracle>,
    /// What happened.
    pub coverage: Coverage,
    /// Of a hundred ticks, in how many a disk does not get to write.
    pub slow_disk_percent: u64,
    /// Members that are down start again after a while.
    pub restarts: bool,
    clients: Rng,
    chaos: Rng,
    now: u64,
    /// When members that are down start again.
    due: BTreeMap<NodeId, u64>,
}

impl Cluster {
    /// Starts members with empty disks. `variant` changes what goes wrong, not what clients send.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn new(seed: u64, variant: u64, size: u64) -> Self {
        let mut clients = Rng::new(seed);
        let mut chaos = Rng::new(seed.rotate_left(32) ^ variant.wrapping_mul(0x9e37_79b9));
        let voters: Vec<NodeId> = (1..=size).map(NodeId).collect();
        let mut settings = settings(&mut clients, voters.clone());
        settings.catch_up_entries = u64::MAX;
        settings.seed = seed;
        let oracle = Shared::new(Oracle::default());
        let network = Shared::new(Network {
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            rng: chaos.split(),
            now: 0,
            loss_percent: 0,
            delay_ticks_max: 0,
        });
        let mut nodes = Vec::new();
        for id in voters {
            let (seed, network) = (chaos.next_u64(), network.clone());
            let outbox = move || -> Box<dyn Outbox> {
                let network = network.clone();
                Box::new(Wire { from: id, network })
            };
            let outbox = Box::new(outbox);
            nodes.push(Node::new(
                id,
                settings.clone(),
                seed,
                oracle.clone(),
                outbox,
            ));
        }
        let mut cluster = Self {
            nodes,
            network,
            oracle,
            coverage: Coverage::new(),
            slow_disk_percent: 0,
            restarts: true,
            clients,
            chaos,
            now: 0,
            due: BTreeMap::new(),
        };
        for at in 0..cluster.nodes.len() {
            cluster.start(at);
        }
        cluster
    }

    /// The member that leads in the newest term, if it runs.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let leads = |at: &usize| {
            let node = &self.nodes[*at];
            node.is_up() && self.status(*at).leader == Some(node.id)
        };
        (0..self.nodes.len())
            .filter(leads)
            .max_by_key(|at| self.status(*at).term)
    }

    fn status(&self, at: usize) -> GroupStatus {
        let status = self.nodes[at].up().handle.status(GROUP);
        status.expect("the host has the group")
    }

    /// Cuts these members off from the others.
    pub fn isolate(&mut self, side: &[usize]) {
        let id = |at: &usize| self.nodes[*at].id;
        let side: BTreeSet<NodeId> = side.iter().map(id).collect();
        let mut network = self.network.get();
        for from in self.nodes.iter().map(|node| node.id) {
            for to in self.nodes.iter().map(|node| node.id) {
                if side.contains(&from) != side.contains(&to) {
                    network.cut.insert((from, to));
                }
            }
        }
    }

    /// Joins all members again.
    pub fn heal(&mut self) {
        self.network.get().cut.clear();
    }

    /// Some ticks; each time clients may send something.
    ///
    /// # Panics
    /// When anything is not as the oracle knows it.
    pub fn ticks(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.send();
            self.tick();
        }
    }

    /// Some ticks in which the network splits and heals, and members lose their process or their power.
    ///
    /// # Panics
    /// As [`Cluster::ticks`].
    pub fn havoc(&mut self, ticks: u64) {
        for _ in 0..ticks {
            match self.chaos.below(120) {
                0 => {
                    let at = self.some_node();
                    self.isolate(&[at]);
                    self.count("partitions");
                }
                1 | 2 => self.heal(),
                3 => {
                    let at = self.some_node();
                    let ops = self.chaos.below(40);
                    self.nodes[at].fs.fail_after(ops);
                }
                // Everything loses power at once.
                4 if self.chaos.chance(1, 4) => {
                    for at in 0..self.nodes.len() {
                        self.crash(at, CrashKind::Power);
                    }
                    self.count("power losses of all");
                }
                _ => {}
            }
            self.ticks(1);
        }
    }

    /// One tick, without new commands.
    ///
    /// # Panics
    /// As [`Cluster::ticks`].
    pub fn tick(&mut self) {
        self.now += 1;
        let arriving = self.network.get().arriving(self.now);
        for ((from, to), message) in arriving {
            let node = &self.nodes[to.0 as usize - 1];
            if node.is_up() {
                node.up().handle.deliver(GROUP, from, message);
            }
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_up() {
                if let Err(error) = self.step(at) {
                    let node = &self.nodes[at];
                    assert!(node.fs.is_down(), "member {} stopped: {}", node.id, error.0);
                    let kind = self.some_kind();
                    self.crash(at, kind);
                }
            } else if self.restarts && self.due.get(&self.nodes[at].id) <= Some(&self.now) {
                self.start(at);
            }
        }
    }

    fn step(&mut self, at: usize) -> Result<(), Stopped> {
        self.nodes[at].turn(self.now)?;
        if !self.chaos.chance(self.slow_disk_percent, 100) {
            self.nodes[at].drive()?;
        }
        self.check_leader(at);
        Ok(())
    }

    /// Whoever leads in the newest term has every entry that was committed in an earlier one (Raft, section 5.4).
    fn check_leader(&self, at: usize) {
        let (node, status) = (&self.nodes[at], self.status(at));
        let oracle = self.oracle.get();
        if status.leader != Some(node.id) || oracle.newest_term() > status.term {
            return;
        }
        let entries = oracle.up_to(oracle.last());
        let committed = entries.iter().rev().find(|entry| entry.term < status.term);
        if let Some(entry) = committed {
            assert_eq!(
                node.up().log.term_at(GROUP, entry.index),
                Some(entry.term),
                "member {} leads in term {} without entry {}",
                node.id,
                status.term,
                entry.index
            );
        }
    }

    /// Ends a member's process, if it runs; it starts again after a while.
    pub fn crash(&mut self, at: usize, kind: CrashKind) {
        let keep = self
            .chaos
            .below(self.nodes[at].engine.unpersisted() as u64 + 1);
        let due = self.now + 1 + self.chaos.below(60);
        let node = &mut self.nodes[at];
        node.crash(kind, keep as usize);
        self.due.insert(node.id, due);
        self.count("crashes");
    }

    /// Starts a member that is down, and checks what it starts with. A crash may hit the start itself.
    ///
    /// # Panics
    /// When it does not come back, or not as the oracle knows it.
    pub fn start(&mut self, at: usize) {
        if let Err(error) = self.try_start(at) {
            let node = &self.nodes[at];
            assert!(
                node.fs.is_down(),
                "member {} does not start: {}",
                node.id,
                error.0
            );
            let kind = self.some_kind();
            self.crash(at, kind);
        }
    }

    fn try_start(&mut self, at: usize) -> Result<(), Stopped> {
        let node = &mut self.nodes[at];
        node.start(self.now)?;
        let (entries, last) = node.log_entries()?;
        let applied = node.applied();
        assert!(last >= applied, "the log of member {} ends early", node.id);
        for (entry, known) in entries.iter().zip(self.oracle.get().up_to(applied)) {
            assert_eq!(entry, known, "the log of member {} after a start", node.id);
        }
        node.check_state();
        self.count("starts");
        Ok(())
    }

    /// Heals everything, and checks that all members come to the same state and that nobody waits for an answer.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub fn agree(&mut self) {
        self.heal();
        let mut network = self.network.get();
        (network.loss_percent, network.delay_ticks_max) = (0, 0);
        drop(network);
        self.restarts = true;
        for ticks in 0.. {
            self.tick();
            if self.all_agree() {
                break;
            }
            assert!(ticks < AGREEMENT_TICKS_MAX, "the members do not agree");
        }
        let mut hashes = BTreeSet::new();
        for node in &self.nodes {
            node.check_state();
            hashes.insert(
                node.up()
                    .store
                    .state_hash()
                    .expect("the engine can be read"),
            );
        }
        assert_eq!(hashes.len(), 1, "the members' states differ");
    }

    fn all_agree(&self) -> bool {
        let oracle = self.oracle.get();
        let (last, waiting) = (oracle.last(), oracle.waiting());
        drop(oracle);
        let Some(leader) = self.leader() else {
            return false;
        };
        let term = self.status(leader).term;
        waiting.is_empty()
            && (0..self.nodes.len()).all(|at| {
                self.nodes[at].is_up() && {
                    let status = self.status(at);
                    status.term == term && status.applied == last && status.last_index == last
                }
            })
    }

    /// Clients send to whom they believe to lead, and now and then to anybody.
    fn send(&mut self) {
        if self.clients.chance(1, 2) {
            return;
        }
        let anybody = self.clients.below(self.nodes.len() as u64) as usize;
        let to = match self.leader() {
            Some(leader) if self.clients.chance(7, 8) => leader,
            _ => anybody,
        };
        for _ in 0..self.clients.below(4) {
            let drawn = self.clients.next_u64();
            if self.nodes[to].is_up() {
                self.propose(to, &mut Rng::new(drawn));
            }
        }
        if self.clients.chance(1, 3) {
            for node in [&self.nodes[anybody], &self.nodes[to]] {
                if node.is_up() {
                    node.read(everything());
                }
            }
        }
        if self.clients.chance(1, 10) && self.nodes[anybody].is_up() {
            let engine = &self.nodes[anybody].engine;
            engine.persist().expect("an engine in memory persists");
        }
    }

    fn propose(&mut self, to: usize, rng: &mut Rng) {
        let node = &self.nodes[to];
        let mut oracle = self.oracle.get();
        let tag = oracle.sent(node.id, true);
        let op = workload::draw(rng, oracle.model(), tag);
        drop(oracle);
        node.propose(tag, workload::encode(op, tag));
    }

    fn some_node(&mut self) -> usize {
        self.chaos.below(self.nodes.len() as u64) as usize
    }

    fn some_kind(&mut self) -> CrashKind {
        if self.chaos.chance(1, 3) {
            CrashKind::Process
        } else {
            CrashKind::Power
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }
}
