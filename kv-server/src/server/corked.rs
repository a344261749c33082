//! A client's socket to which short writes go together.
//!
//! h2 writes a piece of data that is 256 bytes or longer by itself, with what is before it, so that answers which are ready at the
//! same time would each cost a system call. For a socket that takes one slice at a time it copies those of up to 1 KiB into
//! its buffer, behind all that is there; so this one says that it does. A longer piece comes in two writes then: the
//! first is held here, and goes out with the second. Used by `threads`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held until more come, or a flush; more than h2 puts in front of a long piece.
const HELD_BYTES_MAX: usize = 2 << 10;

/// A socket; see the module.
pub(super) struct Corked<S> {
    socket: S,
    held: Vec<u8>,
    /// How much of that has been written.
    written: usize,
}

impl<S> Corked<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            held: Vec::new(),
            written: 0,
        }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes what is held, and as much of `bytes` as goes with it; says how much of `bytes`.
    fn write_held(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while self.written < self.held.len() {
            let held = &self.held[self.written..];
            let slices = [IoSlice::new(held), IoSlice::new(bytes)];
            let n = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, &slices))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Some(more) = n.checked_sub(held.len()) {
                self.held.clear();
                self.written = 0;
                return Poll::Ready(Ok(more));
            }
            self.written += n;
        }
        Poll::Ready(Ok(0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let corked = self.get_mut();
        if corked.held.len() + bytes.len() <= HELD_BYTES_MAX {
            corked.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        match ready!(corked.write_held(context, bytes))? {
            0 => Pin::new(&mut corked.socket).poll_write(context, bytes),
            n => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let corked = self.get_mut();
        ready!(corked.write_held(context, &[]))?;
        Pin::new(&mut corked.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let corked = self.get_mut();
        ready!(corked.write_held(context, &[]))?;
        Pin::new(&mut corked.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Takes a few bytes of each write, and notes how many slices and bytes it was given.
    struct Slow {
        taken: Vec<u8>,
        given: Vec<(usize, usize)>,
        at_once: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let slow = self.get_mut();
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let n = all.len().min(slow.at_once);
            slow.taken.extend_from_slice(&all[..n]);
            slow.given.push((slices.len(), all.len()));
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn slow(at_once: usize) -> Corked<Slow> {
        Corked::new(Slow {
            taken: Vec::new(),
            given: Vec::new(),
            at_once,
        })
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn short_writes_go_together_at_the_flush_or_with_a_long_one() {
        let mut corked = slow(usize::MAX);
        corked.write_all(&bytes(10)).await.unwrap();
        corked.write_all(&bytes(20)).await.unwrap();
        assert!(corked.socket.given.is_empty());
        corked.flush().await.unwrap();
        corked.write_all(&bytes(1_033)).await.unwrap();
        corked.write_all(&bytes(15_000)).await.unwrap();
        corked.write_all(&bytes(16_000)).await.unwrap();
        let given = [(2, 30), (2, 16_033), (1, 16_000)];
        assert_eq!(corked.socket.given, given);
    }

    #[tokio::test]
    async fn socket_that_takes_a_few_bytes_at_a_time_gets_all_in_order() {
        let mut corked = slow(7);
        let mut expected = Vec::new();
        for n in [5, 1_100, 1_500, 9, 4_000, 3] {
            corked.write_all(&bytes(n)).await.unwrap();
            expected.extend(bytes(n));
        }
        corked.shutdown().await.unwrap();
        assert!(corked.socket.taken == expected);
    }

    #[tokio::test]
    async fn socket_that_takes_nothing_is_an_error() {
        let mut corked = slow(0);
        corked.write_all(&bytes(5)).await.unwrap();
        let error = corked.flush().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[tokio::test]
    async fn reads_come_as_they_are() {
        let (near, mut far) = duplex(64);
        let mut corked = Corked::new(near);
        far.write_all(b"abc").await.unwrap();
        let mut read = [0; 3];
        corked.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abc");
    }
}
