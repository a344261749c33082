//! What can go wrong with a snapshot file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::StoreId;

/// Why a snapshot could not be written, found or read.
#[derive(Debug)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused. A missing snapshot is `NotFound` here.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        doing: &'static str,
        /// The file system's answer.
        source: io::Error,
    },
    /// The file does not hold what its writer wrote, or was never finished. Remove it; another
    /// snapshot or a peer has to take its place.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// The field that is wrong.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file belongs to another store: the data directories were mixed up.
    ForeignStore {
        /// The file.
        path: PathBuf,
        /// This store.
        expected: StoreId,
        /// The store that wrote the file.
        found: StoreId,
    },
    /// The file was written by a newer release.
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The newest version of the format that this release reads.
        supported: u16,
        /// The version of the file.
        found: u16,
    },
    /// A snapshot of that name is there already. Numbers must not be reused.
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl SnapshotError {
    /// True when there is no such snapshot.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Adds the path and the deed to the file system's answer.
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            doing,
            source,
        }
    }

    /// Checks one field.
    pub(super) fn expect<T: PartialEq + fmt::Debug>(
        path: &Path,
        offset: u64,
        what: &'static str,
        expected: T,
        found: T,
    ) -> Result<(), Self> {
        if expected == found {
            return Ok(());
        }
        Err(Self::Damaged {
            path: path.to_owned(),
            offset,
            what,
            expected: format!("{expected:?}"),
            found: format!("{found:?}"),
        })
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                path,
                doing,
                source,
            } => {
                write!(f, "cannot {doing} {}: {source}", path.display())
            }
            Self::Damaged {
                path,
                offset,
                what,
                expected,
                found,
            } => write!(
                f,
                "snapshot {} is damaged or incomplete at offset {offset}: {what} should be \
                 {expected}, found {found}; remove the file and use another snapshot or a peer",
                path.display()
            ),
            Self::ForeignStore {
                path,
                expected,
                found,
            } => write!(
                f,
                "snapshot {} belongs to store {found}, this is store {expected}; check which data \
                 directory the file came from",
                path.display()
            ),
            Self::NewerVersion {
                path,
                supported,
                found,
            } => write!(
                f,
                "snapshot {} has format version {found}, this release reads up to {supported}; \
                 use the release that wrote it, or a newer one",
                path.display()
            ),
            Self::Exists { path } => {
                write!(
                    f,
                    "snapshot {} exists already; draw a new number",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<SnapshotError> for io::Error {
    /// For the `Read` and `Write` of snapshots: keeps the kind of the file system's answer, else it
    /// is `InvalidData`.
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::Exists { .. } => io::ErrorKind::AlreadyExists,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
