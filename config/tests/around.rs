//! A change is judged by the files around it as by all files.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use overlane_config::blueprint::parse;
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{About, Applied, Content, FileChange, Lineages};
use overlane_config::name::EnvironmentId;
use proptest::prelude::*;

const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "base"];

fn file(path: &str, text: &str) -> FileChange {
    let path: Arc<str> = path.into();
    let source = Source::new(path.clone(), text.to_owned(), None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

fn gone(path: &str) -> FileChange {
    FileChange { path: path.into(), content: Content::Gone }
}

fn id(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

fn short(diagnostics: &[Diagnostic]) -> Vec<String> {
    let mut all: Vec<_> = diagnostics.iter().map(Diagnostic::short).collect();
    all.sort();
    all
}

/// What came of a change, and what stands of the environments that it concerned.
fn told(lineages: &Lineages, applied: &Applied) -> (Vec<String>, Vec<String>) {
    let of = |id: &EnvironmentId| {
        let stands = lineages.standing(id).map(|standing| standing.resolved().is_some());
        let claims: Vec<_> = lineages.claims(id).map(|claim| claim.source.path.to_string()).collect();
        let children: Vec<_> = lineages.children(id).collect();
        let attached = lineages.attachments(id).len();
        format!("{id}: {stands:?} by {claims:?} above {children:?} with {attached}")
    };
    (short(&applied.diagnostics), applied.changed.iter().map(of).collect())
}

/// A document: of an environment, or of what is attached to one; good, or with a mistake.
fn document() -> impl Strategy<Value = String> {
    let parent = prop::sample::select(vec!["a", "b", "c", "d", "e", "base", "base", "base", "nobody"]);
    (0..IDS.len(), parent, 0..12u8).prop_map(|(at, parent, what)| {
        let id = IDS[at];
        let mode = match id {
            "base" => "mode: baseline".to_owned(),
            _ => format!("mode: overlay, baselineId: {parent}"),
        };
        match what {
            0 => format!("name: {id}\nrouting: {{{mode}}}\nnonsense: 1\nservices: [{{name: web}}]\n"),
            1 => format!(
                "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: {id}}}\nspec: {{services: [{{name: web, url: 'http://h'}}]}}\n"
            ),
            _ => format!("name: {id}\nrouting: {{{mode}}}\nservices: [{{name: web, url: 'http://h'}}]\n"),
        }
    })
}

/// A text of one document, or of some; sometimes none at all.
fn text() -> impl Strategy<Value = Option<String>> {
    let documents = prop::collection::vec(document(), 1..4);
    prop::option::weighted(0.9, documents.prop_map(|documents| documents.join("---\n")))
}

proptest! {
    #[test]
    fn a_change_is_judged_by_the_files_around_it_as_by_all_files(
        history in prop::collection::vec((0..7usize, text()), 1..30),
        path in 0..8usize,
        written in text(),
    ) {
        let name = |at: usize| format!("f{at}.yaml");
        let change = |path: &str, text: &Option<String>| match text {
            Some(text) => file(path, text),
            None => gone(path),
        };
        let (mut followed, mut last) = (Lineages::default(), BTreeMap::new());
        for (at, text) in &history {
            followed.apply(vec![change(&name(*at), text)]);
            last.insert(name(*at), text.clone());
        }
        let mut whole = Lineages::default();
        whole.apply(last.iter().filter(|(_, text)| text.is_some()).map(|(path, text)| change(path, text)).collect());

        let path = name(path);
        let mut part = Lineages::default();
        let source = Arc::new(Source::new(path.as_str().into(), written.clone().unwrap_or_default(), None));
        let about = About { paths: vec![path.clone()], ..About::text(&parse(&source)) };
        part.apply(followed.around(&about));
        let judged = [&mut whole, &mut part].map(|lineages| {
            let applied = lineages.apply(vec![change(&path, &written)]);
            told(lineages, &applied)
        });
        prop_assert_eq!(&judged[0], &judged[1]);
    }
}

#[test]
fn what_is_around_an_overlay_is_its_lineage_and_what_inherits_from_it() {
    let overlay = |id: &str, parent: &str| {
        file(
            &format!("{id}.yaml"),
            &format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: web}}]\n"
            ),
        )
    };
    let base = file(
        "base.yaml",
        "name: base\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://h'}]\n",
    );
    let mut files = vec![base, overlay("a", "base"), overlay("b", "a"), overlay("c", "b"), overlay("d", "a")];
    files.extend((0..100).map(|n| overlay(&format!("o{n}"), "base")));
    let mut lineages = Lineages::default();
    lineages.apply(files);
    let around = |changed: &[&str], named: &[&str]| {
        let ids = |names: &[&str]| names.iter().map(|name| id(name)).collect();
        let about = About { changed: ids(changed), named: ids(named), ..About::default() };
        lineages.around(&about).iter().map(|change| change.path.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(around(&["b"], &[]), ["a.yaml", "b.yaml", "base.yaml", "c.yaml"]);
    assert_eq!(around(&["new"], &["base"]), ["base.yaml"]);
    assert_eq!(around(&["new"], &["d"]), ["a.yaml", "base.yaml", "d.yaml"]);
    assert_eq!(around(&["new"], &["bas"]), ["base.yaml"], "who mistyped it is told what is meant");
    assert_eq!(around(&["base"], &[]).len(), 105);
}

/// Made by its own text, so that nobody mistyped it; and others, of which nobody has any.
#[test]
fn a_search_for_what_was_mistyped_ends_however_many_names_are_unknown() {
    let known = |n: usize| {
        file(
            &format!("known-{n:05}.yaml"),
            &format!(
                "name: known-{n:05}\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://h'}}]\n"
            ),
        )
    };
    let mut lineages = Lineages::default();
    lineages.apply((0..10_000).map(known).collect());
    let ids = |name: &str| (0..5000).map(|n| id(&format!("{name}-{n:05}x"))).collect::<Vec<_>>();
    let count = |changed: Vec<EnvironmentId>, named: Vec<EnvironmentId>| {
        lineages.around(&About { changed, named, ..About::default() }).len()
    };
    assert_eq!(count(Vec::new(), ids("known")), 10, "so many names are looked at");
    assert_eq!(count(ids("known"), ids("known")), 0, "they are made by the same text");
    let again = [id("known-00001x"); 1].into_iter().cycle().take(5000);
    assert_eq!(count(Vec::new(), again.chain([id("known-00002x")]).collect()), 2, "each is looked for once");
}
