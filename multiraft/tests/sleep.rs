//! Hosts that share many groups: those without work cost no message and no turn, and a store that dies or starts again
//! wakes them.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::liveness::{Beat, Health, Liveness, LivenessConfig};
use multiraft::{HostCore, HostError, HostHandle, HostOptions, Outbox};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::CrashKind;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, Space, StoreId};
use raft_node::core::{Config, Membership, Message, Role};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Applied, ApplyError, Entry, Index, StateMachine, TickContext};

const GROUPS: u64 = 40;
const STORES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const ELECTION_TICKS: u64 = 100;

/// Counts.
#[derive(Default)]
struct Count(Applied);

impl StateMachine for Count {
    type Output = Index;

    fn applied(&self) -> Applied {
        self.0.clone()
    }

    fn durable_index(&self) -> Index {
        self.0.index
    }

    fn request_persist(&mut self) {}

    fn apply(
        &mut self,
        entries: &[Entry],
        _: Option<&Membership>,
        outputs: &mut Vec<Index>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            (self.0.index, self.0.term) = (entry.index, entry.term);
            outputs.push(entry.index);
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
    fs: SimFs,
    boots: u64,
    running: Option<(Log, HostCore<Count>, HostHandle<Count>)>,
    turns: u64,
}

struct World {
    stores: BTreeMap<NodeId, Store>,
    sent: Arc<Mutex<Sent>>,
    now: u64,
    messages: usize,
    settings: Config,
}

impl World {
    fn new(settings: Config) -> Self {
        let stores = STORES.into_iter().map(|id| {
            let store = Store {
                fs: SimFs::new(id.0),
                boots: 0,
                running: None,
                turns: 0,
            };
            (id, store)
        });
        let mut world = Self {
            stores: stores.collect(),
            sent: Arc::default(),
            now: 0,
            messages: 0,
            settings,
        };
        for id in STORES {
            world.start(id);
        }
        world
    }

    fn start(&mut self, id: NodeId) {
        let store = self.stores.get_mut(&id).unwrap();
        store.boots += 1;
        let mut options = LogOptions::new("/log", StoreId(id.0));
        options.io = IoMode::Inline;
        let (log, _) = Log::open(store.fs.shared(), options).unwrap();
        let groups = (1..=GROUPS).map(|group| {
            let group = GroupId(group);
            bootstrap(&log, group, 1, &Membership::of_voters(STORES)).unwrap();
            let core = Config {
                id,
                group,
                seed: group.0 * 31 + id.0,
                election_ticks: ELECTION_TICKS,
                ..self.settings.clone()
            };
            let config = GroupConfig {
                core: core.validate().unwrap(),
                catch_up_entries: 1_000,
            };
            // What was applied before is applied again: the log is never compacted here.
            Group::open(group, config, log.clone(), Count::default()).unwrap()
        });
        let groups: Vec<_> = groups.collect();
        let outbox = Box::new(Wire(id, Arc::clone(&self.sent)));
        let options = HostOptions::default();
        let (mut core, handle) =
            HostCore::new(log.clone(), groups, options, outbox, Box::new(|| {}));
        let config = LivenessConfig::default();
        core.watch_stores(Liveness::new(StoreId(id.0), store.boots, config));
        store.running = Some((log, core, handle));
    }

    fn stop(&mut self, id: NodeId) {
        let store = self.stores.get_mut(&id).unwrap();
        store.running = None;
        store.fs.crash(CrashKind::Process);
    }

    /// One tick: each store turns when it is due, or something came.
    fn step(&mut self) {
        self.now += 1;
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        self.messages += sent.messages.len();
        for (group, from, to, message) in sent.messages {
            if let Some((_, _, handle)) = &self.stores[&to].running {
                handle.deliver(group, from, message);
            }
        }
        for (from, to, beat) in sent.beats {
            if let Some((_, _, handle)) = &self.stores[&to].running {
                handle.deliver_beat(from, beat);
            }
        }
        for store in self.stores.values_mut() {
            let Some((log, core, _)) = &mut store.running else {
                continue;
            };
            for _ in 0..100 {
                let turn = core.turn(self.now).unwrap();
                store.turns += 1;
                let wrote = log.drive().unwrap();
                // On a full disk something may stay unsynced.
                if !turn.busy && !wrote {
                    break;
                }
            }
        }
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.step();
        }
    }

    fn core(&self, id: NodeId) -> &HostCore<Count> {
        &self.stores[&id].running.as_ref().unwrap().1
    }

    fn asleep(&self) -> usize {
        let running = self.stores.values().filter_map(|s| s.running.as_ref());
        let asleep = |core: &HostCore<Count>| {
            (1..=GROUPS)
                .filter(|group| core.is_asleep(GroupId(*group)))
                .count()
        };
        running.map(|(_, core, _)| asleep(core)).sum()
    }

    fn leads(&self, id: NodeId) -> Vec<GroupId> {
        let groups = (1..=GROUPS).map(GroupId);
        let leads =
            |group: &GroupId| self.core(id).core_status(*group).unwrap().role == Role::Leader;
        groups.filter(leads).collect()
    }
}

fn asleep() -> World {
    let mut world = World::new(Config::default());
    world.run(5 * ELECTION_TICKS);
    assert_eq!(world.asleep(), 3 * GROUPS as usize);
    world
}

#[test]
fn idle_groups_send_nothing_and_are_not_looked_at() {
    let mut world = asleep();
    world.messages = 0;
    world.run(6_000);
    assert_eq!(
        world.messages, 0,
        "a minute without work, and there was a message"
    );
    assert_eq!(world.asleep(), 3 * GROUPS as usize);
    for id in STORES {
        assert_eq!(world.core(id).groups_awake(), 0);
    }
    // What is left is one beat each way in a tenth of a second.
    let deadline = world.stores.get_mut(&STORES[0]).unwrap();
    let (_, core, _) = deadline.running.as_mut().unwrap();
    let turn = core.turn(world.now).unwrap();
    assert!(turn.deadline.is_some_and(|at| at <= world.now + 10));
}

#[test]
fn proposal_in_a_sleeping_group_is_applied_everywhere_and_others_sleep_on() {
    let mut world = asleep();
    let (leader, group) = STORES
        .into_iter()
        .find_map(|id| Some((id, *world.leads(id).first()?)))
        .unwrap();
    let applied = Arc::new(Mutex::new(None));
    let into = Arc::clone(&applied);
    let (_, _, handle) = world.stores[&leader].running.as_ref().unwrap();
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    handle.propose(group, Bytes::from_static(b"x"), reply);
    world.run(20);
    let index = applied.lock().unwrap().take().unwrap().unwrap();
    for id in STORES {
        assert_eq!(world.core(id).core_status(group).unwrap().applied, index);
    }
    assert_eq!(world.asleep(), 3 * (GROUPS as usize - 1));
    world.run(3 * ELECTION_TICKS);
    assert_eq!(world.asleep(), 3 * GROUPS as usize);
}

#[test]
fn groups_whose_leader_s_store_died_elect_another_and_those_without_it_stay_as_they_are() {
    let mut world = asleep();
    let orphans = world.leads(STORES[0]);
    assert!(!orphans.is_empty(), "it leads some");
    let stay = world.leads(STORES[1]).len() + world.leads(STORES[2]).len();
    world.stop(STORES[0]);
    world.run(5 * ELECTION_TICKS);
    assert_eq!(
        world.core(STORES[1]).store_health(world.now, STORES[0]),
        Some(Health::Dead)
    );
    let (two, three) = (world.leads(STORES[1]), world.leads(STORES[2]));
    assert_eq!(two.len() + three.len(), GROUPS as usize);
    assert_eq!(stay + orphans.len(), GROUPS as usize);
    for group in orphans {
        assert!(two.contains(&group) || three.contains(&group));
    }
    assert_eq!(world.asleep(), 0, "nobody relies on a store that is dead");

    // It starts again: its groups follow, and all of them sleep.
    world.start(STORES[0]);
    world.run(5 * ELECTION_TICKS);
    assert_eq!(world.leads(STORES[0]), []);
    assert_eq!(world.asleep(), 3 * GROUPS as usize);
}

#[test]
fn store_that_starts_again_at_once_wakes_its_groups() {
    let mut world = asleep();
    let term = |world: &World, id, group| world.core(id).core_status(group).unwrap().term;
    let led = world.leads(STORES[1]);
    world.stop(STORES[0]);
    world.start(STORES[0]);
    world.run(5 * ELECTION_TICKS);
    assert_eq!(world.asleep(), 3 * GROUPS as usize);
    for group in (1..=GROUPS).map(GroupId) {
        let leaders = STORES
            .into_iter()
            .filter(|id| world.leads(*id).contains(&group));
        assert_eq!(leaders.count(), 1);
        let applied = |id| world.core(id).core_status(group).unwrap().applied;
        assert!(STORES.iter().all(|id| applied(*id) == applied(STORES[0])));
    }
    // Who is led elsewhere keeps its leader.
    for group in led {
        assert!(
            world.leads(STORES[1]).contains(&group),
            "{group} was deposed"
        );
        assert_eq!(
            term(&world, STORES[0], group),
            term(&world, STORES[1], group)
        );
    }
}

/// Proposes at a store until it says that its disk is full.
fn fill(world: &mut World, id: NodeId, group: GroupId) {
    for _ in 0..100 {
        let answer = Arc::new(Mutex::new(None));
        let into = Arc::clone(&answer);
        let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
        let (_, _, handle) = world.stores[&id].running.as_ref().unwrap();
        handle.propose(group, vec![7; 60_000].into(), reply);
        world.run(10);
        let answer = answer.lock().unwrap().take();
        match answer.expect("it was answered") {
            Ok(_) => {}
            Err(HostError::NoSpace) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk does not become full");
}

#[test]
fn leader_whose_disk_is_full_hands_over_while_another_one_has_room() {
    let mut world = asleep();
    let most = STORES.into_iter().max_by_key(|id| world.leads(*id).len());
    let full = most.unwrap();
    let led = world.leads(full);
    world.stores[&full].fs.set_capacity(Some(0));
    fill(&mut world, full, led[0]);
    world.run(5 * ELECTION_TICKS);
    assert_eq!(world.leads(full), [], "{full} leads on a full disk");
    let others = STORES.into_iter().filter(|id| *id != full);
    let elsewhere: usize = others.map(|id| world.leads(id).len()).sum();
    assert_eq!(elsewhere, GROUPS as usize);
}

#[test]
fn leader_whose_state_machines_find_no_space_hands_over_before_its_log_is_full() {
    let mut world = asleep();
    let most = STORES.into_iter().max_by_key(|id| world.leads(*id).len());
    let full = most.unwrap();
    let led = world.leads(full);
    let store = world.stores.get_mut(&full).unwrap();
    let (log, core, handle) = store.running.as_mut().unwrap();
    core.share_disk(Box::new(|| true));
    core.turn(world.now).unwrap();
    assert_eq!(log.space(), Space::Available);
    let refused = Arc::new(Mutex::new(None));
    let into = Arc::clone(&refused);
    let reply = Box::new(move |result: Result<_, HostError>| {
        *into.lock().unwrap() = result.err();
    });
    handle.propose(led[0], Bytes::from_static(b"more"), reply);
    assert_eq!(refused.lock().unwrap().take(), Some(HostError::NoSpace));
    world.run(5 * ELECTION_TICKS);
    assert_eq!(world.leads(full), [], "{full} leads without space");
}

/// Answers of a read at a leader that hears nobody, after so many ticks.
fn read_alone(lease_ticks: u64, ticks: u64) -> Option<Result<(), HostError>> {
    let settings = Config {
        lease_ticks,
        sleep_ticks: 0,
        ..Config::default()
    };
    let mut world = World::new(settings);
    world.run(5 * ELECTION_TICKS);
    let leads = |id: &NodeId| world.leads(*id).contains(&GroupId(1));
    let leader = STORES.into_iter().find(leads).unwrap();
    let store = world.stores.get_mut(&leader).unwrap();
    let (log, core, handle) = store.running.as_mut().unwrap();
    let now = world.now + ticks;
    core.turn(now).unwrap();
    let heard = Arc::new(Mutex::new(None));
    let into = Arc::clone(&heard);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    handle.read_barrier(GroupId(1), reply);
    let turn = core.turn(now).unwrap();
    if lease_ticks > 0 && ticks == 0 {
        assert!(
            heard.lock().unwrap().is_none(),
            "the clock was read before it came"
        );
        assert!(turn.busy, "so it is read at once");
    }
    core.turn(now).unwrap();
    log.drive().unwrap();
    heard.lock().unwrap().take()
}

#[test]
fn read_by_lease_needs_nobody_while_it_lasts() {
    assert_eq!(read_alone(90, 0), Some(Ok(())));
    let late = read_alone(90, 95);
    assert_ne!(late, Some(Ok(())), "the lease is over");
    assert_eq!(read_alone(0, 0), None, "off by default");
}
