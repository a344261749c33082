//! How other threads reach the host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use raft_log::snapshot::PendingSnapshot;
use raft_log::{GroupId, Index, NodeId, SnapshotRef, Term};
use raft_node::StateMachine;
use raft_node::core::{Change, Message};
use raft_node::driver::Group;

use crate::forward::ForwardMessage;
use crate::inbox::{Inbox, Request};
use crate::liveness::Beat;
use crate::status::Published;
use crate::transfer::Arrived;
use crate::{GroupStatus, HostError, Reply};

/// Reaches the groups of one host from any thread. Cheap to clone.
pub struct HostHandle<S: StateMachine> {
    pub(crate) inbox: Arc<Inbox<S::Output>>,
    pub(crate) groups: Arc<Directory>,
    pub(crate) newcomers: Arc<Newcomers<S>>,
}

/// The groups of a host; more may come while it runs, none goes.
#[derive(Default)]
pub(crate) struct Directory(RwLock<BTreeMap<GroupId, Arc<Published>>>);

impl Directory {
    pub(crate) fn insert(&self, group: GroupId, published: Arc<Published>) {
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        groups.insert(group, published);
    }

    fn get(&self, group: &GroupId) -> Option<Arc<Published>> {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(group).cloned()
    }

    fn keys(&self) -> Vec<GroupId> {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        groups.keys().copied().collect()
    }

    fn contains_key(&self, group: &GroupId) -> bool {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        groups.contains_key(group)
    }
}

/// Groups that are to join a host that runs. Who opens them bounds their number.
pub(crate) struct Newcomers<S: StateMachine>(Mutex<Vec<(Group<S>, Reply<()>)>>);

impl<S: StateMachine> Newcomers<S> {
    pub(crate) fn take(&self) -> Vec<(Group<S>, Reply<()>)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: StateMachine> Default for Newcomers<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S: StateMachine> Clone for HostHandle<S> {
    fn clone(&self) -> Self {
        Self {
            inbox: Arc::clone(&self.inbox),
            groups: Arc::clone(&self.groups),
            newcomers: Arc::clone(&self.newcomers),
        }
    }
}

impl<S: StateMachine> HostHandle<S> {
    /// Lets an opened group of the host's log join it. `reply` is called once: when the group takes requests; with
    /// [`HostError::Stopped`] when the host ended before.
    ///
    /// # Panics
    /// On the host's thread, if a group of that number is there already.
    pub fn join(&self, group: Group<S>, reply: Reply<()>) {
        let mut newcomers = (self.newcomers.0.lock()).unwrap_or_else(PoisonError::into_inner);
        newcomers.push((group, reply));
        drop(newcomers);
        if let Err((_, error)) = self.inbox.push(Request::Join) {
            for (_, reply) in self.newcomers.take() {
                reply(Err(error.clone()));
            }
        }
    }

    /// All groups of the host, ascending.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.keys()
    }

    /// Whether the host has the group.
    #[must_use]
    pub fn has(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group)
    }

    /// Proposes a command. `reply` is called once: with the state machine's output after it was applied here, or with
    /// the reason why there is none.
    pub fn propose(&self, group: GroupId, payload: Bytes, reply: Reply<S::Output>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Propose {
            group,
            payload,
            reply,
        });
        if let Err((Request::Propose { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Proposes a change of a group's membership; several steps at once are one change, through a joint configuration.
    ///
    /// Only the leader takes it, and nobody passes it on: another member answers [`HostError::NotLeader`]. `reply` is called
    /// once: with the state machine's output for the first entry of the change when all of it is in force and applied here;
    /// with [`HostError::Change`] when it is not allowed, now or at all, and nothing was proposed; with
    /// [`HostError::OutcomeUnknown`] when it may still take effect. A member that leaves may be cut off before it hears.
    pub fn change(&self, group: GroupId, change: Change, reply: Reply<S::Output>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Change {
            group,
            change: Box::new(change),
            reply,
        });
        if let Err((Request::Change { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Calls `done` once local state holds everything that was acknowledged before this call.
    pub fn read_barrier(&self, group: GroupId, done: Reply<()>) {
        let Some(published) = self.groups.get(&group) else {
            return done(Err(HostError::NoGroup));
        };
        let Some(done) = published.read(done) else {
            return;
        };
        let refused = self.inbox.push(Request::Read { group, done });
        if let Err((Request::Read { done, .. }, error)) = refused {
            done(Err(error));
        }
    }

    /// True when local state holds everything that was acknowledged before this call: [`Self::read_barrier`] without
    /// a wait, for a group whose only voter is this member.
    #[must_use]
    pub fn read_now(&self, group: GroupId) -> bool {
        self.groups
            .get(&group)
            .is_some_and(|published| published.read_now())
    }

    /// Hands over a message of a peer. It may be lost, as on a network.
    pub fn deliver(&self, group: GroupId, from: NodeId, message: Message) {
        if self.groups.contains_key(&group) {
            // A stopped host loses it, as a network would.
            drop(self.inbox.push(Request::Deliver {
                group,
                from,
                message,
            }));
        }
    }

    /// Hands over a message of a peer about its clients' work, or ours. It may be lost, as on a network.
    pub fn deliver_forward(&self, group: GroupId, from: NodeId, message: ForwardMessage) {
        if self.groups.contains_key(&group) {
            drop(self.inbox.push(Request::Forward {
                group,
                from,
                message,
            }));
        }
    }

    /// Hands over a beat of a member's store. It may be lost, as on a network.
    pub fn deliver_beat(&self, from: NodeId, beat: Beat) {
        drop(self.inbox.push(Request::Beat { from, beat }));
    }

    /// Lets the leader of a group do what [`crate::forward::Calls`] understands; possibly twice. `reply` is called once.
    pub fn call_leader(&self, group: GroupId, payload: Bytes, reply: Reply<Bytes>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Call {
            group,
            payload,
            reply,
        });
        if let Err((Request::Call { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Makes a snapshot of what a group has applied, unless the newest one is of that index. Its log is then held for
    /// [`crate::HostOptions::hold_ticks`]. `reply` is called once.
    pub fn make_snapshot(&self, group: GroupId, reply: Reply<SnapshotRef>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Make { group, reply });
        if let Err((Request::Make { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Keeps a group's log from being compacted for [`crate::HostOptions::hold_ticks`] from now on, or lets it go: for who sends a
    /// snapshot, again and again until the member has it.
    pub fn hold_log(&self, group: GroupId, hold: bool) {
        if self.groups.contains_key(&group) {
            // A stopped host compacts nothing.
            drop(self.inbox.push(Request::Hold { group, hold }));
        }
    }

    /// Hands over a snapshot that was received, its file durable, from a member that led in the term `sent_in`.
    ///
    /// `reply` is called once: without an error when the log begins after it durably, or has what it covers; then its
    /// sender may call it taken. After an error the sender may try again.
    pub fn deliver_snapshot(
        &self,
        from: NodeId,
        sent_in: Term,
        pending: PendingSnapshot,
        reply: Reply<()>,
    ) {
        let group = pending.group();
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let arrived = Box::new(Arrived {
            from,
            sent_in,
            pending,
            reply,
        });
        let refused = self.inbox.push(Request::Arrived { group, arrived });
        if let Err((Request::Arrived { arrived, .. }, error)) = refused {
            (arrived.reply)(Err(error));
        }
    }

    /// Lets a snapshot of another member replace this one's state, which is wrong: from now on nothing is applied here, and a
    /// snapshot from above what is applied is taken though the log has what it covers. The leader sends one when it is told
    /// to ([`Self::send_state`]). `reply` is called once: without an error when the new state is in force, with
    /// [`HostError::Stopped`] when it was [called off](Self::keep_state) or another one asks.
    ///
    /// While this member leads it applies all the same.
    pub fn replace_state(&self, group: GroupId, reply: Reply<()>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Replace { group, reply });
        if let Err((Request::Replace { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Lets a group apply again after [`Self::replace_state`]. A snapshot that is being taken up replaces its state all the
    /// same.
    pub fn keep_state(&self, group: GroupId) {
        if self.groups.contains_key(&group) {
            // A stopped host applies nothing more.
            drop(self.inbox.push(Request::Keep { group }));
        }
    }

    /// Sends a member that waits for another state a snapshot from above what it has applied, if this one leads the group.
    /// `reply` is called once: with true when that begins, with false when it is under way or has to wait for a moment, so
    /// that it is to be asked again.
    pub fn send_state(&self, group: GroupId, to: NodeId, above: Index, reply: Reply<bool>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Send {
            group,
            to,
            above,
            reply,
        });
        if let Err((Request::Send { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// Asks what a group's leader, if this member is that, knows each member's log to hold; empty where it does not lead.
    /// `reply` is called once.
    pub fn matched(&self, group: GroupId, reply: Reply<Vec<(NodeId, Index)>>) {
        if !self.groups.contains_key(&group) {
            return reply(Err(HostError::NoGroup));
        }
        let refused = self.inbox.push(Request::Matched { group, reply });
        if let Err((Request::Matched { reply, .. }, error)) = refused {
            reply(Err(error));
        }
    }

    /// True when this member gets the group's log and does not vote; cheaper than the whole status.
    #[must_use]
    pub fn learns(&self, group: GroupId) -> bool {
        self.groups
            .get(&group)
            .is_some_and(|published| published.learns())
    }

    /// Asks this member to hand a group's leadership over to another voter. Nothing happens when it does not lead, or is
    /// handing over already; who leads then shows in [`Self::status`].
    pub fn transfer(&self, group: GroupId, to: NodeId) {
        if self.groups.contains_key(&group) {
            // A stopped host hands over nothing any more, and a full inbox has its caller ask again.
            drop(self.inbox.push(Request::HandOver { group, to }));
        }
    }

    /// The group's term as last published; cheaper than the whole status.
    #[must_use]
    pub fn term(&self, group: GroupId) -> Option<Term> {
        self.groups.get(&group).map(|published| published.term())
    }

    /// The group as last published.
    #[must_use]
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.groups.get(&group).map(|published| published.status())
    }

    /// Asks the host to finish what it has and stop. Calls from now on are answered with [`HostError::Stopped`].
    pub fn stop(&self) {
        self.inbox.stop();
    }
}
