//! The Pingora engine: `HttpProxy`, lent one request at a time.
//!
//! It can carry every HTTP exchange and is the reference that other engines are compared with. It
//! decides nothing: an [`Exchange`] comes with the request and says where to connect and what to
//! edit.

use std::any::Any;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::header::{self, HeaderName, HeaderValue};
use overlane_config::carrier::FieldLines;
use overlane_config::route::{ROUTE_HEADER, Reason};
use overlane_config::url::Scheme;
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::v1::common::is_upgrade_req;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};

use super::Limits;
use super::answer::{Answer, Failure, Form};
use super::drain::is_leaving;
use super::exchange::Exchange;
use crate::h1::{Name, request};
use crate::upstream::{Address, Endpoint};

/// How often one request may be tried. The time that a hold lasts is the real bound; Pingora wants a number.
const ATTEMPTS: usize = 10_000;
/// Unused upstream connections that a worker keeps.
const POOL: usize = 1024;
/// Streams on one HTTP/2 upstream connection.
const H2_STREAMS: usize = 100;

/// A request that is lent to this engine: what was decided, and its head.
pub struct Lent {
    /// The exchange.
    pub exchange: Exchange,
    /// The head, in origin form.
    pub head: Vec<u8>,
}

/// What Pingora carries along with a request.
#[derive(Default)]
pub struct Carried {
    lent: Option<Box<Lent>>,
    /// The answer of the proxy's own, once it is known.
    answer: Option<Answer>,
    /// Its status, once it was given: what a client of gRPC reads as one of HTTP is always 200.
    own: Option<u16>,
    /// Whether its upstream's address was removed while it was connected to, before anything was sent.
    moved: bool,
}

impl Carried {
    fn exchange(&self) -> Option<&Exchange> {
        self.lent.as_ref().map(|lent| &lent.exchange)
    }
}

/// The engine of one worker.
pub struct Engine;

/// Makes a worker's engine.
#[must_use]
pub fn engine() -> Arc<HttpProxy<Engine>> {
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: POOL,
        max_retries: ATTEMPTS,
        ..ServerConf::default()
    };
    Arc::new(http_proxy(&Arc::new(conf), Engine))
}

impl Engine {
    async fn answer(session: &mut Session, answer: &Answer, carried: &Carried) -> Result<()> {
        let read = |lent: &Lent| request::parse(&lent.head, Form::of).ok().flatten();
        let form = carried.lent.as_deref().and_then(read).unwrap_or_default();
        let (body, content_type) = answer.body(form);
        let mut head = answer.head(form, content_type, body.len())?;
        let own = || carried.exchange().and_then(Exchange::own_receipts);
        if let Some(receipts) = answer.receipts().map(Into::into).or_else(own) {
            head.insert_header(HeaderName::from_static(ROUTE_HEADER), &*receipts)?;
        }
        let mut lines = Vec::new();
        carried.exchange().into_iter().for_each(|exchange| exchange.add_answer_lines(&mut lines));
        append_lines(&mut head, &lines)?;
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

    /// Called for each request that came with a context: here it is [`Lent`], and the first moment at
    /// which the session can be set up for it.
    fn on_connection_reuse(
        &self,
        session: &mut Session,
        carried: &mut Carried,
        lent: Box<dyn Any + Send + Sync>,
    ) {
        carried.lent = lent.downcast::<Lent>().ok();
        let Some(exchange) = carried.exchange() else {
            return;
        };
        let limits = exchange.limits();
        session.set_read_timeout(Some(limits.body));
        session.set_total_drain_timeout(Some(limits.head));
        // A client that only closed its sending side still wants the answer.
        session.set_abort_on_close(false);
    }

    async fn request_filter(&self, session: &mut Session, carried: &mut Carried) -> Result<bool> {
        if session.req_header().version == http::Version::HTTP_10 {
            // RFC 9110, section 15.2: an HTTP/1.0 client does not know interim responses.
            session.set_ignore_info_resp(true);
        }
        let Some(refusal) = carried.exchange().and_then(Exchange::refusal).cloned() else {
            return Ok(false);
        };
        Self::answer(session, &refusal, carried).await?;
        carried.own = Some(refusal.status);
        carried.answer = Some(refusal);
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, carried: &mut Carried) -> Result<Box<HttpPeer>> {
        let Some(lent) = &mut carried.lent else {
            return Error::e_explain(ErrorType::InternalError, "a request without exchange");
        };
        match lent.exchange.endpoint(&lent.head).await {
            Ok(endpoint) => {
                let mut peer = peer(&endpoint, lent.exchange.limits())?;
                if let Some(until) = lent.exchange.must_end() {
                    let left = until.saturating_duration_since(Instant::now());
                    peer.options.read_timeout = peer.options.read_timeout.map(|limit| limit.min(left));
                }
                Ok(Box::new(peer))
            }
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
        tracing::debug!(%error, "no connection to the upstream");
        if let Some(lent) = &mut carried.lent {
            let (reason, why) = connect_failure(&error);
            lent.exchange.connect_failed(reason, why);
        }
        // Nothing was sent: always safe. The exchange ends it.
        error.set_retry(true);
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: RawFd,
        _: Option<&Digest>,
        carried: &mut Carried,
    ) -> Result<()> {
        let Some(lent) = carried.lent.as_mut().filter(|_| !reused) else {
            return Ok(());
        };
        lent.exchange.connected();
        if lent.exchange.still_leads_there(&lent.head) {
            return Ok(());
        }
        carried.moved = !lent.exchange.was_sent();
        Err(Error::explain(ErrorType::ConnectionClosed, "the address was removed").into_up())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        let Some(lent) = &mut carried.lent else {
            return Ok(());
        };
        lent.exchange.sending();
        apply_edits(request, lent)?;
        lent.exchange.pauses();
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        if let Some(lent) = carried.lent.as_mut().filter(|_| is_final(response)) {
            lent.exchange.answered();
        }
        match untrusted(session.req_header(), response) {
            Some(why) => Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()),
            None => Ok(()),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        if is_leaving() {
            // Also for what was running already: tell the client that this connection ends.
            session.set_keepalive(None);
        }
        let Some(exchange) = carried.exchange() else {
            return Ok(());
        };
        if !is_final(response) {
            // The final one has them, and what they could frame (RFC 9110, section 8.6).
            response.remove_header(ROUTE_HEADER);
            response.remove_header(&header::CONTENT_LENGTH);
            response.remove_header(&header::TRANSFER_ENCODING);
            return Ok(());
        }
        fit_to_client(session.req_header().version, response);
        let mut lines = Vec::new();
        let before = response.headers.get_all(ROUTE_HEADER);
        let without_body = matches!(response.status.as_u16(), 204 | 304)
            || session.req_header().method == http::Method::HEAD;
        let streams = !without_body && !response.headers.contains_key(header::CONTENT_LENGTH);
        let before = before.iter().map(HeaderValue::as_bytes);
        if let Err(unmet) = exchange.add_receipts(before, streams, &mut lines) {
            let status = ErrorType::HTTPStatus(unmet.status);
            carried.answer = Some(*unmet);
            return Error::e_explain(status, "the requirement is not met");
        }
        response.remove_header(ROUTE_HEADER);
        exchange.edit_response(response.status.as_u16(), &Headers(&response.headers), &mut lines);
        let replaced =
            response.headers.keys().filter(|name| exchange.replaces_in_response(Name::of(name.as_str())));
        for name in replaced.cloned().collect::<Vec<_>>() {
            response.remove_header(&name);
        }
        append_lines(response, &lines)?;
        if let Some(lent) = &mut carried.lent {
            // The engine tells of no moment at which it waits.
            lent.exchange.pauses();
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
        carried: &mut Carried,
        reused: bool,
    ) -> Box<Error> {
        if std::mem::take(&mut carried.moved) {
            error.set_retry(true);
            return error;
        }
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
        let overdue =
            carried.exchange().and_then(Exchange::must_end).is_some_and(|end| end <= Instant::now());
        let failure = match failure_of(error) {
            Failure::UpstreamSilent if overdue => Failure::Overdue,
            other => other,
        };
        if let (None, Some(lent)) = (&carried.answer, &mut carried.lent) {
            lent.exchange.failed(failure, !unanswered);
        }
        let answer = carried
            .answer
            .take()
            .or_else(|| failure.answer(carried.exchange().and_then(Exchange::upstream_address)));
        tracing::debug!(%error, "the exchange failed");
        let Some(answer) = answer.filter(|_| unanswered) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        session.set_keepalive(None);
        carried.own = Some(answer.status);
        if let Err(error) = Self::answer(session, &answer, carried).await {
            tracing::debug!(%error, "the client went away before its answer");
        } else if let Err(error) = session.as_downstream_mut().drain_request_body().await {
            // Closed with something unread, it would be reset, and the client could lose what was answered.
            tracing::debug!(%error, "the client did not send all of what it announced");
        }
        FailToProxy { error_code: answer.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, carried: &mut Carried) {
        let own = carried.own;
        if let Some(Lent { exchange, .. }) = carried.lent.as_deref_mut() {
            exchange.body_sent(session.body_bytes_sent() as u64);
            let written = session.response_written().map(|head| head.status.as_u16());
            let status = written.map_or(0, |written| own.unwrap_or(written));
            exchange.ended(status, Instant::now());
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

/// What an error of the exchange means.
fn failure_of(error: &Error) -> Failure {
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
            Failure::UpstreamSilent
        }
        (
            ErrorSource::Upstream,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error | ErrorType::InvalidH2,
        ) => Failure::UpstreamMalformed,
        (ErrorSource::Upstream, _) => Failure::UpstreamClosed,
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => Failure::BodySlow,
        (ErrorSource::Downstream, ErrorType::ReadError) if stopped_as(error, io::ErrorKind::InvalidData) => {
            Failure::BodyMalformed
        }
        (ErrorSource::Downstream, ErrorType::ReadError) if stopped_as(error, io::ErrorKind::FileTooLarge) => {
            Failure::BodyTooLarge
        }
        (ErrorSource::Downstream, ErrorType::ReadError) if stopped_as(error, io::ErrorKind::TimedOut) => {
            Failure::BodySlow
        }
        (
            ErrorSource::Downstream,
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout,
        ) => Failure::ClientGone,
        (ErrorSource::Downstream, _) => Failure::BodyMalformed,
        _ => Failure::Internal,
    }
}

/// Whether it was the connection that refused to read on, or the client that was too slow ([`super::conn`]).
fn stopped_as(error: &Error, kind: io::ErrorKind) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == kind)
}

/// Why no connection could be made, as a reason and in words.
pub fn connect_failure(error: &Error) -> (Reason, &'static str) {
    match error.etype() {
        ErrorType::ConnectRefused => (Reason::Refused, "connection refused"),
        ErrorType::ConnectTimedout => (Reason::Unhealthy, "no connection in time"),
        ErrorType::ConnectNoRoute => (Reason::Unhealthy, "no route to it"),
        // With rustls, Pingora has no error of its own for it: only the text tells.
        ErrorType::TLSHandshakeFailure
            if error
                .context
                .as_ref()
                .is_some_and(|why| why.as_str().contains("invalid peer certificate")) =>
        {
            (Reason::Unhealthy, "its certificate is not valid")
        }
        ErrorType::TLSHandshakeFailure | ErrorType::TLSHandshakeTimedout => {
            (Reason::Unhealthy, "the TLS handshake failed")
        }
        ErrorType::InvalidCert => (Reason::Unhealthy, "its certificate is not valid"),
        other => (Reason::Unhealthy, other.as_str()),
    }
}

/// Where Pingora connects. Only addresses get here: a name would be resolved on the request path.
///
/// # Errors
/// A unix socket's path that is none.
pub fn peer(endpoint: &Endpoint, limits: &Limits) -> Result<HttpPeer> {
    let tls = endpoint.url.scheme == Scheme::Https;
    let sni = if tls { endpoint.url.host.to_string() } else { String::new() };
    let mut peer = match &endpoint.address {
        Address::Tcp(address) => HttpPeer::new(*address, tls, sni),
        Address::Unix(path) => HttpPeer::new_uds(path, tls, sni)?,
    };
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
    Ok(peer)
}

/// Applies the edits of the head, the same that the express engine applies.
fn apply_edits(request: &mut RequestHeader, lent: &Lent) -> Result<()> {
    let removed = request.headers.keys().filter(|name| lent.exchange.removes(Name::of(name.as_str())));
    for name in removed.cloned().collect::<Vec<_>>() {
        request.remove_header(&name);
    }
    let mut lines = Vec::new();
    // It was read before: it is right and complete.
    let _ = request::parse(&lent.head, |head| lent.exchange.add_lines(head, &mut lines));
    for (name, value) in field_lines(&lines) {
        let value = HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "edits")?;
        request.append_header(name.to_owned(), value)?;
    }
    if !request.headers.contains_key(header::HOST) {
        // A client of HTTP/1.0 need not say it; in HTTP/1.1, as it goes on, there must be one.
        request.insert_header(header::HOST, lent.exchange.upstream_authority())?;
    }
    Ok(())
}

/// The fields of a head that Pingora has read.
struct Headers<'h>(&'h http::HeaderMap);

impl FieldLines for Headers<'_> {
    fn lines<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f [u8]> + Clone {
        self.0.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().into_iter()
    }
}

fn append_lines(response: &mut ResponseHeader, lines: &[u8]) -> Result<()> {
    for (name, value) in field_lines(lines) {
        let value = HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "answer")?;
        response.append_header(name.to_owned(), value)?;
    }
    Ok(())
}

/// Names and values of field lines.
fn field_lines(lines: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
    })
}

/// Whether no other head follows it in HTTP.
fn is_final(response: &ResponseHeader) -> bool {
    !response.status.is_informational() || response.status == http::StatusCode::SWITCHING_PROTOCOLS
}

/// Why a response is not handed on that Pingora would hand on.
fn untrusted(request: &RequestHeader, response: &ResponseHeader) -> Option<&'static str> {
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS && !is_upgrade_req(request) {
        return Some("a switch of protocols that nobody asked for");
    }
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(_), _) if response.version == http::Version::HTTP_10 => Some("Transfer-Encoding in HTTP/1.0"),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some("the only transfer coding is `chunked`"),
    }
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
