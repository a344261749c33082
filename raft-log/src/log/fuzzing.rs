//! What holds for the decoders of the log, whatever the bytes. `crate::fuzzing` says what that is, and who calls this.

use super::footer::{self, FOOTER, Footer};
use super::format::{
    self, BATCH_HEADER, BatchHeader, BodyEncoder, DiskRecord, GroupCheckpoint, KIND_ENTRY_LZ4,
    RECORD_HEADER, SegmentHeader, u32_at, u64_at,
};
use super::index::Groups;
use super::manifest::{self, Block};
use super::votes::{self, Slots};
use crate::fuzzing::{Bytes, assert_same, put_crc, repair};
use crate::{Base, Index, Record, StoreId};

/// Runs a check on the bytes, and on what the repair makes of them.
fn both(data: &[u8], mend: impl FnOnce(&mut [u8]), check: impl Fn(&[u8]) -> bool) -> bool {
    let mut mended = data.to_vec();
    mend(&mut mended);
    let found = check(data);
    check(&mended) || found
}

/// The first bytes of a segment.
#[must_use]
pub fn segment_header(data: &[u8]) -> bool {
    both(
        data,
        |data| repair(data, 0..60, 60),
        |data| {
            let Ok(top) = SegmentHeader::decode(data) else {
                return false;
            };
            let again = top.encode();
            assert_same(&again, &data[..again.len()], &[10..12, 60..64]);
            assert_eq!(SegmentHeader::decode(&again), Ok(top));
            true
        },
    )
}

/// A batch: its header, whose place and salt are taken for the right ones, and its records.
#[must_use]
pub fn batch(data: &[u8]) -> bool {
    both(data, mend_batch, |data| {
        let Some((head, body)) = data.split_at_checked(BATCH_HEADER) else {
            return false;
        };
        let (salt, offset) = (u64_at(head, 8), u64_at(head, 24));
        let header = BatchHeader::decode(head, offset, salt);
        if let Some(header) = header {
            let (mut again, mut copy) = ([0; BATCH_HEADER], header);
            copy.encode(salt, &mut again);
            assert_same(&again, head, &[6..8, 60..64]);
            assert_eq!(BatchHeader::decode(&again, offset, salt), Some(copy));
            assert_eq!(BatchHeader::decode(head, offset, salt ^ 1), None);
            assert_eq!(BatchHeader::decode(head, offset ^ 8, salt), None);
        }
        records(body) && header.is_some()
    })
}

/// True when all records of a body verify.
fn records(body: &[u8]) -> bool {
    let Some(found) = format::decode_records(body) else {
        return false;
    };
    let mut again = BodyEncoder::default();
    for (group, record) in &found {
        match record {
            DiskRecord::Entry(entry) => {
                again.push(
                    *group,
                    &Record::Entries(vec![entry.clone()]),
                    &mut Vec::new(),
                );
            }
            DiskRecord::Other(record) => again.push(*group, record, &mut Vec::new()),
            DiskRecord::Checkpoint(state) => again.push_checkpoint(*group, state),
        }
    }
    assert_eq!(again.records as usize, found.len());
    let (mut raws, mut at) = (Vec::new(), 0);
    while at < body.len() {
        let raw = format::raw_record(body, at).expect("it verifies among the others");
        at = (raw.start + raw.len).next_multiple_of(8);
        raws.push(raw);
    }
    // There is more than one LZ4 block of a content.
    if raws
        .iter()
        .any(|raw| u32_at(body, raw.start + 8) == u32::from(KIND_ENTRY_LZ4))
    {
        assert_eq!(format::decode_records(&again.bytes).as_ref(), Some(&found));
    } else {
        assert_same(&again.bytes, body, &[]);
    }
    // An entry is also read by itself, at its place.
    for (raw, (group, record)) in raws.into_iter().zip(&found) {
        let bytes = &body[raw.start..raw.start + raw.len];
        let one = format::raw_record(bytes, 0).expect("it verifies among the others");
        assert_eq!((one.len, one.group), (raw.len, *group));
        assert_eq!(
            format::decode_record(bytes, one).as_ref(),
            Some(record),
            "it is the same by itself"
        );
    }
    true
}

fn mend_batch(data: &mut [u8]) {
    let mut at = BATCH_HEADER;
    while at + RECORD_HEADER <= data.len() {
        let end = at + RECORD_HEADER + u32_at(data, at + 12) as usize;
        let Some(record) = data.get(at..end) else {
            break;
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&record[..16]);
        crc.update(&record[RECORD_HEADER..]);
        put_crc(data, at + 16, crc.finalize());
        at = end.next_multiple_of(8);
    }
    repair(data, 0..60, 60);
}

/// The end of a segment: an index and the fixed part behind it.
#[must_use]
pub fn footer(data: &[u8]) -> bool {
    both(data, mend_footer, |data| {
        let Some(fixed) = data
            .len()
            .checked_sub(FOOTER)
            .and_then(|at| data.get(at..at + FOOTER))
        else {
            return false;
        };
        // Behind as many zeros as a short segment has bytes.
        let file = Bytes {
            zeros: 64 << 10,
            data: data.to_vec(),
        };
        let len = file.zeros + data.len() as u64;
        let Some((found, index)) = Footer::read(&file, len, u64_at(fixed, 16)) else {
            return false;
        };
        let again = found.encode(index.clone());
        let zeros = again.len().saturating_sub(data.len());
        assert!(again[..zeros].iter().all(|byte| *byte == 0));
        let tail = &data[data.len() - (again.len() - zeros)..];
        assert_same(&again[zeros..], tail, &[]);
        adopt(&index, found.end)
    })
}

/// True when the index of a segment makes sense: then a log that takes it up writes the same one.
fn adopt(index: &[u8], end: u64) -> bool {
    const SEGMENT: u64 = 7;
    let Some(sealed) = footer::parse(index, SEGMENT, end) else {
        return false;
    };
    let mut next = Vec::new();
    for one in &sealed {
        let last = one.first.0 + (one.places.len() as u64 - 1);
        let state = GroupCheckpoint {
            base: Base {
                index: one.first.prev(),
                ..Base::default()
            },
            last_index: Index(last),
            ..GroupCheckpoint::default()
        };
        next.push((one.group, state));
    }
    let possible = sealed.iter().all(|one| one.first > Index::ZERO);
    let mut groups = Groups::default();
    assert_eq!(footer::adopt(&mut groups, sealed, next), possible);
    if possible {
        assert_same(&footer::index_of(&groups, SEGMENT), index, &[]);
    }
    true
}

fn mend_footer(data: &mut [u8]) {
    let Some(at) = data.len().checked_sub(FOOTER) else {
        return;
    };
    if let Some(start) = at.checked_sub(u32_at(data, at + 12) as usize) {
        repair(data, start..at, at + 52);
    }
    repair(data, at..at + 60, at + 60);
}

/// A block of the manifest.
#[must_use]
pub fn manifest(data: &[u8]) -> bool {
    both(
        data,
        |data| repair(data, 0..60, 60),
        |data| {
            let Some(used) = data.get(..64) else {
                return false;
            };
            let Some(Block::Sound(store, contents)) = manifest::decode(used) else {
                return false;
            };
            let again = manifest::encode(store, &contents);
            assert_same(&again[..64], used, &[]);
            let decoded = manifest::decode(&again);
            assert!(matches!(decoded, Some(Block::Sound(s, c)) if (s, c) == (store, contents)));
            true
        },
    )
}

/// The two vote slots of a group, or what there is of them.
#[must_use]
pub fn votes(data: &[u8]) -> bool {
    both(data, mend_votes, |data| {
        let mut blocks = [[0; votes::BLOCK]; 2];
        for (block, data) in blocks.iter_mut().zip(data.chunks(votes::BLOCK)) {
            block[..data.len()].copy_from_slice(data);
        }
        let store = StoreId(u64_at(&blocks[0], 8));
        let mut found = [false; 2];
        for (block, found) in blocks.iter().zip(&mut found) {
            let Some(slot) = votes::decode(store, block) else {
                continue;
            };
            let again = votes::encode(store, &slot, u64_at(block, 32));
            let used = if slot.incarnation == 0 { 68 } else { 76 };
            assert_same(&again[..used], &block[..used], &[]);
            assert_eq!(votes::decode(store, &again), Some(slot));
            *found = true;
        }
        let mut slots = Slots::default();
        slots.take(store, 0, [Some(&blocks[0]), Some(&blocks[1])]);
        let empty = blocks.map(|block| block.iter().all(|byte| *byte == 0));
        let damaged = (0..2).filter(|at| !found[*at] && !empty[*at]).count();
        assert_eq!(slots.damaged.len(), damaged);
        assert!(slots.orphans.is_empty() || found == [false; 2]);
        found[0]
    })
}

fn mend_votes(data: &mut [u8]) {
    for block in data.chunks_mut(votes::BLOCK) {
        let end = match block.get(7) {
            Some(2) => 72,
            _ => 64,
        };
        repair(block, 0..end, end);
    }
}
