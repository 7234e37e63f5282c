//! The spans of requests, as a collector gets them, and the `traceparent` that goes on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::traces::{Sampler, TraceSettings};
use overlane_config::route::Role;
use overlane_tests::otlp::{Collector, Seen, partial_success};
use overlane_tests::stage::{self, Started};

use super::hub::{ask, until};
use super::passage::{listen, tells};

const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Pingora];
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SAMPLED: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
const UNSAMPLED: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n";
const KEY: &str = "x-overlay-id: alice\r\n";
/// Nobody listens at this port, whoever gets free ones.
const NOWHERE: &str = "127.0.0.1:1";

/// Spans to a collector, sent at once.
fn to(collector: &Collector) -> TraceSettings {
    TraceSettings { every: Duration::from_millis(10), ..TraceSettings::of(&collector.url()).unwrap() }
}

/// A proxy with one listener, whose requests go to `upstream`.
fn proxy(
    engine: EngineChoice,
    traces: TraceSettings,
    role: Role,
    trust: Trust,
    upstream: SocketAddr,
) -> (Started, SocketAddr) {
    let app = matches!(role, Role::Inbound { .. }).then_some(upstream);
    let listeners = vec![stage::listener(role, "", app, trust)];
    let settings = Settings { engine, traces: Some(traces), ..Settings::in_process(listeners) };
    let started = stage::start_as(settings, stage::files("", upstream));
    let address = started.addresses()[0];
    (started, address)
}

fn gateway(engine: EngineChoice, traces: TraceSettings) -> (Started, SocketAddr) {
    proxy(engine, traces, Role::Gateway, Trust::Any, listen(tells))
}

fn inbound() -> Role {
    Role::Inbound { service: "web".parse().unwrap(), environment: "alice".parse().ok() }
}

fn outbound() -> Role {
    Role::Outbound { service: "shop".parse().ok(), environment: None }
}

/// Asks for a target; the head and the body of the answer, of which the body is the head that arrived.
fn get(address: SocketAddr, target: &str, fields: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.to_owned(), body.to_owned())
}

/// The value of a field of a head that arrived; empty where it is not there.
fn field<'h>(head: &'h str, name: &str) -> &'h str {
    let value = |line: &'h str| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then_some(value.trim())
    };
    head.lines().find_map(value).unwrap_or_default()
}

fn kind(spans: &[Seen], kind: &str, role: &str) -> Seen {
    let server =
        spans.iter().find(|span| span.kind == "SPAN_KIND_SERVER" && span.says("overlane.role") == role);
    let server = server.unwrap_or_else(|| panic!("no server of {role}: {spans:#?}"));
    match kind {
        "server" => server.clone(),
        _ => spans
            .iter()
            .find(|span| span.parent == server.id && span.kind == "SPAN_KIND_CLIENT")
            .unwrap()
            .clone(),
    }
}

/// What `/metrics` says of a series.
fn metric(started: &Started, series: &str) -> u64 {
    let (_, text) = ask(started.admin(), "GET", "/metrics", &[], "");
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {text}"))
}

fn spans(result: &str) -> String {
    format!("overlane_traces_spans_total{{result=\"{result}\"}}")
}

#[test]
fn each_hop_has_a_span_as_server_and_one_as_client_and_each_is_under_the_one_before() {
    for engine in ENGINES {
        for (first, role) in [(Role::Gateway, "gateway"), (outbound(), "outbound")] {
            let collector = Collector::start(&[]);
            let (_second, behind) = proxy(engine, to(&collector), inbound(), Trust::Any, listen(tells));
            let (_first, address) = proxy(engine, to(&collector), first, Trust::Any, behind);
            let (head, arrived) = get(address, "/pay?card=1", &format!("{KEY}{SAMPLED}tracestate: a=b\r\n"));
            assert!(head.starts_with("HTTP/1.1 200"), "{engine:?} {role}: {head}");
            let all = collector.spans(4);
            assert_eq!(all.len(), 4, "{all:#?}");
            let [edge, called] = ["server", "client"].map(|what| kind(&all, what, role));
            let [served, application] = ["server", "client"].map(|what| kind(&all, what, "inbound"));
            let parents = [&edge, &called, &served, &application].map(|span| span.parent.as_str());
            assert_eq!(parents, [CALLER, &*edge.id, &*called.id, &*served.id], "{engine:?} {role}");
            assert!(all.iter().all(|span| span.trace == TRACE && span.name == "GET" && !span.error));
            let told = format!("00-{TRACE}-{}-01", application.id);
            assert_eq!([field(&arrived, "traceparent"), field(&arrived, "tracestate")], [&told, "a=b"]);
            assert_eq!(field(&arrived, "b3"), "", "a trace that came is named as it was");
        }
    }
}

#[test]
fn spans_say_what_the_conventions_have_and_where_the_request_went() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let mut traces = to(&collector);
        traces.attributes = vec![("deployment.environment.name".to_owned(), "staging".to_owned())];
        let upstream = listen(tells);
        let (_started, address) = proxy(engine, traces, Role::Gateway, Trust::Any, upstream);
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        get(address, "/pay;jsessionid=s3cret/1?card=s3cret", &format!("{KEY}{SAMPLED}cookie: s3cret\r\n"));
        let all = collector.spans(2);
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(!format!("{all:?}").contains("s3cret"), "{all:#?}");
        let [server, client] = ["server", "client"].map(|what| kind(&all, what, "gateway"));
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.path", "/pay;jsessionid=*/1"),
            ("url.scheme", "http"),
            ("server.address", "web"),
            ("server.port", "80"),
            ("client.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("overlane.overlay", "alice"),
            ("overlane.environment", "alice"),
            ("overlane.service", "web"),
            ("overlane.via", "overlay"),
            ("overlane.reason", "owned"),
            ("overlane.generation", "1"),
            ("error.type", ""),
        ] {
            assert_eq!(server.says(key), value, "{key}: {server:#?}");
        }
        let port = upstream.port().to_string();
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.full", &*format!("http://127.0.0.1:{port}/pay;jsessionid=*/1")),
            ("server.address", "127.0.0.1"),
            ("server.port", &*port),
            ("overlane.via", "overlay"),
        ] {
            assert_eq!(client.says(key), value, "{key}: {client:#?}");
        }
        assert_eq!((server.flags, client.flags), (0x301, 0x101), "whose parent is another process's");
        let inside = |outer: (u64, u64), inner: (u64, u64)| outer.0 <= inner.0 && inner.1 <= outer.1;
        assert!(
            inside((before, after), server.time) && inside(server.time, client.time),
            "{server:?} {client:?}"
        );
        let who = ["service.name", "service.version", "deployment.environment.name"];
        let who = who.map(|key| server.resource[key].as_str());
        assert_eq!(who, ["overlane", env!("CARGO_PKG_VERSION"), "staging"]);
        assert!(server.resource.contains_key("service.instance.id"));
    }
}

#[test]
fn what_its_caller_does_not_sample_has_no_span_and_passes_as_it_came() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let (_started, address) = gateway(engine, to(&collector));
        let (_, arrived) = get(address, "/unsampled", &format!("{KEY}{UNSAMPLED}b3: 0\r\n"));
        let parent = format!("00-{TRACE}-{CALLER}-00");
        assert_eq!([field(&arrived, "traceparent"), field(&arrived, "b3")], [&parent, "0"]);
        get(address, "/sampled", SAMPLED);
        let all = collector.spans(2);
        assert!(all.iter().all(|span| !span.says("url.path").contains("unsampled")), "{all:#?}");
    }
}

#[test]
fn a_request_without_a_trace_begins_one_where_the_sampler_takes_it_and_else_stays_without() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let off = Sampler::named("parentbased_always_off", 0.0).unwrap();
        let (_off, untaken) = gateway(engine, TraceSettings { sampler: off, ..to(&collector) });
        let (_, arrived) = get(untaken, "/", "");
        assert_eq!([field(&arrived, "traceparent"), field(&arrived, "b3")], ["", ""]);
        // With a key it has one all the same, by which the key is restored: not sampled, as the sampler says.
        let (_, arrived) = get(untaken, "/", KEY);
        assert!(
            field(&arrived, "traceparent").ends_with("-00") && field(&arrived, "b3").ends_with("-0"),
            "{arrived}"
        );
        let (_on, taken) = gateway(engine, to(&collector));
        for (number, fields) in ["", KEY, "traceparent: 00-0-0-01\r\n"].into_iter().enumerate() {
            let (_, arrived) = get(taken, "/", fields);
            let all = collector.spans(2 * (number + 1)).split_off(2 * number);
            let [server, client] = ["server", "client"].map(|what| kind(&all, what, "gateway"));
            assert_eq!((&*server.parent, &server.trace), ("", &client.trace));
            assert_eq!(field(&arrived, "traceparent"), format!("00-{}-{}-01", client.trace, client.id));
            assert_eq!(field(&arrived, "b3"), format!("{}-{}-1", client.trace, client.id));
            assert_eq!(field(&arrived, "uber-trace-id"), format!("{}:{}:0:1", client.trace, client.id));
        }
        assert_eq!(collector.spans(6).len(), 6);
    }
}

#[test]
fn the_untrusted_put_nothing_into_anybodys_trace() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let (_started, address) = proxy(engine, to(&collector), Role::Gateway, Trust::Nobody, listen(tells));
        for fields in [SAMPLED, UNSAMPLED] {
            let (_, arrived) = get(address, "/", &format!("{fields}tracestate: a=b\r\n"));
            let told = field(&arrived, "traceparent");
            assert!(told.ends_with("-01") && !told.contains(TRACE) && !arrived.contains("a=b"), "{arrived}");
        }
        let all = collector.spans(4);
        let servers: Vec<_> = all.iter().filter(|span| span.kind == "SPAN_KIND_SERVER").collect();
        assert!(servers.iter().all(|span| span.parent.is_empty() && span.trace != TRACE), "{servers:#?}");
        assert_ne!(servers[0].trace, servers[1].trace);
    }
}

#[test]
fn a_trace_in_other_dialects_goes_on_in_them_and_never_falls_apart() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let (_started, address) = gateway(engine, to(&collector));
        // Nobody reads them here: what they name is neither joined nor replaced.
        let alone = format!("b3: {TRACE}-{CALLER}-1");
        let (_, arrived) = get(address, "/", &format!("{alone}\r\n"));
        assert!(arrived.contains(&alone) && field(&arrived, "traceparent").is_empty(), "{arrived}");
        let (_, arrived) = get(address, "/", &format!("{SAMPLED}{alone}\r\nx-b3-sampled: 1\r\n"));
        let client = kind(&collector.spans(2), "client", "gateway");
        assert_eq!(field(&arrived, "traceparent"), format!("00-{TRACE}-{}-01", client.id));
        assert_eq!(field(&arrived, "b3"), format!("{TRACE}-{}-1", client.id));
        assert_eq!(field(&arrived, "x-b3-sampled"), "1");
        let other = "b3: 1234567890abcdef1234567890abcdef-00f067aa0ba902b7-1";
        let (_, arrived) = get(address, "/", &format!("{SAMPLED}{other}\r\n"));
        assert!(arrived.contains(other), "another trace is somebody else's: {arrived}");
    }
}

#[test]
fn what_leaves_for_elsewhere_begins_no_trace_and_goes_on_in_its_own() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let (_started, address) =
            proxy(engine, to(&collector), outbound(), Trust::Any, ([127, 0, 0, 1], 1).into());
        let elsewhere = listen(tells);
        let (_, arrived) = get(address, &format!("http://{elsewhere}/"), "");
        assert_eq!(field(&arrived, "traceparent"), "", "{arrived}");
        let (_, arrived) = get(address, &format!("http://{elsewhere}/"), SAMPLED);
        let all = collector.spans(2);
        let client = kind(&all, "client", "outbound");
        assert_eq!(field(&arrived, "traceparent"), format!("00-{TRACE}-{}-01", client.id));
        assert_eq!((client.says("overlane.service"), all.len()), ("", 2));
    }
}

#[test]
fn a_failure_is_an_error_of_the_span_that_it_is_of() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let nowhere = NOWHERE.parse().unwrap();
        let (_started, address) = proxy(engine, to(&collector), Role::Gateway, Trust::Any, nowhere);
        assert!(get(address, "/", SAMPLED).0.starts_with("HTTP/1.1 503"));
        let all = collector.spans(2);
        for what in ["server", "client"] {
            let span = kind(&all, what, "gateway");
            assert_eq!((span.error, span.says("error.type")), (true, "refused"), "{span:#?}");
        }
        assert_eq!(kind(&all, "client", "gateway").says("http.response.status_code"), "", "nobody answered");
        let missing = listen(|mut stream| {
            let mut read = [0; 4096];
            let _ = stream.read(&mut read);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        });
        let (_started, address) = proxy(engine, to(&collector), Role::Gateway, Trust::Any, missing);
        get(address, "/", SAMPLED);
        let all = collector.spans(4).split_off(2);
        let said = ["server", "client"].map(|what| {
            let span = kind(&all, what, "gateway");
            (span.error, span.says("error.type").to_owned())
        });
        assert_eq!(said, [(false, String::new()), (true, "404".to_owned())], "as the conventions have it");
        // What the proxy refuses goes nowhere.
        get(address, "/", &format!("{SAMPLED}x-overlay-id: no id\r\n"));
        let all = collector.spans(5).split_off(4);
        let server = kind(&all, "server", "gateway");
        assert_eq!((server.says("http.response.status_code"), server.error, all.len()), ("400", false, 1));
    }
}

#[test]
fn a_collector_that_is_away_costs_requests_nothing_and_its_spans_are_counted() {
    let endpoint = format!("http://{NOWHERE}");
    let traces = TraceSettings { every: Duration::from_millis(1), ..TraceSettings::of(&endpoint).unwrap() };
    let (started, address) = gateway(EngineChoice::Auto, traces);
    for _ in 0..10 {
        assert!(get(address, "/", "").0.starts_with("HTTP/1.1 200"));
    }
    until("all are given up", || metric(&started, &spans("failed")) == 20);
    assert!(metric(&started, "overlane_traces_exports_total{result=\"error\"}") >= 5);
    assert_eq!(metric(&started, &spans("exported")), 0);
}

#[test]
fn a_collector_that_takes_nothing_in_gets_no_more_than_there_is_room_for() {
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let (started, address) = gateway(
        EngineChoice::Auto,
        TraceSettings { every: Duration::from_millis(1), ..TraceSettings::of(&endpoint).unwrap() },
    );
    let mut stream = TcpStream::connect(address).unwrap();
    let reader = stream.try_clone().unwrap();
    // Refused at once, one span each: 8192 wait, 512 are on their way at most.
    let requests = 9000;
    let read = std::thread::spawn(move || {
        let mut answers = std::io::BufReader::new(reader);
        let (mut left, mut line) = (requests, String::new());
        while left > 0 {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut answers, &mut line).unwrap(), 0);
            left -= usize::from(line.starts_with("HTTP/1.1 400"));
        }
    });
    let request = "GET / HTTP/1.1\r\nHost: web\r\nx-overlay-id: no id\r\n\r\n".repeat(100);
    for _ in 0..requests / 100 {
        stream.write_all(request.as_bytes()).unwrap();
    }
    read.join().unwrap();
    until("the rest is dropped", || metric(&started, &spans("dropped")) >= 9000 - 8192 - 512);
}

#[test]
fn what_is_refused_for_now_is_sent_again_and_what_is_refused_for_good_is_not() {
    let later = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let wrong = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let some = partial_success(1, "too long");
    let collector = Collector::start(&[later, wrong, &some]);
    let mut traces = to(&collector);
    traces.headers = vec![("authorization".parse().unwrap(), "Bearer t".parse().unwrap())];
    let (started, address) = gateway(EngineChoice::Auto, traces);
    get(address, "/refused", SAMPLED);
    until("it was sent twice, and not again", || metric(&started, &spans("failed")) == 2);
    get(address, "/taken", SAMPLED);
    assert_eq!(kind(&collector.spans(2), "server", "gateway").says("url.path"), "/taken");
    until("the answer is read", || metric(&started, &spans("rejected")) == 1);
    assert_eq!(metric(&started, &spans("exported")), 1);
    let results =
        ["ok", "error"].map(|result| format!("overlane_traces_exports_total{{result=\"{result}\"}}"));
    assert_eq!(results.map(|series| metric(&started, &series)), [1, 2]);
    for request in collector.requests() {
        assert_eq!(request.start, "POST /v1/traces HTTP/1.1");
        let said = ["content-type", "authorization"]
            .map(|name| request.values(name).collect::<Vec<_>>().join(" | "));
        assert_eq!(said, ["application/x-protobuf", "Bearer t"]);
    }
}

#[test]
fn what_waits_is_sent_before_the_process_ends() {
    let collector = Collector::start(&[]);
    let traces = TraceSettings { every: Duration::from_secs(3600), ..to(&collector) };
    let (started, address) = gateway(EngineChoice::Auto, traces);
    get(address, "/", SAMPLED);
    assert!(started.stop_in_background().join().unwrap());
    assert_eq!(collector.spans(2).len(), 2);
}

#[test]
fn the_key_is_restored_where_spans_are_made() {
    for engine in ENGINES {
        let collector = Collector::start(&[]);
        let roles = [
            Role::Inbound { service: "web".parse().unwrap(), environment: None },
            Role::Outbound { service: "web".parse().ok(), environment: None },
        ];
        // The application calls in the trace of its request, without the key.
        let (calls, upstream) =
            (std::sync::Arc::new(std::sync::Mutex::new(None::<SocketAddr>)), listen(tells));
        let own = calls.clone();
        let application = listen(move |mut stream| {
            let mut read = [0; 8192];
            let length = stream.read(&mut read).unwrap();
            let head = String::from_utf8_lossy(&read[..length]).into_owned();
            let fields = format!("traceparent: {}\r\n", field(&head, "traceparent"));
            let outbound = own.lock().unwrap().unwrap();
            let (_, body) = get(outbound, "/call", &fields);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        });
        let [listening, calling] = roles.map(|role| {
            let app = matches!(role, Role::Inbound { .. }).then_some(application);
            stage::listener(role, "", app, Trust::Any)
        });
        let settings = Settings {
            engine,
            traces: Some(to(&collector)),
            ..Settings::in_process(vec![listening, calling])
        };
        let mut files = stage::files("", upstream);
        files.retain(|file| !file.path.starts_with("alice"));
        files.push(stage::web("alice", "mode: overlay, baselineId: base", upstream));
        let started = stage::start_as(settings, files);
        let [inbound, outbound] = started.addresses()[..] else { panic!("two listeners") };
        *calls.lock().unwrap() = Some(outbound);
        for fields in [SAMPLED, ""] {
            let (_, arrived) = get(inbound, "/", &format!("x-overlay-hop: base\r\n{KEY}{fields}"));
            assert_eq!(field(&arrived, "x-overlay-id"), "alice", "{engine:?} {fields}: {arrived}");
        }
    }
}
