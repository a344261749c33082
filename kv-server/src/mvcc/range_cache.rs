//! The newest state of stretches of keys that are read often and written seldom, in memory.
//!
//! A range of keys whose history is long costs a look into many places of the engine for each of them; here it costs none. What
//! can be held is a block of [`Counts`](super::counts::Counts), so about a hundred neighbours, whole. A block is read into
//! its [`Slot`] when it was missed twice without a change in between, and is good until a batch changes one of its keys.
//!
//! # Why nobody reads what is not so
//!
//! The writer notes in a slot the applied index of each batch that changed a key of the block, before readers get the counts of
//! that index; and a reader looks at slots only by the counts of its own snapshot's index. So whoever reads at an index
//! knows of all changes up to it. What a slot holds was read at some index: it is what a reader at another one finds if
//! the last change known is not behind either of the two. A block whose bounds move gets a new slot.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, BytesMut};
use raft_log::Index;

use crate::pb::mvccpb::KeyValue;

/// Bytes of keys and values past which a block is not held.
pub(super) const CONTENT_BYTES_MAX: usize = 256 << 10;
/// What a slot's `asked` says when nobody need ask again.
const NEVER: u64 = u64::MAX;

/// All keys of a block, as they were at an applied index.
pub(super) struct Content {
    index: Index,
    kvs: Vec<KeyValue>,
    bytes: usize,
}

impl Content {
    /// Copies keys and values into one buffer, so that nothing else is kept alive by them.
    pub(super) fn new(mut kvs: Vec<KeyValue>, index: Index) -> Self {
        let held = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let mut buffer = BytesMut::with_capacity(held);
        for kv in &mut kvs {
            for part in [&mut kv.key, &mut kv.value] {
                buffer.put_slice(part);
                *part = buffer.split().freeze();
            }
        }
        kvs.shrink_to_fit();
        Self {
            index,
            bytes: held + std::mem::size_of_val(&kvs[..]) + size_of::<Self>(),
            kvs,
        }
    }

    /// The keys from one on.
    pub(super) fn from(&self, key: &[u8]) -> &[KeyValue] {
        &self.kvs[self.kvs.partition_point(|kv| *kv.key < *key)..]
    }
}

/// Where a block is held, or would be.
pub(super) struct Slot {
    /// The applied index of the last batch that changed a key of the block; zero before the first.
    changed: AtomicU64,
    /// One more than what `changed` was when the block was last missed.
    asked: AtomicU64,
    /// Somebody read it since the cache last looked for what may go.
    used: AtomicBool,
    content: Mutex<Option<Arc<Content>>>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            changed: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            used: AtomicBool::new(false),
            content: Mutex::new(None),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Content>>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the writer: a batch changed a key of the block.
    pub(super) fn touch(&self, index: Index) {
        self.changed.store(index.0, Ordering::Release);
    }

    /// The block as a reader at an index finds it, if it is held.
    pub(super) fn get(&self, at: Index) -> Option<Arc<Content>> {
        let content = self.lock().clone()?;
        let changed = self.changed.load(Ordering::Acquire);
        if changed > content.index.0.min(at.0) {
            return None;
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        Some(content)
    }

    /// Says that a reader at an index missed it: true if it is worth reading as a whole.
    pub(super) fn miss(&self, at: Index) -> bool {
        let changed = self.changed.load(Ordering::Acquire);
        if changed > at.0 {
            return false;
        }
        match self.asked.load(Ordering::Relaxed) {
            NEVER => false,
            asked if asked == changed + 1 => true,
            _ => {
                self.asked.store(changed + 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// The block is too large to be held.
    pub(super) fn give_up(&self) {
        self.asked.store(NEVER, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Queue {
    /// Those with content, the one that was looked at longest ago first.
    slots: VecDeque<Arc<Slot>>,
    bytes: usize,
}

/// What all slots of a node hold together, within a bound: when it is full, what nobody has read for longest goes, about.
pub struct RangeCache {
    bytes_max: usize,
    queue: Mutex<Queue>,
}

impl fmt::Debug for RangeCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeCache")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Default for RangeCache {
    fn default() -> Self {
        Self::new(16 << 20)
    }
}

impl RangeCache {
    /// A cache of at most so many bytes; by default 16 MiB.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            queue: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn insert(&self, slot: &Arc<Slot>, content: Content) {
        let mut queue = self.lock();
        let mut held = slot.lock();
        if held.as_ref().is_some_and(|held| held.index > content.index) {
            return;
        }
        queue.bytes += content.bytes;
        slot.used.store(true, Ordering::Relaxed);
        match held.replace(Arc::new(content)) {
            Some(before) => queue.bytes -= before.bytes,
            None => queue.slots.push_back(Arc::clone(slot)),
        }
        drop(held);
        // Whoever was read since the last look gets one more round, so this ends.
        while queue.bytes > self.bytes_max {
            let Some(slot) = queue.slots.pop_front() else {
                return;
            };
            if slot.used.swap(false, Ordering::Relaxed) {
                queue.slots.push_back(slot);
            } else if let Some(content) = slot.lock().take() {
                queue.bytes -= content.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(value: &'static str, index: u64) -> Content {
        let kv = KeyValue {
            key: "k".into(),
            value: value.into(),
            ..KeyValue::default()
        };
        Content::new(vec![kv], Index(index))
    }

    fn value(slot: &Slot, at: u64) -> Option<String> {
        let content = slot.get(Index(at))?;
        Some(String::from_utf8(content.kvs[0].value.to_vec()).unwrap())
    }

    #[test]
    fn block_is_found_at_indexes_without_a_change_between() {
        let (cache, slot) = (RangeCache::default(), Slot::new());
        slot.touch(Index(5));
        cache.insert(&slot, content("five", 7));
        assert_eq!(value(&slot, 5).as_deref(), Some("five"));
        assert_eq!(value(&slot, 9).as_deref(), Some("five"));
        assert_eq!(value(&slot, 4), None, "it may have been another one then");
        slot.touch(Index(8));
        for at in [5, 7, 8, 9] {
            assert_eq!(value(&slot, at), None);
        }
        cache.insert(&slot, content("eight", 8));
        assert_eq!(value(&slot, 8).as_deref(), Some("eight"));
        cache.insert(&slot, content("five", 7));
        assert_eq!(value(&slot, 8).as_deref(), Some("eight"));
        assert_eq!(value(&slot, 7), None);
    }

    #[test]
    fn second_miss_between_two_changes_is_worth_it() {
        let slot = Slot::new();
        assert!(!slot.miss(Index(3)));
        assert!(slot.miss(Index(3)));
        slot.touch(Index(4));
        assert!(!slot.miss(Index(3)), "it would not be good for anybody");
        assert!(!slot.miss(Index(4)));
        assert!(slot.miss(Index(9)));
        slot.give_up();
        slot.touch(Index(10));
        assert!(!slot.miss(Index(10)) && !slot.miss(Index(10)));
    }

    #[test]
    fn what_nobody_read_goes_first_and_the_bound_holds() {
        let one = content("v", 1).bytes;
        let cache = RangeCache::new(3 * one);
        let slots: Vec<_> = (0..5).map(|_| Slot::new()).collect();
        for slot in &slots[..3] {
            cache.insert(slot, content("v", 1));
        }
        assert_eq!(cache.bytes(), 3 * one);
        // Nothing was read since it was inserted, so the oldest goes.
        cache.insert(&slots[3], content("v", 1));
        let held = |cache: &RangeCache| {
            assert_eq!(cache.bytes(), 3 * one);
            let held = slots.iter().map(|slot| slot.lock().is_some());
            held.collect::<Vec<_>>()
        };
        assert_eq!(held(&cache), [false, true, true, true, false]);
        assert_eq!(value(&slots[1], 1).as_deref(), Some("v"));
        cache.insert(&slots[4], content("v", 1));
        assert_eq!(held(&cache), [false, true, false, true, true]);
        // Replacing needs no room.
        cache.insert(&slots[1], content("w", 2));
        assert_eq!(held(&cache), [false, true, false, true, true]);
    }
}
