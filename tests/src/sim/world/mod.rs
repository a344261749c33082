//! A cluster in one thread, in virtual time, from one seed: members on simulated disks, a network, clients, faults.
//!
//! It is a discrete-event simulation: events lie in a queue by their tick, each member says when it is due, and stretches
//! in which nothing happens are skipped. A member's turn is the product's own: host, core, log, state machine, lessor and
//! watch hub. What it writes is synced after as many ticks as its disk takes.
//!
//! - [`fault`]: what goes wrong, drawn up front. - [`network`]: what becomes of messages. - [`client`], [`watcher`]: who
//!   asks for what. - [`witness`]: shows what members do to the [checkers](super::checkers). - [`run`]: a whole run, its
//!   end, many of them, and how a failing one gets shorter.
//!
//! Whatever must not be ends in a panic; [`run`] catches it.

mod churn;
pub mod client;
mod damage;
mod excuses;
pub mod fault;
mod faults;
mod letter;
pub mod network;
mod plan;
pub mod run;
mod serve;
mod snapshots;
pub mod trace;
pub mod watcher;
pub mod witness;

use std::collections::BTreeMap;

use multiraft::forward::ForwardMessage;
use multiraft::{Outbox, SnapshotTransfer};
use raft_log::vfs::sim::{CrashKind, Fault as DiskFault, Rng};
use raft_log::{GroupId, NodeId};
use raft_node::core::Message;

use super::node::{GROUP, LOG_DIR, Node, Stopped};
use super::oracle::{Oracle, Shared};
use super::settings::Settings;
use super::solo::Coverage;
use client::Histories;
use excuses::Excuse;
use fault::{Fault, WATCHERS};
use faults::Lasting;
use letter::{Letter, brief, kind};
use network::Network;
use serve::{Call, Done};
use snapshots::{Receiving, Snapshots};
use trace::Trace;
use watcher::Watcher;
use witness::{Refusal, Witness};

pub use plan::Plan;

/// Turns of one member in one tick at most.
const TURNS_MAX: u32 = 4_000;
/// Ticks until a start that failed is tried again.
const RETRY_TICKS: u64 = 50;

enum Event {
    Deliver {
        from: usize,
        to: usize,
        message: Box<Letter>,
    },
    /// The disk of a member has done what it was given, if the same process still runs.
    Synced {
        node: usize,
        life: u64,
    },
    /// The client of a member sends its next operation.
    Client(usize),
    /// A client tries again at another member.
    Retry {
        call: u64,
        node: usize,
    },
    Start(usize),
    /// A member that has left is stopped for ever.
    Leave(usize),
    /// Long work of a member is done, if the same process still runs.
    Task {
        node: usize,
        life: u64,
    },
    /// It is time to look after the transfer of a snapshot.
    Transfer(u64),
    Fault(usize),
    /// Whoever led when a fault began hands over, or a member's process ends as a fault has it.
    Strike(usize),
    /// What a fault cuts is cut.
    Cut(usize),
    /// A fault ends.
    End(usize),
}

/// A member, and what is wrong with it now.
struct Member {
    node: Node,
    /// When its next turn is due.
    due: u64,
    /// Counts its processes.
    life: u64,
    syncing: bool,
    /// Long work is under way.
    working: bool,
    /// A snapshot that it receives.
    receiving: Option<Receiving>,
    sync_ticks: u64,
    apply_ticks: u64,
    /// It has no turn before.
    paused_until: u64,
    /// What it read from its clock right before a pause: its next turn goes on with that.
    looked: Option<u64>,
    /// Its clock: local ticks, what they were at a tick of the world, and how fast they go from there.
    clock: (u64, u64, u64),
    /// Planned errors that its disk has returned to this process.
    struck: Vec<DiskFault>,
    /// One of them was a sync of the log's.
    log_failed: bool,
    full: bool,
    /// Files of its log and snapshots with bytes that changed.
    rotten: Vec<String>,
    /// Its log had been begun anew, and was not whole again, when it was stopped.
    guarded: bool,
    /// It does not come back: what is damaged cannot be repaired from the others.
    lost: bool,
    /// It does not come back: it has left the group.
    gone: bool,
    /// How much its engine keeps, of 16, and how long it is down, when it stops next.
    next_crash: (bool, u64, u64),
    was_applied: u64,
    was_revision: i64,
}

impl Member {
    fn local(&self, now: u64) -> u64 {
        let (local, at, percent) = self.clock;
        local + (now - at) * percent / 100
    }

    fn jump_clock(&mut self, now: u64, ticks: u64) {
        self.clock.0 += ticks;
        self.due = self.due.min(now);
    }

    fn set_rate(&mut self, now: u64, percent: u64) {
        self.clock = (self.local(now), now, percent);
    }

    /// The first tick of the world at which the clock has reached `deadline`.
    fn world_time(&self, deadline: u64) -> u64 {
        let (local, at, percent) = self.clock;
        at + (deadline.saturating_sub(local) * 100).div_ceil(percent)
    }
}

/// See the module.
pub struct World {
    members: Vec<Member>,
    oracle: Shared<Oracle>,
    network: Network,
    sent: Shared<Sent>,
    snapshots: Snapshots,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    now: u64,
    plan: Plan,
    clients: Rng,
    churn: Rng,
    /// What members that come begin with.
    settings: Settings,
    disks: Rng,
    clients_stopped: bool,
    /// Members serve clients of a leader.
    forwards: bool,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    done: Shared<Vec<Done>>,
    histories: Histories,
    watchers: Vec<Watcher>,
    /// Faults that last, by their place in the plan.
    lasting: BTreeMap<usize, Lasting>,
    witness: Witness,
    trace: Trace,
    coverage: Coverage,
}

/// What members have sent and the network has not taken.
#[derive(Default)]
struct Sent {
    letters: Vec<(NodeId, NodeId, Letter)>,
    transfers: Vec<(NodeId, SnapshotTransfer)>,
}

struct Wire {
    from: NodeId,
    sent: Shared<Sent>,
}

impl Outbox for Wire {
    fn send(&mut self, group: GroupId, to: NodeId, message: Message) {
        assert_eq!(group, GROUP, "there is one group");
        let letter = Letter::Raft(message);
        self.sent.get().letters.push((self.from, to, letter));
    }

    fn forward(&mut self, group: GroupId, to: NodeId, message: ForwardMessage) {
        assert_eq!(group, GROUP, "there is one group");
        let letter = Letter::Forward(message);
        self.sent.get().letters.push((self.from, to, letter));
    }

    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        self.sent.get().transfers.push((self.from, transfer));
    }
}

impl World {
    /// Members with empty disks, about to start.
    #[must_use]
    pub fn new(plan: Plan, tell: bool) -> Self {
        let mut rng = Rng::new(plan.seed);
        let voters: Vec<NodeId> = (1..=plan.nodes as u64).map(NodeId).collect();
        let settings = plan::settings(&mut rng, voters.clone(), plan.seed);
        let forwards = settings.forwards;
        let oracle = Shared::new(Oracle::default());
        let sent: Shared<Sent> = Shared::default();
        let disks = rng.split();
        let mut world = Self {
            witness: Witness::new(voters.len(), oracle.clone()),
            members: Vec::new(),
            oracle,
            settings,
            disks,
            network: Network::new(rng.split()),
            snapshots: Snapshots::new(rng.split()),
            sent,
            events: BTreeMap::new(),
            next_event: 0,
            now: 0,
            clients: rng.split(),
            churn: rng.split(),
            clients_stopped: false,
            forwards,
            calls: BTreeMap::new(),
            next_call: 0,
            done: Shared::default(),
            histories: Histories::default(),
            watchers: (0..WATCHERS).map(|_| Watcher::new()).collect(),
            lasting: BTreeMap::new(),
            trace: Trace::new(tell),
            coverage: Coverage::new(),
            plan,
        };
        for (at, id) in voters.into_iter().enumerate() {
            let member = world.new_member(id);
            world.members.push(member);
            world.at(0, Event::Start(at));
            world.at(1 + at as u64, Event::Client(at));
        }
        if world.settings.read_lease_ticks > 0 {
            world.count("clusters that read by lease");
        }
        for (at, scheduled) in world.plan.faults.clone().iter().enumerate() {
            world.at(scheduled.at, Event::Fault(at));
        }
        world
    }

    /// A member with an empty disk, down.
    fn new_member(&mut self, id: NodeId) -> Member {
        let sent = self.sent.clone();
        let outbox = move || -> Box<dyn Outbox> {
            let sent = sent.clone();
            Box::new(Wire { from: id, sent })
        };
        let (disk, oracle) = (self.disks.next_u64(), self.oracle.clone());
        let node = Node::new(id, self.settings.clone(), disk, oracle, Box::new(outbox));
        Member {
            node,
            due: u64::MAX,
            life: 0,
            syncing: false,
            working: false,
            receiving: None,
            sync_ticks: 0,
            apply_ticks: 0,
            paused_until: 0,
            looked: None,
            clock: (0, self.now, 100),
            struck: Vec::new(),
            log_failed: false,
            full: false,
            rotten: Vec::new(),
            guarded: false,
            lost: false,
            gone: false,
            next_crash: (false, 16, RETRY_TICKS),
            was_applied: 0,
            was_revision: 0,
        }
    }

    /// What happened, counted.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The hash of everything that happened.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }

    fn at(&mut self, time: u64, event: Event) {
        self.events.insert((time, self.next_event), event);
        self.next_event += 1;
    }

    fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// Lets time pass up to a tick.
    ///
    /// # Panics
    /// When anything is not as it must be.
    pub fn run_until(&mut self, end: u64) {
        loop {
            let event = self.events.keys().next().map_or(u64::MAX, |(at, _)| *at);
            let up = self.members.iter().filter(|member| member.node.is_up());
            let due = up.map(|member| member.due.max(member.paused_until));
            let next = due.min().unwrap_or(u64::MAX).min(event);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            while let Some(first) = self.events.first_entry()
                && first.key().0 <= self.now
            {
                let event = first.remove();
                self.handle(event);
            }
            for at in 0..self.members.len() {
                self.turns(at);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => {
                let member = &mut self.members[to];
                if !member.node.is_up() || !self.network.carries(from, to) {
                    return;
                }
                let sender = NodeId(from as u64 + 1);
                let handle = &member.node.up().handle;
                match *message {
                    Letter::Raft(message) => handle.deliver(GROUP, sender, message),
                    Letter::Forward(message) => handle.deliver_forward(GROUP, sender, message),
                    Letter::Snapshot(frame) => return self.take_frame(from, to, frame),
                }
                member.due = member.due.min(self.now);
            }
            Event::Synced { node, life } => {
                let member = &mut self.members[node];
                if member.life == life && member.node.is_up() {
                    member.syncing = false;
                    match member.node.drive() {
                        Ok(wrote) => {
                            member.due = member.due.min(self.now);
                            if wrote {
                                self.wrote(node);
                            }
                        }
                        Err(error) => self.stopped(node, &error),
                    }
                }
            }
            Event::Client(node) => self.client(node),
            Event::Retry { call, node } => self.retry(call, node),
            Event::Start(node) => self.start(node),
            Event::Leave(node) => self.leave(node),
            Event::Task { node, life } => self.run_task(node, life),
            Event::Transfer(number) => self.look_after(number),
            Event::Fault(at) => self.begin(at),
            Event::Strike(at) => self.strike_again(at),
            Event::Cut(at) => self.cut(at),
            Event::End(at) => self.end(at),
        }
    }

    /// The turns of one member that are due.
    fn turns(&mut self, at: usize) {
        for _ in 0..TURNS_MAX {
            let now = self.now;
            let member = &mut self.members[at];
            if !member.node.is_up() || member.due > now || member.paused_until > now {
                return;
            }
            let local = member.looked.take().unwrap_or(member.local(now));
            let step = member.node.turn(local);
            let outcome = match step {
                Ok(step) => {
                    member.due = step
                        .deadline
                        .map_or(u64::MAX, |at| member.world_time(at).max(now + 1));
                    if step.busy {
                        member.due = now;
                    }
                    let applied = member.node.applied().0;
                    if applied != member.was_applied && member.apply_ticks > 0 {
                        member.paused_until = now + member.apply_ticks;
                    }
                    member.was_applied = applied;
                    self.finish_turn(at, step.unsynced)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.stopped(at, &error);
            }
        }
        panic!("member {} does not come to rest", at + 1);
    }

    /// What a turn led to, outside of the member.
    fn finish_turn(&mut self, at: usize, unsynced: bool) -> Result<(), Stopped> {
        self.serve_done();
        match self.witness.turned(at, &self.members[at].node, self.now) {
            Ok(()) => {}
            Err(Refusal::Stopped(stopped)) => return Err(stopped),
            Err(Refusal::Violated(text)) => panic!("{text}"),
        }
        self.trace_turn(at);
        // Whatever was sent before a failure is on its way.
        self.carry();
        self.watch(at);
        self.plan_task(at);
        let member = &mut self.members[at];
        if !unsynced || member.syncing {
            return Ok(());
        }
        if member.sync_ticks > 0 {
            member.syncing = true;
            let (due, life) = (self.now + member.sync_ticks, member.life);
            self.at(due, Event::Synced { node: at, life });
            return Ok(());
        }
        if member.node.drive()? {
            member.due = self.now;
            self.wrote(at);
        }
        Ok(())
    }

    fn trace_turn(&mut self, at: usize) {
        let status = self.members[at].node.core_status();
        let what = (
            at,
            (status.term.0, status.role as u8, status.vote.map(|v| v.0)),
            (status.commit.0, status.applied.0, status.last_index.0),
        );
        self.trace.event(self.now, &what, || {
            format!(
                "m{}: {:?} of term {}, log to {}, committed {}, applied {}",
                at + 1,
                status.role,
                status.term.0,
                status.last_index.0,
                status.commit.0,
                status.applied.0
            )
        });
    }

    /// Takes what members have sent to the network.
    fn carry(&mut self) {
        let Sent { letters, transfers } = std::mem::take(&mut *self.sent.get());
        for (from, transfer) in transfers {
            self.begin_transfer(from.0 as usize - 1, transfer);
        }
        self.answer_snapshots();
        for (from, to, message) in letters {
            if let Letter::Raft(message) = &message
                && let Err(text) = self.witness.sent(from.0, to.0, message)
            {
                panic!("{text}");
            }
            if matches!(message, Letter::Forward(ForwardMessage::Propose { .. })) {
                self.count("commands forwarded");
            }
            self.post(from.0 as usize - 1, to.0 as usize - 1, &message);
        }
    }

    /// Gives a message to the network.
    fn post(&mut self, from: usize, to: usize, message: &Letter) {
        for late in self.network.send(from, to) {
            let due = self.now + late;
            let what = (from, to, due, kind(message));
            self.trace.event(self.now, &what, || {
                let brief = brief(message);
                format!("m{} -> m{}: {brief} in {late}", from + 1, to + 1)
            });
            let message = Box::new(message.clone());
            self.at(due, Event::Deliver { from, to, message });
        }
    }

    fn start(&mut self, at: usize) {
        let now = self.now;
        let member = &mut self.members[at];
        if member.node.is_up() || member.lost || member.gone {
            return;
        }
        member.life += 1;
        member.syncing = false;
        member.working = false;
        let local = member.local(now);
        let mut outcome = member.node.start(local);
        let anew = member.node.take_anew();
        if anew {
            // A tail that the disk does not give, twice over, is no better than a damaged one to a start.
            member.note_strikes(true);
            let is_damaged = member.rotten.iter().any(|path| path.starts_with(LOG_DIR))
                || member.struck.contains(&DiskFault::Read);
            assert!(
                is_damaged,
                "member {} begins its log anew, and no fault has damaged it",
                at + 1
            );
            member.rotten.retain(|path| !path.starts_with(LOG_DIR));
            member.guarded = true;
        }
        if outcome.is_ok() {
            member.was_applied = member.node.applied().0;
            member.due = now;
            outcome = match self.witness.started(at, &member.node) {
                Ok(()) => Ok(()),
                Err(Refusal::Stopped(stopped)) => Err(stopped),
                Err(Refusal::Violated(text)) => panic!("{text}"),
            };
        }
        if anew {
            self.trace
                .say(now, &format!("m{}: begins its log anew", at + 1));
            self.count("logs begun anew");
        }
        match outcome {
            Ok(()) => {
                self.trace
                    .event(now, &("start", at), || format!("m{}: starts", at + 1));
                self.count("starts");
            }
            Err(error) => self.stopped(at, &error),
        }
    }

    /// A member stopped by itself, or did not start: there must be a reason.
    fn stopped(&mut self, at: usize, error: &Stopped) {
        let excuse = self.excuse(at, error);
        self.count(match excuse {
            Excuse::CutOff => "stops of cut-off disks",
            Excuse::DiskError => "stops for disk errors",
            Excuse::Damage => "members lost to bit rot",
            Excuse::NoSpace => "starts refused by full disks",
        });
        let member = &mut self.members[at];
        let (mut power, keep, down) = member.next_crash;
        if excuse != Excuse::CutOff {
            // A log that it reads while it runs is looked at by the next start. What keeps it from starting takes an operator.
            let starts = !member.node.is_up() || !error.0.contains(LOG_DIR);
            member.lost = excuse == Excuse::Damage && starts;
            if member.node.is_up() {
                // It has the time to answer.
                member.node.fail(false);
            }
            // A kernel that cannot sync a directory stops the file system.
            power = member.struck.contains(&DiskFault::SyncDir);
        }
        let story = format!("m{}: stops: {}", at + 1, error.0);
        self.trace.say(self.now, &story);
        self.serve_done();
        self.carry();
        self.crash(at, power, keep, down);
    }

    /// Ends a member's process, or takes its power, and lets it start again later.
    fn crash(&mut self, at: usize, power: bool, keep: u64, down: u64) {
        // What it has answered it has answered.
        self.serve_done();
        let now = self.now;
        self.end_transfers(at);
        let member = &mut self.members[at];
        member.guarded = member.is_guarded();
        let unpersisted = member.node.engine.unpersisted() as u64;
        let kind = if power {
            CrashKind::Power
        } else {
            CrashKind::Process
        };
        member.node.crash(kind, (unpersisted * keep / 16) as usize);
        member.due = u64::MAX;
        (member.paused_until, member.looked) = (0, None);
        member.struck.clear();
        member.log_failed = false;
        drop(member.node.fs.take_struck());
        member.next_crash = (false, 16, RETRY_TICKS);
        let id = member.node.id.0;
        self.witness.ended(at, id);
        drop(std::mem::take(&mut *self.sent.get()));
        for watcher in &mut self.watchers {
            if watcher.member() == Some(at) {
                watcher.cut_off();
            }
        }
        self.trace.event(now, &("crash", at, power, keep), || {
            format!("m{}: {kind:?} crash, for {down} ticks", at + 1)
        });
        self.count(if power { "power losses" } else { "crashes" });
        self.at(now + down, Event::Start(at));
    }
}
