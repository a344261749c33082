//! The commands of one group that this member has under way at a leader.
//!
//! A pure table: the host says what time it is, who leads, what was refused and what was applied; the lane says what to
//! send, and answers callers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft_log::NodeId;

use super::{ForwardLimits, OPEN_SEQUENCES_MAX, Origin, RETRY_TICKS, Stamp};
use crate::testing::{Bug, bug};
use crate::{HostError, Reply};

/// A command to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) sequence: u64,
    pub(crate) attempt: u32,
    /// With its origin.
    pub(crate) payload: Bytes,
}

struct Open<O> {
    payload: Bytes,
    reply: Reply<O>,
    /// How often it was sent; once it was, its outcome can only be seen by applying.
    attempt: u32,
    /// Set while it waits to be sent, with whom not to ask before that tick.
    due: Option<u64>,
    /// Who refused it last.
    refused_by: Option<NodeId>,
}

/// Invariant: `open` lies within `lowest..lowest + OPEN_SEQUENCES_MAX`, `lowest` its first.
pub(crate) struct Lane<O> {
    member: NodeId,
    boot: u64,
    next_sequence: u64,
    open: BTreeMap<u64, Open<O>>,
    /// Of the open commands' payloads.
    bytes: usize,
    /// Those that wait to be sent, oldest first.
    unsent: BTreeSet<u64>,
    /// When each is over, in the order in which they were opened; some are closed already.
    expiries: VecDeque<(u64, u64)>,
}

impl<O> Lane<O> {
    pub(crate) fn new(member: NodeId, boot: u64) -> Self {
        Self {
            member,
            boot,
            next_sequence: 1,
            open: BTreeMap::new(),
            bytes: 0,
            unsent: BTreeSet::new(),
            expiries: VecDeque::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn lowest_open(&self) -> u64 {
        self.open
            .first_key_value()
            .map_or(self.next_sequence, |(lowest, _)| *lowest)
    }

    /// Takes a command on, or answers that there is no room.
    pub(crate) fn open(
        &mut self,
        now: u64,
        limits: &ForwardLimits,
        payload: Bytes,
        reply: Reply<O>,
    ) {
        let is_full = self.next_sequence - self.lowest_open() >= OPEN_SEQUENCES_MAX;
        if is_full || self.bytes >= limits.bytes_max {
            return reply(Err(HostError::Busy));
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.bytes += payload.len();
        self.unsent.insert(sequence);
        self.expiries
            .push_back((now.saturating_add(limits.timeout_ticks), sequence));
        let open = Open {
            payload,
            reply,
            attempt: 0,
            due: Some(now),
            refused_by: None,
        };
        self.open.insert(sequence, open);
    }

    /// What to send to `leader` now.
    pub(crate) fn take_due(&mut self, now: u64, leader: NodeId, stamp: Stamp) -> Vec<Outgoing> {
        let lowest_open = self.lowest_open();
        let mut sends = Vec::new();
        self.unsent.retain(|sequence| {
            let open = self.open.get_mut(sequence).expect("what is unsent is open");
            let due = open.due.expect("what is unsent waits");
            if due > now && open.refused_by == Some(leader) {
                return true;
            }
            open.due = None;
            open.attempt += 1;
            let origin = Origin {
                member: self.member,
                boot: self.boot,
                sequence: *sequence,
                lowest_open,
            };
            sends.push(Outgoing {
                sequence: *sequence,
                attempt: open.attempt,
                payload: stamp(&origin, &open.payload),
            });
            false
        });
        sends
    }

    /// `by` has not proposed an attempt. Only the newest one counts: an earlier one was refused before.
    pub(crate) fn refused(&mut self, now: u64, by: NodeId, sequence: u64, attempt: u32) {
        if let Some(open) = self.open.get_mut(&sequence)
            && open.attempt == attempt
            && open.due.is_none()
        {
            open.due = Some(now + RETRY_TICKS);
            open.refused_by = Some(by);
            self.unsent.insert(sequence);
        }
    }

    /// A command was applied.
    pub(crate) fn applied(&mut self, sequence: u64, output: O) {
        if let Some(open) = self.close(sequence) {
            (open.reply)(Ok(output));
        }
    }

    /// The state jumped over entries: whatever was sent may be among them.
    pub(crate) fn jumped(&mut self) {
        let sent = self.open.iter().filter(|(_, open)| open.attempt > 0);
        let sent: Vec<_> = sent.map(|(sequence, _)| *sequence).collect();
        for sequence in sent {
            self.give_up(sequence);
        }
    }

    /// Answers those whose time is over.
    pub(crate) fn expire(&mut self, now: u64) {
        while let Some((at, sequence)) = self.expiries.front().copied() {
            if at > now && self.open.contains_key(&sequence) {
                return;
            }
            self.expiries.pop_front();
            self.give_up(sequence);
        }
    }

    /// Answers everybody: the host stops.
    pub(crate) fn fail(&mut self) {
        while let Some((sequence, _)) = self.open.first_key_value() {
            let sequence = *sequence;
            let open = self.close(sequence).expect("it was just seen");
            (open.reply)(Err(if open.attempt > 0 {
                HostError::OutcomeUnknown
            } else {
                HostError::Stopped
            }));
        }
    }

    /// The next tick at which something is over, or, with a leader that is known, to be sent.
    pub(crate) fn deadline(&self, leader: Option<NodeId>) -> Option<u64> {
        let over = self.expiries.front().map(|(at, _)| *at);
        let due = leader.and_then(|_| {
            let unsent = self.unsent.iter();
            unsent.filter_map(|sequence| self.open[sequence].due).min()
        });
        over.into_iter().chain(due).min()
    }

    fn give_up(&mut self, sequence: u64) {
        if let Some(open) = self.close(sequence) {
            (open.reply)(Err(if open.attempt > 0 && !bug(Bug::TimeoutAsRefusal) {
                HostError::OutcomeUnknown
            } else {
                HostError::Timeout
            }));
        }
    }

    fn close(&mut self, sequence: u64) -> Option<Open<O>> {
        let open = self.open.remove(&sequence)?;
        self.unsent.remove(&sequence);
        self.bytes -= open.payload.len();
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const LIMITS: ForwardLimits = ForwardLimits {
        bytes_max: 1 << 20,
        asks_max: 4,
        timeout_ticks: 700,
    };
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn stamp(origin: &Origin, payload: &[u8]) -> Bytes {
        let Origin {
            sequence,
            lowest_open,
            ..
        } = origin;
        format!(
            "{sequence}/{lowest_open} {}",
            String::from_utf8_lossy(payload)
        )
        .into()
    }

    /// What each caller heard.
    type Heard = Vec<(u32, Result<u32, HostError>)>;

    /// A lane, and what its callers heard.
    struct Rig {
        lane: Lane<u32>,
        heard: Arc<Mutex<Heard>>,
        callers: u32,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                lane: Lane::new(NodeId(9), 3),
                heard: Arc::default(),
                callers: 0,
            }
        }

        fn open(&mut self, now: u64, payload: &str) {
            self.callers += 1;
            let (caller, heard) = (self.callers, Arc::clone(&self.heard));
            let reply = Box::new(move |result| heard.lock().unwrap().push((caller, result)));
            self.lane.open(
                now,
                &LIMITS,
                Bytes::copy_from_slice(payload.as_bytes()),
                reply,
            );
        }

        fn sends(&mut self, now: u64, leader: NodeId) -> Vec<(u64, u32, String)> {
            let sends = self.lane.take_due(now, leader, stamp);
            let text = |payload: &Bytes| String::from_utf8(payload.to_vec()).unwrap();
            let one = |send: Outgoing| (send.sequence, send.attempt, text(&send.payload));
            sends.into_iter().map(one).collect()
        }

        fn heard(&self) -> Heard {
            std::mem::take(&mut self.heard.lock().unwrap())
        }
    }

    #[test]
    fn command_is_sent_once_and_answered_when_it_is_applied() {
        let mut rig = Rig::new();
        rig.open(0, "x");
        rig.open(0, "y");
        assert_eq!(
            rig.sends(0, A),
            [(1, 1, "1/1 x".to_owned()), (2, 1, "2/1 y".to_owned())]
        );
        assert_eq!(
            rig.sends(600, B),
            [],
            "nobody said that it was not proposed"
        );
        rig.lane.applied(1, 10);
        rig.lane.applied(1, 11);
        assert_eq!(rig.heard(), [(1, Ok(10))]);
        rig.open(1, "z");
        assert_eq!(rig.sends(1, A), [(3, 1, "3/2 z".to_owned())], "1 is closed");
    }

    #[test]
    fn refused_command_is_sent_again_later_or_to_another_leader_at_once() {
        let mut rig = Rig::new();
        rig.open(0, "x");
        rig.sends(0, A);
        rig.lane.refused(5, A, 1, 1);
        assert_eq!(rig.sends(5, A), []);
        assert_eq!(rig.lane.deadline(Some(A)), Some(5 + RETRY_TICKS));
        assert_eq!(rig.sends(5, B), [(1, 2, "1/1 x".to_owned())]);
        rig.lane.refused(6, A, 1, 1);
        assert_eq!(rig.sends(500, A), [], "that was the first attempt");
        rig.lane.refused(7, B, 1, 2);
        let again = rig.sends(7 + RETRY_TICKS, B);
        assert_eq!(again, [(1, 3, "1/1 x".to_owned())]);
    }

    #[test]
    fn command_that_was_sent_ends_unknown_and_one_that_was_not_ends_refused() {
        let mut rig = Rig::new();
        rig.open(0, "x");
        rig.sends(0, A);
        rig.lane.refused(1, A, 1, 1);
        rig.open(10, "y");
        rig.lane.expire(699);
        assert_eq!(rig.heard(), []);
        rig.lane.expire(700);
        let unknown = Err(HostError::OutcomeUnknown);
        assert_eq!(rig.heard(), [(1, unknown)], "a copy may still be under way");
        assert_eq!(rig.lane.deadline(None), Some(710));
        rig.lane.expire(710);
        assert_eq!(rig.heard(), [(2, Err(HostError::Timeout))]);
        assert!(rig.lane.is_empty());
        assert_eq!(rig.lane.deadline(Some(A)), None);
    }

    #[test]
    fn jump_of_the_state_ends_what_was_sent_unknown() {
        let mut rig = Rig::new();
        rig.open(0, "x");
        rig.sends(0, A);
        rig.open(0, "y");
        rig.lane.jumped();
        assert_eq!(rig.heard(), [(1, Err(HostError::OutcomeUnknown))]);
        assert_eq!(rig.sends(0, A), [(2, 1, "2/2 y".to_owned())]);
    }

    #[test]
    fn lane_past_its_bounds_refuses_and_sends_nothing() {
        let mut rig = Rig::new();
        for _ in 0..=OPEN_SEQUENCES_MAX {
            rig.open(0, "");
        }
        let last = rig.callers;
        assert_eq!(rig.heard(), [(last, Err(HostError::Busy))]);
        rig.lane.applied(2, 0);
        rig.heard();
        rig.open(0, "");
        assert_eq!(rig.heard().len(), 1, "the lowest holds the window");
        rig.lane.applied(1, 0);
        rig.heard();
        rig.open(0, &"x".repeat(LIMITS.bytes_max));
        rig.open(0, "");
        assert_eq!(rig.heard(), [(rig.callers, Err(HostError::Busy))]);
    }

    #[test]
    fn lane_that_fails_answers_everybody() {
        let mut rig = Rig::new();
        rig.open(0, "x");
        rig.sends(0, A);
        rig.open(0, "y");
        rig.lane.fail();
        let expected = [
            (1, Err(HostError::OutcomeUnknown)),
            (2, Err(HostError::Stopped)),
        ];
        assert_eq!(rig.heard(), expected);
    }
}
