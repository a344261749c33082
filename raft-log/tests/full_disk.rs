//! A disk without space for the next segment: new work is refused early, what was taken is kept, and it ends by itself.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use raft_log::vfs::sim::CrashKind;
use raft_log::vfs::{SharedVfs, SimFs, Vfs};
use raft_log::{
    Base, Entry, EntryKind, ErrorKind, GroupId, HardState, Index, IoMode, Log, LogOptions, Record,
    Space, StoreId, Term, WriteBatch,
};

const GROUP: GroupId = GroupId(1);
const PAYLOAD: usize = 1_000;
const WAIT: Duration = Duration::from_millis(50);
/// Twenty seconds of them.
const WAITS_MAX: u32 = 400;

fn batch(index: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let entry = Entry {
        index: Index(index),
        term: Term(1),
        kind: EntryKind::Normal,
        payload: vec![index as u8; PAYLOAD].into(),
    };
    batch.push(GROUP, Record::Entries(vec![entry]));
    batch
}

fn open(fs: &SimFs) -> Log {
    let mut options = LogOptions::new("/log", StoreId(1));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    options.io = IoMode::Inline;
    let vfs: SharedVfs = Arc::new(fs.clone());
    Log::open(vfs, options).unwrap().0
}

#[test]
fn disk_without_room_for_a_segment_says_full_until_there_is_room_and_loses_nothing() {
    let fs = SimFs::new(1);
    let log = open(&fs);
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    log.write(first).unwrap();
    // Room for the segment at hand and the one that is ready.
    fs.set_capacity(Some(48 << 10));
    let (mut index, mut said_full) = (0, false);
    let ticket = loop {
        index += 1;
        let ticket = log.enqueue_accepted(batch(index)).unwrap();
        log.drive().unwrap();
        if !log.is_durable(ticket).unwrap() {
            break ticket;
        }
        // Once said, it stays said, although what still fits goes on being written.
        assert!(!said_full || log.space() == Space::Full, "entry {index}");
        said_full |= log.space() == Space::Full;
    };
    assert!(said_full, "it was said before something did not fit");
    assert_eq!(log.wait(ticket).unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(log.group(GROUP).unwrap().durable_index, Index(index - 1));

    fs.set_capacity(None);
    assert!(log.drive().unwrap());
    assert!(log.is_durable(ticket).unwrap());
    assert_eq!(log.space(), Space::Available);
    log.write(batch(index + 1)).unwrap();
    log.close().unwrap();
    drop(log);
    let entries = open(&fs)
        .entries(GROUP, Index(1)..Index(index + 2), usize::MAX)
        .unwrap();
    assert_eq!(entries.len() as u64, index + 1);
    assert!(entries.iter().all(|entry| entry.payload.len() == PAYLOAD));
}

/// The log's thread looked for space when nobody had woken it for a second, so never where somebody always did.
#[test]
fn thread_finds_space_although_it_is_woken_all_the_time() {
    let fs = SimFs::new(1);
    let mut options = LogOptions::new("/log", StoreId(1));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    let vfs: SharedVfs = Arc::new(fs.clone());
    let (log, _) = Log::open(vfs, options).unwrap();
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    log.write(first).unwrap();
    fs.set_capacity(Some(48 << 10));
    let mut index = 0;
    let until = |space: Space, step: &mut dyn FnMut()| {
        let mut waits = 0;
        while log.space() != space {
            waits += 1;
            assert!(waits < WAITS_MAX, "not {space:?} in time");
            step();
            log.wake();
            thread::park_timeout(WAIT);
        }
    };
    until(Space::Full, &mut || {
        index += 1;
        // What does not fit waits.
        let _ = log.enqueue(batch(index));
    });
    fs.set_capacity(None);
    // As a member does that follows: it goes on with what still fits.
    let mut commit = 0;
    until(Space::Available, &mut || {
        commit += 1;
        let mut batch = WriteBatch::new();
        let state = HardState {
            term: Term(1),
            vote: None,
            commit: Index(commit.min(index - 1)),
        };
        batch.push(GROUP, Record::HardState(state));
        log.enqueue_accepted(batch).unwrap();
    });
    log.close().unwrap();
}

/// Entries that had to wait would stand before the compaction that makes room for them.
#[test]
fn entries_that_do_not_fit_a_full_log_are_refused_and_what_makes_room_is_not() {
    let fs = SimFs::new(1);
    let (log, last) = filled(&fs, u64::MAX);
    let before = log.group(GROUP).unwrap();
    assert_eq!((before.last_index, log.space()), (Index(last), Space::Full));
    let vote = HardState {
        term: Term(7),
        ..HardState::default()
    };
    for _ in 0..3 {
        // A batch is taken as a whole or not at all.
        let mut both = batch(last + 1);
        both.push(GROUP, Record::HardState(vote));
        for error in [
            log.submit(both.clone()).unwrap_err(),
            log.enqueue(both.clone()).unwrap_err(),
            log.write(both).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        }
        assert_eq!(log.group(GROUP).unwrap(), before);
        assert_eq!(log.stats().queued, 0);
    }
    let base = Base {
        index: Index(last),
        term: Term(1),
        ..Base::default()
    };
    for record in [Record::HardState(vote), Record::Compact(base)] {
        let mut batch = WriteBatch::new();
        batch.push(GROUP, record);
        log.write(batch).unwrap();
    }
    log.write(batch(last + 1)).unwrap();
    log.close().unwrap();
    drop(log);
    let info = open(&fs).group(GROUP).unwrap();
    assert_eq!(
        (info.last_index, info.hard_state.term),
        (Index(last + 1), Term(7))
    );
}

#[test]
fn entries_behind_one_that_waits_for_space_are_refused_although_they_would_fit() {
    let fs = SimFs::new(1);
    let (log, last) = filled(&fs, u64::MAX);
    let waiting = log.enqueue_accepted(batch(last + 1)).unwrap();
    log.drive().unwrap();
    assert!(!log.is_durable(waiting).unwrap());
    let error = log.enqueue(batch(last + 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(log.stats().queued, 1);
    fs.set_capacity(None);
    log.write(batch(last + 2)).unwrap();
    assert!(log.is_durable(waiting).unwrap());
    assert_eq!(log.group(GROUP).unwrap().durable_index, Index(last + 2));
}

/// Fills a log on a small disk; returns it with the last index that was written, and before anything is stuck if told
/// how many entries fit.
fn filled(fs: &SimFs, entries: u64) -> (Log, u64) {
    let log = open(fs);
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    let state = HardState {
        term: Term(1),
        ..HardState::default()
    };
    first.push(GROUP, Record::HardState(state));
    log.write(first).unwrap();
    // Three segments, manifest and votes.
    fs.set_capacity(Some(64 << 10));
    for index in 1..=entries {
        match log.enqueue(batch(index)) {
            Ok(ticket) => {
                log.drive().unwrap();
                assert!(log.is_durable(ticket).unwrap(), "what is taken fits");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                return (log, index - 1);
            }
        }
    }
    (log, entries)
}

#[test]
fn disk_with_little_room_gets_a_shorter_segment() {
    let fs = SimFs::new(1);
    let mut options = LogOptions::new("/log", StoreId(1));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 256 << 10;
    options.io = IoMode::Inline;
    let vfs: SharedVfs = Arc::new(fs.clone());
    let (log, _) = Log::open(vfs, options).unwrap();
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    log.write(first).unwrap();
    // 16, 32 and 64 KiB, manifest and votes, and no room for 128.
    fs.set_capacity(Some(224 << 10));
    let mut index = 0;
    while log.stats().segments < 4 {
        index += 1;
        let ticket = log.enqueue(batch(index)).unwrap();
        log.drive().unwrap();
        assert!(log.is_durable(ticket).unwrap(), "entry {index}");
    }
    log.close().unwrap();
}

#[test]
fn full_segment_takes_terms_truncations_and_compactions_and_space_comes_back() {
    let (_, fits) = filled(&SimFs::new(1), u64::MAX);
    assert!(fits > 10);
    let fs = SimFs::new(1);
    let (log, last) = filled(&fs, fits);
    assert_eq!((last, log.space()), (fits, Space::Full));
    let segments = log.stats().segments;
    let write = |record: Record| {
        let mut batch = WriteBatch::new();
        batch.push(GROUP, record);
        let ticket = log.enqueue(batch).unwrap();
        log.drive().unwrap();
        assert!(log.is_durable(ticket).unwrap());
    };
    for term in 2..=6 {
        write(Record::HardState(HardState {
            term: Term(term),
            ..HardState::default()
        }));
    }
    write(Record::Truncate(Index(last)));
    assert_eq!(log.space(), Space::Full);
    assert_eq!(log.stats().segments, segments);
    write(Record::Compact(Base {
        index: Index(last - 1),
        term: Term(1),
        ..Base::default()
    }));
    // Without entries the older segments go, and there is room for the next one.
    log.drive().unwrap();
    assert_eq!(log.space(), Space::Available);
    log.write(batch(last)).unwrap();
    log.close().unwrap();
    drop(log);
    let info = open(&fs).group(GROUP).unwrap();
    assert_eq!(
        (info.last_index, info.hard_state.term),
        (Index(last), Term(6))
    );
}

// ---- starts ----

/// Lets nothing more fit than what is there.
fn fill_up(fs: &SimFs) {
    const PLENTY: u64 = 1 << 40;
    fs.set_capacity(Some(PLENTY));
    let free = fs.available("/".as_ref()).unwrap();
    fs.set_capacity(Some(PLENTY - free));
}

fn try_open(fs: &SimFs) -> Result<Log, raft_log::LogError> {
    let mut options = LogOptions::new("/log", StoreId(1));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    options.io = IoMode::Inline;
    Log::open(fs.shared(), options).map(|opened| opened.0)
}

fn read_all(log: &Log, last: u64) {
    let entries = log
        .entries(GROUP, Index(1)..Index(last + 1), usize::MAX)
        .unwrap();
    assert_eq!(entries.len() as u64, last);
    assert!(entries.iter().all(|entry| entry.payload.len() == PAYLOAD));
}

fn compact(index: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let base = Base {
        index: Index(index),
        term: Term(1),
        ..Base::default()
    };
    batch.push(GROUP, Record::Compact(base));
    batch
}

#[test]
fn start_of_a_closed_log_on_a_full_disk_reads_and_goes_on_when_there_is_space() {
    for starts in [1, 5] {
        let fs = SimFs::new(1);
        let (log, last) = filled(&fs, u64::MAX);
        log.close().unwrap();
        drop(log);
        fill_up(&fs);
        for _ in 1..starts {
            try_open(&fs).unwrap().close().unwrap();
        }
        let log = try_open(&fs).unwrap();
        assert_eq!(log.space(), Space::Full);
        read_all(&log, last);
        let error = log.write(batch(last + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        // Another start, and a power loss, find the same.
        drop(log);
        fs.crash(CrashKind::Power);
        let log = try_open(&fs).unwrap();
        read_all(&log, last);
        let ticket = log.enqueue(compact(last - 1)).unwrap();
        assert!(!log.drive().unwrap() && !log.is_durable(ticket).unwrap());
        let used = fs.available("/".as_ref()).unwrap();
        assert_eq!(used, 0);
        fs.set_capacity(None);
        log.drive().unwrap();
        assert!(log.is_durable(ticket).unwrap());
        assert_eq!(log.space(), Space::Available);
        log.write(batch(last + 1)).unwrap();
        drop(log);
        fs.crash(CrashKind::Power);
        let info = try_open(&fs).unwrap().group(GROUP).unwrap();
        assert_eq!((info.base.index.0, info.last_index.0), (last - 1, last + 1));
    }
}

#[test]
fn start_that_must_copy_on_a_full_disk_says_how_much_is_missing_and_works_with_that() {
    let fs = SimFs::new(1);
    let (log, last) = filled(&fs, u64::MAX);
    drop(log);
    fs.crash(CrashKind::Process);
    fill_up(&fs);
    let error = try_open(&fs).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(error.path(), Some("/log".as_ref()), "{error}");
    let text = error.to_string();
    let (_, missing) = text.split_once("; free ").unwrap();
    let missing: u64 = missing.split(' ').next().unwrap().parse().unwrap();
    fs.set_capacity(Some(1 << 40));
    let used = (1 << 40) - fs.available("/".as_ref()).unwrap();
    for short in [1, 0] {
        fs.crash(CrashKind::Process);
        fs.set_capacity(Some(used + missing - short));
        match try_open(&fs) {
            Ok(log) => {
                assert_eq!(short, 0, "less would have done");
                read_all(&log, last);
            }
            Err(error) => assert_eq!((short, error.kind()), (1, ErrorKind::Full), "{error}"),
        }
    }
}

/// What a segment keeps for truncations and compactions is enough for the next start.
#[test]
fn starts_on_a_full_disk_take_compactions_from_the_space_that_nobody_needs() {
    let mut options = LogOptions::new("/log", StoreId(1));
    options.io = IoMode::Inline;
    options.segment_bytes_max = options.segment_bytes_min;
    for clean in [true, false] {
        let fs = SimFs::new(1);
        let (log, _) = Log::open(fs.shared(), options.clone()).unwrap();
        let mut first = WriteBatch::new();
        first.push(GROUP, Record::Compact(Base::default()));
        log.write(first).unwrap();
        fs.set_capacity(Some((3 << 20) + (100 << 10)));
        let mut last = 0;
        while log.write(batch(last + 1)).is_ok() {
            log.drive().unwrap();
            last += 1;
        }
        drop(log);
        fs.crash(CrashKind::Process);
        fill_up(&fs);
        for start in 0..20 {
            let (log, _) = Log::open(fs.shared(), options.clone())
                .unwrap_or_else(|error| panic!("clean {clean}, start {start}: {error}"));
            assert_eq!(log.space(), Space::Full);
            read_all(&log, last);
            let mut vote = WriteBatch::new();
            let state = HardState {
                term: Term(start + 2),
                ..HardState::default()
            };
            vote.push(GROUP, Record::HardState(state));
            log.write(vote).unwrap();
            if clean {
                log.close().unwrap();
            } else {
                drop(log);
                fs.crash(CrashKind::Process);
            }
        }
        let (log, _) = Log::open(fs.shared(), options.clone()).unwrap();
        assert_eq!(log.group(GROUP).unwrap().hard_state.term, Term(21));
        log.write(compact(last)).unwrap();
        log.drive().unwrap();
        assert_eq!(log.space(), Space::Available);
        log.write(batch(last + 1)).unwrap();
    }
}

/// The block that was cut short stayed as it was, beside the one that was written later: damage to the next start.
#[test]
fn vote_slot_cut_short_by_a_full_disk_is_written_again_in_its_place() {
    let fs = SimFs::new(1);
    let log = open(&fs);
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    log.write(first).unwrap();
    fs.set_capacity(Some(1 << 40));
    let used = (1 << 40) - fs.available("/".as_ref()).unwrap();
    fs.set_capacity(Some(used + 30));
    let mut vote = WriteBatch::new();
    let state = HardState {
        term: Term(3),
        ..HardState::default()
    };
    vote.push(GROUP, Record::HardState(state));
    let ticket = log.enqueue(vote).unwrap();
    assert!(!log.drive().unwrap() && !log.is_durable(ticket).unwrap());
    fs.set_capacity(None);
    log.drive().unwrap();
    assert!(log.is_durable(ticket).unwrap());
    drop(log);
    fs.crash(CrashKind::Process);
    let mut options = LogOptions::new("/log", StoreId(1));
    options.io = IoMode::Inline;
    let (log, report) = Log::open(fs.shared(), options).unwrap();
    assert_eq!(report.vote_blocks_replaced, 0, "{report}");
    assert_eq!(log.group(GROUP).unwrap().hard_state, state);
}
