//! An engine in memory, with a modelled crash, for tests, the simulator and servers that keep nothing.
//!
//! Every key has its versions, newest last; a snapshot is the number of a batch. What a crash would leave is kept
//! apart: the state at the last persist and the batches since. [`MemoryEngine::crash`] rebuilds an engine from the
//! former and some of the latter, always at the boundary of a batch, as the engine on disk does.
//!
//! No threads and no clock. What [`Engine::request_persist`] asks for is done by the next call of it or of
//! [`Engine::write`], so that there is a time in which a persist was asked for and a crash still loses the batches.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_log::{GroupId, Index};

use super::{Change, Engine, EngineBatch, EngineError, Pair, PairIter, Snapshot, is_empty_range};

/// Pairs that an iterator fetches at first; each time it fetches twice as many, so that a scan with a small limit copies
/// little.
const FETCH_FIRST: usize = 4;
/// Pairs that an iterator fetches at a time, at most.
const FETCH_MAX: usize = 64;

/// The engine; a clone is another handle on the same state.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The versions of each key, with the batch that wrote them, oldest first.
    keys: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    /// The number of the newest batch.
    newest: u64,
    /// How many snapshots are open at a batch.
    open: BTreeMap<u64, usize>,
    durable: Durable,
    /// The batches since, oldest first.
    pending: VecDeque<EngineBatch>,
    /// How many of them somebody asked to persist.
    requested: usize,
    /// The process that this handle belongs to is gone.
    crashed: bool,
}

/// What a crash cannot take away.
#[derive(Clone, Default)]
struct Durable {
    pairs: BTreeMap<Bytes, Bytes>,
    applied: BTreeMap<GroupId, Index>,
}

impl Durable {
    fn apply(&mut self, batch: EngineBatch) {
        for (key, change) in batch.changes {
            match change {
                Change::Put(value) => self.pairs.insert(key, value),
                Change::Delete => self.pairs.remove(&key),
            };
        }
        self.applied.extend(batch.applied);
    }
}

impl State {
    /// Makes the oldest batches durable.
    fn settle(&mut self, batches: usize) {
        for batch in self.pending.drain(..batches) {
            self.durable.apply(batch);
        }
        self.requested = self.requested.saturating_sub(batches);
    }

    fn check(&self) -> Result<(), EngineError> {
        if self.crashed {
            let context = "use an engine in memory after its crash";
            return Err(EngineError::new(
                context,
                "open the handle that the crash returned",
            ));
        }
        Ok(())
    }

    fn get(&self, key: &[u8], at: u64) -> Option<Bytes> {
        let versions = self.keys.get(key)?;
        let (_, value) = versions.iter().rev().find(|(batch, _)| *batch <= at)?;
        value.clone()
    }

    /// Drops what no snapshot, open or to come, can read.
    fn prune(&mut self, key: &Bytes) {
        let oldest = self
            .open
            .keys()
            .next()
            .map_or(self.newest, |at| (*at).min(self.newest));
        let Some(versions) = self.keys.get_mut(key) else {
            return;
        };
        let keep = versions
            .iter()
            .rposition(|(batch, _)| *batch <= oldest)
            .unwrap_or(0);
        versions.drain(..keep);
        if let [(batch, None)] = versions.as_slice()
            && *batch <= oldest
        {
            self.keys.remove(key);
        }
    }
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many batches a crash now may lose.
    #[must_use]
    pub fn unpersisted(&self) -> usize {
        self.lock().pending.len()
    }

    /// Crashes: of the batches that are not durable, the oldest `keep_batches` survive. This handle and its clones are
    /// dead; the returned one is what the next process opens.
    #[must_use]
    pub fn crash(&self, keep_batches: usize) -> Self {
        let mut state = self.lock();
        let keep = keep_batches.min(state.pending.len());
        state.settle(keep);
        state.crashed = true;
        Self::from_durable(state.durable.clone())
    }

    /// What the next process opens after this one was closed; nothing is lost.
    #[must_use]
    pub fn reopen(&self) -> Self {
        self.crash(usize::MAX)
    }

    fn from_durable(durable: Durable) -> Self {
        let versions =
            |(key, value): (&Bytes, &Bytes)| (key.clone(), vec![(0, Some(value.clone()))]);
        let keys = durable.pairs.iter().map(versions).collect();
        let state = State {
            keys,
            durable,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: EngineBatch) -> Result<(), EngineError> {
        let mut state = self.lock();
        state.check()?;
        let requested = state.requested;
        state.settle(requested);
        state.newest += 1;
        let newest = state.newest;
        for (key, change) in &batch.changes {
            let value = match change {
                Change::Put(value) => Some(value.clone()),
                Change::Delete => None,
            };
            state
                .keys
                .entry(key.clone())
                .or_default()
                .push((newest, value));
            state.prune(key);
        }
        state.pending.push_back(batch);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let state = self.lock();
        state.check()?;
        Ok(state.get(key, state.newest))
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        let mut state = self.lock();
        let at = state.newest;
        *state.open.entry(at).or_default() += 1;
        Arc::new(MemorySnapshot {
            engine: self.clone(),
            at,
        })
    }

    fn request_persist(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        state.check()?;
        let requested = state.requested;
        state.settle(requested);
        state.requested = state.pending.len();
        Ok(())
    }

    fn persist(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        state.check()?;
        let all = state.pending.len();
        state.settle(all);
        Ok(())
    }

    fn durable_index(&self, group: GroupId) -> Index {
        self.lock()
            .durable
            .applied
            .get(&group)
            .copied()
            .unwrap_or(Index::ZERO)
    }

    fn drop_range(&self, _from: &[u8], _to: &[u8]) -> Result<(), EngineError> {
        // There are no tables that could go as a whole, so all of the range is the caller's to delete.
        self.lock().check()
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn out_of_space(&self) -> bool {
        false
    }

    fn close(&self) -> Result<(), EngineError> {
        self.persist()
    }
}

struct MemorySnapshot {
    engine: MemoryEngine,
    at: u64,
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        let open = state
            .open
            .get_mut(&self.at)
            .expect("an open snapshot is counted");
        *open -= 1;
        if *open == 0 {
            state.open.remove(&self.at);
        }
    }
}

impl Snapshot for MemorySnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.engine.lock().get(key, self.at))
    }

    fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> PairIter<'_> {
        let owned = |bound: Bound<&[u8]>| bound.map(Bytes::copy_from_slice);
        Box::new(Walk {
            snapshot: self,
            from: owned(from),
            to: owned(to),
            fetched: VecDeque::new(),
            fetches: FETCH_FIRST,
            done: is_empty_range(from, to),
        })
    }
}

/// Walks a range, a few pairs at a time.
struct Walk<'a> {
    snapshot: &'a MemorySnapshot,
    /// What has not been fetched lies between these.
    from: Bound<Bytes>,
    to: Bound<Bytes>,
    fetched: VecDeque<Pair>,
    /// Pairs that are fetched next.
    fetches: usize,
    /// Nothing is left to fetch.
    done: bool,
}

impl Walk<'_> {
    fn visible(&self, entry: (&Bytes, &Vec<(u64, Option<Bytes>)>)) -> Option<Pair> {
        let (key, versions) = entry;
        let (_, value) = versions
            .iter()
            .rev()
            .find(|(batch, _)| *batch <= self.snapshot.at)?;
        let value = value.clone()?;
        Some((key.clone(), value))
    }

    fn fetch(&mut self) {
        let state = self.snapshot.engine.lock();
        let rest = state.keys.range((self.from.clone(), self.to.clone()));
        let visible = rest.filter_map(|entry| self.visible(entry));
        let fetched: VecDeque<Pair> = visible.take(self.fetches).collect();
        drop(state);
        self.done = fetched.len() < self.fetches;
        self.fetches = (2 * self.fetches).min(FETCH_MAX);
        let Some((last, _)) = fetched.back() else {
            return;
        };
        self.from = Bound::Excluded(last.clone());
        self.fetched = fetched;
        // A range that excludes the same key at both ends is empty, and `BTreeMap::range` does not accept it.
        self.done |= is_empty_range(
            self.from.as_ref().map(|key| &key[..]),
            self.to.as_ref().map(|key| &key[..]),
        );
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Pair, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fetched.is_empty() && !self.done {
            self.fetch();
        }
        self.fetched.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Setup, batch, put};
    use super::*;

    struct Memory;

    impl Setup for Memory {
        type Engine = MemoryEngine;

        fn open(&self) -> MemoryEngine {
            MemoryEngine::new()
        }

        fn reopen(&self, engine: MemoryEngine) -> MemoryEngine {
            engine.crash(engine.unpersisted() / 2)
        }
    }

    conformance::suite!(Memory);

    #[test]
    fn crash_keeps_the_oldest_of_the_unpersisted_batches() {
        let engine = MemoryEngine::new();
        engine.write(batch(1, [put("a", "1")])).unwrap();
        engine.persist().unwrap();
        for index in 2..=5 {
            engine
                .write(batch(index, [put("a", &index.to_string())]))
                .unwrap();
        }
        assert_eq!(engine.unpersisted(), 4);
        let after = engine.crash(2);
        assert_eq!(after.get(b"a").unwrap().as_deref(), Some(&b"3"[..]));
        assert_eq!(after.durable_index(GroupId(1)), Index(3));
        assert!(engine.get(b"a").is_err(), "the old handle is dead");
    }

    #[test]
    fn request_persist_counts_only_after_the_next_write() {
        let engine = MemoryEngine::new();
        engine.write(batch(1, [put("a", "1")])).unwrap();
        engine.request_persist().unwrap();
        assert_eq!(engine.durable_index(GroupId(1)), Index(0));
        engine.write(batch(2, [put("a", "2")])).unwrap();
        assert_eq!(engine.durable_index(GroupId(1)), Index(1));
        assert_eq!(
            engine.crash(0).get(b"a").unwrap().as_deref(),
            Some(&b"1"[..])
        );
    }

    #[test]
    fn versions_that_no_snapshot_reads_are_dropped() {
        let engine = MemoryEngine::new();
        for index in 1..=100 {
            engine.write(batch(index, [put("a", "x")])).unwrap();
        }
        assert_eq!(engine.lock().keys[&b"a"[..]].len(), 1);
        let held = engine.snapshot();
        for index in 101..=200 {
            engine.write(batch(index, [put("a", "y")])).unwrap();
        }
        assert_eq!(held.get(b"a").unwrap().as_deref(), Some(&b"x"[..]));
        drop(held);
        engine
            .write(EngineBatch {
                changes: [(Bytes::from("a"), Change::Delete)].into(),
                applied: None,
            })
            .unwrap();
        assert!(!engine.lock().keys.contains_key(&b"a"[..]));
    }
}
