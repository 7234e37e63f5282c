//! The key where an application drops it: restored by the trace, stamped, or counted as lost.

use overlane::correlation::CorrelationSettings;
use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::case::{each_holds, holds};
use overlane_tests::script::Script;

use super::{GET, OK};

const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// Another span of the same trace, as an application's tracer makes one.
const CALL: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

fn request(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: web\r\n{fields}\r\n\r\n")
}

/// A sidecar whose application is handling a request with these fields.
fn handling(script: Script, fields: &str) -> Script {
    script.send(request("/in", fields)).arrives("GET /in")
}

fn calls(result: &str, count: u32) -> String {
    format!("overlane_calls_total{{language=\"\",peer=\"web\",result=\"{result}\",service=\"web\"}} {count}")
}

#[test]
fn a_call_without_the_key_gets_that_of_its_trace_in_every_dialect() {
    each_holds(
        [
            CALL,
            "b3: 0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-1",
            "X-B3-TraceId: 8448eb211c80319c\r\nX-B3-SpanId: 00f067aa0ba902b7",
            "uber-trace-id: af7651916cd43dd8448eb211c80319c:f067aa0ba902b7:0:1",
            "x-datadog-trace-id: 9532127138774266268\r\nx-datadog-parent-id: 1",
            "X-Amzn-Trace-Id: Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1",
            "X-Cloud-Trace-Context: 0af7651916cd43dd8448eb211c80319c/1;o=1",
            // Some copy every header that they know, whether it is there or not.
            &format!("x-overlay-id: \r\nbaggage: \r\nx-overlay-require: \r\n{CALL}"),
        ]
        .map(|call| {
            let script = handling(
                Script::sidecar(None),
                &format!("x-overlay-id: alice\r\nx-overlay-require: web\r\n{TRACE}"),
            )
            .has(TRACE)
            .client(1)
            .send(request("/call", call))
            .arrives("GET /call")
            .has("x-overlay-id: alice")
            .has("baggage: overlay-id=alice")
            .has("x-overlay-require: web")
            .reply(OK)
            .answered("200 ok")
            .counts(calls("restored", 1));
            (call, script)
        }),
    );
}

#[test]
fn a_request_with_a_key_and_no_trace_is_given_one_that_every_tracer_reads() {
    for role in [Role::Gateway, Role::Inbound { service: "web".parse().unwrap(), environment: None }] {
        let none = "\r\ntraceparent: 00-0-0-00\r\ntracestate: a=b\r\nb3: 0\r\nuber-trace-id: 0:0:0:0";
        each_holds(["", none].map(|fields| {
            let script = Script::at(role.clone(), Trust::Any)
                .send(request("/", &format!("x-overlay-id: alice{fields}")))
                .arrives("GET /")
                .has_some("traceparent")
                .lacks("tracestate")
                .has_some("b3")
                .has_some("uber-trace-id")
                .reply(OK)
                .answered("200 ok")
                .send(GET)
                .arrives("GET /")
                .lacks("traceparent")
                .lacks("b3")
                .lacks("uber-trace-id")
                .reply(OK)
                .answered("200 ok");
            (fields, script)
        }));
    }
}

#[test]
fn a_trace_that_came_stays_as_it_is() {
    holds(
        Script::new()
            .send(request("/", &format!("x-overlay-id: alice\r\n{TRACE}\r\ntracestate: a=b")))
            .arrives("GET /")
            .has(TRACE)
            .has("tracestate: a=b")
            .lacks("b3")
            .lacks("uber-trace-id")
            .lacks("x-request-id")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn the_untrusted_name_nobodys_trace() {
    holds(
        Script::at(Role::Gateway, Trust::Nobody)
            .send(request(
                "/",
                &format!("{TRACE}\r\ntracestate: a=b\r\nx-b3-sampled: 1\r\nx-request-id: theirs"),
            ))
            .arrives("GET /")
            .has_some("traceparent")
            .has_some("x-request-id")
            .lacks("tracestate")
            .lacks("x-b3-sampled")
            .never_arrives("theirs")
            .reply(OK)
            .answered("200 ok")
            .send(GET)
            .arrives("GET /")
            .lacks("traceparent")
            .lacks("x-request-id")
            .reply(OK)
            .answered("200 ok"),
    );
}

#[test]
fn inside_a_request_without_a_key_gets_that_of_its_trace_at_inbound_too() {
    holds(
        handling(Script::sidecar(None), &format!("x-overlay-id: bob\r\n{TRACE}"))
            .reply(OK)
            .answered("200 ok")
            .client(2)
            .send(request("/again", CALL))
            .arrives("GET /again")
            .has("x-overlay-id: bob")
            .reply(OK)
            .answered("200 ok"),
    );
}

/// The application's call with these headers, which arrives without a key.
fn call_without_key(script: Script, headers: &str) -> Script {
    script
        .client(1)
        .send(request("/call", headers))
        .arrives("GET /call")
        .lacks("x-overlay-id")
        .reply(OK)
        .answered("200 ok")
}

#[test]
fn two_keys_in_one_trace_restore_nothing() {
    let two = handling(Script::sidecar(None), &format!("x-overlay-id: bob\r\n{TRACE}"))
        .reply(OK)
        .answered("200 ok")
        .send(request("/in", &format!("x-overlay-id: carol\r\n{TRACE}")))
        .arrives("GET /in");
    holds(
        call_without_key(two, CALL)
            .counts(calls("contradicting", 1))
            .counts("overlane_trace_conflicts_total 1"),
    );
}

#[test]
fn a_call_with_another_key_than_its_trace_keeps_its_own_and_is_counted() {
    holds(
        handling(Script::sidecar(None), &format!("x-overlay-id: bob\r\n{TRACE}"))
            .client(1)
            .send(request("/call", &format!("x-overlay-id: alice\r\n{CALL}")))
            .arrives("GET /call")
            .has("x-overlay-id: alice")
            .reply(OK)
            .answered("200 ok")
            .counts(calls("contradicting", 1)),
    );
}

#[test]
fn a_call_without_key_and_trace_is_lost_while_a_request_with_a_key_is_served() {
    let call = |script: Script| call_without_key(script, "User-Agent: python-requests/2.32.3");
    let lost = "overlane_calls_total{language=\"python\",peer=\"web\",result=\"lost\",service=\"web\"} 1";
    holds(call(handling(Script::sidecar(None), &format!("x-overlay-id: bob\r\n{TRACE}"))).counts(lost));
    let answered = handling(Script::sidecar(None), &format!("x-overlay-id: bob\r\n{TRACE}"))
        .reply(OK)
        .answered("200 ok");
    holds(
        call(call(answered).client(0).send(request("/in", "x-overlay-id: bob")).arrives("GET /in"))
            .counts(lost),
    );
}

#[test]
fn a_traced_call_of_who_consumes_messages_without_a_key_may_be_a_messages() {
    let call = |script: Script, result: &str| call_without_key(script, CALL).counts(calls(result, 1));
    let serving = || handling(Script::sidecar(None), "x-overlay-id: bob");
    holds(call(serving(), "lost"));
    holds(call(serving().consumes(r#"{"x-overlay-id": "bob"}"#), "lost"));
    holds(call(serving().consumes("{}"), "unclear"));
}

#[test]
fn a_call_that_keeps_its_key_is_counted_so() {
    holds(
        handling(Script::sidecar(None), &format!("x-overlay-id: alice\r\n{TRACE}"))
            .client(1)
            .send(request("/call", &format!("x-overlay-id: alice\r\n{CALL}")))
            .arrives("GET /call")
            .has("x-overlay-id: alice")
            .reply(OK)
            .answered("200 ok")
            .send(request("/other", "baggage: overlay-id=alice"))
            .arrives("GET /other")
            .has("x-overlay-id: alice")
            .reply(OK)
            .answered("200 ok")
            .counts(calls("kept", 2)),
    );
}

#[test]
fn an_overlays_own_calls_are_stamped_unless_their_trace_says_otherwise() {
    holds(
        handling(Script::sidecar(Some("alice")), &format!("x-overlay-id: alice, bob\r\n{TRACE}"))
            .client(1)
            .send(request("/cron", ""))
            .arrives("GET /cron")
            .has("x-overlay-id: alice")
            .reply(OK)
            .answered("200 ok")
            .counts(calls("stamped", 1))
            .send(request("/call", CALL))
            .arrives("GET /call")
            .has("x-overlay-id: alice, bob")
            .reply(OK)
            .answered("200 ok")
            .counts(calls("restored", 1)),
    );
}

#[test]
fn the_request_id_restores_only_where_it_is_asked_to() {
    let call = |settings: CorrelationSettings| {
        handling(
            Script::sidecar_with(None, settings),
            &format!("x-overlay-id: bob\r\nx-request-id: one\r\n{TRACE}"),
        )
        .has("x-request-id: one")
        .client(1)
        .send(request("/call", "x-request-id: one"))
        .arrives("GET /call")
    };
    let asked = CorrelationSettings { by_request_id: true, ..CorrelationSettings::default() };
    holds(call(asked).has("x-overlay-id: bob"));
    holds(call(CorrelationSettings::default()).lacks("x-overlay-id"));
    let none = CorrelationSettings { by_trace: false, ..CorrelationSettings::default() };
    holds(
        handling(Script::sidecar_with(None, none), "x-overlay-id: bob")
            .lacks("traceparent")
            .client(1)
            .send(request("/call", CALL))
            .arrives("GET /call")
            .lacks("x-overlay-id"),
    );
}

#[test]
fn a_request_id_is_made_where_keys_are_restored_by_it() {
    let settings = CorrelationSettings { by_request_id: true, ..CorrelationSettings::default() };
    holds(
        handling(Script::sidecar_with(None, settings), "x-overlay-id: bob")
            .has_some("x-request-id")
            .has_some("traceparent"),
    );
}
