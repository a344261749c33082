//! A store with one member, under random clients, disk faults and crashes.
//!
//! What clients do is drawn from one generator, what goes wrong from another: a run that is cut short at another
//! operation does the same up to there.

use std::collections::BTreeMap;

use kv_server::engine::Engine;
use kv_server::mvcc::LeaseSink;
use kv_server::pb::etcdserverpb::RangeRequest;
use raft_log::vfs::sim::{CrashKind, Fault, Rng};
use raft_log::{Index, NodeId};

use super::node::{Node, Stopped};
use super::oracle::{Oracle, Shared, everything};
use super::settings::Settings;
use super::workload;

/// Crashes that hit one after the other, before the store is started again.
pub type Crash = &'static [CrashKind];
/// The process is gone; the page cache is not.
pub const PROCESS: Crash = &[CrashKind::Process];
/// The machine is gone.
pub const POWER: Crash = &[CrashKind::Power];
/// The process, and then the machine before anything was started again.
pub const PROCESS_THEN_POWER: Crash = &[CrashKind::Process, CrashKind::Power];

const ME: NodeId = NodeId(1);
/// Crashes in a row while the store starts.
const CRASHES_IN_RECOVERY_MAX: u32 = 3;
/// Operations of the disk that a start takes at most, roughly.
const RECOVERY_OPS: u64 = 40;
/// Ticks within which history compaction is done.
const COMPACTION_TICKS_MAX: u64 = 20_000;

/// Counts what happened in a run, so that a test can tell whether it reached what it is for.
pub type Coverage = BTreeMap<&'static str, u64>;

/// One store, its clients and what they know.
pub struct Solo {
    /// The member.
    pub node: Node,
    /// What is known.
    pub oracle: Shared<Oracle>,
    /// What happened.
    pub coverage: Coverage,
    clients: Rng,
    chaos: Rng,
    now: u64,
    crashes: &'static [Crash],
    /// Injected errors that may not have struck yet.
    faults: u32,
    /// Reads fail as well. Such a failure stops the host, but not the log.
    reads_fail: bool,
    /// Syncs of directories fail as well. A kernel that cannot sync one stops serving the file system, so that only a
    /// restart of the machine gets any further: each crash is a power loss then.
    dirs_fail: bool,
    faults_armed: bool,
    full: bool,
}

impl Solo {
    /// A store with an empty disk. `variant` changes what goes wrong, not what clients do; crashes are drawn from
    /// `crashes`.
    #[must_use]
    pub fn new(seed: u64, variant: u64, crashes: &'static [Crash]) -> Self {
        let mut clients = Rng::new(seed);
        let mut chaos = Rng::new(seed.rotate_left(32) ^ variant.wrapping_mul(0x9e37_79b9));
        let oracle = Shared::new(Oracle::default());
        let settings = settings(&mut clients, vec![ME]);
        let node = Node::new(
            ME,
            settings,
            chaos.next_u64(),
            oracle.clone(),
            Box::new(|| Box::new(())),
        );
        Self {
            node,
            oracle,
            coverage: Coverage::new(),
            clients,
            now: 0,
            crashes,
            reads_fail: chaos.chance(1, 3),
            dirs_fail: chaos.chance(1, 3),
            chaos,
            faults: 0,
            faults_armed: false,
            full: false,
        }
    }

    /// Starts for the first time and runs for some rounds. False when a crash or a fault ended it.
    ///
    /// # Panics
    /// When it stops for no reason, or anything is not as the oracle knows it.
    pub fn run(&mut self, rounds: u32) -> bool {
        let started = self.node.start(self.now);
        if let Err(error) = started {
            self.excuse(&error);
            return false;
        }
        self.rounds(rounds)
    }

    /// Goes on for some rounds. False when a crash or a fault ended it.
    ///
    /// # Panics
    /// As [`Solo::run`].
    pub fn rounds(&mut self, rounds: u32) -> bool {
        for _ in 0..rounds {
            if let Err(error) = self.round() {
                self.stop(&error);
                return false;
            }
        }
        true
    }

    /// Sends commands and waits for them, without letting time pass: nothing asks the engine to persist.
    ///
    /// # Panics
    /// When the store stops.
    pub fn burst(&mut self, commands: u32) {
        for _ in 0..commands {
            self.send();
        }
        let settled = self.node.settle(self.now);
        assert!(settled.is_ok_and(|settled| settled), "it runs and answers");
    }

    /// Starts after a crash and reads in each turn until everything is replayed. Returns the turns in which a read was
    /// served; that they saw what was acknowledged is checked by the oracle.
    ///
    /// # Panics
    /// When the store stops.
    pub fn read_while_replaying(&mut self) -> u64 {
        assert!(self.attempt(), "nothing keeps it from starting");
        let last = self.oracle.get().last();
        let mut served = 0;
        while self.node.applied() < last {
            self.node.read(everything());
            let before = self.node.reads_served();
            self.node.turn(self.now).expect("the disk works");
            self.node.read(everything());
            self.node.drive().expect("the disk works");
            served += u64::from(self.node.reads_served() > before);
        }
        served
    }

    /// Cuts the run short within the next operations of the disk.
    pub fn arm_crash(&mut self, ops_max: u64) {
        self.node.fs.fail_after(self.chaos.below(ops_max));
    }

    /// Lets an operation of the disk fail soon.
    pub fn arm_fault(&mut self) {
        let fault = match self.chaos.below(6) {
            0 | 1 => Fault::Sync,
            2 | 3 => Fault::Write,
            4 if self.dirs_fail => Fault::SyncDir,
            5 if self.reads_fail => Fault::Read,
            _ => Fault::Sync,
        };
        let pass = self.chaos.below(12);
        for at in 0..1 + self.chaos.below(2) {
            self.node.fs.fail_nth(fault, pass + at);
            self.faults += 1;
        }
        self.faults_armed = true;
        self.count("faults armed");
    }

    /// Leaves little room on the disk.
    pub fn fill_disk(&mut self) {
        if !self.node.fs.is_down() {
            let used = self.node.disk_bytes();
            let room = self.chaos.below(40_000);
            self.node.fs.set_capacity(Some(used + room));
            self.full = true;
            self.count("disk filled");
        }
    }

    /// Makes room again; what waited for it goes on.
    ///
    /// # Panics
    /// When a command that waited is never answered.
    pub fn free_disk(&mut self) {
        self.node.fs.set_capacity(None);
        self.full = false;
        if !self.node.is_up() {
            return;
        }
        // The host looks for space once per tick.
        self.now += 1;
        match self.node.settle(self.now) {
            Ok(settled) => {
                assert!(settled, "something waits although the disk has room");
                self.nobody_waits();
            }
            Err(error) => self.stop(&error),
        }
    }

    /// Crashes in one of the ways given, and loses some of what the engine has not persisted.
    pub fn crash(&mut self) {
        let drawn = self.crashes[self.chaos.below(self.crashes.len() as u64) as usize];
        let crash = if self.dirs_fail && self.faults_armed {
            POWER
        } else {
            drawn
        };
        let unpersisted = self.node.engine.unpersisted();
        let keep = match self.chaos.below(4) {
            0 => 0,
            1 => unpersisted,
            _ => self.chaos.below(unpersisted as u64 + 1) as usize,
        };
        if keep < unpersisted {
            self.count("engine batches lost");
        }
        for kind in crash {
            self.node.crash(*kind, keep);
        }
        self.count("crashes");
    }

    /// Starts again after a crash, and checks what is there. More crashes may hit the start itself.
    ///
    /// # Panics
    /// When the store does not come back, or not as the oracle knows it.
    pub fn recover(&mut self) {
        for attempt in 0.. {
            if attempt < CRASHES_IN_RECOVERY_MAX && self.chaos.chance(1, 3) {
                self.arm_crash(RECOVERY_OPS);
            }
            if self.attempt() {
                return;
            }
        }
    }

    /// Starts after a crash with a crash armed already; false when that one struck.
    ///
    /// # Panics
    /// As [`Solo::recover`].
    pub fn attempt(&mut self) -> bool {
        let started = self.node.start(self.now);
        let found = started.and_then(|()| self.node.log_entries());
        match found {
            Ok((entries, last)) => {
                let base = entries.first().map_or(last, |first| first.index.prev());
                self.recovered(base, last);
                self.oracle.get().recovered(&entries, last);
                self.node.check_state();
                true
            }
            Err(error) => {
                if self.full && !self.node.fs.is_down() {
                    self.node.fs.set_capacity(None);
                    self.full = false;
                    self.count("starts that a full disk refused");
                } else {
                    self.excuse(&error);
                }
                self.count("starts that failed");
                self.crash();
                false
            }
        }
    }

    /// Ends the run in peace: everything is answered, history is compacted, a clean stop loses nothing.
    ///
    /// # Panics
    /// When any of that does not hold.
    pub fn finish(&mut self) {
        self.node.fs.set_capacity(None);
        self.full = false;
        // Faults that are still to come may end a start or a run; there are few of them.
        while let Err(error) = self.rest() {
            self.stop(&error);
            self.crash();
            self.recover();
        }
        let before = self.node.log_entries();
        let closed = self.node.up().log.close();
        if closed.is_ok() && self.node.engine.close().is_ok() {
            let applied = self.node.applied();
            self.node.crash(CrashKind::Process, 0);
            if self.attempt()
                && let (Ok(before), Ok(after)) = (before, self.node.log_entries())
            {
                assert_eq!(before, after, "a clean stop changed the log");
                assert_eq!(self.node.applied(), applied, "a clean stop lost a batch");
                self.count("clean stops");
            }
        }
        let refused = self.oracle.get().refused_for_space();
        *self.coverage.entry("refusals of a full disk").or_default() += refused;
    }

    /// Until nothing is left to do.
    fn rest(&mut self) -> Result<(), Stopped> {
        let mut ticks = 0;
        loop {
            self.now += 1;
            ticks += 1;
            let settled = self.node.settle(self.now)?;
            assert!(settled, "something waits although the disk has room");
            let store = &self.node.up().store;
            if store.finished_compact_revision() == store.compact_revision() {
                break;
            }
            assert!(ticks < COMPACTION_TICKS_MAX, "compaction does not end");
        }
        self.nobody_waits();
        self.node.check_state();
        Ok(())
    }

    fn nobody_waits(&self) {
        // Of this process: who waited for an earlier one has gone.
        let waiting = self.oracle.get().waiting();
        assert!(
            waiting.is_empty(),
            "commands {waiting:?} are never answered"
        );
    }

    fn recovered(&mut self, base: Index, last: Index) {
        let applied = self.node.applied();
        self.count("recoveries");
        if base > Index::ZERO {
            self.count("recoveries of a compacted log");
        }
        if applied < self.oracle.get().last() {
            self.count("recoveries that replay");
        }
        if last > self.oracle.get().last() {
            self.count("recoveries of unacknowledged entries");
        }
        if self.node.first_segment() > 1 {
            self.count("recoveries of a purged log");
        }
    }

    fn round(&mut self) -> Result<(), Stopped> {
        for _ in 0..1 + self.clients.below(6) {
            self.send();
        }
        self.read();
        match self.clients.below(12) {
            0 | 1 => self.node.engine.request_persist()?,
            2 => self.node.engine.persist()?,
            3 => self.expire(),
            _ => {}
        }
        self.now += match self.clients.below(6) {
            // Housekeeping comes due.
            0 => 120,
            1 | 2 => 0,
            _ => 1 + self.clients.below(10),
        };
        for _ in 0..self.clients.below(5) {
            match self.clients.below(3) {
                0 => drop(self.node.drive()?),
                1 => drop(self.node.turn(self.now)?),
                _ => {
                    self.node.turn(self.now)?;
                    self.send();
                    self.read();
                }
            }
        }
        if self.clients.chance(2, 3) {
            let settled = self.node.settle(self.now)?;
            assert!(settled || self.full, "something waits for nothing");
        }
        if self.clients.chance(1, 16) {
            self.node.check_state();
        }
        Ok(())
    }

    fn send(&mut self) {
        let (tag, op) = {
            let mut oracle = self.oracle.get();
            let tag = oracle.sent(ME, true);
            let op = workload::draw(&mut self.clients, oracle.model(), tag);
            (tag, op)
        };
        self.node.propose(tag, workload::encode(op, tag));
    }

    fn expire(&mut self) {
        let payload = {
            let mut oracle = self.oracle.get();
            let tag = oracle.sent(ME, false);
            workload::encode(workload::expiry(&mut self.clients, oracle.model()), tag)
        };
        let lessor = &self.node.up().lessor;
        lessor.propose(payload);
        assert!(lessor.next_deadline().is_some());
    }

    fn read(&mut self) {
        if !self.clients.chance(1, 3) {
            return;
        }
        let request = match self.clients.below(3) {
            0 => everything(),
            _ => RangeRequest {
                key: workload::key(&mut self.clients),
                ..RangeRequest::default()
            },
        };
        self.node.read(request);
    }

    /// It stopped while it ran: there must be a reason, and it must be for good.
    fn stop(&mut self, error: &Stopped) {
        self.excuse(error);
        if self.chaos.chance(1, 2) {
            // It has the time to answer; else nobody hears anything.
            self.node.fail(!self.reads_fail);
        }
        self.count("stops");
    }

    /// Only a crash or an injected error may stop it; a full disk may not.
    fn excuse(&mut self, error: &Stopped) {
        if self.node.fs.is_down() {
            return;
        }
        assert!(self.faults > 0, "stopped for no reason: {}", error.0);
        self.faults -= 1;
        self.count("stops by a fault");
    }

    fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }
}

/// Small and different in each run, so that every mechanism has something to do.
pub(super) fn settings(rng: &mut Rng, voters: Vec<NodeId>) -> Settings {
    let mut pick = |from: &[u64]| from[rng.below(from.len() as u64) as usize];
    Settings {
        voters,
        catch_up_entries: pick(&[0, 3, 20]),
        snapshot_entries: pick(&[4, 16, 64]),
        log_cache_bytes: pick(&[0, 4_096, 32 << 20]) as usize,
        window_bytes: pick(&[0, 4_096, 8 << 20]) as usize,
        key_cache_entries: pick(&[1, 8, 65_536]) as usize,
        compaction_step: pick(&[1, 4, 256]) as usize,
        count_worth_keys: 20_000,
        election_ticks: 10,
        heartbeat_ticks: 2,
        read_lease_ticks: 0,
        expires: false,
        forwards: false,
        message_bytes: 1 << 20,
        inflight_messages: 512,
        watch_revisions: 65_536,
        snapshots: None,
        seed: pick(&[1, 2, 3]),
    }
}
