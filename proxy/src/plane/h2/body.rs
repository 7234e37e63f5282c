//! Bodies of streams, as a connection of HTTP/1.1 would carry them: read as text with its framing,
//! written as such.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::ReadBuf;

use super::{broken, malformed, text};
use crate::h1::body::{Body, Progress};

/// The most that is taken in one go: what a stream may have waiting.
const PIECE: usize = super::SEND_BUFFER;

/// What comes next of a body that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Data,
    Trailers,
    Nothing,
}

/// A body that arrives, after a head.
pub(super) struct Incoming {
    stream: RecvStream,
    /// Whether its pieces are framed as chunks.
    chunked: bool,
    /// Framing, or the head, as far as it was not read yet.
    text: Bytes,
    /// Payload that was not read yet.
    data: Bytes,
    /// Whether the payload is a chunk whose end is to follow.
    in_chunk: bool,
    next: Next,
}

impl Incoming {
    /// A body whose head is `head`.
    pub(super) fn new(stream: RecvStream, head: Vec<u8>, chunked: bool) -> Self {
        Self { stream, chunked, text: head.into(), data: Bytes::new(), in_chunk: false, next: Next::Data }
    }

    /// Reads what is there; nothing at its end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.give(out)?;
            if out.remaining() == 0 || self.is_read() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_next(cx) {
                Poll::Ready(more) => more?,
                Poll::Pending if out.filled().len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether its end was read.
    pub(super) fn is_read(&self) -> bool {
        self.next == Next::Nothing && self.text.is_empty() && self.data.is_empty()
    }

    /// Gives what is here already.
    fn give(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        give(&mut self.text, out);
        if self.text.is_empty() && !self.data.is_empty() {
            let given = give(&mut self.data, out);
            // Only what was taken may be sent anew.
            self.stream.flow_control().release_capacity(given).map_err(broken)?;
            if self.data.is_empty() && self.in_chunk {
                self.in_chunk = false;
                self.text = Bytes::from_static(b"\r\n");
                give(&mut self.text, out);
            }
        }
        Ok(())
    }

    /// Gets the next piece.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.next {
            Next::Data => match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    self.data = data.map_err(broken)?;
                    if self.chunked && !self.data.is_empty() {
                        self.text = format!("{:x}\r\n", self.data.len()).into();
                        self.in_chunk = true;
                    }
                }
                None if self.chunked => self.next = Next::Trailers,
                None => self.next = Next::Nothing,
            },
            Next::Trailers => {
                let trailers = ready!(self.stream.poll_trailers(cx)).map_err(broken)?;
                self.text = text::last_chunk(trailers.as_ref()).into();
                self.next = Next::Nothing;
            }
            Next::Nothing => {}
        }
        Poll::Ready(Ok(()))
    }
}

fn give(from: &mut Bytes, out: &mut ReadBuf<'_>) -> usize {
    let count = from.len().min(out.remaining());
    out.put_slice(&from[..count]);
    from.advance(count);
    count
}

/// A body that leaves.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    body: Progress,
    trailers: Vec<u8>,
    ended: bool,
}

impl Outgoing {
    /// A body after a head that was sent.
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Self {
        Self { stream, ended: body == Body::Length(0), body: Progress::new(body), trailers: Vec::new() }
    }

    /// Whether its end was sent.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Its stream.
    pub(super) fn stream(&mut self) -> &mut SendStream<Bytes> {
        &mut self.stream
    }

    /// Writes what can be written now, with its framing; ready with how many bytes were taken.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.poll_write_part(cx, &bytes[taken..]) {
                Poll::Ready(Ok(part)) => taken += part,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if taken == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_write_part(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let payload = usize::try_from(self.body.payload()).unwrap_or(usize::MAX).min(bytes.len());
        if payload == 0 {
            return Poll::Ready(self.frame(bytes));
        }
        let room = ready!(self.poll_capacity(cx, payload.min(PIECE)))?;
        let data = Bytes::copy_from_slice(&bytes[..room]);
        self.body.advance(&data).map_err(|wrong| malformed(wrong.what))?;
        self.ended = self.body.is_done();
        self.stream.send_data(data, self.ended).map_err(broken)?;
        Poll::Ready(Ok(room))
    }

    /// Takes framing, and ends the stream where it does.
    fn frame(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let trailing = self.body.is_in_trailers();
        let count = self.body.skip_framing(bytes).map_err(|wrong| malformed(wrong.what))?;
        if trailing {
            self.trailers.extend_from_slice(&bytes[..count]);
        }
        if self.body.is_done() {
            self.ended = true;
            let trailers = text::trailers_of(&self.trailers).map_err(|wrong| malformed(wrong.what))?;
            match trailers.is_empty() {
                true => self.stream.send_data(Bytes::new(), true).map_err(broken)?,
                false => self.stream.send_trailers(trailers).map_err(broken)?,
            }
        }
        Ok(count)
    }

    /// Ready where flow control lets something go, or nothing ever will.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        self.poll_capacity(cx, 1).map(drop)
    }

    /// How much of `wanted` bytes flow control lets go now.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.stream.reserve_capacity(wanted);
        loop {
            match self.stream.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room.min(wanted))),
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(more) => drop(more.map_err(broken)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }
}
