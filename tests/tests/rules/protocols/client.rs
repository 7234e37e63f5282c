//! A client of either protocol, over one connection.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::io::{AsyncWriteExt, BufReader};

use super::wire::{self, Body, Head, Io};

/// What a client may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// HTTP/1.1 in TLS.
    Https1,
    /// HTTP/2 in TLS.
    Https2,
}

impl Speaks {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Https1, Self::Https2];

    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Https2)
    }

    /// What is asked for in TLS, where that is spoken.
    pub(super) fn protocol(self) -> Option<&'static str> {
        match self {
            Self::Http1 | Self::Http2 => None,
            Self::Https1 => Some("http/1.1"),
            Self::Https2 => Some("h2"),
        }
    }

    /// The scheme of an upstream's url.
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::Http2 => "h2c",
            Self::Https1 | Self::Https2 => "https",
        }
    }
}

/// A request whose head was sent.
pub(super) enum Asked {
    Http1(BufReader<Io>),
    Http2(Box<Call>),
}

pub(super) struct Call {
    sending: Option<SendStream<Bytes>>,
    coming: ResponseFuture,
}

/// An answer whose head arrived.
pub(super) struct Answer {
    pub(super) interim: Vec<(u16, String)>,
    pub(super) status: u16,
    pub(super) receipt: String,
    pub(super) who: String,
    pub(super) key: String,
    fields: HeaderMap,
    rest: Rest,
}

enum Rest {
    Http1(BufReader<Io>, Body),
    Http2(RecvStream, Option<SendStream<Bytes>>, HeaderMap),
}

/// How an answer ended: its body, and a trailer; `None` where it was cut.
pub(super) type End = Option<(Vec<u8>, Option<String>)>;

impl Speaks {
    /// Asks for a path of `web`, with fields as lines of HTTP/1.1.
    pub(super) async fn ask(self, address: SocketAddr, path: &str, fields: &str) -> Asked {
        let io = wire::connect(address, self.protocol()).await;
        match self.is_http2() {
            false => {
                let mut io = BufReader::new(io);
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n{fields}\r\n"
                );
                io.write_all(head.as_bytes()).await.unwrap();
                io.flush().await.unwrap();
                Asked::Http1(io)
            }
            true => {
                let (sender, connection) = h2::client::handshake(io).await.unwrap();
                tokio::spawn(connection);
                let mut sender = sender.ready().await.unwrap();
                let scheme = if self.protocol().is_some() { "https" } else { "http" };
                let mut request = Request::post(format!("{scheme}://web{path}")).header("te", "trailers");
                for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
                    request = request.header(name, value);
                }
                let (coming, sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
                Asked::Http2(Box::new(Call { sending: Some(sending), coming }))
            }
        }
    }
}

impl Asked {
    /// Sends a piece of the body.
    pub(super) async fn send(&mut self, piece: &[u8]) {
        match self {
            Self::Http1(io) => say(io, &wire::chunk(piece)).await,
            Self::Http2(call) => {
                wire::send(call.sending.as_mut().unwrap(), Bytes::copy_from_slice(piece)).await;
            }
        }
    }

    /// Ends the body.
    pub(super) async fn finish(&mut self) {
        match self {
            Self::Http1(io) => say(io, b"0\r\n\r\n").await,
            Self::Http2(call) => {
                // The upstream may have refused it already.
                let _ = call.sending.as_mut().unwrap().send_data(Bytes::new(), true);
            }
        }
    }

    /// Waits for the answer's head.
    pub(super) async fn answer(self) -> Answer {
        match self {
            Self::Http1(io) => answer_http1(io).await,
            Self::Http2(call) => answer_http2(*call).await,
        }
    }

    /// Goes away.
    pub(super) fn cancel(self) {
        if let Self::Http2(mut call) = self {
            call.sending.as_mut().unwrap().send_reset(Reason::CANCEL);
        }
    }
}

async fn say(io: &mut BufReader<Io>, bytes: &[u8]) {
    io.write_all(bytes).await.unwrap();
    io.flush().await.unwrap();
}

async fn answer_http1(mut io: BufReader<Io>) -> Answer {
    let mut interim = Vec::new();
    let head = loop {
        let head = Head::read(&mut io).await.unwrap();
        match head.status() {
            100..200 => {
                interim.push((head.status(), head.field("link").unwrap_or_default().to_owned()));
            }
            _ => break head,
        }
    };
    let mut fields = HeaderMap::new();
    for (name, value) in head.0.iter().skip(1).filter_map(|line| line.split_once(": ")) {
        let name: http::HeaderName = name.parse().unwrap();
        fields.append(name, value.parse().unwrap());
    }
    let body = head.body();
    Answer::new(interim, head.status(), fields, Rest::Http1(io, body))
}

async fn answer_http2(mut call: Call) -> Answer {
    let mut interim = Vec::new();
    let mut coming = call.coming;
    let response = loop {
        let news = std::future::poll_fn(|cx| {
            if let std::task::Poll::Ready(Some(told)) = coming.poll_informational(cx) {
                return std::task::Poll::Ready(Err(told.unwrap()));
            }
            std::pin::Pin::new(&mut coming).poll(cx).map(Ok)
        });
        match news.await {
            Err(told) => {
                let link = told.headers().get("link").map_or("", |link| link.to_str().unwrap());
                interim.push((told.status().as_u16(), link.to_owned()));
            }
            Ok(response) => break response.unwrap(),
        }
    };
    let (head, body) = response.into_parts();
    let rest = Rest::Http2(body, call.sending.take(), HeaderMap::new());
    Answer::new(interim, head.status.as_u16(), head.headers, rest)
}

impl Answer {
    fn new(interim: Vec<(u16, String)>, status: u16, fields: HeaderMap, rest: Rest) -> Self {
        let field = |name| fields.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let (receipt, who, key) = (field("x-overlay-route"), field("x-who"), field("x-key"));
        Self { interim, status, receipt, who, key, fields, rest }
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }

    /// Sends another piece of the request's body.
    pub(super) async fn send(&mut self, piece: &[u8]) {
        match &mut self.rest {
            Rest::Http1(io, _) => say(io, &wire::chunk(piece)).await,
            Rest::Http2(_, sending, _) => {
                wire::send(sending.as_mut().unwrap(), Bytes::copy_from_slice(piece)).await;
            }
        }
    }

    /// Ends the request's body.
    pub(super) async fn finish(&mut self) {
        match &mut self.rest {
            Rest::Http1(io, _) => say(io, b"0\r\n\r\n").await,
            Rest::Http2(_, sending, _) => sending.as_mut().unwrap().send_data(Bytes::new(), true).unwrap(),
        }
    }

    /// The next piece of the body; an error where it is cut.
    pub(super) async fn piece(&mut self) -> Result<Option<Vec<u8>>, ()> {
        match &mut self.rest {
            Rest::Http1(io, body) => body.next(io).await.map_err(drop),
            Rest::Http2(body, _, trailers) => match body.data().await {
                Some(Ok(piece)) => {
                    body.flow_control().release_capacity(piece.len()).unwrap();
                    Ok(Some(piece.to_vec()))
                }
                Some(Err(_)) => Err(()),
                None => {
                    *trailers = body.trailers().await.map_err(drop)?.unwrap_or_default();
                    Ok(None)
                }
            },
        }
    }

    /// Reads so many bytes.
    pub(super) async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < count {
            read.extend(self.piece().await.unwrap().unwrap());
        }
        read
    }

    /// Reads to the end.
    pub(super) async fn end(mut self) -> End {
        let mut read = Vec::new();
        while let Some(piece) = self.piece().await.ok()? {
            read.extend(piece);
        }
        let trailer = match &self.rest {
            Rest::Http1(_, body) => body.trailer("x-length").map(str::to_owned),
            Rest::Http2(_, _, trailers) => {
                trailers.get("x-length").map(|value| value.to_str().unwrap().to_owned())
            }
        };
        Some((read, trailer))
    }

    /// Goes away in the middle.
    pub(super) fn cancel(self) {
        if let Rest::Http2(_, Some(mut sending), _) = self.rest {
            sending.send_reset(Reason::CANCEL);
        }
    }
}
