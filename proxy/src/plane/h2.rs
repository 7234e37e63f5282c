//! HTTP/2 (RFC 9113), by the `h2` crate: each stream is to the rest of the data plane what a connection
//! of HTTP/1.1 with one exchange is.
//!
//! So there is one place that decides, edits heads, waits, repeats, answers and counts, whatever is
//! spoken on either side (docs/decisions/0020-http-2-by-streams.md). Nothing is read from a stream before
//! the other side can take it: flow control reaches from one end to the other.

mod body;
pub mod budget;
mod cork;
mod server;
mod text;
mod upstream;

use std::fmt;
use std::io;

use h2::Reason;

pub use server::{is_spoken, serve};
pub use upstream::{Agreed, Call, Called, Unready, call, sweep};

/// With what a connection of HTTP/2 begins (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of a request's or response's body a peer may send ahead, per stream, in bytes: so much is held
/// for each that does not read.
const STREAM_WINDOW: u32 = 32 * 1024;
/// How much of all bodies a client may send ahead on one connection.
const CLIENT_WINDOW: u32 = 1024 * 1024;
/// The same for an upstream, whose connection many clients share: one that does not read must not stop
/// the others.
const UPSTREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// How much of a stream's body waits for its connection to be written, in bytes.
const SEND_BUFFER: usize = 16 * 1024;

/// The peer says that it did nothing about a request: it may be sent again, whatever it asks for
/// (RFC 9113, section 8.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unprocessed {
    /// It does not want it now.
    Refused,
    /// Its connection ends, or ended before.
    Gone,
}

impl fmt::Display for Unprocessed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "the stream was refused unprocessed",
            Self::Gone => "the connection ended before the stream was processed",
        })
    }
}

impl std::error::Error for Unprocessed {}

/// Why the peer did nothing about the request, where an error says that.
#[must_use]
pub fn unprocessed(error: &io::Error) -> Option<Unprocessed> {
    error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
}

/// Whether an error says that the peer ended a stream, and not the whole connection.
#[must_use]
pub fn is_reset(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_reset)
}

fn broken(error: h2::Error) -> io::Error {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let gone = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    if refused || gone {
        return io::Error::other(if refused { Unprocessed::Refused } else { Unprocessed::Gone });
    }
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
