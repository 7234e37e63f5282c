//! Upstreams that break off at every byte, lie about what they send, and send what nobody asked for: the client gets the
//! right answer, or 502, or sees that its answer is not whole; and whoever asks next gets the own one.

mod http1;
mod http2;
mod tls;

use std::net::SocketAddr;

use overlane_tests::message::{self, Kind, Message, Read};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How an upstream ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It says that it has said all; in TLS by `close_notify`.
    Closes,
    /// Its connection is closed without `close_notify`, by whomever: only in TLS.
    Stops,
    Resets,
}

impl End {
    /// Those in the clear.
    const CLEAR: [Self; 2] = [Self::Closes, Self::Resets];
    /// Those in TLS.
    const TLS: [Self; 3] = [Self::Closes, Self::Stops, Self::Resets];
}

/// An upstream's connection, in the clear or in TLS.
trait Peer: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn end(self, end: End) -> impl Future<Output = ()> + Send;
}

impl Peer for TcpStream {
    async fn end(mut self, end: End) {
        match end {
            End::Closes | End::Stops => drop(self.shutdown().await),
            End::Resets => self.set_zero_linger().unwrap(),
        }
    }
}

impl Peer for TlsStream<TcpStream> {
    async fn end(mut self, end: End) {
        // What was said is sent before; the other side may be gone.
        let _ = self.flush().await;
        match end {
            End::Closes => drop(self.shutdown().await),
            End::Stops | End::Resets => self.into_inner().0.end(end).await,
        }
    }
}

/// A response as an upstream that is right sends it, and what the client makes of it.
struct Reply {
    method: &'static str,
    /// The status and the body.
    means: (&'static str, &'static str),
    /// Whether only the end of the connection delimits it.
    to_the_end: bool,
}

/// What a client got: the final response as far as it came.
#[derive(Debug)]
struct Got {
    response: Option<Message>,
    rest: Vec<u8>,
}

impl Got {
    fn whole(&self) -> Option<&Message> {
        self.response.as_ref().filter(|response| response.whole)
    }

    /// Whether it is a whole answer of the proxy's own, with a status that says that the upstream is at fault.
    fn own(&self) -> bool {
        self.whole().is_some_and(|response| {
            matches!(response.status(), "502" | "503" | "504")
                && response.values("proxy-status").any(|value| value.starts_with("overlane;"))
        })
    }

    /// What is wrong with it, where so much of the reply was sent: `head` of its bytes are heads.
    fn judged(&self, reply: &Reply, sent: usize, head: usize, all: usize, end: End) -> Result<(), String> {
        let (status, body) = reply.means;
        // Who only stops has not said that this is all of it.
        let complete = sent == all && (end == End::Closes || end == End::Stops && !reply.to_the_end);
        let is = |response: &Message, part: bool| {
            let seen = String::from_utf8_lossy(&response.body).into_owned();
            response.status() == status && (seen == body || (part && body.starts_with(&seen)))
        };
        let fine = match self.whole() {
            Some(_) if !self.rest.is_empty() => false,
            Some(_) if self.own() => !complete,
            Some(_) if reply.to_the_end && end != End::Closes => false,
            Some(response) if sent == all => is(response, false),
            // Where only the end delimits a body nobody can tell that it is not all of it.
            Some(response) => reply.to_the_end && sent >= head && is(response, true),
            None if sent < head || complete => false,
            None => self.response.as_ref().is_none_or(|response| is(response, true)),
        };
        fine.then_some(()).ok_or_else(|| format!("{sent} of {all} bytes, {end:?}: {self:?}"))
    }
}

/// A client's connection, made anew where the last answer ended it.
struct Caller {
    gateway: SocketAddr,
    /// The host that it asks for.
    host: &'static str,
    stream: Option<TcpStream>,
    own: usize,
}

impl Caller {
    fn of(gateway: SocketAddr) -> Self {
        Self::at(gateway, "web")
    }

    fn at(gateway: SocketAddr, host: &'static str) -> Self {
        Self { gateway, host, stream: None, own: 0 }
    }

    async fn ask(&mut self, method: &str, path: &str) -> Got {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.gateway).await.unwrap(),
        };
        stream.set_nodelay(true).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        stream.write_all(request.as_bytes()).await.unwrap();
        let kind = if method == "HEAD" { Kind::ResponseToHead } else { Kind::Response };
        let (mut bytes, mut ended) = (Vec::new(), false);
        loop {
            let response = final_response(&bytes, kind, ended);
            let whole = response.as_ref().filter(|(response, _)| response.whole);
            if whole.is_some() || ended {
                if let Some((response, _)) = whole
                    && !ended
                    && !response.values("connection").any(|value| value == "close")
                {
                    self.stream = Some(stream);
                }
                let rest =
                    response.as_ref().map_or(&bytes[..], |(response, at)| &bytes[at + response.length..]);
                let rest = rest.to_vec();
                // Of a response of which no head came there is nothing to tell but that.
                return Got { response: response.map(|(response, _)| response), rest };
            }
            ended = !matches!(stream.read_buf(&mut bytes).await, Ok(1..));
        }
    }

    /// Asks for what only this request is answered with.
    async fn gets_its_own(&mut self, who: &str) -> Result<(), String> {
        self.own += 1;
        let path = format!("/own/{who}/{}", self.own);
        let got = self.ask("GET", &path).await;
        let fine = got
            .whole()
            .is_some_and(|response| response.status() == "200" && response.body == path.as_bytes());
        fine.then_some(()).ok_or_else(|| format!("the next one got {got:?} for {path}"))
    }
}

/// The response after interim ones, and where it begins.
fn final_response(bytes: &[u8], kind: Kind, ended: bool) -> Option<(Message, usize)> {
    let mut at = 0;
    loop {
        match message::read(&bytes[at..], kind, ended) {
            Read::Message(response) if response.interim() => at += response.length,
            Read::Message(response) => return Some((response, at)),
            _ => return None,
        }
    }
}
