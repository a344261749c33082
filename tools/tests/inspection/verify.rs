//! `flotilla log verify` on data directories that a real server wrote: fine, torn, damaged in every place, and in use.
//! Whatever it says, it changes no byte.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::common::{
    FLOTILLA, Found, files, flip, inspect, put_many, segments, setup, stop, used, written,
};
use flotilla_tests::process::Setup;

fn verify(setup: &Setup) -> Found {
    let before = files(&setup.data_dir);
    let data_dir = setup.data_dir.to_str().unwrap();
    let found = inspect(&["log", "verify", "--json", data_dir]);
    assert!(before == files(&setup.data_dir), "verify changed a file");
    found
}

/// Exit code 3, and a finding in this file, at this offset if one is given.
fn damaged(setup: &Setup, file: &Path, offset: Option<u64>) -> serde_json::Value {
    let found = verify(setup);
    assert_eq!(found.code, 3, "{}\n{}", found.value, found.stderr);
    assert_eq!(found.value["verdict"], "damaged");
    let all = found.value["findings"].as_array().unwrap();
    let mine = all.iter().find(|finding| {
        finding["damage"] == true
            && finding["file"] == file.to_str().unwrap()
            && offset.is_none_or(|offset| finding["offset"] == offset)
    });
    let mine = mine.unwrap_or_else(|| panic!("{file:?} {offset:?}: {}", found.value));
    for field in ["expected", "found", "meaning", "advice"] {
        assert!(!mine[field].as_str().unwrap().is_empty(), "{field}: {mine}");
    }
    assert!(found.stderr.contains("log salvage"), "{}", found.stderr);
    mine.clone()
}

pub(crate) fn copy(setup: &Setup, to: &Path) -> Setup {
    for (path, content) in files(&setup.data_dir) {
        let path = to.join(path.strip_prefix(&setup.data_dir).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut copy = setup.clone();
    copy.data_dir = to.to_owned();
    copy
}

#[test]
fn show_of_a_group_that_is_not_there_names_those_that_are_and_fails() {
    let (_dir, setup) = setup();
    written(&setup);
    let data_dir = setup.data_dir.to_str().unwrap();
    let show = |group: &str| {
        let args = ["log", "show", "--group", group, data_dir];
        Command::new(FLOTILLA).args(args).output().unwrap()
    };
    let found = show("44");
    let text = String::from_utf8(found.stderr).unwrap();
    assert_eq!((found.status.code(), found.stdout.len()), (Some(1), 0));
    assert!(text.contains("there is no group 44; it has 1"), "{text}");
    let found = show("1");
    assert_eq!(found.status.code(), Some(0));
    assert!(!found.stdout.is_empty());
}

#[test]
fn verify_of_a_stopped_server_is_fine() {
    let (_dir, setup) = setup();
    written(&setup);
    written(&setup);
    let found = verify(&setup);
    assert_eq!((found.code, &found.stderr[..]), (0, ""));
    assert_eq!(found.value["verdict"], "fine");
    assert_eq!(found.value["segments"].as_array().unwrap().len(), 2);
    assert!(found.value["groups"][0]["last_index"].as_u64().unwrap() > 40);
    let output = Command::new(FLOTILLA)
        .args(["log", "verify"])
        .arg(&setup.data_dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\nverdict: fine\n"), "{text}");
}

#[test]
fn verify_of_a_torn_tail_is_a_note_and_exits_0() {
    let (_dir, setup) = setup();
    let server = setup.start();
    put_many(&server, 20);
    server.kill_9();
    let newest = segments(&setup).pop().unwrap();
    let end = used(&newest);
    let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(b"a header that never came to be whole", end)
        .unwrap();
    let found = verify(&setup);
    assert_eq!((found.code, &found.stderr[..]), (0, ""), "{}", found.value);
    assert_eq!(found.value["verdict"], "torn tail");
    let finding = &found.value["findings"][0];
    assert_eq!(finding["offset"], end);
    assert_eq!(finding["found"], "36 bytes of a torn write");
    // The start agrees.
    stop(setup.start());
    assert_eq!(verify(&setup).value["verdict"], "fine");
}

#[test]
fn verify_of_a_flipped_bit_anywhere_says_where() {
    let (dir, setup) = setup();
    written(&setup);
    written(&setup);
    let mut number = 0;
    let mut broken = |file: &str, offsets: &[u64]| {
        number += 1;
        let copy = copy(&setup, &dir.path().join(format!("copy-{number}")));
        let path = copy.data_dir.join(file);
        for offset in offsets {
            flip(&path, *offset);
        }
        (copy, path)
    };
    let (first, last) = ("log/0000000000000001.seg", "log/0000000000000002.seg");
    for file in [first, last] {
        let (copy, path) = broken(file, &[20]);
        damaged(&copy, &path, Some(0));
    }
    // The checkpoint, which a start reads.
    let (copy, path) = broken(last, &[4096 + 70]);
    let finding = damaged(&copy, &path, Some(4096));
    assert!(
        finding["meaning"].as_str().unwrap().contains("refuses"),
        "{finding}"
    );
    // Both blocks of the manifest.
    let (copy, path) = broken("log/MANIFEST", &[30, 4096 + 30]);
    damaged(&copy, &path, Some(0));
    // Both blocks of the group's vote slot.
    let (copy, path) = broken("log/votes", &[40, 4096 + 40]);
    damaged(&copy, &path, Some(0));
    damaged(&copy, &path, Some(4096));
    // One block may be what a crash left.
    for file in ["log/MANIFEST", "log/votes"] {
        let (copy, _) = broken(file, &[30]);
        let found = verify(&copy);
        assert_eq!(found.code, 0, "{}", found.value);
        assert_eq!(found.value["findings"][0]["offset"], 0);
    }
    let (copy, _) = broken("IDENTITY", &[30]);
    let found = verify(&copy);
    assert_eq!(found.code, 3);
    assert!(found.stderr.contains("IDENTITY"), "{}", found.stderr);
}

#[test]
fn verify_of_rot_in_a_sealed_segment_names_the_entries_that_a_start_does_not_miss() {
    let (_dir, setup) = setup();
    written(&setup);
    written(&setup);
    let path = segments(&setup).remove(0);
    // In the value of the tenth key.
    let content = fs::read(&path).unwrap();
    let value = content
        .windows(100)
        .enumerate()
        .filter(|(_, window)| window.iter().all(|byte| *byte == b'x'))
        .nth(9);
    let at = value.unwrap().0 as u64;
    flip(&path, at);
    let finding = damaged(&setup, &path, None);
    let offset = finding["offset"].as_u64().unwrap();
    assert!(offset < at && at - offset < 400, "{finding}");
    assert_eq!(finding["lost"].as_array().unwrap().len(), 1, "{finding}");
    let (from, to) = (&finding["lost"][0]["from"], &finding["lost"][0]["to"]);
    assert_eq!(from, to);
    assert!(
        finding["meaning"]
            .as_str()
            .unwrap()
            .contains("does not notice at its start"),
        "{finding}"
    );
    stop(setup.start());
}

#[test]
fn verify_of_a_missing_or_foreign_segment_is_damage() {
    let (dir, setup) = setup();
    written(&setup);
    written(&setup);
    written(&setup);
    let middle = "log/0000000000000002.seg";
    let one = copy(&setup, &dir.path().join("middle"));
    fs::remove_file(one.data_dir.join(middle)).unwrap();
    damaged(
        &one,
        &one.data_dir.join("log/0000000000000003.seg"),
        Some(0),
    );
    let one = copy(&setup, &dir.path().join("newest"));
    fs::remove_file(one.data_dir.join("log/0000000000000003.seg")).unwrap();
    damaged(&one, &one.data_dir.join("log/MANIFEST"), Some(0));
    let mut other = setup.clone();
    other.data_dir = dir.path().join("other");
    written(&other);
    written(&other);
    let one = copy(&setup, &dir.path().join("foreign"));
    fs::copy(other.data_dir.join(middle), one.data_dir.join(middle)).unwrap();
    let finding = damaged(&one, &one.data_dir.join(middle), Some(0));
    assert!(finding["expected"].as_str().unwrap().starts_with("store "));
}

#[test]
fn verify_beside_a_server_under_load_never_takes_a_write_for_damage() {
    let (_dir, setup) = setup();
    let server = setup.start();
    let data_dir = setup.data_dir.to_str().unwrap().to_owned();
    let mut looks = 0;
    std::thread::scope(|scope| {
        // Enough for several rotations.
        let load = scope.spawn(|| put_many(&server, 6_000));
        while !load.is_finished() {
            let found = inspect(&["log", "verify", "--json", &data_dir]);
            assert_eq!(found.code, 0, "{}\n{}", found.value, found.stderr);
            looks += 1;
        }
        load.join().unwrap();
    });
    eprintln!("verified {looks} times");
    assert!(looks > 3 && segments(&setup).len() > 1, "{looks}");
    stop(server);
}

#[test]
fn verify_of_no_data_directory_exits_1() {
    let dir = tempfile::tempdir().unwrap();
    let found = inspect(&["log", "verify", dir.path().to_str().unwrap()]);
    assert_eq!(found.code, 1);
    assert!(found.stderr.contains("is it") || found.stderr.contains("a data directory"));
}
