//! Images of a run, and the file systems that wrap another one.

use std::collections::BTreeSet;
use std::path::Path;

use super::{BytewiseFs, CrashKind, Fault, Lie, LyingFs, SimFs};
use crate::vfs::{OpenMode, Vfs};

const PATH: &str = "/f";

fn path() -> &'static Path {
    Path::new(PATH)
}

#[test]
fn images_of_a_run_are_the_states_before_each_operation() {
    let fs = SimFs::new(1);
    fs.keep_images();
    let file = fs.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    file.write_all_at(b"two", 0).unwrap();
    let images = fs.take_images();
    let contents: Vec<_> = images
        .iter()
        .map(|image| {
            image.crash(CrashKind::Process);
            image.read_file(PATH).ok()
        })
        .collect();
    assert_eq!(contents, [None, Some(vec![]), Some(b"one".to_vec())]);
    file.sync_data().unwrap();
    assert_eq!(fs.take_images().len(), 1);
    assert_eq!(fs.read_file(PATH).unwrap(), b"two");
}

#[test]
fn images_of_a_long_write_hold_a_part_of_it_too() {
    let mut lengths = BTreeSet::new();
    for _ in 0..20 {
        let fs = SimFs::new(1);
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        // Each further operation draws another part.
        fs.keep_images();
        for round in 0..20 {
            file.write_all_at(&[1; 2_000], round * 2_000).unwrap();
        }
        let images = fs.take_images();
        assert_eq!(images.len(), 40);
        let len = |fs: &SimFs| fs.file_len(PATH).unwrap();
        for pair in images.chunks(2) {
            lengths.insert(len(&pair[1]) - len(&pair[0]));
        }
    }
    assert!(lengths.len() > 2, "{lengths:?}");
    let whole = |len: &u64| *len > 0 && *len < 2_000;
    assert!(lengths.iter().all(whole), "{lengths:?}");
}

#[test]
fn keeping_images_does_not_change_the_run() {
    let run = |keep: bool| {
        let fs = SimFs::new(9);
        if keep {
            fs.keep_images();
        }
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        fs.crash(CrashKind::Power);
        fs.read_file(PATH).unwrap()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn bytewise_file_reads_back_what_was_written_and_stores_none_of_it() {
    let inner = SimFs::new(1);
    let fs = BytewiseFs::new(inner.shared());
    let file = fs.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"abc", 2).unwrap();
    file.set_len(7).unwrap();
    let mut buf = [9; 7];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 1);
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0abc\0\0");
    let stored = inner.read_file(PATH).unwrap();
    assert!(stored.iter().zip(buf).all(|(stored, byte)| *stored != byte));
}

#[test]
fn lying_file_system_breaks_its_promise_and_no_other() {
    let survives = |lie: Lie| {
        let inner = SimFs::new(1);
        let fs = LyingFs::new(inner.shared(), lie);
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        file.sync_data().unwrap();
        // The extremes of what a crash keeps are both among these.
        (0..32).all(|seed| {
            let after = inner.fork(seed);
            after.crash(CrashKind::Power);
            after.read_file(PATH).is_ok_and(|read| read == b"content")
        })
    };
    assert!(survives(Lie::SkipSync("other")));
    assert!(!survives(Lie::SkipSync("f")));
    assert!(!survives(Lie::LateSync("f")));
    assert!(!survives(Lie::SkipSyncDir));
    assert!(!survives(Lie::ShortWrite("f", 3)));
    assert!(survives(Lie::RetrySync("f")));
}

#[test]
fn late_sync_happens_at_the_next_one_and_retried_sync_loses_the_data() {
    let inner = SimFs::new(1);
    let fs = LyingFs::new(inner.shared(), Lie::LateSync("f"));
    let file = fs.open(path(), OpenMode::CreateNew).unwrap();
    let other = fs.open(Path::new("/other"), OpenMode::CreateNew).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    file.write_all_at(b"content", 0).unwrap();
    file.sync_data().unwrap();
    other.sync_data().unwrap();
    inner.crash(CrashKind::Power);
    assert_eq!(inner.read_file(PATH).unwrap(), b"content");

    let inner = SimFs::new(1);
    let fs = LyingFs::new(inner.shared(), Lie::RetrySync("f"));
    let file = fs.open(path(), OpenMode::CreateNew).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    file.write_all_at(b"content", 0).unwrap();
    inner.fail_next(Fault::Sync);
    file.sync_data().unwrap();
    inner.crash(CrashKind::Power);
    assert_eq!(inner.read_file(PATH).unwrap(), b"");
}
