//! Follows the membership, on a thread of its own: `PEERS` and the links to other members are as applied state says, a member
//! that was added as a voter becomes one when it holds the log, this member stops once it was removed; and the leader's does
//! the changes that clients of any member ask for, one at a time.
//!
//! A change is one proposal of the group's ([`raft_node::core::Change`]) whose context has the rest, so it happens as a whole
//! or not at all. Requests may come twice, because a question without an answer is asked again, also of the next leader:
//! each has a number, which is part of applied state, so that the second copy is told from another request.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use multiraft::forward::CallReply;
use multiraft::transport::{Links, Members, REMOVED_ADVICE, TransportWatcher};
use multiraft::{HostError, HostHandle};
use prost::Message;
use raft_log::{Index, NodeId};
use raft_node::core::{Change, ChangeError, ChangeStep};
use tracing::{info, warn};

use super::roster::Roster;
use super::rules::{ChangeRules, Picture};
use super::{DATA_GROUP, PeerBook};
use crate::ApiError;
use crate::mvcc::{KvStateMachine, Store};
use crate::pb::command::{MemberChange, PublishMember};
use crate::pb::peer::{MemberAnswer, MemberCall, MemberError, member_call::Op};

/// Requests that wait for the one that is done; more are asked again.
const CALLS_MAX: usize = 64;
/// How often it is tried again what cannot be done at this moment.
const RETRY: Duration = Duration::from_millis(50);
/// How often it is looked whether a member can vote.
const PROMOTE_EVERY: Duration = Duration::from_millis(200);
/// Entries that a member may lack when it becomes a voter: what it gets in a moment.
const PROMOTE_LAG_MAX: u64 = 500;
/// How long a member that left keeps its links, so that it hears of it.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long this member goes on after it was removed, so that others and its clients hear what they wait for.
const LAST_MOMENTS: Duration = Duration::from_secs(1);
/// How long it goes on at most while a keyspace's group still counts on it.
const LAST_MOMENTS_MAX: Duration = Duration::from_secs(60);
/// A wait without an end, nearly.
const LONG: Duration = Duration::from_secs(3600);

/// What the thread is told.
pub(super) enum Event {
    /// The members may have changed.
    Changed,
    /// Somebody asks the leader for a change.
    Call(MemberCall, CallReply),
    /// What became of the change that was proposed.
    Done(Result<(), HostError>),
    Stop,
}

/// What the thread works with.
pub(super) struct Parts {
    pub(super) me: NodeId,
    pub(super) handle: HostHandle<KvStateMachine>,
    pub(super) store: Arc<Store>,
    pub(super) peers: Arc<PeerBook>,
    pub(super) links: Links,
    pub(super) watcher: TransportWatcher,
    pub(super) rules: ChangeRules,
    /// How long a request is tried.
    pub(super) patience: Duration,
}

/// The thread.
pub(super) struct Keeper {
    events: Sender<Event>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it. `on_failure` is called once when this member cannot, or may not, go on.
    pub(super) fn start(
        parts: Parts,
        (events, received): (Sender<Event>, Receiver<Event>),
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> io::Result<Self> {
        let for_thread = events.clone();
        let thread = std::thread::Builder::new()
            .name("flotilla-members".to_owned())
            .spawn(move || {
                let mut work = Work::new(parts, for_thread);
                if let Err(reason) = work.run(&received) {
                    on_failure(&reason);
                }
            })?;
        Ok(Self { events, thread })
    }

    /// Ends it; call it after the host was stopped.
    pub(super) fn stop(self) {
        // A thread that has ended hears nothing.
        let _ = self.events.send(Event::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that follows the members panicked");
        }
    }
}

/// A request that waits, or that is done.
struct Request {
    call: MemberCall,
    reply: CallReply,
    until: Instant,
}

/// What was proposed last and has no outcome.
enum Proposed {
    /// For a request.
    Asked(Request),
    /// A member is to vote that was added for that.
    Promotion(NodeId),
}

struct Work {
    parts: Parts,
    events: Sender<Event>,
    /// As last looked at.
    roster: Roster,
    told: Members,
    waiting: VecDeque<Request>,
    proposed: Option<Proposed>,
    /// Nothing is proposed before.
    pause_until: Option<Instant>,
    promote_at: Option<Instant>,
    /// Who left, where it was, and until when it keeps its links.
    leaving: BTreeMap<NodeId, (Vec<String>, Instant)>,
    stop_at: Option<Instant>,
    /// When it stops whatever counts on it.
    stop_last: Option<Instant>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread drives; what it proposes does not depend on when"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

impl Work {
    fn new(parts: Parts, events: Sender<Event>) -> Self {
        Self {
            parts,
            events,
            roster: Roster::default(),
            told: Members::default(),
            waiting: VecDeque::new(),
            proposed: None,
            pause_until: None,
            promote_at: None,
            leaving: BTreeMap::new(),
            stop_at: None,
            stop_last: None,
        }
    }

    fn run(&mut self, received: &Receiver<Event>) -> Result<(), String> {
        loop {
            self.follow()?;
            self.serve();
            self.promote();
            match received.recv_timeout(self.rest()) {
                Ok(Event::Changed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Call(call, reply)) => self.take(call, reply),
                Ok(Event::Done(outcome)) => self.done(outcome)?,
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// How long nothing is to be done unless something happens.
    fn rest(&self) -> Duration {
        let farewells = self.leaving.values().map(|(_, until)| *until);
        let times = farewells
            .chain(self.pause_until)
            .chain(self.promote_at)
            .chain(self.stop_at);
        let next = times.min().map(|at| at.saturating_duration_since(now()));
        next.unwrap_or(LONG)
    }

    fn leads(&self) -> bool {
        let status = self.parts.handle.status(DATA_GROUP).unwrap_or_default();
        status.leader == Some(self.parts.me)
    }

    /// Whether a member votes in the group of a keyspace.
    fn is_counted_on(&self, id: NodeId) -> bool {
        let handle = &self.parts.handle;
        let groups = handle
            .groups()
            .into_iter()
            .filter(|group| *group != DATA_GROUP);
        let mut statuses = groups.filter_map(|group| handle.status(group));
        statuses.any(|status| status.voters.contains(&id))
    }

    /// Makes the disk and the links follow applied state, in this order: nobody is linked to whom a restart would not know.
    fn follow(&mut self) -> Result<(), String> {
        let now = now();
        if self.stop_at.is_some_and(|at| at <= now) {
            let is_over = self.stop_last.is_none_or(|at| at <= now);
            if is_over || !self.is_counted_on(self.parts.me) {
                return Err(REMOVED_ADVICE.to_owned());
            }
            self.stop_at = Some(now + LAST_MOMENTS);
        }
        let roster = Roster::of(&self.parts.store, &self.parts.peers);
        if roster != self.roster {
            let is_removed = roster.table.removed.contains_key(&self.parts.me);
            if is_removed && self.stop_at.is_none() {
                warn!("this member was removed from the cluster; it stops");
                self.stop_at = Some(now + LAST_MOMENTS);
                self.stop_last = Some(now + LAST_MOMENTS_MAX);
            }
            if !self.parts.peers.is_ahead_of(roster.table.index) {
                let kept = self.parts.peers.keep(&roster);
                kept.map_err(|error| format!("the members are not noted: {error}"))?;
            }
            self.roster = roster;
        }
        let mut members = others(&self.roster, &self.parts.peers, self.parts.me);
        // Who is on its way out still decides, and who left hears of it on the links that it has.
        for (id, urls) in &self.told.urls {
            if !members.urls.contains_key(id) {
                let farewell = || (urls.clone(), now + FAREWELL);
                self.leaving.entry(*id).or_insert_with(farewell);
            }
        }
        // The members of keyspaces follow: without its vote they may not be able to.
        for (id, (urls, mut until)) in std::mem::take(&mut self.leaving) {
            if until <= now && self.is_counted_on(id) {
                until = now + FAREWELL;
            }
            self.leaving.insert(id, (urls, until));
        }
        for (id, (urls, until)) in &self.leaving {
            if *until > now || self.roster.leaving.contains(id) {
                members.removed.remove(id);
                members.urls.entry(*id).or_insert_with(|| urls.clone());
            }
        }
        if members != self.told {
            info!(members = members.urls.len() + 1, "the members have changed");
            self.parts.links.update(&members);
            self.told = members;
        }
        let told = &self.told;
        self.leaving
            .retain(|id, (_, until)| *until > now && told.urls.contains_key(id));
        Ok(())
    }

    fn take(&mut self, call: MemberCall, reply: CallReply) {
        if self.waiting.len() >= CALLS_MAX || !self.leads() {
            return reply(None);
        }
        let until = now() + self.parts.patience;
        self.waiting.push_back(Request { call, reply, until });
    }

    /// Proposes what was asked for, when nothing else is proposed.
    fn serve(&mut self) {
        let now = now();
        self.pause_until = self.pause_until.filter(|until| *until > now);
        while self.proposed.is_none() && self.pause_until.is_none() {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            let is_behind = self.parts.peers.is_ahead_of(self.roster.table.index);
            if is_behind || !self.leads() || request.until <= now {
                (request.reply)(None);
                continue;
            }
            match self.check(&request.call) {
                Ok(Some(change)) => {
                    self.propose(change);
                    self.proposed = Some(Proposed::Asked(request));
                }
                Ok(None) => self.answer(request, Ok(())),
                Err(error) => self.answer(request, Err(error)),
            }
        }
    }

    fn propose(&self, change: Change) {
        let events = self.events.clone();
        let reply = Box::new(move |outcome: Result<_, HostError>| {
            // Only a thread that has ended does not hear it.
            let _ = events.send(Event::Done(outcome.map(drop)));
        });
        self.parts.handle.change(DATA_GROUP, change, reply);
    }

    fn done(&mut self, outcome: Result<(), HostError>) -> Result<(), String> {
        // What was applied is there to be seen.
        self.follow()?;
        let request = match self.proposed.take() {
            Some(Proposed::Asked(request)) => request,
            Some(Proposed::Promotion(id)) => {
                match outcome {
                    Ok(()) => info!(member = %id, "a member that was added votes now"),
                    Err(error) => tracing::debug!(member = %id, %error, "it does not vote yet"),
                }
                return Ok(());
            }
            None => return Ok(()),
        };
        match outcome {
            Ok(()) => self.answer(request, Ok(())),
            Err(
                HostError::Busy
                | HostError::Change(ChangeError::InProgress(_) | ChangeError::NothingCommittedInTerm),
            ) => {
                self.pause_until = Some(now() + RETRY);
                self.waiting.push_front(request);
            }
            Err(HostError::Change(error)) => self.answer(request, Err(refusal(error))),
            Err(HostError::NoSpace) => self.answer(request, Err(ApiError::NoSpace)),
            // Whoever leads next is asked again, and knows whether it happened.
            Err(_) => (request.reply)(None),
        }
        Ok(())
    }

    /// What to propose for a request; none when it was done before.
    fn check(&self, call: &MemberCall) -> Result<Option<Change>, ApiError> {
        let linked = self.linked();
        let picture = Picture {
            rules: self.parts.rules,
            roster: &self.roster,
            me: self.parts.me,
            linked: &linked,
        };
        let (step, context) = match &call.op {
            Some(Op::Add(add)) => {
                let id = NodeId(add.id);
                if self.was_done(id, call.request) {
                    return Ok(None);
                }
                picture.check_add(id, &add.peer_urls, add.is_learner)?;
                let row = PublishMember {
                    id: add.id,
                    peer_urls: add.peer_urls.clone(),
                    joins_as_voter: !add.is_learner,
                    ..PublishMember::default()
                };
                let added = vec![row];
                let context = MemberChange {
                    added,
                    ..MemberChange::default()
                };
                (ChangeStep::AddLearner(id), context)
            }
            Some(Op::Remove(id)) => {
                let id = NodeId(*id);
                if self.roster.table.removed.get(&id) == Some(&call.request) {
                    return Ok(None);
                }
                picture.check_remove(id)?;
                let removed = vec![id.0];
                let context = MemberChange {
                    removed,
                    ..MemberChange::default()
                };
                (ChangeStep::Remove(id), context)
            }
            Some(Op::Promote(id)) => {
                let id = NodeId(*id);
                if self.was_done(id, call.request) {
                    return Ok(None);
                }
                picture.check_promote(id)?;
                let promoted = vec![id.0];
                let context = MemberChange {
                    promoted,
                    ..MemberChange::default()
                };
                (ChangeStep::Promote(id), context)
            }
            None => return Err(ApiError::NotImplemented("that change of the members")),
        };
        let request = call.request;
        let context = MemberChange { request, ..context };
        Ok(Some(change(step, &context)))
    }

    fn was_done(&self, id: NodeId, request: u64) -> bool {
        let member = self.roster.get(id);
        member.is_some_and(|member| member.request == request && request != 0)
    }

    fn linked(&self) -> BTreeMap<NodeId, Duration> {
        let links = self.parts.watcher.status().into_iter();
        links
            .filter_map(|link| Some((link.id, link.linked_for?)))
            .collect()
    }

    fn answer(&self, request: Request, outcome: Result<(), ApiError>) {
        let error = outcome.err().map(|error| MemberError {
            code: error.code() as u32,
            text: error.to_string(),
        });
        let members = self.roster.describe();
        let answer = MemberAnswer { error, members };
        (request.reply)(Some(Bytes::from(answer.encode_to_vec())));
    }

    /// Lets a member vote that was added for that, once it holds nearly all of the log.
    fn promote(&mut self) {
        let joins = |member: &&super::roster::Member| member.joins_as_voter && !member.votes;
        let joining: Vec<_> = self.roster.members.iter().filter(joins).collect();
        if joining.is_empty() {
            self.promote_at = None;
            return;
        }
        let now = now();
        if self.promote_at.is_some_and(|at| at > now) {
            return;
        }
        self.promote_at = Some(now + PROMOTE_EVERY);
        if self.proposed.is_some() || !self.leads() {
            return;
        }
        let linked = self.linked();
        let (matched, last) = self.matched();
        let holds = |id: &NodeId| {
            let matched = matched.iter().find(|(member, _)| member == id);
            matched.is_some_and(|(_, index)| index.0 + PROMOTE_LAG_MAX >= last.0 && index.0 > 0)
        };
        let ready = joining.iter().map(|member| member.id);
        let mut ready = ready.filter(|id| linked.contains_key(id) && holds(id));
        let Some(id) = ready.next() else {
            return;
        };
        let promoted = vec![id.0];
        // Nobody asked: the request that added it stays known.
        let request = self.roster.get(id).map_or(0, |member| member.request);
        let context = MemberChange {
            request,
            promoted,
            ..MemberChange::default()
        };
        self.propose(change(ChangeStep::Promote(id), &context));
        self.proposed = Some(Proposed::Promotion(id));
    }

    /// What the members' logs hold, and the end of this one's.
    fn matched(&self) -> (Vec<(NodeId, Index)>, Index) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = Box::new(move |matched| drop(sender.send(matched)));
        self.parts.handle.matched(DATA_GROUP, reply);
        let matched = receiver.recv().ok().and_then(Result::ok);
        let status = self.parts.handle.status(DATA_GROUP).unwrap_or_default();
        (matched.unwrap_or_default(), status.last_index)
    }
}

/// Whom a member links to, and who was removed.
pub(super) fn others(roster: &Roster, peers: &PeerBook, me: NodeId) -> Members {
    let removed = roster.table.removed.keys().copied().collect();
    let mut members = Members {
        urls: BTreeMap::new(),
        removed,
    };
    members.urls = if peers.is_ahead_of(roster.table.index) {
        peers.urls()
    } else {
        let all = roster.members.iter();
        all.map(|one| (one.id, one.peer_urls.clone())).collect()
    };
    let others = |id: &NodeId, urls: &mut Vec<String>| *id != me && !urls.is_empty();
    members.urls.retain(others);
    members.urls.retain(|id, _| !members.removed.contains(id));
    members
}

pub(super) fn change(step: ChangeStep, context: &MemberChange) -> Change {
    Change {
        steps: vec![step],
        context: context.encode_to_vec().into(),
    }
}

/// What the group knows better than the list of members: it is a moment ahead.
fn refusal(error: ChangeError) -> ApiError {
    match error {
        ChangeError::AlreadyMember(_) => ApiError::MemberExists,
        ChangeError::NotMember(_) => ApiError::MemberNotFound,
        ChangeError::NotLearner(_) => ApiError::NotLearner,
        ChangeError::NotInSync { .. } => ApiError::LearnerNotReady,
        ChangeError::NoVoters => ApiError::NotEnoughStarted,
        other => ApiError::Other(
            tonic::Code::FailedPrecondition,
            format!("flotilla: {other}"),
        ),
    }
}
