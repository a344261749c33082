//! Certificates on the client and the peer address of real servers, and in the commands that call them.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use flotilla_tests::cluster::Cluster;
use flotilla_tests::pki::Authority;
use flotilla_tests::process::{PATIENCE, Server, Setup, free_port};
use kv_server::pb::authpb;
use kv_server::pb::etcdserverpb as pb;
use multiraft::tls::{ClientTls, ClientTlsOptions, KeyPairFiles, connect, open};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
const HOST: &str = "127.0.0.1";
const QUICK: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "400"];

fn flotilla(args: &[&str], more: &[String]) -> Output {
    Command::new(FLOTILLA)
        .args(args)
        .args(more)
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Ten puts, as `flotilla bench` does them.
fn put(url: &str, flags: &[String]) -> Output {
    let args = [
        "bench",
        "put",
        "--endpoint",
        url,
        "--total",
        "10",
        "--clients",
        "1",
        "--conns",
        "1",
        "--json",
        "-",
    ];
    flotilla(&args, flags)
}

#[track_caller]
fn well(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", told(output));
}

#[track_caller]
fn fails(output: &Output, text: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", told(output));
    assert!(told(output).contains(text), "{}", told(output));
}

fn flag(name: &str, file: &Path) -> [String; 2] {
    [name.to_owned(), file.to_str().unwrap().to_owned()]
}

fn pair(prefix: &str, files: &KeyPairFiles) -> Vec<String> {
    let cert = flag(&format!("--{prefix}cert-file"), &files.cert);
    let key = flag(&format!("--{prefix}key-file"), &files.key);
    [cert, key].concat()
}

fn trusting(authority: &Authority, shown: Option<&KeyPairFiles>) -> Vec<String> {
    let shown =
        shown.map(|files| [flag("--cert", &files.cert), flag("--key", &files.key)].concat());
    [
        flag("--cacert", &authority.file()).to_vec(),
        shown.unwrap_or_default(),
    ]
    .concat()
}

#[test]
fn clients_are_let_in_with_a_certificate_that_the_authority_signed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let (server, client) = (
        authority.issue("server", 1, &[HOST]),
        authority.issue("client", 2, &[]),
    );
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.is_https = true;
    setup.flags = pair("", &server);
    setup
        .flags
        .extend(flag("--trusted-ca-file", &authority.file()));
    setup.flags.push("--peer-auto-tls".to_owned());
    let running = setup.start();
    let url = running.url();

    let known = trusting(&authority, Some(&client));
    well(&put(url, &known));
    let status = flotilla(&["status", "--json", "--endpoints", url], &known);
    well(&status);
    // From the page of metrics, which is plain HTTP over TLS.
    assert!(
        told(&status).contains(env!("CARGO_PKG_VERSION")),
        "{}",
        told(&status)
    );
    let backup = dir.path().join("backup");
    let save = [
        "snapshot",
        "save",
        backup.to_str().unwrap(),
        "--endpoint",
        url,
    ];
    well(&flotilla(&save, &known));

    let ask = |flags: &[String]| flotilla(&["status", "--endpoints", url], flags);
    fails(&ask(&trusting(&authority, None)), "no endpoint answers");
    running.wait_for_line("it shows no certificate");
    let other = Authority::new(dir.path(), "other");
    fails(&ask(&trusting(&other, Some(&client))), "UnknownIssuer");

    // Without a file: whom the system trusts.
    let shown = [flag("--cert", &client.cert), flag("--key", &client.key)].concat();
    let ask_on = |system: &Path| {
        let mut command = Command::new(FLOTILLA);
        command.args(["status", "--endpoints", url]).args(&shown);
        command.env_remove("SSL_CERT_DIR");
        command.env("SSL_CERT_FILE", system).output().unwrap()
    };
    well(&ask_on(&authority.file()));
    fails(&ask_on(&other.file()), "UnknownIssuer");
    let none = dir.path().join("no authorities");
    fails(&ask_on(&none), "the system has no authorities");
    let plain = url.replace("https://", "http://");
    assert_ne!(put(&plain, &[]).status.code(), Some(0));
    running.wait_for_line("it speaks plain text, and this address takes TLS: use https://");

    // Who comes again and again does not fill the log.
    for _ in 0..20 {
        let mut socket = TcpStream::connect(url.strip_prefix("https://").unwrap()).unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut told = Vec::new();
        // It is closed, in whatever way.
        let _ = socket.read_to_end(&mut told);
    }
    well(&put(url, &known));
    let log = running.log();
    assert_eq!(log.matches("it speaks plain text").count(), 1, "{log}");

    // New certificates, without a restart.
    let replaced = other.issue("server", 3, &[HOST]);
    assert_eq!(replaced, server);
    let until = Instant::now() + PATIENCE;
    while put(url, &trusting(&other, Some(&client))).status.code() != Some(0) {
        assert!(Instant::now() < until, "{running}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn certificates_are_let_in_by_the_host_names_that_they_are_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let server = authority.issue("server", 1, &[HOST]);
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.is_https = true;
    let names = ["--client-cert-allowed-hostname", "app.example"].map(str::to_owned);
    let ca = flag("--trusted-ca-file", &authority.file());
    setup.flags = [pair("", &server), ca.to_vec(), names.to_vec()].concat();
    let running = setup.start();
    let show = |number, hosts: &[&str]| {
        let client = authority.issue("client", number, hosts);
        put(running.url(), &trusting(&authority, Some(&client)))
    };
    well(&show(2, &["app.example"]));
    well(&show(3, &["other.example", "app.example"]));
    assert!(!show(4, &["other.example"]).status.success());
    assert!(!show(5, &[]).status.success());
    running.wait_for_line("for none of the allowed hosts app.example");
}

#[test]
fn members_know_each_other_by_their_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    for (at, setup) in (1..).zip(&mut cluster.setups) {
        let name = if at == 3 { "stranger" } else { "member" };
        let files = authority.issue(name, at, &[HOST]);
        let by_name = ["--peer-cert-allowed-cn", "member"].map(str::to_owned);
        let ca = flag("--peer-trusted-ca-file", &authority.file());
        setup
            .flags
            .extend([pair("peer-", &files), ca.to_vec(), by_name.to_vec()].concat());
    }
    cluster.use_https_between();
    for member in 0..3 {
        cluster.spawn(member);
    }
    let leader = cluster.leader_among(&[0, 1]);
    cluster.client(leader).put("key", "value").unwrap();
    cluster.wait_for_equal_state_among(&[0, 1]);
    // One of a certificate with another name is refused by both, and refuses nobody: it has no leader.
    let refused = "allowed are member";
    for member in [0, 1] {
        cluster.server(member).wait_for_line(refused);
    }
    assert_eq!(cluster.client(2).status().unwrap().leader, 0);

    // It gets another one, and is let in without a restart of anybody.
    let stranger = cluster.setups[2].flags.iter();
    let cert = stranger
        .clone()
        .find(|flag| flag.ends_with("stranger.pem"))
        .unwrap();
    let key = stranger
        .clone()
        .find(|flag| flag.ends_with("stranger.key"))
        .unwrap();
    let member = authority.issue("member", 4, &[HOST]);
    std::fs::copy(&member.key, key).unwrap();
    std::fs::copy(&member.cert, cert).unwrap();
    cluster.wait_for_equal_state();
}

#[test]
fn certificates_of_their_own_making_protect_all_addresses() {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    for setup in &mut cluster.setups {
        setup
            .flags
            .extend(["--auto-tls", "--peer-auto-tls"].map(str::to_owned));
    }
    cluster.use_https_between();
    for setup in &mut cluster.setups {
        setup.is_https = true;
    }
    cluster.start_all();
    let urls = cluster.urls();
    let trusted = cluster.data_dir(1).join("fixtures/client/cert.pem");
    well(&put(&urls[1], &flag("--cacert", &trusted)));
    let other = put(&urls[0], &flag("--cacert", &trusted));
    fails(&other, "invalid peer certificate");
    let status = [
        "status",
        "--endpoints",
        &urls[0],
        "--insecure-skip-tls-verify",
    ];
    let until = Instant::now() + PATIENCE;
    loop {
        let status = flotilla(&status, &[]);
        if told(&status).contains("healthy: 3 of 3 voters answer") {
            break;
        }
        assert!(Instant::now() < until, "{}", told(&status));
    }
    // The same certificate after a restart.
    let before = std::fs::read(&trusted).unwrap();
    cluster.kill(1);
    cluster.start_all();
    assert_eq!(std::fs::read(&trusted).unwrap(), before);
    well(&put(&urls[1], &flag("--cacert", &trusted)));
}

#[test]
fn start_without_what_tls_needs_is_refused_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.is_https = true;
    setup.flags = ["--peer-auto-tls"].map(str::to_owned).to_vec();
    let ends = |server: &mut Server, code, text: &str| {
        assert_eq!(server.wait_exit().code(), Some(code), "{server}");
        server.wait_for_line(text);
    };
    let needs = "an https URL needs --cert-file and --key-file, or --auto-tls";
    ends(&mut setup.spawn(), 2, needs);
    let nowhere = KeyPairFiles {
        cert: dir.path().join("nowhere.pem"),
        key: dir.path().join("nowhere.key"),
    };
    setup.flags.extend(pair("", &nowhere));
    ends(&mut setup.spawn(), 1, "nowhere.pem");
    assert!(!setup.data_dir.exists());
}

/// When the certificate of the client address ends, as the metrics at `url` say.
fn told_end(url: &str, authority: &Authority) -> Option<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tls = ClientTls::open(ClientTlsOptions {
        ca: Some(authority.file()),
        ..ClientTlsOptions::default()
    });
    let page = runtime.block_on(async {
        let uri = url.parse().unwrap();
        let mut stream = open(&uri, Some(&tls.unwrap())).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut page = Vec::new();
        stream.read_to_end(&mut page).await.unwrap();
        String::from_utf8(page).unwrap()
    });
    let name = "flotilla_tls_certificate_expiry_timestamp_seconds{address=\"client\"} ";
    let number = page.lines().find_map(|line| line.strip_prefix(name))?;
    Some(number.parse().unwrap())
}

#[test]
fn metrics_tell_when_the_certificate_ends_also_of_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let server = authority.issue_until("server", 1, &[HOST], (2040, 1, 1));
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.is_https = true;
    setup.flags = pair("", &server);
    setup.flags.push("--peer-auto-tls".to_owned());
    let of_metrics = format!("https://{HOST}:{}", free_port());
    setup
        .flags
        .push(format!("--listen-metrics-urls={of_metrics}"));
    let running = setup.start();
    assert_eq!(told_end(&of_metrics, &authority), Some(2_208_988_800));
    // 2040-01-01 and 2041-01-01.
    assert_eq!(told_end(running.url(), &authority), Some(2_208_988_800));
    let renewed = authority.issue_until("server", 2, &[HOST], (2041, 1, 1));
    assert_eq!(renewed, server);
    let until = Instant::now() + PATIENCE;
    while told_end(running.url(), &authority) != Some(2_240_611_200) {
        assert!(Instant::now() < until, "{running}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Calls as whom a certificate names.
fn call_as<T>(
    url: &str,
    (authority, files): (&Authority, &KeyPairFiles),
    call: impl AsyncFnOnce(Channel) -> Result<T, Status>,
) -> Result<T, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tls = ClientTls::open(ClientTlsOptions {
        ca: Some(authority.file()),
        identity: Some(files.clone()),
        ..ClientTlsOptions::default()
    });
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    runtime.block_on(async {
        let channel = connect(&endpoint, Some(&tls.unwrap())).await.unwrap();
        call(channel).await
    })
}

fn write(key: &str) -> impl AsyncFnOnce(Channel) -> Result<(), Status> {
    let put = pb::PutRequest {
        key: key.as_bytes().to_vec().into(),
        ..pb::PutRequest::default()
    };
    async move |channel| KvClient::new(channel).put(put).await.map(drop)
}

#[test]
fn client_is_the_user_that_its_certificate_names_when_it_was_asked_for_that() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let server = authority.issue("server", 1, &[HOST]);
    let (root, alice) = (
        authority.issue("root", 2, &[]),
        authority.issue("alice", 3, &[]),
    );
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    setup.is_https = true;
    setup.flags = pair("", &server);
    let ca = flag("--trusted-ca-file", &authority.file());
    setup.flags.extend(ca);
    setup.flags.push("--client-cert-auth".to_owned());
    let running = setup.start();
    let (as_root, as_alice) = ((&authority, &root), (&authority, &alice));
    call_as(running.url(), as_root, async |channel| {
        let mut auth = AuthClient::new(channel);
        for name in ["root", "alice"] {
            let name = name.to_owned();
            let options = Some(authpb::UserAddOptions { no_password: true });
            auth.user_add(pb::AuthUserAddRequest {
                name,
                options,
                ..pb::AuthUserAddRequest::default()
            })
            .await?;
        }
        auth.role_add(pb::AuthRoleAddRequest {
            name: "root".to_owned(),
        })
        .await?;
        auth.user_grant_role(pb::AuthUserGrantRoleRequest {
            user: "root".to_owned(),
            role: "root".to_owned(),
        })
        .await?;
        auth.auth_enable(pb::AuthEnableRequest {}).await
    })
    .unwrap();
    call_as(running.url(), as_root, write("key")).unwrap();
    let denied = call_as(running.url(), as_alice, write("key")).unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");

    // With the authority alone certificates are asked for, and name nobody.
    drop(running);
    setup.flags.retain(|flag| flag != "--client-cert-auth");
    let running = setup.start();
    let nobody = call_as(running.url(), as_root, write("key")).unwrap_err();
    assert_eq!(nobody.message(), "etcdserver: user name is empty");
}
