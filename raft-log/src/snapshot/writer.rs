//! Writes one snapshot, chunk by chunk, in constant memory.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::chunk::{self, CHUNK_HEAD_LEN};
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
    /// Content bytes gathered for the next chunk: the end of the output's buffer, behind room for
    /// the chunk's head. None are gathered without that room.
    gathered: usize,
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
            gathered: 0,
            header,
            output: Some(output),
            scratch: Vec::new(),
            chunks: 0,
            content_len: 0,
            content_crc: Hasher::new(),
        };
        let header = writer.header.encode();
        let output = writer.output.as_mut().expect("just made");
        output.append(&header)?;
        Ok(writer)
    }

    /// Closes the snapshot and makes it durable: content first, then the name. What comes back is
    /// to be [installed](super::SnapshotStore::install).
    ///
    /// After an error it is not known whether the file is there. It is either whole or absent, and
    /// the next start removes it.
    pub fn finish(mut self) -> Result<PendingSnapshot, SnapshotError> {
        if self.gathered > 0 {
            self.put_chunk()?;
        }
        let output = self.output.as_mut().expect(OPEN);
        let footer = Footer {
            chunks: self.chunks,
            content_len: self.content_len,
            stored_len: output.position() - self.header.len(),
            content_crc: self.content_crc.clone().finalize(),
        };
        output.append(&footer.encode())?;
        let claim = self.claim.take().expect(OPEN);
        // From its name on the file must not be taken for an old one by whoever cleans up.
        let pending = PendingSnapshot::new(claim, self.path.clone(), &self.header, &footer);
        let output = self.output.take().expect(OPEN);
        let tmp = output.path().to_owned();
        let published = output.publish(&self.header.encode(), &self.path);
        pending.or_forget(published, Some(&tmp))
    }

    /// Takes more content into the chunk at hand, up to its full size. Returns how much.
    fn gather(&mut self, content: &[u8]) -> Result<usize, SnapshotError> {
        let size = self.header.chunk_size as usize;
        let buffer = self.output.as_mut().expect(OPEN).buffer()?;
        if self.gathered == 0 {
            buffer.extend_from_slice(&[0; CHUNK_HEAD_LEN]);
        }
        let n = content.len().min(size - self.gathered);
        buffer.extend_from_slice(&content[..n]);
        self.gathered += n;
        if self.gathered == size {
            self.put_chunk()?;
        }
        Ok(n)
    }

    fn put_chunk(&mut self) -> Result<(), SnapshotError> {
        let output = self.output.as_mut().expect(OPEN);
        let compression = self.claim.as_ref().expect(OPEN).options().compression;
        let buffer = output.buffer()?;
        let start = buffer.len() - self.gathered - CHUNK_HEAD_LEN;
        let crc = chunk::seal(self.chunks, start, compression, &mut self.scratch, buffer);
        self.content_crc.combine(&crc);
        self.content_len += self.gathered as u64;
        self.chunks += 1;
        self.gathered = 0;
        output.settle()
    }
}

const OPEN: &str = "only finish closes the file, and it takes the writer";

impl io::Write for SnapshotWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        Ok(self.gather(buf)?)
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
