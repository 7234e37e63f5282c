//! Bodies, however they are delimited, arrive as they were sent.

use overlane_tests::case::{each_holds, holds};
use overlane_tests::message::Framing;
use overlane_tests::script::Script;
use overlane_tests::told::show;

use super::{GET, OK, differences};

#[test]
fn every_method_reaches_the_upstream_as_it_is() {
    each_holds(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH", "get"].map(
        |method| {
            let script = Script::new()
                .send(format!("{method} /a/b?c=d&e HTTP/1.1\r\nHost: x\r\n\r\n"))
                .arrives(format!("{method} /a/b?c=d&e"))
                .has("host: x")
                .reply(OK)
                .answered("200 ok");
            (method, script)
        },
    ));
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
    let answered = |script: Script| {
        script
            .reply(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n{body}"))
            .answered("200 abc")
    };
    let next = |script: Script| {
        script.send(GET).arrives("GET /").reply(OK).answered("200 ok").upstream_connections(1)
    };
    holds(
        next(answered(sent.clone().has_trailer("x-sum: 1")).has_trailer("x-sum: 1")).but_on_pingora(
            differences::TRAILERS,
            answered(sent.has_trailer("x-sum"))
                .has_trailer("x-sum")
                .send(GET)
                .arrives("GET /")
                .reply(OK)
                .answered("200 ok"),
        ),
    );
}

/// Trailers that could only mislead who merges them into the head.
const MISLEADING: [&str; 5] = [
    "Content-Length: 9",
    "Transfer-Encoding: gzip",
    "Host: evil",
    "x-overlay-id: alice",
    "Connection: close",
];

#[test]
fn trailers_cannot_change_what_the_head_said() {
    let head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let reply = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for field in MISLEADING {
        let body = format!("3\r\nabc\r\n0\r\n{field}\r\n\r\n");
        let name = field.split(':').next().unwrap_or_default();
        let at_once = Script::new().send(format!("{head}{body}")).refused(400).never_arrives("POST");
        let begun = Script::new().send(head).arrives_so_far("POST /");
        let cut = begun.send(&body).refused(400).upstream_ended().never_arrives("POST");
        each_holds([("at once", at_once), ("after the head", cut)]);
        let asked = Script::new().send(GET).arrives("GET /");
        let at_once = asked.clone().reply(format!("{reply}{body}"));
        let begun = asked.reply(reply).answered_so_far("200").reply(&body);
        each_holds([(at_once.clone().refused(502), at_once), (begun.clone().cut("200 abc"), begun)].map(
            |(refused, taken)| {
                let dropped = taken.answered("200 abc").has_trailer(name);
                (field, refused.but_on_pingora(differences::TRAILERS, dropped))
            },
        ));
    }
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

#[test]
fn a_body_in_pieces_arrives_as_the_pieces_come() {
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n")
            .arrives_so_far("POST /")
            .send("abc")
            .arrives_so_far("POST / abc")
            .send("def")
            .arrives("POST / abcdef")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
            .answered_so_far("200")
            .reply("uvw")
            .answered_so_far("200 uvw")
            .reply("xyz")
            .answered("200 uvwxyz"),
    );
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .arrives_so_far("POST /")
            .send("3\r\nabc\r\n")
            .arrives_so_far("POST / abc")
            // The answer begins while the request still comes.
            .reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nuvw\r\n")
            .answered_so_far("200 uvw")
            .send("3\r\ndef\r\n0\r\n\r\n")
            .arrives("POST / abcdef")
            .reply("3\r\nxyz\r\n0\r\n\r\n")
            .answered("200 uvwxyz"),
    );
}

#[test]
fn messages_are_read_however_their_bytes_are_cut() {
    holds(
        Script::new()
            .drip("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .arrives("POST /a abc")
            .reply_dripping("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .answered("200 ok")
            .drip("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("POST /b abc")
            .reply_dripping(OK)
            .answered("200 ok"),
    );
}

#[test]
fn what_has_no_body_has_none_whatever_its_fields_say() {
    each_holds(["Content-Length: 5", "Transfer-Encoding: chunked", "X: y"].map(|field| {
        let script = Script::new()
            .send("HEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("HEAD /1")
            .reply(format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"))
            .answered_to_head("200")
            .send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("GET /2")
            .reply(format!("HTTP/1.1 304 Not Modified\r\n{field}\r\n\r\n"))
            .answered("304")
            .send("DELETE /3 HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("DELETE /3")
            .reply(OK)
            .answered("200 ok");
        (field, script)
    }));
    holds(
        Script::new()
            .send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("GET /1")
            .reply("HTTP/1.1 204 No Content\r\n\r\n")
            .answered("204")
            .lacks("content-length")
            .lacks("transfer-encoding")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn empty_bodies_are_bodies() {
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            .arrives("POST /")
            .framed(Framing::Length(0))
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .answered("200")
            .framed(Framing::Length(0))
            .send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            .arrives("POST /")
            .framed(Framing::Chunked)
            .reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            .answered("200")
            .framed(Framing::Chunked),
    );
}

#[test]
fn a_get_may_have_a_body() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("GET / abc")
            .reply(OK)
            .answered("200 ok")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn options_of_the_whole_server_reaches_it() {
    holds(
        Script::new()
            .send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("OPTIONS *")
            .has("host: x")
            .reply("HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n")
            .answered("204")
            .has("allow: GET"),
    );
}
