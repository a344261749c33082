//! Reads by lease: off unless [`super::Config::lease_ticks`] is set.
//!
//! A member that answers a heartbeat promises not to vote for an election timeout, whatever term it hears of meanwhile. So
//! a leader that a majority has answered has no rival for [`super::Config::lease_ticks`] from the tick in which it *sent*
//! what they answered, and reads its commit index without a round.
//!
//! # What it assumes
//! Clocks that go at nearly the same rate: while one member counts `election_ticks`, no other counts less than
//! `lease_ticks`. They need not agree on the time. And all members of the group have the setting, before any leader uses it.
//!
//! # Why a clock that was read too early does no harm
//! Who runs the core reads the clock before it takes what came, and may be held up in between. A promise therefore counts
//! from the first reading *after* the answer, and a read is confirmed by the first reading *after* it came
//! ([`super::Core::waits_for_clock`]); a process that wakes from a pause finds its lease over. A member that starts does
//! not know what it has promised: it promises again.
//!
//! A leader that begins to hand over has no lease for the rest of its term, also when that is given up: the order to
//! campaign may still arrive, and who follows it is voted for in spite of promises. For the same reason nobody else
//! campaigns in spite of promises ([`super::Input::Campaign`]).
//!
//! Source: Ongaro's dissertation, section 6.4.1.

use std::collections::VecDeque;

use super::quorum;
use super::read::Reader;
use super::{Core, Effects, RoleState};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId};

/// Until when a member votes for nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Promise {
    /// Nothing was promised.
    #[default]
    None,
    /// The clock was not read since.
    Made,
    /// In ticks of this core.
    Until(u64),
}

/// What a leader keeps.
#[derive(Default)]
pub(super) struct Lease {
    /// The first round of each tick in which heartbeats left, and the tick. Ascending.
    sent: VecDeque<(u64, u64)>,
    /// In ticks of this lead.
    until: u64,
    /// Leadership is, or was, being handed over in this term.
    pub(super) is_void: bool,
    /// Reads that wait for the clock to be read, with their index.
    pub(super) reads: Vec<(Reader, Index)>,
}

impl Lease {
    /// Heartbeats of a round leave.
    pub(super) fn sent(&mut self, round: u64, now: u64) {
        if self.sent.back().is_none_or(|(_, tick)| *tick < now) {
            self.sent.push_back((round, now));
        }
    }

    /// A majority has answered a round.
    fn answered(&mut self, round: u64, now: u64, lease_ticks: u64) {
        while self.sent.get(1).is_some_and(|(first, _)| *first <= round) {
            self.sent.pop_front();
        }
        if let Some((_, tick)) = self.sent.front().filter(|(first, _)| *first <= round) {
            let from = if bug(Bug::LeaseFromAnswer) {
                now
            } else {
                *tick
            };
            self.until = self.until.max(from + lease_ticks);
        }
    }
}

impl Core {
    /// A heartbeat is answered.
    pub(super) fn promise(&mut self) {
        if self.config.lease_ticks > 0 {
            self.promise = Promise::Made;
            if bug(Bug::PromiseFromEarlierLook) {
                self.date_promise();
            }
        }
    }

    /// The clock was read.
    pub(super) fn date_promise(&mut self) {
        if self.promise == Promise::Made {
            self.promise = Promise::Until(self.clock.saturating_add(self.config.election_ticks));
        }
    }

    /// True while this member votes for nobody.
    pub(super) fn is_promised(&self) -> bool {
        match self.promise {
            Promise::None => false,
            Promise::Made => true,
            Promise::Until(until) => self.clock < until,
        }
    }

    /// Heartbeats were answered: the lease may be longer.
    pub(super) fn extend_lease(&mut self) {
        let (me, lease_ticks) = (self.config.id, self.config.lease_ticks);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        if lease_ticks == 0 {
            return;
        }
        let (progress, last) = (&leader.progress, leader.last_round);
        let answered = |id: NodeId| {
            if id == me {
                return Index(last);
            }
            Index(progress.get(&id).map_or(0, |progress| progress.acked_round))
        };
        let round = quorum::committed(&self.membership, answered).0;
        leader.lease.answered(round, leader.now, lease_ticks);
    }

    /// True while no other leader can be there, as of the last reading of the clock.
    pub(super) fn has_lease(&self) -> bool {
        match &self.role {
            RoleState::Leader(leader) => {
                assert!(
                    leader.transfer.is_none()
                        || leader.lease.is_void
                        || bug(Bug::LeaseOverTransfer),
                    "a transfer ends the lease"
                );
                self.config.lease_ticks > 0
                    && !leader.lease.is_void
                    && leader.now < leader.lease.until
            }
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => false,
        }
    }

    /// True while reads wait for another reading of the clock: an [`super::Input::Tick`], also of no ticks.
    #[must_use]
    pub fn waits_for_clock(&self) -> bool {
        matches!(&self.role, RoleState::Leader(leader) if !leader.lease.reads.is_empty())
    }

    /// The clock was read: reads that came before are confirmed, or take a round after all.
    pub(super) fn confirm_by_clock(&mut self, out: &mut Effects) {
        let holds = self.has_lease();
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let mut reads = std::mem::take(&mut leader.lease.reads);
        if holds {
            for (reader, index) in &reads {
                self.release(std::iter::once(*reader), *index, out);
            }
            reads.clear();
            if let RoleState::Leader(leader) = &mut self.role {
                leader.lease.reads = reads;
            }
        } else {
            leader
                .reads_waiting
                .extend(reads.into_iter().map(|(reader, _)| reader));
        }
    }
}
