//! What is under TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::plane::buffer::{Buffer, Want};

/// A socket, and what was read from it and is not yet decrypted. TLS reads 4 KiB at a time; the socket is
/// read in large pieces, into memory that is only held while there is something in it.
pub struct Wire<T> {
    /// The socket.
    pub io: T,
    /// What was read from it.
    pub ahead: Buffer,
}

impl<T> Wire<T> {
    /// A socket of which nothing was read.
    pub fn new(io: T) -> Self {
        Self { io, ahead: Buffer::default() }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Wire<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("io", &self.io).field("ahead", &self.ahead.len()).finish()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, ahead } = &mut *self;
        if ahead.is_empty() {
            ready!(ahead.poll_fill(io, cx, Want::Body))?;
        }
        let count = ahead.len().min(out.remaining());
        out.put_slice(&ahead.filled()[..count]);
        ahead.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
