//! Whatever the encoders of snapshots are given, the decoders give back; and every encoding is one that `fuzzing` knows.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::chunk::{CHUNK_HEAD_LEN, CHUNK_SIZE_MAX, ChunkHead, Compression, seal};
use super::format::{Footer, Header, Origin};
use super::{fuzzing, number};
use crate::fuzzing::Bytes;
use crate::{GroupId, Index, StoreId, Term};

fn file(data: Vec<u8>) -> Bytes {
    Bytes { zeros: 0, data }
}

fn origin() -> impl Strategy<Value = Origin> {
    let words = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    words.prop_map(|(store, number, content_len, content_crc)| Origin {
        store: StoreId(store),
        number,
        content_len,
        content_crc,
    })
}

fn header() -> impl Strategy<Value = Header> {
    let (origin, members) = (proptest::option::of(origin()), vec(any::<u8>(), 0..300));
    (any::<[u64; 6]>(), 1..=CHUNK_SIZE_MAX, origin, members).prop_map(
        |([store, group, creation, index, term, number], chunk_size, origin, membership)| Header {
            store: StoreId(store),
            group: GroupId(group),
            creation,
            index: Index(index),
            term: Term(term),
            number,
            chunk_size,
            origin,
            membership: membership.into(),
        },
    )
}

/// Bytes of which some compress.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 1..700),
        (any::<u8>(), 1..5000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

proptest! {
    #[test]
    fn snapshot_header_encodes_to_what_reads_back(header in header()) {
        let bytes = header.encode();
        prop_assert_eq!(bytes.len() as u64, header.len());
        prop_assert!(fuzzing::header(&bytes));
        let read = Header::read(&file(bytes), Path::new("x"), Some(header.store));
        prop_assert_eq!(read.map_err(|error| error.to_string()), Ok(header));
    }

    #[test]
    fn snapshot_of_any_chunks_is_a_file_that_reads_back(
        header in header(),
        content in content(),
        chunk_size in 1..900u32,
        lz4 in any::<bool>(),
    ) {
        let mut header = Header { chunk_size, ..header };
        if let Some(origin) = &mut header.origin {
            origin.content_len = content.len() as u64;
            origin.content_crc = crc32fast::hash(&content);
        }
        let compression = [Compression::None, Compression::Lz4][usize::from(lz4)];
        let mut bytes = header.encode();
        let mut chunks = 0;
        for part in content.chunks(chunk_size as usize) {
            let start = bytes.len();
            bytes.extend_from_slice(&[0; CHUNK_HEAD_LEN]);
            bytes.extend_from_slice(part);
            seal(chunks, start, compression, &mut Vec::new(), &mut bytes);
            chunks += 1;
        }
        let footer = Footer {
            chunks,
            content_len: content.len() as u64,
            stored_len: bytes.len() as u64 - header.len(),
            content_crc: crc32fast::hash(&content),
        };
        // Without a footer, a receive goes on with it; then all of it is there.
        header.number = 0;
        let mut part = header.encode();
        part.extend_from_slice(&bytes[header.len() as usize..]);
        prop_assert_eq!(fuzzing::receive(&part), header.origin.is_some());
        bytes.extend_from_slice(&footer.encode());
        prop_assert!(fuzzing::file(&bytes));
        let read = Footer::read(&file(bytes), Path::new("x"), &header);
        prop_assert_eq!(read.map_err(|error| error.to_string()), Ok(footer));
    }

    #[test]
    fn chunk_opens_to_what_was_sealed(number in any::<u64>(), content in content(), lz4 in any::<bool>()) {
        let compression = [Compression::None, Compression::Lz4][usize::from(lz4)];
        let mut chunk = vec![0; CHUNK_HEAD_LEN];
        chunk.extend_from_slice(&content);
        seal(number, 0, compression, &mut Vec::new(), &mut chunk);
        let len = content.len() as u32;
        let (head, stored) = chunk.split_first_chunk().expect("a whole head");
        let mut out = Vec::new();
        let opened = ChunkHead::decode(head, len).and_then(|head| head.open(number, stored, len, &mut out));
        prop_assert_eq!(opened.map(|crc| crc.finalize()).ok(), Some(crc32fast::hash(&content)));
        prop_assert!(out == content || (out.is_empty() && stored == content));
        let mut input = number.to_le_bytes().to_vec();
        input.extend_from_slice(&(len - 1).to_le_bytes());
        input.extend_from_slice(&chunk);
        prop_assert!(fuzzing::chunk(&input));
    }

    #[test]
    fn counter_encodes_to_what_reads_back(store in any::<u64>(), reserved in any::<u64>()) {
        let copy = number::encode(StoreId(store), reserved);
        let read = number::read(&file(copy.to_vec()), Path::new("x"), StoreId(store));
        prop_assert_eq!(read.ok(), Some(reserved));
        prop_assert!(fuzzing::numbers(&copy));
    }
}
