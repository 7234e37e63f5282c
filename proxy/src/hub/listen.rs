//! The hub's connections: HTTP/2 and HTTP/1.1, in the clear or in TLS as the process' certificates have it. They are
//! bounded in number, and a peer that is gone is noticed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::admin::{accept_each, in_time};
use crate::plane::h2::PREFACE;
use crate::tls::credentials::Credentials;

/// The most connections at a time; more wait in the kernel's queue. Each proxy has one.
const CONNECTIONS: usize = 4096;
/// The most requests at a time on each.
pub(crate) const STREAMS: u32 = 256;
/// How much of each may be under way that nobody has read: with it, a tunnel's connection is fast over a long way. All of
/// them together may have as much, so that one that is not read holds up no other.
pub(crate) const STREAM_WINDOW: u32 = 512 * 1024;
/// For a handshake, and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// A connection on which nothing is heard is asked whether it is there, and closed where nothing comes back.
const PING: Duration = Duration::from_secs(15);
/// The largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// Serves a router on a socket until `stopped` turns true.
pub(crate) async fn serve(
    socket: std::net::TcpListener,
    tls: Option<Arc<Credentials>>,
    router: Router,
    stopped: watch::Receiver<bool>,
) {
    let router = router.layer(from_fn(in_time));
    let connection = |stream| connection(stream, tls.clone(), router.clone());
    accept_each(socket, "the hub", CONNECTIONS, stopped, connection).await;
}

/// Between two looks at whether the rest of it is there.
const LOOK: Duration = Duration::from_millis(10);

/// Whether a client in the clear begins with HTTP/2. Nothing is taken from what it sent.
async fn begins_with_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut first).await?;
        if read == 0 || !PREFACE.starts_with(&first[..read]) {
            return Ok(false);
        }
        if read == PREFACE.len() {
            return Ok(true);
        }
        sleep(LOOK).await;
    }
}

/// One connection. What goes wrong on it is its client's to know. Which protocol it speaks is found out first, since who
/// says nothing is to be cut: the protocols have their own deadlines only once they have begun.
async fn connection(stream: TcpStream, tls: Option<Arc<Credentials>>, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let of = |http2: bool| if http2 { http.clone().http2_only() } else { http.clone().http1_only() };
    match tls {
        None => {
            if let Ok(Ok(http2)) = timeout(HEAD, begins_with_http2(&stream)).await {
                drop(of(http2).serve_connection(TokioIo::new(stream), service).await);
            }
        }
        Some(tls) => {
            let handshake = TlsAcceptor::from(tls.config()).accept(stream);
            if let Ok(Ok(stream)) = timeout(HEAD, handshake).await {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                drop(of(http2).serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}
