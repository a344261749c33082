//! What many idle groups cost: one second of three stores that share them, everything in one thread.
//!
//! `cargo bench -p benches --bench groups`. One percent of a core is 10 ms per store and second, so 30 ms for three.
#![expect(clippy::unwrap_used, reason = "a failed setup is a failed benchmark")]

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use multiraft::liveness::{Beat, Liveness, LivenessConfig};
use multiraft::{HostCore, HostHandle, HostOptions, Outbox};
use raft_log::vfs::SimFs;
use raft_log::{Base, GroupId, IoMode, Log, LogOptions, NodeId, Record, StoreId, WriteBatch};
use raft_node::core::{Config, Membership, Message};
use raft_node::driver::{Group, GroupConfig};
use raft_node::{Applied, ApplyError, Entry, StateMachine, TickContext};

const STORES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

#[derive(Default)]
struct Nothing(Applied);

impl StateMachine for Nothing {
    type Output = ();

    fn applied(&self) -> Applied {
        self.0.clone()
    }

    fn durable_index(&self) -> raft_log::Index {
        self.0.index
    }

    fn request_persist(&mut self) {}

    fn apply(
        &mut self,
        entries: &[Entry],
        _: Option<&Membership>,
        outputs: &mut Vec<()>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            (self.0.index, self.0.term) = (entry.index, entry.term);
            outputs.push(());
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

#[derive(Default)]
struct Sent {
    messages: Vec<(GroupId, NodeId, NodeId, Message)>,
    beats: Vec<(NodeId, NodeId, Beat)>,
}

struct Wire(NodeId, Arc<Mutex<Sent>>);

impl Outbox for Wire {
    fn send(&mut self, group: GroupId, to: NodeId, message: Message) {
        let mut sent = self.1.lock().unwrap();
        sent.messages.push((group, self.0, to, message));
    }

    fn beat(&mut self, to: NodeId, beat: Beat) {
        self.1.lock().unwrap().beats.push((self.0, to, beat));
    }
}

struct Store {
    log: Log,
    core: HostCore<Nothing>,
    handle: HostHandle<Nothing>,
    due: u64,
}

struct World {
    stores: Vec<Store>,
    sent: Arc<Mutex<Sent>>,
    now: u64,
    messages: usize,
}

fn store(id: NodeId, groups: u64, sleep_ticks: u64, sent: &Arc<Mutex<Sent>>) -> Store {
    let mut options = LogOptions::new("/log", StoreId(id.0));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(SimFs::new(id.0).shared(), options).unwrap();
    let mut batch = WriteBatch::new();
    let membership = Membership::of_voters(STORES).encode();
    for group in 1..=groups {
        let base = Base {
            creation: 1,
            membership: membership.clone(),
            ..Base::default()
        };
        batch.push(GroupId(group), Record::Compact(base));
    }
    let ticket = log.submit(batch).unwrap();
    log.wait(ticket).unwrap();
    let groups = (1..=groups).map(|group| {
        let core = Config {
            id,
            group: GroupId(group),
            seed: group * 31 + id.0,
            sleep_ticks,
            ..Config::default()
        };
        let config = GroupConfig {
            core: core.validate().unwrap(),
            catch_up_entries: 1_000,
        };
        Group::open(GroupId(group), config, log.clone(), Nothing::default()).unwrap()
    });
    let groups = groups.collect();
    let outbox = Box::new(Wire(id, Arc::clone(sent)));
    let options = HostOptions::default();
    let (mut core, handle) = HostCore::new(log.clone(), groups, options, outbox, Box::new(|| {}));
    core.watch_stores(Liveness::new(StoreId(id.0), 1, LivenessConfig::default()));
    Store {
        log,
        core,
        handle,
        due: 0,
    }
}

impl World {
    fn new(groups: u64, sleep_ticks: u64) -> Self {
        let sent = Arc::<Mutex<Sent>>::default();
        let stores = STORES.map(|id| store(id, groups, sleep_ticks, &sent));
        let mut world = Self {
            stores: stores.into_iter().collect(),
            sent,
            now: 0,
            messages: 0,
        };
        world.run(600);
        world.messages = 0;
        world
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now += 1;
            let sent = std::mem::take(&mut *self.sent.lock().unwrap());
            self.messages += sent.messages.len();
            for (group, from, to, message) in sent.messages {
                let to = &mut self.stores[to.0 as usize - 1];
                to.handle.deliver(group, from, message);
                to.due = self.now;
            }
            for (from, to, beat) in sent.beats {
                let to = &mut self.stores[to.0 as usize - 1];
                to.handle.deliver_beat(from, beat);
                to.due = self.now;
            }
            for store in &mut self.stores {
                // As its thread does: it sleeps until something is due.
                while store.due <= self.now {
                    let turn = store.core.turn(self.now).unwrap();
                    let wrote = store.log.drive().unwrap();
                    store.due = if turn.busy || wrote || turn.unsynced.is_some() {
                        self.now
                    } else {
                        turn.deadline.unwrap_or(u64::MAX)
                    };
                }
            }
        }
    }
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("idle_groups_second_of_three_stores");
    group.sample_size(20);
    for (name, sleep_ticks) in [("asleep", 100), ("heartbeats", 0)] {
        for groups in [100, 10_000] {
            let mut world = World::new(groups, sleep_ticks);
            group.bench_function(format!("{name}/{groups}"), |b| {
                b.iter(|| {
                    world.run(100);
                    black_box(world.now)
                });
            });
            assert_eq!(world.messages == 0, sleep_ticks > 0, "{name}");
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
