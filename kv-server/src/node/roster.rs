//! The members as one list: the group's configuration, what applied state knows of each, and what `PEERS` remembers of those
//! that have not published anything yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use raft_log::{NodeId, StoreId};
use raft_node::core::Membership;

use super::PeerBook;
use crate::mvcc::{MemberTable, Store};
use crate::pb::etcdserverpb as pb;

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) peer_urls: Vec<String>,
    pub(super) client_urls: Vec<String>,
    /// It counts in decisions.
    pub(super) votes: bool,
    /// It does not yet, and will without being asked.
    pub(super) joins_as_voter: bool,
    /// The data directory behind it, once somebody met it.
    pub(super) store: Option<StoreId>,
    /// The newest incarnation of its log that was met.
    pub(super) incarnation: u64,
    /// The request that added or promoted it last.
    pub(super) request: u64,
}

impl Member {
    /// What clients call a learner.
    pub(super) fn is_learner(&self) -> bool {
        !self.votes && !self.joins_as_voter
    }

    /// True once it has told its name, as etcd has it.
    pub(super) fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// As clients see it.
    pub(super) fn describe(&self) -> pb::Member {
        pb::Member {
            id: self.id.0,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner(),
        }
    }
}

/// All of them, as of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Roster {
    /// Ascending by id.
    pub(super) members: Vec<Member>,
    /// Who is on its way out: it still decides.
    pub(super) leaving: BTreeSet<NodeId>,
    /// What applied state has.
    pub(super) table: Arc<MemberTable>,
}

impl Roster {
    pub(super) fn of(store: &Store, peers: &PeerBook) -> Self {
        let table = store.members();
        // The first configuration, while no entry has named another.
        let membership = table.membership.clone().unwrap_or_else(|| peers.first());
        Self::from(table, &membership, peers)
    }

    fn from(table: Arc<MemberTable>, membership: &Membership, peers: &PeerBook) -> Self {
        let member = |id: NodeId| {
            let (row, known) = (table.rows.get(&id).cloned(), peers.get(id));
            let (row, known) = (row.unwrap_or_default(), known.unwrap_or_default());
            let or = |first: Vec<String>, second| if first.is_empty() { second } else { first };
            Member {
                id,
                name: if row.name.is_empty() {
                    known.name
                } else {
                    row.name
                },
                peer_urls: or(row.peer_urls, known.peer_urls),
                client_urls: row.client_urls,
                votes: membership.voters.contains(&id),
                joins_as_voter: row.joins_as_voter,
                store: (row.store != 0)
                    .then_some(StoreId(row.store))
                    .or(known.store),
                incarnation: known.incarnation,
                request: row.request,
            }
        };
        let all = membership.members();
        let stays =
            |id: &NodeId| membership.voters.contains(id) || membership.learners.contains(id);
        let (members, leaving): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
        Self {
            members: members.into_iter().map(member).collect(),
            leaving: leaving.into_iter().collect(),
            table,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// As clients see it.
    pub(super) fn describe(&self) -> Vec<pb::Member> {
        self.members.iter().map(Member::describe).collect()
    }
}
