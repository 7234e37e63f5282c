//! A request's head: what is asked of whom, how the body is delimited, what is refused.
//!
//! Strict where proxies are attacked (RFC 9112, sections 2.2, 3.2, 5.1, 6.3 and 11.2). What is refused
//! closes the connection; nothing is guessed.

use std::mem::MaybeUninit;

use httparse::{ParserConfig, Status};

use super::body::Body;
use super::{
    ACCEPT, Fields, Known, MAX_FIELDS, Malformed, Name, TE, UPGRADE, bad, content_length, copy_upgrade,
    members,
};

/// A request's head that is right, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'b> {
    /// How many bytes it has.
    pub length: usize,
    /// The method.
    pub method: &'b str,
    /// The request target as it was sent.
    pub target: &'b str,
    /// The authority: of an absolute-form target, else `Host`; empty where neither is there.
    pub authority: &'b str,
    /// The path, without query.
    pub path: &'b str,
    /// How the body is delimited: by its length or by chunks.
    pub body: Body,
    /// Whether the target is in absolute form.
    pub absolute: bool,
    /// Whether the client asks for another protocol than HTTP.
    pub upgrade: bool,
    /// Whether the client speaks HTTP/1.0.
    pub old: bool,
    /// Whether the client closes after this exchange.
    pub close: bool,
    /// The field lines.
    pub fields: Fields<'b>,
}

impl<'b> Head<'b> {
    /// The values of a field, in order.
    pub fn values<'h>(&self, name: Name<'h>) -> impl Iterator<Item = &'b [u8]> + Clone + use<'b, 'h> {
        self.fields.values(name)
    }

    /// The query of the target, without its question mark.
    #[must_use]
    pub fn query(&self) -> Option<&'b str> {
        // Nearly every target is a path.
        if self.target.len() == self.path.len() {
            return None;
        }
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// Whether the client accepts JSON.
    #[must_use]
    pub fn accepts_json(&self) -> bool {
        self.values(ACCEPT).any(|value| value.len() > 3 && memchr::memmem::find(value, b"json").is_some())
    }

    /// Appends the head to `out`: in origin form, without its empty line, without what is for one hop,
    /// and without the fields for which `removes` holds.
    pub fn copy(&self, out: &mut Vec<u8>, removes: impl Fn(Name<'_>) -> bool) {
        let keeps = |name: Name<'_>| match name.known {
            Known::Host => !self.absolute,
            Known::ContentLength | Known::TransferEncoding => true,
            _ => !removes(name),
        };
        if self.absolute {
            self.copy_request_line(out);
            self.fields.copy(self.fields.start(), out, keeps);
        } else {
            self.fields.copy(0, out, keeps);
        }
        self.copy_te(out);
    }

    /// The request line of an absolute-form target in origin form, and `Host` as its authority says
    /// (RFC 9112, section 3.2.2: a proxy ignores the `Host` that came with it).
    fn copy_request_line(&self, out: &mut Vec<u8>) {
        let after = &self.target["http://".len() + self.authority.len()..];
        // RFC 9112, section 3.2.4: OPTIONS for a whole server.
        let whole_server = self.method == "OPTIONS" && after.is_empty();
        let start = if whole_server {
            "*"
        } else if after.starts_with('/') {
            ""
        } else {
            "/"
        };
        let version = if self.old { "HTTP/1.0" } else { "HTTP/1.1" };
        for part in [self.method, " ", start, after, " ", version, "\r\nHost: ", self.authority, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// Appends what asks for another protocol.
    pub fn copy_upgrade(&self, out: &mut Vec<u8>) {
        copy_upgrade(self.values(UPGRADE), out);
    }

    /// `TE` is for one hop; trailers are kept here, so that much of it is said anew.
    fn copy_te(&self, out: &mut Vec<u8>) {
        if self.values(TE).flat_map(members).any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
            out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
        }
    }
}

/// The head with an absolute-form target in origin form, and nothing else changed.
#[must_use]
pub fn in_origin_form(head: &Head<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.length + 8);
    if head.absolute {
        head.copy_request_line(&mut out);
        let before = head.fields.start();
        head.fields.copy_all_but(Known::Host, before, &mut out);
    } else {
        out.extend_from_slice(head.fields.head);
        return out;
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Reads the head at the start of `bytes` and hands it to `with`; `None` where it is not complete.
///
/// # Errors
/// [`Malformed`], with the status to answer.
pub fn parse<R>(bytes: &[u8], with: impl FnOnce(&Head<'_>) -> R) -> Result<Option<R>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parser = ParserConfig::default();
    let length = match parser.parse_request_with_uninit_headers(&mut request, bytes, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Malformed { status: 431, what: "more than 100 header fields" });
        }
        Err(httparse::Error::Version) => {
            return Err(Malformed { status: 505, what: "only HTTP/1.1 and HTTP/1.0 are spoken here" });
        }
        Err(httparse::Error::HeaderName) => return Err(bad("a header name is malformed")),
        Err(httparse::Error::HeaderValue) => return Err(bad("a header value is malformed")),
        Err(_) => return Err(bad("the request line is malformed")),
    };
    let head = &bytes[..length];
    // httparse forgives empty lines before the request line; those with a bare LF are left to it here.
    if head.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(bad("the request line is malformed"));
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(bad("the request line is malformed"));
    };
    let mut known = [Known::Other; MAX_FIELDS];
    let fields = Fields::new(head, request.headers, &mut known)?;
    let framing = Framing::of(&fields, minor)?;
    let (absolute, authority, path) = split_target(method, target)?;
    let head = Head {
        length,
        method,
        target,
        authority: authority.unwrap_or(framing.host),
        path,
        body: framing.body,
        absolute,
        upgrade: framing.upgrade,
        old: minor == 0,
        close: fields.close,
        fields,
    };
    Ok(Some(with(&head)))
}

/// What the fields of a request say about its host and its body, found in one pass.
struct Framing<'b> {
    host: &'b str,
    body: Body,
    upgrade: bool,
}

impl<'b> Framing<'b> {
    fn of(fields: &Fields<'b>, minor: u8) -> Result<Self, Malformed> {
        let (mut host, mut length, mut chunked, mut upgrade) = (None, None, false, false);
        for (field, known) in fields.list.iter().zip(fields.known) {
            match known {
                Known::Host => {
                    let first = host.replace(field.value).is_none();
                    first.then_some(()).ok_or(bad("several Host fields"))?;
                }
                Known::Upgrade => upgrade = true,
                Known::ContentLength => {
                    let value = content_length(field.value);
                    if value.is_none() || length.is_some() {
                        return Err(bad("the Content-Length is malformed or repeated"));
                    }
                    length = value;
                }
                Known::TransferEncoding => {
                    if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        let what = "the only transfer coding is `chunked`";
                        return Err(Malformed { status: 501, what });
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        let body = match (chunked, length) {
            (true, Some(_)) => return Err(bad("both Content-Length and Transfer-Encoding")),
            (true, None) if minor == 0 => return Err(bad("Transfer-Encoding in HTTP/1.0")),
            (true, None) => Body::Chunked,
            (false, length) => Body::Length(length.unwrap_or(0)),
        };
        let upgrade = upgrade && minor == 1 && asks_for_another(fields);
        Ok(Self { host: read_host(host, minor)?, body, upgrade })
    }
}

/// Whether fields ask for another protocol than HTTP (RFC 9110, section 7.8). Another version of HTTP is
/// never switched to: what came through such a tunnel would be requests that nobody has decided.
fn asks_for_another(fields: &Fields<'_>) -> bool {
    let is_http = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|http| name.eq_ignore_ascii_case(http))
    };
    fields.upgrade && !fields.values(UPGRADE).any(|value| value.split(|byte| *byte == b',').any(is_http))
}

fn read_host(host: Option<&[u8]>, minor: u8) -> Result<&str, Malformed> {
    match host {
        None if minor == 1 => Err(bad("HTTP/1.1 without a Host field")),
        None => Ok(""),
        Some(host) => {
            let text = std::str::from_utf8(host).map_err(|_| bad("the Host field is not ASCII"))?;
            let fine = text.is_empty() || overlane_config::url::split_authority(text).is_ok();
            if fine { Ok(text) } else { Err(bad("the Host field is malformed")) }
        }
    }
}

/// Whether the target is absolute, its authority, and its path without query.
fn split_target<'b>(method: &str, target: &'b str) -> Result<(bool, Option<&'b str>, &'b str), Malformed> {
    // A fragment is nobody's business but the client's (RFC 9112, section 3.2): who cuts it off and who does not
    // route by different paths.
    let without_query = |path: &'b str| match memchr::memchr2(b'?', b'#', path.as_bytes()) {
        None => Ok(path),
        Some(end) if memchr::memchr(b'#', &path.as_bytes()[end..]).is_some() => {
            Err(bad("the request target has a fragment"))
        }
        Some(end) => Ok(&path[..end]),
    };
    if target.starts_with('/') {
        return Ok((false, None, without_query(target)?));
    }
    if method == "OPTIONS" && target == "*" {
        return Ok((false, None, target));
    }
    if method == "CONNECT" {
        return match overlane_config::url::split_authority(target) {
            Ok((_, Some(_))) => Ok((false, Some(target), target)),
            _ => Err(bad("the target of CONNECT is not a host and a port")),
        };
    }
    let scheme = "http://";
    match target.get(..scheme.len()) {
        Some(start) if start.eq_ignore_ascii_case(scheme) => {
            let rest = &target[scheme.len()..];
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            if overlane_config::url::split_authority(authority).is_err() {
                return Err(bad("the authority of the target is malformed"));
            }
            let path = without_query(path)?;
            Ok((true, Some(authority), if path.is_empty() { "/" } else { path }))
        }
        _ => Err(bad("the request target is neither a path nor an http:// url")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: Result<(&str, &str, Body), u16>) {
        let parsed =
            parse(head.as_bytes(), |head| (head.authority.to_owned(), head.path.to_owned(), head.body));
        let shown = parsed
            .as_ref()
            .map(|whole| whole.as_ref().expect("complete"))
            .map(|(authority, path, body)| (&**authority, &**path, *body))
            .map_err(|e| e.status);
        assert_eq!(shown, expected, "{head:?}");
    }

    #[test]
    fn a_head_says_authority_path_and_body() {
        check("GET /a?b HTTP/1.1\r\nHost: x:80\r\n\r\n", Ok(("x:80", "/a", Body::Length(0))));
        check("GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", Ok(("y", "/a", Body::Length(0))));
        check("GET http://y?q HTTP/1.1\r\nHost: x\r\n\r\n", Ok(("y", "/", Body::Length(0))));
        check("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", Ok(("x", "/", Body::Length(5))));
        check(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n",
            Ok(("x", "/", Body::Chunked)),
        );
        check("GET / HTTP/1.0\r\n\r\n", Ok(("", "/", Body::Length(0))));
        check("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", Ok(("x", "*", Body::Length(0))));
    }

    #[test]
    fn framing_on_which_readers_could_disagree_is_refused() {
        for (fields, status) in [
            ("Content-Length: 5, 5", 400),
            ("Content-Length: +5", 400),
            ("Content-Length: ", 400),
            ("Content-Length: 5\r\nContent-Length: 5", 400),
            ("Content-Length: 99999999999999999999", 400),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
            ("Transfer-Encoding: gzip, chunked", 501),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
            ("Transfer-Encoding: xchunked", 501),
            ("Host: y", 400),
            ("A : b", 400),
            (" A: b", 400),
            ("A: b\n", 400),
            ("A: b\rC: d", 400),
            ("A: \0", 400),
            ("A: b\r\n c", 400),
            ("A", 400),
        ] {
            check(&format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n"), Err(status));
        }
    }

    #[test]
    fn request_lines_that_are_no_http_1_are_refused() {
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("PRI * HTTP/2.0\r\n\r\n", 505),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /a?b#c HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://x#a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ] {
            check(head, Err(status));
        }
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
        check(&many, Err(431));
    }

    /// What `with` makes of a head that is right.
    fn read<R>(head: &str, with: impl FnOnce(&Head<'_>) -> R) -> R {
        parse(head.as_bytes(), with).expect("right").expect("complete")
    }

    #[test]
    fn an_incomplete_head_is_waited_for() {
        let head = "POST / HTTP/1.1\r\nHost: x\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(parse(&head.as_bytes()[..cut], |_| ()), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn absolute_form_becomes_origin_form_and_its_authority_the_host() {
        for (line, expected) in [
            ("GET http://pay:80/a?b HTTP/1.1", "GET /a?b HTTP/1.1\r\nHost: pay:80"),
            ("GET HTTP://pay?x HTTP/1.1", "GET /?x HTTP/1.1\r\nHost: pay"),
            ("OPTIONS http://pay HTTP/1.1", "OPTIONS * HTTP/1.1\r\nHost: pay"),
            ("GET http://pay HTTP/1.0", "GET / HTTP/1.0\r\nHost: pay"),
        ] {
            let head = format!("{line}\r\nA: b\r\nhost: other\r\nC: d\r\n\r\n");
            let rewritten = read(&head, in_origin_form);
            assert_eq!(String::from_utf8_lossy(&rewritten), format!("{expected}\r\nA: b\r\nC: d\r\n\r\n"));
        }
    }

    #[test]
    fn what_is_for_one_hop_and_what_is_replaced_stays_behind_and_all_else_is_copied_as_it_came() {
        for (fields, copied) in [
            ("Host: x\r\nA:b\r\nB:  c \r\n", "Host: x\r\nA:b\r\nB:  c \r\n"),
            ("Host: x\r\nX-Gone: 1\r\nA: b\r\nx-gone: 2\r\n", "Host: x\r\nA: b\r\n"),
            ("Connection: keep-alive\r\nHost: x\r\nKeep-Alive: 5\r\n", "Host: x\r\n"),
            ("Connection: close, A\r\nHost: x\r\nA: b\r\nB: c\r\n", "Host: x\r\nB: c\r\n"),
            (
                "Connection: host, content-length\r\nHost: x\r\nContent-Length: 1\r\n",
                "Host: x\r\nContent-Length: 1\r\n",
            ),
            ("Host: x\r\nTE: gzip\r\nProxy-Connection: close\r\n", "Host: x\r\n"),
            (
                "Host: x\r\nTE: gzip, trailers\r\nConnection: TE\r\nTrailer: a\r\n",
                "Host: x\r\nTrailer: a\r\nTE: trailers\r\nConnection: TE\r\n",
            ),
        ] {
            let mut out = Vec::new();
            read(&format!("GET / HTTP/1.1\r\n{fields}\r\n"), |head| {
                head.copy(&mut out, |name| name.is(&Name::of("x-gone")));
            });
            assert_eq!(String::from_utf8_lossy(&out), format!("GET / HTTP/1.1\r\n{copied}"));
        }
    }

    #[test]
    fn close_is_one_option_among_others() {
        assert!(read("GET / HTTP/1.1\r\nHost: x\r\nConnection: a, Close\r\n\r\n", |head| head.close));
        assert!(!read("GET / HTTP/1.1\r\nHost: x\r\nConnection: closed\r\n\r\n", |head| head.close));
    }
}
