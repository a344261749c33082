//! A cursor for somebody inside the server who waits for one kind of event, without a client's stream.
//!
//! Unlike a [`Feed`](super::Feed) it never reads history: who has fallen behind the ring is told of a gap, and reads the
//! state instead.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::hub::{Signal, Tail, WatchHub};
use crate::mvcc::Event;

/// What is taken from the ring at a time.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNK_REVISIONS: usize = 1_000;

/// What a [`Follower`] saw.
#[derive(Debug, PartialEq)]
pub enum Followed {
    /// An event that was looked for, and its revision.
    Event(Event, i64),
    /// Events from the cursor on are no longer in memory. The cursor stays; go on with a new follower.
    Gap,
    /// The server stops.
    Closed,
}

/// A cursor into the log of events.
#[derive(Debug)]
pub struct Follower {
    hub: Arc<WatchHub>,
    signal: watch::Receiver<Signal>,
    next: i64,
    pending: VecDeque<(Event, i64)>,
}

impl Follower {
    /// Sees events from `revision` on.
    #[must_use]
    pub fn new(hub: Arc<WatchHub>, revision: i64) -> Self {
        let signal = hub.subscribe();
        Self {
            hub,
            signal,
            next: revision,
            pending: VecDeque::new(),
        }
    }

    /// Waits for the next event that `wanted` accepts; always the same function, as events that it refuses are passed.
    /// Can be dropped at any time, and called again.
    pub async fn next(&mut self, wanted: impl Fn(&Event) -> bool) -> Followed {
        loop {
            if let Some((event, revision)) = self.pending.pop_front() {
                return Followed::Event(event, revision);
            }
            // Before the log is looked at: what is published afterwards is seen as a change.
            if self.signal.borrow_and_update().closed {
                return Followed::Closed;
            }
            match self.hub.read(self.next, CHUNK_BYTES, CHUNK_REVISIONS) {
                Tail::Nothing => self.signal.changed().await.expect("this holds the hub"),
                Tail::History => return Followed::Gap,
                Tail::Ring(revisions) => {
                    for logged in revisions {
                        let revision = logged.revision();
                        let events = logged.events().iter().filter(|event| wanted(event));
                        self.pending
                            .extend(events.map(|event| (event.clone(), revision)));
                        self.next = revision + 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{EventKind, EventSink, RevisionEvents};
    use crate::pb::mvccpb::KeyValue;

    fn publish(hub: &WatchHub, revision: i64, keys: &[&'static str]) {
        let event = |key: &&'static str| Event {
            kind: EventKind::Put,
            kv: KeyValue {
                key: (*key).into(),
                mod_revision: revision,
                ..Default::default()
            },
        };
        let events = keys.iter().map(event).collect();
        hub.publish(&[Arc::new(RevisionEvents { revision, events })]);
    }

    fn is_a(event: &Event) -> bool {
        event.kv.key.starts_with(b"a")
    }

    async fn next(follower: &mut Follower) -> (Vec<u8>, i64) {
        match follower.next(is_a).await {
            Followed::Event(event, revision) => (event.kv.key.to_vec(), revision),
            other => panic!("expected an event, found {other:?}"),
        }
    }

    #[tokio::test]
    async fn events_are_seen_once_and_in_order_across_revisions() {
        let hub = Arc::new(WatchHub::new());
        hub.start(1);
        publish(&hub, 2, &["a0"]);
        let mut follower = Follower::new(Arc::clone(&hub), 3);
        publish(&hub, 3, &["b", "a1", "a2"]);
        publish(&hub, 4, &["b"]);
        assert_eq!(next(&mut follower).await, (b"a1".to_vec(), 3));
        publish(&hub, 5, &["a3"]);
        assert_eq!(next(&mut follower).await, (b"a2".to_vec(), 3));
        assert_eq!(next(&mut follower).await, (b"a3".to_vec(), 5));
        let (later, ()) = tokio::join!(next(&mut follower), async {
            tokio::task::yield_now().await;
            publish(&hub, 6, &["a4"]);
        });
        assert_eq!(later, (b"a4".to_vec(), 6));
        hub.close();
        assert_eq!(follower.next(is_a).await, Followed::Closed);
    }

    #[tokio::test]
    async fn events_that_left_the_ring_are_a_gap() {
        let hub = Arc::new(WatchHub::with_bounds(0, 0));
        hub.start(1);
        let mut follower = Follower::new(Arc::clone(&hub), 2);
        publish(&hub, 2, &["a"]);
        assert_eq!(follower.next(is_a).await, Followed::Gap);
    }
}
