//! What the store, the watch hub, the lessor and the front end say to each other.

use std::sync::Arc;

use bytes::Bytes;
use raft_log::Index;
use raft_node::TickContext;

use crate::error::ApiError;
use crate::pb::etcdserverpb::{
    AlarmResponse, AuthenticateResponse, CompactionResponse, DeleteRangeResponse,
    LeaseGrantResponse, LeaseRevokeResponse, PutResponse, TxnResponse,
};
use crate::pb::mvccpb::KeyValue;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key as it is after the change. After a deletion only `key` and `mod_revision` are set.
    pub kv: KeyValue,
}

/// All changes of one revision, in the order in which they were made.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: i64,
    /// Its changes; never empty.
    pub events: Vec<Event>,
}

/// Keys of a range, of which there may be more.
#[derive(Clone, Debug, PartialEq)]
pub struct RangePart {
    /// In order.
    pub kvs: Vec<KeyValue>,
    /// The revision of the store when they were read.
    pub revision: i64,
    /// There are more behind the last one.
    pub more: bool,
}

/// Learns of every revision, in order and once, after its engine batch is visible. Called by the applying thread:
/// it must not block.
pub trait EventSink: Send + Sync {
    /// Consecutive revisions.
    fn publish(&self, revisions: &[Arc<RevisionEvents>]);

    /// History below `revision` is gone for readers from now on.
    fn compacted(&self, revision: i64);

    /// Users or roles are others from now on: who may watch may be as well.
    fn auth_changed(&self) {}

    /// A snapshot took the place of the state: the store is at `revision`, and what lies between is in its history, or
    /// compacted. A sink that follows the store only by `publish` has nothing to do.
    fn jumped(&self, revision: i64) {
        let _ = revision;
    }
}

/// A lease, as applied state has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its id; never zero.
    pub id: i64,
    /// The granted time to live in seconds.
    pub ttl: i64,
    /// The checkpointed rest of it in seconds, if one was recorded since the last refresh.
    pub remaining_ttl: Option<i64>,
    /// The index of the entry that granted it.
    pub granted: Index,
}

/// Follows the applied leases and keeps their deadlines. Called by the applying thread: it must not block.
pub trait LeaseSink: Send + Sync {
    /// A lease exists: at open for each one, later after each grant.
    fn granted(&self, lease: LeaseInfo);

    /// A lease is gone, revoked or expired.
    fn revoked(&self, id: i64);

    /// A checkpoint was recorded, or cleared when `remaining_ttl` is none.
    fn checkpointed(&self, id: i64, remaining_ttl: Option<i64>);

    /// Time passed. Pushes encoded [`crate::pb::command::Command`]s that the leader should propose. `leading` is set
    /// from the time on at which an entry of that term is applied. What other threads propose after they saw an effect
    /// of this call comes later in the log.
    fn tick(&self, context: TickContext, proposals: &mut Vec<Bytes>);

    /// The next tick at which [`LeaseSink::tick`] has something to do.
    fn next_deadline(&self) -> Option<u64>;
}

/// What applying a command gave. Headers carry the revision only; the front end fills in the rest.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandResult {
    /// Answer to a put.
    Put(PutResponse),
    /// Answer to a delete.
    DeleteRange(DeleteRangeResponse),
    /// Answer to a transaction.
    Txn(TxnResponse),
    /// Answer to a compaction.
    Compact(CompactionResponse),
    /// Answer to a grant.
    LeaseGrant(LeaseGrantResponse),
    /// Answer to a revocation.
    LeaseRevoke(LeaseRevokeResponse),
    /// Answer to raising or clearing an alarm.
    Alarm(AlarmResponse),
    /// Answer to a change of users and roles; the token is of who asked for one.
    Auth(AuthenticateResponse),
    /// For commands and entries that nobody waits for.
    None,
}

/// The output of one entry.
pub type CommandOutput = Result<CommandResult, ApiError>;
