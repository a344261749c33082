//! The durable layout of a keyspace in the engine.
//!
//! A key is (table u8, group u64 BE, generation u32 BE, rest). Records start with a version byte; their numbers are
//! little-endian. The tables:
//!
//! | table | rest of the key | record |
//! |---|---|---|
//! | 1 version | escaped user key, inverted mod revision BE | create, version, lease, sub, and the value, or a tombstone |
//! | 2 revision | the last revision of one engine batch BE | the batch's revisions, each with its (kind, key) list |
//! | 3 latest | user key, live keys only | mod, create, version, lease |
//! | 4 lease keys | lease BE, user key | empty |
//! | 5 leases | lease BE | granted TTL, checkpoint, index of the grant |
//! | 6 meta | nothing; generation 0 | [`Meta`] |
//! | 7 duplicates | member BE | boot id, mark, bits of the sequences applied from the mark on |
//! | 8 members | member BE | what is known of the member, as an encoded `flotilla.PublishMember` |
//! | 9 alarms | alarm u32 BE, member BE | 1 when a member raised it by itself, else 0 |
//! | 10 removed | member BE | the request that removed it; its id is never given out again |
//! | 11 auth | nothing | whether authentication is enabled, and the revision of users and roles |
//! | 12 users | name | the user, as an encoded `authpb.User` |
//! | 13 roles | name | the role, as an encoded `authpb.Role` |
//! | 14 keyspaces | name | the keyspace, as an encoded `flotilla.Keyspace`; of the default one alone |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_log::{GroupId, Index, NodeId, Term};
use raft_node::core::Membership;

use super::types::{EventKind, LeaseInfo, RevisionEvents};
use crate::engine::EngineError;

pub(super) const VERSION: u8 = 1;
pub(super) const REVISION: u8 = 2;
pub(super) const LATEST: u8 = 3;
pub(super) const LEASE_KEY: u8 = 4;
pub(super) const LEASE: u8 = 5;
const META: u8 = 6;
pub(super) const DUPLICATE: u8 = 7;
pub(super) const MEMBER: u8 = 8;
pub(super) const ALARM: u8 = 9;
pub(super) const REMOVED: u8 = 10;
pub(super) const AUTH: u8 = 11;
pub(super) const USER: u8 = 12;
pub(super) const ROLE: u8 = 13;
pub(super) const KEYSPACE: u8 = 14;

const FORMAT: u8 = 1;
/// Table, group and generation.
pub(super) const PREFIX: usize = 13;

pub(super) fn damaged(what: &'static str) -> EngineError {
    EngineError {
        context: "decode a record of the key-value store".to_owned(),
        source: what.into(),
    }
}

/// Builds engine keys of one keyspace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) group: GroupId,
    pub(super) generation: u32,
}

impl Keys {
    fn start(self, table: u8, generation: u32, rest: usize) -> BytesMut {
        let mut key = BytesMut::with_capacity(PREFIX + rest);
        key.put_u8(table);
        key.put_u64(self.group.0);
        key.put_u32(generation);
        key
    }

    /// The first key of a table.
    pub(super) fn first(self, table: u8) -> Bytes {
        self.start(table, self.generation, 0).freeze()
    }

    /// The bound behind the last key of a table.
    pub(super) fn end(self, table: u8) -> Bytes {
        self.start(table, self.generation + 1, 0).freeze()
    }

    /// The key of a table with what comes after group and generation.
    pub(super) fn with_rest(self, table: u8, rest: &[u8]) -> Bytes {
        let mut key = self.start(table, self.generation, rest.len());
        key.put_slice(rest);
        key.freeze()
    }

    /// The newest version of `key` at or below `revision` sorts first from here on.
    pub(super) fn version(self, key: &[u8], revision: i64) -> Bytes {
        let mut out = self.start(VERSION, self.generation, key.len() + 12);
        escape(key, &mut out);
        out.put_u64(!(revision.max(0).unsigned_abs()));
        out.freeze()
    }

    /// The bound behind the oldest version of `key`.
    pub(super) fn version_end(self, key: &[u8]) -> Bytes {
        let mut out = self.start(VERSION, self.generation, key.len() + 13);
        escape(key, &mut out);
        out.put_u64(u64::MAX);
        out.put_u8(0);
        out.freeze()
    }

    pub(super) fn revision(self, last: i64) -> Bytes {
        let mut out = self.start(REVISION, self.generation, 8);
        out.put_u64(last.max(0).unsigned_abs());
        out.freeze()
    }

    pub(super) fn latest(self, key: &[u8]) -> Bytes {
        let mut out = self.start(LATEST, self.generation, key.len());
        out.put_slice(key);
        out.freeze()
    }

    pub(super) fn lease_key(self, lease: i64, key: &[u8]) -> Bytes {
        let mut out = self.start(LEASE_KEY, self.generation, key.len() + 8);
        out.put_i64(lease);
        out.put_slice(key);
        out.freeze()
    }

    /// The bound behind the last key of a lease: ids are positive, and so is what follows the largest but one.
    pub(super) fn lease_keys_end(self, lease: i64) -> Bytes {
        match lease.cast_unsigned().checked_add(1) {
            Some(next) => self.lease_key(next.cast_signed(), b""),
            None => self.end(LEASE_KEY),
        }
    }

    pub(super) fn lease(self, lease: i64) -> Bytes {
        let mut out = self.start(LEASE, self.generation, 8);
        out.put_i64(lease);
        out.freeze()
    }

    pub(super) fn duplicate(self, member: NodeId) -> Bytes {
        let mut out = self.start(DUPLICATE, self.generation, 8);
        out.put_u64(member.0);
        out.freeze()
    }

    pub(super) fn member(self, member: NodeId) -> Bytes {
        self.with_rest(MEMBER, &member.0.to_be_bytes())
    }

    pub(super) fn alarm(self, (alarm, member): (i32, NodeId)) -> Bytes {
        let mut out = self.start(ALARM, self.generation, 12);
        out.put_i32(alarm);
        out.put_u64(member.0);
        out.freeze()
    }

    pub(super) fn removed(self, member: NodeId) -> Bytes {
        self.with_rest(REMOVED, &member.0.to_be_bytes())
    }

    pub(super) fn meta(self) -> Bytes {
        self.start(META, 0, 0).freeze()
    }
}

/// Between which keys the meta records of all groups lie.
pub(super) fn metas() -> ([u8; 1], [u8; 1]) {
    ([META], [META + 1])
}

/// Whose key it is.
pub(super) fn group_of(key: &[u8]) -> Result<GroupId, EngineError> {
    let group = key.get(1..).and_then(|rest| rest.first_chunk::<8>());
    let group = group.ok_or_else(|| damaged("a key is shorter than its prefix"))?;
    Ok(GroupId(u64::from_be_bytes(*group)))
}

/// Keeps the order and makes the end visible: a zero byte becomes 0x00 0xff, the end is 0x00 0x00.
fn escape(key: &[u8], out: &mut BytesMut) {
    for part in key.split_inclusive(|byte| *byte == 0) {
        out.put_slice(part);
        if part.last() == Some(&0) {
            out.put_u8(0xff);
        }
    }
    out.put_slice(&[0, 0]);
}

/// Splits a key of the alarm table into alarm and member.
pub(super) fn split_alarm(key: &[u8]) -> Result<(i32, NodeId), EngineError> {
    let (alarm, member) = key[PREFIX..]
        .split_first_chunk::<4>()
        .and_then(|(alarm, member)| Some((*alarm, member.try_into().ok()?)))
        .ok_or_else(|| damaged("an alarm's key has another length"))?;
    let member = NodeId(u64::from_be_bytes(member));
    Ok((i32::from_be_bytes(alarm), member))
}

/// Splits a key of the version table into user key and mod revision. Without zero bytes in it nothing is copied.
pub(super) fn split_version(key: &Bytes) -> Result<(Bytes, i64), EngineError> {
    let end = key.len().checked_sub(10).filter(|end| *end >= PREFIX);
    let end = end.ok_or_else(|| damaged("a version's key is too short"))?;
    let mut number = [0; 8];
    number.copy_from_slice(&key[end + 2..]);
    let revision = i64::try_from(!u64::from_be_bytes(number))
        .map_err(|_| damaged("a version's revision is out of range"))?;
    let escaped = &key[PREFIX..end];
    if !escaped.contains(&0) {
        return Ok((key.slice(PREFIX..end), revision));
    }
    let mut plain = BytesMut::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        plain.put_u8(*byte);
        if *byte == 0 && bytes.next() != Some(&0xff) {
            return Err(damaged("a version's key is not escaped"));
        }
    }
    Ok((plain.freeze(), revision))
}

/// Begins a record with room for so many bytes.
pub(super) fn record(bytes: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(1 + bytes);
    out.put_u8(FORMAT);
    out
}

/// Reads little-endian numbers off a record.
pub(super) struct Fields {
    data: Bytes,
}

impl Fields {
    pub(super) fn of(mut data: Bytes) -> Result<Self, EngineError> {
        if data.first() != Some(&FORMAT) {
            return Err(damaged("a record has an unknown version"));
        }
        data.advance(1);
        Ok(Self { data })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], EngineError> {
        let found = self.data.first_chunk::<N>().copied();
        let found = found.ok_or_else(|| damaged("a record is too short"))?;
        self.data.advance(N);
        Ok(found)
    }

    pub(super) fn u8(&mut self) -> Result<u8, EngineError> {
        Ok(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, EngineError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, EngineError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn i64(&mut self) -> Result<i64, EngineError> {
        Ok(i64::from_le_bytes(self.take()?))
    }

    /// What was not read yet.
    pub(super) fn rest(self) -> Bytes {
        self.data
    }

    fn bytes(&mut self) -> Result<Bytes, EngineError> {
        let length = self.u32()? as usize;
        if length > self.data.len() {
            return Err(damaged("a record is too short"));
        }
        Ok(self.data.split_to(length))
    }
}

/// The metadata of the newest version of a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub(super) modified: i64,
    pub(super) created: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

impl Latest {
    /// Bytes of a record.
    pub(super) const BYTES: usize = 33;

    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::BYTES);
        out.put_u8(FORMAT);
        for number in [self.modified, self.created, self.version, self.lease] {
            out.put_i64_le(number);
        }
        out.freeze()
    }

    pub(super) fn decode(record: Bytes) -> Result<Self, EngineError> {
        let mut fields = Fields::of(record)?;
        Ok(Self {
            modified: fields.i64()?,
            created: fields.i64()?,
            version: fields.i64()?,
            lease: fields.i64()?,
        })
    }
}

const TOMBSTONE: u8 = 1;

/// A version record; the mod revision is in its key.
pub(super) struct Version {
    pub(super) tombstone: bool,
    pub(super) created: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
    pub(super) value: Bytes,
}

pub(super) fn encode_version(latest: Latest, sub: u32, value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(30 + value.len());
    out.put_slice(&[FORMAT, 0]);
    for number in [latest.created, latest.version, latest.lease] {
        out.put_i64_le(number);
    }
    out.put_u32_le(sub);
    out.put_slice(value);
    out.freeze()
}

pub(super) fn encode_tombstone(sub: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(30);
    out.put_slice(&[FORMAT, TOMBSTONE]);
    out.put_bytes(0, 24);
    out.put_u32_le(sub);
    out.freeze()
}

/// Tells a tombstone without decoding the rest.
pub(super) fn is_tombstone(record: &[u8]) -> Result<bool, EngineError> {
    match record {
        [FORMAT, kind, ..] => Ok(*kind == TOMBSTONE),
        _ => Err(damaged("a version has an unknown record version")),
    }
}

impl Version {
    pub(super) fn decode(record: Bytes) -> Result<Self, EngineError> {
        let mut fields = Fields::of(record)?;
        let tombstone = fields.u8()? == TOMBSTONE;
        let (created, version, lease) = (fields.i64()?, fields.i64()?, fields.i64()?);
        fields.u32()?;
        Ok(Self {
            tombstone,
            created,
            version,
            lease,
            value: fields.data,
        })
    }
}

/// One change as the revision table names it.
pub(super) type Change = (EventKind, Bytes);

pub(super) fn encode_revisions<'a>(
    revisions: impl Iterator<Item = &'a RevisionEvents>,
) -> Result<Bytes, EngineError> {
    let mut out = BytesMut::with_capacity(256);
    out.put_u8(FORMAT);
    let length = |n: usize| u32::try_from(n).map_err(|_| damaged("a key or a batch is over 4 GiB"));
    for one in revisions {
        out.put_i64_le(one.revision);
        out.put_u32_le(length(one.events.len())?);
        for event in &one.events {
            out.put_u8(u8::from(event.kind == EventKind::Delete));
            out.put_u32_le(length(event.kv.key.len())?);
            out.put_slice(&event.kv.key);
        }
    }
    Ok(out.freeze())
}

pub(super) fn decode_revisions(record: Bytes) -> Result<Vec<(i64, Vec<Change>)>, EngineError> {
    let mut fields = Fields::of(record)?;
    let mut out = Vec::new();
    while !fields.data.is_empty() {
        let revision = fields.i64()?;
        let mut changes = Vec::new();
        for _ in 0..fields.u32()? {
            let kind = if fields.u8()? == 0 {
                EventKind::Put
            } else {
                EventKind::Delete
            };
            changes.push((kind, fields.bytes()?));
        }
        out.push((revision, changes));
    }
    Ok(out)
}

/// Bytes of a lease's record.
pub(super) const LEASE_BYTES: usize = 25;

pub(super) fn encode_lease(lease: &LeaseInfo) -> Bytes {
    let mut out = BytesMut::with_capacity(LEASE_BYTES);
    out.put_u8(FORMAT);
    out.put_i64_le(lease.ttl);
    out.put_i64_le(lease.remaining_ttl.unwrap_or(0));
    out.put_u64_le(lease.granted.0);
    out.freeze()
}

pub(super) fn decode_lease(key: &[u8], record: Bytes) -> Result<LeaseInfo, EngineError> {
    let id = key
        .last_chunk::<8>()
        .ok_or_else(|| damaged("a lease's key is too short"))?;
    let mut fields = Fields::of(record)?;
    let ttl = fields.i64()?;
    let remaining = fields.i64()?;
    Ok(LeaseInfo {
        id: i64::from_be_bytes(*id),
        ttl,
        remaining_ttl: (remaining != 0).then_some(remaining),
        granted: Index(fields.u64()?),
    })
}

/// Where a keyspace stands; written with every batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meta {
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) revision: i64,
    /// Reads below it fail; -1 before the first compaction.
    pub(super) compact: i64,
    /// What lies below it is gone from the engine as well.
    pub(super) compact_finished: i64,
    pub(super) creation: u64,
    pub(super) generation: u32,
    pub(super) membership: Option<(Index, Membership)>,
    /// What the keyspace takes, see `size.rs`; none in a snapshot, and in records from before it was counted.
    pub(super) bytes: Option<u64>,
}

impl Meta {
    pub(super) fn new() -> Self {
        Self {
            index: Index::ZERO,
            term: Term::ZERO,
            revision: 1,
            compact: -1,
            compact_finished: -1,
            creation: 0,
            generation: 0,
            membership: None,
            bytes: Some(0),
        }
    }

    /// A pair that is counted came into being.
    pub(super) fn grow(&mut self, bytes: usize) {
        self.bytes = self.bytes.map(|all| all + bytes as u64);
    }

    /// Pairs that are counted went.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.bytes = self.bytes.map(|all| all.saturating_sub(bytes as u64));
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(FORMAT);
        out.put_u64_le(self.index.0);
        out.put_u64_le(self.term.0);
        for number in [self.revision, self.compact, self.compact_finished] {
            out.put_i64_le(number);
        }
        out.put_u64_le(self.creation);
        out.put_u32_le(self.generation);
        out.put_u8(u8::from(self.membership.is_some()));
        if let Some((index, membership)) = &self.membership {
            out.put_u64_le(index.0);
            let Membership {
                voters,
                voters_outgoing,
                learners,
            } = membership;
            for list in [voters, voters_outgoing, learners] {
                out.put_u32_le(u32::try_from(list.len()).expect("members are a handful"));
                list.iter().for_each(|id| out.put_u64_le(id.0));
            }
        }
        if let Some(bytes) = self.bytes {
            out.put_u64_le(bytes);
        }
        out.freeze()
    }

    pub(super) fn decode(record: Bytes) -> Result<Self, EngineError> {
        let mut fields = Fields::of(record)?;
        let mut meta = Self {
            index: Index(fields.u64()?),
            term: Term(fields.u64()?),
            revision: fields.i64()?,
            compact: fields.i64()?,
            compact_finished: fields.i64()?,
            creation: fields.u64()?,
            generation: fields.u32()?,
            membership: None,
            bytes: None,
        };
        if fields.u8()? != 0 {
            let index = Index(fields.u64()?);
            let mut list = || -> Result<Vec<NodeId>, EngineError> {
                (0..fields.u32()?)
                    .map(|_| fields.u64().map(NodeId))
                    .collect()
            };
            let (voters, voters_outgoing, learners) = (list()?, list()?, list()?);
            meta.membership = Some((
                index,
                Membership {
                    voters,
                    voters_outgoing,
                    learners,
                },
            ));
        }
        if !fields.data.is_empty() {
            meta.bytes = Some(fields.u64()?);
        }
        Ok(meta)
    }
}
