//! The file system of the operating system, by `std`.
//!
//! Used by every process that serves; tests use it only where the kernel's own behaviour is the
//! subject. It neither caches nor retries: a failed sync is reported once and is the caller's to
//! latch. Unix only, for positioned IO.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that all file access goes through, and it times its syncs"
)]

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{OpenMode, Vfs, VfsFile, VfsLock};

/// Called after each successful [`VfsFile::sync_data`] with the time that it took, on the thread
/// that synced.
pub type SyncObserver = Arc<dyn Fn(Duration) + Send + Sync>;

/// The file system of the operating system.
#[derive(Clone, Default)]
pub struct RealFs {
    observer: Option<SyncObserver>,
}

impl RealFs {
    /// The file system, with nobody watching its syncs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The file system, reporting how long each sync of a file takes. The observer must not block:
    /// it runs in the way of every write.
    #[must_use]
    pub fn with_observer(observer: SyncObserver) -> Self {
        Self {
            observer: Some(observer),
        }
    }
}

impl fmt::Debug for RealFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealFs")
            .field("observed", &self.observer.is_some())
            .finish()
    }
}

impl Vfs for RealFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        let file = options.open(path)?;
        Ok(Box::new(RealFile {
            file,
            observer: self.observer.clone(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut existing = None;
        for ancestor in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
            match fs::metadata(ancestor) {
                Ok(meta) if meta.is_dir() => {
                    existing = Some(ancestor);
                    break;
                }
                Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
                Err(error) => return Err(error),
            }
        }
        // A crash may have come between the making of a directory and the sync of its parent.
        // Directories are made and synced one after the other, so the deepest one that exists is
        // the only one in doubt.
        if let Some(existing) = existing {
            match self.sync_dir(parent_of(existing)) {
                // Whoever may not open the parent has not made a directory in it.
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.sync_dir(parent_of(dir))?,
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours; shown lossily, it cannot be taken for one
            // either.
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The directory that holds the name of `path`; for a bare name that is the working directory.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        None => path,
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    }
}

/// The lock is the kernel's, on the open file; closing the file ends it.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl VfsLock for RealLock {}

struct RealFile {
    file: File,
    observer: Option<SyncObserver>,
}

impl fmt::Debug for RealFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl VfsFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn discard_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        if from >= to {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, from, to - from) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let Some(observer) = &self.observer else {
            return self.file.sync_data();
        };
        let start = Instant::now();
        self.file.sync_data()?;
        observer(start.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn file_written_synced_and_renamed_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let fs = RealFs::new();
        let deep = dir.path().join("a/b/c");
        fs.create_dir_all(&deep).unwrap();
        fs.create_dir_all(&deep).unwrap();
        let path = deep.join("x");
        let file = fs.open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(b"hello", 3).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 8);
        let mut buf = [9; 10];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 8);
        assert_eq!(&buf[..8], b"\0\0\0hello");
        assert_eq!(file.read_at(&mut buf, 8).unwrap(), 0);
        let error = file.read_exact_at(&mut buf, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(4).unwrap();
        assert_eq!(file.len().unwrap(), 4);

        fs.rename(&path, &deep.join("y")).unwrap();
        fs.sync_dir(&deep).unwrap();
        assert_eq!(fs.list(&deep).unwrap(), ["y"]);
        fs.remove(&deep.join("y")).unwrap();
        assert!(fs.list(&deep).unwrap().is_empty());
    }

    #[test]
    fn zeros_given_back_read_as_zeros_and_take_no_space() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let file = RealFs::new().open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        file.write_all_at(b"end", (1 << 20) - 3).unwrap();
        file.sync_data().unwrap();
        let before = fs::metadata(&path).unwrap().blocks();
        file.discard_zeros(4096, (1 << 20) - 4096).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.len(), 1 << 20);
        // A file system that cannot do it keeps them all.
        assert!(after.blocks() <= before);
        let mut content = vec![1; 1 << 20];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(
            content.ends_with(b"end") && content[..(1 << 20) - 3].iter().all(|byte| *byte == 0)
        );
    }

    #[test]
    fn open_of_missing_or_existing_file_names_the_kind() {
        let dir = tempfile::tempdir().unwrap();
        let fs = RealFs::new();
        let path = dir.path().join("x");
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            assert_eq!(
                fs.open(&path, mode).unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
        }
        fs.open(&path, OpenMode::CreateNew).unwrap();
        let error = fs.open(&path, OpenMode::CreateNew).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let error = fs.list(&dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = fs.create_dir_all(&path.join("below")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn lock_held_twice_would_block_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let fs = RealFs::new();
        let path = dir.path().join("LOCK");
        let held = fs.lock(&path).unwrap();
        assert_eq!(
            fs.lock(&path).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(held);
        fs.lock(&path).unwrap();
    }

    #[test]
    fn observer_sees_each_sync_once() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Arc::new(AtomicU64::new(0));
        let fs = RealFs::with_observer({
            let seen = Arc::clone(&seen);
            Arc::new(move |_| {
                seen.fetch_add(1, Ordering::Relaxed);
            })
        });
        let file = fs.open(&dir.path().join("x"), OpenMode::CreateNew).unwrap();
        file.sync_data().unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(dir.path()).unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 2);
    }
}
