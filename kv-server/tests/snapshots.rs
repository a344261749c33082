//! Snapshots of a keyspace through the real host, log, snapshot store and state machine, on a simulated disk and the
//! engine in memory: what is cut is what is installed, whatever crashes meanwhile.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kv_server::engine::Engine;
use kv_server::engine::memory::MemoryEngine;
use kv_server::lease::Lessor;
use kv_server::mvcc::{
    CommandOutput, CommandResult, EventSink, KvOptions, KvStateMachine, LeaseInfo, RevisionEvents,
    Sinks, Store, stamp,
};
use kv_server::pb::command::{
    Command, LeaseCheckpoint, LeaseGrant, PublishMember, SetAlarm, command::Op, lease_checkpoint,
};
use kv_server::pb::etcdserverpb::alarm_request::AlarmAction;
use kv_server::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest,
};
use multiraft::forward::{Origin, Outcomes};
use multiraft::{
    HostCore, HostError, HostHandle, HostOptions, InlineTasks, SnapshotSetup, SnapshotState, Task,
    Tasks, install, restore,
};
use prost::Message;
use raft_log::snapshot::{SnapshotOptions, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::CrashKind;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, SnapshotRef, StoreId};
use raft_node::core::{Config, Membership};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Index, StateMachine, TickContext};

const GROUP: GroupId = GroupId(1);
const ME: NodeId = NodeId(1);
const CREATION: u64 = 9;

#[derive(Default)]
struct Heard {
    revisions: Mutex<Vec<i64>>,
    jumps: Mutex<Vec<i64>>,
}

impl EventSink for Heard {
    fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        let revisions = revisions.iter().map(|events| events.revision);
        self.revisions.lock().unwrap().extend(revisions);
    }

    fn compacted(&self, _: i64) {}

    fn jumped(&self, revision: i64) {
        self.jumps.lock().unwrap().push(revision);
    }
}

/// A store whose parts are opened in the order of a start.
struct Parts {
    log: Log,
    snapshots: SnapshotStore,
    machine: KvStateMachine,
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    heard: Arc<Heard>,
}

fn options() -> KvOptions {
    KvOptions {
        cache_entries: 4,
        compaction_step: 3,
        ..KvOptions::default()
    }
}

fn start(fs: &SimFs, engine: &MemoryEngine) -> Result<Parts, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let mut log_options = LogOptions::new("/log", StoreId(5));
    log_options.io = IoMode::Inline;
    log_options.segment_bytes_min = 16 << 10;
    log_options.segment_bytes_max = 16 << 10;
    let (log, _) = Log::open(fs.shared(), log_options).map_err(|e| text(&e))?;
    let mut store_options = SnapshotOptions::new("/snap", StoreId(5));
    store_options.io = IoMode::Inline;
    store_options.chunk_bytes = 512;
    let snapshots = SnapshotStore::open_with(fs.shared(), store_options).map_err(|e| text(&e))?;
    snapshots.recover(&log).map_err(|e| text(&e))?;
    let (lessor, heard) = (Arc::new(Lessor::new()), Arc::<Heard>::default());
    let sinks = Sinks {
        events: heard.clone(),
        leases: lessor.clone(),
    };
    let (mut machine, store) =
        KvStateMachine::open(Arc::new(engine.clone()), options(), sinks).map_err(|e| text(&e))?;
    machine.install_in_steps_of(200);
    bootstrap(&log, GROUP, CREATION, &Membership::of_voters([ME])).map_err(|e| text(&e))?;
    Ok(Parts {
        log,
        snapshots,
        machine,
        store,
        lessor,
        heard,
    })
}

struct Node {
    log: Log,
    snapshots: SnapshotStore,
    core: HostCore<KvStateMachine>,
    handle: HostHandle<KvStateMachine>,
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    now: u64,
}

fn serve(parts: Parts, tasks: Arc<dyn Tasks>, catch_up_entries: u64) -> Result<Node, String> {
    let core = Config {
        id: ME,
        group: GROUP,
        ..Config::default()
    };
    let config = GroupConfig {
        core: core.validate().unwrap(),
        catch_up_entries,
    };
    let Parts {
        log,
        snapshots,
        machine,
        store,
        lessor,
        ..
    } = parts;
    let group = Group::open(GROUP, config, log.clone(), machine).map_err(|e| e.to_string())?;
    let host = HostOptions {
        snapshot_entries: 4,
        ..HostOptions::default()
    };
    let (outbox, wake) = (Box::new(()), Box::new(|| {}));
    let (mut core, handle) = HostCore::new(log.clone(), vec![group], host, outbox, wake);
    core.keep_snapshots(SnapshotSetup {
        store: snapshots.clone(),
        tasks,
        pace: None,
    });
    let mut node = Node {
        log,
        snapshots,
        core,
        handle,
        store,
        lessor,
        now: 0,
    };
    node.run()?;
    Ok(node)
}

impl Node {
    fn run(&mut self) -> Result<(), String> {
        self.now += 1;
        for _ in 0..200 {
            let turn = self.core.turn(self.now).map_err(|e| e.to_string())?;
            let wrote = self.log.drive().map_err(|e| e.to_string())?;
            if !turn.busy && !wrote && turn.unsynced.is_none() {
                return Ok(());
            }
        }
        panic!("the host does not come to rest");
    }

    fn propose(&mut self, payload: Bytes) -> CommandOutput {
        let heard = Arc::new(Mutex::new(None));
        let into = Arc::clone(&heard);
        let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
        self.handle.propose(GROUP, payload, reply);
        self.run().unwrap();
        heard.lock().unwrap().take().unwrap().unwrap()
    }

    fn snapshot(&mut self) -> Arc<Mutex<Option<Result<SnapshotRef, HostError>>>> {
        let heard = Arc::new(Mutex::new(None));
        let into = Arc::clone(&heard);
        let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
        self.handle.make_snapshot(GROUP, reply);
        self.run().unwrap();
        heard
    }
}

fn encode(op: Op) -> Bytes {
    Command { op: Some(op) }.encode_to_vec().into()
}

fn put(key: &str, value: &str, lease: i64) -> Bytes {
    encode(Op::Put(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        lease,
        ..PutRequest::default()
    }))
}

fn forwarded(member: u64, sequence: u64, payload: &Bytes) -> Bytes {
    let origin = Origin {
        member: NodeId(member),
        boot: 2,
        sequence,
        lowest_open: 1,
    };
    stamp(&origin, payload)
}

/// Something in every table: live and deleted keys, history above and below a floor, a lease with keys and a checkpoint,
/// forwarded commands, a member, an alarm.
fn fill(node: &mut Node) {
    node.propose(encode(Op::LeaseGrant(LeaseGrant { id: 7, ttl: 60 })))
        .unwrap();
    for round in 0..3 {
        for key in ["a", "b\0b", "c"] {
            let value = format!("{key} of round {round} {}", "x".repeat(60));
            let lease = if key == "c" { 7 } else { 0 };
            node.propose(put(key, &value, lease)).unwrap();
        }
    }
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..DeleteRangeRequest::default()
    };
    node.propose(encode(Op::DeleteRange(delete))).unwrap();
    for sequence in [1, 3] {
        let command = forwarded(8, sequence, &put("d", "forwarded", 0));
        node.propose(command).unwrap();
    }
    let member = PublishMember {
        id: ME.0,
        name: "one".to_owned(),
        ..PublishMember::default()
    };
    node.propose(encode(Op::PublishMember(member))).unwrap();
    let alarm = SetAlarm {
        request: Some(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: ME.0,
            alarm: AlarmType::Corrupt.into(),
        }),
        automatic: false,
    };
    node.propose(encode(Op::SetAlarm(alarm))).unwrap();
    let granted_index = node.store.lease(7).unwrap().granted.0;
    let items = vec![lease_checkpoint::Item {
        id: 7,
        granted_index,
        remaining_ttl: 33,
    }];
    node.propose(encode(Op::LeaseCheckpoint(LeaseCheckpoint { items })))
        .unwrap();
    let compact = CompactionRequest {
        revision: 6,
        physical: false,
    };
    node.propose(encode(Op::Compact(compact))).unwrap();
}

fn new_node(fs: &SimFs, engine: &MemoryEngine) -> Node {
    let parts = start(fs, engine).unwrap();
    serve(parts, Arc::new(InlineTasks), 100).unwrap()
}

/// A store that is ahead, its newest snapshot, and the hash of what is in it.
fn leader() -> (Node, SnapshotRef, u64) {
    let mut node = new_node(&SimFs::new(1), &MemoryEngine::new());
    fill(&mut node);
    let made = node.snapshot();
    let snapshot = made.lock().unwrap().take().unwrap().unwrap();
    let hash = node.store.state_hash().unwrap();
    (node, snapshot, hash)
}

/// A store that lags: a few entries of its own, all of it durable.
fn follower(fs: &SimFs) -> MemoryEngine {
    let engine = MemoryEngine::new();
    let mut node = new_node(fs, &engine);
    node.propose(encode(Op::LeaseGrant(LeaseGrant { id: 5, ttl: 60 })))
        .unwrap();
    for key in ["a", "z", "zz"] {
        node.propose(put(key, "old", 5)).unwrap();
    }
    node.log.close().unwrap();
    engine.persist().unwrap();
    engine.reopen()
}

/// What the transport does: chunk by chunk, then the reference with the log's new base.
fn receive(from: &Node, snapshot: &SnapshotRef, to: &Parts) -> Result<SnapshotRef, String> {
    let text = |error: raft_log::snapshot::SnapshotError| error.to_string();
    let mut sender = from.snapshots.send(GROUP, snapshot).map_err(text)?;
    let mut receiver = to
        .snapshots
        .receive(sender.manifest(), CREATION)
        .map_err(text)?;
    sender.seek(receiver.next()).map_err(text)?;
    while let Some((number, chunk)) = sender.next_chunk().map_err(text)? {
        receiver.push(number, &chunk).map_err(text)?;
    }
    let pending = receiver.finish().map_err(text)?;
    let installed = to.snapshots.install(&to.log, pending).map_err(text)?;
    Ok(installed.snapshot)
}

/// Ticks until nothing is left to do.
fn tick(machine: &mut KvStateMachine) {
    tick_from(machine, 1);
}

fn tick_from(machine: &mut KvStateMachine, first: u64) {
    for tick in first..10_000 {
        if machine.next_deadline().is_none_or(|at| at > tick) {
            return;
        }
        let leading = None;
        machine.tick(TickContext { tick, leading }, &mut Vec::new());
    }
    panic!("the state machine does not come to rest");
}

/// The generations that have keys in the engine, the meta record's aside.
fn generations(engine: &MemoryEngine) -> Vec<u32> {
    let snapshot = engine.snapshot();
    let mut found: Vec<u32> = snapshot
        .range(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded)
        .map(|pair| pair.unwrap().0)
        .filter(|key| key[0] != 6)
        .map(|key| u32::from_be_bytes(key[9..13].try_into().unwrap()))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn snapshot_installed_elsewhere_has_the_state_hash_of_where_it_was_made() {
    let (leader, snapshot, hash) = leader();
    let fs = SimFs::new(2);
    let engine = follower(&fs);
    let mut to = start(&fs, &engine).unwrap();
    assert_ne!(to.store.state_hash().unwrap(), hash);
    let outcomes = Arc::new(Outcomes::<CommandOutput>::new(ME, 1));
    to.machine.report_forwarded(outcomes);
    let here = receive(&leader, &snapshot, &to).unwrap();
    install(&mut to.machine, &to.snapshots, GROUP, &here).unwrap();

    assert_eq!(to.store.state_hash().unwrap(), hash);
    let (theirs, ours) = (leader.store.hash_kv(0), to.store.hash_kv(0));
    assert_eq!(ours, theirs);
    assert_eq!(to.store.revision(), leader.store.revision());
    assert_eq!(to.store.compact_revision(), 6);
    let lease = to.store.lease(7).unwrap();
    assert_eq!((lease.ttl, lease.remaining_ttl), (60, Some(33)));
    assert_eq!(to.store.member(ME).unwrap().name, "one");
    assert_eq!(to.store.lease(5), None);
    assert_eq!(to.store.lease_keys(7).unwrap(), [Bytes::from("c")]);
    assert_eq!(
        to.store.history(8, usize::MAX).unwrap().revisions,
        leader.store.history(8, usize::MAX).unwrap().revisions
    );
    assert_eq!(*to.heard.jumps.lock().unwrap(), [leader.store.revision()]);
    let _: Option<(i64, i64)> = to.lessor.time_to_live(7);

    // What it replaced goes, and what follows the snapshot is applied on top of it.
    assert_eq!(generations(&engine).len(), 2);
    tick(&mut to.machine);
    assert_eq!(generations(&engine), [u32::try_from(here.number).unwrap()]);
    assert_eq!(to.store.state_hash().unwrap(), hash);
    let mut node = serve(to, Arc::new(InlineTasks), 100).unwrap();
    let mut from = leader;
    for node in [&mut node, &mut from] {
        let again = node.propose(forwarded(8, 3, &put("d", "twice", 0)));
        assert_eq!(
            again,
            Ok(CommandResult::None),
            "the duplicate table came along"
        );
        node.propose(forwarded(8, 2, &put("d", "new", 7))).unwrap();
        node.propose(encode(Op::LeaseRevoke(LeaseRevokeRequest { id: 7 })))
            .unwrap();
    }
    assert_eq!(node.store.revision(), from.store.revision());
    let read = node.store.range(&RangeRequest {
        key: "c".into(),
        ..RangeRequest::default()
    });
    assert_eq!(read.unwrap().kvs, []);
    assert_eq!(node.lessor.time_to_live(7), None);
}

/// Replays a start: restores where the log says so, and checks that the state is the old one or the snapshot's, whole.
fn restart(fs: &SimFs, engine: &MemoryEngine, old: u64, new: u64, place: &str) -> (Parts, bool) {
    let mut parts = start(fs, engine).unwrap_or_else(|error| panic!("{place}: {error}"));
    let base = parts.log.group(GROUP).unwrap().base.index;
    let before = parts.machine.applied().index;
    let restored = restore(&mut parts.machine, &parts.log, &parts.snapshots, GROUP)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert_eq!(restored.is_some(), before < base, "{place}");
    let is_new = base > Index::ZERO;
    let expected = if is_new { new } else { old };
    assert_eq!(parts.store.state_hash(), Ok(expected), "{place}");
    tick(&mut parts.machine);
    assert_eq!(parts.store.state_hash(), Ok(expected), "{place}");
    let left = generations(engine);
    assert_eq!(left.len(), 1, "{place}: {left:?}");
    (parts, is_new)
}

/// The steps of an install, in order, until one fails.
fn install_all(
    from: &Node,
    snapshot: &SnapshotRef,
    fs: &SimFs,
    engine: &MemoryEngine,
) -> Result<(), String> {
    let mut to = start(fs, engine)?;
    restore(&mut to.machine, &to.log, &to.snapshots, GROUP).map_err(|e| e.to_string())?;
    let here = receive(from, snapshot, &to)?;
    install(&mut to.machine, &to.snapshots, GROUP, &here).map_err(|e| e.to_string())?;
    engine.request_persist().map_err(|e| e.to_string())?;
    tick(&mut to.machine);
    Ok(())
}

#[test]
fn crash_at_every_disk_operation_leaves_the_old_state_or_the_new_one() {
    let (leader, snapshot, new) = leader();
    for kind in [CrashKind::Power, CrashKind::Process] {
        let mut outcomes = [0, 0];
        for n in 0.. {
            let mut finished = false;
            // Of the engine's batches a crash may take all, some, or none.
            for survive in 0..3 {
                let place = format!("{kind:?}, operation {n}, {survive} of 2 survive");
                let fs = SimFs::new(n + 1);
                let engine = follower(&fs);
                let old = start(&fs, &engine).unwrap().store.state_hash().unwrap();
                fs.fail_after(n);
                finished = install_all(&leader, &snapshot, &fs, &engine).is_ok();
                fs.crash(kind);
                let engine = engine.crash(engine.unpersisted() * survive / 2);
                let (parts, is_new) = restart(&fs, &engine, old, new, &place);
                outcomes[usize::from(is_new)] += 1;
                assert!(is_new || !finished, "{place}");
                if !is_new {
                    drop(parts);
                    install_all(&leader, &snapshot, &fs, &engine).unwrap();
                    let (parts, is_new) = restart(&fs, &engine, old, new, &place);
                    assert!(is_new, "{place}");
                    serve(parts, Arc::new(InlineTasks), 100).unwrap();
                } else {
                    serve(parts, Arc::new(InlineTasks), 100).unwrap();
                }
            }
            if finished {
                assert!(n > 40, "only {n} operations were cut short");
                break;
            }
        }
        assert!(outcomes[0] > 30 && outcomes[1] >= 3, "{outcomes:?}");
    }
}

/// The engine's own crash points: loading beside, the flip, and the removal of what was replaced.
#[test]
fn crash_at_every_engine_batch_leaves_the_old_state_or_the_new_one() {
    let (leader, snapshot, new) = leader();
    let mut total = usize::MAX;
    let mut keep = 0;
    while keep <= total {
        for again in [false, true] {
            let place = format!("{keep} batches, again {again}");
            let fs = SimFs::new(1);
            let engine = follower(&fs);
            let old = start(&fs, &engine).unwrap().store.state_hash().unwrap();
            let mut to = start(&fs, &engine).unwrap();
            let here = receive(&leader, &snapshot, &to).unwrap();
            install(&mut to.machine, &to.snapshots, GROUP, &here).unwrap();
            tick(&mut to.machine);
            drop(to);
            fs.crash(CrashKind::Process);
            total = engine.unpersisted();
            let mut engine = engine.crash(keep);
            if again {
                // The restore is cut short as well.
                let mut parts = start(&fs, &engine).unwrap();
                restore(&mut parts.machine, &parts.log, &parts.snapshots, GROUP).unwrap();
                drop(parts);
                fs.crash(CrashKind::Power);
                engine = engine.crash(engine.unpersisted() / 2);
            }
            let (parts, is_new) = restart(&fs, &engine, old, new, &place);
            assert!(is_new, "{place}");
            serve(parts, Arc::new(InlineTasks), 100).unwrap();
        }
        keep += 1;
    }
    assert!(total > 10, "only {total} batches");
}

/// Runs tasks when the test says so.
#[derive(Default)]
struct Later(Mutex<Vec<Task>>);

impl Tasks for Later {
    fn run(&self, task: Task) -> Result<(), Task> {
        self.0.lock().unwrap().push(task);
        Ok(())
    }
}

#[test]
fn snapshot_in_the_making_is_of_its_cut_and_holds_the_log() {
    let (fs, engine) = (SimFs::new(3), MemoryEngine::new());
    let tasks = Arc::new(Later::default());
    let parts = start(&fs, &engine).unwrap();
    let mut node = serve(parts, tasks.clone(), 0).unwrap();
    fill(&mut node);
    let hash = node.store.state_hash().unwrap();
    let (one, two) = (node.snapshot(), node.snapshot());
    assert_eq!(tasks.0.lock().unwrap().len(), 1, "they wait for the same");
    let cut = node.handle.status(GROUP).unwrap().applied;
    for at in 0..30 {
        node.propose(put("later", &format!("{at}"), 0)).unwrap();
        node.now += 100;
        node.run().unwrap();
    }
    assert!(node.log.group(GROUP).unwrap().base.index <= cut);
    let base = |node: &Node| node.log.group(GROUP).unwrap().base.index;
    for task in std::mem::take(&mut *tasks.0.lock().unwrap()) {
        task();
    }
    node.run().unwrap();
    let made = one.lock().unwrap().take().unwrap().unwrap();
    assert_eq!(two.lock().unwrap().take(), Some(Ok(made.clone())));
    assert_eq!(made.index, cut);
    assert_eq!(node.log.group(GROUP).unwrap().snapshot, Some(made.clone()));
    assert!(base(&node) <= cut, "a member needs what follows");

    let compact = |node: &mut Node| {
        for at in 0..3 {
            node.propose(put("later", &format!("{at}"), 0)).unwrap();
            node.now += 100;
            node.run().unwrap();
        }
    };
    compact(&mut node);
    assert!(base(&node) <= cut);
    node.handle.hold_log(GROUP, false);
    compact(&mut node);
    assert!(base(&node) > cut, "the log was let go");

    let other = SimFs::new(4);
    let mut to = start(&other, &MemoryEngine::new()).unwrap();
    let here = receive(&node, &made, &to).unwrap();
    install(&mut to.machine, &to.snapshots, GROUP, &here).unwrap();
    assert_eq!(to.store.state_hash().unwrap(), hash);
}

#[test]
fn task_that_is_dropped_answers_who_waits() {
    let tasks = Arc::new(Later::default());
    let parts = start(&SimFs::new(5), &MemoryEngine::new()).unwrap();
    let mut node = serve(parts, tasks.clone(), 100).unwrap();
    let heard = node.snapshot();
    tasks.0.lock().unwrap().clear();
    node.run().unwrap();
    let result = heard.lock().unwrap().take().unwrap();
    assert!(matches!(result, Err(HostError::Snapshot(_))), "{result:?}");
    let again = node.snapshot();
    for task in std::mem::take(&mut *tasks.0.lock().unwrap()) {
        task();
    }
    node.run().unwrap();
    assert!(again.lock().unwrap().take().unwrap().is_ok());
}

#[test]
fn reader_of_the_old_state_keeps_it_from_being_removed() {
    let (leader, snapshot, _) = leader();
    let fs = SimFs::new(6);
    let engine = follower(&fs);
    let mut to = start(&fs, &engine).unwrap();
    let old = to.machine.cut();
    let here = receive(&leader, &snapshot, &to).unwrap();
    install(&mut to.machine, &to.snapshots, GROUP, &here).unwrap();
    for tick in 1..50 {
        let leading = None;
        to.machine
            .tick(TickContext { tick, leading }, &mut Vec::new());
    }
    assert_eq!(generations(&engine).len(), 2);
    let mut content = Vec::new();
    old.write(&mut content).unwrap();
    assert!(content.windows(3).any(|bytes| bytes == b"old"));
    drop(old);
    tick_from(&mut to.machine, 50);
    assert_eq!(generations(&engine).len(), 1);
}

/// Else the host would turn without a pause until the engine is done, which takes a thread that wants the same core.
#[test]
fn install_that_waits_for_the_tables_of_the_one_before_says_so() {
    let (mut leader, first, _) = leader();
    let fs = SimFs::new(8);
    let engine = follower(&fs);
    let mut to = start(&fs, &engine).unwrap();
    let tasks = Arc::<Later>::default();
    to.machine.run_tasks_on(tasks.clone());
    let here = receive(&leader, &first, &to).unwrap();
    install(&mut to.machine, &to.snapshots, GROUP, &here).unwrap();
    let leading = None;
    to.machine
        .tick(TickContext { tick: 1, leading }, &mut Vec::new());
    let dropping = std::mem::take(&mut *tasks.0.lock().unwrap());
    assert_eq!(dropping.len(), 1, "old tables are about to be dropped");

    leader.propose(put("later", "value", 0)).unwrap();
    let made = leader.snapshot();
    let second = made.lock().unwrap().take().unwrap().unwrap();
    let here = receive(&leader, &second, &to).unwrap();
    let reader = to.snapshots.open_snapshot(GROUP, &here).unwrap();
    to.machine.begin_install(&here, Box::new(reader)).unwrap();
    assert!(!to.machine.install_step().unwrap());
    assert!(to.machine.install_waits());
    assert_eq!(to.machine.next_deadline(), Some(2), "it looks again soon");
    dropping.into_iter().for_each(|task| task());
    assert!(!to.machine.install_waits());
    while !to.machine.install_step().unwrap() {}
    let hash = leader.store.state_hash().unwrap();
    assert_eq!(to.store.state_hash().unwrap(), hash);
}

/// Content that was made by hand, so that no checksum of the store stands before the decoder.
#[test]
fn damaged_content_is_refused_and_the_state_stays() {
    let (leader, snapshot, _) = leader();
    let mut content = Vec::new();
    leader
        .core
        .machine(GROUP)
        .unwrap()
        .cut()
        .write(&mut content)
        .unwrap();
    let fs = SimFs::new(7);
    let engine = follower(&fs);
    let mut to = start(&fs, &engine).unwrap();
    let old = to.store.state_hash().unwrap();
    let mut refused = 0;
    let mut try_with = |content: Vec<u8>, snapshot: &SnapshotRef| {
        let content = Box::new(std::io::Cursor::new(content));
        if to.machine.begin_install(snapshot, content).is_err() {
            refused += 1;
            return;
        }
        loop {
            match to.machine.install_step() {
                Ok(false) => {}
                Ok(true) => panic!("damaged content was installed"),
                Err(_) => break,
            }
        }
        refused += 1;
    };
    for len in 0..content.len() {
        try_with(content[..len].to_vec(), &snapshot);
    }
    try_with([&content[..], b"x"].concat(), &snapshot);
    let other = |change: fn(&mut SnapshotRef)| {
        let mut other = snapshot.clone();
        change(&mut other);
        other
    };
    try_with(content.clone(), &other(|s| s.index = s.index.next()));
    try_with(content.clone(), &other(|s| s.number = 0));
    try_with(content.clone(), &other(|s| s.number = u64::from(u32::MAX)));
    assert_eq!(refused, content.len() + 4);
    assert_eq!(to.store.state_hash().unwrap(), old);
    let leases: Vec<LeaseInfo> = to.store.leases();
    assert_eq!(leases.len(), 1);
}
