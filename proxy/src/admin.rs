//! The admin listener: probes, metrics, what is in force, explain, reload.
//!
//! It is on loopback by default. `Host` must be an address or `localhost`, so that a page in a browser
//! cannot reach it by a name of its own; what changes state wants JSON and, where one is set, the
//! token.

mod listen;
pub(crate) mod page;
mod refused;
mod watch;

pub(crate) use listen::{accept_each, in_time, serve};
pub(crate) use refused::{as_problem, invalid, problem, refused};

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use overlane_config::carrier::{Carrier, Carriers};
use overlane_config::route::Role;
use overlane_config::table::Environment;
use overlane_config::url::split_authority;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::api::{self, Api, Operations};
use crate::control::{Control, Report, Trigger};
use crate::decisions::Decisions;
use crate::hub::tokens::Right;
use crate::logs;
use crate::metrics::{self, ControlFigures, MeterDoor};
use crate::plane::Gate;
use crate::plane::drain::{Drain, Stage};
use crate::snapshot::Snapshot;
use crate::store::behind::Behind;
use crate::store::cache::Cache;
use crate::tls::credentials::Credentials;
use crate::tls::follow::Files;
use crate::tls::upstreams::Upstreams;
use crate::tokens::keys::Tokens;

/// The largest body of a request, in bytes: questions are heads of requests and messages.
pub(crate) const BODY_BYTES: usize = 256 * 1024;

/// The most who look on at once as decisions are taken.
pub(crate) const TAPS: usize = 32;

/// A request to read the store now; answered when it was.
pub type ReloadRequest = (Trigger, oneshot::Sender<Report>);

/// What is asked of this process, and no hub has.
pub(crate) fn looking() -> Operations<Admin> {
    vec![
        ("get", "/api/v1/watch", get(watch::rules)),
        ("get", "/config_dump", get(config_dump)),
        ("get", "/logging", get(logging)),
    ]
}

/// The same that changes something.
pub(crate) fn changing() -> Operations<Admin> {
    vec![("post", "/api/v1/reload", post(reload)), ("put", "/logging", put(change_logging))]
}

/// What the admin listener shows and does.
#[derive(Clone)]
pub struct Admin {
    /// The control side.
    pub control: Arc<Control>,
    /// The listeners.
    pub gates: Vec<Arc<Gate>>,
    /// Where the workers are asked for their counts.
    pub doors: Vec<MeterDoor>,
    /// Where keys are read and written.
    pub carriers: Arc<Carriers>,
    /// Where a reload is asked for.
    pub reload: mpsc::Sender<ReloadRequest>,
    /// The end of the process.
    pub drain: Drain,
    /// The token for what changes state.
    pub token: Option<Arc<str>>,
    /// What listeners show that speak TLS.
    pub tls: Option<Arc<Credentials>>,
    /// How upstreams are spoken to in TLS.
    pub upstreams: Arc<Upstreams>,
    /// By which tokens are verified.
    pub tokens: Option<Arc<Tokens>>,
    /// All that is read from files that may change: certificates, authorities, keys, tokens.
    pub files: Files,
    /// Where what is in force is kept for a start without the store.
    pub cache: Option<Arc<Cache>>,
    /// The store, where there is one.
    pub behind: Option<Behind>,
    /// What this process is called.
    pub instance: Arc<str>,
    /// The last decisions.
    pub decisions: Arc<Decisions>,
    /// What became of spans, where there are any.
    pub spans: Option<Arc<crate::traces::Figures>>,
    /// Room for those who look on as decisions are taken.
    pub taps: Arc<Semaphore>,
    /// How many overlays have a label value of their own in metrics.
    pub overlay_labels: usize,
}

impl Admin {
    /// The port of the gateway of this process, where it is one.
    pub(crate) fn gateway_port(&self) -> Option<u16> {
        let gateway = self.gates.iter().find(|gate| gate.role() == "gateway")?;
        Some(gateway.address.tcp()?.port())
    }

    /// Everything.
    pub fn router(self) -> Router {
        let open = if self.token.is_some() { Right::Read } else { Right::Write };
        let [reading, asking, writing] = Api { admin: self.clone(), fleet: None, open }.routers();
        let own = |operations| api::router(operations).with_state(self.clone());
        let api = own(changing())
            .merge(writing)
            .layer(from_fn_with_state(self.clone(), require_token))
            .merge(asking)
            .layer(DefaultBodyLimit::max(BODY_BYTES))
            .merge(own(looking()))
            .merge(reading);
        Router::new()
            .merge(page::router())
            .merge(api)
            .merge(self.probes())
            .layer(from_fn(require_host))
            .layer(map_response(as_problem))
    }

    /// Only what may be reachable from other machines.
    pub fn probes(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text))
            .route("/version", get(async || axum::Json(json!({ "version": env!("CARGO_PKG_VERSION") }))))
            .fallback(async || {
                problem(
                    StatusCode::NOT_FOUND,
                    "there is no such page; try /ui/, /readyz, /metrics, /config_dump, /version",
                )
            })
            .with_state(self)
    }

    /// Why this process should get no new requests, if so.
    fn unready(&self) -> Option<&'static str> {
        if self.drain.stage() > Stage::Serving {
            return Some("draining");
        }
        let snapshot = self.control.published().load();
        let served = |gate: &Arc<Gate>| snapshot.table.baseline(gate.listener.baseline.as_ref()).is_some();
        (!self.gates.iter().all(served)).then_some("a listener has no baseline yet")
    }

    /// What is wrong now.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.control.problems().into_iter().chain(self.files.problems()).collect()
    }

    /// The control side's part of a scrape.
    fn figures(&self) -> ControlFigures {
        let certificates = self.tls.iter().flat_map(|tls| tls.certificates());
        let until = certificates.map(|status| (status.path, status.until.0 as f64 / 1000.0));
        ControlFigures {
            certificates: until.collect(),
            certificate_failures: self.tls.as_ref().map(|tls| tls.failures()),
            token_key_failures: self.tokens.as_ref().map(|tokens| tokens.failures()),
            cache: self.cache.as_ref().map(|cache| cache.figures()),
            spans: self.spans.as_ref().map(|spans| spans.counts()),
            ..self.control.figures()
        }
    }
}

async fn require_host(request: Request, next: Next) -> Response {
    match foreign(request.headers(), None, true) {
        Some(why) => problem(StatusCode::FORBIDDEN, why),
        None => next.run(request).await,
    }
}

/// Why a request could be of a page of another site: that cannot reach this by a name of its own that leads here, nor
/// by sending forms here.
pub(crate) fn foreign(headers: &HeaderMap, authority: Option<&str>, only_here: bool) -> Option<&'static str> {
    let field = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let authority = authority.or(field(header::HOST)).unwrap_or_default();
    let host = split_authority(authority).map_or("", |(host, _)| host);
    if only_here && host != "localhost" && host.parse::<IpAddr>().is_err() {
        return Some("the Host must be an IP address or localhost");
    }
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, origin)| origin == authority);
    let other = field(header::ORIGIN).is_some_and(|origin| !own(origin));
    other.then_some("pages of other sites may ask nothing here")
}

pub(crate) async fn require_json(request: Request, next: Next) -> Response {
    // What else there is has no body, and no page of another site can send it without asking first.
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return next.run(request).await;
    }
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type
        .split(';')
        .next()
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    {
        return next.run(request).await;
    }
    problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json")
}

async fn require_token(
    State(admin): State<Admin>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &admin.token else {
        return next.run(request).await;
    };
    if same(bearer(&headers), token.as_bytes()) {
        return next.run(request).await;
    }
    problem(StatusCode::UNAUTHORIZED, "send Authorization: Bearer with the admin token")
}

/// The token that a request shows.
pub(crate) fn bearer(headers: &HeaderMap) -> &[u8] {
    let shown = headers.get(header::AUTHORIZATION);
    shown.and_then(|shown| shown.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default()
}

/// Compares without telling by its time how much was right.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[derive(Deserialize)]
struct Verbose {
    verbose: Option<String>,
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<Verbose>) -> Response {
    let (status, mut text) = match admin.unready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    if query.verbose.is_some() {
        let generation = admin.control.published().load().generation;
        text.push_str(&format!("generation {generation}\n"));
        for problem in admin.problems() {
            text.push_str(&format!("problem: {problem}\n"));
        }
    }
    (status, text).into_response()
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    let meter = metrics::gather(&admin.doors).await;
    let now = Instant::now();
    // One memory is shared by a sidecar's listeners; inbound is the one that fills it.
    let inbound = admin.gates.iter().filter(|gate| matches!(gate.listener.role, Role::Inbound { .. }));
    let traces = inbound.map(|gate| gate.correlation.len(now) as u64).sum();
    let text = metrics::render(&meter, &ControlFigures { traces, ..admin.figures() }, admin.overlay_labels);
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn reload(State(admin): State<Admin>) -> Response {
    let files = admin.files.clone();
    // It ends before the report, which names what is wrong with certificates as well.
    let _ = tokio::task::spawn_blocking(move || files.look()).await;
    let (reply, report) = oneshot::channel();
    if admin.reload.send((Trigger::Request, reply)).await.is_err() {
        return problem(StatusCode::CONFLICT, "this process has no store to read");
    }
    match report.await {
        Ok(mut report) => {
            report.problems.extend(admin.files.problems());
            axum::Json(report).into_response()
        }
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "the process is stopping"),
    }
}

/// What is logged.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logging {
    filter: String,
}

const NO_LOG: &str = "this process does not log by itself";

async fn logging() -> Response {
    match logs::filter() {
        Some(filter) => axum::Json(Logging { filter }).into_response(),
        None => problem(StatusCode::CONFLICT, NO_LOG),
    }
}

async fn change_logging(body: String) -> Response {
    let Logging { filter } = match serde_json::from_str(&body) {
        Ok(logging) => logging,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if logs::filter().is_none() {
        return problem(StatusCode::CONFLICT, NO_LOG);
    }
    match logs::change(&filter) {
        Ok(()) => logging().await,
        Err(why) => problem(StatusCode::BAD_REQUEST, &why),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
    id: Option<String>,
}

async fn config_dump(State(admin): State<Admin>, Query(only): Query<Only>) -> Response {
    let snapshot = admin.control.published().load_full();
    let wanted = |id: &str| only.id.as_deref().is_none_or(|only| only == id);
    let gates: Vec<_> = admin.gates.iter().map(|gate| listener_value(gate, &snapshot)).collect();
    let environments: serde_json::Map<String, Value> = snapshot
        .table
        .environments()
        .filter(|(id, _)| wanted(id.as_str()))
        .map(|(id, environment)| (id.to_string(), environment_value(environment)))
        .collect();
    axum::Json(json!({
        "generation": snapshot.generation,
        "listeners": gates,
        "carriers": carriers_value(&admin.carriers),
        "environments": environments,
        "certificates": admin.tls.as_ref().map(|tls| certificates_value(tls)),
        "problems": admin.problems(),
    }))
    .into_response()
}

fn listener_value(gate: &Gate, snapshot: &Snapshot) -> Value {
    json!({
        "role": gate.role(),
        "address": gate.address.to_string(),
        "baseline": snapshot.table.baseline(gate.listener.baseline.as_ref()).map(|baseline| baseline.id.to_string()),
        "application": gate.app.as_ref().map(|app| app.urls().iter().map(ToString::to_string).collect::<Vec<_>>()),
        "trust": gate.trust.to_string(),
        "tls": gate.tls.is_some(),
    })
}

fn certificates_value(tls: &Credentials) -> Value {
    let certificates = tls.certificates().into_iter().map(|status| {
        json!({ "certificate": status.path, "names": status.names, "validUntil": status.until.to_string() })
    });
    certificates.collect()
}

fn carriers_value(carriers: &Carriers) -> Value {
    let names = |list: &[Carrier]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "read": names(carriers.read_list()),
        "write": names(carriers.written()),
        "keepFor": carriers.keep_for.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn environment_value(environment: &Environment<Arc<crate::upstream::Upstream>>) -> Value {
    let route = |route: &Arc<overlane_config::table::Route<Arc<crate::upstream::Upstream>>>| {
        let endpoints = route.upstream.endpoints();
        let addresses = endpoints.as_ref().map(|endpoints| {
            endpoints.list.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
        });
        json!({
            "service": route.service.to_string(),
            "environment": route.environment.to_string(),
            "urls": route.urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "addresses": addresses,
            "problem": endpoints.as_ref().and_then(|endpoints| endpoints.problem.clone()),
            "declared": route.declared.to_string(),
        })
    };
    match environment {
        Environment::Baseline(baseline) => json!({
            "kind": "Baseline",
            "header": baseline.header.to_string(),
            "declared": baseline.declared.to_string(),
            "services": baseline.routes().map(route).collect::<Vec<_>>(),
        }),
        Environment::Overlay(overlay) => json!({
            "kind": "Overlay",
            "baseline": overlay.baseline.to_string(),
            "lineage": overlay.ancestors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "expiresAt": overlay.expires_at.map(|at| at.to_string()),
            "declared": overlay.declared.to_string(),
            "services": overlay.owned().iter().map(|owned| route(&owned.route)).collect::<Vec<_>>(),
        }),
        Environment::Refused(diagnostics) => json!({
            "kind": "Refused",
            "problems": diagnostics.iter().map(overlane_config::diagnostic::Diagnostic::short).collect::<Vec<_>>(),
        }),
    }
}
