//! The store against etcd's documented behaviour, and against itself: however entries are cut into slices, and from
//! whatever batch a restart replays, outputs and state are the same.

mod against_etcd;
mod auth;
mod counts;
mod lists;
mod maintenance;
mod ranges;
mod size;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::forward::Origin;
use prost::Message;
use raft_log::{GroupId, Index, NodeId, Term};
use raft_node::core::Membership;
use raft_node::{Entry, EntryKind, StateMachine, TickContext};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::engine::{Change, Engine, EngineBatch, EngineError, Pair, PairIter, Snapshot};
use crate::error::ApiError;
use crate::pb::command::{
    Command, LeaseExpire, LeaseGrant, PublishMember, command::Op, lease_expire,
};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, request_op::Request, response_op::Response,
};

type Tree = BTreeMap<Bytes, Bytes>;

/// A map whose snapshots are copies.
#[derive(Default)]
struct MapEngine(Mutex<Arc<Tree>>);

struct MapSnapshot(Arc<Tree>);

impl Snapshot for MapSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.get(key).cloned())
    }

    fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> PairIter<'_> {
        let pairs = self.0.range::<[u8], _>((from, to));
        Box::new(pairs.map(|(k, v)| -> Result<Pair, EngineError> { Ok((k.clone(), v.clone())) }))
    }
}

impl Engine for MapEngine {
    fn write(&self, batch: EngineBatch) -> Result<(), EngineError> {
        let mut tree = self.0.lock().unwrap();
        let tree = Arc::make_mut(&mut tree);
        for (key, change) in batch.changes {
            match change {
                Change::Put(value) => tree.insert(key, value),
                Change::Delete => tree.remove(&key),
            };
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(MapSnapshot(Arc::clone(&self.0.lock().unwrap())))
    }

    fn request_persist(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn persist(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn durable_index(&self, _: GroupId) -> Index {
        Index::ZERO
    }

    fn drop_range(&self, _: &[u8], _: &[u8]) -> Result<(), EngineError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn out_of_space(&self) -> bool {
        false
    }

    fn close(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<Arc<RevisionEvents>>>);

impl EventSink for Heard {
    fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        self.0.lock().unwrap().extend_from_slice(revisions);
    }

    fn compacted(&self, _: i64) {}
}

struct NoLessor;

impl LeaseSink for NoLessor {
    fn granted(&self, _: LeaseInfo) {}
    fn revoked(&self, _: i64) {}
    fn checkpointed(&self, _: i64, _: Option<i64>) {}
    fn tick(&self, _: TickContext, _: &mut Vec<Bytes>) {}
    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

struct Rig {
    engine: Arc<MapEngine>,
    machine: KvStateMachine,
    store: Arc<Store>,
    heard: Arc<Heard>,
}

impl Rig {
    fn new() -> Self {
        Self::on(Arc::default())
    }

    fn on(engine: Arc<MapEngine>) -> Self {
        Self::with(engine, KvOptions::default())
    }

    fn with(engine: Arc<MapEngine>, options: KvOptions) -> Self {
        let heard = Arc::<Heard>::default();
        let sinks = Sinks {
            events: heard.clone(),
            leases: Arc::new(NoLessor),
        };
        let options = KvOptions {
            cache_entries: 4,
            compaction_step: 2,
            ..options
        };
        let (machine, store) = KvStateMachine::open(engine.clone(), options, sinks).unwrap();
        Self {
            engine,
            machine,
            store,
            heard,
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<CommandOutput> {
        let first = self.machine.applied().index.0 + 1;
        let entry = |(i, op): (usize, &Op)| Entry {
            index: Index(first + i as u64),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: Command {
                op: Some(op.clone()),
            }
            .encode_to_vec()
            .into(),
        };
        let entries: Vec<_> = ops.iter().enumerate().map(entry).collect();
        let mut outputs = Vec::new();
        self.machine.apply(&entries, None, &mut outputs).unwrap();
        outputs
    }

    fn one(&mut self, op: Op) -> CommandOutput {
        self.apply(&[op]).remove(0)
    }

    fn tick_until_compacted(&mut self) {
        for tick in 0..10_000 {
            if self.machine.next_deadline().is_none() {
                return;
            }
            self.machine.tick(
                TickContext {
                    tick,
                    leading: None,
                },
                &mut Vec::new(),
            );
        }
        panic!("compaction does not end");
    }

    fn read(&self, key: &str, revision: i64) -> Result<Option<Bytes>, ApiError> {
        let request = RangeRequest {
            revision,
            ..point(key)
        };
        Ok(self.store.range(&request)?.kvs.pop().map(|kv| kv.value))
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn point(key: &str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        ..RangeRequest::default()
    }
}

fn all() -> RangeRequest {
    RangeRequest {
        range_end: Bytes::from_static(&[0]),
        ..point("\0")
    }
}

fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..PutRequest::default()
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put(put_request(key, value))
}

fn leased(key: &str, lease: i64) -> Op {
    Op::Put(PutRequest {
        lease,
        ..put_request(key, "v")
    })
}

fn delete(key: &str, end: &str) -> Op {
    let (key, range_end) = (bytes(key), bytes(end));
    Op::DeleteRange(DeleteRangeRequest {
        key,
        range_end,
        prev_kv: false,
    })
}

fn compact(revision: i64) -> Op {
    Op::Compact(CompactionRequest {
        revision,
        physical: false,
    })
}

fn grant(id: i64) -> Op {
    Op::LeaseGrant(LeaseGrant { id, ttl: 10 })
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn value_compare(key: &str, result: CompareResult, value: &str) -> Compare {
    Compare {
        result: result as i32,
        target: CompareTarget::Value as i32,
        key: bytes(key),
        target_union: Some(TargetUnion::Value(bytes(value))),
        ..Compare::default()
    }
}

#[test]
fn first_write_gets_revision_two_and_old_reads_show_the_current_one() {
    let mut rig = Rig::new();
    assert_eq!(rig.store.revision(), 1);
    rig.one(put("a", "1")).unwrap();
    assert_eq!(rig.store.revision(), 2);
    rig.one(put("a", "2")).unwrap();
    let answer = rig
        .store
        .range(&RangeRequest {
            revision: 2,
            ..point("a")
        })
        .unwrap();
    assert_eq!(answer.header.unwrap().revision, 3);
    assert_eq!(answer.kvs[0].value, "1");
    assert_eq!(rig.read("a", 4), Err(ApiError::FutureRevision));
}

#[test]
fn count_ignores_limit_and_filters() {
    let mut rig = Rig::new();
    rig.apply(&[put("a", "1"), put("b", "2"), put("c", "3")]);
    let limited = rig
        .store
        .range(&RangeRequest { limit: 1, ..all() })
        .unwrap();
    assert_eq!(
        (limited.kvs.len(), limited.count, limited.more),
        (1, 3, true)
    );
    let filtered = rig
        .store
        .range(&RangeRequest {
            min_mod_revision: 4,
            ..all()
        })
        .unwrap();
    assert_eq!(
        (filtered.kvs.len(), filtered.count, filtered.more),
        (1, 3, false)
    );
}

#[test]
fn compact_at_current_keeps_its_reads_and_refuses_a_repeat() {
    let mut rig = Rig::new();
    rig.apply(&[put("a", "1"), put("a", "2"), put("b", "1"), delete("b", "")]);
    rig.one(compact(0)).unwrap();
    assert_eq!(rig.one(compact(0)), Err(ApiError::Compacted));
    let hash = |rig: &Rig| rig.store.state_hash().unwrap();
    rig.one(compact(5)).unwrap();
    let before = hash(&rig);
    rig.tick_until_compacted();
    assert_eq!(rig.store.finished_compact_revision(), 5);
    assert_eq!(hash(&rig), before);
    assert_eq!(rig.one(compact(5)), Err(ApiError::Compacted));
    assert_eq!(rig.one(compact(6)), Err(ApiError::FutureRevision));
    assert_eq!(rig.read("a", 5).unwrap().unwrap(), "2");
    assert_eq!(rig.read("a", 4), Err(ApiError::Compacted));
    assert_eq!(
        rig.store.history(4, 1 << 20).unwrap_err(),
        ApiError::Compacted
    );
    assert_eq!(
        rig.store.history(5, 1 << 20).unwrap().revisions[0].revision,
        5
    );
}

#[test]
fn hash_kv_is_the_same_before_and_after_the_floor_is_reached_and_differs_with_any_value() {
    let ops = [
        put("a", "1"),
        put("a", "2"),
        put("b", "1"),
        delete("b", ""),
        put("c", "1"),
    ];
    let (mut rig, mut other) = (Rig::new(), Rig::new());
    rig.apply(&ops);
    other.apply(&ops);
    let hash = |rig: &Rig, revision| rig.store.hash_kv(revision).unwrap().hash;
    assert_eq!(hash(&rig, 0), hash(&other, 6));
    assert_ne!(hash(&rig, 5), hash(&rig, 6));
    rig.one(compact(5)).unwrap();
    other.one(compact(5)).unwrap();
    other.tick_until_compacted();
    assert_eq!(hash(&rig, 6), hash(&other, 6));
    let response = rig.store.hash_kv(0).unwrap();
    assert_eq!((response.compact_revision, response.hash_revision), (5, 6));
    assert_eq!(rig.store.hash_kv(4), Err(ApiError::Compacted));
    assert_eq!(rig.store.hash_kv(7), Err(ApiError::FutureRevision));
    other.one(put("c", "2")).unwrap();
    rig.one(put("c", "3")).unwrap();
    assert_eq!(
        hash(&rig, 6),
        hash(&other, 6),
        "what came later does not count"
    );
    assert_ne!(hash(&rig, 7), hash(&other, 7));
}

#[test]
fn delete_of_nothing_and_reading_txn_keep_the_revision() {
    let mut rig = Rig::new();
    rig.one(delete("a", "")).unwrap();
    let failure = vec![op(Request::RequestRange(point("a")))];
    let compare = vec![value_compare("a", CompareResult::NotEqual, "x")];
    let success = vec![op(Request::RequestPut(put_request("a", "1")))];
    let txn = TxnRequest {
        compare,
        success,
        failure,
    };
    let Ok(CommandResult::Txn(answer)) = rig.one(Op::Txn(txn)) else {
        panic!()
    };
    assert!(
        !answer.succeeded,
        "a value compare on a missing key is false"
    );
    assert_eq!(rig.store.revision(), 1);
}

#[test]
fn nested_compares_see_the_state_before_and_ranges_what_came_earlier() {
    let mut rig = Rig::new();
    rig.one(put("a", "old")).unwrap();
    let inner = TxnRequest {
        compare: vec![value_compare("a", CompareResult::Equal, "old")],
        success: vec![op(Request::RequestPut(put_request("b", "1")))],
        failure: vec![],
    };
    let txn = TxnRequest {
        compare: vec![],
        success: vec![
            op(Request::RequestPut(put_request("a", "new"))),
            op(Request::RequestRange(point("a"))),
            op(Request::RequestTxn(inner)),
        ],
        failure: vec![],
    };
    let Ok(CommandResult::Txn(answer)) = rig.one(Op::Txn(txn)) else {
        panic!()
    };
    let Some(Response::ResponseRange(range)) = &answer.responses[1].response else {
        panic!()
    };
    assert_eq!(range.kvs[0].value, "new");
    assert_eq!(range.header.unwrap().revision, 3);
    assert_eq!(rig.read("b", 0).unwrap().unwrap(), "1");
    assert_eq!(rig.store.revision(), 3);
}

#[test]
fn txn_that_changes_a_key_twice_is_refused() {
    let puts = |n| TxnRequest {
        success: vec![op(Request::RequestPut(put_request("a", "1"))); n],
        ..TxnRequest::default()
    };
    assert_eq!(check_txn(&puts(1), 128), Ok(()));
    assert_eq!(check_txn(&puts(2), 128), Err(ApiError::DuplicateKey));
    assert_eq!(check_txn(&puts(2), 1), Err(ApiError::TooManyOps));
    let Op::DeleteRange(request) = delete("a", "") else {
        panic!()
    };
    let gone = op(Request::RequestDeleteRange(request));
    let deletes = TxnRequest {
        success: vec![gone.clone(), gone.clone()],
        ..Default::default()
    };
    assert_eq!(check_txn(&deletes, 128), Ok(()));
    let mut both = puts(1);
    both.success.push(gone);
    assert_eq!(check_txn(&both, 128), Err(ApiError::DuplicateKey));
}

/// A transaction that the RPC layer decoded was logged inside a command, one level deeper, where it could not be decoded
/// again: the member stopped, and at each start again.
#[test]
fn deepest_nested_txn_is_applied_and_a_deeper_one_refused() {
    let nested = |depth| {
        let innermost = op(Request::RequestPut(put_request("k", "v")));
        let wrap = |inner: TxnRequest, _| TxnRequest {
            success: vec![op(Request::RequestTxn(inner))],
            ..TxnRequest::default()
        };
        let innermost = TxnRequest {
            success: vec![innermost],
            ..TxnRequest::default()
        };
        (0..depth).fold(innermost, wrap)
    };
    assert_eq!(
        check_txn(&nested(TXN_DEPTH_MAX + 1), 128),
        Err(ApiError::TooManyOps)
    );
    let deepest = nested(TXN_DEPTH_MAX);
    assert_eq!(check_txn(&deepest, 128), Ok(()));
    let mut rig = Rig::new();
    assert!(matches!(
        rig.one(Op::Txn(deepest)),
        Ok(CommandResult::Txn(_))
    ));
}

#[test]
fn lease_expiry_removes_its_keys_in_one_revision() {
    let mut rig = Rig::new();
    rig.apply(&[
        grant(7),
        leased("b", 7),
        leased("a", 7),
        leased("c", 7),
        put("c", "kept"),
    ]);
    assert_eq!(rig.one(leased("d", 8)), Err(ApiError::LeaseNotFound));
    assert_eq!(rig.one(grant(7)), Err(ApiError::LeaseExists));
    let expire = |granted_index| {
        let items = vec![lease_expire::Item {
            id: 7,
            granted_index,
        }];
        Op::LeaseExpire(LeaseExpire { items })
    };
    rig.one(expire(2)).unwrap();
    assert_eq!(
        rig.store.lease_keys(7).unwrap(),
        ["a", "b"],
        "another grant's expiry is void"
    );
    rig.one(expire(1)).unwrap();
    assert_eq!(rig.store.lease(7), None);
    let heard = rig.heard.0.lock().unwrap();
    let last = heard.last().unwrap();
    assert_eq!((last.revision, last.events.len()), (6, 2));
    let event = &last.events[0];
    assert_eq!(
        (event.kind, &event.kv.key[..]),
        (EventKind::Delete, &b"a"[..])
    );
    assert_eq!(
        (
            event.kv.create_revision,
            event.kv.version,
            event.kv.mod_revision
        ),
        (0, 0, 6)
    );
    assert_eq!(rig.store.history(1, 1 << 20).unwrap().revisions, *heard);
}

#[test]
fn ignore_value_on_a_missing_key_is_key_not_found() {
    let mut rig = Rig::new();
    let request = PutRequest {
        ignore_value: true,
        ..put_request("a", "")
    };
    assert_eq!(
        rig.one(Op::Put(request.clone())),
        Err(ApiError::KeyNotFound)
    );
    rig.one(put("a", "1")).unwrap();
    rig.one(Op::Put(request)).unwrap();
    assert_eq!(rig.read("a", 0).unwrap().unwrap(), "1");
    assert_eq!(
        rig.store.kv_before(b"a", 3).unwrap().unwrap().mod_revision,
        2
    );
}

fn random_op(rng: &mut StdRng, revision: i64) -> Op {
    const KEYS: [&str; 7] = ["a", "a\0", "a\0b", "b", "c", "\0", "d\u{7f}"];
    let key = KEYS[rng.random_range(0..KEYS.len())];
    let lease = rng.random_range(1..4);
    match rng.random_range(0..12) {
        0..5 => put(key, &rng.random_range(0..100).to_string()),
        5 => leased(key, lease),
        6 => delete(key, ""),
        7 => delete(key, "c"),
        8 => grant(lease),
        9 => Op::LeaseRevoke(LeaseRevokeRequest { id: lease }),
        10 => compact((revision - rng.random_range(0..9)).max(0)),
        _ => {
            let Op::DeleteRange(request) = delete("b", "d") else {
                unreachable!()
            };
            Op::Txn(TxnRequest {
                compare: vec![value_compare(key, CompareResult::Greater, "5")],
                success: vec![
                    op(Request::RequestPut(put_request("a", "txn"))),
                    op(Request::RequestDeleteRange(request)),
                    op(Request::RequestRange(all())),
                ],
                failure: vec![op(Request::RequestPut(put_request(key, "else")))],
            })
        }
    }
}

#[test]
fn random_commands_in_any_slices_and_after_any_restart_match_one_by_one() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plain = Rig::new();
        let (mut ops, mut outputs) = (Vec::new(), Vec::new());
        // The model: what the keys held after each revision, from the events alone.
        let mut model = BTreeMap::from([(1, BTreeMap::new())]);
        for _ in 0..120 {
            let op = random_op(&mut rng, plain.store.revision());
            outputs.push(plain.one(op.clone()));
            ops.push(op);
            let mut state = model.last_key_value().unwrap().1.clone();
            for revision in plain.heard.0.lock().unwrap().drain(..) {
                for event in &revision.events {
                    match event.kind {
                        EventKind::Put => state.insert(event.kv.key.clone(), event.kv.clone()),
                        EventKind::Delete => state.remove(&event.kv.key),
                    };
                }
                model.insert(revision.revision, state.clone());
            }
        }
        for (revision, state) in model.range(plain.store.compact_revision().max(1)..) {
            let read = RangeRequest {
                revision: *revision,
                ..all()
            };
            let found = plain.store.range(&read).unwrap().kvs;
            let wanted: Vec<_> = state.values().cloned().collect();
            assert_eq!(found, wanted, "seed {seed} revision {revision}");
        }
        let mut sliced = Rig::new();
        let (mut at, mut got) = (0, Vec::new());
        while at < ops.len() {
            let end = (at + rng.random_range(1..9)).min(ops.len());
            let copy = Arc::new(MapEngine(Mutex::new(
                sliced.engine.0.lock().unwrap().clone(),
            )));
            let slice = sliced.apply(&ops[at..end]);
            if rng.random_range(0..4) == 0 {
                // The newest batch is lost: the log is replayed from the one before.
                sliced = Rig::on(copy);
                assert_eq!(sliced.apply(&ops[at..end]), slice, "seed {seed}");
            }
            got.extend(slice);
            at = end;
            if rng.random_range(0..3) == 0 {
                sliced.machine.tick(
                    TickContext {
                        tick: 1,
                        leading: None,
                    },
                    &mut Vec::new(),
                );
            }
        }
        assert_eq!(got, outputs, "seed {seed}");
        sliced.tick_until_compacted();
        let hash = plain.store.state_hash().unwrap();
        assert_eq!(sliced.store.state_hash().unwrap(), hash, "seed {seed}");
        let floor = plain.store.compact_revision().max(1);
        let history = |rig: &Rig| rig.store.history(floor, 1 << 20).unwrap().revisions;
        assert_eq!(history(&sliced), history(&plain), "seed {seed}");
    }
}

fn forwarded(op: &Op, origin: Origin) -> Bytes {
    let command = Command {
        op: Some(op.clone()),
    };
    stamp(&origin, &command.encode_to_vec())
}

fn origin(member: u64, sequence: u64) -> Origin {
    Origin {
        member: NodeId(member),
        boot: 1,
        sequence,
        lowest_open: 1,
    }
}

/// Applies payloads, and membership changes, as entries of one slice each.
fn apply_payloads(machine: &mut KvStateMachine, payloads: &[Bytes]) -> Vec<CommandOutput> {
    let first = machine.applied().index.0 + 1;
    let entry = |(i, payload): (usize, &Bytes)| Entry {
        index: Index(first + i as u64),
        term: Term(1),
        kind: EntryKind::Normal,
        payload: payload.clone(),
    };
    let entries: Vec<_> = payloads.iter().enumerate().map(entry).collect();
    let mut outputs = Vec::new();
    machine.apply(&entries, None, &mut outputs).unwrap();
    outputs
}

#[test]
fn forwarded_command_proposed_twice_is_applied_once() {
    let mut rig = Rig::new();
    let first = forwarded(&put("a", "1"), origin(7, 1));
    let again = forwarded(&put("a", "1"), origin(7, 1));
    let outputs = apply_payloads(&mut rig.machine, &[first, again.clone()]);
    assert!(matches!(outputs[0], Ok(CommandResult::Put(_))));
    assert_eq!(outputs[1], Ok(CommandResult::None));
    assert_eq!(rig.store.revision(), 2);

    // The table comes back with the engine.
    let mut rig = Rig::on(rig.engine);
    apply_payloads(&mut rig.machine, &[again]);
    assert_eq!(rig.store.revision(), 2);
    // Another member's sequences are its own, and so is a command that nobody forwarded.
    let other = forwarded(&put("a", "1"), origin(8, 1));
    apply_payloads(&mut rig.machine, &[other]);
    rig.one(put("a", "1")).unwrap();
    assert_eq!(rig.store.revision(), 4);
}

#[test]
fn forwarded_command_that_fails_counts_as_applied() {
    let mut rig = Rig::new();
    let payload = forwarded(&leased("a", 5), origin(7, 1));
    let outputs = apply_payloads(&mut rig.machine, std::slice::from_ref(&payload));
    assert_eq!(outputs[0], Err(ApiError::LeaseNotFound));
    rig.one(grant(5)).unwrap();
    let outputs = apply_payloads(&mut rig.machine, &[payload]);
    assert_eq!(outputs[0], Ok(CommandResult::None));
    assert_eq!(rig.read("a", 0), Ok(None));
}

#[test]
fn duplicate_table_is_part_of_the_state_hash() {
    let (mut one, mut two) = (Rig::new(), Rig::new());
    let by = |sequence| [forwarded(&delete("a", ""), origin(7, sequence))];
    apply_payloads(&mut one.machine, &by(1));
    apply_payloads(&mut two.machine, &by(2));
    assert_eq!(one.store.revision(), two.store.revision());
    assert_ne!(one.store.state_hash(), two.store.state_hash());
}

#[test]
fn many_forwarded_commands_in_one_slice_write_one_row() {
    let mut rig = Rig::new();
    let payloads: Vec<_> = (1..=50)
        .map(|sequence| forwarded(&delete("a", ""), origin(7, sequence)))
        .collect();
    apply_payloads(&mut rig.machine, &payloads);
    // The row and the meta record.
    assert_eq!(rig.engine.0.lock().unwrap().len(), 2);
}

fn change(rig: &mut Rig, members: [u64; 2]) {
    let membership = Membership::of_voters(members.map(NodeId));
    let entry = Entry {
        index: rig.machine.applied().index.next(),
        term: Term(1),
        kind: EntryKind::Config,
        payload: membership.encode(),
    };
    let mut outputs = Vec::new();
    rig.machine
        .apply(&[entry], Some(&membership), &mut outputs)
        .unwrap();
}

#[test]
fn published_member_is_kept_until_it_leaves() {
    let mut rig = Rig::new();
    let publish = |id: u64, url: &str| {
        Op::PublishMember(PublishMember {
            id,
            name: format!("m{id}"),
            client_urls: vec![url.to_owned()],
            ..PublishMember::default()
        })
    };
    let before = rig.store.revision();
    rig.apply(&[publish(7, "http://a:1"), publish(8, "http://b:1")]);
    rig.apply(&[publish(7, "http://a:2")]);
    assert_eq!(rig.store.revision(), before, "it is no key");
    let rig_again = Rig::on(Arc::clone(&rig.engine));
    for store in [&rig.store, &rig_again.store] {
        let seven = store.member(NodeId(7)).unwrap();
        assert_eq!(
            (seven.name.as_str(), seven.client_urls),
            ("m7", vec!["http://a:2".to_owned()])
        );
        assert!(store.member(NodeId(8)).is_some());
    }
    change(&mut rig, [7, 9]);
    assert_eq!(rig.store.member(NodeId(8)), None);
    let rig_again = Rig::on(Arc::clone(&rig.engine));
    assert_eq!(rig_again.store.members(), rig.store.members());
    let removed = &rig.store.members().removed;
    assert_eq!(removed.keys().collect::<Vec<_>>(), [&NodeId(8)]);
    rig.apply(&[publish(8, "http://b:2"), publish(9, "http://c:1")]);
    let rig_again = Rig::on(Arc::clone(&rig.engine));
    for store in [&rig.store, &rig_again.store] {
        assert_eq!(store.member(NodeId(8)), None, "it is no member any more");
        assert!(store.member(NodeId(9)).is_some());
    }
}

#[test]
fn member_that_leaves_takes_its_row_and_is_not_heard_again() {
    let mut rig = Rig::new();
    let rows = |rig: &Rig| {
        let tree = rig.engine.0.lock().unwrap();
        let rows = tree.keys().filter(|key| key[0] == codec::DUPLICATE);
        rows.count()
    };
    for member in [7, 8] {
        let put = forwarded(&put("a", "1"), origin(member, 1));
        apply_payloads(&mut rig.machine, &[put]);
    }
    assert_eq!(rows(&rig), 2);
    change(&mut rig, [7, 9]);
    assert_eq!(rows(&rig), 1);
    let before = rig.store.revision();
    for member in [8, 10] {
        let late = forwarded(&put("a", "2"), origin(member, 2));
        apply_payloads(&mut rig.machine, &[late]);
    }
    assert_eq!(rig.store.revision(), before, "neither is a member");
    assert_eq!(rows(&rig), 1);
    let new = forwarded(&put("a", "2"), origin(9, 1));
    apply_payloads(&mut rig.machine, &[new]);
    assert_eq!(rig.store.revision(), before + 1);
}
