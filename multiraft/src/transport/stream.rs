//! Connections that members open, until they can be served: accepted, and protected where the listener says so.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::server::Connected;

use crate::tls::{Connection, Refusals, ServerTls};

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Handshakes of TLS at a time; who else calls waits.
const HANDSHAKES_MAX: usize = 64;

/// A connection of a member.
pub(super) struct Stream(Box<dyn Connection>);

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Accepts for as long as somebody serves. A failed accept is no reason to stop: most often no descriptor is left.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<ServerTls>,
    streams: mpsc::Sender<io::Result<Stream>>,
) {
    let mut handshakes = JoinSet::new();
    let refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES_MAX => accepted,
            Some(shaken) = handshakes.join_next(), if !handshakes.is_empty() => {
                let refused = shaken.unwrap_or_else(|error| Some(error.to_string()));
                if let Some(reason) = refused.filter(|reason| refusals.is_news(reason, Instant::now())) {
                    tracing::warn!(reason, "refused a connection to the peer address");
                }
                continue;
            }
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a member's connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Only slower without it.
        let _ = socket.set_nodelay(true);
        match &tls {
            None => {
                if streams.send(Ok(Stream(Box::new(socket)))).await.is_err() {
                    return;
                }
            }
            Some(tls) => {
                handshakes.spawn(protect(tls.clone(), socket, from, streams.clone()));
            }
        }
    }
}

/// Shakes hands; says why the connection is refused.
async fn protect(
    tls: ServerTls,
    socket: TcpStream,
    from: SocketAddr,
    streams: mpsc::Sender<io::Result<Stream>>,
) -> Option<String> {
    match tls.accept(socket, from).await {
        Ok((stream, _)) => {
            // It fails when nobody serves any more.
            let _ = streams.send(Ok(Stream(Box::new(stream)))).await;
            None
        }
        Err(reason) => Some(format!("{}: {reason}", from.ip())),
    }
}
