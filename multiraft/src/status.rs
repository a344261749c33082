//! What other threads see of a group, without asking the host thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use raft_log::{Index, NodeId, Term};

use crate::{HostError, Reply};

/// What a group looks like from outside, published by the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// This member.
    pub node: NodeId,
    /// The current term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// How often a leader was seen to begin since this member started.
    pub leader_changes: u64,
    /// The last index in the log.
    pub last_index: Index,
    /// The commit index.
    pub commit: Index,
    /// The applied index.
    pub applied: Index,
    /// The voters.
    pub voters: Vec<NodeId>,
    /// The learners.
    pub learners: Vec<NodeId>,
    /// The log was begun anew after damage, and this member does not vote before it has caught up.
    pub guarded: bool,
    /// This member's state is to be replaced: it applies nothing after this index, and waits for a snapshot from above it.
    pub wants_state_above: Option<Index>,
    /// Whom this member hands its leadership over to at this moment.
    pub transferring: Option<NodeId>,
}

/// A group's state as the host thread last published it, and the readers that wait for it to advance.
///
/// A sole voter needs no round to read: whatever was acknowledged before the read began was committed here. So a reader
/// loads `serving` first, then `commit`, and waits until `applied` has reached that commit. The order of the loads is
/// the argument: all that was acknowledged when `serving` was seen lies at or below the commit loaded after it.
#[derive(Default)]
pub(crate) struct Published {
    serving: AtomicBool,
    commit: AtomicU64,
    applied: AtomicU64,
    term: AtomicU64,
    learns: AtomicBool,
    waiting: AtomicUsize,
    waiters: Mutex<Vec<(Index, Reply<()>)>>,
    status: Mutex<GroupStatus>,
}

impl Published {
    /// Host thread: publishes the commit index before anything that depends on it leaves the process.
    pub(crate) fn set_commit(&self, serving: bool, commit: Index) {
        self.commit.store(commit.0, Ordering::SeqCst);
        self.serving.store(serving, Ordering::SeqCst);
    }

    /// Host thread: publishes the rest and releases the readers that waited for it.
    pub(crate) fn set_status(&self, mut status: GroupStatus) {
        let applied = status.applied;
        self.term.store(status.term.0, Ordering::Relaxed);
        let learns = status.learners.contains(&status.node);
        self.learns.store(learns, Ordering::Relaxed);
        self.applied.store(applied.0, Ordering::SeqCst);
        {
            let mut published = lock(&self.status);
            let begins = status.leader.is_some() && status.leader != published.leader;
            status.leader_changes = published.leader_changes + u64::from(begins);
            *published = status;
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.release(applied);
        }
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Relaxed))
    }

    pub(crate) fn learns(&self) -> bool {
        self.learns.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> GroupStatus {
        lock(&self.status).clone()
    }

    /// True when a read of local state is linearizable now.
    pub(crate) fn read_now(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
            && self.commit.load(Ordering::SeqCst) <= self.applied.load(Ordering::SeqCst)
    }

    /// Calls `done` once a read of local state is linearizable; gives it back when that takes a round of the group.
    pub(crate) fn read(&self, done: Reply<()>) -> Option<Reply<()>> {
        if !self.serving.load(Ordering::SeqCst) {
            return Some(done);
        }
        let commit = Index(self.commit.load(Ordering::SeqCst));
        if commit.0 <= self.applied.load(Ordering::SeqCst) {
            done(Ok(()));
            return None;
        }
        lock(&self.waiters).push((commit, done));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // The host may have published between the load and the push.
        let applied = Index(self.applied.load(Ordering::SeqCst));
        if commit <= applied {
            self.release(applied);
        }
        None
    }

    /// Fails all readers that wait.
    pub(crate) fn fail(&self, error: &HostError) {
        self.serving.store(false, Ordering::SeqCst);
        let waiters = std::mem::take(&mut *lock(&self.waiters));
        self.waiting.fetch_sub(waiters.len(), Ordering::SeqCst);
        for (_, done) in waiters {
            done(Err(error.clone()));
        }
    }

    fn release(&self, applied: Index) {
        let ready: Vec<_> = {
            let mut waiters = lock(&self.waiters);
            let (ready, waiting) = waiters.drain(..).partition(|(index, _)| *index <= applied);
            *waiters = waiting;
            ready
        };
        self.waiting.fetch_sub(ready.len(), Ordering::SeqCst);
        for (_, done) in ready {
            done(Ok(()));
        }
    }
}

/// A panic of another holder leaves nothing half done in these fields.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
