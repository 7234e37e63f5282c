//! How much is taken, kept and held back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use overlane::plane::{EngineChoice, Limits};
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;
use overlane_tests::stage::Slot;

use super::{GET, OK, differences};

const ENGINES: [EngineChoice; 2] = [EngineChoice::Pingora, EngineChoice::Auto];
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_flood_of_interim_responses_is_a_502() {
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(2_000);
    let asked = Script::new().send(GET).arrives("GET /").reply(flood).reply(OK).interim_responses();
    holds(asked.clone().refused(502).but_on_pingora(differences::INTERIM_FLOOD, asked.answered("200 ok")));
}

#[test]
fn what_surrounds_chunks_is_bounded() {
    let long = "a".repeat(1_000_000);
    each_holds(
        [
            ("extension", format!("3;{long}")),
            ("size", "0".repeat(1_000_000)),
            ("trailer", format!("3\r\nabc\r\n0\r\nA: {long}")),
        ]
        .map(|(name, chunks)| (name, Script::new().send(format!("{CHUNKED}{chunks}")).refused(400))),
    );
}

#[test]
fn many_small_chunks_are_a_body_like_any_other() {
    let body = "a".repeat(4_000);
    let chunks = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(4_000));
    let shown = overlane_tests::told::show(body.as_bytes());
    holds(
        Script::new()
            .send(format!("{CHUNKED}{chunks}"))
            .arrives(format!("POST / {shown}"))
            .reply(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"))
            .answered(format!("200 {shown}")),
    );
}

#[test]
fn responses_may_have_many_fields() {
    let fields: String = (0..90).map(|number| format!("X-{number}: {number}\r\n")).collect();
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"))
            .answered("200 ok")
            .has("x-0: 0")
            .has("x-89: 89"),
    );
}

/// Bodies of at most four bytes.
fn within_four() -> Script {
    Script::within(Limits { body_bytes: Some(4), ..Limits::default() })
}

#[test]
fn a_body_that_says_that_it_is_too_large_is_a_413_and_goes_nowhere() {
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}");
    each_holds(
        [
            ("length", within_four().send(post("Content-Length: 5", "ab"))),
            ("only the head", within_four().send(post("Content-Length: 999999999999", ""))),
            ("asks before", within_four().send(post("Expect: 100-continue\r\nContent-Length: 5", ""))),
            ("HTTP/1.0", within_four().send("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nab")),
            ("PUT", within_four().send(post("Content-Length: 5", "ab").replace("POST", "PUT"))),
        ]
        .map(|(name, script)| (name, script.refused(413).nothing_more_arrives())),
    );
    holds(
        within_four()
            .send(post("Content-Length: 4", "abcd"))
            .arrives("POST / abcd")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn chunks_that_become_too_many_are_a_413_and_their_upstream_sees_no_end() {
    let chunked = |chunks: &str| format!("{CHUNKED}{chunks}");
    holds(
        within_four()
            .send(chunked("2\r\nab\r\n2;x\r\ncd\r\n0\r\n\r\n"))
            .arrives("POST / abcd")
            .reply(OK)
            .answered("200 ok"),
    );
    holds(within_four().send(chunked("5\r\n")).refused(413));
    holds(
        within_four()
            .send(chunked("3\r\nabc\r\n"))
            .arrives_so_far("POST / abc")
            .send("2\r\nde\r\n0\r\n\r\n")
            .refused(413)
            .upstream_ended(),
    );
}

/// Accepts one connection, reads a request's head there, and does the rest.
fn upstream<R: Send + 'static>(
    listener: TcpListener,
    rest: impl FnOnce(TcpStream) -> R + Send + 'static,
) -> JoinHandle<R> {
    spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        rest(stream)
    })
}

fn connected(engine: EngineChoice, listener: &TcpListener) -> (Slot, TcpStream) {
    let slot = Slot::lease(engine, listener.local_addr().unwrap());
    let client = TcpStream::connect(slot.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (slot, client)
}

/// Sends a body of `total` bytes to an upstream that echoes them as they come and has no other buffer.
fn echo(engine: EngineChoice, total: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_slot, mut client) = connected(engine, &listener);
    let echoing = upstream(listener, move |mut stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n").unwrap();
        let mut from = stream.try_clone().unwrap().take(total as u64);
        std::io::copy(&mut from, &mut stream).unwrap()
    });
    let body: Vec<u8> = (0..total).map(|number| (number % 251) as u8).collect();
    let (mut sender, sent) = (client.try_clone().unwrap(), body.clone());
    let sending = spawn(move || {
        write!(sender, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {total}\r\n\r\n").unwrap();
        sender.write_all(&sent).unwrap();
    });
    let mut answer = vec![0; total + 512];
    let mut got = 0;
    let body_at = loop {
        got += client.read(&mut answer[got..]).unwrap();
        if let Some(end) = answer[..got].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    client.read_exact(&mut answer[got..body_at + total]).unwrap();
    sending.join().unwrap();
    assert_eq!(echoing.join().unwrap(), total as u64);
    assert!(answer[body_at..body_at + total] == body, "{engine:?}");
}

#[test]
fn bodies_travel_both_ways_at_once() {
    for engine in ENGINES {
        let takes_turns = engine == EngineChoice::Pingora;
        echo(engine, if takes_turns { differences::DUPLEX_ON_PINGORA } else { 8 * 1024 * 1024 });
    }
}

/// Writes until nothing moves any more; returns how much went.
fn write_until_it_stalls(stream: &mut TcpStream, total: usize) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let chunk = [b'x'; 64 * 1024];
    let mut sent = 0;
    while sent < total {
        match stream.write(&chunk) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    sent
}

/// Both ends' kernels hold some megabytes; the proxy has to hold less than the rest.
const MUCH: usize = 64 * 1024 * 1024;
const HELD: usize = MUCH / 2;

#[test]
fn an_upstream_that_reads_nothing_holds_the_client_back() {
    for engine in ENGINES {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_slot, mut client) = connected(engine, &listener);
        let head_read = upstream(listener, |stream| stream);
        write!(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {MUCH}\r\n\r\n").unwrap();
        let _open = head_read.join().unwrap();
        let sent = write_until_it_stalls(&mut client, MUCH);
        assert!(sent < HELD, "{engine:?} took {sent} bytes for an upstream that reads none");
    }
}

#[test]
fn a_client_that_reads_nothing_holds_the_upstream_back() {
    for engine in ENGINES {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_slot, mut client) = connected(engine, &listener);
        let sending = upstream(listener, |mut stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{MUCH:x}\r\n").unwrap();
            write_until_it_stalls(&mut stream, MUCH)
        });
        client.write_all(GET.as_bytes()).unwrap();
        let sent = sending.join().unwrap();
        assert!(sent < HELD, "{engine:?} took {sent} bytes for a client that reads none");
        client.shutdown(Shutdown::Both).unwrap();
    }
}

#[test]
fn what_is_pipelined_behind_a_request_that_waits_is_held_back() {
    for engine in ENGINES {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_slot, mut client) = connected(engine, &listener);
        let head_read = upstream(listener, |stream| stream);
        client.write_all(GET.as_bytes()).unwrap();
        let _open = head_read.join().unwrap();
        let sent = write_until_it_stalls(&mut client, MUCH);
        assert!(sent < HELD, "{engine:?} took {sent} bytes of requests that are not their turn");
    }
}
