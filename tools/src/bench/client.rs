//! gRPC over HTTP/2 without what a load generator does not need: requests come encoded, answers are decoded only where
//! somebody looks at them. What the client costs is taken from a server on the same machine.
//!
//! A connection that broke is made anew by the next request, one attempt at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request};
use kv_server::codec::HEAD_BYTES;
use multiraft::tls::{self, ClientTls};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::args::LoadArgs;
use crate::failure::{Failure, chain};
use crate::user::{Token, User, log_in};

/// How much a server may send before it must wait for us.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After a connection could not be made: how long until the next attempt.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Method {
    Put,
    Get,
    Range,
    RangeStream,
    Txn,
    Grant,
    KeepAlive,
    Revoke,
    Watch,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::RangeStream => "range-stream",
            Self::Txn => "txn",
            Self::Grant => "grant",
            Self::KeepAlive => "keepalive",
            Self::Revoke => "revoke",
            Self::Watch => "event",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Get | Self::Range => "/etcdserverpb.KV/Range",
            Self::RangeStream => "/etcdserverpb.KV/RangeStream",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Grant => "/etcdserverpb.Lease/LeaseGrant",
            Self::KeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Self::Revoke => "/etcdserverpb.Lease/LeaseRevoke",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
    }
}

/// A message as it is sent: with the head that says how long it is.
pub(super) fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&[0]);
    let length = u32::try_from(length).expect("requests are far shorter than 4 GiB");
    frame.extend_from_slice(&length.to_be_bytes());
    message
        .encode(&mut frame)
        .expect("the buffer grows as it must");
    frame.freeze()
}

/// A server: one endpoint, or several members of a cluster.
#[derive(Clone)]
pub(super) struct Target {
    /// As it was given, or the first and how many more where there are many.
    pub(super) name: String,
    pub(super) pids: Vec<u32>,
    urls: Vec<String>,
    tls: Option<ClientTls>,
    user: Option<User>,
    timeout: Duration,
}

/// Endpoints in a name, at most: it heads columns and begins lines.
const NAMED_MAX: usize = 5;

fn name_of(endpoints: &str) -> String {
    let all: Vec<&str> = endpoints.split(',').collect();
    match all[..] {
        [first, ..] if all.len() > NAMED_MAX => format!("{first} and {} more", all.len() - 1),
        _ => endpoints.to_owned(),
    }
}

impl Target {
    pub(super) fn new(
        endpoints: &str,
        pids: &[u32],
        args: &LoadArgs,
        user: Option<&User>,
    ) -> Result<Self, Failure> {
        let url = |endpoint: &str| {
            if endpoint.contains("://") {
                endpoint.to_owned()
            } else {
                format!("http://{endpoint}")
            }
        };
        let urls: Vec<String> = endpoints.split(',').map(url).collect();
        Ok(Self {
            name: name_of(endpoints),
            pids: pids.to_vec(),
            tls: args.tls.open(&urls)?,
            urls,
            user: user.cloned(),
            timeout: args.timeout,
        })
    }

    /// A connection for calls that are no load, and the token for all others.
    pub(super) async fn channel(&self) -> Result<(Channel, Token), Failure> {
        let url = &self.urls[0];
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| Failure::Usage(format!("endpoint {url:?}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.timeout);
        let channel = tls::connect(&endpoint, self.tls.as_ref())
            .await
            .map_err(|error| unreachable(url, &chain(&error)))?;
        let token = log_in(&channel, self.user.as_ref())
            .await
            .map_err(|status| Failure::failed(format!("logging in at {url}"), status.message()))?;
        Ok((channel, token))
    }

    /// Makes connections, to each endpoint its share.
    pub(super) async fn connect(&self, count: usize) -> Result<Vec<Connection>, Failure> {
        let token = match self.user {
            Some(_) => self.channel().await?.1,
            None => Token::default(),
        };
        let mut connections = Vec::with_capacity(count);
        for url in self.urls.iter().cycle().take(count) {
            let heads = Heads::new(url, &token)?;
            let send = heads
                .open(self.tls.as_ref())
                .await
                .map_err(|text| unreachable(url, &text))?;
            connections.push(Connection(Arc::new(Inner {
                heads,
                tls: self.tls.clone(),
                current: Mutex::new((0, send)),
                mending: tokio::sync::Mutex::new(()),
            })));
        }
        Ok(connections)
    }
}

fn unreachable(url: &str, text: &str) -> Failure {
    Failure::failed(
        format!("connecting to {url} (is the server running?)"),
        text,
    )
}

/// What each request to a URL begins with.
struct Heads {
    url: http::Uri,
    headers: HeaderMap,
}

impl Heads {
    fn new(url: &str, token: &Token) -> Result<Self, Failure> {
        let wrong =
            |error: &dyn std::error::Error| Failure::Usage(format!("endpoint {url:?}: {error}"));
        let url: http::Uri = url.parse().map_err(|error| wrong(&error))?;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        if let Some(token) = token.text() {
            let token = HeaderValue::from_bytes(token).map_err(|error| wrong(&error))?;
            headers.insert("token", token);
        }
        Ok(Self { url, headers })
    }

    async fn open(&self, tls: Option<&ClientTls>) -> Result<SendRequest<Bytes>, String> {
        let connecting = async {
            let socket = tls::open(&self.url, tls)
                .await
                .map_err(|error| chain(&error))?;
            h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .enable_push(false)
                .handshake(socket)
                .await
                .map_err(|error| chain(&error))
        };
        let late = |_| Err(format!("no connection within {CONNECT_TIMEOUT:?}"));
        let (send, connection) = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(late)?;
        // Its end shows in every request; what drives it ends with the runtime.
        tokio::spawn(async move { drop(connection.await) });
        Ok(send)
    }

    fn request(&self, method: Method) -> Request<()> {
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static(method.path()));
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_parts(parts).expect("a URL with another path is one");
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    heads: Heads,
    tls: Option<ClientTls>,
    /// How often it was made anew, and the connection.
    current: Mutex<(u64, SendRequest<Bytes>)>,
    /// Whoever has it makes the next one.
    mending: tokio::sync::Mutex<()>,
}

impl Connection {
    fn current(&self) -> (u64, SendRequest<Bytes>) {
        let current = self.0.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins a request; the answer's body is read by who asked.
    async fn begin(
        &self,
        method: Method,
        message: Bytes,
        ends: bool,
    ) -> Result<(SendStream<Bytes>, http::Response<RecvStream>), Status> {
        let (generation, send) = self.current();
        let send = match send.ready().await {
            Ok(send) => send,
            Err(_) => self.mend(generation).await?.ready().await.map_err(gone)?,
        };
        let mut send = send;
        let request = self.0.heads.request(method);
        let (response, mut body) = send.send_request(request, false).map_err(gone)?;
        body.send_data(message, ends).map_err(gone)?;
        Ok((body, response.await.map_err(gone)?))
    }

    async fn mend(&self, broken: u64) -> Result<SendRequest<Bytes>, Status> {
        let _alone = self.0.mending.lock().await;
        let (generation, send) = self.current();
        if generation != broken {
            return Ok(send);
        }
        match self.0.heads.open(self.0.tls.as_ref()).await {
            Ok(send) => {
                let mut current = self
                    .0
                    .current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *current = (generation + 1, send.clone());
                Ok(send)
            }
            Err(text) => {
                sleep(RECONNECT_PAUSE).await;
                Err(Status::unavailable(text))
            }
        }
    }

    /// Asks, and reads the answer to its end. Its message is kept where somebody needs it.
    pub(super) async fn call(
        &self,
        method: Method,
        message: Bytes,
        keeps: bool,
    ) -> Result<Answer, Status> {
        let (_, response) = self.begin(method, message, true).await?;
        let (head, mut body) = response.into_parts();
        let mut answer = Answer::default();
        let mut parts = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(gone)?;
            body.flow_control()
                .release_capacity(data.len())
                .map_err(gone)?;
            answer.bytes += data.len();
            if !keeps {
            } else if answer.message.is_empty() {
                answer.message = data;
            } else {
                if parts.is_empty() {
                    parts.extend_from_slice(&answer.message);
                }
                parts.extend_from_slice(&data);
            }
        }
        if !parts.is_empty() {
            answer.message = parts.freeze();
        }
        let trailers = body.trailers().await.map_err(gone)?;
        end(&head, trailers.as_ref())?;
        if answer.message.len() >= HEAD_BYTES {
            answer.message = answer.message.split_off(HEAD_BYTES);
        }
        Ok(answer)
    }

    /// Opens a stream in both directions, with a first message.
    pub(super) async fn stream(&self, method: Method, message: Bytes) -> Result<Stream, Status> {
        let (sending, response) = self.begin(method, message, false).await?;
        let (head, body) = response.into_parts();
        if body.is_end_stream() {
            end(&head, None)?;
        }
        Ok(Stream {
            head,
            _sending: sending,
            body,
        })
    }
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// As it was sent, heads included.
    pub(super) bytes: usize,
    /// Without its head; empty unless it was to be kept.
    pub(super) message: Bytes,
}

/// Answers of a stream as they come, in whatever pieces.
pub(super) struct Stream {
    head: http::response::Parts,
    /// The stream lasts as long as this side does not end it.
    _sending: SendStream<Bytes>,
    body: RecvStream,
}

impl Stream {
    /// The next piece; none at the stream's end.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        match self.body.data().await {
            Some(data) => {
                let data = data.map_err(gone)?;
                let mut flow = self.body.flow_control().clone();
                flow.release_capacity(data.len()).map_err(gone)?;
                Ok(Some(data))
            }
            None => {
                let trailers = self.body.trailers().await.map_err(gone)?;
                end(&self.head, trailers.as_ref())?;
                Ok(None)
            }
        }
    }
}

fn gone(error: h2::Error) -> Status {
    Status::unavailable(chain(&error))
}

/// The status at the end of an answer: in its trailers, or in its only head.
fn end(head: &http::response::Parts, trailers: Option<&HeaderMap>) -> Result<(), Status> {
    let status = trailers
        .and_then(Status::from_header_map)
        .or_else(|| Status::from_header_map(&head.headers));
    match status {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(Status::unknown(format!(
            "an answer without a gRPC status, HTTP {}",
            head.status
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_many_endpoints_is_short() {
        assert_eq!(name_of("a,b,c,d,e"), "a,b,c,d,e");
        assert_eq!(name_of("a,b,c,d,e,f"), "a and 5 more");
    }
}
