//! Every file in `tests/diagnostics` and the diagnostics that it gives: `NAME.yaml` and `NAME.txt`.
//! `UPDATE_GOLDENS=1 cargo test -p overlane-config --test diagnostics` writes them anew.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange, Lineages};

/// What a store with the two blueprints of the documentation and `text` says about `text`.
fn diagnostics(name: &str, text: String) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blueprints");
    let read = |file: &str| (file.to_owned(), fs::read_to_string(folder.join(file)).unwrap());
    let files = [read("staging.yaml"), read("alice-payments.yaml"), (name.to_owned(), text)];
    let change = |(path, text): (String, String)| {
        let path: Arc<str> = path.into();
        let source = Arc::new(Source::new(path.clone(), text, None));
        FileChange { path, content: Content::Text(source) }
    };
    let applied = Lineages::default().apply(files.into_iter().map(change).collect());
    applied.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
}

#[test]
fn every_mistake_has_its_place_and_a_hint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !name.ends_with(".txt"));
    names.sort();
    assert!(!names.is_empty());
    let mut wrong = Vec::new();
    for name in names {
        let said = diagnostics(&name, fs::read_to_string(folder.join(&name)).unwrap());
        let golden = folder.join(&name).with_extension("txt");
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            fs::write(&golden, &said).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{name}\n--- expected\n{expected}--- said\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
