//! A mesh of six services, each behind its own sidecar, whose applications forward everything, their tracer's header
//! in one of its dialects, a request id, or nothing: what each of them saw is compared with a naive model.
//!
//! ```text
//! web → api → ledger          web → search → ledger
//!           → users → mail
//! ```

use std::net::SocketAddr;

use overlane::correlation::CorrelationSettings;
use overlane::plane::trust::Trust;
use overlane::process::{Prepared, Running};
use overlane::settings::Settings;
use overlane_config::carrier::trace::HEADERS;
use overlane_config::route::Role;
use overlane_config::route::receipt::{self, Item, Marks};
use overlane_tests::stage;

use super::lost::{Line, field, file, local, serve};

const SERVICES: [(&str, &[&str]); 6] = [
    ("web", &["api", "search"]),
    ("api", &["ledger", "users"]),
    ("search", &["ledger"]),
    ("users", &["mail"]),
    ("ledger", &[]),
    ("mail", &[]),
];
/// What each overlay owns.
const OVERLAYS: [(&str, &[&str]); 4] = [
    ("alice", &["api", "mail"]),
    ("bob", &["ledger"]),
    ("carol", &["search", "ledger"]),
    ("dave", &["users"]),
];

/// What an application forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forwards {
    Everything,
    /// Its tracer's header, in one of the dialects.
    Trace(&'static str),
    RequestId,
    Nothing,
}

impl Forwards {
    /// Whether the key of a request comes along with its calls.
    fn keeps(self) -> bool {
        self != Self::Nothing
    }

    /// The fields of a call that a request with this head causes.
    fn fields(self, head: &str) -> String {
        let line =
            |name: &str| field(head, name).map_or(String::new(), |value| format!("{name}: {value}\r\n"));
        let trace = field(head, "traceparent").map(|value| value[3..35].to_owned());
        match (self, trace) {
            (Self::Everything, _) => {
                let ours = ["x-overlay-id", "x-overlay-hops", "baggage", "x-request-id"];
                ours.into_iter().chain(HEADERS).map(line).collect()
            }
            (Self::RequestId, _) => line("x-request-id"),
            (Self::Trace(name), Some(trace)) => format!("{name}: {}\r\n", dialect(name, &trace)),
            _ => String::new(),
        }
    }
}

/// A trace id as a tracer of this dialect writes it, with a span of its own.
fn dialect(name: &str, trace: &str) -> String {
    let low = &trace[16..];
    match name {
        "traceparent" => format!("00-{trace}-00f067aa0ba902b7-01"),
        "b3" => format!("{trace}-00f067aa0ba902b7-1"),
        "x-b3-traceid" => low.to_owned(),
        "uber-trace-id" => format!("{}:f067aa0ba902b7:0:1", trace.trim_start_matches('0')),
        "x-datadog-trace-id" => u64::from_str_radix(low, 16).unwrap().to_string(),
        "x-amzn-trace-id" => format!("Root=1-{}-{};Sampled=1", &trace[..8], &trace[8..]),
        "x-cloud-trace-context" => format!("{trace}/1;o=1"),
        _ => unreachable!("no dialect {name}"),
    }
}

/// An application of one environment, with a connection to its sidecar's outbound listener.
struct Application {
    name: &'static str,
    environment: &'static str,
    forwards: Forwards,
    calls: Line,
}

impl Application {
    /// Calls what it depends on, and tells what it saw.
    fn respond(&mut self, head: &str) -> String {
        let fields = self.forwards.fields(head);
        let callees = SERVICES.iter().find(|(name, _)| *name == self.name).unwrap().1;
        let answers: Vec<_> = callees.iter().map(|callee| self.calls.ask(callee, &fields)).collect();
        told(self.name, self.environment, field(head, "x-overlay-id"), &answers)
    }
}

/// `web@base[alice](…)`: who served, with which key, and what it heard.
fn told(service: &str, environment: &str, key: Option<&str>, answers: &[String]) -> String {
    format!("{service}@{environment}[{}]({})", key.unwrap_or("-"), answers.join(","))
}

/// Who serves a service for a key.
fn owner(service: &str, key: Option<&str>) -> &'static str {
    let owns = |(id, owned): &&(&'static str, &[&str])| Some(*id) == key && owned.contains(&service);
    OVERLAYS.iter().find(owns).map_or("base", |(id, _)| id)
}

/// The model: what must be told, and the receipts of the hops that a key reached.
fn expected(
    service: &'static str,
    key: Option<&'static str>,
    forwards: &dyn Fn(&str) -> Forwards,
) -> (String, String) {
    let environment = owner(service, key);
    let onward = match forwards(service).keeps() {
        true => key,
        // The sidecar of an overlay gives its calls that overlay's key.
        false => Some(environment).filter(|environment| *environment != "base"),
    };
    let callees = SERVICES.iter().find(|(name, _)| *name == service).unwrap().1;
    let (answers, receipts): (Vec<_>, Vec<_>) =
        callees.iter().map(|callee| expected(callee, onward, forwards)).unzip();
    let receipts: Vec<_> = receipts.into_iter().filter(|receipt| !receipt.is_empty()).collect();
    // A call that has nothing of its request cannot be told to be that request's.
    let receipts = match forwards(service).keeps() {
        true => receipts.join(","),
        false if callees.is_empty() => String::new(),
        false => "…".to_owned(),
    };
    let own = key.map_or(String::new(), |_| format!("{service}@{environment}({receipts})"));
    (told(service, environment, key, &answers), own)
}

/// The same of the receipts that came.
fn tree(list: &str) -> String {
    shown(&receipt::parse(list.as_bytes()).unwrap(), None)
}

fn shown(items: &[Item<'_>], parent: Option<&str>) -> String {
    let node = |item: &Item<'_>| {
        let calls = shown(items, item.hop);
        let missing = if item.marks.any(Marks::PARTIAL) { "…" } else { "" };
        format!("{}@{}({calls}{missing})", item.service, item.environment)
    };
    let children = items.iter().filter(|item| item.parent == parent);
    children.map(node).collect::<Vec<_>>().join(",")
}

/// The whole mesh, and where its gateway listens.
fn start(forwards: &dyn Fn(&str) -> Forwards) -> (Running, SocketAddr) {
    let baseline = SERVICES.iter().map(|(service, _)| (*service, "base"));
    let owned = OVERLAYS.iter().flat_map(|(id, owned)| owned.iter().map(|service| (*service, *id)));
    let instances: Vec<_> =
        baseline.chain(owned).map(|(service, environment)| (service, environment, local())).collect();
    let mut listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    for (service, environment, application) in &instances {
        let (service, environment) = (service.parse().unwrap(), Some(environment.parse().unwrap()));
        let outbound = Role::Outbound { service: Some(service), environment };
        let Role::Outbound { service: Some(service), environment } = outbound.clone() else { unreachable!() };
        let inbound = Role::Inbound { service, environment };
        listeners.push(stage::listener(inbound, "", Some(application.local_addr().unwrap()), Trust::Any));
        listeners.push(stage::listener(outbound, "", None, Trust::Any));
    }
    let correlation = CorrelationSettings { by_request_id: true, ..CorrelationSettings::default() };
    let prepared = Prepared::bind(Settings { correlation, ..Settings::in_process(listeners) }).unwrap();
    let addresses = prepared.addresses();
    let urls = |wanted: &str| {
        let own = instances.iter().enumerate().filter(|(_, (_, environment, _))| *environment == wanted);
        let service = |(at, (service, ..)): (usize, &(&str, &str, _))| {
            format!(
                "  - {{name: {service}, expose: {}, url: 'http://{}'}}\n",
                *service == "web",
                addresses[1 + 2 * at]
            )
        };
        own.map(service).collect::<String>()
    };
    let mut files =
        vec![file("base", &format!("name: base\nrouting: {{mode: baseline}}\nservices:\n{}", urls("base")))];
    for (id, _) in OVERLAYS {
        let text =
            format!("name: {id}\nrouting: {{mode: overlay, baselineId: base}}\nservices:\n{}", urls(id));
        files.push(file(id, &text.replace("expose: false, ", "")));
    }
    let running = prepared.start(files).unwrap();
    assert_eq!(running.control().problems(), Vec::<String>::new());
    for (at, (name, environment, socket)) in instances.into_iter().enumerate() {
        let (outbound, forwards) = (addresses[2 + 2 * at], forwards(name));
        let state = move || Application { name, environment, forwards, calls: Line::to(outbound) };
        serve(socket, state, Application::respond);
    }
    (running, addresses[0])
}

/// Asks with every key, several times at once over the same few connections.
fn check(forwards: &(dyn Fn(&str) -> Forwards + Sync)) {
    let (running, gateway) = start(forwards);
    let keys = [None, Some("alice"), Some("bob"), Some("carol"), Some("dave"), Some("nobody")];
    std::thread::scope(|scope| {
        for client in 0..4 {
            scope.spawn(move || {
                let mut line = Line::to(gateway);
                for number in 0..24 {
                    let key = keys[(client + number * 5) % keys.len()];
                    let fields = key.map_or(String::new(), |key| format!("x-overlay-id: {key}\r\n"));
                    let (head, body) = line.exchange("shop", &fields);
                    let (told, receipts) = expected("web", key, forwards);
                    assert_eq!(body, told, "{key:?}");
                    let tree = field(&head, "x-overlay-route").map_or(String::new(), tree);
                    let without = |text: &str| text.replace('…', "");
                    assert_eq!(without(&tree), without(&receipts), "{key:?}");
                    // What may be missing is said; also where it was another request's, without a key and a trace.
                    let missing = |text: &str| text.matches('…').count();
                    assert!(missing(&tree) >= missing(&receipts), "{tree} instead of {receipts}");
                }
            });
        }
    });
    // Nobody has to wait for the applications' unused connections.
    let _ = running.stop_in_background();
}

#[test]
fn where_all_forward_everything_all_keep_the_key() {
    check(&|_| Forwards::Everything);
}

#[test]
fn where_all_forward_only_their_tracers_header_all_keep_the_key_in_every_dialect() {
    for name in HEADERS {
        // The trace begins at the gateway, in the one dialect that everybody reads.
        check(&move |service| if service == "web" { Forwards::Trace(name) } else { Forwards::Everything });
    }
    check(&|_| Forwards::Trace("traceparent"));
}

#[test]
fn where_all_forward_only_the_request_id_all_keep_the_key() {
    check(&|_| Forwards::RequestId);
}

#[test]
fn where_nothing_is_forwarded_only_overlays_calls_have_a_key() {
    check(&|_| Forwards::Nothing);
}

#[test]
fn where_each_forwards_something_else_the_key_goes_as_far_as_the_model_says() {
    check(&|service| match service {
        "web" => Forwards::Trace("traceparent"),
        "api" => Forwards::RequestId,
        "search" => Forwards::Nothing,
        "users" => Forwards::Everything,
        _ => Forwards::Trace("traceparent"),
    });
}
