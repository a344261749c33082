//! Reading keys at a revision, from a snapshot or from a batch in progress. Used by the store and by the writer.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use tonic::Code;

use super::cached::Blocks;
use super::codec::{self, Keys, LATEST, Latest, REVISION, VERSION, Version, damaged};
use super::types::EventKind;
use crate::engine::{EngineError, Pair, Snapshot};
use crate::error::ApiError;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{Compare, RangeRequest, RangeResponse, ResponseHeader};
use crate::pb::mvccpb::KeyValue;

/// Superseded versions of one key that a scan steps over before it seeks past them.
const STEPS_MAX: usize = 8;
/// The same where the newest state is read, which has another way to the rest: a get for each key costs as much as these.
const NEWEST_STEPS_MAX: usize = 4;

/// Changes since an older revision that are looked at, instead of all keys, to count what there was.
const CHANGES_MAX: usize = 10_000;
/// Bytes of keys and values of a list that is answered at once.
const AT_ONCE_BYTES_MAX: usize = 128 << 10;

/// Why a read or a command failed: the caller's fault, or the engine's.
#[derive(Debug)]
pub(super) enum Fail {
    Api(ApiError),
    Engine(EngineError),
}

impl From<ApiError> for Fail {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<EngineError> for Fail {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<Fail> for ApiError {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Api(error) => error,
            Fail::Engine(error) => Self::Other(Code::Internal, error.to_string()),
        }
    }
}

pub(super) type Pairs<'a> = Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a>;

/// What reads need of an engine.
pub(super) trait Read {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    fn scan(&self, from: &[u8], to: &[u8]) -> Pairs<'_>;
}

impl Read for Arc<dyn Snapshot> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.as_ref().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Pairs<'_> {
        if from >= to {
            return Box::new(std::iter::empty());
        }
        Box::new(
            self.as_ref()
                .range(Bound::Included(from), Bound::Excluded(to)),
        )
    }
}

pub(super) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

pub(super) fn check_revision(wanted: i64, current: i64, compact: i64) -> Result<(), ApiError> {
    if wanted <= 0 {
        Ok(())
    } else if wanted > current {
        Err(ApiError::FutureRevision)
    } else if wanted < compact {
        Err(ApiError::Compacted)
    } else {
        Ok(())
    }
}

/// For a range in a transaction, where etcd takes a revision below zero for one that was compacted.
pub(super) fn check_txn_revision(wanted: i64, current: i64, compact: i64) -> Result<(), ApiError> {
    if wanted < 0 && wanted < compact {
        return Err(ApiError::Compacted);
    }
    check_revision(wanted, current, compact)
}

/// One view of one keyspace.
pub(super) struct View<'a> {
    pub(super) read: &'a dyn Read,
    pub(super) keys: Keys,
    /// Of the state that is read, if there are some.
    pub(super) blocks: Option<Blocks<'a>>,
}

impl View<'_> {
    pub(super) fn latest(&self, key: &[u8]) -> Result<Option<Latest>, EngineError> {
        self.read
            .get(&self.keys.latest(key))?
            .map(Latest::decode)
            .transpose()
    }

    /// A live key in full.
    pub(super) fn current(&self, key: &Bytes, latest: Latest) -> Result<KeyValue, EngineError> {
        let record = self.read.get(&self.keys.version(key, latest.modified))?;
        let record = record.ok_or_else(|| damaged("a live key has no version record"))?;
        key_value(key.clone(), latest.modified, Version::decode(record)?)
            .ok_or_else(|| damaged("a live key ends in a tombstone"))
    }

    /// The key as of a revision.
    pub(super) fn at(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, EngineError> {
        let (from, to) = (self.keys.version(key, revision), self.keys.version_end(key));
        let Some(found) = self.read.scan(&from, &to).next() else {
            return Ok(None);
        };
        let (at, record) = found?;
        let (_, modified) = codec::split_version(&at)?;
        Ok(key_value(key.clone(), modified, Version::decode(record)?))
    }

    fn bounds(&self, table: u8, key: &[u8], end: &[u8]) -> (Bytes, Bytes) {
        let place = |key: &[u8]| match table {
            VERSION => self.keys.version(key, i64::MAX),
            _ => self.keys.latest(key),
        };
        let to = if end == [0] {
            self.keys.end(table)
        } else {
            place(end)
        };
        (place(key), to)
    }

    /// The live keys of a range, newest state. An empty `end` means the one key.
    pub(super) fn live(
        &self,
        key: &Bytes,
        end: &[u8],
        mut visit: impl FnMut(Bytes, Latest) -> Result<ControlFlow<()>, EngineError>,
    ) -> Result<(), EngineError> {
        if end.is_empty() {
            if let Some(latest) = self.latest(key)? {
                let _ = visit(key.clone(), latest)?;
            }
            return Ok(());
        }
        let (from, to) = self.bounds(LATEST, key, end);
        for pair in self.read.scan(&from, &to) {
            let (at, record) = pair?;
            if visit(at.slice(codec::PREFIX..), Latest::decode(record)?)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many live keys a range has, newest state.
    fn count(&self, key: &Bytes, end: &[u8]) -> Result<i64, EngineError> {
        let end = (end != [0]).then_some(end);
        let Some(blocks) = &self.blocks else {
            return self.count_each(key, end);
        };
        // What has to be looked at may be in memory.
        blocks.sum(key, end, |from, to| match blocks.count(from.clone(), to) {
            (count, None) => Ok(count),
            (count, Some(rest)) => Ok(count + self.count_each(&rest, to)?),
        })
    }

    /// Each live key has one record, which need not be understood.
    fn count_each(&self, from: &[u8], to: Option<&[u8]>) -> Result<i64, EngineError> {
        let (from, to) = self.bounds(LATEST, from, to.unwrap_or(&[0]));
        let mut count = 0;
        for pair in self.read.scan(&from, &to) {
            pair?;
            count += 1;
        }
        Ok(count)
    }

    /// The live keys of a range in full, newest state, out of the engine. The versions are walked over, which is the shortest way
    /// while keys have few of them; from the first key on that has many, each is looked up.
    pub(super) fn walk_newest(
        &self,
        key: &Bytes,
        end: &[u8],
        mut visit: impl FnMut(KeyValue) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let (from, to) = self.bounds(VERSION, key, end);
        // No key is empty.
        let (mut done, mut steps) = (Bytes::new(), 0);
        let mut pairs = self.read.scan(&from, &to);
        loop {
            let Some(pair) = pairs.next() else {
                return Ok(());
            };
            let (at, record) = pair?;
            let (user, modified) = codec::split_version(&at)?;
            if user == done {
                steps += 1;
                if steps > NEWEST_STEPS_MAX {
                    break;
                }
                continue;
            }
            (done, steps) = (user.clone(), 0);
            if let Some(kv) = key_value(user, modified, Version::decode(record)?)
                && visit(kv).is_break()
            {
                return Ok(());
            }
        }
        drop(pairs);
        self.live(&behind(&done), end, |key, latest| {
            Ok(visit(self.current(&key, latest)?))
        })
    }

    /// The newest version at or below `revision` of each key of a range, live ones only.
    fn versions(
        &self,
        key: &[u8],
        end: &[u8],
        revision: i64,
        mut visit: impl FnMut(Bytes, i64, Bytes) -> Result<ControlFlow<()>, EngineError>,
    ) -> Result<(), EngineError> {
        let (mut from, to) = self.bounds(VERSION, key, end);
        let mut done: Option<Bytes> = None;
        'seek: loop {
            let mut steps = 0;
            for pair in self.read.scan(&from, &to) {
                let (at, record) = pair?;
                let (user, modified) = codec::split_version(&at)?;
                let superseded = done.as_ref() == Some(&user);
                if superseded || modified > revision {
                    steps += 1;
                    if steps > STEPS_MAX {
                        from = match superseded {
                            true => self.keys.version_end(&user),
                            false => self.keys.version(&user, revision),
                        };
                        continue 'seek;
                    }
                    continue;
                }
                steps = 0;
                if !codec::is_tombstone(&record)?
                    && visit(user.clone(), modified, record)?.is_break()
                {
                    return Ok(());
                }
                done = Some(user);
            }
            return Ok(());
        }
    }

    /// Answers a range. `newest` is the revision that a request without one reads at, pending changes included.
    pub(super) fn range(
        &self,
        request: &RangeRequest,
        newest: i64,
    ) -> Result<RangeResponse, EngineError> {
        let at = if request.revision <= 0 {
            newest
        } else {
            request.revision
        };
        let mut response = RangeResponse {
            header: header(newest),
            ..RangeResponse::default()
        };
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|limit| *limit > 0);
        let plan = Plan::of(request);
        let pushed = limit.filter(|_| plan.plain());
        let one_more = limit.filter(|_| plan.cut_unsorted());
        let one_more = one_more.map(|limit| limit.saturating_add(1));
        let keep = pushed.or(one_more).unwrap_or(usize::MAX);
        if at >= newest {
            self.collect_current(request, keep, &mut response)?;
        } else {
            self.collect_old(request, at, newest, keep, &mut response)?;
        }
        plan.filter(&mut response.kvs);
        plan.sort(&mut response.kvs);
        if let Some(limit) = limit.filter(|_| !request.count_only) {
            let found = match pushed {
                Some(_) => usize::try_from(response.count).unwrap_or(usize::MAX),
                None => response.kvs.len(),
            };
            response.more = found > limit;
            response.kvs.truncate(limit);
        }
        if request.keys_only {
            response
                .kvs
                .iter_mut()
                .for_each(|kv| kv.value = Bytes::new());
        }
        Ok(response)
    }

    fn collect_current(
        &self,
        request: &RangeRequest,
        keep: usize,
        response: &mut RangeResponse,
    ) -> Result<(), EngineError> {
        let by_value = request.sort_target == SortTarget::Value as i32;
        if request.count_only && !request.range_end.is_empty() {
            response.count = self.count(&request.key, &request.range_end)?;
            return Ok(());
        }
        let small = request.count_only || (request.keys_only && !by_value);
        if small || request.range_end.is_empty() {
            return self.live(&request.key, &request.range_end, |key, latest| {
                response.count += 1;
                if !request.count_only && response.kvs.len() < keep {
                    response.kvs.push(match small {
                        true => without_value(key, latest),
                        false => self.current(&key, latest)?,
                    });
                }
                Ok(ControlFlow::Continue(()))
            });
        }
        self.newest(&request.key, &request.range_end, keep, |kv| {
            response.kvs.push(kv);
            match response.kvs.len() < keep {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        response.count = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
        if response.kvs.len() < keep {
            return Ok(());
        }
        // The rest only counts: the small records do for that.
        let Some(last) = response.kvs.last() else {
            return Ok(());
        };
        response.count += self.count(&behind(&last.key), &request.range_end)?;
        Ok(())
    }

    fn collect_old(
        &self,
        request: &RangeRequest,
        at: i64,
        newest: i64,
        keep: usize,
        response: &mut RangeResponse,
    ) -> Result<(), EngineError> {
        if request.range_end.is_empty() {
            let found = self.at(&request.key, at)?;
            response.count = i64::from(found.is_some());
            response.kvs.extend(found.filter(|_| !request.count_only));
            return Ok(());
        }
        let (mut rest, end) = (request.key.clone(), &request.range_end);
        if !request.count_only && keep > 0 {
            let mut add = |kv: Option<KeyValue>| {
                response.kvs.extend(kv);
                match response.kvs.len() < keep {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            };
            self.versions(&rest, end, at, |key, modified, record| {
                Ok(add(key_value(key, modified, Version::decode(record)?)))
            })?;
            response.count = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
            match response.kvs.last().filter(|_| response.kvs.len() >= keep) {
                Some(last) => rest = behind(&last.key),
                None => return Ok(()),
            }
        }
        response.count += self.count_at(&rest, end, at, newest)?;
        Ok(())
    }

    /// How many live keys a range had at a revision.
    fn count_at(&self, key: &Bytes, end: &[u8], at: i64, newest: i64) -> Result<i64, EngineError> {
        if newest - at <= CHANGES_MAX as i64
            && let Some(came) = self.came_since(key, end, at)?
        {
            return Ok(self.count(key, end)? - came);
        }
        let mut count = 0;
        self.versions(key, end, at, |_, _, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    /// How many more live keys a range has than at a revision; none if that is no shorter way than to count, or if there are
    /// changes that no record tells of yet.
    fn came_since(&self, key: &Bytes, end: &[u8], at: i64) -> Result<Option<i64>, EngineError> {
        if self.blocks.is_none_or(|blocks| blocks.pending.is_some()) {
            return Ok(None);
        }
        let within = |changed: &Bytes| changed >= key && (end == [0] || **changed < *end);
        // The first change of each key, and whether it lives after the last one.
        let mut changed: BTreeMap<Bytes, (i64, EventKind, bool)> = BTreeMap::new();
        let (from, to) = (self.keys.revision(at + 1), self.keys.end(REVISION));
        let mut seen = 0;
        for pair in self.read.scan(&from, &to) {
            for (revision, changes) in codec::decode_revisions(pair?.1)? {
                seen += changes.len();
                if seen > CHANGES_MAX {
                    return Ok(None);
                }
                if revision <= at {
                    continue;
                }
                for (kind, key) in changes.into_iter().filter(|(_, key)| within(key)) {
                    let lives = kind == EventKind::Put;
                    changed.entry(key).or_insert((revision, kind, lives)).2 = lives;
                }
            }
        }
        let mut came = 0;
        for (key, (revision, kind, lives)) in changed {
            came += i64::from(lives) - i64::from(self.lived_before(&key, revision, kind)?);
        }
        Ok(Some(came))
    }

    /// Whether a key was there before a change of it.
    fn lived_before(
        &self,
        key: &[u8],
        revision: i64,
        kind: EventKind,
    ) -> Result<bool, EngineError> {
        if kind == EventKind::Delete {
            return Ok(true);
        }
        let record = self.read.get(&self.keys.version(key, revision))?;
        let record = record.ok_or_else(|| damaged("a revision has no version"))?;
        Ok(Version::decode(record)?.created != revision)
    }

    /// The first live keys of a range as of a revision, at most so many, and no more once there are so many bytes of
    /// them; and whether there are others.
    pub(super) fn part(
        &self,
        request: &RangeRequest,
        newest: i64,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<KeyValue>, bool), EngineError> {
        let at = match request.revision {
            ..=0 => newest,
            revision => revision,
        };
        let (mut kvs, mut bytes, mut more) = (Vec::new(), 0, false);
        let mut add = |kv: KeyValue| {
            more = kvs.len() >= keys_max || bytes >= bytes_max;
            if more {
                return ControlFlow::Break(());
            }
            bytes += kv.key.len() + kv.value.len();
            kvs.push(kv);
            ControlFlow::Continue(())
        };
        let (key, end) = (&request.key, &request.range_end);
        if request.keys_only && at >= newest {
            self.live(key, end, |key, latest| Ok(add(without_value(key, latest))))?;
        } else if at >= newest {
            self.newest(key, end, keys_max, &mut add)?;
        } else {
            self.versions(key, end, at, |key, modified, record| {
                let mut version = Version::decode(record)?;
                if request.keys_only {
                    version.value = Bytes::new();
                }
                Ok(key_value(key, modified, version).map_or(ControlFlow::Continue(()), &mut add))
            })?;
        }
        Ok((kvs, more))
    }

    /// As [`Self::range`], if all that the answer needs is in memory and it is short: whoever asks need not wait for the
    /// engine.
    pub(super) fn range_at_once(
        &self,
        request: &RangeRequest,
        newest: i64,
    ) -> Option<RangeResponse> {
        let blocks = self.blocks.as_ref()?;
        if !is_newest_list(request, newest) {
            return None;
        }
        let limit = usize::try_from(request.limit).ok();
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let end = (request.range_end != [0][..]).then_some(&request.range_end[..]);
        let mut response = RangeResponse {
            header: header(newest),
            ..RangeResponse::default()
        };
        let mut bytes = 0;
        let rest = blocks.visit(request.key.clone(), end, &mut |kv| {
            bytes += kv.key.len() + kv.value.len();
            response.kvs.push(kv);
            match response.kvs.len() < limit && bytes <= AT_ONCE_BYTES_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        if rest.is_some() || bytes > AT_ONCE_BYTES_MAX {
            return None;
        }
        response.count = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
        if response.kvs.len() >= limit {
            let next = behind(&response.kvs.last()?.key);
            let behind = blocks.count_at_once(&next, end)?;
            (response.count, response.more) = (response.count + behind, behind > 0);
        }
        Some(response)
    }

    /// A key in the middle of a list of at least so many keys.
    pub(super) fn middle_of_list(
        &self,
        request: &RangeRequest,
        newest: i64,
        keys_min: u64,
    ) -> Option<Bytes> {
        if !is_newest_list(request, newest) {
            return None;
        }
        let end = (request.range_end != [0][..]).then_some(&request.range_end[..]);
        let blocks = self.blocks.as_ref()?;
        blocks.counts.middle(&request.key, end, keys_min)
    }

    /// As [`Self::range`], but the keys of a list that is longer than `bytes_max` are given to `write`, part by part. A
    /// request that has to see all keys before it can answer, or that has few, is answered as ever.
    pub(super) fn range_in_parts(
        &self,
        request: &RangeRequest,
        newest: i64,
        bytes_max: usize,
        write: &mut dyn FnMut(Vec<KeyValue>),
    ) -> Result<RangeResponse, EngineError> {
        if !Plan::of(request).plain() || request.count_only || request.range_end.is_empty() {
            return self.range(request, newest);
        }
        let limit = usize::try_from(request.limit).ok();
        let mut left = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let (mut rest, mut is_long) = (request.clone(), false);
        let mut response = RangeResponse {
            header: header(newest),
            ..RangeResponse::default()
        };
        loop {
            let (kvs, more) = self.part(&rest, newest, left, bytes_max)?;
            left -= kvs.len();
            response.count += i64::try_from(kvs.len()).unwrap_or(i64::MAX);
            let next = kvs.last().filter(|_| more);
            let next = next.map(|last| behind(&last.key));
            is_long |= next.is_some() && left > 0;
            if is_long {
                write(kvs);
            } else {
                response.kvs = kvs;
            }
            let Some(next) = next else {
                return Ok(response);
            };
            rest.key = next;
            if left == 0 {
                rest.count_only = true;
                response.count += self.range(&rest, newest)?.count;
                response.more = true;
                return Ok(response);
            }
        }
    }

    /// Evaluates one compare. A missing key compares as zeros; its value compares as false.
    pub(super) fn holds(&self, compare: &Compare) -> Result<bool, EngineError> {
        let by_value = compare.target == CompareTarget::Value as i32;
        let (mut found, mut all) = (false, true);
        self.live(&compare.key, &compare.range_end, |key, latest| {
            found = true;
            let kv = if by_value {
                self.current(&key, latest)?
            } else {
                without_value(key, latest)
            };
            all = matches(compare, &kv);
            Ok(if all {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        Ok(match found {
            true => all,
            false => !by_value && matches(compare, &KeyValue::default()),
        })
    }
}

/// Whether a request asks for keys with their values, as they lie in the newest state.
fn is_newest_list(request: &RangeRequest, newest: i64) -> bool {
    let is_list = !request.range_end.is_empty() && !request.count_only && !request.keys_only;
    let is_newest = request.revision <= 0 || request.revision == newest;
    is_list && is_newest && Plan::of(request).plain()
}

/// The least key above another one.
fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

fn matches(compare: &Compare, kv: &KeyValue) -> bool {
    let number = |target: Option<i64>, of: i64| of.cmp(&target.unwrap_or(0));
    let union = compare.target_union.as_ref();
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => number(
            union.and_then(|u| {
                if let TargetUnion::Version(v) = u {
                    Some(*v)
                } else {
                    None
                }
            }),
            kv.version,
        ),
        Ok(CompareTarget::Create) => number(
            union.and_then(|u| {
                if let TargetUnion::CreateRevision(v) = u {
                    Some(*v)
                } else {
                    None
                }
            }),
            kv.create_revision,
        ),
        Ok(CompareTarget::Mod) => number(
            union.and_then(|u| {
                if let TargetUnion::ModRevision(v) = u {
                    Some(*v)
                } else {
                    None
                }
            }),
            kv.mod_revision,
        ),
        Ok(CompareTarget::Lease) => number(
            union.and_then(|u| {
                if let TargetUnion::Lease(v) = u {
                    Some(*v)
                } else {
                    None
                }
            }),
            kv.lease,
        ),
        Ok(CompareTarget::Value) => {
            let wanted: &[u8] = match union {
                Some(TargetUnion::Value(value)) => value,
                _ => b"",
            };
            kv.value.as_ref().cmp(wanted)
        }
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

fn without_value(key: Bytes, latest: Latest) -> KeyValue {
    KeyValue {
        key,
        create_revision: latest.created,
        mod_revision: latest.modified,
        version: latest.version,
        value: Bytes::new(),
        lease: latest.lease,
    }
}

pub(super) fn key_value(key: Bytes, modified: i64, version: Version) -> Option<KeyValue> {
    (!version.tombstone).then_some(KeyValue {
        key,
        create_revision: version.created,
        mod_revision: modified,
        version: version.version,
        value: version.value,
        lease: version.lease,
    })
}

/// How a range wants its keys filtered and sorted.
struct Plan<'a> {
    request: &'a RangeRequest,
    order: SortOrder,
    target: SortTarget,
}

impl<'a> Plan<'a> {
    fn of(request: &'a RangeRequest) -> Self {
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let mut order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        if order == SortOrder::None && target != SortTarget::Key {
            order = SortOrder::Ascend;
        }
        Self {
            request,
            order,
            target,
        }
    }

    /// True when keys come out as they lie, so that a limit can stop the scan.
    fn plain(&self) -> bool {
        self.target == SortTarget::Key && self.order != SortOrder::Descend && !self.filters()
    }

    /// True when only the keys up to the limit, and one more, are sorted and cut again: as etcd does where a target has no
    /// order.
    fn cut_unsorted(&self) -> bool {
        let no_order = self.request.sort_order == i32::from(SortOrder::None);
        no_order && self.target != SortTarget::Key && !self.filters()
    }

    fn filters(&self) -> bool {
        let request = self.request;
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        filters.iter().any(|filter| *filter != 0)
    }

    fn filter(&self, kvs: &mut Vec<KeyValue>) {
        if self.plain() {
            return;
        }
        let r = self.request;
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        kvs.retain(|kv| {
            within(kv.mod_revision, r.min_mod_revision, r.max_mod_revision)
                && within(
                    kv.create_revision,
                    r.min_create_revision,
                    r.max_create_revision,
                )
        });
    }

    fn sort(&self, kvs: &mut [KeyValue]) {
        let by = |a: &KeyValue, b: &KeyValue| match self.target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match self.order {
            SortOrder::Descend => kvs.sort_by(|a, b| by(b, a)),
            SortOrder::Ascend if self.target != SortTarget::Key => kvs.sort_by(by),
            SortOrder::Ascend | SortOrder::None => {}
        }
    }
}
