//! Keeping and closing connections, on both sides, and what happens when one goes away.

use std::time::Duration;

use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::{GET, OK, differences, get};

#[test]
fn a_connection_is_kept_on_both_sides_unless_somebody_closes_it() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .upstream_connections(1),
    );
}

#[test]
fn the_upstreams_close_is_not_the_clients() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .upstream_ended()
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .upstream_connections(2),
    );
}

#[test]
fn the_clients_close_is_not_the_upstreams() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .has("connection: close")
            .ended()
            .client(1)
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .upstream_connections(1),
    );
}

#[test]
fn an_http_1_0_client_that_asks_for_nothing_is_closed() {
    holds(Script::new().send("GET / HTTP/1.0\r\n\r\n").arrives("GET /").reply(OK).answered("200 ok").ended());
}

#[test]
fn an_http_1_0_client_that_asks_for_it_is_kept() {
    holds(
        Script::new()
            .send("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .has("connection: keep-alive")
            .send("GET /2 HTTP/1.0\r\n\r\n")
            .arrives("GET /2")
            .reply(OK)
            .answered("200 ok")
            .ended(),
    );
}

#[test]
fn an_http_1_0_client_gets_chunks_as_a_body_to_the_end() {
    holds(
        Script::new()
            .send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .answered("200 ok")
            .lacks("transfer-encoding")
            .ended(),
    );
}

#[test]
fn an_http_1_0_upstream_is_closed_unless_it_keeps_alive() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .upstream_ended()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok"),
    );
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_answer() {
    holds(Script::new().send(GET).half_close().arrives("GET /").reply(OK).answered("200 ok").ended());
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            .half_close()
            .arrives("POST / abc")
            .reply("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
            .answered_so_far("200 sl")
            .reply("ow")
            .answered("200 slow")
            .ended(),
    );
}

#[test]
fn what_was_pipelined_before_the_client_ended_its_sending_is_answered() {
    let first = Script::new()
        .send([get("/1"), get("/2")].concat())
        .half_close()
        .arrives("GET /1")
        .reply(OK)
        .answered("200 ok");
    let both = first.clone().arrives("GET /2").reply(OK).answered("200 ok").ended();
    holds(both.but_on_pingora_by_chance(differences::PIPELINED_AND_HALF_CLOSED, first));
}

#[test]
fn an_upstream_that_sends_no_more_has_given_its_answer() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\n\r\nto the end")
            .upstream_half_closes()
            .answered("200 to the end")
            .upstream_ended(),
    );
}

#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    each_holds(
        [
            ("in the body, closed", Script::close as fn(Script) -> Script),
            ("in the body, reset", Script::reset),
        ]
        .map(|(name, goes)| {
            let script = Script::new()
                .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
                .arrives_so_far("POST / abc");
            (name, goes(script).upstream_ended())
        }),
    );
}

#[test]
fn a_client_that_resets_while_it_is_answered_ends_the_upstreams_work() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
            .answered_so_far("200 ok")
            .reset()
            .reply("2\r\nok\r\n")
            .reply("2\r\nok\r\n")
            .upstream_ended(),
    );
}

#[test]
fn a_response_that_breaks_off_never_ends_as_if_it_were_whole() {
    let heads = [
        ("sized", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc"),
        ("in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabc"),
        ("between chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        ("in a chunk's size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1"),
        ("in the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"),
    ];
    for (end, goes) in
        [("closed", Script::upstream_closes as fn(Script) -> Script), ("reset", Script::upstream_resets)]
    {
        each_holds(heads.map(|(name, head)| {
            let script = Script::new().send(GET).arrives("GET /").reply(head).answered_so_far("200 abc");
            (format!("{name}, {end}"), goes(script).cut("200 abc"))
        }));
    }
}

#[test]
fn an_upstream_that_goes_away_before_it_answers_is_a_502() {
    for (name, goes) in
        [("closed", Script::upstream_closes as fn(Script) -> Script), ("reset", Script::upstream_resets)]
    {
        each_holds(["", "HTTP/1.1 200 OK\r\nContent-"].map(|part| {
            let script = Script::new()
                .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                .arrives("POST /");
            (format!("{part} {name}"), goes(script.reply(part)).refused(502).nothing_more_arrives())
        }));
    }
}

#[test]
fn an_idle_connection_that_the_upstream_closed_disturbs_nobody() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .upstream_closes()
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
            .upstream_closes()
            .send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("POST / abc")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_stale_connection_is_retried_for_what_may_be_repeated_and_for_nothing_else() {
    // The connection is closed when the second request has arrived on it: as if both had crossed.
    let crossed = |request: &str, arrives: &str| {
        Script::new()
            .send(get("/1"))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .send(request)
            .arrives(arrives)
            .upstream_connections(1)
            .upstream_closes()
    };
    each_holds(["GET", "PUT", "DELETE", "OPTIONS"].map(|method| {
        let request = format!("{method} /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        let arrives = format!("{method} /2 abc");
        let script = crossed(&request, &arrives)
            .arrives(&*arrives)
            .upstream_connections(2)
            .reply(OK)
            .answered("200 ok");
        (method, script)
    }));
    each_holds(["POST", "PATCH", "LOCK"].map(|method| {
        let request = format!("{method} /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        let arrives = format!("{method} /2 abc");
        (method, crossed(&request, &arrives).refused(502).nothing_more_arrives())
    }));
}

#[test]
fn a_fresh_connection_is_never_retried() {
    holds(Script::new().send(GET).arrives("GET /").upstream_closes().refused(502).nothing_more_arrives());
}

#[test]
fn what_passes_through_to_a_host_shares_a_connection_like_what_goes_to_a_service() {
    let request = "GET http://localhost:{port}/a HTTP/1.1\r\nHost: x\r\n\r\n";
    let asked = |script: Script| script.send(request).arrives("GET /a").reply(OK).answered("200 ok");
    let outbound = Script::at(Role::Outbound { service: None, environment: None }, Trust::Any);
    holds(asked(asked(asked(outbound)).client(1)).upstream_connections(1));
}

#[test]
fn the_connections_of_an_overlay_that_was_removed_are_closed_and_serve_nobody_else() {
    let limits = Limits { upstream_idle: Duration::from_secs(60), ..Limits::default() };
    let asked = |script: Script, field: &str| {
        script.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n")).arrives("GET /")
    };
    let answered = |script: Script| script.reply(OK).answered("200 ok");
    let removed = answered(asked(Script::within(limits), "x-overlay-id: alice\r\n")).alice_goes();
    // Both lead to the same address.
    let next = asked(removed.clone(), "");
    let own = next.clone().upstream_connections(2);
    let shared = answered(next.upstream_connections(1));
    holds(answered(own).but_on_pingora(differences::BY_ADDRESS, shared.clone()));
    holds(removed.upstream_ended().but_on_pingora(differences::BY_ADDRESS, shared));
}

#[test]
fn a_request_is_not_sent_again_to_an_address_that_was_removed() {
    // Who listens there by now may be somebody else's.
    let keyed = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\n\r\n");
    holds(
        Script::new()
            .send(keyed("/1"))
            .arrives("GET /1")
            .reply(OK)
            .answered("200 ok")
            .send(keyed("/2"))
            .arrives("GET /2")
            .alice_goes()
            .upstream_closes()
            .refused(502)
            .nothing_more_arrives(),
    );
}
