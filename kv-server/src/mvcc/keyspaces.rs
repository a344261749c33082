//! The keyspaces beside the default one: which group holds each, and with what it begins. Part of the default keyspace's
//! applied state.
//!
//! Whatever a member needs to begin a group in its log is in the record, and the same for all, so that one that comes late
//! begins it as the first ones did. A keyspace stays: no command removes one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;
use raft_log::{GroupId, NodeId};
use raft_node::core::Membership;
use tonic::Code;

use super::codec::{self, Fields, KEYSPACE, Keys, damaged};
use super::read::Read;
use crate::engine::{Change, EngineError};
use crate::error::ApiError;
use crate::pb::command::{Keyspace, RegisterKeyspace};

/// How many there may be beside the default one: each takes a group, which costs memory on every member.
pub const KEYSPACES_MAX: usize = 1_000;
/// Bytes of a name.
pub const KEYSPACE_NAME_MAX: usize = 63;
/// The default keyspace's group is the one before.
const FIRST_GROUP: u64 = 2;

/// The keyspaces by name.
pub type KeyspaceTable = BTreeMap<String, Keyspace>;

impl Keyspace {
    /// The group that holds it.
    #[must_use]
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// Under which members the group begins.
    #[must_use]
    pub fn first(&self) -> Membership {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        Membership {
            learners: ids(&self.learners),
            ..Membership::of_voters(ids(&self.voters))
        }
    }
}

/// The table, as the state machine keeps it.
#[derive(Debug, Default)]
pub(super) struct Keyspaces {
    table: Arc<KeyspaceTable>,
    /// Something in it changed since it was told.
    changed: bool,
}

impl Keyspaces {
    /// Reads the table.
    pub(super) fn load(read: &dyn Read, keys: Keys) -> Result<Self, EngineError> {
        let mut table = KeyspaceTable::new();
        for pair in read.scan(&keys.first(KEYSPACE), &keys.end(KEYSPACE)) {
            let record = Fields::of(pair?.1)?.rest();
            let keyspace = Keyspace::decode(record);
            let keyspace = keyspace.map_err(|_| damaged("a keyspace's record is no message"))?;
            table.insert(keyspace.name.clone(), keyspace);
        }
        let (table, changed) = (Arc::new(table), false);
        Ok(Self { table, changed })
    }

    /// The table as it is.
    pub(super) fn table(&self) -> Arc<KeyspaceTable> {
        Arc::clone(&self.table)
    }

    /// The table, if it changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Arc<KeyspaceTable>> {
        std::mem::take(&mut self.changed).then(|| self.table())
    }

    /// Notes a keyspace, unless it is known. `membership` is the default keyspace's, if applied entries have named one: the
    /// members that its group begins with.
    pub(super) fn register(
        &mut self,
        request: RegisterKeyspace,
        membership: Option<&Membership>,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) -> Result<(), ApiError> {
        if self.table.contains_key(&request.name) {
            return Ok(());
        }
        check_keyspace_name(&request.name).map_err(|error| {
            ApiError::Other(Code::InvalidArgument, format!("flotilla: {error}"))
        })?;
        if self.table.len() >= KEYSPACES_MAX {
            let text = format!("flotilla: there are {KEYSPACES_MAX} keyspaces, and no more may be");
            return Err(ApiError::Other(Code::ResourceExhausted, text));
        }
        let ids = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
        let (voters, learners) = match membership {
            Some(membership) => (ids(&membership.voters), ids(&membership.learners)),
            None => (request.first_voters, Vec::new()),
        };
        // None is ever removed, so the largest number is the newest.
        let newest = self.table.values().map(|known| known.group).max();
        let keyspace = Keyspace {
            name: request.name,
            group: newest.map_or(FIRST_GROUP, |newest| newest + 1),
            creation: request.creation,
            voters,
            learners,
        };
        let key = keys.with_rest(KEYSPACE, keyspace.name.as_bytes());
        let mut record = codec::record(keyspace.encoded_len());
        record.put_slice(&keyspace.encode_to_vec());
        changes.insert(key, Change::Put(record.freeze()));
        Arc::make_mut(&mut self.table).insert(keyspace.name.clone(), keyspace);
        self.changed = true;
        Ok(())
    }
}

/// Names of keyspaces are names in logs, metrics and flags.
///
/// # Errors
/// What is wrong with it.
pub fn check_keyspace_name(name: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_sound = !name.is_empty()
        && name.len() <= KEYSPACE_NAME_MAX
        && name.bytes().all(is_plain)
        && !name.starts_with('-')
        && name != "default";
    if is_sound {
        return Ok(());
    }
    Err(format!(
        "\"{}\" is no name of a keyspace: 1 to {KEYSPACE_NAME_MAX} of a-z, 0-9 and \"-\", not first, and not \"default\"",
        name.escape_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys {
        group: GroupId(1),
        generation: 0,
    };

    fn request(name: &str) -> RegisterKeyspace {
        RegisterKeyspace {
            name: name.to_owned(),
            creation: 7,
            first_voters: vec![1, 2],
        }
    }

    #[test]
    fn keyspace_begins_with_the_members_of_its_entry_and_stays_as_it_is() {
        let (mut known, mut changes) = (Keyspaces::default(), BTreeMap::new());
        known
            .register(request("a"), None, KEYS, &mut changes)
            .unwrap();
        let joint = Membership {
            voters_outgoing: vec![NodeId(1)],
            learners: vec![NodeId(9)],
            ..Membership::of_voters([NodeId(3), NodeId(4)])
        };
        let later = Some(&joint);
        known
            .register(request("b"), later, KEYS, &mut changes)
            .unwrap();
        let first = known.take_changed().expect("two are new");
        known
            .register(request("a"), later, KEYS, &mut changes)
            .unwrap();
        assert!(known.take_changed().is_none(), "it is known");
        assert_eq!((changes.len(), first.len()), (2, 2));
        let (a, b) = (&first["a"], &first["b"]);
        assert_eq!((a.group(), b.group()), (GroupId(2), GroupId(3)));
        assert_eq!(a.first(), Membership::of_voters([NodeId(1), NodeId(2)]));
        // Whoever begins it takes the members to come; a new group has nothing that the others have decided.
        assert_eq!(b.first().voters, joint.voters);
        assert_eq!(b.first().learners, joint.learners);
        assert!(b.first().voters_outgoing.is_empty());
    }

    #[test]
    fn more_keyspaces_than_there_may_be_and_wrong_names_are_refused() {
        let (mut known, mut changes) = (Keyspaces::default(), BTreeMap::new());
        for number in 0..KEYSPACES_MAX {
            let request = request(&format!("ks-{number}"));
            known.register(request, None, KEYS, &mut changes).unwrap();
        }
        let many = known.register(request("more"), None, KEYS, &mut changes);
        assert_eq!(many.unwrap_err().code(), Code::ResourceExhausted);
        let long = "a".repeat(KEYSPACE_NAME_MAX + 1);
        for name in ["", "default", "A", "-a", "a b", "\u{e9}", &long] {
            let wrong = known.register(request(name), None, KEYS, &mut changes);
            assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument, "{name}");
        }
        assert_eq!(known.table().len(), KEYSPACES_MAX);
    }
}
