//! The bytes of segments, batches and records, as `docs/FORMAT.md` specifies them.
//!
//! Pure functions over slices: no IO and no policy. Whoever decodes learns what does not verify, and `recovery`
//! decides what that means.

use bytes::Bytes;

use crate::lz4::LZ4_RATIO_MAX;
use crate::testing::{Bug, bug};
use crate::{
    Base, Entry, EntryKind, GroupId, HardState, Incarnation, Index, NodeId, Record, SnapshotRef,
    StoreId, Term,
};

/// The version that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Where the first batch of a segment begins; the header has a block of its own.
pub(crate) const SEGMENT_DATA: u64 = 4096;
/// Length of a batch header.
pub(crate) const BATCH_HEADER: usize = 64;
/// Length of a record header.
pub(crate) const RECORD_HEADER: usize = 24;
/// Bytes before an entry's payload, within its record.
pub(crate) const ENTRY_HEADER: usize = 24;
/// Longest payload of a record.
pub(crate) const RECORD_PAYLOAD_MAX: usize = 64 << 20;
/// Longest body of a batch.
pub(crate) const BATCH_BODY_MAX: usize = 256 << 20;
/// Longest segment file, in bytes: eight times the longest checkpoint and the longest batch fit.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// Longest checkpoint; groups past it are refused.
pub(crate) const CHECKPOINT_MAX: usize = 64 << 20;
/// Highest id of a segment.
pub(crate) const SEGMENT_ID_MAX: u64 = u32::MAX as u64;

const SEGMENT_MAGIC: [u8; 8] = *b"FLOTSEG\x01";
const SEGMENT_HEADER: usize = 64;
const BATCH_MAGIC: u32 = 0x464c_4254;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_COMPACT: u8 = 4;
const KIND_SNAPSHOT: u8 = 5;
const KIND_DESTROY: u8 = 6;
const KIND_CHECKPOINT: u8 = 7;
pub(super) const KIND_ENTRY_LZ4: u8 = 8;
const KIND_INCARNATION: u8 = 9;

/// The header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The store that the segment belongs to.
    pub store: StoreId,
    /// The number in the file's name.
    pub id: u64,
    /// The segment that this one continues; zero for the first.
    pub predecessor: u64,
    /// The sequence of the first batch after the checkpoint. What earlier segments hold from it on is superseded.
    pub first_seq: u64,
    /// The newest batch that was synced before the file got its name.
    pub synced_seq: u64,
    /// The chain value before the segment's checkpoint.
    pub chain: u32,
    /// Length of the file in bytes, a multiple of [`SEGMENT_DATA`]; zero in files from before it was kept.
    pub len: u64,
}

/// Why a header was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Magic or CRC do not match.
    Damaged,
    /// A version above [`FORMAT_VERSION`].
    Newer(u16),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..20].copy_from_slice(&self.store.0.to_le_bytes());
        out[20..28].copy_from_slice(&self.id.to_le_bytes());
        out[28..36].copy_from_slice(&self.predecessor.to_le_bytes());
        out[36..44].copy_from_slice(&self.first_seq.to_le_bytes());
        out[44..52].copy_from_slice(&self.synced_seq.to_le_bytes());
        out[52..56].copy_from_slice(&self.chain.to_le_bytes());
        assert!(self.len.is_multiple_of(SEGMENT_DATA) && self.len <= SEGMENT_BYTES_MAX);
        out[56..60].copy_from_slice(&((self.len / SEGMENT_DATA) as u32).to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(data: &[u8]) -> Result<Self, HeaderFault> {
        if data.len() < SEGMENT_HEADER || data[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Damaged);
        }
        // Magic, version and CRC keep their places in every version, so that damage is never taken for novelty.
        if u32_at(data, 60) != crc32fast::hash(&data[..60]) {
            return Err(HeaderFault::Damaged);
        }
        let version = u16_at(data, 8);
        if version != FORMAT_VERSION {
            return Err(HeaderFault::Newer(version));
        }
        let len = u64::from(u32_at(data, 56)) * SEGMENT_DATA;
        // Batches are numbered from 1; a checkpoint has the number before its segment's first.
        if u64_at(data, 36) == 0 || len > SEGMENT_BYTES_MAX {
            return Err(HeaderFault::Damaged);
        }
        Ok(Self {
            store: StoreId(u64_at(data, 12)),
            id: u64_at(data, 20),
            predecessor: u64_at(data, 28),
            first_seq: u64_at(data, 36),
            synced_seq: u64_at(data, 44),
            chain: u32_at(data, 52),
            len,
        })
    }

    /// True when a file of `found` bytes has been cut or grown: it has its whole length before it has its name, and no
    /// crash changes that.
    pub(crate) fn contradicts_len(&self, found: u64) -> bool {
        match self.len {
            0 => !found.is_multiple_of(SEGMENT_DATA),
            len => len != found,
        }
    }

    /// What each batch header of this segment carries, so that bytes of another file never verify here.
    pub(crate) fn salt(&self) -> u64 {
        salt(self.store, self.id)
    }
}

pub(crate) fn salt(store: StoreId, segment: u64) -> u64 {
    if bug(Bug::ReuseSalt) {
        return 1;
    }
    segment ^ store.0.rotate_left(17)
}

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Position in the store's dense sequence of batches.
    pub seq: u64,
    /// Where the header lies in its file, in bytes.
    pub offset: u64,
    /// The newest batch known to be synced when this one was written.
    pub synced_seq: u64,
    /// Length of the body in bytes, a multiple of 8.
    pub body_len: u32,
    /// How many records the body holds.
    pub record_count: u32,
    /// The header CRC of the batch before.
    pub chain: u32,
    /// CRC of the body.
    pub body_crc: u32,
    /// Pieces of the body that look as if they had never been written: see [`zero_pieces`].
    pub zeros: u32,
    /// CRC of this header; the next batch's chain value.
    pub crc: u32,
}

impl BatchHeader {
    /// Writes the header to `out` and returns its CRC.
    pub(crate) fn encode(&mut self, salt: u64, out: &mut [u8]) -> u32 {
        out[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&[0; 2]);
        out[8..16].copy_from_slice(&salt.to_le_bytes());
        out[16..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.offset.to_le_bytes());
        out[32..40].copy_from_slice(&self.synced_seq.to_le_bytes());
        out[40..44].copy_from_slice(&self.body_len.to_le_bytes());
        out[44..48].copy_from_slice(&self.record_count.to_le_bytes());
        out[48..52].copy_from_slice(&self.chain.to_le_bytes());
        out[52..56].copy_from_slice(&self.body_crc.to_le_bytes());
        out[56..60].copy_from_slice(&self.zeros.to_le_bytes());
        self.crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// The header at `offset`, if its own CRC, its salt and its place verify.
    pub(crate) fn decode(data: &[u8], offset: u64, salt: u64) -> Option<Self> {
        if data.len() < BATCH_HEADER
            || u32_at(data, 0) != BATCH_MAGIC
            || u16_at(data, 4) != FORMAT_VERSION
            || u64_at(data, 8) != salt
            || u64_at(data, 24) != offset
            || u32_at(data, 60) != crc32fast::hash(&data[..60])
        {
            return None;
        }
        let header = Self {
            seq: u64_at(data, 16),
            offset,
            synced_seq: u64_at(data, 32),
            body_len: u32_at(data, 40),
            record_count: u32_at(data, 44),
            chain: u32_at(data, 48),
            body_crc: u32_at(data, 52),
            zeros: u32_at(data, 56),
            crc: u32_at(data, 60),
        };
        let plausible =
            header.body_len.is_multiple_of(8) && header.body_len as usize <= BATCH_BODY_MAX;
        plausible.then_some(header)
    }
}

/// What the disk writes as a whole.
const SECTOR: u64 = 512;

/// The parts of `bytes`, which lie at `offset` of a file, that are in a sector each.
pub(crate) fn pieces(offset: u64, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = SECTOR - offset % SECTOR;
    let (first, rest) = bytes.split_at(bytes.len().min(first as usize));
    std::iter::once(first)
        .filter(|first| !first.is_empty())
        .chain(rest.chunks(SECTOR as usize))
}

/// Whether bytes are as they were before anything was written there.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// How many pieces of a body, which lies at `offset`, are all zero. A write that was torn leaves more of them. (So does a byte
/// that went bad, if it was the only one of its piece that is not zero.)
pub(crate) fn zero_pieces(offset: u64, body: &[u8]) -> u32 {
    let count = pieces(offset, body).filter(|piece| is_zero(piece)).count();
    count.try_into().expect("a body is shorter than 4 GiB")
}

/// What a checkpoint says about one live group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupCheckpoint {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// Where the group's log begins.
    pub base: Base,
    /// Where it ends, which is the mark of every earlier truncation.
    pub last_index: Index,
    /// The newest snapshot that was recorded.
    pub snapshot: Option<SnapshotRef>,
    /// Which log it is.
    pub incarnation: Incarnation,
}

/// One record as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskRecord {
    /// One entry.
    Entry(Entry),
    /// One record of a [`crate::WriteBatch`] other than entries.
    Other(Record),
    /// One group of the checkpoint that opens a segment.
    Checkpoint(GroupCheckpoint),
}

/// Encodes the records of one batch behind each other.
#[derive(Debug, Default)]
pub(crate) struct BodyEncoder {
    pub(crate) bytes: Vec<u8>,
    pub(crate) records: u32,
    /// Contents from so many bytes on are compressed where that saves an eighth.
    lz4_bytes_min: Option<usize>,
}

impl BodyEncoder {
    pub(crate) fn compressing(lz4_bytes_min: Option<usize>) -> Self {
        Self {
            lz4_bytes_min,
            ..Self::default()
        }
    }

    /// Adds one record of a write batch; entries become one record each, at the offsets pushed to `entry_offsets`.
    pub(crate) fn push(
        &mut self,
        group: GroupId,
        record: &Record,
        entry_offsets: &mut Vec<(u32, u32)>,
    ) {
        match record {
            Record::Entries(entries) => {
                for entry in entries {
                    let start = self.bytes.len();
                    let block = self.compressed(&entry.payload);
                    let kind = block.as_ref().map_or(KIND_ENTRY, |_| KIND_ENTRY_LZ4);
                    self.record(group, kind, |out| {
                        out.extend_from_slice(&entry.index.0.to_le_bytes());
                        out.extend_from_slice(&entry.term.0.to_le_bytes());
                        out.extend_from_slice(&u64::from(entry.kind as u8).to_le_bytes());
                        match &block {
                            None => out.extend_from_slice(&entry.payload),
                            Some(block) => put_block(out, entry.payload.len(), block),
                        }
                    });
                    let stored = block.map_or(entry.payload.len(), |block| 8 + block.len());
                    let len = RECORD_HEADER + ENTRY_HEADER + stored;
                    entry_offsets.push((start as u32, len as u32));
                }
            }
            Record::HardState(state) => {
                self.record(group, KIND_HARD_STATE, |out| put_hard_state(out, state));
            }
            Record::Truncate(_) if bug(Bug::ForgetTruncation) => {}
            Record::Truncate(from) => {
                self.record(group, KIND_TRUNCATE, |out| {
                    out.extend_from_slice(&from.0.to_le_bytes())
                });
            }
            Record::Compact(base) => self.record(group, KIND_COMPACT, |out| put_base(out, base)),
            Record::SnapshotRef(snapshot) => {
                self.record(group, KIND_SNAPSHOT, |out| put_snapshot(out, snapshot));
            }
            Record::Incarnation(incarnation) => {
                self.record(group, KIND_INCARNATION, |out| {
                    put_incarnation(out, *incarnation)
                });
            }
            Record::Destroy => self.record(group, KIND_DESTROY, |_| {}),
        }
    }

    /// Adds one group of a checkpoint.
    pub(crate) fn push_checkpoint(&mut self, group: GroupId, state: &GroupCheckpoint) {
        self.record(group, KIND_CHECKPOINT, |out| {
            put_hard_state(out, &state.hard_state);
            put_base(out, &state.base);
            out.extend_from_slice(&state.last_index.0.to_le_bytes());
            match &state.snapshot {
                None => out.extend_from_slice(&0u64.to_le_bytes()),
                Some(snapshot) => {
                    out.extend_from_slice(&1u64.to_le_bytes());
                    put_snapshot(out, snapshot);
                }
            }
            if state.incarnation != Incarnation::default() {
                put_incarnation(out, state.incarnation);
            }
        });
    }

    /// The content as an LZ4 block, if that is wanted and pays.
    fn compressed(&self, content: &[u8]) -> Option<Vec<u8>> {
        if self.lz4_bytes_min.is_none_or(|least| content.len() < least) {
            return None;
        }
        let block = lz4_flex::block::compress(content);
        (8 + block.len() < content.len() - content.len() / 8).then_some(block)
    }

    fn record(&mut self, group: GroupId, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&group.0.to_le_bytes());
        self.bytes.extend_from_slice(&u32::from(kind).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 12]);
        fill(&mut self.bytes);
        let payload = start + RECORD_HEADER;
        let len = (self.bytes.len() - payload) as u32;
        self.bytes[start + 12..start + 16].copy_from_slice(&len.to_le_bytes());
        let crc = record_crc(&self.bytes[start..]);
        self.bytes[start + 16..start + 20].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.records += 1;
    }
}

/// The bytes that a record of a batch takes on disk, and the longest of what is bounded by [`RECORD_PAYLOAD_MAX`]: an
/// entry's own payload, or that of another record.
pub(crate) fn encoded_len(record: &Record) -> (usize, usize) {
    let whole = |payload: usize| (RECORD_HEADER + payload).next_multiple_of(8);
    match record {
        Record::Entries(entries) => entries.iter().fold((0, 0), |(sum, longest), entry| {
            let payload = ENTRY_HEADER + entry.payload.len();
            (sum + whole(payload), longest.max(entry.payload.len()))
        }),
        Record::Compact(base) => (
            whole(32 + base.membership.len()),
            32 + base.membership.len(),
        ),
        Record::SnapshotRef(s) => (whole(48 + s.membership.len()), 48 + s.membership.len()),
        Record::HardState(_) | Record::Truncate(_) | Record::Incarnation(_) | Record::Destroy => {
            (whole(32), 32)
        }
    }
}

fn record_crc(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..16]);
    hasher.update(&record[RECORD_HEADER..]);
    hasher.finalize()
}

/// One record found in a body: where it lies, whose it is, and its payload's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRecord {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) group: GroupId,
}

/// The record at `start` if its length fits and its CRC verifies.
pub(crate) fn raw_record(body: &[u8], start: usize) -> Option<RawRecord> {
    let rest = body.get(start..)?;
    if rest.len() < RECORD_HEADER {
        return None;
    }
    let payload = u32_at(rest, 12) as usize;
    if payload > RECORD_PAYLOAD_MAX + ENTRY_HEADER || RECORD_HEADER + payload > rest.len() {
        return None;
    }
    let len = RECORD_HEADER + payload;
    let verifies = u32_at(rest, 16) == record_crc(&rest[..len]) || bug(Bug::RewriteUnverified);
    if !verifies || u32_at(rest, 20) != 0 {
        return None;
    }
    Some(RawRecord {
        start,
        len,
        group: GroupId(u64_at(rest, 0)),
    })
}

/// The record at `start` as [`raw_record`] finds it, if the zeros that pad it are there; and where the next one begins.
pub(crate) fn next_record(body: &[u8], start: usize) -> Option<(RawRecord, usize)> {
    let raw = raw_record(body, start)?;
    let end = start + raw.len;
    let next = end.next_multiple_of(8);
    let padding = body.get(end..next)?;
    padding.iter().all(|byte| *byte == 0).then_some((raw, next))
}

/// All records of a body; none when one does not verify, although the batch around it does.
pub(crate) fn decode_records(body: &[u8]) -> Option<Vec<(GroupId, DiskRecord)>> {
    let (mut at, mut out) = (0, Vec::new());
    while at < body.len() {
        let (raw, next) = next_record(body, at)?;
        at = next;
        out.push((raw.group, decode_record(body, raw)?));
    }
    Some(out)
}

/// Decodes a record whose CRC verified; `None` when its content makes no sense.
pub(crate) fn decode_record(body: &[u8], raw: RawRecord) -> Option<DiskRecord> {
    let bytes = &body[raw.start..raw.start + raw.len];
    let mut input = &bytes[RECORD_HEADER..];
    let kind = u8::try_from(u32_at(bytes, 8)).ok()?;
    let record = match kind {
        KIND_ENTRY | KIND_ENTRY_LZ4 => {
            let compressed = kind == KIND_ENTRY_LZ4;
            let (index, term) = (take_index(&mut input)?, Term(take_u64(&mut input)?));
            let kind = match take_u64(&mut input)? {
                0 => EntryKind::Normal,
                1 => EntryKind::Config,
                _ => return None,
            };
            let payload = if compressed {
                take_block(input)?
            } else {
                Bytes::copy_from_slice(input)
            };
            return Some(DiskRecord::Entry(Entry {
                index,
                term,
                kind,
                payload,
            }));
        }
        KIND_HARD_STATE => Record::HardState(take_hard_state(&mut input)?),
        KIND_TRUNCATE => Record::Truncate(Index(take_u64(&mut input)?)),
        KIND_COMPACT => Record::Compact(take_base(&mut input)?),
        KIND_SNAPSHOT => Record::SnapshotRef(take_snapshot(&mut input)?),
        KIND_INCARNATION => Record::Incarnation(take_incarnation(&mut input)?),
        KIND_DESTROY => Record::Destroy,
        KIND_CHECKPOINT => {
            let hard_state = take_hard_state(&mut input)?;
            let base = take_base(&mut input)?;
            let last_index = take_index(&mut input)?;
            let snapshot = match take_u64(&mut input)? {
                0 => None,
                1 => Some(take_snapshot(&mut input)?),
                _ => return None,
            };
            // A log that never lost anything says nothing of it.
            let incarnation = if input.is_empty() {
                Incarnation::default()
            } else {
                take_incarnation(&mut input).filter(|one| *one != Incarnation::default())?
            };
            let state = GroupCheckpoint {
                hard_state,
                base,
                last_index,
                snapshot,
                incarnation,
            };
            return input.is_empty().then_some(DiskRecord::Checkpoint(state));
        }
        _ => return None,
    };
    input.is_empty().then_some(DiskRecord::Other(record))
}

fn put_hard_state(out: &mut Vec<u8>, state: &HardState) {
    out.extend_from_slice(&state.term.0.to_le_bytes());
    out.extend_from_slice(&u64::from(state.vote.is_some()).to_le_bytes());
    out.extend_from_slice(&state.vote.unwrap_or_default().0.to_le_bytes());
    out.extend_from_slice(&state.commit.0.to_le_bytes());
}

fn put_incarnation(out: &mut Vec<u8>, incarnation: Incarnation) {
    out.extend_from_slice(&incarnation.number.to_le_bytes());
    out.extend_from_slice(&u64::from(incarnation.guarded).to_le_bytes());
}

fn put_base(out: &mut Vec<u8>, base: &Base) {
    out.extend_from_slice(&base.index.0.to_le_bytes());
    out.extend_from_slice(&base.term.0.to_le_bytes());
    out.extend_from_slice(&base.creation.to_le_bytes());
    put_bytes(out, &base.membership);
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &SnapshotRef) {
    out.extend_from_slice(&snapshot.index.0.to_le_bytes());
    out.extend_from_slice(&snapshot.term.0.to_le_bytes());
    out.extend_from_slice(&snapshot.number.to_le_bytes());
    out.extend_from_slice(&snapshot.content_len.to_le_bytes());
    out.extend_from_slice(&u64::from(snapshot.content_crc).to_le_bytes());
    put_bytes(out, &snapshot.membership);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// An LZ4 block behind the length of its content.
fn put_block(out: &mut Vec<u8>, len: usize, block: &[u8]) {
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend_from_slice(block);
}

/// The content of an LZ4 block behind its length.
fn take_block(mut input: &[u8]) -> Option<Bytes> {
    let len = usize::try_from(take_u64(&mut input)?).ok()?;
    let possible = input.len().saturating_mul(LZ4_RATIO_MAX);
    if len > RECORD_PAYLOAD_MAX || len > possible || len <= input.len() {
        return None;
    }
    let content = lz4_flex::block::decompress(input, len).ok()?;
    (content.len() == len).then(|| content.into())
}

fn take_u64(input: &mut &[u8]) -> Option<u64> {
    let (head, rest) = input.split_at_checked(8)?;
    *input = rest;
    Some(u64_at(head, 0))
}

/// An index that another one can follow.
fn take_index(input: &mut &[u8]) -> Option<Index> {
    let index = Index(take_u64(input)?);
    (index < Index::MAX).then_some(index)
}

fn take_bytes(input: &mut &[u8]) -> Option<Bytes> {
    let len = usize::try_from(take_u64(input)?).ok()?;
    let (head, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(Bytes::copy_from_slice(head))
}

fn take_hard_state(input: &mut &[u8]) -> Option<HardState> {
    let term = Term(take_u64(input)?);
    let voted = take_u64(input)?;
    let vote = vote_of(voted, take_u64(input)?)?;
    Some(HardState {
        term,
        vote,
        commit: Index(take_u64(input)?),
    })
}

fn take_incarnation(input: &mut &[u8]) -> Option<Incarnation> {
    let number = take_u64(input)?;
    let guarded = match take_u64(input)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Incarnation { number, guarded })
}

/// A vote as two words; `None` where they make no sense.
pub(crate) fn vote_of(voted: u64, node: u64) -> Option<Option<NodeId>> {
    match (voted, node) {
        (0, 0) => Some(None),
        (1, node) => Some(Some(NodeId(node))),
        _ => None,
    }
}

fn take_base(input: &mut &[u8]) -> Option<Base> {
    Some(Base {
        index: take_index(input)?,
        term: Term(take_u64(input)?),
        creation: take_u64(input)?,
        membership: take_bytes(input)?,
    })
}

fn take_snapshot(input: &mut &[u8]) -> Option<SnapshotRef> {
    Some(SnapshotRef {
        index: Index(take_u64(input)?),
        term: Term(take_u64(input)?),
        number: take_u64(input)?,
        content_len: take_u64(input)?,
        content_crc: u32::try_from(take_u64(input)?).ok()?,
        membership: take_bytes(input)?,
    })
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::{footer, manifest, votes};
    use super::*;

    const SPECIFICATION: &str = include_str!("../../../docs/FORMAT.md");

    #[test]
    fn specification_has_the_constants_of_the_code() {
        let text = |magic: &[u8; 8]| {
            let name = String::from_utf8_lossy(&magic[..7]);
            format!("| magic `{name}\\x{:02x}` |", magic[7])
        };
        let mut wanted = vec![
            format!("| 0 | 8 {}", text(&SEGMENT_MAGIC)),
            format!("| 0 | 8 {}", text(votes::MAGIC)),
            format!("| 0 | 8 {}", text(votes::MAGIC_INCARNATION)),
            format!("| 0 | 8 {}", text(manifest::MAGIC)),
            format!("| -{} | 8 {}", footer::FOOTER, text(footer::MAGIC)),
            format!("| 0 | 4 | magic 0x{BATCH_MAGIC:x} |"),
            format!("| 8 | 2 | format version, {FORMAT_VERSION} |"),
            format!("| 4 | 2 | format version, {FORMAT_VERSION} |"),
            format!(
                "| 8 | 2 | format version of the manifest, {} |",
                manifest::VERSION
            ),
            format!(
                "| -56 | 2 | format version of the footer, {} |",
                footer::VERSION
            ),
            format!("Header, the first {SEGMENT_HEADER} bytes"),
            format!("length of the file, divided by {SEGMENT_DATA};"),
            format!("Header, {BATCH_HEADER} bytes"),
            format!("The checkpoint lies at offset {SEGMENT_DATA}"),
            format!("`votes` holds blocks of {} bytes", votes::BLOCK),
            format!(
                "blocks of {} bytes, written in turn, the one",
                manifest::BLOCK
            ),
            format!("at most {} MiB |", BATCH_BODY_MAX >> 20),
            format!(
                "at most {} MiB ({ENTRY_HEADER} bytes more",
                RECORD_PAYLOAD_MAX >> 20
            ),
            format!("longer than {} GiB", SEGMENT_BYTES_MAX >> 30),
            format!("takes at most {} MiB", CHECKPOINT_MAX >> 20),
            format!("at least {} zeros", footer::FOOTER_GAP),
        ];
        let kinds = [
            (KIND_ENTRY, "entry"),
            (KIND_HARD_STATE, "hard state"),
            (KIND_TRUNCATE, "truncate"),
            (KIND_COMPACT, "compact"),
            (KIND_SNAPSHOT, "snapshot reference"),
            (KIND_DESTROY, "group destroyed"),
            (KIND_CHECKPOINT, "checkpoint"),
            (KIND_ENTRY_LZ4, "compressed entry"),
            (KIND_INCARNATION, "incarnation"),
        ];
        wanted.extend(kinds.map(|(kind, name)| format!("| {kind} | {name} |")));
        for line in wanted {
            assert!(SPECIFICATION.contains(&line), "not in FORMAT.md: {line}");
        }
    }

    #[test]
    fn length_above_the_bound_is_refused_before_anything_is_allocated() {
        let mut header = BatchHeader {
            seq: 1,
            offset: 4096,
            synced_seq: 0,
            body_len: BATCH_BODY_MAX as u32,
            record_count: 1,
            chain: 0,
            body_crc: 0,
            zeros: 0,
            crc: 0,
        };
        let mut out = [0; BATCH_HEADER];
        header.encode(3, &mut out);
        assert!(BatchHeader::decode(&out, 4096, 3).is_some());
        header.body_len += 8;
        header.encode(3, &mut out);
        assert!(BatchHeader::decode(&out, 4096, 3).is_none());

        let mut body = BodyEncoder::default();
        body.push(GroupId(1), &Record::Truncate(Index(4)), &mut Vec::new());
        assert!(raw_record(&body.bytes, 0).is_some());
        for len in [
            9u32,
            (RECORD_PAYLOAD_MAX + ENTRY_HEADER + 1) as u32,
            u32::MAX,
        ] {
            let mut bytes = body.bytes.clone();
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            assert!(raw_record(&bytes, 0).is_none(), "{len}");
        }
    }
}
