//! A member whose data differs from the others', though every checksum of it is right.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use flotilla_tests::cluster::{Client, Cluster};
use flotilla_tests::process::READY;
use kv_server::engine::lsm::{LsmEngine, LsmOptions};
use kv_server::engine::{Change, Engine, EngineBatch};
use kv_server::pb::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use tonic::Code;

use super::{FLOTILLA, alarm, alarms};

/// Changes the one value that contains `from`, as a bug of the product, or of the machine's memory, could have.
fn change(engine: &Path, from: &[u8], to: &[u8]) {
    let engine = LsmEngine::open(engine, LsmOptions::default()).unwrap();
    let snapshot = engine.snapshot();
    let mut changes = BTreeMap::new();
    for pair in snapshot.range(Bound::Included(&[1]), Bound::Unbounded) {
        let (key, value) = pair.unwrap();
        if let Some(at) = value.windows(from.len()).position(|part| part == from) {
            let mut value = value.to_vec();
            value[at..at + to.len()].copy_from_slice(to);
            changes.insert(key, Change::Put(value.into()));
        }
    }
    assert_eq!(changes.len(), 1, "one version has that value");
    drop(snapshot);
    let applied = None;
    engine.write(EngineBatch { changes, applied }).unwrap();
    engine.close().unwrap();
}

/// A cluster that compares its members, and which of them has another value than was written.
fn cluster_with_a_wrong_value(members: usize) -> (Cluster, usize) {
    let flags = ["--corrupt-check-time", "500ms"];
    let (mut cluster, wrong, _) = stopped_with_a_wrong_value(members, &flags);
    cluster.start_all();
    (cluster, wrong)
}

/// The same, while the member that is wrong does not run; and its id.
fn stopped_with_a_wrong_value(members: usize, flags: &[&str]) -> (Cluster, usize, u64) {
    let mut cluster = Cluster::start(FLOTILLA, members, flags);
    let leader = cluster.leader();
    let wrong = (leader + 1) % members;
    let id = cluster.id(wrong);
    cluster.client(leader).put("key", "a sound value").unwrap();
    cluster.wait_for_equal_state();
    let mut server = cluster.take(wrong);
    server.terminate();
    assert!(server.wait_exit().success());
    change(
        &cluster.data_dir(wrong).join("engine"),
        b"a sound value",
        b"a wrong value",
    );
    (cluster, wrong, id)
}

/// Refuses reads with etcd's error for what is known to be wrong.
fn refuses(client: &Client) -> bool {
    let read = client.get("key", true);
    read.is_err_and(|status| {
        status.code() == Code::DataLoss && status.message() == "etcdserver: corrupt cluster"
    })
}

#[test]
fn member_with_other_data_than_the_majority_takes_the_leaders() {
    let (mut cluster, wrong) = cluster_with_a_wrong_value(3);
    // Something new, for without it there is nothing to compare.
    let leader = cluster.leader();
    let writer = cluster.client(leader);
    let mut number = 0;
    cluster.wait("quarantine", || {
        number += 1;
        drop(writer.put("other", &number.to_string()));
        let log = cluster.server(wrong).log();
        log.contains("it serves nobody from now on")
    });
    // The others go on meanwhile, and the one that is wrong refuses until it is right.
    let client = cluster.client(wrong);
    cluster.wait("right data", || {
        drop(writer.put("other", "meanwhile"));
        match client.get("key", true) {
            Ok(value) => {
                assert_eq!(value.as_deref(), Some("a sound value"));
                true
            }
            Err(_) => false,
        }
    });
    let log = cluster.server(wrong).log();
    assert!(log.contains("data was taken anew from the leader"), "{log}");
    cluster.wait("an end of the alarm", || alarms(&writer).is_empty());
    let put = || client.put("other", "served again").is_ok();
    cluster.wait("a write by way of it", put);
    cluster.wait_for_equal_state();

    // It stays so, also when it starts again.
    cluster.kill(wrong);
    cluster.start_all();
    let client = cluster.client(wrong);
    let is_right = |value: Option<String>| value.as_deref() == Some("a sound value");
    cluster.wait("the same data", || {
        client.get("key", false).is_ok_and(is_right)
    });
    assert_eq!(alarms(&client), []);
    let rebuilt = |line: &&str| line.contains("data was taken anew from the leader");
    let log = cluster.server(wrong).log();
    assert_eq!(log.lines().filter(rebuilt).count(), 0, "{log}");
}

#[test]
fn member_whose_alarm_was_raised_by_hand_serves_nobody_until_it_is_cleared() {
    let flags = ["--corrupt-check-time", "500ms", "--log-level", "debug"];
    let cluster = Cluster::start(FLOTILLA, 3, &flags);
    let (leader, other) = (cluster.leader(), (cluster.leader() + 1) % 3);
    let (client, writer) = (cluster.client(leader), cluster.client(other));
    client.put("key", "a value").unwrap();
    let member = client.status().unwrap().header.unwrap().member_id;
    let corrupt = (member, pb::AlarmType::Corrupt);
    let activate = AlarmAction::Activate;
    assert_eq!(
        alarm(&writer, activate, member, pb::AlarmType::Corrupt),
        [corrupt]
    );
    cluster.wait("quarantine", || refuses(&client));
    let status = client.status().unwrap();
    assert_eq!(status.errors, [format!("memberID:{member} alarm:CORRUPT ")]);
    assert!(client.put("other", "x").is_err());
    // None of the others follows it, and they go on.
    cluster.wait("another leader", || {
        let status = writer.status();
        status.is_ok_and(|status| status.leader != 0 && status.leader != member)
    });
    // That its data is right is known, and changes nothing.
    let compared = || {
        let logs = cluster.logs().concat();
        logs.matches("all members have the same state").count()
    };
    let (before, mut number) = (compared(), 0);
    cluster.wait("a comparison", || {
        number += 1;
        drop(writer.put("other", &number.to_string()));
        compared() > before
    });
    assert!(refuses(&client));
    assert_eq!(alarms(&writer), [corrupt]);
    let deactivate = AlarmAction::Deactivate;
    assert_eq!(
        alarm(&writer, deactivate, member, pb::AlarmType::Corrupt),
        [corrupt]
    );
    cluster.wait("an end of the quarantine", || {
        let read = client.get("key", true);
        read.is_ok_and(|value| value.as_deref() == Some("a value"))
    });
}

#[test]
fn member_that_checks_before_it_serves_refuses_wrong_data_and_serves_right_data() {
    for flag in [
        "--experimental-initial-corrupt-check",
        "--feature-gates=InitialCorruptCheck=true",
    ] {
        let (mut cluster, wrong, member) =
            stopped_with_a_wrong_value(3, &["--corrupt-check-time", "0", flag]);
        cluster.spawn(wrong);
        let mut server = cluster.take(wrong);
        assert_eq!(server.wait_exit().code(), Some(3));
        let log = server.log();
        let refusal = format!("{member:x} found data inconsistency with peers");
        assert!(log.contains(&refusal), "{log}");
        assert!(!log.contains(READY), "{log}");
        // The comparison has it take the leader's data, and then it serves.
        let other = cluster.client((wrong + 1) % 3);
        let corrupt = (member, pb::AlarmType::Corrupt);
        cluster.wait("alarm", || alarms(&other) == [corrupt]);
        cluster.start_all();
        let client = cluster.client(wrong);
        cluster.wait("right data", || {
            let read = client.get("key", true);
            read.is_ok_and(|value| value.as_deref() == Some("a sound value"))
        });
        let mut server = cluster.take(wrong);
        server.terminate();
        assert!(server.wait_exit().success());
        cluster.start_all();
        let log = cluster.server(wrong).log();
        assert!(log.contains("no corruption"), "{log}");
    }
}

#[test]
fn two_members_that_differ_refuse_everything_until_somebody_decides() {
    let (cluster, _) = cluster_with_a_wrong_value(2);
    let leader = cluster.leader();
    let client = cluster.client(leader);
    let mut number = 0;
    cluster.wait("alarm", || {
        number += 1;
        let refused = client.put("other", &number.to_string());
        refused.is_err_and(|status| status.code() == Code::DataLoss)
    });
    assert_eq!(alarms(&client), [(0, pb::AlarmType::Corrupt)]);
    for member in 0..2 {
        let client = cluster.client(member);
        cluster.wait("refusal", || {
            let read = client.get("key", true);
            read.is_err_and(|status| status.code() == Code::DataLoss)
        });
        assert!(client.hash(0).is_ok(), "it can be looked at");
    }
}
