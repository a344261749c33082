//! A member whose data differs from the others', though every checksum of it is right.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use flotilla_tests::cluster::Cluster;
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
    let mut cluster = Cluster::start(FLOTILLA, members, &["--corrupt-check-time", "500ms"]);
    let leader = cluster.leader();
    let wrong = (leader + 1) % members;
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
    cluster.start_all();
    (cluster, wrong)
}

#[test]
fn member_with_other_data_than_the_majority_serves_nobody() {
    let (mut cluster, wrong) = cluster_with_a_wrong_value(3);
    let client = cluster.client(wrong);
    let member = client.status().unwrap().header.unwrap().member_id;
    let corrupt = (member, pb::AlarmType::Corrupt);
    // Something new, for without it there is nothing to compare.
    let leader = cluster.leader();
    let writer = cluster.client(leader);
    let mut number = 0;
    cluster.wait("alarm", || {
        number += 1;
        drop(writer.put("other", &number.to_string()));
        alarms(&writer) == [corrupt]
    });
    cluster.wait("quarantine", || {
        let read = client.get("key", true);
        read.is_err_and(|status| {
            status.code() == Code::DataLoss && status.message() == "etcdserver: corrupt cluster"
        })
    });
    cluster
        .server(wrong)
        .wait_for_line("it serves nobody from now on");
    let status = client.status().unwrap();
    assert_eq!(status.errors, [format!("memberID:{member} alarm:CORRUPT ")]);
    assert!(client.put("other", "x").is_err());
    // The others go on, and none of them follows the one that is wrong.
    for other in (0..3).filter(|other| *other != wrong) {
        let client = cluster.client(other);
        assert_eq!(
            client.get("key", false).unwrap().as_deref(),
            Some("a sound value")
        );
        client.put("other", "still served").unwrap();
    }
    cluster.wait("another leader", || {
        let status = cluster.client(leader).status();
        status.is_ok_and(|status| status.leader != 0 && status.leader != member)
    });

    let cleared = alarm(
        &writer,
        AlarmAction::Deactivate,
        member,
        pb::AlarmType::Corrupt,
    );
    assert_eq!(cleared, [corrupt]);
    cluster.wait("the next comparison", || {
        drop(writer.put("other", "again"));
        alarms(&writer) == [corrupt]
    });

    // Built again from its own log, its data is right.
    let mut server = cluster.take(wrong);
    server.terminate();
    assert!(server.wait_exit().success());
    let engine = cluster.data_dir(wrong).join("engine");
    std::fs::rename(&engine, engine.with_extension("wrong")).unwrap();
    cluster.start_all();
    let leader = cluster.leader();
    alarm(
        &cluster.client(leader),
        AlarmAction::Deactivate,
        member,
        pb::AlarmType::Corrupt,
    );
    cluster.wait("right data", || {
        let read = cluster.client(wrong).get("key", false);
        read.is_ok_and(|value| value.as_deref() == Some("a sound value"))
    });
    cluster.wait_for_equal_state();
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
