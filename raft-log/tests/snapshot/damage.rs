//! Damage of every kind is an error, never other data.

use std::io::Read;

use raft_log::snapshot::{Compression, SnapshotError, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::{Index, SnapshotRef, StoreId};

use crate::common::*;

/// Two plain chunks and one that is compressed, in a store that compresses.
fn small(fs: &SimFs) -> (SnapshotStore, SnapshotRef, Vec<u8>) {
    let mut options = options();
    options.compression = Compression::Lz4;
    let store = SnapshotStore::open_with(fs.shared(), options).unwrap();
    let mut content = content(150);
    content[..64].fill(1);
    let snapshot = write(&store, 1, &content).unwrap();
    (store, snapshot, content)
}

#[test]
fn every_flipped_bit_is_an_error() {
    let fs = SimFs::new(1);
    let (store, snapshot, content) = small(&fs);
    let path = path_of(&snapshot);
    let len = fs.file_len(&path).unwrap();
    assert!(len < 104 + 7 + 4 + 150 + 24 + 40, "nothing was compressed");
    for offset in 0..len {
        for bit in 0..8 {
            fs.corrupt(&path, offset, 1 << bit).unwrap();
            let place = format!("offset {offset}, bit {bit}");
            assert!(read(&store, &snapshot).is_err(), "{place}");
            assert!(store.verify(GROUP, &snapshot).is_err(), "{place}");
            assert_eq!(store.list().unwrap().len(), 1);
            // What would be sent does not verify, or is not what the log refers to.
            let sent = store.send(GROUP, &snapshot).and_then(|mut sender| {
                while sender.next_chunk()?.is_some() {}
                Ok(())
            });
            assert!(sent.is_err(), "{place}");
            fs.corrupt(&path, offset, 1 << bit).unwrap();
        }
    }
    assert_eq!(read(&store, &snapshot).unwrap(), content);
}

#[test]
fn file_cut_or_grown_anywhere_is_an_error() {
    let fs = SimFs::new(1);
    let (store, snapshot, _) = small(&fs);
    let path = path_of(&snapshot);
    let whole = fs.read_file(&path).unwrap();
    for len in 0..whole.len() + 80 {
        let mut bytes = whole.clone();
        bytes.resize(len, 0);
        fs.write_file(&path, &bytes).unwrap();
        let verified = store.verify(GROUP, &snapshot).is_ok();
        assert_eq!(verified, len == whole.len(), "length {len}");
    }
}

#[test]
fn swapped_chunks_are_an_error_at_the_first() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, &content(192)).unwrap();
    let path = path_of(&snapshot);
    let mut bytes = fs.read_file(&path).unwrap();
    let start = 104 + "members".len() + 4;
    let (first, second) = bytes[start..].split_at_mut(72);
    first.swap_with_slice(&mut second[..72]);
    fs.write_file(&path, &bytes).unwrap();
    let mut reader = store.open_snapshot(GROUP, &snapshot).unwrap();
    let mut out = Vec::new();
    let error = reader.read_to_end(&mut out).unwrap_err();
    assert!(error.to_string().contains("chunk checksum"), "{error}");
    assert!(out.is_empty());
    assert!(reader.read(&mut [0; 8]).is_err());
}

#[test]
fn chunk_of_another_snapshot_is_an_error_before_the_last_is_handed_out() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, &content(192)).unwrap();
    let other = write(&store, 2, &content(193)).unwrap();
    let start = 104 + "members".len() + 4;
    let donor = fs.read_file(path_of(&other)).unwrap();
    let mut bytes = fs.read_file(path_of(&snapshot)).unwrap();
    bytes[start..start + 72].copy_from_slice(&donor[start..start + 72]);
    fs.write_file(path_of(&snapshot), &bytes).unwrap();
    let mut reader = store.open_snapshot(GROUP, &snapshot).unwrap();
    let mut out = Vec::new();
    let error = reader.read_to_end(&mut out).unwrap_err();
    assert!(error.to_string().contains("content checksum"), "{error}");
    assert_eq!(out.len(), 128);
}

#[test]
fn file_of_another_store_version_or_name_is_refused() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    let snapshot = write(&store, 1, b"x").unwrap();
    let path = path_of(&snapshot);
    let whole = fs.read_file(&path).unwrap();

    let other = SnapshotRef {
        content_crc: 1,
        ..snapshot.clone()
    };
    let error = store.verify(GROUP, &other).unwrap_err();
    assert!(error.is_damage(), "{error}");

    let misnamed = SnapshotRef {
        index: Index(2),
        ..snapshot.clone()
    };
    fs.write_file(path_of(&misnamed), &whole).unwrap();
    let error = store.verify(GROUP, &misnamed).unwrap_err();
    assert!(error.is_damage(), "{error}");

    // The header up to the version is all that a newer release has to keep.
    let mut newer = whole.clone();
    newer[8] = 2;
    for len in [10, newer.len()] {
        fs.write_file(&path, &newer[..len]).unwrap();
        let error = store.verify(GROUP, &snapshot).unwrap_err();
        let is_newer = matches!(error, SnapshotError::NewerVersion { found: 2, .. });
        assert!(is_newer, "{error}");
    }

    let mut foreign = whole;
    foreign[16..24].copy_from_slice(&99_u64.to_le_bytes());
    let crc_at = 104 + "members".len();
    let crc = crc32fast::hash(&foreign[..crc_at]);
    foreign[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    fs.write_file(&path, &foreign).unwrap();
    let error = store.verify(GROUP, &snapshot).unwrap_err();
    let is_foreign =
        matches!(error, SnapshotError::ForeignStore { found, .. } if found == StoreId(99));
    assert!(is_foreign, "{error}");
}
