//! The parts of a request's way, one by one: time and allocations of carriers and of HTTP/1.1 framing.
#![allow(missing_docs)]

use std::hint::black_box;

use divan::{AllocProfiler, Bencher};
use mimalloc::MiMalloc;
use overlane::h1::body::{Body, Progress};
use overlane::h1::{Name, request, response};
use overlane_config::carrier::{Carriers, Form, baggage, header};

/// The allocator that ships, counted.
#[global_allocator]
static ALLOCATIONS: AllocProfiler<MiMalloc> = AllocProfiler::new(MiMalloc);

/// As curl sends it, as a browser does, and with what tracing adds.
const REQUESTS: [&str; 3] = [
    "GET /orders/7 HTTP/1.1\r\nHost: shop:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nx-overlay-id: alice\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"126\"\r\nsec-ch-ua-mobile: ?0\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8\r\nSec-Fetch-Site: none\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\r\n",
    "POST /pay HTTP/1.1\r\nHost: payments-api\r\nContent-Type: application/json\r\nContent-Length: 512\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nbaggage: tenant=7,overlay-id=alice,user=9;p=1\r\nx-overlay-id: alice\r\n\r\n",
];

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 23:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 512\r\nConnection: keep-alive\r\nx-overlay-route: ledger;env=alice;via=overlay;reason=owned\r\n\r\n";

fn main() {
    divan::main();
}

#[divan::bench]
fn key_in_our_header(bencher: Bencher) {
    bencher.bench_local(|| header::read(black_box([&b"alice-payments"[..]])));
}

#[divan::bench]
fn key_in_baggage(bencher: Bencher) {
    let line = &b"tenant=7,overlay-id=alice-payments,user=9;p=1"[..];
    bencher.bench_local(|| baggage::read(black_box([line]), baggage::MEMBER, Form::List));
}

/// Request 2: the header and `baggage`, which agree; by default, and with presets that are not in use.
#[divan::bench(args = [&["header", "baggage"][..], &["header", "baggage", "signadot", "ktenv", "cookie:overlay"]])]
fn key_in_the_carriers(bencher: Bencher, read: &[&str]) {
    let read: Vec<_> = read.iter().map(ToString::to_string).collect();
    let carriers = Carriers::parse(Some(&read), None).expect("carriers");
    request::parse(REQUESTS[2].as_bytes(), |head| {
        bencher.bench_local(|| carriers.read("x-overlay-id", black_box(&head.fields), |_, _| ()));
    })
    .expect("a head");
}

#[divan::bench]
fn baggage_rewritten(bencher: Bencher) {
    let keys = header::read([&b"alice-payments"[..]]).expect("an id").expect("a key");
    let is_ours = |key: &[u8]| key == baggage::MEMBER.as_bytes();
    bencher.bench_local(|| {
        let mut own = Vec::new();
        baggage::write(baggage::MEMBER, Form::List, &keys, &mut own);
        baggage::rewrite(black_box([&b"tenant=7,overlay-id=bob,user=9;p=1"[..]]), is_ours, &own)
    });
}

/// Parsed, and copied as it goes upstream.
#[divan::bench(args = [0, 1, 2])]
fn request_head(bencher: Bencher, which: usize) {
    const KEY: Name<'_> = Name::of("x-overlay-id");
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        request::parse(black_box(REQUESTS[which].as_bytes()), |head| {
            head.copy(&mut out, |name| name.is(&KEY));
        })
    });
}

#[divan::bench]
fn response_head(bencher: Bencher) {
    const ROUTE: Name<'_> = Name::of("x-overlay-route");
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        response::parse(black_box(RESPONSE.as_bytes()), false, |head| {
            head.copy(&mut out, |name| name.is(&ROUTE));
        })
    });
}

/// 64 KiB in chunks of 4 KiB.
#[divan::bench]
fn chunks_followed(bencher: Bencher) {
    let mut coded = Vec::new();
    for _ in 0..16 {
        coded.extend_from_slice(b"1000\r\n");
        coded.extend_from_slice(&[b'x'; 4096]);
        coded.extend_from_slice(b"\r\n");
    }
    bencher.bench_local(|| Progress::new(Body::Chunked).advance(black_box(&coded)));
}
