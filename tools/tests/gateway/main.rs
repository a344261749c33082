//! The JSON gateway of a real server, asked by HTTP/1.1 written by hand: each path, errors, streams.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod errors;
mod http;
mod paths;
mod streams;

use flotilla_tests::process::{Server, Setup};

fn with_server(flags: &[&str], run: impl FnOnce(&Server)) {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    setup.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mut server = setup.start();
    run(&server);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}
