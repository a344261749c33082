//! Joins the core of one group to the log and to a state machine.
//!
//! A [`Group`] owns no thread and reads no clock: whoever runs it (the host loop of `multiraft`, or a simulator with one
//! thread) calls it in turns:
//!
//! 1. `propose`, `read`, `receive`, `tick`: inputs, which only move the core;
//! 2. [`Group::collect`]: what must become durable goes into a batch of the log, shared with other groups;
//! 3. [`Group::persisted`]: that batch is on disk; acknowledgements may leave;
//! 4. [`Group::apply`]: committed and locally durable entries reach the state machine, in slices;
//! 5. [`Group::take_messages`] and [`Group::take_events`]: what goes to peers and to waiting callers.
//!
//! A member that lags further than the log reaches gets a snapshot. [`Group::take_snapshots_needed`] names it, and who sends
//! one says so by [`Group::snapshot_report`]. Who receives one calls [`Group::receive_snapshot`] when its file is durable;
//! the log's new base goes into the next batch, and once that is on disk [`Group::restoring`] names the snapshot, until
//! the state machine was replaced and [`Group::restored`] says so. Nothing is applied meanwhile. A member whose state is
//! wrong while its log is right gets a snapshot too: [`Group::hold`] and [`Group::replace_state`].
//!
//! The group never applies an entry that its own log could lose: it stays at or below both the commit index and the
//! index that this log has on disk.

mod open;
pub mod repair;
mod restore;

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;

use bytes::Bytes;
use raft_log::snapshot::SnapshotError;
use raft_log::{Base, ErrorKind, Incarnation, Log, LogError, Record, WriteBatch};

use crate::core::{
    Change, Core, DropReason, Effects, Fetch, Input, Membership, Message, PersistId, Role, Status,
};
use crate::testing::{Bug, bug};
use crate::{ApplyError, EntryKind, GroupId, Index, NodeId, StateMachine, Term, TickContext};

use restore::Restore;

pub use open::{GroupConfig, OpenError, bootstrap, newest_membership};

/// Entries of one apply slice at most, so that ticks and other groups get their turn.
const APPLY_ENTRIES_MAX: u64 = 512;
/// Bytes of one apply slice at most, plus one entry.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// An error after which the group's member must stop.
#[derive(Debug)]
#[non_exhaustive]
pub enum GroupError {
    /// The log failed, or holds damage.
    Log(LogError),
    /// The state machine cannot go on.
    Apply(ApplyError),
    /// A sync of the snapshot store has failed: it makes and takes no snapshot any more.
    Snapshots(SnapshotError),
    /// A membership entry that cannot be read, at this index.
    Membership(Index),
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(error) => error.fmt(f),
            Self::Apply(error) => error.fmt(f),
            Self::Snapshots(error) => error.fmt(f),
            Self::Membership(index) => write!(
                f,
                "the membership change at index {index} cannot be decoded; it was written by a newer version or the \
                 log is damaged"
            ),
        }
    }
}

impl Error for GroupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Log(error) => Some(error),
            Self::Apply(error) => Some(error),
            Self::Snapshots(error) => Some(error),
            Self::Membership(_) => None,
        }
    }
}

impl From<LogError> for GroupError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// What a waiting caller learns. Each token that was given to [`Group::propose`] or [`Group::read`] occurs exactly once.
#[derive(Debug)]
pub enum Event<T> {
    /// The proposal was applied; a change of the membership also ended. The output is that of its first entry.
    Applied(u64, T),
    /// The state machine has reached the index of the read.
    ReadReady(u64),
    /// Nothing was proposed, or the read was given up.
    Dropped(u64, DropReason),
    /// The proposal was overwritten or the leader changed before it was applied here: its outcome is unknown.
    Unknown(u64),
}

/// One group: core, log and state machine.
pub struct Group<S: StateMachine> {
    id: GroupId,
    core: Core,
    log: Log,
    machine: S,
    effects: Effects,
    /// Messages that wait for a persist batch, in the order of the batches.
    after_persist: VecDeque<(PersistId, NodeId, Message)>,
    messages: Vec<(NodeId, Message)>,
    /// Proposals in the log and not applied yet; indexes ascend.
    proposals: VecDeque<(Index, Term, u64)>,
    /// Reads whose index is known and not applied yet.
    reads: Vec<(Index, u64)>,
    /// Changes of the membership that are applied and whose joint configuration is not left yet.
    changes: Vec<(u64, S::Output)>,
    /// A membership entry of a leader's that cannot be read.
    unreadable: Option<Index>,
    /// The guard of this incarnation has ended, which the log does not say yet.
    repaired: Option<u64>,
    events: Vec<Event<S::Output>>,
    outputs: Vec<S::Output>,
    commands: Vec<Bytes>,
    commit: Index,
    applied: Index,
    /// Memberships that entries above the base led to, ascending; the base's own is in front.
    memberships: VecDeque<(Index, Membership)>,
    /// After a restart only the newest applied membership is known: the base does not move to below this index, where
    /// another one may have been in force.
    unknown_memberships_below: Index,
    base: Base,
    /// Entries kept in the log below the applied index, for members that lag.
    catch_up_entries: u64,
    /// The log begins anew after a snapshot, or is going to, that the state machine has not taken up; or the state is
    /// being replaced by one.
    restore: Option<Restore>,
    /// A follower applies nothing: its state is to be replaced.
    held: bool,
    /// Members that need a snapshot, and the term in which this member leads.
    snapshots_needed: Vec<(NodeId, Term)>,
}

impl<S: StateMachine> Group<S> {
    /// The group's id.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The core's view: term, role, leader, indexes, membership.
    #[must_use]
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// The membership in force.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.core.membership()
    }

    /// What this member, if it leads, knows the log of each member to hold.
    #[must_use]
    pub fn matched(&self) -> Vec<(NodeId, Index)> {
        self.core.matched()
    }

    /// The last index that the state machine has applied.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The newest commit index known here.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// Proposes a command. The token comes back in one [`Event`].
    pub fn propose(&mut self, token: u64, payload: Bytes) {
        self.step(Input::Propose {
            token: Some(token),
            kind: EntryKind::Normal,
            payload,
        });
    }

    /// Proposes a change of the membership. The token comes back in one [`Event`]: when the change is applied and no joint
    /// configuration is in force any more, or with the reason why nothing was proposed.
    pub fn propose_change(&mut self, token: u64, change: Change) {
        self.step(Input::Change { token, change });
    }

    /// Asks for a linearizable read. The token comes back when the state machine is recent enough.
    pub fn read(&mut self, token: u64) {
        self.step(Input::Read { token });
    }

    /// As [`Group::read`], by way of the leader when this member follows one; needs [`crate::core::Config::boot`].
    pub fn read_anywhere(&mut self, token: u64) {
        self.step(Input::ReadAnywhere { token });
    }

    /// Hands leadership over to another voter; [`Status::transferring`] tells whether that is under way.
    pub fn transfer(&mut self, to: NodeId) {
        self.step(Input::Transfer { to });
    }

    /// Says whether the group may sleep: while the stores of all other members are alive. Returns true when that woke it.
    pub fn allow_sleep(&mut self, allowed: bool) -> bool {
        self.core.allow_sleep(allowed)
    }

    /// True while the group does nothing by itself.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.core.is_asleep()
    }

    /// A message of a peer.
    pub fn receive(&mut self, from: NodeId, message: Message) {
        self.step(Input::Message { from, message });
    }

    /// Lets time pass: `elapsed` ticks since the last call, `now` of them since the group was opened.
    pub fn tick(&mut self, now: u64, elapsed: u64) {
        self.step(Input::Tick { ticks: elapsed });
        let status = self.core.status();
        let leading = status.committed_in_term.then_some(status.term);
        let mut commands = std::mem::take(&mut self.commands);
        self.machine
            .tick(TickContext { tick: now, leading }, &mut commands);
        for payload in commands.drain(..) {
            if leading.is_some() {
                self.step(Input::Propose {
                    token: None,
                    kind: EntryKind::Normal,
                    payload,
                });
            }
        }
        self.commands = commands;
    }

    /// True while reads wait for the clock to be read once more.
    #[must_use]
    pub fn waits_for_clock(&self) -> bool {
        self.core.waits_for_clock()
    }

    /// The clock was read after the last call of anything here, and no tick has passed.
    pub fn clock_read(&mut self) {
        self.step(Input::Tick { ticks: 0 });
    }

    /// Ticks until the core or the state machine has something to do, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let core = self.core.next_deadline();
        let machine = self
            .machine
            .next_deadline()
            .map(|at| at.saturating_sub(now));
        match (core, machine) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Adds what must become durable to `batch`. Once that batch is on disk, give the id to [`Group::persisted`];
    /// ids are given back in the order in which they were handed out.
    pub fn collect(&mut self, batch: &mut WriteBatch) -> Option<PersistId> {
        self.core.ready(&mut self.effects);
        self.absorb();
        if let Some(number) = self.repaired.take() {
            // Until it is durable a start is guarded again, and finds soon that it need not be.
            let ended = Incarnation {
                number,
                guarded: false,
            };
            batch.push(self.id, Record::Incarnation(ended));
        }
        let persist = self.effects.persist.take()?;
        if persist.restart.is_some() {
            self.restart_log(batch, persist.id);
        }
        if let Some(from) = persist.truncate_from {
            batch.push(self.id, Record::Truncate(from));
            self.forget_from(from);
        }
        if !persist.entries.is_empty() {
            batch.push(self.id, Record::Entries(persist.entries));
        }
        if let Some(hard_state) = persist.hard_state {
            batch.push(self.id, Record::HardState(hard_state));
        }
        Some(persist.id)
    }

    /// The batch that carried `id` is on disk.
    pub fn persisted(&mut self, id: PersistId) {
        self.step(Input::Persisted(id));
        if let Some(restore) = &mut self.restore {
            restore.persisted(id);
        }
        while self
            .after_persist
            .front()
            .is_some_and(|(at, _, _)| *at <= id)
        {
            let (_, to, message) = self
                .after_persist
                .pop_front()
                .expect("the front was just seen");
            self.core.assert_attested(to, &message);
            self.messages.push((to, message));
        }
    }

    /// True when [`Group::apply`] has something to do.
    #[must_use]
    pub fn can_apply(&self) -> bool {
        let held = self.held && self.core.status().role != Role::Leader;
        self.restore.is_none() && !held && self.applied < self.apply_limit()
    }

    /// Applies one slice of committed entries. Returns true when more are waiting.
    pub fn apply(&mut self) -> Result<bool, GroupError> {
        if !self.can_apply() {
            return Ok(false);
        }
        let limit = self.apply_limit();
        let from = self.applied.next();
        let end = Index(limit.0.min(self.applied.0 + APPLY_ENTRIES_MAX) + 1);
        let mut entries = self.log.entries(self.id, from..end, APPLY_BYTES_MAX)?;
        assert!(
            !entries.is_empty(),
            "the log returns at least one entry of a range that it holds"
        );
        for (entry, index) in entries.iter().zip(from.0..) {
            assert_eq!(
                entry.index,
                Index(index),
                "each entry is applied once, in order"
            );
        }
        // A membership change ends its slice, so that it is in force before the next entry.
        let mut membership = None;
        if let Some(at) = entries
            .iter()
            .position(|entry| entry.kind == EntryKind::Config)
        {
            entries.truncate(at + 1);
            let entry = &entries[at];
            let decoded = Membership::decode(&entry.payload)
                .map_err(|_| GroupError::Membership(entry.index))?;
            membership = Some(decoded);
        }
        self.outputs.clear();
        self.machine
            .apply(&entries, membership.as_ref(), &mut self.outputs)
            .map_err(GroupError::Apply)?;
        assert_eq!(
            self.outputs.len(),
            entries.len(),
            "a state machine gives one output per entry"
        );

        let last = entries.last().expect("checked above").index;
        for (entry, output) in entries.iter().zip(self.outputs.drain(..)) {
            while let Some(&(index, term, token)) = self.proposals.front() {
                if index > entry.index {
                    break;
                }
                self.proposals.pop_front();
                if index == entry.index && term == entry.term {
                    if entry.kind == EntryKind::Config {
                        self.changes.push((token, output));
                    } else {
                        self.events.push(Event::Applied(token, output));
                    }
                    break;
                }
                self.events.push(Event::Unknown(token));
            }
        }
        self.effects.recycle(entries);
        self.applied = last;
        self.step(Input::Applied(last));
        if let Some(membership) = membership {
            if !membership.is_joint() {
                self.end_changes();
            }
            self.memberships.push_back((last, membership));
        }
        self.release_reads();
        Ok(self.can_apply())
    }

    /// Adds the record that moves the log's base up to what the state machine has durably, less the margin kept for
    /// members that lag; on a full disk, a member that is alone keeps none. Does nothing when there is nothing to gain.
    pub fn compact(&mut self, batch: &mut WriteBatch, full: bool) {
        let alone = self.core.membership().members().len() == 1;
        let margin = if full && alone {
            0
        } else {
            self.catch_up_entries
        };
        let behind = self.applied.0.saturating_sub(margin);
        let durable = if bug(Bug::PurgeApplied) {
            self.applied
        } else {
            self.machine.durable_index()
        };
        let to = Index(durable.0.min(behind));
        if to <= self.base.index || to < self.unknown_memberships_below {
            return;
        }
        let Some(term) = self.log.term_at(self.id, to) else {
            return;
        };
        while self
            .memberships
            .get(1)
            .is_some_and(|(index, _)| *index <= to)
        {
            self.memberships.pop_front();
        }
        let membership = self
            .memberships
            .front()
            .expect("the base has a membership")
            .1
            .encode();
        self.base = Base {
            index: to,
            term,
            creation: self.base.creation,
            membership,
        };
        batch.push(self.id, Record::Compact(self.base.clone()));
        self.core.compacted(to);
    }

    /// Entries that the state machine has applied but that would be replayed after a crash now.
    #[must_use]
    pub fn entries_not_durable(&self) -> u64 {
        self.applied
            .0
            .saturating_sub(self.machine.durable_index().0)
    }

    /// Asks the state machine to become durable, so that the log can be purged.
    pub fn request_persist(&mut self) {
        self.machine.request_persist();
    }

    /// Messages for peers that may leave now.
    pub fn take_messages(&mut self) -> impl Iterator<Item = (NodeId, Message)> + '_ {
        self.messages.drain(..)
    }

    /// Outcomes for waiting callers.
    pub fn take_events(&mut self) -> impl Iterator<Item = Event<S::Output>> + '_ {
        self.events.drain(..)
    }

    fn apply_limit(&self) -> Index {
        if bug(Bug::ApplyBeforeSync) {
            let info = self.log.group(self.id);
            return self
                .commit
                .min(info.map_or(Index(0), |info| info.last_index));
        }
        self.commit.min(self.core.status().persisted)
    }

    fn step(&mut self, input: Input) {
        self.core.step(input, &mut self.effects);
        self.absorb();
    }

    /// Moves the effects of the last steps to where they belong; the persist batch stays for `collect`.
    fn absorb(&mut self) {
        self.messages.append(&mut self.effects.send_now);
        if !self.effects.needs_snapshot.is_empty() {
            let term = self.core.status().term;
            let needed = self.effects.needs_snapshot.drain(..).map(|to| (to, term));
            self.snapshots_needed.extend(needed);
        }
        self.after_persist.extend(self.effects.send_after.drain(..));
        self.proposals.extend(
            self.effects
                .proposed
                .drain(..)
                .map(|(t, i, term)| (i, term, t)),
        );
        // A cut of entries that no persist batch has carried yet shows in the log's end alone.
        if !self.proposals.is_empty() {
            let last = self.core.status().last_index;
            while let Some(&(_, _, token)) = self.proposals.back().filter(|(i, _, _)| *i > last) {
                self.proposals.pop_back();
                self.events.push(Event::Unknown(token));
            }
        }
        for (token, reason) in self.effects.dropped.drain(..) {
            self.events.push(Event::Dropped(token, reason));
        }
        self.unreadable = self.unreadable.or(self.effects.unreadable.take());
        self.repaired = self.effects.repaired.take().or(self.repaired);
        if let Some(commit) = self.effects.commit.take() {
            assert!(commit >= self.commit, "the commit index went back");
            self.commit = commit;
        }
        self.reads.extend(
            self.effects
                .reads_ready
                .drain(..)
                .map(|(token, index)| (index, token)),
        );
        if !self.reads.is_empty() {
            self.release_reads();
        }
    }

    /// Serves the core's requests for entries that it no longer holds in memory. A peer that needs entries below the
    /// base needs a snapshot instead. Fails when a leader sent what this member cannot read.
    pub fn fetch(&mut self) -> Result<(), GroupError> {
        if let Some(index) = self.unreadable {
            return Err(GroupError::Membership(index));
        }
        for Fetch {
            to,
            from,
            end,
            bytes_max,
        } in std::mem::take(&mut self.effects.fetch)
        {
            let entries = match self.log.entries(self.id, from..end, bytes_max) {
                // They left the log since they were asked for. The core, told of none, sees for itself.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Compacted | ErrorKind::OutOfRange) =>
                {
                    Vec::new()
                }
                result => result?,
            };
            self.step(Input::EntriesFetched { to, entries });
        }
        Ok(())
    }

    fn release_reads(&mut self) {
        let applied = self.applied;
        let events = &mut self.events;
        self.reads.retain(|&(index, token)| {
            let ready = index <= applied;
            if ready {
                events.push(Event::ReadReady(token));
            }
            !ready
        });
    }

    /// No joint configuration is in force: who waited for that hears of it.
    fn end_changes(&mut self) {
        let ended = self.changes.drain(..);
        self.events
            .extend(ended.map(|(token, output)| Event::Applied(token, output)));
    }

    /// The log from `from` on was overwritten: proposals there will not be applied under their index.
    fn forget_from(&mut self, from: Index) {
        while self
            .proposals
            .back()
            .is_some_and(|(index, _, _)| *index >= from)
        {
            let (_, _, token) = self.proposals.pop_back().expect("the back was just seen");
            self.events.push(Event::Unknown(token));
        }
    }
}
