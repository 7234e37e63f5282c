//! "What happens when" and the roles of the design, row by row.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use overlane_config::carrier::{Carriers, Keys};
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange, Lineages};
use overlane_config::route::{
    Decision, Edits, FieldEdit, Listener, Refusal, Request, Role, Served, Step, To, Tried, Untraced, decide,
};
use overlane_config::table::RoutingTable;
use overlane_config::time::UnixMillis;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

const STORE: &str = "\
name: base
routing: {mode: baseline}
services:
  - {name: web, url: 'http://web.base:8080', expose: true, hosts: [shop.example.com]}
  - {name: pay, url: 'http://pay.base.svc.cluster.local:8080'}
  - {name: api, url: 'http://127.0.0.1:1', expose: true, hosts: [shop.example.com], path: /api}
  - {name: 3scale, url: 'http://127.0.0.1:2'}
---
name: strict
routing: {mode: baseline, onUnknown: reject, headerName: X-MSX-Env, propagateHeader: false}
services: [{name: web, url: 'http://127.0.0.1:3', expose: true}]
---
name: alice
routing: {mode: overlay, baselineId: base}
services:
  - {name: pay, url: 'http://pay.alice:8080', expose: true}
  - {name: new, url: 'http://new.alice:9000', hosts: [new.example.com]}
---
name: child
routing: {mode: overlay, baselineId: alice}
services: [{name: web}]
---
name: quiet
routing: {mode: overlay, baselineId: base, propagateHeader: false}
services: [{name: web, url: 'http://127.0.0.1:4'}]
---
name: old
routing: {mode: overlay, baselineId: base, expiresAt: '2020-01-01T00:00:00Z'}
services: [{name: pay, url: 'http://127.0.0.1:5'}]
---
name: older
routing: {mode: overlay, baselineId: strict, expiresAt: '2020-01-01T00:00:00Z'}
services: [{name: web, url: 'http://127.0.0.1:6'}]
---
name: falls
routing: {mode: overlay, baselineId: alice, onUnavailable: fallback}
services: [{name: pay, url: 'http://127.0.0.1:7'}]
";

fn table() -> RoutingTable<()> {
    let source = Source::new("store.yaml".into(), STORE.to_owned(), None);
    let broken = Source::new("broken.yaml".into(), "name: [".to_owned(), None);
    let file =
        |source: Source| FileChange { path: source.path.clone(), content: Content::Text(Arc::new(source)) };
    let mut lineages = Lineages::default();
    let applied = lineages.apply(vec![file(source), file(broken)]);
    RoutingTable::default().compile(&lineages, &applied.changed, |_, _, _| ())
}

/// A request to a listener, in words: `key` is the value of the key's header, `host/path` the target.
#[derive(Clone, Copy, Default)]
struct Ask<'a> {
    key: &'a str,
    target: &'a str,
    hop: Option<&'a str>,
    require: &'a str,
    unavailable: &'a [&'a str],
    baseline: &'a str,
}

/// The receipt, and `app`, `→ url` or `⇒ url` when marked; or the status and word of the refusal.
fn answer(role: &Role, ask: Ask<'_>) -> String {
    let table = table();
    let baseline = if ask.baseline.is_empty() { "base" } else { ask.baseline };
    let listener = Listener { role: role.clone(), baseline: Some(baseline.parse().unwrap()) };
    let keys = Keys::parse([ask.key.as_bytes()]).unwrap();
    let (authority, path) = ask.target.split_at(ask.target.find(['/', '*']).unwrap_or(ask.target.len()));
    let request = Request {
        authority,
        path: if path.is_empty() { "/" } else { path },
        preview: None,
        by_browser: false,
        keys: keys.as_ref(),
        untrusted: false,
        hop: ask.hop,
        require: ask.require,
    };
    let tried = Tried {
        unavailable: ask.unavailable.iter().map(|id| id.parse().unwrap()).collect(),
        because: Some(overlane_config::route::Reason::Pending),
    };
    match decide(&table, &listener, &request, NOW, &tried, &mut Untraced) {
        Decision::PassThrough(_) => "pass through".to_owned(),
        Decision::Refuse(Refusal { problem, .. }) => format!("{} {}", problem.status(), problem.as_str()),
        Decision::Serve(served) => {
            let to = match &served.to {
                To::Application => "app".to_owned(),
                To::Upstream { route, marked } => {
                    let url = route.urls.first().map_or("pending".to_owned(), ToString::to_string);
                    format!("{} {url}", if *marked { "⇒" } else { "→" })
                }
            };
            format!("{} {to}", served.receipt())
        }
    }
}

fn outbound() -> Role {
    Role::Outbound { service: None, environment: None }
}

fn inbound(environment: Option<&str>) -> Role {
    Role::Inbound { service: "pay".parse().unwrap(), environment: environment.map(|id| id.parse().unwrap()) }
}

#[test]
fn what_happens_when_a_key_names_what() {
    for (key, target, expected) in [
        ("alice", "pay", "pay;env=alice;via=overlay;reason=owned → http://pay.alice:8080"),
        ("child", "pay", "pay;env=alice;via=ancestor;reason=inherited → http://pay.alice:8080"),
        ("alice", "web", "web;env=base;via=baseline;reason=not-owned → http://web.base:8080"),
        ("child", "web", "web;env=child;via=overlay;reason=owned → pending"),
        (
            "nobody",
            "pay",
            "pay;env=base;via=baseline;reason=unknown → http://pay.base.svc.cluster.local:8080",
        ),
        ("old", "pay", "pay;env=base;via=baseline;reason=expired → http://pay.base.svc.cluster.local:8080"),
        ("base", "pay", "pay;env=base;via=baseline;reason=owned → http://pay.base.svc.cluster.local:8080"),
        ("", "pay", "pay;env=base;via=baseline;reason=no-key → http://pay.base.svc.cluster.local:8080"),
        ("older", "pay", "pay;env=base;via=baseline;reason=unknown → http://pay.base.svc.cluster.local:8080"),
        ("quiet, alice", "pay", "pay;env=alice;via=overlay;reason=owned → http://pay.alice:8080"),
        ("nobody, alice", "pay", "pay;env=alice;via=overlay;reason=owned → http://pay.alice:8080"),
        (
            "nobody, quiet",
            "pay",
            "pay;env=base;via=baseline;reason=unknown → http://pay.base.svc.cluster.local:8080",
        ),
        ("alice", "3scale", "\"3scale\";env=base;via=baseline;reason=not-owned → http://127.0.0.1:2"),
        ("broken", "pay", "503 pending"),
    ] {
        assert_eq!(answer(&outbound(), Ask { key, target, ..Ask::default() }), expected, "{key} {target}");
    }
}

#[test]
fn a_baseline_can_reject_keys_that_nobody_knows() {
    for (key, expected) in [("nobody", "404 unknown"), ("older", "410 expired"), ("alice", "404 unknown")] {
        assert_eq!(
            answer(&outbound(), Ask { key, target: "web", baseline: "strict", ..Ask::default() }),
            expected,
            "{key}"
        );
    }
}

#[test]
fn an_unavailable_owner_is_passed_over_only_where_the_keys_environment_says_so() {
    for (key, unavailable, expected) in [
        ("alice", &["alice"][..], "pay;env=alice;via=overlay;reason=owned → http://pay.alice:8080"),
        ("falls", &["falls"], "pay;env=alice;via=ancestor;reason=pending → http://pay.alice:8080"),
        (
            "falls",
            &["falls", "alice"],
            "pay;env=base;via=baseline;reason=pending → http://pay.base.svc.cluster.local:8080",
        ),
        (
            "falls, alice",
            &["falls", "alice"],
            "pay;env=base;via=baseline;reason=pending → http://pay.base.svc.cluster.local:8080",
        ),
    ] {
        assert_eq!(
            answer(&outbound(), Ask { key, target: "pay", unavailable, ..Ask::default() }),
            expected,
            "{key}"
        );
    }
}

#[test]
fn the_gateway_leads_by_host_and_path_to_what_is_exposed() {
    for (key, target, service) in [
        ("", "shop.example.com/", "web"),
        ("", "SHOP.example.com.:80/x", "web"),
        ("", "shop.example.com/api/x", "api"),
        ("", "shop.example.com/apix", "web"),
        ("alice", "new.example.com/", "new"),
        ("child", "new.example.com/", "new"),
    ] {
        let served = answer(&Role::Gateway, Ask { key, target, ..Ask::default() });
        assert!(served.starts_with(&format!("{service};")), "{key} {target}: {served}");
    }
    for (key, target) in [
        ("", "other.example.com/"),
        ("", "new.example.com/"),
        ("quiet", "new.example.com/"),
        ("alice", "other.example.com/"),
    ] {
        assert_eq!(
            answer(&Role::Gateway, Ask { key, target, ..Ask::default() }),
            "404 no-route",
            "{key} {target}"
        );
    }
    let only = answer(&Role::Gateway, Ask { target: "any.host:81/x", baseline: "strict", ..Ask::default() });
    assert!(
        only.starts_with("web;env=strict"),
        "the only exposed service, without a host, is led to from every host: {only}"
    );
}

#[test]
fn a_gateway_leads_the_target_of_a_whole_server_to_its_root() {
    for (key, target, service) in [
        ("", "shop.example.com*", "web"),
        ("", "shop.example.com:80*", "web"),
        ("alice", "new.example.com*", "new"),
    ] {
        let served = answer(&Role::Gateway, Ask { key, target, ..Ask::default() });
        assert!(served.starts_with(&format!("{service};")), "{key} {target}: {served}");
    }
    let elsewhere = answer(&Role::Gateway, Ask { target: "other.example.com*", ..Ask::default() });
    assert_eq!(elsewhere, "404 no-route");
}

#[test]
fn outbound_knows_services_by_name_and_by_their_own_url() {
    for (key, target, service) in [
        ("", "pay:1234", "pay"),
        ("", "PAY.", "pay"),
        ("", "web.base:8080", "web"),
        ("", "pay.base.svc.cluster.local:8080", "pay"),
        ("", "pay.base.svc:8080", "pay"),
        ("", "pay.base:8080", "pay"),
        ("alice", "new", "new"),
        ("alice", "pay.alice:8080", "pay"),
        ("", "pay.base:81", ""),
        ("", "new", ""),
        ("", "example.com", ""),
        ("", "[::1]:80", ""),
        ("", "", ""),
    ] {
        let served = answer(&outbound(), Ask { key, target, ..Ask::default() });
        let expected = if service.is_empty() { "pass through".to_owned() } else { format!("{service};") };
        assert!(served.starts_with(&expected), "{key} {target}: {served}");
    }
}

#[test]
fn inbound_delivers_its_own_and_sends_everything_else_there_once() {
    for (environment, key, hop, expected) in [
        (None, "", None, "pay;env=base;via=baseline;reason=no-key app"),
        (None, "quiet", None, "pay;env=base;via=baseline;reason=not-owned app"),
        (None, "alice", None, "pay;env=alice;via=overlay;reason=owned ⇒ http://pay.alice:8080"),
        (None, "alice", Some("alice"), "421 misdirected"),
        (None, "alice", Some("base"), "pay;env=base;via=baseline;reason=not-owned app"),
        (Some("alice"), "alice", None, "pay;env=alice;via=overlay;reason=owned app"),
        (Some("alice"), "child", None, "pay;env=alice;via=ancestor;reason=inherited app"),
        (Some("alice"), "", None, "pay;env=alice;via=overlay;reason=owned app"),
        (
            Some("alice"),
            "nobody",
            None,
            "pay;env=base;via=baseline;reason=unknown ⇒ http://pay.base.svc.cluster.local:8080",
        ),
        (Some("alice"), "alice", Some("base"), "421 misdirected"),
        (Some("alice"), "alice", Some("not an id\n"), "421 misdirected"),
    ] {
        assert_eq!(
            answer(&inbound(environment), Ask { key, hop, ..Ask::default() }),
            expected,
            "{environment:?} {key} {hop:?}"
        );
    }
}

#[test]
fn what_is_required_comes_from_the_keys_own_environment_or_not_at_all() {
    for (key, require, unavailable, expected) in [
        ("alice", "pay", &[][..], "pay;env=alice"),
        ("alice", "*", &[], "pay;env=alice"),
        ("alice", "web, *", &[], "pay;env=alice"),
        ("child", "pay", &[], "412 wrong-environment"),
        ("child", "*", &[], "pay;env=alice"),
        ("quiet", "web", &[], "pay;env=base"),
        ("quiet", "pay", &[], "412 wrong-environment"),
        ("nobody", "pay", &[], "412 wrong-environment"),
        ("nobody", "*", &[], "412 unverified"),
        ("", "*", &[], "412 unverified"),
        ("", "pay", &[], "412 wrong-environment"),
        ("base", "pay", &[], "pay;env=base"),
        ("falls", "pay", &["falls"], "412 wrong-environment"),
        ("falls", "*", &["falls"], "412 wrong-environment"),
    ] {
        let served = answer(&outbound(), Ask { key, target: "pay", require, unavailable, ..Ask::default() });
        assert!(served.starts_with(expected), "{key} {require}: {served}");
    }
}

/// The edits of an outbound call of `web`: the key's header, `baggage`, and the mark.
fn edits(
    role: &Role,
    baseline: &str,
    key: &str,
    baggage: &[&str],
) -> (Option<String>, Option<String>, Option<String>) {
    let table = table();
    let lines = baggage.iter().map(|line| ("baggage", *line));
    let fields: Vec<_> = std::iter::once(("x-overlay-id", key)).chain(lines).collect();
    let carriers = Carriers::default();
    let arrived = carriers.read("x-overlay-id", &fields[..], |_, _| ()).unwrap();
    let listener = Listener { role: role.clone(), baseline: Some(baseline.parse().unwrap()) };
    let request = Request {
        authority: "web",
        path: "/",
        preview: None,
        by_browser: false,
        keys: arrived.keys.as_ref(),
        untrusted: false,
        hop: None,
        require: "",
    };
    let Decision::Serve(served) = decide(&table, &listener, &request, NOW, &Tried::default(), &mut Untraced)
    else {
        panic!("not served")
    };
    let edits = Edits::serve(&served, &carriers, &fields[..], false);
    let mut written = Vec::new();
    edits.write_lines(&carriers, "x-overlay-id", &mut written);
    let written = String::from_utf8(written).unwrap();
    let line = written.lines().find_map(|line| line.strip_prefix("baggage: ")).unwrap_or_default();
    let baggage = (edits.baggage != FieldEdit::Untouched).then(|| line.to_owned());
    (edits.key.map(|keys| keys.as_str().to_owned()), baggage, edits.hop.map(|id| id.to_string()))
}

#[test]
fn the_key_goes_on_in_both_carriers_unless_its_environment_keeps_it() {
    let some = |text: &str| Some(text.to_owned());
    for (baseline, key, baggage, expected) in [
        ("base", "alice", &[][..], (some("alice"), some("overlay-id=alice"), None)),
        (
            "base",
            "nobody",
            &["a=1", "overlay-id=x;p,b=2"],
            (some("nobody"), some("a=1,b=2,overlay-id=nobody"), None),
        ),
        (
            "base",
            "",
            &["overlay-id=alice%2Cchild"],
            (some("alice, child"), some("overlay-id=alice%2Cchild"), None),
        ),
        ("base", "", &["a=1"], (None, None, None)),
        ("base", "", &["overlay-id=NOT AN ID"], (None, None, None)),
        ("base", "quiet", &["a=1,overlay-id=quiet"], (None, some("a=1"), None)),
        ("base", "quiet", &["overlay-id=quiet"], (None, some(""), None)),
        ("base", "quiet, alice", &[], (some("alice"), some("overlay-id=alice"), None)),
        ("strict", "strict", &[], (None, None, None)),
    ] {
        assert_eq!(edits(&outbound(), baseline, key, baggage), expected, "{baseline} {key} {baggage:?}");
    }
    let stamped = Role::Outbound { service: None, environment: Some("alice".parse().unwrap()) };
    assert_eq!(
        edits(&stamped, "base", "", &[]),
        (some("alice"), some("overlay-id=alice"), None),
        "an overlay's call is stamped"
    );
}

#[test]
fn every_step_of_a_decision_can_be_told_with_the_line_behind_it() {
    let table = table();
    let listener = Listener { role: outbound(), baseline: Some("base".parse().unwrap()) };
    let keys = Keys::parse([&b"child"[..]]).unwrap();
    let request = Request {
        authority: "pay",
        path: "/",
        preview: None,
        by_browser: false,
        keys: keys.as_ref(),
        untrusted: false,
        hop: None,
        require: "",
    };
    let mut steps: Vec<Step> = Vec::new();
    assert!(matches!(
        decide(&table, &listener, &request, NOW, &Tried::default(), &mut steps),
        Decision::Serve(Served { .. })
    ));
    let told: Vec<_> = steps
        .iter()
        .map(|step| {
            (
                step.text.as_str(),
                step.declared.as_ref().map_or(0, overlane_config::diagnostic::Location::line),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("the listener's baseline is `base`", 1),
            ("the request carries the key `child`", 0),
            ("`pay` is the service `pay`", 0),
            ("`pay` is owned by `alice`, nearest in the lineage child → alice → base", 16),
        ]
    );
}
