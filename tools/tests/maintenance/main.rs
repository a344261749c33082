//! What looks after a server's data, on real processes: history compacted by itself, the quota and its alarm, backups and
//! what is made from them, and a member whose data went wrong.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

mod backup;
mod corrupt;
mod metrics;
mod space;

use std::thread;
use std::time::{Duration, Instant};

use flotilla_tests::cluster::Client;
use flotilla_tests::process::{PATIENCE, Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tempfile::TempDir;
use tonic::Status;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn setup(flags: &[&str]) -> (TempDir, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    (dir, setup)
}

fn client_of(server: &Server) -> Client {
    Client::new(server.url(), PATIENCE)
}

/// Looks again and again until something is so.
fn wait(what: &str, log: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what} in time:\n{}", log());
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn stop(mut server: Server) {
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

fn range(client: &Client, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
    let answer = client.run(async |channel| KvClient::new(channel).range(request).await)?;
    Ok(answer.into_inner())
}

fn compact(client: &Client, revision: i64) -> Result<(), Status> {
    let request = pb::CompactionRequest {
        revision,
        physical: false,
    };
    let answer = client.run(async |channel| KvClient::new(channel).compact(request).await);
    answer.map(drop)
}

fn alarm(
    client: &Client,
    action: pb::alarm_request::AlarmAction,
    member_id: u64,
    alarm: pb::AlarmType,
) -> Vec<(u64, pb::AlarmType)> {
    let request = pb::AlarmRequest {
        action: action.into(),
        member_id,
        alarm: alarm.into(),
    };
    let call = async |channel| MaintenanceClient::new(channel).alarm(request).await;
    let alarms = client.run(call).unwrap().into_inner().alarms;
    let raised = alarms
        .iter()
        .map(|raised| (raised.member_id, raised.alarm()));
    raised.collect()
}

fn alarms(client: &Client) -> Vec<(u64, pb::AlarmType)> {
    alarm(
        client,
        pb::alarm_request::AlarmAction::Get,
        0,
        pb::AlarmType::None,
    )
}
