//! A receive that is cut short goes on where it was, and ends with what was sent or not at all.

use raft_log::snapshot::{Compression, SnapshotError, SnapshotManifest, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::{CrashKind, Fault};
use raft_log::{GroupId, Index};

use crate::common::*;

const PART: &str = ".snap.part";

fn coarse(fs: &SimFs) -> Result<SnapshotStore, SnapshotError> {
    SnapshotStore::open_with(fs.shared(), coarse_options())
}

/// 20 chunks of 1000 bytes and one of 300, some of which compress.
fn sent() -> (SnapshotManifest, Vec<bytes::Bytes>, Vec<u8>) {
    let mut content = content(20_300);
    content[4000..7000].fill(9);
    let (manifest, chunks) = offer(&peer(1000, Compression::Lz4), 5, &content);
    assert_eq!(chunks.len(), 21);
    (manifest, chunks, content)
}

#[test]
fn receive_cut_short_at_any_chunk_goes_on_there() {
    let (manifest, chunks, content) = sent();
    for stop in 0..=chunks.len() {
        for crash in [None, Some(CrashKind::Process), Some(CrashKind::Power)] {
            for seed in 0..4 {
                let fs = SimFs::new(seed);
                let store = coarse(&fs).unwrap();
                let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
                for (number, chunk) in chunks[..stop].iter().enumerate() {
                    receiver.push(number as u64, chunk).unwrap();
                }
                let store = match crash {
                    None => {
                        drop(receiver);
                        store
                    }
                    Some(kind) => {
                        fs.crash(kind);
                        drop(receiver);
                        coarse(&fs).unwrap()
                    }
                };
                let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
                let next = receiver.next() as usize;
                let place = format!("{next} of {stop} after {crash:?}");
                assert!(next <= stop, "{place}");
                // What was not written yet is less than a piece, and a power cut spares what was
                // synced.
                assert!(crash.is_some() || next == stop, "{place}");
                assert!(next + 10 > stop, "{place}");
                push_rest(&mut receiver, &chunks).unwrap();
                let snapshot = receiver.finish().unwrap().keep();
                fs.crash(CrashKind::Power);
                let store = coarse(&fs).unwrap();
                assert_eq!(read(&store, &snapshot).unwrap(), content, "{place}");
                assert!(names(&fs, PART).is_empty());
            }
        }
    }
}

#[test]
fn crash_at_every_operation_of_a_receive_ends_whole_or_absent() {
    let (manifest, chunks, content) = sent();
    for kind in [CrashKind::Power, CrashKind::Process] {
        for n in 0.. {
            let mut finished = false;
            for seed in 0..6 {
                let fs = SimFs::new(seed);
                let run = |fs: &SimFs| {
                    let store = coarse(fs)?;
                    let mut receiver = store.receive(manifest.clone(), CREATION)?;
                    push_rest(&mut receiver, &chunks)?;
                    Ok::<_, SnapshotError>(receiver.finish()?.keep())
                };
                fs.fail_after(n);
                let result = run(&fs);
                finished = result.is_ok();
                fs.crash(kind);
                // A second crash while the receive is taken up.
                fs.fail_after(n % 17);
                let second = run(&fs);
                fs.crash(CrashKind::Power);

                let store = coarse(&fs).unwrap();
                let place = format!("{kind:?}, operation {n}, seed {seed}");
                for file in store.list().unwrap() {
                    let snapshot = file.state.unwrap();
                    assert_eq!(read(&store, &snapshot).unwrap(), content, "{place}");
                }
                for snapshot in [result, second].into_iter().flatten() {
                    assert_eq!(read(&store, &snapshot).unwrap(), content, "{place}");
                }
                let snapshot = run(&fs).unwrap();
                assert_eq!(read(&store, &snapshot).unwrap(), content, "{place}");
                assert!(names(&fs, PART).is_empty());
            }
            if finished {
                assert!(n > 15, "only {n} operations were cut short");
                break;
            }
        }
    }
}

#[test]
fn chunk_with_any_flipped_bit_is_refused_and_changes_nothing() {
    let content = content(150);
    let (manifest, chunks) = offer(&peer(64, Compression::None), 5, &content);
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    for (number, chunk) in chunks.iter().enumerate() {
        let number = number as u64;
        for byte in 0..chunk.len() {
            for bit in 0..8 {
                let mut bad = chunk.to_vec();
                bad[byte] ^= 1 << bit;
                let error = receiver.push(number, &bad).unwrap_err();
                let is_bad =
                    matches!(error, SnapshotError::BadChunk { wanted, .. } if wanted == number);
                assert!(is_bad, "{error}");
            }
        }
        for len in 0..chunk.len() {
            assert!(receiver.push(number, &chunk[..len]).is_err());
        }
        let longer = [&chunk[..], &[0]].concat();
        assert!(receiver.push(number, &longer).is_err());
        assert!(receiver.push(number + 1, chunk).is_err());
        receiver.push(number, chunk).unwrap();
        assert!(receiver.push(number, chunk).is_err());
    }
    let snapshot = receiver.finish().unwrap().keep();
    assert_eq!(read(&store, &snapshot).unwrap(), content);
}

#[test]
fn partial_file_damaged_anywhere_goes_on_before_the_damage() {
    let content = content(200);
    let (manifest, chunks) = offer(&peer(64, Compression::None), 5, &content);
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
    push_rest(&mut receiver, &chunks).unwrap();
    drop((receiver, store));
    let part = format!("{GROUP_DIR}/{}", names(&fs, PART)[0]);
    let header = 104 + 7 + 4;
    for offset in 0..fs.file_len(&part).unwrap() {
        for bit in 0..8 {
            let fs = fs.fork(2);
            fs.corrupt(&part, offset, 1 << bit).unwrap();
            let store = open(&fs).unwrap();
            let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
            let intact = offset.saturating_sub(header) / 72;
            assert_eq!(receiver.next(), intact, "offset {offset}, bit {bit}");
            push_rest(&mut receiver, &chunks).unwrap();
            let snapshot = receiver.finish().unwrap().keep();
            assert_eq!(read(&store, &snapshot).unwrap(), content);
        }
    }
}

#[test]
fn chunks_whose_sync_failed_are_written_again() {
    let (manifest, chunks, content) = sent();
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
    fs.fail_next(Fault::Sync);
    let error = push_rest(&mut receiver, &chunks).unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    assert!(receiver.push(receiver.next(), &chunks[0]).is_err());
    drop(receiver);
    fs.crash(CrashKind::Process);
    let store = coarse(&fs).unwrap();
    // All of it is readable, and none of it is on the disk.
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    assert!(receiver.next() > 0);
    push_rest(&mut receiver, &chunks).unwrap();
    let snapshot = receiver.finish().unwrap().keep();
    fs.crash(CrashKind::Power);
    assert_eq!(read(&coarse(&fs).unwrap(), &snapshot).unwrap(), content);
}

#[test]
fn finish_before_the_last_chunk_is_refused_and_can_go_on() {
    let (manifest, chunks, content) = sent();
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
    receiver.push(0, &chunks[0]).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(
        matches!(error, SnapshotError::BadChunk { wanted: 1, .. }),
        "{error}"
    );
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    assert_eq!(receiver.next(), 1);
    push_rest(&mut receiver, &chunks).unwrap();
    let snapshot = receiver.finish().unwrap().keep();
    assert_eq!(read(&store, &snapshot).unwrap(), content);
}

#[test]
fn content_other_than_announced_is_refused_and_removed() {
    let (mut manifest, chunks, _) = sent();
    manifest.snapshot.content_crc ^= 1;
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    push_rest(&mut receiver, &chunks).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(names(&fs, "").is_empty());
}

#[test]
fn impossible_manifest_is_refused() {
    let (manifest, ..) = sent();
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    for chunk_size in [0, (16 << 20) + 1] {
        let manifest = SnapshotManifest {
            chunk_size,
            ..manifest.clone()
        };
        let error = store.receive(manifest, CREATION).unwrap_err();
        assert!(
            matches!(error, SnapshotError::BadManifest { .. }),
            "{error}"
        );
    }
    let mut manifest = manifest;
    manifest.snapshot.membership = vec![0; (1 << 20) + 1].into();
    assert!(store.receive(manifest, CREATION).is_err());
    assert!(names(&fs, "").is_empty());
}

#[test]
fn other_manifest_or_creation_starts_over() {
    let (manifest, chunks, _) = sent();
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    let others = [
        (manifest.clone(), CREATION + 1),
        (with(&manifest, |m| m.snapshot.number += 1), CREATION),
        (with(&manifest, |m| m.snapshot.index = Index(6)), CREATION),
        (with(&manifest, |m| m.snapshot.content_crc ^= 1), CREATION),
        (with(&manifest, |m| m.snapshot.content_len += 1), CREATION),
        (with(&manifest, |m| m.store = STORE), CREATION),
        (with(&manifest, |m| m.chunk_size += 1), CREATION),
    ];
    for (other, creation) in others {
        let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
        assert_eq!(receiver.next(), 0, "a partial file was left");
        receiver.push(0, &chunks[0]).unwrap();
        drop(receiver);
        let receiver = store.receive(other, creation).unwrap();
        assert_eq!(receiver.next(), 0);
        drop(receiver);
        assert_eq!(names(&fs, PART).len(), 1);
    }
}

fn with(
    manifest: &SnapshotManifest,
    change: impl FnOnce(&mut SnapshotManifest),
) -> SnapshotManifest {
    let mut manifest = manifest.clone();
    change(&mut manifest);
    manifest
}

#[test]
fn abort_leaves_nothing() {
    let (manifest, chunks, _) = sent();
    let fs = SimFs::new(1);
    let store = coarse(&fs).unwrap();
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    push_rest(&mut receiver, &chunks).unwrap();
    receiver.abort().unwrap();
    fs.crash(CrashKind::Power);
    assert!(names(&fs, "").is_empty());
}

#[test]
fn receives_are_bounded_in_number_and_so_are_their_files() {
    let (manifest, chunks, _) = sent();
    let fs = SimFs::new(1);
    let mut options = coarse_options();
    options.receives_max = 2;
    let store = SnapshotStore::open_with(fs.shared(), options.clone()).unwrap();
    let of = |group: u64| with(&manifest, |m| m.group = GroupId(group));
    let parts = || {
        let groups = 1..=5_u64;
        groups
            .filter(|group| {
                let dir = format!("{DIR}/group-{group:016x}");
                let names = raft_log::vfs::Vfs::list(&fs, dir.as_ref()).unwrap_or_default();
                names.iter().any(|name| name.ends_with(PART))
            })
            .collect::<Vec<_>>()
    };
    for group in 1..=4 {
        let mut receiver = store.receive(of(group), CREATION).unwrap();
        receiver.push(0, &chunks[0]).unwrap();
    }
    // The newest are kept, also over a restart.
    assert_eq!(parts(), [3, 4]);
    let store = SnapshotStore::open_with(fs.shared(), options).unwrap();
    let third = store.receive(of(3), CREATION).unwrap();
    assert_eq!(third.next(), 1);
    let fifth = store.receive(of(5), CREATION).unwrap();
    assert_eq!(parts(), [3, 5]);
    for group in [3, 4] {
        let error = store.receive(of(group), CREATION).unwrap_err();
        assert!(matches!(error, SnapshotError::Busy { .. }), "{error}");
    }
    drop((third, fifth));
    store.receive(of(4), CREATION).unwrap();
}
