//! An append allocates for its batch, never for each of its entries.

use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::RealFs;
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, IoMode, Log, LogOptions, Record, StoreId, Term,
    WriteBatch,
};

const GROUP: GroupId = GroupId(1);

fn batch(first: u64, count: u64, payload: &Bytes) -> WriteBatch {
    let entry = |index| Entry {
        index: Index(index),
        term: Term(1),
        kind: EntryKind::Normal,
        payload: payload.clone(),
    };
    let mut batch = WriteBatch::new();
    let entries = (first..first + count).map(entry).collect();
    batch.push(GROUP, Record::Entries(entries));
    batch
}

#[test]
fn append_of_many_entries_allocates_for_the_batch_and_not_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = LogOptions::new(dir.path().join("log"), StoreId(7));
    // All of it on this thread, whose allocations are counted.
    options.io = IoMode::Inline;
    let log = Log::open(Arc::new(RealFs::new()), options).unwrap().0;
    let mut first = WriteBatch::new();
    first.push(GROUP, Record::Compact(Base::default()));
    log.write(first).unwrap();

    let payload = Bytes::from(vec![7; 256]);
    let mut next = 1;
    let mut allocations = |count: u64| {
        let batch = batch(next, count, &payload);
        next += count;
        allocation_counter::measure(|| log.write(batch).unwrap()).count_total
    };
    // Tables that live as long as the log double now and then, so not every append tells what one takes.
    let one = (0..64).map(|_| allocations(1)).min().unwrap();
    let many = allocations(1024);
    assert!(one <= 6, "{one} for one entry");
    assert!(many <= one + 30, "{many} for 1,024 entries");
}
