//! What an operator sees of `flotilla server`: starts, stops, refusals, damage, a full disk. Whatever is refused leaves
//! the data directory as it was.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flotilla_tests::process::{PATIENCE, Server, Setup, SmallDisk};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn setup() -> (TempDir, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    (dir, setup)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

async fn kv(server: &Server) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    KvClient::new(endpoint.connect().await.unwrap())
}

fn put_request(key: Vec<u8>, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

/// Writes some keys and stops the server.
fn written(setup: &Setup) {
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        for number in 0..20 {
            let key = format!("key-{number}").into_bytes();
            kv.put(put_request(key, vec![b'x'; 100])).await.unwrap();
        }
    });
    stop(server);
}

fn stop(mut server: Server) {
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

/// Every file of a data directory with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

/// A start that must be refused, with this exit code, naming each of these, and changing nothing.
fn refused(setup: &Setup, code: i32, parts: &[&str]) {
    let before = files(&setup.data_dir);
    let mut server = setup.spawn();
    let status = server.wait_exit();
    let log = server.log();
    assert_eq!(status.code(), Some(code), "{log}");
    for part in parts {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    assert!(
        before == files(&setup.data_dir),
        "the data directory was changed"
    );
}

/// The segments of a log, oldest first.
fn segments(setup: &Setup) -> Vec<PathBuf> {
    let names = fs::read_dir(setup.data_dir.join("log")).unwrap();
    let mut paths: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    paths
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn log_ls(setup: &Setup) -> serde_json::Value {
    let output = Command::new(FLOTILLA)
        .args(["log", "ls", "--json"])
        .arg(&setup.data_dir)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn terminated_server_exits_0_and_starts_again_with_its_data() {
    let (_dir, setup) = setup();
    written(&setup);
    let server = setup.start();
    block_on(async {
        let request = pb::RangeRequest {
            key: "key-".into(),
            range_end: "key.".into(),
            ..Default::default()
        };
        let response = kv(&server).await.range(request).await.unwrap().into_inner();
        assert_eq!(
            (response.count, response.header.unwrap().revision),
            (20, 21)
        );
    });
    stop(server);
}

#[test]
fn json_log_has_one_object_per_line_and_the_ready_line() {
    let (_dir, mut setup) = setup();
    setup.flags = vec!["--log-format".into(), "json".into()];
    let server = setup.start();
    let log = server.log();
    stop(server);
    let ready = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|line| line["message"] == "ready to serve client requests");
    assert_eq!(ready.unwrap()["level"], "INFO");
}

#[test]
fn data_directory_in_use_is_refused_by_name() {
    let (_dir, setup) = setup();
    let server = setup.start();
    let mut second = setup.clone();
    second.port = flotilla_tests::process::free_port();
    second.peer_port = flotilla_tests::process::free_port();
    let mut refused = second.spawn();
    assert_eq!(refused.wait_exit().code(), Some(1));
    let log = refused.log();
    assert!(log.contains("is in use by another process"), "{log}");
    assert!(log.contains(&*setup.data_dir.to_string_lossy()), "{log}");
    stop(server);
}

#[test]
fn port_in_use_is_refused_before_anything_is_created() {
    let (_dir, setup) = setup();
    let _listener = TcpListener::bind(("127.0.0.1", setup.port)).unwrap();
    let address = format!("127.0.0.1:{}", setup.port);
    refused(&setup, 1, &[&address, "--listen-client-urls"]);
    assert!(!setup.data_dir.exists());
}

#[test]
fn identity_that_is_newer_damaged_or_missing_is_refused() {
    let (_dir, setup) = setup();
    written(&setup);
    let path = setup.data_dir.join("IDENTITY");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        good.replacen("flotilla-identity 1", "flotilla-identity 9", 1),
    )
    .unwrap();
    refused(&setup, 1, &["IDENTITY", "format version 9"]);
    fs::write(&path, good.replacen("member ", "member 1", 1)).unwrap();
    refused(&setup, 3, &["IDENTITY", "crc32"]);
    fs::remove_file(&path).unwrap();
    refused(&setup, 3, &["no IDENTITY file"]);
    fs::write(&path, good).unwrap();
    stop(setup.start());
}

#[test]
fn segment_of_another_store_is_refused_by_name() {
    let (_dir, setup) = setup();
    written(&setup);
    let (_other_dir, other) = self::setup();
    written(&other);
    let ours = segments(&setup).pop().unwrap();
    fs::copy(segments(&other).pop().unwrap(), &ours).unwrap();
    let name = ours.file_name().unwrap().to_string_lossy().into_owned();
    refused(
        &setup,
        3,
        &[&name, "expected store", "another data directory"],
    );
}

#[test]
fn damaged_batch_in_the_middle_is_refused_with_file_and_offset() {
    let (_dir, setup) = setup();
    written(&setup);
    let segment = segments(&setup).pop().unwrap();
    // Behind the segment's header and checkpoint.
    flip(&segment, 5_000);
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    refused(&setup, 3, &[&name, "at offset", "do not verify"]);
    let listed = Command::new(FLOTILLA)
        .args(["log", "ls"])
        .arg(&setup.data_dir)
        .output()
        .unwrap();
    assert_eq!(listed.status.code(), Some(3));
    let text = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(text.contains(&name) && text.contains("at offset"), "{text}");
}

#[test]
fn suspect_last_batch_is_refused_until_it_is_accepted() {
    let (_dir, mut setup) = setup();
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        for key in ["a", "b"] {
            let request = put_request(key.into(), b"x".to_vec());
            kv.put(request).await.unwrap();
        }
    });
    // A clean stop would prove the last batch to be synced.
    server.kill_9();
    let segment = segments(&setup).pop().unwrap();
    let used = log_ls(&setup)["segments"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()["used"]
        .as_u64();
    flip(&segment, used.unwrap() - 4);
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    refused(
        &setup,
        3,
        &[&name, "may have been acknowledged", "--accept-suspect-tail"],
    );
    setup.flags = vec!["--accept-suspect-tail".into()];
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        for (key, count) in [("a", 1), ("b", 0)] {
            let request = pb::RangeRequest {
                key: key.into(),
                ..Default::default()
            };
            assert_eq!(
                kv.range(request).await.unwrap().into_inner().count,
                count,
                "{key}"
            );
        }
    });
    stop(server);
    setup.flags.clear();
    stop(setup.start());
}

#[test]
fn damaged_engine_is_moved_aside_and_rebuilt_from_the_log() {
    let (_dir, setup) = setup();
    written(&setup);
    let engine = setup.data_dir.join("engine");
    fs::write(engine.join("current"), b"nonsense").unwrap();
    let server = setup.start();
    assert!(server.log().contains("rebuilt from the log"), "{server}");
    block_on(async {
        let request = pb::RangeRequest {
            key: "key-7".into(),
            ..Default::default()
        };
        let response = kv(&server).await.range(request).await.unwrap().into_inner();
        assert_eq!((response.count, response.header.unwrap().revision), (1, 21));
    });
    stop(server);
    assert!(setup.data_dir.join("engine.damaged-1").exists());
}

#[test]
fn key_above_the_limit_is_refused_and_long_ones_work() {
    let (_dir, setup) = setup();
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        // Zeros take twice their length in the engine.
        let longest = vec![0; 32_000];
        kv.put(put_request(longest.clone(), b"x".to_vec()))
            .await
            .unwrap();
        let status = kv
            .put(put_request(vec![b'k'; 32_001], Vec::new()))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("at most 32000"), "{status}");
        for (key, count) in [(longest.clone(), 1), (vec![0; 70_000], 0)] {
            let request = pb::RangeRequest {
                key: key.clone().into(),
                ..Default::default()
            };
            assert_eq!(kv.range(request).await.unwrap().into_inner().count, count);
            let request = pb::DeleteRangeRequest {
                key: key.into(),
                ..Default::default()
            };
            let deleted = kv.delete_range(request).await.unwrap().into_inner().deleted;
            assert_eq!(deleted, count);
        }
    });
    stop(server);
}

fn log_text(what: &str, dirs: &[&Path]) -> String {
    let output = Command::new(FLOTILLA)
        .args(["log", what])
        .args(dirs)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn log_of_a_running_server_can_be_looked_at_in_every_way() {
    let (_dir, setup) = setup();
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        for number in 0..5 {
            let key = format!("key-{number}").into_bytes();
            kv.put(put_request(key, vec![b'x'; 70])).await.unwrap();
        }
    });
    let dir = setup.data_dir.as_path();
    let value = format!("\"{}\"... (70 bytes)", "x".repeat(64));
    let shown = log_text("show", &[dir]);
    assert!(
        shown.contains(&format!("entry 4 term 1 put \"key-1\" = {value}")),
        "{shown}"
    );
    let listed = log_text("ls", &[dir]);
    assert!(
        listed.contains("clean") && listed.contains("name default"),
        "{listed}"
    );
    let timeline = log_text("timeline", &[dir]);
    assert!(timeline.contains("created, begins after 0"), "{timeline}");
    assert!(
        timeline.contains("entry 1 is the first of term 1"),
        "{timeline}"
    );
    let stat = log_text("stat", &[dir]);
    assert!(stat.contains("1      entry       7 "), "{stat}");
    // A second store has other entries from the second on.
    let (_other_dir, other) = self::setup();
    written(&other);
    let diff = log_text("diff", &[dir, &other.data_dir]);
    assert!(diff.starts_with("g1: the same from 1 to 1, "), "{diff}");
    assert_eq!(log_text("diff", &[dir, dir]), "g1: the same from 1 to 7\n");
    stop(server);
}

#[test]
fn log_that_is_followed_shows_what_a_server_adds() {
    let (_dir, setup) = setup();
    let server = setup.start();
    let mut following = Command::new(FLOTILLA)
        .args(["log", "show", "--follow", "--kind", "entry"])
        .arg(&setup.data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("entry 1 term 1 empty"), "{first}");
    block_on(async {
        let request = put_request(b"later".to_vec(), b"x".to_vec());
        kv(&server).await.put(request).await.unwrap();
    });
    let second = lines.next().unwrap().unwrap();
    let published = format!("\"default\" serves clients at {}", server.url());
    assert!(second.contains(&published), "{second}");
    let third = lines.next().unwrap().unwrap();
    assert!(third.contains("entry 3 term 1 put \"later\""), "{third}");
    following.kill().unwrap();
    following.wait().unwrap();
    stop(server);
}

#[test]
fn log_of_no_data_directory_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for what in ["ls", "show", "stat", "timeline"] {
        let output = Command::new(FLOTILLA)
            .args(["log", what])
            .arg(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("a data directory?"), "{text}");
    }
}

/// Writes until the disk is full, then again until it is not.
async fn put_until(
    server: &Server,
    kv: &mut KvClient<Channel>,
    enough: impl Fn(&Result<tonic::Response<pb::PutResponse>, Status>) -> bool,
) -> u64 {
    let start = Instant::now();
    let mut acknowledged = 0;
    loop {
        assert!(start.elapsed() < PATIENCE, "it does not end\n{server}");
        let key = format!("fill-{acknowledged:06}").into_bytes();
        let result = kv.put(put_request(key, vec![b'x'; 100_000])).await;
        acknowledged += u64::from(result.is_ok());
        if enough(&result) {
            return acknowledged;
        }
    }
}

#[test]
fn full_disk_refuses_writes_serves_reads_and_ends_when_space_returns() {
    let Some(disk) = SmallDisk::mount(72) else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 44 << 20]).unwrap();
    let setup = Setup::new(FLOTILLA, &disk.path().join("data"));
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        let written = put_until(&server, &mut kv, |result| match result {
            Ok(_) => false,
            Err(status) => {
                let message = "etcdserver: mvcc: database space exceeded";
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::ResourceExhausted, message)
                );
                true
            }
        })
        .await;
        let count = pb::RangeRequest {
            key: "fill-".into(),
            range_end: "fill.".into(),
            count_only: true,
            ..Default::default()
        };
        let response = kv.range(count.clone()).await.unwrap().into_inner();
        assert_eq!(response.count.unsigned_abs(), written, "reads go on");
        fs::remove_file(&ballast).unwrap();
        put_until(&server, &mut kv, Result::is_ok).await;
        let response = kv.range(count).await.unwrap().into_inner();
        assert!(response.count.unsigned_abs() >= written);
    });
    stop(server);
    stop(setup.start());
}

/// Takes all the space that is left.
fn take_all(path: &Path) {
    let file = fs::File::create(path).unwrap();
    let (mut at, mut piece) = (0, vec![1; 1 << 20]);
    while !piece.is_empty() {
        match file.write_at(&piece, at) {
            Ok(written) => at += written as u64,
            Err(_) => piece.truncate(piece.len() / 2),
        }
    }
}

#[test]
fn start_without_a_byte_free_serves_what_is_there_and_goes_on_when_space_returns() {
    let Some(disk) = SmallDisk::mount(48) else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let ballast = disk.path().join("ballast");
    let setup = Setup::new(FLOTILLA, &disk.path().join("data"));
    let mut server = setup.start();
    for round in 0..4 {
        let key = format!("key-{round}");
        block_on(async {
            let mut kv = kv(&server).await;
            let put = async || {
                kv.clone()
                    .put(put_request(key.clone().into(), b"value".to_vec()))
                    .await
            };
            let begun = Instant::now();
            // Space is looked for once in a while.
            while put().await.is_err() {
                assert!(begun.elapsed() < PATIENCE, "{server}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let get = pb::RangeRequest {
                key: key.into(),
                ..Default::default()
            };
            kv.range(get).await.unwrap();
        });
        if round % 2 == 0 {
            stop(server);
        } else {
            server.kill_9();
        }
        take_all(&ballast);
        server = setup.start();
        block_on(async {
            let all = pb::RangeRequest {
                key: "key-".into(),
                range_end: "key.".into(),
                serializable: true,
                ..Default::default()
            };
            let found = kv(&server).await.range(all).await.unwrap().into_inner();
            assert_eq!(found.count, round + 1, "{server}");
        });
        fs::remove_file(&ballast).unwrap();
    }
    stop(server);
}

/// A library that makes `fdatasync` fail once the file that `FAIL_SYNC` names exists, and then succeed again, as a
/// kernel does that has dropped the pages.
const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
int fdatasync(int fd) {
    const char *trigger = getenv("FAIL_SYNC");
    if (trigger && unlink(trigger) == 0) {
        errno = EIO;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
"#;

#[test]
fn failed_sync_stops_the_process_and_loses_nothing_acknowledged() {
    let (dir, mut setup) = setup();
    let (source, library) = (dir.path().join("sync.c"), dir.path().join("sync.so"));
    fs::write(&source, FAILING_SYNC).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no C compiler");
        return;
    }
    let trigger = dir.path().join("trigger");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    setup.env = vec![
        ("LD_PRELOAD".into(), text(&library)),
        ("FAIL_SYNC".into(), text(&trigger)),
    ];
    let mut server = setup.start();
    let acknowledged = block_on(async {
        let mut kv = kv(&server).await;
        let mut acknowledged = 0_u64;
        loop {
            if acknowledged == 50 {
                fs::write(&trigger, b"").unwrap();
            }
            let key = format!("key-{acknowledged:04}").into_bytes();
            if kv.put(put_request(key, b"x".to_vec())).await.is_err() {
                return acknowledged;
            }
            acknowledged += 1;
        }
    });
    assert_eq!(server.wait_exit().code(), Some(1), "{server}");
    assert!(server.log().contains("cannot sync a batch"), "{server}");
    setup.env.clear();
    let server = setup.start();
    block_on(async {
        let request = pb::RangeRequest {
            key: "key-".into(),
            range_end: "key.".into(),
            count_only: true,
            ..Default::default()
        };
        let found = kv(&server)
            .await
            .range(request)
            .await
            .unwrap()
            .into_inner()
            .count;
        // The write that was under way may be there as well.
        let found = found.unsigned_abs();
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "{found} of {acknowledged}"
        );
    });
    stop(server);
}
