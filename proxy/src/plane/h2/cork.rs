//! A transport that holds what is written until nothing more comes.
//!
//! `h2` flushes after each frame of data, which is a system call for each. Here the first flush after a write
//! is put off until the connection's task has its next turn: streams that are ready have theirs before, and
//! the frames of all of them leave together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::plane::conn::poll_gathered;

/// The most that is held; more leaves at once.
const HELD: usize = 32 * 1024;

/// A transport, and what is to be written to it.
pub(super) struct Cork<S> {
    io: S,
    /// Empty, and without memory, while there is nothing to hold.
    held: Vec<u8>,
    /// How much of it was written.
    sent: usize,
    /// Whether something was written since somebody asked for a flush.
    fresh: bool,
}

impl<S> Cork<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, held: Vec::new(), sent: 0, fresh: false }
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    fn hold(&mut self, bytes: &[u8]) {
        if self.held.capacity() == 0 {
            self.held.reserve_exact(HELD);
        }
        self.held.extend_from_slice(bytes);
    }

    fn has_room(&self, count: usize) -> bool {
        self.held.len() + count <= HELD
    }

    /// Writes what is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            self.sent += ready!(poll_gathered(&mut self.io, cx, [&self.held[self.sent..], &[]]))?;
        }
        (self.held, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let count = parts.iter().map(|part| part.len()).sum();
        this.fresh = true;
        if !this.has_room(count) {
            ready!(this.poll_drain(cx))?;
        }
        if this.has_room(count) {
            parts.iter().for_each(|part| this.hold(part));
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut this.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.fresh && !this.held.is_empty() {
            this.fresh = false;
            // Whoever owns this flushes in each of its turns.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_written_leaves_when_nothing_more_comes_or_there_is_too_much() {
        let (near, mut far) = duplex(1 << 20);
        let mut cork = Cork::new(near);
        let mut read = vec![0; 1 << 20];
        cork.write_all(b"a").await.expect("held");
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("put off");
        cork.write_all(b"b").await.expect("held");
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("put off again");
        assert_eq!((&*cork.held, cork.sent), (&b"ab"[..], 0));
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("written");
        assert_eq!((far.read(&mut read).await.expect("read"), &read[..2]), (2, &b"ab"[..]));
        assert_eq!(cork.held.capacity(), 0, "nothing is held");
        let large = vec![b'x'; HELD];
        for part in [&b"small"[..], &large, b"last"] {
            cork.write_all(part).await.expect("written");
        }
        cork.shutdown().await.expect("written");
        drop(cork);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, [&b"small"[..], &large, b"last"].concat());
    }
}
