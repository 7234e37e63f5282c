//! Handshakes, and the connections that come of them.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_trait::async_trait;
use pingora_core::protocols::{ALPN, Shutdown, Ssl, UniqueID, UniqueIDType};
use rustls::{HandshakeKind, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::unconstrained;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::Said;
use super::credentials::Credentials;
use super::wire::Wire;
use crate::metrics::{Event, count, count_handshake_failure};
use crate::plane::Gate;
use crate::plane::answer::Answer;
use crate::plane::conn::{Client, Conn, Socket, without_digests};
use crate::plane::deadline::Deadline;
use crate::plane::drain::is_draining;
use crate::plane::serve::{Awaited, UNASKED, Worker, first_byte, refuse, see_off};
use crate::plane::standing::Standing;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client's certificate is of no use.
    ClientCertificate,
    /// The connection ended.
    Closed,
    /// No version, cipher or protocol in common.
    Incompatible,
    /// What the client sent is no TLS.
    Malformed,
    /// The client showed no certificate.
    NoClientCertificate,
    /// The client sent a request in the clear.
    PlainHttp,
    /// The client said that it goes no further: it does not trust our certificate, for example.
    RefusedByClient,
    /// It took too long.
    Timeout,
}

impl HandshakeFailure {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ClientCertificate,
        Self::Closed,
        Self::Incompatible,
        Self::Malformed,
        Self::NoClientCertificate,
        Self::PlainHttp,
        Self::RefusedByClient,
        Self::Timeout,
    ];

    /// The word for it in metrics and the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientCertificate => "client-certificate",
            Self::Closed => "closed",
            Self::Incompatible => "incompatible",
            Self::Malformed => "malformed",
            Self::NoClientCertificate => "no-client-certificate",
            Self::PlainHttp => "plain-http",
            Self::RefusedByClient => "refused-by-client",
            Self::Timeout => "timeout",
        }
    }

    fn of(error: &io::Error) -> Self {
        use rustls::Error;
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            None => Self::Closed,
            Some(Error::NoCertificatesPresented) => Self::NoClientCertificate,
            Some(Error::InvalidCertificate(_)) => Self::ClientCertificate,
            Some(Error::AlertReceived(_)) => Self::RefusedByClient,
            // No certificate whose key the client understands is a general error.
            Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol | Error::General(_)) => {
                Self::Incompatible
            }
            Some(_) => Self::Malformed,
        }
    }
}

/// Makes the handshake on an accepted connection, within the deadline for a head. Says who the client is;
/// `None` where it failed, and the connection is over.
pub async fn accept(
    mut conn: Conn<Socket>,
    address: IpAddr,
    tls: Arc<Credentials>,
    gate: &Gate,
    worker: &Worker,
) -> Option<(Conn<Tls>, Arc<Standing>)> {
    let limits = &worker.plane.limits;
    let until = Instant::now() + limits.head;
    let Awaited::Begun = first_byte(&mut conn, false, until, Some(gate.place())).await else {
        // Somebody who only looks whether the port is open.
        return None;
    };
    // A handshake begins with a byte that is no letter; a request begins with a method.
    if conn.ahead().filled().first().is_some_and(u8::is_ascii_uppercase) {
        failed(HandshakeFailure::PlainHttp, address, &"a request in the clear");
        // Boxed, as what comes after a failure: a handshake that goes on does not pay for it.
        Box::pin(refuse(conn, &plain_http(), gate, &Standing::of_peer(address, &gate.trust), worker)).await;
        return None;
    }
    let (io, ahead) = conn.into_parts();
    match handshake(Wire { io, ahead }, &tls, until).await {
        Ok(stream) => {
            let (_, session) = stream.get_ref();
            count(match session.handshake_kind() {
                Some(HandshakeKind::Resumed) => Event::HandshakeResumed,
                _ => Event::Handshake,
            });
            let peer = Standing::over_tls(address, &gate.trust, identity(session));
            Some((Conn::new(Tls(stream), limits.write_pace()), peer))
        }
        Err(Failed { failure, why, wire }) => {
            failed(failure, address, &why);
            if let Some(wire) = wire {
                // Closed with something unread, it would be reset, and the alert could be lost.
                Box::pin(see_off(&mut Conn::new(wire.io, limits.write_pace()), worker)).await;
            }
            None
        }
    }
}

fn failed(failure: HandshakeFailure, client: IpAddr, why: &dyn std::fmt::Display) {
    count_handshake_failure(failure);
    tracing::debug!(%client, reason = failure.as_str(), %why, "the TLS handshake failed");
}

fn plain_http() -> Answer {
    let answer = Answer::plain(400, "http_request_error", "malformed", "this port speaks TLS");
    Answer { hint: Some("use https:// instead of http://".to_owned()), ..answer }
}

/// How a handshake failed, and the transport where the client was told.
struct Failed {
    failure: HandshakeFailure,
    why: String,
    wire: Option<Wire<Socket>>,
}

async fn handshake(
    wire: Wire<Socket>,
    tls: &Credentials,
    until: Instant,
) -> Result<Box<TlsStream<Wire<Socket>>>, Failed> {
    let mut accepting = TlsAcceptor::from(tls.config()).accept(wire).into_fallible();
    let deadline = Deadline::default();
    deadline.arm(until);
    let mut told = false;
    let made = poll_fn(|cx| {
        if let Poll::Ready(made) = Pin::new(&mut accepting).poll(cx) {
            return Poll::Ready(Some(made));
        }
        if !told && is_draining() {
            told = true;
            deadline.arm(until.min(Instant::now() + UNASKED));
        }
        deadline.poll(cx).map(|()| None)
    });
    match made.await {
        Some(Ok(stream)) => Ok(Box::new(stream)),
        Some(Err((error, wire))) => {
            let failure = HandshakeFailure::of(&error);
            let told = error.kind() == io::ErrorKind::InvalidData;
            Err(Failed { failure, why: error.to_string(), wire: told.then_some(wire) })
        }
        None => {
            Err(Failed { failure: HandshakeFailure::Timeout, why: "it took too long".to_owned(), wire: None })
        }
    }
}

/// Who the client is, by the certificate that was verified, if it showed one.
fn identity(session: &ServerConnection) -> Option<Box<str>> {
    Said::read(session.peer_certificates()?.first()?).ok()?.identity()
}

/// An encrypted connection as Pingora's [`IO`](pingora_core::protocols::IO). However it ends, the client is
/// told that this is the end.
#[derive(Debug)]
pub struct Tls(Box<TlsStream<Wire<Socket>>>);

impl Drop for Tls {
    fn drop(&mut self) {
        // Once, without waiting: who reads nothing misses nothing. A task that was busy must not be told to
        // wait for its next turn, which does not come.
        let closed = unconstrained(poll_fn(|cx| Pin::new(&mut *self.0).poll_shutdown(cx)));
        let _ = pin!(closed).poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Tls {
    async fn shutdown(&mut self) {
        // The peer may be gone already; then there is nothing left to say.
        let _ = AsyncWriteExt::shutdown(&mut *self.0).await;
    }
}

impl UniqueID for Tls {
    fn id(&self) -> UniqueIDType {
        self.0.get_ref().0.io.id()
    }
}

impl Client for Tls {}

impl Ssl for Tls {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match self.0.get_ref().1.alpn_protocol()? {
            b"h2" => Some(ALPN::H2),
            _ => Some(ALPN::H1),
        }
    }
}

without_digests!(Tls);
