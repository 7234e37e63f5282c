//! Heads of requests and responses: what is taken is read alike by [`message`], and so is what leaves.

use overlane::h1::body::Body;
use overlane::h1::{Fields, Name, has_end, request, response};

use crate::message::{self, Field, Framing, Kind, Message, Read};

/// Prefixes of a head up to this length are all tried; of a longer one as many.
const PREFIXES: usize = 256;

/// Reads the bytes as a request, and as the response to a GET and to a HEAD.
///
/// # Panics
/// Where a rule is broken.
pub fn check(bytes: &[u8]) {
    check_request(bytes);
    check_response(bytes, false);
    check_response(bytes, true);
}

fn check_request(bytes: &[u8]) {
    let read = request::parse(bytes, |head| {
        assert_whole(bytes, head.length);
        let message = agreed(bytes, Kind::Request, &head.fields, head.body);
        assert_eq!(message.start, format!("{} {} HTTP/1.{}", head.method, head.target, u8::from(!head.old)));
        let copied = copy(|out| head.copy(out, |_| false));
        assert_request_is_same(&copied, head);
        assert_eq!(again(&copied), copied, "what was copied is copied as it is");
        let origin = request::in_origin_form(head);
        assert_request_is_same(&origin, head);
        let leaves: Vec<_> = ["x-a", "baggage"].into_iter().map(Name::of).collect();
        let without = copy(|out| head.copy(out, |name| leaves.iter().any(|left| left.is(&name))));
        request::parse(&without, |head| {
            assert!(leaves.iter().all(|left| head.values(*left).next().is_none()));
        })
        .expect("what leaves is right")
        .expect("whole");
        head.length
    });
    match read {
        Ok(Some(length)) => assert_waits(&bytes[..length], |part| request::parse(part, |_| ())),
        Ok(None) => {
            assert!(!has_end(bytes, 0) || bytes[0].is_ascii_whitespace(), "a head ends, and is waited for");
        }
        Err(malformed) => {
            assert!(matches!(malformed.status, 400 | 431 | 501 | 505), "{malformed:?}");
            let more = [bytes, b"\r\n\r\n"].concat();
            assert_eq!(request::parse(&more, |_| ()), Err(malformed), "what is malformed stays so");
        }
    }
}

/// What a head becomes where it goes on, with the empty line.
fn copy(copy: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    copy(&mut out);
    out.extend_from_slice(b"\r\n");
    out
}

fn again(head: &[u8]) -> Vec<u8> {
    let copied = request::parse(head, |head| copy(|out| head.copy(out, |_| false)));
    copied.expect("what leaves is right").expect("whole")
}

/// Whether a head that leaves asks the same of the same as the one that came.
fn assert_request_is_same(leaves: &[u8], came: &request::Head<'_>) {
    let read = request::parse(leaves, |head| {
        assert!(!head.absolute && head.length == leaves.len());
        assert_eq!((head.method, head.body, head.old), (came.method, came.body, came.old));
        let whole_server = head.method == "OPTIONS" && head.path == "*";
        assert!(head.path == came.path || whole_server, "{} {}", head.path, came.path);
        assert_eq!(head.authority, came.authority);
        agreed(leaves, Kind::Request, &head.fields, head.body);
    });
    read.unwrap_or_else(|why| panic!("{why:?}: {}", leaves.escape_ascii())).expect("whole");
}

fn check_response(bytes: &[u8], to_head: bool) {
    let kind = if to_head { Kind::ResponseToHead } else { Kind::Response };
    let read = response::parse(bytes, to_head, |head| {
        assert_whole(bytes, head.length);
        let message = agreed(bytes, kind, &head.fields, head.body);
        assert_eq!(message.status(), head.status.to_string());
        let copied = copy(|out| head.copy(out, |_| false));
        let read = response::parse(&copied, to_head, |again| {
            assert_eq!((again.status, again.body), (head.status, head.body));
            agreed(&copied, kind, &again.fields, again.body);
        });
        read.expect("what leaves is right").expect("whole");
        head.length
    });
    if let Ok(Some(length)) = read {
        assert_waits(&bytes[..length], |part| response::parse(part, to_head, |_| ()));
    }
}

/// A head ends with the first empty line.
fn assert_whole(bytes: &[u8], length: usize) {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    assert_eq!(end, length.checked_sub(4), "where the head ends");
}

/// A head that is not all there is waited for.
fn assert_waits<E: PartialEq + std::fmt::Debug>(head: &[u8], parse: impl Fn(&[u8]) -> Result<Option<()>, E>) {
    for end in (0..head.len()).step_by(head.len().div_ceil(PREFIXES)) {
        assert_eq!(parse(&head[..end]), Ok(None), "after {end} bytes");
    }
}

/// The message as the other reader has it, after it was held against ours.
fn agreed(bytes: &[u8], kind: Kind, fields: &Fields<'_>, body: Body) -> Message {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("whole") + 4;
    let message = match message::read(&bytes[..head], kind, true) {
        Read::Message(message) => message,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let ours: Vec<Field> = fields.iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    assert_eq!(ours, message.fields);
    let framing = match body {
        Body::Length(0) if message.framing == Framing::Nothing => Framing::Nothing,
        Body::Length(length) => Framing::Length(usize::try_from(length).expect("64 bits")),
        Body::Chunked => Framing::Chunked,
        Body::UntilClose => Framing::ToClose,
    };
    assert_eq!(framing, message.framing);
    message
}
