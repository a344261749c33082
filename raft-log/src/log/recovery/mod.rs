//! Opens what a crash left: scans the segments, judges what does not verify, and starts a new segment.
//!
//! Old segments are never written to again. Every open makes a new one, whose checkpoint sums up what is proven to be
//! synced and which holds copies of the batches that are not; what older files hold from there on is superseded.

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::format::{
    self, BATCH_HEADER, BatchHeader, BodyEncoder, DiskRecord, ENTRY_HEADER, HeaderFault,
    SEGMENT_DATA, SegmentHeader,
};
use super::index::{Groups, Position};
use super::inspect::batch_at;
use super::segment::{prepare, segment_id, segment_path};
use super::votes::{self, Slot, Votes};
use super::writer::{frame, header, publish};
use super::{LogOptions, segment_size};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, GroupId, LogError, Record};
use table::{Finding, Verdict};

const EVIDENCE_FILES_MAX: usize = 16;
const EVIDENCE_BYTES_MAX: usize = 64 << 20;

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments that were read.
    pub segments: usize,
    /// Batches that were replayed.
    pub batches: u64,
    /// Batches that verified without proof of a sync, and were copied to the new segment.
    pub copied: u64,
    /// Bytes of an un-synced tail that were left behind, and where the evidence is.
    pub cut: Option<String>,
    /// Vote blocks that did not verify and were replaced from the intact log.
    pub vote_blocks_replaced: usize,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "read {} batches in {} segments, copied {} unproven ones",
            self.batches, self.segments, self.copied
        )?;
        if self.vote_blocks_replaced > 0 {
            write!(
                f,
                ", replaced {} damaged vote blocks",
                self.vote_blocks_replaced
            )?;
        }
        self.cut.as_ref().map_or(Ok(()), |cut| write!(f, "; {cut}"))
    }
}

/// The state from which the log goes on.
pub(super) struct Recovered {
    pub(super) groups: Groups,
    pub(super) files: BTreeMap<u64, Arc<dyn VfsFile>>,
    pub(super) votes: Votes,
    pub(super) segment: u64,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) seq: u64,
    pub(super) chain: u32,
    pub(super) report: RecoveryReport,
}

struct Segment {
    header: SegmentHeader,
    file: Arc<dyn VfsFile>,
    data: Vec<u8>,
    io_error: bool,
}

/// A batch that verified and is not provably synced.
struct Unproven {
    seq: u64,
    records: u32,
    body: Vec<u8>,
}

pub(super) fn recover(vfs: &SharedVfs, options: &LogOptions) -> Result<Recovered, LogError> {
    let dir = &options.dir;
    let names = vfs
        .list(dir)
        .map_err(|error| LogError::io("cannot list the log's directory", dir, error))?;
    let ids: Vec<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
    let mut report = RecoveryReport {
        segments: ids.len(),
        ..RecoveryReport::default()
    };
    // Headers first: a foreign or newer log is left exactly as it is.
    let mut headers = Vec::new();
    for id in &ids {
        headers.push(read_header(vfs, options, *id)?);
    }
    for (pair, id) in headers.windows(2).zip(ids.iter().skip(1)) {
        if pair[1].predecessor != pair[0].id || pair[1].first_seq < pair[0].first_seq {
            return Err(LogError::at(
                ErrorKind::Corruption,
                &segment_path(dir, *id),
                0,
                format!(
                    "expected the successor of segment {:016x}, found one of {:016x}; a segment is missing, \
                     restore it or rebuild this member",
                    pair[0].id, pair[1].predecessor
                ),
            ));
        }
    }
    let mut scan = Scan {
        options,
        groups: Groups::default(),
        seq: 0,
        chain: 0,
        proven: 0,
        unproven: Vec::new(),
        cut: None,
        report: &mut report,
    };
    let mut files = BTreeMap::new();
    for (at, top) in headers.iter().enumerate() {
        let segment = load(vfs, options, *top)?;
        files.insert(top.id, Arc::clone(&segment.file));
        scan.segment(&segment, headers.get(at + 1), at == 0)?;
    }
    let Scan {
        groups,
        chain,
        proven,
        unproven,
        cut,
        ..
    } = scan;
    finish(
        vfs,
        options,
        files,
        headers.last().copied(),
        Tail {
            groups,
            chain,
            proven,
            unproven,
            cut,
        },
        report,
    )
}

struct Tail {
    groups: Groups,
    chain: u32,
    proven: u64,
    unproven: Vec<Unproven>,
    cut: Option<(u64, u64, Vec<u8>)>,
}

fn finish(
    vfs: &SharedVfs,
    options: &LogOptions,
    mut files: BTreeMap<u64, Arc<dyn VfsFile>>,
    last: Option<SegmentHeader>,
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
    let slots = merge_votes(vfs, options, &mut groups, cut.is_some(), &mut report)?;
    let mut changed = BodyEncoder::default();
    for (group, state) in &slots.1 {
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
    if let Some((segment, offset, bytes)) = cut {
        report.cut = Some(keep_evidence(vfs, options, segment, offset, &bytes)?);
    }
    let votes = Votes::create(vfs, dir, options.store_id, &slots.0)?;
    let used = SEGMENT_DATA + out.len() as u64;
    let size = segment_size(
        options,
        options.segment_bytes_min,
        checkpoint.bytes.len() as u64,
        used - SEGMENT_DATA,
    );
    let prepared = prepare(&**vfs, &dir.join("next.tmp"), size)?;
    let top = SegmentHeader {
        store: options.store_id,
        id,
        predecessor: last.map_or(0, |top| top.id),
        first_seq: proven + 1,
        synced_seq: seq,
        chain,
    };
    files.insert(id, publish(vfs, dir, &prepared, &top, &out)?);
    Ok(Recovered {
        groups,
        files,
        votes,
        segment: id,
        size,
        offset: used,
        seq,
        chain: link,
        report,
    })
}

fn read_header(vfs: &SharedVfs, options: &LogOptions, id: u64) -> Result<SegmentHeader, LogError> {
    let path = segment_path(&options.dir, id);
    let file = vfs
        .open(&path, OpenMode::Read)
        .map_err(|error| LogError::io("cannot open a segment", &path, error))?;
    let mut bytes = [0; 64];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(LogError::io("cannot read a segment", &path, error)),
    }
    let error = |kind, text: String| Err(LogError::at(kind, &path, 0, text));
    match SegmentHeader::decode(&bytes) {
        Err(HeaderFault::Damaged) => error(
            ErrorKind::Corruption,
            "expected a segment header, found bytes that do not verify; \
             restore the file or rebuild this member"
                .into(),
        ),
        Err(HeaderFault::Newer(version)) => error(
            ErrorKind::NewerFormat,
            format!(
                "expected format {} or older, found {version}; open it with a newer version",
                format::FORMAT_VERSION
            ),
        ),
        Ok(top) if top.store != options.store_id => error(
            ErrorKind::ForeignStore,
            format!(
                "expected store {}, found {}; the file belongs to \
                 another data directory, move it back",
                options.store_id, top.store
            ),
        ),
        Ok(top) if top.id != id => error(
            ErrorKind::Corruption,
            format!(
                "expected segment {id:016x}, found {:016x}; a file was renamed, restore its name",
                top.id
            ),
        ),
        Ok(top) => Ok(top),
    }
}

fn load(vfs: &SharedVfs, options: &LogOptions, header: SegmentHeader) -> Result<Segment, LogError> {
    let path = segment_path(&options.dir, header.id);
    let failed = |error| LogError::io("cannot read a segment", &path, error);
    let file: Arc<dyn VfsFile> = Arc::from(vfs.open(&path, OpenMode::Read).map_err(failed)?);
    let len = file.len().map_err(failed)? as usize;
    let mut data = vec![0; len];
    // Sector by sector after a failure, so that what is readable is judged by itself.
    let mut io_error = false;
    if file.read_exact_at(&mut data, 0).is_err() {
        for (at, chunk) in data.chunks_mut(4096).enumerate() {
            io_error |= file.read_exact_at(chunk, at as u64 * 4096).is_err();
        }
    }
    Ok(Segment {
        header,
        file,
        data,
        io_error,
    })
}

struct Scan<'a> {
    options: &'a LogOptions,
    groups: Groups,
    seq: u64,
    chain: u32,
    proven: u64,
    unproven: Vec<Unproven>,
    cut: Option<(u64, u64, Vec<u8>)>,
    report: &'a mut RecoveryReport,
}

impl Scan<'_> {
    fn segment(
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
            return Err(corrupt(
                0,
                format!(
                    "expected to continue after batch {}, found {expected}; restore the log or rebuild this member",
                    self.seq
                ),
            ));
        }
        self.proven = self.proven.max(top.synced_seq);
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
                if self.judge(segment, at, expected, expected <= bound)? {
                    break;
                }
                unreachable!("a verdict ends the scan or is an error");
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
        let proven = stop.map_or(self.proven, |stop| stop - 1);
        self.proven = self.proven.min(self.seq);
        for (seq, at, header, body) in pending {
            if seq <= proven {
                replay(&mut self.groups, top.id, at as u64, seq, body)
                    .map_err(|text| corrupt(at as u64, text))?;
                (self.chain, self.report.batches) = (header.crc, self.report.batches + 1);
            } else {
                self.unproven.push(Unproven {
                    seq,
                    records: header.record_count,
                    body: body.to_vec(),
                });
            }
        }
        if let Some(first) = self.unproven.first() {
            self.proven = first.seq - 1;
            self.chain = chain_before(&segment.data, top, first.seq);
        } else {
            self.proven = self.seq;
            self.chain = chain;
        }
        Ok(())
    }

    fn checkpoint(&mut self, body: &[u8], first: bool) -> Result<(), String> {
        let records = decode_all(body)?;
        let mut groups = Groups::default();
        if !groups.restore(records) {
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

    /// True when the log ends here.
    fn judge(
        &mut self,
        segment: &Segment,
        at: usize,
        expected: u64,
        known: bool,
    ) -> Result<bool, LogError> {
        let top = &segment.header;
        let rest = segment.data.get(at..).unwrap_or_default();
        let (mut later_header, mut known_synced) = (false, known);
        for step in (8..rest.len().saturating_sub(BATCH_HEADER - 1)).step_by(8) {
            if rest[step] == 0 {
                continue;
            }
            let Some(found) = BatchHeader::decode(&rest[step..], (at + step) as u64, top.salt())
            else {
                continue;
            };
            later_header |= found.seq > expected;
            known_synced |= found.seq > expected && found.synced_seq >= expected;
        }
        let head = &rest[..rest.len().min(BATCH_HEADER)];
        let finding = Finding {
            known_synced,
            later_header,
            empty: head.iter().all(|byte| *byte == 0),
            torn_shape: torn_shape(rest, at, top.salt()),
            io_error: segment.io_error,
        };
        let path = segment_path(&self.options.dir, top.id);
        let suspect = match table::judge(finding) {
            Verdict::CleanEnd => return Ok(true),
            Verdict::CutTorn => false,
            Verdict::Corruption => {
                return Err(LogError::at(
                    ErrorKind::Corruption,
                    &path,
                    at as u64,
                    format!(
                        "expected batch {expected}, which was synced, found bytes that do not verify; \
                         restore the file or rebuild this member"
                    ),
                ));
            }
            Verdict::Suspect => true,
        };
        if suspect && !self.options.accept_suspect_tail {
            return Err(LogError::at(
                ErrorKind::SuspectTail,
                &path,
                at as u64,
                format!(
                    "batch {expected}, the last one, does not verify and may have been acknowledged; \
                     read the file, then accept the suspect tail or rebuild this member"
                ),
            ));
        }
        let end = rest
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        self.cut = Some((top.id, at as u64, rest[..end].to_vec()));
        Ok(true)
    }
}

fn chain_before(data: &[u8], top: &SegmentHeader, seq: u64) -> u32 {
    let (mut at, mut chain, mut next) = (SEGMENT_DATA as usize, top.chain, top.first_seq - 1);
    while next < seq {
        let (header, body) = batch_at(data, at, top.salt(), next, chain).expect("scanned before");
        at += BATCH_HEADER + body.len();
        (chain, next) = (header.crc, next + 1);
    }
    chain
}

/// True when a whole sector of what is damaged is zero, or the batch runs past the end of the file.
fn torn_shape(rest: &[u8], at: usize, salt: u64) -> bool {
    let range = match BatchHeader::decode(rest, at as u64, salt) {
        None => 0..rest.len().min(BATCH_HEADER),
        Some(header) => {
            let end = BATCH_HEADER + header.body_len as usize;
            let Some(body) = rest.get(BATCH_HEADER..end) else {
                return true;
            };
            let mut start = 0;
            while let Some(raw) = format::raw_record(body, start) {
                start = (start + raw.len).next_multiple_of(8);
            }
            BATCH_HEADER + start.min(body.len())..end
        }
    };
    let mut from = range.start;
    while from < range.end {
        let to = ((at + from + 1).next_multiple_of(512) - at).min(range.end);
        if rest[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

fn decode_all(body: &[u8]) -> Result<Vec<(GroupId, DiskRecord)>, String> {
    format::decode_records(body).ok_or_else(|| {
        "a record does not verify inside a batch that does; rebuild this member".to_owned()
    })
}

fn replay(
    groups: &mut Groups,
    segment: u64,
    offset: u64,
    seq: u64,
    body: &[u8],
) -> Result<(), String> {
    let mut at = offset + BATCH_HEADER as u64;
    for (id, record) in decode_all(body)? {
        let start = at;
        let (record, len) = match record {
            DiskRecord::Checkpoint(_) => return Err("a checkpoint lies among other batches".into()),
            DiskRecord::Other(record) => (record, 0),
            DiskRecord::Entry(entry) => {
                let len = format::RECORD_HEADER + ENTRY_HEADER + entry.payload.len();
                (Record::Entries(vec![entry]), len as u32)
            }
        };
        // Offsets follow from the encoded lengths, because the body was written from the same records.
        at += raw_len(body, (start - offset) as usize - BATCH_HEADER);
        let records = [(id, record)];
        groups.check(&records).map_err(|(_, text)| text)?;
        let [(id, record)] = records;
        let position = Position {
            segment,
            offset: start,
            len,
        };
        groups.apply(seq, id, record, || position);
        if let Some(group) = groups.map.get_mut(&id) {
            group.unsynced.clear();
        }
    }
    groups.trim_cache(1 << 20, seq);
    Ok(())
}

fn raw_len(body: &[u8], at: usize) -> u64 {
    format::raw_record(body, at).map_or(0, |raw| raw.len.next_multiple_of(8) as u64)
}

type Merged = (Vec<Slot>, Vec<(GroupId, crate::HardState)>);

/// Joins the slots with the log: the higher term wins, at equal term a vote beats none.
fn merge_votes(
    vfs: &SharedVfs,
    options: &LogOptions,
    groups: &mut Groups,
    cut: bool,
    report: &mut RecoveryReport,
) -> Result<Merged, LogError> {
    let read = votes::read(vfs, &options.dir, options.store_id)?;
    let path = options.dir.join("votes");
    let damage = |text: String| LogError::at(ErrorKind::Corruption, &path, 0, text);
    // The first segment is on disk before the first vote is.
    if report.segments == 0 && read.slots.iter().any(|slot| slot.term.0 > 0) {
        return Err(damage(
            "votes are kept here, but the log has no segment; its segments are missing, restore them or rebuild this \
             member"
                .to_owned(),
        ));
    }
    let (mut slots, mut changed) = (Vec::new(), Vec::new());
    for (id, group) in &mut groups.map {
        let mut state = group.hard_state;
        let mut seen = false;
        for slot in read
            .slots
            .iter()
            .filter(|slot| slot.group == *id && slot.creation == group.base.creation)
        {
            seen = true;
            if slot.term == state.term
                && slot.vote.is_some()
                && state.vote.is_some()
                && slot.vote != state.vote
            {
                return Err(damage(format!(
                    "group {id}: two different votes in term {}; remove this member and add it again",
                    slot.term
                )));
            }
            if slot.term > state.term {
                (state.term, state.vote) = (slot.term, slot.vote);
            } else if slot.term == state.term {
                state.vote = state.vote.or(slot.vote);
            }
        }
        if cut
            && (read.damaged > 0 || (!seen && group.hard_state.term.0 > 0))
            && !options.accept_suspect_tail
        {
            return Err(damage(format!(
                "group {id}: a vote slot is damaged and the log's tail is torn, so term and vote are \
                 unknown; remove this member and add it again"
            )));
        }
        if state != group.hard_state {
            group.hard_state = state;
            changed.push((*id, state));
        }
        if state.term.0 > 0 {
            slots.push(Slot {
                group: *id,
                creation: group.base.creation,
                term: state.term,
                vote: state.vote,
            });
        }
    }
    report.vote_blocks_replaced = read.damaged;
    Ok((slots, changed))
}

fn keep_evidence(
    vfs: &SharedVfs,
    options: &LogOptions,
    segment: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<String, LogError> {
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
