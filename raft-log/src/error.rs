//! What went wrong: one enum of kinds for the whole crate, and the error of the log. Every layer of `log` makes these;
//! callers match on [`LogError::kind`], as on that of a snapshot's error.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system failed.
    Io,
    /// Data that was synced does not verify.
    Corruption,
    /// The very last batch is damaged, and it cannot be told whether it was ever synced.
    SuspectTail,
    /// Another process, or another handle, has the data directory.
    Locked,
    /// A newer version of this software wrote the file.
    NewerFormat,
    /// The file belongs to another store.
    ForeignStore,
    /// The disk is full. Nothing is lost, and the call can be repeated.
    Full,
    /// The log stopped after an earlier failure, or was closed.
    Failed,
    /// A payload is longer than 64 MiB, a batch than 256 MiB, or all groups' bases together than 64 MiB.
    TooLarge,
    /// The entries asked for are at or below the group's base.
    Compacted,
    /// The group does not exist.
    UnknownGroup,
    /// The entries asked for are above the group's last index.
    OutOfRange,
    /// The batch contradicts the state of a group; nothing of it was taken.
    InvalidBatch,
    /// There is no such snapshot.
    NotFound,
    /// As much is under way as may be; the call can be repeated later.
    Busy,
    /// The snapshot is not newer than what the log has of the group.
    Stale,
    /// What a peer sent is not what was asked for, or does not verify; nothing changed.
    Rejected,
}

/// An error of the log. It is cheap to clone, because the first failure is handed to every later caller.
#[derive(Clone)]
pub struct LogError(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    difference: Option<Difference>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    source: Option<io::Error>,
}

/// What a file should hold in a place, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What to do about it.
    pub advice: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            expected,
            found,
            advice,
        } = self;
        write!(f, "expected {expected}, found {found}; {advice}")
    }
}

impl LogError {
    /// An error that has no place in a file.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            difference: None,
            path: None,
            offset: None,
            source: None,
        }))
    }

    /// An error about a file as a whole.
    pub(crate) fn of(kind: ErrorKind, path: &Path, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            difference: None,
            path: Some(path.to_owned()),
            offset: None,
            source: None,
        }))
    }

    /// An error at a place in a file.
    pub(crate) fn at(
        kind: ErrorKind,
        path: &Path,
        offset: u64,
        message: impl Into<String>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            difference: None,
            path: Some(path.to_owned()),
            offset: Some(offset),
            source: None,
        }))
    }

    /// An error at a place in a file, with what should be there, what is, and what to do.
    pub(crate) fn differs(
        kind: ErrorKind,
        path: &Path,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let difference = Difference {
            expected: expected.into(),
            found: found.into(),
            advice: advice.into(),
        };
        Self(Arc::new(Inner {
            kind,
            message: difference.to_string(),
            difference: Some(difference),
            path: Some(path.to_owned()),
            offset: Some(offset),
            source: None,
        }))
    }

    /// A failure of the file system while doing `what`; a full disk is [`ErrorKind::Full`].
    pub(crate) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        Self(Arc::new(Inner {
            kind,
            message: what.to_owned(),
            difference: None,
            path: Some(path.to_owned()),
            offset: None,
            source: Some(source),
        }))
    }

    /// The same failure as something that stops the log for good.
    pub(crate) fn latched(self) -> Self {
        if self.0.kind != ErrorKind::Full {
            return self;
        }
        Self::new(ErrorKind::Io, self.to_string())
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True when a file was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        let source = self.0.source.as_ref();
        source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
    }

    /// What a file should hold and what it does, of an error that is about that.
    #[must_use]
    pub fn difference(&self) -> Option<&Difference> {
        self.0.difference.as_ref()
    }

    /// The file concerned, if one is.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The offset in the file, in bytes, if known.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.0.path {
            write!(f, "{}", path.display())?;
            if let Some(offset) = self.0.offset {
                write!(f, " at offset {offset}")?;
            }
            write!(f, ": ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogError({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
