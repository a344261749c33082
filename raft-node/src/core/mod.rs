//! The Raft core of one group: a state machine without IO, clock, thread or global randomness.
//!
//! # Contract
//!
//! The caller feeds [`Core::step`] with inputs and collects what it wants done in an [`Effects`] that it owns. Steps may
//! be batched: nothing that waits for the disk, and no append to a member, is produced before [`Core::ready`], so 64
//! proposals stepped together become one persist batch and one message per member.
//!
//! ```text
//! loop {
//!     for input in inputs { core.step(input, &mut effects) }
//!     core.ready(&mut effects);
//!     send(effects.send_now);                      // at once, in parallel with the disk
//!     write(effects.persist);                      // then step(Persisted(id)), in the order of the ids
//!     after that write: send(effects.send_after);  // those whose id is at or below it
//!     apply entries up to min(effects.commit, what is durable); then step(Applied(index))
//! }
//! ```
//!
//! - A vote, and an acknowledgement of entries, are messages of `send_after`: they leave when what they attest is
//!   durable. A member's own vote and its own acknowledgement count from the completion of their batch as well; one
//!   voter is no exception.
//! - A persist batch makes durable exactly what it wrote, unless a later batch has rewritten it meanwhile: the core
//!   shortens what it expects of a batch when the log is cut, so an acknowledgement for the first of two writes of an
//!   index never counts for the second.
//! - The core never reads the log. It knows the terms of all entries as runs and keeps the newest entries in memory;
//!   what a slow member needs beyond that is asked for by [`Effects::fetch`].
//! - Where leases are on, a read may wait for the clock to be read again ([`Core::waits_for_clock`]).
//! - Buffers of entries that the caller has no more use for go back to [`Effects::recycle`]: then a leader's proposals
//!   allocate nothing.
//! - A read is confirmed by a round of heartbeats whose number is private to the leader, or at once by a sole voter; it
//!   waits for the first commit in the leader's own term. The caller serves it when it has applied the index.
//! - Who hears no leader first asks whether it could win ([`Body::PreVote`]), which changes nobody's term; who hears one
//!   refuses, and ignores a vote in a later term too. So a member that comes back from a partition deposes nobody.
//! - A leader that no majority has answered for an election timeout steps down. Time that passed in a pause counts: a
//!   process that wakes after longer than that does not lead any more, and drops the reads that waited.
//! - A group without work sleeps where that is allowed ([`Core::allow_sleep`]): no heartbeats until there is something.
//! - A transfer of leadership refuses proposals while it lasts, an election timeout at most. A leader whose oldest write
//!   takes longer than [`Config::persist_ticks_max`] hands over by itself, or steps down.
//! - A member whose next entry has left the log needs a snapshot ([`Effects::needs_snapshot`]). Its bytes travel outside;
//!   the core knows index, term and membership. The receiver's log begins anew with it in a persist batch, and what it
//!   acknowledges leaves after that batch. Until the state machine has taken it up the member votes, but does not
//!   campaign.
//! - A member whose log lost something starts as guarded ([`Incarnation`]): it does not vote before it has caught up.
//! - A membership change ([`Input::Change`]) is in force as soon as its entry is in the log, and ends with the entry if that
//!   is cut; one at a time. Voters change by way of a joint configuration, which the leader leaves by itself.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", and Ongaro's dissertation,
//! chapters 3, 4 and 6.
//!
//! # Caveats
//!
//! Reads by lease ([`Config::lease_ticks`]) are off by default: they trust clocks. All else does not.

mod change;
mod config;
mod effects;
mod election;
mod incarnation;
mod invariants;
mod lease;
mod log_view;
mod membership;
mod message;
mod progress;
mod quorum;
mod read;
mod replication;
mod rng;
mod sleep;
mod snapshot;
mod transfer;

use std::collections::{BTreeMap, VecDeque};

use change::History;
use incarnation::Target;
use lease::{Lease, Promise};
use log_view::LogView;
use progress::Progress;
use read::{Asking, Reader};
use rng::Rng;
use sleep::Sleep;
use transfer::Transfer;

use crate::{EntryKind, GroupId, HardState, Index, NodeId, Term};

use crate::testing::{Bug, bug};
pub use change::{Change, ChangeError, ChangeStep, VOTERS_MAX};
pub use config::{Config, ConfigError, Initial, ValidConfig};
pub use effects::{DropReason, Effects, Fetch, Input, PersistBatch, PersistId};
pub use incarnation::Incarnation;
pub use membership::{Membership, MembershipError};
pub use message::{Body, Message};
pub use snapshot::{Snapshot, SnapshotReport, SnapshotVerdict};

/// What a member does in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it would get votes.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What others may know of a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: NodeId,
    /// The current term.
    pub term: Term,
    /// The vote in this term.
    pub vote: Option<NodeId>,
    /// What this member does.
    pub role: Role,
    /// The leader of this term, if known.
    pub leader: Option<NodeId>,
    /// The commit index.
    pub commit: Index,
    /// The applied index.
    pub applied: Index,
    /// The last index that is durable here.
    pub persisted: Index,
    /// The last index of the log.
    pub last_index: Index,
    /// The log may lack what it acknowledged, and this member does not vote.
    pub guarded: bool,
    /// This member is the only voter.
    pub is_sole_voter: bool,
    /// The member that leadership is being handed to.
    pub transferring: Option<NodeId>,
    /// This member leads and has committed an entry of its own term.
    pub committed_in_term: bool,
}

/// What a leader keeps besides.
struct Leader {
    progress: BTreeMap<NodeId, Progress>,
    /// Ticks of this lead.
    now: u64,
    /// Reads that wait for the next round, or for the first commit of the term.
    reads_waiting: Vec<Reader>,
    /// Rounds under way: number, commit index when it began, who waits. Ascending.
    rounds: VecDeque<(u64, Index, Vec<Reader>)>,
    last_round: u64,
    lease: Lease,
    transfer: Option<Transfer>,
    /// The disk stalls, and a hand-over was tried.
    handed_over: bool,
    /// A heartbeat is due in the next `ready`.
    heartbeat_due: bool,
    /// The index of this leader's first entry.
    first_of_term: Index,
    /// Payload bytes of entries above the commit index.
    uncommitted: VecDeque<(Index, usize)>,
    uncommitted_bytes: usize,
    /// A change was appended, and those that it removes may still get entries.
    changing: bool,
}

enum RoleState {
    Follower,
    /// Promises of votes in the next term.
    PreCandidate(BTreeMap<NodeId, bool>),
    /// Votes that were received; the own one counts once it is durable.
    Candidate(BTreeMap<NodeId, bool>),
    Leader(Box<Leader>),
}

/// What a persist batch, once complete, makes durable.
struct Inflight {
    id: PersistId,
    /// When it was handed out, in ticks of this core.
    since: u64,
    /// Shortened when the log is cut before the batch completes.
    last_index: Index,
    /// The term in which the member voted for itself, when the batch carries that vote.
    own_vote: Option<Term>,
}

/// One member of one group.
pub struct Core {
    config: Config,
    /// The one in force: the newest of `memberships`.
    membership: Membership,
    memberships: History,
    log: LogView,
    term: Term,
    vote: Option<NodeId>,
    leader: Option<NodeId>,
    role: RoleState,
    commit: Index,
    applied: Index,
    persisted: Index,
    /// The first index that no persist batch carries yet.
    unsent: Index,
    truncate_from: Option<Index>,
    /// The log begins anew in the next persist batch.
    restart: Option<Snapshot>,
    hard_state_changed: bool,
    own_vote_pending: bool,
    next_persist: PersistId,
    inflight: VecDeque<Inflight>,
    /// Messages that attest what is not durable yet.
    attesting: Vec<(NodeId, Message)>,
    asking: Asking,
    sleep: Sleep,
    promise: Promise,
    incarnation: Incarnation,
    /// Means something while the member is guarded.
    target: Target,
    clock: u64,
    ticks_since_contact: u64,
    election_timeout: u64,
    rng: Rng,
}

impl Core {
    /// Restores a member. A sole voter campaigns at once.
    #[must_use]
    pub fn new(config: ValidConfig, initial: Initial) -> Self {
        let config = config.0;
        initial.membership.assert_valid();
        let HardState { term, vote, commit } = initial.hard_state;
        assert!(
            initial.base_index <= commit,
            "the commit index lies below the log's base"
        );
        assert!(initial.applied <= commit, "more was applied than committed");
        assert!(
            commit <= initial.last_index,
            "the commit index {commit} lies beyond the log"
        );
        let log = LogView::new(
            initial.base_index,
            initial.base_term,
            initial.last_index,
            initial.terms,
            config.window_bytes_max,
        );
        assert!(
            log.last_term() <= term || log.last_index() == Index::ZERO,
            "an entry of a later term"
        );
        let rng = Rng::new(config.seed ^ config.id.0.rotate_left(32) ^ config.group.0);
        let memberships = History::new(initial.membership, initial.changes, commit);
        let mut core = Self {
            membership: memberships.in_force().clone(),
            memberships,
            term,
            vote,
            leader: None,
            role: RoleState::Follower,
            commit,
            applied: initial.applied,
            persisted: log.last_index(),
            unsent: log.last_index().next(),
            truncate_from: None,
            restart: None,
            hard_state_changed: false,
            own_vote_pending: false,
            next_persist: PersistId(1),
            inflight: VecDeque::new(),
            attesting: Vec::new(),
            asking: Asking::default(),
            sleep: Sleep::default(),
            promise: Promise::None,
            incarnation: initial.incarnation,
            target: Target::default(),
            clock: 0,
            ticks_since_contact: 0,
            election_timeout: 0,
            rng,
            log,
            config,
        };
        core.draw_election_timeout();
        // What was promised before a restart is not known.
        if !bug(Bug::PromiseEndsWithProcess) {
            core.promise();
        }
        if core.membership.is_sole_voter(core.config.id) {
            core.campaign(false, &mut Effects::default());
        }
        core
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, out: &mut Effects) {
        // Who was removed asks for votes or reads again and again. Only a leader can be unknown here and count.
        let stranger = matches!(
            &input,
            Input::Message { from, message }
                if !matches!(message.body, Body::Append { .. } | Body::Heartbeat { .. } | Body::TimeoutNow { .. })
                    && !self.membership.contains(*from)
        );
        if !input.is_restful() && !stranger {
            self.wake();
        }
        match input {
            Input::Tick { ticks } => self.tick(ticks, out),
            Input::Message { from, message } => self.receive(from, message, out),
            Input::Propose {
                token,
                kind,
                payload,
            } => self.propose(token, kind, payload, out),
            Input::Read { token } => self.read(token, out),
            Input::ReadAnywhere { token } => self.read_anywhere(token, out),
            Input::Persisted(id) => self.persisted(id, out),
            Input::Applied(index) => {
                assert!(index > self.applied, "applied goes forward");
                assert!(index <= self.commit, "only committed entries are applied");
                self.applied = index;
            }
            Input::Change { token, change } => self.propose_change(token, &change, out),
            Input::EntriesFetched { to, entries } => self.send_fetched(to, entries, out),
            Input::Unreachable { to } => {
                if let RoleState::Leader(leader) = &mut self.role
                    && let Some(progress) = leader.progress.get_mut(&to)
                {
                    progress.probe();
                }
            }
            Input::SnapshotReceived {
                from,
                sent_in,
                snapshot,
            } => self.snapshot_received(from, sent_in, snapshot, out),
            Input::SnapshotReport { to, report } => self.snapshot_reported(to, report),
            Input::Campaign => {
                let leads = matches!(self.role, RoleState::Leader(_));
                // With leases only who is told to by its leader may campaign in spite of one.
                let forced = self.config.lease_ticks == 0;
                if !leads && !self.is_restoring() && (forced || !self.is_promised()) {
                    self.campaign(forced, out);
                }
            }
            Input::Transfer { to } => self.transfer(to),
        }
        self.assert_cursors();
    }

    /// Ends a batch of steps: entries for members, heartbeats, and what must become durable.
    pub fn ready(&mut self, out: &mut Effects) {
        self.ask_leader(out);
        self.start_round(out);
        self.leave_joint();
        self.replicate(out);
        self.end_change(out);
        assert!(
            out.persist.is_none(),
            "the last persist batch was not taken"
        );
        let entries = self.log.tail(self.unsent, &mut out.spare);
        let changed = self.truncate_from.is_some() || self.restart.is_some();
        if self.hard_state_changed || changed || !entries.is_empty() {
            let id = self.next_persist;
            self.next_persist = PersistId(id.0 + 1);
            let own_vote = std::mem::take(&mut self.own_vote_pending).then_some(self.term);
            self.inflight.push_back(Inflight {
                id,
                since: self.clock,
                last_index: self.log.last_index(),
                own_vote,
            });
            let hard_state = HardState {
                term: self.term,
                vote: self.vote,
                commit: self.commit,
            };
            out.persist = Some(PersistBatch {
                id,
                hard_state: std::mem::take(&mut self.hard_state_changed).then_some(hard_state),
                restart: self.restart.take(),
                truncate_from: self.truncate_from.take(),
                entries,
            });
            self.unsent = self.log.last_index().next();
        }
        for (to, message) in &self.attesting {
            self.assert_attestable(*to, message);
        }
        // Everything that these messages attest is in a batch by now, the newest one at the latest.
        assert!(
            !self.hard_state_changed && self.unsent > self.log.last_index(),
            "a message leaves before the batch that makes it true"
        );
        match self.inflight.back() {
            Some(last) if !bug(Bug::AttestBeforeSync) => {
                let id = last.id;
                let after = self
                    .attesting
                    .drain(..)
                    .map(|(to, message)| (id, to, message));
                out.send_after.extend(after);
            }
            _ => out.send_now.append(&mut self.attesting),
        }
        let others = !self.membership.is_alone();
        self.log.trim(self.unsent, others);
        self.assert_cursors();
    }

    /// Entries at or below `to`, all of them applied, left the log.
    pub fn compacted(&mut self, to: Index) {
        assert!(to <= self.applied, "only applied entries leave the log");
        self.log.compact(to);
    }

    /// What others may know.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            term: self.term,
            vote: self.vote,
            role: match self.role {
                RoleState::Follower => Role::Follower,
                RoleState::PreCandidate(_) => Role::PreCandidate,
                RoleState::Candidate(_) => Role::Candidate,
                RoleState::Leader(_) => Role::Leader,
            },
            leader: self.leader,
            commit: self.commit,
            applied: self.applied,
            persisted: self.persisted,
            last_index: self.log.last_index(),
            guarded: self.incarnation.guarded,
            is_sole_voter: self.membership.is_sole_voter(self.config.id),
            transferring: match &self.role {
                RoleState::Leader(leader) => leader.transfer.map(|transfer| transfer.to),
                _ => None,
            },
            committed_in_term: self.committed_in_term(),
        }
    }

    /// The membership in force.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What the leader knows each member's log to hold, itself included, ascending by member; empty where this member does
    /// not lead.
    #[must_use]
    pub fn matched(&self) -> Vec<(NodeId, Index)> {
        match &self.role {
            RoleState::Leader(leader) => {
                let progress = leader.progress.iter();
                progress.map(|(id, one)| (*id, one.matched())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.config.group
    }

    /// Ticks until something happens by itself; none when nothing will.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.sleep.asleep {
            return None;
        }
        let sole = self.membership.is_sole_voter(self.config.id);
        let (period, active) = match &self.role {
            RoleState::Leader(leader) => (
                self.config.heartbeat_ticks,
                !sole || leader.progress.len() > 1,
            ),
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {
                // A sole candidate waits for its disk alone.
                (self.election_timeout, !sole && self.may_campaign())
            }
        };
        let own = active.then(|| period.saturating_sub(self.ticks_since_contact));
        if self.waits_for_clock() {
            return Some(0);
        }
        let repeat = self.asking.repeat_at(self.config.heartbeat_ticks);
        match (own, repeat.map(|at| at.saturating_sub(self.clock))) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn committed_in_term(&self) -> bool {
        match &self.role {
            RoleState::Leader(leader) => self.commit >= leader.first_of_term,
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => false,
        }
    }

    fn tick(&mut self, ticks: u64, out: &mut Effects) {
        self.clock = self.clock.saturating_add(ticks);
        self.date_promise();
        if self.sleep.asleep {
            return;
        }
        self.ticks_since_contact = self.ticks_since_contact.saturating_add(ticks);
        match &mut self.role {
            RoleState::Leader(leader) => {
                leader.now = leader.now.saturating_add(ticks);
                if self.ticks_since_contact >= self.config.heartbeat_ticks {
                    self.ticks_since_contact = 0;
                    leader.heartbeat_due = true;
                    self.fall_asleep();
                }
                self.check_transfer();
                self.check_snapshots();
                self.check_quorum(out);
                self.check_disk(out);
                self.confirm_by_clock(out);
            }
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {
                let me = self.config.id;
                let waits_for_disk = self.membership.is_sole_voter(me)
                    && matches!(self.role, RoleState::Candidate(_));
                if self.ticks_since_contact >= self.election_timeout
                    && self.may_campaign()
                    && !waits_for_disk
                {
                    if self.disk_stalls() || self.is_restoring() || self.is_promised() {
                        // Its vote for itself could not become durable either; or it could serve nobody; or it
                        // has promised not to vote.
                        self.draw_election_timeout();
                        return;
                    }
                    self.ask_first(out);
                }
            }
        }
    }

    fn persisted(&mut self, id: PersistId, out: &mut Effects) {
        let done = self.inflight.pop_front().expect("a batch was handed out");
        assert_eq!(done.id, id, "persist batches complete in order");
        if done.last_index > self.persisted {
            self.persisted = done.last_index;
        }
        assert!(
            self.persisted <= self.log.last_index(),
            "more is durable than there is"
        );
        self.check_guard(out);
        if done.own_vote == Some(self.term) {
            let me = self.config.id;
            self.record_vote(me, true, out);
        }
        self.advance_commit(out);
    }

    fn propose(
        &mut self,
        token: Option<u64>,
        kind: EntryKind,
        payload: bytes::Bytes,
        out: &mut Effects,
    ) {
        assert!(
            kind == EntryKind::Normal,
            "a membership change is proposed as one"
        );
        let leader_id = self.leader;
        let RoleState::Leader(leader) = &mut self.role else {
            let reason = DropReason::NotLeader(leader_id);
            out.dropped.extend(token.map(|token| (token, reason)));
            return;
        };
        let full = leader.uncommitted_bytes >= self.config.uncommitted_bytes_max;
        // What a leader that is leaving accepts now, nobody here would see applied.
        let leaving = !self.membership.is_voter(self.config.id);
        if full || leaving || leader.transfer.is_some() {
            out.dropped
                .extend(token.map(|token| (token, DropReason::Busy)));
            return;
        }
        let index = self.append(kind, payload);
        out.proposed
            .extend(token.map(|token| (token, index, self.term)));
    }

    /// Appends an entry of the leader's own.
    fn append(&mut self, kind: EntryKind, payload: bytes::Bytes) -> Index {
        let index = self.log.last_index().next();
        let RoleState::Leader(leader) = &mut self.role else {
            unreachable!("only leaders append on their own");
        };
        assert!(
            leader.transfer.is_none(),
            "nothing is appended while leadership is handed over"
        );
        leader.uncommitted.push_back((index, payload.len()));
        leader.uncommitted_bytes += payload.len();
        self.log.append(crate::Entry {
            index,
            term: self.term,
            kind,
            payload,
        });
        index
    }
}
