//! Upstream connections of the express engine: how they are made, kept and checked.
//!
//! Each worker keeps its own, without a lock. They are kept under the endpoint itself, not its
//! address: when a service or an address is removed, its endpoint is gone, its connections are closed
//! and never serve anybody else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use overlane_config::route::Reason;
use overlane_config::url::Scheme;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Plane;
use super::buffer::{Buffer, Want};
use super::conn::{Socket, poll_gathered};
use super::h2::{self, Agreed, Call, Called, Unready};
use super::listen::keepalive;
use super::tunnel::Side;
use crate::tls::upstreams::{failure, is_no_common_protocol};
use crate::tls::wire::Wire;
use crate::upstream::{Address, Endpoint, Speaks};

/// Unused connections that a worker keeps.
const KEPT: usize = 1024;
/// How often those that are of no use any more are closed.
const SWEEP: Duration = Duration::from_millis(500);

/// What carries a connection. Plain sockets are opened here: Pingora's own stream would hold 64 KiB of
/// buffer for each (docs/decisions/0012-the-express-engine.md).
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Wire<Socket>>>),
    /// A stream of HTTP/2.
    Call(Box<Call>),
}

/// Hands a call to whichever transport it is.
macro_rules! with {
    ($transport:expr, $io:ident => $call:expr) => {
        match $transport {
            Transport::Plain($io) => $call,
            Transport::Tls($io) => $call,
            Transport::Call($io) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_read(cx, out))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, parts))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}

/// A connection to an endpoint.
pub struct Link {
    transport: Transport,
    /// Read from the upstream, not yet consumed.
    pub ahead: Buffer,
    /// Whether it has served another request before.
    pub reused: bool,
    /// Whether anything was read from it for this request.
    pub heard: bool,
}

impl Link {
    /// An unused connection to `endpoint` that lives. `http2` as in [`Link::new`].
    #[must_use]
    pub fn unused(endpoint: &Arc<Endpoint>, http2: bool) -> Option<Self> {
        if endpoint.may_agree_on_http2(http2) {
            return None;
        }
        let transport = POOL.with_borrow_mut(|pool| pool.take(endpoint))?;
        Some(Self { transport, ahead: Buffer::default(), reused: true, heard: false })
    }

    /// A new connection to `endpoint`, or a new stream of one. `http2` where the request came in HTTP/2, and
    /// goes on so where the upstream agrees.
    ///
    /// # Errors
    /// Why none could be made, as a reason and in words.
    pub async fn new(endpoint: &Arc<Endpoint>, plane: &Plane, http2: bool) -> Result<Self, Unready> {
        let (transport, reused) = match endpoint.url.scheme {
            Scheme::H2c => {
                let connect = || async { plain(endpoint, plane).await.map(Agreed::Http2) };
                match h2::call(endpoint, http::uri::Scheme::HTTP, &plane.limits, connect).await? {
                    Called::Stream(call, reused) => (Transport::Call(call), reused),
                    Called::Http1(_) => return Err((Reason::Unhealthy, "it does not speak HTTP/2")),
                }
            }
            Scheme::Https if endpoint.may_agree_on_http2(http2) => call_in_tls(endpoint, plane).await?,
            Scheme::Https => match connect_tls(endpoint, plane, false).await {
                // It has just shown that it speaks nothing else.
                Err(_) if endpoint.may_agree_on_http2(false) => call_in_tls(endpoint, plane).await?,
                made => (made?.0, false),
            },
            _ => (plain(endpoint, plane).await?, false),
        };
        Ok(Self { transport, ahead: Buffer::default(), reused, heard: false })
    }

    /// A new connection to `endpoint` for whatever somebody else wants to say there.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub async fn raw(endpoint: &Arc<Endpoint>, plane: &Plane) -> Result<Self, Unready> {
        let transport = plain(endpoint, plane).await?;
        Ok(Self { transport, ahead: Buffer::default(), reused: false, heard: false })
    }

    /// Keeps the connection, unused from `now` on, for the next request to `endpoint`. It has to be idle: nothing was read
    /// that is not consumed, and nothing is expected.
    pub fn keep(self, endpoint: &Arc<Endpoint>, now: Instant) {
        // A stream is over; its connection is kept elsewhere.
        if matches!(self.transport, Transport::Call(_)) || !self.ahead.is_empty() {
            return;
        }
        let unused = Unused { transport: self.transport, since: now };
        POOL.with_borrow_mut(|pool| pool.put(endpoint, unused));
    }

    /// Reads more into [`Link::ahead`]; ready with how much, 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, want: Want) -> Poll<io::Result<usize>> {
        let read = ready!(self.ahead.poll_fill(&mut self.transport, cx, want));
        // Who resets a stream has seen its request.
        self.reused &= !read.as_ref().is_err_and(h2::is_reset);
        let read = read?;
        self.heard |= read > 0;
        Poll::Ready(Ok(read))
    }

    /// Writes the parts in one go; ready with how many bytes were taken, never 0.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        poll_gathered(&mut self.transport, cx, parts)
    }

    /// It, as one side of a tunnel.
    pub(super) fn side(&mut self) -> Side<'_, Transport> {
        Side { io: &mut self.transport, ahead: &mut self.ahead }
    }

    /// Whether the upstream can say that it did nothing about a request.
    #[must_use]
    pub fn can_refuse(&self) -> bool {
        matches!(self.transport, Transport::Call(_))
    }

    /// Whether it failed since what was to be sent cannot be said in the upstream's protocol.
    #[must_use]
    pub fn cannot_say(&self, error: &io::Error) -> bool {
        matches!(self.transport, Transport::Call(_)) && error.kind() == io::ErrorKind::InvalidData
    }

    /// Hands on what was written, where the transport holds it back (TLS).
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

async fn plain(endpoint: &Endpoint, plane: &Plane) -> Result<Transport, Unready> {
    connect(endpoint, plane).await.map(Transport::Plain)
}

/// Connects to an endpoint, whatever is spoken there.
async fn connect(endpoint: &Endpoint, plane: &Plane) -> Result<Socket, Unready> {
    let opened = async {
        match &endpoint.address {
            Address::Tcp(address) => {
                let socket = match open(*address, plane.passage.mark) {
                    // Those that nobody uses make room for one that somebody wants.
                    Err(error) if is_out_of_descriptors(&error) && shed() > 0 => {
                        open(*address, plane.passage.mark)
                    }
                    opened => opened,
                };
                Socket::tcp(socket?.connect(*address).await?)
            }
            Address::Unix(path) => UnixStream::connect(&**path).await.map(Socket::Unix),
        }
    };
    match timeout(plane.limits.connect, opened).await {
        Ok(opened) => opened.map_err(|error| reason_of(&error)),
        Err(_) => Err((Reason::Unhealthy, "no connection in time")),
    }
}

/// A socket that can connect to `address`.
fn open(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let options = SockRef::from(&socket);
    options.set_tcp_keepalive(&keepalive())?;
    if let Some(mark) = mark {
        options.set_mark(mark)?;
    }
    Ok(socket)
}

/// Whether the process, or the machine, has no descriptor left.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

/// Closes this worker's unused connections; returns how many.
pub fn shed() -> usize {
    POOL.with_borrow_mut(|pool| {
        pool.shelves.clear();
        std::mem::take(&mut pool.count)
    })
}

fn reason_of(error: &io::Error) -> (Reason, &'static str) {
    if is_out_of_descriptors(error) {
        return (Reason::Unhealthy, "this proxy is out of file descriptors");
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => (Reason::Refused, "connection refused"),
        io::ErrorKind::NotFound => (Reason::Unhealthy, "no such socket"),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            (Reason::Unhealthy, "no route to it")
        }
        io::ErrorKind::PermissionDenied => (Reason::Unhealthy, "permission denied"),
        _ => (Reason::Unhealthy, "no connection"),
    }
}

/// Connects in TLS, offering HTTP/2 where `http2`; says whether that was agreed on.
async fn connect_tls(endpoint: &Endpoint, plane: &Plane, http2: bool) -> Result<(Transport, bool), Unready> {
    let (handshakes, name) = plane.tls.handshakes(&endpoint.url.host).await?;
    let socket = connect(endpoint, plane).await?;
    let config = if http2 { &handshakes.http2 } else { &handshakes.http1 };
    let connecting = TlsConnector::from(config.clone()).connect(name, Wire::new(socket));
    let stream = match timeout(plane.limits.connect, connecting).await {
        Ok(made) => made.map_err(|error| {
            if !http2 && is_no_common_protocol(&error) {
                endpoint.speaks(Speaks::OnlyHttp2);
            }
            tracing::debug!(%error, upstream = %endpoint.address, "the TLS handshake failed");
            failure(&error)
        })?,
        Err(_) => return Err((Reason::Unhealthy, "no TLS handshake in time")),
    };
    let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Transport::Tls(Box::new(stream)), agreed))
}

/// A stream of HTTP/2 in TLS, or a connection of HTTP/1.1 where the upstream chose that; and whether it
/// was there before.
async fn call_in_tls(endpoint: &Arc<Endpoint>, plane: &Plane) -> Result<(Transport, bool), Unready> {
    let connect = || async {
        let (transport, agreed) = connect_tls(endpoint, plane, true).await?;
        if !agreed {
            endpoint.speaks(Speaks::OnlyHttp1);
        }
        Ok(if agreed { Agreed::Http2(transport) } else { Agreed::Http1(transport) })
    };
    match h2::call(endpoint, http::uri::Scheme::HTTPS, &plane.limits, connect).await? {
        Called::Stream(call, reused) => Ok((Transport::Call(call), reused)),
        Called::Http1(Some(transport)) => Ok((transport, false)),
        Called::Http1(None) => Ok((connect_tls(endpoint, plane, false).await?.0, false)),
    }
}

/// An unused connection.
struct Unused {
    transport: Transport,
    since: Instant,
}

/// The unused connections to one endpoint.
struct Shelf {
    /// Only weak: the table decides how long an endpoint lives.
    endpoint: Weak<Endpoint>,
    /// The one used last is at the end, and used next.
    unused: Vec<Unused>,
}

/// A worker's unused connections.
#[derive(Default)]
struct Pool {
    /// By the endpoint's address in memory, which nobody else gets while the shelf refers to it.
    shelves: HashMap<usize, Shelf, RandomState>,
    count: usize,
    sweeper: Option<Waker>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

fn place(endpoint: &Arc<Endpoint>) -> usize {
    Arc::as_ptr(endpoint) as usize
}

impl Pool {
    fn put(&mut self, endpoint: &Arc<Endpoint>, unused: Unused) {
        if self.count >= KEPT {
            return;
        }
        self.count += 1;
        let shelf = self
            .shelves
            .entry(place(endpoint))
            .or_insert_with(|| Shelf { endpoint: Arc::downgrade(endpoint), unused: Vec::new() });
        shelf.unused.push(unused);
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.wake();
        }
    }

    fn take(&mut self, endpoint: &Arc<Endpoint>) -> Option<Transport> {
        let shelf = self.shelves.get_mut(&place(endpoint))?;
        while let Some(mut unused) = shelf.unused.pop() {
            self.count -= 1;
            if unused.transport.is_quiet() {
                return Some(unused.transport);
            }
        }
        None
    }

    /// Closes what was unused for too long, what the upstream closed, and what leads to an endpoint
    /// that is gone.
    fn sweep(&mut self, limit: Duration) {
        self.shelves.retain(|_, shelf| {
            if shelf.endpoint.strong_count() == 0 {
                return false;
            }
            shelf.unused.retain_mut(|unused| unused.since.elapsed() < limit && unused.transport.is_quiet());
            !shelf.unused.is_empty()
        });
        self.count = self.shelves.values().map(|shelf| shelf.unused.len()).sum();
    }
}

impl Transport {
    /// Whether the upstream neither closed the connection nor sent what nobody asked for.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(self).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }
}

/// Closes this thread's connections that are of no use any more; never ends. `limit` is how long
/// one is kept unused.
pub async fn sweep(limit: Duration) {
    loop {
        // While there is nothing to watch, nothing runs.
        std::future::poll_fn(|cx| {
            POOL.with_borrow_mut(|pool| match pool.count {
                0 => {
                    pool.sweeper = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            })
        })
        .await;
        tokio::time::sleep(SWEEP).await;
        POOL.with_borrow_mut(|pool| pool.sweep(limit));
    }
}
