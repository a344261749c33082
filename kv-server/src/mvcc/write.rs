//! Commands of one apply slice, gathered into one engine batch. Used by the state machine only.
//!
//! The batch in progress is its own overlay: reads look into its changes first, then into the engine, so an entry sees
//! the ones before it, and an operation of a transaction the ones before it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use raft_log::Index;

use super::alarms::Alarms;
use super::auth::Auth;
use super::cache::Cache;
use super::cached::Blocks;
use super::check::check_txn;
use super::codec::{self, Keys, LEASE_BYTES, LEASE_KEY, Latest, Meta};
use super::counting::{Found, Note};
use super::counts::Counts;
use super::duplicates::Duplicates;
use super::keyspaces::Keyspaces;
use super::members::Members;
use super::read::{Fail, Pairs, Read, View, check_txn_revision, header};
use super::store::Store;
use super::types::{CommandResult, Event, EventKind, LeaseInfo, RevisionEvents};
use crate::auth::check_op;
use crate::engine::{Change, Engine, EngineError, Snapshot};
use crate::error::ApiError;
use crate::pb::command::{
    Caller, CheckState, LeaseCheckpoint, LeaseExpire, LeaseGrant, command::Op,
};
use crate::pb::etcdserverpb::{
    AlarmResponse, AuthenticateResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, LeaseGrantResponse, LeaseRevokeResponse, PutRequest, PutResponse,
    RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op::Request, response_op::Response,
};
use crate::pb::mvccpb::KeyValue;

/// What the lessor has to hear once the batch is visible.
pub(super) enum LeaseNews {
    Granted(LeaseInfo),
    Revoked(i64),
    Checkpointed(i64, Option<i64>),
}

pub(super) struct Writer<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) keys: Keys,
    pub(super) cache: &'a mut Cache,
    pub(super) leases: &'a mut BTreeMap<i64, LeaseInfo>,
    pub(super) duplicates: &'a mut Duplicates,
    pub(super) members: &'a mut Members,
    pub(super) keyspaces: &'a mut Keyspaces,
    pub(super) alarms: &'a mut Alarms,
    pub(super) auth: &'a mut Auth,
    pub(super) meta: Meta,
    pub(super) changes: BTreeMap<Bytes, Change>,
    /// The keys that came into being, or went.
    pub(super) notes: Vec<Note>,
    /// Of the revision in progress.
    pub(super) events: Vec<Event>,
    pub(super) revisions: Vec<Arc<RevisionEvents>>,
    pub(super) lease_news: Vec<LeaseNews>,
    pub(super) compacted: Option<i64>,
    /// The last command asked for a cut of the state: nothing may follow it in this batch.
    pub(super) check: bool,
    pub(super) snapshot: OnceCell<Arc<dyn Snapshot>>,
    pub(super) store: &'a Store,
    /// The index before the batch.
    pub(super) applied: Index,
    /// How many keys there were before the batch, if somebody asked and it is known.
    pub(super) counts: OnceCell<Option<Arc<Counts>>>,
}

impl Read for Writer<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self.changes.get(key) {
            Some(Change::Put(value)) => Ok(Some(value.clone())),
            Some(Change::Delete) => Ok(None),
            None => self.engine.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Pairs<'_> {
        if from >= to {
            return Box::new(std::iter::empty());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut over = self.changes.range::<[u8], _>(bounds).peekable();
        let snapshot = self.snapshot.get_or_init(|| self.engine.snapshot());
        let mut under = snapshot.range(bounds.0, bounds.1).peekable();
        Box::new(std::iter::from_fn(move || {
            loop {
                let change = match (over.peek(), under.peek()) {
                    (None, _) | (_, Some(Err(_))) => return under.next(),
                    (Some(_), None) => over.next(),
                    (Some((key, _)), Some(Ok((below, _)))) => {
                        if below < *key {
                            return under.next();
                        }
                        if below == *key {
                            under.next();
                        }
                        over.next()
                    }
                };
                if let Some((key, Change::Put(value))) = change {
                    return Some(Ok((key.clone(), value.clone())));
                }
            }
        }))
    }
}

impl Writer<'_> {
    fn view(&self) -> View<'_> {
        View {
            read: self,
            keys: self.keys,
            blocks: None,
        }
    }

    /// The same for a range, whose keys may have to be counted.
    fn counted_view(&self) -> View<'_> {
        let counts = self.counts.get_or_init(|| {
            let before = self.applied;
            match self.store.counting().at(before) {
                Found::These(counts) => Some(counts),
                Found::Nothing | Found::Other => None,
            }
        });
        let blocks = counts.as_deref().map(|counts| Blocks {
            counts,
            index: self.applied,
            cache: self.store.ranges(),
            pending: Some(&self.notes),
        });
        View {
            blocks,
            ..self.view()
        }
    }

    /// The revision that the next change belongs to.
    fn next(&self) -> i64 {
        self.meta.revision + 1
    }

    /// The newest revision, the one in progress included.
    fn newest(&self) -> i64 {
        self.meta.revision + i64::from(!self.events.is_empty())
    }

    fn sub(&self) -> u32 {
        u32::try_from(self.events.len()).unwrap_or(u32::MAX)
    }

    /// Inserts a pair that was not there, and that is counted.
    fn add(&mut self, key: Bytes, record: Bytes) {
        self.meta.grow(key.len() + record.len());
        self.changes.insert(key, Change::Put(record));
    }

    /// Replaces the record of a pair by one of the same length.
    fn replace(&mut self, key: Bytes, record: Bytes) {
        self.changes.insert(key, Change::Put(record));
    }

    /// Removes a pair that was there, with so many bytes of a record, and that was counted.
    fn remove(&mut self, key: Bytes, record_bytes: usize) {
        self.meta.shrink(key.len() + record_bytes);
        self.changes.insert(key, Change::Delete);
    }

    fn note(&mut self, key: &Bytes, lives: bool) {
        let key = key.clone();
        self.notes.push(Note { key, lives });
    }

    /// Closes the revision in progress, if anything changed.
    fn finish(&mut self) {
        if !self.events.is_empty() {
            self.meta.revision += 1;
            let events = std::mem::take(&mut self.events);
            self.revisions.push(Arc::new(RevisionEvents {
                revision: self.meta.revision,
                events,
            }));
        }
    }

    /// Executes one command. An error of the client has changed nothing.
    pub(super) fn execute(
        &mut self,
        op: Op,
        caller: Option<&Caller>,
        index: Index,
    ) -> Result<CommandResult, Fail> {
        self.alarms.check(&op)?;
        check_op(self.auth.state(), caller, &op, |id| -> Result<_, Fail> {
            Ok(lease_keys(self, self.keys, id)?)
        })?;
        let result = match op {
            Op::Put(request) => self.put(request).map(CommandResult::Put),
            Op::DeleteRange(request) => self.delete_range(&request).map(CommandResult::DeleteRange),
            Op::Txn(request) => self.txn(&request).map(CommandResult::Txn),
            Op::Compact(request) => self.compact(&request).map(CommandResult::Compact),
            Op::LeaseGrant(grant) => self.grant(&grant, index).map(CommandResult::LeaseGrant),
            Op::LeaseRevoke(request) => {
                if !self.leases.contains_key(&request.id) {
                    return Err(ApiError::LeaseNotFound.into());
                }
                self.revoke(request.id)?;
                let header = header(self.meta.revision);
                Ok(CommandResult::LeaseRevoke(LeaseRevokeResponse { header }))
            }
            Op::LeaseExpire(expire) => self.expire(&expire).map(|()| CommandResult::None),
            Op::LeaseCheckpoint(request) => {
                self.checkpoint(&request);
                Ok(CommandResult::None)
            }
            Op::SetAlarm(command) => {
                let alarms = self.alarms.set(&command, self.keys, &mut self.changes);
                let header = header(self.meta.revision);
                Ok(CommandResult::Alarm(AlarmResponse { header, alarms }))
            }
            Op::Auth(command) => {
                let changes = &mut self.changes;
                let token = self.auth.execute(&command, index, self.keys, changes)?;
                let header = header(self.meta.revision);
                Ok(CommandResult::Auth(AuthenticateResponse { header, token }))
            }
            Op::CheckState(CheckState {}) => {
                self.check = true;
                Ok(CommandResult::None)
            }
            Op::RegisterKeyspace(request) => {
                let membership = self.meta.membership.as_ref().map(|(_, members)| members);
                self.keyspaces
                    .register(request, membership, self.keys, &mut self.changes)?;
                Ok(CommandResult::None)
            }
            Op::PublishMember(member) => {
                let membership = self.meta.membership.as_ref().map(|(_, members)| members);
                self.members
                    .publish(member, membership, self.keys, &mut self.changes);
                Ok(CommandResult::None)
            }
            Op::UpdateMember(update) => {
                let membership = self.meta.membership.as_ref().map(|(_, members)| members);
                self.members
                    .update(update, membership, self.keys, &mut self.changes)?;
                Ok(CommandResult::None)
            }
        };
        self.finish();
        result
    }

    fn latest(&mut self, key: &[u8]) -> Result<Option<Latest>, EngineError> {
        if let Some(latest) = self.cache.get(key) {
            return Ok(Some(latest));
        }
        self.view().latest(key)
    }

    fn check_previous(&mut self, request: &PutRequest) -> Result<(), Fail> {
        let needed = request.ignore_value || request.ignore_lease;
        if needed && self.latest(&request.key)?.is_none() {
            return Err(ApiError::KeyNotFound.into());
        }
        Ok(())
    }

    fn check_lease(&self, request: &PutRequest) -> Result<(), Fail> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(ApiError::LeaseNotFound.into());
        }
        Ok(())
    }

    /// Which of two mistakes is told is etcd's choice: here the lease's, in a transaction the key's.
    fn put(&mut self, request: PutRequest) -> Result<PutResponse, Fail> {
        super::check::check_put(&request)?;
        self.check_lease(&request)?;
        self.check_previous(&request)?;
        let PutRequest {
            key,
            mut value,
            mut lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        } = request;
        let before = self.latest(&key)?;
        let mut previous: Option<KeyValue> = None;
        if let Some(before) = before {
            if prev_kv || ignore_value {
                previous = Some(self.view().current(&key, before)?);
            }
            if ignore_lease {
                lease = before.lease;
            }
            if let (true, Some(previous)) = (ignore_value, &previous) {
                value = previous.value.clone();
            }
            if before.lease != 0 && before.lease != lease {
                self.remove(self.keys.lease_key(before.lease, &key), 0);
            }
        }
        let modified = self.next();
        let latest = Latest {
            modified,
            created: before.map_or(modified, |before| before.created),
            version: before.map_or(1, |before| before.version + 1),
            lease,
        };
        let record = codec::encode_version(latest, self.sub(), &value);
        self.add(self.keys.version(&key, modified), record);
        if before.is_some() {
            self.replace(self.keys.latest(&key), latest.encode());
        } else {
            self.add(self.keys.latest(&key), latest.encode());
        }
        if lease != 0 && before.is_none_or(|before| before.lease != lease) {
            self.add(self.keys.lease_key(lease, &key), Bytes::new());
        }
        self.cache.insert(&key, latest);
        if before.is_none() {
            self.note(&key, true);
        }
        let kv = KeyValue {
            key,
            create_revision: latest.created,
            mod_revision: modified,
            version: latest.version,
            value,
            lease,
        };
        self.events.push(Event {
            kind: EventKind::Put,
            kv,
        });
        Ok(PutResponse {
            header: header(modified),
            prev_kv: previous.filter(|_| prev_kv),
        })
    }

    fn delete(&mut self, key: Bytes, latest: Latest) {
        let modified = self.next();
        let tombstone = codec::encode_tombstone(self.sub());
        self.add(self.keys.version(&key, modified), tombstone);
        self.remove(self.keys.latest(&key), Latest::BYTES);
        if latest.lease != 0 {
            self.remove(self.keys.lease_key(latest.lease, &key), 0);
        }
        self.cache.remove(&key);
        self.note(&key, false);
        let kv = KeyValue {
            key,
            mod_revision: modified,
            ..KeyValue::default()
        };
        self.events.push(Event {
            kind: EventKind::Delete,
            kv,
        });
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Fail> {
        super::check::check_delete(request)?;
        let (mut doomed, mut prev_kvs) = (Vec::new(), Vec::new());
        let view = self.view();
        view.live(&request.key, &request.range_end, |key, latest| {
            if request.prev_kv {
                prev_kvs.push(view.current(&key, latest)?);
            }
            doomed.push((key, latest));
            Ok(ControlFlow::Continue(()))
        })?;
        let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        for (key, latest) in doomed {
            self.delete(key, latest);
        }
        Ok(DeleteRangeResponse {
            header: header(self.newest()),
            deleted,
            prev_kvs,
        })
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Fail> {
        check_txn(request, usize::MAX)?;
        let mut path = Vec::new();
        plan_txn(&self.view(), request, &mut path)?;
        // As etcd: all puts first, then all ranges.
        self.check_puts(request, &mut path.iter().copied())?;
        self.check_ranges(request, &mut path.iter().copied())?;
        let mut response = self.run(request, &mut path.iter().copied())?;
        response.header = header(self.newest());
        Ok(response)
    }

    /// Everything that can fail is checked before anything changes.
    fn check_puts(
        &mut self,
        txn: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Fail> {
        for op in branch(txn, path.next().expect("one decision per transaction")) {
            match op.request.as_ref() {
                Some(Request::RequestPut(put)) => {
                    super::check::check_put(put)?;
                    self.check_previous(put)?;
                    self.check_lease(put)?;
                }
                Some(Request::RequestTxn(inner)) => self.check_puts(inner, path)?,
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    fn check_ranges(
        &self,
        txn: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Fail> {
        for op in branch(txn, path.next().expect("one decision per transaction")) {
            match op.request.as_ref() {
                Some(Request::RequestRange(range)) => {
                    let meta = &self.meta;
                    check_txn_revision(range.revision, meta.revision, meta.compact)?;
                }
                Some(Request::RequestTxn(inner)) => self.check_ranges(inner, path)?,
                Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// As etcd's: each answer has the revision as it is after its operation, and an inner transaction none.
    fn run(
        &mut self,
        txn: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, Fail> {
        let succeeded = path.next().expect("one decision per transaction");
        let mut responses = Vec::new();
        for op in branch(txn, succeeded) {
            let request = op.request.as_ref().expect("checked with the transaction");
            let response = match request {
                Request::RequestRange(range) => {
                    Response::ResponseRange(self.counted_view().range(range, self.newest())?)
                }
                Request::RequestPut(put) => Response::ResponsePut(self.put(put.clone())?),
                Request::RequestDeleteRange(delete) => {
                    Response::ResponseDeleteRange(self.delete_range(delete)?)
                }
                Request::RequestTxn(inner) => Response::ResponseTxn(self.run(inner, path)?),
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: header(0),
            succeeded,
            responses,
        })
    }

    fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, Fail> {
        if request.revision <= self.meta.compact {
            return Err(ApiError::Compacted.into());
        }
        if request.revision > self.meta.revision {
            return Err(ApiError::FutureRevision.into());
        }
        self.meta.compact = request.revision;
        self.compacted = Some(request.revision);
        Ok(CompactionResponse {
            header: header(self.meta.revision),
        })
    }

    fn grant(&mut self, grant: &LeaseGrant, index: Index) -> Result<LeaseGrantResponse, Fail> {
        if self.leases.contains_key(&grant.id) {
            return Err(ApiError::LeaseExists.into());
        }
        let lease = LeaseInfo {
            id: grant.id,
            ttl: grant.ttl,
            remaining_ttl: None,
            granted: index,
        };
        self.add(self.keys.lease(lease.id), codec::encode_lease(&lease));
        self.leases.insert(lease.id, lease);
        self.lease_news.push(LeaseNews::Granted(lease));
        Ok(LeaseGrantResponse {
            header: header(self.meta.revision),
            id: grant.id,
            ttl: grant.ttl,
            error: String::new(),
        })
    }

    /// Ends a lease: its keys go in order, in one revision.
    fn revoke(&mut self, id: i64) -> Result<(), EngineError> {
        for key in lease_keys(self, self.keys, id)? {
            if let Some(latest) = self.latest(&key)? {
                self.delete(key, latest);
            }
        }
        self.finish();
        self.remove(self.keys.lease(id), LEASE_BYTES);
        self.leases.remove(&id);
        self.lease_news.push(LeaseNews::Revoked(id));
        Ok(())
    }

    fn is_granted(&self, id: i64, granted_index: u64) -> Option<LeaseInfo> {
        self.leases
            .get(&id)
            .copied()
            .filter(|lease| lease.granted == Index(granted_index))
    }

    fn expire(&mut self, expire: &LeaseExpire) -> Result<(), Fail> {
        for item in &expire.items {
            if self.is_granted(item.id, item.granted_index).is_some() {
                self.revoke(item.id)?;
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, request: &LeaseCheckpoint) {
        for item in &request.items {
            if let Some(mut lease) = self.is_granted(item.id, item.granted_index) {
                lease.remaining_ttl = (item.remaining_ttl > 0).then_some(item.remaining_ttl);
                self.replace(self.keys.lease(lease.id), codec::encode_lease(&lease));
                self.leases.insert(lease.id, lease);
                self.lease_news
                    .push(LeaseNews::Checkpointed(lease.id, lease.remaining_ttl));
            }
        }
    }
}

/// The keys of a lease, in order.
pub(super) fn lease_keys(read: &dyn Read, keys: Keys, id: i64) -> Result<Vec<Bytes>, EngineError> {
    let from = keys.lease_key(id, b"");
    let skip = from.len();
    debug_assert_eq!(from[0], LEASE_KEY);
    read.scan(&from, &keys.lease_keys_end(id))
        .map(|pair| Ok(pair?.0.slice(skip..)))
        .collect()
}

pub(super) fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// Decides all branches against the state before the transaction, in the order in which they are met.
pub(super) fn plan_txn(
    view: &View<'_>,
    txn: &TxnRequest,
    path: &mut Vec<bool>,
) -> Result<(), EngineError> {
    let mut holds = true;
    for compare in &txn.compare {
        if !view.holds(compare)? {
            holds = false;
            break;
        }
    }
    path.push(holds);
    for op in branch(txn, holds) {
        if let Some(Request::RequestTxn(inner)) = op.request.as_ref() {
            plan_txn(view, inner, path)?;
        }
    }
    Ok(())
}
