//! Two of three members are gone: what the last one still does, and that nothing is lost when they are back.

use std::thread;

use flotilla_tests::cluster::Cluster;

use super::{settle, under_load};

/// The member that is left, cut off from a majority, for as long as a write waits in vain.
fn serves_what_may_be_stale_only(cluster: &Cluster, left: usize) {
    let urls = cluster.urls();
    let client = cluster.client(left);
    assert!(client.get("key-0", true).unwrap().is_some(), "stale reads");
    cluster.wait("leader that gave up", || {
        client.status().is_ok_and(|status| status.leader == 0)
    });
    let refused = client.get_with_leader("key-0").unwrap_err();
    assert_eq!(refused.message(), "etcdserver: no leader");
    // Both wait for as long as etcd lets them.
    thread::scope(|scope| {
        let call = |read: bool| {
            let client = flotilla_tests::cluster::Client::new(
                &urls[left],
                flotilla_tests::process::PATIENCE,
            );
            let answer = if read {
                client.get("key-0", false).map(drop)
            } else {
                client.put("lonely", "value").map(drop)
            };
            answer.unwrap_err().message().to_owned()
        };
        let read = scope.spawn(move || call(true));
        let write = scope.spawn(move || call(false));
        let late = "etcdserver: request timed out";
        assert_eq!(read.join().unwrap(), late);
        assert!(write.join().unwrap().starts_with(late));
    });
    assert!(client.get("key-0", true).unwrap().is_some());
}

#[test]
fn majority_that_is_lost_and_comes_back_loses_no_acknowledged_write() {
    let (mut cluster, load) = under_load();
    for leader_is_left in [true, false] {
        let leader = cluster.leader();
        let left = if leader_is_left {
            leader
        } else {
            (leader + 1) % 3
        };
        // All four keys exist by then.
        load.wait_for_writes(50);
        for member in (0..3).filter(|member| *member != left) {
            cluster.kill(member);
        }
        serves_what_may_be_stale_only(&cluster, left);
        cluster.start_all();
        load.wait_for_writes(50);
    }
    settle(&cluster, load);
}

#[test]
fn rolling_restart_under_load_loses_nothing_and_hands_over_each_time() {
    let (mut cluster, load) = under_load();
    for _ in 0..2 {
        for member in 0..3 {
            let mut server = cluster.take(member);
            server.terminate();
            assert!(server.wait_exit().success(), "{server}");
            load.wait_for_writes(50);
            cluster.start_all();
            // The next one only when this one is a member again, as docs/OPERATIONS.md says.
            cluster.wait("member that serves", || {
                cluster.client(member).get("key-0", false).is_ok()
            });
        }
    }
    settle(&cluster, load);
}
