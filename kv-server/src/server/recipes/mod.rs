//! The Lock and Election services: etcd's recipes over keys, leases and events, run in the server for clients that have
//! no recipes of their own.
//!
//! Whoever takes part has a key `NAME/LEASE`, the lease in hexadecimal; the one whose key was created first holds the
//! lock, or leads. All others wait for the key that was created right before theirs. A lock is not exclusion by itself:
//! its holder's lease can expire unnoticed, so what it guards must compare revisions.
//!
//! Source: the v3lock and v3election services of etcd, and the recipes of its `concurrency` package.

mod election;
mod lock;

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Code, Request, Status};

use super::grpc::{Answer, Call, Front};
use crate::ApiError;
use crate::api::Api;
use crate::mvcc::EventKind;
use crate::pb::etcdserverpb as pb;
use crate::watch::{Followed, Follower, WatchHub};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;
use pb::response_op::Response as OpAnswer;

/// Seconds of the lease that is granted to who brings none. Nobody renews it.
const SESSION_TTL: i64 = 60;

/// What both services work with.
pub(super) struct Recipes<A> {
    front: Front<A>,
    hub: Arc<WatchHub>,
}

/// One who takes part: the key, and the revision that created it.
struct Candidate {
    name: Bytes,
    key: Bytes,
    lease: i64,
    created: i64,
}

/// How a candidate came in.
struct Entered {
    candidate: Candidate,
    header: Option<pb::ResponseHeader>,
    /// The value of a key that was there already.
    value: Option<Bytes>,
    first: bool,
}

/// Removes the key of a candidate whose caller went away while it waited.
struct Waiting<'a, A: Api> {
    api: &'a Arc<A>,
    candidate: Option<&'a Candidate>,
}

impl<A: Api> Waiting<'_, A> {
    async fn give_up(mut self) {
        if let Some(candidate) = self.candidate.take() {
            leave(&**self.api, candidate.removal()).await;
        }
    }

    fn done(mut self) {
        self.candidate = None;
    }
}

impl<A: Api> Drop for Waiting<'_, A> {
    fn drop(&mut self) {
        let Some(candidate) = self.candidate else {
            return;
        };
        let (api, removal) = (Arc::clone(self.api), candidate.removal());
        // Without a runtime the server stops: the lease ends the key.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { leave(&*api, removal).await });
        }
    }
}

/// The key also goes with its lease, so a failure leaves it there for that long and is no news to anybody.
async fn leave<A: Api>(api: &A, removal: pb::TxnRequest) {
    let _ = api.txn(removal).await;
}

/// All keys of a name: `NAME/` up to the next prefix.
fn keys_of(name: &[u8]) -> pb::RangeRequest {
    pb::RangeRequest {
        key: [name, b"/"].concat().into(),
        range_end: [name, b"0"].concat().into(),
        limit: 1,
        ..Default::default()
    }
}

/// The key of a name that was created first.
fn first_of(name: &[u8]) -> pb::RangeRequest {
    pb::RangeRequest {
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..keys_of(name)
    }
}

fn point(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.clone(),
        ..Default::default()
    }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

/// Runs `then` if the key was created at this revision; 0 means that there is none.
fn if_created(key: &Bytes, created: i64, then: Op) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: vec![pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(created)),
            ..Default::default()
        }],
        success: vec![op(then)],
        failure: Vec::new(),
    }
}

impl Candidate {
    fn put(&self, value: Bytes) -> pb::TxnRequest {
        let put = pb::PutRequest {
            key: self.key.clone(),
            value,
            lease: self.lease,
            ..Default::default()
        };
        if_created(&self.key, self.created, Op::RequestPut(put))
    }

    fn removal(&self) -> pb::TxnRequest {
        let delete = pb::DeleteRangeRequest {
            key: self.key.clone(),
            ..Default::default()
        };
        if_created(&self.key, self.created, Op::RequestDeleteRange(delete))
    }
}

/// The range at a place of a transaction's answers.
fn range_at(answers: &[pb::ResponseOp], at: usize) -> Option<&pb::RangeResponse> {
    match answers.get(at)?.response.as_ref()? {
        OpAnswer::ResponseRange(range) => Some(range),
        _ => None,
    }
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// An error of the recipes; etcd gives it no code of its own.
fn failed(text: &str) -> ApiError {
    ApiError::Other(Code::Unknown, text.to_owned())
}

impl<A: Api> Recipes<A> {
    pub(super) fn new(front: Front<A>, hub: Arc<WatchHub>) -> Self {
        Self { front, hub }
    }

    /// The same on behalf of who calls, and what is asked.
    fn admit<T>(&self, call: Call, request: Request<T>) -> Result<(Self, T), Status> {
        let (api, request) = self.front.admit(call, request)?;
        let front = Front::new(Arc::new(api), Arc::clone(&self.front.calls));
        Ok((Self::new(front, Arc::clone(&self.hub)), request))
    }

    fn api(&self) -> &A {
        &self.front.api
    }

    /// A refusal keeps its text and loses its code: etcd runs its client inside the server, whose errors have none. What
    /// can be tried again keeps the code that says so.
    fn done<T>(&self, call: Call, result: Result<T, ApiError>) -> Answer<T> {
        let result = result.map_err(|error| match error.code() {
            Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => {
                failed(&error.to_string())
            }
            _ => error,
        });
        self.front.calls.done(call, result)
    }

    /// Writes the candidate's key, unless it is there.
    async fn enter(&self, name: Bytes, lease: i64, value: Bytes) -> Result<Entered, ApiError> {
        let lease = if lease == 0 {
            let grant = pb::LeaseGrantRequest {
                ttl: SESSION_TTL,
                id: 0,
            };
            self.api().lease_grant(grant).await?.id
        } else {
            lease
        };
        // A lease below zero has its sign, as etcd's clients write it.
        let sign = if lease < 0 { "-" } else { "" };
        let suffix = format!("/{sign}{:x}", lease.unsigned_abs());
        let key: Bytes = [&name[..], suffix.as_bytes()].concat().into();
        let mut candidate = Candidate {
            name,
            key,
            lease,
            created: 0,
        };
        let mut txn = candidate.put(value);
        let owner = op(Op::RequestRange(first_of(&candidate.name)));
        txn.success.push(owner.clone());
        txn.failure = vec![op(Op::RequestRange(point(&candidate.key))), owner];
        let answer = self.api().txn(txn).await?;
        let mine = range_at(&answer.responses, 0).and_then(|range| range.kvs.first());
        candidate.created = match mine {
            Some(kv) => kv.create_revision,
            None => revision(answer.header.as_ref()),
        };
        let value = mine.map(|kv| kv.value.clone());
        let owner = range_at(&answer.responses, 1).and_then(|range| range.kvs.first());
        Ok(Entered {
            first: owner.is_none_or(|owner| owner.create_revision == candidate.created),
            value,
            candidate,
            header: answer.header,
        })
    }

    /// Waits until no key of the name is older than the candidate's. The key is removed when that fails, and when the
    /// caller goes away.
    async fn wait_for_turn(
        &self,
        candidate: &Candidate,
        wants_leader: bool,
        expired: &str,
    ) -> Result<Option<pb::ResponseHeader>, ApiError> {
        let waiting = Waiting {
            api: &self.front.api,
            candidate: Some(candidate),
        };
        let lost = async {
            if wants_leader {
                self.api().leader_lost().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            turn = self.turn_of(candidate, expired) => turn,
            () = lost => Err(ApiError::NoLeader),
        };
        if outcome.is_ok() {
            waiting.done();
        } else {
            waiting.give_up().await;
        }
        outcome
    }

    async fn turn_of(
        &self,
        candidate: &Candidate,
        expired: &str,
    ) -> Result<Option<pb::ResponseHeader>, ApiError> {
        loop {
            let before = pb::RangeRequest {
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                max_create_revision: candidate.created - 1,
                ..keys_of(&candidate.name)
            };
            let before = self.api().range(before).await?;
            let Some(holder) = before.kvs.first() else {
                let mine = self.api().range(point(&candidate.key)).await?;
                let kept = mine.kvs.first();
                return if kept.is_some_and(|kv| kv.create_revision == candidate.created) {
                    Ok(mine.header)
                } else {
                    Err(failed(expired))
                };
            };
            let from = revision(before.header.as_ref()) + 1;
            let mut events = Follower::new(Arc::clone(&self.hub), from);
            let ended = events.next(|event| {
                event.kind == EventKind::Delete
                    && (event.kv.key == holder.key || event.kv.key == candidate.key)
            });
            match ended.await {
                Followed::Event(event, _) if event.kv.key == candidate.key => {
                    return Err(failed(expired));
                }
                Followed::Event(..) | Followed::Gap => {}
                Followed::Closed => return Err(ApiError::Stopped),
            }
        }
    }
}
