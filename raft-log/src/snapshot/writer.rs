//! Writes one snapshot, chunk by chunk, in constant memory.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::error::SnapshotError;
use super::format::{CHUNK_HEAD_LEN, Footer, Header};
use crate::SnapshotRef;
use crate::vfs::{SharedVfs, VfsFile};

/// A snapshot in the making. Write the content, then [`SnapshotWriter::finish`]; dropped before, it
/// leaves nothing.
///
/// [`io::Write::flush`] does nothing: only a finished snapshot is durable. After an error every
/// further call fails.
pub struct SnapshotWriter {
    vfs: SharedVfs,
    dir: PathBuf,
    path: PathBuf,
    tmp: PathBuf,
    /// `None` once it was closed.
    file: Option<Box<dyn VfsFile>>,
    header: Header,
    /// Where the next chunk goes.
    offset: u64,
    /// Room for a chunk's head, and the content gathered so far.
    chunk: Vec<u8>,
    chunks: u64,
    content_len: u64,
    content_crc: Hasher,
    failed: bool,
    renamed: bool,
}

impl SnapshotWriter {
    /// Creates the temporary file and writes the header. The directory exists.
    pub(super) fn create(
        vfs: SharedVfs,
        dir: PathBuf,
        path: PathBuf,
        tmp: PathBuf,
        header: Header,
    ) -> Result<Self, SnapshotError> {
        let file = vfs
            .open(&tmp, crate::vfs::OpenMode::CreateNew)
            .map_err(SnapshotError::io(&tmp, "create"))?;
        let chunk = Vec::with_capacity(CHUNK_HEAD_LEN + header.chunk_size as usize);
        let mut writer = Self {
            vfs,
            dir,
            path,
            tmp,
            file: Some(file),
            header,
            offset: 0,
            chunk,
            chunks: 0,
            content_len: 0,
            content_crc: Hasher::new(),
            failed: false,
            renamed: false,
        };
        let header = writer.header.encode();
        writer.put(&header)?;
        writer.chunk.extend_from_slice(&[0; CHUNK_HEAD_LEN]);
        Ok(writer)
    }

    /// Closes the snapshot and makes it durable: content first, then the name.
    ///
    /// After an error it is not known whether the snapshot is there. It is either whole or absent
    /// after the next [`SnapshotStore::open`](super::SnapshotStore::open), and must not be referred
    /// to.
    pub fn finish(mut self) -> Result<SnapshotRef, SnapshotError> {
        if self.failed {
            return Err(self.refusal());
        }
        if self.chunk.len() > CHUNK_HEAD_LEN {
            self.put_chunk()?;
        }
        let footer = Footer {
            chunks: self.chunks,
            content_len: self.content_len,
            content_crc: self.content_crc.clone().finalize(),
        };
        self.put(&footer.encode())?;
        let file = self
            .file
            .take()
            .expect("only finish closes the file, and it takes the writer");
        file.sync_data()
            .map_err(SnapshotError::io(&self.tmp, "sync"))?;
        drop(file);
        self.vfs
            .rename(&self.tmp, &self.path)
            .map_err(SnapshotError::io(&self.tmp, "rename"))?;
        self.renamed = true;
        self.vfs
            .sync_dir(&self.dir)
            .map_err(SnapshotError::io(&self.dir, "sync"))?;
        Ok(SnapshotRef {
            index: self.header.index,
            term: self.header.term,
            number: self.header.number,
            content_len: footer.content_len,
            content_crc: footer.content_crc,
            membership: self.header.membership.clone(),
        })
    }

    fn put_chunk(&mut self) -> Result<(), SnapshotError> {
        let content = &self.chunk[CHUNK_HEAD_LEN..];
        let len = u32::try_from(content.len()).expect("a chunk is at most chunk_size bytes");
        let mut crc = Hasher::new();
        crc.update(content);
        // The checksum of the whole follows from those of its parts, so each byte is summed once.
        self.content_crc.combine(&crc);
        self.content_len += u64::from(len);
        self.chunks += 1;
        self.chunk[..4].copy_from_slice(&len.to_le_bytes());
        self.chunk[4..CHUNK_HEAD_LEN].copy_from_slice(&crc.finalize().to_le_bytes());
        let chunk = std::mem::take(&mut self.chunk);
        let result = self.put(&chunk);
        self.chunk = chunk;
        self.chunk.truncate(CHUNK_HEAD_LEN);
        result
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let file = self
            .file
            .as_ref()
            .expect("only finish closes the file, and it takes the writer");
        if let Err(source) = file.write_all_at(bytes, self.offset) {
            self.failed = true;
            return Err(SnapshotError::io(&self.tmp, "write")(source));
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// What is said to whoever goes on after an error.
    fn refusal(&self) -> SnapshotError {
        SnapshotError::io(&self.tmp, "go on after a failed write to")(io::ErrorKind::Other.into())
    }
}

impl io::Write for SnapshotWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(self.refusal().into());
        }
        let full = CHUNK_HEAD_LEN + self.header.chunk_size as usize;
        let n = buf.len().min(full - self.chunk.len());
        self.chunk.extend_from_slice(&buf[..n]);
        if self.chunk.len() == full {
            self.put_chunk()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        self.file = None;
        if !self.renamed {
            // Where this fails, or is not synced, the next open of the store removes the file.
            let _absent_or_left = self.vfs.remove(&self.tmp);
        }
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("tmp", &self.tmp)
            .field("content_len", &self.content_len)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
