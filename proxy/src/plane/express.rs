//! The express engine: HTTP/1.1 to HTTP/1.1, where nothing has to be translated.
//!
//! What was read is what is written: heads are edited by leaving out and adding lines, bodies are
//! only followed to their end. A request whose upstream speaks something else is handed back untouched.

pub(super) mod connect;
mod relay;

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use pingora_core::protocols::ALPN;

use super::answer::{Answer, Failure, Form, Manner};
use super::buffer::Text;
use super::conn::{Client, Conn};
use super::drain::is_leaving;
use super::exchange::{Exchange, Refused};
use super::h2::Unprocessed;
use super::link::Link;
use super::tunnel::pump;
use crate::h1::Name;
use crate::h1::body::Body;
use crate::h1::request::{self, Head};
use relay::{Outcome, Relay, Upload};

/// The largest body that is kept with its head, where all of it is here, so that a request that may be
/// repeated can be (docs/decisions/0009). Other bodies are copied nowhere.
const KEPT_BODY: usize = 2048;

/// How often a request is sent again that an upstream refused unprocessed.
const REPEATS: u32 = 2;

const EXPECT: Name<'_> = Name::of("expect");

/// What the engine has to know of a request, besides where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How many bytes its head has.
    pub head: usize,
    /// How its body is delimited.
    pub body: Body,
    /// Whether it is a HEAD request.
    pub to_head: bool,
    /// Whether the client closes after it.
    pub close: bool,
    /// The form in which the client reads an answer of ours.
    pub form: Form,
    /// Whether it may be sent twice (RFC 9110, section 9.2.2), and its body is kept for that.
    pub repeatable: bool,
    /// How many bytes of the body are kept, and go along with the head.
    pub kept: usize,
    /// Whether the client asks for another protocol than HTTP.
    pub upgrade: bool,
    /// Whether the client asks for a tunnel.
    pub connect: bool,
    /// Whether the client waits for `100 Continue` before it sends its body (RFC 9110, section 10.1.1).
    pub expects: bool,
}

/// Whether a request is still where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// It is at the start of what was read: nothing of it was sent.
    Unsent,
    /// Its head and what is kept of its body were consumed. What was read is of the next request, where
    /// all of this one was kept.
    Consumed,
}

impl Shape {
    /// The shape of a request; `None` where this engine cannot carry it, whatever its upstream.
    #[must_use]
    pub fn of(head: &Head<'_>, read: &[u8]) -> Option<Self> {
        const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"];
        // Old clients ask for tunnels, too.
        if head.old && head.method != "CONNECT" {
            return None;
        }
        let idempotent = IDEMPOTENT.contains(&head.method);
        let kept = match head.body {
            Body::Length(body) => usize::try_from(body)
                .ok()
                .filter(|body| idempotent && *body <= KEPT_BODY && head.length + body <= read.len()),
            _ => None,
        };
        Some(Self {
            head: head.length,
            body: head.body,
            to_head: head.method == "HEAD",
            close: head.close,
            form: Form::of(head),
            repeatable: kept.is_some(),
            kept: kept.unwrap_or(0),
            upgrade: head.upgrade,
            connect: head.method == "CONNECT",
            expects: head.body != Body::Length(0) && head.values(EXPECT).next().is_some(),
        })
    }
}

/// What came of carrying a request.
pub enum Carried {
    /// The connection is ready for the next one, from then on.
    Ready(Instant),
    /// The connection is over. What the client still sends is to be read and dropped where the answer
    /// could otherwise be lost.
    Over {
        /// Whether the client may still be sending.
        linger: bool,
    },
    /// The upstream speaks what this engine does not: nothing was consumed or sent.
    Another,
    /// The connection begins anew: its client may speak any version of HTTP.
    Anew,
}

/// Carries the request at the start of what was read from `conn`. `text` is its head as it goes
/// upstream, as [`write_head`] made it.
///
/// What is rare is boxed: a connection's memory is that of the largest thing that it may do.
pub async fn carry<S: Client>(
    conn: &mut Conn<S>,
    exchange: &mut Exchange,
    shape: Shape,
    text: &mut Text,
) -> Carried {
    if let Some(refusal) = exchange.refusal().cloned() {
        return Box::pin(answer(conn, exchange, &refusal, shape, Request::Unsent)).await;
    }
    if shape.connect {
        return Box::pin(connect::connect(conn, exchange, shape)).await;
    }
    let mut request = Request::Unsent;
    let http2 = matches!(conn.agreed(), Some(ALPN::H2));
    let mut upload = Upload::new(shape, exchange.limits());
    let mut repeats = 0;
    loop {
        let unread = match request {
            Request::Unsent => &conn.ahead().filled()[..shape.head],
            Request::Consumed => &[],
        };
        let endpoint = match exchange.endpoint(unread).await {
            Ok(endpoint) => endpoint,
            Err(Refused(refusal)) => return Box::pin(answer(conn, exchange, &refusal, shape, request)).await,
        };
        let unused = match request {
            Request::Unsent => Link::unused(&endpoint, http2),
            Request::Consumed => None,
        };
        let mut link = match unused {
            Some(link) => link,
            None => match Box::pin(Link::new(&endpoint, exchange.plane(), http2)).await {
                Ok(link) => {
                    exchange.connected();
                    link
                }
                Err((reason, why)) => {
                    exchange.connect_failed(reason, why);
                    continue;
                }
            },
        };
        if !link.reused && !exchange.still_leads_there(unread) {
            match request {
                Request::Unsent => continue,
                // It was sent once, to somebody who is not there any more.
                Request::Consumed => {
                    let gone = Failure::UpstreamClosed;
                    return Box::pin(failed(conn, exchange, gone, 0, shape, None)).await;
                }
            }
        }
        // It is repeated once; a stream is one of a connection that others use, however often it is asked for.
        link.reused &= request == Request::Unsent;
        if request == Request::Unsent {
            if exchange.was_decided_anew() {
                // Decided again, it may go elsewhere, and with another key.
                text.clear();
                let read = conn.ahead().filled();
                let _ = request::parse(read, |head| write_head(text, head, exchange, shape, read));
            }
            exchange.sending();
            conn.ahead().consume(shape.head + shape.kept);
            request = Request::Consumed;
        }
        let mut relay = Relay::new(conn, &mut link, exchange, shape, text, &mut upload);
        let came = poll_fn(|cx| relay.poll(cx)).await;
        let unmet = relay.unmet.take();
        match came {
            Ok(Outcome { switched: true, status, .. }) => {
                exchange.ended(status, Instant::now());
                return Box::pin(tunnel(conn, link, exchange)).await;
            }
            Ok(Outcome { status, reusable, close, linger, .. }) => {
                let now = Instant::now();
                exchange.ended(status, now);
                if reusable {
                    link.keep(&endpoint, now);
                }
                return if close { Carried::Over { linger } } else { Carried::Ready(now) };
            }
            // An unused connection that the upstream had closed (docs/decisions/0009).
            Err((Failure::UpstreamClosed, 0)) if link.reused && !link.heard && shape.repeatable => {}
            // What is not wanted now is not sent again and again (docs/decisions/0028); who goes away wants it elsewhere.
            Err((Failure::Unprocessed(why), 0))
                if repeats < REPEATS
                    && upload.can_repeat()
                    && (why == Unprocessed::Gone || exchange.may_repeat()) =>
            {
                repeats += 1;
                upload.repeat(text);
            }
            Err((failure, status)) => {
                return Box::pin(failed(conn, exchange, failure, status, shape, unmet)).await;
            }
        }
    }
}

/// Writes a request's head as it goes upstream, and what is kept of its body. `read` begins with both.
pub fn write_head(out: &mut Text, head: &Head<'_>, exchange: &Exchange, shape: Shape, read: &[u8]) {
    head.copy(out, |name| exchange.removes(name));
    exchange.add_lines(head, out);
    if shape.upgrade {
        head.copy_upgrade(out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&read[shape.head..shape.head + shape.kept]);
}

/// Carries what both sides say in their other protocol.
async fn tunnel<S: Client>(conn: &mut Conn<S>, mut link: Link, exchange: &mut Exchange) -> Carried {
    let over = async {
        exchange.let_go();
        match exchange.lasts() {
            Some(leave) => leave.await,
            None => std::future::pending().await,
        }
    };
    if let Err(error) = pump(conn.side(), link.side(), over).await {
        tracing::debug!(%error, "a tunnel ended");
    }
    Carried::Over { linger: false }
}

/// Ends an exchange that failed after `status` was sent (0: nothing was).
async fn failed<S: Client>(
    conn: &mut Conn<S>,
    exchange: &mut Exchange,
    failure: Failure,
    status: u16,
    shape: Shape,
    unmet: Option<Box<Answer>>,
) -> Carried {
    tracing::debug!(?failure, "the exchange failed");
    exchange.failed(failure, status != 0);
    match unmet.map(|answer| *answer).or_else(|| failure.answer(exchange.upstream_address())) {
        Some(refusal) if status == 0 => {
            let shape = Shape { close: true, ..shape };
            answer(conn, exchange, &refusal, shape, Request::Consumed).await
        }
        // The client sees that its response is not whole: the connection ends before the framing does.
        _ => {
            exchange.ended(status, Instant::now());
            Carried::Over { linger: false }
        }
    }
}

/// Answers a request that goes nowhere. The connection lives on where all of the request is here.
async fn answer<S: Client>(
    conn: &mut Conn<S>,
    exchange: &mut Exchange,
    answer: &Answer,
    shape: Shape,
    request: Request,
) -> Carried {
    let whole = !shape.close && (request == Request::Consumed || skip(conn, shape));
    let receipts = answer.receipts().map(Into::into).or_else(|| exchange.own_receipts());
    let mut lines = Vec::new();
    exchange.add_answer_lines(&mut lines);
    let manner = Manner {
        form: shape.form,
        receipts: receipts.as_deref(),
        close: !whole || is_leaving(),
        to_head: shape.to_head,
        lines: &lines,
    };
    let bytes = answer.bytes(&manner);
    let sent = send(conn, &bytes, exchange.limits().write).await;
    if sent {
        let body = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(0, |end| bytes.len() - end - 4);
        exchange.body_sent(body as u64);
    }
    let now = Instant::now();
    exchange.ended(if sent { answer.status } else { 0 }, now);
    match sent {
        true if !manner.close => Carried::Ready(now),
        _ => Carried::Over { linger: sent && !whole },
    }
}

/// Forgets a request that was not sent, if all of it is here.
fn skip<S: Client>(conn: &mut Conn<S>, shape: Shape) -> bool {
    let Body::Length(body) = shape.body else {
        return false;
    };
    let whole = usize::try_from(body).ok().and_then(|body| body.checked_add(shape.head));
    let Some(whole) = whole.filter(|whole| *whole <= conn.ahead().len()) else {
        return false;
    };
    conn.ahead().consume(whole);
    true
}

/// Writes all of `bytes`; false where the client is gone, or does not take them within `limit`: they are few.
pub async fn send<S: Client>(conn: &mut Conn<S>, mut bytes: &[u8], limit: Duration) -> bool {
    conn.deadline().arm(Instant::now() + limit);
    poll_fn(|cx| {
        while !bytes.is_empty() {
            match conn.poll_send(cx, [bytes, &[]]) {
                Poll::Ready(Ok(sent)) => bytes = &bytes[sent..],
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return conn.deadline().poll(cx).map(|()| false),
            }
        }
        conn.poll_flush(cx).map(|flushed| flushed.is_ok())
    })
    .await
}
