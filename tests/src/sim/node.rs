//! One member on simulated disks: file system, log, host, state machine, engine; started, stepped, crashed.
//!
//! It makes no choices: worlds decide when to step, to write and to crash.

use std::sync::Arc;

use bytes::Bytes;
use kv_server::engine::Engine;
use kv_server::engine::memory::MemoryEngine;
use kv_server::mvcc::{KvOptions, KvStateMachine, Sinks, Store};
use kv_server::pb::etcdserverpb::RangeRequest;
use kv_server::watch::WatchHub;
use multiraft::forward::Outcomes;
use multiraft::{HostCore, HostHandle, HostOptions, Outbox};
use raft_log::vfs::{SimFs, Vfs, sim::CrashKind};
use raft_log::{Entry, GroupId, Index, IoMode, Log, LogOptions, NodeId, StoreId, Term};
use raft_node::StateMachine;
use raft_node::core::{Config, Membership, Status};
use raft_node::driver::{Group, GroupConfig, bootstrap};

use super::check;
use super::forwarding::{self, Replica};
use super::oracle::{Answer, Oracle, ReadAnswer, Shared};
use super::sinks::{Heard, Hub, Lessor, Observed};

/// The group of all simulations.
pub const GROUP: GroupId = GroupId(1);
/// Where the log of each member lies.
pub const LOG_DIR: &str = "/log";
/// Turns after which a member must have come to rest.
const TURNS_MAX: usize = 1_000;

/// How a member is set up; small, so that every mechanism has something to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All voters.
    pub voters: Vec<NodeId>,
    /// Entries kept for members that lag.
    pub catch_up_entries: u64,
    /// Applied entries after which the engine is asked to persist.
    pub snapshot_entries: u64,
    /// Bytes of recent entries that the log keeps in memory.
    pub log_cache_bytes: usize,
    /// Bytes of recent entries that the core keeps in memory.
    pub window_bytes: usize,
    /// Bytes of entries in one message, plus an entry.
    pub message_bytes: usize,
    /// Messages with entries on their way to one member.
    pub inflight_messages: usize,
    /// Revisions that the watch hub keeps in memory.
    pub watch_revisions: usize,
    /// Keys whose metadata the state machine keeps in memory.
    pub key_cache_entries: usize,
    /// Changes that one step of history compaction looks at.
    pub compaction_step: usize,
    /// Ticks without a leader until a member campaigns, at least.
    pub election_ticks: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u64,
    /// Leases end by themselves, as the product's lessor has it.
    pub expires: bool,
    /// Members serve clients while another one leads. Needs `expires`.
    pub forwards: bool,
    /// Where the jitter of elections comes from.
    pub seed: u64,
}

/// Why a member does not run, or not any more.
#[derive(Debug)]
pub struct Stopped(pub String);

impl<E: std::error::Error> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The member has work to do without new input.
    pub busy: bool,
    /// Something is submitted to the log and not synced.
    pub unsynced: bool,
    /// The tick at which the next turn is due when nothing arrives.
    pub deadline: Option<u64>,
}

/// A member, running or not.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its disk.
    pub fs: SimFs,
    /// Its engine, which loses batches in a crash.
    pub engine: MemoryEngine,
    settings: Settings,
    oracle: Shared<Oracle>,
    outbox: Box<dyn Fn() -> Box<dyn Outbox>>,
    up: Option<Up>,
    /// Its runs so far, durably: the product keeps that number in a file of its own.
    boot: u64,
    /// The newest term in which it led.
    term_seen: Term,
    reads_served: u64,
}

/// What ends with the process.
pub struct Up {
    /// The log.
    pub log: Log,
    /// The way in.
    pub handle: HostHandle<Observed>,
    /// The read side.
    pub store: Arc<Store>,
    /// The lessor.
    pub lessor: Lessor,
    core: HostCore<Observed>,
    hub: Arc<Hub>,
    started: u64,
    answers: Shared<Vec<Answer>>,
    reads: Shared<Vec<ReadAnswer>>,
}

impl Node {
    /// A member with an empty disk. `outbox` makes its way out to the others, once per start.
    #[must_use]
    pub fn new(
        id: NodeId,
        settings: Settings,
        disk_seed: u64,
        oracle: Shared<Oracle>,
        outbox: Box<dyn Fn() -> Box<dyn Outbox>>,
    ) -> Self {
        Self {
            id,
            fs: SimFs::new(disk_seed),
            engine: MemoryEngine::new(),
            settings,
            oracle,
            outbox,
            up: None,
            boot: 0,
            term_seen: Term::ZERO,
            reads_served: 0,
        }
    }

    /// What runs.
    ///
    /// # Panics
    /// When nothing runs.
    #[must_use]
    pub fn up(&self) -> &Up {
        self.up.as_ref().expect("the member runs")
    }

    /// True when it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Bytes of all files of the log.
    ///
    /// # Errors
    /// When the disk is down.
    pub fn disk_bytes(&self) -> Result<u64, Stopped> {
        let names = self.fs.list(LOG_DIR.as_ref())?;
        let sizes = names
            .iter()
            .map(|name| self.fs.file_len(format!("{LOG_DIR}/{name}")));
        Ok(sizes.sum::<std::io::Result<u64>>()?)
    }

    /// The number of the oldest segment of the log on the disk; zero when there is none.
    #[must_use]
    pub fn first_segment(&self) -> u64 {
        let names = self.fs.list(LOG_DIR.as_ref()).unwrap_or_default();
        let mut segments = names
            .iter()
            .filter_map(|name| name.strip_suffix(".seg"))
            .filter_map(|id| u64::from_str_radix(id, 16).ok());
        segments.next().unwrap_or(0)
    }

    /// Starts the process on what the disk and the engine hold, at tick `now` of the world.
    ///
    /// # Errors
    /// Whatever keeps the product from starting.
    ///
    /// # Panics
    /// When what it starts with is not what the oracle knows.
    pub fn start(&mut self, now: u64) -> Result<(), Stopped> {
        assert!(self.up.is_none(), "the member runs already");
        let mut options = LogOptions::new(LOG_DIR, StoreId(self.id.0));
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        options.cache_bytes = self.settings.log_cache_bytes;
        let (log, _) = Log::open(self.fs.shared(), options)?;
        let membership = Membership::of_voters(self.settings.voters.iter().copied());
        bootstrap(&log, GROUP, 1, &membership)?;
        let (hub, lessor) = (
            Arc::new(Hub::new(
                self.id,
                self.oracle.clone(),
                self.settings.watch_revisions,
            )),
            if self.settings.expires {
                Lessor::with_product(self.id, self.oracle.clone())
            } else {
                Lessor::default()
            },
        );
        let sinks = Sinks {
            events: hub.clone(),
            leases: Arc::new(lessor.clone()),
        };
        let kv = KvOptions {
            group: GROUP,
            cache_entries: self.settings.key_cache_entries,
            compaction_step: self.settings.compaction_step,
        };
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        let (mut machine, store) = KvStateMachine::open(engine, kv, sinks)?;
        let boot = self.boot + 1;
        let outcomes = Arc::new(Outcomes::new(self.id, boot));
        if self.settings.forwards {
            machine.report_forwarded(Arc::clone(&outcomes));
        }
        hub.begin(Heard {
            revision: store.revision(),
            floor: store.compact_revision(),
        });
        let config = Config {
            id: self.id,
            group: GROUP,
            election_ticks: self.settings.election_ticks,
            heartbeat_ticks: self.settings.heartbeat_ticks,
            window_bytes_max: self.settings.window_bytes,
            message_bytes_max: self.settings.message_bytes,
            inflight_messages_max: self.settings.inflight_messages,
            boot: if self.settings.forwards { boot } else { 0 },
            seed: self.settings.seed ^ now,
            ..Config::default()
        };
        let config = GroupConfig {
            core: config.validate()?,
            catch_up_entries: self.settings.catch_up_entries,
        };
        let machine = Observed::new(machine, self.id, self.oracle.clone());
        let group = Group::open(GROUP, config, log.clone(), machine)?;
        // As in the product: a start that is refused uses no number up.
        self.boot = boot;
        self.oracle.get().process_started(self.id, group.applied());
        let options = HostOptions {
            snapshot_entries: self.settings.snapshot_entries,
            ..HostOptions::default()
        };
        let (mut core, handle) = HostCore::new(
            log.clone(),
            vec![group],
            options,
            (self.outbox)(),
            Box::new(|| {}),
        );
        if let Some(lessor) = lessor.product().filter(|_| self.settings.forwards) {
            let replica = Replica::new(self.id, handle.clone(), self.oracle.clone());
            let election_ticks = self.settings.election_ticks;
            core.forward(forwarding::setup(outcomes, replica, lessor, election_ticks));
        }
        let up = Up {
            log,
            handle,
            store,
            lessor,
            core,
            hub,
            started: now,
            answers: Shared::new(Vec::new()),
            reads: Shared::new(Vec::new()),
        };
        let term = up
            .log
            .group(GROUP)
            .expect("just bootstrapped")
            .hard_state
            .term;
        assert!(
            term >= self.term_seen,
            "member {} was in term {} and comes back in term {term}",
            self.id,
            self.term_seen
        );
        self.up = Some(up);
        Ok(())
    }

    /// The whole log as it can be read, and its last index.
    ///
    /// # Errors
    /// Those of the log.
    pub fn log_entries(&self) -> Result<(Vec<Entry>, Index), Stopped> {
        let log = &self.up().log;
        let info = log.group(GROUP).expect("bootstrapped at the start");
        let mut entries = Vec::new();
        let mut next = info.base.index.next();
        while next <= info.last_index {
            let part = log.entries(GROUP, next..info.last_index.next(), 1 << 20)?;
            next = part.last().expect("at least one entry").index.next();
            entries.extend(part);
        }
        Ok((entries, info.last_index))
    }

    /// One turn of the host, without the disk.
    ///
    /// # Errors
    /// Whatever stops the product.
    ///
    /// # Panics
    /// When something that it did is not what the oracle expects.
    pub fn turn(&mut self, now: u64) -> Result<Step, Stopped> {
        let up = self.up.as_mut().expect("the member runs");
        let outcome = up.core.turn(now - up.started);
        self.collect();
        let turn = outcome?;
        self.check_turn();
        let started = self.up().started;
        Ok(Step {
            deadline: turn.deadline.map(|at| at + started),
            busy: turn.busy,
            unsynced: turn.unsynced.is_some(),
        })
    }

    /// Writes and syncs what the log has queued. False when nothing was written.
    ///
    /// # Errors
    /// A failure of the log.
    pub fn drive(&mut self) -> Result<bool, Stopped> {
        Ok(self.up().log.drive()?)
    }

    /// Turns and writes until nothing is left to do, or the disk is full. True when nothing is left.
    ///
    /// # Errors
    /// Whatever stops the product.
    ///
    /// # Panics
    /// When it does not come to rest.
    pub fn settle(&mut self, now: u64) -> Result<bool, Stopped> {
        for _ in 0..TURNS_MAX {
            let step = self.turn(now)?;
            let wrote = self.drive()?;
            if !step.busy && !wrote {
                return Ok(!step.unsynced);
            }
        }
        panic!("member {} does not come to rest", self.id);
    }

    /// Sends a client's command.
    pub fn propose(&self, tag: u64, payload: Bytes) {
        let answers = self.up().answers.clone();
        let reply = Box::new(move |answer| answers.get().push((tag, answer)));
        self.up().handle.propose(GROUP, payload, reply);
    }

    /// Sends a client's linearizable read; what it sees is checked when it is served.
    pub fn read(&self, request: RangeRequest) {
        let up = self.up();
        let after = self.oracle.get().acked();
        let (reads, store) = (up.reads.clone(), Arc::clone(&up.store));
        let serve = move || {
            let response = store
                .range(&request)
                .expect("a range of the newest revision");
            reads.get().push(ReadAnswer {
                after,
                request,
                response,
            });
        };
        if up.handle.read_now(GROUP) {
            return serve();
        }
        let done = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                serve();
            }
        });
        up.handle.read_barrier(GROUP, done);
    }

    /// Linearizable reads that were answered.
    #[must_use]
    pub fn reads_served(&self) -> u64 {
        self.reads_served
    }

    /// The process stops by itself after a failure, and answers everybody. If `of_the_log`, that is what failed.
    ///
    /// # Panics
    /// When the log still takes work although it failed.
    pub fn fail(&mut self, of_the_log: bool) {
        let up = self.up.as_mut().expect("the member runs");
        up.core.fail();
        assert!(
            !of_the_log || up.log.drive().is_err(),
            "member {}: the log goes on after a failure",
            self.id
        );
        self.collect();
    }

    /// The end of the process, and of the machine for [`CrashKind::Power`]. The engine keeps the oldest `keep` of the
    /// batches that it has not persisted.
    pub fn crash(&mut self, kind: CrashKind, keep: usize) {
        self.up = None;
        self.oracle.get().process_ended(self.id);
        self.fs.crash(kind);
        self.engine = self.engine.crash(keep);
    }

    /// What clients were told since the last look.
    fn collect(&mut self) {
        let up = self.up.as_ref().expect("the member runs");
        let answers = std::mem::take(&mut *up.answers.get());
        let reads = std::mem::take(&mut *up.reads.get());
        let mut oracle = self.oracle.get();
        for answer in answers {
            oracle.answered(answer);
        }
        for read in &reads {
            oracle.read(read);
        }
        self.reads_served += reads.len() as u64;
    }

    /// What is cheap enough to be looked at after each turn.
    fn check_turn(&mut self) {
        let up = self.up.as_ref().expect("the member runs");
        let applied = self.applied();
        let mark = self.oracle.get().mark(applied);
        let heard = Heard {
            revision: mark.revision,
            floor: mark.floor,
        };
        assert_eq!(up.hub.heard(), heard, "what was published up to {applied}");
        assert_eq!(
            up.store.revision(),
            mark.revision,
            "the revision at {applied}"
        );
        assert_eq!(
            up.store.compact_revision(),
            mark.floor,
            "the floor at {applied}"
        );
        assert_eq!(up.lessor.leases(), up.store.leases(), "leases at {applied}");
        let status = up.handle.status(GROUP).expect("the host has the group");
        assert_eq!(status.applied, applied, "the published applied index");
        self.oracle.get().leader(&status);
        if status.leader == Some(self.id) {
            // It voted for itself, durably.
            self.term_seen = self.term_seen.max(status.term);
        }
    }

    /// The core as it is now.
    #[must_use]
    pub fn core_status(&self) -> Status {
        let status = self.up().core.core_status(GROUP);
        status.expect("the host has the group")
    }

    /// The product's hub for watches.
    #[must_use]
    pub fn watch_hub(&self) -> &Arc<WatchHub> {
        self.up().hub.watch()
    }

    /// The applied index.
    #[must_use]
    pub fn applied(&self) -> Index {
        let machine = self
            .up()
            .core
            .machine(GROUP)
            .expect("the host has the group");
        machine.applied().index
    }

    /// Compares everything that can be read with the model, and the hash with a fresh replica's.
    ///
    /// # Panics
    /// When something differs.
    pub fn check_state(&self) {
        check::state(&self.up().store, &self.oracle, self.applied());
    }
}
