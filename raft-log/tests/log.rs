//! The log on the real file system: what was acknowledged is there again, and damage is refused.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the tests damage the files behind the log, and fail by panic"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_log::vfs::sim::{CrashKind, Fault};
use raft_log::vfs::{RealFs, SimFs};
use raft_log::{
    Base, Entry, EntryKind, ErrorKind, GroupId, HardState, Index, IoMode, Log, LogOptions, NodeId,
    Record, StoreId, Term, WriteBatch,
};

const GROUP: GroupId = GroupId(1);

fn options(dir: &Path, io: IoMode) -> LogOptions {
    let mut options = LogOptions::new(dir.join("log"), StoreId(7));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 64 << 10;
    options.io = io;
    options
}

fn open(dir: &Path, io: IoMode) -> Result<Log, raft_log::LogError> {
    Log::open(Arc::new(RealFs::new()), options(dir, io)).map(|opened| opened.0)
}

fn create(log: &Log) {
    let mut batch = WriteBatch::new();
    batch.push(
        GROUP,
        Record::Compact(Base {
            creation: 3,
            ..Base::default()
        }),
    );
    let state = HardState {
        term: Term(2),
        vote: Some(NodeId(9)),
        commit: Index(0),
    };
    batch.push(GROUP, Record::HardState(state));
    log.write(batch).unwrap();
}

fn entry(index: u64) -> Entry {
    let payload = vec![index as u8 | 1; 100 + index as usize % 50].into();
    Entry {
        index: Index(index),
        term: Term(2),
        kind: EntryKind::Normal,
        payload,
    }
}

fn append(log: &Log, index: u64) {
    let mut batch = WriteBatch::new();
    batch.push(GROUP, Record::Entries(vec![entry(index)]));
    let ticket = log.submit(batch).unwrap();
    log.wait(ticket).unwrap();
    assert!(log.is_durable(ticket).unwrap());
}

/// Text, noise, and something short, in turn.
fn mixed(index: u64) -> Entry {
    let noise = (0..4_000_u64).map(|at| ((at * at * (index + 7919)) >> 5) as u8);
    let payload = match index % 3 {
        0 => b"every line like the one before\n".repeat(200),
        1 => noise.collect(),
        _ => vec![1; 40],
    };
    Entry {
        payload: payload.into(),
        ..entry(index)
    }
}

#[test]
fn content_that_compresses_takes_less_space_and_comes_back() {
    let write = |lz4_bytes_min| {
        let (fs, mut options) = (SimFs::new(1), options("/".as_ref(), IoMode::Inline));
        (options.lz4_bytes_min, options.cache_bytes) = (lz4_bytes_min, 0);
        let (log, _) = Log::open(fs.shared(), options.clone()).unwrap();
        create(&log);
        for index in 1..=60 {
            let mut batch = WriteBatch::new();
            batch.push(GROUP, Record::Entries(vec![mixed(index)]));
            log.write(batch).unwrap();
            log.drive().unwrap();
        }
        let read = |log: &Log| {
            let range = Index(1)..Index(61);
            let found = log.entries(GROUP, range, usize::MAX).unwrap();
            assert!(found.into_iter().eq((1..=60).map(mixed)));
        };
        read(&log);
        let bytes = log.stats().bytes_written;
        drop(log);
        fs.crash(CrashKind::Process);
        // Whoever opens it next need not compress.
        options.lz4_bytes_min = None;
        read(&Log::open(fs.shared(), options).unwrap().0);
        bytes
    };
    let (plain, compressed) = (write(None), write(Some(1_000)));
    let text = 20 * 6_200;
    assert!(plain > compressed + text * 9 / 10, "{plain}, {compressed}");
}

fn check(log: &Log, from: u64, to: u64) {
    let found = log
        .entries(GROUP, Index(from)..Index(to + 1), usize::MAX)
        .unwrap();
    assert_eq!(found, (from..=to).map(entry).collect::<Vec<_>>());
    let info = log.group(GROUP).unwrap();
    assert_eq!(
        (info.last_index, info.durable_index),
        (Index(to), Index(to))
    );
    assert_eq!(info.hard_state.vote, Some(NodeId(9)));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to.join("log")).unwrap();
    for file in std::fs::read_dir(from.join("log")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join("log").join(file.file_name())).unwrap();
    }
}

#[test]
fn reopen_after_rotation_and_compaction_finds_every_entry() {
    for (io, clean) in [(IoMode::Inline, false), (IoMode::Thread, true)] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path(), io).unwrap();
        let error = open(dir.path(), io).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Locked, None));
        create(&log);
        (1..=300).for_each(|index| append(&log, index));
        assert!(log.stats().segments > 1);
        assert_eq!(log.needs_compaction(), vec![GROUP]);
        check(&log, 1, 300);
        let before = log.stats().segments;
        let mut batch = WriteBatch::new();
        let base = Base {
            index: Index(200),
            term: Term(2),
            creation: 3,
            ..Base::default()
        };
        batch.push(GROUP, Record::Compact(base));
        log.write(batch).unwrap();
        assert!(log.stats().segments < before);
        // Without a clean close the copied files are what a killed process leaves.
        if clean {
            log.close().unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        copy(dir.path(), other.path());
        for round in 0..3 {
            let log = open(other.path(), io).unwrap();
            check(&log, 201, 300 + round);
            append(&log, 301 + round);
            log.close().unwrap();
        }
    }
}

#[test]
fn open_of_a_foreign_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), IoMode::Inline).unwrap().close().unwrap();
    let mut other = options(dir.path(), IoMode::Inline);
    other.store_id = StoreId(8);
    let error = Log::open(Arc::new(RealFs::new()), other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignStore, "{error}");
}

#[test]
fn open_with_a_damaged_synced_batch_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    create(&log);
    (1..=5).for_each(|index| append(&log, index));
    log.close().unwrap();
    drop(log);
    let path = raft_log::log::segment_path(&dir.path().join("log"), 1);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 4], 4096 + 500).unwrap();
    let error = open(dir.path(), IoMode::Inline).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
}

/// A copy that was interrupted: without a look at the length, what is missing passes for a write that a crash tore.
#[test]
fn open_of_a_segment_of_another_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    create(&log);
    (1..=20).for_each(|index| append(&log, index));
    log.close().unwrap();
    drop(log);
    let path = raft_log::log::segment_path(&dir.path().join("log"), 1);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let whole = file.metadata().unwrap().len();
    for len in [whole + 4096, whole - 4096, 8_192, 6_000, 4_096] {
        file.set_len(len).unwrap();
        let error = open(dir.path(), IoMode::Inline).unwrap_err();
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::Corruption, Some(len)),
            "{error}"
        );
        let what = ["was cut", "was appended"][usize::from(len > whole)];
        assert!(error.to_string().contains(what), "{error}");
    }
}

/// The only segment was removed: the log came up empty, as if nothing had ever been acknowledged.
#[test]
fn open_of_votes_without_any_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    create(&log);
    append(&log, 1);
    log.close().unwrap();
    drop(log);
    let log_dir = dir.path().join("log");
    std::fs::remove_file(raft_log::log::segment_path(&log_dir, 1)).unwrap();
    // The manifest names the segment; without it, the votes tell that there was one.
    for telling in ["MANIFEST", "votes"] {
        for _ in 0..2 {
            let error = open(dir.path(), IoMode::Inline).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            assert!(error.to_string().contains(telling), "{error}");
        }
        std::fs::remove_file(log_dir.join(telling)).unwrap();
    }
}

/// Nothing can follow the last index that there is: what computes the next one would overflow, after a restart as well.
#[test]
fn submit_of_the_last_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    let base = |index| {
        Record::Compact(Base {
            index,
            ..Base::default()
        })
    };
    let submit = |records: Vec<Record>| {
        let mut batch = WriteBatch::new();
        for record in records {
            batch.push(GROUP, record);
        }
        log.submit(batch).map_err(|error| error.kind())
    };
    let last = entry(u64::MAX);
    let before = base(last.index.prev());
    assert_eq!(submit(vec![base(last.index)]), Err(ErrorKind::InvalidBatch));
    assert_eq!(
        submit(vec![before.clone(), Record::Entries(vec![last])]),
        Err(ErrorKind::InvalidBatch)
    );
    submit(vec![before]).unwrap();
    log.close().unwrap();
    drop(log);
    let log = open(dir.path(), IoMode::Inline).unwrap();
    assert_eq!(log.group(GROUP).unwrap().base.index.next(), Index::MAX);
}

#[test]
fn failure_at_any_write_is_told_to_those_who_poll() {
    let mut failures = 0;
    for fault in [Fault::Write, Fault::Sync] {
        for pass in 0..60 {
            let fs = SimFs::new(pass);
            let log = Log::open(fs.shared(), options(Path::new("/"), IoMode::Inline))
                .unwrap()
                .0;
            create(&log);
            let told = Arc::new(AtomicBool::new(false));
            let tell = Arc::clone(&told);
            log.on_progress(Box::new(move || tell.store(true, Ordering::Relaxed)));
            fs.fail_nth(fault, pass);
            for index in 1..40 {
                let mut batch = WriteBatch::new();
                let payload = vec![7; 1_000].into();
                let entry = Entry {
                    payload,
                    ..entry(index)
                };
                batch.push(GROUP, Record::Entries(vec![entry]));
                // The sync, and then what follows it: the next segment.
                told.store(false, Ordering::Relaxed);
                let mut failed = log.write(batch).is_err();
                if !failed {
                    told.store(false, Ordering::Relaxed);
                    log.drive().unwrap();
                    failed = log.submit(WriteBatch::new()).is_err();
                }
                if failed {
                    assert!(
                        told.load(Ordering::Relaxed),
                        "{fault:?} {pass}: entry {index}"
                    );
                    failures += 1;
                    break;
                }
            }
        }
    }
    assert!(failures > 60, "{failures}");
}

#[test]
fn payload_of_64_mib_is_read_back_and_a_longer_one_is_refused() {
    const LIMIT: usize = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    create(&log);
    let submit = |len: usize| {
        let mut batch = WriteBatch::new();
        let payload = vec![7; len].into();
        let entry = Entry {
            payload,
            ..entry(1)
        };
        batch.push(GROUP, Record::Entries(vec![entry]));
        log.write(batch)
    };
    let error = submit(LIMIT + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("67108864"), "{error}");
    submit(LIMIT).unwrap();
    drop(log);
    let log = open(dir.path(), IoMode::Inline).unwrap();
    let read = log.entries(GROUP, Index(1)..Index(2), 1).unwrap();
    assert_eq!(read[0].payload, vec![7; LIMIT]);
}

#[test]
fn submit_that_leaves_a_gap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), IoMode::Inline).unwrap();
    create(&log);
    let mut batch = WriteBatch::new();
    batch.push(GROUP, Record::Entries(vec![entry(2)]));
    assert_eq!(
        log.submit(batch).unwrap_err().kind(),
        ErrorKind::InvalidBatch
    );
    append(&log, 1);
    check(&log, 1, 1);
}

#[test]
fn directory_is_free_as_soon_as_the_last_handle_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..100 {
        let log = open(dir.path(), IoMode::Thread).unwrap();
        if round == 0 {
            create(&log);
        }
        let mut batch = WriteBatch::new();
        batch.push(GROUP, Record::Entries(vec![entry(round + 1)]));
        // The thread is at work when the handles go, all at once.
        log.wait(log.submit(batch).unwrap()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let handle = log.clone();
                scope.spawn(move || drop(handle));
            }
            drop(log);
        });
    }
    check(&open(dir.path(), IoMode::Thread).unwrap(), 1, 100);
}

/// Creates a group for each of many threads, which then append to their own until they are done or refused; returns how
/// many appends of each were acknowledged.
fn append_from_threads(log: &Log, threads: u64, appends: u64) -> Vec<u64> {
    for group in 1..=threads {
        let mut batch = WriteBatch::new();
        batch.push(GroupId(group), Record::Compact(Base::default()));
        log.write(batch).unwrap();
    }
    let append = |group: u64, index: u64| {
        let mut batch = WriteBatch::new();
        batch.push(GroupId(group), Record::Entries(vec![entry(index)]));
        // One half lets the log's thread write, the other writes by itself.
        if group.is_multiple_of(2) {
            log.submit(batch).and_then(|ticket| log.wait(ticket))
        } else {
            log.write(batch)
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=threads)
            .map(|group| {
                let append = &append;
                scope.spawn(move || {
                    (1..=appends)
                        .take_while(|i| append(group, *i).is_ok())
                        .count()
                })
            })
            .collect();
        let acknowledged = threads.into_iter().map(|thread| thread.join().unwrap());
        acknowledged.map(|count| count as u64).collect()
    })
}

#[test]
fn append_from_many_threads_acknowledges_every_entry_in_fewer_syncs() {
    for io in [IoMode::Inline, IoMode::Thread] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path(), io).unwrap();
        assert_eq!(append_from_threads(&log, 16, 40), vec![40; 16]);
        assert!(log.stats().syncs < 16 * 40, "{:?}", log.stats());
        log.close().unwrap();
        drop(log);
        let log = open(dir.path(), io).unwrap();
        for group in 1..=16 {
            let found = log
                .entries(GroupId(group), Index(1)..Index(41), usize::MAX)
                .unwrap();
            assert_eq!(found, (1..=40).map(entry).collect::<Vec<_>>());
        }
    }
}

#[test]
fn append_from_many_threads_with_a_failed_sync_ends_every_wait_and_loses_nothing_acknowledged() {
    for (io, pass) in [(IoMode::Inline, 40), (IoMode::Thread, 60)] {
        let fs = SimFs::new(pass);
        let options = options(Path::new("/"), io);
        let log = Log::open(fs.shared(), options.clone()).unwrap().0;
        fs.fail_nth(Fault::Sync, pass);
        let acknowledged = append_from_threads(&log, 16, 1_000);
        assert!(acknowledged.iter().all(|count| *count < 1_000));
        assert_eq!(log.close().unwrap_err().kind(), ErrorKind::Io);
        drop(log);
        fs.crash(CrashKind::Power);
        let (log, _) = Log::open(fs.shared(), options).unwrap();
        for (group, count) in (1..).zip(acknowledged) {
            let last = log.group(GroupId(group)).unwrap().last_index;
            assert!(last >= Index(count), "group {group}: {last} of {count}");
        }
    }
}
