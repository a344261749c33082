//! What members ask of the leader beside proposing: renewals of leases, and changes of the members.

use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use multiraft::forward::{CallReply, Calls};
use prost::Message;
use raft_log::GroupId;

use super::keeper::Event;
use super::view::GroupReplica;
use crate::lease::LeaseCalls;
use crate::pb::peer::MemberCall;

/// Tells the two apart.
pub(super) struct NodeCalls {
    pub(super) leases: LeaseCalls<GroupReplica>,
    pub(super) members: Mutex<Sender<Event>>,
}

impl fmt::Debug for NodeCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCalls").finish_non_exhaustive()
    }
}

impl Calls for NodeCalls {
    fn call(&self, group: GroupId, payload: Bytes, reply: CallReply) {
        let members = MemberCall::decode(payload.clone()).ok();
        let Some(call) = members.filter(|call| call.op.is_some()) else {
            return self.leases.call(group, payload, reply);
        };
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(lost) = members.send(Event::Call(call, reply))
            && let Event::Call(_, reply) = lost.0
        {
            reply(None);
        }
    }
}
