//! Every single flipped bit of a small store: an error, a clean tail, or the same data. Never other data, never a panic.

use std::io::Read;
use std::path::Path;

use raft_log::vfs::Vfs;
use raft_log::vfs::sim::{CrashKind, SimFs};
use raft_log::{GroupId, Index, Log, SnapshotStore};

use crate::model::{History, State, observe};
use crate::world::{Op, STORE, World, options};

/// A store with two segments, a vote file and a snapshot, and what it went through. What is not closed may lose its
/// last batch, which nothing proves to be synced.
pub(crate) fn store(close: bool) -> Result<(SimFs, History), String> {
    let (fs, state) = World::prepared_with(None, true)?;
    let mut world = World::open(&fs, None, &History::new(state), 100)?;
    for op in [
        Op::Snapshot(1),
        Op::Overwrite(2),
        Op::Truncate(1),
        Op::HardState(2),
        Op::Append(1),
    ] {
        world.run(op)?;
    }
    let mut history = world.history.clone();
    if close {
        world.log.close().map_err(|error| error.to_string())?;
    } else {
        history.synced -= 1;
    }
    drop(world);
    fs.crash(CrashKind::Process);
    Ok((fs, history))
}

/// Files of the log whose bits matter.
pub(crate) fn files(fs: &SimFs) -> Vec<String> {
    let names = fs.list(Path::new("/data/log")).unwrap();
    names
        .into_iter()
        .filter(|name| !name.ends_with(".tmp") && name != "LOCK")
        .map(|name| format!("/data/log/{name}"))
        .collect()
}

/// What was made of flipped bits.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    same: u64,
    refused: u64,
    cut: u64,
}

/// Which bits of a byte to flip: all where something is written or could be read next, one elsewhere.
pub(crate) fn masks(content: &[u8], at: usize) -> impl Iterator<Item = u8> + use<> {
    let near = &content[at.saturating_sub(80)..(at + 8).min(content.len())];
    let all = crate::runs() > 1 || near.iter().any(|byte| *byte != 0);
    let chosen = if all { 0..8 } else { at % 8..at % 8 + 1 };
    chosen.map(|bit| 1 << bit)
}

/// Flips the bits of a store, closed or not, every `step` bytes; the first one that gives other data is an error.
pub(crate) fn flip_all(close: bool, step: usize) -> Result<Outcomes, String> {
    let (fs, history) = store(close)?;
    let mut outcomes = Outcomes::default();
    for path in files(&fs) {
        let content = fs.read_file(&path).unwrap();
        for at in (0..content.len()).step_by(step) {
            for mask in masks(&content, at) {
                let fork = fs.fork(1);
                fork.corrupt(&path, at as u64, mask).unwrap();
                one(&fork, &history, &mut outcomes)
                    .map_err(|text| format!("{path}: byte {at}, mask {mask:#04x}: {text}"))?;
            }
        }
    }
    Ok(outcomes)
}

fn one(fs: &SimFs, history: &History, outcomes: &mut Outcomes) -> Result<(), String> {
    match Log::open(fs.shared(), options()) {
        Err(error) if error.path().is_none() => return Err(format!("no file named: {error}")),
        Err(_) => outcomes.refused += 1,
        Ok((log, _)) => match history.judge(&observe(&log)?)? {
            at if at + 1 == history.states.len() => outcomes.same += 1,
            _ => outcomes.cut += 1,
        },
    }
    // Whoever accepts a suspect tail gives up the last batches, and still gets no other data. In a closed store that
    // can be more than one: nothing is left that says where the log ended.
    let mut accept = options();
    accept.accept_suspect_tail = true;
    if let Ok((log, _)) = Log::open(fs.shared(), accept) {
        let mut history = history.clone();
        history.synced = 0;
        history.judge(&observe(&log)?)?;
    }
    Ok(())
}

#[test]
fn flipped_bit_of_a_closed_store_is_refused_or_changes_nothing() {
    let outcomes = flip_all(true, 1).unwrap();
    eprintln!("{outcomes:?}");
    assert_eq!(outcomes.cut, 0, "everything is proven to be synced");
    assert!(
        outcomes.refused > 10_000 && outcomes.same > 10_000,
        "{outcomes:?}"
    );
}

#[test]
fn flipped_bit_of_a_killed_store_is_refused_or_costs_the_unproven_batch() {
    let outcomes = flip_all(false, 1).unwrap();
    eprintln!("{outcomes:?}");
    assert!(
        outcomes.refused > 10_000 && outcomes.same > 10_000,
        "{outcomes:?}"
    );
    assert!(outcomes.cut < outcomes.refused / 50, "{outcomes:?}");
}

#[test]
fn flipped_bit_under_an_open_log_is_an_error_of_the_read_or_changes_nothing() {
    let (fs, history) = store(true).unwrap();
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    // What a start has read stays in memory until the next write.
    let mut batch = raft_log::WriteBatch::new();
    batch.push(GroupId(1), raft_log::Record::Destroy);
    log.write(batch).unwrap();
    let want = &history.newest()[&GroupId(2)].entries;
    let range = want[0].index..Index(want[0].index.0 + want.len() as u64);
    let (mut refused, mut same) = (0, 0);
    for path in files(&fs) {
        let content = fs.read_file(&path).unwrap();
        for at in 0..content.len() {
            for mask in masks(&content, at) {
                fs.corrupt(&path, at as u64, mask).unwrap();
                match log.entries(GroupId(2), range.clone(), usize::MAX) {
                    Err(error) => {
                        assert!(error.path().is_some(), "{error}");
                        refused += 1;
                    }
                    Ok(found) => {
                        assert_eq!(&found, want, "{path}: byte {at}, mask {mask:#04x}");
                        same += 1;
                    }
                }
                fs.corrupt(&path, at as u64, mask).unwrap();
            }
        }
    }
    assert!(refused > 1_000 && same > 1_000, "{refused} {same}");
}

#[test]
fn flipped_bit_of_a_snapshot_is_an_error_or_changes_nothing() {
    let (fs, history) = store(true).unwrap();
    let (id, reference) = snapshot_of(history.newest());
    let dir = "/data/snap/group-0000000000000001";
    let name = fs.list(Path::new(dir)).unwrap().remove(0);
    let path = format!("{dir}/{name}");
    let len = fs.file_len(&path).unwrap();
    let mut refused = 0;
    for at in 0..len {
        for bit in 0..8 {
            let fork = fs.fork(1);
            fork.corrupt(&path, at, 1 << bit).unwrap();
            let store = SnapshotStore::open(fork.shared(), "/data/snap", STORE).unwrap();
            let mut content = Vec::new();
            let read = store
                .open_snapshot(id, &reference)
                .map_err(std::io::Error::from)
                .and_then(|mut reader| reader.read_to_end(&mut content));
            match read {
                Err(_) => refused += 1,
                Ok(len) => {
                    assert_eq!(len as u64, reference.content_len);
                    assert_eq!(crc32fast::hash(&content), reference.content_crc);
                }
            }
        }
    }
    assert!(refused > len * 7, "{refused} of {}", len * 8);
}

fn snapshot_of(state: &State) -> (GroupId, raft_log::SnapshotRef) {
    let found = state
        .iter()
        .find_map(|(id, group)| Some((*id, group.snapshot.clone()?)));
    found.expect("one was taken")
}

/// Puts the batches of another store in the place of a store's own: what it then holds must not be the other's data.
pub(crate) fn foreign_batches() -> Result<Outcomes, String> {
    let (fs, history) = store(true)?;
    let mut outcomes = Outcomes::default();
    // The same history of another store.
    let other = SimFs::new(1);
    let mut theirs = options();
    theirs.store_id = raft_log::StoreId(0xbad);
    let (log, _) = Log::open(other.shared(), theirs).map_err(|error| error.to_string())?;
    for state in [1u8, 2] {
        let mut batch = raft_log::WriteBatch::new();
        let base = raft_log::Base {
            creation: u64::from(state),
            ..Default::default()
        };
        batch.push(GroupId(u64::from(state)), raft_log::Record::Compact(base));
        log.write(batch).map_err(|error| error.to_string())?;
    }
    drop(log);
    let path = "/data/log/0000000000000001.seg";
    let (mut mine, theirs) = (fs.read_file(path).unwrap(), other.read_file(path).unwrap());
    mine[4096..].copy_from_slice(&theirs[4096..]);
    // Alone, so that no later segment contradicts it.
    let alone = SimFs::new(1);
    alone
        .shared()
        .create_dir_all(Path::new("/data/log"))
        .unwrap();
    alone.write_file(path, &mine).unwrap();
    one(&alone, &history, &mut outcomes)?;
    Ok(outcomes)
}

#[test]
fn batches_of_another_store_in_the_place_of_ours_are_refused() {
    let outcomes = foreign_batches().unwrap();
    assert_eq!((outcomes.refused, outcomes.same), (1, 0), "{outcomes:?}");
}
