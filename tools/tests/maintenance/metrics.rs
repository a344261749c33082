//! Numbers of a server that works: what etcd's alerts and dashboard read moves.

use std::io::{Read, Write};
use std::net::TcpStream;

use flotilla_tests::cluster::Cluster;

use super::{FLOTILLA, client_of, setup, stop, wait};

fn page(url: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    page
}

/// The sum over all labels of a name; none when it is not there.
fn value(page: &str, name: &str) -> Option<f64> {
    let mut lines = page
        .lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .peekable();
    lines.peek()?;
    Some(lines.sum())
}

fn moved(names: &[&str], before: &str, after: &str) -> bool {
    let of = |page: &str, name: &str| value(page, name).unwrap_or(0.0);
    names.iter().all(|name| of(after, name) > of(before, name))
}

#[test]
fn numbers_of_one_member_move_with_what_it_does() {
    let (_dir, setup) = setup(&["--snapshot-count", "1"]);
    let server = setup.start();
    let client = client_of(&server);
    let before = page(server.url());
    let names = [
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds_count",
    ];
    for number in 0..20 {
        client
            .put(&format!("key-{number}"), &"x".repeat(10_000))
            .unwrap();
    }
    let log = || format!("{}\n{server}", page(server.url()));
    wait("movement", log, || {
        moved(&names, &before, &page(server.url()))
    });
    let after = page(server.url());
    assert_eq!(value(&after, "etcd_server_has_leader"), Some(1.0));
    assert_eq!(
        value(&after, "etcd_server_leader_changes_seen_total"),
        Some(1.0)
    );
    stop(server);
}

#[test]
fn numbers_between_members_move_and_a_new_leader_is_seen() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &["--election-timeout", "500"]);
    let leader = cluster.leader();
    let left = [(leader + 1) % 3, (leader + 2) % 3];
    let urls = left.map(|member| cluster.setups[member].url());
    let before = urls.each_ref().map(|url| page(url));
    let names = [
        "etcd_network_peer_sent_bytes_total",
        "etcd_network_peer_received_bytes_total",
        "etcd_network_peer_round_trip_time_seconds_count",
        "etcd_server_leader_changes_seen_total",
    ];
    let client = cluster.client(left[0]);
    client.put("key", "value").unwrap();
    cluster.kill(leader);
    cluster.wait("movement", || {
        drop(client.put("key", "value"));
        let now = urls.each_ref().map(|url| page(url));
        // Only who leads sends anything to the one that is gone.
        let failures = ["etcd_network_peer_sent_failures_total"];
        let failed = (0..2).any(|at| moved(&failures, &before[at], &now[at]));
        failed && moved(&names, &before[0], &now[0])
    });
}
