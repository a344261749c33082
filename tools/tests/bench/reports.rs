//! What is written where.

use std::fs;

use super::*;

#[test]
fn reports_go_to_files_and_figures_to_standard_output() {
    with_server(|server| {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (json, hdr, html) = (path("r.json"), path("r.hlog"), path("r.html"));
        let pid = server.pid().to_string();
        let told = well(&[
            "mixed",
            "--endpoint",
            server.url(),
            "--compare",
            server.url(),
            "--rounds",
            "2",
            "--duration",
            "1500ms",
            "--warm-up",
            "100ms",
            "--clients",
            "2",
            "--conns",
            "2",
            "--key-space",
            "100",
            "--json",
            &json,
            "--hdr",
            &hdr,
            "--html",
            &html,
            "--pids",
            &pid,
            "--compare-pids",
            &pid,
        ]);
        for part in [
            "round 1 ",
            "round 2 ",
            "p99.99",
            "second over first",
            "us of CPU per request",
            "MiB resident",
            "read back 100 keys",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }

        let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
        let rounds = report["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 4);
        let sides: Vec<u64> = rounds.iter().map(|round| number(&round["side"])).collect();
        assert_eq!(sides, [0, 1, 1, 0], "they take turns");
        let ratios = report["comparison"].as_array().unwrap();
        for name in [
            "per second",
            "p50",
            "p99",
            "p99.9",
            "longest gap",
            "server CPU",
            "peak memory",
        ] {
            let found = ratios.iter().find(|ratio| ratio[0] == name);
            let ratio = &found.unwrap_or_else(|| panic!("no {name}: {told}"))[1];
            assert_eq!(ratio["rounds"].as_array().unwrap().len(), 2);
            let (low, high) = (ratio["low"].as_f64(), ratio["high"].as_f64());
            assert!(
                low.zip(high).is_none_or(|(low, high)| low <= high),
                "{ratio}"
            );
        }
        let version = report["machine"]["servers"][0][1].as_str().unwrap();
        assert!(version.starts_with('3'), "{version}");
        let points = rounds[0]["points"].as_array().unwrap();
        assert!(points.len() >= 2, "{points:?}");

        // Each second of each round, by method.
        let log = fs::read_to_string(hdr).unwrap();
        assert!(
            log.starts_with("#[Histogram log format version 1.3]\n"),
            "{log}"
        );
        let intervals: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with("Tag="))
            .collect();
        for method in ["/get,", "/put,"] {
            let of_method = intervals
                .iter()
                .filter(|line| line.contains(method))
                .count();
            assert!(of_method >= 8, "{log}");
        }
        // What HdrHistogram's tools look for: a cookie of the compressed second version.
        assert!(
            intervals.iter().all(|line| line.contains(",HISTFAAAA")),
            "{log}"
        );

        let page = fs::read_to_string(html).unwrap();
        assert_eq!(page.matches("<svg ").count(), 3, "{page}");
        assert!(page.matches("<polyline ").count() >= 4 * 3, "{page}");
        for foreign in ["<script", "<link", "src=", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign} in {page}");
        }
    });
}

#[test]
fn progress_is_told_on_standard_error_and_only_if_asked_for() {
    with_server(|server| {
        let flags = [
            "put",
            "--endpoint",
            server.url(),
            "--duration",
            "1s",
            "--warm-up",
            "0s",
            "--clients",
            "1",
            "--conns",
            "1",
        ];
        let quiet = bench(&flags);
        assert_eq!(
            text(&quiet.stderr),
            "",
            "standard error is no terminal here"
        );
        let told = bench(&[&flags[..], &["--progress"]].concat());
        assert!(
            text(&told.stderr).contains("errors 0"),
            "{}",
            text(&told.stderr)
        );
        assert!(!text(&told.stdout).contains("errors 0"));
    });
}
