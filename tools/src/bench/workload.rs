//! Makes requests: keys, values, and the mix of operations, from a seed. It knows nothing of sockets.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kv_server::pb::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, compare, request_op,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::args::{Kind, LoadArgs, STAMP_BYTES};
use super::client::{Method, framed};
use super::keys::{Chooser, KeyText};

/// Values are slices of one random pool, so that making one costs little and none resembles another.
const POOL_BYTES: usize = 4 << 20;
/// Leases that a round holds at most; with more, the next request revokes.
const LEASES_MAX: usize = 10_000;
/// What a lease lives if this process cannot revoke it.
const LEASE_TTL_S: i64 = 600;

/// One request, ready to send.
pub(super) struct Op {
    pub(super) method: Method,
    pub(super) message: Bytes,
    /// What it writes, if it is acknowledged.
    pub(super) write: Option<Write>,
    /// The lease that it grants.
    pub(super) grants: Option<i64>,
}

/// A write, as it can be found again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) key: u64,
    /// CRC-32 of the value.
    pub(super) crc: u32,
}

/// What all threads of a round share.
pub(super) struct Shared {
    pool: Bytes,
    next_key: Arc<AtomicU64>,
    /// What is granted and not revoked, in `lease`.
    leases: Mutex<VecDeque<i64>>,
    next_lease: AtomicU64,
}

impl Shared {
    pub(super) fn new(args: &LoadArgs, seed: u64) -> Arc<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut pool = vec![0; POOL_BYTES + args.val_size];
        rng.fill_bytes(&mut pool);
        Arc::new(Self {
            pool: pool.into(),
            next_key: Arc::default(),
            leases: Mutex::default(),
            // Ids of our own choice, so that nobody has to look into answers; of another run's there is none among them.
            next_lease: AtomicU64::new(rand::random::<u64>() >> 2),
        })
    }

    /// Notes that a lease is there.
    pub(super) fn granted(&self, id: i64) {
        self.leases().push_back(id);
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, VecDeque<i64>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next lease to revoke, when a round is over.
    pub(super) fn left_lease(&self) -> Option<Op> {
        self.leases().pop_front().map(revoke)
    }
}

/// One thread's source of requests.
pub(super) struct Source {
    rng: SmallRng,
    shared: Arc<Shared>,
    chooser: Chooser,
    text: KeyText,
    kind: Kind,
    val_size: usize,
    serializable: bool,
    limit: i64,
    is_stream: bool,
    read_percent: u8,
}

impl Source {
    pub(super) fn new(args: &LoadArgs, shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            chooser: Chooser::new(args, shared.next_key.clone()),
            shared,
            text: KeyText::new(args),
            kind: args.kind,
            val_size: args.val_size,
            serializable: args.serializable,
            limit: args.limit,
            is_stream: args.stream,
            read_percent: args.read_percent,
        }
    }

    /// The next request. `stamp` is the time that a watcher of it will see.
    pub(super) fn next(&mut self, stamp: u64) -> Op {
        let number = self.chooser.next(&mut self.rng);
        match self.kind {
            Kind::Get => self.get(number),
            Kind::Range => self.range(number),
            Kind::Txn => self.txn(number),
            Kind::Mixed if self.rng.random_range(0..100) < self.read_percent => self.get(number),
            Kind::Put | Kind::Mixed => self.put(number, None),
            Kind::Lease => self.lease(),
            Kind::Watch => self.put(number, Some(stamp)),
        }
    }

    /// A transaction that writes the keys numbered `from..to`, to fill a key space quickly.
    pub(super) fn fill(&mut self, from: u64, to: u64) -> (Bytes, Vec<Write>) {
        let mut writes = Vec::new();
        let success = (from..to)
            .map(|number| {
                let (put, write) = self.put_request(number, None);
                writes.push(write);
                RequestOp {
                    request: Some(request_op::Request::RequestPut(put)),
                }
            })
            .collect();
        let txn = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        (framed(&txn), writes)
    }

    fn put_request(&mut self, number: u64, stamp: Option<u64>) -> (PutRequest, Write) {
        let at = self.rng.random_range(0..POOL_BYTES);
        let mut value = self.shared.pool.slice(at..at + self.val_size);
        if let Some(stamp) = stamp {
            let mut stamped = value.to_vec();
            stamped[..STAMP_BYTES].copy_from_slice(&stamp.to_le_bytes());
            value = stamped.into();
        }
        let write = Write {
            key: number,
            crc: crc32fast::hash(&value),
        };
        let put = PutRequest {
            key: self.text.key(number),
            value,
            ..PutRequest::default()
        };
        (put, write)
    }

    fn put(&mut self, number: u64, stamp: Option<u64>) -> Op {
        let (put, write) = self.put_request(number, stamp);
        Op {
            write: Some(write),
            ..read(Method::Put, &put)
        }
    }

    fn range_request(&self, key: Bytes) -> RangeRequest {
        RangeRequest {
            key,
            serializable: self.serializable,
            ..RangeRequest::default()
        }
    }

    fn get(&self, number: u64) -> Op {
        read(Method::Get, &self.range_request(self.text.key(number)))
    }

    fn range(&self, number: u64) -> Op {
        let from = if self.limit == 0 {
            self.text.begin()
        } else {
            self.text.key(number)
        };
        let range = RangeRequest {
            range_end: self.text.end(),
            limit: self.limit,
            ..self.range_request(from)
        };
        let method = if self.is_stream {
            Method::RangeStream
        } else {
            Method::Range
        };
        read(method, &range)
    }

    fn txn(&mut self, number: u64) -> Op {
        let (put, write) = self.put_request(number, None);
        let exists = Compare {
            result: compare::CompareResult::NotEqual as i32,
            target: compare::CompareTarget::Version as i32,
            key: put.key.clone(),
            target_union: Some(compare::TargetUnion::Version(0)),
            range_end: Bytes::new(),
        };
        let get = self.range_request(put.key.clone());
        let txn = TxnRequest {
            compare: vec![exists],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestPut(put)),
            }],
            failure: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(get)),
            }],
        };
        Op {
            write: Some(write),
            ..read(Method::Txn, &txn)
        }
    }

    fn lease(&mut self) -> Op {
        let mut leases = self.shared.leases();
        let keeps = self.rng.random_range(0..100) < self.read_percent;
        if keeps && !leases.is_empty() {
            let id = leases[self.rng.random_range(0..leases.len())];
            return read(Method::KeepAlive, &LeaseKeepAliveRequest { id });
        }
        if leases.len() >= LEASES_MAX || self.rng.random_bool(0.5) && leases.len() > 1 {
            let oldest = leases.pop_front().expect("it is not empty");
            return revoke(oldest);
        }
        let id = self.shared.next_lease.fetch_add(1, Ordering::Relaxed);
        let id = i64::try_from(id).expect("it began below 2^62");
        let ttl = LEASE_TTL_S;
        Op {
            grants: Some(id),
            ..read(Method::Grant, &LeaseGrantRequest { ttl, id })
        }
    }
}

/// A request that writes no key.
fn read(method: Method, message: &impl prost::Message) -> Op {
    Op {
        method,
        message: framed(message),
        write: None,
        grants: None,
    }
}

fn revoke(id: i64) -> Op {
    read(Method::Revoke, &LeaseRevokeRequest { id })
}

#[cfg(test)]
mod tests {
    use kv_server::codec::HEAD_BYTES;
    use prost::Message;

    use super::*;

    fn source(kind: Kind) -> (Source, Arc<Shared>) {
        let args = LoadArgs::defaults(kind);
        let shared = Shared::new(&args, 1);
        (Source::new(&args, shared.clone(), 2), shared)
    }

    #[test]
    fn put_says_which_key_it_writes_and_how_to_know_the_value() {
        let (mut source, _) = source(Kind::Watch);
        let op = source.next(77);
        let put = PutRequest::decode(op.message.slice(HEAD_BYTES..)).unwrap();
        let write = op.write.unwrap();
        assert_eq!(put.key, source.text.key(write.key));
        assert_eq!(crc32fast::hash(&put.value), write.crc);
        assert_eq!(put.value.len(), 256);
        assert_eq!(put.value[..STAMP_BYTES], 77u64.to_le_bytes());
    }

    #[test]
    fn lease_keeps_alive_and_revokes_only_what_was_granted() {
        let (mut source, shared) = source(Kind::Lease);
        assert_eq!(source.next(0).method, Method::Grant, "there is none yet");
        let mut revoked = 0;
        let mut granted = 0;
        for _ in 0..1_000 {
            let op = source.next(0);
            if let Some(id) = op.grants {
                shared.granted(id);
                granted += 1;
            }
            revoked += usize::from(op.method == Method::Revoke);
        }
        assert!(revoked > 50 && revoked < granted, "{revoked} of {granted}");
        assert_eq!(shared.leases().len(), granted - revoked);
        let left = std::iter::from_fn(|| shared.left_lease()).count();
        assert_eq!(left, granted - revoked);
    }
}
