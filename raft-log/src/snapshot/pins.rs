//! Who needs which file: a snapshot that is being read or sent is not removed under its reader.
//!
//! A file is removed at once if nobody pins it; else it is marked, and the last pin to go removes
//! it. Marks live in memory only: after a crash the next start decides anew what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::SnapshotError;
use super::latch::Latch;
use crate::vfs::SharedVfs;

#[derive(Debug)]
pub(super) struct Pins {
    latch: Arc<Latch>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<PathBuf, usize>,
    doomed: BTreeSet<PathBuf>,
}

impl Pins {
    pub(super) fn new(latch: Arc<Latch>) -> Self {
        Self {
            latch,
            state: Mutex::default(),
        }
    }

    /// Keeps the file until the pin is dropped.
    pub(super) fn pin(self: &Arc<Self>, path: &Path) -> SnapshotPin {
        *self.state().counts.entry(path.to_owned()).or_default() += 1;
        SnapshotPin(Arc::new(Pin {
            pins: Arc::clone(self),
            path: path.to_owned(),
        }))
    }

    /// Removes the file, now or when its last pin goes; true if it is gone. The caller syncs the
    /// directory.
    pub(super) fn remove(&self, path: &Path) -> Result<bool, SnapshotError> {
        self.latch.healthy()?;
        // Under the lock, so that nobody pins the file meanwhile.
        let mut state = self.state();
        if state.counts.contains_key(path) {
            state.doomed.insert(path.to_owned());
            return Ok(false);
        }
        remove(self.latch.vfs(), path)
    }

    fn unpin(&self, path: &Path) -> Result<(), SnapshotError> {
        let mut state = self.state();
        let count = state.counts.get_mut(path).expect("a pin is counted");
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        state.counts.remove(path);
        if !state.doomed.remove(path) {
            return Ok(());
        }
        self.latch.healthy()?;
        remove(self.latch.vfs(), path)?;
        drop(state);
        self.latch.sync_dir(path.parent().unwrap_or(path))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a file; true if it was there.
pub(super) fn remove(vfs: &SharedVfs, path: &Path) -> Result<bool, SnapshotError> {
    match vfs.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(SnapshotError::io(path, "remove")(error)),
        Ok(()) => Ok(true),
    }
}

/// Keeps one snapshot file from being removed while it lives. Clones count as one.
///
/// For a sender that closes the file between two requests of its peer: readers and senders pin what
/// they have open themselves.
#[derive(Clone)]
pub struct SnapshotPin(Arc<Pin>);

struct Pin {
    pins: Arc<Pins>,
    path: PathBuf,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // A file that stays behind is removed by the next start.
        let _ = self.pins.unpin(&self.path);
    }
}

impl fmt::Debug for SnapshotPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SnapshotPin").field(&self.0.path).finish()
    }
}
