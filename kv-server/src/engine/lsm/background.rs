//! The thread that moves memtables to disk and keeps the tables in order, and the one that drops what it replaced.
//!
//! There is one such thread, and a compaction can take seconds. A memtable must not wait for that long, so the running
//! compaction is left from time to time, by way of the tree's compaction filter, to flush what was sealed meanwhile.
//! The filter changes nothing. It is called between two entries of the merge, where the tree holds no lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, CompactionStrategy, Factory, ItemAccessor, Verdict};
use lsm_tree::{AbstractTree, InternalValue, SeqNo, Table, Tree, ValueType};
use raft_log::{GroupId, Index};

use super::files;
use super::shared::{DropRange, Sealed, Shared};
use super::view::{FIRST_USER_KEY, Tables, View};
use crate::engine::EngineError;

/// All versions but the newest of a key may go, as may all versions of the tree but the newest: readers hold what they
/// need themselves; see [`super::shared`].
const KEEP_NEWEST: SeqNo = SeqNo::MAX;
/// Overlapping runs of flushed tables above which compactions go before flushes: each run makes every read slower.
const FLUSHED_RUNS_MAX: usize = 12;
/// Runs past which a flush is refused. The tree writes their number into one byte, and does not look at the rest.
const FLUSHED_RUNS_LIMIT: usize = 200;
/// How long to wait for space on the disk: at first, and at most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often the views that someone still reads are looked at.
const REAP: Duration = Duration::from_millis(20);

/// The first byte of the engine's own keys, before any key of a user.
const OWN: u8 = 0;
/// The second byte of a key that holds a group's applied index: the group BE follows. The record is a version and the
/// index LE.
const OWN_APPLIED: u8 = 1;
const APPLIED_FORMAT: u8 = 1;

/// The record of a group's applied index. It is written by the flush of the memtable that reached the index, and thus
/// becomes durable with it.
fn applied_record(group: GroupId, index: Index, sequence: u64) -> InternalValue {
    let mut key = BytesMut::with_capacity(10);
    key.put_u8(OWN);
    key.put_u8(OWN_APPLIED);
    key.put_u64(group.0);
    let mut value = BytesMut::with_capacity(9);
    value.put_u8(APPLIED_FORMAT);
    value.put_u64_le(index.0);
    InternalValue::from_components(key.freeze(), value.freeze(), sequence, ValueType::Value)
}

fn read_applied(key: &Bytes, value: &Bytes) -> Option<(GroupId, Index)> {
    let (own, group) = key.split_first_chunk::<2>()?;
    let (format, index) = value.split_first()?;
    if *own != [OWN, OWN_APPLIED] || *format != APPLIED_FORMAT {
        return None;
    }
    let group = GroupId(u64::from_be_bytes(group.try_into().ok()?));
    Some((group, Index(u64::from_le_bytes(index.try_into().ok()?))))
}

/// The applied indexes that a freshly opened engine holds.
pub(super) fn load_applied(shared: &Shared) -> Result<Vec<(GroupId, Index)>, EngineError> {
    use std::ops::Bound::{Excluded, Included};
    let (view, at) = shared.read();
    let mut found = Vec::new();
    for pair in view.range(Included(&[OWN]), Excluded(FIRST_USER_KEY), at) {
        let (key, value) = pair?;
        found.push(read_applied(&key, &value).ok_or_else(|| {
            let text = format!("expected an applied index, found {key:?}: {value:?}");
            EngineError::new("read the engine's own records", text)
        })?);
    }
    Ok(found)
}

/// For the metrics alone: nothing is decided by it.
#[expect(
    clippy::disallowed_methods,
    reason = "how long a flush took is told to whoever looks after the server"
)]
fn now() -> Instant {
    Instant::now()
}

fn is_full(error: &lsm_tree::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        lsm_tree::Error::Io(error) => matches!(error.kind(), StorageFull | QuotaExceeded),
        _ => false,
    }
}

/// What the filter answers when the compaction is to end: the tree undoes it.
fn stopped() -> lsm_tree::Error {
    lsm_tree::Error::Io(std::io::ErrorKind::Interrupted.into())
}

/// How an attempt to flush went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Done,
    /// Nothing is sealed, or the engine stops.
    Nothing,
    Full,
}

enum Job {
    Flush,
    Drop(DropRange),
    Compact,
    Reclaim,
}

pub(super) struct Background {
    shared: Arc<Shared>,
    strategy: Arc<dyn CompactionStrategy + Send + Sync>,
    /// Tables of the oldest sealed memtable that are written, but not part of the tree yet.
    written: Mutex<Option<Vec<Table>>>,
}

impl Background {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        let strategy = shared.options.strategy();
        Arc::new(Self {
            shared,
            strategy,
            written: Mutex::default(),
        })
    }

    /// The thread. A panic stops the engine.
    pub(super) fn run(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            let error = EngineError::new("work in the background", "the thread panicked");
            self.shared.fail(&error);
        }
    }

    fn work(&self) {
        let mut retry = None;
        let mut compact = true;
        while let Some(job) = self.next_job(retry, compact) {
            let done = match job {
                Job::Flush => self.flush_oldest().map(|flush| {
                    retry = match flush {
                        Flush::Full => {
                            Some(retry.map_or(RETRY_MIN, |last| RETRY_MAX.min(last * 2)))
                        }
                        Flush::Done | Flush::Nothing => None,
                    };
                    compact = true;
                }),
                Job::Drop(range) => self.drop_tables(&range),
                Job::Compact => self.compact().map(|changed| compact = changed),
                Job::Reclaim => self.reclaim(),
            };
            if let Err(error) = done {
                self.shared.fail(&error);
            }
        }
    }

    /// Waits for something to do; `None` when the engine stops. While the disk is full there is only the next attempt.
    fn next_job(&self, retry: Option<Duration>, compact: bool) -> Option<Job> {
        let mut state = self.shared.lock();
        loop {
            if state.is_over() {
                return None;
            }
            let Some(retry) = retry else {
                // The tree's lock is free: this thread alone holds it for long.
                let crowded = compact && self.shared.tree.l0_run_count() >= FLUSHED_RUNS_MAX;
                if !state.sealed.is_empty() && !crowded {
                    return Some(Job::Flush);
                }
                if let Some(range) = state.drops.front() {
                    return Some(Job::Drop(range.clone()));
                }
                if std::mem::take(&mut state.reclaim) {
                    return Some(Job::Reclaim);
                }
                if compact {
                    return Some(Job::Compact);
                }
                #[cfg(test)]
                {
                    state.idle = true;
                    self.shared.progress.notify_all();
                }
                let woken = self.shared.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let woken = self.shared.work.wait_timeout(state, retry);
            let (woken, waited) = woken.unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                return Some(Job::Flush);
            }
            state = woken;
        }
    }

    /// Moves the oldest sealed memtable to disk.
    fn flush_oldest(&self) -> Result<Flush, EngineError> {
        let shared = &self.shared;
        let Some(sealed) = shared.lock().sealed.front().cloned() else {
            return Ok(Flush::Nothing);
        };
        let begun = now();
        match self.try_flush(&sealed) {
            Ok(()) => {
                if let Some(observe) = &shared.options.observe_flush.0 {
                    observe(begun.elapsed());
                }
            }
            Err(_) if shared.lock().is_over() => return Ok(Flush::Nothing),
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, dir = %shared.dir.display(), "no space for a flush");
                shared.out_of_space.store(true, Ordering::Release);
                shared.progress.notify_all();
                return Ok(Flush::Full);
            }
            Err(error) => {
                let context = format!("flush to {}", shared.dir.display());
                return Err(EngineError::new(context, error));
            }
        }
        let tables = Arc::new(Tables::newest(&shared.tree));
        let mut state = shared.lock();
        state.sealed.pop_front();
        state.flushed_count += 1;
        for (group, index) in &sealed.applied {
            state.durable.insert(*group, *index);
        }
        state.tables = tables;
        shared.out_of_space.store(false, Ordering::Release);
        shared.install(&state);
        shared.seal_if_wanted(&mut state);
        drop(state);
        shared.progress.notify_all();
        Ok(Flush::Done)
    }

    /// Writes and syncs the tables of a memtable, then a version of the tree that has them. Both steps start afresh
    /// after a full disk: the first with new files, the second by writing the version file anew. So no sync is asked
    /// for a second time over the same pages.
    fn try_flush(&self, sealed: &Sealed) -> lsm_tree::Result<()> {
        let shared = &self.shared;
        let tree = &shared.tree;
        let runs = tree.l0_run_count();
        if runs >= FLUSHED_RUNS_LIMIT {
            let text = format!("{runs} runs of tables wait for a compaction");
            return Err(std::io::Error::other(text).into());
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_none() {
            let first = tree.next_table_id();
            *written = match self.write_tables(sealed) {
                Ok(tables) => Some(tables),
                Err(error) => {
                    if is_full(&error) {
                        self.remove_leftovers(first)?;
                    }
                    return Err(error);
                }
            };
        }
        let tables = written.as_deref().unwrap_or_default();
        tree.register_tables(tables, None, None, &[], KEEP_NEWEST)?;
        *written = None;
        Ok(())
    }

    fn write_tables(&self, sealed: &Sealed) -> lsm_tree::Result<Vec<Table>> {
        let shared = &self.shared;
        #[cfg(test)]
        let mut fault = shared.next_fault();
        let applied = sealed
            .applied
            .iter()
            .map(|(group, index)| applied_record(*group, *index, sealed.sequence));
        let entries = applied.chain(sealed.memtable.newest());
        let unless_over = entries.enumerate().map(|(count, entry)| {
            #[cfg(test)]
            if count > 0
                && let Some(fault) = fault.take()
            {
                return Err(fault.strike());
            }
            if count % 1024 == 1023 && shared.lock().is_over() {
                return Err(stopped());
            }
            Ok(entry)
        });
        let tables = shared.tree.flush_to_tables(unless_over)?;
        Ok(tables.map(|(tables, _)| tables).unwrap_or_default())
    }

    fn remove_leftovers(&self, first: u64) -> lsm_tree::Result<()> {
        let shared = &self.shared;
        let removed = files::remove_leftovers(&shared.dir, &shared.tree, first)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        if removed {
            return Ok(());
        }
        let text = "a version of the tree is on disk whose writing failed";
        Err(std::io::Error::other(text).into())
    }

    /// Takes one step towards the shape that the levels should have; false if there is none to take.
    fn compact(&self) -> Result<bool, EngineError> {
        let step = |tree: &Tree| tree.compact(self.strategy.clone(), KEEP_NEWEST);
        self.rewrite(step)
    }

    /// Merges all tables into one level: what superseded versions and removals took is given back.
    fn reclaim(&self) -> Result<(), EngineError> {
        if self.shared.lock().tables.bytes == 0 {
            return Ok(());
        }
        let table_bytes = self.shared.options.table_bytes;
        self.rewrite(|tree| tree.major_compact(table_bytes, KEEP_NEWEST))
            .map(drop)
    }

    /// Lets the tree replace tables by others of the same content; false if it changed nothing.
    fn rewrite(
        &self,
        step: impl FnOnce(&Tree) -> lsm_tree::Result<()>,
    ) -> Result<bool, EngineError> {
        let shared = &self.shared;
        let failed = |error| EngineError::new(format!("compact {}", shared.dir.display()), error);
        let before = shared.tree.current_version().id();
        let flushed = shared.lock().flushed_count;
        let first = shared.tree.next_table_id();
        match step(&shared.tree) {
            Ok(()) => (),
            Err(_) if shared.lock().is_over() => return Ok(false),
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, dir = %shared.dir.display(), "no space for a compaction");
                self.remove_leftovers(first).map_err(failed)?;
                return Ok(false);
            }
            Err(error) => return Err(failed(error)),
        }
        let flushes = shared.lock().flushed_count - flushed;
        let changes = shared.tree.current_version().id() - before;
        if changes == flushes {
            return Ok(false);
        }
        self.install_tables();
        Ok(true)
    }

    fn install_tables(&self) {
        let tables = Arc::new(Tables::newest(&self.shared.tree));
        let mut state = self.shared.lock();
        state.tables = tables;
        self.shared.install(&state);
    }

    /// Drops the tables that lie within a range. What their tombstones hid in other tables may come back until the
    /// caller has deleted the rest of the range.
    fn drop_tables(&self, (from, to): &DropRange) -> Result<(), EngineError> {
        if from < to {
            let shared = &self.shared;
            shared
                .tree
                .drop_range::<&[u8], _>(&from[..]..&to[..])
                .map_err(|error| {
                    EngineError::new(format!("drop tables in {}", shared.dir.display()), error)
                })?;
            self.install_tables();
        }
        let mut state = self.shared.lock();
        state.drops.pop_front();
        state.dropped_count += 1;
        drop(state);
        self.shared.progress.notify_all();
        Ok(())
    }

    /// Called from within a compaction: flushes what was sealed since it began.
    fn pause_compaction(&self) -> lsm_tree::Result<()> {
        let shared = &self.shared;
        loop {
            if shared.lock().is_over() {
                return Err(stopped());
            }
            // Too many runs are what this compaction is there for.
            let crowded = shared.tree.l0_run_count() >= FLUSHED_RUNS_MAX;
            if crowded || shared.out_of_space.load(Ordering::Acquire) {
                return Ok(());
            }
            match self.flush_oldest() {
                Ok(Flush::Done) => (),
                Ok(Flush::Nothing | Flush::Full) => return Ok(()),
                Err(error) => {
                    shared.fail(&error);
                    return Err(stopped());
                }
            }
        }
    }
}

/// What the tree asks for a filter at each compaction. The tree exists before the thread, hence the late target.
#[derive(Default)]
pub(super) struct Pauses {
    target: Arc<AssertUnwindSafe<OnceLock<Weak<Background>>>>,
}

impl Pauses {
    pub(super) fn share(&self) -> Self {
        Self {
            target: Arc::clone(&self.target),
        }
    }

    pub(super) fn point_to(&self, background: &Arc<Background>) {
        // Called once, so the cell is empty.
        let _ = self.target.set(Arc::downgrade(background));
    }
}

impl Factory for Pauses {
    fn name(&self) -> &str {
        "pauses"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let background = self.target.get().and_then(Weak::upgrade);
        Box::new(Pause { background })
    }
}

struct Pause {
    background: Option<Arc<Background>>,
}

impl CompactionFilter for Pause {
    fn filter_item(&mut self, _: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        if let Some(background) = &self.background
            && background.shared.interrupt.load(Ordering::Relaxed)
        {
            background.shared.interrupt.store(false, Ordering::Release);
            background.pause_compaction()?;
        }
        Ok(Verdict::Keep)
    }
}

/// The thread that drops the views that were replaced, once nobody reads them: a large memtable takes milliseconds to
/// free, and a dropped table's file is removed. It holds each from the moment it was replaced, so it is the last to. Ends
/// at a `None`.
pub(super) fn reap(retired: &Receiver<Option<Arc<View>>>) {
    let mut held: Vec<Arc<View>> = Vec::new();
    loop {
        let next = if held.is_empty() {
            retired.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            retired.recv_timeout(REAP)
        };
        match next {
            Ok(Some(view)) => held.push(view),
            Ok(None) => return,
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        held.retain(|view| Arc::strong_count(view) > 1);
    }
}
