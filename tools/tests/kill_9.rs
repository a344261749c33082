//! `kill -9` of a real server under load, round after round on the same data.
//!
//! Eight clients, each with keys of its own, put, delete, and write two keys in one transaction. When a random number
//! of answers has come the server is killed; every third time it is killed once more while it recovers. After each
//! restart every key must be exactly as the acknowledged writes left it, value, version and revisions, save that the
//! one write of each client that got no answer may have happened too, once and as a whole.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_tests::process::{Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

const CLIENTS: u64 = 8;
const KEYS: u64 = 12;
const LEASE_TTL_S: i64 = 100_000;

/// A key as an acknowledged write left it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    version: i64,
    lease: i64,
}

/// One write of a client. A transaction is a put of two keys.
#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u64>, Vec<u8>),
    Delete(u64),
    /// A lease of this id, then a put attached to it.
    Lease(i64),
    Attach(u64, Vec<u8>, i64),
}

/// One client: what it knows about its keys, and the write whose outcome it does not know.
#[derive(Clone, Debug, Default)]
struct Client {
    id: u64,
    counter: u64,
    keys: BTreeMap<u64, Record>,
    leases: BTreeSet<i64>,
    pending: Option<Op>,
    /// Revisions of acknowledged writes with a key that they wrote and its value.
    acknowledged: Vec<(i64, u64, Option<Vec<u8>>)>,
}

impl Client {
    fn key(&self, number: u64) -> Vec<u8> {
        format!("client-{}/key-{number:02}", self.id).into_bytes()
    }

    fn draw(&mut self, rng: &mut StdRng) -> Op {
        self.counter += 1;
        let key = rng.random_range(0..KEYS);
        let mut value = format!("{}-{}-", self.id, self.counter).into_bytes();
        value.resize(value.len() + rng.random_range(0..600), b'x');
        match rng.random_range(0..20) {
            0 => Op::Lease((self.id * 1_000_000 + self.counter).cast_signed()),
            1 => match self.leases.last() {
                Some(lease) => Op::Attach(key, value, *lease),
                None => Op::Put(vec![key], value),
            },
            2..5 => Op::Delete(key),
            5..9 => Op::Put(vec![key, (key + 1) % KEYS], value),
            _ => Op::Put(vec![key], value),
        }
    }

    fn put_request(&self, key: u64, value: &[u8], lease: i64) -> pb::PutRequest {
        pb::PutRequest {
            key: self.key(key).into(),
            value: value.to_vec().into(),
            lease,
            ..Default::default()
        }
    }

    /// Sends a write; gives its revision.
    async fn send(&self, channel: &Channel, op: &Op) -> Result<i64, tonic::Status> {
        let mut kv = KvClient::new(channel.clone());
        let header = match op {
            Op::Put(keys, value) if keys.len() == 1 => {
                let request = self.put_request(keys[0], value, 0);
                kv.put(request).await?.into_inner().header
            }
            Op::Put(keys, value) => {
                let put = |key: &u64| pb::RequestOp {
                    request: Some(Request::RequestPut(self.put_request(*key, value, 0))),
                };
                let txn = pb::TxnRequest {
                    success: keys.iter().map(put).collect(),
                    ..Default::default()
                };
                kv.txn(txn).await?.into_inner().header
            }
            Op::Delete(key) => {
                let request = pb::DeleteRangeRequest {
                    key: self.key(*key).into(),
                    ..Default::default()
                };
                kv.delete_range(request).await?.into_inner().header
            }
            Op::Attach(key, value, lease) => {
                let request = self.put_request(*key, value, *lease);
                kv.put(request).await?.into_inner().header
            }
            Op::Lease(id) => {
                let request = pb::LeaseGrantRequest {
                    id: *id,
                    ttl: LEASE_TTL_S,
                };
                let mut leases = LeaseClient::new(channel.clone());
                leases.lease_grant(request).await?.into_inner().header
            }
        };
        Ok(header.unwrap().revision)
    }

    /// What a write does when it takes effect at a revision.
    fn apply(&mut self, op: &Op, revision: i64) {
        let put = |keys: &mut BTreeMap<u64, Record>, key: u64, value: &[u8], lease: i64| {
            let before = keys.get(&key);
            let record = Record {
                value: value.to_vec(),
                created: before.map_or(revision, |record| record.created),
                modified: revision,
                version: before.map_or(1, |record| record.version + 1),
                lease,
            };
            keys.insert(key, record);
        };
        match op {
            Op::Put(keys, value) => keys
                .iter()
                .for_each(|key| put(&mut self.keys, *key, value, 0)),
            Op::Attach(key, value, lease) => put(&mut self.keys, *key, value, *lease),
            Op::Delete(key) => drop(self.keys.remove(key)),
            Op::Lease(id) => drop(self.leases.insert(*id)),
        }
    }

    /// Notes an acknowledged write, with the revision under which it must be found for ever.
    fn acknowledge(&mut self, op: &Op, revision: i64) {
        match op {
            Op::Put(keys, value) => {
                self.acknowledged
                    .push((revision, keys[0], Some(value.clone())));
            }
            Op::Attach(key, value, _) => {
                self.acknowledged
                    .push((revision, *key, Some(value.clone())));
            }
            Op::Delete(key) if self.keys.contains_key(key) => {
                self.acknowledged.push((revision, *key, None));
            }
            Op::Delete(_) | Op::Lease(_) => {}
        }
        self.apply(op, revision);
    }

    /// Writes until the server is gone.
    async fn run(mut self, channel: Channel, seed: u64, answers: Arc<Answers>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ self.id);
        loop {
            let op = self.draw(&mut rng);
            match self.send(&channel, &op).await {
                Ok(revision) => {
                    self.acknowledge(&op, revision);
                    answers.count();
                }
                Err(_) => {
                    self.pending = Some(op);
                    return self;
                }
            }
        }
    }

    /// Compares what the server holds with what must be there, and learns what became of the pending write.
    async fn check(&mut self, channel: &Channel, round: u64) {
        let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let all = pb::RangeRequest {
            key: format!("client-{}/", self.id).into(),
            range_end: format!("client-{}0", self.id).into(),
            ..Default::default()
        };
        let response = kv.range(all).await.unwrap().into_inner();
        let revision = response.header.unwrap().revision;
        let found: BTreeMap<u64, Record> = response
            .kvs
            .into_iter()
            .map(|kv| {
                let number = String::from_utf8_lossy(&kv.key[kv.key.len() - 2..]).parse();
                let record = Record {
                    value: kv.value.to_vec(),
                    created: kv.create_revision,
                    modified: kv.mod_revision,
                    version: kv.version,
                    lease: kv.lease,
                };
                (number.unwrap(), record)
            })
            .collect();
        if found != self.keys {
            // Then it is the pending write that took effect, at the revision that its keys carry.
            let pending = self.pending.clone();
            let touched = match &pending {
                Some(Op::Put(keys, _)) => Some(keys[0]),
                Some(Op::Attach(key, _, _)) => Some(*key),
                _ => None,
            };
            let at = touched
                .and_then(|key| found.get(&key))
                .map_or(revision, |record| record.modified);
            let mut expected = self.clone();
            if let Some(op) = &pending {
                expected.apply(op, at);
            }
            assert_eq!(
                found, expected.keys,
                "round {round}, client {}: neither with nor without the pending {pending:?} is this what was \
                 acknowledged: {:?}",
                self.id, self.keys
            );
            if touched.is_some() {
                let newest = self
                    .acknowledged
                    .last()
                    .map_or(0, |(revision, ..)| *revision);
                assert!(
                    at > newest,
                    "round {round}: the pending write took an older revision"
                );
            }
            self.keys = found;
        }
        self.check_leases(channel, round).await;
        self.pending = None;
    }

    async fn check_leases(&mut self, channel: &Channel, round: u64) {
        let mut client = LeaseClient::new(channel.clone());
        let response = client
            .lease_leases(pb::LeaseLeasesRequest {})
            .await
            .unwrap();
        let mine = |id: &i64| id.unsigned_abs() / 1_000_000 == self.id;
        let found: BTreeSet<i64> = response
            .into_inner()
            .leases
            .iter()
            .map(|one| one.id)
            .filter(mine)
            .collect();
        let mut expected = self.leases.clone();
        if found != expected
            && let Some(Op::Lease(id)) = self.pending
        {
            expected.insert(id);
        }
        assert_eq!(found, expected, "round {round}, client {}: leases", self.id);
        self.leases = found;
        if let Some(id) = self.leases.last() {
            let request = pb::LeaseTimeToLiveRequest {
                id: *id,
                keys: true,
            };
            let lease = client
                .lease_time_to_live(request)
                .await
                .unwrap()
                .into_inner();
            let attached = self.keys.iter().filter(|(_, record)| record.lease == *id);
            let attached: Vec<_> = attached.map(|(key, _)| self.key(*key)).collect();
            assert_eq!(lease.keys, attached, "round {round}: keys of lease {id}");
            assert_eq!(lease.granted_ttl, LEASE_TTL_S);
            assert!(
                lease.ttl > LEASE_TTL_S / 2,
                "round {round}: {} s are left",
                lease.ttl
            );
        }
    }

    /// Old revisions still read as they were acknowledged.
    async fn check_history(&self, channel: &Channel, rng: &mut StdRng) {
        let mut kv = KvClient::new(channel.clone());
        for _ in 0..10.min(self.acknowledged.len()) {
            let at = rng.random_range(0..self.acknowledged.len());
            let (revision, key, value) = &self.acknowledged[at];
            let request = pb::RangeRequest {
                key: self.key(*key).into(),
                revision: *revision,
                ..Default::default()
            };
            let response = kv.range(request).await.unwrap().into_inner();
            let found = response.kvs.first().map(|kv| kv.value.to_vec());
            assert_eq!(found.as_ref(), value.as_ref(), "revision {revision}");
        }
    }
}

/// Counts answers, and tells when enough have come.
struct Answers {
    left: AtomicU64,
    enough: Notify,
}

impl Answers {
    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.enough.notify_one();
        }
    }
}

async fn connect(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    endpoint.connect().await.unwrap()
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn kill_9_under_load_loses_nothing_and_applies_nothing_twice() {
    let rounds = from_env("FLOTILLA_KILL_ROUNDS", 20);
    let seed = from_env("FLOTILLA_KILL_SEED", 1);
    println!(
        "reproduce: FLOTILLA_KILL_SEED={seed} FLOTILLA_KILL_ROUNDS={rounds} cargo test -p flotilla --test kill_9"
    );
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    // So that the engine is made durable and the log purged many times within the test.
    setup.flags = vec!["--snapshot-count".into(), "500".into()];
    let mut rng = StdRng::seed_from_u64(seed);
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|id| Client {
            id,
            ..Default::default()
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut server = setup.start();
    for round in 1..=rounds {
        let answers = Arc::new(Answers {
            left: AtomicU64::new(rng.random_range(1..4_000)),
            enough: Notify::new(),
        });
        let round_seed = rng.random();
        clients = runtime.block_on(async {
            let mut running = JoinSet::new();
            for client in clients {
                let channel = connect(&server).await;
                running.spawn(client.run(channel, round_seed, Arc::clone(&answers)));
            }
            answers.enough.notified().await;
            server.kill_9();
            running.join_all().await
        });
        if round % 3 == 0 {
            // Once more, at some point of the recovery.
            let recovering = setup.spawn();
            recovering.wait_for_line(if rng.random() {
                "starting"
            } else {
                "log opened"
            });
            recovering.kill_9();
        }
        server = setup.start();
        clients.sort_by_key(|client| client.id);
        runtime.block_on(async {
            let channel = connect(&server).await;
            for client in &mut clients {
                client.check(&channel, round).await;
                client.check_history(&channel, &mut rng).await;
            }
        });
        // No two acknowledged writes ever had the same revision.
        let revisions = clients
            .iter()
            .flat_map(|client| client.acknowledged.iter().map(|one| one.0));
        let all: Vec<i64> = revisions.collect();
        let distinct: BTreeSet<i64> = all.iter().copied().collect();
        assert_eq!(
            all.len(),
            distinct.len(),
            "round {round}: a revision was used twice"
        );
    }
    let acknowledged: usize = clients.iter().map(|client| client.acknowledged.len()).sum();
    println!("{rounds} rounds, {acknowledged} acknowledged writes with a revision of their own");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0));
}
