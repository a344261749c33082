//! `flotilla server`: from flags to a running server, and its exit code.
//!
//! Sockets are bound first: a port in use must not touch the data directory. They are served last: whoever connects
//! meanwhile waits in the backlog until the node has replayed its log.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use kv_server::api::{ApiOptions, EtcdApi, ScanPool, VERSION};
use kv_server::auth::{Authenticator, Jwt, JwtOptions, Tokens};
use kv_server::node::{
    ChangeRules, Front, GroupReplica, Node, NodeConfig, NodeError, NodeView, Observers, Serve,
    UpkeepConfig, WantedKeyspace,
};
use kv_server::pb::etcdserverpb::watch_server::WatchServer;
use kv_server::server::{
    Doors, Metrics, ServerHandle, ServerOptions, ServerParts, WatchOptions, WatchService, serve,
};
use multiraft::tls::{ClientTls, Listener, ServerTls};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::config::{self, AuthToken, ListenAddress, ServerConfig, TlsConfig};
use crate::failure::{Failure, print};
use crate::logging;

/// Threads for reads of ranges.
const SCAN_THREADS: usize = 2;
/// How long a start waits until its URLs are known to all members.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);
/// Reads of ranges that wait for one of them; more are refused.
const SCANS_QUEUED_MAX: usize = 1_024;
/// Those of them that the watches of one keyspace may take.
const SCANS_OF_WATCHES_MAX: usize = 4;

/// The kernel clears a huge page when it is first touched: 2 MiB, measured as 5 ms in the middle of a write. A kernel
/// that knows no such pages is fine.
fn refuse_huge_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// The version in the words of `etcd --version`, with our own below.
fn version() -> String {
    // As Go names them.
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {VERSION}\nGit SHA: Not provided\nGo Version: none\nGo OS/Arch: {}/{arch}\nFlotilla Version: {}\n",
        std::env::consts::OS,
        crate::VERSION
    )
}

/// Reads the configuration and serves until told to stop.
pub(crate) fn run(flags: &ArgMatches) -> Result<(), Failure> {
    if flags.get_flag("version") {
        return print(&version());
    }
    let settings = config::load(flags).map_err(Failure::Usage)?;
    let config = ServerConfig::new(&settings).map_err(Failure::Usage)?;
    logging::init(&config);
    for name in config::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        warn!(
            name,
            "a variable of the environment looks like an option, but is none"
        );
    }
    for (option, value, why) in config::without_effect(&settings) {
        warn!(option, value, why, "an option has no effect");
    }
    raise_file_limit();
    refuse_huge_pages();
    info!(version = crate::VERSION, data_dir = %config.data_dir.display(), "starting");

    let tokens = signed_tokens(&config.auth_token)?;

    // Before anything can take long: a signal that comes during the start is not lost, and not deadly.
    let signals = Signals::new()?;
    let listeners = bind(&config.listen_client, "--listen-client-urls")?;
    let keyspaces = config.keyspaces.iter();
    let keyspaces = keyspaces.map(|one| bind(&one.listen, "--keyspace"));
    let keyspaces = keyspaces.collect::<Result<Vec<_>, _>>()?;
    let pages = bind(&config.listen_metrics, "--listen-metrics-urls")?;
    let peer_listeners = bind(&config.listen_peer, "--listen-peer-urls")?;
    let metrics = Arc::new(Metrics::new());
    let (failed, mut failure) = mpsc::channel(4);
    let (links_failed, keyspaces_failed) = (failed.clone(), failed.clone());
    // Nobody is left to tell when the process ends anyway; the first failure is told.
    let on_failure = Box::new(move |error: &str| drop(failed.try_send(error.to_owned())));
    let (for_syncs, for_flushes) = (Arc::clone(&metrics), Arc::clone(&metrics));
    let observers = Observers {
        sync: Arc::new(move |took| for_syncs.observe_wal_fsync(took)),
        flush: Arc::new(move |took| for_flushes.observe_backend_commit(took)),
    };
    let unusable = |error: String| Failure::failed("setting up TLS", error);
    // Before the data directory is touched, as far as that goes.
    let peer_tls = config.tls.open_calls().map_err(unusable)?;
    let opened = Protected::open(&config.tls).map_err(unusable)?;
    let node_config = node_config(&config, peer_tls);
    let mut node = Node::start(&node_config, on_failure, observers).map_err(failure_of)?;
    let protected = opened.or_made(&config.tls, &config.data_dir);
    let protected = protected.map_err(unusable)?;
    let peer_listeners = listeners_of(peer_listeners, &config.listen_peer, &protected.peer);
    let listeners = listeners_of(listeners, &config.listen_client, &protected.client);
    let pages = protect(pages, &config.listen_metrics, &protected.client);
    for (address, listeners) in [("client", &listeners), ("peer", &peer_listeners)] {
        if let Some(tls) = listeners.iter().find_map(|listener| listener.tls.clone()) {
            metrics.show_certificate(address, tls);
        }
    }
    // Nobody is left to tell when the process ends anyway; the first failure is told.
    let on_failure = move |error: &str| drop(links_failed.try_send(error.to_owned()));
    let connected = node.connect(peer_listeners, on_failure).map_err(failure_of);
    let listeners = (listeners, pages);
    let started = connected.and_then(|()| start(&config, &mut node, listeners, metrics, tokens));
    let started = started.and_then(|(server, serving)| {
        let protected = &protected.client;
        let sockets = keyspaces.into_iter().zip(&config.keyspaces);
        let listeners = sockets
            .map(|(sockets, one)| listeners_of(sockets, &one.listen, protected))
            .collect();
        let on_failure =
            Box::new(move |error: &str| drop(keyspaces_failed.try_send(error.to_owned())));
        let serving = (server.doors(), serving);
        serve_keyspaces(&mut node, serving, listeners, on_failure)?;
        Ok(server)
    });
    let outcome = match started {
        Ok(server) => {
            let outcome = signals.wait(&mut failure);
            node.hand_over();
            // Watches end with a status of their own before connections are drained.
            node.close_watches();
            server.shutdown();
            outcome
        }
        Err(failure) => Err(failure),
    };
    let stopped = node.stop().map_err(failure_of);
    match (outcome, stopped) {
        // The end of the node often names the cause of what came before it.
        (Err(first), Err(next)) => return Err(first.then(&next)),
        (outcome, stopped) => outcome.and(stopped)?,
    }
    info!("stopped");
    Ok(())
}

/// What protects the two addresses, where something does.
struct Protected {
    client: Option<ServerTls>,
    peer: Option<ServerTls>,
}

impl Protected {
    /// With the certificates that there are.
    fn open(config: &TlsConfig) -> Result<Self, String> {
        Ok(Self {
            client: config.client.open()?,
            peer: config.peer.open()?,
        })
    }

    /// And those that the data directory keeps.
    fn or_made(self, config: &TlsConfig, data_dir: &Path) -> Result<Self, String> {
        let made = |opened: Option<ServerTls>, protection: &config::Protection| match opened {
            Some(opened) => Ok(Some(opened)),
            None => protection.open_in(data_dir),
        };
        Ok(Self {
            client: made(self.client, &config.client)?,
            peer: made(self.peer, &config.peer)?,
        })
    }
}

fn listeners_of(
    sockets: Vec<TcpListener>,
    addresses: &[ListenAddress],
    tls: &Option<ServerTls>,
) -> Vec<Listener> {
    if tls.is_some() && !addresses.iter().any(|address| address.is_https) {
        warn!(
            addresses = ?addresses.iter().map(|listen| listen.address).collect::<Vec<_>>(),
            "certificates are given, but no https URL to listen on: connections are not protected"
        );
    }
    protect(sockets, addresses, tls)
}

/// What protects the client or the peer address protects the https ones of these.
fn protect(
    sockets: Vec<TcpListener>,
    addresses: &[ListenAddress],
    tls: &Option<ServerTls>,
) -> Vec<Listener> {
    let protect = |(socket, address): (TcpListener, &ListenAddress)| Listener {
        socket,
        tls: tls.clone().filter(|_| address.is_https),
    };
    sockets.into_iter().zip(addresses).map(protect).collect()
}

/// Reads the keys of signed tokens; none for simple ones, which the node remembers.
fn signed_tokens(config: &AuthToken) -> Result<Option<Tokens>, Failure> {
    let AuthToken::Jwt {
        sign_method,
        public_key,
        private_key,
        ttl,
    } = config
    else {
        return Ok(None);
    };
    let read = |path: &Option<String>| {
        let content = path.as_ref().map(|path| {
            std::fs::read(path)
                .map_err(|error| Failure::Usage(format!("--auth-token: reading {path}: {error}")))
        });
        content.transpose()
    };
    let jwt = Jwt::new(&JwtOptions {
        sign_method: sign_method.clone(),
        public_key: read(public_key)?,
        private_key: read(private_key)?,
        ttl: *ttl,
    });
    let jwt = jwt.map_err(|error| Failure::Usage(format!("--auth-token: {error}")))?;
    Ok(Some(Tokens::Jwt(Arc::new(jwt))))
}

/// Listens on all addresses, or on none.
fn bind(addresses: &[ListenAddress], option: &str) -> Result<Vec<TcpListener>, Failure> {
    let bind = |ListenAddress { address, .. }: &ListenAddress| {
        TcpListener::bind(address).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AddrInUse => {
                    format!("; stop what listens there, or choose another with {option}")
                }
                _ => format!("; see {option}"),
            };
            Failure::Failed(format!("cannot listen on {address}: {error}{hint}"))
        })
    };
    addresses.iter().map(bind).collect()
}

fn node_config(config: &ServerConfig, peer_tls: Option<ClientTls>) -> NodeConfig {
    NodeConfig {
        data_dir: config.data_dir.clone(),
        name: config.name.clone(),
        initial: config.initial_cluster.clone(),
        initial_state: config.initial_state,
        initial_token: config.cluster_token.clone(),
        peer_urls: config.peer_urls.clone(),
        heartbeat_ms: config.heartbeat_ms,
        election_ms: config.election_ms,
        snapshot_entries: config.snapshot_entries,
        change_rules: ChangeRules {
            strict: config.strict_changes,
            learners_max: config.learners_max,
        },
        accept_suspect_tail: config.accept_suspect_tail,
        upkeep: UpkeepConfig {
            auto_compaction: config.auto_compaction,
            quota_bytes: config.quota_bytes,
            check_interval: config.check_interval,
        },
        peer_tls,
    }
}

/// Waits until the node has caught up with its log, then serves: calls and pages on the first listeners, pages on the others.
fn start(
    config: &ServerConfig,
    node: &mut Node,
    (listeners, pages): (Vec<Listener>, Vec<Listener>),
    metrics: Arc<Metrics>,
    tokens: Option<Tokens>,
) -> Result<(ServerHandle, Serving), Failure> {
    let has_leader = node.wait_until_serving().map_err(failure_of)?;
    if !has_leader {
        warn!("there is no leader yet; writes and linearizable reads will fail until there is one");
    }
    if has_leader && config.initial_check {
        node.check_initial_state().map_err(failure_of)?;
    }
    let addresses: Vec<SocketAddr> = listeners
        .iter()
        .map(|listener| listener.socket.local_addr())
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::failed("asking for the address of a socket", error))?;
    if let Some(watcher) = node.link_watcher() {
        metrics.show_links(watcher);
    }
    let published = node
        .publish(advertised(&config.advertise_client_urls, &addresses))
        .map_err(failure_of)?;
    if has_leader {
        // As etcd: who serves can be found. It goes on by itself when this takes too long.
        let _ = published.recv_timeout(PUBLISH_WAIT);
    }
    let queued = SCANS_QUEUED_MAX + config.keyspaces.len() * SCANS_OF_WATCHES_MAX;
    let scans = ScanPool::start(SCAN_THREADS, queued)
        .map_err(|error| Failure::failed("starting the threads that scan", error))?;
    let front = node.front();
    front.keyspace.tokens.keep_for(config.auth_token_ttl);
    let signed = tokens.clone();
    let tokens = tokens.unwrap_or_else(|| Tokens::Simple(Arc::clone(&front.keyspace.tokens)));
    let authenticator = Authenticator::start(tokens, config.bcrypt_cost)
        .map_err(|error| Failure::failed("starting the threads that hash passwords", error))?;
    let serving = Serving {
        config: config.clone(),
        scans: Arc::new(scans),
        authenticator: Arc::new(authenticator),
        signed,
    };
    let authenticator = Arc::clone(&serving.authenticator);
    let (cluster, member) = (front.cluster, front.member);
    let parts = serving.parts(front, Arc::clone(&metrics), authenticator);
    let api = Arc::clone(&parts.api);
    let unserved = |error| Failure::failed("starting the threads that serve", error);
    let server = serve(listeners, parts).map_err(unserved)?;
    let opened = server.doors().open_pages(pages, api, metrics);
    for address in opened.map_err(unserved)? {
        info!(%address, "serving health and metrics");
    }
    for address in server.local_addrs() {
        info!(
            %address,
            cluster_id = format!("{cluster:x}"),
            member_id = format!("{member:x}"),
            revision = node.keyspace.store.revision(),
            "ready to serve client requests"
        );
    }
    Ok((server, serving))
}

/// What all keyspaces are served with.
struct Serving {
    config: ServerConfig,
    scans: Arc<ScanPool>,
    authenticator: Arc<Authenticator>,
    /// Where tokens are not remembered.
    signed: Option<Tokens>,
}

impl Serving {
    /// The services of a keyspace.
    fn parts(
        &self,
        front: Front,
        metrics: Arc<Metrics>,
        authenticator: Arc<Authenticator>,
    ) -> ServerParts<EtcdApi<GroupReplica, NodeView>> {
        let Front {
            is_default,
            cluster,
            member,
            keyspace,
            replica,
            view,
        } = front;
        let config = &self.config;
        let options = ApiOptions {
            max_request_bytes: config.request_bytes_max,
            max_txn_ops: config.txn_ops_max,
            election_ms: config.election_ms,
            changes_members: is_default,
            ..ApiOptions::new(cluster, member)
        };
        let watches = WatchService::new(
            Arc::clone(&keyspace.hub),
            Arc::clone(&keyspace.store),
            Arc::new(replica.clone()),
            Arc::clone(&self.scans),
            &metrics,
            WatchOptions {
                election: Duration::from_millis(config.election_ms),
                progress_interval: config.progress_interval,
                ..WatchOptions::new(cluster, member)
            },
        );
        let watches = watches.with_authenticator(Arc::clone(&authenticator));
        let scans = Arc::clone(&self.scans);
        let api = EtcdApi::new(replica, Arc::new(view), scans, options);
        ServerParts {
            api: Arc::new(api.with_authenticator(authenticator)),
            hub: keyspace.hub,
            metrics,
            services: Routes::new(WatchServer::new(watches)),
            options: ServerOptions {
                max_request_bytes: config.request_bytes_max,
                client_cert_auth: config.client_cert_auth,
                json_gateway: config.json_gateway,
                ..ServerOptions::default()
            },
        }
    }

    /// The services of a keyspace beside the default one: its users are its own.
    fn parts_of(&self, name: &str, front: Front) -> ServerParts<EtcdApi<GroupReplica, NodeView>> {
        let remembered = &front.keyspace.tokens;
        remembered.keep_for(self.config.auth_token_ttl);
        let tokens = match &self.signed {
            Some(Tokens::Jwt(jwt)) => Tokens::Jwt(Arc::new(jwt.of_keyspace(name))),
            _ => Tokens::Simple(Arc::clone(remembered)),
        };
        let authenticator = Arc::new(self.authenticator.beside(tokens));
        self.parts(front, Arc::new(Metrics::new()), authenticator)
    }
}

/// Lets the node keep the keyspaces beside the default one, and serves those that were asked for once they are there.
fn serve_keyspaces(
    node: &mut Node,
    (doors, serving): (Doors, Serving),
    listeners: Vec<Vec<Listener>>,
    on_failure: Box<dyn FnOnce(&str) + Send>,
) -> Result<(), Failure> {
    let mut wanted = Vec::new();
    let mut waiting = BTreeMap::new();
    for (listeners, one) in listeners.into_iter().zip(&serving.config.keyspaces) {
        let addresses: Vec<SocketAddr> = listeners
            .iter()
            .map(|listener| listener.socket.local_addr())
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::failed("asking for the address of a socket", error))?;
        wanted.push(WantedKeyspace {
            name: one.name.clone(),
            client_urls: advertised(&one.urls, &addresses),
        });
        waiting.insert(one.name.clone(), listeners);
    }
    let serve: Serve = Box::new(move |name, front| {
        let listeners = waiting.remove(name).unwrap_or_default();
        let (cluster, revision) = (front.cluster, front.keyspace.store.revision());
        let parts = serving.parts_of(name, front);
        let addresses = doors
            .open(listeners, parts)
            .map_err(|error| error.to_string())?;
        for address in addresses {
            info!(
                %address,
                keyspace = name,
                cluster_id = format!("{cluster:x}"),
                revision,
                "ready to serve client requests"
            );
        }
        Ok(())
    });
    node.keep_keyspaces(wanted, serve, on_failure)
        .map_err(failure_of)
}

/// The URLs that clients are told, with the port that the system chose where none was given.
fn advertised(urls: &[String], addresses: &[SocketAddr]) -> Vec<String> {
    let with_port = |(at, url): (usize, &String)| match (url.strip_suffix(":0"), addresses.get(at))
    {
        (Some(host), Some(address)) => format!("{host}:{}", address.port()),
        _ => url.clone(),
    };
    urls.iter().enumerate().map(with_port).collect()
}

/// SIGTERM and SIGINT, caught from its creation on.
struct Signals {
    runtime: Runtime,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                Failure::failed("starting the runtime that waits for signals", error)
            })?;
        let catch = |kind| {
            let _inside = runtime.enter();
            signal(kind).map_err(|error| Failure::failed("installing a signal handler", error))
        };
        let (term, int) = (
            catch(SignalKind::terminate())?,
            catch(SignalKind::interrupt())?,
        );
        Ok(Self { runtime, term, int })
    }

    /// Blocks until a signal asks for a stop, or the node fails.
    fn wait(self, failure: &mut mpsc::Receiver<String>) -> Result<(), Failure> {
        let Self {
            runtime,
            mut term,
            mut int,
        } = self;
        let name = runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => Ok("SIGTERM"),
                _ = int.recv() => Ok("SIGINT"),
                Some(error) = failure.recv() => Err(Failure::failed("the server cannot go on", error)),
            }
        })?;
        info!(
            signal = name,
            "stopping: finishing what is under way, refusing what is new"
        );
        Ok(())
    }
}

/// Connections and watches each take a file descriptor; the soft limit is low for the sake of programs that use
/// `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none() || limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, limit = limit.current, "cannot raise the limit of open files");
    }
}

pub(crate) fn failure_of(error: NodeError) -> Failure {
    match error {
        NodeError::Config(_) | NodeError::Initial(_) => Failure::Usage(error.to_string()),
        _ if error.is_damage() => Failure::Damaged(error.to_string()),
        _ => Failure::Failed(error.to_string()),
    }
}
