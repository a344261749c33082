//! Looks into snapshot files, for people and tools: what header and footer say, and where each chunk lies.
//!
//! Read only, as all of a [`Catalog`]. Nothing is shown that did not verify.

use std::path::PathBuf;

use bytes::Bytes;

use super::catalog::{Catalog, PART_SUFFIX, SnapshotFile, TMP_SUFFIX};
use super::error::SnapshotError;
use super::format::{Footer, Header};
use super::latch::Latch;
use super::number::Numbers;
use super::reader::SnapshotReader;
use crate::vfs::VfsFile;
use crate::{GroupId, Index, StoreId, Term};

/// What header and footer of a snapshot say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotDetails {
    /// The store that the file belongs to.
    pub store: StoreId,
    /// The group whose state it is.
    pub group: GroupId,
    /// Which life of the group.
    pub creation: u64,
    /// The last index whose effect is in it.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// The number in the file's name.
    pub number: u64,
    /// The store that made it, and the number there, if it was received.
    pub origin: Option<(StoreId, u64)>,
    /// The members as of `index`, as the group's owner encodes them.
    pub membership: Bytes,
    /// Content bytes in every chunk but the last.
    pub chunk_size: u32,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of content in all chunks.
    pub content_len: u64,
    /// Bytes that they take in the file, with their heads.
    pub stored_len: u64,
    /// Checksum of the content.
    pub content_crc: u32,
}

/// One chunk that verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkInfo {
    /// Its place in the sequence, from 0.
    pub number: u64,
    /// Where its head lies in the file, in bytes.
    pub offset: u64,
    /// Bytes that it takes in the file, with its head.
    pub stored_len: u64,
    /// Bytes of content.
    pub content_len: u64,
}

impl Catalog {
    /// What header and footer of a listed file say; `visit` then sees each chunk that verifies, in order.
    ///
    /// # Errors
    /// The first thing that does not verify. What `visit` saw before is good.
    pub fn show(
        &self,
        file: &SnapshotFile,
        visit: &mut dyn FnMut(&SnapshotDetails, Option<ChunkInfo>),
    ) -> Result<(), SnapshotError> {
        let (handle, header, footer) = self.load_listed(file)?;
        let details = details(&header, &footer);
        visit(&details, None);
        let path = self.path(file.group, (file.index, file.term, file.number));
        let mut reader = SnapshotReader::new(path, handle, header, footer, None);
        loop {
            let (number, offset) = reader.place();
            let content_len = reader.next_chunk()?.len() as u64;
            if content_len == 0 {
                return Ok(());
            }
            let chunk = ChunkInfo {
                number,
                offset,
                stored_len: reader.place().1 - offset,
                content_len,
            };
            visit(&details, Some(chunk));
        }
    }

    fn load_listed(
        &self,
        file: &SnapshotFile,
    ) -> Result<(Box<dyn VfsFile>, Header, Footer), SnapshotError> {
        let key = (file.index, file.term, file.number);
        let path = self.path(file.group, key);
        let handle = self.open(&path)?;
        let header = self.header(&*handle, file.group, key)?;
        let footer = Footer::read(&*handle, &path, &header)?;
        Ok((handle, header, footer))
    }

    /// Where a listed file lies.
    #[must_use]
    pub fn path_of(&self, file: &SnapshotFile) -> PathBuf {
        self.path(file.group, (file.index, file.term, file.number))
    }

    /// Files that are not complete: being made or received, or left so by a crash.
    pub fn unfinished(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut found = Vec::new();
        for group in self.groups()? {
            let names = self.names(group)?.into_iter();
            let open =
                names.filter(|name| name.ends_with(TMP_SUFFIX) || name.ends_with(PART_SUFFIX));
            found.extend(open.map(|name| self.group_dir(group).join(name)));
        }
        Ok(found)
    }

    /// Reads the counter that names snapshots. It may be missing only while there is no snapshot.
    pub fn verify_counter(&self, store: StoreId) -> Result<(), SnapshotError> {
        let is_new = self.list()?.is_empty();
        let latch = Latch::new(std::sync::Arc::clone(&self.vfs));
        Numbers::open(latch, &self.dir, store, is_new).map(drop)
    }
}

fn details(header: &Header, footer: &Footer) -> SnapshotDetails {
    SnapshotDetails {
        store: header.store,
        group: header.group,
        creation: header.creation,
        index: header.index,
        term: header.term,
        number: header.number,
        origin: header
            .origin
            .as_ref()
            .map(|origin| (origin.store, origin.number)),
        membership: header.membership.clone(),
        chunk_size: header.chunk_size,
        chunks: footer.chunks,
        content_len: footer.content_len,
        stored_len: footer.stored_len,
        content_crc: footer.content_crc,
    }
}
