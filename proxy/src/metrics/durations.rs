//! How long requests take, and what of that is ours: sums, and how many took at most so long.

use std::time::Duration;

use crate::clock::nanos;

/// The upper bounds of the duration histogram, in seconds (OpenTelemetry's, from 5 ms, with finer ones below).
pub(crate) const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];

/// The upper bounds of what is added to requests, in nanoseconds: it is some ten microseconds, and more only where much
/// comes together.
const ADDED: [u64; 18] = [
    25_000,
    50_000,
    75_000,
    100_000,
    150_000,
    200_000,
    300_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
];

/// Requests under one set of labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Observed {
    /// How many there were.
    pub(crate) count: u64,
    /// How long they took together, in seconds.
    pub(crate) seconds: f64,
    /// How many took at most as long as each of [`BOUNDS`], and longer than the one before.
    pub(crate) buckets: [u64; BOUNDS.len()],
}

impl Observed {
    /// Counts one more, which took so long.
    pub(super) fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.seconds += seconds;
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket] += 1;
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        add_each(&mut self.buckets, &other.buckets);
    }
}

/// What was added to requests, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) count: u64,
    nanos: u64,
    /// How many took at most as long as each of [`ADDED`], and longer than the one before.
    buckets: [u64; ADDED.len()],
}

impl Added {
    /// Counts one more, to which so much was added.
    pub(super) fn note(&mut self, added: Duration) {
        let nanos = nanos(added);
        self.count += 1;
        self.nanos = self.nanos.wrapping_add(nanos);
        if let Some(bucket) = ADDED.iter().position(|bound| nanos <= *bound) {
            self.buckets[bucket] += 1;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.nanos = self.nanos.wrapping_add(other.nanos);
        add_each(&mut self.buckets, &other.buckets);
    }

    pub(super) fn seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Each bound in seconds, and how many took at most so long.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        ADDED.iter().zip(self.buckets).map(move |(bound, own)| {
            sum += own;
            (*bound as f64 / 1e9, sum)
        })
    }
}

/// Adds counts to those of the same things.
pub(super) fn add_each(totals: &mut [u64], own: &[u64]) {
    for (total, own) in totals.iter_mut().zip(own) {
        *total += own;
    }
}
