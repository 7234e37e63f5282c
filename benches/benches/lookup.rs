//! One routing decision: time and allocations, by the number of overlays and the depth of the lineage.
#![allow(missing_docs)]

use std::hint::black_box;

use divan::{AllocProfiler, Bencher};
use mimalloc::MiMalloc;
use overlane_benches::{baseline_text, compiled, file, id, store};
use overlane_config::carrier::{self, Keys};
use overlane_config::lineage::Lineages;
use overlane_config::route::{Decision, Listener, Request, Role, Tried, Untraced, decide};
use overlane_config::table::{Environment, RoutingTable};
use overlane_config::time::UnixMillis;

/// The allocator that ships, counted.
#[global_allocator]
static ALLOCATIONS: AllocProfiler<MiMalloc> = AllocProfiler::new(MiMalloc);

/// Overlays in the store, and ancestors of each leaf.
const STORES: [(usize, usize); 6] = [(1, 1), (16, 16), (1_000, 1), (1_000, 16), (100_000, 1), (100_000, 16)];

fn main() {
    divan::main();
}

struct Case {
    table: RoutingTable<()>,
    /// Leaf overlays in an order that no cache can guess, and a service that the lineage owns.
    asked: Vec<(String, String)>,
}

fn case((overlays, depth): (usize, usize)) -> Case {
    let mut lineages = Lineages::default();
    let applied = lineages.apply(store(overlays, depth));
    assert!(applied.diagnostics.iter().all(|diagnostic| !diagnostic.is_error()));
    let leaves = overlays / depth;
    let leaf = |n: usize| ((n.wrapping_mul(2_654_435_761)) % leaves) * depth + depth - 1;
    // Owned by the root of the lineage: the farthest ancestor.
    let service =
        |leaf: usize| format!("service-{}", ((leaf - (depth - 1)) * 7) % overlane_benches::SERVICES);
    let asked = (0..4096).map(|n| (id(leaf(n)), service(leaf(n)))).collect();
    Case { table: compiled(&lineages, &applied.changed), asked }
}

/// The table alone: an id and a service to a route.
#[divan::bench(args = STORES, sample_size = 4096)]
fn table_lookup(bencher: Bencher, store: (usize, usize)) {
    let case = case(store);
    let mut next = 0;
    bencher.bench_local(|| {
        let (id, service) = &case.asked[next % case.asked.len()];
        next += 1;
        match case.table.environment(black_box(id)) {
            Some(Environment::Overlay(overlay)) => {
                overlay.owners(black_box(service)).first().map(|owned| &owned.route.environment)
            }
            _ => None,
        }
    });
}

/// The whole decision of an outbound listener: header to keys to who serves.
#[divan::bench(args = STORES, sample_size = 4096)]
fn whole_decision(bencher: Bencher, store: (usize, usize)) {
    let case = case(store);
    let listener = Listener { role: Role::Outbound { service: None, environment: None }, baseline: None };
    let (now, tried) = (UnixMillis(0), Tried::default());
    let mut next = 0;
    bencher.bench_local(|| {
        let (id, service) = &case.asked[next % case.asked.len()];
        next += 1;
        let keys: Option<Keys> = carrier::header::read([id.as_bytes()]).ok().flatten();
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
        black_box(decide(&case.table, &listener, &request, now, &tried, &mut Untraced));
    });
}

/// The refusal of a key that nobody knows, where it is held against the most ids that it ever is, all as long
/// as they can be and all near to it.
#[divan::bench]
fn refusal_of_an_unknown_key(bencher: Bencher) {
    let id = |number: usize| format!("{}{number:03}", "overlay-".repeat(8).get(..60).unwrap_or_default());
    let overlay = |number: usize| {
        let id = id(number);
        let text = format!(
            "name: {id}\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: service-0}}]\n"
        );
        file(&id, text)
    };
    let rejecting = baseline_text(10_000).replace("{mode: baseline}", "{mode: baseline, onUnknown: reject}");
    let mut lineages = Lineages::default();
    let applied = lineages.apply((0..249).map(overlay).chain([file("staging", rejecting)]).collect());
    let table = compiled(&lineages, &applied.changed);
    let listener = Listener { role: Role::Outbound { service: None, environment: None }, baseline: None };
    let (now, tried) = (UnixMillis(0), Tried::default());
    let unknown = id(7).replace("007", "0z7");
    let keys: Option<Keys> = carrier::header::read([unknown.as_bytes()]).ok().flatten();
    bencher.bench_local(|| {
        let request = Request {
            authority: "service-0",
            path: "/",
            preview: None,
            by_browser: false,
            keys: keys.as_ref(),
            untrusted: false,
            hop: None,
            require: "",
        };
        match black_box(decide(&table, &listener, &request, now, &tried, &mut Untraced)) {
            Decision::Refuse(refusal) => assert!(refusal.hint.is_some_and(|hint| hint.contains("mean"))),
            _ => panic!("served"),
        }
    });
}
