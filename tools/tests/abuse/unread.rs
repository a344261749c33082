//! Answers that nobody takes.

use std::io::Write;
use std::time::Instant;

use flotilla_tests::process::PATIENCE;
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use super::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS};
use super::{World, channel, everything, run};

const VALUE_BYTES: usize = 100 << 10;
/// 200 MB of events.
const WRITES: usize = 2_000;

/// A watch of everything, whose first answer was read.
async fn watch(
    world: &World,
) -> (
    mpsc::UnboundedSender<pb::WatchRequest>,
    Streaming<pb::WatchResponse>,
) {
    let (sender, requests) = mpsc::unbounded_channel();
    let pb::RangeRequest { key, range_end, .. } = everything();
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        prev_kv: true,
        ..Default::default()
    };
    let request_union = Some(RequestUnion::CreateRequest(create));
    sender.send(pb::WatchRequest { request_union }).unwrap();
    let client = WatchClient::new(channel(&world.server).await);
    let mut client = client.max_decoding_message_size(64 << 20);
    let mut answers = client
        .watch(UnboundedReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    (sender, answers)
}

/// Takes what is there until the watch is cancelled, or the revision is reached; gives the last revision, and that from which
/// a new watch could go on.
async fn drain(answers: &mut Streaming<pb::WatchResponse>, until: i64) -> (i64, Option<i64>) {
    let mut last = 1;
    while last < until {
        let answer = timeout(PATIENCE, answers.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if answer.canceled {
            return (last, Some(answer.compact_revision));
        }
        for event in answer.events {
            let revision = event.kv.unwrap().mod_revision;
            assert_eq!(revision, last + 1, "nothing is left out");
            last = revision;
        }
    }
    (last, None)
}

#[test]
fn watch_that_is_never_read_costs_little_while_others_write_and_goes_on_where_it_was() {
    run(async |world| {
        let (_requests, mut answers) = watch(world).await;
        let (_more, mut compacted) = watch(world).await;
        world.fill(WRITES, VALUE_BYTES, 50).await;
        println!("{} MiB at the peak", world.peak_mib());
        world.stayed_small();
        let newest = 1 + WRITES as i64;
        assert_eq!(drain(&mut answers, newest).await, (newest, None));
        // One whose history goes away is told from where there is some.
        let compact = pb::CompactionRequest {
            revision: newest,
            physical: false,
        };
        world.kv.compact(compact).await.unwrap();
        let (last, resume) = drain(&mut compacted, newest).await;
        assert!(last < newest && resume == Some(newest), "{last} {resume:?}");
    });
}

/// Lists of 20 MB, asked for on many streams of many connections.
#[test]
fn lists_that_are_never_read_cost_their_clients_the_answer_and_nobody_else() {
    const VALUES: usize = 200;
    const CONNECTIONS: usize = 3;
    const STREAMS: u32 = 8;
    run(async |world| {
        world.fill(VALUES, VALUE_BYTES, VALUES).await;
        let headers = frames::call("/etcdserverpb.KV/Range");
        let body = frames::message(&everything().encode_to_vec());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut socket = frames::connect(&world.server);
            for stream in (0..STREAMS).map(|n| 2 * n + 1) {
                let headers = frames::frame(HEADERS, END_HEADERS, stream, &headers);
                let body = frames::frame(DATA, END_STREAM, stream, &body);
                socket.write_all(&[headers, body].concat()).unwrap();
            }
            held.push(socket);
            world.serves().await;
        }
        // A list that is read gets its turn behind them, each of which loses its answer.
        let mut client =
            KvClient::new(channel(&world.server).await).max_decoding_message_size(64 << 20);
        let deadline = Instant::now() + 2 * PATIENCE;
        let listed = loop {
            match client.range(everything()).await {
                Ok(listed) => break listed.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
            assert!(Instant::now() < deadline, "the list gets no turn");
        };
        assert!(listed.count >= VALUES as i64);
        println!("{} MiB at the peak", world.peak_mib());
        world.stayed_small();
    });
}
