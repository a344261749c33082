//! The engines behind one interface: a [`Wal`] hands out a [`Lane`] per writing thread, and a lane appends and waits.
//!
//! A lane keeps what its engine lets a caller reuse from one append to the next (entries, batches), so that every engine
//! is called in the way that suits it. Nothing here measures.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use protobuf::descriptor::UninterpretedOption;
use raft_log::vfs::RealFs;
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, Log, LogOptions, Record, StoreId, Term, Ticket,
    WriteBatch,
};

use crate::Failure;

const TERM: u64 = 7;

pub(crate) const STORE: StoreId = StoreId(7);

/// Size of our segments, from the first: what a store has after its first 128 MiB.
const SEGMENT_BYTES: u64 = 64 << 20;

/// One log on disk.
pub(crate) trait Wal: Sync {
    /// What a thread appends by, to one group.
    fn lane(&self, group: u64) -> Result<Box<dyn Lane + '_>, Failure>;
}

/// One writer's end of a [`Wal`].
pub(crate) trait Lane: Send {
    /// Appends one entry per payload, atomically, and returns once they are synced.
    fn append(&mut self, payloads: &[Bytes]) -> Result<(), Failure>;
}

/// How ours is opened.
pub(crate) fn our_options(dir: &Path) -> LogOptions {
    let mut options = LogOptions::new(dir, STORE);
    options.segment_bytes_min = SEGMENT_BYTES;
    options.segment_bytes_max = SEGMENT_BYTES;
    options
}

/// Our log, with its own thread.
pub(crate) struct Ours(pub(crate) Log);

impl Ours {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Self::open_with(our_options(dir))
    }

    pub(crate) fn open_with(options: LogOptions) -> Result<Self, Failure> {
        Ok(Self(Log::open(Arc::new(RealFs::new()), options)?.0))
    }

    /// Bytes that one append of these payloads writes.
    pub(crate) fn append_len(&self, payloads: &[Bytes]) -> Result<u64, Failure> {
        let mut lane = self.lane(u64::MAX)?;
        let before = self.0.stats().bytes_written;
        lane.append(payloads)?;
        Ok(self.0.stats().bytes_written - before)
    }
}

/// A batch of entries, the first at `first`.
pub(crate) fn our_batch(group: GroupId, first: u64, payloads: &[Bytes]) -> WriteBatch {
    let entries = payloads.iter().zip(first..).map(|(payload, index)| Entry {
        index: Index(index),
        term: Term(TERM),
        kind: EntryKind::Normal,
        payload: payload.clone(),
    });
    let mut batch = WriteBatch::new();
    batch.push(group, Record::Entries(entries.collect()));
    batch
}

/// Creates a group, without waiting.
pub(crate) fn our_group(log: &Log, group: GroupId) -> Result<Ticket, Failure> {
    let mut batch = WriteBatch::new();
    batch.push(group, Record::Compact(Base::default()));
    Ok(log.submit(batch)?)
}

struct OurLane<'a> {
    log: &'a Log,
    group: GroupId,
    next: u64,
}

impl Wal for Ours {
    fn lane(&self, group: u64) -> Result<Box<dyn Lane + '_>, Failure> {
        let group = GroupId(group);
        self.0.wait(our_group(&self.0, group)?)?;
        Ok(Box::new(OurLane {
            log: &self.0,
            group,
            next: 1,
        }))
    }
}

impl Lane for OurLane<'_> {
    fn append(&mut self, payloads: &[Bytes]) -> Result<(), Failure> {
        self.log.write(our_batch(self.group, self.next, payloads))?;
        self.next += payloads.len() as u64;
        Ok(())
    }
}

/// raft-engine's default, without compression.
pub(crate) struct RaftEngine(pub(crate) raft_engine::Engine);

/// The entry type that raft-engine is told. It wants a protobuf message, and this one of protobuf's own has what an
/// entry of Raft has: two integers (index and term) and bytes.
struct EntryMessage;

impl raft_engine::MessageExt for EntryMessage {
    type Entry = UninterpretedOption;

    fn index(entry: &Self::Entry) -> u64 {
        entry.get_positive_int_value()
    }
}

/// Reusable parts of an append to raft-engine.
#[derive(Default)]
pub(crate) struct RaftEngineBatch {
    entries: Vec<UninterpretedOption>,
    batch: raft_engine::LogBatch,
}

impl RaftEngine {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        let config = raft_engine::Config {
            dir: dir.to_str().ok_or("a path is not UTF-8")?.to_owned(),
            batch_compression_threshold: raft_engine::ReadableSize(0),
            ..raft_engine::Config::default()
        };
        Ok(Self(raft_engine::Engine::open(config)?))
    }

    pub(crate) fn append(
        &self,
        parts: &mut RaftEngineBatch,
        (group, first): (u64, u64),
        payloads: &[Bytes],
        sync: bool,
    ) -> Result<(), Failure> {
        parts
            .entries
            .resize_with(payloads.len(), UninterpretedOption::new);
        for ((entry, payload), index) in parts.entries.iter_mut().zip(payloads).zip(first..) {
            entry.set_positive_int_value(index);
            entry.set_negative_int_value(TERM as i64);
            let data = entry.mut_string_value();
            data.clear();
            data.extend_from_slice(payload);
        }
        parts
            .batch
            .add_entries::<EntryMessage>(group, &parts.entries)?;
        self.0.write(&mut parts.batch, sync)?;
        Ok(())
    }
}

struct RaftEngineLane<'a> {
    engine: &'a RaftEngine,
    group: u64,
    next: u64,
    parts: RaftEngineBatch,
}

impl Wal for RaftEngine {
    fn lane(&self, group: u64) -> Result<Box<dyn Lane + '_>, Failure> {
        Ok(Box::new(RaftEngineLane {
            engine: self,
            group,
            next: 1,
            parts: RaftEngineBatch::default(),
        }))
    }
}

impl Lane for RaftEngineLane<'_> {
    fn append(&mut self, payloads: &[Bytes]) -> Result<(), Failure> {
        self.engine
            .append(&mut self.parts, (self.group, self.next), payloads, true)?;
        self.next += payloads.len() as u64;
        Ok(())
    }
}

/// okaywal's default, which forgets what it checkpoints. It knows no groups: an append is one of its entries, of one
/// chunk per payload.
pub(crate) struct OkayWal(okaywal::WriteAheadLog);

impl OkayWal {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self(okaywal::WriteAheadLog::recover(
            dir,
            okaywal::LogVoid,
        )?))
    }
}

impl Wal for OkayWal {
    fn lane(&self, _group: u64) -> Result<Box<dyn Lane + '_>, Failure> {
        Ok(Box::new(&self.0))
    }
}

impl Lane for &okaywal::WriteAheadLog {
    fn append(&mut self, payloads: &[Bytes]) -> Result<(), Failure> {
        let mut writer = self.begin_entry()?;
        for payload in payloads {
            writer.write_chunk(payload)?;
        }
        writer.commit()?;
        Ok(())
    }
}

/// What the disk can do: the same number of bytes, written and synced where our log would put them.
pub(crate) struct Limit {
    file: File,
    at: AtomicU64,
    len: u64,
    bytes: Vec<u8>,
}

impl Limit {
    /// Appends of `len` bytes, taken from `random`.
    pub(crate) fn open(path: &Path, len: u64, random: &[u8]) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..SEGMENT_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self {
            file,
            at: AtomicU64::new(4096),
            len,
            bytes: random.iter().copied().cycle().take(len as usize).collect(),
        })
    }
}

impl Wal for Limit {
    fn lane(&self, _group: u64) -> Result<Box<dyn Lane + '_>, Failure> {
        Ok(Box::new(self))
    }
}

impl Lane for &Limit {
    fn append(&mut self, _payloads: &[Bytes]) -> Result<(), Failure> {
        let mut at = self.at.fetch_add(self.len, Ordering::Relaxed);
        if at + self.len > SEGMENT_BYTES {
            at = 4096;
            self.at.store(at + self.len, Ordering::Relaxed);
        }
        self.file.write_all_at(&self.bytes, at)?;
        Ok(self.file.sync_data()?)
    }
}
