//! A crash at every operation of making, installing, superseding and receiving a snapshot.

use raft_log::snapshot::{Compression, SnapshotError, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::CrashKind;
use raft_log::{GroupInfo, Log, SnapshotRef, Term};

use crate::common::*;

/// Different for each index.
fn state(index: u64) -> Vec<u8> {
    content(9000 + index as usize)
}

fn start(fs: &SimFs) -> Result<(Log, SnapshotStore), SnapshotError> {
    let log = open_log(fs)?;
    let store = SnapshotStore::open_with(fs.shared(), coarse_options())?;
    let report = store.recover(&log)?;
    assert!(report.unusable.is_empty(), "{report}");
    assert!(report.spared.is_empty(), "{report}");
    Ok((log, store))
}

/// What must hold after any start.
fn check(fs: &SimFs, log: &Log, store: &SnapshotStore, place: &str) {
    let newest = log.group(GROUP).unwrap().snapshot;
    let files = store.list().unwrap();
    assert!(files.len() <= 2, "{place}: {files:?}");
    assert_eq!(files.is_empty(), newest.is_none(), "{place}: {files:?}");
    assert_eq!(names(fs, "").len(), files.len(), "{place}");
    for file in files {
        let snapshot = file.state.unwrap();
        let newest = newest.as_ref().unwrap();
        assert!(snapshot.number <= newest.number, "{place}");
        assert_eq!(read(store, &snapshot).unwrap(), state(snapshot.index.0));
    }
    if let Some(newest) = newest {
        let found = read(store, &newest).unwrap();
        assert_eq!(found, state(newest.index.0), "{place}");
    }
}

#[test]
fn crash_at_every_operation_of_installs_keeps_what_the_log_refers_to() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        for n in 0.. {
            let mut finished = false;
            for seed in 0..4 {
                let place = format!("{kind:?}, operation {n}, seed {seed}");
                let fs = SimFs::new(seed);
                log_with_entries(&fs, 20).close().unwrap();
                let mut acked: Option<SnapshotRef> = None;
                let mut run = |fs: &SimFs| {
                    let (log, store) = start(fs)?;
                    for index in 1..=4 {
                        acked = Some(install(&store, &log, index, &state(index))?);
                    }
                    Ok::<_, SnapshotError>(())
                };
                fs.fail_after(n);
                finished = run(&fs).is_ok();
                fs.crash(kind);
                // A second crash, while the first is repaired.
                fs.fail_after(n % 23);
                let _ = start(&fs);
                fs.crash(CrashKind::Power);

                let (log, store) = start(&fs).unwrap();
                check(&fs, &log, &store, &place);
                let newest = log.group(GROUP).unwrap().snapshot;
                if let Some(acked) = &acked {
                    let newest = newest.as_ref().unwrap();
                    assert!(newest.number >= acked.number, "{place}");
                }
                let next = install(&store, &log, 6, &state(6)).unwrap();
                let before = newest.map_or(0, |newest| newest.number);
                assert!(next.number > before, "{place}");
                check(&fs, &log, &store, &place);
                fs.crash(CrashKind::Power);
                let (log, store) = start(&fs).unwrap();
                check(&fs, &log, &store, &place);
                assert_eq!(log.group(GROUP).unwrap().snapshot, Some(next), "{place}");
            }
            if finished {
                assert!(n > 60, "only {n} operations were cut short");
                break;
            }
        }
    }
}

#[test]
fn crash_at_every_operation_of_a_received_install_moves_log_and_reference_together() {
    // Entries 1 to 10 of term 2 are there: a suffix that stays, one that is cut, and a jump.
    for (index, term) in [(5, 2), (5, 3), (20, 3)] {
        let from = peer(1000, Compression::None);
        let mut meta = meta(index);
        meta.term = Term(term);
        let sent = make(&from, meta, &state(index)).unwrap().keep();
        let run = |fs: &SimFs| {
            let (log, store) = start(fs)?;
            let mut sender = from.send(GROUP, &sent)?;
            let mut receiver = store.receive(sender.manifest(), CREATION)?;
            sender.seek(receiver.next())?;
            while let Some((number, chunk)) = sender.next_chunk()? {
                receiver.push(number, &chunk)?;
            }
            store.install(&log, receiver.finish()?)?.retention?;
            Ok::<GroupInfo, SnapshotError>(log.group(GROUP).unwrap())
        };
        let whole = SimFs::new(1);
        log_with_entries(&whole, 10).close().unwrap();
        let old = open_log(&whole).unwrap().group(GROUP).unwrap();
        let new = run(&whole).unwrap();
        for kind in [CrashKind::Power, CrashKind::Process] {
            for n in 0.. {
                let mut finished = false;
                for seed in 0..3 {
                    let place = format!("{kind:?}, operation {n}, seed {seed}, {index}@{term}");
                    let fs = SimFs::new(seed);
                    log_with_entries(&fs, 10).close().unwrap();
                    fs.fail_after(n);
                    finished = run(&fs).is_ok();
                    fs.crash(kind);
                    let (log, store) = start(&fs).unwrap();
                    let found = log.group(GROUP).unwrap();
                    let moved = found.snapshot.is_some();
                    assert!(moved || !finished, "{place}");
                    // The number depends on how many were drawn; nothing else may.
                    let expected = GroupInfo {
                        snapshot: found.snapshot.clone(),
                        ..if moved { new.clone() } else { old.clone() }
                    };
                    assert_eq!(found, expected, "{place}");
                    if let Some(snapshot) = &found.snapshot {
                        assert_eq!(read(&store, snapshot).unwrap(), state(index), "{place}");
                    } else {
                        drop((log, store));
                        run(&fs).unwrap();
                    }
                }
                if finished {
                    assert!(n > 20, "only {n} operations were cut short");
                    break;
                }
            }
        }
    }
}
