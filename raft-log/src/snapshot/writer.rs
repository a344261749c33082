//! Writes one snapshot, chunk by chunk, in constant memory.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::chunk;
use super::error::SnapshotError;
use super::format::{Footer, Header};
use super::output::Output;
use super::pending::PendingSnapshot;
use super::pins;
use super::shared::Claim;

/// A snapshot in the making. Write the content, then [`SnapshotWriter::finish`]; dropped before, it
/// leaves nothing.
///
/// [`io::Write::flush`] does nothing: only a finished snapshot is durable. After an error every
/// further call fails.
pub struct SnapshotWriter {
    claim: Option<Claim>,
    path: PathBuf,
    header: Header,
    /// `None` once it was closed.
    output: Option<Output>,
    /// The content gathered for the next chunk.
    chunk: Vec<u8>,
    scratch: Vec<u8>,
    chunks: u64,
    content_len: u64,
    content_crc: Hasher,
}

impl SnapshotWriter {
    /// Writes the header into `output`, which is new. `path` is the name of the finished file.
    pub(super) fn create(
        claim: Claim,
        path: PathBuf,
        header: Header,
        output: Output,
    ) -> Result<Self, SnapshotError> {
        let mut writer = Self {
            claim: Some(claim),
            path,
            chunk: Vec::with_capacity(header.chunk_size as usize),
            header,
            output: Some(output),
            scratch: Vec::new(),
            chunks: 0,
            content_len: 0,
            content_crc: Hasher::new(),
        };
        let header = writer.header.encode();
        let output = writer.output.as_mut().expect("just made");
        output.append(|out| out.extend_from_slice(&header))?;
        Ok(writer)
    }

    /// Closes the snapshot and makes it durable: content first, then the name. What comes back is
    /// to be [installed](super::SnapshotStore::install).
    ///
    /// After an error it is not known whether the file is there. It is either whole or absent, and
    /// the next start removes it.
    pub fn finish(mut self) -> Result<PendingSnapshot, SnapshotError> {
        if !self.chunk.is_empty() {
            self.put_chunk()?;
        }
        let output = self.output.as_mut().expect(OPEN);
        let footer = Footer {
            chunks: self.chunks,
            content_len: self.content_len,
            stored_len: output.position() - self.header.len(),
            content_crc: self.content_crc.clone().finalize(),
        };
        output.append(|out| out.extend_from_slice(&footer.encode()))?;
        let claim = self.claim.take().expect(OPEN);
        // From its name on the file must not be taken for an old one by whoever cleans up.
        let pending = PendingSnapshot::new(claim, self.path.clone(), &self.header, &footer);
        let output = self.output.take().expect(OPEN);
        let tmp = output.path().to_owned();
        let published = output.publish(pending.vfs(), &self.header.encode(), &self.path);
        pending.or_forget(published, Some(&tmp))
    }

    fn put_chunk(&mut self) -> Result<(), SnapshotError> {
        let output = self.output.as_mut().expect(OPEN);
        let compression = self.claim.as_ref().expect(OPEN).options().compression;
        let (content, scratch) = (&self.chunk, &mut self.scratch);
        let crc =
            output.append(|out| chunk::encode(self.chunks, content, compression, scratch, out))?;
        self.content_crc.combine(&crc);
        self.content_len += content.len() as u64;
        self.chunks += 1;
        self.chunk.clear();
        Ok(())
    }
}

const OPEN: &str = "only finish closes the file, and it takes the writer";

impl io::Write for SnapshotWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let size = self.header.chunk_size as usize;
        if self.chunk.len() == size {
            // The write before this one could not put it.
            self.put_chunk()?;
        }
        let n = buf.len().min(size - self.chunk.len());
        self.chunk.extend_from_slice(&buf[..n]);
        if self.chunk.len() == size {
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
        let (Some(output), Some(claim)) = (self.output.take(), &self.claim) else {
            return;
        };
        let tmp = output.path().to_owned();
        drop(output);
        // Where this fails, or is not synced, the next open of the store removes the file.
        let _ = pins::remove(claim.vfs(), &tmp);
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("path", &self.path)
            .field("content_len", &self.content_len)
            .finish_non_exhaustive()
    }
}
