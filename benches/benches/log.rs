//! The log's cold reads: entries that memory no longer holds, in the page cache, as a member that lags asks for them; and
//! synced appends of text, plain and compressed.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark ends where it cannot measure"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use raft_log::vfs::RealFs;
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, Log, LogOptions, Record, StoreId, Term, WriteBatch,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: u64 = 96_000;
const PAYLOAD_BYTES: usize = 256;
/// What is asked for at a time, as for a message to a member.
const READ_BYTES: usize = 1 << 20;

/// A log of so many groups that take turns, `per_batch` entries of all of them in a batch.
fn filled(dir: &Path, groups: u64, per_batch: u64) -> Log {
    let mut options = LogOptions::new(dir.join("log"), StoreId(1));
    options.cache_bytes = 0;
    let (log, _) = Log::open(Arc::new(RealFs::new()), options).unwrap();
    let mut batch = WriteBatch::new();
    for group in 1..=groups {
        batch.push(GroupId(group), Record::Compact(Base::default()));
    }
    log.write(batch).unwrap();
    let mut batch = WriteBatch::new();
    let mut ticket = None;
    for number in 0..ENTRIES {
        let entry = Entry {
            index: Index(number / groups + 1),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: Bytes::from(vec![number as u8; PAYLOAD_BYTES]),
        };
        batch.push(GroupId(number % groups + 1), Record::Entries(vec![entry]));
        if (number + 1) % per_batch == 0 {
            ticket = Some(log.submit(std::mem::take(&mut batch)).unwrap());
        }
    }
    log.wait(ticket.unwrap()).unwrap();
    log
}

fn cold_reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cold_reads");
    for (name, groups, per_batch) in [
        ("one-group", 1, 1),
        ("one-group-batches-of-64", 1, 64),
        ("16-groups", 16, 16),
    ] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let log = filled(dir.path(), groups, per_batch);
        let last = Index(ENTRIES / groups);
        group.throughput(Throughput::Elements(last.0));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut next = Index(1);
                while next <= last {
                    let range = next..last.next();
                    let entries = log.entries(GroupId(1), range, READ_BYTES).unwrap();
                    next = black_box(&entries).last().unwrap().index.next();
                }
            });
        });
    }
    group.finish();
}

/// Something like a cluster's objects in JSON, another text for each number.
fn text(number: u64, len: usize) -> Bytes {
    let mut out = String::from(r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-"#);
    let mut state = number;
    while out.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        out += &format!(
            r#"{:08x}","namespace":"default","uid":"{state:016x}","labels":{{"app":"web"}},"image":"registry/app:{}","#,
            state >> 32,
            state % 97
        );
    }
    out.truncate(len);
    out.into_bytes().into()
}

fn text_appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append_text");
    for (len, count) in [
        (1_024, 1),
        (4_096, 1),
        (16_384, 1),
        (4_096, 64),
        (65_536, 4),
    ] {
        let pool: Vec<Bytes> = (0..64).map(|number| text(number, len)).collect();
        group.throughput(Throughput::Bytes((len * count) as u64));
        for (name, lz4_bytes_min) in [("plain", None), ("lz4", Some(0))] {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let mut options = LogOptions::new(dir.path().join("log"), StoreId(1));
            options.segment_bytes_min = 64 << 20;
            options.lz4_bytes_min = lz4_bytes_min;
            let (log, _) = Log::open(Arc::new(RealFs::new()), options).unwrap();
            let mut last = Index(0);
            group.bench_function(format!("{len}x{count}/{name}"), |bencher| {
                bencher.iter(|| {
                    let mut batch = WriteBatch::new();
                    if last.0.is_multiple_of(4_096) {
                        // Of the log no more than that is kept.
                        let base = Base {
                            index: last,
                            term: Term(1),
                            ..Base::default()
                        };
                        batch.push(GroupId(1), Record::Compact(base));
                    }
                    let entries = (0..count).map(|_| {
                        last = last.next();
                        Entry {
                            index: last,
                            term: Term(1),
                            kind: EntryKind::Normal,
                            payload: pool[last.0 as usize % pool.len()].clone(),
                        }
                    });
                    batch.push(GroupId(1), Record::Entries(entries.collect()));
                    log.write(batch).unwrap();
                });
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    cold_reads(&mut criterion);
    text_appends(&mut criterion);
    criterion.final_summary();
}
