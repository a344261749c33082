//! What the transport tells of itself: counters per member, for metrics and for people.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raft_log::NodeId;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Since when messages can be sent.
    linked: Mutex<Option<Instant>>,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    messages_dropped: AtomicU64,
    links: AtomicU64,
    /// Why a link could not be made, one for each end that can begin one.
    refusals: Mutex<[Option<String>; 2]>,
}

/// Who began a link that could not be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begun {
    /// This member.
    Here,
    /// The other one.
    There,
}

impl Counters {
    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes_received
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.messages_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn linked(&self, linked: bool) {
        *self.linked.lock().unwrap_or_else(PoisonError::into_inner) = linked.then(Instant::now);
        if linked {
            self.links.fetch_add(1, Ordering::Relaxed);
            self.refused(Begun::Here, None);
        }
    }

    /// Notes why there is no link, or that there is one; true when that is news.
    pub(super) fn refused(&self, begun: Begun, reason: Option<String>) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = &mut refusals[begun as usize];
        let is_news = *refusal != reason;
        *refusal = reason;
        is_news
    }

    pub(super) fn status(&self, id: NodeId, waiting: (usize, usize)) -> PeerStatus {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let linked = *self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        PeerStatus {
            id,
            linked: linked.is_some(),
            linked_for: linked.map(|since| since.elapsed()),
            links: self.links.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            messages_dropped: self.messages_dropped.load(Ordering::Relaxed),
            messages_waiting: waiting.0,
            bytes_waiting: waiting.1,
            refusal: refusals.iter().flatten().next().cloned(),
        }
    }
}

/// How the link to one member is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member.
    pub id: NodeId,
    /// Messages can be sent to it.
    pub linked: bool,
    /// For how long, without a break.
    pub linked_for: Option<Duration>,
    /// How often a link to it came up.
    pub links: u64,
    /// Bytes of messages sent to it.
    pub bytes_sent: u64,
    /// Bytes of messages received from it.
    pub bytes_received: u64,
    /// Messages that found no link, or no room.
    pub messages_dropped: u64,
    /// Messages that wait to be sent.
    pub messages_waiting: usize,
    /// Their bytes.
    pub bytes_waiting: usize,
    /// Why there is no link.
    pub refusal: Option<String>,
}
