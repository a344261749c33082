//! Reads segments: by their footers where those verify and fit, else batch by batch, and judges what does not verify.

use std::io;
use std::sync::Arc;

use super::super::LogOptions;
use super::super::footer::{self, Footer};
use super::super::format::{
    self, BATCH_HEADER, BatchHeader, CHECKPOINT_MAX, DiskRecord, ENTRY_HEADER, GroupCheckpoint,
    SEGMENT_BYTES_MAX, SEGMENT_DATA, SegmentHeader,
};
use super::super::index::{Groups, Position};
use super::super::inspect::{Behind, batch_at, behind};
use super::super::segment::segment_path;
use super::RecoveryReport;
use super::room::Idle;
use super::table::{self, Finding, Verdict};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, GroupId, LogError};

/// A segment in memory.
pub(in super::super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(in super::super) file: Arc<dyn VfsFile>,
    pub(in super::super) data: Vec<u8>,
    /// Why some of it could not be read.
    pub(in super::super) io_error: Option<io::Error>,
}

/// A batch that verified and is not provably synced.
pub(super) struct Unproven {
    pub(super) seq: u64,
    /// The chain value before it.
    pub(super) chain: u32,
    pub(super) records: u32,
    pub(super) body: Vec<u8>,
}

/// A batch that verified: its sequence, where it lies, its header and its body.
type Pending<'a> = (u64, usize, BatchHeader, &'a [u8]);

/// What is left behind of a tail.
pub(in super::super) struct Cut {
    pub(in super::super) segment: u64,
    pub(in super::super) offset: u64,
    pub(in super::super) bytes: Vec<u8>,
    /// What verifies in it: later batches of the same write.
    pub(in super::super) behind: Option<Behind>,
}

pub(super) struct Scan<'a> {
    pub(super) vfs: &'a SharedVfs,
    pub(super) options: &'a LogOptions,
    pub(super) groups: Groups,
    pub(super) seq: u64,
    pub(super) chain: u32,
    pub(super) proven: u64,
    pub(super) unproven: Vec<Unproven>,
    pub(super) cut: Option<Cut>,
    /// A last segment with at most so many bytes of batches is taken over as a whole: all its batches are `unproven`.
    pub(super) take_over_max: Option<u64>,
    /// The newest batch that is proven, where the segment is taken over.
    pub(super) taken_over: Option<u64>,
    /// The zeros at the end of the last segment.
    pub(super) idle: Option<Idle>,
    /// For a salvage: take everything that verifies, synced or not, and go on to the first batch that does not.
    pub(super) lenient: bool,
    /// Where a lenient scan met what should be there and is not.
    pub(super) broken: Option<LogError>,
    pub(super) report: &'a mut RecoveryReport,
}

/// Reads a whole segment; what cannot be read is zero, and said.
pub(in super::super) fn load(
    vfs: &SharedVfs,
    options: &LogOptions,
    header: SegmentHeader,
) -> Result<Segment, LogError> {
    let path = segment_path(&options.dir, header.id);
    let failed = |error| LogError::io("cannot read a segment", &path, error);
    let file: Arc<dyn VfsFile> = Arc::from(vfs.open(&path, OpenMode::Read).map_err(failed)?);
    let len = file.len().map_err(failed)?;
    if len > SEGMENT_BYTES_MAX {
        return Err(LogError::differs(
            ErrorKind::Corruption,
            &path,
            0,
            format!("at most {SEGMENT_BYTES_MAX} bytes"),
            len.to_string(),
            "restore the file",
        ));
    }
    if header.contradicts_len(len) {
        let wanted = match header.len {
            0 => format!("a multiple of {SEGMENT_DATA} bytes"),
            whole => format!("{whole} bytes"),
        };
        let what = if len > header.len && header.len > 0 {
            "something was appended to the file"
        } else {
            "the file was cut"
        };
        return Err(LogError::differs(
            ErrorKind::Corruption,
            &path,
            len,
            wanted,
            format!("{len}: {what}"),
            "restore it",
        ));
    }
    let mut data = vec![0; len as usize];
    // Sector by sector after a failure, so that what is readable is judged by itself.
    let mut io_error = None;
    if file.read_exact_at(&mut data, 0).is_err() {
        for (at, chunk) in data.chunks_mut(4096).enumerate() {
            let read = file.read_exact_at(chunk, at as u64 * 4096);
            io_error = io_error.or(read.err());
        }
    }
    Ok(Segment {
        header,
        file,
        data,
        io_error,
    })
}

/// The groups in a segment's checkpoint; `None` when it cannot be read or does not verify.
fn read_checkpoint(
    file: &dyn VfsFile,
    top: &SegmentHeader,
) -> Option<Vec<(GroupId, GroupCheckpoint)>> {
    let mut head = [0; BATCH_HEADER];
    file.read_exact_at(&mut head, SEGMENT_DATA).ok()?;
    let header = BatchHeader::decode(&head, SEGMENT_DATA, top.salt())?;
    let len = header.body_len as usize;
    if header.seq != top.first_seq - 1 || header.chain != top.chain || len > CHECKPOINT_MAX {
        return None;
    }
    let mut body = vec![0; len];
    file.read_exact_at(&mut body, SEGMENT_DATA + BATCH_HEADER as u64)
        .ok()?;
    if crc32fast::hash(&body) != header.body_crc {
        return None;
    }
    let mut out: Vec<(GroupId, GroupCheckpoint)> = Vec::new();
    for (group, record) in format::decode_records(&body)? {
        let DiskRecord::Checkpoint(state) = record else {
            return None;
        };
        if out.last().is_some_and(|last| last.0 >= group) {
            return None;
        }
        out.push((group, state));
    }
    Some(out)
}

impl Scan<'_> {
    /// Takes a segment by its footer, if that verifies and agrees with the next segment. `None`: it must be read.
    pub(super) fn sealed(
        &mut self,
        top: &SegmentHeader,
        next: &SegmentHeader,
        first: bool,
    ) -> Option<Arc<dyn VfsFile>> {
        let open = |id| {
            let path = segment_path(&self.options.dir, id);
            self.vfs.open(&path, OpenMode::Read).ok()
        };
        let file = open(top.id)?;
        let len = file.len().ok().filter(|len| !top.contradicts_len(*len))?;
        let (footer, index) = Footer::read(&*file, len, top.salt())?;
        let continued = first || (self.seq + 1 == top.first_seq && self.chain == top.chain);
        let agrees = footer.first_seq == top.first_seq
            && footer.last_seq + 1 == next.first_seq
            && footer.chain == next.chain;
        if !continued || !agrees {
            return None;
        }
        let sealed = footer::parse(&index, top.id, footer.end)?;
        let after = read_checkpoint(&*open(next.id)?, next)?;
        if first {
            let before = read_checkpoint(&*file, top)?;
            self.groups = Groups::default();
            let records = before.into_iter();
            self.groups
                .restore(records.map(|(id, state)| (id, DiskRecord::Checkpoint(state))));
        }
        if !footer::adopt(&mut self.groups, sealed, after) {
            self.report.notes.push(format!(
                "read segment {:016x}, whose footer does not fit what is around it",
                top.id
            ));
            return None;
        }
        (self.seq, self.chain) = (footer.last_seq, footer.chain);
        self.proven = self.proven.max(footer.last_seq);
        self.report.batches += next.first_seq - top.first_seq;
        self.report.from_footers += 1;
        Some(Arc::from(file))
    }

    pub(super) fn segment(
        &mut self,
        segment: &Segment,
        successor: Option<&SegmentHeader>,
        first: bool,
    ) -> Result<(), LogError> {
        let top = &segment.header;
        let path = segment_path(&self.options.dir, top.id);
        let corrupt =
            |offset: u64, text: String| LogError::at(ErrorKind::Corruption, &path, offset, text);
        let stop = successor.map(|next| next.first_seq);
        let (mut at, mut chain) = (SEGMENT_DATA as usize, top.chain);
        let mut expected = top.first_seq - 1;
        if !first && (self.seq != expected || self.chain != top.chain) {
            return Err(LogError::differs(
                ErrorKind::Corruption,
                &path,
                0,
                format!("to continue after batch {}", self.seq),
                expected.to_string(),
                "restore the log or rebuild this member",
            ));
        }
        self.proven = self.proven.max(top.synced_seq);
        let file_len = segment.data.len() as u64;
        if let Some((footer, _)) = Footer::read(&*segment.file, file_len, top.salt()) {
            // It was written after these batches were synced.
            self.proven = self.proven.max(footer.last_seq);
        }
        let mut pending = Vec::new();
        loop {
            let checkpoint = at == SEGMENT_DATA as usize;
            if !checkpoint && stop.is_some_and(|stop| expected >= stop) {
                break;
            }
            let Some((header, body)) = batch_at(&segment.data, at, top.salt(), expected, chain)
            else {
                let bound = if stop.is_some() || checkpoint {
                    expected
                } else {
                    self.proven
                };
                self.judge(segment, at, expected, expected <= bound)?;
                break;
            };
            self.proven = self.proven.max(header.synced_seq);
            if checkpoint {
                self.checkpoint(body, first)
                    .map_err(|text| corrupt(at as u64, text))?;
            } else {
                pending.push((expected, at, header, body));
            }
            at += BATCH_HEADER + body.len();
            chain = header.crc;
            expected += 1;
        }
        (self.seq, self.chain) = (expected - 1, chain);
        let used = at as u64 - SEGMENT_DATA;
        let small = self.take_over_max.is_some_and(|max| used <= max) && self.cut.is_none();
        if stop.is_none() && !self.lenient {
            self.idle = idle_behind(segment, at);
        }
        let proven = match stop {
            _ if self.lenient => u64::MAX,
            Some(stop) => stop - 1,
            None if small => {
                self.taken_over = Some(self.proven.min(self.seq));
                top.first_seq - 1
            }
            None => self.proven,
        };
        if self.lenient {
            self.drop_senseless(segment, &mut pending, &mut chain);
        }
        for (seq, at, header, body) in pending {
            if seq <= proven {
                replay(&mut self.groups, top.id, at as u64, seq, body)
                    .map_err(|text| corrupt(at as u64, text))?;
                self.report.batches += 1;
            } else {
                self.unproven.push(Unproven {
                    seq,
                    chain: header.chain,
                    records: header.record_count,
                    body: body.to_vec(),
                });
            }
        }
        (self.proven, self.chain) = match self.unproven.first() {
            _ if self.taken_over.is_some() => (top.first_seq - 1, top.chain),
            Some(first) => (first.seq - 1, first.chain),
            None => (self.seq, chain),
        };
        Ok(())
    }

    /// For a salvage: drops the first batch that verifies and contradicts what is before it, and all behind it.
    fn drop_senseless(
        &mut self,
        segment: &Segment,
        pending: &mut Vec<Pending<'_>>,
        chain: &mut u32,
    ) {
        let mut groups = self.groups.clone();
        let top = &segment.header;
        let bad = pending.iter().enumerate().find_map(|(number, batch)| {
            let (seq, at, _, body) = batch;
            let taken = replay(&mut groups, top.id, *at as u64, *seq, body);
            taken.err().map(|text| (number, text))
        });
        let Some((number, text)) = bad else { return };
        let (seq, at, header, _) = pending[number];
        let path = segment_path(&self.options.dir, top.id);
        self.broken = Some(LogError::at(ErrorKind::Corruption, &path, at as u64, text));
        (self.seq, *chain) = (seq - 1, header.chain);
        pending.truncate(number);
    }

    fn checkpoint(&mut self, body: &[u8], first: bool) -> Result<(), String> {
        let records = decode_all(body)?;
        let mut groups = Groups::default();
        if !groups.restore(records.into_iter()) {
            return Err("expected a checkpoint, found other records; rebuild this member".into());
        }
        if first {
            self.groups = groups;
        } else if groups.checkpoint() != self.groups.checkpoint() {
            return Err(
                "the checkpoint differs from the batches before it; rebuild this member".into(),
            );
        }
        Ok(())
    }

    /// Returns when the log ends here, with or without a tail that is cut.
    fn judge(
        &mut self,
        segment: &Segment,
        at: usize,
        expected: u64,
        known: bool,
    ) -> Result<(), LogError> {
        let top = &segment.header;
        let end = footer::batches_end(&segment.data, top.salt()).max(at);
        let rest = segment.data.get(at..end).unwrap_or_default();
        let finding = look(
            rest,
            at,
            top.salt(),
            expected,
            known,
            segment.io_error.is_some(),
        );
        let path = segment_path(&self.options.dir, top.id);
        let verdict = table::judge(finding);
        if verdict == Verdict::CleanEnd {
            return Ok(());
        }
        let batches = segment.data.get(..end).unwrap_or_default();
        let behind = behind(batches, at, top.salt(), expected);
        let found = |what: &str| {
            let what = match &segment.io_error {
                None => what.to_owned(),
                Some(error) => format!("{what}, in a file of which a part cannot be read: {error}"),
            };
            match behind {
                None => what,
                Some(behind) => format!("{what} ({behind})"),
            }
        };
        let refusal = match verdict {
            Verdict::CleanEnd | Verdict::Cut => None,
            Verdict::Suspect if self.options.accept_suspect_tail && !self.lenient => None,
            Verdict::Corruption => Some(LogError::differs(
                ErrorKind::Corruption,
                &path,
                at as u64,
                format!("batch {expected}, which was synced"),
                found("bytes that do not verify"),
                "restore the file or rebuild this member",
            )),
            Verdict::Suspect => Some(LogError::differs(
                ErrorKind::SuspectTail,
                &path,
                at as u64,
                match behind {
                    None => format!("batch {expected}, the last one"),
                    Some(_) => format!("batch {expected}, among the last ones"),
                },
                found("bytes that do not verify and may have been acknowledged"),
                "read the file, then accept the suspect tail or rebuild this member",
            )),
        };
        match refusal {
            // Without its checkpoint nothing of a segment can be taken.
            Some(error) if self.lenient && at as u64 != SEGMENT_DATA => self.broken = Some(error),
            Some(error) => return Err(error),
            None => {}
        }
        self.cut = Some(Cut {
            segment: top.id,
            offset: at as u64,
            bytes: used(rest).to_vec(),
            behind,
        });
        Ok(())
    }
}

/// The whole blocks of zeros behind the last batch, before the footer if there is one.
fn idle_behind(segment: &Segment, at: usize) -> Option<Idle> {
    let block = SEGMENT_DATA as usize;
    let end = footer::batches_end(&segment.data, segment.header.salt()) / block * block;
    let from = at.next_multiple_of(block);
    let zeros = segment.data.get(from..end)?;
    let idle =
        segment.io_error.is_none() && !zeros.is_empty() && zeros.iter().all(|byte| *byte == 0);
    idle.then_some(Idle {
        segment: segment.header.id,
        from: from as u64,
        to: end as u64,
    })
}

/// What lies where batch `expected` should begin.
fn look(
    rest: &[u8],
    at: usize,
    salt: u64,
    expected: u64,
    known_synced: bool,
    io_error: bool,
) -> Finding {
    let (mut later_header, mut known_synced) = (false, known_synced);
    let used = used(rest);
    let last_header = rest.len().saturating_sub(BATCH_HEADER - 1);
    for step in (8..last_header.min(used.len())).step_by(8) {
        if rest[step] == 0 {
            continue;
        }
        let Some(found) = BatchHeader::decode(&rest[step..], (at + step) as u64, salt) else {
            continue;
        };
        later_header |= found.seq > expected;
        known_synced |= found.seq > expected && found.synced_seq >= expected;
    }
    let head = &rest[..rest.len().min(BATCH_HEADER)];
    Finding {
        known_synced,
        later_header,
        io_error,
        empty: head.iter().all(|byte| *byte == 0),
        torn_shape: torn_shape(rest, at, salt),
        bare: BatchHeader::decode(rest, at as u64, salt).is_none() && used.len() <= BATCH_HEADER,
    }
}

/// What is left without the zeros at the end. Most of a segment may be zeros, so they are looked at by blocks.
fn used(bytes: &[u8]) -> &[u8] {
    let mut len = bytes.len();
    while let Some(block) = bytes[..len].chunks(4096).next_back() {
        if block.iter().fold(0, |all, byte| all | byte) == 0 {
            len -= block.len();
            continue;
        }
        let last = block.iter().rposition(|byte| *byte != 0);
        return &bytes[..len - block.len() + last.map_or(0, |at| at + 1)];
    }
    &[]
}

/// True when more sectors of what is damaged are zero than a whole batch had, or it runs past the end of the file.
fn torn_shape(rest: &[u8], at: usize, salt: u64) -> bool {
    let Some(header) = BatchHeader::decode(rest, at as u64, salt) else {
        let head = &rest[..rest.len().min(BATCH_HEADER)];
        return format::pieces(at as u64, head).any(format::is_zero);
    };
    let end = BATCH_HEADER + header.body_len as usize;
    let Some(body) = rest.get(BATCH_HEADER..end) else {
        return true;
    };
    // A batch without any such piece says no more than one of a version that did not count them, in which records that
    // verify may have some.
    let mut from = 0;
    while header.zeros == 0
        && let Some(raw) = format::raw_record(body, from)
    {
        from = (from + raw.len).next_multiple_of(8);
    }
    let from = from.min(body.len());
    let zeros = format::pieces((at + BATCH_HEADER + from) as u64, &body[from..]);
    zeros.filter(|piece| format::is_zero(piece)).count() > header.zeros as usize
}

fn decode_all(body: &[u8]) -> Result<Vec<(GroupId, DiskRecord)>, String> {
    format::decode_records(body).ok_or_else(|| UNVERIFIED.to_owned())
}

const UNVERIFIED: &str = "a record does not verify inside a batch that does; rebuild this member";

/// Takes the records of one batch that verified.
pub(super) fn replay(
    groups: &mut Groups,
    segment: u64,
    offset: u64,
    seq: u64,
    body: &[u8],
) -> Result<(), String> {
    let mut at = 0;
    while at < body.len() {
        let (raw, next) = format::next_record(body, at).ok_or(UNVERIFIED)?;
        let start = offset + (BATCH_HEADER + at) as u64;
        at = next;
        match format::decode_record(body, raw).ok_or(UNVERIFIED)? {
            DiskRecord::Checkpoint(_) => return Err("a checkpoint lies among other batches".into()),
            DiskRecord::Entry(entry) => {
                let len = format::RECORD_HEADER + ENTRY_HEADER + entry.payload.len();
                let position = Position::new(segment, start, len as u32);
                groups.replay_entry(raw.group, entry, position)?;
            }
            DiskRecord::Other(record) => {
                let records = [(raw.group, record)];
                groups.check(&records).map_err(|(_, text)| text)?;
                let [(id, record)] = records;
                groups.apply(seq, id, record, || unreachable!("no entries"));
            }
        }
    }
    groups.trim_cache(1 << 20, seq);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_bytes_of_any_length_end_at_the_last_that_is_not_zero() {
        for len in [0, 1, 4095, 4096, 4097, 8192, 9000] {
            assert_eq!(used(&vec![0; len]), [0; 0], "{len} zeros");
            for last in [0, 1, 4094, 4095, 4096, 8191, 8999] {
                let mut bytes = vec![0; len];
                let Some(byte) = bytes.get_mut(last) else {
                    continue;
                };
                *byte = 1;
                assert_eq!(used(&bytes).len(), last + 1, "{last} of {len}");
            }
        }
    }
}
