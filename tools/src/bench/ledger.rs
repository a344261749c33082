//! What was acknowledged: the newest write of each key, and whether the server still has it at the end.
//!
//! Of a key only the acknowledged write with the highest revision is kept, 16 bytes for it. A key space with more keys
//! than `--check-keys` is sampled evenly. What is found may be newer than what was acknowledged, by a request that
//! failed for us or by another client; it may not be older, another value, or nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv_server::pb::etcdserverpb::{
    RangeRequest, RequestOp, TxnRequest, TxnResponse, request_op, response_op,
};
use kv_server::pb::mvccpb::KeyValue;
use prost::Message;
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Status;

use super::args::LoadArgs;
use super::client::{Connection, Method, Target, framed};
use super::keys::KeyText;
use super::workload::Write;
use crate::failure::Failure;

const SHARDS: usize = 64;
/// Keys that one request reads back: below etcd's default limit of 128 operations, and of few MiB.
const KEYS_PER_REQUEST: usize = 100;
const BYTES_PER_REQUEST: usize = 4 << 20;
const READERS: usize = 8;
/// Keys that a report names.
const NAMED_MAX: usize = 20;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0: nothing was acknowledged.
    revision: i64,
    crc: u32,
}

/// Acknowledged writes to one server.
pub(super) struct Ledger {
    /// One of so many keys is remembered; 0: none.
    stride: u64,
    shards: Vec<Mutex<Vec<Entry>>>,
    acknowledged: AtomicU64,
    newest: AtomicI64,
}

impl Ledger {
    pub(super) fn new(args: &LoadArgs) -> Self {
        let stride = match args.check_keys {
            0 => 0,
            keys => args.key_space.div_ceil(keys),
        };
        let keys = args
            .key_space
            .checked_div(stride)
            .map_or(0, |keys| keys + 1);
        let shard = usize::try_from(keys).expect("it is bounded") / SHARDS + 1;
        let shard = if stride == 0 { 0 } else { shard };
        Self {
            stride,
            shards: (0..SHARDS)
                .map(|_| Mutex::new(vec![Entry::default(); shard]))
                .collect(),
            acknowledged: AtomicU64::new(0),
            newest: AtomicI64::new(0),
        }
    }

    /// Notes an acknowledged write.
    pub(super) fn note(&self, write: Write, revision: i64) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.newest.fetch_max(revision, Ordering::Relaxed);
        if self.stride == 0 || !write.key.is_multiple_of(self.stride) {
            return;
        }
        let slot = usize::try_from(write.key / self.stride).expect("it is bounded");
        let shard = self.shards[slot % SHARDS].lock();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        let entry = &mut shard[slot / SHARDS];
        if revision > entry.revision {
            *entry = Entry {
                revision,
                crc: write.crc,
            };
        }
    }

    /// Writes that were acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// The newest revision that an acknowledgement had.
    pub(super) fn newest(&self) -> i64 {
        self.newest.load(Ordering::Relaxed)
    }

    fn written(&self) -> VecDeque<(u64, Entry)> {
        let mut written: Vec<(u64, Entry)> = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let entries = shard.iter().enumerate();
            let entries = entries.filter(|(_, entry)| entry.revision > 0);
            written.extend(entries.map(|(at, entry)| {
                let slot = (at * SHARDS + number) as u64;
                (slot * self.stride, *entry)
            }));
        }
        written.sort_unstable_by_key(|(key, _)| *key);
        written.into()
    }

    /// Reads all of it back.
    pub(super) async fn read_back(
        &self,
        args: &LoadArgs,
        target: &Target,
    ) -> Result<Checked, Failure> {
        let written = self.written();
        let checked = Checked {
            endpoint: target.name.clone(),
            acknowledged: self.acknowledged(),
            one_of_keys: self.stride,
            keys: written.len() as u64,
            ..Checked::default()
        };
        if written.is_empty() {
            return Ok(checked);
        }
        let batch = (BYTES_PER_REQUEST / args.val_size.max(1)).clamp(1, KEYS_PER_REQUEST);
        let text = KeyText::new(args);
        let left = Arc::new(Mutex::new(written));
        let found = Arc::new(Mutex::new(checked));
        let mut tasks = JoinSet::new();
        for connection in target.connect(READERS).await? {
            let (left, found, text) = (left.clone(), found.clone(), text.clone());
            tasks.spawn(async move {
                loop {
                    let some: Vec<(u64, Entry)> = {
                        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                        let count = batch.min(left.len());
                        left.drain(..count).collect()
                    };
                    if some.is_empty() {
                        return Ok(());
                    }
                    let kvs = read(&connection, &text, &some).await?;
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    for ((number, entry), kv) in some.iter().zip(kvs) {
                        found.judge(&text, *number, *entry, kv.as_ref());
                    }
                }
            });
        }
        while let Some(joined) = tasks.join_next().await {
            let result: Result<(), Status> = joined.expect("a reading task does not panic");
            result.map_err(|status| {
                Failure::failed(
                    format!("reading acknowledged writes back from {}", target.name),
                    status,
                )
            })?;
        }
        let found = Arc::into_inner(found).expect("all tasks have ended");
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads keys in one transaction; none where there is none.
async fn read(
    connection: &Connection,
    text: &KeyText,
    keys: &[(u64, Entry)],
) -> Result<Vec<Option<KeyValue>>, Status> {
    let get = |(number, _): &(u64, Entry)| RequestOp {
        request: Some(request_op::Request::RequestRange(RangeRequest {
            key: text.key(*number),
            ..RangeRequest::default()
        })),
    };
    let txn = TxnRequest {
        success: keys.iter().map(get).collect(),
        ..TxnRequest::default()
    };
    let answer = connection.call(Method::Txn, framed(&txn), true).await?;
    let answer = TxnResponse::decode(answer.message)
        .map_err(|error| Status::internal(format!("an answer that is none: {error}")))?;
    if answer.responses.len() != keys.len() {
        return Err(Status::internal(
            "an answer with fewer keys than were asked for",
        ));
    }
    let kv = |response: response_op::Response| match response {
        response_op::Response::ResponseRange(range) => range.kvs.into_iter().next(),
        _ => None,
    };
    let responses = answer.responses.into_iter();
    Ok(responses.map(|one| one.response.and_then(kv)).collect())
}

/// What became of the acknowledged writes of one server.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Checked {
    pub(super) endpoint: String,
    /// Writes that were acknowledged.
    pub(super) acknowledged: u64,
    /// Keys that were read back, each for the newest of its acknowledged writes.
    pub(super) keys: u64,
    /// One of so many keys of the key space was checked; 0: none.
    pub(super) one_of_keys: u64,
    /// Keys that have a newer value: of a request that failed for us, or by somebody else.
    pub(super) newer: u64,
    pub(super) lost: u64,
    /// The first of those that are lost, and what is there instead.
    pub(super) lost_keys: Vec<String>,
}

impl Checked {
    fn judge(&mut self, text: &KeyText, number: u64, entry: Entry, kv: Option<&KeyValue>) {
        let wrong = match kv {
            None => "is not there".to_owned(),
            Some(kv) if kv.mod_revision > entry.revision => {
                self.newer += 1;
                return;
            }
            Some(kv) if kv.mod_revision < entry.revision => {
                format!("has an older value, of revision {}", kv.mod_revision)
            }
            Some(kv) if crc32fast::hash(&kv.value) != entry.crc => "has another value".to_owned(),
            Some(_) => return,
        };
        self.lost += 1;
        if self.lost_keys.len() < NAMED_MAX {
            let key = text.key(number);
            let key = String::from_utf8_lossy(&key);
            let revision = entry.revision;
            self.lost_keys
                .push(format!("{key}, written at revision {revision}, {wrong}"));
        }
    }

    /// One line, without its end.
    pub(super) fn summary(&self) -> String {
        let sample = match self.one_of_keys {
            0 => return format!("{}: nothing read back", self.endpoint),
            1 => String::new(),
            n => format!(", one of {n} keys"),
        };
        let newer = match self.newer {
            0 => String::new(),
            n => format!(", {n} newer"),
        };
        format!(
            "{}: read back {} keys{sample} after {} acknowledged writes: {} lost{newer}",
            self.endpoint, self.keys, self.acknowledged, self.lost
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::args::Kind;

    fn args(key_space: u64, check_keys: u64) -> LoadArgs {
        LoadArgs {
            key_space,
            check_keys,
            ..LoadArgs::defaults(Kind::Put)
        }
    }

    #[test]
    fn ledger_keeps_the_newest_write_of_each_key() {
        let ledger = Ledger::new(&args(1_000, 1_000));
        ledger.note(Write { key: 999, crc: 1 }, 7);
        ledger.note(Write { key: 999, crc: 2 }, 9);
        ledger.note(Write { key: 999, crc: 3 }, 8);
        ledger.note(Write { key: 0, crc: 4 }, 3);
        let written: Vec<_> = ledger.written().into();
        let written: Vec<_> = written
            .iter()
            .map(|(key, entry)| (*key, entry.revision, entry.crc))
            .collect();
        assert_eq!(written, [(0, 3, 4), (999, 9, 2)]);
        assert_eq!((ledger.acknowledged(), ledger.newest()), (4, 9));
    }

    #[test]
    fn ledger_of_a_large_key_space_keeps_a_part_of_it_and_none_if_told_so() {
        let ledger = Ledger::new(&args(1_000, 100));
        let none = Ledger::new(&args(1_000, 0));
        for key in 0..1_000 {
            ledger.note(Write { key, crc: 0 }, 1);
            none.note(Write { key, crc: 0 }, 1);
        }
        let written = ledger.written();
        assert_eq!(written.len(), 100);
        assert!(written.iter().all(|(key, _)| key % 10 == 0));
        assert!(none.written().is_empty());
        assert_eq!(none.acknowledged(), 1_000);
    }

    #[test]
    fn judge_tells_lost_from_newer() {
        let args = args(10, 10);
        let text = KeyText::new(&args);
        let value = b"v".as_slice();
        let entry = Entry {
            revision: 5,
            crc: crc32fast::hash(value),
        };
        let kv = |mod_revision, value: &'static [u8]| KeyValue {
            mod_revision,
            value: value.into(),
            ..KeyValue::default()
        };
        let mut checked = Checked::default();
        checked.judge(&text, 1, entry, Some(&kv(5, b"v")));
        checked.judge(&text, 1, entry, Some(&kv(6, b"w")));
        assert_eq!((checked.lost, checked.newer), (0, 1));
        checked.judge(&text, 1, entry, Some(&kv(5, b"w")));
        checked.judge(&text, 1, entry, Some(&kv(4, b"v")));
        checked.judge(&text, 1, entry, None);
        assert_eq!((checked.lost, checked.lost_keys.len()), (3, 3));
        assert!(checked.lost_keys[2].contains("bench/0000000001"));
    }
}
