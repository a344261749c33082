//! A group whose log begins anew after a snapshot, and one whose members need snapshots. The bytes are others' work.
//!
//! The order is fixed by what a crash leaves: the file, then the log's base with the reference to it, then the state
//! machine. A crash between the last two leaves a log that begins after what is applied, and the next start takes the
//! state from the file. `docs/DURABILITY.md` has the table.
//!
//! A state that is wrong while the log is right is replaced without the log: the snapshot lies ahead of what is applied,
//! and what follows it is applied from the log as it was. A crash leaves the old state or the new one, as the state machine
//! takes a snapshot up as a whole; either goes with the log.

use std::collections::VecDeque;

use raft_log::{Base, Record, SnapshotRef, WriteBatch};

use super::{Event, Group};
use crate::core::{
    Input, Membership, MembershipError, PersistId, Snapshot, SnapshotReport, SnapshotVerdict,
};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId, StateMachine, Term};

/// A snapshot on its way into log and state machine.
pub(super) struct Restore {
    snapshot: SnapshotRef,
    membership: Membership,
    /// The batch that carries the log's new base.
    batch: Option<PersistId>,
    /// That batch is on disk.
    is_durable: bool,
}

impl Restore {
    pub(super) fn persisted(&mut self, id: PersistId) {
        self.is_durable |= self.batch.is_some_and(|batch| batch <= id);
    }
}

impl<S: StateMachine> Group<S> {
    /// A snapshot of this group's creation is here, its file durable. `from` led in the term `sent_in` when it sent it.
    ///
    /// With [`SnapshotVerdict::Restart`] the file must stay: the next [`Group::collect`] makes the log refer to it.
    ///
    /// # Errors
    /// A membership that cannot be read; nothing has changed.
    pub fn receive_snapshot(
        &mut self,
        from: NodeId,
        sent_in: Term,
        snapshot: &SnapshotRef,
    ) -> Result<SnapshotVerdict, MembershipError> {
        if self.restore.is_some() {
            return Ok(SnapshotVerdict::Refused);
        }
        let membership = Membership::decode(&snapshot.membership)?;
        self.step(Input::SnapshotReceived {
            from,
            sent_in,
            snapshot: Snapshot {
                index: snapshot.index,
                term: snapshot.term,
                membership: membership.clone(),
            },
        });
        let verdict = self.effects.snapshot.take();
        let verdict = verdict.expect("the core says what becomes of a snapshot");
        if verdict == SnapshotVerdict::Restart {
            self.restore = Some(Restore {
                snapshot: snapshot.clone(),
                membership,
                batch: None,
                is_durable: bug(Bug::RestoreBeforeSync),
            });
        }
        Ok(verdict)
    }

    /// True from the moment in which a snapshot was accepted until the state machine has taken it up.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.restore.is_some()
    }

    /// The snapshot that the state machine is to take up now: the log says durably that it begins after it, or has what it
    /// covers.
    #[must_use]
    pub fn restoring(&self) -> Option<&SnapshotRef> {
        let restore = self.restore.as_ref()?;
        restore.is_durable.then_some(&restore.snapshot)
    }

    /// Applies nothing from now on, or goes on. A leader applies all the same: nobody has a state for it.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// True while nothing is applied, because the state is to be replaced.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Lets a snapshot replace the state of a group that is held, though the log has what it covers. The file must stay until
    /// [`Group::restored`]. False, and nothing has changed, when it does not lie between what is applied and what could be.
    ///
    /// # Errors
    /// A membership that cannot be read; nothing has changed.
    pub fn replace_state(&mut self, snapshot: &SnapshotRef) -> Result<bool, MembershipError> {
        let membership = Membership::decode(&snapshot.membership)?;
        let is_ahead = snapshot.index > self.applied && snapshot.index <= self.apply_limit();
        let fits = is_ahead && self.log.term_at(self.id, snapshot.index) == Some(snapshot.term);
        if !fits || !self.held || self.restore.is_some() {
            return Ok(false);
        }
        // Which memberships led there is not known, so the base stays below until the new state is durable.
        self.memberships.truncate(1);
        self.memberships
            .push_back((snapshot.index, membership.clone()));
        self.unknown_memberships_below = snapshot.index;
        self.restore = Some(Restore {
            snapshot: snapshot.clone(),
            membership,
            batch: None,
            is_durable: true,
        });
        Ok(true)
    }

    /// The state machine, to be replaced by the snapshot that [`Group::restoring`] names.
    pub fn machine_mut(&mut self) -> &mut S {
        &mut self.machine
    }

    /// The state machine has taken the snapshot up, as a whole.
    ///
    /// # Panics
    /// If it does not stand where the snapshot ends.
    pub fn restored(&mut self) {
        let restore = self.restore.take().filter(|restore| restore.is_durable);
        let restore = restore.expect("a snapshot was to be taken up");
        let applied = self.machine.applied();
        let wanted = (restore.snapshot.index, restore.snapshot.term);
        assert_eq!(
            (applied.index, applied.term),
            wanted,
            "the state machine stands where its snapshot ends"
        );
        self.held = false;
        self.applied = applied.index;
        // What became of those that it covers is not known.
        while let Some(&(_, _, token)) = self
            .proposals
            .front()
            .filter(|(at, _, _)| *at <= applied.index)
        {
            self.proposals.pop_front();
            self.events.push(Event::Unknown(token));
        }
        self.step(Input::Applied(applied.index));
        if !restore.membership.is_joint() {
            self.end_changes();
        }
        self.release_reads();
    }

    /// Members that need a snapshot of the log's base or above it, each with the term in which this member leads.
    pub fn take_snapshots_needed(&mut self) -> impl Iterator<Item = (NodeId, Term)> + '_ {
        self.snapshots_needed.drain(..)
    }

    /// What becomes of a snapshot that a member needs.
    pub fn snapshot_report(&mut self, to: NodeId, report: SnapshotReport) {
        self.step(Input::SnapshotReport { to, report });
    }

    /// Adds the records after which the log holds nothing and begins after the snapshot. All of them are in one batch, so
    /// a log whose base has moved always names the file that covers the gap.
    pub(super) fn restart_log(&mut self, batch: &mut WriteBatch, id: PersistId) {
        let restore = self.restore.as_mut();
        let restore = restore.expect("the log begins anew with what was received");
        restore.batch = Some(id);
        let (snapshot, membership) = (restore.snapshot.clone(), restore.membership.clone());
        let info = self.log.group(self.id).expect("the group is in the log");
        if info.last_index > info.base.index {
            batch.push(self.id, Record::Truncate(info.base.index.next()));
        }
        self.base = Base {
            index: snapshot.index,
            term: snapshot.term,
            creation: self.base.creation,
            membership: snapshot.membership.clone(),
        };
        self.memberships = VecDeque::from([(snapshot.index, membership)]);
        self.unknown_memberships_below = snapshot.index;
        batch.push(self.id, Record::Compact(self.base.clone()));
        if !bug(Bug::RestartWithoutReference) {
            batch.push(self.id, Record::SnapshotRef(snapshot));
        }
        // What was proposed here is in the snapshot, or overwritten: nobody knows.
        self.forget_from(Index::ZERO);
    }
}
