//! Leadership that is moved, by command and before a stop.

use std::time::{Duration, Instant};

use flotilla_tests::cluster::{Cluster, Fault, Load};

use tonic::Code;

use super::{CLIENTS, FLOTILLA, QUICK, settle};

/// Long enough for nothing but a hand-over to end a leadership early, on a busy machine too.
const PATIENT: [&str; 4] = ["--heartbeat-interval", "100", "--election-timeout", "4000"];
const ELECTION: Duration = Duration::from_secs(4);

fn id(cluster: &Cluster, member: usize) -> u64 {
    let status = cluster.client(member).status().unwrap();
    status.header.unwrap().member_id
}

#[test]
fn leadership_moves_to_the_voter_that_is_named_while_writes_go_on() {
    let cluster = Cluster::start(FLOTILLA, 3, &PATIENT);
    let load = Load::start(&cluster.urls(), CLIENTS);
    let leader = cluster.leader();
    let [next, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let refused = cluster.client(other).move_leader(id(&cluster, next));
    assert_eq!(refused.unwrap_err().message(), "etcdserver: not leader");
    let refused = cluster.client(leader).move_leader(1);
    let text = "etcdserver: bad leader transferee";
    assert_eq!(refused.unwrap_err().message(), text);
    let itself = cluster.client(leader).move_leader(id(&cluster, leader));
    assert!(itself.is_ok(), "{itself:?}");

    let begun = Instant::now();
    cluster
        .client(leader)
        .move_leader(id(&cluster, next))
        .unwrap();
    assert_eq!(cluster.leader(), next);
    assert!(begun.elapsed() < ELECTION, "no election was waited for");
    settle(&cluster, load);
}

#[test]
fn leader_that_is_told_to_stop_hands_over_first() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &PATIENT);
    let leader = cluster.leader();
    let left = [(leader + 1) % 3, (leader + 2) % 3];
    let mut server = cluster.take(leader);
    let begun = Instant::now();
    server.terminate();
    let next = cluster.leader_among(&left);
    cluster.client(next).put("key", "value").unwrap();
    assert!(begun.elapsed() < ELECTION, "no election was waited for");
    assert!(server.wait_exit().success());
    assert!(server.log().contains("handed leadership over"));
    cluster.start_all();
    cluster.wait_for_equal_state();
}

/// Writes wait while leadership is on its way, so it is on its way once, for an election timeout.
#[test]
fn leadership_that_cannot_move_stays_and_who_asked_is_told_in_time() {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let load = Load::start(&cluster.urls(), CLIENTS);
    load.wait_for_writes(50);
    let leader = cluster.leader();
    let [cut, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let target = id(&cluster, cut);
    cluster.net.isolate(cut, 3, Some(Fault::Cut));
    let before = cluster.client(leader).status().unwrap();
    let begun = Instant::now();
    let refused = cluster.client(leader).move_leader(target).unwrap_err();
    let text = "etcdserver: request timed out, leader transfer took too long";
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, text)
    );
    // Two election timeouts and five seconds are what any request may take.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );

    load.wait_for_writes(50);
    assert_eq!(cluster.leader_among(&[leader, other]), leader);
    let after = cluster.client(leader).status().unwrap();
    assert_eq!(after.raft_term, before.raft_term, "no election took place");
    cluster.net.isolate(cut, 3, None);
    settle(&cluster, load);
}
