//! The seam to the file system: everything that this crate does to files goes through [`Vfs`].
//!
//! It is as small as the log allows: files are read and written by position, and directories are a name space with
//! explicit syncs, because the durability of a name is not the durability of the file behind it.

pub mod real;
#[cfg(feature = "sim")]
pub mod sim;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use real::RealFs;
#[cfg(feature = "sim")]
pub use sim::SimFs;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A file that must not exist yet, for reading and writing.
    CreateNew,
}

/// A file system. Paths are whole paths; parents must exist.
pub trait Vfs: fmt::Debug + Send + Sync + 'static {
    /// Opens a file. A missing file is `NotFound`, an existing one under [`OpenMode::CreateNew`] is `AlreadyExists`.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>>;

    /// Replaces `to` by `from`, atomically. Durable only after [`Vfs::sync_dir`] of both parents.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Vfs::sync_dir`] of its parent.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its missing parents, and syncs the parent of each one that it made.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. A missing directory is `NotFound`.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// About how many more bytes the disk under a directory takes. Only a hint: others write to it as well.
    fn available(&self, path: &Path) -> io::Result<u64>;

    /// Creates the file if needed and locks it against every other holder, in this process or another.
    /// `WouldBlock` when somebody else holds it. The lock ends with the returned value, or with the process.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>>;
}

/// A lock that is held for as long as the value lives.
pub trait VfsLock: fmt::Debug + Send + Sync {}

/// An open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether a file is empty"
)]
pub trait VfsFile: fmt::Debug + Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file, 0 past it.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`, growing the file if needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the content and the length durable. After an error nothing is known about what is on disk, and a second
    /// call may succeed without having written anything: never retry.
    fn sync_data(&self) -> io::Result<()>;

    /// Gives the disk space of a range of zeros back. It reads as zeros before and after, so nothing depends on whether
    /// this is done, or lasts; a later write takes space again. A file system that does not know how does nothing.
    fn discard_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let _ = (from, to);
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes; `UnexpectedEof` when the file is shorter.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// A file system that is shared by everything that uses it.
pub type SharedVfs = Arc<dyn Vfs>;
