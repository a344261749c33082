//! Removes history that nobody may read any more, in bounded steps. Driven by the state machine's ticks, which write
//! what a step returns; the floor itself moves when the command is applied.
//!
//! The walk follows the revision table. Each change at or below the floor supersedes the version before it, which
//! goes; a tombstone below the floor goes as well; a revision record wholly below the floor goes last. A step is
//! repeatable, so after a restart the walk begins again at the first record that is left.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::codec::{self, Keys, REVISION};
use super::read::Read;
use super::types::EventKind;
use crate::engine::EngineError;

/// What a step found.
pub(super) struct Step {
    /// Engine keys to remove, all of which are there, and the bytes of each with its record.
    pub(super) deletes: BTreeMap<Bytes, usize>,
    /// True when nothing at or below the floor is left to do.
    pub(super) finished: bool,
}

/// A walk towards one floor.
pub(super) struct Compactor {
    pub(super) floor: i64,
    next: i64,
}

impl Compactor {
    pub(super) fn new(floor: i64) -> Self {
        Self { floor, next: 0 }
    }

    /// Goes on until about `budget` keys are to be deleted or looked at; whole revision records only.
    pub(super) fn step(
        &mut self,
        read: &dyn Read,
        keys: Keys,
        budget: usize,
    ) -> Result<Step, EngineError> {
        let mut deletes = BTreeMap::new();
        let mut seen = 0;
        for pair in read.scan(&keys.revision(self.next), &keys.end(REVISION)) {
            if seen >= budget {
                return Ok(Step {
                    deletes,
                    finished: false,
                });
            }
            let (at, record) = pair?;
            let bytes = at.len() + record.len();
            let mut last = 0;
            for (revision, changes) in codec::decode_revisions(record)? {
                last = revision;
                if revision > self.floor {
                    break;
                }
                for (kind, key) in changes {
                    seen += 1;
                    let goes = kind == EventKind::Delete && revision < self.floor;
                    let newest = if goes { revision } else { revision - 1 };
                    versions(read, keys, &key, newest, &mut deletes)?;
                }
            }
            if last >= self.floor {
                break;
            }
            deletes.insert(at, bytes);
            self.next = last + 1;
        }
        Ok(Step {
            deletes,
            finished: true,
        })
    }
}

/// The versions of a key from the one at `newest` on down that are left.
fn versions(
    read: &dyn Read,
    keys: Keys,
    key: &[u8],
    newest: i64,
    deletes: &mut BTreeMap<Bytes, usize>,
) -> Result<(), EngineError> {
    for pair in read.scan(&keys.version(key, newest), &keys.version_end(key)) {
        let (at, record) = pair?;
        let bytes = at.len() + record.len();
        deletes.insert(at, bytes);
    }
    Ok(())
}
