//! What leases have left after leadership moved, by command, by a stop and by a kill: with another leader, and after a
//! restart of a member that is alone.

use std::time::{Duration, Instant};

use flotilla_tests::cluster::{Client, Cluster};

use super::{FLOTILLA, QUICK};

/// Time passes for the lease meanwhile; the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Asks until there is an answer that will do. A new leader needs a moment.
fn wait_for_left(client: &Client, lease: i64, will_do: impl Fn(i64) -> bool) -> i64 {
    let until = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < until {
        last = client.time_to_live(lease).ok();
        if let Some(left) = last.filter(|left| will_do(*left)) {
            return left;
        }
        std::thread::park_timeout(POLL);
    }
    panic!("the lease has {last:?} left");
}

fn left(client: &Client, lease: i64) -> i64 {
    wait_for_left(client, lease, |_| true)
}

fn id(cluster: &Cluster, member: usize) -> u64 {
    let status = cluster.client(member).status().unwrap();
    status.header.unwrap().member_id
}

#[test]
fn leadership_that_is_moved_gives_no_lease_its_time_back() {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let leader = cluster.leader();
    let client = cluster.client(leader);
    let lease = client.grant(60).unwrap();
    let before = wait_for_left(&client, lease, |left| left <= 55);
    let next = (leader + 1) % 3;
    client.move_leader(id(&cluster, next)).unwrap();
    let after = left(&cluster.client(next), lease);
    assert!(after <= before + 2, "{before} before, {after} after");
    assert_eq!(cluster.client(next).keep_alive(lease).unwrap(), 60);
}

#[test]
fn leader_that_stops_gives_no_lease_its_time_back() {
    for members in [1, 3] {
        let mut cluster = Cluster::start(FLOTILLA, members, &QUICK);
        let leader = cluster.leader();
        let lease = cluster.client(leader).grant(60).unwrap();
        let before = wait_for_left(&cluster.client(leader), lease, |left| left <= 55);
        let mut server = cluster.take(leader);
        server.terminate();
        assert!(server.wait_exit().success());
        cluster.start_all();
        let after = left(&cluster.client(cluster.leader()), lease);
        assert!(after <= before + 2, "{before} before, {after} after");
    }
}

#[test]
fn leader_that_is_killed_gives_two_fifths_of_a_lease_back_at_most() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let leader = cluster.leader();
    let lease = cluster.client(leader).grant(20).unwrap();
    // A record is made after eight seconds, or nine where it waits for a whole one.
    wait_for_left(&cluster.client(leader), lease, |left| left <= 10);
    cluster.kill(leader);
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let next = cluster.leader_among(&others);
    let after = left(&cluster.client(next), lease);
    assert!(after <= 13, "{after} of 20 left");
}
