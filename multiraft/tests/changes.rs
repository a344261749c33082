//! Membership changes through a host's handle: what its caller hears, and what becomes of the members.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::{HostCore, HostError, HostHandle, HostOptions, Outbox};
use raft_log::vfs::SimFs;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, Space, StoreId};
use raft_node::core::{Change, ChangeError, ChangeStep, Config, Membership, Message, Role};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Applied, ApplyError, Entry, EntryKind, Index, StateMachine, TickContext};

const GROUP: GroupId = GroupId(1);
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);

/// Remembers the contexts of changes.
#[derive(Default)]
struct Contexts {
    applied: Applied,
    seen: Vec<Bytes>,
}

impl StateMachine for Contexts {
    /// The index of the entry, and how many contexts there are.
    type Output = (Index, usize);

    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable_index(&self) -> Index {
        self.applied.index
    }

    fn request_persist(&mut self) {}

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<(Index, usize)>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            (self.applied.index, self.applied.term) = (entry.index, entry.term);
            if entry.kind == EntryKind::Config {
                let context = Membership::context(&entry.payload).unwrap();
                self.seen.extend((!context.is_empty()).then_some(context));
                let membership = membership.unwrap().clone();
                self.applied.membership = Some((entry.index, membership));
            }
            outputs.push((entry.index, self.seen.len()));
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

type Sent = Arc<Mutex<Vec<(NodeId, NodeId, Message)>>>;

struct Wire(NodeId, Sent);

impl Outbox for Wire {
    fn send(&mut self, _: GroupId, to: NodeId, message: Message) {
        self.1.lock().unwrap().push((self.0, to, message));
    }
}

struct Store {
    fs: SimFs,
    log: Log,
    core: HostCore<Contexts>,
    handle: HostHandle<Contexts>,
}

struct World {
    stores: BTreeMap<NodeId, Store>,
    sent: Sent,
    cut: Vec<NodeId>,
    now: u64,
}

type Heard = Arc<Mutex<Vec<Result<(Index, usize), HostError>>>>;

impl World {
    /// Members that begin together, and others that know of them and wait to be added.
    fn new(voters: &[NodeId], waiting: &[NodeId]) -> Self {
        let mut world = Self {
            stores: BTreeMap::new(),
            sent: Sent::default(),
            cut: Vec::new(),
            now: 0,
        };
        for id in voters.iter().chain(waiting) {
            let fs = SimFs::new(id.0);
            let mut options = LogOptions::new("/log", StoreId(id.0));
            options.io = IoMode::Inline;
            let (log, _) = Log::open(fs.shared(), options).unwrap();
            let membership = Membership::of_voters(voters.iter().copied());
            bootstrap(&log, GROUP, 1, &membership).unwrap();
            let core = Config {
                id: *id,
                group: GROUP,
                seed: id.0,
                ..Config::default()
            };
            let config = GroupConfig {
                core: core.validate().unwrap(),
                catch_up_entries: 1_000,
            };
            let group = Group::open(GROUP, config, log.clone(), Contexts::default()).unwrap();
            let outbox = Box::new(Wire(*id, Arc::clone(&world.sent)));
            let options = HostOptions::default();
            let (core, handle) =
                HostCore::new(log.clone(), vec![group], options, outbox, Box::new(|| {}));
            let store = Store {
                fs,
                log,
                core,
                handle,
            };
            world.stores.insert(*id, store);
        }
        world
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now += 1;
            let sent = std::mem::take(&mut *self.sent.lock().unwrap());
            for (from, to, message) in sent {
                if !self.cut.contains(&from) && !self.cut.contains(&to) {
                    self.stores[&to].handle.deliver(GROUP, from, message);
                }
            }
            for store in self.stores.values_mut() {
                for _ in 0..100 {
                    let turn = store.core.turn(self.now).unwrap();
                    let wrote = store.log.drive().unwrap();
                    if !turn.busy && !wrote {
                        break;
                    }
                }
            }
        }
    }

    fn leader(&mut self) -> NodeId {
        for _ in 0..1_000 {
            self.run(1);
            let leads = |store: &Store| {
                let status = store.core.core_status(GROUP).unwrap();
                status.role == Role::Leader && status.committed_in_term
            };
            if let Some((id, _)) = self.stores.iter().find(|(_, store)| leads(store)) {
                return *id;
            }
        }
        panic!("nobody leads");
    }

    fn change(&self, at: NodeId, steps: &[ChangeStep], context: &'static str) -> Heard {
        let heard = Heard::default();
        let into = Arc::clone(&heard);
        let change = Change {
            steps: steps.to_vec(),
            context: Bytes::from_static(context.as_bytes()),
        };
        let reply = Box::new(move |outcome| into.lock().unwrap().push(outcome));
        self.stores[&at].handle.change(GROUP, change, reply);
        heard
    }

    fn matched(&mut self, at: NodeId) -> Vec<(NodeId, Index)> {
        let heard = Arc::new(Mutex::new(None));
        let into = Arc::clone(&heard);
        let reply = Box::new(move |matched| *into.lock().unwrap() = Some(matched));
        self.stores[&at].handle.matched(GROUP, reply);
        self.run(1);
        heard.lock().unwrap().take().unwrap().unwrap()
    }

    fn members(&self, at: NodeId) -> (Vec<NodeId>, Vec<NodeId>) {
        let status = self.stores[&at].handle.status(GROUP).unwrap();
        (status.voters, status.learners)
    }
}

fn take(heard: &Heard) -> Option<Result<(Index, usize), HostError>> {
    let mut heard = heard.lock().unwrap();
    assert!(heard.len() <= 1, "a caller hears once");
    heard.pop()
}

#[test]
fn one_member_grows_to_three_in_one_joint_change() {
    let mut world = World::new(&[ONE], &[TWO, THREE]);
    assert_eq!(world.leader(), ONE);
    let steps = [ChangeStep::AddVoter(TWO), ChangeStep::AddVoter(THREE)];
    let heard = world.change(ONE, &steps, "where they are");
    let second = world.change(ONE, &[ChangeStep::Remove(TWO)], "");
    world.run(20);
    let (entered, contexts) = take(&heard).unwrap().unwrap();
    assert_eq!(contexts, 1, "applied when its caller hears");
    assert_eq!(
        take(&second),
        Some(Err(HostError::Change(ChangeError::InProgress(entered))))
    );
    for id in [ONE, TWO, THREE] {
        assert_eq!(world.members(id), (vec![ONE, TWO, THREE], vec![]));
    }
    // The former sole voter needs the others from now on.
    assert!(!world.stores[&ONE].handle.read_now(GROUP));
}

#[test]
fn learner_is_added_promoted_and_removed() {
    let mut world = World::new(&[ONE], &[TWO]);
    world.leader();
    let promote = [ChangeStep::Promote(TWO)];
    let early = world.change(ONE, &promote, "");
    let added = world.change(ONE, &[ChangeStep::AddLearner(TWO)], "");
    world.run(20);
    let not_member = HostError::Change(ChangeError::NotMember(TWO));
    assert_eq!(take(&early), Some(Err(not_member)));
    assert!(take(&added).unwrap().is_ok());
    assert_eq!(world.members(TWO), (vec![ONE], vec![TWO]));
    assert!(world.stores[&TWO].handle.learns(GROUP));
    assert_eq!(world.matched(ONE).len(), 2);
    assert_eq!(world.matched(TWO), []);
    let promoted = world.change(ONE, &promote, "");
    world.run(20);
    assert!(!world.stores[&TWO].handle.learns(GROUP));
    assert!(take(&promoted).unwrap().is_ok());
    assert_eq!(world.members(TWO), (vec![ONE, TWO], vec![]));
    let removed = world.change(ONE, &[ChangeStep::Remove(TWO)], "");
    world.run(20);
    assert!(take(&removed).unwrap().is_ok());
    assert_eq!(world.members(ONE), (vec![ONE], vec![]));
    assert!(world.stores[&ONE].handle.read_now(GROUP));
}

#[test]
fn leader_removes_itself_and_its_caller_hears_of_it() {
    let all = [ONE, TWO, THREE];
    let mut world = World::new(&all, &[]);
    let leader = world.leader();
    let heard = world.change(leader, &[ChangeStep::Remove(leader)], "");
    world.run(20);
    assert!(take(&heard).unwrap().is_ok());
    let heir = world.leader();
    assert_ne!(heir, leader);
    assert_eq!(world.members(heir).0.len(), 2);
}

#[test]
fn follower_refuses_and_names_the_leader() {
    let mut world = World::new(&[ONE, TWO, THREE], &[]);
    let leader = world.leader();
    world.run(5);
    let follower = [ONE, TWO].into_iter().find(|id| *id != leader).unwrap();
    let heard = world.change(follower, &[ChangeStep::Remove(THREE)], "");
    world.run(1);
    let expected = HostError::NotLeader(Some(leader));
    assert_eq!(take(&heard), Some(Err(expected)));
}

#[test]
fn change_of_a_leader_that_is_cut_off_has_an_unknown_outcome() {
    let mut world = World::new(&[ONE, TWO, THREE], &[]);
    let leader = world.leader();
    world.cut = vec![leader];
    let heard = world.change(leader, &[ChangeStep::Remove(leader)], "");
    world.run(1_000);
    world.cut.clear();
    world.run(1_000);
    assert_eq!(take(&heard), Some(Err(HostError::OutcomeUnknown)));
    let now = world.leader();
    assert_eq!(world.members(now).0, [ONE, TWO, THREE]);
}

#[test]
fn stopped_host_or_a_full_disk_or_an_unknown_group_refuses() {
    let mut world = World::new(&[ONE], &[]);
    world.leader();
    let change = || Change {
        steps: vec![ChangeStep::AddLearner(TWO)],
        context: Bytes::new(),
    };
    let heard = Heard::default();
    let reply = || -> multiraft::Reply<(Index, usize)> {
        let into = Arc::clone(&heard);
        Box::new(move |outcome| into.lock().unwrap().push(outcome))
    };
    let store = &world.stores[&ONE];
    store.handle.change(GroupId(9), change(), reply());
    assert_eq!(take(&heard), Some(Err(HostError::NoGroup)));

    store.fs.set_capacity(Some(0));
    store
        .handle
        .propose(GROUP, Bytes::from(vec![1; 2 << 20]), Box::new(|_| {}));
    world.run(300);
    let store = &world.stores[&ONE];
    assert_eq!(store.log.space(), Space::Full);
    store.handle.change(GROUP, change(), reply());
    assert_eq!(take(&heard), Some(Err(HostError::NoSpace)));

    store.handle.stop();
    store.handle.change(GROUP, change(), reply());
    assert_eq!(take(&heard), Some(Err(HostError::Stopped)));
}
