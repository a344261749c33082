//! A snapshot that is complete and durable, and that no record of the log refers to yet.

use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::format::{Footer, Header};
use super::output::PublishError;
use super::pins::{self, SnapshotPin};
use super::shared::Claim;
use crate::vfs::SharedVfs;
use crate::{GroupId, SnapshotRef};

/// A snapshot whose file is complete and durable under its final name. It counts once the log
/// refers to it: [install](super::SnapshotStore::install) it. Dropped before, its file is removed.
#[derive(Debug)]
pub struct PendingSnapshot {
    claim: Claim,
    pin: Option<SnapshotPin>,
    path: PathBuf,
    reference: SnapshotRef,
    creation: u64,
    received: bool,
    armed: bool,
}

impl PendingSnapshot {
    /// From here on the file at `path` is spared by retention, and removed when this is dropped.
    pub(super) fn new(mut claim: Claim, path: PathBuf, header: &Header, footer: &Footer) -> Self {
        claim.set_pending(path.clone());
        Self {
            pin: Some(claim.shared().pins.pin(&path)),
            claim,
            path,
            reference: header.reference(footer),
            creation: header.creation,
            received: header.origin.is_some(),
            armed: true,
        }
    }

    /// What the log is going to say about the snapshot.
    #[must_use]
    pub fn reference(&self) -> &SnapshotRef {
        &self.reference
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.claim.group()
    }

    /// The creation of the group that the snapshot is of.
    #[must_use]
    pub fn creation(&self) -> u64 {
        self.creation
    }

    /// True when another store made the snapshot, so that the log has to follow it.
    #[must_use]
    pub fn is_received(&self) -> bool {
        self.received
    }

    /// Keeps the file without a reference in the log, for an owner who keeps references elsewhere.
    ///
    /// Danger: [`SnapshotStore::recover`](super::SnapshotStore::recover) removes such a file.
    #[must_use]
    pub fn keep(mut self) -> SnapshotRef {
        self.armed = false;
        self.reference.clone()
    }

    /// Leaves the file to whatever the log says after the next start.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }

    pub(super) fn vfs(&self) -> &SharedVfs {
        self.claim.vfs()
    }

    /// This, if the file was published. Else the file is left to the next start if it has its name
    /// already, and `leftover` is removed if not.
    pub(super) fn or_forget(
        mut self,
        published: Result<(), PublishError>,
        leftover: Option<&Path>,
    ) -> Result<Self, SnapshotError> {
        let Err(failure) = published else {
            return Ok(self);
        };
        self.disarm();
        if let Some(leftover) = leftover.filter(|_| !failure.named) {
            // Where this fails, the next open of the store removes the file.
            let _ = pins::remove(self.vfs(), leftover);
        }
        Err(failure.error)
    }
}

impl Drop for PendingSnapshot {
    fn drop(&mut self) {
        if self.armed {
            // It is pinned by this, so it goes when the last pin does. Where that fails, the next
            // start removes the file: no record refers to it.
            let _ = self.claim.shared().pins.remove(&self.path);
        }
        self.pin = None;
    }
}
