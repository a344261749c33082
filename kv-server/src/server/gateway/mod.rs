//! etcd's JSON gateway: the services of the port for clients that speak HTTP and JSON.
//!
//! A request becomes a gRPC request to the same services, within the process: limits, checks, metadata, errors and metrics
//! are theirs, and there is no second way to do anything. A message is translated by its descriptor (`json`). Streams are
//! objects one after the other in the request, and one object per line in the answer; the client pulls either way, so that
//! nothing gathers here (`frames`).

mod frames;
mod json;
mod routes;

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Request, Response, StatusCode,
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tokio::task::spawn_blocking;
use tonic::Status;
use tonic::body::Body;

use super::http::Dispatch;
use crate::pb::DESCRIPTORS;
use frames::{Answers, Requests, too_long};

pub use routes::ROUTES;

/// Where the paths of the gateway begin.
pub(super) const PREFIX: &str = "/v3/";
/// What precedes the name of metadata in HTTP.
const METADATA: &str = "grpc-metadata-";
/// The JSON of a message may take twice as much as the message, and this: base64 takes a third more, and names are longer.
const JSON_OVERHEAD_BYTES: usize = 64 << 10;

/// An answer that is longer is translated beside the RPC thread, on which others wait.
const INLINE_BYTES: usize = 256 << 10;

/// A gRPC method behind a path.
struct Method {
    path: &'static str,
    input: MessageDescriptor,
    output: MessageDescriptor,
    streams_in: bool,
    streams_out: bool,
}

/// The gateway; see the module.
pub(super) struct Gateway {
    /// By path; none where this version lacks the method.
    methods: HashMap<&'static str, (&'static str, Option<Method>)>,
    json_bytes_max: usize,
}

impl Gateway {
    /// For services that take messages of at most so many bytes.
    pub(super) fn new(message_bytes_max: usize) -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("the .proto files were compiled");
        let methods = routes::ROUTES
            .iter()
            .map(|(route, path)| (*route, (*path, find(&pool, path))))
            .collect();
        Self {
            methods,
            json_bytes_max: 2 * message_bytes_max + JSON_OVERHEAD_BYTES,
        }
    }

    /// Answers a request by asking `grpc`.
    pub(super) async fn serve(&self, request: Request<Body>, grpc: Dispatch) -> Response<Body> {
        match self.call(request, grpc).await {
            Ok(response) => response,
            Err(status) => {
                let code = StatusCode::from_u16(json::http_status(status.code()))
                    .expect("the statuses are HTTP's");
                respond(code, Full::new(json::from_status(&status).into()))
            }
        }
    }

    async fn call(&self, request: Request<Body>, grpc: Dispatch) -> Result<Response<Body>, Status> {
        let found = self.methods.get(request.uri().path());
        let (path, method) = found.ok_or_else(|| Status::not_found("Not Found"))?;
        if request.method() != HttpMethod::POST {
            return Err(Status::unimplemented("Method Not Allowed"));
        }
        let missing = || {
            let text = format!("flotilla: {path} is not implemented in this version");
            Status::unimplemented(text)
        };
        let method = method.as_ref().ok_or_else(missing)?;
        let (head, incoming) = request.into_parts();
        let body = if method.streams_in {
            let requests = Requests::new(incoming, method.input.clone(), self.json_bytes_max);
            Body::new(requests)
        } else {
            let json = self.gather(incoming).await?;
            Body::new(Full::new(json::to_frame(&method.input, &json)?))
        };
        let asked = grpc.ask(method.request(&head.headers, body));
        let (head, body) = match asked.await {
            Ok(response) => response.into_parts(),
        };
        let mut answers = Answers::new(&head.headers, body);
        let first = poll_fn(|context| answers.poll_next(context)).await?;
        if method.streams_out {
            // As etcd's, the answer begins with the first message: until then an error has a status of its own.
            let lines = Lines {
                answers,
                output: method.output.clone(),
                first,
                ended: false,
            };
            return Ok(respond(StatusCode::OK, lines));
        }
        let message = first.ok_or_else(|| Status::internal("flotilla: there was no answer"))?;
        let message_bytes = message.len();
        // What follows can only be a failure.
        while poll_fn(|context| answers.poll_next(context))
            .await?
            .is_some()
        {}
        let output = method.output.clone();
        let translate = move || json::from_message(&output, message, ["", ""]);
        let json = if message_bytes <= INLINE_BYTES {
            translate()
        } else {
            let lost = |_| Status::internal("flotilla: an answer was not translated; see the log");
            spawn_blocking(translate).await.map_err(lost)?
        };
        Ok(respond(StatusCode::OK, Full::new(json?)))
    }

    async fn gather(&self, incoming: Body) -> Result<Bytes, Status> {
        let gathered = Limited::new(incoming, self.json_bytes_max).collect().await;
        let gathered = gathered.map_err(|error| match error.is::<LengthLimitError>() {
            true => too_long(self.json_bytes_max),
            false => Status::cancelled(error.to_string()),
        })?;
        Ok(gathered.to_bytes())
    }
}

fn find(pool: &DescriptorPool, path: &'static str) -> Option<Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let service = pool.get_service_by_name(service)?;
    let method = service.methods().find(|method| method.name() == name)?;
    Some(Method {
        path,
        input: method.input(),
        output: method.output(),
        streams_in: method.is_client_streaming(),
        streams_out: method.is_server_streaming(),
    })
}

impl Method {
    fn request(&self, given: &HeaderMap, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = HttpMethod::POST;
        *request.uri_mut() = http::Uri::from_static(self.path);
        let headers = request.headers_mut();
        metadata(given, headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        request
    }
}

/// The metadata of a call: a token, and what is named as metadata. Nothing else of the client's connection counts.
fn metadata(given: &HeaderMap, headers: &mut HeaderMap) {
    for (name, value) in given {
        let name = name.as_str().strip_prefix(METADATA);
        if let Some(name) = name.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
            headers.append(name, value.clone());
        }
    }
    let Some(given) = given.get(AUTHORIZATION) else {
        return;
    };
    let token = given.as_bytes();
    let token = token.strip_prefix(b"Bearer ").unwrap_or(token);
    if let Ok(token) = HeaderValue::from_bytes(token) {
        headers.insert("token", token);
    }
}

fn respond<B>(status: StatusCode, body: B) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The answers of a stream, one per line. Nothing is taken from the service before the client takes what there is.
struct Lines {
    answers: Answers,
    output: MessageDescriptor,
    first: Option<Bytes>,
    ended: bool,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => ready!(self.answers.poll_next(context)),
        };
        let line = next.and_then(|message| {
            let around = ["{\"result\":", "}\n"];
            let line = message.map(|message| json::from_message(&self.output, message, around));
            line.transpose()
        });
        self.ended = !matches!(line, Ok(Some(_)));
        let line = line.unwrap_or_else(|status| Some(json::line_of_status(&status)));
        Poll::Ready(line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_what_is_named_so_and_the_token() {
        for (given, expected) in [
            ("abc.7", "abc.7"),
            ("Bearer abc.7", "abc.7"),
            ("Bearer  x", " x"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(given));
            headers.insert("grpc-metadata-hasleader", HeaderValue::from_static("true"));
            headers.insert("grpc-metadata-token", HeaderValue::from_static("other"));
            headers.insert("hasleader", HeaderValue::from_static("false"));
            let mut found = HeaderMap::new();
            metadata(&headers, &mut found);
            assert_eq!(found.get("token").unwrap(), expected);
            assert_eq!(found.get_all("token").iter().count(), 1);
            assert_eq!(found.get_all("hasleader").iter().count(), 1);
            assert_eq!(found["hasleader"], "true");
            assert_eq!(found.len(), 2, "{found:?}");
        }
    }

    #[test]
    fn every_route_leads_to_a_method_or_to_users_and_roles() {
        let gateway = Gateway::new(1 << 20);
        for (route, path) in ROUTES {
            let (found, method) = &gateway.methods[route];
            assert_eq!(found, path);
            assert!(method.is_some() || path.contains(".Auth/"), "{route}");
        }
        assert_eq!(gateway.methods.len(), ROUTES.len(), "each once");
    }
}
