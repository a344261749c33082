//! The way of a snapshot from a leader to a member that lags, as far as the host sees it.
//!
//! The host finds or makes the snapshot, holds the log, and gives a [`SnapshotTransfer`] to the outbox. Who carries it
//! sends the chunks of [`SnapshotTransfer::open`], says [`SnapshotTransfer::moving`] now and then, and ends with
//! [`SnapshotTransfer::taken`]; dropped before, it has failed, and the member is served again when it shows a sign of
//! life. On the other side [`begin_receive`] says whether it is of use and takes the chunks, and what comes out of that
//! goes to [`crate::HostHandle::deliver_snapshot`], whose answer is what ends the transfer.
//!
//! One transfer per group and member counts; a later one makes the earlier one unwanted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_log::snapshot::{
    PendingSnapshot, SnapshotError, SnapshotManifest, SnapshotReceiver, SnapshotSender,
    SnapshotStore,
};
use raft_log::{GroupId, Index, Log, NodeId, SnapshotRef, Term};
use raft_node::core::SnapshotReport;

use crate::Reply;

/// What the host is told of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransferNews {
    pub(crate) to: NodeId,
    pub(crate) attempt: u64,
    pub(crate) report: SnapshotReport,
    /// The number of a snapshot whose file is of no use.
    pub(crate) unusable: Option<u64>,
}

type Tell = Box<dyn Fn(TransferNews) + Send + Sync>;

/// A snapshot that a member is to get. Dropped before it is [taken](Self::taken), its transfer has failed.
pub struct SnapshotTransfer {
    group: GroupId,
    to: NodeId,
    sent_in: Term,
    snapshot: SnapshotRef,
    store: SnapshotStore,
    attempt: u64,
    wanted: Arc<AtomicBool>,
    unusable: AtomicBool,
    tell: Option<Tell>,
}

impl SnapshotTransfer {
    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The member that needs it.
    #[must_use]
    pub fn to(&self) -> NodeId {
        self.to
    }

    /// The term in which this member leads; the receiver's host is told it.
    #[must_use]
    pub fn sent_in(&self) -> Term {
        self.sent_in
    }

    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &SnapshotRef {
        &self.snapshot
    }

    /// Opens the file for sending. Where that fails, the next transfer is of another snapshot.
    ///
    /// # Errors
    /// As [`SnapshotStore::send`].
    pub fn open(&self) -> Result<SnapshotSender, SnapshotError> {
        let opened = self.store.send(self.group, &self.snapshot);
        if opened.is_err() {
            self.unusable.store(true, Ordering::Relaxed);
        }
        opened
    }

    /// A chunk of [`SnapshotTransfer::open`] could not be read: the next transfer is of another snapshot.
    pub fn unusable(self) {
        self.unusable.store(true, Ordering::Relaxed);
    }

    /// False when it is better dropped: another transfer to the member has begun.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Something of it arrived: its log is held for longer. To be called every few seconds; without news for a minute
    /// the transfer counts as failed.
    pub fn moving(&self) {
        self.say(SnapshotReport::Moving);
    }

    /// The receiver's host has answered that its log begins after the snapshot, or that it has what that covers.
    pub fn taken(mut self) {
        self.say(SnapshotReport::Taken(self.snapshot.index));
        self.tell = None;
    }

    fn say(&self, report: SnapshotReport) {
        if let Some(tell) = &self.tell {
            let unusable = self.unusable.load(Ordering::Relaxed);
            tell(TransferNews {
                to: self.to,
                attempt: self.attempt,
                report,
                unusable: unusable.then_some(self.snapshot.number),
            });
        }
    }
}

impl Drop for SnapshotTransfer {
    fn drop(&mut self) {
        self.say(SnapshotReport::Failed);
    }
}

impl fmt::Debug for SnapshotTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotTransfer")
            .field("group", &self.group)
            .field("to", &self.to)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// Begins to receive a snapshot, or goes on where an earlier receive was cut short; none when the log has what it covers,
/// which is as good as taken. A member whose state is to be replaced takes one from above `wanted_above` all the same
/// ([`crate::GroupStatus::wants_state_above`]).
///
/// # Errors
/// As [`SnapshotStore::receive`]; and of a group that this store does not have.
pub fn begin_receive(
    log: &Log,
    store: &SnapshotStore,
    manifest: SnapshotManifest,
    wanted_above: Option<Index>,
) -> Result<Option<SnapshotReceiver>, SnapshotError> {
    let (group, snapshot) = (manifest.group, &manifest.snapshot);
    let Some(info) = log.group(group) else {
        let what = format!("group {group} does not exist here");
        return Err(SnapshotError::Stale { group, what });
    };
    let covered = info.base.index >= snapshot.index
        || log.term_at(group, snapshot.index) == Some(snapshot.term);
    if covered && wanted_above.is_none_or(|above| snapshot.index <= above) {
        return Ok(None);
    }
    store.receive(manifest, info.base.creation).map(Some)
}

/// A snapshot that was received, with its file durable.
pub(crate) struct Arrived {
    pub(crate) from: NodeId,
    pub(crate) sent_in: Term,
    pub(crate) pending: PendingSnapshot,
    pub(crate) reply: Reply<()>,
}

struct Running {
    attempt: u64,
    wanted: Arc<AtomicBool>,
}

/// The transfers that this host's leaders have begun.
#[derive(Default)]
pub(crate) struct Transfers {
    running: BTreeMap<(GroupId, NodeId), Running>,
    /// Members that wait for a snapshot that is in the making.
    waiting: BTreeMap<(GroupId, NodeId), Term>,
    unusable: BTreeMap<GroupId, u64>,
    /// The number of the snapshot that was last sent to a member.
    sent: BTreeMap<(GroupId, NodeId), u64>,
    last_attempt: u64,
}

impl Transfers {
    /// The snapshot that can be sent now, if there is one from whose index on the log has everything.
    pub(crate) fn existing(&self, log: &Log, group: GroupId) -> Option<SnapshotRef> {
        let info = log.group(group)?;
        let snapshot = info.snapshot?;
        let is_usable = self.unusable.get(&group) != Some(&snapshot.number);
        (snapshot.index >= info.base.index && snapshot.index > Index::ZERO && is_usable)
            .then_some(snapshot)
    }

    /// The number of a snapshot of the group that cannot be read.
    pub(crate) fn unusable(&self, group: GroupId) -> Option<u64> {
        self.unusable.get(&group).copied()
    }

    /// True while a member is served, or waits for the snapshot that is in the making.
    pub(crate) fn is_under_way(&self, group: GroupId, to: NodeId) -> bool {
        self.running.contains_key(&(group, to)) || self.waiting.contains_key(&(group, to))
    }

    pub(crate) fn wait(&mut self, group: GroupId, to: NodeId, sent_in: Term) {
        self.waiting.insert((group, to), sent_in);
    }

    /// Members of a group that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (GroupId, NodeId)> + '_ {
        self.waiting.keys().copied()
    }

    /// The snapshot is made, or was not: those who waited for it.
    pub(crate) fn take_waiting(&mut self, group: GroupId) -> Vec<(NodeId, Term)> {
        let members = (group, NodeId(0))..=(group, NodeId(u64::MAX));
        let keys: Vec<_> = self.waiting.range(members).map(|(key, _)| *key).collect();
        let taken = keys.into_iter().map(|key| {
            let term = self.waiting.remove(&key).expect("the key was just seen");
            (key.1, term)
        });
        taken.collect()
    }

    /// True when no transfer of this snapshot to the member was tried yet.
    pub(crate) fn is_first(&mut self, group: GroupId, to: NodeId, number: u64) -> bool {
        self.sent.insert((group, to), number) != Some(number)
    }

    /// A transfer of `snapshot` begins; an earlier one to the member is not wanted any more.
    pub(crate) fn begin(
        &mut self,
        store: &SnapshotStore,
        group: GroupId,
        (to, sent_in): (NodeId, Term),
        snapshot: SnapshotRef,
        tell: Tell,
    ) -> SnapshotTransfer {
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        let wanted = Arc::new(AtomicBool::new(true));
        let running = Running {
            attempt,
            wanted: Arc::clone(&wanted),
        };
        if let Some(former) = self.running.insert((group, to), running) {
            former.wanted.store(false, Ordering::Relaxed);
        }
        SnapshotTransfer {
            group,
            to,
            sent_in,
            snapshot,
            store: store.clone(),
            attempt,
            wanted,
            unusable: AtomicBool::new(false),
            tell: Some(tell),
        }
    }

    /// News of a transfer: what the core is to hear of it. Of one that is not wanted any more only that it was taken.
    pub(crate) fn news(&mut self, group: GroupId, news: TransferNews) -> Option<SnapshotReport> {
        if let Some(number) = news.unusable {
            self.unusable.insert(group, number);
        }
        let key = (group, news.to);
        let is_current = self
            .running
            .get(&key)
            .is_some_and(|running| running.attempt == news.attempt);
        if is_current && news.report != SnapshotReport::Moving {
            self.running.remove(&key);
        }
        let is_taken = matches!(news.report, SnapshotReport::Taken(_));
        (is_current || is_taken).then_some(news.report)
    }
}
