//! From which snapshot a state machine that lost its state starts again.
//!
//! The newest one that the log refers to, if its file is good. Else an older one, but only when the
//! log still holds every entry after it: an older state with a gap behind it would be a lie. The
//! decision is a function of what log and catalog say, so that each case can be tested.

use super::SnapshotStore;
use super::catalog::SnapshotFile;
use super::error::SnapshotError;
use crate::{GroupId, GroupInfo, Index, Log, LogError, SnapshotRef};

/// Where a state machine without state begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestorePoint {
    /// Install the snapshot, then apply the log from the index after it.
    Snapshot {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// False when the newest one was of no use and this one is older.
        newest: bool,
    },
    /// No snapshot is needed: the log begins at the first entry.
    Log,
    /// Neither snapshots nor log have the whole. The state has to come from the state machine's own
    /// files, or from a peer.
    Nothing {
        /// The first index that the log holds.
        log_begins: Index,
    },
}

/// Chooses from what the log says of a group and from the files of its store, of this group or all.
///
/// A file counts if it is of this creation of the group, its header and footer are good, its number
/// is not above that of the newest reference (a file without a reference never counts), and the
/// log has everything from its index on.
#[must_use]
pub fn restore_point(group: GroupId, info: &GroupInfo, files: &[SnapshotFile]) -> RestorePoint {
    let covered = info.base.index..=info.last_index;
    let candidates = info.snapshot.iter().flat_map(|newest| {
        let files = files.iter().filter(move |file| file.group == group);
        files
            .filter(|file| file.creation == Some(info.base.creation))
            .filter_map(|file| file.state.as_ref().ok())
            .filter(move |found| found.number < newest.number || *found == newest)
    });
    let best = candidates
        .filter(|found| covered.contains(&found.index))
        .filter(|found| found.index != info.base.index || found.term == info.base.term)
        .max_by_key(|found| found.number);
    match best {
        Some(snapshot) => RestorePoint::Snapshot {
            snapshot: snapshot.clone(),
            newest: info.snapshot.as_ref() == Some(snapshot),
        },
        None if info.base.index == Index::ZERO => RestorePoint::Log,
        None => RestorePoint::Nothing {
            log_begins: info.base.index.next(),
        },
    }
}

impl SnapshotStore {
    /// Chooses as [`restore_point`] does, and reads the whole snapshot that is chosen: one whose
    /// chunks do not verify is passed over.
    ///
    /// # Errors
    /// Of the file system, which says nothing about the snapshots; and
    /// [`ErrorKind::UnknownGroup`](crate::ErrorKind::UnknownGroup) of the log.
    pub fn restore(&self, log: &Log, group: GroupId) -> Result<RestorePoint, SnapshotError> {
        let info = log.group(group).ok_or_else(|| {
            let text = format!("group {group} does not exist");
            LogError::new(crate::ErrorKind::UnknownGroup, text)
        })?;
        let mut files = self.0.catalog.list_group(group)?;
        loop {
            let point = restore_point(group, &info, &files);
            let RestorePoint::Snapshot { snapshot, .. } = &point else {
                return Ok(point);
            };
            match self.verify(group, snapshot) {
                Ok(()) => return Ok(point),
                Err(error) if error.is_damage() || error.is_missing() => {
                    let number = snapshot.number;
                    let bad = files.iter_mut().find(|file| file.number == number);
                    bad.expect("it was chosen from them").state = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
