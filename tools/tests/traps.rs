//! What others get wrong about etcd's API, one test per trap, against a real server over a real socket.
//!
//! The numbers are those of the list of traps in the design's reference. Elsewhere are 22 and 28 (users: `auth`, `kv-server`'s
//! `server/tests/auth.rs`), 24 and 29 (backups and quotas: `maintenance`), 25 (etcdctl: `.ci/clients`), 27 (`kv-server`'s
//! `server/watch_tests.rs`), and 26 and 30, which need a cluster without a leader: the simulated cluster and the api's own
//! tests. `FLOTILLA_TEST_SERVER=etcd` runs all of them
//! against etcd, which passes them: see docs/TESTING.md.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::future::Future;
use std::time::Duration;

use flotilla_tests::process::{PATIENCE, Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::mvccpb::{Event, KeyValue, event::EventType};
use pb::cluster_client::ClusterClient;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use pb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// A fresh server and clients on it.
struct World {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    channel: Channel,
    _server: Server,
    _dir: TempDir,
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    let server = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
        let channel = endpoint.connect().await.unwrap();
        test(World {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            channel,
            _server: server,
            _dir: dir,
        })
        .await;
    });
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn put_request(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn delete_request(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

fn prefix(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(put_request(key, value)))
}

fn delete_op(key: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(delete_request(key)))
}

fn compare(
    key: &str,
    target: CompareTarget,
    result: CompareResult,
    with: TargetUnion,
) -> pb::Compare {
    pb::Compare {
        key: key.to_owned().into(),
        target: target.into(),
        result: result.into(),
        target_union: Some(with),
        ..Default::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

impl World {
    /// Writes a key; gives the revision.
    async fn put(&mut self, key: &str, value: &str) -> i64 {
        let response = self.kv.put(put_request(key, value)).await.unwrap();
        response.into_inner().header.unwrap().revision
    }

    async fn delete(&mut self, key: &str) -> pb::DeleteRangeResponse {
        self.kv
            .delete_range(delete_request(key))
            .await
            .unwrap()
            .into_inner()
    }

    async fn range(&mut self, request: pb::RangeRequest) -> pb::RangeResponse {
        self.kv.range(request).await.unwrap().into_inner()
    }

    async fn revision(&mut self) -> i64 {
        self.range(prefix("health", ""))
            .await
            .header
            .unwrap()
            .revision
    }

    async fn compact(&mut self, revision: i64) -> Result<(), Status> {
        let request = pb::CompactionRequest {
            revision,
            physical: true,
        };
        self.kv.compact(request).await.map(drop)
    }

    async fn txn(&mut self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.kv.txn(txn).await.map(tonic::Response::into_inner)
    }

    async fn grant(&mut self, ttl: i64) -> pb::LeaseGrantResponse {
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        self.lease.lease_grant(request).await.unwrap().into_inner()
    }

    async fn put_attached(&mut self, key: &str, lease: i64) {
        let request = pb::PutRequest {
            lease,
            ..put_request(key, "leased")
        };
        self.kv.put(request).await.unwrap();
    }

    fn watch(&self) -> Watch {
        Watch::new(&self.channel)
    }
}

/// One watch stream. It is opened when the first response is waited for, behind the first requests: etcd answers
/// nothing, not even with headers, before it has a request.
struct Watch {
    client: WatchClient<Channel>,
    requests: mpsc::UnboundedSender<WatchRequest>,
    unsent: Option<mpsc::UnboundedReceiver<WatchRequest>>,
    responses: Option<Streaming<WatchResponse>>,
}

impl Watch {
    fn new(channel: &Channel) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        Self {
            client: WatchClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            requests,
            unsent: Some(receiver),
            responses: None,
        }
    }

    fn send(&self, request: RequestUnion) {
        let request = WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        if let Some(receiver) = self.unsent.take() {
            let stream = UnboundedReceiverStream::new(receiver);
            let opened = timeout(PATIENCE, self.client.watch(stream)).await.unwrap();
            self.responses = Some(opened.unwrap().into_inner());
        }
        let next = timeout(PATIENCE, self.responses.as_mut().unwrap().message()).await;
        let message = next.expect("a response comes in time").unwrap();
        message.expect("the stream goes on")
    }

    async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request));
        self.next().await
    }

    /// The answer to a request for progress; it is the next response, so nothing else was sent before it.
    async fn progress(&mut self) -> WatchResponse {
        self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        self.next().await
    }
}

fn watch_key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

fn kinds(events: &[Event]) -> Vec<(EventType, &str, i64)> {
    let kind = |event: &Event| event.r#type();
    let kv = |event: &'_ Event| event.kv.clone().unwrap();
    let one = |event| {
        let KeyValue { mod_revision, .. } = kv(event);
        (
            kind(event),
            text(&event.kv.as_ref().unwrap().key),
            mod_revision,
        )
    };
    events.iter().map(one).collect()
}

#[test]
fn trap_01_first_write_gets_revision_2() {
    run(async |mut world: World| {
        assert_eq!(world.revision().await, 1);
        assert_eq!(world.put("a", "1").await, 2);
    });
}

#[test]
fn trap_02_range_at_an_old_revision_has_the_current_one_in_its_header() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        world.put("a", "2").await;
        let old = pb::RangeRequest {
            revision: 2,
            ..prefix("a", "")
        };
        let response = world.range(old).await;
        assert_eq!(response.header.unwrap().revision, 3);
        assert_eq!(text(&response.kvs[0].value), "1");
    });
}

#[test]
fn trap_03_count_ignores_limit_and_filters() {
    run(async |mut world: World| {
        for key in ["a1", "a2", "a3"] {
            world.put(key, "x").await;
        }
        let limited = pb::RangeRequest {
            limit: 1,
            ..prefix("a", "b")
        };
        let response = world.range(limited).await;
        assert_eq!(
            (response.count, response.kvs.len(), response.more),
            (3, 1, true)
        );
        let filtered = pb::RangeRequest {
            min_mod_revision: 4,
            ..prefix("a", "b")
        };
        let response = world.range(filtered).await;
        assert_eq!((response.count, response.kvs.len()), (3, 1));
        let counted = pb::RangeRequest {
            count_only: true,
            ..prefix("a", "b")
        };
        let response = world.range(counted).await;
        assert_eq!((response.count, response.kvs.len()), (3, 0));
    });
}

#[test]
fn trap_04_compact_at_the_current_revision_keeps_reads_at_it() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        let revision = world.put("a", "2").await;
        world.compact(revision).await.unwrap();
        let at = pb::RangeRequest {
            revision,
            ..prefix("a", "")
        };
        assert_eq!(text(&world.range(at).await.kvs[0].value), "2");
        let below = pb::RangeRequest {
            revision: revision - 1,
            ..prefix("a", "")
        };
        let result = world.kv.range(below).await;
        refused(
            result,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
    });
}

#[test]
fn trap_05_compact_twice_at_a_revision_is_refused() {
    run(async |mut world: World| {
        let revision = world.put("a", "1").await;
        world.compact(revision).await.unwrap();
        let again = world.compact(revision).await;
        refused(
            again,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        let future = world.compact(revision + 1).await;
        refused(
            future,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        );
    });
}

#[test]
fn trap_06_delete_of_nothing_keeps_the_revision() {
    run(async |mut world: World| {
        let revision = world.put("a", "1").await;
        let response = world.delete("b").await;
        assert_eq!(
            (response.deleted, response.header.unwrap().revision),
            (0, revision)
        );
        assert_eq!(world.put("a", "2").await, revision + 1);
    });
}

#[test]
fn trap_07_txn_whose_branch_only_reads_keeps_the_revision() {
    run(async |mut world: World| {
        let revision = world.put("a", "1").await;
        let txn = pb::TxnRequest {
            compare: vec![compare(
                "a",
                CompareTarget::Version,
                CompareResult::Equal,
                TargetUnion::Version(7),
            )],
            success: vec![put_op("a", "2")],
            failure: vec![op(Request::RequestRange(prefix("a", "")))],
        };
        let response = world.txn(txn).await.unwrap();
        assert!(!response.succeeded);
        assert_eq!(response.header.unwrap().revision, revision);
        assert_eq!(world.revision().await, revision);
    });
}

#[test]
fn trap_08_value_compare_of_a_missing_key_is_false_whatever_it_asks() {
    run(async |mut world: World| {
        for result in [
            CompareResult::Equal,
            CompareResult::NotEqual,
            CompareResult::Less,
            CompareResult::Greater,
        ] {
            let value = TargetUnion::Value("x".into());
            let txn = pb::TxnRequest {
                compare: vec![compare("missing", CompareTarget::Value, result, value)],
                ..Default::default()
            };
            assert!(!world.txn(txn).await.unwrap().succeeded, "{result:?}");
        }
        let zero = TargetUnion::CreateRevision(0);
        let txn = pb::TxnRequest {
            compare: vec![compare(
                "missing",
                CompareTarget::Create,
                CompareResult::Equal,
                zero,
            )],
            ..Default::default()
        };
        assert!(world.txn(txn).await.unwrap().succeeded);
    });
}

#[test]
fn trap_09_nested_compares_see_the_state_before_the_txn() {
    run(async |mut world: World| {
        world.put("a", "old").await;
        let is_new = compare(
            "a",
            CompareTarget::Value,
            CompareResult::Equal,
            TargetUnion::Value("new".into()),
        );
        let nested = pb::TxnRequest {
            compare: vec![is_new],
            success: vec![put_op("b", "saw the new value")],
            failure: vec![put_op("b", "saw the old value")],
        };
        let txn = pb::TxnRequest {
            success: vec![put_op("a", "new"), op(Request::RequestTxn(nested))],
            ..Default::default()
        };
        world.txn(txn).await.unwrap();
        assert_eq!(
            text(&world.range(prefix("b", "")).await.kvs[0].value),
            "saw the old value"
        );
    });
}

#[test]
fn trap_10_key_put_twice_in_a_txn_is_refused_and_deleted_twice_is_fine() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        let twice = pb::TxnRequest {
            success: vec![put_op("a", "2"), put_op("a", "3")],
            ..Default::default()
        };
        let message = "etcdserver: duplicate key given in txn request";
        refused(world.txn(twice).await, Code::InvalidArgument, message);
        let overlapping = pb::TxnRequest {
            success: vec![put_op("a", "2"), delete_op("a")],
            ..Default::default()
        };
        refused(world.txn(overlapping).await, Code::InvalidArgument, message);
        let deletes = pb::TxnRequest {
            success: vec![delete_op("a"), delete_op("a")],
            ..Default::default()
        };
        world.txn(deletes).await.unwrap();
        assert_eq!(world.range(prefix("a", "")).await.count, 0);
    });
}

#[test]
fn trap_11_keepalive_of_a_dead_lease_has_ttl_0_and_its_time_to_live_is_minus_1() {
    run(async |mut world: World| {
        let request = pb::LeaseTimeToLiveRequest {
            id: 99,
            keys: false,
        };
        let response = world
            .lease
            .lease_time_to_live(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!((response.id, response.ttl), (99, -1));
        let id = world.grant(60).await.id;
        let (requests, receiver) = mpsc::unbounded_channel();
        let stream = UnboundedReceiverStream::new(receiver);
        requests.send(pb::LeaseKeepAliveRequest { id: 99 }).unwrap();
        let mut answers = world
            .lease
            .lease_keep_alive(stream)
            .await
            .unwrap()
            .into_inner();
        requests.send(pb::LeaseKeepAliveRequest { id }).unwrap();
        requests.send(pb::LeaseKeepAliveRequest { id: 99 }).unwrap();
        for (id, ttl) in [(99, 0), (id, 60), (99, 0)] {
            let answer = timeout(PATIENCE, answers.message())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            assert_eq!((answer.id, answer.ttl), (id, ttl));
        }
    });
}

#[test]
fn trap_12_grant_of_one_second_gives_two() {
    run(async |mut world: World| {
        let granted = world.grant(1).await;
        assert_eq!(granted.ttl, 2);
        assert!(granted.id > 0);
        let again = pb::LeaseGrantRequest {
            ttl: 10,
            id: granted.id,
        };
        let result = world.lease.lease_grant(again).await;
        refused(
            result,
            Code::FailedPrecondition,
            "etcdserver: lease already exists",
        );
        let long = pb::LeaseGrantRequest {
            ttl: 9_000_000_001,
            id: 0,
        };
        let result = world.lease.lease_grant(long).await;
        refused(result, Code::OutOfRange, "etcdserver: too large lease TTL");
        let unknown = pb::PutRequest {
            lease: 77,
            ..put_request("a", "1")
        };
        let result = world.kv.put(unknown).await;
        refused(
            result,
            Code::NotFound,
            "etcdserver: requested lease not found",
        );
    });
}

#[test]
fn trap_13_expiry_of_many_keys_is_one_revision_and_one_batch_of_events() {
    run(async |mut world: World| {
        let id = world.grant(1).await.id;
        for key in ["c", "a", "b"] {
            world.put_attached(key, id).await;
        }
        let revision = world.revision().await;
        let mut watch = world.watch();
        let all = WatchCreateRequest {
            range_end: "z".into(),
            ..watch_key("a")
        };
        assert!(watch.create(all).await.created);
        let response = watch.next().await;
        let next = revision + 1;
        let expected = ["a", "b", "c"].map(|key| (EventType::Delete, key, next));
        assert_eq!(kinds(&response.events), expected);
        assert_eq!(world.revision().await, next);
    });
}

#[test]
fn trap_14_watch_from_a_compacted_revision_is_created_then_canceled() {
    run(async |mut world: World| {
        for value in ["1", "2", "3"] {
            world.put("a", value).await;
        }
        world.compact(4).await.unwrap();
        let mut watch = world.watch();
        let from_2 = WatchCreateRequest {
            start_revision: 2,
            ..watch_key("a")
        };
        let created = watch.create(from_2).await;
        assert!(created.created && !created.canceled);
        let canceled = watch.next().await;
        assert!(canceled.canceled && !canceled.created);
        assert_eq!(
            (canceled.watch_id, canceled.compact_revision),
            (created.watch_id, 4)
        );
        // The compacted revision itself is still there.
        let from_4 = WatchCreateRequest {
            start_revision: 4,
            ..watch_key("a")
        };
        assert!(watch.create(from_4).await.created);
        assert_eq!(
            kinds(&watch.next().await.events),
            [(EventType::Put, "a", 4)]
        );
    });
}

#[test]
fn trap_15_watch_that_cannot_be_created_is_created_and_canceled_with_id_minus_1() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        let mut watch = world.watch();
        let empty = WatchCreateRequest {
            range_end: "a".into(),
            ..watch_key("b")
        };
        let response = watch.create(empty).await;
        assert!(response.created && response.canceled);
        assert_eq!(response.watch_id, -1);
        assert!(
            response.cancel_reason.contains("watcher range is empty"),
            "{response:?}"
        );
        let mine = WatchCreateRequest {
            watch_id: 7,
            ..watch_key("a")
        };
        assert_eq!(watch.create(mine.clone()).await.watch_id, 7);
        let response = watch.create(mine).await;
        assert!(response.created && response.canceled);
        assert_eq!(response.watch_id, -1);
        assert!(
            response.cancel_reason.contains("duplicate watch ID"),
            "{response:?}"
        );
    });
}

#[test]
fn trap_16_progress_answer_has_id_minus_1_and_comes_after_all_events() {
    run(async |mut world: World| {
        let mut watch = world.watch();
        assert!(watch.create(watch_key("a")).await.created);
        let mut revision = 0;
        for value in 0..50 {
            revision = world.put("a", &value.to_string()).await;
        }
        watch.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        let mut newest = 0;
        loop {
            let response = watch.next().await;
            if response.events.is_empty() {
                assert_eq!(response.watch_id, -1);
                let promised = response.header.unwrap().revision;
                assert_eq!(
                    promised, newest,
                    "events up to {newest} came before the promise"
                );
                if promised == revision {
                    break;
                }
                watch.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
            } else {
                newest = response
                    .events
                    .last()
                    .unwrap()
                    .kv
                    .as_ref()
                    .unwrap()
                    .mod_revision;
            }
        }
    });
}

#[test]
fn trap_17_cancel_of_an_unknown_watch_is_silent() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        let mut watch = world.watch();
        let created = watch.create(watch_key("a")).await;
        watch.send(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 99,
        }));
        // The next thing that comes answers this, so nothing answered that.
        assert_eq!(watch.progress().await.watch_id, -1);
        let cancel = pb::WatchCancelRequest {
            watch_id: created.watch_id,
        };
        watch.send(RequestUnion::CancelRequest(cancel));
        let canceled = watch.next().await;
        assert!(canceled.canceled);
        assert_eq!(canceled.watch_id, created.watch_id);
    });
}

#[test]
fn trap_18_delete_event_has_only_key_and_revision() {
    run(async |mut world: World| {
        let mut watch = world.watch();
        let with_previous = WatchCreateRequest {
            prev_kv: true,
            ..watch_key("a")
        };
        watch.create(with_previous).await;
        world.put("a", "1").await;
        assert_eq!(watch.next().await.events[0].prev_kv, None);
        world.delete("a").await;
        let events = watch.next().await.events;
        let expected = KeyValue {
            key: "a".into(),
            mod_revision: 3,
            ..Default::default()
        };
        assert_eq!(events[0].kv, Some(expected));
        assert_eq!(text(&events[0].prev_kv.as_ref().unwrap().value), "1");
    });
}

#[test]
fn trap_19_batch_whose_events_are_all_filtered_sends_nothing() {
    run(async |mut world: World| {
        use pb::watch_create_request::FilterType;
        let mut watch = world.watch();
        let no_put = WatchCreateRequest {
            filters: vec![FilterType::Noput.into()],
            ..watch_key("a")
        };
        watch.create(no_put).await;
        world.put("a", "1").await;
        world.put("a", "2").await;
        world.delete("a").await;
        assert_eq!(
            kinds(&watch.next().await.events),
            [(EventType::Delete, "a", 4)]
        );
    });
}

#[test]
fn trap_20_member_answers_have_revision_0() {
    run(async |mut world: World| {
        world.put("a", "1").await;
        let mut cluster = ClusterClient::new(world.channel.clone());
        let response = cluster
            .member_list(pb::MemberListRequest { linearizable: true })
            .await;
        let response = response.unwrap().into_inner();
        assert_eq!(response.header.unwrap().revision, 0);
        assert_eq!(response.members.len(), 1);
    });
}

#[test]
fn trap_21_ignore_value_of_a_missing_key_is_an_invalid_argument() {
    run(async |mut world: World| {
        let request = pb::PutRequest {
            ignore_value: true,
            ..put_request("a", "")
        };
        let result = world.kv.put(request).await;
        refused(result, Code::InvalidArgument, "etcdserver: key not found");
        let request = pb::PutRequest {
            ignore_value: true,
            ..put_request("a", "x")
        };
        let result = world.kv.put(request).await;
        refused(
            result,
            Code::InvalidArgument,
            "etcdserver: value is provided",
        );
        let request = pb::PutRequest {
            ignore_lease: true,
            lease: 1,
            ..put_request("a", "x")
        };
        let result = world.kv.put(request).await;
        refused(
            result,
            Code::InvalidArgument,
            "etcdserver: lease is provided",
        );
        refused(
            world.kv.put(put_request("", "x")).await,
            Code::InvalidArgument,
            "etcdserver: key is not provided",
        );
    });
}

#[test]
fn trap_23_large_request_is_too_large_and_a_larger_one_is_refused_by_the_transport() {
    run(async |mut world: World| {
        let value = "x".repeat(1_600_000);
        let result = world.kv.put(put_request("a", &value)).await;
        refused(
            result,
            Code::InvalidArgument,
            "etcdserver: request is too large",
        );
        let value = "x".repeat(2_200_000);
        let status = world.kv.put(put_request("a", &value)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(world.put("a", &"x".repeat(1_500_000)).await, 2);
    });
}

#[test]
fn trap_31_watch_from_a_future_revision_sees_neither_progress_nor_older_events() {
    run(async |mut world: World| {
        let mut watch = world.watch();
        let future = WatchCreateRequest {
            start_revision: 5,
            ..watch_key("a")
        };
        assert!(watch.create(future).await.created);
        for value in ["2", "3", "4", "5"] {
            world.put("a", value).await;
        }
        assert_eq!(
            kinds(&watch.next().await.events),
            [(EventType::Put, "a", 5)]
        );
    });
}

#[test]
fn trap_32_watches_created_in_a_storm_of_writes_lose_no_event() {
    run(async |mut world: World| {
        const WATCHES: usize = 200;
        let mut writer = KvClient::new(world.channel.clone());
        let writing = tokio::spawn(async move {
            for value in 0..2_000 {
                writer
                    .put(put_request("a", &value.to_string()))
                    .await
                    .unwrap();
            }
        });
        let mut watch = world.watch();
        for _ in 0..WATCHES {
            watch.send(RequestUnion::CreateRequest(watch_key("a")));
        }
        // The next revision that each watch must see, from its creation on.
        let mut next = vec![0; WATCHES];
        let mut done = 0;
        let end = 2_001;
        while done < WATCHES {
            let response = watch.next().await;
            let id = usize::try_from(response.watch_id).unwrap();
            if response.created {
                next[id] = response.header.unwrap().revision + 1;
                done += usize::from(next[id] > end);
            }
            for event in &response.events {
                let revision = event.kv.as_ref().unwrap().mod_revision;
                assert_eq!(revision, next[id], "watch {id}");
                next[id] += 1;
                done += usize::from(revision == end);
            }
        }
        timeout(Duration::from_secs(30), writing)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(world.revision().await, end);
    });
}
