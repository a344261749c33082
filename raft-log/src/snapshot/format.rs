//! Header and footer of a snapshot file, as `docs/FORMAT.md` specifies them.
//!
//! Between the two lie the chunks, which are `chunk`'s. Nothing here allocates by a length that was
//! not checked first.

use std::fmt;
use std::path::Path;

use bytes::Bytes;

use super::chunk::{CHUNK_HEAD_LEN, CHUNK_SIZE_MAX};
use super::error::SnapshotError;
use crate::vfs::VfsFile;
use crate::{GroupId, Index, SnapshotRef, StoreId, Term};

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"FLOTSNAP");
const FOOTER_MAGIC: u64 = u64::from_le_bytes(*b"FLOTSEND");
/// The version that is written, and the newest that is read.
const VERSION: u16 = 1;

/// The header without membership and checksum.
const HEADER_LEN: usize = 104;
const CRC_LEN: usize = 4;
pub(super) const FOOTER_LEN: usize = 40;
/// Set in the header's flags when another store made the snapshot.
const FLAG_RECEIVED: u16 = 1;

/// The longest membership.
pub(super) const MEMBERSHIP_MAX: usize = 1024 * 1024;

/// What the sender of a snapshot said about it. A file that was received holds it, so that a
/// receive can be taken up again, and so that the complete file can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) store: StoreId,
    pub(super) number: u64,
    pub(super) content_len: u64,
    pub(super) content_crc: u32,
}

/// Who the snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) store: StoreId,
    pub(super) group: GroupId,
    pub(super) creation: u64,
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) number: u64,
    pub(super) chunk_size: u32,
    /// `None` when this store made the snapshot.
    pub(super) origin: Option<Origin>,
    pub(super) membership: Bytes,
}

impl Header {
    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        (HEADER_LEN + self.membership.len() + CRC_LEN) as u64
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let membership_len =
            u32::try_from(self.membership.len()).expect("the store bounds a membership");
        let (flags, origin) = match &self.origin {
            Some(origin) => (FLAG_RECEIVED, origin.clone()),
            None => (
                0,
                Origin {
                    store: self.store,
                    number: self.number,
                    content_len: 0,
                    content_crc: 0,
                },
            ),
        };
        let mut out = Vec::with_capacity(HEADER_LEN + self.membership.len() + CRC_LEN);
        out.extend_from_slice(&HEADER_MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&membership_len.to_le_bytes());
        for field in [
            self.store.0,
            self.group.0,
            self.creation,
            self.index.0,
            self.term.0,
            self.number,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.chunk_size.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&origin.store.0.to_le_bytes());
        out.extend_from_slice(&origin.number.to_le_bytes());
        out.extend_from_slice(&origin.content_len.to_le_bytes());
        out.extend_from_slice(&origin.content_crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.membership);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads and verifies the header, and that the file is of this store; without a `store`, of
    /// any.
    pub(super) fn read(
        file: &dyn VfsFile,
        path: &Path,
        store: Option<StoreId>,
    ) -> Result<Self, SnapshotError> {
        let mut fixed = [0; HEADER_LEN];
        // Magic and version first: a newer header may be shorter than this one.
        read_exact(file, path, &mut fixed[..10], 0, "header")?;
        SnapshotError::expect(path, 0, "header magic", HEADER_MAGIC, u64_at(&fixed, 0))?;
        let version = u16::from_le_bytes([fixed[8], fixed[9]]);
        if version > VERSION {
            let path = path.to_owned();
            return Err(SnapshotError::NewerVersion {
                path,
                supported: VERSION,
                found: version,
            });
        }
        SnapshotError::expect(path, 8, "format version", VERSION, version)?;
        read_exact(file, path, &mut fixed, 0, "header")?;
        let membership_len = u32_at(&fixed, 12) as usize;
        bounded(
            path,
            12,
            "membership length",
            0,
            MEMBERSHIP_MAX,
            membership_len,
        )?;
        let mut rest = vec![0; membership_len + CRC_LEN];
        read_exact(file, path, &mut rest, HEADER_LEN as u64, "membership")?;
        let found_crc = u32_at(&rest, membership_len);
        rest.truncate(membership_len);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&fixed);
        crc.update(&rest);
        let (at, crc) = ((HEADER_LEN + membership_len) as u64, crc.finalize());
        SnapshotError::expect(path, at, "header checksum", crc, found_crc)?;
        Self::decode(path, &fixed, rest.into(), store)
    }

    /// Takes the fields out of a header whose checksum agreed.
    fn decode(
        path: &Path,
        fixed: &[u8; HEADER_LEN],
        membership: Bytes,
        store: Option<StoreId>,
    ) -> Result<Self, SnapshotError> {
        let flags = u16::from_le_bytes([fixed[10], fixed[11]]);
        bounded(path, 10, "flags", 0, FLAG_RECEIVED, flags)?;
        let origin = (flags == FLAG_RECEIVED).then(|| Origin {
            store: StoreId(u64_at(fixed, 72)),
            number: u64_at(fixed, 80),
            content_len: u64_at(fixed, 88),
            content_crc: u32_at(fixed, 96),
        });
        let header = Self {
            store: StoreId(u64_at(fixed, 16)),
            group: GroupId(u64_at(fixed, 24)),
            creation: u64_at(fixed, 32),
            index: Index(u64_at(fixed, 40)),
            term: Term(u64_at(fixed, 48)),
            number: u64_at(fixed, 56),
            chunk_size: u32_at(fixed, 64),
            origin,
            membership,
        };
        if let Some(expected) = store.filter(|store| *store != header.store) {
            let (path, found) = (path.to_owned(), header.store);
            return Err(SnapshotError::ForeignStore {
                path,
                expected,
                found,
            });
        }
        bounded(path, 64, "chunk size", 1, CHUNK_SIZE_MAX, header.chunk_size)?;
        Ok(header)
    }

    /// The reference of the snapshot, once its footer is known.
    pub(super) fn reference(&self, footer: &Footer) -> SnapshotRef {
        SnapshotRef {
            index: self.index,
            term: self.term,
            number: self.number,
            content_len: footer.content_len,
            content_crc: footer.content_crc,
            membership: self.membership.clone(),
        }
    }
}

/// What closes a complete snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) chunks: u64,
    pub(super) content_len: u64,
    /// Bytes of all chunks in the file, with their heads.
    pub(super) stored_len: u64,
    pub(super) content_crc: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.chunks.to_le_bytes());
        out[16..24].copy_from_slice(&self.content_len.to_le_bytes());
        out[24..32].copy_from_slice(&self.stored_len.to_le_bytes());
        out[32..36].copy_from_slice(&self.content_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..36]);
        out[36..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and verifies the footer, that header, chunks and footer fill the file, and that the
    /// snapshot is the one that its sender announced.
    pub(super) fn read(
        file: &dyn VfsFile,
        path: &Path,
        header: &Header,
    ) -> Result<Self, SnapshotError> {
        let file_len = file.len().map_err(SnapshotError::io(path, "measure"))?;
        let at = file_len.saturating_sub(FOOTER_LEN as u64).max(header.len());
        let mut bytes = [0; FOOTER_LEN];
        read_exact(file, path, &mut bytes, at, "footer")?;
        SnapshotError::expect(path, at, "footer magic", FOOTER_MAGIC, u64_at(&bytes, 0))?;
        let crc = crc32fast::hash(&bytes[..36]);
        SnapshotError::expect(path, at + 36, "footer checksum", crc, u32_at(&bytes, 36))?;
        let footer = Self {
            chunks: u64_at(&bytes, 8),
            content_len: u64_at(&bytes, 16),
            stored_len: u64_at(&bytes, 24),
            content_crc: u32_at(&bytes, 32),
        };
        let chunks = footer.content_len.div_ceil(u64::from(header.chunk_size));
        SnapshotError::expect(path, at + 8, "chunk count", chunks, footer.chunks)?;
        let stored = at - header.len();
        SnapshotError::expect(path, at + 24, "length of chunks", stored, footer.stored_len)?;
        if let Some(origin) = &header.origin {
            let (len, crc) = (origin.content_len, origin.content_crc);
            SnapshotError::expect(path, at + 16, "content length", len, footer.content_len)?;
            SnapshotError::expect(path, at + 32, "content checksum", crc, footer.content_crc)?;
        }
        Ok(footer)
    }
}

impl Footer {
    /// Checks that a chunk at `at` ends before the footer, so that room is made for no more than the file holds.
    pub(super) fn encloses(
        &self,
        header: &Header,
        path: &Path,
        at: u64,
        stored: u32,
    ) -> Result<(), SnapshotError> {
        let end = header.len() + self.stored_len;
        let room = end.saturating_sub(at + CHUNK_HEAD_LEN as u64);
        bounded(path, at, "chunk length", 1, room, u64::from(stored))
    }
}

/// Checks that a field lies between two bounds, both included.
fn bounded<T: PartialOrd + fmt::Display>(
    path: &Path,
    offset: u64,
    what: &'static str,
    min: T,
    max: T,
    found: T,
) -> Result<(), SnapshotError> {
    if found >= min && found <= max {
        return Ok(());
    }
    Err(SnapshotError::Damaged {
        path: path.to_owned(),
        offset,
        what,
        expected: format!("{min} to {max}"),
        found: found.to_string(),
    })
}

/// Reads exactly `buf.len()` bytes; a file that ends before is damaged.
pub(super) fn read_exact(
    file: &dyn VfsFile,
    path: &Path,
    buf: &mut [u8],
    offset: u64,
    what: &'static str,
) -> Result<(), SnapshotError> {
    file.read_exact_at(buf, offset).map_err(|source| {
        if source.kind() != std::io::ErrorKind::UnexpectedEof {
            return SnapshotError::io(path, "read")(source);
        }
        SnapshotError::Damaged {
            path: path.to_owned(),
            offset,
            what,
            expected: format!("{} bytes", buf.len()),
            found: "the end of the file".to_owned(),
        }
    })
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::chunk::{CHUNK_HEAD_LEN, CHUNK_SIZE};
    use super::super::number;
    use super::*;
    use crate::lz4::LZ4_RATIO_MAX;

    const SPECIFICATION: &str = include_str!("../../../docs/FORMAT.md");

    #[test]
    fn specification_has_the_constants_of_the_code() {
        let magic = |magic: u64| {
            let bytes = magic.to_le_bytes();
            format!("| 0 | 8 | magic `{}` |", String::from_utf8_lossy(&bytes))
        };
        for line in [
            magic(HEADER_MAGIC),
            magic(FOOTER_MAGIC),
            magic(number::MAGIC),
            format!("| 8 | 2 | format version, {VERSION} |"),
            format!("| 8 | 2 | format version, {} |", number::VERSION),
            format!("Header, {} + m bytes", HEADER_LEN + CRC_LEN),
            format!("| {HEADER_LEN} | m | membership"),
            format!(
                "length of the membership, at most {} MiB",
                MEMBERSHIP_MAX >> 20
            ),
            format!("flags: {FLAG_RECEIVED} when another store"),
            format!(
                "in bytes, 1 to {} MiB; by default {} KiB",
                CHUNK_SIZE_MAX >> 20,
                CHUNK_SIZE >> 10
            ),
            format!("| {CHUNK_HEAD_LEN} | n | the content itself"),
            format!("{LZ4_RATIO_MAX} bytes for each of its own"),
            format!("Footer, the last {FOOTER_LEN} bytes"),
            format!("equal copies, at offsets 0 and {},", number::COPY_STRIDE),
            format!(
                "checksum of the {} bytes before",
                number::COPY_LEN - CRC_LEN
            ),
        ] {
            assert!(SPECIFICATION.contains(&line), "not in FORMAT.md: {line}");
        }
    }
}
