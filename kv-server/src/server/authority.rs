//! A client's socket, with the `:authority` of its first request made acceptable to h2.
//!
//! etcdctl 3.4 `endpoint status`, and clientv3 3.5.0 (etcd issue 13192), send an `:authority` that is no authority:
//! `http://127.0.0.1:2379` or `#initially=[...]`. etcd does not look at it. h2 resets such a stream, and no option of it
//! says otherwise. So what a connection reads passes through here, until the first header block is complete; if the
//! authority in it is one that h2 refuses, the value is replaced by one of the same length. After that, and for anything
//! that is not HTTP/2, reads and writes go straight to the socket.
//!
//! The first block is enough: a client's authority belongs to its connection, so that its later requests name the entry
//! of the dynamic table that the first one made, and the replacement is in ours. What stays refused: an authority that
//! turns bad in a later request, one that is written out again in each because the client does not index it, and an
//! empty one. Used by `threads`. Whatever it does not understand it forwards unchanged: h2 is the judge.

mod block;
mod huffman;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::take;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What each HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
/// The longest payload of a frame that h2 takes with the settings that we announce.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// The frames of a header block that are held back until it is complete, at most.
const HELD_BYTES_MAX: usize = 32 << 10;
/// What is read at once while the first header block is still to come.
const READ_BYTES: usize = 4 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// A socket; see the module.
pub(super) struct AuthorityFilter<S> {
    socket: S,
    /// `None` once it has nothing more to do.
    scan: Option<Scan>,
}

impl<S> AuthorityFilter<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            scan: Some(Scan::default()),
        }
    }
}

impl<S: AsyncRead + Unpin> AuthorityFilter<S> {
    /// Whether the client begins with the preface of HTTP/2; waits until that can be told. Nothing is lost for who reads then.
    pub(super) async fn begins_http2(&mut self) -> io::Result<bool> {
        poll_fn(|context| {
            while let Some(scan) = &mut self.scan {
                let is_complete = scan.preface == PREFACE.len();
                if is_complete || scan.done {
                    return Poll::Ready(Ok(is_complete));
                }
                ready!(read(&mut self.socket, scan, context))?;
            }
            Poll::Ready(Ok(false))
        })
        .await
    }
}

/// Lets the scan see what the client sends next.
fn read<S: AsyncRead + Unpin>(
    socket: &mut S,
    scan: &mut Scan,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut bytes = [0; READ_BYTES];
    let mut read = ReadBuf::new(&mut bytes);
    ready!(Pin::new(socket).poll_read(context, &mut read))?;
    if read.filled().is_empty() {
        scan.release(); // the client has ended; after the held bytes the socket says so again
    } else {
        scan.feed(read.filled());
    }
    Poll::Ready(Ok(()))
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, scan: slot } = self.get_mut();
        while let Some(scan) = slot {
            if out.remaining() == 0 || scan.give(out) {
                return Poll::Ready(Ok(()));
            }
            if scan.done {
                *slot = None;
                break;
            }
            ready!(read(socket, scan, context))?;
        }
        Pin::new(socket).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// Takes what a client sends, in pieces of any size, and gives it on: at once, but for frames that are not complete.
///
/// Invariant: `frame` is at most the length of `held`, and 0 outside a block.
#[derive(Default)]
struct Scan {
    /// How much of the preface has come; what comes before all of it has is given on at once.
    preface: usize,
    /// What has come and is not decided: the frames of a header block, or less than one frame.
    held: Vec<u8>,
    /// Where in `held` the frame begins that is not complete yet.
    frame: usize,
    /// What can be given on, from `given`.
    ready: Vec<u8>,
    given: usize,
    /// All that follows is given on as it comes.
    done: bool,
}

impl Scan {
    /// Moves what is ready, as far as there is room; says if anything was moved.
    fn give(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let ready = &self.ready[self.given..];
        let bytes = ready.len().min(out.remaining());
        out.put_slice(&ready[..bytes]);
        self.given += bytes;
        if self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
        }
        bytes > 0
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        if !self.done && self.preface < PREFACE.len() {
            let expected = &PREFACE[self.preface..];
            let (head, rest) = bytes.split_at(bytes.len().min(expected.len()));
            self.ready.extend_from_slice(head);
            self.done = !expected.starts_with(head);
            if !self.done {
                self.preface += head.len();
            }
            bytes = rest;
        }
        if self.done {
            self.ready.extend_from_slice(bytes);
        } else {
            self.held.extend_from_slice(bytes);
            self.scan_frames();
        }
    }

    /// Ends the scan: what is held goes on as it is, and so does all that follows.
    fn release(&mut self) {
        self.ready.append(&mut take(&mut self.held));
        self.frame = 0;
        self.done = true;
    }

    fn scan_frames(&mut self) {
        while let Some(head) = FrameHead::of(&self.held[self.frame..]) {
            let in_block = self.frame > 0;
            let expected =
                !in_block || head.kind == CONTINUATION && Some(head.stream) == self.stream();
            let end = self.frame + FRAME_HEAD_BYTES + head.length;
            if head.length > FRAME_BYTES_MAX || end > HELD_BYTES_MAX || !expected {
                return self.release();
            }
            if self.held.len() < end {
                break;
            }
            if !in_block && head.kind != HEADERS {
                self.ready.extend(self.held.drain(..end));
            } else if head.flags & END_HEADERS == 0 {
                self.frame = end;
            } else {
                if let Some(repaired) = repair_frames(&self.held[..end]) {
                    tracing::debug!("replaced an authority that is none");
                    self.held.splice(..end, repaired);
                }
                return self.release();
            }
        }
    }

    /// The stream of the block that is held.
    fn stream(&self) -> Option<u32> {
        Some(FrameHead::of(&self.held)?.stream)
    }
}

/// The head of a frame (RFC 9113, section 4.1).
struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
    /// With the reserved bit, as it came.
    stream: u32,
}

impl FrameHead {
    /// `None` if there are fewer bytes than a head has.
    fn of(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, s, t, u, v] = bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s, t, u, v]),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.length).expect("a frame is cut to its longest length");
        out.extend_from_slice(&length.to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }
}

/// The frames of one header block with its authority repaired, without padding; `None` if there is nothing to repair,
/// or they are malformed. They must be complete: a HEADERS frame, and CONTINUATION frames up to the end of the block.
fn repair_frames(mut frames: &[u8]) -> Option<Vec<u8>> {
    let first = FrameHead::of(frames)?;
    let (mut priority, mut fields): (&[u8], Vec<u8>) = (&[], Vec::new());
    while let Some(head) = FrameHead::of(frames) {
        let end = FRAME_HEAD_BYTES + head.length;
        let mut payload = frames.get(FRAME_HEAD_BYTES..end)?;
        frames = frames.get(end..)?;
        if head.kind == HEADERS {
            if head.flags & PADDED != 0 {
                let (&padding, rest) = payload.split_first()?;
                payload = rest.get(..rest.len().checked_sub(usize::from(padding))?)?;
            }
            if head.flags & PRIORITY != 0 {
                (priority, payload) = payload.split_at_checked(PRIORITY_BYTES)?;
            }
        }
        fields.extend_from_slice(payload);
    }
    Some(write_frames(&first, priority, &block::repair(&fields)?))
}

fn write_frames(first: &FrameHead, priority: &[u8], mut fields: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(fields.len() + 64);
    let mut kind = HEADERS;
    let mut flags = first.flags & !(PADDED | END_HEADERS);
    let mut extra = priority;
    loop {
        let part = fields.len().min(FRAME_BYTES_MAX - extra.len());
        if part == fields.len() {
            flags |= END_HEADERS;
        }
        let head = FrameHead {
            length: extra.len() + part,
            kind,
            flags,
            stream: first.stream,
        };
        head.write(&mut out);
        out.extend_from_slice(extra);
        out.extend_from_slice(&fields[..part]);
        if flags & END_HEADERS != 0 {
            return out;
        }
        fields = &fields[part..];
        (kind, flags, extra) = (CONTINUATION, 0, &[]);
    }
}
