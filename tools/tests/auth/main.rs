//! Users and roles on real processes: what one member is told counts on all of them, and stays through fail-over, restarts
//! and snapshots; and our own clients as users.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

mod cluster;
mod tools;

use flotilla_tests::cluster::Client;
use kv_server::pb::authpb::{Permission, permission::Type};
use kv_server::pb::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tonic::{Code, Request, Status};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// A message with a token; none without one.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let token = token.parse().unwrap();
        request.metadata_mut().insert("token", token);
    }
    request
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    let text = format!("etcdserver: {text}");
    assert_eq!((status.code(), status.message()), (code, &*text));
}

fn put(client: &Client, token: &str, key: &str) -> Result<(), Status> {
    let request = pb::PutRequest {
        key: key.as_bytes().to_vec().into(),
        ..Default::default()
    };
    let call = client.run(async |channel| KvClient::new(channel).put(by(token, request)).await);
    call.map(drop)
}

fn get(client: &Client, token: &str, key: &str, serializable: bool) -> Result<(), Status> {
    let request = pb::RangeRequest {
        key: key.as_bytes().to_vec().into(),
        serializable,
        ..Default::default()
    };
    let call = client.run(async |channel| KvClient::new(channel).range(by(token, request)).await);
    call.map(drop)
}

fn log_in(client: &Client, name: &str, password: &str) -> Result<String, Status> {
    let (name, password) = (name.to_owned(), password.to_owned());
    let request = pb::AuthenticateRequest { name, password };
    let call = client.run(async |channel| AuthClient::new(channel).authenticate(request).await);
    Ok(call?.into_inner().token)
}

fn add_user(client: &Client, token: &str, name: &str, password: &str) {
    let request = pb::AuthUserAddRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    let call =
        client.run(async |channel| AuthClient::new(channel).user_add(by(token, request)).await);
    call.unwrap();
}

fn hold(client: &Client, token: &str, user: &str, role: &str) {
    let (user, role) = (user.to_owned(), role.to_owned());
    let request = by(token, pb::AuthUserGrantRoleRequest { user, role });
    let call = client.run(async |channel| AuthClient::new(channel).user_grant_role(request).await);
    call.unwrap();
}

/// Adds root, and alice who reads and writes keys from `a` up to `d`; then everybody needs to be one of them.
fn enable(client: &Client) {
    add_user(client, "", "root", "top");
    hold(client, "", "root", "root");
    add_user(client, "", "alice", "secret");
    let name = "r".to_owned();
    let add = pb::AuthRoleAddRequest { name };
    let call = client.run(async |channel| AuthClient::new(channel).role_add(add).await);
    call.unwrap();
    let grant = pb::AuthRoleGrantPermissionRequest {
        name: "r".to_owned(),
        perm: Some(Permission {
            perm_type: Type::Readwrite.into(),
            key: "a".into(),
            range_end: "d".into(),
        }),
    };
    let granted =
        client.run(async |channel| AuthClient::new(channel).role_grant_permission(grant).await);
    granted.unwrap();
    hold(client, "", "alice", "r");
    let request = pb::AuthEnableRequest {};
    let call = client.run(async |channel| AuthClient::new(channel).auth_enable(request).await);
    call.unwrap();
}
