//! The calls that give one answer, on one server, and their answers with what must differ taken out.

use std::collections::BTreeSet;

use flotilla_tests::process::{PATIENCE, Server};
use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::v3electionpb as election;
use kv_server::pb::v3lockpb as lock;
use multiraft::tls::{ClientTls, connect};
use pb::response_op::Response;
use pb::watch_request::RequestUnion;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::ties;

/// Far above what a call of the test answers with; a server's own limits are what is compared.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Seconds by which what a lease has left may differ: the servers are asked one after the other.
const LEASE_SLACK: i64 = 30;
/// In the place of a URL or an id, that of the server itself.
pub(crate) const ITSELF: &str = "itself";

macro_rules! calls {
    ($($name:ident: $client:ident.$method:ident($request:ty) -> $answer:ty;)*) => {
        /// One request.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Call {
            $($name($request),)*
            KeepAlive(pb::LeaseKeepAliveRequest),
            Observe(election::LeaderRequest),
            /// A watcher on a stream of its own, and what it is told first.
            Watch(pb::WatchCreateRequest),
        }

        /// What came of it.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Answer {
            $($name($answer),)*
            KeepAlive(pb::LeaseKeepAliveResponse),
            Observe(election::LeaderResponse),
            Watch(pb::WatchResponse),
            Refused(Code, String),
        }

        impl Answer {
            pub(crate) fn header(&self) -> Option<&pb::ResponseHeader> {
                match self {
                    $(Self::$name(answer) => answer.header.as_ref(),)*
                    Self::KeepAlive(answer) => answer.header.as_ref(),
                    Self::Observe(answer) => answer.header.as_ref(),
                    Self::Watch(answer) => answer.header.as_ref(),
                    Self::Refused(..) => None,
                }
            }

            fn header_mut(&mut self) -> Option<&mut pb::ResponseHeader> {
                match self {
                    $(Self::$name(answer) => answer.header.as_mut(),)*
                    Self::KeepAlive(answer) => answer.header.as_mut(),
                    Self::Observe(answer) => answer.header.as_mut(),
                    Self::Watch(answer) => answer.header.as_mut(),
                    Self::Refused(..) => None,
                }
            }
        }

        impl Clients {
            async fn ask(&mut self, call: Call) -> Result<Answer, Status> {
                Ok(match call {
                    $(Call::$name(request) => {
                        let request = self.signed(request);
                        Answer::$name(self.$client.$method(request).await?.into_inner())
                    })*
                    Call::KeepAlive(request) => {
                        let requests = self.signed(tokio_stream::once(request));
                        let mut answers = self.lease.lease_keep_alive(requests).await?.into_inner();
                        let answer = first(answers.message().await?)?;
                        to_the_end(answers).await?;
                        Answer::KeepAlive(answer)
                    }
                    Call::Observe(request) => {
                        let request = self.signed(request);
                        let answers = self.election.observe(request).await?;
                        Answer::Observe(first(answers.into_inner().message().await?)?)
                    }
                    Call::Watch(request) => {
                        // A connection of its own: such a stream has no end, and is reset.
                        let channel = connect(&self.endpoint, self.tls.as_ref()).await;
                        let mut watch = pb::watch_client::WatchClient::new(channel.unwrap());
                        let request_union = Some(RequestUnion::CreateRequest(request));
                        let create = tokio_stream::once(pb::WatchRequest { request_union });
                        let requests = self.signed(create.chain(tokio_stream::pending()));
                        let mut answers = watch.watch(requests).await?.into_inner();
                        Answer::Watch(first(answers.message().await?)?)
                    }
                })
            }
        }
    };
}

calls! {
    AuthEnable: auth.auth_enable(pb::AuthEnableRequest) -> pb::AuthEnableResponse;
    AuthDisable: auth.auth_disable(pb::AuthDisableRequest) -> pb::AuthDisableResponse;
    AuthStatus: auth.auth_status(pb::AuthStatusRequest) -> pb::AuthStatusResponse;
    Authenticate: auth.authenticate(pb::AuthenticateRequest) -> pb::AuthenticateResponse;
    UserAdd: auth.user_add(pb::AuthUserAddRequest) -> pb::AuthUserAddResponse;
    UserGet: auth.user_get(pb::AuthUserGetRequest) -> pb::AuthUserGetResponse;
    UserList: auth.user_list(pb::AuthUserListRequest) -> pb::AuthUserListResponse;
    UserDelete: auth.user_delete(pb::AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse;
    ChangePassword: auth.user_change_password(pb::AuthUserChangePasswordRequest) -> pb::AuthUserChangePasswordResponse;
    GrantRole: auth.user_grant_role(pb::AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse;
    RevokeRole: auth.user_revoke_role(pb::AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse;
    RoleAdd: auth.role_add(pb::AuthRoleAddRequest) -> pb::AuthRoleAddResponse;
    RoleGet: auth.role_get(pb::AuthRoleGetRequest) -> pb::AuthRoleGetResponse;
    RoleList: auth.role_list(pb::AuthRoleListRequest) -> pb::AuthRoleListResponse;
    RoleDelete: auth.role_delete(pb::AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse;
    GrantPermission: auth.role_grant_permission(pb::AuthRoleGrantPermissionRequest) -> pb::AuthRoleGrantPermissionResponse;
    RevokePermission: auth.role_revoke_permission(pb::AuthRoleRevokePermissionRequest) -> pb::AuthRoleRevokePermissionResponse;
    Range: kv.range(pb::RangeRequest) -> pb::RangeResponse;
    Put: kv.put(pb::PutRequest) -> pb::PutResponse;
    DeleteRange: kv.delete_range(pb::DeleteRangeRequest) -> pb::DeleteRangeResponse;
    Txn: kv.txn(pb::TxnRequest) -> pb::TxnResponse;
    Compact: kv.compact(pb::CompactionRequest) -> pb::CompactionResponse;
    Grant: lease.lease_grant(pb::LeaseGrantRequest) -> pb::LeaseGrantResponse;
    Revoke: lease.lease_revoke(pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse;
    TimeToLive: lease.lease_time_to_live(pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse;
    Leases: lease.lease_leases(pb::LeaseLeasesRequest) -> pb::LeaseLeasesResponse;
    MemberList: cluster.member_list(pb::MemberListRequest) -> pb::MemberListResponse;
    MemberAdd: cluster.member_add(pb::MemberAddRequest) -> pb::MemberAddResponse;
    MemberRemove: cluster.member_remove(pb::MemberRemoveRequest) -> pb::MemberRemoveResponse;
    MemberUpdate: cluster.member_update(pb::MemberUpdateRequest) -> pb::MemberUpdateResponse;
    MemberPromote: cluster.member_promote(pb::MemberPromoteRequest) -> pb::MemberPromoteResponse;
    Alarm: maintenance.alarm(pb::AlarmRequest) -> pb::AlarmResponse;
    Status: maintenance.status(pb::StatusRequest) -> pb::StatusResponse;
    HashKv: maintenance.hash_kv(pb::HashKvRequest) -> pb::HashKvResponse;
    Hash: maintenance.hash(pb::HashRequest) -> pb::HashResponse;
    Defragment: maintenance.defragment(pb::DefragmentRequest) -> pb::DefragmentResponse;
    MoveLeader: maintenance.move_leader(pb::MoveLeaderRequest) -> pb::MoveLeaderResponse;
    Lock: lock.lock(lock::LockRequest) -> lock::LockResponse;
    Unlock: lock.unlock(lock::UnlockRequest) -> lock::UnlockResponse;
    Campaign: election.campaign(election::CampaignRequest) -> election::CampaignResponse;
    Proclaim: election.proclaim(election::ProclaimRequest) -> election::ProclaimResponse;
    Leader: election.leader(election::LeaderRequest) -> election::LeaderResponse;
    Resign: election.resign(election::ResignRequest) -> election::ResignResponse;
}

/// A stream that is dropped before its end is reset, and a connection takes no more than a thousand of them.
async fn to_the_end<T>(mut answers: Streaming<T>) -> Result<(), Status> {
    while answers.message().await?.is_some() {}
    Ok(())
}

fn first<T>(answer: Option<T>) -> Result<T, Status> {
    answer.ok_or_else(|| Status::internal("the stream ended without an answer"))
}

/// The stubs of one server, on one connection.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) channel: Channel,
    /// With which its calls are made.
    pub(crate) token: Option<MetadataValue<Ascii>>,
    auth: pb::auth_client::AuthClient<Channel>,
    endpoint: Endpoint,
    tls: Option<ClientTls>,
    kv: pb::kv_client::KvClient<Channel>,
    lease: pb::lease_client::LeaseClient<Channel>,
    cluster: pb::cluster_client::ClusterClient<Channel>,
    maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
    lock: lock::lock_client::LockClient<Channel>,
    election: election::election_client::ElectionClient<Channel>,
    peer_url: String,
}

impl Clients {
    pub(crate) async fn connect(server: &Server, peer_port: u16) -> Self {
        Self::connect_over(server, peer_port, None).await
    }

    pub(crate) async fn connect_over(
        server: &Server,
        peer_port: u16,
        tls: Option<&ClientTls>,
    ) -> Self {
        let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
        let channel = connect(&endpoint, tls).await.unwrap();
        let kv = pb::kv_client::KvClient::new(channel.clone());
        Self {
            kv: kv.max_decoding_message_size(MESSAGE_BYTES_MAX),
            lease: pb::lease_client::LeaseClient::new(channel.clone()),
            cluster: pb::cluster_client::ClusterClient::new(channel.clone()),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel.clone()),
            lock: lock::lock_client::LockClient::new(channel.clone()),
            election: election::election_client::ElectionClient::new(channel.clone()),
            auth: pb::auth_client::AuthClient::new(channel.clone()),
            endpoint,
            tls: tls.cloned(),
            token: None,
            peer_url: format!("http://127.0.0.1:{peer_port}"),
            channel,
        }
    }

    fn signed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// As [`Self::call`], with the token that came of it.
    pub(crate) async fn log_in(
        &mut self,
        request: pb::AuthenticateRequest,
    ) -> (Answer, Option<MetadataValue<Ascii>>) {
        match self.auth.authenticate(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let token = answer.token.parse().unwrap();
                (normal(Answer::Authenticate(answer)), Some(token))
            }
            Err(status) => (refused(&status), None),
        }
    }

    /// Asks, and takes out of the answer what no two servers have in common.
    pub(crate) async fn call(&mut self, mut call: Call) -> Answer {
        if let Call::MemberAdd(request) = &mut call {
            for url in request.peer_ur_ls.iter_mut().filter(|url| *url == ITSELF) {
                url.clone_from(&self.peer_url);
            }
        }
        let asked = timeout(PATIENCE, self.ask(call.clone())).await;
        match asked.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(mut answer) => {
                ties::settle(&call, &mut answer);
                normal(answer)
            }
            Err(status) => refused(&status),
        }
    }
}

fn refused(status: &Status) -> Answer {
    Answer::Refused(status.code(), status.message().to_owned())
}

/// Ids of the cluster and its members, terms, versions and sizes are each server's own.
fn normal(mut answer: Answer) -> Answer {
    if let Some(header) = answer.header_mut() {
        mask(header);
    }
    match &mut answer {
        Answer::Txn(txn) => normal_txn(txn),
        Answer::TimeToLive(left) => {
            // The order of the keys is that of a hash map.
            left.keys.sort();
        }
        // Sorted by the time of their end.
        Answer::Leases(leases) => leases.leases.sort_by_key(|lease| lease.id),
        Answer::MemberList(list) => normal_members(&mut list.members),
        Answer::MemberAdd(added) => {
            added.member.iter_mut().for_each(normal_member);
            normal_members(&mut added.members);
        }
        Answer::MemberRemove(left) => normal_members(&mut left.members),
        Answer::MemberUpdate(left) => normal_members(&mut left.members),
        Answer::MemberPromote(left) => normal_members(&mut left.members),
        Answer::Status(status) => {
            *status = pb::StatusResponse {
                header: status.header,
                leader: u64::from(status.leader != 0),
                errors: std::mem::take(&mut status.errors),
                is_learner: status.is_learner,
                ..Default::default()
            };
        }
        Answer::HashKv(hash) => (hash.hash, hash.hash_revision) = (0, 0),
        Answer::Hash(hash) => hash.hash = 0,
        // Sorted by their keys alone.
        Answer::RoleGet(role) => role
            .perm
            .sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end))),
        Answer::Authenticate(answer) => answer.token = "a token".to_owned(),
        _ => {}
    }
    answer
}

/// The answers in a transaction have headers too, of which only the revision is filled in.
fn normal_txn(txn: &mut pb::TxnResponse) {
    for op in &mut txn.responses {
        match &mut op.response {
            Some(Response::ResponseRange(one)) => one.header.iter_mut().for_each(mask),
            Some(Response::ResponsePut(one)) => one.header.iter_mut().for_each(mask),
            Some(Response::ResponseDeleteRange(one)) => one.header.iter_mut().for_each(mask),
            Some(Response::ResponseTxn(one)) => {
                one.header.iter_mut().for_each(mask);
                normal_txn(one);
            }
            None => {}
        }
    }
}

pub(crate) fn mask(header: &mut pb::ResponseHeader) {
    *header = pb::ResponseHeader {
        revision: header.revision,
        ..Default::default()
    };
}

/// Sorted by their ids.
fn normal_members(members: &mut [pb::Member]) {
    members.iter_mut().for_each(normal_member);
    members.sort_by(|a, b| a.name.cmp(&b.name));
}

fn normal_member(member: &mut pb::Member) {
    member.id = 0;
    for url in member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls) {
        "a URL".clone_into(url);
    }
}

/// What a lease has left depends on when it was asked, and on whether etcd alone renewed it.
pub(crate) fn forgive_time(etcd: &Answer, ours: &mut Answer, renewed_by_etcd: &BTreeSet<i64>) {
    let (Answer::TimeToLive(etcd), Answer::TimeToLive(ours)) = (etcd, ours) else {
        return;
    };
    let is_near = (etcd.ttl - ours.ttl).abs() <= LEASE_SLACK;
    let has_more = renewed_by_etcd.contains(&etcd.id) && etcd.ttl > ours.ttl && ours.ttl > 0;
    if etcd.ttl > 0 && (is_near || has_more) {
        ours.ttl = etcd.ttl;
    }
}
