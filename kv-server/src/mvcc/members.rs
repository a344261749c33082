//! The members: their names and URLs, the disk behind each, and the ids that are never given out again; part of applied
//! state.
//!
//! Who is a member, and who votes, is the group's configuration. What the ids do not say comes in the same entry: the
//! context of a change ([`MemberChange`]), so that there is no moment between the two. A member that begins with the
//! cluster has no row until it publishes itself, which each does once it serves. A row goes with its member; the id stays
//! behind as removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;
use raft_log::{Index, NodeId};
use raft_node::core::Membership;

use super::codec::{self, Fields, Keys, MEMBER, Meta, REMOVED, damaged};
use super::read::Read;
use crate::engine::{Change, EngineError};
use crate::error::ApiError;
use crate::pb::command::{MemberChange, PublishMember, UpdateMember};

/// What applied state says of the members, as of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberTable {
    /// All that was applied up to here is in it.
    pub index: Index,
    /// What is known of each; a member that began with the cluster and never served has no row.
    pub rows: BTreeMap<NodeId, PublishMember>,
    /// Those that were removed, and by which request; never given out again.
    pub removed: BTreeMap<NodeId, u64>,
    /// The newest membership of an applied entry; none while the first one is in force.
    pub membership: Option<Membership>,
}

/// The table, as the state machine keeps it.
#[derive(Debug, Default)]
pub(super) struct Members {
    table: Arc<MemberTable>,
    /// Something in it changed since it was told.
    changed: bool,
}

type Changes = BTreeMap<Bytes, Change>;

impl Members {
    /// Reads the table. `meta` is the record beside it.
    pub(super) fn load(read: &dyn Read, keys: Keys, meta: &Meta) -> Result<Self, EngineError> {
        let membership = meta.membership.as_ref();
        let mut table = MemberTable {
            index: meta.index,
            membership: membership.map(|(_, membership)| membership.clone()),
            ..MemberTable::default()
        };
        for pair in read.scan(&keys.first(MEMBER), &keys.end(MEMBER)) {
            let record = Fields::of(pair?.1)?.rest();
            let row = PublishMember::decode(record);
            let row = row.map_err(|_| damaged("a member's record cannot be decoded"))?;
            table.rows.insert(NodeId(row.id), row);
        }
        for pair in read.scan(&keys.first(REMOVED), &keys.end(REMOVED)) {
            let (key, record) = pair?;
            let id = key.last_chunk::<8>();
            let id = id.ok_or_else(|| damaged("the key of a removed member is too short"))?;
            let request = Fields::of(record)?.u64()?;
            let id = NodeId(u64::from_be_bytes(*id));
            table.removed.insert(id, request);
        }
        Ok(Self {
            table: Arc::new(table),
            changed: false,
        })
    }

    /// The table as it is.
    pub(super) fn table(&self) -> Arc<MemberTable> {
        Arc::clone(&self.table)
    }

    /// The table, if it changed since the last call; all up to `index` is applied.
    pub(super) fn take_changed(&mut self, index: Index) -> Option<Arc<MemberTable>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        Arc::make_mut(&mut self.table).index = index;
        Some(self.table())
    }

    /// Takes what a member tells of itself. Nothing from who is known to be no member, or comes with another disk than
    /// before. `membership` is the one in force, if applied entries have named one.
    pub(super) fn publish(
        &mut self,
        mut row: PublishMember,
        membership: Option<&Membership>,
        keys: Keys,
        changes: &mut Changes,
    ) {
        let id = NodeId(row.id);
        if membership.is_some_and(|membership| !membership.contains(id)) {
            return;
        }
        if let Some(known) = self.table.rows.get(&id) {
            if known.store != 0 && row.store != known.store {
                return;
            }
            if !known.peer_urls.is_empty() {
                row.peer_urls.clone_from(&known.peer_urls);
            }
        }
        let known = self.table.rows.get(&id);
        row.joins_as_voter = known.is_some_and(|known| known.joins_as_voter);
        row.request = known.map_or(0, |known| known.request);
        self.put(row, keys, changes);
    }

    /// Gives a member other peer URLs.
    pub(super) fn update(
        &mut self,
        update: UpdateMember,
        membership: Option<&Membership>,
        keys: Keys,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let id = NodeId(update.id);
        if membership.is_some_and(|membership| !membership.contains(id)) {
            return Err(ApiError::MemberNotFound);
        }
        if self.table.is_taken(&update.peer_urls, id) {
            return Err(ApiError::PeerUrlExists);
        }
        let known = self.table.rows.get(&id).cloned();
        let row = PublishMember {
            id: update.id,
            peer_urls: update.peer_urls,
            ..known.unwrap_or_default()
        };
        self.put(row, keys, changes);
        Ok(())
    }

    /// A change of the membership is applied, with the context of its entry. `before` is the one before it, if applied
    /// entries have named one.
    pub(super) fn change(
        &mut self,
        change: MemberChange,
        before: Option<&Membership>,
        after: &Membership,
        keys: Keys,
        changes: &mut Changes,
    ) {
        for row in change.added {
            if after.contains(NodeId(row.id)) {
                let request = change.request;
                self.put(PublishMember { request, ..row }, keys, changes);
            }
        }
        // Who leaves does so in the last entry of a change, which knows nothing of the request.
        for id in change.promoted.into_iter().chain(change.removed) {
            let known = self.table.rows.get(&NodeId(id)).cloned();
            let row = PublishMember {
                id,
                request: change.request,
                ..known.unwrap_or_default()
            };
            self.put(row, keys, changes);
        }
        let votes = |row: &&PublishMember| row.joins_as_voter && after.is_voter(NodeId(row.id));
        let votes: Vec<_> = self.table.rows.values().filter(votes).cloned().collect();
        for row in votes {
            let joins_as_voter = false;
            let row = PublishMember {
                joins_as_voter,
                ..row
            };
            self.put(row, keys, changes);
        }
        let before = before.map(Membership::members).unwrap_or_default();
        let known = self.table.rows.keys().copied();
        let mut gone: Vec<_> = before.into_iter().chain(known).collect();
        gone.retain(|id| !after.contains(*id));
        let table = Arc::make_mut(&mut self.table);
        for id in gone {
            let row = table.rows.remove(&id);
            if row.is_some() {
                changes.insert(keys.member(id), Change::Delete);
            }
            table.removed.entry(id).or_insert_with(|| {
                let request = row.map_or(0, |row| row.request);
                let mut record = codec::record(8);
                record.put_u64_le(request);
                changes.insert(keys.removed(id), Change::Put(record.freeze()));
                request
            });
        }
        table.membership = Some(after.clone());
        self.changed = true;
    }

    fn put(&mut self, row: PublishMember, keys: Keys, changes: &mut Changes) {
        let id = NodeId(row.id);
        let mut record = codec::record(row.encoded_len());
        record.put_slice(&row.encode_to_vec());
        changes.insert(keys.member(id), Change::Put(record.freeze()));
        Arc::make_mut(&mut self.table).rows.insert(id, row);
        self.changed = true;
    }
}

impl MemberTable {
    /// True when one of the URLs is that of another member than `id`.
    #[must_use]
    pub fn is_taken(&self, urls: &[String], id: NodeId) -> bool {
        let others = self.rows.iter().filter(|(other, _)| **other != id);
        let mut taken = others.flat_map(|(_, row)| &row.peer_urls);
        taken.any(|url| urls.contains(url))
    }
}

#[cfg(test)]
mod tests {
    use raft_log::GroupId;

    use super::*;

    const KEYS: Keys = Keys {
        group: GroupId(1),
        generation: 0,
    };

    fn row(id: u64, url: &str) -> PublishMember {
        PublishMember {
            id,
            peer_urls: vec![url.to_owned()],
            ..PublishMember::default()
        }
    }

    fn of(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> Membership {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Membership {
            voters: ids(voters),
            voters_outgoing: ids(outgoing),
            learners: ids(learners),
        }
    }

    struct World {
        members: Members,
        rows: Changes,
        before: Option<Membership>,
    }

    impl World {
        fn new() -> Self {
            let (members, rows) = (Members::default(), Changes::new());
            let before = None;
            Self {
                members,
                rows,
                before,
            }
        }

        fn change(&mut self, change: MemberChange, after: Membership) {
            let before = self.before.as_ref();
            self.members
                .change(change, before, &after, KEYS, &mut self.rows);
            self.before = Some(after);
        }

        fn publish(&mut self, row: PublishMember) {
            let membership = self.before.as_ref();
            self.members.publish(row, membership, KEYS, &mut self.rows);
        }

        fn table(&self) -> &MemberTable {
            &self.members.table
        }
    }

    #[test]
    fn member_that_was_added_keeps_its_urls_and_its_first_disk() {
        let mut world = World::new();
        let added = MemberChange {
            request: 7,
            added: vec![PublishMember {
                joins_as_voter: true,
                ..row(2, "http://two:1")
            }],
            ..MemberChange::default()
        };
        world.change(added, of(&[1], &[], &[2]));
        world.publish(PublishMember {
            name: "two".to_owned(),
            store: 20,
            ..row(2, "http://elsewhere:1")
        });
        let two = world.table().rows[&NodeId(2)].clone();
        assert_eq!((two.name.as_str(), two.store, two.request), ("two", 20, 7));
        assert_eq!(two.peer_urls, ["http://two:1"]);
        assert!(two.joins_as_voter);
        world.publish(PublishMember {
            name: "wiped".to_owned(),
            store: 21,
            ..row(2, "http://two:1")
        });
        assert_eq!(world.table().rows[&NodeId(2)], two, "another disk");

        let promoted = MemberChange {
            promoted: vec![2],
            ..MemberChange::default()
        };
        world.change(promoted, of(&[1, 2], &[1], &[]));
        assert!(!world.table().rows[&NodeId(2)].joins_as_voter);
    }

    #[test]
    fn member_that_leaves_is_removed_with_the_last_entry_and_for_ever() {
        let mut world = World::new();
        world.publish(row(1, "http://one:1"));
        let removed = MemberChange {
            request: 9,
            removed: vec![3],
            ..MemberChange::default()
        };
        world.change(removed, of(&[1, 2], &[1, 2, 3], &[]));
        assert_eq!(world.table().removed.len(), 0, "it may still decide");
        world.change(MemberChange::default(), of(&[1, 2], &[], &[]));
        assert_eq!(world.table().removed, BTreeMap::from([(NodeId(3), 9)]));
        world.publish(row(3, "http://three:1"));
        let ids: Vec<_> = world.table().rows.keys().copied().collect();
        assert_eq!(ids, [NodeId(1)]);
    }

    #[test]
    fn update_is_refused_for_urls_of_others_and_for_strangers() {
        let mut world = World::new();
        world.publish(row(1, "http://one:1"));
        world.publish(row(2, "http://two:1"));
        let mut update = |id, url: &str, membership: Option<&Membership>| {
            let peer_urls = vec![url.to_owned()];
            let update = UpdateMember { id, peer_urls };
            (world.members).update(update, membership, KEYS, &mut world.rows)
        };
        let taken = Err(ApiError::PeerUrlExists);
        assert_eq!(update(1, "http://two:1", None), taken);
        assert_eq!(update(1, "http://one:1", None), Ok(()));
        let members = of(&[1, 2], &[], &[]);
        assert_eq!(update(1, "http://new:1", Some(&members)), Ok(()));
        let missing = Err(ApiError::MemberNotFound);
        assert_eq!(update(3, "http://three:1", Some(&members)), missing);
    }
}
