//! Signed tokens, and our own clients as users.

use std::path::Path;
use std::process::Command;

use flotilla_tests::cluster::Client;
use flotilla_tests::process::{PATIENCE, Setup};
use tonic::Code;

use super::{FLOTILLA, enable, get, log_in, put, refused};

fn key(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kv-server/testdata/jwt");
    dir.join(name).display().to_string()
}

fn flotilla(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(FLOTILLA);
    let output = command
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn signed_token_outlives_a_restart_and_our_clients_log_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    let jwt = format!("jwt,sign-method=RS256,priv-key={}", key("rsa.pem"));
    setup.flags = ["--bcrypt-cost", "4", "--auth-token", &jwt]
        .map(str::to_owned)
        .into();
    let server = setup.start();
    let client = Client::new(&setup.url(), PATIENCE);
    enable(&client);
    let alice = log_in(&client, "alice", "secret").unwrap();
    assert_eq!(alice.split('.').count(), 3, "{alice}");
    put(&client, &alice, "b").unwrap();
    refused(
        put(&client, &alice, "d"),
        Code::PermissionDenied,
        "permission denied",
    );
    server.kill_9();
    let server = setup.start();
    let client = Client::new(&setup.url(), PATIENCE);
    put(&client, &alice, "b").unwrap();
    let forged = format!("{alice}x");
    refused(
        get(&client, &forged, "b", true),
        Code::Unauthenticated,
        "invalid auth token",
    );

    let url = setup.url();
    let file = dir.path().join("backup");
    let file = file.to_str().unwrap();
    let nobody: &[(&str, &str)] = &[];
    let root = [("FLOTILLA_USER", "root"), ("FLOTILLA_PASSWORD", "top")];
    let as_root = ["--user", "root:top"];
    let status = ["status", "--endpoints", &url];
    let save = ["snapshot", "save", file, "--endpoint", &url];
    let bench = [
        "bench",
        "put",
        "--endpoint",
        &url,
        "--total",
        "20",
        "--clients",
        "2",
        "--conns",
        "2",
    ];
    for args in [&status[..], &save, &bench] {
        let (code, text) = flotilla(args, nobody);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        let (code, text) = flotilla(&[args, &as_root].concat(), nobody);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        let (code, text) = flotilla(args, &root);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        let wrong = [args, &["--user", "root:bottom"]].concat();
        let (code, text) = flotilla(&wrong, nobody);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        assert!(text.contains("authentication failed"), "{text}");
    }
    let (code, text) = flotilla(&[&save[..], &["--user", "alice:secret"]].concat(), nobody);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("etcdserver: permission denied"), "{text}");
    server.kill_9();

    let dir = dir.path().join("data");
    let (code, text) = flotilla(&["log", "show", dir.to_str().unwrap()], nobody);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("add user \"alice\"") && text.contains("enable authentication"),
        "{text}"
    );
    assert!(!text.contains("secret") && !text.contains("$2b$"), "{text}");
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    let public = format!("jwt,sign-method=RS256,priv-key={}", key("rsa.pub.pem"));
    for (flag, value, expected) in [
        ("--auth-token", "paseto", "expected `simple` or `jwt,...`"),
        ("--auth-token", "jwt,sign-method=RS256", "both missing"),
        (
            "--auth-token",
            "jwt,sign-method=RS256,priv-key=/nowhere",
            "reading /nowhere",
        ),
        ("--auth-token", &public, "priv-key"),
        ("--bcrypt-cost", "3", "a number from 4 to 31"),
        ("--bcrypt-cost", "32", "a number from 4 to 31"),
        ("--auth-token-ttl", "0", "a number from 1"),
    ] {
        let (code, text) = flotilla(
            &["server", "--data-dir", dir.to_str().unwrap(), flag, value],
            &[],
        );
        assert_eq!(code, Some(2), "{flag} {value}: {text}");
        assert!(text.contains(expected), "{flag} {value}: {text}");
        assert!(!dir.exists());
    }
}
