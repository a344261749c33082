//! How a cluster begins, who belongs to it, and that each member serves everything.

use std::collections::BTreeSet;
use std::fs;

use flotilla_tests::cluster::{Client, Cluster};
use flotilla_tests::process::{READY, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;

use super::{FLOTILLA, QUICK};

#[test]
fn three_members_serve_every_call_at_each_of_them() {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let clients: Vec<_> = (0..3).map(|member| cluster.client(member)).collect();
    for (member, client) in clients.iter().enumerate() {
        let key = format!("of-{member}");
        assert_eq!(client.put(&key, "here").unwrap(), None);
        for other in &clients {
            let seen = other.get(&key, false).unwrap();
            assert_eq!(seen.as_deref(), Some("here"), "{key}");
        }
        assert_eq!(
            client.swap(&key, "here", "there").unwrap().as_deref(),
            Some("here")
        );
    }

    let lease = clients[0].grant(60).unwrap();
    for client in &clients {
        assert_eq!(client.keep_alive(lease).unwrap(), 60);
        let left = client.time_to_live(lease).unwrap();
        assert!((55..=60).contains(&left), "{left} s are left");
        assert_eq!(client.keep_alive(lease + 1).unwrap(), 0);
    }
    for watched in 0..3 {
        let key = format!("watched-{watched}");
        watch_sees(&clients[watched], &clients[(watched + 1) % 3], &key);
    }

    let leader = cluster.leader();
    let status: Vec<_> = clients
        .iter()
        .map(|client| client.status().unwrap())
        .collect();
    let terms: BTreeSet<_> = status.iter().map(|status| status.raft_term).collect();
    assert_eq!(terms.len(), 1, "{status:?}");
    let header = status[leader].header.unwrap();
    assert!(status.iter().all(|one| one.leader == header.member_id));
    for client in &clients {
        let members = client.members().unwrap();
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(
            BTreeSet::from_iter(names),
            BTreeSet::from(["m0", "m1", "m2"])
        );
        for (member, setup) in cluster.setups.iter().enumerate() {
            let name = format!("m{member}");
            let found = members.iter().find(|member| member.name == name).unwrap();
            assert_eq!(found.client_ur_ls, [setup.url()]);
            assert_eq!(found.peer_ur_ls, [setup.peer_url.clone().unwrap()]);
        }
    }
    cluster.wait_for_equal_state();
}

/// A watch at one member sees what is written at another.
fn watch_sees(watching: &Client, writing: &Client, key: &str) {
    let create = pb::WatchCreateRequest {
        key: key.as_bytes().to_vec().into(),
        ..pb::WatchCreateRequest::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let call = async |channel| {
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(request).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = WatchClient::new(channel)
            .watch(requests)
            .await?
            .into_inner();
        assert!(answers.message().await?.unwrap().created);
        // On its own thread: this one waits for the event.
        let written =
            std::thread::scope(|scope| scope.spawn(|| writing.put(key, "news")).join().unwrap());
        written?;
        answers.message().await
    };
    let events = watching.run(call).unwrap().unwrap().events;
    let kv = events[0].kv.as_ref().unwrap();
    assert_eq!((&kv.key[..], &kv.value[..]), (key.as_bytes(), &b"news"[..]));
}

#[test]
fn member_that_begins_without_the_others_serves_stale_reads_and_says_why_it_cannot_do_more() {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    cluster.spawn(0);
    cluster.server(0).wait_for_line("there is no leader yet");
    cluster.server(0).wait_for_line(READY);
    let client = cluster.client(0);
    assert_eq!(client.get("key", true).unwrap(), None);
    let refused = client.get_with_leader("key").unwrap_err();
    assert_eq!(refused.message(), "etcdserver: no leader");
    let status = client.status().unwrap();
    assert_eq!(status.leader, 0);
    assert_eq!(status.errors, ["etcdserver: no leader"]);
    let late = client.get("key", false).unwrap_err();
    assert_eq!(late.message(), "etcdserver: request timed out");
    let late = client.put("key", "value").unwrap_err();
    assert!(
        late.message().starts_with("etcdserver: request timed out"),
        "{late}"
    );
    cluster.start_all();
    cluster.client(0).put("key", "value").unwrap();
}

#[test]
fn flags_that_do_not_fit_are_refused_while_new_and_not_looked_at_later() {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    let good = cluster.setups[0].clone();
    let exits_with = |setup: &Setup, expected: i32, text: &str| {
        let mut server = setup.spawn();
        let code = server.wait_exit().code();
        assert_eq!(code, Some(expected), "{server}");
        assert!(server.log().contains(text), "{server}");
    };
    let mut setup = good.clone();
    setup.name = "other".to_owned();
    exits_with(
        &setup,
        2,
        "couldn't find local name \"other\" in the initial cluster configuration",
    );
    setup = good.clone();
    setup.peer_url = Some("http://127.0.0.1:1".to_owned());
    exits_with(
        &setup,
        2,
        "but missing from --initial-advertise-peer-urls=http://127.0.0.1:1",
    );
    setup = good.clone();
    setup
        .flags
        .extend(["--initial-cluster-state", "existing"].map(str::to_owned));
    // It says at once whom it asks, and in the end what each of them answered.
    let server = setup.spawn();
    let others = [1, 2].map(|other| cluster.setups[other].peer_url.clone().unwrap());
    server.wait_for_line(&format!("urls={:?}", others.join(",")));
    server.wait_for_line("seconds_left");
    drop(server);
    exits_with(
        &setup,
        1,
        &format!("could be asked in 10 s: {}: ", others[0]),
    );
    assert!(
        !setup.data_dir.join("IDENTITY").exists(),
        "a refused start leaves no member behind"
    );

    cluster.start_all();
    cluster.client(0).put("key", "value").unwrap();
    cluster.kill(0);
    cluster.setups[0].initial_cluster = Some("m0=http://127.0.0.1:1".to_owned());
    cluster.setups[0].flags.extend(
        [
            "--initial-cluster-state",
            "existing",
            "--initial-cluster-token",
            "x",
        ]
        .map(str::to_owned),
    );
    cluster.start_all();
    let seen = cluster.client(0).get("key", false).unwrap();
    assert_eq!(seen.as_deref(), Some("value"));
}

#[test]
fn member_of_another_cluster_is_refused_on_both_sides() {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    cluster.setups[2]
        .flags
        .extend(["--initial-cluster-token", "another"].map(str::to_owned));
    for member in 0..3 {
        cluster.spawn(member);
    }
    for member in [0, 1] {
        cluster.server(member).wait_for_line(READY);
    }
    // It has other ids, as in etcd, so it is not even known.
    cluster.server(2).wait_for_line("cluster ID mismatch");
    cluster.server(0).wait_for_line("cluster ID mismatch");
    cluster.client(0).put("key", "value").unwrap();
}

#[test]
fn member_that_lost_its_disk_is_refused_and_the_others_go_on() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    cluster.client(0).put("key", "value").unwrap();
    let wiped = (cluster.leader() + 1) % 3;
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.data_dir(wiped)).unwrap();
    cluster.spawn(wiped);
    for line in ["it refuses us", "remove the member and add it again"] {
        cluster.server(wiped).wait_for_line(line);
    }
    cluster.server(wiped).wait_for_line(READY);
    let client = cluster.client(wiped);
    assert_eq!(client.status().unwrap().leader, 0);
    assert_eq!(client.get("key", true).unwrap(), None, "it has nothing");
    let others: Vec<_> = (0..3).filter(|member| *member != wiped).collect();
    let leader = cluster.leader_among(&others);
    cluster.client(leader).put("key", "again").unwrap();
}

#[test]
fn member_of_a_cluster_may_not_drop_what_it_acknowledged() {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    cluster.setups[0]
        .flags
        .push("--accept-suspect-tail".to_owned());
    cluster.spawn(0);
    let mut server = cluster.take(0);
    assert_eq!(server.wait_exit().code(), Some(2), "{server}");
    assert!(server.log().contains("is for a member alone"), "{server}");
}

#[test]
fn member_without_its_log_does_not_start() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    cluster.kill(1);
    fs::remove_dir_all(cluster.data_dir(1).join("log")).unwrap();
    cluster.spawn(1);
    let mut server = cluster.take(1);
    assert_eq!(server.wait_exit().code(), Some(3), "{server}");
    assert!(server.log().contains("but its log is gone"), "{server}");
    // Whoever has the log can put it back.
    assert!(!cluster.data_dir(1).join("log").exists());
}
