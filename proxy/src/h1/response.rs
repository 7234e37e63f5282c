//! An upstream's response head: how its body is delimited, what stays on that hop, what is refused.

use std::mem::MaybeUninit;

use httparse::{ParserConfig, Status};

use super::body::Body;
use super::{
    CONTENT_LENGTH, Fields, Known, MAX_FIELDS, Malformed, Name, TRANSFER_ENCODING, UPGRADE, bad,
    content_length, copy_upgrade,
};

/// A response's head that is right, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'b> {
    /// How many bytes it has.
    pub length: usize,
    /// The status.
    pub status: u16,
    /// How the body is delimited.
    pub body: Body,
    /// Whether the upstream's connection can serve another exchange after this one.
    pub reusable: bool,
    /// The field lines.
    pub fields: Fields<'b>,
    minor: u8,
}

impl Head<'_> {
    /// Whether more heads follow for the same request (RFC 9110, section 15.2).
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Appends what says which protocol is spoken from here on.
    pub fn copy_upgrade(&self, out: &mut Vec<u8>) {
        copy_upgrade(self.fields.values(UPGRADE), out);
    }

    /// Appends the head, as HTTP/1.1, to `out`: without its empty line, without what is for one hop,
    /// and without the fields for which `removes` holds.
    pub fn copy(&self, out: &mut Vec<u8>, removes: impl Fn(Name<'_>) -> bool) {
        // Without a body there is nothing that these could frame (RFC 9110, section 8.6).
        let unframed = self.status < 200 || self.status == 204;
        let keeps = |name: Name<'_>| match name.known {
            Known::ContentLength | Known::TransferEncoding => !unframed,
            _ => !removes(name),
        };
        if self.minor == 1 {
            self.fields.copy(0, out, keeps);
        } else {
            const VERSION: &[u8] = b"HTTP/1.1";
            out.extend_from_slice(VERSION);
            self.fields.copy(VERSION.len(), out, keeps);
        }
    }
}

/// Reads the head at the start of `bytes` and hands it to `with`; `None` where it is not complete.
/// `to_head` says that it answers a HEAD request.
///
/// # Errors
/// [`Malformed`].
pub fn parse<R>(
    bytes: &[u8],
    to_head: bool,
    with: impl FnOnce(&Head<'_>) -> R,
) -> Result<Option<R>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parser = ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(bad("more than 100 header fields")),
        Err(_) => return Err(bad("the head is malformed")),
    };
    let head = &bytes[..length];
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err(bad("the status line is malformed"));
    };
    // httparse forgives empty lines before the status line; nothing may stand there.
    if !head.starts_with(b"HTTP/1.") || !(100..1000).contains(&status) {
        return Err(bad("the status line is malformed"));
    }
    let mut known = [Known::Other; MAX_FIELDS];
    let fields = Fields::new(head, response.headers, &mut known)?;
    let framed = framing(&fields, minor)?;
    let body = match status {
        100..200 | 204 | 304 => Body::Length(0),
        _ if to_head => Body::Length(0),
        _ => framed,
    };
    // What says that it has a body where none can be is not trusted with another exchange.
    let lying = (status < 200 || status == 204) && !matches!(framed, Body::UntilClose | Body::Length(0));
    let reusable = minor == 1 && !lying && !matches!(body, Body::UntilClose) && !fields.close;
    Ok(Some(with(&Head { length, status, body, reusable, fields, minor })))
}

/// What the fields say about the body's length (RFC 9112, section 6.3), whatever the status.
fn framing(fields: &Fields<'_>, minor: u8) -> Result<Body, Malformed> {
    let mut lengths = fields.values(CONTENT_LENGTH);
    let mut codings = fields.values(TRANSFER_ENCODING);
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(Body::UntilClose),
        (Some(_), Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (Some(length), None) => match (content_length(length), lengths.next()) {
            (Some(length), None) => Ok(Body::Length(length)),
            _ => Err(bad("the Content-Length is malformed or repeated")),
        },
        (None, Some(_)) if minor == 0 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
            Ok(Body::Chunked)
        }
        (None, Some(_)) => Err(bad("the only transfer coding is `chunked`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str, to_head: bool) -> Result<Option<(u16, Body, bool)>, &'static str> {
        parse(head.as_bytes(), to_head, |head| (head.status, head.body, head.reusable))
            .map_err(|malformed| malformed.what)
    }

    #[test]
    fn status_method_and_fields_say_how_the_body_ends() {
        for (head, to_head, body, reusable) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Body::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Body::Length(0), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", false, Body::Chunked, true),
            ("HTTP/1.1 200\r\n\r\n", false, Body::UntilClose, false),
            ("HTTP/1.1 200 OK\r\n\r\n", true, Body::Length(0), true),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Body::Length(0), true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false, Body::Length(0), false),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false, Body::Length(0), true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Body::Length(0), true),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: a, Close\r\n\r\n",
                false,
                Body::Length(5),
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, Body::Length(5), false),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false, Body::Length(0), true),
        ] {
            let status = head[9..12].parse().expect("status");
            assert_eq!(read(head, to_head), Ok(Some((status, body, reusable))), "{head:?}");
        }
        assert_eq!(read("HTTP/1.1 200 OK\r\nA: b\r\n", false), Ok(None));
    }

    #[test]
    fn heads_that_readers_could_understand_differently_are_refused() {
        for rest in [
            " 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            " 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            " 200 OK\r\nContent-Length: +5\r\n\r\n",
            " 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            " 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            " 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            " 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            " 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
            " 204 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            " 200 OK\r\nA : b\r\n\r\n",
            " 200 OK\r\n A: b\r\n\r\n",
            " 200 OK\r\nA: b\r\n c\r\n\r\n",
            " 200 OK\r\nA: b\nC: d\r\n\r\n",
            " 200 OK\r\nA: b\rC: d\r\n\r\n",
            " 200 OK\r\nA: \0\r\n\r\n",
            " 200 OK\nA: b\r\n\r\n",
            " 2000 OK\r\n\r\n",
            " 099 OK\r\n\r\n",
            " abc\r\n\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1{rest}"), false).is_err(), "{rest:?}");
        }
        for head in ["HTTP/2.0 200 OK\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
            assert!(read(head, false).is_err(), "{head:?}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false).is_err());
    }

    #[test]
    fn what_is_for_one_hop_stays_there() {
        for (head, copied) in [
            (
                "HTTP/1.1 200 Fine thing\r\nA: b\r\nConnection: close, X-Own\r\nX-Own: 1\r\nKeep-Alive: x\r\nC:d\r\n\r\n",
                "HTTP/1.1 200 Fine thing\r\nA: b\r\nC:d\r\n",
            ),
            (
                "HTTP/1.0 200 OK\r\nX-Gone: 1\r\nContent-Length: 1\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n",
            ),
            (
                "HTTP/1.1 204 No\r\nContent-Length: 5\r\nTransfer-Coding: x\r\n\r\n",
                "HTTP/1.1 204 No\r\nTransfer-Coding: x\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            ),
            ("HTTP/1.1 200\r\n\r\n", "HTTP/1.1 200\r\n"),
        ] {
            let mut out = Vec::new();
            parse(head.as_bytes(), false, |head| {
                head.copy(&mut out, |name| name.is(&Name::of("x-gone")));
            })
            .expect("right")
            .expect("complete");
            assert_eq!(String::from_utf8_lossy(&out), copied);
        }
    }
}
