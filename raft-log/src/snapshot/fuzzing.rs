//! What holds for the decoders of snapshots, whatever the bytes. `crate::fuzzing` says what that is, and who calls this.

use std::path::Path;

use super::catalog::Catalog;
use super::chunk::{CHUNK_HEAD_LEN, CHUNK_SIZE_MAX, ChunkHead, Compression, seal};
use super::error::SnapshotError;
use super::format::{FOOTER_LEN, Footer, Header, u32_at, u64_at};
use super::number::{self, COPY_LEN, COPY_STRIDE};
use super::reader::SnapshotReader;
use super::sender::SnapshotManifest;
use super::{SnapshotOptions, SnapshotStore};
use crate::fuzzing::{Bytes, assert_same, put_crc, repair};
use crate::lz4::LZ4_RATIO_MAX;
use crate::vfs::{SimFs, Vfs};
use crate::{GroupId, IoMode, SnapshotRef, StoreId};

/// The header without membership and checksum.
const HEADER_LEN: usize = 104;
/// What a reader of a header ignores: reserved fields, and of what this store made what only a peer announces.
const RESERVED: [std::ops::Range<usize>; 2] = [68..72, 100..104];

fn bytes(data: &[u8]) -> Bytes {
    let data = data.to_vec();
    Bytes { zeros: 0, data }
}

fn path() -> &'static Path {
    Path::new("fuzzed")
}

/// The header of a snapshot file.
#[must_use]
pub fn header(data: &[u8]) -> bool {
    let mut mended = data.to_vec();
    mend_header(&mut mended);
    let found = check_header(data);
    check_header(&mended) || found
}

fn check_header(data: &[u8]) -> bool {
    let Ok(header) = Header::read(&bytes(data), path(), None) else {
        return false;
    };
    let again = header.encode();
    assert_eq!(again.len() as u64, header.len());
    let crc = again.len() - 4..again.len();
    let mut ignored = vec![crc, RESERVED[0].clone(), RESERVED[1].clone()];
    if header.origin.is_none() {
        ignored.push(72..100);
    }
    assert_same(&again, &data[..again.len()], &ignored);
    let twice = Header::read(&bytes(&again), path(), Some(header.store));
    assert_eq!(twice.expect("it was just encoded"), header);
    true
}

/// Where the chunks begin, as the header says.
fn mend_header(data: &mut [u8]) -> Option<usize> {
    let end = HEADER_LEN + u32_at(data.get(..HEADER_LEN)?, 12) as usize;
    repair(data, 0..end, end);
    (end + 4 <= data.len()).then_some(end + 4)
}

/// A chunk, behind its number (8 bytes) and the length of its content (4 bytes).
#[must_use]
pub fn chunk(data: &[u8]) -> bool {
    let Some((front, chunk)) = data.split_at_checked(12) else {
        return false;
    };
    // A few megabytes do for what the length decides.
    let (number, len) = (u64_at(front, 0), u32_at(front, 8) % (2 << 20) + 1);
    let mut mended = chunk.to_vec();
    mend_chunk(number, &mut mended);
    let found = check_chunk(number, len, chunk);
    check_chunk(number, len, &mended) || found
}

fn check_chunk(number: u64, len: u32, chunk: &[u8]) -> bool {
    let Some((head, stored)) = chunk.split_first_chunk() else {
        return false;
    };
    let Ok(head) = ChunkHead::decode(head, len) else {
        return false;
    };
    assert!((1..=len).contains(&head.stored));
    let mut content = Vec::new();
    let Ok(crc) = head.open(number, stored, len, &mut content) else {
        return false;
    };
    head.verify(number, stored).expect("it was just opened");
    if content.is_empty() {
        content.extend_from_slice(stored);
    }
    // The checksum covers the length in the head, not that of the slice, which is the caller's to compare.
    if stored.len() != head.stored as usize {
        return false;
    }
    assert_eq!(content.len(), len as usize);
    assert_eq!(crc.finalize(), crc32fast::hash(&content));
    for compression in [Compression::None, Compression::Lz4] {
        let mut again = vec![0; CHUNK_HEAD_LEN];
        again.extend_from_slice(&content);
        let whole = seal(number, 0, compression, &mut Vec::new(), &mut again);
        assert_eq!(whole.finalize(), crc32fast::hash(&content));
        let (head, stored) = again.split_first_chunk().expect("a whole head");
        let head = ChunkHead::decode(head, len).expect("it was just sealed");
        let mut out = Vec::new();
        head.open(number, stored, len, &mut out)
            .expect("it was just sealed");
        assert!(out == content || (out.is_empty() && stored == content));
        if compression == Compression::None && chunk.len() == CHUNK_HEAD_LEN + len as usize {
            assert_same(&again, chunk, &[]);
        }
    }
    true
}

fn mend_chunk(number: u64, chunk: &mut [u8]) {
    let Some((head, stored)) = chunk.split_at_mut_checked(CHUNK_HEAD_LEN) else {
        return;
    };
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(&head[..4]);
    crc.update(stored);
    put_crc(head, 4, crc.finalize());
}

/// A whole snapshot file.
#[must_use]
pub fn file(data: &[u8]) -> bool {
    let mut mended = data.to_vec();
    mend_file(&mut mended);
    let found = check_file(data);
    check_file(&mended) || found
}

fn check_file(data: &[u8]) -> bool {
    let file = bytes(data);
    let Ok(header) = Header::read(&file, path(), None) else {
        return false;
    };
    let Ok(footer) = Footer::read(&file, path(), &header) else {
        return false;
    };
    assert_same(&footer.encode(), &data[data.len() - FOOTER_LEN..], &[]);
    assert_eq!(
        header.len() + footer.stored_len + FOOTER_LEN as u64,
        data.len() as u64
    );
    let mut reader = SnapshotReader::new(path().into(), Box::new(file), header, footer, None);
    let (mut len, mut crc) = (0, crc32fast::Hasher::new());
    loop {
        match reader.next_chunk() {
            Err(_) => {
                assert!(reader.next_chunk().is_err(), "an error stays");
                return false;
            }
            Ok([]) => break,
            Ok(chunk) => {
                len += chunk.len() as u64;
                crc.update(chunk);
            }
        }
    }
    assert_eq!(
        (len, crc.finalize()),
        (footer.content_len, footer.content_crc)
    );
    true
}

fn mend_file(data: &mut [u8]) {
    let Some(start) = mend_header(data) else {
        return;
    };
    let Some(end) = data.len().checked_sub(FOOTER_LEN) else {
        return;
    };
    let content_len = u64_at(data, end + 16);
    if let Some(content) = mend_chunks(data, start, end, content_len) {
        put_crc(data, end + 32, content);
    }
    repair(data, end..end + 36, end + 36);
}

/// Gives chunks their checksums; and the header that of their content, which is returned, if they fill the space.
fn mend_chunks(data: &mut [u8], start: usize, end: usize, content_len: u64) -> Option<u32> {
    let chunk_size = u64::from(u32_at(data, 64).min(CHUNK_SIZE_MAX));
    let (mut at, mut number, mut left) = (start, 0, content_len);
    let (mut whole, mut content) = (crc32fast::Hasher::new(), Vec::new());
    while at + CHUNK_HEAD_LEN <= end && left > 0 {
        let next = at + CHUNK_HEAD_LEN + u32_at(data, at) as usize;
        if next > end {
            return None;
        }
        mend_chunk(number, &mut data[at..next]);
        let stored = &data[at + CHUNK_HEAD_LEN..next];
        let len = left.min(chunk_size);
        if (stored.len() as u64) < len {
            if len > (stored.len() * LZ4_RATIO_MAX) as u64 {
                return None;
            }
            content.resize(len as usize, 0);
            let len = lz4_flex::block::decompress_into(stored, &mut content).ok()?;
            whole.update(&content[..len]);
        } else {
            whole.update(stored);
        }
        (at, number, left) = (next, number + 1, left - len);
    }
    let whole = (at == end && left == 0).then(|| whole.finalize())?;
    if data[10] == 1 {
        put_crc(data, 96, whole);
        mend_header(data);
    }
    Some(whole)
}

/// A copy of the counter of numbers.
#[must_use]
pub fn numbers(data: &[u8]) -> bool {
    let mut mended = data.to_vec();
    repair(&mut mended, 0..36, 36);
    repair(&mut mended, COPY_STRIDE..COPY_STRIDE + 36, COPY_STRIDE + 36);
    let found = check_numbers(data);
    check_numbers(&mended) || found
}

fn check_numbers(data: &[u8]) -> bool {
    let Some(copy) = data.get(..COPY_LEN) else {
        return false;
    };
    let store = StoreId(u64_at(copy, 16));
    let first = number::read_copy(&bytes(data), path(), store, 0);
    let either = number::read(&bytes(data), path(), store);
    let Ok(reserved) = first else {
        // The other copy stands in for a damaged one.
        return either.is_ok();
    };
    assert_eq!(either.expect("the first copy is good"), reserved);
    let again = number::encode(store, reserved);
    assert_same(&again, copy, &[10..16, 32..40]);
    let twice = number::read_copy(&bytes(&again), path(), store, 0);
    assert_eq!(twice.expect("it was just encoded"), reserved);
    true
}

/// A partial file: the receive of what its header announces goes on with it, or begins anew.
#[must_use]
pub fn receive(data: &[u8]) -> bool {
    let mut mended = data.to_vec();
    if let Some(start) = mend_header(&mut mended) {
        let end = mended.len();
        let content_len = u64_at(&mended, 88);
        mend_chunks(&mut mended, start, end, content_len);
    }
    let found = check_receive(data);
    check_receive(&mended) || found
}

fn check_receive(data: &[u8]) -> bool {
    let Ok(header) = Header::read(&bytes(data), path(), None) else {
        return false;
    };
    let Some(origin) = header.origin.clone() else {
        return false;
    };
    let manifest = SnapshotManifest {
        store: origin.store,
        group: header.group,
        snapshot: SnapshotRef {
            number: origin.number,
            content_len: origin.content_len,
            content_crc: origin.content_crc,
            index: header.index,
            term: header.term,
            membership: header.membership.clone(),
        },
        chunk_size: header.chunk_size,
    };
    let (fs, part) = disk_with_part(data, &header);
    let mut options = SnapshotOptions::new("/snap", header.store);
    options.io = IoMode::Inline;
    let store = SnapshotStore::open_with(fs.shared(), options).expect("the counter is there");
    let receiver = store
        .receive(manifest, header.creation)
        .expect("it can always begin");
    let (next, chunks) = (receiver.next(), receiver.chunks());
    assert!(next <= chunks);
    if next < chunks {
        drop(receiver);
        // What verified was written again, and what follows it is gone; only the number in the header counts not.
        let kept = fs.read_file(&part).unwrap_or_default();
        let resumed = header.number == 0;
        if resumed {
            let crc = header.len() as usize - 4..header.len() as usize;
            let ignored = [crc, RESERVED[0].clone(), RESERVED[1].clone()];
            assert_same(&kept, &data[..kept.len()], &ignored);
        }
        return next > 0;
    }
    match receiver.finish() {
        Ok(pending) => {
            let snapshot = pending.keep();
            let verified = store.verify(header.group, &snapshot);
            verified.expect("what was received reads back");
            true
        }
        Err(error) => {
            assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
            false
        }
    }
}

/// A disk with the counter of numbers and a partial file.
fn disk_with_part(data: &[u8], header: &Header) -> (SimFs, String) {
    let fs = SimFs::new(1);
    let catalog = Catalog::new(fs.shared(), "/snap", None);
    let dir = catalog.group_dir(GroupId(header.group.0));
    fs.create_dir_all(&dir).expect("a new disk has room");
    let copy = number::encode(header.store, 65);
    let part = catalog.part_path(header.group, (header.index, header.term, 1));
    let part = part.display().to_string();
    for (path, data) in [("/snap/NUMBERS", &copy[..]), (&part, data)] {
        fs.write_file(path, data).expect("a new disk has room");
    }
    (fs, part)
}
