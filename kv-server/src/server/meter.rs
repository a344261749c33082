//! Counts calls as they begin, and takes the time of those with one answer, under the names of Go's gRPC metrics. What
//! becomes of a call is counted where it is known, in `grpc`.

use std::collections::HashMap;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use tokio::time::Instant;

use super::grpc::METHODS;
use super::metrics::VALID;

/// The watch service counts itself, but begins here as all others.
const WATCH: (&str, &str, &str) = ("bidi_stream", "etcdserverpb.Watch", "Watch");

struct Method {
    started: IntCounter,
    /// Of those with one answer.
    seconds: Option<Histogram>,
}

/// All methods by the path that names them. Looked at once for each call.
pub(super) struct Meter(HashMap<String, Method>);

/// A call whose time is taken.
pub(super) struct Timed {
    begun: Instant,
    seconds: Histogram,
}

impl Meter {
    pub(super) fn new(registry: &Registry) -> Self {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let started = Opts::new("grpc_server_started_total", "Calls begun.");
        let started = IntCounterVec::new(started, &labels).expect(VALID);
        let seconds = HistogramOpts::new(
            "grpc_server_handling_seconds",
            "How long calls with one answer took.",
        );
        let seconds = HistogramVec::new(seconds, &labels).expect(VALID);
        registry.register(Box::new(started.clone())).expect(VALID);
        registry.register(Box::new(seconds.clone())).expect(VALID);
        let methods = METHODS.iter().chain([&WATCH]);
        let by_path = methods.map(|(kind, service, method)| {
            let labels = [*kind, *service, *method];
            let seconds = (*kind == "unary").then(|| seconds.with_label_values(&labels));
            let started = started.with_label_values(&labels);
            (format!("/{service}/{method}"), Method { started, seconds })
        });
        Self(by_path.collect())
    }

    /// A call of this path begins.
    pub(super) fn begin(&self, path: &str) -> Option<Timed> {
        let method = self.0.get(path)?;
        method.started.inc();
        let seconds = method.seconds.clone()?;
        let begun = Instant::now();
        Some(Timed { begun, seconds })
    }
}

impl Timed {
    /// It is answered.
    pub(super) fn end(self) {
        self.seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}
