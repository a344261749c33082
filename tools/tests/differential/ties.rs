//! The order of keys that compare equal, which etcd does not promise: its sort is not stable.
//!
//! Each group of equals is put in the order of its keys. Where a limit cuts a group, which of them are left is as open, so
//! of those only what they were sorted by is compared.

use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::mvccpb::KeyValue;
use pb::range_request::SortTarget;
use pb::request_op::Request;
use pb::response_op::Response;

use super::calls::{Answer, Call};

/// Settles the order of equals in all ranges of an answer.
pub(crate) fn settle(call: &Call, answer: &mut Answer) {
    match (call, answer) {
        (Call::Range(request), Answer::Range(found)) => settle_range(request, found),
        (Call::Txn(request), Answer::Txn(done)) => settle_txn(request, done),
        _ => {}
    }
}

fn settle_txn(request: &pb::TxnRequest, done: &mut pb::TxnResponse) {
    let ops = if done.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, one) in ops.iter().zip(&mut done.responses) {
        match (&op.request, &mut one.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(found))) => {
                settle_range(request, found);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(done))) => {
                settle_txn(request, done);
            }
            _ => {}
        }
    }
}

fn settle_range(request: &pb::RangeRequest, found: &mut pb::RangeResponse) {
    let target = request.sort_target();
    if target == SortTarget::Key {
        return;
    }
    let same = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Version => a.version == b.version,
        SortTarget::Create => a.create_revision == b.create_revision,
        SortTarget::Mod => a.mod_revision == b.mod_revision,
        // Not to be seen in an answer without values: then all are equal.
        _ => a.value == b.value,
    };
    let mut groups: Vec<Vec<KeyValue>> = Vec::new();
    for kv in std::mem::take(&mut found.kvs) {
        match groups.last_mut() {
            Some(group) if same(&group[0], &kv) => group.push(kv),
            _ => groups.push(vec![kv]),
        }
    }
    for group in &mut groups {
        group.sort_by(|a, b| a.key.cmp(&b.key));
    }
    if found.more {
        for kv in groups.last_mut().into_iter().flatten() {
            let KeyValue {
                key,
                create_revision,
                mod_revision,
                version,
                value,
                lease,
            } = kv;
            key.clear();
            *lease = 0;
            match target {
                SortTarget::Version => (*create_revision, *mod_revision) = (0, 0),
                SortTarget::Create => (*version, *mod_revision) = (0, 0),
                SortTarget::Mod => (*version, *create_revision) = (0, 0),
                _ => (*version, *create_revision, *mod_revision) = (0, 0, 0),
            }
            if target != SortTarget::Value {
                value.clear();
            }
        }
    }
    found.kvs = groups.into_iter().flatten().collect();
}
