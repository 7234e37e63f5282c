//! Final responses that come before the request is all there.

use overlane_tests::case::holds;
use overlane_tests::script::Script;

use super::{GET, OK, get};

const LARGE: &str = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\nabc";

#[test]
fn an_upstream_that_answers_early_and_closes_is_heard() {
    holds(
        Script::new()
            .send(LARGE)
            .arrives_so_far("POST / abc")
            .reply("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
            .upstream_half_closes()
            .answered("413 big")
            .has("connection: close")
            .half_close()
            .ended(),
    );
}

#[test]
fn an_answer_that_comes_before_the_request_is_whole_is_the_last_one() {
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
            .arrives_so_far("POST / abc")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
            .answered("200 early")
            .has("connection: close")
            .send("def")
            .half_close()
            .ended(),
    );
}

#[test]
fn what_was_not_read_of_a_body_is_no_request() {
    // A body that looks like a request, after an early answer: it must not be served.
    let body = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    holds(
        Script::new()
            .send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len() + 3))
            .arrives_so_far("POST /")
            .reply("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
            .upstream_closes()
            .answered("413 big")
            .send(body)
            .half_close()
            .ended()
            .nothing_more_arrives(),
    );
}

#[test]
fn what_comes_of_a_body_after_an_early_answer_is_still_the_body() {
    let body = get("/smuggled");
    for framed in [
        format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
    ] {
        let (head, rest) = framed.split_at(framed.find("\r\n\r\n").unwrap() + 4);
        holds(
            Script::new()
                .send(format!("POST / HTTP/1.1\r\nHost: x\r\n{head}"))
                .arrives_so_far("POST /")
                .reply(OK)
                .answered("200 ok")
                .send(rest)
                .half_close()
                .ended()
                .never_arrives("GET /smuggled"),
        );
    }
}

#[test]
fn after_an_early_answer_the_upstreams_connection_is_not_given_to_anybody_else() {
    holds(
        Script::new()
            .send(LARGE)
            .arrives_so_far("POST / abc")
            .reply(OK)
            .answered("200 ok")
            .client(1)
            .send(GET)
            .arrives("GET /")
            .upstream_connections(2)
            .reply(OK)
            .answered("200 ok"),
    );
}
