//! The Pingora engine: `HttpProxy`, lent one request at a time.
//!
//! It can carry every HTTP exchange and is the reference that other engines are compared with. It
//! decides nothing: an [`Exchange`] comes with the request and says where to connect and what to
//! edit.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{self, HeaderName, HeaderValue};
use overlane_config::route::{BaggageEdit, HOP_HEADER, REQUIRE_HEADER, ROUTE_HEADER, Reason, Role};
use overlane_config::url::Scheme;
use pingora_core::modules::http::HttpModules;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};
use tokio::sync::watch;

use super::answer::Answer;
use super::exchange::Exchange;
use crate::upstream::{Address, Endpoint};

/// How often one request may be tried. The time that a hold lasts is the real bound; Pingora wants a number.
const ATTEMPTS: usize = 10_000;
/// Unused upstream connections that a worker keeps.
const POOL: usize = 1024;
/// Streams on one HTTP/2 upstream connection.
const H2_STREAMS: usize = 100;

/// What Pingora carries along with a request.
#[derive(Default)]
pub struct Carried {
    exchange: Option<Box<Exchange>>,
    /// The answer of the proxy's own, once it is known.
    answer: Option<Answer>,
}

/// The engine of one worker.
pub struct Engine {
    draining: watch::Receiver<bool>,
}

/// Makes a worker's engine. `draining` turns true when the process is told to stop.
#[must_use]
pub fn engine(draining: watch::Receiver<bool>) -> Arc<HttpProxy<Engine>> {
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: POOL,
        max_retries: ATTEMPTS,
        ..ServerConf::default()
    };
    Arc::new(http_proxy(&Arc::new(conf), Engine { draining }))
}

impl Engine {
    async fn answer(session: &mut Session, answer: &Answer, carried: &Carried) -> Result<()> {
        let accept = session
            .req_header()
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let (body, content_type) = answer.body(accept);
        let mut head = answer.head(content_type, body.len())?;
        if let Some(receipt) = carried.exchange.as_ref().and_then(|exchange| exchange.receipt_to_send()) {
            head.insert_header(HeaderName::from_static(ROUTE_HEADER), receipt.to_string())?;
        }
        let without_body = session.req_header().method == http::Method::HEAD;
        session.write_response_header(Box::new(head), without_body).await?;
        if !without_body {
            session.write_response_body(Some(body.into()), true).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ProxyHttp for Engine {
    type CTX = Carried;

    fn new_ctx(&self) -> Carried {
        Carried::default()
    }

    /// None of Pingora's modules: they cost on every request and we use none.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    /// Called for each request that came with a context: here it is the [`Exchange`], and the
    /// first moment at which the session can be set up for it.
    fn on_connection_reuse(
        &self,
        session: &mut Session,
        carried: &mut Carried,
        exchange: Box<dyn Any + Send + Sync>,
    ) {
        carried.exchange = exchange.downcast::<Exchange>().ok();
        let Some(exchange) = &carried.exchange else {
            return;
        };
        let limits = exchange.limits();
        session.set_read_timeout(Some(limits.body));
        session.set_total_drain_timeout(Some(limits.head));
        // A client that only closed its sending side still wants the answer.
        session.set_abort_on_close(false);
    }

    async fn request_filter(&self, session: &mut Session, carried: &mut Carried) -> Result<bool> {
        let Some(refusal) = carried.exchange.as_ref().and_then(|exchange| exchange.refusal()).cloned() else {
            return Ok(false);
        };
        Self::answer(session, &refusal, carried).await?;
        carried.answer = Some(refusal);
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, carried: &mut Carried) -> Result<Box<HttpPeer>> {
        let Some(exchange) = &mut carried.exchange else {
            return Error::e_explain(ErrorType::InternalError, "a request without exchange");
        };
        match exchange.endpoint().await {
            Ok(endpoint) => peer(&endpoint, exchange),
            Err(refused) => {
                let status = ErrorType::HTTPStatus(refused.0.status);
                carried.answer = Some(refused.0);
                Error::e_explain(status, "no upstream")
            }
        }
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        carried: &mut Carried,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let reason = match error.etype() {
            ErrorType::ConnectRefused => Reason::Refused,
            _ => Reason::Unhealthy,
        };
        tracing::debug!(%error, "no connection to the upstream");
        if let Some(exchange) = &mut carried.exchange {
            exchange.connect_failed(reason, error.etype().as_str());
        }
        // Nothing was sent: always safe. The exchange ends it.
        error.set_retry(true);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        let Some(exchange) = &mut carried.exchange else {
            return Ok(());
        };
        exchange.sending();
        apply_edits(request, exchange)?;
        if matches!(exchange.gate().listener.role, Role::Gateway) {
            forwarded(session, request, exchange)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        if *self.draining.borrow() {
            // Also for what was running already: tell the client that this connection ends.
            session.set_keepalive(None);
        }
        let Some(exchange) = carried.exchange.as_ref().filter(|_| !response.status.is_informational()) else {
            return Ok(());
        };
        let before: Vec<_> = match exchange.passes_through() {
            true => Vec::new(),
            false => response
                .headers
                .get_all(ROUTE_HEADER)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .map(str::to_owned)
                .collect(),
        };
        fit_to_client(session.req_header().version, response);
        response.remove_header(ROUTE_HEADER);
        if let Some(receipt) = exchange.receipt_to_send() {
            // As in Proxy-Status: what is nearer to the origin comes first.
            let line = before.into_iter().chain([receipt.to_string()]).collect::<Vec<_>>().join(", ");
            response.insert_header(HeaderName::from_static(ROUTE_HEADER), line)?;
        }
        Ok(())
    }

    /// Nothing is sent twice, but for one case: an idle connection of the pool that the upstream
    /// had closed, and a request that may be repeated (RFC 9110, section 9.2.2).
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        _: &mut Carried,
        reused: bool,
    ) -> Box<Error> {
        let repeatable =
            session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        if repeatable && session.response_written().is_none() {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        carried: &mut Carried,
    ) -> FailToProxy {
        let unanswered = session.response_written().is_none_or(|head| head.status.is_informational());
        let dead = *error.esource() == ErrorSource::Downstream;
        let answer = carried.answer.take().unwrap_or_else(|| answer_of(error, carried));
        tracing::debug!(%error, status = answer.status, "the exchange failed");
        if !unanswered || (dead && answer.status == 0) {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        session.set_keepalive(None);
        if let Err(error) = Self::answer(session, &answer, carried).await {
            tracing::debug!(%error, "the client went away before its answer");
        }
        FailToProxy { error_code: answer.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, carried: &mut Carried) {
        if let Some(exchange) = &carried.exchange {
            exchange.ended(session.response_written().map_or(0, |head| head.status.as_u16()));
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &Carried, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Carried,
        _: &Error,
        _: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// The answer to an error of the exchange itself; status 0 where there is nobody to answer.
fn answer_of(error: &Error, carried: &Carried) -> Answer {
    let at = carried.exchange.as_ref().and_then(|exchange| exchange.upstream_address());
    let at = at.map_or_else(String::new, |address| format!(" at {address}"));
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => Answer::plain(
            504,
            "http_response_timeout",
            "unhealthy",
            format!("the upstream{at} did not answer in time"),
        ),
        (
            ErrorSource::Upstream,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error | ErrorType::InvalidH2,
        ) => Answer::plain(
            502,
            "http_protocol_error",
            "unhealthy",
            format!("the upstream{at} gave an answer that is not valid HTTP"),
        ),
        (ErrorSource::Upstream, _) => Answer::plain(
            502,
            "connection_terminated",
            "unhealthy",
            format!("the upstream{at} closed the connection before it answered"),
        ),
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
            Answer::plain(408, "http_request_error", "timeout", "the request's body did not arrive in time")
        }
        (
            ErrorSource::Downstream,
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout,
        ) => Answer::plain(0, "http_request_error", "closed", ""),
        (ErrorSource::Downstream, _) => {
            Answer::plain(400, "http_request_error", "malformed", "the request is malformed")
        }
        _ => Answer::plain(500, "proxy_internal_error", "internal", "the proxy failed"),
    }
}

/// Where Pingora connects. Only addresses get here: a name would be resolved on the request path.
fn peer(endpoint: &Endpoint, exchange: &Exchange) -> Result<Box<HttpPeer>> {
    let tls = endpoint.url.scheme == Scheme::Https;
    let sni = if tls { endpoint.url.host.to_string() } else { String::new() };
    let mut peer = match &endpoint.address {
        Address::Tcp(address) => HttpPeer::new(*address, tls, sni),
        Address::Unix(path) => HttpPeer::new_uds(path, tls, sni)?,
    };
    let limits = exchange.limits();
    let options = &mut peer.options;
    options.connection_timeout = Some(limits.connect);
    options.total_connection_timeout = Some(limits.connect * 2);
    options.read_timeout = Some(limits.upstream_read);
    options.write_timeout = Some(limits.upstream_write);
    options.idle_timeout = Some(limits.upstream_idle);
    if endpoint.url.scheme == Scheme::H2c {
        options.set_http_version(2, 2);
        options.max_h2_streams = H2_STREAMS;
    }
    Ok(Box::new(peer))
}

/// Applies the edits. Pingora has already removed what the client nominated in `Connection`; the key
/// is set afresh, so it survives.
fn apply_edits(request: &mut RequestHeader, exchange: &Exchange) -> Result<()> {
    let Some(edits) = exchange.edits() else {
        return Ok(());
    };
    let key_header = exchange.key_header();
    request.remove_header(key_header);
    request.remove_header(HOP_HEADER);
    if exchange.untrusted() {
        request.remove_header(ROUTE_HEADER);
    }
    if !edits.require {
        request.remove_header(REQUIRE_HEADER);
    }
    if let Some(keys) = &edits.key {
        request.insert_header(key_header.to_owned(), keys.as_str())?;
    }
    if let Some(environment) = &edits.hop {
        request.insert_header(HeaderName::from_static(HOP_HEADER), environment.as_str())?;
    }
    match &edits.baggage {
        BaggageEdit::Untouched => {}
        BaggageEdit::Remove => {
            request.remove_header("baggage");
        }
        BaggageEdit::Set(line) => {
            let value = HeaderValue::from_bytes(line)
                .map_err(|_| Error::explain(ErrorType::InvalidHTTPHeader, "baggage"))?;
            request.remove_header("baggage");
            request.insert_header(HeaderName::from_static("baggage"), value)?;
        }
    }
    Ok(())
}

/// What is the upstream connection's own stays there, and the rest is said in the client's version.
fn fit_to_client(client: http::Version, response: &mut ResponseHeader) {
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    // RFC 9110, section 7.6.1: what `Connection` nominates is for one hop. Framing is not negotiable.
    let lines = response.headers.get_all(header::CONNECTION).iter();
    let nominated: Vec<_> = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .filter(|name| !matches!(*name, header::TRANSFER_ENCODING | header::CONTENT_LENGTH))
        .collect();
    for name in &nominated {
        response.remove_header(name);
    }
    response.remove_header("keep-alive");
    response.remove_header("proxy-connection");
    match client {
        // An upstream's HTTP/1.0 is its own affair: this connection speaks 1.1.
        http::Version::HTTP_11 => response.set_version(http::Version::HTTP_11),
        // Chunks mean nothing to an HTTP/1.0 client: the end of the connection ends the body.
        http::Version::HTTP_10 => drop(response.remove_header(&header::TRANSFER_ENCODING)),
        _ => {}
    }
}

/// `X-Forwarded-*` as a gateway adds them; what the untrusted sent in them is replaced.
fn forwarded(session: &Session, request: &mut RequestHeader, exchange: &Exchange) -> Result<()> {
    let trusted = exchange.gate().trust.covers(exchange.client());
    let client = exchange.client().to_string();
    let before =
        request.headers.get("x-forwarded-for").filter(|_| trusted).and_then(|value| value.to_str().ok());
    let line = before.map_or_else(|| client.clone(), |before| format!("{before}, {client}"));
    request.insert_header("x-forwarded-for", line)?;
    if !trusted || !request.headers.contains_key("x-forwarded-proto") {
        request.insert_header("x-forwarded-proto", "http")?;
    }
    if (!trusted || !request.headers.contains_key("x-forwarded-host"))
        && let Some(host) = session.req_header().headers.get(header::HOST)
    {
        request.insert_header("x-forwarded-host", host.clone())?;
    }
    Ok(())
}
