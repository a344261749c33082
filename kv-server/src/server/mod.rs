//! Sockets, RPC threads and services: one port for gRPC and plain HTTP.
//!
//! Started by the binary with an [`Api`] and what else is to be served. Each RPC thread is a runtime of its own, and
//! a connection stays on the thread that got it: no work moves between threads. It opens no data directory.

mod auth;
mod authority;
mod corked;
mod gateway;
mod grpc;
mod http;
mod http2;
mod large;
mod lease;
mod meter;
mod metrics;
mod range;
mod recent;
mod recipes;
mod snapshot;
#[cfg(test)]
mod tests;
mod threads;
mod traffic;
mod unary;
mod watch;
#[cfg(test)]
mod watch_tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use multiraft::tls::Listener;
use tonic::service::Routes;

use crate::api::Api;
use crate::watch::WatchHub;

pub use gateway::ROUTES as JSON_ROUTES;
pub use grpc::ConnectionInfo;
pub use metrics::Metrics;
pub use threads::{Doors, ServerHandle};
pub use watch::{WatchOptions, WatchService};

/// What a gRPC message may be longer than the longest command, in bytes: above it the transport refuses.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// What is served.
pub struct ServerParts<A> {
    /// The calls of all services but those in `services`.
    pub api: Arc<A>,
    /// The events for which locks and elections wait.
    pub hub: Arc<WatchHub>,
    /// Counts calls, and answers `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Further gRPC services: watches.
    pub services: Routes,
    /// Limits.
    pub options: ServerOptions,
}

/// Limits of the server, and whom it knows.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// RPC threads; at least 1, default 2.
    pub rpc_threads: usize,
    /// The longest command in bytes, as the api has it; default 1.5 MiB. A message may be 512 KiB longer.
    pub max_request_bytes: usize,
    /// Serve etcd's JSON gateway too; default true.
    pub json_gateway: bool,
    /// How long calls under way may take after a stop was asked for; default 2 s. Open streams are cut then; close the
    /// watch hub first, and watches end with a status.
    pub drain: Duration,
    /// A client that says nothing else is the user that its certificate names; default no.
    pub client_cert_auth: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            rpc_threads: 2,
            max_request_bytes: 3 << 19,
            json_gateway: true,
            drain: Duration::from_secs(2),
            client_cert_auth: false,
        }
    }
}

/// Serves all listeners until the handle is shut down.
pub fn serve<A: Api>(listeners: Vec<Listener>, parts: ServerParts<A>) -> io::Result<ServerHandle> {
    threads::start(listeners, parts)
}
