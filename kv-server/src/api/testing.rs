//! A replica and a view without log and engine: a map behind a lock, applied inline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::{GroupStatus, HostError, Reply};
use prost::Message;
use raft_log::{Index, NodeId, Term};

use super::{ApiOptions, EtcdApi, Replica, ScanPool, View};
use crate::ApiError;
use crate::mvcc::{CommandOutput, CommandResult, LeaseInfo};
use crate::pb::command::{Command, command::Op};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;

/// Shared by the two sides.
#[derive(Default)]
pub(crate) struct FakeState {
    kvs: Mutex<BTreeMap<Bytes, KeyValue>>,
    revision: AtomicI64,
    pub(crate) no_leader: AtomicBool,
    pub(crate) full: AtomicBool,
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
                let (key, value) = (put.key, put.value);
                let kv = KeyValue {
                    key: key.clone(),
                    value,
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
                let header = at(self.revision());
                let error = String::new();
                Ok(CommandResult::LeaseGrant(pb::LeaseGrantResponse {
                    header,
                    id,
                    ttl,
                    error,
                }))
            }
            Op::LeaseRevoke(_) => Err(ApiError::LeaseNotFound),
            Op::Compact(_) => Err(ApiError::FutureRevision),
            other => panic!("the fake does not apply {other:?}"),
        }
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

    fn status(&self) -> GroupStatus {
        let lost = self.0.no_leader.load(Ordering::SeqCst);
        GroupStatus {
            node: NodeId(7),
            term: Term(3),
            leader: (!lost).then_some(NodeId(7)),
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

    fn lease(&self, _id: i64) -> Option<LeaseInfo> {
        None
    }

    fn lease_remaining(&self, _id: i64) -> Option<i64> {
        None
    }

    fn leases(&self) -> Vec<i64> {
        Vec::new()
    }

    fn lease_keys(&self, _id: i64) -> Result<Vec<Bytes>, ApiError> {
        Ok(Vec::new())
    }

    fn disk_bytes(&self) -> u64 {
        4096
    }

    fn out_of_space(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }
}

pub(crate) type FakeApi = EtcdApi<FakeReplica, FakeState>;

/// An api whose first write is revision 2, and the state behind it.
pub(crate) fn fake_api() -> (Arc<FakeApi>, Arc<FakeState>) {
    let state = Arc::new(FakeState {
        revision: AtomicI64::new(1),
        ..Default::default()
    });
    let member = pb::Member {
        id: 7,
        name: "default".into(),
        ..Default::default()
    };
    let options = ApiOptions::new(5, 7, vec![member]);
    let scans = ScanPool::start(1, 4).expect("threads can be started");
    let api = EtcdApi::new(FakeReplica(state.clone()), state.clone(), scans, options);
    (Arc::new(api), state)
}
