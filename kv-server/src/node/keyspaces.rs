//! The thread that keeps the keyspaces beside the default one.
//!
//! The default keyspace's applied state says which there are, and every member holds the groups of all of them, whether or
//! not it serves them. The thread registers those that this member is to serve, begins the groups of those that are
//! registered, says where they are served, and lets the members of the groups that are led here follow those of the
//! default one: one step at a time, learners first, and only after a look at the default keyspace that a majority
//! confirmed, since an older state names members that have gone and lacks those that came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use multiraft::{GroupStatus, HostError, HostHandle};
use prost::Message;
use raft_log::GroupId;
use raft_node::core::{Change, ChangeStep};
use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};

use super::calls::NodeCalls;
use super::keyspace::{Beginning, Care, Ground, Keyspace, Opened};
use super::roster::Roster;
use super::{DATA_GROUP, GroupReplica, NodeError, NodeView, PeerBook, rests};
use crate::mvcc::{CommandOutput, KvStateMachine, Store};
use crate::pb::command::{Command, PublishMember, RegisterKeyspace, command::Op};

/// The pause between two looks when nothing happens.
const PAUSE: Duration = Duration::from_millis(500);

/// A keyspace that this member is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedKeyspace {
    /// Its name.
    pub name: String,
    /// Where clients are told that this member serves it.
    pub client_urls: Vec<String>,
}

/// A keyspace as a front end serves it.
pub struct Front {
    /// Whether it is the default one, whose the members are.
    pub is_default: bool,
    /// The id of the cluster that clients see.
    pub cluster: u64,
    /// This member.
    pub member: u64,
    /// Watches, tokens and the read side.
    pub keyspace: Keyspace,
    /// Proposals and reads.
    pub replica: GroupReplica,
    /// The applied state.
    pub view: NodeView,
}

/// Begins to serve a keyspace, or says why it cannot.
pub type Serve = Box<dyn FnMut(&str, Front) -> Result<(), String> + Send>;

/// The id of the cluster that a keyspace is to its clients: no two keyspaces have one in common.
pub(super) fn cluster_of(cluster: u64, name: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(cluster.to_be_bytes());
    hasher.update(name.as_bytes());
    let digest = hasher.finalize();
    u64::from_be_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
}

/// The groups beside the default one that run here, with what looks after them.
#[derive(Clone, Default)]
pub(super) struct Hosted(Arc<Mutex<BTreeMap<GroupId, (Keyspace, Care)>>>);

impl Hosted {
    pub(super) fn insert(&self, keyspace: Keyspace, care: Care) {
        self.lock().insert(keyspace.group, (keyspace, care));
    }

    pub(super) fn get(&self, group: GroupId) -> Option<Keyspace> {
        self.lock()
            .get(&group)
            .map(|(keyspace, _)| keyspace.clone())
    }

    /// Watches end.
    pub(super) fn close(&self) {
        self.lock()
            .values()
            .for_each(|(keyspace, _)| keyspace.hub.close());
    }

    /// Nothing more is begun for them.
    pub(super) fn stop(&self) {
        for (keyspace, care) in self.lock().values() {
            keyspace.store.close();
            care.stop();
        }
    }

    /// Waits for the end; call it after the host was stopped.
    pub(super) fn join(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.into_values().for_each(|(_, care)| care.join());
    }

    /// No call leaves it half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, (Keyspace, Care)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
pub(super) struct Parts {
    /// The cluster of the default keyspace.
    pub(super) cluster: u64,
    pub(super) ground: Arc<Ground>,
    pub(super) handle: HostHandle<KvStateMachine>,
    /// Of the default keyspace.
    pub(super) store: Arc<Store>,
    pub(super) peers: Arc<PeerBook>,
    pub(super) calls: Arc<NodeCalls>,
    pub(super) hosted: Hosted,
}

/// What the thread hears.
pub(super) enum Event {
    /// Keyspaces or members have changed.
    Changed,
    /// Something that was asked for is done, or why it is not.
    Done(Task, Result<(), String>),
    /// The default keyspace's state is as new as a majority's.
    Confirmed(bool),
    Stop,
}

/// What is asked for once at a time, and again while it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    Register(String),
    Publish(GroupId),
    Follow(GroupId),
}

/// The thread.
pub(super) struct Shepherd {
    events: Sender<Event>,
    thread: JoinHandle<()>,
}

impl Shepherd {
    /// Keeps the keyspaces; those that are wanted are served by `serve` once they are there.
    pub(super) fn start(
        parts: Parts,
        (events, received): (Sender<Event>, Receiver<Event>),
        (wanted, serve): (Vec<WantedKeyspace>, Serve),
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> std::io::Result<Self> {
        let for_thread = events.clone();
        let thread = std::thread::Builder::new()
            .name("flotilla-keyspaces".to_owned())
            .spawn(move || {
                let mut work = Work {
                    parts,
                    events: for_thread,
                    wanted,
                    serve,
                    served: BTreeSet::new(),
                    under_way: BTreeSet::new(),
                    failed: BTreeSet::new(),
                    told: BTreeSet::new(),
                    confirming: Confirming::No,
                };
                if let Err(reason) = work.run(&received) {
                    on_failure(&reason);
                }
            })?;
        Ok(Self { events, thread })
    }

    /// Ends it; call it before the host is stopped.
    pub(super) fn stop(self) {
        // A thread that has ended hears nothing.
        let _ = self.events.send(Event::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps keyspaces panicked");
        }
    }
}

struct Work {
    parts: Parts,
    events: Sender<Event>,
    wanted: Vec<WantedKeyspace>,
    serve: Serve,
    served: BTreeSet<String>,
    under_way: BTreeSet<Task>,
    /// Those of them that failed: they are tried again after a pause.
    failed: BTreeSet<Task>,
    /// Those that somebody was told of when they failed first.
    told: BTreeSet<Task>,
    confirming: Confirming,
}

/// Whether a majority is asked for how new the default keyspace's state is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Confirming {
    No,
    Yes,
    /// After a pause.
    Again,
}

impl Work {
    fn run(&mut self, received: &Receiver<Event>) -> Result<(), String> {
        loop {
            self.begin()?;
            self.register();
            self.serve()?;
            self.publish();
            self.leave();
            self.confirm();
            match received.recv_timeout(PAUSE) {
                Ok(Event::Changed) => {}
                Err(RecvTimeoutError::Timeout) => {
                    for task in std::mem::take(&mut self.failed) {
                        self.under_way.remove(&task);
                    }
                    if self.confirming == Confirming::Again {
                        self.confirming = Confirming::No;
                    }
                }
                Ok(Event::Done(task, outcome)) => self.done(task, outcome),
                Ok(Event::Confirmed(true)) => {
                    self.confirming = Confirming::No;
                    self.follow();
                }
                Ok(Event::Confirmed(false)) => self.confirming = Confirming::Again,
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn done(&mut self, task: Task, outcome: Result<(), String>) {
        let Err(error) = outcome else {
            self.told.remove(&task);
            self.under_way.remove(&task);
            return;
        };
        // A learner that lags, or no leader, is nothing that anybody has to know of.
        if matches!(task, Task::Register(_)) && self.told.insert(task.clone()) {
            warn!(
                ?task,
                error, "a keyspace is not there yet; it is tried again"
            );
        } else {
            debug!(?task, error, "it is tried again");
        }
        self.failed.insert(task);
    }

    /// Begins the groups of the keyspaces that are registered and not here yet.
    fn begin(&self) -> Result<(), String> {
        for (name, known) in self.parts.store.keyspaces().iter() {
            let group = known.group();
            if self.parts.handle.has(group) {
                continue;
            }
            let failed = |error: NodeError| format!("the keyspace {name}: {error}");
            let beginning = Beginning::of(known);
            let (peers, ground) = (&self.parts.peers, &self.parts.ground);
            let opened = ground.open_noted(peers, group, Some(beginning));
            let Opened {
                keyspace,
                group: opened,
                to_hash,
            } = opened.map_err(failed)?;
            let handle = &self.parts.handle;
            self.parts.calls.add(
                group,
                keyspace.lease_calls(self.parts.ground.member, handle),
            );
            let (sender, receiver) = channel();
            // The receiver lives until the answer is there.
            handle.join(opened, Box::new(move |joined| drop(sender.send(joined))));
            if !matches!(receiver.recv(), Ok(Ok(()))) {
                // The host has stopped, and says why itself.
                return Ok(());
            }
            info!(name, %group, "a keyspace begins");
            let care = self.parts.ground.care(&keyspace, to_hash, handle);
            self.parts.hosted.insert(keyspace, care.map_err(failed)?);
        }
        Ok(())
    }

    /// Asks for the keyspaces that are to be served and that nobody has registered.
    fn register(&mut self) {
        let known = self.parts.store.keyspaces();
        let missing = self
            .wanted
            .iter()
            .filter(|one| !known.contains_key(&one.name));
        let missing: Vec<_> = missing.map(|one| one.name.clone()).collect();
        for name in missing {
            let first = self.parts.peers.first();
            let request = RegisterKeyspace {
                creation: cluster_of(self.parts.cluster, &name),
                first_voters: first.voters.iter().map(|id| id.0).collect(),
                name: name.clone(),
            };
            self.propose(
                DATA_GROUP,
                Op::RegisterKeyspace(request),
                Task::Register(name),
            );
        }
    }

    fn serve(&mut self) -> Result<(), String> {
        let known = self.parts.store.keyspaces();
        for wanted in &self.wanted {
            let group = known.get(&wanted.name).map(|known| known.group());
            let keyspace = group.and_then(|group| self.parts.hosted.get(group));
            let Some(keyspace) = keyspace.filter(|_| !self.served.contains(&wanted.name)) else {
                continue;
            };
            let Parts {
                ground,
                store,
                peers,
                handle,
                ..
            } = &self.parts;
            let front = Front {
                is_default: false,
                cluster: cluster_of(self.parts.cluster, &wanted.name),
                member: ground.member.0,
                replica: keyspace.replica(handle),
                view: ground.view(&keyspace, store, peers),
                keyspace,
            };
            (self.serve)(&wanted.name, front)
                .map_err(|error| format!("the keyspace {}: {error}", wanted.name))?;
            self.served.insert(wanted.name.clone());
        }
        Ok(())
    }

    /// Tells the members of each keyspace where this one serves it.
    fn publish(&mut self) {
        let known = self.parts.store.keyspaces();
        let me = self.parts.ground.member;
        let roster = Roster::of(&self.parts.store, &self.parts.peers);
        let own = roster.get(me).cloned().unwrap_or_default();
        for wanted in self.wanted.clone() {
            let group = known.get(&wanted.name).map(|known| known.group());
            let Some(keyspace) = group.and_then(|group| self.parts.hosted.get(group)) else {
                continue;
            };
            let row = keyspace.store.member(me).unwrap_or_default();
            let is_known = row.client_urls == wanted.client_urls && row.name == own.name;
            if is_known || own.name.is_empty() {
                continue;
            }
            let row = PublishMember {
                id: me.0,
                name: own.name.clone(),
                peer_urls: own.peer_urls.clone(),
                client_urls: wanted.client_urls,
                store: own.store.map_or(0, |store| store.0),
                ..PublishMember::default()
            };
            let group = keyspace.group;
            self.propose(group, Op::PublishMember(row), Task::Publish(group));
        }
    }

    /// A member that was removed leads nothing: it is told nothing any more by which it could let the members follow.
    fn leave(&self) {
        let roster = Roster::of(&self.parts.store, &self.parts.peers);
        let me = self.parts.ground.member;
        if !roster.table.removed.contains_key(&me) {
            return;
        }
        let led: Vec<_> = self.led().collect();
        let hosted = led.iter();
        let hosted = hosted.filter_map(|(group, _)| self.parts.hosted.get(*group));
        rests::record(hosted.map(|keyspace| keyspace.lessor).collect());
        for (group, status) in led {
            let mut voters = status.voters.iter();
            if let Some(to) = voters.find(|voter| roster.get(**voter).is_some()) {
                self.parts.handle.transfer(group, *to);
            }
        }
    }

    /// The groups beside the default one that are led here.
    fn led(&self) -> impl Iterator<Item = (GroupId, GroupStatus)> {
        let handle = &self.parts.handle;
        let groups = handle.groups().into_iter();
        let groups = groups.filter(|group| *group != DATA_GROUP);
        let statuses = groups.filter_map(|group| Some((group, handle.status(group)?)));
        statuses.filter(|(_, status)| status.leader == Some(status.node))
    }

    /// Asks a majority whether the members are as they are known here, if a group that is led here has others.
    fn confirm(&mut self) {
        if self.confirming != Confirming::No || self.steps().is_empty() {
            return;
        }
        self.confirming = Confirming::Yes;
        let events = self.events.clone();
        let done = Box::new(move |done: Result<(), _>| {
            // Only a thread that has ended does not hear it.
            let _ = events.send(Event::Confirmed(done.is_ok()));
        });
        self.parts.handle.read_barrier(DATA_GROUP, done);
    }

    fn follow(&mut self) {
        for (group, step) in self.steps() {
            let task = Task::Follow(group);
            self.under_way.insert(task.clone());
            let events = self.events.clone();
            let reply = Box::new(move |outcome: Result<_, HostError>| {
                let outcome = match outcome {
                    Ok(_) => {
                        info!(%group, ?step, "the members of a keyspace follow");
                        Ok(())
                    }
                    Err(error) => Err(error.to_string()),
                };
                // Only a thread that has ended does not hear it.
                let _ = events.send(Event::Done(task, outcome));
            });
            let change = Change {
                steps: vec![step],
                context: bytes::Bytes::new(),
            };
            self.parts.handle.change(group, change, reply);
        }
    }

    /// What is next for each group that is led here and has other members than the default keyspace.
    fn steps(&self) -> Vec<(GroupId, ChangeStep)> {
        let roster = Roster::of(&self.parts.store, &self.parts.peers);
        let is_behind = self.parts.peers.is_ahead_of(roster.table.index);
        // While a change is under way nobody knows how it ends.
        if is_behind || !roster.leaving.is_empty() {
            return Vec::new();
        }
        let led = self.led();
        let free = led.filter(|(group, _)| !self.under_way.contains(&Task::Follow(*group)));
        let next = free.filter_map(|(group, status)| Some((group, next_step(&roster, &status)?)));
        next.collect()
    }

    fn propose(&mut self, group: GroupId, op: Op, task: Task) {
        if !self.under_way.insert(task.clone()) {
            return;
        }
        let payload = Command { op: Some(op) }.encode_to_vec();
        let events = self.events.clone();
        let reply = Box::new(move |outcome: Result<CommandOutput, HostError>| {
            let outcome = match outcome {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            // Only a thread that has ended does not hear it.
            let _ = events.send(Event::Done(task, outcome));
        });
        self.parts.handle.propose(group, payload.into(), reply);
    }
}

/// The step that brings the members of a group nearest to those of the default keyspace: those who left first, for whom
/// nobody should wait.
fn next_step(roster: &Roster, status: &GroupStatus) -> Option<ChangeStep> {
    let (voters, learners) = (&status.voters, &status.learners);
    let here = voters.iter().chain(learners);
    let gone = here.clone().find(|id| roster.get(**id).is_none());
    if let Some(gone) = gone {
        return Some(ChangeStep::Remove(*gone));
    }
    let all = roster.members.iter();
    let new = all
        .clone()
        .find(|member| !voters.contains(&member.id) && !learners.contains(&member.id));
    if let Some(new) = new {
        return Some(ChangeStep::AddLearner(new.id));
    }
    let ready = all
        .clone()
        .find(|member| member.votes && learners.contains(&member.id));
    ready.map(|ready| ChangeStep::Promote(ready.id))
}
