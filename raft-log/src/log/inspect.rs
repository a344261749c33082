//! Looks at the files of a log without opening it: for people and tools, also beside a running server.
//!
//! It takes no lock, writes nothing, and judges nothing: where bytes stop verifying it says so and goes no further.
//! What that means, and what to do about it, is said by [`check`](super::check).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::format::{self, BATCH_HEADER, BatchHeader, HeaderFault, SEGMENT_DATA, SegmentHeader};
pub use super::format::{DiskRecord, GroupCheckpoint};
use super::segment::{segment_id, segment_path};
use crate::testing::{Bug, bug};
use crate::vfs::{OpenMode, Vfs};
use crate::{ErrorKind, GroupId, LogError, StoreId};

/// One segment file.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// The number in its name.
    pub id: u64,
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// The store that it belongs to.
    pub store: StoreId,
    /// The segment that it continues; zero for the first.
    pub predecessor: u64,
    /// The sequence of its first batch; what earlier segments hold from it on is superseded.
    pub first_seq: u64,
    /// The newest batch that verifies; `first_seq - 1` when only the checkpoint does.
    pub last_seq: u64,
    /// The newest batch that the segment itself proves to be synced.
    pub synced_seq: u64,
    /// Records in those batches, without the checkpoint's.
    pub records: u64,
    /// Where the last batch that verifies ends, in bytes.
    pub end: u64,
    /// What follows it.
    pub tail: Tail,
}

/// What follows the last batch that verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Zeros where the next header would be, or the end of the file.
    Clean,
    /// Bytes that are no batch that continues the log.
    Unverified,
    /// Bytes that cannot be read.
    Unreadable,
    /// The file is not as long as its header says: it was cut, or something was appended.
    WrongLength,
}

/// One batch that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// Its place in the store's sequence; the checkpoint of a segment has that of the batch before it.
    pub seq: u64,
    /// Where its header lies in the file, in bytes.
    pub offset: u64,
    /// Length of header and body in bytes.
    pub len: u64,
    /// The newest batch known to be synced when this one was written.
    pub synced_seq: u64,
    /// What it holds, in order.
    pub records: Vec<(GroupId, DiskRecord)>,
}

/// The ids of the segments in a log's directory, ascending.
///
/// # Errors
/// The file system's.
pub fn segment_ids(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<u64>, LogError> {
    let names = vfs
        .list(dir)
        .map_err(|error| LogError::io("cannot list the log's directory", dir, error))?;
    Ok(names.iter().filter_map(|name| segment_id(name)).collect())
}

/// The store that a log's directory belongs to, as its newest segment says whose header verifies.
///
/// # Errors
/// The directory cannot be listed.
pub fn store_of(vfs: &dyn Vfs, dir: &Path) -> Result<Option<StoreId>, LogError> {
    let ids = segment_ids(vfs, dir)?;
    Ok(ids.iter().rev().find_map(|id| {
        let file = vfs.open(&segment_path(dir, *id), OpenMode::Read).ok()?;
        let mut bytes = [0; BATCH_HEADER];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let top = SegmentHeader::decode(&bytes).ok()?;
        (top.id == *id).then_some(top.store)
    }))
}

/// Reads one segment; `visit` sees each batch that verifies, the checkpoint first.
///
/// # Errors
/// A file that cannot be opened, and a header that does not verify.
pub fn segment(
    vfs: &dyn Vfs,
    dir: &Path,
    id: u64,
    visit: &mut dyn FnMut(BatchInfo),
) -> Result<SegmentInfo, LogError> {
    let path = segment_path(dir, id);
    let failed = |error| LogError::io("cannot read a segment", &path, error);
    let file = vfs.open(&path, OpenMode::Read).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    let mut data = vec![0; usize::try_from(len).expect("a file fits the address space")];
    let readable = match file.read_exact_at(&mut data, 0) {
        Ok(()) => true,
        // A server may be cutting it at this moment; what was read before it is still judged by its checksums.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => true,
        Err(error) if data.len() <= SEGMENT_DATA as usize => return Err(failed(error)),
        Err(_) => {
            for (at, chunk) in data.chunks_mut(SEGMENT_DATA as usize).enumerate() {
                if file.read_exact_at(chunk, at as u64 * SEGMENT_DATA).is_err() {
                    chunk.fill(0xff);
                }
            }
            false
        }
    };
    let top = SegmentHeader::decode(&data).map_err(|fault| match fault {
        HeaderFault::Damaged => LogError::at(
            ErrorKind::Corruption,
            &path,
            0,
            "expected a segment header, found bytes that do not verify",
        ),
        HeaderFault::Newer(found) => LogError::at(
            ErrorKind::NewerFormat,
            &path,
            0,
            format!(
                "expected format {} or older, found {found}; look at it with a newer version",
                format::FORMAT_VERSION
            ),
        ),
    })?;
    let mut info = SegmentInfo {
        id,
        path,
        len,
        store: top.store,
        predecessor: top.predecessor,
        first_seq: top.first_seq,
        last_seq: top.first_seq.saturating_sub(1),
        synced_seq: top.synced_seq,
        records: 0,
        end: SEGMENT_DATA,
        tail: Tail::Clean,
    };
    walk(&data, &top, &mut info, visit);
    // A file that was cut short may end before its first batch.
    let next = data.get(info.end as usize..).unwrap_or_default();
    let next = &next[..next.len().min(BATCH_HEADER)];
    if !next.iter().all(|byte| *byte == 0) {
        info.tail = if readable {
            Tail::Unverified
        } else {
            Tail::Unreadable
        };
    }
    if top.contradicts_len(len) {
        info.tail = Tail::WrongLength;
    }
    Ok(info)
}

fn walk(
    data: &[u8],
    top: &SegmentHeader,
    info: &mut SegmentInfo,
    visit: &mut dyn FnMut(BatchInfo),
) {
    let (mut chain, mut seq) = (top.chain, top.first_seq.saturating_sub(1));
    loop {
        let at = info.end as usize;
        let Some((header, body)) = batch_at(data, at, top.salt(), seq, chain) else {
            return;
        };
        let Some(records) = format::decode_records(body) else {
            return;
        };
        let len = (BATCH_HEADER + body.len()) as u64;
        if at as u64 != SEGMENT_DATA {
            info.records += records.len() as u64;
        }
        visit(BatchInfo {
            seq,
            offset: at as u64,
            len,
            synced_seq: header.synced_seq,
            records,
        });
        info.last_seq = seq;
        info.synced_seq = info.synced_seq.max(header.synced_seq);
        info.end += len;
        (chain, seq) = (header.crc, seq + 1);
    }
}

/// The batch at `at` if header, chain, sequence and body verify.
pub(super) fn batch_at(
    data: &[u8],
    at: usize,
    salt: u64,
    seq: u64,
    chain: u32,
) -> Option<(BatchHeader, &[u8])> {
    let header = BatchHeader::decode(data.get(at..)?, at as u64, salt)?;
    let start = at + BATCH_HEADER;
    let body = data.get(start..start + header.body_len as usize)?;
    let verifies = crc32fast::hash(body) == header.body_crc
        || bug(Bug::IgnoreBatchCrc)
        || bug(Bug::RewriteUnverified);
    let good = header.seq == seq && header.chain == chain && verifies;
    good.then_some((header, body))
}

/// Batches behind one that does not verify, which do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    count: u64,
    last: u64,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, last } = self;
        match count {
            1 => write!(f, "1 further batch verifies behind it, of sequence {last}"),
            _ => write!(
                f,
                "{count} further batches verify behind it, up to sequence {last}"
            ),
        }
    }
}

/// What verifies behind `at`, of batches later than `seq`: each by its header, at any multiple of 8, and its body.
pub(super) fn behind(data: &[u8], at: usize, salt: u64, seq: u64) -> Option<Behind> {
    let mut found: Option<Behind> = None;
    let mut step = at.next_multiple_of(8) + 8;
    while let Some(rest) = data.get(step..).filter(|rest| rest.len() >= BATCH_HEADER) {
        let header = match rest[0] {
            0 => None,
            _ => BatchHeader::decode(rest, step as u64, salt).filter(|header| header.seq > seq),
        };
        let body = header.and_then(|header| {
            let body = rest[BATCH_HEADER..].get(..header.body_len as usize)?;
            (crc32fast::hash(body) == header.body_crc).then_some((header.seq, body.len()))
        });
        step += 8;
        if let Some((seq, len)) = body {
            let so_far = found.unwrap_or(Behind { count: 0, last: 0 });
            found = Some(Behind {
                count: so_far.count + 1,
                last: so_far.last.max(seq),
            });
            step += (BATCH_HEADER - 8 + len).next_multiple_of(8);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::vfs::{SharedVfs, SimFs};
    use crate::{
        Base, Entry, EntryKind, HardState, Index, IoMode, Log, LogOptions, NodeId, Record, Term,
        WriteBatch,
    };

    fn entry(index: u64) -> Record {
        Record::Entries(vec![Entry {
            index: Index(index),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: vec![7; 10].into(),
        }])
    }

    /// A log of one group with three entries, closed.
    fn written() -> (SharedVfs, PathBuf) {
        let vfs: SharedVfs = Arc::new(SimFs::new(1));
        let dir = PathBuf::from("/log");
        let mut options = LogOptions::new(&dir, StoreId(5));
        options.io = IoMode::Inline;
        let (log, _) = Log::open(Arc::clone(&vfs), options).unwrap();
        let mut batch = WriteBatch::new();
        batch.push(GroupId(3), Record::Compact(Base::default()));
        let vote = HardState {
            term: Term(1),
            vote: Some(NodeId(2)),
            commit: Index(0),
        };
        batch.push(GroupId(3), Record::HardState(vote));
        log.write(batch).unwrap();
        for index in 1..=3 {
            let mut batch = WriteBatch::new();
            batch.push(GroupId(3), entry(index));
            log.write(batch).unwrap();
        }
        log.close().unwrap();
        (vfs, dir)
    }

    #[test]
    fn segment_of_a_closed_log_shows_every_record_and_a_clean_tail() {
        let (vfs, dir) = written();
        assert_eq!(segment_ids(&*vfs, &dir).unwrap(), [1]);
        let mut seen = Vec::new();
        let info = segment(&*vfs, &dir, 1, &mut |batch| seen.push(batch)).unwrap();
        assert_eq!(
            (info.tail, info.store, info.records),
            (Tail::Clean, StoreId(5), 5)
        );
        // The checkpoint, four batches, and the empty one that proves the last of them synced.
        assert_eq!(seen.len(), 6);
        assert_eq!(info.synced_seq, info.last_seq - 1);
        assert!(
            seen[0].records.is_empty(),
            "the first checkpoint has no groups"
        );
        assert!(matches!(
            &seen[1].records[1],
            (GroupId(3), DiskRecord::Other(Record::HardState(_)))
        ));
        assert!(
            matches!(&seen[4].records[..], [(GroupId(3), DiskRecord::Entry(entry))] if entry.index == Index(3))
        );
        assert_eq!(seen[5].offset + seen[5].len, info.end);
    }

    #[test]
    fn segment_with_a_flipped_bit_stops_before_it_and_says_so() {
        let (vfs, dir) = written();
        let mut batches = Vec::new();
        segment(&*vfs, &dir, 1, &mut |batch| batches.push(batch)).unwrap();
        let target = &batches[3];
        let file = vfs
            .open(&segment_path(&dir, 1), OpenMode::ReadWrite)
            .unwrap();
        let mut byte = [0];
        let at = target.offset + target.len - 9;
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let info = segment(&*vfs, &dir, 1, &mut |_| ()).unwrap();
        assert_eq!((info.tail, info.end), (Tail::Unverified, target.offset));
        assert_eq!(info.last_seq, target.seq - 1);
    }

    #[test]
    fn segment_cut_within_its_first_block_has_no_batches() {
        let (vfs, dir) = written();
        let file = vfs
            .open(&segment_path(&dir, 1), OpenMode::ReadWrite)
            .unwrap();
        file.set_len(100).unwrap();
        let info = segment(&*vfs, &dir, 1, &mut |_| panic!("a batch was seen")).unwrap();
        assert_eq!((info.len, info.records), (100, 0));
        assert_eq!(info.tail, Tail::WrongLength);
    }

    #[test]
    fn segment_without_a_header_is_an_error_that_names_the_file() {
        let (vfs, dir) = written();
        let file = vfs
            .open(&segment_path(&dir, 1), OpenMode::ReadWrite)
            .unwrap();
        file.write_all_at(&[0; 64], 0).unwrap();
        let error = segment(&*vfs, &dir, 1, &mut |_| ()).unwrap_err();
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::Corruption, Some(0))
        );
        assert!(
            error.to_string().contains("0000000000000001.seg"),
            "{error}"
        );
    }
}
