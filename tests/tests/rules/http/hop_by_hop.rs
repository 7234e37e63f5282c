//! What belongs to one connection stays on it, and what does not travels.

use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::message::Framing;
use overlane_tests::script::Script;

use super::{GET, OK, differences};

#[test]
fn what_a_client_says_to_the_proxy_does_not_travel() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x-mine, close-not\r\nX-Mine: 1\r\nClose-Not: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Other: 3\r\n\r\n")
            .arrives("GET /")
            .lacks("x-mine")
            .lacks("close-not")
            .lacks("keep-alive")
            .lacks("proxy-connection")
            .lacks("te")
            .has("x-other: 3")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn trailers_are_welcome_where_they_are_forwarded() {
    let sent =
        Script::new().send("GET / HTTP/1.1\r\nHost: x\r\nTE: gzip;q=0.5, Trailers\r\n\r\n").arrives("GET /");
    let answered = |script: Script| script.reply(OK).answered("200 ok");
    let said = sent.clone().has("te: trailers").has("connection: TE");
    holds(answered(said).but_on_pingora(differences::TRAILERS, answered(sent.lacks("te"))));
}

#[test]
fn what_an_upstream_says_to_the_proxy_does_not_travel() {
    holds(
        Script::new()
            .send(GET)
            .arrives("GET /")
            .reply("HTTP/1.1 200 OK\r\nConnection: x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nX-Other: 3\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .lacks("x-mine")
            .lacks("keep-alive")
            .lacks("proxy-connection")
            .has("x-other: 3")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn framing_and_host_cannot_be_nominated_away() {
    let request = |nominated: &str| {
        Script::new().send(format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: {nominated}\r\nContent-Length: 3\r\n\r\nabc"
        ))
    };
    let served = |nominated: &str, framing: Framing| {
        request(nominated)
            .arrives("POST / abc")
            .has("host: x")
            .framed(framing)
            .reply(format!("HTTP/1.1 200 OK\r\nConnection: {nominated}\r\nContent-Length: 2\r\n\r\nok"))
            .answered("200 ok")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok")
    };
    each_holds(["content-length", "close-not, transfer-encoding, content-length"].map(|nominated| {
        let reframed = served(nominated, Framing::Chunked);
        let served = served(nominated, Framing::Length(3));
        (nominated, served.but_on_pingora(differences::LENGTH_NOMINATED, reframed))
    }));
    each_holds(["Host", "transfer-encoding, content-length, host"].map(|nominated| {
        let refused = request(nominated).refused(400).nothing_more_arrives();
        let served = served(nominated, Framing::Length(3));
        (nominated, served.but_on_pingora(differences::HOST_NOMINATED, refused))
    }));
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .arrives("POST / abc")
            .reply("HTTP/1.1 200 OK\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .answered("200 ok")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn the_key_and_its_mark_cannot_be_nominated_away() {
    each_holds(["x-overlay-id", "X-OVERLAY-ID, baggage", "close, x-overlay-id", "x-overlay-require"].map(
        |nominated| {
            let script = Script::new()
                .send(format!(
                    "GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nConnection: {nominated}\r\n\r\n"
                ))
                .arrives("GET /")
                .has("x-overlay-id: alice")
                .reply("HTTP/1.1 200 OK\r\nConnection: x-overlay-route\r\nContent-Length: 2\r\n\r\nok")
                .answered("200 ok")
                .has("x-overlay-route: web;env=alice;via=overlay;reason=owned;partial");
            (nominated, script)
        },
    ));
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn an_upgrade_that_the_upstream_accepts_is_a_tunnel() {
    holds(
        Script::new()
            .send(UPGRADE)
            .arrives("GET /")
            .has("upgrade: websocket")
            .reply(SWITCH)
            .answered("101")
            .has("upgrade: websocket")
            .reply("hello")
            .client_gets("hello")
            .send("from the client")
            .upstream_gets("from the client")
            .reply("from the upstream")
            .client_gets("from the upstream")
            .upstream_closes()
            .ended(),
    );
}

#[test]
fn what_both_sides_say_early_is_not_lost_in_an_upgrade() {
    holds(
        Script::new()
            .send(format!("{UPGRADE}early"))
            .arrives("GET /")
            .reply(format!("{SWITCH}greeting"))
            .answered("101")
            .client_gets("greeting")
            .upstream_gets("early")
            .but_on_pingora_by_chance(
                differences::EARLY_IN_AN_UPGRADE,
                Script::new().send(format!("{UPGRADE}early")).arrives("GET /"),
            ),
    );
}

#[test]
fn each_side_of_a_tunnel_ends_by_itself() {
    holds(
        Script::new()
            .send(UPGRADE)
            .arrives("GET /")
            .reply(SWITCH)
            .answered("101")
            .send("all")
            .half_close()
            .upstream_gets("all")
            .reply("the rest")
            .client_gets("the rest")
            .upstream_closes()
            .ended()
            .but_on_pingora_by_chance(
                differences::HALF_CLOSED_TUNNEL,
                Script::new().send(UPGRADE).arrives("GET /").reply(SWITCH).answered("101").send("all"),
            ),
    );
}

#[test]
fn another_version_of_http_is_never_switched_to() {
    // Through such a tunnel would come requests that nobody has decided.
    let asks = |upgrade: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
    };
    for upgrade in ["h2c", "H2C", "h2", "websocket, h2c", "HTTP/2.0", "TLS/1.2"] {
        holds(
            Script::new()
                .send(asks(upgrade))
                .arrives("GET /")
                .lacks("upgrade")
                .lacks("http2-settings")
                .reply(OK)
                .answered("200 ok")
                .send(asks(upgrade))
                .arrives("GET /")
                .reply(SWITCH)
                .refused(502),
        );
    }
}

#[test]
fn an_upgrade_says_who_gave_it_and_only_to_whom_that_is_said() {
    let keyed = UPGRADE.replace("Host: x", "Host: x\r\nx-overlay-id: alice");
    let forged = SWITCH.replace("\r\n\r\n", "\r\nx-overlay-route: forged\r\n\r\n");
    holds(
        Script::new()
            .send(&keyed)
            .arrives("GET /")
            .has("x-overlay-id: alice")
            .reply(SWITCH)
            .answered("101")
            .has("x-overlay-route: web;env=alice;via=overlay;reason=owned;partial"),
    );
    holds(
        Script::at(Role::Gateway, Trust::Nobody)
            .send(&keyed)
            .arrives("GET /")
            .reply(&forged)
            .answered("101")
            .lacks("x-overlay-route"),
    );
}

#[test]
fn an_upgrade_that_is_not_what_is_required_is_a_412() {
    holds(
        Script::new()
            .send(UPGRADE.replace("Host: x", "Host: x\r\nx-overlay-id: alice\r\nx-overlay-require: ledger"))
            .arrives("GET /")
            .reply(SWITCH)
            .refused(412),
    );
}

#[test]
fn interim_responses_carry_no_receipts() {
    each_holds(["GET / HTTP/1.1\r\nHost: x\r\n\r\n", UPGRADE].map(|request| {
        let script = Script::at(Role::Gateway, Trust::Nobody)
            .send(request)
            .arrives("GET /")
            .reply("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nx-overlay-route: forged\r\n\r\n")
            .answered("103")
            .lacks("x-overlay-route")
            .reply(OK)
            .answered("200 ok")
            .lacks("x-overlay-route");
        (request, script)
    }));
}

#[test]
fn an_upgrade_that_the_upstream_ignores_is_a_request_like_any_other() {
    holds(Script::new().send(UPGRADE).arrives("GET /").reply(OK).answered("200 ok"));
}

#[test]
fn an_upgrade_that_nobody_nominated_does_not_travel() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
            .arrives("GET /")
            .lacks("upgrade")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_a_502() {
    holds(Script::new().send(GET).arrives("GET /").reply(SWITCH).refused(502));
}

#[test]
fn fields_travel_as_they_are() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nCookie: a=1; b=2\r\nCookie: c=3\r\nX-Empty:\r\nX-Text: \u{e4}\u{f6} b  c\t\r\nAccept: a\r\nAccept: b\r\n\r\n")
            .arrives("GET /")
            .has("cookie: a=1; b=2 | c=3")
            .has("x-empty: ")
            .has("x-text: \u{e4}\u{f6} b  c")
            .has("accept: a | b")
            .reply("HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty: \r\nServer: s\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .has("set-cookie: a=1 | b=2")
            .has("server: s"),
    );
}

#[test]
fn a_gateway_says_for_whom_it_asks() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: web.example\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
            .arrives("GET /")
            .has("x-forwarded-for: 127.0.0.1")
            .has("x-forwarded-proto: http")
            .has("x-forwarded-host: web.example")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn the_date_is_the_upstreams() {
    let date = "Thu, 01 Jan 1970 00:00:00 GMT";
    let answered = Script::new()
        .send(GET)
        .arrives("GET /")
        .reply(format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\n\r\nok"))
        .answered("200 ok");
    holds(answered.clone().has(format!("date: {date}")).but_on_pingora(differences::DATE, answered));
}
