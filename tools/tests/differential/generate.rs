//! Random requests to the key-value service and to leases: few keys, so that they meet, and among them those over which
//! bounds and encodings stumble; every option, in and out of its range.

use bytes::Bytes;
use kv_server::pb::etcdserverpb as pb;
use pb::compare::TargetUnion;
use pb::request_op::Request;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

use super::calls::Call;

/// Ordinary keys, and those that bounds and prefixes stumble over.
const KEYS: [&[u8]; 22] = [
    b"a",
    b"a\0",
    b"a/",
    b"a/1",
    b"a/2",
    b"a/3",
    b"a0",
    b"a\xff",
    b"a\xff\xff",
    b"b",
    b"b/1",
    b"b/2",
    b"c",
    b"\0",
    b"\0\0",
    b"\x01",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\0",
    b"k",
    b"kk",
    "\u{e9}".as_bytes(),
];
/// Few, so that values compare equal, and one that is longer than a short string.
const VALUES: [&[u8]; 8] = [
    b"",
    b"\0",
    b"1",
    b"10",
    b"2",
    b"v",
    b"\xff",
    b"a value of more bytes than the others have",
];
/// Ids that leases are granted under.
pub(crate) const LEASES: [i64; 10] = [1, 2, 3, 7, 10, 1 << 20, (1 << 40) + 5, i64::MAX, -1, -77];
/// Operations of one transaction at most: the default.
const OPS_MAX: usize = 128;

/// What the test knows of both servers, from answers in which they agree.
#[derive(Debug)]
pub(crate) struct Known {
    /// The newest revision.
    pub(crate) revision: i64,
    /// The compaction floor.
    pub(crate) floor: i64,
    /// Leases that were granted and not revoked.
    pub(crate) leases: Vec<i64>,
}

pub(crate) fn one_in(rng: &mut SmallRng, n: u32) -> bool {
    rng.random_range(0..n) == 0
}

pub(crate) fn pick<T: Copy>(rng: &mut SmallRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

pub(crate) fn key(rng: &mut SmallRng) -> Bytes {
    match rng.random_range(0..60) {
        0 => Bytes::new(),
        1..10 => format!("k{:02}", rng.random_range(0..40)).into(),
        _ => Bytes::from_static(pick(rng, &KEYS)),
    }
}

fn value(rng: &mut SmallRng) -> Bytes {
    match rng.random_range(0..40) {
        0 => {
            let mut value = vec![0; rng.random_range(100..4_000)];
            rng.fill_bytes(&mut value);
            value.into()
        }
        _ => Bytes::from_static(pick(rng, &VALUES)),
    }
}

/// The end of a range that begins with `key`.
pub(crate) fn range_end(rng: &mut SmallRng, key: &[u8]) -> Bytes {
    match rng.random_range(0..12) {
        0..5 => Bytes::new(),
        5..7 => prefix_end(key).into(),
        7 => Bytes::from_static(b"\0"),
        8 => Bytes::from_static(b"\xff\xff"),
        9 => Bytes::copy_from_slice(&[key, b"\0"].concat()),
        _ => self::key(rng),
    }
}

/// The first key behind all that begin with a prefix; a zero byte when there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// Mostly one that exists.
pub(crate) fn revision(rng: &mut SmallRng, known: &Known) -> i64 {
    let (floor, newest) = (known.floor.max(1), known.revision);
    match rng.random_range(0..24) {
        0..12 => 0,
        12..18 => rng.random_range(floor..=newest),
        18 => known.floor,
        19 => known.floor - 1,
        20 => newest,
        21 => newest + 1,
        22 => pick(rng, &[i64::MAX, i64::MIN, -1, 1, 2]),
        _ => newest - rng.random_range(0..10),
    }
}

/// A bound of a filter, mostly none.
fn bound(rng: &mut SmallRng, known: &Known) -> i64 {
    match rng.random_range(0..10) {
        0 => rng.random_range(1..=known.revision),
        1 => known.revision - rng.random_range(0..40),
        _ => 0,
    }
}

pub(crate) fn lease(rng: &mut SmallRng, known: &Known) -> i64 {
    if known.leases.is_empty() || one_in(rng, 8) {
        pick(rng, &LEASES)
    } else {
        pick(rng, &known.leases)
    }
}

pub(crate) fn range(rng: &mut SmallRng, known: &Known) -> pb::RangeRequest {
    let key = key(rng);
    let limit = match rng.random_range(0..12) {
        0..6 => 0,
        6 => pick(rng, &[-1, i64::MAX, i64::MIN, 100]),
        _ => rng.random_range(1..6),
    };
    let mut request = pb::RangeRequest {
        range_end: range_end(rng, &key),
        key,
        limit,
        revision: revision(rng, known),
        serializable: one_in(rng, 4),
        keys_only: one_in(rng, 8),
        count_only: one_in(rng, 10),
        ..Default::default()
    };
    if one_in(rng, 2) {
        request.sort_order = rng.random_range(0..3);
        request.sort_target = rng.random_range(0..5);
    }
    if one_in(rng, 3) {
        request.min_mod_revision = bound(rng, known);
        request.max_mod_revision = bound(rng, known);
        request.min_create_revision = bound(rng, known);
        request.max_create_revision = bound(rng, known);
    }
    request
}

pub(crate) fn put(rng: &mut SmallRng, known: &Known) -> pb::PutRequest {
    let mut request = pb::PutRequest {
        key: key(rng),
        value: value(rng),
        prev_kv: one_in(rng, 3),
        ignore_value: one_in(rng, 12),
        ignore_lease: one_in(rng, 12),
        ..Default::default()
    };
    if one_in(rng, 4) {
        request.lease = lease(rng, known);
    }
    // Together with what it ignores it is refused; seldom, or ignoring would hardly be seen.
    if request.ignore_value && !one_in(rng, 8) {
        request.value = Bytes::new();
    }
    if request.ignore_lease && !one_in(rng, 8) {
        request.lease = 0;
    }
    request
}

pub(crate) fn delete_range(rng: &mut SmallRng) -> pb::DeleteRangeRequest {
    let key = key(rng);
    // Open ends empty the store; few of them let it fill.
    let range_end = if one_in(rng, 3) {
        range_end(rng, &key)
    } else {
        Bytes::new()
    };
    let prev_kv = one_in(rng, 3);
    pb::DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    }
}

fn compare(rng: &mut SmallRng, known: &Known) -> pb::Compare {
    let key = key(rng);
    let mut target = rng.random_range(0..5);
    let number = match rng.random_range(0..6) {
        0 | 1 => 0,
        2 => 1,
        3 => known.revision,
        4 => lease(rng, known),
        _ => rng.random_range(0..=known.revision),
    };
    let union = if one_in(rng, 30) {
        rng.random_range(0..6)
    } else {
        target
    };
    let target_union = match union {
        0 => Some(TargetUnion::Version(number.min(6))),
        1 => Some(TargetUnion::CreateRevision(number)),
        2 => Some(TargetUnion::ModRevision(number)),
        3 => Some(TargetUnion::Value(value(rng))),
        4 => Some(TargetUnion::Lease(number)),
        _ => None,
    };
    if one_in(rng, 60) {
        target = pick(rng, &[5, -1]);
    }
    let result = if one_in(rng, 60) {
        pick(rng, &[4, -1])
    } else {
        rng.random_range(0..4)
    };
    let range_end = if one_in(rng, 4) {
        range_end(rng, &key)
    } else {
        Bytes::new()
    };
    pb::Compare {
        result,
        target,
        key,
        range_end,
        target_union,
    }
}

fn op(rng: &mut SmallRng, known: &Known, depth: u32) -> pb::RequestOp {
    let request = match rng.random_range(0..100) {
        0 => None,
        1..35 => {
            let mut request = range(rng, known);
            // A revision that cannot be read refuses the whole; mostly it is the current one.
            if !one_in(rng, 6) {
                request.revision = 0;
            }
            Some(Request::RequestRange(request))
        }
        35..70 => Some(Request::RequestPut(put(rng, known))),
        70..88 => {
            let mut request = delete_range(rng);
            // See `known`.
            if request.range_end == b"\0"[..] {
                request.range_end = Bytes::from_static(b"\xff\xff\xff");
            }
            Some(Request::RequestDeleteRange(request))
        }
        _ if depth == 0 => Some(Request::RequestPut(put(rng, known))),
        _ => Some(Request::RequestTxn(txn(rng, known, depth - 1))),
    };
    pb::RequestOp { request }
}

fn ops(rng: &mut SmallRng, known: &Known, depth: u32) -> Vec<pb::RequestOp> {
    let count = rng.random_range(0..4);
    (0..count).map(|_| op(rng, known, depth)).collect()
}

pub(crate) fn txn(rng: &mut SmallRng, known: &Known, depth: u32) -> pb::TxnRequest {
    let compares = rng.random_range(0..3);
    let mut request = pb::TxnRequest {
        compare: (0..compares).map(|_| compare(rng, known)).collect(),
        success: ops(rng, known, depth),
        failure: ops(rng, known, depth),
    };
    if one_in(rng, 120) {
        // Around the limit, on one of the three lists.
        let count = OPS_MAX - 1 + rng.random_range(0..3);
        let point = |n: usize| pb::RequestOp {
            request: Some(Request::RequestRange(pb::RangeRequest {
                key: format!("k{n:02}").into(),
                ..Default::default()
            })),
        };
        match rng.random_range(0..3) {
            0 => request.compare = (0..count).map(|_| compare(rng, known)).collect(),
            1 => request.success = (0..count).map(point).collect(),
            _ => request.failure = (0..count).map(point).collect(),
        }
    }
    request
}

/// A transaction that only reads has a way of its own.
fn read_only_txn(rng: &mut SmallRng, known: &Known) -> pb::TxnRequest {
    let mut request = txn(rng, known, 0);
    for op in request.success.iter_mut().chain(&mut request.failure) {
        op.request = Some(Request::RequestRange(range(rng, known)));
    }
    request
}

fn compact(rng: &mut SmallRng, known: &Known) -> pb::CompactionRequest {
    let newest = known.revision;
    let revision = match rng.random_range(0..16) {
        0 => 0,
        1 => known.floor,
        2 => known.floor - 1,
        3 => known.floor + 1,
        4 => newest + 1,
        5 => pick(rng, &[i64::MAX, i64::MIN, -1, 1]),
        6 => newest,
        _ => newest - rng.random_range(0..60),
    };
    let physical = one_in(rng, 2);
    pb::CompactionRequest { revision, physical }
}

/// One request to the key-value service.
pub(crate) fn kv(rng: &mut SmallRng, known: &Known) -> Call {
    match rng.random_range(0..200) {
        0..62 => Call::Range(range(rng, known)),
        62..118 => Call::Put(put(rng, known)),
        118..140 => Call::DeleteRange(delete_range(rng)),
        140..185 => Call::Txn(txn(rng, known, 2)),
        185..198 => Call::Txn(read_only_txn(rng, known)),
        _ => Call::Compact(compact(rng, known)),
    }
}

/// One request about leases. What is granted lives for hours: when a lease ends by itself is no matter of answers.
pub(crate) fn leases(rng: &mut SmallRng, known: &Known) -> Call {
    let id = lease(rng, known);
    match rng.random_range(0..20) {
        0..6 => {
            let ttl = match rng.random_range(0..8) {
                0 => pick(
                    rng,
                    &[9_000_000_000, 9_000_000_001, i64::MAX, 8_999_999_999],
                ),
                _ => rng.random_range(20_000..40_000),
            };
            let id = pick(rng, &LEASES);
            Call::Grant(pb::LeaseGrantRequest { ttl, id })
        }
        6..9 => Call::Revoke(pb::LeaseRevokeRequest { id }),
        9..14 => {
            let keys = !one_in(rng, 4);
            Call::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys })
        }
        14..16 => Call::Leases(pb::LeaseLeasesRequest {}),
        _ => {
            let id = if one_in(rng, 12) { 0 } else { id };
            Call::KeepAlive(pb::LeaseKeepAliveRequest { id })
        }
    }
}
