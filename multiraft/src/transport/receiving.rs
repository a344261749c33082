//! Snapshots that other members send: their chunks go to the snapshot store, and the whole of one to the host.
//!
//! The network's side passes frames on; a thread for each snapshot writes what they hold, since a disk may take its time.
//! What was received stays when the call ends early, and the next call goes on there.

use std::sync::Arc;

use raft_log::snapshot::{
    PendingSnapshot, SnapshotError, SnapshotManifest, SnapshotReceiver, SnapshotStore,
};
use raft_log::{GroupId, Index, Log, NodeId, SnapshotRef, StoreId, Term};
use raft_node::StateMachine;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::pb::snapshot_frame::Body;
use super::{Shared, pb};
use crate::{HostHandle, Reply, begin_receive};

/// Frames between the network and the disk.
const FRAMES_MAX: usize = 2;
/// Answers that the sender has not taken; more than it lets be on their way.
const ANSWERS_MAX: usize = 16;

/// Where snapshots of other members go. Both are called on threads that may wait for a disk.
pub trait SnapshotInbound: Send + Sync + 'static {
    /// As [`begin_receive`].
    ///
    /// # Errors
    /// As [`begin_receive`].
    fn begin(&self, manifest: SnapshotManifest) -> Result<Option<SnapshotReceiver>, SnapshotError>;

    /// As [`HostHandle::deliver_snapshot`].
    fn deliver(&self, from: NodeId, sent_in: Term, pending: PendingSnapshot, reply: Reply<()>);
}

/// Gives a host the snapshots that its log has a use for.
pub struct SnapshotInbox<S: StateMachine> {
    /// The host.
    pub handle: HostHandle<S>,
    /// Its log.
    pub log: Log,
    /// Where its snapshots are.
    pub store: SnapshotStore,
}

impl<S: StateMachine> std::fmt::Debug for SnapshotInbox<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotInbox").finish_non_exhaustive()
    }
}

impl<S: StateMachine> SnapshotInbound for SnapshotInbox<S>
where
    HostHandle<S>: Send + Sync + 'static,
{
    fn begin(&self, manifest: SnapshotManifest) -> Result<Option<SnapshotReceiver>, SnapshotError> {
        let status = self.handle.status(manifest.group);
        let wanted_above = status.and_then(|status| status.wants_state_above);
        begin_receive(&self.log, &self.store, manifest, wanted_above)
    }

    fn deliver(&self, from: NodeId, sent_in: Term, pending: PendingSnapshot, reply: Reply<()>) {
        self.handle.deliver_snapshot(from, sent_in, pending, reply);
    }
}

type Answers = mpsc::Sender<Result<pb::SnapshotFrame, Status>>;

fn frame(body: Body) -> pb::SnapshotFrame {
    pb::SnapshotFrame { body: Some(body) }
}

/// Takes the snapshot that `from` sends on a stream whose hello was judged. What comes back are the answers to it.
pub(super) fn take_in(
    shared: &Arc<Shared>,
    from: NodeId,
    mut inbound: Streaming<pb::SnapshotFrame>,
) -> ReceiverStream<Result<pb::SnapshotFrame, Status>> {
    let (answers, answered) = mpsc::channel(ANSWERS_MAX);
    // The channel is new and has room.
    let _ = answers.try_send(Ok(frame(Body::Hello(shared.me.hello(from)))));
    let (frames, received) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(async move {
        // A stream that ended badly and one that ended early are the same to the file.
        while let Ok(Some(frame)) = inbound.message().await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let snapshots = shared.snapshots.clone();
    spawn_blocking(move || {
        let taken = match snapshots {
            Some(snapshots) => take(snapshots.as_ref(), from, received, &answers),
            None => Err(Status::unimplemented("this member takes no snapshots")),
        };
        let last = match taken {
            Ok(()) => Ok(frame(Body::Taken(true))),
            Err(status) => {
                tracing::warn!(%from, reason = status.message(), "a snapshot was not taken");
                Err(status)
            }
        };
        // Who sent it may be gone as well.
        let _ = answers.blocking_send(last);
    });
    ReceiverStream::new(answered)
}

/// Returns once the host has the snapshot, or needs none.
fn take(
    snapshots: &dyn SnapshotInbound,
    from: NodeId,
    mut received: mpsc::Receiver<pb::SnapshotFrame>,
    answers: &Answers,
) -> Result<(), Status> {
    let failed = |error: SnapshotError| Status::aborted(error.to_string());
    let mut next_frame = || received.blocking_recv().and_then(|frame| frame.body);
    let Some(Body::Offer(offer)) = next_frame() else {
        return Err(Status::invalid_argument("no offer came"));
    };
    let sent_in = Term(offer.sent_in);
    let manifest = manifest(offer);
    let (group, index) = (manifest.group, manifest.snapshot.index);
    let Some(mut receiver) = snapshots.begin(manifest).map_err(failed)? else {
        return Ok(());
    };
    tracing::info!(
        %group, %from, %index,
        chunks = receiver.chunks(),
        begins_with = receiver.next(),
        "a snapshot comes from a member"
    );
    loop {
        let next = frame(Body::Next(receiver.next()));
        if answers.blocking_send(Ok(next)).is_err() {
            return Err(Status::cancelled("its sender is gone"));
        }
        if receiver.next() == receiver.chunks() {
            break;
        }
        match next_frame() {
            Some(Body::Chunk(chunk)) => {
                receiver.push(chunk.number, &chunk.bytes).map_err(failed)?;
            }
            Some(_) => return Err(Status::invalid_argument("something else than a chunk came")),
            None => return Err(Status::cancelled("it ended before its last chunk")),
        }
    }
    let pending = receiver.finish().map_err(failed)?;
    let (done, outcome) = oneshot::channel();
    let reply: Reply<()> = Box::new(move |result| drop(done.send(result)));
    snapshots.deliver(from, sent_in, pending, reply);
    match outcome.blocking_recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Status::aborted(error.to_string())),
        Err(_) => Err(Status::aborted("the host stopped")),
    }
}

fn manifest(offer: pb::SnapshotOffer) -> SnapshotManifest {
    SnapshotManifest {
        store: StoreId(offer.store),
        group: GroupId(offer.group),
        snapshot: SnapshotRef {
            index: Index(offer.index),
            term: Term(offer.term),
            number: offer.number,
            content_len: offer.content_len,
            content_crc: offer.content_crc,
            membership: offer.membership,
        },
        chunk_size: offer.chunk_size,
    }
}
