//! Generated requests and responses, right ones and mutated ones, through both engines: what the upstream and the
//! client saw must be the same.
//!
//! Where the bytes are right HTTP there is no excuse. Where they are not, one engine may be stricter than the other, if
//! it refuses what it does not take.

use overlane::plane::EngineChoice;
use overlane_tests::case::differing;
use overlane_tests::exchange::{Seen, exchange};
use overlane_tests::fuzz::engines::{is_right, is_whole, without_te};
use overlane_tests::message::{Kind, messages};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// How a body is written.
#[derive(Debug, Clone)]
enum Body {
    Nothing,
    Length(Vec<u8>),
    Chunks(Vec<(Vec<u8>, &'static str)>),
}

#[derive(Clone)]
struct Exchanged {
    request: Vec<u8>,
    cuts: Vec<Index>,
    reply: Vec<u8>,
}

impl std::fmt::Debug for Exchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = |bytes: &[u8]| bytes.escape_ascii().to_string();
        write!(f, "\n  request {}\n  reply   {}", told(&self.request), told(&self.reply))
    }
}

impl Exchanged {
    fn pieces(&self) -> Vec<Vec<u8>> {
        let mut cuts: Vec<_> = self.cuts.iter().map(|cut| cut.index(self.request.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([self.request.len()]) {
            pieces.push(self.request[from..cut].to_vec());
            from = cut;
        }
        pieces
    }
}

fn body() -> impl Strategy<Value = Body> {
    let bytes = || vec(prop_oneof![b'a'..b'e', any::<u8>()], 0..600);
    let extension = select(vec!["", "", "", ";a=b", ";a", ";a=\"b c\""]);
    prop_oneof![
        2 => Just(Body::Nothing),
        2 => bytes().prop_map(Body::Length),
        2 => vec((bytes(), extension), 0..4).prop_map(Body::Chunks),
    ]
}

/// The head with the fields of the framing, and the body.
fn message(start: &str, fields: &[&str], body: &Body) -> Vec<u8> {
    let mut head = start.to_owned();
    for field in fields {
        head.push_str(&format!("\r\n{field}"));
    }
    match body {
        Body::Nothing => [&head, "\r\n\r\n"].concat().into(),
        Body::Length(bytes) => {
            [format!("{head}\r\nContent-Length: {}\r\n\r\n", bytes.len()).as_bytes(), bytes].concat()
        }
        Body::Chunks(chunks) => {
            let mut whole = format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
            for (bytes, extension) in chunks.iter().filter(|(bytes, _)| !bytes.is_empty()) {
                whole.extend(format!("{:x}{extension}\r\n", bytes.len()).as_bytes());
                whole.extend(bytes);
                whole.extend(b"\r\n");
            }
            whole.extend(b"0\r\n\r\n");
            whole
        }
    }
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = select(vec!["GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "REPORT"]);
    let target = select(vec!["/", "/a/b?c=d", "/%2e%2e/x", "/a?b?c", "//a", "http://web/a?b", "http://x"]);
    let fields = vec(
        select(vec![
            "Accept: */*",
            "x-overlay-id: alice",
            "X-Overlay-Id: nobody",
            "baggage: a=1,overlay-id=alice,b=2",
            "baggage: c=3",
            "Cookie: a=b",
            "Connection: close",
            "Connection: keep-alive",
            "Connection: x-own",
            "X-Own: 1",
            "Keep-Alive: timeout=1",
            "TE: trailers",
            "X-Empty:",
            "X-Forwarded-For: 192.0.2.7",
            "X-Utf8: \u{e4}",
        ]),
        0..6,
    );
    (method, target, fields, body()).prop_map(|(method, target, fields, body)| {
        let fields: Vec<_> = ["Host: x"].into_iter().chain(fields).collect();
        message(&format!("{method} {target} HTTP/1.1"), &fields, &body)
    })
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let status =
        select(vec!["200 OK", "200", "201 Made", "301 Away", "404 Not Found", "500 No", "299 \u{e4}"]);
    let fields = vec(
        select(vec![
            "Server: s",
            "Set-Cookie: a=b",
            "Connection: close",
            "Connection: keep-alive",
            "Connection: x-own",
            "X-Own: 1",
            "Keep-Alive: timeout=1",
            "x-overlay-route: deep;env=alice;via=overlay;reason=owned",
            "Date: Thu, 01 Jan 1970 00:00:00 GMT",
            "ETag: \"a\"",
            "X-Empty:",
        ]),
        0..5,
    );
    let bodiless = select(vec!["204 No Content", "304 Not Modified"]);
    let version = select(vec!["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let with_body = (version, status, fields.clone(), body()).prop_map(|(version, status, fields, body)| {
        // Chunks came with HTTP/1.1.
        let version = if matches!(body, Body::Chunks(_)) { "HTTP/1.1" } else { version };
        message(&format!("{version} {status}"), &fields, &body)
    });
    let without = (bodiless, fields)
        .prop_map(|(status, fields)| message(&format!("HTTP/1.1 {status}"), &fields, &Body::Nothing));
    prop_oneof![5 => with_body, 1 => without]
}

fn exchanged() -> impl Strategy<Value = Exchanged> {
    (request(), vec(any::<Index>(), 0..3), reply()).prop_map(|(request, cuts, reply)| Exchanged {
        request,
        cuts,
        reply,
    })
}

/// One change of some bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(Index, u8),
    Insert(Index, &'static str),
    Delete(Index),
    Repeat(Index, Index),
    Truncate(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let byte = select(b"\r\n\0 \t:,;0f-\"\x80\xffHx/".to_vec());
    let text = select(vec![
        "\r\n",
        "\n",
        " ",
        "\r\nContent-Length: 3",
        "\r\nTransfer-Encoding: chunked",
        "\r\nHost: y",
        "\r\n folded",
        "\r\nx-overlay-id: alice",
        "0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]);
    prop_oneof![
        3 => (any::<Index>(), byte).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        3 => (any::<Index>(), text).prop_map(|(at, text)| Mutation::Insert(at, text)),
        2 => any::<Index>().prop_map(Mutation::Delete),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        1 => any::<Index>().prop_map(Mutation::Truncate),
    ]
}

/// Changes only the head and a little more, where everything is decided.
fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_default();
    let reach = (head + 24).clamp(1, bytes.len().max(1));
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Replace(at, byte) => bytes[at.index(reach)] = *byte,
        Mutation::Insert(at, text) => {
            let at = at.index(reach);
            bytes.splice(at..at, text.bytes());
        }
        Mutation::Delete(at) => drop(bytes.remove(at.index(reach))),
        Mutation::Repeat(from, to) => {
            let (from, to) = (from.index(reach), to.index(reach));
            let part = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.splice(from.max(to)..from.max(to), part);
        }
        Mutation::Truncate(at) => bytes.truncate(at.index(reach)),
    }
}

fn mutated() -> impl Strategy<Value = Exchanged> {
    (exchanged(), vec(mutation(), 1..3), any::<bool>()).prop_map(|(mut exchanged, mutations, of_request)| {
        let bytes = if of_request { &mut exchanged.request } else { &mut exchanged.reply };
        mutations.iter().for_each(|mutation| mutate(bytes, mutation));
        exchanged
    })
}

/// Runs as many exchanges, the same ones every time.
fn check<S: Strategy<Value = Exchanged>>(
    cases: u32,
    strategy: S,
    test: impl Fn(&Exchanged, &Seen, &Seen) -> Result<(), String>,
) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = runner.run(&strategy, |exchanged| {
        let through = |engine| exchange(engine, &exchanged.pieces(), &exchanged.reply);
        let (pingora, auto) = (through(EngineChoice::Pingora), through(EngineChoice::Auto));
        test(&exchanged, &pingora, &auto).map_err(TestCaseError::fail)
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

/// In what they differ; empty where they do not.
fn differences(pingora: &Seen, auto: &Seen) -> String {
    format!("{}{}", differing(&pingora.upstream, &without_te(auto)), differing(&pingora.client, &auto.client))
}

#[test]
fn right_exchanges_are_the_same_on_both_engines() {
    check(200, exchanged(), |_, pingora, auto| {
        let different = differences(pingora, auto);
        match auto.upstream.is_empty() || auto.cut() {
            true => Err(format!("it did not go through: {auto:?}")),
            false if different.is_empty() => Ok(()),
            false => Err(different),
        }
    });
}

/// Whether one engine saw only the beginning of what the other saw: the client's end came in between.
fn begins_like(shorter: &Seen, longer: &Seen) -> bool {
    longer.upstream.starts_with(&shorter.upstream)
        && longer.client.starts_with(&shorter.client)
        && !shorter.client.is_empty()
}

#[test]
fn mutated_exchanges_are_the_same_or_the_stricter_engine_refuses() {
    check(300, mutated(), |exchanged, pingora, auto| {
        let different = differences(pingora, auto);
        let kind =
            if exchanged.request.starts_with(b"HEAD ") { Kind::ResponseToHead } else { Kind::Response };
        let is_right = is_right(&exchanged.request) && is_whole(&exchanged.reply, kind);
        let refused = auto.refused("4") || auto.refused("5") || auto.cut() || auto.client.is_empty();
        let requests = messages(&exchanged.request, Kind::Request).len();
        let by_time = requests > 0 && begins_like(pingora, auto);
        for seen in [pingora, auto] {
            let whole = seen.upstream.iter().filter(|request| !request.starts_with("cut ")).count();
            if requests > 0 && whole > requests {
                return Err(format!("{whole} requests arrived, and {requests} were sent: {seen:?}"));
            }
        }
        if different.is_empty() || by_time || (!is_right && refused) { Ok(()) } else { Err(different) }
    });
}
