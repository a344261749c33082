//! Knows what was asked for, what was answered and what the log came to hold, and panics when these do not fit.
//!
//! The canonical log is what state machines have applied: the first member to apply an index fixes it for ever, on all
//! members and through all crashes. With one member, what its recovered log holds above that joins it as well, since
//! the sole voter commits it. A model follows the canonical log and says what each entry must have answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kv_server::mvcc::{CommandOutput, CommandResult, RevisionEvents};
use kv_server::pb::etcdserverpb::{RangeRequest, RangeResponse};
use multiraft::{GroupStatus, HostError};
use raft_log::{Entry, EntryKind, Index, NodeId, Term};

use super::checkers::{AppliedOnce, StateHash};
use super::model::Model;
use super::workload::tag_of;

/// A value that several parts of one thread hold.
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    /// Shares a value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(value)))
    }

    /// The value. Never held across a call into the product.
    pub fn get(&self) -> MutexGuard<'_, T> {
        // After a panic the run is over; what is printed then may still look.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The tag of the command in an entry.
fn tag_of_entry(entry: &Entry) -> Option<u64> {
    let normal = entry.kind == EntryKind::Normal;
    tag_of(&entry.payload).filter(|_| normal)
}

/// What a client was told about its command.
pub type Answer = (u64, Result<CommandOutput, HostError>);

/// What a client's linearizable read saw.
#[derive(Debug)]
pub struct ReadAnswer {
    /// The canonical log at this index was acknowledged before the read began.
    pub after: Index,
    /// What was asked for.
    pub request: RangeRequest,
    /// What the local store answered once the barrier was passed.
    pub response: RangeResponse,
}

/// What is known of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It may still take effect.
    Open,
    /// It took effect at this index.
    Placed(Index),
    /// It was refused: it must never take effect.
    Refused,
    /// The only log that could hold it does not: it must never take effect.
    Lost,
}

#[derive(Debug)]
struct Request {
    /// The member that it was sent to.
    to: NodeId,
    fate: Fate,
    answered: bool,
    /// A client waits for it; the commands of a lessor have nobody.
    awaited: bool,
    /// Acknowledged before this was sent.
    after: Index,
}

/// The state after an entry, as far as it is looked at often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The newest revision.
    pub revision: i64,
    /// The compaction floor.
    pub floor: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Oracle {
    entries: Vec<Entry>,
    outputs: Vec<CommandOutput>,
    marks: Vec<Mark>,
    model: Model,
    requests: BTreeMap<u64, Request>,
    next_tag: u64,
    acked: Index,
    acks: u64,
    refused_for_space: u64,
    leaders: BTreeMap<Term, NodeId>,
    applied_once: AppliedOnce,
    snapshots: StateHash,
    cuts: u64,
    second_copies: u64,
}

impl Oracle {
    /// A tag for a new command, which is sent to a member now; by a client that waits, or by nobody.
    pub fn sent(&mut self, to: NodeId, awaited: bool) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let request = Request {
            to,
            fate: Fate::Open,
            answered: false,
            awaited,
            after: self.acked,
        };
        self.requests.insert(tag, request);
        tag
    }

    /// The tag that the next command gets.
    #[must_use]
    pub fn next_tag(&self) -> u64 {
        self.next_tag
    }

    /// The model at the end of the canonical log.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model after an earlier entry.
    #[must_use]
    pub fn model_at(&self, index: Index) -> Model {
        let mut model = Model::default();
        for entry in self.up_to(index) {
            // The output was checked when the entry became canonical.
            drop(model.apply(entry));
        }
        model
    }

    /// The canonical entries up to an index.
    #[must_use]
    pub fn up_to(&self, index: Index) -> &[Entry] {
        &self.entries[..index.0 as usize]
    }

    /// The last index of the canonical log.
    #[must_use]
    pub fn last(&self) -> Index {
        Index(self.entries.len() as u64)
    }

    /// The newest index that a client knows of.
    #[must_use]
    pub fn acked(&self) -> Index {
        self.acked
    }

    /// Commands that were acknowledged.
    #[must_use]
    pub fn acks(&self) -> u64 {
        self.acks
    }

    /// Forwarded commands in the log that must have no effect.
    #[must_use]
    pub fn second_copies(&self) -> u64 {
        self.second_copies
    }

    /// Commands that were refused because a disk was full.
    #[must_use]
    pub fn refused_for_space(&self) -> u64 {
        self.refused_for_space
    }

    /// Revision and floor after an entry.
    #[must_use]
    pub fn mark(&self, index: Index) -> Mark {
        match index.0 {
            0 => Mark {
                revision: 1,
                floor: -1,
            },
            at => self.marks[at as usize - 1],
        }
    }

    /// The process of a member starts, with this in its engine.
    pub fn process_started(&mut self, node: NodeId, applied: Index) {
        self.applied_once.started(node.0, applied.0);
    }

    /// A member takes a cut of its state, which has this hash.
    ///
    /// # Panics
    /// When that of another one had another hash at this index.
    pub fn cut(&mut self, node: NodeId, index: Index, hash: u64) {
        self.cuts += 1;
        self.snapshot(node, index, hash);
    }

    /// A member has replaced its state by a snapshot of this index. What the state is like at that index.
    ///
    /// # Panics
    /// When the hash is not that of the cut, or nothing led to this index.
    pub fn installed(&mut self, node: NodeId, index: Index, hash: u64) -> Mark {
        assert!(
            index <= self.last(),
            "nobody has applied {index}, of which member {node} has a snapshot"
        );
        self.snapshot(node, index, hash);
        self.applied_once.started(node.0, index.0);
        self.mark(index)
    }

    fn snapshot(&mut self, node: NodeId, index: Index, hash: u64) {
        if let Err(text) = self.snapshots.at(node.0, index.0, hash) {
            panic!("{text}");
        }
    }

    /// Cuts that were taken, and states that were compared with one.
    #[must_use]
    pub fn snapshots(&self) -> (u64, u64) {
        (self.cuts, self.snapshots.compared())
    }

    /// The process of a member is gone, and nobody waits for its answers any more.
    pub fn process_ended(&mut self, node: NodeId) {
        for request in self.requests.values_mut() {
            request.answered |= request.to == node;
        }
    }

    /// Commands that clients still wait for.
    #[must_use]
    pub fn waiting(&self) -> Vec<u64> {
        let waiting = |(_, request): &(&u64, &Request)| request.awaited && !request.answered;
        self.requests
            .iter()
            .filter(waiting)
            .map(|(t, _)| *t)
            .collect()
    }

    /// A member is about to apply entries.
    ///
    /// # Panics
    /// When they differ from what is canonical.
    pub fn applying(&mut self, node: NodeId, entries: &[Entry]) {
        for entry in entries {
            if entry.index <= self.last() {
                let known = &self.entries[entry.index.0 as usize - 1];
                assert_eq!(
                    known, entry,
                    "member {node} applies another entry than was applied before"
                );
            } else {
                self.place(entry.clone());
            }
        }
    }

    /// A member has applied entries, and answered.
    ///
    /// # Panics
    /// When an answer differs from the model's, or something took effect twice.
    pub fn applied(&mut self, node: NodeId, entries: &[Entry], outputs: &[CommandOutput]) {
        assert_eq!(entries.len(), outputs.len(), "one output per entry");
        for (entry, output) in entries.iter().zip(outputs) {
            // What was dropped as a second copy answers nothing.
            let tag = tag_of_entry(entry).filter(|_| *output != Ok(CommandResult::None));
            if let Err(text) = self.applied_once.applied(node.0, entry.index.0, tag) {
                panic!("{text}");
            }
            let expected = &self.outputs[entry.index.0 as usize - 1];
            assert_eq!(
                output, expected,
                "member {node} answers entry {} otherwise than the model",
                entry.index
            );
        }
    }

    fn place(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last().next(), "an entry is left out");
        let last_term = self.entries.last().map_or(Term::ZERO, |last| last.term);
        assert!(entry.term >= last_term, "terms go back at {}", entry.index);
        let admitted = entry.kind == EntryKind::Config || self.model.admits(&entry.payload);
        if entry.kind == EntryKind::Normal && !entry.payload.is_empty() && admitted {
            let tag = tag_of(&entry.payload).expect("every command carries a tag");
            let request = self.requests.get_mut(&tag).expect("somebody sent it");
            assert_eq!(
                request.fate,
                Fate::Open,
                "command {tag} takes effect at {}",
                entry.index
            );
            assert!(
                entry.index > request.after,
                "command {tag} takes effect before one that was acknowledged before it was sent"
            );
            request.fate = Fate::Placed(entry.index);
        }
        self.second_copies += u64::from(!admitted);
        self.outputs.push(self.model.apply(&entry));
        self.marks.push(Mark {
            revision: self.model.revision(),
            floor: self.model.floor(),
        });
        self.entries.push(entry);
    }

    /// A client was answered.
    ///
    /// # Panics
    /// When the answer is not the model's, or a refused command took effect, or it is answered twice.
    pub fn answered(&mut self, (tag, answer): Answer) {
        let request = self.requests.get_mut(&tag).expect("somebody sent it");
        assert!(!request.answered, "command {tag} is answered twice");
        request.answered = true;
        match answer {
            Ok(output) => {
                let Fate::Placed(index) = request.fate else {
                    panic!("command {tag} is acknowledged, but {:?}", request.fate);
                };
                assert_eq!(
                    output,
                    self.outputs[index.0 as usize - 1],
                    "command {tag} at {index} is answered otherwise than by the model"
                );
                self.acked = self.acked.max(index);
                self.acks += 1;
            }
            Err(HostError::OutcomeUnknown) => {}
            Err(error) => {
                assert_eq!(
                    request.fate,
                    Fate::Open,
                    "command {tag} is refused ({error}), but took effect"
                );
                request.fate = Fate::Refused;
                self.refused_for_space += u64::from(error == HostError::NoSpace);
            }
        }
    }

    /// The sole voter came back, and this is its log from `entries[0]` on.
    ///
    /// # Panics
    /// When something that was applied is missing or different, or what was in flight is not there as a prefix.
    pub fn recovered(&mut self, entries: &[Entry], last: Index) {
        assert!(
            last >= self.last(),
            "the log ends at {last}, but {} was applied",
            self.last()
        );
        let in_flight: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| request.awaited && request.fate == Fate::Open)
            .map(|(tag, _)| *tag)
            .collect();
        let mut arrived = Vec::new();
        for entry in entries {
            if entry.index <= self.last() {
                let known = &self.entries[entry.index.0 as usize - 1];
                assert_eq!(known, entry, "the recovered log holds another entry");
                continue;
            }
            if let Some(tag) = tag_of_entry(entry)
                && self.requests.get(&tag).is_some_and(|r| r.awaited)
            {
                arrived.push(tag);
            }
            self.place(entry.clone());
        }
        assert!(
            in_flight.starts_with(&arrived),
            "of the commands in flight, {in_flight:?}, not the first ones are there: {arrived:?}"
        );
        for request in self.requests.values_mut() {
            if request.fate == Fate::Open {
                request.fate = Fate::Lost;
            }
        }
    }

    /// A client's read passed the barrier.
    ///
    /// # Panics
    /// When it does not see what was acknowledged before it began, or something that never was.
    pub fn read(&self, read: &ReadAnswer) {
        let ReadAnswer {
            after,
            request,
            response,
        } = read;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let acknowledged = self.mark(*after).revision;
        assert!(
            revision >= acknowledged,
            "a read at revision {revision} does not see revision {acknowledged}, which was acknowledged before it"
        );
        assert!(
            revision <= self.model.revision(),
            "a read sees revision {revision}, which nothing led to"
        );
        let expected = self
            .model
            .range_at(&request.key, &request.range_end, revision);
        assert_eq!(
            response.kvs, expected,
            "a read at revision {revision} sees something else than the model"
        );
    }

    /// A state machine told the watch hub of a revision.
    ///
    /// # Panics
    /// When its changes are not the model's.
    pub fn published(&self, node: NodeId, revision: &RevisionEvents) {
        assert_eq!(
            self.model.events(revision.revision),
            Some(revision.events.as_slice()),
            "member {node} publishes other changes of revision {}",
            revision.revision
        );
    }

    /// What a member believes about the leader.
    ///
    /// # Panics
    /// When another member leads, or was believed to lead, in the same term.
    pub fn leader(&mut self, status: &GroupStatus) {
        if let Some(leader) = status.leader {
            let known = *self.leaders.entry(status.term).or_insert(leader);
            assert_eq!(known, leader, "two leaders in term {}", status.term);
        }
    }

    /// The newest term that somebody was seen to lead in.
    #[must_use]
    pub fn newest_term(&self) -> Term {
        self.leaders.keys().next_back().copied().unwrap_or_default()
    }

    /// A number that differs between runs that differ in any entry.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for entry in &self.entries {
            add(&entry.term.0.to_le_bytes());
            add(&entry.payload);
        }
        add(&self.acks.to_le_bytes());
        digest
    }
}

/// Everything, as a range.
#[must_use]
pub fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    }
}
