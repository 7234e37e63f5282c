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
use memchr::memmem;
use overlane_config::carrier::FieldLines;

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

impl Malformed {
    /// Whether nothing is wrong with it but its size.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.status == 413
    }
}

pub(crate) const fn bad(what: &'static str) -> Malformed {
    Malformed { status: 400, what }
}

/// Whether the end of a head is among `bytes`, looking only at what is new since `seen` bytes.
#[must_use]
pub fn has_end(bytes: &[u8], seen: usize) -> bool {
    memmem::find(&bytes[seen.saturating_sub(3)..], b"\r\n\r\n").is_some()
}

/// Appends `Upgrade` with these values, and what belongs to it.
fn copy_upgrade<'b>(values: impl Iterator<Item = &'b [u8]>, out: &mut Vec<u8>) {
    for value in values {
        for part in [b"Upgrade: ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"Connection: Upgrade\r\n");
}

/// The fields that somebody here looks for. Each field's name is told once; who looks for one that is
/// not there then looks at nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Other,
    Accept,
    Baggage,
    /// One of those by which a browser says where a request comes from: `origin`, `referer`, `sec-fetch-…`.
    Browser,
    Connection,
    ContentLength,
    Cookie,
    /// One of those that say for whom a request is sent: `forwarded`, `x-forwarded-…`, `x-real-ip`.
    Forwarded,
    Host,
    /// What belongs to an upgrade to HTTP/2, which is not made.
    Http2Settings,
    KeepAlive,
    /// One of `x-overlay-…`.
    Overlay,
    ProxyConnection,
    SetCookie,
    Te,
    /// One of those that name a request's trace, and say more of it.
    Tracing,
    TransferEncoding,
    Upgrade,
}

impl Known {
    const fn of(name: &str) -> Self {
        let name = name.as_bytes();
        let Some((first, _)) = name.split_first() else { return Self::Other };
        // Each name is compared with one or two.
        match (*first | 0x20, name.len()) {
            (b'a', 6) if begins(name, b"accept") => Self::Accept,
            (b'b', 2) if begins(name, b"b3") => Self::Tracing,
            (b'b', 7) if begins(name, b"baggage") => Self::Baggage,
            (b'c', 6) if begins(name, b"cookie") => Self::Cookie,
            (b'c', 10) if begins(name, b"connection") => Self::Connection,
            (b'c', 14) if begins(name, b"content-length") => Self::ContentLength,
            (b'f', 9) if begins(name, b"forwarded") => Self::Forwarded,
            (b'h', 4) if begins(name, b"host") => Self::Host,
            (b'h', 14) if begins(name, b"http2-settings") => Self::Http2Settings,
            (b'k', 10) if begins(name, b"keep-alive") => Self::KeepAlive,
            (b'o', 6) if begins(name, b"origin") => Self::Browser,
            (b'p', 16) if begins(name, b"proxy-connection") => Self::ProxyConnection,
            (b'r', 7) if begins(name, b"referer") => Self::Browser,
            (b's', 10) if begins(name, b"set-cookie") => Self::SetCookie,
            (b's', 11..) if begins(name, b"sec-fetch-") => Self::Browser,
            (b't', 2) if begins(name, b"te") => Self::Te,
            (b't', 10) if begins(name, b"tracestate") => Self::Tracing,
            (b't', 11) if begins(name, b"traceparent") => Self::Tracing,
            (b't', 17) if begins(name, b"transfer-encoding") => Self::TransferEncoding,
            (b'u', 7) if begins(name, b"upgrade") => Self::Upgrade,
            (b'u', 13) if begins(name, b"uber-trace-id") => Self::Tracing,
            (b'x', 3..) if begins(name, b"x-") => Self::extension(name),
            _ => Self::Other,
        }
    }

    /// Of the names that begin with `x-`.
    #[inline(always)]
    const fn extension(name: &[u8]) -> Self {
        match name[2] | 0x20 {
            b'o' if begins(name, b"x-overlay-") => Self::Overlay,
            b'f' if begins(name, b"x-forwarded-") => Self::Forwarded,
            b'a' if begins(name, b"x-amzn-trace-id") => Self::Tracing,
            b'b' if begins(name, b"x-b3-") => Self::Tracing,
            b'c' if begins(name, b"x-cloud-trace-context") => Self::Tracing,
            b'd' if begins(name, b"x-datadog-") => Self::Tracing,
            b'r' if begins(name, b"x-request-id") => Self::Tracing,
            b'r' if begins(name, b"x-real-ip") => Self::Forwarded,
            _ => Self::Other,
        }
    }

    /// Whether it stands for names of which there are several.
    const fn is_family(self) -> bool {
        matches!(self, Self::Other | Self::Browser | Self::Forwarded | Self::Overlay | Self::Tracing)
    }

    const fn bit(self) -> u32 {
        1 << self as u16
    }
}

/// Whether a field's name begins with these letters and dashes, which are in lower case.
///
/// A name is a token, as httparse sees to: with that bit set, only a letter becomes that letter, and
/// only a dash a dash. Without an early end, this is a comparison or two.
#[inline(always)]
const fn begins<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Some((start, _)) = name.split_first_chunk::<N>() else {
        return false;
    };
    let (mut at, mut differs) = (0, 0);
    while at < N {
        differs |= (start[at] | 0x20) ^ lower[at];
        at += 1;
    }
    differs == 0
}

/// The name of a field, told what it is: at compile time, where the name is known then.
#[derive(Debug, Clone, Copy)]
pub struct Name<'n> {
    text: &'n str,
    known: Known,
}

impl<'n> Name<'n> {
    /// This name, in whatever case.
    #[must_use]
    pub const fn of(text: &'n str) -> Self {
        Self { text, known: Known::of(text) }
    }

    /// Whether both are the same field's.
    #[must_use]
    pub fn is(&self, other: &Name<'_>) -> bool {
        self.known == other.known && (!self.known.is_family() || self.text.eq_ignore_ascii_case(other.text))
    }
}

impl<'n> Name<'n> {
    /// A name that was told before what it is.
    #[must_use]
    pub(crate) const fn told(text: &'n str, known: Known) -> Self {
        Self { text, known }
    }

    /// What it is.
    #[must_use]
    pub(crate) const fn known(&self) -> Known {
        self.known
    }

    /// The name as it was written.
    #[must_use]
    pub fn text(&self) -> &'n str {
        self.text
    }
}

impl Name<'_> {
    /// Whether it is one of those that say for whom a request is sent: `forwarded`, `x-forwarded-…`, `x-real-ip`.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.known == Known::Forwarded
    }

    /// Whether it names a request's trace, or says more of it.
    #[must_use]
    pub fn is_tracing(&self) -> bool {
        self.known == Known::Tracing
    }
}

const ACCEPT: Name<'_> = Name::of("accept");
const CONNECTION: Name<'_> = Name::of("connection");
const CONTENT_LENGTH: Name<'_> = Name::of("content-length");
const TE: Name<'_> = Name::of("te");
const TRANSFER_ENCODING: Name<'_> = Name::of("transfer-encoding");
const UPGRADE: Name<'_> = Name::of("upgrade");

/// The field lines of a head that is right, and the bytes that they are in.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'b> {
    /// The whole head, its empty line included.
    head: &'b [u8],
    list: &'b [Header<'b>],
    /// What each of the list is.
    known: &'b [Known],
    /// The bits of those that are there.
    seen: u32,
    /// Whether `Connection` says `close`.
    close: bool,
    /// Whether `Connection` says `upgrade`.
    upgrade: bool,
    /// Whether `Connection` says more than `keep-alive` or `close`.
    nominates: bool,
}

impl<'b> Fields<'b> {
    /// The fields of `head`; `known` is room for what each of the list is.
    ///
    /// httparse forgives a line that ends with a bare LF, on which other readers do not agree; a bare
    /// CR it refuses.
    fn new(
        head: &'b [u8],
        list: &'b [Header<'b>],
        known: &'b mut [Known; MAX_FIELDS],
    ) -> Result<Self, Malformed> {
        let mut seen = 0;
        for (field, known) in list.iter().zip(&mut *known) {
            *known = Known::of(field.name);
            seen |= known.bit();
        }
        let mut fields = Self {
            head,
            list,
            known: &known[..list.len()],
            seen,
            close: false,
            upgrade: false,
            nominates: false,
        };
        let starts = list.iter().map(|field| fields.offset(field.name)).chain([head.len() - 2]);
        // The empty line is the last line.
        if !head.ends_with(b"\r\n\r\n") || !starts.into_iter().all(|start| head[..start].ends_with(b"\r\n")) {
            return Err(bad("a line ends with a bare LF"));
        }
        for option in fields.connection_options() {
            if option.eq_ignore_ascii_case(b"close") {
                fields.close = true;
            } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                fields.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                fields.nominates = true;
            }
        }
        Ok(fields)
    }

    /// The first of these names that a field's becomes where underscores become dashes, as CGI and its
    /// heirs have it, and is not.
    #[must_use]
    pub fn imitated<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        let same = |own: u8, other: u8| own.eq_ignore_ascii_case(&other) || (own == b'_' && other == b'-');
        let imitates = |own: &[u8], name: &str| {
            own.len() == name.len() && own.iter().zip(name.as_bytes()).all(|(own, name)| same(*own, *name))
        };
        let mut suspects =
            self.list.iter().map(|field| field.name.as_bytes()).filter(|own| own.contains(&b'_'));
        suspects.find_map(|own| names.iter().find(|name| imitates(own, name)).copied())
    }

    /// The values of a field, in order.
    pub fn values<'h>(&self, name: Name<'h>) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b, 'h> {
        let list = if self.seen & name.known.bit() == 0 { &[] } else { self.list };
        list.iter()
            .zip(self.known)
            .filter(move |(field, known)| name.is(&Name { text: field.name, known: **known }))
            .map(|(field, _)| field.value)
    }

    /// Whether a browser says something that may name an overlay: a cookie, or where the request comes from.
    #[must_use]
    pub fn of_browser(&self) -> bool {
        self.seen & (Known::Cookie.bit() | Known::Browser.bit()) != 0
    }

    /// All fields: name and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'b> {
        self.list.iter().map(|field| (field.name, field.value))
    }

    /// The fields that name a request's trace or say more of it: name and value, in order.
    pub fn tracing(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + Clone + use<'b> {
        let list = if self.seen & Known::Tracing.bit() == 0 { &[] } else { self.list };
        let tracing = list.iter().zip(self.known).filter(|(_, known)| **known == Known::Tracing);
        tracing.map(|(field, _)| (field.name, field.value))
    }

    /// The options of `Connection`, without white space.
    fn connection_options(&self) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b> {
        self.values(CONNECTION).flat_map(members)
    }

    /// Whether a field is for this hop only (RFC 9110, section 7.6.1). What frames and addresses the
    /// message is never up to `Connection`.
    fn is_hop_by_hop(&self, name: Name<'_>) -> bool {
        match name.known {
            Known::Connection
            | Known::Http2Settings
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Te
            | Known::Upgrade => true,
            Known::Host | Known::ContentLength | Known::TransferEncoding => false,
            _ => {
                self.nominates
                    && self.connection_options().any(|own| own.eq_ignore_ascii_case(name.text.as_bytes()))
            }
        }
    }

    /// Appends the head from its byte `from` on to `out`, without what is for one hop, without the
    /// lines that are not kept and without the empty line. Runs of lines are copied as they came.
    fn copy(&self, from: usize, out: &mut Vec<u8>, mut keeps: impl FnMut(Name<'b>) -> bool) {
        let mut run = from;
        for (at, field) in self.list.iter().enumerate() {
            let name = Name { text: field.name, known: self.known[at] };
            if self.is_hop_by_hop(name) || !keeps(name) {
                out.extend_from_slice(&self.head[run..self.offset(field.name)]);
                run = self.line_after(at);
            }
        }
        out.extend_from_slice(&self.head[run..self.head.len() - 2]);
    }

    /// Appends the lines from the head's byte `from` on to `out`, without one field.
    fn copy_all_but(&self, left_out: Known, from: usize, out: &mut Vec<u8>) {
        let mut run = from;
        for (at, field) in self.list.iter().enumerate().filter(|(at, _)| self.known[*at] == left_out) {
            out.extend_from_slice(&self.head[run..self.offset(field.name)]);
            run = self.line_after(at);
        }
        out.extend_from_slice(&self.head[run..self.head.len() - 2]);
    }

    /// Where the line after the field at `at` begins.
    fn line_after(&self, at: usize) -> usize {
        self.list.get(at + 1).map_or(self.head.len() - 2, |next| self.offset(next.name))
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

impl FieldLines for Fields<'_> {
    #[inline]
    fn lines<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f [u8]> + Clone {
        self.values(Name::of(name))
    }
}

/// The members of a comma-separated list, without white space and without empty ones.
pub(crate) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// A `Content-Length` (RFC 9112, section 6.3): digits only. Not a list, no sign, and short enough
/// for every reader.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value
        .iter()
        .try_fold(0, |length, byte| byte.is_ascii_digit().then(|| length * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_underscores_imitates_the_one_with_dashes() {
        for (name, imitates) in [
            ("X_Overlay_Id", true),
            ("x-overlay_id", true),
            ("x-overlay-id", false),
            ("x_overlay_ids", false),
            ("x.overlay_id", false),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{name}: a\r\n\r\n");
            let found = request::parse(head.as_bytes(), |head| {
                head.fields.imitated(&["y", "x-overlay-id"]).is_some()
            });
            assert_eq!(found, Ok(Some(imitates)), "{name}");
        }
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for cut in 0..head.len() {
            assert!(has_end(&head[..cut], 0) || has_end(head, cut), "cut at {cut}");
        }
        assert!(!has_end(b"GET / HTTP/1.1\r\nHost: x\r\n\r", 0));
    }
}
