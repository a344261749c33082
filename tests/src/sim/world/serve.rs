//! How clients and watchers are served.

use std::sync::Arc;

use bytes::Bytes;
use kv_server::ApiError;
use kv_server::lease::{Renewal, decode_answer, encode_call};
use kv_server::mvcc::CommandOutput;
use kv_server::pb::etcdserverpb::{RangeRequest, RangeResponse};
use kv_server::pb::peer::lease_call;
use multiraft::HostError;
use raft_log::Index;
use raft_node::core::ChangeStep;

use super::client::{self, ClientOp};
use super::fault::SECOND;
use super::{Event, World};
use crate::sim::checkers::linearizable::Action;
use crate::sim::node::GROUP;
use crate::sim::oracle::ReadAnswer;
use crate::sim::workload;

/// Members that a client tries before it gives up.
const TRIES_MAX: u32 = 3;
/// Ticks between two operations of a client: ten per second on average.
const OPERATION_TICKS: u64 = SECOND / 10;

/// An operation under way.
pub(super) struct Call {
    op: ClientOp,
    /// Its place in the history, if it has one.
    place: Option<usize>,
    tries: u32,
    sent_at: u64,
}

/// What a client is told.
pub(super) enum Done {
    Command {
        call: u64,
        tag: u64,
        answer: Result<CommandOutput, HostError>,
    },
    Read {
        call: u64,
        after: Index,
        request: RangeRequest,
        answer: Result<Result<RangeResponse, ApiError>, HostError>,
    },
    Renewed {
        call: u64,
        lease: i64,
        /// Its time in seconds, if it has that again.
        answer: Result<Option<i64>, HostError>,
    },
    /// A change of the membership, and the place of the first member that it was to bring.
    Changed {
        steps: Vec<ChangeStep>,
        first_new: usize,
        answer: Result<CommandOutput, HostError>,
    },
}

impl World {
    /// The client of a member sends its next operation.
    pub(super) fn client(&mut self, node: usize) {
        if self.clients_stopped || self.members[node].gone {
            return;
        }
        let next = self.now + 1 + self.clients.below(2 * OPERATION_TICKS - 1);
        self.at(next, Event::Client(node));
        let id = self.next_call;
        self.next_call += 1;
        let op = client::draw(&mut self.clients, self.oracle.get().model(), id + 1);
        if self.clients.chance(1, 40) {
            self.ask_progress();
        }
        // Clients talk to any member, mostly to the nearest.
        let node = if self.clients.chance(1, 4) {
            self.clients.below(self.members.len() as u64) as usize
        } else {
            node
        };
        self.ask_as(id, node, op);
    }

    /// Somebody asks a member for something, once.
    pub(super) fn ask(&mut self, node: usize, op: ClientOp) {
        let id = self.next_call;
        self.next_call += 1;
        self.ask_as(id, node, op);
    }

    fn ask_as(&mut self, id: u64, node: usize, op: ClientOp) {
        let place = match op {
            ClientOp::Register(key, action) => Some(self.histories.sent(key, action)),
            _ => None,
        };
        let call = Call {
            op,
            place,
            tries: 0,
            sent_at: self.now,
        };
        self.calls.insert(id, call);
        self.count("operations");
        self.send(id, node);
    }

    /// Sends an operation to a member, which may be down.
    fn send(&mut self, id: u64, at: usize) {
        let member = &mut self.members[at];
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.tries += 1;
        if !member.node.is_up() || member.node.fs.is_down() {
            // Nobody has it.
            self.refused(id, None);
            return;
        }
        let op = call.op.clone();
        let what = (at, id, std::mem::discriminant(&op));
        self.trace
            .event(self.now, &what, || format!("client -> m{}: {op:?}", at + 1));
        match op {
            ClientOp::Register(key, action) => match client::command(key, action) {
                Some(command) => self.propose(id, at, command),
                None => self.read(id, at, client::get(client::name(key))),
            },
            ClientOp::Stale(key) => self.stale_read(id, at, key),
            ClientOp::Command(command) => self.propose(id, at, command),
            ClientOp::KeepAlive(lease) => self.keep_alive(id, at, lease),
        }
        let member = &mut self.members[at];
        member.due = member.due.min(self.now);
    }

    pub(super) fn retry(&mut self, call: u64, node: usize) {
        self.send(call, node);
    }

    fn propose(&mut self, call: u64, at: usize, command: kv_server::pb::command::command::Op) {
        let node = &self.members[at].node;
        let tag = self.oracle.get().sent(node.id, true);
        let done = self.done.clone();
        let payload = workload::encode(command, tag);
        let reply = Box::new(move |answer| done.get().push(Done::Command { call, tag, answer }));
        node.up().handle.propose(GROUP, payload, reply);
    }

    fn read(&mut self, call: u64, at: usize, request: RangeRequest) {
        let node = &self.members[at].node;
        let after = self.oracle.get().acked();
        let (done, store) = (self.done.clone(), Arc::clone(&node.up().store));
        let serve = Box::new(move |outcome: Result<(), HostError>| {
            let answer = outcome.map(|()| store.range(&request));
            done.get().push(Done::Read {
                call,
                after,
                request,
                answer,
            });
        });
        node.up().handle.read_barrier(GROUP, serve);
    }

    fn stale_read(&mut self, id: u64, at: usize, key: u64) {
        let node = &self.members[at].node;
        let request = client::get(client::name(key));
        let response = node.up().store.range(&request);
        let response = response.expect("a range of the newest revision");
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if let Err(text) = self.witness.reads.answered(node.id.0, revision) {
            panic!("{text}");
        }
        self.oracle.get().read(&ReadAnswer {
            after: Index::ZERO,
            request,
            response,
        });
        self.calls.remove(&id);
    }

    /// As the product's front end: the leader renews, when it has made sure that it is the leader.
    fn keep_alive(&mut self, call: u64, at: usize, lease: i64) {
        let node = &self.members[at].node;
        let done = self.done.clone();
        let handle = node.up().handle.clone();
        let told = move |answer| {
            done.get().push(Done::Renewed {
                call,
                lease,
                answer,
            });
        };
        if self.forwards {
            let payload = encode_call(lease_call::Op::KeepAlive(lease));
            let reply = Box::new(move |answer: Result<Bytes, HostError>| {
                told(answer.map(|payload| {
                    let ttl = decode_answer(payload).expect("members understand each other");
                    Some(ttl).filter(|ttl| *ttl > 0)
                }));
            });
            return handle.call_leader(GROUP, payload, reply);
        }
        let lessor = node.up().lessor.product().expect("leases end here");
        let led = handle.clone();
        let renew = Box::new(move |outcome: Result<(), HostError>| {
            told(outcome.map(|()| {
                let term = led.term(GROUP).expect("the host has the group");
                match lessor.leads_in(term).then(|| lessor.renew(lease, 0)) {
                    Some(Renewal::Renewed { ttl }) => Some(ttl),
                    _ => None,
                }
            }));
        });
        handle.read_barrier(GROUP, renew);
    }

    /// Tells clients what members have answered.
    pub(super) fn serve_done(&mut self) {
        let answers = std::mem::take(&mut *self.done.get());
        for answer in answers {
            match answer {
                Done::Command { call, tag, answer } => self.command_done(call, tag, answer),
                Done::Read {
                    call,
                    after,
                    request,
                    answer,
                } => match answer {
                    Ok(response) => self.read_done(call, after, request, response),
                    Err(error) => self.refused(call, Some(&error)),
                },
                Done::Renewed {
                    call,
                    lease,
                    answer,
                } => match answer {
                    Ok(ttl) => self.renewal_done(call, lease, ttl),
                    Err(error) => self.refused(call, Some(&error)),
                },
                Done::Changed {
                    steps,
                    first_new,
                    answer,
                } => self.change_done(&steps, first_new, &answer),
            }
        }
    }

    fn command_done(&mut self, call: u64, tag: u64, answer: Result<CommandOutput, HostError>) {
        self.oracle.get().answered((tag, answer.clone()));
        match answer {
            Ok(output) => {
                if let Some(Call {
                    op: ClientOp::Register(_, action),
                    place: Some(place),
                    ..
                }) = self.calls.remove(&call)
                {
                    self.histories
                        .answered(place, client::seen(action, &output));
                }
                self.count("commands acknowledged");
            }
            Err(HostError::OutcomeUnknown) => {
                self.calls.remove(&call);
                self.count("outcomes unknown");
            }
            Err(error) => self.refused(call, Some(&error)),
        }
    }

    fn read_done(
        &mut self,
        call: u64,
        after: Index,
        request: RangeRequest,
        response: Result<RangeResponse, ApiError>,
    ) {
        let response = response.expect("a range of the newest revision");
        if let Some(Call {
            place: Some(place), ..
        }) = self.calls.remove(&call)
        {
            let seen = client::value(&response.kvs);
            self.histories.answered(place, seen);
        }
        self.oracle.get().read(&ReadAnswer {
            after,
            request,
            response,
        });
        self.count("linearizable reads");
    }

    /// The lease had its full time at some moment after the call was sent; which one, the client does not know.
    fn renewal_done(&mut self, call: u64, id: i64, ttl: Option<i64>) {
        let Some(Call { sent_at, .. }) = self.calls.remove(&call) else {
            return;
        };
        let leases = self.oracle.get().model().leases();
        let lease = leases.iter().find(|known| known.id == id);
        if let (Some(lease), Some(ttl)) = (lease.filter(|known| Some(known.ttl) == ttl), ttl) {
            let ticks = ttl.unsigned_abs() * SECOND;
            self.witness.leases.full(lease.granted.0, sent_at, ticks);
            self.count("renewals");
        }
    }

    /// Nothing was done. The client tries the leader that it heard of, or gives up.
    fn refused(&mut self, id: u64, error: Option<&HostError>) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        if let Some(HostError::NotLeader(Some(leader))) = error
            && call.tries < TRIES_MAX
        {
            let node = leader.0 as usize - 1;
            self.at(self.now + 1, Event::Retry { call: id, node });
            return;
        }
        if let Some(Call {
            op: ClientOp::Register(_, action),
            place: Some(place),
            ..
        }) = self.calls.remove(&id)
            && action != Action::Get
        {
            self.histories.refused(place);
        }
        self.count("operations refused");
    }

    fn ask_progress(&mut self) {
        for watcher in &mut self.watchers {
            if let Some(at) = watcher.member() {
                watcher.ask_progress(&self.members[at].node);
            }
        }
    }

    /// Watchers take what a member has for them, and connect again if they must.
    pub(super) fn watch(&mut self, at: usize) {
        let member = &mut self.members[at];
        let revision = member.node.up().store.revision();
        for watcher in self
            .watchers
            .iter_mut()
            .filter(|watcher| !watcher.is_slow())
        {
            let connected = watcher.member();
            let new = connected.is_none();
            if new {
                watcher.connect(at, &member.node);
            }
            let here = connected == Some(at);
            let more = here && (watcher.was_behind() || revision != member.was_revision);
            if new || more {
                let oracle = self.oracle.get();
                if let Err(text) = watcher.take(&member.node, oracle.model()) {
                    drop(oracle);
                    panic!("a watch at member {}: {text}", at + 1);
                }
            }
        }
        member.was_revision = revision;
    }

    /// True when every watcher has received everything.
    pub(super) fn watchers_are_done(&mut self) -> bool {
        let revision = self.oracle.get().model().revision();
        for at in 0..self.members.len() {
            if self.members[at].node.is_up() {
                self.members[at].was_revision = 0;
                self.watch(at);
            }
        }
        self.watchers
            .iter()
            .all(|watcher| watcher.next() > revision)
    }
}
