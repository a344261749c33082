//! The read side of the store: any thread, one engine snapshot per call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use raft_log::{GroupId, NodeId};

use super::backup::Backup;
use super::cached::Blocks;
use super::codec::{self, Change, Keys, Meta, PREFIX, REVISION, VERSION, Version, damaged};
use super::counting::{Counting, Found};
use super::counts::Counts;
use super::keyspaces::KeyspaceTable;
use super::members::MemberTable;
use super::range_cache::RangeCache;
use super::read::{Fail, Read, View, check_revision, check_txn_revision, header, key_value};
use super::size;
use super::snapshot::{Generation, KvCut};
use super::state::KvOptions;
use super::state_check::StateCut;
use super::types::{Event, EventKind, LeaseInfo, RangePart, RevisionEvents};
use super::write::{LeaseNews, branch, lease_keys, plan_txn};
use crate::auth::AuthState;
use crate::engine::{Engine, EngineError, Snapshot};
use crate::error::ApiError;
use crate::pb::command::PublishMember;
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmType, HashKvResponse, RangeRequest, RangeResponse, ResponseOp, TxnRequest,
    TxnResponse, request_op::Request, response_op::Response,
};
use crate::pb::mvccpb::KeyValue;

/// A stretch of history.
#[derive(Clone, Debug)]
pub struct History {
    /// Revisions in order; not dense only where a revision is newer than the snapshot.
    pub revisions: Vec<Arc<RevisionEvents>>,
    /// Where to go on; above the store's revision when there is nothing more yet.
    pub next: i64,
}

/// A consistent view of the store, and where it stands.
pub(super) struct Opened {
    pub(super) snapshot: Arc<dyn Snapshot>,
    pub(super) keys: Keys,
    pub(super) meta: Meta,
    /// Held, so that its tables stay.
    pub(super) _generation: Generation,
    /// Of the same applied index, if somebody asked for them and there are some.
    counts: Option<Arc<Counts>>,
    ranges: Arc<RangeCache>,
}

impl Opened {
    fn view(&self) -> View<'_> {
        let blocks = self.counts.as_deref().map(|counts| Blocks {
            counts,
            index: self.meta.index,
            cache: &self.ranges,
            pending: None,
        });
        View {
            read: &self.snapshot,
            keys: self.keys,
            blocks,
        }
    }
}

/// Keys of a list from which on two threads read it.
const SHARED_KEYS_MIN: u64 = 8_192;

/// One half of a long list, for a thread to read. Both are of the same state.
pub struct ListShare {
    opened: Arc<Opened>,
    request: RangeRequest,
}

impl fmt::Debug for ListShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListShare")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl ListShare {
    /// Gives all keys to `write`, part by part; the answer has none.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn read(
        self,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<RangeResponse, ApiError> {
        let view = self.opened.view();
        let revision = self.opened.meta.revision;
        let answer = view.range_in_parts(&self.request, revision, bytes_max, write);
        let mut answer = answer.map_err(Fail::Engine)?;
        if !answer.kvs.is_empty() {
            write(std::mem::take(&mut answer.kvs));
        }
        Ok(answer)
    }
}

/// How often a reader that counts looks again whether there are counts of what it reads.
const COUNTS_TRIES: usize = 8;

/// Reads the key-value store of one group.
pub struct Store {
    engine: Arc<dyn Engine>,
    group: GroupId,
    /// Held while the state is replaced, so that whoever opens a snapshot holds the generation that it reads.
    generation: RwLock<Generation>,
    counting: Counting,
    ranges: Arc<RangeCache>,
    revision: AtomicI64,
    compact: AtomicI64,
    compact_finished: AtomicI64,
    bytes: AtomicU64,
    leases: RwLock<BTreeMap<i64, LeaseInfo>>,
    members: RwLock<Arc<MemberTable>>,
    keyspaces: RwLock<Arc<KeyspaceTable>>,
    /// Called after each change of the members or the keyspaces.
    members_changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Whether a member raised each by itself.
    alarms: RwLock<Vec<(AlarmMember, bool)>>,
    /// So that whoever asks for each request need not look at the alarms when there are none.
    has_alarms: AtomicBool,
    auth: RwLock<Arc<AuthState>>,
    /// The same reason.
    auth_enabled: AtomicBool,
    /// Counts what [`Store::publish_auth`] was called for.
    auth_changes: AtomicU64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        options: &KvOptions,
        keys: Keys,
        meta: &Meta,
        leases: BTreeMap<i64, LeaseInfo>,
    ) -> Self {
        Self {
            engine,
            ranges: Arc::clone(&options.ranges),
            group: keys.group,
            generation: RwLock::new(Arc::new(keys.generation)),
            counting: Counting::new(options.count_worth_keys),
            revision: AtomicI64::new(meta.revision),
            compact: AtomicI64::new(meta.compact),
            compact_finished: AtomicI64::new(meta.compact_finished),
            bytes: AtomicU64::new(meta.bytes.unwrap_or(0)),
            leases: RwLock::new(leases),
            members: RwLock::default(),
            keyspaces: RwLock::default(),
            members_changed: OnceLock::new(),
            alarms: RwLock::default(),
            has_alarms: AtomicBool::new(false),
            auth: RwLock::default(),
            auth_enabled: AtomicBool::new(false),
            auth_changes: AtomicU64::new(0),
        }
    }

    /// Called by the writer once a batch is visible.
    pub(super) fn publish(&self, meta: &Meta) {
        self.compact.store(meta.compact, Ordering::Release);
        self.compact_finished
            .store(meta.compact_finished, Ordering::Release);
        self.bytes.store(meta.bytes.unwrap_or(0), Ordering::Release);
        self.revision.store(meta.revision, Ordering::Release);
    }

    /// Called by the writer with what a batch did to leases, in order.
    pub(super) fn publish_leases(&self, news: &[LeaseNews]) {
        let mut leases = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        for news in news {
            match news {
                LeaseNews::Granted(lease) => {
                    leases.insert(lease.id, *lease);
                }
                LeaseNews::Revoked(id) => {
                    leases.remove(id);
                }
                LeaseNews::Checkpointed(id, rest) => {
                    if let Some(lease) = leases.get_mut(id) {
                        lease.remaining_ttl = *rest;
                    }
                }
            }
        }
    }

    /// Called by the writer with what is known of the members.
    pub(super) fn publish_members(&self, table: Arc<MemberTable>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = table;
        if let Some(changed) = self.members_changed.get() {
            changed();
        }
    }

    /// Called by the writer with the keyspaces beside the default one.
    pub(super) fn publish_keyspaces(&self, table: Arc<KeyspaceTable>) {
        *(self.keyspaces.write()).unwrap_or_else(PoisonError::into_inner) = table;
        if let Some(changed) = self.members_changed.get() {
            changed();
        }
    }

    /// Called by the writer with all alarms.
    pub(super) fn publish_alarms(&self, raised: Vec<(AlarmMember, bool)>) {
        let mut alarms = self.alarms.write().unwrap_or_else(PoisonError::into_inner);
        self.has_alarms.store(!raised.is_empty(), Ordering::Release);
        *alarms = raised;
    }

    /// Called by the writer with users and roles.
    pub(super) fn publish_auth(&self, state: Arc<AuthState>) {
        let mut auth = self.auth.write().unwrap_or_else(PoisonError::into_inner);
        self.auth_enabled
            .store(state.is_enabled(), Ordering::Release);
        *auth = state;
        self.auth_changes.fetch_add(1, Ordering::Release);
    }

    /// Another number after each change of users and roles, in this run.
    #[must_use]
    pub fn auth_changes(&self) -> u64 {
        self.auth_changes.load(Ordering::Acquire)
    }

    /// Users and roles.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthState> {
        Arc::clone(&self.auth.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True while every call needs a user.
    #[must_use]
    pub fn auth_enabled(&self) -> bool {
        self.auth_enabled.load(Ordering::Acquire)
    }

    /// The alarms that are raised, those of one kind together.
    #[must_use]
    pub fn alarms(&self) -> Vec<AlarmMember> {
        if !self.has_alarms.load(Ordering::Acquire) {
            return Vec::new();
        }
        let alarms = self.alarms.read().unwrap_or_else(PoisonError::into_inner);
        alarms.iter().map(|(alarm, _)| *alarm).collect()
    }

    /// Whether an alarm is raised, and then whether a member raised it by itself.
    #[must_use]
    pub fn alarm(&self, wanted: AlarmMember) -> Option<bool> {
        let alarms = self.alarms.read().unwrap_or_else(PoisonError::into_inner);
        alarms
            .iter()
            .find_map(|(alarm, automatic)| (*alarm == wanted).then_some(*automatic))
    }

    /// True while the data of a member, or of the whole cluster, is known to be wrong.
    #[must_use]
    pub fn is_corrupt(&self, member: u64) -> bool {
        let concerns = |raised: &AlarmMember| {
            raised.alarm() == AlarmType::Corrupt && [0, member].contains(&raised.member_id)
        };
        self.alarms().iter().any(concerns)
    }

    /// Lets `changed` be called after each change of the members or the keyspaces, by the applying thread: it must not block. One at most
    /// is called, the first.
    pub fn on_members_changed(&self, changed: Box<dyn Fn() + Send + Sync>) {
        // A second one would have nobody to tell that it is not called.
        drop(self.members_changed.set(changed));
    }

    /// What applied state says of the members.
    #[must_use]
    pub fn members(&self) -> Arc<MemberTable> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keyspaces beside the default one; none in another one's store.
    #[must_use]
    pub fn keyspaces(&self) -> Arc<KeyspaceTable> {
        Arc::clone(&(self.keyspaces.read()).unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known of a member.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<PublishMember> {
        self.members().rows.get(&id).cloned()
    }

    /// The newest revision whose changes are visible.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Reads below this revision fail; -1 before the first compaction.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.compact.load(Ordering::Acquire)
    }

    /// Bytes that keys with their history, and leases, take on this member: keys and records of the engine.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The same as the meta record has it, and as a walk over everything finds it in the same view.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn count_bytes(&self) -> Result<(u64, u64), ApiError> {
        let opened = self.open().map_err(Fail::Engine)?;
        let walked = size::walk(&opened.snapshot, opened.keys).map_err(Fail::Engine)?;
        Ok((opened.meta.bytes.unwrap_or(0), walked))
    }

    /// The revision up to which compaction has removed what it may.
    #[must_use]
    pub fn finished_compact_revision(&self) -> i64 {
        self.compact_finished.load(Ordering::Acquire)
    }

    /// Called by the writer: makes another generation the state, by `write`, and gives the former one back. Its leases
    /// take the place of those that were.
    pub(super) fn replace(
        &self,
        meta: &Meta,
        leases: BTreeMap<i64, LeaseInfo>,
        write: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Generation, EngineError> {
        let mut generation = self
            .generation
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        write()?;
        self.counting.forget();
        let former = std::mem::replace(&mut *generation, Arc::new(meta.generation));
        *self.leases.write().unwrap_or_else(PoisonError::into_inner) = leases;
        self.publish(meta);
        Ok(former)
    }

    /// The generation that is the state.
    pub(super) fn generation(&self) -> Generation {
        Arc::clone(
            &self
                .generation
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// A snapshot and where it stands. The revision comes from the snapshot itself, so both belong together.
    pub(super) fn open(&self) -> Result<Opened, EngineError> {
        let current = self
            .generation
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let (snapshot, generation) = (self.engine.snapshot(), Arc::clone(&current));
        drop(current);
        let keys = Keys {
            group: self.group,
            generation: *generation,
        };
        let meta = snapshot.get(&keys.meta())?.map(Meta::decode).transpose()?;
        let meta = meta.unwrap_or_else(Meta::new);
        assert_eq!(
            meta.generation, *generation,
            "a snapshot is of the generation that is current when it is taken"
        );
        Ok(Opened {
            snapshot,
            keys,
            meta,
            _generation: generation,
            counts: None,
            ranges: Arc::clone(&self.ranges),
        })
    }

    /// The same, with the counts of the same index if there are some.
    fn open_counted(&self) -> Result<Opened, EngineError> {
        let mut opened = self.open()?;
        for _ in 0..COUNTS_TRIES {
            match self.counting.at(opened.meta.index) {
                Found::Nothing => break,
                Found::These(counts) => {
                    opened.counts = Some(counts);
                    break;
                }
                // The writer is about to say that it has written, or has written again.
                Found::Other => opened = self.open()?,
            }
        }
        Ok(opened)
    }

    /// The same, for who asks for a range or a point.
    fn open_for(&self, request: &RangeRequest) -> Result<Opened, EngineError> {
        match request.range_end.is_empty() {
            true => self.open(),
            false => self.open_counted(),
        }
    }

    /// Says what was counted without them.
    fn counted(&self, opened: &Opened, request: &RangeRequest, count: i64) {
        if opened.counts.is_none() && !request.range_end.is_empty() {
            self.counting.counted(count);
        }
    }

    /// How many keys there are, for who writes.
    pub(super) fn counting(&self) -> &Counting {
        &self.counting
    }

    /// What is held in memory of ranges.
    pub(super) fn ranges(&self) -> &RangeCache {
        &self.ranges
    }

    /// Makes the counts, as a task.
    pub(super) fn walk(&self, number: u64) {
        match self.open() {
            Ok(opened) => self.counting.walk(number, &opened),
            Err(error) => self.counting.give_up(number, &error),
        }
    }

    /// Ends what goes on in the background.
    pub fn close(&self) {
        self.counting.close();
    }

    /// Answers a range from one snapshot. The header holds the current revision only.
    ///
    /// # Errors
    /// A compacted or future revision; an internal error when the engine fails.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ApiError> {
        let answer = || -> Result<RangeResponse, Fail> {
            let opened = self.open_for(request)?;
            let meta = &opened.meta;
            check_revision(request.revision, meta.revision, meta.compact)?;
            let response = opened.view().range(request, meta.revision)?;
            self.counted(&opened, request, response.count);
            Ok(response)
        };
        Ok(answer()?)
    }

    /// As [`Store::range`], if the answer is short and all that it needs is in memory.
    #[must_use]
    pub fn range_at_once(&self, request: &RangeRequest) -> Option<RangeResponse> {
        if !self.counting.is_on() {
            return None;
        }
        let opened = self.open_for(request).ok()?;
        opened.view().range_at_once(request, opened.meta.revision)
    }

    /// As [`Store::range`], but the keys of a list that is longer than `bytes_max` are given to `write`, part by part, and
    /// are not in the answer.
    ///
    /// # Errors
    /// As for [`Store::range`].
    pub fn range_in_parts(
        &self,
        request: &RangeRequest,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<RangeResponse, ApiError> {
        let mut answer = || -> Result<RangeResponse, Fail> {
            let opened = self.open_for(request)?;
            let meta = &opened.meta;
            check_revision(request.revision, meta.revision, meta.compact)?;
            let view = opened.view();
            let response = view.range_in_parts(request, meta.revision, bytes_max, write)?;
            self.counted(&opened, request, response.count);
            Ok(response)
        };
        Ok(answer()?)
    }

    /// The halves of a list that is so long that two threads had better read it.
    #[must_use]
    pub fn list_in_shares(&self, request: &RangeRequest) -> Option<[ListShare; 2]> {
        if request.limit > 0 || !self.counting.is_on() {
            return None;
        }
        let opened = self.open_for(request).ok()?;
        let (view, revision) = (opened.view(), opened.meta.revision);
        let middle = view.middle_of_list(request, revision, SHARED_KEYS_MIN)?;
        let opened = Arc::new(opened);
        let mut shares = [(); 2].map(|()| ListShare {
            opened: Arc::clone(&opened),
            request: request.clone(),
        });
        shares[0].request.range_end = middle.clone();
        shares[1].request.key = middle;
        Some(shares)
    }

    /// The first keys of a range, at most so many, and no more once there are so many bytes of them. Limit, order and
    /// filters of the request do not count, and it must have an end.
    ///
    /// # Errors
    /// A compacted or future revision; an internal error when the engine fails.
    pub fn range_part(
        &self,
        request: &RangeRequest,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<RangePart, ApiError> {
        let answer = || -> Result<RangePart, Fail> {
            let opened = self.open()?;
            let meta = &opened.meta;
            check_revision(request.revision, meta.revision, meta.compact)?;
            let revision = meta.revision;
            let part = opened.view().part(request, revision, keys_max, bytes_max);
            let (kvs, more) = part?;
            Ok(RangePart {
                kvs,
                revision,
                more,
            })
        };
        Ok(answer()?)
    }

    /// Answers a transaction whose operations are all ranges, from one snapshot.
    ///
    /// # Errors
    /// As for [`Store::range`]; `Other` for a transaction that writes or nests.
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, ApiError> {
        let answer = || -> Result<TxnResponse, Fail> {
            let opened = match has_range(request) {
                true => self.open_counted()?,
                false => self.open()?,
            };
            let meta = &opened.meta;
            let view = opened.view();
            let mut path = Vec::new();
            plan_txn(&view, request, &mut path)?;
            let succeeded = path[0];
            let mut ranges = Vec::new();
            for op in branch(request, succeeded) {
                let Some(Request::RequestRange(range)) = op.request.as_ref() else {
                    let text = "a transaction that writes has to be proposed".to_owned();
                    return Err(ApiError::Other(tonic::Code::Internal, text).into());
                };
                check_txn_revision(range.revision, meta.revision, meta.compact)?;
                ranges.push(range);
            }
            let mut responses = Vec::with_capacity(ranges.len());
            for range in ranges {
                let response = view.range(range, meta.revision)?;
                self.counted(&opened, range, response.count);
                responses.push(ResponseOp {
                    response: Some(Response::ResponseRange(response)),
                });
            }
            Ok(TxnResponse {
                header: header(meta.revision),
                succeeded,
                responses,
            })
        };
        Ok(answer()?)
    }

    /// The events from revision `from` on, until about `bytes_max` bytes are gathered; at least one revision if there
    /// is any.
    ///
    /// # Errors
    /// [`ApiError::Compacted`] when `from` is below the compaction floor; the floor itself is allowed.
    pub fn history(&self, from: i64, bytes_max: usize) -> Result<History, ApiError> {
        let answer = || -> Result<History, Fail> {
            let opened = self.open()?;
            let meta = &opened.meta;
            if from < meta.compact {
                return Err(ApiError::Compacted.into());
            }
            let mut found = History {
                revisions: Vec::new(),
                next: from.max(meta.revision + 1),
            };
            let mut bytes = 0;
            let keys = opened.keys;
            let pairs = opened
                .snapshot
                .scan(&keys.revision(from), &keys.end(REVISION));
            for pair in pairs {
                for (revision, changes) in codec::decode_revisions(pair?.1)? {
                    if revision < from {
                        continue;
                    }
                    if bytes >= bytes_max && !found.revisions.is_empty() {
                        found.next = revision;
                        return Ok(found);
                    }
                    let events = events(&opened, revision, changes, &mut bytes)?;
                    found
                        .revisions
                        .push(Arc::new(RevisionEvents { revision, events }));
                }
            }
            Ok(found)
        };
        Ok(answer()?)
    }

    /// The key as it was before the change at `mod_revision`; none when it was absent or is compacted.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn kv_before(&self, key: &[u8], mod_revision: i64) -> Result<Option<KeyValue>, ApiError> {
        let answer = || -> Result<Option<KeyValue>, Fail> {
            let opened = self.open()?;
            let meta = &opened.meta;
            if mod_revision <= 1 || mod_revision - 1 < meta.compact {
                return Ok(None);
            }
            Ok(opened
                .view()
                .at(&Bytes::copy_from_slice(key), mod_revision - 1)?)
        };
        Ok(answer()?)
    }

    /// A lease, if it exists.
    #[must_use]
    pub fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.leases
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .copied()
    }

    /// All leases, by id.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseInfo> {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        leases.values().copied().collect()
    }

    /// The keys attached to a lease, in order.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError> {
        let opened = self.open().map_err(Fail::Engine)?;
        Ok(lease_keys(&opened.snapshot, opened.keys, id).map_err(Fail::Engine)?)
    }

    /// A hash of all versions up to `revision` (0: the newest) that compaction keeps, however far it has come. For
    /// comparing members of one cluster with each other.
    ///
    /// # Errors
    /// A compacted or future revision; an internal error when the engine fails.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, ApiError> {
        let answer = || -> Result<HashKvResponse, Fail> {
            let opened = self.open()?;
            let meta = &opened.meta;
            check_revision(revision, meta.revision, meta.compact)?;
            let at = if revision > 0 {
                revision
            } else {
                meta.revision
            };
            let mut hash = crc32fast::Hasher::new();
            for_each_version(&opened, at, |key, record| {
                hash.update(key);
                hash.update(record);
                true
            })?;
            Ok(HashKvResponse {
                header: header(meta.revision),
                hash: hash.finalize(),
                compact_revision: meta.compact,
                hash_revision: at,
            })
        };
        Ok(answer()?)
    }

    /// All applied state as of now, to be written as a backup.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn backup(&self) -> Result<Backup, ApiError> {
        let Opened {
            snapshot,
            keys,
            meta,
            _generation,
            ..
        } = self.open().map_err(Fail::Engine)?;
        let revision = meta.revision;
        let cut = KvCut {
            snapshot,
            keys,
            meta,
            _generation,
        };
        Ok(Backup { cut, revision })
    }

    /// A hash over the logical state: live keys, history above the compaction floor, leases, membership, alarms, users and
    /// roles, which forwarded commands were applied, revision.
    /// Replicas at the same applied index have the same one, however far compaction has come.
    ///
    /// # Errors
    /// An internal error when the engine fails.
    pub fn state_hash(&self) -> Result<u64, ApiError> {
        let cut = StateCut::new(self.open().map_err(Fail::Engine)?);
        let hash = cut.hash(&AtomicBool::new(false))?;
        Ok(hash.expect("nobody stops it"))
    }
}

/// Whether a transaction reads a range, in either branch.
fn has_range(txn: &TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| match &op.request {
        Some(Request::RequestRange(range)) => !range.range_end.is_empty(),
        _ => false,
    })
}

fn events(
    opened: &Opened,
    revision: i64,
    changes: Vec<Change>,
    bytes: &mut usize,
) -> Result<Vec<Event>, EngineError> {
    let mut events = Vec::with_capacity(changes.len());
    for (kind, key) in changes {
        let kv = match kind {
            EventKind::Delete => KeyValue {
                key,
                mod_revision: revision,
                ..KeyValue::default()
            },
            EventKind::Put => {
                let record = Read::get(&opened.snapshot, &opened.keys.version(&key, revision))?;
                let record = record.ok_or_else(|| damaged("a revision has no version"))?;
                key_value(key, revision, Version::decode(record)?)
                    .ok_or_else(|| damaged("a put left a tombstone"))?
            }
        };
        *bytes += kv.key.len() + kv.value.len() + 64;
        events.push(Event { kind, kv });
    }
    Ok(events)
}

/// Calls `see` with each version up to `revision`, until it says no: its key without group and generation, and its
/// record. Of what lies at or below the floor only the newest version of a key counts, and only if it is live: that is
/// what compaction leaves.
pub(super) fn for_each_version(
    opened: &Opened,
    revision: i64,
    mut see: impl FnMut(&[u8], &Bytes) -> bool,
) -> Result<(), EngineError> {
    let (keys, floor) = (opened.keys, opened.meta.compact);
    let (mut covered, from) = (None, keys.first(VERSION));
    for pair in opened.snapshot.scan(&from, &keys.end(VERSION)) {
        let (at, record) = pair?;
        let (key, modified) = codec::split_version(&at)?;
        if modified > revision {
            continue;
        }
        if modified <= floor {
            if covered.as_ref() == Some(&key) {
                continue;
            }
            covered = Some(key);
            if codec::is_tombstone(&record)? {
                continue;
            }
        }
        if !see(&at[PREFIX..], &record) {
            break;
        }
    }
    Ok(())
}
