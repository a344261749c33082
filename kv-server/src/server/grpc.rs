//! The gRPC services over an [`Api`]: KV, Cluster, Maintenance and health. They translate and count, nothing else. The
//! Lease service, which streams, has a file of its own, and so has the Auth service.

use std::pin::Pin;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use prometheus::{IntCounter, IntCounterVec};
use prost::Message;
use tokio::sync::SemaphorePermit;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};

use super::Metrics;
use super::large::LargeAnswers;
use super::range::Chunks;
use super::snapshot::Parts;
use crate::ApiError;
use crate::api::Api;
use crate::auth::Caller;
use crate::codec::WrittenKeys;
use crate::pb::etcdserverpb as pb;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::health_server::Health;
use crate::pb::health::{HealthCheckRequest, HealthCheckResponse};
use pb::request_op::Request as OpKind;

pub(super) type Answer<T> = Result<Response<T>, Status>;

/// Type, service and method of each counted call; [`Call`] is the index.
pub(super) const METHODS: &[(&str, &str, &str)] = &[
    ("unary", "etcdserverpb.KV", "Range"),
    ("server_stream", "etcdserverpb.KV", "RangeStream"),
    ("unary", "etcdserverpb.KV", "Put"),
    ("unary", "etcdserverpb.KV", "DeleteRange"),
    ("unary", "etcdserverpb.KV", "Txn"),
    ("unary", "etcdserverpb.KV", "Compact"),
    ("unary", "etcdserverpb.Lease", "LeaseGrant"),
    ("unary", "etcdserverpb.Lease", "LeaseRevoke"),
    ("bidi_stream", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("unary", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("unary", "etcdserverpb.Lease", "LeaseLeases"),
    ("unary", "etcdserverpb.Cluster", "MemberList"),
    ("unary", "etcdserverpb.Cluster", "MemberAdd"),
    ("unary", "etcdserverpb.Cluster", "MemberRemove"),
    ("unary", "etcdserverpb.Cluster", "MemberUpdate"),
    ("unary", "etcdserverpb.Cluster", "MemberPromote"),
    ("unary", "etcdserverpb.Maintenance", "Alarm"),
    ("unary", "etcdserverpb.Maintenance", "Status"),
    ("unary", "etcdserverpb.Maintenance", "Defragment"),
    ("unary", "etcdserverpb.Maintenance", "HashKV"),
    ("unary", "etcdserverpb.Maintenance", "Hash"),
    ("server_stream", "etcdserverpb.Maintenance", "Snapshot"),
    ("unary", "etcdserverpb.Maintenance", "Downgrade"),
    ("unary", "etcdserverpb.Maintenance", "MoveLeader"),
    ("unary", "v3lockpb.Lock", "Lock"),
    ("unary", "v3lockpb.Lock", "Unlock"),
    ("unary", "v3electionpb.Election", "Campaign"),
    ("unary", "v3electionpb.Election", "Proclaim"),
    ("unary", "v3electionpb.Election", "Leader"),
    ("server_stream", "v3electionpb.Election", "Observe"),
    ("unary", "v3electionpb.Election", "Resign"),
    ("unary", "etcdserverpb.Auth", "AuthEnable"),
    ("unary", "etcdserverpb.Auth", "AuthDisable"),
    ("unary", "etcdserverpb.Auth", "AuthStatus"),
    ("unary", "etcdserverpb.Auth", "Authenticate"),
    ("unary", "etcdserverpb.Auth", "UserAdd"),
    ("unary", "etcdserverpb.Auth", "UserGet"),
    ("unary", "etcdserverpb.Auth", "UserList"),
    ("unary", "etcdserverpb.Auth", "UserDelete"),
    ("unary", "etcdserverpb.Auth", "UserChangePassword"),
    ("unary", "etcdserverpb.Auth", "UserGrantRole"),
    ("unary", "etcdserverpb.Auth", "UserRevokeRole"),
    ("unary", "etcdserverpb.Auth", "RoleAdd"),
    ("unary", "etcdserverpb.Auth", "RoleGet"),
    ("unary", "etcdserverpb.Auth", "RoleList"),
    ("unary", "etcdserverpb.Auth", "RoleDelete"),
    ("unary", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("unary", "etcdserverpb.Auth", "RoleRevokePermission"),
];

#[derive(Clone, Copy)]
pub(super) enum Call {
    Range,
    RangeStream,
    Put,
    DeleteRange,
    Txn,
    Compact,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseLeases,
    MemberList,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    Alarm,
    Status,
    Defragment,
    HashKv,
    Hash,
    Snapshot,
    Downgrade,
    MoveLeader,
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    Leader,
    Observe,
    Resign,
    AuthEnable,
    AuthDisable,
    AuthStatus,
    Authenticate,
    UserAdd,
    UserGet,
    UserList,
    UserDelete,
    UserChangePassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleGet,
    RoleList,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
}

/// A code as Go spells it, for the sake of existing dashboards.
pub(super) fn code_label(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Counts outcomes, and the bytes of large answers. The counters of success are looked up once: a call then costs one atomic
/// addition.
pub(super) struct Calls {
    handled: IntCounterVec,
    ok: Vec<IntCounter>,
    large: Arc<LargeAnswers>,
}

impl Calls {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let handled = metrics.handled.clone();
        let counter = |(kind, service, method): &(&str, &str, &str)| {
            handled.with_label_values(&[*kind, *service, *method, "OK"])
        };
        let ok = METHODS.iter().map(counter).collect();
        let large = Arc::<LargeAnswers>::default();
        Self { handled, ok, large }
    }

    pub(super) fn done<T>(&self, call: Call, result: Result<T, ApiError>) -> Answer<T> {
        match result {
            Ok(response) => {
                self.count(call, Code::Ok);
                Ok(Response::new(response))
            }
            Err(error) => {
                self.count(call, error.code());
                Err(error.into())
            }
        }
    }

    pub(super) fn count(&self, call: Call, code: Code) {
        let at = call as usize;
        if code == Code::Ok {
            return self.ok[at].inc();
        }
        let (kind, service, method) = METHODS[at];
        let code = code_label(code);
        self.handled
            .with_label_values(&[kind, service, method, &code])
            .inc();
    }
}

/// Counts a stream once, when it ends; one that is dropped before was cancelled by the client.
pub(super) struct Outcome {
    calls: Arc<Calls>,
    call: Call,
    pub(super) code: Code,
}

impl Outcome {
    pub(super) fn new(calls: &Arc<Calls>, call: Call) -> Self {
        Self {
            calls: Arc::clone(calls),
            call,
            code: Code::Cancelled,
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.calls.count(self.call, self.code);
    }
}

/// What the listener knows of a connection, for every request that comes on it.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInfo {
    /// The common name of the client's certificate. To be set only where that was verified, and where the server was told to
    /// know clients by their certificates.
    pub common_name: Option<Arc<str>>,
}

// Names that each call is asked for; a name that is made once is found for a fraction of what a text costs.
static TOKEN: HeaderName = HeaderName::from_static("token");
static GATEWAY_ACCEPT: HeaderName = HeaderName::from_static("grpcgateway-accept");
static HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// What a request says of who sent it: a token in the metadata, where etcd's clients and its gateway put theirs, and the
/// certificate of the connection. A gateway's certificate is not that of who uses it.
pub(super) fn caller_of<T>(request: &Request<T>) -> Caller {
    let headers: &HeaderMap = request.metadata().as_ref();
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let token = text(&TOKEN).or_else(|| {
        let token = text(&AUTHORIZATION)?;
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    });
    let connection = request.extensions().get::<ConnectionInfo>();
    let name = connection.and_then(|connection| connection.common_name.clone());
    Caller {
        token: token.map(Arc::from),
        common_name: name.filter(|_| !headers.contains_key(&GATEWAY_ACCEPT)),
    }
}

/// One api as gRPC services.
pub(super) struct Front<A> {
    pub(super) api: Arc<A>,
    pub(super) calls: Arc<Calls>,
}

/// True when the caller asks for a leader.
pub(super) fn wants_leader<T>(request: &Request<T>) -> bool {
    let headers: &HeaderMap = request.metadata().as_ref();
    headers
        .get(&HAS_LEADER)
        .is_some_and(|value| value == "true")
}

impl<A: Api> Front<A> {
    pub(super) fn new(api: Arc<A>, calls: Arc<Calls>) -> Self {
        Self { api, calls }
    }

    /// A learner serves nothing of this; a caller that asks for a leader is refused without one, rather than kept waiting.
    pub(super) fn admit<T>(&self, call: Call, request: Request<T>) -> Result<(A, T), Status> {
        if self.api.is_learner() {
            return self.refuse_at_learner(call);
        }
        self.admit_at_learner(call, request)
    }

    /// Waits for a turn where the answer could have any size.
    async fn turn(
        &self,
        call: Call,
        any_size: bool,
    ) -> Result<Option<SemaphorePermit<'_>>, Status> {
        if !any_size {
            return Ok(None);
        }
        match self.calls.large.turn().await {
            Ok(turn) => Ok(Some(turn)),
            Err(error) => {
                let refused = self.calls.done(call, Err(error));
                refused.map(Response::into_inner)
            }
        }
    }

    /// Counts an answer and its bytes, `written` of which it does not have itself. What has been changed is answered in any
    /// case.
    fn counted<T: Message>(
        &self,
        call: Call,
        result: Result<T, ApiError>,
        written: usize,
        turn: Option<SemaphorePermit<'_>>,
        in_any_case: bool,
    ) -> Answer<T> {
        let mut answer = match result {
            Ok(answer) => Response::new(answer),
            Err(error) => return self.calls.done(call, Err(error)),
        };
        let counted = self.calls.large.count(&mut answer, written, in_any_case);
        drop(turn);
        match counted {
            Ok(()) => {
                self.calls.count(call, Code::Ok);
                Ok(answer)
            }
            Err(error) => self.calls.done(call, Err(error)),
        }
    }

    /// For calls that no leader is needed for.
    fn admit_voter<T>(&self, call: Call, request: Request<T>) -> Result<(A, T), Status> {
        if self.api.is_learner() {
            return self.refuse_at_learner(call);
        }
        Ok(self.called(request))
    }

    fn refuse_at_learner<T>(&self, call: Call) -> Result<T, Status> {
        let refused = Err(ApiError::NotSupportedForLearner);
        self.calls.done(call, refused).map(Response::into_inner)
    }

    /// As [`Self::admit`], for what a learner serves as well.
    fn admit_at_learner<T>(&self, call: Call, request: Request<T>) -> Result<(A, T), Status> {
        if wants_leader(&request) && !self.api.has_leader() {
            return self
                .calls
                .done(call, Err(ApiError::NoLeader))
                .map(Response::into_inner);
        }
        Ok(self.called(request))
    }

    /// The api on behalf of who calls, and what is asked of it.
    fn called<T>(&self, request: Request<T>) -> (A, T) {
        let caller = caller_of(&request);
        (self.api.called_by(caller), request.into_inner())
    }
}

/// True for a transaction that could read a range of any size.
fn has_range(txn: &pb::TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| match &op.request {
        Some(OpKind::RequestRange(range)) => !range.range_end.is_empty() && !range.count_only,
        Some(OpKind::RequestDeleteRange(delete)) => delete.prev_kv && !delete.range_end.is_empty(),
        Some(OpKind::RequestTxn(inner)) => has_range(inner),
        Some(OpKind::RequestPut(_)) | None => false,
    })
}

#[tonic::async_trait]
impl<A: Api> pb::kv_server::Kv for Front<A> {
    type RangeStreamStream = Chunks<A>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Answer<pb::RangeResponse> {
        let serializable = request.get_ref().serializable;
        let (api, request) = if serializable {
            self.admit_at_learner(Call::Range, request)?
        } else {
            self.admit(Call::Range, request)?
        };
        let any_size = !request.range_end.is_empty() && !request.count_only;
        let turn = self.turn(Call::Range, any_size).await?;
        let (listed, keys) = match api.range_list(request).await {
            Ok((listed, keys)) => (Ok(listed), keys),
            Err(error) => (Err(error), WrittenKeys::default()),
        };
        let written = keys.bytes();
        let mut answer = self.counted(Call::Range, listed, written, turn, any_size)?;
        if !keys.is_empty() {
            answer.extensions_mut().insert(keys);
        }
        Ok(answer)
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Answer<Self::RangeStreamStream> {
        let (api, request) = if request.get_ref().serializable {
            self.admit_at_learner(Call::RangeStream, request)?
        } else {
            self.admit(Call::RangeStream, request)?
        };
        let outcome = Outcome::new(&self.calls, Call::RangeStream);
        let chunks = Chunks::begin(Arc::new(api), request, outcome).await?;
        Ok(Response::new(chunks))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Answer<pb::PutResponse> {
        let (api, request) = self.admit(Call::Put, request)?;
        self.calls.done(Call::Put, api.put(request).await)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Answer<pb::DeleteRangeResponse> {
        let (api, request) = self.admit(Call::DeleteRange, request)?;
        let any_size = request.prev_kv && !request.range_end.is_empty();
        let turn = self.turn(Call::DeleteRange, any_size).await?;
        let deleted = api.delete_range(request).await;
        self.counted(Call::DeleteRange, deleted, 0, turn, true)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Answer<pb::TxnResponse> {
        let (api, request) = self.admit(Call::Txn, request)?;
        let turn = self.turn(Call::Txn, has_range(&request)).await?;
        let done = api.txn(request).await;
        self.counted(Call::Txn, done, 0, turn, true)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Answer<pb::CompactionResponse> {
        let (api, request) = self.admit(Call::Compact, request)?;
        self.calls.done(Call::Compact, api.compact(request).await)
    }
}

#[tonic::async_trait]
impl<A: Api> pb::cluster_server::Cluster for Front<A> {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Answer<pb::MemberListResponse> {
        let (api, request) = self.admit(Call::MemberList, request)?;
        self.calls
            .done(Call::MemberList, api.member_list(request).await)
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Answer<pb::MemberAddResponse> {
        let (api, request) = self.admit(Call::MemberAdd, request)?;
        self.calls
            .done(Call::MemberAdd, api.member_add(request).await)
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Answer<pb::MemberRemoveResponse> {
        let (api, request) = self.admit(Call::MemberRemove, request)?;
        self.calls
            .done(Call::MemberRemove, api.member_remove(request).await)
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Answer<pb::MemberUpdateResponse> {
        let (api, request) = self.admit(Call::MemberUpdate, request)?;
        self.calls
            .done(Call::MemberUpdate, api.member_update(request).await)
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Answer<pb::MemberPromoteResponse> {
        let (api, request) = self.admit(Call::MemberPromote, request)?;
        self.calls
            .done(Call::MemberPromote, api.member_promote(request).await)
    }
}

#[tonic::async_trait]
impl<A: Api> pb::maintenance_server::Maintenance for Front<A> {
    type SnapshotStream = Parts;

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Answer<pb::AlarmResponse> {
        let (api, request) = self.admit_voter(Call::Alarm, request)?;
        self.calls.done(Call::Alarm, api.alarm(request).await)
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let (api, request) = self.called(request);
        self.calls.done(Call::Status, api.status(request).await)
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Answer<pb::DefragmentResponse> {
        let (api, request) = self.admit_voter(Call::Defragment, request)?;
        self.calls
            .done(Call::Defragment, api.defragment(request).await)
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Answer<pb::HashResponse> {
        let (api, request) = self.admit_voter(Call::Hash, request)?;
        self.calls.done(Call::Hash, api.hash(request).await)
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Answer<pb::HashKvResponse> {
        let (api, request) = self.admit_voter(Call::HashKv, request)?;
        self.calls.done(Call::HashKv, api.hash_kv(request).await)
    }

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Answer<Self::SnapshotStream> {
        let (api, _) = self.called(request);
        let outcome = Outcome::new(&self.calls, Call::Snapshot);
        Parts::begin(api.snapshot().await, outcome).map(Response::new)
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Answer<pb::MoveLeaderResponse> {
        let (api, request) = self.admit_voter(Call::MoveLeader, request)?;
        self.calls
            .done(Call::MoveLeader, api.move_leader(request).await)
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Answer<pb::DowngradeResponse> {
        let (api, request) = self.admit_voter(Call::Downgrade, request)?;
        self.calls
            .done(Call::Downgrade, api.downgrade(request).await)
    }
}

/// The gRPC health protocol: the server as a whole, under the empty name, serves while it runs.
pub(super) struct HealthService;

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        let known = request.get_ref().service.is_empty();
        let status = if known {
            ServingStatus::Serving
        } else {
            ServingStatus::ServiceUnknown
        };
        let first = tokio_stream::once(Ok(HealthCheckResponse {
            status: status.into(),
        }));
        // It does not change while the server runs; the stream stays open until one side goes.
        Ok(Response::new(Box::pin(
            first.chain(tokio_stream::pending()),
        )))
    }
}
