//! The first failed sync of a store is its last: who syncs a file or a directory of the store does it here.
//!
//! After a failed sync the kernel may count the pages as clean, so a second one reports success without having written
//! anything, for a name as for content. So no sync follows: every later operation that changes something fails with the
//! cause of the first failure, until the process ends. Reading goes on, for a file that a record refers to was durable
//! before. A write that fails, for want of space or otherwise, is no failed sync and concerns one writer only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::error::SnapshotError;
use crate::vfs::{SharedVfs, VfsFile};

/// The syncs of one store.
#[derive(Debug)]
pub(super) struct Latch {
    vfs: SharedVfs,
    first: OnceLock<Failure>,
}

/// The sync that failed first.
#[derive(Debug)]
struct Failure {
    path: PathBuf,
    doing: &'static str,
    cause: String,
}

impl Latch {
    pub(super) fn new(vfs: SharedVfs) -> Arc<Self> {
        Arc::new(Self {
            vfs,
            first: OnceLock::new(),
        })
    }

    pub(super) fn vfs(&self) -> &SharedVfs {
        &self.vfs
    }

    /// An error once a sync has failed.
    pub(super) fn healthy(&self) -> Result<(), SnapshotError> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(SnapshotError::Failed {
                path: first.path.clone(),
                doing: first.doing,
                cause: first.cause.clone(),
            }),
        }
    }

    /// Makes the content of the file at `path` durable.
    pub(super) fn sync_file(&self, file: &dyn VfsFile, path: &Path) -> Result<(), SnapshotError> {
        self.healthy()?;
        file.sync_data()
            .map_err(|error| self.failed(path, "sync", error))
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_dir(&self, dir: &Path) -> Result<(), SnapshotError> {
        self.healthy()?;
        match self.vfs.sync_dir(dir) {
            // There is nothing to sync, and nothing was lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SnapshotError::io(dir, "sync")(error))
            }
            synced => synced.map_err(|error| self.failed(dir, "sync", error)),
        }
    }

    /// Makes a directory and syncs its parent, if it is not there; which of the two failed is not known, so both count,
    /// except where it can only have been the first.
    pub(super) fn create_dir_all(&self, dir: &Path) -> Result<(), SnapshotError> {
        use io::ErrorKind::{NotADirectory, PermissionDenied, QuotaExceeded, StorageFull};
        self.healthy()?;
        let harmless = [StorageFull, QuotaExceeded, PermissionDenied, NotADirectory];
        match self.vfs.create_dir_all(dir) {
            Err(error) if harmless.contains(&error.kind()) => {
                Err(SnapshotError::io(dir, "create")(error))
            }
            made => made.map_err(|error| self.failed(dir, "create", error)),
        }
    }

    fn failed(&self, path: &Path, doing: &'static str, error: io::Error) -> SnapshotError {
        self.first.get_or_init(|| Failure {
            path: path.to_owned(),
            doing,
            cause: error.to_string(),
        });
        SnapshotError::io(path, doing)(error)
    }
}
