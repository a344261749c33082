//! etcd's rules over one group: validation, sizes, deadlines, linearizable reads, headers.
//!
//! A write is encoded once, proposed, and answered by what applying it gave. A read waits until local state is fresh
//! (for a sole voter it always is) and reads there; ranges run on the scan pool, points on the caller's thread. What
//! happened to a write that got no answer in time is unknown, and the error says so.

mod access;
mod auth;
mod cost;
mod downgrade;
mod keep_alive;
mod members;
mod range_stream;
mod snapshot;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use multiraft::HostError;
use prost::Message;
use raft_log::NodeId;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{Api, Gauges, Replica, ScanPool, SnapshotParts, View};
use crate::ApiError;
use crate::auth::{self as rules, Authenticator, Caller};
use crate::codec::WrittenKeys;
use crate::lease::RECORD_RESTS_MAX;
use crate::mvcc::{self, BackupSource, CommandResult, may_put};
use crate::pb::command::{Command, LeaseGrant, SetAlarm, command::Op};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::pb::peer::member_call;
use crate::reply;
use pb::request_op::Request as OpKind;

pub use range_stream::RangeCursor;

/// The etcd version whose behaviour this server offers. Clients gate features on it (kube-apiserver asks for at least
/// 3.5.13 before it requests watch progress), so it names etcd's version, not ours.
pub const VERSION: &str = "3.6.11";
/// The storage version that an etcd of [`VERSION`] reports.
pub const STORAGE_VERSION: &str = "3.6.0";

/// The longest time to live that etcd grants, in seconds.
const LEASE_TTL_MAX: i64 = 9_000_000_000;
/// Keys of a list are written out in parts of so many bytes; a list that is shorter is not.
const LIST_PART_BYTES: usize = 1 << 20;
/// How often a physical compaction looks whether it is done.
const COMPACT_POLL: Duration = Duration::from_millis(10);

/// What a caller waits longer than the host.
const HOST_FIRST: Duration = Duration::from_millis(100);

/// Looks for a leader in a row that find none until it counts as lost.
const LEADER_LOST_LOOKS: u32 = 3;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// The cluster.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// The longest encoded command in bytes; default 1.5 MiB.
    pub max_request_bytes: usize,
    /// Operations of one transaction at most; default 128.
    pub max_txn_ops: usize,
    /// The election timeout in milliseconds; default 1,000. It bounds waits, and the shortest lease.
    pub election_ms: u64,
    /// Whether members are changed here: in the default keyspace, whose the members are. Default yes.
    pub changes_members: bool,
}

impl ApiOptions {
    /// etcd's defaults.
    #[must_use]
    pub fn new(cluster_id: u64, member_id: u64) -> Self {
        Self {
            cluster_id,
            member_id,
            max_request_bytes: 3 << 19,
            max_txn_ops: 128,
            election_ms: 1_000,
            changes_members: true,
        }
    }

    /// How long a caller waits. Where another member leads, the host counts the same time and knows more about what
    /// became of a request, so it is given a moment to answer first.
    fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * Duration::from_millis(self.election_ms) + HOST_FIRST
    }

    /// One and a half election timeouts, in whole seconds, rounded up.
    fn lease_ttl_min(&self) -> i64 {
        let seconds = (self.election_ms * 3).div_ceil(2_000);
        i64::try_from(seconds).unwrap_or(LEASE_TTL_MAX)
    }
}

/// How often it is looked whether leadership has moved, or may.
const HAND_OVER_POLL: Duration = Duration::from_millis(10);

/// [`Api`] over one group, on behalf of one caller.
pub struct EtcdApi<R, V> {
    shared: Arc<Shared<R, V>>,
    caller: Caller,
}

/// What is the same whoever calls.
pub struct Shared<R, V> {
    replica: R,
    view: Arc<V>,
    scans: Arc<ScanPool>,
    options: ApiOptions,
    snapshots: snapshot::Streams,
    pending: AtomicU64,
    failed: AtomicU64,
    authenticator: Option<Arc<Authenticator>>,
}

impl<R, V> Deref for EtcdApi<R, V> {
    type Target = Shared<R, V>;

    fn deref(&self) -> &Shared<R, V> {
        &self.shared
    }
}

/// Counts a proposal as pending for as long as somebody waits for it.
struct Pending<'a>(&'a AtomicU64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<R: Replica, V: View> EtcdApi<R, V> {
    /// Joins the parts.
    pub fn new(replica: R, view: Arc<V>, scans: Arc<ScanPool>, options: ApiOptions) -> Self {
        let (pending, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Shared {
            replica,
            view,
            scans,
            options,
            snapshots: snapshot::Streams::default(),
            pending,
            failed,
            authenticator: None,
        };
        Self {
            shared: Arc::new(shared),
            caller: Caller::default(),
        }
    }

    /// Says who knows users; without it there is no authentication. To be called before the first clone.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Arc<Authenticator>) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("nobody else has it yet");
        shared.authenticator = Some(authenticator);
        self
    }

    /// Proposes a command. While authentication is enabled it carries its caller, and what clients can ask for as well as
    /// the server itself always does.
    async fn propose(&self, op: Op) -> Result<CommandResult, ApiError> {
        let is_named = matches!(op, Op::Compact(_) | Op::SetAlarm(_) | Op::Auth(_));
        let caller = match is_named || self.view.auth_enabled() {
            true => Some(self.access().await?.caller()),
            false => None,
        };
        let command = Command { op: Some(op) };
        let length = command.encoded_len();
        if length > self.options.max_request_bytes {
            return Err(ApiError::RequestTooLarge);
        }
        let payload = match caller {
            Some(caller) => mvcc::call(caller, &command),
            None => {
                let mut payload = BytesMut::with_capacity(length);
                command
                    .encode(&mut payload)
                    .expect("the buffer was sized for the command");
                payload.freeze()
            }
        };

        self.pending.fetch_add(1, Ordering::Relaxed);
        let _pending = Pending(&self.pending);
        let (sender, receiver) = reply::channel();
        // A caller that went away needs no answer.
        self.replica
            .propose(payload, Box::new(move |output| sender.send(output)));
        let error = match timeout(self.options.request_timeout(), receiver).await {
            Ok(Ok(Ok(output))) => return output,
            Ok(Ok(Err(error))) => host_error(&error),
            Ok(Err(_)) | Err(_) => ApiError::TimeoutDueToLeaderFail,
        };
        self.failed.fetch_add(1, Ordering::Relaxed);
        Err(error)
    }

    /// What is refused of a range before anything is read.
    fn check_range(&self, request: &pb::RangeRequest) -> Result<(), ApiError> {
        check_sort(request)?;
        self.view.check_range(request)?;
        self.view.check_sound()
    }

    /// Waits until local state holds all that was acknowledged before this call.
    async fn linearizable(&self) -> Result<(), ApiError> {
        if self.replica.read_now() {
            return Ok(());
        }
        let (sender, receiver) = reply::channel();
        self.replica
            .read_barrier(Box::new(move |done| sender.send(done)));
        match timeout(self.options.request_timeout(), receiver).await {
            Ok(Ok(done)) => done.map_err(|error| host_error(&error)),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Err(_) => Err(ApiError::Timeout),
        }
    }

    /// Lets the next leader know what leases have left, or gives up: leadership is to move, and soon.
    async fn record_rests(&self) {
        self.view.lease_record_rests();
        let recorded = async {
            while !self.view.lease_rests_recorded() {
                sleep(HAND_OVER_POLL).await;
            }
        };
        // Without it leases get back what passed since their last record.
        let _ = timeout(RECORD_RESTS_MAX, recorded).await;
    }

    /// Completes a header that carries the revision only.
    fn complete(&self, header: &mut Option<pb::ResponseHeader>) {
        let header = header.get_or_insert_default();
        header.cluster_id = self.options.cluster_id;
        header.member_id = self.options.member_id;
        header.raft_term = self.replica.term();
    }

    fn header_at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.options.cluster_id,
            member_id: self.options.member_id,
            revision,
            raft_term: self.replica.term(),
        })
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        self.header_at(self.view.revision())
    }
}

/// Takes keys of a list.
type Write<'a> = &'a mut dyn FnMut(Vec<KeyValue>);

/// Reads a list, and what it writes out.
fn written(
    read: impl FnOnce(Write<'_>) -> Result<pb::RangeResponse, ApiError>,
) -> Result<(pb::RangeResponse, WrittenKeys), ApiError> {
    let mut keys = WrittenKeys::default();
    let response = read(&mut |kvs| keys.push(kvs))?;
    Ok((response, keys))
}

/// Takes the answer of one kind out of an output.
macro_rules! expect_output {
    ($self:ident, $output:expr, $kind:ident) => {
        match $output {
            CommandResult::$kind(mut response) => {
                $self.complete(&mut response.header);
                Ok(response)
            }
            other => Err(mismatch(&other)),
        }
    };
}

impl<R: Replica, V: View> Api for EtcdApi<R, V> {
    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, ApiError> {
        self.check_range(&request)?;
        if !request.serializable {
            self.linearizable().await?;
        }
        let access = self.access().await?;
        access.check(|state, who| rules::check_range(state, who, &request))?;
        let mut response = if request.range_end.is_empty() {
            self.view.range(&request)?
        } else if let Some(response) = self.view.range_at_once(&request) {
            response
        } else {
            let view = Arc::clone(&self.view);
            self.scans.run(move || view.range(&request)).await?
        };
        self.still(&access)?;
        self.complete(&mut response.header);
        Ok(response)
    }

    async fn range_list(
        &self,
        request: pb::RangeRequest,
    ) -> Result<(pb::RangeResponse, WrittenKeys), ApiError> {
        if request.range_end.is_empty() || request.count_only {
            return Ok((self.range(request).await?, WrittenKeys::default()));
        }
        self.check_range(&request)?;
        if !request.serializable {
            self.linearizable().await?;
        }
        let access = self.access().await?;
        access.check(|state, who| rules::check_range(state, who, &request))?;
        let (mut response, keys) = if let Some(response) = self.view.range_at_once(&request) {
            (response, WrittenKeys::default())
        } else if let Some(shares) = self.view.list_in_shares(&request) {
            let [first, second] = shares.map(|share| {
                let read = |write: Write<'_>| share.read(LIST_PART_BYTES, write);
                self.scans.run(move || written(read))
            });
            let ((mut response, mut keys), (rest, others)) = tokio::try_join!(first, second)?;
            response.count += rest.count;
            keys.append(others);
            (response, keys)
        } else {
            let view = Arc::clone(&self.view);
            let read =
                move |write: Write<'_>| view.range_in_parts(&request, LIST_PART_BYTES, write);
            self.scans.run(move || written(read)).await?
        };
        self.still(&access)?;
        self.complete(&mut response.header);
        Ok((response, keys))
    }

    async fn range_begin(&self, request: pb::RangeRequest) -> Result<RangeCursor, ApiError> {
        self.check_range(&request)?;
        let (serializable, target) = (request.serializable, self.options.max_request_bytes);
        let mut cursor = RangeCursor::new(request, target)?;
        if !serializable {
            self.linearizable().await?;
        }
        cursor.access = self.access().await?;
        let access = &cursor.access;
        access.check(|state, who| rules::check_range(state, who, &cursor.request))?;
        Ok(cursor)
    }

    async fn range_next(
        &self,
        cursor: RangeCursor,
    ) -> Result<(pb::RangeResponse, Option<RangeCursor>), ApiError> {
        self.view.check_sound()?;
        let view = Arc::clone(&self.view);
        let access = cursor.access.clone();
        let next = self.scans.run(move || cursor.next(&*view)).await;
        let (mut response, cursor) = next?;
        self.still(&access)?;
        if response.header.is_some() {
            self.complete(&mut response.header);
        }
        Ok((response, cursor))
    }

    async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, ApiError> {
        self.view.check_put(&request)?;
        self.view.check_sound()?;
        self.view.check_space(cost::of_put(&request))?;
        expect_output!(self, self.propose(Op::Put(request)).await?, Put)
    }

    async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, ApiError> {
        self.view.check_delete(&request)?;
        self.view.check_sound()?;
        expect_output!(
            self,
            self.propose(Op::DeleteRange(request)).await?,
            DeleteRange
        )
    }

    async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, ApiError> {
        self.view.check_txn(&request, self.options.max_txn_ops)?;
        self.view.check_sound()?;
        let Some(serializable) = read_only(&request)? else {
            if may_put(&request) {
                self.view.check_space(cost::of_txn(&request))?;
            }
            return expect_output!(self, self.propose(Op::Txn(request)).await?, Txn);
        };
        if !serializable {
            self.linearizable().await?;
        }
        let access = self.access().await?;
        access.check(|state, who| rules::check_txn(state, who, &request))?;
        let view = Arc::clone(&self.view);
        let mut response = if points_only(&request) {
            view.read_txn(&request)?
        } else {
            self.scans.run(move || view.read_txn(&request)).await?
        };
        self.still(&access)?;
        self.complete(&mut response.header);
        Ok(response)
    }

    async fn compact(
        &self,
        request: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, ApiError> {
        self.view.check_sound()?;
        self.access().await?.root()?;
        let (revision, physical) = (request.revision, request.physical);
        let output = self.propose(Op::Compact(request)).await?;
        // The caller's deadline bounds this wait: a connection that ends drops it.
        while physical && self.view.finished_compact_revision() < revision {
            sleep(COMPACT_POLL).await;
        }
        expect_output!(self, output, Compact)
    }

    async fn lease_grant(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, ApiError> {
        self.view.check_sound()?;
        self.view.check_space(cost::LEASE)?;
        self.access().await?.known()?;
        if request.ttl > LEASE_TTL_MAX {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        let id = if request.id == 0 {
            random_lease_id()?
        } else {
            request.id
        };
        let ttl = request.ttl.max(self.options.lease_ttl_min());
        let output = self.propose(Op::LeaseGrant(LeaseGrant { id, ttl })).await?;
        expect_output!(self, output, LeaseGrant)
    }

    async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, ApiError> {
        self.view.check_sound()?;
        self.access().await?.known()?;
        expect_output!(
            self,
            self.propose(Op::LeaseRevoke(request)).await?,
            LeaseRevoke
        )
    }

    async fn lease_keep_alive(
        &self,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, ApiError> {
        let access = self.access().await?;
        self.may_write_lease(&access, request.id).await?;
        self.keep_alive(request.id).await
    }

    async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, ApiError> {
        self.linearizable().await?;
        let access = self.access().await?;
        access.known()?;
        let header = self.header();
        let Some(lease) = self.view.lease(request.id) else {
            let id = request.id;
            return Ok(pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..Default::default()
            });
        };
        let mut keys = Vec::new();
        if request.keys {
            let view = Arc::clone(&self.view);
            keys = self.scans.run(move || view.lease_keys(request.id)).await?;
            access.check(|state, who| {
                let mut keys = keys.iter();
                keys.try_for_each(|key| state.check_read(who, key, &[]))
            })?;
            self.still(&access)?;
        }
        let left = self.time_left(lease.id).await?;
        let ttl = left.or(lease.remaining_ttl).unwrap_or(lease.ttl);
        let (id, granted_ttl) = (lease.id, lease.ttl);
        Ok(pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl,
            keys,
        })
    }

    async fn lease_leases(
        &self,
        _request: pb::LeaseLeasesRequest,
    ) -> Result<pb::LeaseLeasesResponse, ApiError> {
        self.linearizable().await?;
        let access = self.access().await?;
        self.may_list_leases(&access).await?;
        let leases = self
            .view
            .leases()
            .into_iter()
            .map(|id| pb::LeaseStatus { id })
            .collect();
        Ok(pb::LeaseLeasesResponse {
            header: self.header(),
            leases,
        })
    }

    async fn member_list(
        &self,
        request: pb::MemberListRequest,
    ) -> Result<pb::MemberListResponse, ApiError> {
        if request.linearizable {
            self.linearizable().await?;
        }
        self.access().await?.known()?;
        Ok(pb::MemberListResponse {
            header: self.header_at(0),
            members: self.view.members(),
        })
    }

    async fn member_add(
        &self,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, ApiError> {
        self.access().await?.root()?;
        self.add_member(request).await
    }

    async fn member_remove(
        &self,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, ApiError> {
        self.access().await?.root()?;
        let members = self
            .change_members(member_call::Op::Remove(request.id))
            .await?;
        let header = self.header_at(0);
        Ok(pb::MemberRemoveResponse { header, members })
    }

    async fn member_update(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, ApiError> {
        self.access().await?.root()?;
        self.update_member(request).await
    }

    async fn member_promote(
        &self,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, ApiError> {
        self.access().await?.root()?;
        let members = self
            .change_members(member_call::Op::Promote(request.id))
            .await?;
        let header = self.header_at(0);
        Ok(pb::MemberPromoteResponse { header, members })
    }

    async fn status(&self, _request: pb::StatusRequest) -> Result<pb::StatusResponse, ApiError> {
        self.access().await?.known()?;
        let group = self.replica.status();
        let size = self.view.data_size();
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if group.leader.is_none() {
            errors.push(ApiError::NoLeader.to_string());
        }
        errors.extend(self.view.alarms().into_iter().map(|raised| {
            let alarm = raised.alarm().as_str_name();
            format!("memberID:{} alarm:{alarm} ", raised.member_id)
        }));
        Ok(pb::StatusResponse {
            header: self.header(),
            version: VERSION.to_owned(),
            db_size: number(size.bytes),
            leader: group.leader.map_or(0, |leader| leader.0),
            raft_index: group.commit.0,
            raft_term: group.term.0,
            raft_applied_index: group.applied.0,
            errors,
            db_size_in_use: number(size.in_use),
            is_learner: self.is_learner(),
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: number(self.view.quota_bytes()),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, ApiError> {
        let access = self.access().await?;
        if request.action != i32::from(pb::alarm_request::AlarmAction::Get) {
            access.root()?;
            let command = SetAlarm {
                request: Some(request),
                automatic: false,
            };
            return expect_output!(self, self.propose(Op::SetAlarm(command)).await?, Alarm);
        }
        access.known()?;
        self.linearizable().await?;
        let mut alarms = self.view.alarms();
        alarms.retain(|raised| [raised.alarm, pb::AlarmType::None.into()].contains(&request.alarm));
        Ok(pb::AlarmResponse {
            header: self.header(),
            alarms,
        })
    }

    async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, ApiError> {
        self.access().await?.root()?;
        let view = Arc::clone(&self.view);
        let hash = self.scans.run(move || view.hash_kv(request.revision));
        let mut response = hash.await?;
        self.complete(&mut response.header);
        Ok(response)
    }

    async fn hash(&self, _request: pb::HashRequest) -> Result<pb::HashResponse, ApiError> {
        self.access().await?.root()?;
        let view = Arc::clone(&self.view);
        let hash = self.scans.run(move || view.state_hash()).await?;
        Ok(pb::HashResponse {
            header: self.header(),
            // Both halves count.
            hash: (hash ^ (hash >> 32)) as u32,
        })
    }

    async fn downgrade(
        &self,
        request: pb::DowngradeRequest,
    ) -> Result<pb::DowngradeResponse, ApiError> {
        self.access().await?.root()?;
        self.linearizable().await?;
        Err(downgrade::refusal(&request))
    }

    async fn move_leader(
        &self,
        request: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, ApiError> {
        self.access().await?.root()?;
        let to = NodeId(request.target_id);
        let group = self.replica.status();
        if group.leader != Some(group.node) {
            return Err(ApiError::NotLeader);
        }
        if !group.voters.contains(&to) {
            return Err(ApiError::BadLeaderTransferee);
        }
        let moved = async {
            if to != group.node {
                self.record_rests().await;
            }
            let mut begun = false;
            loop {
                let now = self.replica.status();
                if now.leader == Some(to) {
                    return true;
                }
                if now.transferring == Some(to) {
                    begun = true;
                } else if begun && now.leader.is_some() {
                    // It was given up, or somebody else was elected. Another one would hold up writes once more.
                    return false;
                } else if !begun {
                    // Again and again: one that has to wait for another, or finds no room in the inbox, is not kept.
                    self.replica.hand_over(to);
                }
                sleep(HAND_OVER_POLL).await;
            }
        };
        let moved = timeout(self.options.request_timeout(), moved).await;
        if !moved.unwrap_or(false) {
            return Err(ApiError::TimeoutLeaderTransfer);
        }
        Ok(pb::MoveLeaderResponse {
            header: self.header(),
        })
    }

    async fn defragment(
        &self,
        _request: pb::DefragmentRequest,
    ) -> Result<pb::DefragmentResponse, ApiError> {
        self.access().await?.root()?;
        Ok(pb::DefragmentResponse {
            header: self.header(),
        })
    }

    fn called_by(&self, caller: Caller) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            caller,
        }
    }

    fn is_learner(&self) -> bool {
        self.replica.learns() && !self.view.joins_as_voter(self.options.member_id)
    }

    fn has_leader(&self) -> bool {
        self.replica.status().leader.is_some()
    }

    async fn leader_lost(&self) {
        let mut looks = 0;
        while looks < LEADER_LOST_LOOKS {
            sleep(Duration::from_millis(self.options.election_ms)).await;
            looks = if self.has_leader() { 0 } else { looks + 1 };
        }
    }

    async fn snapshot(&self) -> Result<SnapshotParts, ApiError> {
        self.access().await?.root()?;
        self.view.check_sound()?;
        let group = self.replica.status();
        if group.leader.is_none() && group.applied < group.last_index {
            // Which of those were acknowledged only a leader can tell.
            return Err(ApiError::Other(
                tonic::Code::Unavailable,
                format!(
                    "flotilla: no backup: there is no leader, and this member may lack acknowledged writes: its log ends \
                     with entry {}, and it has applied {}; start the other members, or if they are lost for good see \
                     `flotilla recover`",
                    group.last_index, group.applied
                ),
            ));
        }
        let source = BackupSource {
            cluster: self.options.cluster_id,
            member: self.options.member_id,
        };
        let view = Arc::clone(&self.view);
        let term = self.replica.term();
        self.snapshots.start(move || view.backup(), source, term)
    }

    fn alarms(&self) -> Vec<pb::AlarmMember> {
        self.view.alarms()
    }

    fn is_sound(&self) -> bool {
        self.view.check_sound().is_ok()
    }

    fn gauges(&self) -> Gauges {
        let group = self.replica.status();
        let alarms = self.view.alarms();
        let raised = |kind| alarms.iter().any(|raised| raised.alarm() == kind);
        Gauges {
            has_leader: group.leader.is_some(),
            is_leader: group.leader == Some(group.node),
            is_learner: group.learners.contains(&group.node),
            leader_changes: group.leader_changes,
            no_space: raised(pb::AlarmType::Nospace),
            corrupt: raised(pb::AlarmType::Corrupt),
            committed: group.commit.0,
            applied: group.applied.0,
            proposals_pending: self.pending.load(Ordering::Relaxed),
            proposals_failed: self.failed.load(Ordering::Relaxed),
            data_size: self.view.data_size(),
            quota_bytes: self.view.quota_bytes(),
            revision: self.view.revision(),
            compact_revision: self.view.compact_revision(),
            guarded: group.guarded,
        }
    }
}

fn host_error(error: &HostError) -> ApiError {
    match error {
        HostError::Busy => ApiError::TooManyRequests,
        HostError::NoSpace => ApiError::NoSpace,
        HostError::NotLeader(None) => ApiError::NoLeader,
        HostError::NotLeader(Some(_)) => ApiError::NotLeader,
        HostError::OutcomeUnknown => ApiError::TimeoutDueToLeaderFail,
        HostError::LeaderChanged => ApiError::LeaderChanged,
        HostError::Timeout => ApiError::Timeout,
        HostError::Stopped => ApiError::Stopped,
        other => ApiError::Other(Code::Internal, format!("flotilla: {other}")),
    }
}

fn mismatch(output: &CommandResult) -> ApiError {
    let text =
        format!("flotilla: the command was applied, but its answer is of another kind: {output:?}");
    ApiError::Other(Code::Internal, text)
}

fn check_sort(request: &pb::RangeRequest) -> Result<(), ApiError> {
    use pb::range_request::{SortOrder, SortTarget};
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known {
        Ok(())
    } else {
        Err(ApiError::InvalidSortOption)
    }
}

/// For a transaction of ranges only, whether all of them may be stale; none for one that may write. A nested
/// transaction counts as a write.
fn read_only(request: &pb::TxnRequest) -> Result<Option<bool>, ApiError> {
    let (mut serializable, mut reads) = (true, true);
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(OpKind::RequestRange(range)) => {
                check_sort(range)?;
                serializable &= range.serializable;
            }
            _ => reads = false,
        }
    }
    Ok(reads.then_some(serializable))
}

fn points_only(request: &pb::TxnRequest) -> bool {
    let ops = request.success.iter().chain(&request.failure);
    let mut ranges = ops.filter_map(|op| match &op.request {
        Some(OpKind::RequestRange(range)) => Some(&range.range_end),
        _ => None,
    });
    ranges.all(Bytes::is_empty) && request.compare.iter().all(|c| c.range_end.is_empty())
}

/// Positive, from the operating system: drawn before the proposal, so that applying stays deterministic.
fn random_lease_id() -> Result<i64, ApiError> {
    let drawn = SysRng.try_next_u64().map_err(|error| {
        ApiError::Other(
            Code::Internal,
            format!("flotilla: no randomness for a lease id: {error}"),
        )
    })?;
    Ok(((drawn >> 1).max(1)).cast_signed())
}

#[cfg(test)]
mod tests;
