//! What of a group's entries may not be on disk yet: from which index on.

use std::collections::VecDeque;

use crate::Index;

/// Batches that wrote entries and may not be synced yet: sequence and first index, both ascending.
///
/// A batch that begins at or below an earlier one makes the earlier one irrelevant: it is synced later, and reaches
/// further back. So only ascending indices are kept, and the first one that is left answers for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsynced(VecDeque<(u64, Index)>);

impl Unsynced {
    /// Adds a batch newer than all before, and forgets those up to `durable`.
    pub(super) fn push(&mut self, seq: u64, first: Index, durable: u64) {
        while self.0.front().is_some_and(|batch| batch.0 <= durable) {
            self.0.pop_front();
        }
        while self.0.back().is_some_and(|batch| batch.1 >= first) {
            self.0.pop_back();
        }
        self.0.push_back((seq, first));
    }

    /// The first index that is not on disk when the batches up to `durable` are.
    pub(super) fn first(&self, durable: u64) -> Option<Index> {
        let at = self.0.partition_point(|batch| batch.0 <= durable);
        self.0.get(at).map(|batch| batch.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn first_unsynced_index_is_the_lowest_of_all_newer_batches(
            firsts in prop::collection::vec(1..20_u64, 0..40),
            durables in prop::collection::vec(0..40_u64, 0..40),
        ) {
            let (mut unsynced, mut all, mut durable) = (Unsynced::default(), Vec::new(), 0);
            for (seq, first) in (1..).zip(firsts) {
                unsynced.push(seq, Index(first), durable);
                all.push((seq, Index(first)));
                let next = durables.get(seq as usize).copied().unwrap_or(0);
                durable = durable.max(next.min(seq));
                for durable in durable..=seq {
                    let newer = all.iter().filter(|batch| batch.0 > durable);
                    let expected = newer.map(|batch| batch.1).min();
                    prop_assert_eq!(unsynced.first(durable), expected);
                }
            }
        }
    }
}
