//! Each workload does what it says, to the last request.

use super::*;

#[test]
fn every_workload_sends_its_requests_and_loses_none() {
    with_server(|server| {
        for (kind, flags, methods) in [
            ("put", &[][..], &[][..]),
            ("get", &[], &[]),
            ("get", &["--serializable"], &[]),
            ("range", &["--limit", "10"], &[]),
            ("range", &["--limit", "0", "--stream"], &[]),
            ("txn", &["--distribution", "zipf"], &[]),
            ("mixed", &["--read-percent", "50"], &["get", "put"]),
            ("lease", &[], &["grant", "keepalive", "revoke"]),
        ] {
            let report = report(kind, server.url(), &[flags, &["--total", "300"]].concat());
            let round = &report["rounds"][0];
            assert_eq!(number(&round["requests"]), 300, "{kind}: {round}");
            assert_eq!(round["errors"], serde_json::json!({}), "{kind}");
            assert_eq!(round["loop"], "closed");
            assert!(number(&round["bytes"]) > 0);
            for method in methods {
                let samples = &round["latency_ms_by_method"][method]["samples"];
                assert!(number(samples) > 0, "{kind}, {method}: {round}");
            }
            for checked in report["read_back"].as_array().unwrap() {
                assert_eq!(number(&checked["lost"]), 0, "{kind}: {checked}");
            }
        }
    });
}

#[test]
fn range_answers_have_the_keys_that_were_asked_for() {
    with_server(|server| {
        let bytes = |flags: &[&str]| {
            let flags = [flags, &["--total", "1", "--val-size", "1000"]].concat();
            number(&report("range", server.url(), &flags)["rounds"][0]["bytes"])
        };
        let (all, streamed) = (
            bytes(&["--limit", "0"]),
            bytes(&["--limit", "0", "--stream"]),
        );
        assert!((200_000..=220_000).contains(&all), "{all}");
        assert!((200_000..=220_000).contains(&streamed), "{streamed}");
    });
}

#[test]
fn open_loop_sends_at_its_rate_and_accounts_for_all_that_were_due() {
    with_server(|server| {
        let flags = ["--rate", "400", "--total", "300"];
        let report = report("put", server.url(), &flags);
        let round = &report["rounds"][0];
        assert_eq!(round["loop"], "open");
        assert_eq!(number(&round["rate"]), 400);
        let sent = number(&round["requests"]) + number(&round["overflow"]);
        assert_eq!(sent, 300, "{round}");
        assert!(round["send_lag_ms_p99"].is_number());
        // The due times of 300 requests at 400 a second span three quarters of a second, however fast the server is.
        assert!(round["seconds"].as_f64().unwrap() > 0.7, "{round}");
        assert_eq!(
            number(&report["read_back"][0]["acknowledged"]),
            number(&round["requests"])
        );
    });
}

#[test]
fn open_loop_with_few_requests_allowed_in_flight_counts_what_it_leaves_out() {
    // Nobody answers there, so all but those in flight are left out.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let output = bench(&[
        "put",
        "--endpoint",
        &url,
        "--rate",
        "1000",
        "--total",
        "200",
        "--max-inflight",
        "5",
        "--conns",
        "1",
        "--timeout",
        "500ms",
        "--check-keys",
        "0",
        "--json",
        "-",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    let round = &report["rounds"][0];
    let failed = number(&round["errors"]["DeadlineExceeded"]);
    assert!(failed >= 5, "{round}");
    assert_eq!(failed + number(&round["overflow"]), 200, "{round}");
    assert_eq!(number(&round["requests"]), 0);
}

#[test]
fn warm_up_is_left_out_of_the_figures_and_not_of_the_read_back() {
    with_server(|server| {
        let flags = ["--total", "50", "--warm-up", "300ms"];
        let report = report("put", server.url(), &flags);
        assert_eq!(number(&report["rounds"][0]["requests"]), 50);
        assert!(
            number(&report["read_back"][0]["acknowledged"]) > 50,
            "{report}"
        );
    });
}

#[test]
fn watchers_see_every_acknowledged_write_once() {
    with_server(|server| {
        let flags = ["--watchers", "7", "--watch-conns", "3", "--total", "100"];
        let report = report("watch", server.url(), &flags);
        let round = &report["rounds"][0];
        let events = &round["events"];
        assert_eq!(number(&events["delivered"]), 700, "{round}");
        assert_eq!(number(&events["missing"]), 0);
        assert_eq!(number(&events["latency_ms"]["samples"]), 700);
    });
}

#[test]
fn compactions_go_on_beside_the_load() {
    with_server(|server| {
        let flags = [
            "--compact-every",
            "100ms",
            "--duration",
            "1s",
            "--warm-up",
            "0s",
        ];
        let report = report("put", server.url(), &flags);
        assert_eq!(report["rounds"][0]["errors"], serde_json::json!({}));
        let client =
            flotilla_tests::cluster::Client::new(server.url(), flotilla_tests::process::PATIENCE);
        let request = kv_server::pb::etcdserverpb::RangeRequest {
            key: "bench/".into(),
            revision: 1,
            ..Default::default()
        };
        let old = client.run(async |channel| {
            let mut kv = kv_server::pb::etcdserverpb::kv_client::KvClient::new(channel);
            kv.range(request).await
        });
        let refused = old.unwrap_err();
        assert!(refused.message().contains("compacted"), "{refused}");
    });
}

#[test]
fn search_for_a_rate_prints_each_step_and_ends() {
    with_server(|server| {
        let url = server.url();
        let small = [
            "put",
            "--endpoint",
            url,
            "--find-max",
            "--clients",
            "2",
            "--conns",
            "2",
            "--duration",
            "200ms",
            "--warm-up",
            "0s",
            "--steps",
            "3",
        ];
        let told = well(&[&small[..], &["--slo", "max=1h,p99=1h"]].concat());
        let steps = told.matches("/s asked, ").count();
        assert!((1..=3).contains(&steps), "{told}");
        assert!(
            told.contains("closed loop of 2 clients") && told.contains("holds at "),
            "{told}"
        );

        let output = bench(&[&small[..], &["--slo", "p50=1us"]].concat());
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stdout);
        assert_eq!(told.matches(": does not hold").count(), 3, "{told}");
        assert!(told.contains("no rate that was tried holds"), "{told}");
    });
}

#[test]
fn flags_that_cannot_be_are_refused_with_what_to_do() {
    for (flags, expected) in [
        (&["put", "--key-size", "5"][..], "--key-size 5 is too short"),
        (
            &["watch", "--val-size", "3"],
            "--val-size must be at least 8",
        ),
        (&["put", "--find-max"], "--slo"),
        (
            &["put", "--find-max", "--slo", "p99"],
            "expected something like p99=10ms",
        ),
        (&["put", "--duration", "0s"], "must not be zero"),
        (&["put", "--prefix", ""], "--prefix must not be empty"),
        (&["suite"], "--peer"),
    ] {
        // Nobody is asked before that is known.
        let output = bench(flags);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {told}");
        assert!(told.contains(expected), "{flags:?}: {told}");
    }
}
