//! Snapshots, by what they cover alone: their bytes travel outside the core.
//!
//! A leader asks for one to be sent when the entry that a member needs next has left its log, and sends that member
//! nothing else until it hears that the snapshot was taken up, that its transfer failed, or nothing for too long. A member
//! that receives one either has what it covers, or begins its log anew with it. What a snapshot covers is committed: no
//! leader of its term or a later one lacks it, so it may be taken up in whatever term it arrives.
//!
//! Source: Ongaro's dissertation, chapter 5.

use super::message::Body;
use super::progress::Mode;
use super::{Core, Effects, Membership, RoleState};
use crate::{Index, NodeId, Term};

/// What a snapshot covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last index whose entry is in it.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership as of that index.
    pub membership: Membership,
}

/// How the transfer of a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReport {
    /// It is in the making, or on its way.
    Moving,
    /// The member's log begins after this index, durably, or it has had what the snapshot covers.
    Taken(Index),
    /// It came to nothing. The next try waits for a sign of life of the member.
    Failed,
}

/// What becomes of a snapshot that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotVerdict {
    /// The log begins anew after it: the next persist batch says so. Once that is durable the state machine takes it up.
    Restart,
    /// The log has what it covers. It is of no use.
    Covered,
    /// Another one is being taken up, and this one may be sent again later; or no leader sends such a one.
    Refused,
}

impl Core {
    /// A snapshot is here, durably, and nothing refers to it yet.
    pub(super) fn snapshot_received(
        &mut self,
        from: NodeId,
        sent_in: Term,
        snapshot: Snapshot,
        out: &mut Effects,
    ) {
        // No leader sends that.
        if snapshot.term > sent_in || from == self.config.id {
            out.snapshot = Some(SnapshotVerdict::Refused);
            return;
        }
        if sent_in > self.term {
            self.become_follower(sent_in, Some(from), out);
        } else if sent_in == self.term {
            self.follow(from, out);
        }
        // The current leader has all that is committed.
        let index = snapshot.index;
        let verdict = self.take_snapshot(snapshot, out);
        if verdict != SnapshotVerdict::Refused && index <= self.commit {
            self.agreed(index);
            self.check_guard(out);
        }
        out.snapshot = Some(verdict);
    }

    fn take_snapshot(&mut self, snapshot: Snapshot, out: &mut Effects) -> SnapshotVerdict {
        let Snapshot { index, term, .. } = snapshot;
        let leads = matches!(self.role, RoleState::Leader(_));
        if index <= self.commit || leads {
            // A leader has all that is committed. Others say how far they are, or one who hears nothing would send it
            // again.
            self.attest_to_leader(self.commit);
            return SnapshotVerdict::Covered;
        }
        if self.log.term_at(index) == Some(term) {
            self.commit_to(index, out);
            self.attest_to_leader(index);
            return SnapshotVerdict::Covered;
        }
        if self.is_restoring() {
            return SnapshotVerdict::Refused;
        }
        if !matches!(self.role, RoleState::Follower) {
            // Whatever it asks for votes with, it asks with a log that is over.
            let (term, leader) = (self.term, self.leader);
            self.become_follower(term, leader, out);
        }
        // Batches under way wrote entries of a log that is over. Of them only what is committed counts still.
        let committed = self.commit;
        for batch in &mut self.inflight {
            batch.last_index = batch.last_index.min(committed);
        }
        self.persisted = self.persisted.min(committed);
        self.log.restart(index, term);
        self.unsent = index.next();
        self.truncate_from = None;
        self.commit_to(index, out);
        let membership = snapshot.membership.clone();
        self.restart = Some(snapshot);
        self.restart_memberships(membership);
        self.attest_to_leader(index);
        SnapshotVerdict::Restart
    }

    /// Acknowledges to whoever leads now; a leader that is not known finds out by itself.
    fn attest_to_leader(&mut self, matched: Index) {
        if let Some(leader) = self.leader.filter(|leader| *leader != self.config.id) {
            self.attest(leader, Body::AppendReply { matched });
        }
    }

    /// True while the log begins after what the state machine has applied: a snapshot is being taken up.
    pub(super) fn is_restoring(&self) -> bool {
        self.applied < self.log.base_index()
    }

    /// What becomes of a snapshot that a member needs.
    pub(super) fn snapshot_reported(&mut self, to: NodeId, report: SnapshotReport) {
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress.get_mut(&to) else {
            return;
        };
        match report {
            SnapshotReport::Moving => progress.snapshot_moves(leader.now),
            SnapshotReport::Taken(index) => {
                assert!(
                    index <= self.log.last_index(),
                    "a snapshot of {index} was sent, but the log ends at {}",
                    self.log.last_index()
                );
                progress.snapshot_taken(index);
            }
            SnapshotReport::Failed => progress.snapshot_failed(),
        }
    }

    /// Gives up the transfers that nothing was heard of for too long.
    pub(super) fn check_snapshots(&mut self) {
        let bound = self.config.snapshot_ticks_max;
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        for progress in leader.progress.values_mut() {
            if matches!(progress.mode, Mode::Snapshot { since } if leader.now - since >= bound) {
                progress.snapshot_failed();
            }
        }
    }

    /// True while this member leads and waits for a snapshot to reach `to`.
    #[must_use]
    pub fn waits_for_snapshot(&self, to: NodeId) -> bool {
        match &self.role {
            RoleState::Leader(leader) => leader
                .progress
                .get(&to)
                .is_some_and(|progress| matches!(progress.mode, Mode::Snapshot { .. })),
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => false,
        }
    }
}
