//! A file system that moves one byte per call and stores none of them as it is.
//!
//! For tests of whatever uses [`Vfs`]: a reader that takes a short read for the end of the file, and
//! any access that goes round the seam, meet wrong bytes at once. The idea is raft-engine's
//! `ObfuscatedFileSystem`. It is slow, and adds no faults of its own: put it on a
//! [`SimFs`](super::SimFs) for those.

use std::io;
use std::path::Path;

use crate::vfs::{OpenMode, SharedVfs, Vfs, VfsFile, VfsLock};

/// Every byte is stored as itself plus this, so that zeros differ too.
const SHIFT: u8 = 0x5b;

/// Wraps a file system: each byte is stored shifted, and read and written by a call of its own.
#[derive(Clone, Debug)]
pub struct BytewiseFs {
    inner: SharedVfs,
}

impl BytewiseFs {
    /// Stores shifted bytes in `inner`.
    #[must_use]
    pub fn new(inner: SharedVfs) -> Self {
        Self { inner }
    }
}

impl Vfs for BytewiseFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let inner = self.inner.open(path, mode)?;
        Ok(Box::new(BytewiseFile { inner }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.inner.available(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct BytewiseFile {
    inner: Box<dyn VfsFile>,
}

impl BytewiseFile {
    /// Fills from the end of the file to `to` with shifted zeros: the inner file's own would read
    /// back as something else.
    fn extend(&self, to: u64) -> io::Result<()> {
        for at in self.inner.len()?..to {
            self.inner.write_all_at(&[SHIFT], at)?;
        }
        Ok(())
    }
}

impl VfsFile for BytewiseFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(first) = buf.first_mut() else {
            return Ok(0);
        };
        let mut byte = [0];
        let n = self.inner.read_at(&mut byte, offset)?;
        if n == 1 {
            *first = byte[0].wrapping_sub(SHIFT);
        }
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !buf.is_empty() {
            self.extend(offset)?;
        }
        for (at, byte) in (offset..).zip(buf) {
            self.inner.write_all_at(&[byte.wrapping_add(SHIFT)], at)?;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.extend(len)?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
}
