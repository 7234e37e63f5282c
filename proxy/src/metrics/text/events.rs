//! Events, each a series.

use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge};
use crate::metrics::{Event, Meter};

/// Levels: what begins and ends.
const LEVELS: [(&str, &str, Event, Event); 3] = [
    (
        "overlane_connections",
        "Client connections that are open.",
        Event::ConnectionAccepted,
        Event::ConnectionClosed,
    ),
    (
        "overlane_active_requests",
        "Requests that are being served.",
        Event::RequestStarted,
        Event::RequestEnded,
    ),
    (
        "overlane_tunnels",
        "Tunnels that are open: WebSockets and other upgrades.",
        Event::TunnelOpened,
        Event::TunnelClosed,
    ),
];

/// What is simply counted.
const TOTALS: [(&str, &str, Event); 21] = [
    (
        "overlane_proxy_headers_refused_total",
        "Connections that were closed since they began with no header of the PROXY protocol.",
        Event::ProxyHeaderRefused,
    ),
    (
        "overlane_streams_refused_total",
        "Requests of HTTP/2 that were refused unprocessed: a worker has `maxConnections` of them already.",
        Event::StreamRefused,
    ),
    ("overlane_connections_accepted_total", "Client connections accepted.", Event::ConnectionAccepted),
    (
        "overlane_accept_failures_total",
        "Connections that could not be accepted: the process is out of file descriptors.",
        Event::AcceptFailed,
    ),
    (
        "overlane_unknown_overlay_requests_total",
        "Requests that named an overlay that nobody knows or that expired.",
        Event::UnknownOverlay,
    ),
    (
        "overlane_untrusted_headers_total",
        "Requests whose overlay headers were removed because the sender is not trusted.",
        Event::UntrustedHeaders,
    ),
    (
        "overlane_contradicting_carriers_total",
        "Requests whose carriers named different keys; the first in order counted.",
        Event::ContradictingCarriers,
    ),
    (
        "overlane_refused_heads_total",
        "Request heads that were malformed, too large or too slow.",
        Event::HeadRefused,
    ),
    (
        "overlane_upstream_connect_failures_total",
        "Connections to upstreams that could not be made.",
        Event::ConnectFailed,
    ),
    (
        "overlane_repeats_total",
        "Requests that were sent again, since their upstream of HTTP/2 had refused them unprocessed.",
        Event::Repeated,
    ),
    (
        "overlane_repeats_refused_total",
        "Requests that were not sent again, since too many of that upstream's were already.",
        Event::RepeatRefused,
    ),
    (
        "overlane_idle_connections_closed_total",
        "Client connections that were not in use and were closed to make room for others.",
        Event::IdleClosed,
    ),
    (
        "overlane_listener_full_total",
        "Client connections that waited, since their listener had `maxConnections` on that worker.",
        Event::ListenerFull,
    ),
    (
        "overlane_client_full_total",
        "Client connections that were closed, since their client had `maxConnectionsPerClient` on that worker.",
        Event::ClientFull,
    ),
    ("overlane_held_requests_total", "Requests that waited for an upstream.", Event::Held),
    ("overlane_fallbacks_total", "Requests that fell back to another owner.", Event::FellBack),
    (
        "overlane_traces_evicted_total",
        "Traces that were forgotten before their time, because there was no room for another one.",
        Event::TraceEvicted,
    ),
    (
        "overlane_trace_conflicts_total",
        "Traces under whose id two different keys came: none of them is restored.",
        Event::TraceConflict,
    ),
    (
        "overlane_invalid_receipts_total",
        "Responses whose receipts were malformed, and left out.",
        Event::ReceiptsIgnored,
    ),
    ("overlane_loops_total", "Requests that had passed more proxies than any may.", Event::Loop),
    (
        "overlane_access_log_dropped_total",
        "Access-log lines dropped because the writer could not keep up.",
        Event::AccessLogDropped,
    ),
];

pub(super) fn families(meter: &Meter) -> Vec<MetricFamily> {
    let of = |event: Event| meter.besides.events[event as usize];
    let total =
        |(name, help, event)| family(name, help, MetricType::COUNTER, vec![counter(Vec::new(), of(event))]);
    let level = |(name, help, from, to)| {
        let now = of(from).saturating_sub(of(to)) as f64;
        family(name, help, MetricType::GAUGE, vec![gauge(Vec::new(), now)])
    };
    let mut families: Vec<_> = LEVELS.into_iter().map(level).collect();
    families.extend(TOTALS.into_iter().map(total));
    families
}
