//! A member whose log is damaged while it is down gets back from the others what it lost.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_tests::cluster::{Cluster, Load};
use flotilla_tests::process::READY;

use super::members::{grow, when_healthy};
use super::{CLIENTS, FLOTILLA, QUICK, settle};

const BEGUN_ANEW: &str = "it was begun anew";
const REPAIRED: &str = "repaired: the log has everything again";

fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data_dir.join("log")).unwrap();
    let mut found: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "seg"))
        .collect();
    found.sort();
    found
}

fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap();
    content[at] ^= 0x20;
    fs::write(path, content).unwrap();
}

/// Rot in an entry of a segment that an earlier run ended, which a start need not read.
fn rot_in_a_sealed_segment(data_dir: &Path) {
    flip(&segments(data_dir)[0], 300_000);
}

/// Rot in the first of the last batches that were synced.
fn rot_in_the_tail(data_dir: &Path) {
    let last = segments(data_dir).pop().unwrap();
    let content = fs::read(&last).unwrap();
    // The footer, if there is one, lies in the last bytes.
    let batches = &content[..content.len() - (128 << 10)];
    let end = batches.iter().rposition(|byte| *byte != 0).unwrap();
    flip(&last, end - 400);
}

fn lose_a_segment(data_dir: &Path) {
    fs::remove_file(&segments(data_dir)[0]).unwrap();
}

fn lose_all_segments(data_dir: &Path) {
    for path in segments(data_dir) {
        fs::remove_file(path).unwrap();
    }
}

/// Three members, clients, and more than one segment in each log.
fn with_segments() -> (Cluster, Load) {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let load = Load::start(&cluster.urls(), CLIENTS);
    fill(&cluster);
    (cluster, load)
}

fn fill(cluster: &Cluster) {
    let (client, value) = (cluster.client(0), "v".repeat(100_000));
    for number in 0..40 {
        client.put(&format!("pad-{number}"), &value).unwrap();
    }
}

/// What `/metrics` of a member says of a gauge.
fn gauge(cluster: &Cluster, member: usize, name: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.setups[member].port)).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let line = page.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

/// Starts a member after damage, and waits until it has everything again.
fn start_and_wait(cluster: &mut Cluster, load: &Load, member: usize) {
    cluster.spawn(member);
    for line in [BEGUN_ANEW, REPAIRED, READY] {
        cluster.server(member).wait_for_line(line);
    }
    load.wait_for_writes(20);
    cluster.wait("a gauge that says so", || {
        gauge(cluster, member, "flotilla_log_guarded ").as_deref() == Some("0")
    });
}

/// Damages a member's log while it is down, again and again. `ahead` says which: so many behind the leader.
fn repair_after(ahead: usize, damages: &[fn(&Path)]) {
    let (mut cluster, load) = with_segments();
    for damage in damages {
        let member = (cluster.leader() + ahead) % 3;
        cluster.kill(member);
        load.wait_for_writes(20);
        damage(cluster.data_dir(member));
        start_and_wait(&mut cluster, &load, member);
        // The next one needs more than one segment again.
        fill(&cluster);
    }
    settle(&cluster, load);
}

#[test]
fn follower_with_a_damaged_log_is_repaired_from_the_others_under_load() {
    repair_after(
        1,
        &[rot_in_a_sealed_segment, rot_in_the_tail, lose_a_segment],
    );
}

#[test]
fn leader_with_a_damaged_log_is_repaired_from_the_others_under_load() {
    repair_after(0, &[rot_in_the_tail, rot_in_a_sealed_segment]);
}

/// A clean stop makes the engine durable: it is ahead of whatever is left of the log.
#[test]
fn member_whose_engine_is_ahead_of_its_log_begins_behind_it_and_serves() {
    let (mut cluster, load) = with_segments();
    let member = (cluster.leader() + 1) % 3;
    for _ in 0..2 {
        let mut server = cluster.take(member);
        server.terminate();
        assert!(server.wait_exit().success());
        load.wait_for_writes(20);
        lose_all_segments(cluster.data_dir(member));
        start_and_wait(&mut cluster, &load, member);
    }
    let evidence = |number| {
        cluster
            .data_dir(member)
            .join(format!("log.damaged-{number}"))
    };
    assert!(evidence(1).join("votes").is_file() && evidence(2).join("votes").is_file());
    settle(&cluster, load);
}

/// Its peers know neither what it voted nor in which term.
#[test]
fn member_with_a_damaged_log_and_damaged_votes_refuses_to_start() {
    let (mut cluster, load) = with_segments();
    let member = (cluster.leader() + 1) % 3;
    cluster.kill(member);
    let dir = cluster.data_path(member);
    rot_in_the_tail(&dir);
    assert!(verify(&dir).contains("its peers give back what is missing"));
    for block in [0, 4096] {
        flip(&dir.join("log/votes"), block + 44);
    }
    assert!(verify(&dir).contains("so a start is refused: remove the member and add it again"));
    cluster.spawn(member);
    let mut server = cluster.take(member);
    assert_eq!(server.wait_exit().code(), Some(3));
    let log = server.log();
    assert!(
        log.contains("term and vote of group g1, whose log is damaged")
            && log.contains("add it again"),
        "{log}"
    );
    assert!(!dir.join("log.damaged-1").exists());
    load.wait_for_writes(50);
}

/// What `flotilla log verify` says of a damaged log.
fn verify(data_dir: &Path) -> String {
    let verified = Command::new(FLOTILLA)
        .args(["log", "verify"])
        .arg(data_dir)
        .output()
        .unwrap();
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    String::from_utf8(verified.stdout).unwrap()
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// It has forgotten what the member acknowledged with the log that was begun anew.
#[test]
fn data_directory_from_before_a_repair_is_refused_when_it_is_put_back() {
    let (mut cluster, load) = with_segments();
    let leader = cluster.leader();
    let [member, other] = [(leader + 1) % 3, (leader + 2) % 3];
    cluster.kill(member);
    let dir = cluster.data_path(member);
    let copy = dir.with_extension("copy");
    copy_all(&dir, &copy);
    rot_in_the_tail(&dir);
    start_and_wait(&mut cluster, &load, member);
    // Whoever it is linked to has noted which log it has.
    cluster.wait("link to both", || {
        let log = cluster.server(member).log();
        log.matches("linked to a member").count() >= 2
    });

    cluster.kill(member);
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(&copy, &dir).unwrap();
    cluster.spawn(member);
    let older = "comes with incarnation 0 of its log, but had 1: an old copy";
    for server in [member, leader, other] {
        cluster.server(server).wait_for_line(older);
    }
    load.wait_for_writes(50);
    // It stays so when who has noted it is started again.
    cluster.kill(other);
    cluster.spawn(other);
    cluster.server(other).wait_for_line(older);
    load.wait_for_writes(50);

    // As it is told.
    let id = cluster.id(member);
    cluster.kill(member);
    fs::remove_dir_all(&dir).unwrap();
    let client = cluster.client(other);
    when_healthy(&cluster, || client.member_remove(id)).unwrap();
    grow(&mut cluster, other, member);
    settle(&cluster, load);
}
