//! What commands are refused for where they are applied, and that users and roles are applied state like any other.

use super::*;
use crate::auth::tests::{
    assign, change_password, disable, enable, grant, grant_role, revoke_role, role_add, user_add,
    user_delete,
};
use crate::auth::{TokenSink, TokenTable};
use crate::pb::authpb::permission::Type;
use crate::pb::command::{AuthCommand, Caller, SetAlarm, auth_command};
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};

fn auth(op: auth_command::Op) -> Op {
    Op::Auth(AuthCommand { op: Some(op) })
}

impl Rig {
    /// Applies a command on behalf of a user, as known by the newest revision; an empty name is nobody's.
    fn by(&mut self, user: &str, op: Op) -> CommandOutput {
        let revision = match user {
            "" => 0,
            _ => self.store.auth().revision(),
        };
        self.by_revision(user, revision, op)
    }

    fn by_revision(&mut self, user: &str, revision: u64, op: Op) -> CommandOutput {
        let user = user.to_owned();
        let payload = call(Caller { user, revision }, &Command { op: Some(op) });
        self.payload(payload)
    }

    fn payload(&mut self, payload: Bytes) -> CommandOutput {
        let entry = Entry {
            index: self.machine.applied().index.next(),
            term: Term(1),
            kind: EntryKind::Normal,
            payload,
        };
        let mut outputs = Vec::new();
        self.machine.apply(&[entry], None, &mut outputs).unwrap();
        outputs.remove(0)
    }

    /// Root, and alice who reads `a` to `d`, and writes `b` to `e`; enabled.
    fn with_users() -> Self {
        let mut rig = Self::new();
        let ops = [
            user_add("root"),
            grant_role("root", "root"),
            user_add("alice"),
            role_add("r"),
            grant("r", Type::Read, "a", "d"),
            grant("r", Type::Write, "b", "e"),
            grant_role("alice", "r"),
            enable(),
        ];
        for op in ops {
            rig.one(auth(op)).unwrap();
        }
        rig
    }
}

fn reads(key: &str) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestRange(point(key))),
    }
}

fn writes(key: &str) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(put_request(key, ""))),
    }
}

fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        failure,
        ..TxnRequest::default()
    }
}

fn with_prev(mut op: Op) -> Op {
    match &mut op {
        Op::Put(put) => put.prev_kv = true,
        Op::DeleteRange(delete) => delete.prev_kv = true,
        _ => panic!("nothing comes back"),
    }
    op
}

fn alarm(action: AlarmAction) -> Op {
    Op::SetAlarm(SetAlarm {
        request: Some(AlarmRequest {
            action: action.into(),
            member_id: 1,
            alarm: AlarmType::Nospace.into(),
        }),
        automatic: false,
    })
}

#[test]
fn each_command_needs_what_etcd_asks_for() {
    let mut rig = Rig::with_users();
    rig.by("root", put("c", "1")).unwrap();
    let compare = |key: &str, end: &str| Compare {
        key: bytes(key),
        range_end: bytes(end),
        target: CompareTarget::Version.into(),
        ..Compare::default()
    };
    let with_compare = |key, end| {
        Op::Txn(TxnRequest {
            compare: vec![compare(key, end)],
            ..TxnRequest::default()
        })
    };
    let nested = |inner: TxnRequest| {
        let request = Some(Request::RequestTxn(inner));
        Op::Txn(txn(vec![], vec![RequestOp { request }]))
    };
    let prev_put = |key: &str| {
        let mut put = put_request(key, "");
        put.prev_kv = true;
        let request = Some(Request::RequestPut(put));
        Op::Txn(txn(vec![RequestOp { request }], vec![]))
    };
    let allowed = [
        put("b", ""),
        put("d", ""),
        with_prev(put("c", "")),
        delete("b", "e"),
        with_prev(delete("b", "d")),
        Op::Txn(txn(vec![reads("a")], vec![writes("d")])),
        with_compare("a", "d"),
        nested(txn(vec![writes("c")], vec![reads("a")])),
        prev_put("c"),
        grant_lease(),
    ];
    for op in allowed {
        rig.by("alice", op.clone())
            .unwrap_or_else(|error| panic!("{error} for {op:?}"));
    }
    let revision = rig.store.revision();
    let denied = [
        put("a", ""),
        put("e", ""),
        with_prev(put("d", "")),
        delete("b", "e\0"),
        delete("b", "\0"),
        with_prev(delete("b", "e")),
        Op::Txn(txn(vec![reads("d")], vec![])),
        Op::Txn(txn(vec![], vec![writes("a")])),
        with_compare("a", "e"),
        with_compare("d", ""),
        nested(txn(vec![writes("a")], vec![])),
        nested(txn(vec![], vec![reads("d")])),
        prev_put("d"),
        compact(2),
        alarm(AlarmAction::Activate),
        alarm(AlarmAction::Deactivate),
        auth(user_add("bob")),
        auth(change_password("alice")),
        auth(grant_role("alice", "root")),
        auth(disable()),
        auth(enable()),
    ];
    for op in &denied {
        let output = rig.by("alice", op.clone());
        assert_eq!(output, Err(ApiError::PermissionDenied), "{op:?}");
        let output = rig.by("mallory", op.clone());
        assert_eq!(output, Err(ApiError::PermissionDenied), "{op:?}");
        let output = rig.by("", op.clone());
        assert_eq!(output, Err(ApiError::UserEmpty), "{op:?}");
    }
    assert_eq!(rig.store.revision(), revision, "nothing was changed");
    for op in [
        put("a", ""),
        with_prev(delete("a", "\0")),
        alarm(AlarmAction::Activate),
    ] {
        rig.by("root", op).unwrap();
    }
}

fn grant_lease() -> Op {
    grant_of(77)
}

fn grant_of(id: i64) -> Op {
    Op::LeaseGrant(LeaseGrant { id, ttl: 10 })
}

#[test]
fn lease_counts_with_all_its_keys() {
    let mut rig = Rig::with_users();
    let put_with = |key: &str, lease| {
        Op::Put(PutRequest {
            lease,
            ..put_request(key, "")
        })
    };
    let in_txn = |key: &str, lease| {
        let Op::Put(put) = put_with(key, lease) else {
            unreachable!()
        };
        let request = Some(Request::RequestPut(put));
        Op::Txn(txn(vec![RequestOp { request }], vec![]))
    };
    let end = |id| Op::LeaseRevoke(LeaseRevokeRequest { id });
    for id in [1, 2] {
        rig.by("alice", grant_of(id)).unwrap();
        rig.by("alice", put_with("c", id)).unwrap();
    }
    rig.by("root", put_with("z", 2)).unwrap();
    for op in [put_with("b", 2), in_txn("b", 2), end(2)] {
        let output = rig.by("alice", op.clone());
        assert_eq!(output, Err(ApiError::PermissionDenied), "{op:?}");
    }
    // The server's own end of a lease asks nobody.
    let items = vec![lease_expire::Item {
        id: 2,
        granted_index: rig.store.lease(2).unwrap().granted.0,
    }];
    rig.one(Op::LeaseExpire(LeaseExpire { items })).unwrap();
    assert_eq!(rig.store.lease(2), None);
    for op in [put_with("b", 1), in_txn("b", 1), end(1)] {
        rig.by("alice", op).unwrap();
    }
    assert_eq!(rig.by("", grant_of(3)), Err(ApiError::UserEmpty));
    assert_eq!(rig.by("", end(9)), Err(ApiError::UserEmpty));
    assert_eq!(rig.by("alice", end(9)), Err(ApiError::LeaseNotFound));
}

#[test]
fn command_from_before_a_change_of_users_is_refused() {
    let mut rig = Rig::with_users();
    let old = rig.store.auth().revision();
    rig.by("root", auth(role_add("other"))).unwrap();
    for user in ["alice", "root"] {
        let output = rig.by_revision(user, old, put("c", ""));
        assert_eq!(output, Err(ApiError::AuthOldRevision), "{user}");
    }
    // What only root may do does not look at it, as in etcd.
    rig.by_revision("root", old, compact(1)).unwrap();
    rig.by("alice", put("c", "")).unwrap();
    // One that was proposed while nobody needed a user, and applied when everybody does.
    assert_eq!(rig.one(put("c", "")), Err(ApiError::UserEmpty));
    // The server's own commands have no caller.
    for op in [
        compact(2),
        alarm(AlarmAction::Activate),
        Op::CheckState(Default::default()),
    ] {
        rig.one(op).unwrap();
    }
    rig.by("root", auth(disable())).unwrap();
    rig.one(put("z", "")).unwrap_err();
    rig.one(alarm(AlarmAction::Deactivate)).unwrap();
    rig.one(put("z", "")).unwrap();
}

#[test]
fn forwarded_command_keeps_its_caller() {
    let mut rig = Rig::with_users();
    let revision = rig.store.auth().revision();
    let payload = |user: &str, key: &str| {
        let user = user.to_owned();
        let op = Some(put(key, ""));
        call(Caller { user, revision }, &Command { op })
    };
    let from = |sequence| Origin {
        member: NodeId(9),
        boot: 1,
        sequence,
        lowest_open: 1,
    };
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(rig.payload(stamp(&from(1), &payload("alice", "a"))), denied);
    rig.payload(stamp(&from(2), &payload("alice", "b")))
        .unwrap();
    let op = Some(put("b", ""));
    let bare = Command { op }.encode_to_vec();
    let nobody = rig.payload(stamp(&from(3), &bare));
    assert_eq!(nobody, Err(ApiError::UserEmpty));
}

#[test]
fn users_and_roles_survive_a_restart_and_count_in_the_hash() {
    let mut rig = Rig::new();
    let empty = rig.store.state_hash().unwrap();
    // One that changes nothing leaves nothing behind.
    rig.one(auth(disable())).unwrap();
    let rows = rig
        .engine
        .0
        .lock()
        .unwrap()
        .keys()
        .filter(|key| key[0] > 10)
        .count();
    assert_eq!(rows, 0);
    assert_ne!(empty, rig.store.state_hash().unwrap(), "the index moved");

    let mut rig = Rig::with_users();
    let hash = rig.store.state_hash().unwrap();
    let before = rig.store.auth();
    let mut again = Rig::on(rig.engine.clone());
    let after = again.store.auth();
    assert!(after.is_enabled());
    assert_eq!(after.revision(), before.revision());
    assert_eq!(after.users().collect::<Vec<_>>(), ["alice", "root"]);
    assert_eq!(after.user("alice"), before.user("alice"));
    assert_eq!(after.role("r"), before.role("r"));
    assert_eq!(again.store.state_hash().unwrap(), hash);
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(again.by("alice", put("a", "")), denied);
    again.by("alice", put("b", "")).unwrap();
    again.by("root", auth(user_delete("alice"))).unwrap();
    let third = Rig::on(again.engine.clone());
    assert_eq!(third.store.auth().user("alice"), None);

    // Two that differ in a role only.
    let (mut one, mut two) = (Rig::with_users(), Rig::with_users());
    assert_eq!(one.store.state_hash(), two.store.state_hash());
    one.by("root", auth(revoke_role("alice", "r"))).unwrap();
    two.by("root", auth(role_add("alice"))).unwrap();
    assert_ne!(one.store.state_hash(), two.store.state_hash());
    rig.tick_until_compacted();
}

#[test]
fn snapshot_and_backup_carry_users_and_roles() {
    let rig = Rig::with_users();
    let backup = rig.store.backup().unwrap();
    let mut file = Vec::new();
    let source = BackupSource {
        cluster: 1,
        member: 2,
    };
    let content_len = backup.content_len().unwrap();
    backup.write(source, content_len, &mut file).unwrap();
    let reader = BackupReader::open(Box::new(std::io::Cursor::new(file))).unwrap();
    let change = RestoreChange {
        membership: Membership::default(),
        bump_revision: 0,
        mark_compacted: false,
    };
    let mut content = Vec::new();
    reader.write_restored(&change, &mut content).unwrap();
    let (mut restored, mut tables) = (
        super::super::snapshot::Content::open(&content[..])
            .unwrap()
            .0,
        std::collections::BTreeMap::<u8, usize>::new(),
    );
    while let Some((table, _, record)) = restored.next().unwrap() {
        *tables.entry(table).or_default() += 1;
        if table == super::super::codec::AUTH {
            assert_eq!(record[1], 1, "enabled");
        }
    }
    use super::super::codec::{AUTH, ROLE, USER};
    assert_eq!([AUTH, USER, ROLE].map(|table| tables[&table]), [1, 2, 1]);
}

#[test]
fn tokens_are_told_in_order_and_forgotten_where_they_end() {
    let mut rig = Rig::with_users();
    let tokens = Arc::<TokenTable>::default();
    rig.machine
        .tell_tokens(tokens.clone() as Arc<dyn TokenSink>);
    let token = |rig: &mut Rig, user: &str| {
        let revision = rig.store.auth().revision();
        let Ok(CommandResult::Auth(answer)) = rig.by("", auth(assign(user, revision))) else {
            panic!("no token");
        };
        answer.token
    };
    let (one, two) = (token(&mut rig, "alice"), token(&mut rig, "root"));
    assert_eq!(one, format!("abc.{}", rig.machine.applied().index.0 - 1));
    assert_eq!(tokens.user(&one).as_deref(), Some("alice"));
    rig.by("root", auth(change_password("alice"))).unwrap();
    assert_eq!(tokens.user(&one), None);
    assert_eq!(tokens.user(&two).as_deref(), Some("root"));
    rig.by("root", auth(disable())).unwrap();
    assert_eq!(tokens.user(&two), None);
}

/// Bytes as they were written before there were users, and as they are now: what is in a log stays readable.
#[test]
fn commands_are_written_as_they_were_and_callers_stand_before_them() {
    let command = Command {
        op: Some(put("k", "v")),
    };
    let bare = b"\x0a\x06\x0a\x01k\x12\x01v";
    assert_eq!(command.encode_to_vec(), bare);
    let caller = Caller {
        user: "al".to_owned(),
        revision: 3,
    };
    let called = call(caller.clone(), &command);
    let before = b"\x72\x06\x0a\x02al\x10\x03";
    assert_eq!(called, [&before[..], bare].concat());
    let origin = Origin {
        member: NodeId(9),
        boot: 1,
        sequence: 2,
        lowest_open: 1,
    };
    let forwarded = stamp(&origin, &called);
    assert_eq!(forwarded[..2], [0x7a, 8]);
    assert_eq!(forwarded[10..], called[..]);
    use super::super::duplicates::{self, caller as caller_of};
    assert_eq!(caller_of(&Bytes::from_static(bare)), Ok(None));
    assert_eq!(caller_of(&called), Ok(Some(caller.clone())));
    assert_eq!(caller_of(&forwarded), Ok(Some(caller)));
    assert_eq!(duplicates::origin(&forwarded), Ok(Some(origin)));
    assert_eq!(Command::decode(forwarded).unwrap(), command);
    assert!(caller_of(&Bytes::from_static(b"\x72\x09")).is_err());
    let nobody = call(Caller::default(), &command);
    assert_eq!(nobody[..2], *b"\x72\x00");
    assert_eq!(caller_of(&nobody), Ok(Some(Caller::default())));
}
