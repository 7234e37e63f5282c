//! What workers counted that has labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use overlane_config::name::ServiceName;
use overlane_config::route::Via;
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::{counter, family, gauge, histogram, pair};
use crate::metrics::durations::{Added, BOUNDS, Observed};
use crate::metrics::{Event, Labels, Meter, RefusedTokens};
use crate::plane::h2::budget::{Flood, Side};
use crate::plane::overload::Limit;
use crate::tls::accept::HandshakeFailure;
use crate::tokens::Refused as RefusedToken;

pub(super) fn request_families(meter: &Meter, overlay_labels: usize) -> Vec<MetricFamily> {
    let overlays: BTreeSet<_> = meter.requests.keys().filter_map(|labels| labels.overlay.as_ref()).collect();
    let labelled: BTreeSet<_> = overlays.into_iter().take(overlay_labels).collect();
    let overlay = |labels: &Labels| match &labels.overlay {
        None => String::new(),
        Some(id) if labelled.contains(id) => id.to_string(),
        Some(_) => "_other".to_owned(),
    };
    // Several overlays can share `_other`: sum before writing.
    let mut totals: HashMap<(String, &str, &str, u8, &str), u64> = HashMap::new();
    let mut durations: HashMap<(&str, &str), Observed> = HashMap::new();
    for (labels, observed) in &meter.requests {
        let service = labels.service.as_ref().map_or("", ServiceName::as_str);
        let via = labels.via.map_or("none", Via::as_str);
        *totals.entry((overlay(labels), service, via, labels.class, labels.method.as_str())).or_default() +=
            observed.count;
        durations.entry((service, via)).or_default().add(observed);
    }
    let mut totals: Vec<_> = totals.into_iter().collect();
    totals.sort();
    let requests = totals.into_iter().map(|((overlay, service, via, class, method), count)| {
        let class = format!("{class}xx");
        let labels = [
            ("code_class", &*class),
            ("method", method),
            ("overlay", &*overlay),
            ("service", service),
            ("via", via),
        ];
        counter(labels.map(|(name, value)| pair(name, value)).into(), count)
    });
    let mut durations: Vec<_> = durations.into_iter().collect();
    durations.sort_by_key(|(labels, _)| *labels);
    let histograms = durations
        .into_iter()
        .map(|((service, via), took)| observed(vec![pair("service", service), pair("via", via)], &took));
    vec![
        family(
            "overlane_requests_total",
            "Requests by overlay, service, whose answer it was, status class and method.",
            MetricType::COUNTER,
            requests.collect(),
        ),
        family(
            "overlane_request_duration_seconds",
            "From the end of the request's head to the end of the response.",
            MetricType::HISTOGRAM,
            histograms.collect(),
        ),
    ]
}

pub(super) fn call_family(meter: &Meter) -> MetricFamily {
    let mut calls: Vec<_> = meter.besides.calls.iter().collect();
    calls.sort();
    let calls = calls.into_iter().map(|(call, count)| {
        let labels = [
            ("language", call.language.as_str()),
            ("peer", call.peer.as_str()),
            ("result", call.outcome.as_str()),
            ("service", call.service.as_ref().map_or("", ServiceName::as_str)),
        ];
        counter(labels.map(|(name, value)| pair(name, value)).into(), *count)
    });
    family(
        "overlane_calls_total",
        "Calls of the application, by what became of the key: kept, restored, stamped, lost, contradicting.",
        MetricType::COUNTER,
        calls.collect(),
    )
}

pub(super) fn flood_family(meter: &Meter) -> MetricFamily {
    let floods = Side::ALL.iter().flat_map(|side| {
        let counted = Flood::ALL.iter().map(|flood| {
            let labels = vec![pair("reason", flood.as_str()), pair("side", side.as_str())];
            counter(labels, meter.besides.floods[*side as usize][*flood as usize])
        });
        counted.collect::<Vec<_>>()
    });
    family(
        "overlane_http2_floods_total",
        "Connections of HTTP/2 that were ended, since their peer sent too much of what costs it nothing.",
        MetricType::COUNTER,
        floods.collect(),
    )
}

pub(super) fn added_family(added: &Added) -> MetricFamily {
    family(
        "overlane_added_latency_seconds",
        "How much later clients had the heads of responses than from the upstream itself: the time in the proxy that was no waiting for the upstream.",
        MetricType::HISTOGRAM,
        vec![histogram(Vec::new(), added.count, added.seconds(), added.cumulative())],
    )
}

fn observed(labels: Vec<LabelPair>, observed: &Observed) -> Metric {
    let mut sum = 0;
    let cumulative = BOUNDS.iter().zip(observed.buckets).map(|(bound, own)| {
        sum += own;
        (*bound, sum)
    });
    histogram(labels, observed.count, observed.seconds, cumulative)
}

pub(super) fn invalid_key_family(meter: &Meter) -> MetricFamily {
    let mut invalid = BTreeMap::from([("header", 0), ("baggage", 0)]);
    invalid.extend(meter.besides.invalid.iter().map(|(carrier, count)| (&**carrier, *count)));
    let invalid = invalid.into_iter().map(|(carrier, count)| counter(vec![pair("carrier", carrier)], count));
    family(
        "overlane_invalid_keys_total",
        "Requests with a key that is no valid id, by carrier.",
        MetricType::COUNTER,
        invalid.collect(),
    )
}

pub(super) fn overload_families(meter: &Meter) -> [MetricFamily; 2] {
    let refused = Limit::ALL.into_iter().flat_map(|limit| {
        ["all", "overlay"]
            .into_iter()
            .zip(meter.besides.overloads[limit as usize])
            .map(move |(of, count)| counter(vec![pair("limit", limit.as_str()), pair("of", of)], count))
    });
    let in_flight = [Limit::Requests, Limit::Held].into_iter().zip(meter.levels);
    let in_flight = in_flight.map(|(limit, level)| gauge(vec![pair("limit", limit.as_str())], level as f64));
    [
        family(
            "overlane_overload_refused_total",
            "Requests that were refused, by what there was too much of, and of whom: of all, or of one overlay.",
            MetricType::COUNTER,
            refused.collect(),
        ),
        family(
            "overlane_requests_in_flight",
            "Requests that have a seat, by the limit that they are held to.",
            MetricType::GAUGE,
            in_flight.collect(),
        ),
    ]
}

pub(super) fn authorizer_family(meter: &Meter) -> MetricFamily {
    let results = [
        ("granted", Event::AuthorizerGranted),
        ("refused", Event::AuthorizerRefused),
        ("failed", Event::AuthorizerFailed),
        ("busy", Event::AuthorizerBusy),
    ];
    let results = results
        .map(|(result, event)| counter(vec![pair("result", result)], meter.besides.events[event as usize]));
    let help = "Questions to the authorizer, by result.";
    family("overlane_authorizer_questions_total", help, MetricType::COUNTER, results.into())
}

pub(super) fn token_families(refused: &RefusedTokens, failures: u64) -> [MetricFamily; 2] {
    let refused =
        RefusedToken::ALL.map(|why| counter(vec![pair("reason", why.as_str())], refused[why as usize]));
    [
        family(
            "overlane_tokens_refused_total",
            "Requests whose overlay token gave no right, by reason.",
            MetricType::COUNTER,
            refused.into(),
        ),
        family(
            "overlane_token_key_reload_failures_total",
            "Changed keys of tokens that were of no use; what was last good stayed in force.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), failures)],
        ),
    ]
}

pub(super) fn tls_families(
    meter: &Meter,
    certificates: &[(String, f64)],
    failures: u64,
) -> [MetricFamily; 4] {
    let handshakes = [("full", Event::Handshake), ("resumed", Event::HandshakeResumed)];
    let handshakes = handshakes
        .map(|(kind, event)| counter(vec![pair("kind", kind)], meter.besides.events[event as usize]));
    let failed = HandshakeFailure::ALL.map(|failure| {
        counter(vec![pair("reason", failure.as_str())], meter.besides.handshake_failures[failure as usize])
    });
    let expiry = certificates.iter().map(|(name, until)| gauge(vec![pair("name", name)], *until));
    [
        family(
            "overlane_tls_handshakes_total",
            "TLS handshakes with clients, by whether they resumed a session.",
            MetricType::COUNTER,
            handshakes.into(),
        ),
        family(
            "overlane_tls_handshake_failures_total",
            "TLS handshakes with clients that failed, by reason.",
            MetricType::COUNTER,
            failed.into(),
        ),
        family(
            "overlane_certificate_expiry_timestamp_seconds",
            "Until when the certificates in force are valid, by file.",
            MetricType::GAUGE,
            expiry.collect(),
        ),
        family(
            "overlane_certificate_reload_failures_total",
            "Changed certificates, keys and authorities that were of no use; what was last good stayed in force.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), failures)],
        ),
    ]
}
