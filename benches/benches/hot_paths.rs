//! What every request goes through, a given number of times, for a tool that counts instructions: `hot_paths PATH COUNT`, and
//! `hot_paths list` for the names. `benches/instructions` runs it and compares with what is written down.
//!
//! A path is one thread's work, with nothing random in it, so that two runs differ by little: no server, no clients, no timer.
//! All that is the same for any count, such as filling the store, cancels out when two counts are compared.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it prints names, and ends where it cannot go on"
)]

mod leader;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kv_server::engine::lsm::{LsmEngine, LsmOptions};
use kv_server::lease::Lessor;
use kv_server::mvcc::{KvOptions, KvStateMachine, Sinks, Store};
use kv_server::pb::command::{Command, command::Op};
use kv_server::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_server::pb::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
};
use kv_server::watch::WatchHub;
use leader::Leader;
use multiraft::InlineTasks;
use prost::Message;
use raft_log::vfs::RealFs;
use raft_log::{Base, GroupId, IoMode, Log, LogOptions, Record, StoreId, WriteBatch};
use raft_node::{Entry, EntryKind, Index, StateMachine, Term};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: u64 = 2_000;
const VALUE_BYTES: usize = 256;
/// Entries that are written, or applied, together.
const BATCH: u64 = 64;

/// Does something so many times, in a directory of its own.
type Run = fn(&Path, u64);

const PATHS: [(&str, Run); 10] = [
    ("core-proposal-alone", |_, count| propose(1, count)),
    ("core-proposal-of-64", |_, count| propose(BATCH, count)),
    ("log-entry-alone", |dir, count| append(dir, 1, count)),
    ("log-entry-of-64", |dir, count| append(dir, BATCH, count)),
    ("apply-put", |dir, count| {
        Keyspace::filled(dir).apply(count, |n| Op::Put(put(n)));
    }),
    ("apply-put-alone", |dir, count| {
        Keyspace::filled(dir).apply_together(1, count, |n| Op::Put(put(n)));
    }),
    ("apply-txn", |dir, count| {
        Keyspace::filled(dir).apply(count, |n| Op::Txn(txn(n)));
    }),
    ("read-key", |dir, count| {
        Keyspace::filled(dir).read(1, count)
    }),
    ("read-100-keys", |dir, count| {
        Keyspace::filled(dir).read(100, count);
    }),
    ("read-100-hot-keys", |dir, count| {
        let mut keyspace = Keyspace::filled(dir);
        keyspace.apply(8 * KEYS, |n| Op::Put(put(n)));
        keyspace.read(100, count);
    }),
];

fn propose(together: u64, count: u64) {
    let mut leader = Leader::new();
    for _ in 0..count.div_ceil(together) {
        leader.batch(together);
    }
}

/// Writes entries and waits for each batch's sync, which costs no instructions of ours.
fn append(dir: &Path, together: u64, count: u64) {
    let mut options = LogOptions::new(dir.join("log"), StoreId(1));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(Arc::new(RealFs::new()), options).unwrap();
    let mut batch = WriteBatch::new();
    batch.push(GroupId(1), Record::Compact(Base::default()));
    log.write(batch).unwrap();
    let mut last = 0;
    for _ in 0..count.div_ceil(together) {
        let entries = (0..together).map(|_| {
            last += 1;
            entry(last, value(last))
        });
        let entries = Record::Entries(entries.collect());
        let mut batch = WriteBatch::new();
        batch.push(GroupId(1), entries);
        log.write(batch).unwrap();
    }
}

fn entry(index: u64, payload: Bytes) -> Entry {
    Entry {
        index: Index(index),
        term: Term(1),
        kind: EntryKind::Normal,
        payload,
    }
}

fn key(number: u64) -> Bytes {
    let number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS;
    format!("/registry/pods/default/web-{number:08}")
        .into_bytes()
        .into()
}

fn value(number: u64) -> Bytes {
    Bytes::from(vec![number as u8; VALUE_BYTES])
}

fn put(number: u64) -> PutRequest {
    PutRequest {
        key: key(number),
        value: value(number),
        ..PutRequest::default()
    }
}

/// As an orchestrator updates an object: if it is there, write it, else read it.
fn txn(number: u64) -> TxnRequest {
    let is_there = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Mod.into(),
        key: key(number),
        target_union: Some(TargetUnion::ModRevision(0)),
        ..Compare::default()
    };
    let one = |request| {
        vec![RequestOp {
            request: Some(request),
        }]
    };
    TxnRequest {
        compare: vec![is_there],
        success: one(Request::RequestPut(put(number))),
        failure: one(Request::RequestRange(range(key(number), 1))),
    }
}

fn range(key: Bytes, limit: i64) -> RangeRequest {
    let range_end = if limit == 1 {
        Bytes::new()
    } else {
        Bytes::from_static(b"/registry/pods0")
    };
    RangeRequest {
        key,
        range_end,
        limit,
        serializable: true,
        ..RangeRequest::default()
    }
}

/// A keyspace on the engine of the product, nothing of which has been flushed.
struct Keyspace {
    machine: KvStateMachine,
    store: Arc<Store>,
}

impl Keyspace {
    fn filled(dir: &Path) -> Self {
        let engine = LsmEngine::open(&dir.join("engine"), LsmOptions::default()).unwrap();
        let hub = Arc::new(WatchHub::new());
        hub.start(1);
        let sinks = Sinks {
            events: hub,
            leases: Arc::new(Lessor::new()),
        };
        let options = KvOptions::default();
        let (mut machine, store) = KvStateMachine::open(Arc::new(engine), options, sinks).unwrap();
        machine.run_tasks_on(Arc::new(InlineTasks));
        let mut keyspace = Self { machine, store };
        keyspace.apply(2 * KEYS, |n| Op::Put(put(n)));
        keyspace
    }

    fn apply(&mut self, count: u64, op: impl Fn(u64) -> Op) {
        self.apply_together(BATCH, count, op);
    }

    fn apply_together(&mut self, together: u64, count: u64, op: impl Fn(u64) -> Op) {
        let mut outputs = Vec::new();
        for batch in 0..count.div_ceil(together) {
            let first = self.machine.applied().index.0 + 1;
            let entries = (0..together).map(|n| {
                let op = Some(op(batch * together + n));
                entry(first + n, Command { op }.encode_to_vec().into())
            });
            let entries: Vec<Entry> = entries.collect();
            self.machine.apply(&entries, None, &mut outputs).unwrap();
            for output in outputs.drain(..) {
                black_box(output.unwrap());
            }
        }
    }

    /// Reads so many keys at a time, and encodes the answer.
    fn read(&self, limit: i64, count: u64) {
        for number in 0..count {
            let answer = self.store.range(&range(key(number), limit)).unwrap();
            assert!(!answer.kvs.is_empty() || limit != 1);
            black_box(answer.encode_to_vec());
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (name, count) = (args.next(), args.next());
    if name.as_deref() == Some("list") {
        for (name, _) in PATHS {
            println!("{name}");
        }
        return;
    }
    let (Some(name), Some(count)) = (name, count) else {
        // As `cargo bench` calls all of a package.
        return println!("usage: hot_paths PATH COUNT; `hot_paths list` names the paths");
    };
    let count = count.parse().expect("COUNT is a number");
    let found = PATHS.iter().find(|(path, _)| *path == name);
    let (_, run) = found.expect("PATH is one of those that `hot_paths list` names");
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), count);
}
