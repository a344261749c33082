//! In the place of etcd: under its name, with its flags and its variables, for whoever waits for its line and asks its
//! pages.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use flotilla_tests::cluster::Client;
use flotilla_tests::process::{PATIENCE, READY, free_port};
use tempfile::TempDir;

/// A process that is killed at the end.
struct Etcd {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Both fail only when it is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// What it logs up to the line for which supervisors wait.
    fn ready(&mut self) -> String {
        let mut text = String::new();
        while !text.contains(READY) {
            let read = self.log.read_line(&mut text).unwrap();
            assert!(read > 0, "it ended before it was ready:\n{text}");
        }
        text
    }
}

/// A script under the name of etcd, as docs/OPERATIONS.md has it.
fn script(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("etcd");
    let text = format!(
        "#!/bin/sh\nexec {} server \"$@\"\n",
        env!("CARGO_BIN_EXE_flotilla")
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The status line and the body of a page.
fn page(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn variables_of_etcd_start_a_server_and_ours_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let client_url = format!("http://127.0.0.1:{client}");
    let peer_url = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new(script(&dir));
    command
        .env("ETCD_NAME", "infra0")
        .env("ETCD_DATA_DIR", dir.path().join("data"))
        .env("ETCD_LISTEN_CLIENT_URLS", &client_url)
        .env("ETCD_ADVERTISE_CLIENT_URLS", &client_url)
        .env("ETCD_LISTEN_PEER_URLS", &peer_url)
        .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer_url)
        .env("ETCD_INITIAL_CLUSTER", format!("infra0={peer_url}"))
        .env("ETCD_INITIAL_CLUSTER_STATE", "new")
        .env("ETCD_INITIAL_CLUSTER_TOKEN", "token")
        .env("ETCD_AUTO_COMPACTION_RETENTION", "1h")
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        // What is wrong in it is not seen, because ours and the flag win.
        .env("ETCD_HEARTBEAT_INTERVAL", "soon")
        .env("FLOTILLA_HEARTBEAT_INTERVAL", "50")
        .env("ETCD_ELECTION_TIMEOUT", "later")
        .args(["--election-timeout", "500"]);
    let mut etcd = Etcd::spawn(command);
    let log = etcd.ready();
    assert!(
        log.contains("ETCD_UNSUPPORTED_ARCH"),
        "it is told that nothing reads it:\n{log}"
    );
    let members = Client::new(&client_url, PATIENCE).members().unwrap();
    let member = &members[0];
    assert_eq!((members.len(), member.name.as_str()), (1, "infra0"));
    assert_eq!(member.client_ur_ls, [client_url]);
    assert_eq!(member.peer_ur_ls, [peer_url]);
    let health = page(client, "/health");
    assert!(
        health.starts_with("HTTP/1.1 200 ") && health.contains("\"health\":\"true\""),
        "{health}"
    );
    assert!(page(client, "/version").contains("\"etcdserver\":\"3."));
    assert!(dir.path().join("data").is_dir());
}

#[test]
fn flags_of_etcd_in_both_spellings_start_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let client_url = format!("http://127.0.0.1:{client}");
    let peer_url = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new(script(&dir));
    command
        .arg(format!("--data-dir={}", dir.path().join("data").display()))
        .args([
            "--name",
            "infra0",
            "--initial-cluster-state=new",
            "--pre-vote",
            "--strict-reconfig-check=true",
        ])
        .arg(format!("--listen-client-urls={client_url}"))
        .args(["--advertise-client-urls", &client_url])
        .arg(format!("--listen-peer-urls={peer_url}"))
        .args(["--initial-advertise-peer-urls", &peer_url])
        .arg(format!("--initial-cluster=infra0={peer_url}"))
        .args([
            "--initial-cluster-token",
            "token",
            "--snapshot-count",
            "100000",
        ])
        .args([
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=1000",
        ])
        .args([
            "--quota-backend-bytes=8589934592",
            "--max-txn-ops=256",
            "--max-request-bytes=2097152",
        ])
        .args([
            "--logger=zap",
            "--log-outputs=stderr",
            "--log-level=info",
            "--metrics=basic",
        ]);
    let mut etcd = Etcd::spawn(command);
    etcd.ready();
    let member = Client::new(&client_url, PATIENCE);
    assert_eq!(member.put("k", "v").unwrap(), None);
    assert_eq!(member.members().unwrap()[0].name, "infra0");
}
