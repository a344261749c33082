//! Turns queued batches into writes and syncs: one write and one sync for all that is queued in one segment.
//!
//! One thread at a time holds the writer's role; `mod.rs` hands it out. Nothing here completes a ticket.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::footer::{FOOTER_GAP, Footer};
use super::format::{BATCH_HEADER, BatchHeader, SEGMENT_DATA, SegmentHeader, salt, zero_pieces};
use super::manifest::Manifest;
use super::segment::{self, Prepared};
use super::votes::{Slot, Votes};
use crate::testing::{Bug, bug};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{GroupId, LogError, StoreId};

/// What the queue holds, in order.
#[derive(Debug)]
pub(super) enum Item {
    Batch {
        seq: u64,
        offset: u64,
        body: Vec<u8>,
        records: u32,
        votes: Vec<Slot>,
        /// Groups that begin here.
        created: Vec<GroupId>,
        /// Groups that end here.
        ended: Vec<GroupId>,
    },
    /// Go on in a new segment, whose checkpoint sums up everything up to `seq`.
    Rotate {
        segment: u64,
        size: u64,
        seq: u64,
        body: Vec<u8>,
        records: u32,
        /// Of the segment that ends; `None` once it is written.
        seal: Option<Seal>,
    },
    /// The segment ends here for this run.
    Seal(Seal),
}

/// What the footer of a segment will hold.
#[derive(Debug)]
pub(super) struct Seal {
    pub(super) index: Vec<u8>,
    /// Where the segment's last batch ends.
    pub(super) end: u64,
}

/// The file that is ready to become the next segment; filled in the background.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) ready: Mutex<Option<Prepared>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) vfs: SharedVfs,
    pub(super) dir: PathBuf,
    pub(super) store: StoreId,
    pub(super) votes: Votes,
    pub(super) manifest: Manifest,
    pub(super) segment: u64,
    /// The segment's first sequence and length in bytes.
    pub(super) first_seq: u64,
    pub(super) size: u64,
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) chain: u32,
    pub(super) synced_seq: u64,
    /// The newest batch that something on disk proves to be synced.
    pub(super) proven_seq: u64,
    pub(super) backlog: VecDeque<Item>,
    pub(super) buffer: Vec<u8>,
    pub(super) syncs: u64,
    pub(super) bytes: u64,
}

/// Appends a batch to `out` and returns the chain value behind it.
pub(super) fn frame(out: &mut Vec<u8>, salt: u64, mut header: BatchHeader, body: &[u8]) -> u32 {
    let start = out.len();
    header.body_len = body.len() as u32;
    header.body_crc = crc32fast::hash(body);
    header.zeros = zero_pieces(header.offset.wrapping_add(BATCH_HEADER as u64), body);
    out.resize(start + BATCH_HEADER, 0);
    out.extend_from_slice(body);
    header.encode(salt, &mut out[start..start + BATCH_HEADER])
}

pub(super) fn header(
    seq: u64,
    offset: u64,
    synced_seq: u64,
    records: u32,
    chain: u32,
) -> BatchHeader {
    BatchHeader {
        seq,
        offset,
        synced_seq,
        body_len: 0,
        record_count: records,
        chain,
        body_crc: 0,
        zeros: 0,
        crc: 0,
    }
}

impl Writer {
    /// Writes and syncs up to the end of the backlog or of the segment. True when there may be more to do.
    ///
    /// A full disk leaves the backlog as it was, to be tried again.
    pub(super) fn step(&mut self, next: &Next) -> Result<bool, LogError> {
        match self.backlog.front() {
            None => return Ok(false),
            Some(Item::Rotate { .. }) => {
                self.rotate(next)?;
                return Ok(true);
            }
            Some(Item::Seal(_)) => {
                if let Some(Item::Seal(seal)) = self.backlog.pop_front() {
                    self.seal(seal)?;
                }
                return Ok(true);
            }
            Some(Item::Batch { .. }) => {}
        }
        let (mut slots, mut over): (Vec<Slot>, Vec<GroupId>) = (Vec::new(), Vec::new());
        let (mut count, mut chain, mut first, mut last) = (0, self.chain, None, self.synced_seq);
        self.buffer.clear();
        let salt = salt(self.store, self.segment);
        for item in &self.backlog {
            let Item::Batch {
                seq,
                offset,
                body,
                records,
                votes,
                created,
                ended,
            } = item
            else {
                break;
            };
            // The end of a group's earlier life must be synced before its slots are emptied, and they must be empty before
            // the new one begins: so that batch is the first of its write. Also after a life that never voted, which would
            // find the slot of the new one if the write is lost.
            let again = |id: &GroupId| {
                self.votes.has(*id)
                    || over.contains(id)
                    || slots.iter().any(|slot: &Slot| slot.group == *id)
            };
            if created.iter().any(again) && !bug(Bug::KeepDeadVotes) {
                if count > 0 {
                    break;
                }
                self.votes.clear(created)?;
                self.syncs += 1;
            }
            over.extend_from_slice(ended);
            // One slot is written once per sync, or a crash could tear both of its blocks.
            if votes
                .iter()
                .any(|vote| slots.iter().any(|slot| slot.group == vote.group))
            {
                break;
            }
            slots.extend_from_slice(votes);
            let synced = if bug(Bug::TrustUnsyncedTail) {
                *seq
            } else {
                self.synced_seq
            };
            first.get_or_insert(*offset);
            chain = frame(
                &mut self.buffer,
                salt,
                header(*seq, *offset, synced, *records, chain),
                body,
            );
            (count, last) = (count + 1, *seq);
        }
        if !slots.is_empty() && !bug(Bug::ForgetVoteSlot) {
            self.votes.write(&slots)?;
            self.syncs += 1;
        }
        let at = first.expect("the front is a batch");
        self.file
            .write_all_at(&self.buffer, at)
            .map_err(|error| LogError::io("cannot write a batch", &self.path(), error))?;
        match self.file.sync_data() {
            Err(error) if error.raw_os_error().is_some() && bug(Bug::GoOnAfterFailedSync) => {}
            synced => synced.map_err(|error| {
                LogError::io("cannot sync a batch", &self.path(), error).latched()
            })?,
        }
        self.syncs += 1;
        self.bytes += self.buffer.len() as u64;
        self.chain = chain;
        self.proven_seq = self.synced_seq;
        self.synced_seq = last;
        self.backlog.drain(..count);
        if self.buffer.capacity() > 8 << 20 {
            self.buffer = Vec::new();
        }
        Ok(true)
    }

    /// The file at hand, for messages.
    fn path(&self) -> PathBuf {
        segment::segment_path(&self.dir, self.segment)
    }

    /// Writes the footer of the segment at hand, behind everything that was synced.
    fn seal(&mut self, seal: Seal) -> Result<(), LogError> {
        let footer = Footer {
            salt: salt(self.store, self.segment),
            first_seq: self.first_seq,
            last_seq: self.synced_seq,
            end: seal.end,
            chain: self.chain,
        };
        let bytes = footer.encode(seal.index);
        let start = self.size.checked_sub(bytes.len() as u64);
        let Some(start) = start.filter(|start| *start >= seal.end + FOOTER_GAP) else {
            // Only a hint; the segment is scanned instead.
            return Ok(());
        };
        let path = segment::segment_path(&self.dir, self.segment);
        self.file
            .write_all_at(&bytes, start)
            .map_err(|error| LogError::io("cannot write a footer", &path, error).latched())?;
        self.file
            .sync_data()
            .map_err(|error| LogError::io("cannot sync a footer", &path, error).latched())?;
        self.syncs += 1;
        self.proven_seq = self.synced_seq;
        Ok(())
    }

    fn rotate(&mut self, next: &Next) -> Result<(), LogError> {
        let Some(Item::Rotate { seal, seq, .. }) = self.backlog.front_mut() else {
            unreachable!("the caller looked");
        };
        assert_eq!(
            *seq, self.synced_seq,
            "everything before a new segment is synced"
        );
        if let Some(seal) = seal.take() {
            self.seal(seal)?;
        }
        let Some(Item::Rotate {
            segment,
            size,
            seq,
            body,
            records,
            ..
        }) = self.backlog.front()
        else {
            unreachable!("the caller looked");
        };
        let mut ready = next.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_none() {
            *ready = Some(segment::prepare(
                &*self.vfs,
                &self.dir.join("next.tmp"),
                *size,
            )?);
        }
        let prepared = ready.as_mut().expect("made above");
        if prepared.size < *size {
            segment::fill(&*prepared.file, &prepared.path, prepared.size, *size)?;
            prepared.size = *size;
        }
        let top = SegmentHeader {
            store: self.store,
            id: *segment,
            predecessor: self.segment,
            first_seq: seq + 1,
            synced_seq: *seq,
            chain: self.chain,
            len: prepared.size,
        };
        let mut out = Vec::new();
        let chain = frame(
            &mut out,
            top.salt(),
            header(*seq, SEGMENT_DATA, *seq, *records, self.chain),
            body,
        );
        let file = publish(&self.vfs, &self.dir, prepared, &top, &out)?;
        self.size = prepared.size;
        *ready = None;
        drop(ready);
        // Named before anything is acknowledged in it.
        self.manifest.name(*segment, *seq)?;
        (self.segment, self.file, self.chain) = (*segment, file, chain);
        (self.first_seq, self.proven_seq) = (seq + 1, *seq);
        self.syncs += 3;
        self.bytes += out.len() as u64;
        self.backlog.pop_front();
        Ok(())
    }
}

/// Gives a prepared file its header and first batches, syncs it, and then its name.
pub(super) fn publish(
    vfs: &SharedVfs,
    dir: &std::path::Path,
    prepared: &Prepared,
    top: &SegmentHeader,
    batches: &[u8],
) -> Result<Arc<dyn VfsFile>, LogError> {
    let path = segment::segment_path(dir, top.id);
    let failed = |what: &'static str| {
        let path = path.clone();
        move |error| LogError::io(what, &path, error)
    };
    prepared
        .file
        .write_all_at(batches, SEGMENT_DATA)
        .map_err(failed("cannot write a segment"))?;
    prepared
        .file
        .write_all_at(&top.encode(), 0)
        .map_err(failed("cannot write a segment"))?;
    prepared
        .file
        .sync_data()
        .map_err(|error| failed("cannot sync a segment")(error).latched())?;
    vfs.rename(&prepared.path, &path)
        .map_err(|error| failed("cannot name a segment")(error).latched())?;
    vfs.sync_dir(dir)
        .map_err(|error| failed("cannot sync the log's directory")(error).latched())?;
    let file = vfs
        .open(&path, OpenMode::ReadWrite)
        .map_err(failed("cannot open a segment"))?;
    Ok(Arc::from(file))
}
