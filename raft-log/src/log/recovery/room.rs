//! Makes the segment with which the log goes on, on a disk that may be full.
//!
//! A start takes what it needs in steps: a segment of the usual size; else the largest half of it that fits, after the
//! zeros behind the last batch were given back to the disk; else, when everything is proven to be synced, none at all: the
//! log opens for reading, and makes the segment when there is space. Only batches that must be copied have to have room.

use super::super::footer::{FOOTER, FOOTER_GAP};
use super::super::format::{SEGMENT_DATA, SegmentHeader};
use super::super::manifest::{Contents, Manifest};
use super::super::segment::{Prepared, prepare, segment_path};
use super::super::votes::{Slot, Votes};
use super::super::writer::publish;
use super::super::{LogOptions, segment_size, smallest_size};
use super::{NextSegment, Plan, Recovered, judge_with, keep_evidence, remove};
use crate::vfs::{OpenMode, SharedVfs};
use crate::{ErrorKind, LogError};

/// Bytes of a new manifest, beside the old one.
const MANIFEST_BYTES: u64 = 2 * super::super::manifest::BLOCK as u64;

/// The zeros behind the last batch of the last segment, in bytes of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    pub(super) segment: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Judges what is there, and goes on with what the disk has room for.
pub(in super::super) fn recover(
    vfs: &SharedVfs,
    options: &LogOptions,
) -> Result<Recovered, LogError> {
    let usual = |plan: &Plan| vec![plan.next.usual_size(options, plan)];
    let plan = judge_with(vfs, options, true)?;
    let takes_over = plan.next.instead_of.is_some();
    let sizes = usual(&plan);
    match make(vfs, options, plan, &sizes) {
        Err(error) if error.kind() == ErrorKind::Full => {}
        other => return other,
    }
    // Nothing has changed that counts, but judged is what is there now.
    let plan = judge_with(vfs, options, true)?;
    give_back(vfs, options, plan.idle);
    let least = plan.next.least_size(&plan);
    let mut sizes = vec![usual(&plan)[0] / 2 / SEGMENT_DATA * SEGMENT_DATA];
    while let Some(size) = sizes.last().filter(|size| **size > least) {
        sizes.push((size / 2 / SEGMENT_DATA * SEGMENT_DATA).max(least));
    }
    sizes.retain(|size| *size > least);
    sizes.push(least);
    match make(vfs, options, plan, &sizes) {
        Err(error) if error.kind() == ErrorKind::Full => {}
        other => return other,
    }
    let plan = judge_with(vfs, options, false)?;
    if plan.may_wait() {
        return wait_for_space(vfs, options, plan);
    }
    let needed = plan.next.least_size(&plan) + MANIFEST_BYTES;
    let text = full(vfs, options, &plan, needed);
    if takes_over {
        let sizes = [plan.next.least_size(&plan)];
        match make(vfs, options, plan, &sizes) {
            Err(error) if error.kind() == ErrorKind::Full => {}
            other => return other,
        }
    }
    Err(LogError::of(ErrorKind::Full, &options.dir, text))
}

/// What to do about a disk without room for what must be copied.
fn full(vfs: &SharedVfs, options: &LogOptions, plan: &Plan, needed: u64) -> String {
    let free = vfs.available(&options.dir).unwrap_or(0);
    let missing = match needed.saturating_sub(free) {
        0 => needed,
        missing => missing,
    };
    let what = match plan.survey.headers.last() {
        None => "a new log".to_owned(),
        Some(_) => format!(
            "a start that must write {} batches again, of which nothing proves that they were synced,",
            plan.next.seq - plan.next.proven
        ),
    };
    format!(
        "the disk is full: {what} takes {needed} bytes, and {free} are free; free {missing} more on the disk of this directory, then start again"
    )
}

/// Gives the disk back what nothing was written into. A hint: whether it works is seen by what fits then.
fn give_back(vfs: &SharedVfs, options: &LogOptions, idle: Option<Idle>) {
    let Some(idle) = idle else { return };
    if let Ok(file) = vfs.open(
        &segment_path(&options.dir, idle.segment),
        OpenMode::ReadWrite,
    ) {
        let _ = file.discard_zeros(idle.from, idle.to);
    }
}

impl Plan {
    /// True when nothing has to be written before the log can be read: everything is proven, and nothing is left behind.
    fn may_wait(&self) -> bool {
        self.next.seq == self.next.proven
            && self.cut.is_none()
            && self.survey.manifest.is_some()
            && !self.survey.headers.is_empty()
    }
}

impl NextSegment {
    fn needed(&self, plan: &Plan) -> u64 {
        self.batches.len() as u64 + plan.groups.footer_room(self.id)
    }

    fn usual_size(&self, options: &LogOptions, plan: &Plan) -> u64 {
        let (wanted, needed) = (options.segment_bytes_min, self.needed(plan));
        segment_size(options, wanted, self.checkpoint_len, needed)
    }

    fn least_size(&self, plan: &Plan) -> u64 {
        smallest_size(self.checkpoint_len, self.needed(plan))
    }
}

/// Makes and names a segment of the first of the sizes that fits, and takes what is not needed away.
fn make(
    vfs: &SharedVfs,
    options: &LogOptions,
    plan: Plan,
    sizes: &[u64],
) -> Result<Recovered, LogError> {
    let Plan {
        survey,
        mut files,
        groups,
        slots,
        cut,
        next,
        idle,
        mut report,
    } = plan;
    let dir = &options.dir;
    // The higher ones first, so that what a crash leaves of them is still a chain.
    remove(vfs, options, survey.unnamed.iter().rev())?;
    let id = next.id;
    let used = SEGMENT_DATA + next.batches.len() as u64;
    let mut kept = survey.headers.iter().map(|top| top.id);
    let contents = Contents {
        generation: survey.manifest.map_or(0, |old| old.generation) + 1,
        oldest: kept
            .find(|kept| next.instead_of != Some(*kept))
            .unwrap_or(id),
        newest: id,
        synced_seq: next.seq,
    };
    let prepared = prepare_both(vfs, options, contents, sizes)?;
    if let Some(cut) = cut {
        report.cut = Some(keep_evidence(vfs, options, &cut)?);
    }
    let top = SegmentHeader {
        store: options.store_id,
        id,
        predecessor: next.predecessor,
        first_seq: next.proven + 1,
        synced_seq: next.seq,
        chain: next.chain,
        len: prepared.size,
    };
    let file = publish(vfs, dir, &prepared, &top, &next.batches)?;
    files.insert(id, std::sync::Arc::clone(&file));
    let manifest = Manifest::publish(vfs, dir, options.store_id, contents)?;
    // The slots follow from what the new segment holds, so they come once it is part of the log: before that a crash
    // goes back to the old segments, and maybe to a group that this start saw destroyed.
    let votes = renew_votes(vfs, options, &slots)?;
    let mut gone = survey.struck;
    gone.extend(next.instead_of);
    remove(vfs, options, gone.iter())?;
    if next.instead_of.is_none() {
        give_back(vfs, options, idle);
    }
    Ok(Recovered {
        groups,
        files,
        votes,
        manifest,
        segment: id,
        first_seq: next.proven + 1,
        size: prepared.size,
        offset: used,
        seq: next.seq,
        chain: next.link,
        file,
        waits: false,
        report,
    })
}

/// A zero-filled segment and the manifest that will name it, both under temporary names.
fn prepare_both(
    vfs: &SharedVfs,
    options: &LogOptions,
    contents: Contents,
    sizes: &[u64],
) -> Result<Prepared, LogError> {
    let (dir, mut failure) = (&options.dir, None);
    for size in sizes {
        let path = dir.join("next.tmp");
        let made = prepare(&**vfs, &path, *size).and_then(|prepared| {
            let named = Manifest::prepare(vfs, dir, options.store_id, contents);
            named.map(|()| prepared)
        });
        match made {
            Err(error) if error.kind() == ErrorKind::Full => {
                // It may stay if this fails; the next attempt begins with its removal.
                let _ = vfs.remove(&path);
                failure = Some(error);
            }
            other => return other,
        }
    }
    Err(failure
        .unwrap_or_else(|| LogError::of(ErrorKind::Full, dir, "there is no room for a segment")))
}

/// The slots in a new file; in the old one where there is no room for it.
fn renew_votes(vfs: &SharedVfs, options: &LogOptions, slots: &[Slot]) -> Result<Votes, LogError> {
    let (dir, store) = (&options.dir, options.store_id);
    match Votes::create(vfs, dir, store, slots) {
        Err(error) if error.kind() == ErrorKind::Full => {
            let _ = vfs.remove(&dir.join("votes.tmp"));
            Votes::refresh(vfs, dir, store, slots)
        }
        other => other,
    }
}

/// Opens without a segment of its own: the files are brought up to date in place, and the first space that there is
/// becomes the segment.
fn wait_for_space(
    vfs: &SharedVfs,
    options: &LogOptions,
    plan: Plan,
) -> Result<Recovered, LogError> {
    let Plan {
        survey,
        files,
        groups,
        slots,
        next,
        mut report,
        ..
    } = plan;
    let (dir, store) = (&options.dir, options.store_id);
    let (Some(found), Some(last)) = (survey.manifest, survey.headers.last()) else {
        unreachable!("the caller has looked");
    };
    remove(vfs, options, survey.unnamed.iter().rev())?;
    // The newest segment may be there by its name in memory only.
    vfs.sync_dir(dir)
        .map_err(|error| LogError::io("cannot sync the log's directory", dir, error))?;
    let contents = Contents {
        generation: found.generation,
        oldest: survey.headers.first().map_or(last.id, |top| top.id),
        newest: last.id,
        synced_seq: next.proven,
    };
    let manifest = Manifest::refresh(vfs, dir, store, found, contents)?;
    let votes = renew_votes(vfs, options, &slots)?;
    remove(vfs, options, survey.struck.iter())?;
    let path = segment_path(dir, last.id);
    let failed = |error| LogError::io("cannot read a segment", &path, error);
    let file = vfs.open(&path, OpenMode::ReadWrite).map_err(failed)?;
    let size = file.len().map_err(failed)?;
    report.notes.push(format!(
        "opened for reading, as {} has no room for another segment",
        dir.display()
    ));
    Ok(Recovered {
        groups,
        files,
        votes,
        manifest,
        segment: last.id,
        first_seq: last.first_seq,
        size,
        offset: size - FOOTER_GAP - FOOTER as u64,
        seq: next.proven,
        chain: next.chain,
        file: std::sync::Arc::from(file),
        waits: true,
        report,
    })
}
