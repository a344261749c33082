//! Clients: one per member, each with ten operations per simulated second, and the history of what they saw.
//!
//! An operation goes to the client's own member. One that does not lead says so and does nothing; the client then tries
//! the leader that it named. Operations on the registers `r/0` to `r/5` make the history that is checked for
//! linearizability; the others are whatever the [`super::super::workload`] draws, checked by the oracle.

use bytes::Bytes;
use kv_server::mvcc::{CommandOutput, CommandResult};
use kv_server::pb::command::command::Op;
use kv_server::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use kv_server::pb::mvccpb::KeyValue;
use raft_log::vfs::sim::Rng;

use super::super::checkers::linearizable::{Action, Operation};
use super::super::model::Model;
use super::super::workload;

/// Registers.
pub const KEYS: u64 = 6;
/// Where their names begin.
const PREFIX: &[u8] = b"r/";

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum ClientOp {
    /// An action on a register, through the leader.
    Register(u64, Action),
    /// A read of a register from the member's own state.
    Stale(u64),
    /// Any command, with the number that makes its values unique.
    Command(Op),
    /// A lease shall have its full time again.
    KeepAlive(i64),
}

/// Draws the next operation; `unique` is a number that no other one has.
#[must_use]
pub fn draw(rng: &mut Rng, model: &Model, unique: u64) -> ClientOp {
    let key = rng.below(KEYS);
    match rng.below(100) {
        0..25 => ClientOp::Register(key, Action::Put(unique)),
        25..45 => ClientOp::Register(key, Action::Get),
        45..52 => ClientOp::Register(key, Action::Delete),
        52..64 => {
            let now = model.get_at(&name(key), model.revision());
            let from = now.map_or(0, |kv| number(&kv));
            ClientOp::Register(key, Action::Swap(from, unique))
        }
        64..74 => ClientOp::Stale(key),
        74..79 if !model.leases().is_empty() => {
            let leases = model.leases();
            ClientOp::KeepAlive(leases[rng.below(leases.len() as u64) as usize].id)
        }
        _ => loop {
            let mut op = workload::draw(rng, model, unique);
            // Those two are the lessor's own.
            if matches!(op, Op::LeaseExpire(_) | Op::LeaseCheckpoint(_)) {
                continue;
            }
            spare_registers(&mut op);
            break ClientOp::Command(op);
        },
    }
}

/// The name of a register.
#[must_use]
pub fn name(key: u64) -> Bytes {
    [PREFIX, key.to_string().as_bytes()].concat().into()
}

fn number(kv: &KeyValue) -> u64 {
    let text = std::str::from_utf8(&kv.value).ok();
    text.and_then(|text| text.parse().ok())
        .expect("only clients write registers")
}

/// Only register operations change registers: a range that would delete them is cut down to its first key.
fn spare_registers(op: &mut Op) {
    fn delete(request: &mut DeleteRangeRequest) {
        let reaches = request.range_end[..] == [0] || request.range_end[..] > *PREFIX;
        if !request.range_end.is_empty() && request.key[..] < b"r0"[..] && reaches {
            request.range_end = Bytes::new();
        }
    }
    fn txn(request: &mut TxnRequest) {
        for op in request.success.iter_mut().chain(&mut request.failure) {
            match &mut op.request {
                Some(Request::RequestDeleteRange(request)) => delete(request),
                Some(Request::RequestTxn(inner)) => txn(inner),
                _ => {}
            }
        }
    }
    match op {
        Op::DeleteRange(request) => delete(request),
        Op::Txn(request) => txn(request),
        _ => {}
    }
}

/// The command of an action; none for a read.
#[must_use]
pub fn command(key: u64, action: Action) -> Option<Op> {
    let key = name(key);
    let put = |value: u64| PutRequest {
        key: key.clone(),
        value: value.to_string().into(),
        prev_kv: true,
        ..PutRequest::default()
    };
    match action {
        Action::Get => None,
        Action::Put(value) => Some(Op::Put(put(value))),
        Action::Delete => Some(Op::DeleteRange(DeleteRangeRequest {
            key,
            prev_kv: true,
            ..DeleteRangeRequest::default()
        })),
        Action::Swap(from, to) => {
            let compare = Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Value as i32,
                key: key.clone(),
                target_union: Some(TargetUnion::Value(from.to_string().into())),
                range_end: Bytes::new(),
            };
            let put = PutRequest {
                prev_kv: false,
                ..put(to)
            };
            let get = get(key);
            let of = |request| {
                vec![RequestOp {
                    request: Some(request),
                }]
            };
            Some(Op::Txn(TxnRequest {
                compare: vec![compare],
                success: of(Request::RequestPut(put)),
                failure: of(Request::RequestRange(get)),
            }))
        }
    }
}

/// A read of one key: of every other one as a range with nothing else in it, which is read in another way.
#[must_use]
pub fn get(key: Bytes) -> RangeRequest {
    let is_range = key.last().is_some_and(|byte| byte % 2 == 1);
    let range_end = match is_range {
        true => [&key, &[0][..]].concat().into(),
        false => Bytes::new(),
    };
    RangeRequest {
        key,
        range_end,
        ..RangeRequest::default()
    }
}

/// What a register held before an action, as its answer tells.
///
/// # Panics
/// When the answer is not one to this action.
#[must_use]
pub fn seen(action: Action, output: &CommandOutput) -> Option<u64> {
    match (action, output) {
        (Action::Put(_), Ok(CommandResult::Put(put))) => put.prev_kv.as_ref().map(number),
        (Action::Delete, Ok(CommandResult::DeleteRange(delete))) => {
            delete.prev_kvs.first().map(number)
        }
        (Action::Swap(from, _), Ok(CommandResult::Txn(txn))) if txn.succeeded => Some(from),
        (Action::Swap(..), Ok(CommandResult::Txn(txn))) => match &txn.responses[0].response {
            Some(Response::ResponseRange(range)) => range.kvs.first().map(number),
            other => panic!("a read answers {other:?}"),
        },
        (action, output) => panic!("{action:?} is answered {output:?}"),
    }
}

/// What a read of a register saw.
#[must_use]
pub fn value(kvs: &[KeyValue]) -> Option<u64> {
    kvs.first().map(number)
}

/// The operations on each register.
#[derive(Debug, Default)]
pub struct Histories {
    operations: Vec<(u64, Operation)>,
    now: u64,
}

impl Histories {
    /// An operation is sent; returns its place.
    pub fn sent(&mut self, key: u64, action: Action) -> usize {
        let operation = Operation {
            sent: self.tick(),
            answer: None,
            action,
        };
        self.operations.push((key, operation));
        self.operations.len() - 1
    }

    /// It is answered.
    pub fn answered(&mut self, at: usize, seen: Option<u64>) {
        let now = self.tick();
        self.operations[at].1.answer = Some((now, seen));
    }

    /// Nothing was done, as a promise: it is as if it had never been sent.
    pub fn refused(&mut self, at: usize) {
        self.operations[at].1.action = Action::Get;
    }

    /// One history per register.
    #[must_use]
    pub fn by_key(&self) -> Vec<Vec<Operation>> {
        let of = |key| {
            let own = self.operations.iter().filter(|(at, _)| *at == key);
            own.map(|(_, operation)| *operation).collect()
        };
        (0..KEYS).map(of).collect()
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}
