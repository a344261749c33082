//! The bytes of a snapshot file, as `docs/FORMAT.md` specifies them: header and footer, and where
//! the chunks lie.

use std::path::Path;

use bytes::Bytes;

use super::error::SnapshotError;
use crate::vfs::VfsFile;
use crate::{GroupId, Index, StoreId, Term};

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"FLOTSNAP");
const FOOTER_MAGIC: u64 = u64::from_le_bytes(*b"FLOTSEND");
/// The version that is written, and the newest that is read.
const VERSION: u16 = 1;

/// The header without membership and checksum.
const HEADER_LEN: usize = 64;
const CRC_LEN: usize = 4;
pub(super) const FOOTER_LEN: usize = 32;
/// What precedes the bytes of a chunk: its length and its checksum.
pub(super) const CHUNK_HEAD_LEN: usize = 8;

/// Content bytes in every chunk but the last.
pub(super) const CHUNK_SIZE: u32 = 256 * 1024;
/// The largest chunk that a reader makes room for.
const CHUNK_SIZE_MAX: u32 = 16 * 1024 * 1024;
/// The longest membership.
pub(super) const MEMBERSHIP_MAX: usize = 1024 * 1024;

/// Who the snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) store: StoreId,
    pub(super) group: GroupId,
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) number: u64,
    pub(super) chunk_size: u32,
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
        let mut out = Vec::with_capacity(HEADER_LEN + self.membership.len() + CRC_LEN);
        out.extend_from_slice(&HEADER_MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&membership_len.to_le_bytes());
        for field in [
            self.store.0,
            self.group.0,
            self.index.0,
            self.term.0,
            self.number,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.chunk_size.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.membership);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads and verifies the header, and that the file is of this store.
    pub(super) fn read(
        file: &dyn VfsFile,
        path: &Path,
        store: StoreId,
    ) -> Result<Self, SnapshotError> {
        let mut fixed = [0; HEADER_LEN];
        read_exact(file, path, &mut fixed, 0, "header")?;
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
        let membership_len = u32_at(&fixed, 12) as usize;
        if membership_len > MEMBERSHIP_MAX {
            return Err(SnapshotError::Damaged {
                path: path.to_owned(),
                offset: 12,
                what: "membership length",
                expected: format!("at most {MEMBERSHIP_MAX}"),
                found: membership_len.to_string(),
            });
        }
        let mut rest = vec![0; membership_len + CRC_LEN];
        read_exact(file, path, &mut rest, HEADER_LEN as u64, "membership")?;
        let found_crc = u32_at(&rest, membership_len);
        rest.truncate(membership_len);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&fixed);
        crc.update(&rest);
        let crc_offset = (HEADER_LEN + membership_len) as u64;
        SnapshotError::expect(
            path,
            crc_offset,
            "header checksum",
            crc.finalize(),
            found_crc,
        )?;

        let header = Self {
            store: StoreId(u64_at(&fixed, 16)),
            group: GroupId(u64_at(&fixed, 24)),
            index: Index(u64_at(&fixed, 32)),
            term: Term(u64_at(&fixed, 40)),
            number: u64_at(&fixed, 48),
            chunk_size: u32_at(&fixed, 56),
            membership: rest.into(),
        };
        if header.store != store {
            let (path, found) = (path.to_owned(), header.store);
            return Err(SnapshotError::ForeignStore {
                path,
                expected: store,
                found,
            });
        }
        if header.chunk_size == 0 || header.chunk_size > CHUNK_SIZE_MAX {
            return Err(SnapshotError::Damaged {
                path: path.to_owned(),
                offset: 56,
                what: "chunk size",
                expected: format!("1 to {CHUNK_SIZE_MAX}"),
                found: header.chunk_size.to_string(),
            });
        }
        Ok(header)
    }
}

/// What closes a complete snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) chunks: u64,
    pub(super) content_len: u64,
    pub(super) content_crc: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.chunks.to_le_bytes());
        out[16..24].copy_from_slice(&self.content_len.to_le_bytes());
        out[24..28].copy_from_slice(&self.content_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and verifies the footer, and that header, chunks and footer fill the file.
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
        let crc = crc32fast::hash(&bytes[..28]);
        SnapshotError::expect(path, at + 28, "footer checksum", crc, u32_at(&bytes, 28))?;
        let footer = Self {
            chunks: u64_at(&bytes, 8),
            content_len: u64_at(&bytes, 16),
            content_crc: u32_at(&bytes, 24),
        };
        let chunks = footer.content_len.div_ceil(u64::from(header.chunk_size));
        SnapshotError::expect(path, at + 8, "chunk count", chunks, footer.chunks)?;
        let body = chunks
            .checked_mul(CHUNK_HEAD_LEN as u64)
            .and_then(|heads| heads.checked_add(footer.content_len));
        SnapshotError::expect(
            path,
            at + 16,
            "length of chunks",
            Some(at - header.len()),
            body,
        )?;
        Ok(footer)
    }
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

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
