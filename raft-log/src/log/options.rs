//! How a log is opened, and what it tells about itself: plain values for its callers, without behaviour.

use std::path::PathBuf;

use crate::{Base, HardState, Incarnation, Index, SnapshotRef, StoreId, Term};

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// A thread named `flotilla-log` writes what nobody waits for, and prepares the next segment.
    Thread,
    /// Nobody but the callers of [`Log::wait`](super::Log::wait) and [`Log::drive`](super::Log::drive): for
    /// simulations.
    Inline,
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The log's own directory; made if missing.
    pub dir: PathBuf,
    /// The store that the log must belong to.
    pub store_id: StoreId,
    /// Size of the first segment in bytes, at least 16 KiB. Default 1 MiB.
    pub segment_bytes_min: u64,
    /// Size up to which segments double, in bytes. Default 64 MiB.
    pub segment_bytes_max: u64,
    /// Recent entries of all groups kept in memory, in bytes. Default 32 MiB.
    pub cache_bytes: usize,
    /// Contents of entries from so many bytes on are stored as LZ4 where that saves an eighth. Default none. It pays for
    /// large batches of text; see `docs/BENCHMARKS.md` for what it takes.
    pub lz4_bytes_min: Option<usize>,
    /// Who writes. Default [`IoMode::Thread`].
    pub io: IoMode,
    /// Go on without a last batch that is damaged and may have been acknowledged. Danger: it may lose it.
    pub accept_suspect_tail: bool,
}

impl LogOptions {
    /// The defaults for a directory and a store.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, store_id: StoreId) -> Self {
        Self {
            dir: dir.into(),
            store_id,
            segment_bytes_min: 1 << 20,
            segment_bytes_max: 64 << 20,
            cache_bytes: 32 << 20,
            lz4_bytes_min: None,
            io: IoMode::Thread,
            accept_suspect_tail: false,
        }
    }
}

/// Whether new work should be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Yes.
    Available,
    /// No: the next segment cannot be prepared. What was submitted is kept. Entries are taken as far as they fit the
    /// segment at hand, and refused from then on; a reserve at its end takes batches without entries.
    Full,
}

/// What the log holds of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Where the group's log begins.
    pub base: Base,
    /// Its last index; the base's if it has no entries.
    pub last_index: Index,
    /// The term at `last_index`.
    pub last_term: Term,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The newest recorded snapshot.
    pub snapshot: Option<SnapshotRef>,
    /// Which of the member's logs it is, and whether that may lack what was acknowledged.
    pub incarnation: Incarnation,
    /// The last index that is synced.
    pub durable_index: Index,
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Syncs of segments and vote slots.
    pub syncs: u64,
    /// Bytes of batches written.
    pub bytes_written: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Batches submitted.
    pub batches: u64,
    /// Batches submitted and not synced.
    pub queued: u64,
    /// Bytes of cached entries.
    pub cache_bytes: u64,
}
