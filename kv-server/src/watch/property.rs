//! Random writes, compactions, watches and slow clients, with a tiny ring: whatever happens, each watcher gets exactly
//! the events that it asked for, in order and whole revisions at a time, or hears from where it can resume; and a
//! progress answer is never ahead of the events.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::testing::{Client, Keyspace, cancel, create, delete, on, progress, revision};
use super::{FeedOptions, WatchHub};
use crate::pb::etcdserverpb::{
    WatchCreateRequest, WatchResponse, watch_create_request::FilterType,
};
use crate::pb::mvccpb::{Event, KeyValue};

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What a watcher must see, kept by the test itself.
#[derive(Default)]
struct Model {
    /// The events of each revision, in order, with what was there before.
    log: BTreeMap<i64, Vec<Event>>,
    live: BTreeMap<String, KeyValue>,
    revision: i64,
    floor: i64,
}

impl Model {
    fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        let prev_kv = self.live.get(key).cloned();
        let kv = KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision: prev_kv
                .as_ref()
                .map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: prev_kv.as_ref().map_or(1, |kv| kv.version + 1),
            lease: 0,
        };
        self.live.insert(key.to_owned(), kv.clone());
        let event = Event {
            r#type: 0,
            kv: Some(kv),
            prev_kv,
        };
        self.log.insert(self.revision, vec![event]);
    }

    fn delete(&mut self, from: &str, to: &str) {
        let keys: Vec<_> = self
            .live
            .range(from.to_owned()..to.to_owned())
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        self.revision += 1;
        let event = |key: String| Event {
            r#type: 1,
            prev_kv: self.live.remove(&key),
            kv: Some(KeyValue {
                key: key.into(),
                mod_revision: self.revision,
                ..Default::default()
            }),
        };
        let events = keys.into_iter().map(event).collect();
        self.log.insert(self.revision, events);
    }
}

struct Watched {
    request: WatchCreateRequest,
    /// The first revision that it must see.
    from: i64,
    got: Vec<Event>,
    /// The last message was a fragment.
    open: bool,
    ended: bool,
}

impl Watched {
    fn wants(&self, event: &Event) -> bool {
        let (key, end) = (&self.request.key, &self.request.range_end);
        let kv = event.kv.as_ref().unwrap();
        let within = match end.as_ref() {
            [] => kv.key == key,
            [0] => kv.key >= key,
            _ => kv.key >= key && kv.key < end,
        };
        within && !self.request.filters.contains(&event.r#type)
    }

    /// All that it should have seen once everything up to a revision was sent.
    fn expected(&self, model: &Model, to: i64) -> Vec<Event> {
        let events = model
            .log
            .range(self.from..(to + 1).max(self.from))
            .flat_map(|(_, events)| events);
        events.filter(|event| self.wants(event)).cloned().collect()
    }

    /// Checks what came so far against the revisions up to `to`. Previous values may be missing where compaction was.
    fn check(&self, model: &Model, to: i64, seed: u64) {
        let expected = self.expected(model, to);
        assert_eq!(
            self.got.len(),
            expected.len(),
            "seed {seed}: {:?} from {}",
            self.request,
            self.from
        );
        for (got, mut expected) in self.got.iter().zip(expected) {
            let modified = expected.kv.as_ref().unwrap().mod_revision;
            let lost = got.prev_kv.is_none() && modified - 1 < model.floor;
            if !self.request.prev_kv || lost {
                expected.prev_kv = None;
            }
            assert_eq!(*got, expected, "seed {seed}");
        }
    }

    fn last(&self) -> i64 {
        let last = self.got.last().and_then(|event| event.kv.as_ref());
        last.map_or(0, |kv| kv.mod_revision)
    }
}

struct World<'a> {
    keyspace: &'a Keyspace,
    model: Model,
    clients: Vec<(Client<'a>, BTreeMap<i64, Watched>, Vec<WatchCreateRequest>)>,
    seed: u64,
    /// What happened, so that a run proves that it got there.
    canceled: usize,
    answered: usize,
}

impl World<'_> {
    fn received(&mut self, at: usize, response: WatchResponse) {
        let (_, watched, asked) = &mut self.clients[at];
        let (seed, id) = (self.seed, response.watch_id);
        if response.created {
            assert!(!response.canceled, "seed {seed}: all requests are fine");
            let request = asked.remove(0);
            let from = match request.start_revision {
                0 => revision(&response) + 1,
                start => start,
            };
            let watch = Watched {
                request,
                from,
                got: Vec::new(),
                open: false,
                ended: false,
            };
            assert!(
                watched.insert(id, watch).is_none(),
                "seed {seed}: an id twice"
            );
        } else if response.canceled {
            let watch = watched.get_mut(&id).unwrap();
            watch.ended = true;
            assert!(!watch.open, "seed {seed}: cut within a revision");
            if response.compact_revision != 0 {
                self.canceled += 1;
                assert!(
                    watch.last() < response.compact_revision
                        && watch.from < response.compact_revision
                );
                assert!(response.compact_revision <= self.model.floor);
            }
            // Nothing is missing between what came and the last of it.
            watch.check(&self.model, watch.last(), seed);
        } else if response.events.is_empty() {
            let progress = revision(&response);
            self.answered += 1;
            let told = watched
                .iter()
                .filter(|(other, _)| id == -1 || **other == id);
            for (_, watch) in told.filter(|(_, watch)| !watch.ended) {
                assert!(watch.request.start_revision <= progress, "seed {seed}");
                assert!(
                    watch.from - 1 <= progress && watch.last() <= progress,
                    "seed {seed}"
                );
                watch.check(&self.model, progress, seed);
            }
        } else {
            let watch = watched.get_mut(&id).unwrap();
            assert!(!watch.ended, "seed {seed}: events after the end");
            let first = response.events[0].kv.as_ref().unwrap().mod_revision;
            assert!(
                watch.open || first > watch.last(),
                "seed {seed}: a revision in two messages"
            );
            watch.open = response.fragment;
            let sent = revision(&response);
            watch.got.extend(response.events);
            assert!(watch.last() <= sent);
        }
    }
}

fn random_watch(rng: &mut StdRng, newest: i64) -> WatchCreateRequest {
    let key = KEYS[rng.random_range(0..KEYS.len())];
    let end = ["", "", "\0", "d", "z"][rng.random_range(0..5usize)];
    let end = if !matches!(end, "" | "\0") && key >= end {
        ""
    } else {
        end
    };
    let start = match rng.random_range(0..4) {
        0 => 0,
        1 => newest + rng.random_range(0..4),
        _ => rng.random_range(1..=newest),
    };
    let mut request = on(key, end, start);
    request.prev_kv = rng.random_bool(0.5);
    request.fragment = rng.random_bool(0.3);
    request.progress_notify = rng.random_bool(0.5);
    if rng.random_bool(0.2) {
        request.filters = vec![rng.random_range(0..2i32)];
        assert!(FilterType::try_from(request.filters[0]).is_ok());
    }
    request
}

fn run(seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let keyspace = Keyspace::new(WatchHub::with_bounds(
        rng.random_range(0..3_000),
        rng.random_range(0..12),
    ));
    let mut world = World {
        keyspace: &keyspace,
        model: Model {
            revision: 1,
            floor: -1,
            ..Model::default()
        },
        clients: Vec::new(),
        seed,
        canceled: 0,
        answered: 0,
    };
    for _ in 0..3 {
        let options = FeedOptions {
            message_bytes_max: rng.random_range(1..600),
            chunk_bytes_max: rng.random_range(1..2_000),
            chunk_revisions_max: rng.random_range(1..10),
        };
        let client = Client::with(world.keyspace, options);
        world.clients.push((client, BTreeMap::new(), Vec::new()));
    }
    for step in 0..600 {
        let at = rng.random_range(0..world.clients.len());
        match rng.random_range(0..100) {
            0..25 => {
                let (key, value) = (KEYS[rng.random_range(0..KEYS.len())], step.to_string());
                world.model.put(key, &value);
                world.keyspace.put(key, &value);
            }
            25..32 => {
                let (from, to) = (KEYS[rng.random_range(0..KEYS.len())], "e");
                if from < to {
                    world.model.delete(from, to);
                    world.keyspace.apply([delete(from, to)]);
                }
            }
            32..34 => {
                let floor =
                    rng.random_range(world.model.floor.max(0) + 1..=world.model.revision + 1);
                if floor <= world.model.revision {
                    world.model.floor = floor;
                    world.keyspace.compact(floor);
                }
            }
            34..42 => {
                let request = random_watch(&mut rng, world.model.revision);
                let (client, _, asked) = &mut world.clients[at];
                asked.push(request.clone());
                client.ask(create(request));
            }
            42..44 => {
                let (client, watched, _) = &mut world.clients[at];
                let live = watched
                    .iter()
                    .find(|(_, watch)| !watch.ended && !watch.open);
                if let Some((id, _)) = live {
                    client.ask(cancel(*id));
                }
            }
            44..50 => world.clients[at].0.ask(progress()),
            50..52 => world.clients[at].0.feed.tick(),
            52..65 => drop(world.clients[at].0.work()),
            _ => {
                if let Some(response) = world.clients[at].0.poll() {
                    world.received(at, response);
                }
            }
        }
    }
    for at in 0..world.clients.len() {
        while let Some(response) = world.clients[at].0.take() {
            world.received(at, response);
        }
        for watch in world.clients[at].1.values().filter(|watch| !watch.ended) {
            assert!(!watch.open, "seed {seed}");
            watch.check(&world.model, world.model.revision, seed);
        }
    }
    (world.canceled, world.answered)
}

#[test]
fn random_world_every_watcher_sees_exactly_its_events() {
    let (mut canceled, mut answered) = (0, 0);
    for seed in 0..300 {
        let (c, a) = run(seed);
        canceled += c;
        answered += a;
    }
    assert!(canceled > 100, "{canceled} cancelled by compaction");
    assert!(answered > 1_000, "{answered} told of progress");
}
