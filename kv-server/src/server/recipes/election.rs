//! The Election service.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{Answer, Call, Candidate, Recipes, failed, first_of, point, revision};
use crate::ApiError;
use crate::api::Api;
use crate::mvcc::EventKind;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3electionpb as election;
use crate::server::grpc::{Front, wants_leader};
use crate::watch::{Followed, Follower, WatchHub};

const EXPIRED: &str = "election: session is expired";

/// The candidate whom a request names.
fn named(leader: Option<election::LeaderKey>) -> Result<Candidate, ApiError> {
    let leader = leader.ok_or_else(|| failed("\"leader\" field must be provided"))?;
    Ok(Candidate {
        name: leader.name,
        key: leader.key,
        lease: leader.lease,
        created: leader.rev,
    })
}

#[tonic::async_trait]
impl<A: Api> election::election_server::Election for Recipes<A> {
    async fn campaign(
        &self,
        request: Request<election::CampaignRequest>,
    ) -> Answer<election::CampaignResponse> {
        let wants_leader = wants_leader(&request);
        let (me, request) = self.admit(Call::Campaign, request)?;
        let won = me.win(request, wants_leader).await;
        self.done(Call::Campaign, won)
    }

    async fn proclaim(
        &self,
        request: Request<election::ProclaimRequest>,
    ) -> Answer<election::ProclaimResponse> {
        let (me, request) = self.admit(Call::Proclaim, request)?;
        let proclaimed = match named(request.leader) {
            Ok(leader) => me.proclaim_as(&leader, request.value).await,
            Err(error) => Err(error),
        };
        let answer = proclaimed.map(|header| election::ProclaimResponse { header });
        self.done(Call::Proclaim, answer)
    }

    async fn leader(
        &self,
        request: Request<election::LeaderRequest>,
    ) -> Answer<election::LeaderResponse> {
        let (me, request) = self.admit(Call::Leader, request)?;
        let found = me.api().range(first_of(&request.name)).await;
        let answer = found.and_then(|range| match range.kvs.into_iter().next() {
            Some(kv) => Ok(election::LeaderResponse {
                header: range.header,
                kv: Some(kv),
            }),
            None => Err(failed("election: no leader")),
        });
        self.done(Call::Leader, answer)
    }

    type ObserveStream = ReceiverStream<Result<election::LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<election::LeaderRequest>,
    ) -> Answer<Self::ObserveStream> {
        let wants_leader = wants_leader(&request);
        let (me, request) = self.admit(Call::Observe, request)?;
        let (sender, receiver) = mpsc::channel(1);
        let observer = Observer {
            front: me.front,
            hub: me.hub,
            name: request.name,
            sender,
        };
        tokio::spawn(observer.run(wants_leader));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resign(
        &self,
        request: Request<election::ResignRequest>,
    ) -> Answer<election::ResignResponse> {
        let (me, request) = self.admit(Call::Resign, request)?;
        let resigned = match named(request.leader) {
            Ok(leader) => me.api().txn(leader.removal()).await,
            Err(error) => Err(error),
        };
        let answer = resigned.map(|txn| election::ResignResponse { header: txn.header });
        self.done(Call::Resign, answer)
    }
}

impl<A: Api> Recipes<A> {
    async fn win(
        &self,
        request: election::CampaignRequest,
        wants_leader: bool,
    ) -> Result<election::CampaignResponse, ApiError> {
        let value = request.value.clone();
        let entered = self
            .enter(request.name, request.lease, request.value)
            .await?;
        let candidate = &entered.candidate;
        if entered.value.is_some_and(|old| old != value) {
            self.proclaim_as(candidate, value).await?;
        }
        if !entered.first {
            self.wait_for_turn(candidate, wants_leader, EXPIRED).await?;
        }
        Ok(election::CampaignResponse {
            // As etcd's: that of the entry, whatever came after it.
            header: entered.header,
            leader: Some(election::LeaderKey {
                name: candidate.name.clone(),
                key: candidate.key.clone(),
                rev: candidate.created,
                lease: candidate.lease,
            }),
        })
    }

    async fn proclaim_as(
        &self,
        leader: &Candidate,
        value: Bytes,
    ) -> Result<Option<pb::ResponseHeader>, ApiError> {
        let answer = self.api().txn(leader.put(value)).await?;
        if answer.succeeded {
            Ok(answer.header)
        } else {
            Err(failed("election: not leader"))
        }
    }
}

/// Tells one client who leads, and what each leader proclaims, in order. One that falls behind what the event log keeps
/// in memory is told the newest proclamation instead of all.
struct Observer<A> {
    front: Front<A>,
    hub: Arc<WatchHub>,
    name: Bytes,
    sender: mpsc::Sender<Result<election::LeaderResponse, Status>>,
}

/// Ends an observation: the status to send, if the client is still there.
type End = Option<ApiError>;

impl<A: Api> Observer<A> {
    async fn run(self, wants_leader: bool) {
        let lost = async {
            if wants_leader {
                self.front.api.leader_lost().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let end = tokio::select! {
            end = self.observe() => end,
            () = lost => Some(ApiError::NoLeader),
            () = self.sender.closed() => None,
        };
        let code = end.as_ref().map_or(Code::Cancelled, ApiError::code);
        self.front.calls.count(Call::Observe, code);
        if let Some(error) = end {
            // A client that left does not need it.
            let _ = self.sender.send(Err(error.into())).await;
        }
    }

    async fn observe(&self) -> End {
        loop {
            let (leader, mut seen) = match self.first().await {
                Ok(found) => found,
                Err(end) => return end,
            };
            let mut events = Follower::new(Arc::clone(&self.hub), seen + 1);
            let mut told = leader.mod_revision;
            let key = leader.key.clone();
            if let Err(end) = self.tell(leader, seen).await {
                return end;
            }
            loop {
                match events.next(|event| event.kv.key == key).await {
                    Followed::Event(event, _) if event.kind == EventKind::Delete => break,
                    Followed::Event(event, revision) => {
                        (told, seen) = (event.kv.mod_revision, revision);
                        if let Err(end) = self.tell(event.kv, seen).await {
                            return end;
                        }
                    }
                    Followed::Gap => match self.first().await {
                        Err(end) => return end,
                        Ok((now, at)) => {
                            events = Follower::new(Arc::clone(&self.hub), at + 1);
                            if now.key != key {
                                break;
                            }
                            if now.mod_revision > told {
                                told = now.mod_revision;
                                if let Err(end) = self.tell(now, at).await {
                                    return end;
                                }
                            }
                        }
                    },
                    Followed::Closed => return Some(ApiError::Stopped),
                }
            }
        }
    }

    /// The first key of the election, once there is one, and the revision at which it was found.
    async fn first(&self) -> Result<(KeyValue, i64), End> {
        let prefix = first_of(&self.name);
        loop {
            let found = self.front.api.range(prefix.clone()).await.map_err(Some)?;
            let at = revision(found.header.as_ref());
            if let Some(kv) = found.kvs.into_iter().next() {
                return Ok((kv, at));
            }
            let mut events = Follower::new(Arc::clone(&self.hub), at + 1);
            let entered = events.next(|event| {
                event.kind == EventKind::Put
                    && event.kv.key >= prefix.key
                    && event.kv.key < prefix.range_end
            });
            match entered.await {
                // The leader is whoever is first by then.
                Followed::Event(..) | Followed::Gap => {}
                Followed::Closed => return Err(Some(ApiError::Stopped)),
            }
        }
    }

    /// Ends the observation when the client is gone, or may not read the key any more.
    async fn tell(&self, kv: KeyValue, at: i64) -> Result<(), End> {
        let may_read = pb::RangeRequest {
            count_only: true,
            serializable: true,
            ..point(&kv.key)
        };
        self.front.api.range(may_read).await.map_err(Some)?;
        let header = match self.front.api.status(pb::StatusRequest {}).await {
            Ok(status) => status.header,
            Err(_) => None,
        };
        let header = header.map(|header| pb::ResponseHeader {
            revision: at,
            ..header
        });
        let answer = election::LeaderResponse {
            header,
            kv: Some(kv),
        };
        self.sender.send(Ok(answer)).await.map_err(|_| None)
    }
}
