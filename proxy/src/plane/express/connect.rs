//! Tunnels to where the client says: by CONNECT (RFC 9110, section 9.3.6), or by where an intercepted
//! connection was meant for.
//!
//! What is in them may be HTTP nevertheless: clients that are told of a proxy send plain requests
//! through CONNECT, too. Those are requests to this listener like any others, with keys and all.

use std::sync::Arc;
use std::time::Instant;

use overlane_config::route::ROUTE_HEADER;

use super::{Carried, Request, Shape, answer, send, tunnel};
use crate::plane::answer::Answer;
use crate::plane::conn::{Client, Conn};
use crate::plane::exchange::{Exchange, Refused};
use crate::plane::link::Link;
use crate::plane::passage::{SILENCE, Said, first_words};
use crate::upstream::Endpoint;

/// Answers CONNECT, and carries what follows.
pub(super) async fn connect<S: Client>(conn: &mut Conn<S>, exchange: &mut Exchange, shape: Shape) -> Carried {
    if let Some(refusal) = exchange.refusal().cloned() {
        return answer(conn, exchange, &refusal, shape, Request::Unsent).await;
    }
    let head = conn.ahead().filled()[..shape.head].to_vec();
    // A service of ours is called in the requests that follow: whose it is, they say.
    let reached = match exchange.passes_through() {
        true => match reach(exchange, &head).await {
            Ok(reached) => Some(reached),
            Err(refusal) => return answer(conn, exchange, &refusal, shape, Request::Unsent).await,
        },
        false => None,
    };
    conn.ahead().consume(shape.head);
    let mut established = "HTTP/1.1 200 Connection established\r\n".to_owned();
    let receipts = exchange.tunnel_receipts();
    if let Some(receipts) = &receipts {
        established.push_str(&format!("{ROUTE_HEADER}: {receipts}\r\n"));
    }
    established.push_str("\r\n");
    if !send(conn, established.as_bytes(), exchange.limits().write).await {
        return Carried::Over { linger: false };
    }
    exchange.ended(200, Instant::now());
    carry(conn, exchange, reached, &head, receipts.as_deref()).await
}

/// Carries an intercepted connection of which the client has said nothing yet, or no HTTP. `head` is that
/// of a CONNECT that would have led there.
pub(in crate::plane) async fn pass<S: Client>(
    conn: &mut Conn<S>,
    exchange: &mut Exchange,
    head: &[u8],
) -> Carried {
    if let Some(refusal) = exchange.refusal() {
        tracing::debug!(why = refusal.message, "an intercepted connection is not passed on");
        return Carried::Over { linger: false };
    }
    carry(conn, exchange, None, head, None).await
}

type Reached = (Arc<Endpoint>, Link);

async fn carry<S: Client>(
    conn: &mut Conn<S>,
    exchange: &mut Exchange,
    reached: Option<Reached>,
    head: &[u8],
    receipts: Option<&str>,
) -> Carried {
    let mut reached = reached;
    let mut said = match &mut reached {
        Some((_, link)) => first_words(conn, Some(link), None).await,
        // Services speak HTTP: there it is the client who speaks first.
        None if !exchange.passes_through() => {
            let until = Instant::now() + exchange.limits().head;
            first_words(conn, None, Some(until)).await
        }
        None => first_words(conn, None, Some(Instant::now() + SILENCE)).await,
    };
    if reached.is_none() && (said == Said::Other || said == Said::Nothing && exchange.passes_through()) {
        let (endpoint, mut link) = match reach(exchange, head).await {
            Ok(reached) => reached,
            Err(refusal) => {
                tracing::debug!(why = refusal.message, "a tunnel leads nowhere");
                return Carried::Over { linger: false };
            }
        };
        if said == Said::Nothing {
            said = first_words(conn, Some(&mut link), None).await;
        }
        reached = Some((endpoint, link));
    }
    match (said, reached) {
        (Said::Http, reached) => {
            if let Some((endpoint, link)) = reached {
                link.keep(&endpoint, Instant::now());
            }
            Carried::Anew
        }
        (Said::Other, Some((_, link))) => {
            if let Some(receipts) = receipts {
                exchange.leave(receipts);
            }
            exchange.sending();
            exchange.ended(200, Instant::now());
            tunnel(conn, link, exchange).await
        }
        _ => Carried::Over { linger: false },
    }
}

/// Connects to where the exchange leads.
async fn reach(exchange: &mut Exchange, head: &[u8]) -> Result<Reached, Answer> {
    loop {
        let endpoint = exchange.endpoint(head).await.map_err(|Refused(answer)| answer)?;
        match Link::raw(&endpoint, exchange.plane()).await {
            Ok(link) => {
                exchange.connected();
                if exchange.still_leads_there(head) {
                    return Ok((endpoint, link));
                }
            }
            Err((reason, why)) => exchange.connect_failed(reason, why),
        }
    }
}
