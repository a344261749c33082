//! What members published of themselves: names and URLs, part of applied state.
//!
//! A member proposes its record once it serves, when applied state has another one or none. The row goes with the member.
//! Who is a member, and who votes, is the group's configuration; this says only where its members are found.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use prost::Message;
use raft_log::NodeId;
use raft_node::core::Membership;

use super::codec::{self, Fields, Keys, MEMBER, damaged};
use super::read::Read;
use crate::engine::{Change, EngineError};
use crate::pb::command::PublishMember;

/// What each member published last.
pub type Published = BTreeMap<NodeId, PublishMember>;

/// The table, as the state machine keeps it.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    pub(super) rows: Published,
    /// Something in it changed since it was told.
    pub(super) changed: bool,
}

impl Members {
    /// Reads the table.
    pub(super) fn load(read: &dyn Read, keys: Keys) -> Result<Self, EngineError> {
        let mut rows = BTreeMap::new();
        for pair in read.scan(&keys.first(MEMBER), &keys.end(MEMBER)) {
            let record = Fields::of(pair?.1)?.rest();
            let row = PublishMember::decode(record);
            let row = row.map_err(|_| damaged("a member's record cannot be decoded"))?;
            rows.insert(NodeId(row.id), row);
        }
        let changed = false;
        Ok(Self { rows, changed })
    }

    /// Takes a record, unless its member is known to be none. `membership` is the one in force, if applied entries have
    /// named one.
    pub(super) fn publish(
        &mut self,
        row: PublishMember,
        membership: Option<&Membership>,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) {
        let id = NodeId(row.id);
        if membership.is_some_and(|membership| !membership.members().contains(&id)) {
            return;
        }
        let mut record = codec::record(row.encoded_len());
        record.put_slice(&row.encode_to_vec());
        changes.insert(keys.member(id), Change::Put(record.freeze()));
        self.rows.insert(id, row);
        self.changed = true;
    }

    /// Forgets who is no member any more.
    pub(super) fn keep(
        &mut self,
        membership: &Membership,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) {
        let members = membership.members();
        let gone = self.rows.keys().filter(|id| !members.contains(id));
        for id in gone.copied().collect::<Vec<_>>() {
            self.rows.remove(&id);
            changes.insert(keys.member(id), Change::Delete);
            self.changed = true;
        }
    }
}
