//! The Lock service.

use bytes::Bytes;
use tonic::Request;

use super::{Answer, Call, Recipes};
use crate::ApiError;
use crate::api::Api;
use crate::pb::etcdserverpb as pb;
use crate::pb::v3lockpb;
use crate::server::grpc::wants_leader;

const EXPIRED: &str = "mutex: session is expired";

#[tonic::async_trait]
impl<A: Api> v3lockpb::lock_server::Lock for Recipes<A> {
    async fn lock(
        &self,
        request: Request<v3lockpb::LockRequest>,
    ) -> Answer<v3lockpb::LockResponse> {
        let wants_leader = wants_leader(&request);
        let (me, request) = self.admit(Call::Lock, request)?;
        let locked = me.acquire(request, wants_leader).await;
        self.done(Call::Lock, locked)
    }

    async fn unlock(
        &self,
        request: Request<v3lockpb::UnlockRequest>,
    ) -> Answer<v3lockpb::UnlockResponse> {
        let (me, request) = self.admit(Call::Unlock, request)?;
        let delete = pb::DeleteRangeRequest {
            key: request.key,
            ..Default::default()
        };
        let deleted = me.api().delete_range(delete).await;
        let unlocked = deleted.map(|answer| v3lockpb::UnlockResponse {
            header: answer.header,
        });
        self.done(Call::Unlock, unlocked)
    }
}

impl<A: Api> Recipes<A> {
    async fn acquire(
        &self,
        request: v3lockpb::LockRequest,
        wants_leader: bool,
    ) -> Result<v3lockpb::LockResponse, ApiError> {
        let entered = self
            .enter(request.name, request.lease, Bytes::new())
            .await?;
        let header = if entered.first {
            entered.header
        } else {
            self.wait_for_turn(&entered.candidate, wants_leader, EXPIRED)
                .await?
        };
        Ok(v3lockpb::LockResponse {
            header,
            key: entered.candidate.key,
        })
    }
}
