//! The file that a writer or a receiver fills: gathered into large writes, and synced as it grows.
//!
//! Dirty pages that pile up are written back all at once, and then the sync of a small batch of the
//! log waits behind hundreds of megabytes. So a sync begins after each `sync_bytes`, beside the
//! writing where threads are allowed, and a file never has more than twice as much that is not on
//! disk. After the first error nothing more is written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SnapshotError;
use super::latch::Latch;
use super::options::SnapshotOptions;
use super::syncer::Syncer;
use crate::IoMode;
use crate::testing::{Bug, bug};
use crate::vfs::VfsFile;

/// Bytes that are gathered for one write, if the syncs are not closer together.
const PIECE: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Output {
    latch: Arc<Latch>,
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    /// Where the buffer goes.
    offset: u64,
    buffer: Vec<u8>,
    unsynced: u64,
    sync_bytes: u64,
    io: IoMode,
    /// Made for the first sync that the writing goes on beside.
    syncer: Option<Syncer>,
    failed: bool,
}

impl Output {
    /// Writes `file` from its beginning.
    pub(super) fn new(
        latch: &Arc<Latch>,
        file: Box<dyn VfsFile>,
        path: PathBuf,
        options: &SnapshotOptions,
    ) -> Self {
        Self {
            latch: Arc::clone(latch),
            file: file.into(),
            path,
            offset: 0,
            buffer: Vec::new(),
            unsynced: 0,
            sync_bytes: options.sync_bytes,
            io: options.io,
            syncer: None,
            failed: false,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// What has gathered since the last write, to be appended to. Its end may be incomplete until
    /// [`settle`](Self::settle) is called.
    pub(super) fn buffer(&mut self) -> Result<&mut Vec<u8>, SnapshotError> {
        self.healthy()?;
        Ok(&mut self.buffer)
    }

    /// Writes, and syncs, once enough has gathered.
    pub(super) fn settle(&mut self) -> Result<(), SnapshotError> {
        if self.buffer.len() as u64 >= PIECE.min(self.sync_bytes) {
            self.flush()?;
        }
        if self.unsynced >= self.sync_bytes {
            let result = self.begin_sync();
            self.settled(result)?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Appends `bytes`.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.buffer()?.extend_from_slice(bytes);
        self.settle()
    }

    /// Writes what has gathered.
    pub(super) fn flush(&mut self) -> Result<(), SnapshotError> {
        self.healthy()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.file.write_all_at(&self.buffer, self.offset);
        self.note(result, "write")?;
        self.offset += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the file where the next byte would go, whatever lay behind.
    pub(super) fn cut(&mut self) -> Result<(), SnapshotError> {
        self.flush()?;
        let result = self.file.set_len(self.offset);
        self.note(result, "cut")
    }

    /// Reads what the file holds at `offset`; false if it is not all there.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> bool {
        self.file.read_exact_at(buf, offset).is_ok()
    }

    /// Writes the rest, puts `header` over the beginning of the file, makes all of it durable, and
    /// then gives the file its name.
    pub(super) fn publish(mut self, header: &[u8], name: &Path) -> Result<(), PublishError> {
        let not_named = |error| PublishError {
            error,
            named: false,
        };
        self.flush().map_err(not_named)?;
        let result = self.file.write_all_at(header, 0);
        self.note(result, "write").map_err(not_named)?;
        let result = self
            .syncer
            .take()
            .map_or(Ok(()), |mut syncer| syncer.wait());
        self.settled(result).map_err(not_named)?;
        let Self {
            latch, file, path, ..
        } = self;
        if !bug(Bug::SnapshotNotSynced) {
            latch.sync_file(&*file, &path).map_err(not_named)?;
        }
        drop(file);
        latch
            .vfs()
            .rename(&path, name)
            .map_err(SnapshotError::io(&path, "rename"))
            .map_err(not_named)?;
        if bug(Bug::SnapshotNameNotSynced) {
            return Ok(());
        }
        latch
            .sync_dir(name.parent().unwrap_or(name))
            .map_err(|error| PublishError { error, named: true })
    }

    fn begin_sync(&mut self) -> Result<(), SnapshotError> {
        if self.io == IoMode::Inline {
            return self.latch.sync_file(&*self.file, &self.path);
        }
        let syncer = match &mut self.syncer {
            Some(syncer) => syncer,
            none => {
                let (latch, file) = (Arc::clone(&self.latch), Arc::clone(&self.file));
                none.insert(Syncer::start(latch, file, self.path.clone())?)
            }
        };
        syncer.sync()
    }

    fn healthy(&self) -> Result<(), SnapshotError> {
        self.latch.healthy()?;
        if !self.failed {
            return Ok(());
        }
        let doing = "go on after a failed write to";
        Err(SnapshotError::io(&self.path, doing)(
            io::ErrorKind::Other.into(),
        ))
    }

    fn note(&mut self, result: io::Result<()>, doing: &'static str) -> Result<(), SnapshotError> {
        self.failed |= result.is_err();
        result.map_err(SnapshotError::io(&self.path, doing))
    }

    fn settled(&mut self, result: Result<(), SnapshotError>) -> Result<(), SnapshotError> {
        self.failed |= result.is_err();
        result
    }
}

/// Why a file could not be published, and whether it has its final name all the same.
#[derive(Debug)]
pub(super) struct PublishError {
    pub(super) error: SnapshotError,
    pub(super) named: bool,
}
