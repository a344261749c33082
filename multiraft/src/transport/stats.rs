//! What the transport tells of itself: counters per member, for metrics and for people; and whom it does not know.

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

/// For how long a member that was added may be unknown to others: who asked for it and it itself hear of it first.
const STRANGE_MAX: Duration = Duration::from_secs(5);
/// Who did not call for so long begins anew.
const STRANGER_FORGOTTEN: Duration = Duration::from_secs(60);
/// Strangers that are told apart; of more the one that was silent for longest is forgotten.
const STRANGERS_MAX: usize = 16;

/// Since when one end of a link is not known at the other.
#[derive(Debug, Default)]
pub(super) struct Strangeness {
    since: Option<Instant>,
    told: bool,
}

impl Strangeness {
    /// It is so once more; true once, when that has lasted for too long to be passing.
    pub(super) fn lasts(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_news = !self.told && now.duration_since(since) >= STRANGE_MAX;
        self.told |= is_news;
        is_news
    }
}

/// Who called and is not known, with the time of the last call.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Vec<(NodeId, Instant, Strangeness)>>);

impl Strangers {
    /// As [`Strangeness::lasts`], for whoever called.
    pub(super) fn hear(&self, claimed: NodeId, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, called, _)| now.duration_since(*called) < STRANGER_FORGOTTEN);
        let known = all.iter().position(|(id, _, _)| *id == claimed);
        // The one that called last is the last.
        let (_, _, mut strangeness) = match known {
            Some(at) => all.remove(at),
            None => (claimed, now, Strangeness::default()),
        };
        let is_news = strangeness.lasts(now);
        if all.len() == STRANGERS_MAX {
            all.remove(0);
        }
        all.push((claimed, now, strangeness));
        is_news
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stranger_is_told_of_once_when_it_stays_one() {
        let strangers = Strangers::default();
        let begin = Instant::now();
        let mut told = Vec::new();
        for second in 0..100 {
            let now = begin + Duration::from_secs(second);
            // One that calls all the time, one that stops soon, and one that begins again after a long time.
            if strangers.hear(NodeId(1), now) {
                told.push((1, second));
            }
            if second < 4 && strangers.hear(NodeId(2), now) {
                told.push((2, second));
            }
            if [0, 3, 90].contains(&second) && strangers.hear(NodeId(3), now) {
                told.push((3, second));
            }
        }
        assert_eq!(told, [(1, 5)]);
    }

    #[test]
    fn many_strangers_are_not_all_remembered() {
        let strangers = Strangers::default();
        let begin = Instant::now();
        for id in 0..100 {
            assert!(!strangers.hear(NodeId(id), begin));
        }
        assert_eq!(strangers.0.lock().unwrap().len(), STRANGERS_MAX);
        let later = begin + STRANGE_MAX;
        assert!(strangers.hear(NodeId(99), later));
        assert!(!strangers.hear(NodeId(0), later), "it was forgotten");
    }
}
