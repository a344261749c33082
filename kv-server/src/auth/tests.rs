//! Each command against etcd's documented checks, and what the state allows whom.

use bytes::Bytes;
use raft_log::Index;

use super::state::{TokenNews, Touched};
use super::*;
use crate::pb::authpb::{Permission, UserAddOptions, permission::Type};
use crate::pb::command::{AssignToken, auth_command::Op};
use crate::pb::etcdserverpb as pb;

/// Of nothing in particular.
pub(crate) const HASHED: &str = "aGFzaA==";

pub(crate) fn user_add(name: &str) -> Op {
    Op::UserAdd(pb::AuthUserAddRequest {
        name: name.to_owned(),
        hashed_password: HASHED.to_owned(),
        ..Default::default()
    })
}

pub(crate) fn user_without_password(name: &str) -> Op {
    Op::UserAdd(pb::AuthUserAddRequest {
        name: name.to_owned(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    })
}

pub(crate) fn user_delete(name: &str) -> Op {
    let name = name.to_owned();
    Op::UserDelete(pb::AuthUserDeleteRequest { name })
}

pub(crate) fn change_password(name: &str) -> Op {
    Op::UserChangePassword(pb::AuthUserChangePasswordRequest {
        name: name.to_owned(),
        hashed_password: HASHED.to_owned(),
        ..Default::default()
    })
}

pub(crate) fn role_add(name: &str) -> Op {
    let name = name.to_owned();
    Op::RoleAdd(pb::AuthRoleAddRequest { name })
}

pub(crate) fn role_delete(name: &str) -> Op {
    let role = name.to_owned();
    Op::RoleDelete(pb::AuthRoleDeleteRequest { role })
}

pub(crate) fn grant_role(user: &str, role: &str) -> Op {
    let (user, role) = (user.to_owned(), role.to_owned());
    Op::UserGrantRole(pb::AuthUserGrantRoleRequest { user, role })
}

pub(crate) fn revoke_role(name: &str, role: &str) -> Op {
    let (name, role) = (name.to_owned(), role.to_owned());
    Op::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name, role })
}

pub(crate) fn grant(role: &str, kind: Type, key: &str, end: &str) -> Op {
    let perm = Permission {
        perm_type: kind.into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
    };
    Op::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        perm: Some(perm),
    })
}

pub(crate) fn revoke(role: &str, key: &str, end: &str) -> Op {
    Op::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
        role: role.to_owned(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
    })
}

pub(crate) fn enable() -> Op {
    Op::Enable(pb::AuthEnableRequest {})
}

pub(crate) fn disable() -> Op {
    Op::Disable(pb::AuthDisableRequest {})
}

pub(crate) fn assign(user: &str, revision: u64) -> Op {
    Op::AssignToken(AssignToken {
        user: user.to_owned(),
        prefix: "abc".to_owned(),
        revision,
    })
}

#[derive(Default)]
struct World {
    state: AuthState,
    touched: Touched,
    news: Vec<TokenNews>,
}

impl World {
    /// With root and the role, disabled.
    fn with_root() -> Self {
        let mut world = Self::default();
        for op in [user_add("root"), grant_role("root", "root")] {
            world.run(op).unwrap();
        }
        world
    }

    fn enabled() -> Self {
        let mut world = Self::with_root();
        world.run(enable()).unwrap();
        world
    }

    /// What a command gives; the revision moves by one at most, and not for one that fails.
    fn run(&mut self, op: Op) -> Result<String, ApiError> {
        let before = self.state.revision();
        (self.touched, self.news) = (Touched::default(), Vec::new());
        let (touched, news) = (&mut self.touched, &mut self.news);
        let result = self.state.execute(&op, Index(9), touched, news);
        let moved = self.state.revision() - before;
        assert!(moved <= 1, "{op:?}");
        if result.is_err() {
            assert_eq!((moved, &self.touched), (0, &Touched::default()), "{op:?}");
            assert!(self.news.is_empty(), "{op:?}");
        }
        result
    }

    fn moves(&mut self, op: Op) -> u64 {
        let before = self.state.revision();
        self.run(op).unwrap();
        self.state.revision() - before
    }

    fn who(&self, user: &str) -> Option<Identity> {
        Some(Identity {
            user: user.into(),
            revision: self.state.revision(),
        })
    }
}

#[test]
fn commands_are_refused_as_etcd_refuses_them() {
    use ApiError as E;
    let none = || {
        Op::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
            name: "missing".to_owned(),
            perm: None,
        })
    };
    let disabled = [
        (enable(), E::RootUserNotExist),
        (user_add(""), E::UserEmpty),
        (user_delete("bob"), E::UserNotFound),
        (change_password("bob"), E::UserNotFound),
        (grant_role("bob", "missing"), E::UserNotFound),
        (grant_role("alice", "missing"), E::RoleNotFound),
        (revoke_role("bob", "r"), E::UserNotFound),
        (revoke_role("alice", "r"), E::RoleNotGranted),
        (user_add("alice"), E::UserAlreadyExists),
        (role_add(""), E::RoleEmpty),
        (role_add("r"), E::RoleAlreadyExists),
        (role_delete("missing"), E::RoleNotFound),
        (none(), E::PermissionNotGiven),
        (
            grant("missing", Type::Read, "", ""),
            E::InvalidAuthManagement,
        ),
        (grant("r", Type::Read, "b", "a"), E::InvalidAuthManagement),
        (grant("r", Type::Read, "b", "b"), E::InvalidAuthManagement),
        (grant("missing", Type::Read, "a", ""), E::RoleNotFound),
        (revoke("missing", "a", ""), E::RoleNotFound),
        (revoke("r", "a", ""), E::PermissionNotGranted),
        (assign("alice", 3), E::AuthNotEnabled),
    ];
    let mut world = World::default();
    world.run(user_add("alice")).unwrap();
    world.run(role_add("r")).unwrap();
    for (op, expected) in disabled {
        assert_eq!(world.run(op.clone()), Err(expected), "{op:?}");
    }
    world.run(user_add("root")).unwrap();
    assert_eq!(world.run(enable()), Err(E::RootRoleNotExist));

    let mut world = World::enabled();
    for op in [
        user_add("alice"),
        user_without_password("carol"),
        role_add("root"),
    ] {
        world.run(op).unwrap();
    }
    let now = world.state.revision();
    let enabled = [
        (user_delete("root"), E::InvalidAuthManagement),
        (revoke_role("root", "root"), E::InvalidAuthManagement),
        (role_delete("root"), E::InvalidAuthManagement),
        (assign("bob", now), E::AuthFailed),
        (assign("carol", now), E::AuthFailed),
        (assign("alice", now - 1), E::AuthOldRevision),
    ];
    for (op, expected) in enabled {
        assert_eq!(world.run(op.clone()), Err(expected), "{op:?}");
    }
    world.run(disable()).unwrap();
    for op in [
        revoke_role("root", "root"),
        user_delete("root"),
        role_delete("root"),
    ] {
        world.run(op).unwrap();
    }
}

#[test]
fn revision_counts_changes_and_nothing_else() {
    let mut world = World::default();
    assert_eq!(world.state.revision(), 1, "as etcd's new store");
    for op in [
        user_add("root"),
        grant_role("root", "root"),
        role_add("r"),
        user_add("alice"),
        grant_role("alice", "r"),
        grant("r", Type::Read, "a", ""),
        grant("r", Type::Write, "a", ""),
        change_password("alice"),
        revoke("r", "a", ""),
        revoke_role("alice", "r"),
        role_delete("r"),
        user_delete("alice"),
    ] {
        assert_eq!(world.moves(op.clone()), 1, "{op:?}");
        assert!(world.touched.config);
    }
    for op in [grant_role("root", "root"), disable(), enable(), enable()] {
        assert_eq!(world.moves(op.clone()), 0, "{op:?}");
    }
    assert_eq!(
        world.moves(disable()),
        1,
        "so that what was known before is old"
    );
    assert_eq!(world.news, [TokenNews::Cleared]);
}

#[test]
fn token_is_made_of_prefix_and_index_and_ends_with_the_password() {
    let mut world = World::enabled();
    world.run(user_add("alice")).unwrap();
    let now = world.state.revision();
    let token = world.run(assign("alice", now)).unwrap();
    assert_eq!(token, "abc.9");
    let user = "alice".to_owned();
    assert_eq!(world.news, [TokenNews::Assigned { token, user }]);
    assert_eq!(world.state.revision(), now);
    for op in [change_password("alice"), user_delete("alice")] {
        world.run(op).unwrap();
        assert_eq!(world.news, [TokenNews::Invalidated("alice".to_owned())]);
    }
}

#[test]
fn granted_permission_takes_the_place_of_one_on_the_same_range() {
    let mut world = World::with_root();
    for op in [
        role_add("r"),
        grant("r", Type::Read, "b", "c"),
        grant("r", Type::Read, "b", ""),
        grant("r", Type::Write, "a", "\0"),
        grant("r", Type::Readwrite, "b", "c"),
    ] {
        world.run(op).unwrap();
    }
    let shown = |world: &World| -> Vec<_> {
        let held = world.state.permissions_of("r").unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        held.iter()
            .map(|held| (text(&held.key), text(&held.range_end), held.perm_type()))
            .collect()
    };
    let range = |key: &str, end: &str, kind| (key.to_owned(), end.to_owned(), kind);
    let expected = [
        range("a", "\0", Type::Write),
        range("b", "", Type::Read),
        range("b", "c", Type::Readwrite),
    ];
    assert_eq!(shown(&world), expected);
    world.run(revoke("r", "b", "")).unwrap();
    assert_eq!(shown(&world), [expected[0].clone(), expected[2].clone()]);
}

#[test]
fn permissions_follow_roles_and_their_changes() {
    let mut world = World::enabled();
    for op in [
        user_add("alice"),
        role_add("reads"),
        role_add("writes"),
        grant("reads", Type::Read, "a", "c"),
        grant("writes", Type::Write, "b", "d"),
        grant_role("alice", "reads"),
        grant_role("alice", "writes"),
    ] {
        world.run(op).unwrap();
    }
    let may = |world: &World, write: bool, key: &str, end: &str| {
        let (who, key, end) = (world.who("alice"), key.as_bytes(), end.as_bytes());
        match write {
            true => world.state.check_write(who.as_ref(), key, end),
            false => world.state.check_read(who.as_ref(), key, end),
        }
    };
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(may(&world, false, "a", "c"), Ok(()));
    assert_eq!(may(&world, true, "a", ""), denied);
    assert_eq!(may(&world, true, "b", "d"), Ok(()));
    assert_eq!(may(&world, false, "c", ""), denied);
    world.run(grant("reads", Type::Read, "c", "\0")).unwrap();
    assert_eq!(may(&world, false, "a", "\0"), Ok(()), "they touch");
    world.run(revoke("writes", "b", "d")).unwrap();
    assert_eq!(may(&world, true, "b", ""), denied);
    world.run(role_delete("reads")).unwrap();
    assert_eq!(may(&world, false, "a", ""), denied);
    assert_eq!(world.state.user("alice").unwrap().roles, ["writes"]);
    assert!(world.touched.users.contains("alice"));
    world.run(grant_role("alice", "root")).unwrap();
    assert_eq!(may(&world, true, "\0", "\0"), Ok(()));
    world.run(user_delete("alice")).unwrap();
    assert_eq!(may(&world, false, "a", ""), denied);
}

#[test]
fn nobody_old_revisions_and_strangers_are_told_apart() {
    let mut world = World::with_root();
    let old = world.who("root");
    let read = |world: &World, who: Option<&Identity>| world.state.check_read(who, b"a", b"");
    assert_eq!(read(&world, None), Ok(()), "disabled");
    assert_eq!(world.state.check_root(None), Ok(()), "disabled");
    world.run(enable()).unwrap();
    world.run(role_add("r")).unwrap();
    assert_eq!(read(&world, None), Err(ApiError::UserEmpty));
    assert_eq!(read(&world, old.as_ref()), Err(ApiError::AuthOldRevision));
    assert_eq!(world.state.check_root(old.as_ref()), Ok(()), "as in etcd");
    let stranger = world.who("mallory");
    for refused in [
        read(&world, stranger.as_ref()),
        world.state.check_root(stranger.as_ref()),
        world.state.check_known(stranger.as_ref()),
    ] {
        assert_eq!(refused, Err(ApiError::PermissionDenied));
    }
    assert_eq!(world.state.check_root(None), Err(ApiError::UserEmpty));
    assert_eq!(world.state.check_known(None), Err(ApiError::UserEmpty));
    assert_eq!(read(&world, world.who("root").as_ref()), Ok(()));
}

#[test]
fn names_that_are_no_keys_of_the_engine_are_refused() {
    let mut world = World::default();
    let long = "x".repeat(32_001);
    for op in [user_add(&long), role_add(&long)] {
        let refused = world.run(op).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    world.run(user_add(&long[1..])).unwrap();
}

#[test]
fn certificates_count_where_there_is_no_token() {
    let table = Arc::<TokenTable>::default();
    let tokens = Tokens::Simple(table.clone());
    let authenticator = Authenticator::start(tokens, COST_MIN).unwrap();
    let of = |token: Option<&str>, name: Option<&str>| Caller {
        token: token.map(Arc::from),
        common_name: name.map(Arc::from),
    };
    let mut world = World::with_root();
    let now = |world: &World, caller: &Caller| authenticator.identify_now(caller, &world.state);
    let bad = of(Some("no token"), None);
    assert_eq!(now(&world, &bad), Ok(None), "disabled");
    world.run(enable()).unwrap();
    assert_eq!(now(&world, &bad), Err(ApiError::InvalidAuthToken));
    assert_eq!(now(&world, &of(None, None)), Ok(None));
    assert_eq!(
        now(&world, &of(None, Some("carol"))),
        Ok(world.who("carol"))
    );
    table.assigned("abc.1", "alice");
    let both = of(Some("abc.1"), Some("carol"));
    assert_eq!(now(&world, &both), Ok(world.who("alice")));
    let bad = of(Some("abc.2"), Some("carol"));
    assert_eq!(now(&world, &bad), Err(ApiError::InvalidAuthToken));
}

#[tokio::test]
async fn token_of_an_entry_that_is_not_applied_yet_is_waited_for() {
    let table = Arc::<TokenTable>::default();
    let authenticator = Authenticator::start(Tokens::Simple(table.clone()), COST_MIN).unwrap();
    let state = World::enabled().state;
    let caller = Caller {
        token: Some("abc.9".into()),
        common_name: None,
    };
    let looks = std::cell::Cell::new(0);
    let applied = || {
        looks.set(looks.get() + 1);
        if looks.get() == 3 {
            table.assigned("abc.9", "alice");
        }
        8
    };
    let patience = Duration::from_secs(5);
    authenticator
        .catch_up(&caller, &state, applied, patience)
        .await;
    assert_eq!(looks.get(), 3);
    assert!(authenticator.identify_now(&caller, &state).is_ok());
    // What is applied and not known never will be.
    table.cleared();
    looks.set(10);
    authenticator
        .catch_up(&caller, &state, || 9, patience)
        .await;
    let refused = authenticator.identify_now(&caller, &state);
    assert_eq!(refused, Err(ApiError::InvalidAuthToken));
}

#[test]
fn prefixes_are_letters_and_not_the_same() {
    let drawn: Vec<_> = (0..20).map(|_| draw_prefix().unwrap()).collect();
    for prefix in &drawn {
        assert_eq!(prefix.len(), TOKEN_LETTERS);
        assert!(prefix.bytes().all(|letter| letter.is_ascii_alphabetic()));
    }
    let different: std::collections::BTreeSet<_> = drawn.iter().collect();
    assert_eq!(different.len(), drawn.len());
}
