//! What a reader holds: the memtables and tables of one moment, and how they are read as one ordered map.
//!
//! A view is immutable but for its first memtable, which only grows. Whoever holds one keeps everything that it
//! names, so no version of a key that a reader may need is ever taken from under it, whatever flushes and compactions
//! do meanwhile. The order in which a reader takes its view and its sequence number matters; see [`super::shared`].

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use lsm_tree::table::filter::standard_bloom::Builder as Bloom;
use lsm_tree::{AbstractTree, InternalValue, Slice, Table, Tree};

use super::memtable::{Memtable, Probe};
use super::merge::{Merge, Source, Version};
use crate::engine::{EngineError, PairIter, Snapshot, is_empty_range};

/// Keys of users start at this or above; what is below is the engine's own.
pub(super) const FIRST_USER_KEY: &[u8] = &[1];

/// Tables with disjoint key ranges, in key order.
type Run = Arc<[Table]>;

/// The tables of one version of the tree, in the order in which a key is looked for.
#[derive(Default)]
pub(super) struct Tables {
    runs: Vec<Run>,
    /// Their size on disk.
    pub(super) bytes: u64,
}

impl Tables {
    /// Those of the tree's newest version.
    pub(super) fn newest(tree: &Tree) -> Self {
        let version = tree.current_version();
        let runs: Vec<Run> = version
            .iter_levels()
            .flat_map(|level| level.iter())
            .map(|run| run.iter().cloned().collect())
            .collect();
        let size = |table: &Table| table.path.metadata().map_or(0, |file| file.len());
        let bytes = runs.iter().flat_map(|run| run.iter()).map(size).sum();
        Self { runs, bytes }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table> {
        self.runs.iter().flat_map(|run| run.iter())
    }

    fn get(&self, key: &[u8], at: u64) -> Result<Option<Bytes>, EngineError> {
        let hash = Bloom::get_hash(key);
        for run in &self.runs {
            let index = run.partition_point(|table| **table.metadata.key_range.max() < *key);
            let Some(table) = run.get(index) else {
                continue;
            };
            if **table.metadata.key_range.min() > *key {
                continue;
            }
            let found = table.get(key, at, hash).map_err(|error| {
                EngineError::new(format!("read table {}", table.path.display()), error)
            })?;
            if let Some(found) = found {
                return Ok((!found.is_tombstone()).then(|| found.value.into()));
            }
        }
        Ok(None)
    }
}

/// The pairs of a run between two bounds; a table is opened when the walk reaches it.
fn walk(run: &Run, from: Bound<Slice>, to: Bound<Slice>, at: u64) -> Option<Source<'static>> {
    let first = match &from {
        Bound::Included(key) => {
            run.partition_point(|table| **table.metadata.key_range.max() < **key)
        }
        Bound::Excluded(key) => {
            run.partition_point(|table| **table.metadata.key_range.max() <= **key)
        }
        Bound::Unbounded => 0,
    };
    let end = match &to {
        Bound::Included(key) => {
            run.partition_point(|table| **table.metadata.key_range.min() <= **key)
        }
        Bound::Excluded(key) => {
            run.partition_point(|table| **table.metadata.key_range.min() < **key)
        }
        Bound::Unbounded => run.len(),
    };
    if first >= end {
        return None;
    }
    let run = Arc::clone(run);
    let tables = (first..end).flat_map(move |index| {
        let table = &run[index];
        let path = Arc::clone(&table.path);
        let named = move |error: lsm_tree::Error| {
            EngineError::new(format!("read a range of table {}", path.display()), error)
        };
        table
            .range((from.clone(), to.clone()))
            .map(move |item| item.map_err(&named))
    });
    let visible = tables.filter_map(move |item| match item {
        Ok(item) if item.key.seqno >= at => None,
        item => Some(item.map(version)),
    });
    Some(Box::new(visible))
}

fn version(item: InternalValue) -> Version {
    Version {
        sequence: item.key.seqno,
        value: (!item.is_tombstone()).then(|| item.value.into()),
        user: item.key.user_key.into(),
    }
}

/// The state of one moment.
pub(super) struct View {
    /// The newest first.
    pub(super) memtables: Vec<Arc<Memtable>>,
    pub(super) tables: Arc<Tables>,
}

impl View {
    /// The newest version of a key below `at`.
    pub(super) fn get(&self, key: &[u8], at: u64) -> Result<Option<Bytes>, EngineError> {
        if key < FIRST_USER_KEY {
            return Ok(None);
        }
        let mut probe = Probe::newest_below(key, at);
        for memtable in &self.memtables {
            if let Some(value) = memtable.get(&mut probe) {
                return Ok(value);
            }
        }
        self.tables.get(key, at)
    }

    /// The pairs between two bounds, among them the engine's own.
    pub(super) fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, at: u64) -> PairIter<'_> {
        if is_empty_range(from, to) {
            return Box::new(std::iter::empty());
        }
        let mut sources: Vec<Source<'_>> = Vec::new();
        for memtable in &self.memtables {
            sources.push(Box::new(memtable.range(from, to, at).map(Ok)));
        }
        let (low, high) = (from.map(Slice::from), to.map(Slice::from));
        for run in &self.tables.runs {
            sources.extend(walk(run, low.clone(), high.clone(), at));
        }
        Box::new(Merge::new(sources))
    }
}

/// A view, and the sequence number below which its holder reads.
pub(super) struct LsmSnapshot {
    pub(super) view: Arc<View>,
    pub(super) at: u64,
}

impl Snapshot for LsmSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.view.get(key, self.at)
    }

    fn range(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> PairIter<'_> {
        let below = match from {
            Bound::Included(key) | Bound::Excluded(key) => key < FIRST_USER_KEY,
            Bound::Unbounded => true,
        };
        let from = if below {
            Bound::Included(FIRST_USER_KEY)
        } else {
            from
        };
        self.view.range(from, to, self.at)
    }
}
