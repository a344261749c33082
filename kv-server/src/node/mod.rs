//! One node: a data directory, brought up in the order that a crash at any point allows.
//!
//! 1. The directory is locked, its identity and what it knows of other members read, or drawn and written when the
//!    directory is new.
//! 2. The log is opened: it is the truth. A member of a cluster whose log is damaged begins it anew, to be repaired from its
//!    peers.
//! 3. Snapshots are compared with the log.
//! 4. The engine is opened: it holds some earlier batch. One that cannot be opened is moved aside and rebuilt when the
//!    log still has everything, or begins with a snapshot.
//! 5. Group 1 is created in the log when it is not there; then log and state machine are joined, and the host replays
//!    what the engine lacks.
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
mod join;
mod keeper;
mod pacer;
mod peers;
mod publish;
mod quota;
mod recover;
mod repair;
mod restore;
mod roster;
mod rules;
mod text;
mod upkeep;
mod view;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use multiraft::forward::{ForwardLimits, Forwarding, Outcomes};
use multiraft::liveness::{Liveness, LivenessConfig};
use multiraft::tls::{ClientTls, Listener};
use multiraft::transport::{
    Inbound, Links, Me, Members, QueueLimits, SNAPSHOT_BYTES_PER_SECOND, SnapshotInbox, Transport,
    TransportSetup, TransportWatcher,
};
use multiraft::{
    Host, HostError, HostHandle, HostOptions, Pace, SnapshotSetup, TaskThread, Tasks, restore,
};
use raft_log::log::renewal;
use raft_log::snapshot::{SnapshotOptions, SnapshotStore};
use raft_log::vfs::{RealFs, SharedVfs, VfsLock};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, StoreId};
use raft_node::StateMachine;
use raft_node::core::{Config, ValidConfig};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use rand::TryRng;
use rand::rngs::SysRng;
use tracing::{info, warn};

use crate::auth::TokenTable;
use crate::engine::Engine;
use crate::engine::lsm::FlushObserver;
use crate::lease::{LeaseCalls, Lessor, StateReports};
use crate::mvcc::{self, KvOptions, KvStateMachine, Sinks, Store};
use crate::pb::command::PublishMember;
use crate::upkeep::StateChecks;
use crate::watch::WatchHub;
use calls::NodeCalls;
use directory::{MemberDirectory, MemberGate};
use initial::InitialMember;
use join::Joining;
use keeper::{Event, Keeper};
use pacer::Pacer;
use roster::Roster;

pub use engine::applied_in;
pub use error::NodeError;
pub use identity::{FORMAT_VERSION, Identity, IdentityError};
pub use initial::{InitialCluster, InitialState};
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
    /// The read side of the store.
    pub store: Arc<Store>,
    /// Watches.
    pub hub: Arc<WatchHub>,
    /// Lease deadlines.
    pub lessor: Arc<Lessor>,
    /// The tokens that this member knows.
    pub tokens: Arc<TokenTable>,
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
    upkeep: upkeep::Upkeep,
    hasher: checks::Hasher,
    quota: Arc<quota::Quota>,
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
        let hub = Arc::new(WatchHub::new());
        let lessor = Arc::new(Lessor::new());
        let sinks = Sinks {
            events: hub.clone(),
            leases: lessor.clone(),
        };
        let (mut machine, store) = KvStateMachine::open(
            Arc::clone(&engine),
            KvOptions {
                group: DATA_GROUP,
                ..KvOptions::default()
            },
            sinks,
        )?;

        let log = repair::reach(&vfs, config, &identity, &peers, log, &machine.applied())?;
        if identity.boot > 0 && log.group(DATA_GROUP).is_none() {
            return Err(NodeError::LogLost { dir: dir.clone() });
        }
        // The same on every member that began with the cluster, down to the id of its creation.
        let creation = peers.creation().unwrap_or(identity.cluster);
        bootstrap(&log, DATA_GROUP, creation, &peers.first())?;
        let tasks = TaskThread::start()
            .map_err(|error| NodeError::io("cannot start the task thread for", dir, error))?;
        let tasks: Arc<dyn Tasks> = Arc::new(tasks);
        machine.run_tasks_on(Arc::clone(&tasks));
        if let Some(snapshot) = restore(&mut machine, &log, &snapshots, DATA_GROUP)? {
            info!(index = %snapshot.index, "the state was taken from a snapshot");
        }
        // The number of the run that begins.
        let boot = identity.boot + 1;
        let outcomes = Arc::new(Outcomes::new(identity.member, boot));
        machine.report_forwarded(Arc::clone(&outcomes));
        let tokens = Arc::<TokenTable>::default();
        let former = log.group(DATA_GROUP).map_or(0, |info| info.last_index.0);
        tokens.begin_after(former);
        machine.tell_tokens(tokens.clone());
        let (cuts, to_hash) = checks::cuts();
        machine.check_state(cuts);
        let group_config = GroupConfig {
            core: core_config(config, identity.member, boot)?,
            catch_up_entries: CATCH_UP_ENTRIES,
        };
        let group = Group::open(DATA_GROUP, group_config, log.clone(), machine)?;
        check_members(&Roster::of(&store, &peers), &peers, identity.member, dir)?;
        let links = Links::new(&Members::default(), QueueLimits::default());
        let (events, received) = mpsc::channel();
        let changed = events.clone();
        store.on_members_changed(Box::new(move || {
            // A node that stops follows nobody.
            let _ = changed.send(Event::Changed);
        }));
        // Nothing can refuse the start for what is on disk any more: a refused one changes nothing.
        identity.boot = boot;
        identity.write(vfs.as_ref(), dir)?;
        let options = HostOptions {
            snapshot_entries: config.snapshot_entries,
            ..HostOptions::default()
        };
        let checks = StateChecks::new(config.upkeep.check_interval, Duration::ZERO);
        let reports = Arc::new(checks::Reports::new(checks));
        let pacer = Arc::new(Pacer::new(SNAPSHOT_MADE_BYTES_PER_SECOND));
        let host = Host::start_with(
            log.clone(),
            vec![group],
            options,
            links.outbox(),
            |core, handle| {
                let replica = GroupReplica {
                    handle: handle.clone(),
                    group: DATA_GROUP,
                };
                let heard = Some(Arc::clone(&reports) as Arc<dyn StateReports>);
                let lessor = Arc::clone(&lessor);
                let calls = NodeCalls {
                    leases: LeaseCalls::with_reports(DATA_GROUP, replica, lessor, heard),
                    members: Mutex::new(events.clone()),
                };
                core.forward(Forwarding {
                    outcomes,
                    stamp: mvcc::stamp,
                    calls: Arc::new(calls),
                    limits: ForwardLimits::new(election_ticks(config)),
                });
                core.watch_stores(liveness(config, &identity));
                let on_same_disk = Arc::clone(&engine);
                core.share_disk(Box::new(move || on_same_disk.out_of_space()));
                let store = snapshots.clone();
                let pacer = Arc::clone(&pacer);
                let pace: Option<Pace> = Some(Arc::new(move |bytes| pacer.pass(bytes)));
                core.keep_snapshots(SnapshotSetup { store, tasks, pace });
            },
            on_failure,
        )
        .map_err(|error| NodeError::io("cannot start the host thread for", dir, error))?;
        let quota = Arc::new(quota::Quota::new(
            Arc::clone(&engine),
            config.upkeep.quota_bytes,
        ));
        let looked_after = upkeep::Parts {
            member: identity.member,
            handle: host.handle(),
            store: Arc::clone(&store),
            engine: Arc::clone(&engine),
            quota: Arc::clone(&quota),
            reports,
        };
        let upkeep = upkeep::Upkeep::start(&config.upkeep, looked_after).map_err(|error| {
            NodeError::io("cannot start the thread that looks after", dir, error)
        })?;
        let hasher = checks::Hasher::start(identity.member, to_hash, host.handle())
            .map_err(|error| NodeError::io("cannot start the thread that hashes", dir, error))?;
        Ok(Self {
            identity,
            handle: host.handle(),
            store,
            hub,
            lessor,
            tokens,
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
            upkeep,
            hasher,
            quota,
            pacer,
            _lock: lock,
        })
    }

    /// The applied state, for who answers requests.
    #[must_use]
    pub fn view(&self) -> NodeView {
        let engine = Arc::clone(&self.engine);
        let (store, lessor) = (Arc::clone(&self.store), Arc::clone(&self.lessor));
        NodeView::new(store, lessor, engine, self.log.clone())
            .with_peers(Arc::clone(&self.peers))
            .of_member(self.identity.member, Arc::clone(&self.quota))
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
        let roster = Roster::of(&self.store, &self.peers);
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
            store: Arc::clone(&self.store),
            peers: Arc::clone(&self.peers),
        };
        let gate = MemberGate {
            store: Arc::clone(&self.store),
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
            store: Arc::clone(&self.store),
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
        let known = self.store.member(member);
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

    /// Hands leadership over to a voter that can be reached, if this member leads, so that nobody waits for an election when
    /// it stops. Gives up on a voter after an election timeout, and after five seconds in any case.
    pub fn hand_over(&self) {
        let linked = self.link_watcher().map(|links| links.status());
        let linked = linked.into_iter().flatten().filter(|link| link.linked);
        let mut polls = u64::from(LEADER_POLLS_MAX);
        for to in linked.map(|link| link.id) {
            let status = self.handle.status(DATA_GROUP).unwrap_or_default();
            if status.leader != Some(status.node) {
                return;
            }
            if !status.voters.contains(&to) {
                continue;
            }
            self.handle.transfer(DATA_GROUP, to);
            for _ in 0..self.config.election_ms.min(polls) {
                polls -= 1;
                let leader = self.handle.status(DATA_GROUP).and_then(|now| now.leader);
                if let Some(leader) = leader.filter(|leader| *leader != status.node) {
                    info!(%leader, "handed leadership over");
                    return;
                }
                std::thread::park_timeout(LEADER_POLL);
            }
        }
    }

    /// Finishes what is under way, makes the engine durable, closes the log.
    pub fn stop(self) -> Result<(), NodeError> {
        self.pacer.release();
        self.upkeep.stop();
        self.hasher.stop();
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
        self.upkeep.join();
        self.hasher.join();
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

fn core_config(config: &NodeConfig, id: NodeId, boot: u64) -> Result<ValidConfig, NodeError> {
    let core = Config {
        id,
        group: DATA_GROUP,
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

/// The snapshots of a directory; their files agree with the log then.
fn open_snapshots(
    vfs: &SharedVfs,
    config: &NodeConfig,
    log: &Log,
    store: StoreId,
) -> Result<SnapshotStore, NodeError> {
    let dir = config.data_dir.join("snap");
    let referred = log.group(DATA_GROUP).and_then(|info| info.snapshot);
    if referred.is_some() && !has_files(vfs, &dir)? {
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
