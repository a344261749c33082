//! What the writer, the readers and the background thread share.
//!
//! The lock on [`State`] is never held over IO, and never while something large is dropped.
//!
//! A reader takes its view first and the published sequence number second. A batch is published after its last entry
//! is in the memtable, and a memtable is sealed between batches; so all that a view's tables and sealed memtables hold
//! was published before the view existed, and a reader of that view sees all of it. That is why a flush or compaction
//! may drop every superseded version: whoever needs an older one holds an older view. Had the reader taken the number
//! first, a compaction in between could drop the version that the number stands for. If batches are published
//! between the two, into a memtable that the view lacks, then the reader sees none of them: it reads at the boundary
//! at which the view's newest memtable was sealed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use lsm_tree::{SequenceNumberCounter, Tree};
use raft_log::{GroupId, Index};

use super::memtable::Memtable;
use super::options::LsmOptions;
use super::view::{Tables, View};
use crate::engine::{Change, EngineBatch, EngineError};

/// Sealed memtables that may wait for their flush; while there are so many, the active one grows beyond its size.
const SEALED_MAX: usize = 2;
/// How long a write is held back at most while the active memtable grows beyond its size.
const SLOW_WRITE: Duration = Duration::from_millis(5);
/// The longest key that the tree can hold.
const KEY_BYTES_MAX: usize = 65_535;

/// A memtable that is complete.
pub(super) struct Sealed {
    pub(super) memtable: Arc<Memtable>,
    /// The newest index of each group that its batches applied.
    pub(super) applied: BTreeMap<GroupId, Index>,
    /// The sequence number of its last batch.
    pub(super) sequence: u64,
}

/// Where the engine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    /// A close waits for what is in memory, but not for a full disk.
    Closing,
    Stopped,
}

/// What a test lets happen in the middle of a flush.
#[cfg(test)]
pub(super) enum Fault {
    Error(std::io::ErrorKind),
    Panic,
}

#[cfg(test)]
impl Fault {
    pub(super) fn strike(self) -> lsm_tree::Error {
        match self {
            Self::Error(kind) => lsm_tree::Error::Io(kind.into()),
            Self::Panic => panic!("a test's panic in a flush"),
        }
    }
}

/// A range whose tables are to be dropped.
pub(super) type DropRange = (Bytes, Bytes);

pub(super) struct State {
    pub(super) active: Arc<Memtable>,
    /// As [`Sealed::applied`], of the active memtable.
    applied: BTreeMap<GroupId, Index>,
    /// The oldest first.
    pub(super) sealed: VecDeque<Arc<Sealed>>,
    pub(super) tables: Arc<Tables>,
    /// Memtables sealed, and flushed, since the engine was opened.
    sealed_count: u64,
    pub(super) flushed_count: u64,
    pub(super) durable: BTreeMap<GroupId, Index>,
    /// Ranges to drop, and how many were dropped since the engine was opened.
    pub(super) drops: VecDeque<DropRange>,
    pub(super) dropped_count: u64,
    drop_requests: u64,
    /// All tables are to be merged into one level.
    pub(super) reclaim: bool,
    /// A request to persist found no room for one more sealed memtable.
    persist_wanted: bool,
    /// Why nothing works any more.
    failure: Option<Arc<str>>,
    pub(super) phase: Phase,
    /// The background thread found nothing to do since the last memtable was sealed.
    #[cfg(test)]
    pub(super) idle: bool,
}

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) options: LsmOptions,
    pub(super) tree: Tree,
    /// Batches, flushes and compactions draw from it.
    sequence: SequenceNumberCounter,
    /// Readers see what is below.
    published: AtomicU64,
    view: RwLock<Arc<View>>,
    state: Mutex<State>,
    /// There is something to do in the background.
    pub(super) work: Condvar,
    /// Something was flushed or dropped, or the engine failed.
    pub(super) progress: Condvar,
    pub(super) out_of_space: AtomicBool,
    /// Asks a running compaction to look at the state.
    pub(super) interrupt: AtomicBool,
    /// Takes the views that were replaced, so that no reader or writer pays for dropping one.
    retired: Sender<Option<Arc<View>>>,
    #[cfg(test)]
    pub(super) faults: Mutex<VecDeque<Fault>>,
}

impl State {
    fn check(&self) -> Result<(), EngineError> {
        if let Some(failure) = &self.failure {
            return Err(EngineError::new(
                "the engine stopped after a failure",
                failure.to_string(),
            ));
        }
        match self.phase {
            Phase::Stopped => Err(EngineError::new("use the engine", "it was closed")),
            Phase::Open | Phase::Closing => Ok(()),
        }
    }

    /// Whether the background work ends.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || self.phase == Phase::Stopped
    }

    fn is_dirty(&self) -> bool {
        self.active.bytes() > 0 || !self.applied.is_empty()
    }

    pub(super) fn unpersisted_bytes(&self) -> u64 {
        let sealed = self.sealed.iter().map(|sealed| sealed.memtable.bytes());
        self.active.bytes() + sealed.sum::<u64>()
    }
}

impl Shared {
    pub(super) fn new(
        dir: PathBuf,
        options: LsmOptions,
        tree: Tree,
        sequence: SequenceNumberCounter,
        retired: Sender<Option<Arc<View>>>,
    ) -> Self {
        let active = Arc::new(Memtable::new());
        let tables = Arc::new(Tables::newest(&tree));
        let view = View {
            memtables: vec![Arc::clone(&active)],
            tables: Arc::clone(&tables),
        };
        let state = State {
            active,
            applied: BTreeMap::new(),
            sealed: VecDeque::new(),
            tables,
            sealed_count: 0,
            flushed_count: 0,
            durable: BTreeMap::new(),
            drops: VecDeque::new(),
            dropped_count: 0,
            drop_requests: 0,
            reclaim: false,
            persist_wanted: false,
            failure: None,
            phase: Phase::Open,
            #[cfg(test)]
            idle: false,
        };
        Self {
            dir,
            options,
            tree,
            published: AtomicU64::new(sequence.get()),
            sequence,
            view: RwLock::new(Arc::new(view)),
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            out_of_space: AtomicBool::new(false),
            interrupt: AtomicBool::new(false),
            retired,
            #[cfg(test)]
            faults: Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.progress
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest view, and below which sequence number to read it.
    pub(super) fn read(&self) -> (Arc<View>, u64) {
        let view = Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner));
        (view, self.published.load(Ordering::Acquire))
    }

    /// Shows readers what the state holds now.
    pub(super) fn install(&self, state: &State) {
        let sealed = state.sealed.iter().rev().map(|sealed| &sealed.memtable);
        let memtables = std::iter::once(&state.active).chain(sealed);
        let view = Arc::new(View {
            memtables: memtables.cloned().collect(),
            tables: Arc::clone(&state.tables),
        });
        let old = std::mem::replace(
            &mut *self.view.write().unwrap_or_else(PoisonError::into_inner),
            view,
        );
        // Without the thread that takes it, the engine is being dropped, and the view goes with it.
        let _ = self.retired.send(Some(old));
    }

    /// Stops everything: each later call returns this error.
    pub(super) fn fail(&self, error: &EngineError) {
        let mut state = self.lock();
        if state.failure.is_none() {
            tracing::error!(%error, "the storage engine stops");
            state.failure = Some(error.to_string().into());
        }
        self.interrupt.store(true, Ordering::Release);
        self.work.notify_all();
        self.progress.notify_all();
    }

    #[cfg(test)]
    pub(super) fn next_fault(&self) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.pop_front()
    }

    /// Hands the active memtable over to be flushed. Called between batches only, as it holds the lock.
    fn seal(&self, state: &mut State) {
        let next = Arc::new(state.active.next());
        let memtable = std::mem::replace(&mut state.active, next);
        state.sealed.push_back(Arc::new(Sealed {
            memtable,
            applied: std::mem::take(&mut state.applied),
            sequence: self.published.load(Ordering::Acquire).saturating_sub(1),
        }));
        state.sealed_count += 1;
        #[cfg(test)]
        {
            state.idle = false;
        }
        self.install(state);
        self.interrupt.store(true, Ordering::Release);
        self.work.notify_all();
    }

    /// Waits until a batch may be added: see [`LsmOptions::unpersisted_bytes_max`].
    fn admit<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, EngineError> {
        let options = &self.options;
        loop {
            state.check()?;
            if state.phase != Phase::Open {
                return Err(EngineError::new("write a batch", "the engine closes"));
            }
            if state.active.bytes() < options.memtable_bytes {
                return Ok(state);
            }
            if state.sealed.len() < SEALED_MAX {
                self.seal(&mut state);
                return Ok(state);
            }
            let unpersisted = state.unpersisted_bytes();
            if self.out_of_space.load(Ordering::Acquire) {
                if unpersisted < options.full_disk_bytes_max {
                    return Ok(state);
                }
                let text = format!("the disk is full, and {unpersisted} bytes wait in memory");
                return Err(EngineError::new("write a batch", text));
            }
            if unpersisted < options.unpersisted_bytes_max {
                let flushed = state.flushed_count;
                let waited = self.progress.wait_timeout(state, SLOW_WRITE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if state.flushed_count == flushed {
                    state.check()?;
                    return Ok(state);
                }
            } else {
                state = self.wait(state);
            }
        }
    }

    pub(super) fn write(&self, batch: EngineBatch) -> Result<(), EngineError> {
        for key in batch.changes.keys() {
            if key.len() > KEY_BYTES_MAX || key.as_ref() < super::view::FIRST_USER_KEY {
                let text = format!(
                    "a key of {} bytes; it takes 1 to {KEY_BYTES_MAX}, and the first is not zero",
                    key.len()
                );
                return Err(EngineError::new("write a batch", text));
            }
        }
        let mut state = self.admit(self.lock())?;
        let sequence = self.sequence.next();
        let versions = batch.changes.into_iter().map(|(key, change)| match change {
            Change::Put(value) => (key, Some(value)),
            Change::Delete => (key, None),
        });
        state.active.insert(sequence, versions);
        self.published.store(sequence + 1, Ordering::Release);
        if let Some((group, index)) = batch.applied {
            state.applied.insert(group, index);
        }
        if state.active.bytes() >= self.options.memtable_bytes && state.sealed.len() < SEALED_MAX {
            self.seal(&mut state);
        }
        Ok(())
    }

    /// Seals what was written so far if there is room for one more, which a later write or persist makes up for.
    pub(super) fn request_persist(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        state.check()?;
        if state.is_dirty() {
            if state.sealed.len() < SEALED_MAX {
                self.seal(&mut state);
            } else {
                state.persist_wanted = true;
            }
        }
        Ok(())
    }

    /// Lets the background thread flush what was written so far, then write everything anew.
    pub(super) fn request_reclaim(&self) -> Result<(), EngineError> {
        self.request_persist()?;
        let mut state = self.lock();
        state.reclaim = true;
        #[cfg(test)]
        {
            state.idle = false;
        }
        drop(state);
        self.work.notify_all();
        Ok(())
    }

    /// After a flush: seals for a request that found no room.
    pub(super) fn seal_if_wanted(&self, state: &mut State) {
        if std::mem::take(&mut state.persist_wanted) && state.is_dirty() {
            self.seal(state);
        }
    }

    /// Waits until all that was written so far is durable.
    pub(super) fn persist(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        while state.is_dirty() && state.sealed.len() >= SEALED_MAX {
            self.check_persist(&state)?;
            state = self.wait(state);
        }
        self.check_persist(&state)?;
        if state.is_dirty() {
            self.seal(&mut state);
        }
        let target = state.sealed_count;
        while state.flushed_count < target {
            self.check_persist(&state)?;
            state = self.wait(state);
        }
        state.check()
    }

    fn check_persist(&self, state: &State) -> Result<(), EngineError> {
        if state.phase == Phase::Closing && self.out_of_space.load(Ordering::Acquire) {
            let text = "the disk is full; what is in memory will come back from the log";
            return Err(EngineError::new("close the engine", text));
        }
        state.check()
    }

    /// Waits until the whole tables within a range are gone.
    pub(super) fn drop_range(&self, from: &[u8], to: &[u8]) -> Result<(), EngineError> {
        self.persist()?;
        let mut state = self.lock();
        let range = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
        state.drops.push_back(range);
        state.drop_requests += 1;
        let target = state.drop_requests;
        self.work.notify_all();
        while state.dropped_count < target {
            state.check()?;
            state = self.wait(state);
        }
        Ok(())
    }

    /// Ends the thread that drops views.
    pub(super) fn end_reaper(&self) {
        // It is gone already where this is the second call.
        let _ = self.retired.send(None);
    }

    /// Enters a phase; false if the engine is in it or behind it.
    pub(super) fn enter(&self, phase: Phase) -> bool {
        let mut state = self.lock();
        let is_new = state.phase < phase;
        if is_new {
            state.phase = phase;
        }
        self.interrupt.store(true, Ordering::Release);
        self.work.notify_all();
        self.progress.notify_all();
        is_new
    }
}
