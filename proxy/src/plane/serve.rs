//! A connection's life: read a head, decide, let an engine carry the exchange, wait for the next.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::answer::{Answer, Manner, TOO_LARGE};
use super::authorizer::{Question, Verdict};
use super::buffer::{Text, Want};
use super::conn::{Client, Conn};
use super::drain::{Drain, is_draining};
use super::engine::{Engine, Lent, engine};
use super::exchange::Exchange;
use super::express::{self, Carried, Shape};
use super::passage::{self, SILENCE, Said, first_words};
use super::shortage::is_shedding;
use super::standing::{self, Standing};
use super::{EngineChoice, Gate, Plane, h2};
use crate::access::Line;
use crate::h1::body::Body;
use crate::h1::request::{self, Head};
use crate::h1::{Malformed, has_end};
use crate::metrics::{Event, count};
use overlane_config::route::Role;

/// How much a client may still send after it was refused, so that it reads the answer before a reset.
const LINGER_BYTES: usize = 256 * 1024;
/// For how long a connection between two requests keeps what it needs to serve one.
const BUSY: Duration = Duration::from_secs(1);
/// How long a connection on which nothing is asked is waited for once the process drains: a request may be on
/// its way. Those that were used while it was leaving were told that they end.
pub(crate) const UNASKED: Duration = Duration::from_millis(500);
/// For how long Pingora may still say that a request's time is over, before it is cut.
const OVERDUE: Duration = Duration::from_millis(500);
/// Seconds that Pingora believes a connection may be idle; the idle deadline is ours.
const KEEPALIVE: u64 = 60;

/// What a worker gives each of its connections.
pub struct Worker {
    /// What all workers share.
    pub plane: Arc<Plane>,
    /// This worker's Pingora engine, made when it is first needed: it loads the system's certificates.
    pingora: OnceLock<Arc<HttpProxy<Engine>>>,
    /// The end of the process.
    pub drain: Drain,
    /// True once it drains, as Pingora wants to hear it. Never awaited before it is cloned: a receiver that
    /// has seen the signal does not report it again (embedding traps, 2).
    draining: watch::Receiver<bool>,
}

impl Worker {
    /// A worker of `plane`, which ends when `drain` says so; `draining` is the same for Pingora.
    #[must_use]
    pub fn new(plane: Arc<Plane>, drain: Drain, draining: watch::Receiver<bool>) -> Self {
        let worker = Self { plane, pingora: OnceLock::new(), drain, draining };
        if worker.plane.engine == EngineChoice::Pingora {
            worker.pingora();
        }
        worker
    }

    fn pingora(&self) -> &Arc<HttpProxy<Engine>> {
        self.pingora.get_or_init(engine)
    }
}

/// A request whose head was read and decided.
struct Next {
    exchange: Exchange,
    /// How the express engine sees it, and its head as it goes upstream; `None` where it is Pingora's.
    express: Option<(Shape, Text)>,
    /// How many bytes its head has.
    head: usize,
    /// How its body is delimited; `None` where what follows may be of another protocol.
    body: Option<Body>,
}

/// What came of waiting for a request's first byte.
pub(crate) enum Awaited {
    Begun,
    Nothing,
    /// The connection is over.
    Closed,
}

/// Serves a connection of `peer` that was intercepted, until it ends.
pub async fn serve_intercepted<S: Client>(
    mut conn: Conn<S>,
    gate: Arc<Gate>,
    peer: Arc<Standing>,
    worker: Arc<Worker>,
    meant: SocketAddr,
) {
    let said = first_words(&mut conn, None, Some(Instant::now() + SILENCE)).await;
    if matches!(said, Said::Other | Said::Nothing) {
        // As if it had asked for a tunnel.
        let host = passage::server_name(conn.ahead().filled()).unwrap_or_else(|| match meant.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        });
        let head = format!("CONNECT {host}:{0} HTTP/1.1\r\nHost: {host}:{0}\r\n\r\n", meant.port());
        let asked =
            request::parse(head.as_bytes(), |head| Exchange::new(&worker.plane, &gate, head, peer.clone()));
        let Ok(Some(mut exchange)) = asked else { return };
        match Box::pin(express::connect::pass(&mut conn, &mut exchange, head.as_bytes())).await {
            Carried::Anew => {}
            _ => return,
        }
    }
    serve(conn, gate, peer, worker).await;
}

/// Serves a connection of `peer` until it ends.
pub async fn serve<S: Client>(mut conn: Conn<S>, gate: Arc<Gate>, peer: Arc<Standing>, worker: Arc<Worker>) {
    let limits = &worker.plane.limits;
    let (mut first, mut limit) = (true, limits.head);
    let listener = Some(gate.place());
    while let Awaited::Begun = first_byte(&mut conn, !first, Instant::now() + limit, listener).await {
        if first && h2::is_spoken(&mut conn).await {
            return Box::pin(h2::serve(conn, gate, peer, worker)).await;
        }
        // Boxed while it is busy, so that an idle connection is small.
        match Box::pin(serve_requests(conn, &gate, &peer, &worker, first)).await {
            Served::Idle(back) => {
                conn = back;
                (first, limit) = (false, limits.idle.saturating_sub(BUSY));
            }
            Served::Anew(back) => {
                conn = back;
                (first, limit) = (true, limits.head);
            }
            Served::Over => return,
        }
    }
}

/// Waits for the first byte of a request, at most until `until`; `unused` where there was none for a while.
/// Holds no buffer. Where it is told of which `listener` the connection is, it may be closed earlier to make
/// room there.
pub(crate) async fn first_byte<S: Client>(
    conn: &mut Conn<S>,
    unused: bool,
    until: Instant,
    listener: Option<usize>,
) -> Awaited {
    if !conn.ahead().is_empty() {
        return Awaited::Begun;
    }
    match listener {
        Some(listener) => conn.deadline().arm_idle(until, listener),
        None => conn.deadline().arm(until),
    }
    let mut told = false;
    poll_fn(|cx| {
        if !told && is_draining() {
            told = true;
            conn.deadline().arm(until.min(Instant::now() + UNASKED));
        }
        match conn.poll_fill(cx, Want::Head) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Awaited::Closed),
            // Who has begun to ask gets an answer, also from a process that was told to stop.
            Poll::Ready(Ok(_)) => {
                conn.deadline().arm(until);
                Poll::Ready(Awaited::Begun)
            }
            Poll::Pending if unused && is_shedding() => Poll::Ready(Awaited::Closed),
            Poll::Pending => conn.deadline().poll(cx).map(|()| Awaited::Nothing),
        }
    })
    .await
}

/// What became of a connection.
pub(super) enum Served<S> {
    /// Nothing follows for now.
    Idle(Conn<S>),
    /// It begins anew, with whatever its client speaks.
    Anew(Conn<S>),
    /// It is over.
    Over,
}

/// Serves what was read, and what follows soon.
pub(super) async fn serve_requests<S: Client>(
    mut conn: Conn<S>,
    gate: &Arc<Gate>,
    peer: &Arc<Standing>,
    worker: &Arc<Worker>,
    mut first: bool,
) -> Served<S> {
    loop {
        let mut next = None;
        match next_request(&mut conn, gate, peer, worker, first, &mut next).await {
            Ok(()) => {}
            Err(answer) => {
                Box::pin(refuse(conn, &answer, gate, peer, worker)).await;
                return Served::Over;
            }
        }
        // Without a next one the client has closed the connection.
        let Some(Next { exchange, express, head, body }) = next.as_mut() else { return Served::Over };
        let carried = match express {
            Some((shape, text)) => express::carry(&mut conn, exchange, *shape, text).await,
            None => Carried::Another,
        };
        let now = match carried {
            Carried::Ready(now) => now,
            Carried::Anew => return Served::Anew(conn),
            Carried::Over { linger } => {
                // Closed with something unread, it would be reset, and the client could lose what was answered.
                if linger || has_more(&mut conn).await {
                    Box::pin(see_off(&mut conn, worker)).await;
                }
                return Served::Over;
            }
            Carried::Another => {
                let (head, body) = (*head, *body);
                let Some(Next { exchange, .. }) = next.take() else { return Served::Over };
                match Box::pin(lend(conn, Box::new(exchange), head, body, worker)).await {
                    Some(back) => conn = back,
                    None => return Served::Over,
                }
                Instant::now()
            }
        };
        // It holds its snapshot and counts as active: not while this waits for the next one.
        drop(next);
        first = false;
        if conn.ahead().is_empty() {
            match first_byte(&mut conn, false, now + BUSY.min(worker.plane.limits.idle), None).await {
                Awaited::Begun => {}
                Awaited::Nothing if !is_draining() => return Served::Idle(conn),
                Awaited::Nothing | Awaited::Closed => return Served::Over,
            }
        }
    }
}

/// Reads a whole head and decides it into `next`, which is in its place already: it is large. Leaves
/// it empty where the client closed the connection.
///
/// # Errors
/// The answer with which it is refused.
async fn next_request<S: Client>(
    conn: &mut Conn<S>,
    gate: &Arc<Gate>,
    peer: &Arc<Standing>,
    worker: &Arc<Worker>,
    first: bool,
    next: &mut Option<Next>,
) -> Result<(), Answer> {
    let (mut searched, mut asked) = (0, Grant::Unasked);
    // The first head's deadline runs since the connection was accepted.
    let mut armed = first;
    loop {
        read_request(conn, gate, peer, worker, &mut searched, next, &mut asked)?;
        if next.is_some() {
            return Ok(());
        }
        if let Grant::Open(question, standing) = asked {
            asked = Grant::Known(Box::pin(ask(question, standing, worker)).await?);
            searched = 0;
            continue;
        }
        if !armed {
            armed = true;
            conn.deadline().arm(Instant::now() + worker.plane.limits.head);
        }
        if !await_more(conn).await? {
            return Ok(());
        }
    }
}

/// Whether somebody else says what a request's sender may.
enum Grant {
    Unasked,
    /// It is to be asked before the request can be decided.
    Open(Box<Question>, Arc<Standing>),
    /// The standing that came of it.
    Known(Arc<Standing>),
}

/// Asks the authorizer.
///
/// # Errors
/// The answer that it gives to the client.
async fn ask(
    question: Box<Question>,
    standing: Arc<Standing>,
    worker: &Worker,
) -> Result<Arc<Standing>, Answer> {
    let Some(authorizer) = &worker.plane.authorizer else { return Ok(standing) };
    match authorizer.ask(*question).await {
        Verdict::Granted(right) => Ok(standing.with(right)),
        Verdict::Refused => Ok(standing),
        Verdict::Answered(answer) => Err(answer),
    }
}

/// Reads more of a head; false where the client closed the connection.
async fn await_more<S: Client>(conn: &mut Conn<S>) -> Result<bool, Answer> {
    let late = || {
        let what = "the request's head did not arrive in time";
        Err(Answer::plain(408, "http_request_error", "timeout", what))
    };
    poll_fn(|cx| match conn.poll_fill(cx, Want::Head) {
        Poll::Ready(read) => Poll::Ready(Ok(read.is_ok_and(|read| read > 0))),
        Poll::Pending => conn.deadline().poll(cx).map(|()| late()),
    })
    .await
}

/// Parses and decides what was read, if it is a whole head. So much of it was `searched` for its end.
fn read_request<S: Client>(
    conn: &mut Conn<S>,
    gate: &Arc<Gate>,
    peer: &Arc<Standing>,
    worker: &Arc<Worker>,
    searched: &mut usize,
    next: &mut Option<Next>,
    asked: &mut Grant,
) -> Result<(), Answer> {
    let limit = worker.plane.limits.head_bytes;
    skip_empty_lines(conn);
    let read = conn.ahead().filled();
    // Parsing again and again what comes byte by byte would be quadratic.
    if *searched == 0 || has_end(read, *searched) {
        match request::parse(read, |head| decide(&worker.plane, gate, peer, head, read, next, asked)) {
            Ok(None) => {}
            Ok(Some(decided)) => {
                if let Some(next) = next.as_mut().filter(|_| matches!(conn.agreed(), Some(ALPN::H2))) {
                    next.exchange.came_in_http2();
                }
                return decided;
            }
            Err(malformed) => return Err(refusal_of(malformed)),
        }
    }
    *searched = read.len();
    if *searched > limit { Err(too_large(limit)) } else { Ok(()) }
}

/// Decides a request, and which engine carries it.
fn decide(
    plane: &Arc<Plane>,
    gate: &Arc<Gate>,
    peer: &Arc<Standing>,
    head: &Head<'_>,
    read: &[u8],
    next: &mut Option<Next>,
    asked: &mut Grant,
) -> Result<(), Answer> {
    if head.length > plane.limits.head_bytes {
        return Err(too_large(plane.limits.head_bytes));
    }
    if let Some(answer) = refused_method(&gate.listener.role, head.method) {
        return Err(answer);
    }
    let body = (!head.upgrade).then_some(head.body);
    // Tunnels are no engine's.
    let ours = plane.engine == EngineChoice::Auto || head.method == "CONNECT";
    let shape = if ours { Shape::of(head, read) } else { None };
    let standing = match asked {
        Grant::Known(standing) => standing.clone(),
        _ => match with_authorizer(plane, gate, standing::of_request(plane, gate, peer, head), head) {
            Grant::Known(standing) => standing,
            open => {
                *asked = open;
                return Ok(());
            }
        },
    };
    let exchange = Exchange::new(plane, gate, head, standing);
    let express = shape.map(|shape| (shape, Text::default()));
    let next = next.insert(Next { exchange, express, head: head.length, body });
    if let Some((shape, text)) = &mut next.express {
        express::write_head(text, head, &next.exchange, *shape, read);
    }
    Ok(())
}

/// The answer to a method that a listener does not serve.
fn refused_method(role: &Role, method: &str) -> Option<Answer> {
    let (what, hint) = match (role, method) {
        (Role::Outbound { .. }, _) => return None,
        (_, "CONNECT") => {
            ("CONNECT is for outbound listeners", "tunnels start at a sidecar's outbound listener")
        }
        // It tells a client what proxies and their secrets add to its request (RFC 9110, section 9.3.8).
        (Role::Gateway, "TRACE") => {
            ("TRACE is not answered at a gateway", "`overlane trace` shows the way of a request")
        }
        _ => return None,
    };
    let answer = Answer::plain(405, "http_request_denied", "not-supported", what);
    Some(Answer { hint: Some(hint.to_owned()), ..answer })
}

/// What the authorizer said a moment ago, or has to be asked.
fn with_authorizer(plane: &Plane, gate: &Gate, standing: Arc<Standing>, head: &Head<'_>) -> Grant {
    let Some(authorizer) = &plane.authorizer else { return Grant::Known(standing) };
    let Some(question) = authorizer.question(plane, gate, &standing, head) else {
        return Grant::Known(standing);
    };
    match authorizer.remembered(&question) {
        Some(right) => Grant::Known(standing.with(right)),
        None => Grant::Open(Box::new(question), standing),
    }
}

/// Empty lines before a request line are skipped (RFC 9112, section 2.2).
fn skip_empty_lines<S: Client>(conn: &mut Conn<S>) {
    while conn.ahead().filled().starts_with(b"\r\n") {
        conn.ahead().consume(2);
    }
}

/// Lends the connection to Pingora for one request; `None` where it does not come back.
async fn lend<S: Client>(
    mut conn: Conn<S>,
    exchange: Box<Exchange>,
    length: usize,
    body: Option<Body>,
    worker: &Worker,
) -> Option<Conn<S>> {
    let until = exchange.must_end();
    // It was parsed before: it is right and complete.
    let head = request::parse(conn.ahead().filled(), request::in_origin_form).ok()??;
    conn.ahead().consume(length);
    conn.lend(head.clone(), body, &worker.plane.limits);
    let mut session = ServerSession::new_http1(Box::new(conn));
    session.set_keepalive(Some(KEEPALIVE));
    session.set_connection_user_context(Some(Box::new(Lent { exchange: *exchange, head })));
    let carried = worker.pingora().process_new_http(session, &worker.draining);
    let back = match until.filter(|_| body.is_some()) {
        None => carried.await?,
        // Who has not begun to answer by then gets a 504 of the engine's; it knows no time for the whole. The
        // connection is in its hands, and is closed.
        Some(until) => timeout_at((until + OVERDUE).into(), Box::pin(carried)).await.ok()??,
    };
    let (stream, _) = back.consume();
    let mut conn = *stream.into_any().downcast::<Conn<S>>().ok()?;
    // What is left of a body is no request.
    conn.take_back().then_some(conn)
}

fn refusal_of(malformed: Malformed) -> Answer {
    let Malformed { status, what } = malformed;
    Answer::plain(status, "http_request_error", "malformed", what)
}

fn too_large(limit: usize) -> Answer {
    let what = format!("the request's head is larger than {limit} bytes");
    Answer::plain(431, "http_request_error", TOO_LARGE, what)
}

/// Answers a request that no engine may see, and closes.
pub(crate) async fn refuse<S: Client>(
    mut conn: Conn<S>,
    answer: &Answer,
    gate: &Gate,
    peer: &Standing,
    worker: &Worker,
) {
    if answer.whole().is_none() {
        count(Event::HeadRefused);
    }
    let access = &worker.plane.access;
    if access.wants_refusal() {
        access.log(&Line::refused(gate.role(), answer.status, answer.reason, &peer.text));
    }
    let bytes = answer.bytes(&Manner { close: true, ..Manner::default() });
    if express::send(&mut conn, &bytes, worker.plane.limits.write).await {
        see_off(&mut conn, worker).await;
    }
}

/// Whether the client has sent more than was asked of it, as far as is known without waiting.
async fn has_more<S: Client>(conn: &mut Conn<S>) -> bool {
    !conn.ahead().is_empty()
        || poll_fn(|cx| Poll::Ready(matches!(conn.poll_fill(cx, Want::Head), Poll::Ready(Ok(1..))))).await
}

/// Closes after an answer, with a grace in which the client can finish sending: a reset would take
/// the answer from it.
pub(crate) async fn see_off<S: Client>(conn: &mut Conn<S>, worker: &Worker) {
    if conn.shutdown().await.is_err() {
        return;
    }
    conn.deadline().arm(Instant::now() + worker.plane.limits.head);
    let mut discarded = conn.ahead().len();
    let mut told = false;
    while discarded < LINGER_BYTES && !conn.ended() {
        conn.ahead().consume(usize::MAX);
        let read = poll_fn(|cx| {
            if !told && is_draining() {
                told = true;
                conn.deadline().arm(Instant::now() + UNASKED);
            }
            match conn.poll_fill(cx, Want::Head) {
                Poll::Ready(read) => Poll::Ready(read.unwrap_or(0)),
                Poll::Pending => conn.deadline().poll(cx).map(|()| 0),
            }
        });
        match read.await {
            0 => return,
            read => discarded += read,
        }
    }
}
