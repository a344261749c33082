//! The stream to one member: dialled, kept, and dialled again.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use raft_log::NodeId;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::codec::encode_batch;
use super::hello::{REMOVED, REMOVED_ADVICE, Refusal};
use super::outbox::Peer;
use super::pb::peer_client::PeerClient;
use super::stats::{Begun, Strangeness};
use super::{FRAME_BYTES_MAX, HELLO_TIMEOUT, KEEPALIVE, KEEPALIVE_TIMEOUT, Shared, pb};
use crate::tls::{self, ClientTls};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long to wait before the next try: doubled each time, and never quite what the others wait.
struct Pauses {
    next: Duration,
    random: u64,
}

impl Pauses {
    fn new(seed: u64) -> Self {
        let next = PAUSE_MIN;
        // Xorshift stays at zero.
        let random = seed.max(1);
        Self { next, random }
    }

    fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// Between a half of the pause and all of it.
    fn next(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let whole = self.next;
        self.next = (whole * 2).min(PAUSE_MAX);
        let share = u32::try_from(self.random % 512).expect("below 512");
        whole / 2 + whole * share / 1024
    }
}

/// Keeps a link to a member for as long as it is one. Returns a reason when this member is none any more.
pub(super) async fn keep(
    shared: Arc<Shared>,
    to: NodeId,
    peer: Arc<Peer>,
    seed: u64,
) -> Option<String> {
    let mut pauses = Pauses::new(seed);
    let mut strange = Strangeness::default();
    let mut moved = peer.urls.subscribe();
    let mut urls = Vec::new().into_iter();
    loop {
        let url: String = match urls.next() {
            Some(url) => url,
            None => {
                urls = moved.borrow_and_update().clone().into_iter();
                urls.next()?
            }
        };
        // What it is in the middle of when the URLs change ends where it is; what was queued is told of.
        let ended = tokio::select! {
            ended = hold(&shared, &peer, to, &url) => ended,
            _ = moved.changed() => {
                urls = Vec::new().into_iter();
                continue;
            }
        };
        match ended {
            Ended::Lost(reason) => {
                tracing::info!(%to, url, reason, "the link to a member is down");
                pauses.reset();
                strange = Strangeness::default();
            }
            Ended::Failed(reason) => {
                if peer.counters.refused(Begun::Here, Some(reason.clone())) {
                    tracing::warn!(%to, url, reason, "cannot link to a member");
                }
            }
            // A member that was just added may have heard of that before the one that it calls.
            Ended::Unknown(reason) => {
                peer.counters.refused(Begun::Here, Some(reason.clone()));
                if strange.lasts(Instant::now()) {
                    tracing::warn!(%to, url, reason, "cannot link to a member");
                } else {
                    tracing::debug!(%to, url, reason, "cannot link to a member yet");
                }
            }
            Ended::Removed => {
                tracing::error!(%to, url, "a member says that this one was removed");
                return Some(REMOVED_ADVICE.to_owned());
            }
        }
        tokio::select! {
            () = sleep(pauses.next()) => {}
            () = peer.heard.notified() => {}
            _ = moved.changed() => urls = Vec::new().into_iter(),
        }
    }
}

enum Ended {
    /// It was up.
    Lost(String),
    /// It never was.
    Failed(String),
    /// It never was, and the other side does not know this member.
    Unknown(String),
    /// The other side says that this member was removed.
    Removed,
}

/// A link that is up. Dropped, whenever that is, what waited for it is told of.
struct Held<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    link: u64,
}

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, peer: &'a Peer, link: u64) -> Self {
        peer.queue.open(link);
        peer.counters.linked(true);
        Self { shared, peer, link }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.peer.counters.linked(false);
        for item in self.peer.queue.close(self.link) {
            self.peer.counters.dropped();
            self.peer
                .queue
                .bounce(Some(self.shared.inbound.as_ref()), item);
        }
    }
}

/// One link, from the connection to its end.
async fn hold(shared: &Shared, peer: &Arc<Peer>, to: NodeId, url: &str) -> Ended {
    let link = peer.next_link();
    let mut inbound = match open(shared, peer, to, url, link).await {
        Ok(inbound) => inbound,
        Err(Refusal::Removed) => return Ended::Removed,
        Err(Refusal::Unknown(reason)) => return Ended::Unknown(reason),
        Err(Refusal::Other(reason)) => return Ended::Failed(reason),
    };
    let _held = Held::new(shared, peer, link);
    tracing::info!(%to, url, "linked to a member");
    loop {
        match inbound.message().await {
            // Nothing is said after the hello, in this version.
            Ok(Some(_)) => {}
            Ok(None) => return Ended::Lost("it was closed".to_owned()),
            Err(status) => match refusal(&status) {
                Refusal::Removed => return Ended::Removed,
                Refusal::Unknown(reason) | Refusal::Other(reason) => return Ended::Lost(reason),
            },
        }
    }
}

/// Connects and shakes hands.
async fn open(
    shared: &Shared,
    peer: &Arc<Peer>,
    to: NodeId,
    url: &str,
    link: u64,
) -> Result<tonic::Streaming<pb::Frame>, Refusal> {
    let shake = async {
        let mut client = connect(url, shared.tls.as_ref()).await?;
        let outgoing = Outgoing {
            hello: Some(pb::Frame {
                hello: Some(shared.me.hello(to)),
                ..pb::Frame::default()
            }),
            peer: Arc::clone(peer),
            link,
        };
        let response = client.link(outgoing).await;
        let response = response.map_err(|status| refusal(&status))?;
        let mut inbound = response.into_inner();
        let first = inbound.message().await;
        let first = first.map_err(|status| refusal(&status))?;
        let hello = first.and_then(|frame| frame.hello);
        shared
            .me
            .judge_answer(to, hello, &shared.links, shared.gate.as_ref())?;
        Ok(inbound)
    };
    timeout(HELLO_TIMEOUT, shake)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned().into()))
}

/// A connection of its own to one of a member's URLs.
pub(super) async fn connect(
    url: &str,
    tls: Option<&ClientTls>,
) -> Result<PeerClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| chain(&error))?
        .connect_timeout(HELLO_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = tls::connect(&endpoint, tls).await;
    let channel = channel.map_err(|error| chain(&error))?;
    Ok(PeerClient::new(channel).max_encoding_message_size(FRAME_BYTES_MAX))
}

/// Why the other side does not want us, or what became of the connection.
fn refusal(status: &Status) -> Refusal {
    // The text as well: what stands between members, such as a proxy, has refusals of its own.
    if status.code() == Code::PermissionDenied && status.message() == REMOVED {
        return Refusal::Removed;
    }
    if status.code() == Code::NotFound {
        return Refusal::Unknown(describe(status));
    }
    Refusal::Other(describe(status))
}

/// What the other side said, or what became of the connection.
pub(super) fn describe(status: &Status) -> String {
    match status.code() {
        Code::FailedPrecondition | Code::NotFound => format!("it refuses us: {}", status.message()),
        _ => match status.source() {
            Some(source) => chain(source),
            None => status.message().to_owned(),
        },
    }
}

/// An error with its sources: the outermost says only which layer failed.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// What is sent on a link: the hello, and from then on the queue, as fast as the network takes it.
struct Outgoing {
    hello: Option<pb::Frame>,
    peer: Arc<Peer>,
    link: u64,
}

impl Stream for Outgoing {
    type Item = pb::Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<pb::Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello));
        }
        let (items, beat) = ready!(self.peer.queue.poll_take(self.link, context));
        let beat = beat.map(|beat| (beat, self.peer.trips.sent(beat.number)));
        let (frame, bytes) = encode_batch(items, beat);
        self.peer.counters.sent(bytes);
        Poll::Ready(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_with_jitter_and_start_again_after_a_link() {
        let mut pauses = Pauses::new(7);
        let mut whole = PAUSE_MIN;
        let mut distinct = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let pause = pauses.next();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{pause:?} of {whole:?}"
            );
            distinct.insert(pause);
            whole = (whole * 2).min(PAUSE_MAX);
        }
        assert!(distinct.len() > 15, "{distinct:?}");
        pauses.reset();
        assert!(pauses.next() <= PAUSE_MIN);
    }
}
