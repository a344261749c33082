//! Alarms, cuts that members compare, and backups.

use std::io::{Cursor, Read};
use std::sync::atomic::AtomicBool;

use multiraft::SnapshotState;
use raft_log::SnapshotRef;
use raft_node::core::Membership;

use super::*;
use crate::mvcc::{
    BackupReader, BackupSource, CheckSink, RestoreChange, StateCut, backup_len, may_put,
};
use crate::pb::command::{
    CheckState, LeaseExpire, PublishMember, RegisterKeyspace, SetAlarm, lease_expire,
};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, LeaseRevokeRequest,
};

fn set(action: AlarmAction, alarm: AlarmType, member_id: u64, automatic: bool) -> Op {
    Op::SetAlarm(SetAlarm {
        request: Some(AlarmRequest {
            action: action.into(),
            member_id,
            alarm: alarm.into(),
        }),
        automatic,
    })
}

fn raise(alarm: AlarmType, member: u64) -> Op {
    set(AlarmAction::Activate, alarm, member, false)
}

fn clear(alarm: AlarmType, member: u64) -> Op {
    set(AlarmAction::Deactivate, alarm, member, false)
}

fn member_of(alarm: AlarmType, member_id: u64) -> AlarmMember {
    AlarmMember {
        member_id,
        alarm: alarm.into(),
    }
}

/// The alarms in an answer.
fn about(output: CommandOutput) -> Vec<AlarmMember> {
    let Ok(CommandResult::Alarm(AlarmResponse { alarms, .. })) = output else {
        panic!("no answer to an alarm: {output:?}");
    };
    alarms
}

fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        failure,
        ..TxnRequest::default()
    }
}

fn revoke(id: i64) -> Op {
    Op::LeaseRevoke(LeaseRevokeRequest { id })
}

fn delete_op(key: &str) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest {
        key: bytes(key),
        ..DeleteRangeRequest::default()
    }))
}

#[test]
fn alarms_are_raised_and_cleared_with_the_answers_of_etcd() {
    let mut rig = Rig::new();
    let full = member_of(AlarmType::Nospace, 7);
    assert_eq!(about(rig.one(raise(AlarmType::Nospace, 7))), [full]);
    assert_eq!(
        about(rig.one(raise(AlarmType::Nospace, 7))),
        [full],
        "again"
    );
    let everywhere = member_of(AlarmType::Nospace, 0);
    assert_eq!(about(rig.one(raise(AlarmType::Nospace, 0))), [everywhere]);
    assert_eq!(rig.store.alarms(), [everywhere, full]);
    assert_eq!(
        about(rig.one(clear(AlarmType::Nospace, 8))),
        [],
        "not raised"
    );
    assert_eq!(
        about(rig.one(clear(AlarmType::Corrupt, 7))),
        [],
        "not raised"
    );
    assert_eq!(about(rig.one(raise(AlarmType::None, 7))), [], "no alarm");
    assert_eq!(about(rig.one(clear(AlarmType::Nospace, 0))), [everywhere]);
    assert_eq!(about(rig.one(clear(AlarmType::Nospace, 7))), [full]);
    assert_eq!(rig.store.alarms(), []);
    let unknown = Op::SetAlarm(SetAlarm {
        request: Some(AlarmRequest {
            action: 9,
            member_id: 1,
            alarm: 9,
        }),
        automatic: false,
    });
    assert_eq!(about(rig.one(unknown)), []);
    assert_eq!(rig.store.revision(), 1, "an alarm is no revision");
}

#[test]
fn quota_clears_its_own_alarm_only() {
    use AlarmAction::{Activate, Deactivate};
    let full = AlarmType::Nospace;
    let mut rig = Rig::new();
    let held = |rig: &Rig| rig.store.alarm(member_of(full, 7));
    rig.one(set(Activate, full, 7, true)).unwrap();
    assert_eq!(held(&rig), Some(true));
    rig.one(set(Deactivate, full, 7, true)).unwrap();
    assert_eq!(held(&rig), None);
    rig.one(raise(full, 7)).unwrap();
    rig.one(set(Activate, full, 7, true)).unwrap();
    assert_eq!(held(&rig), Some(false), "raised by hand first");
    assert_eq!(about(rig.one(set(Deactivate, full, 7, true))), []);
    assert_eq!(held(&rig), Some(false));
    rig.one(clear(full, 7)).unwrap();
    rig.one(set(Activate, full, 7, true)).unwrap();
    rig.one(raise(full, 7)).unwrap();
    assert_eq!(held(&rig), Some(false), "taken over by hand");
}

/// What a client may ask, with an answer in a store that holds lease 1 with the key `l`, and the key `a` at revision 2.
fn asked() -> Vec<(&'static str, Op)> {
    let put_op = || op(Request::RequestPut(put_request("a", "2")));
    let nested = op(Request::RequestTxn(txn(vec![], vec![put_op()])));
    let read = op(Request::RequestRange(point("a")));
    vec![
        ("put", put("a", "2")),
        ("grant", grant(2)),
        ("txn that puts", Op::Txn(txn(vec![put_op()], vec![]))),
        ("txn that may put", Op::Txn(txn(vec![], vec![put_op()]))),
        ("txn with one inside", Op::Txn(txn(vec![nested], vec![]))),
        (
            "txn that deletes",
            Op::Txn(txn(vec![delete_op("a")], vec![read])),
        ),
        ("delete", delete("a", "")),
        ("compact", compact(2)),
        ("revoke", revoke(1)),
    ]
}

fn with_a_lease() -> Rig {
    let mut rig = Rig::new();
    for op in [put("a", "1"), grant(1), leased("l", 1)] {
        rig.one(op).unwrap();
    }
    rig
}

#[test]
fn full_store_refuses_what_grows_and_goes_on_with_the_rest() {
    for (name, op) in asked() {
        let mut rig = with_a_lease();
        rig.one(raise(AlarmType::Nospace, 3)).unwrap();
        let grows = match &op {
            Op::Put(_) | Op::LeaseGrant(_) => true,
            Op::Txn(txn) => may_put(txn),
            _ => false,
        };
        let before = rig.store.revision();
        let output = rig.one(op.clone());
        if grows {
            assert_eq!(output, Err(ApiError::NoSpace), "{name}");
            assert_eq!(rig.store.revision(), before, "{name}");
        } else {
            assert!(output.is_ok(), "{name}: {output:?}");
        }
        rig.one(clear(AlarmType::Nospace, 3)).unwrap();
        if grows {
            assert!(rig.one(op).is_ok(), "{name}");
        }
    }
}

#[test]
fn corrupt_cluster_refuses_clients_and_a_corrupt_member_only_itself() {
    for (name, op) in asked() {
        let mut rig = with_a_lease();
        rig.one(raise(AlarmType::Corrupt, 3)).unwrap();
        let output = rig.one(op.clone());
        assert!(output.is_ok(), "{name}: {output:?}");
        let mut rig = with_a_lease();
        rig.one(raise(AlarmType::Corrupt, 0)).unwrap();
        assert_eq!(rig.one(op), Err(ApiError::Corrupt), "{name}");
    }
    // What the server itself does goes on.
    let mut rig = with_a_lease();
    let granted_index = rig.store.lease(1).unwrap().granted.0;
    rig.one(raise(AlarmType::Corrupt, 0)).unwrap();
    let items = vec![lease_expire::Item {
        id: 1,
        granted_index,
    }];
    rig.one(Op::LeaseExpire(LeaseExpire { items })).unwrap();
    assert_eq!(rig.store.lease(1), None);
}

#[test]
fn alarms_survive_a_restart_and_count_in_the_hash() {
    let mut rig = with_a_lease();
    let before = rig.store.state_hash().unwrap();
    rig.one(set(AlarmAction::Activate, AlarmType::Nospace, 3, true))
        .unwrap();
    let full = rig.store.state_hash().unwrap();
    assert_ne!(before, full);
    let mut rig = Rig::on(rig.engine);
    assert_eq!(
        rig.store.alarm(member_of(AlarmType::Nospace, 3)),
        Some(true)
    );
    assert_eq!(rig.one(put("b", "1")), Err(ApiError::NoSpace));
}

#[test]
fn alarms_go_with_their_members_but_not_those_of_the_cluster() {
    let mut rig = Rig::new();
    for member in [0, 7, 8] {
        rig.one(raise(AlarmType::Corrupt, member)).unwrap();
        rig.one(raise(AlarmType::Nospace, member)).unwrap();
    }
    let membership = Membership::of_voters([NodeId(8)]);
    let entry = Entry {
        index: rig.machine.applied().index.next(),
        term: Term(1),
        kind: EntryKind::Config,
        payload: membership.encode(),
    };
    let mut outputs = Vec::new();
    rig.machine
        .apply(&[entry], Some(&membership), &mut outputs)
        .unwrap();
    let members = rig
        .store
        .alarms()
        .into_iter()
        .map(|raised| raised.member_id);
    assert_eq!(members.collect::<Vec<_>>(), [0, 8, 0, 8]);
}

#[derive(Default)]
struct Cuts(Mutex<Vec<StateCut>>);

impl CheckSink for Cuts {
    fn cut(&self, cut: StateCut) {
        self.0.lock().unwrap().push(cut);
    }
}

/// The index and hash of each cut that these batches lead to, hashed after all of them were applied.
fn cuts_of(batches: &[&[Op]]) -> Vec<(u64, u64)> {
    let mut rig = Rig::new();
    let cuts = Arc::new(Cuts::default());
    rig.machine.check_state(cuts.clone());
    for batch in batches {
        rig.apply(batch);
        rig.tick_until_compacted();
    }
    let cuts = cuts.0.lock().unwrap();
    let hash = |cut: &StateCut| cut.hash(&AtomicBool::new(false)).unwrap().unwrap();
    cuts.iter().map(|cut| (cut.index().0, hash(cut))).collect()
}

/// Members apply the same entries in other batches, and compact at other times: what they compare is the same all the
/// same, and it is the state as of the entry that asked for it, not of the batch that it came in.
#[test]
fn state_is_cut_at_the_entry_that_asks_however_entries_are_batched() {
    let check = || Op::CheckState(CheckState {});
    let ops = [
        put("a", "1"),
        put("a", "2"),
        compact(3),
        check(),
        put("b", "1"),
        check(),
        check(),
        delete("a", ""),
    ];
    let at_once = cuts_of(&[&ops]);
    let one_by_one = cuts_of(&ops.each_ref().map(std::slice::from_ref));
    let in_two = cuts_of(&[&ops[..5], &ops[5..]]);
    let indexes: Vec<u64> = at_once.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, [4, 6, 7]);
    assert_eq!(at_once, one_by_one);
    assert_eq!(at_once, in_two);
    let mut other = ops.clone();
    other[4] = put("b", "2");
    let other = cuts_of(&[&other]);
    assert_eq!(other[0], at_once[0]);
    assert_ne!(other[1].1, at_once[1].1);
    let stopped = {
        let mut rig = Rig::new();
        let cuts = Arc::new(Cuts::default());
        rig.machine.check_state(cuts.clone());
        rig.apply(&ops);
        let cuts = cuts.0.lock().unwrap();
        cuts[0].hash(&AtomicBool::new(true)).unwrap()
    };
    assert_eq!(stopped, None);
}

const SOURCE: BackupSource = BackupSource {
    cluster: 0xabc,
    member: 9,
};

fn register(name: &str) -> Op {
    Op::RegisterKeyspace(RegisterKeyspace {
        name: name.to_owned(),
        creation: 5,
        first_voters: vec![7],
    })
}

/// A store with something in every table, and a backup of it.
fn backed_up() -> (Rig, Vec<u8>) {
    let mut rig = with_a_lease();
    let member = PublishMember {
        id: 7,
        name: "old".to_owned(),
        ..PublishMember::default()
    };
    let more = [
        put("a", "2"),
        delete("a", ""),
        put("b", "3"),
        compact(3),
        Op::PublishMember(member),
        register("other"),
        raise(AlarmType::Nospace, 7),
    ];
    for op in more {
        rig.one(op).unwrap();
    }
    let backup = rig.store.backup().unwrap();
    // What comes later is not in it.
    rig.one(clear(AlarmType::Nospace, 7)).unwrap();
    rig.one(put("later", "1")).unwrap();
    let content_len = backup.content_len().unwrap();
    let mut file = Vec::new();
    backup.write(SOURCE, content_len, &mut file).unwrap();
    assert_eq!(file.len() as u64, backup_len(content_len));
    (rig, file)
}

fn reader(file: &[u8]) -> std::io::Result<BackupReader> {
    BackupReader::open(Box::new(Cursor::new(file.to_vec())) as Box<dyn Read + Send>)
}

#[test]
fn keyspaces_are_told_and_count_in_the_hash_and_a_snapshot_has_them() {
    let mut rig = Rig::new();
    rig.one(put("a", "1")).unwrap();
    let mut other = Rig::new();
    other.one(put("a", "1")).unwrap();
    rig.one(register("one")).unwrap();
    other.one(register("two")).unwrap();
    let (known, others) = (rig.store.keyspaces(), other.store.keyspaces());
    assert_eq!((known["one"].group, others["two"].group), (2, 2));
    let hash = rig.store.state_hash().unwrap();
    assert_ne!(hash, other.store.state_hash().unwrap());

    let mut content = Vec::new();
    rig.machine.cut().write(&mut content).unwrap();
    let applied = rig.machine.applied();
    let snapshot = SnapshotRef {
        index: applied.index,
        term: applied.term,
        number: 1,
        content_len: content.len() as u64,
        content_crc: 0,
        membership: Bytes::new(),
    };
    let content = Box::new(Cursor::new(content));
    let mut taken = Rig::new();
    taken.machine.begin_install(&snapshot, content).unwrap();
    while !taken.machine.install_step().unwrap() {}
    assert_eq!(*taken.store.keyspaces(), *known);
    assert_eq!(taken.store.state_hash().unwrap(), hash);
}

#[test]
fn backup_has_the_length_of_etcds_and_says_what_it_is() {
    let (_, file) = backed_up();
    assert_eq!(file.len() % 512, 32);
    let info = reader(&file).unwrap().inspect(true).unwrap();
    assert_eq!(info.source, SOURCE);
    assert_eq!(info.file_len, file.len() as u64);
    assert_eq!(info.hash, file[file.len() - 32..]);
    assert_eq!((info.revision, info.compact_revision), (6, 3));
    assert_eq!((info.keys, info.leases), (2, 1));
    assert_eq!(info.index.0, 10);
}

#[test]
fn backup_with_any_flipped_bit_or_cut_short_is_refused() {
    let (_, file) = backed_up();
    let judge = |file: &[u8]| reader(file).and_then(|backup| backup.inspect(true));
    for at in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[at / 8] ^= 1 << (at % 8);
        let error = judge(&bad).expect_err("a bit was flipped");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::InvalidData,
            "bit {at}: {error}"
        );
    }
    for length in 0..file.len() {
        let error = judge(&file[..length]).expect_err("it was cut short");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::InvalidData,
            "{length}: {error}"
        );
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(judge(&longer).is_err());
    // Without the checksum, on demand.
    let without = &file[..file.len() - 32];
    let info = reader(without).unwrap().inspect(false).unwrap();
    assert_eq!(info, judge(&file).unwrap());
}

#[test]
fn what_is_no_backup_is_refused_by_name() {
    for (file, expected) in [
        (vec![], "expected a header of 64 bytes, found 0"),
        (vec![0; 4096], "a backup of etcd cannot be restored"),
        (b"FLOTBAK\x02".repeat(8), "expected version 1, found 2"),
    ] {
        let error = reader(&file).expect_err("it is none");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn restored_content_has_new_members_and_nothing_of_the_old_ones() {
    let (_, file) = backed_up();
    let restored = |bump_revision, mark_compacted| {
        let change = RestoreChange {
            membership: Membership::of_voters([NodeId(1), NodeId(2)]),
            bump_revision,
            mark_compacted,
        };
        let mut content = Vec::new();
        let backup = reader(&file).unwrap();
        backup.write_restored(&change, &mut content).unwrap();
        let snapshot = SnapshotRef {
            index: Index(10),
            term: Term(1),
            number: 1,
            content_len: content.len() as u64,
            content_crc: 0,
            membership: Bytes::new(),
        };
        let mut rig = Rig::new();
        let content = Box::new(Cursor::new(content));
        rig.machine.begin_install(&snapshot, content).unwrap();
        while !rig.machine.install_step().unwrap() {}
        rig
    };
    let mut rig = restored(0, false);
    assert_eq!(rig.store.revision(), 6);
    assert_eq!(rig.store.alarms(), []);
    assert_eq!(rig.store.member(NodeId(7)), None);
    assert!(rig.store.keyspaces().is_empty());
    assert_eq!(rig.read("b", 0).unwrap().unwrap(), "3");
    assert_eq!(rig.read("later", 0).unwrap(), None);
    assert_eq!(rig.read("a", 4).unwrap().unwrap(), "2", "history is there");
    assert_eq!(rig.store.lease_keys(1).unwrap(), [bytes("l")]);
    let (_, membership) = rig.machine.applied().membership.unwrap();
    assert_eq!(membership.voters, [NodeId(1), NodeId(2)]);
    rig.one(put("new", "1")).unwrap();
    assert_eq!(rig.store.revision(), 7);

    let mut rig = restored(1_000, true);
    assert_eq!(
        (rig.store.revision(), rig.store.compact_revision()),
        (1_006, 1_006)
    );
    assert_eq!(rig.read("a", 5), Err(ApiError::Compacted));
    assert_eq!(rig.read("b", 0).unwrap().unwrap(), "3");
    rig.tick_until_compacted();
    rig.one(put("b", "4")).unwrap();
    assert_eq!(rig.store.revision(), 1_007);
    assert_eq!(rig.read("b", 1_006).unwrap().unwrap(), "3");
    assert_eq!(
        rig.store.history(1_006, 1 << 20).unwrap().revisions.len(),
        1
    );
}
