//! 100,000 overlays of three services: cold load and compile, one change, bytes per overlay.
//!
//! Run with `cargo bench -p overlane-benches --bench compile`. Times are one machine's: what counts
//! is how little the second line costs beside the first.
#![allow(missing_docs, clippy::print_stdout)]

use std::time::{Duration, Instant};

use overlane_benches::{id, overlay, store};
use overlane_config::lineage::Lineages;
use overlane_config::table::RoutingTable;

const OVERLAYS: usize = 100_000;
const CHANGES: usize = 1_000;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or_default() * 1024
}

fn micros(duration: Duration, count: usize) -> f64 {
    duration.as_secs_f64() * 1e6 / count as f64
}

fn main() -> std::io::Result<()> {
    // A process for each store: memory that the first gave back would hide what the second takes.
    if let Some(depth) = std::env::args().skip(1).find_map(|argument| argument.parse().ok()) {
        measure(depth);
        return Ok(());
    }
    for depth in ["1", "16"] {
        std::process::Command::new(std::env::current_exe()?).arg(depth).status()?;
    }
    Ok(())
}

fn measure(depth: usize) {
    let files = store(OVERLAYS, depth);
    let before = resident();
    let start = Instant::now();
    let mut lineages = Lineages::default();
    let applied = lineages.apply(files);
    let resolved = start.elapsed();
    let mut table = RoutingTable::<()>::default().compile(&lineages, &applied.changed, |_, _, _| ());
    let compiled = start.elapsed() - resolved;
    drop(applied);
    let bytes = resident().saturating_sub(before) / OVERLAYS;
    println!(
        "{OVERLAYS} overlays, depth {depth}: parse and resolve {:.0} ms, compile {:.0} ms, {bytes} bytes per overlay (lineages and table; the texts besides)",
        resolved.as_secs_f64() * 1e3,
        compiled.as_secs_f64() * 1e3
    );
    let leaf = |n: usize| ((n * 7919) % (OVERLAYS / depth)) * depth + depth - 1;
    let parent = |n: usize| if depth == 1 { "staging".to_owned() } else { id(n - 1) };
    let start = Instant::now();
    for change in 0..CHANGES {
        let number = leaf(change);
        let applied = lineages.apply(vec![overlay(number, &parent(number), 30_000 + change)]);
        table = table.compile(&lineages, &applied.changed, |_, _, _| ());
    }
    println!("  one changed overlay: {:.1} µs (mean of {CHANGES})", micros(start.elapsed(), CHANGES));
    let start = Instant::now();
    let root = (OVERLAYS / depth / 2) * depth;
    let applied = lineages.apply(vec![overlay(root, "staging", 40_000)]);
    table = table.compile(&lineages, &applied.changed, |_, _, _| ());
    println!(
        "  one changed root with {} descendants: {:.1} µs; {} environments",
        applied.changed.len() - 1,
        micros(start.elapsed(), 1),
        table.len()
    );
}
