//! Buffers that exist only while there is something in them.
//!
//! A read that has to wait holds no memory: its buffer goes back to this thread's pool and is taken
//! anew when there is something to read. So an idle connection costs no buffer, and a busy worker
//! reads into the same few, which are in its caches.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// For a head: most are far smaller. A buffer grows fourfold: none that grew has the size of another kind.
/// For bodies, too, when there are too many medium ones.
const SMALL: usize = 4 * 1024;
/// For bodies: fewer, larger system calls. Measured beside nginx, 1 MiB bodies cost 1.30, 1.15, 0.68, 0.63
/// and 0.64 of its CPU with 64, 128, 256, 512 and 1,024 KiB; splice(2) cost more than 256 KiB did.
const LARGE: usize = 512 * 1024;
/// For bodies when too many large ones are held by peers that do not read.
const MEDIUM: usize = 12 * 1024;
/// Large buffers that a worker's connections hold at once.
const MAX_LARGE: usize = 16;
/// Medium buffers that they hold at once. Who has more transfers than these under way at a time pays with system calls; thousands
/// of peers that do not read hold a quarter.
const MAX_MEDIUM: usize = 256;
/// Room in front of a response, by which its head may grow: receipts, `Connection`.
const HEADROOM: usize = 1024;
/// Unused buffers for heads that a worker keeps, and unused texts: one for each request under way at busy times.
const KEPT_SMALL: usize = 256;
/// Unused large buffers that a worker keeps.
const KEPT_LARGE: usize = 16;
/// What a new text has room for: most heads, without growing.
const TEXT: usize = 1024;

/// What a buffer is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A head, and what comes along with it.
    Head,
    /// A body.
    Body,
    /// A head that is written anew in front of the body that came with it ([`Buffer::prepend`]).
    Response,
    /// The same where it is not known whether its client takes more than the head.
    Beginning,
}

#[derive(Default)]
struct Free {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    large_in_use: usize,
    medium_in_use: usize,
    texts: Vec<Vec<u8>>,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

fn memory(size: usize) -> Box<[u8]> {
    vec![0; size].into_boxed_slice()
}

fn take(want: Want) -> Box<[u8]> {
    FREE.with_borrow_mut(|free| match want {
        Want::Head | Want::Beginning => free.small.pop().unwrap_or_else(|| memory(SMALL)),
        _ if free.large_in_use < MAX_LARGE => {
            free.large_in_use += 1;
            free.large.pop().unwrap_or_else(|| memory(LARGE))
        }
        _ if free.medium_in_use < MAX_MEDIUM => {
            free.medium_in_use += 1;
            memory(MEDIUM)
        }
        _ => free.small.pop().unwrap_or_else(|| memory(SMALL)),
    })
}

fn give_back(bytes: Box<[u8]>) {
    // At the end of the thread there is no pool any more; then the memory is simply freed.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        let (pool, kept) = match bytes.len() {
            SMALL => (&mut free.small, KEPT_SMALL),
            LARGE => {
                free.large_in_use -= 1;
                (&mut free.large, KEPT_LARGE)
            }
            MEDIUM => {
                free.medium_in_use -= 1;
                return;
            }
            _ => return,
        };
        if pool.len() < kept {
            pool.push(bytes);
        }
    });
}

/// Bytes that were read and not yet consumed.
#[derive(Default)]
pub struct Buffer {
    /// Empty while there is nothing to hold.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What is in it.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// How much is in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
        self.release_if_empty();
    }

    /// Puts `bytes` in front of what is in it, where there is something and room; false where not.
    pub fn prepend(&mut self, bytes: &[u8]) -> bool {
        let Some(start) = self.start.checked_sub(bytes.len()).filter(|_| !self.is_empty()) else {
            return false;
        };
        self.bytes[start..self.start].copy_from_slice(bytes);
        self.start = start;
        true
    }

    /// Reads once from `io`; ready with how much, 0 at the end of the stream.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        cx: &mut Context<'_>,
        want: Want,
    ) -> Poll<io::Result<usize>> {
        self.make_room(want);
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        let polled = Pin::new(io).poll_read(cx, &mut room);
        let read = room.filled().len();
        self.end += read;
        self.release_if_empty();
        ready!(polled)?;
        Poll::Ready(Ok(read))
    }

    fn make_room(&mut self, want: Want) {
        if self.bytes.is_empty() {
            self.bytes = take(want);
            self.start = if matches!(want, Want::Response | Want::Beginning) { HEADROOM } else { 0 };
            self.end = self.start;
        } else if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                let mut larger = memory(self.bytes.len() * 4);
                larger[..self.end].copy_from_slice(&self.bytes);
                give_back(std::mem::replace(&mut self.bytes, larger));
            }
        }
    }

    fn release_if_empty(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if !self.bytes.is_empty() {
                give_back(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.start = self.end;
        self.release_if_empty();
    }
}

/// A text that is being written, in memory of the worker's pool from when somebody first writes.
#[derive(Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// Empties it, and gives its memory back.
    pub fn forget(&mut self) {
        let mut text = std::mem::take(&mut self.0);
        if text.capacity() == 0 || text.capacity() > SMALL {
            return;
        }
        text.clear();
        // At the end of the thread there is no pool any more.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.texts.len() < KEPT_SMALL {
                free.texts.push(text);
            }
        });
    }
}

impl std::ops::Deref for Text {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for Text {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        if self.0.capacity() == 0 {
            self.0 =
                FREE.with_borrow_mut(|free| free.texts.pop()).unwrap_or_else(|| Vec::with_capacity(TEXT));
        }
        &mut self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn fill(buffer: &mut Buffer, mut from: &[u8], want: Want) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        match buffer.poll_fill(&mut from, &mut cx, want) {
            Poll::Ready(Ok(read)) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_held_by_an_empty_buffer() {
        let mut buffer = Buffer::default();
        assert_eq!(fill(&mut buffer, b"abc", Want::Head), 3);
        buffer.consume(2);
        assert_eq!((buffer.filled(), buffer.bytes.len()), (&b"c"[..], SMALL));
        buffer.consume(1);
        assert_eq!(buffer.bytes.len(), 0);
        assert_eq!(fill(&mut buffer, b"", Want::Body), 0);
        assert_eq!(buffer.bytes.len(), 0, "an end of the stream needs no memory");
    }

    #[test]
    fn a_head_that_does_not_fit_gets_more_room() {
        let mut buffer = Buffer::default();
        let head = vec![b'x'; 3 * SMALL];
        let mut read = fill(&mut buffer, &head, Want::Head);
        assert_eq!(read, SMALL);
        read += fill(&mut buffer, &head[read..], Want::Head);
        assert_eq!((read, buffer.filled()), (head.len(), &head[..]));
    }

    #[test]
    fn consumed_bytes_make_room_before_memory_does() {
        let mut buffer = Buffer::default();
        fill(&mut buffer, &[b'x'; SMALL], Want::Head);
        buffer.consume(SMALL - 1);
        assert_eq!(fill(&mut buffer, b"ab", Want::Head), 2);
        assert_eq!((buffer.filled(), buffer.bytes.len()), (&b"xab"[..], SMALL));
    }

    #[test]
    fn a_head_is_written_anew_in_front_of_its_body() {
        let mut buffer = Buffer::default();
        assert!(!buffer.prepend(b"head"), "there is nothing to be in front of");
        fill(&mut buffer, b"old:body", Want::Response);
        buffer.consume(4);
        assert!(buffer.prepend(b"new and longer:"));
        assert_eq!(buffer.filled(), b"new and longer:body");
        assert!(!buffer.prepend(&[b'x'; HEADROOM]), "there is no more room");
    }

    #[test]
    fn nothing_is_held_by_a_text_that_nobody_wrote_or_that_was_forgotten() {
        let mut text = Text::default();
        assert_eq!(text.capacity(), 0);
        text.extend_from_slice(b"head");
        assert_eq!((&**text, text.capacity()), (&b"head"[..], TEXT));
        text.forget();
        assert_eq!((text.len(), text.capacity()), (0, 0));
        assert_eq!(FREE.with_borrow(|free| free.texts.len()), 1, "the next one gets it");
    }

    #[test]
    fn large_buffers_are_bounded() {
        let mut held: Vec<Buffer> = Vec::new();
        for _ in 0..MAX_LARGE + 1 {
            let mut buffer = Buffer::default();
            fill(&mut buffer, b"a", Want::Body);
            held.push(buffer);
        }
        assert_eq!(held.first().map(|buffer| buffer.bytes.len()), Some(LARGE));
        assert_eq!(held.last().map(|buffer| buffer.bytes.len()), Some(MEDIUM));
        held.clear();
        let mut beginning = Buffer::default();
        fill(&mut beginning, b"head:body", Want::Beginning);
        assert_eq!(beginning.bytes.len(), SMALL, "also where larger ones are free");
        beginning.consume(4);
        assert!(beginning.prepend(b"new and longer"));
        let mut buffer = Buffer::default();
        fill(&mut buffer, b"a", Want::Body);
        assert_eq!(buffer.bytes.len(), LARGE);
    }
}
