//! Joins the vote slots with the log: the higher term wins, at equal term a vote beats none. A slot of a later incarnation
//! than the log's was written for a batch that nobody was told of: it begins guarded.

use super::super::LogOptions;
use super::super::index::Groups;
use super::super::votes::{self, Slot};
use super::RecoveryReport;
use super::table::{self, Ballot, Trust};
use crate::vfs::SharedVfs;
use crate::{ErrorKind, GroupId, Incarnation, LogError, Record};

/// What follows from the slots.
pub(super) struct Merged {
    /// The slots to write.
    pub(super) slots: Vec<Slot>,
    /// The hard states and incarnations that the log does not have yet.
    pub(super) changed: Vec<(GroupId, Record)>,
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
    let damage = |expected: String, found: &str, advice: &str| {
        LogError::differs(ErrorKind::Corruption, &path, 0, expected, found, advice)
    };
    // A segment that holds the group is on disk before its first vote is.
    if report.segments == 0 && read.any_vote() {
        return Err(damage(
            "the segments of a log whose votes are kept here".to_owned(),
            "none",
            "restore them or rebuild this member",
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
                return Err(damage(
                    format!("one vote of group {id} in term {}", slot.term),
                    "two different ones here and in the log",
                    "remove this member and add it again",
                ));
            }
            if slot.term > state.term {
                (state.term, state.vote) = (slot.term, slot.vote);
            } else if slot.term == state.term {
                state.vote = state.vote.or(slot.vote);
            }
        }
        let newest = mine.iter().map(|slot| slot.incarnation).max();
        if let Some(number) = newest.filter(|newest| *newest > group.incarnation.number) {
            group.incarnation = Incarnation {
                number,
                guarded: true,
            };
            changed.push((*id, Record::Incarnation(group.incarnation)));
        }
        let seen = !mine.is_empty();
        let trust = table::trust(Ballot {
            cut,
            seen,
            damaged: read.is_half(*id) || (!seen && !read.orphans.is_empty()),
            voted: group.hard_state.term.0 > 0,
        });
        if trust == Trust::Unknown && !options.accept_suspect_tail {
            return Err(damage(
                format!("the vote slots of group {id}, whose log has a torn tail"),
                "a damaged or missing one, so that term and vote are unknown",
                "remove this member and add it again",
            ));
        }
        if state != group.hard_state {
            group.hard_state = state;
            changed.push((*id, Record::HardState(state)));
        }
        if state.term.0 > 0 || group.incarnation.number > 0 {
            slots.push(group.slot(*id));
        }
    }
    report.vote_blocks_replaced = read.damaged.len();
    Ok(Merged { slots, changed })
}
