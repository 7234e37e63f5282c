//! `Expect: 100-continue`, and what comes before a final response.

use overlane_tests::case::{Case, each_holds, holds};
use overlane_tests::script::Script;

use super::{OK, differences, expecting, get};

/// An exchange after which both connections are kept.
fn kept(exchange: &Script) -> Case {
    let closed = exchange.clone().has("connection: close").ended();
    let next = exchange.clone().send(get("/2")).arrives("GET /2").upstream_connections(1);
    next.reply(OK).answered("200 ok").but_on_pingora(differences::AFTER_CONTINUE, closed)
}

#[test]
fn a_continue_of_the_upstream_reaches_a_client_that_waits_for_it() {
    holds(kept(
        &expecting(3)
            .arrives_so_far("POST /")
            .has("expect: 100-continue")
            .reply("HTTP/1.1 100 Continue\r\n\r\n")
            .answered("100")
            .send("abc")
            .arrives("POST / abc")
            .reply(OK)
            .answered("200 ok"),
    ));
}

#[test]
fn an_upstream_that_refuses_at_once_saves_the_client_its_body() {
    each_holds(["Connection: close\r\n", ""].map(|field| {
        let script = expecting(3)
            .arrives_so_far("POST /")
            .reply(format!("HTTP/1.1 417 Expectation Failed\r\n{field}Content-Length: 2\r\n\r\nno"))
            .answered("417 no");
        (field, script)
    }));
}

#[test]
fn after_a_refusal_at_once_what_follows_is_the_body_and_no_request() {
    let body = get("/smuggled");
    holds(
        expecting(body.len())
            .arrives_so_far("POST /")
            .reply("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
            .answered("417 no")
            .send(body)
            .half_close()
            .ended()
            .never_arrives("GET /smuggled"),
    );
}

#[test]
fn a_client_that_does_not_wait_is_served_all_the_same() {
    holds(
        expecting(3)
            .send("abc")
            .arrives("POST / abc")
            .reply("HTTP/1.1 100 Continue\r\n\r\n")
            .reply(OK)
            .answered("100")
            .answered("200 ok"),
    );
    holds(expecting(3).send("abc").arrives("POST / abc").reply(OK).answered("200 ok"));
}

#[test]
fn a_chunked_body_waits_for_continue_like_any_other() {
    holds(kept(
        &Script::new()
            .send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n")
            .arrives_so_far("POST /")
            .reply("HTTP/1.1 100 Continue\r\n\r\n")
            .answered("100")
            .send("3\r\nabc\r\n0\r\n\r\n")
            .arrives("POST / abc")
            .reply(OK)
            .answered("200 ok"),
    ));
}

#[test]
fn interim_responses_arrive_each_for_itself_and_carry_no_receipt() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\n\r\n")
            .arrives("GET /")
            .reply("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            .answered("103")
            .has("link: </a>")
            .lacks("x-overlay-route")
            .reply("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")
            .answered("102")
            .answered("103")
            .has("link: </b>")
            .reply(OK)
            .answered("200 ok")
            .has("x-overlay-route: web;env=alice;via=overlay;reason=owned;partial"),
    );
}

#[test]
fn after_an_interim_response_the_connection_is_kept() {
    holds(
        Script::new()
            .send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("GET /")
            .reply(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"))
            .answered("103")
            .answered("200 ok")
            .send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .arrives("GET /")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn an_http_1_0_client_gets_no_interim_responses() {
    holds(
        Script::new()
            .send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            .arrives("GET /")
            .reply(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"))
            .answered("200 ok")
            .ended(),
    );
    // Nor does it know how to expect one (RFC 9110, section 10.1.1).
    holds(
        Script::new()
            .send("POST / HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
            .arrives("POST / abc")
            .reply(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"))
            .answered("200 ok")
            .ended(),
    );
}

#[test]
fn an_upstream_that_did_not_ask_for_the_body_is_asked_nothing_else_on_that_connection() {
    // It may take the body for a request.
    let body = get("/smuggled");
    let length = body.len();
    let asked = Script::new()
        .send(format!(
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .arrives(format!("POST / {body}").trim_end())
        .reply("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        .answered("417")
        .client(1)
        .send(get("/2"))
        .arrives("GET /2");
    let next = |connections| asked.clone().upstream_connections(connections).reply(OK).answered("200 ok");
    holds(next(2).but_on_pingora(differences::KEEPS_DOUBTFUL, next(1)));
}
