//! The start of a simulated member, in the order in which the product starts.

use std::path::Path;
use std::sync::Arc;

use kv_server::engine::Engine;
use kv_server::mvcc::{KvOptions, KvStateMachine, Sinks, Survey};
use multiraft::forward::Outcomes;
use multiraft::{HOLD_TICKS, HostCore, HostOptions, SnapshotSetup, restore};
use raft_log::log::renewal::{open_or_renew, renew};
use raft_log::log::salvage::Covered;
use raft_log::snapshot::{Catalog, SnapshotOptions, SnapshotStore};
use raft_log::vfs::Vfs;
use raft_log::{Base, GroupId, IoMode, Log, LogOptions, SnapshotRef, StoreId};
use raft_node::Applied;
use raft_node::core::{Config, Membership};
use raft_node::driver::repair::covered;
use raft_node::driver::{Group, GroupConfig, bootstrap};

use super::{GROUP, LOG_DIR, Node, SNAP_DIR, Stopped, Up};
use crate::sim::forwarding::{self, Replica};
use crate::sim::oracle::Shared;
use crate::sim::sinks::{Heard, Hub, Lessor, Observed};
use crate::sim::tasks::TaskQueue;

impl Node {
    /// Starts the process on what the disk and the engine hold, at tick `now` of the world.
    ///
    /// # Errors
    /// Whatever keeps the product from starting.
    ///
    /// # Panics
    /// When what it starts with is not what the oracle knows.
    pub fn start(&mut self, now: u64) -> Result<(), Stopped> {
        assert!(self.up.is_none(), "the member runs already");
        let log = self.open_log()?;
        let (snapshots, lost) = self.open_snapshots(&log)?;
        let log = self.reach(log)?;
        let membership = Membership::of_voters(self.settings.voters.iter().copied());
        bootstrap(&log, GROUP, 1, &membership)?;
        let (hub, lessor) = (
            Arc::new(Hub::new(
                self.id,
                self.oracle.clone(),
                self.settings.watch_revisions,
            )),
            if self.settings.expires {
                Lessor::with_product(self.id, self.oracle.clone())
            } else {
                Lessor::default()
            },
        );
        let sinks = Sinks {
            events: hub.clone(),
            leases: Arc::new(lessor.clone()),
        };
        let kv = KvOptions {
            group: GROUP,
            cache_entries: self.settings.key_cache_entries,
            compaction_step: self.settings.compaction_step,
            count_worth_keys: self.settings.count_worth_keys,
            ..KvOptions::default()
        };
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        let (mut machine, store) = KvStateMachine::open(engine, kv, sinks)?;
        let tasks = TaskQueue::default();
        if let Some(settings) = self.settings.snapshots {
            machine.install_in_steps_of(settings.step_bytes);
            machine.run_tasks_on(Arc::new(tasks.clone()));
        }
        let boot = self.boot + 1;
        let outcomes = Arc::new(Outcomes::new(self.id, boot));
        if self.settings.forwards {
            machine.report_forwarded(Arc::clone(&outcomes));
        }
        hub.begin(Heard {
            revision: store.revision(),
            floor: store.compact_revision(),
        });
        let config = Config {
            id: self.id,
            group: GROUP,
            election_ticks: self.settings.election_ticks,
            heartbeat_ticks: self.settings.heartbeat_ticks,
            window_bytes_max: self.settings.window_bytes,
            message_bytes_max: self.settings.message_bytes,
            inflight_messages_max: self.settings.inflight_messages,
            lease_ticks: self.settings.read_lease_ticks,
            boot: if self.settings.forwards { boot } else { 0 },
            seed: self.settings.seed ^ now,
            snapshot_ticks_max: self
                .settings
                .snapshots
                .map_or(Config::default().snapshot_ticks_max, |s| s.silent_ticks),
            ..Config::default()
        };
        let config = GroupConfig {
            core: config.validate()?,
            catch_up_entries: self.settings.catch_up_entries,
        };
        let mut machine = Observed::new(
            machine,
            self.id,
            self.oracle.clone(),
            hub.clone(),
            Arc::clone(&store),
        );
        if let Some(snapshots) = &snapshots {
            restore(&mut machine, &log, snapshots, GROUP)?;
        }
        // A state that is behind its log is no news where the snapshot between them is damaged.
        let group = Group::open(GROUP, config, log.clone(), machine)
            .map_err(|error| Stopped(format!("{error}{lost}")))?;
        // As in the product: a start that is refused uses no number up.
        self.boot = boot;
        self.oracle.get().process_started(self.id, group.applied());
        let options = HostOptions {
            snapshot_entries: self.settings.snapshot_entries,
            hold_ticks: self.settings.snapshots.map_or(HOLD_TICKS, |s| s.hold_ticks),
            ..HostOptions::default()
        };
        let (mut core, handle) = HostCore::new(
            log.clone(),
            vec![group],
            options,
            (self.outbox)(),
            Box::new(|| {}),
        );
        if let Some(lessor) = lessor.product().filter(|_| self.settings.forwards) {
            let replica = Replica::new(self.id, handle.clone(), self.oracle.clone());
            let election_ticks = self.settings.election_ticks;
            core.forward(forwarding::setup(outcomes, replica, lessor, election_ticks));
        }
        if let Some(store) = snapshots.clone() {
            let tasks = Arc::new(tasks.clone());
            let pace = None;
            core.keep_snapshots(SnapshotSetup { store, tasks, pace });
        }
        let up = Up {
            log,
            snapshots,
            tasks,
            handle,
            store,
            lessor,
            core,
            hub,
            started: now,
            answers: Shared::new(Vec::new()),
            reads: Shared::new(Vec::new()),
        };
        let term = up
            .log
            .group(GROUP)
            .expect("just bootstrapped")
            .hard_state
            .term;
        assert!(
            term >= self.term_seen,
            "member {} was in term {} and comes back in term {term}",
            self.id,
            self.term_seen
        );
        self.up = Some(up);
        Ok(())
    }

    fn log_options(&self) -> LogOptions {
        let mut options = LogOptions::new(LOG_DIR, StoreId(self.id.0));
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        options.cache_bytes = self.settings.log_cache_bytes;
        options
    }

    /// Of several members one whose log is damaged begins it anew.
    fn open_log(&mut self) -> Result<Log, Stopped> {
        let (vfs, options) = (self.fs.shared(), self.log_options());
        if self.settings.voters.len() < 2 {
            return Ok(Log::open(vfs, options)?.0);
        }
        let catalog = self.catalog();
        let has_snapshot =
            |group: GroupId, snapshot: &SnapshotRef| catalog.verify(group, snapshot).is_ok();
        let opened = open_or_renew(&vfs, &options, &has_snapshot, &|_, base| {
            Ok(Some(self.covers(base)))
        })?;
        if let Some((_, renewal)) = opened.anew {
            self.forget(&renewal.evidence);
            self.anew = true;
        }
        Ok(opened.log)
    }

    /// Nor does one go on whose log ends behind what the engine has applied durably.
    fn reach(&mut self, log: Log) -> Result<Log, Stopped> {
        let applied = self.applied_there().index;
        let ends_behind = log
            .group(GROUP)
            .is_some_and(|info| info.last_index < applied);
        if !ends_behind || self.settings.voters.len() < 2 {
            return Ok(log);
        }
        log.close()?;
        drop(log);
        let (vfs, options) = (self.fs.shared(), self.log_options());
        let catalog = self.catalog();
        let has_snapshot =
            |group: GroupId, snapshot: &SnapshotRef| catalog.verify(group, snapshot).is_ok();
        let renewal = renew(&vfs, &options, &has_snapshot, &|_, base| {
            Ok(Some(self.covers(base)))
        })?;
        self.forget(&renewal.evidence);
        self.anew = true;
        Ok(Log::open(vfs, options)?.0)
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.fs.shared(), SNAP_DIR, Some(StoreId(self.id.0)))
    }

    /// What the engine covers of a log with that base.
    fn covers(&self, base: &Base) -> Covered {
        let first = Membership::of_voters(self.settings.voters.iter().copied());
        covered(base, &self.applied_there(), &first)
    }

    /// Where the engine stands.
    fn applied_there(&self) -> Applied {
        let survey = Survey::of(&self.engine).expect("an engine in memory can be read");
        survey.applied(GROUP)
    }

    /// Somebody has looked at a damaged log, and removes it: a disk keeps only so many. What fails is there still.
    fn forget(&self, evidence: &Path) {
        let _ = self.fs.list(evidence).map(|names| {
            for name in names {
                let _ = self.fs.remove(&evidence.join(name));
            }
        });
        let gone = format!("/gone-{}", self.fs.op_count());
        let _ = self.fs.rename(evidence, Path::new(&gone));
    }

    /// The store of snapshots, if there is one, and which of its files are of no use, as the end of a sentence.
    fn open_snapshots(&self, log: &Log) -> Result<(Option<SnapshotStore>, String), Stopped> {
        let Some(settings) = self.settings.snapshots else {
            return Ok((None, String::new()));
        };
        let mut options = SnapshotOptions::new(SNAP_DIR, StoreId(self.id.0));
        options.io = IoMode::Inline;
        options.chunk_bytes = settings.chunk_bytes;
        options.sync_bytes = settings.sync_bytes;
        let store = SnapshotStore::open_with(self.fs.shared(), options)?;
        let report = store.recover(log)?;
        let lost = report
            .unusable
            .iter()
            .map(|(_, _, error)| format!("; {error}"));
        let lost = lost.collect();
        Ok((Some(store), lost))
    }
}
