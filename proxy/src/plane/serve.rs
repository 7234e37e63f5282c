//! A connection's life: read a head, decide, lend the connection to an engine, take it back.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::IO;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::Answer;
use super::conn::Conn;
use super::engine::Engine;
use super::exchange::Exchange;
use super::head::{self, Body};
use super::{Gate, Plane};
use crate::access::Line;
use crate::metrics::{Event, count};

/// How much a client may still send after it was refused, so that it reads the answer before a reset.
const LINGER_BYTES: usize = 256 * 1024;
/// Seconds that Pingora believes a connection may be idle; the idle deadline is ours.
const KEEPALIVE: u64 = 60;

/// What a worker gives each of its connections.
#[derive(Clone)]
pub struct Worker {
    /// What all workers share.
    pub plane: Arc<Plane>,
    /// This worker's engine.
    pub engine: Arc<HttpProxy<Engine>>,
    /// True once the process is told to stop. Never awaited before it is cloned: a receiver that has
    /// seen the signal does not report it again (embedding traps, 2).
    pub draining: watch::Receiver<bool>,
}

/// Completes when the process is told to stop, also if that was long ago.
pub(super) async fn told(draining: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to tell us: that is a stop as well.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// What came of waiting for a head.
enum Awaited {
    /// A whole head, taken out of the connection.
    Head(BytesMut),
    /// The connection is over: closed, idle for too long, or drained.
    Over,
    /// It has to be refused.
    Refused(Answer),
}

/// How an engine is to be lent the connection for one request.
struct Lending {
    exchange: Exchange,
    /// The head in the form in which an engine reads it.
    head: Vec<u8>,
    /// The bytes that belong to the request; `None` where only reading tells.
    grant: Option<u64>,
}

/// Serves a connection until it ends.
pub async fn serve<S: IO + 'static>(mut conn: Conn<S>, gate: Arc<Gate>, client: IpAddr, mut worker: Worker) {
    let mut first = true;
    loop {
        let head = match next_head(&mut conn, &mut worker, first).await {
            Awaited::Head(head) => head,
            Awaited::Over => return,
            Awaited::Refused(answer) => return refuse(conn, &answer, &gate, client, &worker).await,
        };
        first = false;
        let lending = match head::parse(&head, |parsed| lend(&worker.plane, &gate, client, &head, parsed)) {
            Ok(Ok(lending)) => lending,
            Ok(Err(answer)) => return refuse(conn, &answer, &gate, client, &worker).await,
            Err(malformed) => {
                let answer =
                    Answer::plain(malformed.status, "http_request_error", "malformed", malformed.what);
                return refuse(conn, &answer, &gate, client, &worker).await;
            }
        };
        match run(conn, lending, &worker).await {
            Some(back) => conn = back,
            None => return,
        }
        if *worker.draining.borrow() && conn.ahead().is_empty() {
            return;
        }
    }
}

fn lend(
    plane: &Arc<Plane>,
    gate: &Arc<Gate>,
    client: IpAddr,
    bytes: &[u8],
    head: &head::Head<'_>,
) -> Result<Lending, Answer> {
    if head.method == "CONNECT" {
        let answer = Answer::plain(
            405,
            "http_request_denied",
            "not-supported",
            "CONNECT is not tunnelled by this version",
        );
        return Err(Answer {
            hint: Some("call services with plain http; TLS tunnels are not carried yet".to_owned()),
            ..answer
        });
    }
    let in_engine_form =
        if head.absolute { head::in_origin_form(bytes, head.target, head.authority) } else { bytes.to_vec() };
    let grant = match head.body {
        Body::Length(length) if !head.upgrade => Some(in_engine_form.len() as u64 + length),
        _ => None,
    };
    Ok(Lending { exchange: Exchange::new(plane, gate, head, client), head: in_engine_form, grant })
}

/// Lends the connection to Pingora for one request; `None` where it does not come back.
async fn run<S: IO + 'static>(mut conn: Conn<S>, lending: Lending, worker: &Worker) -> Option<Conn<S>> {
    conn.rewind(&lending.head);
    conn.grant(lending.grant);
    let mut session = ServerSession::new_http1(Box::new(conn));
    session.set_keepalive(Some(KEEPALIVE));
    session.set_connection_user_context(Some(Box::new(lending.exchange)));
    let back = worker.engine.process_new_http(session, &worker.draining).await?;
    let (stream, _) = back.consume();
    let mut conn = *stream.into_any().downcast::<Conn<S>>().ok()?;
    conn.grant(None);
    Some(conn)
}

/// Waits for a whole head: the first one within the head deadline, a later one within the idle
/// deadline until its first byte and within the head deadline from then on.
async fn next_head<S: IO + 'static>(conn: &mut Conn<S>, worker: &mut Worker, first: bool) -> Awaited {
    let limits = &worker.plane.limits;
    let mut begun = first || !conn.ahead().is_empty();
    let mut until = Instant::now() + if begun { limits.head } else { limits.idle };
    let mut seen = 0;
    loop {
        skip_empty_line(conn.ahead());
        let ahead = conn.ahead();
        if let Some(end) = head::end(ahead, seen) {
            return if end > limits.head_bytes {
                Awaited::Refused(too_large(limits.head_bytes))
            } else {
                Awaited::Head(ahead.split_to(end))
            };
        }
        if ahead.len() > limits.head_bytes {
            return Awaited::Refused(too_large(limits.head_bytes));
        }
        if ahead.starts_with(b"PRI * HTTP/2.0\r\n") {
            return Awaited::Refused(Answer::plain(
                505,
                "http_protocol_error",
                "malformed",
                "HTTP/2 is not spoken here; use HTTP/1.1",
            ));
        }
        seen = ahead.len();
        if !begun && seen > 0 {
            begun = true;
            until = Instant::now() + limits.head;
        }
        let idle = seen == 0;
        let filled = tokio::select! {
            biased;
            filled = conn.fill(until) => filled,
            () = told(&mut worker.draining), if idle && !first => return Awaited::Over,
        };
        match filled {
            Ok(0) => return Awaited::Over,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !idle => {
                return Awaited::Refused(Answer::plain(
                    408,
                    "http_request_error",
                    "timeout",
                    "the request's head did not arrive in time",
                ));
            }
            Err(_) => return Awaited::Over,
        }
    }
}

/// Empty lines before a request line are skipped (RFC 9112, section 2.2).
fn skip_empty_line(ahead: &mut BytesMut) {
    while ahead.starts_with(b"\r\n") {
        let _ = ahead.split_to(2);
    }
}

fn too_large(limit: usize) -> Answer {
    Answer::plain(
        431,
        "http_request_error",
        "too-large",
        format!("the request's head is larger than {limit} bytes"),
    )
}

/// Answers a request that no engine may see, and closes: with a grace in which the client can
/// finish sending, since a reset would take the answer from it.
async fn refuse<S: IO + 'static>(
    mut conn: Conn<S>,
    answer: &Answer,
    gate: &Gate,
    client: IpAddr,
    worker: &Worker,
) {
    count(Event::HeadRefused);
    let access = &worker.plane.access;
    if access.is_on() {
        access.log(Line::refused(gate.role(), answer.status, answer.reason, client));
    }
    let until = Instant::now() + worker.plane.limits.head;
    let sent = async {
        conn.write_all(&answer.closing_bytes()).await?;
        conn.flush().await?;
        AsyncWriteExt::shutdown(&mut conn).await
    };
    if sent.await.is_err() {
        return;
    }
    let mut discarded = 0;
    while discarded < LINGER_BYTES {
        match conn.fill(until).await {
            Ok(0) | Err(_) => return,
            Ok(read) => discarded += read,
        }
        conn.ahead().clear();
    }
}
