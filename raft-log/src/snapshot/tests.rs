//! Snapshots on the simulated file system: whole or absent after any crash, and never silently
//! different.

use std::io::{Read, Write};

use super::*;
use crate::vfs::Vfs;
use crate::vfs::sim::{CrashKind, Fault, Rng, SimFs};

const GROUP: GroupId = GroupId(7);
const STORE: StoreId = StoreId(0xabc);

fn open(fs: &SimFs) -> Result<SnapshotStore, SnapshotError> {
    let mut store = SnapshotStore::open(fs.shared(), "/data/snap", STORE)?;
    store.chunk_size = 64;
    Ok(store)
}

fn content(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Rng::new(len as u64).fill(&mut out);
    out
}

fn write(store: &SnapshotStore, number: u64, content: &[u8]) -> Result<SnapshotRef, SnapshotError> {
    let membership = Bytes::from_static(b"members");
    let mut writer = store.create(GROUP, Index(number), Term(2), number, membership)?;
    if let Err(error) = writer.write_all(content) {
        return Err(error.downcast::<SnapshotError>().unwrap());
    }
    writer.finish()
}

fn read(store: &SnapshotStore, snapshot: &SnapshotRef) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    store
        .open_snapshot(GROUP, snapshot)?
        .read_to_end(&mut out)?;
    Ok(out)
}

fn file_of(number: u64) -> String {
    format!(
        "/data/snap/group-0000000000000007/snap-{number:016x}-0000000000000002-{number:016x}.snap"
    )
}

#[test]
fn snapshot_of_any_length_reads_back() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    for (number, len) in [0, 1, 63, 64, 65, 128, 1000].into_iter().enumerate() {
        let snapshot = write(&store, number as u64, &content(len)).unwrap();
        assert_eq!(snapshot.content_len, len as u64);
        assert_eq!(snapshot.content_crc, crc32fast::hash(&content(len)));
        assert_eq!(
            read(&store, &snapshot).unwrap(),
            content(len),
            "length {len}"
        );
        store.verify(GROUP, &snapshot).unwrap();
    }
}

#[test]
fn snapshot_with_default_chunks_on_the_real_file_system_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let vfs: SharedVfs = std::sync::Arc::new(crate::vfs::RealFs::new());
    let store = SnapshotStore::open(vfs, dir.path().join("snap"), STORE).unwrap();
    let content = content(600_000);
    let snapshot = write(&store, 1, &content).unwrap();
    assert_eq!(read(&store, &snapshot).unwrap(), content);
}

#[test]
fn list_returns_all_snapshots_and_remove_takes_one() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let first = write(&store, 1, b"one").unwrap();
    let second = write(&store, 2, b"two").unwrap();
    let listed = |store: &SnapshotStore| -> Vec<_> {
        store
            .list()
            .unwrap()
            .into_iter()
            .map(|file| (file.group, file.state.unwrap()))
            .collect()
    };
    assert_eq!(
        listed(&store),
        [(GROUP, first.clone()), (GROUP, second.clone())]
    );
    store.remove(GROUP, &first).unwrap();
    store.remove(GROUP, &first).unwrap();
    fs.crash(CrashKind::Power);
    let store = open(&fs).unwrap();
    assert_eq!(listed(&store), [(GROUP, second)]);
    assert!(store.open_snapshot(GROUP, &first).unwrap_err().is_missing());
}

#[test]
fn writer_dropped_unfinished_leaves_nothing() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let mut writer = store
        .create(GROUP, Index(1), Term(2), 1, Bytes::new())
        .unwrap();
    writer.write_all(&content(500)).unwrap();
    drop(writer);
    assert!(
        fs.list(Path::new("/data/snap/group-0000000000000007"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn number_used_twice_is_refused() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"first").unwrap();
    assert!(matches!(
        write(&store, 1, b"again"),
        Err(SnapshotError::Exists { .. })
    ));
    assert_eq!(read(&store, &snapshot).unwrap(), b"first");
}

#[test]
fn crash_at_every_operation_leaves_the_snapshot_whole_or_absent() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        for n in 0.. {
            let mut finished = false;
            for seed in 0..12 {
                let fs = SimFs::new(seed);
                let before = write(&open(&fs).unwrap(), 1, &content(100)).unwrap();
                fs.fail_after(n);
                let result = open(&fs).and_then(|store| write(&store, 2, &content(1000)));
                finished = result.is_ok();
                assert_eq!(finished, !fs.is_down());
                fs.crash(kind);

                let store = open(&fs).unwrap();
                // What is found now must stay, whatever happens next.
                fs.crash(CrashKind::Power);
                let store = SnapshotStore {
                    vfs: fs.shared(),
                    ..store
                };
                let names = fs
                    .list(Path::new("/data/snap/group-0000000000000007"))
                    .unwrap();
                assert!(names.iter().all(|name| name.ends_with(SUFFIX)), "{names:?}");
                assert_eq!(read(&store, &before).unwrap(), content(100));
                let listed = store.list().unwrap();
                assert!(
                    !finished || listed.len() == 2,
                    "{kind:?}, operation {n}, seed {seed}"
                );
                for file in listed {
                    let snapshot = file.state.unwrap();
                    let len = if snapshot.number == 1 { 100 } else { 1000 };
                    assert_eq!(read(&store, &snapshot).unwrap(), content(len));
                }
            }
            if finished {
                assert!(n > 15, "only {n} operations were cut short");
                break;
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_changes_nothing() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let content = content(150);
    let snapshot = write(&store, 1, &content).unwrap();
    let path = file_of(1);
    let whole = fs.read_file(&path).unwrap();
    for offset in 0..whole.len() as u64 {
        for bit in 0..8 {
            fs.corrupt(&path, offset, 1 << bit).unwrap();
            assert!(
                read(&store, &snapshot).is_err(),
                "offset {offset}, bit {bit}"
            );
            assert!(
                store.verify(GROUP, &snapshot).is_err(),
                "offset {offset}, bit {bit}"
            );
            assert_eq!(store.list().unwrap().len(), 1);
            fs.corrupt(&path, offset, 1 << bit).unwrap();
        }
    }
    assert_eq!(read(&store, &snapshot).unwrap(), content);
}

#[test]
fn file_cut_or_grown_anywhere_is_an_error() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, &content(150)).unwrap();
    let whole = fs.read_file(file_of(1)).unwrap();
    for len in 0..whole.len() + 70 {
        let mut bytes = whole.clone();
        bytes.resize(len, 0);
        fs.write_file(file_of(1), &bytes).unwrap();
        assert_eq!(
            store.verify(GROUP, &snapshot).is_ok(),
            len == whole.len(),
            "length {len}"
        );
    }
}

#[test]
fn swapped_chunks_are_an_error_before_the_last_is_handed_out() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, &content(192)).unwrap();
    let mut bytes = fs.read_file(file_of(1)).unwrap();
    let start = 64 + "members".len() + 4;
    let (first, second) = bytes[start..].split_at_mut(72);
    first.swap_with_slice(&mut second[..72]);
    fs.write_file(file_of(1), &bytes).unwrap();
    let mut reader = store.open_snapshot(GROUP, &snapshot).unwrap();
    let mut out = Vec::new();
    let error = reader.read_to_end(&mut out).unwrap_err();
    assert!(error.to_string().contains("content checksum"), "{error}");
    assert_eq!(out.len(), 128);
    assert!(reader.read(&mut [0; 8]).is_err());
}

#[test]
fn file_of_another_store_version_or_name_is_refused() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"x").unwrap();
    let foreign = SnapshotStore {
        store: StoreId(1),
        ..store.clone()
    };
    let error = foreign.verify(GROUP, &snapshot).unwrap_err();
    assert!(
        matches!(error, SnapshotError::ForeignStore { found: STORE, .. }),
        "{error}"
    );

    let other = SnapshotRef {
        content_crc: 1,
        ..snapshot.clone()
    };
    assert!(matches!(
        store.verify(GROUP, &other),
        Err(SnapshotError::Damaged { .. })
    ));

    let mut bytes = fs.read_file(file_of(1)).unwrap();
    fs.write_file(file_of(2), &bytes).unwrap();
    let misnamed = SnapshotRef {
        index: Index(2),
        number: 2,
        ..snapshot.clone()
    };
    assert!(matches!(
        store.verify(GROUP, &misnamed),
        Err(SnapshotError::Damaged { .. })
    ));

    bytes[8] = 2;
    fs.write_file(file_of(1), &bytes).unwrap();
    let error = store.verify(GROUP, &snapshot).unwrap_err();
    assert!(
        matches!(error, SnapshotError::NewerVersion { found: 2, .. }),
        "{error}"
    );
}

#[test]
fn failed_write_or_sync_fails_the_writer_and_leaves_nothing() {
    for fault in [Fault::Write, Fault::Sync] {
        for pass in 0..4 {
            let fs = SimFs::new(pass);
            let store = open(&fs).unwrap();
            fs.fail_nth(fault, pass);
            let result = write(&store, 1, &content(150));
            if fault == Fault::Sync && pass > 0 {
                result.unwrap();
                continue;
            }
            assert!(matches!(result, Err(SnapshotError::Io { .. })));
            fs.crash(CrashKind::Power);
            assert!(open(&fs).unwrap().list().unwrap().is_empty());
        }
    }
}

#[test]
fn full_disk_fails_the_writer_and_keeps_the_older_snapshot() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"old").unwrap();
    fs.set_capacity(Some(400));
    let error = write(&store, 2, &content(1000)).unwrap_err();
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
    fs.set_capacity(None);
    assert_eq!(read(&store, &snapshot).unwrap(), b"old");
    write(&store, 2, &content(1000)).unwrap();
}
