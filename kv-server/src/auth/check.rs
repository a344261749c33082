//! What each request needs: reads where they are read, commands where they are applied.
//!
//! Source: etcd's documented checks. A transaction needs what all its parts need, in both branches and at every depth,
//! however it will go. Where etcd looks at a put by itself only, a put within a transaction is looked at in the same way
//! here: it needs to read what it asks to have back, and to write all keys of the lease that it names.

use bytes::Bytes;

use super::{AuthState, Identity};
use crate::ApiError;
use crate::pb::command::{Caller, auth_command, command::Op};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// What a put within a request needs beside its own permissions.
type LeaseCheck<'a, E> = &'a dyn Fn(i64) -> Result<(), E>;

/// Whoever reads must be allowed to.
pub fn check_range(
    state: &AuthState,
    who: Option<&Identity>,
    request: &RangeRequest,
) -> Result<(), ApiError> {
    state.check_read(who, &request.key, &request.range_end)
}

/// Whoever writes must be allowed to, and to read what is to come back.
pub fn check_put(
    state: &AuthState,
    who: Option<&Identity>,
    request: &PutRequest,
) -> Result<(), ApiError> {
    state.check_write(who, &request.key, &[])?;
    if request.prev_kv {
        state.check_read(who, &request.key, &[])?;
    }
    Ok(())
}

/// The same of a deletion.
pub fn check_delete(
    state: &AuthState,
    who: Option<&Identity>,
    request: &DeleteRangeRequest,
) -> Result<(), ApiError> {
    state.check_write(who, &request.key, &request.range_end)?;
    if request.prev_kv {
        state.check_read(who, &request.key, &request.range_end)?;
    }
    Ok(())
}

/// A transaction that only reads: nobody asks for leases.
pub fn check_txn(
    state: &AuthState,
    who: Option<&Identity>,
    request: &TxnRequest,
) -> Result<(), ApiError> {
    check_txn_with(state, who, request, &|_| Ok(()))
}

fn check_txn_with<E: From<ApiError>>(
    state: &AuthState,
    who: Option<&Identity>,
    request: &TxnRequest,
    lease: LeaseCheck<'_, E>,
) -> Result<(), E> {
    for compare in &request.compare {
        state.check_read(who, &compare.key, &compare.range_end)?;
    }
    check_branch(state, who, &request.success, lease)?;
    check_branch(state, who, &request.failure, lease)
}

fn check_branch<E: From<ApiError>>(
    state: &AuthState,
    who: Option<&Identity>,
    ops: &[RequestOp],
    lease: LeaseCheck<'_, E>,
) -> Result<(), E> {
    for op in ops {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(state, who, range)?,
            Some(Request::RequestPut(put)) => {
                check_put(state, who, put)?;
                lease(put.lease)?;
            }
            Some(Request::RequestDeleteRange(delete)) => check_delete(state, who, delete)?,
            Some(Request::RequestTxn(txn)) => check_txn_with(state, who, txn, lease)?,
            None => {}
        }
    }
    Ok(())
}

/// Refuses a command whose caller may not have it applied now. `lease_keys` gives the keys of a lease.
///
/// What the server proposes on its own has no caller, and is not refused. That tells its compactions and alarms from those
/// of clients, which always come with one, be it nobody.
pub(crate) fn check_op<E: From<ApiError>>(
    state: &AuthState,
    caller: Option<&Caller>,
    op: &Op,
    lease_keys: impl Fn(i64) -> Result<Vec<Bytes>, E>,
) -> Result<(), E> {
    if !state.is_enabled() {
        return Ok(());
    }
    let identity = caller.and_then(Identity::of);
    let who = identity.as_ref();
    let lease = |id: i64| -> Result<(), E> {
        if id == 0 || state.check_root(who).is_ok() {
            return Ok(());
        }
        for key in lease_keys(id)? {
            state.check_write(who, &key, &[])?;
        }
        Ok(())
    };
    match op {
        Op::Put(put) => {
            state.check_write(who, &put.key, &[])?;
            lease(put.lease)?;
            check_put(state, who, put)?;
        }
        Op::DeleteRange(delete) => check_delete(state, who, delete)?,
        Op::Txn(txn) => check_txn_with(state, who, txn, &lease)?,
        Op::LeaseGrant(_) => state.check_known(who)?,
        Op::LeaseRevoke(revoke) => {
            state.check_known(who)?;
            lease(revoke.id)?;
        }
        Op::Compact(_) | Op::SetAlarm(_) if caller.is_some() => state.check_root(who)?,
        Op::Auth(command) => match command.op {
            // Whoever asks for a token has shown a password instead.
            None | Some(auth_command::Op::AssignToken(_)) => {}
            Some(_) => state.check_root(who)?,
        },
        // Of the server itself; and of clients that were checked before they were asked, since a change of the members
        // cannot be refused where it is applied.
        Op::Compact(_)
        | Op::SetAlarm(_)
        | Op::LeaseExpire(_)
        | Op::LeaseCheckpoint(_)
        | Op::PublishMember(_)
        | Op::UpdateMember(_)
        | Op::RegisterKeyspace(_)
        | Op::CheckState(_) => {}
    }
    Ok(())
}
