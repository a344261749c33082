//! Members come and go: changes of the membership, drawn as faults, asked of whoever leads.
//!
//! A new member has a new id and an empty disk, and runs from the moment in which it is asked for: nobody can tell whether an
//! answer that does not come means that nothing came of it. One that left runs on for a while, and then is gone for ever.
//! Members whose log rots stay a minority of the voters, or nothing good would be left.

use std::collections::BTreeSet;

use kv_server::mvcc::CommandOutput;
use multiraft::HostError;
use raft_log::NodeId;
use raft_node::core::{Change, ChangeStep, Membership};

use super::fault::{ChangeKind, Fault, SECOND};
use super::serve::Done;
use super::{Event, World};
use crate::sim::node::GROUP;

/// Members at a time.
const MEMBERS_MAX: usize = 7;
/// Fewer voters than this would be no group that survives anything.
const VOTERS_MIN: usize = 3;
/// Ticks that a member runs on after it has left, at most.
const LEFT_TICKS: u64 = 5 * SECOND;

impl World {
    /// Asks for a change of the membership; what is counted of it.
    pub(super) fn change(&mut self, kind: ChangeKind, pick: u64) -> &'static str {
        let Some(leader) = self.leader() else {
            return "changes without a leader";
        };
        let now = self.members[leader].node.membership().clone();
        let next_id = NodeId(self.members.len() as u64 + 1);
        let steps = self.steps(&now, kind, pick, next_id);
        // While another change is under way this one is refused.
        let settled = now.left();
        let Ok(next) = settled.changed(&steps) else {
            return "changes of nothing";
        };
        if !self.is_safe(&next) {
            return "changes that would leave too little";
        }
        let added = |step: &&ChangeStep| {
            matches!(step, ChangeStep::AddVoter(_) | ChangeStep::AddLearner(_))
        };
        let first_new = self.members.len();
        for _ in steps.iter().filter(added) {
            self.join();
        }
        let done = self.done.clone();
        let change = Change {
            steps: steps.clone(),
            ..Change::default()
        };
        let reply = Box::new(move |answer| {
            done.get().push(Done::Changed {
                steps,
                first_new,
                answer,
            });
        });
        let member = &mut self.members[leader];
        member.node.up().handle.change(GROUP, change, reply);
        member.due = member.due.min(self.now);
        "changes asked for"
    }

    fn steps(
        &self,
        now: &Membership,
        kind: ChangeKind,
        pick: u64,
        next: NodeId,
    ) -> Vec<ChangeStep> {
        let (members, voters) = (now.members(), &now.voters);
        let one = |from: &[NodeId]| {
            from.get((pick % from.len().max(1) as u64) as usize)
                .copied()
        };
        let room = MEMBERS_MAX.saturating_sub(members.len());
        let add = |count: usize| {
            let ids = (next.0..).take(count.min(room)).map(NodeId);
            ids.map(ChangeStep::AddVoter)
        };
        let lost = |id: &NodeId| self.members[id.0 as usize - 1].lost;
        let worst = voters.iter().copied().find(lost).or(one(voters));
        let promote = now.learners.iter().copied().map(ChangeStep::Promote);
        match kind {
            ChangeKind::Learner => add(1)
                .map(|step| ChangeStep::AddLearner(step.member()))
                .collect(),
            ChangeKind::Voter => add(1).collect(),
            ChangeKind::Promote => promote.take(1).collect(),
            ChangeKind::Remove => one(&members).map(ChangeStep::Remove).into_iter().collect(),
            ChangeKind::Replace => {
                let leaves = worst.map(ChangeStep::Remove);
                let comes = now.learners.first().copied().map(ChangeStep::Promote);
                let comes = comes.or_else(|| add(1).next());
                leaves.into_iter().chain(comes).collect()
            }
            ChangeKind::Several => {
                let leaves = one(voters).map(ChangeStep::Remove);
                promote.chain(leaves).chain(add(2)).collect()
            }
        }
    }

    /// Enough stays, and what has rotted or is going to is a minority of it.
    fn is_safe(&self, next: &Membership) -> bool {
        let rots = |scheduled: &super::fault::Scheduled| match scheduled.fault {
            Fault::BitRot { node, .. } | Fault::LoseLog { node, .. } => {
                Some(NodeId(node as u64 + 1))
            }
            _ => None,
        };
        let doomed: BTreeSet<NodeId> = self.plan.faults.iter().filter_map(rots).collect();
        let few = |voters: &[NodeId]| {
            let bad = voters.iter().filter(|id| doomed.contains(id)).count();
            voters.is_empty() || bad <= (voters.len() - 1) / 2
        };
        let voters = VOTERS_MIN..=MEMBERS_MAX;
        voters.contains(&next.voters.len()) && few(&next.voters) && few(&next.voters_outgoing)
    }

    /// A member with an empty disk starts.
    fn join(&mut self) {
        let at = self.members.len();
        let member = self.new_member(NodeId(at as u64 + 1));
        self.members.push(member);
        self.witness.joined();
        self.at(self.now, Event::Start(at));
        self.at(self.now + 1 + at as u64, Event::Client(at));
        self.settle_faults();
    }

    /// What became of a change.
    pub(super) fn change_done(
        &mut self,
        steps: &[ChangeStep],
        first_new: usize,
        answer: &Result<CommandOutput, HostError>,
    ) {
        match answer {
            Ok(_) => {
                self.count("changes made");
                for step in steps {
                    if let ChangeStep::Remove(id) = step {
                        let ticks = self.churn.below(LEFT_TICKS);
                        self.at(self.now + ticks, Event::Leave(id.0 as usize - 1));
                    }
                }
            }
            Err(HostError::OutcomeUnknown) => self.count("changes with an unknown outcome"),
            // Nothing was proposed, so nobody needs who was to come.
            Err(_) => {
                self.count("changes refused");
                let added = steps.iter().filter(|step| {
                    matches!(step, ChangeStep::AddVoter(_) | ChangeStep::AddLearner(_))
                });
                for at in first_new..first_new + added.count() {
                    self.at(self.now + 1, Event::Leave(at));
                }
            }
        }
    }

    /// A member that has left is stopped for ever.
    pub(super) fn leave(&mut self, at: usize) {
        if !self.members[at].gone {
            self.members[at].gone = true;
            self.count("members gone");
            if self.members[at].node.is_up() {
                self.crash(at, false, 16, 1);
            }
        }
    }

    /// The membership that the leader goes by, once it is applied, no other one is on its way, and nobody knows a later one:
    /// a leader that is cut off may not have heard of that.
    pub(super) fn membership(&self) -> Option<Membership> {
        let node = &self.members[self.leader()?].node;
        let membership = node.membership().clone();
        let members: BTreeSet<u64> = membership.members().iter().map(|id| id.0).collect();
        let oracle = self.oracle.get();
        let is_newest = oracle
            .model()
            .members()
            .is_none_or(|known| *known == members);
        let settled = node.core_status().committed_in_term && !membership.is_joint();
        let applied = node.applied_membership() == membership;
        (is_newest && settled && applied).then_some(membership)
    }

    /// Whoever is up and no member any more is stopped.
    pub(super) fn stop_strangers(&mut self) {
        let Some(membership) = self.membership() else {
            return;
        };
        for at in 0..self.members.len() {
            if !membership.contains(self.members[at].node.id) {
                self.leave(at);
            }
        }
    }
}
