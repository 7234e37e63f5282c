//! Tunnels: what comes from one side goes to the other, whatever it means.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::buffer::{Buffer, Want};
use super::conn::poll_gathered;
use crate::metrics::{Event, count};

/// One direction of a tunnel.
#[derive(Debug, Default)]
struct Direction {
    /// Whether the sender has said that this is all.
    ended: bool,
    /// Whether the receiver was told.
    told: bool,
}

impl Direction {
    /// Carries on what came from `from`, of which `ahead` was read; ready when its end was told.
    /// Memory is held only by what the receiver does not take yet.
    fn poll<R, W>(
        &mut self,
        from: &mut R,
        ahead: &mut Buffer,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.told {
            if !ahead.is_empty() {
                let sent = ready!(poll_gathered(to, cx, [ahead.filled(), &[]]))?;
                ahead.consume(sent);
            } else if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.told = true;
            } else {
                match ahead.poll_fill(from, cx, Want::Body) {
                    Poll::Ready(read) => self.ended = read? == 0,
                    Poll::Pending => {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Counts a tunnel for as long as it is open.
struct Open;

impl Open {
    fn new() -> Self {
        count(Event::TunnelOpened);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        count(Event::TunnelClosed);
    }
}

/// One side of a tunnel, and what was read from it already.
#[allow(missing_debug_implementations)]
pub struct Side<'s, T> {
    /// The transport.
    pub io: &'s mut T,
    /// What was read from it and is to go to the other side.
    pub ahead: &'s mut Buffer,
}

/// Carries bytes both ways until both sides have said that this is all, one of them is gone, or `over`
/// completes. A side that says that this is all still gets what the other has to say.
///
/// # Errors
/// Why it ended before both sides had said all.
pub async fn pump<A, B>(
    client: Side<'_, A>,
    upstream: Side<'_, B>,
    over: impl Future<Output = ()>,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let _open = Open::new();
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let mut over = std::pin::pin!(over);
    std::future::poll_fn(|cx| {
        let there = there.poll(client.io, client.ahead, upstream.io, cx)?;
        let back = back.poll(upstream.io, upstream.ahead, client.io, cx)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        over.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn filled(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::default();
        let mut from = bytes;
        std::future::poll_fn(|cx| buffer.poll_fill(&mut from, cx, Want::Head)).await.expect("read");
        buffer
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first_and_each_side_ends_by_itself() {
        // Small enough that nothing fits at once.
        let ((mut client, mut a), (mut upstream, mut b)) = (duplex(16), duplex(16));
        let tunnel = tokio::spawn(async move {
            let (mut ahead_a, mut ahead_b) = (filled(b"early ").await, filled(b"greeting ").await);
            let client = Side { io: &mut a, ahead: &mut ahead_a };
            let upstream = Side { io: &mut b, ahead: &mut ahead_b };
            pump(client, upstream, std::future::pending()).await
        });
        let asked = "x".repeat(100);
        let ask = async {
            client.write_all(asked.as_bytes()).await.expect("written");
            client.shutdown().await.expect("ended");
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.expect("read");
            heard
        };
        let answer = async {
            let mut heard = String::new();
            upstream.read_to_string(&mut heard).await.expect("read");
            // The client has said all, and still listens.
            upstream.write_all(&[b'y'; 100]).await.expect("written");
            upstream.shutdown().await.expect("ended");
            heard
        };
        let (back, there) = tokio::join!(ask, answer);
        assert_eq!(there, format!("early {asked}"));
        assert_eq!(back, format!("greeting {}", "y".repeat(100)));
        tunnel.await.expect("no panic").expect("both have ended");
    }

    #[tokio::test]
    async fn a_tunnel_ends_when_it_is_told() {
        let ((_client, mut a), (_upstream, mut b)) = (duplex(16), duplex(16));
        let (mut ahead_a, mut ahead_b) = (Buffer::default(), Buffer::default());
        let client = Side { io: &mut a, ahead: &mut ahead_a };
        let upstream = Side { io: &mut b, ahead: &mut ahead_b };
        let ended = pump(client, upstream, std::future::ready(())).await;
        assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }
}
