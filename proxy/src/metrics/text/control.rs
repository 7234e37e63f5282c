//! What the control side adds.

use overlane_config::name::EnvironmentId;
use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge, pair};
use crate::store::cache::CacheFigures;
use crate::traces::Counts;

/// What the control side adds to a scrape.
#[derive(Debug, Clone, Default)]
pub struct ControlFigures {
    /// The generation that is published.
    pub generation: u64,
    /// How many environments are overlays.
    pub overlays: u64,
    /// Reloads that succeeded.
    pub reloads_ok: u64,
    /// Reloads with errors.
    pub reloads_failed: u64,
    /// When the last reload succeeded, in seconds since 1970.
    pub last_success: f64,
    /// Traces whose key is remembered.
    pub traces: u64,
    /// When each overlay that expires does, in seconds since 1970.
    pub expires: Vec<(EnvironmentId, f64)>,
    /// Until when the certificate in each file is valid, in seconds since 1970.
    pub certificates: Vec<(String, f64)>,
    /// Panics in our own code.
    pub panics: u64,
    /// How often certificates could not be read again; `None` where no listener speaks TLS.
    pub certificate_failures: Option<u64>,
    /// How often changed keys of tokens were of no use, where any are taken.
    pub token_key_failures: Option<u64>,
    /// Whether the store cannot be read as a whole.
    pub stale: bool,
    /// How many overlays that expired were removed from the store from here.
    pub removed: u64,
    /// How often what is in force was kept on this machine; `None` where that is not asked for.
    pub cache: Option<CacheFigures>,
    /// What became of spans; `None` where there are none.
    pub spans: Option<Counts>,
}

pub(super) fn families(control: &ControlFigures, overlay_labels: usize) -> Vec<MetricFamily> {
    let simple = |name: &str, help: &str, value: f64| {
        family(name, help, MetricType::GAUGE, vec![gauge(Vec::new(), value)])
    };
    let total = |name: &str, help: &str, count: u64| {
        family(name, help, MetricType::COUNTER, vec![counter(Vec::new(), count)])
    };
    let reloads = [("ok", control.reloads_ok), ("error", control.reloads_failed)];
    let reloads = reloads.map(|(result, count)| counter(vec![pair("result", result)], count));
    let expiring = control.expires.iter().take(overlay_labels);
    let expires = expiring.map(|(overlay, at)| gauge(vec![pair("overlay", overlay.as_str())], *at));
    let version = vec![pair("version", env!("CARGO_PKG_VERSION"))];
    vec![
        simple(
            "overlane_config_revision",
            "The generation of the routing table in force.",
            control.generation as f64,
        ),
        simple(
            "overlane_config_stale",
            "1 while the store cannot be read: what is in force may be older than what it says.",
            f64::from(u8::from(control.stale)),
        ),
        simple("overlane_overlays", "Overlays in the routing table.", control.overlays as f64),
        total(
            "overlane_expired_removed_total",
            "Overlays that had expired and that this process removed from the store.",
            control.removed,
        ),
        simple("overlane_traces", "Traces whose key is remembered.", control.traces as f64),
        total(
            "overlane_panics_total",
            "Panics in Overlane's own code: each ended one exchange, or the process.",
            control.panics,
        ),
        family(
            "overlane_config_reloads_total",
            "Reloads of the store that changed something, by result.",
            MetricType::COUNTER,
            reloads.into(),
        ),
        simple(
            "overlane_config_last_reload_success_timestamp_seconds",
            "When a reload last succeeded.",
            control.last_success,
        ),
        family(
            "overlane_overlay_expires_timestamp_seconds",
            "When overlays expire.",
            MetricType::GAUGE,
            expires.collect(),
        ),
        family(
            "overlane_build_info",
            "The version that runs; always 1.",
            MetricType::GAUGE,
            vec![gauge(version, 1.0)],
        ),
    ]
}

pub(super) fn cache_family(figures: CacheFigures) -> MetricFamily {
    let results = [("ok", figures.written), ("error", figures.failed)];
    let results = results.map(|(result, count)| counter(vec![pair("result", result)], count));
    let help = "Writes of the store's cache, by result.";
    family("overlane_cache_writes_total", help, MetricType::COUNTER, results.into())
}

pub(super) fn span_families(spans: Counts) -> [MetricFamily; 2] {
    let of = |label, counts: &[(&str, u64)]| {
        counts.iter().map(|(value, count)| counter(vec![pair(label, value)], *count)).collect()
    };
    let became = [
        ("exported", spans.exported),
        ("rejected", spans.rejected),
        ("failed", spans.failed),
        ("dropped", spans.dropped),
    ];
    [
        family(
            "overlane_traces_spans_total",
            "Spans by what became of them: taken by the collector, rejected by it, not taken in all tries, or dropped for lack of room.",
            MetricType::COUNTER,
            of("result", &became),
        ),
        family(
            "overlane_traces_exports_total",
            "Requests to the collector of spans, by result; one that fails may be repeated.",
            MetricType::COUNTER,
            of("result", &[("ok", spans.exports), ("error", spans.failures)]),
        ),
    ]
}
