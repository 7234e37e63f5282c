//! Several requests on one connection: in order, and none of them twice or lost.

use overlane_tests::case::holds;
use overlane_tests::script::Script;

use super::{GET, OK, get};

#[test]
fn pipelined_requests_are_answered_in_order_also_when_the_first_is_slow() {
    holds(
        Script::new()
            .send([get("/1"), get("/2"), get("/3")].concat())
            .arrives("GET /1")
            .nothing_more_arrives()
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
            .answered("200 one")
            .arrives("GET /2")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo")
            .arrives("GET /3")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthree")
            .answered("200 two")
            .answered("200 three"),
    );
}

#[test]
fn what_follows_a_body_is_the_next_request() {
    holds(
        Script::new()
            .send(format!("POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc{}", get("/2")))
            .arrives("POST /1 abc")
            .reply(OK)
            .answered("200 ok")
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok"),
    );
    holds(
        Script::new()
            .send(format!(
                "POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{}",
                get("/2")
            ))
            .arrives("POST /1 abc")
            .reply(OK)
            .answered("200 ok")
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_pipelined_head_may_come_in_two_parts() {
    let (first, second) = GET.split_at(20);
    holds(
        Script::new()
            .send(format!("{}{first}", get("/1")))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .send(second)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn after_a_malformed_request_nothing_is_read_any_more() {
    holds(
        Script::new()
            .send(format!("{}GET /2 HTTP/1.1\r\n bad: x\r\n\r\n{}", get("/1"), get("/3")))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .refused(400)
            .nothing_more_arrives(),
    );
}

#[test]
fn after_an_answer_of_the_proxys_own_the_next_request_is_served() {
    holds(
        Script::new()
            .send(format!("GET /1 HTTP/1.1\r\nHost: x\r\nx-overlay-id: NOT!\r\n\r\n{}", get("/2")))
            .answered("400 overlane")
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn empty_lines_between_requests_are_skipped() {
    holds(
        Script::new()
            .send(format!("\r\n\r\n{}\r\n{}", get("/1"), get("/2")))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn requests_after_one_that_closes_are_not_served() {
    holds(
        Script::new()
            .send(format!("GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n{}", get("/2")))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .has("connection: close")
            .ended()
            .nothing_more_arrives(),
    );
}
