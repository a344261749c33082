//! The alarms, part of applied state: which member raised which, and what applying refuses because of them.
//!
//! NOSPACE of any member refuses what grows, on all of them, as in etcd. CORRUPT of a member is for that member's front end:
//! it serves nobody. CORRUPT of member 0 is of the whole cluster, where nobody can say who is right: then commands of
//! clients are refused where they are applied, too.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use raft_log::NodeId;
use raft_node::core::Membership;

use super::codec::{self, ALARM, Fields, Keys, damaged};
use super::read::Read;
use crate::engine::{Change, EngineError};
use crate::error::ApiError;
use crate::pb::command::{SetAlarm, command::Op};
use crate::pb::etcdserverpb::{AlarmMember, AlarmType, alarm_request::AlarmAction};

/// Alarm and member; members of one alarm lie together.
type Raised = (i32, NodeId);

/// The table, as the state machine keeps it.
#[derive(Clone, Debug, Default)]
pub(super) struct Alarms {
    /// Whether a member raised it by itself.
    rows: BTreeMap<Raised, bool>,
    /// Something in it changed since it was told.
    pub(super) changed: bool,
}

impl Alarms {
    /// Reads the table.
    pub(super) fn load(read: &dyn Read, keys: Keys) -> Result<Self, EngineError> {
        let mut rows = BTreeMap::new();
        for pair in read.scan(&keys.first(ALARM), &keys.end(ALARM)) {
            let (key, record) = pair?;
            let raised = codec::split_alarm(&key)?;
            let automatic = match *Fields::of(record)?.rest() {
                [automatic] => automatic != 0,
                _ => return Err(damaged("an alarm's record has another length")),
            };
            rows.insert(raised, automatic);
        }
        let changed = false;
        Ok(Self { rows, changed })
    }

    /// All of them, those of one kind together, and whether a member raised each by itself.
    pub(super) fn list(&self) -> Vec<(AlarmMember, bool)> {
        let rows = self.rows.iter();
        rows.map(|((alarm, member), automatic)| (member_of(*alarm, *member), *automatic))
            .collect()
    }

    /// Raises or clears what the command names; answers with what it is about, or with nothing where nothing is cleared,
    /// as etcd does.
    pub(super) fn set(
        &mut self,
        command: &SetAlarm,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) -> Vec<AlarmMember> {
        let Some(request) = &command.request else {
            return Vec::new();
        };
        let raised = (request.alarm, NodeId(request.member_id));
        let key = keys.alarm(raised);
        let held = self.rows.get(&raised).copied();
        let is_an_alarm =
            AlarmType::try_from(request.alarm).is_ok_and(|kind| kind != AlarmType::None);
        let is_about = match AlarmAction::try_from(request.action) {
            _ if !is_an_alarm => false,
            // One that somebody raised by hand stays theirs.
            Ok(AlarmAction::Activate) => {
                let automatic = command.automatic && held.unwrap_or(true);
                if held != Some(automatic) {
                    let mut record = codec::record(1);
                    record.put_u8(u8::from(automatic));
                    changes.insert(key, Change::Put(record.freeze()));
                    self.rows.insert(raised, automatic);
                    self.changed = true;
                }
                true
            }
            Ok(AlarmAction::Deactivate) if held.is_some_and(|held| held || !command.automatic) => {
                changes.insert(key, Change::Delete);
                self.rows.remove(&raised);
                self.changed = true;
                true
            }
            _ => false,
        };
        let about = is_about.then(|| member_of(request.alarm, raised.1));
        about.into_iter().collect()
    }

    /// Forgets those of who is no member any more.
    pub(super) fn keep(
        &mut self,
        membership: &Membership,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) {
        let members = membership.members();
        let stays = |member: NodeId| member == NodeId(0) || members.contains(&member);
        let rows = self.rows.keys();
        let gone: Vec<_> = rows
            .filter(|(_, member)| !stays(*member))
            .copied()
            .collect();
        for raised in gone {
            self.rows.remove(&raised);
            changes.insert(keys.alarm(raised), Change::Delete);
            self.changed = true;
        }
    }

    /// Refuses a command of a client that may not be applied now. What the server itself proposes always is.
    pub(super) fn check(&self, op: &Op) -> Result<(), ApiError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let (grows, of_client) = match op {
            Op::Put(_) | Op::LeaseGrant(_) => (true, true),
            Op::Txn(txn) => (super::check::may_put(txn), true),
            Op::DeleteRange(_) | Op::Compact(_) | Op::LeaseRevoke(_) => (false, true),
            _ => (false, false),
        };
        let corrupt = (AlarmType::Corrupt.into(), NodeId(0));
        if of_client && self.rows.contains_key(&corrupt) {
            return Err(ApiError::Corrupt);
        }
        let no_space = i32::from(AlarmType::Nospace);
        if grows && self.rows.keys().any(|(alarm, _)| *alarm == no_space) {
            return Err(ApiError::NoSpace);
        }
        Ok(())
    }
}

fn member_of(alarm: i32, member: NodeId) -> AlarmMember {
    AlarmMember {
        member_id: member.0,
        alarm,
    }
}
