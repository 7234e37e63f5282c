//! HTTP/1.1 framing without I/O: bytes in, decisions out (RFC 9112).
//!
//! Where a head ends, how the body is delimited, what is hop-by-hop, what is refused. Strict where
//! proxies are attacked: what two readers could understand differently is refused, and nothing is
//! guessed. No sockets, no clock; nothing is allocated, and heads are edited by copying runs of
//! their own bytes.

pub mod body;
pub mod request;
pub mod response;

use httparse::Header;
use memchr::{memchr_iter, memmem};

/// The most header fields in a head.
pub const MAX_FIELDS: usize = 100;

/// What is wrong with a message, in a sentence; a request's has the status of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The status of the answer to a request; an upstream's fault is always 502.
    pub status: u16,
    /// What is wrong.
    pub what: &'static str,
}

pub(crate) const fn bad(what: &'static str) -> Malformed {
    Malformed { status: 400, what }
}

/// Whether the end of a head is among `bytes`, looking only at what is new since `seen` bytes.
#[must_use]
pub fn has_end(bytes: &[u8], seen: usize) -> bool {
    memmem::find(&bytes[seen.saturating_sub(3)..], b"\r\n\r\n").is_some()
}

/// httparse forgives a bare LF; other readers do not agree on what it means. (A bare CR it refuses.)
fn refuse_bare_line_feeds(head: &[u8]) -> Result<(), Malformed> {
    match memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r') {
        true => Ok(()),
        false => Err(bad("a line ends with a bare LF")),
    }
}

/// The field lines of a head that is right, and the bytes that they are in.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'b> {
    /// The whole head, its empty line included.
    head: &'b [u8],
    list: &'b [Header<'b>],
    /// Whether `Connection` says `close`.
    close: bool,
    /// Whether `Connection` says more than `keep-alive` or `close`.
    nominates: bool,
}

impl<'b> Fields<'b> {
    fn new(head: &'b [u8], list: &'b [Header<'b>]) -> Self {
        let mut fields = Self { head, list, close: false, nominates: false };
        for option in fields.connection_options() {
            if option.eq_ignore_ascii_case(b"close") {
                fields.close = true;
            } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                fields.nominates = true;
            }
        }
        fields
    }

    /// The values of a field, in order, whatever the case of its name.
    pub fn values<'h>(&self, name: &'h str) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b, 'h> {
        self.list.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The options of `Connection`, without white space.
    pub fn connection_options(&self) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b> {
        self.values("connection").flat_map(members)
    }

    /// Whether a field is for this hop only (RFC 9110, section 7.6.1). What frames and addresses the
    /// message is never up to `Connection`.
    #[must_use]
    pub fn is_hop_by_hop(&self, name: &str) -> bool {
        let fixed = match name.len() {
            2 => name.eq_ignore_ascii_case("te"),
            7 => name.eq_ignore_ascii_case("upgrade"),
            10 => name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive"),
            16 => name.eq_ignore_ascii_case("proxy-connection"),
            _ => false,
        };
        fixed || (self.nominates && self.is_nominated(name))
    }

    fn is_nominated(&self, name: &str) -> bool {
        const NEVER: [&str; 3] = ["host", "content-length", "transfer-encoding"];
        !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
            && self.connection_options().any(|own| own.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Appends the head from its byte `from` on to `out`, without the lines that are not kept and
    /// without the empty line. Runs of lines are copied as they came.
    fn copy(&self, from: usize, out: &mut Vec<u8>, mut keeps: impl FnMut(&'b str) -> bool) {
        let mut run = from;
        let mut next = self.list.iter().map(|field| self.offset(field.name)).skip(1);
        for field in self.list {
            let end = next.next().unwrap_or(self.head.len() - 2);
            if !keeps(field.name) {
                out.extend_from_slice(&self.head[run..self.offset(field.name)]);
                run = end;
            }
        }
        out.extend_from_slice(&self.head[run..self.head.len() - 2]);
    }

    /// Where a field's name stands in the head.
    fn offset(&self, name: &str) -> usize {
        name.as_ptr() as usize - self.head.as_ptr() as usize
    }

    /// Where the first field line begins.
    fn start(&self) -> usize {
        self.list.first().map_or(self.head.len() - 2, |field| self.offset(field.name))
    }
}

/// The members of a comma-separated list, without white space and without empty ones.
pub(crate) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// A `Content-Length` (RFC 9112, section 6.3): digits only. Not a list, no sign, and short enough
/// for every reader.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for cut in 0..head.len() {
            assert!(has_end(&head[..cut], 0) || has_end(head, cut), "cut at {cut}");
        }
        assert!(!has_end(b"GET / HTTP/1.1\r\nHost: x\r\n\r", 0));
    }
}
