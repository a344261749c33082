//! A keyspace in memory with a hub, and a client that drives a feed by hand.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;
use raft_log::{Index, Term};
use raft_node::{Entry, EntryKind, StateMachine, TickContext};

use super::{Feed, FeedOptions, Lookup, Step, StoreState, WatchHub};
use crate::auth::TokenSink;
use crate::engine::memory::MemoryEngine;
use crate::mvcc::{CommandOutput, KvOptions, KvStateMachine, LeaseInfo, LeaseSink, Sinks, Store};
use crate::pb::command::{Command, command::Op};
use crate::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;

struct NoLessor;

impl LeaseSink for NoLessor {
    fn granted(&self, _: LeaseInfo) {}
    fn revoked(&self, _: i64) {}
    fn checkpointed(&self, _: i64, _: Option<i64>) {}
    fn tick(&self, _: TickContext, _: &mut Vec<Bytes>) {}
    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

/// A store that publishes to a hub. Any thread may write.
pub(crate) struct Keyspace {
    machine: Mutex<KvStateMachine>,
    pub(crate) store: Arc<Store>,
    pub(crate) hub: Arc<WatchHub>,
}

impl Keyspace {
    pub(crate) fn new(hub: WatchHub) -> Self {
        let hub = Arc::new(hub);
        let sinks = Sinks {
            events: hub.clone(),
            leases: Arc::new(NoLessor),
        };
        let engine = Arc::new(MemoryEngine::new());
        let (machine, store) =
            KvStateMachine::open(engine, KvOptions::default(), sinks).expect("it opens");
        hub.start(store.revision());
        Self {
            machine: Mutex::new(machine),
            store,
            hub,
        }
    }

    /// Applies commands as one slice.
    pub(crate) fn apply(&self, ops: impl IntoIterator<Item = Op>) {
        let mut machine = self.machine.lock().unwrap();
        let first = machine.applied().index.0 + 1;
        let entry = |(i, op): (usize, Op)| Entry {
            index: Index(first + i as u64),
            term: Term(1),
            kind: EntryKind::Normal,
            payload: Command { op: Some(op) }.encode_to_vec().into(),
        };
        let entries: Vec<_> = ops.into_iter().enumerate().map(entry).collect();
        let mut outputs = Vec::new();
        machine.apply(&entries, None, &mut outputs).unwrap();
        outputs.into_iter().for_each(|output| drop(output.unwrap()));
    }

    /// Applies one encoded command, and gives its output.
    pub(crate) fn run(&self, payload: Bytes) -> CommandOutput {
        let mut machine = self.machine.lock().unwrap();
        let entry = Entry {
            index: Index(machine.applied().index.0 + 1),
            term: Term(1),
            kind: EntryKind::Normal,
            payload,
        };
        let mut outputs = Vec::new();
        machine.apply(&[entry], None, &mut outputs).unwrap();
        outputs.remove(0)
    }

    /// The index of the newest entry.
    pub(crate) fn applied(&self) -> Index {
        self.machine.lock().unwrap().applied().index
    }

    pub(crate) fn tell_tokens(&self, tokens: Arc<dyn TokenSink>) {
        self.machine.lock().unwrap().tell_tokens(tokens);
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.apply([put(key, value)]);
    }

    /// Compacts, and removes what may go.
    pub(crate) fn compact(&self, revision: i64) {
        let physical = false;
        self.apply([Op::Compact(pb::CompactionRequest { revision, physical })]);
        let mut machine = self.machine.lock().unwrap();
        for tick in 0..1_000 {
            let leading = None;
            machine.tick(TickContext { tick, leading }, &mut Vec::new());
            if machine.next_deadline().is_none() {
                return;
            }
        }
        panic!("compaction does not end");
    }

    pub(crate) fn state(&self) -> StoreState {
        StoreState {
            revision: self.store.revision(),
            compact: self.store.compact_revision(),
        }
    }
}

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put(pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    })
}

pub(crate) fn delete(key: &str, end: &str) -> Op {
    Op::DeleteRange(pb::DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        prev_kv: false,
    })
}

/// A watch on a key, or on the keys up to `end`.
pub(crate) fn on(key: &str, end: &str, start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        start_revision,
        ..Default::default()
    }
}

pub(crate) fn create(request: pb::WatchCreateRequest) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(request)),
    }
}

pub(crate) fn cancel(watch_id: i64) -> pb::WatchRequest {
    let cancel = pb::WatchCancelRequest { watch_id };
    pb::WatchRequest {
        request_union: Some(RequestUnion::CancelRequest(cancel)),
    }
}

pub(crate) fn progress() -> pb::WatchRequest {
    let progress = pb::WatchProgressRequest {};
    pb::WatchRequest {
        request_union: Some(RequestUnion::ProgressRequest(progress)),
    }
}

pub(crate) fn revision(response: &pb::WatchResponse) -> i64 {
    response
        .header
        .as_ref()
        .expect("each answer has one")
        .revision
}

/// One line per event: kind, key, revision.
pub(crate) fn events(response: &pb::WatchResponse) -> Vec<String> {
    let line = |event: &crate::pb::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("each event has a key");
        let key = String::from_utf8_lossy(&kv.key);
        format!("{} {key} {}", event.r#type().as_str_name(), kv.mod_revision)
    };
    response.events.iter().map(line).collect()
}

/// A client that takes one message when told to.
pub(crate) struct Client<'a> {
    pub(crate) keyspace: &'a Keyspace,
    pub(crate) feed: Feed,
    /// A read that was asked for; [`Client::take`] does it only when nothing else is left to do.
    pub(crate) read: Option<i64>,
    lookup: Option<Vec<Lookup>>,
    pub(crate) reads: usize,
    pub(crate) lookups: usize,
}

impl<'a> Client<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace) -> Self {
        Self::with(keyspace, FeedOptions::default())
    }

    pub(crate) fn with(keyspace: &'a Keyspace, options: FeedOptions) -> Self {
        Self {
            feed: Feed::new(Arc::clone(&keyspace.hub), options),
            keyspace,
            read: None,
            lookup: None,
            reads: 0,
            lookups: 0,
        }
    }

    pub(crate) fn ask(&mut self, request: pb::WatchRequest) {
        self.feed.request(request, self.keyspace.state());
    }

    /// Does what was asked for and is open. False when there was nothing.
    pub(crate) fn work(&mut self) -> bool {
        if let Some(lookups) = self.lookup.take() {
            let find = |l: &Lookup| {
                self.keyspace
                    .store
                    .kv_before(&l.key, l.mod_revision)
                    .unwrap()
            };
            self.feed.found(lookups.iter().map(find).collect());
            self.lookups += lookups.len();
            return true;
        }
        let Some(from) = self.read.take() else {
            return false;
        };
        self.reads += 1;
        let read = self.keyspace.store.history(from, 64);
        self.feed
            .history(read, self.keyspace.store.compact_revision());
        true
    }

    /// The next message without doing any reads.
    pub(crate) fn poll(&mut self) -> Option<pb::WatchResponse> {
        loop {
            match self.feed.step() {
                Step::Send(response) => return Some(response),
                Step::Read(from) => self.read = Some(from),
                Step::Lookup(lookups) => self.lookup = Some(lookups),
                Step::Idle => return None,
                Step::Fail(error) => panic!("the feed failed: {error}"),
            }
        }
    }

    /// The next message.
    pub(crate) fn take(&mut self) -> Option<pb::WatchResponse> {
        for _ in 0..10_000 {
            if let Some(response) = self.poll() {
                return Some(response);
            }
            if !self.work() {
                return None;
            }
        }
        panic!("the feed reads and reads, and sends nothing");
    }

    /// All messages that there are.
    pub(crate) fn drain(&mut self) -> Vec<pb::WatchResponse> {
        std::iter::from_fn(|| self.take()).collect()
    }
}
