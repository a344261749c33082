//! Clients: random commands over few keys and few leases, so that they meet each other.
//!
//! Each command carries a number of its own, its tag, in a field that [`Command`] does not have and the store skips:
//! with it a command is recognised wherever it turns up, and none is equal to another.

use bytes::Bytes;
use kv_server::pb::command::{
    Command, LeaseCheckpoint, LeaseExpire, LeaseGrant, command::Op, lease_checkpoint, lease_expire,
};
use kv_server::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};
use prost::Message;
use raft_log::vfs::sim::Rng;

use super::model::Model;

/// Field 1000 of type fixed64.
const TAG_KEY: [u8; 2] = [0xc1, 0x3e];
const TAG_LEN: usize = TAG_KEY.len() + 8;
/// Leases that clients use.
const LEASES: u64 = 5;
/// Ordinary keys, and some that escaping and range bounds stumble over.
const KEYS: [&[u8]; 12] = [
    b"k/a", b"k/b", b"k/c", b"k/d", b"k/e", b"k/f", b"k", b"k\0", b"k\0\xff", b"\0", b"\xff", b"z",
];

/// Encodes a command with its tag.
#[must_use]
pub fn encode(op: Op, tag: u64) -> Bytes {
    tagged(&Command { op: Some(op) }.encode_to_vec(), tag)
}

/// Gives an encoded command its tag.
#[must_use]
pub fn tagged(command: &[u8], tag: u64) -> Bytes {
    let mut payload = command.to_vec();
    payload.extend_from_slice(&TAG_KEY);
    payload.extend_from_slice(&tag.to_le_bytes());
    payload.into()
}

/// The tag of a payload made by [`encode`].
#[must_use]
pub fn tag_of(payload: &[u8]) -> Option<u64> {
    let tail = payload.get(payload.len().checked_sub(TAG_LEN)?..)?;
    let number = tail.strip_prefix(&TAG_KEY)?;
    number.try_into().ok().map(u64::from_le_bytes)
}

/// Draws one command. `model` is a recent state, so that revisions and leases are often ones that exist.
#[must_use]
pub fn draw(rng: &mut Rng, model: &Model, tag: u64) -> Op {
    match rng.below(100) {
        0..45 => Op::Put(put(rng, model, tag)),
        45..57 => Op::DeleteRange(DeleteRangeRequest {
            key: key(rng),
            prev_kv: rng.chance(1, 3),
            ..DeleteRangeRequest::default()
        }),
        57..63 => Op::DeleteRange(delete_range(rng)),
        63..80 => Op::Txn(txn(rng, model, tag, 1)),
        80..86 => Op::Compact(CompactionRequest {
            revision: compaction(rng, model),
            physical: rng.chance(1, 2),
        }),
        86..92 => Op::LeaseGrant(LeaseGrant {
            id: lease(rng),
            ttl: 2 + rng.below(60) as i64,
        }),
        92..96 => Op::LeaseRevoke(LeaseRevokeRequest { id: lease(rng) }),
        96..98 => expiry(rng, model),
        _ => checkpoint(rng, model),
    }
}

/// The end of some leases; also of ones that do not exist, or were granted again since.
#[must_use]
pub fn expiry(rng: &mut Rng, model: &Model) -> Op {
    let items = granted(rng, model)
        .map(|(id, granted_index)| lease_expire::Item { id, granted_index })
        .collect();
    Op::LeaseExpire(LeaseExpire { items })
}

fn checkpoint(rng: &mut Rng, model: &Model) -> Op {
    let remaining_ttl = rng.below(20) as i64;
    let items = granted(rng, model)
        .map(|(id, granted_index)| lease_checkpoint::Item {
            id,
            granted_index,
            remaining_ttl,
        })
        .collect();
    Op::LeaseCheckpoint(LeaseCheckpoint { items })
}

fn granted<'a>(rng: &'a mut Rng, model: &'a Model) -> impl Iterator<Item = (i64, u64)> + 'a {
    let leases = model.leases();
    let wrong = rng.chance(1, 8);
    leases
        .into_iter()
        .filter(|_| rng.chance(1, 2))
        .map(move |lease| (lease.id, lease.granted.0 + u64::from(wrong)))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Draws one of the keys.
#[must_use]
pub fn key(rng: &mut Rng) -> Bytes {
    Bytes::from_static(KEYS[rng.below(KEYS.len() as u64) as usize])
}

fn lease(rng: &mut Rng) -> i64 {
    1 + rng.below(LEASES) as i64
}

/// Mostly small; now and then so large that a few of them fill a segment.
fn value(rng: &mut Rng, tag: u64) -> Bytes {
    let len = match rng.below(8) {
        0 => 1500 + rng.below(2500),
        1 => 300 + rng.below(500),
        _ => rng.below(60),
    };
    let mut value = format!("{tag}:{}:", rng.next_u64()).into_bytes();
    value.resize(value.len() + len as usize, b'.');
    value.into()
}

fn put(rng: &mut Rng, model: &Model, tag: u64) -> PutRequest {
    let ignore_value = rng.chance(1, 16);
    let ignore_lease = rng.chance(1, 16);
    let leases = model.leases();
    let lease = match rng.below(12) {
        0 => lease(rng),
        1..4 if !leases.is_empty() => leases[rng.below(leases.len() as u64) as usize].id,
        _ => 0,
    };
    PutRequest {
        key: key(rng),
        value: if ignore_value {
            Bytes::new()
        } else {
            value(rng, tag)
        },
        lease: if ignore_lease { 0 } else { lease },
        prev_kv: rng.chance(1, 4),
        ignore_value,
        ignore_lease,
    }
}

fn delete_range(rng: &mut Rng) -> DeleteRangeRequest {
    let (key, range_end) = bounds(rng);
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: rng.chance(1, 3),
    }
}

/// Also empty and unbounded ranges.
fn bounds(rng: &mut Rng) -> (Bytes, Bytes) {
    let end = if rng.chance(1, 10) {
        Bytes::from_static(b"\0")
    } else {
        key(rng)
    };
    (key(rng), end)
}

fn compaction(rng: &mut Rng, model: &Model) -> i64 {
    let lowest = model.floor().max(0);
    let span = (model.revision() + 2 - lowest).max(1);
    lowest + rng.below(span.unsigned_abs()) as i64
}

fn txn(rng: &mut Rng, model: &Model, tag: u64, nesting: u32) -> TxnRequest {
    let compare = (0..rng.below(3)).map(|_| compare(rng, model)).collect();
    let success = ops(rng, model, tag, nesting);
    let failure = ops(rng, model, tag, nesting);
    TxnRequest {
        compare,
        success,
        failure,
    }
}

fn ops(rng: &mut Rng, model: &Model, tag: u64, nesting: u32) -> Vec<RequestOp> {
    let count = rng.below(4);
    let draw = |_| {
        let request = match rng.below(12) {
            0..6 => Request::RequestPut(PutRequest {
                // A key that may be missing would make the error depend on the order of checks.
                ignore_value: false,
                ignore_lease: false,
                value: value(rng, tag),
                ..put(rng, model, tag)
            }),
            6..8 => Request::RequestDeleteRange(DeleteRangeRequest {
                key: key(rng),
                ..DeleteRangeRequest::default()
            }),
            8 => Request::RequestDeleteRange(delete_range(rng)),
            9..11 => {
                let (key, range_end) = bounds(rng);
                Request::RequestRange(RangeRequest {
                    key,
                    range_end,
                    ..RangeRequest::default()
                })
            }
            _ if nesting > 0 => Request::RequestTxn(txn(rng, model, tag, nesting - 1)),
            _ => Request::RequestPut(PutRequest {
                key: key(rng),
                ..PutRequest::default()
            }),
        };
        RequestOp {
            request: Some(request),
        }
    };
    (0..count).map(draw).collect()
}

fn compare(rng: &mut Rng, model: &Model) -> Compare {
    let key = key(rng);
    let kv = model.get_at(&key, model.revision()).unwrap_or_default();
    let near = |rng: &mut Rng, number: i64| number + rng.below(3) as i64 - 1;
    let (target, union) = match rng.below(5) {
        0 => (
            CompareTarget::Version,
            TargetUnion::Version(near(rng, kv.version)),
        ),
        1 => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(near(rng, kv.create_revision)),
        ),
        2 => (
            CompareTarget::Mod,
            TargetUnion::ModRevision(near(rng, kv.mod_revision)),
        ),
        3 => (CompareTarget::Value, TargetUnion::Value(kv.value)),
        _ => (
            CompareTarget::Lease,
            TargetUnion::Lease(near(rng, kv.lease)),
        ),
    };
    let results = [
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ];
    Compare {
        result: results[rng.below(4) as usize] as i32,
        target: target as i32,
        key,
        target_union: Some(union),
        range_end: Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_with_tag_decodes_to_the_same_command() {
        let mut rng = Rng::new(1);
        let model = Model::default();
        for tag in 0..300 {
            let op = draw(&mut rng, &model, tag);
            let payload = encode(op.clone(), tag);
            assert_eq!(tag_of(&payload), Some(tag));
            assert_eq!(Command::decode(payload).unwrap().op, Some(op));
        }
        assert_eq!(tag_of(b""), None);
    }
}
