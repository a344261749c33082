//! Reads by the blocks that are in memory: what a range finds there, and how a block comes to be there.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::Index;

use super::counting::Note;
use super::counts::{Counts, Covering, Inner};
use super::range_cache::{CONTENT_BYTES_MAX, Content, RangeCache};
use super::read::View;
use crate::engine::EngineError;
use crate::pb::mvccpb::KeyValue;

/// A range that wants fewer keys than this, or more, reads no block as a whole: most of it would not be asked for, or all that
/// others read would have to go.
const WANTED_MIN: usize = 16;
const WANTED_MAX: usize = 1_024;
/// Blocks that one range reads as a whole.
const FILLS_MAX: usize = 16;

/// The blocks of the newest state, of the applied index that is read.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) counts: &'a Counts,
    pub(super) index: Index,
    pub(super) cache: &'a RangeCache,
    /// Keys that came or went since, for who reads a batch in progress: what is in memory is not of it.
    pub(super) pending: Option<&'a [Note]>,
}

fn is_behind(key: &[u8], end: Option<&[u8]>) -> bool {
    end.is_some_and(|end| key >= end)
}

impl Blocks<'_> {
    fn content(&self, block: &Covering<'_>) -> Option<Arc<Content>> {
        let is_batch = self.pending.is_some();
        block.slot.get(self.index).filter(|_| !is_batch)
    }

    /// The whole blocks of a range, with how many keys they have.
    fn inner(&self, from: &[u8], end: Option<&[u8]>) -> Option<Inner> {
        let mut inner = self.counts.inner(from, end)?;
        let to = inner.to.as_deref();
        for note in self.pending.unwrap_or_default() {
            if note.key < inner.from || is_behind(&note.key, to) {
                continue;
            }
            match note.lives {
                true => inner.keys += 1,
                false => inner.keys -= 1,
            }
        }
        Some(inner)
    }

    /// Gives the keys from `from` on to `visit`, as long as they are in memory. Returns the first key from which on they are
    /// not; none when there are no others, or `visit` has enough.
    pub(super) fn visit(
        &self,
        mut from: Bytes,
        end: Option<&[u8]>,
        visit: &mut impl FnMut(KeyValue) -> ControlFlow<()>,
    ) -> Option<Bytes> {
        loop {
            let block = self.counts.covering(&from);
            let Some(content) = self.content(&block) else {
                return Some(from);
            };
            for kv in content.from(&from) {
                if is_behind(&kv.key, end) || visit(kv.clone()).is_break() {
                    return None;
                }
            }
            from = block.next.filter(|next| !is_behind(next, end))?.clone();
        }
    }

    /// Counts the keys from `from` on, as long as they are in memory, and says as [`Self::visit`] where they end to be.
    pub(super) fn count(&self, mut from: Bytes, end: Option<&[u8]>) -> (i64, Option<Bytes>) {
        let mut count = 0;
        loop {
            let block = self.counts.covering(&from);
            let Some(content) = self.content(&block) else {
                return (count, Some(from));
            };
            let rest = content.from(&from);
            let found = rest.partition_point(|kv| !is_behind(&kv.key, end));
            count += i64::try_from(found).unwrap_or(i64::MAX);
            match block.next.filter(|next| !is_behind(next, end)) {
                Some(next) => from = next.clone(),
                None => return (count, None),
            }
        }
    }

    /// Counts the keys of a range: those of whole blocks by their numbers, the parts before and behind them by `look`.
    pub(super) fn sum<E>(
        &self,
        from: &Bytes,
        end: Option<&[u8]>,
        mut look: impl FnMut(&Bytes, Option<&[u8]>) -> Result<i64, E>,
    ) -> Result<i64, E> {
        let Some(inner) = self.inner(from, end) else {
            return look(from, end);
        };
        let mut count = i64::try_from(inner.keys).unwrap_or(i64::MAX);
        if *from < inner.from {
            count += look(from, Some(&inner.from))?;
        }
        if let Some(to) = inner.to {
            count += look(&to, end)?;
        }
        Ok(count)
    }

    /// The same if it takes no look at the engine.
    pub(super) fn count_at_once(&self, from: &Bytes, end: Option<&[u8]>) -> Option<i64> {
        let look = |from: &Bytes, to: Option<&[u8]>| match self.count(from.clone(), to) {
            (count, None) => Ok(count),
            (_, Some(rest)) => Err(rest),
        };
        self.sum(from, end, look).ok()
    }

    /// Whether a range that wants so many keys at most is one for whom blocks are read as a whole.
    fn are_for(&self, from: &[u8], end: Option<&[u8]>, wanted: usize) -> bool {
        if self.pending.is_some() || wanted < WANTED_MIN {
            return false;
        }
        if wanted <= WANTED_MAX {
            return true;
        }
        let inner = self.counts.inner(from, end);
        inner.is_none_or(|inner| inner.keys <= WANTED_MAX as u64)
    }
}

impl View<'_> {
    /// The live keys of a range in full, newest state: from memory where they are there, from the engine otherwise.
    pub(super) fn newest(
        &self,
        key: &Bytes,
        end: &[u8],
        wanted: usize,
        mut visit: impl FnMut(KeyValue) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let Some(blocks) = &self.blocks else {
            return self.walk_newest(key, end, visit);
        };
        let bound = (end != [0]).then_some(end);
        let mut fills = match blocks.are_for(key, bound, wanted) {
            true => FILLS_MAX,
            false => 0,
        };
        let mut from = key.clone();
        loop {
            let Some(next) = blocks.visit(from, bound, &mut visit) else {
                return Ok(());
            };
            from = next;
            if fills == 0 || is_behind(&from, bound) || !self.fill(blocks, &from)? {
                return self.walk_newest(&from, end, visit);
            }
            fills -= 1;
        }
    }

    /// Reads the block of a key into memory, if that is worth it.
    fn fill(&self, blocks: &Blocks<'_>, key: &[u8]) -> Result<bool, EngineError> {
        let block = blocks.counts.covering(key);
        if !block.slot.miss(blocks.index) {
            return Ok(false);
        }
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        let end = block.next.map_or(&[0][..], |next| &next[..]);
        self.walk_newest(block.first, end, |kv| {
            bytes += kv.key.len() + kv.value.len();
            if bytes > CONTENT_BYTES_MAX {
                return ControlFlow::Break(());
            }
            kvs.push(kv);
            ControlFlow::Continue(())
        })?;
        if bytes > CONTENT_BYTES_MAX {
            block.slot.give_up();
            return Ok(false);
        }
        let content = Content::new(kvs, blocks.index);
        blocks.cache.insert(block.slot, content);
        Ok(true)
    }
}
