//! What ties snapshot files to the log: the reference record, retention, and cleaning at start.
//!
//! The order is always file, then record, then removal of what the record supersedes; so a crash
//! leaves a file without a record, which the next start removes, or an old file too many, which it
//! removes as well, but never a record without its file. `docs/DURABILITY.md` has the table.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use super::catalog::{PART_SUFFIX, SnapshotFile};
use super::error::SnapshotError;
use super::format::Header;
use super::pending::PendingSnapshot;
use super::{SnapshotStore, pins};
use crate::vfs::OpenMode;
use crate::{Base, GroupId, Index, Log, Record, SnapshotRef, WriteBatch};

/// A snapshot that the log refers to.
#[derive(Debug)]
#[must_use = "removing old snapshots may have failed"]
pub struct Installed {
    /// The reference, as the log has it.
    pub snapshot: SnapshotRef,
    /// Whether older snapshots could be removed. A failure leaves them to the next install or
    /// start; the snapshot is installed all the same.
    pub retention: Result<(), SnapshotError>,
}

/// What [`SnapshotStore::recover`] found and did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// Files that were removed: orphans, superseded snapshots, partial files that are of no use.
    pub removed: Vec<PathBuf>,
    /// Snapshots that the log refers to and whose file is missing or damaged.
    pub unusable: Vec<(GroupId, SnapshotRef, SnapshotError)>,
    /// Groups of which nothing was removed, because the log knows no group at all: it may be the
    /// log that is missing.
    pub spared: Vec<GroupId>,
}

impl fmt::Display for SnapshotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} snapshot files removed", self.removed.len())?;
        for (group, snapshot, error) in &self.unusable {
            let index = snapshot.index;
            write!(
                f,
                "; the snapshot of group {group} at index {index}: {error}"
            )?;
        }
        if !self.spared.is_empty() {
            let groups = self.spared.len();
            write!(
                f,
                "; the log is empty, so snapshots of {groups} groups were left alone; check that \
                 the log's directory is the right one"
            )?;
        }
        Ok(())
    }
}

/// A received snapshot whose records its owner writes, among other records of the group.
#[derive(Debug)]
#[must_use = "older snapshots stay until this is ended"]
pub struct Installing(PendingSnapshot);

impl SnapshotStore {
    /// Says why [`SnapshotStore::install`] would refuse.
    ///
    /// # Errors
    /// As there.
    pub fn check_install(&self, log: &Log, pending: &PendingSnapshot) -> Result<(), SnapshotError> {
        self.0.latch.healthy()?;
        check(log, pending)
    }

    /// As [`SnapshotStore::install`], for the one who writes the group's log and does not wait for a disk: that one
    /// writes the records of the log's new base and of the reference, in one batch, and calls
    /// [`SnapshotStore::end_install`] when that is durable. From here on the file stays, and the next start goes by what
    /// the log says.
    ///
    /// The snapshot passed [`SnapshotStore::check_install`]; no other one of the group may be in the making or be
    /// installed meanwhile.
    pub fn begin_install(&self, mut pending: PendingSnapshot) -> Installing {
        pending.disarm();
        Installing(pending)
    }

    /// The records of a snapshot are durable: removes what is older than the last
    /// [`retain`](super::SnapshotOptions::retain).
    ///
    /// # Errors
    /// Of the removal. It is left to the next install or start; the snapshot is installed all the same.
    pub fn end_install(&self, installing: Installing) -> Result<(), SnapshotError> {
        let _one_at_a_time = self.0.installing();
        let pending = installing.0;
        let (group, creation) = (pending.group(), pending.creation());
        let snapshot = pending.reference().clone();
        // Its turn to be pinned is over, or it would not count as installed.
        drop(pending);
        self.retain(group, creation, &snapshot).map(drop)
    }

    /// Makes the log refer to a snapshot, durably, and then removes what is older than the last
    /// [`retain`](super::SnapshotOptions::retain).
    ///
    /// For a snapshot that was received, the log follows it in the same batch: its base moves to
    /// the snapshot's index (the group is created if need be), and entries above stay only if the
    /// log has the snapshot's term at its index. Nobody else may write to the group meanwhile.
    ///
    /// Blocks for a sync of the log, and other installs wait. After an error of the log it is not
    /// known whether the snapshot is installed: the file stays, and the next start goes by what the
    /// log says.
    ///
    /// # Errors
    /// [`SnapshotError::Stale`] when a newer one is installed or the log already begins above it;
    /// then the file is removed.
    pub fn install(
        &self,
        log: &Log,
        mut pending: PendingSnapshot,
    ) -> Result<Installed, SnapshotError> {
        let _one_at_a_time = self.0.installing();
        self.0.latch.healthy()?;
        let group = pending.group();
        let batch = records(log, &pending)?;
        // Until here a failure lets the file go with `pending`.
        let ticket = log.enqueue(batch)?;
        pending.disarm();
        log.wait(ticket)?;
        let snapshot = pending.reference().clone();
        let creation = pending.creation();
        // Its turn to be pinned is over, or it would not count as installed.
        drop(pending);
        let retention = self.retain(group, creation, &snapshot).map(drop);
        Ok(Installed {
            snapshot,
            retention,
        })
    }

    /// Compares files and log at a start: removes what no record refers to and what is superseded,
    /// and says which references have lost their file. To be called once, after the log was opened
    /// and before the first snapshot is made.
    pub fn recover(&self, log: &Log) -> Result<SnapshotReport, SnapshotError> {
        let _one_at_a_time = self.0.installing();
        self.0.latch.healthy()?;
        let mut report = SnapshotReport::default();
        let groups = log.groups();
        let with_files = self.0.catalog.groups()?;
        if groups.is_empty() {
            report.spared = with_files;
            return Ok(report);
        }
        for group in with_files {
            let info = log.group(group);
            let snapshot = info.as_ref().and_then(|info| info.snapshot.as_ref());
            let removed = match (&info, snapshot) {
                (Some(info), Some(snapshot)) => {
                    let mut removed = self.remove_orphans(group, snapshot)?;
                    removed.extend(self.retain(group, info.base.creation, snapshot)?);
                    removed
                }
                _ => self.remove_files(group, |_| true)?,
            };
            report.removed.extend(removed);
            if let Some(info) = &info {
                let covered = snapshot.map_or(Index::ZERO, |snapshot| snapshot.index);
                let covered = covered.max(info.base.index);
                report.removed.extend(self.remove_parts(group, |header| {
                    header.creation != info.base.creation || header.index <= covered
                })?);
            }
        }
        for group in groups {
            let Some(snapshot) = log.group(group).and_then(|info| info.snapshot) else {
                continue;
            };
            if let Err(error) = self.0.catalog.load(group, &snapshot) {
                report.unusable.push((group, snapshot, error));
            }
        }
        Ok(report)
    }

    /// Removes all files of a group, as soon as nobody reads them: for a group whose destruction is
    /// durable in the log. A crash before leaves them to [`SnapshotStore::recover`].
    pub fn remove_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        let _one_at_a_time = self.0.installing();
        self.0.latch.healthy()?;
        self.remove_files(group, |_| true)?;
        self.remove_parts(group, |_| true)?;
        self.sync_group(group)
    }

    /// Files whose reference did not get into the log: their number is above that of the newest.
    fn remove_orphans(
        &self,
        group: GroupId,
        newest: &SnapshotRef,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        self.remove_files(group, |file| file.number > newest.number)
    }

    /// Keeps the newest and the ones before it, up to the number to retain.
    fn retain(
        &self,
        group: GroupId,
        creation: u64,
        newest: &SnapshotRef,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut files = self.0.catalog.list_group(group)?;
        files.sort_by_key(|file| std::cmp::Reverse(file.number));
        let older = files.iter().filter(|file| file.number < newest.number);
        let kept: BTreeSet<u64> = older
            .filter(|file| file.creation == Some(creation) && file.state.is_ok())
            .filter(|file| !self.0.is_pending(&self.path_of(file)))
            .map(|file| file.number)
            .take(self.0.options.retain - 1)
            .collect();
        self.remove_files(group, |file| {
            file.number < newest.number && !kept.contains(&file.number)
        })
    }

    /// Removes the files of a group that are `unwanted`, and that are ours to judge: not those of
    /// another store or a newer release, nor those which could not be read.
    fn remove_files(
        &self,
        group: GroupId,
        unwanted: impl Fn(&SnapshotFile) -> bool,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut removed = Vec::new();
        for file in self.0.catalog.list_group(group)? {
            let path = self.path_of(&file);
            let ours = file
                .state
                .as_ref()
                .map_or_else(SnapshotError::is_damage, |_| true);
            let spared = self.0.is_pending(&path);
            if ours && !spared && unwanted(&file) && self.0.pins.remove(&path)? {
                removed.push(path);
            }
        }
        if !removed.is_empty() {
            self.sync_group(group)?;
        }
        Ok(removed)
    }

    /// Removes the partial files of a group that are `unwanted` or damaged, and that no receive
    /// uses.
    fn remove_parts(
        &self,
        group: GroupId,
        unwanted: impl Fn(&Header) -> bool,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let (catalog, mut removed) = (&self.0.catalog, Vec::new());
        let names = catalog.names(group)?;
        for name in names.iter().filter(|name| name.ends_with(PART_SUFFIX)) {
            let path = catalog.group_dir(group).join(name);
            let header = catalog
                .vfs
                .open(&path, OpenMode::Read)
                .map_err(SnapshotError::io(&path, "open"))
                .and_then(|file| Header::read(&*file, &path, Some(self.0.options.store)));
            let of_use = header.is_ok_and(|header| !unwanted(&header));
            if !of_use && !self.0.is_receiving(group) && pins::remove(&catalog.vfs, &path)? {
                removed.push(path);
            }
        }
        if !removed.is_empty() {
            self.sync_group(group)?;
        }
        Ok(removed)
    }

    fn path_of(&self, file: &SnapshotFile) -> PathBuf {
        let key = (file.index, file.term, file.number);
        self.0.catalog.path(file.group, key)
    }

    pub(super) fn sync_group(&self, group: GroupId) -> Result<(), SnapshotError> {
        let dir = self.0.catalog.group_dir(group);
        match self.0.latch.sync_dir(&dir) {
            Err(error) if error.is_missing() => Ok(()),
            synced => synced,
        }
    }
}

/// Says why a snapshot is of no use any more.
fn check(log: &Log, pending: &PendingSnapshot) -> Result<(), SnapshotError> {
    let (group, snapshot) = (pending.group(), pending.reference());
    let stale = |what| Err(SnapshotError::Stale { group, what });
    if let Some(info) = log.group(group) {
        if info.base.creation != pending.creation() {
            return stale("the group was destroyed and made anew".to_owned());
        }
        if let Some(newest) = &info.snapshot
            && (newest.number > snapshot.number || newest.index > snapshot.index)
        {
            let index = newest.index;
            return stale(format!("one at index {index} is installed"));
        }
        let base = info.base.index;
        if base > snapshot.index || (pending.is_received() && base == snapshot.index) {
            return stale(format!("its log begins after index {base}"));
        }
    }
    Ok(())
}

/// What the log has to take for a snapshot.
fn records(log: &Log, pending: &PendingSnapshot) -> Result<WriteBatch, SnapshotError> {
    check(log, pending)?;
    let (group, snapshot) = (pending.group(), pending.reference());
    let info = log.group(group);
    let mut batch = WriteBatch::new();
    if pending.is_received() {
        let keeps_suffix = log.term_at(group, snapshot.index) == Some(snapshot.term);
        if let Some(info) = info.filter(|info| !keeps_suffix && info.last_index > info.base.index) {
            batch.push(group, Record::Truncate(info.base.index.next()));
        }
        let base = Base {
            index: snapshot.index,
            term: snapshot.term,
            creation: pending.creation(),
            membership: snapshot.membership.clone(),
        };
        batch.push(group, Record::Compact(base));
    }
    batch.push(group, Record::SnapshotRef(snapshot.clone()));
    Ok(batch)
}
