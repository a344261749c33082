//! One HTTP/2 connection of a client, over the crate h2.
//!
//! Each stream is a call. Most calls are short ones of the KV service, whose request is there as a whole when the stream
//! begins: those have a way of their own ([`Unary`]), on which an answer is one allocation and no body, and the ones that need
//! not wait are answered where they are read, without a task. Everything else, and whatever is unusual about such
//! a call, goes through the services as [`Dispatch`] has them, with bodies that end as the streams do. Used by `threads`.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::body::Body;

use super::http::{Dispatch, finished};
use super::unary::{GRPC, Unary, framed, is_one_frame, success};
use crate::codec::HEAD_BYTES;

/// Streams of one connection at most. A client puts all its watches on one connection: a usual 200 would hang the next.
const STREAMS_MAX: u32 = 1_000_000;
/// Streams that a client may reset before we look at them; cancelled calls in bulk are normal.
const RESETS_MAX: usize = 10_000;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// What a stream buffers of an answer before it waits for its client.
const SEND_BUFFER_BYTES: usize = 400 << 10;
/// As etcd's server: a ping after two hours, twenty seconds to answer it.
const KEEPALIVE: Duration = Duration::from_secs(2 * 3_600);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls that are taken from a connection before they are begun, so that answers which are there at once go out together.
const CALLS_AT_ONCE: usize = 64;

/// What happens next on a connection.
enum Next {
    Calls,
    End(Result<(), h2::Error>),
    Stop,
    Silent,
}

/// Serves a connection whose client is about to send the preface, until it ends, or until the calls that are under way at a
/// stop are answered.
///
/// # Errors
/// What the client did wrong, or the socket.
pub(super) async fn serve<S>(
    socket: S,
    dispatch: Dispatch,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let dispatch = Arc::new(dispatch);
    let shaken = tokio::select! {
        shaken = builder().handshake(socket) => shaken,
        _ = stopped.changed() => return Ok(()),
    };
    let mut connection: Connection<S, Bytes> = shaken?;
    let ping_pong = connection
        .ping_pong()
        .expect("nobody else has asked for it");
    let mut silent = pin!(silence(ping_pong));
    let mut stop = pin!(stopped.changed());
    let (mut is_silent, mut stopping) = (false, false);
    let mut calls = Vec::new();
    loop {
        let next = poll_fn(|context| {
            while let Poll::Ready(accepted) = connection.poll_accept(context) {
                match accepted {
                    Some(Ok(call)) => calls.push(call),
                    Some(Err(error)) => return Poll::Ready(Next::End(Err(error))),
                    None => return Poll::Ready(Next::End(Ok(()))),
                }
                if calls.len() == CALLS_AT_ONCE {
                    break;
                }
            }
            if !calls.is_empty() {
                return Poll::Ready(Next::Calls);
            }
            if !stopping && stop.as_mut().poll(context).is_ready() {
                return Poll::Ready(Next::Stop);
            }
            if !is_silent && silent.as_mut().poll(context).is_ready() {
                return Poll::Ready(Next::Silent);
            }
            Poll::Pending
        });
        let next = next.await;
        for (request, respond) in calls.drain(..) {
            begin(&dispatch, request, respond);
        }
        match next {
            Next::Calls => {}
            Next::End(result) => return result,
            Next::Stop => {
                stopping = true;
                connection.graceful_shutdown();
            }
            Next::Silent => {
                is_silent = true;
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(Some(RESETS_MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    builder
}

/// Ends when the client answers no ping.
async fn silence(mut ping_pong: PingPong) {
    loop {
        sleep(KEEPALIVE).await;
        let answered = timeout(KEEPALIVE_TIMEOUT, ping_pong.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

/// Begins a call, and ends it too if it need not wait.
fn begin(dispatch: &Arc<Dispatch>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let mut call = Box::pin(answer(Arc::clone(dispatch), request, respond));
    // A task looks again at once, so that nothing is missed that comes in between.
    let mut context = Context::from_waker(Waker::noop());
    match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut context))) {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => drop(tokio::spawn(call)),
        // As in a task: it costs its own stream, which is reset.
        Err(_) => tracing::error!("a call panicked on an rpc thread"),
    }
}

async fn answer(
    dispatch: Arc<Dispatch>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, stream) = request.into_parts();
    let mut received = Received {
        first: None,
        stream,
    };
    let mut timed = dispatch.begin(head.uri.path());
    if let Some(unary) = Unary::of(&head)
        && let Some(message) = received.whole_message(dispatch.message_bytes_max()).await
    {
        let answer = dispatch.unary(unary, head, message);
        let Some(answer) = unless_reset(&mut respond, answer).await else {
            return;
        };
        if let Some(timed) = timed.take() {
            timed.end();
        }
        let sent = match answer {
            Ok(answer) if answer.extensions().is_empty() => send_short(respond, answer),
            Ok(answer) => return send(respond, finished(framed(answer))).await,
            Err(status) => {
                let head = status.into_http();
                respond.send_response(head, true).map(drop)
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
        }
        return;
    }
    let request = Request::from_parts(head, Body::new(received));
    // Boxed, so that short calls need not have room for it.
    Box::pin(async move {
        let answer = dispatch.serve(request, timed);
        if let Some(Ok(response)) = unless_reset(&mut respond, answer).await {
            send(respond, response).await;
        }
    })
    .await;
}

/// Sends an answer that is in one piece.
fn send_short(
    mut respond: SendResponse<Bytes>,
    answer: tonic::Response<Bytes>,
) -> Result<(), h2::Error> {
    let (metadata, message, _) = answer.into_parts();
    let mut head = Response::new(());
    *head.headers_mut() = metadata.into_headers();
    head.headers_mut().insert(CONTENT_TYPE, GRPC);
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(message, false)?;
    stream.send_trailers(success())
}

/// Sends any other answer, as its client makes room.
async fn send(mut respond: SendResponse<Bytes>, response: Response<Body>) {
    let (mut head, body) = response.into_parts();
    if let Some(bytes) = body.size_hint().exact() {
        head.headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| bytes.into());
    }
    let head = Response::from_parts(head, ());
    let ended = body.is_end_stream();
    let sent = match respond.send_response(head, ended) {
        Ok(stream) if !ended => send_body(stream, body).await,
        other => other.map(drop),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer was not sent");
    }
}

async fn send_body(mut stream: SendStream<Bytes>, mut body: Body) -> Result<(), h2::Error> {
    loop {
        let frame = poll_fn(|context| {
            if let Poll::Ready(reason) = stream.poll_reset(context)? {
                return Poll::Ready(Err(h2::Error::from(reason)));
            }
            Pin::new(&mut body).poll_frame(context).map(Ok)
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => {
                tracing::debug!(%status, "an answer was cut");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return stream.send_data(Bytes::new(), true),
        };
        match frame.into_data() {
            Ok(data) => {
                let ended = body.is_end_stream();
                if !data.is_empty() {
                    room(&mut stream).await?;
                }
                stream.send_data(data, ended)?;
                if ended {
                    return Ok(());
                }
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    continue;
                };
                stream.reserve_capacity(0);
                return stream.send_trailers(trailers);
            }
        }
    }
}

/// Waits until the client takes more of a stream. A byte of room is enough: h2 asks for as much as it has been given.
async fn room(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    stream.reserve_capacity(1);
    poll_fn(|context| {
        if let Poll::Ready(reason) = stream.poll_reset(context)? {
            return Poll::Ready(Err(h2::Error::from(reason)));
        }
        loop {
            if stream.capacity() > 0 {
                return Poll::Ready(Ok(()));
            }
            match ready!(stream.poll_capacity(context)) {
                Some(granted) => granted.map(drop)?,
                None => return Poll::Ready(Err(Reason::CANCEL.into())),
            }
        }
    })
    .await
}

/// What a call answers; none once its client has reset the stream.
async fn unless_reset<F: Future>(respond: &mut SendResponse<Bytes>, call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    poll_fn(|context| {
        if let Poll::Ready(answer) = call.as_mut().poll(context) {
            return Poll::Ready(Some(answer));
        }
        respond.poll_reset(context).map(|_| None)
    })
    .await
}

/// What comes on a stream, as the body of a request.
struct Received {
    /// A piece that was looked at before.
    first: Option<Bytes>,
    stream: RecvStream,
}

impl Received {
    /// The message, if the first piece is all of it and nothing else comes; else that piece is left to be read again.
    async fn whole_message(&mut self, bytes_max: usize) -> Option<Bytes> {
        let mut first = self.data().await?.ok()?;
        let is_whole = self.stream.is_end_stream() && is_one_frame(&first, bytes_max);
        if !is_whole {
            self.first = Some(first);
            return None;
        }
        first.advance(HEAD_BYTES);
        Some(first)
    }

    async fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// The client may send as much again.
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let data = ready!(self.stream.poll_data(context));
        if let Some(Ok(data)) = &data {
            // It fails for a stream that has ended, which needs no room.
            drop(self.stream.flow_control().release_capacity(data.len()));
        }
        Poll::Ready(data)
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match ready!(self.poll_data(context)) {
            Some(Ok(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            // A client that needs no answer any more has said all that it says.
            Some(Err(error))
                if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) =>
            {
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.stream.poll_trailers(context));
                Poll::Ready(
                    trailers
                        .transpose()
                        .map(|trailers| trailers.map(Frame::trailers)),
                )
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }
}
