//! Requests on which readers could disagree: 400, the end, and nothing reaches the upstream.

use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::{OK, differences, get};

/// Heads that must be refused, each followed by what a more forgiving reader would take for a request.
fn refused(status: u16, heads: &[&str]) {
    each_holds(heads.iter().map(|head| {
        let script =
            Script::new().send(format!("{head}{}", get("/smuggled"))).refused(status).nothing_more_arrives();
        (*head, script)
    }));
}

#[test]
fn framing_on_which_readers_could_disagree() {
    let fields = [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 3",
        "Content-Length: 3,4",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length: 3 3",
        "Content-Length:",
        "Content-Length: 3;",
        "Content-Length: 18446744073709551619",
        "Content-Length: 99999999999999999999999999",
    ];
    let heads = fields.map(|field| format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n"));
    refused(400, &heads.each_ref().map(String::as_str));
    refused(400, &["POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"]);
}

#[test]
fn transfer_codings_other_than_chunked_alone() {
    let fields = [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding:",
    ];
    let heads = fields.map(|field| format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n"));
    each_holds(heads.iter().map(|head| {
        // A control character in the value is malformed before its meaning is looked at.
        let status = if head.contains('\x0b') { 400 } else { 501 };
        let script =
            Script::new().send(format!("{head}{}", get("/smuggled"))).refused(status).nothing_more_arrives();
        (head.clone(), script)
    }));
}

#[test]
fn heads_whose_lines_are_no_lines() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA\t: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA(b): c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: \x7f\r\n\r\n",
        ],
    );
}

#[test]
fn request_lines_that_are_none() {
    refused(
        400,
        &[
            "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET\r\nHost: x\r\n\r\n",
            "GET /\r\n\r\n",
            "/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://u:p@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
    );
    // What stands where the version should be is none that is spoken here.
    refused(
        505,
        &[
            "GET /  HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / http/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/11\r\nHost: x\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n",
        ],
    );
    refused(405, &["CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"]);
}

#[test]
fn hosts_on_which_readers_could_disagree() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHOST: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x:port\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x:99999\r\n\r\n",
        ],
    );
}

#[test]
fn the_authority_of_an_absolute_target_is_the_host() {
    holds(
        Script::new()
            .send("GET http://Web.example:81/a?b HTTP/1.1\r\nHost: evil\r\nA: b\r\n\r\n")
            .arrives("GET /a?b")
            .has("host: Web.example:81")
            .has("a: b")
            .reply(OK)
            .answered("200 ok"),
    );
    holds(
        Script::new()
            .send("OPTIONS http://web?b HTTP/1.1\r\nHost: web\r\n\r\n")
            .arrives("OPTIONS /?b")
            .has("host: web")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn heads_that_are_too_large() {
    let long = |length: usize| format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(length));
    holds(Script::new().send(long(65_000)).arrives("GET /").reply(OK).answered("200 ok"));
    holds(Script::new().send(long(66_000)).refused(431).nothing_more_arrives());
    holds(Script::new().send("A".repeat(70_000)).refused(431).nothing_more_arrives());
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count));
    holds(Script::new().send(fields(99)).arrives("GET /").reply(OK).answered("200 ok"));
    holds(Script::new().send(fields(100)).refused(431).nothing_more_arrives());
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn chunks_that_are_none_end_the_request() {
    each_holds(
        [
            "x\r\nabc\r\n0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\rabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ]
        .map(|chunks| {
            let script = Script::new().send(format!("{CHUNKED}{chunks}{}", get("/smuggled"))).refused(400);
            let script = script.never_arrives("GET /smuggled");
            (chunks, script)
        }),
    );
}

#[test]
fn chunks_that_only_a_forgiving_reader_takes_end_the_request() {
    each_holds(
        [
            ("\r\nabc\r\n0\r\n\r\n", ""),
            ("3;a=\nb\r\nabc\r\n0\r\n\r\n", "abc"),
            ("3\r\nabc\r\n0\r\nA : b\r\n\r\n", "abc"),
            ("3\r\nabc\r\n0\r\nA\r\n\r\n", "abc"),
        ]
        .map(|(chunks, taken)| {
            let sent = Script::new().send(format!("{CHUNKED}{chunks}{}", get("/smuggled")));
            // What follows is read by nobody either way.
            let served =
                sent.clone().arrives(format!("POST / {taken}").trim_end()).reply(OK).answered("200 ok");
            let served = served.ended().nothing_more_arrives();
            let refused = sent.refused(400).never_arrives("GET /smuggled");
            (chunks, refused.but_on_pingora(differences::LENIENT_CHUNKS, served))
        }),
    );
}
