//! An upstream that does as the path says, in either protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::client::Speaks;
use super::wire::{self, Head, Io};

/// What an upstream saw.
#[derive(Default)]
pub(super) struct Seen {
    /// The client of a request that hangs is gone.
    pub(super) cancelled: Notify,
    /// Streams that arrived.
    pub(super) streams: AtomicUsize,
}

/// An upstream that says that it is `name`.
pub(super) async fn start(speaks: Speaks, name: &'static str) -> (SocketAddr, Arc<Seen>) {
    start_after(speaks, name, false).await
}

/// The same, whose first connection goes away unused.
pub(super) async fn start_after(
    speaks: Speaks,
    name: &'static str,
    mut goes_away: bool,
) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
    let shared = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let seen = shared.clone();
            if std::mem::take(&mut goes_away) {
                tokio::spawn(go_away(stream));
                continue;
            }
            tokio::spawn(async move {
                let io: Io = match speaks.protocol() {
                    // Who does not trust it goes away.
                    Some(protocol) => match wire::acceptor(protocol).accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                    None => Box::new(stream),
                };
                if speaks.is_http2() {
                    serve_http2(io, name, seen).await;
                } else {
                    serve_http1(io, name, seen).await;
                }
            });
        }
    });
    (address, seen)
}

fn trailers(length: usize) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-length", HeaderValue::from(length));
    trailers
}

/// A connection of HTTP/2 whose server goes away when it has read a request, and looks at none.
pub(super) async fn go_away(mut stream: TcpStream) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // No stream was looked at, and no error.
    const GO_AWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.write_all(&SETTINGS).await.unwrap();
    let mut read = Vec::new();
    // A frame of headers for the first stream.
    while !read.windows(6).any(|frame| frame[0] == 1 && frame[2..] == [0, 0, 0, 1]) {
        stream.read_buf(&mut read).await.unwrap();
    }
    stream.write_all(&GO_AWAY).await.unwrap();
    while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
}

async fn serve_http2(stream: Io, name: &'static str, seen: Arc<Seen>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let number = seen.streams.fetch_add(1, SeqCst);
        tokio::spawn(answer_http2(request, respond, name, seen.clone(), number));
    }
}

async fn answer_http2(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &'static str,
    seen: Arc<Seen>,
    number: usize,
) {
    let (head, mut body) = request.into_parts();
    let mut response = Response::new(());
    let key = head.headers.get("x-overlay-id").cloned();
    response.headers_mut().insert("x-who", HeaderValue::from_static(name));
    response.headers_mut().insert("x-key", key.unwrap_or(HeaderValue::from_static("none")));
    match head.uri.path() {
        "/hints" => {
            let mut hints = Response::new(());
            *hints.status_mut() = StatusCode::EARLY_HINTS;
            hints.headers_mut().insert("link", HeaderValue::from_static("</a>; rel=preload"));
            respond.send_informational(hints).unwrap();
            respond.send_response(response, false).unwrap().send_data("ok".into(), true).unwrap();
        }
        "/half" => {
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data("hello".into(), false).unwrap();
            // It must not overtake what was said.
            while next(&mut body).await.is_some() {}
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        "/hang" => {
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data("x".into(), false).unwrap();
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            seen.cancelled.notify_one();
        }
        "/refuse" if number < 2 => respond.send_reset(Reason::REFUSED_STREAM),
        // Before it answers, all of the request is there.
        path if path.starts_with("/grpc") => {
            let mut length = 0;
            while let Some(piece) = next(&mut body).await {
                length += piece.len();
            }
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let status = status(path).parse().unwrap();
            if is_only_trailers(path) {
                response.headers_mut().insert("grpc-status", status);
                respond.send_response(response, true).unwrap();
                return;
            }
            let mut stream = respond.send_response(response, false).unwrap();
            let mut trailers = trailers(length);
            trailers.insert("grpc-status", status);
            stream.send_trailers(trailers).unwrap();
        }
        "/silent" => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            seen.cancelled.notify_one();
        }
        _ => echo(&mut body, respond.send_response(response, false).unwrap()).await,
    }
}

/// What a call of gRPC comes to: `/grpc` is 0, `/grpc/7` is 7.
fn status(path: &str) -> &str {
    path.trim_start_matches("/grpc")
        .trim_matches('/')
        .split('/')
        .next()
        .filter(|status| !status.is_empty())
        .unwrap_or("0")
}

/// Whether that is said in a head that ends the answer: `/grpc/7/only`.
fn is_only_trailers(path: &str) -> bool {
    path.ends_with("/only")
}

async fn next(body: &mut RecvStream) -> Option<Bytes> {
    let piece = body.data().await?.ok()?;
    body.flow_control().release_capacity(piece.len()).unwrap();
    Some(piece)
}

async fn echo(body: &mut RecvStream, mut stream: SendStream<Bytes>) {
    let mut length = 0;
    while let Some(piece) = next(body).await {
        length += piece.len();
        wire::send(&mut stream, piece).await;
    }
    // The client may be gone.
    let _ = stream.send_trailers(trailers(length));
}

async fn serve_http1(stream: Io, name: &'static str, seen: Arc<Seen>) {
    let mut io = BufReader::new(stream);
    while let Some(head) = Head::read(&mut io).await {
        seen.streams.fetch_add(1, SeqCst);
        if answer_http1(&mut io, &head, name, &seen).await.is_none() {
            let _ = io.shutdown().await;
            return;
        }
        let _ = io.flush().await;
    }
}

async fn answer_http1(io: &mut BufReader<Io>, head: &Head, name: &str, seen: &Seen) -> Option<()> {
    let key = head.field("x-overlay-id").unwrap_or("none");
    let ok = format!("HTTP/1.1 200 OK\r\nx-who: {name}\r\nx-key: {key}\r\n");
    match head.path() {
        "/hints" => {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";
            // What is left of it would be the next request.
            let mut body = head.body();
            while body.next(io).await.ok()?.is_some() {}
            io.write_all(format!("{hints}{ok}content-length: 2\r\n\r\nok").as_bytes()).await.ok()
        }
        "/half" => {
            io.write_all(format!("{ok}content-length: 100\r\n\r\nhello").as_bytes()).await.ok()?;
            io.flush().await.ok()?;
            let mut body = head.body();
            while body.next(io).await.ok()?.is_some() {}
            None
        }
        "/hang" | "/silent" => {
            if head.path() == "/hang" {
                io.write_all(format!("{ok}content-length: 100\r\n\r\nx").as_bytes()).await.ok()?;
                io.flush().await.ok()?;
            }
            while matches!(io.read(&mut [0; 64]).await, Ok(1..)) {}
            seen.cancelled.notify_one();
            None
        }
        path if path.starts_with("/grpc") => {
            let mut body = head.body();
            while body.next(io).await.ok()?.is_some() {}
            let (call, status) = ("content-type: application/grpc\r\n", status(path));
            let answer = match is_only_trailers(path) {
                true => format!("{ok}{call}grpc-status: {status}\r\ncontent-length: 0\r\n\r\n"),
                false => format!(
                    "{ok}{call}transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\ngrpc-status: {status}\r\n\r\n"
                ),
            };
            io.write_all(answer.as_bytes()).await.ok()
        }
        _ => {
            let head_end = "transfer-encoding: chunked\r\ntrailer: x-length\r\n\r\n";
            io.write_all(format!("{ok}{head_end}").as_bytes()).await.ok()?;
            io.flush().await.ok()?;
            let (mut body, mut length) = (head.body(), 0);
            while let Some(piece) = body.next(io).await.ok()? {
                length += piece.len();
                io.write_all(&wire::chunk(&piece)).await.ok()?;
                io.flush().await.ok()?;
            }
            io.write_all(format!("0\r\nx-length: {length}\r\n\r\n").as_bytes()).await.ok()
        }
    }
}
