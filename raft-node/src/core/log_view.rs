//! What the core knows of the log without reading it: the terms of all entries as runs, and the newest entries.

use std::collections::VecDeque;

use super::effects::Spare;
use crate::{Entry, Index, Term};

/// Invariant: `base_index <= last_index`; runs ascend in index and in term, and the first begins right after the base
/// unless the log is empty; the window is contiguous and, unless empty, ends at `last_index`.
#[derive(Debug)]
pub(super) struct LogView {
    base_index: Index,
    base_term: Term,
    last_index: Index,
    runs: VecDeque<(Index, Term)>,
    window: VecDeque<Entry>,
    window_bytes: usize,
    window_bytes_max: usize,
}

impl LogView {
    pub(super) fn new(
        base_index: Index,
        base_term: Term,
        last_index: Index,
        runs: Vec<(Index, Term)>,
        window_bytes_max: usize,
    ) -> Self {
        assert!(base_index <= last_index, "the log ends before its base");
        assert_eq!(
            runs.is_empty(),
            base_index == last_index,
            "runs cover the log"
        );
        if let Some((first, term)) = runs.first() {
            assert_eq!(
                *first,
                base_index.next(),
                "the first run begins after the base"
            );
            assert!(*term >= base_term, "terms never decrease along the log");
        }
        assert!(
            runs.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1),
            "runs ascend"
        );
        Self {
            base_index,
            base_term,
            last_index,
            runs: runs.into(),
            window: VecDeque::new(),
            window_bytes: 0,
            window_bytes_max,
        }
    }

    pub(super) fn base_index(&self) -> Index {
        self.base_index
    }

    pub(super) fn last_index(&self) -> Index {
        self.last_index
    }

    pub(super) fn last_term(&self) -> Term {
        self.runs.back().map_or(self.base_term, |(_, term)| *term)
    }

    #[cfg(debug_assertions)]
    pub(super) fn window(&self) -> impl Iterator<Item = &Entry> {
        self.window.iter()
    }

    /// The term of an entry; none below the base and above the end.
    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base_index {
            return Some(self.base_term);
        }
        if index < self.base_index || index > self.last_index {
            return None;
        }
        let after = self.runs.partition_point(|(first, _)| *first <= index);
        Some(self.runs[after - 1].1)
    }

    /// The highest index at or below `index` whose term is at most `term`; the base at least, if it is below.
    pub(super) fn last_at_or_below(&self, index: Index, term: Term) -> Index {
        let mut index = index.min(self.last_index);
        while index > self.base_index {
            let after = self.runs.partition_point(|(first, _)| *first <= index);
            let (first, run_term) = self.runs[after - 1];
            if run_term <= term {
                return index;
            }
            index = first.prev();
        }
        index
    }

    pub(super) fn append(&mut self, entry: Entry) {
        assert_eq!(
            entry.index,
            self.last_index.next(),
            "entries are contiguous"
        );
        assert!(
            entry.term >= self.last_term(),
            "terms never decrease along the log"
        );
        if self.runs.back().is_none_or(|(_, term)| *term < entry.term) {
            self.runs.push_back((entry.index, entry.term));
        }
        self.last_index = entry.index;
        self.window_bytes += entry.cost();
        self.window.push_back(entry);
    }

    /// Cuts the log so that `from` is the first index that is gone.
    pub(super) fn truncate(&mut self, from: Index) {
        assert!(from > self.base_index, "the base is never cut");
        assert!(from <= self.last_index, "there is something to cut");
        self.last_index = from.prev();
        while self.runs.back().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop_back();
        }
        while self.window.back().is_some_and(|entry| entry.index >= from) {
            let cost = self.window.pop_back().map_or(0, |entry| entry.cost());
            assert!(cost <= self.window_bytes, "bytes in memory were counted");
            self.window_bytes -= cost;
        }
    }

    /// Entries at or below `to` left the log.
    pub(super) fn compact(&mut self, to: Index) {
        if to <= self.base_index {
            return;
        }
        self.base_term = self.term_at(to).expect("the base moves within the log");
        self.base_index = to;
        while self
            .runs
            .get(1)
            .is_some_and(|(first, _)| *first <= to.next())
        {
            self.runs.pop_front();
        }
        if to == self.last_index {
            self.runs.clear();
        } else if let Some(first) = self.runs.front_mut() {
            first.0 = to.next();
        }
        while self.window.front().is_some_and(|entry| entry.index <= to) {
            self.forget_oldest();
        }
    }

    /// The log begins anew after a snapshot.
    pub(super) fn restart(&mut self, index: Index, term: Term) {
        assert!(index > self.base_index, "a snapshot lies above the base");
        (self.base_index, self.base_term) = (index, term);
        self.last_index = index;
        self.runs.clear();
        self.window.clear();
        self.window_bytes = 0;
    }

    /// The entries from `from` on that are in memory, `bytes_max` of them at most but one at least; none when `from`
    /// is older than what is in memory.
    pub(super) fn recent(
        &self,
        from: Index,
        bytes_max: usize,
        spare: &mut Spare,
    ) -> Option<Vec<Entry>> {
        if from > self.last_index {
            return Some(Vec::new());
        }
        let first = self.window.front()?.index;
        let skip = usize::try_from(from.0.checked_sub(first.0)?).expect("the window is short");
        let mut bytes = 0;
        let entries = self.window.range(skip..).take_while(|entry| {
            let fits = bytes == 0 || bytes + entry.cost() <= bytes_max;
            bytes += entry.cost();
            fits
        });
        let count = entries.count();
        let mut taken = spare.take();
        // Its length is known, so the buffer grows once.
        taken.extend(self.window.range(skip..skip + count).cloned());
        Some(taken)
    }

    /// Takes clones of the entries from `from` to the end, which must be in memory.
    pub(super) fn tail(&self, from: Index, spare: &mut Spare) -> Vec<Entry> {
        if from > self.last_index {
            return Vec::new();
        }
        let first = self
            .window
            .front()
            .expect("entries not yet persisted are in memory")
            .index;
        assert!(first <= from, "entries not yet persisted are in memory");
        let skip = usize::try_from(from.0 - first.0).expect("the window is short");
        let mut taken = spare.take();
        taken.extend(self.window.range(skip..).cloned());
        taken
    }

    /// Forgets entries that nobody needs: all below `keep_from` when nobody replicates, else the oldest ones past the
    /// budget. Entries at or above `keep_from` are not durable yet and stay.
    pub(super) fn trim(&mut self, keep_from: Index, replicating: bool) {
        let bytes_max = if replicating {
            self.window_bytes_max
        } else {
            0
        };
        while self.window_bytes > bytes_max
            && self
                .window
                .front()
                .is_some_and(|entry| entry.index < keep_from)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let cost = self.window.pop_front().map_or(0, |entry| entry.cost());
        assert!(cost <= self.window_bytes, "bytes in memory were counted");
        self.window_bytes -= cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryKind;
    use bytes::Bytes;

    fn view(terms: &[u64]) -> LogView {
        let mut view = LogView::new(Index::ZERO, Term::ZERO, Index::ZERO, Vec::new(), 1 << 20);
        for (at, term) in terms.iter().enumerate() {
            view.append(Entry {
                index: Index(at as u64 + 1),
                term: Term(*term),
                kind: EntryKind::Normal,
                payload: Bytes::new(),
            });
        }
        view
    }

    #[test]
    fn terms_survive_truncation_and_compaction() {
        let mut view = view(&[1, 1, 2, 2, 5]);
        view.truncate(Index(5));
        view.compact(Index(1));
        assert_eq!(view.term_at(Index(0)), None);
        assert_eq!(view.term_at(Index(1)), Some(Term(1)));
        assert_eq!(view.term_at(Index(2)), Some(Term(1)));
        assert_eq!(view.term_at(Index(4)), Some(Term(2)));
        assert_eq!(view.term_at(Index(5)), None);
        view.compact(Index(4));
        assert_eq!(view.last_term(), Term(2));
        assert_eq!(view.term_at(Index(4)), Some(Term(2)));
    }

    #[test]
    fn backtracking_skips_whole_terms() {
        let view = view(&[1, 1, 2, 2, 5]);
        assert_eq!(view.last_at_or_below(Index(9), Term(4)), Index(4));
        assert_eq!(view.last_at_or_below(Index(4), Term(1)), Index(2));
        assert_eq!(view.last_at_or_below(Index(4), Term(0)), Index(0));
    }

    #[test]
    fn trimmed_entries_are_not_recent() {
        let mut view = view(&[1, 1, 1]);
        view.trim(Index(3), false);
        let mut spare = Spare::default();
        assert_eq!(view.recent(Index(2), 100, &mut spare), None);
        assert_eq!(
            view.recent(Index(3), 100, &mut spare)
                .map(|entries| entries.len()),
            Some(1)
        );
        assert_eq!(view.tail(Index(3), &mut spare).len(), 1);
    }
}
