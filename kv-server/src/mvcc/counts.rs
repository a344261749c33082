//! How many live keys a range has, without a look at each of them.
//!
//! The keys are divided into blocks of about a hundred neighbours, of which only the number of keys and the place where
//! each begins are kept: about a byte for each key. A range that is counted is whole blocks, which are
//! summed up by page, and two parts of blocks, whose keys are looked at. It is not durable: it is made by one walk over all
//! keys once a run has counted much, and follows each batch from then on.
//!
//! A version never changes, as an engine's snapshot does not, so a reader that has both of the same applied index counts
//! what it reads. The writer copies the pages that it changes while somebody holds the version before.

use std::sync::Arc;

use bytes::Bytes;
use raft_log::Index;

use super::range_cache::Slot;

/// Keys of a block when it is made.
const BLOCK_KEYS: u64 = 128;
/// Keys that stay in a block that is split.
pub(super) const SPLIT_KEYS: u64 = BLOCK_KEYS;
/// A block with more is split.
const BLOCK_KEYS_MAX: u64 = 2 * BLOCK_KEYS;
/// Two neighbours with no more than this together become one.
const BLOCK_KEYS_MIN: u64 = BLOCK_KEYS / 2;
/// Blocks of a page when it is made.
const PAGE_BLOCKS: usize = 128;
/// A page with more is split.
const PAGE_BLOCKS_MAX: usize = 2 * PAGE_BLOCKS;

/// A stretch of keys, up to where the next one begins.
#[derive(Clone, Debug)]
struct Block {
    first: Bytes,
    keys: u64,
    /// One for each stretch: whoever moves a bound makes a new one.
    slot: Arc<Slot>,
}

impl Block {
    fn new(first: Bytes, keys: u64) -> Self {
        let slot = Slot::new();
        Self { first, keys, slot }
    }
}

/// Neighbouring blocks; never empty.
#[derive(Clone, Debug, Default)]
struct Page {
    blocks: Vec<Block>,
    keys: u64,
}

impl Page {
    fn of(blocks: Vec<Block>) -> Arc<Self> {
        let keys = blocks.iter().map(|block| block.keys).sum();
        Arc::new(Self { blocks, keys })
    }

    fn first(&self) -> &[u8] {
        self.blocks.first().map_or(&[], |block| &block.first[..])
    }
}

/// The blocks of all keys. Invariant: the first one begins with the empty key, and each begins behind the one before.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pages: Vec<Arc<Page>>,
}

/// What is to be looked at of a range, beside whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    /// Keys of whole blocks.
    pub(super) keys: u64,
    /// Where the first whole block begins; what lies before it is to be looked at.
    pub(super) from: Bytes,
    /// Where the last one ends, unless the range has no end; what lies behind it is to be looked at.
    pub(super) to: Option<Bytes>,
}

/// A block, for who reads it as a whole.
pub(super) struct Covering<'a> {
    pub(super) first: &'a Bytes,
    /// Where the next one begins, if there is one.
    pub(super) next: Option<&'a Bytes>,
    pub(super) slot: &'a Arc<Slot>,
}

/// Where a block begins that has too many keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Large {
    pub(super) from: Bytes,
}

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    page: usize,
    block: usize,
}

/// Makes the blocks of keys that come in order.
#[derive(Debug)]
pub(super) struct Builder {
    pages: Vec<Arc<Page>>,
    blocks: Vec<Block>,
    open: Block,
    last: Bytes,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            pages: Vec::new(),
            blocks: Vec::new(),
            open: Block::new(Bytes::new(), 0),
            last: Bytes::new(),
        }
    }

    /// The next key.
    pub(super) fn add(&mut self, key: Bytes) {
        if self.open.keys >= BLOCK_KEYS {
            let next = Block::new(between(&self.last, &key), 0);
            self.blocks.push(std::mem::replace(&mut self.open, next));
            if self.blocks.len() == PAGE_BLOCKS {
                self.pages.push(Page::of(std::mem::take(&mut self.blocks)));
            }
        }
        self.open.keys += 1;
        self.last = key;
    }

    pub(super) fn finish(mut self) -> Counts {
        self.blocks.push(self.open);
        self.pages.push(Page::of(self.blocks));
        Counts { pages: self.pages }
    }
}

/// The shortest key above `before` and not above `key`, which lies above it: short, and with a buffer of its own.
fn between(before: &[u8], key: &[u8]) -> Bytes {
    let same = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    Bytes::copy_from_slice(&key[..key.len().min(same + 1)])
}

impl Counts {
    /// The block that a key is in.
    fn place(&self, key: &[u8]) -> At {
        let page = self.pages.partition_point(|page| page.first() <= key);
        let page = page.saturating_sub(1);
        let blocks = &self.pages[page].blocks;
        let block = blocks.partition_point(|block| *block.first <= *key);
        At {
            page,
            block: block.saturating_sub(1),
        }
    }

    fn next(&self, at: At) -> Option<At> {
        let page = self.pages.get(at.page)?;
        if at.block + 1 < page.blocks.len() {
            return Some(At {
                block: at.block + 1,
                ..at
            });
        }
        (at.page + 1 < self.pages.len()).then_some(At {
            page: at.page + 1,
            block: 0,
        })
    }

    fn block(&self, at: At) -> &Block {
        &self.pages[at.page].blocks[at.block]
    }

    /// The block that a key is in.
    pub(super) fn covering(&self, key: &[u8]) -> Covering<'_> {
        let at = self.place(key);
        let block = self.block(at);
        Covering {
            first: &block.first,
            next: self.next(at).map(|next| &self.block(next).first),
            slot: &block.slot,
        }
    }

    /// A batch changed a key.
    pub(super) fn touch(&self, key: &[u8], index: Index) {
        self.block(self.place(key)).slot.touch(index);
    }

    /// What of the keys from `from` on, and before `to` if there is one, is in whole blocks; none when no block is.
    pub(super) fn inner(&self, from: &[u8], to: Option<&[u8]>) -> Option<Inner> {
        let mut begin = self.place(from);
        if *self.block(begin).first < *from {
            begin = self.next(begin)?;
        }
        // The block that has the bound is not whole, unless it begins there.
        let end = to.map(|to| self.place(to));
        if end.is_some_and(|end| end <= begin) {
            return None;
        }
        let past = end.unwrap_or(At {
            page: self.pages.len(),
            block: 0,
        });
        let mut keys = 0;
        for (number, page) in self.pages.iter().enumerate() {
            if number < begin.page || number > past.page {
                continue;
            }
            if number > begin.page && number < past.page {
                keys += page.keys;
                continue;
            }
            let first = if number == begin.page { begin.block } else { 0 };
            let end = if number == past.page {
                past.block
            } else {
                page.blocks.len()
            };
            keys += page.blocks[first..end]
                .iter()
                .map(|block| block.keys)
                .sum::<u64>();
        }
        Some(Inner {
            keys,
            from: self.block(begin).first.clone(),
            to: end.map(|end| self.block(end).first.clone()),
        })
    }

    /// Where a block begins that has about as many of a range's keys before it as behind it, if whole blocks have at least so
    /// many.
    pub(super) fn middle(&self, from: &[u8], to: Option<&[u8]>, keys_min: u64) -> Option<Bytes> {
        let inner = self.inner(from, to)?;
        if inner.keys < keys_min {
            return None;
        }
        let begin = self.place(&inner.from);
        let mut before = 0;
        for (number, page) in self.pages.iter().enumerate().skip(begin.page) {
            let first = if number == begin.page { begin.block } else { 0 };
            if first == 0 && before + page.keys < inner.keys / 2 {
                before += page.keys;
                continue;
            }
            for block in &page.blocks[first..] {
                if before >= inner.keys / 2 {
                    return Some(block.first.clone());
                }
                before += block.keys;
            }
        }
        None
    }

    /// A key came into being, or went. Names its block when that has become too large.
    pub(super) fn change(&mut self, key: &[u8], lives: bool) -> Option<Large> {
        let at = self.place(key);
        let page = Arc::make_mut(&mut self.pages[at.page]);
        let block = &mut page.blocks[at.block];
        if lives {
            (block.keys, page.keys) = (block.keys + 1, page.keys + 1);
            if block.keys <= BLOCK_KEYS_MAX {
                return None;
            }
            let from = block.first.clone();
            return Some(Large { from });
        }
        assert!(block.keys > 0, "a key that went was counted");
        (block.keys, page.keys) = (block.keys - 1, page.keys - 1);
        self.merge(at);
        None
    }

    /// Where the block ends that begins with `from`, if it has too many keys; nowhere, if it is the last one.
    pub(super) fn large(&self, from: &[u8]) -> Option<Option<Bytes>> {
        let at = self.place(from);
        let block = self.block(at);
        let is_large = *block.first == *from && block.keys > BLOCK_KEYS_MAX;
        is_large.then(|| self.next(at).map(|next| self.block(next).first.clone()))
    }

    /// Joins a block with the one before it in its page where both have few keys. The first one of a page stays, unless it
    /// has no keys at all.
    fn merge(&mut self, at: At) {
        let page = Arc::make_mut(&mut self.pages[at.page]);
        let keys = page.blocks[at.block].keys;
        if at.block > 0 {
            let before = &mut page.blocks[at.block - 1];
            if before.keys + keys <= BLOCK_KEYS_MIN {
                before.keys += keys;
                before.slot = Slot::new();
                page.blocks.remove(at.block);
            }
        } else if keys == 0 && at.page > 0 {
            // What it covers is the last block's of the page before.
            page.blocks.remove(0);
            if page.blocks.is_empty() {
                self.pages.remove(at.page);
            }
            let before = Arc::make_mut(&mut self.pages[at.page - 1]);
            before
                .blocks
                .iter_mut()
                .next_back()
                .expect("a page has a block")
                .slot = Slot::new();
        }
    }

    /// Splits the block that begins with `from`, whose keys up to `last_below` number `keys_below`; `next` follows.
    pub(super) fn split(&mut self, from: &[u8], keys_below: u64, last_below: &[u8], next: &[u8]) {
        let at = self.place(from);
        let page = Arc::make_mut(&mut self.pages[at.page]);
        let block = &mut page.blocks[at.block];
        assert!(
            *block.first == *from && keys_below <= block.keys,
            "a block is split that there is"
        );
        let above = Block::new(between(last_below, next), block.keys - keys_below);
        *block = Block::new(block.first.clone(), keys_below);
        page.blocks.insert(at.block + 1, above);
        if page.blocks.len() > PAGE_BLOCKS_MAX {
            let blocks = page.blocks.split_off(PAGE_BLOCKS);
            let above = Page::of(blocks);
            page.keys -= above.keys;
            self.pages.insert(at.page + 1, above);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn built(keys: &BTreeSet<Bytes>) -> Counts {
        let mut builder = Builder::new();
        for key in keys {
            builder.add(key.clone());
        }
        builder.finish()
    }

    fn between_bounds<'a>(
        keys: &'a BTreeSet<Bytes>,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = &'a Bytes> {
        let from = Bytes::copy_from_slice(from);
        let to = to.map(Bytes::copy_from_slice);
        let is_none = to.as_ref().is_some_and(|to| *to <= from);
        let range = keys.range((Bound::Included(from), Bound::Unbounded));
        range.take_while(move |key| !is_none && to.as_ref().is_none_or(|to| *key < to))
    }

    /// Counts as a reader does; and says how many keys it looked at.
    fn count(
        counts: &Counts,
        keys: &BTreeSet<Bytes>,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> (u64, u64) {
        let look = |from: &[u8], to: Option<&[u8]>| between_bounds(keys, from, to).count() as u64;
        let Some(inner) = counts.inner(from, to) else {
            let looked = look(from, to);
            return (looked, looked);
        };
        let mut looked = look(from, Some(&inner.from));
        if let Some(rest) = &inner.to {
            looked += look(rest, to);
        }
        (inner.keys + looked, looked)
    }

    /// As the writer does after a batch.
    fn change(counts: &mut Counts, keys: &BTreeSet<Bytes>, key: &[u8], lives: bool) {
        let Some(Large { from }) = counts.change(key, lives) else {
            return;
        };
        let to = counts.large(&from).unwrap();
        let mut rest = between_bounds(keys, &from, to.as_deref()).skip(SPLIT_KEYS as usize - 1);
        let (last, next) = (rest.next().unwrap(), rest.next().unwrap());
        counts.split(&from, SPLIT_KEYS, last, next);
        assert_eq!(counts.large(&from), None);
    }

    fn check(counts: &Counts, keys: &BTreeSet<Bytes>) {
        let blocks: Vec<_> = counts.pages.iter().flat_map(|page| &page.blocks).collect();
        assert!(blocks[0].first.is_empty());
        assert!(blocks.is_sorted_by(|a, b| a.first < b.first));
        for page in &counts.pages {
            assert!(!page.blocks.is_empty() && page.blocks.len() <= PAGE_BLOCKS_MAX);
            assert_eq!(
                page.keys,
                page.blocks.iter().map(|block| block.keys).sum::<u64>()
            );
        }
        for (number, block) in blocks.iter().enumerate() {
            let to = blocks.get(number + 1).map(|next| &next.first[..]);
            let here = between_bounds(keys, &block.first, to).count();
            assert_eq!(block.keys, here as u64);
            assert!(block.keys <= BLOCK_KEYS_MAX);
        }
    }

    fn key(number: u32) -> Bytes {
        format!("/registry/{:02}/{number:08}", number % 17).into()
    }

    #[test]
    fn every_range_has_as_many_keys_as_are_there_and_few_are_looked_at() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut keys: BTreeSet<_> = (0..400_000).map(key).collect();
        let mut counts = built(&keys);
        check(&counts, &keys);
        for round in 0..6 {
            // Grows in one place, shrinks to nearly nothing in another.
            for _ in 0..30_000 {
                let number = rng.random_range(0..600_000);
                let key = match round % 3 {
                    0 => Bytes::from(format!("/registry/05/x{number:09}")),
                    _ => key(number),
                };
                if round % 3 == 0 {
                    if keys.insert(key.clone()) {
                        change(&mut counts, &keys, &key, true);
                    }
                } else if keys.remove(&key) {
                    change(&mut counts, &keys, &key, false);
                }
            }
            check(&counts, &keys);
            assert_eq!(count(&counts, &keys, b"", None).0, keys.len() as u64);
            for _ in 0..60 {
                let mut bound = || key(rng.random_range(0..600_000));
                let (from, to) = (bound(), bound());
                let wanted = between_bounds(&keys, &from, Some(&to)).count() as u64;
                if let Some(middle) = counts.middle(&from, Some(&to), 4 * BLOCK_KEYS_MAX) {
                    let before = between_bounds(&keys, &from, Some(&middle)).count() as u64;
                    assert!(before.abs_diff(wanted / 2) <= 2 * BLOCK_KEYS_MAX);
                } else {
                    assert!(wanted < 6 * BLOCK_KEYS_MAX, "{wanted} keys have no middle");
                }
                let (found, looked) = count(&counts, &keys, &from, Some(&to));
                assert_eq!(found, wanted, "{from:?} {to:?}");
                assert!(looked <= 2 * BLOCK_KEYS_MAX, "{looked} keys were looked at");
            }
        }
        // Down to nothing, and up again.
        for key in std::mem::take(&mut keys) {
            change(&mut counts, &BTreeSet::new(), &key, false);
        }
        check(&counts, &keys);
        assert_eq!(counts.pages.len(), 1);
        assert!(counts.pages[0].blocks.len() <= PAGE_BLOCKS);
        for number in 0..10_000 {
            let key = key(number);
            keys.insert(key.clone());
            change(&mut counts, &keys, &key, true);
        }
        check(&counts, &keys);
    }

    #[test]
    fn version_that_somebody_holds_does_not_change() {
        let mut keys: BTreeSet<_> = (0..10_000).map(key).collect();
        let held = built(&keys);
        let mut counts = held.clone();
        let before = keys.clone();
        for number in 10_000..20_000 {
            keys.insert(key(number));
            change(&mut counts, &keys, &key(number), true);
        }
        check(&held, &before);
        check(&counts, &keys);
    }

    #[test]
    fn place_where_a_block_begins_is_short() {
        assert_eq!(between(b"", b"abc"), &b"a"[..]);
        assert_eq!(between(b"/pods/a", b"/pods/bcdef"), &b"/pods/b"[..]);
        assert_eq!(between(b"ab", b"abc"), &b"abc"[..]);
    }
}
