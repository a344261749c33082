//! A log that is begun anew after damage: guarded, under another incarnation, with the newest term and vote, whatever the
//! moment at which it is cut short; and refused where term and vote are not known.

use std::path::Path;

use raft_log::log::renewal::{Renewal, renew};
use raft_log::log::salvage::Covered;
use raft_log::testing::{Bug, with_bug};
use raft_log::vfs::Vfs;
use raft_log::vfs::sim::{CrashKind, SimFs};
use raft_log::{
    Base, ErrorKind, GroupId, Incarnation, Index, Log, LogError, Record, StoreId, Term, WriteBatch,
};

use crate::flips::{files, masks, store};
use crate::model::{History, State, observe};
use crate::world::{Op, STORE, World, options};

const LOG: &str = "/data/log";

/// State of which nothing is durable.
fn nothing(_: GroupId, _: &Base) -> Result<Option<Covered>, String> {
    Ok(Some(Covered {
        index: Index(0),
        term: Term(0),
        membership: None,
    }))
}

fn begin_anew(fs: &SimFs) -> Result<Renewal, LogError> {
    renew(&fs.shared(), &options(), &|_, _| true, &nothing)
}

/// Starts as a member of a cluster does: a log that is refused for damage is begun anew.
fn start(fs: &SimFs) -> Result<(Log, bool), LogError> {
    let error = match Log::open(fs.shared(), options()) {
        Ok((log, _)) => return Ok((log, false)),
        Err(error) => error,
    };
    if !matches!(error.kind(), ErrorKind::Corruption | ErrorKind::SuspectTail) {
        return Err(error);
    }
    begin_anew(fs)?;
    Ok((Log::open(fs.shared(), options())?.0, true))
}

/// Each group has its newest term and vote, and of its log what it was at some moment, or the beginning of that.
fn judge(found: &State, history: &History, number: u64) -> Result<(), String> {
    for (id, newest) in history.newest() {
        let mine = found
            .get(id)
            .ok_or_else(|| format!("group {id} is forgotten"))?;
        let wanted = Incarnation {
            number,
            guarded: true,
        };
        if mine.incarnation != wanted {
            return Err(format!("group {id} has {:?}", mine.incarnation));
        }
        if (mine.hard.term, mine.hard.vote) != (newest.hard.term, newest.hard.vote) {
            return Err(format!("group {id} forgot a promise: {:?}", mine.hard));
        }
        let was = |state: &State| {
            let group = state.get(id);
            group.is_some_and(|group| {
                group.base == mine.base && group.entries.starts_with(&mine.entries)
            })
        };
        if !history.states.iter().any(was) {
            return Err(format!("group {id} never was {mine:?}"));
        }
    }
    Ok(())
}

fn segments(fs: &SimFs) -> Vec<String> {
    let mut all = files(fs);
    all.retain(|path| path.ends_with(".seg"));
    all
}

type Damage = (&'static str, fn(&SimFs));

fn flip(fs: &SimFs, path: &str, at: usize) {
    fs.corrupt(path, at as u64, 0x10).unwrap();
}

/// The last byte that is not zero before the middle of a segment: in its last batch.
fn tail(fs: &SimFs, path: &str) -> usize {
    let content = fs.read_file(path).unwrap();
    let batches = &content[..content.len() - 2048];
    batches.iter().rposition(|byte| *byte != 0).unwrap()
}

/// Damage that a start refuses.
const DAMAGE: [Damage; 6] = [
    ("header of the first segment", |fs| {
        flip(fs, &segments(fs)[0], 20)
    }),
    ("checkpoint of the last segment", |fs| {
        flip(fs, segments(fs).last().unwrap(), 4096 + 80)
    }),
    ("batches of the last segment", |fs| {
        let path = segments(fs).pop().unwrap();
        flip(fs, &path, tail(fs, &path) - 700);
    }),
    ("first segment", |fs| {
        fs.shared().remove(Path::new(&segments(fs)[0])).unwrap();
        fs.sync_dir(Path::new(LOG)).unwrap();
    }),
    ("last segment", |fs| {
        fs.shared()
            .remove(Path::new(segments(fs).last().unwrap()))
            .unwrap();
        fs.sync_dir(Path::new(LOG)).unwrap();
    }),
    ("both blocks of the manifest", |fs| {
        for at in [20, 4096 + 20] {
            flip(fs, "/data/log/MANIFEST", at);
        }
    }),
];

/// The bytes of the damaged log, wherever it is; but for files in the making, which nobody has synced.
fn evidence(fs: &SimFs) -> Vec<Vec<(String, Vec<u8>)>> {
    let names = fs.list(Path::new("/data")).unwrap();
    let logs = names
        .into_iter()
        .filter(|name| name.starts_with("log") && !name.ends_with(".copying"));
    logs.map(|name| {
        let dir = format!("/data/{name}");
        let files = fs.list(Path::new(&dir)).unwrap();
        let kept = files
            .into_iter()
            .filter(|file| file != "LOCK" && !file.ends_with(".tmp"));
        kept.map(|file| {
            let content = fs.read_file(format!("{dir}/{file}")).unwrap();
            (file, content)
        })
        .collect()
    })
    .collect()
}

fn damaged(close: bool, (_, damage): Damage) -> (SimFs, History) {
    let (fs, history) = store(close).unwrap();
    damage(&fs);
    (fs, history)
}

#[test]
fn log_begun_anew_is_guarded_and_keeps_promises_and_evidence() {
    for damage in DAMAGE {
        for close in [true, false] {
            let (fs, history) = damaged(close, damage);
            let before = evidence(&fs).remove(0);
            let (log, anew) = start(&fs).unwrap();
            assert!(anew, "{}", damage.0);
            let found = observe(&log).unwrap();
            judge(&found, &history, 1).unwrap_or_else(|text| panic!("{}: {text}", damage.0));
            assert!(evidence(&fs).contains(&before), "{}", damage.0);
            // The guard ends, durably, and a later loss gives another number.
            let mut batch = WriteBatch::new();
            for id in log.groups() {
                let ended = Incarnation {
                    number: 1,
                    guarded: false,
                };
                batch.push(id, Record::Incarnation(ended));
            }
            log.write(batch).unwrap();
            log.close().unwrap();
            drop(log);
            let (log, anew) = start(&fs).unwrap();
            assert!(!anew);
            let kept = observe(&log).unwrap();
            assert!(kept.values().all(|group| !group.incarnation.guarded));
            drop(log);
            fs.crash(CrashKind::Process);
            flip(&fs, segments(&fs).last().unwrap(), 4096 + 80);
            let (log, anew) = start(&fs).unwrap();
            assert!(anew, "{}", damage.0);
            let found = observe(&log).unwrap();
            judge(&found, &history, 2).unwrap_or_else(|text| panic!("{}: {text}", damage.0));
        }
    }
}

/// A start after a crash within the renewal, and one after a crash within that start.
fn check_crash(fs: &SimFs, kind: CrashKind, history: &History) -> Result<SimFs, String> {
    fs.crash(kind);
    let (log, _) = start(fs).map_err(|error| format!("{error:?}"))?;
    judge(&observe(&log)?, history, 1)?;
    drop(log);
    fs.crash(CrashKind::Power);
    let (log, again) = start(fs).map_err(|error| format!("the second time: {error:?}"))?;
    if again {
        return Err("what was begun anew is begun again".to_owned());
    }
    judge(&observe(&log)?, history, 1)?;
    drop(log);
    Ok(fs.clone())
}

fn crash_everywhere() -> Result<u64, String> {
    let mut crashes = 0;
    for damage in DAMAGE {
        for close in [true, false] {
            let (fs, history) = damaged(close, damage);
            let before = evidence(&fs).remove(0);
            fs.keep_images();
            drop(start(&fs).map_err(|error| error.to_string())?);
            for (at, image) in fs.take_images().iter().enumerate() {
                for n in 0..=crate::runs() {
                    let kind = if n == 0 {
                        CrashKind::Process
                    } else {
                        CrashKind::Power
                    };
                    let place =
                        |text| format!("{}: {kind:?} before operation {at}: {text}", damage.0);
                    let seed = at as u64 * 64 + n;
                    let fs = check_crash(&image.fork(seed), kind, &history).map_err(place)?;
                    crashes += 1;
                    if !evidence(&fs).contains(&before) {
                        return Err(place("the damaged log is gone".to_owned()));
                    }
                    if !seed.is_multiple_of(23) {
                        continue;
                    }
                    let fs = image.fork(seed);
                    fs.crash(kind);
                    fs.keep_images();
                    drop(start(&fs).map_err(|error| place(error.to_string()))?);
                    for (second, image) in fs.take_images().iter().enumerate() {
                        let kind = [CrashKind::Power, CrashKind::Process][second % 2];
                        check_crash(&image.fork(second as u64), kind, &history).map_err(place)?;
                        crashes += 1;
                    }
                }
            }
        }
    }
    Ok(crashes)
}

#[test]
fn renewal_cut_short_anywhere_and_again_is_done_by_the_next_start() {
    let crashes = crash_everywhere().unwrap();
    eprintln!("{crashes} crashes");
    assert!(crashes > 1_000, "{crashes}");
}

#[test]
fn log_begun_anew_without_a_guard_is_found() {
    with_bug(Bug::RenewWithoutGuard, || {
        let error = crash_everywhere().unwrap_err();
        assert!(error.contains("guarded: false"), "{error}");
    });
}

#[test]
fn renewal_after_any_flipped_bit_keeps_promises_or_is_refused_for_the_slots() {
    let (mut anew, mut refused) = (0, 0);
    for close in [true, false] {
        let (fs, history) = store(close).unwrap();
        for path in files(&fs) {
            let content = fs.read_file(&path).unwrap();
            for at in (0..content.len()).step_by(if crate::runs() > 1 { 1 } else { 7 }) {
                let mask = masks(&content, at).next().unwrap();
                let place = |text: String| format!("{path}: byte {at}: {text}");
                let fork = fs.fork(1);
                fork.corrupt(&path, at as u64, mask).unwrap();
                // Also where a start would go on: the engine may be ahead of the log.
                match begin_anew(&fork) {
                    Ok(_) => {
                        let (log, _) = Log::open(fork.shared(), options()).unwrap();
                        judge(&observe(&log).unwrap(), &history, 1)
                            .map_err(place)
                            .unwrap();
                        anew += 1;
                    }
                    Err(error) => {
                        assert!(path.ends_with("votes"), "{}", place(error.to_string()));
                        assert!(error.to_string().contains("add it again"), "{error}");
                        assert_eq!(fork.list(Path::new("/data")).unwrap().len(), 2);
                        refused += 1;
                    }
                }
            }
        }
    }
    eprintln!("{anew} begun anew, {refused} refused");
    assert!(anew > 5_000 && refused > 50, "{anew} {refused}");
}

#[test]
fn damage_while_guarded_gives_another_incarnation_each_time_up_to_a_bound() {
    let (fs, history) = store(true).unwrap();
    for number in 1..=8 {
        flip(&fs, segments(&fs).last().unwrap(), 4096 + 80);
        let (log, anew) = start(&fs).unwrap();
        assert!(anew);
        judge(&observe(&log).unwrap(), &history, number).unwrap();
        drop(log);
        fs.crash(CrashKind::Process);
    }
    flip(&fs, segments(&fs).last().unwrap(), 4096 + 80);
    let error = start(&fs).unwrap_err();
    assert!(error.to_string().contains("remove them"), "{error}");
}

/// The second place of the number: the log that had it is gone as a whole.
#[test]
fn log_of_which_no_segment_is_left_begins_at_the_state_that_is_elsewhere() {
    let (fs, history) = store(true).unwrap();
    begin_anew(&fs).unwrap();
    for path in segments(&fs) {
        fs.shared().remove(Path::new(&path)).unwrap();
    }
    let unknown = renew(&fs.shared(), &options(), &|_, _| true, &|_, _| Ok(None));
    let error = unknown.unwrap_err();
    assert!(error.to_string().contains("which has voted"), "{error}");
    let state_of = |id: GroupId, base: &Base| {
        assert_eq!(base.index, Index(0));
        assert_eq!(base.creation, history.newest()[&id].base.creation);
        Ok(Some(Covered {
            index: Index(7),
            term: Term(1),
            membership: None,
        }))
    };
    renew(&fs.shared(), &options(), &|_, _| true, &state_of).unwrap();
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    for (id, group) in observe(&log).unwrap() {
        let newest = &history.newest()[&id];
        assert_eq!(group.base.index, Index(7));
        assert_eq!(
            (group.hard.term, group.hard.vote),
            (newest.hard.term, newest.hard.vote)
        );
        assert_eq!(
            group.incarnation,
            Incarnation {
                number: 2,
                guarded: true
            }
        );
    }
}

#[test]
fn state_ahead_of_the_log_is_where_it_begins_again() {
    let (fs, history) = store(true).unwrap();
    let state = |ahead: u64, term: u64| {
        let state_of = move |history: &History, id: GroupId| {
            let group = &history.newest()[&id];
            Covered {
                index: Index(group.last().0.0 + ahead),
                term: Term(term),
                membership: Some(b"newer".as_slice().into()),
            }
        };
        let history = history.clone();
        move |id: GroupId, _: &Base| Ok(Some(state_of(&history, id)))
    };
    // State of a term that the slots have not heard of: they are not the newest.
    let error = renew(&fs.shared(), &options(), &|_, _| true, &state(3, 99)).unwrap_err();
    assert!(error.to_string().contains("older term"), "{error}");
    renew(&fs.shared(), &options(), &|_, _| true, &state(3, 2)).unwrap();
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    for (id, group) in observe(&log).unwrap() {
        let (last, _) = history.newest()[&id].last();
        assert_eq!(
            (group.base.index, group.base.term),
            (Index(last.0 + 3), Term(2))
        );
        assert_eq!(&group.base.membership[..], b"newer");
        assert!(group.entries.is_empty() && group.incarnation.guarded);
    }
}

#[test]
fn renewal_that_a_group_refuses_or_of_another_store_changes_nothing() {
    let (fs, _) = store(true).unwrap();
    let no = |_: GroupId, _: &Base| Err("it is alone".to_owned());
    let error = renew(&fs.shared(), &options(), &|_, _| true, &no).unwrap_err();
    assert!(error.to_string().contains("it is alone"), "{error}");
    let mut other = options();
    other.store_id = StoreId(STORE.0 + 1);
    let error = renew(&fs.shared(), &other, &|_, _| true, &|_, _| Ok(None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignStore, "{error}");
    assert_eq!(fs.list(Path::new("/data")).unwrap(), ["log", "snap"]);
}

/// A copy that is whole and was not used, beside a log that was restored and written to since, is never taken.
#[test]
fn copy_that_was_not_used_is_not_taken_after_the_log_was_restored() {
    let (fs, history) = store(true).unwrap();
    let good: Vec<_> = files(&fs)
        .into_iter()
        .map(|path| (path.clone(), fs.read_file(&path).unwrap()))
        .collect();
    let path = segments(&fs)[0].clone();
    flip(&fs, &path, 4096 + 80);
    fs.keep_images();
    begin_anew(&fs).unwrap();
    let images = fs.take_images();
    let image = images
        .iter()
        .find(|image| image.list(Path::new("/data/log.renewed")).is_ok());
    let fs = image.unwrap().fork(1);
    fs.crash(CrashKind::Process);
    for (path, content) in good {
        fs.write_file(path, &content).unwrap();
    }
    let mut world = World::open(&fs, None, &history, 1 << 20).unwrap();
    world.run(Op::HardState(1)).unwrap();
    let newest = world.history.clone();
    drop(world);
    fs.crash(CrashKind::Power);
    assert!(fs.list(Path::new("/data/log.renewed")).is_err());
    fs.rename(Path::new(LOG), Path::new("/data/elsewhere"))
        .unwrap();
    let (log, _) = Log::open(fs.shared(), options()).unwrap();
    assert!(log.groups().is_empty(), "{:?}", newest.newest());
}
