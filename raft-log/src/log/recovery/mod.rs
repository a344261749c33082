//! Opens what a crash left: surveys the files, reads the segments, judges what does not verify, and starts a new
//! segment.
//!
//! Old segments are never written to by a later run. Every open makes a new one, whose checkpoint sums up what is
//! proven to be synced and which holds copies of the batches that are not; what older files hold from there on is
//! superseded. A last segment with little in it is copied as a whole and removed, so that starts do not fill the disk
//! with segments that are hardly used. What decides is in `table`; nothing is changed before everything is decided.

mod ballots;
mod report;
mod room;
mod runs;
mod scan;
mod survey;
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::format::{self, BodyEncoder, SEGMENT_DATA, SegmentHeader};
use super::index::Groups;
use super::manifest::Manifest;
use super::segment::segment_path;
use super::votes::{Slot, Votes};
use super::writer::{frame, header};
use super::{LogOptions, segment_bytes_min};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, GroupId, LogError, Record};
pub use report::RecoveryReport;
use room::Idle;
pub(super) use room::recover;
pub(super) use runs::{Run, runs};
pub(super) use scan::{Cut, load};
use scan::{Scan, Unproven, replay};
pub(super) use survey::read_header;
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
    /// The segment, for writing.
    pub(super) file: Arc<dyn VfsFile>,
    /// There is no room for a segment of this run: `segment` is the last one of an earlier run, and stays as it is.
    pub(super) waits: bool,
    pub(super) report: RecoveryReport,
}

/// What a start makes of the files, before it has changed any.
pub(super) struct Plan {
    pub(super) survey: Survey,
    pub(super) files: BTreeMap<u64, Arc<dyn VfsFile>>,
    /// The groups with everything that goes on, also what is copied.
    pub(super) groups: Groups,
    /// The vote slots to write.
    slots: Vec<Slot>,
    /// What is left behind.
    pub(super) cut: Option<Cut>,
    next: NextSegment,
    /// What of the last segment's space nobody needs.
    idle: Option<Idle>,
    pub(super) report: RecoveryReport,
}

/// The segment that a start makes.
struct NextSegment {
    id: u64,
    predecessor: u64,
    /// The segment all of which is copied, and which goes once the new one is named.
    instead_of: Option<u64>,
    /// The newest batch that is proven, and the chain value behind it.
    proven: u64,
    chain: u32,
    /// Checkpoint, copies and hard states, as they go into the file.
    batches: Vec<u8>,
    checkpoint_len: u64,
    /// The newest batch in it, and the chain value behind that one.
    seq: u64,
    link: u32,
}

/// Reads and judges everything, and changes nothing.
pub(super) fn judge(vfs: &SharedVfs, options: &LogOptions) -> Result<Plan, LogError> {
    judge_with(vfs, options, true)
}

/// As [`judge`]; a small last segment is taken over only if `take_over` says so.
fn judge_with(vfs: &SharedVfs, options: &LogOptions, take_over: bool) -> Result<Plan, LogError> {
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
        take_over_max: take_over.then(|| segment_bytes_min(options) / 2),
        taken_over: None,
        idle: None,
        lenient: false,
        broken: None,
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
        mut groups,
        chain,
        proven,
        mut unproven,
        cut,
        taken_over,
        idle,
        ..
    } = scan;
    // Marks carry nothing; what they proved is taken in.
    while unproven.last().is_some_and(|batch| batch.body.is_empty()) {
        unproven.pop();
    }
    let mut next = NextSegment::begin(options, headers.last(), &groups, proven, chain);
    if let (Some(proven), Some(top)) = (taken_over, headers.last()) {
        (next.predecessor, next.instead_of) = (top.predecessor, Some(top.id));
        files.remove(&top.id);
        report.batches += (proven + 1).saturating_sub(top.first_seq);
        report.taken_over = Some(top.id);
    }
    next.copy(options, &mut groups, &unproven)?;
    let certain = taken_over.unwrap_or(proven);
    report.copied = unproven.iter().filter(|batch| batch.seq > certain).count() as u64;
    let oldest = headers.first().map_or(next.id, |top| top.id);
    check_complete(&groups, &segment_path(&options.dir, oldest))?;
    let merged = ballots::merge(vfs, options, &mut groups, cut.is_some(), &mut report)?;
    next.add_changes(options, &merged.changed);
    Ok(Plan {
        survey,
        files,
        groups,
        slots: merged.slots,
        cut,
        next,
        idle,
        report,
    })
}

/// Every entry above a group's base must be somewhere.
fn check_complete(groups: &Groups, path: &Path) -> Result<(), LogError> {
    for (group, state) in &groups.map {
        if state.missing_to > state.base.index {
            return Err(LogError::differs(
                ErrorKind::Corruption,
                path,
                0,
                format!(
                    "entries {} to {} of group {group} in an earlier segment",
                    state.base.index.next(),
                    state.missing_to
                ),
                "them in none",
                "restore the log or rebuild this member",
            ));
        }
    }
    Ok(())
}

impl NextSegment {
    /// With a checkpoint of what is proven.
    fn begin(
        options: &LogOptions,
        last: Option<&SegmentHeader>,
        groups: &Groups,
        proven: u64,
        chain: u32,
    ) -> Self {
        let mut checkpoint = BodyEncoder::default();
        for (group, state) in groups.checkpoint() {
            checkpoint.push_checkpoint(group, &state);
        }
        let id = last.map_or(1, |top| top.id + 1);
        let mut batches = Vec::new();
        let link = frame(
            &mut batches,
            format::salt(options.store_id, id),
            header(proven, SEGMENT_DATA, proven, checkpoint.records, chain),
            &checkpoint.bytes,
        );
        Self {
            id,
            predecessor: last.map_or(0, |top| top.id),
            instead_of: None,
            proven,
            chain,
            batches,
            checkpoint_len: checkpoint.bytes.len() as u64,
            seq: proven,
            link,
        }
    }

    /// Adds batches that verified and are not proven, and takes their records.
    fn copy(
        &mut self,
        options: &LogOptions,
        groups: &mut Groups,
        unproven: &[Unproven],
    ) -> Result<(), LogError> {
        for batch in unproven {
            let offset = SEGMENT_DATA + self.batches.len() as u64;
            replay(groups, self.id, offset, batch.seq, &batch.body).map_err(|text| {
                let path = segment_path(&options.dir, self.predecessor);
                LogError::at(ErrorKind::Corruption, &path, 0, text)
            })?;
            self.push(options, batch.seq, batch.records, &batch.body);
        }
        Ok(())
    }

    /// Adds what the vote slots changed.
    fn add_changes(&mut self, options: &LogOptions, changed: &[(GroupId, Record)]) {
        let mut body = BodyEncoder::default();
        for (group, record) in changed {
            body.push(*group, record, &mut Vec::new());
        }
        if body.records > 0 {
            self.push(options, self.seq + 1, body.records, &body.bytes);
        }
    }

    fn push(&mut self, options: &LogOptions, seq: u64, records: u32, body: &[u8]) {
        let offset = SEGMENT_DATA + self.batches.len() as u64;
        self.link = frame(
            &mut self.batches,
            format::salt(options.store_id, self.id),
            header(seq, offset, self.proven, records, self.link),
            body,
        );
        self.seq = seq;
    }
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
        behind,
    } = cut;
    let dir = &options.dir;
    let names = vfs
        .list(dir)
        .map_err(|error| LogError::io("cannot list the log's directory", dir, error))?;
    let kept = names.iter().filter(|name| name.contains(".torn-")).count();
    let mut what = format!(
        "left {} bytes of an un-synced tail of segment {segment:016x} at offset {offset}",
        bytes.len()
    );
    if let Some(behind) = behind {
        what = format!("{what} ({behind})");
    }
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
    let part = &bytes[..bytes.len().min(EVIDENCE_BYTES_MAX)];
    let kept = vfs.open(&path, OpenMode::CreateNew).and_then(|file| {
        file.write_all_at(part, 0)?;
        file.sync_data()?;
        vfs.sync_dir(dir)
    });
    if let Err(error) = kept.map_err(failed) {
        if error.kind() != ErrorKind::Full {
            return Err(error);
        }
        let _ = vfs.remove(&path);
        return Ok(format!(
            "{what}; the disk is full, so they are kept in the segment alone"
        ));
    }
    Ok(format!("{what}; the bytes are in {}", path.display()))
}
