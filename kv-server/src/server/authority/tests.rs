//! Byte streams of clients, hand made and captured, whole and in pieces of any size.

mod property;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const SETTINGS: u8 = 4;
const URL: &[u8] = b"http://127.0.0.1:2379";
const REPAIRED: &[u8] = b"http---127.0.0.1:2379";
/// A literal that becomes an entry of the dynamic table, with the name of row 1 of the static table.
const INDEXING: &[u8] = &[0x41];

/// What etcdctl 3.4.23 sends for `endpoint status` of `http://127.0.0.1:23901`, up to and after its authority.
const CAPTURED_HEAD: &str =
    "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a000000040000000000000000040100000000";
const CAPTURED_FRAME: &str = "000077010400000001";
const CAPTURED_BEFORE: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f";
const CAPTURED_AUTHORITY: &str = "41909d29aee30c044eae05c0b86e0997c01f";
const CAPTURED_AFTER: &str = "5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb2caecff40027465864d833505b11f40\
    899acac8b24d494f6a7f8669b7de03cddb408d25062d495875996ee5b1063d5f03332e34\
    0000050001000000010000000000";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = payload.len();
    FrameHead {
        length,
        kind,
        flags,
        stream,
    }
    .write(&mut out);
    out.extend_from_slice(payload);
    out
}

/// Preface and settings.
fn handshake() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A connection whose first request has this block.
fn connection(block: &[u8]) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, 1, block);
    let data = frame(0, 1, 1, b"\0\0\0\0\0");
    [handshake(), headers, data].concat()
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 0x7f);
    [&[bytes.len() as u8], bytes].concat()
}

fn huffman(bytes: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for byte in bytes {
        let mut first = 0_u32;
        let mut before = 0;
        for (length, symbols) in huffman::CODES {
            first <<= length - before;
            before = length;
            if let Some(n) = symbols.iter().position(|symbol| symbol == byte) {
                let code = first + n as u32;
                bits.extend((0..length).rev().map(|bit| code >> bit & 1));
            }
            first += symbols.len() as u32;
        }
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    let encoded: Vec<_> = bits
        .chunks(8)
        .map(|byte| byte.iter().fold(0, |sum, &bit| sum << 1 | bit as u8))
        .collect();
    let mut out = Vec::new();
    block::write_string(&encoded, &mut out);
    out[0] |= 0x80;
    out
}

fn block_with(authority: &[u8]) -> Vec<u8> {
    let path = plain(b"/etcdserverpb.KV/Range");
    [&[0x83, 0x86, 0x45], &path[..], authority, &[0x90]].concat()
}

fn drain(scan: &mut Scan, out: &mut Vec<u8>) {
    loop {
        let mut bytes = [0; 100];
        let mut room = ReadBuf::new(&mut bytes);
        if !scan.give(&mut room) {
            return;
        }
        out.extend_from_slice(room.filled());
    }
}

/// What comes out when these pieces come in, and then the end.
fn pass<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut scan, mut out) = (Scan::default(), Vec::new());
    for piece in pieces {
        scan.feed(piece);
        drain(&mut scan, &mut out);
        assert!(
            scan.frame <= scan.held.len() && scan.held.len() < HELD_BYTES_MAX + FRAME_HEAD_BYTES
        );
        assert!(!scan.done || scan.held.is_empty());
    }
    scan.release();
    drain(&mut scan, &mut out);
    out
}

/// What comes out, however the bytes are cut.
fn pass_cut(bytes: &[u8]) -> Vec<u8> {
    let out = pass([bytes]);
    assert!(pass(bytes.chunks(1)) == out, "byte by byte");
    for cut in 0..bytes.len() {
        let (head, tail) = bytes.split_at(cut);
        assert!(pass([head, tail]) == out, "cut at {cut}");
    }
    out
}

#[test]
fn captured_url_authority_is_repaired_at_any_cut() {
    let sent = [
        CAPTURED_HEAD,
        CAPTURED_FRAME,
        CAPTURED_BEFORE,
        CAPTURED_AUTHORITY,
        CAPTURED_AFTER,
    ];
    let repaired = [INDEXING, &plain(b"http---127.0.0.1:23901")].concat();
    let expected = [
        hex(CAPTURED_HEAD),
        hex("00007d010400000001"),
        hex(CAPTURED_BEFORE),
        repaired,
        hex(CAPTURED_AFTER),
    ];
    assert_eq!(pass_cut(&hex(&sent.concat())), expected.concat());
}

#[test]
fn each_representation_keeps_its_type_and_name() {
    let named = |name: Vec<u8>| [vec![0x40], name].concat();
    let representations = [
        INDEXING.to_vec(),
        vec![0x01],
        vec![0x11],
        named(plain(b":authority")),
        named(huffman(b":authority")),
        [vec![0x3f, 0xe1, 0x1f], INDEXING.to_vec()].concat(),
    ];
    for representation in representations {
        for value in [plain(URL), huffman(URL)] {
            let block = [&representation[..], &value, &[0x83]].concat();
            let expected = [&representation[..], &plain(REPAIRED), &[0x83]].concat();
            let found = pass_cut(&connection(&block));
            assert_eq!(found, connection(&expected), "{representation:x?}");
        }
    }
}

#[test]
fn values_are_replaced_only_when_h2_refuses_them() {
    let cases: [(&[u8], &[u8]); 9] = [
        (URL, REPAIRED),
        (
            b"#initially=[http://a:1;http://b:2]",
            b"-initially--http---a-1-http---b-2-",
        ),
        (b"https://[::1]:2379", b"https------1-:2379"),
        (
            b"etcd-endpoints://0xc000/a:2379/",
            b"etcd-endpoints---0xc000-a-2379-",
        ),
        (b"\xff\0 %", b"----"),
        (b"a/:", b"a-:"),
        (b"127.0.0.1:2379", b"127.0.0.1:2379"),
        (b"[::1]:2379", b"[::1]:2379"),
        (b"", b""),
    ];
    for (sent, expected) in cases {
        let block = |value| block_with(&[INDEXING, &plain(value)].concat());
        let found = pass([&connection(&block(sent))[..]]);
        assert_eq!(
            found,
            connection(&block(expected)),
            "{}",
            sent.escape_ascii()
        );
    }
}

#[test]
fn block_with_padding_priority_and_continuations_is_put_together() {
    let block = block_with(&[INDEXING, &huffman(URL)].concat());
    let priority = [0x80, 0, 0, 3, 15];
    let (head, tail) = block.split_at(9);
    let (tail, last) = tail.split_at(20);
    let first = [&[4], &priority[..], head, &[0; 4]].concat();
    let sent = [
        handshake(),
        frame(HEADERS, PADDED | PRIORITY | 1, 5, &first),
        frame(CONTINUATION, 0, 5, tail),
        frame(CONTINUATION, END_HEADERS, 5, last),
        frame(HEADERS, END_HEADERS, 7, &[0x83]),
    ];
    let repaired = block_with(&[INDEXING, &plain(REPAIRED)].concat());
    let expected = [
        handshake(),
        frame(
            HEADERS,
            PRIORITY | END_HEADERS | 1,
            5,
            &[&priority, &repaired[..]].concat(),
        ),
        frame(HEADERS, END_HEADERS, 7, &[0x83]),
    ];
    assert_eq!(pass_cut(&sent.concat()), expected.concat());
}

#[test]
fn block_that_outgrows_a_frame_is_continued() {
    let value = [&[b'a'; 20_000], &b"/"[..]].concat();
    let sent = [
        handshake(),
        frame(
            HEADERS,
            END_HEADERS,
            1,
            &[INDEXING, &huffman(&value)].concat(),
        ),
    ];
    let mut expected = INDEXING.to_vec();
    block::write_string(&[&[b'a'; 20_000], &b"-"[..]].concat(), &mut expected);
    assert_eq!(expected[1..4], [0x7f, 0xa2, 0x9b], "20001 as an integer");
    let (head, tail) = expected.split_at(FRAME_BYTES_MAX);
    let expected = [
        handshake(),
        frame(HEADERS, 0, 1, head),
        frame(CONTINUATION, END_HEADERS, 1, tail),
    ];
    assert!(pass(sent.concat().chunks(1_000)) == expected.concat());
}

#[test]
fn later_blocks_pass_unchanged() {
    let bad = block_with(&[INDEXING, &plain(URL)].concat());
    let good = block_with(&[INDEXING, &plain(b"a:1")].concat());
    let sent = [connection(&good), frame(HEADERS, END_HEADERS, 3, &bad)].concat();
    assert_eq!(pass_cut(&sent), sent);
}

#[test]
fn what_is_not_understood_passes_unchanged() {
    let bad = block_with(&[INDEXING, &plain(URL)].concat());
    let headers = |flags, payload: &[u8]| [handshake(), frame(HEADERS, flags, 1, payload)].concat();
    let and = |mut bytes: Vec<u8>, more: &[u8]| {
        bytes.extend_from_slice(more);
        bytes
    };
    let eos = [INDEXING, &[0x84, 0xff, 0xff, 0xff, 0xff]].concat();
    let cases = [
        (
            "plain HTTP",
            b"GET /health HTTP/1.1\r\nHost: http://a:1\r\n\r\n".to_vec(),
        ),
        (
            "almost a preface",
            and(b"PRI * HTTP/1.1\r\n\r\n".to_vec(), &connection(&bad)),
        ),
        ("an end in the preface", PREFACE[..20].to_vec()),
        (
            "an end in a frame",
            and(handshake(), &[0, 0, 40, 1, 4, 0, 0]),
        ),
        ("an end in a block", headers(0, &bad)),
        (
            "another frame in a block",
            and(headers(0, &bad), &connection(&bad)[PREFACE.len()..]),
        ),
        (
            "another stream",
            and(
                headers(0, &bad),
                &frame(CONTINUATION, END_HEADERS, 3, &[0x90]),
            ),
        ),
        (
            "too much padding",
            headers(END_HEADERS | PADDED, &and(vec![200], &bad)),
        ),
        (
            "padding of an empty frame",
            headers(END_HEADERS | PADDED, &[]),
        ),
        (
            "too short for a priority",
            headers(END_HEADERS | PRIORITY, &[0, 0, 0, 1]),
        ),
        (
            "a block that is cut",
            headers(END_HEADERS, &bad[..bad.len() - 10]),
        ),
        (
            "an index that is cut",
            headers(END_HEADERS, &and(bad.clone(), &[0xff])),
        ),
        (
            "a huge index",
            headers(END_HEADERS, &and(bad.clone(), &[0xff; 6])),
        ),
        (
            "a string that is cut",
            headers(
                END_HEADERS,
                &and(bad.clone(), &[0x41, 0x7f, 0xff, 0xff, 0xff, 0x7f]),
            ),
        ),
        ("an end of string in a string", headers(END_HEADERS, &eos)),
        (
            "a byte of padding in a string",
            headers(END_HEADERS, &and(INDEXING.to_vec(), &[0x82, 0x07, 0xff])),
        ),
        (
            "zeros as padding in a string",
            headers(END_HEADERS, &and(INDEXING.to_vec(), &[0x81, 0x00])),
        ),
        ("an empty block", headers(END_HEADERS, &[])),
    ];
    for (what, sent) in cases {
        assert_eq!(pass_cut(&sent), sent, "{what}");
    }
}

#[test]
fn what_is_too_large_passes_unchanged_and_is_not_held() {
    let bad = block_with(&[INDEXING, &plain(URL)].concat());
    let frame_too_long = frame(
        HEADERS,
        END_HEADERS,
        1,
        &[&bad[..], &[0x90; FRAME_BYTES_MAX]].concat(),
    );
    let part = frame(CONTINUATION, 0, 1, &[0x90; 10_000]);
    let end = frame(CONTINUATION, END_HEADERS, 1, &[0x90]);
    let block_too_long = [frame(HEADERS, 0, 1, &bad), part.repeat(4), end].concat();
    let no_end_of_block = [
        frame(HEADERS, 0, 1, &bad),
        frame(CONTINUATION, 0, 1, &[]).repeat(9_000),
    ]
    .concat();
    for (what, frames) in [
        ("frame", frame_too_long),
        ("block", block_too_long),
        ("frames", no_end_of_block),
    ] {
        let sent = [handshake(), frames].concat();
        assert!(pass([&sent[..]]) == sent, "{what}, whole");
        assert!(pass(sent.chunks(1)) == sent, "{what}, byte by byte");
    }
}

#[test]
fn handshake_passes_before_any_request() {
    let (mut scan, mut out) = (Scan::default(), Vec::new());
    let sent = [handshake(), frame(8, 0, 0, &[0, 1, 0, 0])].concat();
    scan.feed(&[&sent[..], &[0, 0]].concat());
    drain(&mut scan, &mut out);
    assert_eq!(out, sent);
    assert!(!scan.done && scan.held == [0, 0]);
}

#[tokio::test(flavor = "current_thread")]
async fn socket_repairs_then_reads_and_writes_straight() {
    let bad = connection(&block_with(&[INDEXING, &huffman(URL)].concat()));
    let good = connection(&block_with(&[INDEXING, &plain(REPAIRED)].concat()));
    for read_bytes in [1, 24, 8_192] {
        let (mut client, server) = duplex(7);
        let mut server = AuthorityFilter::new(server);
        assert!(server.is_write_vectored());
        let talk = async {
            client.write_all(&bad).await.unwrap();
            client.write_all(&bad).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
        };
        let serve = async {
            let mut found = Vec::new();
            let mut bytes = vec![0; read_bytes];
            loop {
                let read = server.read(&mut bytes).await.unwrap();
                if read == 0 {
                    break;
                }
                found.extend_from_slice(&bytes[..read]);
            }
            assert_eq!(found, [&good[..], &bad].concat());
            assert!(server.scan.is_none());
            let parts = [IoSlice::new(b"ans"), IoSlice::new(b"wer")];
            assert_eq!(server.write_vectored(&parts).await.unwrap(), 6);
            server.shutdown().await.unwrap();
        };
        tokio::join!(talk, serve);
    }
}

/// Appendix C of RFC 7541.
#[test]
fn huffman_vectors_of_the_rfc_decode() {
    let vectors = [
        ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
        ("no-cache", "a8eb10649cbf"),
        ("custom-key", "25a849e95ba97d7f"),
        ("custom-value", "25a849e95bb8e8b4bf"),
        ("302", "6402"),
        ("307", "640eff"),
        ("private", "aec3771a4b"),
        (
            "Mon, 21 Oct 2013 20:13:21 GMT",
            "d07abe941054d444a8200595040b8166e082a62d1bff",
        ),
        (
            "https://www.example.com",
            "9d29ad171863c78f0b97c8e9ae82ae43d3",
        ),
        ("gzip", "9bd9ab"),
        (
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ),
    ];
    for (text, encoded) in vectors {
        assert_eq!(huffman::decode(&hex(encoded)).unwrap(), text.as_bytes());
        assert_eq!(huffman(text.as_bytes())[1..], hex(encoded), "{text}");
    }
}

/// The code lengths of appendix B, in its order, and the last code of each length: with both, and the code being
/// canonical, each code is that of the RFC.
#[test]
fn huffman_codes_are_those_of_the_rfc() {
    #[rustfmt::skip]
    const LENGTHS: [u32; 256] = [
        13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
        6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
        13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
        15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
        20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
        22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
        26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
        20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    ];
    const LAST: [u32; 21] = [
        0x9, 0x2d, 0x7b, 0xfd, 0x3fc, 0x7fc, 0xffb, 0x1ffd, 0x3ffd, 0x7ffe, 0x7fff2, 0xfffed,
        0x1fffe8, 0x3fffeb, 0x7ffff4, 0xfffff5, 0x1ffffef, 0x3ffffee, 0x7fffff0, 0xffffffe,
        0x3ffffffe,
    ];
    let (mut seen, mut first, mut before) = (0, 0, 0);
    for ((length, symbols), last) in huffman::CODES.into_iter().zip(LAST) {
        first <<= length - before;
        before = length;
        assert!(symbols.is_sorted_by(|a, b| a < b), "{length}");
        assert!(
            symbols
                .iter()
                .all(|&symbol| LENGTHS[usize::from(symbol)] == length),
            "{length}"
        );
        first += symbols.len() as u32;
        assert_eq!(first - 1, last, "{length}");
        seen += symbols.len();
    }
    assert_eq!(seen, 256);
    for byte in 0..=255 {
        let encoded = huffman(&[byte, byte]);
        assert_eq!(huffman::decode(&encoded[1..]).unwrap(), [byte, byte]);
    }
}
