//! What the transport asks of a node: which members there are, and whether one comes with the disk that it always had.

use std::sync::Arc;

use multiraft::transport::{ClusterView, Directory, ListedMember, StoreGate};
use raft_log::{NodeId, StoreId};

use super::PeerBook;
use super::peers::other_disk;
use super::roster::Roster;
use crate::mvcc::Store;

/// Lists the members as applied state and `PEERS` have them.
pub(super) struct MemberDirectory {
    pub(super) cluster: u64,
    pub(super) creation: u64,
    pub(super) store: Arc<Store>,
    pub(super) peers: Arc<PeerBook>,
}

impl Directory for MemberDirectory {
    fn view(&self) -> ClusterView {
        let mut roster = Roster::of(&self.store, &self.peers);
        let index = roster.table.index;
        if self.peers.is_ahead_of(index) {
            roster.members.clear();
        }
        let members = roster.members.into_iter().map(|member| ListedMember {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            votes: member.votes,
            store: member.store,
            log_incarnation: member.incarnation,
        });
        ClusterView {
            cluster: self.cluster,
            creation: self.creation,
            index,
            members: members.collect(),
        }
    }
}

/// The disk that a member published counts for everybody, also for who never met it before.
pub(super) struct MemberGate {
    pub(super) store: Arc<Store>,
    pub(super) peers: Arc<PeerBook>,
}

impl StoreGate for MemberGate {
    fn admit(
        &self,
        member: NodeId,
        store: StoreId,
        incarnation: Option<u64>,
    ) -> Result<(), String> {
        let published = self.store.member(member).map_or(0, |row| row.store);
        if published != 0 && published != store.0 {
            return Err(other_disk(member, store, StoreId(published)));
        }
        self.peers.admit(member, store, incarnation)
    }
}
