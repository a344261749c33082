//! Watches are ordered, unique, reliable, atomic, resumable and bookmarkable.
//!
//! Source: etcd's documentation, "KV API guarantees", section on watches. Events come in the order of revisions, never
//! twice, none is left out between two that are delivered, all events of a revision come in one message, a watch can be
//! resumed after the last event, and a progress notification of a revision means that all events up to it were
//! delivered.

use super::Verdict;

/// What one watcher of the whole key space has received.
#[derive(Debug)]
pub struct WatchGuarantees {
    next: i64,
}

impl WatchGuarantees {
    /// A watcher that starts at a revision.
    #[must_use]
    pub fn from(revision: i64) -> Self {
        Self { next: revision }
    }

    /// The revision from which the watch is resumed.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.next
    }

    /// One message brought events, each with its revision. `expected` gives all events of a revision.
    ///
    /// # Errors
    /// When they are not what comes next, whole.
    pub fn events<E: PartialEq + std::fmt::Debug>(
        &mut self,
        events: &[(i64, E)],
        expected: impl Fn(i64) -> Option<Vec<E>>,
    ) -> Verdict {
        for of_one in events.chunk_by(|a, b| a.0 == b.0) {
            let revision = of_one[0].0;
            if revision != self.next {
                return Err(format!(
                    "events of revision {revision} arrive, {} is next",
                    self.next
                ));
            }
            let known = expected(revision).unwrap_or_default();
            if !of_one.iter().map(|(_, event)| event).eq(&known) {
                return Err(format!(
                    "revision {revision} arrives as {of_one:?}, and is {known:?}"
                ));
            }
            self.next += 1;
        }
        Ok(())
    }

    /// A message says that everything up to a revision was delivered.
    ///
    /// # Errors
    /// When it was not.
    pub fn bookmark(&self, revision: i64) -> Verdict {
        if revision >= self.next {
            return Err(format!(
                "progress is {revision}, but the events of {} were not delivered",
                self.next
            ));
        }
        Ok(())
    }

    /// The watch was ended because history up to `floor` is compacted. It is resumed there.
    ///
    /// # Errors
    /// When what is next is still there, or the floor is none.
    pub fn compacted(&mut self, floor: i64, known_floor: i64) -> Verdict {
        if floor <= self.next || floor > known_floor {
            return Err(format!(
                "a watch from {} is ended by compaction at {floor}; the floor is {known_floor}",
                self.next
            ));
        }
        self.next = floor;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(revision: i64) -> Option<Vec<char>> {
        (revision < 9).then(|| vec!['a', 'b'])
    }

    #[test]
    fn whole_revisions_in_order_are_accepted() {
        let mut checker = WatchGuarantees::from(3);
        let events = [(3, 'a'), (3, 'b'), (4, 'a'), (4, 'b')];
        assert_eq!(checker.events(&events, two), Ok(()));
        assert_eq!(checker.next(), 5);
        assert_eq!(checker.bookmark(4), Ok(()));
    }

    #[test]
    fn lost_repeated_and_split_revisions_are_refused() {
        let lost = [(4, 'a'), (4, 'b')];
        assert!(WatchGuarantees::from(3).events(&lost, two).is_err());
        let repeated = [(3, 'a'), (3, 'b'), (3, 'a'), (3, 'b')];
        assert!(WatchGuarantees::from(3).events(&repeated, two).is_err());
        let split = [(3, 'a')];
        assert!(WatchGuarantees::from(3).events(&split, two).is_err());
        let unknown = [(9, 'a')];
        assert!(WatchGuarantees::from(9).events(&unknown, two).is_err());
    }

    #[test]
    fn progress_ahead_of_events_is_refused() {
        assert!(WatchGuarantees::from(3).bookmark(3).is_err());
    }

    #[test]
    fn end_by_compaction_of_what_is_still_there_is_refused() {
        assert!(WatchGuarantees::from(7).compacted(6, 9).is_err());
        assert!(WatchGuarantees::from(7).compacted(10, 9).is_err());
        assert_eq!(WatchGuarantees::from(7).compacted(9, 9), Ok(()));
    }
}
