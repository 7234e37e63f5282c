//! A transport that holds what is written until nothing more comes, and sees that its peer asks for no more
//! than it should.
//!
//! `h2` flushes after each frame of data, which is a system call for each. Here the first flush after a write
//! is put off until the connection's task has its next turn: streams that are ready have theirs before, and
//! the frames of all of them leave together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::{Budget, Flood, Frames, Side, calm};
use crate::metrics::count_flood;
use crate::plane::conn::poll_gathered;
use crate::plane::deadline::Deadline;

/// The most that is held; more leaves at once.
const HELD: usize = 32 * 1024;

/// Something that a peer owes: it may take so long.
struct Owed {
    limit: Duration,
    deadline: Deadline,
    /// What it owes, by number.
    runs: Option<u64>,
}

impl Owed {
    fn new(limit: Duration) -> Self {
        Self { limit, deadline: Deadline::default(), runs: None }
    }

    /// Whether it took too long for what it owes; else the task is woken when it has.
    fn is_late(&mut self, owed: Option<u64>, cx: &Context<'_>) -> bool {
        if owed.is_some() && self.runs != owed {
            self.deadline.arm(Instant::now() + self.limit);
        }
        self.runs = owed;
        owed.is_some() && self.deadline.poll(cx).is_ready()
    }
}

/// A transport, and what is to be written to it.
pub(super) struct Cork<S> {
    io: S,
    /// Empty, and without memory, while there is nothing to hold.
    held: Vec<u8>,
    /// How much of it was written.
    sent: usize,
    /// Whether something was written since somebody asked for a flush.
    fresh: bool,
    from: Side,
    coming: Frames,
    going: Frames,
    budget: Budget,
    /// The rest of a frame or of a head.
    rest: Owed,
    /// That it takes something.
    taking: Owed,
}

impl<S> Cork<S> {
    /// What `from` sends and is sent over `io`. It has `head` for the rest of a head that it began, and `write` to take
    /// something where there is anything for it.
    pub(super) fn new(io: S, from: Side, head: Duration, write: Duration) -> Self {
        let to = if from == Side::Client { Side::Upstream } else { Side::Client };
        Self {
            io,
            held: Vec::new(),
            sent: 0,
            fresh: false,
            from,
            coming: Frames::new(from),
            going: Frames::new(to),
            budget: Budget::new(from, Instant::now()),
            rest: Owed::new(head),
            taking: Owed::new(write),
        }
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    fn hold(&mut self, bytes: &[u8]) {
        if self.held.capacity() == 0 {
            self.held.reserve_exact(HELD);
        }
        self.held.extend_from_slice(bytes);
    }

    fn has_room(&self, count: usize) -> bool {
        self.held.len() + count <= HELD
    }

    /// Follows what leaves.
    fn leaves(&mut self, bytes: &[u8]) {
        let Self { from, going, budget, .. } = self;
        going.follow(bytes, |frame, payload| {
            if let Some(flood) = budget.goes(frame, payload) {
                count_flood(*from, flood);
            }
        });
    }

    /// What writing came to; an error where the peer takes nothing for too long.
    fn taken<T>(&mut self, cx: &Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.taking.is_late(polled.is_pending().then_some(0), cx) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => polled,
        }
    }

    /// Writes what is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let polled = poll_gathered(&mut self.io, cx, [&self.held[self.sent..], &[]]);
            self.sent += ready!(self.taken(cx, polled))?;
        }
        (self.held, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Tells the peer to be calm, as far as it takes that now, and ends the connection.
    fn end(&mut self, flood: Flood, cx: &mut Context<'_>) -> io::Error {
        count_flood(self.from, flood);
        if self.going.is_between() {
            self.hold(&calm(self.coming.stream));
        }
        let _ = self.poll_drain(cx);
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        io::Error::other(flood)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Cork<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, out);
        let (mut flood, Self { coming, budget, .. }) = (None, &mut *this);
        coming.follow(&out.filled()[before..], |frame, _| {
            if flood.is_none() {
                flood = budget.came(frame, Instant::now).err();
            }
        });
        if this.rest.is_late(this.coming.owed(), cx) {
            flood = Some(Flood::Slow);
        }
        match flood {
            Some(flood) => Poll::Ready(Err(this.end(flood, cx))),
            None => polled,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let count = parts.iter().map(|part| part.len()).sum();
        this.fresh = true;
        if !this.has_room(count) {
            ready!(this.poll_drain(cx))?;
        }
        if this.has_room(count) {
            for part in parts {
                this.leaves(part);
                this.hold(part);
            }
            return Poll::Ready(Ok(count));
        }
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, parts);
        let sent = ready!(this.taken(cx, polled))?;
        let mut left = sent;
        for part in parts {
            let of_part = left.min(part.len());
            this.leaves(&part[..of_part]);
            left -= of_part;
        }
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.fresh && !this.held.is_empty() {
            this.fresh = false;
            // Whoever owns this flushes in each of its turns.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_drain(cx))?;
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.taken(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_written_leaves_when_nothing_more_comes_or_there_is_too_much() {
        let (near, mut far) = duplex(1 << 20);
        let mut cork = Cork::new(near, Side::Client, LONG, LONG);
        let mut read = vec![0; 1 << 20];
        cork.write_all(b"a").await.expect("held");
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("put off");
        cork.write_all(b"b").await.expect("held");
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("put off again");
        assert_eq!((&*cork.held, cork.sent), (&b"ab"[..], 0));
        poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx)).await.expect("written");
        assert_eq!((far.read(&mut read).await.expect("read"), &read[..2]), (2, &b"ab"[..]));
        assert_eq!(cork.held.capacity(), 0, "nothing is held");
        let large = vec![b'x'; HELD];
        for part in [&b"small"[..], &large, b"last"] {
            cork.write_all(part).await.expect("written");
        }
        cork.shutdown().await.expect("written");
        drop(cork);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, [&b"small"[..], &large, b"last"].concat());
    }
}
