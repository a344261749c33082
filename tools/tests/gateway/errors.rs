//! What the gateway answers when it refuses: the status, the code, the text.

use serde_json::json;

use super::http::{ask, post};
use super::with_server;

#[test]
fn refusals_have_the_status_of_their_code_and_etcds_text() {
    with_server(&[], |server| {
        assert_eq!(
            post(server, "/v3/lease/grant", r#"{"TTL": 600, "ID": 7}"#).0,
            200
        );
        let table = [
            (
                "/v3/kv/put",
                "{}",
                400,
                3,
                "etcdserver: key is not provided",
            ),
            ("/v3/kv/put", "", 400, 3, "etcdserver: key is not provided"),
            (
                "/v3/kv/put",
                r#"{"key": "YQ==", "lease": 9}"#,
                404,
                5,
                "etcdserver: requested lease not found",
            ),
            (
                "/v3/kv/range",
                r#"{"key": "YQ==", "revision": 99}"#,
                400,
                11,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            (
                "/v3/kv/range",
                r#"{"key": "YQ==", "sort_order": 7}"#,
                400,
                3,
                "etcdserver: invalid sort option",
            ),
            (
                "/v3/lease/grant",
                r#"{"TTL": 600, "ID": 7}"#,
                400,
                9,
                "etcdserver: lease already exists",
            ),
            (
                "/v3/lease/grant",
                r#"{"TTL": "9000000001"}"#,
                400,
                11,
                "etcdserver: too large lease TTL",
            ),
            (
                "/v3/cluster/member/remove",
                r#"{"ID": "1"}"#,
                404,
                5,
                "etcdserver: member not found",
            ),
            (
                "/v3/maintenance/transfer-leadership",
                r#"{"targetID": "1"}"#,
                400,
                9,
                "etcdserver: bad leader transferee",
            ),
            (
                "/v3/maintenance/downgrade",
                r#"{"action": "VALIDATE", "version": "x"}"#,
                400,
                3,
                "etcdserver: wrong downgrade target version format",
            ),
            ("/v3/nothing", "{}", 404, 5, "Not Found"),
            ("/v3/kv/range/more", "{}", 404, 5, "Not Found"),
        ];
        for (path, body, status, code, message) in table {
            let expected = json!({"error": message, "code": code, "message": message});
            assert_eq!(
                post(server, path, body),
                (status, expected),
                "{path} {body}"
            );
        }
        let (status, text) = ask(server, "GET", "/v3/kv/range", "");
        let expected = r#"{"error":"Method Not Allowed","code":12,"message":"Method Not Allowed"}"#;
        assert_eq!((status, text.as_str()), (501, expected));
    });
}

#[test]
fn malformed_json_is_refused_with_its_place() {
    with_server(&[], |server| {
        for (path, body) in [
            ("/v3/kv/put", "{"),
            ("/v3/kv/put", "7"),
            ("/v3/kv/put", r#"{"key": "*"}"#),
            ("/v3/kv/put", r#"{"key": 7}"#),
            ("/v3/kv/range", r#"{"limit": "many"}"#),
            ("/v3/kv/range", r#"{"limit": 9223372036854775808}"#),
            ("/v3/kv/txn", r#"{"success": {}}"#),
            (
                "/v3/kv/txn",
                r#"{"success": [{"request_put": {}, "request_range": {}}]}"#,
            ),
            ("/v3/watch", "[]"),
            ("/v3/watch", r#"{"create_request""#),
            ("/v3/watch", r#"{"create_request": 7}"#),
        ] {
            let (status, answer) = post(server, path, body);
            let answer = answer
                .get("error")
                .filter(|error| error.is_object())
                .unwrap_or(&answer);
            assert_eq!(
                (status, &answer["code"]),
                (400, &json!(3)),
                "{path} {body}: {answer}"
            );
        }
        // Deeper than anything that is served: refused, and nobody else notices.
        let deep = "{\"success\":[{\"request_txn\":".repeat(5_000);
        let (status, answer) = post(server, "/v3/kv/txn", &deep);
        assert_eq!((status, &answer["code"]), (400, &json!(3)), "{answer}");
        assert_eq!(post(server, "/v3/kv/range", r#"{"key": "YQ=="}"#).0, 200);
    });
}

#[test]
fn requests_above_the_limits_are_refused_and_an_answer_may_be_larger() {
    with_server(&[], |server| {
        let put = |bytes: usize| {
            // Four letters for three bytes.
            let value = "AAAA".repeat(bytes / 3);
            post(
                server,
                "/v3/kv/put",
                &json!({"key": "YQ==", "value": value}).to_string(),
            )
        };
        let (status, answer) = put(3 << 19);
        assert_eq!(
            (status, &answer["message"]),
            (400, &json!("etcdserver: request is too large"))
        );
        let (status, answer) = put(3 << 20);
        assert_eq!((status, &answer["code"]), (429, &json!(8)), "{answer}");
        let (status, answer) = put(9 << 20);
        assert_eq!((status, &answer["code"]), (429, &json!(8)), "{answer}");
        for n in 0..4 {
            let (key, value) = (format!("YWE{n}"), "AAAA".repeat(1 << 18));
            let put = json!({"key": key, "value": value}).to_string();
            assert_eq!(post(server, "/v3/kv/put", &put).0, 200);
        }
        let (status, answer) = post(
            server,
            "/v3/kv/range",
            r#"{"key": "AA==", "range_end": "AA=="}"#,
        );
        assert_eq!((status, &answer["count"]), (200, &json!("4")));
        assert_eq!(answer["kvs"][3]["value"].as_str().unwrap().len(), 1 << 20);
    });
}

#[test]
fn a_server_without_the_gateway_has_no_such_page() {
    with_server(&["--enable-grpc-gateway=false"], |server| {
        let (status, text) = ask(server, "POST", "/v3/kv/range", r#"{"key": "YQ=="}"#);
        assert_eq!((status, text.as_str()), (404, "404 page not found\n"));
    });
}
