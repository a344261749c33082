//! The stream to one member: dialled, kept, and dialled again.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use raft_log::NodeId;
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::codec::encode_batch;
use super::outbox::Peer;
use super::pb::peer_client::PeerClient;
use super::stats::Begun;
use super::{FRAME_BYTES_MAX, HELLO_TIMEOUT, KEEPALIVE, KEEPALIVE_TIMEOUT, Shared, pb};

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

/// Keeps a link to a member. Never returns, except when the member has no URL.
pub(super) async fn keep(shared: Arc<Shared>, to: NodeId, urls: Vec<String>, seed: u64) -> String {
    if urls.is_empty() {
        return format!("member {:x} has no peer URL", to.0);
    }
    let peer = Arc::clone(&shared.links.peers[&to]);
    let mut pauses = Pauses::new(seed);
    for (link, url) in (1_u64..).zip(urls.iter().cycle()) {
        let ended = hold(&shared, &peer, to, url, link).await;
        match ended {
            Ended::Lost(reason) => {
                tracing::info!(%to, url, reason, "the link to a member is down");
                pauses.reset();
            }
            Ended::Failed(reason) => {
                if peer.counters.refused(Begun::Here, Some(reason.clone())) {
                    tracing::warn!(%to, url, reason, "cannot link to a member");
                }
            }
        }
        tokio::select! {
            () = sleep(pauses.next()) => {}
            () = shared.heard[&to].notified() => {}
        }
    }
    unreachable!("there is always a next try");
}

enum Ended {
    /// It was up.
    Lost(String),
    /// It never was.
    Failed(String),
}

/// One link, from the connection to its end.
async fn hold(shared: &Shared, peer: &Arc<Peer>, to: NodeId, url: &str, link: u64) -> Ended {
    let mut inbound = match open(shared, peer, to, url, link).await {
        Ok(inbound) => inbound,
        Err(reason) => return Ended::Failed(reason),
    };
    peer.queue.open(link);
    peer.counters.linked(true);
    tracing::info!(%to, url, "linked to a member");
    let reason = loop {
        match inbound.message().await {
            // Nothing is said after the hello, in this version.
            Ok(Some(_)) => {}
            Ok(None) => break "it was closed".to_owned(),
            Err(status) => break describe(&status),
        }
    };
    peer.counters.linked(false);
    for item in peer.queue.close(link) {
        peer.counters.dropped();
        peer.queue.bounce(Some(shared.inbound.as_ref()), item);
    }
    Ended::Lost(reason)
}

/// Connects and shakes hands.
async fn open(
    shared: &Shared,
    peer: &Arc<Peer>,
    to: NodeId,
    url: &str,
    link: u64,
) -> Result<tonic::Streaming<pb::Frame>, String> {
    let shake = async {
        let mut client = connect(url).await?;
        let outgoing = Outgoing {
            hello: Some(pb::Frame {
                hello: Some(shared.me.hello(to)),
                ..pb::Frame::default()
            }),
            peer: Arc::clone(peer),
            link,
        };
        let response = client.link(outgoing).await;
        let mut inbound = response.map_err(|status| describe(&status))?.into_inner();
        let first = inbound
            .message()
            .await
            .map_err(|status| describe(&status))?;
        let hello = first.and_then(|frame| frame.hello);
        shared
            .me
            .judge_answer(to, hello, &shared.links, shared.gate.as_ref())?;
        Ok(inbound)
    };
    timeout(HELLO_TIMEOUT, shake)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// A connection of its own to one of a member's URLs.
pub(super) async fn connect(url: &str) -> Result<PeerClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| chain(&error))?
        .connect_timeout(HELLO_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
    Ok(PeerClient::new(channel).max_encoding_message_size(FRAME_BYTES_MAX))
}

/// What the other side said, or what became of the connection.
pub(super) fn describe(status: &Status) -> String {
    match status.code() {
        Code::FailedPrecondition => format!("it refuses us: {}", status.message()),
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
