//! What a comparison with etcd, request by request, once found to differ.

use super::*;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeResponse, TxnResponse};

fn txn_of(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        ..TxnRequest::default()
    }
}

fn delete_op(key: &str) -> RequestOp {
    let Op::DeleteRange(request) = delete(key, "") else {
        panic!()
    };
    op(Request::RequestDeleteRange(request))
}

fn revisions(answer: &TxnResponse) -> Vec<i64> {
    let revision = |response: &Response| match response {
        Response::ResponseRange(one) => one.header,
        Response::ResponsePut(one) => one.header,
        Response::ResponseDeleteRange(one) => one.header,
        Response::ResponseTxn(one) => one.header,
    };
    let ops = answer.responses.iter();
    ops.map(|op| revision(op.response.as_ref().unwrap()).unwrap().revision)
        .collect()
}

/// All of them had the revision of the whole transaction, the inner transaction too.
#[test]
fn answers_in_a_txn_have_the_revision_behind_their_operation_and_an_inner_txn_none() {
    let mut rig = Rig::new();
    rig.one(put("a", "1")).unwrap();
    let inner = txn_of(vec![op(Request::RequestRange(point("a")))]);
    let txn = txn_of(vec![
        op(Request::RequestRange(point("a"))),
        delete_op("missing"),
        op(Request::RequestTxn(inner)),
        op(Request::RequestPut(put_request("b", "1"))),
        op(Request::RequestRange(point("b"))),
        delete_op("missing"),
    ]);
    let Ok(CommandResult::Txn(answer)) = rig.one(Op::Txn(txn)) else {
        panic!()
    };
    assert_eq!(answer.header.unwrap().revision, 3);
    assert_eq!(revisions(&answer), [2, 2, 0, 3, 3, 3]);
    let Some(Response::ResponseTxn(inner)) = &answer.responses[2].response else {
        panic!()
    };
    assert_eq!(revisions(inner), [2]);
}

/// It read the newest revision, as a range outside does.
#[test]
fn range_of_a_txn_below_zero_is_refused_as_compacted_where_the_floor_is_above() {
    let mut rig = Rig::new();
    rig.one(put("a", "1")).unwrap();
    let range = |revision| {
        let request = RangeRequest {
            revision,
            ..point("a")
        };
        op(Request::RequestRange(request))
    };
    let reads = |revision| txn_of(vec![range(revision)]);
    let writes = |revision| {
        let write = op(Request::RequestPut(put_request("b", "1")));
        Op::Txn(txn_of(vec![write, range(revision)]))
    };
    // The floor of a new store is at -1.
    assert!(rig.store.read_txn(&reads(-1)).is_ok());
    assert!(rig.one(writes(-1)).is_ok());
    assert_eq!(rig.store.read_txn(&reads(-2)), Err(ApiError::Compacted));
    rig.one(compact(2)).unwrap();
    assert_eq!(rig.store.read_txn(&reads(-1)), Err(ApiError::Compacted));
    assert_eq!(rig.one(writes(-1)), Err(ApiError::Compacted));
    let outside = RangeRequest {
        revision: -1,
        ..point("a")
    };
    assert_eq!(rig.store.range(&outside).unwrap().kvs.len(), 1);
}

/// The whole range was sorted before it was cut.
#[test]
fn limit_of_a_range_without_an_order_sorts_only_one_key_more_than_it_gives() {
    let mut rig = Rig::new();
    // The keys in the order of their values, backwards.
    for (key, value) in [("a", "4"), ("b", "3"), ("c", "2"), ("d", "1")] {
        rig.one(put(key, value)).unwrap();
    }
    let found = |order: SortOrder, limit| {
        let request = RangeRequest {
            limit,
            sort_order: order as i32,
            sort_target: SortTarget::Value as i32,
            ..all()
        };
        let RangeResponse {
            kvs, more, count, ..
        } = rig.store.range(&request).unwrap();
        let keys: Vec<_> = kvs.into_iter().map(|kv| kv.key).collect();
        (keys, more, count)
    };
    assert_eq!(found(SortOrder::None, 1), (vec![bytes("b")], true, 4));
    assert_eq!(found(SortOrder::Ascend, 1), (vec![bytes("d")], true, 4));
    assert_eq!(
        found(SortOrder::None, 3),
        (["d", "c", "b"].map(bytes).to_vec(), true, 4)
    );
    assert_eq!(
        found(SortOrder::None, 4),
        (["d", "c", "b", "a"].map(bytes).to_vec(), false, 4)
    );
}

/// The key's mistake was told, and of a transaction that of whichever operation came first.
#[test]
fn of_two_mistakes_the_one_that_etcd_looks_for_first_is_told() {
    let mut rig = Rig::new();
    rig.one(put("a", "1")).unwrap();
    let both = || PutRequest {
        lease: 77,
        ignore_value: true,
        ..put_request("missing", "")
    };
    assert_eq!(rig.one(Op::Put(both())), Err(ApiError::LeaseNotFound));
    let txn = txn_of(vec![op(Request::RequestPut(both()))]);
    assert_eq!(rig.one(Op::Txn(txn)), Err(ApiError::KeyNotFound));
    let future = RangeRequest {
        revision: 99,
        ..point("a")
    };
    let txn = txn_of(vec![
        op(Request::RequestRange(future)),
        op(Request::RequestPut(both())),
    ]);
    assert_eq!(rig.one(Op::Txn(txn)), Err(ApiError::KeyNotFound));
    assert_eq!(rig.store.revision(), 2);
}
