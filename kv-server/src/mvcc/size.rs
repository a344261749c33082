//! How many bytes a keyspace takes: its keys with their history, and its leases, as keys and records of the engine.
//!
//! The writer counts as it goes, and the figure is part of the meta record, so it is right after every crash and costs no
//! look at anything. A member's own figure: it falls as compaction removes what it may. What a member's administrator
//! writes (users, roles, alarms, members) is not counted.

use bytes::Bytes;

use super::codec::{Keys, LATEST, LEASE, LEASE_KEY, REVISION, VERSION};
use super::read::Read;
use crate::engine::EngineError;

/// The tables that are counted.
const TABLES: [u8; 5] = [VERSION, REVISION, LATEST, LEASE_KEY, LEASE];

/// What a pair of a table counts, its key as the engine has it.
pub(super) fn counted(table: u8, key: &[u8], record: &Bytes) -> usize {
    if TABLES.contains(&table) {
        key.len() + record.len()
    } else {
        0
    }
}

/// Counts everything, which takes a look at everything.
pub(super) fn walk(read: &dyn Read, keys: Keys) -> Result<u64, EngineError> {
    let mut bytes = 0;
    for table in TABLES {
        for pair in read.scan(&keys.first(table), &keys.end(table)) {
            let (key, record) = pair?;
            bytes += counted(table, &key, &record) as u64;
        }
    }
    Ok(bytes)
}
