//! A member alone over a real store, and clients that call its services as functions.

use std::sync::Arc;

use bytes::Bytes;
use multiraft::{GroupStatus, Reply};
use raft_log::NodeId;
use tonic::{Request, Status};

use crate::ApiError;
use crate::api::{ApiOptions, DataSize, EtcdApi, Replica, ScanPool, View};
use crate::auth::{AuthState, Authenticator, COST_MIN, TokenTable, Tokens};
use crate::lease::Renewal;
use crate::mvcc::{self, Backup, CommandOutput, LeaseInfo, ListShare, RangePart, Store};
use crate::pb::authpb::{Permission, permission::Type};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::server::grpc::{Calls, Front};
use crate::server::{ConnectionInfo, Metrics};
use crate::watch::WatchHub;
use crate::watch::testing::Keyspace;
use pb::auth_server::Auth;
use pb::kv_server::Kv;

/// A member alone, whose commands are applied where they are proposed.
#[derive(Clone)]
pub(super) struct Local(pub(super) Arc<Keyspace>);

impl Replica for Local {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        reply(Ok(self.0.run(payload)));
    }

    fn read_barrier(&self, done: Reply<()>) {
        done(Ok(()));
    }

    fn read_now(&self) -> bool {
        true
    }

    fn status(&self) -> GroupStatus {
        GroupStatus {
            node: NodeId(7),
            leader: Some(NodeId(7)),
            voters: vec![NodeId(7)],
            applied: self.0.applied(),
            ..GroupStatus::default()
        }
    }
}

pub(super) struct Applied(Arc<Store>);

impl View for Applied {
    fn check_range(&self, request: &pb::RangeRequest) -> Result<(), ApiError> {
        mvcc::check_range(request)
    }
    fn check_put(&self, request: &pb::PutRequest) -> Result<(), ApiError> {
        mvcc::check_put(request)
    }
    fn check_delete(&self, request: &pb::DeleteRangeRequest) -> Result<(), ApiError> {
        mvcc::check_delete(request)
    }
    fn check_txn(&self, request: &pb::TxnRequest, ops_max: usize) -> Result<(), ApiError> {
        mvcc::check_txn(request, ops_max)
    }
    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ApiError> {
        self.0.range(request)
    }
    fn range_at_once(&self, request: &pb::RangeRequest) -> Option<pb::RangeResponse> {
        self.0.range_at_once(request)
    }

    fn list_in_shares(&self, request: &pb::RangeRequest) -> Option<[ListShare; 2]> {
        self.0.list_in_shares(request)
    }

    fn range_in_parts(
        &self,
        request: &pb::RangeRequest,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<pb::RangeResponse, ApiError> {
        self.0.range_in_parts(request, bytes_max, write)
    }
    fn range_part(
        &self,
        request: &pb::RangeRequest,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<RangePart, ApiError> {
        self.0.range_part(request, keys_max, bytes_max)
    }
    fn read_txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ApiError> {
        self.0.read_txn(request)
    }
    fn revision(&self) -> i64 {
        self.0.revision()
    }
    fn compact_revision(&self) -> i64 {
        self.0.compact_revision()
    }
    fn finished_compact_revision(&self) -> i64 {
        self.0.finished_compact_revision()
    }
    fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.0.lease(id)
    }
    fn lease_remaining(&self, id: i64) -> Option<i64> {
        self.0.lease(id).map(|lease| lease.ttl)
    }
    fn lease_leads_in(&self, _term: u64) -> bool {
        true
    }
    fn lease_renew(&self, id: i64, _settled: u64) -> Renewal {
        match self.0.lease(id) {
            Some(lease) => Renewal::Renewed { ttl: lease.ttl },
            None => Renewal::NotFound,
        }
    }
    fn lease_record_rests(&self) {}
    fn lease_rests_recorded(&self) -> bool {
        true
    }
    fn leases(&self) -> Vec<i64> {
        self.0.leases().into_iter().map(|lease| lease.id).collect()
    }
    fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError> {
        self.0.lease_keys(id)
    }
    fn state_hash(&self) -> Result<u64, ApiError> {
        self.0.state_hash()
    }
    fn backup(&self) -> Result<Backup, ApiError> {
        self.0.backup()
    }
    fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, ApiError> {
        self.0.hash_kv(revision)
    }
    fn members(&self) -> Vec<pb::Member> {
        Vec::new()
    }
    fn joins_as_voter(&self, _id: u64) -> bool {
        false
    }
    fn data_size(&self) -> DataSize {
        DataSize::default()
    }
    fn quota_bytes(&self) -> u64 {
        0
    }
    fn check_space(&self, _bytes: usize) -> Result<(), ApiError> {
        Ok(())
    }
    fn check_sound(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn alarms(&self) -> Vec<pb::AlarmMember> {
        Vec::new()
    }
    fn auth_enabled(&self) -> bool {
        self.0.auth_enabled()
    }
    fn auth(&self) -> Arc<AuthState> {
        self.0.auth()
    }
}

pub(super) type LocalApi = EtcdApi<Local, Applied>;

pub(super) struct Rig {
    pub(super) keyspace: Arc<Keyspace>,
    pub(super) api: Arc<LocalApi>,
    pub(super) front: Front<LocalApi>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) metrics: Arc<Metrics>,
}

/// Who asks: a token, or the name of a certificate.
#[derive(Clone)]
pub(super) enum By<'a> {
    Nobody,
    Token(&'a str),
    Bearer(&'a str),
    Certificate(&'a str),
    /// A gateway's certificate.
    Gateway(&'a str),
}

pub(super) fn asked<T>(by: &By<'_>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    let name = match by {
        By::Nobody => return request,
        By::Token(token) => {
            metadata.insert("token", token.parse().unwrap());
            return request;
        }
        By::Bearer(token) => {
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            return request;
        }
        By::Certificate(name) => name,
        By::Gateway(name) => {
            metadata.insert("grpcgateway-accept", "*/*".parse().unwrap());
            name
        }
    };
    let common_name = Some(Arc::from(*name));
    request
        .extensions_mut()
        .insert(ConnectionInfo { common_name });
    request
}

impl Rig {
    pub(super) fn new() -> Self {
        let tokens = Arc::<TokenTable>::default();
        let keyspace = Arc::new(Keyspace::new(WatchHub::new()));
        keyspace.tell_tokens(tokens.clone());
        let authenticator = Authenticator::start(Tokens::Simple(tokens), COST_MIN);
        let authenticator = Arc::new(authenticator.unwrap());
        let view = Arc::new(Applied(Arc::clone(&keyspace.store)));
        let scans = Arc::new(ScanPool::start(1, 4).unwrap());
        let options = ApiOptions::new(5, 7);
        let api = EtcdApi::new(Local(Arc::clone(&keyspace)), view, scans, options)
            .with_authenticator(Arc::clone(&authenticator));
        let (api, metrics) = (Arc::new(api), Arc::new(Metrics::new()));
        let front = Front::new(Arc::clone(&api), Arc::new(Calls::new(&metrics)));
        Self {
            keyspace,
            api,
            front,
            authenticator,
            metrics,
        }
    }

    /// Root, and alice who reads and writes `a` to `d`; enabled. Their tokens.
    pub(super) async fn enabled() -> (Self, String, String) {
        let rig = Self::new();
        let by = By::Nobody;
        rig.add_user(&by, "root", "top").await.unwrap();
        rig.add_user(&by, "alice", "secret").await.unwrap();
        let name = "r".to_owned();
        let request = asked(&by, pb::AuthRoleAddRequest { name });
        rig.front.role_add(request).await.unwrap();
        rig.grant(&by, "r", "a", "d").await.unwrap();
        rig.hold(&by, "root", "root").await.unwrap();
        rig.hold(&by, "alice", "r").await.unwrap();
        let request = asked(&by, pb::AuthEnableRequest {});
        rig.front.auth_enable(request).await.unwrap();
        let root = rig.log_in("root", "top").await.unwrap();
        let alice = rig.log_in("alice", "secret").await.unwrap();
        (rig, root, alice)
    }

    pub(super) async fn add_user(
        &self,
        by: &By<'_>,
        name: &str,
        password: &str,
    ) -> Result<(), Status> {
        let (name, password) = (name.to_owned(), password.to_owned());
        let add = pb::AuthUserAddRequest {
            name,
            password,
            ..Default::default()
        };
        self.front.user_add(asked(by, add)).await.map(drop)
    }

    pub(super) async fn hold(&self, by: &By<'_>, user: &str, role: &str) -> Result<(), Status> {
        let (user, role) = (user.to_owned(), role.to_owned());
        let grant = pb::AuthUserGrantRoleRequest { user, role };
        self.front.user_grant_role(asked(by, grant)).await.map(drop)
    }

    pub(super) async fn grant(
        &self,
        by: &By<'_>,
        role: &str,
        key: &str,
        end: &str,
    ) -> Result<(), Status> {
        let perm = Permission {
            perm_type: Type::Readwrite.into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
        };
        let grant = pb::AuthRoleGrantPermissionRequest {
            name: role.to_owned(),
            perm: Some(perm),
        };
        let granted = self.front.role_grant_permission(asked(by, grant)).await;
        granted.map(drop)
    }

    pub(super) async fn revoke(
        &self,
        by: &By<'_>,
        role: &str,
        key: &str,
        end: &str,
    ) -> Result<(), Status> {
        let revoke = pb::AuthRoleRevokePermissionRequest {
            role: role.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
        };
        let revoked = self.front.role_revoke_permission(asked(by, revoke)).await;
        revoked.map(drop)
    }

    pub(super) async fn log_in(&self, name: &str, password: &str) -> Result<String, Status> {
        let (name, password) = (name.to_owned(), password.to_owned());
        let login = pb::AuthenticateRequest { name, password };
        let answer = self.front.authenticate(Request::new(login)).await?;
        Ok(answer.into_inner().token)
    }

    pub(super) async fn put(&self, by: &By<'_>, key: &str) -> Result<(), Status> {
        let put = pb::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        };
        self.front.put(asked(by, put)).await.map(drop)
    }

    pub(super) async fn get(&self, by: &By<'_>, key: &str, end: &str) -> Result<(), Status> {
        let range = pb::RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            ..Default::default()
        };
        self.front.range(asked(by, range)).await.map(drop)
    }
}
