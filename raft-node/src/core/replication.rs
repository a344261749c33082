//! Entries and commits.

use super::message::{Body, Message};
use super::progress::{Mode, Progress};
use super::{Core, Effects, Fetch, RoleState, quorum};
use crate::testing::{Bug, bug};
use crate::{Entry, EntryKind, Index, NodeId, Term};

impl Core {
    /// Sends each member what it may get now, and heartbeats when they are due.
    pub(super) fn replicate(&mut self, out: &mut Effects) {
        let me = self.config.id;
        let (term, commit) = (self.term, self.commit);
        let sleeps = self.is_falling_asleep();
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let heartbeat = std::mem::take(&mut leader.heartbeat_due);
        if heartbeat && !sleeps && self.config.lease_ticks > 0 {
            leader.last_round += 1;
            leader.lease.sent(leader.last_round, leader.now);
        }
        let (round, now) = (leader.last_round, leader.now);
        for (&to, progress) in leader.progress.iter_mut().filter(|(id, _)| **id != me) {
            if heartbeat {
                let commit = if bug(Bug::HeartbeatCommitUnbounded) {
                    commit
                } else {
                    commit.min(progress.matched())
                };
                let body = if sleeps {
                    let last_index = self.log.last_index();
                    Body::Sleep { last_index }
                } else {
                    Body::Heartbeat { commit, round }
                };
                let message = Message {
                    term,
                    incarnation: progress.incarnation(),
                    body,
                };
                out.send_now.push((to, message));
            }
            let (messages_max, bytes_max) = (
                self.config.inflight_messages_max,
                self.config.inflight_bytes_max,
            );
            while !progress.is_full(messages_max, bytes_max) && !progress.fetching {
                let next = progress.next();
                let news = next <= self.log.last_index()
                    || progress.sent_commit < commit.min(next.prev())
                    || std::mem::take(&mut progress.verify)
                    || matches!(progress.mode, Mode::Probe { .. });
                if !news {
                    break;
                }
                let Some(prev_term) = self.log.term_at(next.prev()) else {
                    if now - progress.heard_at < self.config.election_ticks {
                        progress.needs_snapshot(now);
                        out.needs_snapshot.push(to);
                    } else {
                        // Nobody is there to take it; a sign of life ends the pause.
                        progress.pause();
                    }
                    break;
                };
                let Some(entries) =
                    self.log
                        .recent(next, self.config.message_bytes_max, &mut out.spare)
                else {
                    progress.fetching = true;
                    let end = self.log.last_index().next();
                    let bytes_max = self.config.message_bytes_max;
                    out.fetch.push(Fetch {
                        to,
                        from: next,
                        end,
                        bytes_max,
                    });
                    break;
                };
                let empty = entries.is_empty();
                let message = append_message(progress, term, prev_term, entries, commit);
                out.send_now.push((to, message));
                if empty {
                    break;
                }
            }
        }
        self.tell_target(heartbeat, out);
    }

    /// Entries that had left memory were read from the log for a member.
    pub(super) fn send_fetched(&mut self, to: NodeId, entries: Vec<Entry>, out: &mut Effects) {
        let (term, commit) = (self.term, self.commit);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress.get_mut(&to) else {
            return;
        };
        if !std::mem::take(&mut progress.fetching) {
            return;
        }
        // Meanwhile the member may have moved, or the log may have been cut in another leader's term.
        let fits = entries
            .first()
            .is_some_and(|first| first.index == progress.next())
            && entries
                .last()
                .is_some_and(|last| self.log.term_at(last.index) == Some(last.term));
        let prev_term = self.log.term_at(progress.next().prev());
        if let (true, Some(prev_term)) = (fits, prev_term) {
            let message = append_message(progress, term, prev_term, entries, commit);
            out.send_now.push((to, message));
        }
    }

    /// A leader's entries: what the log has already is kept, what contradicts them is cut.
    pub(super) fn accept_entries(
        &mut self,
        from: NodeId,
        prev_index: Index,
        prev_term: Term,
        mut entries: Vec<Entry>,
        commit: Index,
        out: &mut Effects,
    ) {
        let mut at = prev_index;
        for entry in &entries {
            assert_eq!(
                entry.index,
                at.next(),
                "a message carries contiguous entries"
            );
            assert!(
                entry.term <= self.term,
                "an entry is never newer than its leader's term"
            );
            at = entry.index;
        }
        let memberships = Self::read_memberships(&mut entries, out);
        at = entries.last().map_or(prev_index, |entry| entry.index);
        let base = self.log.base_index();
        if at <= base && prev_index < base {
            // All of it is committed and compacted here.
            self.agreed(base);
            self.check_guard(out);
            self.attest(from, Body::AppendReply { matched: base });
            return;
        }
        if prev_index >= base && self.log.term_at(prev_index) != Some(prev_term) {
            let hint_index = self.log.last_at_or_below(prev_index.prev(), prev_term);
            let hint_term = self.log.term_at(hint_index).unwrap_or(Term::ZERO);
            let rejected = prev_index;
            self.attest(
                from,
                Body::AppendReject {
                    rejected,
                    hint_index,
                    hint_term,
                },
            );
            return;
        }
        let known = entries
            .iter()
            .take_while(|entry| {
                entry.index <= base
                    || self.log.term_at(entry.index) == Some(entry.term)
                    || (entry.index <= self.log.last_index() && bug(Bug::SkipTruncation))
            })
            .count();
        if let Some(first) = entries.get(known)
            && first.index <= self.log.last_index()
        {
            self.cut(first.index);
        }
        let appended_from = self.log.last_index();
        for entry in entries.drain(known..) {
            self.log.append(entry);
        }
        out.recycle(entries);
        self.follow_memberships(memberships, appended_from);
        self.commit_to(commit.min(at), out);
        self.agreed(at);
        self.check_guard(out);
        self.attest(from, Body::AppendReply { matched: at });
    }

    /// Cuts the log; what was handed to the disk beyond the cut no longer counts.
    fn cut(&mut self, from: Index) {
        assert!(
            from > self.commit,
            "group {}: the leader of term {} contradicts index {from}, but {} is committed here",
            self.config.group,
            self.term,
            self.commit
        );
        assert!(
            !matches!(self.role, RoleState::Leader(_)),
            "a leader never cuts its log"
        );
        self.log.truncate(from);
        self.log.debug_assert_terms();
        self.cut_memberships(from);
        for batch in self
            .inflight
            .iter_mut()
            .filter(|_| !bug(Bug::CountOverwritten))
        {
            batch.last_index = batch.last_index.min(from.prev());
        }
        self.persisted = self.persisted.min(from.prev());
        if from < self.unsent {
            self.truncate_from = Some(self.truncate_from.map_or(from, |other| other.min(from)));
            self.unsent = from;
        }
    }

    pub(super) fn acked(&mut self, from: NodeId, matched: Index, out: &mut Effects) {
        let last = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress.get_mut(&from) else {
            return;
        };
        assert!(
            matched <= last,
            "{from} acknowledges {matched}, but the log ends at {last}"
        );
        if progress.acked(matched, self.log.base_index()) {
            self.advance_commit(out);
        }
    }

    pub(super) fn rejected(
        &mut self,
        from: NodeId,
        rejected: Index,
        hint_index: Index,
        hint_term: Term,
    ) {
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress.get_mut(&from) else {
            return;
        };
        // The member has nothing above the hint that could agree, and nothing there of a term above the hint's.
        let retry_from = self.log.last_at_or_below(hint_index, hint_term);
        progress.rejected(rejected, retry_from);
    }

    /// Moves the commit index to what a majority has durably; only entries of the own term count (section 5.4.2).
    pub(super) fn advance_commit(&mut self, out: &mut Effects) {
        let me = self.config.id;
        let RoleState::Leader(leader) = &self.role else {
            return;
        };
        let reached = quorum::committed(&self.membership, |id| {
            if id == me {
                self.persisted
            } else {
                leader
                    .progress
                    .get(&id)
                    .map_or(Index::ZERO, Progress::matched)
            }
        });
        let reached = if bug(Bug::CommitWithoutQuorum) {
            self.log.last_index()
        } else if bug(Bug::LearnersCount) {
            let mut acks: Vec<_> = leader.progress.values().map(Progress::matched).collect();
            acks.push(self.persisted);
            acks.sort_unstable();
            reached.max(acks[acks.len() - (self.membership.voters.len() / 2 + 1)])
        } else {
            reached
        };
        if reached <= self.commit
            || (self.log.term_at(reached) != Some(self.term) && !bug(Bug::CommitOlderTerm))
        {
            return;
        }
        assert!(
            self.log.term_at(reached) == Some(self.term) || bug(Bug::CommitOlderTerm),
            "a leader commits by counting in its own term only"
        );
        self.commit_to(reached, out);
        let commit = self.commit;
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        while leader
            .uncommitted
            .front()
            .is_some_and(|(index, _)| *index <= commit)
        {
            let bytes = leader.uncommitted.pop_front().map_or(0, |(_, len)| len);
            assert!(
                bytes <= leader.uncommitted_bytes,
                "uncommitted bytes were counted"
            );
            leader.uncommitted_bytes -= bytes;
        }
        if self.membership.is_sole_voter(me) {
            self.start_round(out);
        }
    }

    pub(super) fn commit_to(&mut self, commit: Index, out: &mut Effects) {
        if commit <= self.commit {
            return;
        }
        assert!(
            commit <= self.log.last_index(),
            "only what is in the log is committed"
        );
        self.commit = commit;
        self.memberships.committed(commit);
        out.commit = Some(commit);
    }

    pub(super) fn heartbeat_acked(&mut self, from: NodeId, round: u64, out: &mut Effects) {
        let last = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress.get_mut(&from) else {
            return;
        };
        assert!(
            round <= leader.last_round,
            "{from} answers a round that was not started"
        );
        progress.acked_round = progress.acked_round.max(round);
        if bug(Bug::StaleReadContext) {
            progress.acked_round = leader.last_round;
        }
        let (messages_max, bytes_max) = (
            self.config.inflight_messages_max,
            self.config.inflight_bytes_max,
        );
        let is_full = progress.is_full(messages_max, bytes_max);
        progress.alive(last, is_full);
        self.extend_lease();
        self.end_rounds(out);
    }
}

/// Builds an append of entries that follow `progress.next() - 1`, and notes that they left.
fn append_message(
    progress: &mut Progress,
    term: Term,
    prev_term: Term,
    entries: Vec<Entry>,
    commit: Index,
) -> Message {
    let prev_index = progress.next().prev();
    let last = entries.last().map_or(prev_index, |entry| entry.index);
    debug_assert!(
        entries
            .iter()
            .all(|e| matches!(e.kind, EntryKind::Normal | EntryKind::Config))
    );
    progress.sent(last, entries.iter().map(Entry::cost).sum());
    progress.sent_commit = progress.sent_commit.max(commit.min(last));
    Message {
        term,
        incarnation: progress.incarnation(),
        body: Body::Append {
            prev_index,
            prev_term,
            entries,
            commit,
        },
    }
}
