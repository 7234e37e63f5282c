//! Upstreams that speak HTTP/2: few connections, many calls on each.
//!
//! Each worker has its own connections, under the endpoint itself, as those of HTTP/1.1 are kept
//! ([`super::super::link`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::RandomState;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::uri::Scheme;
use overlane_config::route::Reason as Unavailable;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::body::{Incoming, Outgoing};
use super::budget::Side;
use super::cork::Cork;
use super::{SEND_BUFFER, STREAM_WINDOW, UPSTREAM_WINDOW, Unprocessed, broken, malformed, text, unprocessed};
use crate::h1::body::Body;
use crate::h1::has_end;
use crate::plane::Limits;
use crate::upstream::Endpoint;

/// Streams on one connection, where the upstream allows more: another connection is made for more.
const MAX_STREAMS: usize = 100;

/// For how long an unused connection is kept. When it is over, both sides tell: unlike with HTTP/1.1, no
/// call is lost by its being kept for too long.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// How often those that are of no use any more are closed.
const SWEEP: Duration = Duration::from_millis(500);

/// Why no call can be made: a reason, and words.
pub type Unready = (Unavailable, &'static str);

/// A connection that calls can be made on.
struct Shared {
    sender: SendRequest<Bytes>,
    /// Each call has one more.
    calls: Arc<()>,
    used: Instant,
}

impl Shared {
    fn calls(&self) -> usize {
        Arc::strong_count(&self.calls) - 1
    }

    fn has_room(&self) -> bool {
        self.calls() < self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    fn call(&mut self, scheme: Scheme) -> Box<Call> {
        self.used = Instant::now();
        Box::new(Call::new(self.sender.clone(), self.calls.clone(), scheme))
    }
}

/// A worker's connections to one endpoint.
struct Shelf {
    /// Only weak: the table decides how long an endpoint lives.
    endpoint: Weak<Endpoint>,
    shared: Vec<Shared>,
    /// Whether one is being made: who comes meanwhile waits for it.
    connecting: bool,
    /// How many were begun.
    begun: u64,
    /// Which of them failed last, and why: who waited for it does not try the same again.
    failed: Option<(u64, Unready)>,
    connected: Arc<Notify>,
}

thread_local! {
    static SHELVES: RefCell<HashMap<usize, Shelf, RandomState>> = RefCell::default();
    static SWEEPER: Cell<Option<Waker>> = const { Cell::new(None) };
}

/// Looks at the shelf of `endpoint`, which is made where there is none.
fn with_shelf<R>(endpoint: &Arc<Endpoint>, with: impl FnOnce(&mut Shelf) -> R) -> R {
    SHELVES.with_borrow_mut(|shelves| {
        let shelf = shelves.entry(Arc::as_ptr(endpoint) as usize).or_insert_with(|| Shelf {
            endpoint: Arc::downgrade(endpoint),
            shared: Vec::new(),
            connecting: false,
            begun: 0,
            failed: None,
            connected: Arc::new(Notify::new()),
        });
        if let Some(sweeper) = SWEEPER.take() {
            sweeper.wake();
        }
        with(shelf)
    })
}

/// What to do for a call.
enum Step {
    Use(Box<Call>),
    Connect,
    /// For the connection that was begun as this one.
    Wait(u64, Arc<Notify>),
}

fn next_step(endpoint: &Arc<Endpoint>, scheme: &Scheme) -> Step {
    with_shelf(endpoint, |shelf| {
        if let Some(shared) = shelf.shared.iter_mut().find(|shared| shared.has_room()) {
            return Step::Use(shared.call(scheme.clone()));
        }
        if shelf.connecting {
            return Step::Wait(shelf.begun, shelf.connected.clone());
        }
        shelf.connecting = true;
        shelf.begun += 1;
        Step::Connect
    })
}

/// Lets others connect, however connecting ended.
struct Connecting<'e>(&'e Arc<Endpoint>);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        with_shelf(self.0, |shelf| {
            shelf.connecting = false;
            shelf.connected.notify_waiters();
        });
    }
}

/// What a new connection speaks.
pub enum Agreed<T> {
    /// What is wanted here.
    Http2(T),
    /// What the upstream chose instead.
    Http1(T),
}

/// What came of a call.
pub enum Called<T> {
    /// A stream, and whether its connection was there before.
    Stream(Box<Call>, bool),
    /// HTTP/1.1 was agreed on: the connection, where it was this call that made it.
    Http1(Option<T>),
}

/// A call to `endpoint`, over a connection that is there or one that `connect` makes.
///
/// # Errors
/// Why none can be made.
pub async fn call<T, C>(
    endpoint: &Arc<Endpoint>,
    scheme: Scheme,
    limits: &Limits,
    connect: impl FnOnce() -> C,
) -> Result<Called<T>, Unready>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    C: Future<Output = Result<Agreed<T>, Unready>>,
{
    loop {
        match next_step(endpoint, &scheme) {
            Step::Use(mut call) => {
                if poll_fn(|cx| call.sender.poll_ready(cx)).await.is_ok() {
                    return Ok(Called::Stream(call, true));
                }
                // It is over; there may be others.
                forget_closed(endpoint);
            }
            Step::Connect => {
                let connecting = Connecting(endpoint);
                let made = async {
                    match connect().await? {
                        Agreed::Http2(io) => handshake(io, endpoint, limits).await.map(Ok),
                        Agreed::Http1(io) => Ok(Err(io)),
                    }
                };
                let made = made.await.inspect_err(|why| {
                    with_shelf(endpoint, |shelf| shelf.failed = Some((shelf.begun, *why)));
                })?;
                let sender = match made {
                    Ok(sender) => sender,
                    Err(io) => return Ok(Called::Http1(Some(io))),
                };
                let mut shared = Shared { sender, calls: Arc::default(), used: Instant::now() };
                let call = shared.call(scheme);
                with_shelf(endpoint, |shelf| shelf.shared.push(shared));
                drop(connecting);
                return Ok(Called::Stream(call, false));
            }
            Step::Wait(number, connected) => {
                let mut news = std::pin::pin!(connected.notified());
                // It may have come between.
                if !news.as_mut().enable() && with_shelf(endpoint, |shelf| shelf.connecting) {
                    news.await;
                }
                let failed = with_shelf(endpoint, |shelf| shelf.failed);
                if let Some((_, why)) = failed.filter(|(failed, _)| *failed >= number) {
                    return Err(why);
                }
                if scheme == Scheme::HTTPS && !endpoint.may_agree_on_http2(true) {
                    return Ok(Called::Http1(None));
                }
            }
        }
    }
}

async fn handshake<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    io: T,
    endpoint: &Endpoint,
    limits: &Limits,
) -> Result<SendRequest<Bytes>, Unready> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(UPSTREAM_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false);
    let (mut sender, connection) = builder
        .handshake(Cork::new(io, Side::Upstream, limits.upstream_read, limits.upstream_write))
        .await
        .map_err(|_| (Unavailable::Unhealthy, "it does not speak HTTP/2"))?;
    let upstream = endpoint.address.clone();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%upstream, %error, "an upstream's connection of HTTP/2 ended");
        }
    });
    poll_fn(|cx| sender.poll_ready(cx))
        .await
        .map_err(|_| (Unavailable::Unhealthy, "it does not speak HTTP/2"))?;
    Ok(sender)
}

/// Whether a connection takes calls.
fn is_open(sender: &mut SendRequest<Bytes>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    !matches!(sender.poll_ready(&mut cx), Poll::Ready(Err(_)))
}

fn forget_closed(endpoint: &Arc<Endpoint>) {
    with_shelf(endpoint, |shelf| shelf.shared.retain_mut(|shared| is_open(&mut shared.sender)));
}

/// Closes this worker's connections that are of no use any more; never ends.
pub async fn sweep() {
    loop {
        // While there is nothing to watch, nothing runs.
        poll_fn(|cx| match SHELVES.with_borrow(HashMap::is_empty) {
            true => {
                SWEEPER.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await;
        tokio::time::sleep(SWEEP).await;
        close_unused();
    }
}

/// Closes connections that were unused for long, that the upstream closed, and that lead to an endpoint
/// that is gone. Calls that are under way go on.
fn close_unused() {
    SHELVES.with_borrow_mut(|shelves| {
        shelves.retain(|_, shelf| {
            let used = |shared: &Shared| shared.calls() > 0 || shared.used.elapsed() < KEPT_FOR;
            shelf.shared.retain_mut(|shared| used(shared) && is_open(&mut shared.sender));
            shelf.endpoint.strong_count() > 0 && (shelf.connecting || !shelf.shared.is_empty())
        });
    });
}

/// A stream to an upstream, as a connection that carries one exchange.
pub struct Call {
    sender: SendRequest<Bytes>,
    /// By which its connection knows how many there are.
    _counted: Arc<()>,
    scheme: Scheme,
    /// The start of a head that is being written.
    head: Vec<u8>,
    to_head: bool,
    request: Option<Outgoing>,
    coming: Option<ResponseFuture>,
    /// Why it was not sent, where it was not.
    unsent: Option<io::Error>,
    /// An interim response that was not read yet.
    interim: Bytes,
    response: Option<Incoming>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("answered", &self.response.is_some()).finish_non_exhaustive()
    }
}

impl Call {
    fn new(sender: SendRequest<Bytes>, counted: Arc<()>, scheme: Scheme) -> Self {
        Self {
            sender,
            _counted: counted,
            scheme,
            head: Vec::new(),
            to_head: false,
            request: None,
            coming: None,
            unsent: None,
            interim: Bytes::new(),
            response: None,
        }
    }

    /// Takes bytes of the head, and sends it where it is whole. Why it was not sent is told to who waits for
    /// the answer, also.
    fn write_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_head(bytes).inspect_err(|error| {
            let told = unprocessed(error).map(io::Error::other);
            self.unsent = Some(told.unwrap_or_else(|| error.kind().into()));
        })
    }

    fn send_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        if !has_end(&self.head, before) {
            return Ok(bytes.len());
        }
        let read = text::request_of(&self.head, &self.scheme);
        let Some((request, body)) = read.map_err(|wrong| malformed(wrong.what))? else {
            return Err(malformed("the head is malformed"));
        };
        let length = memchr::memmem::find(&self.head, b"\r\n\r\n").map_or(0, |end| end + 4);
        self.head = Vec::new();
        self.to_head = request.method() == http::Method::HEAD;
        let sent = self.sender.send_request(request, body == Body::Length(0));
        // It never left.
        let (coming, stream) = sent.map_err(|_| io::Error::other(Unprocessed::Gone))?;
        self.coming = Some(coming);
        self.request = Some(Outgoing::new(stream, body));
        Ok(length - before)
    }

    /// Gets the next head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(unsent) = self.unsent.take() {
            return Poll::Ready(Err(unsent));
        }
        let Some(coming) = &mut self.coming else {
            // Nothing was asked yet.
            return Poll::Pending;
        };
        if let Poll::Ready(Some(interim)) = coming.poll_informational(cx) {
            self.interim = text::interim_text(&interim.map_err(broken)?.into_parts().0).into();
            return Poll::Ready(Ok(()));
        }
        let response = ready!(Pin::new(coming).poll(cx)).map_err(broken)?;
        self.coming = None;
        let (head, body) = response.into_parts();
        let (text, chunked) = text::response_text(&head, self.to_head, body.is_end_stream());
        self.response = Some(Incoming::new(body, text, chunked));
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Call {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.interim.is_empty() {
                let count = self.interim.len().min(out.remaining());
                out.put_slice(&self.interim.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if let Some(response) = &mut self.response {
                return response.poll_read(cx, out);
            }
            ready!(self.poll_head(cx))?;
        }
    }
}

impl AsyncWrite for Call {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.request {
            Some(request) => request.poll_write(cx, bytes),
            None => Poll::Ready(self.write_head(bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
