//! Reads one snapshot, verifying each chunk before it hands out a byte of it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::error::SnapshotError;
use super::format::{CHUNK_HEAD_LEN, Footer, Header, read_exact, u32_at};
use crate::SnapshotRef;
use crate::vfs::VfsFile;

/// The content of a snapshot. The last chunk is handed out only when the checksum of the whole
/// agrees, so whoever reads to the end has read what was written.
///
/// An error is `InvalidData` for damage and carries a [`SnapshotError`]; after it every further
/// read fails.
pub struct SnapshotReader {
    path: PathBuf,
    file: Box<dyn VfsFile>,
    header: Header,
    footer: Footer,
    /// Where the next chunk begins.
    offset: u64,
    /// Content bytes in chunks not loaded yet.
    left: u64,
    content_crc: Hasher,
    /// The chunk at hand and how much of it was handed out.
    chunk: Vec<u8>,
    taken: usize,
    failed: bool,
}

impl SnapshotReader {
    /// Reads and verifies header and footer.
    pub(super) fn open(
        path: PathBuf,
        file: Box<dyn VfsFile>,
        header: Header,
    ) -> Result<Self, SnapshotError> {
        let footer = Footer::read(&*file, &path, &header)?;
        if footer.content_len == 0 {
            let at = header.len() + 24;
            SnapshotError::expect(&path, at, "content checksum", 0, footer.content_crc)?;
        }
        Ok(Self {
            path,
            file,
            offset: header.len(),
            left: footer.content_len,
            header,
            footer,
            content_crc: Hasher::new(),
            chunk: Vec::new(),
            taken: 0,
            failed: false,
        })
    }

    /// What the snapshot is, as the file itself says.
    #[must_use]
    pub fn reference(&self) -> SnapshotRef {
        SnapshotRef {
            index: self.header.index,
            term: self.header.term,
            number: self.header.number,
            content_len: self.footer.content_len,
            content_crc: self.footer.content_crc,
            membership: self.header.membership.clone(),
        }
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

    fn load(&mut self) -> Result<(), SnapshotError> {
        self.chunk.clear();
        self.taken = 0;
        if self.left == 0 {
            return Ok(());
        }
        let mut head = [0; CHUNK_HEAD_LEN];
        read_exact(
            &*self.file,
            &self.path,
            &mut head,
            self.offset,
            "chunk head",
        )?;
        let len = self.left.min(u64::from(self.header.chunk_size)) as u32;
        SnapshotError::expect(
            &self.path,
            self.offset,
            "chunk length",
            len,
            u32_at(&head, 0),
        )?;
        self.chunk.resize(len as usize, 0);
        let content = self.offset + CHUNK_HEAD_LEN as u64;
        read_exact(&*self.file, &self.path, &mut self.chunk, content, "chunk")?;
        let mut crc = Hasher::new();
        crc.update(&self.chunk);
        self.content_crc.combine(&crc);
        let (at, found) = (self.offset + 4, u32_at(&head, 4));
        SnapshotError::expect(&self.path, at, "chunk checksum", crc.finalize(), found)?;
        self.offset = content + u64::from(len);
        self.left -= u64::from(len);
        if self.left == 0 {
            let whole = self.content_crc.clone().finalize();
            let (at, found) = (self.offset + 24, self.footer.content_crc);
            SnapshotError::expect(&self.path, at, "content checksum", whole, found)?;
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
