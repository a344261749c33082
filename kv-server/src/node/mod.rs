//! One node: a data directory, brought up in the order that a crash at any point allows.
//!
//! 1. The directory is locked, its identity read, or drawn and written when the directory is new.
//! 2. The log is opened: it is the truth.
//! 3. Snapshots are compared with the log.
//! 4. The engine is opened: it holds some earlier batch. One that cannot be opened is moved aside and rebuilt when the
//!    log still has everything, or begins with a snapshot.
//! 5. Group 1 is created in the log when it is not there; then log and state machine are joined, and the host replays
//!    what the engine lacks.
//!
//! It opens no socket; `server` does.

mod engine;
mod error;
mod identity;
mod view;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use multiraft::{Host, HostError, HostHandle, HostOptions, TaskThread, restore};
use raft_log::snapshot::SnapshotStore;
use raft_log::vfs::{RealFs, SharedVfs, VfsLock};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, RecoveryReport, StoreId};
use raft_node::core::{Config, Membership};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use rand::TryRng;
use rand::rngs::SysRng;
use tracing::info;

use crate::engine::Engine;
use crate::lease::Lessor;
use crate::mvcc::{KvOptions, KvStateMachine, Sinks, Store};
use crate::watch::WatchHub;

pub use engine::applied_in;
pub use error::NodeError;
pub use identity::{FORMAT_VERSION, Identity, IdentityError};
pub use view::{GroupReplica, NodeView};

/// Entries that stay in the log below the applied index, so that a member that lags needs no snapshot.
const CATCH_UP_ENTRIES: u64 = 5_000;

/// Bytes proposed and not committed. With what an inbox holds it stays below what the engine takes in memory after its
/// disk became full, so that what was accepted can always be applied.
const UNCOMMITTED_BYTES_MAX: usize = 32 << 20;
/// How long a start waits for a leader, in polls: five seconds.
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
    /// The cluster's id, from the initial cluster; used when the directory is new.
    pub cluster: u64,
    /// The member's id, from the initial cluster; used when the directory is new.
    pub member: NodeId,
    /// Milliseconds between heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Milliseconds without a leader until a member campaigns.
    pub election_ms: u64,
    /// Applied entries between two requests to make the engine durable.
    pub snapshot_entries: u64,
    /// Accept that the very last batch of the log may be damaged, after its report was read.
    pub accept_suspect_tail: bool,
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
    /// The engine, for its size and its space.
    pub engine: Arc<dyn Engine>,
    /// The log, for its statistics.
    pub log: Log,
    /// What was found when the log was opened.
    pub recovery: RecoveryReport,
    host: Host<KvStateMachine>,
    _lock: Box<dyn VfsLock>,
}

impl Node {
    /// Brings a data directory up. `on_failure` is called once when the node cannot go on; `observe_sync` sees the
    /// duration of each sync of the log.
    pub fn start(
        config: &NodeConfig,
        on_failure: Box<dyn FnOnce(&str) + Send>,
        observe_sync: Arc<dyn Fn(Duration) + Send + Sync>,
    ) -> Result<Self, NodeError> {
        let vfs: SharedVfs = Arc::new(RealFs::with_observer(observe_sync));
        let dir = &config.data_dir;
        vfs.create_dir_all(dir)
            .map_err(|error| NodeError::io("cannot create", dir, error))?;
        let lock_path = dir.join("LOCK");
        let lock = vfs
            .lock(&lock_path)
            .map_err(|error| NodeError::lock(dir, error))?;
        let mut identity = identify(&vfs, config)?;
        let (log, recovery) = Log::open(Arc::clone(&vfs), log_options(config, identity.store))?;
        info!(%recovery, "log opened");

        let snapshots = open_snapshots(&vfs, config, &log, identity.store)?;
        let engine = engine::open(config, &log, snapshots.as_ref())?;
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

        let membership = Membership {
            voters: vec![identity.member],
            ..Membership::default()
        };
        bootstrap(&log, DATA_GROUP, random_u64()?, &membership)?;
        if let Some(snapshots) = &snapshots {
            let tasks = TaskThread::start()
                .map_err(|error| NodeError::io("cannot start the task thread for", dir, error))?;
            machine.run_tasks_on(Arc::new(tasks));
            let restored = restore(&mut machine, &log, snapshots, DATA_GROUP)?;
            if let Some(snapshot) = restored {
                info!(index = %snapshot.index, "the state was taken from a snapshot");
            }
        }
        let core = Config {
            id: identity.member,
            group: DATA_GROUP,
            seed: random_u64()?,
            heartbeat_ticks: config.heartbeat_ms.div_ceil(multiraft::TICK_MS),
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            election_ticks: config.election_ms.div_ceil(multiraft::TICK_MS),
            ..Config::default()
        };
        let group_config = GroupConfig {
            core: core.validate()?,
            catch_up_entries: CATCH_UP_ENTRIES,
        };
        let group = Group::open(DATA_GROUP, group_config, log.clone(), machine)?;
        // Nothing can refuse the start for what is on disk any more: a refused one changes nothing.
        identity.boot += 1;
        identity.write(vfs.as_ref(), dir)?;
        let options = HostOptions {
            snapshot_entries: config.snapshot_entries,
            ..HostOptions::default()
        };
        let host = Host::start(log.clone(), vec![group], options, Box::new(()), on_failure)
            .map_err(|error| NodeError::io("cannot start the host thread for", dir, error))?;
        Ok(Self {
            identity,
            handle: host.handle(),
            store,
            hub,
            lessor,
            engine,
            log,
            recovery,
            host,
            _lock: lock,
        })
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
                Ok(Err(
                    HostError::NotLeader(_) | HostError::LeaderChanged | HostError::Timeout,
                )) => {
                    std::thread::park_timeout(LEADER_POLL);
                }
                Ok(Err(error)) => return Err(NodeError::Host(error.to_string())),
                Err(_) => return Err(NodeError::Host("it ended before it served".to_owned())),
            }
        }
        Ok(false)
    }

    /// Finishes what is under way, makes the engine durable, closes the log.
    pub fn stop(self) -> Result<(), NodeError> {
        // Each is stopped whatever became of the others; the first failure is most often the cause of the rest.
        let host = self.host.stop().map_err(NodeError::Host);
        let engine = self.engine.close().map_err(NodeError::Engine);
        let log = self.log.close().map_err(NodeError::Log);
        host.and(engine).and(log)
    }
}

/// Reads the directory's identity and writes it again, or draws a new one for a new directory.
fn identify(vfs: &SharedVfs, config: &NodeConfig) -> Result<Identity, NodeError> {
    let dir = &config.data_dir;
    let identity = match Identity::read(vfs.as_ref(), dir)? {
        Some(identity) => identity,
        None if has_files(vfs, &dir.join("log"))? => {
            return Err(NodeError::NoIdentity { dir: dir.clone() });
        }
        None => Identity {
            store: StoreId(random_u64()?),
            cluster: config.cluster,
            member: config.member,
            name: config.name.clone(),
            boot: 0,
        },
    };
    identity.write(vfs.as_ref(), dir)?;
    Ok(identity)
}

/// The snapshots of a directory that has some; their files agree with the log then.
fn open_snapshots(
    vfs: &SharedVfs,
    config: &NodeConfig,
    log: &Log,
    store: StoreId,
) -> Result<Option<SnapshotStore>, NodeError> {
    let dir = config.data_dir.join("snap");
    if !has_files(vfs, &dir)? {
        return Ok(None);
    }
    let snapshots = SnapshotStore::open(Arc::clone(vfs), dir, store)?;
    let report = snapshots.recover(log)?;
    info!(%report, "snapshots opened");
    Ok(Some(snapshots))
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
