//! Keys in the dialects of other products, on the wire.

use overlane::plane::trust::Trust;
use overlane_config::carrier::Carriers;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::OK;

const OWNED: &str = "x-overlay-route: web;env=alice;via=overlay;reason=owned;partial";
const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn carriers(read: &[&str], write: &[&str]) -> Carriers {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    Carriers::parse(Some(&owned(read)), Some(&owned(write))).unwrap()
}

fn gateway(trust: Trust, read: &[&str], write: &[&str]) -> Script {
    Script::carrying(Role::Gateway, trust, carriers(read, write))
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n")
}

#[test]
fn a_key_in_another_products_carrier_leads_to_its_overlay_and_leaves_in_what_is_written() {
    let tracestate = format!("{PARENT}\r\ntracestate: sd-sandbox=alice");
    each_holds(
        [
            ("microstax", "X-MSX-Env: alice"),
            ("signadot", "baggage: a=1,sd-routing-key=alice"),
            ("signadot", &*tracestate),
            ("signadot", "uberctx-sd-routing-key: alice"),
            ("okteto", "baggage: okteto-divert=alice"),
            ("sandboxmesh", "baggage: sandbox=alice"),
            ("bridge", "kubernetes-route-as: alice"),
            ("ktenv", "X-Virtual-Env: alice"),
            ("cookie:overlay", "Cookie: a=1; overlay=alice"),
            // Not even nominated by the client does it get lost.
            ("mse", "x-mse-tag: alice\r\nConnection: x-mse-tag, x-overlay-id"),
        ]
        .map(|(preset, fields)| {
            let script = gateway(Trust::Any, &["header", preset], &["header", "asm"])
                .send(get(fields))
                .arrives("GET /")
                .has("x-overlay-id: alice")
                .has("x-asm-prefer-tag: alice")
                .reply(OK)
                .answered("200 ok")
                .has(OWNED);
            (fields, script)
        }),
    );
}

#[test]
fn the_first_carrier_in_order_wins_and_a_contradiction_is_counted() {
    for (order, winner) in [(["header", "baggage"], "alice"), (["baggage", "header"], "bob")] {
        holds(
            gateway(Trust::Any, &order, &["header", "baggage"])
                .send(get("baggage: overlay-id=bob\r\nx-overlay-id: alice"))
                .arrives("GET /")
                .has(format!("x-overlay-id: {winner}"))
                .has(format!("baggage: overlay-id={winner}"))
                .reply(OK)
                .answered("200 ok")
                .counts("overlane_contradicting_carriers_total 1"),
        );
    }
}

#[test]
fn what_cannot_be_mapped_is_counted_by_its_carrier_and_travels_on() {
    holds(
        gateway(Trust::Any, &["header", "microstax", "cookie:o"], &["header", "microstax"])
            .send(get("x-msx-env: Not An Id\r\ncookie: o=A"))
            .arrives("GET /")
            .has("x-msx-env: Not An Id")
            .has("cookie: o=A")
            .lacks("x-overlay-id")
            .reply(OK)
            .answered("200 ok")
            .counts("overlane_invalid_keys_total{carrier=\"header:x-msx-env\"} 1")
            .counts("overlane_invalid_keys_total{carrier=\"cookie:o\"} 1")
            .counts("overlane_contradicting_carriers_total 0"),
    );
}

#[test]
fn who_is_not_trusted_names_no_overlay_in_any_carrier_and_the_next_proxy_finds_none() {
    let read = ["header", "cookie:o", "microstax", "signadot"];
    holds(
        gateway(Trust::Nobody, &read, &["header", "baggage"])
            .send(get(&format!(
                "{PARENT}\r\ntracestate: sd-sandbox=alice\r\ncookie: a=1; o=alice\r\nx-msx-env: alice\r\nbaggage: a=1,sd-sandbox=alice"
            )))
            .arrives("GET /")
            .has("cookie: a=1")
            .has("baggage: a=1")
            .lacks("x-msx-env")
            .lacks("tracestate")
            .lacks("x-overlay-id")
            .reply(OK)
            .answered("200 ok")
            .counts("overlane_untrusted_headers_total 1"),
    );
}

#[test]
fn a_header_that_only_looks_like_a_written_carrier_is_refused() {
    holds(
        gateway(Trust::Any, &["header"], &["header", "microstax"])
            .send(get("X_MSX_Env: alice"))
            .answered("400 overlane"),
    );
}

#[test]
fn what_is_written_stays_behind_where_the_request_leaves_the_mesh_except_for_hosts_that_are_trusted_with_it()
{
    const FIELDS: &str = "x-overlay-id: bob\r\nx-overlay-require: *\r\nx-overlay-hops: 3\r\nx-overlay-route: web\r\nx-msx-env: bob\r\nbaggage: sandbox=bob,a=1";
    let role = || Role::Outbound { service: None, environment: None };
    let call = format!("GET http://localhost:{{port}}/ HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n\r\n");
    let outside = carriers(&["header"], &["header", "microstax", "sandboxmesh"]);
    holds(
        Script::carrying(role(), Trust::Any, outside.clone())
            .send(&call)
            .arrives("GET /")
            .lacks("x-overlay-id")
            .lacks("x-overlay-require")
            .lacks("x-overlay-hops")
            .lacks("x-overlay-route")
            .lacks("x-msx-env")
            .has("baggage: a=1")
            .reply(OK)
            .answered("200 ok"),
    );
    let mut kept = outside;
    kept.keep_for = ["LocalHost".parse().unwrap()].into_iter().collect();
    holds(
        Script::carrying(role(), Trust::Any, kept)
            .send(&call)
            .arrives("GET /")
            .has("x-overlay-id: bob")
            .has("x-overlay-require: *")
            .has("x-overlay-hops: 4")
            .has("x-msx-env: bob")
            .has("baggage: a=1,sandbox=bob")
            .reply("HTTP/1.1 200 OK\r\nx-overlay-route: forged\r\nContent-Length: 2\r\n\r\nok")
            .answered("200 ok")
            .lacks("x-overlay-route"),
    );
}
