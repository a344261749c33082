//! The thread that looks after a member: it reads the clock, asks `crate::upkeep` what is due, and proposes it.
#![expect(
    clippy::disallowed_methods,
    reason = "this is where the time comes from; what it leads to is an entry of the log"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
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
use crate::lease::{decode_answer, encode_call};
use crate::mvcc::{CommandOutput, Store};
use crate::pb::command::{CheckState, Command, SetAlarm, command::Op};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, alarm_request::AlarmAction,
};
use crate::pb::peer::{SendState, lease_call};
use crate::upkeep::{
    AutoCompaction, CompactionSchedule, Finding, QuotaAct, QuotaLook, QuotaWatch, Rebuild,
    RebuildAct, RebuildLook,
};

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The shortest: whatever is asked for, a look costs next to nothing.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// What a member does on its own.
#[derive(Clone, Debug, Default)]
pub struct UpkeepConfig {
    /// Which history is kept. Default all.
    pub auto_compaction: AutoCompaction,
    /// Bytes that each keyspace of this member may take. Default 0: no bound but the disk's.
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
            rebuild: Rebuild::default(),
            requests: 0,
            news: channel(),
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
    rebuild: Rebuild,
    /// How often it was asked that the state is replaced.
    requests: u64,
    news: (Sender<News>, Receiver<News>),
    parts: Parts,
}

/// What became of what the rebuild of this member's state asked for.
enum News {
    /// The leader answers whether it begins to send a snapshot.
    Answered(bool),
    /// One has taken the place of the state, or will not, after the request of this number.
    Over { request: u64, is_replaced: bool },
}

impl Rounds {
    /// Does what is due, and says how long nothing will be.
    fn look(&mut self) -> Duration {
        self.watch_quota();
        self.compare_states();
        self.watch_quarantine();
        self.rebuild();
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
            used: self.parts.quota.size().bytes,
            share: self.parts.quota.share(),
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
            automatic: true,
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
        let members = status.voters.iter().chain(&status.learners).copied();
        let doubted: Vec<_> = members.filter(|id| self.found_wrong(*id)).collect();
        let findings = reports.judge(now, &status.voters, &status.learners, &doubted);
        drop(reports);
        for finding in findings {
            match finding {
                Finding::Equal(index) => debug!(%index, "all members have the same state"),
                Finding::Minority(index, members) => {
                    for member in members {
                        error!(%index, %member, "the state of a member differs from the majority's");
                        self.set_corrupt(member, AlarmAction::Activate);
                    }
                }
                Finding::Recovered(index, members) => {
                    for member in members {
                        warn!(%index, %member, "the state of a member is the majority's again");
                        self.set_corrupt(member, AlarmAction::Deactivate);
                    }
                }
                Finding::NoMajority(index) => {
                    error!(%index, "the states of members differ, and none has a majority");
                    self.set_corrupt(NodeId(0), AlarmAction::Activate);
                }
            }
        }
    }

    /// Whether the alarm CORRUPT is raised for a member, and then whether a comparison raised it.
    fn corrupt(&self, member: NodeId) -> Option<bool> {
        self.parts.store.alarm(AlarmMember {
            member_id: member.0,
            alarm: AlarmType::Corrupt.into(),
        })
    }

    /// A comparison found the member's state wrong, while the majority's is right.
    fn found_wrong(&self, member: NodeId) -> bool {
        self.corrupt(member) == Some(true) && self.corrupt(NodeId(0)).is_none()
    }

    /// Raises or clears the alarm CORRUPT; for member 0, that of the whole cluster.
    fn set_corrupt(&self, member: NodeId, action: AlarmAction) {
        let request = AlarmRequest {
            action: action.into(),
            member_id: member.0,
            alarm: AlarmType::Corrupt.into(),
        };
        let command = SetAlarm {
            request: Some(request),
            automatic: true,
        };
        if let Err(error) = self.propose(Op::SetAlarm(command)) {
            error!(%error, %member, "the alarm CORRUPT is not set; the next comparison finds the same");
        }
    }

    /// A member whose data is wrong serves nobody, and leads nobody: it would give its data to others. So it does not
    /// record either what its leases have left.
    fn watch_quarantine(&mut self) {
        let status = self.status();
        let quarantined = self.corrupt(self.parts.member).is_some();
        if quarantined && !self.quarantined {
            error!(
                "the alarm CORRUPT is raised for this member: it serves nobody from now on; when a comparison has raised \
                 it, the data is taken anew from the leader"
            );
        } else if self.quarantined && !quarantined {
            warn!("the alarm CORRUPT of this member is cleared: it serves again");
        }
        if quarantined && status.leader == Some(status.node) {
            let others = status.voters.iter().filter(|voter| **voter != status.node);
            if let Some(to) = others.copied().find(|voter| self.corrupt(*voter).is_none()) {
                self.parts.replica.hand_over(to);
            }
        }
        self.quarantined = quarantined;
    }

    /// Gets the state anew that a comparison found wrong.
    fn rebuild(&mut self) {
        let now = self.begun.elapsed();
        while let Ok(news) = self.news.1.try_recv() {
            match news {
                News::Answered(begins) => self.rebuild.answered(now, begins),
                News::Over {
                    request,
                    is_replaced,
                } => {
                    if is_replaced {
                        if let Err(error) = self.parts.engine.persist() {
                            // The next write meets the same error and stops the member.
                            return error!(%error, "this member's new data is not durable");
                        }
                        warn!(
                            "this member's data was taken anew from the leader; it is compared with the others'"
                        );
                        self.rebuild.replaced(now);
                    }
                    if request == self.requests {
                        self.parts.reports.be_silent(false);
                    }
                }
            }
        }
        let status = self.status();
        let look = RebuildLook {
            wrong: self.found_wrong(self.parts.member),
            follows: status.leader.is_some_and(|leader| leader != status.node),
            waits: status.wants_state_above.is_some(),
        };
        let GroupReplica { handle, group } = &self.parts.replica;
        let news = self.news.0.clone();
        match self.rebuild.look(now, look) {
            None => {}
            Some(RebuildAct::Begin) => {
                warn!(
                    "nothing is applied any more until this member's data was taken anew from the leader"
                );
                self.requests += 1;
                self.parts.reports.be_silent(true);
                let request = self.requests;
                let reply = Box::new(move |replaced: Result<(), HostError>| {
                    let is_replaced = replaced.is_ok();
                    // Who is not there any more needs no news.
                    drop(news.send(News::Over {
                        request,
                        is_replaced,
                    }));
                });
                handle.replace_state(*group, reply);
            }
            Some(RebuildAct::Ask) => {
                let wanted = SendState {
                    member: self.parts.member.0,
                    above: status.wants_state_above.unwrap_or_default().0,
                };
                let reply = Box::new(move |answer: Result<Bytes, HostError>| {
                    if let Some(begins) = answer.ok().and_then(decode_answer) {
                        drop(news.send(News::Answered(begins == 1)));
                    }
                });
                let call = encode_call(lease_call::Op::SendState(wanted));
                handle.call_leader(*group, call, reply);
            }
            Some(RebuildAct::CallOff) => handle.keep_state(*group),
            Some(RebuildAct::Compare) => {
                if let Err(error) = self.propose(Op::CheckState(CheckState {})) {
                    debug!(%error, "the states of members are not compared now; it is tried again");
                }
            }
            Some(RebuildAct::GiveUp) => error!(
                "this member's data could not be taken anew from the leader, or was wrong again: replace it by a new member \
                 with an empty data directory"
            ),
        }
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
