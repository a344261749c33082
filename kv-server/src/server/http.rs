//! Where a request goes, and the plain HTTP pages: health, version, metrics.
//!
//! The KV service is matched first and called without a router, because its calls are the many ones. The JSON gateway has
//! the paths of version 3 of etcd's API, and asks the services again. What no service claims is a page when it is plain
//! HTTP, and `Unimplemented` with the method's name when it is gRPC.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request as PageRequest;
use axum::response::{IntoResponse, Response as PageResponse};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{Extensions, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::gateway::{self, Gateway};
use super::grpc::{Calls, ConnectionInfo, Front, HealthService};
use super::large;
use super::meter::Timed;
use super::recipes::Recipes;
use super::unary::{self, Unary};
use super::{MESSAGE_OVERHEAD_BYTES, Metrics, ServerParts};
use crate::ApiError;
use crate::api::{Api, STORAGE_VERSION, VERSION};
use crate::codec::with_written_keys;
use crate::pb::etcdserverpb as pb;
use crate::pb::health::health_server::HealthServer;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use pb::auth_server::AuthServer;
use pb::cluster_server::ClusterServer;
use pb::kv_server::KvServer;
use pb::lease_server::LeaseServer;
use pb::maintenance_server::MaintenanceServer;

/// gRPC's number of that status.
const OUT_OF_RANGE: &str = "11";

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Calls the KV service; the type of its api is erased so that threads need not know it.
trait KvCall: Send + Sync {
    fn call(&self, request: Request<Body>) -> Answer;

    /// The same for a message that came whole.
    fn unary(&self, unary: Unary, head: Parts, message: Bytes) -> unary::Answer;
}

/// The KV service, and what it asks.
struct Kv<A> {
    server: KvServer<Front<A>>,
    front: Arc<Front<A>>,
}

impl<A: Api> KvCall for Kv<A> {
    fn call(&self, request: Request<Body>) -> Answer {
        Service::call(&mut self.server.clone(), request)
    }

    fn unary(&self, unary: Unary, head: Parts, message: Bytes) -> unary::Answer {
        unary.call(&self.front, head, message)
    }
}

/// Where only pages are served.
struct NoKv;

/// What a call is answered there.
fn only_pages() -> Status {
    Status::unimplemented("flotilla: this address has pages only; calls go to the client address")
}

impl KvCall for NoKv {
    fn call(&self, _: Request<Body>) -> Answer {
        Box::pin(std::future::ready(Ok(only_pages().into_http())))
    }

    fn unary(&self, _: Unary, _: Parts, _: Bytes) -> unary::Answer {
        Box::pin(std::future::ready(Err(only_pages())))
    }
}

/// What a call is answered that no service has.
fn unknown_call(line: &Line) -> Status {
    let text = format!("flotilla: {} is not implemented in this version", line.path);
    Status::unimplemented(text)
}

/// Answers with a page what no service claims, or with a status where it is a call.
fn with_pages<A: Api>(
    services: Router,
    (api, metrics): (Arc<A>, Arc<Metrics>),
    unclaimed: fn(&Line) -> Status,
) -> Router {
    services.fallback(move |request: PageRequest| {
        let (api, metrics) = (Arc::clone(&api), Arc::clone(&metrics));
        async move {
            let line = request_line(&request);
            match line.grpc {
                true => unclaimed(&line).into_http::<axum::body::Body>(),
                false => fallback(&*api, &metrics, &line).await,
            }
        }
    })
}

/// What the paths of the KV service begin with.
pub(super) const KV: &str = "/etcdserverpb.KV/";

/// The service behind each connection.
#[derive(Clone)]
pub(super) struct Dispatch {
    kv: Arc<dyn KvCall>,
    rest: Router,
    gateway: Option<Arc<Gateway>>,
    metrics: Arc<Metrics>,
    connection: ConnectionInfo,
    message_bytes_max: usize,
}

impl Dispatch {
    /// The same for one connection.
    pub(super) fn on(&self, connection: ConnectionInfo) -> Self {
        Self {
            connection,
            ..self.clone()
        }
    }

    pub(super) fn new<A: Api>(parts: ServerParts<A>) -> Self {
        let limit = parts.options.max_request_bytes + MESSAGE_OVERHEAD_BYTES;
        let gateway = parts.options.json_gateway.then(|| Gateway::new(limit));
        let calls = Arc::new(Calls::new(&parts.metrics));
        let front = || Front::new(Arc::clone(&parts.api), Arc::clone(&calls));
        let kv_front = Arc::new(front());
        let kv = Kv {
            server: KvServer::from_arc(Arc::clone(&kv_front)).max_decoding_message_size(limit),
            front: kv_front,
        };
        let recipes = || Recipes::new(front(), Arc::clone(&parts.hub));
        let services = parts
            .services
            .add_service(LeaseServer::new(front()).max_decoding_message_size(limit))
            .add_service(AuthServer::new(front()).max_decoding_message_size(limit))
            .add_service(ClusterServer::new(front()).max_decoding_message_size(limit))
            .add_service(MaintenanceServer::new(front()).max_decoding_message_size(limit))
            .add_service(LockServer::new(recipes()).max_decoding_message_size(limit))
            .add_service(ElectionServer::new(recipes()).max_decoding_message_size(limit))
            .add_service(HealthServer::new(HealthService))
            .into_axum_router();
        Self {
            kv: Arc::new(kv),
            rest: with_pages(
                services,
                (parts.api, Arc::clone(&parts.metrics)),
                unknown_call,
            ),
            gateway: gateway.map(Arc::new),
            metrics: parts.metrics,
            connection: ConnectionInfo::default(),
            message_bytes_max: limit,
        }
    }

    /// The pages alone, without a call.
    pub(super) fn pages<A: Api>(api: Arc<A>, metrics: Arc<Metrics>) -> Self {
        Self {
            kv: Arc::new(NoKv),
            rest: with_pages(Router::new(), (api, Arc::clone(&metrics)), |_| only_pages()),
            gateway: None,
            metrics,
            connection: ConnectionInfo::default(),
            message_bytes_max: 0,
        }
    }

    /// The longest message that is taken.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// A request for a path begins.
    pub(super) fn begin(&self, path: &str) -> Option<Timed> {
        self.metrics.meter.begin(path)
    }

    /// Answers a call of the KV service whose message came whole. To be given to [`finished`] where its extensions say more of it.
    pub(super) fn unary(&self, unary: Unary, mut head: Parts, message: Bytes) -> unary::Answer {
        self.introduce(&mut head.extensions);
        self.kv.unary(unary, head, message)
    }

    /// Calls a service on behalf of the gateway.
    pub(super) fn ask(&self, request: Request<Body>) -> Answering {
        let timed = self.begin(request.uri().path());
        let answer = self.grpc(request);
        Answering { answer, timed }
    }

    /// Answers any request.
    pub(super) fn serve(&self, mut request: Request<Body>, timed: Option<Timed>) -> Answering {
        self.introduce(request.extensions_mut());
        let answer: Answer = match &self.gateway {
            Some(gateway) if request.uri().path().starts_with(gateway::PREFIX) => {
                let (gateway, grpc) = (Arc::clone(gateway), self.clone());
                Box::pin(async move { Ok(gateway.serve(request, grpc).await) })
            }
            _ => self.grpc(request),
        };
        Answering { answer, timed }
    }

    /// Says what is known of the connection.
    fn introduce(&self, request: &mut Extensions) {
        if self.connection.common_name.is_some() {
            request.insert(self.connection.clone());
        }
    }

    fn grpc(&self, request: Request<Body>) -> Answer {
        match request.uri().path().starts_with(KV) {
            true => self.kv.call(request),
            false => self.rest(request),
        }
    }

    fn rest(&self, request: Request<Body>) -> Answer {
        let mut rest = self.rest.clone();
        Box::pin(async move { Ok(rest.call(request).await?.map(Body::new)) })
    }
}

/// For connections of HTTP/1.
impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let timed = self.begin(request.uri().path());
        self.serve(request.map(Body::new), timed)
    }
}

/// An answer under way.
pub(super) struct Answering {
    answer: Answer,
    timed: Option<Timed>,
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.as_mut().poll(context);
        if answer.is_ready()
            && let Some(timed) = self.timed.take()
        {
            timed.end();
        }
        answer.map(|answer| answer.map(finished))
    }
}

/// An answer as it is sent: keys that were written out join it here. And tonic calls a message above the limit out of range;
/// clients of etcd know it as an exhausted resource, so that status is replaced on its way out.
pub(super) fn finished(answer: Response<Body>) -> Response<Body> {
    large::bound(with_etcd_size_status(with_written_keys(answer)))
}

fn with_etcd_size_status(response: Response<Body>) -> Response<Body> {
    // An answer of a handler that succeeded has its status in the trailers, so this look-up is all that it costs.
    if response
        .headers()
        .get(Status::GRPC_STATUS)
        .is_none_or(|code| code != OUT_OF_RANGE)
    {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.message().contains("message length too large") => {
            Status::resource_exhausted(size_text(status.message())).into_http()
        }
        _ => response,
    }
}

/// gRPC's text in Go for a message above the limit, made from tonic's, which names the same two numbers in that order.
fn size_text(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    match numbers[..] {
        [found, limit] => {
            format!("grpc: received message larger than max ({found} vs. {limit})")
        }
        _ => format!("grpc: {text}"),
    }
}

/// What the pages look at of a request.
struct Line {
    method: Method,
    path: String,
    query: String,
    grpc: bool,
}

fn request_line(request: &PageRequest) -> Line {
    let kind = request.headers().get(CONTENT_TYPE);
    Line {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        grpc: kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
    }
}

impl Line {
    /// The values given for a name; a name without a value counts as an empty one.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self
            .query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .filter(move |(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    fn excludes(&self, what: &str) -> bool {
        self.values("exclude")
            .any(|value| value.eq_ignore_ascii_case(what))
    }
}

async fn fallback<A: Api>(api: &A, metrics: &Metrics, line: &Line) -> PageResponse {
    let path = line.path.as_str();
    let (head, check) = match path[1.min(path.len())..].split_once('/') {
        Some((head, check)) => (head, check),
        None => (path.trim_start_matches('/'), ""),
    };
    let page = matches!((head, check), ("health" | "version" | "metrics", ""))
        || matches!(head, "livez" | "readyz");
    if !page {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    if line.method != Method::GET {
        let allow = [(ALLOW, "GET")];
        return (
            StatusCode::METHOD_NOT_ALLOWED,
            allow,
            "Method Not Allowed\n",
        )
            .into_response();
    }
    match head {
        "health" => health(api, line).await,
        "version" => version(),
        "metrics" => (
            [(CONTENT_TYPE, "text/plain; version=0.0.4")],
            metrics.render(&api.gauges()),
        )
            .into_response(),
        "livez" => checks(api, &["serializable_read"], check, line).await,
        _ => {
            let all = [
                "data_corruption",
                "serializable_read",
                "linearizable_read",
                "non_learner",
            ];
            checks(api, &all, check, line).await
        }
    }
}

fn version() -> PageResponse {
    let cluster = format!(
        "{}.0",
        &VERSION[..VERSION.rfind('.').unwrap_or(VERSION.len())]
    );
    axum::Json(serde_json::json!({
        "etcdserver": VERSION,
        "etcdcluster": cluster,
        "storage": STORAGE_VERSION,
    }))
    .into_response()
}

async fn health<A: Api>(api: &A, line: &Line) -> PageResponse {
    let serializable = line.values("serializable").any(|value| value == "true");
    let reason = unhealthy(api, line, serializable).await;
    let status = if reason.is_none() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let healthy = if reason.is_none() { "true" } else { "false" };
    let body = serde_json::json!({ "health": healthy, "reason": reason.unwrap_or_default() });
    (status, axum::Json(body)).into_response()
}

async fn unhealthy<A: Api>(api: &A, line: &Line, serializable: bool) -> Option<String> {
    for member in api.alarms() {
        // Another member's damage is no reason to take this one out of service.
        let elsewhere = member.alarm() == pb::AlarmType::Corrupt && api.is_sound();
        let name = member.alarm().as_str_name();
        if !elsewhere && !line.excludes(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && !api.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    let failed = read(api, serializable).await.err();
    failed.map(|error| format!("RANGE ERROR:{error}"))
}

/// The read by which etcd's probes look whether a member serves: a key that nobody writes.
async fn read<A: Api>(api: &A, serializable: bool) -> Result<(), String> {
    let key = "health".into();
    let request = pb::RangeRequest {
        key,
        limit: 1,
        serializable,
        ..Default::default()
    };
    match api.range(request).await {
        // Who may not read it is answered all the same; a probe has no user.
        Ok(_) | Err(ApiError::UserEmpty | ApiError::PermissionDenied) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn check<A: Api>(api: &A, name: &str) -> Result<(), String> {
    match name {
        "serializable_read" => read(api, true).await,
        "linearizable_read" => read(api, false).await,
        "non_learner" => {
            if api.is_learner() {
                Err("this member is a learner".to_owned())
            } else {
                Ok(())
            }
        }
        _ => {
            if api.is_sound() {
                Ok(())
            } else {
                Err("alarm CORRUPT is raised".to_owned())
            }
        }
    }
}

async fn checks<A: Api>(api: &A, all: &[&str], only: &str, line: &Line) -> PageResponse {
    if !only.is_empty() && !all.contains(&only) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let wanted = all.iter().filter(|name| only.is_empty() || **name == only);
    let (mut report, mut failed) = (String::new(), false);
    for name in wanted.filter(|name| !line.excludes(name)) {
        let line = match check(api, name).await {
            Ok(()) => format!("[+]{name} ok"),
            Err(reason) => {
                failed = true;
                format!("[-]{name} failed: {reason}")
            }
        };
        writeln!(report, "{line}").expect("writing to a string does not fail");
    }
    if failed {
        return (StatusCode::SERVICE_UNAVAILABLE, report).into_response();
    }
    let verbose = line.values("verbose").next().is_some();
    if verbose {
        format!("{report}ok\n")
    } else {
        "ok\n".to_owned()
    }
    .into_response()
}
