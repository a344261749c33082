//! The reads and calls of one group that this member has under way at a leader. They may be done twice, so they are
//! sent until they are answered, or their time is over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_log::{Index, NodeId};

use super::{Answer, ForwardLimits, Question, RETRY_TICKS};
use crate::testing::{Bug, bug};
use crate::{HostError, Reply};

/// Ticks until a question without an answer is sent again: the message, or the answer, may be lost.
const RESEND_TICKS: u64 = 5 * RETRY_TICKS;

/// A question to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AskSend {
    pub(crate) id: u64,
    pub(crate) question: Question,
}

/// Who waits for an answer.
pub(crate) enum Waiter {
    Reads(Vec<Reply<()>>),
    Call(Bytes, Reply<Bytes>),
}

impl Waiter {
    fn len(&self) -> usize {
        match self {
            Self::Reads(reads) => reads.len(),
            Self::Call(..) => 1,
        }
    }

    fn question(&self) -> Question {
        match self {
            Self::Reads(_) => Question::Read,
            Self::Call(payload, _) => Question::Call(payload.clone()),
        }
    }

    fn fail(self, error: &HostError) {
        match self {
            Self::Reads(reads) => reads.into_iter().for_each(|done| done(Err(error.clone()))),
            Self::Call(_, reply) => reply(Err(error.clone())),
        }
    }
}

struct Open {
    waiter: Waiter,
    expires: u64,
    /// When it is sent next.
    due: u64,
    /// To whom it was sent; another leader is asked at once.
    asked: Option<NodeId>,
}

#[derive(Default)]
pub(crate) struct Asks {
    next_id: u64,
    open: BTreeMap<u64, Open>,
    /// The question for reads that is out.
    read_out: Option<u64>,
    /// Reads that came since it was sent, and when their time is over: the next question is theirs.
    reads: VecDeque<(u64, Reply<()>)>,
    /// Reads that wait for local state to reach an index.
    ready: Vec<(Index, Vec<Reply<()>>)>,
    /// All that wait.
    waiting: usize,
}

impl Asks {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Takes reads on, or answers that there is no room.
    pub(crate) fn read(&mut self, now: u64, limits: &ForwardLimits, reads: Vec<Reply<()>>) {
        let expires = now.saturating_add(limits.timeout_ticks);
        for done in reads {
            if self.waiting >= limits.asks_max {
                done(Err(HostError::Busy));
                continue;
            }
            self.waiting += 1;
            if bug(Bug::ReadJoinsQuestion)
                && let Some(Waiter::Reads(reads)) = self.read_out.and_then(|id| self.waiter(id))
            {
                reads.push(done);
                continue;
            }
            self.reads.push_back((expires, done));
        }
    }

    /// Takes a call on, or answers that there is no room.
    pub(crate) fn call(
        &mut self,
        now: u64,
        limits: &ForwardLimits,
        payload: Bytes,
        reply: Reply<Bytes>,
    ) {
        if self.waiting >= limits.asks_max {
            return reply(Err(HostError::Busy));
        }
        let expires = now.saturating_add(limits.timeout_ticks);
        self.add(now, expires, Waiter::Call(payload, reply));
    }

    /// What to ask `leader` now.
    pub(crate) fn take_due(&mut self, now: u64, leader: NodeId) -> Vec<AskSend> {
        if self.read_out.is_none()
            && let Some((expires, _)) = self.reads.front()
        {
            // The oldest one's time: the others are asked for again, if need be, with the next question.
            let expires = *expires;
            let reads: Vec<_> = self.reads.drain(..).map(|(_, done)| done).collect();
            self.waiting -= reads.len();
            self.read_out = Some(self.add(now, expires, Waiter::Reads(reads)));
        }
        let mut sends = Vec::new();
        for (id, open) in &mut self.open {
            if open.due <= now || open.asked != Some(leader) {
                open.due = now + RESEND_TICKS;
                open.asked = Some(leader);
                let question = open.waiter.question();
                sends.push(AskSend { id: *id, question });
            }
        }
        sends
    }

    /// An answer came. Of a leader that changed meanwhile it is as good: it was asked after the caller came.
    pub(crate) fn answered(&mut self, now: u64, id: u64, answer: Option<Answer>) {
        let Some(answer) = answer else {
            if let Some(open) = self.open.get_mut(&id) {
                open.due = now + RETRY_TICKS;
            }
            return;
        };
        let Some(open) = self.close(id) else {
            return;
        };
        match (open.waiter, answer) {
            (Waiter::Reads(reads), Answer::Read(index)) => {
                self.waiting += reads.len();
                self.ready.push((index, reads));
            }
            (Waiter::Call(_, reply), Answer::Call(payload)) => reply(Ok(payload)),
            (waiter, _) => {
                tracing::warn!(id, "a peer answered another question than it was asked");
                waiter.fail(&HostError::LeaderChanged);
            }
        }
    }

    /// Local state has applied up to `applied`.
    pub(crate) fn release(&mut self, applied: Index) {
        if self.ready.is_empty() {
            return;
        }
        for (index, reads) in std::mem::take(&mut self.ready) {
            if index > applied && !bug(Bug::ReadBeforeApplied) {
                self.ready.push((index, reads));
                continue;
            }
            self.waiting -= reads.len();
            reads.into_iter().for_each(|done| done(Ok(())));
        }
    }

    /// Gives the reads back that no leader was asked for, because this member leads now.
    pub(crate) fn take_reads(&mut self) -> Vec<Reply<()>> {
        let mut reads = Vec::new();
        if let Some(id) = self.read_out
            && let Some(Open {
                waiter: Waiter::Reads(out),
                ..
            }) = self.close(id)
        {
            reads = out;
        }
        self.waiting -= self.reads.len();
        reads.extend(self.reads.drain(..).map(|(_, done)| done));
        reads
    }

    /// Answers those whose time is over.
    pub(crate) fn expire(&mut self, now: u64) {
        let over = self.open.iter().filter(|(_, open)| open.expires <= now);
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        for id in over {
            let open = self.close(id).expect("it was just seen");
            open.waiter.fail(&HostError::Timeout);
        }
        while let Some((expires, _)) = self.reads.front() {
            if *expires > now {
                break;
            }
            let (_, done) = self.reads.pop_front().expect("it was just seen");
            self.waiting -= 1;
            done(Err(HostError::Timeout));
        }
    }

    /// Answers everybody: the host stops.
    pub(crate) fn fail(&mut self) {
        let open = std::mem::take(self);
        for (_, open) in open.open {
            open.waiter.fail(&HostError::Stopped);
        }
        let ready = open.ready.into_iter().flat_map(|(_, reads)| reads);
        for done in open.reads.into_iter().map(|(_, done)| done).chain(ready) {
            done(Err(HostError::Stopped));
        }
    }

    /// The next tick at which something is over, or, with a leader that is known, to be sent.
    pub(crate) fn deadline(&self, leader: Option<NodeId>) -> Option<u64> {
        let over = self.open.values().map(|open| open.expires);
        let over = over.chain(self.reads.front().map(|(expires, _)| *expires));
        let due = self.open.values().map(|open| open.due);
        over.min()
            .into_iter()
            .chain(leader.and_then(|_| due.min()))
            .min()
    }

    fn add(&mut self, now: u64, expires: u64, waiter: Waiter) -> u64 {
        self.next_id += 1;
        self.waiting += waiter.len();
        let open = Open {
            waiter,
            expires,
            due: now,
            asked: None,
        };
        self.open.insert(self.next_id, open);
        self.next_id
    }

    fn waiter(&mut self, id: u64) -> Option<&mut Waiter> {
        self.open.get_mut(&id).map(|open| &mut open.waiter)
    }

    fn close(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.waiting -= open.waiter.len();
        if self.read_out == Some(id) {
            self.read_out = None;
        }
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const LIMITS: ForwardLimits = ForwardLimits {
        bytes_max: 0,
        asks_max: 4,
        timeout_ticks: 700,
    };
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    type Heard<T> = Arc<Mutex<Vec<Result<T, HostError>>>>;

    fn hear<T: Send + 'static>(heard: &Heard<T>) -> Reply<T> {
        let heard = Arc::clone(heard);
        Box::new(move |result| heard.lock().unwrap().push(result))
    }

    fn ids(sends: &[AskSend]) -> Vec<u64> {
        sends.iter().map(|send| send.id).collect()
    }

    #[test]
    fn reads_that_come_while_one_is_out_share_the_next() {
        let (mut asks, heard) = (Asks::default(), Heard::default());
        asks.read(0, &LIMITS, vec![hear(&heard)]);
        assert_eq!(ids(&asks.take_due(0, A)), [1]);
        asks.read(1, &LIMITS, vec![hear(&heard), hear(&heard)]);
        assert!(ids(&asks.take_due(1, A)).is_empty());
        asks.answered(2, 1, Some(Answer::Read(Index(5))));
        assert_eq!(ids(&asks.take_due(2, A)), [2]);
        asks.release(Index(4));
        assert_eq!(heard.lock().unwrap().len(), 0);
        asks.release(Index(5));
        assert_eq!(heard.lock().unwrap().len(), 1);
        asks.answered(3, 2, Some(Answer::Read(Index(5))));
        asks.release(Index(5));
        assert_eq!(heard.lock().unwrap().len(), 3);
        assert!(asks.is_empty());
    }

    #[test]
    fn question_without_an_answer_is_sent_again_and_to_another_leader_at_once() {
        let (mut asks, heard) = (Asks::default(), Heard::default());
        asks.call(0, &LIMITS, Bytes::from("c"), hear(&heard));
        assert_eq!(ids(&asks.take_due(0, A)), [1]);
        assert!(ids(&asks.take_due(1, A)).is_empty());
        assert_eq!(asks.deadline(Some(A)), Some(RESEND_TICKS));
        assert_eq!(ids(&asks.take_due(2, B)), [1]);
        asks.answered(3, 1, None);
        assert!(ids(&asks.take_due(3, B)).is_empty());
        assert_eq!(ids(&asks.take_due(3 + RETRY_TICKS, B)), [1]);
        asks.answered(20, 1, Some(Answer::Call(Bytes::from("d"))));
        asks.answered(21, 1, Some(Answer::Call(Bytes::from("e"))));
        assert_eq!(*heard.lock().unwrap(), [Ok(Bytes::from("d"))]);
    }

    #[test]
    fn question_ends_when_its_time_is_over() {
        let (mut asks, heard) = (Asks::default(), Heard::default());
        asks.read(0, &LIMITS, vec![hear(&heard)]);
        asks.take_due(0, A);
        asks.read(5, &LIMITS, vec![hear(&heard)]);
        asks.expire(699);
        assert_eq!(asks.deadline(None), Some(700));
        asks.expire(700);
        assert_eq!(*heard.lock().unwrap(), [Err(HostError::Timeout)]);
        asks.expire(705);
        assert_eq!(heard.lock().unwrap().len(), 2);
        assert!(asks.is_empty());
    }

    #[test]
    fn questions_past_the_bound_are_refused() {
        let (mut asks, heard) = (Asks::default(), Heard::default());
        asks.read(0, &LIMITS, (0..5).map(|_| hear(&heard)).collect());
        assert_eq!(*heard.lock().unwrap(), [Err(HostError::Busy)]);
        let call = Heard::default();
        asks.call(0, &LIMITS, Bytes::new(), hear(&call));
        assert_eq!(*call.lock().unwrap(), [Err(HostError::Busy)]);
        assert_eq!(asks.take_reads().len(), 4);
        assert!(asks.is_empty());
        asks.read(0, &LIMITS, vec![hear(&heard)]);
        asks.fail();
        assert_eq!(heard.lock().unwrap()[1], Err(HostError::Stopped));
    }
}
