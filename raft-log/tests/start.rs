//! What a start makes of what it finds: footers, marks, the manifest, and damage to each of them.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeSet;

use raft_log::log::check::check;
use raft_log::log::inspect;
use raft_log::log::salvage::salvage;
use raft_log::vfs::sim::{CrashKind, Fault, SimFs};
use raft_log::vfs::{OpenMode, Vfs};
use raft_log::{
    Base, Entry, EntryKind, ErrorKind, GroupId, GroupInfo, HardState, Index, IoMode, Log, LogError,
    LogOptions, NodeId, Record, RecoveryReport, StoreId, Term, WriteBatch,
};

const FIRST: GroupId = GroupId(1);

fn options() -> LogOptions {
    let mut options = LogOptions::new("/log", StoreId(7));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    options.io = IoMode::Inline;
    options
}

fn try_open(fs: &SimFs) -> Result<(Log, RecoveryReport), LogError> {
    Log::open(fs.shared(), options())
}

fn open(fs: &SimFs) -> (Log, RecoveryReport) {
    try_open(fs).unwrap()
}

fn refusal(fs: &SimFs) -> LogError {
    let fs = fs.fork(1);
    fs.crash(CrashKind::Process);
    try_open(&fs).unwrap_err()
}

fn base(index: u64, term: u64, creation: u64) -> Record {
    Record::Compact(Base {
        index: Index(index),
        term: Term(term),
        creation,
        membership: vec![9; 10].into(),
    })
}

fn entry(index: u64, term: u64) -> Record {
    Record::Entries(vec![Entry {
        index: Index(index),
        term: Term(term),
        kind: EntryKind::Normal,
        payload: vec![index as u8 | 1; 60 + (index % 90) as usize].into(),
    }])
}

fn vote(term: u64) -> Record {
    Record::HardState(HardState {
        term: Term(term),
        vote: Some(NodeId(term)),
        commit: Index(0),
    })
}

fn write(log: &Log, records: Vec<(GroupId, Record)>) {
    let mut batch = WriteBatch::new();
    for (group, record) in records {
        batch.push(group, record);
    }
    log.write(batch).unwrap();
    log.drive().unwrap();
}

/// A log of one group, with so many entries.
fn written(fs: &SimFs, entries: u64) -> Log {
    let (log, _) = open(fs);
    write(&log, vec![(FIRST, base(0, 0, 1)), (FIRST, vote(1))]);
    for index in 1..=entries {
        write(&log, vec![(FIRST, entry(index, 1))]);
    }
    log
}

type State = Vec<(GroupId, GroupInfo, Vec<Entry>)>;

/// All that can be read.
fn state(log: &Log) -> State {
    let groups = log.groups().into_iter();
    groups
        .map(|id| {
            let info = log.group(id).unwrap();
            let range = info.base.index.next()..info.last_index.next();
            let entries = log.entries(id, range, usize::MAX).unwrap();
            for entry in &entries {
                assert_eq!(log.term_at(id, entry.index), Some(entry.term));
            }
            (id, info, entries)
        })
        .collect()
}

fn segments(fs: &SimFs) -> Vec<String> {
    let mut names = fs.list("/log".as_ref()).unwrap();
    names.retain(|name| name.ends_with(".seg"));
    names
}

fn newest(fs: &SimFs) -> String {
    format!("/log/{}", segments(fs).last().unwrap())
}

/// Where the last byte that is not zero lies, before the footer if there is one.
fn last_used(fs: &SimFs, path: &str) -> u64 {
    let data = fs.read_file(path).unwrap();
    data.iter().rposition(|byte| *byte != 0).unwrap() as u64
}

/// Many groups that overwrite, truncate, compact, and are destroyed and made again, over several segments.
fn eventful(fs: &SimFs) -> Log {
    let (log, _) = open(fs);
    let ids: Vec<GroupId> = (1..=4).map(GroupId).collect();
    let create = |id: &GroupId| [(*id, base(0, 0, 1)), (*id, vote(1))];
    write(&log, ids.iter().flat_map(create).collect());
    for round in 1..=120u64 {
        for id in &ids {
            let info = log.group(*id).unwrap();
            let (last, term) = (info.last_index.0, 1 + round / 25);
            let mut records = vec![(*id, entry(last + 1, term.max(info.last_term.0)))];
            match (round + id.0 * 7) % 31 {
                3 if last > info.base.index.0 + 3 => {
                    records.push((*id, Record::Truncate(Index(last - 1))));
                }
                5 if last > info.base.index.0 + 5 => {
                    records = vec![(*id, entry(last - 3, term.max(info.last_term.0)))];
                }
                9 if last > info.base.index.0 + 12 => {
                    let to = info.base.index.0 + 6;
                    let term = log.term_at(*id, Index(to)).unwrap();
                    records.push((*id, base(to, term.0, info.base.creation)));
                }
                11 => records.push((*id, vote(info.hard_state.term.0 + 1))),
                17 if id.0 == 3 => {
                    records = vec![
                        (*id, Record::Destroy),
                        (*id, base(0, 0, info.base.creation + 1)),
                        (*id, vote(1)),
                        (*id, entry(1, 1)),
                    ];
                }
                _ => {}
            }
            write(&log, records);
        }
    }
    log
}

#[test]
fn killed_log_opened_by_footers_is_the_same_as_read_in_full() {
    let fs = SimFs::new(1);
    let expected = state(&eventful(&fs));
    fs.crash(CrashKind::Process);
    let scanned = fs.fork(2);
    let (log, report) = open(&fs);
    assert!(report.segments > 3, "{report}");
    assert_eq!(report.from_footers, report.segments - 1, "{report}");
    for (found, wanted) in state(&log).iter().zip(&expected) {
        assert_eq!(found.1, wanted.1);
        let first = found.2.iter().zip(&wanted.2).find(|(a, b)| a != b);
        assert_eq!(
            first,
            None,
            "{} {} {}",
            found.0,
            found.2.len(),
            wanted.2.len()
        );
    }
    assert_eq!(state(&log), expected);
    for name in segments(&scanned) {
        let path = format!("/log/{name}");
        let len = scanned.file_len(&path).unwrap();
        scanned.corrupt(&path, len - 20, 4).unwrap();
    }
    let (log, read) = open(&scanned);
    assert_eq!((read.from_footers, read.batches), (0, report.batches));
    assert_eq!(state(&log), expected);
}

#[test]
fn closed_log_opened_again_and_again_keeps_using_footers() {
    let fs = SimFs::new(1);
    let log = written(&fs, 150);
    let expected = state(&log);
    log.close().unwrap();
    for round in 0..3 {
        let (log, report) = open(&fs);
        assert_eq!(
            report.from_footers + 1,
            report.segments,
            "round {round}: {report}"
        );
        assert_eq!((report.copied, report.notes.len()), (0, 0), "{report}");
        assert_eq!(state(&log), expected);
        log.close().unwrap();
    }
}

#[test]
fn bit_flipped_in_a_sealed_segment_never_gives_other_data() {
    let fs = SimFs::new(1);
    let log = written(&fs, 150);
    let expected = state(&log);
    log.close().unwrap();
    drop(log);
    for at in (0..16 << 10).step_by(61) {
        let flipped = fs.fork(3);
        flipped
            .corrupt("/log/0000000000000001.seg", at, 1 << (at % 8))
            .unwrap();
        let Ok((log, _)) = try_open(&flipped) else {
            continue;
        };
        let info = log.group(FIRST).unwrap();
        assert_eq!(info, expected[0].1, "offset {at}");
        match log.entries(FIRST, Index(1)..info.last_index.next(), usize::MAX) {
            Ok(entries) => assert_eq!(entries, expected[0].2, "offset {at}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corruption, "offset {at}"),
        }
    }
}

#[test]
fn damaged_last_batch_is_suspect_until_a_mark_follows_it() {
    let fs = SimFs::new(1);
    let log = written(&fs, 5);
    let path = newest(&fs);
    let at = last_used(&fs, &path);
    let unmarked = fs.fork(2);
    assert!(log.mark_synced().unwrap());
    assert!(!log.mark_synced().unwrap(), "one mark is enough");
    drop(log);
    unmarked.corrupt(&path, at, 1).unwrap();
    assert_eq!(refusal(&unmarked).kind(), ErrorKind::SuspectTail);
    let marked = fs.fork(3);
    marked.corrupt(&path, at, 1).unwrap();
    assert_eq!(refusal(&marked).kind(), ErrorKind::Corruption);
    // The mark itself is worth nothing.
    for back in 0..64 {
        let fs = fs.fork(4);
        fs.crash(CrashKind::Process);
        let end = last_used(&fs, &path);
        fs.corrupt(&path, end - back, 1).unwrap();
        let (log, report) = open(&fs);
        assert_eq!(log.group(FIRST).unwrap().last_index, Index(5));
        assert_eq!(
            report.copied,
            if report.cut.is_some() { 1 } else { 0 },
            "{report}"
        );
    }
}

#[test]
fn idle_thread_marks_once_what_a_lone_writer_left() {
    let fs = SimFs::new(1);
    let mut options = options();
    options.io = IoMode::Thread;
    let (log, _) = Log::open(fs.shared(), options).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    log.on_progress(Box::new(move || {
        // Nobody listens any more once the mark is there.
        let _ = tell.send(());
    }));
    write(&log, vec![(FIRST, base(0, 0, 1)), (FIRST, entry(1, 1))]);
    let last_batch_is_a_mark = || {
        let mut last = None;
        inspect::segment(&fs, "/log".as_ref(), 1, &mut |batch| last = Some(batch)).unwrap();
        last.is_some_and(|batch| batch.seq > 1 && batch.records.is_empty())
    };
    while !last_batch_is_a_mark() {
        told.recv().unwrap();
    }
    assert!(!log.mark_synced().unwrap(), "a mark is not marked");
}

/// What was written may have zeros of its own, whole sectors or the end of a batch just behind the edge of one. They are no
/// sign of a write that was torn, and a byte that went bad elsewhere in the batch, or among the last ones, is told.
#[test]
fn damaged_last_batch_with_zeros_of_its_own_is_suspect_and_not_torn() {
    let (mut suspect, mut sectors) = (0, BTreeSet::new());
    for zeros in (1..600).step_by(37).chain([2_000]) {
        for filled in 1..40 {
            let fs = SimFs::new(1);
            let log = written(&fs, 2);
            let payload = [vec![7; filled * 13], vec![0; zeros], vec![9]].concat();
            let payload = payload[..payload.len() - filled % 2].to_vec();
            let record = Record::Entries(vec![Entry {
                index: Index(3),
                term: Term(1),
                kind: EntryKind::Normal,
                payload: payload.into(),
            }]);
            write(&log, vec![(FIRST, record)]);
            drop(log);
            let path = newest(&fs);
            let data = fs.read_file(&path).unwrap();
            let from = data
                .windows(13)
                .rposition(|bytes| *bytes == [7; 13])
                .unwrap() as u64;
            sectors.insert(from % 512 / 64);
            fs.corrupt(&path, from, 1).unwrap();
            let error = refusal(&fs);
            assert_eq!(
                error.kind(),
                ErrorKind::SuspectTail,
                "{zeros} {filled}: {error}"
            );
            suspect += 1;
        }
    }
    assert!(suspect > 500 && sectors.len() == 8, "{suspect} {sectors:?}");
}

#[test]
fn newest_segment_gone_is_refused_by_name() {
    let fs = SimFs::new(1);
    written(&fs, 150).close().unwrap();
    let gone = newest(&fs);
    fs.remove(gone.as_ref()).unwrap();
    let error = refusal(&fs);
    assert_eq!(error.kind(), ErrorKind::Corruption);
    let name = gone.trim_start_matches("/log/").trim_end_matches(".seg");
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn manifest_block_damaged_is_replaced_and_both_are_suspect() {
    let fs = SimFs::new(1);
    let log = written(&fs, 150);
    let expected = state(&log);
    log.close().unwrap();
    for block in [0, 4096] {
        let fs = fs.fork(2);
        fs.corrupt("/log/MANIFEST", block + 40, 2).unwrap();
        let (log, report) = open(&fs);
        assert!(report.to_string().contains("MANIFEST"), "{report}");
        assert_eq!(state(&log), expected);
        drop(log);
        assert_eq!(open(&fs).1.notes.len(), 0);
    }
    fs.corrupt("/log/MANIFEST", 40, 2).unwrap();
    fs.corrupt("/log/MANIFEST", 4096 + 40, 2).unwrap();
    assert_eq!(refusal(&fs).kind(), ErrorKind::SuspectTail);
    let mut accepting = options();
    accepting.accept_suspect_tail = true;
    let (log, _) = Log::open(fs.shared(), accepting).unwrap();
    assert_eq!(state(&log), expected);
}

#[test]
fn manifest_of_an_earlier_time_is_refused() {
    let fs = SimFs::new(1);
    let old = {
        written(&fs, 5).close().unwrap();
        fs.read_file("/log/MANIFEST").unwrap()
    };
    let (log, _) = open(&fs);
    write(&log, vec![(FIRST, entry(6, 1))]);
    drop(log);
    fs.write_file("/log/MANIFEST", &old).unwrap();
    assert_eq!(refusal(&fs).kind(), ErrorKind::Corruption);
}

#[test]
fn directory_sync_that_fails_in_a_start_loses_nothing_after_a_power_loss() {
    for clean in [false, true] {
        for nth in 0..8 {
            for seed in 0..12 {
                let fs = SimFs::new(seed);
                let log = written(&fs, 40);
                let mut expected = state(&log)[0].2.len() as u64;
                if clean {
                    log.close().unwrap();
                }
                fs.crash(CrashKind::Process);
                fs.fail_nth(Fault::SyncDir, nth);
                let first = try_open(&fs);
                if let Ok((log, _)) = &first {
                    // The fault is still to come; this run notices it at the latest when it purges.
                    let mut batch = WriteBatch::new();
                    batch.push(FIRST, entry(expected + 1, 1));
                    expected += u64::from(log.write(batch).is_ok());
                }
                drop(first);
                fs.crash(CrashKind::Process);
                if let Ok((log, _)) = try_open(&fs) {
                    let last = log.group(FIRST).unwrap().last_index;
                    write(&log, vec![(FIRST, entry(last.0 + 1, 1))]);
                    expected = last.0 + 1;
                }
                fs.crash(CrashKind::Power);
                let (log, _) = try_open(&fs).unwrap_or_else(|error| {
                    panic!("clean {clean}, fault {nth}, seed {seed}: {error}")
                });
                let info = log.group(FIRST).unwrap();
                assert!(
                    info.last_index.0 >= expected,
                    "clean {clean}, fault {nth}, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn crash_at_every_operation_of_a_start_rotation_and_purge_keeps_what_was_synced() {
    for kind in [CrashKind::Process, CrashKind::Power] {
        for point in 0.. {
            let fs = SimFs::new(point);
            written(&fs, 30);
            fs.crash(CrashKind::Process);
            fs.fail_after(point);
            let (mut synced, mut purged) = (30, 0);
            if let Ok((log, _)) = try_open(&fs) {
                for index in 31..=150 {
                    let mut batch = WriteBatch::new();
                    batch.push(FIRST, entry(index, 1));
                    if index == 120 {
                        batch.push(FIRST, base(100, 1, 1));
                    }
                    if log.write(batch).is_err() || log.drive().is_err() {
                        break;
                    }
                    (synced, purged) = (index, if index >= 120 { 100 } else { purged });
                }
                let _ = log.close();
            }
            let finished = !fs.is_down();
            fs.crash(kind);
            for round in 0..2 {
                let (log, _) = try_open(&fs)
                    .unwrap_or_else(|error| panic!("{kind:?} {point} {round}: {error}"));
                let info = log.group(FIRST).unwrap();
                assert!(info.last_index.0 >= synced, "{kind:?} {point}");
                assert!(info.base.index.0 >= purged, "{kind:?} {point}");
                state(&log);
                drop(log);
                fs.crash(CrashKind::Power);
            }
            if finished {
                assert_eq!(synced, 150);
                break;
            }
        }
    }
}

#[test]
fn reading_that_fails_in_a_start_is_an_error_and_the_next_start_works() {
    let fs = SimFs::new(1);
    let expected = state(&written(&fs, 150));
    fs.crash(CrashKind::Process);
    let mut failed = 0;
    for nth in 0..60 {
        let fs = fs.fork(nth);
        fs.fail_nth(Fault::Read, nth);
        let error = match try_open(&fs) {
            Err(error) => error,
            Ok((log, _)) => {
                // A footer, a checkpoint or a block of a small file: another one does.
                assert!(log.group(FIRST).is_some());
                continue;
            }
        };
        assert!(
            matches!(error.kind(), ErrorKind::Io | ErrorKind::SuspectTail),
            "read {nth}: {error}"
        );
        // Not taken for damage that nobody read about.
        assert!(
            error.to_string().contains("os error 5"),
            "read {nth}: {error}"
        );
        failed += 1;
        assert_eq!(state(&open(&fs).0), expected, "read {nth}");
    }
    assert!(failed > 0);
}

#[test]
fn many_groups_share_small_segments_checkpoints_and_a_start() {
    let fs = SimFs::new(1);
    let (log, _) = open(&fs);
    let ids: Vec<GroupId> = (1..=5_000).map(GroupId).collect();
    write(&log, ids.iter().map(|id| (*id, base(0, 0, 1))).collect());
    write(&log, ids.iter().map(|id| (*id, vote(2))).collect());
    for index in 1..=12 {
        write(&log, ids.iter().map(|id| (*id, entry(index, 2))).collect());
    }
    let odd = ids.iter().filter(|id| id.0 % 2 == 1);
    write(&log, odd.map(|id| (*id, base(2, 2, 1))).collect());
    let expected = state(&log);
    log.close().unwrap();
    let (log, report) = open(&fs);
    assert_eq!(state(&log), expected);
    assert!(report.segments > 1, "{report}");
    // A checkpoint takes 120 bytes and the membership for each group, and a segment eight times that.
    let len = fs.file_len(newest(&fs)).unwrap();
    let checkpoint = 5_000 * (24 + 32 + 32 + 10 + 16u64).next_multiple_of(8);
    assert!(len >= 8 * checkpoint && len < 10 * checkpoint, "{len}");
}

#[test]
fn groups_whose_checkpoint_would_not_fit_are_refused() {
    let fs = SimFs::new(1);
    let (log, _) = open(&fs);
    let create = |id| {
        let mut batch = WriteBatch::new();
        let base = Base {
            membership: vec![1; 20 << 20].into(),
            ..Base::default()
        };
        batch.push(GroupId(id), Record::Compact(base));
        log.enqueue(batch)
    };
    for id in 1..=3 {
        create(id).unwrap();
    }
    assert_eq!(create(4).unwrap_err().kind(), ErrorKind::TooLarge);
}

#[test]
fn leftover_segment_that_was_struck_off_is_removed() {
    let fs = SimFs::new(1);
    let log = written(&fs, 150);
    let old = fs.read_file("/log/0000000000000001.seg").unwrap();
    write(&log, vec![(FIRST, base(140, 1, 1))]);
    log.close().unwrap();
    let expected = state(&open(&fs).0);
    assert!(!segments(&fs).contains(&"0000000000000001.seg".to_owned()));
    fs.write_file("/log/0000000000000001.seg", &old).unwrap();
    let (log, report) = open(&fs);
    assert_eq!(report.notes.len(), 1, "{report}");
    assert_eq!(state(&log), expected);
    assert!(
        fs.open("/log/0000000000000001.seg".as_ref(), OpenMode::Read)
            .is_err()
    );
}

/// A former life's slots once lived on: a group made again with the same creation had their term and vote after a start.
#[test]
fn group_destroyed_and_made_again_with_the_same_creation_has_no_vote_of_its_former_life() {
    for (together, closed) in [(false, false), (false, true), (true, false), (true, true)] {
        let fs = SimFs::new(1);
        let (log, _) = open(&fs);
        write(&log, vec![(FIRST, base(0, 0, 0)), (FIRST, vote(5))]);
        write(&log, vec![(FIRST, vote(7))]);
        // The new life ends up with none, with a lower term, and with another vote in the same term.
        for term in [0, 3, 7] {
            let other = HardState {
                term: Term(term),
                vote: (term > 0).then_some(NodeId(99)),
                commit: Index(0),
            };
            let records = [
                Record::HardState(HardState {
                    term: Term(40 + term),
                    ..HardState::default()
                }),
                Record::Destroy,
                base(0, 0, 0),
                Record::HardState(other),
            ];
            for record in records {
                let mut batch = WriteBatch::new();
                batch.push(FIRST, record);
                log.enqueue(batch).unwrap();
                if !together {
                    log.drive().unwrap();
                }
            }
            while log.drive().unwrap() {}
            let fs = fs.fork(term);
            fs.crash(CrashKind::Process);
            let (again, _) = open(&fs);
            if closed {
                again.close().unwrap();
            }
            drop(again);
            let found = open(&fs).0.group(FIRST).unwrap().hard_state;
            assert_eq!(found, other, "together {together}, closed {closed}");
        }
    }
}

/// A life that never voted found the slot of the next one, when the write that held both its end and the vote was lost.
#[test]
fn group_whose_end_is_lost_has_no_vote_of_its_next_life() {
    let mut lost = 0;
    for operations in 0..12 {
        let fs = SimFs::new(1);
        let (log, _) = open(&fs);
        write(&log, vec![(FIRST, base(4, 1, 0))]);
        for record in [Record::Destroy, base(0, 0, 0), vote(5)] {
            let mut batch = WriteBatch::new();
            batch.push(FIRST, record);
            log.enqueue(batch).unwrap();
        }
        fs.fail_after(operations);
        while log.drive().is_ok_and(|more| more) {}
        let fs = fs.fork(operations);
        fs.crash(CrashKind::Power);
        let (again, _) = open(&fs);
        // Nothing was acknowledged, so it may be in any of its lives, or in none.
        if let Some(found) = again
            .group(FIRST)
            .filter(|info| info.base.index == Index(4))
        {
            assert_eq!(found.hard_state, HardState::default(), "{operations}");
            lost += 1;
        }
    }
    assert!(lost > 0, "the end was never lost");
}

#[test]
fn group_destroyed_and_made_again_in_one_batch_needs_a_greater_creation() {
    let fs = SimFs::new(1);
    let (log, _) = open(&fs);
    write(&log, vec![(FIRST, base(0, 0, 4)), (FIRST, vote(5))]);
    for creation in [0, 4, 5] {
        let mut batch = WriteBatch::new();
        batch.push(FIRST, Record::Destroy);
        batch.push(FIRST, base(0, 0, creation));
        match log.write(batch) {
            Ok(()) => assert_eq!(creation, 5),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidBatch);
                assert!(
                    error.to_string().contains("with a greater number"),
                    "{error}"
                );
                assert_eq!(log.group(FIRST).unwrap().hard_state.term, Term(5));
            }
        }
    }
    drop(log);
    let info = open(&fs).0.group(FIRST).unwrap();
    assert_eq!(
        (info.base.creation, info.hard_state),
        (5, HardState::default())
    );
}

#[test]
fn crash_at_every_operation_between_two_lives_of_a_group_mixes_nothing() {
    for kind in [CrashKind::Process, CrashKind::Power] {
        for point in 0.. {
            let fs = SimFs::new(point);
            let (log, _) = open(&fs);
            write(&log, vec![(FIRST, base(0, 0, 0)), (FIRST, vote(5))]);
            fs.fail_after(point);
            let mut done = 0;
            for record in [Record::Destroy, base(0, 0, 0), vote(2)] {
                let mut batch = WriteBatch::new();
                batch.push(FIRST, record);
                if log.write(batch).is_err() {
                    break;
                }
                done += 1;
            }
            let finished = !fs.is_down();
            drop(log);
            fs.crash(kind);
            for round in 0..2 {
                let (log, _) = open(&fs);
                let term = log.group(FIRST).map(|info| info.hard_state.term.0);
                let allowed = [Some(5), None, Some(0), Some(2)];
                let at = allowed.iter().position(|it| *it == term).unwrap();
                assert!(
                    at >= done,
                    "{kind:?} {point} {round}: {term:?} after {done}"
                );
                drop(log);
                fs.crash(CrashKind::Power);
            }
            if finished {
                assert_eq!(done, 3);
                break;
            }
        }
    }
}

fn entries(first: u64, terms: &[u64]) -> Record {
    let entry = |(index, term): (u64, &u64)| Entry {
        index: Index(index),
        term: Term(*term),
        kind: EntryKind::Normal,
        payload: vec![1; 20].into(),
    };
    Record::Entries((first..).zip(terms).map(entry).collect())
}

#[test]
fn entries_whose_term_goes_down_are_refused_and_nothing_of_the_batch_is_taken() {
    let fs = SimFs::new(1);
    let (log, _) = open(&fs);
    write(
        &log,
        vec![(FIRST, base(10, 4, 1)), (FIRST, entries(11, &[4, 6, 8]))],
    );
    let refused: [Vec<Record>; 10] = [
        // Behind what is there, within a record, and between two of a batch.
        vec![entries(14, &[7])],
        vec![entries(14, &[9, 8])],
        vec![entries(14, &[9]), entries(15, &[8])],
        // In the place of others: what counts is the entry before.
        vec![entries(13, &[5])],
        vec![entries(11, &[3])],
        vec![entries(12, &[7, 7]), entries(13, &[6])],
        // Behind a cut, and behind a base.
        vec![Record::Truncate(Index(13)), entries(13, &[5])],
        vec![
            entries(12, &[7]),
            Record::Truncate(Index(13)),
            entries(13, &[6]),
        ],
        vec![base(20, 9, 1), entries(21, &[8])],
        vec![
            Record::Destroy,
            base(3, 2, 2),
            entries(4, &[2, 3]),
            entries(5, &[1]),
        ],
    ];
    for records in refused {
        let before = log.group(FIRST).unwrap();
        let mut batch = WriteBatch::new();
        for record in &records {
            batch.push(FIRST, record.clone());
        }
        let error = log.write(batch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidBatch, "{records:?}");
        assert!(
            error.to_string().contains("terms do not decrease"),
            "{error}"
        );
        assert_eq!(log.group(FIRST).unwrap(), before);
    }
    // A new leader's entries may be older than those that they replace.
    write(&log, vec![(FIRST, entries(13, &[7, 7]))]);
    write(
        &log,
        vec![(FIRST, entries(12, &[4])), (FIRST, entries(13, &[5]))],
    );
    write(
        &log,
        vec![
            (FIRST, Record::Truncate(Index(12))),
            (FIRST, entries(12, &[4, 4])),
        ],
    );
    let expected = state(&log);
    drop(log);
    assert_eq!(state(&open(&fs).0), expected);
}

/// Bytes of all files of the log.
fn disk_use(fs: &SimFs) -> u64 {
    let names = fs.list("/log".as_ref()).unwrap();
    let len = |name: &String| fs.file_len(format!("/log/{name}")).unwrap();
    names.iter().map(len).sum()
}

/// Opens a log of the default sizes `starts` times, and writes so many bytes each time.
fn restarted(starts: u64, bytes: usize, clean: bool) -> (SimFs, u64) {
    let fs = SimFs::new(1);
    let options = LogOptions {
        io: IoMode::Inline,
        ..LogOptions::new("/log", StoreId(7))
    };
    let mut last = 0;
    for start in 0..starts {
        let (log, _) = Log::open(fs.shared(), options.clone()).unwrap();
        if start == 0 {
            write(&log, vec![(FIRST, base(0, 0, 0)), (FIRST, vote(1))]);
        }
        assert_eq!(log.group(FIRST).unwrap().last_index, Index(last));
        if bytes > 0 {
            last += 1;
            let entry = Entry {
                index: Index(last),
                term: Term(1),
                kind: EntryKind::Normal,
                payload: vec![last as u8 | 1; bytes].into(),
            };
            write(&log, vec![(FIRST, Record::Entries(vec![entry]))]);
        }
        if clean {
            log.close().unwrap();
        } else {
            drop(log);
            fs.crash(CrashKind::Process);
        }
    }
    let (log, _) = Log::open(fs.shared(), options).unwrap();
    let mut next = Index(1);
    while next <= Index(last) {
        for entry in log.entries(FIRST, next..Index(last + 1), 1 << 20).unwrap() {
            assert_eq!((entry.index, entry.payload.len()), (next, bytes));
            next = next.next();
        }
    }
    drop(log);
    (fs, bytes as u64 * starts)
}

/// Each start once left a segment of a mebibyte behind.
#[test]
fn log_started_a_hundred_times_takes_no_more_than_what_is_written_needs() {
    // The segment at hand, the one that is made ahead, manifest and votes.
    let fixed = (1 << 20) + (2 << 20) + (16 << 10);
    for clean in [true, false] {
        for bytes in [0, 1_000, 100_000] {
            let (fs, written) = restarted(100, bytes, clean);
            let (used, needed) = (disk_use(&fs), fixed + 2 * written);
            assert!(
                used <= needed,
                "clean {clean}, {bytes} bytes each: {used} > {needed}"
            );
        }
    }
}

#[test]
fn segment_that_was_taken_over_and_comes_back_is_left_out_and_removed() {
    for half_manifest in [false, true] {
        let fs = SimFs::new(1);
        let log = written(&fs, 20);
        let expected = state(&log);
        log.close().unwrap();
        drop(log);
        let old: Vec<(String, Vec<u8>)> = segments(&fs)
            .into_iter()
            .map(|name| {
                (
                    format!("/log/{name}"),
                    fs.read_file(format!("/log/{name}")).unwrap(),
                )
            })
            .collect();
        let (log, report) = open(&fs);
        assert_eq!(
            (report.taken_over, report.batches),
            (Some(1), 21),
            "{report}"
        );
        assert_eq!(segments(&fs), ["0000000000000002.seg"]);
        drop(log);
        for (path, data) in &old {
            fs.write_file(path, data).unwrap();
        }
        if half_manifest {
            // Then it is not known which segment is the newest one that was named.
            fs.corrupt("/log/MANIFEST", 40, 2).unwrap();
        }
        let (log, _) = open(&fs);
        assert_eq!(state(&log), expected);
        assert_eq!(segments(&fs), ["0000000000000003.seg"]);
    }
}

/// What a start, a check and a salvage say about damage to one batch.
fn told(fs: &SimFs) -> [String; 3] {
    let fs = fs.fork(1);
    fs.crash(CrashKind::Process);
    let found = check(&fs.shared(), &options(), &mut || ()).unwrap();
    let checked = found.findings.iter().map(ToString::to_string).collect();
    let to = std::path::Path::new("/copy");
    let report = salvage(&fs.shared(), &options(), to, &|_, _| true, &|_| None).unwrap();
    let salvaged = report.damage.iter().map(ToString::to_string).collect();
    let started = match try_open(&fs) {
        Ok((_, report)) => report.to_string(),
        Err(error) => error.to_string(),
    };
    [started, checked, salvaged]
}

fn offset_of(fs: &SimFs, batch: u64) -> u64 {
    let mut at = None;
    let mut visit = |found: inspect::BatchInfo| {
        if found.seq == batch && found.offset > 4096 {
            at = Some(found.offset);
        }
    };
    inspect::segment(fs, "/log".as_ref(), 1, &mut visit).unwrap();
    at.unwrap()
}

#[test]
fn damaged_batch_with_good_ones_behind_it_is_told_with_their_number() {
    let path = "/log/0000000000000001.seg";
    let fs = SimFs::new(1);
    let log = written(&fs, 5);
    let expected = "3 further batches verify behind it, up to sequence 6";
    let damaged = fs.fork(1);
    damaged.corrupt(path, offset_of(&fs, 3) + 90, 1).unwrap();
    assert_eq!(refusal(&damaged).kind(), ErrorKind::Corruption);
    for text in told(&damaged) {
        assert!(text.contains(expected), "{text}");
    }
    // A header that is lost hides nothing that comes later.
    let damaged = fs.fork(1);
    damaged.corrupt(path, offset_of(&fs, 3), 1).unwrap();
    for text in told(&damaged) {
        assert!(text.contains(expected), "{text}");
    }
    // Three batches of one write: nothing says that the first of them was synced.
    for index in 6..=8 {
        let mut batch = WriteBatch::new();
        let mut payload = vec![1; 1_600];
        payload[600..].fill(index as u8);
        let entry = Entry {
            index: Index(index),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: payload.into(),
        };
        batch.push(FIRST, Record::Entries(vec![entry]));
        log.enqueue(batch).unwrap();
    }
    log.drive().unwrap();
    let expected = "2 further batches verify behind it, up to sequence 9";
    let at = offset_of(&fs, 7);
    let damaged = fs.fork(1);
    damaged.corrupt(path, at + 90, 1).unwrap();
    assert_eq!(refusal(&damaged).kind(), ErrorKind::SuspectTail);
    for text in told(&damaged) {
        assert!(text.contains(expected), "{text}");
    }
    // With a sector that was never written it is a torn write, which nobody was told about.
    let sector = (at + 64).next_multiple_of(512);
    let mut content = fs.read_file(path).unwrap();
    content[sector as usize..sector as usize + 512].fill(0);
    fs.write_file(path, &content).unwrap();
    let [started, checked, _] = told(&fs);
    for text in [started, checked] {
        assert!(text.contains(expected), "{text}");
    }
    drop(log);
    let last = open(&fs).0.group(FIRST).unwrap().last_index;
    assert_eq!(last, Index(5));
}
