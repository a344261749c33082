//! Replaces a keyspace by a snapshot's, and removes what it replaced. Driven by the state machine.
//!
//! The new state is written beside the old, under a generation of its own: the number of the snapshot's reference record,
//! which no other snapshot of the store ever has. One engine batch then makes it the state. What a crash leaves is the
//! old state with parts of a generation that nobody reads, or the new state with the old generation still there; either
//! is removed by a [`Sweep`], which an open begins that finds some. `docs/DURABILITY.md` has the table of crash points.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use multiraft::Tasks;
use raft_log::SnapshotRef;

use super::codec::{Keys, Meta, damaged};
use super::read::Read;
use super::size;
use super::snapshot::{Content, Generation, TABLES};
use crate::engine::{Change, Engine, EngineBatch, EngineError};

/// What a pair costs beside its bytes.
const PAIR_OVERHEAD_BYTES: usize = 64;

/// A snapshot that is being written beside the state.
pub(super) struct Install {
    content: Content<Box<dyn std::io::Read + Send>>,
    /// Under the new generation.
    pub(super) keys: Keys,
    pub(super) meta: Meta,
}

impl Install {
    /// Begins. `keys` are those of the state now, `applied` is its meta record.
    pub(super) fn begin(
        keys: Keys,
        applied: &Meta,
        snapshot: &SnapshotRef,
        content: Box<dyn std::io::Read + Send>,
    ) -> Result<Self, EngineError> {
        let generation = u32::try_from(snapshot.number)
            .ok()
            .filter(|number| *number != 0 && *number < u32::MAX)
            .ok_or_else(|| damaged("the number of a snapshot is out of range"))?;
        if generation == keys.generation {
            return Err(damaged("a snapshot is installed already"));
        }
        let (content, mut meta) = Content::open(content)?;
        if (meta.index, meta.term) != (snapshot.index, snapshot.term) {
            return Err(damaged(
                "a snapshot is not of the index that its reference names",
            ));
        }
        if meta.index <= applied.index {
            return Err(damaged("a snapshot lies behind what is applied"));
        }
        (meta.generation, meta.bytes) = (generation, Some(0));
        let keys = Keys { generation, ..keys };
        Ok(Self {
            content,
            keys,
            meta,
        })
    }

    /// Writes the next pairs, about so many bytes. True when there are no more.
    pub(super) fn step(
        &mut self,
        engine: &dyn Engine,
        step_bytes: usize,
    ) -> Result<bool, EngineError> {
        let (mut changes, mut bytes) = (BTreeMap::new(), 0);
        let is_over = loop {
            if bytes >= step_bytes.max(1) {
                break false;
            }
            let Some((table, rest, record)) = self.content.next()? else {
                break true;
            };
            bytes += rest.len() + record.len() + PAIR_OVERHEAD_BYTES;
            let key = self.keys.with_rest(table, &rest);
            self.meta.grow(size::counted(table, &key, &record));
            if changes.insert(key, Change::Put(record)).is_some() {
                return Err(damaged("a snapshot has a key twice"));
            }
        };
        if !changes.is_empty() {
            let applied = None;
            engine.write(EngineBatch { changes, applied })?;
        }
        Ok(is_over)
    }
}

enum Stage {
    /// Somebody may still read a generation that was replaced.
    Read,
    /// The engine drops whole tables; set when it is done.
    Dropping(Arc<AtomicBool>),
    /// The rest goes key by key.
    Deleting,
}

/// Removes the generations that are not the state.
pub(super) struct Sweep {
    stage: Stage,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Self { stage: Stage::Read }
    }

    /// For an open: none when there is nothing to remove.
    pub(super) fn if_needed(
        engine: &Arc<dyn Engine>,
        keys: Keys,
    ) -> Result<Option<Self>, EngineError> {
        let found = leftovers(engine, keys, 1)?;
        Ok((!found.is_empty()).then(Self::new))
    }

    /// True while the engine drops tables, and nothing new may be written where it does.
    pub(super) fn is_dropping(&self) -> bool {
        matches!(&self.stage, Stage::Dropping(done) if !done.load(Ordering::Acquire))
    }

    /// Goes on for a bounded time. Some keys to remove, or none when nothing is left.
    pub(super) fn step(
        &mut self,
        engine: &Arc<dyn Engine>,
        tasks: &Arc<dyn Tasks>,
        keys: Keys,
        replaced: &mut Vec<Generation>,
        budget: usize,
    ) -> Result<Option<Vec<Bytes>>, EngineError> {
        replaced.retain(|generation| Arc::strong_count(generation) > 1);
        match &self.stage {
            Stage::Read if !replaced.is_empty() => Ok(Some(Vec::new())),
            Stage::Read => {
                if leftovers(engine, keys, 1)?.is_empty() {
                    return Ok(None);
                }
                let done = Arc::new(AtomicBool::new(false));
                self.stage = Stage::Dropping(Arc::clone(&done));
                let task = drop_tables(Arc::clone(engine), keys, done);
                if tasks.run(task).is_err() {
                    // Keys one by one are as good, only slower.
                    self.stage = Stage::Deleting;
                }
                Ok(Some(Vec::new()))
            }
            Stage::Dropping(done) => {
                if done.load(Ordering::Acquire) {
                    self.stage = Stage::Deleting;
                }
                Ok(Some(Vec::new()))
            }
            Stage::Deleting => {
                let deletes = leftovers(engine, keys, budget)?;
                Ok(Some(deletes).filter(|deletes| !deletes.is_empty()))
            }
        }
    }
}

/// Sets the flag when it is dropped: a task that is given up must not hold the sweep.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The engine persists before it drops, so the batch that replaced the state is durable by then: no crash goes back to
/// a state whose tables are gone.
fn drop_tables(engine: Arc<dyn Engine>, keys: Keys, done: Arc<AtomicBool>) -> multiraft::Task {
    let done = Flag(done);
    Box::new(move || {
        for (from, to) in other_generations(keys) {
            if let Err(error) = engine.drop_range(&from, &to) {
                // The next write meets the same error and stops the member.
                tracing::error!(%error, "tables of a replaced state were not dropped");
                break;
            }
        }
        drop(done);
    })
}

/// The ranges of all generations but the one that is the state.
fn other_generations(keys: Keys) -> impl Iterator<Item = (Bytes, Bytes)> {
    TABLES.into_iter().flat_map(move |table| {
        let at = |generation| Keys { generation, ..keys }.first(table);
        [(at(0), keys.first(table)), (keys.end(table), at(u32::MAX))]
    })
}

fn leftovers(
    engine: &Arc<dyn Engine>,
    keys: Keys,
    keys_max: usize,
) -> Result<Vec<Bytes>, EngineError> {
    let snapshot = engine.snapshot();
    let mut found = Vec::new();
    for (from, to) in other_generations(keys) {
        for pair in snapshot.scan(&from, &to) {
            if found.len() >= keys_max {
                return Ok(found);
            }
            found.push(pair?.0);
        }
    }
    Ok(found)
}
