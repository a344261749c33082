//! Streams through the gateway: objects in, lines out, over one connection that stays open.

use flotilla_tests::process::{PATIENCE, Server};
use serde_json::{Value, json};
use std::time::Instant;

use super::http::{Exchange, ask, post};
use super::with_server;

const CHUNKED: &str = "Transfer-Encoding: chunked";

fn watch_streams(server: &Server) -> u64 {
    let (_, page) = ask(server, "GET", "/metrics", "");
    let name = "etcd_debugging_mvcc_watch_stream_total ";
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the metric is there").parse().unwrap()
}

fn put(server: &Server, key: &str, value: &str) -> Value {
    let request = json!({"key": key, "value": value}).to_string();
    post(server, "/v3/kv/put", &request).1["header"]["revision"].clone()
}

#[test]
fn watch_takes_requests_while_it_sends_events_and_ends_with_its_client() {
    with_server(&[], |server| {
        let mut watch = Exchange::begin(server, "POST", "/v3/watch", &[CHUNKED]);
        // In two pieces, and with two requests in one.
        watch.send(r#"{"create_request": {"key": "YQ==", "pre"#);
        watch.send(r#"v_kv": true}}{"createRequest": {"key": "Yg==", "filters": ["NOPUT"], "watch_id": "5"}}"#);
        watch.head();
        assert_eq!(watch.status, 200);
        assert_eq!(watch.header("content-type"), Some("application/json"));
        let created = watch.line().unwrap();
        assert_eq!(created["result"]["created"], true, "{created}");
        assert_eq!(created["result"]["header"]["revision"], "1", "{created}");
        assert_eq!(
            created["result"].get("watch_id"),
            None,
            "0 is left out: {created}"
        );
        assert_eq!(watch.line().unwrap()["result"]["watch_id"], "5");
        assert_eq!(watch_streams(server), 1);

        put(server, "YQ==", "MQ==");
        put(server, "YQ==", "Mg==");
        let first = watch.line().unwrap();
        let kv = json!({"key": "YQ==", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "MQ=="});
        // PUT is the default, so it has no type.
        assert_eq!(first["result"]["events"], json!([{"kv": kv}]));
        let second = watch.line().unwrap();
        assert_eq!(second["result"]["events"][0]["prev_kv"], kv, "{second}");
        post(server, "/v3/kv/deleterange", r#"{"key": "YQ=="}"#);
        let third = watch.line().unwrap();
        let event = &third["result"]["events"][0];
        assert_eq!(event["type"], "DELETE");
        assert_eq!(event["kv"], json!({"key": "YQ==", "mod_revision": "4"}));

        watch.send(r#"{"progress_request": {}}"#);
        let progress = watch.line().unwrap();
        assert_eq!(progress["result"]["header"]["revision"], "4", "{progress}");
        assert_eq!(progress["result"]["watch_id"], "-1");
        watch.send(r#"{"cancel_request": {"watch_id": "5"}}"#);
        let canceled = watch.line().unwrap();
        assert_eq!(canceled["result"]["canceled"], true, "{canceled}");
        // What is no request ends the stream, and the last line says why.
        watch.send("nonsense");
        let last = watch.line().unwrap();
        assert_eq!(last["error"]["code"], 3, "{last}");
        assert_eq!(watch.line(), None);

        // A body that is all there: the watch goes on, until its client is gone.
        let mut watch = Exchange::begin(server, "POST", "/v3/watch", &[CHUNKED]);
        watch.send(
            r#"{"create_request": {"key": "AA==", "range_end": "AA==", "start_revision": "2"}}"#,
        );
        watch.send("");
        watch.head();
        assert_eq!(watch.line().unwrap()["result"]["created"], true);
        let events = watch.line().unwrap();
        assert_eq!(
            events["result"]["events"].as_array().unwrap().len(),
            3,
            "{events}"
        );
        put(server, "Yg==", "MQ==");
        assert_eq!(
            watch.line().unwrap()["result"]["events"][0]["kv"]["key"],
            "Yg=="
        );
        assert_eq!(watch_streams(server), 1);
        drop(watch);
        let deadline = Instant::now() + PATIENCE;
        while watch_streams(server) > 0 {
            assert!(Instant::now() < deadline, "the watch outlives its client");
        }
    });
}

#[test]
fn watch_that_is_refused_says_so_in_a_line() {
    with_server(&[], |server| {
        let refused = r#"{"create_request": {"key": "Yg==", "range_end": "YQ=="}}"#;
        let mut watch = Exchange::begin(server, "POST", "/v3/watch", &[CHUNKED]);
        watch.send(refused);
        watch.head();
        let line = watch.line().unwrap();
        let result = &line["result"];
        assert_eq!(
            (&result["created"], &result["canceled"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(result["watch_id"], "-1");
        assert_eq!(result["cancel_reason"], "mvcc: watcher range is empty");

        for revision in 2..5 {
            put(server, "YQ==", "MQ==");
            assert!(revision < 5);
        }
        assert_eq!(
            post(server, "/v3/kv/compaction", r#"{"revision": 4}"#).0,
            200
        );
        watch.send(r#"{"create_request": {"key": "YQ==", "start_revision": 2}}"#);
        assert_eq!(watch.line().unwrap()["result"]["created"], true);
        let compacted = watch.line().unwrap();
        assert_eq!(compacted["result"]["compact_revision"], "4", "{compacted}");
        assert_eq!(compacted["result"]["canceled"], true);
    });
}

#[test]
fn keepalives_are_answered_one_by_one() {
    with_server(&[], |server| {
        assert_eq!(
            post(server, "/v3/lease/grant", r#"{"TTL": 600, "ID": 7}"#).0,
            200
        );
        let (status, text) = ask(
            server,
            "POST",
            "/v3/lease/keepalive",
            "{\"ID\": 7}\n{\"ID\": \"8\"} {\"ID\": 7}",
        );
        assert_eq!(status, 200);
        let ttls: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["result"]["TTL"].clone())
            .collect();
        assert_eq!(ttls, [json!("600"), Value::Null, json!("600")], "{text}");

        let mut alive = Exchange::begin(server, "POST", "/v3/lease/keepalive", &[CHUNKED]);
        alive.send(r#"{"ID": 7}"#);
        alive.head();
        assert_eq!(alive.line().unwrap()["result"]["TTL"], "600");
        alive.send(r#"{"ID": 7}"#);
        assert_eq!(alive.line().unwrap()["result"]["TTL"], "600");
        alive.send("");
        assert_eq!(alive.line(), None);
    });
}

#[test]
fn observers_see_each_leader() {
    with_server(&[], |server| {
        assert_eq!(
            post(server, "/v3/lease/grant", r#"{"TTL": 600, "ID": 7}"#).0,
            200
        );
        let campaign = r#"{"name": "Yg==", "lease": 7, "value": "MQ=="}"#;
        let (_, elected) = post(server, "/v3/election/campaign", campaign);
        let body = r#"{"name": "Yg=="}"#;
        let length = format!("Content-Length: {}", body.len());
        let mut seen = Exchange::begin(server, "POST", "/v3/election/observe", &[&length]);
        seen.raw(body);
        seen.head();
        assert_eq!(seen.line().unwrap()["result"]["kv"]["value"], "MQ==");
        let again = json!({"leader": elected["leader"], "value": "Mg=="}).to_string();
        assert_eq!(post(server, "/v3/election/proclaim", &again).0, 200);
        assert_eq!(seen.line().unwrap()["result"]["kv"]["value"], "Mg==");
    });
}

#[test]
fn a_slow_reader_holds_back_its_stream_and_nobody_else() {
    with_server(&[], |server| {
        let mut watch = Exchange::begin(server, "POST", "/v3/watch", &[CHUNKED]);
        watch.send(r#"{"create_request": {"key": "YQ=="}}"#);
        watch.head();
        assert_eq!(watch.line().unwrap()["result"]["created"], true);
        // More than sockets, windows and the ring of events take.
        let value = "AAAA".repeat(1 << 18);
        let mut last = Value::Null;
        for _ in 0..40 {
            last = put(server, "YQ==", &value);
        }
        let mut events = 0;
        while events < 40 {
            let line = watch.line().unwrap();
            let some = line["result"]["events"].as_array().unwrap();
            events += some.len();
            let newest = &some.last().unwrap()["kv"]["mod_revision"];
            assert!(events < 40 || *newest == last, "{newest}");
        }
    });
}
