//! Deadlines, on each engine.

use std::time::Duration;

use overlane::plane::Limits;
use overlane_tests::case::{holds, holds_before};
use overlane_tests::script::Script;

use super::differences::STREAMS;
use super::{GET, OK, get};

const SHORT: Duration = Duration::from_millis(150);
/// What a client gets whose answer has not begun in time.
const LATE: &str = "HTTP/1.1 504";

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
fn a_request_has_a_time_in_all_where_that_is_set() {
    let arrived =
        |time| Script::within(Limits { request: Some(time), ..Limits::default() }).send(GET).arrives("GET /");
    holds_before(LATE, |time| arrived(time).refused(504).upstream_ended());
    for reply in ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", STREAM] {
        let begun = |time| arrived(time).reply(reply).answered_so_far("200 abc");
        holds_before(LATE, |time| begun(time).cut("200 abc").upstream_ended());
    }
}

#[test]
fn an_upstream_that_stops_in_its_answer_cuts_it() {
    holds_before(LATE, |time| {
        Script::within(Limits { upstream_read: time, ..Limits::default() })
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            .answered_so_far("200 abc")
            .cut("200 abc")
            .upstream_ended()
    });
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

const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A request with a key, that asks for a WebSocket where `fields` do.
fn keyed(key: &str, fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: {key}\r\n{fields}\r\n")
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn a_stream_whose_overlay_is_gone_ends_after_a_grace() {
    let limits = || Limits { grace: SHORT, ..Limits::default() };
    let begun = || {
        Script::within(limits())
            .send(keyed("alice", ""))
            .arrives("GET /")
            .reply(STREAM)
            .answered_so_far("200 abc")
            .alice_goes()
    };
    holds(
        begun()
            .cut("200 abc")
            .upstream_ended()
            .but_on_pingora(STREAMS, begun().reply("0\r\n\r\n").answered("200 abc")),
    );
}

#[test]
fn a_tunnel_whose_overlay_is_gone_ends_after_a_grace() {
    let limits = || Limits { grace: SHORT, ..Limits::default() };
    let begun = || {
        Script::within(limits())
            .send(keyed("alice", WEBSOCKET))
            .arrives("GET /")
            .reply(SWITCH)
            .answered("101")
            .reply("hello")
            .client_gets("hello")
            .alice_goes()
    };
    holds(
        begun().ended().upstream_ended().but_on_pingora(STREAMS, begun().reply("more").client_gets("more")),
    );
}
