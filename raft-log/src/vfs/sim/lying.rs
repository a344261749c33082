//! A file system that breaks one promise, to see whether a test suite notices.
//!
//! Each [`Lie`] is a bug that stores have had, put in below the store, so that its code stays as it
//! is: a crash test that stays green on a lying file system tests nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::vfs::{OpenMode, SharedVfs, Vfs, VfsFile, VfsLock};

/// The promise that is broken. Files are chosen by the end of the name under which they were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Syncs of these files do nothing and report success.
    SkipSync(&'static str),
    /// A sync of these files returns before it is done: it happens at the next sync of any file.
    LateSync(&'static str),
    /// Syncs of directories do nothing and report success.
    SkipSyncDir,
    /// A failed sync of these files is tried again, and the second answer is the one reported.
    RetrySync(&'static str),
    /// A write to these files stops after so many bytes, and reports success.
    ShortWrite(&'static str, usize),
}

/// Wraps a file system and tells one [`Lie`].
#[derive(Clone, Debug)]
pub struct LyingFs {
    inner: SharedVfs,
    lie: Lie,
    /// Files whose sync was reported and has not happened.
    owed: Arc<Mutex<Vec<PathBuf>>>,
}

impl LyingFs {
    /// Passes everything on to `inner` but what the lie is about.
    #[must_use]
    pub fn new(inner: SharedVfs, lie: Lie) -> Self {
        Self {
            inner,
            lie,
            owed: Arc::default(),
        }
    }

    fn settle(&self) -> io::Result<()> {
        let owed = std::mem::take(&mut *self.owed.lock().unwrap_or_else(PoisonError::into_inner));
        for path in owed {
            match self.inner.open(&path, OpenMode::ReadWrite) {
                Ok(file) => file.sync_data()?,
                // Renamed or removed meanwhile: then nobody gets what is owed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn concerns(path: &Path, suffix: &str) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(suffix))
}

impl Vfs for LyingFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        Ok(Box::new(LyingFile {
            inner: self.inner.open(path, mode)?,
            path: path.to_owned(),
            fs: self.clone(),
        }))
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
        match self.lie {
            Lie::SkipSyncDir => Ok(()),
            _ => self.inner.sync_dir(path),
        }
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.inner.available(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct LyingFile {
    inner: Box<dyn VfsFile>,
    path: PathBuf,
    fs: LyingFs,
}

impl VfsFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let buf = match self.fs.lie {
            Lie::ShortWrite(suffix, most) if concerns(&self.path, suffix) => {
                &buf[..buf.len().min(most)]
            }
            _ => buf,
        };
        self.inner.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn discard_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        self.inner.discard_zeros(from, to)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fs.settle()?;
        match self.fs.lie {
            Lie::SkipSync(suffix) if concerns(&self.path, suffix) => Ok(()),
            Lie::LateSync(suffix) if concerns(&self.path, suffix) => {
                let mut owed = self.fs.owed.lock().unwrap_or_else(PoisonError::into_inner);
                owed.push(self.path.clone());
                Ok(())
            }
            Lie::RetrySync(suffix) if concerns(&self.path, suffix) => {
                self.inner.sync_data().or_else(|_| self.inner.sync_data())
            }
            _ => self.inner.sync_data(),
        }
    }
}
