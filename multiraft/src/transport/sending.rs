//! Snapshots on their way to one member: each on a connection of its own, so that a big one keeps no message waiting.
//!
//! One goes at a time. The receiver says which chunk it wants next, first and after each that it took, so that one that
//! was cut short goes on where it ended; a few chunks are on their way at a time, and not more bytes in a second than
//! [`super::TransportSetup::snapshot_bytes_per_second`]. Files are read on threads for that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_log::NodeId;
use raft_log::snapshot::{SnapshotError, SnapshotSender};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::dial::{connect, describe};
use super::outbox::Peer;
use super::pb::snapshot_frame::Body;
use super::{HELLO_TIMEOUT, Shared, pb};
use crate::SnapshotTransfer;

/// Bytes on their way that the receiver has not answered: what a slow network takes in less time than a connection may
/// stay silent.
const WINDOW_BYTES: u64 = 1 << 20;
/// How often it is looked whether the transfer is still wanted, and how often its owner hears that it moves.
const LOOK: Duration = Duration::from_secs(1);

/// Carries what is to go to a member, for as long as it is one. Returns a reason when that cannot be.
pub(super) async fn keep(shared: Arc<Shared>, to: NodeId, peer: Arc<Peer>) -> Option<String> {
    let carried = peer
        .carried
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    let Some(mut carried) = carried else {
        return Some("the links of a transport belong to another one".to_owned());
    };
    let mut moved = peer.urls.subscribe();
    loop {
        let transfer = tokio::select! {
            transfer = carried.recv() => transfer?,
            _ = moved.wait_for(Vec::is_empty) => return None,
        };
        if !transfer.is_wanted() {
            continue;
        }
        let (group, snapshot) = (transfer.group(), transfer.snapshot().clone());
        let urls = peer.urls.borrow().clone();
        let carried = tokio::select! {
            carried = carry(&shared, transfer, &urls) => carried,
            _ = moved.wait_for(Vec::is_empty) => return None,
        };
        match carried {
            Ok(()) => {
                tracing::info!(%group, %to, index = %snapshot.index, "a member has taken a snapshot");
            }
            Err(reason) => {
                tracing::warn!(%group, %to, index = %snapshot.index, reason, "a snapshot did not get to a member");
            }
        }
    }
}

/// Carries one; dropped before it is taken, it has failed.
async fn carry(shared: &Shared, transfer: SnapshotTransfer, urls: &[String]) -> Result<(), String> {
    let gone = |error| format!("the thread that reads it ended: {error}");
    let opening = spawn_blocking(move || {
        let opened = transfer.open();
        (transfer, opened)
    });
    let (transfer, opened) = opening.await.map_err(gone)?;
    let sender = opened.map_err(|error| error.to_string())?;
    let mut reasons = Vec::new();
    for url in urls {
        match call(shared, &transfer, &sender, url).await {
            Ok(call) => return send(shared, transfer, sender, call).await,
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

/// A stream on which both sides know each other.
struct Call {
    outgoing: mpsc::Sender<pb::SnapshotFrame>,
    inbound: Streaming<pb::SnapshotFrame>,
}

fn frame(body: Body) -> pb::SnapshotFrame {
    pb::SnapshotFrame { body: Some(body) }
}

/// Connects, shakes hands and makes the offer.
async fn call(
    shared: &Shared,
    transfer: &SnapshotTransfer,
    sender: &SnapshotSender,
    url: &str,
) -> Result<Call, String> {
    let to = transfer.to();
    let manifest = sender.manifest();
    let offer = pb::SnapshotOffer {
        group: manifest.group.0,
        sent_in: transfer.sent_in().0,
        store: manifest.store.0,
        number: manifest.snapshot.number,
        index: manifest.snapshot.index.0,
        term: manifest.snapshot.term.0,
        content_len: manifest.snapshot.content_len,
        content_crc: manifest.snapshot.content_crc,
        chunk_size: manifest.chunk_size,
        membership: manifest.snapshot.membership,
    };
    let shake = async {
        let mut client = connect(url, shared.tls.as_ref()).await?;
        let (outgoing, frames) = mpsc::channel(2);
        for body in [Body::Hello(shared.me.hello(to)), Body::Offer(offer)] {
            // The channel is new and has room.
            let _ = outgoing.try_send(frame(body));
        }
        let response = client.snapshot(ReceiverStream::new(frames)).await;
        let mut inbound = response.map_err(|status| describe(&status))?.into_inner();
        let first = inbound.message().await;
        let first = first.map_err(|status| describe(&status))?;
        let hello = match first.and_then(|frame| frame.body) {
            Some(Body::Hello(hello)) => Some(hello),
            _ => None,
        };
        shared
            .me
            .judge_answer(to, hello, &shared.links, shared.gate.as_ref())?;
        Ok(Call { outgoing, inbound })
    };
    timeout(HELLO_TIMEOUT, shake)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// How far a transfer is.
struct Course {
    transfer: SnapshotTransfer,
    /// While no thread reads from it.
    sender: Option<SnapshotSender>,
    chunks: u64,
    window: u64,
    /// The chunk that is read next; none before the receiver said where to begin.
    next: Option<u64>,
    /// The chunk that the receiver wants next.
    wanted: u64,
    told_at: Instant,
}

impl Course {
    fn may_send(&self) -> bool {
        let in_window = |next| next < self.chunks.min(self.wanted + self.window);
        self.next.is_some_and(in_window)
    }

    /// Takes what the receiver said; true when it has everything.
    fn hear(&mut self, heard: Option<pb::SnapshotFrame>) -> Result<bool, String> {
        match heard.and_then(|frame| frame.body) {
            Some(Body::Taken(_)) => return Ok(true),
            Some(Body::Next(wanted)) => {
                if wanted < self.wanted || wanted > self.next.unwrap_or(self.chunks) {
                    let chunks = self.chunks;
                    return Err(format!("it wants chunk {wanted} of {chunks} out of turn"));
                }
                self.wanted = wanted;
                self.next.get_or_insert(wanted);
            }
            _ => return Err("it ended the call".to_owned()),
        }
        if self.told_at.elapsed() >= LOOK {
            self.told_at = Instant::now();
            self.transfer.moving();
        }
        Ok(false)
    }

    /// Reads the next chunk.
    async fn read(&mut self) -> Result<Option<(u64, Bytes)>, Option<SnapshotError>> {
        let mut sender = self.sender.take().ok_or(None)?;
        let number = self.next.ok_or(None)?;
        let reading = spawn_blocking(move || {
            let chunk = sender.seek(number).and_then(|()| sender.next_chunk());
            (sender, chunk)
        });
        let (sender, chunk) = reading.await.map_err(|_| None)?;
        self.sender = Some(sender);
        self.next = Some(number + 1);
        chunk.map_err(Some)
    }
}

async fn send(
    shared: &Shared,
    transfer: SnapshotTransfer,
    sender: SnapshotSender,
    call: Call,
) -> Result<(), String> {
    let Call {
        outgoing,
        mut inbound,
    } = call;
    let manifest = sender.manifest();
    let mut course = Course {
        transfer,
        chunks: manifest.chunks(),
        window: (WINDOW_BYTES / u64::from(manifest.chunk_size.max(1))).max(2),
        sender: Some(sender),
        next: None,
        wanted: 0,
        told_at: Instant::now(),
    };
    let mut free_at = Instant::now();
    loop {
        if !course.transfer.is_wanted() {
            return Err("another one is on its way".to_owned());
        }
        let may_send = course.may_send();
        tokio::select! {
            heard = inbound.message() => {
                let heard = heard.map_err(|status| describe(&status))?;
                if course.hear(heard)? {
                    course.transfer.taken();
                    return Ok(());
                }
            }
            () = sleep_until(free_at), if may_send => {
                let (number, bytes) = match course.read().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) | Err(None) => return Err("it cannot be read to its end".to_owned()),
                    Err(Some(error)) => {
                        course.transfer.unusable();
                        return Err(error.to_string());
                    }
                };
                let micros = (bytes.len() as u64).saturating_mul(1_000_000) / shared.snapshot_bytes_per_second;
                free_at = free_at.max(Instant::now()) + Duration::from_micros(micros);
                let chunk = Body::Chunk(pb::SnapshotChunk { number, bytes });
                if outgoing.send(frame(chunk)).await.is_err() {
                    // Why it ended is what comes next from the other side.
                    course.next = Some(course.chunks);
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
