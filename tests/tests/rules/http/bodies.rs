//! Bodies, however they are delimited, arrive as they were sent.

use overlane_tests::message::Framing;
use overlane_tests::script::{Script, each_holds, holds, show};

use super::differences;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn every_method_reaches_the_upstream_as_it_is() {
    each_holds(
        ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "M-SEARCH", "get"].map(
            |method| {
                let script = Script::new()
                    .send(format!("{method} /a/b?c=d&e HTTP/1.1\r\nHost: x\r\n\r\n"))
                    .arrives(format!("{method} /a/b?c=d&e"))
                    .has("host: x")
                    .reply(OK)
                    .answered("200 ok");
                (method, script)
            },
        ),
    );
}

#[test]
fn chunked_bodies_keep_their_bytes_and_lose_their_extensions() {
    each_holds(
        [
            "3\r\nabc\r\n0\r\n\r\n",
            "1\r\na\r\n002\r\nbc\r\n000\r\n\r\n",
            "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n",
        ]
        .map(|body| {
            let script = Script::new()
                .send(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
                .arrives("POST / abc")
                .framed(Framing::Chunked)
                .reply(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
                .answered("200 abc")
                .framed(Framing::Chunked)
                .send(GET)
                .arrives("GET /")
                .reply(OK)
                .answered("200 ok");
            (body, script)
        }),
    );
}

#[test]
fn trailers_travel_both_ways() {
    let body = "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n";
    let sent = Script::new()
        .send(format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n{body}"
        ))
        .arrives("POST / abc");
    let replied = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n{body}");
    holds(
        sent.clone()
            .has_trailer("x-sum: 1")
            .reply(&replied)
            .answered("200 abc")
            .has_trailer("x-sum: 1")
            .but_on_pingora(
                differences::TRAILERS,
                sent.has_trailer("x-sum").reply(&replied).answered("200 abc").has_trailer("x-sum"),
            ),
    );
}

#[test]
fn a_body_that_only_the_end_delimits_ends_with_the_connection_of_the_upstream() {
    for version in ["1.0", "1.1"] {
        holds(
            Script::new()
                .send(GET)
                .arrives("GET /")
                .reply(format!("HTTP/{version} 200 OK\r\n\r\nto the"))
                .answered_so_far("200 to the")
                .reply(" end")
                .upstream_closes()
                .answered("200 to the end"),
        );
    }
}

#[test]
fn large_bodies_travel_whole_both_ways() {
    let body: Vec<u8> = (0..2_000_000u32).map(|number| (number % 251) as u8).collect();
    let length = body.len();
    let request =
        [format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &body]
            .concat();
    let reply = [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &body].concat();
    holds(
        Script::new()
            .send(request)
            .arrives(format!("POST / {}", show(&body)))
            .reply(reply)
            .answered(format!("200 {}", show(&body))),
    );
}
