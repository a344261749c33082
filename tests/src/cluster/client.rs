//! A client without an event loop of its own: each call blocks, and ends in time.

use std::time::Duration;

use kv_server::pb::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Talks to one member. It connects when it is first used, and again when that is needed.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    /// How long a call may take.
    pub patience: Duration,
}

impl Client {
    /// A client of the member at `url`.
    ///
    /// # Panics
    /// When there is no runtime, or the URL is none.
    #[must_use]
    pub fn new(url: &str, patience: Duration) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("the URL is one");
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_timeout(patience).connect_lazy()
        };
        Self {
            runtime,
            channel,
            patience,
        }
    }

    /// Runs calls, within the client's patience.
    ///
    /// # Errors
    /// The call's, and `DeadlineExceeded` when it takes too long.
    pub fn run<T>(
        &self,
        call: impl AsyncFnOnce(Channel) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let late = |_| {
            Err(Status::new(
                Code::DeadlineExceeded,
                "the test waits no longer",
            ))
        };
        self.runtime.block_on(async {
            let called = timeout(self.patience, call(self.channel.clone()));
            called.await.unwrap_or_else(late)
        })
    }

    /// Writes a key, and says what was there before.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn put(&self, key: &str, value: &str) -> Result<Option<String>, Status> {
        self.put_at(key, value).map(|(before, _)| before)
    }

    /// As [`Self::put`], with the revision of the write.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn put_at(&self, key: &str, value: &str) -> Result<(Option<String>, i64), Status> {
        let request = pb::PutRequest {
            key: key.as_bytes().to_vec().into(),
            value: value.as_bytes().to_vec().into(),
            prev_kv: true,
            ..pb::PutRequest::default()
        };
        let answer = self.run(async |channel| KvClient::new(channel).put(request).await)?;
        let answer = answer.into_inner();
        let before = answer.prev_kv.map(|kv| text(&kv.value));
        Ok((before, answer.header.map_or(0, |header| header.revision)))
    }

    /// Reads a key; the answer may be stale when `serializable` is set.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn get(&self, key: &str, serializable: bool) -> Result<Option<String>, Status> {
        let request = pb::RangeRequest {
            key: key.as_bytes().to_vec().into(),
            serializable,
            ..pb::RangeRequest::default()
        };
        let answer = self.run(async |channel| KvClient::new(channel).range(request).await)?;
        let found = answer.into_inner().kvs;
        Ok(found.first().map(|kv| text(&kv.value)))
    }

    /// Writes a key if it has a certain value, and says what was there.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn swap(&self, key: &str, from: &str, to: &str) -> Result<Option<String>, Status> {
        self.swap_at(key, from, to).map(|(before, _)| before)
    }

    /// As [`Self::swap`], with the revision of the write if it took place.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn swap_at(
        &self,
        key: &str,
        from: &str,
        to: &str,
    ) -> Result<(Option<String>, Option<i64>), Status> {
        let key = bytes::Bytes::copy_from_slice(key.as_bytes());
        let get = || pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest {
                key: key.clone(),
                ..pb::RangeRequest::default()
            })),
        };
        let put = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: key.clone(),
                value: to.as_bytes().to_vec().into(),
                ..pb::PutRequest::default()
            })),
        };
        let is = pb::Compare {
            result: pb::compare::CompareResult::Equal as i32,
            target: pb::compare::CompareTarget::Value as i32,
            key: key.clone(),
            target_union: Some(pb::compare::TargetUnion::Value(
                from.as_bytes().to_vec().into(),
            )),
            ..pb::Compare::default()
        };
        let request = pb::TxnRequest {
            compare: vec![is],
            success: vec![get(), put],
            failure: vec![get()],
        };
        let answer = self.run(async |channel| KvClient::new(channel).txn(request).await)?;
        let answer = answer.into_inner();
        let revision = answer.header.map(|header| header.revision);
        let first = answer.responses.into_iter().next();
        match first.and_then(|op| op.response) {
            Some(pb::response_op::Response::ResponseRange(range)) => Ok((
                range.kvs.first().map(|kv| text(&kv.value)),
                revision.filter(|_| answer.succeeded),
            )),
            _ => Err(Status::internal(
                "a transaction answers with its operations",
            )),
        }
    }

    /// The newest revision at which one of the keys with a prefix changed that are there.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn newest_change(&self, prefix: &str) -> Result<i64, Status> {
        let request = pb::RangeRequest {
            key: prefix.as_bytes().to_vec().into(),
            range_end: end_of(prefix).into(),
            keys_only: true,
            ..pb::RangeRequest::default()
        };
        let answer = self.run(async |channel| KvClient::new(channel).range(request).await)?;
        let changes = answer.into_inner().kvs.into_iter();
        Ok(changes.map(|kv| kv.mod_revision).max().unwrap_or(0))
    }

    /// Watches all keys with a prefix from a revision on, for as long as the client is patient, the stream lasts and
    /// `take` says true to what comes.
    ///
    /// # Errors
    /// Why it ended, unless `take` ended it.
    pub fn watch(
        &self,
        prefix: &str,
        from: i64,
        mut take: impl FnMut(pb::WatchResponse) -> bool,
    ) -> Result<(), Status> {
        let create = pb::WatchCreateRequest {
            key: prefix.as_bytes().to_vec().into(),
            range_end: end_of(prefix).into(),
            start_revision: from,
            ..pb::WatchCreateRequest::default()
        };
        let request = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        self.run(async |channel| {
            // The stream of requests stays open: its end is the watch's.
            let (sender, requests) = tokio::sync::mpsc::channel(1);
            let queued = sender.try_send(request);
            queued.expect("the channel is new and has room");
            let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
            let mut answers = WatchClient::new(channel)
                .watch(requests)
                .await?
                .into_inner();
            while let Some(answer) = answers.message().await? {
                if !take(answer) {
                    return Ok(());
                }
            }
            drop(sender);
            Err(Status::unavailable("the stream ended"))
        })
    }

    /// The member's own view of the group.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn status(&self) -> Result<pb::StatusResponse, Status> {
        let call = async |channel| {
            let mut client = MaintenanceClient::new(channel);
            client.status(pb::StatusRequest {}).await
        };
        Ok(self.run(call)?.into_inner())
    }

    /// Moves leadership from this member to the one with that id.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn move_leader(&self, target_id: u64) -> Result<(), Status> {
        let call = async |channel| {
            let mut client = MaintenanceClient::new(channel);
            client
                .move_leader(pb::MoveLeaderRequest { target_id })
                .await
        };
        self.run(call).map(drop)
    }

    /// The hash of all that is stored as of a revision.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn hash(&self, revision: i64) -> Result<u32, Status> {
        let call = async |channel| {
            let mut client = MaintenanceClient::new(channel);
            client.hash_kv(pb::HashKvRequest { revision }).await
        };
        Ok(self.run(call)?.into_inner().hash)
    }

    /// All members.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn members(&self) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberListRequest { linearizable: true };
        let call = async |channel| ClusterClient::new(channel).member_list(request).await;
        Ok(self.run(call)?.into_inner().members)
    }

    /// Adds a member; returns it, and all of them.
    ///
    /// # Errors
    /// The server's, or none came.
    ///
    /// # Panics
    /// When an answer names no member.
    pub fn member_add(
        &self,
        peer_url: &str,
        is_learner: bool,
    ) -> Result<(pb::Member, Vec<pb::Member>), Status> {
        let request = pb::MemberAddRequest {
            peer_ur_ls: vec![peer_url.to_owned()],
            is_learner,
        };
        let call = async |channel| ClusterClient::new(channel).member_add(request).await;
        let answer = self.run(call)?.into_inner();
        let added = answer.member.expect("the answer names the new member");
        Ok((added, answer.members))
    }

    /// Removes a member; returns those that are left.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn member_remove(&self, id: u64) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberRemoveRequest { id };
        let call = async |channel| ClusterClient::new(channel).member_remove(request).await;
        Ok(self.run(call)?.into_inner().members)
    }

    /// Gives a member another peer URL; returns all of them.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn member_update(&self, id: u64, peer_url: &str) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberUpdateRequest {
            id,
            peer_ur_ls: vec![peer_url.to_owned()],
        };
        let call = async |channel| ClusterClient::new(channel).member_update(request).await;
        Ok(self.run(call)?.into_inner().members)
    }

    /// Lets a learner vote; returns all members.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn member_promote(&self, id: u64) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberPromoteRequest { id };
        let call = async |channel| ClusterClient::new(channel).member_promote(request).await;
        Ok(self.run(call)?.into_inner().members)
    }

    /// Grants a lease; returns its id.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn grant(&self, ttl: i64) -> Result<i64, Status> {
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        let call = async |channel| LeaseClient::new(channel).lease_grant(request).await;
        Ok(self.run(call)?.into_inner().id)
    }

    /// Renews a lease; returns its time to live.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let call = async |channel| {
            let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
            let mut client = LeaseClient::new(channel);
            let mut answers = client.lease_keep_alive(requests).await?.into_inner();
            let answer = answers.message().await?;
            answer.ok_or_else(|| Status::internal("the stream ended without an answer"))
        };
        Ok(self.run(call)?.ttl)
    }

    /// What a lease has left.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn time_to_live(&self, id: i64) -> Result<i64, Status> {
        let request = pb::LeaseTimeToLiveRequest { id, keys: false };
        let call = async |channel| LeaseClient::new(channel).lease_time_to_live(request).await;
        Ok(self.run(call)?.into_inner().ttl)
    }

    /// A linearizable read of a client that asks for a leader.
    ///
    /// # Errors
    /// The server's, or none came.
    pub fn get_with_leader(&self, key: &str) -> Result<(), Status> {
        let mut request = Request::new(pb::RangeRequest {
            key: key.as_bytes().to_vec().into(),
            ..pb::RangeRequest::default()
        });
        let wanted = "true".parse().expect("it is a header's value");
        request.metadata_mut().insert("hasleader", wanted);
        self.run(async |channel| KvClient::new(channel).range(request).await)
            .map(drop)
    }
}

/// The first key behind all that begin with a prefix.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    end
}

pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}
