//! Opens what a crash left: surveys the files, reads the segments, judges what does not verify, and starts a new
//! segment.
//!
//! Old segments are never written to by a later run. Every open makes a new one, whose checkpoint sums up what is
//! proven to be synced and which holds copies of the batches that are not; what older files hold from there on is
//! superseded. What decides is in `table`; nothing is changed before everything is decided.

mod ballots;
mod report;
mod scan;
mod survey;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::format::{self, BodyEncoder, SEGMENT_DATA, SegmentHeader};
use super::index::Groups;
use super::manifest::{Contents, Manifest};
use super::segment::{prepare, segment_path};
use super::votes::Votes;
use super::writer::{frame, header, publish};
use super::{LogOptions, segment_size};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, LogError, Record};
pub use report::RecoveryReport;
use scan::{Cut, Scan, Unproven, load, replay};
use survey::{Survey, survey};

const EVIDENCE_FILES_MAX: usize = 16;
const EVIDENCE_BYTES_MAX: usize = 64 << 20;

/// The state from which the log goes on.
pub(super) struct Recovered {
    pub(super) groups: Groups,
    pub(super) files: BTreeMap<u64, Arc<dyn VfsFile>>,
    pub(super) votes: Votes,
    pub(super) manifest: Manifest,
    pub(super) segment: u64,
    pub(super) first_seq: u64,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) seq: u64,
    pub(super) chain: u32,
    pub(super) report: RecoveryReport,
}

pub(super) fn recover(vfs: &SharedVfs, options: &LogOptions) -> Result<Recovered, LogError> {
    let mut report = RecoveryReport::default();
    let survey = survey(vfs, options, &mut report)?;
    let headers = &survey.headers;
    report.segments = headers.len();
    let mut scan = Scan {
        vfs,
        options,
        groups: Groups::default(),
        seq: 0,
        chain: 0,
        proven: survey.manifest.map_or(0, |contents| contents.synced_seq),
        unproven: Vec::new(),
        cut: None,
        report: &mut report,
    };
    let mut files = BTreeMap::new();
    for (at, top) in headers.iter().enumerate() {
        let next = headers.get(at + 1);
        let file = match next.and_then(|next| scan.sealed(top, next, at == 0)) {
            Some(file) => file,
            None => {
                let segment = load(vfs, options, *top)?;
                scan.segment(&segment, next, at == 0)?;
                segment.file
            }
        };
        files.insert(top.id, file);
    }
    let Scan {
        groups,
        chain,
        proven,
        mut unproven,
        cut,
        ..
    } = scan;
    // Marks carry nothing; what they proved is taken in.
    while unproven.last().is_some_and(|batch| batch.body.is_empty()) {
        unproven.pop();
    }
    let tail = Tail {
        groups,
        chain,
        proven,
        unproven,
        cut,
    };
    finish(vfs, options, files, &survey, tail, report)
}

struct Tail {
    groups: Groups,
    chain: u32,
    proven: u64,
    unproven: Vec<Unproven>,
    cut: Option<Cut>,
}

fn finish(
    vfs: &SharedVfs,
    options: &LogOptions,
    mut files: BTreeMap<u64, Arc<dyn VfsFile>>,
    survey: &Survey,
    tail: Tail,
    mut report: RecoveryReport,
) -> Result<Recovered, LogError> {
    let Tail {
        mut groups,
        chain,
        proven,
        unproven,
        cut,
    } = tail;
    let dir = &options.dir;
    let last = survey.headers.last();
    let id = last.map_or(1, |top| top.id + 1);
    let mut checkpoint = BodyEncoder::default();
    for (group, state) in groups.checkpoint() {
        checkpoint.push_checkpoint(group, &state);
    }
    let salt = format::salt(options.store_id, id);
    let mut out = Vec::new();
    let mut link = frame(
        &mut out,
        salt,
        header(proven, SEGMENT_DATA, proven, checkpoint.records, chain),
        &checkpoint.bytes,
    );
    let mut seq = proven;
    for batch in &unproven {
        let offset = SEGMENT_DATA + out.len() as u64;
        replay(&mut groups, id, offset, batch.seq, &batch.body).map_err(|text| {
            LogError::at(ErrorKind::Corruption, &segment_path(dir, id - 1), 0, text)
        })?;
        link = frame(
            &mut out,
            salt,
            header(batch.seq, offset, proven, batch.records, link),
            &batch.body,
        );
        seq = batch.seq;
        report.copied += 1;
    }
    for (group, state) in &groups.map {
        if state.missing_to > state.base.index {
            return Err(LogError::at(
                ErrorKind::Corruption,
                &segment_path(dir, id),
                0,
                format!(
                    "group {group}: entries {} to {} are in no segment; restore the log or rebuild this member",
                    state.base.index.next(),
                    state.missing_to
                ),
            ));
        }
    }
    let merged = ballots::merge(vfs, options, &mut groups, cut.is_some(), &mut report)?;
    let mut changed = BodyEncoder::default();
    for (group, state) in &merged.changed {
        changed.push(*group, &Record::HardState(*state), &mut Vec::new());
    }
    if changed.records > 0 {
        seq += 1;
        let offset = SEGMENT_DATA + out.len() as u64;
        link = frame(
            &mut out,
            salt,
            header(seq, offset, proven, changed.records, link),
            &changed.bytes,
        );
    }
    if let Some(cut) = cut {
        report.cut = Some(keep_evidence(vfs, options, &cut)?);
    }
    // The higher ones first, so that what a crash leaves of them is still a chain.
    remove(vfs, options, survey.unnamed.iter().rev())?;
    let used = SEGMENT_DATA + out.len() as u64;
    let size = segment_size(
        options,
        options.segment_bytes_min,
        checkpoint.bytes.len() as u64,
        used - SEGMENT_DATA + groups.footer_room(id),
    );
    let prepared = prepare(&**vfs, &dir.join("next.tmp"), size)?;
    let top = SegmentHeader {
        store: options.store_id,
        id,
        predecessor: last.map_or(0, |top| top.id),
        first_seq: proven + 1,
        synced_seq: seq,
        chain,
        len: prepared.size,
    };
    files.insert(id, publish(vfs, dir, &prepared, &top, &out)?);
    let contents = Contents {
        generation: survey.manifest.map_or(0, |old| old.generation) + 1,
        oldest: survey.headers.first().map_or(id, |top| top.id),
        newest: id,
        synced_seq: seq,
    };
    let manifest = Manifest::create(vfs, dir, options.store_id, contents)?;
    // The slots follow from what the new segment holds, so they come once it is part of the log: before that a crash
    // goes back to the old segments, and maybe to a group that this start saw destroyed.
    let votes = Votes::create(vfs, dir, options.store_id, &merged.slots)?;
    remove(vfs, options, survey.struck.iter())?;
    Ok(Recovered {
        groups,
        files,
        votes,
        manifest,
        segment: id,
        first_seq: proven + 1,
        size,
        offset: used,
        seq,
        chain: link,
        report,
    })
}

/// Removes segments that are not part of the log.
fn remove<'a>(
    vfs: &SharedVfs,
    options: &LogOptions,
    ids: impl ExactSizeIterator<Item = &'a u64>,
) -> Result<(), LogError> {
    if ids.len() == 0 {
        return Ok(());
    }
    for id in ids {
        let path = segment_path(&options.dir, *id);
        vfs.remove(&path)
            .map_err(|error| LogError::io("cannot remove a segment", &path, error))?;
    }
    vfs.sync_dir(&options.dir)
        .map_err(|error| LogError::io("cannot sync the log's directory", &options.dir, error))
}

fn keep_evidence(vfs: &SharedVfs, options: &LogOptions, cut: &Cut) -> Result<String, LogError> {
    let Cut {
        segment,
        offset,
        bytes,
    } = cut;
    let dir = &options.dir;
    let names = vfs
        .list(dir)
        .map_err(|error| LogError::io("cannot list the log's directory", dir, error))?;
    let kept = names.iter().filter(|name| name.contains(".torn-")).count();
    let what = format!(
        "left {} bytes of an un-synced tail of segment {segment:016x} at offset {offset}",
        bytes.len()
    );
    if kept >= EVIDENCE_FILES_MAX {
        return Ok(format!(
            "{what}; no evidence kept, {kept} files are there already"
        ));
    }
    let number = (0..)
        .find(|n| !names.contains(&format!("{segment:016x}.seg.torn-{n}")))
        .expect("unbounded");
    let path = dir.join(format!("{segment:016x}.seg.torn-{number}"));
    let failed = |error| LogError::io("cannot keep the evidence of a torn tail", &path, error);
    let file = vfs.open(&path, OpenMode::CreateNew).map_err(failed)?;
    file.write_all_at(&bytes[..bytes.len().min(EVIDENCE_BYTES_MAX)], 0)
        .map_err(failed)?;
    file.sync_data().map_err(failed)?;
    vfs.sync_dir(dir).map_err(failed)?;
    Ok(format!("{what}; the bytes are in {}", path.display()))
}
