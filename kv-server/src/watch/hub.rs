//! The one event log of a keyspace: a ring of recent revisions, bounded in bytes and in count.
//!
//! Written by the applying thread, read by every feed. Publishing appends, evicts and wakes one relay per RPC thread;
//! it does nothing per watcher. The lock is held for as long as it takes to push or copy a few pointers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use crate::mvcc::{Event, EventSink, RevisionEvents};
use crate::pb::mvccpb::KeyValue;

/// Bytes that recent revisions take at most, by default.
const RING_BYTES: usize = 16 << 20;
/// Recent revisions kept at most, by default.
const RING_REVISIONS: usize = 65_536;
/// What one event costs beside its key and value.
const EVENT_OVERHEAD_BYTES: usize = 192;
/// Previous values up to this size are kept with their event once somebody asked for them.
const PREVIOUS_KEPT_BYTES: usize = 16 << 10;

type Previous = OnceLock<Option<KeyValue>>;

/// A revision in the log, with what was looked up about it.
#[derive(Debug)]
pub(super) struct Logged {
    events: Arc<RevisionEvents>,
    bytes: usize,
    previous: OnceLock<Box<[Previous]>>,
}

impl Logged {
    pub(super) fn new(events: Arc<RevisionEvents>) -> Self {
        let size = |event: &Event| event.kv.key.len() + event.kv.value.len() + EVENT_OVERHEAD_BYTES;
        let bytes = events.events.iter().map(size).sum();
        Self {
            events,
            bytes,
            previous: OnceLock::new(),
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.events.revision
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.events.events
    }

    /// About the bytes that it holds, previous values aside.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the key of an event was before it, if somebody looked already.
    pub(super) fn previous(&self, event: usize) -> Option<&Option<KeyValue>> {
        self.previous.get()?[event].get()
    }

    /// Remembers what a key was before an event, unless that is large. Returns the bytes that are held now in addition.
    fn remember(&self, event: usize, previous: &Option<KeyValue>) -> usize {
        let bytes = previous
            .as_ref()
            .map_or(0, |kv| kv.key.len() + kv.value.len() + EVENT_OVERHEAD_BYTES);
        if bytes > PREVIOUS_KEPT_BYTES {
            return 0;
        }
        let all = self
            .previous
            .get_or_init(|| self.events().iter().map(|_| Previous::new()).collect());
        match all[event].set(previous.clone()) {
            Ok(()) => bytes,
            Err(_) => 0,
        }
    }
}

struct Slot {
    logged: Arc<Logged>,
    /// Its bytes, and those of the previous values that it remembers.
    bytes: usize,
}

/// Invariant: `slots` holds the revisions from `next - slots.len()` to `next - 1`.
struct Ring {
    slots: VecDeque<Slot>,
    bytes: usize,
    next: i64,
    bytes_max: usize,
    revisions_max: usize,
}

impl Ring {
    fn first(&self) -> i64 {
        self.next - i64::try_from(self.slots.len()).expect("the ring's bound fits")
    }

    fn position(&self, revision: i64) -> Option<usize> {
        let held = revision >= self.first() && revision < self.next;
        held.then(|| usize::try_from(revision - self.first()).expect("not negative"))
    }

    fn push(&mut self, events: Arc<RevisionEvents>) {
        if events.revision != self.next {
            // After a snapshot was installed the log goes on elsewhere; what came before is no part of it.
            self.slots.clear();
            self.bytes = 0;
        }
        self.next = events.revision + 1;
        let logged = Arc::new(Logged::new(events));
        let bytes = logged.bytes();
        self.bytes += bytes;
        self.slots.push_back(Slot { logged, bytes });
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max || self.slots.len() > self.revisions_max {
            let oldest = self
                .slots
                .pop_front()
                .expect("an empty ring is within bounds");
            self.bytes -= oldest.bytes;
        }
    }
}

/// What the log has from a revision on.
#[derive(Debug)]
pub(super) enum Tail {
    /// Nothing yet.
    Nothing,
    /// These, in order, the first being the one asked for.
    Ring(Vec<Arc<Logged>>),
    /// It left the ring: the store has it, or compaction took it.
    History,
}

/// What every feed must hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signal {
    /// The newest published revision.
    pub newest: i64,
    /// Watches end now.
    pub closed: bool,
}

/// The event log. Created before the store, which publishes to it; [`WatchHub::start`] says where the store stands.
pub struct WatchHub {
    ring: Mutex<Ring>,
    /// Stored after the revision is in the ring.
    newest: AtomicI64,
    signal: watch::Sender<Signal>,
}

impl std::fmt::Debug for WatchHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchHub")
            .field("signal", &*self.signal.borrow())
            .finish_non_exhaustive()
    }
}

impl Default for WatchHub {
    fn default() -> Self {
        Self::new()
    }
}

impl WatchHub {
    /// A log that keeps up to 16 MiB, and 65,536 revisions, in memory.
    #[must_use]
    pub fn new() -> Self {
        Self::with_bounds(RING_BYTES, RING_REVISIONS)
    }

    /// A log that keeps up to so many bytes and revisions in memory. Zero is fine: then all is read from history.
    #[must_use]
    pub fn with_bounds(bytes_max: usize, revisions_max: usize) -> Self {
        let ring = Ring {
            slots: VecDeque::new(),
            bytes: 0,
            next: 0,
            bytes_max,
            revisions_max,
        };
        Self {
            ring: Mutex::new(ring),
            newest: AtomicI64::new(0),
            signal: watch::Sender::new(Signal::default()),
        }
    }

    /// Says that the store, which this hub is told of, is at `revision`. To be called before the first feed; revisions
    /// may have been published before, and the one at hand may be published right after.
    pub fn start(&self, revision: i64) {
        let _ring = self.ring();
        self.announce(revision);
    }

    /// The newest published revision.
    #[must_use]
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Ends all watches: clients hear that the server stops. To be called before the sockets close.
    pub fn close(&self) {
        self.signal.send_modify(|signal| signal.closed = true);
    }

    /// True once [`WatchHub::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.signal.borrow().closed
    }

    /// Hears of each publication; several may come as one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn ring_bytes(&self) -> usize {
        self.ring().bytes
    }

    fn announce(&self, revision: i64) {
        if self.newest.fetch_max(revision, Ordering::AcqRel) < revision {
            self.signal
                .send_modify(|signal| signal.newest = signal.newest.max(revision));
        }
    }

    /// Revisions from `from` on: at least one if there is any, then until either bound is reached.
    pub(super) fn read(&self, from: i64, bytes_max: usize, revisions_max: usize) -> Tail {
        if from > self.newest() {
            return Tail::Nothing;
        }
        let ring = self.ring();
        let Some(first) = ring.position(from) else {
            return Tail::History;
        };
        let mut bytes = 0;
        let more = |slot: &&Slot| {
            let take = bytes < bytes_max.max(1);
            bytes += slot.bytes;
            take
        };
        let slots = ring.slots.range(first..).take(revisions_max.max(1));
        let taken = slots.take_while(more).map(|slot| Arc::clone(&slot.logged));
        Tail::Ring(taken.collect())
    }

    /// Remembers previous values for the next watcher that wants them.
    pub(super) fn remember<'a>(
        &self,
        found: impl Iterator<Item = (&'a Arc<Logged>, usize, &'a Option<KeyValue>)>,
    ) {
        let grown: Vec<_> = found
            .map(|(logged, event, previous)| (logged, logged.remember(event, previous)))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        let mut ring = self.ring();
        for (logged, bytes) in grown {
            let position = ring.position(logged.revision());
            let Some(slot) = position.map(|at| &mut ring.slots[at]) else {
                continue;
            };
            if Arc::ptr_eq(&slot.logged, logged) {
                slot.bytes += bytes;
                ring.bytes += bytes;
            }
        }
        ring.evict();
    }
}

impl EventSink for WatchHub {
    fn publish(&self, revisions: &[Arc<RevisionEvents>]) {
        let Some(last) = revisions.last() else {
            return;
        };
        {
            let mut ring = self.ring();
            for events in revisions {
                ring.push(Arc::clone(events));
            }
        }
        self.announce(last.revision);
    }

    /// Nothing to do: what the ring still holds may still be sent, and who reads history learns of the floor there.
    fn compacted(&self, _revision: i64) {}

    /// Wakes all streams, so that those that may not go on end.
    fn auth_changed(&self) {
        self.signal.send_modify(|_| {});
    }

    /// Feeds find nothing of it in the ring, and read history.
    fn jumped(&self, revision: i64) {
        self.start(revision);
    }
}
