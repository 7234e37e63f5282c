//! Blueprints: both readers read alike, mistakes have a place in the text, and whatever was read resolves to something.

use std::sync::Arc;

use overlane_config::blueprint::{Document, Parsed, parse, parse_yaml, with_expiry};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Content, FileChange, Lineages, Standing};
use overlane_config::table::RoutingTable;
use overlane_config::time::UnixMillis;

/// Longer texts only take longer.
const LONGEST: usize = 64 * 1024;
/// What the others of a store inherit from.
const BASE: &str = "name: base\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://web'}]\n";

/// The input is the text of a file of a store.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.len() > LONGEST {
        return;
    }
    let source = source("fuzzed.yaml", text);
    let parsed = parse(&source);
    assert_eq!(shown(&parsed), shown(&parse_yaml(&source)), "both readers read alike");
    assert!(!parsed.documents.is_empty() || !parsed.diagnostics.is_empty(), "nothing is read in silence");
    let refused = !parsed.doubtful.is_empty() || !parsed.broken.is_empty();
    assert!(!refused || parsed.diagnostics.iter().any(Diagnostic::is_error), "refused for a reason");
    parsed.diagnostics.iter().for_each(|diagnostic| check_place(diagnostic, text));
    check_lineages(&source);
    for document in &parsed.documents {
        check_expiry(&source, document);
    }
}

fn source(path: &str, text: &str) -> Arc<Source> {
    Arc::new(Source::new(path.into(), text.to_owned(), Some(UnixMillis(1_800_000_000_000))))
}

fn shown(parsed: &Parsed) -> String {
    format!("{:?}\n{:?}\n{:?}\n{:?}", parsed.documents, parsed.diagnostics, parsed.doubtful, parsed.broken)
}

fn check_place(diagnostic: &Diagnostic, text: &str) {
    if let Some(location) = &diagnostic.location {
        let (start, end) = (location.span.start as usize, location.span.end as usize);
        assert!(start <= end && end <= text.len(), "{start}..{end} of {}", text.len());
        assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{start}..{end} cut a letter");
        assert_eq!(location.line(), 1 + text[..start].matches('\n').count());
    }
    let told = diagnostic.to_string();
    assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
}

/// The file beside a baseline: each environment is resolved or refused with a reason, and what has gone leaves nothing.
fn check_lineages(source: &Arc<Source>) {
    let file = |source: Arc<Source>| FileChange { path: source.path.clone(), content: Content::Text(source) };
    let mut lineages = Lineages::default();
    let mut table: RoutingTable<()> = RoutingTable::default();
    let base = file(self::source("base.yaml", BASE));
    let gone = FileChange { path: source.path.clone(), content: Content::Gone };
    for change in [base, file(source.clone()), gone] {
        let applied = lineages.apply(vec![change]);
        table = table.compile(&lineages, &applied.changed, |_, _, _| ());
        for (id, standing) in lineages.standings() {
            if let Standing::Refused(why) = standing {
                assert!(why.iter().any(Diagnostic::is_error), "{id} is refused for no reason");
            }
        }
    }
    let left: Vec<_> = lineages.standings().map(|(id, _)| id.as_str()).collect();
    assert_eq!(left, ["base"]);
}

/// What is written into a document is read from it, and all else stays.
fn check_expiry(source: &Arc<Source>, document: &Document) {
    let Document::Blueprint(blueprint) = document else { return };
    if blueprint.parent().is_none() {
        return;
    }
    let at = UnixMillis(1_900_000_000_000);
    let text = with_expiry(source, blueprint, at);
    let again = parse(&self::source("again.yaml", &text));
    let [Document::Blueprint(edited)] = &again.documents[..] else {
        panic!("{text:?}: {:?}", again.diagnostics)
    };
    assert_eq!(edited.expires_at.as_ref().map(|at| at.value), Some(at), "{text:?}");
    let meaning = |of: &overlane_config::blueprint::Blueprint| {
        let services: Vec<_> =
            of.services.iter().map(|own| (own.name.value.clone(), own.urls.clone())).collect();
        (of.id.value.clone(), of.parent().map(|parent| parent.value.clone()), services)
    };
    assert_eq!(meaning(edited), meaning(blueprint));
}
