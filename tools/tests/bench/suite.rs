//! The suite against two small servers: every row is there.

use super::*;

#[test]
fn suite_of_two_servers_prints_every_row_with_ratios() {
    with_server(|peer| {
        with_server(|ours| {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("table.md").display().to_string();
            let (peer_pid, pid) = (peer.pid().to_string(), ours.pid().to_string());
            let told = well(&[
                "suite",
                "--peer",
                peer.url(),
                "--endpoint",
                ours.url(),
                "--peer-pids",
                &peer_pid,
                "--pids",
                &pid,
                "--rounds",
                "2",
                "--duration",
                "200ms",
                "--warm-up",
                "100ms",
                "--conns",
                "2",
                "--key-space",
                "200",
                "--list-keys",
                "300",
                "--lists",
                "2",
                "--watchers",
                "10",
                "--watched-puts",
                "20",
                "--gap-duration",
                "500ms",
                "--compact-every",
                "200ms",
                "--out",
                &out,
                "--sync-dir",
                &dir.path().display().to_string(),
            ]);
            for part in [
                "a sync of 512 bytes: p50 ",
                "API version 3",
                "| put, 1 client, p50 |",
                "| put, 64 clients |",
                "| server CPU per put, 64 clients |",
                "| put, 256 clients |",
                "| get, linearizable, 64 clients |",
                "| txn, 64 clients |",
                "| range of 100 keys, 16 clients |",
                "| put at ",
                "/s, p99 |",
                "/s, p99.9 |",
                "| txn at ",
                "| range at ",
                "| peak memory since the servers' start |",
                "| list of 300 keys of 1 KiB in one answer, p50 |",
                "| the same by RangeStream, p50 ",
                "| memory above idle meanwhile |",
                "| events to 10 watchers of one prefix |",
                "| longest gap between two acknowledgements in 500ms of puts at ",
            ] {
                assert!(told.contains(part), "{part}: {told}");
            }
            let rows: Vec<&str> = told.lines().filter(|line| line.starts_with('|')).collect();
            assert_eq!(rows.len(), 2 + 19, "{told}");
            for row in &rows {
                assert_eq!(
                    row.matches(" | ").count(),
                    if row.contains("---") { 0 } else { 5 }
                );
            }
            assert_eq!(std::fs::read_to_string(out).unwrap(), told);
        });
    });
}

#[test]
fn suite_measures_the_rows_that_are_named_and_says_what_it_leaves_out() {
    with_server(|server| {
        let url = server.url();
        let told = well(&[
            "suite",
            "--peer",
            url,
            "--endpoint",
            url,
            "--rows",
            "put64,memory",
            "--rounds",
            "1",
            "--duration",
            "200ms",
            "--warm-up",
            "0s",
            "--conns",
            "2",
            "--key-space",
            "200",
        ]);
        assert_eq!(
            told.lines().filter(|line| line.starts_with('|')).count(),
            3,
            "{told}"
        );
        assert!(
            told.contains("- Left out: server CPU per put, which needs --pids"),
            "{told}"
        );
        assert!(
            told.contains("- Left out: peak memory, which needs --pids"),
            "{told}"
        );
    });
}
