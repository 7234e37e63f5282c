//! The text of `/metrics`: what workers counted, and what the control side knows.

mod control;
mod events;
#[cfg(test)]
mod tests;
mod workers;

use prometheus::core::Collector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

pub use control::ControlFigures;

use super::Meter;

/// The text of `/metrics`, in which so many overlays have a label value of their own.
#[must_use]
pub fn render(meter: &Meter, control: &ControlFigures, overlay_labels: usize) -> String {
    let mut families = workers::request_families(meter, overlay_labels);
    families.push(workers::added_family(&meter.besides.added));
    families.push(workers::call_family(meter));
    families.push(workers::flood_family(meter));
    families.extend(events::families(meter));
    families.extend([workers::authorizer_family(meter), workers::invalid_key_family(meter)]);
    families.extend(workers::overload_families(meter));
    families.extend(control::families(control, overlay_labels));
    families.extend(control.cache.map(control::cache_family));
    families.extend(control.spans.into_iter().flat_map(control::span_families));
    if let Some(failures) = control.token_key_failures {
        families.extend(workers::token_families(&meter.besides.tokens, failures));
    }
    if let Some(failures) = control.certificate_failures {
        families.extend(workers::tls_families(meter, &control.certificates, failures));
    }
    families.extend(process_families());
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    // Writing to memory fails only for a family without metrics; those are gone.
    let _ = TextEncoder::new().encode(&families, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn process_families() -> Vec<MetricFamily> {
    prometheus::process_collector::ProcessCollector::for_self().collect()
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(labels: Vec<LabelPair>, value: u64) -> Metric {
    let mut metric = Metric::from_label(labels);
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

/// A histogram of bounds, and of how many were at most so much.
fn histogram(
    labels: Vec<LabelPair>,
    count: u64,
    sum: f64,
    cumulative: impl Iterator<Item = (f64, u64)>,
) -> Metric {
    let buckets = cumulative.map(|(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}
