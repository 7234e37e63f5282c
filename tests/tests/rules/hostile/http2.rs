//! Upstreams of HTTP/2, frame by frame.

use std::path::Path;
use std::sync::{Arc, Mutex};

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::stage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Caller, End, Peer, Reply, tls};
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, frame, literal,
};

const PREFACE: usize = 24;
/// `:status: 200` of the static table (RFC 7541, appendix A).
const OK: &[u8] = &[0x88];

/// What an upstream does about its next request.
#[derive(Debug, Clone)]
enum Next {
    /// Answers with the path that it asks for, as the test knows it.
    Own(String),
    /// Sends so much of this, and ends.
    Cut(Vec<u8>, End),
}

fn fields(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block)
}

/// Answers as `next` says, whatever is asked.
async fn serve(mut stream: impl Peer, next: Arc<Mutex<Vec<Next>>>) {
    let mut read = vec![0; PREFACE];
    if stream.read_exact(&mut read).await.is_err()
        || stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.is_err()
        || stream.flush().await.is_err()
    {
        return;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            SETTINGS if head[4] == 0 => drop(stream.write_all(&frame(SETTINGS, 1, 0, &[])).await),
            HEADERS => {
                let now = next.lock().unwrap().pop();
                match now {
                    Some(Next::Own(path)) => {
                        let answer = [headers(0, id, OK), frame(DATA, END_STREAM, id, path.as_bytes())];
                        drop(stream.write_all(&answer.concat()).await);
                    }
                    Some(Next::Cut(bytes, end)) => {
                        // Each is written for the first stream of its connection.
                        assert!(id == 1 || bytes.is_empty());
                        drop(stream.write_all(&bytes).await);
                        return stream.end(end).await;
                    }
                    None => return,
                }
            }
            _ => {}
        }
        let _ = stream.flush().await;
    }
}

/// What is sent on the first stream, and what a client makes of it where it is right.
fn replies() -> Vec<(&'static str, Vec<u8>, Reply)> {
    let got = |status, body| Reply { method: "GET", means: (status, body), to_the_end: false };
    let length = literal("content-length", "5");
    let hello = |flags| frame(DATA, flags, 1, b"hello");
    vec![
        ("no length", [headers(0, 1, OK), hello(END_STREAM)].concat(), got("200", "hello")),
        (
            "a length",
            [headers(0, 1, &[OK, &length].concat()), hello(END_STREAM)].concat(),
            got("200", "hello"),
        ),
        (
            "trailers",
            [headers(0, 1, OK), hello(0), headers(END_STREAM, 1, &literal("x-sum", "1"))].concat(),
            got("200", "hello"),
        ),
        (
            "hints before, an empty end",
            [
                headers(0, 1, &fields(&[(":status", "103"), ("link", "</a>")])),
                headers(0, 1, OK),
                hello(0),
                frame(DATA, END_STREAM, 1, &[]),
            ]
            .concat(),
            got("200", "hello"),
        ),
        (
            "in two frames of headers",
            [
                frame(HEADERS, END_STREAM, 1, &fields(&[(":status", "404")])),
                frame(CONTINUATION, END_HEADERS, 1, &literal("a", "b")),
            ]
            .concat(),
            got("404", ""),
        ),
    ]
}

/// What is no answer: each is refused, whatever of it the client has seen by then.
fn lies() -> Vec<(&'static str, Vec<u8>)> {
    let hello = frame(DATA, END_STREAM, 1, b"hello");
    let with =
        |pairs: &[(&str, &str)]| [headers(0, 1, &[OK, &fields(pairs)[..]].concat()), hello.clone()].concat();
    let after = |first: Vec<u8>| [first, headers(0, 1, OK), hello.clone()].concat();
    vec![
        ("data before any head", hello.clone()),
        ("no status", [headers(0, 1, &literal("a", "b")), hello.clone()].concat()),
        ("two statuses", with(&[(":status", "404")])),
        ("a status that is none", [headers(0, 1, &literal(":status", "abc")), hello.clone()].concat()),
        (
            "a status after a field",
            [headers(0, 1, &fields(&[("a", "b"), (":status", "200")])), hello.clone()].concat(),
        ),
        ("a name in upper case", with(&[("A", "b")])),
        ("a name with a space", with(&[("a b", "c")])),
        ("a name with a colon", with(&[("a:b", "c")])),
        ("a value with a line end", with(&[("a", "b\r\nc: d")])),
        ("a value with a bare LF", with(&[("a", "b\nc: d")])),
        ("a value with NUL", with(&[("a", "b\0")])),
        ("a length that is too long", with(&[("content-length", "9")])),
        ("a length that is too short", with(&[("content-length", "3")])),
        ("two lengths", with(&[("content-length", "5"), ("content-length", "3")])),
        ("a length that is none", with(&[("content-length", "+5")])),
        ("connection", with(&[("connection", "close")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "x")])),
        ("a switch of protocols", [headers(0, 1, &literal(":status", "101")), hello.clone()].concat()),
        ("a reset", frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])),
        ("a reset in the middle", [headers(0, 1, OK), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat()),
        ("gone away, the request seen", frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])),
        ("gone away with an error", frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2])),
        (
            "a promise",
            after(frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &[0x82, 0x86, 0x84]].concat())),
        ),
        (
            "a stream that nobody opened",
            after([headers(0, 3, OK), frame(DATA, END_STREAM, 3, b"evil")].concat()),
        ),
        ("a stream of the server's", after(headers(END_STREAM, 2, OK))),
        ("headers on stream 0", after(headers(END_STREAM, 0, OK))),
        ("data on stream 0", after(frame(DATA, 0, 0, b"evil"))),
        ("a continuation of nothing", after(frame(CONTINUATION, END_HEADERS, 1, OK))),
        (
            "something between headers",
            [frame(HEADERS, 0, 1, OK), frame(PING, 0, 0, &[0; 8]), hello.clone()].concat(),
        ),
        ("a frame that is too large", after(frame(DATA, 0, 1, &vec![0; 20_000]))),
        ("an index of no field", [headers(0, 1, &[0xff, 0xff, 0xff, 0x0f]), hello.clone()].concat()),
        ("a literal without end", [headers(0, 1, &[0, 0x7f]), hello.clone()].concat()),
        (
            "padding longer than the frame",
            [headers(0, 1, OK), frame(DATA, 8 | END_STREAM, 1, &[9, 1])].concat(),
        ),
        ("a window that overflows", after(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]))),
        ("a window update of 0", after(frame(WINDOW_UPDATE, 0, 0, &[0; 4]))),
        ("settings of no length", after(frame(SETTINGS, 0, 0, &[0; 5]))),
        ("an acknowledgement with a payload", after(frame(SETTINGS, 1, 0, &[0; 6]))),
        ("a frame size that is none", after(frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]))),
        ("a ping of no length", after(frame(PING, 0, 0, &[0; 7]))),
        ("a priority of itself", after(frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]))),
        ("HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
    ]
}

/// Runs a test at a gateway before such an upstream, which does as the other argument says; in TLS where there is a folder of
/// certificates.
fn with(certificates: Option<&Path>, test: impl AsyncFnOnce(&mut Caller, &Mutex<Vec<Next>>) -> Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(async {
        let acceptor = certificates.map(|folder| tls::acceptor(folder, "h2"));
        let (scheme, host) =
            if acceptor.is_some() { ("https", tls::TRUSTED_HOST) } else { ("h2c", "127.0.0.1") };
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let files = stage::files_at("", &format!("{scheme}://{}", listener.local_addr().unwrap()));
        let gateway = stage::listener(Role::Gateway, "", None, Trust::Any);
        let running = stage::start(EngineChoice::Auto, vec![gateway], files);
        let next = Arc::new(Mutex::new(Vec::new()));
        let shared = next.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (acceptor, next) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, next).await,
                        // Who does not agree on HTTP/2 comes back.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, next).await;
                            }
                        }
                    }
                });
            }
        });
        test(&mut Caller::of(running.addresses()[0]), &next).await
    });
    assert!(wrong.is_empty(), "{} problems\n{}", wrong.len(), wrong.join("\n"));
}

/// The next request is answered over a connection of its own, which ends with it.
async fn next_is_right(caller: &mut Caller, next: &Mutex<Vec<Next>>) -> Result<(), String> {
    let path = format!("/own/a/{}", caller.own + 1);
    *next.lock().unwrap() = vec![Next::Own(path)];
    let right = caller.gets_its_own("a").await;
    // The case after it begins with a new one.
    *next.lock().unwrap() = vec![Next::Cut(Vec::new(), End::Closes)];
    caller.ask("POST", "/end").await;
    right
}

/// Cuts each reply at every byte, in each of these ways.
fn cut_everywhere(certificates: Option<&Path>, ends: &[End]) {
    with(certificates, async |caller, next| {
        let mut wrong = Vec::new();
        for (name, bytes, reply) in replies() {
            // Where the last head ends is not looked at: a part of it shows in a status that is none.
            let head = 9;
            for (end, sent) in ends.iter().flat_map(|&end| (0..=bytes.len()).map(move |sent| (end, sent))) {
                *next.lock().unwrap() = vec![Next::Cut(bytes[..sent].to_vec(), end)];
                let got = caller.ask(reply.method, "/cut").await;
                let judged = got.judged(&reply, sent, head, bytes.len(), end);
                wrong.extend(judged.err().map(|why| format!("{name}: {why}")));
                let right = next_is_right(caller, next).await;
                wrong.extend(right.err().map(|why| format!("{name} after {sent} bytes, {end:?}: {why}")));
            }
        }
        wrong
    });
}

#[test]
fn a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right() {
    cut_everywhere(None, &End::CLEAR);
}

#[test]
fn a_response_in_tls_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right() {
    crate::tls::trusting(
        "hostile::http2::a_response_in_tls_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right",
        |folder| cut_everywhere(Some(folder), &End::TLS),
    );
}

#[test]
fn an_answer_that_is_none_is_502_or_visibly_not_whole_and_the_next_is_right() {
    with(None, async |caller, next| {
        let mut wrong = Vec::new();
        for (name, bytes) in lies() {
            *next.lock().unwrap() = vec![Next::Cut(bytes, End::Closes)];
            let got = caller.ask("GET", "/lie").await;
            if !got.own() && got.whole().is_some() {
                wrong.push(format!("{name}: {got:?}"));
            }
            wrong.extend(next_is_right(caller, next).await.err().map(|why| format!("{name}: {why}")));
        }
        wrong
    });
}

#[test]
fn what_changes_nothing_about_an_answer_is_not_handed_on() {
    let hello = frame(DATA, END_STREAM, 1, b"hello");
    let evil = frame(DATA, END_STREAM, 1, b"evil");
    // The `h2` crate forgets a pseudo-header that is not for responses.
    let path = headers(0, 1, &[OK, &literal(":path", "/evil")].concat());
    with(None, async |caller, next| {
        let mut wrong = Vec::new();
        for bytes in [[path, hello.clone()].concat(), [headers(0, 1, OK), hello, evil].concat()] {
            *next.lock().unwrap() = vec![Next::Cut(bytes, End::Closes)];
            let got = caller.ask("GET", "/more").await;
            let fine = got.whole().is_some_and(|response| {
                response.body == b"hello" && response.fields.iter().all(|(name, _)| !name.contains("path"))
            });
            if !fine {
                wrong.push(format!("{got:?}"));
            }
            wrong.extend(next_is_right(caller, next).await.err());
        }
        wrong
    });
}
