//! Prometheus metrics under etcd's names, so that dashboards and alerts made for etcd work. A name is here only when its
//! value is exact.
#![expect(
    clippy::disallowed_methods,
    reason = "the process reads its own numbers from /proc, which is no file of ours, and a clock for its figures"
)]

use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use multiraft::tls::ServerTls;
use multiraft::transport::TransportWatcher;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, exponential_buckets,
};
use rustix::process::{Resource, getrlimit};

use super::meter::Meter;
use super::recent::Recent;
use super::traffic::Traffic;
use super::watch::WatchGauges;
use crate::api::{Gauges, VERSION};
use crate::pb::etcdserverpb::AlarmType;

/// Clock ticks per second in `/proc`: fixed at 100 on Linux for programs, whatever the kernel uses.
const PROC_TICKS_PER_SECOND: f64 = 100.0;

/// The metrics of one server.
pub struct Metrics {
    registry: Registry,
    pub(super) handled: IntCounterVec,
    pub(super) watch: WatchGauges,
    pub(super) meter: Meter,
    pub(super) traffic: Traffic,
    wal_fsync: Histogram,
    started: Instant,
    recent_fsync: Recent,
    fsync_quantiles: GaugeVec,
    backend_commit: Histogram,
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    leader_changes: IntCounter,
    committed: IntGauge,
    applied: IntGauge,
    pending: IntGauge,
    failed: IntCounter,
    db_total: IntGauge,
    db_in_use: IntGauge,
    quota: IntGauge,
    alarms: IntGaugeVec,
    revision: IntGauge,
    compact_revision: IntGauge,
    guarded: IntGauge,
    resident: IntGauge,
    cpu: Gauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    certificates: Mutex<Vec<(&'static str, ServerTls)>>,
    certificate_ends: IntGaugeVec,
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
    trips: HistogramVec,
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
        let trips = HistogramOpts::new(
            "etcd_network_peer_round_trip_time_seconds",
            "How long it took to a member and back.",
        );
        let trips = trips.buckets(exponential_buckets(0.0001, 2.0, 16).expect(VALID));
        let trips = HistogramVec::new(trips, &["To"]).expect(VALID);
        registry.register(Box::new(trips.clone())).expect(VALID);
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
            trips,
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
        let durations = |name: &str, help: &str| {
            let buckets = exponential_buckets(0.001, 2.0, 14).expect(VALID);
            let options = HistogramOpts::new(name, help).buckets(buckets);
            let durations = Histogram::with_opts(options).expect(VALID);
            registry.register(Box::new(durations.clone())).expect(VALID);
            durations
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect(VALID);
            registry.register(Box::new(counter.clone())).expect(VALID);
            counter
        };
        let alarms = Opts::new(
            "flotilla_alarm_raised",
            "1 while an alarm of that kind is raised, whoever it is of.",
        );
        let alarms = IntGaugeVec::new(alarms, &["alarm"]).expect(VALID);
        registry.register(Box::new(alarms.clone())).expect(VALID);
        let certificate_ends = Opts::new(
            "flotilla_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of an address ends, or the first that leads to its authority: seconds since 1970.",
        );
        let certificate_ends = IntGaugeVec::new(certificate_ends, &["address"]).expect(VALID);
        registry
            .register(Box::new(certificate_ends.clone()))
            .expect(VALID);
        let version = Opts::new(
            "etcd_server_version",
            "1, with the version of etcd that this server behaves as.",
        );
        let version = IntGaugeVec::new(version, &["server_version"]).expect(VALID);
        registry.register(Box::new(version.clone())).expect(VALID);
        version.with_label_values(&[VERSION]).set(1);
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
        registry.register(Box::new(handled.clone())).expect(VALID);
        registry.register(Box::new(cpu.clone())).expect(VALID);
        Self {
            has_leader: gauge("etcd_server_has_leader", "1 when a leader is known."),
            is_leader: gauge("etcd_server_is_leader", "1 when this member leads."),
            is_learner: gauge("etcd_server_is_learner", "1 when this member has no vote."),
            leader_changes: counter(
                "etcd_server_leader_changes_seen_total",
                "How often a leader was seen to begin.",
            ),
            meter: Meter::new(&registry),
            traffic: Traffic {
                received: counter(
                    "etcd_network_client_grpc_received_bytes_total",
                    "Bytes received on the connections of clients.",
                ),
                sent: counter(
                    "etcd_network_client_grpc_sent_bytes_total",
                    "Bytes sent on the connections of clients.",
                ),
            },
            committed: gauge("etcd_server_proposals_committed_total", "The commit index."),
            applied: gauge("etcd_server_proposals_applied_total", "The applied index."),
            pending: gauge(
                "etcd_server_proposals_pending",
                "Proposals that wait for an answer.",
            ),
            db_total: gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Bytes that count for the quota: what is in use, or an equal share of the directory where that is more.",
            ),
            db_in_use: gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Bytes that keys with their history, and leases, take.",
            ),
            quota: gauge(
                "etcd_server_quota_backend_bytes",
                "Bytes that the keyspace may take; 0 without a quota.",
            ),
            alarms,
            revision: gauge(
                "etcd_debugging_mvcc_current_revision",
                "The newest revision.",
            ),
            compact_revision: gauge(
                "etcd_debugging_mvcc_compact_revision",
                "The compaction floor.",
            ),
            guarded: gauge(
                "flotilla_log_guarded",
                "1 while the log was begun anew after damage and lacks what the other members have.",
            ),
            resident: gauge("process_resident_memory_bytes", "Memory in use, in bytes."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "File descriptors that may be open."),
            watch: WatchGauges {
                watchers: gauge("etcd_debugging_mvcc_watcher_total", "Watchers."),
                streams: gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams."),
                events: counter(
                    "etcd_debugging_mvcc_events_total",
                    "Events sent to watchers.",
                ),
            },
            certificates: Mutex::default(),
            certificate_ends,
            links: OnceLock::new(),
            link_metrics: LinkMetrics::new(&registry),
            handled,
            started: Instant::now(),
            recent_fsync: Recent::new(),
            fsync_quantiles,
            wal_fsync: durations(
                "etcd_disk_wal_fsync_duration_seconds",
                "How long syncs of the log took.",
            ),
            backend_commit: durations(
                "etcd_disk_backend_commit_duration_seconds",
                "How long it took to make a part of the engine durable.",
            ),
            failed: counter(
                "etcd_server_proposals_failed_total",
                "Proposals that got no answer of the state machine.",
            ),
            cpu,
            registry,
            rendering: Mutex::new(()),
        }
    }

    /// The log was synced.
    pub fn observe_wal_fsync(&self, took: Duration) {
        self.wal_fsync.observe(took.as_secs_f64());
        self.recent_fsync.observe(self.started.elapsed(), took);
    }

    /// A part of the engine was made durable.
    pub fn observe_backend_commit(&self, took: Duration) {
        self.backend_commit.observe(took.as_secs_f64());
    }

    /// Shows the links of a transport as well; only the first one that is named.
    pub fn show_links(&self, watcher: TransportWatcher) {
        let trips = self.link_metrics.trips.clone();
        watcher.observe_trips(Box::new(move |to, took| {
            let trips = trips.with_label_values(&[&format!("{:x}", to.0)]);
            trips.observe(took.as_secs_f64());
        }));
        // A server has one transport.
        let _ = self.links.set(watcher);
    }

    /// Shows when the certificate of an address ends, `client` or `peer`.
    pub fn show_certificate(&self, address: &'static str, tls: ServerTls) {
        let mut shown = (self.certificates.lock()).unwrap_or_else(PoisonError::into_inner);
        shown.push((address, tls));
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
        self.is_learner.set(i64::from(now.is_learner));
        self.leader_changes
            .inc_by(now.leader_changes.saturating_sub(self.leader_changes.get()));
        self.db_in_use.set(now.data_size.in_use.cast_signed());
        self.quota.set(now.quota_bytes.cast_signed());
        for (kind, raised) in [
            (AlarmType::Nospace, now.no_space),
            (AlarmType::Corrupt, now.corrupt),
        ] {
            let alarm = self.alarms.with_label_values(&[kind.as_str_name()]);
            alarm.set(i64::from(raised));
        }
        self.failed
            .inc_by(now.proposals_failed.saturating_sub(self.failed.get()));
        self.db_total.set(now.data_size.bytes.cast_signed());
        self.revision.set(now.revision);
        self.compact_revision.set(now.compact_revision);
        self.set_recent_fsync();
        self.set_certificates();
        self.guarded.set(i64::from(now.guarded));
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

    fn set_certificates(&self) {
        let shown = (self.certificates.lock()).unwrap_or_else(PoisonError::into_inner);
        for (address, tls) in &*shown {
            let ends = i64::try_from(tls.expires().as_secs()).unwrap_or(i64::MAX);
            let gauge = self.certificate_ends.with_label_values(&[address]);
            gauge.set(ends);
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
        let limit = getrlimit(Resource::Nofile).current;
        self.max_fds
            .set(limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX)));
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            self.open_fds
                .set(i64::try_from(fds.count()).unwrap_or(i64::MAX));
        }
    }
}

const RECENT_FSYNC: &str = "flotilla_disk_wal_fsync_recent_seconds";
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.99, "0.99"), (1.0, "1")];

/// Why building metrics cannot fail.
pub(super) const VALID: &str = "names are valid and registered once";
