//! Every option of `flotilla server`, once: from this table come the flags, the names in the environment, the keys of
//! the configuration file, and the help. Names and meanings are etcd's, where etcd has the option.

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
    Opt {
        name: "enable-grpc-gateway",
        default: "true",
        kind: Kind::Bool,
        support: Support::Full,
        help: "Serve the JSON gateway, /v3/..., beside gRPC",
    },
    text("max-learners", "1", "Learners that there may be at a time"),
    missing(
        "experimental-enable-lease-checkpoint",
        &["true"],
        Kind::Bool,
        "leases whose time begins anew with each leader",
        "`true`: what is left of a lease is recorded",
    ),
    missing(
        "experimental-enable-lease-checkpoint-persist",
        &["true"],
        Kind::Bool,
        "leases whose time begins anew with each start",
        "`true`",
    ),
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
    missing(
        "unsafe-no-fsync",
        &["false"],
        Kind::Bool,
        "acknowledging what is not on disk",
        "`false`",
    ),
    missing("discovery", &[""], Kind::Text, CLUSTER, "Empty"),
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
];

/// Names that etcd 3.5 has for options, and theirs here, which are also those of later versions.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("experimental-corrupt-check-time", "corrupt-check-time"),
    ("experimental-max-learners", "max-learners"),
    (
        "experimental-watch-progress-notify-interval",
        "watch-progress-notify-interval",
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
