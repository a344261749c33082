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
use flotilla_tests::pki::Authority;
use flotilla_tests::process::{PATIENCE, READY, free_port};
use tempfile::TempDir;

/// The flags of etcd 3.5 with their defaults, in the order of its help; those of its later patches are among them.
const FLAGS: &[(&str, &str)] = &[
    // Member.
    ("name", "default"),
    ("data-dir", "default.etcd"),
    ("wal-dir", ""),
    ("snapshot-count", "100000"),
    ("heartbeat-interval", "100"),
    ("election-timeout", "1000"),
    ("initial-election-tick-advance", "true"),
    ("listen-peer-urls", "http://localhost:2380"),
    ("listen-client-urls", "http://localhost:2379"),
    ("listen-client-http-urls", ""),
    ("max-snapshots", "5"),
    ("max-wals", "5"),
    ("quota-backend-bytes", "0"),
    ("backend-bbolt-freelist-type", "map"),
    ("backend-batch-interval", ""),
    ("backend-batch-limit", "0"),
    ("max-txn-ops", "128"),
    ("max-request-bytes", "1572864"),
    ("max-concurrent-streams", "4294967295"),
    ("grpc-keepalive-min-time", "5s"),
    ("grpc-keepalive-interval", "2h"),
    ("grpc-keepalive-timeout", "20s"),
    ("socket-reuse-port", "false"),
    ("socket-reuse-address", "false"),
    // Clustering.
    ("initial-advertise-peer-urls", "http://localhost:2380"),
    ("initial-cluster", "default=http://localhost:2380"),
    ("initial-cluster-state", "new"),
    ("initial-cluster-token", "etcd-cluster"),
    ("advertise-client-urls", "http://localhost:2379"),
    ("discovery", ""),
    ("discovery-fallback", "proxy"),
    ("discovery-proxy", ""),
    ("discovery-srv", ""),
    ("discovery-srv-name", ""),
    ("strict-reconfig-check", "true"),
    ("pre-vote", "true"),
    ("auto-compaction-retention", "0"),
    ("auto-compaction-mode", "periodic"),
    ("enable-grpc-gateway", "true"),
    ("enable-v2", "false"),
    ("v2-deprecation", "not-yet"),
    // Security.
    ("cert-file", ""),
    ("key-file", ""),
    ("client-cert-file", ""),
    ("client-key-file", ""),
    ("client-cert-auth", "false"),
    ("client-crl-file", ""),
    ("client-cert-allowed-hostname", ""),
    ("trusted-ca-file", ""),
    ("auto-tls", "false"),
    ("peer-cert-file", ""),
    ("peer-key-file", ""),
    ("peer-client-cert-file", ""),
    ("peer-client-key-file", ""),
    ("peer-client-cert-auth", "false"),
    ("peer-trusted-ca-file", ""),
    ("peer-cert-allowed-cn", ""),
    ("peer-cert-allowed-hostname", ""),
    ("peer-auto-tls", "false"),
    ("self-signed-cert-validity", "1"),
    ("peer-crl-file", ""),
    ("cipher-suites", ""),
    ("tls-min-version", "TLS1.2"),
    ("tls-max-version", ""),
    ("cors", "*"),
    ("host-whitelist", "*"),
    // Users.
    ("auth-token", "simple"),
    ("bcrypt-cost", "10"),
    ("auth-token-ttl", "300"),
    // Profiling and monitoring.
    ("enable-pprof", "false"),
    ("metrics", "basic"),
    ("listen-metrics-urls", ""),
    // Logging.
    ("logger", "zap"),
    ("log-outputs", "default"),
    ("log-level", "info"),
    ("log-format", "json"),
    ("enable-log-rotation", "false"),
    (
        "log-rotation-config-json",
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
    ),
    // Tracing.
    ("experimental-enable-distributed-tracing", "false"),
    ("experimental-distributed-tracing-address", "localhost:4317"),
    ("experimental-distributed-tracing-service-name", "etcd"),
    ("experimental-distributed-tracing-instance-id", ""),
    ("experimental-distributed-tracing-sampling-rate", "0"),
    // Proxy of version 2.
    ("proxy", "off"),
    ("proxy-failure-wait", "5000"),
    ("proxy-refresh-interval", "30000"),
    ("proxy-dial-timeout", "1000"),
    ("proxy-write-timeout", "5000"),
    ("proxy-read-timeout", "0"),
    // Experimental.
    ("experimental-initial-corrupt-check", "false"),
    ("experimental-corrupt-check-time", "0s"),
    ("experimental-compact-hash-check-enabled", "false"),
    ("experimental-compact-hash-check-time", "1m"),
    ("experimental-enable-v2v3", ""),
    ("experimental-enable-lease-checkpoint", "false"),
    ("experimental-enable-lease-checkpoint-persist", "false"),
    ("experimental-compaction-batch-limit", "1000"),
    ("experimental-compaction-sleep-interval", "10ms"),
    ("experimental-peer-skip-client-san-verification", "false"),
    ("experimental-watch-progress-notify-interval", "10m"),
    ("experimental-warning-apply-duration", "100ms"),
    ("experimental-warning-unary-request-duration", "300ms"),
    ("experimental-txn-mode-write-with-shared-buffer", "true"),
    ("experimental-bootstrap-defrag-threshold-megabytes", "0"),
    ("experimental-stop-grpc-service-on-defrag", "false"),
    ("experimental-memory-mlock", "false"),
    ("experimental-max-learners", "1"),
    ("experimental-snapshot-catchup-entries", "5000"),
    ("experimental-downgrade-check-time", "5s"),
    ("experimental-wait-cluster-ready-timeout", "5s"),
    ("experimental-set-member-localaddr", "false"),
    // Unsafe.
    ("force-new-cluster", "false"),
    ("unsafe-no-fsync", "false"),
];
const PAGE: &str = include_str!("../../docs/COMPATIBILITY.md");

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

/// All flags at their defaults, but for the directory and the ports, which are a test's own; the port of the clients.
fn defaults(dir: &TempDir, at: usize) -> (Vec<(&'static str, String)>, u16) {
    let (client, peer) = (free_port(), free_port());
    let data = dir.path().join(format!("{at}.etcd"));
    let value = |name: &str, default: &str| {
        if name == "data-dir" {
            return data.display().to_string();
        }
        let default = default.replace(":2379", &format!(":{client}"));
        default.replace(":2380", &format!(":{peer}"))
    };
    let flags = FLAGS
        .iter()
        .map(|(name, default)| (*name, value(name, default)));
    (flags.collect(), client)
}

#[test]
fn all_flags_at_their_defaults_start_a_server_also_as_variables_and_in_a_file() {
    assert!(FLAGS.len() > 100);
    let dir = tempfile::tempdir().unwrap();
    for (at, way) in ["flags", "variables", "file"].into_iter().enumerate() {
        let (values, client) = defaults(&dir, at);
        let mut command = Command::new(script(&dir));
        match way {
            "flags" => {
                let flag = |(name, value)| format!("--{name}={value}");
                command.args(values.into_iter().map(flag));
            }
            "variables" => {
                let variable = |name: &str| name.to_ascii_uppercase().replace('-', "_");
                for (name, value) in values {
                    command.env(format!("ETCD_{}", variable(name)), value);
                }
            }
            _ => {
                let path = dir.path().join("flotilla.toml");
                let line = |(name, value)| format!("{name} = '{value}'\n");
                fs::write(&path, values.into_iter().map(line).collect::<String>()).unwrap();
                command.arg("--config-file").arg(path);
            }
        }
        let mut etcd = Etcd::spawn(command);
        let log = etcd.ready();
        let told: Vec<_> = log
            .lines()
            .filter(|line| line.contains("has no effect") || line.contains("but is none"))
            .collect();
        assert!(told.is_empty(), "{way}: {told:?}");
        assert!(
            page(client, "/health").contains("\"health\":\"true\""),
            "{way}"
        );
    }
}

#[test]
fn page_has_a_row_for_each_flag() {
    for (name, _) in FLAGS {
        let rows = PAGE.matches(&format!("\n| `--{name}` | ")).count();
        assert_eq!(rows, 1, "{name}");
    }
}

#[test]
fn options_without_effect_are_told_and_the_log_goes_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let mut command = Command::new(script(&dir));
    command
        .arg(format!("--data-dir={}", dir.path().join("data").display()))
        .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
        .args([
            "--max-wals=9",
            "--log-outputs=stderr",
            "--log-outputs=stdout",
        ]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains(READY) && log.read_line(&mut text).unwrap() > 0 {}
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text.contains(READY), "{text}");
    assert!(
        text.contains("max-wals") && text.contains("has no effect"),
        "{text}"
    );
}

#[test]
fn manifest_of_kubeadm_starts_a_server_whose_probes_need_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let pair = authority.issue("server", 1, &["127.0.0.1", "localhost"]);
    let (client, peer, metrics) = (free_port(), free_port(), free_port());
    let client_url = format!("https://127.0.0.1:{client}");
    let peer_url = format!("https://127.0.0.1:{peer}");
    let metrics_url = format!("http://127.0.0.1:{metrics}");
    let (cert, key) = (pair.cert.display(), pair.key.display());
    let ca = authority.file();
    let ca = ca.display();
    let mut command = Command::new(script(&dir));
    command.args([
        format!("--advertise-client-urls={client_url}"),
        format!("--cert-file={cert}"),
        "--client-cert-auth=true".to_owned(),
        format!("--data-dir={}", dir.path().join("data").display()),
        "--experimental-initial-corrupt-check=true".to_owned(),
        "--experimental-watch-progress-notify-interval=5s".to_owned(),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=control-plane={peer_url}"),
        format!("--key-file={key}"),
        format!("--listen-client-urls={client_url}"),
        format!("--listen-metrics-urls={metrics_url}"),
        format!("--listen-peer-urls={peer_url}"),
        "--name=control-plane".to_owned(),
        format!("--peer-cert-file={cert}"),
        "--peer-client-cert-auth=true".to_owned(),
        format!("--peer-key-file={key}"),
        format!("--peer-trusted-ca-file={ca}"),
        "--snapshot-count=10000".to_owned(),
        format!("--trusted-ca-file={ca}"),
    ]);
    let mut etcd = Etcd::spawn(command);
    let log = etcd.ready();
    assert!(!log.contains("are not protected"), "{log}");
    for (path, part) in [
        ("/health", "\"health\":\"true\""),
        (
            "/health?exclude=NOSPACE&serializable=true",
            "\"health\":\"true\"",
        ),
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/metrics", "etcd_server_has_leader 1"),
    ] {
        let page = page(metrics, path);
        assert!(page.starts_with("HTTP/1.1 200 "), "{path}: {page}");
        assert!(page.contains(part), "{path}: {page}");
    }
    for path in ["/v3/kv/range", "/v3/kv/put", "/"] {
        let page = page(metrics, path);
        assert!(page.starts_with("HTTP/1.1 404 "), "{path}: {page}");
    }
    let refused = Client::new(&metrics_url, PATIENCE)
        .put("k", "v")
        .unwrap_err();
    assert!(refused.to_string().contains("pages only"), "{refused}");
    let refused = Client::new(&metrics_url, PATIENCE).members().unwrap_err();
    assert!(refused.to_string().contains("pages only"), "{refused}");
}
