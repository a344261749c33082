//! Joins the vote slots with the log: the higher term wins, at equal term a vote beats none.

use super::super::LogOptions;
use super::super::index::Groups;
use super::super::votes::{self, Slot};
use super::RecoveryReport;
use super::table::{self, Ballot, Trust};
use crate::vfs::SharedVfs;
use crate::{ErrorKind, GroupId, HardState, LogError};

/// What follows from the slots.
pub(super) struct Merged {
    /// The slots to write.
    pub(super) slots: Vec<Slot>,
    /// The hard states that the log does not have yet.
    pub(super) changed: Vec<(GroupId, HardState)>,
}

/// Moves each group's term and vote up to what its slots say. `cut` says that the end of the log was lost.
pub(super) fn merge(
    vfs: &SharedVfs,
    options: &LogOptions,
    groups: &mut Groups,
    cut: bool,
    report: &mut RecoveryReport,
) -> Result<Merged, LogError> {
    let read = votes::read(vfs, &options.dir, options.store_id)?;
    let path = options.dir.join("votes");
    let damage = |text: String| LogError::at(ErrorKind::Corruption, &path, 0, text);
    // A segment that holds the group is on disk before its first vote is.
    if report.segments == 0 && read.any_vote() {
        return Err(damage(
            "votes are kept here, but the log has no segment; its segments are missing, restore them or rebuild this \
             member"
                .to_owned(),
        ));
    }
    let (mut slots, mut changed) = (Vec::new(), Vec::new());
    for (id, group) in &mut groups.map {
        let mut state = group.hard_state;
        let mine = read.of(*id, group.base.creation);
        for slot in mine {
            if slot.term == state.term
                && slot.vote.is_some()
                && state.vote.is_some()
                && slot.vote != state.vote
            {
                return Err(damage(format!(
                    "group {id}: two different votes in term {}; remove this member and add it again",
                    slot.term
                )));
            }
            if slot.term > state.term {
                (state.term, state.vote) = (slot.term, slot.vote);
            } else if slot.term == state.term {
                state.vote = state.vote.or(slot.vote);
            }
        }
        let seen = !mine.is_empty();
        let trust = table::trust(Ballot {
            cut,
            seen,
            damaged: if seen {
                read.is_half(*id)
            } else {
                read.orphans > 0
            },
            voted: group.hard_state.term.0 > 0,
        });
        if trust == Trust::Unknown && !options.accept_suspect_tail {
            return Err(damage(format!(
                "group {id}: a vote slot is damaged and the log's tail is torn, so term and vote are \
                 unknown; remove this member and add it again"
            )));
        }
        if state != group.hard_state {
            group.hard_state = state;
            changed.push((*id, state));
        }
        if state.term.0 > 0 {
            slots.push(Slot {
                group: *id,
                creation: group.base.creation,
                term: state.term,
                vote: state.vote,
            });
        }
    }
    report.vote_blocks_replaced = read.damaged;
    Ok(Merged { slots, changed })
}
