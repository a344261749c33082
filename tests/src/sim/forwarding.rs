//! What a simulated member needs to serve clients while another one leads: as the product has it, but that commands
//! which the leader proposes for a call carry tags, so that the oracle knows them.

use std::sync::Arc;

use bytes::Bytes;
use kv_server::api;
use kv_server::lease::{self, LeaseCalls};
use kv_server::mvcc::{CommandOutput, stamp};
use multiraft::forward::{ForwardLimits, Forwarding, Outcomes};
use multiraft::{GroupStatus, HostHandle, Reply};
use raft_log::NodeId;

use super::node::GROUP;
use super::oracle::{Oracle, Shared};
use super::sinks::Observed;
use super::workload;

/// The group of a member, for those who answer calls.
pub struct Replica {
    node: NodeId,
    handle: HostHandle<Observed>,
    oracle: Shared<Oracle>,
}

impl Replica {
    /// The group of a member that runs.
    #[must_use]
    pub fn new(node: NodeId, handle: HostHandle<Observed>, oracle: Shared<Oracle>) -> Self {
        Self {
            node,
            handle,
            oracle,
        }
    }
}

impl api::Replica for Replica {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        let tag = self.oracle.get().sent(self.node, false);
        self.handle
            .propose(GROUP, workload::tagged(&payload, tag), reply);
    }

    fn read_barrier(&self, done: Reply<()>) {
        self.handle.read_barrier(GROUP, done);
    }

    fn read_now(&self) -> bool {
        self.handle.read_now(GROUP)
    }

    fn call_leader(&self, payload: Bytes, reply: Reply<Bytes>) {
        self.handle.call_leader(GROUP, payload, reply);
    }

    fn status(&self) -> GroupStatus {
        self.handle.status(GROUP).unwrap_or_default()
    }
}

/// All of it, for one run of a member.
#[must_use]
pub fn setup(
    outcomes: Arc<Outcomes<CommandOutput>>,
    replica: Replica,
    lessor: Arc<lease::Lessor>,
    election_ticks: u64,
) -> Forwarding<CommandOutput> {
    Forwarding {
        outcomes,
        stamp,
        calls: Arc::new(LeaseCalls::new(GROUP, replica, lessor)),
        limits: ForwardLimits::new(election_ticks),
    }
}
