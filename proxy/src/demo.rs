//! `overlane demo`: three small services, each behind its own sidecar, and an overlay of one of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::Full;
use overlane_config::carrier::baggage;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::ROUTE_HEADER;
use overlane_config::route::receipt::{self, Item};
use overlane_config::url::{Scheme, Url};
use tempfile::TempDir;

use crate::admin::page::PAGE;
use crate::calls::{Call, Outcome};
use crate::client;
use crate::metrics::{self, MeterDoor};
use crate::process::Running;
use crate::stack::{Instance, Stack};
use crate::store::StoreAddress;

const BASELINE: &str = "staging";
const OVERLAY: &str = "alice-payments";
const KEY_HEADER: &str = "x-overlay-id";
/// How often it is told what became of keys.
const TELL: Duration = Duration::from_secs(1);
/// Who calls whom.
const CHAIN: [&str; 3] = ["web", "payments-api", "ledger"];

/// What a service forwards of its request's headers, as far as overlays are concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Forwards {
    /// Only what its tracer does.
    #[default]
    Trace,
    /// Nothing.
    Nothing,
    /// The key, in header and baggage, and the trace.
    Everything,
}

impl Forwards {
    fn headers(self) -> &'static [&'static str] {
        match self {
            Self::Trace => &["traceparent"],
            Self::Nothing => &[],
            Self::Everything => &[KEY_HEADER, "baggage", "traceparent"],
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Trace => "web forwards only its tracer's `traceparent`: its sidecar restores the key.",
            Self::Nothing => "web forwards nothing: the key is lost there, and `overlane doctor` says so.",
            Self::Everything => "All forward the key.",
        }
    }
}

/// A running demo. Its blueprints are in a folder of its own, which goes with it.
pub struct Demo {
    running: Running,
    gateway: SocketAddr,
    store: TempDir,
    /// Where the overlay's ledger is, which its blueprint does not name yet.
    spare_ledger: SocketAddr,
    /// The small services run here.
    services: tokio::runtime::Runtime,
    /// What the first of them forwards.
    forwards: Forwards,
}

/// One small service.
struct Service {
    name: &'static str,
    environment: &'static str,
    /// The service that it calls, and the outbound listener that it calls through.
    next: Option<(&'static str, SocketAddr)>,
    forwards: Forwards,
}

impl Demo {
    /// Starts everything; the gateway and admin listener take the usual ports where they are free.
    ///
    /// # Errors
    /// No socket, thread or folder can be had.
    pub fn start(forwards: Forwards) -> io::Result<Self> {
        let services = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let who = [
            (CHAIN[0], BASELINE),
            (CHAIN[1], BASELINE),
            (CHAIN[2], BASELINE),
            (CHAIN[1], OVERLAY),
            (CHAIN[2], OVERLAY),
        ];
        let mut sockets = Vec::new();
        let mut instances = Vec::new();
        for (service, environment) in who {
            let socket = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
            socket.set_nonblocking(true)?;
            let app =
                Url { scheme: Scheme::Http, host: "127.0.0.1".into(), port: socket.local_addr()?.port() };
            instances.push(Instance {
                service: service_name(service)?,
                environment: environment_id(environment)?,
                app,
            });
            sockets.push(socket);
        }
        let stack = bind(environment_id(BASELINE)?, instances)?;
        for (at, (socket, (name, environment))) in sockets.into_iter().zip(who).enumerate() {
            let next = CHAIN.iter().skip_while(|known| **known != name).nth(1);
            let next = next.map(|next| (*next, stack.outbound(at)));
            let forwards = if name == CHAIN[0] { forwards } else { Forwards::Everything };
            services.spawn(serve(socket, Arc::new(Service { name, environment, next, forwards })));
        }
        let store = tempfile::Builder::new().prefix("overlane-demo-").tempdir()?;
        let (gateway, spare_ledger) = (stack.gateway(), stack.inbound(4));
        std::fs::write(
            store.path().join(format!("{BASELINE}.yaml")),
            stack.blueprint(&environment_id(BASELINE)?),
        )?;
        std::fs::write(overlay_file(store.path()), overlay(&stack)?)?;
        let address = StoreAddress::directory(store.path());
        let running = stack.into_prepared().with_store(address).start(Vec::new())?;
        running.runtime().spawn(tell_calls(running.doors().to_vec()));
        Ok(Self { running, gateway, store, spare_ledger, services, forwards })
    }

    /// What to try, for people.
    #[must_use]
    pub fn welcome(&self) -> String {
        let (gateway, admin) = (self.gateway, self.running.admin());
        let file = overlay_file(self.store.path());
        let mut text = String::new();
        let _ = write!(
            text,
            "\
Three services call each other: web → payments-api → ledger, each behind its own sidecar.
`{BASELINE}` is the baseline; the overlay `{OVERLAY}` owns only a payments-api of its own.
{forwards}

  the baseline   curl http://{gateway}/
  the overlay    curl -i -H '{KEY_HEADER}: {OVERLAY}' http://{gateway}/
  in a browser   http://web--{OVERLAY}.localhost:{port}/
  why            overlane explain --admin {admin} -H '{KEY_HEADER}: {OVERLAY}' --service ledger
  look at it     http://{admin}{PAGE}    in a browser
  inside         curl http://{admin}/config_dump    curl http://{admin}/metrics

Now change it while it runs. A ledger of the overlay already listens; let the overlay own it:

  printf '  - name: ledger\\n    url: http://{ledger}\\n' >> {file}

and ask again: no request is lost, and the ledger's line changes.

Ctrl-C ends the demo.
",
            port = gateway.port(),
            forwards = self.forwards.told(),
            ledger = self.spare_ledger,
            file = file.display(),
        );
        text
    }

    /// Makes the calls itself and checks the answers; the report, and whether all were right.
    #[must_use]
    pub fn check(&self) -> (String, bool) {
        let mut report = String::new();
        let mut right = true;
        let lost = self.forwards == Forwards::Nothing;
        let mut expect = |what: &str, key: Option<&str>, chain: &str, receipt: Option<&str>| {
            let (body, header) = match self.services.block_on(get(self.gateway, key)) {
                Ok(answer) => answer,
                Err(why) => (why, None),
            };
            // The receipts alone say what the services say: as far as the key reached.
            let told = if lost { format!("{}@{BASELINE}", CHAIN[0]) } else { chain.to_owned() };
            let fine = body.trim_end() == chain
                && header.as_deref().and_then(entrance).as_deref() == receipt
                && header.as_deref().is_none_or(|header| path(header) == told);
            right &= fine;
            let _ =
                writeln!(report, "{} {what}\n    {}", if fine { "ok  " } else { "FAIL" }, body.trim_end());
            if let Some(header) = &header {
                let _ = writeln!(report, "    {ROUTE_HEADER}: {header}");
            }
            if !fine {
                let _ = writeln!(
                    report,
                    "    expected: {chain}\n    expected receipt: {}",
                    receipt.unwrap_or("none")
                );
            }
        };
        let plain = chain([BASELINE; 3]);
        expect("without a key, the baseline answers", None, &plain, None);
        let receipt = |reason: &str| format!("web;env={BASELINE};via=baseline;reason={reason}");
        expect(
            match lost {
                false => "with the overlay's key, only payments-api is another",
                true => "the overlay's key is lost behind web, so the baseline answers",
            },
            Some(OVERLAY),
            &chain(if lost { [BASELINE; 3] } else { [BASELINE, OVERLAY, BASELINE] }),
            Some(&receipt("not-owned")),
        );
        expect(
            "with a key that nobody knows, the baseline answers and says so",
            Some("bob-search"),
            &plain,
            Some(&receipt("unknown")),
        );
        let edited = self.edit();
        expect(
            match lost {
                false => "after an edit of the blueprint, the ledger is the overlay's too",
                true => "and the overlay's ledger is not reached either",
            },
            Some(OVERLAY),
            &chain(if lost { [BASELINE; 3] } else { [BASELINE, OVERLAY, OVERLAY] }),
            Some(&receipt("not-owned")),
        );
        if let Err(why) = edited {
            let _ = writeln!(report, "FAIL the edit was not taken in: {why}");
            right = false;
        }
        let wanted = match self.forwards {
            Forwards::Trace => Outcome::Restored,
            Forwards::Nothing => Outcome::Lost,
            Forwards::Everything => Outcome::Kept,
        };
        let calls = self.services.block_on(calls(self.running.doors()));
        right &= calls.iter().any(|(call, _)| call.outcome == wanted && call.peer.as_str() == CHAIN[1]);
        for (call, count) in calls {
            let _ = writeln!(report, "{count:>4} {}", told(&call));
        }
        (report, right)
    }

    /// Lets the overlay own the spare ledger, and waits until that is in force.
    fn edit(&self) -> Result<(), String> {
        let file = overlay_file(self.store.path());
        let mut generations = self.running.control().published().generations();
        let before = *generations.borrow_and_update();
        let mut text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        text.push_str(&format!("  - name: ledger\n    url: http://{}\n", self.spare_ledger));
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        self.services.block_on(async {
            let published = generations.wait_for(|generation| *generation > before);
            match tokio::time::timeout(Duration::from_secs(10), published).await {
                Ok(Ok(_)) => Ok(()),
                _ => Err("no new generation within 10 s".to_owned()),
            }
        })
    }

    /// The process behind the demo.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Stops everything and removes the folder.
    pub fn stop(self) {
        self.running.stop();
        self.services.shutdown_background();
    }
}

/// What became of the key in the calls so far, and how often.
async fn calls(doors: &[MeterDoor]) -> BTreeMap<Call, u64> {
    metrics::gather(doors).await.calls().map(|(call, count)| (call.clone(), count)).collect()
}

fn told(call: &Call) -> String {
    let caller = call.service.as_ref().map_or("?", ServiceName::as_str);
    let what = match call.outcome {
        Outcome::Kept => "the key was kept",
        Outcome::Restored => "the key was restored by the trace",
        Outcome::Stamped => "the key of the caller's own environment was given",
        Outcome::Lost => "the key was lost",
        Outcome::Unclear => "the key may be lost",
        Outcome::Contradicting => "the key contradicts the trace",
    };
    format!("{caller} → {}: {what}", call.peer)
}

/// Tells when keys were restored or lost, as long as the process runs.
async fn tell_calls(doors: Vec<MeterDoor>) {
    let mut before = BTreeMap::new();
    loop {
        tokio::time::sleep(TELL).await;
        let now = calls(&doors).await;
        for (call, count) in &now {
            let more = count - before.get(call).copied().unwrap_or(0).min(*count);
            if more > 0 && call.outcome != Outcome::Kept {
                tracing::info!(calls = more, "{}", told(call));
            }
        }
        before = now;
    }
}

/// Who served the entrance: the last receipt, without what is said of its place in the tree.
fn entrance(receipts: &str) -> Option<String> {
    let last = receipt::parse(receipts.as_bytes()).ok()?.pop()?;
    let Item { service, environment, via, reason, .. } = last;
    Some(format!("{service};env={environment};via={};reason={reason}", via.as_str()))
}

/// Who served, from the entrance on, as the receipts have it; each hop makes one call here.
fn path(receipts: &str) -> String {
    let items = receipt::parse(receipts.as_bytes()).unwrap_or_default();
    let called_by = |hop: Option<&str>| items.iter().find(|item| item.parent == hop);
    let hops = std::iter::successors(called_by(None), |item| called_by(Some(item.hop?)));
    let shown: Vec<_> = hops.map(|item| format!("{}@{}", item.service, item.environment)).collect();
    shown.join(" → ")
}

fn chain(environments: [&str; 3]) -> String {
    let hops: Vec<_> = CHAIN
        .iter()
        .zip(environments)
        .map(|(service, environment)| format!("{service}@{environment}"))
        .collect();
    hops.join(" → ")
}

fn service_name(text: &str) -> io::Result<ServiceName> {
    text.parse().map_err(io::Error::other)
}

fn environment_id(text: &str) -> io::Result<EnvironmentId> {
    text.parse().map_err(io::Error::other)
}

/// The usual ports where both are free, else any.
fn bind(baseline: EnvironmentId, instances: Vec<Instance>) -> io::Result<Stack> {
    let usual = |text: &str| text.parse::<SocketAddr>().map_err(io::Error::other);
    let (gateway, admin) = (usual(crate::settings::DEFAULT_GATEWAY)?, usual(crate::settings::DEFAULT_ADMIN)?);
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Stack::bind(baseline.clone(), instances.clone(), gateway, admin)
        .or_else(|_| Stack::bind(baseline, instances, free, free))
}

fn overlay_file(store: &Path) -> std::path::PathBuf {
    store.join(format!("{OVERLAY}.yaml"))
}

/// The overlay's blueprint, without the ledger that listens already: that one is for the edit.
fn overlay(stack: &Stack) -> io::Result<String> {
    let whole = stack.blueprint(&environment_id(OVERLAY)?);
    let cut = whole.find("  - name: ledger").unwrap_or(whole.len());
    Ok(whole[..cut].to_owned())
}

async fn serve(socket: std::net::TcpListener, service: Arc<Service>) {
    let Ok(socket) = tokio::net::TcpListener::from_std(socket) else {
        return;
    };
    let router = Router::new().fallback(page).with_state(service);
    // It ends with the runtime that it runs on.
    let _ = axum::serve(socket, router).await;
}

/// Says who answers and, behind an arrow, what the next service said.
async fn page(State(service): State<Arc<Service>>, request: Request) -> Response {
    let own = format!("{}@{}", service.name, service.environment);
    let Some((next, through)) = service.next else {
        return format!("{own}\n").into_response();
    };
    match call(next, through, service.forwards, request.headers()).await {
        Ok(body) => format!("{own} → {body}").into_response(),
        Err(why) => (StatusCode::BAD_GATEWAY, format!("{own} → {next} failed: {why}\n")).into_response(),
    }
}

async fn call(
    next: &str,
    through: SocketAddr,
    forwards: Forwards,
    headers: &HeaderMap,
) -> Result<String, String> {
    let mut request = http::Request::get(format!("http://{next}/")).header(header::HOST, next);
    for name in forwards.headers() {
        for value in headers.get_all(*name) {
            request = request.header(*name, value);
        }
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let response = client::send(&through.to_string(), request).await?;
    let body = String::from_utf8_lossy(response.body()).into_owned();
    if response.status().is_success() { Ok(body) } else { Err(body) }
}

/// Asks the gateway for the page; the body, and the receipt.
async fn get(gateway: SocketAddr, key: Option<&str>) -> Result<(String, Option<String>), String> {
    let mut request = http::Request::get("/").header(header::HOST, gateway.to_string());
    if let Some(key) = key {
        request = request.header("baggage", format!("{}={key}", baggage::MEMBER));
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let response = client::send(&gateway.to_string(), request).await?;
    let receipt =
        response.headers().get(ROUTE_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok((String::from_utf8_lossy(response.body()).into_owned(), receipt))
}
