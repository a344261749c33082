//! The thread that looks after a member: it reads the clock, asks `crate::upkeep` what is due, and proposes it.
#![expect(
    clippy::disallowed_methods,
    reason = "this is where the time comes from; what it leads to is an entry of the log"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use multiraft::{GroupStatus, HostError};
use prost::Message;
use raft_log::NodeId;
use tracing::{debug, error, info, warn};

use super::GroupReplica;
use super::checks::Reports;
use super::quota::Quota;
use crate::ApiError;
use crate::api::Replica;
use crate::engine::Engine;
use crate::mvcc::{CommandOutput, Store};
use crate::pb::command::{CheckState, Command, SetAlarm, command::Op};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, alarm_request::AlarmAction,
};
use crate::upkeep::{AutoCompaction, CompactionSchedule, Finding, QuotaAct, QuotaLook, QuotaWatch};

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The shortest: whatever is asked for, a look costs next to nothing.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// What a member does on its own.
#[derive(Clone, Debug, Default)]
pub struct UpkeepConfig {
    /// Which history is kept. Default all.
    pub auto_compaction: AutoCompaction,
    /// Bytes that the data of this member may take. Default 0: no bound but the disk's.
    pub quota_bytes: u64,
    /// How often the members' states are compared. Default never.
    pub check_interval: Option<Duration>,
}

/// What is looked after.
pub(super) struct Parts {
    pub(super) member: NodeId,
    pub(super) replica: GroupReplica,
    pub(super) store: Arc<Store>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) quota: Arc<Quota>,
    pub(super) reports: Arc<Reports>,
}

/// The thread.
pub(super) struct Upkeep {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Upkeep {
    pub(super) fn start(config: &UpkeepConfig, parts: Parts) -> io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let quota = Arc::clone(&parts.quota);
        let mut rounds = Rounds {
            begun: Instant::now(),
            compaction: CompactionSchedule::new(config.auto_compaction, Duration::ZERO),
            quota_watch: QuotaWatch::default(),
            quarantined: false,
            parts,
        };
        let told = Arc::clone(&stopped);
        let thread = std::thread::Builder::new()
            .name("flotilla-upkeep".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Acquire) {
                    let pause = rounds.look();
                    std::thread::park_timeout(pause);
                }
            })?;
        quota.wake(thread.thread().clone());
        Ok(Self { stopped, thread })
    }

    /// Lets it begin nothing more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    /// Waits for the end; call it after the host was stopped.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that looks after this member panicked");
        }
    }
}

/// What is looked at in each round.
struct Rounds {
    begun: Instant,
    compaction: CompactionSchedule,
    quota_watch: QuotaWatch,
    /// Whether this member's data is known to be wrong, as it was when last looked at.
    quarantined: bool,
    parts: Parts,
}

impl Rounds {
    /// Does what is due, and says how long nothing will be.
    fn look(&mut self) -> Duration {
        self.watch_quota();
        self.compare_states();
        self.watch_quarantine();
        self.compact();
        let due = self.compaction.next();
        let now = self.begun.elapsed();
        due.map_or(PAUSE_MAX, |due| due.saturating_sub(now))
            .clamp(PAUSE_MIN, PAUSE_MAX)
    }

    fn watch_quota(&mut self) {
        let own = AlarmMember {
            member_id: self.parts.member.0,
            alarm: AlarmType::Nospace.into(),
        };
        let look = QuotaLook {
            used: self.parts.quota.used(),
            limit: self.parts.quota.limit,
            refused: self.parts.quota.take_refused(),
            raised: self.parts.store.alarm(own),
            removals: self.parts.store.revision() + self.parts.store.finished_compact_revision(),
        };
        let action = match self.quota_watch.look(self.begun.elapsed(), look) {
            None => return,
            Some(QuotaAct::Reclaim) => {
                if let Err(error) = self.parts.engine.request_reclaim() {
                    // The next write meets the same error and stops the member.
                    warn!(%error, "space is not given back");
                }
                return;
            }
            Some(QuotaAct::Raise) => AlarmAction::Activate,
            Some(QuotaAct::Clear) => AlarmAction::Deactivate,
        };
        let request = AlarmRequest {
            action: action.into(),
            member_id: own.member_id,
            alarm: own.alarm,
        };
        let command = SetAlarm {
            request: Some(request),
            by_quota: true,
        };
        let QuotaLook { used, limit, .. } = look;
        match (self.propose(Op::SetAlarm(command)), action) {
            (Ok(Ok(_)), AlarmAction::Activate) => warn!(
                used,
                limit,
                "the quota is full: raised the alarm NOSPACE, and nothing that grows is taken; delete and compact"
            ),
            (Ok(Ok(_)), _) => info!(
                used,
                limit, "a tenth of the quota is free: cleared the alarm NOSPACE"
            ),
            (Err(HostError::Stopped), _) => {}
            (Ok(Err(error)), _) => {
                warn!(%error, used, limit, "the alarm NOSPACE is not set; it is tried again")
            }
            (Err(error), _) => {
                warn!(%error, used, limit, "the alarm NOSPACE is not set; it is tried again")
            }
        }
    }

    /// Asks for a comparison of all members' states when it is time, and raises alarms for what was found.
    fn compare_states(&mut self) {
        let now = self.begun.elapsed();
        let status = self.status();
        let leads = status.leader == Some(status.node);
        let members = status.voters.len() + status.learners.len();
        let mut reports = self.parts.reports.lock();
        if reports.is_due(now, leads, members, status.applied) {
            drop(reports);
            if let Err(error) = self.propose(Op::CheckState(CheckState {})) {
                return debug!(%error, "the states of members are not compared now");
            }
            reports = self.parts.reports.lock();
            // What is published may be older than the answer.
            let asked = self.status().applied.max(status.applied.next());
            reports.asked(asked);
        }
        if !leads {
            return reports.abandon();
        }
        let findings = reports.judge(now, &status.voters, &status.learners);
        drop(reports);
        for finding in findings {
            match finding {
                Finding::Equal(index) => debug!(%index, "all members have the same state"),
                Finding::Minority(index, members) => {
                    for member in members {
                        error!(%index, %member, "the state of a member differs from the majority's");
                        self.raise_corrupt(member);
                    }
                }
                Finding::NoMajority(index) => {
                    error!(%index, "the states of members differ, and none has a majority");
                    self.raise_corrupt(NodeId(0));
                }
            }
        }
    }

    /// For member 0, the whole cluster.
    fn raise_corrupt(&self, member: NodeId) {
        let request = AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: member.0,
            alarm: AlarmType::Corrupt.into(),
        };
        let command = SetAlarm {
            request: Some(request),
            by_quota: false,
        };
        if let Err(error) = self.propose(Op::SetAlarm(command)) {
            error!(%error, %member, "the alarm CORRUPT is not raised; the next comparison finds the same");
        }
    }

    /// A member whose data is wrong serves nobody, and leads nobody: it would give its data to others.
    fn watch_quarantine(&mut self) {
        let status = self.status();
        let corrupt = |member: NodeId| {
            let alarm = AlarmType::Corrupt.into();
            let member_id = member.0;
            let raised = AlarmMember { member_id, alarm };
            self.parts.store.alarm(raised).is_some()
        };
        let quarantined = corrupt(self.parts.member);
        if quarantined && !self.quarantined {
            error!(
                "the alarm CORRUPT is raised for this member: it serves nobody from now on; when its data differs from \
                 the majority's, replace it by a new member with an empty data directory"
            );
        } else if self.quarantined && !quarantined {
            warn!("the alarm CORRUPT of this member is cleared: it serves again");
        }
        if quarantined && status.leader == Some(status.node) {
            let others = status.voters.iter().filter(|voter| **voter != status.node);
            if let Some(to) = others.copied().find(|voter| !corrupt(*voter)) {
                self.parts.replica.hand_over(to);
            }
        }
        self.quarantined = quarantined;
    }

    fn compact(&mut self) {
        let (now, leads) = (self.begun.elapsed(), self.leads());
        let revision = self.parts.store.revision();
        let Some(to) = self.compaction.poll(now, revision, leads) else {
            return;
        };
        let request = CompactionRequest {
            revision: to,
            physical: false,
        };
        match self.propose(Op::Compact(request)) {
            Ok(Ok(_)) => {
                info!(
                    revision = to,
                    "compacted history, as --auto-compaction-retention says"
                );
                self.compaction.done(now, to);
            }
            // By somebody else.
            Ok(Err(ApiError::Compacted)) => self.compaction.done(now, to),
            Ok(Err(error)) => {
                warn!(%error, revision = to, "history is not compacted; it is tried again")
            }
            Err(HostError::Stopped) => {}
            Err(error) => {
                warn!(%error, revision = to, "history is not compacted; it is tried again")
            }
        }
    }

    fn status(&self) -> GroupStatus {
        self.parts.replica.status()
    }

    fn leads(&self) -> bool {
        let status = self.status();
        status.leader == Some(status.node)
    }

    /// Waits for the outcome; the host bounds that.
    fn propose(&self, op: Op) -> Result<CommandOutput, HostError> {
        let (sender, receiver) = channel();
        let payload = Command { op: Some(op) }.encode_to_vec();
        // The receiver lives until the answer is there.
        let reply = Box::new(move |output| drop(sender.send(output)));
        self.parts.replica.propose(payload.into(), reply);
        receiver.recv().unwrap_or(Err(HostError::Stopped))
    }
}
