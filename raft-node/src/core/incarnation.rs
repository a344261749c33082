//! A member whose log lost entries that it may have acknowledged.
//!
//! A start that finds damage cuts the log, and with it maybe an entry that was committed because this member had it. The
//! member comes back under a new incarnation of its log, with a guard, both durable before it says anything. Two things keep
//! its loss from becoming the group's:
//!
//! - What a leader believes of the member belongs to an incarnation, which each answer carries. An answer of a later one
//!   begins anew, at nothing matched; one of an earlier one is dropped, or it would count for entries that are gone. A
//!   heartbeat speaks of the incarnation that the leader knows; under another one its commit index is ignored.
//! - While it is guarded the member neither votes nor says that it would, and does not campaign: without the entry it could
//!   help a candidate that lacks it too. It takes entries and acknowledges them, which is true of the log that it has now.
//!
//! The guard ends when the member's log durably agrees with a leader's up to the last index that this leader had when it
//! first saw the incarnation. The leader is of the member's term or a later one, so whatever the member had acknowledged
//! and was committed is in its log: entries of earlier terms by the election, which the member took no part in since, and
//! entries of its own because acknowledgements of the earlier incarnation do not count any more.
//!
//! Two voters of which one is guarded cannot elect: the other one must have kept its log and its lead, or an operator
//! decides. Source: Alagappan and others, "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018), from which the
//! rule to wait for a leader comes; the incarnations are ours.

use super::message::Body;
use super::{Core, Effects, RoleState};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId, Term};

pub use raft_log::Incarnation;

/// What a guarded member knows of its way back, in one term.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target {
    term: Term,
    /// Reaching it ends the guard; none while the leader has not named it.
    until: Option<Index>,
    /// The log agrees with the leader's up to here.
    agreed: Index,
}

impl Core {
    /// Whether an answer of a member is about the log that it has. One of a later incarnation makes the leader forget what
    /// it believed of the member.
    pub(super) fn is_of_latest_log(&mut self, from: NodeId, incarnation: u64) -> bool {
        let last_index = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else {
            return true;
        };
        let Some(progress) = leader.progress.get_mut(&from) else {
            return true;
        };
        if incarnation > progress.incarnation() {
            progress.begin_anew(incarnation, last_index);
        }
        incarnation == progress.incarnation() || bug(Bug::CountLostLog)
    }

    /// A guarded member asks where its guard ends. If it has been started again since it caught up, it does not know that it
    /// did: an append will tell, empty or not.
    pub(super) fn tell_end_of_guard(&mut self, to: NodeId, out: &mut Effects) {
        if let RoleState::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&to)
        {
            progress.verify = true;
            let until = progress.first_seen_at();
            let incarnation = progress.incarnation();
            self.send_about(out, to, incarnation, Body::GuardEnd { until });
        }
    }

    /// Answers a heartbeat of the leader: what it says of the commit index holds for the log that it was sent for.
    pub(super) fn answer_heartbeat(
        &mut self,
        from: NodeId,
        incarnation: u64,
        commit: Index,
        round: u64,
        out: &mut Effects,
    ) {
        if incarnation == self.incarnation.number {
            assert!(
                commit <= self.log.last_index(),
                "group {}: {from} says that {commit} is committed, but the log ends at {}: acknowledged entries were lost",
                self.config.group,
                self.log.last_index()
            );
            self.commit_to(commit, out);
        }
        self.send(out, from, Body::HeartbeatReply { round });
        if self.incarnation.guarded {
            self.send(out, from, Body::Guarded);
        }
    }

    /// The leader names the end of the guard of this incarnation.
    pub(super) fn guarded_until(&mut self, incarnation: u64, until: Index, out: &mut Effects) {
        if self.incarnation.guarded && incarnation == self.incarnation.number {
            self.target_in_term().until = Some(until);
            self.check_guard(out);
        }
    }

    /// The log agrees with the leader's up to `index`.
    pub(super) fn agreed(&mut self, index: Index) {
        if self.incarnation.guarded {
            let target = self.target_in_term();
            target.agreed = target.agreed.max(index);
        }
    }

    /// What was learned from the leader of an earlier term says nothing about this one's log.
    fn target_in_term(&mut self) -> &mut Target {
        if self.target.term != self.term {
            self.target = Target {
                term: self.term,
                ..Target::default()
            };
        }
        &mut self.target
    }

    /// Ends the guard once the log has durably what it takes.
    pub(super) fn check_guard(&mut self, out: &mut Effects) {
        if !self.incarnation.guarded {
            return;
        }
        let persisted = self.persisted;
        let Target { until, agreed, .. } = *self.target_in_term();
        if until.is_some_and(|until| until <= agreed && until <= persisted) {
            self.incarnation.guarded = false;
            out.repaired = Some(self.incarnation.number);
        }
    }
}
