//! Members that are added, promoted and removed, by clients of any member.

use std::fs;
use std::time::Duration;

use flotilla_tests::cluster::{Client, Cluster, Load};
use flotilla_tests::process::READY;
use kv_server::pb::etcdserverpb::Member;
use tonic::{Code, Status};

use super::status::status;
use super::{CLIENTS, FLOTILLA, QUICK};

/// What the leader says when a member that was added as a voter is one.
pub(super) const VOTES: &str = "a member that was added votes now";
const UNHEALTHY: &str = "etcdserver: unhealthy cluster";
const REMOVED: &str = "the member has been permanently removed from the cluster";
const ADVICE: &str = "remove its data directory, add it again as a new member";

fn peer_url(cluster: &Cluster, member: usize) -> String {
    cluster.setups[member].peer_url.clone().unwrap()
}

/// Asks again while the members have not been connected for long enough.
pub(super) fn when_healthy<T>(
    cluster: &Cluster,
    mut ask: impl FnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    let mut answer = None;
    cluster.wait("healthy cluster", || {
        let asked = ask();
        let waits = asked
            .as_ref()
            .err()
            .is_some_and(|e| e.message() == UNHEALTHY);
        answer = Some(asked);
        !waits
    });
    answer.unwrap()
}

/// Adds a process as a voter, by a client of `at`, starts it, and waits until it serves and votes.
pub(super) fn grow(cluster: &mut Cluster, at: usize, member: usize) -> Member {
    let (client, url) = (cluster.client(at), peer_url(cluster, member));
    let (added, members) = when_healthy(cluster, || client.member_add(&url, false)).unwrap();
    assert!(!added.is_learner, "{added:?}");
    cluster.joins(member, &members);
    cluster.spawn(member);
    cluster.server(member).wait_for_line(READY);
    wait_until_it_votes(cluster, added.id);
    added
}

/// Looks into the logs of those that run: one of them led.
fn wait_until_it_votes(cluster: &Cluster, id: u64) {
    let line = format!("member=n{id:x}");
    cluster.wait("member that votes", || {
        cluster.logs().iter().any(|log| {
            let mut lines = log.lines();
            lines.any(|text| text.contains(VOTES) && text.contains(&line))
        })
    });
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[test]
fn one_member_grows_to_three_under_load() {
    let mut cluster = Cluster::new(FLOTILLA, 1, &QUICK);
    // As without any flag: nobody else is told how to reach it.
    let reachable = peer_url(&cluster, 0);
    let default = "http://127.0.0.1:2380";
    cluster.setups[0].peer_url = Some(default.to_owned());
    cluster.setups[0].initial_cluster = Some(format!("m0={default}"));
    let [one, two] = [0; 2].map(|_| cluster.add_setup(FLOTILLA, &QUICK));
    cluster.spawn(0);
    cluster.server(0).wait_for_line(READY);
    let load = Load::start(&cluster.urls(), CLIENTS);
    load.wait_for_writes(50);
    let (client, id) = (cluster.client(0), cluster.id(0));
    let members = client.members().unwrap();
    assert_eq!(members[0].peer_ur_ls, [default]);
    let missing = "etcdserver: member not found";
    refused(client.member_update(1, &reachable), Code::NotFound, missing);
    let members = client.member_update(id, &reachable).unwrap();
    assert_eq!(members[0].peer_ur_ls[..], [reachable.as_str()]);

    let url = peer_url(&cluster, one);
    let (added, members) = client.member_add(&url, false).unwrap();
    assert_eq!(members.len(), 2);
    assert_eq!((added.name.as_str(), added.is_learner), ("", false));
    assert_eq!(client.members().unwrap(), members);
    // A member that has not started decides nothing yet, and keeps nobody from writing; but there is no second one.
    load.wait_for_writes(50);
    let few = "etcdserver: re-configuration failed due to not enough started members";
    let second = client.member_add("http://127.0.0.1:9", false);
    refused(second, Code::FailedPrecondition, few);
    let taken = "etcdserver: Peer URLs already exists";
    let again = client.member_update(added.id, &reachable);
    refused(again, Code::FailedPrecondition, taken);
    cluster.joins(one, &members);
    cluster.spawn(one);
    cluster.server(one).wait_for_line(READY);
    wait_until_it_votes(&cluster, added.id);
    assert_eq!(cluster.id(one), added.id);

    // By a member that does not lead.
    grow(&mut cluster, one, two);
    load.wait_for_writes(50);
    // That others hear of a new member a moment after it is nothing to look after.
    for log in cluster.logs() {
        assert!(!log.contains("is not another member"), "{log}");
    }
    for member in 0..3 {
        let members = cluster.client(member).members().unwrap();
        let names: Vec<_> = members.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), 3, "{members:?}");
        assert!(["m0", "m1", "m2"].iter().all(|name| names.contains(name)));
        assert!(members.iter().all(|one| one.client_ur_ls.len() == 1));
    }

    // Each of them counts: any two go on.
    for member in 0..3 {
        cluster.kill(member);
        load.wait_for_writes(50);
        cluster.start_all();
    }
    load.wait_for_writes(50);
    load.check(&cluster.urls());
    cluster.wait_for_equal_state();
}

#[test]
fn learner_serves_stale_reads_only_until_it_is_promoted() {
    let mut cluster = Cluster::start(FLOTILLA, 1, &QUICK);
    let client = cluster.client(0);
    client.put("key", "value").unwrap();
    let learner = cluster.add_setup(FLOTILLA, &QUICK);
    let url = peer_url(&cluster, learner);
    let (added, members) = client.member_add(&url, true).unwrap();
    assert!(added.is_learner);
    let many = "etcdserver: too many learner members in cluster";
    let second = when_healthy_or_away(&client, "http://127.0.0.1:9");
    refused(second, Code::FailedPrecondition, many);
    let lags = "etcdserver: can only promote a learner member which is in sync with leader";
    refused(
        client.member_promote(added.id),
        Code::FailedPrecondition,
        lags,
    );

    cluster.joins(learner, &members);
    cluster.spawn(learner);
    cluster.server(learner).wait_for_line(READY);
    let at_learner = cluster.client(learner);
    cluster.wait("learner that has caught up", || {
        let seen = at_learner.get("key", true);
        seen.is_ok_and(|seen| seen.as_deref() == Some("value"))
    });
    assert!(at_learner.status().unwrap().is_learner);
    // It does not list the members, and is one of a healthy cluster all the same.
    let urls = cluster.urls();
    cluster.wait("status that knows the learner", || {
        status(&urls[..1], &[]).status.success()
    });
    let unsupported = "etcdserver: rpc not supported for learner";
    let calls: [Result<(), Status>; 5] = [
        at_learner.get("key", false).map(drop),
        at_learner.put("key", "other").map(drop),
        at_learner.grant(10).map(drop),
        at_learner.keep_alive(1).map(drop),
        at_learner.members().map(drop),
    ];
    for call in calls {
        refused(call, Code::FailedPrecondition, unsupported);
    }
    assert!(client.members().unwrap().iter().any(|one| one.is_learner));

    let members = client.member_promote(added.id).unwrap();
    assert!(members.iter().all(|one| !one.is_learner));
    let votes = "etcdserver: can only promote a learner member";
    refused(
        client.member_promote(added.id),
        Code::FailedPrecondition,
        votes,
    );
    refused(
        client.member_promote(1),
        Code::NotFound,
        "etcdserver: member not found",
    );
    cluster.wait("member that knows that it votes", || {
        at_learner.put("key", "other").is_ok()
    });
    assert!(!at_learner.status().unwrap().is_learner);
    // Both decide now.
    cluster.kill(0);
    let alone = Client::new(&cluster.urls()[learner], Duration::from_secs(2));
    assert!(alone.put("key", "lost").is_err());
    cluster.start_all();
    cluster.wait_for_equal_state();
}

/// A learner that has not started does not keep the cluster from being healthy.
fn when_healthy_or_away(client: &Client, url: &str) -> Result<(), Status> {
    client.member_add(url, true).map(drop)
}

/// Ends by itself, with the reason.
fn ends_as_removed(cluster: &mut Cluster, member: usize) {
    let mut server = cluster.take(member);
    assert_eq!(server.wait_exit().code(), Some(1), "{server}");
    cluster.net.is_process(member, None);
    let log = server.log();
    let last = log.lines().last().unwrap();
    assert!(last.contains(REMOVED) && last.contains(ADVICE), "{server}");
}

#[test]
fn removed_members_stop_and_stay_out_and_the_others_go_on() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let load = Load::start(&cluster.urls(), CLIENTS);
    load.wait_for_writes(50);
    let leader = cluster.leader();
    let [gone, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let gone_id = cluster.id(gone);
    let client = cluster.client(other);
    let members = when_healthy(&cluster, || client.member_remove(gone_id)).unwrap();
    assert_eq!(members.len(), 2);
    ends_as_removed(&mut cluster, gone);
    load.wait_for_writes(50);
    refused(
        client.member_remove(gone_id),
        Code::NotFound,
        "etcdserver: member not found",
    );
    // It knows by itself, or is told.
    cluster.spawn(gone);
    ends_as_removed(&mut cluster, gone);

    let new = cluster.add_setup(FLOTILLA, &QUICK);
    grow(&mut cluster, leader, new);
    load.wait_for_writes(50);
    // Now the one that leads, asked by itself.
    let leader = cluster.leader_among(&[leader, other, new]);
    let left: Vec<_> = [leader, other, new]
        .into_iter()
        .filter(|one| *one != leader)
        .collect();
    let (client, id) = (cluster.client(leader), cluster.id(leader));
    when_healthy(&cluster, || client.member_remove(id)).unwrap();
    ends_as_removed(&mut cluster, leader);
    load.wait_for_writes(100);
    let urls: Vec<_> = left.iter().map(|one| cluster.setups[*one].url()).collect();
    load.check(&urls);
    cluster.wait_for_equal_state_among(&left);
    assert_eq!(cluster.client(new).members().unwrap().len(), 2);
}

#[test]
fn member_that_was_down_when_it_was_removed_is_told_when_it_comes_back() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let leader = cluster.leader();
    let gone = (leader + 1) % 3;
    let id = cluster.id(gone);
    cluster.kill(gone);
    let client = cluster.client(leader);
    // One that is down is safe to remove at once, as soon as that is noticed.
    when_healthy(&cluster, || client.member_remove(id)).unwrap();
    cluster.spawn(gone);
    ends_as_removed(&mut cluster, gone);
    cluster.client(leader).put("key", "value").unwrap();
}

#[test]
fn changes_that_could_cost_the_quorum_are_refused() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let leader = cluster.leader();
    let [down, up] = [(leader + 1) % 3, (leader + 2) % 3];
    cluster.kill(down);
    let client = cluster.client(up);
    let away = client.member_add("http://127.0.0.1:9", false);
    refused(away, Code::Unavailable, UNHEALTHY);
    let leader_id = cluster.id(leader);
    refused(
        client.member_remove(leader_id),
        Code::Unavailable,
        UNHEALTHY,
    );
    refused(
        client.member_add("127.0.0.1:9", false),
        Code::InvalidArgument,
        "etcdserver: given member URLs are invalid",
    );
    cluster.start_all();
}

#[test]
fn process_that_is_no_member_does_not_join() {
    let mut cluster = Cluster::start(FLOTILLA, 1, &QUICK);
    let stranger = cluster.add_setup(FLOTILLA, &QUICK);
    let members = cluster.client(0).members().unwrap();
    let own = Member {
        peer_ur_ls: vec![peer_url(&cluster, stranger)],
        ..Member::default()
    };
    cluster.joins(stranger, &[members[0].clone(), own]);
    for text in ["add it first", "names nobody but this member"] {
        cluster.spawn(stranger);
        let mut server = cluster.take(stranger);
        assert_eq!(server.wait_exit().code(), Some(2), "{server}");
        assert!(server.log().contains(text), "{server}");
        assert!(!cluster.data_dir(stranger).join("IDENTITY").exists());
        cluster.setups[stranger].initial_cluster = None;
    }
}

#[test]
fn member_that_was_added_and_began_a_cluster_of_its_own_is_told_so() {
    let mut cluster = Cluster::start(FLOTILLA, 1, &QUICK);
    let new = cluster.add_setup(FLOTILLA, &QUICK);
    let client = cluster.client(0);
    let (added, members) = client.member_add(&peer_url(&cluster, new), false).unwrap();
    cluster.joins(new, &members);
    let flags = cluster.setups[new].flags.clone();
    cluster.setups[new].flags.truncate(QUICK.len());
    cluster.spawn(new);
    let forgotten = "started without --initial-cluster-state existing, it began a cluster of its own: stop it, remove its data \
                     directory, and start it with --initial-cluster-state existing";
    for server in [0, new] {
        cluster.server(server).wait_for_line(forgotten);
    }
    cluster.kill(new);
    fs::remove_dir_all(cluster.data_dir(new)).unwrap();
    cluster.setups[new].flags = flags;
    cluster.spawn(new);
    cluster.server(new).wait_for_line(READY);
    wait_until_it_votes(&cluster, added.id);
}
