//! Terms, votes, and changes of role.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::lease::{Lease, Promise};
use super::message::{Body, Message};
use super::progress::Progress;
use super::quorum::{self, VoteResult};
use super::read::Reader;
use super::{Core, DropReason, Effects, Leader, RoleState};
use crate::testing::{Bug, bug};
use crate::{EntryKind, Index, NodeId, Term};

impl Core {
    /// Draws how long to wait for a leader; anew for each campaign, or split votes repeat.
    pub(super) fn draw_election_timeout(&mut self) {
        let base = self.config.election_ticks;
        self.election_timeout = base + self.rng.below(base);
        self.ticks_since_contact = 0;
    }

    /// The wait for a leader is over: asks whether a campaign could win. A sole voter need not ask.
    pub(super) fn ask_first(&mut self, out: &mut Effects) {
        let me = self.config.id;
        assert!(
            !matches!(self.role, RoleState::Leader(_)),
            "a leader does not campaign"
        );
        if self.membership.is_sole_voter(me) {
            self.campaign(false, out);
            return;
        }
        self.leader = None;
        self.role = RoleState::PreCandidate(BTreeMap::new());
        self.draw_election_timeout();
        let body = Body::PreVote {
            last_index: self.log.last_index(),
            last_term: self.log.last_term(),
        };
        for to in self.others() {
            self.send(out, to, body.clone());
        }
        self.record_pre_vote(me, true, out);
    }

    /// Enters the next term and asks for votes in it.
    pub(super) fn campaign(&mut self, forced: bool, out: &mut Effects) {
        if !self.may_campaign() {
            return;
        }
        let term = Term(self.term.0 + 1);
        self.become_follower(term, None, out);
        self.set_vote(self.config.id);
        self.own_vote_pending = true;
        self.role = RoleState::Candidate(BTreeMap::new());
        let body = Body::Vote {
            last_index: self.log.last_index(),
            last_term: self.log.last_term(),
            forced,
        };
        // A request promises nothing, but a crash would let the member ask twice in one term: it waits for the disk.
        for to in self.others() {
            self.attest(to, body.clone());
        }
    }

    /// Enters a term, or stays in it, without a role of its own. Whoever waited on this member as a leader is told.
    pub(super) fn become_follower(
        &mut self,
        term: Term,
        leader: Option<NodeId>,
        out: &mut Effects,
    ) {
        assert!(term >= self.term, "terms never go back");
        if term > self.term {
            self.term = term;
            if bug(Bug::PromiseEndsWithTerm) {
                self.promise = Promise::None;
            }
            self.vote = None;
            self.own_vote_pending = false;
            self.hard_state_changed |= !bug(Bug::TermNotPersisted);
        }
        self.leader = leader;
        if let RoleState::Leader(was) = std::mem::replace(&mut self.role, RoleState::Follower) {
            let rounds = was.rounds.into_iter().flat_map(|(_, _, readers)| readers);
            let rounds = rounds.chain(was.lease.reads.into_iter().map(|(reader, _)| reader));
            // Other members learn of the change by themselves.
            let given_up = rounds
                .chain(was.reads_waiting)
                .filter_map(|reader| match reader {
                    Reader::Local(token) => Some((token, DropReason::LeaderChanged)),
                    Reader::Member { .. } => None,
                });
            out.dropped.extend(given_up);
        }
        self.draw_election_timeout();
    }

    pub(super) fn receive(&mut self, from: NodeId, message: Message, out: &mut Effects) {
        let Message {
            term,
            incarnation,
            body,
        } = message;
        match &body {
            Body::PreVote {
                last_index,
                last_term,
            } => {
                self.answer_pre_vote(from, term, *last_index, *last_term, out);
                return;
            }
            // Who answers may be in an earlier term; a later one is adopted below, or nobody would ever win
            // against the member that knows it.
            Body::PreVoteReply { asked, granted } if term <= self.term => {
                if asked.0 == self.term.0 + 1 {
                    self.record_pre_vote(from, *granted, out);
                }
                return;
            }
            Body::Vote { forced: false, .. } if self.is_promised() => return,
            Body::Vote { forced: false, .. } if term > self.term && self.hears_leader() => return,
            _ => {}
        }
        if term > self.term {
            let leads = matches!(
                body,
                Body::Append { .. }
                    | Body::Heartbeat { .. }
                    | Body::Sleep { .. }
                    | Body::GuardEnd { .. }
                    | Body::TimeoutNow { .. }
            );
            self.become_follower(term, leads.then_some(from), out);
        }
        if term < self.term {
            self.refuse_stale(from, &body);
            return;
        }
        let about_log = matches!(
            body,
            Body::AppendReply { .. }
                | Body::AppendReject { .. }
                | Body::HeartbeatReply { .. }
                | Body::SleepReply { .. }
                | Body::Guarded
        );
        if about_log && !self.is_of_latest_log(from, incarnation) {
            return;
        }
        self.heard(from);
        match body {
            Body::Vote {
                last_index,
                last_term,
                forced: _,
            } => self.answer_vote(from, last_index, last_term),
            Body::PreVote { .. } => unreachable!("answered above, whatever its term"),
            // The later term that it came with is adopted by now, and the campaign that it answers is over.
            Body::PreVoteReply { .. } => {}
            Body::VoteReply { granted } => self.record_vote(from, granted, out),
            Body::Append {
                prev_index,
                prev_term,
                entries,
                commit,
            } => {
                self.follow(from, out);
                self.accept_entries(from, prev_index, prev_term, entries, commit, out);
            }
            Body::Heartbeat { commit, round } => {
                self.follow(from, out);
                self.promise();
                self.answer_heartbeat(from, incarnation, commit, round, out);
            }
            Body::Guarded => self.tell_end_of_guard(from, out),
            Body::GuardEnd { until } => {
                self.follow(from, out);
                self.guarded_until(incarnation, until, out);
            }
            Body::Sleep { last_index } => {
                self.follow(from, out);
                self.told_to_sleep(from, incarnation, last_index, out);
            }
            Body::SleepReply { asleep } => self.sleeps(from, asleep),
            Body::AppendReply { matched } => self.acked(from, matched, out),
            Body::AppendReject {
                rejected,
                hint_index,
                hint_term,
            } => {
                self.rejected(from, rejected, hint_index, hint_term);
            }
            Body::TimeoutNow {
                last_index,
                last_term,
            } => {
                self.follow(from, out);
                self.told_to_campaign(last_index, last_term, out);
            }
            Body::ReadIndex { boot, question } => self.asked(from, boot, question),
            Body::ReadIndexReply {
                boot,
                question,
                index,
            } => self.answered(boot, question, index, out),
            Body::HeartbeatReply { round } => self.heartbeat_acked(from, round, out),
        }
    }

    /// A leader or candidate of an older term learns of the newer one; everything else is ignored.
    fn refuse_stale(&mut self, from: NodeId, body: &Body) {
        let reply = match body {
            Body::Vote { .. } => Body::VoteReply { granted: false },
            // The round 0 confirms nothing; the term is what counts.
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Sleep { .. } => {
                Body::HeartbeatReply { round: 0 }
            }
            _ => return,
        };
        self.attest(from, reply);
    }

    /// `from` leads the current term.
    pub(super) fn follow(&mut self, from: NodeId, out: &mut Effects) {
        assert!(
            !matches!(self.role, RoleState::Leader(_)),
            "group {}: two leaders in term {}: {} and {from}",
            self.config.group,
            self.term,
            self.config.id
        );
        assert!(
            self.leader.is_none_or(|leader| leader == from),
            "group {}: two leaders in term {}: {:?} and {from}",
            self.config.group,
            self.term,
            self.leader
        );
        let term = self.term;
        self.become_follower(term, Some(from), out);
    }

    /// True while a leader is there, as far as this member knows: it has heard of one within the shortest election
    /// timeout, or leads itself and would have stepped down otherwise.
    fn hears_leader(&self) -> bool {
        match self.role {
            RoleState::Leader(_) => true,
            _ => self.leader.is_some() && self.ticks_since_contact < self.config.election_ticks,
        }
    }

    /// Says whether a vote would be given in the term after `term`. Changes nothing here, and promises nothing.
    fn answer_pre_vote(
        &self,
        from: NodeId,
        term: Term,
        last_index: Index,
        last_term: Term,
        out: &mut Effects,
    ) {
        let recent = (last_term, last_index) >= (self.log.last_term(), self.log.last_index())
            || bug(Bug::VoteForOlderLog);
        let free = !self.hears_leader() && !self.is_promised();
        let whole = !self.incarnation.guarded;
        let granted = term >= self.term && recent && whole && free;
        let asked = Term(term.0 + 1);
        self.send(out, from, Body::PreVoteReply { asked, granted });
    }

    fn record_pre_vote(&mut self, from: NodeId, granted: bool, out: &mut Effects) {
        let RoleState::PreCandidate(votes) = &mut self.role else {
            return;
        };
        if !self.membership.is_voter(from) {
            return;
        }
        // The term has no say in which of two campaigns an answer belongs to: the newest answer counts.
        votes.insert(from, granted);
        match quorum::tally(&self.membership, |id| votes.get(&id).copied()) {
            VoteResult::Won => self.campaign(false, out),
            VoteResult::Lost => self.role = RoleState::Follower,
            VoteResult::Pending => {}
        }
    }

    /// A leader that no majority has answered for an election timeout steps down: another one may be there by now.
    pub(super) fn check_quorum(&mut self, out: &mut Effects) {
        let me = self.config.id;
        let RoleState::Leader(leader) = &self.role else {
            return;
        };
        let heard = |progress: &Progress| {
            assert!(progress.heard_at <= leader.now, "nobody answers early");
            leader.now - progress.heard_at < self.config.election_ticks
        };
        let in_contact = quorum::has_majority(&self.membership, |id| {
            id == me || leader.progress.get(&id).is_some_and(heard)
        });
        if !in_contact {
            let term = self.term;
            self.become_follower(term, None, out);
        }
    }

    /// A member answered in the current term.
    fn heard(&mut self, from: NodeId) {
        if let RoleState::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            progress.heard_at = leader.now;
        }
    }

    /// A vote goes to the first candidate of the term whose log is at least as recent. A learner may vote: it may have
    /// been promoted by a change that it has not seen yet.
    fn answer_vote(&mut self, from: NodeId, last_index: Index, last_term: Term) {
        let free = self.vote == Some(from)
            || (self.vote.is_none() && self.leader.is_none())
            || bug(Bug::VoteTwice);
        let recent = (last_term, last_index) >= (self.log.last_term(), self.log.last_index())
            || bug(Bug::VoteForOlderLog);
        let granted = free && recent && !self.incarnation.guarded;
        if granted && self.vote.is_none() {
            self.set_vote(from);
            self.hard_state_changed |= !bug(Bug::VoteNotPersisted);
            self.draw_election_timeout();
        }
        self.attest(from, Body::VoteReply { granted });
    }

    pub(super) fn record_vote(&mut self, from: NodeId, granted: bool, out: &mut Effects) {
        let RoleState::Candidate(votes) = &mut self.role else {
            return;
        };
        if !self.membership.is_voter(from) {
            return;
        }
        votes.entry(from).or_insert(granted);
        match quorum::tally(&self.membership, |id| votes.get(&id).copied()) {
            VoteResult::Won => self.lead(),
            VoteResult::Lost => {
                let term = self.term;
                self.become_follower(term, None, out);
            }
            VoteResult::Pending => {}
        }
    }

    /// The election is won: the term is opened with an entry of its own, because only those commit.
    fn lead(&mut self) {
        let me = self.config.id;
        let first_of_term = self.log.last_index().next();
        let progress = self
            .membership
            .members()
            .into_iter()
            .map(|id| (id, Progress::new(first_of_term, 0)));
        self.leader = Some(me);
        self.ticks_since_contact = 0;
        self.role = RoleState::Leader(Box::new(Leader {
            progress: progress.collect(),
            now: 0,
            lease: Lease::default(),
            transfer: None,
            handed_over: false,
            reads_waiting: Vec::new(),
            rounds: VecDeque::new(),
            last_round: 0,
            heartbeat_due: false,
            first_of_term,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            changing: !self.memberships.is_settled(),
        }));
        self.append(EntryKind::Normal, Bytes::new());
    }

    /// Sends what attests durable state, once that state is durable.
    pub(super) fn attest(&mut self, to: NodeId, body: Body) {
        let message = Message {
            term: self.term,
            incarnation: self.incarnation.number,
            body,
        };
        self.attesting.push((to, message));
    }

    /// Sends what promises nothing.
    pub(super) fn send(&self, out: &mut Effects, to: NodeId, body: Body) {
        self.send_about(out, to, self.incarnation.number, body);
    }

    /// As [`Core::send`], about another log than this member's.
    pub(super) fn send_about(&self, out: &mut Effects, to: NodeId, incarnation: u64, body: Body) {
        let message = Message {
            term: self.term,
            incarnation,
            body,
        };
        out.send_now.push((to, message));
    }

    pub(super) fn others(&self) -> Vec<NodeId> {
        let mut members = self.membership.members();
        members.retain(|id| *id != self.config.id);
        members
    }
}
