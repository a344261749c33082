//! How a store is set up, and what a snapshot is of.

use std::path::PathBuf;

use bytes::Bytes;

use super::chunk::{CHUNK_SIZE, CHUNK_SIZE_MAX, Compression};
use crate::{GroupId, Index, IoMode, StoreId, Term};

/// How a snapshot store is set up.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Its directory, `<data-dir>/snap`. Nobody else writes there; the lock of the log covers it.
    pub dir: PathBuf,
    /// The store that the directory belongs to. Files of another one are refused.
    pub store: StoreId,
    /// Content bytes in each chunk of new snapshots. Default 256 KiB, from 1 byte to 16 MiB. A
    /// chunk is what is verified, compressed and sent at once; a reader holds two of them.
    pub chunk_bytes: u32,
    /// Whether chunks of new snapshots are compressed. Default: not. LZ4 pays where the link or the
    /// disk is slower than about 300 MB/s for each core.
    pub compression: Compression,
    /// How many snapshots of each group are kept, the newest included. Default 2, at least 1.
    pub retain: usize,
    /// How many snapshots are received at a time, and how many partial files are kept for later.
    /// Default 4, at least 1. Each one may take as much disk as the snapshot.
    pub receives_max: usize,
    /// A file that is written is synced each time it has grown by so many bytes. Default 16 MiB, at
    /// least 4 KiB. Smaller values cost bandwidth, larger values let the syncs of the log wait longer behind it.
    pub sync_bytes: u64,
    /// Whether these syncs run beside the writing, on a thread that each writer and receiver has
    /// for itself, or on the thread that writes, as a simulation needs it. Default: a thread.
    pub io: IoMode,
}

impl SnapshotOptions {
    /// The defaults for a directory and a store.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, store: StoreId) -> Self {
        Self {
            dir: dir.into(),
            store,
            chunk_bytes: CHUNK_SIZE,
            compression: Compression::None,
            retain: 2,
            receives_max: 4,
            sync_bytes: 16 << 20,
            io: IoMode::Thread,
        }
    }

    /// Brings each field within its bounds.
    pub(super) fn bounded(mut self) -> Self {
        self.chunk_bytes = self.chunk_bytes.clamp(1, CHUNK_SIZE_MAX);
        self.retain = self.retain.max(1);
        self.receives_max = self.receives_max.max(1);
        self.sync_bytes = self.sync_bytes.max(4 << 10);
        self
    }
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The group.
    pub group: GroupId,
    /// The group's creation, as in its [`Base`](crate::Base).
    pub creation: u64,
    /// The last index that the state includes.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// The group's membership as of `index`, opaque to the store; at most 1 MiB.
    pub membership: Bytes,
}
