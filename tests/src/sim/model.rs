//! What a keyspace must look like after a sequence of commands, written from etcd's documented behaviour and not from
//! the store: no engine, no cache, no compaction. History is kept for ever, so that any old revision can be asked for.
//!
//! Fed by the [oracle](super::oracle) with the payloads of the replicated log, in order.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_server::ApiError;
use kv_server::mvcc::{CommandOutput, CommandResult, Event, EventKind, LeaseInfo};
use kv_server::pb::command::{Command, Forwarded, Origin, command::Op};
use kv_server::pb::etcdserverpb::{
    CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use kv_server::pb::mvccpb::KeyValue;
use prost::Message;
use raft_log::{Entry, EntryKind};
use raft_node::core::Membership;

/// A keyspace.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    floor: i64,
    /// Each change of each key, oldest first; none is a deletion.
    versions: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    events: BTreeMap<i64, Vec<Event>>,
    leases: BTreeMap<i64, LeaseInfo>,
    forwarded: BTreeMap<u64, Run>,
    /// The members, once an entry has named them.
    members: Option<BTreeSet<u64>>,
}

/// What a member has forwarded in its newest run: which one that is, below which sequence all is over, and what was
/// seen from there on.
#[derive(Clone, Debug, Default)]
struct Run {
    boot: u64,
    closed: u64,
    seen: BTreeSet<u64>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            revision: 1,
            floor: -1,
            versions: BTreeMap::new(),
            events: BTreeMap::new(),
            leases: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            members: None,
        }
    }
}

impl Model {
    /// The newest revision; 1 before the first write.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compaction floor; -1 before the first compaction.
    #[must_use]
    pub fn floor(&self) -> i64 {
        self.floor
    }

    /// All leases, by id.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.leases.values().copied().collect()
    }

    /// The keys attached to a lease, in order.
    #[must_use]
    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let live = self.range_at(b"\0", b"\0", self.revision);
        live.into_iter()
            .filter(|kv| kv.lease == id)
            .map(|kv| kv.key)
            .collect()
    }

    /// The changes of a revision, if there is one.
    #[must_use]
    pub fn events(&self, revision: i64) -> Option<&[Event]> {
        self.events.get(&revision).map(Vec::as_slice)
    }

    /// A key as it was at a revision.
    #[must_use]
    pub fn get_at(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let versions = self.versions.get(key)?;
        let (_, kv) = versions.iter().rev().find(|(at, _)| *at <= revision)?;
        kv.clone()
    }

    /// The live keys of a range as they were at a revision, whatever has been compacted.
    #[must_use]
    pub fn range_at(&self, key: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        let keys = self.versions.keys().filter(|at| within(at, key, end));
        keys.filter_map(|at| self.get_at(at, revision)).collect()
    }

    /// False for a command that a member forwarded and that takes no effect: one of an earlier run of that member, one
    /// that it was done with, or a second copy.
    ///
    /// # Panics
    /// When the payload is no command.
    #[must_use]
    pub fn admits(&self, payload: &Bytes) -> bool {
        let Some(origin) = origin(payload) else {
            return true;
        };
        if self.is_stranger(origin.member) {
            return false;
        }
        let Some(run) = self.forwarded.get(&origin.member) else {
            return true;
        };
        let fresh = origin.boot == run.boot
            && origin.sequence >= run.closed
            && !run.seen.contains(&origin.sequence);
        origin.boot > run.boot || fresh
    }

    /// The members, once an entry has named them.
    #[must_use]
    pub fn members(&self) -> Option<&BTreeSet<u64>> {
        self.members.as_ref()
    }

    fn is_stranger(&self, member: u64) -> bool {
        self.members
            .as_ref()
            .is_some_and(|members| !members.contains(&member))
    }

    /// A second copy, too, tells what its member is done with.
    fn note(&mut self, origin: &Origin) {
        if self.is_stranger(origin.member) {
            return;
        }
        let run = self.forwarded.entry(origin.member).or_default();
        if origin.boot < run.boot {
            return;
        }
        if origin.boot > run.boot {
            *run = Run {
                boot: origin.boot,
                ..Run::default()
            };
        }
        run.closed = run.closed.max(origin.lowest_open);
        run.seen = run.seen.split_off(&run.closed);
        run.seen.insert(origin.sequence);
    }

    /// Applies one entry and says what the store must answer.
    ///
    /// # Panics
    /// When it is neither a command nor a membership.
    pub fn apply(&mut self, entry: &Entry) -> CommandOutput {
        let (index, payload) = (entry.index, &entry.payload);
        if entry.kind == EntryKind::Config {
            let membership = Membership::decode(payload).expect("the log holds memberships");
            let members = membership.members().into_iter().map(|id| id.0).collect();
            self.forwarded
                .retain(|id, _| BTreeSet::contains(&members, id));
            self.members = Some(members);
            return Ok(CommandResult::None);
        }
        if payload.is_empty() {
            return Ok(CommandResult::None);
        }
        let admitted = self.admits(payload);
        if let Some(origin) = origin(payload) {
            self.note(&origin);
        }
        if !admitted {
            return Ok(CommandResult::None);
        }
        let command = Command::decode(payload.clone()).expect("the log holds commands");
        match command.op.expect("a command has an operation") {
            Op::Put(request) => {
                let mut draft = self.draft();
                let response = draft.put(&request, false)?;
                self.commit(draft.finish());
                Ok(CommandResult::Put(response))
            }
            Op::DeleteRange(request) => {
                let mut draft = self.draft();
                let response = draft.delete(&request);
                self.commit(draft.finish());
                Ok(CommandResult::DeleteRange(response))
            }
            Op::Txn(request) => {
                conflicts(&request.success)?;
                conflicts(&request.failure)?;
                let mut draft = self.draft();
                let mut response = draft.txn(&request)?;
                response.header = header(draft.newest());
                self.commit(draft.finish());
                Ok(CommandResult::Txn(response))
            }
            Op::Compact(request) => {
                if request.revision <= self.floor {
                    return Err(ApiError::Compacted);
                }
                if request.revision > self.revision {
                    return Err(ApiError::FutureRevision);
                }
                self.floor = request.revision;
                let header = header(self.revision);
                Ok(CommandResult::Compact(CompactionResponse { header }))
            }
            Op::LeaseGrant(grant) => {
                if self.leases.contains_key(&grant.id) {
                    return Err(ApiError::LeaseExists);
                }
                let lease = LeaseInfo {
                    id: grant.id,
                    ttl: grant.ttl,
                    remaining_ttl: None,
                    granted: index,
                };
                self.leases.insert(grant.id, lease);
                Ok(CommandResult::LeaseGrant(LeaseGrantResponse {
                    header: header(self.revision),
                    id: grant.id,
                    ttl: grant.ttl,
                    error: String::new(),
                }))
            }
            Op::Auth(_) => unreachable!("no workload has users"),
            Op::LeaseRevoke(request) => {
                self.end_lease(request.id).ok_or(ApiError::LeaseNotFound)?;
                let header = header(self.revision);
                Ok(CommandResult::LeaseRevoke(LeaseRevokeResponse { header }))
            }
            Op::LeaseExpire(request) => {
                for item in request.items {
                    if self.is_granted(item.id, item.granted_index) {
                        self.end_lease(item.id);
                    }
                }
                Ok(CommandResult::None)
            }
            // What members tell of themselves is no client's.
            Op::PublishMember(_) | Op::UpdateMember(_) | Op::RegisterKeyspace(_) => {
                Ok(CommandResult::None)
            }
            Op::SetAlarm(_) => panic!("the simulator raises no alarms"),
            Op::CheckState(_) => Ok(CommandResult::None),
            Op::LeaseCheckpoint(request) => {
                for item in request.items {
                    if self.is_granted(item.id, item.granted_index)
                        && let Some(lease) = self.leases.get_mut(&item.id)
                    {
                        lease.remaining_ttl =
                            Some(item.remaining_ttl).filter(|seconds| *seconds > 0);
                    }
                }
                Ok(CommandResult::None)
            }
        }
    }

    fn is_granted(&self, id: i64, index: u64) -> bool {
        self.leases
            .get(&id)
            .is_some_and(|lease| lease.granted.0 == index)
    }

    /// A lease goes with its keys, all of them in one revision.
    fn end_lease(&mut self, id: i64) -> Option<LeaseInfo> {
        let lease = self.leases.remove(&id)?;
        let keys = self.lease_keys(id);
        let mut draft = self.draft();
        for key in keys {
            draft.remove(key);
        }
        self.commit(draft.finish());
        Some(lease)
    }

    fn draft(&self) -> Draft<'_> {
        Draft {
            base: self,
            changes: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn commit(&mut self, (changes, events): (Changes, Vec<Event>)) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        for (key, kv) in changes {
            let versions = self.versions.entry(key).or_default();
            versions.push((self.revision, kv));
        }
        self.events.insert(self.revision, events);
    }
}

type Changes = BTreeMap<Bytes, Option<KeyValue>>;

/// A revision in progress. Dropped when something in it fails.
struct Draft<'a> {
    base: &'a Model,
    changes: Changes,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn finish(self) -> (Changes, Vec<Event>) {
        (self.changes, self.events)
    }

    fn newest(&self) -> i64 {
        self.base.revision + i64::from(!self.events.is_empty())
    }

    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        match self.changes.get(key) {
            Some(changed) => changed.clone(),
            None => self.base.get_at(key, self.base.revision),
        }
    }

    fn range(&self, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let before = self.base.range_at(key, end, self.base.revision);
        let mut found: BTreeMap<Bytes, Option<KeyValue>> = before
            .into_iter()
            .map(|kv| (kv.key.clone(), Some(kv)))
            .collect();
        let changed = self.changes.iter().filter(|(at, _)| within(at, key, end));
        found.extend(changed.map(|(key, kv)| (key.clone(), kv.clone())));
        found.into_values().flatten().collect()
    }

    fn put(&mut self, request: &PutRequest, in_txn: bool) -> Result<PutResponse, ApiError> {
        let before = self.get(&request.key);
        let no_key = (request.ignore_value || request.ignore_lease) && before.is_none();
        let no_lease = request.lease != 0 && !self.base.leases.contains_key(&request.lease);
        // Of two mistakes a transaction tells of the key, a put of its own of the lease.
        match (no_key, no_lease) {
            (true, true) if in_txn => return Err(ApiError::KeyNotFound),
            (_, true) => return Err(ApiError::LeaseNotFound),
            (true, false) => return Err(ApiError::KeyNotFound),
            (false, false) => {}
        }
        let revision = self.base.revision + 1;
        let mut kv = KeyValue {
            key: request.key.clone(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: request.value.clone(),
            lease: request.lease,
        };
        if let Some(before) = &before {
            kv.create_revision = before.create_revision;
            kv.version = before.version + 1;
            if request.ignore_value {
                kv.value = before.value.clone();
            }
            if request.ignore_lease {
                kv.lease = before.lease;
            }
        }
        self.changes.insert(kv.key.clone(), Some(kv.clone()));
        let kind = EventKind::Put;
        self.events.push(Event { kind, kv });
        Ok(PutResponse {
            header: header(revision),
            prev_kv: before.filter(|_| request.prev_kv),
        })
    }

    fn remove(&mut self, key: Bytes) {
        self.changes.insert(key.clone(), None);
        let kv = KeyValue {
            key,
            mod_revision: self.base.revision + 1,
            ..KeyValue::default()
        };
        let kind = EventKind::Delete;
        self.events.push(Event { kind, kv });
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = self.range(&request.key, &request.range_end);
        for kv in &doomed {
            self.remove(kv.key.clone());
        }
        DeleteRangeResponse {
            header: header(self.newest()),
            deleted: doomed.len() as i64,
            prev_kvs: if request.prev_kv { doomed } else { Vec::new() },
        }
    }

    /// All comparisons, nested ones too, see the state before the transaction.
    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, ApiError> {
        let succeeded = request.compare.iter().all(|c| holds(self.base, c));
        let ops = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let mut responses = Vec::new();
        for op in ops {
            let response = match op
                .request
                .as_ref()
                .expect("the workload leaves no operation out")
            {
                Request::RequestRange(range) => {
                    let kvs = self.range(&range.key, &range.range_end);
                    let count = kvs.len() as i64;
                    Response::ResponseRange(RangeResponse {
                        header: header(self.newest()),
                        kvs,
                        more: false,
                        count,
                    })
                }
                Request::RequestPut(put) => Response::ResponsePut(self.put(put, true)?),
                Request::RequestDeleteRange(delete) => {
                    Response::ResponseDeleteRange(self.delete(delete))
                }
                Request::RequestTxn(inner) => Response::ResponseTxn(self.txn(inner)?),
            };
            let response = Some(response);
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse {
            header: header(0),
            succeeded,
            responses,
        })
    }
}

/// An empty end is the one key; a zero byte as the end is everything from the key on.
/// Who forwarded a command, if somebody did.
fn origin(payload: &Bytes) -> Option<Origin> {
    let forwarded = Forwarded::decode(payload.clone()).expect("the log holds commands");
    forwarded.origin
}

fn within(at: &[u8], key: &[u8], end: &[u8]) -> bool {
    match end {
        [] => at == key,
        [0] => at >= key,
        _ => at >= key && at < end,
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

/// A comparison of one key. A missing key counts as all zeros, but has no value to compare.
fn holds(model: &Model, compare: &Compare) -> bool {
    let kv = model.get_at(&compare.key, model.revision);
    let target = CompareTarget::try_from(compare.target).expect("the workload knows the targets");
    if target == CompareTarget::Value && kv.is_none() {
        return false;
    }
    let kv = kv.unwrap_or_default();
    let order = match compare
        .target_union
        .as_ref()
        .expect("the workload gives a target")
    {
        TargetUnion::Version(wanted) => kv.version.cmp(wanted),
        TargetUnion::CreateRevision(wanted) => kv.create_revision.cmp(wanted),
        TargetUnion::ModRevision(wanted) => kv.mod_revision.cmp(wanted),
        TargetUnion::Value(wanted) => kv.value.cmp(wanted),
        TargetUnion::Lease(wanted) => kv.lease.cmp(wanted),
    };
    match CompareResult::try_from(compare.result).expect("the workload knows the results") {
        CompareResult::Equal => order.is_eq(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
        CompareResult::NotEqual => order.is_ne(),
    }
}

/// What a list of operations may put and delete. Two operations beside each other must not put one key, nor one put
/// what the other deletes; the two branches of a nested transaction exclude each other.
#[derive(Default)]
struct Touched {
    puts: Vec<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

fn conflicts(ops: &[RequestOp]) -> Result<Touched, ApiError> {
    let mut all = Touched::default();
    for op in ops {
        let mut one = Touched::default();
        match op
            .request
            .as_ref()
            .expect("the workload leaves no operation out")
        {
            Request::RequestRange(_) => {}
            Request::RequestPut(put) => one.puts.push(put.key.clone()),
            Request::RequestDeleteRange(delete) => one
                .deletes
                .push((delete.key.clone(), delete.range_end.clone())),
            Request::RequestTxn(inner) => {
                for branch in [&inner.success, &inner.failure] {
                    let touched = conflicts(branch)?;
                    one.puts.extend(touched.puts);
                    one.deletes.extend(touched.deletes);
                }
            }
        }
        let hit = |puts: &[Bytes], deletes: &[(Bytes, Bytes)]| {
            puts.iter()
                .any(|put| deletes.iter().any(|(key, end)| within(put, key, end)))
        };
        if one.puts.iter().any(|put| all.puts.contains(put))
            || hit(&one.puts, &all.deletes)
            || hit(&all.puts, &one.deletes)
        {
            return Err(ApiError::DuplicateKey);
        }
        all.puts.extend(one.puts);
        all.deletes.extend(one.deletes);
    }
    Ok(all)
}
