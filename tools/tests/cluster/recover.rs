//! `flotilla recover`: two of three disks are lost for good.

use std::path::Path;
use std::process::{Command, Output};

use flotilla_tests::cluster::Cluster;
use flotilla_tests::process::READY;

use super::members::grow;
use super::{FLOTILLA, QUICK, settle, under_load};

fn recover(dirs: &[&Path], flags: &[&str]) -> Output {
    let mut command = Command::new(FLOTILLA);
    command.arg("recover").args(dirs).args(flags);
    command.output().unwrap()
}

fn told(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

#[track_caller]
fn ends(output: &Output, code: i32, text: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", told(output));
    assert!(told(output).contains(text), "{}", told(output));
}

const FORCE: [&str; 1] = ["--force-new-cluster"];

#[test]
fn last_member_becomes_a_cluster_of_its_own_with_everything_that_it_has() {
    let (mut cluster, load) = under_load();
    settle(&cluster, load);
    let client = cluster.client(0);
    let lease = client.grant(600).unwrap();
    client.put("kept", "before").unwrap();
    cluster.wait_for_equal_state();
    let left = (cluster.leader() + 1) % 3;
    let lost = [(left + 1) % 3, (left + 2) % 3];
    let before = cluster.client(left).status().unwrap().header.unwrap();
    let hash = cluster.client(left).hash(before.revision).unwrap();
    let dirs = [0, 1, 2].map(|member| cluster.data_path(member));
    let dir = dirs[left].as_path();

    ends(&recover(&[dir], &FORCE), 1, "in use by another process");
    for member in 0..3 {
        cluster.kill(member);
    }
    let all = dirs.each_ref().map(|dir| dir.as_path());
    ends(&recover(&all, &[]), 0, "Nothing was changed");
    ends(&recover(&all, &FORCE), 2, "takes one directory");
    ends(&recover(&[], &FORCE), 2, "DIRS");
    ends(
        &recover(&[dir], &["--json"]),
        0,
        "\"recovery_pending\":false",
    );

    let output = recover(&[dir], &FORCE);
    ends(&output, 0, "is the only member of cluster");
    ends(&recover(&[dir], &FORCE), 1, "decides alone");
    let evidence = std::fs::read_dir(dir).unwrap().flatten();
    let evidence =
        evidence.filter(|file| file.file_name().to_string_lossy().starts_with("RECOVERED-"));
    assert_eq!(evidence.count(), 1);

    for _ in 0..2 {
        cluster.spawn(left);
        cluster.server(left).wait_for_line(READY);
        let client = cluster.client(left);
        assert_eq!(
            client.get("kept", false).unwrap().as_deref(),
            Some("before")
        );
        assert_eq!(client.hash(before.revision).unwrap(), hash);
        assert!(client.time_to_live(lease).unwrap() > 500);
        let now = client.status().unwrap();
        let header = now.header.unwrap();
        assert_eq!(
            (now.leader, header.member_id),
            (before.member_id, before.member_id)
        );
        assert_ne!(header.cluster_id, before.cluster_id);
        let members = client.members().unwrap();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].client_ur_ls, [cluster.setups[left].url()]);
        cluster.kill(left);
    }

    // The others turn up again: they are the old cluster, and nothing passes between the two.
    cluster.start_all();
    let leader = cluster.leader_among(&lost);
    cluster.client(leader).put("kept", "elsewhere").unwrap();
    let client = cluster.client(left);
    client.put("new", "here").unwrap();
    assert_eq!(
        client.get("kept", false).unwrap().as_deref(),
        Some("before")
    );
    assert_eq!(client.members().unwrap().len(), 1);
    assert_eq!(cluster.client(leader).get("new", false).unwrap(), None);

    // It grows to three, with members that are new.
    let mut all = vec![left];
    for _ in 0..2 {
        let new = cluster.add_setup(FLOTILLA, &QUICK);
        grow(&mut cluster, left, new);
        all.push(new);
    }
    cluster.wait_for_equal_state_among(&all);
    for member in all {
        let client = cluster.client(member);
        assert_eq!(client.members().unwrap().len(), 3);
        let seen = client.get("kept", false).unwrap();
        assert_eq!(seen.as_deref(), Some("before"));
    }
    for member in lost {
        cluster.server(member).wait_for_line("cluster ID mismatch");
    }
}

#[test]
fn member_that_decides_alone_is_not_recovered() {
    let mut cluster = Cluster::start(FLOTILLA, 1, &[]);
    cluster.client(0).put("key", "value").unwrap();
    cluster.kill(0);
    let dir = cluster.data_path(0);
    ends(&recover(&[&dir], &FORCE), 1, "decides alone");
    let nowhere = dir.join("nowhere");
    ends(&recover(&[&nowhere], &FORCE), 1, "holds no member");
    assert!(!nowhere.exists());
    cluster.start_all();
    let seen = cluster.client(0).get("key", false).unwrap();
    assert_eq!(seen.as_deref(), Some("value"));
}
