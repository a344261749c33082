//! Each path with a request and the JSON that etcd answers: names, which fields are left out, what is text.

use serde_json::{Value, json};

use super::http::{ask, post};
use super::with_server;

/// Puts the revision in the place of a header, whose ids are the server's own.
fn without_ids(mut answer: Value) -> Value {
    let Some(header) = answer.get_mut("header") else {
        return answer;
    };
    let fields = header.as_object_mut().unwrap();
    for id in ["cluster_id", "member_id", "raft_term"] {
        let id = fields.remove(id).unwrap_or_else(|| panic!("no {id}"));
        let text = id.as_str().expect("64-bit numbers are text");
        assert!(text.parse::<u64>().unwrap() > 0);
    }
    let revision = fields.remove("revision").unwrap_or_default();
    assert!(fields.is_empty(), "{fields:?}");
    *header = revision;
    answer
}

/// Asks in order, and compares. `"..."` in what is expected stands for whatever is there.
fn assert_steps(server: &flotilla_tests::process::Server, steps: &[(&str, Value, Value)]) {
    for (path, request, expected) in steps {
        let (status, answer) = post(server, path, &request.to_string());
        assert_eq!(status, 200, "{path} {request}: {answer}");
        let answer = without_ids(answer);
        assert!(
            matches(expected, &answer),
            "{path} {request}\nexpected {expected}\nfound    {answer}"
        );
    }
}

fn matches(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(any), _) if any == "..." => true,
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(name, expected)| {
                    found
                        .get(name)
                        .is_some_and(|found| matches(expected, found))
                })
        }
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected
                    .iter()
                    .zip(found)
                    .all(|(expected, found)| matches(expected, found))
        }
        (expected, found) => expected == found,
    }
}

// Base64 of what its name says.
const FOO: &str = "Zm9v";
const BAR: &str = "YmFy";
const BAZ: &str = "YmF6";
const ZERO: &str = "AA==";

#[test]
fn keys_are_written_read_and_deleted() {
    with_server(&[], |server| {
        let kv = json!({"key": FOO, "create_revision": "2", "mod_revision": "3", "version": "2", "value": BAZ});
        let old = json!({"key": FOO, "create_revision": "2", "mod_revision": "2", "version": "1", "value": BAR});
        let bare = json!({"key": FOO, "create_revision": "2", "mod_revision": "3", "version": "2"});
        let found = json!({"header": "3", "kvs": [kv], "count": "1"});
        assert_steps(
            server,
            &[
                (
                    "/v3/kv/put",
                    json!({"key": FOO, "value": BAR}),
                    json!({"header": "2"}),
                ),
                (
                    "/v3/kv/put",
                    json!({"key": FOO, "value": BAZ, "prev_kv": true, "nobody knows": [{"this": 1}]}),
                    json!({"header": "3", "prev_kv": old}),
                ),
                ("/v3/kv/range", json!({"key": FOO}), found.clone()),
                // Either form of names, numbers and enums; a null is nothing.
                (
                    "/v3/kv/range",
                    json!({"key": ZERO, "rangeEnd": ZERO, "limit": 5, "sortOrder": 2, "revision": null}),
                    found.clone(),
                ),
                (
                    "/v3/kv/range",
                    json!({"key": ZERO, "range_end": ZERO, "limit": "5", "sort_order": "DESCEND", "sort_target": "MOD"}),
                    found,
                ),
                (
                    "/v3/kv/range",
                    json!({"key": FOO, "revision": "2"}),
                    json!({"header": "3", "kvs": [old], "count": "1"}),
                ),
                (
                    "/v3/kv/range",
                    json!({"key": FOO, "keys_only": true}),
                    json!({"header": "3", "kvs": [bare], "count": "1"}),
                ),
                (
                    "/v3/kv/range",
                    json!({"key": FOO, "count_only": true}),
                    json!({"header": "3", "count": "1"}),
                ),
                ("/v3/kv/range", json!({"key": BAR}), json!({"header": "3"})),
                (
                    "/v3/kv/deleterange",
                    json!({"key": FOO, "prev_kv": true}),
                    json!({"header": "4", "deleted": "1", "prev_kvs": [kv]}),
                ),
                (
                    "/v3/kv/deleterange",
                    json!({"key": FOO}),
                    json!({"header": "4"}),
                ),
                (
                    "/v3/kv/compaction",
                    json!({"revision": "3", "physical": true}),
                    json!({"header": "4"}),
                ),
            ],
        );
        // URL-safe, and without padding.
        let (status, answer) = post(server, "/v3/kv/put", r#"{"key": "-_8", "value": "YQ"}"#);
        assert_eq!(status, 200, "{answer}");
        let (_, answer) = post(server, "/v3/kv/range", r#"{"key": "+/8="}"#);
        assert_eq!(answer["kvs"][0]["key"], "+/8=");
        assert_eq!(answer["kvs"][0]["value"], "YQ==");
    });
}

#[test]
fn transactions_have_one_answer_for_each_operation() {
    with_server(&[], |server| {
        let missing = json!({"target": "VERSION", "result": "EQUAL", "key": FOO, "version": "0"});
        let put = json!({"request_put": {"key": FOO, "value": BAR}});
        let range = json!({"requestRange": {"key": FOO}});
        let delete = json!({"request_delete_range": {"key": BAZ}});
        let nested = json!({"request_txn": {"failure": [range], "compare": [missing]}});
        let kv = json!({"key": FOO, "create_revision": "2", "mod_revision": "2", "version": "1", "value": BAR});
        let read =
            json!({"response_range": {"header": {"revision": "2"}, "kvs": [kv], "count": "1"}});
        let value = json!({"target": 3, "result": "NOT_EQUAL", "key": FOO, "value": BAR});
        assert_steps(
            server,
            &[
                (
                    "/v3/kv/txn",
                    json!({"compare": [missing], "success": [put, range, delete]}),
                    json!({"header": "2", "succeeded": true, "responses": [
                        {"response_put": {"header": {"revision": "2"}}},
                        read,
                        {"response_delete_range": {"header": {"revision": "2"}}},
                    ]}),
                ),
                (
                    "/v3/kv/txn",
                    json!({"compare": [value], "success": [put], "failure": [range]}),
                    json!({"header": "2", "responses": [read]}),
                ),
                (
                    "/v3/kv/txn",
                    json!({"success": [nested]}),
                    json!({"header": "2", "succeeded": true, "responses": [
                        {"response_txn": {"header": "...", "responses": [read]}},
                    ]}),
                ),
                (
                    "/v3/kv/txn",
                    json!({}),
                    json!({"header": "2", "succeeded": true}),
                ),
            ],
        );
    });
}

#[test]
fn leases_are_granted_looked_at_and_revoked_under_both_paths() {
    with_server(&[], |server| {
        let kept = json!({"result": {"header": "...", "ID": "7", "TTL": "600"}});
        let left =
            json!({"header": "2", "ID": "7", "TTL": "...", "grantedTTL": "600", "keys": [FOO]});
        let gone = json!({"header": "3", "ID": "7", "TTL": "-1"});
        assert_steps(
            server,
            &[
                (
                    "/v3/lease/grant",
                    json!({"TTL": 600, "ID": "7"}),
                    json!({"header": "1", "ID": "7", "TTL": "600"}),
                ),
                (
                    "/v3/lease/grant",
                    json!({"TTL": "600", "ID": 8}),
                    json!({"header": "1", "ID": "8", "TTL": "600"}),
                ),
                (
                    "/v3/kv/put",
                    json!({"key": FOO, "lease": "7"}),
                    json!({"header": "2"}),
                ),
                (
                    "/v3/kv/range",
                    json!({"key": FOO}),
                    json!({"header": "2", "count": "1", "kvs": [
                        {"key": FOO, "create_revision": "2", "mod_revision": "2", "version": "1", "lease": "7"},
                    ]}),
                ),
                ("/v3/lease/keepalive", json!({"ID": "7"}), kept),
                (
                    "/v3/lease/keepalive",
                    json!({"ID": "9"}),
                    json!({"result": {"header": "...", "ID": "9"}}),
                ),
                (
                    "/v3/lease/timetolive",
                    json!({"ID": "7", "keys": true}),
                    left.clone(),
                ),
                (
                    "/v3/kv/lease/timetolive",
                    json!({"ID": "7", "keys": true}),
                    left,
                ),
                (
                    "/v3/lease/leases",
                    json!({}),
                    json!({"header": "2", "leases": [{"ID": "7"}, {"ID": "8"}]}),
                ),
                (
                    "/v3/kv/lease/leases",
                    json!({}),
                    json!({"header": "2", "leases": [{"ID": "7"}, {"ID": "8"}]}),
                ),
                (
                    "/v3/kv/lease/revoke",
                    json!({"ID": "8"}),
                    json!({"header": "2"}),
                ),
                (
                    "/v3/lease/revoke",
                    json!({"ID": "7"}),
                    json!({"header": "3"}),
                ),
                ("/v3/lease/timetolive", json!({"ID": "7"}), gone),
            ],
        );
        let (_, granted) = post(server, "/v3/lease/grant", r#"{"TTL": "600"}"#);
        let drawn = granted["ID"].as_str().unwrap();
        assert!(drawn.parse::<i64>().unwrap() > 0, "{granted}");
    });
}

#[test]
fn members_come_and_go() {
    with_server(&[], |server| {
        let own =
            json!({"ID": "...", "name": "default", "peerURLs": ["..."], "clientURLs": ["..."]});
        let list = json!({"header": null, "members": [own]});
        assert_steps(
            server,
            &[
                ("/v3/cluster/member/list", json!({}), list.clone()),
                (
                    "/v3/cluster/member/list",
                    json!({"linearizable": true}),
                    list.clone(),
                ),
            ],
        );
        let url = json!({"peerURLs": ["http://127.0.0.1:1"], "isLearner": true});
        let (status, added) = post(server, "/v3/cluster/member/add", &url.to_string());
        assert_eq!(status, 200, "{added}");
        let added = without_ids(added);
        let new = json!({"ID": "...", "peerURLs": ["http://127.0.0.1:1"], "isLearner": true});
        assert!(matches(&new, &added["member"]), "{added}");
        assert_eq!(added["members"].as_array().unwrap().len(), 2, "{added}");
        let id = &added["member"]["ID"];
        let moved = json!({"ID": id, "peerURLs": ["http://127.0.0.1:2"]});
        let (status, updated) = post(server, "/v3/cluster/member/update", &moved.to_string());
        assert_eq!(status, 200, "{updated}");
        let urls = updated["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| &member["peerURLs"]);
        assert!(
            urls.into_iter()
                .any(|urls| *urls == json!(["http://127.0.0.1:2"])),
            "{updated}"
        );
        let (status, refused) = post(
            server,
            "/v3/cluster/member/promote",
            &json!({"ID": id}).to_string(),
        );
        let message = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(
            (status, &refused["message"]),
            (400, &json!(message)),
            "{refused}"
        );
        assert_steps(
            server,
            &[("/v3/cluster/member/remove", json!({"ID": id}), list)],
        );
    });
}

#[test]
fn maintenance_is_asked_and_a_backup_comes_in_lines() {
    with_server(&[], |server| {
        // A keyspace without a key takes no bytes, and JSON leaves zeros out.
        let (status, answer) = post(server, "/v3/kv/put", r#"{"key": "YQ==", "value": "Yg=="}"#);
        assert_eq!(status, 200, "{answer}");
        let (_, status) = post(server, "/v3/maintenance/status", "{}");
        let id = status["header"]["member_id"].clone();
        let expected = json!({
            "header": "2", "version": "...", "dbSize": "...", "leader": id, "raftIndex": "...", "raftTerm": "...",
            "raftAppliedIndex": "...", "dbSizeInUse": "...", "storageVersion": "...", "downgradeInfo": {},
        });
        let raise = json!({"action": "ACTIVATE", "memberID": id, "alarm": "NOSPACE"});
        let clear = json!({"action": 2, "memberID": id, "alarm": 1});
        let alarms = json!({"header": "2", "alarms": [{"memberID": id, "alarm": "NOSPACE"}]});
        assert_steps(
            server,
            &[
                ("/v3/maintenance/status", json!({}), expected),
                ("/v3/maintenance/alarm", json!({}), json!({"header": "2"})),
                ("/v3/maintenance/alarm", raise, alarms.clone()),
                (
                    "/v3/maintenance/alarm",
                    json!({"action": "GET"}),
                    alarms.clone(),
                ),
                ("/v3/maintenance/alarm", clear, alarms),
                (
                    "/v3/maintenance/defragment",
                    json!({}),
                    json!({"header": "2"}),
                ),
                (
                    "/v3/maintenance/hash",
                    json!({}),
                    json!({"header": "2", "hash": "..."}),
                ),
                (
                    "/v3/maintenance/hashkv",
                    json!({"revision": 1}),
                    json!({"header": "2", "compact_revision": "-1", "hash_revision": "1"}),
                ),
            ],
        );
        let put = json!({"key": FOO, "value": "AAAA".repeat(1 << 15)}).to_string();
        assert_eq!(post(server, "/v3/kv/put", &put).0, 200);
        let (status, text) = ask(server, "POST", "/v3/maintenance/snapshot", "{}");
        assert_eq!(status, 200, "{text}");
        let parts: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let last = &parts.last().unwrap()["result"];
        assert!(last.get("remaining_bytes").is_none(), "{last}");
        assert_eq!(
            last["blob"].as_str().unwrap().len(),
            44,
            "base64 of a checksum: {last}"
        );
        assert!(
            parts[0]["result"]["remaining_bytes"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 0
        );
    });
}

#[test]
fn locks_and_elections_are_served() {
    with_server(&[], |server| {
        // "a/7" and "b/7".
        let (lock, seat) = ("YS83", "Yi83");
        let leader = json!({"name": "Yg==", "key": seat, "rev": "4", "lease": "7"});
        let kv = json!({"key": seat, "create_revision": "4", "mod_revision": "5", "version": "2", "value": BAZ, "lease": "7"});
        assert_steps(
            server,
            &[
                (
                    "/v3/lease/grant",
                    json!({"TTL": "600", "ID": "7"}),
                    json!({"header": "1", "ID": "7", "TTL": "600"}),
                ),
                (
                    "/v3/lock/lock",
                    json!({"name": "YQ==", "lease": "7"}),
                    json!({"header": "2", "key": lock}),
                ),
                (
                    "/v3/lock/unlock",
                    json!({"key": lock}),
                    json!({"header": "3"}),
                ),
                (
                    "/v3/election/campaign",
                    json!({"name": "Yg==", "lease": 7, "value": BAR}),
                    json!({"header": "4", "leader": leader}),
                ),
                (
                    "/v3/election/proclaim",
                    json!({"leader": leader, "value": BAZ}),
                    json!({"header": "5"}),
                ),
                (
                    "/v3/election/leader",
                    json!({"name": "Yg=="}),
                    json!({"header": "5", "kv": kv}),
                ),
                (
                    "/v3/election/resign",
                    json!({"leader": leader}),
                    json!({"header": "6"}),
                ),
            ],
        );
    });
}
