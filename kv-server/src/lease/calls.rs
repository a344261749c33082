//! Renewals, and what leases have left, for clients of other members: the leader's answers to their calls. Members report
//! the hashes of their state the same way, and ask for another one.
//!
//! It does what the front end does for a client of its own, without a runtime: each step is the callback of the one
//! before. A member that does not lead answers nothing, and is not asked again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use multiraft::forward::{CallReply, Calls};
use prost::Message;
use raft_log::{GroupId, Index, NodeId, Term};

use super::{Lessor, Renewal};
use crate::api::Replica;
use crate::pb::command::{Command, LeaseCheckpoint, command::Op, lease_checkpoint};
use crate::pb::peer::{LeaseAnswer, LeaseCall, lease_call};
use crate::upkeep::Verdict;

/// Hears what members report of their state to this one, which leads, and sends it to those who have lost theirs.
pub trait StateReports: Send + Sync {
    /// A member's state has this hash at this applied index.
    fn report(&self, member: NodeId, index: Index, hash: u64);

    /// A member waits for a snapshot from above an index. `done` is called once: with whether one begins to be sent, or is
    /// under way; with nothing when this member has none to send.
    fn send_state(&self, member: NodeId, above: Index, done: StateSent);

    /// What the newest comparison above an index says of a member's state.
    fn verdict(&self, member: NodeId, above: Index) -> Verdict;
}

/// What becomes of a snapshot that is asked for.
pub type StateSent = Box<dyn FnOnce(Option<bool>) + Send>;

/// Answers the calls of one keyspace's members.
pub struct LeaseCalls<R>(Arc<Parts<R>>);

struct Parts<R> {
    group: GroupId,
    replica: R,
    lessor: Arc<Lessor>,
    reports: Option<Arc<dyn StateReports>>,
}

impl<R> fmt::Debug for LeaseCalls<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseCalls")
            .field("group", &self.0.group)
            .finish_non_exhaustive()
    }
}

/// A call, encoded.
#[must_use]
pub fn encode_call(op: lease_call::Op) -> Bytes {
    LeaseCall { op: Some(op) }.encode_to_vec().into()
}

/// The seconds in an answer; none from bytes that are not one.
#[must_use]
pub fn decode_answer(payload: Bytes) -> Option<i64> {
    LeaseAnswer::decode(payload).ok().map(|answer| answer.ttl)
}

/// The command that clears the checkpoint of a lease, so that it has its full time again.
pub(crate) fn clear_checkpoint(id: i64, granted_index: u64) -> Op {
    let clear = lease_checkpoint::Item {
        id,
        granted_index,
        remaining_ttl: 0,
    };
    Op::LeaseCheckpoint(LeaseCheckpoint { items: vec![clear] })
}

impl<R: Replica> LeaseCalls<R> {
    /// For the group behind `replica`, whose deadlines `lessor` keeps.
    pub fn new(group: GroupId, replica: R, lessor: Arc<Lessor>) -> Self {
        Self::with_reports(group, replica, lessor, None)
    }

    /// The same, and says who hears of the state of members.
    pub fn with_reports(
        group: GroupId,
        replica: R,
        lessor: Arc<Lessor>,
        reports: Option<Arc<dyn StateReports>>,
    ) -> Self {
        Self(Arc::new(Parts {
            group,
            replica,
            lessor,
            reports,
        }))
    }
}

impl<R: Replica> Calls for LeaseCalls<R> {
    fn call(&self, group: GroupId, payload: Bytes, reply: CallReply) {
        let op = LeaseCall::decode(payload).ok().and_then(|call| call.op);
        let Some(op) = op.filter(|_| group == self.0.group) else {
            return reply(None);
        };
        let parts = Arc::clone(&self.0);
        // Nobody but the leader may answer, and whether this is one takes a quorum to say.
        self.0.replica.read_barrier(Box::new(move |done| {
            if done.is_err() || !parts.leads() {
                return reply(None);
            }
            match op {
                lease_call::Op::KeepAlive(id) => renew(parts, id, 0, reply),
                lease_call::Op::TimeToLive(id) => {
                    let left = parts.lessor.time_to_live(id);
                    answer(reply, left.map_or(-1, |(_, left)| left));
                }
                lease_call::Op::StateHash(report) => {
                    if let Some(reports) = &parts.reports {
                        let (member, index) = (NodeId(report.member), Index(report.index));
                        reports.report(member, index, report.hash);
                    }
                    answer(reply, 0);
                }
                lease_call::Op::StateVerdict(wanted) => {
                    let (member, above) = (NodeId(wanted.member), Index(wanted.above));
                    let verdict = parts
                        .reports
                        .as_ref()
                        .map(|reports| reports.verdict(member, above));
                    answer(reply, verdict.unwrap_or(Verdict::Unknown).number());
                }
                lease_call::Op::SendState(wanted) => {
                    let Some(reports) = &parts.reports else {
                        return reply(None);
                    };
                    let done: StateSent = Box::new(move |sent| match sent {
                        Some(begins) => answer(reply, i64::from(begins)),
                        None => reply(None),
                    });
                    reports.send_state(NodeId(wanted.member), Index(wanted.above), done);
                }
            }
        }));
    }
}

impl<R: Replica> Parts<R> {
    fn leads(&self) -> bool {
        self.lessor.leads_in(Term(self.replica.term()))
    }
}

fn answer(reply: CallReply, ttl: i64) {
    reply(Some(LeaseAnswer { ttl }.encode_to_vec().into()));
}

/// As [`Lessor::renew`] says: where an entry may be under way that ends the lease, one that clears its checkpoint is
/// committed first.
fn renew<R: Replica>(parts: Arc<Parts<R>>, id: i64, settled: u64, reply: CallReply) {
    match parts.lessor.renew(id, settled) {
        Renewal::Renewed { ttl } => answer(reply, ttl),
        Renewal::NotFound => answer(reply, 0),
        Renewal::NotLeading => reply(None),
        Renewal::Unsettled { granted, seen } => {
            let op = Some(clear_checkpoint(id, granted.0));
            let payload = Command { op }.encode_to_vec().into();
            let again = Arc::clone(&parts);
            parts.replica.propose(
                payload,
                Box::new(move |done| match done {
                    Ok(_) if again.leads() => renew(again, id, seen, reply),
                    _ => reply(None),
                }),
            );
        }
    }
}
