//! Every option of `flotilla server`, once: from this table come the flags, the names in the environment, the keys of
//! the configuration file, and the help. Names and meanings are etcd's, where etcd has the option.

use super::forms::Form;

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Texts, separated by commas; as a flag also one for each time that it is given.
    List,
    /// `true` or `false`; as a flag, its presence means `true`.
    Bool,
}

/// Whether the feature behind an option exists.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Support {
    /// It does.
    Full,
    /// It does not: only these values, which ask for nothing, are accepted. The text names what is missing.
    Only(&'static [&'static str], &'static str),
    /// It has no meaning here, or is always there: any value of the form is accepted, and changes nothing. The text says why.
    Idle(Form, &'static str),
}

/// One option.
#[derive(Debug)]
pub(crate) struct Opt {
    /// As a flag without its dashes, and as a key of the file.
    pub(crate) name: &'static str,
    /// The value when no layer sets it. Empty means that it follows from other options.
    pub(crate) default: &'static str,
    pub(crate) kind: Kind,
    pub(crate) support: Support,
    pub(crate) help: &'static str,
}

impl Opt {
    /// The variables of the environment that set it, the one that wins first: ours, then those of etcd, whose names the
    /// options have.
    pub(crate) fn env_names(&self) -> Vec<String> {
        let names = || std::iter::once(self.name).chain(aliases(self.name));
        let variable = |prefix, name: &str| {
            let name = name.to_ascii_uppercase().replace('-', "_");
            format!("{prefix}_{name}")
        };
        let of = |prefix| names().map(move |name| variable(prefix, name));
        of("FLOTILLA").chain(of("ETCD")).collect()
    }
}

const fn text(name: &'static str, default: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        default,
        kind: Kind::Text,
        support: Support::Full,
        help,
    }
}

const fn switch(name: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        default: "false",
        kind: Kind::Bool,
        support: Support::Full,
        help,
    }
}

const fn missing(
    name: &'static str,
    accepted: &'static [&'static str],
    kind: Kind,
    what: &'static str,
    help: &'static str,
) -> Opt {
    Opt {
        name,
        default: accepted[0],
        kind,
        support: Support::Only(accepted, what),
        help,
    }
}

const fn idle(name: &'static str, default: &'static str, form: Form, why: &'static str) -> Opt {
    Opt {
        name,
        default,
        kind: if matches!(form, Form::Flag) {
            Kind::Bool
        } else {
            Kind::Text
        },
        support: Support::Idle(form, why),
        help: why,
    }
}

const CLUSTER: &str = "finding members by discovery, or forcing a new cluster";

const LEASES: &str = "what is left of a lease is always recorded";
const STORAGE: &str = "a knob of etcd's storage, which is not ours";
const PINGS: &str = "a silent client is asked after two hours, and has 20 seconds to answer";
const SLOW: &str = "slow requests are not logged; /metrics has how long calls take";
const CHECKS: &str = "members are compared as --corrupt-check-time says";
const GATEWAY: &str = "the JSON gateway calls nobody";
const TRACING: &str = "there is no distributed tracing";
const PROXY: &str = "there is no proxy";

/// All of them, in the order of the help.
pub(crate) const OPTIONS: &[Opt] = &[
    text("name", "default", "Name of this member"),
    text("data-dir", "flotilla.data", "Directory that holds all data"),
    text(
        "listen-client-urls",
        "http://127.0.0.1:2379",
        "Where clients connect, separated by commas",
    ),
    text(
        "advertise-client-urls",
        "",
        "Client URLs told to clients [default: the listening ones]",
    ),
    text(
        "listen-metrics-urls",
        "",
        "Where health and metrics are served as well, and nothing else, separated by commas",
    ),
    Opt {
        name: "keyspace",
        default: "",
        kind: Kind::List,
        support: Support::Full,
        help: "Serve another keyspace, as NAME=URL: the URL to listen on, and to tell clients; repeatable",
    },
    text(
        "listen-peer-urls",
        "http://127.0.0.1:2380",
        "Where members connect, and who wants to become one",
    ),
    text(
        "initial-advertise-peer-urls",
        "http://127.0.0.1:2380",
        "Peer URLs told to members",
    ),
    text(
        "initial-cluster",
        "",
        "Members that begin the cluster together, as name=url [default: this one]",
    ),
    text(
        "initial-cluster-state",
        "new",
        "`new`, or `existing` for a member that was added to a cluster that is there",
    ),
    text(
        "initial-cluster-token",
        "etcd-cluster",
        "Tells clusters apart; part of the cluster id",
    ),
    text(
        "heartbeat-interval",
        "100",
        "Milliseconds between heartbeats",
    ),
    text(
        "election-timeout",
        "1000",
        "Milliseconds without a leader before an election",
    ),
    text(
        "snapshot-count",
        "10000",
        "Applied entries after which the engine is made durable and the log purged",
    ),
    text("max-txn-ops", "128", "Operations in a transaction"),
    text(
        "max-request-bytes",
        "1572864",
        "Bytes of a request, at most 16 MiB",
    ),
    switch(
        "accept-suspect-tail",
        "Drop a last batch of the log that is damaged and may have been acknowledged",
    ),
    text(
        "auto-compaction-mode",
        "periodic",
        "What --auto-compaction-retention counts: periodic or revision",
    ),
    text(
        "auto-compaction-retention",
        "0",
        "History to keep: hours or a duration such as 30m, or revisions; 0 keeps all",
    ),
    text(
        "quota-backend-bytes",
        "0",
        "Bytes that each keyspace may take before what grows is refused; 0, or less, for no quota",
    ),
    text(
        "corrupt-check-time",
        "10m",
        "How often the states of the members are compared; 0 for never",
    ),
    switch(
        "experimental-initial-corrupt-check",
        "Compare this member's state with the others' before it serves",
    ),
    text(
        "feature-gates",
        "",
        "Features by name, separated by commas: InitialCorruptCheck=true is --experimental-initial-corrupt-check",
    ),
    text(
        "watch-progress-notify-interval",
        "10m",
        "How often watchers that ask for it are told of progress, at least 100ms",
    ),
    text(
        "log-level",
        "info",
        "trace, debug, info, warn or error; panic and fatal are error",
    ),
    text("log-format", "text", "text (or console), or json"),
    missing(
        "logger",
        &["zap"],
        Kind::Text,
        "another logger",
        "`zap`; see --log-format",
    ),
    text(
        "log-outputs",
        "default",
        "stderr or stdout; `default` is standard error",
    ),
    missing(
        "pre-vote",
        &["true"],
        Kind::Bool,
        "elections without a pre-vote",
        "`true`",
    ),
    Opt {
        name: "strict-reconfig-check",
        default: "true",
        kind: Kind::Bool,
        support: Support::Full,
        help: "Refuse changes of the members that could cost the quorum",
    },
    Opt {
        name: "enable-grpc-gateway",
        default: "true",
        kind: Kind::Bool,
        support: Support::Full,
        help: "Serve the JSON gateway, /v3/..., beside gRPC",
    },
    text("max-learners", "1", "Learners that there may be at a time"),
    missing(
        "enable-pprof",
        &["false"],
        Kind::Bool,
        "profiling over HTTP",
        "`false`",
    ),
    missing(
        "enable-v2",
        &["false"],
        Kind::Bool,
        "etcd's version 2 API",
        "`false`",
    ),
    text(
        "auth-token",
        "simple",
        "What tokens are: simple, or jwt,sign-method=...,pub-key=FILE,priv-key=FILE,ttl=10m",
    ),
    text(
        "auth-token-ttl",
        "300",
        "Seconds that a simple token lives unused",
    ),
    text(
        "bcrypt-cost",
        "10",
        "Work to hash a password, from 4 to 31; one more doubles it",
    ),
    missing(
        "force-new-cluster",
        &["false"],
        Kind::Bool,
        CLUSTER,
        "`false`",
    ),
    missing("discovery", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("discovery-proxy", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("discovery-srv", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("discovery-srv-name", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("discovery-endpoints", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("discovery-token", &[""], Kind::Text, CLUSTER, "Empty"),
    missing(
        "wal-dir",
        &[""],
        Kind::Text,
        "a log outside of --data-dir",
        "Empty",
    ),
    missing(
        "proxy",
        &["off"],
        Kind::Text,
        "being a proxy of version 2",
        "`off`",
    ),
    missing(
        "experimental-enable-v2v3",
        &[""],
        Kind::Text,
        "etcd's version 2 API",
        "Empty",
    ),
    missing(
        "cors",
        &["*", ""],
        Kind::Text,
        "sending CORS headers",
        "Empty, or `*`",
    ),
    missing(
        "host-whitelist",
        &["*", ""],
        Kind::Text,
        "refusing requests for other hosts",
        "Empty, or `*`",
    ),
    missing(
        "listen-client-http-urls",
        &[""],
        Kind::Text,
        "HTTP on a port apart from gRPC (--listen-client-urls has both)",
        "Empty",
    ),
    missing(
        "socket-reuse-port",
        &["false"],
        Kind::Bool,
        "sharing a port with another process",
        "`false`",
    ),
    missing(
        "enable-log-rotation",
        &["false"],
        Kind::Bool,
        "a log in files of its own",
        "`false`",
    ),
    missing(
        "enable-distributed-tracing",
        &["false"],
        Kind::Bool,
        "distributed tracing",
        "`false`",
    ),
    missing(
        "memory-mlock",
        &["false"],
        Kind::Bool,
        "keeping all memory from being swapped out",
        "`false`",
    ),
    missing(
        "experimental-set-member-localaddr",
        &["false"],
        Kind::Bool,
        "calling members from a chosen address",
        "`false`",
    ),
    text(
        "cert-file",
        "",
        "Certificate shown to clients, with those that lead to its authority, in PEM",
    ),
    text("key-file", "", "Its private key, in PEM"),
    text(
        "trusted-ca-file",
        "",
        "Authorities of clients' certificates, in PEM; every client has to show one then",
    ),
    switch(
        "client-cert-auth",
        "Ask clients for a certificate; needs --trusted-ca-file",
    ),
    text(
        "client-crl-file",
        "",
        "Clients' certificates that were taken back, PEM or DER",
    ),
    text(
        "client-cert-allowed-hostname",
        "",
        "Hosts, separated by commas, for one of which a client's certificate has to be",
    ),
    switch(
        "auto-tls",
        "Protect https listeners for clients with a certificate of its own making",
    ),
    text(
        "peer-cert-file",
        "",
        "Certificate shown to members, with those that lead to its authority, in PEM",
    ),
    text("peer-key-file", "", "Its private key, in PEM"),
    text(
        "peer-client-cert-file",
        "",
        "Certificate shown where this member calls another [default: --peer-cert-file]",
    ),
    text("peer-client-key-file", "", "Its private key, in PEM"),
    text(
        "peer-trusted-ca-file",
        "",
        "Authorities of members' certificates, in PEM; every member has to show one then",
    ),
    switch(
        "peer-client-cert-auth",
        "Ask members that call for a certificate; needs --peer-trusted-ca-file",
    ),
    text(
        "peer-crl-file",
        "",
        "Members' certificates that were taken back, PEM or DER",
    ),
    text(
        "peer-cert-allowed-cn",
        "",
        "Common names, separated by commas, that members' certificates may have",
    ),
    text(
        "peer-cert-allowed-hostname",
        "",
        "Hosts, separated by commas, for one of which a member's certificate has to be",
    ),
    switch(
        "peer-auto-tls",
        "Protect links between members with certificates of their own making",
    ),
    switch(
        "peer-skip-client-san-verification",
        "Let a member call from an address that its certificate is not for",
    ),
    text(
        "self-signed-cert-validity",
        "1",
        "Years that a certificate of its own making is good for",
    ),
    text(
        "cipher-suites",
        "",
        "Cipher suites to use, separated by commas [default: all safe ones]",
    ),
    text("tls-min-version", "TLS1.2", "TLS1.2 or TLS1.3"),
    text(
        "tls-max-version",
        "",
        "TLS1.2 or TLS1.3 [default: the newest]",
    ),
    idle(
        "experimental-enable-lease-checkpoint",
        "false",
        Form::Flag,
        LEASES,
    ),
    idle(
        "experimental-enable-lease-checkpoint-persist",
        "false",
        Form::Flag,
        LEASES,
    ),
    idle(
        "unsafe-no-fsync",
        "false",
        Form::Flag,
        "what is acknowledged is on disk first, always",
    ),
    idle(
        "metrics",
        "basic",
        Form::OneOf(&["basic", "extensive"]),
        "how long calls take is always shown",
    ),
    idle(
        "socket-reuse-address",
        "false",
        Form::Flag,
        "an address in TIME_WAIT is always taken",
    ),
    idle(
        "initial-election-tick-advance",
        "true",
        Form::Flag,
        "how soon a start elects is not to be chosen",
    ),
    idle("max-snapshots", "5", Form::Number, STORAGE),
    idle("max-wals", "5", Form::Number, STORAGE),
    idle(
        "backend-bbolt-freelist-type",
        "map",
        Form::OneOf(&["map", "array"]),
        STORAGE,
    ),
    idle("backend-batch-interval", "", Form::Duration, STORAGE),
    idle("backend-batch-limit", "0", Form::Number, STORAGE),
    idle("compaction-batch-limit", "1000", Form::Number, STORAGE),
    idle("compaction-sleep-interval", "10ms", Form::Duration, STORAGE),
    idle(
        "bootstrap-defrag-threshold-megabytes",
        "0",
        Form::Number,
        "space is given back while the server serves",
    ),
    idle(
        "experimental-stop-grpc-service-on-defrag",
        "false",
        Form::Flag,
        "space is given back while the server serves",
    ),
    idle(
        "experimental-txn-mode-write-with-shared-buffer",
        "true",
        Form::Flag,
        STORAGE,
    ),
    idle(
        "snapshot-catchup-entries",
        "5000",
        Form::Number,
        "the log keeps what members need to catch up",
    ),
    idle(
        "grpc-keepalive-min-time",
        "5s",
        Form::Duration,
        "clients may send pings as often as they like",
    ),
    idle("grpc-keepalive-interval", "2h", Form::Duration, PINGS),
    idle("grpc-keepalive-timeout", "20s", Form::Duration, PINGS),
    idle(
        "max-concurrent-streams",
        "4294967295",
        Form::Number,
        "calls of one connection have a bound that is fixed",
    ),
    idle("warning-apply-duration", "100ms", Form::Duration, SLOW),
    idle(
        "warning-unary-request-duration",
        "300ms",
        Form::Duration,
        SLOW,
    ),
    idle(
        "downgrade-check-time",
        "5s",
        Form::Duration,
        "there are no downgrades",
    ),
    idle(
        "experimental-wait-cluster-ready-timeout",
        "5s",
        Form::Duration,
        "a start waits a few seconds for a leader",
    ),
    idle(
        "experimental-compact-hash-check-enabled",
        "false",
        Form::Flag,
        CHECKS,
    ),
    idle("compact-hash-check-time", "1m", Form::Duration, CHECKS),
    idle("client-cert-file", "", Form::Any, GATEWAY),
    idle("client-key-file", "", Form::Any, GATEWAY),
    idle(
        "log-rotation-config-json",
        "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}",
        Form::Any,
        "the log is not rotated; whoever reads it does that",
    ),
    idle(
        "distributed-tracing-address",
        "localhost:4317",
        Form::Any,
        TRACING,
    ),
    idle(
        "distributed-tracing-service-name",
        "etcd",
        Form::Any,
        TRACING,
    ),
    idle("distributed-tracing-instance-id", "", Form::Any, TRACING),
    idle(
        "distributed-tracing-sampling-rate",
        "0",
        Form::Number,
        TRACING,
    ),
    idle(
        "discovery-fallback",
        "proxy",
        Form::OneOf(&["proxy", "exit"]),
        "there is no discovery",
    ),
    idle(
        "v2-deprecation",
        "not-yet",
        Form::OneOf(&["not-yet", "write-only", "write-only-drop-data", "gone"]),
        "there is no store of version 2",
    ),
    idle("proxy-failure-wait", "5000", Form::Number, PROXY),
    idle("proxy-refresh-interval", "30000", Form::Number, PROXY),
    idle("proxy-dial-timeout", "1000", Form::Number, PROXY),
    idle("proxy-write-timeout", "5000", Form::Number, PROXY),
    idle("proxy-read-timeout", "0", Form::Number, PROXY),
];

/// Names that etcd 3.5 has for options, and theirs here, which are also those of later versions.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("experimental-corrupt-check-time", "corrupt-check-time"),
    ("experimental-max-learners", "max-learners"),
    (
        "experimental-watch-progress-notify-interval",
        "watch-progress-notify-interval",
    ),
    (
        "experimental-compaction-batch-limit",
        "compaction-batch-limit",
    ),
    (
        "experimental-compaction-sleep-interval",
        "compaction-sleep-interval",
    ),
    (
        "experimental-bootstrap-defrag-threshold-megabytes",
        "bootstrap-defrag-threshold-megabytes",
    ),
    (
        "experimental-snapshot-catchup-entries",
        "snapshot-catchup-entries",
    ),
    (
        "experimental-warning-apply-duration",
        "warning-apply-duration",
    ),
    (
        "experimental-warning-unary-request-duration",
        "warning-unary-request-duration",
    ),
    ("experimental-downgrade-check-time", "downgrade-check-time"),
    (
        "experimental-compact-hash-check-time",
        "compact-hash-check-time",
    ),
    (
        "experimental-peer-skip-client-san-verification",
        "peer-skip-client-san-verification",
    ),
    ("experimental-memory-mlock", "memory-mlock"),
    (
        "experimental-enable-distributed-tracing",
        "enable-distributed-tracing",
    ),
    (
        "experimental-distributed-tracing-address",
        "distributed-tracing-address",
    ),
    (
        "experimental-distributed-tracing-service-name",
        "distributed-tracing-service-name",
    ),
    (
        "experimental-distributed-tracing-instance-id",
        "distributed-tracing-instance-id",
    ),
    (
        "experimental-distributed-tracing-sampling-rate",
        "distributed-tracing-sampling-rate",
    ),
];

/// The other names of an option.
pub(crate) fn aliases(name: &str) -> impl Iterator<Item = &'static str> {
    let of_option = ALIASES.iter().filter(move |(_, option)| *option == name);
    of_option.map(|(alias, _)| *alias)
}

/// Finds an option by one of its names.
pub(crate) fn find(name: &str) -> Option<&'static Opt> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    let name = alias.map_or(name, |(_, option)| option);
    OPTIONS.iter().find(|opt| opt.name == name)
}
