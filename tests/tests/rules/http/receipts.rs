//! Receipts of the whole path, and what is required of it, at the first proxy.

use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::OK;

/// What the sidecar of `web` says, whose application called the ledger of one environment.
fn tree(ledger: &str) -> String {
    format!(
        "ledger;env={ledger};via=overlay;reason=owned;hop=aaaaaaaa;parent=bbbbbbbb, web;env=alice;via=overlay;reason=owned;hop=bbbbbbbb"
    )
}

fn reply(receipts: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nx-overlay-route: {receipts}\r\nContent-Length: 2\r\n\r\nok")
}

fn at_a_gateway(require: &str) -> Script {
    Script::at(Role::Gateway, Trust::Any)
        .send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\n{require}\r\n\r\n"))
        .arrives("GET /")
}

#[test]
fn a_hop_that_its_own_sidecar_tells_is_not_told_again() {
    let route =
        "x-overlay-route: ledger;env=base;via=overlay;reason=owned, web;env=alice;via=overlay;reason=owned";
    holds(at_a_gateway("x-a: b").reply(reply(&tree("base"))).answered("200 ok").has(route));
}

#[test]
fn what_is_required_is_held_against_the_whole_path_before_the_head_goes_on() {
    let failed = tree("alice").replacen("reason=owned", "reason=unhealthy", 1);
    let cases = [
        ("ledger", tree("alice"), "200 ok"),
        ("web, ledger", tree("alice"), "200 ok"),
        ("*", tree("base"), "200 ok"),
        ("ledger", tree("base"), "412 overlane"),
        ("search", tree("alice"), "412 overlane"),
        ("search", "nonsense".to_owned(), "412 overlane"),
        ("ledger", failed, "412 overlane"),
    ];
    each_holds(cases.map(|(require, receipts, answer)| {
        let require = format!("x-overlay-require: {require}");
        let script = at_a_gateway(&require).has(&require).reply(reply(&receipts)).answered(answer);
        (format!("{require}: {receipts}"), script)
    }));
}

#[test]
fn only_the_first_proxy_holds_requirements_against_the_whole_path() {
    holds(
        at_a_gateway("x-overlay-require: ledger\r\nx-overlay-hops: 1")
            .has("x-overlay-hops: 2")
            .reply(reply(&tree("base")))
            .answered("200 ok"),
    );
}

#[test]
fn a_response_of_unknown_length_may_be_followed_by_calls_that_nobody_tells() {
    let inbound = |reply: &str, receipt: &str| {
        Script::sidecar(None)
            .send("GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: bob\r\n\r\n")
            .arrives("GET /")
            .reply(reply)
            .answered("200 ok")
            .has(format!("x-overlay-route: {receipt}"))
    };
    let known = "web;env=base;via=baseline;reason=unknown";
    holds(inbound(OK, known));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    holds(inbound(chunked, &format!("{known};partial")));
}

#[test]
fn a_call_whose_answer_has_begun_is_not_missing() {
    let fields = "x-overlay-id: bob\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: web\r\n{fields}\r\n\r\n");
    // The application may have read the answer before its sidecar knows that all of it was sent.
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no";
    let web = "web;env=base;via=baseline;reason=unknown";
    holds(
        Script::sidecar(None)
            .send(request("/first"))
            .arrives("GET /first")
            .client(1)
            .send(request("/call"))
            .arrives("GET /call")
            .reply(begun)
            .answered_so_far("200 o")
            .client(2)
            .send(request("/in"))
            .arrives("GET /in")
            .reply(OK)
            .answered("200 ok")
            .has(format!("x-overlay-route: {web};partial, {web}")),
    );
}
