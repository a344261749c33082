//! What is written to the log: entries, hard state and marks, gathered into an atomic [`WriteBatch`].
//!
//! This module is plain data. How it is laid out on disk is in `docs/FORMAT.md`.

use bytes::Bytes;

use crate::{GroupId, Index, NodeId, Term};

/// What an entry's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// A command for the state machine. An empty payload is the entry by which a leader opens its term.
    Normal = 0,
    /// A change of the group's membership.
    Config = 1,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position; entries of a group are dense.
    pub index: Index,
    /// The term of the leader that proposed it; never decreases along the log.
    pub term: Term,
    /// What the payload is.
    pub kind: EntryKind,
    /// The payload, opaque to the log. At most 64 MiB.
    pub payload: Bytes,
}

impl Entry {
    /// The bytes that this entry counts for in budgets: its payload and a fixed overhead.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.payload.len() + 32
    }
}

/// What a member must not forget, besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// The candidate voted for in `term`, if any.
    pub vote: Option<NodeId>,
    /// A commit index known when this was written. It is a hint and may lag.
    pub commit: Index,
}

/// Which of its logs a member has of a group, and whether it may vote with it. [`crate::log::renewal`] begins another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation {
    /// 0 for a log that never lost anything; each loss needs a greater number.
    pub number: u64,
    /// The log may lack what was acknowledged with an earlier one. It ends once the peers have given that back.
    pub guarded: bool,
}

/// Where a group's log begins: everything up to and including `index` is not in the log any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The last index that the log does not hold; zero for a new group.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// Tells a group from another one that had the same id and was destroyed. The log itself needs it only where one batch
    /// destroys a group and creates it again: the number must be greater there. Whoever keeps state of the group elsewhere,
    /// such as snapshots, can tell lives apart only if each has its own, and so can a salvage of a damaged log.
    pub creation: u64,
    /// The group's membership as of `index`, opaque to the log.
    pub membership: Bytes,
}

/// Names a file of the snapshot store, once it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRef {
    /// The last index that the snapshot covers.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// The number in the file's name; never reused within a store.
    pub number: u64,
    /// Length of the snapshot's content in bytes.
    pub content_len: u64,
    /// CRC-32 of the snapshot's content.
    pub content_crc: u32,
    /// The group's membership as of `index`, opaque to the log.
    pub membership: Bytes,
}

/// One record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Contiguous entries. The first may lie at or below the group's last index: what it overlaps is cut first.
    Entries(Vec<Entry>),
    /// The group's hard state.
    HardState(HardState),
    /// Cut the log so that this index is the first that is gone. Never at or below the base.
    Truncate(Index),
    /// Create the group, or move its base up; entries at or below the base are gone. A base above the last index
    /// empties the log.
    Compact(Base),
    /// A snapshot file became durable.
    SnapshotRef(SnapshotRef),
    /// Another incarnation of the group's log, which begins guarded; or the end of that guard. The number is kept in the
    /// vote slots too, so that damage to the log does not take it.
    Incarnation(Incarnation),
    /// The group and everything in it is gone. It can be created again: in a later batch, or in the same one with a greater
    /// [`Base::creation`].
    Destroy,
}

/// Records of any number of groups that become durable together.
///
/// Records of one group take effect in the order in which they were added. All of them, as they lie on disk, take at most
/// 256 MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    records: Vec<(GroupId, Record)>,
    cost: usize,
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one record.
    pub fn push(&mut self, group: GroupId, record: Record) {
        self.cost += match &record {
            Record::Entries(entries) => entries.iter().map(Entry::cost).sum::<usize>() + 32,
            Record::Compact(base) => base.membership.len() + 64,
            Record::SnapshotRef(snapshot) => snapshot.membership.len() + 64,
            Record::HardState(_)
            | Record::Truncate(_)
            | Record::Incarnation(_)
            | Record::Destroy => 64,
        };
        self.records.push((group, record));
    }

    /// The records, in order.
    #[must_use]
    pub fn records(&self) -> &[(GroupId, Record)] {
        &self.records
    }

    /// Takes the records out.
    #[must_use]
    pub fn into_records(self) -> Vec<(GroupId, Record)> {
        self.records
    }

    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that the batch counts for in budgets: payloads and a fixed overhead for each record.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.cost
    }
}
