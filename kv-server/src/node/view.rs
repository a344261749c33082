//! What the front end asks of a node: the group's handle as a [`Replica`], the applied state as a [`View`].

use std::sync::Arc;

use bytes::Bytes;
use multiraft::{GroupStatus, HostHandle, Reply};
use raft_log::{GroupId, Log, NodeId, Space, Term};

use super::PeerBook;
use super::quota::Quota;
use super::roster::Roster;
use crate::ApiError;
use crate::api::{DataSize, Replica, View};
use crate::auth::AuthState;
use crate::engine::Engine;
use crate::lease::{Lessor, Renewal};
use crate::mvcc::{
    self, Backup, CommandOutput, KvStateMachine, LeaseInfo, ListShare, RangePart, Store,
};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;

/// One group of a host.
#[derive(Clone)]
pub struct GroupReplica {
    /// The host.
    pub handle: HostHandle<KvStateMachine>,
    /// The group.
    pub group: GroupId,
}

impl Replica for GroupReplica {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        self.handle.propose(self.group, payload, reply);
    }

    fn read_barrier(&self, done: Reply<()>) {
        self.handle.read_barrier(self.group, done);
    }

    fn read_now(&self) -> bool {
        self.handle.read_now(self.group)
    }

    fn call_leader(&self, payload: Bytes, reply: Reply<Bytes>) {
        self.handle.call_leader(self.group, payload, reply);
    }

    fn hand_over(&self, to: NodeId) {
        self.handle.transfer(self.group, to);
    }

    fn learns(&self) -> bool {
        self.handle.learns(self.group)
    }

    fn status(&self) -> GroupStatus {
        self.handle.status(self.group).unwrap_or_default()
    }

    fn term(&self) -> u64 {
        self.handle.term(self.group).unwrap_or_default().0
    }
}

/// The applied state of a node's keyspace.
pub struct NodeView {
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    engine: Arc<dyn Engine>,
    log: Log,
    /// What is known of the members: the store of the default keyspace, and the book.
    members: Option<(Arc<Store>, Arc<PeerBook>)>,
    member: u64,
    quota: Option<Arc<Quota>>,
}

impl NodeView {
    /// Joins the parts of a node that answers depend on.
    #[must_use]
    pub fn new(store: Arc<Store>, lessor: Arc<Lessor>, engine: Arc<dyn Engine>, log: Log) -> Self {
        Self {
            store,
            lessor,
            engine,
            log,
            members: None,
            member: 0,
            quota: None,
        }
    }

    /// Lets it list the members.
    #[must_use]
    pub(super) fn with_members(mut self, members: Arc<Store>, peers: Arc<PeerBook>) -> Self {
        self.members = Some((members, peers));
        self
    }

    /// Says whose view it is, and what its data may take.
    #[must_use]
    pub(super) fn of_member(mut self, member: NodeId, quota: Arc<Quota>) -> Self {
        self.member = member.0;
        self.quota = Some(quota);
        self
    }

    /// True while nothing can be written to this member's disk.
    fn is_disk_full(&self) -> bool {
        self.engine.out_of_space() || self.log.space() == Space::Full
    }
}

impl View for NodeView {
    fn check_range(&self, request: &pb::RangeRequest) -> Result<(), ApiError> {
        mvcc::check_range(request)
    }

    fn check_put(&self, request: &pb::PutRequest) -> Result<(), ApiError> {
        mvcc::check_put(request)
    }

    fn check_delete(&self, request: &pb::DeleteRangeRequest) -> Result<(), ApiError> {
        mvcc::check_delete(request)
    }

    fn check_txn(&self, request: &pb::TxnRequest, max_txn_ops: usize) -> Result<(), ApiError> {
        mvcc::check_txn(request, max_txn_ops)
    }

    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ApiError> {
        self.store.range(request)
    }

    fn range_at_once(&self, request: &pb::RangeRequest) -> Option<pb::RangeResponse> {
        self.store.range_at_once(request)
    }

    fn list_in_shares(&self, request: &pb::RangeRequest) -> Option<[ListShare; 2]> {
        self.store.list_in_shares(request)
    }

    fn range_in_parts(
        &self,
        request: &pb::RangeRequest,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<pb::RangeResponse, ApiError> {
        self.store.range_in_parts(request, bytes_max, write)
    }

    fn range_part(
        &self,
        request: &pb::RangeRequest,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<RangePart, ApiError> {
        self.store.range_part(request, keys_max, bytes_max)
    }

    fn read_txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ApiError> {
        self.store.read_txn(request)
    }

    fn revision(&self) -> i64 {
        self.store.revision()
    }

    fn compact_revision(&self) -> i64 {
        self.store.compact_revision()
    }

    fn finished_compact_revision(&self) -> i64 {
        self.store.finished_compact_revision()
    }

    fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.store.lease(id)
    }

    fn lease_remaining(&self, id: i64) -> Option<i64> {
        self.lessor.time_to_live(id).map(|(_, remaining)| remaining)
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
        self.store
            .leases()
            .into_iter()
            .map(|lease| lease.id)
            .collect()
    }

    fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError> {
        self.store.lease_keys(id)
    }

    fn state_hash(&self) -> Result<u64, ApiError> {
        self.store.state_hash()
    }

    fn backup(&self) -> Result<Backup, ApiError> {
        self.store.backup()
    }

    fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, ApiError> {
        self.store.hash_kv(revision)
    }

    fn members(&self) -> Vec<pb::Member> {
        let Some((members, peers)) = &self.members else {
            return Vec::new();
        };
        let mut roster = Roster::of(members, peers);
        if !Arc::ptr_eq(members, &self.store) {
            // Each keyspace has URLs of its own; those who serve it have published them in its log.
            let served = self.store.members();
            for member in &mut roster.members {
                let row = served.rows.get(&member.id);
                member.client_urls = row.map(|row| row.client_urls.clone()).unwrap_or_default();
            }
        }
        roster.describe()
    }

    fn joins_as_voter(&self, id: u64) -> bool {
        let members = self
            .members
            .as_ref()
            .map_or(&self.store, |(store, _)| store);
        let row = members.member(NodeId(id));
        row.is_some_and(|row| row.joins_as_voter)
    }

    fn data_size(&self) -> DataSize {
        let in_use = self.store.bytes();
        let bytes = in_use.max(self.engine.data_bytes());
        let alone = DataSize { bytes, in_use };
        self.quota.as_ref().map_or(alone, |quota| quota.size())
    }

    fn quota_bytes(&self) -> u64 {
        self.quota.as_ref().map_or(0, |quota| quota.limit)
    }

    fn check_space(&self, bytes: usize) -> Result<(), ApiError> {
        if self.is_disk_full() {
            return Err(ApiError::NoSpace);
        }
        self.quota
            .as_ref()
            .map_or(Ok(()), |quota| quota.check(bytes))
    }

    fn check_sound(&self) -> Result<(), ApiError> {
        if self.store.is_corrupt(self.member) {
            return Err(ApiError::Corrupt);
        }
        Ok(())
    }

    fn alarms(&self) -> Vec<pb::AlarmMember> {
        let mut alarms = self.store.alarms();
        let own = pb::AlarmMember {
            member_id: self.member,
            alarm: pb::AlarmType::Nospace.into(),
        };
        // A disk that is full takes no entry that says so.
        if self.is_disk_full() && !alarms.contains(&own) {
            alarms.push(own);
        }
        alarms
    }

    fn auth_enabled(&self) -> bool {
        self.store.auth_enabled()
    }

    fn auth(&self) -> Arc<AuthState> {
        self.store.auth()
    }
}
