//! The decisions of the host: which group steps, what goes to the log in one batch, when entries are applied.
//!
//! It owns no thread and reads no clock. Each [`HostCore::turn`] takes what is in the inbox, hands one batch with the
//! work of all groups to the log, applies one slice per group, and answers whom it can. Natural batching needs no
//! timer: what arrives while the log syncs is stepped together in the next turn. Only groups with something to do are
//! looked at.

mod forwarding;
mod slots;
mod snapshotting;
mod stores;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft_log::{GroupId, Log, NodeId, Space, Ticket, WriteBatch};
use raft_node::StateMachine;
use raft_node::core::{DropReason, Membership, Message, PersistId, Role};
use raft_node::driver::{Event, Group, GroupError};
use tracing::info;

use crate::forward::ForwardMessage;
use crate::handle::{Directory, HostHandle, Newcomers};
use crate::inbox::{Inbox, InboxLimits, Request};
use crate::liveness::Beat;
use crate::snapshots::{HOLD_TICKS, Keeper};
use crate::status::GroupStatus;
use crate::transfer::SnapshotTransfer;
use crate::{HostError, Reply};
use forwarding::Forwarder;
use slots::{Slot, Slots};
use stores::Stores;

/// Ticks between two looks at what could be compacted: one second.
const HOUSEKEEPING_TICKS: u64 = 100;
/// Write batches that the log has not synced yet; the host collects no more until one completes.
const INFLIGHT_BATCHES_MAX: usize = 4;

/// Settings of a host.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Bounds of each group's inbox.
    pub inbox: InboxLimits,
    /// Applied entries after which a group's state machine is asked to become durable, so that the log can be purged.
    /// Default 10,000, as etcd's `--snapshot-count`.
    pub snapshot_entries: u64,
    /// Ticks for which a log stays held after a snapshot was made, or after its holder last said so. Default
    /// [`HOLD_TICKS`].
    pub hold_ticks: u64,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            inbox: InboxLimits::default(),
            snapshot_entries: 10_000,
            hold_ticks: HOLD_TICKS,
        }
    }
}

/// Takes messages for peers. It may lose them, and must not block.
pub trait Outbox: Send + 'static {
    /// Sends one message.
    fn send(&mut self, group: GroupId, to: NodeId, message: Message);

    /// Sends one message about clients' work. Without an implementation it is lost.
    fn forward(&mut self, group: GroupId, to: NodeId, message: ForwardMessage) {
        let _ = (group, to, message);
    }

    /// Sends a beat of this store to a member's. Without an implementation it is lost.
    fn beat(&mut self, to: NodeId, beat: Beat) {
        let _ = (to, beat);
    }

    /// Begins to carry a snapshot to a member; never waits for it. Without an implementation the transfer fails.
    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        drop(transfer);
    }
}

/// For hosts without peers.
impl Outbox for () {
    fn send(&mut self, _: GroupId, _: NodeId, _: Message) {}
}

/// What is left after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Another turn has work to do without any new input.
    pub busy: bool,
    /// The newest batch that the log has not synced yet. Whoever runs the turns waits for it, or wakes the log for it.
    pub unsynced: Option<Ticket>,
    /// Every group's only voter is this member, so that nobody waits for its ticks while it syncs.
    pub sole_voter: bool,
    /// The tick at which the next turn is due when nothing arrives.
    pub deadline: Option<u64>,
}

/// A proposal that somebody waits for.
struct Proposal<O> {
    reply: Reply<O>,
    /// Kept while another member may have to be asked.
    payload: Option<Bytes>,
}

/// All groups of a process on one log.
pub struct HostCore<S: StateMachine> {
    log: Log,
    options: HostOptions,
    slots: Slots<S>,
    inbox: Arc<Inbox<S::Output>>,
    directory: Arc<Directory>,
    newcomers: Arc<Newcomers<S>>,
    taken: Vec<Request<S::Output>>,
    proposals: HashMap<u64, Proposal<S::Output>>,
    reads: HashMap<u64, Vec<Reply<()>>>,
    next_token: u64,
    inflight: VecDeque<(Ticket, Vec<(GroupId, PersistId)>)>,
    outbox: Box<dyn Outbox>,
    forwarder: Option<Forwarder<S::Output>>,
    keeper: Option<Keeper<S>>,
    stores: Option<Stores>,
    housekeeping_at: u64,
    /// What the inbox was last told of the disk.
    full: bool,
    /// What else writes to the log's disk, and may find no space first.
    also_full: Box<dyn Fn() -> bool + Send>,
    /// When it is next tried to lead nothing on a full disk.
    leave_at: u64,
}

impl<S: StateMachine> HostCore<S> {
    /// Joins opened groups of one log. `wake` is called from any thread when the inbox is no longer empty.
    pub fn new(
        log: Log,
        groups: Vec<Group<S>>,
        options: HostOptions,
        outbox: Box<dyn Outbox>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> (Self, HostHandle<S>) {
        let inbox = Arc::new(Inbox::new(options.inbox, wake));
        let slots = Slots::new(groups);
        let directory = Arc::<Directory>::default();
        for slot in slots.all() {
            directory.insert(slot.group.id(), Arc::clone(&slot.published));
        }
        let handle = HostHandle {
            inbox: Arc::clone(&inbox),
            groups: Arc::clone(&directory),
            newcomers: Arc::default(),
        };
        let mut host = Self {
            log,
            options,
            slots,
            inbox,
            directory,
            newcomers: Arc::clone(&handle.newcomers),
            taken: Vec::new(),
            proposals: HashMap::new(),
            reads: HashMap::new(),
            next_token: 1,
            inflight: VecDeque::new(),
            outbox,
            forwarder: None,
            keeper: None,
            stores: None,
            housekeeping_at: HOUSEKEEPING_TICKS,
            full: false,
            also_full: Box::new(|| false),
            leave_at: 0,
        };
        host.publish();
        (host, handle)
    }

    /// One round at tick `now` (never less than before): inputs, persistence, applying, answers.
    pub fn turn(&mut self, now: u64) -> Result<Turn, GroupError> {
        self.complete()?;
        if let Some(keeper) = &self.keeper {
            // A leader that can make no snapshot would never bring a member that lags back.
            let healthy = keeper.setup.store.healthy();
            healthy.map_err(GroupError::Snapshots)?;
        }
        self.full = self.log.space() == Space::Full || (self.also_full)();
        self.inbox.set_full(self.full);
        self.slots.tick(now);
        self.take_inbox(now);
        self.take_arrived();
        if let Some(stores) = &mut self.stores {
            stores.set_full(self.full);
        }
        self.watch(now);
        if self.full && now >= self.leave_at {
            self.leave_at = now + HOUSEKEEPING_TICKS;
            self.leave_full_disk(now);
        }
        self.forward_due(now);
        self.collect(now)?;
        self.serve_lagging(now);
        let mut busy = self.restore_step()?;
        for n in 0..self.slots.awake_len() {
            let slot = self.slots.awake(n);
            busy |= slot.group.apply()?;
            slot.group.fetch()?;
            // The next turn begins with a look at the clock.
            busy |= slot.group.waits_for_clock();
        }
        self.publish();
        self.send();
        self.answer(now);
        self.forward_answers(now);
        self.send_forward();
        busy |= self.forward_deadline().is_some_and(|at| at <= now)
            || !self.inbox.is_empty()
            || self.inflight.front().is_some_and(|(ticket, _)| {
                // An error is reported by the next turn.
                self.log.is_durable(*ticket).unwrap_or(true)
            });
        self.slots.rest();
        Ok(Turn {
            busy,
            unsynced: self.inflight.back().map(|(ticket, _)| *ticket),
            sole_voter: self.slots.is_alone(),
            deadline: self.deadline(now),
        })
    }

    /// Asks at each turn whether there is space for what the state machines write as well. While there is none, the host does
    /// as when its log finds none: it refuses proposals, gives back what it can, and leads nothing that others can lead.
    pub fn share_disk(&mut self, is_full: Box<dyn Fn() -> bool + Send>) {
        self.also_full = is_full;
    }

    /// True once [`HostHandle::stop`] was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inbox.is_stopping()
    }

    /// True when everything that was proposed has been answered.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let forwarder = self.forwarder.as_ref();
        self.proposals.is_empty()
            && self.reads.is_empty()
            && self.inbox.is_empty()
            && forwarder.is_none_or(Forwarder::is_empty)
            && self.keeper.as_ref().is_none_or(Keeper::is_empty)
    }

    /// A group's state machine, for checks.
    #[must_use]
    pub fn machine(&self, group: GroupId) -> Option<&S> {
        self.slots.get(group).map(|slot| slot.group.machine())
    }

    /// A group's core as it is now, for checks.
    #[must_use]
    pub fn core_status(&self, group: GroupId) -> Option<raft_node::core::Status> {
        self.slots.get(group).map(|slot| slot.group.status())
    }

    /// The membership that a group goes by, for checks.
    #[must_use]
    pub fn membership(&self, group: GroupId) -> Option<&Membership> {
        self.slots.get(group).map(|slot| slot.group.membership())
    }

    /// How many groups have something to do, or had in the last turn; the others cost nothing.
    #[must_use]
    pub fn groups_awake(&self) -> usize {
        self.slots.awake_len()
    }

    /// True while a group does nothing by itself.
    #[must_use]
    pub fn is_asleep(&self, group: GroupId) -> bool {
        self.slots
            .get(group)
            .is_some_and(|slot| slot.group.is_asleep())
    }

    /// Refuses what comes from now on, and answers everybody who still waits.
    pub fn fail(&mut self) {
        self.inbox.stop();
        self.inbox.take(&mut self.taken);
        for (_, reply) in self.newcomers.take() {
            reply(Err(HostError::Stopped));
        }
        for request in self.taken.drain(..) {
            match request {
                Request::Propose { reply, .. } | Request::Change { reply, .. } => {
                    reply(Err(HostError::Stopped));
                }
                Request::Read { done, .. } => done(Err(HostError::Stopped)),
                Request::Call { reply, .. } => reply(Err(HostError::Stopped)),
                Request::Make { reply, .. } => reply(Err(HostError::Stopped)),
                Request::Matched { reply, .. } => reply(Err(HostError::Stopped)),
                Request::Replace { reply, .. } => reply(Err(HostError::Stopped)),
                Request::Send { reply, .. } => reply(Err(HostError::Stopped)),
                Request::Arrived { arrived, .. } => (arrived.reply)(Err(HostError::Stopped)),
                Request::Deliver { .. }
                | Request::Made { .. }
                | Request::Transfer { .. }
                | Request::Beat { .. }
                | Request::Hold { .. }
                | Request::Keep { .. }
                | Request::HandOver { .. }
                | Request::Forward { .. }
                | Request::Refused { .. }
                | Request::Join
                | Request::Called { .. } => {}
            }
        }
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.fail();
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.fail();
        }
        for slot in self.slots.all_mut() {
            if let Some(reply) = slot.replaced.take() {
                reply(Err(HostError::Stopped));
            }
        }
        // Each reply is called whatever the order; what was proposed may still have become durable.
        let mut proposals: Vec<_> = std::mem::take(&mut self.proposals).into_iter().collect();
        proposals.sort_unstable_by_key(|(token, _)| *token);
        for (_, proposal) in proposals {
            (proposal.reply)(Err(HostError::OutcomeUnknown));
        }
        let mut reads: Vec<_> = std::mem::take(&mut self.reads).into_iter().collect();
        reads.sort_unstable_by_key(|(token, _)| *token);
        for done in reads.into_iter().flat_map(|(_, waiting)| waiting) {
            done(Err(HostError::Stopped));
        }
        for slot in self.slots.all() {
            slot.published.fail(&HostError::Stopped);
        }
    }

    /// Tells the groups which of their batches are on disk, in order.
    fn complete(&mut self) -> Result<(), GroupError> {
        while let Some((ticket, _)) = self.inflight.front() {
            if !self.log.is_durable(*ticket)? {
                break;
            }
            let (_, ids) = self.inflight.pop_front().expect("the front was just seen");
            for (group, id) in ids {
                self.slot(group).group.persisted(id);
            }
        }
        Ok(())
    }

    fn take_inbox(&mut self, now: u64) {
        let mut taken = std::mem::take(&mut self.taken);
        self.inbox.take(&mut taken);
        for request in taken.drain(..) {
            match request {
                Request::Propose {
                    group,
                    payload,
                    reply,
                } => {
                    let leads = self.slot(group).group.status().role == Role::Leader;
                    if let Some(forwarder) = self.forwarder.as_mut().filter(|_| !leads) {
                        forwarder.propose(now, group, payload, reply);
                        continue;
                    }
                    let token = self.token();
                    let proposal = Proposal {
                        reply,
                        payload: self.forwarder.as_ref().map(|_| payload.clone()),
                    };
                    self.proposals.insert(token, proposal);
                    self.slot(group).group.propose(token, payload);
                }
                Request::Change {
                    group,
                    change,
                    reply,
                } => {
                    let token = self.token();
                    let payload = None;
                    self.proposals.insert(token, Proposal { reply, payload });
                    self.slot(group).group.propose_change(token, *change);
                }
                Request::Read { group, done } => self.slot(group).reads.push(done),
                Request::Deliver {
                    group,
                    from,
                    message,
                } => {
                    self.slot(group).group.receive(from, message);
                }
                Request::Forward {
                    group,
                    from,
                    message,
                } => self.take_forward(now, group, from, message),
                Request::Refused {
                    group,
                    from,
                    attempt,
                } => self.refuse_forward(now, group, from, attempt),
                Request::Call {
                    group,
                    payload,
                    reply,
                } => self.take_call(now, group, payload, reply),
                Request::Called {
                    group,
                    from,
                    boot,
                    id,
                    answer,
                } => self.take_called(now, group, from, (boot, id), answer),
                Request::HandOver { group, to } => self.slot(group).group.transfer(to),
                Request::Matched { group, reply } => {
                    // Nobody wakes for it: what is known does not change meanwhile.
                    let matched = self.slots.get(group).map(|slot| slot.group.matched());
                    reply(Ok(matched.unwrap_or_default()));
                }
                Request::Join => self.take_newcomers(),
                Request::Make { group, reply } => self.make_snapshot(group, reply),
                Request::Made { group, result } => self.snapshot_made(now, group, &result),
                Request::Beat { from, beat } => {
                    if let Some(stores) = &mut self.stores {
                        stores.receive(now, from, beat);
                    }
                }
                Request::Transfer { group, news } => self.transfer_news(now, group, news),
                Request::Arrived { group, arrived } => self.snapshot_arrived(group, *arrived),
                Request::Replace { group, reply } => self.replace_state(group, reply),
                Request::Keep { group } => self.keep_state(group),
                Request::Send {
                    group,
                    to,
                    above,
                    reply,
                } => self.send_state(now, group, to, above, reply),
                Request::Hold { group, hold } => match &mut self.keeper {
                    Some(keeper) if hold => keeper.hold(now, group),
                    Some(keeper) => keeper.release(group),
                    None => {}
                },
            }
        }
        self.taken = taken;
        for n in 0..self.slots.awake_len() {
            let slot = self.slots.awake(n);
            if !slot.reads.is_empty() {
                let token = self.next_token;
                self.next_token += 1;
                self.reads.insert(token, std::mem::take(&mut slot.reads));
                slot.group.read(token);
            }
        }
    }

    /// Groups that were opened while this host runs.
    fn take_newcomers(&mut self) {
        for (group, reply) in self.newcomers.take() {
            let id = group.id();
            let published = self.slots.add(group);
            if let Some(forwarder) = &mut self.forwarder {
                forwarder.add(id);
            }
            // Whoever finds it there sees it as it is.
            self.publish();
            self.directory.insert(id, published);
            reply(Ok(()));
        }
    }

    /// Gathers what all groups must persist into one batch of the log.
    fn collect(&mut self, now: u64) -> Result<(), GroupError> {
        if self.inflight.len() >= INFLIGHT_BATCHES_MAX {
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        let mut ids = Vec::new();
        for n in 0..self.slots.awake_len() {
            let slot = self.slots.awake(n);
            slot.is_collected = true;
            if let Some(persist) = slot.group.collect(&mut batch) {
                ids.push((slot.group.id(), persist));
            }
        }
        if now >= self.housekeeping_at {
            self.housekeeping_at = now + HOUSEKEEPING_TICKS;
            self.keep_house(now, &mut batch);
            self.report_making();
        }
        if batch.is_empty() {
            assert!(
                ids.is_empty(),
                "a persist id without a record would never complete"
            );
            return Ok(());
        }
        // Proposals are refused as soon as the log is full; what was accepted before that is kept.
        let ticket = self.log.enqueue_accepted(batch)?;
        self.inflight.push_back((ticket, ids));
        Ok(())
    }

    fn keep_house(&mut self, now: u64, batch: &mut WriteBatch) {
        let pinning = self.log.needs_compaction();
        let mut places = self.slots.take_dirty(self.full);
        places.extend(pinning.iter().filter_map(|group| self.slots.place(*group)));
        places.sort_unstable();
        places.dedup();
        for at in places {
            let slot = self.slots.at(at);
            let id = slot.group.id();
            // On a full disk the log gives back what it can.
            let due_at = if self.full {
                1
            } else {
                self.options.snapshot_entries
            };
            let due = slot.group.entries_not_durable() >= due_at;
            if due || pinning.contains(&id) {
                slot.group.request_persist();
            }
            let held = self.keeper.as_mut().is_some_and(|k| k.is_held(now, id));
            if !held {
                slot.group.compact(batch, self.full);
            }
            if held || slot.group.entries_not_durable() > 0 {
                self.slots.keep_dirty(at);
            }
        }
    }

    fn publish(&mut self) {
        for n in 0..self.slots.awake_len() {
            self.note_members(n);
            let slot = self.slots.awake(n);
            let status = slot.group.status();
            let serving = status.is_sole_voter && status.committed_in_term;
            slot.published.set_commit(serving, slot.group.commit());
            slot.published.set_status(GroupStatus {
                node: status.id,
                term: status.term,
                leader: status.leader,
                // Counted where it is published.
                leader_changes: 0,
                last_index: status.last_index,
                commit: slot.group.commit(),
                applied: slot.group.applied(),
                voters: slot.group.membership().voters.clone(),
                learners: slot.group.membership().learners.clone(),
                guarded: status.guarded,
                wants_state_above: slot.wants_state_above(),
                transferring: status.transferring,
            });
            if std::mem::replace(&mut slot.is_guarded, status.guarded) && !status.guarded {
                info!(group = %slot.group.id(), "repaired: the log has everything again, and this member votes");
            }
            debug_assert!(!serving || status.role == Role::Leader);
            self.slots.set_shared(n, !status.is_sole_voter);
        }
    }

    fn send(&mut self) {
        for n in 0..self.slots.awake_len() {
            let slot = self.slots.awake(n);
            let id = slot.group.id();
            for (to, message) in slot.group.take_messages() {
                self.outbox.send(id, to, message);
            }
        }
    }

    fn answer(&mut self, now: u64) {
        let mut slots = std::mem::take(&mut self.slots);
        for n in 0..slots.awake_len() {
            let slot = slots.awake(n);
            let id = slot.group.id();
            let (leader, applied) = (slot.group.status().leader, slot.group.applied());
            for event in slot.group.take_events() {
                let (Event::Applied(token, _)
                | Event::Unknown(token)
                | Event::ReadReady(token)
                | Event::Dropped(token, _)) = event;
                let route = self
                    .forwarder
                    .as_mut()
                    .and_then(|f| f.routes.remove(&token));
                if let (Some(route), Some(forwarder)) = (route, &mut self.forwarder) {
                    match event {
                        // Who asked sees it when it applies it itself, or does not see it in time.
                        Event::Applied(..) | Event::Unknown(_) => {}
                        Event::ReadReady(_) => forwarder.read_ready(id, route, applied),
                        Event::Dropped(..) => forwarder.dropped(now, id, route),
                    }
                    continue;
                }
                match event {
                    Event::Applied(_, output) => {
                        if let Some(proposal) = self.proposals.remove(&token) {
                            (proposal.reply)(Ok(output));
                        }
                    }
                    Event::Unknown(_) => {
                        if let Some(proposal) = self.proposals.remove(&token) {
                            (proposal.reply)(Err(HostError::OutcomeUnknown));
                        }
                    }
                    Event::ReadReady(_) => {
                        for done in self.reads.remove(&token).into_iter().flatten() {
                            done(Ok(()));
                        }
                    }
                    Event::Dropped(_, reason) => self.dropped(now, id, token, reason, leader),
                }
            }
        }
        self.slots = slots;
    }

    /// Nothing came of a client's proposal or read here; another member may do it.
    fn dropped(
        &mut self,
        now: u64,
        group: GroupId,
        token: u64,
        reason: DropReason,
        leader: Option<NodeId>,
    ) {
        let error = match reason {
            DropReason::NotLeader(_) => HostError::NotLeader(leader),
            DropReason::Busy => HostError::Busy,
            DropReason::LeaderChanged => HostError::LeaderChanged,
            DropReason::Change(error) => HostError::Change(error),
        };
        let away = self
            .forwarder
            .as_mut()
            .filter(|_| reason != DropReason::Busy);
        if let Some(Proposal { reply, payload }) = self.proposals.remove(&token) {
            match (away, payload) {
                (Some(forwarder), Some(payload)) => forwarder.propose(now, group, payload, reply),
                _ => reply(Err(error)),
            }
        } else if let Some(reads) = self.reads.remove(&token) {
            match away {
                Some(forwarder) => forwarder.read(now, group, reads),
                None => reads.into_iter().for_each(|done| done(Err(error.clone()))),
            }
        }
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        let groups = self.slots.deadline();
        let beats = self
            .stores
            .as_ref()
            .and_then(|stores| stores.next_deadline(now));
        let beats = beats.map(|at| at.max(now + 1));
        // Something may have become durable that lets the log shrink; an idle and clean store sleeps on. While proposals
        // are refused none of them wakes the host: it must look itself whether there is space again.
        let dirty = self.full || self.slots.is_dirty();
        let housekeeping = dirty.then_some(self.housekeeping_at);
        let leave = self.full.then_some(self.leave_at);
        let forward = self.forward_deadline().map(|at| at.max(now + 1));
        let own = groups.into_iter().chain(housekeeping);
        own.chain(forward).chain(beats).chain(leave).min()
    }

    fn slot(&mut self, group: GroupId) -> &mut Slot<S> {
        self.slots.wake(group)
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }
}
