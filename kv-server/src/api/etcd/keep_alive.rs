//! Renewing a lease, and what leases have left: a quorum contact, then the lessor; an entry in the log only where the
//! lessor asks for one. The leader has the lessor that counts, so where another member leads it is asked.
//!
//! The quorum contact is the round that linearizable reads use, so keepalives that come together share one.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{EtcdApi, Replica, View, host_error};
use crate::ApiError;
use crate::lease::{Renewal, clear_checkpoint, decode_answer, encode_call};
use crate::pb::etcdserverpb as pb;
use crate::pb::peer::lease_call;
use crate::reply;

/// How often a new leader's lessor is looked at until it counts; it is ticked ten times a second.
const LEADING_POLL: Duration = Duration::from_millis(10);

impl<R: Replica, V: View> EtcdApi<R, V> {
    pub(super) async fn keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, ApiError> {
        self.linearizable().await?;
        // As etcd: the header is from before the renewal, so that no answer shows a revision at which the lease is gone.
        let header = self.header();
        let renewed = timeout(self.options.request_timeout(), self.renew(id)).await;
        let ttl = renewed.unwrap_or(Err(ApiError::Timeout))?;
        Ok(pb::LeaseKeepAliveResponse { header, id, ttl })
    }

    /// The renewed time in seconds; 0 when there is no such lease.
    async fn renew(&self, id: i64) -> Result<i64, ApiError> {
        let mut settled = 0;
        loop {
            let renewal = if self.view.lease_leads_in(self.replica.term()) {
                self.view.lease_renew(id, settled)
            } else {
                Renewal::NotLeading
            };
            match renewal {
                Renewal::Renewed { ttl } => return Ok(ttl),
                Renewal::NotFound => return Ok(0),
                Renewal::Unsettled { granted, seen } => {
                    self.propose(clear_checkpoint(id, granted.0)).await?;
                    settled = seen;
                }
                Renewal::NotLeading => {
                    if self.other_leads()? {
                        return self.ask_leader(lease_call::Op::KeepAlive(id)).await;
                    }
                    // Nothing ticks the lessor of a group that has no leases and nothing to do. State is as fresh as the
                    // read above.
                    if self.view.lease(id).is_none() {
                        return Ok(0);
                    }
                    sleep(LEADING_POLL).await;
                    // It may lead in another term by then.
                    self.linearizable().await?;
                }
            }
        }
    }

    /// The seconds that a lease has left, as the leader counts them; none when nobody says.
    pub(super) async fn time_left(&self, id: i64) -> Result<Option<i64>, ApiError> {
        if self.view.lease_leads_in(self.replica.term()) {
            return Ok(self.view.lease_remaining(id));
        }
        if !self.other_leads()? {
            return Ok(None);
        }
        let left = self.ask_leader(lease_call::Op::TimeToLive(id)).await?;
        Ok((left >= 0).then_some(left))
    }

    fn other_leads(&self) -> Result<bool, ApiError> {
        let group = self.replica.status();
        let leader = group.leader.ok_or(ApiError::NoLeader)?;
        Ok(leader != group.node)
    }

    async fn ask_leader(&self, op: lease_call::Op) -> Result<i64, ApiError> {
        let (sender, receiver) = reply::channel();
        self.replica
            .call_leader(encode_call(op), Box::new(move |answer| sender.send(answer)));
        let answer: Bytes = match timeout(self.options.request_timeout(), receiver).await {
            Ok(Ok(answer)) => answer.map_err(|error| host_error(&error))?,
            Ok(Err(_)) => return Err(ApiError::Stopped),
            Err(_) => return Err(ApiError::Timeout),
        };
        decode_answer(answer).ok_or_else(|| {
            let text = "flotilla: the leader's answer about a lease cannot be read".to_owned();
            ApiError::Other(Code::Internal, text)
        })
    }
}
