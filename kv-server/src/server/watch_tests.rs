//! Watches over real loopback sockets, on a real store in memory. `trap_NN` names a line of the list of etcd's traps.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::api::ScanPool;
use crate::api::testing::{FakeReplica, FakeState, fake_api};
use crate::pb::command::{LeaseGrant, command::Op};
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_server::WatchServer;
use crate::pb::etcdserverpb::{self as pb, WatchRequest, WatchResponse};
use crate::watch::WatchHub;
use crate::watch::testing::{
    Keyspace, cancel, create, delete, events, on, progress, put, revision,
};

struct Rig {
    server: ServerHandle,
    keyspace: Arc<Keyspace>,
    state: Arc<FakeState>,
    metrics: Arc<Metrics>,
}

fn start() -> Rig {
    start_with(WatchHub::new(), |_| {})
}

fn start_with(hub: WatchHub, adjust: impl FnOnce(&mut WatchOptions)) -> Rig {
    let keyspace = Arc::new(Keyspace::new(hub));
    let (api, state) = fake_api();
    let metrics = Arc::new(Metrics::new());
    let mut options = WatchOptions::new(5, 7);
    adjust(&mut options);
    let service = WatchService::new(
        keyspace.hub.clone(),
        keyspace.store.clone(),
        Arc::new(FakeReplica(state.clone())),
        Arc::new(ScanPool::start(1, 4).unwrap()),
        &metrics,
        options,
    );
    let parts = ServerParts {
        api,
        hub: keyspace.hub.clone(),
        metrics: metrics.clone(),
        services: Routes::new(WatchServer::new(service)),
        options: ServerOptions::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Rig {
        server: serve(vec![listener.into()], parts).unwrap(),
        keyspace,
        state,
        metrics,
    }
}

struct Stream {
    ask: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: &Channel) -> Self {
        Self::try_open(channel, false).await.unwrap()
    }

    async fn try_open(channel: &Channel, needs_leader: bool) -> Result<Self, Status> {
        let (ask, asked) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(asked));
        if needs_leader {
            let value = "true".parse().unwrap();
            request.metadata_mut().insert("hasleader", value);
        }
        let answers = WatchClient::new(channel.clone()).watch(request).await?;
        let answers = answers.into_inner();
        Ok(Self { ask, answers })
    }

    async fn ask(&self, request: WatchRequest) {
        self.ask.send(request).await.unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        self.answers.message().await.unwrap().unwrap()
    }

    /// Creates a watch and takes the answer.
    async fn create(&mut self, request: pb::WatchCreateRequest) -> WatchResponse {
        self.ask(create(request)).await;
        let created = self.next().await;
        assert!(created.created, "{created:?}");
        created
    }
}

fn run(rig: &Rig, test: impl AsyncFnOnce(Channel)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = rig.server.local_addrs()[0];
    runtime.block_on(async {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let test = test(endpoint.connect().await.unwrap());
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, test).await.expect("it hangs");
    });
}

#[test]
fn watch_from_now_over_a_socket_has_complete_headers() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        stream.create(on("a", "", 0)).await;
        rig.keyspace.put("a", "1");
        let response = stream.next().await;
        assert_eq!(events(&response), ["PUT a 2"]);
        let header = response.header.unwrap();
        let ids = (
            header.cluster_id,
            header.member_id,
            header.raft_term,
            header.revision,
        );
        assert_eq!(ids, (5, 7, 3, 2));
    });
}

#[test]
fn trap_13_keys_of_an_ended_lease_go_in_one_batch() {
    let rig = start();
    run(&rig, async |channel| {
        let grant = LeaseGrant { id: 9, ttl: 10 };
        rig.keyspace.apply([Op::LeaseGrant(grant)]);
        for key in ["c", "a", "b"] {
            let Op::Put(mut request) = put(key, "") else {
                unreachable!("put makes a put")
            };
            request.lease = 9;
            rig.keyspace.apply([Op::Put(request)]);
        }
        let mut stream = Stream::open(&channel).await;
        stream.create(on("a", "z", 0)).await;
        let revoke = pb::LeaseRevokeRequest { id: 9 };
        rig.keyspace.apply([Op::LeaseRevoke(revoke)]);
        let gone = events(&stream.next().await);
        assert_eq!(gone, ["DELETE a 5", "DELETE b 5", "DELETE c 5"]);
    });
}

#[test]
fn trap_14_watch_from_compacted_revision_is_created_then_canceled() {
    let rig = start();
    run(&rig, async |channel| {
        for _ in 0..3 {
            rig.keyspace.put("a", "1");
        }
        rig.keyspace.compact(3);
        let mut stream = Stream::open(&channel).await;
        let created = stream.create(on("a", "", 2)).await;
        assert!(!created.canceled);
        assert_eq!(revision(&created), 4);
        let canceled = stream.next().await;
        assert!(canceled.canceled && !canceled.created);
        assert_eq!((canceled.compact_revision, revision(&canceled)), (3, 0));
        stream.create(on("a", "", 3)).await;
        assert_eq!(events(&stream.next().await), ["PUT a 3", "PUT a 4"]);
    });
}

#[test]
fn trap_15_bad_watch_is_created_and_canceled_under_no_id() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        let refused = stream.create(on("b", "a", 0)).await;
        assert!(refused.canceled);
        assert_eq!(refused.watch_id, -1);
        assert_eq!(refused.cancel_reason, "mvcc: watcher range is empty");
        assert_eq!(stream.create(on("a", "b", 0)).await.watch_id, 0);
    });
}

#[test]
fn trap_16_progress_answer_waits_for_all_watchers_and_follows_their_events() {
    let rig = start_with(WatchHub::with_bounds(0, 0), |_| {});
    run(&rig, async |channel| {
        for _ in 0..100 {
            rig.keyspace.put("a", "1");
        }
        let mut stream = Stream::open(&channel).await;
        stream.ask(create(on("b", "", 0))).await;
        stream.ask(create(on("a", "", 2))).await;
        stream.ask(progress()).await;
        let (mut created, mut seen) = (0, 0);
        loop {
            let response = stream.next().await;
            created += usize::from(response.created);
            seen += response.events.len();
            if response.watch_id == -1 {
                assert_eq!(revision(&response), 101);
                break;
            }
        }
        assert_eq!((created, seen), (2, 100));
    });
}

#[test]
fn trap_17_cancel_is_answered_and_of_an_unknown_id_is_silent() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        stream.create(on("a", "", 0)).await;
        stream.ask(cancel(42)).await;
        stream.ask(cancel(0)).await;
        let canceled = stream.next().await;
        assert!(canceled.canceled);
        assert_eq!((canceled.watch_id, revision(&canceled)), (0, 1));
        rig.keyspace.put("a", "1");
        let created = stream.create(on("a", "", 0)).await;
        assert_eq!((created.watch_id, revision(&created)), (1, 2));
    });
}

#[test]
fn trap_18_delete_event_has_key_and_revision_only() {
    let rig = start();
    run(&rig, async |channel| {
        rig.keyspace.put("a", "1");
        let mut stream = Stream::open(&channel).await;
        let mut request = on("a", "", 0);
        request.prev_kv = true;
        stream.create(request).await;
        rig.keyspace.apply([delete("a", "")]);
        let event = stream.next().await.events.remove(0);
        let kv = event.kv.unwrap();
        assert_eq!((kv.key.as_ref(), kv.mod_revision), (&b"a"[..], 3));
        assert_eq!((kv.create_revision, kv.version, kv.lease), (0, 0, 0));
        assert!(kv.value.is_empty());
        assert_eq!(event.prev_kv.unwrap().value, "1");
    });
}

#[test]
fn trap_19_filtered_events_send_nothing() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        let mut request = on("a", "", 0);
        request.filters = vec![pb::watch_create_request::FilterType::Noput as i32];
        stream.create(request).await;
        rig.keyspace.put("a", "1");
        stream.ask(progress()).await;
        let answer = stream.next().await;
        assert_eq!((answer.watch_id, revision(&answer)), (-1, 2));
    });
}

#[test]
fn trap_27_streams_that_asked_for_a_leader_end_without_one() {
    let rig = start_with(WatchHub::new(), |options| {
        options.election = Duration::from_millis(20);
    });
    run(&rig, async |channel| {
        let mut with = Stream::try_open(&channel, true).await.unwrap();
        let mut without = Stream::open(&channel).await;
        with.create(on("a", "", 0)).await;
        without.create(on("a", "", 0)).await;
        rig.state.no_leader.store(true, Ordering::SeqCst);
        let lost = with.answers.message().await.unwrap_err();
        assert_eq!(lost.code(), Code::Unavailable);
        assert_eq!(lost.message(), "etcdserver: no leader");
        let refused = Stream::try_open(&channel, true).await.err().unwrap();
        assert_eq!(refused.message(), "etcdserver: no leader");
        rig.keyspace.put("a", "1");
        assert_eq!(without.next().await.events.len(), 1);
    });
}

#[test]
fn trap_31_future_start_gets_neither_progress_nor_older_events() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        stream.create(on("a", "", 4)).await;
        stream.ask(progress()).await;
        for _ in 0..3 {
            rig.keyspace.put("a", "1");
        }
        assert_eq!(events(&stream.next().await), ["PUT a 4"]);
        assert_eq!(stream.next().await.watch_id, -1);
    });
}

/// Ends a writer also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn trap_32_watches_created_while_writing_lose_nothing() {
    let rig = start_with(WatchHub::with_bounds(4_000, 100), |_| {});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                rig.keyspace.put("a", &n.to_string());
                std::thread::yield_now();
            }
        });
        run(&rig, async |channel| {
            let mut stream = Stream::open(&channel).await;
            let mut next = Vec::new();
            let ask = stream.ask.clone();
            let asking = tokio::spawn(async move {
                for _ in 0..500 {
                    ask.send(create(on("a", "", 0))).await.unwrap();
                }
            });
            // Each watch has to see each revision after that of its creation, once and in order.
            let mut enough = 0;
            while enough < 500 {
                let response = stream.next().await;
                let id = usize::try_from(response.watch_id).unwrap();
                if response.created {
                    assert_eq!(id, next.len());
                    next.push((revision(&response) + 1, 0));
                    continue;
                }
                for event in &response.events {
                    let (expected, seen) = &mut next[id];
                    assert_eq!(event.kv.as_ref().unwrap().mod_revision, *expected);
                    *expected += 1;
                    *seen += 1;
                    enough += usize::from(*seen == 3);
                }
            }
            asking.await.unwrap();
        });
    });
}

#[test]
fn ten_thousand_watches_on_one_stream_are_served() {
    let rig = start();
    let key = |n: usize| format!("k{n:05}");
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        let ask = stream.ask.clone();
        let asking = tokio::spawn(async move {
            for n in 0..10_000 {
                let (key, end) = (key(n), format!("{}~", key(n)));
                let end = if n % 2 == 0 { "" } else { &end };
                ask.send(create(on(&key, end, 0))).await.unwrap();
            }
        });
        for id in 0..10_000 {
            assert_eq!(stream.next().await.watch_id, id);
        }
        asking.await.unwrap();
        rig.keyspace.apply((0..10_000).map(|n| put(&key(n), "")));
        let mut seen = [false; 10_000];
        for _ in 0..10_000 {
            let response = stream.next().await;
            let id = usize::try_from(response.watch_id).unwrap();
            assert_eq!(events(&response), [format!("PUT {} {}", key(id), id + 2)]);
            assert!(!std::mem::replace(&mut seen[id], true));
        }
    });
}

#[test]
fn a_thousand_streams_each_get_each_event() {
    let rig = start();
    run(&rig, async |channel| {
        let mut streams = Vec::new();
        for _ in 0..1_000 {
            let mut stream = Stream::open(&channel).await;
            stream.create(on("a", "", 0)).await;
            streams.push(stream);
        }
        assert_eq!(rig.metrics.watch.streams.get(), 1_000);
        assert_eq!(rig.metrics.watch.watchers.get(), 1_000);
        rig.keyspace.put("a", "1");
        rig.keyspace.put("a", "2");
        for stream in &mut streams {
            let mut seen = Vec::new();
            while seen.len() < 2 {
                seen.extend(events(&stream.next().await));
            }
            assert_eq!(seen, ["PUT a 2", "PUT a 3"]);
        }
        assert_eq!(rig.metrics.watch.events.get(), 2_000);
    });
}

#[test]
fn slow_client_holds_up_nobody_and_misses_nothing() {
    let rig = start_with(WatchHub::with_bounds(1 << 20, 1_000), |_| {});
    run(&rig, async |channel| {
        let mut slow = Stream::open(&channel).await;
        let mut fast = Stream::open(&channel).await;
        slow.create(on("a", "", 0)).await;
        fast.create(on("b", "", 0)).await;
        // More than the windows and the ring can hold.
        let value = "v".repeat(64 << 10);
        for _ in 0..400 {
            rig.keyspace.put("a", &value);
        }
        rig.keyspace.put("b", "1");
        assert_eq!(events(&fast.next().await), ["PUT b 402"]);
        let mut expected = 2;
        while expected < 402 {
            for event in slow.next().await.events {
                assert_eq!(event.kv.unwrap().mod_revision, expected);
                expected += 1;
            }
        }
    });
}

#[test]
fn periodic_progress_comes_without_being_asked_for() {
    let rig = start_with(WatchHub::new(), |options| {
        options.progress_interval = Duration::ZERO;
    });
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        let mut request = on("a", "", 0);
        request.progress_notify = true;
        stream.create(request).await;
        rig.keyspace.put("b", "1");
        let report = stream.next().await;
        assert_eq!(
            (report.watch_id, revision(&report), report.events.len()),
            (0, 2, 0)
        );
    });
}

#[test]
fn closed_hub_ends_streams_with_a_status_and_refuses_new_ones() {
    let rig = start();
    run(&rig, async |channel| {
        let mut stream = Stream::open(&channel).await;
        stream.create(on("a", "", 0)).await;
        rig.keyspace.hub.close();
        let ended = stream.answers.message().await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable);
        assert_eq!(ended.message(), "etcdserver: server stopped");
        let refused = Stream::try_open(&channel, false).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(rig.metrics.watch.watchers.get(), 0);
    });
}

#[test]
fn stream_goes_on_after_the_last_request_and_its_end_takes_the_watchers() {
    let rig = start();
    run(&rig, async |channel| {
        let Stream { ask, mut answers } = Stream::open(&channel).await;
        ask.send(create(on("a", "", 0))).await.unwrap();
        drop(ask);
        assert!(answers.message().await.unwrap().unwrap().created);
        rig.keyspace.put("a", "1");
        let response = answers.message().await.unwrap().unwrap();
        assert_eq!(events(&response), ["PUT a 2"]);
        assert_eq!(rig.metrics.watch.watchers.get(), 1);
        drop(answers);
        while rig.metrics.watch.streams.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.metrics.watch.watchers.get(), 0);
        let labels = ["bidi_stream", "etcdserverpb.Watch", "Watch", "Canceled"];
        assert_eq!(rig.metrics.handled.with_label_values(&labels).get(), 1);
    });
}
