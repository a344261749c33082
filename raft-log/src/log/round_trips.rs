//! Whatever the encoders of the log are given, the decoders give back; and every encoding is one that `fuzzing` knows.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::footer::{self, Footer};
use super::format::{
    self, BATCH_HEADER, BatchHeader, BodyEncoder, DiskRecord, GroupCheckpoint, SEGMENT_BYTES_MAX,
    SEGMENT_DATA, SegmentHeader,
};
use super::fuzzing;
use super::index::{Groups, Position};
use super::manifest::{self, Block, Contents};
use super::votes::{self, Slot};
use super::writer;
use crate::{
    Base, Entry, EntryKind, GroupId, HardState, Incarnation, Index, NodeId, Record, SnapshotRef,
    StoreId, Term,
};

fn index() -> impl Strategy<Value = Index> {
    prop_oneof![0..100u64, any::<u64>().prop_map(|n| n.min(u64::MAX - 1))].prop_map(Index)
}

fn bytes() -> impl Strategy<Value = bytes::Bytes> {
    vec(any::<u8>(), 0..60).prop_map(Into::into)
}

fn hard_state() -> impl Strategy<Value = HardState> {
    (any::<u64>(), any::<Option<u64>>(), any::<u64>()).prop_map(|(term, vote, commit)| HardState {
        term: Term(term),
        vote: vote.map(NodeId),
        commit: Index(commit),
    })
}

fn base() -> impl Strategy<Value = Base> {
    (index(), any::<u64>(), any::<u64>(), bytes()).prop_map(
        |(index, term, creation, membership)| Base {
            index,
            term: Term(term),
            creation,
            membership,
        },
    )
}

fn snapshot() -> impl Strategy<Value = SnapshotRef> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (numbers, any::<u32>(), bytes()).prop_map(|(numbers, content_crc, membership)| SnapshotRef {
        index: Index(numbers.0),
        term: Term(numbers.1),
        number: numbers.2,
        content_len: numbers.3,
        content_crc,
        membership,
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let alike = (any::<u8>(), 100..2_000_usize).prop_map(|(byte, len)| std::vec![byte; len].into());
    let payload = prop_oneof![bytes(), alike];
    (index(), any::<u64>(), any::<bool>(), payload).prop_map(|(index, term, config, payload)| {
        Entry {
            index,
            term: Term(term),
            kind: [EntryKind::Normal, EntryKind::Config][usize::from(config)],
            payload,
        }
    })
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    (0..9u64, any::<bool>()).prop_map(|(number, guarded)| Incarnation { number, guarded })
}

fn checkpoint() -> impl Strategy<Value = GroupCheckpoint> {
    let snapshot = proptest::option::of(snapshot());
    (hard_state(), base(), index(), snapshot, incarnation()).prop_map(
        |(hard_state, base, last_index, snapshot, incarnation)| GroupCheckpoint {
            hard_state,
            base,
            last_index,
            snapshot,
            incarnation,
        },
    )
}

fn record() -> impl Strategy<Value = DiskRecord> {
    prop_oneof![
        entry().prop_map(DiskRecord::Entry),
        hard_state().prop_map(|state| DiskRecord::Other(Record::HardState(state))),
        any::<u64>().prop_map(|from| DiskRecord::Other(Record::Truncate(Index(from)))),
        base().prop_map(|base| DiskRecord::Other(Record::Compact(base))),
        snapshot().prop_map(|snapshot| DiskRecord::Other(Record::SnapshotRef(snapshot))),
        incarnation().prop_map(|one| DiskRecord::Other(Record::Incarnation(one))),
        Just(DiskRecord::Other(Record::Destroy)),
        checkpoint().prop_map(DiskRecord::Checkpoint),
    ]
}

/// The first index of a group's entries, and of each a term, a place and a length.
type Run = (u64, Vec<(u64, u32, u32)>);

proptest! {
    #[test]
    fn segment_header_encodes_to_what_decodes_to_it(
        ids in (any::<u64>(), any::<u64>(), any::<u64>()),
        seqs in (1..u64::MAX, any::<u64>()),
        chain in any::<u32>(),
        blocks in 0..=SEGMENT_BYTES_MAX / SEGMENT_DATA,
    ) {
        let top = SegmentHeader {
            store: StoreId(ids.0),
            id: ids.1,
            predecessor: ids.2,
            first_seq: seqs.0,
            synced_seq: seqs.1,
            chain,
            len: blocks * SEGMENT_DATA,
        };
        prop_assert_eq!(SegmentHeader::decode(&top.encode()), Ok(top));
        prop_assert!(fuzzing::segment_header(&top.encode()));
    }

    #[test]
    fn batch_encodes_to_what_decodes_to_it(
        records in vec((any::<u64>().prop_map(GroupId), record()), 0..6),
        words in (any::<u64>(), any::<u64>(), any::<u64>()),
        salt in any::<u64>(),
        chain in any::<u32>(),
        lz4_bytes_min in proptest::option::of(0..500_usize),
    ) {
        let mut body = BodyEncoder::compressing(lz4_bytes_min);
        for (group, record) in &records {
            match record {
                DiskRecord::Entry(entry) => {
                    let one = Record::Entries(vec![entry.clone()]);
                    prop_assert_eq!(format::encoded_len(&one).0 % 8, 0);
                    body.push(*group, &one, &mut Vec::new());
                }
                DiskRecord::Other(record) => body.push(*group, record, &mut Vec::new()),
                DiskRecord::Checkpoint(state) => body.push_checkpoint(*group, state),
            }
        }
        prop_assert_eq!(format::decode_records(&body.bytes), Some(records));
        let (seq, offset, synced) = words;
        let (mut out, count) = (Vec::new(), body.records);
        let top = writer::header(seq, offset, synced, count, chain);
        let crc = writer::frame(&mut out, salt, top, &body.bytes);
        let head = BatchHeader::decode(&out, offset, salt);
        let wanted = BatchHeader {
            body_len: body.bytes.len() as u32,
            body_crc: crc32fast::hash(&body.bytes),
            zeros: format::zero_pieces(offset.wrapping_add(BATCH_HEADER as u64), &body.bytes),
            crc,
            ..top
        };
        prop_assert_eq!(head, Some(wanted));
        prop_assert_eq!(&out[BATCH_HEADER..], &body.bytes[..]);
        prop_assert!(fuzzing::batch(&out));
    }

    #[test]
    fn footer_of_any_entries_is_what_another_log_takes_up(
        runs in btree_map(any::<u64>(), (1..u64::MAX / 2, vec((any::<u64>(), 0..800u32, 24..90u32), 1..9)), 0..4),
        chain in any::<u32>(),
    ) {
        const SEGMENT: u64 = 7;
        let mut groups = Groups::default();
        let runs: Vec<(u64, Run)> = runs.into_iter().collect();
        for (id, (first, entries)) in &runs {
            let base = Base { index: Index(first - 1), ..Base::default() };
            groups.apply(1, GroupId(*id), Record::Compact(base), || unreachable!("no entries"));
            let mut newest = 0;
            for ((grown, eighths, len), at) in entries.iter().zip(0..) {
                // Some share their term with the one before.
                newest += grown / 2 % 3;
                let entry = Entry {
                    index: Index(first + at),
                    term: Term(newest),
                    kind: EntryKind::Normal,
                    payload: bytes::Bytes::new(),
                };
                let place = Position::new(SEGMENT, SEGMENT_DATA + u64::from(*eighths) * 8, *len);
                let replayed = groups.replay_entry(GroupId(*id), entry, place);
                prop_assert_eq!(replayed, Ok(()));
            }
        }
        let index = footer::index_of(&groups, SEGMENT);
        let found = Footer { salt: 1, first_seq: 2, last_seq: 3, end: 20_000, chain };
        let sealed = footer::parse(&index, SEGMENT, found.end);
        prop_assert_eq!(sealed.map(|sealed| sealed.len()), Some(runs.len()));
        prop_assert!(fuzzing::footer(&found.encode(index)));
    }

    #[test]
    fn manifest_block_encodes_to_what_decodes_to_it(words in any::<[u64; 5]>()) {
        let [store, generation, oldest, newest, synced_seq] = words;
        let contents = Contents { generation, oldest, newest, synced_seq };
        let block = manifest::encode(StoreId(store), &contents);
        let Some(Block::Sound(owner, found)) = manifest::decode(&block) else {
            return Err(TestCaseError::fail("it does not verify"));
        };
        prop_assert_eq!((owner, found), (StoreId(store), contents));
        prop_assert!(fuzzing::manifest(&block));
    }

    #[test]
    fn vote_slot_encodes_to_what_decodes_to_it(words in any::<[u64; 5]>(), vote in any::<Option<u64>>(), incarnation in 0..9u64) {
        let [store, group, creation, sequence, term] = words;
        let slot = Slot {
            group: GroupId(group),
            creation,
            term: Term(term),
            vote: vote.map(NodeId),
            incarnation,
        };
        let block = votes::encode(StoreId(store), &slot, sequence);
        prop_assert_eq!(votes::decode(StoreId(store), &block), Some(slot));
        prop_assert_eq!(votes::decode(StoreId(!store), &block), None);
        prop_assert!(fuzzing::votes(&block));
    }
}
