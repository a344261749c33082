//! Connections by the thousand, among them such that say nothing, or stop in the middle.

use std::io::Write;
use std::net::TcpStream;

use kv_server::pb::etcdserverpb::RangeRequest;
use kv_server::pb::etcdserverpb::kv_client::KvClient;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::frames::{self, DATA, END_HEADERS, HEADERS};
use super::{channel, run};

const CONNECTIONS: u64 = 2_000;

/// As many connections as this process may have files, at most [`CONNECTIONS`].
fn crowd() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(
        raised.is_ok() || limit > 0,
        "the limit of files can be read"
    );
    CONNECTIONS.min(limit.saturating_sub(200))
}

#[test]
fn thousands_of_connections_and_half_open_streams_leave_room_for_others() {
    run(async |world| {
        let address = world.server.url().trim_start_matches("http://").to_owned();
        let headers = frames::frame(
            HEADERS,
            END_HEADERS,
            1,
            &frames::call("/etcdserverpb.KV/Put"),
        );
        let unfinished = frames::frame(HEADERS, 0, 1, &frames::call("/etcdserverpb.KV/Put")[..20]);
        // A message of a megabyte of which nothing more comes.
        let promised = frames::frame(DATA, 0, 1, &[0, 0, 0x10, 0, 0, 1]);
        let mut held = Vec::new();
        for n in 0..crowd() {
            let mut socket = match n % 5 {
                0 => TcpStream::connect(&address).unwrap(),
                _ => frames::connect(&world.server),
            };
            let sent = match n % 5 {
                1 => socket.write_all(&headers),
                2 => socket.write_all(&unfinished),
                3 => socket.write_all(&[headers.clone(), promised.clone()].concat()),
                4 => socket.write_all(&[0, 0, 9, 0]),
                _ => socket.write_all(b"POST /v3/kv/range HTTP/1.1\r\nHost:"),
            };
            sent.unwrap();
            held.push(socket);
            if n % 250 == 0 {
                world.serves().await;
            }
        }
        // One more is welcome.
        let mut late = KvClient::new(channel(&world.server).await);
        let get = RangeRequest {
            key: "rules".into(),
            ..Default::default()
        };
        assert_eq!(late.range(get).await.unwrap().into_inner().count, 1);
        println!(
            "{} connections; {} MiB at the peak",
            held.len(),
            world.peak_mib()
        );
        world.stayed_small();
    });
}
