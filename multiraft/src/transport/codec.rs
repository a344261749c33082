//! Messages on the wire. Decoding checks what the core asserts, so that a damaged or foreign frame ends a link, not the
//! process.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use raft_log::{Entry, EntryKind, GroupId, Index, StoreId, Term};
use raft_node::core::{Body, Message};

use super::pb;
use super::trips::Echo;
use crate::forward::{Answer, ForwardMessage, Question};
use crate::liveness::Beat;

/// A frame that cannot be understood.
#[derive(Debug)]
pub(super) struct BadFrame(pub(super) String);

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T, BadFrame> {
    Err(BadFrame(what.into()))
}

/// One message of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Raft(GroupId, Message),
    Forward(GroupId, ForwardMessage),
}

/// What an item counts for beside its payload.
const ITEM_BYTES: usize = 64;

impl Item {
    /// The bytes that it counts for in budgets.
    pub(super) fn cost(&self) -> usize {
        let payload = match self {
            Self::Raft(_, message) => match &message.body {
                Body::Append { entries, .. } => entries.iter().map(Entry::cost).sum(),
                _ => 0,
            },
            Self::Forward(_, message) => message.cost(),
        };
        ITEM_BYTES + payload
    }
}

/// A beat, and what it answers.
pub(super) type Echoed = (Beat, Echo);

/// A frame with messages, and how many bytes its batch has.
pub(super) fn encode_batch(items: Vec<Item>, beat: Option<Echoed>) -> (pb::Frame, usize) {
    let batch = pb::Batch {
        items: items.into_iter().map(encode_item).collect(),
        beat: beat.map(|(beat, echo)| encode_beat(beat, echo)),
    };
    let batch = Bytes::from(batch.encode_to_vec());
    let (crc, bytes) = (crc32fast::hash(&batch), batch.len());
    let hello = None;
    (pb::Frame { hello, batch, crc }, bytes)
}

/// The messages of a frame.
pub(super) fn decode_batch(frame: pb::Frame) -> Result<(Vec<Item>, Option<Echoed>), BadFrame> {
    let found = crc32fast::hash(&frame.batch);
    if found != frame.crc {
        return bad(format!(
            "a frame of {} bytes has the checksum {found:08x}, expected {:08x}",
            frame.batch.len(),
            frame.crc
        ));
    }
    let batch = pb::Batch::decode(frame.batch).or_else(|error| bad(error.to_string()))?;
    let items: Result<_, _> = batch.items.into_iter().map(decode_item).collect();
    Ok((items?, batch.beat.map(decode_beat)))
}

fn encode_beat(beat: Beat, echo: Echo) -> pb::Beat {
    pb::Beat {
        store: beat.store.0,
        epoch: beat.epoch,
        number: beat.number,
        heard: beat.heard,
        full: beat.full,
        echo: echo.number,
        echo_held_us: echo.held_us,
    }
}

fn decode_beat(beat: pb::Beat) -> Echoed {
    let echo = Echo {
        number: beat.echo,
        held_us: beat.echo_held_us,
    };
    let beat = Beat {
        store: StoreId(beat.store),
        epoch: beat.epoch,
        number: beat.number,
        heard: beat.heard,
        full: beat.full,
    };
    (beat, echo)
}

fn encode_item(item: Item) -> pb::Item {
    use pb::item::Message as Kind;
    let (group, message) = match item {
        Item::Raft(group, message) => (group, Kind::Raft(encode_raft(message))),
        Item::Forward(group, message) => (group, Kind::Forward(encode_forward(message))),
    };
    pb::Item {
        group: group.0,
        message: Some(message),
    }
}

fn decode_item(item: pb::Item) -> Result<Item, BadFrame> {
    use pb::item::Message as Kind;
    let group = GroupId(item.group);
    match item.message {
        Some(Kind::Raft(raft)) => Ok(Item::Raft(group, decode_raft(raft)?)),
        Some(Kind::Forward(forward)) => Ok(Item::Forward(group, decode_forward(forward)?)),
        None => bad("a message is of an unknown kind"),
    }
}

fn encode_raft(message: Message) -> pb::Raft {
    use pb::raft::Body as Wire;
    let body = match message.body {
        Body::Vote {
            last_index,
            last_term,
            forced,
        } => Wire::Vote(pb::Vote {
            last_index: last_index.0,
            last_term: last_term.0,
            forced,
        }),
        Body::PreVote {
            last_index,
            last_term,
        } => Wire::PreVote(pb::PreVote {
            last_index: last_index.0,
            last_term: last_term.0,
        }),
        Body::PreVoteReply { asked, granted } => Wire::PreVoteReply(pb::PreVoteReply {
            asked: asked.0,
            granted,
        }),
        Body::VoteReply { granted } => Wire::VoteReply(pb::VoteReply { granted }),
        Body::Append {
            prev_index,
            prev_term,
            entries,
            commit,
        } => Wire::Append(pb::Append {
            prev_index: prev_index.0,
            prev_term: prev_term.0,
            entries: entries.into_iter().map(encode_entry).collect(),
            commit: commit.0,
        }),
        Body::AppendReply { matched } => Wire::AppendReply(pb::AppendReply { matched: matched.0 }),
        Body::AppendReject {
            rejected,
            hint_index,
            hint_term,
        } => Wire::AppendReject(pb::AppendReject {
            rejected: rejected.0,
            hint_index: hint_index.0,
            hint_term: hint_term.0,
        }),
        Body::Heartbeat { commit, round } => Wire::Heartbeat(pb::Heartbeat {
            commit: commit.0,
            round,
        }),
        Body::HeartbeatReply { round } => Wire::HeartbeatReply(pb::HeartbeatReply { round }),
        Body::Sleep { last_index } => Wire::Sleep(pb::Sleep {
            last_index: last_index.0,
        }),
        Body::SleepReply { asleep } => Wire::SleepReply(pb::SleepReply { asleep }),
        Body::Guarded => Wire::Guarded(pb::Guarded {}),
        Body::GuardEnd { until } => Wire::GuardEnd(pb::GuardEnd { until: until.0 }),
        Body::TimeoutNow {
            last_index,
            last_term,
        } => Wire::TimeoutNow(pb::TimeoutNow {
            last_index: last_index.0,
            last_term: last_term.0,
        }),
        Body::ReadIndex { boot, question } => Wire::ReadIndex(pb::ReadIndex { boot, question }),
        Body::ReadIndexReply {
            boot,
            question,
            index,
        } => Wire::ReadIndexReply(pb::ReadIndexReply {
            boot,
            question,
            index: index.0,
        }),
    };
    pb::Raft {
        term: message.term.0,
        incarnation: message.incarnation,
        body: Some(body),
    }
}

fn decode_raft(raft: pb::Raft) -> Result<Message, BadFrame> {
    use pb::raft::Body as Wire;
    let (term, incarnation) = (Term(raft.term), raft.incarnation);
    let Some(body) = raft.body else {
        return bad("a message of a group is of an unknown kind");
    };
    let body = match body {
        Wire::Vote(vote) => Body::Vote {
            last_index: Index(vote.last_index),
            last_term: Term(vote.last_term),
            forced: vote.forced,
        },
        Wire::PreVote(vote) => Body::PreVote {
            last_index: Index(vote.last_index),
            last_term: Term(vote.last_term),
        },
        Wire::PreVoteReply(reply) => Body::PreVoteReply {
            asked: Term(reply.asked),
            granted: reply.granted,
        },
        Wire::VoteReply(reply) => Body::VoteReply {
            granted: reply.granted,
        },
        Wire::Append(append) => decode_append(term, append)?,
        Wire::AppendReply(reply) => Body::AppendReply {
            matched: Index(reply.matched),
        },
        Wire::AppendReject(reject) => Body::AppendReject {
            rejected: Index(reject.rejected),
            hint_index: Index(reject.hint_index),
            hint_term: Term(reject.hint_term),
        },
        Wire::Heartbeat(heartbeat) => Body::Heartbeat {
            commit: Index(heartbeat.commit),
            round: heartbeat.round,
        },
        Wire::HeartbeatReply(reply) => Body::HeartbeatReply { round: reply.round },
        Wire::Sleep(sleep) => Body::Sleep {
            last_index: Index(sleep.last_index),
        },
        Wire::SleepReply(reply) => Body::SleepReply {
            asleep: reply.asleep,
        },
        Wire::Guarded(pb::Guarded {}) => Body::Guarded,
        Wire::GuardEnd(end) => Body::GuardEnd {
            until: Index(end.until),
        },
        Wire::TimeoutNow(now) => Body::TimeoutNow {
            last_index: Index(now.last_index),
            last_term: Term(now.last_term),
        },
        Wire::ReadIndex(ask) => Body::ReadIndex {
            boot: ask.boot,
            question: ask.question,
        },
        Wire::ReadIndexReply(reply) => Body::ReadIndexReply {
            boot: reply.boot,
            question: reply.question,
            index: Index(reply.index),
        },
    };
    Ok(Message {
        term,
        incarnation,
        body,
    })
}

fn encode_entry(entry: Entry) -> pb::Entry {
    pb::Entry {
        term: entry.term.0,
        kind: entry.kind as u32,
        payload: entry.payload,
    }
}

fn decode_append(leader: Term, append: pb::Append) -> Result<Body, BadFrame> {
    let prev_index = Index(append.prev_index);
    let mut entries = Vec::with_capacity(append.entries.len());
    let (mut index, mut last_term) = (prev_index, Term(append.prev_term));
    for entry in append.entries {
        let Some(next) = index.0.checked_add(1) else {
            return bad("an entry's index is out of range");
        };
        let (found, expected) = (Term(entry.term), last_term);
        if found < expected || found > leader {
            return bad(format!(
                "the entry at index {next} has term {found}, expected {expected} to {leader}"
            ));
        }
        let kind = match entry.kind {
            0 => EntryKind::Normal,
            1 => EntryKind::Config,
            kind => return bad(format!("the entry at index {next} is of kind {kind}")),
        };
        (index, last_term) = (Index(next), found);
        entries.push(Entry {
            index,
            term: found,
            kind,
            payload: entry.payload,
        });
    }
    Ok(Body::Append {
        prev_index,
        prev_term: Term(append.prev_term),
        entries,
        commit: Index(append.commit),
    })
}

fn encode_forward(message: ForwardMessage) -> pb::Forward {
    use pb::forward::Body as Wire;
    let body = match message {
        ForwardMessage::Propose {
            boot,
            sequence,
            attempt,
            payload,
        } => Wire::Propose(pb::Propose {
            boot,
            sequence,
            attempt,
            payload,
        }),
        ForwardMessage::NotProposed {
            boot,
            sequence,
            attempt,
        } => Wire::NotProposed(pb::NotProposed {
            boot,
            sequence,
            attempt,
        }),
        ForwardMessage::Ask { boot, id, question } => {
            let question = Some(match question {
                Question::Read => pb::ask::Question::Read(true),
                Question::Call(call) => pb::ask::Question::Call(call),
            });
            Wire::Ask(pb::Ask { boot, id, question })
        }
        ForwardMessage::Answer { boot, id, answer } => {
            let answer = answer.map(|answer| match answer {
                Answer::Read(index) => pb::answer::Answer::Read(index.0),
                Answer::Call(call) => pb::answer::Answer::Call(call),
            });
            Wire::Answer(pb::Answer { boot, id, answer })
        }
    };
    pb::Forward { body: Some(body) }
}

fn decode_forward(forward: pb::Forward) -> Result<ForwardMessage, BadFrame> {
    use pb::forward::Body as Wire;
    match forward.body {
        Some(Wire::Propose(propose)) => Ok(ForwardMessage::Propose {
            boot: propose.boot,
            sequence: propose.sequence,
            attempt: propose.attempt,
            payload: propose.payload,
        }),
        Some(Wire::NotProposed(refused)) => Ok(ForwardMessage::NotProposed {
            boot: refused.boot,
            sequence: refused.sequence,
            attempt: refused.attempt,
        }),
        Some(Wire::Ask(ask)) => {
            let question = match ask.question {
                Some(pb::ask::Question::Read(_)) => Question::Read,
                Some(pb::ask::Question::Call(call)) => Question::Call(call),
                None => return bad("a question is of an unknown kind"),
            };
            let (boot, id) = (ask.boot, ask.id);
            Ok(ForwardMessage::Ask { boot, id, question })
        }
        Some(Wire::Answer(answer)) => Ok(ForwardMessage::Answer {
            boot: answer.boot,
            id: answer.id,
            answer: answer.answer.map(|answer| match answer {
                pb::answer::Answer::Read(index) => Answer::Read(Index(index)),
                pb::answer::Answer::Call(call) => Answer::Call(call),
            }),
        }),
        None => bad("a message about a client's work is of an unknown kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn raft(body: Body) -> Item {
        let term = Term(7);
        let message = Message {
            term,
            incarnation: 3,
            body,
        };
        Item::Raft(GROUP, message)
    }

    fn entry(index: u64, term: u64, kind: EntryKind) -> Entry {
        Entry {
            index: Index(index),
            term: Term(term),
            kind,
            payload: Bytes::from(vec![5; 9]),
        }
    }

    fn append(entries: Vec<Entry>) -> Item {
        raft(Body::Append {
            prev_index: Index(4),
            prev_term: Term(2),
            entries,
            commit: Index(3),
        })
    }

    fn every_kind() -> Vec<Item> {
        let (last_index, last_term) = (Index(4), Term(2));
        let (boot, question, index) = (3, 9, Index(8));
        let bodies = [
            Body::Vote {
                last_index,
                last_term,
                forced: true,
            },
            Body::PreVote {
                last_index,
                last_term,
            },
            Body::PreVoteReply {
                asked: Term(8),
                granted: true,
            },
            Body::VoteReply { granted: false },
            Body::AppendReply { matched: index },
            Body::AppendReject {
                rejected: index,
                hint_index: last_index,
                hint_term: last_term,
            },
            Body::Heartbeat {
                commit: index,
                round: 6,
            },
            Body::HeartbeatReply { round: 6 },
            Body::Sleep {
                last_index: Index(7),
            },
            Body::SleepReply { asleep: true },
            Body::Guarded,
            Body::GuardEnd { until: index },
            Body::TimeoutNow {
                last_index,
                last_term,
            },
            Body::ReadIndex { boot, question },
            Body::ReadIndexReply {
                boot,
                question,
                index,
            },
        ];
        let (id, sequence, attempt) = (4, 5, 6);
        let ask = |question| ForwardMessage::Ask { boot, id, question };
        let answer = |answer| ForwardMessage::Answer { boot, id, answer };
        let forwards = [
            ForwardMessage::Propose {
                boot,
                sequence,
                attempt,
                payload: Bytes::from("put"),
            },
            ForwardMessage::NotProposed {
                boot,
                sequence,
                attempt,
            },
            ask(Question::Read),
            ask(Question::Call(Bytes::from("call"))),
            answer(None),
            answer(Some(Answer::Read(index))),
            answer(Some(Answer::Call(Bytes::new()))),
        ];
        let entries = vec![
            entry(5, 2, EntryKind::Normal),
            entry(6, 7, EntryKind::Config),
        ];
        let forwards = forwards.into_iter().map(|one| Item::Forward(GROUP, one));
        let raft = bodies.into_iter().map(raft);
        raft.chain(forwards).chain([append(entries)]).collect()
    }

    #[test]
    fn batch_with_every_kind_of_message_reads_back() {
        let beat = Beat {
            store: StoreId(1),
            epoch: 2,
            number: 3,
            heard: 4,
            full: true,
        };
        let echo = Echo {
            number: 5,
            held_us: 6,
        };
        let (frame, bytes) = encode_batch(every_kind(), Some((beat, echo)));
        assert_eq!(frame.batch.len(), bytes);
        let (items, found) = decode_batch(frame).unwrap();
        assert_eq!(items, every_kind());
        assert_eq!(found, Some((beat, echo)));
    }

    #[test]
    fn any_flipped_bit_of_a_batch_is_refused() {
        let (frame, bytes) = encode_batch(every_kind(), None);
        for bit in 0..bytes * 8 {
            let mut batch = frame.batch.to_vec();
            batch[bit / 8] ^= 1 << (bit % 8);
            let flipped = pb::Frame {
                batch: batch.into(),
                ..frame.clone()
            };
            assert!(decode_batch(flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn entries_that_the_core_would_not_take_are_refused() {
        for (first, second, what) in [(1, 7, "before the first"), (5, 4, "back"), (5, 8, "ahead")] {
            let entries = vec![
                entry(5, first, EntryKind::Normal),
                entry(6, second, EntryKind::Normal),
            ];
            let (frame, _) = encode_batch(vec![append(entries)], None);
            let error = decode_batch(frame).unwrap_err();
            assert!(error.0.contains("has term"), "{what}: {error}");
        }
    }
}
