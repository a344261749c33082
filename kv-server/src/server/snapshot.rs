//! The stream of a backup: what the api makes of it, and its outcome counted.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;
use tonic::{Code, Status};

use super::grpc::Outcome;
use crate::ApiError;
use crate::api::SnapshotParts;
use crate::pb::etcdserverpb as pb;

/// The parts of one backup.
pub(super) struct Parts {
    parts: SnapshotParts,
    /// None once the stream has ended.
    outcome: Option<Outcome>,
}

impl Parts {
    pub(super) fn begin(
        begun: Result<SnapshotParts, ApiError>,
        mut outcome: Outcome,
    ) -> Result<Self, Status> {
        match begun {
            Ok(parts) => Ok(Self {
                parts,
                outcome: Some(outcome),
            }),
            Err(error) => {
                outcome.code = error.code();
                Err(error.into())
            }
        }
    }

    fn end(&mut self, code: Code) {
        if let Some(mut outcome) = self.outcome.take() {
            outcome.code = code;
        }
    }
}

impl Stream for Parts {
    type Item = Result<pb::SnapshotResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outcome.is_none() {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.parts.poll_recv(context)) {
            Some(Ok(part)) => Some(Ok(part)),
            Some(Err(error)) => {
                self.end(error.code());
                Some(Err(error.into()))
            }
            None => {
                self.end(Code::Ok);
                None
            }
        })
    }
}
