//! The Lease service: the shapes of its answers, and how streams of keepalives go on and end.

use std::time::{Duration, Instant};

use pb::lease_client::LeaseClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::*;

type Lease = LeaseClient<Channel>;

fn grant(id: i64, ttl: i64) -> pb::LeaseGrantRequest {
    pb::LeaseGrantRequest { ttl, id }
}

fn time_to_live(id: i64) -> pb::LeaseTimeToLiveRequest {
    pb::LeaseTimeToLiveRequest { id, keys: true }
}

/// A stream of keepalives and what sends into it.
struct KeepAlive {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl KeepAlive {
    async fn open(lease: &mut Lease, hasleader: bool) -> Result<Self, Status> {
        let (requests, outbound) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(outbound));
        if hasleader {
            let yes = "true".parse().unwrap();
            request.metadata_mut().insert("hasleader", yes);
        }
        let answers = lease.lease_keep_alive(request).await?.into_inner();
        Ok(Self { requests, answers })
    }

    async fn send(&self, id: i64) {
        let request = pb::LeaseKeepAliveRequest { id };
        self.requests.send(request).await.unwrap();
    }

    async fn answer(&mut self) -> (i64, i64) {
        let answer = self.answers.message().await.unwrap().unwrap();
        assert_eq!(answer.header.unwrap().member_id, 7);
        (answer.id, answer.ttl)
    }
}

/// The counter of ended keepalive streams, once it has reached one: a cancelled stream ends some time after the client
/// let go of it.
fn wait_for_outcome(address: SocketAddr, code: &str) {
    let labels = "grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",\
                  grpc_type=\"bidi_stream\"";
    let line = format!("grpc_server_handled_total{{grpc_code=\"{code}\",{labels}}} 1\n");
    #[expect(
        clippy::disallowed_methods,
        reason = "a deadline above real sockets; only a failing test reaches it"
    )]
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if http(address, "GET", "/metrics").1.contains(&line) {
            return;
        }
    }
    panic!("no stream ended with {code}");
}

#[test]
fn keepalive_of_a_dead_lease_is_ttl_zero_and_the_stream_goes_on() {
    let (server, state) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut lease = Lease::new(channel);
        lease.lease_grant(grant(5, 2)).await.unwrap();
        lease.lease_grant(grant(6, 60)).await.unwrap();
        let mut stream = KeepAlive::open(&mut lease, true).await.unwrap();
        for id in [9, 5, 6, 0, 5] {
            stream.send(id).await;
        }
        for expected in [(9, 0), (5, 2), (6, 60), (0, 0), (5, 2)] {
            assert_eq!(stream.answer().await, expected, "in order");
        }
        // Its time is over, and its end is under way when the next keepalive comes.
        state.ticks(1..400);
        stream.send(5).await;
        stream.send(6).await;
        assert_eq!(stream.answer().await, (5, 0));
        assert_eq!(stream.answer().await, (6, 60));
        drop(stream.requests);
        assert!(stream.answers.message().await.unwrap().is_none());
    });
    wait_for_outcome(server.local_addrs()[0], "OK");
}

#[test]
fn lease_calls_have_etcd_answers() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut lease = Lease::new(channel.clone());
        let missing = lease.lease_time_to_live(time_to_live(5)).await.unwrap();
        let missing = missing.into_inner();
        assert_eq!(
            (missing.id, missing.ttl, missing.granted_ttl),
            (5, -1, 0),
            "{missing:?}"
        );
        let raised = lease.lease_grant(grant(5, 1)).await.unwrap().into_inner();
        assert_eq!((raised.id, raised.ttl, raised.error.as_str()), (5, 2, ""));
        let again = lease.lease_grant(grant(5, 9)).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition);
        assert_eq!(again.message(), "etcdserver: lease already exists");
        let long = lease.lease_grant(grant(6, 9_000_000_001)).await;
        let long = long.unwrap_err();
        assert_eq!(long.code(), Code::OutOfRange);
        assert_eq!(long.message(), "etcdserver: too large lease TTL");

        let mut kv = KvClient::new(channel);
        for key in ["b", "a"] {
            let attached = pb::PutRequest {
                key: key.into(),
                lease: 5,
                ..Default::default()
            };
            kv.put(attached).await.unwrap();
        }
        let found = lease.lease_time_to_live(time_to_live(5)).await.unwrap();
        let found = found.into_inner();
        assert_eq!(found.granted_ttl, 2);
        assert_eq!(found.keys, ["a", "b"]);
        assert!((0..=2).contains(&found.ttl));
        let leases = lease
            .lease_leases(pb::LeaseLeasesRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(leases.leases, [pb::LeaseStatus { id: 5 }]);

        let revoke = pb::LeaseRevokeRequest { id: 5 };
        let revoked = lease.lease_revoke(revoke).await.unwrap().into_inner();
        assert_eq!(
            revoked.header.unwrap().revision,
            4,
            "both keys at one revision"
        );
        let gone = lease.lease_revoke(revoke).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
        assert_eq!(gone.message(), "etcdserver: requested lease not found");
    });
}

#[test]
fn keepalive_without_leader_ends_the_stream() {
    let (server, state) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut lease = Lease::new(channel);
        lease.lease_grant(grant(5, 60)).await.unwrap();
        let mut stream = KeepAlive::open(&mut lease, false).await.unwrap();
        stream.send(5).await;
        assert_eq!(stream.answer().await, (5, 60));
        state.no_leader.store(true, Ordering::SeqCst);
        stream.send(5).await;
        let ended = stream.answers.message().await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable);
        assert_eq!(ended.message(), "etcdserver: no leader");
        assert!(stream.answers.message().await.unwrap().is_none());
    });
    wait_for_outcome(server.local_addrs()[0], "Unavailable");
}

#[test]
fn idle_stream_that_wants_a_leader_ends_without_one() {
    let (server, state) = start_with(1);
    with_channel(server.local_addrs()[0], async |channel| {
        let mut lease = Lease::new(channel);
        let mut stream = KeepAlive::open(&mut lease, true).await.unwrap();
        state.no_leader.store(true, Ordering::SeqCst);
        let ended = stream.answers.message().await.unwrap_err();
        assert_eq!(
            (ended.code(), ended.message()),
            (Code::Unavailable, "etcdserver: no leader")
        );
        let refused = KeepAlive::open(&mut lease, true).await.err().unwrap();
        assert_eq!(refused.message(), "etcdserver: no leader");
    });
}

#[test]
fn dropped_stream_is_counted_as_cancelled() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut lease = Lease::new(channel);
        let mut stream = KeepAlive::open(&mut lease, false).await.unwrap();
        stream.send(5).await;
        assert_eq!(stream.answer().await, (5, 0));
    });
    wait_for_outcome(server.local_addrs()[0], "Canceled");
}
