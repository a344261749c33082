//! Messages that are none.

use std::io::Write;

use tokio::task::spawn_blocking;

use super::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS};
use super::run;

/// Makes one call with this body, and waits until its stream ends. True when the connection lived on.
fn answered(socket: &mut std::net::TcpStream, stream: u32, path: &str, body: &[u8]) -> bool {
    let headers = frames::frame(HEADERS, END_HEADERS, stream, &frames::call(path));
    let body = frames::frame(DATA, END_STREAM, stream, body);
    if socket.write_all(&[headers, body].concat()).is_err() {
        return false;
    }
    while let Some((kind, flags, at, _)) = frames::read_frame(socket) {
        let ended = kind == frames::RST_STREAM || flags & END_STREAM != 0 && kind <= HEADERS;
        if at == stream && ended {
            return true;
        }
    }
    false
}

#[test]
fn broken_messages_end_their_calls_and_nothing_else() {
    run(async |world| {
        let paths = [
            "/etcdserverpb.KV/Range",
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/Txn",
            "/etcdserverpb.Watch/Watch",
            "/etcdserverpb.Lease/LeaseGrant",
            "/etcdserverpb.Lease/LeaseKeepAlive",
            "/etcdserverpb.Maintenance/Snapshot",
            "/v3lockpb.Lock/Lock",
            "/v3electionpb.Election/Observe",
            "/no.such.Service/Call",
        ];
        // Nested groups that never end; a length beyond the message; a field of the wrong kind; a tag of nothing.
        let deep = [0x0a, 0x7f].repeat(60);
        let broken: [&[u8]; 5] = [
            &[0xff; 20],
            &[0x0a, 0xff, 0xff, 0xff, 0x7f],
            &[0x08],
            &[0x0b, 0x0b, 0x0b],
            &deep,
        ];
        let mut socket = frames::connect(&world.server);
        let mut bodies: Vec<Vec<u8>> = broken.iter().map(|bytes| frames::message(bytes)).collect();
        bodies.extend([
            Vec::new(),
            // Compressed with nothing that was agreed on; longer than it is; longer than anything may be.
            vec![1, 0, 0, 0, 1, 0],
            vec![0, 0, 0, 0, 9, 1],
            vec![0, 0xff, 0xff, 0xff, 0xff, 0],
        ]);
        let lived = spawn_blocking(move || {
            let mut stream = 1;
            for path in paths {
                for body in &bodies {
                    if path.ends_with("/Watch") && body.is_empty() {
                        // A client that asks for nothing more may wait for ever, as with etcd.
                        continue;
                    }
                    let closed = !answered(&mut socket, stream, path, body);
                    assert!(!closed, "the connection ended with {path} and {body:?}");
                    stream += 2;
                }
            }
        });
        lived.await.unwrap();
        world.stayed_small();
    });
}
