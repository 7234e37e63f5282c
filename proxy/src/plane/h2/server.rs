//! Clients that speak HTTP/2.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use pingora_core::protocols::{ALPN, Shutdown, Ssl, UniqueID, UniqueIDType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::body::{Incoming, Outgoing};
use super::budget::Side;
use super::cork::Cork;
use super::{CLIENT_WINDOW, PREFACE, SEND_BUFFER, STREAM_WINDOW, broken, malformed, text};
use crate::h1::has_end;
use crate::metrics::{Event, count};
use crate::plane::Gate;
use crate::plane::buffer::Want;
use crate::plane::conn::{Client, Conn, without_digests};
use crate::plane::deadline::Deadline;
use crate::plane::drain::is_draining;
use crate::plane::serve::{Worker, serve_requests};
use crate::plane::standing::Standing;

/// Streams of one connection at a time.
const MAX_STREAMS: u32 = 100;
/// Requests of one connection at a time, with those that the client gave up and that are not over yet: it
/// may open a new stream for each that it resets. While there are so many no more are taken, and `h2` ends
/// a connection that resets many of those that wait.
const MAX_REQUESTS: usize = 2 * MAX_STREAMS as usize;
/// A head of so many bytes is a usual one: how many streams there may be bounds these.
const USUAL_HEAD: usize = 4 * 1024;
/// How many bytes beyond usual ones the heads of a connection's requests may have that are not over yet, unless it is only
/// one request. HPACK makes a large head of a byte or two (an "HPACK bomb", CVE-2016-6581), and here it is text again: as
/// it came, as it is read, as it leaves.
const MAX_HEADS: usize = 256 * 1024;
/// How many those of all connections of a worker may have, for each to have that many.
const MAX_ALL_HEADS: usize = 2 * 1024 * 1024;
/// How many a connection may have where all have more than that, unless it is only one request: whoever sends usual heads
/// notices nothing of those who send large ones.
const FAIR_HEADS: usize = 16 * 1024;
/// How long a client that was told to go, and does not say that it heard, has to open no more streams.
const GOING: Duration = Duration::from_millis(500);

/// Whether a client of which the first bytes are here speaks HTTP/2: by what TLS agreed on, or by
/// prior knowledge (RFC 9113, section 3.3). Reads at most the preface, until the connection's deadline.
pub async fn is_spoken<S: Client>(conn: &mut Conn<S>) -> bool {
    if matches!(conn.agreed(), Some(ALPN::H2)) {
        return true;
    }
    poll_fn(|cx| {
        loop {
            let read = conn.ahead().filled();
            if read.len() >= PREFACE.len() || !PREFACE.starts_with(read) {
                return Poll::Ready(read.starts_with(PREFACE));
            }
            match conn.poll_fill(cx, Want::Head) {
                Poll::Ready(Ok(1..)) => {}
                // What is here is no request of HTTP/1.1 either; it is refused as one.
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return conn.deadline().poll(cx).map(|()| false),
            }
        }
    })
    .await
}

/// Serves a connection of HTTP/2 until it ends.
pub async fn serve<S: Client>(conn: Conn<S>, gate: Arc<Gate>, peer: Arc<Standing>, worker: Arc<Worker>) {
    let limits = &worker.plane.limits;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER);
    let cork = Cork::new(conn, Side::Client, limits.head, limits.write);
    // Boxed, so that its memory is gone when it is over.
    let Ok(Ok(mut connection)) = Box::pin(timeout(limits.head, builder.handshake::<_, Bytes>(cork))).await
    else {
        return count(Event::HeadRefused);
    };
    let mut streams = JoinSet::new();
    let mut idle = Idle::new(limits.idle, gate.place());
    let heads = Arc::new(Heads::default());
    while let Some((request, respond)) =
        poll_fn(|cx| poll_request(&mut connection, &mut streams, &heads, &mut idle, &peer, cx)).await
    {
        let Some(counted) = Counted::new(limits.connections) else {
            refuse(respond);
            continue;
        };
        let stream = match Stream::new(request, respond, &heads) {
            Ok(stream) => stream,
            Err(mut refused) => {
                count(Event::HeadRefused);
                refused.send_reset(Reason::PROTOCOL_ERROR);
                continue;
            }
        };
        let (gate, peer, worker) = (gate.clone(), peer.clone(), worker.clone());
        streams.spawn(async move {
            let _counted = counted;
            let write = worker.plane.limits.write_pace();
            drop(serve_requests(Conn::new(stream, write), &gate, &peer, &worker, true).await);
        });
    }
    // Their connection is gone: they end by themselves, and are counted.
    drop(connection);
    streams.join_all().await;
}

thread_local! {
    /// Requests of all connections of HTTP/2 of this worker.
    static REQUESTS: Cell<usize> = const { Cell::new(0) };
    /// How many bytes beyond usual ones their heads have.
    static ALL_HEADS: Cell<usize> = const { Cell::new(0) };
}

/// One of them. Each may hold memory for a client that does not read.
struct Counted;

impl Counted {
    /// `None` where there are as many as there may be.
    fn new(most: usize) -> Option<Self> {
        let others = REQUESTS.get();
        (others < most).then(|| {
            REQUESTS.set(others + 1);
            Self
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        REQUESTS.set(REQUESTS.get() - 1);
    }
}

/// How many bytes beyond usual ones the heads of a connection's requests have that are not over yet.
#[derive(Default)]
struct Heads {
    bytes: AtomicUsize,
    /// The connection's task.
    waiting: AtomicWaker,
}

impl Heads {
    /// Whether no more are taken now; then the task is woken when they are.
    fn are_too_many(&self, cx: &Context<'_>) -> bool {
        let most = if ALL_HEADS.get() < MAX_ALL_HEADS { MAX_HEADS } else { FAIR_HEADS };
        if self.bytes.load(Relaxed) < most {
            return false;
        }
        // It is looked at again with each of its own that is over.
        self.waiting.register(cx.waker());
        true
    }
}

/// One of these heads. A client that does not read its answer holds it for as long.
struct Large {
    heads: Arc<Heads>,
    bytes: usize,
}

impl Large {
    /// `None` for a usual one.
    fn new(heads: &Arc<Heads>, bytes: usize) -> Option<Self> {
        let bytes = bytes.checked_sub(USUAL_HEAD).filter(|more| *more > 0)?;
        heads.bytes.fetch_add(bytes, Relaxed);
        ALL_HEADS.set(ALL_HEADS.get() + bytes);
        Some(Self { heads: heads.clone(), bytes })
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        // On the thread where it was counted: a worker's tasks stay on it.
        ALL_HEADS.set(ALL_HEADS.get() - self.bytes);
        if self.heads.bytes.fetch_sub(self.bytes, Relaxed) >= FAIR_HEADS {
            self.heads.waiting.wake();
        }
    }
}

/// Says that nothing was done about a request: its client may send it again.
fn refuse(mut respond: SendResponse<Bytes>) {
    count(Event::StreamRefused);
    respond.send_reset(Reason::REFUSED_STREAM);
}

/// A request that arrived, and how it is answered.
type Arrived = (Request<RecvStream>, SendResponse<Bytes>);

/// The next request; `None` where no more will come. The connection lives by being asked.
fn poll_request<S: Client>(
    connection: &mut Connection<Cork<Conn<S>>, Bytes>,
    streams: &mut JoinSet<()>,
    heads: &Heads,
    idle: &mut Idle,
    peer: &Standing,
    cx: &mut Context<'_>,
) -> Poll<Option<Arrived>> {
    while let Poll::Ready(Some(_)) = streams.poll_join_next(cx) {}
    if idle.tells_to_go(streams.is_empty(), cx) {
        connection.graceful_shutdown();
    }
    if streams.len() >= MAX_REQUESTS || heads.are_too_many(cx) {
        return connection.poll_closed(cx).map(|_| None);
    }
    match connection.poll_accept(cx) {
        Poll::Ready(Some(Ok(arrived))) => Poll::Ready(Some(arrived)),
        Poll::Ready(Some(Err(error))) => {
            tracing::debug!(client = %peer.address, %error, "a connection of HTTP/2 failed");
            Poll::Ready(None)
        }
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Pending if idle.is_over(streams.is_empty(), cx) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }
}

/// For how long a connection is open of which nobody asks anything.
struct Idle {
    limit: Duration,
    listener: usize,
    deadline: Deadline,
    /// Whether nothing was under way when this was looked at last.
    unused: bool,
    /// Whether the client was told to go.
    told: bool,
}

impl Idle {
    fn new(limit: Duration, listener: usize) -> Self {
        Self { limit, listener, deadline: Deadline::default(), unused: false, told: false }
    }

    /// Whether the client is to be told to go, which is done once: at the end of the process, or after a
    /// time in which it asked nothing.
    fn tells_to_go(&mut self, unused: bool, cx: &Context<'_>) -> bool {
        match (self.unused, unused) {
            (false, true) if self.told => self.deadline.arm(Instant::now() + GOING),
            (false, true) => self.deadline.arm_idle(Instant::now() + self.limit, self.listener),
            (true, false) => self.deadline.not_idle(),
            _ => {}
        }
        self.unused = unused;
        // Asked also while it is used, so that the end of the process wakes this task.
        let passed = self.deadline.poll(cx).is_ready();
        let tells = !self.told && (is_draining() || (unused && passed));
        if tells {
            self.told = true;
            self.deadline.arm(Instant::now() + GOING);
        }
        tells
    }

    /// Whether a client that was told to go, and asks nothing, has had its time.
    fn is_over(&self, unused: bool, cx: &Context<'_>) -> bool {
        self.told && unused && self.deadline.poll(cx).is_ready()
    }
}

/// A stream as a connection that carries one exchange.
pub(super) struct Stream {
    request: Incoming,
    respond: SendResponse<Bytes>,
    to_head: bool,
    /// The start of a head that is being written.
    head: Vec<u8>,
    response: Option<Outgoing>,
    _large: Option<Large>,
}

impl Stream {
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        heads: &Arc<Heads>,
    ) -> Result<Self, SendResponse<Bytes>> {
        let (head, body) = request.into_parts();
        match text::request_text(&head, body.is_end_stream()) {
            Ok((text, chunked)) => Ok(Self {
                _large: Large::new(heads, text.len()),
                request: Incoming::new(body, text, chunked),
                respond,
                to_head: head.method == Method::HEAD,
                head: Vec::new(),
                response: None,
            }),
            Err(_) => Err(respond),
        }
    }

    fn is_answered(&self) -> bool {
        self.response.as_ref().is_some_and(Outgoing::is_ended)
    }

    /// Whether the client takes no answer any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let reset = match &mut self.response {
            Some(response) => response.stream().poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => broken(error),
        })
    }

    /// Takes bytes of a head, and sends it where it is whole.
    fn write_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        if !has_end(&self.head, before) {
            return Ok(bytes.len());
        }
        let answer = text::response_of(&self.head, self.to_head);
        let Some(answer) = answer.map_err(|wrong| malformed(wrong.what))? else {
            return Err(malformed("the head is malformed"));
        };
        let length = memchr::memmem::find(&self.head, b"\r\n\r\n").map_or(0, |end| end + 4);
        self.head = Vec::new();
        self.send_head(answer.response, answer.body)?;
        Ok(length - before)
    }

    fn send_head(&mut self, response: Response<()>, body: crate::h1::body::Body) -> io::Result<()> {
        if response.status().is_informational() {
            return self.respond.send_informational(response).map_err(broken);
        }
        let ended = body == crate::h1::body::Body::Length(0);
        let stream = self.respond.send_response(response, ended).map_err(broken)?;
        self.response = Some(Outgoing::new(stream, body));
        Ok(())
    }
}

impl AsyncRead for Stream {
    /// After the request's end there is nothing to read, and an end only once it is answered: a client
    /// that asked everything still wants the answer.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_answered() {
            return Poll::Ready(Ok(()));
        }
        if !this.request.is_read() {
            let before = out.filled().len();
            ready!(this.request.poll_read(cx, out))?;
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(Err(ready!(this.poll_gone(cx))))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.response {
            Some(response) => response.poll_write(cx, bytes),
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

impl Drop for Stream {
    /// The client sees that its answer is not whole.
    fn drop(&mut self) {
        match self.response.take() {
            Some(response) if response.is_ended() => {}
            Some(mut response) => {
                // A reset drops what was not written yet: the connection gets its turn before.
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move {
                        tokio::task::yield_now().await;
                        response.stream().send_reset(Reason::INTERNAL_ERROR);
                    });
                }
            }
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("answered", &self.is_answered()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for Stream {
    async fn shutdown(&mut self) {}
}

impl UniqueID for Stream {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl Client for Stream {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.response.as_mut().map_or(Poll::Ready(()), |response| response.poll_room(cx))
    }
}

impl Ssl for Stream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H2)
    }
}

without_digests!(Stream);
