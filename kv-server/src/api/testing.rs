//! A replica and a view without log and engine: a map behind a lock, applied inline, and a real lessor that the test
//! ticks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::{GroupStatus, HostError, Reply};
use prost::Message;
use raft_log::{Index, NodeId, Term};
use raft_node::TickContext;

use super::{ApiOptions, DataSize, EtcdApi, Replica, ScanPool, View};
use crate::ApiError;
use crate::lease::{Lessor, Renewal};
use crate::mvcc::{
    Backup, CommandOutput, CommandResult, LeaseInfo, LeaseSink, ListShare, RangePart,
};
use crate::pb::command::{Command, command::Op};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;

/// Shared by the two sides.
#[derive(Default)]
pub(crate) struct FakeState {
    kvs: Mutex<BTreeMap<Bytes, KeyValue>>,
    leases: Mutex<BTreeMap<i64, LeaseInfo>>,
    lessor: Lessor,
    /// What the lessor proposed; applied before the next proposal.
    queue: Mutex<Vec<Bytes>>,
    revision: AtomicI64,
    pub(crate) no_leader: AtomicBool,
    pub(crate) full: AtomicBool,
    pub(crate) corrupt: AtomicBool,
    /// This member does not vote.
    pub(crate) learns: AtomicBool,
    /// But will.
    pub(crate) joins: AtomicBool,
    /// Peer URLs that members were given.
    pub(crate) updates: Mutex<Vec<(u64, Vec<String>)>>,
    /// Member 8 leads.
    pub(crate) follows: AtomicBool,
    /// What it was called for, and what it answers.
    pub(crate) calls: Mutex<Vec<Bytes>>,
    pub(crate) leader_answers: Mutex<Option<Bytes>>,
    /// Answers each proposal with this instead of applying it.
    pub(crate) refuse: Mutex<Option<HostError>>,
    /// Swallows proposals and barriers: they are never answered.
    pub(crate) mute: AtomicBool,
    pub(crate) swallowed: Mutex<Vec<Reply<CommandOutput>>>,
}

pub(crate) struct FakeReplica(pub(crate) Arc<FakeState>);

fn at(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        revision,
        ..Default::default()
    })
}

impl FakeState {
    fn apply(&self, payload: &Bytes) -> CommandOutput {
        let op = Command::decode(payload.clone())
            .expect("a command")
            .op
            .expect("an operation");
        match op {
            Op::Put(put) => {
                let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
                let (key, value, lease) = (put.key, put.value, put.lease);
                let kv = KeyValue {
                    key: key.clone(),
                    value,
                    lease,
                    mod_revision: revision,
                    ..Default::default()
                };
                self.kvs.lock().unwrap().insert(key, kv);
                Ok(CommandResult::Put(pb::PutResponse {
                    header: at(revision),
                    prev_kv: None,
                }))
            }
            Op::LeaseGrant(grant) => {
                let (id, ttl) = (grant.id, grant.ttl);
                let mut leases = self.leases.lock().unwrap();
                if leases.contains_key(&id) {
                    return Err(ApiError::LeaseExists);
                }
                let lease = LeaseInfo {
                    id,
                    ttl,
                    remaining_ttl: None,
                    granted: Index(leases.len() as u64 + 1),
                };
                leases.insert(id, lease);
                self.lessor.granted(lease);
                let header = at(self.revision());
                let error = String::new();
                Ok(CommandResult::LeaseGrant(pb::LeaseGrantResponse {
                    header,
                    id,
                    ttl,
                    error,
                }))
            }
            Op::LeaseRevoke(revoke) => {
                self.revoke(revoke.id).ok_or(ApiError::LeaseNotFound)?;
                let header = at(self.revision());
                Ok(CommandResult::LeaseRevoke(pb::LeaseRevokeResponse {
                    header,
                }))
            }
            Op::LeaseExpire(expire) => {
                for item in expire.items {
                    self.revoke(item.id);
                }
                Ok(CommandResult::None)
            }
            Op::LeaseCheckpoint(checkpoint) => {
                for item in checkpoint.items {
                    let rest = (item.remaining_ttl > 0).then_some(item.remaining_ttl);
                    self.lessor.checkpointed(item.id, rest);
                }
                Ok(CommandResult::None)
            }
            Op::SetAlarm(command) => {
                let request = command.request.expect("it says what to set");
                let raised = request.action == i32::from(pb::alarm_request::AlarmAction::Activate);
                let flag = match request.alarm() {
                    pb::AlarmType::Corrupt => &self.corrupt,
                    _ => &self.full,
                };
                flag.store(raised, Ordering::SeqCst);
                Ok(CommandResult::Alarm(pb::AlarmResponse {
                    header: at(self.revision()),
                    alarms: vec![pb::AlarmMember {
                        member_id: request.member_id,
                        alarm: request.alarm,
                    }],
                }))
            }
            Op::UpdateMember(update) => {
                let mut updates = self.updates.lock().unwrap();
                updates.push((update.id, update.peer_urls));
                Ok(CommandResult::None)
            }
            Op::Compact(_) => Err(ApiError::FutureRevision),
            other => panic!("the fake does not apply {other:?}"),
        }
    }
}

impl FakeState {
    fn revoke(&self, id: i64) -> Option<()> {
        self.leases.lock().unwrap().remove(&id)?;
        let mut kvs = self.kvs.lock().unwrap();
        let before = kvs.len();
        kvs.retain(|_, kv| kv.lease != id);
        if kvs.len() < before {
            self.revision.fetch_add(1, Ordering::SeqCst);
        }
        self.lessor.revoked(id);
        Some(())
    }

    /// Ticks the lessor of the leader.
    pub(crate) fn tick(&self, tick: u64) {
        let follows = self.follows.load(Ordering::SeqCst);
        let leads = !self.no_leader.load(Ordering::SeqCst) && !follows;
        let leading = leads.then_some(Term(3));
        self.lessor.tick(
            TickContext { tick, leading },
            &mut self.queue.lock().unwrap(),
        );
    }

    /// Lets ticks pass as the host makes them, with what the lessor proposes still under way.
    pub(crate) fn ticks(&self, range: std::ops::Range<u64>) {
        range.step_by(10).for_each(|tick| self.tick(tick));
    }
}

impl Replica for FakeReplica {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        if self.0.mute.load(Ordering::SeqCst) {
            return self.0.swallowed.lock().unwrap().push(reply);
        }
        if let Some(error) = self.0.refuse.lock().unwrap().clone() {
            return reply(Err(error));
        }
        for earlier in self.0.queue.lock().unwrap().drain(..) {
            self.0
                .apply(&earlier)
                .expect("the lessor's commands succeed");
        }
        reply(Ok(self.0.apply(&payload)));
    }

    fn read_barrier(&self, done: Reply<()>) {
        let lost = self.0.no_leader.load(Ordering::SeqCst);
        done(if lost {
            Err(HostError::NotLeader(None))
        } else {
            Ok(())
        });
    }

    fn read_now(&self) -> bool {
        false
    }

    fn call_leader(&self, payload: Bytes, reply: Reply<Bytes>) {
        let answer = self.0.leader_answers.lock().unwrap().clone();
        self.0.calls.lock().unwrap().push(payload);
        reply(answer.ok_or(HostError::Timeout));
    }

    fn learns(&self) -> bool {
        self.0.learns.load(Ordering::SeqCst)
    }

    fn status(&self) -> GroupStatus {
        let lost = self.0.no_leader.load(Ordering::SeqCst);
        GroupStatus {
            node: NodeId(7),
            term: Term(3),
            leader: (!lost).then_some(if self.0.follows.load(Ordering::SeqCst) {
                NodeId(8)
            } else {
                NodeId(7)
            }),
            voters: vec![NodeId(7)],
            leader_changes: 3,
            last_index: Index(13),
            commit: Index(12),
            applied: Index(11),
            ..Default::default()
        }
    }
}

impl View for FakeState {
    fn check_range(&self, request: &pb::RangeRequest) -> Result<(), ApiError> {
        if request.key.is_empty() {
            Err(ApiError::EmptyKey)
        } else {
            Ok(())
        }
    }

    fn check_put(&self, request: &pb::PutRequest) -> Result<(), ApiError> {
        if request.key.is_empty() {
            Err(ApiError::EmptyKey)
        } else {
            Ok(())
        }
    }

    fn check_delete(&self, request: &pb::DeleteRangeRequest) -> Result<(), ApiError> {
        if request.key.is_empty() {
            Err(ApiError::EmptyKey)
        } else {
            Ok(())
        }
    }

    fn check_txn(&self, request: &pb::TxnRequest, max_txn_ops: usize) -> Result<(), ApiError> {
        if request.success.len() > max_txn_ops {
            Err(ApiError::TooManyOps)
        } else {
            Ok(())
        }
    }

    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ApiError> {
        let kvs = self.kvs.lock().unwrap();
        let found: Vec<KeyValue> = kvs
            .values()
            .filter(|kv| {
                if request.range_end.is_empty() {
                    kv.key == request.key
                } else {
                    kv.key >= request.key && kv.key < request.range_end
                }
            })
            .cloned()
            .collect();
        let count = found.len() as i64;
        Ok(pb::RangeResponse {
            header: at(self.revision()),
            kvs: found,
            more: false,
            count,
        })
    }

    fn range_at_once(&self, _: &pb::RangeRequest) -> Option<pb::RangeResponse> {
        None
    }

    fn list_in_shares(&self, _: &pb::RangeRequest) -> Option<[ListShare; 2]> {
        None
    }

    fn range_in_parts(
        &self,
        request: &pb::RangeRequest,
        _bytes_max: usize,
        _write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<pb::RangeResponse, ApiError> {
        View::range(self, request)
    }

    fn range_part(
        &self,
        request: &pb::RangeRequest,
        keys_max: usize,
        _bytes_max: usize,
    ) -> Result<RangePart, ApiError> {
        let mut kvs = View::range(self, request)?.kvs;
        let more = kvs.len() > keys_max;
        kvs.truncate(keys_max);
        Ok(RangePart {
            kvs,
            revision: self.revision(),
            more,
        })
    }

    fn read_txn(&self, _request: &pb::TxnRequest) -> Result<pb::TxnResponse, ApiError> {
        Ok(pb::TxnResponse {
            header: at(self.revision()),
            succeeded: true,
            responses: vec![],
        })
    }

    fn revision(&self) -> i64 {
        self.revision.load(Ordering::SeqCst)
    }

    fn compact_revision(&self) -> i64 {
        -1
    }

    fn finished_compact_revision(&self) -> i64 {
        -1
    }

    fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.leases.lock().unwrap().get(&id).copied()
    }

    fn lease_remaining(&self, id: i64) -> Option<i64> {
        Some(self.lessor.time_to_live(id)?.1)
    }

    fn lease_leads_in(&self, term: u64) -> bool {
        self.lessor.leads_in(Term(term))
    }

    fn lease_renew(&self, id: i64, settled: u64) -> Renewal {
        self.lessor.renew(id, settled)
    }

    fn lease_record_rests(&self) {
        self.lessor.record_rests();
    }

    fn lease_rests_recorded(&self) -> bool {
        self.lessor.are_rests_recorded()
    }

    fn leases(&self) -> Vec<i64> {
        self.leases.lock().unwrap().keys().copied().collect()
    }

    fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError> {
        let kvs = self.kvs.lock().unwrap();
        let attached = kvs.values().filter(|kv| kv.lease == id);
        Ok(attached.map(|kv| kv.key.clone()).collect())
    }

    fn state_hash(&self) -> Result<u64, ApiError> {
        Ok(0x1_0000_0007)
    }

    fn backup(&self) -> Result<Backup, ApiError> {
        Err(ApiError::Timeout)
    }

    fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, ApiError> {
        Ok(pb::HashKvResponse {
            header: at(self.revision()),
            hash: 0,
            compact_revision: -1,
            hash_revision: revision,
        })
    }

    fn members(&self) -> Vec<pb::Member> {
        let name = "default".to_owned();
        vec![pb::Member {
            id: 7,
            name,
            ..Default::default()
        }]
    }

    fn joins_as_voter(&self, id: u64) -> bool {
        assert_eq!(id, 7, "asked of itself");
        self.joins.load(Ordering::SeqCst)
    }

    fn data_size(&self) -> DataSize {
        DataSize {
            bytes: 4096,
            in_use: 2048,
        }
    }

    fn quota_bytes(&self) -> u64 {
        8192
    }

    fn check_space(&self, _bytes: usize) -> Result<(), ApiError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(ApiError::NoSpace);
        }
        Ok(())
    }

    fn check_sound(&self) -> Result<(), ApiError> {
        if self.corrupt.load(Ordering::SeqCst) {
            return Err(ApiError::Corrupt);
        }
        Ok(())
    }

    fn alarms(&self) -> Vec<pb::AlarmMember> {
        let alarm = |kind: pb::AlarmType| pb::AlarmMember {
            member_id: 7,
            alarm: kind.into(),
        };
        let full = self.full.load(Ordering::SeqCst);
        let corrupt = self.corrupt.load(Ordering::SeqCst);
        let full = full.then(|| alarm(pb::AlarmType::Nospace));
        let corrupt = corrupt.then(|| alarm(pb::AlarmType::Corrupt));
        full.into_iter().chain(corrupt).collect()
    }
}

pub(crate) type FakeApi = EtcdApi<FakeReplica, FakeState>;

/// An api whose first write is revision 2, and the state behind it.
pub(crate) fn fake_api() -> (Arc<FakeApi>, Arc<FakeState>) {
    fake_api_with(1_000)
}

/// The same, with an election timeout of the test's.
pub(crate) fn fake_api_with(election_ms: u64) -> (Arc<FakeApi>, Arc<FakeState>) {
    let state = Arc::new(FakeState {
        revision: AtomicI64::new(1),
        ..Default::default()
    });
    state.tick(1);
    let mut options = ApiOptions::new(5, 7);
    options.election_ms = election_ms;
    let scans = Arc::new(ScanPool::start(1, 4).expect("threads can be started"));
    let api = EtcdApi::new(FakeReplica(state.clone()), state.clone(), scans, options);
    (Arc::new(api), state)
}
