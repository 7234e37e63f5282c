//! Deadlines, on each engine.

use std::time::Duration;

use overlane::plane::Limits;
use overlane_tests::case::holds;
use overlane_tests::script::Script;

use super::{GET, OK, get};

const SHORT: Duration = Duration::from_millis(150);

#[test]
fn a_body_that_stops_coming_is_a_408() {
    holds(
        Script::within(Limits { body: SHORT, ..Limits::default() })
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            .arrives_so_far("POST / abc")
            .refused(408)
            .upstream_ended(),
    );
}

#[test]
fn an_upstream_that_does_not_answer_is_a_504() {
    holds(
        Script::within(Limits { upstream_read: SHORT, ..Limits::default() })
            .send(GET)
            .arrives("GET /")
            .refused(504)
            .upstream_ended(),
    );
}

#[test]
fn an_upstream_that_stops_in_its_answer_cuts_it() {
    holds(
        Script::within(Limits { upstream_read: SHORT, ..Limits::default() })
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            .answered_so_far("200 abc")
            .cut("200 abc")
            .upstream_ended(),
    );
}

#[test]
fn an_unused_connection_to_an_upstream_is_closed() {
    holds(
        Script::within(Limits { upstream_idle: SHORT, ..Limits::default() })
            .send(get("/1"))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .upstream_ended(),
    );
}

#[test]
fn an_idle_client_is_closed() {
    holds(
        Script::within(Limits { idle: SHORT, ..Limits::default() })
            .send(get("/1"))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .ended(),
    );
}
