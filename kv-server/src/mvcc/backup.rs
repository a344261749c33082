//! A backup: all applied state of one consistent moment as one file, which a client gets as a stream.
//!
//! A header of 64 bytes, the content of a keyspace's snapshot (`snapshot.rs`), zeros up to a multiple of 512 bytes, and
//! the SHA-256 of all before it. So its length leaves 32 when it is divided by 512, which is how etcd's tools know that a
//! checksum is there. `docs/FORMAT.md` has the table.
//!
//! The length has to be known before the first byte is sent. So the state is walked twice, and nothing is held in memory
//! or on disk meanwhile but the view of it.

use std::io::{self, Read, Write};

use raft_log::{Index, Term};
use raft_node::core::Membership;
use sha2::{Digest, Sha256};

use super::codec::{ALARM, DUPLICATE, KEYSPACE, LATEST, LEASE, MEMBER, Meta, REMOVED, VERSION};
use super::snapshot::{Content, KvCut, Pairs};
use crate::engine::EngineError;
use multiraft::Cut;

const MAGIC: &[u8; 8] = b"FLOTBAK\x01";
/// Bytes of the header.
const HEADER_LEN: u64 = 64;
/// The header's checksum lies behind what it is of.
const HEADER_CRC_AT: usize = 32;
/// The file without its checksum is a multiple of this.
const BLOCK: u64 = 512;
/// Bytes of the checksum at the end.
const HASH_LEN: u64 = 32;

/// The state of a keyspace as of one moment, to be written as a backup. Holding it keeps superseded values from being
/// reclaimed.
pub struct Backup {
    pub(super) cut: KvCut,
    pub(super) revision: i64,
}

/// Whose state a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSource {
    /// The cluster.
    pub cluster: u64,
    /// The member that made it.
    pub member: u64,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Counts, and forgets.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what it passes on.
struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Backup {
    /// The revision of the moment.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Bytes of the content; takes as long as writing it.
    ///
    /// # Errors
    /// Of reading the state.
    pub fn content_len(&self) -> io::Result<u64> {
        let mut count = Count(0);
        self.cut.write(&mut count)?;
        Ok(count.0)
    }

    /// Writes the whole file. `content_len` is what [`Self::content_len`] said.
    ///
    /// # Errors
    /// Of the writer, and of reading the state.
    pub fn write(
        &self,
        source: BackupSource,
        content_len: u64,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut out = Hashed {
            out,
            hash: Sha256::new(),
        };
        out.write_all(&header(source, content_len))?;
        self.cut.write(&mut out)?;
        let padding = padded(content_len) - HEADER_LEN - content_len;
        let zeros = [0; BLOCK as usize];
        out.write_all(&zeros[..usize::try_from(padding).expect("less than a block")])?;
        let Hashed { out, hash } = out;
        out.write_all(&hash.finalize())
    }
}

/// Bytes of a backup, its checksum included.
#[must_use]
pub fn backup_len(content_len: u64) -> u64 {
    padded(content_len) + HASH_LEN
}

fn padded(content_len: u64) -> u64 {
    (HEADER_LEN + content_len).next_multiple_of(BLOCK)
}

fn header(source: BackupSource, content_len: u64) -> [u8; HEADER_LEN as usize] {
    let mut header = [0; HEADER_LEN as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&content_len.to_le_bytes());
    header[16..24].copy_from_slice(&source.cluster.to_le_bytes());
    header[24..32].copy_from_slice(&source.member.to_le_bytes());
    let crc = crc32fast::hash(&header[..HEADER_CRC_AT]);
    header[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What a backup is found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// Whose state it is.
    pub source: BackupSource,
    /// Bytes of the whole file.
    pub file_len: u64,
    /// The SHA-256 of all but itself.
    pub hash: [u8; 32],
    /// The applied index of the moment.
    pub index: Index,
    /// The term of the entry at that index.
    pub term: Term,
    /// The revision.
    pub revision: i64,
    /// The compaction floor; -1 before the first compaction.
    pub compact_revision: i64,
    /// Live keys.
    pub keys: u64,
    /// Versions of keys, deletions included.
    pub versions: u64,
    /// Leases.
    pub leases: u64,
}

/// How a backup is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreChange {
    /// The members that go on from it.
    pub membership: Membership,
    /// Revisions to skip, so that none is given a second time that clients of the old cluster may have seen.
    pub bump_revision: i64,
    /// Whether all that was is marked as compacted, so that watchers begin anew.
    pub mark_compacted: bool,
}

/// Reads a backup from its beginning.
pub struct BackupReader {
    /// What remains of the file, hashed as it is read.
    file: HashedRead,
    content_len: u64,
    source: BackupSource,
}

impl std::fmt::Debug for BackupReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupReader")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

struct HashedRead {
    from: Box<dyn Read + Send>,
    hash: Sha256,
    len: u64,
}

impl Read for HashedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.len += n as u64;
        Ok(n)
    }
}

/// Why a backup is of no use.
fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl BackupReader {
    /// Reads the header.
    ///
    /// # Errors
    /// Of reading; `InvalidData` for what is no backup.
    pub fn open(from: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut file = HashedRead {
            from,
            hash: Sha256::new(),
            len: 0,
        };
        let mut found = [0; HEADER_LEN as usize];
        file.read_exact(&mut found)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(format!(
                    "expected a header of {HEADER_LEN} bytes, found {}",
                    file.len
                )),
                _ => error,
            })?;
        if !found.starts_with(&MAGIC[..7]) {
            let text = "offset 0: expected FLOTBAK, which begins a backup of flotilla; a backup of etcd cannot be restored";
            return Err(damaged(text.to_owned()));
        }
        if found[7] != MAGIC[7] {
            return Err(damaged(format!(
                "offset 7: expected version {}, found {}: use the version of flotilla that made the backup, or a newer one",
                MAGIC[7], found[7]
            )));
        }
        let number = |at: usize| {
            let bytes = found[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let (content_len, cluster, member) = (number(8), number(16), number(24));
        let source = BackupSource { cluster, member };
        if found != header(source, content_len) {
            return Err(damaged(
                "offset 32: the header's checksum does not match".to_owned(),
            ));
        }
        Ok(Self {
            file,
            content_len,
            source,
        })
    }

    /// Bytes of the content.
    #[must_use]
    pub fn content_len(&self) -> u64 {
        self.content_len
    }

    /// Reads all of it, and says what it is. Without `check_hash` the checksum at the end may be missing, or another one.
    ///
    /// # Errors
    /// Of reading; `InvalidData` with what is wrong.
    pub fn inspect(mut self, check_hash: bool) -> io::Result<BackupInfo> {
        let mut info = BackupInfo {
            source: self.source,
            file_len: backup_len(self.content_len),
            hash: [0; 32],
            index: Index::ZERO,
            term: Term::ZERO,
            revision: 0,
            compact_revision: 0,
            keys: 0,
            versions: 0,
            leases: 0,
        };
        let limited = (&mut self.file).take(self.content_len);
        count(limited, &mut info).map_err(|error| damaged(error.to_string()))?;
        let padding = padded(self.content_len) - self.file.len;
        let mut zeros = Vec::new();
        self.file.by_ref().take(padding).read_to_end(&mut zeros)?;
        if zeros.len() as u64 != padding || zeros.iter().any(|byte| *byte != 0) {
            let at = HEADER_LEN + self.content_len;
            return Err(damaged(format!("offset {at}: expected {padding} zeros")));
        }
        info.hash = self.file.hash.clone().finalize().into();
        let at = self.file.len;
        let mut end = Vec::new();
        self.file.from.take(HASH_LEN + 1).read_to_end(&mut end)?;
        if check_hash && end != info.hash {
            let found = match end.len() {
                32 => "another one".to_owned(),
                n => format!("{n} bytes"),
            };
            return Err(damaged(format!(
                "offset {at}: expected the SHA-256 of all before it, found {found}; --skip-hash-check goes on without it"
            )));
        }
        Ok(info)
    }

    /// Writes the content as a new cluster takes it up: with its members, and without what was of the old ones: which
    /// commands they forwarded, what they published, their alarms, and the other keyspaces that they had. Index and term stay.
    ///
    /// # Errors
    /// Of the writer; `InvalidData` for a content that is damaged.
    pub fn write_restored(self, change: &RestoreChange, out: &mut dyn Write) -> io::Result<()> {
        let limited = self.file.take(self.content_len);
        let (mut content, mut meta) = Content::open(limited).map_err(io::Error::other)?;
        meta.membership = Some((meta.index, change.membership.clone()));
        meta.revision += change.bump_revision;
        if change.mark_compacted {
            meta.compact = meta.revision;
        }
        let mut pairs = Pairs::begin(&meta, out)?;
        while let Some((table, key, record)) = content.next().map_err(io::Error::other)? {
            if ![DUPLICATE, MEMBER, ALARM, REMOVED, KEYSPACE].contains(&table) {
                pairs.add(table, &key, &record)?;
            }
        }
        pairs.end()
    }
}

fn count(from: impl Read, info: &mut BackupInfo) -> Result<(), EngineError> {
    let (mut content, meta) = Content::open(from)?;
    let Meta {
        index,
        term,
        revision,
        compact,
        ..
    } = meta;
    (info.index, info.term) = (index, term);
    (info.revision, info.compact_revision) = (revision, compact);
    while let Some((table, ..)) = content.next()? {
        match table {
            LATEST => info.keys += 1,
            VERSION => info.versions += 1,
            LEASE => info.leases += 1,
            _ => {}
        }
    }
    Ok(())
}
