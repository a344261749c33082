//! The configuration of `flotilla server`: a plain struct, made and validated here and nowhere else.
//!
//! `options` lists what can be set, `layers` gathers values and their origins, and [`ServerConfig::new`] turns them
//! into something that the server can rely on. An option whose feature does not exist is refused, never ignored.

mod auth;
mod dashes;
mod duration;
mod forms;
mod layers;
mod options;
mod tls;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Command};
use kv_server::mvcc::{KEYSPACES_MAX, check_keyspace_name};
use kv_server::node::{InitialCluster, InitialState};
use kv_server::upkeep::AutoCompaction;
use tracing::Level;

pub(crate) use auth::AuthToken;
pub(crate) use dashes::with_two_dashes;
use layers::{Origin, Setting};
pub(crate) use layers::{Settings, add_flags, gather};
use options::{OPTIONS, Support};
pub(crate) use tls::{Protection, TlsConfig};
use tls::{Urls, is_https};

/// The most that `--max-request-bytes` allows. Requests that a member accepts before any is committed go to the log as one
/// record, of at most 64 MiB; up to 32 MiB of them wait when the last is taken.
const REQUEST_BYTES_MAX: u64 = 16 << 20;

/// The shortest `--watch-progress-notify-interval`, as in etcd.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The gate of the check before a member serves.
const INITIAL_CHECK: &str = "InitialCorruptCheck";

/// The feature gates of etcd 3.6 that can be named, and what they are where that cannot be chosen.
const GATES: &[(&str, Option<bool>)] = &[
    (INITIAL_CHECK, None),
    // The states are compared as --corrupt-check-time says.
    ("CompactHashCheck", None),
    // What is left of a lease is always recorded; who asks for less gets more.
    ("LeaseCheckpoint", None),
    ("LeaseCheckpointPersist", None),
    ("SetMemberLocalAddr", Some(false)),
    // How etcd reads within a transaction, and what it does while it gives space back: neither shows here.
    ("TxnModeWriteWithSharedBuffer", None),
    ("StopGRPCServiceOnDefrag", None),
];

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddress {
    pub(crate) address: SocketAddr,
    /// The URL begins with `https`.
    pub(crate) is_https: bool,
}

/// What the server needs to know, valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    /// Name of this member. Default `default`.
    pub(crate) name: String,
    /// Holds all data; created if missing. Default `./flotilla.data`.
    pub(crate) data_dir: PathBuf,
    /// Where clients connect: at least one address. Port 0 lets the system choose. Default 127.0.0.1:2379.
    pub(crate) listen_client: Vec<ListenAddress>,
    /// What clients are told to connect to. Default: the listening addresses.
    pub(crate) advertise_client_urls: Vec<String>,
    /// Where the pages of health and metrics are served beside the client address. Default nowhere.
    pub(crate) listen_metrics: Vec<ListenAddress>,
    /// Keyspaces beside the default one, each once, with where its clients connect. Default none.
    pub(crate) keyspaces: Vec<KeyspaceConfig>,
    /// Where members connect. Default 127.0.0.1:2380.
    pub(crate) listen_peer: Vec<ListenAddress>,
    /// What members are told; decides this member's id. Default `http://127.0.0.1:2380`.
    pub(crate) peer_urls: Vec<String>,
    /// The members that begin the cluster. Default: this one alone.
    pub(crate) initial_cluster: InitialCluster,
    /// Default new.
    pub(crate) initial_state: InitialState,
    /// Tells clusters apart; part of the cluster's id. Default `etcd-cluster`.
    pub(crate) cluster_token: String,
    /// Milliseconds between heartbeats. Default 100, from 10 on.
    pub(crate) heartbeat_ms: u64,
    /// Milliseconds without a leader before an election. Default 1,000; 5 heartbeats to 50,000.
    pub(crate) election_ms: u64,
    /// Applied entries after which the engine is made durable, so that the log can be purged. Default 10,000, from 1 on.
    pub(crate) snapshot_entries: u64,
    /// Go on without a last batch of the log that is damaged and may have been acknowledged. Danger: it may lose that
    /// batch. Default false.
    pub(crate) accept_suspect_tail: bool,
    /// Changes of the members that could cost the quorum are refused. Default true.
    pub(crate) strict_changes: bool,
    /// Learners at a time. Default 1.
    pub(crate) learners_max: usize,
    /// Operations in one transaction. Default 128, from 1 on.
    pub(crate) txn_ops_max: usize,
    /// Bytes of one request. Default 1.5 MiB, at most 16 MiB: a request is held in memory several times over.
    pub(crate) request_bytes_max: usize,
    /// Serve etcd's JSON gateway on the client port. Default true.
    pub(crate) json_gateway: bool,
    /// History to keep when nobody compacts. Default all.
    pub(crate) auto_compaction: AutoCompaction,
    /// Bytes that each keyspace may take on the member. Default 0: no quota.
    pub(crate) quota_bytes: u64,
    /// How often the states of the members are compared. Default ten minutes; none for never.
    pub(crate) check_interval: Option<Duration>,
    /// Compare the state with the other members' before serving. Default false.
    pub(crate) initial_check: bool,
    /// What protects both. Default nothing.
    pub(crate) tls: TlsConfig,
    /// Clients are the users that their certificates name. Default false.
    pub(crate) client_cert_auth: bool,
    /// What tokens are. Default simple.
    pub(crate) auth_token: AuthToken,
    /// What a simple token lives unused. Default 300 s, from 1 s on.
    pub(crate) auth_token_ttl: Duration,
    /// The cost of bcrypt. Default 10, from 4 to 31: one more doubles what a login takes, and what logins a server can do.
    pub(crate) bcrypt_cost: u32,
    /// How often watchers that ask for it are told of progress. Default ten minutes, at least 100 ms.
    pub(crate) progress_interval: Duration,
    /// The least severe level that is logged. Default info.
    pub(crate) log_level: Level,
    /// Default text.
    pub(crate) log_format: LogFormat,
    /// Default standard error.
    pub(crate) log_output: LogOutput,
}

/// A keyspace beside the default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceConfig {
    pub(crate) name: String,
    /// What clients are told.
    pub(crate) urls: Vec<String>,
    /// Where they connect.
    pub(crate) listen: Vec<ListenAddress>,
}

impl ServerConfig {
    /// Validates all settings; the error names the option, its origin, and what was expected.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        for opt in OPTIONS {
            refuse_missing_feature(opt.name, opt.support, settings.get(opt.name))?;
        }
        let read = Reader { settings };
        read.idle_options()?;
        let name = read.nonempty("name")?;
        let listen_client = read.addresses("listen-client-urls")?;
        let keyspaces = read.keyspaces()?;
        let metrics_urls = read.metrics_urls()?;
        let listen_peer = read.addresses("listen-peer-urls")?;
        let peer_urls = read.urls("initial-advertise-peer-urls")?;
        let initial_cluster = read.initial_cluster(&name, &peer_urls)?;
        let advertise_client_urls = match settings.get("advertise-client-urls").value.as_str() {
            "" => read.urls("listen-client-urls")?,
            _ => read.urls("advertise-client-urls")?,
        };
        let heartbeat_ms = read.number("heartbeat-interval", 10, 10_000)?;
        let election_ms = read.number("election-timeout", 50, 50_000)?;
        if election_ms < 5 * heartbeat_ms {
            return Err(read.wrong("election-timeout", "at least 5 times --heartbeat-interval"));
        }
        let members: Vec<_> = peer_urls
            .iter()
            .chain(initial_cluster.urls())
            .cloned()
            .collect();
        let of_keyspaces = keyspaces.iter().flat_map(|one| one.urls.clone());
        let for_clients: Vec<_> = read
            .urls("listen-client-urls")?
            .into_iter()
            .chain(of_keyspaces)
            .chain(metrics_urls.iter().cloned())
            .collect();
        let tls = read.tls(&Urls {
            listen_client: &for_clients,
            listen_peer: &read.urls("listen-peer-urls")?,
            members: &members,
        })?;
        Ok(Self {
            data_dir: PathBuf::from(read.nonempty("data-dir")?),
            listen_client,
            listen_metrics: read.addresses_of("listen-metrics-urls", &metrics_urls)?,
            advertise_client_urls,
            keyspaces,
            listen_peer,
            peer_urls,
            initial_cluster,
            initial_state: read.initial_state()?,
            cluster_token: read.nonempty("initial-cluster-token")?,
            heartbeat_ms,
            election_ms,
            snapshot_entries: read.number("snapshot-count", 1, u64::MAX)?,
            accept_suspect_tail: read.flag("accept-suspect-tail")?,
            strict_changes: read.flag("strict-reconfig-check")?,
            learners_max: read.size("max-learners", 1, 1 << 10)?,
            txn_ops_max: read.size("max-txn-ops", 1, 1 << 20)?,
            request_bytes_max: read.size("max-request-bytes", 1024, REQUEST_BYTES_MAX)?,
            json_gateway: read.flag("enable-grpc-gateway")?,
            auto_compaction: read.auto_compaction()?,
            quota_bytes: read.quota()?,
            check_interval: read.check_interval()?,
            initial_check: read.initial_check()?,
            tls,
            client_cert_auth: read.flag("client-cert-auth")?,
            auth_token: read.auth_token()?,
            auth_token_ttl: Duration::from_secs(read.number("auth-token-ttl", 1, 1 << 32)?),
            bcrypt_cost: read.bcrypt_cost()?,
            progress_interval: read.progress_interval()?,
            log_level: read.level("log-level")?,
            log_format: read.log_format("log-format")?,
            log_output: read.log_output()?,
            name,
        })
    }
}

fn refuse_missing_feature(name: &str, support: Support, setting: &Setting) -> Result<(), String> {
    match support {
        Support::Only(accepted, what) if !accepted.contains(&setting.value.as_str()) => {
            Err(format!(
                "--{name} {:?} ({}): {what} is not supported by this version; remove the option",
                setting.value, setting.origin
            ))
        }
        _ => Ok(()),
    }
}

/// Reads single values, with errors that say where a value came from.
struct Reader<'a> {
    settings: &'a Settings,
}

impl Reader<'_> {
    fn wrong(&self, name: &str, expected: &str) -> String {
        let Setting { value, origin } = self.settings.get(name);
        format!("--{name} ({origin}): expected {expected}, found {value:?}")
    }

    fn nonempty(&self, name: &str) -> Result<String, String> {
        match self.settings.get(name).value.as_str() {
            "" => Err(self.wrong(name, "some text")),
            value => Ok(value.to_owned()),
        }
    }

    fn number(&self, name: &str, min: u64, max: u64) -> Result<u64, String> {
        let number = self.settings.get(name).value.parse::<u64>().ok();
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.wrong(name, &format!("a number from {min} to {max}")))
    }

    fn size(&self, name: &str, min: u64, max: u64) -> Result<usize, String> {
        let number = self.number(name, min, max)?;
        usize::try_from(number)
            .map_err(|_| self.wrong(name, "a size that this machine can address"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        let flag = self.settings.get(name).value.parse();
        flag.map_err(|_| self.wrong(name, "true or false"))
    }

    /// Options that change nothing have values all the same that they may not have.
    fn idle_options(&self) -> Result<(), String> {
        for opt in OPTIONS {
            if let Support::Idle(form, _) = opt.support
                && !form.allows(&self.settings.get(opt.name).value)
            {
                return Err(self.wrong(opt.name, &form.expected()));
            }
        }
        Ok(())
    }

    /// etcd's levels above error are one here.
    fn level(&self, name: &str) -> Result<Level, String> {
        match self.settings.get(name).value.as_str() {
            "dpanic" | "panic" | "fatal" => Ok(Level::ERROR),
            level => level
                .parse()
                .map_err(|_| self.wrong(name, "trace, debug, info, warn, error, panic or fatal")),
        }
    }

    fn log_output(&self) -> Result<LogOutput, String> {
        let option = "log-outputs";
        match self.settings.get(option).value.as_str() {
            "default" | "stderr" => Ok(LogOutput::Stderr),
            "stdout" => Ok(LogOutput::Stdout),
            _ => Err(self.wrong(
                option,
                "one of default, stderr and stdout, which the shell or a supervisor can send to a file",
            )),
        }
    }

    fn log_format(&self, name: &str) -> Result<LogFormat, String> {
        match self.settings.get(name).value.as_str() {
            "text" | "console" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(self.wrong(name, "text, console or json")),
        }
    }

    /// URLs, separated by commas, with a host and a port.
    fn urls(&self, name: &str) -> Result<Vec<String>, String> {
        let urls = self.settings.get(name).value.split(',').map(str::trim);
        self.checked_urls(name, urls)
    }

    fn checked_urls<'b>(
        &self,
        name: &str,
        given: impl Iterator<Item = &'b str>,
    ) -> Result<Vec<String>, String> {
        let expected = "URLs such as http://127.0.0.1:2379, separated by commas";
        let mut urls = Vec::new();
        for url in given {
            let rest = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"))
                .ok_or_else(|| self.wrong(name, expected))?;
            let (host, port) = rest
                .rsplit_once(':')
                .ok_or_else(|| self.wrong(name, expected))?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(self.wrong(name, expected));
            }
            urls.push(url.to_owned());
        }
        Ok(urls)
    }

    /// URLs to listen on: the host is an address, or `localhost`.
    fn addresses(&self, name: &str) -> Result<Vec<ListenAddress>, String> {
        self.addresses_of(name, &self.urls(name)?)
    }

    fn addresses_of(&self, name: &str, urls: &[String]) -> Result<Vec<ListenAddress>, String> {
        let address = |url: &String| {
            let is_https = is_https(url);
            let text = url
                .trim_start_matches("http://")
                .trim_start_matches("https://")
                .replace("localhost:", "127.0.0.1:");
            let address = text.parse();
            let address =
                address.map_err(|_| self.wrong(name, "an IP address and a port to listen on"))?;
            Ok(ListenAddress { address, is_https })
        };
        urls.iter().map(address).collect()
    }

    /// Where health and metrics are served; https with what protects the client address.
    fn metrics_urls(&self) -> Result<Vec<String>, String> {
        let option = "listen-metrics-urls";
        if self.settings.get(option).value.is_empty() {
            return Ok(Vec::new());
        }
        let urls = self.urls(option)?;
        let is_set = |option: &str| !self.settings.get(option).value.is_empty();
        let is_protected = is_set("cert-file") || self.flag("auto-tls")?;
        if !is_protected && urls.iter().any(|url| is_https(url)) {
            let expected =
                "http URLs, or --cert-file and --key-file, or --auto-tls, beside https ones";
            return Err(self.wrong(option, expected));
        }
        Ok(urls)
    }

    /// Keyspaces, as NAME=URL; a name that comes more than once has several URLs.
    fn keyspaces(&self) -> Result<Vec<KeyspaceConfig>, String> {
        let option = "keyspace";
        let Setting { value, origin } = self.settings.get(option);
        let mut keyspaces: Vec<KeyspaceConfig> = Vec::new();
        for given in value
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
        {
            let (name, url) = given
                .split_once('=')
                .ok_or_else(|| self.wrong(option, "NAME=URL, such as a=http://127.0.0.1:2381"))?;
            check_keyspace_name(name).map_err(|error| format!("--{option} ({origin}): {error}"))?;
            let urls = self.checked_urls(option, std::iter::once(url))?;
            let listen = self.addresses_of(option, &urls)?;
            match keyspaces.iter_mut().find(|known| known.name == name) {
                Some(known) => {
                    known.urls.extend(urls);
                    known.listen.extend(listen);
                }
                None => keyspaces.push(KeyspaceConfig {
                    name: name.to_owned(),
                    urls,
                    listen,
                }),
            }
        }
        if keyspaces.len() > KEYSPACES_MAX {
            return Err(self.wrong(option, &format!("at most {KEYSPACES_MAX} keyspaces")));
        }
        Ok(keyspaces)
    }

    /// The members that begin the cluster. Whether they fit to this one counts only while the data directory is new.
    fn initial_cluster(&self, name: &str, peer_urls: &[String]) -> Result<InitialCluster, String> {
        let option = "initial-cluster";
        let Setting { value, origin } = self.settings.get(option);
        if value.is_empty() {
            return Ok(InitialCluster::of_one(name, peer_urls));
        }
        let cluster = InitialCluster::parse(value)
            .map_err(|error| format!("--{option} ({origin}): {error}"))?;
        self.checked_urls(option, cluster.urls().map(String::as_str))?;
        Ok(cluster)
    }

    /// As etcd reads the two options: a plain number is hours in the periodic mode.
    fn auto_compaction(&self) -> Result<AutoCompaction, String> {
        let (mode, option) = ("auto-compaction-mode", "auto-compaction-retention");
        let retention = self.settings.get(option).value.as_str();
        let number = retention.parse::<u32>().ok();
        let kept = match self.settings.get(mode).value.as_str() {
            "periodic" => {
                let period = number
                    .map(|hours| Duration::from_secs(3_600) * hours)
                    .or_else(|| duration::parse(retention))
                    .ok_or_else(|| self.wrong(option, "hours, or a duration such as 1h30m"))?;
                AutoCompaction::Periodic(period)
            }
            "revision" => {
                let kept = retention.parse::<i64>().ok().filter(|kept| *kept >= 0);
                let kept = kept.ok_or_else(|| self.wrong(option, "a number of revisions"))?;
                AutoCompaction::Revision(kept)
            }
            _ => return Err(self.wrong(mode, "periodic or revision")),
        };
        let off = [
            AutoCompaction::Periodic(Duration::ZERO),
            AutoCompaction::Revision(0),
        ];
        Ok(if off.contains(&kept) {
            AutoCompaction::Off
        } else {
            kept
        })
    }

    /// As in etcd a negative one is none.
    fn quota(&self) -> Result<u64, String> {
        let option = "quota-backend-bytes";
        let bytes = self.settings.get(option).value.parse::<i64>();
        let bytes = bytes.map_err(|_| self.wrong(option, "a number of bytes, 0 for no quota"))?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    fn check_interval(&self) -> Result<Option<Duration>, String> {
        let option = "corrupt-check-time";
        let interval = duration::parse(&self.settings.get(option).value)
            .ok_or_else(|| self.wrong(option, "a duration such as 10m"))?;
        Ok(Some(interval).filter(|interval| !interval.is_zero()))
    }

    /// Under either of its names in etcd, 3.5's and 3.6's.
    fn initial_check(&self) -> Result<bool, String> {
        let gate = self.gate(INITIAL_CHECK)?;
        Ok(self.flag("experimental-initial-corrupt-check")? || gate)
    }

    /// Whether one of etcd's feature gates is opened. One that asks for what there is not is refused.
    fn gate(&self, wanted: &str) -> Result<bool, String> {
        let option = "feature-gates";
        let mut is_open = false;
        let given = self.settings.get(option).value.as_str();
        for gate in given.split(',').filter(|gate| !gate.is_empty()) {
            let (name, open) = gate.split_once('=').unwrap_or((gate, ""));
            let known = GATES.iter().find(|(known, _)| *known == name.trim());
            let open = open.trim().parse::<bool>().ok();
            match (known, open) {
                (Some((name, accepted)), Some(open))
                    if accepted.is_none_or(|only| only == open) =>
                {
                    is_open |= *name == wanted && open;
                }
                (Some((name, Some(only))), Some(_)) => {
                    return Err(
                        self.wrong(option, &format!("{name}={only}, which cannot be changed"))
                    );
                }
                (Some((name, _)), None) => {
                    return Err(self.wrong(option, &format!("{name}=true or {name}=false")));
                }
                _ => {
                    let names: Vec<_> = GATES.iter().map(|(name, _)| *name).collect();
                    return Err(self.wrong(option, &format!("features among {}", names.join(", "))));
                }
            }
        }
        Ok(is_open)
    }

    fn progress_interval(&self) -> Result<Duration, String> {
        let option = "watch-progress-notify-interval";
        let interval = duration::parse(&self.settings.get(option).value);
        interval
            .filter(|interval| *interval >= PROGRESS_INTERVAL_MIN)
            .ok_or_else(|| self.wrong(option, "a duration from 100ms on"))
    }

    fn initial_state(&self) -> Result<InitialState, String> {
        let option = "initial-cluster-state";
        match self.settings.get(option).value.as_str() {
            "new" => Ok(InitialState::New),
            "existing" => Ok(InitialState::Existing),
            _ => Err(self.wrong(option, "new or existing")),
        }
    }
}

/// Gathers settings from parsed flags and the process's environment.
pub(crate) fn load(flags: &ArgMatches) -> Result<Settings, String> {
    gather(flags, |name| std::env::var_os(name))
}

/// Options that were given and change nothing: name, value, and why.
pub(crate) fn without_effect(settings: &Settings) -> Vec<(&'static str, &str, &'static str)> {
    let mut found = Vec::new();
    for opt in OPTIONS {
        let value = settings.get(opt.name).value.as_str();
        if let Support::Idle(_, why) = opt.support
            && value != opt.default
        {
            found.push((opt.name, value, why));
        }
    }
    found
}

/// Variables that look like options but are none. They are told, not refused: an orchestrator may set variables such
/// as `FLOTILLA_SERVICE_HOST` on its own.
pub(crate) fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let known = |name: &String| {
        let of_client = crate::user::VARIABLES.contains(&name.as_str());
        name == "FLOTILLA_CONFIG_FILE"
            || of_client
            || OPTIONS.iter().any(|opt| opt.env_names().contains(name))
    };
    let mut unknown: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("FLOTILLA_") || name.starts_with("ETCD_"))
        .filter(|name| !known(name))
        .collect();
    unknown.sort();
    unknown
}

/// The settings as a configuration file that can be read back; with `origin`, where each came from; with `changed`,
/// without what is at its default.
pub(crate) fn show(settings: &Settings, origin: bool, changed: bool) -> String {
    let mut text = String::new();
    for opt in OPTIONS {
        let setting = settings.get(opt.name);
        if changed && setting.origin == Origin::Default {
            continue;
        }
        let value = toml::Value::String(setting.value.clone());
        text.push_str(&format!("{} = {value}", opt.name));
        if origin {
            text.push_str(&format!(" # {}", setting.origin));
        }
        text.push('\n');
    }
    text
}

/// The `server` subcommand's flags.
pub(crate) fn server_command() -> Command {
    let version = clap::Arg::new("version")
        .long("version")
        .action(clap::ArgAction::SetTrue)
        .help("Print the version as etcd does, and which etcd this behaves as");
    add_flags(Command::new("server").about("Serve clients")).arg(version)
}

/// The `config` subcommand's flags.
pub(crate) fn config_command() -> Command {
    let switch = |name: &'static str, help: &'static str| {
        clap::Arg::new(name)
            .long(name)
            .action(clap::ArgAction::SetTrue)
            .help(help)
    };
    let show = add_flags(
        Command::new("show")
            .about("Print the configuration that `server` would use with the same flags"),
    )
    .arg(switch("origin", "Say where each value came from"))
    .arg(switch("changed", "Leave out what is at its default"));
    Command::new("config")
        .about("Look at the configuration")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(show)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<ServerConfig, String> {
        let args = std::iter::once("server").chain(args.iter().copied());
        let flags = server_command().try_get_matches_from(args).unwrap();
        ServerConfig::new(&gather(&flags, |_| None)?)
    }

    #[test]
    fn new_no_flag_gives_the_documented_defaults() {
        let config = config(&[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("flotilla.data"));
        let plain = |address: &str| ListenAddress {
            address: address.parse().unwrap(),
            is_https: false,
        };
        assert_eq!(config.listen_client, [plain("127.0.0.1:2379")]);
        assert_eq!(config.advertise_client_urls, ["http://127.0.0.1:2379"]);
        assert_eq!(
            (config.txn_ops_max, config.request_bytes_max),
            (128, 1_572_864)
        );
    }

    #[test]
    fn new_etcd_flags_of_one_member_are_accepted() {
        let url = "http://127.0.0.1:12380";
        let cluster = format!("m1={url}");
        let args = [
            "--name",
            "m1",
            "--initial-advertise-peer-urls",
            url,
            "--listen-peer-urls",
            url,
        ];
        let more = [
            "--initial-cluster",
            &cluster,
            "--initial-cluster-state",
            "new",
        ];
        let config = config(&[&args[..], &more[..]].concat()).unwrap();
        assert_eq!(config.peer_urls, [url]);
    }

    #[test]
    fn new_feature_that_does_not_exist_is_refused_by_name() {
        for (args, what) in [
            (vec!["--initial-cluster", "a=http://x:1,b"], "empty URL"),
            (
                vec!["--initial-cluster-state", "joining"],
                "new or existing",
            ),
        ] {
            let error = config(&args).unwrap_err();
            assert!(error.contains(what), "{args:?}: {error}");
        }
    }

    #[test]
    fn new_flag_of_etcd_that_would_be_missed_is_refused_by_name() {
        for flag in [
            "--wal-dir=/wal",
            "--discovery-srv=example.org",
            "--discovery-srv-name=etcd",
            "--discovery-proxy=http://127.0.0.1:1",
            "--proxy=on",
            "--experimental-enable-v2v3=/v2",
            "--enable-v2",
            "--enable-pprof=1",
            "--force-new-cluster=T",
            "--cors=https://example.org",
            "--host-whitelist=example.org",
            "--socket-reuse-port",
            "--enable-log-rotation=true",
            "--experimental-enable-distributed-tracing=true",
            "--experimental-memory-mlock",
            "--log-outputs=/var/log/etcd.log",
            "--log-outputs=stderr,etcd.log",
            "--listen-client-http-urls=http://127.0.0.1:1",
        ] {
            let error = config(&[flag]).unwrap_err();
            let (name, _) = flag.split_once('=').unwrap_or((flag, ""));
            let name = options::find(name.trim_start_matches('-')).unwrap().name;
            assert!(error.starts_with(&format!("--{name} ")), "{flag}: {error}");
        }
    }

    #[test]
    fn new_flag_of_etcd_without_meaning_is_accepted_and_told() {
        let told = |args: &[&str]| {
            let args = std::iter::once("server").chain(args.iter().copied());
            let flags = server_command().try_get_matches_from(args).unwrap();
            let settings = gather(&flags, |_| None)?;
            ServerConfig::new(&settings)?;
            let told = without_effect(&settings);
            Ok::<_, String>(told.iter().map(|(name, ..)| *name).collect::<Vec<_>>())
        };
        assert_eq!(told(&[]), Ok(vec![]));
        let defaults = [
            "--max-wals=5",
            "--metrics=basic",
            "--experimental-enable-lease-checkpoint=false",
        ];
        assert_eq!(told(&defaults), Ok(vec![]));
        for (flag, name) in [
            ("--max-wals=0", "max-wals"),
            ("--backend-batch-interval=10ms", "backend-batch-interval"),
            (
                "--backend-bbolt-freelist-type=array",
                "backend-bbolt-freelist-type",
            ),
            (
                "--experimental-compaction-batch-limit=7",
                "compaction-batch-limit",
            ),
            ("--v2-deprecation=gone", "v2-deprecation"),
            ("--unsafe-no-fsync", "unsafe-no-fsync"),
            ("--metrics=extensive", "metrics"),
            (
                "--experimental-enable-lease-checkpoint=true",
                "experimental-enable-lease-checkpoint",
            ),
        ] {
            assert_eq!(told(&[flag]), Ok(vec![name]), "{flag}");
        }
        for (flag, expected) in [
            ("--max-wals=many", "a number from 0 on"),
            ("--max-snapshots=-1", "a number from 0 on"),
            ("--warning-apply-duration=100", "a duration such as 100ms"),
            ("--v2-deprecation=soon", "not-yet or write-only"),
            ("--unsafe-no-fsync=maybe", "true or false"),
        ] {
            let error = told(&[flag]).unwrap_err();
            assert!(error.contains(expected), "{flag}: {error}");
        }
    }

    #[test]
    fn page_says_of_each_flag_what_becomes_of_it() {
        let page = include_str!("../../../docs/COMPATIBILITY.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `--"));
        let mut named = Vec::new();
        for row in rows.filter(|row| !row.starts_with("config-file`")) {
            let (name, rest) = row.split_once("` | ").unwrap();
            let (state, _) = rest.split_once(" |").unwrap();
            let opt = options::find(name).expect(name);
            let expected = match opt.support {
                Support::Full => "works",
                Support::Idle(..) => "no effect",
                Support::Only(..) => "refused",
            };
            assert_eq!(state, expected, "{name}");
            assert!(!named.contains(&opt.name), "{name} has two rows");
            named.push(opt.name);
        }
        // Those of later versions, and our own.
        let others = ["accept-suspect-tail", "feature-gates", "keyspace"];
        for opt in OPTIONS {
            let is_later = ["discovery-endpoints", "discovery-token"].contains(&opt.name);
            assert!(
                named.contains(&opt.name) != (is_later || others.contains(&opt.name)),
                "{}",
                opt.name
            );
        }
    }

    #[test]
    fn new_metrics_urls_are_addresses_and_https_needs_a_certificate() {
        let read = |args: &[&str]| config(args).map(|config| config.listen_metrics);
        assert_eq!(read(&["--listen-metrics-urls="]), Ok(vec![]));
        let found = read(&["--listen-metrics-urls=http://127.0.0.1:2381,http://[::1]:1"]);
        assert_eq!(found.unwrap().len(), 2);
        let https = "--listen-metrics-urls=https://127.0.0.1:2381";
        let error = read(&[https]).unwrap_err();
        assert!(error.starts_with("--listen-metrics-urls "), "{error}");
        assert!(read(&[https, "--auto-tls"]).unwrap()[0].is_https);
    }

    #[test]
    fn new_log_goes_where_etcd_says_with_its_levels_and_formats() {
        let read = |args: &[&str]| {
            config(args).map(|config| (config.log_output, config.log_level, config.log_format))
        };
        let stderr = LogOutput::Stderr;
        assert_eq!(read(&[]), Ok((stderr, Level::INFO, LogFormat::Text)));
        assert_eq!(
            read(&[
                "--log-outputs=stdout",
                "--log-level=fatal",
                "--log-format=json"
            ]),
            Ok((LogOutput::Stdout, Level::ERROR, LogFormat::Json))
        );
        assert_eq!(
            read(&[
                "--log-outputs=stderr",
                "--log-level=panic",
                "--log-format=console"
            ]),
            Ok((stderr, Level::ERROR, LogFormat::Text))
        );
    }

    #[test]
    fn new_value_out_of_bounds_is_refused_with_its_origin() {
        let error = config(&["--max-txn-ops", "0"]).unwrap_err();
        assert_eq!(
            error,
            "--max-txn-ops (flag): expected a number from 1 to 1048576, found \"0\""
        );
        assert!(config(&["--max-request-bytes", "16777216"]).is_ok());
        assert!(config(&["--max-request-bytes", "16777217"]).is_err());
        assert!(config(&["--election-timeout", "200"]).is_err());
        assert!(config(&["--listen-client-urls", "http://example.org:2379"]).is_err());
        assert!(config(&["--name", ""]).is_err());
    }

    #[test]
    fn new_auto_compaction_is_read_as_etcd_reads_it() {
        let read = |mode: &str, retention: &str| {
            let args = [
                "--auto-compaction-mode",
                mode,
                "--auto-compaction-retention",
                retention,
            ];
            config(&args).map(|config| config.auto_compaction)
        };
        let seconds = |seconds| Ok(AutoCompaction::Periodic(Duration::from_secs(seconds)));
        assert_eq!(config(&[]).unwrap().auto_compaction, AutoCompaction::Off);
        assert_eq!(read("periodic", "0"), Ok(AutoCompaction::Off));
        assert_eq!(read("periodic", "0s"), Ok(AutoCompaction::Off));
        assert_eq!(read("revision", "0"), Ok(AutoCompaction::Off));
        assert_eq!(read("periodic", "72"), seconds(72 * 3_600));
        assert_eq!(read("periodic", "30m"), seconds(1_800));
        assert_eq!(read("periodic", "1h30m"), seconds(5_400));
        assert_eq!(
            read("revision", "1000"),
            Ok(AutoCompaction::Revision(1_000))
        );
        for (mode, retention, expected) in [
            ("sometimes", "1", "periodic or revision"),
            ("periodic", "soon", "a duration such as 1h30m"),
            ("periodic", "-1", "a duration such as 1h30m"),
            ("revision", "1h", "a number of revisions"),
            ("revision", "-1", "a number of revisions"),
        ] {
            let error = read(mode, retention).unwrap_err();
            assert!(error.contains(expected), "{mode} {retention}: {error}");
        }
    }

    #[test]
    fn new_quota_is_a_number_of_bytes() {
        let read = |value: &str| config(&["--quota-backend-bytes", value]).map(|c| c.quota_bytes);
        assert_eq!(config(&[]).unwrap().quota_bytes, 0);
        assert_eq!(read("8589934592"), Ok(8_589_934_592));
        assert_eq!(read("-1"), Ok(0));
        assert!(read("8GiB").unwrap_err().contains("a number of bytes"));
    }

    #[test]
    fn new_names_of_etcd_3_5_set_the_option_of_today() {
        let flags = [
            "--experimental-corrupt-check-time=1m",
            "--experimental-watch-progress-notify-interval=5s",
            "--experimental-max-learners=3",
        ];
        let found = config(&flags).unwrap();
        assert_eq!(found.check_interval, Some(Duration::from_secs(60)));
        assert_eq!(found.progress_interval, Duration::from_secs(5));
        assert_eq!(found.learners_max, 3);

        let flags = server_command().try_get_matches_from(["server"]).unwrap();
        let env = |name: &str| {
            (name == "FLOTILLA_EXPERIMENTAL_MAX_LEARNERS").then(|| OsString::from("2"))
        };
        let settings = gather(&flags, env).unwrap();
        assert_eq!(ServerConfig::new(&settings).unwrap().learners_max, 2);
        let name = OsString::from("FLOTILLA_EXPERIMENTAL_MAX_LEARNERS");
        assert_eq!(unknown_variables([name].into_iter()), [""; 0]);
        let error = config(&["--watch-progress-notify-interval", "99ms"]);
        assert!(error.unwrap_err().contains("100ms"));
    }

    #[test]
    fn new_feature_gates_are_read_and_one_that_cannot_be_is_refused() {
        let read = |value: &str| {
            config(&[&format!("--feature-gates={value}")]).map(|config| config.initial_check)
        };
        assert_eq!(read(""), Ok(false));
        assert_eq!(
            read("LeaseCheckpoint=true,InitialCorruptCheck=true"),
            Ok(true)
        );
        assert_eq!(read("InitialCorruptCheck=false"), Ok(false));
        assert_eq!(read("LeaseCheckpoint=false"), Ok(false));
        assert_eq!(
            config(&["--experimental-initial-corrupt-check"]).map(|c| c.initial_check),
            Ok(true)
        );
        for (value, expected) in [
            (
                "SetMemberLocalAddr=true",
                "SetMemberLocalAddr=false, which cannot be changed",
            ),
            (
                "InitialCorruptCheck",
                "InitialCorruptCheck=true or InitialCorruptCheck=false",
            ),
            ("Telepathy=true", "features among InitialCorruptCheck"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }

    #[test]
    fn show_output_read_back_is_the_same_configuration() {
        let flags = server_command()
            .try_get_matches_from(["server", "--name", "a \"b\""])
            .unwrap();
        let settings = gather(&flags, |_| None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shown.toml");
        std::fs::write(&path, show(&settings, true, false)).unwrap();
        assert_eq!(
            config(&["--config-file", path.to_str().unwrap()]),
            ServerConfig::new(&settings)
        );
    }

    #[test]
    fn unknown_variables_mixed_environment_lists_only_ours() {
        let names = [
            "PATH",
            "FLOTILLA_NAME",
            "FLOTILLA_NMAE",
            "ETCD_NAME",
            "ETCD_NMAE",
        ];
        let names = names.map(OsString::from);
        assert_eq!(
            unknown_variables(names.into_iter()),
            ["ETCD_NMAE", "FLOTILLA_NMAE"]
        );
    }
}
