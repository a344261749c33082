//! Bytes that no log ever wrote: the decoders refuse them or make sense of them, and never panic.
//!
//! Mutations of valid files, as a fuzzer makes them, from a seed: random bytes, moved and repeated ranges, cut and
//! grown files. Half of them get their checksums repaired as `docs/FORMAT.md` lays them out, so that what lies behind
//! the checksums is reached. And the other way round: whatever can be written reads back.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use raft_log::log::check::{Verdict, check};
use raft_log::log::inspect;
use raft_log::log::salvage::salvage;
use raft_log::vfs::Vfs;
use raft_log::vfs::sim::{CrashKind, Rng, SimFs};
use raft_log::{
    Base, Entry, EntryKind, ErrorKind, GroupId, HardState, Index, Log, NodeId, Record, SnapshotRef,
    SnapshotStore, Term, WriteBatch,
};

use crate::model::{History, State, apply, observe};
use crate::world::{Op, STORE, World, options};

const SEGMENT_DATA: usize = 4096;
const HEADER: usize = 64;
const RECORD: usize = 24;

/// A store with some of everything in it.
fn store() -> SimFs {
    let (fs, state) = World::prepared(None).unwrap();
    let mut world = World::open(&fs, None, &History::new(state), 100).unwrap();
    for op in [
        Op::Snapshot(1),
        Op::Overwrite(2),
        Op::Roll,
        Op::Truncate(1),
        Op::Compact(2),
        Op::HardState(2),
        Op::Destroy(1),
        Op::Append(1),
    ] {
        world.run(op).unwrap();
    }
    drop(world);
    fs.fork(1)
}

fn u32_at(data: &[u8], at: usize) -> usize {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize
}

fn put_crc(data: &mut [u8], at: usize, crc: u32) {
    data[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Gives a segment the checksums that its bytes would have, as far as its lengths make sense.
fn repair(data: &mut [u8]) {
    if data.len() < SEGMENT_DATA {
        return;
    }
    let crc = crc32fast::hash(&data[..60]);
    put_crc(data, 60, crc);
    let (mut at, mut chain) = (SEGMENT_DATA, u32_at(data, 52) as u32);
    while at + HEADER <= data.len() && u32_at(data, at) != 0 {
        let end = at + HEADER + u32_at(data, at + 40);
        if end > data.len() {
            return;
        }
        let mut record = at + HEADER;
        while record + RECORD <= end {
            let len = u32_at(data, record + 12);
            if record + RECORD + len > end {
                break;
            }
            let mut crc = crc32fast::Hasher::new();
            crc.update(&data[record..record + 16]);
            crc.update(&data[record + RECORD..record + RECORD + len]);
            put_crc(data, record + 16, crc.finalize());
            record = (record + RECORD + len).next_multiple_of(8);
        }
        let body = crc32fast::hash(&data[at + HEADER..end]);
        put_crc(data, at + 48, chain);
        put_crc(data, at + 52, body);
        chain = crc32fast::hash(&data[at..at + 60]);
        put_crc(data, at + 60, chain);
        at = end;
    }
}

/// Changes a few things as a fuzzer does.
fn mutate(data: &mut Vec<u8>, rng: &mut Rng) {
    // Where something is written, as far as one can tell.
    let used = data.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64 + 80;
    for _ in 0..=rng.below(3) {
        let len = data.len() as u64;
        if len == 0 {
            return;
        }
        let place = |rng: &mut Rng| match rng.below(4) {
            0 => rng.below(len) as usize,
            1 => rng.below(len.min(128)) as usize,
            _ => (SEGMENT_DATA as u64 + rng.below(used.saturating_sub(4_000).max(1))).min(len - 1)
                as usize,
        };
        let at = place(rng);
        let n = (rng.below(40) as usize).min(data.len() - at);
        match rng.below(7) {
            0 => data[at] ^= 1 << rng.below(8),
            1 => rng.fill(&mut data[at..at + n]),
            2 => data[at..at + n].fill([0, 0xff][rng.below(2) as usize]),
            3 => {
                let from = place(rng).min(data.len() - n);
                data.copy_within(from..from + n, at);
            }
            4 => data.truncate(at),
            5 => data.resize(data.len() + n * 100, 0xa5),
            // A number at one of the places where numbers are: small, or at the end of its range.
            _ => {
                let at = at / 8 * 8;
                let edge = [0, 1, u64::MAX, u64::from(u32::MAX), 1 << 63][rng.below(5) as usize];
                let number = edge.wrapping_add(rng.below(3)).to_le_bytes();
                let end = (at + 8).min(data.len());
                data[at..end].copy_from_slice(&number[..end - at]);
            }
        }
    }
}

/// Opens, reads, inspects, checks and salvages: every outcome but a panic is fine.
fn open(fs: &SimFs) -> bool {
    let dir = Path::new("/data/log");
    for id in inspect::segment_ids(fs, dir).unwrap() {
        // What verifies is counted, and what does not ends the walk.
        let mut batches = 0;
        let info = inspect::segment(fs, dir, id, &mut |_| batches += 1);
        assert!(info.is_err() || batches < 10_000);
    }
    let _ = check(&fs.shared(), &options(), &mut || ()).unwrap();
    let new = Path::new("/new");
    if let Ok(report) = salvage(&fs.shared(), &options(), new, &|_, _| true, &|_| None) {
        let sound = report.groups.iter().all(|told| told.base <= told.last);
        assert!(sound, "{report:?}");
    }
    let mut accept = options();
    accept.accept_suspect_tail = true;
    let Ok((log, _)) = Log::open(fs.shared(), accept) else {
        return false;
    };
    // A forged log may hold more than can be read at once, or nothing of what it claims to hold.
    for id in log.groups() {
        let info = log.group(id).unwrap();
        let from = info.base.index.0.saturating_add(1);
        let to = info.last_index.0.min(from.saturating_add(64));
        let _any = log.entries(id, Index(from)..Index(to), 1 << 16);
    }
    true
}

fn names(fs: &SimFs, dir: &str) -> Vec<String> {
    let names = fs.list(Path::new(dir)).unwrap();
    names
        .into_iter()
        .filter(|name| !name.ends_with(".tmp") && name != "LOCK")
        .map(|name| format!("{dir}/{name}"))
        .collect()
}

#[test]
fn mutated_log_is_refused_or_opened_without_a_panic() {
    let fs = store();
    let names = names(&fs, "/data/log");
    let (mut opened, total) = (0, 4_000 * crate::runs());
    let seeds = match crate::number("FLOTILLA_LOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..total,
    };
    for seed in seeds.clone() {
        let _guard = Reproduce("mutated_log_is_refused_or_opened_without_a_panic", seed);
        let mut rng = Rng::new(seed);
        let fork = fs.fork(seed);
        let name = &names[rng.below(names.len() as u64) as usize];
        let mut data = fork.read_file(name).unwrap();
        mutate(&mut data, &mut rng);
        if name.ends_with(".seg") && rng.chance(2, 3) {
            repair(&mut data);
        }
        fork.write_file(name, &data).unwrap();
        opened += u64::from(open(&fork));
    }
    if seeds.end - seeds.start > 1 {
        // Both are reached: what is refused, and what is behind the checksums.
        assert!(opened > total / 20 && opened < total, "{opened} of {total}");
    }
}

/// A log of one group whose third entry has a lower term than the second, every checksum as it should be.
fn terms_that_go_down() -> SimFs {
    let fs = SimFs::new(1);
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    for index in 1..=4 {
        let mut batch = WriteBatch::new();
        if index == 1 {
            batch.push(GroupId(1), Record::Compact(Base::default()));
        }
        let entry = Entry {
            index: Index(index),
            term: Term(5),
            kind: EntryKind::Normal,
            payload: b"content".as_slice().into(),
        };
        batch.push(GroupId(1), Record::Entries(vec![entry]));
        log.write(batch).unwrap();
    }
    drop(log);
    let fs = fs.fork(1);
    fs.crash(CrashKind::Process);
    let path = "/data/log/0000000000000001.seg";
    let mut data = fs.read_file(path).unwrap();
    let third = [3_u64.to_le_bytes(), 5_u64.to_le_bytes()].concat();
    let at = data.windows(16).position(|bytes| bytes == third).unwrap();
    data[at + 8] = 4;
    repair(&mut data);
    fs.write_file(path, &data).unwrap();
    fs
}

#[test]
fn term_that_goes_down_in_a_log_is_damage_and_salvage_stops_before_it() {
    let fs = terms_that_go_down();
    let error = Log::open(fs.shared(), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    assert!(error.to_string().contains("entry 3 of term 4"), "{error}");
    let found = check(&fs.shared(), &options(), &mut || ()).unwrap();
    assert_eq!(found.verdict, Verdict::Damaged);
    let to = Path::new("/data/copy");
    let report = salvage(&fs.shared(), &options(), to, &|_, _| true, &|_| None).unwrap();
    let kept: Vec<Index> = report.groups.iter().map(|group| group.last).collect();
    assert!(report.is_loss());
    assert_eq!(kept, [Index(2)]);
}

/// Says how to repeat a run that panics.
struct Reproduce(&'static str, u64);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!(
            "reproduce: FLOTILLA_LOG_SEED={} cargo test -p raft-log --test proof -- --exact hostile::{}",
            self.1, self.0
        );
    }
}

#[test]
fn mutated_snapshot_is_refused_or_read_without_a_panic() {
    let fs = store();
    let name = names(&fs, "/data/snap/group-0000000000000001").remove(0);
    for seed in 0..3_000 * crate::runs() {
        let mut rng = Rng::new(seed);
        let fork = fs.fork(seed);
        let before = fork.read_file(&name).unwrap();
        let mut data = before.clone();
        mutate(&mut data, &mut rng);
        fork.write_file(&name, &data).unwrap();
        let store = SnapshotStore::open(fork.shared(), "/data/snap", STORE).unwrap();
        for file in store.list().unwrap() {
            let Ok(reference) = file.state else { continue };
            let verified = store.verify(file.group, &reference);
            // Only the bytes that were written verify; what is reserved may differ.
            let same = before.len() == data.len() && before[HEADER..] == data[HEADER..];
            assert!(verified.is_err() || same, "seed {seed}");
        }
    }
}

/// Every file of the log cut at every `step`-th length and at every block, or grown: an error, or all that was synced.
/// No crash changes a length, so not even a closed log's last batch may be taken for one that was torn.
pub(crate) fn files_of_another_length(step: usize) -> Result<(), String> {
    for close in [true, false] {
        let (fs, state) = World::prepared(None)?;
        let mut world = World::open(&fs, None, &History::new(state), 100)?;
        world.run(Op::Append(1))?;
        let history = world.history.clone();
        if close {
            world.log.close().map_err(|error| error.to_string())?;
        }
        drop(world);
        for name in names(&fs, "/data/log") {
            let data = fs.read_file(&name).unwrap();
            let cut = (0..data.len()).filter(|len| len % step == 0 || len % 4096 == 0);
            let grown = [1, 64, 4096].map(|more| data.len() + more);
            for len in cut.chain(grown) {
                let fork = fs.fork(1);
                let mut other = data.clone();
                other.resize(len, 0);
                fork.write_file(&name, &other).unwrap();
                let Ok((log, _)) = Log::open(fork.shared(), options()) else {
                    continue;
                };
                let place = |text| format!("{name} of {len} bytes, closed {close}: {text}");
                history.judge(&observe(&log)?).map_err(place)?;
                if name.ends_with(".seg") {
                    return Err(place("opened".to_owned()));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn log_with_a_file_of_another_length_is_refused_or_holds_what_was_synced() {
    files_of_another_length(if crate::runs() > 1 { 1 } else { 5 }).unwrap();
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..40),
        vec(any::<u8>(), 400..1_400)
    ]
}

fn members() -> impl Strategy<Value = bytes::Bytes> {
    vec(any::<u8>(), 0..70).prop_map(Into::into)
}

fn snapshot() -> impl Strategy<Value = SnapshotRef> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (numbers, any::<u32>(), members()).prop_map(|((index, term, number, len), crc, membership)| {
        SnapshotRef {
            index: Index(index),
            term: Term(term),
            number,
            content_len: len,
            content_crc: crc,
            membership,
        }
    })
}

type Raw = (
    u64,
    Vec<Vec<u8>>,
    Option<(u64, Option<u64>)>,
    Option<SnapshotRef>,
    bytes::Bytes,
);

fn raw() -> impl Strategy<Value = Raw> {
    (
        1..u64::MAX / 2,
        vec(payload(), 0..6),
        proptest::option::of((1..u64::MAX, any::<Option<u64>>())),
        proptest::option::of(snapshot()),
        members(),
    )
}

/// A group with whatever values its records can have.
fn batch(id: GroupId, (first, payloads, ballot, snapshot, membership): Raw) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let base = Base {
        index: Index(first),
        term: Term(first),
        creation: first,
        membership,
    };
    batch.push(id, Record::Compact(base));
    let entry = |(payload, index): (Vec<u8>, u64)| Entry {
        index: Index(index),
        term: Term(index),
        kind: match index % 2 {
            0 => EntryKind::Normal,
            _ => EntryKind::Config,
        },
        payload: payload.into(),
    };
    let entries = payloads.into_iter().zip(first + 1..).map(entry).collect();
    batch.push(id, Record::Entries(entries));
    if let Some((term, vote)) = ballot {
        let state = HardState {
            term: Term(term),
            vote: vote.map(NodeId),
            commit: Index(first),
        };
        batch.push(id, Record::HardState(state));
    }
    if let Some(snapshot) = snapshot {
        batch.push(id, Record::SnapshotRef(snapshot));
    }
    batch
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60 * u32::try_from(crate::runs()).unwrap_or(1), ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_reads_back_after_a_start(groups in vec(raw(), 1..5)) {
        let fs = SimFs::new(1);
        let mut model = State::new();
        let (log, _) = Log::open(fs.shared(), options()).unwrap();
        for (raw, id) in groups.into_iter().zip(0..) {
            let batch = batch(GroupId(id * 1_000_003), raw);
            apply(&mut model, &batch);
            log.write(batch).unwrap();
        }
        prop_assert_eq!(&observe(&log).unwrap(), &model);
        drop(log);
        let (log, _) = Log::open(fs.shared(), options()).unwrap();
        prop_assert_eq!(&observe(&log).unwrap(), &model);
        log.close().unwrap();
        let (log, _) = Log::open(fs.shared(), options()).unwrap();
        prop_assert_eq!(&observe(&log).unwrap(), &model);
    }
}
