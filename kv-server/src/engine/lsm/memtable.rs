//! What has been written since the last flush: an ordered map in memory that one thread fills while others read.
//!
//! It is ours rather than the tree's, because the tree guards its own with a lock that it holds over several syncs.
//! Nothing is ever removed or changed in one: a newer version of a key is a further entry.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering as Order};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use lsm_tree::{InternalValue, ValueType};

use super::digest::{Digest, Lesson, Spaces};
use super::merge::Version;

/// What an entry costs beside its key and value: a node with its tower, two handles, and what the allocator adds.
const ENTRY_BYTES: u64 = 144;

/// One version of a key. Sorts by key, then the newest version first, as the tree's tables do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VersionKey {
    digest: Digest,
    user: Bytes,
    sequence: u64,
}

impl Ord for VersionKey {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.digest.tells(other.digest) {
            return self.digest.cmp(&other.digest);
        }
        self.user
            .cmp(&other.user)
            .then_with(|| other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for VersionKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Sorts before the versions that a reader sees, and behind those that it does not, in any memtable.
pub(super) struct Probe(VersionKey);

impl Probe {
    /// For the versions of a key below `at`.
    pub(super) fn newest_below(user: &[u8], at: u64) -> Self {
        Self(VersionKey {
            digest: Digest::NONE,
            user: Bytes::copy_from_slice(user),
            sequence: at.saturating_sub(1),
        })
    }
}

/// The map. A missing value is a removal.
pub(super) struct Memtable {
    entries: SkipMap<VersionKey, Option<Bytes>>,
    bytes: AtomicU64,
    /// What the keys of the memtable before had in common, and what those of this one have.
    spaces: Spaces,
    lesson: Mutex<Lesson>,
}

impl Memtable {
    pub(super) fn new() -> Self {
        Self::with(Spaces::default())
    }

    fn with(spaces: Spaces) -> Self {
        Self {
            entries: SkipMap::new(),
            bytes: AtomicU64::new(0),
            spaces,
            lesson: Mutex::default(),
        }
    }

    /// An empty one for what comes after this.
    pub(super) fn next(&self) -> Self {
        let lesson = self.lesson.lock().unwrap_or_else(PoisonError::into_inner);
        Self::with(lesson.spaces())
    }

    fn key(&self, user: Bytes, sequence: u64) -> VersionKey {
        VersionKey {
            digest: self.spaces.digest(&user),
            user,
            sequence,
        }
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Order::Relaxed)
    }

    /// Adds versions of keys. Sequence numbers start at one.
    pub(super) fn insert(
        &self,
        sequence: u64,
        versions: impl Iterator<Item = (Bytes, Option<Bytes>)>,
    ) {
        let mut lesson = self.lesson.lock().unwrap_or_else(PoisonError::into_inner);
        for (user, value) in versions {
            let held = user.len() + value.as_ref().map_or(0, Bytes::len);
            let held = u64::try_from(held).expect("a length fits into 64 bits");
            self.bytes.fetch_add(held + ENTRY_BYTES, Order::Relaxed);
            lesson.add(&user);
            self.entries.insert(self.key(user, sequence), value);
        }
    }

    /// The newest version that `probe` admits; the inner value is missing when that version is a removal.
    pub(super) fn get(&self, Probe(probe): &mut Probe) -> Option<Option<Bytes>> {
        probe.digest = self.spaces.digest(&probe.user);
        let entry = self.entries.lower_bound(Bound::Included(probe))?;
        (entry.key().user == probe.user).then(|| entry.value().clone())
    }

    /// The newest version below `at` of each key between two bounds, which are not inverted.
    pub(super) fn range(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        at: u64,
    ) -> impl Iterator<Item = Version> + Send + '_ {
        let key = |user: &[u8], sequence| self.key(Bytes::copy_from_slice(user), sequence);
        // The newest version of a key sorts first, so a bound lies before all versions or behind all.
        let from = match from {
            Bound::Included(user) => Bound::Included(key(user, u64::MAX)),
            Bound::Excluded(user) => Bound::Excluded(key(user, 0)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let to = match to {
            Bound::Included(user) => Bound::Included(key(user, 0)),
            Bound::Excluded(user) => Bound::Excluded(key(user, u64::MAX)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let mut last: Option<Bytes> = None;
        self.entries.range((from, to)).filter_map(move |entry| {
            let VersionKey { user, sequence, .. } = entry.key();
            if *sequence >= at || last.as_ref() == Some(user) {
                return None;
            }
            last = Some(user.clone());
            Some(Version {
                user: user.clone(),
                sequence: *sequence,
                value: entry.value().clone(),
            })
        })
    }

    /// The newest version of each key, removals included, in order: what a flush writes.
    pub(super) fn newest(&self) -> impl Iterator<Item = InternalValue> + '_ {
        let mut last: Option<Bytes> = None;
        self.entries.iter().filter_map(move |entry| {
            let key = entry.key();
            if last.as_ref() == Some(&key.user) {
                return None;
            }
            last = Some(key.user.clone());
            Some(internal(key, entry.value()))
        })
    }
}

fn internal(key: &VersionKey, value: &Option<Bytes>) -> InternalValue {
    let kind = match value {
        Some(_) => ValueType::Value,
        None => ValueType::Tombstone,
    };
    let value = value.clone().unwrap_or_default();
    InternalValue::from_components(key.user.clone(), value, key.sequence, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(memtable: &Memtable, key: &str, sequence: u64, value: Option<&str>) {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        memtable.insert(sequence, [(bytes(key), value.map(bytes))].into_iter());
    }

    fn get(memtable: &Memtable, key: &str, at: u64) -> Option<Option<Bytes>> {
        memtable.get(&mut Probe::newest_below(key.as_bytes(), at))
    }

    #[test]
    fn get_between_versions_finds_the_newest_older_one() {
        let memtable = Memtable::new();
        put(&memtable, "a", 3, Some("3"));
        put(&memtable, "a", 7, None);
        put(&memtable, "ab", 5, Some("5"));
        assert_eq!(get(&memtable, "a", 3), None);
        assert_eq!(get(&memtable, "a", 4), Some(Some("3".into())));
        assert_eq!(get(&memtable, "a", 8), Some(None));
        assert_eq!(get(&memtable, "ab", 9), Some(Some("5".into())));
        assert_eq!(get(&memtable, "b", 9), None);
    }

    #[test]
    fn newest_of_many_versions_keeps_one_per_key() {
        let memtable = Memtable::new();
        for sequence in 1..10 {
            put(&memtable, "a", sequence, Some("a"));
            put(&memtable, "b", sequence, (sequence < 9).then_some("b"));
        }
        let kept: Vec<(u64, bool)> = memtable
            .newest()
            .map(|item| (item.key.seqno, item.is_tombstone()))
            .collect();
        assert_eq!(kept, [(9, false), (9, true)]);
        assert_eq!(memtable.bytes(), 9 * (2 + 144) + 8 * (2 + 144) + 145);
    }

    #[test]
    fn next_memtable_has_the_same_order_with_keys_like_the_ones_before_and_others() {
        let name = |number: u64| match number % 5 {
            0 => format!("1_group_1_gen/pods/{:05}", number * 7919 % 1_000),
            1 => format!("1_group_1_gen/p{:05}", number * 7919 % 1_000),
            2 => format!("1_group_2_gen/pods/{:05}", number * 7919 % 1_000),
            3 => format!("2_group_1_gen/pods/{:05}", number * 7919 % 1_000),
            _ => format!("2_{}", number * 7919 % 1_000),
        };
        let mut memtable = Memtable::new();
        for round in 0..3 {
            // Others than before in the last round.
            let keys: std::collections::BTreeSet<String> = match round {
                2 => (0..500).map(name).collect(),
                _ => (0..500).filter(|n| n % 5 != 1).map(name).collect(),
            };
            for key in &keys {
                put(&memtable, key, 1, Some("1"));
                put(&memtable, key, 2, Some("2"));
            }
            let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
            let found: Vec<Bytes> = memtable
                .newest()
                .map(|item| item.key.user_key.into())
                .collect();
            assert!(found.iter().eq(&keys.iter().map(bytes).collect::<Vec<_>>()));
            for key in &keys {
                assert_eq!(get(&memtable, key, 2), Some(Some("1".into())));
                assert_eq!(get(&memtable, key, 3), Some(Some("2".into())));
            }
            let (from, to) = (&b"1_group_1_gen/pods/00500"[..], &b"2_group"[..]);
            let walked = memtable.range(Bound::Excluded(from), Bound::Included(to), 3);
            let inside = |key: &&String| key.as_bytes() > from && key.as_bytes() <= to;
            assert!(
                walked
                    .map(|version| version.user)
                    .eq(keys.iter().filter(inside).map(bytes))
            );
            memtable = memtable.next();
        }
    }
}
