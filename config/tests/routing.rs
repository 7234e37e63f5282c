//! Rules of the routing decision at their edges; `decisions.rs` has the rows of the design.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{ALICE, NOW, STAGING, Store, environment, file, id};
use overlane_config::blueprint::OnUnavailable;
use overlane_config::carrier::{Carriers, Keys};
use overlane_config::route::{
    Decision, Edits, FieldEdit, Listener, Reason, Refusal, Request, Role, Step, To, Tried, Untraced, Via,
    decide,
};
use overlane_config::table::{Environment, RoutingTable};

/// Over the baseline `staging` of the design: what its two blueprints do not show.
fn store() -> Store {
    let over = |id: &str, parent: &str, rest: &str| {
        environment(format!("name: {id}\nrouting: {{mode: overlay, baselineId: {parent}{rest}\n"))
    };
    Store::of([
        file("staging.yaml", STAGING),
        file("alice.yaml", ALICE),
        over("bob", "alice-payments", "}\nservices: [{name: web, hosts: [bob.example.com]}, {name: new}]"),
        over(
            "carol",
            "bob",
            ", onUnavailable: fallback}\nservices: [{name: ledger}, {name: new, hosts: [bob.example.com], path: /new}]",
        ),
        over(
            "preview",
            "env-baseline-id",
            "}\nservices: [{name: web, hosts: [shop.staging.example.com]}, {name: ledger, path: /books}]",
        ),
        over(
            "sockets",
            "env-baseline-id",
            "}\nservices: [{name: ledger, endpoints: ['10.0.0.1:1', '10.0.0.2:2']}]",
        ),
        file(
            "broken.yaml",
            "name: broken\nrouting: {mode: overlay, baselineId: nobody}\nservices: [{name: web}]\n",
        ),
        environment(
            "name: strict\nrouting: {mode: baseline, onUnknown: reject}\nservices:\n\
             - {name: web, url: http://web, expose: true}\n- {name: api, url: http://api, path: /api}\n- {name: v2, url: http://v2, path: /api/v2/}\n",
        ),
        over("eve", "strict", ", onUnavailable: fallback}\nservices: [{name: web}, {name: new}]"),
        over("late", "strict", ", expiresAt: '2020-01-01T00:00:00Z'}\nservices: [{name: web}]"),
    ])
}

fn words<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn listener(line: &str) -> Listener {
    let mut at = line.split(' ').next().unwrap().split('@');
    let (role, environment) = (at.next().unwrap(), at.next().map(id));
    let role = match role {
        "gateway" => Role::Gateway,
        "outbound" => Role::Outbound { service: None, environment },
        service => Role::Inbound { service: service.parse().unwrap(), environment },
    };
    Listener { role, baseline: Some(id(words(line, "baseline").unwrap_or("env-baseline-id"))) }
}

/// Decides a request in words, `LISTENER[@ENVIRONMENT] host/path key=a,b hop=… require=… tried=… untrusted`,
/// where the name of a service stands for its inbound.
fn ask<T>(
    table: &RoutingTable<()>,
    line: &str,
    tell: impl FnOnce(Decision<'_, ()>, Option<&Keys>, Vec<Step>) -> T,
) -> T {
    let keys = words(line, "key").and_then(|keys| Keys::parse([keys.as_bytes()]).unwrap());
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (authority, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let request = Request {
        authority,
        path,
        preview: None,
        by_browser: false,
        keys: keys.as_ref(),
        untrusted: line.ends_with(" untrusted"),
        hop: words(line, "hop"),
        require: words(line, "require").unwrap_or_default(),
    };
    let tried = Tried {
        unavailable: words(line, "tried").into_iter().flat_map(|ids| ids.split(',')).map(id).collect(),
        because: words(line, "tried").map(|_| Reason::Refused),
    };
    let listener = listener(line);
    let mut steps = Vec::new();
    let explained = format!("{:?}", decide(table, &listener, &request, NOW, &tried, &mut steps));
    let decision = decide(table, &listener, &request, NOW, &tried, &mut Untraced);
    assert_eq!(format!("{decision:?}"), explained, "{line}: explain says the same");
    tell(decision, keys.as_ref(), steps)
}

/// `SERVICE of ENVIRONMENT, VIA, REASON`, then where it goes if not simply there, and the key that
/// travels on if it is another than the one that came.
fn told(table: &RoutingTable<()>, line: &str) -> String {
    ask(table, line, |decision, keys, _| match decision {
        Decision::PassThrough(_) => "passed through".to_owned(),
        Decision::Refuse(refusal) => format!("{} {}", refusal.problem.status(), refusal.problem.as_str()),
        Decision::Serve(served) => {
            let (via, reason) = (served.via.as_str(), served.reason.as_str());
            let to = match served.to {
                To::Application => " → application",
                To::Upstream { marked: true, .. } => " → marked",
                To::Upstream { .. } => "",
            };
            let onward = match served.onward {
                onward if onward.as_ref() == keys => String::new(),
                onward => format!(" [{}]", onward.as_ref().map_or("", Keys::as_str)),
            };
            format!("{} of {}, {via}, {reason}{to}{onward}", served.service, served.environment)
        }
    })
}

fn check(cases: &[(&str, &str)]) {
    let store = store();
    for (line, expected) in cases {
        assert_eq!(told(&store.table, line), *expected, "{line}");
    }
}

fn refusal(line: &str) -> Refusal {
    ask(&store().table, line, |decision, _, _| match decision {
        Decision::Refuse(refusal) => refusal,
        other => panic!("{line}: {other:?}"),
    })
}

#[test]
fn the_nearest_owner_of_a_deep_lineage_serves() {
    check(&[
        ("outbound payments-api key=alice-payments", "payments-api of alice-payments, overlay, owned"),
        ("outbound payments-api key=carol", "payments-api of alice-payments, ancestor, inherited"),
        ("outbound web key=carol", "web of bob, ancestor, inherited"),
        ("outbound new key=carol", "new of carol, overlay, owned"),
        ("outbound new key=bob", "new of bob, overlay, owned"),
        ("outbound ledger key=bob", "ledger of env-baseline-id, baseline, not-owned"),
        ("outbound web key=broken", "503 pending"),
        ("outbound web key=sockets,broken", "503 pending"),
        ("outbound ledger key=sockets,broken", "ledger of sockets, overlay, owned"),
    ]);
}

#[test]
fn never_sideways() {
    check(&[
        ("outbound new key=preview", "passed through"),
        ("outbound ledger key=alice-payments", "ledger of env-baseline-id, baseline, not-owned"),
        ("outbound web key=eve", "web of env-baseline-id, baseline, unknown"),
        ("outbound web key=strict", "web of env-baseline-id, baseline, unknown"),
        ("outbound web key=env-baseline-id baseline=strict", "404 unknown"),
        ("gateway bob.example.com/ key=preview", "404 no-route"),
        ("gateway bob.example.com/ key=alice-payments", "404 no-route"),
    ]);
}

#[test]
fn of_several_keys_the_first_owner_decides_under_its_own_policy() {
    check(&[
        ("outbound ledger key=alice-payments,carol,sockets", "ledger of carol, overlay, owned"),
        ("outbound ledger key=alice-payments,sockets,carol", "ledger of sockets, overlay, owned"),
        ("outbound ledger key=sockets,carol tried=sockets", "ledger of sockets, overlay, owned"),
        ("outbound new key=carol,preview tried=carol", "new of bob, ancestor, refused"),
        ("outbound ledger key=carol,sockets tried=carol", "ledger of env-baseline-id, baseline, refused"),
        ("outbound ledger key=nobody,alice-payments", "ledger of env-baseline-id, baseline, unknown"),
        ("outbound ledger key=alice-payments,nobody", "ledger of env-baseline-id, baseline, unknown"),
    ]);
    let policy = |line: &str| {
        ask(&store().table, line, |decision, _, _| match decision {
            Decision::Serve(served) => (served.policy.on_unavailable, served.key.map(ToString::to_string)),
            other => panic!("{other:?}"),
        })
    };
    let some = |id: &str| Some(id.to_owned());
    assert_eq!(
        policy("outbound payments-api key=carol"),
        (OnUnavailable::Fallback, some("carol")),
        "the key's"
    );
    assert_eq!(policy("outbound ledger key=alice-payments,carol"), (OnUnavailable::Fallback, some("carol")));
    assert_eq!(policy("outbound web key=sockets,carol"), (OnUnavailable::Fallback, some("carol")));
    assert_eq!(policy("outbound ledger key=bob,nobody"), (OnUnavailable::Fail, some("bob")));
    assert_eq!(policy("outbound ledger key=nobody"), (OnUnavailable::Fail, None), "the baseline's");
}

#[test]
fn a_host_goes_before_any_host_the_longer_path_before_the_shorter_and_an_overlay_before_its_equal() {
    check(&[
        ("gateway anything.example.com/ baseline=strict", "web of strict, baseline, no-key"),
        ("gateway anything.example.com/api baseline=strict", "api of strict, baseline, no-key"),
        ("gateway anything.example.com/api/v2 baseline=strict", "api of strict, baseline, no-key"),
        ("gateway anything.example.com/api/v2/x baseline=strict", "v2 of strict, baseline, no-key"),
        ("gateway anything.example.com/apis baseline=strict", "web of strict, baseline, no-key"),
        ("gateway shop.staging.example.com/ key=preview", "web of preview, overlay, owned"),
        ("gateway shop.staging.example.com/books key=preview", "web of preview, overlay, owned"),
        ("gateway other.example.com/books/1 key=preview", "ledger of preview, overlay, owned"),
        ("gateway other.example.com/books/1", "404 no-route"),
        ("gateway bob.example.com/ key=bob", "web of bob, overlay, owned"),
        ("gateway bob.example.com/ key=carol", "web of bob, ancestor, inherited"),
        ("gateway bob.example.com/new/x key=carol", "new of carol, overlay, owned"),
        ("gateway bob.example.com/new/x key=bob", "web of bob, overlay, owned"),
        ("gateway bob.example.com/ key=preview,bob", "web of preview, overlay, owned"),
        ("gateway [::1]:80/", "404 no-route"),
        ("gateway /", "404 no-route"),
    ]);
}

#[test]
fn outbound_takes_the_short_names_of_an_overlays_own_services_too() {
    check(&[
        (
            "outbound payments-api.alice-payments.svc.cluster.local:8080 key=carol",
            "payments-api of alice-payments, ancestor, inherited",
        ),
        (
            "outbound payments-api.alice-payments.svc:8080 key=carol",
            "payments-api of alice-payments, ancestor, inherited",
        ),
        (
            "outbound Payments-API.Alice-Payments:8080 key=alice-payments",
            "payments-api of alice-payments, overlay, owned",
        ),
        ("outbound payments-api.alice-payments:80 key=alice-payments", "passed through"),
        ("outbound payments-api.alice-payments:8080", "passed through"),
        ("outbound 10.0.0.2:2 key=sockets", "ledger of sockets, overlay, owned"),
        ("outbound 10.0.0.2:2", "passed through"),
        ("outbound ledger.staging:50051 key=sockets", "ledger of sockets, overlay, owned"),
    ]);
}

#[test]
fn a_sidecar_stamps_what_has_no_key_with_its_own_overlay() {
    check(&[
        ("outbound@carol ledger", "ledger of carol, overlay, owned [carol]"),
        ("outbound@carol payments-api", "payments-api of alice-payments, ancestor, inherited [carol]"),
        ("outbound@carol ledger key=sockets", "ledger of sockets, overlay, owned"),
        ("outbound@carol example.com", "passed through"),
        ("outbound@env-baseline-id ledger", "ledger of env-baseline-id, baseline, no-key"),
        ("ledger@carol x", "ledger of carol, overlay, owned → application [carol]"),
        ("zebra@carol x", "zebra of carol, overlay, owned → application [carol]"),
        ("ledger@env-baseline-id x", "ledger of env-baseline-id, baseline, no-key → application"),
        ("ledger x", "ledger of env-baseline-id, baseline, no-key → application"),
    ]);
}

#[test]
fn who_is_not_trusted_gets_no_more_and_no_less_than_who_sends_no_key() {
    check(&[
        ("gateway shop.staging.example.com/ untrusted", "web of env-baseline-id, baseline, untrusted"),
        ("outbound ledger untrusted", "ledger of env-baseline-id, baseline, untrusted"),
        ("ledger x untrusted", "ledger of env-baseline-id, baseline, untrusted → application"),
        ("zebra x untrusted", "zebra of env-baseline-id, baseline, untrusted → application"),
        ("outbound@carol ledger untrusted", "ledger of carol, overlay, untrusted [carol]"),
        ("ledger@carol x untrusted", "ledger of carol, overlay, untrusted → application [carol]"),
    ]);
}

#[test]
fn a_marked_request_is_delivered_to_whom_it_names_whatever_this_snapshot_knows() {
    check(&[
        ("ledger@carol x key=carol hop=carol", "ledger of carol, overlay, owned → application"),
        ("ledger@carol x hop=carol", "ledger of carol, overlay, owned → application [carol]"),
        (
            "ledger x key=carol hop=env-baseline-id",
            "ledger of env-baseline-id, baseline, not-owned → application",
        ),
        ("ledger x key=carol hop=carol", "421 misdirected"),
        ("ledger@carol x key=carol hop=env-baseline-id", "421 misdirected"),
        ("ledger@carol x key=carol hop=", "421 misdirected"),
        // Who marked it knew the key; this one does not, and would reject it.
        ("web x baseline=strict key=nobody", "404 unknown"),
        ("web x baseline=strict key=nobody hop=strict", "web of strict, baseline, unknown → application"),
        ("web@eve x baseline=strict key=nobody hop=eve", "web of eve, ancestor, unknown → application"),
        ("web x baseline=strict key=late hop=strict", "web of strict, baseline, expired → application"),
        ("web x key=broken", "503 pending"),
        ("web x key=broken hop=env-baseline-id", "web of env-baseline-id, baseline, not-owned → application"),
    ]);
}

#[test]
fn what_is_of_another_environment_goes_there_once_marked() {
    check(&[
        ("ledger x key=carol", "ledger of carol, overlay, owned → marked"),
        ("ledger@carol x key=sockets", "ledger of sockets, overlay, owned → marked"),
        ("ledger@carol x key=env-baseline-id", "ledger of env-baseline-id, baseline, owned → marked"),
        ("ledger@carol x key=alice-payments", "ledger of env-baseline-id, baseline, not-owned → marked"),
        ("ledger@carol x key=carol tried=carol", "ledger of env-baseline-id, baseline, refused → marked"),
        ("zebra x key=carol", "zebra of env-baseline-id, baseline, not-owned → application"),
    ]);
}

#[test]
fn without_a_baseline_nothing_is_served_and_the_hint_says_what_to_do() {
    let problem = |store: &Store, told: Option<&str>| {
        let listener = Listener { role: Role::Gateway, baseline: told.map(id) };
        let request = Request {
            authority: "x",
            path: "/",
            preview: None,
            by_browser: false,
            keys: None,
            untrusted: false,
            hop: None,
            require: "",
        };
        match decide(&store.table, &listener, &request, NOW, &Tried::default(), &mut Untraced) {
            Decision::Refuse(refusal) => {
                format!("{} {} ({})", refusal.problem.status(), refusal.message, refusal.hint.unwrap())
            }
            Decision::Serve(served) => served.environment.to_string(),
            Decision::PassThrough(_) => unreachable!(),
        }
    };
    let empty = Store::default();
    assert!(
        problem(&empty, None).starts_with("503 the store has no baseline (run `overlane baseline create")
    );
    assert!(problem(&empty, Some("x")).starts_with("503 the store has no baseline `x` (add its blueprint"));
    let several = store();
    assert!(
        problem(&several, None).starts_with("503 the store has several baselines (env-baseline-id, strict)")
    );
    assert!(problem(&several, Some("carol")).starts_with("503 the store has no baseline `carol`"));
    assert!(problem(&several, Some("broken")).contains("unknown parent `nobody`"));
    assert_eq!(problem(&several, Some("strict")), "strict");
    let mut one = Store::of([environment(
        "name: only\nrouting: {mode: baseline}\nservices: [{name: a, url: http://a, expose: true}]\n",
    )]);
    assert_eq!(problem(&one, None), "only");
    one.apply([file("staging.yaml", STAGING)]);
    assert_eq!(problem(&one, None), "only", "a second baseline moves no traffic");
}

#[test]
fn an_unknown_key_is_not_held_against_every_id_of_a_large_store() {
    let strict = "name: strict\nrouting: {mode: baseline, onUnknown: reject}\nservices: [{name: web, url: http://web}]\n";
    let overlay = |number: usize| {
        environment(format!(
            "name: o-{number}\nrouting: {{mode: overlay, baselineId: strict}}\nservices: [{{name: web}}]\n"
        ))
    };
    let hint = |overlays: usize| {
        let store = Store::of((0..overlays).map(overlay).chain([environment(strict)]).collect::<Vec<_>>());
        ask(&store.table, "outbound web key=o-99x baseline=strict", |decision, _, _| match decision {
            Decision::Refuse(refusal) => refusal.hint.unwrap(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(hint(100), "did you mean `o-99`?");
    assert_eq!(hint(500), "`overlane overlay list` shows the overlays");
}

#[test]
fn refusals_say_what_is_wrong_what_to_do_and_which_line() {
    for (line, message, hint, place) in [
        (
            "outbound web baseline=strict key=evee",
            "no overlay `evee` over the baseline `strict`",
            "did you mean `eve`?",
            "",
        ),
        (
            "outbound web baseline=strict key=late",
            "expired at 2020-01-01T00:00:00Z",
            "more time",
            "late.yaml:1",
        ),
        (
            "outbound web key=broken",
            "the blueprint of `broken` was never good: unknown parent `nobody`",
            "",
            "broken.yaml:2",
        ),
        (
            "gateway x/ key=bob",
            "no exposed service for host `x`, path `/`",
            "exposed here: shop.staging.example.com/",
            "staging.yaml:4",
        ),
        ("ledger x hop=\u{7f}", "the request was sent to `ledger` of `\\u{7f}`", "generations", ""),
        (
            "outbound web key=alice-payments require=web",
            "would be served by `env-baseline-id` (not-owned)",
            "declare `web`",
            "",
        ),
    ] {
        let refusal = refusal(line);
        assert!(refusal.message.contains(message), "{line}: {}", refusal.message);
        assert!(refusal.hint.clone().unwrap_or_default().contains(hint), "{line}: {:?}", refusal.hint);
        let at = refusal.declared.map_or_else(String::new, |declared| declared.to_string());
        assert!(at.starts_with(place), "{line}: {at}");
    }
}

#[test]
fn an_unavailable_upstream_is_told_with_the_line_to_change() {
    let store = store();
    let Some(Environment::Overlay(eve)) = store.table.environment("eve") else { panic!() };
    let route = &eve.owners("web").first().unwrap().route;
    for (reason, via, message, hint) in [
        (
            Reason::Pending,
            Via::Overlay,
            "`web` of `eve` has no address yet",
            "overlane attach eve web --url URL",
        ),
        (Reason::Refused, Via::Overlay, "`web` of `eve` refuses connections", "no other owner is left"),
        (Reason::Unhealthy, Via::Baseline, "`web` of `eve` does not answer", "start it, or correct its url"),
    ] {
        let refusal = Refusal::unavailable(route, reason, via, eve.policy, "");
        assert!(
            refusal.message.contains(message) && refusal.hint.unwrap().contains(hint),
            "{}",
            refusal.message
        );
        assert_eq!((refusal.problem.status(), refusal.declared.unwrap().line()), (503, 3));
    }
}

#[test]
fn what_passes_through_leaves_without_our_headers() {
    for (baggage, expected) in [
        (&["a=1, overlay-id=alice", "b=2;p"][..], FieldEdit::Set(b"a=1,b=2;p".to_vec())),
        (&["overlay-id=alice"], FieldEdit::Remove),
        (&["overlay-id=NOT AN ID"], FieldEdit::Remove),
        (&["a=1"], FieldEdit::Untouched),
        (&[], FieldEdit::Untouched),
    ] {
        let fields: Vec<_> = baggage.iter().map(|line| ("baggage", line)).collect();
        let edits = Edits::pass_through(&Carriers::default(), &fields[..], false);
        assert_eq!(
            (edits.baggage, edits.key, edits.hop, edits.require),
            (expected, None, None, false),
            "{baggage:?}"
        );
    }
}

#[test]
fn the_mark_names_the_environment_that_was_chosen_and_nothing_else_is_marked() {
    let hop = |line: &str| {
        ask(&store().table, line, |decision, _, _| match decision {
            Decision::Serve(served) => {
                let fields: [(&str, &str); 0] = [];
                let edits = Edits::serve(&served, &Carriers::default(), &fields[..], false);
                edits.hop.map(|id| id.to_string())
            }
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(hop("ledger x key=carol").as_deref(), Some("carol"));
    assert_eq!(hop("ledger@carol x key=carol"), None);
    assert_eq!(hop("ledger@carol x key=carol hop=carol"), None);
    assert_eq!(hop("outbound ledger key=carol"), None);
}

#[test]
fn receipts_are_structured_fields() {
    let digits = |id: &str| {
        environment(format!(
            "name: {id}\nrouting: {{mode: overlay, baselineId: 1st}}\nservices: [{{name: 7z}}, {{name: web}}]\n"
        ))
    };
    let first = environment(
        "name: 1st\nrouting: {mode: baseline}\nservices: [{name: 7z, url: http://z}, {name: web, url: http://w}]\n",
    );
    let store = Store::of([first, digits("2nd"), digits("a2nd")]);
    let receipt = |line: &str| {
        ask(&store.table, line, |decision, _, _| match decision {
            Decision::Serve(served) => served.receipt().to_string(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(receipt("outbound 7z baseline=1st key=2nd"), "\"7z\";env=\"2nd\";via=overlay;reason=owned");
    assert_eq!(receipt("outbound web baseline=1st key=a2nd"), "web;env=a2nd;via=overlay;reason=owned");
}
