//! Stores for the benches: as large as asked, and the same each time.

use std::sync::Arc;

use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange, Lineages};
use overlane_config::name::EnvironmentId;
use overlane_config::table::RoutingTable;

/// Services that each overlay owns.
pub const OWNED: usize = 3;
/// Services of the baseline.
pub const SERVICES: usize = 30;

/// A file of a store.
#[must_use]
pub fn file(name: &str, text: String) -> FileChange {
    let path: Arc<str> = format!("{name}.yaml").into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

/// The blueprint of the baseline, whose services are on ports from `port`.
#[must_use]
pub fn baseline_text(port: usize) -> String {
    let mut text = "name: staging\nrouting: {mode: baseline}\nservices:\n".to_owned();
    for service in 0..SERVICES {
        text.push_str(&format!(
            "  - {{name: service-{service}, url: 'http://127.0.0.1:{}'}}\n",
            port + service
        ));
    }
    text
}

/// The baseline.
#[must_use]
pub fn baseline() -> FileChange {
    file("staging", baseline_text(10_000))
}

/// The id of the overlay `number`.
#[must_use]
pub fn id(number: usize) -> String {
    format!("overlay-{number}")
}

/// The service that the overlay `number` owns as its `owned`-th.
#[must_use]
pub fn service(number: usize, owned: usize) -> String {
    format!("service-{}", (number * 7 + owned) % SERVICES)
}

/// The blueprint of the overlay `number`, which owns as many services on ports from `port`.
#[must_use]
pub fn overlay_text(number: usize, parent: &str, owned: usize, port: usize) -> String {
    let id = id(number);
    let mut text = format!("name: {id}\nrouting:\n  mode: overlay\n  baselineId: {parent}\nservices:\n");
    for owned in 0..owned {
        let service = service(number, owned);
        text.push_str(&format!("  - name: {service}\n    url: http://127.0.0.1:{}\n", port + owned));
    }
    text
}

/// The overlay `number`, which owns [`OWNED`] services on ports from `port`.
#[must_use]
pub fn overlay(number: usize, parent: &str, port: usize) -> FileChange {
    file(&id(number), overlay_text(number, parent, OWNED, port))
}

/// A store of `overlays` overlays in lineages of `depth` ancestors (the baseline is one of them).
#[must_use]
pub fn store(overlays: usize, depth: usize) -> Vec<FileChange> {
    let parent =
        |number: usize| if number.is_multiple_of(depth) { "staging".to_owned() } else { id(number - 1) };
    let overlays = (0..overlays).map(|number| overlay(number, &parent(number), 20_000));
    std::iter::once(baseline()).chain(overlays).collect()
}

/// The store's table, with nothing attached to routes.
#[must_use]
pub fn compiled(
    lineages: &Lineages,
    changed: &std::collections::BTreeSet<EnvironmentId>,
) -> RoutingTable<()> {
    RoutingTable::default().compile(lineages, changed, |_, _, _| ())
}
