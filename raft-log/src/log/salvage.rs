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
use std::path::Path;

use bytes::Bytes;

use super::index::{Group, Position};
use super::read::entry_in;
use super::recovery::{Run, runs};
use super::segment::segment_path;
use super::votes::Slots;
use super::{IoMode, Log, LogOptions, check, votes};
use crate::vfs::SharedVfs;
use crate::{
    Base, Entry, ErrorKind, GroupId, HardState, Incarnation, Index, LogError, Record, SnapshotRef,
    Term, WriteBatch,
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

/// State of a group that its owner holds durably outside of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The last index whose effect is in it.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership as of `index`, if there is one that the log's base does not have.
    pub membership: Option<Bytes>,
}

/// What is kept of a group, before it is written.
pub(super) struct Kept<'a> {
    /// Where the entries are; none where no entry is kept.
    pub(super) entries: Option<(&'a Group, &'a Run)>,
    pub(super) base: Base,
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) incarnation: Incarnation,
    pub(super) told: Salvaged,
}

/// Copies the log in `from.dir` to the directory `to`, which must be empty or not there, and opens the copy to see that
/// it is sound. A reference to a snapshot is kept if `has_snapshot` says that its file is.
///
/// `covered` is asked about a group whose log is not whole: where the group's state is durable elsewhere up to some
/// entry, the new log may begin behind that one, and damage before it costs nothing.
///
/// # Errors
/// A log of a newer format or without any segment that can be read; a directory that is not empty; and failures of the
/// file system.
pub fn salvage(
    vfs: &SharedVfs,
    from: &LogOptions,
    to: &Path,
    has_snapshot: &dyn Fn(GroupId, &SnapshotRef) -> bool,
    covered: &dyn Fn(GroupId) -> Option<Covered>,
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
    let mut all = Vec::new();
    for (id, latest) in &newest.groups.map {
        let mut kept = choose(*id, latest, &runs, None, from);
        if kept.told.last < kept.told.known
            && let Some(covered) = covered(*id)
        {
            let other = choose(*id, latest, &runs, Some(&covered), from);
            if other.told.last > kept.told.last {
                kept = other;
            }
        }
        for slot in slots.of(*id, latest.base.creation) {
            raise(&mut kept.hard_state, slot.term, slot.vote);
            if slot.incarnation > kept.incarnation.number {
                kept.incarnation = Incarnation {
                    number: slot.incarnation,
                    guarded: true,
                };
            }
        }
        if let Some(snapshot) = &kept.snapshot
            && !has_snapshot(*id, snapshot)
        {
            kept.told.dropped_snapshot = kept.snapshot.take();
        }
        all.push(kept);
    }
    copy(vfs, from, to, all, &mut report)?;
    Ok(report)
}

/// Writes a log of what is kept, closes and checks it.
pub(super) fn copy(
    vfs: &SharedVfs,
    from: &LogOptions,
    to: &Path,
    kept: Vec<Kept<'_>>,
    report: &mut Report,
) -> Result<(), LogError> {
    let mut options = from.clone();
    options.dir = to.to_owned();
    options.io = IoMode::Inline;
    options.accept_suspect_tail = false;
    let (log, _) = Log::open(SharedVfs::clone(vfs), options.clone())?;
    for kept in kept {
        report.groups.push(write(&log, kept)?);
    }
    log.close()?;
    drop(log);
    prove(vfs, options, report)
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
/// one. What is covered need not be there.
pub(super) fn choose<'a>(
    id: GroupId,
    latest: &'a Group,
    runs: &'a [Run],
    covered: Option<&Covered>,
    from: &LogOptions,
) -> Kept<'a> {
    let lives = || {
        runs.iter().filter_map(move |run| {
            let group = run.groups.map.get(&id)?;
            (group.base.creation == latest.base.creation).then_some((run, group))
        })
    };
    let base_of = |group: &Group| base_of(group, covered);
    let complete = |group: &Group| group.missing_to <= base_of(group).index;
    let (run, group) = lives()
        .rev()
        .find(|(_, group)| complete(group))
        .or_else(|| lives().next_back())
        .expect("the newest run has the group");
    let mut hard_state = group.hard_state;
    for (_, other) in lives() {
        raise(
            &mut hard_state,
            other.hard_state.term,
            other.hard_state.vote,
        );
    }
    let base = base_of(group);
    let (last, bad) = if complete(group) {
        readable(id, group, run, base.index, from)
    } else {
        let (first, last) = (base.index.next(), group.missing_to);
        let text = format!("entries {first} to {last} are in no segment that can be read");
        (base.index, Some(text))
    };
    // What lay behind the newest end that is known was cut later.
    let known = latest.last().max(base.index);
    let last = last.min(known);
    let cut = || format!("what followed batch {} is damaged or missing", run.last_seq);
    Kept {
        entries: Some((group, run)),
        incarnation: latest.incarnation,
        hard_state: HardState {
            commit: hard_state.commit.min(last),
            ..hard_state
        },
        snapshot: group.snapshot.clone(),
        told: Salvaged {
            group: id,
            base: base.index,
            last,
            known,
            reason: (last < known).then(|| bad.unwrap_or_else(cut)),
            dropped_snapshot: None,
        },
        base,
    }
}

/// Where the new log of a group begins: at what is covered, if that belongs to it and lies above its own base.
fn base_of(group: &Group, covered: Option<&Covered>) -> Base {
    let own = &group.base;
    let fits = |covered: &&Covered| {
        let here = group.term_at(covered.index);
        // Where the entry itself is missing: terms do not decrease.
        let behind = Index(covered.index.next().0.max(group.first_held()));
        let behind = group.term_at(behind);
        covered.index > own.index
            && here.is_none_or(|term| term == covered.term)
            && behind.is_none_or(|term| term >= covered.term)
    };
    match covered.filter(fits) {
        None => own.clone(),
        Some(covered) => Base {
            index: covered.index,
            term: covered.term,
            creation: own.creation,
            membership: covered
                .membership
                .clone()
                .unwrap_or_else(|| own.membership.clone()),
        },
    }
}

/// The places of a group's entries behind `base`, with their indices.
fn places(group: &Group, base: Index) -> impl Iterator<Item = (Index, Position)> + '_ {
    let first = group.first_held();
    let skip = (base.next().0.saturating_sub(first) as usize).min(group.entries.len());
    let indices = (first + skip as u64..).map(Index);
    indices.zip(group.entries.range(skip..).copied())
}

/// The entry at a place, if it verifies.
fn read(run: &Run, id: GroupId, index: Index, at: Position) -> Option<Entry> {
    let mut record = vec![0; at.len as usize];
    let file = run.files.get(&at.segment())?;
    file.read_exact_at(&mut record, at.offset()).ok()?;
    entry_in(&record, id, index)
}

/// The last entry behind `base` up to which all verify, and what is wrong with the next.
fn readable(
    id: GroupId,
    group: &Group,
    run: &Run,
    base: Index,
    from: &LogOptions,
) -> (Index, Option<String>) {
    let (mut last, mut term) = (base, group.term_at(base).unwrap_or_default());
    for (index, at) in places(group, base) {
        let wrong = match read(run, id, index, at) {
            Some(entry) if entry.term >= term => {
                (last, term) = (index, entry.term);
                continue;
            }
            Some(entry) => format!("is of term {}, behind one of term {term}", entry.term),
            None => "does not verify".to_owned(),
        };
        let path = segment_path(&from.dir, at.segment());
        let text = format!(
            "entry {index} {wrong}: {} at offset {}",
            path.display(),
            at.offset()
        );
        return (last, Some(text));
    }
    (last, None)
}

/// The higher term wins; at equal term a vote beats none.
pub(super) fn raise(state: &mut HardState, term: Term, vote: Option<crate::NodeId>) {
    if term > state.term {
        (state.term, state.vote) = (term, vote);
    } else if term == state.term {
        state.vote = state.vote.or(vote);
    }
}

/// Writes what is kept of a group.
fn write(log: &Log, kept: Kept<'_>) -> Result<Salvaged, LogError> {
    let Kept {
        entries: places_of,
        base,
        hard_state,
        snapshot,
        incarnation,
        mut told,
    } = kept;
    let id = told.group;
    let put = |records: Vec<Record>| {
        let mut batch = WriteBatch::new();
        for record in records {
            batch.push(id, record);
        }
        log.write(batch)
    };
    let start = base.index;
    put(vec![Record::Compact(base)])?;
    if incarnation.number > 0 {
        // One whose guard has ended began with it.
        let guarded = Incarnation {
            guarded: true,
            ..incarnation
        };
        let mut records = vec![Record::Incarnation(guarded)];
        records.extend((incarnation != guarded).then_some(Record::Incarnation(incarnation)));
        put(records)?;
    }
    let (mut entries, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
    let held = places_of
        .iter()
        .flat_map(|(group, run)| places(group, start).map(move |(index, at)| (run, index, at)));
    for (run, index, at) in held.take_while(|(_, index, _)| *index <= told.last) {
        let entry = read(run, id, index, at).ok_or_else(|| {
            let text = format!("entry {index} of group {id} verified, and does not any more");
            LogError::new(ErrorKind::Corruption, text)
        })?;
        if bytes > BATCH_BYTES {
            put(vec![Record::Entries(std::mem::take(&mut entries))])?;
            bytes = 0;
        }
        bytes += at.len as usize;
        entries.push(entry);
    }
    let mut records = vec![Record::Entries(entries), Record::HardState(hard_state)];
    match snapshot {
        Some(snapshot) if snapshot.index <= told.last => {
            records.push(Record::SnapshotRef(snapshot));
        }
        dropped => told.dropped_snapshot = told.dropped_snapshot.or(dropped),
    }
    put(records)?;
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
