//! Which members there are: what a new one asks of those that its flags name, before it has an id.
//!
//! Anybody who reaches a peer port may ask, as in etcd. The answer is what one member knows; it may lag behind.

use std::time::Duration;

use raft_log::{Index, NodeId, StoreId};
use tokio::time::timeout;

use super::dial::{connect, describe};
use super::hello::FORMAT;
use super::pb;
use crate::tls::ClientTls;

/// One member of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedMember {
    /// Its id.
    pub id: NodeId,
    /// Its name; empty until it has served once.
    pub name: String,
    /// Where members reach it.
    pub peer_urls: Vec<String>,
    /// It counts in decisions.
    pub votes: bool,
    /// Its data directory, once somebody met it.
    pub store: Option<StoreId>,
    /// The newest incarnation of its log that was seen; 0 for none but the first.
    pub log_incarnation: u64,
}

/// A cluster, as one of its members knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The cluster.
    pub cluster: u64,
    /// What tells its first group from every other one of that number: [`raft_log::Base::creation`].
    pub creation: u64,
    /// The index of the group's log as of which this is so, at least.
    pub index: Index,
    /// The members; empty while who is asked knows that it is behind.
    pub members: Vec<ListedMember>,
}

/// Says which members there are. Called by the transport's thread: it must not block.
pub trait Directory: Send + Sync + 'static {
    /// What this member knows.
    fn view(&self) -> ClusterView;
}

pub(super) fn encode(view: ClusterView) -> pb::MembersResponse {
    let member = |member: ListedMember| pb::ListedMember {
        id: member.id.0,
        name: member.name,
        peer_urls: member.peer_urls,
        votes: member.votes,
        store: member.store.map_or(0, |store| store.0),
        log_incarnation: member.log_incarnation,
    };
    pb::MembersResponse {
        format: FORMAT,
        cluster: view.cluster,
        creation: view.creation,
        index: view.index.0,
        members: view.members.into_iter().map(member).collect(),
    }
}

fn decode(response: pb::MembersResponse) -> Result<ClusterView, String> {
    if response.format != FORMAT {
        return Err(format!(
            "it speaks version {} of the peer protocol, this one version {FORMAT}",
            response.format
        ));
    }
    let member = |member: pb::ListedMember| ListedMember {
        id: NodeId(member.id),
        name: member.name,
        peer_urls: member.peer_urls,
        votes: member.votes,
        store: (member.store != 0).then_some(StoreId(member.store)),
        log_incarnation: member.log_incarnation,
    };
    Ok(ClusterView {
        cluster: response.cluster,
        creation: response.creation,
        index: Index(response.index),
        members: response.members.into_iter().map(member).collect(),
    })
}

/// Asks the member at `url` which members there are. Blocks, for as long as it may take; not for a thread that runs tasks.
///
/// # Errors
/// Why there is no answer.
pub fn ask_members(
    url: &str,
    tls: Option<&ClientTls>,
    patience: Duration,
) -> Result<ClusterView, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let ask = async {
        let mut client = connect(url, tls).await?;
        let request = pb::MembersRequest { format: FORMAT };
        let response = client.members(request).await;
        decode(response.map_err(|status| describe(&status))?.into_inner())
    };
    runtime.block_on(async {
        let asked = timeout(patience, ask).await;
        asked.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    })
}
