//! Requests that are rewritten or refused whatever they say; those on which readers could disagree are in the corpus.

use overlane_tests::case::holds;
use overlane_tests::script::Script;

use super::OK;

#[test]
fn the_authority_of_an_absolute_target_is_the_host() {
    holds(
        Script::new()
            .send("GET http://Web.example:81/a?b HTTP/1.1\r\nHost: evil\r\nA: b\r\n\r\n")
            .arrives("GET /a?b")
            .has("host: Web.example:81")
            .has("a: b")
            .reply(OK)
            .answered("200 ok"),
    );
    holds(
        Script::new()
            .send("OPTIONS http://web?b HTTP/1.1\r\nHost: web\r\n\r\n")
            .arrives("OPTIONS /?b")
            .has("host: web")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn a_gateway_does_not_say_what_it_was_sent() {
    let trace = "TRACE / HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n";
    holds(Script::new().send(trace).refused(405).nothing_more_arrives());
    holds(Script::sidecar(None).send(trace).arrives("TRACE /").reply(OK).answered("200 ok"));
}

#[test]
fn heads_that_are_too_large() {
    let long = |length: usize| format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(length));
    holds(Script::new().send(long(65_000)).arrives("GET /").reply(OK).answered("200 ok"));
    holds(Script::new().send(long(66_000)).refused(431).nothing_more_arrives());
    holds(Script::new().send("A".repeat(70_000)).refused(431).nothing_more_arrives());
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count));
    holds(Script::new().send(fields(99)).arrives("GET /").reply(OK).answered("200 ok"));
    holds(Script::new().send(fields(100)).refused(431).nothing_more_arrives());
}
