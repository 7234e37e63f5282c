//! The admin listener's connections. They are bounded in number and time: whoever floods it takes nothing from the
//! data plane, and holds nothing for long.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::problem;

/// The most connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// For the head of a request, and for the next one on a connection.
const HEAD: Duration = Duration::from_secs(10);
/// For the rest of a request, and all that is done until its answer begins.
const REQUEST: Duration = Duration::from_secs(30);
/// How long what was sent may stay unread.
const UNREAD: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves a router on a socket until `stopped` turns true.
pub(crate) async fn serve(socket: std::net::TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    let mut http = Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    let service = TowerToHyperService::new(router.layer(from_fn(in_time)));
    let connection = |stream| {
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        // What goes wrong on one is its client's to know.
        async move { drop(connection.await) }
    };
    accept_each(socket, "the admin listener", CONNECTIONS, stopped, connection).await;
}

/// Accepts connections, `most` at a time, until `stopped` turns true; then those that are open end as well.
pub(crate) async fn accept_each<F: Future<Output = ()> + Send + 'static>(
    socket: std::net::TcpListener,
    what: &str,
    most: usize,
    mut stopped: watch::Receiver<bool>,
    connection: impl Fn(TcpStream) -> F,
) {
    let address = socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%address, %error, "{what} cannot accept"),
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // The sender is gone: stopped as well.
            _ = stopped.wait_for(|stopped| *stopped) => return,
            Some(_) = connections.join_next() => {}
            stream = accept(&socket), if connections.len() < most => {
                connections.spawn(connection(stream));
            }
        }
    }
}

/// The next connection. Where there is no descriptor for it, it waits until there is.
async fn accept(socket: &TcpListener) -> TcpStream {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                // Where the kernel knows no such option, it is kept for longer.
                #[cfg(target_os = "linux")]
                let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
                return stream;
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Answers a request, or says that it took too long.
pub(crate) async fn in_time(request: Request, next: Next) -> Response {
    match timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            problem(StatusCode::REQUEST_TIMEOUT, "the request did not arrive, or was not done, in time")
        }
    }
}
