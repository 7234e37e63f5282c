//! Attacks on HTTP/2 by clients and by upstreams: each ends its connection, and nobody else's.

mod frames;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;

use frames::*;

const PROTOCOL_ERROR: u32 = 1;
const CALM: u32 = 11;
/// More than any budget.
const MANY: u32 = 10_000;
const LARGEST: [u8; 4] = 0x7fff_ffff_u32.to_be_bytes();

/// An upstream of HTTP/1.1 that answers everything, and tells whose heads it saw.
fn upstream() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads) = channel();
    spawn(move || {
        for stream in listener.incoming() {
            let seen = seen.clone();
            spawn(move || answer_all(stream.unwrap(), &seen));
        }
    });
    (address, heads)
}

fn answer_all(stream: TcpStream, seen: &Sender<String>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let _ = seen.send(head);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
}

fn gateway(limits: Limits, url: &str) -> Started {
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    stage::start_within(EngineChoice::Auto, limits, vec![listener], stage::files_at("", url))
}

fn floods(running: &Started, side: &str, reason: &str) -> u64 {
    let name = format!("overlane_http2_floods_total{{reason=\"{reason}\",side=\"{side}\"}}");
    ask::metric(running.admin(), &name).unwrap_or_else(|| panic!("{name}"))
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// The final status that somebody gets who asks in HTTP/1.1.
fn status(address: SocketAddr) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    let statuses = BufReader::new(stream).lines().filter_map(|line| {
        let status = line.unwrap().strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        (status >= 200).then_some(status)
    });
    statuses.into_iter().next().unwrap()
}

/// A request, as a frame.
fn request(stream: u32, flags: u8, method: &str, more: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, &[&block(&asks(method)), more].concat())
}

/// The frames of an attack, the one after the other.
type Attack = fn(u32) -> Vec<u8>;

fn once(number: u32, begin: Vec<u8>, go_on: Vec<u8>) -> Vec<u8> {
    if number == 0 { begin } else { go_on }
}

/// What clients send, and as what it is counted.
const ATTACKS: [(&str, Attack); 11] = [
    ("settings", |_| frame(SETTINGS, 0, 0, &[])),
    ("ping", |_| frame(PING, 0, 0, b"12345678")),
    ("priority", |number| frame(PRIORITY, 0, 1 + 2 * number, &[0, 0, 0, 0, 1])),
    ("window-update", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ("other", |_| frame(200, 0, 0, b"whatever")),
    // Rapid reset (CVE-2023-44487).
    ("reset", |number| {
        let stream = 1 + 2 * number;
        [request(stream, WHOLE, "GET", b""), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    }),
    // MadeYouReset (CVE-2025-8671): a window that overflows has to be answered by a reset.
    ("errors", |number| {
        let stream = 1 + 2 * number;
        [request(stream, WHOLE, "GET", b""), frame(WINDOW_UPDATE, 0, stream, &LARGEST)].concat()
    }),
    // CVE-2024-27316 and its like.
    ("continuation", |number| {
        let part = literal(b"x", b"y");
        once(number, request(1, END_STREAM, "GET", b""), frame(CONTINUATION, 0, 1, &part))
    }),
    ("data", |number| once(number, request(1, END_HEADERS, "POST", b""), frame(DATA, 0, 1, b""))),
    // A large field that is remembered, and then named again and again, a byte each time.
    ("header-list", |number| {
        let large = [&[0x40, 1, b'x', 127, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
        once(number, request(1, WHOLE, "GET", &large), request(1 + 2 * number, WHOLE, "GET", &[0xbe; 4000]))
    }),
    // Requests that are none.
    ("errors", |number| request(1 + 2 * number, WHOLE, "GET", &literal(b"connection", b"close"))),
];

#[test]
fn who_floods_is_told_to_be_calm_and_closed_and_counted() {
    let (address, _heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    for (case, (reason, attack)) in ATTACKS.into_iter().enumerate() {
        let before = floods(&running, "client", reason);
        let mut client = Raw::connect(running.addresses()[0], &[]);
        let mut number = 0;
        while number < MANY {
            let frames: Vec<u8> = (number..number + 100).flat_map(attack).collect();
            if !client.send(&frames) {
                break;
            }
            number += 100;
        }
        client.finish();
        // Where it was closed while it was sending, it may have lost what it was told.
        let code = client.until(|came| came.code().filter(|_| came.kind == GOAWAY));
        assert!(matches!(code, None | Some(CALM)), "{case}, {reason}: {code:?}");
        until(reason, || floods(&running, "client", reason) == before + 1);
        assert_eq!(status(running.addresses()[0]), 200, "{reason}");
    }
}

#[test]
fn a_client_that_floods_is_told_why() {
    let (address, _heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    let mut client = Raw::connect(running.addresses()[0], &[]);
    // In small steps, so that nothing is left unread, and nothing lost.
    let told = (0..MANY).find_map(|_| {
        client.send(&frame(PING, 0, 0, b"12345678").repeat(10));
        (0..10).find_map(|_| client.next().filter(|came| came.kind == GOAWAY))
    });
    assert_eq!(told.and_then(|told| told.code()), Some(CALM));
}

#[test]
fn answers_pay_for_what_clients_send_besides() {
    let (address, _heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    let mut client = Raw::connect(running.addresses()[0], &[]);
    for number in 0..1_000 {
        let stream = 1 + 2 * number;
        let window = frame(WINDOW_UPDATE, 0, 0, &2_u32.to_be_bytes());
        let ping = frame(PING, 0, 0, b"12345678");
        client.send(&[request(stream, WHOLE, "GET", b""), window.repeat(3), ping.repeat(3)].concat());
        let ended = client.until(|came| (came.stream == stream).then_some(came.flags & END_STREAM)).unwrap();
        if ended == 0 {
            client.until(|came| (came.kind == DATA && came.flags & END_STREAM != 0).then_some(())).unwrap();
        }
    }
}

/// Heads that are no requests: by which fields.
fn violations() -> Vec<Vec<(&'static str, &'static str)>> {
    let [method, scheme, path, authority] = asks("GET");
    let with =
        |more: &[(&'static str, &'static str)]| [&[method, scheme, path, authority][..], more].concat();
    let mut all = vec![
        vec![scheme, path, authority],
        vec![method, path, authority],
        vec![method, scheme, authority],
        vec![method, scheme, (":path", ""), authority],
        vec![method, scheme, (":path", "web"), authority],
        vec![method, method, scheme, path, authority],
        vec![method, scheme, path, path, authority],
        vec![method, scheme, ("a", "b"), path, authority],
        vec![(":status", "200"), method, scheme, path, authority],
        vec![(":what", "x"), method, scheme, path, authority],
        vec![(":protocol", "websocket"), (":method", "CONNECT"), scheme, path, authority],
        vec![method, scheme, path, (":authority", "web@web")],
        vec![method, scheme, path, (":authority", "web"), ("host", "other")],
        vec![method, scheme, path, (":authority", "")],
        vec![method, scheme, path, authority, ("host", "web"), ("host", "web")],
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "5")]),
        with(&[("content-length", "+0")]),
        with(&[("content-length", "0, 0")]),
        with(&[("te", "gzip")]),
    ];
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        all.push(with(&[(name, "x")]));
    }
    for name in ["", "Upper", "a b", "a:b", "a\r\nb", "a\0", "a\u{e9}"] {
        all.push(with(&[(name, "x")]));
    }
    for value in ["a\r\nb: c", "a\nb", "a\rb", "a\0"] {
        all.push(with(&[("x", value)]));
        all.push(vec![method, scheme, path, (":authority", value)]);
        all.push(vec![method, scheme, (":path", value), authority]);
        all.push(vec![(":method", value), scheme, path, authority]);
        all.push(vec![method, (":scheme", value), path, authority]);
    }
    for target in ["/ HTTP/1.1", "/a b", "/\u{7f}"] {
        all.push(vec![method, scheme, (":path", target), authority]);
    }
    all
}

#[test]
fn a_head_that_breaks_the_rules_reaches_no_upstream() {
    let (address, heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    for fields in violations() {
        let mut client = Raw::connect(running.addresses()[0], &[]);
        client.send(&frame(HEADERS, WHOLE, 1, &block(&fields)));
        // A reset, an answer in its place, or the end of the connection.
        let came =
            client.until(|came| matches!(came.kind, HEADERS | RST_STREAM | GOAWAY).then_some(came.kind));
        assert!(came.is_some(), "{fields:?}");
        let seen: Vec<_> = heads.try_iter().collect();
        assert_eq!(seen, [""; 0], "{fields:?}");
    }
}

#[test]
fn a_body_that_is_not_what_its_head_says_is_no_request() {
    let (address, _heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    for (length, body) in [("3", "abcde"), ("5", "abc"), ("5", "")] {
        let mut client = Raw::connect(running.addresses()[0], &[]);
        let head = request(1, END_HEADERS, "POST", &literal(b"content-length", length.as_bytes()));
        client.send(&[head, frame(DATA, END_STREAM, 1, body.as_bytes())].concat());
        let code = client.until(Came::code);
        assert_eq!(code, Some(PROTOCOL_ERROR), "{length} {body}");
    }
}

/// Waits until no connection of a client is open; where `limits` cut none, the test hangs.
fn until_closed(mut client: Raw) -> Vec<Came> {
    std::iter::from_fn(move || client.next()).collect()
}

const SHORT: Duration = Duration::from_millis(150);

#[test]
fn a_frame_or_a_head_that_does_not_come_to_its_end_is_cut() {
    let (address, _heads) = upstream();
    let running = gateway(Limits { head: SHORT, ..Limits::default() }, &format!("http://{address}"));
    let half = request(1, WHOLE, "GET", b"");
    for begun in [
        half[..5].to_vec(),
        half[..20].to_vec(),
        request(1, END_STREAM, "GET", b""),
        frame(PING, 0, 0, b"12345678")[..10].to_vec(),
        frame(SETTINGS, 0, 0, &[])[..8].to_vec(),
    ] {
        let before = floods(&running, "client", "slow");
        let mut client = Raw::connect(running.addresses()[0], &[]);
        client.send(&begun);
        let told = until_closed(client).iter().find_map(Came::code);
        assert_eq!(told, Some(CALM), "{begun:?}");
        until("slow", || floods(&running, "client", "slow") == before + 1);
    }
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let (address, _heads) = upstream();
    let limits = Limits { write: SHORT, ..Limits::default() };
    let running = gateway(limits, &format!("http://{address}"));
    let mut client = Raw::connect(running.addresses()[0], &[]);
    // Answers that nobody reads, until nothing more is read from it.
    let mut stream = 1;
    while client.send(&request(stream, WHOLE, "GET", &literal(b"x-overlay-id", b"no key!"))) {
        stream += 2;
    }
    // It is there still, and would take what comes.
    until("it is closed", || ask::metrics(running.admin()).contains("\noverlane_connections 0\n"));
    drop(client);
    assert_eq!(status(running.addresses()[0]), 200);
}

/// A field by which a head is a large one, of which so many are under way: the first that is too much is taken still.
const LARGE_FIELD: usize = 15 * 1024;
const MOST_LARGE: usize = (256_usize * 1024).div_ceil(LARGE_FIELD - 4 * 1024);

fn large_heads(count: u32) -> Vec<u8> {
    let large = literal(b"x-large", vec![b'x'; LARGE_FIELD]);
    (0..count).flat_map(|number| request(1 + 2 * number, WHOLE, "GET", &large)).collect()
}

#[test]
fn a_client_that_does_not_read_its_answers_holds_its_large_heads_and_gets_no_more_of_them_served() {
    let (address, heads) = upstream();
    let running = gateway(Limits::default(), &format!("http://{address}"));
    let no_window = [&[0, 4][..], &[0; 4]].concat();
    let mut client = Raw::connect(running.addresses()[0], &no_window);
    assert!(client.send(&large_heads(60)));
    for _ in 0..MOST_LARGE {
        assert!(heads.recv_timeout(PATIENCE).unwrap().contains("x-large"));
    }
    // Who sends usual heads notices nothing.
    for _ in 0..10 {
        assert_eq!(status(running.addresses()[0]), 200);
        assert!(!heads.recv_timeout(PATIENCE).unwrap().contains("x-large"));
    }
}

#[test]
fn so_many_bytes_of_heads_of_a_connection_wait_for_answers_and_the_rest_when_these_are_given() {
    const ASKED: u32 = 60;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = gateway(Limits::default(), &format!("http://{}", listener.local_addr().unwrap()));
    let mut client = Raw::connect(running.addresses()[0], &[]);
    assert!(client.send(&large_heads(ASKED)));
    let (mut waiting, mut all) = (Vec::new(), 0);
    let arrive = |waiting: &mut Vec<BufReader<TcpStream>>| {
        let mut lines = BufReader::new(listener.accept().unwrap().0);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(lines.read_line(&mut head).unwrap(), 0);
        }
        waiting.push(lines);
    };
    (0..MOST_LARGE).for_each(|_| arrive(&mut waiting));
    // Others are served meanwhile: nothing more of this connection comes before them.
    let other = TcpStream::connect(running.addresses()[0]).unwrap();
    (&other).write_all(b"GET / HTTP/1.1\r\nHost: web\r\nx-other: 1\r\n\r\n").unwrap();
    let mut lines = BufReader::new(listener.accept().unwrap().0);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        lines.read_line(&mut head).unwrap();
    }
    assert!(head.contains("x-other"), "{MOST_LARGE} are as many as wait");
    while let Some(mut answered) = waiting.pop() {
        answered
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        all += 1;
        if all + waiting.len() < ASKED as usize {
            arrive(&mut waiting);
        }
    }
    assert_eq!(all, ASKED as usize);
}

/// An upstream of HTTP/1.1 with an answer that is larger than what lies between.
fn large() -> SocketAddr {
    const BODY: usize = 1024 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            spawn(move || {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(
                    &[format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").as_bytes(), &[b'x'; BODY]]
                        .concat(),
                );
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}

#[test]
fn a_client_that_takes_byte_by_byte_is_cut() {
    // As many bytes as no connection carries: so each moment of waiting counts.
    let limits = Limits { write: SHORT, write_rate: u32::MAX, ..Limits::default() };
    let running = gateway(limits, &format!("http://{}", large()));
    let nothing = [0, 4, 0, 0, 0, 0];
    let mut client = Raw::connect(running.addresses()[0], &nothing);
    client.send(&request(1, WHOLE, "GET", b""));
    let byte = frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
    let mut taken = 0;
    let ended = client.until(|came| (came.kind == HEADERS).then_some(()));
    assert!(ended.is_some());
    loop {
        client.send(&byte);
        match client.until(|came| matches!(came.kind, DATA | RST_STREAM).then_some(came.kind)) {
            Some(DATA) => taken += 1,
            ended => break assert_eq!(ended, Some(RST_STREAM)),
        }
        assert!(taken < 100_000);
    }
    assert!(taken > 0);
}

/// What an upstream sends in place of an answer, and as what it is counted, where it is.
const HOSTILE: [(&str, Attack); 11] = [
    ("settings", |_| frame(SETTINGS, 0, 0, &[])),
    ("ping", |_| frame(PING, 0, 0, b"12345678")),
    ("priority", |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
    ("window-update", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ("goaway", |_| frame(GOAWAY, 0, 0, &[LARGEST, [0; 4]].concat())),
    ("continuation", |number| {
        once(
            number,
            frame(HEADERS, 0, 1, &block(&[(":status", "200")])),
            frame(CONTINUATION, 0, 1, &literal(b"x", b"y")),
        )
    }),
    ("header-list", |number| {
        let large = [&[0x40, 1, b'x', 127, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
        let status = if number == 0 { "103" } else { "200" };
        let more = if number == 0 { large } else { vec![0xbe; 4000] };
        frame(HEADERS, END_HEADERS, 1, &[block(&[(":status", status)]), more].concat())
    }),
    // Endless interim responses.
    ("", |_| frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "103")]))),
    ("", |_| frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block(&asks("GET"))].concat())),
    ("", |_| frame(WINDOW_UPDATE, 0, 0, &LARGEST)),
    ("", |_| frame(DATA, 0, 1, b"before any head")),
];

/// An upstream of HTTP/2 that attacks who asks it first, on each connection, and nobody else.
fn hostile(attack: Attack) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut raw = Raw::over(stream.unwrap());
            let mut preface = [0; PREFACE.len()];
            raw.0.read_exact(&mut preface).unwrap();
            raw.send(&frame(SETTINGS, 0, 0, &[]));
            let Some(stream) = raw.until(|came| (came.kind == HEADERS).then_some(came.stream)) else {
                continue;
            };
            if number > 0 {
                raw.send(
                    &[
                        frame(SETTINGS, ACK, 0, &[]),
                        frame(HEADERS, WHOLE, stream, &block(&[(":status", "200")])),
                    ]
                    .concat(),
                );
                spawn(move || raw.until(|_| None::<()>));
                continue;
            }
            for number in 0..MANY {
                if !raw.send(&attack(number)) {
                    break;
                }
            }
            // Until it is closed.
            raw.until(|_| None::<()>);
        }
    });
    address
}

#[test]
fn an_upstream_that_attacks_is_a_502_and_the_next_connection_is_another() {
    for (number, (reason, attack)) in HOSTILE.into_iter().enumerate() {
        let running = gateway(Limits::default(), &format!("h2c://{}", hostile(attack)));
        let case = format!("{number}: {reason}");
        assert_eq!(status(running.addresses()[0]), 502, "{case}");
        if !reason.is_empty() {
            until(&case, || floods(&running, "upstream", reason) == 1);
        }
        assert_eq!(status(running.addresses()[0]), 200, "{case}");
    }
}
