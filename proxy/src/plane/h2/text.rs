//! Heads of HTTP/2 as HTTP/1.1 has them, and back. No I/O.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request, response};

use crate::h1::body::Body;
use crate::h1::request as h1_request;
use crate::h1::response as h1_response;
use crate::h1::{Malformed, bad};

/// Fields that are about a connection of HTTP/1.1 (RFC 9113, section 8.2.2).
fn is_of_connection(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// A request's head as text, and whether its body goes in chunks. `ended` where it has none.
///
/// # Errors
/// What a request of HTTP/2 may not be (RFC 9113, section 8.3.1).
pub(super) fn request_text(head: &request::Parts, ended: bool) -> Result<(Vec<u8>, bool), Malformed> {
    let fields = &head.headers;
    let mut hosts = fields.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("several `host` fields"));
    }
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(bad("`:authority` and `host` differ"));
    }
    let target = match head.uri.path_and_query() {
        _ if head.method == Method::CONNECT => head.uri.authority().map_or("", Authority::as_str),
        Some(target) => target.as_str(),
        None => "/",
    };
    let mut out = Vec::with_capacity(512);
    for part in [head.method.as_str(), " ", target, " HTTP/1.1\r\nHost: "] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(authority.or(host).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
    for (name, value) in fields {
        if *name != HOST && *name != COOKIE && !is_of_connection(name) {
            line(&mut out, name.as_str(), value.as_bytes());
        }
    }
    write_cookies(fields, &mut out);
    let chunked = !ended && !fields.contains_key(CONTENT_LENGTH);
    if chunked {
        line(&mut out, "Transfer-Encoding", b"chunked");
    } else if ended && !fields.contains_key(CONTENT_LENGTH) && takes_body(&head.method) {
        // RFC 9110, section 8.6: so a server does not wait for one.
        line(&mut out, "Content-Length", b"0");
    }
    out.extend_from_slice(b"\r\n");
    Ok((out, chunked))
}

fn takes_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// A cookie may come in crumbs; elsewhere it is one line (RFC 9113, section 8.2.3).
fn write_cookies(fields: &HeaderMap, out: &mut Vec<u8>) {
    let mut crumbs = fields.get_all(COOKIE).iter().peekable();
    if crumbs.peek().is_none() {
        return;
    }
    out.extend_from_slice(b"Cookie: ");
    while let Some(crumb) = crumbs.next() {
        out.extend_from_slice(crumb.as_bytes());
        if crumbs.peek().is_some() {
            out.extend_from_slice(b"; ");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The request that a head in origin form stands for, and how its body is delimited; `None` where it is
/// not complete.
///
/// # Errors
/// A head that is none.
pub(super) fn request_of(text: &[u8], scheme: &Scheme) -> Result<Option<(Request<()>, Body)>, Malformed> {
    let read = h1_request::parse(text, |head| {
        let wrong = |_| bad("the request cannot be said in HTTP/2");
        let mut uri = Uri::builder().scheme(scheme.clone()).authority(head.authority);
        uri = match head.target {
            "*" => uri.path_and_query(PathAndQuery::from_static("*")),
            target => uri.path_and_query(target),
        };
        let uri = uri.build().map_err(wrong)?;
        let mut request = Request::builder().method(head.method).uri(uri).body(()).map_err(wrong)?;
        for (name, value) in head.fields.iter() {
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a header name is malformed"))?;
            let value = HeaderValue::from_bytes(value).map_err(|_| bad("a header value is malformed"))?;
            if name != HOST && !is_of_connection(&name) && (name != TE || value == "trailers") {
                request.headers_mut().append(name, value);
            }
        }
        *request.version_mut() = http::Version::HTTP_2;
        Ok((request, head.body))
    })?;
    read.transpose()
}

/// A response's head as text, and whether its body goes in chunks. `ended` where it has none; `to_head`
/// where it answers a HEAD request.
pub(super) fn response_text(head: &response::Parts, to_head: bool, ended: bool) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(256);
    status_line(head.status, &mut out);
    let fields = &head.headers;
    let bodiless = to_head || matches!(head.status.as_u16(), 204 | 304);
    // Trailers only come after chunks; who announces them, or is known for them, gets those.
    let trailing = fields.contains_key(TRAILER) || is_grpc(fields);
    let chunked = !bodiless && !ended && (trailing || !fields.contains_key(CONTENT_LENGTH));
    for (name, value) in fields {
        let reframed = chunked && *name == CONTENT_LENGTH;
        if !(reframed || is_of_connection(name)) {
            line(&mut out, name.as_str(), value.as_bytes());
        }
    }
    if chunked {
        line(&mut out, "Transfer-Encoding", b"chunked");
    } else if ended && !bodiless && !fields.contains_key(CONTENT_LENGTH) {
        line(&mut out, "Content-Length", b"0");
    }
    out.extend_from_slice(b"\r\n");
    (out, chunked)
}

/// An interim response's head as text.
pub(super) fn interim_text(head: &response::Parts) -> Vec<u8> {
    let mut out = Vec::new();
    status_line(head.status, &mut out);
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_of_connection(name)) {
        line(&mut out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn status_line(status: StatusCode, out: &mut Vec<u8>) {
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn is_grpc(fields: &HeaderMap) -> bool {
    fields.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A response that goes to a client of HTTP/2.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<()>,
    pub(super) body: Body,
}

/// The response that a head stands for; `None` where it is not complete. `to_head` where it answers a
/// HEAD request.
///
/// # Errors
/// A head that is none.
pub(super) fn response_of(text: &[u8], to_head: bool) -> Result<Option<Answer>, Malformed> {
    let read = h1_response::parse(text, to_head, |head| {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| bad("no such status"))?;
        *response.version_mut() = http::Version::HTTP_2;
        append(&head.fields, response.headers_mut())?;
        Ok(Answer { response, body: head.body })
    })?;
    read.transpose()
}

fn append(fields: &crate::h1::Fields<'_>, to: &mut HeaderMap) -> Result<(), Malformed> {
    for (name, value) in fields.iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a header name is malformed"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("a header value is malformed"))?;
        if !is_of_connection(&name) {
            to.append(name, value);
        }
    }
    Ok(())
}

/// The last chunk, with the trailers that follow it.
pub(super) fn last_chunk(trailers: Option<&HeaderMap>) -> Vec<u8> {
    let mut out = b"0\r\n".to_vec();
    for (name, value) in trailers.into_iter().flatten() {
        line(&mut out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The trailers that are between the last chunk and the end of a body.
///
/// # Errors
/// Lines that are no fields.
pub(super) fn trailers_of(text: &[u8]) -> Result<HeaderMap, Malformed> {
    let wrong = || bad("a trailer is malformed");
    let mut lines = [httparse::EMPTY_HEADER; crate::h1::MAX_FIELDS];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(text, &mut lines) else {
        return Err(wrong());
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for field in lines {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| wrong())?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(builder: request::Builder, ended: bool) -> Result<String, &'static str> {
        let (head, ()) = builder.body(()).expect("request").into_parts();
        request_text(&head, ended)
            .map(|(text, _)| String::from_utf8(text).expect("text"))
            .map_err(|malformed| malformed.what)
    }

    #[test]
    fn a_request_becomes_text_with_host_one_cookie_and_a_framing() {
        let get = || Request::get("http://pay:80/a?b");
        let post = || Request::post("http://pay/a");
        for (builder, ended, expected) in [
            (get(), true, "GET /a?b HTTP/1.1\r\nHost: pay:80\r\n\r\n"),
            (
                get().header("a", "b").header("a", "c"),
                true,
                "GET /a?b HTTP/1.1\r\nHost: pay:80\r\na: b\r\na: c\r\n\r\n",
            ),
            (get().header("host", "PAY:80"), true, "GET /a?b HTTP/1.1\r\nHost: pay:80\r\n\r\n"),
            (
                get().header("cookie", "a=1").header("x", "y").header("cookie", "b=2"),
                true,
                "GET /a?b HTTP/1.1\r\nHost: pay:80\r\nx: y\r\nCookie: a=1; b=2\r\n\r\n",
            ),
            (post(), true, "POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: 0\r\n\r\n"),
            (post(), false, "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (
                post().header("content-length", "5"),
                false,
                "POST /a HTTP/1.1\r\nHost: pay\r\ncontent-length: 5\r\n\r\n",
            ),
            (
                get().header("te", "trailers"),
                true,
                "GET /a?b HTTP/1.1\r\nHost: pay:80\r\nte: trailers\r\n\r\n",
            ),
            (Request::options("*").header("host", "pay"), true, "OPTIONS * HTTP/1.1\r\nHost: pay\r\n\r\n"),
        ] {
            assert_eq!(request(builder, ended).as_deref(), Ok(expected));
        }
        assert!(request(get().header("host", "other"), true).is_err(), "another host");
        assert!(request(get().header("host", "pay:80").header("host", "a"), true).is_err(), "two hosts");
    }

    #[test]
    fn a_text_becomes_a_request_without_what_was_for_one_hop() {
        let text = b"POST /a?b HTTP/1.1\r\nHost: pay\r\nA: b\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (request, body) = request_of(text, &Scheme::HTTPS).expect("right").expect("complete");
        assert_eq!((request.uri().to_string().as_str(), body), ("https://pay/a?b", Body::Chunked));
        let names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["a", "te"]);
        let (request, _) = request_of(b"OPTIONS * HTTP/1.1\r\nHost: pay\r\n\r\n", &Scheme::HTTP)
            .expect("right")
            .expect("complete");
        assert_eq!(request.uri().path(), "*");
        assert!(request_of(b"GET / HTTP/1.1\r\nHost: p", &Scheme::HTTP).expect("right").is_none());
    }

    fn response(builder: response::Builder, to_head: bool, ended: bool) -> String {
        let (head, ()) = builder.body(()).expect("response").into_parts();
        String::from_utf8(response_text(&head, to_head, ended).0).expect("text")
    }

    #[test]
    fn a_response_becomes_text_with_a_framing_that_keeps_trailers() {
        let ok = || Response::builder().status(200);
        let grpc = || ok().header("content-type", "application/grpc+proto");
        for (builder, to_head, ended, expected) in [
            (ok(), false, true, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            (ok(), false, false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (ok(), true, true, "HTTP/1.1 200 OK\r\n\r\n"),
            (ok().header("content-length", "5"), true, true, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            (
                ok().header("content-length", "5"),
                false,
                false,
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            ),
            (Response::builder().status(204), false, true, "HTTP/1.1 204 No Content\r\n\r\n"),
            (
                grpc().header("content-length", "5"),
                false,
                false,
                "HTTP/1.1 200 OK\r\ncontent-type: application/grpc+proto\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            (Response::builder().status(599), false, true, "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n"),
        ] {
            assert_eq!(response(builder, to_head, ended), expected);
        }
    }

    #[test]
    fn trailers_come_back_as_they_were() {
        let mut trailers = HeaderMap::new();
        trailers.append("grpc-status", HeaderValue::from_static("0"));
        trailers.append("grpc-message", HeaderValue::from_static("a b"));
        let text = last_chunk(Some(&trailers));
        assert_eq!(trailers_of(&text[3..]), Ok(trailers));
        assert_eq!(last_chunk(None), b"0\r\n\r\n");
        assert!(trailers_of(b"A b\r\n\r\n").is_err());
    }
}
