//! Reads one snapshot, verifying each chunk before it hands out a byte of it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::chunk::{CHUNK_HEAD_LEN, ChunkHead};
use super::error::SnapshotError;
use super::format::{Footer, Header, read_exact};
use super::pins::SnapshotPin;
use crate::SnapshotRef;
use crate::vfs::VfsFile;

/// The content of a snapshot. The last chunk is handed out only when the checksum of the whole
/// agrees, so whoever reads to the end has read what was written. The file is not removed before
/// the reader is dropped.
///
/// An error is `InvalidData` for damage and carries a [`SnapshotError`]; after it every further
/// read fails.
pub struct SnapshotReader {
    path: PathBuf,
    file: Box<dyn VfsFile>,
    header: Header,
    footer: Footer,
    /// Where the next chunk begins, and its number.
    offset: u64,
    number: u64,
    /// Content bytes in chunks not loaded yet.
    left: u64,
    content_crc: Hasher,
    /// The chunk at hand and how much of it was handed out.
    chunk: Vec<u8>,
    taken: usize,
    /// The chunk as it is stored.
    stored: Vec<u8>,
    failed: bool,
    _pin: Option<SnapshotPin>,
}

impl SnapshotReader {
    /// Reads a file whose header and footer were verified.
    pub(super) fn new(
        path: PathBuf,
        file: Box<dyn VfsFile>,
        header: Header,
        footer: Footer,
        pin: Option<SnapshotPin>,
    ) -> Self {
        Self {
            path,
            file,
            offset: header.len(),
            number: 0,
            left: footer.content_len,
            header,
            footer,
            content_crc: Hasher::new(),
            chunk: Vec::new(),
            taken: 0,
            stored: Vec::new(),
            failed: false,
            _pin: pin,
        }
    }

    /// What the snapshot is, as the file itself says.
    #[must_use]
    pub fn reference(&self) -> SnapshotRef {
        self.header.reference(&self.footer)
    }

    /// The next chunk, verified; empty after the last one.
    pub fn next_chunk(&mut self) -> Result<&[u8], SnapshotError> {
        if self.failed {
            let source = io::ErrorKind::InvalidData.into();
            return Err(SnapshotError::io(
                &self.path,
                "go on after a failed read of",
            )(source));
        }
        if let Err(error) = self.load() {
            self.failed = true;
            self.chunk.clear();
            self.taken = 0;
            return Err(error);
        }
        self.taken = self.chunk.len();
        Ok(&self.chunk)
    }

    /// The number of the next chunk, and where its head lies.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.number, self.offset)
    }

    fn load(&mut self) -> Result<(), SnapshotError> {
        self.chunk.clear();
        self.taken = 0;
        if self.left == 0 {
            if self.footer.chunks == 0 {
                let (at, found) = (self.offset + 32, self.footer.content_crc);
                SnapshotError::expect(&self.path, at, "content checksum", 0, found)?;
            }
            return Ok(());
        }
        let mut head = [0; CHUNK_HEAD_LEN];
        let (path, at) = (&self.path, self.offset);
        read_exact(&*self.file, path, &mut head, at, "chunk head")?;
        let len = self.left.min(u64::from(self.header.chunk_size)) as u32;
        let head = ChunkHead::decode(&head, len).map_err(SnapshotError::chunk(path, at))?;
        self.footer.encloses(&self.header, path, at, head.stored)?;
        self.stored.resize(head.stored as usize, 0);
        let content = at + CHUNK_HEAD_LEN as u64;
        read_exact(&*self.file, path, &mut self.stored, content, "chunk")?;
        let crc = head
            .open(self.number, &self.stored, len, &mut self.chunk)
            .map_err(SnapshotError::chunk(path, at))?;
        if self.chunk.is_empty() {
            std::mem::swap(&mut self.chunk, &mut self.stored);
        }
        self.content_crc.combine(&crc);
        self.offset = content + u64::from(head.stored);
        self.number += 1;
        self.left -= u64::from(len);
        if self.left == 0 {
            let end = self.header.len() + self.footer.stored_len;
            SnapshotError::expect(path, self.offset, "end of chunks", end, self.offset)?;
            let whole = self.content_crc.clone().finalize();
            let (at, found) = (self.offset + 32, self.footer.content_crc);
            SnapshotError::expect(path, at, "content checksum", whole, found)?;
        }
        Ok(())
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.taken == self.chunk.len() {
            self.next_chunk()?;
            self.taken = 0;
        }
        let rest = &self.chunk[self.taken..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.taken += n;
        Ok(n)
    }
}

impl fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("path", &self.path)
            .field("left", &self.left)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
