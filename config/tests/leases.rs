//! Leases of attached addresses and of overlays, against the naive rule, under a clock that is told.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use overlane_config::blueprint::{Document, parse};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::Lineages;
use overlane_config::time::UnixMillis;
use proptest::prelude::*;

use common::{base, environment, file, gone, id};

const SERVICES: [&str; 2] = ["a", "b"];

/// What the record of `alice` holds: the port of each attached address, and the second in which its lease ends.
type Record = BTreeMap<&'static str, (u16, Option<u64>)>;

fn at(second: u64) -> UnixMillis {
    UnixMillis(1_800_000_000_000 + second * 1_000)
}

fn record_text(record: &Record) -> String {
    let service = |(service, (port, until)): (&&str, &(u16, Option<u64>))| {
        let until = until.map_or_else(String::new, |second| format!(", expiresAt: '{}'", at(second)));
        format!("{{name: {service}, url: 'http://h:{port}'{until}}}")
    };
    let services: Vec<_> = record.iter().map(service).collect();
    format!(
        "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: alice}}\nspec: {{services: [{}]}}\n",
        services.join(", ")
    )
}

fn ports(lineages: &Lineages, of: &str) -> Vec<Option<u16>> {
    let resolved = lineages.standing(&id(of)).unwrap().resolved().unwrap();
    resolved.urls.iter().map(|urls| urls.first().map(|url| url.port)).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Attach(usize, u16, Option<u64>),
    Detach(usize),
    RenewAll(u64),
    Apply(bool),
    Time(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let attach = (0..SERVICES.len(), 1u16..4, prop::option::weighted(0.8, 0u64..8));
    prop_oneof![
        3 => attach.prop_map(|(service, port, lease)| Step::Attach(service, port, lease)),
        1 => (0..SERVICES.len()).prop_map(Step::Detach),
        3 => (0u64..8).prop_map(Step::RenewAll),
        1 => any::<bool>().prop_map(Step::Apply),
        4 => (-2i64..6).prop_map(Step::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_attached_address_is_used_until_its_lease_ends_and_then_not_until_its_record_says_another_time(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let overlay = |new: bool| {
            let image = if new { ", image: new" } else { "" };
            environment(format!("name: alice\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: a{image}}}, {{name: b}}]\n"))
        };
        let child = environment("name: child\nrouting: {mode: overlay, baselineId: alice}\nservices: [{name: c}]\n");
        let mut lineages = Lineages::default();
        lineages.apply(vec![base(), overlay(false), child]);
        let (mut record, mut now) = (Record::new(), 10u64);
        let mut lapsed: BTreeSet<(&str, u64)> = BTreeSet::new();
        for step in steps {
            let before = (ports(&lineages, "alice"), lapsed.clone());
            let renewal = matches!(step, Step::RenewAll(_));
            let change = match step {
                Step::Attach(service, port, lease) => {
                    record.insert(SERVICES[service], (port, lease.map(|lease| now + lease)));
                    Some(file("alice.attached.yaml", record_text(&record)))
                }
                Step::Detach(service) => {
                    record.remove(SERVICES[service]);
                    Some(if record.is_empty() { gone("alice.attached.yaml") } else { file("alice.attached.yaml", record_text(&record)) })
                }
                Step::RenewAll(lease) => {
                    record.values_mut().for_each(|(_, until)| *until = until.map(|_| now + lease));
                    (!record.is_empty()).then(|| file("alice.attached.yaml", record_text(&record)))
                }
                Step::Apply(new) => Some(overlay(new)),
                Step::Time(by) => {
                    now = now.saturating_add_signed(by);
                    None
                }
            };
            let applied = lineages.apply_at(change.into_iter().collect(), at(now));
            let leases = || record.iter().filter_map(|(service, (_, until))| Some((*service, (*until)?)));
            lapsed.retain(|lease| leases().any(|own| own == *lease));
            lapsed.extend(leases().filter(|(_, until)| *until <= now));
            let expected: Vec<_> = SERVICES.iter().map(|service| {
                let (port, until) = record.get(service)?;
                until.is_none_or(|until| !lapsed.contains(&(*service, until))).then_some(*port)
            }).collect();
            prop_assert_eq!(ports(&lineages, "alice"), expected.clone(), "at {} of {:?}", now, record);
            let next = leases().filter(|lease| !lapsed.contains(lease)).map(|(_, until)| at(until)).min();
            prop_assert_eq!(lineages.next_lapse(), next);
            if before.0 != expected {
                prop_assert!(applied.changed.contains(&id("alice")) && applied.changed.contains(&id("child")));
            }
            if renewal && before.1.is_empty() && lapsed.is_empty() {
                prop_assert!(applied.changed.is_empty(), "a renewal moves nothing: {:?}", applied.changed);
            }
        }
    }
}

#[test]
fn what_is_extended_lives_longer_and_what_never_expires_is_not_given_an_end() {
    let extended = |second| {
        let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {name: alice}\n";
        file("alice.attached.yaml", format!("{head}spec: {{expiresAt: '{}'}}\n", at(second)))
    };
    for (routing, extension, expected) in [
        (", expiresAt: '2030-01-01T00:00:00Z'", 0, Some(UnixMillis(1_893_456_000_000))),
        (", expiresAt: '2020-01-01T00:00:00Z'", 7, Some(at(7))),
        (", ttl: 5s", 0, Some(at(5))),
        (", ttl: 5s", 9, Some(at(9))),
        (", ttl: 5s, ttlFrom: use", 9, Some(at(9))),
        ("", 9, None),
    ] {
        let text = format!(
            "name: alice\nrouting: {{mode: overlay, baselineId: base{routing}}}\nservices: [{{name: a}}]\n"
        );
        let mut lineages = Lineages::default();
        lineages.apply(vec![base(), environment(text), extended(extension)]);
        let resolved = lineages.standing(&id("alice")).unwrap().resolved().unwrap();
        assert_eq!(resolved.expires_at, expected, "{routing} {extension}");
    }
}

fn told(text: &str) -> (Vec<Document>, Vec<String>) {
    let parsed = parse(&std::sync::Arc::new(Source::new("a.yaml".into(), text.to_owned(), None)));
    let told = parsed.diagnostics.iter().map(Diagnostic::short).collect();
    (parsed.documents, told)
}

#[test]
fn labels_come_from_both_places_and_what_is_none_is_kept_with_a_warning() {
    let with =
        |rest: &str| format!("name: a\n{rest}\nrouting: {{mode: baseline}}\nservices: [{{name: web}}]\n");
    let labels = |text: &str| {
        let (documents, told) = told(text);
        let [Document::Blueprint(blueprint)] = &documents[..] else { panic!("{told:?}") };
        let labels: Vec<_> = blueprint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (labels.join(","), blueprint.owner.as_deref().unwrap_or("-").to_owned(), told)
    };
    for (rest, expected, owner, warnings) in [
        ("labels: {team: pay, tier: 1, new: true, none: }", "new=true,none=,team=pay,tier=1", "-", 0),
        (
            "metadata: {labels: {team: x, a: b}}\nlabels: {team: pay}\nowner: alice",
            "a=b,team=pay",
            "alice",
            0,
        ),
        ("owner: {team: x}", "", "-", 0),
        ("labels: [a, b]", "", "-", 1),
        ("labels: {a: [b], c: d}", "c=d", "-", 1),
    ] {
        let (labels, is, told) = labels(&with(rest));
        assert_eq!((&*labels, &*is, told.len()), (expected, owner, warnings), "{rest}: {told:?}");
    }
    let enveloped = "apiVersion: overlane.dev/v1alpha1\nkind: Baseline\nmetadata: {name: a, labels: {team: pay}}\nspec: {owner: bob, services: [{name: web}]}\n";
    assert_eq!(labels(enveloped), ("team=pay".to_owned(), "bob".to_owned(), Vec::new()));
}

#[test]
fn a_ttl_counts_from_a_word_of_two_and_only_where_there_is_one() {
    let with = |rest: &str| format!("name: a\nrouting: {{{rest}}}\nservices: [{{name: web}}]\n");
    for (rest, expected) in [
        ("mode: overlay, baselineId: b, ttl: 4h, ttlFrom: use", ""),
        ("mode: overlay, baselineId: b, ttl: 4h, ttlFrom: creation", ""),
        ("mode: overlay, baselineId: b, ttl: 4h, ttlFrom: usage", "`ttlFrom: usage` is unknown"),
        ("mode: overlay, baselineId: b, ttlFrom: use", "`ttlFrom` without a `ttl`"),
        ("mode: baseline, ttlFrom: use, ttl: 4h", "`ttlFrom` does not belong in a baseline"),
        ("mode: overlay, baselineId: b, ttl: 4h, ttlfrom: use", "unknown field `ttlfrom`"),
    ] {
        let (_, told) = told(&with(rest));
        let all = told.join("\n");
        assert!(if expected.is_empty() { all.is_empty() } else { all.contains(expected) }, "{rest}: {all}");
    }
}
