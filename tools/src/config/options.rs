//! Every option of `flotilla server`, once: from this table come the flags, the names in the environment, the keys of
//! the configuration file, and the help. Names and meanings are etcd's, where etcd has the option.

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
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
    /// The variable of the environment that sets it.
    pub(crate) fn env_name(&self) -> String {
        format!(
            "FLOTILLA_{}",
            self.name.to_ascii_uppercase().replace('-', "_")
        )
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

const TLS: &str = "TLS";
const CLUSTER: &str = "finding members by discovery, or forcing a new cluster";

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
    Opt {
        name: "accept-suspect-tail",
        default: "false",
        kind: Kind::Bool,
        support: Support::Full,
        help: "Drop a last batch of the log that is damaged and may have been acknowledged",
    },
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
        "Bytes that the data may take before what grows is refused; 0 for no quota",
    ),
    text(
        "corrupt-check-time",
        "10m",
        "How often the states of the members are compared; 0 for never",
    ),
    text("log-level", "info", "trace, debug, info, warn or error"),
    text("log-format", "text", "text or json"),
    missing(
        "logger",
        &["zap"],
        Kind::Text,
        "another logger",
        "`zap`; see --log-format",
    ),
    missing(
        "log-outputs",
        &["default", "stderr"],
        Kind::Text,
        "logging to a file",
        "Standard error",
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
    missing(
        "metrics",
        &["basic"],
        Kind::Text,
        "extensive metrics",
        "`basic`",
    ),
    missing(
        "auth-token",
        &["simple"],
        Kind::Text,
        "authentication",
        "`simple`",
    ),
    missing(
        "force-new-cluster",
        &["false"],
        Kind::Bool,
        CLUSTER,
        "`false`",
    ),
    missing(
        "unsafe-no-fsync",
        &["false"],
        Kind::Bool,
        "acknowledging what is not on disk",
        "`false`",
    ),
    missing("discovery", &[""], Kind::Text, CLUSTER, "Empty"),
    missing("cert-file", &[""], Kind::Text, TLS, "Empty"),
    missing("key-file", &[""], Kind::Text, TLS, "Empty"),
    missing("trusted-ca-file", &[""], Kind::Text, TLS, "Empty"),
    missing("client-cert-auth", &["false"], Kind::Bool, TLS, "`false`"),
    missing("auto-tls", &["false"], Kind::Bool, TLS, "`false`"),
    missing("peer-cert-file", &[""], Kind::Text, TLS, "Empty"),
    missing("peer-key-file", &[""], Kind::Text, TLS, "Empty"),
    missing("peer-trusted-ca-file", &[""], Kind::Text, TLS, "Empty"),
    missing(
        "peer-client-cert-auth",
        &["false"],
        Kind::Bool,
        TLS,
        "`false`",
    ),
    missing("peer-auto-tls", &["false"], Kind::Bool, TLS, "`false`"),
];

/// Finds an option by its name.
pub(crate) fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.name == name)
}
