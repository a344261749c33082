//! One thread that accepts, and RPC threads with a current-thread runtime each, connections dealt round robin.
//!
//! Measured on two cores: an empty call costs a third less CPU this way than on a work-stealing runtime.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::pin;
use std::sync::Arc;
use std::thread::{Builder as ThreadBuilder, JoinHandle};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use multiraft::tls::{Connection, Listener, Refusals, ServerTls, ShownCertificate};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use super::authority::AuthorityFilter;
use super::corked::Corked;
use super::grpc::ConnectionInfo;
use super::http::Dispatch;
use super::http2;
use super::traffic::{Counted, Traffic};
use super::{Metrics, ServerOptions, ServerParts};
use crate::api::Api;
use crate::reply::Lane;

/// Sockets that wait for one RPC thread at most; past it the backlog of the listener holds them.
const LANE_SOCKETS_MAX: usize = 128;
/// The pause after a failed accept: most often no file descriptor is left, and closing connections frees some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Each call has a deadline. A timer that ends before all others interrupts the thread's wait for IO, at the price of two
/// system calls; one that always ends sooner spares every call that price.
const TIMER_STEP: Duration = Duration::from_secs(1);
/// Long answers that are translated to JSON at a time, for each RPC thread; more wait.
const BESIDE_MAX: usize = 1;

/// A server that runs.
pub struct ServerHandle {
    local_addrs: Vec<SocketAddr>,
    doors: Doors,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// Lets more be served by the threads of a server that runs. Cheap to clone.
#[derive(Clone)]
pub struct Doors(mpsc::UnboundedSender<(Listener, Behind)>);

/// What is behind a listener.
#[derive(Clone)]
struct Behind {
    dispatch: Dispatch,
    traffic: Traffic,
    client_cert_auth: bool,
    refusals: Arc<Refusals>,
}

impl Doors {
    /// Serves further listeners on the same threads, whose number and drain time stay. Says where they listen.
    ///
    /// # Errors
    /// Of the sockets; the server has stopped.
    pub fn open<A: Api>(
        &self,
        listeners: Vec<Listener>,
        parts: ServerParts<A>,
    ) -> io::Result<Vec<SocketAddr>> {
        let behind = Behind {
            traffic: parts.metrics.traffic.clone(),
            client_cert_auth: parts.options.client_cert_auth,
            dispatch: Dispatch::new(parts),
            refusals: Arc::default(),
        };
        self.serve(listeners, behind)
    }

    /// Serves the pages of health and metrics on further listeners, and no call. Says where they listen.
    ///
    /// # Errors
    /// Of the sockets; the server has stopped.
    pub fn open_pages<A: Api>(
        &self,
        listeners: Vec<Listener>,
        api: Arc<A>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Vec<SocketAddr>> {
        let behind = Behind {
            traffic: metrics.traffic.clone(),
            client_cert_auth: false,
            dispatch: Dispatch::pages(api, metrics),
            refusals: Arc::default(),
        };
        self.serve(listeners, behind)
    }

    fn serve(&self, listeners: Vec<Listener>, behind: Behind) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        for listener in &listeners {
            listener.socket.set_nonblocking(true)?;
            addresses.push(listener.socket.local_addr()?);
        }
        for listener in listeners {
            let sent = self.0.send((listener, behind.clone()));
            sent.map_err(|_| io::Error::other("the server has stopped"))?;
        }
        Ok(addresses)
    }
}

impl ServerHandle {
    /// The addresses that it listens on, in the order of the listeners.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// The way to serve more on its threads.
    #[must_use]
    pub fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Stops accepting, lets calls under way finish within the bound, and waits for the threads.
    pub fn shutdown(mut self) {
        self.stop_threads();
    }

    fn stop_threads(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

pub(super) fn start<A: Api>(
    listeners: Vec<Listener>,
    parts: ServerParts<A>,
) -> io::Result<ServerHandle> {
    let options = parts.options;
    assert!(
        options.rpc_threads > 0,
        "a server without RPC threads serves nobody"
    );
    let (stop, stopped) = watch::channel(false);
    // Few: whoever starts the server opens them.
    let (doors, opened) = mpsc::unbounded_channel();
    let doors = Doors(doors);
    // From here on a failure drops the handle, which stops the threads that run already.
    let mut handle = ServerHandle {
        local_addrs: doors.open(listeners, parts)?,
        doors,
        stop,
        threads: Vec::new(),
    };
    let mut lanes = Vec::new();
    for n in 0..options.rpc_threads {
        let (lane, sockets) = mpsc::channel(LANE_SOCKETS_MAX);
        let work = lane_loop(sockets, stopped.clone(), options);
        handle
            .threads
            .push(spawn(format!("flotilla-rpc-{n}"), work)?);
        lanes.push(lane);
    }
    let work = accept_all(opened, lanes, stopped);
    handle
        .threads
        .push(spawn("flotilla-accept".to_owned(), work)?);
    Ok(handle)
}

fn spawn(
    name: String,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime: Runtime = RuntimeBuilder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BESIDE_MAX)
        .thread_name("flotilla-json")
        .build()?;
    ThreadBuilder::new()
        .name(name)
        .spawn(move || runtime.block_on(work))
}

/// A connection that was accepted, and what is to protect it.
struct Accepted {
    socket: StdStream,
    from: SocketAddr,
    tls: Option<ServerTls>,
    behind: Behind,
}

async fn accept_all(
    mut opened: mpsc::UnboundedReceiver<(Listener, Behind)>,
    lanes: Vec<mpsc::Sender<Accepted>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut loops = JoinSet::new();
    loop {
        tokio::select! {
            door = opened.recv() => {
                let Some(door) = door else { break };
                loops.spawn(accept_loop(door, lanes.clone(), stopped.clone()));
            }
            _ = stopped.changed() => break,
        }
    }
    loops.join_all().await;
}

async fn accept_loop(
    (Listener { socket, tls }, behind): (Listener, Behind),
    lanes: Vec<mpsc::Sender<Accepted>>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot watch the client listener"),
    };
    for lane in lanes.iter().cycle() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let accepted = accepted.and_then(|(socket, from)| {
            Ok(Accepted {
                socket: socket.into_std()?,
                from,
                tls: tls.clone(),
                behind: behind.clone(),
            })
        });
        match accepted {
            Ok(accepted) => {
                let handed_over = tokio::select! {
                    sent = lane.send(accepted) => sent.is_ok(),
                    _ = stopped.changed() => return,
                };
                if !handed_over {
                    tracing::error!("an rpc thread is gone; its share of connections is dropped");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn lane_loop(
    mut sockets: mpsc::Receiver<Accepted>,
    mut stopped: watch::Receiver<bool>,
    options: ServerOptions,
) {
    tokio::spawn(Lane::begin().wake_gathered());
    let mut connections = JoinSet::new();
    let mut ticker = interval(TIMER_STEP);
    loop {
        tokio::select! {
            _ = ticker.tick() => {}
            socket = sockets.recv() => {
                let Some(socket) = socket else { break };
                connections.spawn(connection(socket, stopped.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = stopped.changed() => break,
        }
    }
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(options.drain, finish).await.is_err() {
        tracing::info!("calls that were still open after the drain time are cut");
    }
}

async fn connection(
    Accepted {
        socket,
        from,
        tls,
        behind,
    }: Accepted,
    mut stopped: watch::Receiver<bool>,
) {
    let Behind {
        dispatch,
        traffic,
        client_cert_auth,
        refusals,
    } = behind;
    let socket = socket
        .set_nodelay(true)
        .and_then(|()| TcpStream::from_std(socket));
    let socket = match socket {
        Ok(socket) => Counted::new(socket, traffic),
        Err(error) => return tracing::warn!(%error, "cannot set up a connection"),
    };
    let Some(tls) = tls else {
        // A connection in plain text says nothing of who is at its other end.
        let dispatch = dispatch.on(ConnectionInfo::default());
        return serve(socket, dispatch, stopped).await;
    };
    let shaken = tokio::select! {
        shaken = tls.accept(socket, from) => shaken,
        _ = stopped.changed() => return,
    };
    match shaken {
        Ok((stream, shown)) => {
            let dispatch = dispatch.on(ConnectionInfo {
                common_name: shown.and_then(|shown| user_of(shown, client_cert_auth)),
            });
            serve(stream, dispatch, stopped).await;
        }
        Err(reason) => {
            // The port is another one each time.
            let reason = format!("{}: {reason}", from.ip());
            if refusals.is_news(&reason, Instant::now()) {
                tracing::warn!(reason, "refused a connection");
            } else {
                tracing::debug!(reason, "refused a connection");
            }
        }
    }
}

/// Whom a certificate names: as in etcd, where certificates were asked for by that flag, not by an authority alone.
fn user_of(shown: ShownCertificate, client_cert_auth: bool) -> Option<Arc<str>> {
    let name = shown.common_name;
    (client_cert_auth && !name.is_empty()).then(|| name.into())
}

async fn serve(
    socket: impl Connection + 'static,
    dispatch: Dispatch,
    mut stopped: watch::Receiver<bool>,
) {
    let mut socket = AuthorityFilter::new(Corked::new(socket));
    let begins_http2 = tokio::select! {
        begins = socket.begins_http2() => begins,
        _ = stopped.changed() => return,
    };
    let ended = match begins_http2 {
        Ok(true) => {
            let served = http2::serve(socket, dispatch, stopped).await;
            served.map_err(|error| error.to_string())
        }
        Ok(false) => serve_http1(socket, dispatch, stopped).await,
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}

async fn serve_http1(
    socket: impl Connection + 'static,
    dispatch: Dispatch,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    let mut serving = pin!(builder.serve_connection(TokioIo::new(socket), dispatch));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    served.map_err(|error| error.to_string())
}
