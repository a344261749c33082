//! From which snapshot a state begins: one row per case.

use raft_log::snapshot::{RestorePoint, SnapshotError, SnapshotStore, restore_point};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::Fault;
use raft_log::{ErrorKind, GroupId, Index, Log, SnapshotRef, Term};

use crate::common::*;

/// Snapshots at 5 and 10 of a log with entries 1 to 20.
fn two(fs: &SimFs) -> (Log, SnapshotStore, SnapshotRef, SnapshotRef) {
    let log = log_with_entries(fs, 20);
    let store = open(fs).unwrap();
    let older = install(&store, &log, 5, &content(200)).unwrap();
    let newest = install(&store, &log, 10, &content(201)).unwrap();
    (log, store, older, newest)
}

fn at(snapshot: &SnapshotRef, newest: bool) -> RestorePoint {
    RestorePoint::Snapshot {
        snapshot: snapshot.clone(),
        newest,
    }
}

#[test]
fn restore_goes_back_only_as_far_as_the_log_reaches() {
    let nothing = |log_begins| RestorePoint::Nothing {
        log_begins: Index(log_begins),
    };
    // Damage to the newest and to the older one; where the log's base is; the outcome, given the
    // two.
    type Outcome = fn(&SnapshotRef, &SnapshotRef) -> RestorePoint;
    let newest_ok: Outcome = |_, newest| at(newest, true);
    let older_ok: Outcome = |older, _| at(older, false);
    let log_only: Outcome = |_, _| RestorePoint::Log;
    let rows: [(bool, bool, u64, Option<Outcome>); 10] = [
        (false, false, 0, Some(newest_ok)),
        (false, false, 10, Some(newest_ok)),
        (false, true, 10, Some(newest_ok)),
        (false, false, 11, None),
        (true, false, 0, Some(older_ok)),
        (true, false, 5, Some(older_ok)),
        (true, false, 6, None),
        (true, false, 10, None),
        (true, true, 0, Some(log_only)),
        (true, true, 1, None),
    ];
    // Header, chunk and footer.
    for place in [20, 140, -10_i64] {
        for (newest_bad, older_bad, log_base, outcome) in rows {
            let fs = SimFs::new(1);
            let (log, store, older, newest) = two(&fs);
            if log_base > 0 {
                log_write(&log, vec![base(log_base, CREATION)]).unwrap();
            }
            for (bad, snapshot) in [(newest_bad, &newest), (older_bad, &older)] {
                let path = path_of(snapshot);
                let len = fs.file_len(&path).unwrap() as i64;
                if bad {
                    let offset = place.rem_euclid(len) as u64;
                    fs.corrupt(&path, offset, 1).unwrap();
                }
            }
            let expected = outcome.map_or(nothing(log_base + 1), |of| of(&older, &newest));
            let found = store.restore(&log, GROUP).unwrap();
            let row = (place, newest_bad, older_bad, log_base);
            assert_eq!(found, expected, "{row:?}");
        }
    }
}

#[test]
fn restore_without_the_newest_file_takes_the_older() {
    let fs = SimFs::new(1);
    let (log, store, older, newest) = two(&fs);
    store.remove(GROUP, &newest).unwrap();
    assert_eq!(store.restore(&log, GROUP).unwrap(), at(&older, false));
}

#[test]
fn restore_ignores_files_that_no_record_refers_to() {
    let fs = SimFs::new(1);
    let log = log_with_entries(&fs, 20);
    let store = open(&fs).unwrap();
    write(&store, 5, b"never recorded").unwrap();
    assert_eq!(store.restore(&log, GROUP).unwrap(), RestorePoint::Log);
    let newest = install(&store, &log, 6, b"recorded").unwrap();
    write(&store, 9, b"never recorded").unwrap();
    assert_eq!(store.restore(&log, GROUP).unwrap(), at(&newest, true));
}

#[test]
fn restore_ignores_other_creations_groups_and_contents() {
    let fs = SimFs::new(1);
    let (log, store, older, newest) = two(&fs);
    let info = log.group(GROUP).unwrap();
    let files = store.list().unwrap();
    assert_eq!(restore_point(GROUP, &info, &files), at(&newest, true));
    assert_eq!(restore_point(GroupId(8), &info, &files), RestorePoint::Log);

    let mut other = info.clone();
    other.base.creation += 1;
    assert_eq!(restore_point(GROUP, &other, &files), RestorePoint::Log);

    // A file of the newest number that is not what the record says.
    let mut other = info.clone();
    other.snapshot.as_mut().unwrap().content_crc ^= 1;
    assert_eq!(restore_point(GROUP, &other, &files), at(&older, false));

    // A log that ends before the snapshot's index, or whose base has another term.
    let mut other = info.clone();
    other.last_index = Index(9);
    assert_eq!(restore_point(GROUP, &other, &files), at(&older, false));
    let mut other = info;
    (other.base.index, other.base.term) = (Index(10), Term(9));
    let expected = RestorePoint::Nothing {
        log_begins: Index(11),
    };
    assert_eq!(restore_point(GROUP, &other, &files), expected);
}

#[test]
fn restore_that_cannot_read_is_an_error_and_no_fallback() {
    let fs = SimFs::new(1);
    let (log, store, _, newest) = two(&fs);
    // Behind the headers and footers of both, which listing reads.
    fs.fail_nth(Fault::Read, 9);
    let error = store.restore(&log, GROUP).unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    assert_eq!(store.restore(&log, GROUP).unwrap(), at(&newest, true));
    let error = store.restore(&log, GroupId(8)).unwrap_err();
    let unknown =
        matches!(&error, SnapshotError::Log(log) if log.kind() == ErrorKind::UnknownGroup);
    assert!(unknown, "{error}");
}
