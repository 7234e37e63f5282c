//! What outbound lets through that is no request to it: CONNECT, and connections that were meant for
//! somebody else and intercepted. Whether there is HTTP in them is told by their first bytes; everything
//! else is passed on untouched.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::server::Acceptor;
use socket2::SockRef;

use super::buffer::Want;
use super::conn::{Client, Conn};
use super::link::Link;

/// For how long the client of an intercepted connection may think before the server is asked, too: it
/// may be the server who speaks first.
pub const SILENCE: Duration = Duration::from_millis(100);
/// No method is longer.
const MAX_METHOD: usize = 24;

/// What outbound lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassageSettings {
    /// The ports that CONNECT may lead to outside; all where it is not told.
    pub connect_ports: Option<Vec<u16>>,
    /// Whether connections come that were meant for somebody else.
    pub intercept: bool,
    /// The mark on connections to upstreams, by which rules tell them from those to be intercepted.
    pub mark: Option<u32>,
}

impl PassageSettings {
    /// Whether CONNECT may lead to this port of a host outside.
    #[must_use]
    pub fn lets_connect(&self, port: u16) -> bool {
        self.connect_ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

/// For whom a connection was meant before it was intercepted (`SO_ORIGINAL_DST`); `None` where it was
/// meant for this listener.
#[must_use]
pub fn original_destination(stream: &tokio::net::TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().ok()?;
    let meant = if local.is_ipv6() && !local.ip().to_canonical().is_ipv4() {
        socket.original_dst_v6()
    } else {
        socket.original_dst_v4()
    };
    // Without interception there is none, or the kernel knows no such option.
    meant.ok()?.as_socket().filter(|meant| *meant != local)
}

/// What was said first in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// A request of HTTP, of any version.
    Http,
    /// Something else.
    Other,
    /// Nothing yet.
    Nothing,
    /// The connection is over.
    Closed,
}

/// What the first bytes of a client say; `None` where more are needed. A request begins with a method in
/// capitals and a target; what only looks like one (`EHLO host`, `GET key`) has no target.
fn told(read: &[u8]) -> Option<Said> {
    let method = read.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match (read.get(method), read.get(method + 1)) {
        _ if method > MAX_METHOD => Some(Said::Other),
        (None, _) | (Some(b' '), None) if read.len() == method || method > 0 => None,
        (Some(b' '), Some(b'/' | b'*' | b'h' | b'H')) if method > 0 => Some(Said::Http),
        // The authority of CONNECT.
        (Some(b' '), Some(_)) if &read[..method] == b"CONNECT" => Some(Said::Http),
        _ => Some(Said::Other),
    }
}

/// Waits for the first words of a connection: the client's, or those of the server where `link` leads to
/// it. Nothing is consumed. At most until `until`.
pub async fn first_words<S: Client>(
    conn: &mut Conn<S>,
    mut link: Option<&mut Link>,
    until: Option<Instant>,
) -> Said {
    if let Some(until) = until {
        conn.deadline().arm(until);
    }
    poll_fn(|cx| {
        loop {
            if let Some(said) = told(conn.ahead().filled()) {
                return Poll::Ready(said);
            }
            match conn.poll_fill(cx, Want::Head) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) if conn.ahead().is_empty() => return Poll::Ready(Said::Closed),
                Poll::Ready(_) => return Poll::Ready(Said::Other),
                Poll::Pending => break,
            }
        }
        if let Some(link) = &mut link
            && let Poll::Ready(read) = link.poll_fill(cx, Want::Response)
        {
            return Poll::Ready(if read.is_ok_and(|read| read > 0) { Said::Other } else { Said::Closed });
        }
        match until {
            Some(_) => conn.deadline().poll(cx).map(|()| Said::Nothing),
            None => Poll::Pending,
        }
    })
    .await
}

/// The host that a client of TLS says it wants (SNI), where its first bytes say so.
#[must_use]
pub fn server_name(mut read: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut read).ok()?;
    let accepted = acceptor.accept().ok()??;
    accepted.client_hello().server_name().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    #[test]
    fn requests_are_told_from_what_only_looks_like_one() {
        use Said::{Http, Other};
        for (read, expected) in [
            ("GET / HTTP/1.1", Some(Http)),
            ("GET http://a/", Some(Http)),
            ("OPTIONS *", Some(Http)),
            ("M-SEARCH *", Some(Http)),
            ("PRI * HTTP/2.0", Some(Http)),
            ("CONNECT a:1", Some(Http)),
            ("", None),
            ("GE", None),
            ("GET", None),
            ("GET ", None),
            ("EHLO mail.example", Some(Other)),
            ("GET key\r\n", Some(Other)),
            ("PING\r\n", Some(Other)),
            ("SSH-2.0-x", Some(Other)),
            ("*1\r\n$4\r\n", Some(Other)),
            ("\u{16}\u{3}\u{1}", Some(Other)),
            (" GET /", Some(Other)),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Other)),
        ] {
            assert_eq!(told(read.as_bytes()), expected, "{read:?}");
        }
    }

    #[test]
    fn the_host_that_a_client_of_tls_wants_is_read() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = "pay.example".try_into().expect("name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("written");
        assert_eq!(server_name(&hello).as_deref(), Some("pay.example"));
        assert_eq!(server_name(&hello[..40]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(read: Vec<u8>) {
            let _ = (told(&read), server_name(&read));
        }
    }
}
