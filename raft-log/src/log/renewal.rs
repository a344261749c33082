//! Begins a store's log anew where the old one lost what may have been acknowledged, for members of a cluster: their peers
//! give back what is lost.
//!
//! What verifies of the old log is copied as a [`salvage`](super::salvage) copies it, and each group gets another
//! [`Incarnation`], guarded. So the peers learn that what they were told of the old log is void, and the member does not
//! vote before it has caught up. Term and vote cannot be got from anybody: where the vote slots do not tell them for certain,
//! nothing is begun, and the member has to be removed and added again.
//!
//! The copy is made beside the old log, which is only read, and takes its place by renames:
//!
//! | step | a crash before it leaves | the next start |
//! |---|---|---|
//! | write `<log>.copying`, close and check it | the old log, and part of a copy | begins with an empty copy |
//! | rename it to `<log>.renewed`, sync the parent | the same, the copy whole | the same |
//! | rename `<log>` to `<log>.damaged-<n>`, sync the parent | the old log, and the copy | begins again |
//! | rename `<log>.renewed` to `<log>`, sync the parent | no log, and the copy | [`Log::open`] gives it its name |
//!
//! A copy that is whole and was not used is never taken later: an open that finds both makes it a left-over first, for the
//! old log may have been restored and written to since.

use std::path::{Path, PathBuf};

use super::index::Group;
use super::recovery::{Run, runs};
use super::salvage::{Covered, Kept, Report, Salvaged, choose, copy, raise};
use super::votes::{self, Slot, Slots};
use super::{Log, LogOptions, RecoveryReport};
use crate::testing::{Bug, bug};
use crate::vfs::{SharedVfs, Vfs};
use crate::{Base, ErrorKind, GroupId, HardState, Incarnation, Index, LogError, SnapshotRef, Term};

/// Bytes of entries that are looked at in one read.
const READ_BYTES: usize = 1 << 20;

/// Old logs that are kept for inspection.
const EVIDENCE_MAX: u32 = 8;

const REMEDY: &str = "remove this member and add it again with an empty data directory";

/// What was begun.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Renewal {
    /// What each group has kept, and what was wrong with the old log.
    pub report: Report,
    /// Where the old log is.
    pub evidence: PathBuf,
}

/// Asked for each group, with the base that its log has as far as it can be read, else one at zero of the same creation: the
/// state of that life of the group that is durable elsewhere. A log that does not reach it, or begins behind it without a snapshot in between, begins there instead, empty.
/// A reason not to begin anew, such as that there are no peers to be repaired from, ends the renewal.
pub type StateOf<'a> = &'a dyn Fn(GroupId, &Base) -> Result<Option<Covered>, String>;

/// Begins the log in `options.dir` anew, under that name. The old one is kept beside it. A reference to a snapshot is kept
/// if `has_snapshot` says that its file is.
///
/// All groups begin under another incarnation: damage hits the store, and which groups had something in the part that is
/// damaged is not known.
///
/// # Errors
/// [`ErrorKind::Corruption`] where term and vote of a group are not known for certain, or nothing is known of one that has
/// voted; what `state_of` says; a log of a newer format or another store; too many old logs; and failures of the file
/// system. The old log is as it was.
pub fn renew(
    vfs: &SharedVfs,
    options: &LogOptions,
    has_snapshot: &dyn Fn(GroupId, &SnapshotRef) -> bool,
    state_of: StateOf<'_>,
) -> Result<Renewal, LogError> {
    let dir = &options.dir;
    let names = Names::of(dir).ok_or_else(|| {
        let text = "the log's directory has no name of its own, beside which another one could be";
        LogError::at(ErrorKind::InvalidBatch, dir, 0, text)
    })?;
    let lock = Log::lock(vfs, dir)?;
    let (runs, damage) = runs(vfs, options)?;
    if let Some(foreign) = damage
        .iter()
        .find(|one| one.kind() == ErrorKind::ForeignStore)
    {
        return Err(foreign.clone());
    }
    let slots = votes::read(vfs, dir, options.store_id)?;
    let kept = keep(options, &runs, &slots, has_snapshot, state_of)?;
    let evidence = names.evidence(&**vfs)?;
    empty(&**vfs, &names.copying)?;
    let mut report = Report {
        damage,
        ..Report::default()
    };
    copy(vfs, options, &names.copying, kept, &mut report)?;
    rename(&**vfs, &names.copying, &names.renewed)?;
    rename(&**vfs, dir, &evidence)?;
    drop(lock);
    rename(&**vfs, &names.renewed, dir)?;
    Ok(Renewal { report, evidence })
}

/// A log that was opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// What opening it found and did.
    pub report: RecoveryReport,
    /// Why and how it was begun anew before, if it was.
    pub anew: Option<(LogError, Renewal)>,
}

/// Opens the log of a member of a cluster, after a look at every entry in it: what was sealed by an earlier run is not read
/// by [`Log::open`], and damage there would stop the member each time that somebody needs the entry. A log with damage is
/// begun anew, for the reason that comes along.
///
/// # Errors
/// Those of [`Log::open`] and [`renew`]; where a damaged log cannot begin anew, why, behind what is wrong with it.
pub fn open_or_renew(
    vfs: &SharedVfs,
    options: &LogOptions,
    has_snapshot: &dyn Fn(GroupId, &SnapshotRef) -> bool,
    state_of: StateOf<'_>,
) -> Result<Opened, LogError> {
    let open = || Log::open(SharedVfs::clone(vfs), options.clone());
    let is_damage =
        |error: &LogError| matches!(error.kind(), ErrorKind::Corruption | ErrorKind::SuspectTail);
    let opened = open().and_then(|(log, report)| {
        read_all(&log)?;
        Ok((log, report))
    });
    let cause = match opened {
        Ok((log, report)) => {
            return Ok(Opened {
                log,
                report,
                anew: None,
            });
        }
        Err(cause) if is_damage(&cause) => cause,
        Err(other) => return Err(other),
    };
    let renewal = renew(vfs, options, has_snapshot, state_of).map_err(|why| {
        let kind = if is_damage(&why) {
            ErrorKind::Corruption
        } else {
            why.kind()
        };
        LogError::new(kind, format!("{cause}; and it does not begin anew: {why}"))
    })?;
    let (log, report) = open()?;
    Ok(Opened {
        log,
        report,
        anew: Some((cause, renewal)),
    })
}

/// Reads every entry once.
fn read_all(log: &Log) -> Result<(), LogError> {
    for id in log.groups() {
        let Some(info) = log.group(id) else { continue };
        let mut next = info.base.index.next();
        while next <= info.last_index {
            let part = log.entries(id, next..info.last_index.next(), READ_BYTES)?;
            next = part.last().map_or(next, |entry| entry.index).next();
        }
    }
    Ok(())
}

/// Names beside that of a log.
struct Names {
    copying: PathBuf,
    renewed: PathBuf,
    damaged: Vec<PathBuf>,
}

impl Names {
    fn of(dir: &Path) -> Option<Self> {
        let name = dir.file_name()?.to_str()?;
        let beside = |suffix: &str| dir.with_file_name(format!("{name}.{suffix}"));
        Some(Self {
            copying: beside("copying"),
            renewed: beside("renewed"),
            damaged: (1..=EVIDENCE_MAX)
                .map(|number| beside(&format!("damaged-{number}")))
                .collect(),
        })
    }

    /// The name for the old log.
    fn evidence(&self, vfs: &dyn Vfs) -> Result<PathBuf, LogError> {
        for path in &self.damaged {
            if !is_there(vfs, path)? {
                return Ok(path.clone());
            }
        }
        let last = self.damaged.last().expect("there is a bound above zero");
        let text = format!(
            "{EVIDENCE_MAX} damaged logs are kept already, up to this one; look after the disk, and remove them"
        );
        Err(LogError::at(ErrorKind::Corruption, last, 0, text))
    }
}

/// True when `dir` is a log, or an open would finish a renewal of one: before somebody opens it and makes a new one there.
///
/// # Errors
/// Failures of the file system.
pub fn exists(vfs: &dyn Vfs, dir: &Path) -> Result<bool, LogError> {
    let renewed = Names::of(dir).map(|names| names.renewed);
    match renewed {
        Some(renewed) => Ok(is_there(vfs, dir)? || is_there(vfs, &renewed)?),
        None => is_there(vfs, dir),
    }
}

/// Ends a renewal that was cut short between its last two renames: the new log gets the name that nobody has.
pub(super) fn finish(vfs: &dyn Vfs, dir: &Path) -> Result<(), LogError> {
    match Names::of(dir) {
        Some(names) if !is_there(vfs, dir)? && is_there(vfs, &names.renewed)? => {
            rename(vfs, &names.renewed, dir)
        }
        _ => Ok(()),
    }
}

/// Makes a new log a left-over whose place the old one still has; that is locked.
pub(super) fn set_aside(vfs: &dyn Vfs, dir: &Path) -> Result<(), LogError> {
    match Names::of(dir) {
        Some(names) if is_there(vfs, &names.renewed)? => {
            rename(vfs, &names.renewed, &names.copying)
        }
        _ => Ok(()),
    }
}

fn is_there(vfs: &dyn Vfs, dir: &Path) -> Result<bool, LogError> {
    match vfs.list(dir) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LogError::io("cannot list", dir, error)),
    }
}

fn rename(vfs: &dyn Vfs, from: &Path, to: &Path) -> Result<(), LogError> {
    let parent = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    vfs.rename(from, to)
        .and_then(|()| vfs.sync_dir(parent))
        .map_err(|error| LogError::io("cannot rename a log's directory", from, error))
}

/// Removes what an earlier copy left.
fn empty(vfs: &dyn Vfs, dir: &Path) -> Result<(), LogError> {
    if !is_there(vfs, dir)? {
        return Ok(());
    }
    let failed = |error| LogError::io("cannot remove what an earlier copy left", dir, error);
    for name in vfs.list(dir).map_err(failed)? {
        vfs.remove(&dir.join(name)).map_err(failed)?;
    }
    vfs.sync_dir(dir).map_err(failed)
}

/// What each group goes on with.
fn keep<'a>(
    options: &LogOptions,
    runs: &'a [Run],
    slots: &Slots,
    has_snapshot: &dyn Fn(GroupId, &SnapshotRef) -> bool,
    state_of: StateOf<'_>,
) -> Result<Vec<Kept<'a>>, LogError> {
    let state_of = |group: GroupId, base: &Base| {
        state_of(group, base).map_err(|reason| {
            let text = format!("group {group} does not begin anew: {reason}");
            LogError::at(ErrorKind::Corruption, &options.dir, 0, text)
        })
    };
    let mut all = Vec::new();
    let held = runs.last().map(|run| &run.groups.map);
    for (id, latest) in held.into_iter().flatten() {
        let state = state_of(*id, &latest.base)?;
        let mut kept = choose(*id, latest, runs, None, options);
        if let Some(state) = &state {
            let other = choose(*id, latest, runs, Some(state), options);
            if other.told.last > kept.told.last {
                kept = other;
            }
        }
        if let Some(snapshot) = &kept.snapshot
            && !has_snapshot(*id, snapshot)
        {
            kept.told.dropped_snapshot = kept.snapshot.take();
        }
        if let Some(state) = state.filter(|state| !continues(&kept, state)) {
            restart(&mut kept, latest, state);
        }
        let mine = slots.of(*id, latest.base.creation);
        let numbers = runs.iter().filter_map(|run| run.groups.map.get(id));
        let number = numbers.map(|group| group.incarnation.number).max();
        promise(options, &mut kept, mine, slots, number.unwrap_or(0))?;
        all.push(kept);
    }
    for mine in slots.by_group() {
        let Slot {
            group, creation, ..
        } = mine[0];
        if held.is_some_and(|held| held.contains_key(&group)) {
            continue;
        }
        let unread = Base {
            creation,
            ..Base::default()
        };
        let Some(state) = state_of(group, &unread)? else {
            let found = "no log that can be read, and no state elsewhere";
            let text = format!("the log of group {group}, which has voted");
            return Err(LogError::differs(
                ErrorKind::Corruption,
                &options.dir.join("votes"),
                0,
                text,
                found,
                REMEDY,
            ));
        };
        let mut kept = Kept::nothing(group, creation, state);
        promise(options, &mut kept, mine, slots, 0)?;
        all.push(kept);
    }
    if all.is_empty() {
        let text = format!("nothing of the log can be read, and nobody has voted: {REMEDY}");
        return Err(LogError::at(ErrorKind::Corruption, &options.dir, 0, text));
    }
    Ok(all)
}

/// Whether the log that is kept goes on from the state, or from a snapshot of its own. What was kept may be of a past in
/// which the log had other entries than those that were applied.
fn continues(kept: &Kept<'_>, state: &Covered) -> bool {
    if state.index < kept.base.index {
        let snapshot = kept.snapshot.as_ref();
        return snapshot.is_some_and(|snapshot| snapshot.index >= kept.base.index);
    }
    let term = kept.term_at(state.index);
    state.index <= kept.told.last && (state.index == Index::ZERO || term == Some(state.term))
}

/// Lets the log begin at the state, with nothing in it.
fn restart(kept: &mut Kept<'_>, latest: &Group, mut state: Covered) {
    let membership = &latest.base.membership;
    state.membership.get_or_insert_with(|| membership.clone());
    let mut other = Kept::nothing(kept.told.group, latest.base.creation, state);
    let (hard_state, snapshot) = (kept.hard_state, kept.snapshot.take());
    let commit = hard_state.commit.min(other.base.index);
    other.hard_state = HardState {
        commit,
        ..hard_state
    };
    let known = kept.told.known.max(other.base.index);
    other.told = Salvaged {
        known,
        reason: (other.base.index < known)
            .then(|| "the log does not meet the state that is there".to_owned()),
        dropped_snapshot: kept.told.dropped_snapshot.take().or(snapshot),
        ..other.told
    };
    *kept = other;
}

/// Term, vote and incarnation of what is kept: from the slots, which must be whole.
fn promise(
    options: &LogOptions,
    kept: &mut Kept<'_>,
    mine: &[Slot],
    slots: &Slots,
    in_log: u64,
) -> Result<(), LogError> {
    let group = kept.told.group;
    let unknown = |found: &str| {
        Err(LogError::differs(
            ErrorKind::Corruption,
            &options.dir.join("votes"),
            0,
            format!("term and vote of group {group}, whose log is damaged"),
            found,
            REMEDY,
        ))
    };
    if mine.is_empty() {
        return unknown("none, so that they are unknown");
    }
    if slots.is_half(group) {
        return unknown("a damaged block, so that they are unknown");
    }
    for slot in mine {
        let state = &kept.hard_state;
        let both = state.vote.is_some() && slot.vote.is_some();
        if slot.term == state.term && both && slot.vote != state.vote {
            return unknown("two different votes in one term");
        }
        raise(&mut kept.hard_state, slot.term, slot.vote);
    }
    if kept.term_at(kept.told.last) > Some(kept.hard_state.term) {
        return unknown("an older term than that of the last entry");
    }
    let number = mine.iter().map(|slot| slot.incarnation).max();
    kept.incarnation = Incarnation {
        number: number.unwrap_or(0).max(in_log) + 1,
        guarded: !bug(Bug::RenewWithoutGuard),
    };
    Ok(())
}

impl Kept<'_> {
    /// A log that begins after `state` and holds nothing.
    fn nothing(group: GroupId, creation: u64, state: Covered) -> Self {
        Self {
            entries: None,
            base: Base {
                index: state.index,
                term: state.term,
                creation,
                membership: state.membership.unwrap_or_default(),
            },
            hard_state: HardState {
                commit: state.index,
                ..HardState::default()
            },
            snapshot: None,
            incarnation: Incarnation::default(),
            told: Salvaged {
                group,
                base: state.index,
                last: state.index,
                known: state.index,
                reason: None,
                dropped_snapshot: None,
            },
        }
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entries.and_then(|(group, _)| group.term_at(index))
    }
}
