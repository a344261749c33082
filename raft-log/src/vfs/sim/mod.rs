//! A file system in memory that forgets, tears and corrupts on command, from one seed.
//!
//! For crash tests: of this crate, of everything above it, and of users of the crate (feature
//! `sim`). What is modelled:
//!
//! - A file's content and its name are durable separately: [`VfsFile::sync_data`] covers content
//!   and length, [`Vfs::sync_dir`] covers names. Neither covers the other.
//! - [`CrashKind::Process`]: what was written stays readable, and stays un-synced.
//! - [`CrashKind::Power`]: every un-synced sector of 512 bytes ends at any of the states it went
//!   through since the last sync, whatever happened to its neighbours; a file's length at any of
//!   its own; a directory loses any number of its newest changes. A rename between two directories
//!   is two changes, one in each.
//! - Faults: an error on the n-th read, write or sync; a full disk; flipped bits. A failed sync
//!   drops what it should have written although it stays readable, and the next sync succeeds, as
//!   Linux does it.
//! - [`SimFs::keep_images`] keeps the state at every operation that changes something, so that one
//!   run gives every moment at which a process can die; [`SimFs::fail_after`] cuts a run short at
//!   one of them instead, for what goes on afterwards.
//!
//! Left out: sectors that are torn within, misdirected writes, and hard links.
//!
//! # A crash test of your own store
//!
//! 1. Let the store take a [`SharedVfs`] and do all its IO through it; in production that is
//!    [`RealFs`](super::RealFs).
//! 2. Run a short workload on [`SimFs::shared`] with [`SimFs::keep_images`], and after each step
//!    note what was acknowledged beside the images of [`SimFs::take_images`].
//! 3. For each image and a few seeds: [`SimFs::fork`], [`SimFs::crash`], open the store, and
//!    compare what it holds with what was acknowledged. What a crash must never do is lose an
//!    acknowledged write, show half of one, or keep the store from opening.
//! 4. Do the same to the recovery itself: it writes as well. And open twice: a start that changes
//!    what the next one finds has not decided anything.
//! 5. Break the store on purpose, to see that the test notices: [`LyingFs`] skips syncs without a
//!    change to the store. [`BytewiseFs`] finds IO that goes round the seam or takes a short read
//!    for the end.
//!
//! `examples/crash_test.rs` of this crate does all of it to a store of 60 lines, and finds the bug
//! in it.
//!
//! # One file, one crash
//!
//! ```
//! use std::path::Path;
//! use raft_log::vfs::sim::{CrashKind, SimFs};
//! use raft_log::vfs::{OpenMode, Vfs};
//!
//! # fn main() -> std::io::Result<()> {
//! let fs = SimFs::new(1);
//! let file = fs.open(Path::new("/a"), OpenMode::CreateNew)?;
//! file.write_all_at(b"content", 0)?;
//! file.sync_data()?;
//! fs.sync_dir(Path::new("/"))?;
//! fs.crash(CrashKind::Power);
//! assert_eq!(fs.read_file("/a")?, b"content");
//! assert!(file.len().is_err());
//! # Ok(())
//! # }
//! ```

mod bytewise;
mod disk;
mod file;
mod lying;
mod rng;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrapper_tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use bytewise::BytewiseFs;
use disk::{Disk, Id, Node};
use file::FileImage;
use file::SECTOR;
pub use lying::{Lie, LyingFs};
pub use rng::Rng;

use super::{OpenMode, SharedVfs, Vfs, VfsFile, VfsLock};

/// What a crash takes with it. Either way locks end and open files are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The process is gone. Nothing that was written is lost, and nothing that was not synced
    /// becomes so.
    Process,
    /// The machine is gone: of what was not synced, any part survives.
    Power,
}

/// An operation that is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read fails; nothing changes.
    Read,
    /// A write or a change of length fails; nothing changes.
    Write,
    /// A sync of a file fails: what was not synced stays readable, is not on the disk, and later
    /// syncs pass it over.
    Sync,
    /// A sync of a directory fails, in the same way.
    SyncDir,
}

/// Why an operation on a crashed file system, or on a file from before a crash, fails.
#[derive(Debug)]
struct Crashed;

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated crash")
    }
}

impl std::error::Error for Crashed {}

fn crashed() -> io::Error {
    io::Error::other(Crashed)
}

fn eio() -> io::Error {
    const EIO: i32 = 5;
    io::Error::from_raw_os_error(EIO)
}

/// True for the error of everything that is done after a crash: by the fuse of
/// [`SimFs::fail_after`], or on a file that was opened before [`SimFs::crash`].
#[must_use]
pub fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Crashed>())
}

/// A simulated file system; clones are handles on the same one. Relative paths start at its root.
#[derive(Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

impl SimFs {
    /// An empty file system. All its chances come from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            disk: Arc::new(Mutex::new(Disk::new(seed))),
        }
    }

    /// This file system as the crate's users take it.
    #[must_use]
    pub fn shared(&self) -> SharedVfs {
        Arc::new(self.clone())
    }

    /// A copy of the whole state, with chances of its own: for several outcomes of one crash. Open
    /// files and locks belong to the original, and so does the fuse.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let mut disk = self.disk().clone();
        disk.rng = Rng::new(seed);
        disk.fuse = None;
        disk.images = None;
        Self {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    /// From now on, keeps a copy of the state before each operation that changes something, and one
    /// in the middle of each write over several sectors: everything that a process killed at any
    /// moment leaves behind. [`SimFs::take_images`] hands them out.
    pub fn keep_images(&self) {
        self.disk().images = Some(Vec::new());
    }

    /// The copies kept since the last call, oldest first; the next ones are kept too. Each is a
    /// file system of its own on which the process is still running: [`SimFs::crash`] it first.
    #[must_use]
    pub fn take_images(&self) -> Vec<SimFs> {
        let mut disk = self.disk();
        let images = disk.images.as_mut().map(std::mem::take).unwrap_or_default();
        let wrap = |disk| Self {
            disk: Arc::new(Mutex::new(disk)),
        };
        images.into_iter().map(wrap).collect()
    }

    /// Crashes, and starts again: files opened before return errors ([`is_crash`]), locks are free,
    /// the fuse is out. Capacity and faults to come stay.
    pub fn crash(&self, kind: CrashKind) {
        self.disk().crash(kind);
    }

    /// Lets `n` more operations succeed and cuts the run short in the one after: it may take
    /// effect, in part or not at all, but returns an error, and so does everything from then on
    /// until [`SimFs::crash`].
    pub fn fail_after(&self, n: u64) {
        self.disk().fuse = Some(n);
    }

    /// True from the end of the fuse until the crash.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.disk().down
    }

    /// Operations so far that change something on the disk: creations, renames, removals, writes,
    /// lengths, syncs. Reads do not count, for a crash in a read is the crash in the operation that
    /// follows.
    #[must_use]
    pub fn op_count(&self) -> u64 {
        self.disk().ops
    }

    /// Makes the next operation of that kind fail.
    pub fn fail_next(&self, fault: Fault) {
        self.fail_nth(fault, 0);
    }

    /// Lets `pass` operations of that kind succeed and makes the one after fail, once.
    pub fn fail_nth(&self, fault: Fault, pass: u64) {
        self.disk().faults.push((fault, pass));
    }

    /// How many faults of that kind are still to come.
    #[must_use]
    pub fn planned(&self, fault: Fault) -> usize {
        let disk = self.disk();
        disk.faults
            .iter()
            .filter(|(kind, _)| *kind == fault)
            .count()
    }

    /// The faults of [`SimFs::fail_nth`] that came since the last call, in order.
    pub fn take_struck(&self) -> Vec<Fault> {
        std::mem::take(&mut self.disk().struck)
    }

    /// Bounds the bytes in all files; `None` lifts the bound. A write that does not fit writes what
    /// does.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Flips the bits of `mask` in one byte of a file, on the disk and in the cache. `InvalidInput`
    /// past the end.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, mask: u8) -> io::Result<()> {
        let mut disk = self.disk();
        let id = disk.find_file(path.as_ref())?;
        disk.file_mut(id).image.corrupt(offset, mask)
    }

    /// A file's content as readers see it. Never fails by a fault or a crash.
    pub fn read_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut disk = self.disk();
        let id = disk.find_file(path.as_ref())?;
        Ok(disk.file_mut(id).image.content().to_vec())
    }

    /// Puts a file there or replaces its content, durable at once. The directory must exist; all
    /// its names become durable.
    pub fn write_file(&self, path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
        let path = path.as_ref();
        let mut disk = self.disk();
        let id = match disk.find(path)? {
            None => disk.create_file(path)?,
            Some(_) => disk.find_file(path)?,
        };
        disk.file_mut(id).image = FileImage::durable(content);
        disk.sync_dir(path.parent().unwrap_or(path))
    }

    /// A file's length in bytes as readers see it.
    pub fn file_len(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        let mut disk = self.disk();
        let id = disk.find_file(path.as_ref())?;
        Ok(disk.file_mut(id).image.content().len() as u64)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A test that panicked meanwhile may still want to look.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk();
        f.debug_struct("SimFs")
            .field("generation", &disk.generation)
            .field("ops", &disk.ops)
            .field("down", &disk.down)
            .finish_non_exhaustive()
    }
}

impl Vfs for SimFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let mut disk = self.disk();
        disk.check_up()?;
        let id = match mode {
            OpenMode::Read | OpenMode::ReadWrite => disk.find_file(path)?,
            OpenMode::CreateNew => disk.operate(|disk| disk.create_file(path))?,
        };
        disk.open(id);
        let writable = mode != OpenMode::Read;
        Ok(Box::new(SimFile {
            fs: self.clone(),
            id,
            generation: disk.generation,
            writable,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk().operate(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk().operate(|disk| disk.remove(path))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.check_up()?;
        let mut missing = Vec::new();
        for dir in path.ancestors() {
            let Some(parent) = dir.parent() else { break };
            match disk.find(dir) {
                Ok(Some(Node::Dir(_))) => {
                    // As on the real one: the making of this directory may not have got to its
                    // sync.
                    disk.operate(|disk| disk.sync_dir(parent))?;
                    break;
                }
                Ok(Some(Node::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
                Ok(None) => missing.push((dir, parent)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing.push((dir, parent));
                }
                Err(error) => return Err(error),
            }
        }
        for (dir, parent) in missing.into_iter().rev() {
            disk.operate(|disk| disk.make_dir(dir))?;
            disk.operate(|disk| disk.sync_dir(parent))?;
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        disk.check_up()?;
        disk.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk().operate(|disk| disk.sync_dir(path))
    }

    fn available(&self, _path: &Path) -> io::Result<u64> {
        let disk = self.disk();
        disk.check_up()?;
        Ok(disk.room())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        let mut disk = self.disk();
        disk.check_up()?;
        let id = match disk.find(path)? {
            None => disk.operate(|disk| disk.create_file(path))?,
            Some(_) => disk.find_file(path)?,
        };
        if !disk.lock(id) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            fs: self.clone(),
            id,
            generation: disk.generation,
        }))
    }
}

struct SimFile {
    fs: SimFs,
    id: Id,
    generation: u64,
    writable: bool,
}

impl SimFile {
    /// The disk, if it is still the one on which the file was opened.
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.fs.disk();
        disk.check_up()?;
        if disk.generation == self.generation {
            Ok(disk)
        } else {
            Err(crashed())
        }
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, Disk>> {
        if self.writable {
            self.disk()
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut disk = self.fs.disk();
        if disk.generation == self.generation {
            disk.close(self.id);
        }
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.disk()?;
        if disk.faulty(Fault::Read) {
            return Err(eio());
        }
        Ok(disk.file_mut(self.id).image.read(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.writable()?.operate(|disk| {
            if disk.faulty(Fault::Write) {
                return Err(eio());
            }
            let len = disk.file_mut(self.id).image.content().len();
            let end_max = (len as u64).saturating_add(disk.room());
            let mut fits = usize::try_from(end_max)
                .unwrap_or(usize::MAX)
                .saturating_sub(offset);
            let growth = disk.file_mut(self.id).image.growth(offset, buf.len());
            if growth > 0 && offset + buf.len() <= len && growth as u64 > disk.room() {
                fits = 0;
            }
            let mut part = &buf[..fits.min(buf.len())];
            let last = (offset + part.len()).saturating_sub(1) / SECTOR;
            let inner = last.saturating_sub(offset / SECTOR);
            if inner > 0 {
                let id = self.id;
                disk.keep_image(|image| {
                    let sectors = 1 + image.rng.below(inner as u64) as usize;
                    let cut = (offset / SECTOR + sectors) * SECTOR - offset;
                    image.file_mut(id).image.write(&part[..cut], offset);
                });
            }
            if disk.down {
                part = &part[..cut_short(offset, part.len(), &mut disk.rng)];
            }
            disk.file_mut(self.id).image.write(part, offset);
            if fits < buf.len() {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk()?.file_mut(self.id).image.content().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let target = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.writable()?.operate(|disk| {
            if disk.faulty(Fault::Write) {
                return Err(eio());
            }
            let old = disk.file_mut(self.id).image.content().len() as u64;
            if len > old && len - old > disk.room() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.file_mut(self.id).image.set_len(target);
            Ok(())
        })
    }

    fn discard_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let end = |at| usize::try_from(at).unwrap_or(usize::MAX);
        self.writable()?.operate(|disk| {
            let image = &mut disk.file_mut(self.id).image;
            image.discard_zeros(end(from), end(to));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk()?.operate(|disk| {
            if disk.faulty(Fault::Sync) {
                disk.file_mut(self.id).image.fail_sync();
                return Err(eio());
            }
            disk.file_mut(self.id).image.sync();
            Ok(())
        })
    }
}

struct SimLock {
    fs: SimFs,
    id: Id,
    generation: u64,
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLock")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.fs.disk();
        if disk.generation == self.generation {
            disk.unlock(self.id);
        }
    }
}

impl VfsLock for SimLock {}

/// Where a write that a crash interrupts ends: anywhere between two sectors, as the kernel copies page by page and a
/// page is never half copied; or it is complete.
fn cut_short(offset: usize, len: usize, rng: &mut Rng) -> usize {
    if rng.chance(1, 4) {
        return len;
    }
    let cut = rng.below(len as u64 + 1) as usize;
    let end = (offset + cut) / SECTOR * SECTOR;
    end.saturating_sub(offset)
}
