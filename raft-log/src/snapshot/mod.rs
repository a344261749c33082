//! Files that hold a whole group's state, each complete and verified or not there at all.
//!
//! Used for lagging peers, for backups, and by users of the crate whose state lives in memory. A
//! snapshot is written to a temporary file, synced, renamed, and its directory synced; only then
//! does the writer hand out the [`SnapshotRef`] that may be put into the log. A file under its
//! final name was therefore complete and durable before it got that name, and what is left under a
//! temporary name is deleted by the next [`SnapshotStore::open`].
//!
//! The store does not decide which snapshots to keep, nor when the log may forget what a snapshot
//! covers: its owner does, who knows what is being sent and what the log refers to. The layout is
//! in `docs/FORMAT.md`.

mod error;
mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use error::SnapshotError;
use format::{CHUNK_SIZE, Header, MEMBERSHIP_MAX};
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;

use crate::vfs::{OpenMode, SharedVfs};
use crate::{GroupId, Index, SnapshotRef, StoreId, Term};

const SUFFIX: &str = ".snap";
const TMP_SUFFIX: &str = ".snap.tmp";

/// The snapshots of all groups of one store. Cheap to clone; the caller holds the store's lock.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    vfs: SharedVfs,
    dir: PathBuf,
    store: StoreId,
    chunk_size: u32,
}

/// A file of the store, as [`SnapshotStore::list`] found it.
#[derive(Debug)]
pub struct SnapshotFile {
    /// The group whose directory it is in.
    pub group: GroupId,
    /// The index in the file's name.
    pub index: Index,
    /// The term in the file's name.
    pub term: Term,
    /// The number in the file's name.
    pub number: u64,
    /// What header and footer say, or why they cannot be trusted. The chunks were not read:
    /// [`SnapshotStore::verify`] does that.
    pub state: Result<SnapshotRef, SnapshotError>,
}

impl SnapshotStore {
    /// Opens the store in `dir`, creating it if needed: deletes what unfinished writers left, and
    /// syncs the directories, since a name that is visible after a crash need not be durable.
    pub fn open(
        vfs: SharedVfs,
        dir: impl Into<PathBuf>,
        store: StoreId,
    ) -> Result<Self, SnapshotError> {
        let dir = dir.into();
        vfs.create_dir_all(&dir)
            .map_err(SnapshotError::io(&dir, "create"))?;
        let this = Self {
            vfs,
            dir,
            store,
            chunk_size: CHUNK_SIZE,
        };
        for group in this.groups()? {
            let dir = this.group_dir(group);
            for name in this.names(&dir)? {
                if name.ends_with(TMP_SUFFIX) {
                    let path = dir.join(name);
                    this.vfs
                        .remove(&path)
                        .map_err(SnapshotError::io(&path, "remove"))?;
                }
            }
            this.vfs
                .sync_dir(&dir)
                .map_err(SnapshotError::io(&dir, "sync"))?;
        }
        this.vfs
            .sync_dir(&this.dir)
            .map_err(SnapshotError::io(&this.dir, "sync"))?;
        Ok(this)
    }

    /// Begins a snapshot of `group` that covers the log up to `index`. `number` must be new to this
    /// store.
    ///
    /// # Panics
    /// If the membership is longer than 1 MiB.
    pub fn create(
        &self,
        group: GroupId,
        index: Index,
        term: Term,
        number: u64,
        membership: Bytes,
    ) -> Result<SnapshotWriter, SnapshotError> {
        assert!(
            membership.len() <= MEMBERSHIP_MAX,
            "a membership of {} bytes",
            membership.len()
        );
        let dir = self.group_dir(group);
        self.vfs
            .create_dir_all(&dir)
            .map_err(SnapshotError::io(&dir, "create"))?;
        let name = file_name(index, term, number);
        let path = dir.join(format!("{name}{SUFFIX}"));
        let tmp = dir.join(format!("{name}{TMP_SUFFIX}"));
        match self.vfs.open(&path, OpenMode::Read) {
            Ok(_) => return Err(SnapshotError::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SnapshotError::io(&path, "look for")(error)),
        }
        let (store, chunk_size) = (self.store, self.chunk_size);
        let header = Header {
            store,
            group,
            index,
            term,
            number,
            chunk_size,
            membership,
        };
        SnapshotWriter::create(self.vfs.clone(), dir, path, tmp, header)
    }

    /// Opens a snapshot for reading; header and footer are verified and agree with `snapshot`.
    pub fn open_snapshot(
        &self,
        group: GroupId,
        snapshot: &SnapshotRef,
    ) -> Result<SnapshotReader, SnapshotError> {
        let SnapshotRef {
            index,
            term,
            number,
            ..
        } = *snapshot;
        let reader = self.inspect(group, index, term, number)?;
        let path = self.path(group, index, term, number);
        SnapshotError::expect(&path, 0, "snapshot", snapshot, &reader.reference())?;
        Ok(reader)
    }

    /// Reads a whole snapshot and checks every checksum.
    pub fn verify(&self, group: GroupId, snapshot: &SnapshotRef) -> Result<(), SnapshotError> {
        let mut reader = self.open_snapshot(group, snapshot)?;
        while !reader.next_chunk()?.is_empty() {}
        Ok(())
    }

    /// All files under a final name, ordered by group, index, term and number. Damage to one does
    /// not hide the others.
    pub fn list(&self) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut found = Vec::new();
        for group in self.groups()? {
            for name in self.names(&self.group_dir(group))? {
                let Some((index, term, number)) = parse_file_name(&name) else {
                    continue;
                };
                let state = self
                    .inspect(group, index, term, number)
                    .map(|r| r.reference());
                found.push(SnapshotFile {
                    group,
                    index,
                    term,
                    number,
                    state,
                });
            }
        }
        Ok(found)
    }

    /// Removes a snapshot for good; one that is not there is removed already. Open readers go on.
    pub fn remove(&self, group: GroupId, snapshot: &SnapshotRef) -> Result<(), SnapshotError> {
        let path = self.path(group, snapshot.index, snapshot.term, snapshot.number);
        match self.vfs.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::io(&path, "remove")(error));
            }
            _ => {}
        }
        let dir = self.group_dir(group);
        match self.vfs.sync_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotError::io(&dir, "sync")(error))
            }
            _ => Ok(()),
        }
    }

    /// Opens a file and checks that it is the one that its name promises.
    fn inspect(
        &self,
        group: GroupId,
        index: Index,
        term: Term,
        number: u64,
    ) -> Result<SnapshotReader, SnapshotError> {
        let path = self.path(group, index, term, number);
        let file = self
            .vfs
            .open(&path, OpenMode::Read)
            .map_err(SnapshotError::io(&path, "open"))?;
        let header = Header::read(&*file, &path, self.store)?;
        SnapshotError::expect(&path, 24, "group", group, header.group)?;
        SnapshotError::expect(&path, 32, "index", index, header.index)?;
        SnapshotError::expect(&path, 40, "term", term, header.term)?;
        SnapshotError::expect(&path, 48, "number", number, header.number)?;
        SnapshotReader::open(path, file, header)
    }

    /// The groups that have a directory. Other names are not ours and left alone.
    fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let names = self.names(&self.dir)?;
        Ok(names
            .iter()
            .filter_map(|name| parse_hex(name.strip_prefix("group-")?))
            .map(GroupId)
            .collect())
    }

    fn names(&self, dir: &Path) -> Result<Vec<String>, SnapshotError> {
        self.vfs.list(dir).map_err(SnapshotError::io(dir, "list"))
    }

    fn group_dir(&self, group: GroupId) -> PathBuf {
        self.dir.join(format!("group-{:016x}", group.0))
    }

    fn path(&self, group: GroupId, index: Index, term: Term, number: u64) -> PathBuf {
        self.group_dir(group)
            .join(format!("{}{SUFFIX}", file_name(index, term, number)))
    }
}

fn file_name(index: Index, term: Term, number: u64) -> String {
    format!("snap-{:016x}-{:016x}-{number:016x}", index.0, term.0)
}

fn parse_file_name(name: &str) -> Option<(Index, Term, u64)> {
    let mut fields = name
        .strip_prefix("snap-")?
        .strip_suffix(SUFFIX)?
        .split('-')
        .map(parse_hex);
    let (index, term, number) = (fields.next()??, fields.next()??, fields.next()??);
    fields
        .next()
        .is_none()
        .then_some((Index(index), Term(term), number))
}

/// Sixteen lower-case digits, as they are written.
fn parse_hex(text: &str) -> Option<u64> {
    let value = u64::from_str_radix(text, 16).ok()?;
    (format!("{value:016x}") == text).then_some(value)
}
