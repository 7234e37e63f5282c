//! A small HTTP/1.1 client: for the command line against an admin listener, and for the demo.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a whole exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends `request` to `address` (`host:port`) over a connection of its own and reads the whole answer.
///
/// # Errors
/// A message that names the address: it does not answer, or not in time.
pub async fn send(address: &str, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        connection.abort();
        Ok::<_, String>(Response::from_parts(head, body))
    };
    match timeout(TIMEOUT, exchange).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(why)) => Err(format!("{address}: {why}")),
        Err(_) => Err(format!("{address}: no answer within {} s", TIMEOUT.as_secs())),
    }
}
