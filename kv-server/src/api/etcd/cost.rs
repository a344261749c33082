//! What a request adds to the store, for the quota. An estimate, and as etcd makes it.

use super::{OpKind, pb};

/// What a pair takes beside key and value.
const PAIR: usize = 256;
/// What a lease takes.
pub(super) const LEASE: usize = 64;

pub(super) fn of_put(request: &pb::PutRequest) -> usize {
    PAIR + request.key.len() + request.value.len()
}

/// Of the more expensive branch.
pub(super) fn of_txn(request: &pb::TxnRequest) -> usize {
    let branch = |ops: &[pb::RequestOp]| -> usize {
        ops.iter()
            .map(|op| match &op.request {
                Some(OpKind::RequestPut(put)) => of_put(put),
                Some(OpKind::RequestTxn(txn)) => of_txn(txn),
                _ => 0,
            })
            .sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_costs_what_its_dearest_path_puts() {
        let put = |bytes: usize| pb::RequestOp {
            request: Some(OpKind::RequestPut(pb::PutRequest {
                key: "key".into(),
                value: vec![0; bytes].into(),
                ..Default::default()
            })),
        };
        let delete = pb::RequestOp {
            request: Some(OpKind::RequestDeleteRange(Default::default())),
        };
        let txn = |success: Vec<_>, failure: Vec<_>| pb::TxnRequest {
            success,
            failure,
            ..Default::default()
        };
        assert_eq!(of_txn(&txn(vec![delete.clone()], vec![])), 0);
        assert_eq!(of_txn(&txn(vec![put(10), put(20)], vec![put(29)])), 548);
        let nested = pb::RequestOp {
            request: Some(OpKind::RequestTxn(txn(vec![put(1000)], vec![]))),
        };
        assert_eq!(of_txn(&txn(vec![put(10)], vec![nested, delete])), 1259);
    }
}
