//! Reads one snapshot as the chunks that travel to a peer, from any chunk on.
//!
//! Chunks go out as they are stored, compressed or not, each verified first. The content as a whole
//! is for the receiver to verify: a sender that starts in the middle has not seen all of it.

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;

use super::chunk::{CHUNK_HEAD_LEN, ChunkHead};
use super::error::SnapshotError;
use super::format::{Footer, Header, read_exact};
use super::pins::SnapshotPin;
use crate::vfs::VfsFile;
use crate::{GroupId, SnapshotRef, StoreId};

/// What a sender announces about a snapshot. A receive that was cut short goes on only under an
/// equal one: store and number tell it from all other snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// The store whose file it is.
    pub store: StoreId,
    /// The group.
    pub group: GroupId,
    /// The snapshot, with the number that it has in the sender's store.
    pub snapshot: SnapshotRef,
    /// Content bytes in every chunk but the last.
    pub chunk_size: u32,
}

impl SnapshotManifest {
    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.snapshot
            .content_len
            .div_ceil(u64::from(self.chunk_size.max(1)))
    }

    /// Content bytes in a chunk.
    pub(super) fn chunk_len(&self, number: u64) -> u32 {
        chunk_len(self.snapshot.content_len, self.chunk_size, number)
    }
}

fn chunk_len(content_len: u64, chunk_size: u32, number: u64) -> u32 {
    let left = content_len - number * u64::from(chunk_size);
    u32::try_from(left).map_or(chunk_size, |left| left.min(chunk_size))
}

/// A snapshot as the chunks that a [`SnapshotReceiver`](super::SnapshotReceiver) takes. The file is
/// not removed before the sender is dropped.
pub struct SnapshotSender {
    path: PathBuf,
    file: Box<dyn VfsFile>,
    header: Header,
    footer: Footer,
    /// Where the next chunk begins, and its number.
    offset: u64,
    number: u64,
    _pin: SnapshotPin,
}

impl SnapshotSender {
    /// Sends a file whose header and footer were verified.
    pub(super) fn new(
        path: PathBuf,
        file: Box<dyn VfsFile>,
        header: Header,
        footer: Footer,
        pin: SnapshotPin,
    ) -> Self {
        Self {
            path,
            file,
            offset: header.len(),
            number: 0,
            header,
            footer,
            _pin: pin,
        }
    }

    /// What is sent.
    #[must_use]
    pub fn manifest(&self) -> SnapshotManifest {
        SnapshotManifest {
            store: self.header.store,
            group: self.header.group,
            snapshot: self.header.reference(&self.footer),
            chunk_size: self.header.chunk_size,
        }
    }

    /// Goes on with chunk `number`; one past the last is the end.
    ///
    /// # Panics
    /// If there are fewer chunks.
    pub fn seek(&mut self, number: u64) -> Result<(), SnapshotError> {
        assert!(
            number <= self.footer.chunks,
            "chunk {number} of a snapshot of {}",
            self.footer.chunks
        );
        if number < self.number {
            (self.offset, self.number) = (self.header.len(), 0);
        }
        while self.number < number {
            let (_, head) = self.head()?;
            self.offset += CHUNK_HEAD_LEN as u64 + u64::from(head.stored);
            self.number += 1;
        }
        Ok(())
    }

    /// The next chunk and its number; `None` after the last one. After an error the same chunk is
    /// tried again.
    pub fn next_chunk(&mut self) -> Result<Option<(u64, Bytes)>, SnapshotError> {
        if self.number == self.footer.chunks {
            return Ok(None);
        }
        let (bytes, head) = self.head()?;
        let mut chunk = vec![0; CHUNK_HEAD_LEN + head.stored as usize];
        chunk[..CHUNK_HEAD_LEN].copy_from_slice(&bytes);
        let (path, at) = (&self.path, self.offset + CHUNK_HEAD_LEN as u64);
        let stored = &mut chunk[CHUNK_HEAD_LEN..];
        read_exact(&*self.file, path, stored, at, "chunk")?;
        head.verify(self.number, stored)
            .map_err(SnapshotError::chunk(path, self.offset))?;
        let number = self.number;
        self.offset += chunk.len() as u64;
        self.number += 1;
        Ok(Some((number, chunk.into())))
    }

    fn head(&self) -> Result<([u8; CHUNK_HEAD_LEN], ChunkHead), SnapshotError> {
        let mut bytes = [0; CHUNK_HEAD_LEN];
        let (path, at) = (&self.path, self.offset);
        read_exact(&*self.file, path, &mut bytes, at, "chunk head")?;
        let (len, size) = (self.footer.content_len, self.header.chunk_size);
        let head = ChunkHead::decode(&bytes, chunk_len(len, size, self.number))
            .map_err(SnapshotError::chunk(path, at))?;
        self.footer.encloses(&self.header, path, at, head.stored)?;
        Ok((bytes, head))
    }
}

impl fmt::Debug for SnapshotSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSender")
            .field("path", &self.path)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
