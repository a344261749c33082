//! Linearizable reads: rounds of a leader, and the asking of everybody else.
//!
//! A leader registers its commit index, then lets a majority confirm that it still leads; only then is the read ready.
//! What names a round is a counter private to the leader. Another member asks the leader with a number of its own that
//! no later question reuses, not even after a restart ([`super::Config::boot`]); one question is under way at a time, and
//! reads that come meanwhile wait for the next, so an answer never counts for a read that came after its question.
//!
//! Source: Ongaro's dissertation, section 6.4.

use super::message::Body;
use super::{Core, DropReason, Effects, RoleState, quorum};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId, Term};

/// Who waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A caller here.
    Local(u64),
    /// Another member, by its question.
    Member {
        from: NodeId,
        boot: u64,
        question: u64,
    },
}

/// A question to the leader.
struct Asked {
    question: u64,
    leader: NodeId,
    term: Term,
    tokens: Vec<u64>,
    /// When it was last sent, in ticks of this core.
    sent_at: u64,
}

/// Reads of a member that does not lead.
#[derive(Default)]
pub(super) struct Asking {
    waiting: Vec<u64>,
    asked: Option<Asked>,
    last_question: u64,
}

impl Asking {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_none()
    }

    /// The tick at which the question is sent again.
    pub(super) fn repeat_at(&self, heartbeat_ticks: u64) -> Option<u64> {
        let asked = self.asked.as_ref()?;
        Some(asked.sent_at.saturating_add(heartbeat_ticks))
    }
}

impl Core {
    pub(super) fn read(&mut self, token: u64, out: &mut Effects) {
        let known = self.leader;
        match &mut self.role {
            RoleState::Leader(leader) => leader.reads_waiting.push(Reader::Local(token)),
            RoleState::Follower | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {
                out.dropped.push((token, DropReason::NotLeader(known)));
            }
        }
    }

    /// A read that may go through the leader. Without a boot number, questions could not be told apart.
    pub(super) fn read_anywhere(&mut self, token: u64, out: &mut Effects) {
        let leads = matches!(self.role, RoleState::Leader(_));
        if leads || self.leader.is_none() || self.config.boot == 0 {
            self.read(token, out);
        } else {
            self.asking.waiting.push(token);
        }
    }

    /// Asks the leader for the reads that wait, again when no answer came within a heartbeat. What was asked of another
    /// leader is given up.
    pub(super) fn ask_leader(&mut self, out: &mut Effects) {
        let (me, term, clock) = (self.config.id, self.term, self.clock);
        let asking = &mut self.asking;
        let leader = self.leader.filter(|leader| *leader != me);
        if asking
            .asked
            .as_ref()
            .is_some_and(|asked| leader != Some(asked.leader) || term != asked.term)
        {
            let given_up = asking.asked.take().map_or(Vec::new(), |asked| asked.tokens);
            out.dropped.extend(
                given_up
                    .into_iter()
                    .map(|token| (token, DropReason::LeaderChanged)),
            );
        }
        let Some(to) = leader else {
            let waiting = asking.waiting.drain(..);
            out.dropped
                .extend(waiting.map(|token| (token, DropReason::LeaderChanged)));
            return;
        };
        let repeat = asking
            .repeat_at(self.config.heartbeat_ticks)
            .is_some_and(|at| clock >= at);
        match &mut asking.asked {
            Some(asked) if repeat => asked.sent_at = clock,
            None if !asking.waiting.is_empty() => {
                asking.last_question += 1;
                asking.asked = Some(Asked {
                    question: asking.last_question,
                    leader: to,
                    term,
                    tokens: std::mem::take(&mut asking.waiting),
                    sent_at: clock,
                });
            }
            Some(_) | None => return,
        }
        let question = asking.last_question;
        let boot = self.config.boot;
        self.send(out, to, Body::ReadIndex { boot, question });
    }

    /// Another member asks; it counts as a read of this leader's from now on.
    pub(super) fn asked(&mut self, from: NodeId, boot: u64, question: u64) {
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let reader = Reader::Member {
            from,
            boot,
            question,
        };
        if leader.progress.contains_key(&from) && !leader.reads_waiting.contains(&reader) {
            leader.reads_waiting.push(reader);
        }
    }

    /// The leader's answer: reads of that question may be served once `index` is applied here.
    pub(super) fn answered(&mut self, boot: u64, question: u64, index: Index, out: &mut Effects) {
        let fits = boot == self.config.boot
            && self
                .asking
                .asked
                .as_ref()
                .is_some_and(|asked| asked.question == question);
        if fits && let Some(asked) = self.asking.asked.take() {
            out.reads_ready
                .extend(asked.tokens.into_iter().map(|token| (token, index)));
        }
    }

    /// Starts one round for all reads that wait, once something of the own term is committed: before that the commit
    /// index may lag behind what an earlier leader acknowledged.
    pub(super) fn start_round(&mut self, out: &mut Effects) {
        if !self.committed_in_term() && !bug(Bug::ReadBeforeOwnTerm) {
            return;
        }
        let (commit, sole) = (self.commit, self.membership.is_sole_voter(self.config.id));
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.reads_waiting.is_empty() {
            return;
        }
        assert!(
            commit >= leader.first_of_term,
            "a read index lies in the leader's own term"
        );
        let readers = std::mem::take(&mut leader.reads_waiting);
        if sole || bug(Bug::ReadWithoutRound) {
            self.release(readers, commit, out);
            return;
        }
        if self.has_lease() {
            if bug(Bug::LeaseWithoutLook) {
                self.release(readers, commit, out);
                return;
            }
            let reads = readers.into_iter().map(|reader| (reader, commit));
            if let RoleState::Leader(leader) = &mut self.role {
                leader.lease.reads.extend(reads);
            }
            return;
        }
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        leader.last_round += 1;
        leader
            .rounds
            .push_back((leader.last_round, commit, readers));
        leader.heartbeat_due = true;
    }

    /// Ends the rounds that a majority has answered.
    pub(super) fn end_rounds(&mut self, out: &mut Effects) {
        let me = self.config.id;
        loop {
            let RoleState::Leader(leader) = &mut self.role else {
                return;
            };
            let Some(first) = leader.rounds.front().map(|(first, _, _)| *first) else {
                return;
            };
            let confirmed = quorum::has_majority(&self.membership, |id| {
                id == me
                    || leader
                        .progress
                        .get(&id)
                        .is_some_and(|progress| progress.acked_round >= first)
            });
            if !confirmed {
                return;
            }
            let (_, index, readers) = leader.rounds.pop_front().expect("the front was just seen");
            assert!(
                leader.first_of_term <= index && index <= self.commit,
                "a read index was committed in the leader's own term when its round began"
            );
            self.release(readers, index, out);
        }
    }

    pub(super) fn release(
        &self,
        readers: impl IntoIterator<Item = Reader>,
        index: Index,
        out: &mut Effects,
    ) {
        for reader in readers {
            match reader {
                Reader::Local(token) => out.reads_ready.push((token, index)),
                Reader::Member {
                    from,
                    boot,
                    question,
                } => {
                    let body = Body::ReadIndexReply {
                        boot,
                        question,
                        index,
                    };
                    self.send(out, from, body);
                }
            }
        }
    }
}
