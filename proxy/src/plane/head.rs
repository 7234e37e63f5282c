//! A request's head before any engine sees it: where it ends, how the body is delimited, what is refused.
//!
//! Strict where proxies are attacked (RFC 9112, sections 2.2, 3.2, 5.1, 6.3 and 11.2). What is refused
//! closes the connection; nothing is guessed.

use httparse::{EMPTY_HEADER, Header, Status};

/// The most header fields in a request.
pub const MAX_HEADERS: usize = 100;

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0 without a body.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// What is wrong with a head; each has a status and a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong.
    pub what: &'static str,
}

const fn bad(what: &'static str) -> Malformed {
    Malformed { status: 400, what }
}

/// A head that is right, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'b> {
    /// The method.
    pub method: &'b str,
    /// The request target as it was sent.
    pub target: &'b str,
    /// The authority: of an absolute-form target, else `Host`; empty where neither is there.
    pub authority: &'b str,
    /// The path, without query.
    pub path: &'b str,
    /// How the body is delimited.
    pub body: Body,
    /// Whether the target is in absolute form.
    pub absolute: bool,
    /// Whether the client asks for another protocol.
    pub upgrade: bool,
    fields: &'b [Header<'b>],
}

impl<'b> Head<'b> {
    /// The values of a header field, in order; `name` is in lower case.
    pub fn values<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'b [u8]> + Clone + 'h {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

/// Where the head at the start of `bytes` ends, looking only at what is new since `seen` bytes.
#[must_use]
pub fn end(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    bytes[from..].windows(4).position(|window| window == b"\r\n\r\n").map(|at| from + at + 4)
}

/// Reads a whole head and hands it to `with`.
///
/// # Errors
/// [`Malformed`], with the status to answer.
pub fn parse<R>(bytes: &[u8], with: impl FnOnce(&Head<'_>) -> R) -> Result<R, Malformed> {
    refuse_bare_line_ends(bytes)?;
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(bad("the head is not complete")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Malformed { status: 431, what: "more than 100 header fields" });
        }
        Err(httparse::Error::Version) => {
            return Err(Malformed { status: 505, what: "only HTTP/1.1 and HTTP/1.0 are spoken here" });
        }
        Err(httparse::Error::HeaderName) => return Err(bad("a header name is malformed")),
        Err(httparse::Error::HeaderValue) => return Err(bad("a header value is malformed")),
        Err(_) => return Err(bad("the request line is malformed")),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(bad("the request line is malformed"));
    };
    let fields = &*request.headers;
    let host = host(fields, minor)?;
    let (absolute, authority, path) = split_target(method, target)?;
    let head = Head {
        method,
        target,
        authority: authority.unwrap_or(host),
        path,
        body: body(fields, minor)?,
        absolute,
        upgrade: fields.iter().any(|field| field.name.eq_ignore_ascii_case("upgrade")),
        fields,
    };
    Ok(with(&head))
}

/// httparse forgives a bare LF; other readers do not agree on what it means.
fn refuse_bare_line_ends(bytes: &[u8]) -> Result<(), Malformed> {
    let mut before = 0;
    for &byte in bytes {
        match (before, byte) {
            (b'\r', b'\n') => {}
            (_, b'\n') => return Err(bad("a line ends with a bare LF")),
            (b'\r', _) => return Err(bad("a bare CR in the head")),
            _ => {}
        }
        before = byte;
    }
    Ok(())
}

fn host<'b>(fields: &[Header<'b>], minor: u8) -> Result<&'b str, Malformed> {
    let mut hosts = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(bad("several Host fields")),
        (None, _) if minor == 1 => Err(bad("HTTP/1.1 without a Host field")),
        (None, _) => Ok(""),
        (Some(host), None) => {
            let text =
                std::str::from_utf8(host.value).map_err(|_| bad("the Host field is not ASCII"))?.trim();
            let fine = text.is_empty() || overlane_config::url::split_authority(text).is_ok();
            if fine { Ok(text) } else { Err(bad("the Host field is malformed")) }
        }
    }
}

/// Whether the target is absolute, its authority, and its path without query.
fn split_target<'b>(method: &str, target: &'b str) -> Result<(bool, Option<&'b str>, &'b str), Malformed> {
    let without_query = |path: &'b str| path.split(['?', '#']).next().unwrap_or(path);
    if target.starts_with('/') {
        return Ok((false, None, without_query(target)));
    }
    if method == "CONNECT" || (method == "OPTIONS" && target == "*") {
        return Ok((false, None, target));
    }
    let scheme = "http://";
    match target.get(..scheme.len()) {
        Some(start) if start.eq_ignore_ascii_case(scheme) => {
            let rest = &target[scheme.len()..];
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            if overlane_config::url::split_authority(authority).is_err() {
                return Err(bad("the authority of the target is malformed"));
            }
            let path = without_query(path);
            Ok((true, Some(authority), if path.is_empty() { "/" } else { path }))
        }
        _ => Err(bad("the request target is neither a path nor an http:// url")),
    }
}

fn body(fields: &[Header<'_>], minor: u8) -> Result<Body, Malformed> {
    let mut length = None;
    let mut chunked = false;
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            // Not a list, no sign, no second one: lengths on which readers could disagree.
            let digits = !field.value.is_empty()
                && field.value.len() <= 18
                && field.value.iter().all(u8::is_ascii_digit);
            if !digits || length.is_some() {
                return Err(bad("the Content-Length is malformed or repeated"));
            }
            length = std::str::from_utf8(field.value).ok().and_then(|digits| digits.parse().ok());
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed { status: 501, what: "the only transfer coding is `chunked`" });
            }
            chunked = true;
        }
    }
    match (chunked, length) {
        (true, Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (true, None) if minor == 0 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (true, None) => Ok(Body::Chunked),
        (false, length) => Ok(Body::Length(length.unwrap_or(0))),
    }
}

/// The head with an absolute-form target in origin form and `Host` as its authority says
/// (RFC 9112, section 3.2.2: a proxy ignores the `Host` that came with it).
#[must_use]
pub fn in_origin_form(bytes: &[u8], target: &str, authority: &str) -> Vec<u8> {
    let after = &target["http://".len() + authority.len()..];
    let slash = if after.starts_with('/') { "" } else { "/" };
    let after = after.split('#').next().unwrap_or(after);
    let text = bytes.split(|byte| *byte == b'\n');
    let mut out = Vec::with_capacity(bytes.len());
    for (number, line) in text.enumerate() {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if number == 0 {
            let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            out.extend_from_slice(
                &[method, b" ", slash.as_bytes(), after.as_bytes(), b" ", version, b"\n"].concat(),
            );
            out.extend_from_slice(format!("Host: {authority}\r\n").as_bytes());
        } else if !name.eq_ignore_ascii_case(b"host") && !line.is_empty() {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: Result<(&str, &str, Body), u16>) {
        let parsed =
            parse(head.as_bytes(), |head| (head.authority.to_owned(), head.path.to_owned(), head.body));
        let shown = parsed
            .as_ref()
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
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ] {
            check(head, Err(status));
        }
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
        check(&many, Err(431));
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for cut in 0..head.len() {
            let found = end(&head[..cut], 0).or_else(|| end(head, cut));
            assert_eq!(found, Some(head.len() - 4), "cut at {cut}");
        }
    }

    #[test]
    fn absolute_form_becomes_origin_form_and_its_authority_the_host() {
        let head = "GET http://pay:80/a?b HTTP/1.1\r\nA: b\r\nhost: other\r\nC: d\r\n\r\n";
        let rewritten = in_origin_form(head.as_bytes(), "http://pay:80/a?b", "pay:80");
        assert_eq!(
            String::from_utf8_lossy(&rewritten),
            "GET /a?b HTTP/1.1\r\nHost: pay:80\r\nA: b\r\nC: d\r\n\r\n"
        );
        let rewritten = in_origin_form(b"GET http://pay?x HTTP/1.1\r\n\r\n", "http://pay?x", "pay");
        assert_eq!(String::from_utf8_lossy(&rewritten), "GET /?x HTTP/1.1\r\nHost: pay\r\n\r\n");
    }
}
