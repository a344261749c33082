//! A client that sends an authority which is none, as bytes on a socket: what h2 makes of what it is given.

use std::time::Duration;

use prost::Message;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// A row of the dynamic table: the entry that was added last.
const NEWEST_ENTRY: &[u8] = &[0x80 | 62];

struct RawClient(TcpStream);

/// What came for a stream.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The message, and the end of the stream with trailers.
    Answer(pb::RangeResponse),
    /// The code of the reset.
    Reset(u32),
}

impl RawClient {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut client = Self(socket);
        client
            .0
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        client.send(SETTINGS, 0, 0, &[]);
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).unwrap();
    }

    /// A range request whose authority is this field.
    fn range(&mut self, stream: u32, authority: &[u8]) -> Outcome {
        let mut block = vec![0x83, 0x86]; // POST, http
        block.extend_from_slice(&[0x04, 22]);
        block.extend_from_slice(b"/etcdserverpb.KV/Range");
        block.extend_from_slice(authority);
        block.extend_from_slice(&[0x0f, 16, 16]);
        block.extend_from_slice(b"application/grpc");
        self.send(HEADERS, END_HEADERS, stream, &block);
        let request = pb::RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        let request = request.encode_to_vec();
        let head = [&[0], &(request.len() as u32).to_be_bytes()[..]].concat();
        self.send(DATA, END_STREAM, stream, &[head, request].concat());
        self.outcome(stream)
    }

    fn outcome(&mut self, expected: u32) -> Outcome {
        let mut data = Vec::new();
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).unwrap();
            if kind == SETTINGS && flags == 0 {
                self.send(SETTINGS, 1, 0, &[]);
            }
            if u32::from_be_bytes(stream) != expected {
                continue;
            }
            match kind {
                DATA => data.extend_from_slice(&payload),
                HEADERS if flags & END_STREAM != 0 => {
                    return Outcome::Answer(pb::RangeResponse::decode(&data[5..]).unwrap());
                }
                RST_STREAM => {
                    return Outcome::Reset(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                _ => {}
            }
        }
    }
}

/// A literal that becomes an entry of the dynamic table.
fn authority(value: &str) -> Vec<u8> {
    [&[0x41, value.len() as u8], value.as_bytes()].concat()
}

fn revision(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Answer(answer) => answer.header.unwrap().revision,
        reset @ Outcome::Reset(_) => panic!("{reset:?}"),
    }
}

#[test]
fn authority_that_is_none_is_served_also_by_its_table_entry() {
    for value in [
        "http://127.0.0.1:2379",
        "#initially=[http://127.0.0.1:2379]",
    ] {
        let (server, _) = start();
        let mut client = RawClient::connect(server.local_addrs()[0]);
        assert_eq!(revision(client.range(1, &authority(value))), 1, "{value}");
        assert_eq!(revision(client.range(3, NEWEST_ENTRY)), 1, "{value}");
    }
}

#[test]
fn authority_that_is_none_in_a_later_request_is_refused() {
    let (server, _) = start();
    let mut client = RawClient::connect(server.local_addrs()[0]);
    assert_eq!(revision(client.range(1, &authority("a:1"))), 1);
    let refused = client.range(3, &authority("http://a:1"));
    assert_eq!(refused, Outcome::Reset(1), "a protocol error");
    assert_eq!(revision(client.range(5, &authority("a:2"))), 1);
}
