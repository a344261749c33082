//! Snapshot files plain, compressed, empty and received, a receive that was cut short, and the counter of numbers.

use std::io::{Read, Write};

use raft_log::snapshot::{
    Compression, SnapshotManifest, SnapshotMeta, SnapshotOptions, SnapshotStore,
};
use raft_log::vfs::{SimFs, Vfs};
use raft_log::{GroupId, Index, IoMode, SnapshotRef, StoreId, Term};

use crate::{STORE, golden, keep, updating};

const GROUP: GroupId = GroupId(0xa1b2);
const DIR: &str = "/snap";
const CREATION: u64 = 9;
/// One name for each: the index tells them apart.
const FILES: [(&str, u64); 4] = [("plain", 5), ("lz4", 6), ("empty", 7), ("received", 8)];
const PART: &str =
    "group-000000000000a1b2/snap-0000000000000009-0000000000000003-0000000000000084.snap.part";

fn options(store: StoreId, compression: Compression) -> SnapshotOptions {
    let mut options = SnapshotOptions::new(DIR, store);
    options.chunk_bytes = 64;
    options.compression = compression;
    options.io = IoMode::Inline;
    options
}

fn open(fs: &SimFs, compression: Compression) -> SnapshotStore {
    SnapshotStore::open_with(fs.shared(), options(STORE, compression)).unwrap()
}

/// Two whole chunks and a part of one, of which some compress; nothing for the empty one.
fn content(index: u64) -> Vec<u8> {
    let len = if index == 7 { 0 } else { 150 };
    let byte = |at: u64| if at < 64 { 7 } else { (at * at + index) as u8 };
    (0..len).map(byte).collect()
}

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        group: GROUP,
        creation: CREATION,
        index: Index(index),
        term: Term(3),
        membership: b"members".as_slice().into(),
    }
}

fn write(store: &SnapshotStore, index: u64) -> SnapshotRef {
    let mut writer = store.create(meta(index)).unwrap();
    writer.write_all(&content(index)).unwrap();
    writer.finish().unwrap().keep()
}

/// A snapshot of another store, and its chunks.
fn offered(index: u64) -> (SnapshotManifest, Vec<bytes::Bytes>) {
    let peer = StoreId(0xfedc_ba98);
    let options = options(peer, Compression::None);
    let store = SnapshotStore::open_with(SimFs::new(1).shared(), options).unwrap();
    let mut sender = store.send(GROUP, &write(&store, index)).unwrap();
    let chunks = std::iter::from_fn(|| Some(sender.next_chunk().unwrap()?.1));
    let chunks = chunks.collect();
    (sender.manifest(), chunks)
}

/// The store of which the golden files are.
fn write_all(fs: &SimFs) {
    write(&open(fs, Compression::None), 5);
    write(&open(fs, Compression::Lz4), 6);
    let store = open(fs, Compression::None);
    write(&store, 7);
    let (manifest, chunks) = offered(8);
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    for (chunk, number) in chunks.iter().zip(0..) {
        receiver.push(number, chunk).unwrap();
    }
    let _received = receiver.finish().unwrap().keep();
    let (manifest, chunks) = offered(9);
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    for number in 0..2 {
        receiver.push(number, &chunks[number as usize]).unwrap();
    }
}

/// The names below the store's directory.
fn names(fs: &SimFs) -> Vec<String> {
    let group = "group-000000000000a1b2";
    let files = fs.list(format!("{DIR}/{group}").as_ref()).unwrap();
    let files = files.into_iter().map(|name| format!("{group}/{name}"));
    files.chain(["NUMBERS".to_owned()]).collect()
}

/// The golden files, on a disk of their own.
fn stored(names: &[String]) -> SimFs {
    let fs = SimFs::new(2);
    let group = format!("{DIR}/group-000000000000a1b2");
    fs.create_dir_all(group.as_ref()).unwrap();
    for name in names {
        let content = std::fs::read(golden("snap").join(name)).unwrap();
        fs.write_file(format!("{DIR}/{name}"), &content).unwrap();
    }
    fs
}

#[test]
fn golden_snapshots_are_what_is_written_today() {
    let fs = SimFs::new(1);
    write_all(&fs);
    let names = names(&fs);
    assert_eq!(names.len(), 6, "{names:?}");
    for name in &names {
        let (path, today) = (golden("snap").join(name), format!("{DIR}/{name}"));
        let today = fs.read_file(today).unwrap();
        if updating() {
            keep(&path, &today);
        }
        // Another release of the compressor may choose other blocks for the same content.
        if !name.contains("snap-0000000000000006") {
            assert!(
                std::fs::read(&path).unwrap() == today,
                "{name} is not what is written today: the format changed"
            );
        }
    }
}

#[test]
fn golden_snapshots_open_with_their_content_and_the_receive_goes_on() {
    let fs = SimFs::new(1);
    write_all(&fs);
    let fs = stored(&names(&fs));
    let store = open(&fs, Compression::None);
    let files = store.list().unwrap();
    assert_eq!(files.len(), FILES.len());
    for (file, (what, index)) in files.iter().zip(FILES) {
        assert_eq!(
            (file.group, file.creation, file.index, file.term),
            (GROUP, Some(CREATION), Index(index), Term(3)),
            "{what}"
        );
        let snapshot = file.state.as_ref().unwrap();
        assert_eq!(&snapshot.membership[..], b"members", "{what}");
        let mut found = Vec::new();
        let mut reader = store.open_snapshot(GROUP, snapshot).unwrap();
        reader.read_to_end(&mut found).unwrap();
        assert_eq!(found, content(index), "{what}");
    }
    assert!(files[1].file_len < files[0].file_len, "one is compressed");

    assert!(fs.file_len(format!("{DIR}/{PART}")).is_ok());
    let (manifest, chunks) = offered(9);
    let mut receiver = store.receive(manifest, CREATION).unwrap();
    assert_eq!(receiver.next(), 2, "what was received is there");
    receiver.push(2, &chunks[2]).unwrap();
    let snapshot = receiver.finish().unwrap().keep();
    store.verify(GROUP, &snapshot).unwrap();
    // Each start goes on behind the numbers that were reserved before it, 64 at a time.
    assert_eq!(snapshot.number, 1 + 3 * 64);
}
