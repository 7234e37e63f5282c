//! Decisions against a naive walk of the lineage, on random stores.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use overlane_config::carrier::Keys;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange, Lineages};
use overlane_config::route::{Decision, Listener, Request, Role, Served, Tried, Untraced, decide};
use overlane_config::table::RoutingTable;
use overlane_config::time::UnixMillis;
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const SERVICES: [&str; 4] = ["a", "b", "c", "d"];

/// An overlay of a random store: number n is called `on`, and its parent has a smaller number.
#[derive(Debug, Clone)]
struct Random {
    parent: usize,
    owns: [bool; 4],
    expired: bool,
    fallback: bool,
}

fn random() -> impl Strategy<Value = Random> {
    (any::<usize>(), any::<[bool; 4]>(), prop::bool::weighted(0.2), any::<bool>())
        .prop_map(|(parent, owns, expired, fallback)| Random { parent, owns, expired, fallback })
}

/// The parent of overlay `n`: `None` is the baseline.
fn parent(store: &[Random], n: usize) -> Option<usize> {
    (store[n].parent % (n + 1)).checked_sub(1)
}

fn name(n: Option<usize>) -> String {
    n.map_or("base".to_owned(), |n| format!("o{n}"))
}

/// The baseline has `a`, `b` and `c`; `d` can only be an overlay's.
fn files(store: &[Random]) -> Vec<FileChange> {
    let file = |id: &str, text: String| {
        let path: Arc<str> = format!("{id}.yaml").into();
        let source = Source::new(path.clone(), text, None);
        FileChange { path, content: Content::Text(Arc::new(source)) }
    };
    let services = |names: &mut dyn Iterator<Item = &str>| {
        names.map(|name| format!("{{name: {name}, url: 'http://h'}}")).collect::<Vec<_>>().join(", ")
    };
    let base = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{}]\n",
        services(&mut SERVICES[..3].iter().copied())
    );
    let overlays = store.iter().enumerate().map(|(n, overlay)| {
        let owned = services(&mut SERVICES.into_iter().zip(overlay.owns).filter(|(_, owns)| *owns).map(|(name, _)| name));
        let expiry = if overlay.expired { ", expiresAt: '2020-01-01T00:00:00Z'" } else { "" };
        let policy = if overlay.fallback { "fallback" } else { "fail" };
        let (id, parent) = (name(Some(n)), name(parent(store, n)));
        file(&id, format!("name: {id}\nrouting: {{mode: overlay, baselineId: {parent}, onUnavailable: {policy}{expiry}}}\nservices: [{owned}]\n"))
    });
    std::iter::once(file("base", base)).chain(overlays).collect()
}

/// The overlay and its ancestors below the baseline, nearest first; empty once one of them expired.
fn lineage(store: &[Random], n: usize) -> Vec<usize> {
    let chain: Vec<_> = std::iter::successors(Some(n), |n| parent(store, *n)).collect();
    if chain.iter().any(|n| store[*n].expired) { Vec::new() } else { chain }
}

/// Environment, via and reason by the words of the design; `None` where nobody has the service.
fn naive(
    store: &[Random],
    keys: &[usize],
    service: usize,
    unavailable: &[usize],
) -> Option<(String, &'static str, &'static str)> {
    let mut missed = None;
    for &key in keys {
        let Some(overlay) = store.get(key) else {
            missed = missed.or(Some("unknown"));
            continue;
        };
        let chain = lineage(store, key);
        if chain.is_empty() {
            missed = missed.or(Some("expired"));
            continue;
        }
        let owners: Vec<_> = chain.into_iter().filter(|n| store[*n].owns[service]).collect();
        if owners.is_empty() {
            continue;
        }
        let tried = |n: &&usize| overlay.fallback && unavailable.contains(n);
        let Some(owner) = owners.iter().find(|n| !tried(n)) else {
            return (service < 3).then(|| (name(None), "baseline", "refused"));
        };
        let passed_over = *owner != owners[0];
        let (via, natural) = if *owner == key { ("overlay", "owned") } else { ("ancestor", "inherited") };
        return Some((name(Some(*owner)), via, if passed_over { "refused" } else { natural }));
    }
    let reason = if keys.is_empty() { "no-key" } else { missed.unwrap_or("not-owned") };
    (service < 3).then(|| (name(None), "baseline", reason))
}

fn served(
    table: &RoutingTable<()>,
    keys: &[usize],
    service: &str,
    unavailable: &[usize],
) -> Option<(String, &'static str, &'static str)> {
    let listener = Listener { role: Role::Outbound { service: None, environment: None }, baseline: None };
    let ids: Vec<_> = keys.iter().map(|n| name(Some(*n))).collect();
    let keys = Keys::parse([ids.join(",").as_bytes()]).unwrap();
    let request = Request {
        authority: service,
        path: "/",
        preview: None,
        by_browser: false,
        keys: keys.as_ref(),
        untrusted: false,
        hop: None,
        require: "",
    };
    let tried = Tried {
        unavailable: unavailable.iter().map(|n| name(Some(*n)).parse().unwrap()).collect(),
        because: (!unavailable.is_empty()).then_some(overlane_config::route::Reason::Refused),
    };
    match decide(table, &listener, &request, NOW, &tried, &mut Untraced) {
        Decision::Serve(Served { environment, via, reason, .. }) => {
            Some((environment.to_string(), via.as_str(), reason.as_str()))
        }
        Decision::PassThrough(_) => None,
        Decision::Refuse(_) => None,
    }
}

fn compiled(
    lineages: &Lineages,
    table: &RoutingTable<()>,
    applied: &overlane_config::lineage::Applied,
) -> RoutingTable<()> {
    table.compile(lineages, &applied.changed, |_, _, _| ())
}

proptest! {
    #[test]
    fn the_nearest_owner_in_the_lineage_serves_and_never_anybody_sideways(
        store in prop::collection::vec(random(), 1..8),
        keys in prop::collection::vec(0usize..10, 0..4),
        unavailable in prop::collection::vec(0usize..8, 0..3),
    ) {
        let mut distinct = Vec::new();
        keys.iter().for_each(|key| if !distinct.contains(key) { distinct.push(*key) });
        let mut lineages = Lineages::default();
        let applied = lineages.apply(files(&store));
        let table = compiled(&lineages, &RoutingTable::default(), &applied);
        for (at, service) in SERVICES.into_iter().enumerate() {
            let by_table = served(&table, &distinct, service, &unavailable);
            prop_assert_eq!(&by_table, &naive(&store, &distinct, at, &unavailable), "{} for {:?}", service, distinct);
            if let Some((environment, ..)) = by_table {
                let within = |key: &usize| store.get(*key).is_some() && lineage(&store, *key).iter().any(|n| name(Some(*n)) == environment);
                prop_assert!(environment == "base" || distinct.iter().any(within), "{environment} is sideways");
            }
        }
    }

    #[test]
    fn files_in_any_order_and_any_batches_mean_the_same(
        before in prop::collection::vec(random(), 1..8),
        after in prop::collection::vec(random(), 1..8),
        order in any::<prop::sample::Index>(),
        batch in 1usize..4,
    ) {
        let mut cold = Lineages::default();
        let applied = cold.apply(files(&after));
        let cold_table = compiled(&cold, &RoutingTable::default(), &applied);

        let mut warm = Lineages::default();
        let mut table = RoutingTable::default();
        // First another store, then this one, begun anywhere and taken in batches; what is left over goes.
        let mut changes = files(&before);
        let mut second = files(&after);
        let start = order.index(second.len());
        second.rotate_left(start);
        changes.extend(second);
        let gone = (after.len()..before.len()).map(|n| FileChange { path: format!("o{n}.yaml").into(), content: Content::Gone });
        changes.extend(gone);
        for batch in changes.chunks(batch) {
            let applied = warm.apply(batch.to_vec());
            table = compiled(&warm, &table, &applied);
        }
        let standing = |lineages: &Lineages| -> BTreeMap<String, bool> {
            lineages.standings().map(|(id, standing)| (id.to_string(), standing.resolved().is_some())).collect()
        };
        prop_assert_eq!(standing(&warm), standing(&cold));
        for key in 0..after.len() {
            for service in SERVICES {
                prop_assert_eq!(served(&table, &[key], service, &[]), served(&cold_table, &[key], service, &[]));
            }
        }
    }

    #[test]
    fn no_request_makes_the_decision_panic(authority in ".{0,80}", path in ".{0,80}", require in ".{0,40}", hop in prop::option::of(".{0,40}"), key in "[a-z0-9]{1,63}") {
        let mut lineages = Lineages::default();
        let applied = lineages.apply(files(&[Random { parent: 0, owns: [true; 4], expired: false, fallback: true }]));
        let table = compiled(&lineages, &RoutingTable::default(), &applied);
        let keys = Keys::parse([key.as_bytes()]).unwrap();
        let request = Request { authority: &authority, path: &path, preview: None, by_browser: false, keys: keys.as_ref(), untrusted: false, hop: hop.as_deref(), require: &require };
        for role in [Role::Gateway, Role::Outbound { service: None, environment: None }, Role::Inbound { service: "a".parse().unwrap(), environment: None }] {
            let listener = Listener { role, baseline: None };
            let mut steps = Vec::new();
            decide(&table, &listener, &request, NOW, &Tried::default(), &mut steps);
        }
    }
}
