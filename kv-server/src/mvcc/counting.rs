//! Keeps [`Counts`] of the newest state, once somebody has counted enough for that: a walk over all keys by a task makes
//! them, and the writer brings them on with each batch.
//!
//! The walk reads an engine's snapshot while the writer goes on; what it changes meanwhile is noted, and made up for at the
//! end. Where too much is noted, or the engine fails, there are none, and ranges are counted key by key as before.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use multiraft::Tasks;
use raft_log::Index;

use super::codec::{Keys, LATEST, PREFIX};
use super::counts::{Builder, Counts, Large, SPLIT_KEYS};
use super::read::Read;
use super::store::{Opened, Store};
use super::types::RevisionEvents;
use crate::engine::{EngineError, Snapshot};
use crate::testing::{Bug, bug};

/// How often what makes a walk worth it is doubled, once for each walk of the same state before.
const DOUBLINGS_MAX: u64 = 10;
/// Bytes of keys that came or went during a walk, with what a note costs; past them the walk is given up.
const NOTED_BYTES_MAX: usize = 32 << 20;
const NOTE_OVERHEAD_BYTES: usize = 64;
/// Notes that are made up for while the writer waits.
const NOTES_AT_ONCE: usize = 1_024;
/// Keys between two looks at whether the walk is still wanted.
const LOOK_EVERY: usize = 4_096;

/// A key that came into being or went.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) key: Bytes,
    pub(super) lives: bool,
}

enum State {
    Off,
    /// The walk of this number is under way. Each note with the applied index of its batch.
    Walking {
        number: u64,
        newest: Index,
        notes: Vec<(Index, Note)>,
        bytes: usize,
    },
    /// As of this applied index.
    On {
        index: Index,
        counts: Arc<Counts>,
    },
    /// Nobody walks any more.
    Closed,
}

/// What there is for a reader.
pub(super) enum Found {
    Nothing,
    /// Of another index than the reader's snapshot: in a moment there will be those of a newer one.
    Other,
    These(Arc<Counts>),
}

/// The counts of one keyspace.
pub(super) struct Counting {
    state: Mutex<State>,
    /// Keys that were counted one by one until a walk would have been worth it.
    worth_keys: u64,
    /// The number of the last walk.
    walks: AtomicU64,
    /// Walks over this state.
    tries: AtomicU64,
    /// Keys that were counted one by one since the last of them.
    one_by_one: AtomicU64,
    tasks: OnceLock<(Arc<dyn Tasks>, Weak<Store>)>,
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").finish_non_exhaustive()
    }
}

impl Counting {
    pub(super) fn new(worth_keys: u64) -> Self {
        Self {
            state: Mutex::new(State::Off),
            worth_keys,
            walks: AtomicU64::new(0),
            tries: AtomicU64::new(0),
            one_by_one: AtomicU64::new(0),
            tasks: OnceLock::new(),
        }
    }

    /// No call leaves it half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names who walks; nobody does unless this is called. Only the first call counts.
    pub(super) fn walk_by(&self, tasks: Arc<dyn Tasks>, store: Weak<Store>) {
        drop(self.tasks.set((tasks, store)));
    }

    pub(super) fn is_on(&self) -> bool {
        matches!(&*self.lock(), State::On { .. })
    }

    pub(super) fn at(&self, index: Index) -> Found {
        match &*self.lock() {
            State::On { index: at, counts } if *at == index => Found::These(Arc::clone(counts)),
            State::On { .. } => Found::Other,
            _ => Found::Nothing,
        }
    }

    /// So many keys were counted one by one, for one answer.
    pub(super) fn counted(&self, keys: i64) {
        let Some((tasks, store)) = self.tasks.get() else {
            return;
        };
        let keys = u64::try_from(keys).unwrap_or(0);
        let counted = self.one_by_one.fetch_add(keys, Ordering::Relaxed) + keys;
        let doublings = self.tries.load(Ordering::Relaxed).min(DOUBLINGS_MAX);
        if counted < self.worth_keys << doublings {
            return;
        }
        self.one_by_one.store(0, Ordering::Relaxed);
        self.tries.fetch_add(1, Ordering::Relaxed);
        let number = self.walks.fetch_add(1, Ordering::Relaxed) + 1;
        {
            let mut state = self.lock();
            if !matches!(&*state, State::Off) {
                return;
            }
            *state = State::Walking {
                number,
                newest: Index::ZERO,
                notes: Vec::new(),
                bytes: 0,
            };
        }
        let store = Weak::clone(store);
        let task = Box::new(move || {
            if let Some(store) = store.upgrade() {
                store.walk(number);
            }
        });
        if tasks.run(task).is_err() {
            self.end(number);
        }
    }

    /// The state is another one, so that what was counted is not of it.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        if !matches!(&*state, State::Closed) {
            *state = State::Off;
            self.tries.store(0, Ordering::Relaxed);
        }
    }

    /// Ends a walk that is under way, for a stop.
    pub(super) fn close(&self) {
        *self.lock() = State::Closed;
    }

    fn is_walking(&self, wanted: u64) -> bool {
        matches!(&*self.lock(), State::Walking { number, .. } if *number == wanted)
    }

    fn end(&self, wanted: u64) {
        let mut state = self.lock();
        if matches!(&*state, State::Walking { number, .. } if *number == wanted) {
            *state = State::Off;
        }
    }

    /// Called by the writer, once a batch that brought the state to `index` is visible, with its revisions, and all keys
    /// that came or went in it; `snapshot` is of that batch.
    pub(super) fn applied(
        &self,
        index: Index,
        revisions: &[Arc<RevisionEvents>],
        batch: Vec<Note>,
        keys: Keys,
        snapshot: impl FnOnce() -> Arc<dyn Snapshot>,
    ) {
        let mut state = self.lock();
        match &mut *state {
            State::Off | State::Closed => {}
            State::Walking {
                newest,
                notes,
                bytes,
                ..
            } => {
                *newest = index;
                for Note { key, lives } in batch {
                    // Not the buffer that the key arrived in.
                    let key = Bytes::copy_from_slice(&key);
                    *bytes += key.len() + NOTE_OVERHEAD_BYTES;
                    notes.push((index, Note { key, lives }));
                }
                if *bytes > NOTED_BYTES_MAX {
                    *state = State::Off;
                }
            }
            State::On { index: at, counts } => {
                // The walk may have seen a batch that is told only now.
                if index <= *at {
                    return;
                }
                *at = index;
                let events = revisions.iter().flat_map(|revision| &revision.events);
                for event in events.filter(|_| !bug(Bug::RangesKeepStale)) {
                    counts.touch(&event.kv.key, index);
                }
                if batch.is_empty() {
                    return;
                }
                let counts = Arc::make_mut(counts);
                let large: Vec<_> = (batch.iter())
                    .filter_map(|note| counts.change(&note.key, note.lives))
                    .collect();
                if large.is_empty() {
                    return;
                }
                if let Err(error) = split(counts, large, keys, &snapshot()) {
                    // The next read of the same place meets the same error, and says so.
                    tracing::warn!(%error, "keys are counted one by one");
                    *state = State::Off;
                }
            }
        }
    }

    /// Makes the counts of what `opened` reads, and of what came since.
    pub(super) fn walk(&self, number: u64, opened: &Opened) {
        match self.build(number, opened) {
            Ok(Some(counts)) => self.catch_up(number, opened.meta.index, counts),
            Ok(None) => {}
            Err(error) => self.give_up(number, &error),
        }
    }

    /// The engine failed: what is next to read it says so too.
    pub(super) fn give_up(&self, number: u64, error: &EngineError) {
        tracing::warn!(%error, "keys are counted one by one");
        self.end(number);
    }

    fn build(&self, number: u64, opened: &Opened) -> Result<Option<Counts>, EngineError> {
        let keys = opened.keys;
        let mut builder = Builder::new();
        let pairs = opened.snapshot.scan(&keys.first(LATEST), &keys.end(LATEST));
        for (at, pair) in pairs.enumerate() {
            if at % LOOK_EVERY == 0 && !self.is_walking(number) {
                return Ok(None);
            }
            builder.add(pair?.0.slice(PREFIX..));
        }
        Ok(Some(builder.finish()))
    }

    fn catch_up(&self, wanted: u64, from: Index, mut counts: Counts) {
        loop {
            let mut state = self.lock();
            let State::Walking {
                number,
                newest,
                notes,
                bytes,
            } = &mut *state
            else {
                return;
            };
            if *number != wanted {
                return;
            }
            let (few, newest) = (notes.len() <= NOTES_AT_ONCE, *newest);
            let taken = std::mem::take(notes);
            *bytes = 0;
            if !few {
                drop(state);
                make_up(&mut counts, taken, from);
                continue;
            }
            make_up(&mut counts, taken, from);
            *state = State::On {
                index: newest.max(from),
                counts: Arc::new(counts),
            };
            return;
        }
    }
}

/// What was noted of batches that the walk has not seen. A block that becomes too large is split when it next changes.
fn make_up(counts: &mut Counts, notes: Vec<(Index, Note)>, from: Index) {
    for (index, Note { key, lives }) in notes {
        if index > from {
            let _ = counts.change(&key, lives);
        }
    }
}

/// Splits blocks until none of them is too large.
fn split(
    counts: &mut Counts,
    large: Vec<Large>,
    keys: Keys,
    snapshot: &Arc<dyn Snapshot>,
) -> Result<(), EngineError> {
    for Large { from } in large {
        while let Some(to) = counts.large(&from) {
            let bound = to.map_or_else(|| keys.end(LATEST), |to| keys.latest(&to));
            let mut pairs = snapshot.scan(&keys.latest(&from), &bound);
            let mut key = |nth| -> Result<Option<Bytes>, EngineError> {
                let pair = pairs.nth(nth).transpose()?;
                Ok(pair.map(|(at, _)| at.slice(PREFIX..)))
            };
            let skipped = usize::try_from(SPLIT_KEYS - 1).expect("a block is short");
            let (Some(last), Some(next)) = (key(skipped)?, key(0)?) else {
                return Err(super::codec::damaged(
                    "a block has fewer keys than were counted",
                ));
            };
            counts.split(&from, SPLIT_KEYS, &last, &next);
        }
    }
    Ok(())
}
