//! A cluster without clients: it sleeps, and wakes when there is something to do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flotilla_tests::cluster::Cluster;

use super::FLOTILLA;

/// Bytes in a second that one member sends another in beats: ten frames of less than 40. With heartbeats it is five times
/// that at these timers.
const BEATS_MAX: f64 = 500.0;
/// A hundred heartbeats a second while the group is awake.
const FAST: [&str; 4] = ["--heartbeat-interval", "10", "--election-timeout", "400"];
/// The same, and no machine is so busy that it looks like the death of a leader.
const FAST_AND_PATIENT: [&str; 4] = ["--heartbeat-interval", "10", "--election-timeout", "5000"];
const WINDOW: Duration = Duration::from_millis(500);

/// What a member has sent to all others.
fn sent(cluster: &Cluster, member: usize) -> f64 {
    let url = cluster.setups[member].url();
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let lines = page.lines();
    let lines = lines.filter(|line| line.starts_with("etcd_network_peer_sent_bytes_total{"));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Waits until no member sends more than beats.
fn wait_until_asleep(cluster: &Cluster, members: &[usize]) {
    let others = (cluster.setups.len() - 1) as f64;
    for member in members {
        let mut before = (Instant::now(), sent(cluster, *member));
        cluster.wait("member that sends beats only", || {
            let elapsed = before.0.elapsed();
            if elapsed < WINDOW {
                return false;
            }
            let now = sent(cluster, *member);
            let rate = (now - before.1) / elapsed.as_secs_f64();
            before = (Instant::now(), now);
            assert!(rate > 0.0, "beats go on");
            rate < BEATS_MAX * others
        });
    }
}

#[test]
fn cluster_without_clients_sends_beats_only_and_serves_at_once_when_asked() {
    let cluster = Cluster::start(FLOTILLA, 3, &FAST_AND_PATIENT);
    cluster.client(0).put("key", "value").unwrap();
    let leader = cluster.leader();
    let term = cluster.client(leader).status().unwrap().raft_term;
    for member in 0..3 {
        wait_until_asleep(&cluster, &[0, 1, 2]);
        let client = cluster.client(member);
        assert_eq!(client.get("key", false).unwrap().as_deref(), Some("value"));
        client.put("key", "value").unwrap();
    }
    // A lease runs out although nobody asks.
    let lease = cluster.client(0).grant(1).unwrap();
    cluster.wait("lease that ended", || {
        cluster
            .client(1)
            .time_to_live(lease)
            .is_ok_and(|left| left < 0)
    });
    assert_eq!(cluster.client(0).status().unwrap().raft_term, term);
    cluster.wait_for_equal_state();
}

#[test]
fn leader_that_dies_while_its_cluster_sleeps_is_replaced() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &FAST);
    for _ in 0..2 {
        let leader = cluster.leader();
        wait_until_asleep(&cluster, &[0, 1, 2]);
        cluster.kill(leader);
        let left: Vec<_> = (0..3).filter(|member| *member != leader).collect();
        let new = cluster.leader_among(&left);
        assert_ne!(new, leader);
        cluster.client(new).put("key", "value").unwrap();
        cluster.start_all();
    }
    cluster.wait_for_equal_state();
}
