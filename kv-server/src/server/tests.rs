//! Over real loopback sockets, with a fake replica behind the api.

mod auth;
mod authority;
mod http2;
mod lease;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;

use tonic::transport::Channel;
use tonic::{Code, Request};

use super::*;
use crate::api::testing::{FakeState, fake_api_with};
use crate::pb::etcdserverpb as pb;
use crate::pb::health::HealthCheckRequest;
use crate::pb::health::health_client::HealthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;

fn start() -> (ServerHandle, Arc<FakeState>) {
    start_with(1_000)
}

fn start_with(election_ms: u64) -> (ServerHandle, Arc<FakeState>) {
    let (api, state) = fake_api_with(election_ms);
    let parts = ServerParts {
        api,
        hub: Arc::new(WatchHub::new()),
        metrics: Arc::new(Metrics::new()),
        services: Routes::default(),
        options: ServerOptions::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (serve(vec![listener.into()], parts).unwrap(), state)
}

fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

fn with_channel<T>(address: SocketAddr, run: impl AsyncFnOnce(Channel) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        run(endpoint.connect().await.unwrap()).await
    })
}

fn put_of(bytes: usize) -> pb::PutRequest {
    pb::PutRequest {
        key: "a".into(),
        value: vec![1; bytes].into(),
        ..Default::default()
    }
}

#[test]
fn sizes_above_limits_are_refused_by_api_then_by_transport() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut kv = KvClient::new(channel);
        let written = kv.put(put_of(1 << 20)).await.unwrap().into_inner();
        assert_eq!(written.header.unwrap().revision, 2);
        let large = kv.put(put_of((3 << 19) + 1)).await.unwrap_err();
        assert_eq!(large.code(), Code::InvalidArgument);
        assert_eq!(large.message(), "etcdserver: request is too large");
        let larger = kv.put(put_of((2 << 20) + 1)).await.unwrap_err();
        assert_eq!(larger.code(), Code::ResourceExhausted, "{larger:?}");
        let text = larger
            .message()
            .strip_prefix("grpc: received message larger than max (");
        assert!(
            text.is_some_and(|text| text.ends_with(" vs. 2097152)")),
            "{larger:?}"
        );
        let read = pb::RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        assert_eq!(kv.range(read).await.unwrap().into_inner().count, 1);
    });
    server.shutdown();
}

#[test]
fn health_pages_follow_leader_and_alarms() {
    let (server, state) = start();
    let at = server.local_addrs()[0];
    assert_eq!(
        http(at, "GET", "/health"),
        (200, r#"{"health":"true","reason":""}"#.into())
    );
    assert_eq!(http(at, "GET", "/livez"), (200, "ok\n".into()));
    let ready = "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    let verbose = "/readyz?verbose&exclude=serializable_read";
    assert_eq!(http(at, "GET", verbose), (200, ready.into()));
    assert_eq!(
        http(at, "GET", "/readyz/linearizable_read"),
        (200, "ok\n".into())
    );
    assert_eq!(http(at, "GET", "/readyz/other").0, 404);

    state.full.store(true, Ordering::SeqCst);
    let full = r#"{"health":"false","reason":"ALARM NOSPACE"}"#;
    assert_eq!(http(at, "GET", "/health"), (503, full.into()));
    assert_eq!(http(at, "GET", "/health?exclude=NOSPACE").0, 200);

    state.full.store(false, Ordering::SeqCst);
    state.corrupt.store(true, Ordering::SeqCst);
    let corrupt = r#"{"health":"false","reason":"ALARM CORRUPT"}"#;
    assert_eq!(http(at, "GET", "/health"), (503, corrupt.into()));
    let (status, report) = http(at, "GET", "/readyz/data_corruption");
    assert_eq!(status, 503);
    assert!(report.contains("alarm CORRUPT is raised"), "{report}");
    state.corrupt.store(false, Ordering::SeqCst);
    state.no_leader.store(true, Ordering::SeqCst);
    let lost = r#"{"health":"false","reason":"RAFT NO LEADER"}"#;
    assert_eq!(http(at, "GET", "/health"), (503, lost.into()));
    assert_eq!(http(at, "GET", "/health?serializable=true").0, 200);
    assert_eq!(http(at, "GET", "/livez").0, 200);
    let (status, report) = http(at, "GET", "/readyz");
    assert_eq!(status, 503);
    assert!(
        report.contains("[-]linearizable_read failed: etcdserver: no leader"),
        "{report}"
    );
}

#[test]
fn pages_answer_get_only() {
    let (server, _) = start();
    for path in ["/health", "/livez", "/readyz", "/version", "/metrics"] {
        assert_eq!(http(server.local_addrs()[0], "POST", path).0, 405, "{path}");
        assert_eq!(http(server.local_addrs()[0], "GET", path).0, 200, "{path}");
    }
    assert_eq!(http(server.local_addrs()[0], "GET", "/elsewhere").0, 404);
}

#[test]
fn metrics_after_calls_show_them() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut kv = KvClient::new(channel);
        kv.put(put_of(1)).await.unwrap();
        kv.put(pb::PutRequest::default()).await.unwrap_err();
    });
    let (_, page) = http(server.local_addrs()[0], "GET", "/metrics");
    let put = |code: &str| {
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        format!("grpc_server_handled_total{{grpc_code=\"{code}\",{labels}}} 1\n")
    };
    assert!(page.contains(&put("OK")), "{page}");
    assert!(page.contains(&put("InvalidArgument")), "{page}");
    for line in [
        "etcd_server_has_leader 1\n",
        "etcd_debugging_mvcc_current_revision 2\n",
    ] {
        assert!(page.contains(line), "{page}");
    }
}

/// The names that etcd's published alert rules and dashboard read, as far as one member without links has them, each with
/// the value that two calls of KV leave behind.
#[test]
fn metrics_have_the_names_of_etcds_alerts_and_dashboard() {
    let (server, state) = start();
    let at = server.local_addrs()[0];
    let value = |page: &str, name: &str| -> f64 {
        let line = page.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (_, before) = http(at, "GET", "/metrics");
    with_channel(at, async |channel| {
        let mut kv = KvClient::new(channel);
        kv.put(put_of(10_000)).await.unwrap();
        kv.put(pb::PutRequest::default()).await.unwrap_err();
    });
    state.full.store(true, Ordering::SeqCst);
    let (_, page) = http(at, "GET", "/metrics");
    let put = r#"grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary""#;
    let watch = r#"grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream""#;
    for (name, expected) in [
        ("etcd_server_has_leader".to_owned(), 1.0),
        ("etcd_server_is_leader".to_owned(), 1.0),
        ("etcd_server_is_learner".to_owned(), 0.0),
        ("etcd_server_leader_changes_seen_total".to_owned(), 3.0),
        ("etcd_server_proposals_committed_total".to_owned(), 12.0),
        ("etcd_server_proposals_applied_total".to_owned(), 11.0),
        ("etcd_server_proposals_pending".to_owned(), 0.0),
        ("etcd_server_proposals_failed_total".to_owned(), 0.0),
        ("etcd_server_quota_backend_bytes".to_owned(), 8192.0),
        ("etcd_mvcc_db_total_size_in_bytes".to_owned(), 4096.0),
        ("etcd_mvcc_db_total_size_in_use_in_bytes".to_owned(), 2048.0),
        ("etcd_disk_wal_fsync_duration_seconds_count".to_owned(), 0.0),
        (
            "etcd_disk_backend_commit_duration_seconds_count".to_owned(),
            0.0,
        ),
        (format!("grpc_server_started_total{{{put}}}"), 2.0),
        (format!("grpc_server_started_total{{{watch}}}"), 0.0),
        (format!("grpc_server_handling_seconds_count{{{put}}}"), 2.0),
        (
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}}"),
            1.0,
        ),
        ("flotilla_alarm_raised{alarm=\"NOSPACE\"}".to_owned(), 1.0),
        ("flotilla_alarm_raised{alarm=\"CORRUPT\"}".to_owned(), 0.0),
    ] {
        assert_eq!(value(&page, &name), expected, "{name}");
    }
    let received = "etcd_network_client_grpc_received_bytes_total";
    assert!(value(&page, received) - value(&before, received) > 10_000.0);
    let sent = "etcd_network_client_grpc_sent_bytes_total";
    assert!(value(&page, sent) > value(&before, sent));
    for name in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    ] {
        assert!(value(&page, name) > 0.0, "{name}");
    }
    assert!(page.contains("etcd_server_version{server_version=\"3.6.11\"} 1\n"));
    for name in [
        "etcd_disk_wal_fsync_duration_seconds",
        "etcd_disk_backend_commit_duration_seconds",
        "grpc_server_handling_seconds",
    ] {
        assert!(
            page.contains(&format!("# TYPE {name} histogram\n")),
            "{name}"
        );
    }
}

#[test]
fn status_and_hasleader_without_leader() {
    let (server, state) = start();
    state.no_leader.store(true, Ordering::SeqCst);
    with_channel(server.local_addrs()[0], async |channel| {
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let status = maintenance
            .status(pb::StatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!((status.leader, status.errors.len()), (0, 1));
        let mut request = Request::new(put_of(1));
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
        let refused = KvClient::new(channel).put(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(refused.message(), "etcdserver: no leader");
    });
}

#[test]
fn missing_parts_say_so_and_health_service_serves() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut health = HealthClient::new(channel.clone());
        let whole = HealthCheckRequest {
            service: String::new(),
        };
        assert_eq!(
            health
                .check(whole.clone())
                .await
                .unwrap()
                .into_inner()
                .status,
            1
        );
        let mut watch = health.watch(whole).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
        let other = HealthCheckRequest {
            service: "x".into(),
        };
        assert_eq!(
            health.check(other).await.unwrap_err().code(),
            Code::NotFound
        );

        let mut cluster = ClusterClient::new(channel.clone());
        let add = cluster
            .member_add(pb::MemberAddRequest::default())
            .await
            .unwrap_err();
        assert_eq!(add.code(), Code::InvalidArgument);
        assert_eq!(add.message(), "etcdserver: given member URLs are invalid");
        // No watch service was given to this server.
        let mut watch = pb::watch_client::WatchClient::new(channel);
        let missing = watch.watch(tokio_stream::pending()).await.unwrap_err();
        assert_eq!(missing.code(), Code::Unimplemented);
        assert!(
            missing.message().contains("/etcdserverpb.Watch/Watch"),
            "{missing:?}"
        );
    });
}

#[test]
fn learner_serves_stale_ranges_and_its_status_only() {
    let (server, state) = start();
    state.learns.store(true, Ordering::SeqCst);
    with_channel(server.local_addrs()[0], async |channel| {
        let range = |serializable| pb::RangeRequest {
            key: "a".into(),
            serializable,
            ..Default::default()
        };
        let mut kv = KvClient::new(channel.clone());
        assert!(kv.range(range(true)).await.is_ok());
        let refused = kv.range(range(false)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(
            refused.message(),
            "etcdserver: rpc not supported for learner"
        );
        let mut cluster = ClusterClient::new(channel.clone());
        let list = pb::MemberListRequest::default();
        assert!(cluster.member_list(list).await.is_err());
        let mut maintenance = MaintenanceClient::new(channel);
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap();
        assert!(status.into_inner().is_learner);
        // One that will vote is none for its clients.
        state.joins.store(true, Ordering::SeqCst);
        assert!(kv.range(range(false)).await.is_ok());
    });
}

#[test]
fn shutdown_with_idle_connection_stops_listening() {
    let (server, _) = start();
    let address = server.local_addrs()[0];
    with_channel(address, async |channel| {
        KvClient::new(channel).put(put_of(1)).await.unwrap();
        server.shutdown();
    });
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn five_hundred_streams_on_one_connection_are_served() {
    let (server, _) = start();
    with_channel(server.local_addrs()[0], async |channel| {
        let mut open = Vec::new();
        for _ in 0..500 {
            let whole = HealthCheckRequest {
                service: String::new(),
            };
            let stream = HealthClient::new(channel.clone())
                .watch(whole)
                .await
                .unwrap();
            open.push(stream.into_inner());
        }
        let put = KvClient::new(channel)
            .put(put_of(1))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(put.header.unwrap().revision, 2);
        assert_eq!(open[499].message().await.unwrap().unwrap().status, 1);
    });
}
