//! A small HTTP/1.1 client: for the command line against listeners, and for the demo.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long a whole exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read whole, in bytes.
const LONGEST: usize = 64 * 1024 * 1024;

/// Sends `request` to `address` (`host:port`) over a connection of its own and reads the whole answer.
///
/// # Errors
/// A message that names the address: it does not answer, or not in time.
pub async fn send(address: &str, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
    in_time(address, async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        exchange(stream, request).await
    })
    .await
}

/// The same over TLS; the certificate must be one of `host` that this machine trusts.
///
/// # Errors
/// A message that names the address: it does not answer, not in time, or is not who it should be.
pub async fn send_tls(
    address: &str,
    host: &str,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    send_by(&TransportConnector::new(None), address, host, request).await
}

/// The same by a connector, which read what this machine trusts when it was made.
///
/// # Errors
/// See [`send_tls`].
pub async fn send_by(
    connector: &TransportConnector,
    address: &str,
    host: &str,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    in_time(address, async { exchange(connect_tls(connector, address, host).await?, request).await }).await
}

/// Sends `request` to `address`, and returns as soon as the answer begins; its body is read for as long as it goes on.
///
/// # Errors
/// A message that names the address: it does not answer, or not in time.
pub async fn open(address: &str, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
    in_time(address, async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| error.to_string())
    })
    .await
}

async fn connect_tls(connector: &TransportConnector, address: &str, host: &str) -> Result<Stream, String> {
    let mut addresses: Vec<_> = lookup_host(address).await.map_err(|error| error.to_string())?.collect();
    // A name such as `localhost` often has an IPv6 address on which nobody listens.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut failure = "it has no address".to_owned();
    for address in addresses {
        let peer = HttpPeer::new(address, true, host.to_owned());
        match connector.new_stream(&peer).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.to_string(),
        }
    }
    Err(failure)
}

async fn in_time<T>(
    address: &str,
    exchange: impl Future<Output = Result<Response<T>, String>>,
) -> Result<Response<T>, String> {
    match timeout(TIMEOUT, exchange).await {
        Ok(answer) => answer.map_err(|why| format!("{address}: {why}")),
        Err(_) => Err(format!("{address}: no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LONGEST).collect().await.map_err(|error| error.to_string())?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}
