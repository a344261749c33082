//! Syncs a file that grows on a thread beside the one that fills it, so that the two overlap.
//!
//! One writer owns it. At most one sync is under way, the next one waits for it; the thread is
//! `flotilla-snap`, it ends when the writer does, and an error reaches the writer at its next sync.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use super::error::SnapshotError;
use super::latch::Latch;
use crate::vfs::VfsFile;

#[derive(Debug)]
pub(super) struct Syncer {
    /// `None` only while it is dropped.
    requests: Option<SyncSender<()>>,
    results: Receiver<Result<(), SnapshotError>>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    under_way: bool,
}

impl Syncer {
    pub(super) fn start(
        latch: Arc<Latch>,
        file: Arc<dyn VfsFile>,
        path: PathBuf,
    ) -> Result<Self, SnapshotError> {
        let (requests, wanted) = mpsc::sync_channel(1);
        let (done, results) = mpsc::sync_channel(1);
        let synced = path.clone();
        let thread = std::thread::Builder::new()
            .name("flotilla-snap".into())
            .spawn(move || {
                while wanted.recv().is_ok() {
                    if done.send(latch.sync_file(&*file, &synced)).is_err() {
                        return;
                    }
                }
            })
            .map_err(SnapshotError::io(&path, "start a thread to sync"))?;
        Ok(Self {
            requests: Some(requests),
            results,
            path,
            thread: Some(thread),
            under_way: false,
        })
    }

    /// Waits for the sync before, and begins one of what was written until now.
    pub(super) fn sync(&mut self) -> Result<(), SnapshotError> {
        self.wait()?;
        let requests = self.requests.as_ref().expect("it is not being dropped");
        requests.send(()).map_err(|_| self.gone())?;
        self.under_way = true;
        Ok(())
    }

    /// Waits for the sync that is under way.
    pub(super) fn wait(&mut self) -> Result<(), SnapshotError> {
        if !std::mem::take(&mut self.under_way) {
            return Ok(());
        }
        self.results.recv().map_err(|_| self.gone())?
    }

    fn gone(&self) -> SnapshotError {
        let text = "the thread that syncs snapshots panicked";
        SnapshotError::io(&self.path, "sync")(io::Error::other(text))
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // Whoever waited for it has seen the panic as an error.
            let _ = thread.join();
        }
    }
}
