//! What a request must satisfy before it is proposed. Called by the front end; transactions are checked again when they
//! are applied, because the layout relies on a key changing once per revision.
//!
//! Source: etcd v3's documented request rules. One is stricter here: a delete in a nested transaction that overlaps a
//! put of an earlier nested one is refused as well, as if both stood at one level.

use std::collections::BTreeSet;

use bytes::Bytes;
use tonic::Code;

use crate::error::ApiError;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    range_request::{SortOrder, SortTarget},
};

/// Checks a range.
///
/// # Errors
/// A missing key, an unknown sort order or target.
pub fn check_range(request: &RangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(ApiError::InvalidSortOption);
    }
    Ok(())
}

/// The longest key in bytes. etcd bounds the request only; the engine takes keys of at most 65,535 bytes, in which a zero
/// byte of a user's key takes two, next to what names table and revision.
pub const KEY_BYTES_MAX: usize = 32_000;

/// Checks a put.
///
/// # Errors
/// A missing key, one above [`KEY_BYTES_MAX`], a value beside `ignore_value`, a lease beside `ignore_lease`.
pub fn check_put(request: &PutRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        Err(ApiError::EmptyKey)
    } else if request.key.len() > KEY_BYTES_MAX {
        let found = request.key.len();
        let text =
            format!("flotilla: the key has {found} bytes, at most {KEY_BYTES_MAX} are allowed");
        Err(ApiError::Other(Code::InvalidArgument, text))
    } else if request.ignore_value && !request.value.is_empty() {
        Err(ApiError::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(ApiError::LeaseProvided)
    } else {
        Ok(())
    }
}

/// Checks a delete.
///
/// # Errors
/// A missing key.
pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        Err(ApiError::EmptyKey)
    } else {
        Ok(())
    }
}

/// Levels of transactions inside a transaction. prost decodes messages nested up to 100 deep, two per level, and an
/// entry wraps the request once more than the RPC did: one that arrived at the edge could not be read back from the log.
pub const TXN_DEPTH_MAX: usize = 32;

/// Checks a transaction with everything in it. `max_txn_ops` bounds the longest of its three lists; a nested
/// transaction gets what that leaves, and nests at most [`TXN_DEPTH_MAX`] deep.
///
/// # Errors
/// Those of its parts, too many operations, a key that one path would change twice.
pub fn check_txn(request: &TxnRequest, max_txn_ops: usize) -> Result<(), ApiError> {
    check_shape(request, max_txn_ops, TXN_DEPTH_MAX)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

fn check_shape(request: &TxnRequest, budget: usize, depth: usize) -> Result<(), ApiError> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let rest = budget.checked_sub(ops).ok_or(ApiError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(ApiError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match op.request.as_ref().ok_or(ApiError::KeyNotFound)? {
            Request::RequestRange(range) => check_range(range)?,
            Request::RequestPut(put) => check_put(put)?,
            Request::RequestDeleteRange(delete) => check_delete(delete)?,
            Request::RequestTxn(txn) => {
                let depth = depth.checked_sub(1).ok_or(ApiError::TooManyOps)?;
                check_shape(txn, rest, depth)?;
            }
        }
    }
    Ok(())
}

/// Whether either branch of a transaction, at any depth, may write a key.
#[must_use]
pub fn may_put(request: &TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(txn)) => may_put(txn),
        _ => false,
    })
}

/// What a branch may change: the keys it puts and the ranges it deletes.
#[derive(Default)]
struct Changes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Changes {
    /// Adds what happens beside the rest, not instead of it.
    fn add(&mut self, other: Self) -> Result<(), ApiError> {
        let twice = other.puts.iter().any(|key| self.puts.contains(key))
            || crosses(&other.puts, &self.deletes)
            || crosses(&self.puts, &other.deletes);
        if twice {
            return Err(ApiError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }
}

fn crosses(puts: &BTreeSet<Bytes>, deletes: &[(Bytes, Bytes)]) -> bool {
    deletes.iter().any(|(from, end)| match end.as_ref() {
        [] => puts.contains(from),
        [0] => puts.range::<Bytes, _>(from..).next().is_some(),
        _ => from < end && puts.range::<Bytes, _>(from..end).next().is_some(),
    })
}

fn changes(ops: &[RequestOp]) -> Result<Changes, ApiError> {
    let mut all = Changes::default();
    for op in ops {
        let mut one = Changes::default();
        match op.request.as_ref() {
            Some(Request::RequestPut(put)) => {
                one.puts.insert(put.key.clone());
            }
            Some(Request::RequestDeleteRange(delete)) => {
                one.deletes
                    .push((delete.key.clone(), delete.range_end.clone()));
            }
            Some(Request::RequestTxn(txn)) => {
                one = changes(&txn.success)?;
                // The branches exclude each other, so what they share is no conflict.
                let other = changes(&txn.failure)?;
                one.puts.extend(other.puts);
                one.deletes.extend(other.deletes);
            }
            Some(Request::RequestRange(_)) | None => {}
        }
        all.add(one)?;
    }
    Ok(all)
}
