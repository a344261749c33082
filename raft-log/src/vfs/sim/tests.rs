//! What the simulated file system promises to its tests, one behaviour each.

use std::collections::BTreeSet;

use super::*;

fn root() -> &'static Path {
    Path::new("/")
}

fn path() -> &'static Path {
    Path::new("/f")
}

/// A file whose name and first content are durable.
fn with_file(seed: u64, content: &[u8]) -> (SimFs, Box<dyn VfsFile>) {
    let fs = SimFs::new(seed);
    fs.write_file(path(), content).unwrap();
    let file = fs.open(path(), OpenMode::ReadWrite).unwrap();
    (fs, file)
}

#[test]
fn synced_content_without_synced_name_may_be_lost_in_power_loss() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_data().unwrap();
        fs.crash(CrashKind::Power);
        seen.insert(fs.read_file(path()).ok());
    }
    assert_eq!(seen, BTreeSet::from([None, Some(b"x".to_vec())]));
}

#[test]
fn synced_content_with_synced_name_survives_power_loss() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"abc", 1).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(root()).unwrap();
        file.write_all_at(b"later", 600).unwrap();
        fs.crash(CrashKind::Power);
        assert_eq!(fs.read_file(path()).unwrap()[..4], *b"\0abc", "seed {seed}");
    }
}

#[test]
fn process_crash_keeps_writes_that_a_later_power_loss_drops() {
    let mut lost = 0;
    for seed in 0..40 {
        let (fs, file) = with_file(seed, b"old");
        file.write_all_at(b"new", 0).unwrap();
        fs.crash(CrashKind::Process);
        assert_eq!(fs.read_file(path()).unwrap(), b"new");
        fs.crash(CrashKind::Power);
        lost += usize::from(fs.read_file(path()).unwrap() == b"old");
    }
    assert!(lost > 5, "lost {lost} of 40");
}

#[test]
fn write_over_two_sectors_is_torn_into_every_subset() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (fs, file) = with_file(seed, &[0; 1024]);
        file.write_all_at(&[1; 1024], 0).unwrap();
        fs.crash(CrashKind::Power);
        let content = fs.read_file(path()).unwrap();
        assert!(
            content.chunks(512).all(|s| s.iter().all(|b| *b == s[0])),
            "torn within a sector"
        );
        seen.insert((content[0], content[512]));
    }
    assert_eq!(seen, BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
}

#[test]
fn sector_written_twice_ends_at_one_of_its_states() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (fs, file) = with_file(seed, &[0; 4]);
        file.write_all_at(&[1], 0).unwrap();
        file.write_all_at(&[2], 1).unwrap();
        fs.crash(CrashKind::Power);
        seen.insert(fs.read_file(path()).unwrap());
    }
    let states = [vec![0, 0, 0, 0], vec![1, 0, 0, 0], vec![1, 2, 0, 0]];
    assert_eq!(seen, BTreeSet::from(states));
}

#[test]
fn file_cut_and_grown_never_shows_the_cut_bytes_after_power_loss() {
    let mut lengths = BTreeSet::new();
    for seed in 0..300 {
        let (fs, file) = with_file(seed, &[7; 1600]);
        file.write_all_at(&[8; 1600], 0).unwrap();
        file.set_len(700).unwrap();
        file.set_len(2000).unwrap();
        fs.crash(CrashKind::Power);
        let content = fs.read_file(path()).unwrap();
        lengths.insert(content.len());
        if content.len() == 2000 {
            assert!(content[700..].iter().all(|b| *b == 0), "seed {seed}");
        }
    }
    assert_eq!(lengths, BTreeSet::from([700, 1600, 2000]));
}

#[test]
fn changes_in_a_row_after_sync_equal_the_volatile_image() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let (fs, file) = with_file(seed, &[9; 100]);
        for _ in 0..12 {
            match rng.below(4) {
                0 => file.set_len(rng.below(2500)).unwrap(),
                1 => file.sync_data().unwrap(),
                _ => {
                    let mut data = vec![0; rng.below(1500) as usize];
                    rng.fill(&mut data);
                    file.write_all_at(&data, rng.below(2500)).unwrap();
                }
            }
        }
        file.sync_data().unwrap();
        let before = fs.read_file(path()).unwrap();
        fs.crash(CrashKind::Power);
        assert_eq!(fs.read_file(path()).unwrap(), before, "seed {seed}");
    }
}

#[test]
fn renames_without_directory_sync_survive_as_a_prefix() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let (fs, _) = with_file(seed, b"1");
        fs.rename(path(), Path::new("/g")).unwrap();
        fs.rename(Path::new("/g"), Path::new("/h")).unwrap();
        fs.remove(Path::new("/h")).unwrap();
        fs.crash(CrashKind::Power);
        seen.insert(fs.list(root()).unwrap());
    }
    let names = |name: &str| vec![name.to_owned()];
    assert_eq!(
        seen,
        BTreeSet::from([names("f"), names("g"), names("h"), vec![]])
    );
}

#[test]
fn rename_over_a_file_with_directory_sync_replaces_it_for_good() {
    for seed in 0..20 {
        let (fs, _) = with_file(seed, b"old");
        fs.write_file("/f.tmp", b"new").unwrap();
        fs.rename(Path::new("/f.tmp"), path()).unwrap();
        fs.sync_dir(root()).unwrap();
        fs.crash(CrashKind::Power);
        assert_eq!(fs.list(root()).unwrap(), ["f"]);
        assert_eq!(fs.read_file(path()).unwrap(), b"new");
    }
}

#[test]
fn rename_between_directories_needs_both_syncs() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let fs = SimFs::new(seed);
        fs.create_dir_all(Path::new("/a")).unwrap();
        fs.create_dir_all(Path::new("/b")).unwrap();
        fs.write_file("/a/x", b"1").unwrap();
        fs.rename(Path::new("/a/x"), Path::new("/b/x")).unwrap();
        fs.crash(CrashKind::Power);
        seen.insert((fs.read_file("/a/x").is_ok(), fs.read_file("/b/x").is_ok()));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn create_dir_all_makes_every_directory_durable() {
    for seed in 0..20 {
        let fs = SimFs::new(seed);
        fs.create_dir_all(Path::new("/a/b/c")).unwrap();
        fs.crash(CrashKind::Power);
        assert!(fs.list(Path::new("/a/b/c")).unwrap().is_empty());
    }
}

#[test]
fn create_dir_all_cut_short_and_repeated_leaves_durable_directories() {
    for n in 0.. {
        let fs = SimFs::new(n);
        fs.fail_after(n);
        let cut = fs.create_dir_all(Path::new("/a/b")).is_err();
        fs.crash(CrashKind::Process);
        fs.create_dir_all(Path::new("/a/b")).unwrap();
        for seed in 0..10 {
            let fork = fs.fork(seed);
            fork.crash(CrashKind::Power);
            assert!(
                fork.list(Path::new("/a/b")).is_ok(),
                "cut at {n}, seed {seed}"
            );
        }
        if !cut {
            assert!(n >= 4);
            break;
        }
    }
}

#[test]
fn handle_from_before_a_crash_returns_the_crash() {
    for kind in [CrashKind::Process, CrashKind::Power] {
        let (fs, file) = with_file(1, b"x");
        fs.crash(kind);
        assert!(is_crash(&file.len().unwrap_err()));
        assert!(is_crash(&file.read_at(&mut [0], 0).unwrap_err()));
        assert!(is_crash(&file.write_all_at(b"y", 0).unwrap_err()));
        assert!(is_crash(&file.sync_data().unwrap_err()));
        drop(file);
        assert_eq!(fs.read_file(path()).unwrap(), b"x");
    }
}

#[test]
fn lock_is_exclusive_until_dropped_or_crashed() {
    let fs = SimFs::new(1);
    let lock = fs.lock(path()).unwrap();
    assert_eq!(
        fs.lock(path()).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    drop(lock);
    let old = fs.lock(path()).unwrap();
    fs.crash(CrashKind::Process);
    let _new = fs.lock(path()).unwrap();
    drop(old);
    assert_eq!(
        fs.lock(path()).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

#[test]
fn fuse_of_n_lets_n_operations_pass_and_none_after() {
    let (fs, file) = with_file(3, b"");
    let before = fs.op_count();
    fs.fail_after(2);
    file.write_all_at(b"a", 0).unwrap();
    file.sync_data().unwrap();
    assert!(!fs.is_down());
    assert!(is_crash(&file.write_all_at(b"b", 1).unwrap_err()));
    assert!(fs.is_down());
    assert!(is_crash(&file.read_at(&mut [0], 0).unwrap_err()));
    assert!(is_crash(&fs.list(root()).unwrap_err()));
    assert!(is_crash(&fs.open(path(), OpenMode::Read).unwrap_err()));
    assert_eq!(fs.op_count() - before, 3);
    fs.crash(CrashKind::Power);
    assert_eq!(fs.read_file(path()).unwrap()[..1], *b"a");
    fs.open(path(), OpenMode::Read).unwrap();
}

#[test]
fn write_cut_short_ends_between_sectors_or_is_complete() {
    let data = vec![b'x'; 1200];
    let mut lengths = BTreeSet::new();
    for seed in 0..400 {
        let (fs, file) = with_file(seed, b"");
        fs.fail_after(0);
        file.write_all_at(&data, 100).unwrap_err();
        fs.crash(CrashKind::Process);
        lengths.insert(fs.read_file(path()).unwrap().len());
    }
    assert_eq!(lengths, BTreeSet::from([0, 512, 1024, 1300]));
}

#[test]
fn faults_hit_their_operation_once() {
    let (fs, file) = with_file(1, b"x");
    fs.fail_next(Fault::Read);
    fs.fail_nth(Fault::Write, 1);
    assert_eq!(fs.planned(Fault::Read), 1);
    assert_eq!(
        file.read_at(&mut [0], 0).unwrap_err().raw_os_error(),
        Some(5)
    );
    assert_eq!(file.read_at(&mut [0], 0).unwrap(), 1);
    file.write_all_at(b"y", 0).unwrap();
    assert_eq!(
        file.write_all_at(b"z", 0).unwrap_err().raw_os_error(),
        Some(5)
    );
    assert_eq!(fs.read_file(path()).unwrap(), b"y");
    file.set_len(0).unwrap();
    assert_eq!(fs.take_struck(), [Fault::Read, Fault::Write]);
    assert_eq!(fs.take_struck(), []);
    assert_eq!(fs.planned(Fault::Read), 0);
}

#[test]
fn failed_sync_loses_readable_data_although_the_next_sync_succeeds() {
    for seed in 0..20 {
        let (fs, file) = with_file(seed, b"old");
        file.write_all_at(b"new", 0).unwrap();
        fs.fail_next(Fault::Sync);
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        assert_eq!(fs.read_file(path()).unwrap(), b"new");
        fs.crash(CrashKind::Power);
        assert_eq!(fs.read_file(path()).unwrap(), b"old", "seed {seed}");
    }
}

#[test]
fn failed_directory_sync_loses_the_name_although_the_next_succeeds() {
    for seed in 0..20 {
        let fs = SimFs::new(seed);
        let file = fs.open(path(), OpenMode::CreateNew).unwrap();
        file.sync_data().unwrap();
        fs.fail_next(Fault::SyncDir);
        fs.sync_dir(root()).unwrap_err();
        fs.sync_dir(root()).unwrap();
        assert_eq!(fs.list(root()).unwrap(), ["f"]);
        fs.crash(CrashKind::Power);
        assert!(fs.list(root()).unwrap().is_empty(), "seed {seed}");
    }
}

#[test]
fn full_disk_writes_what_fits_and_frees_what_is_removed() {
    let (fs, file) = with_file(1, &[1; 10]);
    fs.set_capacity(Some(15));
    let error = file.write_all_at(&[2; 10], 8).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs.file_len(path()).unwrap(), 15);
    file.write_all_at(&[3; 15], 0).unwrap();
    assert_eq!(
        file.set_len(16).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    drop(file);
    fs.remove(path()).unwrap();
    let file = fs.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[4; 15], 0).unwrap();
    fs.set_capacity(None);
    file.write_all_at(&[5; 100], 0).unwrap();
}

#[test]
fn corrupt_flips_the_byte_now_and_after_power_loss() {
    let (fs, file) = with_file(1, b"abc");
    fs.corrupt(path(), 1, 0x01).unwrap();
    assert_eq!(fs.read_file(path()).unwrap(), b"acc");
    fs.crash(CrashKind::Power);
    assert_eq!(fs.read_file(path()).unwrap(), b"acc");
    assert_eq!(
        fs.corrupt(path(), 3, 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    drop(file);
}

#[test]
fn open_modes_and_missing_names_return_their_kinds() {
    let (fs, _) = with_file(1, b"x");
    let kind = |result: io::Result<Box<dyn VfsFile>>| result.unwrap_err().kind();
    let missing = Path::new("/none");
    assert_eq!(
        kind(fs.open(missing, OpenMode::Read)),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        kind(fs.open(missing, OpenMode::ReadWrite)),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        kind(fs.open(path(), OpenMode::CreateNew)),
        io::ErrorKind::AlreadyExists
    );
    assert_eq!(
        fs.list(missing).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        fs.remove(missing).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        fs.rename(missing, path()).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    let reader = fs.open(path(), OpenMode::Read).unwrap();
    assert_eq!(
        reader.write_all_at(b"y", 0).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );
}

#[test]
fn removed_file_stays_readable_through_its_handle() {
    let (fs, file) = with_file(1, b"abc");
    fs.remove(path()).unwrap();
    fs.sync_dir(root()).unwrap();
    let mut buf = [0; 3];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"abc");
}

#[test]
fn same_seed_gives_the_same_disk() {
    let run = |seed| {
        let (fs, file) = with_file(seed, &[0; 4096]);
        file.write_all_at(&[1; 4096], 0).unwrap();
        fs.open(Path::new("/g"), OpenMode::CreateNew).unwrap();
        fs.crash(CrashKind::Power);
        (fs.read_file(path()).unwrap(), fs.list(root()).unwrap())
    };
    let outcomes: BTreeSet<_> = (0..30)
        .map(|seed| {
            assert_eq!(run(seed), run(seed));
            run(seed)
        })
        .collect();
    assert!(outcomes.len() > 5);
}

#[test]
fn zeros_given_back_make_room_read_as_zeros_and_take_room_again_when_written() {
    let fs = SimFs::new(1);
    let file = fs.open(Path::new("/a"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[0; 16 << 10], 0).unwrap();
    file.write_all_at(&[7; 100], 9_000).unwrap();
    fs.set_capacity(Some(16 << 10));
    file.discard_zeros(1, 16 << 10).unwrap();
    // Whole blocks of the range that are zero: the second and the last.
    assert_eq!(fs.available(Path::new("/")).unwrap(), 8 << 10);
    assert_eq!(file.len().unwrap(), 16 << 10);
    let other = fs.open(Path::new("/b"), OpenMode::CreateNew).unwrap();
    other.write_all_at(&[1; 5 << 10], 0).unwrap();
    let error = file.write_all_at(&[2], 5_000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    fs.set_capacity(Some(20 << 10));
    file.write_all_at(&[2], 5_000).unwrap();
    fs.crash(CrashKind::Process);
    let content = fs.read_file("/a").unwrap();
    assert_eq!((content[4_999], content[5_000], content[9_000]), (0, 2, 7));
}
