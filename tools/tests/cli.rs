//! What somebody at a terminal, or a supervisor, sees of `flotilla`: exit codes and messages of a real process.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::fs;
use std::process::{Command, Output};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn flotilla(args: &[&str]) -> Output {
    Command::new(FLOTILLA).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn server_unknown_flag_exits_2_and_names_it() {
    let output = flotilla(&["server", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--no-such-flag"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn server_flag_of_missing_feature_exits_2_and_says_which() {
    let output = flotilla(&["server", "--discovery", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("finding members by discovery"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn server_version_is_printed_as_etcd_prints_it() {
    for flag in ["--version", "-version"] {
        let output = flotilla(&["server", flag]);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<_> = text
            .lines()
            .map(|line| line.split_once(": ").unwrap().0)
            .collect();
        assert!(text.starts_with("etcd Version: 3.6."), "{text}");
        assert_eq!(
            names,
            [
                "etcd Version",
                "Git SHA",
                "Go Version",
                "Go OS/Arch",
                "Flotilla Version"
            ]
        );
    }
}

#[test]
fn server_unknown_key_in_file_exits_2_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flotilla.toml");
    fs::write(&path, "name = \"a\"\nno-such-key = 1\n").unwrap();
    let output = flotilla(&["server", "--config-file", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("flotilla.toml:2: unknown key"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn config_show_origin_says_which_layer_set_a_value() {
    let output = Command::new(FLOTILLA)
        .args(["config", "show", "--origin", "--changed", "--name", "m1"])
        .env("FLOTILLA_MAX_TXN_OPS", "9")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        shown,
        "name = \"m1\" # flag\nmax-txn-ops = \"9\" # environment, FLOTILLA_MAX_TXN_OPS\n"
    );
}

#[test]
fn bench_without_a_server_exits_1_and_says_where_it_looked() {
    let port = flotilla_tests::process::free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let output = flotilla(&["bench", "put", "--endpoint", &endpoint, "--total", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&endpoint), "{}", stderr(&output));
}

#[test]
fn help_says_what_each_command_is_for() {
    let output = flotilla(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for wanted in [
        "Look at the log of",
        "Back up and restore, and look at the snapshots of",
        "Measure an etcd",
    ] {
        assert!(text.contains(wanted), "{text}");
    }
}
