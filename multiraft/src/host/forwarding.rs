//! The host's part in forwarding: it routes what members ask of each other to its groups and back, and lets the tables of
//! [`crate::forward`] send what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft_log::{GroupId, Index, NodeId};
use raft_node::StateMachine;

use super::HostCore;
use crate::forward::{Answer, Asks, ForwardMessage, Forwarding, Lane, Outcome, Outgoing, Question};
use crate::inbox::{Inbox, Request};
use crate::testing::{Bug, bug};
use crate::{HostError, Reply};

/// Why a group is there.
const KNOWN: &str = "the handle refuses unknown groups";
/// Calls of other members that are under way here; more are refused.
const CALLS_MAX: usize = 4_096;

/// Where the outcome of something that was done for a member goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    Propose {
        from: NodeId,
        boot: u64,
        sequence: u64,
        attempt: u32,
    },
    Read {
        from: NodeId,
        boot: u64,
        id: u64,
    },
}

/// What one group's clients have under way at leaders.
struct Away<O> {
    lane: Lane<O>,
    asks: Asks,
}

pub(super) struct Forwarder<O> {
    setup: Forwarding<O>,
    away: BTreeMap<GroupId, Away<O>>,
    /// Those groups of which something may be away.
    active: BTreeSet<GroupId>,
    /// What groups of this host do for members, by token.
    pub(super) routes: BTreeMap<u64, Route>,
    calls: usize,
    outgoing: Vec<(GroupId, NodeId, ForwardMessage)>,
}

impl<O> Forwarder<O> {
    pub(super) fn new(setup: Forwarding<O>, groups: impl Iterator<Item = GroupId>) -> Self {
        let mut forwarder = Self {
            away: BTreeMap::new(),
            active: BTreeSet::new(),
            setup,
            routes: BTreeMap::new(),
            calls: 0,
            outgoing: Vec::new(),
        };
        groups.for_each(|group| forwarder.add(group));
        forwarder
    }

    /// A group joins the host.
    pub(super) fn add(&mut self, group: GroupId) {
        let outcomes = &self.setup.outcomes;
        let away = Away {
            lane: Lane::new(outcomes.member(), outcomes.boot()),
            asks: Asks::default(),
        };
        self.away.insert(group, away);
    }

    fn away(&mut self, group: GroupId) -> &mut Away<O> {
        self.active.insert(group);
        self.away
            .get_mut(&group)
            .expect("the handle refuses unknown groups")
    }

    /// Takes a command on that this member cannot propose itself.
    pub(super) fn propose(&mut self, now: u64, group: GroupId, payload: Bytes, reply: Reply<O>) {
        let limits = self.setup.limits;
        self.away(group).lane.open(now, &limits, payload, reply);
    }

    /// Takes reads on that this member cannot confirm itself.
    pub(super) fn read(&mut self, now: u64, group: GroupId, reads: Vec<Reply<()>>) {
        let limits = self.setup.limits;
        self.away(group).asks.read(now, &limits, reads);
    }

    /// The token's outcome is not an answer of the state machine: it was not proposed, or not confirmed.
    pub(super) fn dropped(&mut self, now: u64, group: GroupId, route: Route) {
        match route {
            Route::Propose {
                from,
                boot,
                sequence,
                attempt,
            } => self.not_proposed(now, group, from, (boot, sequence, attempt)),
            Route::Read { from, boot, id } => {
                let answer = None;
                let message = ForwardMessage::Answer { boot, id, answer };
                self.outgoing.push((group, from, message));
            }
        }
    }

    /// A read round that was made for a member is confirmed; local state has applied up to `applied` by now.
    pub(super) fn read_ready(&mut self, group: GroupId, route: Route, applied: Index) {
        if let Route::Read { from, boot, id } = route {
            let answer = Some(Answer::Read(applied));
            let message = ForwardMessage::Answer { boot, id, answer };
            self.outgoing.push((group, from, message));
        }
    }

    fn not_proposed(
        &mut self,
        now: u64,
        group: GroupId,
        from: NodeId,
        (boot, sequence, attempt): (u64, u64, u32),
    ) {
        let me = self.setup.outcomes.member();
        if from == me {
            self.away(group).lane.refused(now, me, sequence, attempt);
            return;
        }
        let message = ForwardMessage::NotProposed {
            boot,
            sequence,
            attempt,
        };
        self.outgoing.push((group, from, message));
    }

    /// Does a call for a member, this one or another.
    fn call(
        &mut self,
        inbox: &Arc<Inbox<O>>,
        group: GroupId,
        from: NodeId,
        (boot, id): (u64, u64),
        payload: Bytes,
    ) where
        O: Send + 'static,
    {
        if self.calls >= CALLS_MAX {
            return self.called(0, group, from, (boot, id), None);
        }
        self.calls += 1;
        let inbox = Arc::clone(inbox);
        let reply = move |answer| {
            // A stopped host has no more use for it, and neither has who asked: it is told nothing, as on a network.
            drop(inbox.push(Request::Called {
                group,
                from,
                boot,
                id,
                answer,
            }));
        };
        self.setup.calls.call(group, payload, Box::new(reply));
    }

    /// A call is done.
    fn called(
        &mut self,
        now: u64,
        group: GroupId,
        from: NodeId,
        (boot, id): (u64, u64),
        answer: Option<Bytes>,
    ) {
        let answer = answer.map(Answer::Call);
        if from == self.setup.outcomes.member() {
            self.away(group).asks.answered(now, id, answer);
        } else {
            let message = ForwardMessage::Answer { boot, id, answer };
            self.outgoing.push((group, from, message));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.active.is_empty()
    }

    pub(super) fn fail(&mut self) {
        for away in self.away.values_mut() {
            away.lane.fail();
            away.asks.fail();
        }
    }
}

impl<S: StateMachine> HostCore<S> {
    /// Lets clients of this member be served while another one leads. Until this is called they are refused with
    /// [`HostError::NotLeader`].
    pub fn forward(&mut self, setup: Forwarding<S::Output>) {
        self.forwarder = Some(Forwarder::new(setup, self.slots.groups()));
    }

    /// A message of a member about its clients' work, or ours.
    pub(super) fn take_forward(
        &mut self,
        now: u64,
        group: GroupId,
        from: NodeId,
        message: ForwardMessage,
    ) {
        let token = self.token();
        let inbox = Arc::clone(&self.inbox);
        let Some(forwarder) = &mut self.forwarder else {
            return;
        };
        let slot = self.slots.wake(group);
        let my_boot = forwarder.setup.outcomes.boot();
        match message {
            ForwardMessage::Propose {
                boot,
                sequence,
                attempt,
                payload,
            } => {
                let route = Route::Propose {
                    from,
                    boot,
                    sequence,
                    attempt,
                };
                forwarder.routes.insert(token, route);
                slot.group.propose(token, payload);
            }
            ForwardMessage::Ask { boot, id, question } => match question {
                Question::Read => {
                    let route = Route::Read { from, boot, id };
                    forwarder.routes.insert(token, route);
                    slot.group.read(token);
                }
                Question::Call(payload) => {
                    forwarder.call(&inbox, group, from, (boot, id), payload);
                }
            },
            ForwardMessage::NotProposed {
                boot,
                sequence,
                attempt,
            } if boot == my_boot => {
                let lane = &mut forwarder.away(group).lane;
                lane.refused(now, from, sequence, attempt);
            }
            ForwardMessage::Answer { boot, id, answer }
                if boot == my_boot || bug(Bug::AnswerOfEarlierBoot) =>
            {
                forwarder.away(group).asks.answered(now, id, answer);
            }
            ForwardMessage::NotProposed { .. } | ForwardMessage::Answer { .. } => {}
        }
    }

    /// What the inbox had no room for.
    pub(super) fn refuse_forward(
        &mut self,
        now: u64,
        group: GroupId,
        from: NodeId,
        attempt: (u64, u64, u32),
    ) {
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.not_proposed(now, group, from, attempt);
        }
    }

    /// A client's call, for whoever leads.
    pub(super) fn take_call(
        &mut self,
        now: u64,
        group: GroupId,
        payload: Bytes,
        reply: Reply<Bytes>,
    ) {
        match &mut self.forwarder {
            Some(forwarder) => {
                let limits = forwarder.setup.limits;
                forwarder
                    .away(group)
                    .asks
                    .call(now, &limits, payload, reply);
            }
            None => reply(Err(HostError::NotLeader(None))),
        }
    }

    /// A call that was made for a member is done.
    pub(super) fn take_called(
        &mut self,
        now: u64,
        group: GroupId,
        from: NodeId,
        call: (u64, u64),
        answer: Option<Bytes>,
    ) {
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.calls -= 1;
            forwarder.called(now, group, from, call, answer);
        }
    }

    /// Sends what is due to the leader of each group; what this member leads it does itself.
    pub(super) fn forward_due(&mut self, now: u64) {
        let Some(mut forwarder) = self.forwarder.take() else {
            return;
        };
        let me = forwarder.setup.outcomes.member();
        let (stamp, boot) = (forwarder.setup.stamp, forwarder.setup.outcomes.boot());
        let groups: Vec<_> = forwarder.active.iter().copied().collect();
        for group in groups {
            let slot = self.slots.get(group).expect(KNOWN);
            let Some(leader) = slot.group.status().leader else {
                continue;
            };
            let away = forwarder.away(group);
            let commands = away.lane.take_due(now, leader, stamp);
            let reads = if leader == me {
                away.asks.take_reads()
            } else {
                Vec::new()
            };
            let asks = away.asks.take_due(now, leader);
            for Outgoing {
                sequence,
                attempt,
                payload,
            } in commands
            {
                if leader == me {
                    let from = me;
                    let route = Route::Propose {
                        from,
                        boot,
                        sequence,
                        attempt,
                    };
                    let token = self.token();
                    forwarder.routes.insert(token, route);
                    self.slot(group).group.propose(token, payload);
                } else {
                    let message = ForwardMessage::Propose {
                        boot,
                        sequence,
                        attempt,
                        payload,
                    };
                    forwarder.outgoing.push((group, leader, message));
                }
            }
            if !reads.is_empty() {
                let token = self.token();
                self.reads.insert(token, reads);
                self.slot(group).group.read(token);
            }
            for ask in asks {
                let id = ask.id;
                match ask.question {
                    Question::Call(payload) if leader == me => {
                        forwarder.call(&self.inbox, group, me, (boot, id), payload);
                    }
                    question => {
                        let message = ForwardMessage::Ask { boot, id, question };
                        forwarder.outgoing.push((group, leader, message));
                    }
                }
            }
        }
        self.forwarder = Some(forwarder);
    }

    /// After applying: answers those whose command was applied here or whose read may be served, and those whose time is
    /// over.
    pub(super) fn forward_answers(&mut self, now: u64) {
        let Some(forwarder) = &mut self.forwarder else {
            return;
        };
        for outcome in forwarder.setup.outcomes.take() {
            match outcome {
                Outcome::Applied(group, sequence, output) => {
                    if let Some(away) = forwarder.away.get_mut(&group) {
                        away.lane.applied(sequence, output);
                    }
                }
                Outcome::Jumped(group) => {
                    if let Some(away) = forwarder.away.get_mut(&group) {
                        away.lane.jumped();
                    }
                }
            }
        }
        let (slots, away) = (&self.slots, &mut forwarder.away);
        forwarder.active.retain(|group| {
            let away = away.get_mut(group).expect("an active group is known");
            let slot = slots.get(*group).expect(KNOWN);
            away.asks.release(slot.group.applied());
            away.lane.expire(now);
            away.asks.expire(now);
            !(away.lane.is_empty() && away.asks.is_empty())
        });
    }

    /// Hands over what forwarding has to say.
    pub(super) fn send_forward(&mut self) {
        if let Some(forwarder) = &mut self.forwarder {
            for (group, to, message) in forwarder.outgoing.drain(..) {
                self.outbox.forward(group, to, message);
            }
        }
    }

    /// The next tick at which forwarding has something to do.
    pub(super) fn forward_deadline(&self) -> Option<u64> {
        let forwarder = self.forwarder.as_ref()?;
        let due = forwarder.active.iter().filter_map(|group| {
            let away = &forwarder.away[group];
            let leader = self.slots.get(*group).expect(KNOWN).group.status().leader;
            let (lane, asks) = (away.lane.deadline(leader), away.asks.deadline(leader));
            lane.into_iter().chain(asks).min()
        });
        due.min()
    }
}
