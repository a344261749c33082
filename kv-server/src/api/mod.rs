//! What a front end can ask, as a trait, and etcd's rules for requests in front of one replicated store.
//!
//! Front ends (`server`) are generic over [`Api`]; [`EtcdApi`] implements it over a [`Replica`], which orders writes, and
//! a [`View`], which reads applied state. It opens no socket, and it streams nothing: watches have their own way, and a
//! stream of keepalives, or of the parts of a range, is a call for each of its messages.

mod etcd;
mod ids;
mod scan;
#[cfg(test)]
pub(crate) mod testing;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use multiraft::{GroupStatus, HostError, Reply};
use raft_log::NodeId;
use tokio::sync::mpsc;

use crate::ApiError;
use crate::auth::{AuthState, Caller};
use crate::codec::WrittenKeys;
use crate::lease::Renewal;
use crate::mvcc::{Backup, CommandOutput, LeaseInfo, ListShare, RangePart};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;

pub use etcd::{ApiOptions, EtcdApi, RangeCursor, STORAGE_VERSION, VERSION};
pub use ids::{cluster_id, member_id, restored_cluster_id};
pub use scan::ScanPool;

/// One group, as the front end sees it: it orders commands and says when local state is fresh.
pub trait Replica: Send + Sync + 'static {
    /// Proposes an encoded command. `reply` is called once.
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>);

    /// Calls `done` once local state holds all that was acknowledged before this call.
    fn read_barrier(&self, done: Reply<()>);

    /// True when that holds now.
    fn read_now(&self) -> bool;

    /// Lets the leader do what leases and changes of the members need, possibly twice. `reply` is called once. Without
    /// an implementation there is no other member.
    fn call_leader(&self, payload: Bytes, reply: Reply<Bytes>) {
        drop(payload);
        reply(Err(HostError::NotLeader(None)));
    }

    /// Asks this member to hand its leadership over; [`Self::status`] shows what came of it. Without an implementation
    /// nothing does.
    fn hand_over(&self, to: NodeId) {
        let _ = to;
    }

    /// True when this member gets the log and does not vote. Without an implementation it votes.
    fn learns(&self) -> bool {
        false
    }

    /// The group as last published.
    fn status(&self) -> GroupStatus;

    /// The current term; each answer carries it, so an implementation may have a cheaper way than the whole status.
    fn term(&self) -> u64 {
        self.status().term.0
    }
}

/// Applied state: reads, and the rules by which it understands requests. Headers carry the revision only.
pub trait View: Send + Sync + 'static {
    /// Refuses a range that cannot be served.
    fn check_range(&self, request: &pb::RangeRequest) -> Result<(), ApiError>;

    /// Refuses a put that cannot be applied.
    fn check_put(&self, request: &pb::PutRequest) -> Result<(), ApiError>;

    /// Refuses a deletion that cannot be applied.
    fn check_delete(&self, request: &pb::DeleteRangeRequest) -> Result<(), ApiError>;

    /// Refuses a transaction that cannot be applied, or has more operations than allowed.
    fn check_txn(&self, request: &pb::TxnRequest, max_txn_ops: usize) -> Result<(), ApiError>;

    /// Reads a point or a range.
    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ApiError>;

    /// As [`Self::range`], if the answer is short and in memory, so that no thread has to wait for it.
    fn range_at_once(&self, request: &pb::RangeRequest) -> Option<pb::RangeResponse>;

    /// The halves of a list that is so long that two threads had better read it.
    fn list_in_shares(&self, request: &pb::RangeRequest) -> Option<[ListShare; 2]>;

    /// As [`Self::range`], but the keys of a list that is longer than `bytes_max` are given to `write`, part by part, and
    /// are not in the answer.
    fn range_in_parts(
        &self,
        request: &pb::RangeRequest,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<pb::RangeResponse, ApiError>;

    /// The first keys of a range that has an end: at most so many, and no more once there are so many bytes of them.
    fn range_part(
        &self,
        request: &pb::RangeRequest,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<RangePart, ApiError>;

    /// Runs a transaction whose operations are all ranges, on one snapshot.
    fn read_txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ApiError>;

    /// The newest revision.
    fn revision(&self) -> i64;

    /// The compaction floor.
    fn compact_revision(&self) -> i64;

    /// The newest compaction whose history has been removed.
    fn finished_compact_revision(&self) -> i64;

    /// A lease, if it exists.
    fn lease(&self, id: i64) -> Option<LeaseInfo>;

    /// The seconds that a lease has left; none when its deadline is not known here.
    fn lease_remaining(&self, id: i64) -> Option<i64>;

    /// True when this member keeps the deadlines of leases in a term.
    fn lease_leads_in(&self, term: u64) -> bool;

    /// Gives a lease its full time again, by the rules of [`crate::lease::Lessor::renew`].
    fn lease_renew(&self, id: i64, settled: u64) -> Renewal;

    /// Asks for records of what leases have left, as [`crate::lease::Lessor::record_rests`] does.
    fn lease_record_rests(&self);

    /// True once these are applied.
    fn lease_rests_recorded(&self) -> bool;

    /// The ids of all leases.
    fn leases(&self) -> Vec<i64>;

    /// The keys attached to a lease, sorted.
    fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError>;

    /// A hash of all applied state.
    fn state_hash(&self) -> Result<u64, ApiError>;

    /// All applied state as of now, to be written as a backup.
    fn backup(&self) -> Result<Backup, ApiError>;

    /// A hash of all versions up to a revision, 0 for the newest, with the compaction floor and that revision.
    fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, ApiError>;

    /// The members, ascending by id.
    fn members(&self) -> Vec<pb::Member>;

    /// True for a member that will vote without being asked: clients do not call it a learner.
    fn joins_as_voter(&self, id: u64) -> bool;

    /// What the data takes on this member.
    fn data_size(&self) -> DataSize;

    /// The quota that its bytes may not pass; 0 for none.
    fn quota_bytes(&self) -> u64;

    /// Refuses what adds about so many bytes, when there is no room for them here.
    fn check_space(&self, bytes: usize) -> Result<(), ApiError>;

    /// Refuses everything while the data of this member, or of the cluster, is known to be damaged.
    fn check_sound(&self) -> Result<(), ApiError>;

    /// The alarms that are raised, and what this member knows of its own disk.
    fn alarms(&self) -> Vec<pb::AlarmMember>;

    /// True while every call needs a user. Without an implementation none ever does.
    fn auth_enabled(&self) -> bool {
        false
    }

    /// Users and roles. Without an implementation there are none.
    fn auth(&self) -> Arc<AuthState> {
        Arc::default()
    }
}

/// The parts of a backup, as they are made.
pub type SnapshotParts = mpsc::Receiver<Result<pb::SnapshotResponse, ApiError>>;

macro_rules! unary_calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $response:ident;)*) => {
        /// The calls of etcd v3 that give one answer. Each answer's header is complete.
        pub trait Api: AuthApi {
            $($(#[$doc])*
            fn $name(
                &self,
                request: pb::$request,
            ) -> impl Future<Output = Result<pb::$response, ApiError>> + Send;)*

            /// The same, on behalf of a caller. Without one, calls are of nobody.
            #[must_use]
            fn called_by(&self, caller: Caller) -> Self
            where
                Self: Sized;

            /// True when this member is a learner, which serves next to nothing.
            fn is_learner(&self) -> bool;

            /// True when a leader is known: calls that carry `hasleader` are refused otherwise.
            fn has_leader(&self) -> bool;

            /// Ends once no leader was known for about three election timeouts: streams that carry `hasleader` are
            /// ended then.
            fn leader_lost(&self) -> impl Future<Output = ()> + Send;

            /// As [`Self::range`]; the keys of a long list are written out, and not in the answer.
            fn range_list(
                &self,
                request: pb::RangeRequest,
            ) -> impl Future<Output = Result<(pb::RangeResponse, WrittenKeys), ApiError>> + Send;

            /// Begins a range that is answered in parts, all as of the revision at which the first is read.
            fn range_begin(
                &self,
                request: pb::RangeRequest,
            ) -> impl Future<Output = Result<RangeCursor, ApiError>> + Send;

            /// The next part of such a range, and where it goes on. The header is complete in the last one, and none is
            /// in those before; so are `more` and `count`.
            fn range_next(
                &self,
                cursor: RangeCursor,
            ) -> impl Future<Output = Result<(pb::RangeResponse, Option<RangeCursor>), ApiError>> + Send;

            /// A backup of this member's state, part by part. Whoever does not read for a minute gets no more.
            fn snapshot(&self) -> impl Future<Output = Result<SnapshotParts, ApiError>> + Send;

            /// The alarms, as this member knows them.
            fn alarms(&self) -> Vec<pb::AlarmMember>;

            /// False while the data of this member, or of the cluster, is known to be damaged.
            fn is_sound(&self) -> bool;

            /// What `/metrics` shows.
            fn gauges(&self) -> Gauges;
        }
    };
}

unary_calls! {
    /// Reads a point or a range.
    range: RangeRequest -> RangeResponse;
    /// Writes a key.
    put: PutRequest -> PutResponse;
    /// Deletes a point or a range.
    delete_range: DeleteRangeRequest -> DeleteRangeResponse;
    /// Compares, then runs one of two lists, at one revision.
    txn: TxnRequest -> TxnResponse;
    /// Drops history.
    compact: CompactionRequest -> CompactionResponse;
    /// Creates a lease.
    lease_grant: LeaseGrantRequest -> LeaseGrantResponse;
    /// Ends a lease and its keys.
    lease_revoke: LeaseRevokeRequest -> LeaseRevokeResponse;
    /// Renews a lease, at the leader; the answer's TTL is 0 when there is no such lease.
    lease_keep_alive: LeaseKeepAliveRequest -> LeaseKeepAliveResponse;
    /// What a lease has left; -1 for one that does not exist.
    lease_time_to_live: LeaseTimeToLiveRequest -> LeaseTimeToLiveResponse;
    /// All leases.
    lease_leases: LeaseLeasesRequest -> LeaseLeasesResponse;
    /// The members.
    member_list: MemberListRequest -> MemberListResponse;
    /// A new member, a learner or one that votes as soon as it holds the log.
    member_add: MemberAddRequest -> MemberAddResponse;
    /// A member leaves, for ever.
    member_remove: MemberRemoveRequest -> MemberRemoveResponse;
    /// Other peer URLs of a member.
    member_update: MemberUpdateRequest -> MemberUpdateResponse;
    /// A learner becomes a voter.
    member_promote: MemberPromoteRequest -> MemberPromoteResponse;
    /// This member, without consensus.
    status: StatusRequest -> StatusResponse;
    /// The alarms.
    alarm: AlarmRequest -> AlarmResponse;
    /// Nothing to do: space is reclaimed online.
    defragment: DefragmentRequest -> DefragmentResponse;
    /// A hash of all keys with their history, as of a revision.
    hash_kv: HashKvRequest -> HashKvResponse;
    /// A hash of all applied state.
    hash: HashRequest -> HashResponse;
    /// This version cannot become an older one, and says so.
    downgrade: DowngradeRequest -> DowngradeResponse;
    /// Hands leadership over to a voter; answered once that one leads.
    move_leader: MoveLeaderRequest -> MoveLeaderResponse;
}

macro_rules! auth_calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $response:ident;)*) => {
        /// The calls of etcd's Auth service. Each answer's header is complete.
        pub trait AuthApi: Send + Sync + 'static {
            $($(#[$doc])*
            fn $name(
                &self,
                request: pb::$request,
            ) -> impl Future<Output = Result<pb::$response, ApiError>> + Send;)*
        }
    };
}

auth_calls! {
    /// Every call needs a user from now on.
    auth_enable: AuthEnableRequest -> AuthEnableResponse;
    /// No call does any more.
    auth_disable: AuthDisableRequest -> AuthDisableResponse;
    /// Which of the two, and the revision of users and roles.
    auth_status: AuthStatusRequest -> AuthStatusResponse;
    /// A token for a name and a password.
    authenticate: AuthenticateRequest -> AuthenticateResponse;
    /// A new user.
    user_add: AuthUserAddRequest -> AuthUserAddResponse;
    /// The roles of a user.
    user_get: AuthUserGetRequest -> AuthUserGetResponse;
    /// All users.
    user_list: AuthUserListRequest -> AuthUserListResponse;
    /// A user is none any more.
    user_delete: AuthUserDeleteRequest -> AuthUserDeleteResponse;
    /// Another password; tokens of the user count no more.
    user_change_password: AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse;
    /// A user gets a role.
    user_grant_role: AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse;
    /// A user loses a role.
    user_revoke_role: AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse;
    /// A new role.
    role_add: AuthRoleAddRequest -> AuthRoleAddResponse;
    /// The permissions of a role.
    role_get: AuthRoleGetRequest -> AuthRoleGetResponse;
    /// All roles.
    role_list: AuthRoleListRequest -> AuthRoleListResponse;
    /// A role is none any more, of nobody.
    role_delete: AuthRoleDeleteRequest -> AuthRoleDeleteResponse;
    /// A role gets a permission, or another kind of one that it has.
    role_grant_permission: AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse;
    /// A role loses a permission.
    role_revoke_permission: AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse;
}

/// What the data of a keyspace takes on a member, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataSize {
    /// What counts for the quota; never less than `in_use`.
    pub bytes: u64,
    /// What its keys with their history, and its leases, take.
    pub in_use: u64,
}

/// Numbers about the group and the store at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// A leader is known.
    pub has_leader: bool,
    /// This member leads.
    pub is_leader: bool,
    /// This member has no vote.
    pub is_learner: bool,
    /// How often a leader was seen to begin.
    pub leader_changes: u64,
    /// The commit index.
    pub committed: u64,
    /// The applied index.
    pub applied: u64,
    /// Proposals that wait for an answer.
    pub proposals_pending: u64,
    /// Proposals that got no answer of the state machine.
    pub proposals_failed: u64,
    /// What the data takes.
    pub data_size: DataSize,
    /// What its bytes may not pass; 0 for no quota.
    pub quota_bytes: u64,
    /// The alarm of that kind is raised, whoever it is of.
    pub no_space: bool,
    /// The same.
    pub corrupt: bool,
    /// The newest revision.
    pub revision: i64,
    /// The compaction floor.
    pub compact_revision: i64,
    /// The log was begun anew after damage, and has not caught up.
    pub guarded: bool,
}
