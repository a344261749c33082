//! The MVCC store: revisions, ranges, transactions, leases' keys and compaction of history, over an ordered engine.
//!
//! [`KvStateMachine`] applies commands on the host thread and is the only writer. [`Store`] is the read side, for any
//! thread: each read takes one engine snapshot and learns its revision from the meta record in that same snapshot.
//!
//! It deliberately knows nothing of sockets, of deadlines (the lessor's) and of watchers (the hub's).
mod alarms;
mod auth;
mod backup;
mod cache;
mod cached;
mod check;
mod codec;
mod compact;
mod counting;
mod counts;
mod duplicates;
mod install;
mod keyspaces;
mod members;
mod range_cache;
mod read;
mod size;
mod snapshot;
mod state;
mod state_check;
mod store;
mod survey;
mod types;
mod write;

pub use backup::{Backup, BackupInfo, BackupReader, BackupSource, RestoreChange, backup_len};
pub use check::{
    KEY_BYTES_MAX, TXN_DEPTH_MAX, check_delete, check_put, check_range, check_txn, may_put,
};
pub use duplicates::{call, stamp};
pub use keyspaces::{KEYSPACE_NAME_MAX, KEYSPACES_MAX, KeyspaceTable, check_keyspace_name};
pub use members::MemberTable;
pub use range_cache::RangeCache;
pub use state::{KvOptions, KvStateMachine, Sinks};
pub use state_check::{CheckSink, StateCut};
pub use store::{History, ListShare, Store};
pub use survey::Survey;
pub use types::{
    CommandOutput, CommandResult, Event, EventKind, EventSink, LeaseInfo, LeaseSink, RangePart,
    RevisionEvents,
};

#[cfg(test)]
mod tests;
