//! Snapshots on their way between members, over the network of the world: what the product's transport does on a stream
//! of its own, with frames that are lost, late, doubled and overtaken.
//!
//! The receiver says which chunk it wants; the sender keeps two on their way, sends again what was not answered, and gives
//! a transfer up when it hears nothing for too long. A transfer of a later number takes the place of an earlier one.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use multiraft::{SnapshotTransfer, begin_receive};
use raft_log::snapshot::{SnapshotManifest, SnapshotReceiver, SnapshotSender};
use raft_log::vfs::sim::Rng;
use raft_log::{NodeId, Term};

use super::fault::{Moment, SECOND};
use super::{Event, Letter, Stopped, World};
use crate::sim::oracle::Shared;

/// Ticks after which something is sent again that was not answered.
const AGAIN_TICKS: u64 = 20;
/// Ticks without an answer after which a transfer is given up.
const SILENT_TICKS: u64 = 3 * SECOND;
/// Chunks on their way at a time.
const WINDOW: u64 = 2;
/// Ticks that a piece of long work takes at most.
const TASK_TICKS: u64 = 20;

/// What the two ends of a transfer say to each other.
#[derive(Clone)]
pub(super) struct Frame {
    /// The number of the transfer.
    transfer: u64,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Offer(Term, Box<SnapshotManifest>),
    /// The chunk that the receiver wants next.
    Next(u64),
    Chunk(u64, Bytes),
    Taken,
    Refused,
}

impl Frame {
    /// What tells frames apart in a trace.
    pub(super) fn id(&self) -> (u64, u8, u64) {
        let (kind, number) = match self.body {
            Body::Offer(term, _) => (0, term.0),
            Body::Next(number) => (1, number),
            Body::Chunk(number, _) => (2, number),
            Body::Taken => (3, 0),
            Body::Refused => (4, 0),
        };
        (self.transfer, kind, number)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transfer {}: ", self.transfer)?;
        match &self.body {
            Body::Offer(term, manifest) => {
                let (index, chunks) = (manifest.snapshot.index, manifest.chunks());
                write!(
                    f,
                    "offers the snapshot of {index}, {chunks} chunks, in term {}",
                    term.0
                )
            }
            Body::Next(number) => write!(f, "wants chunk {number}"),
            Body::Chunk(number, bytes) => write!(f, "chunk {number}, {} bytes", bytes.len()),
            Body::Taken => f.write_str("has it"),
            Body::Refused => f.write_str("does not take it"),
        }
    }
}

/// A snapshot that a member sends.
struct Sending {
    from: usize,
    to: usize,
    transfer: SnapshotTransfer,
    sender: SnapshotSender,
    chunks: u64,
    /// The chunk that is sent next, and that the receiver wants next, once it has said so.
    next: u64,
    wanted: Option<u64>,
    heard_at: u64,
    /// When the host was told last that it moves.
    told_at: u64,
}

/// A snapshot that a member receives; without a receiver once its host has it.
pub(super) struct Receiving {
    transfer: u64,
    from: usize,
    sent_in: Term,
    receiver: Option<SnapshotReceiver>,
}

/// What a host said of a snapshot.
struct Answer {
    at: usize,
    life: u64,
    transfer: u64,
    taken: bool,
}

/// A crash that waits for its moment: who sends the snapshot crashes, not who takes it, in this way, within so many
/// operations of its disk.
#[derive(Clone, Copy)]
pub(super) struct Armed {
    pub(super) moment: Moment,
    pub(super) sender: bool,
    pub(super) crash: (bool, u64, u64),
    pub(super) ops: u64,
}

/// All transfers.
pub(super) struct Snapshots {
    rng: Rng,
    next: u64,
    sending: BTreeMap<u64, Sending>,
    answers: Shared<Vec<Answer>>,
    pub(super) armed: Vec<Armed>,
}

impl Snapshots {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            rng,
            next: 0,
            sending: BTreeMap::new(),
            answers: Shared::default(),
            armed: Vec::new(),
        }
    }
}

impl World {
    /// A member's host has a snapshot for another one.
    pub(super) fn begin_transfer(&mut self, from: usize, transfer: SnapshotTransfer) {
        let number = self.snapshots.next;
        self.snapshots.next += 1;
        let sender = match transfer.open() {
            Ok(sender) => sender,
            Err(error) => {
                self.trace.say(self.now, &format!("m{}: {error}", from + 1));
                self.members[from].note_strikes(false);
                return;
            }
        };
        self.count("snapshots offered");
        let sending = Sending {
            from,
            to: transfer.to().0 as usize - 1,
            chunks: sender.manifest().chunks(),
            transfer,
            sender,
            next: 0,
            wanted: None,
            heard_at: self.now,
            told_at: self.now,
        };
        self.snapshots.sending.insert(number, sending);
        self.send_more(number);
        self.at(self.now + AGAIN_TICKS, Event::Transfer(number));
    }

    /// Sends again what was not answered, or gives up.
    pub(super) fn look_after(&mut self, number: u64) {
        let now = self.now;
        let Some(sending) = self.snapshots.sending.get_mut(&number) else {
            return;
        };
        let paused = self.members[sending.from].paused_until;
        if paused > now {
            return self.at(paused, Event::Transfer(number));
        }
        let silent = now - sending.heard_at;
        if silent >= SILENT_TICKS || !sending.transfer.is_wanted() {
            self.count("snapshots given up");
            return self.end_transfer(number, false);
        }
        if silent >= AGAIN_TICKS {
            sending.next = sending.wanted.unwrap_or(0);
            self.send_more(number);
        }
        self.at(now + AGAIN_TICKS, Event::Transfer(number));
    }

    fn end_transfer(&mut self, number: u64, taken: bool) {
        let Some(sending) = self.snapshots.sending.remove(&number) else {
            return;
        };
        let member = &mut self.members[sending.from];
        member.due = member.due.min(self.now);
        if taken {
            sending.transfer.taken();
        }
    }

    /// The offer, or the next chunks.
    fn send_more(&mut self, number: u64) {
        let Some(sending) = self.snapshots.sending.get_mut(&number) else {
            return;
        };
        let (from, to) = (sending.from, sending.to);
        let mut frames = Vec::new();
        let Some(wanted) = sending.wanted else {
            let manifest = Box::new(sending.sender.manifest());
            let offer = Body::Offer(sending.transfer.sent_in(), manifest);
            return self.frame(from, to, number, offer);
        };
        while sending.next < sending.chunks.min(wanted + WINDOW) {
            let read = sending.sender.seek(sending.next);
            match read.and_then(|()| sending.sender.next_chunk()) {
                Ok(chunk) => {
                    let (at, bytes) = chunk.expect("it is below the number of chunks");
                    frames.push(Body::Chunk(at, bytes));
                    sending.next += 1;
                }
                Err(error) => {
                    self.trace.say(self.now, &format!("m{}: {error}", from + 1));
                    let sending = self.snapshots.sending.remove(&number);
                    sending.expect("just seen").transfer.unusable();
                    self.members[from].note_strikes(false);
                    break;
                }
            }
        }
        for body in frames {
            self.frame(from, to, number, body);
        }
    }

    fn frame(&mut self, from: usize, to: usize, transfer: u64, body: Body) {
        let frame = Frame { transfer, body };
        self.post(from, to, &Letter::Snapshot(frame));
    }

    /// A frame arrives.
    pub(super) fn take_frame(&mut self, from: usize, to: usize, frame: Frame) {
        let paused = self.members[to].paused_until;
        if paused > self.now {
            let message = Box::new(Letter::Snapshot(frame));
            return self.at(paused, Event::Deliver { from, to, message });
        }
        let Frame { transfer, body } = frame;
        match body {
            Body::Offer(sent_in, manifest) => self.offered(from, to, transfer, sent_in, *manifest),
            Body::Chunk(number, bytes) => self.chunk(to, transfer, number, &bytes),
            Body::Next(wanted) => self.wanted(transfer, wanted),
            Body::Taken => self.end_transfer(transfer, true),
            Body::Refused => self.end_transfer(transfer, false),
        }
    }

    fn wanted(&mut self, number: u64, wanted: u64) {
        let now = self.now;
        let Some(sending) = self.snapshots.sending.get_mut(&number) else {
            return;
        };
        if sending.wanted.is_some_and(|before| wanted < before) {
            // Another one has overtaken it.
            return;
        }
        sending.wanted = Some(wanted);
        sending.next = sending.next.max(wanted);
        sending.heard_at = now;
        if now - sending.told_at >= SECOND {
            sending.told_at = now;
            sending.transfer.moving();
        }
        self.send_more(number);
    }

    fn offered(
        &mut self,
        from: usize,
        to: usize,
        transfer: u64,
        sent_in: Term,
        manifest: SnapshotManifest,
    ) {
        let member = &mut self.members[to];
        match &member.receiving {
            Some(known) if known.transfer > transfer => return,
            Some(known) if known.transfer == transfer => {
                if let Some(receiver) = &known.receiver {
                    let next = receiver.next();
                    self.frame(to, from, transfer, Body::Next(next));
                }
                return;
            }
            _ => member.receiving = None,
        }
        let up = member.node.up();
        let store = up.snapshots.as_ref().expect("members keep snapshots here");
        match begin_receive(&up.log, store, manifest, None) {
            Ok(Some(receiver)) => {
                let resumed = receiver.next() > 0;
                member.receiving = Some(Receiving {
                    transfer,
                    from,
                    sent_in,
                    receiver: Some(receiver),
                });
                self.count(if resumed {
                    "receives resumed"
                } else {
                    "receives begun"
                });
                self.strike(Moment::Receiving, from, to);
                if self.after_disk(to) {
                    self.go_on(to);
                }
            }
            Ok(None) => self.frame(to, from, transfer, Body::Taken),
            Err(error) => {
                self.trace.say(self.now, &format!("m{}: {error}", to + 1));
                if self.after_disk(to) {
                    self.frame(to, from, transfer, Body::Refused);
                }
            }
        }
    }

    fn chunk(&mut self, at: usize, transfer: u64, number: u64, bytes: &[u8]) {
        let member = &mut self.members[at];
        let Some(receiving) = member.receiving.as_mut() else {
            return;
        };
        let Some(receiver) = receiving.receiver.as_mut() else {
            return;
        };
        if receiving.transfer != transfer {
            return;
        }
        if number == receiver.next()
            && let Err(error) = receiver.push(number, bytes)
        {
            return self.refuse(at, &error);
        }
        if self.after_disk(at) {
            self.go_on(at);
        }
    }

    fn refuse(&mut self, at: usize, error: &dyn std::error::Error) {
        self.trace.say(self.now, &format!("m{}: {error}", at + 1));
        let receiving = self.members[at].receiving.take();
        if self.after_disk(at)
            && let Some(receiving) = receiving
        {
            self.frame(at, receiving.from, receiving.transfer, Body::Refused);
        }
    }

    /// Asks for the next chunk, or gives the host what is complete.
    fn go_on(&mut self, at: usize) {
        let member = &mut self.members[at];
        let Some(receiving) = &mut member.receiving else {
            return;
        };
        let (from, transfer, sent_in) = (receiving.from, receiving.transfer, receiving.sent_in);
        let Some(receiver) = receiving.receiver.take() else {
            return;
        };
        let next = receiver.next();
        if next < receiver.chunks() {
            receiving.receiver = Some(receiver);
            return self.frame(at, from, transfer, Body::Next(next));
        }
        let pending = match receiver.finish() {
            Ok(pending) => pending,
            Err(error) => return self.refuse(at, &error),
        };
        let (answers, life) = (self.snapshots.answers.clone(), member.life);
        let reply = Box::new(move |result: Result<(), _>| {
            let taken = result.is_ok();
            answers.get().push(Answer {
                at,
                life,
                transfer,
                taken,
            });
        });
        let sender = NodeId(from as u64 + 1);
        let handle = &member.node.up().handle;
        handle.deliver_snapshot(sender, sent_in, pending, reply);
        member.due = member.due.min(self.now);
        self.count("snapshots received");
        self.frame(at, from, transfer, Body::Next(next));
        self.strike(Moment::Taking, from, at);
        self.after_disk(at);
    }

    /// Tells senders what hosts have said.
    pub(super) fn answer_snapshots(&mut self) {
        let answers = std::mem::take(&mut *self.snapshots.answers.get());
        for answer in answers {
            let member = &mut self.members[answer.at];
            let current = |known: &mut Receiving| known.transfer == answer.transfer;
            if member.life != answer.life {
                continue;
            }
            let Some(receiving) = member.receiving.take_if(current) else {
                continue;
            };
            let body = if answer.taken {
                self.count("snapshots taken");
                Body::Taken
            } else {
                Body::Refused
            };
            self.frame(answer.at, receiving.from, answer.transfer, body);
        }
    }

    /// The process of a member ends, and so does what it sends and receives.
    pub(super) fn end_transfers(&mut self, at: usize) {
        self.members[at].receiving = None;
        let own = |_: &u64, sending: &mut Sending| sending.from == at;
        drop(
            self.snapshots
                .sending
                .extract_if(.., own)
                .collect::<Vec<_>>(),
        );
    }

    /// Long work of a member begins, if some waits.
    pub(super) fn plan_task(&mut self, at: usize) {
        let member = &mut self.members[at];
        if member.working || !member.node.has_task() {
            return;
        }
        member.working = true;
        let life = member.life;
        let ticks = 1 + self.snapshots.rng.below(TASK_TICKS) + member.sync_ticks;
        self.strike(Moment::Making, at, at);
        self.at(self.now + ticks, Event::Task { node: at, life });
    }

    /// Long work is done.
    pub(super) fn run_task(&mut self, at: usize, life: u64) {
        let member = &mut self.members[at];
        if member.life != life || !member.node.is_up() {
            return;
        }
        if member.paused_until > self.now {
            let paused = member.paused_until;
            return self.at(paused, Event::Task { node: at, life });
        }
        member.working = false;
        member.due = self.now;
        member.node.run_task();
        if self.after_disk(at) {
            self.plan_task(at);
        }
    }

    /// Something else than the log has used the disk. False when the member did not survive that.
    fn after_disk(&mut self, at: usize) -> bool {
        let member = &mut self.members[at];
        member.note_strikes(false);
        if member.node.fs.is_down() {
            self.stopped(at, &Stopped("simulated crash".to_owned()));
            return false;
        }
        true
    }

    /// A crash that was waiting for this moment is planned.
    fn strike(&mut self, moment: Moment, sender: usize, receiver: usize) {
        let place = self
            .snapshots
            .armed
            .iter()
            .position(|armed| armed.moment == moment);
        if let Some(place) = place {
            let armed = self.snapshots.armed.remove(place);
            let node = if armed.sender { sender } else { receiver };
            self.plan_crash(node, armed.crash, armed.ops);
            self.count("crashes while a snapshot is under way");
        }
    }
}
