//! A salvage of whatever is damaged gives a log that opens, and in it only what was there at some moment.

use std::path::Path;

use raft_log::log::salvage::{Covered, Report, salvage};
use raft_log::vfs::sim::{CrashKind, SimFs};
use raft_log::{Index, Log, LogError, StoreId};

use crate::flips::{files, store};
use crate::model::{History, State, observe};
use crate::world::{Op, World, options};

fn copy(fs: &SimFs) -> Result<(Report, State), LogError> {
    let report = salvage(
        &fs.shared(),
        &options(),
        Path::new("/new/log"),
        &|_, _| true,
        &|_| None,
    )?;
    let mut options = options();
    options.dir = "/new/log".into();
    let (log, _) = Log::open(fs.shared(), options)?;
    Ok((report, observe(&log).unwrap()))
}

/// Each group is as it was at some moment, or the beginning of that, and the report says so; how much is not there.
fn judge(report: &Report, found: &State, history: &History) -> Result<u64, String> {
    let mut missing = 0;
    for told in &report.groups {
        let mine = &found[&told.group];
        let (last, base) = (mine.last().0, mine.base.index);
        if (told.base, told.last) != (base, last) || (told.reason.is_some() != (last < told.known))
        {
            return Err(format!("{told:?} is told of {mine:?}"));
        }
        let was = |state: &State| {
            state.get(&told.group).is_some_and(|group| {
                group.base == mine.base && group.entries.starts_with(&mine.entries)
            })
        };
        if !history.states.iter().any(was) {
            return Err(format!("group {} never was {mine:?}", told.group));
        }
        let newest = history.newest().get(&told.group);
        if newest.is_some_and(|newest| newest.hard.term > mine.hard.term)
            && report.damage.is_empty()
        {
            return Err(format!("group {} forgot a term", told.group));
        }
        missing += told.known.0 - last.0;
    }
    if report.groups.len() != found.len() {
        return Err(format!("{report:?} is told of {found:?}"));
    }
    Ok(missing)
}

#[test]
fn salvage_of_an_intact_log_is_the_same_log() {
    for close in [true, false] {
        let (fs, history) = store(close).unwrap();
        let (report, found) = copy(&fs).unwrap();
        assert_eq!(&found, history.newest());
        assert!(!report.is_loss(), "{report:?}");
    }
}

#[test]
fn salvage_of_any_flipped_bit_opens_and_holds_what_was_there() {
    let (mut whole, mut less) = (0, 0);
    for close in [true, false] {
        let (fs, history) = store(close).unwrap();
        for path in files(&fs) {
            let content = fs.read_file(&path).unwrap();
            let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
            for at in used {
                let fork = fs.fork(1);
                fork.corrupt(&path, at as u64, 1 << (at % 8)).unwrap();
                let broken = fork.read_file(&path).unwrap();
                match copy(&fork) {
                    Ok((report, found)) => {
                        let missing = judge(&report, &found, &history)
                            .unwrap_or_else(|text| panic!("{path}: byte {at}: {text}"));
                        if missing > 0 || found.len() < history.newest().len() {
                            assert!(report.is_loss(), "{path}: byte {at}: {report:?}");
                            less += 1;
                        } else {
                            whole += 1;
                        }
                    }
                    Err(error) => panic!("{path}: byte {at}: {error}"),
                }
                assert!(broken == fork.read_file(&path).unwrap());
            }
        }
    }
    eprintln!("{whole} whole, {less} with less");
    assert!(whole > 1_000 && less > 500, "{whole} {less}");
}

#[test]
fn salvage_without_a_segment_keeps_each_group_before_or_after_it() {
    let (fs, history) = store(true).unwrap();
    let segments: Vec<String> = files(&fs)
        .into_iter()
        .filter(|path| path.ends_with(".seg"))
        .collect();
    assert!(segments.len() > 1);
    for path in &segments {
        let fork = fs.fork(1);
        fork.shared().remove(Path::new(path)).unwrap();
        let (report, found) = copy(&fork).unwrap();
        assert!(report.is_loss(), "{report:?}");
        for told in &report.groups {
            let mine = &found[&told.group];
            // Where even the base's entries are gone, nothing of the group's log is left.
            let was = history.states.iter().any(|state| {
                state
                    .get(&told.group)
                    .is_some_and(|group| group.entries.starts_with(&mine.entries))
            });
            assert!(was, "{path}: {told:?}: {mine:?}");
            assert!(told.last == told.known || told.reason.is_some(), "{told:?}");
        }
    }
}

/// Entries that are cut behind the damage were in the log before it: neither do they come back, nor are they missed.
#[test]
fn salvage_of_a_log_that_was_cut_behind_the_damage_ends_where_it_was_cut() {
    let fs = SimFs::new(1);
    let mut world = World::open(&fs, None, &History::new(State::new()), 1).unwrap();
    for _ in 0..5 {
        world.run(Op::Append(1)).unwrap();
    }
    world.fill().unwrap();
    // A batch whose loss ends the first run; then a segment of another start, in which the log is cut.
    world.run(Op::HardState(1)).unwrap();
    world.run(Op::HardState(1)).unwrap();
    let damaged = fs.read_file("/data/log/0000000000000001.seg").unwrap();
    let end = damaged[..12 << 10]
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap();
    let history = world.history.clone();
    drop(world);
    fs.crash(CrashKind::Process);
    let mut world = World::open(&fs, None, &history, 100).unwrap();
    for _ in 0..3 {
        world.run(Op::Truncate(1)).unwrap();
    }
    drop(world);
    let end = end as u64 - 200;
    fs.corrupt("/data/log/0000000000000001.seg", end, 1)
        .unwrap();
    let (report, found) = copy(&fs).unwrap();
    let told = &report.groups[0];
    assert!(report.is_loss(), "{report:?}");
    assert_eq!((told.last, told.known), (Index(3), Index(3)), "{told:?}");
    assert_eq!(found[&told.group].last().0, Index(3));
}

#[test]
fn salvage_into_a_directory_in_use_or_of_another_store_is_refused() {
    let (fs, _) = store(true).unwrap();
    let to = Path::new("/data/log");
    let error = salvage(&fs.shared(), &options(), to, &|_, _| true, &|_| None).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    let mut other = options();
    other.store_id = StoreId(1);
    let error = salvage(
        &fs.shared(),
        &other,
        Path::new("/new"),
        &|_, _| true,
        &|_| None,
    )
    .unwrap_err();
    assert_eq!(error.kind(), raft_log::ErrorKind::ForeignStore, "{error}");
}

#[test]
fn salvage_drops_a_reference_to_a_snapshot_that_is_not_there() {
    let (fs, history) = store(true).unwrap();
    let new = Path::new("/new/log");
    let report = salvage(&fs.shared(), &options(), new, &|_, _| false, &|_| None).unwrap();
    let mut dropped = report.groups.iter().filter_map(|told| {
        let snapshot = told.dropped_snapshot.as_ref()?;
        Some((told.group, snapshot.index))
    });
    let mut had = history.newest().iter().filter_map(|(id, group)| {
        let snapshot = group.snapshot.as_ref()?;
        Some((*id, snapshot.index))
    });
    let first: Option<(_, Index)> = dropped.next();
    assert!(first.is_some() && first == had.next());
    assert!(report.is_loss());
}

#[test]
fn salvage_of_a_group_whose_state_is_elsewhere_loses_nothing_that_is_in_it() {
    let (fs, history) = store(true).unwrap();
    let id = raft_log::GroupId(2);
    let group = &history.newest()[&id];
    let (first, last) = (&group.entries[0], group.last());
    // Rot in the first entry, which a start does not notice.
    let path = "/data/log/0000000000000001.seg";
    let content = fs.read_file(path).unwrap();
    let payload = &first.payload[..];
    let at = content
        .windows(payload.len())
        .position(|window| window == payload);
    fs.corrupt(path, at.unwrap() as u64, 1).unwrap();
    let covered = Covered {
        index: first.index,
        term: first.term,
        membership: None,
    };
    let of = |new: &str, covered: Option<Covered>| {
        let of = |asked| covered.clone().filter(|_| asked == id);
        let new = Path::new(new);
        let report = salvage(&fs.shared(), &options(), new, &|_, _| true, &of).unwrap();
        let told = report.groups.into_iter().find(|told| told.group == id);
        told.unwrap()
    };
    let told = of("/without", None);
    assert!(told.last < first.index && told.known == last.0, "{told:?}");
    let told = of("/with", Some(covered.clone()));
    assert_eq!((told.base, told.last), (first.index, last.0), "{told:?}");
    assert_eq!(told.reason, None);
    // State of another log is of no use.
    let term = raft_log::Term(first.term.0 + 9);
    let told = of("/other", Some(Covered { term, ..covered }));
    assert!(told.last < first.index, "{told:?}");
}
