//! What a client can make of a stream, over the crate h2: calls that come whole and calls that do not.

use std::future::poll_fn;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use prost::Message;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::api::View;
use crate::codec::frame;

/// Nothing here takes long; what takes longer never ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// The revision of the first put.
const FIRST: i64 = 2;

struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// What came of a call.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// All data.
    body: Vec<u8>,
    /// As gRPC has it, in the trailers, or in the head of an answer that has no body.
    status: String,
    message: String,
    /// The status is in the head.
    is_head_only: bool,
}

/// A call that was begun.
struct Begun {
    answer: h2::client::ResponseFuture,
    stream: SendStream<Bytes>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        // h2 ends a connection on which more small answers wait to be read than half of its window is worth.
        let (requests, connection) = h2::client::Builder::new()
            .initial_connection_window_size(1 << 24)
            .handshake(socket)
            .await
            .unwrap();
        Self {
            requests,
            connection: tokio::spawn(connection),
        }
    }

    /// Begins a call by its headers; `ended` if nothing follows.
    async fn begin(&self, path: &str, headers: &[(&'static str, &str)], ended: bool) -> Begun {
        let mut request = ::http::Request::post(format!("http://a{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut requests = self.requests.clone().ready().await.unwrap();
        let request = request.body(()).unwrap();
        let (answer, stream) = requests.send_request(request, ended).unwrap();
        Begun { answer, stream }
    }

    async fn put(&self) -> Begun {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        self.begin("/etcdserverpb.KV/Put", &headers, false).await
    }
}

impl Begun {
    fn send(&mut self, data: impl Into<Bytes>, ended: bool) {
        self.stream.send_data(data.into(), ended).unwrap();
    }

    async fn outcome(self) -> Outcome {
        timeout(PATIENCE, self.outcome_unbounded())
            .await
            .expect("the call ends")
            .unwrap()
    }

    async fn outcome_unbounded(self) -> Result<Outcome, h2::Error> {
        let (head, mut body) = self.answer.await?.into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "application/grpc");
        if head.headers.contains_key("grpc-status") {
            assert!(body.is_end_stream());
            return Ok(Outcome {
                is_head_only: true,
                ..of_headers(&head.headers)
            });
        }
        let data = read(&mut body).await?;
        let trailers = body.trailers().await?.expect("an answer has trailers");
        Ok(Outcome {
            body: data,
            ..of_headers(&trailers)
        })
    }
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        data.extend_from_slice(&piece);
    }
    Ok(data)
}

fn of_headers(headers: &HeaderMap) -> Outcome {
    let text = |name| {
        let value = headers.get(name).map(|value: &HeaderValue| value.to_str());
        value
            .transpose()
            .unwrap()
            .unwrap_or_default()
            .replace("%20", " ")
    };
    Outcome {
        status: text("grpc-status"),
        message: text("grpc-message"),
        ..Outcome::default()
    }
}

fn failed(status: &str, message: &str) -> Outcome {
    Outcome {
        status: status.to_owned(),
        message: message.to_owned(),
        is_head_only: true,
        ..Outcome::default()
    }
}

fn revision_of(outcome: &Outcome) -> i64 {
    assert_eq!((&*outcome.status, &*outcome.message), ("0", ""));
    let (head, message) = outcome.body.split_at(5);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    assert_eq!(head, [&[0], &length[..]].concat());
    let answer = pb::PutResponse::decode(message).unwrap();
    answer.header.unwrap().revision
}

fn with_client<T>(address: SocketAddr, run: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { run(Client::connect(address).await).await })
}

/// Waits until a page says so many proposals are pending.
fn wait_for_pending(address: SocketAddr, count: u64) {
    let line = format!("etcd_server_proposals_pending {count}\n");
    let begun = Instant::now();
    while !http(address, "GET", "/metrics").1.contains(&line) {
        assert!(begun.elapsed() < PATIENCE, "never {line}");
        std::thread::yield_now();
    }
}

#[test]
fn message_in_any_pieces_is_one_call() {
    let (server, _) = start();
    with_client(server.local_addrs()[0], async |client| {
        let message = frame(&put_of(100)).unwrap();
        let mut whole = client.put().await;
        whole.send(message.clone(), true);
        assert_eq!(revision_of(&whole.outcome().await), FIRST);

        for cut in [1, 4, 5, 6, message.len() - 1, message.len()] {
            let mut pieces = client.put().await;
            pieces.send(message.slice(..cut), false);
            pieces.send(message.slice(cut..), true);
            assert!(revision_of(&pieces.outcome().await) > FIRST);
        }

        let mut late = client.put().await;
        let mut requests = client.requests.clone();
        poll_fn(|context| requests.poll_ready(context))
            .await
            .unwrap();
        late.send(Bytes::new(), false);
        late.send(message.clone(), false);
        late.send(Bytes::new(), true);
        assert_eq!(revision_of(&late.outcome().await), FIRST + 7);
    });
}

#[test]
fn trailers_of_the_client_end_a_request() {
    let (server, _) = start();
    with_client(server.local_addrs()[0], async |client| {
        let mut call = client.put().await;
        call.send(frame(&put_of(1)).unwrap(), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("hasleader", HeaderValue::from_static("true"));
        call.stream.send_trailers(trailers).unwrap();
        assert_eq!(revision_of(&call.outcome().await), FIRST);
    });
}

#[test]
fn second_message_of_a_call_is_not_another_call() {
    let (server, state) = start();
    with_client(server.local_addrs()[0], async |client| {
        let message = frame(&put_of(1)).unwrap();
        let mut call = client.put().await;
        call.send([message.clone(), message].concat(), true);
        assert_eq!(revision_of(&call.outcome().await), FIRST);
    });
    assert_eq!(state.revision(), FIRST);
}

#[test]
fn request_that_is_no_message_is_refused() {
    let (server, state) = start();
    with_client(server.local_addrs()[0], async |client| {
        let headers = [("content-type", "application/grpc")];
        let nothing = client.begin("/etcdserverpb.KV/Put", &headers, true).await;
        let missing = failed("13", "Missing request message.");
        assert_eq!(nothing.outcome().await, missing);

        let mut empty = client.put().await;
        empty.send(Bytes::new(), true);
        assert_eq!(empty.outcome().await, missing);

        // One that ends with its head counts as none at all.
        let cut_off = failed("13", "Unexpected EOF decoding stream.");
        for (cut, expected) in [(3, &cut_off), (5, &missing), (9, &cut_off)] {
            let mut short = client.put().await;
            short.send(frame(&put_of(100)).unwrap().slice(..cut), true);
            assert_eq!(short.outcome().await, *expected, "{cut}");
        }

        let mut garbage = client.put().await;
        garbage.send(&[0, 0, 0, 0, 2, 0xff, 0xff][..], true);
        let outcome = garbage.outcome().await;
        assert_eq!(outcome.status, "13");
        assert!(outcome.message.contains("decode"), "{outcome:?}");
    });
    assert_eq!(state.revision(), FIRST - 1);
}

#[test]
fn compressed_request_is_refused() {
    let (server, state) = start();
    with_client(server.local_addrs()[0], async |client| {
        let message = frame(&put_of(1)).unwrap();
        let mut flagged = message.to_vec();
        flagged[0] = 1;
        let mut call = client.put().await;
        call.send(flagged, true);
        let outcome = call.outcome().await;
        assert_eq!(outcome.status, "13");
        assert!(outcome.message.contains("compressed-flag"), "{outcome:?}");

        let mut unknown = message.to_vec();
        unknown[0] = 2;
        let mut call = client.put().await;
        call.send(unknown, true);
        let outcome = call.outcome().await;
        assert_eq!(outcome.status, "13");
        assert!(outcome.message.contains("flag"), "{outcome:?}");

        let headers = [
            ("content-type", "application/grpc"),
            ("grpc-encoding", "gzip"),
        ];
        let mut call = client.begin("/etcdserverpb.KV/Put", &headers, false).await;
        call.send(message.clone(), true);
        assert_eq!(call.outcome().await.status, "12");

        let headers = [("grpc-encoding", "identity")];
        let mut call = client.begin("/etcdserverpb.KV/Put", &headers, false).await;
        call.send(message, true);
        assert_eq!(revision_of(&call.outcome().await), FIRST);
    });
    assert_eq!(state.revision(), FIRST);
}

#[test]
fn message_that_says_it_is_too_long_is_refused_before_it_comes() {
    let (server, _) = start();
    with_client(server.local_addrs()[0], async |client| {
        let mut call = client.put().await;
        call.send(&[0, 0, 0x20, 0, 1, 0][..], false);
        let text = "grpc: received message larger than max (2097153 vs. 2097152)";
        let outcome = call.outcome().await;
        assert_eq!(outcome.status, "8");
        assert_eq!(outcome.message, text);
    });
}

#[test]
fn paths_and_content_types_are_as_the_services_have_them() {
    let (server, _) = start();
    with_client(server.local_addrs()[0], async |client| {
        let message = frame(&put_of(1)).unwrap();
        let grpc = [("content-type", "application/grpc+proto")];
        for path in [
            "/etcdserverpb.KV/Nothing",
            "/etcdserverpb.KV/",
            "/nothing.Here/Put",
        ] {
            let mut call = client.begin(path, &grpc, false).await;
            call.send(message.clone(), true);
            assert_eq!(call.outcome().await.status, "12", "{path}");
        }
        for headers in [&grpc[..], &[("content-type", "text/plain")], &[]] {
            let mut call = client.begin("/etcdserverpb.KV/Put", headers, false).await;
            call.send(message.clone(), true);
            assert!(revision_of(&call.outcome().await) > 0);
        }
    });
}

#[test]
fn errors_are_answers_without_a_body() {
    let (server, state) = start();
    with_client(server.local_addrs()[0], async |client| {
        let mut call = client.put().await;
        call.send(frame(&pb::PutRequest::default()).unwrap(), true);
        let outcome = call.outcome().await;
        assert_eq!((&*outcome.status, outcome.is_head_only), ("3", true));
        assert_eq!(outcome.message, "etcdserver: key is not provided");

        state.no_leader.store(true, Ordering::SeqCst);
        let headers = [("hasleader", "true")];
        let mut call = client.begin("/etcdserverpb.KV/Put", &headers, false).await;
        call.send(frame(&put_of(1)).unwrap(), true);
        assert_eq!(call.outcome().await.status, "14");
    });
}

#[test]
fn reset_stops_the_call() {
    let (server, state) = start();
    let address = server.local_addrs()[0];
    state.mute.store(true, Ordering::SeqCst);
    with_client(address, async |client| {
        let mut call = client.put().await;
        call.send(frame(&put_of(1)).unwrap(), true);
        tokio::task::spawn_blocking(move || wait_for_pending(address, 1))
            .await
            .unwrap();
        call.stream.send_reset(Reason::CANCEL);
        tokio::task::spawn_blocking(move || wait_for_pending(address, 0))
            .await
            .unwrap();

        let mut half = client.put().await;
        half.send(&[0, 0, 0][..], false);
        half.stream.send_reset(Reason::CANCEL);
        state.mute.store(false, Ordering::SeqCst);
        let mut next = client.put().await;
        next.send(frame(&put_of(1)).unwrap(), true);
        assert_eq!(revision_of(&next.outcome().await), FIRST);
    });
}

#[test]
fn connection_that_breaks_stops_its_calls() {
    let (server, state) = start();
    let address = server.local_addrs()[0];
    state.mute.store(true, Ordering::SeqCst);
    with_client(address, async |client| {
        let mut calls = Vec::new();
        for _ in 0..10 {
            let mut call = client.put().await;
            call.send(frame(&put_of(1)).unwrap(), true);
            calls.push(call);
        }
        tokio::task::spawn_blocking(move || wait_for_pending(address, 10))
            .await
            .unwrap();
        client.connection.abort();
        tokio::task::spawn_blocking(move || wait_for_pending(address, 0))
            .await
            .unwrap();
    });
}

#[test]
fn call_under_way_at_a_stop_is_answered_and_later_ones_are_not_taken() {
    let (server, state) = start();
    let address = server.local_addrs()[0];
    state.mute.store(true, Ordering::SeqCst);
    with_client(address, async |client| {
        let mut call = client.put().await;
        call.send(frame(&put_of(1)).unwrap(), true);
        tokio::task::spawn_blocking(move || wait_for_pending(address, 1))
            .await
            .unwrap();
        let stop = tokio::task::spawn_blocking(move || server.shutdown());
        // The GOAWAY has come once no further call can be begun.
        let begun = Instant::now();
        while let Ok(mut requests) = client.requests.clone().ready().await {
            let request = ::http::Request::post("http://a/etcdserverpb.KV/Put");
            let late = requests.send_request(request.body(()).unwrap(), true);
            let Ok((late, _)) = late else { break };
            if timeout(PATIENCE, late).await.expect("it ends").is_err() {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "calls are taken for ever");
        }
        let reply = state.swallowed.lock().unwrap().pop().unwrap();
        reply(Err(multiraft::HostError::NoSpace));
        let outcome = call.outcome().await;
        assert_eq!(outcome.status, "8", "{outcome:?}");
        let ended = timeout(PATIENCE, client.connection).await.expect("it ends");
        ended.unwrap().unwrap();
        stop.await.unwrap();
    });
}

#[test]
fn many_calls_that_come_at_once_are_all_answered() {
    let (server, _) = start();
    with_client(server.local_addrs()[0], async |client| {
        let mut calls = Vec::new();
        for _ in 0..300 {
            let mut call = client.put().await;
            call.send(frame(&put_of(1_000)).unwrap(), true);
            calls.push(call);
        }
        let mut revisions = Vec::new();
        for call in calls {
            revisions.push(revision_of(&call.outcome().await));
        }
        revisions.sort_unstable();
        assert_eq!(revisions, (FIRST..FIRST + 300).collect::<Vec<_>>());
    });
}
