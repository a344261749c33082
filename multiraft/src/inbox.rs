//! The queue in front of the host thread, bounded per group in entries and in bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_log::{GroupId, Index, NodeId, SnapshotRef};
use raft_node::core::{Change, Message, SnapshotReport};

use crate::forward::ForwardMessage;
use crate::liveness::Beat;
use crate::transfer::{Arrived, TransferNews};
use crate::{HostError, Reply};

/// Counters that are kept from turn to turn; with more groups they are made anew.
const LOADS_KEPT_MAX: usize = 64;

/// Bounds of one group's inbox.
#[derive(Clone, Copy, Debug)]
pub struct InboxLimits {
    /// Proposals and reads that wait. Default 16,384.
    pub entries_max: usize,
    /// Bytes of the proposals that wait. Default 16 MiB.
    pub bytes_max: usize,
    /// Messages of peers that wait; more are lost, as on a network. Default 4,096.
    pub messages_max: usize,
}

impl Default for InboxLimits {
    fn default() -> Self {
        Self {
            entries_max: 16_384,
            bytes_max: 16 << 20,
            messages_max: 4_096,
        }
    }
}

/// What other threads ask of the host.
pub(crate) enum Request<O> {
    Propose {
        group: GroupId,
        payload: Bytes,
        reply: Reply<O>,
    },
    /// A change of the membership; boxed, for it is rare and large.
    Change {
        group: GroupId,
        change: Box<Change>,
        reply: Reply<O>,
    },
    Read {
        group: GroupId,
        done: Reply<()>,
    },
    Deliver {
        group: GroupId,
        from: NodeId,
        message: Message,
    },
    Forward {
        group: GroupId,
        from: NodeId,
        message: ForwardMessage,
    },
    /// A forwarded command that found no room: (boot, sequence, attempt).
    Refused {
        group: GroupId,
        from: NodeId,
        attempt: (u64, u64, u32),
    },
    Call {
        group: GroupId,
        payload: Bytes,
        reply: Reply<Bytes>,
    },
    Make {
        group: GroupId,
        reply: Reply<SnapshotRef>,
    },
    /// A snapshot is made, or was not; at most one of a group is under way.
    Made {
        group: GroupId,
        result: Result<SnapshotRef, HostError>,
    },
    Hold {
        group: GroupId,
        hold: bool,
    },
    /// The state is wrong, and is to be replaced.
    Replace {
        group: GroupId,
        reply: Reply<()>,
    },
    /// It is not to be replaced any more.
    Keep {
        group: GroupId,
    },
    /// A member waits for another state.
    Send {
        group: GroupId,
        to: NodeId,
        above: Index,
        reply: Reply<bool>,
    },
    /// How the transfer of a snapshot goes; it ends once.
    Transfer {
        group: GroupId,
        news: TransferNews,
    },
    /// A snapshot was received. The store lets one of a group be under way.
    Arrived {
        group: GroupId,
        arrived: Box<Arrived>,
    },
    /// A beat of a member's store.
    Beat {
        from: NodeId,
        beat: Beat,
    },
    /// How far the members' logs are known to reach.
    Matched {
        group: GroupId,
        reply: Reply<Vec<(NodeId, Index)>>,
    },
    /// Leadership is to move.
    HandOver {
        group: GroupId,
        to: NodeId,
    },
    /// Groups wait to join.
    Join,
    /// A call is done. Who makes calls bounds their number.
    Called {
        group: GroupId,
        from: NodeId,
        boot: u64,
        id: u64,
        answer: Option<Bytes>,
    },
}

#[derive(Clone, Copy, Default)]
struct Load {
    entries: usize,
    bytes: usize,
    messages: usize,
    /// Of the messages, those that hold a client's command or call.
    forwarded_bytes: usize,
}

struct Queue<O> {
    requests: Vec<Request<O>>,
    loads: BTreeMap<GroupId, Load>,
    stopping: bool,
}

/// The queue, and whoever must be woken when it is filled.
pub(crate) struct Inbox<O> {
    queue: Mutex<Queue<O>>,
    limits: InboxLimits,
    full: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<O> Inbox<O> {
    pub(crate) fn new(limits: InboxLimits, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let queue = Queue {
            requests: Vec::new(),
            loads: BTreeMap::new(),
            stopping: false,
        };
        Self {
            queue: Mutex::new(queue),
            limits,
            full: AtomicBool::new(false),
            wake,
        }
    }

    /// Queues a request, or gives it back with the reason. A message past the bound is lost without an error.
    pub(crate) fn push(&self, mut request: Request<O>) -> Result<(), (Request<O>, HostError)> {
        let mut queue = self.lock();
        if queue.stopping {
            return Err((request, HostError::Stopped));
        }
        let limits = self.limits;
        match &request {
            Request::Propose { group, .. } | Request::Change { group, .. } => {
                if self.full.load(Ordering::Relaxed) {
                    return Err((request, HostError::NoSpace));
                }
                let load = queue.loads.entry(*group).or_default();
                if load.entries >= limits.entries_max || load.bytes >= limits.bytes_max {
                    return Err((request, HostError::Busy));
                }
                load.entries += 1;
                load.bytes += match &request {
                    Request::Propose { payload, .. } => payload.len(),
                    Request::Change { change, .. } => change.context.len(),
                    _ => 0,
                };
            }
            Request::Read { group, .. }
            | Request::Make { group, .. }
            | Request::Hold { group, .. }
            | Request::Matched { group, .. }
            | Request::Replace { group, .. }
            | Request::Keep { group }
            | Request::Send { group, .. }
            | Request::HandOver { group, .. } => {
                let load = queue.loads.entry(*group).or_default();
                if load.entries >= limits.entries_max {
                    return Err((request, HostError::Busy));
                }
                load.entries += 1;
            }
            Request::Transfer { group, news } if news.report == SnapshotReport::Moving => {
                let load = queue.loads.entry(*group).or_default();
                if load.messages >= limits.messages_max {
                    return Ok(());
                }
                load.messages += 1;
            }
            // Counted for the group that is no member's.
            Request::Beat { .. } => {
                let load = queue.loads.entry(GroupId(0)).or_default();
                if load.messages >= limits.messages_max {
                    return Ok(());
                }
                load.messages += 1;
            }
            Request::Deliver { group, .. } => {
                let load = queue.loads.entry(*group).or_default();
                if load.messages >= limits.messages_max {
                    return Ok(());
                }
                load.messages += 1;
            }
            Request::Forward {
                group,
                from,
                message,
            } => {
                let load = queue.loads.entry(*group).or_default();
                if load.messages >= limits.messages_max {
                    return Ok(());
                }
                load.messages += 1;
                let no_space = self.full.load(Ordering::Relaxed);
                let no_room = load.forwarded_bytes >= limits.bytes_max;
                match message {
                    // Who sent it hears that it was not proposed, so that it can try again.
                    ForwardMessage::Propose {
                        boot,
                        sequence,
                        attempt,
                        ..
                    } if no_space || no_room => {
                        request = Request::Refused {
                            group: *group,
                            from: *from,
                            attempt: (*boot, *sequence, *attempt),
                        };
                    }
                    _ if no_room && message.cost() > 0 => return Ok(()),
                    _ => load.forwarded_bytes += message.cost(),
                }
            }
            Request::Call { group, payload, .. } => {
                let load = queue.loads.entry(*group).or_default();
                if load.entries >= limits.entries_max || load.bytes >= limits.bytes_max {
                    return Err((request, HostError::Busy));
                }
                load.entries += 1;
                load.bytes += payload.len();
            }
            Request::Refused { .. }
            | Request::Called { .. }
            | Request::Join
            | Request::Made { .. }
            | Request::Transfer { .. }
            | Request::Arrived { .. } => {}
        }
        queue.requests.push(request);
        let first = queue.requests.len() == 1;
        drop(queue);
        // Only the first request of a batch wakes the host: it takes all that is there.
        if first {
            (self.wake)();
        }
        Ok(())
    }

    /// Takes everything; `into` must be empty and its allocation is reused.
    pub(crate) fn take(&self, into: &mut Vec<Request<O>>) {
        debug_assert!(into.is_empty());
        let mut queue = self.lock();
        if queue.requests.is_empty() {
            return;
        }
        std::mem::swap(&mut queue.requests, into);
        if queue.loads.len() > LOADS_KEPT_MAX {
            queue.loads.clear();
        }
        for load in queue.loads.values_mut() {
            *load = Load::default();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().requests.is_empty()
    }

    /// Refuses everything from now on, and wakes the host.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        (self.wake)();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// While the disk is full, proposals are refused before they are queued.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue<O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
