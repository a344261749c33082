//! The Lease service. A stream of keepalives is answered in order, one message at a time: the next one is read when the
//! answer to the last has been taken, so a client that does not read fills its own HTTP/2 window and nothing else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::grpc::{Answer, Call, Front, Outcome, wants_leader};
use crate::ApiError;
use crate::api::Api;
use crate::pb::etcdserverpb as pb;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[tonic::async_trait]
impl<A: Api> pb::lease_server::Lease for Front<A> {
    type LeaseKeepAliveStream = KeepAlives<A>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Answer<pb::LeaseGrantResponse> {
        let (api, request) = self.admit(Call::LeaseGrant, request)?;
        self.calls
            .done(Call::LeaseGrant, api.lease_grant(request).await)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Answer<pb::LeaseRevokeResponse> {
        let (api, request) = self.admit(Call::LeaseRevoke, request)?;
        self.calls
            .done(Call::LeaseRevoke, api.lease_revoke(request).await)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let wants_leader = wants_leader(&request);
        let (api, inbound) = self.admit(Call::LeaseKeepAlive, request)?;
        let outcome = Outcome::new(&self.calls, Call::LeaseKeepAlive);
        let stream = KeepAlives::new(Arc::new(api), inbound, wants_leader, outcome);
        Ok(Response::new(stream))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Answer<pb::LeaseTimeToLiveResponse> {
        let (api, request) = self.admit(Call::LeaseTimeToLive, request)?;
        self.calls
            .done(Call::LeaseTimeToLive, api.lease_time_to_live(request).await)
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Answer<pb::LeaseLeasesResponse> {
        let (api, request) = self.admit(Call::LeaseLeases, request)?;
        self.calls
            .done(Call::LeaseLeases, api.lease_leases(request).await)
    }
}

/// The answers to one client's keepalives.
pub(super) struct KeepAlives<A> {
    api: Arc<A>,
    inbound: Streaming<pb::LeaseKeepAliveRequest>,
    /// The answer under way.
    answer: Option<Boxed<Result<pb::LeaseKeepAliveResponse, ApiError>>>,
    /// For clients that asked for a leader.
    leader_lost: Option<Boxed<()>>,
    /// None once the stream has ended.
    outcome: Option<Outcome>,
}

impl<A: Api> KeepAlives<A> {
    fn new(
        api: Arc<A>,
        inbound: Streaming<pb::LeaseKeepAliveRequest>,
        wants_leader: bool,
        outcome: Outcome,
    ) -> Self {
        let leader_lost = wants_leader.then(|| {
            let api = Arc::clone(&api);
            Box::pin(async move { api.leader_lost().await }) as Boxed<()>
        });
        Self {
            api,
            inbound,
            answer: None,
            leader_lost,
            outcome: Some(outcome),
        }
    }

    fn end<T>(&mut self, status: Option<Status>) -> Option<Result<T, Status>> {
        if let Some(mut outcome) = self.outcome.take() {
            outcome.code = status.as_ref().map_or(Code::Ok, Status::code);
        }
        self.answer = None;
        status.map(Err)
    }
}

impl<A: Api> Stream for KeepAlives<A> {
    type Item = Result<pb::LeaseKeepAliveResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &mut *self;
        if stream.outcome.is_none() {
            return Poll::Ready(None);
        }
        if let Some(lost) = &mut stream.leader_lost
            && lost.as_mut().poll(context).is_ready()
        {
            stream.leader_lost = None;
            return Poll::Ready(stream.end(Some(ApiError::NoLeader.into())));
        }
        loop {
            if let Some(answer) = &mut stream.answer {
                let answered = ready!(answer.as_mut().poll(context));
                stream.answer = None;
                return Poll::Ready(match answered {
                    Ok(response) => Some(Ok(response)),
                    Err(error) => stream.end(Some(error.into())),
                });
            }
            match ready!(Pin::new(&mut stream.inbound).poll_next(context)) {
                Some(Ok(request)) => {
                    let api = Arc::clone(&stream.api);
                    let answer = async move { api.lease_keep_alive(request).await };
                    stream.answer = Some(Box::pin(answer));
                }
                Some(Err(status)) => return Poll::Ready(stream.end(Some(status))),
                None => return Poll::Ready(stream.end(None)),
            }
        }
    }
}
