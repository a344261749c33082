//! Who a data directory is: the file `IDENTITY`.
//!
//! Every start writes it again after verifying it, because what was merely readable may not be on disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use raft_log::vfs::Vfs;
use raft_log::{NodeId, StoreId};

use super::text;

/// The newest layout of a data directory that this version reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const FILE_NAME: &str = "IDENTITY";
const KIND: &str = "flotilla-identity";
const FILE_BYTES_MAX: u64 = 4096;

/// What a data directory is, and to which member of which cluster it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn at random when the directory was created.
    pub store: StoreId,
    /// The cluster.
    pub cluster: u64,
    /// The member.
    pub member: NodeId,
    /// The member's name at its first start; for people.
    pub name: String,
    /// Which run of the member this is, from 1. It is on disk before anything carries it, so that no two runs share
    /// one: forwarded commands are told apart by it.
    pub boot: u64,
}

/// Why an identity cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum IdentityError {
    /// Reading or writing failed.
    Io {
        /// What was being done to which file.
        context: String,
        /// The cause.
        source: io::Error,
    },
    /// The file does not hold what was written.
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory was written by a newer version.
    Newer {
        /// The file.
        file: PathBuf,
        /// The version found in it.
        found: u32,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { context, source } => write!(f, "{context}: {source}"),
            Self::Damaged { file, detail } => write!(
                f,
                "{}: {detail}; the file is damaged: restore it from a backup of this data directory",
                file.display()
            ),
            Self::Newer { file, found } => write!(
                f,
                "{}: format version {found}, but this version of flotilla reads up to {FORMAT_VERSION}: start the \
                 version that wrote it, or a newer one",
                file.display()
            ),
        }
    }
}

impl std::error::Error for IdentityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Damaged { .. } | Self::Newer { .. } => None,
        }
    }
}

impl Identity {
    /// Reads the identity of a data directory; none when it has none.
    pub fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE_NAME);
        let content = text::read(vfs, &path, FILE_BYTES_MAX)?;
        content
            .map(|content| Self::decode(&content, &path))
            .transpose()
    }

    /// Writes the identity, durably. A crash leaves the old file or the new one.
    pub fn write(&self, vfs: &dyn Vfs, dir: &Path) -> Result<(), IdentityError> {
        text::write(vfs, dir, FILE_NAME, &self.encode())
    }

    fn encode(&self) -> String {
        let lines = format!(
            "store {:016x}\ncluster {:016x}\nmember {:016x}\nname {}\nboot {:016x}\n",
            self.store.0,
            self.cluster,
            self.member.0,
            text::in_line(&self.name),
            self.boot
        );
        text::seal(KIND, &lines)
    }

    fn decode(content: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let lines = text::unseal(content, KIND, path)?;
        let damaged = |detail: String| text::damaged(path, detail);
        let field = |name: &str| {
            lines
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or_else(|| damaged(format!("the field `{name}` is missing")))
        };
        let number = |name: &str, text: &str| {
            u64::from_str_radix(text, 16)
                .map_err(|_| damaged(format!("the field `{name}` is not a hexadecimal number")))
        };
        let id = |name: &str| number(name, field(name)?);
        Ok(Self {
            store: StoreId(id("store")?),
            cluster: id("cluster")?,
            member: NodeId(id("member")?),
            name: field("name")?.to_owned(),
            // A directory of a version that forwarded nothing has none.
            boot: field("boot").map_or(Ok(0), |text| number("boot", text))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_log::vfs::RealFs;

    fn sample() -> Identity {
        Identity {
            store: StoreId(7),
            cluster: 0xabc,
            member: NodeId(9),
            name: "default".to_owned(),
            boot: 3,
        }
    }

    #[test]
    fn written_identity_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let vfs = RealFs::default();
        assert_eq!(Identity::read(&vfs, dir.path()).unwrap(), None);
        sample().write(&vfs, dir.path()).unwrap();
        sample().write(&vfs, dir.path()).unwrap();
        assert_eq!(Identity::read(&vfs, dir.path()).unwrap(), Some(sample()));
    }

    /// Each start escaped the name once more: after some ten the file was too long, and the start refused.
    #[test]
    fn name_stays_as_it_is_however_often_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let vfs = RealFs::default();
        let mut identity = Identity {
            name: "möwe \"7\\b\"\n".to_owned(),
            ..sample()
        };
        identity.write(&vfs, dir.path()).unwrap();
        for _ in 0..20 {
            identity = Identity::read(&vfs, dir.path()).unwrap().unwrap();
            assert_eq!(identity.name, "möwe \"7\\b\"\\n");
            identity.write(&vfs, dir.path()).unwrap();
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let good = sample().encode().into_bytes();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            if let Ok(read) = Identity::decode(&bad, Path::new("IDENTITY")) {
                panic!("bit {at} flipped, yet read as {read:?}");
            }
        }
    }

    #[test]
    fn identity_without_a_boot_id_counts_from_zero() {
        let body = "flotilla-identity 1\nstore 07\ncluster 0abc\nmember 09\nname default\n";
        let text = format!("{body}crc32 {:08x}\n", crc32fast::hash(body.as_bytes()));
        let read = Identity::decode(text.as_bytes(), Path::new("IDENTITY")).unwrap();
        assert_eq!(
            read,
            Identity {
                boot: 0,
                ..sample()
            }
        );
    }

    #[test]
    fn newer_format_is_named() {
        let text = sample()
            .encode()
            .replace("flotilla-identity 1", "flotilla-identity 2");
        let error = Identity::decode(text.as_bytes(), Path::new("IDENTITY")).unwrap_err();
        assert!(
            matches!(error, IdentityError::Newer { found: 2, .. }),
            "{error}"
        );
    }
}
