//! What was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// The longest latency that is told apart: an hour.
const LONGEST: u64 = 3_600_000_000_000;
/// The percentiles that are told, and their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// Why a request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// The connection was closed before the answer was whole.
    Closed,
    /// The answer did not come in time.
    Timeout,
    /// The answer was no HTTP/1.1.
    Malformed,
}

impl Failure {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
        }
    }
}

/// The counts and latencies of one measurement.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Nanoseconds from the intended time of a request to the end of its answer. Requests that were
    /// not sent or not answered in time are in it with the time that they had waited by then.
    pub latency: Histogram<u64>,
    /// Nanoseconds by which the generator itself was late for requests whose connection was free.
    pub lag: Histogram<u64>,
    /// Answers by status.
    pub status: BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub failures: BTreeMap<Failure, u64>,
    /// Requests that were due and found no free connection until the end.
    pub unsent: u64,
    /// Connections that were made again.
    pub reconnects: u64,
    /// Bytes of the answers, heads included.
    pub bytes: u64,
    /// Answers, those during the warmup included.
    pub answers: u64,
    /// From the end of the warmup to the last answer, or to the end where that is later.
    pub span: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            latency: histogram(),
            lag: histogram(),
            status: BTreeMap::new(),
            failures: BTreeMap::new(),
            unsent: 0,
            reconnects: 0,
            bytes: 0,
            answers: 0,
            span: Duration::ZERO,
        }
    }

    /// Counts an answer.
    pub fn answered(&mut self, status: u16, latency: Duration) {
        *self.status.entry(status).or_default() += 1;
        record(&mut self.latency, latency);
    }

    /// Counts a request without an answer. One that waited in vain waited at least that long.
    pub fn failed(&mut self, failure: Failure, waited: Duration) {
        *self.failures.entry(failure).or_default() += 1;
        if failure == Failure::Timeout {
            record(&mut self.latency, waited);
        }
    }

    /// Counts a request that could not be sent. It waited at least that long.
    pub fn unsent(&mut self, waited: Duration) {
        self.unsent += 1;
        record(&mut self.latency, waited);
    }

    /// Counts how late the generator was.
    pub fn late(&mut self, lag: Duration) {
        record(&mut self.lag, lag);
    }

    /// Takes in what another thread measured at the same time.
    pub fn merge(&mut self, other: &Self) {
        let span = self.span.max(other.span);
        self.append(other);
        self.span = span;
    }

    /// Takes in what was measured at another time.
    pub fn append(&mut self, other: &Self) {
        // All have the same bounds, so nothing can be out of range.
        let _ = self.latency.add(&other.latency);
        let _ = self.lag.add(&other.lag);
        for (status, count) in &other.status {
            *self.status.entry(*status).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        self.unsent += other.unsent;
        self.reconnects += other.reconnects;
        self.bytes += other.bytes;
        self.answers += other.answers;
        self.span += other.span;
    }

    /// Requests that were answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.status.values().sum()
    }

    /// Requests that were sent and got no answer.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers per second.
    #[must_use]
    pub fn rps(&self) -> f64 {
        if self.span.is_zero() { 0.0 } else { self.requests() as f64 / self.span.as_secs_f64() }
    }

    /// A percentile of the latency in microseconds; `None` where nothing was measured.
    #[must_use]
    pub fn percentile(&self, percentile: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| micros(self.latency.value_at_percentile(percentile)))
    }

    /// The longest latency in microseconds; `None` where nothing was measured.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        (!self.latency.is_empty()).then(|| micros(self.latency.max()))
    }

    /// The counts and latencies as JSON.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let status: Map<_, _> =
            self.status.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
        let kinds: Map<_, _> =
            self.failures.iter().map(|(failure, count)| (failure.name().to_owned(), json!(count))).collect();
        let value = json!({
            "duration_s": round_off(self.span.as_secs_f64()),
            "requests": self.requests(),
            "errors": self.errors(),
            "error_kinds": kinds,
            "unsent": self.unsent,
            "reconnects": self.reconnects,
            "status": status,
            "bytes": self.bytes,
            "rps": round_off(self.rps()),
            "latency_us": summary(&self.latency),
            "lag_us": summary(&self.lag),
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!("fixed bounds are good"))
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(LONGEST).max(1));
}

fn micros(nanos: u64) -> f64 {
    round_off(nanos as f64 / 1000.0)
}

/// Three digits behind the point are enough.
pub(super) fn round_off(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// All `null` where nothing was measured.
fn summary(histogram: &Histogram<u64>) -> Value {
    let some = |value: f64| if histogram.is_empty() { Value::Null } else { json!(round_off(value / 1000.0)) };
    let mut map = Map::new();
    map.insert("min".to_owned(), some(histogram.min() as f64));
    for (name, percentile) in PERCENTILES {
        map.insert(name.to_owned(), some(histogram.value_at_percentile(percentile) as f64));
    }
    map.insert("max".to_owned(), some(histogram.max() as f64));
    map.insert("mean".to_owned(), some(histogram.mean()));
    Value::Object(map)
}
