//! The sockets of one case: clients on one side of the proxy, an upstream on the other. Everything that
//! arrives is kept, byte for byte, by one task that reads all of them whenever it waits for anything.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::message::{self, Kind, Message, Read};

/// How a peer's sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order.
    Closed,
    /// By a reset.
    Reset,
}

/// One connection and what arrived on it.
#[derive(Debug)]
pub struct Wire {
    stream: Option<TcpStream>,
    /// Everything that arrived.
    pub bytes: Vec<u8>,
    /// How the peer ended, if it did.
    pub end: Option<End>,
    /// How much of `bytes` was taken as messages.
    pub taken: usize,
    /// How much of `bytes` was looked at.
    looked_at: usize,
}

impl Wire {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: Some(stream), bytes: Vec::new(), end: None, taken: 0, looked_at: 0 })
    }

    /// What arrived and was not yet taken.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// The next message, as far as it arrived.
    #[must_use]
    pub fn peek(&self, kind: Kind) -> Read {
        message::read(self.rest(), kind, self.end == Some(End::Closed))
    }

    /// Takes a message that was read from the rest.
    pub fn take(&mut self, message: &Message) {
        self.taken += message.length;
    }

    /// Sends what can be sent of `left`; all of it counts as sent where nobody is there any more.
    fn poll_send(&mut self, cx: &mut Context<'_>, left: &mut &[u8]) -> Poll<()> {
        let Some(stream) = &self.stream else {
            *left = &[];
            return Poll::Ready(());
        };
        loop {
            match stream.try_write(left) {
                Ok(count) => *left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match stream.poll_write_ready(cx) {
                        Poll::Ready(_) => continue,
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Err(_) => *left = &[],
            }
            return Poll::Ready(());
        }
    }

    /// Notes that a message was seen that is not whole yet.
    pub fn look_at(&mut self, message: &Message) {
        self.looked_at = self.taken + message.length;
    }

    /// What arrived after everything that was taken or looked at.
    #[must_use]
    pub fn unseen(&self) -> &[u8] {
        &self.bytes[self.taken.max(self.looked_at)..]
    }

    /// Reads what is there; `Ready` where there was something new.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = self.stream.as_ref().filter(|_| self.end.is_none()) else {
            return Poll::Pending;
        };
        loop {
            let mut chunk = [0; 64 * 1024];
            match stream.try_read(&mut chunk) {
                Ok(0) => self.end = Some(End::Closed),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match stream.poll_read_ready(cx) {
                    Poll::Ready(_) => continue,
                    Poll::Pending => return Poll::Pending,
                },
                Err(_) => self.end = Some(End::Reset),
            }
            return Poll::Ready(());
        }
    }
}

/// Which side of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Clients, numbered by who uses them.
    Client,
    /// Connections to the upstream, numbered as they came.
    Upstream,
}

/// All sockets of one case.
#[derive(Debug)]
pub struct Scene {
    listener: TcpListener,
    patience: Duration,
    /// The connections of the clients.
    pub clients: Vec<Wire>,
    /// The connections that the upstream accepted.
    pub upstreams: Vec<Wire>,
}

impl Scene {
    /// A scene whose upstream listens on a free port; waits last at most `patience`.
    ///
    /// # Errors
    /// No socket can be had.
    pub async fn new(patience: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self { listener, patience, clients: Vec::new(), upstreams: Vec::new() })
    }

    /// Where the upstream listens.
    ///
    /// # Errors
    /// What the socket says.
    pub fn upstream_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// One more client.
    ///
    /// # Errors
    /// The proxy cannot be connected to.
    pub async fn connect(&mut self, proxy: SocketAddr) -> io::Result<()> {
        self.clients.push(Wire::new(TcpStream::connect(proxy).await?)?);
        Ok(())
    }

    /// The connection `number` of a side.
    pub fn wire(&mut self, side: Side, number: usize) -> &mut Wire {
        match side {
            Side::Client => &mut self.clients[number],
            Side::Upstream => &mut self.upstreams[number],
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut news = Poll::Pending;
        while let Poll::Ready(Ok((stream, _))) = self.listener.poll_accept(cx) {
            self.upstreams.extend(Wire::new(stream));
            news = Poll::Ready(());
        }
        for wire in self.clients.iter_mut().chain(&mut self.upstreams) {
            if wire.poll_fill(cx).is_ready() {
                news = Poll::Ready(());
            }
        }
        news
    }

    /// Waits until `found` finds something in what arrived.
    ///
    /// # Errors
    /// It did not come in time.
    pub async fn until<T>(&mut self, mut found: impl FnMut(&mut Self) -> Option<T>) -> Result<T, String> {
        let patience = self.patience;
        let wait = async {
            loop {
                if let Some(found) = found(self) {
                    return found;
                }
                poll_fn(|cx| self.poll_fill(cx)).await;
            }
        };
        timeout(patience, wait).await.map_err(|_| "it did not come in time".to_owned())
    }

    /// Sends bytes while everything that arrives is read. That the peer is gone already is no error
    /// here: it is seen by reading.
    ///
    /// # Errors
    /// The peer takes nothing.
    pub async fn send(&mut self, side: Side, number: usize, bytes: &[u8]) -> Result<(), String> {
        let patience = self.patience;
        let mut left = bytes;
        let sent = poll_fn(|cx| {
            loop {
                while self.poll_fill(cx).is_ready() {}
                match self.wire(side, number).poll_send(cx, &mut left) {
                    Poll::Ready(()) if !left.is_empty() => {}
                    sent => return sent,
                }
            }
        });
        timeout(patience, sent).await.map_err(|_| "the peer took not all of it".to_owned())
    }

    /// Ends this side's sending; it still reads.
    pub async fn half_close(&mut self, side: Side, number: usize) {
        if let Some(stream) = &mut self.wire(side, number).stream {
            // The peer may have gone first.
            let _ = stream.shutdown().await;
        }
    }

    /// Closes a connection: in order, or by a reset.
    pub fn close(&mut self, side: Side, number: usize, end: End) {
        if let Some(stream) = self.wire(side, number).stream.take()
            && end == End::Reset
        {
            let _ = stream.set_zero_linger();
        }
    }
}
