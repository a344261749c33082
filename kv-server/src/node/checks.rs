//! Hashes the state on a thread of its own when an entry asks for it, and reports to the leader, which sends its own to who
//! is wrong.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use multiraft::HostError;
use raft_log::{Index, NodeId};
use tracing::{debug, warn};

use super::GroupReplica;
use crate::api::Replica;
use crate::lease::{StateReports, StateSent, encode_call};
use crate::mvcc::{CheckSink, StateCut, Store};
use crate::pb::peer::{StateHash, lease_call};
use crate::upkeep::{StateChecks, Verdict};

/// Gives cuts to the thread, one at a time: each keeps superseded values alive until it is hashed.
pub(super) struct Cuts(SyncSender<StateCut>);

impl CheckSink for Cuts {
    fn cut(&self, cut: StateCut) {
        if let Err(error) = self.0.try_send(cut) {
            debug!(%error, "the state is not hashed: the one before is not done");
        }
    }
}

/// What members report, where the thread that looks after the member judges it.
pub(super) struct Reports {
    checks: Mutex<StateChecks>,
    silent: AtomicBool,
}

impl Reports {
    pub(super) fn new(checks: StateChecks) -> Self {
        Self {
            checks: Mutex::new(checks),
            silent: AtomicBool::new(false),
        }
    }

    /// Whether this member reports nothing of its own state: one that took the place of a wrong one and is not durable yet may
    /// be the wrong one again after a crash, and nobody must have called it right.
    pub(super) fn be_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }

    /// No call leaves it half changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, StateChecks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this member does for the others' states while it leads.
pub(super) struct Answers {
    pub(super) member: NodeId,
    pub(super) reports: Arc<Reports>,
    pub(super) replica: GroupReplica,
    pub(super) store: Arc<Store>,
}

impl StateReports for Answers {
    fn report(&self, member: NodeId, index: Index, hash: u64) {
        self.reports.lock().report(member, index, hash);
    }

    fn verdict(&self, member: NodeId, above: Index) -> Verdict {
        let status = self.replica.status();
        self.reports.lock().verdict(member, above, &status.voters)
    }

    fn send_state(&self, member: NodeId, above: Index, done: StateSent) {
        if self.store.is_corrupt(self.member.0) {
            // It is about to hand over.
            return done(None);
        }
        let reply = Box::new(move |sent: Result<bool, HostError>| match sent {
            Ok(begins) => done(Some(begins)),
            Err(error) => {
                debug!(%error, %member, "a member does not get this one's state now");
                done(None);
            }
        });
        let GroupReplica { handle, group } = &self.replica;
        handle.send_state(*group, member, above, reply);
    }
}

/// Where cuts go, and where they come out.
pub(super) fn cuts() -> (Arc<Cuts>, Receiver<StateCut>) {
    let (sender, receiver) = sync_channel(1);
    (Arc::new(Cuts(sender)), receiver)
}

/// The thread. It ends with the state machine that gives it cuts.
pub(super) struct Hasher {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Hasher {
    pub(super) fn start(
        member: NodeId,
        cuts: Receiver<StateCut>,
        replica: GroupReplica,
        reports: Arc<Reports>,
    ) -> io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopped);
        let thread = std::thread::Builder::new()
            .name("flotilla-hash".to_owned())
            .spawn(move || {
                for cut in cuts {
                    // Looked at after the cut: what is hashed is durable, then.
                    if reports.is_silent() {
                        debug!("the state is not hashed: it is being replaced");
                        continue;
                    }
                    hash(member, cut, &replica, &told);
                }
            })?;
        Ok(Self { stopped, thread })
    }

    /// Lets it leave what it does.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Waits for the end; call it after the host was stopped.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that hashes the state panicked");
        }
    }
}

fn hash(member: NodeId, cut: StateCut, replica: &GroupReplica, stopped: &AtomicBool) {
    let index = cut.index();
    let hash = match cut.hash(stopped) {
        Ok(Some(hash)) => hash,
        Ok(None) => return,
        // Whoever reads the same place meets the same error, and says so to its client.
        Err(error) => return warn!(%error, %index, "the state cannot be hashed"),
    };
    debug!(%index, hash = format!("{hash:016x}"), "hashed the state");
    let report = StateHash {
        member: member.0,
        index: index.0,
        hash,
    };
    let call = encode_call(lease_call::Op::StateHash(report));
    // One that is lost is waited for in vain; the next comparison comes.
    replica.call_leader(call, Box::new(|_| {}));
}
