//! Prometheus metrics under etcd's names, so that dashboards and alerts made for etcd work. A name is here only when its
//! value is exact.
#![expect(
    clippy::disallowed_methods,
    reason = "the process reads its own numbers from /proc, which is no file of ours, and a clock for its figures"
)]

use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use multiraft::transport::TransportWatcher;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, exponential_buckets,
};

use super::recent::Recent;
use super::watch::WatchGauges;
use crate::api::Gauges;

/// Clock ticks per second in `/proc`: fixed at 100 on Linux for programs, whatever the kernel uses.
const PROC_TICKS_PER_SECOND: f64 = 100.0;

/// The metrics of one server.
pub struct Metrics {
    registry: Registry,
    pub(super) handled: IntCounterVec,
    pub(super) watch: WatchGauges,
    wal_fsync: Histogram,
    started: Instant,
    recent_fsync: Recent,
    fsync_quantiles: GaugeVec,
    has_leader: IntGauge,
    is_leader: IntGauge,
    committed: IntGauge,
    applied: IntGauge,
    pending: IntGauge,
    failed: IntCounter,
    db_total: IntGauge,
    revision: IntGauge,
    compact_revision: IntGauge,
    resident: IntGauge,
    cpu: Gauge,
    open_fds: IntGauge,
    links: OnceLock<TransportWatcher>,
    link_metrics: LinkMetrics,
    /// One page at a time: gauges are set, then gathered.
    rendering: Mutex<()>,
}

/// Of the links to other members; without any they do not appear.
struct LinkMetrics {
    sent: IntCounterVec,
    received: IntCounterVec,
    failed: IntCounterVec,
    active: IntGaugeVec,
}

impl LinkMetrics {
    fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label]).expect(VALID);
            registry.register(Box::new(counter.clone())).expect(VALID);
            counter
        };
        let active = Opts::new(
            "etcd_network_active_peers",
            "1 while a member can be sent to.",
        );
        let active = IntGaugeVec::new(active, &["Remote"]).expect(VALID);
        registry.register(Box::new(active.clone())).expect(VALID);
        Self {
            sent: counter(
                "etcd_network_peer_sent_bytes_total",
                "Bytes sent to members.",
                "To",
            ),
            received: counter(
                "etcd_network_peer_received_bytes_total",
                "Bytes received from members.",
                "From",
            ),
            failed: counter(
                "etcd_network_peer_sent_failures_total",
                "Messages to members that found no link, or no room.",
                "To",
            ),
            active,
        }
    }

    fn set(&self, watcher: &TransportWatcher) {
        for link in watcher.status() {
            let id = format!("{:x}", link.id.0);
            let raise = |counter: &IntCounterVec, to: u64| {
                let counter = counter.with_label_values(&[&id]);
                counter.inc_by(to.saturating_sub(counter.get()));
            };
            raise(&self.sent, link.bytes_sent);
            raise(&self.received, link.bytes_received);
            raise(&self.failed, link.messages_dropped);
            let active = self.active.with_label_values(&[&id]);
            active.set(i64::from(link.linked));
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own, so that a process may hold more than one server.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect(VALID);
            registry.register(Box::new(gauge.clone())).expect(VALID);
            gauge
        };
        let labels = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let handled = Opts::new("grpc_server_handled_total", "Calls completed, by outcome.");
        let handled = IntCounterVec::new(handled, &labels).expect(VALID);
        let fsync = HistogramOpts::new(
            "etcd_disk_wal_fsync_duration_seconds",
            "How long syncs of the log took.",
        );
        let buckets = exponential_buckets(0.001, 2.0, 14).expect(VALID);
        let wal_fsync = Histogram::with_opts(fsync.buckets(buckets)).expect(VALID);
        let failed = "Proposals that got no answer of the state machine.";
        let failed = IntCounter::new("etcd_server_proposals_failed_total", failed).expect(VALID);
        let cpu = "Processor time used, in seconds.";
        let cpu = Gauge::new("process_cpu_seconds_total", cpu).expect(VALID);
        let recent =
            "How long syncs of the log took in the last minute, by quantile; none without a sync.";
        let recent = Opts::new(RECENT_FSYNC, recent);
        let fsync_quantiles = GaugeVec::new(recent, &["quantile"]).expect(VALID);
        let build = Opts::new("flotilla_build_info", "1, with the version as a label.");
        let build = IntGaugeVec::new(build, &["version"]).expect(VALID);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build)).expect(VALID);
        registry
            .register(Box::new(fsync_quantiles.clone()))
            .expect(VALID);
        let events = "Events sent to watchers.";
        let events = IntCounter::new("etcd_debugging_mvcc_events_total", events).expect(VALID);
        registry.register(Box::new(events.clone())).expect(VALID);
        registry.register(Box::new(handled.clone())).expect(VALID);
        registry.register(Box::new(wal_fsync.clone())).expect(VALID);
        registry.register(Box::new(failed.clone())).expect(VALID);
        registry.register(Box::new(cpu.clone())).expect(VALID);
        Self {
            has_leader: gauge("etcd_server_has_leader", "1 when a leader is known."),
            is_leader: gauge("etcd_server_is_leader", "1 when this member leads."),
            committed: gauge("etcd_server_proposals_committed_total", "The commit index."),
            applied: gauge("etcd_server_proposals_applied_total", "The applied index."),
            pending: gauge(
                "etcd_server_proposals_pending",
                "Proposals that wait for an answer.",
            ),
            db_total: gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Bytes of the engine on disk.",
            ),
            revision: gauge(
                "etcd_debugging_mvcc_current_revision",
                "The newest revision.",
            ),
            compact_revision: gauge(
                "etcd_debugging_mvcc_compact_revision",
                "The compaction floor.",
            ),
            resident: gauge("process_resident_memory_bytes", "Memory in use, in bytes."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            watch: WatchGauges {
                watchers: gauge("etcd_debugging_mvcc_watcher_total", "Watchers."),
                streams: gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams."),
                events,
            },
            links: OnceLock::new(),
            link_metrics: LinkMetrics::new(&registry),
            registry,
            handled,
            wal_fsync,
            started: Instant::now(),
            recent_fsync: Recent::new(),
            fsync_quantiles,
            failed,
            cpu,
            rendering: Mutex::new(()),
        }
    }

    /// The log was synced.
    pub fn observe_wal_fsync(&self, took: Duration) {
        self.wal_fsync.observe(took.as_secs_f64());
        self.recent_fsync.observe(self.started.elapsed(), took);
    }

    /// Shows the links of a transport as well; only the first one that is named.
    pub fn show_links(&self, watcher: TransportWatcher) {
        // A server has one transport.
        let _ = self.links.set(watcher);
    }

    /// The page, in Prometheus' text format.
    pub(super) fn render(&self, now: &Gauges) -> String {
        let _one = self
            .rendering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.has_leader.set(i64::from(now.has_leader));
        self.is_leader.set(i64::from(now.is_leader));
        self.committed.set(now.committed.cast_signed());
        self.applied.set(now.applied.cast_signed());
        self.pending.set(now.proposals_pending.cast_signed());
        self.failed
            .inc_by(now.proposals_failed.saturating_sub(self.failed.get()));
        self.db_total.set(now.data_bytes.cast_signed());
        self.revision.set(now.revision);
        self.compact_revision.set(now.compact_revision);
        self.set_recent_fsync();
        self.set_process();
        if let Some(watcher) = self.links.get() {
            self.link_metrics.set(watcher);
        }
        let mut page = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page) {
            tracing::warn!(%error, "cannot render the metrics");
        }
        page
    }

    fn set_recent_fsync(&self) {
        let parts = QUANTILES.map(|(part, _)| part);
        let Some(told) = self.recent_fsync.quantiles(self.started.elapsed(), &parts) else {
            return self.fsync_quantiles.reset();
        };
        for ((_, label), took) in QUANTILES.iter().zip(told) {
            let quantile = self.fsync_quantiles.with_label_values(&[label]);
            quantile.set(took.as_secs_f64());
        }
    }

    /// Where `/proc` is missing these stay at zero.
    fn set_process(&self) {
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
            self.resident.set(kib.unwrap_or(0) * 1024);
        }
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            // The command's name may hold blanks; the fields after it start behind the last parenthesis.
            let fields = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let ticks: f64 = fields
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse::<f64>().ok())
                .sum();
            self.cpu.set(ticks / PROC_TICKS_PER_SECOND);
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            self.open_fds
                .set(i64::try_from(fds.count()).unwrap_or(i64::MAX));
        }
    }
}

const RECENT_FSYNC: &str = "flotilla_disk_wal_fsync_recent_seconds";
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.99, "0.99"), (1.0, "1")];

/// Why building metrics cannot fail.
const VALID: &str = "names are valid and registered once";
