//! `flotilla snapshot` on snapshots that the crate made in a server's data directory, as they are and damaged.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use flotilla_tests::process::Setup;
use kv_server::node::Identity;
use raft_log::snapshot::{SnapshotMeta, SnapshotStore};
use raft_log::vfs::{RealFs, SharedVfs};
use raft_log::{GroupId, Log, LogOptions};

use crate::common::{FLOTILLA, Found, files, flip, inspect, setup, written};

/// A server's data, stopped, with a snapshot of 600,000 bytes that the log refers to; the snapshot's file.
pub(crate) fn with_snapshot(setup: &Setup) -> PathBuf {
    written(setup);
    let vfs: SharedVfs = Arc::new(RealFs::new());
    let data = &setup.data_dir;
    let store = Identity::read(&*vfs, data).unwrap().unwrap().store;
    let options = LogOptions::new(data.join("log"), store);
    let (log, _) = Log::open(vfs.clone(), options).unwrap();
    let snapshots = SnapshotStore::open(vfs, data.join("snap"), store).unwrap();
    snapshots.recover(&log).unwrap();
    let info = log.group(GroupId(1)).unwrap();
    let mut writer = snapshots
        .create(SnapshotMeta {
            group: GroupId(1),
            creation: info.base.creation,
            index: info.last_index,
            term: info.last_term,
            membership: info.base.membership,
        })
        .unwrap();
    writer.write_all(&[7; 600_000]).unwrap();
    let installed = snapshots.install(&log, writer.finish().unwrap()).unwrap();
    assert_eq!(installed.snapshot.content_len, 600_000);
    log.close().unwrap();
    let dir = data.join("snap/group-0000000000000001");
    let mut names = fs::read_dir(dir).unwrap();
    names.next().unwrap().unwrap().path()
}

fn run(setup: &Setup, what: &str) -> Found {
    let before = files(&setup.data_dir);
    let found = inspect(&["snapshot", what, "--json", setup.data_dir.to_str().unwrap()]);
    assert!(before == files(&setup.data_dir), "{what} changed a file");
    found
}

#[test]
fn snapshot_that_is_whole_is_listed_verified_and_shown() {
    let (_dir, setup) = setup();
    let path = with_snapshot(&setup);
    for what in ["ls", "verify"] {
        let found = run(&setup, what);
        assert_eq!((found.code, &found.stderr[..]), (0, ""), "{}", found.value);
        let file = &found.value["snapshots"][0];
        assert_eq!(file["file"], path.to_str().unwrap());
        assert_eq!(file["content_bytes"], 600_000);
        assert!(file["error"].is_null());
    }
    let shown = run(&setup, "show").value;
    let shown = &shown["snapshots"][0];
    assert_eq!(shown["header"]["chunks"], 3);
    let chunks = shown["chunks"].as_array().unwrap();
    let bytes = chunks
        .iter()
        .map(|chunk| chunk["content_bytes"].as_u64().unwrap());
    assert_eq!(bytes.collect::<Vec<_>>(), [262_144, 262_144, 75_712]);
    let output = Command::new(FLOTILLA)
        .args(["snapshot", "show", "--number", "1"])
        .arg(&setup.data_dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("600000 bytes of content"), "{text}");
}

#[test]
fn snapshot_with_a_flipped_bit_is_damage_where_it_lies() {
    let (_dir, setup) = setup();
    let path = with_snapshot(&setup);
    // In the second chunk: only who reads all of it finds it.
    let at = 262_144 + 10_000;
    flip(&path, at);
    assert_eq!(run(&setup, "ls").code, 0);
    let found = run(&setup, "verify");
    assert_eq!(found.code, 3);
    assert!(found.stderr.contains("chunk checksum"), "{}", found.stderr);
    let shown = run(&setup, "show");
    assert_eq!(shown.code, 3);
    let chunks = shown.value["snapshots"][0]["chunks"].as_array().unwrap();
    assert_eq!(chunks.len(), 1, "what comes before is shown");
    flip(&path, at);
    // The header.
    flip(&path, 41);
    for what in ["ls", "verify", "show"] {
        let found = run(&setup, what);
        assert_eq!(found.code, 3, "{what}");
        let error = &found.value["snapshots"][0]["error"];
        assert!(error.as_str().unwrap().contains("header checksum"));
    }
}

#[test]
fn snapshot_that_the_log_refers_to_and_is_gone_is_damage() {
    let (_dir, setup) = setup();
    let path = with_snapshot(&setup);
    fs::remove_file(&path).unwrap();
    assert_eq!(run(&setup, "ls").code, 0);
    let found = run(&setup, "verify");
    assert_eq!(found.code, 3);
    assert!(found.stderr.contains("to which the log refers"));
}

#[test]
fn snapshot_counter_that_is_damaged_twice_is_damage() {
    let (_dir, setup) = setup();
    with_snapshot(&setup);
    let counter = setup.data_dir.join("snap/NUMBERS");
    flip(&counter, 25);
    assert_eq!(run(&setup, "verify").code, 0);
    flip(&counter, 4096 + 25);
    let found = run(&setup, "verify");
    assert_eq!(found.code, 3);
    assert!(found.stderr.contains("NUMBERS"), "{}", found.stderr);
}

#[test]
fn salvage_brings_a_snapshot_that_verifies_and_drops_one_that_does_not() {
    let (_dir, setup) = setup();
    let path = with_snapshot(&setup);
    let from = setup.data_dir.to_str().unwrap();
    let salvage = |name: &str| {
        let mut new = setup.clone();
        new.data_dir = setup.data_dir.with_file_name(name);
        let to = new.data_dir.to_str().unwrap();
        let found = inspect(&["log", "salvage", "--json", from, "--to", to]);
        assert_eq!(found.code, 0, "{}", found.stderr);
        let verified = run(&new, "verify");
        assert_eq!(verified.code, 0, "{}", verified.stderr);
        (found.value, verified.value)
    };
    let (told, verified) = salvage("whole");
    assert_eq!(told["loss"], false);
    assert_eq!(verified["snapshots"].as_array().unwrap().len(), 1);
    flip(&path, 10_000);
    let (told, verified) = salvage("less");
    assert_eq!(told["loss"], true);
    assert!(told["groups"][0]["dropped_snapshot"].is_u64());
    assert_eq!(verified["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn snapshot_of_a_store_without_any_is_an_empty_list() {
    let (_dir, setup) = setup();
    written(&setup);
    for what in ["ls", "verify", "show"] {
        let found = run(&setup, what);
        assert_eq!((found.code, &found.stderr[..]), (0, ""));
        assert_eq!(found.value["snapshots"].as_array().unwrap().len(), 0);
    }
}
