//! Responses on which readers could disagree: 502, and what an upstream sent too much goes to nobody.

use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::{GET, OK, differences, get};

/// A client that asks, and an upstream that answers with `reply` and no more.
fn asked(reply: &str) -> Script {
    Script::new().send(GET).arrives("GET /").reply(reply).upstream_half_closes()
}

fn refused(replies: &[&str]) {
    each_holds(replies.iter().map(|reply| (*reply, asked(reply).refused(502))));
}

#[test]
fn lengths_on_which_readers_could_disagree() {
    let fields = [
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3,4",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length:",
        "Content-Length: 18446744073709551619",
    ];
    let replies = fields.map(|field| format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\nabcd"));
    refused(&replies.each_ref().map(String::as_str));
}

#[test]
fn a_length_and_chunks() {
    each_holds(
        [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
        ]
        .map(|fields| {
            let asked = asked(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"));
            let taken = asked.clone().answered("200 abc").lacks("content-length");
            (fields, asked.refused(502).but_on_pingora(differences::LENGTH_AND_CHUNKS, taken))
        }),
    );
}

#[test]
fn transfer_codings_other_than_chunked_alone() {
    let heads = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: identity",
        // Chunks came with HTTP/1.1.
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
    ];
    let replies = heads.map(|head| format!("{head}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"));
    refused(&replies.each_ref().map(String::as_str));
}

#[test]
fn heads_whose_lines_are_no_lines() {
    refused(&[
        "HTTP/1.1 200 OK\r\nA: b\rC: d\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nA\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nA(b): c\r\nContent-Length: 2\r\n\r\nok",
    ]);
}

#[test]
fn heads_that_only_a_forgiving_reader_takes() {
    each_holds(
        [
            "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\n\nok",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        ]
        .map(|reply| {
            let taken = asked(reply).answered("200 ok");
            (reply, asked(reply).refused(502).but_on_pingora(differences::LENIENT_HEADS, taken))
        }),
    );
}

#[test]
fn status_lines_that_are_none() {
    refused(&[
        "ok",
        "<html>\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
        " HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "ICY 200 OK\r\n\r\nok",
    ]);
}

#[test]
fn chunks_that_are_none_cut_the_response() {
    each_holds(
        [
            "x\r\nabc\r\n0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ]
        .map(|chunks| {
            let script = Script::new()
                .send(GET)
                .arrives("GET /")
                .reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .answered_so_far("200")
                .reply(chunks)
                .cut("200 abc");
            (chunks, script)
        }),
    );
}

#[test]
fn what_follows_a_response_is_given_to_nobody() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    each_holds(
        [
            ("after a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ("after chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ]
        .map(|(name, response)| {
            let script = Script::new()
                .send(get("/1"))
                .arrives("GET /1")
                .reply(format!("{response}{poison}"))
                .answered("200 ok")
                .client(1)
                .send(get("/2"))
                .arrives("GET /2")
                .upstream_connections(2)
                .reply(OK)
                .answered("200 ok")
                .client(0)
                .send(get("/3"))
                .arrives("GET /3")
                .reply(OK)
                .answered("200 ok");
            (name, script)
        }),
    );
    // The same where what follows comes when the connection is idle already.
    holds(
        Script::new()
            .send(get("/1"))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .reply(poison)
            .client(1)
            .send(get("/2"))
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_body_where_there_can_be_none_is_given_to_nobody() {
    each_holds(
        [
            ("204", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison"),
            ("304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison"),
            ("HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
        ]
        .map(|(name, method, response)| {
            let script = Script::new()
                .send(format!("{method} /1 HTTP/1.1\r\nHost: x\r\n\r\n"))
                .arrives(format!("{method} /1"));
            let script = script.reply(response);
            let script = if name == "HEAD" { script.answered_to_head("200") } else { script.answered(name) };
            let script = script.client(1).send(get("/2")).arrives("GET /2").reply(OK).answered("200 ok");
            (name, script)
        }),
    );
}

#[test]
fn a_response_that_nobody_asked_for_is_given_to_nobody() {
    holds(
        Script::new()
            .send(get("/1"))
            .arrives("GET /1")
            .reply(format!("{OK}{OK}"))
            .answered("200 ok")
            .send(get("/2"))
            .arrives("GET /2")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown")
            .answered("200 own"),
    );
}

#[test]
fn heads_that_are_too_large() {
    let long = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nA: {}\r\nContent-Length: 2\r\n\r\nok", "a".repeat(length))
    };
    holds(Script::new().send(GET).arrives("GET /").reply(long(60_000)).answered("200 ok"));
    holds(Script::new().send(GET).arrives("GET /").reply(long(2_000_000)).refused(502));
    holds(Script::new().send(GET).arrives("GET /").reply("A".repeat(2_000_000)).refused(502));
}

#[test]
fn after_an_interim_response_that_says_what_none_can_say_the_connection_is_not_used_again() {
    let hints = "HTTP/1.1 103 Early Hints\r\nContent-Length: 38\r\n\r\n";
    let asked = Script::new()
        .send(get("/1"))
        .arrives("GET /1")
        .reply(format!("{hints}{OK}"))
        .answered("103")
        .lacks("content-length")
        .answered("200 ok")
        .client(1)
        .send(get("/2"))
        .arrives("GET /2");
    let next = |connections| asked.clone().upstream_connections(connections).reply(OK).answered("200 ok");
    holds(next(2).but_on_pingora(differences::KEEPS_DOUBTFUL, next(1)));
}
