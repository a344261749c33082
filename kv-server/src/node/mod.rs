//! One node: a data directory, brought up in the order that a crash at any point allows.
//!
//! 1. The directory is locked, its identity and what it knows of other members read, or drawn and written when the
//!    directory is new.
//! 2. The log is opened: it is the truth. A member of a cluster whose log is damaged begins it anew, to be repaired from its
//!    peers.
//! 3. Snapshots are compared with the log.
//! 4. The engine is opened: it holds some earlier batch. One that cannot be opened is moved aside and rebuilt when the
//!    log still has everything, or begins with a snapshot.
//! 5. Group 1 is created in the log when it is not there, as are those of other keyspaces that are registered; then log and
//!    state machines are joined, and the host replays what the engine lacks.
//!
//! The links to other members come last: [`Node::connect`]. It opens no socket itself; the binary does.

mod calls;
#[cfg(test)]
mod change_crashes;
mod checks;
mod directory;
mod engine;
mod error;
mod identity;
mod initial;
mod initial_check;
mod join;
mod keeper;
mod keyspace;
#[cfg(test)]
mod keyspace_crashes;
mod keyspaces;
mod pacer;
mod peers;
mod publish;
mod quota;
mod recover;
mod repair;
mod restore;
mod rests;
mod roster;
mod rules;
mod text;
mod upkeep;
mod view;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use multiraft::forward::{ForwardLimits, Forwarding, Outcomes};
use multiraft::liveness::{Liveness, LivenessConfig};
use multiraft::tls::{ClientTls, Listener};
use multiraft::transport::{
    Inbound, Links, Me, Members, QueueLimits, SNAPSHOT_BYTES_PER_SECOND, SnapshotInbox, Transport,
    TransportSetup, TransportWatcher,
};
use multiraft::{
    GroupStatus, Host, HostError, HostHandle, HostOptions, Pace, SnapshotSetup, TaskThread, Tasks,
};
use raft_log::log::renewal;
use raft_log::snapshot::{SnapshotOptions, SnapshotStore};
use raft_log::vfs::{RealFs, SharedVfs, VfsLock};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, StoreId};
use raft_node::core::{Config, ValidConfig};
use rand::TryRng;
use rand::rngs::SysRng;
use tracing::{info, warn};

use crate::engine::Engine;
use crate::engine::lsm::FlushObserver;
use crate::lease::Lessor;
use crate::mvcc::{self, KvStateMachine, Store, Survey};
use crate::pb::command::PublishMember;
use calls::NodeCalls;
use directory::{MemberDirectory, MemberGate};
use initial::InitialMember;
use join::Joining;
use keeper::{Event, Keeper};
use keyspace::{Beginning, Care, Ground, Opened};
use keyspaces::{Hosted, Shepherd};
use pacer::Pacer;
use quota::SharedDirectory;
use roster::Roster;

pub use engine::survey;
pub use error::NodeError;
pub use identity::{FORMAT_VERSION, Identity, IdentityError};
pub use initial::{InitialCluster, InitialState};
pub use keyspace::Keyspace;
pub use keyspaces::{Front, Serve, WantedKeyspace};
pub use peers::{PeerBook, known_members};
pub use recover::{RecoveredGroup, Recovery, pending as pending_recovery, recover};
pub use restore::{OpenBackup, RestoreOptions, restore_backup};
pub use rules::ChangeRules;
pub use upkeep::UpkeepConfig;
pub use view::{GroupReplica, NodeView};

/// Entries that stay in the log below the applied index, so that a member that lags needs no snapshot.
const CATCH_UP_ENTRIES: u64 = 5_000;

/// Bytes proposed and not committed. With what an inbox holds it stays below what the engine takes in memory after its
/// disk became full, so that what was accepted can always be applied.
const UNCOMMITTED_BYTES_MAX: usize = 32 << 20;
/// Bytes of a snapshot that are made in a second, at most.
const SNAPSHOT_MADE_BYTES_PER_SECOND: u64 = 64 << 20;
/// Bytes of a snapshot that are written until they are synced. A sync of the log waits behind twice as many.
const SNAPSHOT_SYNC_BYTES: u64 = 2 << 20;
/// How long a start waits for a leader, and a stop for another one, in polls: five seconds.
const LEADER_POLLS_MAX: u32 = 5_000;
const LEADER_POLL: Duration = Duration::from_millis(1);

/// The group that holds the default keyspace.
pub const DATA_GROUP: GroupId = GroupId(1);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The data directory; created when missing.
    pub data_dir: PathBuf,
    /// The member's name.
    pub name: String,
    /// The first configuration; counts when the directory is new, as the next three do.
    pub initial: InitialCluster,
    /// Whether that configuration is new.
    pub initial_state: InitialState,
    /// Tells clusters apart that have the same URLs.
    pub initial_token: String,
    /// The peer URLs of this member.
    pub peer_urls: Vec<String>,
    /// Milliseconds between heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Milliseconds without a leader until a member campaigns.
    pub election_ms: u64,
    /// Applied entries between two requests to make the engine durable.
    pub snapshot_entries: u64,
    /// How changes of the members are checked.
    pub change_rules: ChangeRules,
    /// Accept that the very last batch of the log may be damaged, after its report was read.
    pub accept_suspect_tail: bool,
    /// What the member does on its own.
    pub upkeep: UpkeepConfig,
    /// Protects calls to members whose URLs begin with `https`.
    pub peer_tls: Option<ClientTls>,
}

/// Who sees how long the disk takes.
#[derive(Clone)]
pub struct Observers {
    /// Each sync of the log.
    pub sync: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Each flush of the engine.
    pub flush: Arc<dyn Fn(Duration) + Send + Sync>,
}

/// A node that runs. Front ends use the parts; [`Node::stop`] ends it.
pub struct Node {
    /// Who this is.
    pub identity: Identity,
    /// Proposals and reads.
    pub handle: HostHandle<KvStateMachine>,
    /// The default keyspace.
    pub keyspace: Keyspace,
    /// The engine, for its size and its space.
    pub engine: Arc<dyn Engine>,
    /// The log, for its statistics.
    pub log: Log,
    /// The snapshots that members get and give.
    pub snapshots: SnapshotStore,
    /// What is known of the other members.
    pub peers: Arc<PeerBook>,
    config: NodeConfig,
    host: Host<KvStateMachine>,
    links: Links,
    transport: Option<Transport>,
    /// The way to the thread that follows the members, until that runs.
    events: (mpsc::Sender<Event>, Option<mpsc::Receiver<Event>>),
    keeper: Option<Keeper>,
    publisher: Option<publish::Publisher>,
    ground: Arc<Ground>,
    care: Care,
    calls: Arc<NodeCalls>,
    hosted: Hosted,
    /// The way to the thread that keeps the other keyspaces, until that runs.
    others: (
        mpsc::Sender<keyspaces::Event>,
        Option<mpsc::Receiver<keyspaces::Event>>,
    ),
    shepherd: Option<Shepherd>,
    pacer: Arc<Pacer>,
    _lock: Box<dyn VfsLock>,
}

impl Node {
    /// Brings a data directory up. `on_failure` is called once when the node cannot go on; `observers` see how
    /// long its disk takes.
    pub fn start(
        config: &NodeConfig,
        on_failure: Box<dyn FnOnce(&str) + Send>,
        observers: Observers,
    ) -> Result<Self, NodeError> {
        let vfs: SharedVfs = Arc::new(RealFs::with_observer(observers.sync));
        let dir = &config.data_dir;
        vfs.create_dir_all(dir)
            .map_err(|error| NodeError::io("cannot create", dir, error))?;
        let lock_path = dir.join("LOCK");
        let lock = vfs
            .lock(&lock_path)
            .map_err(|error| NodeError::lock(dir, error))?;
        if let Some(finished) = recover::finish(&vfs, dir)? {
            warn!(
                from = format!("{:x}", finished.from),
                to = format!("{:x}", finished.to),
                "finished a recovery that was cut short: this member is the only one of a new cluster"
            );
        }
        let (mut identity, peers) = identify(&vfs, config)?;
        let peers = Arc::new(peers);
        if config.accept_suspect_tail && peers.ids().len() > 1 {
            return Err(NodeError::Initial(
                "--accept-suspect-tail is for a member alone: what this one has acknowledged counts for the others, and \
                 must not be dropped; leave it out of the cluster until it can be removed and added again"
                    .to_owned(),
            ));
        }
        // Looked at before the log is opened: a new one in the place of the old would pass for it from then on.
        if identity.boot > 0 && !renewal::exists(vfs.as_ref(), &dir.join("log"))? {
            return Err(NodeError::LogLost { dir: dir.clone() });
        }
        let log = repair::open_log(&vfs, config, &identity, &peers)?;
        let snapshots = open_snapshots(&vfs, config, &log, identity.store)?;
        let observe_flush = FlushObserver(Some(observers.flush));
        let engine = engine::open(config, &log, &snapshots, observe_flush)?;
        let survey = Survey::of(engine.as_ref())?;
        let log = repair::reach(&vfs, config, &identity, &peers, log, &survey)?;
        if identity.boot > 0 && log.group(DATA_GROUP).is_none() {
            return Err(NodeError::LogLost { dir: dir.clone() });
        }
        let tasks = TaskThread::start()
            .map_err(|error| NodeError::io("cannot start the task thread for", dir, error))?;
        let tasks: Arc<dyn Tasks> = Arc::new(tasks);
        // The number of the run that begins.
        let boot = identity.boot + 1;
        let outcomes = Arc::new(Outcomes::new(identity.member, boot));
        let ground = Arc::new(Ground {
            config: config.clone(),
            member: identity.member,
            boot,
            engine: Arc::clone(&engine),
            directory: SharedDirectory::new(Arc::clone(&engine)),
            log: log.clone(),
            snapshots: snapshots.clone(),
            tasks: Arc::clone(&tasks),
            outcomes: Arc::clone(&outcomes),
            ranges: Arc::default(),
        });
        let beginning = Beginning {
            // The same on every member that began with the cluster, down to the id of its creation.
            creation: peers.creation().unwrap_or(identity.cluster),
            first: peers.first(),
        };
        let Opened {
            keyspace,
            group,
            to_hash,
        } = ground.open(DATA_GROUP, Some(beginning))?;
        check_members(
            &Roster::of(&keyspace.store, &peers),
            &peers,
            identity.member,
            dir,
        )?;
        let mut groups = vec![group];
        let mut others = Vec::new();
        for (group, beginning) in other_groups(&log, &keyspace.store) {
            let opened = ground.open_noted(&peers, group, beginning)?;
            groups.push(opened.group);
            others.push((opened.keyspace, opened.to_hash));
        }
        let links = Links::new(&Members::default(), QueueLimits::default());
        let (events, received) = mpsc::channel();
        let (for_others, others_received) = mpsc::channel();
        let changed = (events.clone(), for_others.clone());
        keyspace.store.on_members_changed(Box::new(move || {
            // A node that stops follows nobody.
            let _ = changed.0.send(Event::Changed);
            let _ = changed.1.send(keyspaces::Event::Changed);
        }));
        // Nothing can refuse the start for what is on disk any more: a refused one changes nothing.
        identity.boot = boot;
        identity.write(vfs.as_ref(), dir)?;
        let options = HostOptions {
            snapshot_entries: config.snapshot_entries,
            ..HostOptions::default()
        };
        let calls = Arc::new(NodeCalls::new(events.clone()));
        let pacer = Arc::new(Pacer::new(SNAPSHOT_MADE_BYTES_PER_SECOND));
        let host = Host::start_with(
            log.clone(),
            groups,
            options,
            links.outbox(),
            |core, handle| {
                for one in others.iter().map(|(one, _)| one).chain([&keyspace]) {
                    calls.add(one.group, one.lease_calls(identity.member, handle));
                }
                core.forward(Forwarding {
                    outcomes,
                    stamp: mvcc::stamp,
                    calls: Arc::<NodeCalls>::clone(&calls),
                    limits: ForwardLimits::new(election_ticks(config)),
                });
                core.watch_stores(liveness(config, &identity));
                let on_same_disk = Arc::clone(&engine);
                core.share_disk(Box::new(move || on_same_disk.out_of_space()));
                let files = snapshots.clone();
                let pacer = Arc::clone(&pacer);
                let pace: Option<Pace> = Some(Arc::new(move |bytes| pacer.pass(bytes)));
                core.keep_snapshots(SnapshotSetup {
                    store: files,
                    tasks,
                    pace,
                });
            },
            on_failure,
        )
        .map_err(|error| NodeError::io("cannot start the host thread for", dir, error))?;
        let care = ground.care(&keyspace, to_hash, &host.handle())?;
        let hosted = Hosted::default();
        for (one, to_hash) in others {
            let care = ground.care(&one, to_hash, &host.handle())?;
            hosted.insert(one, care);
        }
        Ok(Self {
            identity,
            handle: host.handle(),
            keyspace,
            engine,
            log,
            snapshots,
            peers,
            config: config.clone(),
            host,
            links,
            transport: None,
            events: (events, Some(received)),
            keeper: None,
            publisher: None,
            ground,
            care,
            calls,
            hosted,
            others: (for_others, Some(others_received)),
            shepherd: None,
            pacer,
            _lock: lock,
        })
    }

    /// The default keyspace, for who answers requests.
    #[must_use]
    pub fn front(&self) -> Front {
        Front {
            is_default: true,
            cluster: self.identity.cluster,
            member: self.identity.member.0,
            keyspace: self.keyspace.clone(),
            replica: self.keyspace.replica(&self.handle),
            view: self.view(),
        }
    }

    /// The applied state of the default keyspace.
    #[must_use]
    pub fn view(&self) -> NodeView {
        let store = &self.keyspace.store;
        self.ground.view(&self.keyspace, store, &self.peers)
    }

    /// Keeps the keyspaces beside the default one: holds those of the cluster, and registers those that are wanted; `serve` is
    /// called with each of these once, when it is there. `on_failure` is called once when that cannot go on.
    pub fn keep_keyspaces(
        &mut self,
        wanted: Vec<WantedKeyspace>,
        serve: Serve,
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> Result<(), NodeError> {
        let parts = keyspaces::Parts {
            cluster: self.identity.cluster,
            ground: Arc::clone(&self.ground),
            handle: self.handle.clone(),
            store: Arc::clone(&self.keyspace.store),
            peers: Arc::clone(&self.peers),
            calls: Arc::clone(&self.calls),
            hosted: self.hosted.clone(),
        };
        let (events, received) = &mut self.others;
        let received = received.take().expect("keyspaces are kept once");
        let events = (events.clone(), received);
        let shepherd = Shepherd::start(parts, events, (wanted, serve), on_failure);
        let dir = &self.config.data_dir;
        self.shepherd = Some(shepherd.map_err(|error| {
            NodeError::io(
                "cannot start the thread that keeps the keyspaces of",
                dir,
                error,
            )
        })?);
        Ok(())
    }

    /// Ends all watches, each with a status of its own.
    pub fn close_watches(&self) {
        self.keyspace.hub.close();
        self.hosted.close();
    }

    /// Links this member to the others, which call on `listeners`, and lets it follow the members: also one that is alone,
    /// for it may get others. `on_failure` is called once or twice when that cannot go on.
    pub fn connect(
        &mut self,
        listeners: Vec<Listener>,
        on_failure: impl Fn(&str) + Clone + Send + 'static,
    ) -> Result<(), NodeError> {
        let inbound: Arc<dyn Inbound> = Arc::new(self.handle.clone());
        // Whoever calls is known from the first moment on, also to a restart; the keeper goes on from there.
        let roster = Roster::of(&self.keyspace.store, &self.peers);
        if !self.peers.is_ahead_of(roster.table.index) {
            self.peers.keep(&roster)?;
        }
        let others = keeper::others(&roster, &self.peers, self.identity.member);
        self.links.update(&others);
        let info = self.log.group(DATA_GROUP);
        // All groups of a log begin anew together, and this one is there for as long as the directory.
        let log_incarnation = (info.as_ref()).map_or(0, |info| info.incarnation.number);
        let directory = MemberDirectory {
            cluster: self.identity.cluster,
            creation: info.map_or(0, |info| info.base.creation),
            store: Arc::clone(&self.keyspace.store),
            peers: Arc::clone(&self.peers),
        };
        let gate = MemberGate {
            store: Arc::clone(&self.keyspace.store),
            peers: Arc::clone(&self.peers),
        };
        let setup = TransportSetup {
            me: Me {
                cluster: self.identity.cluster,
                member: self.identity.member,
                store: self.identity.store,
                boot: self.identity.boot,
                log_incarnation,
            },
            inbound,
            gate: Arc::new(gate),
            directory: Some(Arc::new(directory)),
            snapshots: Some(Arc::new(SnapshotInbox {
                handle: self.handle.clone(),
                log: self.log.clone(),
                store: self.snapshots.clone(),
            })),
            snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
            seed: random_u64()?,
            tls: self.config.peer_tls.clone(),
        };
        let links_failed = Box::new(on_failure.clone());
        let transport = Transport::start(listeners, self.links.clone(), setup, links_failed);
        let dir = &self.config.data_dir;
        let transport = transport.map_err(|error| {
            NodeError::io("cannot start the thread that links members for", dir, error)
        })?;
        let forward = ForwardLimits::new(election_ticks(&self.config));
        let parts = keeper::Parts {
            me: self.identity.member,
            handle: self.handle.clone(),
            store: Arc::clone(&self.keyspace.store),
            peers: Arc::clone(&self.peers),
            links: self.links.clone(),
            watcher: transport.watcher(),
            rules: self.config.change_rules,
            patience: Duration::from_millis(forward.timeout_ticks * multiraft::TICK_MS),
        };
        self.transport = Some(transport);
        let (events, received) = &mut self.events;
        let received = received.take().expect("a node is connected once");
        let keeper = Keeper::start(parts, (events.clone(), received), Box::new(on_failure));
        self.keeper = Some(keeper.map_err(|error| {
            NodeError::io(
                "cannot start the thread that follows the members of",
                dir,
                error,
            )
        })?);
        Ok(())
    }

    /// How the links to the others are doing, once there are some.
    #[must_use]
    pub fn link_watcher(&self) -> Option<TransportWatcher> {
        self.transport.as_ref().map(Transport::watcher)
    }

    /// Tells all members by a log entry where this one serves clients, unless applied state says so already; it tries
    /// until it succeeds. The receiver gets a message, or is dropped, when that is done.
    pub fn publish(&mut self, client_urls: Vec<String>) -> Result<mpsc::Receiver<()>, NodeError> {
        let member = self.identity.member;
        let known = self.keyspace.store.member(member);
        let row = PublishMember {
            id: member.0,
            name: self.config.name.clone(),
            client_urls,
            store: self.identity.store.0,
            ..known.clone().unwrap_or_else(|| PublishMember {
                peer_urls: self.peers.get(member).unwrap_or_default().peer_urls,
                ..PublishMember::default()
            })
        };
        let (done, receiver) = mpsc::channel();
        if known.as_ref() != Some(&row) {
            let publisher = publish::Publisher::start(self.handle.clone(), row, done);
            let dir = &self.config.data_dir;
            self.publisher = Some(publisher.map_err(|error| {
                NodeError::io("cannot start the thread that publishes", dir, error)
            })?);
        }
        Ok(receiver)
    }

    /// Blocks until a linearizable read succeeds: the member leads or has a leader, and has applied what its log holds.
    /// Without a leader it gives up after a few seconds and says false; serving then is still of use to whoever asks
    /// for the status or reads what may be stale.
    pub fn wait_until_serving(&self) -> Result<bool, NodeError> {
        for _ in 0..LEADER_POLLS_MAX {
            let (sender, receiver) = mpsc::channel();
            self.handle
                .read_barrier(DATA_GROUP, Box::new(move |done| drop(sender.send(done))));
            match receiver.recv() {
                Ok(Ok(())) => return Ok(true),
                // The host itself has waited for a leader.
                Ok(Err(HostError::Timeout)) => return Ok(false),
                Ok(Err(HostError::NotLeader(_) | HostError::LeaderChanged)) => {
                    std::thread::park_timeout(LEADER_POLL);
                }
                Ok(Err(error)) => return Err(NodeError::Host(error.to_string())),
                Err(_) => return Err(NodeError::Host("it ended before it served".to_owned())),
            }
        }
        Ok(false)
    }

    /// Hands the leadership of each group over to a voter that can be reached, where this member leads, so that nobody waits
    /// for an election when it stops. Gives up on a voter after an election timeout, and after five seconds in any case.
    /// What leases have left is recorded before that, in half a second at most, also where there is nobody else to lead.
    pub fn hand_over(&self) {
        rests::record(self.led_lessors());
        let linked = self.link_watcher().map(|links| links.status());
        let linked = linked.into_iter().flatten().filter(|link| link.linked);
        let mut polls = u64::from(LEADER_POLLS_MAX);
        let mut led = self.led();
        for to in linked.map(|link| link.id) {
            for status in led.iter().filter(|(_, status)| status.voters.contains(&to)) {
                self.handle.transfer(status.0, to);
            }
            for _ in 0..self.config.election_ms.min(polls) {
                if led.is_empty() {
                    break;
                }
                polls -= 1;
                std::thread::park_timeout(LEADER_POLL);
                let still = self.led();
                for (group, _) in led
                    .iter()
                    .filter(|(one, _)| !still.iter().any(|(other, _)| one == other))
                {
                    info!(%group, "handed leadership over");
                }
                led = still;
            }
        }
    }

    /// The lessors of the groups that this member leads.
    fn led_lessors(&self) -> Vec<Arc<Lessor>> {
        let groups = self.handle.groups().into_iter();
        let is_led = |group: &GroupId| {
            let status = self.handle.status(*group);
            status.is_some_and(|status| status.leader == Some(status.node))
        };
        let led = groups.filter(is_led).filter_map(|group| match group {
            DATA_GROUP => Some(self.keyspace.clone()),
            other => self.hosted.get(other),
        });
        led.map(|keyspace| keyspace.lessor).collect()
    }

    /// The groups that this member leads and that have somebody else to lead them.
    fn led(&self) -> Vec<(GroupId, GroupStatus)> {
        let groups = self.handle.groups().into_iter();
        let statuses = groups.filter_map(|group| Some((group, self.handle.status(group)?)));
        let is_led =
            |status: &GroupStatus| status.leader == Some(status.node) && status.voters.len() > 1;
        statuses.filter(|(_, status)| is_led(status)).collect()
    }

    /// Finishes what is under way, makes the engine durable, closes the log.
    pub fn stop(self) -> Result<(), NodeError> {
        self.pacer.release();
        // It begins groups, which the host must be there for.
        if let Some(shepherd) = self.shepherd {
            shepherd.stop();
        }
        self.keyspace.store.close();
        self.care.stop();
        self.hosted.stop();
        // Each is stopped whatever became of the others; the first failure is most often the cause of the rest.
        let host = self.host.stop().map_err(NodeError::Host);
        // What was under way needed the others.
        if let Some(transport) = self.transport {
            transport.stop();
        }
        if let Some(publisher) = self.publisher {
            publisher.join();
        }
        if let Some(keeper) = self.keeper {
            keeper.stop();
        }
        self.care.join();
        self.hosted.join();
        let engine = self.engine.close().map_err(NodeError::Engine);
        let log = self.log.close().map_err(NodeError::Log);
        host.and(engine).and(log)
    }
}

/// Reads who the directory is and whom it knows, and writes that again; or draws it for a new directory, which is one
/// until its identity is written.
fn identify(vfs: &SharedVfs, config: &NodeConfig) -> Result<(Identity, PeerBook), NodeError> {
    let dir = &config.data_dir;
    let (identity, peers) = match Identity::read(vfs.as_ref(), dir)? {
        Some(identity) => {
            info!(
                member = %identity.member,
                "the data directory belongs to a member already; the --initial flags are not looked at"
            );
            let peers = match PeerBook::open(vfs, dir)? {
                Some(peers) => peers,
                // A directory of a version that knew one member only.
                None => {
                    let alone = InitialMember {
                        id: identity.member,
                        name: identity.name.clone(),
                        peer_urls: config.peer_urls.clone(),
                    };
                    PeerBook::create(vfs, dir, &[alone])?
                }
            };
            (identity, peers)
        }
        None if has_files(vfs, &dir.join("log"))? => {
            return Err(NodeError::NoIdentity { dir: dir.clone() });
        }
        None => {
            if config.initial_state == InitialState::Existing {
                return join(vfs, config);
            }
            let first = config
                .initial
                .first(&config.name, &config.peer_urls, &config.initial_token)
                .map_err(NodeError::Initial)?;
            let peers = PeerBook::create(vfs, dir, &first.members)?;
            let identity = Identity {
                store: StoreId(random_u64()?),
                cluster: first.cluster,
                member: first.me,
                name: config.name.clone(),
                boot: 0,
            };
            (identity, peers)
        }
    };
    identity.write(vfs.as_ref(), dir)?;
    Ok((identity, peers))
}

/// A new data directory for a member that was added to a cluster. It is that member's once its identity is written; until
/// then a start asks anew.
fn join(vfs: &SharedVfs, config: &NodeConfig) -> Result<(Identity, PeerBook), NodeError> {
    let joining = join::ask(
        &config.initial,
        &config.name,
        &config.peer_urls,
        config.peer_tls.as_ref(),
    )?;
    join_as(vfs, config, &joining)
}

/// The directory of a member that was told who it is.
fn join_as(
    vfs: &SharedVfs,
    config: &NodeConfig,
    joining: &Joining,
) -> Result<(Identity, PeerBook), NodeError> {
    let peers = PeerBook::join(vfs, &config.data_dir, joining)?;
    let identity = Identity {
        store: StoreId(random_u64()?),
        cluster: joining.view.cluster,
        member: joining.me,
        name: config.name.clone(),
        boot: 0,
    };
    identity.write(vfs.as_ref(), &config.data_dir)?;
    Ok((identity, peers))
}

fn election_ticks(config: &NodeConfig) -> u64 {
    config.election_ms.div_ceil(multiraft::TICK_MS)
}

/// A store that was silent for an election timeout is dead, as a leader is.
fn liveness(config: &NodeConfig, identity: &Identity) -> Liveness {
    let settings = LivenessConfig::default();
    let settings = LivenessConfig {
        timeout_ticks: election_ticks(config).max(3 * settings.interval_ticks),
        ..settings
    };
    Liveness::new(identity.store, identity.boot, settings)
}

fn core_config(
    config: &NodeConfig,
    group: GroupId,
    id: NodeId,
    boot: u64,
) -> Result<ValidConfig, NodeError> {
    let core = Config {
        id,
        group,
        seed: random_u64()?,
        boot,
        heartbeat_ticks: config.heartbeat_ms.div_ceil(multiraft::TICK_MS),
        uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
        election_ticks: election_ticks(config),
        ..Config::default()
    };
    Ok(core.validate()?)
}

/// Refuses a start whose member is none any more, or does not know where the others are.
fn check_members(
    roster: &Roster,
    peers: &PeerBook,
    me: NodeId,
    dir: &Path,
) -> Result<(), NodeError> {
    if roster.table.removed.contains_key(&me) {
        let dir = dir.to_owned();
        return Err(NodeError::Removed { dir });
    }
    let lost = |member: &&roster::Member| member.id != me && member.peer_urls.is_empty();
    if peers.is_ahead_of(roster.table.index) {
        // What is replayed may name members that are gone for long.
        return Ok(());
    }
    match roster.members.iter().find(lost) {
        Some(member) => Err(NodeError::NoPeerUrl { member: member.id }),
        None => Ok(()),
    }
}

/// The groups beside the default one: those of the log, and those that are registered and not begun yet, which begin as the
/// record says.
fn other_groups(log: &Log, store: &Store) -> Vec<(GroupId, Option<Beginning>)> {
    let known = store.keyspaces();
    let there = log.groups();
    let new = known
        .values()
        .filter(|known| !there.contains(&known.group()));
    let new = new.map(|known| (known.group(), Some(Beginning::of(known))));
    let others = there.iter().filter(|group| **group != DATA_GROUP);
    others.map(|group| (*group, None)).chain(new).collect()
}

/// The snapshots of a directory; their files agree with the log then.
fn open_snapshots(
    vfs: &SharedVfs,
    config: &NodeConfig,
    log: &Log,
    store: StoreId,
) -> Result<SnapshotStore, NodeError> {
    let dir = config.data_dir.join("snap");
    let refers = |group| log.group(group).is_some_and(|info| info.snapshot.is_some());
    if log.groups().into_iter().any(refers) && !has_files(vfs, &dir)? {
        // A new directory would give numbers again that the log and the engine know already.
        return Err(NodeError::SnapshotsLost { dir });
    }
    let options = SnapshotOptions {
        sync_bytes: SNAPSHOT_SYNC_BYTES,
        ..SnapshotOptions::new(dir, store)
    };
    let snapshots = SnapshotStore::open_with(Arc::clone(vfs), options)?;
    let report = snapshots.recover(log)?;
    info!(%report, "snapshots opened");
    Ok(snapshots)
}

fn has_files(vfs: &SharedVfs, dir: &Path) -> Result<bool, NodeError> {
    match vfs.list(dir) {
        Ok(names) => Ok(!names.is_empty()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(NodeError::io("cannot list", dir, error)),
    }
}

fn log_options(config: &NodeConfig, store: StoreId) -> LogOptions {
    let mut options = LogOptions::new(config.data_dir.join("log"), store);
    options.io = IoMode::Thread;
    options.accept_suspect_tail = config.accept_suspect_tail;
    options
}

/// From the operating system: store ids and seeds are drawn here, before anything deterministic begins.
fn random_u64() -> Result<u64, NodeError> {
    SysRng
        .try_next_u64()
        .map_err(|error| NodeError::Random(error.to_string()))
}
