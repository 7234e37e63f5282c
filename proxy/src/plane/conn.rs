//! A client connection that is ours: what was read ahead, what may be read, when writing is over.
//!
//! Pingora is lent the connection for one request at a time and gives it back. Meanwhile it sees
//! only that request: `Conn::grant` bounds what it can read, so that a pipelined next request
//! stays here, and a body that readers could frame differently is refused here as well.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep_until};

use super::Limits;
use super::buffer::{Buffer, Want};
use super::deadline::{Deadline, Pace, Patience};
use super::tunnel::Side;
use crate::h1::Malformed;
use crate::h1::body::{Body, Progress};

/// How much of a pipelined next request is read while the current one is running.
pub const READ_AHEAD: usize = 16 * 1024;

/// A client's transport: one that Pingora could carry.
pub trait Client: IO + 'static {
    /// Ready where it takes something: who cannot take anything is read nothing for, and so holds no
    /// memory. A socket only tells when it is written to.
    fn poll_room(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// A connection over any transport that Pingora could carry.
pub struct Conn<S> {
    io: S,
    /// Read from the transport, not yet consumed.
    ahead: Buffer,
    /// Whether the client has closed its sending side.
    ended: bool,
    /// Passes when the client was silent for too long; armed by whoever waits for it.
    deadline: Deadline,
    /// The same for what is to be sent to it.
    response_deadline: Deadline,
    /// A head that a borrower reads before anything else.
    lent: Bytes,
    /// The body that the borrower may still read; after it, it sees only the end of the stream. Without one
    /// it may read everything.
    grant: Option<Progress>,
    /// A head that waits for the first bytes of its body, so that both leave in one write.
    unsent: BytesMut,
    /// How fast the client takes what a borrower writes, and sends a body that a borrower reads.
    write_pace: Pace,
    body_pace: Pace,
    writing: Waiting,
    reading: Waiting,
}

/// A borrower's waiting for the client.
#[derive(Default)]
struct Waiting {
    patience: Patience,
    /// How many bytes the client has moved.
    moved: u64,
    /// While the client is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Waiting {
    /// What an attempt to move bytes came to; an error where the client is too slow.
    fn attempted(
        &mut self,
        cx: &mut Context<'_>,
        pace: Pace,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(came) = &polled {
            self.moved += came.as_ref().map_or(0, |moved| *moved as u64);
            if self.timer.take().is_some() {
                self.patience.end(Instant::now());
            }
            return polled;
        }
        let Self { patience, moved, timer } = self;
        let timer = timer.get_or_insert_with(|| {
            Box::pin(sleep_until(patience.begin(Instant::now(), *moved, pace).into()))
        });
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S> std::fmt::Debug for Conn<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("ahead", &self.ahead.len())
            .field("lent", &self.grant.is_some())
            .finish_non_exhaustive()
    }
}

impl<S: Client> Conn<S> {
    /// A connection on which a borrower's write fails where the client does not keep `write_pace`.
    pub fn new(io: S, write_pace: Pace) -> Self {
        Self {
            io,
            ahead: Buffer::default(),
            ended: false,
            deadline: Deadline::default(),
            response_deadline: Deadline::default(),
            lent: Bytes::new(),
            grant: None,
            unsent: BytesMut::new(),
            write_pace,
            body_pace: write_pace,
            writing: Waiting::default(),
            reading: Waiting::default(),
        }
    }

    /// The transport, and what was read from it and is not yet consumed.
    pub fn into_parts(self) -> (S, Buffer) {
        (self.io, self.ahead)
    }

    /// It, as one side of a tunnel.
    pub fn side(&mut self) -> Side<'_, S> {
        Side { io: &mut self.io, ahead: &mut self.ahead }
    }

    /// What was read and is not yet consumed.
    pub fn ahead(&mut self) -> &mut Buffer {
        &mut self.ahead
    }

    /// Whether the client has closed its sending side.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The deadline of what the client owes us.
    #[must_use]
    pub fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// The deadline of what is to be sent to the client.
    #[must_use]
    pub fn response_deadline(&self) -> &Deadline {
        &self.response_deadline
    }

    /// Prepares for a borrower: it reads `head` first, and then `body`, as long as that comes and is as `limits`
    /// have it, or everything.
    pub fn lend(&mut self, head: Vec<u8>, body: Option<Body>, limits: &Limits) {
        (self.body_pace, self.reading) = (limits.body_pace(), Waiting::default());
        self.grant = body.map(|body| Progress::within(body, limits.most_of_a_body()));
        self.lent = head.into();
    }

    /// Takes the connection back from a borrower; says whether all of the request was read.
    pub fn take_back(&mut self) -> bool {
        let whole = self.lent.is_empty() && self.grant.take().is_none_or(|body| body.is_done());
        self.lent = Bytes::new();
        whole
    }

    /// The protocol that TLS agreed on with the client.
    #[must_use]
    pub fn agreed(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }

    /// Reads more into [`Conn::ahead`]; ready with how much, 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, want: Want) -> Poll<io::Result<usize>> {
        let read = ready!(self.ahead.poll_fill(&mut self.io, cx, want))?;
        self.ended |= read == 0;
        Poll::Ready(Ok(read))
    }

    /// Writes the parts in one go; ready with how many bytes were taken, never 0.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        poll_gathered(&mut self.io, cx, parts)
    }

    /// Ready where the client takes something ([`Client::poll_room`]).
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.poll_room(cx)
    }

    /// Hands on what was sent, where the transport holds it back (TLS).
    ///
    /// # Errors
    /// What the transport says.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let polled = Pin::new(&mut self.io).poll_write(cx, &self.unsent);
            let sent = ready!(self.poll_sent(cx, polled.map(not_zero)))?;
            self.unsent.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// What sending came to; an error where the client is too slow.
    fn poll_sent(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.writing.attempted(cx, self.write_pace, polled)
    }

    /// The request is read whole: only the end of the stream is shown. What else arrives is the
    /// next request's and waits, up to a bound.
    fn poll_for_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ended && self.ahead.len() < READ_AHEAD {
            ready!(self.poll_fill(cx, Want::Head))?;
        }
        if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// What reading a borrower's body came to; an error where the client is too slow. Without a bound nobody
    /// knows whether something has to come.
    fn poll_brought(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.grant {
            Some(_) => self.reading.attempted(cx, self.body_pace, polled),
            None => polled,
        }
    }

    /// Reads what the borrower may read, without a detour where the transport's next bytes are its own.
    fn poll_read_granted(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let next = self.grant.as_ref().map_or(u64::MAX, Progress::payload);
        let limit = usize::try_from(next).unwrap_or(usize::MAX).min(out.remaining());
        if self.ahead.is_empty() && limit > 0 {
            let before = out.filled().len();
            let polled = if limit == out.remaining() {
                Pin::new(&mut self.io).poll_read(cx, out)
            } else {
                let mut limited = ReadBuf::new(out.initialize_unfilled_to(limit));
                let polled = Pin::new(&mut self.io).poll_read(cx, &mut limited);
                let count = limited.filled().len();
                out.advance(count);
                polled
            };
            let read = out.filled().len() - before;
            ready!(self.poll_brought(cx, polled.map_ok(|()| read)))?;
            return Poll::Ready(own(&mut self.grant, &out.filled()[before..]).map(drop));
        }
        if self.ahead.is_empty() {
            let polled = self.poll_fill(cx, Want::Head);
            if ready!(self.poll_brought(cx, polled))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let room = out.remaining().min(self.ahead.len());
        let count = own(&mut self.grant, &self.ahead.filled()[..room])?;
        out.put_slice(&self.ahead.filled()[..count]);
        self.ahead.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// How many of these bytes are of the body that a borrower may read; they count as read.
fn own(grant: &mut Option<Progress>, bytes: &[u8]) -> io::Result<usize> {
    let malformed = |wrong: Malformed| {
        let kind =
            if wrong.is_too_large() { io::ErrorKind::FileTooLarge } else { io::ErrorKind::InvalidData };
        io::Error::new(kind, wrong.what)
    };
    grant.as_mut().map_or(Ok(bytes.len()), |body| body.advance(bytes).map_err(malformed))
}

/// Writes two parts in one system call; ready with how many bytes were taken, never 0.
pub fn poll_gathered<W: AsyncWrite + Unpin>(
    io: &mut W,
    cx: &mut Context<'_>,
    parts: [&[u8]; 2],
) -> Poll<io::Result<usize>> {
    let io = Pin::new(io);
    let sent = ready!(match parts {
        [one, []] | [[], one] => io.poll_write(cx, one),
        [first, second] => io.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)]),
    });
    Poll::Ready(not_zero(sent))
}

/// A write that takes nothing will take nothing the next time.
fn not_zero(sent: io::Result<usize>) -> io::Result<usize> {
    sent.and_then(|sent| if sent == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(sent) })
}

impl<S: Client> AsyncRead for Conn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Whoever waits for the client has nothing to write: a head on hold leaves now.
        if !this.unsent.is_empty()
            && let Poll::Ready(Err(error)) = this.poll_send_unsent(cx)
        {
            return Poll::Ready(Err(error));
        }
        if !this.lent.is_empty() {
            let count = this.lent.len().min(out.remaining());
            out.put_slice(&this.lent.split_to(count));
            return Poll::Ready(Ok(()));
        }
        match this.grant.as_ref().is_some_and(Progress::is_done) {
            true => this.poll_for_end(cx),
            false => this.poll_read_granted(cx, out),
        }
    }
}

impl<S: Client> AsyncWrite for Conn<S> {
    /// The first write after a flush is a head and waits for what follows; everything else goes out
    /// at once, so that a slowly produced body is never held back.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.unsent.is_empty() && bytes.starts_with(b"HTTP/1.") && bytes.len() <= READ_AHEAD {
            this.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        if !this.unsent.is_empty() && this.unsent.len() + bytes.len() <= READ_AHEAD {
            this.unsent.extend_from_slice(bytes);
            return match this.poll_send_unsent(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(bytes.len())),
            };
        }
        ready!(this.poll_send_unsent(cx))?;
        let polled = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.poll_sent(cx, polled.map(not_zero))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_unsent(cx))?;
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.poll_sent(cx, polled.map_ok(|()| 0)).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_unsent(cx))?;
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.poll_sent(cx, polled.map_ok(|()| 0)).map_ok(drop)
    }
}

#[async_trait]
impl<S: Client> Shutdown for Conn<S> {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

impl<S: Client> UniqueID for Conn<S> {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl<S: Client> Ssl for Conn<S> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

impl<S: Client> GetTimingDigest for Conn<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }
}

impl<S: Client> GetProxyDigest for Conn<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }
}

impl<S: Client> GetSocketDigest for Conn<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }
}

impl<S: Client> Peek for Conn<S> {}

/// What Pingora asks of a transport that has none of it.
macro_rules! without_digests {
    ($transport:ty) => {
        impl pingora_core::protocols::Peek for $transport {}

        impl pingora_core::protocols::GetTimingDigest for $transport {
            fn get_timing_digest(&self) -> Vec<Option<pingora_core::protocols::TimingDigest>> {
                Vec::new()
            }
        }

        impl pingora_core::protocols::GetProxyDigest for $transport {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::raw_connect::ProxyDigest>> {
                None
            }
        }

        impl pingora_core::protocols::GetSocketDigest for $transport {
            fn get_socket_digest(&self) -> Option<std::sync::Arc<pingora_core::protocols::SocketDigest>> {
                None
            }
        }
    };
}
pub(crate) use without_digests;

/// A plain socket as Pingora's [`IO`], without the buffers of its own stream type.
#[derive(Debug)]
pub enum Socket {
    /// Of TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Takes a stream of TCP. Small answers must not wait for an acknowledgement (embedding traps, 1).
    ///
    /// # Errors
    /// What the socket says.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }
}

/// Hands a call to whichever socket it is.
macro_rules! with {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, out))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[async_trait]
impl Shutdown for Socket {
    async fn shutdown(&mut self) {
        // The peer may be gone already; then there is nothing left to say.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Socket {
    fn id(&self) -> UniqueIDType {
        with!(self, stream => stream.as_raw_fd())
    }
}

impl Client for Socket {}

impl Ssl for Socket {}
without_digests!(Socket);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncWriteExt;

    /// A transport that takes everything and hands nothing on, as TLS does when its client does not read.
    #[derive(Debug)]
    struct Stuck;

    impl AsyncRead for Stuck {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Stuck {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[async_trait]
    impl Shutdown for Stuck {
        async fn shutdown(&mut self) {}
    }

    impl UniqueID for Stuck {
        fn id(&self) -> UniqueIDType {
            0
        }
    }

    impl Client for Stuck {}

    impl Ssl for Stuck {}
    without_digests!(Stuck);

    #[tokio::test]
    async fn what_the_transport_holds_back_has_the_deadline_of_writing() {
        let mut conn = Conn::new(Stuck, Pace { within: Duration::from_millis(1), rate: 240 });
        conn.write_all(b"body").await.expect("taken");
        assert_eq!(conn.flush().await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        let mut conn = Conn::new(Stuck, Pace { within: Duration::from_millis(1), rate: 240 });
        let ended = AsyncWriteExt::shutdown(&mut conn).await;
        assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }
}
