//! Backups of a server that serves, and the data directories that are made from them.

use std::path::Path;
use std::process::{Command, Output};

use flotilla_tests::cluster::Cluster;
use flotilla_tests::process::Setup;
use kv_server::pb::etcdserverpb as pb;
use pb::maintenance_client::MaintenanceClient;
use serde_json::Value;
use tempfile::TempDir;

use super::{FLOTILLA, alarms, client_of, compact, range, setup, stop};

fn flotilla(args: &[&str]) -> Output {
    let output = Command::new(FLOTILLA).arg("snapshot").args(args).output();
    output.unwrap()
}

fn fine(args: &[&str]) -> String {
    let output = flotilla(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(code: i32, expected: &str, args: &[&str]) {
    let output = flotilla(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(error.contains(expected), "{args:?}: {error}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server's backup in a directory; what it holds: `a` twice written, `big` and `kept` by a lease, at revision 5, history
/// compacted at 2. `later` is written after it.
fn backed_up() -> (TempDir, String, i64) {
    let (dir, setup) = setup(&[]);
    let server = setup.start();
    let client = client_of(&server);
    client.put("a", "1").unwrap();
    client.put("a", "2").unwrap();
    client.put("big", &"x".repeat(1 << 20)).unwrap();
    let lease = client.grant(3_600).unwrap();
    let kept = pb::PutRequest {
        key: "kept".into(),
        value: "by a lease".into(),
        lease,
        ..Default::default()
    };
    let put = async |channel| pb::kv_client::KvClient::new(channel).put(kept).await;
    client.run(put).unwrap();
    compact(&client, 2).unwrap();
    let file = dir.path().join("backup").display().to_string();
    let said = fine(&["save", &file, "--endpoint", server.url()]);
    assert!(said.starts_with("saved revision 5 with 3 keys"), "{said}");
    client.put("later", "1").unwrap();
    stop(server);
    (dir, file, lease)
}

fn restored_setup(data_dir: &Path) -> Setup {
    Setup::new(FLOTILLA, data_dir)
}

#[test]
fn backup_is_what_it_says_and_becomes_a_server_of_another_cluster() {
    let (dir, file, lease) = backed_up();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes.len() % 512, 32);
    assert!(!Path::new(&format!("{file}.part")).exists());
    let status: Value = serde_json::from_str(&fine(&["status", &file, "--json"])).unwrap();
    assert_eq!(status["revision"], 5);
    assert_eq!(status["compact_revision"], 2);
    assert_eq!(status["keys"], 3);
    assert_eq!(status["leases"], 1);
    assert_eq!(status["bytes"], bytes.len());
    assert!(fine(&["status", &file]).contains("REVISION"));

    let data = dir.path().join("restored");
    let said = fine(&["restore", &file, "--data-dir", text(&data)]);
    assert!(
        said.starts_with("restored revision 5 with 3 keys"),
        "{said}"
    );
    let setup = restored_setup(&data);
    for start in 0..2 {
        let server = setup.start();
        let client = client_of(&server);
        assert_eq!(client.get("a", false).unwrap().as_deref(), Some("2"));
        assert_eq!(client.get("big", false).unwrap().unwrap().len(), 1 << 20);
        assert_eq!(client.get("later", false).unwrap(), None);
        let old = pb::RangeRequest {
            key: "a".into(),
            revision: 2,
            ..Default::default()
        };
        assert_eq!(range(&client, old).unwrap().kvs[0].value, "1");
        let of_lease = pb::LeaseTimeToLiveRequest {
            id: lease,
            keys: true,
        };
        let call = async |channel| {
            let mut client = pb::lease_client::LeaseClient::new(channel);
            client.lease_time_to_live(of_lease).await
        };
        let left = client.run(call).unwrap().into_inner();
        assert_eq!(left.keys, ["kept"]);
        assert!(left.ttl > 3_000, "{left:?}");
        assert_eq!(alarms(&client), []);
        client.put("new", "1").unwrap();
        let header = client.status().unwrap().header.unwrap();
        assert_eq!(header.revision, 6 + start);
        assert_ne!(format!("{:x}", header.cluster_id), status["cluster"]);
        if start == 0 {
            server.kill_9();
        } else {
            stop(server);
        }
    }
}

#[test]
fn three_members_made_from_one_backup_are_one_cluster() {
    let (_dir, file, _) = backed_up();
    let mut cluster = Cluster::new(FLOTILLA, 3, &[]);
    for setup in &cluster.setups {
        let url = setup.peer_url.as_deref().unwrap();
        let members = setup.initial_cluster.as_deref().unwrap();
        fine(&[
            "restore",
            &file,
            "--data-dir",
            text(&setup.data_dir),
            "--name",
            &setup.name,
            "--initial-cluster",
            members,
            "--initial-advertise-peer-urls",
            url,
            "--initial-cluster-token",
            "restored",
        ]);
    }
    cluster.start_all();
    let leader = cluster.leader();
    let other = (leader + 1) % 3;
    assert_eq!(
        cluster.client(other).get("a", false).unwrap().as_deref(),
        Some("2")
    );
    cluster.client(other).put("new", "1").unwrap();
    for member in 0..3 {
        let client = cluster.client(member);
        assert_eq!(client.get("new", false).unwrap().as_deref(), Some("1"));
        assert_eq!(client.members().unwrap().len(), 3);
    }
    cluster.wait_for_equal_state();
}

#[test]
fn revisions_of_the_old_cluster_can_be_skipped_and_marked_as_compacted() {
    let (dir, file, _) = backed_up();
    let data = dir.path().join("bumped");
    let bump = ["--bump-revision", "1000000", "--mark-compacted"];
    let restore = ["restore", &file, "--data-dir", text(&data)];
    fine(&[&restore[..], &bump].concat());
    let server = restored_setup(&data).start();
    let client = client_of(&server);
    assert_eq!(client.get("a", false).unwrap().as_deref(), Some("2"));
    let old = pb::RangeRequest {
        key: "a".into(),
        revision: 5,
        ..Default::default()
    };
    assert!(
        range(&client, old)
            .unwrap_err()
            .message()
            .contains("compacted")
    );
    client.put("a", "3").unwrap();
    let header = client.status().unwrap().header.unwrap();
    assert_eq!(header.revision, 1_000_006);
    stop(server);
}

#[test]
fn what_cannot_be_restored_is_refused_and_leaves_nothing() {
    let (dir, file, _) = backed_up();
    let data = dir.path().join("restored");
    let data = text(&data);
    let restore = |file: &str, more: &[&str], code, expected: &str| {
        let args = [&["restore", file, "--data-dir", data][..], more].concat();
        refused(code, expected, &args);
        assert!(!Path::new(data).exists());
        assert!(!Path::new(&format!("{data}.restoring")).exists());
    };
    let bad = dir.path().join("bad").display().to_string();
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&bad, &bytes).unwrap();
    restore(&bad, &[], 3, "expected the SHA-256");
    refused(3, "expected the SHA-256", &["status", &bad]);
    std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
    restore(&bad, &["--skip-hash-check"], 3, "ends within a record");
    std::fs::write(&bad, vec![0; 8192]).unwrap();
    restore(&bad, &[], 3, "a backup of etcd cannot be restored");
    restore("/no/such/file", &[], 1, "No such file");
    restore(
        &file,
        &["--name", "b", "--initial-cluster", "a=http://x:1"],
        2,
        "couldn't find local name",
    );
    restore(
        &file,
        &["--initial-cluster", "default=http://x:1"],
        2,
        "missing from",
    );
    restore(
        &file,
        &["--initial-advertise-peer-urls", "x:1"],
        2,
        "expected a URL",
    );
    restore(&file, &["--bump-revision", "7"], 2, "--mark-compacted");
    restore(&file, &["--mark-compacted"], 2, "--bump-revision");

    // Without its checksum it can still be taken.
    bytes[end] ^= 1;
    std::fs::write(&bad, &bytes[..bytes.len() - 32]).unwrap();
    refused(
        3,
        "expected the SHA-256",
        &["restore", &bad, "--data-dir", data],
    );
    fine(&["restore", &bad, "--data-dir", data, "--skip-hash-check"]);
    refused(2, "not empty", &["restore", &file, "--data-dir", data]);
    stop(restored_setup(Path::new(data)).start());
    refused(
        1,
        "a backup from",
        &["save", &bad, "--endpoint", "http://127.0.0.1:9"],
    );
    refused(2, "--endpoint", &["save", &bad, "--endpoint", "not a url"]);
}

/// etcdctl takes the stream as it comes: parts of the file with what remains, then the checksum by itself.
#[test]
fn backup_comes_in_the_parts_of_etcds() {
    let (_dir, setup) = setup(&[]);
    let server = setup.start();
    let client = client_of(&server);
    client.put("big", &"x".repeat(100_000)).unwrap();
    let call = async |channel| {
        let mut client = MaintenanceClient::new(channel);
        let mut parts = client.snapshot(pb::SnapshotRequest {}).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await? {
            all.push(part);
        }
        Ok(all)
    };
    let parts = client.run(call).unwrap();
    let (hash, body) = parts.split_last().unwrap();
    assert_eq!(hash.blob.len(), 32);
    assert_eq!(hash.remaining_bytes, 0);
    let mut left: usize = body.iter().map(|part| part.blob.len()).sum();
    assert_eq!(left % 512, 0);
    for part in body {
        left -= part.blob.len();
        assert_eq!(part.remaining_bytes, left as u64);
        assert!(part.blob.len() <= 32 << 10);
        assert_eq!(part.version, "3.6.0");
    }
    assert!(body.len() >= 4, "it is more than one part");
    stop(server);
}
