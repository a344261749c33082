//! What a log must hold, written down without looking at how it does so: a map of groups, changed record by record.

use std::collections::BTreeMap;

use raft_log::{
    Base, Entry, GroupId, HardState, Incarnation, Index, Log, Record, SnapshotRef, Term, WriteBatch,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) base: Base,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard: HardState,
    pub(crate) snapshot: Option<SnapshotRef>,
    pub(crate) incarnation: Incarnation,
}

impl Group {
    pub(crate) fn last(&self) -> (Index, Term) {
        match self.entries.last() {
            Some(entry) => (entry.index, entry.term),
            None => (self.base.index, self.base.term),
        }
    }
}

pub(crate) type State = BTreeMap<GroupId, Group>;

pub(crate) fn apply(state: &mut State, batch: &WriteBatch) {
    for (id, record) in batch.records() {
        match record {
            Record::Compact(base) => {
                let group = state.entry(*id).or_default();
                group.entries.retain(|entry| entry.index > base.index);
                group.base = base.clone();
            }
            Record::Destroy => drop(state.remove(id)),
            other => {
                let group = state
                    .get_mut(id)
                    .expect("the workload uses groups that exist");
                change(group, other);
            }
        }
    }
}

fn change(group: &mut Group, record: &Record) {
    match record {
        Record::Entries(new) => {
            let first = new.first().map_or(Index(u64::MAX), |entry| entry.index);
            group.entries.retain(|entry| entry.index < first);
            group.entries.extend(new.iter().cloned());
        }
        Record::Truncate(from) => group.entries.retain(|entry| entry.index < *from),
        Record::HardState(hard) => group.hard = *hard,
        Record::SnapshotRef(snapshot) => group.snapshot = Some(snapshot.clone()),
        Record::Incarnation(incarnation) => group.incarnation = *incarnation,
        Record::Compact(_) | Record::Destroy => unreachable!("changes the map, not the group"),
    }
}

/// Everything that a log tells, checked for contradictions within itself.
pub(crate) fn observe(log: &Log) -> Result<State, String> {
    let mut state = State::new();
    for id in log.groups() {
        let info = log.group(id).ok_or("a listed group does not exist")?;
        let range = info.base.index.next()..info.last_index.next();
        let mut entries = Vec::new();
        while Index(range.start.0 + entries.len() as u64) < range.end {
            let from = Index(range.start.0 + entries.len() as u64);
            let some = log
                .entries(id, from..range.end, 4 << 10)
                .map_err(|error| format!("group {id} cannot be read from {from}: {error}"))?;
            if some.is_empty() {
                return Err(format!("group {id}: no entry at {from}"));
            }
            entries.extend(some);
        }
        for (entry, index) in entries.iter().zip(range.start.0..) {
            if entry.index != Index(index) || log.term_at(id, entry.index) != Some(entry.term) {
                return Err(format!("group {id}: {entry:?} where entry {index} belongs"));
            }
        }
        let group = Group {
            base: info.base,
            entries,
            hard: info.hard_state,
            snapshot: info.snapshot,
            incarnation: info.incarnation,
        };
        if (info.last_index, info.last_term) != group.last() {
            let (said, is) = ((info.last_index, info.last_term), group.last());
            return Err(format!(
                "group {id}: last is said to be {said:?}, and is {is:?}"
            ));
        }
        state.insert(id, group);
    }
    Ok(state)
}

/// The states that a log went through since it was last known to be exactly something.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// The first is certain; each further one is the state after one more batch.
    pub(crate) states: Vec<State>,
    /// The newest state that was acknowledged.
    pub(crate) synced: usize,
}

impl History {
    pub(crate) fn new(start: State) -> Self {
        Self {
            states: vec![start],
            synced: 0,
        }
    }

    pub(crate) fn newest(&self) -> &State {
        self.states.last().expect("begins with one")
    }

    pub(crate) fn submit(&mut self, batch: &WriteBatch) {
        let mut state = self.newest().clone();
        apply(&mut state, batch);
        self.states.push(state);
    }

    pub(crate) fn ack_all(&mut self) {
        self.synced = self.states.len() - 1;
    }

    /// Finds `found` among what a crash may leave: a prefix of the batches that contains every acknowledged one.
    pub(crate) fn judge(&self, found: &State) -> Result<usize, String> {
        let allowed = self.synced..self.states.len();
        allowed
            .clone()
            .rev()
            .find(|at| self.leaves(*at, found))
            .ok_or_else(|| {
                format!(
                    "none of the states {allowed:?} was found, but {found:#?}\nacknowledged: {:#?}",
                    self.states[self.synced]
                )
            })
    }

    /// Term, vote and incarnation are written to their slots before the batch that carries them, so those of a later batch
    /// may have survived without it.
    fn leaves(&self, at: usize, found: &State) -> bool {
        let state = &self.states[at];
        let same_groups = state.keys().eq(found.keys());
        same_groups
            && state.iter().zip(found.values()).all(|((id, want), found)| {
                let slot = |group: &Group| {
                    let Group {
                        hard, incarnation, ..
                    } = group;
                    (hard.term, hard.vote, incarnation.number)
                };
                // Between two lives of a group there is a state without it.
                let mut life = self.states[at..].iter().map_while(|later| later.get(id));
                let promised = life.any(|later| slot(later) == slot(found));
                let begun = found.incarnation.number > want.incarnation.number;
                promised
                    && (found.incarnation == want.incarnation
                        || (begun && found.incarnation.guarded))
                    && found.hard.commit == want.hard.commit
                    && (&found.base, &found.entries, &found.snapshot)
                        == (&want.base, &want.entries, &want.snapshot)
            })
    }
}
