//! How a group comes to be, and how it comes back.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;

use raft_log::{Base, GroupInfo, Incarnation, Log, LogError, Record, WriteBatch};

use super::Group;
use crate::core::{Core, Effects, Initial, Membership, ValidConfig};
use crate::testing::{Bug, bug};
use crate::{EntryKind, GroupId, Index, StateMachine, Term};

/// Bytes of entries that a start reads at once to find membership changes, plus one entry.
const SCAN_BYTES_MAX: usize = 1 << 20;

/// What a group is opened with.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The core's settings.
    pub core: ValidConfig,
    /// Entries that stay in the log below the applied index, so that a member that lags needs no snapshot.
    /// Default 5,000.
    pub catch_up_entries: u64,
}

/// Why a group cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The log has no such group.
    NoGroup(GroupId),
    /// The log failed, or holds damage.
    Log(LogError),
    /// The membership in the group's base, or in an entry, cannot be read.
    Membership(GroupId, Index),
    /// The state machine has applied entries that the log does not have: the log lost acknowledged data.
    LogEndsBelowApplied {
        /// The group.
        group: GroupId,
        /// The last index in the log.
        last: Index,
        /// The applied index.
        applied: Index,
    },
    /// The log begins above what the state machine has: entries are missing between them.
    StateBelowBase {
        /// The group.
        group: GroupId,
        /// The log's base.
        base: Index,
        /// The applied index.
        applied: Index,
    },
    /// The log and the state machine disagree about the term of the last applied entry.
    TermMismatch {
        /// The group.
        group: GroupId,
        /// The applied index.
        applied: Index,
        /// The term in the log.
        in_log: Option<Term>,
        /// The term that the state machine recorded.
        in_state: Term,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGroup(group) => write!(f, "the log has no group {group}"),
            Self::Log(error) => error.fmt(f),
            Self::Membership(group, index) => {
                write!(
                    f,
                    "group {group}: the membership at index {index} cannot be decoded"
                )
            }
            Self::LogEndsBelowApplied {
                group,
                last,
                applied,
            } => write!(
                f,
                "group {group}: the log ends at index {last}, but the state machine has applied index {applied}: \
                 acknowledged entries are missing from the log; restore the log directory from a backup"
            ),
            Self::StateBelowBase {
                group,
                base,
                applied,
            } => write!(
                f,
                "group {group}: the log begins after index {base}, but the state machine has only applied index \
                 {applied}: restore the engine directory from a backup"
            ),
            Self::TermMismatch {
                group,
                applied,
                in_log,
                in_state,
            } => write!(
                f,
                "group {group}: the entry at index {applied} has term {} in the log and term {in_state} in the state \
                 machine: the log and engine directories do not belong together",
                in_log.map_or_else(|| "none".to_owned(), |term| term.to_string())
            ),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

impl From<LogError> for OpenError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// Creates a group with its first membership, durably. Does nothing when the log has the group already, so that a crash
/// between this and whatever records that it happened is harmless.
pub fn bootstrap(
    log: &Log,
    group: GroupId,
    creation: u64,
    membership: &Membership,
) -> Result<(), LogError> {
    if log.group(group).is_some() {
        return Ok(());
    }
    let mut batch = WriteBatch::new();
    let membership = membership.encode();
    let base = Base {
        index: Index::ZERO,
        term: Term::ZERO,
        creation,
        membership,
    };
    batch.push(group, Record::Compact(base));
    let ticket = log.submit(batch)?;
    log.wait(ticket)
}

/// The newest membership of which a group's log tells: the one in force, whether or not it is committed.
///
/// # Errors
/// The log has no such group, fails, or holds a membership that cannot be read.
pub fn newest_membership(log: &Log, id: GroupId) -> Result<Membership, OpenError> {
    let info = log.group(id).ok_or(OpenError::NoGroup(id))?;
    let base = memberships(id, &info, None)?;
    let above = changes(log, id, info.base.index.next(), info.last_index)?;
    let newest = base.into_iter().chain(above).next_back();
    Ok(newest.expect("the base has a membership").1)
}

impl<S: StateMachine> Group<S> {
    /// Opens a group that the log holds. The log and the state machine must belong together, else this says how they
    /// differ and changes nothing.
    pub fn open(id: GroupId, config: GroupConfig, log: Log, machine: S) -> Result<Self, OpenError> {
        let info = log.group(id).ok_or(OpenError::NoGroup(id))?;
        let applied = machine.applied();
        check_fit(id, &log, &info, applied.index, applied.term)?;
        let memberships = memberships(id, &info, applied.membership)?;
        let membership = memberships
            .back()
            .expect("the base has a membership")
            .1
            .clone();
        let changes = changes(&log, id, applied.index.next(), info.last_index)?;
        let mut hard_state = info.hard_state;
        let commit = hard_state
            .commit
            .max(applied.index)
            .min(info.last_index)
            .max(info.base.index);
        hard_state.commit = commit;
        let core = Core::new(
            config.core,
            Initial {
                hard_state,
                base_index: info.base.index,
                base_term: info.base.term,
                last_index: info.last_index,
                terms: term_runs(&log, id, &info),
                applied: applied.index,
                membership,
                changes,
                incarnation: Incarnation {
                    guarded: info.incarnation.guarded && !bug(Bug::ForgetGuard),
                    ..info.incarnation
                },
            },
        );
        Ok(Self {
            id,
            core,
            log,
            machine,
            effects: Effects::default(),
            after_persist: VecDeque::new(),
            messages: Vec::new(),
            proposals: VecDeque::new(),
            reads: Vec::new(),
            changes: Vec::new(),
            unreadable: None,
            repaired: None,
            events: Vec::new(),
            outputs: Vec::new(),
            commands: Vec::new(),
            commit,
            applied: applied.index,
            unknown_memberships_below: memberships.back().expect("the base has a membership").0,
            memberships,
            base: info.base,
            catch_up_entries: config.catch_up_entries,
            restore: None,
            held: false,
            snapshots_needed: Vec::new(),
        })
    }
}

fn check_fit(
    group: GroupId,
    log: &Log,
    info: &GroupInfo,
    applied: Index,
    applied_term: Term,
) -> Result<(), OpenError> {
    if applied > info.last_index {
        return Err(OpenError::LogEndsBelowApplied {
            group,
            last: info.last_index,
            applied,
        });
    }
    if applied < info.base.index {
        return Err(OpenError::StateBelowBase {
            group,
            base: info.base.index,
            applied,
        });
    }
    let in_log = log.term_at(group, applied);
    if applied > Index::ZERO && in_log != Some(applied_term) {
        return Err(OpenError::TermMismatch {
            group,
            applied,
            in_log,
            in_state: applied_term,
        });
    }
    Ok(())
}

/// The membership of the base, and the newest one that the state machine has applied above it.
fn memberships(
    group: GroupId,
    info: &GroupInfo,
    applied: Option<(Index, Membership)>,
) -> Result<VecDeque<(Index, Membership)>, OpenError> {
    let base = info.base.index;
    let first = Membership::decode(&info.base.membership)
        .map_err(|_| OpenError::Membership(group, base))?;
    let newer = applied.filter(|(index, _)| *index > base);
    Ok(std::iter::once((base, first)).chain(newer).collect())
}

/// The memberships of entries that are in the log and not applied: they are in force already.
fn changes(
    log: &Log,
    group: GroupId,
    mut from: Index,
    last: Index,
) -> Result<Vec<(Index, Membership)>, OpenError> {
    let mut changes = Vec::new();
    while from <= last {
        let entries = log.entries(group, from..last.next(), SCAN_BYTES_MAX)?;
        for entry in entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Config)
        {
            let membership = Membership::decode(&entry.payload)
                .map_err(|_| OpenError::Membership(group, entry.index))?;
            changes.push((entry.index, membership));
        }
        from = entries
            .last()
            .expect("the log returns at least one entry of a range that it holds")
            .index
            .next();
    }
    Ok(changes)
}

/// Run-length terms of the log, found by bisection because terms never decrease along it.
fn term_runs(log: &Log, group: GroupId, info: &GroupInfo) -> Vec<(Index, Term)> {
    let term_at = |index| {
        log.term_at(group, index)
            .expect("the log knows the terms of its entries")
    };
    let mut runs = Vec::new();
    let mut first = info.base.index.next();
    while first <= info.last_index {
        let term = term_at(first);
        runs.push((first, term));
        let (mut inside, mut beyond) = (first.0, info.last_index.0 + 1);
        while inside + 1 < beyond {
            let middle = inside + (beyond - inside) / 2;
            if term_at(Index(middle)) == term {
                inside = middle;
            } else {
                beyond = middle;
            }
        }
        first = Index(beyond);
    }
    runs
}
