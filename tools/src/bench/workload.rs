//! Makes requests: keys, values, and the mix of operations, from a seed. It knows nothing of time or sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kv_server::pb::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::{BenchArgs, Kind};

/// Values are slices of one random pool, so that making one costs no copy and none resembles another.
const POOL_BYTES: usize = 4 << 20;

/// One request, ready to send.
pub(super) enum Op {
    Put(PutRequest),
    Range(RangeRequest),
    Txn(TxnRequest),
}

/// What all threads of a round share.
pub(super) struct Shared {
    pool: Bytes,
    next_key: AtomicU64,
}

impl Shared {
    pub(super) fn new(args: &BenchArgs, seed: u64) -> Arc<Self> {
        let mut pool = vec![0; POOL_BYTES + args.val_size];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Arc::new(Self {
            pool: pool.into(),
            next_key: AtomicU64::new(0),
        })
    }
}

/// One thread's source of requests.
pub(super) struct Source {
    rng: SmallRng,
    shared: Arc<Shared>,
    kind: Kind,
    key_space: u64,
    key_size: usize,
    val_size: usize,
    sequential: bool,
    serializable: bool,
    limit: i64,
    read_percent: u8,
}

impl Source {
    pub(super) fn new(args: &BenchArgs, shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            shared,
            kind: args.kind,
            key_space: args.key_space,
            key_size: args.key_size,
            val_size: args.val_size,
            sequential: args.sequential,
            serializable: args.serializable,
            limit: args.limit,
            read_percent: args.read_percent,
        }
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Op {
        let key = self.next_key();
        match self.kind {
            Kind::Put => Op::Put(self.put(key)),
            Kind::Get => Op::Range(self.range(key, Bytes::new(), 0)),
            // One zero byte as the end of a range means: to the last key there is.
            Kind::Range => Op::Range(self.range(key, Bytes::from_static(b"\0"), self.limit)),
            Kind::Txn => Op::Txn(self.txn(key)),
            Kind::Mixed if self.rng.random_range(0..100) < self.read_percent => {
                Op::Range(self.range(key, Bytes::new(), 0))
            }
            Kind::Mixed => Op::Put(self.put(key)),
        }
    }

    /// A transaction that writes the keys numbered `from..to`, to fill a key space quickly.
    pub(super) fn fill(&mut self, from: u64, to: u64) -> TxnRequest {
        let success = (from..to)
            .map(|number| {
                let put = self.put(key(number, self.key_size));
                RequestOp {
                    request: Some(request_op::Request::RequestPut(put)),
                }
            })
            .collect();
        TxnRequest {
            compare: Vec::new(),
            success,
            failure: Vec::new(),
        }
    }

    fn next_key(&mut self) -> Bytes {
        let number = if self.sequential {
            self.shared.next_key.fetch_add(1, Ordering::Relaxed) % self.key_space
        } else {
            self.rng.random_range(0..self.key_space)
        };
        key(number, self.key_size)
    }

    fn put(&mut self, key: Bytes) -> PutRequest {
        let at = self.rng.random_range(0..POOL_BYTES);
        let value = self.shared.pool.slice(at..at + self.val_size);
        PutRequest {
            key,
            value,
            ..PutRequest::default()
        }
    }

    fn range(&self, key: Bytes, range_end: Bytes, limit: i64) -> RangeRequest {
        let serializable = self.serializable;
        RangeRequest {
            key,
            range_end,
            limit,
            serializable,
            ..RangeRequest::default()
        }
    }

    fn txn(&mut self, key: Bytes) -> TxnRequest {
        let exists = Compare {
            result: compare::CompareResult::NotEqual as i32,
            target: compare::CompareTarget::Version as i32,
            key: key.clone(),
            target_union: Some(compare::TargetUnion::Version(0)),
            range_end: Bytes::new(),
        };
        let get = self.range(key.clone(), Bytes::new(), 0);
        TxnRequest {
            compare: vec![exists],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestPut(self.put(key))),
            }],
            failure: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(get)),
            }],
        }
    }
}

/// The key with this number: its decimal digits, filled up with zeros on the left.
fn key(mut number: u64, size: usize) -> Bytes {
    let mut text = vec![b'0'; size];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_any_number_is_padded_and_ordered() {
        assert_eq!(key(0, 4), "0000");
        assert_eq!(key(1234, 4), "1234");
        assert!(key(9, 16) < key(10, 16));
    }
}
