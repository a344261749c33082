//! A check says what a start then does, on whatever a crash or a flipped bit leaves, and changes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use raft_log::log::check::{Check, Severity, Verdict, check};
use raft_log::vfs::Vfs;
use raft_log::vfs::sim::{CrashKind, SimFs};
use raft_log::{ErrorKind, Log, LogError, LogOptions, RecoveryReport};

use crate::flips::{files, masks, store};
use crate::model::{History, observe};
use crate::world::{OPS, World, options};

/// Every file of a log's directory with its content.
fn content(fs: &SimFs) -> BTreeMap<String, Vec<u8>> {
    let names = fs.list(Path::new("/data/log")).unwrap();
    let read = |name: String| {
        let bytes = fs.read_file(format!("/data/log/{name}")).unwrap();
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

fn checked(fs: &SimFs, options: &LogOptions) -> Check {
    let before = content(fs);
    let found = check(&fs.shared(), options, &mut || ()).unwrap();
    assert!(before == content(fs), "the check changed a file");
    found
}

/// What a refusal is about.
fn place(error: &LogError) -> (ErrorKind, Option<&Path>, Option<u64>, String) {
    (
        error.kind(),
        error.path(),
        error.offset(),
        error.to_string(),
    )
}

/// Checks, then starts, and compares: the same refusal, or the same groups. What a check calls fine reads to the end.
fn agrees(fs: &SimFs) -> Result<Verdict, String> {
    let found = checked(fs, &options());
    let opened = Log::open(fs.shared(), options());
    compare(&found, opened.as_ref())?;
    if let Ok((log, _)) = &opened {
        let groups: Vec<_> = log.groups();
        let told: Vec<_> = found.groups.iter().map(|(id, _)| *id).collect();
        if groups != told {
            return Err(format!("groups {groups:?}, the check has {told:?}"));
        }
        for (id, state) in &found.groups {
            let info = log.group(*id).unwrap();
            let same = info.base == state.base
                && info.last_index == state.last_index
                && info.hard_state == state.hard_state
                && info.snapshot == state.snapshot;
            if !same {
                return Err(format!("group {id}: {info:?}, the check has {state:?}"));
            }
        }
        let lost = found
            .findings
            .iter()
            .any(|finding| !finding.lost.is_empty());
        match observe(log) {
            Ok(_) if lost => return Err(format!("the check misses entries: {found:?}")),
            Err(text) if !lost => return Err(format!("the check finds nothing: {text}")),
            _ => {}
        }
    }
    Ok(found.verdict)
}

fn compare(found: &Check, opened: Result<&(Log, RecoveryReport), &LogError>) -> Result<(), String> {
    let damage = found
        .findings
        .iter()
        .any(|finding| finding.severity == Severity::Damage);
    match (&found.start, opened) {
        (Ok(told), Ok((_, report))) => {
            let same = (told.segments, told.from_footers, told.batches, told.copied)
                == (
                    report.segments,
                    report.from_footers,
                    report.batches,
                    report.copied,
                )
                && told.cut.is_some() == report.cut.is_some()
                && told.vote_blocks_replaced == report.vote_blocks_replaced
                && told.notes == report.notes;
            let fits = match found.verdict {
                Verdict::Fine => !damage && report.cut.is_none(),
                Verdict::TornTail => !damage && report.cut.is_some(),
                Verdict::Damaged => damage,
                Verdict::Unknown | Verdict::Changing => false,
            };
            if same && fits {
                return Ok(());
            }
        }
        (Err(told), Err(error)) if place(told) == place(error) => {
            let wanted = match error.kind() {
                ErrorKind::Io | ErrorKind::NewerFormat => Verdict::Unknown,
                _ => Verdict::Damaged,
            };
            // What is wrong besides may be worse than what a start stops at.
            if damage && (found.verdict == wanted || found.verdict == Verdict::Damaged) {
                return Ok(());
            }
        }
        _ => {}
    }
    Err(format!("{opened:?}, the check has {found:?}"))
}

#[test]
fn check_of_any_crash_of_a_workload_says_what_the_start_does() {
    let (start, state) = World::prepared(None).unwrap();
    let (mut seen, mut torn) = (0, 0);
    // Two steps, of which the second is cut short anywhere; with a start and its crashes between them.
    for (number, first) in OPS.iter().enumerate() {
        for second in OPS {
            let fs = start.fork(number as u64);
            let history = History::new(state.clone());
            let mut world = World::open(&fs, None, &history, 100).unwrap();
            world.run(*first).unwrap();
            fs.keep_images();
            world.run(second).unwrap();
            let images = fs.take_images();
            drop(world);
            for (at, image) in images.iter().enumerate() {
                for kind in [CrashKind::Process, CrashKind::Power] {
                    let fork = image.fork(at as u64);
                    fork.crash(kind);
                    match agrees(&fork) {
                        Ok(Verdict::Fine) => {}
                        Ok(Verdict::TornTail) => torn += 1,
                        other => panic!("{first:?}, {second:?}, {kind:?} at {at}: {other:?}"),
                    }
                    seen += 1;
                }
            }
        }
    }
    eprintln!("{seen} crashes, {torn} with a torn tail");
    assert!(seen > 3_000 && torn > 50, "{seen}, {torn}");
}

#[test]
fn check_of_any_flipped_bit_says_what_the_start_does() {
    let mut verdicts = BTreeMap::new();
    for close in [true, false] {
        let (fs, _) = store(close).unwrap();
        for path in files(&fs) {
            let content = fs.read_file(&path).unwrap();
            for at in 0..content.len() {
                let all: Vec<u8> = masks(&content, at).collect();
                let one = [all[at % all.len()]];
                let chosen = if crate::runs() > 1 {
                    &all[..]
                } else {
                    &one[..]
                };
                for mask in chosen.iter().copied() {
                    let fork = fs.fork(1);
                    fork.corrupt(&path, at as u64, mask).unwrap();
                    let verdict = agrees(&fork).unwrap_or_else(|text| {
                        panic!("{path}: byte {at}, mask {mask:#04x}: {text}")
                    });
                    *verdicts.entry(format!("{verdict:?}")).or_insert(0) += 1;
                }
            }
        }
    }
    eprintln!("{verdicts:?}");
    assert!(verdicts["Damaged"] > 1_000 && verdicts["Fine"] > 10_000);
}

/// Where a byte of the first batch lies that a start must find whole.
const WITHIN: u64 = 4096 + 70;

#[test]
fn check_of_bytes_that_are_right_at_the_second_look_is_fine() {
    let (fs, _) = store(true).unwrap();
    let path = files(&fs).remove(0);
    fs.corrupt(&path, WITHIN, 1).unwrap();
    let mut pauses = 0;
    let found = check(&fs.shared(), &options(), &mut || {
        pauses += 1;
        fs.corrupt(&path, WITHIN, 1).unwrap();
    });
    let found = found.unwrap();
    assert_eq!((found.verdict, found.looks, pauses), (Verdict::Fine, 2, 1));
    // What stays is damage after the second look.
    fs.corrupt(&path, WITHIN, 1).unwrap();
    let found = checked(&fs, &options());
    assert_eq!((found.verdict, found.looks), (Verdict::Damaged, 2));
    // What is something else each time is neither.
    let mut more = 0;
    let found = check(&fs.shared(), &options(), &mut || {
        more += 1;
        fs.corrupt(&path, WITHIN + more, 1).unwrap();
    });
    let found = found.unwrap();
    assert_eq!(
        (found.verdict, found.looks),
        (Verdict::Changing, 10),
        "{found:?}"
    );
}
