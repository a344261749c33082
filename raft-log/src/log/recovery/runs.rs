//! Reads a log that a start refuses: whatever verifies, in runs between one piece of damage and the next.
//!
//! Each segment begins with a checkpoint of all groups, so behind damage the next one is a place to begin anew. What lies
//! between damage and the end of its segment is left out, unless the segment's footer says what was live in it: nobody
//! knows what the missing batches did to which group. `salvage` decides what a group keeps of which run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::LogOptions;
use super::super::format::{BATCH_HEADER, BatchHeader, SEGMENT_DATA, SegmentHeader, salt};
use super::super::index::Groups;
use super::super::inspect::segment_ids;
use super::super::manifest::{self, Found};
use super::super::segment::segment_path;
use super::RecoveryReport;
use super::scan::{Scan, load};
use super::survey::{read_header, replaced};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, LogError};

/// A part of the log without damage to what groups did.
#[derive(Default)]
pub(in super::super) struct Run {
    /// The groups at its end; entries from before it are missing in them.
    pub(in super::super) groups: Groups,
    /// Its segments.
    pub(in super::super) files: BTreeMap<u64, Arc<dyn VfsFile>>,
    /// The newest batch in it, and the chain value behind that one.
    pub(in super::super) last_seq: u64,
    chain: u32,
}

/// How far a segment could be taken.
enum Taken {
    Whole,
    /// Up to a batch that does not verify.
    Partly(LogError),
    /// It does not follow what is there, or its checkpoint cannot be read.
    Not(LogError),
}

/// All runs, oldest first, and what is wrong around them.
///
/// # Errors
/// What is not damage: a newer format, and a directory that cannot be listed.
pub(in super::super) fn runs(
    vfs: &SharedVfs,
    options: &LogOptions,
) -> Result<(Vec<Run>, Vec<LogError>), LogError> {
    let mut damage = Vec::new();
    let (headers, proven) = headers(vfs, options, &mut damage)?;
    let (mut runs, mut run) = (Vec::new(), Run::default());
    for (at, top) in headers.iter().enumerate() {
        let next = headers
            .get(at + 1)
            .filter(|next| next.predecessor == top.id && next.first_seq >= top.first_seq);
        let mut taken = run.take(vfs, options, top, next, proven);
        if let Taken::Not(error) = taken {
            damage.push(error);
            if std::mem::take(&mut run).finish(&mut runs) {
                continue;
            }
            taken = run.take(vfs, options, top, next, proven);
        }
        match taken {
            Taken::Whole => {}
            Taken::Partly(error) => {
                damage.push(error);
                std::mem::take(&mut run).finish(&mut runs);
            }
            Taken::Not(error) => {
                damage.push(error);
                run = Run::default();
            }
        }
    }
    run.finish(&mut runs);
    Ok((runs, damage))
}

impl Run {
    /// Goes on with a segment, or begins with it.
    fn take(
        &mut self,
        vfs: &SharedVfs,
        options: &LogOptions,
        top: &SegmentHeader,
        next: Option<&SegmentHeader>,
        proven: u64,
    ) -> Taken {
        let mut report = RecoveryReport::default();
        let first = self.files.is_empty();
        let mut scan = Scan {
            vfs,
            options,
            groups: std::mem::take(&mut self.groups),
            seq: self.last_seq,
            chain: self.chain,
            proven,
            unproven: Vec::new(),
            cut: None,
            take_over_max: None,
            taken_over: None,
            idle: None,
            lenient: true,
            broken: None,
            report: &mut report,
        };
        let sealed = next.and_then(|next| scan.sealed(top, next, first));
        let outcome = match sealed {
            Some(file) => Ok(file),
            None => load(vfs, options, *top)
                .and_then(|segment| scan.segment(&segment, next, first).map(|()| segment.file)),
        };
        (self.last_seq, self.chain) = (scan.seq, scan.chain);
        let broken = scan.broken.take();
        self.groups = scan.groups;
        match outcome {
            Err(error) => Taken::Not(error),
            Ok(file) => {
                self.files.insert(top.id, file);
                broken.map_or(Taken::Whole, Taken::Partly)
            }
        }
    }

    /// Puts the run behind the others, if there is anything in it. True when there was nothing.
    fn finish(self, runs: &mut Vec<Self>) -> bool {
        if self.files.is_empty() {
            return true;
        }
        runs.push(self);
        false
    }
}

/// The headers of the segments that there are, and the newest batch that the manifest says was synced.
fn headers(
    vfs: &SharedVfs,
    options: &LogOptions,
    damage: &mut Vec<LogError>,
) -> Result<(Vec<SegmentHeader>, u64), LogError> {
    let dir = &options.dir;
    let path = dir.join("MANIFEST");
    let differs = |expected: String, found: String| {
        let advice = "restore the file or rebuild this member";
        LogError::differs(ErrorKind::Corruption, &path, 0, expected, found, advice)
    };
    let contents = match manifest::read(vfs, dir, options.store_id) {
        Ok(Found::Whole(contents) | Found::Half(contents)) => Some(contents),
        Ok(Found::Absent) => None,
        Ok(Found::Damaged) => {
            let found = "none, so it is not known whether the newest segment is there".into();
            damage.push(differs("a block that verifies".into(), found));
            None
        }
        Err(error) if error.kind() == ErrorKind::NewerFormat => return Err(error),
        Err(error) => {
            damage.push(error);
            None
        }
    };
    let oldest = contents.map_or(0, |contents| contents.oldest);
    let mut headers = Vec::new();
    for id in segment_ids(&**vfs, dir)?
        .into_iter()
        .filter(|id| *id >= oldest)
    {
        match read_header(vfs, options, id, false) {
            Ok((_, top)) => headers.push(top),
            Err(error) if error.kind() == ErrorKind::NewerFormat => return Err(error),
            Err(error) => {
                damage.push(error);
                headers.extend(stand_in(vfs, options, id));
            }
        }
    }
    replaced(&mut headers);
    if let Some(contents) = contents {
        let newest = headers.last().map_or(0, |top| top.id);
        if newest < contents.newest {
            let expected = format!("segment {:016x}", contents.newest);
            damage.push(differs(expected, format!("{newest:016x} as the newest")));
        }
    }
    Ok((headers, contents.map_or(0, |contents| contents.synced_seq)))
}

/// What the checkpoint of a segment says of its header: all of it, but who came before and how long the file is.
fn stand_in(vfs: &SharedVfs, options: &LogOptions, id: u64) -> Option<SegmentHeader> {
    let file = vfs
        .open(&segment_path(&options.dir, id), OpenMode::Read)
        .ok()?;
    let mut head = [0; BATCH_HEADER];
    file.read_exact_at(&mut head, SEGMENT_DATA).ok()?;
    let checkpoint = BatchHeader::decode(&head, SEGMENT_DATA, salt(options.store_id, id))?;
    Some(SegmentHeader {
        store: options.store_id,
        id,
        predecessor: id.checked_sub(1)?,
        first_seq: checkpoint.seq.checked_add(1)?,
        synced_seq: checkpoint.seq,
        chain: checkpoint.chain,
        len: 0,
    })
}
