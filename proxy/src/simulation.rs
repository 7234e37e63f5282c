//! What the simulations have in common: seeds.

use std::panic::catch_unwind;

/// Runs the first seeds, so many of them as usual or as `OVERLANE_SEEDS` says, or the one that `OVERLANE_SEED` names.
///
/// # Panics
/// Where one fails; it is named.
pub(crate) fn each_seed(usual: u64, run: fn(u64)) {
    let asked = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let many = asked("OVERLANE_SEEDS").unwrap_or(usual);
    for seed in asked("OVERLANE_SEED").map_or(0..many, |seed| seed..seed + 1) {
        let ran = catch_unwind(|| run(seed));
        assert!(ran.is_ok(), "again: OVERLANE_SEED={seed} cargo test -p overlane simulation");
    }
}
