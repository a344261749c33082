//! A range that is answered in parts: how large they are, and where the next one begins.
//!
//! All of them are as of one revision, and each is read from a snapshot of its own: whoever reads slowly holds no view of
//! the engine. So history may be compacted under a stream, which then ends with etcd's error.

use prost::Message;
use tonic::Code;

use super::access::Access;
use super::pb;
use crate::ApiError;
use crate::api::View;
use pb::range_request::{SortOrder, SortTarget};

/// Keys of the first part.
const KEYS_FIRST: usize = 10;

/// Where a streamed range goes on.
pub struct RangeCursor {
    /// On whose behalf; ended when users or roles change.
    pub(super) access: Access,
    /// What is left: its key moves, and it is pinned to a revision once the first part was read.
    pub(super) request: pb::RangeRequest,
    /// Bytes that a part should have, about.
    target: usize,
    /// Keys of the next part.
    keys_max: usize,
    /// Keys that may still be sent.
    left: usize,
    sent: i64,
    /// The store's, when the stream began.
    revision: Option<i64>,
}

impl RangeCursor {
    pub(super) fn new(request: pb::RangeRequest, target: usize) -> Result<Self, ApiError> {
        let refused = |what: &str| {
            let text = format!("RangeStream does not support {what}");
            Err(ApiError::Other(Code::Unimplemented, text))
        };
        let by_key = request.sort_target() == SortTarget::Key;
        match request.sort_order() {
            SortOrder::None => {}
            SortOrder::Ascend if by_key => {}
            _ => return refused("custom sort orders"),
        }
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if filters.iter().any(|filter| *filter != 0) {
            return refused("revision filters");
        }
        let limit = usize::try_from(request.limit).ok();
        Ok(Self {
            access: Access::default(),
            request,
            target,
            keys_max: KEYS_FIRST,
            left: limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX),
            sent: 0,
            revision: None,
        })
    }

    /// Reads the next part. The header has the revision only, and only the last part has one.
    pub(super) fn next(
        mut self,
        view: &impl View,
    ) -> Result<(pb::RangeResponse, Option<Self>), ApiError> {
        if self.request.count_only || self.request.range_end.is_empty() {
            // A sort target without an order is no order here.
            self.request.sort_target = SortTarget::Key.into();
            return Ok((view.range(&self.request)?, None));
        }
        // Values may grow from one part to the next; twice the target is where parts become smaller anyway.
        let keys_max = self.keys_max.min(self.left);
        let part = view.range_part(&self.request, keys_max, 2 * self.target)?;
        let revision = *self.revision.get_or_insert(part.revision);
        if self.request.revision <= 0 {
            self.request.revision = revision;
        }
        self.left -= part.kvs.len();
        self.sent += i64::try_from(part.kvs.len()).unwrap_or(i64::MAX);
        let mut response = pb::RangeResponse {
            kvs: part.kvs,
            ..Default::default()
        };
        let last = response.kvs.last().filter(|_| part.more);
        if let Some(last) = last {
            self.request.key = [last.key.as_ref(), &[0]].concat().into();
            if self.left > 0 {
                self.adjust(response.encoded_len());
                return Ok((response, Some(self)));
            }
        }
        response.more = part.more;
        response.count = self.sent;
        if part.more {
            self.request.count_only = true;
            response.count += view.range(&self.request)?.count;
        }
        response.header = Some(pb::ResponseHeader {
            revision,
            ..Default::default()
        });
        Ok((response, None))
    }

    /// Chooses the keys of the next part by how large this one was.
    fn adjust(&mut self, bytes: usize) {
        if bytes < self.target / 2 {
            self.keys_max = self.keys_max.saturating_mul(2);
        } else if bytes > 2 * self.target {
            self.keys_max = (self.keys_max / 2).max(1);
        }
    }
}
