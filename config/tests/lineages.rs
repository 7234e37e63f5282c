//! What files mean together, and what stays in force when one of them goes bad.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use overlane_config::blueprint::{Document, parse, with_expiry};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Applied, Content, FileChange, Lineages, Rules, Standing};
use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;
use proptest::prelude::*;

const BASE: &str = "name: base\nrouting: {mode: baseline, overlayUrl: 'http://{service}.{overlay}:80'}\nservices: [{name: web, url: 'http://h'}]\n";

fn source(path: &str, text: &str) -> Arc<Source> {
    Arc::new(Source::new(path.into(), text.to_owned(), Some(UnixMillis(1_000))))
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

/// How each environment stands: by which text, or not.
fn standing(lineages: &Lineages) -> Vec<(String, Option<String>)> {
    let text = |standing: &Standing| Some(standing.resolved()?.blueprint.source.text.clone());
    lineages.standings().map(|(id, standing)| (id.to_string(), text(standing))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn all_stands_again_by_the_texts_that_it_stands_by(edits in prop::collection::vec((0usize..5, 0usize..9), 1..40)) {
        const IDS: [&str; 5] = ["base", "a", "b", "c", "d"];
        let mut lineages = store(vec![file("base.yaml", BASE)]);
        for (number, (at, what)) in edits.into_iter().enumerate() {
            let (own, next) = (IDS[at], IDS[(at + 1) % IDS.len()]);
            let path = format!("{own}.yaml");
            let of = |id: &str, routing: &str| {
                file(&path, &format!("name: {id}\n# {number}\nrouting: {{{routing}}}\nservices: [{{name: web, url: 'http://h'}}]\n"))
            };
            let edit = match what {
                0 => gone(&path),
                1 => file(&path, &format!("name: [ # {number}\n")),
                2 => FileChange { path: path.as_str().into(), content: Content::Unreadable("it burns".to_owned()) },
                3 => of(own, "mode: overlay, baselineId: nobody"),
                4 => of(next, "mode: overlay, baselineId: base"),
                5 => of(own, &format!("mode: overlay, baselineId: {next}")),
                _ if at == 0 => file(&path, &format!("{BASE}# {number}\n")),
                _ => of(own, "mode: overlay, baselineId: base"),
            };
            lineages.apply(vec![edit]);
            let mut again = Lineages::default();
            for list in lineages.texts() {
                let changes = list.into_iter().map(|source| FileChange { path: source.path.clone(), content: Content::Text(source) });
                again.apply(changes.collect());
            }
            let readable = |all: Vec<(String, Option<String>)>| all.into_iter().filter(|(_, text)| text.is_some()).collect::<Vec<_>>();
            prop_assert_eq!(readable(standing(&again)), readable(standing(&lineages)));
        }
    }
}

#[test]
fn what_is_wrong_with_lineages_is_refused_by_name_and_a_thousand_others_go_on() {
    let deep = (0..17).map(|at| {
        overlay(
            &format!("deep-{at:02}"),
            &if at == 0 { "base".to_owned() } else { format!("deep-{:02}", at - 1) },
        )
    });
    let others = (0..1000).map(|number| overlay(&format!("other-{number:04}"), "base"));
    let mut lineages = store([file("base.yaml", BASE)].into_iter().chain(others).collect());
    let broken = [
        overlay("one", "two"),
        overlay("two", "one"),
        overlay("orphan", "nobody"),
        overlay("parent", "base"),
        overlay("child", "parent"),
    ];
    let applied = lineages.apply(broken.into_iter().chain(deep).chain([gone("parent.yaml")]).collect());
    let refused: Vec<_> = lineages
        .standings()
        .filter(|(_, standing)| standing.resolved().is_none())
        .map(|(id, _)| id.to_string())
        .collect();
    assert_eq!(refused, ["child", "deep-16", "one", "orphan", "two"]);
    assert_eq!(lineages.len(), 1 + 1000 + 17 + 4);
    for (name, why) in [
        ("child", "unknown parent `parent`"),
        ("deep-16", "deeper than 16"),
        ("one", "cycle"),
        ("two", "cycle"),
        ("orphan", "unknown parent `nobody`"),
    ] {
        let own: Vec<_> = applied
            .diagnostics
            .iter()
            .filter(|problem| problem.environment == Some(id(name)))
            .map(Diagnostic::short)
            .collect();
        assert!(own.iter().any(|problem| problem.contains(why)), "{name}: {own:?}");
    }
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
    assert!(messages(&applied).contains("the lineage is a cycle: p → z → p"), "{}", messages(&applied));
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
                s.urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
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

/// Histories of whole stores.
mod histories {
    use std::collections::BTreeSet;

    use super::common::{
        STAGING, Store, base, environment, file, gone, id, overlay, overlay_text, unreadable,
    };
    use overlane_config::diagnostic::Diagnostic;
    use overlane_config::diff;
    use overlane_config::lineage::{Applied, FileChange, MAX_DEPTH, Rules, Standing};
    use overlane_config::name::EnvironmentId;

    fn changed(applied: &Applied) -> Vec<&str> {
        applied.changed.iter().map(EnvironmentId::as_str).collect()
    }

    fn changes(store: &Store, applied: &Applied) -> Vec<String> {
        diff::changes(&store.lineages, applied).iter().map(ToString::to_string).collect()
    }

    fn children<'s>(store: &'s Store, of: &str) -> Vec<&'s str> {
        store.lineages.children(&id(of)).map(EnvironmentId::as_str).collect()
    }

    /// Overlays `o1` … `o<n>`, each over the one before, the first over `base`.
    fn chain(length: usize) -> impl Iterator<Item = FileChange> {
        (1..=length).map(|n| {
            overlay(&format!("o{n}"), &if n == 1 { "base".to_owned() } else { format!("o{}", n - 1) })
        })
    }

    const SYNTAX: &str = "name: alice\nrouting: {mode: overlay\n";
    const MISSPELT: &str = "name: alice\nroutin: {}\n";

    #[test]
    fn a_bad_file_freezes_every_environment_last_read_from_it_and_says_why() {
        let two = format!("{}---\n{}", overlay_text("alice", "base"), overlay_text("bob", "alice"));
        for bad in [
            file("two.yaml", SYNTAX),
            file("two.yaml", MISSPELT),
            file("two.yaml", ""),
            file("two.yaml", overlay_text("alice", "base") + "---\nname: bob\nroutin: {}\n"),
            unreadable("two.yaml"),
        ] {
            let mut store = Store::of([base(), file("two.yaml", &*two)]);
            let applied = store.apply([bad]);
            assert_eq!(store.lineage("bob"), "bob → alice → base");
            assert_eq!(store.url("alice", "a"), "http://alice:80");
            assert!(applied.diagnostics.iter().any(Diagnostic::is_error), "the reason is told");
            assert!(!store.problems("alice").is_empty(), "the reason stays visible");
            assert!(!store.lineages.diagnostics().is_empty(), "the reason stays visible");
            assert_eq!(changes(&store, &applied), Vec::<String>::new(), "nothing changed");

            let applied = store.apply([file("two.yaml", two.replace("http://alice", "http://other"))]);
            assert_eq!(store.url("alice", "a"), "http://other:80", "mended");
            assert_eq!(changes(&store, &applied), ["~alice (service a)"]);
            assert_eq!(store.lineages.diagnostics(), []);
        }
    }

    #[test]
    fn what_a_bad_file_says_anew_beside_what_is_frozen_is_read() {
        let mut store = Store::of([base(), file("f.yaml", overlay_text("alice", "base"))]);
        store.apply([file(
            "f.yaml",
            format!(
                "{}---\n{}---\nroutin: {{}}\n",
                overlay_text("alice", "nobody"),
                overlay_text("bob", "base")
            ),
        )]);
        assert_eq!(store.lineage("alice"), "alice → base");
        assert_eq!(store.lineage("bob"), "bob → base");
    }

    #[test]
    fn a_mistake_of_meaning_keeps_what_was_last_good_as_well() {
        for (bad, reason) in [
            (overlay_text("alice", "nobody"), "unknown parent `nobody`"),
            (overlay_text("alice", "base").replace("http://alice", "http://169.254.169.254"), "link-local"),
            (
                overlay_text("alice", "base").replace("base}", "base, headerName: x-other}"),
                "`headerName` is `x-other`",
            ),
        ] {
            let mut store = Store::of([base(), overlay("alice", "base"), overlay("bob", "alice")]);
            store.apply([environment(&*bad)]);
            assert_eq!(store.lineage("bob"), "bob → alice → base");
            assert_eq!(store.url("alice", "a"), "http://alice:80");
            assert!(store.problems("alice").iter().any(|problem| problem.contains(reason)), "{reason}");
            // Another bad edit, and an edit elsewhere, do not lose it either.
            store.apply([file("alice.yaml", SYNTAX)]);
            store.apply([base()]);
            assert_eq!(store.lineage("bob"), "bob → alice → base");
        }
    }

    #[test]
    fn a_deleted_file_takes_its_environments_with_it() {
        let mut store = Store::of([base(), overlay("alice", "base")]);
        let applied = store.apply([gone("alice.yaml")]);
        assert_eq!(
            (store.lineage("alice").as_str(), changes(&store, &applied)),
            ("absent", vec!["-alice".to_owned()])
        );
        assert!(store.table.environment("alice").is_none());
        assert_eq!(store.lineages.len(), 1);
        assert_eq!(children(&store, "base"), Vec::<&str>::new());
        // A bad file too: only what it froze is gone.
        store.apply([overlay("alice", "base")]);
        store.apply([file("alice.yaml", SYNTAX)]);
        store.apply([gone("alice.yaml")]);
        assert_eq!((store.lineage("alice").as_str(), store.lineages.len()), ("absent", 1));
        assert_eq!(store.lineages.diagnostics(), []);
    }

    #[test]
    fn files_come_in_any_order() {
        let mut store = Store::of([overlay("bob", "alice")]);
        assert_eq!(store.lineage("bob"), "refused: unknown parent `alice`");
        store.apply([overlay("alice", "base")]);
        assert!(store.lineage("bob").starts_with("refused: the parent `alice` cannot be used"));
        let applied = store.apply([base()]);
        assert_eq!(store.lineage("bob"), "bob → alice → base");
        assert_eq!(changes(&store, &applied), ["+alice", "+base", "+bob"]);
        assert_eq!(store.lineages.diagnostics(), []);
    }

    #[test]
    fn an_unknown_parent_gets_a_suggestion() {
        let store = Store::of([base(), overlay("alice", "bse")]);
        let problems = store.lineages.problems(&id("alice"));
        assert_eq!(problems[0].hint.as_deref(), Some("did you mean `base`?"));
    }

    #[test]
    fn an_overlay_moves_with_its_edited_parent() {
        let other =
            environment("name: other\nrouting: {mode: baseline}\nservices: [{name: a, url: http://a}]\n");
        let mut store = Store::of([base(), other, overlay("alice", "base"), overlay("bob", "alice")]);
        let applied = store.apply([overlay("alice", "other")]);
        assert_eq!(store.lineage("bob"), "bob → alice → other");
        assert_eq!(changed(&applied), ["alice", "bob"]);
        assert_eq!(changes(&store, &applied), ["~alice (parent, baseline)", "~bob (baseline)"]);
        assert_eq!((children(&store, "base"), children(&store, "other")), (vec![], vec!["alice"]));
    }

    #[test]
    fn nobody_is_a_child_of_a_parent_that_it_no_longer_names() {
        let mut store = Store::of([base(), overlay("alice", "nobody")]);
        assert_eq!(children(&store, "nobody"), ["alice"]);
        store.apply([overlay("alice", "base")]);
        assert_eq!((children(&store, "nobody"), children(&store, "base")), (vec![], vec!["alice"]));
        // While the last good blueprint is in force, it is a child of both.
        store.apply([overlay("alice", "nobody")]);
        assert_eq!((children(&store, "nobody"), children(&store, "base")), (vec!["alice"], vec!["alice"]));
        store.apply([gone("alice.yaml")]);
        assert_eq!((children(&store, "nobody"), children(&store, "base")), (vec![], vec![]));
        let applied = store.apply([overlay("nobody", "base")]);
        assert_eq!(changed(&applied), ["nobody"]);
    }

    #[test]
    fn cycles_are_refused_with_all_their_names() {
        let store =
            Store::of([base(), overlay("alice", "bob"), overlay("bob", "alice"), overlay("carol", "bob")]);
        assert_eq!(store.lineage("alice"), "refused: the lineage is a cycle: alice → bob → alice");
        assert_eq!(store.lineage("bob"), "refused: the lineage is a cycle: bob → alice → bob");
        assert!(store.lineage("carol").starts_with("refused: the parent `bob` cannot be used"));

        let three = [overlay("alice", "bob"), overlay("bob", "carol"), overlay("carol", "alice")];
        let mut store = Store::of(three);
        assert_eq!(store.lineage("bob"), "refused: the lineage is a cycle: bob → carol → alice → bob");
        store.apply([base(), overlay("carol", "base")]);
        assert_eq!(store.lineage("alice"), "alice → bob → carol → base");
        assert_eq!(store.lineages.diagnostics(), []);
    }

    /// Two names in both orders: settling goes by the order of ids, and must not show.
    fn either_way(test: impl Fn(&str, &str)) {
        test("alice", "bob");
        test("bob", "alice");
    }

    #[test]
    fn no_cycle_closes_over_what_was_last_good() {
        either_way(|one, two| {
            // `one` is over `two` by its last good blueprint only, and then `two` wants to be over `one`.
            let expected = format!("{one} → {two} → base");
            let start = || Store::of([base(), overlay(two, "base"), overlay(one, two)]);
            let mut at_once = start();
            at_once.apply([overlay(one, "nobody"), overlay(two, one)]);
            let mut in_turn = start();
            in_turn.apply([overlay(one, "nobody")]);
            in_turn.apply([overlay(two, one)]);
            for store in [at_once, in_turn] {
                assert_eq!(store.lineage(one), expected);
                assert_eq!(store.problems(one), ["unknown parent `nobody`"]);
                assert_eq!(store.problems(two), [format!("the lineage is a cycle: {two} → {one} → {two}")]);
            }
        });
    }

    #[test]
    fn a_new_parent_is_taken_even_if_a_frozen_child_is_settled_first() {
        either_way(|child, parent| {
            let mut store = Store::of([base(), overlay(parent, "base"), overlay(child, parent)]);
            store.apply([overlay(child, "nobody"), overlay(parent, "zed"), overlay("zed", "base")]);
            assert_eq!(store.lineage(child), format!("{child} → {parent} → zed → base"));
            assert_eq!(store.problems(parent), Vec::<String>::new());
        });
    }

    #[test]
    fn an_edit_that_makes_descendants_too_deep_keeps_what_was_last_good_of_the_others_only() {
        let mut store = Store::of(std::iter::once(base()).chain(chain(MAX_DEPTH)).collect::<Vec<_>>());
        store.apply([overlay("top", "base")]);
        store.apply([overlay("o1", "top")]);
        assert!(store.lineage("o15").ends_with("→ o1 → top → base"));
        assert!(store.lineage("o16").starts_with("refused: the lineage is deeper than 16"));
    }

    #[test]
    fn a_chain_or_a_cycle_of_thousands_costs_neither_the_stack_nor_the_memory() {
        const MANY: usize = 5000;
        let mut store = Store::of(chain(MANY).collect::<Vec<_>>());
        let (first, last) = (store.lineage("o1"), store.lineage(&format!("o{MANY}")));
        assert_eq!(first, "refused: unknown parent `base`");
        assert!(last.starts_with("refused: the parent `o4999` cannot be used"));
        assert!(last.len() < 200, "{} bytes", last.len());
        store.apply([base()]);
        assert!(store.lineage("o16").ends_with("base"));
        let applied = store.apply([overlay("o1", &format!("o{MANY}"))]);
        assert!(store.lineage("o16").ends_with("o1 → base"), "last good");
        assert!(applied.diagnostics.iter().all(|problem| problem.message.len() < 300));
        let mut cold =
            Store::of(chain(MANY).skip(1).chain([overlay("o1", &format!("o{MANY}"))]).collect::<Vec<_>>());
        assert!(cold.lineage("o3").contains("cycle"));
        cold.apply([base(), overlay("o1", "base")]);
        assert!(cold.lineage("o16").ends_with("base"));
    }

    #[test]
    fn a_long_alternation_of_claims_and_last_good_blueprints_costs_no_stack() {
        const MANY: usize = 5000;
        let pair = |n: usize| (format!("child{n}"), format!("parent{n}"));
        let before = (0..MANY).flat_map(|n| {
            let (child, parent) = pair(n);
            [overlay(&parent, "base"), overlay(&child, &parent)]
        });
        let mut store = Store::of(std::iter::once(base()).chain(before).collect::<Vec<_>>());
        // Every child's edit is bad; every parent's new parent is the next child.
        let after = (0..MANY).flat_map(|n| {
            let (child, parent) = pair(n);
            [overlay(&child, "nobody"), overlay(&parent, &pair(n + 1).0)]
        });
        store.apply(after.collect::<Vec<_>>());
        assert_eq!(store.lineage("child4999"), "child4999 → parent4999 → base");
        assert_eq!(store.lineage("child4998"), "child4998 → parent4998 → child4999 → parent4999 → base");
    }

    #[test]
    fn a_duplicate_of_an_id_in_force_does_not_disturb_it() {
        let mut store = Store::of([base(), overlay("alice", "base")]);
        let twin = overlay_text("alice", "base").replace("http://alice", "http://twin");
        store.apply([file("other.yaml", &*twin)]);
        assert_eq!(store.url("alice", "a"), "http://alice:80");
        assert!(store.problems("alice")[0].starts_with("duplicate id `alice`"));
        // Whoever held it leaves: the other one takes over.
        store.apply([gone("alice.yaml")]);
        assert_eq!(store.url("alice", "a"), "http://twin:80");
        assert_eq!(store.lineages.diagnostics(), []);
    }

    #[test]
    fn baselines_and_overlays_share_one_namespace() {
        let clash = file("clash.yaml", overlay_text("base", "other"));
        let mut store = Store::of([base(), overlay("alice", "base")]);
        store.apply([clash]);
        assert_eq!(store.lineage("alice"), "alice → base");
        assert!(store.problems("base")[0].starts_with("duplicate id `base`"));
    }

    #[test]
    fn an_overlay_cannot_contradict_its_baseline() {
        for (line, change, refused) in [
            ("headerName", "headerName: x-other-id", true),
            ("headerName", "headerName: X-Overlay-ID", false),
            ("propagateHeader", "propagateHeader: false", false),
        ] {
            let text =
                overlay_text("alice", "base").replace("mode: overlay", &format!("mode: overlay, {change}"));
            let store = Store::of([base(), environment(text)]);
            assert_eq!(
                store.lineage("alice").starts_with("refused"),
                refused,
                "{line}: {}",
                store.lineage("alice")
            );
        }
    }

    #[test]
    fn the_baselines_header_holds_for_all_its_overlays() {
        let base = environment(
            "name: base\nrouting: {mode: baseline, headerName: x-team}\nservices: [{name: a, url: http://a}]\n",
        );
        let store = Store::of([base, overlay("alice", "base"), overlay("bob", "alice")]);
        let header =
            |of| store.lineages.standing(&id(of)).and_then(Standing::resolved).unwrap().header.to_string();
        assert_eq!((header("alice"), header("bob")), ("x-team".to_owned(), "x-team".to_owned()));
    }

    #[test]
    fn an_overlay_cannot_claim_a_host_of_another_service() {
        let store = |service: &str, host: &str| {
            let text = format!(
                "name: alice\nrouting: {{mode: overlay, baselineId: env-baseline-id}}\nservices: [{{name: {service}, hosts: [{host}]}}]\n"
            );
            Store::of([file("staging.yaml", STAGING), environment(text)]).lineage("alice")
        };
        assert!(
            store("ledger", "shop.staging.example.com")
                .starts_with("refused: the host `shop.staging.example.com`")
        );
        assert!(store("ledger", "Shop.Staging.Example.Com.").starts_with("refused"));
        assert_eq!(store("web", "shop.staging.example.com"), "alice → env-baseline-id");
        assert_eq!(store("ledger", "ledger.example.com"), "alice → env-baseline-id");
    }

    #[test]
    fn a_service_that_nobody_below_has_is_new_and_only_warned_of() {
        let text = |id: &str, parent: &str, service: &str| {
            environment(format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: {service}, url: http://x}}]\n"
            ))
        };
        let store = Store::of([
            file("staging.yaml", STAGING),
            text("alice", "env-baseline-id", "payment-api"),
            text("bob", "alice", "payment-api"),
        ]);
        assert_eq!(store.lineage("bob"), "bob → alice → env-baseline-id");
        let problems = store.lineages.problems(&id("alice"));
        assert!(!problems[0].is_error() && problems[0].message.contains("it is new"));
        assert_eq!(problems[0].hint.as_deref(), Some("did you mean `payments-api`?"));
        assert_eq!(store.problems("bob"), Vec::<String>::new(), "new in its parent already");
    }

    #[test]
    fn the_nearest_overlay_url_of_the_lineage_counts() {
        let text = |id: &str, parent: &str, template: &str| {
            environment(format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}{template}}}\nservices: [{{name: web}}]\n"
            ))
        };
        let store = Store::of([
            file("staging.yaml", STAGING),
            text("one", "env-baseline-id", ", overlayUrl: 'http://{overlay}--{service}.example.com'"),
            text("two", "one", ""),
            text("three", "two", ", overlayUrl: 'http://{service}.three:90'"),
        ]);
        assert_eq!(store.url("one", "web"), "http://one--web.example.com:80");
        assert_eq!(store.url("two", "web"), "http://two--web.example.com:80");
        assert_eq!(store.url("three", "web"), "http://web.three:90");
    }

    fn attachment(environment: &str, service: &str, url: &str) -> FileChange {
        let spec = format!("spec: {{services: [{{name: {service}, url: '{url}'}}]}}");
        let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment";
        file("attached.yaml", format!("{head}\nmetadata: {{name: {environment}}}\n{spec}\n"))
    }

    /// An overlay whose service `a` has no address.
    fn pending() -> FileChange {
        environment("name: alice\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: a}]\n")
    }

    #[test]
    fn an_attached_address_ends_pending_and_survives_a_changed_blueprint() {
        let mut store = Store::of([base(), pending()]);
        assert_eq!(store.url("alice", "a"), "pending");
        let applied = store.apply([attachment("alice", "a", "http://x:1")]);
        assert_eq!((store.url("alice", "a").as_str(), changed(&applied)), ("http://x:1", vec!["alice"]));
        assert_eq!(changes(&store, &applied), ["~alice (service a)"]);
        store.apply([overlay("alice", "base")]);
        assert_eq!(store.url("alice", "a"), "http://x:1");
        store.apply([gone("alice.yaml")]);
        assert_eq!(store.lineage("alice"), "absent");
        store.apply([pending()]);
        assert_eq!(store.url("alice", "a"), "http://x:1");
    }

    #[test]
    fn an_attachment_may_come_before_its_environment_and_changes_nothing_alone() {
        let mut store = Store::of([base(), attachment("alice", "a", "http://x:1")]);
        assert_eq!(store.lineage("alice"), "absent");
        assert!(store.table.environment("alice").is_none());
        store.apply([pending()]);
        assert_eq!(store.url("alice", "a"), "http://x:1");
    }

    #[test]
    fn an_attachment_for_a_service_that_is_not_owned_is_warned_of() {
        let store = Store::of([base(), pending(), attachment("alice", "zzz", "http://x:1")]);
        assert_eq!(store.url("alice", "a"), "pending");
        let problems = store.lineages.problems(&id("alice"));
        assert!(
            !problems[0].is_error() && problems[0].message.contains("does not own `zzz`"),
            "{problems:?}"
        );
    }

    #[test]
    fn unix_sockets_are_only_below_allowed_directories_and_link_local_addresses_nowhere() {
        let allowed = Rules { unix_under: vec!["/run/overlane".to_owned()] };
        for (url, by_default, with_rule) in [
            ("unix:/run/overlane/a.sock", false, true),
            ("unix:/run/overlane-other/a.sock", false, false),
            ("unix:/run/overlane/../a.sock", false, false),
            ("unix:/run/overlane/..", false, false),
            ("unix:/tmp/a.sock", false, false),
            ("http://169.254.169.254", false, false),
            ("http://[fe80::1]:80", false, false),
            ("http://[::ffff:169.254.169.254]:80", false, false),
            ("http://127.0.0.1:4001", true, true),
            ("http://10.0.0.1", true, true),
        ] {
            let overlay =
                || environment(overlay_text("alice", "base").replace("http://alice", &format!("'{url}'")));
            let taken = |rules: &Rules| {
                !Store::with(rules.clone(), [base(), overlay()]).lineage("alice").starts_with("refused")
            };
            assert_eq!((taken(&Rules::default()), taken(&allowed)), (by_default, with_rule), "{url}");
        }
    }

    #[test]
    fn a_template_leads_nowhere_forbidden_either() {
        let text = |template: &str| {
            format!(
                "name: base\nrouting: {{mode: baseline, serviceUrl: '{template}'}}\nservices: [{{name: a}}]\n"
            )
        };
        for template in ["http://169.254.169.254", "unix:/run/{service}"] {
            let store = Store::of([environment(text(template))]);
            assert!(store.lineage("base").starts_with("refused"), "{template}: {}", store.lineage("base"));
        }
    }

    #[test]
    fn policies_are_the_nearest_in_the_lineage() {
        let with = |id: &str, parent: &str, policy: &str| {
            environment(overlay_text(id, parent).replace("mode: overlay", &format!("mode: overlay{policy}")))
        };
        let store = Store::of([
            base(),
            overlay("plain", "base"),
            with("falls", "plain", ", onUnavailable: fallback, holdFor: 1s"),
            overlay("child", "falls"),
            with("fails", "child", ", onUnavailable: fail"),
        ]);
        let policy = |of| {
            let policy = store.lineages.standing(&id(of)).and_then(Standing::resolved).unwrap().policy;
            format!("{:?} {:?}", policy.on_unavailable, policy.hold_for)
        };
        assert_eq!(policy("plain"), "Fail 2s");
        assert_eq!(policy("falls"), "Fallback 1s");
        assert_eq!(policy("child"), "Fallback 1s");
        assert_eq!(policy("fails"), "Fail 1s");
    }

    #[test]
    fn unchanged_environments_are_shared_between_generations() {
        let mut store =
            Store::of([base(), overlay("alice", "base"), overlay("bob", "alice"), overlay("dave", "base")]);
        let before = store.table.clone();
        store.apply([overlay("alice", "base")]);
        let ids = |same: bool| -> BTreeSet<&str> {
            let all = store.table.environments().map(|(id, now)| (id.as_str(), now));
            all.filter(|(id, now)| std::ptr::eq(*now, before.environment(id).unwrap()) == same)
                .map(|(id, _)| id)
                .collect()
        };
        assert_eq!(ids(true), BTreeSet::from(["base", "dave"]));
        assert_eq!(ids(false), BTreeSet::from(["alice", "bob"]));
    }

    #[test]
    fn what_the_data_plane_attached_stays_while_the_addresses_are_the_same() {
        let mut lineages = overlane_config::lineage::Lineages::default();
        let mut table = overlane_config::table::RoutingTable::<usize>::default();
        let mut made = 0;
        let mut apply = |change: FileChange| {
            let applied = lineages.apply(vec![change]);
            table = table.compile(&lineages, &applied.changed, |_, _, _| {
                made += 1;
                made
            });
            made
        };
        assert_eq!(apply(base()), 2);
        assert_eq!(apply(overlay("alice", "base")), 3);
        assert_eq!(apply(base()), 3);
        assert_eq!(
            apply(environment(overlay_text("alice", "base").replace("http://alice", "http://new"))),
            4
        );
    }
}
