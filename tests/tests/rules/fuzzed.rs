//! What fuzzing found worth keeping: each file of `fuzz/corpus` is an input of its target.

use std::path::Path;
use std::{fs, panic};

use overlane_tests::fuzz::TARGETS;

/// Every input of a target; those that break a rule are told by name.
fn replay(name: &str) {
    let (_, check) = TARGETS.iter().find(|target| target.0 == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let files: Vec<_> = fs::read_dir(&folder).expect("a corpus").map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 10, "{} has {} files", folder.display(), files.len());
    let broken: Vec<_> = files
        .iter()
        .filter(|file| panic::catch_unwind(|| check(&fs::read(file).unwrap())).is_err())
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn announced() {
    replay("announced");
}

#[test]
fn blueprint() {
    replay("blueprint");
}

#[test]
fn carriers() {
    replay("carriers");
}

#[test]
fn chunks() {
    replay("chunks");
}

#[test]
fn engines() {
    replay("engines");
}

#[test]
fn forwarded() {
    replay("forwarded");
}

#[test]
fn head() {
    replay("head");
}

#[test]
fn receipts() {
    replay("receipts");
}

#[test]
fn tokens() {
    replay("tokens");
}

#[test]
fn every_target_is_replayed_and_every_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut corpora: Vec<_> = fs::read_dir(folder)
        .expect("corpora")
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    corpora.sort();
    assert_eq!(corpora, TARGETS.map(|target| target.0));
}
