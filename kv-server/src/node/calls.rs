//! What members ask of the leader beside proposing: renewals of leases, and changes of the members.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError, RwLock};

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
    /// Of each keyspace.
    leases: RwLock<BTreeMap<GroupId, LeaseCalls<GroupReplica>>>,
    members: Mutex<Sender<Event>>,
}

impl NodeCalls {
    pub(super) fn new(members: Sender<Event>) -> Self {
        Self {
            leases: RwLock::default(),
            members: Mutex::new(members),
        }
    }

    /// Lets the leases of a keyspace be renewed here.
    pub(super) fn add(&self, group: GroupId, leases: LeaseCalls<GroupReplica>) {
        let mut all = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(group, leases);
    }
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
            let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
            return match leases.get(&group) {
                Some(leases) => leases.call(group, payload, reply),
                None => reply(None),
            };
        };
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(lost) = members.send(Event::Call(call, reply))
            && let Event::Call(_, reply) = lost.0
        {
            reply(None);
        }
    }
}
