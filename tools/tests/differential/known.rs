//! Differences that are meant to be: each with its reason. Everything else that differs is a failure.
//!
//! What the generators leave out, because etcd 3.5.1 has no answer to compare with:
//! - a sort order or target that does not exist: 3.6 refuses it, 3.5.1 crashes, or takes it for none;
//! - a negative start revision of a watch: 3.6 refuses it, 3.5.1 takes it for one that was compacted;
//! - a member behind a Unix socket, which we have no links to;
//! - other URLs for a learner: 3.5.1 makes a voter of it;
//! - a deletion to the open end in a transaction: 3.5.1 does not see that it overlaps a put of the same transaction, so that a
//!   key changes twice in a revision, which we refuse;
//! - the value before an event at the compaction floor: we tell it for as long as we have it, etcd does not;
//! - a deletion at the compaction floor, for a watch that begins there: 3.5.1 forgets it (fixed in 3.5.15);
//! - progress of a stream on which a watcher waits for a later revision: 3.5.1 tells it at once (fixed in 3.5.8);
//! - the id of a watcher that a compaction cancelled: etcd keeps it until the stream ends;
//! - whether progress is told without any watcher: 3.5.1 does, 3.6 does not.

use bytes::Bytes;
use kv_server::pb::etcdserverpb as pb;
use pb::request_op::Request;
use tonic::Code;

use super::calls::{Answer, Call};

/// The reason for a difference, if it is one of those that leave both servers in the same state.
pub(crate) fn reason(call: &Call, etcd: &Answer, ours: &Answer) -> Option<&'static str> {
    match (call, etcd, ours) {
        (Call::Defragment(_), Answer::Defragment(theirs), Answer::Defragment(_))
            if theirs.header.is_none() =>
        {
            Some("our answer to Defragment has a header, etcd's has none")
        }
        (Call::HashKv(request), Answer::Refused(Code::OutOfRange, _), Answer::HashKv(answer))
            if request.revision == answer.compact_revision =>
        {
            Some("3.5.1 refuses a hash at the compaction floor, we answer as for a range")
        }
        (Call::MemberAdd(_), Answer::Refused(_, theirs), Answer::Refused(_, text))
            if [theirs, text]
                .iter()
                .all(|text| text.contains("already exist")) =>
        {
            Some(
                "a new member's id follows from the second: added again within it, its id exists, later its URL does",
            )
        }
        _ => by_users(call, etcd, ours),
    }
}

/// Differences in what users hear.
fn by_users(call: &Call, etcd: &Answer, ours: &Answer) -> Option<&'static str> {
    match (call, etcd, ours) {
        (Call::Watch(_), Answer::Watch(etcd), Answer::Watch(ours))
            if etcd.canceled && ours.canceled && ours.watch_id == -1 =>
        {
            Some(
                "3.5.1 gives a watcher that it refuses an id, and denies a permission to who is nobody, too",
            )
        }
        (Call::Watch(request), Answer::Watch(etcd), Answer::Watch(ours))
            if request.range_end == b"\0"[..] && !etcd.canceled && ours.canceled =>
        {
            Some("3.5.1 lets who may read one key watch all that follow it (GHSA-xg4h-6gfc-h4m8)")
        }
        (Call::RoleGet(request), Answer::RoleGet(_), Answer::RoleGet(_))
            if request.role == "root" =>
        {
            Some("the role root has a permission for everything, which 3.5.1 does not tell")
        }
        (_, Answer::Refused(Code::Unknown, theirs), Answer::Refused(_, text))
            if theirs.strip_prefix("auth: ") == text.strip_prefix("etcdserver: ") =>
        {
            Some("3.5.1's maintenance refuses users with an error that has no code")
        }
        (_, Answer::Refused(_, theirs), Answer::Refused(Code::PermissionDenied, _))
            if ["etcdserver: user name not found", "auth: user not found"]
                .contains(&theirs.as_str()) =>
        {
            Some("a certificate names no user: 3.5.1 says so, we say that the permission is denied")
        }
        (Call::MoveLeader(_), Answer::Refused(..), Answer::Refused(..)) => {
            Some("3.5.1 lets everybody move the leader")
        }
        (
            Call::Leases(_) | Call::TimeToLive(_) | Call::KeepAlive(_),
            Answer::Leases(_) | Answer::TimeToLive(_) | Answer::KeepAlive(_),
            Answer::Refused(..),
        ) => Some(
            "3.5.1 asks nobody who looks at leases, or renews them, for a token or a permission",
        ),
        (
            Call::Status(_) | Call::Alarm(_) | Call::MemberList(_),
            Answer::Status(_) | Answer::Alarm(_) | Answer::MemberList(_),
            Answer::Refused(..),
        ) => Some("3.5.1 answers who is nobody"),
        _ => None,
    }
}

/// Keys that a list of operations puts, and ranges that it deletes.
#[derive(Default)]
struct Changes {
    puts: Vec<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

/// True for a transaction that we refuse and etcd runs: of two inner ones beside each other, the first puts what the second
/// deletes.
pub(crate) fn is_refused_by_us_alone(txn: &pb::TxnRequest) -> bool {
    changes(&txn.success).is_none() || changes(&txn.failure).is_none()
}

fn changes(ops: &[pb::RequestOp]) -> Option<Changes> {
    let mut all = Changes::default();
    let mut inner_puts: Vec<Bytes> = Vec::new();
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(put)) => all.puts.push(put.key.clone()),
            Some(Request::RequestDeleteRange(delete)) => {
                all.deletes
                    .push((delete.key.clone(), delete.range_end.clone()));
            }
            Some(Request::RequestTxn(txn)) => {
                let (then, other) = (changes(&txn.success)?, changes(&txn.failure)?);
                let deletes: Vec<_> = then.deletes.into_iter().chain(other.deletes).collect();
                let hit = |put: &Bytes| deletes.iter().any(|(key, end)| within(put, key, end));
                if inner_puts.iter().any(hit) {
                    return None;
                }
                let puts: Vec<_> = then.puts.into_iter().chain(other.puts).collect();
                inner_puts.extend(puts.iter().cloned());
                all.puts.extend(puts);
                all.deletes.extend(deletes);
            }
            Some(Request::RequestRange(_)) | None => {}
        }
    }
    Some(all)
}

fn within(at: &[u8], key: &[u8], end: &[u8]) -> bool {
    if end.is_empty() {
        at == key
    } else {
        at >= key && (at < end || end == [0])
    }
}
