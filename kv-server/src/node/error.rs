//! Why a node does not start or stop.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use multiraft::transport::REMOVED_ADVICE;
use raft_log::{ErrorKind, LogError, NodeId};
use raft_node::core::ConfigError;
use raft_node::driver::OpenError;

use raft_log::snapshot::SnapshotError;
use raft_node::ApplyError;

use super::IdentityError;
use crate::engine::EngineError;

/// Why a node does not start or stop.
#[derive(Debug)]
#[non_exhaustive]
pub enum NodeError {
    /// A file operation failed.
    Io {
        /// What was being done to which file.
        context: String,
        /// The cause.
        source: io::Error,
    },
    /// Another process holds the data directory.
    InUse(PathBuf),
    /// There is a log, but no identity.
    NoIdentity {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory holds nothing that a recovery would help.
    NotRecoverable(String),
    /// The flags of a new member do not fit together.
    Initial(String),
    /// Nobody answered a new member that asked who it is.
    NoAnswer(String),
    /// The log is not there, though the member has run before.
    LogLost {
        /// The data directory.
        dir: PathBuf,
    },
    /// It is not known where a member is.
    NoPeerUrl {
        /// The member.
        member: NodeId,
    },
    /// The member was removed from its cluster, and knows it.
    Removed {
        /// The data directory.
        dir: PathBuf,
    },
    /// The identity cannot be used.
    Identity(IdentityError),
    /// The log cannot be opened.
    Log(LogError),
    /// The engine cannot be opened.
    Engine(EngineError),
    /// The engine cannot be opened, and the log does not hold everything that it held.
    EngineLost {
        /// The engine's directory.
        dir: PathBuf,
        /// What is wrong with it.
        cause: EngineError,
    },
    /// The directory of snapshots is gone, though the log refers to one in it.
    SnapshotsLost {
        /// Where they were.
        dir: PathBuf,
    },
    /// The snapshots cannot be used.
    Snapshot(SnapshotError),
    /// The state of a snapshot cannot be taken up.
    Restore(ApplyError),
    /// A backup is damaged, is none, or cannot be read.
    Backup(io::Error),
    /// The state of this member is not that of the others.
    Inconsistent {
        /// This member.
        member: NodeId,
    },
    /// Log and engine do not fit together.
    Open(OpenError),
    /// A setting out of its bounds.
    Config(ConfigError),
    /// The operating system gives no random numbers.
    Random(String),
    /// The host failed.
    Host(String),
}

impl NodeError {
    /// True when data is damaged or missing, as opposed to a wrong setting or a passing failure.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Identity(error) => matches!(error, IdentityError::Damaged { .. }),
            Self::Log(error) | Self::Open(OpenError::Log(error)) => matches!(
                error.kind(),
                ErrorKind::Corruption | ErrorKind::SuspectTail | ErrorKind::ForeignStore
            ),
            Self::Backup(error) => error.kind() == io::ErrorKind::InvalidData,
            Self::NoIdentity { .. } | Self::LogLost { .. } | Self::NoPeerUrl { .. } => true,
            Self::EngineLost { .. } | Self::SnapshotsLost { .. } | Self::Open(_) => true,
            Self::Inconsistent { .. } => true,
            Self::Snapshot(error) => {
                error.is_damage() || matches!(error, SnapshotError::NumbersUnknown { .. })
            }
            _ => false,
        }
    }

    pub(super) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            context: format!("{what} {}", path.display()),
            source,
        }
    }

    pub(super) fn lock(dir: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::WouldBlock {
            Self::InUse(dir.to_owned())
        } else {
            Self::io("cannot lock", dir, source)
        }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { context, source } => write!(f, "{context}: {source}"),
            Self::InUse(dir) => write!(
                f,
                "the data directory {} is in use by another process: stop that one, or choose another with --data-dir",
                dir.display()
            ),
            Self::NoIdentity { dir } => write!(
                f,
                "{} holds a log but no IDENTITY file: restore the file from a backup, or move the directory away to \
                 start with an empty store",
                dir.display()
            ),
            Self::Initial(text) | Self::NoAnswer(text) | Self::NotRecoverable(text) => {
                f.write_str(text)
            }
            Self::LogLost { dir } => write!(
                f,
                "{} has run before, but its log is gone: restore the directory from a backup; a member of a cluster is \
                 removed and added again instead, with an empty directory",
                dir.display()
            ),
            Self::NoPeerUrl { member } => write!(
                f,
                "member {:x} is part of the cluster, but its peer URLs are not known: restore the file PEERS from a backup \
                 of this data directory",
                member.0
            ),
            Self::Removed { dir } => write!(f, "{}: {REMOVED_ADVICE}", dir.display()),
            Self::Identity(error) => error.fmt(f),
            Self::Log(error) if error.kind() == ErrorKind::SuspectTail => write!(
                f,
                "{error}; `flotilla log show` prints what is before it, and the server drops it when started once with \
                 --accept-suspect-tail"
            ),
            Self::Log(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::EngineLost { dir, cause } => write!(
                f,
                "{cause}; the log does not reach back to the first entry, and there is no snapshot that it follows, so {} \
                 cannot be rebuilt: restore the data directory from a backup",
                dir.display()
            ),
            Self::SnapshotsLost { dir } => write!(
                f,
                "{} is gone or empty, but the log refers to a snapshot in it: restore it from a backup of this data directory",
                dir.display()
            ),
            Self::Snapshot(error) => error.fmt(f),
            Self::Restore(error) => error.fmt(f),
            Self::Backup(error) => write!(f, "the backup: {error}"),
            Self::Inconsistent { member } => write!(
                f,
                "{:x} found data inconsistency with peers: where the others agree, a start takes the leader's data in the \
                 place of this member's, which takes a moment; else compare them as docs/OPERATIONS.md says",
                member.0
            ),
            Self::Open(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Random(error) => {
                write!(f, "the operating system gives no random numbers: {error}")
            }
            Self::Host(error) => write!(f, "the host stopped with an error: {error}"),
        }
    }
}

impl std::error::Error for NodeError {}

macro_rules! from {
    ($($source:ty => $variant:ident),* $(,)?) => {
        $(impl From<$source> for NodeError {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    IdentityError => Identity,
    LogError => Log,
    EngineError => Engine,
    SnapshotError => Snapshot,
    ApplyError => Restore,
    OpenError => Open,
    ConfigError => Config,
}
