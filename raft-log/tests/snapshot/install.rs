//! Which files are there once the log refers to them, and which go.

use raft_log::snapshot::{Compression, SnapshotError, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::{CrashKind, Fault};
use raft_log::{ErrorKind, GroupId, Index, Record, SnapshotRef, Term};

use crate::common::*;

fn numbers(store: &SnapshotStore) -> Vec<u64> {
    let files = store.list().unwrap().into_iter();
    files.map(|file| file.number).collect()
}

#[test]
fn install_records_the_snapshot_and_keeps_the_last_two() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let mut installed: Vec<SnapshotRef> = Vec::new();
    for index in 1..=5 {
        installed.push(install(&store, &log, index, &content(100)).unwrap());
        assert_eq!(
            log.group(GROUP).unwrap().snapshot.as_ref(),
            installed.last()
        );
        let last: Vec<u64> = installed.iter().map(|snapshot| snapshot.number).collect();
        assert_eq!(numbers(&store), last[last.len().saturating_sub(2)..]);
    }
    // Also at the same index: the state may have lost its newest file.
    install(&store, &log, 5, &content(100)).unwrap();
    assert_eq!(numbers(&store).len(), 2);
}

#[test]
fn file_that_is_read_sent_or_pinned_stays_until_the_last_is_done() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let first = install(&store, &log, 1, &content(1000)).unwrap();
    let mut reader = store.open_snapshot(GROUP, &first).unwrap();
    let sender = store.send(GROUP, &first).unwrap();
    let pin = store.pin(GROUP, &first);
    let copy = pin.clone();
    for index in 2..=4 {
        install(&store, &log, index, b"x").unwrap();
    }
    let path = path_of(&first);
    assert_eq!(numbers(&store).len(), 3);
    while !reader.next_chunk().unwrap().is_empty() {}
    drop(reader);
    drop(pin);
    drop(sender);
    assert!(fs.file_len(&path).is_ok());
    // Who still has a pin may open it again.
    assert_eq!(read(&store, &first).unwrap(), content(1000));
    drop(copy);
    assert!(fs.file_len(&path).is_err());
    fs.crash(CrashKind::Power);
    assert!(fs.file_len(&path).is_err(), "the removal was synced");
}

#[test]
fn pin_forgotten_by_a_crash_frees_the_file_at_the_next_start() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let first = install(&store, &log, 1, b"x").unwrap();
    let pin = store.pin(GROUP, &first);
    for index in 2..=3 {
        install(&store, &log, index, b"x").unwrap();
    }
    assert_eq!(numbers(&store).len(), 3);
    fs.crash(CrashKind::Process);
    // A process that is gone lets nothing go.
    std::mem::forget((pin, store));
    let (log, store) = (open_log(&fs).unwrap(), open(&fs).unwrap());
    let report = store.recover(&log).unwrap();
    assert_eq!(report.removed, [std::path::PathBuf::from(path_of(&first))]);
    assert_eq!(numbers(&store).len(), 2);
}

#[test]
fn snapshot_that_came_too_late_is_stale_and_removed() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let from = peer(64, Compression::None);

    // A local one that was begun before one was received.
    let slow = make(&store, meta(4), b"slow").unwrap();
    let (manifest, chunks) = offer(&from, 10, b"received");
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    push_rest(&mut receiver, &chunks).unwrap();
    let _ = store.install(&log, receiver.finish().unwrap()).unwrap();
    let error = store.install(&log, slow).unwrap_err();
    assert!(matches!(error, SnapshotError::Stale { .. }), "{error}");
    assert_eq!(numbers(&store).len(), 1);

    // One of an index that the log has left behind.
    log_write(&log, vec![base(15, CREATION)]).unwrap();
    let error = install(&store, &log, 12, b"x").unwrap_err();
    assert!(matches!(error, SnapshotError::Stale { .. }), "{error}");
    // One of a group that was destroyed and made again meanwhile.
    let old = make(&store, meta(20), b"old").unwrap();
    log_write(&log, vec![Record::Destroy, base(0, CREATION + 1)]).unwrap();
    let error = store.install(&log, old).unwrap_err();
    assert!(matches!(error, SnapshotError::Stale { .. }), "{error}");
    assert_eq!(numbers(&store).len(), 1);
    // One of a group that is gone.
    let old = make(&store, meta(20), b"old").unwrap();
    log_write(&log, vec![Record::Destroy]).unwrap();
    let error = store.install(&log, old).unwrap_err();
    let unknown =
        matches!(&error, SnapshotError::Log(log) if log.kind() == ErrorKind::UnknownGroup);
    assert!(unknown, "{error}");
    assert_eq!(numbers(&store).len(), 1);
}

#[test]
fn failed_sync_of_the_log_leaves_the_file_to_the_next_start() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let pending = make(&store, meta(3), b"x").unwrap();
    let snapshot = pending.reference().clone();
    fs.fail_next(Fault::Sync);
    let error = store.install(&log, pending).unwrap_err();
    assert!(matches!(error, SnapshotError::Log(_)), "{error}");
    assert_eq!(numbers(&store), [snapshot.number]);
    fs.crash(CrashKind::Power);
    let (log, store) = (open_log(&fs).unwrap(), open(&fs).unwrap());
    let _ = store.recover(&log).unwrap();
    let known = log.group(GROUP).unwrap().snapshot;
    let expected: Vec<u64> = known.iter().map(|snapshot| snapshot.number).collect();
    assert_eq!(numbers(&store), expected);
}

#[test]
fn failed_removal_of_an_old_file_does_not_fail_the_install() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    for index in 1..=2 {
        install(&store, &log, index, b"x").unwrap();
    }
    let pending = make(&store, meta(3), b"x").unwrap();
    fs.fail_next(Fault::SyncDir);
    let installed = store.install(&log, pending).unwrap();
    assert!(installed.retention.is_err());
    let known = log.group(GROUP).unwrap().snapshot;
    assert_eq!(known, Some(installed.snapshot));
}

#[test]
fn received_snapshot_moves_the_log_to_its_index() {
    // Index and term of the snapshot; what is left of entries 1 to 10 of term 2.
    let cases = [
        (5, 2, Some(10)),
        (5, 3, None),
        (10, 2, Some(10)),
        (10, 3, None),
        (20, 3, None),
    ];
    for (index, term, last) in cases {
        let fs = SimFs::new(1);
        let log = log_with_entries(&fs, 10);
        let store = open(&fs).unwrap();
        let from = peer(64, Compression::None);
        let mut meta = meta(index);
        meta.term = Term(term);
        let sent = make(&from, meta, b"received").unwrap().keep();
        let mut sender = from.send(GROUP, &sent).unwrap();
        let mut receiver = store.receive(sender.manifest(), CREATION).unwrap();
        while let Some((number, chunk)) = sender.next_chunk().unwrap() {
            receiver.push(number, &chunk).unwrap();
        }
        let installed = store.install(&log, receiver.finish().unwrap()).unwrap();
        let info = log.group(GROUP).unwrap();
        assert_eq!(
            (info.base.index, info.base.term),
            (Index(index), Term(term))
        );
        assert_eq!(info.base.membership, "members");
        assert_eq!(info.last_index, Index(last.unwrap_or(index)));
        assert_eq!(info.snapshot, Some(installed.snapshot));
    }
}

#[test]
fn received_snapshot_of_an_unknown_group_creates_it() {
    let fs = SimFs::new(1);
    let log = open_log(&fs).unwrap();
    let store = open(&fs).unwrap();
    let (manifest, chunks) = offer(&peer(64, Compression::None), 10, b"received");
    let mut receiver = store.receive(manifest, 8).unwrap();
    push_rest(&mut receiver, &chunks).unwrap();
    let pending = receiver.finish().unwrap();
    assert!(pending.is_received());
    let installed = store.install(&log, pending).unwrap();
    let info = log.group(GROUP).unwrap();
    assert_eq!((info.base.index, info.base.creation), (Index(10), 8));
    assert_eq!(info.snapshot, Some(installed.snapshot));
}

#[test]
fn recover_with_an_empty_log_spares_every_snapshot() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 10);
    let store = open(&fs).unwrap();
    install(&store, &log, 5, b"x").unwrap();
    drop((log, store));
    let mut options = raft_log::LogOptions::new("/elsewhere/log", STORE);
    options.io = raft_log::IoMode::Inline;
    let (empty, _) = raft_log::Log::open(fs.shared(), options).unwrap();
    let store = open(&fs).unwrap();
    let report = store.recover(&empty).unwrap();
    assert_eq!(report.spared, [GROUP]);
    assert!(report.to_string().contains("left alone"), "{report}");
    assert_eq!(numbers(&store).len(), 1);
}

#[test]
fn recover_removes_files_of_groups_that_are_gone_or_made_anew() {
    for destroyed in [true, false] {
        let fs = SimFs::new(1);
        let log = log_with_entries(&fs, 10);
        let store = open(&fs).unwrap();
        install(&store, &log, 4, b"x").unwrap();
        install(&store, &log, 5, b"x").unwrap();
        let (manifest, chunks) = offer(&peer(64, Compression::None), 9, &content(100));
        let mut receiver = store.receive(manifest, CREATION).unwrap();
        receiver.push(0, &chunks[0]).unwrap();
        drop(receiver);
        let mut records = vec![Record::Destroy];
        if !destroyed {
            records.extend([base(0, CREATION + 1), entries(1, 3, 2)]);
        }
        log_write(&log, records).unwrap();
        // Another group, so that the log is not empty.
        let mut batch = raft_log::WriteBatch::new();
        batch.push(GroupId(8), base(0, 1));
        log.write(batch).unwrap();
        if !destroyed {
            // The first snapshot of the new group: those of the old one must not stay behind it.
            let mut meta = meta(2);
            meta.creation += 1;
            let pending = make(&store, meta, b"new").unwrap();
            store.install(&log, pending).unwrap().retention.unwrap();
        }
        let store = open(&fs).unwrap();
        let report = store.recover(&log).unwrap();
        assert!(report.unusable.is_empty());
        let left = if destroyed { 0 } else { 1 };
        assert_eq!(numbers(&store).len(), left);
        if !destroyed {
            assert_eq!(names(&fs, "").len(), 1, "{:?}", names(&fs, ""));
        }
    }
}

#[test]
fn remove_group_takes_complete_and_partial_files() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 10);
    let store = open(&fs).unwrap();
    install(&store, &log, 4, b"x").unwrap();
    let (manifest, chunks) = offer(&peer(64, Compression::None), 9, &content(100));
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    receiver.push(0, &chunks[0]).unwrap();
    drop(receiver);
    store.remove_group(GROUP).unwrap();
    fs.crash(CrashKind::Power);
    assert!(names(&fs, "").is_empty());
}

#[test]
fn recover_keeps_files_that_it_may_not_judge() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    let first = install(&store, &log, 1, b"x").unwrap();
    let second = install(&store, &log, 2, b"x").unwrap();
    // A newer release wrote the older one; the newest is damaged.
    fs.corrupt(path_of(&first), 8, 2).unwrap();
    fs.corrupt(path_of(&second), 20, 1).unwrap();
    let store = open(&fs).unwrap();
    let report = store.recover(&log).unwrap();
    assert!(report.removed.is_empty());
    assert_eq!(report.unusable.len(), 1);
    assert_eq!(report.unusable[0].1, second);
    assert!(report.to_string().contains("damaged"), "{report}");
    assert_eq!(numbers(&store).len(), 2);
}
