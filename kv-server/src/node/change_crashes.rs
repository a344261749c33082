//! A change of the members with a crash at every operation of the file system: of the member that begins alone and applies
//! the changes, and of the one that joins, votes and is removed again.
//!
//! Both are nodes as a start makes them, in its order, on simulated disks and the engine in memory; only the network and the
//! clock are the test's. After each crash the member starts again. It is never refused, finds the members as they were
//! before or after a change, and the changes go on to their end.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use multiraft::transport::{Directory, StoreGate};
use multiraft::{HostCore, HostError, HostHandle, HostOptions, Outbox};
use raft_log::log::renewal;
use raft_log::vfs::sim::CrashKind;
use raft_log::vfs::{SharedVfs, SimFs};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId};
use raft_node::core::{ChangeStep, Config, Membership, Message};
use raft_node::driver::{Group, GroupConfig, bootstrap};

use super::directory::{MemberDirectory, MemberGate};
use super::initial::{InitialCluster, InitialState};
use super::keeper::change;
use super::roster::Roster;
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::lease::Lessor;
use crate::mvcc::{KvOptions, Sinks};
use crate::pb::command::{MemberChange, PublishMember};
use crate::watch::WatchHub;

const NEW: NodeId = NodeId(9);
const URLS: [&str; 2] = ["http://a:1", "http://b:1"];
const BOTH: &str = "a=http://a:1,b=http://b:1";
/// Turns of both members after which a scenario must have ended.
const TURNS_MAX: u64 = 4_000;

pub(super) fn dir() -> &'static Path {
    Path::new("/data")
}

pub(super) fn config(side: usize) -> NodeConfig {
    let name = ["a", "b"][side].to_owned();
    let peer_urls = vec![URLS[side].to_owned()];
    let (initial, initial_state) = match side {
        0 => (InitialCluster::of_one(&name, &peer_urls), InitialState::New),
        _ => (InitialCluster::parse(BOTH).unwrap(), InitialState::Existing),
    };
    NodeConfig {
        data_dir: dir().to_owned(),
        name,
        initial,
        initial_state,
        initial_token: "crashes".to_owned(),
        peer_urls,
        heartbeat_ms: 20,
        election_ms: 100,
        snapshot_entries: 2,
        change_rules: ChangeRules::default(),
        accept_suspect_tail: false,
        upkeep: UpkeepConfig::default(),
        peer_tls: None,
    }
}

/// What a host sends, until the test delivers it.
#[derive(Clone, Default)]
pub(super) struct Sent(Arc<Mutex<Vec<Message>>>);

impl Outbox for Sent {
    fn send(&mut self, _: GroupId, _: NodeId, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

/// A member that runs.
struct Running {
    identity: Identity,
    peers: Arc<PeerBook>,
    log: Log,
    store: Arc<Store>,
    core: HostCore<KvStateMachine>,
    handle: HostHandle<KvStateMachine>,
    sent: Sent,
}

impl Running {
    /// What [`Node::start`] does, in its order. `view` is what a new member is told.
    fn start(
        side: usize,
        vfs: &SharedVfs,
        engine: &MemoryEngine,
        view: Option<multiraft::transport::ClusterView>,
    ) -> Result<Self, NodeError> {
        let config = config(side);
        vfs.create_dir_all(dir())
            .map_err(|error| NodeError::io("cannot create", dir(), error))?;
        let is_new = Identity::read(vfs.as_ref(), dir())?.is_none();
        let (mut identity, peers) = match view {
            Some(view) if is_new => {
                assert!(!has_files(vfs, &dir().join("log"))?);
                let joining = join::judge(&config.initial, &config.peer_urls, view);
                join_as(vfs, &config, &joining.unwrap())?
            }
            _ => identify(vfs, &config)?,
        };
        if identity.boot > 0 && !renewal::exists(vfs.as_ref(), &dir().join("log"))? {
            let dir = dir().to_owned();
            return Err(NodeError::LogLost { dir });
        }
        let mut options = LogOptions::new(dir().join("log"), identity.store);
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        let (log, _) = Log::open(SharedVfs::clone(vfs), options)?;
        let sinks = Sinks {
            events: Arc::new(WatchHub::new()),
            leases: Arc::new(Lessor::new()),
        };
        let options = KvOptions {
            group: DATA_GROUP,
            ..KvOptions::default()
        };
        let (machine, store) = KvStateMachine::open(Arc::new(engine.clone()), options, sinks)?;
        if identity.boot > 0 && log.group(DATA_GROUP).is_none() {
            let dir = dir().to_owned();
            return Err(NodeError::LogLost { dir });
        }
        let creation = peers.creation().unwrap_or(identity.cluster);
        bootstrap(&log, DATA_GROUP, creation, &peers.first())?;
        let core = Config {
            id: identity.member,
            group: DATA_GROUP,
            seed: side as u64,
            boot: identity.boot + 1,
            heartbeat_ticks: 2,
            election_ticks: 10,
            ..Config::default()
        };
        let group_config = GroupConfig {
            core: core.validate()?,
            catch_up_entries: CATCH_UP_ENTRIES,
        };
        let group = Group::open(DATA_GROUP, group_config, log.clone(), machine)?;
        check_members(&Roster::of(&store, &peers), &peers, identity.member, dir())?;
        identity.boot += 1;
        identity.write(vfs.as_ref(), dir())?;
        let host = HostOptions {
            snapshot_entries: config.snapshot_entries,
            ..HostOptions::default()
        };
        let sent = Sent::default();
        let (outbox, wake) = (Box::new(sent.clone()), Box::new(|| {}));
        let (core, handle) = HostCore::new(log.clone(), vec![group], host, outbox, wake);
        Ok(Self {
            identity,
            peers: Arc::new(peers),
            log,
            store,
            core,
            handle,
            sent,
        })
    }

    /// One turn of the host, of the log, and of the thread that follows the members.
    fn turn(&mut self, now: u64) -> Result<(), String> {
        self.core.turn(now).map_err(|error| error.to_string())?;
        self.log.drive().map_err(|error| error.to_string())?;
        let roster = self.roster();
        if !self.peers.is_ahead_of(roster.table.index) {
            let kept = self.peers.keep(&roster);
            kept.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn roster(&self) -> Roster {
        Roster::of(&self.store, &self.peers)
    }

    fn view(&self) -> multiraft::transport::ClusterView {
        let directory = MemberDirectory {
            cluster: self.identity.cluster,
            creation: self.log.group(DATA_GROUP).unwrap().base.creation,
            store: Arc::clone(&self.store),
            peers: Arc::clone(&self.peers),
        };
        directory.view()
    }

    fn admit(&self, other: &Identity) -> Result<(), String> {
        let gate = MemberGate {
            store: Arc::clone(&self.store),
            peers: Arc::clone(&self.peers),
        };
        gate.admit(other.member, other.store, Some(0))
    }

    fn votes(&self, id: NodeId) -> bool {
        self.roster().get(id).is_some_and(|member| member.votes)
    }

    /// As a restart finds it: before a change or after it, and never in between.
    fn check(&self, side: usize, first: NodeId) -> bool {
        let roster = self.roster();
        let ids: BTreeSet<_> = roster.members.iter().map(|member| member.id).collect();
        let (alone, both) = (BTreeSet::from([first]), BTreeSet::from([first, NEW]));
        assert!(ids == alone || ids == both, "{roster:?}");
        let book: BTreeSet<_> = self.peers.ids().into_iter().collect();
        assert!(book == alone || book == both, "{book:?}");
        if let Some(new) = roster.get(NEW) {
            assert_eq!(new.peer_urls, [URLS[1]], "it is known where it is");
            let is_one = new.votes != new.joins_as_voter;
            // Of a state from before the change the new member knows only what it was told.
            let is_told = side == 1 && roster.table.membership.is_none();
            assert!(is_one || is_told, "{roster:?}");
            assert!(!roster.table.removed.contains_key(&NEW));
        }
        if book.contains(&NEW) {
            assert_eq!(self.peers.get(NEW).unwrap().peer_urls, [URLS[1]]);
        }
        if side == 1 {
            assert_eq!(self.identity.member, NEW);
            assert_eq!(self.peers.first(), Membership::of_voters([first]));
            assert_eq!(self.peers.creation(), Some(self.identity.cluster));
        }
        book == both
    }
}

type Answer = Arc<Mutex<Option<Result<(), HostError>>>>;

/// A crash, and maybe another one in the middle of the start that follows.
#[derive(Clone, Copy)]
struct Plan {
    side: usize,
    kind: CrashKind,
    operation: u64,
    seed: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            side,
            kind,
            operation,
            seed,
        } = self;
        write!(
            f,
            "member {side}, {kind:?}, operation {operation}, seed {seed}"
        )
    }
}

struct World {
    plan: Plan,
    disks: [SimFs; 2],
    engines: [MemoryEngine; 2],
    members: [Option<Running>; 2],
    linked: bool,
    /// Which member was asked for the change that is under way.
    asked: Option<(usize, Answer)>,
    /// The new member is being removed: it may know that, and then it does not start.
    removing: bool,
    gone: bool,
    now: u64,
    crashes: u64,
    /// How often a restart found the new member in its book, and not.
    found: [u64; 2],
    first: NodeId,
}

impl World {
    fn new(plan: Plan) -> Self {
        let disks = [SimFs::new(plan.seed), SimFs::new(plan.seed + 100)];
        disks[plan.side].fail_after(plan.operation);
        let first = config(0);
        let first = first
            .initial
            .first(&first.name, &first.peer_urls, &first.initial_token);
        Self {
            plan,
            disks,
            engines: [(); 2].map(|()| MemoryEngine::new()),
            members: [None, None],
            linked: false,
            asked: None,
            removing: false,
            gone: false,
            now: 0,
            crashes: 0,
            found: [0, 0],
            first: first.unwrap().me,
        }
    }

    fn crash(&mut self, side: usize) {
        assert!(self.disks[side].is_down(), "{}", self.plan);
        self.crashes += 1;
        self.members[side] = None;
        self.linked = false;
        if self.asked.as_ref().is_some_and(|(asked, _)| *asked == side) {
            self.asked = None;
        }
        self.disks[side].crash(self.plan.kind);
        let engine = &self.engines[side];
        let keep = (self.plan.seed + self.crashes) as usize % (engine.unpersisted() + 1);
        self.engines[side] = engine.crash(keep);
        if self.crashes == 1 {
            // In the middle of the start, mostly.
            let Plan {
                operation, seed, ..
            } = self.plan;
            self.disks[side].fail_after((operation * 7 + seed) % 60);
        }
    }

    fn start(&mut self, side: usize) {
        let vfs = self.disks[side].shared();
        let view = match side {
            0 => None,
            _ => {
                let Some(first) = &self.members[0] else {
                    return;
                };
                let view = first.view();
                if view.members.is_empty() {
                    // It is catching up itself.
                    return;
                }
                Some(view)
            }
        };
        match Running::start(side, &vfs, &self.engines[side], view) {
            Ok(running) => {
                let has_both = running.check(side, self.first);
                if self.crashes > 0 {
                    self.found[usize::from(has_both)] += 1;
                }
                self.members[side] = Some(running);
            }
            Err(_) if self.disks[side].is_down() => self.crash(side),
            Err(NodeError::Removed { .. }) if self.removing && side == 1 => self.gone = true,
            Err(error) => panic!("{}: a start is refused: {error}", self.plan),
        }
    }

    /// The new one starts when it was added.
    fn start_all(&mut self) {
        if self.members[0].is_none() {
            self.start(0);
        }
        let is_added = |first: &Running| first.roster().get(NEW).is_some();
        let is_added = self.members[0].as_ref().is_some_and(is_added);
        if self.members[1].is_none() && is_added && !self.gone {
            self.start(1);
        }
    }

    fn link(&mut self) {
        let [Some(first), Some(new)] = &self.members else {
            return;
        };
        if self.linked || first.roster().get(NEW).is_none() {
            return;
        }
        let admitted = [first.admit(&new.identity), new.admit(&first.identity)];
        for (side, admitted) in admitted.into_iter().enumerate() {
            match admitted {
                Ok(()) => {}
                Err(_) if self.disks[side].is_down() => return self.crash(side),
                Err(error) => panic!("{}: a member is refused: {error}", self.plan),
            }
        }
        self.linked = true;
    }

    fn turn(&mut self) {
        self.now += 1;
        self.start_all();
        for side in 0..2 {
            let Some(member) = &mut self.members[side] else {
                continue;
            };
            match member.turn(self.now) {
                Ok(()) => {}
                Err(_) if self.disks[side].is_down() => self.crash(side),
                Err(error) => panic!("{}: {error}", self.plan),
            }
        }
        self.link();
        for (side, from) in [self.first, NEW].into_iter().enumerate() {
            let Some(member) = &self.members[side] else {
                continue;
            };
            let sent = std::mem::take(&mut *member.sent.0.lock().unwrap());
            if let Some(other) = self.members[1 - side].as_ref().filter(|_| self.linked) {
                for message in sent {
                    other.handle.deliver(DATA_GROUP, from, message);
                }
            }
        }
    }

    /// Asks whoever leads for a change, if nothing is asked.
    fn ask(&mut self, step: ChangeStep, context: &MemberChange) {
        let answered = |answer: &Answer| answer.lock().unwrap().is_some();
        if self
            .asked
            .as_ref()
            .is_some_and(|(_, answer)| answered(answer))
        {
            self.asked = None;
        }
        let leads = |member: &Running| {
            let status = member.handle.status(DATA_GROUP).unwrap();
            status.leader == Some(status.node)
        };
        let mut members = self.members.iter().enumerate();
        let leader = members.find_map(|(side, member)| {
            let member = member.as_ref().filter(|member| leads(member))?;
            Some((side, member))
        });
        let Some((side, leader)) = leader.filter(|_| self.asked.is_none()) else {
            return;
        };
        let answer = Answer::default();
        let into = Arc::clone(&answer);
        let reply = Box::new(move |done: Result<_, HostError>| {
            *into.lock().unwrap() = Some(done.map(drop));
        });
        leader
            .handle
            .change(DATA_GROUP, change(step, context), reply);
        self.asked = Some((side, answer));
    }

    /// Asks for a change, again and again, until it is so.
    fn until(
        &mut self,
        step: Option<(ChangeStep, MemberChange)>,
        is_so: impl Fn(&[Option<Running>; 2]) -> bool,
    ) {
        while !is_so(&self.members) {
            assert!(self.now < TURNS_MAX, "{}: it does not end", self.plan);
            if let Some((step, context)) = &step {
                self.ask(*step, context);
            }
            self.turn();
        }
    }

    /// Adds the member, lets it vote, and removes it.
    fn run(&mut self) {
        let row = PublishMember {
            id: NEW.0,
            peer_urls: vec![URLS[1].to_owned()],
            joins_as_voter: true,
            ..PublishMember::default()
        };
        let added = MemberChange {
            request: 1,
            added: vec![row],
            ..MemberChange::default()
        };
        let first_has = |members: &[Option<Running>; 2], wanted: &dyn Fn(&Roster) -> bool| {
            let first = members[0].as_ref();
            first.is_some_and(|first| wanted(&first.roster()))
        };
        self.until(Some((ChangeStep::AddLearner(NEW), added)), |members| {
            first_has(members, &|roster| roster.get(NEW).is_some())
        });
        let promoted = MemberChange {
            request: 2,
            promoted: vec![NEW.0],
            ..MemberChange::default()
        };
        // Each of them has applied it.
        self.until(Some((ChangeStep::Promote(NEW), promoted)), |members| {
            members.iter().all(|member| {
                let votes =
                    |member: &Running| member.votes(NEW) && member.votes(self_first(member));
                member.as_ref().is_some_and(votes)
            })
        });
        for member in self.members.iter().flatten() {
            let book: BTreeSet<_> = member.peers.ids().into_iter().collect();
            assert_eq!(book, BTreeSet::from([self.first, NEW]), "{}", self.plan);
        }
        self.removing = true;
        let removed = MemberChange {
            request: 3,
            removed: vec![NEW.0],
            ..MemberChange::default()
        };
        self.until(Some((ChangeStep::Remove(NEW), removed)), |members| {
            first_has(members, &|roster| roster.table.removed.contains_key(&NEW))
        });
        self.until(None, |members| {
            let first = members[0].as_ref();
            first.is_some_and(|first| first.peers.ids().len() == 1)
        });
    }
}

/// The voter that was there first, as a member knows it.
fn self_first(member: &Running) -> NodeId {
    let others = member.roster().members;
    let first = others.iter().find(|one| one.id != NEW);
    first.map_or(NEW, |one| one.id)
}

/// How many restarts found the new member, and how many did not.
fn enumerate(side: usize, kind: CrashKind) -> [u64; 2] {
    let mut found = [0, 0];
    for operation in 0.. {
        let mut finished = false;
        for seed in 0..2 {
            let mut world = World::new(Plan {
                side,
                kind,
                operation,
                seed,
            });
            world.run();
            finished = world.crashes == 0;
            for (sum, count) in found.iter_mut().zip(world.found) {
                *sum += count;
            }
        }
        if finished {
            eprintln!("member {side}, {kind:?}: {operation} operations, {found:?}");
            assert!(operation > 60, "only {operation} operations were cut short");
            break;
        }
    }
    found
}

#[test]
fn crash_of_the_member_that_applies_a_change_leaves_it_before_or_after() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        let found = enumerate(0, kind);
        assert!(found.iter().all(|count| *count > 20), "{found:?}");
    }
}

#[test]
fn crash_of_the_member_that_joins_leaves_none_or_one_that_goes_on() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        let [_, both] = enumerate(1, kind);
        assert!(both > 20, "{both}");
    }
}
