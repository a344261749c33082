//! A real process that is killed while it writes: everything that it said is durable is there.
//!
//! The test starts itself as the writer, which reports each durable entry over a pipe. The kernel survives, so this is
//! no proof of syncs (the simulated disk is); it is one of threads, real files, and starts after any moment.
//! `FLOTILLA_LOG_KILLS=200` kills that often.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use raft_log::vfs::RealFs;
use raft_log::vfs::sim::Rng;
use raft_log::{
    Base, Entry, EntryKind, GroupId, HardState, Index, IoMode, Log, LogOptions, NodeId, Record,
    StoreId, Term, WriteBatch,
};

const DIR: &str = "FLOTILLA_LOG_WRITER_DIR";
const GROUPS: u64 = 3;

fn open(dir: &Path, io: IoMode) -> Log {
    let mut options = LogOptions::new(dir.join("log"), StoreId(3));
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 64 << 10;
    options.cache_bytes = 8 << 10;
    options.io = io;
    let (log, _) = Log::open(Arc::new(RealFs::new()), options).unwrap();
    log
}

/// The only entry that may be at this place.
fn entry(group: u64, index: u64) -> Entry {
    let len = 20 + (group * 7 + index * 31) % 900;
    Entry {
        index: Index(index),
        term: Term(1 + index / 50),
        kind: EntryKind::Normal,
        payload: (0..len)
            .map(|at| (group * 3 + index * 5 + at) as u8)
            .collect::<Vec<_>>()
            .into(),
    }
}

/// One group's writer: until it is killed.
fn write(log: &Log, group: u64, out: &std::sync::Mutex<std::io::Stdout>) {
    let id = GroupId(group);
    if log.group(id).is_none() {
        let mut batch = WriteBatch::new();
        batch.push(id, Record::Compact(Base::default()));
        log.write(batch).unwrap();
    }
    for index in log.group(id).unwrap().last_index.0 + 1.. {
        let mut batch = WriteBatch::new();
        let entry = entry(group, index);
        if index.is_multiple_of(50) {
            let state = HardState {
                term: entry.term,
                vote: Some(NodeId(group)),
                commit: Index(index - 1),
            };
            batch.push(id, Record::HardState(state));
        }
        if index.is_multiple_of(40) {
            let base = Base {
                index: Index(index - 30),
                term: Term(1 + (index - 30) / 50),
                ..Base::default()
            };
            batch.push(id, Record::Compact(base));
        }
        batch.push(id, Record::Entries(vec![entry]));
        let ticket = log.submit(batch).unwrap();
        log.wait(ticket).unwrap();
        let mut out = out.lock().unwrap();
        writeln!(out, "durable {group} {index}").unwrap();
        out.flush().unwrap();
    }
}

fn writer(dir: &Path) {
    let (log, out) = (
        open(dir, IoMode::Thread),
        std::sync::Mutex::new(std::io::stdout()),
    );
    std::thread::scope(|scope| {
        for group in 1..=GROUPS {
            let (log, out) = (&log, &out);
            scope.spawn(move || write(log, group, out));
        }
    });
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "killed_writer_keeps_every_entry_that_it_reported",
            "--nocapture",
        ])
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a writer report so many entries, kills it, and returns all that it had reported, also after that.
fn run(dir: &Path, reports: u64, durable: &mut BTreeMap<u64, u64>) {
    let mut child = start(dir);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = 0;
    for line in lines {
        let line = line.unwrap();
        // A line that the kill cut short reports nothing.
        let Some((group, index)) = line
            .strip_prefix("durable ")
            .and_then(|l| l.split_once(' '))
        else {
            continue;
        };
        durable.insert(group.parse().unwrap(), index.parse().unwrap());
        seen += 1;
        if seen == reports {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        seen >= reports,
        "the writer ended by itself after {seen} reports"
    );
}

fn check(dir: &Path, durable: &BTreeMap<u64, u64>) {
    let log = open(dir, IoMode::Inline);
    for (group, reported) in durable {
        let info = log.group(GroupId(*group)).unwrap();
        let last = info.last_index.0;
        assert!(
            last >= *reported,
            "group {group} ends at {last}, {reported} was durable"
        );
        let first = info.base.index.0 + 1;
        let found = log
            .entries(GroupId(*group), Index(first)..Index(last + 1), usize::MAX)
            .unwrap();
        let want: Vec<_> = (first..=last).map(|index| entry(*group, index)).collect();
        assert_eq!(found, want, "group {group}");
        // The slot of a term is written before the batch that brings it, so it may be one entry ahead.
        let term = |index: u64| if index < 50 { 0 } else { 1 + index / 50 };
        let found = info.hard_state.term.0;
        assert!(
            found == term(last) || found == term(last + 1),
            "group {group}: term {found} behind entry {last}"
        );
    }
}

#[test]
fn killed_writer_keeps_every_entry_that_it_reported() {
    if let Some(dir) = std::env::var_os(DIR) {
        return writer(Path::new(&dir));
    }
    let kills = std::env::var("FLOTILLA_LOG_KILLS").map_or(20, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (mut rng, mut durable) = (Rng::new(kills), BTreeMap::new());
    for _ in 0..kills {
        run(dir.path(), 1 + rng.below(120), &mut durable);
        check(dir.path(), &durable);
    }
    let total: u64 = durable.values().sum();
    assert!(total > kills * 5, "{total} entries in {kills} rounds");
    eprintln!("{total} entries reported over {kills} kills, all there");
}
