//! What all handles of one store share, and who is at work on which group.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::catalog::Catalog;
use super::error::SnapshotError;
use super::latch::Latch;
use super::number::Numbers;
use super::options::SnapshotOptions;
use super::pins::Pins;
use crate::GroupId;
use crate::vfs::SharedVfs;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) catalog: Catalog,
    pub(super) options: SnapshotOptions,
    pub(super) latch: Arc<Latch>,
    pub(super) pins: Arc<Pins>,
    numbers: Mutex<Numbers>,
    claims: Mutex<Claims>,
    /// Held while a reference is written and old files are removed: one at a time.
    install: Mutex<()>,
}

/// What is under way.
#[derive(Debug, Default)]
struct Claims {
    making: BTreeSet<GroupId>,
    receiving: BTreeSet<GroupId>,
    /// Complete files that no record refers to yet.
    pending: BTreeSet<PathBuf>,
}

impl Shared {
    pub(super) fn new(
        catalog: Catalog,
        options: SnapshotOptions,
        numbers: Numbers,
        latch: Arc<Latch>,
    ) -> Arc<Self> {
        Arc::new(Self {
            pins: Arc::new(Pins::new(Arc::clone(&latch))),
            latch,
            catalog,
            options,
            numbers: Mutex::new(numbers),
            claims: Mutex::default(),
            install: Mutex::default(),
        })
    }

    pub(super) fn draw_number(&self) -> Result<u64, SnapshotError> {
        self.numbers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .draw()
    }

    pub(super) fn installing(&self) -> MutexGuard<'_, ()> {
        self.install.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to make a snapshot of the group, until the claim is dropped.
    pub(super) fn claim_making(self: &Arc<Self>, group: GroupId) -> Result<Claim, SnapshotError> {
        if !self.claims().making.insert(group) {
            let what = "another one is being made or installed";
            return Err(SnapshotError::Busy { group, what });
        }
        Ok(self.claim(group, Work::Making))
    }

    /// The right to receive a snapshot of the group, until the claim is dropped.
    pub(super) fn claim_receiving(
        self: &Arc<Self>,
        group: GroupId,
    ) -> Result<Claim, SnapshotError> {
        let mut claims = self.claims();
        let busy = |what| Err(SnapshotError::Busy { group, what });
        if claims.receiving.contains(&group) {
            return busy("another one is being received or installed");
        }
        if claims.receiving.len() >= self.options.receives_max {
            return busy("too many are being received");
        }
        claims.receiving.insert(group);
        drop(claims);
        Ok(self.claim(group, Work::Receiving))
    }

    /// True while a receive uses the group's partial file.
    pub(super) fn is_receiving(&self, group: GroupId) -> bool {
        self.claims().receiving.contains(&group)
    }

    /// True for a complete file whose reference is still to be written.
    pub(super) fn is_pending(&self, path: &PathBuf) -> bool {
        self.claims().pending.contains(path)
    }

    fn claim(self: &Arc<Self>, group: GroupId, work: Work) -> Claim {
        Claim {
            shared: Arc::clone(self),
            group,
            work,
            pending: None,
        }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Making,
    Receiving,
}

/// The right to work on a group's next snapshot; it ends with the value.
#[derive(Debug)]
pub(super) struct Claim {
    shared: Arc<Shared>,
    group: GroupId,
    work: Work,
    pending: Option<PathBuf>,
}

impl Claim {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    pub(super) fn options(&self) -> &SnapshotOptions {
        &self.shared.options
    }

    pub(super) fn vfs(&self) -> &SharedVfs {
        &self.shared.catalog.vfs
    }

    /// Says which complete file waits for its reference.
    pub(super) fn set_pending(&mut self, path: PathBuf) {
        self.shared.claims().pending.insert(path.clone());
        self.pending = Some(path);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.shared.claims();
        match self.work {
            Work::Making => claims.making.remove(&self.group),
            Work::Receiving => claims.receiving.remove(&self.group),
        };
        if let Some(path) = &self.pending {
            claims.pending.remove(path);
        }
    }
}
