//! What can go wrong with a snapshot file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::chunk::ChunkFault;
use crate::{ErrorKind, GroupId, LogError, StoreId};

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
    /// The counter of snapshot numbers cannot be read, and a guess could use a number twice.
    NumbersUnknown {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: Box<SnapshotError>,
    },
    /// As much is under way already as may be: another snapshot of the group, or too many receives.
    Busy {
        /// The group for which something was to begin.
        group: GroupId,
        /// What is in the way.
        what: &'static str,
    },
    /// The snapshot is not newer than what the log has of the group.
    Stale {
        /// The group.
        group: GroupId,
        /// What came before it.
        what: String,
    },
    /// A chunk of a snapshot that is being received does not verify, or is not the one that is
    /// wanted. Nothing changed: ask for the wanted one again.
    BadChunk {
        /// The chunk that the receiver wants.
        wanted: u64,
        /// What is wrong with what came.
        what: String,
    },
    /// What a sender announced is not possible.
    BadManifest {
        /// The field, what it may be and what it is.
        what: String,
    },
    /// The store stopped after a sync that failed: what it would report from then on could be wrong. Snapshots are still
    /// read and sent; restart the process.
    Failed {
        /// The file or directory whose sync failed first.
        path: PathBuf,
        /// What was being done to it.
        doing: &'static str,
        /// The file system's answer.
        cause: String,
    },
    /// The log refused the reference of a snapshot, or failed while writing it.
    Log(LogError),
}

impl SnapshotError {
    /// What went wrong, in the same terms as an error of the log.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                _ => ErrorKind::Io,
            },
            Self::Damaged { .. } => ErrorKind::Corruption,
            Self::ForeignStore { .. } => ErrorKind::ForeignStore,
            Self::NewerVersion { .. } => ErrorKind::NewerFormat,
            Self::NumbersUnknown { source, .. } => source.kind(),
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Stale { .. } => ErrorKind::Stale,
            Self::BadChunk { .. } | Self::BadManifest { .. } => ErrorKind::Rejected,
            Self::Failed { .. } => ErrorKind::Failed,
            Self::Log(error) => error.kind(),
        }
    }

    /// The file or directory concerned, if one is.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Damaged { path, .. }
            | Self::ForeignStore { path, .. }
            | Self::NewerVersion { path, .. }
            | Self::NumbersUnknown { path, .. }
            | Self::Failed { path, .. } => Some(path),
            Self::Log(error) => error.path(),
            Self::Busy { .. }
            | Self::Stale { .. }
            | Self::BadChunk { .. }
            | Self::BadManifest { .. } => None,
        }
    }

    /// The offset in the file, in bytes, if known.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Damaged { offset, .. } => Some(*offset),
            Self::NumbersUnknown { source, .. } => source.offset(),
            Self::Log(error) => error.offset(),
            _ => None,
        }
    }

    /// True when there is no such snapshot.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// True when the bytes on disk are not what was written, and another file may do instead.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// A fault of the chunk that begins at `offset`.
    pub(super) fn chunk(path: &Path, offset: u64) -> impl FnOnce(ChunkFault) -> Self {
        move |fault| Self::Damaged {
            path: path.to_owned(),
            offset: offset + fault.offset,
            what: fault.what,
            expected: fault.expected,
            found: fault.found,
        }
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
            Self::NumbersUnknown { path, source } => write!(
                f,
                "the counter of snapshot numbers {} cannot be read, and numbers must not be used \
                 twice; bring the file back from a copy of the data directory ({source})",
                path.display()
            ),
            Self::Busy { group, what } => {
                write!(
                    f,
                    "no snapshot of group {group} can begin: {what}; try again later"
                )
            }
            Self::Stale { group, what } => {
                write!(f, "the snapshot of group {group} is not needed: {what}")
            }
            Self::BadChunk { wanted, what } => {
                write!(f, "{what}; send chunk {wanted} again")
            }
            Self::BadManifest { what } => {
                write!(
                    f,
                    "the announced snapshot is impossible: {what}; check the sender"
                )
            }
            Self::Failed { path, doing, cause } => write!(
                f,
                "the snapshot store stopped because it could not {doing} {}: {cause}; restart the \
                 process",
                path.display()
            ),
            Self::Log(error) => write!(f, "cannot record the snapshot: {error}"),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::NumbersUnknown { source, .. } => Some(source),
            Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

impl From<LogError> for SnapshotError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<SnapshotError> for io::Error {
    /// For the `Read` and `Write` of snapshots: keeps the kind of the file system's answer, else it
    /// is `InvalidData`.
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::Busy { .. } => io::ErrorKind::ResourceBusy,
            SnapshotError::Failed { .. } => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> PathBuf {
        PathBuf::from("snap/1")
    }

    fn io_error(kind: io::ErrorKind) -> SnapshotError {
        SnapshotError::io(&path(), "write")(io::Error::from(kind))
    }

    #[test]
    fn kind_path_and_offset_of_an_error_are_those_of_its_cause() {
        let damaged = || SnapshotError::Damaged {
            path: path(),
            offset: 40,
            what: "the checksum",
            expected: "1".into(),
            found: "2".into(),
        };
        let unknown = SnapshotError::NumbersUnknown {
            path: PathBuf::from("snap/NUMBERS"),
            source: Box::new(damaged()),
        };
        let log = LogError::at(ErrorKind::Corruption, Path::new("log/2"), 8, "torn");
        let busy = SnapshotError::Busy {
            group: GroupId(1),
            what: "another one",
        };
        let table = [
            (damaged(), ErrorKind::Corruption, Some("snap/1"), Some(40)),
            (
                unknown,
                ErrorKind::Corruption,
                Some("snap/NUMBERS"),
                Some(40),
            ),
            (log.into(), ErrorKind::Corruption, Some("log/2"), Some(8)),
            (
                io_error(io::ErrorKind::NotFound),
                ErrorKind::NotFound,
                Some("snap/1"),
                None,
            ),
            (
                io_error(io::ErrorKind::StorageFull),
                ErrorKind::Full,
                Some("snap/1"),
                None,
            ),
            (
                io_error(io::ErrorKind::Other),
                ErrorKind::Io,
                Some("snap/1"),
                None,
            ),
            (busy, ErrorKind::Busy, None, None),
        ];
        for (error, kind, path, offset) in table {
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.path(), path.map(Path::new), "{error}");
            assert_eq!(error.offset(), offset, "{error}");
        }
    }
}
