//! Metrics: counted by each worker for itself, merged when somebody asks.
//!
//! A worker's [`Meter`] lives on its own thread: counting takes no lock and touches no cache line
//! of another thread. A scrape asks each worker for a copy. Label values are names from blueprints,
//! never bytes of a request.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Role, Via};
use prometheus::core::Collector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use tokio::sync::{mpsc, oneshot};

use crate::calls::Call;
use crate::capacity::Full;
use crate::clock::nanos;
use crate::plane::Gate;
use crate::plane::h2::budget::{Flood, Side};
use crate::plane::overload::{Limit, levels};
use crate::store::cache::CacheFigures;
use crate::tls::accept::HandshakeFailure;
use crate::tokens::Refused as RefusedToken;
use crate::traces::Counts;

/// How many overlays have a label value of their own where nobody says; the rest are counted as `_other`.
pub const OVERLAY_LABELS: usize = 1000;

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

/// Things that are simply counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was accepted.
    ConnectionAccepted,
    /// A connection ended.
    ConnectionClosed,
    /// A request of HTTP/2 was refused, since this worker has too many.
    StreamRefused,
    /// A connection did not begin with the header of the PROXY protocol that it has to begin with.
    ProxyHeaderRefused,
    /// A connection became a tunnel.
    TunnelOpened,
    /// A tunnel ended.
    TunnelClosed,
    /// A request whose head was read.
    RequestStarted,
    /// Its answer is over.
    RequestEnded,
    /// A request named an overlay that nobody knows.
    UnknownOverlay,
    /// The authorizer was asked, and gave a right.
    AuthorizerGranted,
    /// It gave none.
    AuthorizerRefused,
    /// It did not answer, or not in time.
    AuthorizerFailed,
    /// It was not asked: so many questions are open already.
    AuthorizerBusy,
    /// Overlay headers of a sender that is not trusted were removed.
    UntrustedHeaders,
    /// Two carriers of a request named different keys.
    ContradictingCarriers,
    /// A head was refused: malformed, too large, too slow.
    HeadRefused,
    /// A connection to an upstream could not be made.
    ConnectFailed,
    /// A request waited for an upstream.
    Held,
    /// A request fell back to another owner.
    FellBack,
    /// A request was sent again that its upstream had refused unprocessed.
    Repeated,
    /// It was not, since too many were.
    RepeatRefused,
    /// A connection that was not in use was closed to make room for another one.
    IdleClosed,
    /// A connection came to a listener that had as many as it may.
    ListenerFull,
    /// A connection of a client that had as many as it may.
    ClientFull,
    /// An access-log line was dropped because the writer could not keep up.
    AccessLogDropped,
    /// A trace that was in memory made room for another one before its time.
    TraceEvicted,
    /// Two keys came under one trace id.
    TraceConflict,
    /// A request had passed more proxies than any may.
    Loop,
    /// Receipts that came from upstream were malformed.
    ReceiptsIgnored,
    /// A connection could not be accepted.
    AcceptFailed,
    /// A TLS handshake from the beginning.
    Handshake,
    /// A TLS handshake that resumed a session.
    HandshakeResumed,
}

/// How often each failure occurred.
type HandshakeFailures = [u64; HandshakeFailure::ALL.len()];

/// How often tokens were refused, for each reason.
type RefusedTokens = [u64; RefusedToken::ALL.len()];

/// How often each flood was ended, of clients and of upstreams.
type Floods = [[u64; Flood::ALL.len()]; Side::ALL.len()];

/// Requests that were refused, by the limit, and by whether all of it was taken or a share of it.
type Overloads = [[u64; 2]; Limit::ALL.len()];

const EVENTS: usize = Event::HandshakeResumed as usize + 1;

/// From where a request came, and whether it goes to the application here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// From outside, through a gateway.
    Outside,
    /// From the application that the sidecar stands beside, whose service may not be told.
    Service(Option<ServiceName>),
    /// From somebody who called the service that the sidecar stands before: delivered to its application.
    Delivered,
    /// The same, and sent on to another environment.
    SentOn,
}

/// What a request is counted under, as it is at hand.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'c> {
    /// See [`Labels`].
    pub overlay: Option<&'c EnvironmentId>,
    /// See [`Labels`].
    pub service: Option<&'c ServiceName>,
    /// See [`Labels`].
    pub environment: Option<&'c EnvironmentId>,
    /// See [`Labels`].
    pub via: Option<Via>,
    /// See [`Labels`].
    pub class: u8,
    /// See [`Labels`].
    pub method: Method,
    /// The listener.
    pub gate: &'c Gate,
    /// Whether it goes to the application here.
    pub delivered: bool,
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    /// From where it came.
    pub origin: Origin,
    /// The environment that answered, or should have.
    pub environment: Option<EnvironmentId>,
    /// The overlay that the key named.
    pub overlay: Option<EnvironmentId>,
    /// The service.
    pub service: Option<ServiceName>,
    /// Whose answer it was; `None` where it was the proxy's own, or passed through.
    pub via: Option<Via>,
    /// The hundreds of the status.
    pub class: u8,
    /// The method, of a closed list.
    pub method: Method,
}

#[cfg(test)]
impl<'c> Counted<'c> {
    /// A GET with an overlay's key that the overlay answered.
    pub(crate) fn of_tests(overlay: &'c EnvironmentId, service: &'c ServiceName, gate: &'c Gate) -> Self {
        Self {
            overlay: Some(overlay),
            service: Some(service),
            environment: None,
            via: Some(Via::Overlay),
            class: 2,
            method: Method::of("GET"),
            gate,
            delivered: false,
        }
    }
}

impl Labels {
    fn of(request: &Counted<'_>) -> Self {
        let origin = match (&request.gate.listener.role, request.delivered) {
            (Role::Gateway, _) => Origin::Outside,
            (Role::Outbound { service, .. }, _) => Origin::Service(service.clone()),
            (Role::Inbound { .. }, true) => Origin::Delivered,
            (Role::Inbound { .. }, false) => Origin::SentOn,
        };
        Self {
            origin,
            overlay: request.overlay.cloned(),
            service: request.service.cloned(),
            environment: request.environment.cloned(),
            via: request.via,
            class: request.class,
            method: request.method,
        }
    }
}

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
    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        for (total, own) in self.buckets.iter_mut().zip(other.buckets) {
            *total += own;
        }
    }
}

/// What was added to requests, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Added {
    count: u64,
    nanos: u64,
    /// How many took at most as long as each of [`ADDED`], and longer than the one before.
    buckets: [u64; ADDED.len()],
}

impl Added {
    fn note(&mut self, added: Duration) {
        let nanos = nanos(added);
        self.count += 1;
        self.nanos = self.nanos.wrapping_add(nanos);
        if let Some(bucket) = ADDED.iter().position(|bound| nanos <= *bound) {
            self.buckets[bucket] += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.nanos = self.nanos.wrapping_add(other.nanos);
        for (total, own) in self.buckets.iter_mut().zip(other.buckets) {
            *total += own;
        }
    }

    fn seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Each bound in seconds, and how many took at most so long.
    fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        ADDED.iter().zip(self.buckets).map(move |(bound, own)| {
            sum += own;
            (*bound as f64 / 1e9, sum)
        })
    }
}

impl Meter {
    /// What was added to requests; nothing where there were none.
    pub(crate) fn overhead(&self) -> Option<crate::stats::Counts> {
        let added = &self.added;
        (added.count > 0).then(|| crate::stats::Counts {
            requests: added.count,
            errors: 0,
            seconds: added.seconds(),
            buckets: added.cumulative().collect(),
        })
    }

    /// Whether all workers answered.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// All requests by what they are counted under.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (&Labels, &Observed)> {
        self.requests.iter()
    }

    /// How many requests there were, by the overlay that their key named; one may come several times.
    pub(crate) fn by_overlay(&self) -> impl Iterator<Item = (&EnvironmentId, u64)> {
        self.requests.iter().filter_map(|(labels, observed)| Some((labels.overlay.as_ref()?, observed.count)))
    }
}

/// The counts of one worker, or of all.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    requests: HashMap<Labels, Observed, RandomState>,
    calls: HashMap<Call, u64, RandomState>,
    /// Keys that are no ids, by carrier.
    invalid: HashMap<Box<str>, u64, RandomState>,
    handshake_failures: HandshakeFailures,
    tokens: RefusedTokens,
    floods: Floods,
    overloads: Overloads,
    /// Requests in flight, and those of them that wait for an upstream.
    levels: [u64; 2],
    events: [u64; EVENTS],
    added: Added,
    /// How many workers did not answer.
    missing: u32,
}

impl Meter {
    /// Requests by the overlay that their key named; those without under an empty name.
    #[must_use]
    pub fn requests_by_overlay(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, observed) in &self.requests {
            let overlay = labels.overlay.as_ref().map_or_else(String::new, ToString::to_string);
            *all.entry(overlay).or_default() += observed.count;
        }
        all
    }

    /// Those of them that the overlay itself answered.
    #[must_use]
    pub fn served_by_overlay(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, observed) in &self.requests {
            if let (Some(overlay), Some(Via::Overlay)) = (&labels.overlay, labels.via) {
                *all.entry(overlay.to_string()).or_default() += observed.count;
            }
        }
        all
    }

    /// Calls of the application, and how many there were of each kind.
    pub fn calls(&self) -> impl Iterator<Item = (&Call, u64)> {
        self.calls.iter().map(|(call, count)| (call, *count))
    }
}

/// Where labels are in memory. Names are shared with the table, so this tells two sets of labels apart
/// without reading them; one name in two places is two entries, until somebody asks.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    overlay: usize,
    service: usize,
    environment: usize,
    gate: usize,
    delivered: bool,
    via: Option<Via>,
    class: u8,
    method: Method,
}

impl Place {
    fn of(counted: &Counted<'_>) -> Self {
        let place = |text: &str| text.as_ptr() as usize;
        Self {
            overlay: counted.overlay.map_or(0, |id| place(id.as_str())),
            service: counted.service.map_or(0, |name| place(name.as_str())),
            environment: counted.environment.map_or(0, |id| place(id.as_str())),
            gate: counted.gate.number,
            delivered: counted.delivered,
            via: counted.via,
            class: counted.class,
            method: counted.method,
        }
    }
}

/// What one worker counts. The labels are kept, so nobody else gets their place.
#[derive(Default)]
struct Counting {
    requests: HashMap<Place, (Labels, Observed), RandomState>,
    calls: HashMap<Call, u64, RandomState>,
    invalid: HashMap<Box<str>, u64, RandomState>,
    handshake_failures: HandshakeFailures,
    tokens: RefusedTokens,
    floods: Floods,
    overloads: Overloads,
    events: [u64; EVENTS],
    added: Added,
}

thread_local! {
    static COUNTING: RefCell<Counting> = RefCell::default();
}

/// Counts an event on this thread.
pub fn count(event: Event) {
    COUNTING.with_borrow_mut(|counting| counting.events[event as usize] += 1);
}

/// Counts on this thread a key that is no valid id, in the carrier with this name.
pub fn count_invalid_key(carrier: &str) {
    COUNTING.with_borrow_mut(|counting| match counting.invalid.get_mut(carrier) {
        Some(count) => *count += 1,
        None => {
            counting.invalid.insert(carrier.into(), 1);
        }
    });
}

/// Counts a failed handshake on this thread.
pub fn count_handshake_failure(failure: HandshakeFailure) {
    COUNTING.with_borrow_mut(|counting| counting.handshake_failures[failure as usize] += 1);
}

/// Counts on this thread a token that gives no right.
pub fn count_refused_token(why: RefusedToken) {
    COUNTING.with_borrow_mut(|counting| counting.tokens[why as usize] += 1);
}

/// Counts on this thread a connection of HTTP/2 that was ended for a flood.
pub fn count_flood(from: Side, flood: Flood) {
    COUNTING.with_borrow_mut(|counting| counting.floods[from as usize][flood as usize] += 1);
}

/// Counts on this thread a request that is refused under a limit.
pub fn count_overload(limit: Limit, full: Full) {
    let share = usize::from(full != Full::All);
    COUNTING.with_borrow_mut(|counting| counting.overloads[limit as usize][share] += 1);
}

/// Counts a call on this thread.
pub fn count_call(call: Call) {
    COUNTING.with_borrow_mut(|counting| *counting.calls.entry(call).or_default() += 1);
}

/// Counts a finished request on this thread: how long it took, and how much of that was `added` to what its upstream took,
/// where one answered.
// So that a profile shows what it costs.
#[inline(never)]
pub fn observe(request: &Counted<'_>, took: Duration, added: Option<Duration>) {
    COUNTING.with_borrow_mut(|counting| {
        if let Some(added) = added {
            counting.added.note(added);
        }
        let entry = counting.requests.entry(Place::of(request));
        let (_, observed) = entry.or_insert_with(|| (Labels::of(request), Observed::default()));
        let seconds = took.as_secs_f64();
        observed.count += 1;
        observed.seconds += seconds;
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            observed.buckets[bucket] += 1;
        }
    });
}

/// What this thread has counted.
pub(crate) fn counted() -> Meter {
    COUNTING.with_borrow(|counting| {
        let (calls, invalid) = (counting.calls.clone(), counting.invalid.clone());
        let Counting { handshake_failures, tokens, floods, overloads, events, added, .. } = *counting;
        let mut meter =
            Meter { calls, invalid, handshake_failures, tokens, floods, events, added, ..Meter::default() };
        (meter.overloads, meter.levels) = (overloads, levels());
        for (labels, observed) in counting.requests.values() {
            meter.requests.entry(labels.clone()).or_default().add(observed);
        }
        meter
    })
}

/// A method as a label: one of RFC 9110's and PATCH, else `_OTHER` (OpenTelemetry's word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(u8);

impl Method {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"];

    /// The label of this method.
    #[must_use]
    pub fn of(method: &str) -> Self {
        let known = Self::KNOWN.iter().position(|known| *known == method);
        // There are nine of them.
        Self(known.unwrap_or(Self::KNOWN.len()) as u8)
    }

    /// The one with this number.
    #[must_use]
    pub fn numbered(number: u8) -> Self {
        Self(number)
    }

    /// Its number, the same for as long as the process runs.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::KNOWN.get(usize::from(self.0)).copied().unwrap_or("_OTHER")
    }
}

/// Where a worker is asked for its counts.
pub type MeterDoor = mpsc::Sender<oneshot::Sender<Meter>>;

/// Answers scrapes on a worker's thread until all doors are gone; forgets overlays that are gone.
pub(crate) async fn answer_scrapes(
    mut requests: mpsc::Receiver<oneshot::Sender<Meter>>,
    exists: impl Fn(&EnvironmentId) -> bool,
) {
    while let Some(reply) = requests.recv().await {
        COUNTING.with_borrow_mut(|counting| {
            counting.requests.retain(|_, (labels, _)| labels.overlay.as_ref().is_none_or(&exists));
        });
        let _ = reply.send(counted());
    }
}

/// The sum of all workers' counts; a worker that does not answer within 200 ms is left out.
pub async fn gather(doors: &[MeterDoor]) -> Meter {
    let mut sum = Meter::default();
    for door in doors {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            door.send(reply).await.ok()?;
            answer.await.ok()
        };
        let Ok(Some(meter)) = tokio::time::timeout(Duration::from_millis(200), asked).await else {
            sum.missing += 1;
            continue;
        };
        for (total, own) in sum.events.iter_mut().zip(meter.events) {
            *total += own;
        }
        for (total, own) in sum.tokens.iter_mut().zip(meter.tokens) {
            *total += own;
        }
        for (total, own) in sum.handshake_failures.iter_mut().zip(meter.handshake_failures) {
            *total += own;
        }
        for (total, own) in sum.floods.as_flattened_mut().iter_mut().zip(meter.floods.as_flattened()) {
            *total += own;
        }
        for (total, own) in sum.overloads.iter_mut().flatten().zip(meter.overloads.iter().flatten()) {
            *total += own;
        }
        for (total, own) in sum.levels.iter_mut().zip(meter.levels) {
            *total += own;
        }
        sum.added.add(&meter.added);
        for (labels, own) in meter.requests {
            sum.requests.entry(labels).or_default().add(&own);
        }
        for (call, own) in meter.calls {
            *sum.calls.entry(call).or_default() += own;
        }
        for (carrier, own) in meter.invalid {
            *sum.invalid.entry(carrier).or_default() += own;
        }
    }
    sum
}

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

/// The text of `/metrics`, in which so many overlays have a label value of their own.
#[must_use]
pub fn render(meter: &Meter, control: &ControlFigures, overlay_labels: usize) -> String {
    let mut families = request_families(meter, overlay_labels);
    families.push(added_family(&meter.added));
    families.push(call_family(meter));
    families.push(flood_family(meter));
    families.extend(event_families(meter));
    families.extend(control_families(control, overlay_labels));
    families.extend(control.cache.map(cache_family));
    families.extend(control.spans.into_iter().flat_map(span_families));
    if let Some(failures) = control.token_key_failures {
        families.extend(token_families(&meter.tokens, failures));
    }
    if let Some(failures) = control.certificate_failures {
        families.extend(tls_families(meter, &control.certificates, failures));
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

fn request_families(meter: &Meter, overlay_labels: usize) -> Vec<MetricFamily> {
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

fn call_family(meter: &Meter) -> MetricFamily {
    let mut calls: Vec<_> = meter.calls.iter().collect();
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

fn flood_family(meter: &Meter) -> MetricFamily {
    let floods = Side::ALL.iter().flat_map(|side| {
        let counted = Flood::ALL.iter().map(|flood| {
            let labels = vec![pair("reason", flood.as_str()), pair("side", side.as_str())];
            counter(labels, meter.floods[*side as usize][*flood as usize])
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

fn added_family(added: &Added) -> MetricFamily {
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

fn event_families(meter: &Meter) -> Vec<MetricFamily> {
    let of = |event: Event| meter.events[event as usize];
    let total =
        |(name, help, event)| family(name, help, MetricType::COUNTER, vec![counter(Vec::new(), of(event))]);
    let level = |(name, help, from, to)| {
        let now = of(from).saturating_sub(of(to)) as f64;
        family(name, help, MetricType::GAUGE, vec![gauge(Vec::new(), now)])
    };
    let mut families: Vec<_> = LEVELS.into_iter().map(level).collect();
    families.extend(TOTALS.into_iter().map(total));
    families.extend([authorizer_family(meter), invalid_key_family(meter)]);
    families.extend(overload_families(meter));
    families
}

fn invalid_key_family(meter: &Meter) -> MetricFamily {
    let mut invalid = BTreeMap::from([("header", 0), ("baggage", 0)]);
    invalid.extend(meter.invalid.iter().map(|(carrier, count)| (&**carrier, *count)));
    let invalid = invalid.into_iter().map(|(carrier, count)| counter(vec![pair("carrier", carrier)], count));
    family(
        "overlane_invalid_keys_total",
        "Requests with a key that is no valid id, by carrier.",
        MetricType::COUNTER,
        invalid.collect(),
    )
}

fn overload_families(meter: &Meter) -> [MetricFamily; 2] {
    let refused = Limit::ALL.into_iter().flat_map(|limit| {
        ["all", "overlay"]
            .into_iter()
            .zip(meter.overloads[limit as usize])
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

fn control_families(control: &ControlFigures, overlay_labels: usize) -> Vec<MetricFamily> {
    let simple = |name: &str, help: &str, value: f64| {
        family(name, help, MetricType::GAUGE, vec![gauge(Vec::new(), value)])
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
        family(
            "overlane_expired_removed_total",
            "Overlays that had expired and that this process removed from the store.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), control.removed)],
        ),
        simple("overlane_traces", "Traces whose key is remembered.", control.traces as f64),
        family(
            "overlane_panics_total",
            "Panics in Overlane's own code: each ended one exchange, or the process.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), control.panics)],
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

fn cache_family(figures: CacheFigures) -> MetricFamily {
    let results = [("ok", figures.written), ("error", figures.failed)];
    let results = results.map(|(result, count)| counter(vec![pair("result", result)], count));
    let help = "Writes of the store's cache, by result.";
    family("overlane_cache_writes_total", help, MetricType::COUNTER, results.into())
}

fn span_families(spans: Counts) -> [MetricFamily; 2] {
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

fn authorizer_family(meter: &Meter) -> MetricFamily {
    let results = [
        ("granted", Event::AuthorizerGranted),
        ("refused", Event::AuthorizerRefused),
        ("failed", Event::AuthorizerFailed),
        ("busy", Event::AuthorizerBusy),
    ];
    let results =
        results.map(|(result, event)| counter(vec![pair("result", result)], meter.events[event as usize]));
    let help = "Questions to the authorizer, by result.";
    family("overlane_authorizer_questions_total", help, MetricType::COUNTER, results.into())
}

fn token_families(refused: &RefusedTokens, failures: u64) -> [MetricFamily; 2] {
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

fn tls_families(meter: &Meter, certificates: &[(String, f64)], failures: u64) -> [MetricFamily; 4] {
    let handshakes = [("full", Event::Handshake), ("resumed", Event::HandshakeResumed)];
    let handshakes =
        handshakes.map(|(kind, event)| counter(vec![pair("kind", kind)], meter.events[event as usize]));
    let failed = HandshakeFailure::ALL.map(|failure| {
        counter(vec![pair("reason", failure.as_str())], meter.handshake_failures[failure as usize])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(overlay: &str) -> Labels {
        Labels {
            origin: Origin::Outside,
            overlay: overlay.parse().ok(),
            service: "web".parse().ok(),
            environment: None,
            via: Some(Via::Overlay),
            class: 2,
            method: Method::of("GET"),
        }
    }

    #[test]
    fn overlays_beyond_the_bound_share_one_label_value() {
        let mut meter = Meter::default();
        let ids: Vec<EnvironmentId> =
            (0..7).map(|number| format!("o{number}").parse().expect("id")).collect();
        for id in &ids {
            meter.requests.insert(labels(id.as_str()), Observed { count: 2, ..Observed::default() });
        }
        let control = ControlFigures {
            expires: ids.iter().map(|id| (id.clone(), 1.0)).collect(),
            ..ControlFigures::default()
        };
        for (bound, others) in [(0, 14), (3, 8), (6, 2), (7, 0), (1000, 0)] {
            let text = render(&meter, &control, bound);
            let own = bound.min(ids.len());
            let series = |name: &str| text.matches(&format!("{name}{{")).count();
            assert_eq!(series("overlane_requests_total"), own + usize::from(others > 0), "{text}");
            assert_eq!(series("overlane_overlay_expires_timestamp_seconds"), own, "{text}");
            let shared = format!("overlay=\"_other\",service=\"web\",via=\"overlay\"}} {others}\n");
            assert_eq!(text.contains(&shared), others > 0, "{text}");
        }
    }

    #[test]
    fn a_method_that_is_not_known_never_becomes_a_label() {
        assert_eq!(Method::of("GET").as_str(), "GET");
        assert_eq!(Method::of("G\"ET").as_str(), "_OTHER");
        assert_eq!(Method::numbered(Method::of("PATCH").number()).as_str(), "PATCH");
    }

    #[test]
    fn buckets_are_cumulative() {
        let (overlay, service) = ("a".parse().expect("id"), "web".parse().expect("name"));
        let gate = Gate::of_tests();
        let request = Counted::of_tests(&overlay, &service, &gate);
        observe(&request, Duration::from_millis(2), Some(Duration::from_micros(60)));
        observe(&request, Duration::from_millis(200), None);
        let text = render(&counted(), &ControlFigures::default(), OVERLAY_LABELS);
        assert!(
            text.contains(
                "overlane_request_duration_seconds_bucket{service=\"web\",via=\"overlay\",le=\"0.0025\"} 1"
            ),
            "{text}"
        );
        assert!(
            text.contains("le=\"0.25\"} 2") && text.contains("_count{service=\"web\",via=\"overlay\"} 2")
        );
        let added = ["bucket{le=\"0.00005\"} 0", "bucket{le=\"0.000075\"} 1", "sum 0.00006", "count 1"];
        for line in added.map(|end| format!("overlane_added_latency_seconds_{end}")) {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
