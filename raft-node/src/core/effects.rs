//! What a core is told, and what it wants done.

use bytes::Bytes;

use super::change::{Change, ChangeError};
use super::message::{Body, Message};
use super::snapshot::{Snapshot, SnapshotReport, SnapshotVerdict};
use crate::{Entry, EntryKind, HardState, Index, NodeId, Term};

/// Names a persist batch. Dense; completions come back in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistId(pub u64);

/// What happens to a core.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed.
    Tick {
        /// Ticks since the last one; 0 when the clock was read and says the same.
        ticks: u64,
    },
    /// A message arrived.
    Message {
        /// Its sender.
        from: NodeId,
        /// The message.
        message: Message,
    },
    /// A command to be replicated.
    Propose {
        /// Comes back in [`Effects::proposed`] or [`Effects::dropped`]; none when nobody waits.
        token: Option<u64>,
        /// [`EntryKind::Normal`]; a change of the membership is an [`Input::Change`].
        kind: EntryKind,
        /// The payload.
        payload: Bytes,
    },
    /// A linearizable read.
    Read {
        /// Comes back in [`Effects::reads_ready`] or [`Effects::dropped`].
        token: u64,
    },
    /// A linearizable read that may go through the leader: also for members that follow, and for learners.
    ReadAnywhere {
        /// Comes back in [`Effects::reads_ready`] or [`Effects::dropped`].
        token: u64,
    },
    /// A persist batch is durable.
    Persisted(PersistId),
    /// The state machine has applied up to here.
    Applied(Index),
    /// A change of the membership.
    Change {
        /// Comes back in [`Effects::proposed`] or [`Effects::dropped`].
        token: u64,
        /// What is to change.
        change: Change,
    },
    /// The answer to a [`Fetch`].
    EntriesFetched {
        /// The member that needs them.
        to: NodeId,
        /// Contiguous entries from the index that was asked for; possibly fewer.
        entries: Vec<Entry>,
    },
    /// A member could not be reached: what was sent to it may be lost.
    Unreachable {
        /// The member.
        to: NodeId,
    },
    /// A snapshot is here: its content is durable, and nothing refers to it yet. What becomes of it is in
    /// [`Effects::snapshot`] after the step.
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// The term in which that member leads, or led when it sent it.
        sent_in: Term,
        /// The snapshot.
        snapshot: Snapshot,
    },
    /// How the transfer of a snapshot goes that [`Effects::needs_snapshot`] asked for.
    SnapshotReport {
        /// The member that needs it.
        to: NodeId,
        /// What is known.
        report: SnapshotReport,
    },
    /// Campaign now, without asking first, and although a leader may be there.
    Campaign,
    /// Hand leadership over to another voter. Proposals are refused until that has happened or was given up.
    Transfer {
        /// The member that is to lead.
        to: NodeId,
    },
}

impl Input {
    /// True for what wakes nobody.
    pub(super) fn is_restful(&self) -> bool {
        match self {
            Self::Tick { .. } => true,
            Self::Message { message, .. } => matches!(
                message.body,
                Body::Sleep { .. } | Body::SleepReply { .. } | Body::HeartbeatReply { .. }
            ),
            _ => false,
        }
    }
}

/// Why a proposal or a read came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// This member does not lead; the leader, if known, is named.
    NotLeader(Option<NodeId>),
    /// Too much is uncommitted, or leadership is being handed over.
    Busy,
    /// This member led when the read arrived and does not any more.
    LeaderChanged,
    /// The change of the membership is not allowed, now or at all.
    Change(ChangeError),
}

impl From<ChangeError> for DropReason {
    fn from(error: ChangeError) -> Self {
        Self::Change(error)
    }
}

/// What must become durable, all of it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistBatch {
    /// Given back in [`Input::Persisted`].
    pub id: PersistId,
    /// The hard state, when term or vote changed; it carries the commit index along.
    pub hard_state: Option<HardState>,
    /// The log begins anew after this snapshot: everything in it is gone. The batch makes the log refer to the snapshot.
    pub restart: Option<Snapshot>,
    /// The first index that is gone; none when the log begins anew.
    pub truncate_from: Option<Index>,
    /// Entries that follow what the log holds after the restart or the truncation.
    pub entries: Vec<Entry>,
}

/// Entries that a member needs and that are no longer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The member.
    pub to: NodeId,
    /// The first index.
    pub from: Index,
    /// One past the last index.
    pub end: Index,
    /// Payload bytes at most, plus one entry.
    pub bytes_max: usize,
}

/// What a core wants done. The caller owns it, so that its buffers are reused.
#[derive(Debug, Default)]
pub struct Effects {
    /// May leave at once.
    pub send_now: Vec<(NodeId, Message)>,
    /// May leave once the batch is durable.
    pub send_after: Vec<(PersistId, NodeId, Message)>,
    /// Must become durable. Set by [`super::Core::ready`] only.
    pub persist: Option<PersistBatch>,
    /// The commit index moved to here.
    pub commit: Option<Index>,
    /// Reads that may be served once the index is applied.
    pub reads_ready: Vec<(u64, Index)>,
    /// Proposals that got a place in the log; whether they keep it is seen when they are applied.
    pub proposed: Vec<(u64, Index, Term)>,
    /// Proposals and reads that came to nothing.
    pub dropped: Vec<(u64, DropReason)>,
    /// Entries to fetch.
    pub fetch: Vec<Fetch>,
    /// The membership entry at this index, which a leader sent, cannot be read: this member cannot go on.
    pub unreadable: Option<Index>,
    /// The guard of this incarnation of the log has ended, which may be stored; see [`super::Incarnation`].
    pub repaired: Option<u64>,
    /// Members that need entries which the log no longer holds: each is to get a snapshot of the log's base or above it.
    /// Say by [`Input::SnapshotReport`] what becomes of that. Who hears nothing for [`super::Config::snapshot_ticks_max`]
    /// asks again.
    pub needs_snapshot: Vec<NodeId>,
    /// What becomes of the snapshot that was received in the last step.
    pub snapshot: Option<SnapshotVerdict>,
    /// Buffers for entries.
    pub(super) spare: Spare,
}

impl Effects {
    /// Takes the buffer of a message or of a persist batch back, for the next one.
    pub fn recycle(&mut self, entries: Vec<Entry>) {
        self.spare.give(entries);
    }
}

/// Buffers at most that are kept, and entries at most in each: a burst must not stay in memory.
const SPARES_MAX: usize = 16;
const SPARE_ENTRIES_MAX: usize = 1_024;

/// Empty buffers.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Vec<Entry>>);

impl Spare {
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.0.pop().unwrap_or_default()
    }

    fn give(&mut self, mut entries: Vec<Entry>) {
        let capacity = entries.capacity();
        if capacity > 0 && capacity <= SPARE_ENTRIES_MAX && self.0.len() < SPARES_MAX {
            entries.clear();
            self.0.push(entries);
        }
    }
}
