//! What the log holds in memory of each group: where it begins and ends, terms by runs, and where each entry lies.
//!
//! Live writes and recovery go through the same [`Groups::apply`], so a reopened log has the state it had.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use super::footer::{FOOTER, FOOTER_GAP, GROUP_HEADER, PLACE, RUN, Sealed};
use super::format::{DiskRecord, GroupCheckpoint, RECORD_HEADER};
use super::unsynced::Unsynced;
use super::votes::Slot;
use crate::{Base, Entry, GroupId, HardState, Incarnation, Index, Record, SnapshotRef, Term};

/// Bytes of an incarnation in a checkpoint; groups that never lost anything leave it out, and are given room for it.
const INCARNATION: usize = 16;

/// Where an entry's record lies. There is one for each entry of the log, so it is kept small: records begin at
/// multiples of 8, and a segment is far shorter than 32 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    segment: u32,
    eighths: u32,
    /// Length of the record in bytes, without padding.
    pub(super) len: u32,
}

impl Position {
    /// # Panics
    /// When a place is outside what [`SEGMENT_ID_MAX`](super::format::SEGMENT_ID_MAX) and
    /// [`SEGMENT_BYTES_MAX`](super::format::SEGMENT_BYTES_MAX) allow.
    pub(super) fn new(segment: u64, offset: u64, len: u32) -> Self {
        assert!(offset.is_multiple_of(8), "records are aligned");
        Self {
            segment: u32::try_from(segment).expect("ids of segments are bounded"),
            eighths: u32::try_from(offset / 8).expect("the length of a segment is bounded"),
            len,
        }
    }

    pub(super) fn segment(self) -> u64 {
        u64::from(self.segment)
    }

    pub(super) fn offset(self) -> u64 {
        u64::from(self.eighths) * 8
    }

    /// The place within its segment, as a footer holds it.
    pub(super) fn packed(self) -> u64 {
        u64::from(self.eighths) | (u64::from(self.len) << 32)
    }

    pub(super) fn unpack(segment: u64, packed: u64) -> Self {
        let (eighths, len) = (packed as u32, (packed >> 32) as u32);
        Self::new(segment, u64::from(eighths) * 8, len)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) base: Base,
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) incarnation: Incarnation,
    /// Entries up to here were in segments that are gone; only seen while a log is being recovered.
    pub(super) missing_to: Index,
    pub(super) entries: VecDeque<Position>,
    /// First index of each run of one term, ascending.
    runs: VecDeque<(Index, Term)>,
    /// Newest entries; the last one is the group's last.
    pub(super) cache: VecDeque<Entry>,
    pub(super) unsynced: Unsynced,
    /// The segment, and the term, of the last entry that was counted for a footer.
    counted: (u64, Term),
}

impl Group {
    pub(super) fn last(&self) -> Index {
        Index(self.missing_to.0.max(self.base.index.0) + self.entries.len() as u64)
    }

    pub(super) fn first_held(&self) -> u64 {
        self.missing_to.0.max(self.base.index.0) + 1
    }

    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last() || index.0 < self.first_held() {
            return None;
        }
        let run = self.runs.partition_point(|run| run.0 <= index);
        Some(self.runs[run.checked_sub(1)?].1)
    }

    /// The runs of terms from an index on; the first begins there.
    pub(super) fn runs_from(&self, first: Index) -> impl Iterator<Item = (Index, Term)> + '_ {
        let skip = self
            .runs
            .partition_point(|run| run.0 <= first)
            .saturating_sub(1);
        self.runs
            .range(skip..)
            .map(move |run| (run.0.max(first), run.1))
    }

    pub(super) fn position(&self, index: Index) -> Option<Position> {
        let at = index.0.checked_sub(self.first_held())?;
        self.entries.get(at as usize).copied()
    }

    pub(super) fn checkpoint(&self) -> GroupCheckpoint {
        GroupCheckpoint {
            hard_state: self.hard_state,
            base: self.base.clone(),
            last_index: self.last(),
            snapshot: self.snapshot.clone(),
            incarnation: self.incarnation,
        }
    }

    /// What the vote slots say of the group.
    pub(super) fn slot(&self, group: GroupId) -> Slot {
        Slot {
            group,
            creation: self.base.creation,
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            incarnation: self.incarnation.number,
        }
    }

    /// Bytes of the group's record in a checkpoint, at most.
    fn weight(&self) -> usize {
        let snapshot = self.snapshot.as_ref();
        let snapshot = snapshot.map_or(0, |snapshot| 48 + snapshot.membership.len());
        let payload = 32 + 32 + self.base.membership.len() + 8 + 8 + snapshot + INCARNATION;
        (RECORD_HEADER + payload).next_multiple_of(8)
    }

    fn from_checkpoint(state: GroupCheckpoint) -> Self {
        Self {
            missing_to: state.last_index,
            base: state.base,
            hard_state: state.hard_state,
            snapshot: state.snapshot,
            incarnation: state.incarnation,
            ..Self::default()
        }
    }
}

fn term_goes_down(entry: &Entry, before: Term) -> String {
    format!(
        "entry {} of term {} follows one of term {before}, and terms do not decrease along a log",
        entry.index, entry.term
    )
}

/// All groups, and how many entries each segment still has to keep.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub(super) map: BTreeMap<GroupId, Group>,
    pub(super) live: BTreeMap<u64, u64>,
    pub(super) cached: usize,
    /// What is cached, oldest first: the group, and the last index of a run of appends to it. What was cut since is
    /// still in it.
    cache_order: VecDeque<(GroupId, Index)>,
    /// The newest batch known to be synced.
    pub(super) durable: u64,
    /// The segment that is being filled, and the bytes that the index of its footer takes at most.
    footer: (u64, u64),
    /// Bytes that a checkpoint of all groups takes.
    weight: usize,
}

impl Groups {
    /// Says why a batch contradicts the groups' state, before anything of it is taken.
    pub(super) fn check(&self, records: &[(GroupId, Record)]) -> Result<(), (bool, String)> {
        // What the batch changes so far: base, last index, last term, hard state, incarnation; `None` for a destroyed group.
        type Shadow = Option<(Base, Index, Term, HardState, Incarnation)>;
        let mut shadows: BTreeMap<GroupId, Shadow> = BTreeMap::new();
        // The creations of groups that end in the batch.
        let mut ended: BTreeMap<GroupId, u64> = BTreeMap::new();
        for (number, (id, record)) in records.iter().enumerate() {
            let shadow = shadows.entry(*id).or_insert_with(|| {
                let group = self.map.get(id)?;
                let last = group.last();
                Some((
                    group.base.clone(),
                    last,
                    group.term_at(last).unwrap_or_default(),
                    group.hard_state,
                    group.incarnation,
                ))
            });
            if matches!(record, Record::Compact(base) if base.index == Index::MAX) {
                let text = format!("group {id}: no entry can follow base {}", Index::MAX);
                return Err((false, text));
            }
            let Some((base, last, last_term, state, incarnation)) = shadow.as_mut() else {
                let Record::Compact(base) = record else {
                    return Err((
                        true,
                        format!("group {id} does not exist; create it with a compact record"),
                    ));
                };
                if let Some(before) = ended.get(id).filter(|before| base.creation <= **before) {
                    let text = format!(
                        "group {id}: creation {} follows creation {before}, which ends in the same batch; create it in a batch of its own, or with a greater number",
                        base.creation
                    );
                    return Err((false, text));
                }
                *shadow = Some((
                    base.clone(),
                    base.index,
                    base.term,
                    HardState::default(),
                    Incarnation::default(),
                ));
                continue;
            };
            let wrong = |text: String| Err((false, format!("group {id}: {text}")));
            match record {
                Record::Entries(entries) => {
                    for (at, entry) in entries.iter().enumerate() {
                        if entry.index <= base.index
                            || entry.index > last.next()
                            || entry.index == Index::MAX
                        {
                            return wrong(format!(
                                "entry {} does not follow {last} above base {}",
                                entry.index, base.index
                            ));
                        }
                        if at > 0 && entry.index != last.next() {
                            return wrong(format!(
                                "entry {} of term {} is out of order",
                                entry.index, entry.term
                            ));
                        }
                        if entry.index <= *last {
                            *last_term =
                                self.term_behind(&records[..number], *id, base, entry.index);
                        }
                        if entry.term < *last_term {
                            return wrong(term_goes_down(entry, *last_term));
                        }
                        (*last, *last_term) = (entry.index, entry.term);
                    }
                }
                Record::HardState(new) => {
                    let revoted =
                        new.term == state.term && state.vote.is_some() && new.vote != state.vote;
                    if new.term < state.term || revoted {
                        return wrong(format!(
                            "term {} and vote {:?} contradict {} and {:?}",
                            new.term, new.vote, state.term, state.vote
                        ));
                    }
                    *state = *new;
                }
                Record::Truncate(from) => {
                    if *from <= base.index || *from > last.next() {
                        return wrong(format!(
                            "cut from {from} is outside {} to {last}",
                            base.index
                        ));
                    }
                    *last = from.prev();
                    *last_term = self.term_behind(&records[..number], *id, base, *from);
                }
                Record::Compact(new) => {
                    if new.index < base.index || new.creation != base.creation {
                        return wrong(format!(
                            "base {} of creation {} cannot follow {} of {}",
                            new.index, new.creation, base.index, base.creation
                        ));
                    }
                    *base = new.clone();
                    if new.index >= *last {
                        (*last, *last_term) = (new.index, new.term);
                    }
                }
                Record::SnapshotRef(_) => {}
                Record::Incarnation(new) => {
                    let follows = match new.number.cmp(&incarnation.number) {
                        Ordering::Less => false,
                        Ordering::Equal => incarnation.guarded || !new.guarded,
                        Ordering::Greater => new.guarded,
                    };
                    if !follows {
                        return wrong(format!(
                            "{new:?} cannot follow {incarnation:?}: a new log begins guarded, and a guard ends once"
                        ));
                    }
                    *incarnation = *new;
                }
                Record::Destroy => {
                    ended.insert(*id, base.creation);
                    *shadow = None;
                }
            }
        }
        Ok(())
    }

    /// The term of what comes before an index once `records` are taken; zero when that is not known.
    fn term_behind(
        &self,
        records: &[(GroupId, Record)],
        id: GroupId,
        base: &Base,
        index: Index,
    ) -> Term {
        let before = index.prev();
        if before == base.index {
            return base.term;
        }
        let mine = records.iter().rev().filter(|record| record.0 == id);
        for (_, record) in mine {
            let Record::Entries(entries) = record else {
                continue;
            };
            let first = entries.first().map_or(Index::MAX, |entry| entry.index);
            let at = before.0.checked_sub(first.0);
            if let Some(entry) = at.and_then(|at| entries.get(at as usize)) {
                return entry.term;
            }
        }
        let held = self.map.get(&id).and_then(|group| group.term_at(before));
        held.unwrap_or_default()
    }

    /// Takes one record that `check` accepted; `place` gives the position of each entry in turn.
    pub(super) fn apply(
        &mut self,
        seq: u64,
        id: GroupId,
        record: Record,
        mut place: impl FnMut() -> Position,
    ) {
        match record {
            Record::Entries(entries) => {
                let Some(first) = entries.first().map(|entry| entry.index) else {
                    return;
                };
                self.cut(id, first);
                let group = self.map.get_mut(&id).expect("checked");
                group.unsynced.push(seq, first, self.durable);
                for entry in entries {
                    self.push(id, entry, place());
                }
            }
            Record::HardState(state) => self.map.get_mut(&id).expect("checked").hard_state = state,
            Record::Truncate(from) => self.cut(id, from),
            Record::Compact(base) => self.compact(id, base),
            Record::SnapshotRef(snapshot) => {
                let group = self.map.get_mut(&id).expect("checked");
                let before = group.weight();
                group.snapshot = Some(snapshot);
                self.weight = self.weight + group.weight() - before;
            }
            Record::Incarnation(incarnation) => {
                self.map.get_mut(&id).expect("checked").incarnation = incarnation;
            }
            Record::Destroy => self.forget(id),
        }
    }

    /// Takes one entry that a recovery read: what was written passed [`Groups::check`], and is synced.
    pub(super) fn replay_entry(
        &mut self,
        id: GroupId,
        entry: Entry,
        position: Position,
    ) -> Result<(), String> {
        let Some(group) = self.map.get(&id) else {
            return Err(format!("an entry of group {id}, which does not exist"));
        };
        let last = group.last();
        if entry.index <= group.base.index || entry.index > last.next() {
            return Err(format!(
                "group {id}: entry {} does not follow {last} above base {}",
                entry.index, group.base.index
            ));
        }
        if entry.index <= last {
            self.cut(id, entry.index);
        }
        let group = &self.map[&id];
        let before = match group.runs.back() {
            Some(run) => run.1,
            // Of entries in segments that are gone the terms are not known.
            None if group.missing_to > group.base.index => Term::default(),
            None => group.base.term,
        };
        if entry.term < before {
            return Err(format!("group {id}: {}", term_goes_down(&entry, before)));
        }
        self.push(id, entry, position);
        Ok(())
    }

    /// Adds the entry behind the last one of its group.
    fn push(&mut self, id: GroupId, entry: Entry, position: Position) {
        let group = self.map.get_mut(&id).expect("checked");
        if group.runs.back().is_none_or(|run| run.1 != entry.term) {
            group.runs.push_back((entry.index, entry.term));
        }
        let segment = position.segment();
        if self.footer.0 != segment {
            self.footer = (segment, 0);
        }
        if group.counted.0 != segment {
            self.footer.1 += GROUP_HEADER;
        }
        if group.counted != (segment, entry.term) {
            self.footer.1 += RUN;
            group.counted = (segment, entry.term);
        }
        self.footer.1 += PLACE;
        *self.live.entry(segment).or_default() += 1;
        group.entries.push_back(position);
        let place = (id, entry.index);
        self.cached += entry.cost();
        group.cache.push_back(entry);
        match self.cache_order.back_mut() {
            Some(last) if last.0 == id => *last = place,
            _ => self.cache_order.push_back(place),
        }
    }

    /// Takes over the groups of a checkpoint as the state from which a recovery starts.
    pub(super) fn restore(&mut self, records: impl Iterator<Item = (GroupId, DiskRecord)>) -> bool {
        for (id, record) in records {
            let DiskRecord::Checkpoint(state) = record else {
                return false;
            };
            let group = Group::from_checkpoint(state);
            self.weight += group.weight();
            self.map.insert(id, group);
        }
        true
    }

    pub(super) fn checkpoint(&self) -> Vec<(GroupId, GroupCheckpoint)> {
        self.map
            .iter()
            .map(|(id, group)| (*id, group.checkpoint()))
            .collect()
    }

    /// Bytes that the end of a segment must keep free for its footer.
    pub(super) fn footer_room(&self, segment: u64) -> u64 {
        let index = if self.footer.0 == segment {
            self.footer.1
        } else {
            0
        };
        index + FOOTER_GAP + FOOTER as u64
    }

    /// Bytes that a batch adds to the footer's room at most.
    pub(super) fn footer_growth(records: &[(GroupId, Record)]) -> u64 {
        let growth = |record: &Record| match record {
            Record::Entries(entries) => {
                let turns = entries
                    .windows(2)
                    .filter(|pair| pair[0].term != pair[1].term);
                GROUP_HEADER + RUN * (1 + turns.count() as u64) + PLACE * entries.len() as u64
            }
            _ => 0,
        };
        records.iter().map(|(_, record)| growth(record)).sum()
    }

    /// Bytes that a checkpoint takes at most when these records are in force.
    pub(super) fn checkpoint_bytes(&self, records: &[(GroupId, Record)]) -> usize {
        let growth = |(id, record): &(GroupId, Record)| {
            let group = self.map.get(id);
            match record {
                Record::Compact(base) => group.map_or(
                    RECORD_HEADER + 88 + INCARNATION + base.membership.len(),
                    |group| {
                        base.membership
                            .len()
                            .saturating_sub(group.base.membership.len())
                    },
                ),
                Record::SnapshotRef(new) => {
                    let old = group.and_then(|group| group.snapshot.as_ref());
                    let old = old.map_or(0, |old| 48 + old.membership.len());
                    (48 + new.membership.len()).saturating_sub(old)
                }
                _ => 0,
            }
        };
        let grown: usize = records.iter().map(growth).sum();
        if grown == 0 { 0 } else { self.weight + grown }
    }

    /// Drops a group and everything in it.
    pub(super) fn forget(&mut self, id: GroupId) {
        self.cut(id, Index::ZERO);
        self.weight -= self.map.remove(&id).map_or(0, |group| group.weight());
    }

    /// Moves a group on to a checkpoint's state, which follows its own, with the entries that a footer names.
    pub(super) fn resume(&mut self, id: GroupId, state: GroupCheckpoint, sealed: Option<Sealed>) {
        let from = sealed
            .as_ref()
            .map_or(state.last_index.next(), |sealed| sealed.first);
        self.cut(id, from);
        self.compact(id, state.base);
        let group = self.map.get_mut(&id).expect("compacted to its base");
        let before = group.weight();
        (group.hard_state, group.snapshot) = (state.hard_state, state.snapshot);
        group.incarnation = state.incarnation;
        self.weight = self.weight + group.weight() - before;
        let Some(sealed) = sealed else { return };
        // What is cached must reach the group's end without a gap.
        for entry in group.cache.drain(..) {
            self.cached -= entry.cost();
        }
        for run in sealed.runs {
            if group.runs.back().is_none_or(|last| last.1 != run.1) {
                group.runs.push_back(run);
            }
        }
        if let Some(first) = sealed.places.first() {
            *self.live.entry(first.segment()).or_default() += sealed.places.len() as u64;
        }
        group.entries.extend(sealed.places);
    }

    fn cut(&mut self, id: GroupId, from: Index) {
        let Some(group) = self.map.get_mut(&id) else {
            return;
        };
        let keep = from.0.saturating_sub(group.first_held()) as usize;
        for gone in group.entries.drain(keep.min(group.entries.len())..) {
            *self.live.entry(gone.segment()).or_default() -= 1;
        }
        if from <= group.missing_to {
            group.missing_to = from.prev();
        }
        while group.runs.back().is_some_and(|run| run.0 >= from) {
            group.runs.pop_back();
        }
        while group.cache.back().is_some_and(|entry| entry.index >= from) {
            self.cached -= group.cache.pop_back().map_or(0, |entry| entry.cost());
        }
    }

    fn compact(&mut self, id: GroupId, base: Base) {
        let before = self.map.get(&id).map_or(0, Group::weight);
        let group = self.map.entry(id).or_default();
        let drop = (base.index.next().0.saturating_sub(group.first_held()) as usize)
            .min(group.entries.len());
        for gone in group.entries.drain(..drop) {
            *self.live.entry(gone.segment()).or_default() -= 1;
        }
        while group
            .runs
            .get(1)
            .is_some_and(|run| run.0 <= base.index.next())
        {
            group.runs.pop_front();
        }
        if group.entries.is_empty() && base.index >= group.missing_to {
            group.runs.clear();
        }
        while group
            .cache
            .front()
            .is_some_and(|entry| entry.index <= base.index)
        {
            self.cached -= group.cache.pop_front().map_or(0, |entry| entry.cost());
        }
        // Entries that recovery misses stay missing until the base covers them.
        group.missing_to = if base.index >= group.missing_to {
            Index::ZERO
        } else {
            group.missing_to
        };
        group.base = base;
        self.weight = self.weight + group.weight() - before;
    }

    /// Forgets cached entries, oldest first, until the budget holds. What is not written yet stays.
    ///
    /// It is called after each sync and forgets about as much as was added since, so that nobody waits for long.
    pub(super) fn trim_cache(&mut self, budget: usize, durable: u64) {
        self.durable = durable;
        while let Some((id, last)) = self.cache_order.front().copied() {
            // The order takes memory too, also for what was cut from the cache.
            let order = self.cache_order.len() * size_of::<(GroupId, Index)>();
            if self.cached + order <= budget {
                return;
            }
            if let Some(group) = self.map.get_mut(&id) {
                let pinned = group.unsynced.first(durable);
                if let Some(oldest) = group.cache.front().filter(|entry| entry.index <= last) {
                    if pinned.is_some_and(|pinned| oldest.index >= pinned) {
                        return;
                    }
                    self.cached -= oldest.cost();
                    group.cache.pop_front();
                    continue;
                }
            }
            self.cache_order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryKind;

    fn entries(indices: std::ops::RangeInclusive<u64>) -> Record {
        let entry = |index| Entry {
            index: Index(index),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: vec![0; 68].into(),
        };
        Record::Entries(indices.map(entry).collect())
    }

    fn apply(groups: &mut Groups, seq: u64, group: u64, record: Record) {
        groups.apply(seq, GroupId(group), record, || Position::new(1, 0, 0));
    }

    fn cached(groups: &Groups, group: u64) -> Vec<u64> {
        let cache = &groups.map[&GroupId(group)].cache;
        cache.iter().map(|entry| entry.index.0).collect()
    }

    fn two_groups() -> Groups {
        let mut groups = Groups::default();
        for group in [1, 2] {
            apply(&mut groups, 1, group, Record::Compact(Base::default()));
        }
        groups
    }

    /// What so many cached entries and records of the order take.
    fn budget(entries: usize, order: usize) -> usize {
        entries * 100 + order * 16
    }

    #[test]
    fn trim_of_a_cache_over_budget_forgets_the_oldest_of_all_groups() {
        let mut groups = two_groups();
        apply(&mut groups, 2, 1, entries(1..=3));
        apply(&mut groups, 3, 2, entries(1..=3));
        apply(&mut groups, 4, 1, entries(4..=4));
        groups.trim_cache(budget(6, 3), 4);
        assert_eq!(cached(&groups, 1), [2, 3, 4]);
        groups.trim_cache(budget(2, 2), 4);
        assert_eq!((cached(&groups, 1), cached(&groups, 2)), (vec![4], vec![3]));
        assert_eq!(groups.cached, 200);
    }

    #[test]
    fn trim_before_a_sync_keeps_what_only_memory_holds() {
        let mut groups = two_groups();
        apply(&mut groups, 2, 1, entries(1..=3));
        apply(&mut groups, 3, 2, entries(1..=1));
        // These replace entries that were synced, under the same indices.
        apply(&mut groups, 4, 1, entries(2..=4));
        groups.trim_cache(0, 3);
        assert_eq!(cached(&groups, 1), [2, 3, 4]);
        groups.trim_cache(0, 4);
        assert_eq!(groups.cached, 0);
        assert!(groups.cache_order.is_empty());
    }

    #[test]
    fn cache_order_of_groups_compacted_all_the_time_stays_within_the_budget() {
        let mut groups = two_groups();
        apply(&mut groups, 2, 1, entries(1..=1));
        for index in 1..1000 {
            for group in [2, 1] {
                let record = if group == 1 { index + 1 } else { index };
                apply(&mut groups, index, group, entries(record..=record));
                let base = Base {
                    index: Index(record),
                    term: Term(1),
                    ..Base::default()
                };
                apply(&mut groups, index, group, Record::Compact(base));
            }
            groups.trim_cache(budget(1, 50), index);
        }
        assert!(groups.cache_order.len() * 16 <= budget(1, 50));
    }

    #[test]
    fn place_of_an_entry_takes_at_most_half_of_what_the_index_may() {
        // A deque that grows holds up to twice what is in it; the index is promised to take 24 bytes per entry.
        assert!(size_of::<Position>() * 2 <= 24);
    }

    #[test]
    fn position_packed_and_unpacked_is_the_same() {
        let position = Position::new(u64::from(u32::MAX), (1 << 32) - 8, u32::MAX);
        assert_eq!(
            Position::unpack(position.segment(), position.packed()),
            position
        );
        assert_eq!(position.offset(), (1 << 32) - 8);
    }
}
