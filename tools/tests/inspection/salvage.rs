//! `flotilla log salvage` of damaged directories, and a server on what it makes of them.

use std::fs;

use flotilla_tests::process::Setup;

use crate::common::{
    Found, count, files, fill, flip, inspect, put_many, segments, setup, stop, written,
};

/// Salvages to a new directory; the setup of a server on it.
fn salvage(setup: &Setup, name: &str) -> (Found, Setup) {
    let before = files(&setup.data_dir);
    let mut new = setup.clone();
    new.data_dir = setup.data_dir.with_file_name(name);
    let (from, to) = (
        setup.data_dir.to_str().unwrap(),
        new.data_dir.to_str().unwrap(),
    );
    let found = inspect(&["log", "salvage", from, "--to", to, "--json"]);
    assert!(before == files(&setup.data_dir), "salvage changed a file");
    (found, new)
}

fn verified(setup: &Setup) {
    let found = inspect(&["log", "verify", setup.data_dir.to_str().unwrap()]);
    assert_eq!(found.code, 0, "{}", found.stderr);
}

#[test]
fn salvage_of_an_intact_directory_keeps_everything() {
    let (_dir, setup) = setup();
    written(&setup);
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_eq!(found.value["loss"], false, "{}", found.value);
    verified(&new);
    let server = new.start();
    assert_eq!(count(&server), 20);
    stop(server);
}

#[test]
fn salvage_of_a_damaged_segment_keeps_what_was_before_and_a_server_serves_it() {
    let (_dir, setup) = setup();
    let server = setup.start();
    put_many(&server, 200);
    server.kill_9();
    let path = segments(&setup).pop().unwrap();
    // The middle of what is written.
    let content = fs::read(&path).unwrap();
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    flip(&path, end / 2);
    let mut refused = setup.spawn();
    assert_eq!(refused.wait_exit().code(), Some(3));
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_eq!(found.value["loss"], true);
    assert_eq!(found.value["damage"].as_array().unwrap().len(), 1);
    let notes = found.value["notes"].to_string();
    assert!(notes.contains("damage may have hidden more"), "{notes}");
    let kept = found.value["groups"][0]["last_index"].as_u64().unwrap();
    assert!(kept > 20, "{}", found.value);
    verified(&new);
    let server = new.start();
    let keys = count(&server);
    assert!((20..200).contains(&keys), "{keys}");
    stop(server);
}

#[test]
fn salvage_of_damaged_headers_manifest_and_votes_loses_nothing() {
    let (_dir, setup) = setup();
    written(&setup);
    written(&setup);
    for path in segments(&setup) {
        flip(&path, 30);
    }
    for file in ["MANIFEST", "votes"] {
        let path = setup.data_dir.join("log").join(file);
        flip(&path, 30);
        flip(&path, 4096 + 30);
    }
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_eq!(found.value["groups"][0]["lost"], 0, "{}", found.value);
    let damage = found.value["damage"].as_array().unwrap();
    assert_eq!(damage.len(), 5, "{}", found.value);
    verified(&new);
    let server = new.start();
    assert_eq!(count(&server), 20);
    stop(server);
}

#[test]
fn salvage_of_rot_in_a_sealed_segment_keeps_the_entries_before_it() {
    let (_dir, setup) = setup();
    written(&setup);
    written(&setup);
    let path = segments(&setup).remove(0);
    let content = fs::read(&path).unwrap();
    let values = content.windows(100).enumerate();
    let mut values = values.filter(|(_, window)| window.iter().all(|byte| *byte == b'x'));
    flip(&path, values.nth(9).unwrap().0 as u64);
    // With it nothing would be lost.
    fs::remove_dir_all(setup.data_dir.join("engine")).unwrap();
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    let group = &found.value["groups"][0];
    assert!(group["lost"].as_u64().unwrap() > 10, "{group}");
    let reason = group["reason"].as_str().unwrap();
    assert!(
        reason.contains("offset") && reason.contains("0000000000000001.seg"),
        "{reason}"
    );
    let server = new.start();
    assert_eq!(count(&server), 9);
    stop(server);
}

#[test]
fn salvage_of_a_compacted_log_brings_the_engine_without_which_it_is_of_no_use() {
    let (_dir, mut setup) = setup();
    setup.flags = vec!["--snapshot-count".into(), "1000".into()];
    let server = setup.start();
    put_many(&server, 8_000);
    // When the engine persists is its own affair; the same keys again give it another occasion.
    let compacted = || {
        let found = inspect(&["log", "ls", "--json", setup.data_dir.to_str().unwrap()]);
        found.value["groups"][0]["base_index"].as_u64() > Some(0)
    };
    let mut tries = 0..50;
    while !compacted() {
        assert!(tries.next().is_some(), "{server}");
        put_many(&server, 1_001);
    }
    stop(server);
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    let base = found.value["groups"][0]["base_index"].as_u64().unwrap();
    assert!(base > 0, "{}", found.value);
    let server = new.start();
    assert_eq!(count(&server), 8_000);
    stop(server);
}

#[test]
fn salvage_of_rot_in_what_the_engine_holds_loses_nothing() {
    let (_dir, setup) = setup();
    let server = setup.start();
    put_many(&server, 200);
    fill(&server);
    stop(server);
    written(&setup);
    let path = segments(&setup).remove(0);
    let content = fs::read(&path).unwrap();
    let values = content.windows(100).enumerate();
    let mut values = values.filter(|(_, window)| window.iter().all(|byte| *byte == b'x'));
    flip(&path, values.nth(99).unwrap().0 as u64);
    let verify = inspect(&["log", "verify", setup.data_dir.to_str().unwrap()]);
    assert_eq!(verify.code, 3);
    let (found, new) = salvage(&setup, "new");
    assert_eq!(found.code, 0, "{}", found.stderr);
    let group = &found.value["groups"][0];
    assert_eq!(group["lost"], 0, "{group}");
    assert!(group["base_index"].as_u64().unwrap() > 99, "{group}");
    verified(&new);
    let server = new.start();
    assert_eq!(count(&server), 200);
    stop(server);
}

#[test]
fn salvage_in_place_over_something_or_in_use_is_refused() {
    let (_dir, setup) = setup();
    written(&setup);
    let from = setup.data_dir.to_str().unwrap();
    let inside = setup.data_dir.join("new");
    let found = inspect(&["log", "salvage", from, "--to", inside.to_str().unwrap()]);
    assert_eq!(found.code, 1, "{}", found.stderr);
    assert!(!inside.exists());
    let (found, _) = salvage(&setup, "data");
    assert_eq!(found.code, 1, "{}", found.stderr);
    assert!(found.stderr.contains("must be empty"), "{}", found.stderr);
    let server = setup.start();
    let to = setup.data_dir.with_file_name("new");
    let found = inspect(&["log", "salvage", from, "--to", to.to_str().unwrap()]);
    assert_eq!(found.code, 1);
    assert!(found.stderr.contains("in use"), "{}", found.stderr);
    assert!(!to.exists());
    stop(server);
}
