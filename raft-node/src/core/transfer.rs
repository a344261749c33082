//! Leadership is handed over: on command, or because the leader's disk stalls.
//!
//! A transfer refuses proposals until it ends, brings the target up to the last entry, and tells it to campaign although
//! its peers hear a leader. The order names the last entry, and who does not hold it durably ignores it. A transfer that
//! does not end within an election timeout is given up. It ends the leader's lease for the rest of the
//! term; reads go through a round then, which a deposed leader cannot complete.
//!
//! Source: Ongaro's dissertation, section 3.10.

use super::message::Body;
use super::progress::{Mode, Progress};
use super::{Core, Effects, RoleState};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId, Term};

/// A transfer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    /// When it began, in ticks of this lead.
    started: u64,
    /// The target was told, and no heartbeat has passed since.
    told: bool,
}

impl Core {
    /// Begins a transfer. Nothing happens unless this member leads, the target is another voter, and no transfer is
    /// under way; [`super::Status::transferring`] tells.
    pub(super) fn transfer(&mut self, to: NodeId) {
        // Who is about to leave does not take over.
        let votes = to != self.config.id && self.membership.voters.contains(&to);
        if let RoleState::Leader(leader) = &mut self.role
            && votes
            && leader.transfer.is_none()
        {
            leader.lease.is_void = !bug(Bug::LeaseOverTransfer);
            leader.transfer = Some(Transfer {
                to,
                started: leader.now,
                told: false,
            });
            // What was sent to the target may be lost: a sign of life of its shows that within a heartbeat.
            leader.heartbeat_due = true;
        }
    }

    /// Tells the target once it holds the whole log durably, and again with each heartbeat.
    pub(super) fn tell_target(&mut self, heartbeat: bool, out: &mut Effects) {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(transfer) = &mut leader.transfer else {
            return;
        };
        let matched = leader.progress.get(&transfer.to).map(Progress::matched);
        if matched != Some(last_index) || (transfer.told && !heartbeat) {
            return;
        }
        transfer.told = true;
        let to = transfer.to;
        let body = Body::TimeoutNow {
            last_index,
            last_term,
        };
        self.send(out, to, body);
    }

    /// The leader wants this member to lead. Who lacks the entry that it names would lose, or open its term over a log
    /// that it does not hold: the leader gives up or tells again.
    pub(super) fn told_to_campaign(
        &mut self,
        last_index: Index,
        last_term: Term,
        out: &mut Effects,
    ) {
        let held = self.log.term_at(last_index) == Some(last_term) && self.persisted >= last_index;
        if held && self.membership.is_voter(self.config.id) && !self.is_restoring() {
            self.campaign(true, out);
        }
    }

    /// Ends a transfer that takes too long.
    pub(super) fn check_transfer(&mut self) {
        let timeout = self.config.election_ticks;
        if let RoleState::Leader(leader) = &mut self.role
            && let Some(transfer) = leader.transfer
            && leader.now - transfer.started >= timeout
        {
            leader.transfer = None;
        }
    }

    /// True when the oldest write has been under way for longer than the bound. A sole voter has nobody to turn to.
    pub(super) fn disk_stalls(&self) -> bool {
        let stalled = self.inflight.front().is_some_and(|oldest| {
            self.clock.saturating_sub(oldest.since) >= self.config.persist_ticks_max
        });
        stalled && !self.membership.is_sole_voter(self.config.id)
    }

    /// A leader whose disk stalls hands over to the voter that holds most, or steps down when it has nobody or the
    /// hand-over has failed.
    pub(super) fn check_disk(&mut self, out: &mut Effects) {
        let stalls = self.disk_stalls();
        let (me, membership) = (self.config.id, &self.membership);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        if !stalls {
            leader.handed_over = false;
            return;
        }
        if leader.transfer.is_some() {
            return;
        }
        let heartbeat = self.config.heartbeat_ticks.saturating_mul(2);
        let target = leader
            .progress
            .iter()
            .filter(|(id, progress)| {
                **id != me
                    && membership.voters.contains(id)
                    && progress.mode == Mode::Replicate
                    && leader.now - progress.heard_at <= heartbeat
            })
            .max_by_key(|(id, progress)| (progress.matched(), std::cmp::Reverse(**id)))
            .map(|(id, _)| *id);
        match target {
            Some(to) if !std::mem::replace(&mut leader.handed_over, true) => self.transfer(to),
            _ => {
                let term = self.term;
                self.become_follower(term, None, out);
            }
        }
    }
}
