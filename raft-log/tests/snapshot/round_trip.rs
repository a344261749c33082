//! What was written is what is read, sent and received.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use raft_log::IoMode;
use raft_log::snapshot::{Catalog, Compression, SnapshotError, SnapshotOptions, SnapshotStore};
use raft_log::vfs::sim::{CrashKind, Fault};
use raft_log::vfs::{RealFs, SimFs};

use crate::common::*;

#[test]
fn snapshot_of_any_length_reads_back() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    for (index, len) in [0, 1, 63, 64, 65, 128, 1000].into_iter().enumerate() {
        let snapshot = write(&store, index as u64, &content(len)).unwrap();
        assert_eq!(snapshot.content_len, len as u64);
        assert_eq!(snapshot.content_crc, crc32fast::hash(&content(len)));
        let found = read(&store, &snapshot).unwrap();
        assert_eq!(found, content(len), "length {len}");
        store.verify(GROUP, &snapshot).unwrap();
    }
}

#[test]
fn snapshot_synced_on_a_thread_of_the_real_file_system_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let synced = Arc::new(AtomicU64::new(0));
    let vfs = RealFs::with_observer({
        let synced = Arc::clone(&synced);
        Arc::new(move |_| {
            synced.fetch_add(1, Ordering::Relaxed);
        })
    });
    let mut options = SnapshotOptions::new(dir.path().join("snap"), STORE);
    options.sync_bytes = 1 << 20;
    assert_eq!(options.io, IoMode::Thread);
    let store = SnapshotStore::open_with(Arc::new(vfs), options).unwrap();
    let content = content(3_300_000);
    let snapshot = write(&store, 1, &content).unwrap();
    assert_eq!(read(&store, &snapshot).unwrap(), content);
    // The counter, three of the growing file, and the last.
    assert_eq!(synced.load(Ordering::Relaxed), 5);
}

#[test]
fn sync_failed_on_a_thread_fails_the_writer() {
    for pass in 0..4 {
        let fs = SimFs::new(1);
        let mut options = coarse_options();
        options.io = IoMode::Thread;
        let store = SnapshotStore::open_with(fs.shared(), options).unwrap();
        write(&store, 1, b"old").unwrap();
        fs.fail_nth(Fault::Sync, pass);
        let result = write(&store, 2, &content(10_000));
        assert_eq!(result.is_err(), pass < 3, "{result:?}");
        assert_eq!(names(&fs, "").len(), if pass < 3 { 1 } else { 2 });
    }
}

#[test]
fn compressible_snapshot_is_smaller_on_disk_and_reads_back() {
    let fs = SimFs::new(1);
    let mut options = coarse_options();
    options.compression = Compression::Lz4;
    let store = SnapshotStore::open_with(fs.shared(), options).unwrap();
    // Half of the chunks compress.
    let mut all = content(10_000);
    all[..5000].fill(7);
    let snapshot = write(&store, 1, &all).unwrap();
    assert_eq!(read(&store, &snapshot).unwrap(), all);
    let file_len = store.list().unwrap()[0].file_len;
    assert!(file_len < 5600, "{file_len} bytes");
    // Whoever does not compress reads it all the same.
    assert_eq!(read(&open(&fs).unwrap(), &snapshot).unwrap(), all);
}

#[test]
fn list_returns_all_snapshots_and_remove_takes_one() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let first = write(&store, 1, b"one").unwrap();
    let second = write(&store, 2, b"two").unwrap();
    let listed = |store: &SnapshotStore| -> Vec<_> {
        let files = store.list().unwrap().into_iter();
        files
            .map(|file| (file.group, file.state.unwrap()))
            .collect()
    };
    let both = [(GROUP, first.clone()), (GROUP, second.clone())];
    assert_eq!(listed(&store), both);
    store.remove(GROUP, &first).unwrap();
    store.remove(GROUP, &first).unwrap();
    fs.crash(CrashKind::Power);
    let store = open(&fs).unwrap();
    assert_eq!(listed(&store), [(GROUP, second)]);
    assert!(store.open_snapshot(GROUP, &first).unwrap_err().is_missing());
}

#[test]
fn file_found_after_a_crash_at_any_operation_is_whole_and_stays() {
    let found = |store: &SnapshotStore| -> Vec<_> {
        let files = store.list().unwrap().into_iter();
        files.map(|file| file.state.unwrap()).collect()
    };
    for kind in [CrashKind::Power, CrashKind::Process] {
        for n in 0.. {
            let mut finished = false;
            for seed in 0..12 {
                let fs = SimFs::new(seed);
                fs.fail_after(n);
                finished = open(&fs)
                    .and_then(|store| write(&store, 2, &content(1000)))
                    .is_ok();
                fs.crash(kind);
                let before = found(&open(&fs).unwrap());
                fs.crash(CrashKind::Power);
                let store = open(&fs).unwrap();
                assert_eq!(
                    found(&store),
                    before,
                    "{kind:?}, operation {n}, seed {seed}"
                );
                assert!(!finished || before.len() == 1);
                for snapshot in before {
                    assert_eq!(read(&store, &snapshot).unwrap(), content(1000));
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
fn catalog_reads_a_store_in_use_and_changes_nothing() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"one").unwrap();
    let writer = store.create(meta(2)).unwrap();
    let before = fs.op_count();
    let catalog = Catalog::new(fs.shared(), DIR, None);
    let files = catalog.list().unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].creation, Some(CREATION));
    assert_eq!(files[0].state.as_ref().unwrap(), &snapshot);
    catalog.verify(GROUP, &snapshot).unwrap();
    assert_eq!(fs.op_count(), before);
    let foreign = Catalog::new(fs.shared(), DIR, Some(PEER));
    let error = foreign.verify(GROUP, &snapshot).unwrap_err();
    assert!(
        matches!(error, SnapshotError::ForeignStore { .. }),
        "{error}"
    );
    writer.finish().unwrap();
}

#[test]
fn writer_dropped_unfinished_leaves_nothing() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let mut writer = store.create(meta(1)).unwrap();
    writer.write_all(&content(500)).unwrap();
    drop(writer);
    assert!(names(&fs, "").is_empty());
    drop(make(&store, meta(1), &content(500)).unwrap());
    assert!(names(&fs, "").is_empty());
}

#[test]
fn second_writer_of_a_group_is_busy_until_the_first_is_gone() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let first = store.create(meta(1)).unwrap();
    let error = store.create(meta(2)).unwrap_err();
    assert!(matches!(error, SnapshotError::Busy { group: GROUP, .. }));
    let pending = first.finish().unwrap();
    assert!(store.create(meta(2)).is_err());
    drop(pending);
    store.create(meta(2)).unwrap();
}

#[test]
fn failed_write_or_sync_fails_the_writer_and_leaves_nothing() {
    for fault in [Fault::Write, Fault::Sync] {
        for pass in 0.. {
            let fs = SimFs::new(pass);
            let store = SnapshotStore::open_with(fs.shared(), coarse_options()).unwrap();
            write(&store, 1, b"old").unwrap();
            fs.fail_nth(fault, pass);
            let result = write(&store, 2, &content(10_000));
            if result.is_ok() {
                // Two pieces and the rest, each synced; and the header.
                assert_eq!(pass, if fault == Fault::Write { 4 } else { 3 });
                break;
            }
            assert!(matches!(result, Err(SnapshotError::Io { .. })));
            assert_eq!(names(&fs, "").len(), 1);
            fs.crash(CrashKind::Power);
            assert_eq!(open(&fs).unwrap().list().unwrap().len(), 1);
        }
    }
}

#[test]
fn full_disk_fails_the_writer_and_keeps_the_older_snapshot() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"old").unwrap();
    fs.set_capacity(Some(5000));
    let error = write(&store, 2, &content(1000)).unwrap_err();
    let kind = std::io::Error::from(error).kind();
    assert_eq!(kind, std::io::ErrorKind::StorageFull);
    fs.set_capacity(None);
    assert_eq!(read(&store, &snapshot).unwrap(), b"old");
    write(&store, 2, &content(1000)).unwrap();
}

#[test]
fn failed_read_fails_the_reader_and_is_no_damage() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, &content(200)).unwrap();
    for pass in 0..5 {
        fs.fail_nth(Fault::Read, pass);
        let error = store.verify(GROUP, &snapshot).unwrap_err();
        assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    }
    store.verify(GROUP, &snapshot).unwrap();
}

/// Content of runs and of noise, so that some chunks compress.
fn mixed() -> impl Strategy<Value = Vec<u8>> {
    let run = (any::<u8>(), 1..600_usize).prop_map(|(byte, len)| vec![byte; len]);
    let noise = prop::collection::vec(any::<u8>(), 0..600);
    prop::collection::vec(prop_oneof![run, noise], 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn content_in_any_pieces_and_chunks_reads_back_and_arrives(
        content in mixed(),
        chunk_bytes in 1..700_u32,
        lz4 in any::<bool>(),
        write_len in 1..900_usize,
        read_len in 1..900_usize,
        start in any::<prop::sample::Index>(),
    ) {
        let fs = SimFs::new(1);
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let from = peer(chunk_bytes, compression);
        let mut writer = from.create(meta(5)).unwrap();
        for piece in content.chunks(write_len) {
            writer.write_all(piece).unwrap();
        }
        let snapshot = writer.finish().unwrap().keep();
        let mut reader = from.open_snapshot(GROUP, &snapshot).unwrap();
        let (mut found, mut buf) = (Vec::new(), vec![0; read_len]);
        loop {
            let n = reader.read(&mut buf).unwrap();
            if n == 0 {
                break;
            }
            found.extend_from_slice(&buf[..n]);
        }
        prop_assert_eq!(&found, &content);

        let store = open(&fs).unwrap();
        let mut sender = from.send(GROUP, &snapshot).unwrap();
        let stop = start.index(sender.manifest().chunks() as usize + 1) as u64;
        let mut receiver = store.receive(sender.manifest(), CREATION).unwrap();
        while receiver.next() < stop {
            let (number, chunk) = sender.next_chunk().unwrap().unwrap();
            receiver.push(number, &chunk).unwrap();
        }
        drop(receiver);
        let mut sender = from.send(GROUP, &snapshot).unwrap();
        let mut receiver = store.receive(sender.manifest(), CREATION).unwrap();
        prop_assert_eq!(receiver.next(), stop);
        sender.seek(stop).unwrap();
        while let Some((number, chunk)) = sender.next_chunk().unwrap() {
            receiver.push(number, &chunk).unwrap();
        }
        let received = receiver.finish().unwrap().keep();
        prop_assert_eq!(read(&store, &received).unwrap(), content);
    }
}
