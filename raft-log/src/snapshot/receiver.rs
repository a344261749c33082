//! Receives one snapshot, chunk by chunk, and goes on where it was cut short.
//!
//! Only chunks that verify are written. What is in the partial file after a crash is verified
//! again, up to the first chunk that does not; and it is written again, because what can be read
//! then need not be on the disk: pages whose write-back failed stay readable, and a later sync
//! passes them over.

use std::fmt;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::chunk::{CHUNK_HEAD_LEN, CHUNK_SIZE_MAX, ChunkHead};
use super::error::SnapshotError;
use super::format::{Footer, Header, MEMBERSHIP_MAX, Origin};
use super::output::Output;
use super::pending::PendingSnapshot;
use super::pins;
use super::sender::SnapshotManifest;
use super::shared::Claim;

/// A snapshot that is being received.
///
/// Ask the sender for chunk [`next`](Self::next), [`push`](Self::push) it, and
/// [`finish`](Self::finish) when all [`chunks`](Self::chunks) are there. Dropped before, the
/// partial file stays, and the next receive under an equal manifest goes on with it;
/// [`abort`](Self::abort) removes it.
pub struct SnapshotReceiver {
    /// `None` once it was given up or handed on, and so is the output.
    claim: Option<Claim>,
    manifest: SnapshotManifest,
    header: Header,
    part: PathBuf,
    output: Option<Output>,
    next: u64,
    content_crc: Hasher,
    scratch: Vec<u8>,
}

impl SnapshotReceiver {
    /// The header of a file that is to hold what `manifest` announces, under a number to come.
    pub(super) fn header(
        claim: &Claim,
        manifest: &SnapshotManifest,
        creation: u64,
    ) -> Result<Header, SnapshotError> {
        let snapshot = &manifest.snapshot;
        let impossible = |what| Err(SnapshotError::BadManifest { what });
        if manifest.chunk_size == 0 || manifest.chunk_size > CHUNK_SIZE_MAX {
            let size = manifest.chunk_size;
            return impossible(format!(
                "a chunk size of {size} bytes, not 1 to {CHUNK_SIZE_MAX}"
            ));
        }
        if snapshot.membership.len() > MEMBERSHIP_MAX {
            let len = snapshot.membership.len();
            return impossible(format!(
                "a membership of {len} bytes, not up to {MEMBERSHIP_MAX}"
            ));
        }
        Ok(Header {
            store: claim.options().store,
            group: manifest.group,
            creation,
            index: snapshot.index,
            term: snapshot.term,
            number: 0,
            chunk_size: manifest.chunk_size,
            origin: Some(Origin {
                store: manifest.store,
                number: snapshot.number,
                content_len: snapshot.content_len,
                content_crc: snapshot.content_crc,
            }),
            membership: snapshot.membership.clone(),
        })
    }

    /// Writes into the file behind `output`, after what it holds already.
    pub(super) fn start(
        claim: Claim,
        manifest: SnapshotManifest,
        header: Header,
        output: Output,
    ) -> Result<Self, SnapshotError> {
        let part = output.path().to_owned();
        let mut receiver = Self {
            claim: Some(claim),
            manifest,
            header,
            part,
            output: Some(output),
            next: 0,
            content_crc: Hasher::new(),
            scratch: Vec::new(),
        };
        let header = receiver.header.encode();
        receiver.output().append(&header)?;
        receiver.take_up()?;
        Ok(receiver)
    }

    /// Verifies and writes again what is there.
    fn take_up(&mut self) -> Result<(), SnapshotError> {
        let mut chunk = Vec::new();
        while self.next < self.chunks() {
            let at = self.output().position();
            chunk.resize(CHUNK_HEAD_LEN, 0);
            if !self.output().read(&mut chunk, at) {
                break;
            }
            let head = chunk[..].try_into().expect("as long as a head");
            let Ok(head) = ChunkHead::decode(head, self.manifest.chunk_len(self.next)) else {
                break;
            };
            chunk.resize(CHUNK_HEAD_LEN + head.stored as usize, 0);
            let rest = &mut chunk[CHUNK_HEAD_LEN..];
            if !self.output().read(rest, at + CHUNK_HEAD_LEN as u64) {
                break;
            }
            match self.push(self.next, &chunk) {
                Ok(()) => {}
                Err(SnapshotError::BadChunk { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        self.output().cut()
    }

    /// What is received.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// The number of the chunk to send next; equal to [`chunks`](Self::chunks) when all are there.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.manifest.chunks()
    }

    /// Takes one chunk, as [`SnapshotSender::next_chunk`](super::SnapshotSender::next_chunk) gave
    /// it. It is on disk when the snapshot is finished, not before.
    ///
    /// # Errors
    /// [`SnapshotError::BadChunk`] for one that does not verify or is not the next: nothing changed.
    /// After any other error the receiver is of no use; drop it, and begin again.
    pub fn push(&mut self, number: u64, chunk: &[u8]) -> Result<(), SnapshotError> {
        let wanted = self.next;
        let bad = |what| Err(SnapshotError::BadChunk { wanted, what });
        if number != wanted || wanted == self.chunks() {
            let chunks = self.chunks();
            return bad(format!("chunk {number} of {chunks} came out of turn"));
        }
        let Some((head, stored)) = chunk.split_first_chunk() else {
            return bad(format!("chunk {number} has {} bytes", chunk.len()));
        };
        let len = self.manifest.chunk_len(number);
        let opened = ChunkHead::decode(head, len).and_then(|head| {
            let crc = head.open(number, stored, len, &mut self.scratch)?;
            Ok((head, crc))
        });
        let crc = match opened {
            Ok((head, crc)) if stored.len() == head.stored as usize => crc,
            Ok((head, _)) => {
                let (expected, found) = (head.stored, stored.len());
                return bad(format!(
                    "chunk {number} has {found} bytes instead of {expected}"
                ));
            }
            Err(fault) => {
                return bad(format!(
                    "{} of chunk {number} should be {}, found {}",
                    fault.what, fault.expected, fault.found
                ));
            }
        };
        self.output().append(chunk)?;
        self.content_crc.combine(&crc);
        self.next += 1;
        Ok(())
    }

    /// Closes the snapshot and makes it durable, under a number of this store. What comes back is
    /// to be [installed](super::SnapshotStore::install).
    ///
    /// # Errors
    /// [`SnapshotError::BadChunk`] while chunks are missing; [`SnapshotError::Damaged`] when the
    /// content as a whole is not what was announced, and then the partial file is removed. After
    /// the others the partial file is left for the next receive, or removed by the next start.
    pub fn finish(mut self) -> Result<PendingSnapshot, SnapshotError> {
        if self.next != self.chunks() {
            let (wanted, chunks) = (self.next, self.chunks());
            let what = format!("{wanted} of {chunks} chunks are there");
            return Err(SnapshotError::BadChunk { wanted, what });
        }
        let announced = self.manifest.snapshot.content_crc;
        let content_crc = self.content_crc.clone().finalize();
        let (at, what) = (self.output().position(), "content checksum");
        let matches = SnapshotError::expect(&self.part, at, what, announced, content_crc);
        if matches.is_err() {
            self.abort()?;
            return Err(matches.expect_err("just seen"));
        }
        let footer = Footer {
            chunks: self.next,
            content_len: self.manifest.snapshot.content_len,
            stored_len: at - self.header.len(),
            content_crc,
        };
        self.output().append(&footer.encode())?;
        // A number of now: it orders this snapshot behind all that were installed meanwhile.
        let shared = self.claim.as_ref().expect(OPEN).shared();
        self.header.number = shared.draw_number()?;
        let key = (self.header.index, self.header.term, self.header.number);
        let path = shared.catalog.path(self.header.group, key);
        let claim = self.claim.take().expect(OPEN);
        let output = self.output.take().expect(OPEN);
        let pending = PendingSnapshot::new(claim, path.clone(), &self.header, &footer);
        let published = output.publish(&self.header.encode(), &path);
        pending.or_forget(published, None)
    }

    /// Gives up, and removes the partial file.
    pub fn abort(mut self) -> Result<(), SnapshotError> {
        self.output = None;
        let claim = self.claim.take().expect(OPEN);
        let latch = &claim.shared().latch;
        latch.healthy()?;
        pins::remove(claim.vfs(), &self.part)?;
        latch.sync_dir(self.part.parent().unwrap_or(&self.part))
    }

    fn output(&mut self) -> &mut Output {
        self.output.as_mut().expect(OPEN)
    }
}

const OPEN: &str = "only finish and abort close the file, and they take the receiver";

impl Drop for SnapshotReceiver {
    fn drop(&mut self) {
        if let Some(output) = &mut self.output {
            // What does not get there is asked for again.
            let _ = output.flush();
        }
    }
}

impl fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReceiver")
            .field("part", &self.part)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
