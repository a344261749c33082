//! `flotilla bench` as a real process against a real server: what is counted, what is written where, and that a write
//! which is not there any more is noticed. Nothing here judges how long anything took.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod docs;
mod liar;
mod reports;
mod suite;
mod workloads;

use std::process::{Command, Output};

use flotilla_tests::process::{Server, Setup};
use serde_json::Value;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

fn with_server(run: impl FnOnce(&Server)) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    let mut server = setup.start();
    run(&server);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(FLOTILLA);
    command.arg("bench").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it, expects it to end well, and returns what it printed.
#[track_caller]
fn well(args: &[&str]) -> String {
    let output = bench(args);
    let told = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{args:?}: {told}\n{}",
        text(&output.stderr)
    );
    told
}

/// Runs one workload with a few clients, and returns its report.
#[track_caller]
fn report(kind: &str, url: &str, args: &[&str]) -> Value {
    let few = [
        kind,
        "--endpoint",
        url,
        "--clients",
        "4",
        "--conns",
        "2",
        "--key-space",
        "200",
        "--json",
        "-",
    ];
    let told = well(&[&few[..], args].concat());
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}
