//! The key on its way, and tricks with it.

use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::{GET, OK, differences};

const OWNED: &str = "x-overlay-route: web;env=alice;via=overlay;reason=owned;partial";

#[test]
fn the_key_leaves_on_one_line_however_it_came() {
    each_holds(
        [
            "x-overlay-id: alice",
            "X-Overlay-ID:alice",
            "x-overlay-id:   alice  ",
            "x-overlay-id: alice\r\nx-overlay-id: alice",
            "x-overlay-id: alice, alice",
            "baggage: overlay-id=alice",
            "baggage: a=1\r\nBaggage: overlay-id=alice;p=q",
            "x-overlay-id:\r\nbaggage: overlay-id=alice",
        ]
        .map(|fields| {
            let script = Script::new()
                .send(format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n"))
                .arrives("GET /")
                .has("x-overlay-id: alice")
                .reply(OK)
                .answered("200 ok")
                .has(OWNED);
            (fields, script)
        }),
    );
}

#[test]
fn several_keys_leave_in_order_on_one_line() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: nobody\r\nx-overlay-id: alice\r\n\r\n")
            .arrives("GET /")
            .has("x-overlay-id: nobody, alice")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_header_that_only_looks_like_ours_is_refused() {
    each_holds(["X_Overlay_Id", "x-overlay_id", "x_overlay_hop", "X_OVERLAY_REQUIRE"].map(|name| {
        let script = Script::new()
            .send(format!("GET / HTTP/1.1\r\nHost: x\r\n{name}: alice\r\n\r\n"))
            .answered("400 overlane");
        (name, script)
    }));
}

#[test]
fn a_key_that_is_no_id_is_refused_and_the_connection_stays() {
    each_holds(["Alice!", "a--b", "-a", "a b", "a\u{e4}", "a/b", "\"alice\""].map(|key| {
        let script = Script::new()
            .send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: {key}\r\n\r\n"))
            .answered("400 overlane")
            .send(GET)
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok");
        (key, script)
    }));
}

#[test]
fn a_refusal_of_a_request_whose_end_is_not_known_to_be_here_closes_and_says_so() {
    each_holds(
        ["Content-Length: 3\r\n\r\nab", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"].map(
            |rest| {
                let script = Script::new()
                    .send(format!("POST / HTTP/1.1\r\nHost: x\r\nx-overlay-id: A!\r\n{rest}"))
                    .refused(400)
                    .nothing_more_arrives();
                (rest, script)
            },
        ),
    );
}

#[test]
fn a_refusal_of_a_request_that_is_all_here_keeps_the_connection() {
    let sent = Script::new()
        .send(format!("POST / HTTP/1.1\r\nHost: x\r\nx-overlay-id: A!\r\nContent-Length: 3\r\n\r\nabc{GET}"));
    let kept = sent.clone().answered("400 overlane").arrives("GET /").reply(OK).answered("200 ok");
    let closed = sent.refused(400).nothing_more_arrives();
    holds(kept.but_on_pingora(differences::REFUSED_WITH_BODY, closed));
}

#[test]
fn an_empty_key_is_none() {
    each_holds(["x-overlay-id:", "x-overlay-id:  ", "x-overlay-id: ,"].map(|field| {
        let script = Script::new()
            .send(format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n"))
            .arrives("GET /")
            .has("x-overlay-id: ")
            .reply(OK)
            .answered("200 ok")
            .lacks("x-overlay-route");
        (field, script)
    }));
}

#[test]
fn receipts_of_upstreams_come_before_ours_and_only_where_somebody_asked() {
    let reply = "HTTP/1.1 200 OK\r\nx-overlay-route: deep;env=alice;via=overlay;reason=owned\r\nX-Overlay-Route: deeper\r\nContent-Length: 2\r\n\r\nok";
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\n\r\n")
            .arrives("GET /")
            .reply(reply)
            .answered("200 ok")
            .has("x-overlay-route: deep;env=alice;via=overlay;reason=owned, web;env=alice;via=overlay;reason=owned;partial")
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: nobody\r\n\r\n")
            .arrives("GET /")
            .has("x-overlay-id: nobody")
            .reply(OK)
            .answered("200 ok")
            .has("x-overlay-route: web;env=base;via=baseline;reason=unknown;partial"),
    );
}

#[test]
fn a_requirement_that_is_not_met_is_a_412_and_reaches_nobody() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: nobody\r\nx-overlay-require: web\r\n\r\n")
            .answered("412 overlane")
            .nothing_more_arrives()
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nx-overlay-require: web\r\n\r\n")
            .arrives("GET /")
            .has("x-overlay-require: web")
            .reply(OK)
            .answered("200 ok")
            .has(OWNED),
    );
}

#[test]
fn answers_of_the_proxys_own_carry_the_receipt() {
    holds(
        Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nContent-Length: 0\r\n\r\n")
            .arrives("POST /")
            .upstream_closes()
            .answered("502 overlane")
            .has("x-overlay-route: web;env=alice;via=overlay;reason=unhealthy;partial")
            .ended(),
    );
}

#[test]
fn from_the_untrusted_nothing_of_ours_travels() {
    holds(
        Script::at(Role::Gateway, Trust::Nobody)
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nx-overlay-hop: alice\r\nx-overlay-route: x\r\nbaggage: a=1,overlay-id=alice,c=3\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
            .arrives("GET /")
            .lacks("x-overlay-id")
            .lacks("x-overlay-hop")
            .lacks("x-overlay-route")
            .has("baggage: a=1,c=3")
            .has("x-forwarded-for: 127.0.0.1")
            .reply(OK)
            .answered("200 ok")
            .lacks("x-overlay-route"),
    );
    holds(
        Script::at(Role::Gateway, Trust::Nobody)
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-require: web\r\n\r\n")
            .arrives("GET /")
            .lacks("x-overlay-require")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn who_requires_an_overlay_that_it_may_not_choose_is_refused_whether_there_is_one_or_not() {
    let inbound = || Role::Inbound { service: "web".parse().unwrap(), environment: None };
    for role in [|| Role::Gateway, inbound] {
        each_holds(
            [
                "x-overlay-id: alice",
                "x-overlay-id: nobody",
                "x-overlay-id: NO ID",
                "baggage: overlay-id=alice",
            ]
            .map(|key| {
                let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{key}\r\nx-overlay-require: web\r\n\r\n");
                let script = Script::at(role(), Trust::Nobody)
                    .send(request)
                    .answered("403 overlane")
                    .lacks("x-overlay-route")
                    .nothing_more_arrives()
                    .counts("overlane_untrusted_headers_total 1");
                (key, script)
            }),
        );
    }
}

#[test]
fn outbound_stamps_and_inbound_delivers() {
    let environment = Some("alice".parse().unwrap());
    holds(
        Script::at(Role::Outbound { service: None, environment: environment.clone() }, Trust::Any)
            .send("GET http://web/a HTTP/1.1\r\nHost: ignored\r\n\r\n")
            .arrives("GET /a")
            .has("host: web")
            .has("x-overlay-id: alice")
            .lacks("x-forwarded-for")
            .reply(OK)
            .answered("200 ok")
            .lacks("x-overlay-route"),
    );
    holds(
        Script::at(Role::Inbound { service: "web".parse().unwrap(), environment }, Trust::Any)
            .send("POST /a HTTP/1.1\r\nHost: web\r\nx-overlay-id: alice\r\nx-overlay-hop: alice\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("POST /a abc")
            .has("x-overlay-id: alice")
            .lacks("x-overlay-hop")
            .reply(OK)
            .answered("200 ok")
            .has(OWNED),
    );
}

#[test]
fn what_is_no_service_passes_through_outbound_without_anything_of_ours() {
    let environment = Some("alice".parse().unwrap());
    holds(
        // By this name it is nobody's service, though the address behind it is the upstream's.
        Script::at(Role::Outbound { service: None, environment }, Trust::Any)
            .send("POST http://localhost:{port}/a HTTP/1.1\r\nHost: x\r\nx-overlay-id: bob\r\nx-overlay-require: *\r\nbaggage: a=1,overlay-id=bob\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("POST /a abc")
            .has("host: localhost:{port}")
            .lacks("x-overlay-id")
            .lacks("x-overlay-require")
            .has("baggage: a=1")
            .reply("HTTP/1.1 200 OK\r\nx-overlay-route: forged\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .lacks("x-overlay-route"),
    );
}

#[test]
fn inbound_gives_the_key_of_its_overlay_and_refuses_what_is_not_for_it() {
    let at = |environment: &str| {
        let role = Role::Inbound {
            service: "web".parse().unwrap(),
            environment: Some(environment.parse().unwrap()),
        };
        Script::at(role, Trust::Any)
    };
    holds(at("alice").send(GET).arrives("GET /").has("x-overlay-id: alice").reply(OK).answered("200 ok"));
    holds(
        at("base")
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nx-overlay-hop: alice\r\n\r\n")
            .answered("421 overlane")
            .nothing_more_arrives(),
    );
}

#[test]
fn proxies_are_counted_and_too_many_of_them_are_a_loop() {
    each_holds([("", "1"), ("x-overlay-hops: 31", "32"), ("x-overlay-hops: many", "1")].map(
        |(fields, hops)| {
            let script = Script::new()
                .send(
                    format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n")
                        .replace("\r\n\r\n\r\n", "\r\n\r\n"),
                )
                .arrives("GET /")
                .has(format!("x-overlay-hops: {hops}"))
                .reply(OK)
                .answered("200 ok");
            (fields, script)
        },
    ));
    each_holds(["32", "256", "99999999999999999999"].map(|hops| {
        let script = Script::at(Role::Gateway, Trust::Any)
            .send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-hops: {hops}\r\n\r\n"))
            .answered("508 overlane")
            .nothing_more_arrives()
            .counts("overlane_loops_total 1");
        (hops, script)
    }));
    holds(
        Script::at(Role::Gateway, Trust::Nobody)
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-hops: 32\r\n\r\n")
            .arrives("GET /")
            .has("x-overlay-hops: 1"),
    );
}
