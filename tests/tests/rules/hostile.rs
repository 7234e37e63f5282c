//! Upstreams that break off at every byte, lie about what they send, and send what nobody asked for: the client gets the
//! right answer, or 502, or sees that its answer is not whole; and whoever asks next gets the own one.

mod http1;
mod http2;

use std::net::SocketAddr;

use overlane_tests::message::{self, Kind, Message, Read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How an upstream ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closes,
    Resets,
}

impl End {
    const ALL: [Self; 2] = [Self::Closes, Self::Resets];

    async fn end(self, mut stream: TcpStream) {
        match self {
            Self::Closes => drop(stream.shutdown().await),
            Self::Resets => stream.set_zero_linger().unwrap(),
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
        let is = |response: &Message, part: bool| {
            let seen = String::from_utf8_lossy(&response.body).into_owned();
            response.status() == status && (seen == body || (part && body.starts_with(&seen)))
        };
        let fine = match self.whole() {
            Some(_) if !self.rest.is_empty() => false,
            Some(_) if self.own() => sent < all || end == End::Resets,
            Some(response) if sent == all => is(response, false),
            // Where only the end delimits a body nobody can tell that it is not all of it.
            Some(response) => reply.to_the_end && end == End::Closes && sent >= head && is(response, true),
            None if sent < head || (sent == all && end == End::Closes) => false,
            None => self.response.as_ref().is_none_or(|response| is(response, true)),
        };
        fine.then_some(()).ok_or_else(|| format!("{sent} of {all} bytes, {end:?}: {self:?}"))
    }
}

/// A client's connection, made anew where the last answer ended it.
struct Caller {
    gateway: SocketAddr,
    stream: Option<TcpStream>,
    own: usize,
}

impl Caller {
    fn of(gateway: SocketAddr) -> Self {
        Self { gateway, stream: None, own: 0 }
    }

    async fn ask(&mut self, method: &str, path: &str) -> Got {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.gateway).await.unwrap(),
        };
        stream.set_nodelay(true).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: web\r\n\r\n");
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
