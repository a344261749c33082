//! Reads all segments of a data directory in order, and follows what their records do to each group.
//!
//! What a later segment supersedes is read as well: its checkpoint, and the copies behind it, put the groups right.

use std::collections::BTreeMap;

use raft_log::log::inspect::{BatchInfo, DiskRecord, GroupCheckpoint, SegmentInfo};
use raft_log::{GroupId, Index, Record};

use super::{Dir, damage, failure_of, segment, segments};
use crate::failure::Failure;

/// What was read.
pub(crate) struct Walk {
    /// The segments, ascending.
    pub(crate) infos: Vec<SegmentInfo>,
}

impl Walk {
    /// Reads everything; `visit` sees each batch with the id of its segment.
    pub(crate) fn all(dir: &Dir, visit: &mut dyn FnMut(u64, BatchInfo)) -> Result<Self, Failure> {
        let (log, mut infos) = (dir.log(), Vec::new());
        for id in segments(dir)? {
            let read = segment(&log, id, &mut |batch| visit(id, batch));
            infos.extend(read.map_err(|error| failure_of(&error))?);
        }
        Ok(Self { infos })
    }

    /// The first sequence of the segment behind the one at `at`.
    pub(crate) fn next_first(&self, at: usize) -> Option<u64> {
        self.infos.get(at + 1).map(|next| next.first_seq)
    }

    /// What does not verify, and is not superseded.
    pub(crate) fn damage(&self) -> Vec<String> {
        let found = self.infos.iter().enumerate();
        found
            .filter_map(|(at, info)| damage(info, self.next_first(at)))
            .collect()
    }

    /// Fails with exit code 3 if anything does not verify.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        match self.damage().into_iter().next() {
            None => Ok(()),
            Some(first) => Err(Failure::Damaged(first)),
        }
    }
}

/// Where each group stands, as far as its records were seen.
#[derive(Default)]
pub(crate) struct Groups(pub(crate) BTreeMap<GroupId, GroupCheckpoint>);

impl Groups {
    /// Takes one record into account.
    pub(crate) fn see(&mut self, id: GroupId, record: &DiskRecord) {
        let group = match record {
            DiskRecord::Checkpoint(state) => return drop(self.0.insert(id, state.clone())),
            DiskRecord::Other(Record::Destroy) => return drop(self.0.remove(&id)),
            _ => self.0.entry(id).or_default(),
        };
        match record {
            DiskRecord::Entry(entry) => group.last_index = entry.index,
            DiskRecord::Other(Record::HardState(state)) => group.hard_state = *state,
            DiskRecord::Other(Record::Truncate(from)) => group.last_index = from.prev(),
            DiskRecord::Other(Record::Compact(base)) => {
                group.last_index = group.last_index.max(base.index);
                group.base = base.clone();
            }
            DiskRecord::Other(Record::SnapshotRef(snapshot)) => {
                group.snapshot = Some(snapshot.clone());
            }
            DiskRecord::Other(Record::Incarnation(incarnation)) => {
                group.incarnation = *incarnation;
            }
            DiskRecord::Other(Record::Entries(_) | Record::Destroy) | DiskRecord::Checkpoint(_) => {
            }
        }
    }

    /// The last index of a group.
    pub(crate) fn last(&self, id: GroupId) -> Index {
        self.0
            .get(&id)
            .map_or(Index::ZERO, |group| group.last_index)
    }
}
