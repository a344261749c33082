//! What waits to be sent to one member: bounded in messages and in bytes, and open only while a link is up.
//!
//! The host's thread fills it and never waits; the link's stream empties it when the network takes more, so that what
//! arrives meanwhile leaves in one frame. Without a link, and past a bound, messages are lost, as on a network. A command
//! that is lost before it left is told to whoever forwarded it as not proposed, which is the truth.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use raft_log::NodeId;

use super::codec::Item;
use super::{Inbound, QueueLimits};
use crate::forward::ForwardMessage;
use crate::liveness::Beat;

/// Bytes of one frame, about; a message that is longer has a frame of its own.
const FRAME_BYTES: usize = 1 << 20;

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Of the items.
    bytes: usize,
    /// The newest one that was not sent.
    beat: Option<Beat>,
    /// Which link empties it.
    link: Option<u64>,
    /// Of the newest link that found nothing; an older one is on its way out and must not take its place.
    waker: Option<(u64, Waker)>,
}

/// The queue to one member.
pub(super) struct Queue {
    to: NodeId,
    limits: QueueLimits,
    state: Mutex<State>,
}

impl Queue {
    pub(super) fn new(to: NodeId, limits: QueueLimits) -> Self {
        let state = Mutex::default();
        Self { to, limits, state }
    }

    /// Queues a message, or gives it back.
    pub(super) fn push(&self, item: Item) -> Result<(), Item> {
        let cost = item.cost();
        let mut state = self.lock();
        // A message longer than the bound passes when it is alone, or it never would.
        let is_full = state.items.len() >= self.limits.messages_max
            || (state.bytes + cost > self.limits.bytes_max && !state.items.is_empty());
        if state.link.is_none() || is_full {
            return Err(item);
        }
        state.bytes += cost;
        state.items.push_back(item);
        wake(state);
        Ok(())
    }

    /// Sends a beat with the next frame; one that still waits is out of date.
    pub(super) fn beat(&self, beat: Beat) {
        let mut state = self.lock();
        if state.link.is_some() {
            state.beat = Some(beat);
            wake(state);
        }
    }

    /// Lets `link` empty the queue, from now on and alone.
    pub(super) fn open(&self, link: u64) {
        let mut state = self.lock();
        state.link = Some(link);
        wake(state);
    }

    /// The link is down. What it has not taken is returned: it never left.
    pub(super) fn close(&self, link: u64) -> VecDeque<Item> {
        let mut state = self.lock();
        if state.link != Some(link) {
            return VecDeque::new();
        }
        (state.link, state.beat, state.bytes) = (None, None, 0);
        std::mem::take(&mut state.items)
    }

    /// The next frame's content for `link`.
    pub(super) fn poll_take(
        &self,
        link: u64,
        context: &mut Context<'_>,
    ) -> Poll<(Vec<Item>, Option<Beat>)> {
        let mut state = self.lock();
        let mine = state.link == Some(link);
        if !mine || (state.items.is_empty() && state.beat.is_none()) {
            if state.waker.as_ref().is_none_or(|(other, _)| *other <= link) {
                state.waker = Some((link, context.waker().clone()));
            }
            return Poll::Pending;
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(cost) = state.items.front().map(Item::cost)
            && (items.is_empty() || bytes + cost <= FRAME_BYTES)
        {
            items.extend(state.items.pop_front());
            bytes += cost;
        }
        state.bytes -= bytes;
        Poll::Ready((items, state.beat.take()))
    }

    /// Messages and bytes that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.lock();
        (state.items.len(), state.bytes)
    }

    /// Tells who forwarded a command that it was not proposed; other messages are just lost.
    pub(super) fn bounce(&self, inbound: Option<&dyn Inbound>, item: Item) {
        let Item::Forward(
            group,
            ForwardMessage::Propose {
                boot,
                sequence,
                attempt,
                ..
            },
        ) = item
        else {
            return;
        };
        if let Some(inbound) = inbound {
            let refused = ForwardMessage::NotProposed {
                boot,
                sequence,
                attempt,
            };
            inbound.forward(group, self.to, refused);
        }
    }

    /// Each change is complete when the lock is let go, whatever panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some((_, waker)) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use raft_log::{GroupId, Index, Term};
    use raft_node::core::{Body, Message};

    use super::*;

    const GROUP: GroupId = GroupId(1);
    const LIMITS: QueueLimits = QueueLimits {
        messages_max: 3,
        bytes_max: 1_000,
    };

    fn heartbeat(round: u64) -> Item {
        let body = Body::Heartbeat {
            commit: Index(1),
            round,
        };
        Item::Raft(
            GROUP,
            Message {
                term: Term(1),
                incarnation: 0,
                body,
            },
        )
    }

    fn propose(sequence: u64, bytes: usize) -> Item {
        Item::Forward(
            GROUP,
            ForwardMessage::Propose {
                boot: 1,
                sequence,
                attempt: 1,
                payload: Bytes::from(vec![0; bytes]),
            },
        )
    }

    fn take(queue: &Queue, link: u64) -> Option<(Vec<Item>, Option<Beat>)> {
        match queue.poll_take(link, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    #[test]
    fn queue_without_a_link_takes_nothing() {
        let queue = Queue::new(NodeId(2), LIMITS);
        assert!(queue.push(heartbeat(1)).is_err());
        queue.open(1);
        assert!(queue.push(heartbeat(2)).is_ok());
        assert_eq!(take(&queue, 2), None);
        assert_eq!(take(&queue, 1), Some((vec![heartbeat(2)], None)));
        assert_eq!(take(&queue, 1), None);
    }

    #[test]
    fn queue_past_its_bounds_gives_messages_back() {
        let queue = Queue::new(NodeId(2), LIMITS);
        queue.open(1);
        assert!(
            queue.push(propose(1, 2_000)).is_ok(),
            "alone it may be longer"
        );
        assert!(queue.push(propose(2, 1)).is_err());
        take(&queue, 1);
        for round in 0..3 {
            assert!(queue.push(heartbeat(round)).is_ok());
        }
        assert_eq!(queue.push(heartbeat(3)), Err(heartbeat(3)));
        assert_eq!(take(&queue, 1).map(|(items, _)| items.len()), Some(3));
        assert_eq!(queue.waiting(), (0, 0));
    }

    #[test]
    fn frame_ends_at_its_bound_and_a_longer_message_has_its_own() {
        let limits = QueueLimits::default();
        let queue = Queue::new(NodeId(2), limits);
        queue.open(1);
        for (sequence, bytes) in [(1, FRAME_BYTES + 1), (2, FRAME_BYTES / 2), (3, FRAME_BYTES)] {
            assert!(queue.push(propose(sequence, bytes)).is_ok());
        }
        for _ in 0..3 {
            assert_eq!(take(&queue, 1).map(|(items, _)| items.len()), Some(1));
        }
        assert_eq!(take(&queue, 1), None);
    }

    #[test]
    fn closed_queue_returns_what_never_left_and_an_older_link_closes_nothing() {
        let queue = Queue::new(NodeId(2), LIMITS);
        queue.open(1);
        queue.open(2);
        assert!(queue.push(heartbeat(1)).is_ok());
        assert_eq!(queue.close(1).len(), 0);
        assert_eq!(queue.close(2), [heartbeat(1)]);
        assert!(queue.push(heartbeat(2)).is_err());
    }
}
