//! Members that die, pause, or cannot reach each other, while clients write and read.

use std::time::Duration;

use flotilla_tests::cluster::{Cluster, Fault, Load};
use flotilla_tests::process::Server;

use super::{CLIENTS, ELECTION, FLOTILLA, QUICK, settle, under_load};

fn others(of: usize) -> [usize; 2] {
    [(of + 1) % 3, (of + 2) % 3]
}

#[test]
fn leader_killed_again_and_again_loses_no_acknowledged_write() {
    let (mut cluster, load) = under_load();
    for _ in 0..3 {
        let leader = cluster.leader();
        cluster.kill(leader);
        load.wait_for_writes(50);
        cluster.start_all();
    }
    settle(&cluster, load);
}

#[test]
fn follower_killed_keeps_nobody_from_writing_and_catches_up() {
    let (mut cluster, load) = under_load();
    for follower in others(cluster.leader()) {
        cluster.kill(follower);
        load.wait_for_writes(200);
        cluster.start_all();
    }
    settle(&cluster, load);
}

#[test]
fn all_members_killed_at_once_come_back_with_all_acknowledged_writes() {
    let (mut cluster, load) = under_load();
    for _ in 0..2 {
        for member in 0..3 {
            cluster.kill(member);
        }
        cluster.start_all();
        load.wait_for_writes(50);
    }
    settle(&cluster, load);
}

#[test]
fn leader_without_the_others_stops_to_serve_and_the_others_go_on() {
    let (cluster, load) = under_load();
    let old = cluster.leader();
    cluster.net.isolate(old, 3, Some(Fault::Hold));
    let new = cluster.leader_among(&others(old));
    assert_ne!(new, old);
    load.wait_for_writes(50);

    let client = cluster.client(old);
    cluster.wait("a leader that gave up", || {
        client.status().is_ok_and(|status| status.leader == 0)
    });
    assert!(client.get("key-0", true).is_ok(), "stale reads go on");
    let refused = client.get_with_leader("key-0").unwrap_err();
    assert_eq!(refused.message(), "etcdserver: no leader");
    // What waits for a leader gets one when the network is back, or is told that there was none.
    let waiting = std::thread::scope(|scope| {
        let read = scope.spawn(|| client.get("key-0", false));
        load.wait_for_writes(20);
        cluster.net.isolate(old, 3, None);
        read.join().unwrap()
    });
    assert!(waiting.is_ok(), "{waiting:?}");
    settle(&cluster, load);
}

#[test]
fn links_that_work_in_one_direction_only_do_not_hold_a_cluster_up() {
    let (cluster, load) = under_load();
    for outward in [true, false] {
        let leader = cluster.leader();
        for other in others(leader) {
            let (from, to) = if outward {
                (leader, other)
            } else {
                (other, leader)
            };
            cluster.net.set(from, to, Some(Fault::Hold));
        }
        let new = cluster.leader_among(&others(leader));
        assert_ne!(new, leader);
        load.wait_for_writes(50);
        cluster.net.isolate(leader, 3, None);
        load.wait_for_writes(20);
    }
    settle(&cluster, load);
}

#[test]
fn connections_cut_again_and_again_cost_time_only() {
    let (cluster, load) = under_load();
    for round in 0..6 {
        let (from, to) = (round % 3, (round + 1) % 3);
        cluster.net.set(from, to, Some(Fault::Cut));
        load.wait_for_writes(30);
        cluster.net.set(from, to, None);
        load.wait_for_writes(10);
    }
    settle(&cluster, load);
}

#[test]
fn slow_network_slows_writes_down_and_deposes_nobody() {
    let (cluster, load) = under_load();
    let leader = cluster.leader();
    let term = cluster.client(leader).status().unwrap().raft_term;
    let [slow, late] = others(leader);
    for (other, fault) in [
        (slow, Fault::Slow(200_000)),
        (late, Fault::Delay(Duration::from_millis(20))),
    ] {
        cluster.net.set(leader, other, Some(fault));
        cluster.net.set(other, leader, Some(fault));
    }
    load.wait_for_writes(100);
    let after = cluster.client(leader).status().unwrap();
    assert_eq!(after.raft_term, term, "no election was needed");
    for other in [slow, late] {
        cluster.net.set(leader, other, None);
        cluster.net.set(other, leader, None);
    }
    settle(&cluster, load);
}

#[test]
fn write_on_its_way_to_a_leader_that_stops_is_not_called_failed() {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    // On a busy machine the leader may change at any time; then another one is stopped.
    let (leader, client) = (0..10)
        .find_map(|_| {
            let leader = cluster.leader();
            let client = cluster.client(others(leader)[0]);
            cluster.server(leader).pause(true);
            match client.put("other", "lost") {
                Ok(_) => {
                    cluster.server(leader).pause(false);
                    None
                }
                Err(lost) => {
                    assert_eq!(
                        lost.message(),
                        "etcdserver: request timed out, possibly due to previous leader failure"
                    );
                    Some((leader, client))
                }
            }
        })
        .expect("a leader is stopped while it leads");
    // Meanwhile there is another leader.
    client.put("other", "kept").unwrap();
    cluster.server(leader).pause(false);
    cluster.wait_for_equal_state();
    let seen = client.get("other", false).unwrap();
    assert_eq!(seen.as_deref(), Some("kept"), "nothing comes late");
}

/// Three members, one of which missed more than the others keep and does not run; and clients.
fn one_behind() -> (Cluster, Load, usize) {
    let flags = [&QUICK[..], &["--snapshot-count", "500"]].concat();
    let mut cluster = Cluster::start(FLOTILLA, 3, &flags);
    let load = Load::start(&cluster.urls(), CLIENTS);
    let [behind, _] = others(cluster.leader());
    cluster.kill(behind);
    // The margin is 5,000 entries; looking at what can go takes a second.
    load.wait_for_writes(8_000);
    (cluster, load, behind)
}

const COMES: &str = "a snapshot comes from a member";
const TAKEN: &str = "a member has taken a snapshot";

#[test]
fn member_that_missed_more_than_the_others_keep_catches_up_while_writes_go_on() {
    let (mut cluster, load, behind) = one_behind();
    cluster.spawn(behind);
    let servers = others(behind).map(|member| cluster.server(member));
    cluster.wait("snapshot taken", || {
        let taken = |server: &&Server| server.log().contains(TAKEN);
        servers.iter().any(taken)
    });
    cluster.wait("member that serves", || {
        cluster.client(behind).get("key-0", false).is_ok()
    });
    settle(&cluster, load);
}

#[test]
fn member_killed_while_a_snapshot_comes_catches_up_after_all() {
    let (mut cluster, load, behind) = one_behind();
    for other in others(behind) {
        cluster.net.set(other, behind, Some(Fault::Slow(500_000)));
    }
    for _ in 0..2 {
        cluster.spawn(behind);
        let receiver = cluster.server(behind);
        cluster.wait("snapshot that comes", || receiver.log().contains(COMES));
        load.wait_for_writes(20);
        cluster.kill(behind);
    }
    for other in others(behind) {
        cluster.net.set(other, behind, None);
    }
    cluster.start_all();
    settle(&cluster, load);
}

#[test]
fn leader_paused_for_longer_than_an_election_serves_nothing_stale_when_it_wakes() {
    let (cluster, load) = under_load();
    for _ in 0..3 {
        let leader = cluster.leader();
        cluster.server(leader).pause(true);
        let new = cluster.leader_among(&others(leader));
        assert_ne!(new, leader);
        let took = load.wait_for_writes(50);
        assert!(took < 20 * ELECTION + Duration::from_secs(5), "{took:?}");
        cluster.server(leader).pause(false);
        load.wait_for_writes(20);
    }
    settle(&cluster, load);
}
