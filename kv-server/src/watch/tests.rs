//! Feeds against a real store, without sockets. Expectations are etcd's documented watch behaviour.

use super::testing::{
    Client, Keyspace, cancel, create, delete, events, on, progress, put, revision,
};
use super::{FeedOptions, WatchHub};
use crate::pb::command::command::Op;
use crate::pb::etcdserverpb::{self as pb, request_op::Request, watch_create_request::FilterType};

fn keyspace() -> Keyspace {
    Keyspace::new(WatchHub::new())
}

/// Without memory of recent revisions: all is read from history.
fn forgetful() -> Keyspace {
    Keyspace::new(WatchHub::with_bounds(0, 0))
}

fn txn(ops: impl IntoIterator<Item = Op>) -> Op {
    let request = |op| match op {
        Op::Put(put) => Request::RequestPut(put),
        Op::DeleteRange(delete) => Request::RequestDeleteRange(delete),
        other => panic!("not for a transaction: {other:?}"),
    };
    let success = ops.into_iter().map(|op| pb::RequestOp {
        request: Some(request(op)),
    });
    Op::Txn(pb::TxnRequest {
        success: success.collect(),
        ..Default::default()
    })
}

#[test]
fn create_from_now_answers_with_current_revision_and_sends_what_follows() {
    let keyspace = keyspace();
    keyspace.put("a", "1");
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 0)));
    let created = client.take().unwrap();
    assert!(created.created && !created.canceled);
    assert_eq!((created.watch_id, revision(&created)), (0, 2));
    assert_eq!(client.take(), None);
    keyspace.put("a", "2");
    keyspace.put("b", "2");
    let response = client.take().unwrap();
    assert_eq!(events(&response), ["PUT a 3"]);
    assert_eq!((response.watch_id, revision(&response)), (0, 4));
    let kv = response.events[0].kv.clone().unwrap();
    assert_eq!(
        (kv.create_revision, kv.version, kv.value.as_ref()),
        (2, 2, &b"2"[..])
    );
    assert_eq!(client.take(), None);
    assert_eq!((client.reads, client.lookups), (0, 0));
}

#[test]
fn ids_are_counted_from_zero_around_custom_ones() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    let mut custom = on("a", "", 0);
    custom.watch_id = 1;
    client.ask(create(on("a", "", 0)));
    client.ask(create(custom.clone()));
    client.ask(create(on("a", "", 0)));
    client.ask(create(custom));
    let answers = client.drain();
    let ids: Vec<_> = answers.iter().map(|answer| answer.watch_id).collect();
    assert_eq!(ids, [0, 1, 2, -1]);
    assert!(answers[3].created && answers[3].canceled);
    let reason = "mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!(answers[3].cancel_reason, reason);
    assert_eq!(client.feed.watchers(), 3);
}

#[test]
fn bad_requests_get_the_failure_shape_and_take_no_id() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    for (request, reason) in [
        (on("b", "a", 0), "mvcc: watcher range is empty"),
        (on("b", "b", 0), "mvcc: watcher range is empty"),
        (on("a", "", -1), compacted),
    ] {
        client.ask(create(request));
        let answer = client.take().unwrap();
        assert!(answer.created && answer.canceled);
        assert_eq!((answer.watch_id, revision(&answer)), (-1, 1));
        assert_eq!(answer.cancel_reason, reason);
    }
    client.ask(create(on("", "\0", 0)));
    assert_eq!(client.take().unwrap().watch_id, 0);
    keyspace.put("\0", "smallest");
    keyspace.put("z", "");
    assert_eq!(events(&client.take().unwrap()), ["PUT \0 2", "PUT z 3"]);
}

#[test]
fn start_in_the_past_sends_history_once_from_ring_and_from_store() {
    for (keyspace, reads) in [(keyspace(), 0), (forgetful(), 3)] {
        keyspace.put("a", "1");
        keyspace.put("b", "1");
        keyspace.apply([delete("a", "")]);
        let mut client = Client::new(&keyspace);
        client.ask(create(on("a", "c", 2)));
        assert!(client.take().unwrap().created);
        let got: Vec<_> = client.drain().iter().flat_map(events).collect();
        assert_eq!(got, ["PUT a 2", "PUT b 3", "DELETE a 4"]);
        assert_eq!(client.reads, reads);
        keyspace.put("a", "2");
        assert_eq!(events(&client.take().unwrap()), ["PUT a 5"]);
    }
}

#[test]
fn start_below_the_floor_is_created_then_canceled_and_at_the_floor_is_served() {
    let keyspace = forgetful();
    keyspace.put("a", "1");
    keyspace.put("a", "2");
    keyspace.apply([delete("a", "")]);
    keyspace.put("b", "1");
    keyspace.compact(4);
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 3)));
    let created = client.take().unwrap();
    assert!(created.created && !created.canceled);
    let canceled = client.take().unwrap();
    assert!(canceled.canceled && !canceled.created);
    assert_eq!((canceled.watch_id, canceled.compact_revision), (0, 4));
    assert_eq!(
        (revision(&canceled), canceled.cancel_reason.as_str()),
        (0, "")
    );
    assert_eq!(client.feed.watchers(), 0);
    // The deletion stands exactly at the floor (etcd #18089, #19179).
    client.ask(create(on("a", "", 4)));
    assert_eq!(client.take().unwrap().watch_id, 1);
    assert_eq!(events(&client.take().unwrap()), ["DELETE a 4"]);
}

#[test]
fn delete_events_hold_key_and_revision_and_previous_values_when_asked_for() {
    let keyspace = keyspace();
    keyspace.put("a", "1");
    let mut client = Client::new(&keyspace);
    let mut request = on("a", "", 0);
    request.prev_kv = true;
    client.ask(create(request));
    client.ask(create(on("a", "", 0)));
    client.drain();
    keyspace.put("a", "2");
    keyspace.apply([delete("a", "")]);
    keyspace.put("a", "3");
    let with = client.take().unwrap();
    let previous: Vec<_> = with
        .events
        .iter()
        .map(|event| event.prev_kv.as_ref().map(|kv| kv.value.clone()))
        .collect();
    assert_eq!(previous, [Some("1".into()), Some("2".into()), None]);
    let deleted = with.events[1].kv.clone().unwrap();
    let bare = crate::pb::mvccpb::KeyValue {
        key: "a".into(),
        mod_revision: 4,
        ..Default::default()
    };
    assert_eq!(deleted, bare);
    let without = client.take().unwrap();
    assert!(without.events.iter().all(|event| event.prev_kv.is_none()));
    assert_eq!(client.lookups, 2);
}

#[test]
fn previous_value_that_one_watcher_looked_up_serves_the_next() {
    let keyspace = keyspace();
    keyspace.put("a", "1");
    let mut request = on("a", "", 0);
    request.prev_kv = true;
    let mut clients = [Client::new(&keyspace), Client::new(&keyspace)];
    for client in &mut clients {
        client.ask(create(request.clone()));
        client.drain();
    }
    keyspace.put("a", "2");
    for client in &mut clients {
        let response = client.take().unwrap();
        assert_eq!(response.events[0].prev_kv.as_ref().unwrap().value, "1");
    }
    assert_eq!(clients.map(|client| client.lookups), [1, 0]);
}

#[test]
fn filters_drop_events_and_do_not_hold_up_progress() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    for filter in [FilterType::Noput, FilterType::Nodelete] {
        let mut request = on("a", "", 0);
        request.filters = vec![filter as i32];
        client.ask(create(request));
    }
    client.drain();
    keyspace.put("a", "1");
    let put_seen = client.drain();
    assert_eq!(put_seen.len(), 1);
    assert_eq!(
        (put_seen[0].watch_id, events(&put_seen[0])),
        (1, vec!["PUT a 2".into()])
    );
    keyspace.apply([delete("a", "")]);
    client.ask(progress());
    let rest = client.drain();
    assert_eq!(rest.len(), 2);
    assert_eq!(
        (rest[0].watch_id, events(&rest[0])),
        (0, vec!["DELETE a 3".into()])
    );
    assert_eq!((rest[1].watch_id, revision(&rest[1])), (-1, 3));
}

#[test]
fn revision_with_many_changes_is_one_message_per_watcher() {
    let keyspace = keyspace();
    let mut client = Client::with(
        &keyspace,
        FeedOptions {
            message_bytes_max: 1,
            ..FeedOptions::default()
        },
    );
    client.ask(create(on("a", "z", 0)));
    let mut fragments = on("a", "z", 0);
    fragments.fragment = true;
    client.ask(create(fragments));
    client.drain();
    keyspace.apply([
        txn([put("a", ""), put("c", ""), put("b", "")]),
        put("d", ""),
    ]);
    let got: Vec<_> = client
        .drain()
        .iter()
        .map(|r| (r.watch_id, r.fragment, revision(r), events(r).join(",")))
        .collect();
    let expected = [
        (0, false, 2, "PUT a 2,PUT c 2,PUT b 2"),
        (0, false, 3, "PUT d 3"),
        (1, true, 2, "PUT a 2"),
        (1, true, 2, "PUT c 2"),
        (1, false, 2, "PUT b 2"),
        (1, false, 3, "PUT d 3"),
    ];
    assert_eq!(got, expected.map(|(id, f, r, e)| (id, f, r, e.to_owned())));
}

#[test]
fn catching_up_puts_up_to_a_thousand_revisions_into_one_message() {
    let keyspace = keyspace();
    keyspace.apply((0..2_500).map(|_| put("a", "")));
    let options = FeedOptions {
        chunk_bytes_max: 1 << 30,
        ..FeedOptions::default()
    };
    let mut client = Client::with(&keyspace, options);
    client.ask(create(on("a", "", 2)));
    let sizes: Vec<_> = client.drain().iter().map(|r| r.events.len()).collect();
    assert_eq!(sizes, [0, 1_000, 1_000, 500]);
}

#[test]
fn future_start_gets_neither_older_events_nor_progress() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    let mut request = on("a", "", 4);
    request.progress_notify = true;
    client.ask(create(request));
    assert_eq!(revision(&client.take().unwrap()), 1);
    keyspace.put("a", "1");
    client.ask(progress());
    client.feed.tick();
    assert_eq!(client.take(), None);
    keyspace.put("a", "2");
    assert_eq!(client.take(), None);
    keyspace.put("a", "3");
    assert_eq!(events(&client.take().unwrap()), ["PUT a 4"]);
    let answer = client.take().unwrap();
    assert_eq!((answer.watch_id, revision(&answer)), (-1, 4));
}

#[test]
fn progress_waits_for_every_watcher_and_is_answered_once() {
    let keyspace = forgetful();
    keyspace.put("a", "1");
    keyspace.put("a", "2");
    let mut client = Client::new(&keyspace);
    client.ask(progress());
    assert_eq!(client.take(), None, "no watcher, no progress");
    client.ask(create(on("b", "", 0)));
    client.ask(create(on("a", "", 2)));
    client.ask(progress());
    client.ask(progress());
    let got = client.drain();
    let shape: Vec<_> = got.iter().map(|r| (r.watch_id, revision(r))).collect();
    assert_eq!(shape, [(0, 3), (1, 3), (1, 2), (1, 3), (-1, 3)]);
    client.ask(progress());
    assert_eq!(client.drain().len(), 1);
}

#[test]
fn later_progress_request_is_not_answered_with_an_older_revision() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 0)));
    client.drain();
    client.ask(progress());
    keyspace.put("a", "1");
    client.ask(progress());
    let got = client.drain();
    let shape: Vec<_> = got.iter().map(|r| (r.watch_id, revision(r))).collect();
    assert_eq!(shape, [(0, 2), (-1, 2)]);
}

#[test]
fn periodic_progress_goes_to_quiet_watchers_that_asked() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    for (key, notify) in [("a", true), ("b", true), ("c", false)] {
        let mut request = on(key, "", 0);
        request.progress_notify = notify;
        client.ask(create(request));
    }
    client.drain();
    keyspace.put("a", "1");
    client.feed.tick();
    let got = client.drain();
    let shape: Vec<_> = got
        .iter()
        .map(|r| (r.watch_id, revision(r), r.events.len()))
        .collect();
    assert_eq!(shape, [(0, 2, 1), (1, 2, 0)]);
    client.feed.tick();
    let got = client.drain();
    assert_eq!(got.len(), 1, "the other one had events since the last look");
    assert_eq!(got[0].watch_id, 1);
    client.feed.tick();
    assert_eq!(client.drain().len(), 2);
}

#[test]
fn cancel_stops_events_at_once_and_of_an_unknown_id_is_silent() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 0)));
    client.ask(create(on("a", "", 0)));
    client.drain();
    keyspace.put("a", "1");
    assert_eq!(client.take().unwrap().watch_id, 0);
    client.ask(cancel(1));
    client.ask(cancel(7));
    keyspace.put("a", "2");
    let got = client.drain();
    assert_eq!(
        (got[0].watch_id, got[0].canceled, revision(&got[0])),
        (1, true, 2)
    );
    assert_eq!(
        (got[1].watch_id, events(&got[1])),
        (0, vec!["PUT a 3".into()])
    );
    assert_eq!(got.len(), 2);
    let mut again = on("b", "", 0);
    again.watch_id = 1;
    client.ask(create(again));
    assert_eq!(client.take().unwrap().watch_id, 1);
}

#[test]
fn slow_client_compacted_away_is_canceled_with_a_revision_to_resume_from() {
    let keyspace = forgetful();
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 0)));
    client.drain();
    for _ in 0..5 {
        keyspace.put("a", "1");
    }
    assert_eq!(client.poll(), None);
    assert_eq!(client.read, Some(2));
    keyspace.compact(4);
    let canceled = client.take().unwrap();
    assert!(canceled.canceled);
    assert_eq!(canceled.compact_revision, 4);
    client.ask(create(on("a", "", 4)));
    let got: Vec<_> = client.drain().iter().flat_map(events).collect();
    assert_eq!(got, ["PUT a 4", "PUT a 5", "PUT a 6"]);
}

#[test]
fn slow_client_within_the_ring_survives_compaction() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    client.ask(create(on("a", "", 0)));
    client.drain();
    for _ in 0..5 {
        keyspace.put("a", "1");
    }
    keyspace.compact(4);
    assert_eq!(client.take().unwrap().events.len(), 5);
}

#[test]
fn live_watcher_does_not_wait_for_one_that_reads_history() {
    let keyspace = Keyspace::new(WatchHub::with_bounds(1 << 20, 1));
    for _ in 0..5 {
        keyspace.put("a", "1");
    }
    let mut client = Client::new(&keyspace);
    client.ask(create(on("b", "", 0)));
    client.ask(create(on("a", "", 2)));
    assert!(client.poll().unwrap().created && client.poll().unwrap().created);
    assert_eq!(client.poll(), None);
    assert_eq!(client.read, Some(2), "the read is under way");
    keyspace.put("b", "1");
    assert_eq!(events(&client.poll().unwrap()), ["PUT b 7"]);
    let got: Vec<_> = client.drain().iter().flat_map(events).collect();
    assert_eq!(got.len(), 5);
}

#[test]
fn many_watchers_created_in_the_past_share_their_reads() {
    let keyspace = forgetful();
    for _ in 0..10 {
        keyspace.put("a", "1");
    }
    let mut client = Client::new(&keyspace);
    for _ in 0..1_000 {
        client.ask(create(on("a", "", 2)));
    }
    let got = client.drain();
    assert_eq!(got.iter().map(|r| r.events.len()).sum::<usize>(), 10_000);
    assert!(client.reads <= 11, "{} reads", client.reads);
}

#[test]
fn very_many_matches_are_cut_between_revisions() {
    let keyspace = keyspace();
    let mut client = Client::new(&keyspace);
    for _ in 0..10_000 {
        client.ask(create(on("a", "", 0)));
    }
    client.drain();
    keyspace.apply((0..20).map(|_| put("a", "")));
    let got = client.drain();
    // Seven revisions bring 70,000 matches, which is above the bound.
    assert_eq!(got.len(), 30_000);
    assert_eq!(got.iter().map(|r| r.events.len()).sum::<usize>(), 200_000);
}

#[test]
fn ring_keeps_within_its_bytes_also_with_previous_values() {
    let hub = WatchHub::with_bounds(10_000, 1_000);
    let keyspace = Keyspace::new(hub);
    let mut request = on("a", "", 0);
    request.prev_kv = true;
    let mut client = Client::new(&keyspace);
    client.ask(create(request));
    client.drain();
    for round in 0..20 {
        keyspace.put("a", &"v".repeat(1_000));
        keyspace.apply([delete("a", "")]);
        let got = client.drain();
        assert_eq!(got.iter().map(|r| r.events.len()).sum::<usize>(), 2);
        assert!(keyspace.hub.ring_bytes() <= 10_000, "round {round}");
    }
}

#[test]
fn hub_behind_the_store_shows_only_what_was_published() {
    // A hub that the store does not publish to: as between the two steps of an apply.
    let keyspace = forgetful();
    let hub = std::sync::Arc::new(WatchHub::new());
    hub.start(keyspace.store.revision());
    let mut client = Client::new(&keyspace);
    client.feed = super::Feed::new(hub.clone(), FeedOptions::default());
    keyspace.put("a", "1");
    client.ask(create(on("a", "", 0)));
    client.ask(progress());
    assert_eq!(revision(&client.take().unwrap()), 1);
    assert_eq!(
        client.take(),
        None,
        "the store has revision 2, the stream does not"
    );
    hub.start(keyspace.store.revision());
    assert_eq!(events(&client.take().unwrap()), ["PUT a 2"]);
    assert_eq!(revision(&client.take().unwrap()), 2);
}
