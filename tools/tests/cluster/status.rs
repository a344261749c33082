//! `flotilla status`, of clusters that are well and of others.

use std::process::{Command, Output};

use flotilla_tests::cluster::Cluster;
use serde_json::Value;

use super::{FLOTILLA, QUICK};

pub(super) fn status(endpoints: &[String], flags: &[&str]) -> Output {
    let mut command = Command::new(FLOTILLA);
    command
        .args(["status", "--endpoints", &endpoints.join(",")])
        .args(flags);
    command.output().unwrap()
}

#[track_caller]
fn ends(output: &Output, code: i32, texts: &[&str]) {
    let (out, err) = (&output.stdout, &output.stderr);
    let told = format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
    assert_eq!(output.status.code(), Some(code), "{told}");
    for text in texts {
        assert!(told.contains(text), "no {text:?} in {told}");
    }
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn status_shows_every_member_and_says_what_is_wrong() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let urls = cluster.urls();
    cluster.client(0).put("key", "value").unwrap();
    cluster.wait_for_equal_state();
    let leader = cluster.leader();
    // One endpoint is enough to find all.
    let well = status(&urls[..1], &[]);
    let healthy = "healthy: 3 of 3 voters answer, 1 may fail";
    ends(&well, 0, &["m0", "m1", "m2", healthy]);
    let members = lines(&status(&urls, &["--json"]));
    assert_eq!(members.len(), 4);
    assert_eq!(members[3]["healthy"], true);
    let leads = |one: &&Value| one["role"] == "leader";
    assert_eq!(members.iter().filter(leads).count(), 1);
    assert_eq!(members[leader]["role"], "leader");
    for (at, one) in members[..3].iter().enumerate() {
        assert_eq!(one["name"], format!("m{at}"));
        assert_eq!(one["endpoint"], urls[at]);
        assert_eq!(one["leader"], members[leader]["member"]);
        assert_eq!(one["term"], members[0]["term"]);
        assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
        assert!(one["applied_index"].as_u64().unwrap() > 0);
        let p50 = one["fsync_p50_seconds"].as_f64().unwrap();
        let p99 = one["fsync_p99_seconds"].as_f64().unwrap();
        assert!(0.0 < p50 && p50 <= p99 && p99 < 60.0, "{p50} {p99}");
    }

    let follower = (leader + 1) % 3;
    cluster.kill(follower);
    let missing = format!("m{follower} cannot be reached: {}", urls[follower]);
    let spare = "not healthy: 2 of 3 voters answer, writes stop if one more fails";
    for endpoints in [&urls[..], &urls[leader..=leader]] {
        ends(
            &status(endpoints, &[]),
            1,
            &["unreachable", &missing, spare],
        );
    }
    cluster.kill(leader);
    let left = (leader + 2) % 3;
    cluster.wait("member without a leader", || {
        cluster
            .client(left)
            .status()
            .is_ok_and(|status| status.leader == 0)
    });
    let lost = "1 of 3 voters answer, fewer than a majority: nothing can be written";
    let none = format!("m{left}: etcdserver: no leader");
    ends(&status(&urls, &[]), 1, &[&none, lost]);
    cluster.kill(left);
    ends(&status(&urls, &[]), 1, &["no endpoint answers", &urls[0]]);
}

#[test]
fn endpoints_of_two_clusters_are_told_apart() {
    let one = Cluster::start(FLOTILLA, 1, &[]);
    let other = Cluster::start(FLOTILLA, 1, &["--initial-cluster-token", "other"]);
    let both = [one.urls(), other.urls()].concat();
    ends(&status(&both, &[]), 1, &["belong to different clusters"]);
    let alone = "healthy: 1 of 1 voter answers, it has no spare";
    ends(&status(&both[..1], &[]), 0, &[alone]);
    // Where members are linked, clients are not served.
    let peers = format!("http://127.0.0.1:{}", one.setups[0].peer_port);
    let not_here = "this is not where clients are served";
    ends(
        &status(std::slice::from_ref(&peers), &[]),
        1,
        &[&peers, not_here],
    );
}
