//! What holds after every step, asserted in release builds too. docs/TESTING.md lists all invariants of a group, and where
//! each is asserted; those that belong to one place are asserted there.

use super::log_view::LogView;
use super::message::{Body, Message};
use super::{Core, RoleState};
use crate::testing::{Bug, bug};
use crate::{Index, NodeId};

impl Core {
    /// The cursors are in order: what left the log is committed, what is committed or durable is in the log.
    pub(super) fn assert_cursors(&self) {
        let (base, last) = (self.log.base_index(), self.log.last_index());
        let (commit, applied, persisted) = (self.commit, self.applied, self.persisted);
        let group = self.config.group;
        assert!(
            base <= commit && applied <= commit && commit <= last && persisted <= last,
            "group {group}: base {base}, applied {applied}, commit {commit}, persisted {persisted}, last {last} are out of \
             order"
        );
        assert!(
            self.log.last_term() <= self.term || last == Index::ZERO,
            "group {group}: the log is of a later term than the member"
        );
        if let RoleState::Leader(leader) = &self.role {
            assert!(
                self.leader == Some(self.config.id) && self.vote == Some(self.config.id),
                "group {group}: a leader was voted for by itself, and knows that it leads"
            );
            assert!(
                self.truncate_from
                    .is_none_or(|from| from <= leader.first_of_term),
                "group {group}: a leader's log only grows"
            );
        }
    }

    /// A vote is given once per term.
    pub(super) fn set_vote(&mut self, candidate: NodeId) {
        assert!(
            self.vote.is_none(),
            "group {}: {:?} has the vote of term {}, {candidate} gets none",
            self.config.group,
            self.vote,
            self.term
        );
        self.vote = Some(candidate);
    }

    /// What a message attests when it is queued: it is in the log, or is the vote, of this term.
    pub(super) fn assert_attestable(&self, to: NodeId, message: &Message) {
        self.assert_attests(to, message, self.log.last_index());
    }

    /// What a message that waited for the disk attests when it leaves: all of that is durable here. Its pair is in
    /// [`Core::ready`].
    pub fn assert_attested(&self, to: NodeId, message: &Message) {
        self.assert_attests(to, message, self.persisted);
    }

    fn assert_attests(&self, to: NodeId, message: &Message, held: Index) {
        assert!(message.term <= self.term, "nothing is said of later terms");
        if message.term < self.term {
            // It attests what was true then; the entries may be cut by now, and nobody counts it for this term.
            return;
        }
        match message.body {
            // A write of a log that began anew meanwhile counts for nothing here, but what it attests is on disk until the
            // snapshot replaces it, which covers more.
            Body::AppendReply { matched } => assert!(
                matched <= held || matched < self.log.base_index(),
                "group {}: {matched} is acknowledged to {to}, but {held} is held",
                self.config.group
            ),
            Body::VoteReply { granted: true } => assert!(
                self.vote == Some(to) || bug(Bug::VoteTwice),
                "group {}: {to} is told that it has the vote of {:?}",
                self.config.group,
                self.vote
            ),
            Body::Vote { .. } => assert_eq!(
                self.vote,
                Some(self.config.id),
                "a candidate has voted for itself"
            ),
            _ => {}
        }
    }
}

impl LogView {
    /// The runs of terms and the entries in memory tell the same. As long as the window, so not in release builds.
    pub(super) fn debug_assert_terms(&self) {
        #[cfg(debug_assertions)]
        for entry in self.window() {
            assert_eq!(
                self.term_at(entry.index),
                Some(entry.term),
                "the term of index {}",
                entry.index
            );
        }
    }
}
