//! Copies what can be trusted of a damaged log into a new one, and says what is lost.
//!
//! For an operator without peers and without a backup. The old log is only read. Nothing goes into the new one that did
//! not verify, and nothing is guessed: a group keeps the log that it had at some moment of its past, the latest one of
//! which every entry is there, and of that log what reads up to the first entry that does not. Term and vote are the
//! newest that anything says, so that no vote is given twice.
//!
//! What is lost may have been acknowledged. A member of a cluster must not go on with such a log: it is removed and
//! added again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::index::Group;
use super::read::entry_in;
use super::recovery::{Run, runs};
use super::segment::segment_path;
use super::votes::Slots;
use super::{IoMode, Log, LogOptions, check, votes};
use crate::vfs::SharedVfs;
use crate::{
    Entry, ErrorKind, GroupId, HardState, Index, LogError, Record, SnapshotRef, Term, WriteBatch,
};

/// Bytes of entries in one batch of the new log.
const BATCH_BYTES: usize = 4 << 20;

/// What became of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Salvaged {
    /// The group.
    pub group: GroupId,
    /// The last index that its log does not hold, and that an earlier compaction removed.
    pub base: Index,
    /// The last index that the new log holds; `base` if it holds no entry.
    pub last: Index,
    /// The last index of which the old log tells.
    pub known: Index,
    /// Why what lies between `last` and `known` is not there, if anything does.
    pub reason: Option<String>,
    /// A snapshot that the old log refers to and the new one does not.
    pub dropped_snapshot: Option<SnapshotRef>,
}

/// What a salvage did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Each group of the new log.
    pub groups: Vec<Salvaged>,
    /// What was wrong with the old log. Where batches are missing, groups may have lost more than is known.
    pub damage: Vec<LogError>,
}

impl Report {
    /// True when the old log may have held something that the new one does not.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        let gone = |group: &Salvaged| group.last < group.known || group.dropped_snapshot.is_some();
        !self.damage.is_empty() || self.groups.iter().any(gone)
    }
}

/// What is kept of a group, before it is written.
struct Kept<'a> {
    id: GroupId,
    group: &'a Group,
    run: &'a Run,
    hard_state: HardState,
    snapshot: Option<SnapshotRef>,
    told: Salvaged,
}

/// Copies the log in `from.dir` to the directory `to`, which must be empty or not there, and opens the copy to see that
/// it is sound. A reference to a snapshot is kept if `has_snapshot` says that its file is.
///
/// # Errors
/// A log of a newer format or without any segment that can be read; a directory that is not empty; and failures of the
/// file system.
pub fn salvage(
    vfs: &SharedVfs,
    from: &LogOptions,
    to: &Path,
    has_snapshot: &dyn Fn(GroupId, &SnapshotRef) -> bool,
) -> Result<Report, LogError> {
    refuse_used(vfs, to)?;
    let (runs, damage) = runs(vfs, from)?;
    let Some(newest) = runs.last() else {
        return Err(damage.into_iter().next().unwrap_or_else(|| {
            LogError::differs(
                ErrorKind::Corruption,
                &from.dir,
                0,
                "a segment",
                "none that can be read",
                "there is nothing to copy",
            )
        }));
    };
    let mut report = Report {
        groups: Vec::new(),
        damage,
    };
    let slots = votes::read(vfs, &from.dir, from.store_id)?;
    report
        .damage
        .extend(lost_votes(from, &slots, !report.damage.is_empty()));
    let mut options = from.clone();
    options.dir = to.to_owned();
    options.io = IoMode::Inline;
    options.accept_suspect_tail = false;
    let (log, _) = Log::open(SharedVfs::clone(vfs), options.clone())?;
    for (id, latest) in &newest.groups.map {
        let mut kept = choose(*id, latest, &runs);
        for slot in slots.of(*id, latest.base.creation) {
            raise(&mut kept.hard_state, slot.term, slot.vote);
        }
        if let Some(snapshot) = &kept.snapshot
            && !has_snapshot(*id, snapshot)
        {
            kept.told.dropped_snapshot = kept.snapshot.take();
        }
        report.groups.push(write(&log, from, kept)?);
    }
    log.close()?;
    drop(log);
    prove(vfs, options, &report)?;
    Ok(report)
}

/// Vote blocks because of which a vote may be forgotten: both of a pair, or any when the log is damaged too.
fn lost_votes<'a>(
    from: &'a LogOptions,
    slots: &'a Slots,
    log_is_damaged: bool,
) -> impl Iterator<Item = LogError> + 'a {
    let alone = move |at: &&u64| !slots.damaged.contains(&votes::other_half(**at));
    let counts = move |at: &&u64| log_is_damaged || !alone(at);
    slots.damaged.iter().filter(counts).map(|at| {
        LogError::differs(
            ErrorKind::Corruption,
            &from.dir.join("votes"),
            *at,
            "a vote slot or zeros",
            "bytes that do not verify",
            "term and vote are those of the log, which may be older",
        )
    })
}

fn refuse_used(vfs: &SharedVfs, to: &Path) -> Result<(), LogError> {
    match vfs.list(to) {
        Ok(names) if names.is_empty() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(LogError::io(
            "cannot copy a log to a directory that is not empty",
            to,
            std::io::ErrorKind::AlreadyExists.into(),
        )),
        Err(error) => Err(LogError::io("cannot list the new directory", to, error)),
    }
}

/// The latest moment at which every entry of the group is there, or may be: the end of the newest run, or of an earlier
/// one.
fn choose<'a>(id: GroupId, latest: &'a Group, runs: &'a [Run]) -> Kept<'a> {
    let lives = || {
        runs.iter().filter_map(move |run| {
            let group = run.groups.map.get(&id)?;
            (group.base.creation == latest.base.creation).then_some((run, group))
        })
    };
    let complete = |group: &Group| group.missing_to <= group.base.index;
    let (run, group) = lives()
        .rev()
        .find(|(_, group)| complete(group))
        .or_else(|| lives().next_back())
        .expect("the newest run has the group");
    let known = lives().map(|(_, group)| group.last()).max();
    let mut hard_state = group.hard_state;
    for (_, other) in lives() {
        raise(
            &mut hard_state,
            other.hard_state.term,
            other.hard_state.vote,
        );
    }
    let reason = if !complete(group) {
        Some(format!(
            "entries {} to {} are in no segment that can be read",
            group.base.index.next(),
            group.missing_to
        ))
    } else if !std::ptr::eq(group, latest) {
        Some(format!(
            "what followed batch {} is damaged or missing",
            run.last_seq
        ))
    } else {
        None
    };
    Kept {
        id,
        group,
        run,
        hard_state,
        snapshot: group.snapshot.clone(),
        told: Salvaged {
            group: id,
            base: group.base.index,
            last: group.base.index,
            known: known.unwrap_or_default(),
            reason,
            dropped_snapshot: None,
        },
    }
}

/// The higher term wins; at equal term a vote beats none.
fn raise(state: &mut HardState, term: Term, vote: Option<crate::NodeId>) {
    if term > state.term {
        (state.term, state.vote) = (term, vote);
    } else if term == state.term {
        state.vote = state.vote.or(vote);
    }
}

/// Writes what is kept of a group, up to the first entry that does not verify.
fn write(log: &Log, from: &LogOptions, kept: Kept<'_>) -> Result<Salvaged, LogError> {
    let Kept {
        id,
        group,
        run,
        mut hard_state,
        snapshot,
        mut told,
    } = kept;
    let mut batch = WriteBatch::new();
    batch.push(id, Record::Compact(group.base.clone()));
    log.write(batch)?;
    let (mut entries, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
    let flush = |entries: &mut Vec<Entry>| {
        let mut batch = WriteBatch::new();
        batch.push(id, Record::Entries(std::mem::take(entries)));
        log.write(batch)
    };
    // Those behind entries that are missing are of no use.
    let held = if group.missing_to > group.base.index {
        0
    } else {
        group.entries.len()
    };
    for position in group.entries.range(..held) {
        let index = told.last.next();
        let file = &run.files[&position.segment()];
        let mut record = vec![0; position.len as usize];
        let read = file.read_exact_at(&mut record, position.offset());
        let Some(entry) = read.ok().and_then(|()| entry_in(&record, id, index)) else {
            let path: PathBuf = segment_path(&from.dir, position.segment());
            told.reason = Some(format!(
                "entry {index} does not verify: {} at offset {}",
                path.display(),
                position.offset()
            ));
            break;
        };
        if bytes > BATCH_BYTES || entries.last().is_some_and(|last| last.term > entry.term) {
            flush(&mut entries)?;
            bytes = 0;
        }
        bytes += record.len();
        entries.push(entry);
        told.last = index;
    }
    flush(&mut entries)?;
    hard_state.commit = hard_state.commit.min(told.last);
    let mut batch = WriteBatch::new();
    batch.push(id, Record::HardState(hard_state));
    match snapshot {
        Some(snapshot) if snapshot.index <= told.last => {
            batch.push(id, Record::SnapshotRef(snapshot));
        }
        dropped => told.dropped_snapshot = told.dropped_snapshot.or(dropped),
    }
    log.write(batch)?;
    told.known = told.known.max(told.last);
    if told.last == told.known {
        told.reason = None;
    }
    Ok(told)
}

/// Checks the new log, opens it, and compares it with what was written.
fn prove(vfs: &SharedVfs, options: LogOptions, report: &Report) -> Result<(), LogError> {
    let wrong = |text: String| LogError::at(ErrorKind::Corruption, &options.dir, 0, text);
    let found = check::check(vfs, &options, &mut || ())?;
    if found.verdict != check::Verdict::Fine {
        let first = found.findings.first().map(ToString::to_string);
        return Err(wrong(first.unwrap_or_default()));
    }
    let (log, _) = Log::open(SharedVfs::clone(vfs), options.clone())?;
    let groups: BTreeMap<GroupId, Index> = log
        .groups()
        .into_iter()
        .filter_map(|id| Some((id, log.group(id)?.last_index)))
        .collect();
    let told: BTreeMap<GroupId, Index> = report
        .groups
        .iter()
        .map(|told| (told.group, told.last))
        .collect();
    if groups != told {
        return Err(wrong(format!(
            "expected groups and last indexes {told:?}, found {groups:?}; the copy is of no use"
        )));
    }
    log.close()
}
