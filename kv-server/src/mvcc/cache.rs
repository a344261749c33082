//! A bounded map from key to the metadata of its newest version, so that a put to a known key reads nothing.
//!
//! Two generations: new entries go to the young one; when that is full it becomes the old one and the former old one
//! is dropped. Used by the writer only; never iterated.

use std::collections::HashMap;

use bytes::Bytes;

use super::codec::Latest;

/// The longest key in bytes that is cached: the cache bounds keys by their number, and a full one of the longest keys
/// that are allowed would take two gigabytes.
const KEY_BYTES_CACHED_MAX: usize = 512;

pub(super) struct Cache {
    young: HashMap<Bytes, Latest>,
    old: HashMap<Bytes, Latest>,
    generation_max: usize,
}

impl Cache {
    /// A cache of at most `entries` keys.
    pub(super) fn new(entries: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            generation_max: (entries / 2).max(1),
        }
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Option<Latest> {
        if let Some(found) = self.young.get(key) {
            return Some(*found);
        }
        let (key, found) = self.old.remove_entry(key)?;
        self.insert_young(key, found);
        Some(found)
    }

    /// Copies a new key, so that the cache does not keep the buffer alive that the key arrived in.
    pub(super) fn insert(&mut self, key: &[u8], latest: Latest) {
        if key.len() > KEY_BYTES_CACHED_MAX {
            return;
        }
        if let Some(slot) = self.young.get_mut(key) {
            *slot = latest;
            return;
        }
        let key = match self.old.remove_entry(key) {
            Some((key, _)) => key,
            None => Bytes::copy_from_slice(key),
        };
        self.insert_young(key, latest);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.young.remove(key);
        self.old.remove(key);
    }

    fn insert_young(&mut self, key: Bytes, latest: Latest) {
        if self.young.len() >= self.generation_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, latest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_key_is_not_cached() {
        let latest = Latest {
            modified: 2,
            created: 2,
            version: 1,
            lease: 0,
        };
        let mut cache = Cache::new(4);
        let (short, long) = ([1; KEY_BYTES_CACHED_MAX], [1; KEY_BYTES_CACHED_MAX + 1]);
        cache.insert(&short, latest);
        cache.insert(&long, latest);
        assert_eq!(cache.get(&short), Some(latest));
        assert_eq!(cache.get(&long), None);
    }
}
