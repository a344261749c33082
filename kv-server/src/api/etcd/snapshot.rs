//! A backup as a stream: on a thread of its own, part by part, as fast as the client reads.
//!
//! While it runs, a view of the state keeps superseded values from being reclaimed. So there are few at a time, and a
//! client that does not read is given up.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::Code;

use super::{STORAGE_VERSION, SnapshotParts, pb};
use crate::ApiError;
use crate::mvcc::{Backup, BackupSource, backup_len};

/// Bytes of a part, as etcd's.
const PART_BYTES: usize = 32 << 10;
/// Parts that wait for the client.
const PARTS_QUEUED_MAX: usize = 8;
/// Backups at a time; more are refused.
const STREAMS_MAX: usize = 2;
/// How long a client may leave the parts that wait.
const STALLED: Duration = Duration::from_secs(60);
/// Bytes of the checksum, which is a part by itself.
const HASH_BYTES: u64 = 32;

/// The backups under way.
pub(super) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

impl Streams {
    /// Begins one of what `take` gives.
    pub(super) fn start(
        &self,
        take: impl FnOnce() -> Result<Backup, ApiError> + Send + 'static,
        source: BackupSource,
        term: u64,
    ) -> Result<SnapshotParts, ApiError> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::TooManyRequests)?;
        let failed = |error: io::Error| {
            let text = format!("flotilla: no thread for a backup: {error}");
            ApiError::Other(Code::Internal, text)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(failed)?;
        let (sender, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        let work = move || {
            let _permit = permit;
            let failure = match take() {
                Ok(backup) => stream(&backup, source, term, &sender, &runtime)
                    .err()
                    .map(|error| {
                        tracing::warn!(%error, "a backup was cut short");
                        ApiError::Other(
                            Code::Internal,
                            format!("flotilla: the backup was cut short: {error}"),
                        )
                    }),
                Err(error) => Some(error),
            };
            if let Some(error) = failure {
                // A client that went away needs no reason.
                let _ = runtime.block_on(async { timeout(STALLED, sender.send(Err(error))).await });
            }
        };
        let thread = Builder::new().name("flotilla-backup".to_owned());
        thread.spawn(work).map_err(failed)?;
        Ok(receiver)
    }
}

fn stream(
    backup: &Backup,
    source: BackupSource,
    term: u64,
    sender: &mpsc::Sender<Result<pb::SnapshotResponse, ApiError>>,
    runtime: &Runtime,
) -> io::Result<()> {
    let content_len = backup.content_len()?;
    let header = pb::ResponseHeader {
        cluster_id: source.cluster,
        member_id: source.member,
        revision: backup.revision(),
        raft_term: term,
    };
    let mut parts = Parts {
        part: Vec::with_capacity(PART_BYTES),
        left: backup_len(content_len),
        header,
        sender,
        runtime,
    };
    backup.write(source, content_len, &mut parts)?;
    if parts.left > 0 {
        return Err(io::Error::other("the state was shorter than it had been"));
    }
    Ok(())
}

/// Gathers parts, and sends each when it is full.
struct Parts<'a> {
    part: Vec<u8>,
    /// Bytes that are to come, the checksum included.
    left: u64,
    header: pb::ResponseHeader,
    sender: &'a mpsc::Sender<Result<pb::SnapshotResponse, ApiError>>,
    runtime: &'a Runtime,
}

impl Parts<'_> {
    fn send(&mut self) -> io::Result<()> {
        let blob = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        let response = pb::SnapshotResponse {
            header: Some(self.header),
            remaining_bytes: self.left.saturating_sub(HASH_BYTES),
            blob: blob.into(),
            version: STORAGE_VERSION.to_owned(),
        };
        let sent = async { timeout(STALLED, self.sender.send(Ok(response))).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client went away")),
            Err(_) => Err(io::Error::other("the client did not read for a minute")),
        }
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The checksum begins a part.
        let until_hash = self.left.saturating_sub(HASH_BYTES);
        let section = if until_hash > 0 {
            until_hash
        } else {
            self.left
        };
        let room = u64::try_from(PART_BYTES - self.part.len()).expect("a part is small");
        let n = usize::try_from(room.min(section)).expect("a part is small");
        let n = n.min(bytes.len());
        if n == 0 && !bytes.is_empty() {
            return Err(io::Error::other("the state was longer than it had been"));
        }
        self.part.extend_from_slice(&bytes[..n]);
        self.left -= n as u64;
        let ends = n as u64 == section;
        if ends || self.part.len() == PART_BYTES {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
