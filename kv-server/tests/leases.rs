//! Leases through the real host, log, state machine and lessor, on one thread, a simulated disk and simulated time: what
//! expiry does to keys and revisions, and what a crash leaves of a lease's time.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]
#![expect(
    clippy::print_stdout,
    reason = "a failing run must name the seed that reproduces it"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kv_server::engine::memory::MemoryEngine;
use kv_server::lease::{Lessor, Renewal};
use kv_server::mvcc::{
    CommandOutput, EventKind, EventSink, KvOptions, KvStateMachine, RevisionEvents, Sinks, Store,
};
use kv_server::pb::command::{Command, LeaseCheckpoint, LeaseGrant, command::Op, lease_checkpoint};
use kv_server::pb::etcdserverpb::{PutRequest, RangeRequest};
use multiraft::{HostCore, HostError, HostHandle, HostOptions};
use prost::Message;
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::{CrashKind, Rng};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, StoreId};
use raft_node::core::{Config, Membership};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Entry, EntryKind, Index, StateMachine, Term, TickContext};

const GROUP: GroupId = GroupId(1);
const ME: NodeId = NodeId(1);
/// Ticks.
const SECOND: u64 = 100;
/// A lease may end late by this: half a second on top of its time, and what the next tick takes.
const LATE: u64 = 70;

#[derive(Default)]
struct Heard(Mutex<Vec<Arc<RevisionEvents>>>);

impl EventSink for Heard {
    fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        self.0.lock().unwrap().extend_from_slice(revisions);
    }

    fn compacted(&self, _: i64) {}
}

struct Node {
    fs: SimFs,
    engine: MemoryEngine,
    log: Log,
    core: HostCore<KvStateMachine>,
    handle: HostHandle<KvStateMachine>,
    lessor: Arc<Lessor>,
    store: Arc<Store>,
    heard: Arc<Heard>,
    /// Ticks since this process started.
    now: u64,
}

impl Node {
    fn open(fs: SimFs, engine: MemoryEngine) -> Self {
        let mut options = LogOptions::new("/log", StoreId(5));
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        let (log, _) = Log::open(fs.shared(), options).unwrap();
        bootstrap(&log, GROUP, 1, &Membership::of_voters([ME])).unwrap();
        let core = Config {
            id: ME,
            group: GROUP,
            ..Config::default()
        };
        let config = GroupConfig {
            core: core.validate().unwrap(),
            catch_up_entries: 3,
        };
        let (lessor, heard) = (Arc::new(Lessor::new()), Arc::<Heard>::default());
        let sinks = Sinks {
            events: heard.clone(),
            leases: lessor.clone(),
        };
        let (machine, store) =
            KvStateMachine::open(Arc::new(engine.clone()), KvOptions::default(), sinks).unwrap();
        let group = Group::open(GROUP, config, log.clone(), machine).unwrap();
        let options = HostOptions {
            snapshot_entries: 8,
            ..HostOptions::default()
        };
        let (outbox, wake) = (Box::new(()), Box::new(|| {}));
        let (core, handle) = HostCore::new(log.clone(), vec![group], options, outbox, wake);
        let mut node = Self {
            fs,
            engine,
            log,
            core,
            handle,
            lessor,
            store,
            heard,
            now: 0,
        };
        node.settle();
        node
    }

    /// The next process, after a crash that loses what the kind says and all but some batches of the engine.
    fn crash(self, kind: CrashKind, keep_batches: usize) -> Self {
        let engine = self.engine.crash(keep_batches);
        self.fs.crash(kind);
        let mut node = Self::open(self.fs, engine);
        // The lessor starts to count at its next tick.
        node.pass(10);
        node
    }

    /// Turns until nothing is left to do, with the disk in between. Returns when the host asks for its next turn.
    fn settle(&mut self) -> Option<u64> {
        for _ in 0..200 {
            let turn = self.core.turn(self.now).unwrap();
            let wrote = self.log.drive().unwrap();
            if !turn.busy && !wrote && turn.unsynced.is_none() {
                return turn.deadline;
            }
        }
        panic!("the host does not come to rest");
    }

    /// Lets time pass, asleep until the ticks that the host asks for.
    fn pass(&mut self, ticks: u64) {
        let end = self.now + ticks;
        while self.now < end {
            let due = self.settle().unwrap_or(u64::MAX);
            if !self.store.leases().is_empty() {
                assert!(due <= self.now + 10, "leases need ticks");
            }
            self.now = due.clamp(self.now + 1, end);
        }
        self.settle();
    }

    fn propose(&mut self, op: Op) -> CommandOutput {
        let outcome: Arc<Mutex<Option<Result<CommandOutput, HostError>>>> = Arc::default();
        let seen = Arc::clone(&outcome);
        let reply = Box::new(move |result| *seen.lock().unwrap() = Some(result));
        let payload = Command { op: Some(op) }.encode_to_vec().into();
        self.handle.propose(GROUP, payload, reply);
        self.settle();
        outcome.lock().unwrap().take().unwrap().unwrap()
    }

    fn grant(&mut self, id: i64, ttl: i64) {
        self.propose(Op::LeaseGrant(LeaseGrant { id, ttl }))
            .unwrap();
    }

    fn put(&mut self, key: &str, lease: i64) {
        let put = PutRequest {
            key: key.to_owned().into(),
            lease,
            ..Default::default()
        };
        self.propose(Op::Put(put)).unwrap();
    }

    /// What the front end does; false when there is no such lease.
    fn keep_alive(&mut self, id: i64) -> bool {
        let mut settled = 0;
        assert!(self.handle.read_now(GROUP), "a sole voter that has settled");
        loop {
            match self.lessor.renew(id, settled) {
                Renewal::Renewed { .. } => return true,
                Renewal::NotFound => return false,
                Renewal::NotLeading => panic!("it leads, and was ticked since"),
                Renewal::Unsettled { granted, seen } => {
                    let clear = lease_checkpoint::Item {
                        id,
                        granted_index: granted.0,
                        remaining_ttl: 0,
                    };
                    let items = vec![clear];
                    self.propose(Op::LeaseCheckpoint(LeaseCheckpoint { items }))
                        .unwrap();
                    settled = seen;
                }
            }
        }
    }

    fn count(&self, prefix: &str) -> i64 {
        let request = RangeRequest {
            key: prefix.to_owned().into(),
            range_end: format!("{prefix}~").into(),
            ..Default::default()
        };
        self.store.range(&request).unwrap().count
    }

    fn left(&self, id: i64) -> Option<i64> {
        self.lessor.time_to_live(id).map(|(_, left)| left)
    }
}

fn start(seed: u64) -> Node {
    let mut node = Node::open(SimFs::new(seed), MemoryEngine::new());
    node.pass(10);
    node
}

#[test]
fn expiry_of_a_lease_with_a_thousand_keys_is_one_revision() {
    let mut node = start(1);
    node.grant(5, 3);
    node.grant(6, 3);
    node.put("other", 6);
    for at in 0..1_000 {
        node.put(&format!("key{at:04}"), 5);
    }
    node.pass(3 * SECOND);
    assert_eq!(node.count("key"), 1_000);
    assert!(node.keep_alive(6));
    node.pass(LATE);
    assert_eq!((node.count("key"), node.count("other")), (0, 1));
    assert_eq!((node.store.lease(5), node.left(5)), (None, None));
    assert_eq!(node.store.revision(), 1_003, "1,001 puts and one expiry");
    let heard = node.heard.0.lock().unwrap();
    let last = heard.last().unwrap();
    assert_eq!((last.revision, last.events.len()), (1_003, 1_000));
    let keys = last.events.iter().map(|event| &event.kv.key);
    assert!(keys.is_sorted());
    assert!(last.events.iter().all(|e| e.kind == EventKind::Delete));
}

#[test]
fn thousand_leases_that_end_together_all_end() {
    let mut node = start(2);
    for id in 1..=1_000 {
        node.grant(id, 2);
        if id % 10 == 0 {
            node.put(&format!("key{id:04}"), id);
        }
    }
    let granted = node.store.revision();
    node.pass(2 * SECOND + LATE);
    assert!(node.store.leases().is_empty());
    assert_eq!(
        (node.count("key"), node.store.revision()),
        (0, granted + 100),
        "a revision for each lease that had keys"
    );
}

#[test]
fn restart_keeps_leases_with_the_time_of_their_checkpoint() {
    for (kind, keep) in [
        (CrashKind::Process, usize::MAX),
        (CrashKind::Process, 0),
        (CrashKind::Power, 3),
        (CrashKind::Power, 0),
    ] {
        let mut node = start(3);
        for id in [5, 6] {
            node.grant(id, 60);
            node.put(&format!("key{id}"), id);
        }
        node.pass(20 * SECOND);
        assert!(node.keep_alive(6));
        node.pass(15 * SECOND);
        assert_eq!((node.left(5), node.left(6)), (Some(25), Some(45)));
        let mut node = node.crash(kind, keep);
        // Recorded just now; the other one had been renewed and needs no record.
        assert_eq!((node.left(5), node.left(6)), (Some(26), Some(60)));
        node.pass(25 * SECOND);
        assert_eq!(node.count("key"), 2, "nothing ends early");
        node.pass(SECOND + LATE);
        assert_eq!((node.left(5), node.count("key")), (None, 1));
        node.pass(34 * SECOND);
        assert_eq!(node.count("key"), 0);
    }
}

#[test]
fn renewal_after_a_checkpoint_survives_a_crash() {
    let mut node = start(4);
    node.grant(5, 60);
    node.pass(26 * SECOND);
    assert_eq!(node.store.lease(5).unwrap().remaining_ttl, Some(36));
    assert!(node.keep_alive(5));
    assert_eq!(node.store.lease(5).unwrap().remaining_ttl, None);
    let mut node = node.crash(CrashKind::Power, 0);
    assert_eq!(node.left(5), Some(60));
    node.pass(59 * SECOND);
    assert!(node.keep_alive(5));
}

#[test]
fn restarts_alone_do_not_keep_a_lease() {
    let mut node = start(5);
    node.grant(5, 60);
    for life in 0..4 {
        if node.left(5).is_none() {
            assert_eq!(life, 2, "all but a few seconds of each life count");
            return;
        }
        node.pass(35 * SECOND);
        node = node.crash(CrashKind::Process, 0);
    }
    panic!("{:?} left", node.left(5));
}

#[test]
fn crash_gives_back_two_fifths_of_a_lease_at_most() {
    for passed in [4, 7, 9, 12, 16, 19] {
        let mut node = start(7);
        node.grant(5, 20);
        node.pass(passed * SECOND);
        let left = node.left(5).unwrap();
        let node = node.crash(CrashKind::Process, 0);
        let given_back = node.left(5).unwrap() - left;
        let most = if passed < 9 { passed.cast_signed() } else { 3 };
        assert!((0..=most).contains(&given_back), "{given_back} at {passed}");
    }
}

#[test]
fn host_that_was_suspended_gives_waiting_keepalives_a_chance() {
    let mut node = start(6);
    node.grant(5, 5);
    node.pass(SECOND);
    node.now += 3_600 * SECOND;
    node.settle();
    assert!(node.keep_alive(5));
    node.pass(5 * SECOND);
    assert!(node.store.lease(5).is_some());
    node.pass(LATE + SECOND);
    assert!(node.store.lease(5).is_none());
}

/// A new leader knows its commit before it has applied it: an earlier leader's renewal may lie in between.
#[test]
fn lessor_counts_only_once_an_entry_of_the_own_term_is_applied() {
    let lessor = Arc::new(Lessor::new());
    let sinks = Sinks {
        events: Arc::<Heard>::default(),
        leases: lessor.clone(),
    };
    let engine = Arc::new(MemoryEngine::new());
    let (mut machine, _) = KvStateMachine::open(engine, KvOptions::default(), sinks).unwrap();
    let apply = |machine: &mut KvStateMachine, index, term, payload: Vec<u8>| {
        let entry = Entry {
            index: Index(index),
            term: Term(term),
            kind: EntryKind::Normal,
            payload: payload.into(),
        };
        machine.apply(&[entry], None, &mut Vec::new()).unwrap();
    };
    let tick = |machine: &mut KvStateMachine, tick| {
        let leading = Some(Term(2));
        machine.tick(TickContext { tick, leading }, &mut Vec::new());
    };
    let grant = Op::LeaseGrant(LeaseGrant { id: 5, ttl: 60 });
    apply(
        &mut machine,
        1,
        1,
        Command { op: Some(grant) }.encode_to_vec(),
    );
    tick(&mut machine, 1);
    assert_eq!(lessor.renew(5, 0), Renewal::NotLeading);
    apply(&mut machine, 2, 2, Vec::new());
    tick(&mut machine, 2);
    assert_eq!(lessor.renew(5, 0), Renewal::Renewed { ttl: 60 });
}

/// Clients grant and renew at random, and the machine crashes; each lease lasts as long as its client was told.
fn random_life(seed: u64) {
    println!(
        "reproduce: cargo test -p kv-server --test leases random_lives, which failed at seed {seed}"
    );
    let mut rng = Rng::new(seed);
    let mut node = start(seed);
    // On a clock that crashes do not touch.
    let (mut wall, mut next_id) = (0, 1);
    let mut held: BTreeMap<i64, (u64, i64)> = BTreeMap::new();
    for _ in 0..150 {
        let ids: Vec<i64> = held.keys().copied().collect();
        match rng.below(10) {
            0 | 1 => {
                let ttl = 2 + rng.below(40).cast_signed();
                node.grant(next_id, ttl);
                node.put(&format!("key{next_id:04}"), next_id);
                held.insert(next_id, (wall, ttl));
                next_id += 1;
            }
            2..=4 if !ids.is_empty() => {
                let at = usize::try_from(rng.below(ids.len() as u64)).unwrap();
                let id = ids[at];
                if node.keep_alive(id) {
                    held.get_mut(&id).unwrap().0 = wall;
                } else {
                    let (since, ttl) = held.remove(&id).unwrap();
                    assert!(wall - since >= ttl.unsigned_abs() * SECOND, "lease {id}");
                }
            }
            5 => {
                let kind = if rng.below(2) == 0 {
                    CrashKind::Process
                } else {
                    CrashKind::Power
                };
                node = node.crash(kind, usize::try_from(rng.below(20)).unwrap());
                wall += 10;
            }
            _ => {
                let ticks = 1 + rng.below(12 * SECOND);
                node.pass(ticks);
                wall += ticks;
            }
        }
        for (id, (since, ttl)) in &held {
            if wall - since < ttl.unsigned_abs() * SECOND {
                assert!(node.store.lease(*id).is_some(), "lease {id} ended early");
                assert_eq!(node.count(&format!("key{id:04}")), 1);
            }
        }
    }
    node.pass(42 * SECOND + LATE);
    assert_eq!((node.store.leases().len(), node.count("key")), (0, 0));
}

#[test]
fn random_lives_with_crashes_end_each_lease_and_none_early() {
    for seed in 0..30 {
        random_life(seed);
    }
}
