//! Membership changes: what may be proposed, when a change is in force, and how it ends.
//!
//! A membership is in force from the moment its entry is in the log, committed or not; an entry that is cut takes its
//! membership along. A change of the voters goes through a joint configuration, in which both majorities decide; once that
//! is applied, the leader appends the entry that leaves it. Learners alone come and go in one step. The next change waits
//! until the one before is applied and left, and until the leader has committed an entry of its own term: before that, two
//! leaders could commit by majorities that do not meet.
//!
//! A member whose removal is in its log, but not committed as far as it knows, still campaigns, without a vote of its own: it
//! may be the only one that holds the entry, and the others vote for nobody who lacks it.
//!
//! A leader that is no voter any more leads until the entry that says so is committed, without counting itself. Then it
//! tells everybody, asks a voter to campaign, and steps down. Members that left get entries up to that point too, so that
//! they learn of it; one that does not learn of it disturbs nobody, because who hears a leader answers no campaign.
//!
//! Source: Ongaro's dissertation, chapter 4, and the correction of 2015 ("bug in single-server membership changes").

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use super::membership::Membership;
use super::message::Body;
use super::progress::Progress;
use super::{Core, DropReason, Effects, RoleState};
use crate::testing::{Bug, bug};
use crate::{Entry, EntryKind, Index, NodeId};

/// A learner may vote once it holds this much of the leader's log, in percent, as etcd demands.
const IN_SYNC_PERCENT: u64 = 90;

/// More voters than this are refused: each of them is one more fsync that a commit may wait for.
pub const VOTERS_MAX: usize = 16;

/// One part of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeStep {
    /// A new member that votes at once.
    AddVoter(NodeId),
    /// A new member that gets the log and does not vote.
    AddLearner(NodeId),
    /// A learner becomes a voter; refused while it lags.
    Promote(NodeId),
    /// A voter or learner leaves.
    Remove(NodeId),
}

impl ChangeStep {
    /// The member that it is about.
    #[must_use]
    pub fn member(&self) -> NodeId {
        match *self {
            Self::AddVoter(id) | Self::AddLearner(id) | Self::Promote(id) | Self::Remove(id) => id,
        }
    }
}

/// A change of the membership: all of its steps at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What changes; each member occurs once at most.
    pub steps: Vec<ChangeStep>,
    /// What the layer above wants to learn together with the change, such as the addresses of a new member. It is part of the
    /// first entry of the change: [`Membership::context`].
    pub context: Bytes,
}

/// Why a change is refused. Nothing was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeError {
    /// The change before, at this index, is not applied or not left yet.
    InProgress(Index),
    /// The leader has not committed an entry of its own term yet.
    NothingCommittedInTerm,
    /// There is nothing to change.
    NoSteps,
    /// A member occurs in two steps, or the id is zero.
    Ambiguous(NodeId),
    /// The new member is one already.
    AlreadyMember(NodeId),
    /// Who is to leave or to be promoted is no member.
    NotMember(NodeId),
    /// Who is to be promoted votes already.
    NotLearner(NodeId),
    /// Who is to be promoted lacks too much of the log.
    NotInSync {
        /// The learner.
        learner: NodeId,
        /// What it holds of the leader's log.
        matched: Index,
        /// The end of the leader's log.
        last_index: Index,
    },
    /// Nobody would vote.
    NoVoters,
    /// More than [`VOTERS_MAX`] would vote.
    TooManyVoters,
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProgress(index) => write!(
                f,
                "the membership change at index {index} is not finished; try again when it is"
            ),
            Self::NothingCommittedInTerm => f.write_str(
                "the leader has not committed an entry of its own term yet; try again shortly",
            ),
            Self::NoSteps => f.write_str("the change is empty"),
            Self::Ambiguous(id) => write!(
                f,
                "member {id} is named twice in one change, or its id is zero"
            ),
            Self::AlreadyMember(id) => write!(f, "{id} is a member already"),
            Self::NotMember(id) => write!(f, "{id} is no member"),
            Self::NotLearner(id) => write!(f, "{id} is no learner: it votes already"),
            Self::NotInSync {
                learner,
                matched,
                last_index,
            } => write!(
                f,
                "learner {learner} holds the log up to {matched} of {last_index}; promote it when it has caught up"
            ),
            Self::NoVoters => f.write_str("nobody would be left to vote"),
            Self::TooManyVoters => write!(f, "more than {VOTERS_MAX} members would vote"),
        }
    }
}

impl std::error::Error for ChangeError {}

/// The membership in force and those that it would fall back to, ascending by the index of their entries. The first one's
/// entry is committed; the others' may still be cut.
#[derive(Debug)]
pub(super) struct History(VecDeque<(Index, Membership)>);

impl History {
    /// `first` is the newest membership that cannot be cut any more.
    pub(super) fn new(first: Membership, later: Vec<(Index, Membership)>, commit: Index) -> Self {
        let mut history = Self(VecDeque::from([(Index::ZERO, first)]));
        for (index, membership) in later {
            history.push(index, membership);
        }
        history.committed(commit);
        history
    }

    fn newest(&self) -> &(Index, Membership) {
        self.0.back().expect("a history is never empty")
    }

    pub(super) fn in_force(&self) -> &Membership {
        &self.newest().1
    }

    fn push(&mut self, index: Index, membership: Membership) {
        assert!(index > self.newest().0, "memberships ascend along the log");
        membership.assert_valid();
        self.0.push_back((index, membership));
    }

    /// The entries from `from` on are gone. Returns true when another membership is in force.
    fn cut(&mut self, from: Index) -> bool {
        let before = self.0.len();
        self.0.retain(|(index, _)| *index < from);
        assert!(!self.0.is_empty(), "a committed membership is never cut");
        self.0.len() < before
    }

    /// What lies below the newest committed membership is never needed again.
    pub(super) fn committed(&mut self, commit: Index) {
        while self.0.get(1).is_some_and(|(index, _)| *index <= commit) {
            self.0.pop_front();
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.0.len() == 1
    }

    /// True when the member votes now, or would again if what is not committed were cut.
    fn lets_vote(&self, id: NodeId) -> bool {
        self.0.iter().any(|(_, membership)| membership.is_voter(id))
    }
}

impl Membership {
    /// What the steps lead to: joint when voters come or go.
    pub fn changed(&self, steps: &[ChangeStep]) -> Result<Self, ChangeError> {
        assert!(
            self.voters_outgoing.is_empty(),
            "a change begins outside a joint configuration"
        );
        if steps.is_empty() {
            return Err(ChangeError::NoSteps);
        }
        let mut next = self.clone();
        for (at, step) in steps.iter().enumerate() {
            let id = step.member();
            if id == NodeId::ZERO || steps[..at].iter().any(|other| other.member() == id) {
                return Err(ChangeError::Ambiguous(id));
            }
            match step {
                ChangeStep::AddVoter(_) | ChangeStep::AddLearner(_) if self.contains(id) => {
                    return Err(ChangeError::AlreadyMember(id));
                }
                ChangeStep::Promote(_) | ChangeStep::Remove(_) if !self.contains(id) => {
                    return Err(ChangeError::NotMember(id));
                }
                ChangeStep::Promote(_) if self.is_voter(id) => {
                    return Err(ChangeError::NotLearner(id));
                }
                ChangeStep::AddVoter(_) => next.voters.push(id),
                ChangeStep::AddLearner(_) => next.learners.push(id),
                ChangeStep::Promote(_) => {
                    next.learners.retain(|learner| *learner != id);
                    next.voters.push(id);
                }
                ChangeStep::Remove(_) => {
                    next.learners.retain(|learner| *learner != id);
                    next.voters.retain(|voter| *voter != id);
                }
            }
        }
        next.voters.sort_unstable();
        next.learners.sort_unstable();
        if next.voters.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        if next.voters.len() > VOTERS_MAX {
            return Err(ChangeError::TooManyVoters);
        }
        if next.voters != self.voters {
            next.voters_outgoing.clone_from(&self.voters);
        }
        Ok(next)
    }

    /// What a joint configuration leads to.
    #[must_use]
    pub fn left(&self) -> Self {
        Self {
            voters_outgoing: Vec::new(),
            ..self.clone()
        }
    }

    /// Asserts that one membership may come after another: both are valid, a joint one is entered from its outgoing voters,
    /// and left to its incoming ones.
    fn assert_follows(&self, before: &Self) {
        self.assert_valid();
        if self.is_joint() {
            assert!(
                !before.is_joint(),
                "a joint configuration is left before the next one: {before:?}, {self:?}"
            );
            assert_eq!(
                self.voters_outgoing, before.voters,
                "a joint configuration begins with the voters before it"
            );
        } else {
            assert_eq!(
                self.voters, before.voters,
                "voters change by way of a joint configuration only"
            );
        }
    }
}

impl Core {
    /// Proposes a change. The token comes back with the index of its first entry, or with the reason of a refusal.
    pub(super) fn propose_change(&mut self, token: u64, change: &Change, out: &mut Effects) {
        match self.check_change(change) {
            Ok(next) => {
                let index = self.append_membership(next, &change.context);
                out.proposed.push((token, index, self.term));
            }
            Err(reason) => out.dropped.push((token, reason)),
        }
    }

    fn check_change(&self, change: &Change) -> Result<Membership, DropReason> {
        let RoleState::Leader(leader) = &self.role else {
            return Err(DropReason::NotLeader(self.leader));
        };
        let full = leader.uncommitted_bytes >= self.config.uncommitted_bytes_max;
        if full || leader.transfer.is_some() {
            return Err(DropReason::Busy);
        }
        if !self.committed_in_term() {
            return Err(ChangeError::NothingCommittedInTerm.into());
        }
        if self.change_in_progress() {
            return Err(ChangeError::InProgress(self.memberships.newest().0).into());
        }
        let next = self.membership.changed(&change.steps)?;
        let last_index = self.log.last_index();
        for step in &change.steps {
            if let ChangeStep::Promote(learner) = *step {
                let progress = leader.progress.get(&learner);
                let matched = progress.map_or(Index::ZERO, Progress::matched);
                let wide = |index: Index, by: u64| u128::from(index.0) * u128::from(by);
                if wide(matched, 100) < wide(last_index, IN_SYNC_PERCENT) {
                    let lags = ChangeError::NotInSync {
                        learner,
                        matched,
                        last_index,
                    };
                    return Err(lags.into());
                }
            }
        }
        Ok(next)
    }

    /// True until the newest change is applied here, and left.
    fn change_in_progress(&self) -> bool {
        let (index, newest) = self.memberships.newest();
        *index > self.applied || newest.is_joint()
    }

    fn append_membership(&mut self, next: Membership, context: &Bytes) -> Index {
        assert!(
            self.memberships.newest().0 <= self.applied || bug(Bug::LeaveJointEarly),
            "at most one change is not applied"
        );
        next.assert_follows(&self.membership);
        let index = self.append(EntryKind::Config, next.encode_with(context));
        self.memberships.push(index, next);
        self.adopt_membership();
        index
    }

    /// The newest membership of the log is in force from now on.
    fn adopt_membership(&mut self) {
        self.membership = self.memberships.in_force().clone();
        let next = self.log.last_index().next();
        if let RoleState::Leader(leader) = &mut self.role {
            let now = leader.now;
            for id in self.membership.members() {
                leader.progress.entry(id).or_insert_with(|| {
                    let mut progress = Progress::new(next, now);
                    if bug(Bug::NewMemberMatched) {
                        progress.acked(next.prev(), Index::ZERO);
                    }
                    progress
                });
            }
            leader.changing = true;
        }
    }

    /// Reads the memberships of entries that are about to enter the log. Those from the first unreadable one on are left
    /// out: nothing after it can be trusted to be committed by a majority that is known here.
    pub(super) fn read_memberships(
        entries: &mut Vec<Entry>,
        out: &mut Effects,
    ) -> Vec<(Index, Membership)> {
        let mut found = Vec::new();
        let configs = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.kind == EntryKind::Config);
        for (at, entry) in configs {
            if let Ok(membership) = Membership::decode(&entry.payload) {
                found.push((entry.index, membership));
            } else {
                out.unreadable = Some(entry.index);
                entries.truncate(at);
                break;
            }
        }
        found
    }

    /// Those of these memberships whose entries lie above `known` were appended for a leader.
    pub(super) fn follow_memberships(
        &mut self,
        mut memberships: Vec<(Index, Membership)>,
        known: Index,
    ) {
        memberships.retain(|(index, _)| *index > known);
        if memberships.is_empty() {
            return;
        }
        for (index, membership) in memberships {
            self.memberships.push(index, membership);
        }
        self.adopt_membership();
    }

    /// The log begins anew after a snapshot, with its membership.
    pub(super) fn restart_memberships(&mut self, membership: Membership) {
        self.memberships = History::new(membership, Vec::new(), self.commit);
        self.adopt_membership();
    }

    /// The log was cut.
    pub(super) fn cut_memberships(&mut self, from: Index) {
        if self.memberships.cut(from) {
            self.adopt_membership();
        }
    }

    /// Appends the entry that leaves a joint configuration, once that is applied here.
    pub(super) fn leave_joint(&mut self) {
        let RoleState::Leader(leader) = &self.role else {
            return;
        };
        if self.membership.is_joint()
            && leader.transfer.is_none()
            && (self.memberships.newest().0 <= self.applied || bug(Bug::LeaveJointEarly))
            && self.committed_in_term()
        {
            self.append_membership(self.membership.left(), &Bytes::new());
        }
    }

    /// After everybody was sent what there is: a change that is committed lets those go that it removed, and the leader
    /// itself if it is one of them. A voter that holds the whole log need not wait for its timeout then; there is one,
    /// because a leader that leaves appends nothing after the entry that says so.
    pub(super) fn end_change(&mut self, out: &mut Effects) {
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        if !leader.changing || !self.memberships.is_settled() {
            return;
        }
        leader.changing = false;
        let membership = &self.membership;
        leader.progress.retain(|id, _| membership.contains(*id));
        if membership.is_voter(self.config.id) {
            return;
        }
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        let heir = leader
            .progress
            .iter()
            .find(|(id, progress)| membership.is_voter(**id) && progress.matched() == last_index);
        let (&to, _) = heir.expect("nothing follows the entry that a majority has committed");
        let body = Body::TimeoutNow {
            last_index,
            last_term,
        };
        self.send(out, to, body);
        let term = self.term;
        self.become_follower(term, None, out);
    }

    /// True when this member may lead: its log is whole, and it votes, or its removal is not known to be committed.
    pub(super) fn may_campaign(&self) -> bool {
        !self.incarnation.guarded && self.memberships.lets_vote(self.config.id)
    }
}
