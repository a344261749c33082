//! The beginning of a keyspace beside the default one, with a crash at every operation of the file system: from the first
//! start of a member that is alone, over the registration, to what is written in the new keyspace.
//!
//! The member is a node as a start makes it, in its order, on a simulated disk and the engine in memory. After each crash it
//! starts again, and is never refused. It finds the group whole or begins it again, and all that was acknowledged.

use std::collections::BTreeMap;
use std::sync::Mutex;

use multiraft::{HostCore, InlineTasks};
use prost::Message;
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::CrashKind;
use raft_node::core::Membership;

use super::change_crashes::{Sent, config, dir};
use super::keyspaces::cluster_of;
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::pb::command::{Command, RegisterKeyspace, command::Op};
use crate::pb::etcdserverpb::{PutRequest, RangeRequest};

const NAME: &str = "one";
const GROUP: GroupId = GroupId(2);
/// Values that are written in the keyspace, one after the other.
const PUTS: u64 = 3;
const TURNS_MAX: u64 = 4_000;

/// What a start found of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    /// In `PEERS` alone.
    Noted,
    /// In the log too.
    Begun,
}

/// A member that runs.
struct Running {
    identity: Identity,
    peers: PeerBook,
    ground: Ground,
    /// Of each group that is opened.
    stores: BTreeMap<GroupId, Arc<Store>>,
    core: HostCore<KvStateMachine>,
    handle: HostHandle<KvStateMachine>,
    found: Found,
}

impl Running {
    /// What [`Node::start`] does, in its order.
    fn start(vfs: &SharedVfs, engine: &MemoryEngine) -> Result<Self, NodeError> {
        let config = config(0);
        vfs.create_dir_all(dir())
            .map_err(|error| NodeError::io("cannot create", dir(), error))?;
        let (mut identity, peers) = identify(vfs, &config)?;
        if identity.boot > 0 && !renewal::exists(vfs.as_ref(), &dir().join("log"))? {
            let dir = dir().to_owned();
            return Err(NodeError::LogLost { dir });
        }
        let mut options = LogOptions::new(dir().join("log"), identity.store);
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        let (log, _) = Log::open(SharedVfs::clone(vfs), options)?;
        let snapshots = open_snapshots(vfs, &config, &log, identity.store)?;
        let engine: Arc<dyn Engine> = Arc::new(engine.clone());
        let boot = identity.boot + 1;
        let ground = Ground {
            config: config.clone(),
            member: identity.member,
            boot,
            engine: Arc::clone(&engine),
            directory: SharedDirectory::new(engine),
            log: log.clone(),
            snapshots,
            tasks: Arc::new(InlineTasks),
            outcomes: Arc::new(Outcomes::new(identity.member, boot)),
            ranges: Arc::default(),
        };
        let beginning = Beginning {
            creation: identity.cluster,
            first: peers.first(),
        };
        let found = found(&log, &peers, identity.cluster);
        let default = ground.open(DATA_GROUP, Some(beginning))?;
        let store = Arc::clone(&default.keyspace.store);
        let mut stores = BTreeMap::from([(DATA_GROUP, Arc::clone(&store))]);
        let mut groups = vec![default.group];
        for (group, beginning) in other_groups(&log, &store) {
            let opened = ground.open_noted(&peers, group, beginning)?;
            stores.insert(group, opened.keyspace.store);
            groups.push(opened.group);
        }
        identity.boot = boot;
        identity.write(vfs.as_ref(), dir())?;
        let options = HostOptions {
            snapshot_entries: config.snapshot_entries,
            ..HostOptions::default()
        };
        let (outbox, wake) = (Box::new(Sent::default()), Box::new(|| {}));
        let (core, handle) = HostCore::new(log, groups, options, outbox, wake);
        Ok(Self {
            identity,
            peers,
            ground,
            stores,
            core,
            handle,
            found,
        })
    }

    /// One turn of the host, of the log, and of the thread that keeps keyspaces.
    fn turn(&mut self, now: u64) -> Result<(), String> {
        self.core.turn(now).map_err(|error| error.to_string())?;
        let log = &self.ground.log;
        log.drive().map_err(|error| error.to_string())?;
        for known in self.stores[&DATA_GROUP].keyspaces().values() {
            let group = known.group();
            if self.stores.contains_key(&group) {
                continue;
            }
            let beginning = Some(Beginning::of(known));
            let opened = self.ground.open_noted(&self.peers, group, beginning);
            let opened = opened.map_err(|error| error.to_string())?;
            self.stores.insert(group, opened.keyspace.store);
            self.handle.join(opened.group, Box::new(drop));
        }
        Ok(())
    }
}

/// The group begins as every member begins it, and is noted before it does.
fn found(log: &Log, peers: &PeerBook, cluster: u64) -> Found {
    let whole = Beginning {
        creation: cluster_of(cluster, NAME),
        first: peers.first(),
    };
    let noted = peers.beginning(GROUP);
    if let Some(noted) = &noted {
        assert_eq!(*noted, whole);
    }
    let Some(info) = log.group(GROUP) else {
        return noted.map_or(Found::Nothing, |_| Found::Noted);
    };
    assert!(noted.is_some(), "the log has what is not noted");
    assert_eq!(info.base.creation, whole.creation);
    let first = Membership::decode(&info.base.membership).unwrap();
    assert_eq!(first, whole.first);
    Found::Begun
}

struct World {
    what: String,
    kind: CrashKind,
    disk: SimFs,
    engine: MemoryEngine,
    seed: u64,
    member: Option<Running>,
    /// What the member that runs was asked for, until it answers; then whether it was done.
    asked: Option<Arc<Mutex<Option<bool>>>>,
    now: u64,
    crashes: u64,
    found: BTreeMap<Found, u64>,
}

impl World {
    fn new(kind: CrashKind, operation: u64, seed: u64) -> Self {
        let disk = SimFs::new(seed);
        disk.fail_after(operation);
        Self {
            what: format!("{kind:?}, operation {operation}, seed {seed}"),
            kind,
            disk,
            engine: MemoryEngine::new(),
            seed,
            member: None,
            asked: None,
            now: 0,
            crashes: 0,
            found: BTreeMap::new(),
        }
    }

    fn cut(&mut self) {
        self.crashes += 1;
        (self.member, self.asked) = (None, None);
        self.disk.crash(self.kind);
        let keep = (self.seed + self.crashes) as usize % (self.engine.unpersisted() + 1);
        self.engine = self.engine.crash(keep);
        if self.crashes == 1 && self.seed == 1 {
            // In the middle of the start, mostly.
            self.disk.fail_after(self.now % 60);
        }
    }

    fn turn(&mut self) {
        self.now += 1;
        assert!(self.now < TURNS_MAX, "{}: it does not end", self.what);
        let done = match &mut self.member {
            Some(member) => member.turn(self.now),
            None => match Running::start(&self.disk.shared(), &self.engine) {
                Ok(running) => {
                    if self.crashes > 0 {
                        *self.found.entry(running.found).or_default() += 1;
                    }
                    self.member = Some(running);
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            },
        };
        match done {
            Ok(()) => {}
            Err(_) if self.disk.is_down() => self.cut(),
            Err(error) => panic!("{}: {error}", self.what),
        }
    }

    /// Asks for something, again and again, until it is done.
    fn until_done(&mut self, group: GroupId, op: impl Fn(&Running) -> Op) {
        loop {
            let answered = self.asked.as_ref().map(|asked| *asked.lock().unwrap());
            match (answered, &self.member) {
                (Some(Some(true)), _) => break self.asked = None,
                (None | Some(Some(false)), Some(member)) if member.handle.has(group) => {
                    let answer = Arc::<Mutex<Option<bool>>>::default();
                    self.asked = Some(Arc::clone(&answer));
                    let payload = Command {
                        op: Some(op(member)),
                    }
                    .encode_to_vec();
                    let reply = Box::new(move |output: Result<mvcc::CommandOutput, HostError>| {
                        *answer.lock().unwrap() = Some(output.is_ok_and(|output| output.is_ok()));
                    });
                    member.handle.propose(group, payload.into(), reply);
                }
                _ => {}
            }
            self.turn();
        }
    }

    /// Registers the keyspace, and writes in it and beside it; true when nothing was cut short until all was done.
    fn run(&mut self) -> bool {
        self.until_done(DATA_GROUP, |member| {
            Op::RegisterKeyspace(RegisterKeyspace {
                name: NAME.to_owned(),
                creation: cluster_of(member.identity.cluster, NAME),
                first_voters: vec![member.identity.member.0],
            })
        });
        for value in 1..=PUTS {
            for group in [GROUP, DATA_GROUP] {
                self.until_done(group, |_| {
                    Op::Put(PutRequest {
                        key: "key".into(),
                        value: value.to_string().into(),
                        ..PutRequest::default()
                    })
                });
            }
        }
        let is_whole = self.crashes == 0;
        // All of it is on the disk.
        self.cut();
        while !self.has_all() {
            self.turn();
        }
        is_whole
    }

    fn has_all(&self) -> bool {
        let read = |store: &Arc<Store>| {
            let request = RangeRequest {
                key: "key".into(),
                ..RangeRequest::default()
            };
            let found = store.range(&request).unwrap().kvs;
            found.first().is_some_and(|kv| kv.value == PUTS.to_string())
        };
        self.member
            .as_ref()
            .is_some_and(|member| member.stores.len() == 2 && member.stores.values().all(read))
    }
}

#[test]
fn crash_while_a_keyspace_begins_leaves_none_or_one_that_is_whole() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        let mut found = BTreeMap::<Found, u64>::new();
        for operation in 0.. {
            let mut finished = false;
            for seed in 0..2 {
                let mut world = World::new(kind, operation, seed);
                finished = world.run();
                for (what, count) in world.found {
                    *found.entry(what).or_default() += count;
                }
            }
            if finished {
                eprintln!("{kind:?}: {operation} operations, {found:?}");
                assert!(operation > 60, "only {operation} operations were cut short");
                break;
            }
        }
        for what in [Found::Nothing, Found::Noted, Found::Begun] {
            assert!(
                found.get(&what).is_some_and(|count| *count > 2),
                "{found:?}"
            );
        }
    }
}
