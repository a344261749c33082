//! Members that are replaced, while clients write and read.

use std::fs;

use flotilla_tests::cluster::{Cluster, Load};
use tonic::Code;

use super::members::{grow, when_healthy};
use super::{CLIENTS, FLOTILLA, QUICK};

#[test]
fn member_that_lost_its_disk_is_removed_added_and_caught_up_by_a_snapshot() {
    let flags = [&QUICK[..], &["--snapshot-count", "500"]].concat();
    let mut cluster = Cluster::start(FLOTILLA, 3, &flags);
    let load = Load::start(&cluster.urls(), CLIENTS);
    let leader = cluster.leader();
    let wiped = (leader + 1) % 3;
    let (id, client) = (cluster.id(wiped), cluster.client(leader));
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.data_dir(wiped)).unwrap();
    // The margin is 5,000 entries; looking at what can go takes a second.
    load.wait_for_writes(8_000);

    // It cannot come back as who it was.
    let members = client.members().unwrap();
    cluster.joins(wiped, &members);
    cluster.spawn(wiped);
    let mut server = cluster.take(wiped);
    assert_eq!(server.wait_exit().code(), Some(2), "{server}");
    let text = "remove the member and add it again";
    assert!(server.log().contains(text), "{server}");

    when_healthy(&cluster, || client.member_remove(id)).unwrap();
    let added = grow(&mut cluster, leader, wiped);
    assert_ne!(added.id, id);
    let log = cluster.server(wiped).log();
    assert!(log.contains("a snapshot comes from a member"), "{log}");
    load.wait_for_writes(50);
    load.check(&cluster.urls());
    cluster.wait_for_equal_state();
}

#[test]
fn members_replaced_one_after_the_other_while_leaders_die_lose_nothing() {
    let flags = [&QUICK[..], &["--strict-reconfig-check=false"]].concat();
    let mut cluster = Cluster::start(FLOTILLA, 3, &flags);
    let load = Load::start(&cluster.urls(), CLIENTS);
    for round in 0..3 {
        load.wait_for_writes(50);
        let leader = cluster.leader();
        let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let (id, client) = (cluster.id(gone), cluster.client(other));
        client.member_remove(id).unwrap();
        let mut server = cluster.take(gone);
        assert_eq!(server.wait_exit().code(), Some(1), "{server}");
        cluster.net.is_process(gone, None);
        fs::remove_dir_all(cluster.data_dir(gone)).unwrap();

        let url = cluster.setups[gone].peer_url.clone().unwrap();
        let (added, members) = if round == 0 {
            client.member_add(&url, false).unwrap()
        } else {
            // Whoever leads dies while it is asked; what became of it shows in the list.
            let asked = std::thread::scope(|scope| {
                let asked = scope.spawn(|| client.member_add(&url, false));
                cluster.kill(leader);
                asked.join().unwrap()
            });
            cluster.start_all_but(gone);
            match asked {
                Ok(added) => added,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    let members = client.members().unwrap();
                    let is_new = |one: &&kv_server::pb::etcdserverpb::Member| {
                        one.peer_ur_ls == [url.clone()]
                    };
                    match members.iter().find(is_new).cloned() {
                        Some(added) => (added, members),
                        None => client.member_add(&url, false).unwrap(),
                    }
                }
            }
        };
        assert_eq!(members.len(), 3, "{members:?}");
        cluster.joins(gone, &members);
        cluster.start_all();
        assert_eq!(cluster.id(gone), added.id);
    }
    load.wait_for_writes(50);
    load.check(&cluster.urls());
    cluster.wait_for_equal_state();
}
