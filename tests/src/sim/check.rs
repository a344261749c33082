//! Compares all that can be read of a store with the model at its applied index, and its hash with the one of a fresh
//! replica that replays the same entries in one go.

use std::sync::Arc;

use kv_server::ApiError;
use kv_server::engine::memory::MemoryEngine;
use kv_server::mvcc::{KvOptions, KvStateMachine, Sinks, Store};
use kv_server::pb::etcdserverpb::RangeRequest;
use raft_log::{Entry, EntryKind, Index, NodeId};
use raft_node::StateMachine;
use raft_node::core::Membership;

use super::model::Model;
use super::oracle::{Oracle, Shared, everything};
use super::sinks::{Heard, Hub, Lessor};

/// Old revisions that are read in full; the rest is covered by the history.
const REVISIONS_READ: usize = 8;

pub(super) fn state(store: &Store, oracle: &Shared<Oracle>, applied: Index) {
    let (model, entries) = {
        let oracle = oracle.get();
        (oracle.model_at(applied), oracle.up_to(applied).to_vec())
    };
    assert_eq!(store.revision(), model.revision(), "revision at {applied}");
    assert_eq!(
        store.compact_revision(),
        model.floor(),
        "floor at {applied}"
    );
    assert_eq!(store.leases(), model.leases(), "leases at {applied}");
    for lease in model.leases() {
        let keys = store.lease_keys(lease.id);
        let expected = Ok(model.lease_keys(lease.id));
        assert_eq!(keys, expected, "keys of lease {} at {applied}", lease.id);
    }
    ranges(store, &model, applied);
    history(store, &model, applied);
    let (counted, walked) = store.count_bytes().expect("the engine can be read");
    assert_eq!(counted, walked, "bytes of the keyspace at {applied}");
    let hash = store.state_hash().expect("the engine can be read");
    assert_eq!(
        hash,
        replayed_hash(oracle, &entries),
        "the state hash at {applied} is not that of a replica that replays the same entries"
    );
}

fn ranges(store: &Store, model: &Model, applied: Index) {
    let newest = model.revision();
    let oldest = model.floor().max(1);
    let step = ((newest - oldest) as usize / REVISIONS_READ).max(1);
    for revision in (oldest..=newest).step_by(step).chain([newest, 0]) {
        let request = RangeRequest {
            revision,
            ..everything()
        };
        let response = store.range(&request).expect("the revision is readable");
        let at = if revision == 0 { newest } else { revision };
        let expected = model.range_at(&request.key, &request.range_end, at);
        assert_eq!(response.kvs, expected, "revision {revision} at {applied}");
        let header = response.header.expect("a range has a header");
        assert_eq!(
            header.revision, newest,
            "the header of a range at {applied}"
        );
    }
    let at = |revision| {
        store.range(&RangeRequest {
            revision,
            ..everything()
        })
    };
    assert_eq!(at(newest + 1), Err(ApiError::FutureRevision));
    if model.floor() > 1 {
        assert_eq!(at(model.floor() - 1), Err(ApiError::Compacted));
    }
}

fn history(store: &Store, model: &Model, applied: Index) {
    let from = model.floor().max(2);
    let history = store
        .history(from, usize::MAX)
        .expect("it is not compacted");
    let mut next = from;
    for revision in &history.revisions {
        assert_eq!(revision.revision, next, "history at {applied} has a hole");
        let expected = model.events(next);
        assert_eq!(Some(&revision.events[..]), expected, "events of {next}");
        next += 1;
    }
    assert_eq!(
        next,
        model.revision() + 1,
        "history at {applied} ends early"
    );
    let Some(last) = history.revisions.last() else {
        return;
    };
    for event in &last.events {
        let (key, revision) = (&event.kv.key, last.revision);
        let readable = revision > model.floor().max(1);
        let expected = model.get_at(key, revision - 1).filter(|_| readable);
        assert_eq!(
            store.kv_before(key, revision),
            Ok(expected),
            "before {revision}"
        );
    }
}

fn replayed_hash(oracle: &Shared<Oracle>, entries: &[Entry]) -> u64 {
    let hub = Arc::new(Hub::new(NodeId::ZERO, oracle.clone(), 0));
    let sinks = Sinks {
        events: hub.clone(),
        leases: Arc::new(Lessor::default()),
    };
    let engine = Arc::new(MemoryEngine::new());
    let (mut machine, store) =
        KvStateMachine::open(engine, KvOptions::default(), sinks).expect("an empty engine opens");
    hub.begin(Heard {
        revision: store.revision(),
        floor: store.compact_revision(),
    });
    let mut outputs = Vec::new();
    // A membership ends its slice, as in the product.
    for slice in entries.split_inclusive(|entry| entry.kind == EntryKind::Config) {
        let last = slice.last().filter(|entry| entry.kind == EntryKind::Config);
        let membership = last.map(|entry| Membership::decode(&entry.payload));
        let membership = membership.map(|decoded| decoded.expect("the log holds memberships"));
        machine
            .apply(slice, membership.as_ref(), &mut outputs)
            .expect("what was applied once can be applied again");
    }
    let mut oracle = oracle.get();
    oracle.process_started(NodeId::ZERO, Index::ZERO);
    oracle.applied(NodeId::ZERO, entries, &outputs);
    drop(oracle);
    store.state_hash().expect("the engine can be read")
}
