//! What the tests of this directory share: a store of small chunks, and a log beside it.

use std::io::{self, Read, Write};

use bytes::Bytes;
use raft_log::snapshot::{
    Compression, PendingSnapshot, SnapshotError, SnapshotManifest, SnapshotMeta, SnapshotOptions,
    SnapshotReceiver, SnapshotStore,
};
use raft_log::vfs::sim::Rng;
use raft_log::vfs::{SimFs, Vfs};
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, IoMode, Log, LogError, LogOptions, Record, SnapshotRef,
    StoreId, Term, WriteBatch,
};

pub(crate) const GROUP: GroupId = GroupId(7);
pub(crate) const STORE: StoreId = StoreId(0xabc);
pub(crate) const PEER: StoreId = StoreId(0xdef);
pub(crate) const CREATION: u64 = 3;
pub(crate) const DIR: &str = "/data/snap";
pub(crate) const GROUP_DIR: &str = "/data/snap/group-0000000000000007";

pub(crate) fn options() -> SnapshotOptions {
    let mut options = SnapshotOptions::new(DIR, STORE);
    options.chunk_bytes = 64;
    options.io = IoMode::Inline;
    options
}

/// Chunks of 1000 bytes, and a sync every 4 KiB.
pub(crate) fn coarse_options() -> SnapshotOptions {
    let mut options = options();
    options.chunk_bytes = 1000;
    options.sync_bytes = 4 << 10;
    options
}

pub(crate) fn open(fs: &SimFs) -> Result<SnapshotStore, SnapshotError> {
    SnapshotStore::open_with(fs.shared(), options())
}

/// A store on a file system of its own, from which snapshots are received.
pub(crate) fn peer(chunk_bytes: u32, compression: Compression) -> SnapshotStore {
    let mut options = SnapshotOptions::new("/peer", PEER);
    options.chunk_bytes = chunk_bytes;
    options.compression = compression;
    SnapshotStore::open_with(SimFs::new(99).shared(), options).unwrap()
}

/// Bytes that no compression makes smaller.
pub(crate) fn content(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Rng::new(len as u64).fill(&mut out);
    out
}

pub(crate) fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        group: GROUP,
        creation: CREATION,
        index: Index(index),
        term: Term(2),
        membership: Bytes::from_static(b"members"),
    }
}

/// Writes a snapshot as far as its file.
pub(crate) fn make(
    store: &SnapshotStore,
    meta: SnapshotMeta,
    content: &[u8],
) -> Result<PendingSnapshot, SnapshotError> {
    let mut writer = store.create(meta)?;
    if let Err(error) = writer.write_all(content) {
        return Err(error.downcast::<SnapshotError>().unwrap());
    }
    writer.finish()
}

/// Writes a snapshot without a log.
pub(crate) fn write(
    store: &SnapshotStore,
    index: u64,
    content: &[u8],
) -> Result<SnapshotRef, SnapshotError> {
    Ok(make(store, meta(index), content)?.keep())
}

pub(crate) fn read(store: &SnapshotStore, snapshot: &SnapshotRef) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    store
        .open_snapshot(GROUP, snapshot)?
        .read_to_end(&mut out)?;
    Ok(out)
}

pub(crate) fn path_of(snapshot: &SnapshotRef) -> String {
    format!(
        "{GROUP_DIR}/snap-{:016x}-{:016x}-{:016x}.snap",
        snapshot.index.0, snapshot.term.0, snapshot.number
    )
}

/// The names in the group's directory that end so.
pub(crate) fn names(fs: &SimFs, suffix: &str) -> Vec<String> {
    let mut names = fs.list(GROUP_DIR.as_ref()).unwrap_or_default();
    names.retain(|name| name.ends_with(suffix));
    names
}

/// A snapshot in a peer's store, and all its chunks.
pub(crate) fn offer(
    peer: &SnapshotStore,
    index: u64,
    content: &[u8],
) -> (SnapshotManifest, Vec<Bytes>) {
    let snapshot = make(peer, meta(index), content).unwrap().keep();
    let mut sender = peer.send(GROUP, &snapshot).unwrap();
    let mut chunks = Vec::new();
    while let Some((number, chunk)) = sender.next_chunk().unwrap() {
        assert_eq!(number, chunks.len() as u64);
        chunks.push(chunk);
    }
    (sender.manifest(), chunks)
}

/// Pushes what is missing.
pub(crate) fn push_rest(
    receiver: &mut SnapshotReceiver,
    chunks: &[Bytes],
) -> Result<(), SnapshotError> {
    while receiver.next() < receiver.chunks() {
        let next = receiver.next();
        receiver.push(next, &chunks[next as usize])?;
    }
    Ok(())
}

pub(crate) fn open_log(fs: &SimFs) -> Result<Log, LogError> {
    let mut options = LogOptions::new("/data/log", STORE);
    options.io = IoMode::Inline;
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    Log::open(fs.shared(), options).map(|opened| opened.0)
}

pub(crate) fn base(index: u64, creation: u64) -> Record {
    Record::Compact(Base {
        index: Index(index),
        term: Term(2),
        creation,
        membership: Bytes::from_static(b"members"),
    })
}

pub(crate) fn entries(from: u64, to: u64, term: u64) -> Record {
    let entry = |index| Entry {
        index: Index(index),
        term: Term(term),
        kind: EntryKind::Normal,
        payload: Bytes::from_static(b"payload"),
    };
    Record::Entries((from..=to).map(entry).collect())
}

pub(crate) fn log_write(log: &Log, records: Vec<Record>) -> Result<(), LogError> {
    let mut batch = WriteBatch::new();
    for record in records {
        batch.push(GROUP, record);
    }
    log.write(batch)
}

/// A log with the group and entries up to `last`, in term 2.
pub(crate) fn log_with_entries(fs: &SimFs, last: u64) -> Log {
    let log = open_log(fs).unwrap();
    log_write(&log, vec![base(0, CREATION), entries(1, last, 2)]).unwrap();
    log
}

/// Writes a snapshot and installs it.
pub(crate) fn install(
    store: &SnapshotStore,
    log: &Log,
    index: u64,
    content: &[u8],
) -> Result<SnapshotRef, SnapshotError> {
    let installed = store.install(log, make(store, meta(index), content)?)?;
    installed.retention?;
    Ok(installed.snapshot)
}
