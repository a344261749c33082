//! History that is compacted by itself, and a quota that fills up and empties.

use kv_server::pb::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::kv_client::KvClient;
use tonic::{Code, Status};

use super::{alarm, alarms, client_of, compact, range, setup, stop, wait};

#[test]
fn history_older_than_the_retention_is_compacted_by_itself() {
    let (_dir, setup) = setup(&["--auto-compaction-retention", "1s"]);
    let server = setup.start();
    let client = client_of(&server);
    for value in ["1", "2", "3"] {
        client.put("key", value).unwrap();
    }
    let old = || {
        let request = pb::RangeRequest {
            key: "key".into(),
            revision: 2,
            ..Default::default()
        };
        range(&client, request)
    };
    wait("compaction", || server.log(), || old().is_err());
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(old().unwrap_err().message(), text);
    assert_eq!(client.get("key", false).unwrap().as_deref(), Some("3"));
    server.wait_for_line("compacted history");
    stop(server);
}

const QUOTA: usize = 2 << 20;

fn put(client: &flotilla_tests::cluster::Client, key: String) -> Result<(), Status> {
    let request = pb::PutRequest {
        key: key.into(),
        value: vec![7; 32 << 10].into(),
        ..Default::default()
    };
    let answer = client.run(async |channel| KvClient::new(channel).put(request).await);
    answer.map(drop)
}

/// The alarm comes with the first write that does not fit, lasts through a restart, lets through what shrinks, comes again
/// when it is disarmed too early, and goes by itself once there is room.
#[test]
fn full_quota_refuses_what_grows_until_there_is_room_again() {
    let quota = QUOTA.to_string();
    let (_dir, setup) = setup(&["--quota-backend-bytes", &quota]);
    let server = setup.start();
    let client = client_of(&server);
    let mut written = 0;
    let refused = loop {
        match put(&client, format!("key-{written}")) {
            Ok(()) => written += 1,
            Err(refused) => break refused,
        }
        assert!(written < 100, "the quota is not looked at");
    };
    assert!(written > 10, "the quota is full too early");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: database space exceeded"
    );
    let full = |client: &_| {
        let raised = alarms(client);
        raised
            .iter()
            .any(|(_, kind)| *kind == pb::AlarmType::Nospace)
    };
    wait("alarm", || server.log(), || full(&client));
    let status = client.status().unwrap();
    assert_eq!(status.db_size_quota, QUOTA as i64);
    let member = status.header.unwrap().member_id;
    assert_eq!(status.errors, [format!("memberID:{member} alarm:NOSPACE ")]);
    stop(server);

    let server = setup.start();
    let client = client_of(&server);
    assert!(full(&client), "the alarm is part of what was applied");
    // Small enough to fit, but the alarm is for everything that grows.
    let small = client.put("small", "1").unwrap_err();
    assert_eq!(small.code(), Code::ResourceExhausted);
    let cleared = alarm(
        &client,
        AlarmAction::Deactivate,
        member,
        pb::AlarmType::Nospace,
    );
    assert_eq!(cleared, [(member, pb::AlarmType::Nospace)]);
    let again = || put(&client, "again".to_owned()).is_err() && full(&client);
    wait("second alarm", || server.log(), again);

    let delete = pb::DeleteRangeRequest {
        key: "key-".into(),
        range_end: "key.".into(),
        ..Default::default()
    };
    let deleted = client.run(async |channel| KvClient::new(channel).delete_range(delete).await);
    let answer = deleted.unwrap().into_inner();
    assert_eq!(answer.deleted, written);
    compact(&client, answer.header.unwrap().revision).unwrap();
    wait("room", || server.log(), || !full(&client));
    put(&client, "room".to_owned()).unwrap();
    assert_eq!(client.status().unwrap().errors, [""; 0]);
    server.wait_for_line("cleared the alarm NOSPACE");
    stop(server);
}
