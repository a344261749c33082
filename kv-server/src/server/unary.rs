//! The calls that are many: those of the KV service with one answer, as `http2` makes them when their request came whole.
//!
//! What they do is what the service does: [`Front`] is asked with the same request as by the generated server. What is left
//! out is the body on the way in and the one on the way out.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::grpc::{self, Front};
use crate::api::Api;
use crate::codec::{self, HEAD_BYTES};
use crate::pb::etcdserverpb as pb;
use pb::kv_server::Kv;

/// The content type of an answer.
pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// A method that has a short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Range,
    Put,
    DeleteRange,
    Txn,
}

/// The answer under way: its message as a frame of gRPC, and what the service says of it.
pub(super) type Answer = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

impl Unary {
    /// The method that a request names, if it has a short way; a request that says how it is encoded has none.
    pub(super) fn of(request: &Parts) -> Option<Self> {
        if request.headers.contains_key(&GRPC_ENCODING) {
            return None;
        }
        match request.uri.path().strip_prefix(super::http::KV)? {
            "Range" => Some(Self::Range),
            "Put" => Some(Self::Put),
            "DeleteRange" => Some(Self::DeleteRange),
            "Txn" => Some(Self::Txn),
            _ => None,
        }
    }

    /// Calls the method with an encoded message.
    pub(super) fn call<A: Api>(self, front: &Arc<Front<A>>, head: Parts, message: Bytes) -> Answer {
        let front = Arc::clone(front);
        match self {
            Self::Range => answer(head, message, async move |request| {
                front.range(request).await
            }),
            Self::Put => answer(head, message, async move |request| front.put(request).await),
            Self::DeleteRange => answer(head, message, async move |request| {
                front.delete_range(request).await
            }),
            Self::Txn => answer(head, message, async move |request| front.txn(request).await),
        }
    }
}

fn answer<Q, P, F>(
    head: Parts,
    message: Bytes,
    call: impl FnOnce(Request<Q>) -> F + Send + 'static,
) -> Answer
where
    Q: Message + Default,
    P: Message,
    F: Future<Output = grpc::Answer<P>> + Send,
{
    Box::pin(async move {
        let message = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        let metadata = MetadataMap::from_headers(head.headers);
        let request = Request::from_parts(metadata, head.extensions, message);
        let (metadata, message, extensions) = call(request).await?.into_parts();
        let frame = codec::frame(&message)?;
        Ok(Response::from_parts(metadata, frame, extensions))
    })
}

/// True when a piece of a body is one message of at most so many bytes, not compressed, and nothing else.
pub(super) fn is_one_frame(piece: &[u8], bytes_max: usize) -> bool {
    let Some((head, message)) = piece.split_first_chunk::<HEAD_BYTES>() else {
        return false;
    };
    let [compressed, length @ ..] = *head;
    compressed == 0
        && u32::from_be_bytes(length) as usize == message.len()
        && message.len() <= bytes_max
}

/// The trailers of an answer that is one.
pub(super) fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// An answer with a body, which whatever bounds long answers can do its work on.
pub(super) fn framed(answer: Response<Bytes>) -> http::Response<Body> {
    let (metadata, message, extensions) = answer.into_parts();
    let trailers = async { Some(Ok(success())) };
    let mut framed = http::Response::new(Body::new(Full::new(message).with_trailers(trailers)));
    *framed.headers_mut() = metadata.into_headers();
    framed.headers_mut().insert(CONTENT_TYPE, GRPC);
    *framed.extensions_mut() = extensions;
    framed
}
