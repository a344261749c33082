//! Segments, votes and manifest: a log of every kind of record.

use raft_log::vfs::{SimFs, Vfs};
use raft_log::{
    Base, Entry, EntryKind, GroupId, HardState, Incarnation, Index, IoMode, Log, LogOptions,
    NodeId, Record, SnapshotRef, Term, WriteBatch,
};

use crate::{STORE, golden, keep, updating};

const FILES: [&str; 4] = [
    "0000000000000001.seg",
    "0000000000000002.seg",
    "votes",
    "MANIFEST",
];

/// What each run of today is called, whether it closes the log, and what was written before segments kept their length.
const RUNS: [(&str, bool, [&str; 2]); 2] = [
    ("closed-3", true, ["closed", "closed-2"]),
    ("killed-3", false, ["killed", "killed-2"]),
];

/// A run with compressed entries. Another version of the compressor may write other blocks, so it is only read.
const COMPRESSED: &str = "compressed";

/// A run whose log was begun anew: an incarnation in records, checkpoint and vote slots.
const INCARNATION: &str = "incarnation-2";
/// The same of an earlier version.
const INCARNATION_BEFORE: &str = "incarnation";

fn options() -> LogOptions {
    let mut options = LogOptions::new("/log", STORE);
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    options.io = IoMode::Inline;
    options
}

fn entry(index: u64, term: u64, kind: EntryKind) -> Entry {
    Entry {
        index: Index(index),
        term: Term(term),
        kind,
        payload: vec![b'a' + (index % 26) as u8; 150 + index as usize].into(),
    }
}

/// Every kind of record, over two segments; the second run is killed, the first one closed.
fn write(fs: &SimFs, options: LogOptions, close: bool) {
    let (log, _) = Log::open(fs.shared(), options).unwrap();
    let put = |records: Vec<(u64, Record)>| {
        let mut batch = WriteBatch::new();
        for (group, record) in records {
            batch.push(GroupId(group), record);
        }
        log.write(batch).unwrap();
        log.drive().unwrap();
    };
    let base = |creation| Base {
        creation,
        membership: vec![1, 2, 3].into(),
        ..Base::default()
    };
    let state = HardState {
        term: Term(2),
        vote: Some(NodeId(5)),
        commit: Index(3),
    };
    put(vec![
        (1, Record::Compact(base(7))),
        (1, Record::HardState(state)),
        (2, Record::Compact(base(8))),
        (3, Record::Compact(base(9))),
    ]);
    for index in 1..=40 {
        let kind = if index == 3 {
            EntryKind::Config
        } else {
            EntryKind::Normal
        };
        put(vec![(
            1,
            Record::Entries(vec![entry(index, 1 + index / 20, kind)]),
        )]);
    }
    put(vec![
        (
            2,
            Record::Entries((1..=3).map(|n| entry(n, 1, EntryKind::Normal)).collect()),
        ),
        (2, Record::Truncate(Index(3))),
        (3, Record::Destroy),
    ]);
    let snapshot = SnapshotRef {
        index: Index(5),
        term: Term(1),
        number: 77,
        content_len: 1_000,
        content_crc: 0xdead_beef,
        membership: vec![4].into(),
    };
    put(vec![(1, Record::SnapshotRef(snapshot))]);
    if close {
        log.close().unwrap();
    } else {
        log.mark_synced().unwrap();
    }
}

/// Two groups of a log that was begun anew; the guard of the first one ends.
fn write_anew(fs: &SimFs) {
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    let put = |group: u64, record: Record| {
        let mut batch = WriteBatch::new();
        batch.push(GroupId(group), record);
        log.write(batch).unwrap();
        log.drive().unwrap();
    };
    let anew = |number, guarded| Record::Incarnation(Incarnation { number, guarded });
    let state = HardState {
        term: Term(3),
        vote: Some(NodeId(5)),
        commit: Index(0),
    };
    for group in [1, 2] {
        put(group, Record::Compact(Base::default()));
        put(group, Record::HardState(state));
        put(group, anew(group, true));
    }
    for index in 1..=60 {
        put(1, Record::Entries(vec![entry(index, 3, EntryKind::Normal)]));
    }
    put(1, anew(1, false));
    log.close().unwrap();
}

fn check_anew(log: &Log) {
    for (group, guarded) in [(1, false), (2, true)] {
        let info = log.group(GroupId(group)).unwrap();
        let number = group;
        assert_eq!(info.incarnation, Incarnation { number, guarded });
        assert_eq!(info.hard_state.vote, Some(NodeId(5)));
    }
    assert_eq!(log.group(GroupId(1)).unwrap().last_index, Index(60));
}

fn check(log: &Log) {
    assert_eq!(log.groups(), [GroupId(1), GroupId(2)]);
    let info = log.group(GroupId(1)).unwrap();
    assert_eq!(
        (info.base.creation, &info.base.membership[..]),
        (7, &[1, 2, 3][..])
    );
    assert_eq!(
        (info.hard_state.term, info.hard_state.vote),
        (Term(2), Some(NodeId(5)))
    );
    assert_eq!((info.last_index, info.last_term), (Index(40), Term(3)));
    let snapshot = info.snapshot.unwrap();
    assert_eq!((snapshot.number, snapshot.content_crc), (77, 0xdead_beef));
    let entries = log
        .entries(GroupId(1), Index(1)..Index(41), usize::MAX)
        .unwrap();
    for (found, index) in entries.iter().zip(1..) {
        let kind = if index == 3 {
            EntryKind::Config
        } else {
            EntryKind::Normal
        };
        assert_eq!(*found, entry(index, 1 + index / 20, kind));
    }
    assert_eq!(entries.len(), 40);
    assert_eq!(log.group(GroupId(2)).unwrap().last_index, Index(2));
}

/// The golden files of a run, on a disk of their own.
fn stored(run: &str) -> SimFs {
    let fs = SimFs::new(2);
    fs.create_dir_all("/log".as_ref()).unwrap();
    for name in FILES {
        let content = std::fs::read(golden(run).join(name)).unwrap();
        fs.write_file(format!("/log/{name}"), &content).unwrap();
    }
    fs
}

#[test]
fn golden_files_are_what_is_written_today() {
    for (run, close, _) in RUNS {
        let fs = SimFs::new(1);
        write(&fs, options(), close);
        let mut names = fs.list("/log".as_ref()).unwrap();
        names.retain(|name| name != "LOCK" && name != "next.tmp");
        assert_eq!(names, {
            let mut files = FILES.map(str::to_owned);
            files.sort();
            files
        });
        if updating() {
            update(&fs, run);
        }
        written_as(&fs, run);
    }
    let fs = SimFs::new(1);
    write_anew(&fs);
    if updating() {
        update(&fs, INCARNATION);
    }
    written_as(&fs, INCARNATION);
}

fn written_as(fs: &SimFs, run: &str) {
    let golden = stored(run);
    for name in FILES {
        let path = format!("/log/{name}");
        assert!(
            fs.read_file(&path).unwrap() == golden.read_file(&path).unwrap(),
            "{run}/{name} is not what is written today: the format changed"
        );
    }
}

fn update(fs: &SimFs, run: &str) {
    for name in FILES {
        let content = fs.read_file(format!("/log/{name}")).unwrap();
        keep(&golden(run).join(name), &content);
    }
}

#[test]
fn golden_files_open_with_their_content() {
    if updating() {
        let (fs, mut options) = (SimFs::new(1), options());
        // The last few: the rest must take two segments.
        options.lz4_bytes_min = Some(185);
        write(&fs, options, true);
        update(&fs, COMPRESSED);
    }
    let runs = RUNS
        .into_iter()
        .flat_map(|(new, _, old)| [new, old[0], old[1]]);
    for run in runs.chain([COMPRESSED]) {
        let fs = stored(run);
        let (log, report) = Log::open(fs.shared(), options()).unwrap();
        check(&log);
        assert_eq!(report.from_footers, 1, "{run}: {report}");
        log.close().unwrap();
        drop(log);
        check(&Log::open(fs.shared(), options()).unwrap().0);
    }
    for run in [INCARNATION, INCARNATION_BEFORE] {
        let fs = stored(run);
        let (log, report) = Log::open(fs.shared(), options()).unwrap();
        check_anew(&log);
        assert_eq!(report.from_footers, 1, "{report}");
        drop(log);
        check_anew(&Log::open(fs.shared(), options()).unwrap().0);
    }
}
