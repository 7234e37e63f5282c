//! The engines against each other: what a client's bytes become at the upstream, through real sockets.

use overlane::plane::EngineChoice;

use crate::case::differing;
use crate::exchange::{Seen, exchange};
use crate::message::{Kind, Message, Read, messages, read, token};

/// What the upstream answers to every request.
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Where a client pauses: what stands between the pieces of an input.
const PAUSE: &[u8] = b"\n--\n";
/// Longer inputs only take longer.
const LONGEST: usize = 4096;

/// The pieces of what a client sends.
///
/// # Panics
/// Where more requests arrive than were sent, or the engines do not agree about a right one.
pub fn check(input: &[u8]) {
    let pieces = pieces(input);
    let sent = pieces.concat();
    if sent.len() > LONGEST || sent.is_empty() || ends_in_a_tunnel(&sent) {
        return;
    }
    let [pingora, auto] = [EngineChoice::Pingora, EngineChoice::Auto].map(|engine| {
        let mut seen = exchange(engine, &pieces, REPLY);
        // The upstream sends no more after its reply: what was sent on that connection meanwhile is sent again
        // (docs/decisions/0009-retry-of-a-stale-pooled-connection.md).
        seen.upstream.dedup();
        seen
    });
    let requests = messages(&sent, Kind::Request);
    for seen in [&pingora, &auto] {
        let arrived = seen.upstream.iter().filter(|request| !request.starts_with("cut ")).count();
        assert!(
            requests.is_empty() || arrived <= requests.len(),
            "{} requests were sent, and {arrived} arrived: {seen:?}",
            requests.len(),
        );
        assert!(
            !seen.upstream.iter().any(|request| request.starts_with("rest ")),
            "no HTTP arrived: {seen:?}"
        );
    }
    if is_right(&sent) && !is_known(&requests[0]) {
        let arrived = without_te(&auto);
        let different = differing(&pingora.upstream, &arrived);
        assert!(different.is_empty(), "{}{different}\n{pingora:?}\n{auto:?}", sent.escape_ascii());
    }
}

fn pieces(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while let Some(at) = input.windows(PAUSE.len()).position(|window| window == PAUSE) {
        pieces.push(input[..at].to_vec());
        input = &input[at + PAUSE.len()..];
    }
    pieces.push(input.to_vec());
    pieces
}

/// What is said in an upgrade is not for us to understand.
fn ends_in_a_tunnel(sent: &[u8]) -> bool {
    sent.to_ascii_lowercase().windows(7).any(|window| window == b"upgrade")
}

/// Whether bytes are one whole request and nothing else, by a reader that forgives nothing.
#[must_use]
pub fn is_right(bytes: &[u8]) -> bool {
    is_whole(bytes, Kind::Request)
}

/// The same of any message.
#[must_use]
pub fn is_whole(bytes: &[u8], kind: Kind) -> bool {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes, |end| &bytes[..end]);
    let ends = head.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count();
    let lines = head.windows(2).filter(|window| *window == b"\r\n").count();
    let folded = head.windows(3).any(|window| window == b"\r\n " || window == b"\r\n\t");
    ends == lines * 2
        && !folded
        && matches!(read(bytes, kind, true), Read::Message(message) if message.whole && message.length == bytes.len())
}

/// Whether a right request is one of those in which the engines differ, and are known to
/// (`tests/tests/rules/http/differences.rs`), or which one of them may refuse.
fn is_known(request: &Message) -> bool {
    let has = |name: &str| request.values(name).next().is_some();
    let nominates =
        |name: &str| request.values("connection").any(|value| value.to_ascii_lowercase().contains(name));
    !request.trailers.is_empty()
        || has("trailer")
        || has("expect")
        || request.values("connection").any(|value| !value.split(',').all(|option| token(option.trim())))
        || nominates("host")
        || nominates("content-length")
        || nominates("transfer-encoding")
        || !request.start.ends_with(" HTTP/1.1")
}

/// What arrived through express, but for `TE: trailers`: Pingora forwards no trailers, and says so by saying nothing.
#[must_use]
pub fn without_te(auto: &Seen) -> Vec<String> {
    auto.upstream.iter().map(|request| request.replace(" | te: trailers", "")).collect()
}
