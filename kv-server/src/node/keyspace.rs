//! One keyspace on this member: the state machine of its group, who hears of what it applies, and what looks after it.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use multiraft::forward::Outcomes;
use multiraft::{HostHandle, Tasks, restore};
use raft_log::snapshot::SnapshotStore;
use raft_log::{GroupId, Log, NodeId};
use raft_node::core::Membership;
use raft_node::driver::{Group, GroupConfig, bootstrap};
use tracing::info;

use super::checks::{self, Hasher, Reports};
use super::quota::{Quota, SharedDirectory};
use super::upkeep::{self, Upkeep};
use super::{
    CATCH_UP_ENTRIES, GroupReplica, NodeConfig, NodeError, NodeView, PeerBook, core_config,
};
use crate::auth::TokenTable;
use crate::engine::Engine;
use crate::lease::{LeaseCalls, Lessor, StateReports};
use crate::mvcc::{CommandOutput, KvOptions, KvStateMachine, RangeCache, Sinks, StateCut, Store};
use crate::pb::command as pb;
use crate::upkeep::StateChecks;
use crate::watch::WatchHub;

/// What a front end needs of a keyspace. Cheap to clone.
#[derive(Clone)]
pub struct Keyspace {
    /// Its group.
    pub group: GroupId,
    /// The read side of its state.
    pub store: Arc<Store>,
    /// Watches.
    pub hub: Arc<WatchHub>,
    /// Lease deadlines.
    pub lessor: Arc<Lessor>,
    /// The tokens that this member knows.
    pub tokens: Arc<TokenTable>,
    reports: Arc<Reports>,
    quota: Arc<Quota>,
}

/// With what a group begins that is not in the log yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) creation: u64,
    pub(super) first: Membership,
}

impl Beginning {
    /// Of a keyspace that is registered.
    pub(super) fn of(known: &pb::Keyspace) -> Self {
        Self {
            creation: known.creation,
            first: known.first(),
        }
    }
}

/// What all keyspaces of a member stand on.
pub(super) struct Ground {
    pub(super) config: NodeConfig,
    pub(super) member: NodeId,
    /// The number of this run.
    pub(super) boot: u64,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) directory: SharedDirectory,
    pub(super) log: Log,
    pub(super) snapshots: SnapshotStore,
    pub(super) tasks: Arc<dyn Tasks>,
    pub(super) outcomes: Arc<Outcomes<CommandOutput>>,
    /// What ranges of all keyspaces find in memory.
    pub(super) ranges: Arc<RangeCache>,
}

/// A keyspace whose group does not run yet.
pub(super) struct Opened {
    pub(super) keyspace: Keyspace,
    pub(super) group: Group<KvStateMachine>,
    pub(super) to_hash: Receiver<StateCut>,
}

/// What looks after a keyspace.
pub(super) struct Care {
    upkeep: Upkeep,
    hasher: Hasher,
}

impl Ground {
    /// Joins log and state machine of a group; one that is not in the log begins there, durably.
    pub(super) fn open(
        &self,
        group: GroupId,
        beginning: Option<Beginning>,
    ) -> Result<Opened, NodeError> {
        let hub = Arc::new(WatchHub::new());
        let lessor = Arc::new(Lessor::new());
        let sinks = Sinks {
            events: hub.clone(),
            leases: lessor.clone(),
        };
        let options = KvOptions {
            group,
            ranges: Arc::clone(&self.ranges),
            ..KvOptions::default()
        };
        let (mut machine, store) = KvStateMachine::open(Arc::clone(&self.engine), options, sinks)?;
        if let Some(Beginning { creation, first }) = beginning {
            bootstrap(&self.log, group, creation, &first)?;
        }
        machine.run_tasks_on(Arc::clone(&self.tasks));
        if let Some(snapshot) = restore(&mut machine, &self.log, &self.snapshots, group)? {
            info!(%group, index = %snapshot.index, "the state was taken from a snapshot");
        }
        machine.report_forwarded(Arc::clone(&self.outcomes));
        let tokens = Arc::<TokenTable>::default();
        let former = self.log.group(group).map_or(0, |info| info.last_index.0);
        tokens.begin_after(former);
        machine.tell_tokens(tokens.clone());
        let (cuts, to_hash) = checks::cuts();
        machine.check_state(cuts);
        let config = GroupConfig {
            core: core_config(&self.config, group, self.member, self.boot)?,
            catch_up_entries: CATCH_UP_ENTRIES,
        };
        let reports = StateChecks::new(self.config.upkeep.check_interval, Duration::ZERO);
        let limit = self.config.upkeep.quota_bytes;
        let quota = Quota::new(Arc::clone(&store), self.directory.clone(), limit);
        Ok(Opened {
            group: Group::open(group, config, self.log.clone(), machine)?,
            keyspace: Keyspace {
                group,
                store,
                hub,
                lessor,
                tokens,
                reports: Arc::new(Reports::new(reports)),
                quota: Arc::new(quota),
            },
            to_hash,
        })
    }

    /// The same, of a keyspace beside the default one: with what its group begins is noted before its log begins.
    pub(super) fn open_noted(
        &self,
        peers: &PeerBook,
        group: GroupId,
        beginning: Option<Beginning>,
    ) -> Result<Opened, NodeError> {
        if let Some(beginning) = &beginning {
            peers.begin_group(group, beginning)?;
        }
        self.open(group, beginning)
    }

    /// Starts what looks after a keyspace.
    pub(super) fn care(
        &self,
        keyspace: &Keyspace,
        to_hash: Receiver<StateCut>,
        handle: &HostHandle<KvStateMachine>,
    ) -> Result<Care, NodeError> {
        let failed = |what| move |error| NodeError::io(what, &self.config.data_dir, error);
        let replica = keyspace.replica(handle);
        let looked_after = upkeep::Parts {
            member: self.member,
            replica: replica.clone(),
            store: Arc::clone(&keyspace.store),
            engine: Arc::clone(&self.engine),
            quota: Arc::clone(&keyspace.quota),
            reports: Arc::clone(&keyspace.reports),
        };
        Ok(Care {
            upkeep: Upkeep::start(&self.config.upkeep, looked_after)
                .map_err(failed("cannot start the thread that looks after"))?,
            hasher: Hasher::start(self.member, to_hash, replica, Arc::clone(&keyspace.reports))
                .map_err(failed("cannot start the thread that hashes"))?,
        })
    }

    /// The applied state of a keyspace, for who answers requests. `members` is the store of the default one.
    pub(super) fn view(
        &self,
        keyspace: &Keyspace,
        members: &Arc<Store>,
        peers: &Arc<PeerBook>,
    ) -> NodeView {
        let engine = Arc::clone(&self.engine);
        let (store, lessor) = (Arc::clone(&keyspace.store), Arc::clone(&keyspace.lessor));
        NodeView::new(store, lessor, engine, self.log.clone())
            .with_members(Arc::clone(members), Arc::clone(peers))
            .of_member(self.member, Arc::clone(&keyspace.quota))
    }
}

impl Keyspace {
    /// Proposals and reads.
    #[must_use]
    pub fn replica(&self, handle: &HostHandle<KvStateMachine>) -> GroupReplica {
        GroupReplica {
            handle: handle.clone(),
            group: self.group,
        }
    }

    /// Answers what members ask of the group's leader.
    pub(super) fn lease_calls(
        &self,
        member: NodeId,
        handle: &HostHandle<KvStateMachine>,
    ) -> LeaseCalls<GroupReplica> {
        let answers = checks::Answers {
            member,
            reports: Arc::clone(&self.reports),
            replica: self.replica(handle),
            store: Arc::clone(&self.store),
        };
        let heard = Some(Arc::new(answers) as Arc<dyn StateReports>);
        let lessor = Arc::clone(&self.lessor);
        LeaseCalls::with_reports(self.group, self.replica(handle), lessor, heard)
    }
}

impl Care {
    /// Lets it begin nothing more.
    pub(super) fn stop(&self) {
        self.upkeep.stop();
        self.hasher.stop();
    }

    /// Waits for the end; call it after the host was stopped.
    pub(super) fn join(self) {
        self.upkeep.join();
        self.hasher.join();
    }
}
