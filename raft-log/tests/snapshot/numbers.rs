//! A number is used once, whatever happens.

use std::collections::BTreeSet;

use raft_log::snapshot::{Compression, SnapshotError, SnapshotOptions, SnapshotStore};
use raft_log::vfs::sim::CrashKind;
use raft_log::vfs::{SimFs, Vfs};

use crate::common::*;

const NUMBERS: &str = "/data/snap/NUMBERS";

#[test]
fn numbers_after_removals_and_crashes_are_new() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        for n in 0..60 {
            let fs = SimFs::new(n);
            let mut seen = BTreeSet::new();
            for round in 0..4 {
                fs.fail_after(n + round);
                let run = || -> Result<(), SnapshotError> {
                    let store = open(&fs)?;
                    loop {
                        let snapshot = write(&store, round + 1, b"x")?;
                        assert!(seen.insert(snapshot.number), "{snapshot:?}");
                        store.remove(GROUP, &snapshot)?;
                    }
                };
                let mut run = run;
                run().unwrap_err();
                fs.crash(kind);
            }
        }
    }
}

#[test]
fn numbers_beyond_one_reservation_go_on() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let numbers: Vec<u64> = (0..200)
        .map(|_| write(&store, 1, b"").unwrap().number)
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
}

#[test]
fn number_of_a_received_snapshot_is_new_after_a_power_cut() {
    let from = peer(64, Compression::None);
    let (manifest, chunks) = offer(&from, 70, b"received");
    for seed in 0..8 {
        let fs = SimFs::new(seed);
        let store = open(&fs).unwrap();
        let mut receiver = store.receive(manifest.clone(), CREATION).unwrap();
        push_rest(&mut receiver, &chunks).unwrap();
        for index in 1..64 {
            write(&store, index, b"x").unwrap();
        }
        // Its number is the first of a block, and nothing else syncs the counter's directory.
        let received = receiver.finish().unwrap().keep();
        assert_eq!(received.number, 65);
        fs.crash(CrashKind::Power);
        let next = write(&open(&fs).unwrap(), 71, b"x").unwrap();
        assert!(next.number > received.number, "seed {seed}: {next:?}");
    }
}

#[test]
fn flipped_bit_in_the_counter_changes_nothing() {
    let fs = SimFs::new(1);
    let last = write(&open(&fs).unwrap(), 1, b"x").unwrap().number;
    for offset in 0..fs.file_len(NUMBERS).unwrap() {
        for bit in 0..8 {
            let fs = fs.fork(2);
            fs.corrupt(NUMBERS, offset, 1 << bit).unwrap();
            let number = write(&open(&fs).unwrap(), 2, b"y").unwrap().number;
            assert!(number > last, "offset {offset}, bit {bit}: {number}");
        }
    }
}

#[test]
fn lost_counter_refuses_the_store() {
    let fs = SimFs::new(1);
    write(&open(&fs).unwrap(), 1, b"x").unwrap();
    let both = fs.fork(2);
    both.corrupt(NUMBERS, 24, 1).unwrap();
    both.corrupt(NUMBERS, 4096 + 24, 1).unwrap();
    let error = open(&both).unwrap_err();
    assert!(
        matches!(error, SnapshotError::NumbersUnknown { .. }),
        "{error}"
    );

    let missing = fs.fork(3);
    missing.remove(NUMBERS.as_ref()).unwrap();
    let error = open(&missing).unwrap_err();
    assert!(
        matches!(error, SnapshotError::NumbersUnknown { .. }),
        "{error}"
    );

    let other = SnapshotOptions::new(DIR, PEER);
    let error = SnapshotStore::open_with(fs.shared(), other).unwrap_err();
    assert!(
        matches!(error, SnapshotError::ForeignStore { .. }),
        "{error}"
    );
}
