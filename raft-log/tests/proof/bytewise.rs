//! The log and the snapshot store on a file system that moves one byte per call and stores none as it is.

use std::sync::Arc;

use raft_log::snapshot::SnapshotMeta;
use raft_log::vfs::SharedVfs;
use raft_log::vfs::sim::{BytewiseFs, CrashKind, SimFs};
use raft_log::{
    Base, Entry, EntryKind, GroupId, HardState, Index, Log, NodeId, Record, SnapshotStore, Term,
    WriteBatch,
};
use std::io::{Read, Write};

use crate::model::{State, apply, observe};
use crate::world::{STORE, options};

const GROUP: GroupId = GroupId(1);

fn write(log: &Log, model: &mut State, record: Record) {
    let mut batch = WriteBatch::new();
    batch.push(GROUP, record);
    apply(model, &batch);
    log.write(batch).unwrap();
}

fn entry(index: u64) -> Record {
    Record::Entries(vec![Entry {
        index: Index(index),
        term: Term(3),
        kind: EntryKind::Config,
        payload: vec![index as u8; 900].into(),
    }])
}

#[test]
fn log_on_single_bytes_rolls_truncates_compacts_and_reopens() {
    let fs = SimFs::new(1);
    let vfs: SharedVfs = Arc::new(BytewiseFs::new(fs.shared()));
    let mut model = State::new();
    let (log, _) = Log::open(vfs.clone(), options()).unwrap();
    write(&log, &mut model, Record::Compact(Base::default()));
    let state = HardState {
        term: Term(3),
        vote: Some(NodeId(5)),
        commit: Index(0),
    };
    write(&log, &mut model, Record::HardState(state));
    (1..=20).for_each(|index| write(&log, &mut model, entry(index)));
    assert!(log.stats().segments > 1);
    write(&log, &mut model, Record::Truncate(Index(18)));
    let base = Base {
        index: Index(3),
        term: Term(3),
        ..Base::default()
    };
    write(&log, &mut model, Record::Compact(base));
    assert_eq!(observe(&log).unwrap(), model);
    drop(log);
    // Without a close and with one, after a crash of each kind.
    for kind in [CrashKind::Process, CrashKind::Power] {
        fs.crash(kind);
        let (log, _) = Log::open(vfs.clone(), options()).unwrap();
        assert_eq!(observe(&log).unwrap(), model);
        let next = model[&GROUP].last().0.next();
        write(&log, &mut model, entry(next.0));
        log.close().unwrap();
    }
    let (log, report) = Log::open(vfs, options()).unwrap();
    assert_eq!(observe(&log).unwrap(), model);
    assert_eq!(report.cut, None);
}

#[test]
fn snapshot_on_single_bytes_reads_back() {
    let fs = SimFs::new(1);
    let vfs: SharedVfs = Arc::new(BytewiseFs::new(fs.shared()));
    let store = SnapshotStore::open(vfs, "/snap", STORE).unwrap();
    let content: Vec<u8> = (0..3_000u32).map(|at| at.to_le_bytes()[0]).collect();
    let meta = SnapshotMeta {
        group: GROUP,
        creation: 1,
        index: Index(7),
        term: Term(3),
        membership: b"members".as_slice().into(),
    };
    let mut writer = store.create(meta).unwrap();
    writer.write_all(&content).unwrap();
    let snapshot = writer.finish().unwrap().keep();
    store.verify(GROUP, &snapshot).unwrap();
    let mut read = Vec::new();
    let mut reader = store.open_snapshot(GROUP, &snapshot).unwrap();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
}
