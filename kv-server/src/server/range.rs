//! The stream of a range: one part at a time, made when the connection takes it.
//!
//! So a client that does not read has one part in its window's queue and costs nothing more; the next one is read from the
//! store when there is room.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;
use tonic::{Code, Status};

use super::grpc::Outcome;
use crate::ApiError;
use crate::api::{Api, RangeCursor};
use crate::pb::etcdserverpb as pb;

type Next = Result<(pb::RangeResponse, Option<RangeCursor>), ApiError>;

/// The parts of one range.
pub(super) struct Chunks<A> {
    api: Arc<A>,
    /// None once the last part was sent.
    next: Option<Pin<Box<dyn Future<Output = Next> + Send>>>,
    /// None once the stream has ended.
    outcome: Option<Outcome>,
}

impl<A: Api> Chunks<A> {
    /// The first part is read before anything is sent: what is refused has no answer but a status.
    pub(super) async fn begin(
        api: Arc<A>,
        request: pb::RangeRequest,
        mut outcome: Outcome,
    ) -> Result<Self, Status> {
        let first = async { api.range_next(api.range_begin(request).await?).await };
        let first = first.await;
        match first {
            Ok(first) => Ok(Self {
                api,
                next: Some(Box::pin(std::future::ready(Ok(first)))),
                outcome: Some(outcome),
            }),
            Err(error) => {
                outcome.code = error.code();
                Err(error.into())
            }
        }
    }

    fn end(&mut self, code: Code) {
        self.next = None;
        if let Some(mut outcome) = self.outcome.take() {
            outcome.code = code;
        }
    }
}

impl<A: Api> Stream for Chunks<A> {
    type Item = Result<pb::RangeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(next) = &mut self.next else {
            self.end(Code::Ok);
            return Poll::Ready(None);
        };
        Poll::Ready(match ready!(next.as_mut().poll(context)) {
            Ok((response, cursor)) => {
                let api = Arc::clone(&self.api);
                self.next = cursor.map(|cursor| {
                    let next = async move { api.range_next(cursor).await };
                    Box::pin(next) as Pin<Box<dyn Future<Output = Next> + Send>>
                });
                let range_response = Some(response);
                Some(Ok(pb::RangeStreamResponse { range_response }))
            }
            Err(error) => {
                self.end(error.code());
                Some(Err(error.into()))
            }
        })
    }
}
