//! Requirements over the whole path: what the tree of receipts must say.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{NOW, Store, base, environment, overlay_text};
use overlane_config::carrier::Keys;
use overlane_config::route::verify;

/// Of `base` with the services `a` and `b`: `alice` owns `a` and `c`, `child` of alice owns `b`.
fn store() -> Store {
    let of = |id: &str, parent: &str, services: &str| {
        environment(format!(
            "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{services}]\n"
        ))
    };
    let expired = overlay_text("old", "base").replace("base}", "base, expiresAt: '2020-01-01T00:00:00Z'}");
    Store::of([
        base(),
        of("alice", "base", "{name: a, url: http://x}, {name: c}"),
        of("child", "alice", "{name: b, url: http://y}"),
        environment(expired),
    ])
}

/// `a@alice b@base!partial` as a list of receipts; `b@base?` is one of a proxy that knows no trees.
fn tree(words: &str) -> String {
    let item = |(at, word): (usize, &str)| {
        let (hop, marks) = word.split_once('!').unwrap_or((word, ""));
        let marks = if marks.is_empty() { String::new() } else { format!(";{marks}") };
        let (served, name) = match hop.strip_suffix('?') {
            Some(served) => (served, String::new()),
            None => (hop, format!(";hop=h{at}")),
        };
        let (service, environment) = served.split_once('@').unwrap();
        format!("{service};env={environment};via=overlay;reason=owned{name}{marks}")
    };
    words.split_whitespace().enumerate().map(item).collect::<Vec<_>>().join(", ")
}

fn verdict(key: &str, require: &str, receipts: &str) -> String {
    let keys = Keys::parse([key.as_bytes()]).unwrap();
    let list = if receipts.starts_with('%') { receipts.to_owned() } else { tree(receipts) };
    match verify(&store().table, None, keys.as_ref(), require, [list.as_bytes()], NOW) {
        Ok(()) => "met".to_owned(),
        Err(refusal) => {
            assert_eq!(refusal.problem.status(), 412);
            assert!(refusal.hint.is_some(), "what to do is said");
            format!("{}: {}", refusal.problem.as_str(), refusal.message)
        }
    }
}

#[test]
fn the_tree_decides_whether_a_requirement_is_met() {
    for (key, require, receipts, expected) in [
        // Nothing is required.
        ("alice", "", "", "met"),
        ("alice", " , ", "a@base", "met"),
        // By name.
        ("alice", "a", "a@alice b@base", "met"),
        ("alice", "a", "a@alice b@base!partial", "met"),
        ("alice", "a", "a@alice a@base", "wrong-environment: `a` is required"),
        ("alice", "a", "a@base!truncated", "wrong-environment: `a` is required"),
        ("alice", "b", "a@alice b@base", "wrong-environment: `b` is required"),
        ("alice", "a", "b@base", "not-reached: required, and not called: `a`"),
        ("alice", "a, c", "b@base", "not-reached: required, and not called: `a`, `c`"),
        ("alice", "a,c", "b@base a@alice", "not-reached: required, and not called: `c`"),
        ("alice", "a", "b@base!partial", "unverified: no hop is known"),
        ("alice", "a", "b@base?", "unverified: no hop is known"),
        ("alice", "a", "", "unverified: no hop is known"),
        ("alice", "a", "%nonsense", "unverified: no hop is known"),
        ("alice", "a", "a@alice!truncated", "unverified: the receipts of this request were cut off"),
        ("alice", "Web Shop\u{7}", "b@base", "not-reached: required, and not called: `Web Shop\\u{7}`"),
        // Everything that the key's overlay itself owns.
        ("alice", "*", "a@alice c@alice b@base", "met"),
        ("alice", "*", "a@alice b@base", "not-reached: required, and not called: `c`"),
        ("alice", "*", "a@alice b@base!partial", "unverified: no hop is known"),
        ("alice", "*", "a@base c@alice", "wrong-environment: `a` is required"),
        ("alice", "*,b", "a@alice c@alice b@base", "wrong-environment: `b` is required"),
        ("child", "*", "b@child a@alice", "met"),
        ("child", "a", "b@child a@alice", "wrong-environment: `a` is required"),
        ("base", "*", "a@base", "met"),
        ("base", "a", "a@base", "met"),
        // Several ids: any of them is the key's own.
        ("child, alice", "*", "b@child a@alice c@alice", "met"),
        ("child, alice", "a,b", "b@child a@alice", "met"),
        // Keys that nobody knows here.
        ("nobody", "*", "a@base", "unverified: `x-overlay-require: *`, and what the key owns"),
        ("old", "*", "a@base", "unverified: `x-overlay-require: *`, and what the key owns"),
        ("alice, nobody", "*", "a@alice c@alice", "unverified: `x-overlay-require: *`, and what the key"),
        ("nobody", "a", "a@base", "wrong-environment: `a` is required"),
        // A deeper process may know the key.
        ("nobody", "a", "a@nobody", "met"),
        ("", "*", "a@base", "unverified: `x-overlay-require: *`, and what the key owns"),
    ] {
        let verdict = verdict(key, require, receipts);
        let context = format!("key `{key}`, require `{require}`, receipts `{receipts}`: {verdict}");
        assert!(verdict.starts_with(expected) && (expected != "met" || verdict == "met"), "{context}");
    }
}

#[test]
fn a_refusal_names_eight_services_and_counts_the_others() {
    let many: Vec<_> = (10..30).map(|n| format!("s{n}")).collect();
    let verdict = verdict("alice", &many.join(","), "a@alice");
    assert!(verdict.contains("`s10`") && verdict.contains("`s17` and 12 more"), "{verdict}");
    assert!(!verdict.contains("`s18`"), "{verdict}");
}
