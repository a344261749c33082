//! Which snapshot files there are, read only: for the store itself and for whoever inspects a data
//! directory that may be in use.
//!
//! A catalog never changes anything. What it lists was complete when it looked; with a store at
//! work beside it, a file may be gone by the time it is opened.

use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::format::{Footer, Header};
use super::reader::SnapshotReader;
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{GroupId, Index, SnapshotRef, StoreId, Term};

const SUFFIX: &str = ".snap";
/// A snapshot in the making: worth nothing after a crash.
pub(super) const TMP_SUFFIX: &str = ".snap.tmp";
/// A snapshot that is being received: taken up again after a crash.
pub(super) const PART_SUFFIX: &str = ".snap.part";

/// The snapshot files below one directory.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub(super) vfs: SharedVfs,
    pub(super) dir: PathBuf,
    /// `None` takes files of any store.
    store: Option<StoreId>,
}

/// A file of the store, as [`Catalog::list`] found it.
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
    /// The creation of the group, if the header can be trusted.
    pub creation: Option<u64>,
    /// Bytes in the file.
    pub file_len: u64,
    /// What header and footer say, or why they cannot be trusted. The chunks were not read:
    /// [`Catalog::verify`] does that.
    pub state: Result<SnapshotRef, SnapshotError>,
}

impl Catalog {
    /// The files below `dir`, which is `<data-dir>/snap`. Files of another store than `store` are
    /// refused one by one; `None` takes all.
    #[must_use]
    pub fn new(vfs: SharedVfs, dir: impl Into<PathBuf>, store: Option<StoreId>) -> Self {
        let dir = dir.into();
        Self { vfs, dir, store }
    }

    /// All files under a final name, ordered by group, index, term and number. Damage to one does
    /// not hide the others.
    pub fn list(&self) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut found = Vec::new();
        for group in self.groups()? {
            found.extend(self.list_group(group)?);
        }
        Ok(found)
    }

    /// The files of one group under a final name, ordered by index, term and number.
    pub fn list_group(&self, group: GroupId) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let names = self.names(group)?;
        let keys = names.iter().filter_map(|name| parse_file_name(name));
        Ok(keys.map(|key| self.describe(group, key)).collect())
    }

    /// Reads a whole snapshot and checks every checksum.
    pub fn verify(&self, group: GroupId, snapshot: &SnapshotRef) -> Result<(), SnapshotError> {
        let path = self.path(group, key_of(snapshot));
        let (file, header, footer) = self.load(group, snapshot)?;
        let mut reader = SnapshotReader::new(path, file, header, footer, None);
        while !reader.next_chunk()?.is_empty() {}
        Ok(())
    }

    /// Where the file of a snapshot lies, whether or not it is there.
    #[must_use]
    pub fn file_of(&self, group: GroupId, snapshot: &SnapshotRef) -> PathBuf {
        self.path(group, key_of(snapshot))
    }

    /// Opens a file, and verifies that its header and footer agree with its reference.
    pub(super) fn load(
        &self,
        group: GroupId,
        snapshot: &SnapshotRef,
    ) -> Result<(Box<dyn VfsFile>, Header, Footer), SnapshotError> {
        let key = key_of(snapshot);
        let path = self.path(group, key);
        let file = self.open(&path)?;
        let header = self.header(&*file, group, key)?;
        let footer = Footer::read(&*file, &path, &header)?;
        let found = header.reference(&footer);
        SnapshotError::expect(&path, 0, "snapshot", snapshot, &found)?;
        Ok((file, header, footer))
    }

    fn describe(&self, group: GroupId, key: Key) -> SnapshotFile {
        let (index, term, number) = key;
        let path = self.path(group, key);
        let mut found = SnapshotFile {
            group,
            index,
            term,
            number,
            creation: None,
            file_len: 0,
            state: Err(SnapshotError::io(&path, "open")(
                std::io::ErrorKind::NotFound.into(),
            )),
        };
        found.state = self.open(&path).and_then(|file| {
            found.file_len = file.len().map_err(SnapshotError::io(&path, "measure"))?;
            let header = self.header(&*file, group, key)?;
            found.creation = Some(header.creation);
            Ok(header.reference(&Footer::read(&*file, &path, &header)?))
        });
        found
    }

    /// Reads a header and checks that it is the one which the file's name promises.
    pub(super) fn header(
        &self,
        file: &dyn VfsFile,
        group: GroupId,
        key: Key,
    ) -> Result<Header, SnapshotError> {
        let path = self.path(group, key);
        let (index, term, number) = key;
        let header = Header::read(file, &path, self.store)?;
        SnapshotError::expect(&path, 24, "group", group, header.group)?;
        SnapshotError::expect(&path, 40, "index", index, header.index)?;
        SnapshotError::expect(&path, 48, "term", term, header.term)?;
        SnapshotError::expect(&path, 56, "number", number, header.number)?;
        Ok(header)
    }

    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn VfsFile>, SnapshotError> {
        self.vfs
            .open(path, OpenMode::Read)
            .map_err(SnapshotError::io(path, "open"))
    }

    /// The groups that have a directory. Other names are not ours and left alone.
    pub(super) fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let names = self
            .vfs
            .list(&self.dir)
            .map_err(SnapshotError::io(&self.dir, "list"))?;
        Ok(names
            .iter()
            .filter_map(|name| parse_hex(name.strip_prefix("group-")?))
            .map(GroupId)
            .collect())
    }

    /// The names in a group's directory; none if there is no directory.
    pub(super) fn names(&self, group: GroupId) -> Result<Vec<String>, SnapshotError> {
        let dir = self.group_dir(group);
        match self.vfs.list(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(SnapshotError::io(&dir, "list")),
        }
    }

    pub(super) fn group_dir(&self, group: GroupId) -> PathBuf {
        self.dir.join(format!("group-{:016x}", group.0))
    }

    pub(super) fn path(&self, group: GroupId, key: Key) -> PathBuf {
        let name = file_name(key);
        self.group_dir(group).join(format!("{name}{SUFFIX}"))
    }

    pub(super) fn tmp_path(&self, group: GroupId, key: Key) -> PathBuf {
        let name = file_name(key);
        self.group_dir(group).join(format!("{name}{TMP_SUFFIX}"))
    }

    pub(super) fn part_path(&self, group: GroupId, key: Key) -> PathBuf {
        let name = file_name(key);
        self.group_dir(group).join(format!("{name}{PART_SUFFIX}"))
    }
}

/// What is in a file's name.
pub(super) type Key = (Index, Term, u64);

pub(super) fn key_of(snapshot: &SnapshotRef) -> Key {
    (snapshot.index, snapshot.term, snapshot.number)
}

fn file_name((index, term, number): Key) -> String {
    format!("snap-{:016x}-{:016x}-{number:016x}", index.0, term.0)
}

fn parse_file_name(name: &str) -> Option<Key> {
    parse_key(name.strip_suffix(SUFFIX)?)
}

pub(super) fn parse_part_name(name: &str) -> Option<Key> {
    parse_key(name.strip_suffix(PART_SUFFIX)?)
}

fn parse_key(name: &str) -> Option<Key> {
    let mut fields = name.strip_prefix("snap-")?.split('-').map(parse_hex);
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
