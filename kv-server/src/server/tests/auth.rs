//! The services on behalf of users, over a real store, with tokens and with certificates.

mod rig;

use std::time::Duration;

use bytes::Bytes;
use tokio_stream::StreamExt;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::*;
use crate::ApiError;
use crate::api::ScanPool;
use crate::pb::authpb::UserAddOptions;
use crate::pb::etcdserverpb as pb;
use crate::pb::v3lockpb::{LockRequest, lock_server::Lock};
use crate::server::grpc::{Front, caller_of};
use crate::server::recipes::Recipes;
use pb::auth_server::Auth;
use pb::cluster_server::Cluster;
use pb::kv_server::Kv;
use pb::lease_server::Lease;
use pb::maintenance_server::Maintenance;
use pb::watch_client::WatchClient;
use rig::{By, Local, Rig, asked};

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, error: &ApiError) {
    let status = answer.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (error.code(), &*error.to_string())
    );
}

#[tokio::test]
async fn users_log_in_and_do_what_their_roles_allow() {
    let (rig, root, alice) = Rig::enabled().await;
    let (root, alice) = (By::Token(&root), By::Token(&alice));
    for by in [&alice, &root] {
        rig.put(by, "b").await.unwrap();
        rig.get(by, "a", "d").await.unwrap();
    }
    use ApiError as E;
    refused(rig.put(&alice, "d").await, &E::PermissionDenied);
    refused(rig.get(&alice, "a", "d\0").await, &E::PermissionDenied);
    refused(rig.put(&By::Nobody, "b").await, &E::UserEmpty);
    refused(rig.get(&By::Nobody, "b", "").await, &E::UserEmpty);
    let unknown = By::Token("abc.1");
    refused(rig.put(&unknown, "b").await, &E::InvalidAuthToken);
    refused(rig.get(&unknown, "b", "").await, &E::InvalidAuthToken);
    refused(rig.log_in("alice", "wrong").await, &E::AuthFailed);
    refused(rig.log_in("mallory", "secret").await, &E::AuthFailed);
    // Requests that are no good are refused as before, whoever sends them.
    refused(rig.get(&By::Nobody, "", "").await, &E::EmptyKey);

    let name = "alice".to_owned();
    let password = "another".to_owned();
    let change = pb::AuthUserChangePasswordRequest {
        name,
        password,
        ..Default::default()
    };
    rig.front
        .user_change_password(asked(&root, change))
        .await
        .unwrap();
    refused(rig.put(&alice, "b").await, &E::InvalidAuthToken);
    refused(rig.log_in("alice", "secret").await, &E::AuthFailed);
    let again = rig.log_in("alice", "another").await.unwrap();
    rig.put(&By::Token(&again), "b").await.unwrap();

    let request = asked(&root, pb::AuthDisableRequest {});
    rig.front.auth_disable(request).await.unwrap();
    rig.put(&By::Nobody, "z").await.unwrap();
    rig.put(&unknown, "z").await.unwrap();
    refused(rig.log_in("root", "top").await, &E::AuthNotEnabled);
}

/// It was taken for a password that is empty, with which everybody could log in.
#[tokio::test]
async fn user_whose_password_is_changed_to_none_cannot_log_in() {
    let (rig, root, _) = Rig::enabled().await;
    let change = |password: &str| pb::AuthUserChangePasswordRequest {
        name: "alice".to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    let root = By::Token(&root);
    let changed = rig.front.user_change_password(asked(&root, change("")));
    changed.await.unwrap();
    for password in ["", "secret"] {
        refused(rig.log_in("alice", password).await, &ApiError::AuthFailed);
    }
    let changed = rig.front.user_change_password(asked(&root, change("new")));
    changed.await.unwrap();
    rig.log_in("alice", "new").await.unwrap();
}

#[tokio::test]
async fn tokens_come_in_either_field_and_certificates_where_there_is_none() {
    let (rig, root, alice) = Rig::enabled().await;
    rig.put(&By::Bearer(&alice), "b").await.unwrap();
    rig.put(&By::Certificate("alice"), "b").await.unwrap();
    rig.get(&By::Certificate("alice"), "a", "d").await.unwrap();
    use ApiError as E;
    refused(
        rig.put(&By::Certificate("alice"), "d").await,
        &E::PermissionDenied,
    );
    refused(
        rig.put(&By::Certificate("mallory"), "b").await,
        &E::PermissionDenied,
    );
    refused(rig.put(&By::Gateway("alice"), "b").await, &E::UserEmpty);
    // A user without a password has nothing else.
    let add = pb::AuthUserAddRequest {
        name: "carol".to_owned(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    };
    rig.front
        .user_add(asked(&By::Token(&root), add))
        .await
        .unwrap();
    rig.hold(&By::Token(&root), "carol", "r").await.unwrap();
    rig.put(&By::Certificate("carol"), "b").await.unwrap();
    let status = rig.log_in("carol", "").await.unwrap_err();
    let text = "auth: authentication failed, password was given for no password user";
    assert_eq!((status.code(), status.message()), (Code::Unknown, text));
}

#[tokio::test]
async fn hash_of_a_client_counts_as_one_of_ours() {
    let (rig, root, _) = Rig::enabled().await;
    let passwords = rig.authenticator.passwords();
    let hashed_password = passwords.hash("known".to_owned()).await.unwrap();
    let add = |hashed_password: &str| pb::AuthUserAddRequest {
        name: "bob".to_owned(),
        hashed_password: hashed_password.to_owned(),
        ..Default::default()
    };
    let bad = rig
        .front
        .user_add(asked(&By::Token(&root), add("bm8gaGFzaA==")));
    assert_eq!(bad.await.unwrap_err().code(), Code::InvalidArgument);
    let good = rig
        .front
        .user_add(asked(&By::Token(&root), add(&hashed_password)));
    good.await.unwrap();
    rig.log_in("bob", "known").await.unwrap();
    let record = rig.keyspace.store.auth().user("bob").cloned().unwrap();
    assert!(record.password.starts_with(b"$2"), "{record:?}");
}

#[tokio::test]
async fn everybody_sees_themselves_and_root_sees_all() {
    let (rig, root, alice) = Rig::enabled().await;
    let (root, alice) = (By::Token(&root), By::Token(&alice));
    let user = |by: &By<'_>, name: &str| {
        let name = name.to_owned();
        asked(by, pb::AuthUserGetRequest { name })
    };
    let role = |by: &By<'_>, role: &str| {
        let role = role.to_owned();
        asked(by, pb::AuthRoleGetRequest { role })
    };
    let own = rig.front.user_get(user(&alice, "alice")).await.unwrap();
    assert_eq!(own.into_inner().roles, ["r"]);
    let own = rig
        .front
        .role_get(role(&alice, "r"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (own.perm[0].key.as_ref(), own.perm[0].range_end.as_ref()),
        (&b"a"[..], &b"d"[..])
    );
    let header = own.header.unwrap();
    assert_eq!(
        (header.cluster_id, header.member_id, header.revision),
        (5, 7, 1)
    );
    use ApiError as E;
    refused(
        rig.front.user_get(user(&alice, "root")).await,
        &E::PermissionDenied,
    );
    refused(
        rig.front.role_get(role(&alice, "root")).await,
        &E::PermissionDenied,
    );
    refused(
        rig.front.user_get(user(&root, "bob")).await,
        &E::UserNotFound,
    );
    refused(
        rig.front.role_get(role(&root, "root")).await,
        &E::RoleNotFound,
    );
    let users = rig
        .front
        .user_list(asked(&root, pb::AuthUserListRequest {}));
    assert_eq!(users.await.unwrap().into_inner().users, ["alice", "root"]);
    let roles = rig
        .front
        .role_list(asked(&root, pb::AuthRoleListRequest {}));
    assert_eq!(roles.await.unwrap().into_inner().roles, ["r"]);
    let status = rig
        .front
        .auth_status(asked(&root, pb::AuthStatusRequest {}));
    let status = status.await.unwrap().into_inner();
    assert_eq!((status.enabled, status.auth_revision), (true, 7));
}

/// Each call with what it needs beside a token: 0 nothing, 1 a user, 2 root.
#[tokio::test]
async fn each_call_is_open_to_whom_etcd_opens_it() {
    let (rig, root, alice) = Rig::enabled().await;
    let front = &rig.front;
    let denied = ApiError::PermissionDenied.to_string();
    let nobody = ApiError::UserEmpty.to_string();
    macro_rules! needs {
        ($level:expr, $call:ident, $message:expr) => {
            for (by, level) in [
                (By::Nobody, 0),
                (By::Token(&alice), 1),
                (By::Token(&root), 2),
            ] {
                let answer = front.$call(asked(&by, $message)).await.map(drop);
                let text = answer.err().map(|status| status.message().to_owned());
                let text = text.filter(|text| [&denied, &nobody].contains(&text));
                let expected = (level < $level).then(|| match level {
                    0 => nobody.clone(),
                    _ => denied.clone(),
                });
                assert_eq!(text, expected, "{} at level {level}", stringify!($call));
            }
        };
    }
    needs!(1, status, pb::StatusRequest {});
    needs!(1, alarm, pb::AlarmRequest::default());
    needs!(1, member_list, pb::MemberListRequest::default());
    needs!(1, lease_leases, pb::LeaseLeasesRequest {});
    needs!(1, lease_grant, pb::LeaseGrantRequest { ttl: 5, id: 0 });
    needs!(1, lease_revoke, pb::LeaseRevokeRequest { id: 99 });
    needs!(
        1,
        lease_time_to_live,
        pb::LeaseTimeToLiveRequest { id: 99, keys: true }
    );
    let raise = pb::AlarmRequest {
        action: 1,
        ..Default::default()
    };
    needs!(2, alarm, raise);
    needs!(
        2,
        compact,
        pb::CompactionRequest {
            revision: 99,
            physical: false
        }
    );
    needs!(2, defragment, pb::DefragmentRequest {});
    needs!(2, hash, pb::HashRequest {});
    needs!(2, hash_kv, pb::HashKvRequest { revision: 0 });
    needs!(2, snapshot, pb::SnapshotRequest {});
    needs!(2, move_leader, pb::MoveLeaderRequest { target_id: 99 });
    needs!(2, downgrade, pb::DowngradeRequest::default());
    needs!(2, member_add, pb::MemberAddRequest::default());
    needs!(2, member_remove, pb::MemberRemoveRequest { id: 9 });
    needs!(2, member_update, pb::MemberUpdateRequest::default());
    needs!(2, member_promote, pb::MemberPromoteRequest { id: 9 });
    needs!(2, auth_enable, pb::AuthEnableRequest {});
    needs!(2, auth_status, pb::AuthStatusRequest {});
    let add = pb::AuthUserAddRequest {
        name: "dave".to_owned(),
        ..Default::default()
    };
    needs!(2, user_add, add.clone());
    needs!(
        2,
        user_get,
        pb::AuthUserGetRequest {
            name: "bob".to_owned()
        }
    );
    needs!(2, user_list, pb::AuthUserListRequest {});
    needs!(
        2,
        user_delete,
        pb::AuthUserDeleteRequest {
            name: "bob".to_owned()
        }
    );
    needs!(
        2,
        user_change_password,
        pb::AuthUserChangePasswordRequest::default()
    );
    needs!(2, user_grant_role, pb::AuthUserGrantRoleRequest::default());
    needs!(
        2,
        user_revoke_role,
        pb::AuthUserRevokeRoleRequest::default()
    );
    needs!(2, role_add, pb::AuthRoleAddRequest::default());
    needs!(
        2,
        role_get,
        pb::AuthRoleGetRequest {
            role: "x".to_owned()
        }
    );
    needs!(2, role_list, pb::AuthRoleListRequest {});
    needs!(
        2,
        role_delete,
        pb::AuthRoleDeleteRequest {
            role: "x".to_owned()
        }
    );
    needs!(
        2,
        role_grant_permission,
        pb::AuthRoleGrantPermissionRequest::default()
    );
    needs!(
        2,
        role_revoke_permission,
        pb::AuthRoleRevokePermissionRequest::default()
    );
    needs!(2, auth_disable, pb::AuthDisableRequest {});
}

#[tokio::test]
async fn leases_of_other_peoples_keys_are_not_shown_or_renewed() {
    let (rig, root, alice) = Rig::enabled().await;
    let (root, alice) = (By::Token(&root), By::Token(&alice));
    for (id, key) in [(11, "b"), (12, "z")] {
        let grant = pb::LeaseGrantRequest { ttl: 100, id };
        rig.front.lease_grant(asked(&root, grant)).await.unwrap();
        let put = pb::PutRequest {
            key: key.into(),
            lease: id,
            ..Default::default()
        };
        rig.front.put(asked(&root, put)).await.unwrap();
    }
    let left = |by: &By<'_>, id, keys| {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        rig.front.lease_time_to_live(asked(by, request))
    };
    use ApiError as E;
    assert_eq!(
        left(&alice, 11, true).await.unwrap().into_inner().keys,
        ["b"]
    );
    refused(left(&alice, 12, true).await, &E::PermissionDenied);
    assert_eq!(
        left(&alice, 12, false)
            .await
            .unwrap()
            .into_inner()
            .granted_ttl,
        100
    );
    assert_eq!(
        left(&root, 12, true).await.unwrap().into_inner().keys,
        ["z"]
    );
    let list = |by| rig.front.lease_leases(asked(by, pb::LeaseLeasesRequest {}));
    refused(list(&alice).await, &E::PermissionDenied);
    assert_eq!(list(&root).await.unwrap().into_inner().leases.len(), 2);
    let renew = |by: &By<'_>, id| {
        let caller = caller_of(&asked(by, ()));
        let api = rig.api.called_by(caller);
        async move { api.lease_keep_alive(pb::LeaseKeepAliveRequest { id }).await }
    };
    assert_eq!(renew(&alice, 11).await.unwrap().ttl, 100);
    assert_eq!(renew(&alice, 12).await, Err(E::PermissionDenied));
    assert_eq!(renew(&By::Nobody, 11).await, Err(E::UserEmpty));
    assert_eq!(renew(&root, 12).await.unwrap().ttl, 100);
    assert_eq!(renew(&alice, 13).await.unwrap().ttl, 0, "as without users");
}

#[tokio::test]
async fn locks_are_taken_with_the_permissions_of_who_asks() {
    let (rig, _, alice) = Rig::enabled().await;
    let front = Front::new(Arc::clone(&rig.api), Arc::clone(&rig.front.calls));
    let recipes = Recipes::new(front, Arc::clone(&rig.keyspace.hub));
    let lock = |by: &By<'_>, name: &'static str| {
        let name = Bytes::from(name);
        recipes.lock(asked(by, LockRequest { name, lease: 0 }))
    };
    let key = lock(&By::Token(&alice), "b")
        .await
        .unwrap()
        .into_inner()
        .key;
    assert!(key.starts_with(b"b/"));
    refused(
        lock(&By::Token(&alice), "z").await,
        &ApiError::PermissionDenied,
    );
    // Such refusals of the recipes have no code, as in etcd.
    let text = ApiError::UserEmpty.to_string();
    refused(
        lock(&By::Nobody, "b").await,
        &ApiError::Other(Code::Unknown, text),
    );
}

#[tokio::test]
async fn stream_of_a_range_ends_where_its_user_may_not_read() {
    let (rig, root, alice) = Rig::enabled().await;
    let (root, alice) = (By::Token(&root), By::Token(&alice));
    for nth in 0..100 {
        rig.put(&alice, &format!("b{nth:02}")).await.unwrap();
    }
    let stream = async |by: &By<'_>, key: &str, end: &str| {
        let range = pb::RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            ..Default::default()
        };
        let answer = rig.front.range_stream(asked(by, range)).await;
        answer.map(tonic::Response::into_inner)
    };
    use ApiError as E;
    refused(
        stream(&alice, "a", "e").await.map(drop),
        &E::PermissionDenied,
    );
    refused(stream(&By::Nobody, "b", "c").await.map(drop), &E::UserEmpty);
    refused(rig.get(&alice, "a", "e").await, &E::PermissionDenied);
    let whole: Vec<_> = stream(&alice, "b", "c").await.unwrap().collect().await;
    assert!(whole.len() > 2 && whole.iter().all(Result::is_ok));

    let mut cut = stream(&alice, "b", "c").await.unwrap();
    cut.next().await.unwrap().unwrap();
    rig.front
        .role_add(asked(&root, pb::AuthRoleAddRequest { name: "new".into() }))
        .await
        .unwrap();
    refused(cut.next().await.unwrap(), &E::AuthOldRevision);
    assert!(cut.next().await.is_none());
}

fn watch_of(key: &str, end: &str) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                range_end: Bytes::copy_from_slice(end.as_bytes()),
                ..Default::default()
            },
        )),
    }
}

const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

/// A stream of watches of a user, over a socket.
async fn watches(
    channel: &Channel,
    by: &By<'_>,
    wanted: &[(&'static str, &'static str)],
) -> tonic::Streaming<pb::WatchResponse> {
    let wanted: Vec<_> = wanted.iter().map(|(key, end)| watch_of(key, end)).collect();
    let requests = tokio_stream::iter(wanted).chain(tokio_stream::pending());
    let mut client = WatchClient::new(channel.clone());
    client
        .watch(asked(by, requests))
        .await
        .unwrap()
        .into_inner()
}

async fn next(answers: &mut tonic::Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let next = tokio::time::timeout(Duration::from_secs(20), answers.message());
    next.await.expect("an answer in time").unwrap().unwrap()
}

#[tokio::test]
async fn watch_sees_what_its_user_may_read_for_as_long() {
    let (rig, root, alice) = Rig::enabled().await;
    let replica = Arc::new(Local(Arc::clone(&rig.keyspace)));
    let service = WatchService::new(
        Arc::clone(&rig.keyspace.hub),
        Arc::clone(&rig.keyspace.store),
        replica,
        Arc::new(ScanPool::start(1, 4).unwrap()),
        &rig.metrics,
        WatchOptions::new(5, 7),
    )
    .with_authenticator(Arc::clone(&rig.authenticator));
    let parts = ServerParts {
        api: Arc::clone(&rig.api),
        hub: Arc::clone(&rig.keyspace.hub),
        metrics: Arc::clone(&rig.metrics),
        services: Routes::new(pb::watch_server::WatchServer::new(service)),
        options: ServerOptions::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = serve(vec![listener.into()], parts).unwrap();
    let address = server.local_addrs()[0];
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel = channel.connect().await.unwrap();

    let by = By::Token(&alice);
    // One key, its range, all of the role; and what goes beyond: from a key on, a key more, another key, no key at all.
    let wanted = [
        ("b", ""),
        ("b", "c"),
        ("a", "d"),
        ("b", "\0"),
        ("a", "d\0"),
        ("d", ""),
        ("", ""),
    ];
    let mut answers = watches(&channel, &by, &wanted).await;
    for (nth, (key, end)) in wanted.into_iter().enumerate() {
        let answer = next(&mut answers).await;
        assert!(answer.created, "{key:?} {end:?}");
        let expected = (nth >= 3, if nth >= 3 { -1 } else { nth as i64 });
        assert_eq!(
            (answer.canceled, answer.watch_id),
            expected,
            "{key:?} {end:?}"
        );
        assert_eq!(answer.cancel_reason, if nth >= 3 { DENIED } else { "" });
    }
    let mut nobodys = watches(&channel, &By::Nobody, &[("b", "")]).await;
    let answer = next(&mut nobodys).await;
    assert_eq!(
        (answer.created, answer.canceled, answer.watch_id),
        (true, true, -1)
    );
    let empty = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!(answer.cancel_reason, empty);
    let mut strangers = watches(&channel, &By::Token("abc.1"), &[("b", "")]).await;
    let unknown = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!(next(&mut strangers).await.cancel_reason, unknown);

    // What a watcher may see comes, and its end comes with the permission, not with the next event.
    let root = By::Token(&root);
    rig.put(&root, "c").await.unwrap();
    let answer = next(&mut answers).await;
    assert_eq!((answer.watch_id, answer.events.len()), (2, 1));
    rig.grant(&root, "r", "b", "").await.unwrap();
    rig.revoke(&root, "r", "a", "d").await.unwrap();
    for watch_id in [1, 2] {
        let answer = next(&mut answers).await;
        assert_eq!((answer.canceled, answer.watch_id), (true, watch_id));
        assert_eq!(answer.cancel_reason, DENIED);
    }
    rig.put(&root, "c").await.unwrap();
    rig.put(&root, "b").await.unwrap();
    let answer = next(&mut answers).await;
    assert_eq!((answer.watch_id, answer.events.len()), (0, 1));
    assert_eq!(answer.events[0].kv.as_ref().unwrap().key, "b");

    // Nobody's watch from before is over once everybody needs a user.
    let request = asked(&root, pb::AuthDisableRequest {});
    rig.front.auth_disable(request).await.unwrap();
    let mut nobodys = watches(&channel, &By::Nobody, &[("b", "")]).await;
    assert!(!next(&mut nobodys).await.canceled);
    let request = asked(&By::Nobody, pb::AuthEnableRequest {});
    rig.front.auth_enable(request).await.unwrap();
    let answer = next(&mut nobodys).await;
    assert_eq!((answer.canceled, answer.watch_id), (true, 0));
    assert_eq!(answer.cancel_reason, empty);
    rig.keyspace.hub.close();
    server.shutdown();
}

#[tokio::test]
async fn probes_need_no_user() {
    let (rig, _, _) = Rig::enabled().await;
    let parts = ServerParts {
        api: Arc::clone(&rig.api),
        hub: Arc::clone(&rig.keyspace.hub),
        metrics: Arc::clone(&rig.metrics),
        services: Routes::default(),
        options: ServerOptions::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = serve(vec![listener.into()], parts).unwrap();
    for path in ["/health", "/livez", "/readyz", "/metrics", "/version"] {
        assert_eq!(http(server.local_addrs()[0], "GET", path).0, 200, "{path}");
    }
    server.shutdown();
}

#[tokio::test]
async fn login_takes_its_turn_off_the_thread_that_serves() {
    let (rig, _, alice) = Rig::enabled().await;
    // More than the queue holds, at once: some are refused, none waits for ever, and others are served meanwhile.
    let logins: Vec<_> = (0..200).map(|_| rig.log_in("alice", "secret")).collect();
    let logins = async {
        let mut refused = 0;
        let mut under_way: Vec<_> = logins.into_iter().map(Box::pin).collect();
        let outcomes = std::future::poll_fn(|context| {
            let mut left = Vec::new();
            for mut login in std::mem::take(&mut under_way) {
                match login.as_mut().poll(context) {
                    std::task::Poll::Pending => left.push(login),
                    std::task::Poll::Ready(Ok(_)) => {}
                    std::task::Poll::Ready(Err(status)) => {
                        let error = ApiError::TooManyRequests;
                        assert_eq!(
                            (status.code(), status.message()),
                            (error.code(), &*error.to_string())
                        );
                        refused += 1;
                    }
                }
            }
            under_way = left;
            match under_way.is_empty() {
                true => std::task::Poll::Ready(refused),
                false => std::task::Poll::Pending,
            }
        });
        outcomes.await
    };
    let others = async {
        for _ in 0..50 {
            rig.put(&By::Token(&alice), "b").await.unwrap();
        }
    };
    let (refused, ()) = tokio::join!(logins, others);
    assert!(refused > 0);
}
