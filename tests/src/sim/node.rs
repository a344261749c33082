//! One member on simulated disks: file system, log, host, state machine, engine; started, stepped, crashed.
//!
//! It makes no choices: worlds decide when to step, to write and to crash.

mod start;

use std::sync::Arc;

use bytes::Bytes;
use kv_server::engine::memory::MemoryEngine;
use kv_server::mvcc::Store;
use kv_server::pb::etcdserverpb::RangeRequest;
use kv_server::watch::WatchHub;
use multiraft::{HostCore, HostHandle, Outbox};
use raft_log::snapshot::SnapshotStore;
use raft_log::vfs::{SimFs, Vfs, sim::CrashKind};
use raft_log::{Entry, GroupId, Index, Log, NodeId, Term};
use raft_node::StateMachine;
use raft_node::core::{Membership, Status};

use super::check;
use super::oracle::{Answer, Oracle, ReadAnswer, Shared};
use super::settings::Settings;
use super::sinks::{Heard, Hub, Lessor, Observed};
use super::tasks::TaskQueue;

/// The group of all simulations.
pub const GROUP: GroupId = GroupId(1);
/// Where the log of each member lies.
pub const LOG_DIR: &str = "/log";
/// Where its snapshots lie, in a directory for each group.
pub const SNAP_DIR: &str = "/snap";
/// Turns after which a member must have come to rest.
const TURNS_MAX: usize = 1_000;

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
    /// A start has begun its log anew since somebody asked.
    anew: bool,
    /// The newest term in which it led.
    term_seen: Term,
    reads_served: u64,
}

/// What ends with the process.
pub struct Up {
    /// The log.
    pub log: Log,
    /// Its snapshots, if it keeps any.
    pub snapshots: Option<SnapshotStore>,
    /// The way in.
    pub handle: HostHandle<Observed>,
    /// The read side.
    pub store: Arc<Store>,
    /// The lessor.
    pub lessor: Lessor,
    tasks: TaskQueue,
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
            anew: false,
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

    /// Whether a start has begun its log anew since the last call.
    pub fn take_anew(&mut self) -> bool {
        std::mem::take(&mut self.anew)
    }

    /// All files of log and snapshots, by their paths.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut dirs = vec![LOG_DIR.to_owned(), SNAP_DIR.to_owned()];
        while let Some(dir) = dirs.pop() {
            for name in self.fs.list(dir.as_ref()).unwrap_or_default() {
                let path = format!("{dir}/{name}");
                if self.fs.file_len(&path).is_ok() {
                    files.push(path);
                } else {
                    dirs.push(path);
                }
            }
        }
        files
    }

    /// Bytes of all files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let files = self.files();
        let sizes = files.iter().map(|path| self.fs.file_len(path));
        sizes.map(|len| len.unwrap_or(0)).sum()
    }

    /// True when long work waits to be done.
    #[must_use]
    pub fn has_task(&self) -> bool {
        self.up.as_ref().is_some_and(|up| !up.tasks.is_empty())
    }

    /// Does the oldest piece of long work.
    pub fn run_task(&self) {
        let task = self.up().tasks.take();
        if let Some(task) = task {
            task();
        }
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

    /// The membership in force here.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        let membership = self.up().core.membership(GROUP);
        membership.expect("the host has the group")
    }

    /// The membership as of the applied index.
    #[must_use]
    pub fn applied_membership(&self) -> Membership {
        let machine = self.up().core.machine(GROUP);
        let applied = machine.expect("the host has the group").applied();
        applied.membership.map_or_else(
            || Membership::of_voters(self.settings.voters.iter().copied()),
            |(_, membership)| membership,
        )
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
