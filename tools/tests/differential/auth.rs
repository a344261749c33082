//! Users, roles and permissions: random changes of them by several users, and random requests of users with and without the
//! permission, on both servers.
//!
//! A user calls with a token that it got, perhaps before it lost something, or with a certificate that names it, or with both.
//!
//! Left out is what 3.5.1 does and we refuse, as later versions do, since the two would not be in one state behind it; `known`
//! has what is told differently and changes nothing:
//! - leases of who is nobody, or no user;
//! - a compaction by another user than root;
//! - permissions of the role `root`, of ranges that have no key, and of two ranges with the same first key;
//! - a put within a transaction that gives back what was there, or names a lease, without the permission for that, and inner
//!   transactions, of which 3.5.1 asks no permission at all;
//! - ranges that end before they begin, which we allow to whoever may name their beginning;
//! - a token while authentication is not enabled: 3.5.1 refuses one that it does not know.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_server::pb::authpb;
use kv_server::pb::etcdserverpb as pb;
use pb::request_op::Request;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tonic::metadata::{Ascii, MetadataValue};

use super::calls::{Answer, Call, Clients};
use super::generate::{self, one_in, pick};
use super::{Plan, Run, Stop};

/// Hashing a password takes as long as it must with these, and no longer.
pub(crate) const FLAGS: [&str; 2] = ["--bcrypt-cost", "4"];
/// Few, so that they meet; the last one is never added.
pub(crate) const USERS: [&str; 5] = ["root", "alice", "bob", "carol", "nobody"];
const ROLES: [&str; 5] = ["root", "reader", "writer", "all", "none"];
const PASSWORDS: [&str; 3] = ["", "one", "other"];
/// Requests that are asked in a row by one user at most.
const ROW_MAX: u32 = 12;

type Tokens = [MetadataValue<Ascii>; 2];

/// Asks as many requests as are planned. `by_name` has connections with the certificates of users; without any they call by
/// token alone.
pub(crate) async fn ask(
    plan: &Plan,
    servers: [Clients; 2],
    by_name: Vec<(&'static str, [Clients; 2])>,
) -> (Run, Result<(), Stop>) {
    let mut users = Users {
        run: Run::without_watches(servers, plan.show),
        by_name,
        tokens: BTreeMap::new(),
        there: BTreeSet::new(),
        enabled: false,
        certified: None,
        caller: None,
    };
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let mut outcome = users.begin().await;
    while users.run.asked < plan.requests && outcome.is_ok() {
        outcome = users.row(&mut rng).await;
    }
    (users.run, outcome)
}

struct Users {
    run: Run,
    by_name: Vec<(&'static str, [Clients; 2])>,
    /// The newest ones, whether or not they are good for anything still.
    tokens: BTreeMap<&'static str, Tokens>,
    /// The users that there are.
    there: BTreeSet<String>,
    enabled: bool,
    /// Whose certificate there is, and who asks now: by a token, or else by that.
    certified: Option<&'static str>,
    caller: Option<&'static str>,
}

impl Users {
    /// As who the next requests are asked: whose token, and whose certificate where there are some.
    fn be(&mut self, token: Option<&'static str>, certificate: &'static str) {
        let named = self.by_name.iter().find(|(name, _)| *name == certificate);
        self.certified = None;
        if let Some((_, servers)) = named {
            self.run.servers = servers.clone();
            self.certified = Some(certificate);
        }
        self.caller = self.certified;
        let token = token.filter(|_| self.enabled);
        let tokens = token.and_then(|name| self.tokens.get(name)).cloned();
        if tokens.is_some() {
            self.caller = token;
        }
        let [etcd, ours] = tokens.map_or([None, None], |tokens| tokens.map(Some));
        (self.run.servers[0].token, self.run.servers[1].token) = (etcd, ours);
    }

    /// True when whoever calls may have leases on both servers.
    fn is_somebody(&self) -> bool {
        !self.enabled || self.caller.is_some_and(|name| self.there.contains(name))
    }

    /// Everybody is there and may do something.
    async fn begin(&mut self) -> Result<(), Stop> {
        for name in &USERS[..4] {
            self.learn(user_add(name, "one")).await?;
        }
        for (role, kind, key, end) in [
            ("reader", 0, "a", "b"),
            ("writer", 1, "k", "l"),
            ("all", 2, "\0", "\0"),
        ] {
            self.run.ask(role_add(role)).await?;
            let request = grant(role, kind, key.as_bytes(), end.as_bytes());
            self.run.ask(Call::GrantPermission(request)).await?;
        }
        for (user, role) in [("alice", "reader"), ("alice", "writer"), ("bob", "all")] {
            self.run.ask(grant_role(user, role)).await?;
        }
        self.restore().await
    }

    /// What it takes to enable authentication; asked whether or not it is.
    async fn restore(&mut self) -> Result<(), Stop> {
        self.be(Some("root"), "root");
        for call in [
            user_add("root", "one"),
            role_add("root"),
            grant_role("root", "root"),
            Call::AuthEnable(pb::AuthEnableRequest {}),
        ] {
            self.learn(call).await?;
        }
        for name in &USERS[..4] {
            self.log_in(name, "one").await?;
        }
        Ok(())
    }

    async fn learn(&mut self, call: Call) -> Result<(), Stop> {
        match (call.clone(), self.run.answer(call).await?) {
            (_, Answer::AuthEnable(_)) => self.enabled = true,
            (_, Answer::AuthDisable(_)) => {
                self.enabled = false;
                self.caller = self.certified;
                for side in &mut self.run.servers {
                    side.token = None;
                }
            }
            (Call::UserAdd(request), Answer::UserAdd(_)) => {
                self.there.insert(request.name);
            }
            (Call::UserDelete(request), Answer::UserDelete(_)) => {
                self.there.remove(&request.name);
            }
            _ => {}
        }
        Ok(())
    }

    async fn log_in(&mut self, name: &'static str, password: &str) -> Result<(), Stop> {
        let request = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let [etcd, ours] = &mut self.run.servers;
        let (etcd, ours) = tokio::join!(etcd.log_in(request.clone()), ours.log_in(request.clone()));
        self.run
            .compare(&Call::Authenticate(request), etcd.0, ours.0)?;
        if let (Some(etcd), Some(ours)) = (etcd.1, ours.1) {
            self.tokens.insert(name, [etcd, ours]);
        }
        Ok(())
    }

    /// Some requests of one user.
    async fn row(&mut self, rng: &mut SmallRng) -> Result<(), Stop> {
        if !self.enabled && one_in(rng, 3) {
            self.restore().await?;
        }
        let certificate = pick(rng, &USERS);
        let token = match rng.random_range(0..12) {
            0 => None,
            1..5 => Some("root"),
            _ => Some(pick(rng, &USERS[1..])),
        };
        // By the certificate alone, mostly, where there are some.
        let token = token.filter(|_| self.by_name.is_empty() || one_in(rng, 4));
        self.be(token, certificate);
        if self.enabled && one_in(rng, 40) {
            self.caller = None;
            let nonsense = pick(rng, &["nonsense", "nonsense.1", ""]);
            for side in &mut self.run.servers {
                side.token = nonsense.parse().ok();
            }
        }
        for _ in 0..rng.random_range(1..=ROW_MAX) {
            self.step(rng).await?;
        }
        Ok(())
    }

    async fn step(&mut self, rng: &mut SmallRng) -> Result<(), Stop> {
        match rng.random_range(0..100) {
            0..4 => {
                let password = pick(rng, &["one", "one", "one", "other", ""]);
                self.log_in(pick(rng, &USERS), password).await
            }
            4..24 => self.learn(change(rng)).await,
            24..30 => self.learn(look(rng)).await,
            30..36 => {
                let key = generate::key(rng);
                let create = pb::WatchCreateRequest {
                    range_end: forward(&key, generate::range_end(rng, &key)),
                    key,
                    ..pb::WatchCreateRequest::default()
                };
                self.run.ask(Call::Watch(create)).await
            }
            36..40 => self.run.ask(maintenance(rng)).await,
            40..52 if self.is_somebody() => {
                let call = generate::leases(rng, &self.run.known);
                self.run.ask(call).await
            }
            _ => {
                let call = generate::kv(rng, &self.run.known);
                match call {
                    Call::Compact(_) if self.enabled => Ok(()),
                    call if self.enabled => self.run.ask(simple(call)).await,
                    call => self.run.ask(call).await,
                }
            }
        }
    }
}

/// A request without what is left out.
fn simple(call: Call) -> Call {
    match call {
        Call::Range(range) => Call::Range(simple_range(range)),
        Call::DeleteRange(delete) => Call::DeleteRange(simple_delete(delete)),
        Call::Txn(mut txn) => {
            for compare in &mut txn.compare {
                let end = std::mem::take(&mut compare.range_end);
                compare.range_end = forward(&compare.key, end);
            }
            txn.success = simple_ops(txn.success);
            txn.failure = simple_ops(txn.failure);
            Call::Txn(txn)
        }
        call => call,
    }
}

fn simple_ops(ops: Vec<pb::RequestOp>) -> Vec<pb::RequestOp> {
    let simple = |op: pb::RequestOp| {
        let request = op.request.and_then(|request| match request {
            Request::RequestTxn(_) => None,
            Request::RequestPut(put) => Some(Request::RequestPut(pb::PutRequest {
                prev_kv: false,
                lease: 0,
                ..put
            })),
            Request::RequestRange(range) => Some(Request::RequestRange(simple_range(range))),
            Request::RequestDeleteRange(delete) => {
                Some(Request::RequestDeleteRange(simple_delete(delete)))
            }
        });
        request.map(|request| pb::RequestOp {
            request: Some(request),
        })
    };
    ops.into_iter().filter_map(simple).collect()
}

fn simple_range(mut range: pb::RangeRequest) -> pb::RangeRequest {
    range.range_end = forward(&range.key, range.range_end);
    range
}

fn simple_delete(mut delete: pb::DeleteRangeRequest) -> pb::DeleteRangeRequest {
    delete.range_end = forward(&delete.key, delete.range_end);
    delete
}

/// The end of a range, or none where it lies before the beginning.
fn forward(key: &Bytes, end: Bytes) -> Bytes {
    if end <= *key && end != b"\0"[..] {
        return Bytes::new();
    }
    end
}

/// A range that has a key. Of each key it is the same one: 3.5.1 keeps a permission that another one for the same range is to
/// replace, where a role has two ranges that begin with a key.
fn permitted(rng: &mut SmallRng) -> (Bytes, Bytes) {
    let mut key = generate::key(rng);
    if key.is_empty() {
        key = Bytes::from_static(b"a");
    }
    let sum: u32 = key.iter().map(|byte| u32::from(*byte)).sum();
    let end = match sum % 4 {
        0 => Bytes::from_static(b"\0"),
        2 => Bytes::new(),
        _ => generate::prefix_end(&key).into(),
    };
    (key, end)
}

fn user_add(name: &str, password: &str) -> Call {
    Call::UserAdd(pb::AuthUserAddRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        ..pb::AuthUserAddRequest::default()
    })
}

fn role_add(name: &str) -> Call {
    let name = name.to_owned();
    Call::RoleAdd(pb::AuthRoleAddRequest { name })
}

fn grant_role(user: &str, role: &str) -> Call {
    let (user, role) = (user.to_owned(), role.to_owned());
    Call::GrantRole(pb::AuthUserGrantRoleRequest { user, role })
}

fn grant(role: &str, perm_type: i32, key: &[u8], end: &[u8]) -> pb::AuthRoleGrantPermissionRequest {
    pb::AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        perm: Some(authpb::Permission {
            perm_type,
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
        }),
    }
}

/// A change of users, roles or permissions.
fn change(rng: &mut SmallRng) -> Call {
    // What root and its role are seldom lose: without them there is nobody to ask.
    let any = |rng: &mut SmallRng, of: &[&'static str]| {
        let from = usize::from(!one_in(rng, 6));
        pick(rng, &of[from..]).to_owned()
    };
    let (name, role) = (any(rng, &USERS), any(rng, &ROLES));
    let password = pick(rng, &PASSWORDS).to_owned();
    match rng.random_range(0..40) {
        0 => Call::AuthDisable(pb::AuthDisableRequest {}),
        1 => Call::AuthEnable(pb::AuthEnableRequest {}),
        2..5 => {
            let no_password = one_in(rng, 4);
            Call::UserAdd(pb::AuthUserAddRequest {
                name: if one_in(rng, 12) { String::new() } else { name },
                password,
                options: (one_in(rng, 2)).then_some(authpb::UserAddOptions { no_password }),
                ..pb::AuthUserAddRequest::default()
            })
        }
        5 => Call::UserDelete(pb::AuthUserDeleteRequest { name }),
        6..8 => Call::ChangePassword(pb::AuthUserChangePasswordRequest {
            name,
            password: if one_in(rng, 4) {
                password
            } else {
                "one".to_owned()
            },
            ..pb::AuthUserChangePasswordRequest::default()
        }),
        8..14 => grant_role(&name, &role),
        14..17 => Call::RevokeRole(pb::AuthUserRevokeRoleRequest { name, role }),
        17..21 => role_add(if one_in(rng, 12) { "" } else { &role }),
        21 => Call::RoleDelete(pb::AuthRoleDeleteRequest { role }),
        22..34 => {
            let (key, end) = permitted(rng);
            let role = pick(rng, &ROLES[1..]);
            let mut request = grant(role, rng.random_range(0..3), &key, &end);
            if one_in(rng, 30) {
                request.perm = None;
            }
            Call::GrantPermission(request)
        }
        _ => {
            let (key, range_end) = permitted(rng);
            Call::RevokePermission(pb::AuthRoleRevokePermissionRequest {
                role: pick(rng, &ROLES[1..]).to_owned(),
                key,
                range_end,
            })
        }
    }
}

/// A look at them.
fn look(rng: &mut SmallRng) -> Call {
    match rng.random_range(0..6) {
        0 => Call::AuthStatus(pb::AuthStatusRequest {}),
        1 => Call::UserList(pb::AuthUserListRequest {}),
        2 => Call::RoleList(pb::AuthRoleListRequest {}),
        3 | 4 => {
            let role = pick(rng, &ROLES).to_owned();
            Call::RoleGet(pb::AuthRoleGetRequest { role })
        }
        _ => {
            let name = pick(rng, &USERS).to_owned();
            Call::UserGet(pb::AuthUserGetRequest { name })
        }
    }
}

fn maintenance(rng: &mut SmallRng) -> Call {
    match rng.random_range(0..7) {
        0 => Call::MemberList(pb::MemberListRequest {
            linearizable: one_in(rng, 2),
        }),
        1 => Call::Alarm(pb::AlarmRequest::default()),
        2 => Call::Status(pb::StatusRequest {}),
        3 => Call::Hash(pb::HashRequest {}),
        4 => Call::HashKv(pb::HashKvRequest { revision: 0 }),
        5 => Call::MoveLeader(pb::MoveLeaderRequest { target_id: 77 }),
        _ => Call::Defragment(pb::DefragmentRequest {}),
    }
}
