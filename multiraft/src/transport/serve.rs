//! The streams that other members open: what comes on them goes to the host.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use raft_log::NodeId;

use super::codec::{Item, decode_batch};
use super::directory::encode;
use super::hello::Refusal;
use super::outbox::Peer as Other;
use super::pb::peer_server::{Peer, PeerServer};
use super::pb::snapshot_frame::Body;
use super::receiving::take_in;
use super::stats::Begun;
use super::stream;
use super::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HELLO_TIMEOUT, KEEPALIVE, KEEPALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES, Shared, pb,
};
use crate::tls::Listener;

/// A member opens one stream on a connection; this many are a mistake.
const STREAMS_MAX: u32 = 16;
const HTTP_FRAME_BYTES: u32 = 1 << 20;
/// Sockets that wait to be served; the backlog holds more.
const SOCKETS_MAX: usize = 16;

/// Serves one listener; returns why it cannot go on.
pub(super) async fn listen(listener: Listener, shared: Arc<Shared>) -> String {
    let tls = listener.tls;
    let listener = match TcpListener::from_std(listener.socket) {
        Ok(listener) => listener,
        Err(error) => return format!("cannot watch a peer listener: {error}"),
    };
    let (sockets, incoming) = mpsc::channel(SOCKETS_MAX);
    let service = PeerServer::new(Service(shared)).max_decoding_message_size(FRAME_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming));
    let served = tokio::select! {
        served = server => served,
        () = stream::accept(listener, tls, sockets) => Ok(()),
    };
    match served {
        Ok(()) => "a peer listener was closed".to_owned(),
        Err(error) => format!("a peer listener failed: {error}"),
    }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl Peer for Service {
    type LinkStream = ReceiverStream<Result<pb::Frame, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let shared = &self.0;
        let mut inbound = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let (from, peer) = admit(shared, first.and_then(|frame| frame.hello))?;
        peer.counters.refused(Begun::There, None);
        peer.heard.notify_one();
        let (answers, answered) = mpsc::channel(2);
        let hello = pb::Frame {
            hello: Some(shared.me.hello(from)),
            ..pb::Frame::default()
        };
        // The channel is new and has room.
        let _ = answers.try_send(Ok(hello));
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            if let Err(status) = receive(&shared, from, &peer, inbound).await {
                tracing::info!(%from, reason = status.message(), "a member's stream ended");
                // Who called may be gone as well.
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    type SnapshotStream = ReceiverStream<Result<pb::SnapshotFrame, Status>>;

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let shared = &self.0;
        let mut inbound = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let hello = match first.and_then(|frame| frame.body) {
            Some(Body::Hello(hello)) => Some(hello),
            _ => None,
        };
        let (from, _) = admit(shared, hello)?;
        Ok(Response::new(take_in(shared, from, inbound)))
    }

    async fn members(
        &self,
        _request: Request<pb::MembersRequest>,
    ) -> Result<Response<pb::MembersResponse>, Status> {
        match &self.0.directory {
            Some(directory) => Ok(Response::new(encode(directory.view()))),
            None => Err(Status::unimplemented("this member has no list of members")),
        }
    }
}

/// Who called, if it may.
fn admit(shared: &Shared, hello: Option<pb::Hello>) -> Result<(NodeId, Arc<Other>), Status> {
    let judged = shared.me.judge(hello, &shared.links, shared.gate.as_ref());
    let judged = judged.and_then(|from| {
        // It may have left meanwhile.
        let peer = shared.links.get(from);
        peer.map(|peer| (from, peer))
            .ok_or_else(|| gone(shared, from))
    });
    judged.map_err(|refusal| {
        // Named although it is not admitted, so that its owner is told whom we refuse.
        let claimed = NodeId(hello.map_or(0, |hello| hello.member));
        let peer = shared.links.get(claimed);
        let counters = peer.as_ref().map(|peer| &peer.counters);
        let reason = refusal.to_string();
        let counters = counters.unwrap_or(&shared.strangers);
        let is_news = match &refusal {
            Refusal::Unknown(_) => shared.unknown.hear(claimed, Instant::now()),
            _ => counters.refused(Begun::There, Some(reason.clone())),
        };
        if is_news {
            tracing::warn!(from = %claimed, reason, "refused a member that called");
        } else {
            tracing::debug!(from = %claimed, reason, "refused a member that called");
        }
        refusal.into()
    })
}

/// What is said to a member that left.
fn gone(shared: &Shared, from: NodeId) -> Refusal {
    if shared.links.is_removed(from) {
        return Refusal::Removed;
    }
    Refusal::Other(format!("{:x} is no member any more", from.0))
}

/// Hands over what a member sends, until it ends the stream or leaves.
async fn receive(
    shared: &Shared,
    from: NodeId,
    peer: &Other,
    mut inbound: Streaming<pb::Frame>,
) -> Result<(), Status> {
    let mut urls = peer.urls.subscribe();
    loop {
        let frame = tokio::select! {
            frame = inbound.message() => frame?,
            // The sender is the peer's own, so this never fails.
            _ = urls.wait_for(Vec::is_empty) => return Err(gone(shared, from).into()),
        };
        let Some(frame) = frame else {
            return Ok(());
        };
        peer.counters.received(frame.batch.len());
        let (items, beat) =
            decode_batch(frame).map_err(|error| Status::data_loss(error.to_string()))?;
        if let Some((beat, echo)) = beat {
            let took = peer.trips.received(beat.number, echo);
            if let (Some(took), Some(observer)) = (took, shared.trip_observer.get()) {
                observer(from, took);
            }
            shared.inbound.beat(from, beat);
        }
        for item in items {
            match item {
                Item::Raft(group, message) => shared.inbound.deliver(group, from, message),
                Item::Forward(group, message) => shared.inbound.forward(group, from, message),
            }
        }
    }
}
