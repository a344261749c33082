//! Renewing a lease: a quorum contact, then the lessor; an entry in the log only where the lessor asks for one.
//!
//! The quorum contact is the round that linearizable reads use, so keepalives that come together share one.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{EtcdApi, Replica, View};
use crate::ApiError;
use crate::lease::Renewal;
use crate::pb::command::{LeaseCheckpoint, command::Op, lease_checkpoint};
use crate::pb::etcdserverpb as pb;

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
            match self.view.lease_renew(id, settled) {
                Renewal::Renewed { ttl } => return Ok(ttl),
                Renewal::NotFound => return Ok(0),
                Renewal::Unsettled { granted, seen } => {
                    let clear = lease_checkpoint::Item {
                        id,
                        granted_index: granted.0,
                        remaining_ttl: 0,
                    };
                    let items = vec![clear];
                    self.propose(Op::LeaseCheckpoint(LeaseCheckpoint { items }))
                        .await?;
                    settled = seen;
                }
                Renewal::NotLeading => {
                    let group = self.replica.status();
                    if group.leader.is_none() {
                        return Err(ApiError::NoLeader);
                    }
                    if group.leader != Some(group.node) {
                        return Err(ApiError::LeaderChanged);
                    }
                    sleep(LEADING_POLL).await;
                    // It may lead in another term by then.
                    self.linearizable().await?;
                }
            }
        }
    }
}
