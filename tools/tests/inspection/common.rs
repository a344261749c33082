//! What the tests of inspection share: a server's data directory, breaking it, and what a command says about it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_tests::process::{Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub(crate) const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

pub(crate) fn setup() -> (TempDir, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    (dir, setup)
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

pub(crate) async fn kv(server: &Server) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    KvClient::new(endpoint.connect().await.unwrap())
}

/// Puts `key-0`, `key-1`, and so on, several at a time, with values of 100 or, of many, 2,000 bytes.
pub(crate) fn put_many(server: &Server, count: u64) {
    let len = if count > 1_000 { 2_000 } else { 100 };
    block_on(async {
        let kv = kv(server).await;
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..8 {
            let mut kv = kv.clone();
            tasks.spawn(async move {
                for number in (lane..count).step_by(8) {
                    let request = pb::PutRequest {
                        key: format!("key-{number}").into_bytes().into(),
                        value: vec![b'x'; len].into(),
                        ..Default::default()
                    };
                    kv.put(request).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}

/// How many keys a server has.
pub(crate) fn count(server: &Server) -> i64 {
    block_on(async {
        let request = pb::RangeRequest {
            key: "key-".into(),
            range_end: "key.".into(),
            count_only: true,
            ..Default::default()
        };
        let response = kv(server).await.range(request).await.unwrap();
        response.into_inner().count
    })
}

/// Starts a server, writes twenty keys one after the other and something long, and stops it.
pub(crate) fn written(setup: &Setup) {
    let server = setup.start();
    block_on(async {
        let mut kv = kv(&server).await;
        for number in 0..20 {
            let request = pb::PutRequest {
                key: format!("key-{number}").into_bytes().into(),
                value: vec![b'x'; 100].into(),
                ..Default::default()
            };
            kv.put(request).await.unwrap();
        }
    });
    fill(&server);
    stop(server);
}

/// Puts so much that the next start does not take the segment over into its own.
pub(crate) fn fill(server: &Server) {
    block_on(async {
        let request = pb::PutRequest {
            key: "filler".into(),
            value: vec![b'.'; 600 << 10].into(),
            ..Default::default()
        };
        kv(server).await.put(request).await.unwrap();
    });
}

pub(crate) fn stop(mut server: Server) {
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

/// Every file of a directory with its content.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

/// The segments of a log, oldest first.
pub(crate) fn segments(setup: &Setup) -> Vec<PathBuf> {
    let names = fs::read_dir(setup.data_dir.join("log")).unwrap();
    let mut paths: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    paths
}

pub(crate) fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// Where the last batch of a segment ends, as `log ls` says.
pub(crate) fn used(segment: &Path) -> u64 {
    let data_dir = segment.parent().unwrap().parent().unwrap();
    let found = inspect(&["log", "ls", "--json", data_dir.to_str().unwrap()]);
    let all = found.value["segments"].as_array().unwrap();
    let mine = all
        .iter()
        .find(|one| one["file"] == segment.to_str().unwrap());
    mine.unwrap()["used"].as_u64().unwrap()
}

/// What a command came to.
pub(crate) struct Found {
    pub(crate) code: i32,
    /// Its output, if that is JSON.
    pub(crate) value: serde_json::Value,
    pub(crate) stderr: String,
}

pub(crate) fn inspect(args: &[&str]) -> Found {
    let output = Command::new(FLOTILLA).args(args).output().unwrap();
    if args.contains(&"--json") {
        for line in String::from_utf8(output.stdout.clone()).unwrap().lines() {
            assert!(
                line.parse::<serde_json::Value>().is_ok(),
                "{args:?}: {line}"
            );
        }
    }
    Found {
        code: output.status.code().unwrap(),
        value: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
