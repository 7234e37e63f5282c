//! What files mean together, and what stays in force when one of them goes bad.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use overlane_config::blueprint::{Document, parse, with_expiry};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Applied, Content, FileChange, Lineages, Rules, Standing};
use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;
use proptest::prelude::*;

const BASE: &str = "name: base\nrouting: {mode: baseline, overlayUrl: 'http://{service}.{overlay}:80'}\nservices: [{name: web, url: 'http://h'}]\n";

fn source(path: &str, text: &str) -> Arc<Source> {
    Arc::new(Source { path: path.into(), text: text.to_owned(), modified: Some(UnixMillis(1_000)) })
}

fn file(path: &str, text: &str) -> FileChange {
    FileChange { path: path.into(), content: Content::Text(source(path, text)) }
}

fn gone(path: &str) -> FileChange {
    FileChange { path: path.into(), content: Content::Gone }
}

fn overlay(id: &str, parent: &str) -> FileChange {
    file(
        &format!("{id}.yaml"),
        &format!("name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: web}}]\n"),
    )
}

fn id(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

/// `base a!` : base stands, a is refused.
fn shown(lineages: &Lineages) -> String {
    let each = lineages.standings().map(|(id, standing)| match standing {
        Standing::Resolved(_) => id.to_string(),
        Standing::Refused(_) => format!("{id}!"),
    });
    each.collect::<Vec<_>>().join(" ")
}

fn parent(lineages: &Lineages, of: &str) -> String {
    lineages.standing(&id(of)).unwrap().resolved().unwrap().parent.as_ref().unwrap().to_string()
}

fn messages(applied: &Applied) -> String {
    applied.diagnostics.iter().map(Diagnostic::short).collect::<Vec<_>>().join("\n")
}

fn store(files: Vec<FileChange>) -> Lineages {
    let mut lineages = Lineages::default();
    lineages.apply(files);
    lineages
}

#[test]
fn a_bad_file_freezes_what_was_last_read_from_it() {
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("a", "base")]);
    for bad in [
        file("a.yaml", "name: ["),
        file("a.yaml", "name: a\nrouting: {mode: overlay, baselineId: nobody}\n"),
        file("a.yaml", "name: a\nrouting: {mode: overlay, baselineId: base, ttl: soon}\n"),
        file("a.yaml", ""),
        FileChange { path: "a.yaml".into(), content: Content::Unreadable("permission denied".to_owned()) },
    ] {
        let applied = lineages.apply(vec![bad]);
        assert!(applied.diagnostics.iter().any(Diagnostic::is_error), "{}", messages(&applied));
        assert_eq!(
            (shown(&lineages).as_str(), parent(&lineages, "a").as_str()),
            ("a base", "base"),
            "{}",
            messages(&applied)
        );
        assert!(!lineages.problems(&id("a")).is_empty() || !lineages.diagnostics().is_empty());
    }
    lineages.apply(vec![overlay("a", "base")]);
    assert!(lineages.diagnostics().is_empty(), "a good edit heals it");
    lineages.apply(vec![gone("a.yaml")]);
    assert_eq!(shown(&lineages), "base", "what is deleted is gone");
}

#[test]
fn a_file_that_was_never_good_makes_its_id_unavailable() {
    let mut lineages = store(vec![
        file("base.yaml", BASE),
        file("dir/alice.yaml", "name: ["),
        file("x.yaml", "name: bob\nrouting: {mode: overlay, baselineId: base, ttl: soon}\n"),
    ]);
    assert_eq!(shown(&lineages), "alice! base bob!");
    lineages.apply(vec![gone("dir/alice.yaml"), gone("x.yaml")]);
    assert_eq!(shown(&lineages), "base");
}

#[test]
fn a_parent_that_goes_takes_its_descendants_and_brings_them_back() {
    let mut lineages = store(vec![overlay("c", "b"), overlay("b", "a")]);
    assert_eq!(shown(&lineages), "b! c!");
    let applied = lineages.apply(vec![overlay("a", "base"), file("base.yaml", BASE)]);
    assert_eq!((shown(&lineages).as_str(), applied.changed.len()), ("a b base c", 4));
    let applied = lineages.apply(vec![gone("a.yaml")]);
    assert_eq!(shown(&lineages), "b! base c!");
    assert_eq!(applied.changed, ["a", "b", "c"].map(id).into());
    assert!(
        messages(&applied).contains("unknown parent `a`")
            && messages(&applied).contains("the parent `b` cannot be used")
    );
    let words: Vec<_> = overlane_config::diff::changes(&lineages, &applied)
        .iter()
        .map(|change| change.to_string().chars().next().unwrap())
        .collect();
    assert_eq!(words, ['-', '!', '!']);
    lineages.apply(vec![overlay("a", "base")]);
    assert_eq!(shown(&lineages), "a b base c");
}

#[test]
fn a_change_touches_the_environment_and_its_descendants_only() {
    let mut lineages =
        store(vec![file("base.yaml", BASE), overlay("a", "base"), overlay("b", "a"), overlay("z", "base")]);
    assert_eq!(lineages.apply(vec![overlay("a", "base")]).changed, ["a", "b"].map(id).into());
    assert_eq!(lineages.apply(vec![overlay("z", "base")]).changed, ["z"].map(id).into());
}

#[test]
fn a_cycle_is_refused_by_name_and_one_made_by_an_edit_changes_nothing() {
    let cold =
        store(vec![file("base.yaml", BASE), overlay("a", "b"), overlay("b", "a"), overlay("z", "base")]);
    assert_eq!(shown(&cold), "a! b! base z");
    let mut lineages =
        store(vec![file("base.yaml", BASE), overlay("a", "base"), overlay("b", "a"), overlay("c", "b")]);
    let applied = lineages.apply(vec![overlay("a", "c")]);
    assert!(messages(&applied).contains("c → b → a → c"), "{}", messages(&applied));
    assert_eq!((shown(&lineages).as_str(), parent(&lineages, "a").as_str()), ("a b base c", "base"));
}

#[test]
fn what_falls_back_to_its_last_good_never_closes_a_cycle() {
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("p", "base"), overlay("z", "p")]);
    lineages.apply(vec![overlay("z", "nobody")]);
    assert_eq!(parent(&lineages, "z"), "p", "frozen");
    let applied = lineages.apply(vec![overlay("p", "z")]);
    assert!(messages(&applied).contains("cycle through `z`"), "{}", messages(&applied));
    assert_eq!((parent(&lineages, "p").as_str(), parent(&lineages, "z").as_str()), ("base", "p"));
}

#[test]
fn a_frozen_child_does_not_keep_its_parents_edits_out() {
    let own = |id: &str, parent: &str, service: &str| {
        file(
            &format!("{id}.yaml"),
            &format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: {service}}}]\n"
            ),
        )
    };
    let mut lineages =
        store(vec![file("base.yaml", BASE), overlay("q", "base"), overlay("p", "q"), overlay("a", "p")]);
    lineages.apply(vec![own("q", "base", "web"), own("p", "q", "other"), overlay("a", "nobody")]);
    let service = |of: &str| {
        lineages.standing(&id(of)).unwrap().resolved().unwrap().blueprint.services[0].name.value.to_string()
    };
    assert_eq!((service("p").as_str(), parent(&lineages, "a").as_str()), ("other", "p"));
}

#[test]
fn a_corrected_parent_is_not_remembered() {
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("a", "nobody")]);
    lineages.apply(vec![overlay("a", "base")]);
    assert_eq!(lineages.children(&id("nobody")).count(), 0);
    assert_eq!(lineages.children(&id("base")).count(), 1);
    lineages.apply(vec![overlay("a", "nobody")]);
    assert_eq!(
        (lineages.children(&id("nobody")).count(), lineages.children(&id("base")).count()),
        (1, 1),
        "frozen: both"
    );
}

#[test]
fn a_bad_attachment_takes_nothing_from_its_environment() {
    let attachment = |url: &str| {
        format!(
            "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: a}}\nspec: {{services: [{{name: web, url: '{url}'}}]}}\n"
        )
    };
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("a", "base")]);
    let applied = lineages.apply(vec![file("a.attached.yaml", &attachment("http://169.254.169.254"))]);
    assert!(messages(&applied).contains("link-local"));
    assert_eq!(
        lineages.standing(&id("a")).unwrap().resolved().unwrap().urls[0][0].to_string(),
        "http://web.a:80"
    );
    let beside = format!(
        "{}---\nname: a\nrouting: {{mode: overlay, baselineId: base, ttl: soon}}\n",
        attachment("http://h")
    );
    assert_eq!(shown(&store(vec![file("base.yaml", BASE), file("a.yaml", &beside)])), "a! base");
}

#[test]
fn a_service_may_repeat_its_own_host_and_claim_no_other() {
    let base = BASE.replace("services: [", "services: [{name: api, hosts: [s.example], path: /api, url: 'http://h'}, {name: shop, hosts: [s.example], url: 'http://h'}, ");
    for (service, stands) in [("shop", true), ("api", true), ("web", false), ("new", false)] {
        let text = format!(
            "name: a\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: {service}, hosts: [s.example]}}]\n"
        );
        let lineages = store(vec![file("base.yaml", &base), file("a.yaml", &text)]);
        assert_eq!(lineages.standing(&id("a")).unwrap().resolved().is_some(), stands, "{service}");
    }
}

#[test]
fn a_lineage_has_at_most_sixteen_ancestors_and_no_chain_overflows_the_stack() {
    let name = |n: usize| if n == 0 { "base".to_owned() } else { format!("o{n}") };
    let chain: Vec<_> =
        (1..=5_000).rev().map(|n| overlay(&name(n), &name(n - 1))).chain([file("base.yaml", BASE)]).collect();
    let lineages = store(chain);
    for (n, stands) in [(1, true), (16, true), (17, false), (5_000, false)] {
        assert_eq!(lineages.standing(&id(&name(n))).unwrap().resolved().is_some(), stands, "{n}");
    }
}

#[test]
fn of_two_claims_to_an_id_neither_wins_but_what_is_in_force_stays() {
    let again = |path: &str| {
        file(
            path,
            "name: a\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: web, expose: true}]\n",
        )
    };
    assert_eq!(
        shown(&store(vec![file("base.yaml", BASE), overlay("a", "base"), again("other.yaml")])),
        "a! base"
    );
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("a", "base")]);
    let applied = lineages.apply(vec![again("other.yaml")]);
    assert!(messages(&applied).contains("duplicate id `a`"), "{}", messages(&applied));
    assert_eq!(shown(&lineages), "a base");
    assert!(!lineages.standing(&id("a")).unwrap().resolved().unwrap().blueprint.services[0].expose);
}

#[test]
fn addresses_come_from_attachments_then_urls_then_templates() {
    let urls = |lineages: &Lineages| {
        lineages.standing(&id("a")).unwrap().resolved().unwrap().urls[0]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let attachment = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {name: a}\nspec: {services: [{name: web, url: 'http://laptop:9'}]}\n";
    let mut lineages = store(vec![file("base.yaml", BASE), overlay("a", "base")]);
    assert_eq!(urls(&lineages), ["http://web.a:80"]);
    lineages.apply(vec![file("a.attached.yaml", attachment)]);
    assert_eq!(urls(&lineages), ["http://laptop:9"]);
    lineages.apply(vec![overlay("a", "base")]);
    assert_eq!(urls(&lineages), ["http://laptop:9"], "it survives");
    lineages.apply(vec![
        gone("a.attached.yaml"),
        file("base.yaml", &BASE.replace(", overlayUrl: 'http://{service}.{overlay}:80'", "")),
    ]);
    assert!(urls(&lineages).is_empty(), "pending");
}

#[test]
fn an_overlay_expires_by_its_own_time_or_with_the_first_of_its_ancestors() {
    let with = |id: &str, parent: &str, routing: &str| {
        file(
            &format!("{id}.yaml"),
            &format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}, {routing}}}\nservices: [{{name: web}}]\n"
            ),
        )
    };
    let lineages = store(vec![
        file("base.yaml", BASE),
        with("a", "base", "ttl: 1h"),
        with("b", "a", "ttl: 2h"),
        with("c", "a", "ttl: 1m, expiresAt: '1970-01-01T00:30:00Z'"),
    ]);
    let expires = |of: &str| lineages.standing(&id(of)).unwrap().resolved().unwrap().expires_at.unwrap().0;
    assert_eq!((expires("a"), expires("b"), expires("c")), (3_601_000, 3_601_000, 1_800_000));
}

#[test]
fn unix_sockets_need_an_allowed_directory() {
    let text = BASE.replace("http://h", "unix:/run/app/a.sock");
    for (allowed, stands) in [("/run/app", true), ("/run", true), ("/run/ap", false), ("/tmp", false)] {
        let mut lineages = Lineages::new(Rules { unix_under: vec![allowed.to_owned()] });
        lineages.apply(vec![file("base.yaml", &text)]);
        assert_eq!(lineages.standing(&id("base")).unwrap().resolved().is_some(), stands, "{allowed}");
    }
}

/// What was read, without places.
fn model(text: &str) -> String {
    let parsed = parse(&source("x", text));
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let [Document::Blueprint(blueprint)] = &parsed.documents[..] else { panic!("one blueprint") };
    let services: Vec<_> = blueprint
        .services
        .iter()
        .map(|s| {
            (
                s.name.value.to_string(),
                s.urls.iter().map(|url| url.value.to_string()).collect::<Vec<_>>(),
                s.expose,
                s.hosts.iter().map(|host| host.value.to_string()).collect::<Vec<_>>(),
                s.image.clone(),
            )
        })
        .collect();
    format!(
        "{} {:?} {:?} {services:?}",
        blueprint.id.value,
        blueprint.parent().map(|parent| parent.value.to_string()),
        blueprint.overlay_url.as_ref().map(|url| url.value.to_string())
    )
}

#[test]
fn bare_form_envelope_and_json_mean_the_same() {
    let bare = include_str!("blueprints/alice-payments.yaml");
    let indented: String = bare.lines().map(|line| format!("  {line}\n")).collect();
    let json = r#"{"name": "alice-payments-overlay",
	"routing": {"mode": "overlay", "baselineId": "env-baseline-id", "overlayId": "alice-payments"},
	"services": [{"name": "payments-api", "image": "my-org/payments-api:feature-new-refund-flow", "expose": true}]}"#;
    let envelope = format!(
        "apiVersion: overlane.dev/v1alpha1\nkind: Overlay\nmetadata:\n  name: alice-payments\nspec:\n{indented}"
    );
    for other in [
        envelope,
        json.to_owned(),
        bare.replace('\n', "\r\n"),
        format!("\u{feff}{bare}"),
        format!("---\n{bare}...\n"),
    ] {
        assert_eq!(model(&other), model(bare), "{other}");
    }
    assert!(
        model(include_str!("blueprints/staging.yaml"))
            .contains("h2c://ledger.staging.svc.cluster.local:50051")
    );
}

#[test]
fn several_documents_are_read_and_the_good_ones_beside_a_bad_one_too() {
    let text = format!(
        "{BASE}---\n# nothing\n---\nname: a\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: web}}]\n---\nname: b\nroutin: {{}}\n"
    );
    assert_eq!(shown(&store(vec![file("all.yaml", &text)])), "a b! base");
}

#[test]
fn hostile_files_are_refused_at_once() {
    let deep: String = (0..3_000).map(|n| " ".repeat(n) + "a:\n").collect();
    for (what, text) in [
        ("brackets", "[".repeat(200_000)),
        ("blocks", deep),
        ("alias", format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(20_000))),
        ("size", " ".repeat(overlane_config::blueprint::MAX_FILE_BYTES + 1)),
        ("empty", String::new()),
        ("comment", "# only\n".to_owned()),
        ("duplicates", "a: 1\n".repeat(10_000)),
    ] {
        let parsed = parse(&source("x", &text));
        assert!(parsed.documents.is_empty() && parsed.diagnostics.iter().any(Diagnostic::is_error), "{what}");
        assert!(parsed.diagnostics.len() <= 300, "{what} says {} things", parsed.diagnostics.len());
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_and_every_mistake_can_be_shown(text in "\\PC{0,200}", at in any::<prop::sample::Index>(), insert in "[\\PC\n\t:{}\\[\\]&*'\"-]{0,6}", cut in 0usize..12) {
        for whole in [include_str!("blueprints/staging.yaml"), include_str!("blueprints/alice-payments.yaml"), &text] {
            let mut chars: Vec<char> = whole.chars().collect();
            let from = at.index(chars.len() + 1);
            chars.splice(from..(from + cut).min(chars.len()), insert.chars());
            let mutated: String = chars.into_iter().collect();
            for diagnostic in parse(&source("x", &mutated)).diagnostics {
                prop_assert!(!diagnostic.to_string().is_empty());
            }
        }
    }

    #[test]
    fn an_expiry_is_set_by_the_smallest_edit(seconds in 0u64..4_000_000_000) {
        let at = UnixMillis(seconds * 1000);
        let flow = "{name: a, routing: {mode: overlay, baselineId: base}}";
        let known = "name: a # mine\nrouting:\n    mode: overlay\n    expiresAt: 2026-01-01T00:00:00Z # soon\n    baselineId: base\n";
        let envelope = "apiVersion: overlane.dev/v1alpha1\nkind: Overlay\nmetadata: {name: a}\nspec:\n  routing:\n    # why\n    mode: overlay\n    baselineId: base\n";
        for text in [include_str!("blueprints/alice-payments.yaml"), flow, known, envelope] {
            let before = source("x", text);
            let [Document::Blueprint(blueprint)] = &parse(&before).documents[..] else { panic!("{text}") };
            let edited = with_expiry(&before, blueprint, at);
            let after = source("x", &edited);
            let [Document::Blueprint(again)] = &parse(&after).documents[..] else { panic!("{edited}") };
            prop_assert_eq!(again.expires_at.as_ref().map(|at| at.value), Some(at));
            prop_assert!(text.matches('#').count() == edited.matches('#').count(), "comments stay: {}", edited);
        }
    }
}
