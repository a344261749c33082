//! The engine on disk: one LSM tree for all groups, without a journal of its own.
//!
//! Batches go into a memtable; a background thread writes whole memtables as tables. The log is the journal: after a
//! crash the engine is at the end of some earlier memtable, which is a batch boundary, and the log is replayed from
//! there. The tables, their blocks, filters and indexes, the versions of the tree and the levels are the `lsm-tree`
//! crate's. The memtables and the readers' view are ours (`shared`, `view`), because the crate keeps its own
//! behind a lock that it holds over up to six syncs and the removal of files, and every insert and get waits for it.
//!
//! # What a crash leaves
//!
//! A flush writes its tables, syncs each and the directory `tables`; writes the version file `v<n+1>`, syncs it and the
//! engine's directory; writes a temporary file, syncs it, renames it to `current`, syncs that and the directory. Only
//! then does [`Engine::durable_index`] move. A compaction, and a range drop, do the same. At open, the version file is
//! checked against the checksum in `current`; then it, `current` and both directories are synced; only then may the
//! tree delete what it does not name. The tables are synced next, and what they hold counts as durable.
//!
//! | crash | what is found |
//! |---|---|
//! | in a batch, or with batches in memtables | nothing of them: a memtable is never on disk in part |
//! | while a table is written or synced | `current` names the old version; the file is deleted at open |
//! | while the version file is written or synced | the same, for `v<n+1>` too |
//! | before the rename of `current` | the same; the temporary file is deleted at open |
//! | after the rename, before the sync of the directory | the old or the new version, each whole and at a batch boundary; whichever is found is synced before anything is deleted |
//! | after that sync | the new version; what it supersedes is deleted at open |
//! | anywhere in a compaction | the same content, by its inputs or by its outputs |
//! | anywhere in a range drop | all of the range's tables, or none; all that was written before is durable |
//! | while the directory is created | no `current`, no table, at most `v0`: created again. Without `current` but with tables, the open is refused |
//!
//! Memtables are sealed between batches and flushed oldest first, so the newest batch on disk has all older ones with
//! it. The applied index of each group whose index moved is written by the flush itself, into the same table.
//!
//! # A disk that is full
//!
//! A flush that fails for want of space loses nothing: the memtable stays, what was written of it is removed, and the
//! flush starts again with new files after 100 ms, then later and later up to 5 s. Meanwhile
//! [`Engine::out_of_space`] is true, and the front end refuses proposals. Writes go on into memory, without waiting,
//! up to [`LsmOptions::full_disk_bytes_max`]; past that they fail. [`Engine::persist`] waits for space, and
//! [`Engine::close`] gives up. A compaction that finds no space is undone, and tried again after the next flush. Every other error of a flush or compaction stops
//! the engine at once, as does a panic of its thread: a sync that failed is not asked for again.
//!
//! # Who waits for whom
//!
//! Readers wait for nothing but the disk. A write waits only when memtables fill faster than they are flushed: for 5 ms
//! at most while less than [`LsmOptions::unpersisted_bytes_max`] is unpersisted, past that until a flush ends. Flushes
//! come before compactions, unless so many flushed tables overlap that reads would suffer. What is large to free, and
//! the files of dropped tables, go on a thread of their own.
//!
//! # What it deliberately does not do
//!
//! It verifies blocks when they are read, not all at open. It does not bound how long a snapshot may be held: one keeps
//! its memtables in memory and its tables on disk. A directory may be opened again only after the snapshots of the
//! engine that had it are gone, since the file of a dropped table is removed with its last reader.

mod background;
mod digest;
mod files;
mod memtable;
mod merge;
mod options;
mod shared;
#[cfg(test)]
mod tests;
mod view;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;
use lsm_tree::{AbstractTree, AnyTree, SequenceNumberCounter};
use raft_log::{GroupId, Index};

pub use self::options::{FlushObserver, LsmOptions};

use self::background::{Background, Pauses};
use self::shared::{Phase, Shared};
use self::view::LsmSnapshot;
use super::{Engine, EngineBatch, EngineError, Snapshot};

/// The engine; see the module.
///
/// Dropping it without [`Engine::close`] is a crash: what is not durable is lost, to be replayed from the log.
pub struct LsmEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl LsmEngine {
    /// Opens the engine in a directory that this process has locked; creates it where there is none.
    ///
    /// # Errors
    ///
    /// An option out of its bounds, an IO error, and damage to what must be read at open.
    pub fn open(dir: &Path, options: LsmOptions) -> Result<Self, EngineError> {
        options.validate()?;
        files::prepare(dir)?;
        // Zero is below all batches, so that a reader at sequence one sees nothing.
        let sequence = SequenceNumberCounter::new(1);
        let pauses = Pauses::default();
        let config = options.config(dir, &sequence, Arc::new(pauses.share()));
        let context = || format!("open {}", dir.display());
        let tree = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(AnyTree::Standard(tree))) => tree,
            Ok(Ok(AnyTree::Blob(_))) => {
                return Err(EngineError::new(context(), "it separates keys and values"));
            }
            Ok(Err(error)) => return Err(cannot_open(context(), error)),
            Err(_) => {
                return Err(EngineError::new(
                    context(),
                    "the tree panicked on its files",
                ));
            }
        };
        sequence.fetch_max(
            tree.get_highest_persisted_seqno()
                .map_or(1, |newest| newest + 1),
        );

        let (retire, retired) = mpsc::channel();
        let shared = Shared::new(dir.to_owned(), options, tree, sequence, retire);
        files::sync_tables(&shared.lock().tables)?;
        let applied = background::load_applied(&shared)?;
        shared.lock().durable.extend(applied);

        let shared = Arc::new(shared);
        let background = Background::new(Arc::clone(&shared));
        pauses.point_to(&background);
        let engine = Self {
            shared,
            threads: Mutex::default(),
        };
        engine.start("flotilla-engine", move || background.run())?;
        engine.start("flotilla-reaper", move || background::reap(&retired))?;
        Ok(engine)
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| EngineError::new(format!("start thread {name}"), error))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(thread);
        Ok(())
    }

    /// Stops the threads. The one that flushes leaves its work undone.
    fn stop(&self) {
        self.shared.enter(Phase::Stopped);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        // The last thread is the reaper: the other one hands views to it until its end.
        while !threads.is_empty() {
            if threads.len() == 1 {
                self.shared.end_reaper();
            }
            // A panic was turned into a failure of the engine where it happened.
            let _ = threads.remove(0).join();
        }
    }
}

/// An IO error stays one, so that who opens the engine can tell a full disk or a missing right from damage.
fn cannot_open(context: String, error: lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(error) => EngineError::new(context, error),
        error => EngineError::new(context, error),
    }
}

impl Drop for LsmEngine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine for LsmEngine {
    fn write(&self, batch: EngineBatch) -> Result<(), EngineError> {
        self.shared.write(batch)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let (view, at) = self.shared.read();
        view.get(key, at)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        let (view, at) = self.shared.read();
        Arc::new(LsmSnapshot { view, at })
    }

    fn request_persist(&self) -> Result<(), EngineError> {
        self.shared.request_persist()
    }

    fn persist(&self) -> Result<(), EngineError> {
        self.shared.persist()
    }

    fn durable_index(&self, group: GroupId) -> Index {
        let state = self.shared.lock();
        state.durable.get(&group).copied().unwrap_or(Index::ZERO)
    }

    /// Persists, then drops the tables that lie within the range; waits for both, so it is not for the thread that
    /// applies.
    fn drop_range(&self, from: &[u8], to: &[u8]) -> Result<(), EngineError> {
        self.shared.drop_range(from, to)
    }

    fn disk_bytes(&self) -> u64 {
        self.shared.lock().tables.bytes
    }

    fn data_bytes(&self) -> u64 {
        let state = self.shared.lock();
        state.tables.bytes + state.unpersisted_bytes()
    }

    fn request_reclaim(&self) -> Result<(), EngineError> {
        self.shared.request_reclaim()
    }

    fn out_of_space(&self) -> bool {
        self.shared.out_of_space.load(Ordering::Acquire)
    }

    fn close(&self) -> Result<(), EngineError> {
        if !self.shared.enter(Phase::Closing) {
            return Ok(());
        }
        let persisted = self.shared.persist();
        self.stop();
        persisted
    }
}
