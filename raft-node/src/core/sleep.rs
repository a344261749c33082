//! Groups without work sleep: no heartbeats, no timers, until somebody has something to do.
//!
//! Whoever runs the core says whether that is allowed ([`Core::allow_sleep`]): while the stores of all other members are
//! alive, as far as an exchange between stores tells. Then the leader of a group that has had nothing to do for
//! [`super::Config::sleep_ticks`] sends [`Body::Sleep`] in the place of its heartbeats. A member that has everything,
//! committed, and nothing to ask for answers and falls asleep; when all have answered the leader does. Any other message,
//! any request and the end of the permission wake a member, with all of its timers at their beginning. What somebody asks
//! who is no member wakes nobody: one who was removed and does not know it would keep the group awake for ever.
//!
//! So a store that dies, or starts again, wakes all who share a group with it, and an election goes its usual way. Sleep
//! stands for no contact: a read takes its round, a lease is long over, and who asks for votes wakes whom it asks. A member
//! that did not hear that the others sleep campaigns and wakes them, and nobody is deposed, because they have heard their
//! leader.

use super::message::Body;
use super::progress::{Mode, Progress};
use super::{Core, Effects, RoleState};
use crate::{Index, NodeId};

/// What a core keeps for its sleep.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    allowed: bool,
    /// Neither heartbeats nor timers.
    pub(super) asleep: bool,
    /// When there was work last, in ticks of this core.
    worked_at: u64,
    /// A leader's: the members that sleep, once it has told them to.
    answered: Option<Vec<NodeId>>,
}

impl Core {
    /// Says whether the group may sleep; it may not unless this is called. Returns true when that woke it.
    pub fn allow_sleep(&mut self, allowed: bool) -> bool {
        self.sleep.allowed = allowed;
        !allowed && self.wake()
    }

    /// True while nothing happens by itself.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.sleep.asleep
    }

    /// There is something to do. Returns true when this member slept.
    pub(super) fn wake(&mut self) -> bool {
        self.sleep.worked_at = self.clock;
        self.sleep.answered = None;
        if !std::mem::take(&mut self.sleep.asleep) {
            return false;
        }
        match &mut self.role {
            RoleState::Leader(leader) => {
                // Nobody was asked to answer meanwhile.
                for progress in leader.progress.values_mut() {
                    progress.heard_at = leader.now;
                }
                self.ticks_since_contact = 0;
                leader.heartbeat_due = true;
            }
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {
                self.draw_election_timeout();
            }
        }
        true
    }

    /// A leader's heartbeats are due: from here on they say that the group sleeps, if it may.
    pub(super) fn fall_asleep(&mut self) {
        let idle = self.config.sleep_ticks > 0
            && self.sleep.allowed
            && self.clock - self.sleep.worked_at >= self.config.sleep_ticks
            && self.has_nothing_to_do();
        if !idle {
            self.sleep.answered = None;
        } else if self.sleep.answered.is_none() {
            self.sleep.answered = Some(Vec::new());
        }
    }

    pub(super) fn is_falling_asleep(&self) -> bool {
        self.sleep.answered.is_some()
    }

    /// All that there is, everybody has, and nobody waits for anything.
    fn has_nothing_to_do(&self) -> bool {
        let last = self.log.last_index();
        let settled = self.commit == last
            && self.applied == last
            && self.persisted == last
            && self.inflight.is_empty()
            && !self.incarnation.guarded;
        let RoleState::Leader(leader) = &self.role else {
            return settled && self.asking.is_idle();
        };
        let me = self.config.id;
        let has_all =
            |progress: &Progress| progress.mode == Mode::Replicate && progress.matched() == last;
        settled
            && leader.transfer.is_none()
            && leader.reads_waiting.is_empty()
            && leader.rounds.is_empty()
            && leader.lease.reads.is_empty()
            && leader.progress.len() > 1
            && leader
                .progress
                .iter()
                .all(|(id, progress)| *id == me || has_all(progress))
    }

    /// The leader wants the group to sleep, and its log ends at `last`.
    pub(super) fn told_to_sleep(
        &mut self,
        from: NodeId,
        incarnation: u64,
        last: Index,
        out: &mut Effects,
    ) {
        // What the leader knows of another incarnation of the log says nothing about this one.
        let agrees = last == self.log.last_index()
            && self.sleep.allowed
            && incarnation == self.incarnation.number;
        if agrees {
            // It has acknowledged all of it in this term, or the leader would not know that.
            self.commit_to(last, out);
        }
        if agrees && self.has_nothing_to_do() {
            self.sleep.asleep = true;
            self.ticks_since_contact = 0;
        } else {
            self.wake();
        }
        // The answer counts as a sign of life in any case.
        let asleep = self.sleep.asleep;
        self.send(out, from, Body::SleepReply { asleep });
        if self.incarnation.guarded {
            self.send(out, from, Body::Guarded);
        }
    }

    /// A member sleeps, or cannot yet.
    pub(super) fn sleeps(&mut self, from: NodeId, asleep: bool) {
        let RoleState::Leader(leader) = &self.role else {
            return;
        };
        let Some(answered) = &mut self.sleep.answered else {
            return;
        };
        if !asleep || !leader.progress.contains_key(&from) {
            return;
        }
        if !answered.contains(&from) {
            answered.push(from);
        }
        if answered.len() + 1 == leader.progress.len() && self.has_nothing_to_do() {
            self.sleep.answered = None;
            self.sleep.asleep = true;
        }
    }
}
