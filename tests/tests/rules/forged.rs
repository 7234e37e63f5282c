//! Everything of ours that somebody who is not trusted can forge, in every form and protocol, on each engine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use overlane::control::Trigger;
use overlane::correlation::CorrelationSettings;
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::carrier::Carriers;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;

const PATIENCE: Duration = Duration::from_secs(10);
/// Who is trusted; from any other address nobody is.
const TRUSTED: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 1];
/// The trace of a request of a trusted client, which has the key.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// What is configured to carry the key.
const CARRIERS: [&str; 6] =
    ["header", "baggage", "cookie:o", "tracestate:ov", "header:x-preview", "signadot"];

/// The fields of a request that a stranger sends. In none of them may `alice` reach anybody.
const FORGED: &[&str] = &[
    "x-overlay-id: alice",
    "X-OVERLAY-ID:alice",
    "x-overlay-id: alice\r\nx-overlay-id: alice",
    "x-overlay-id: nobody, alice",
    "x-overlay-id:\r\nx-overlay-id: alice",
    "x-overlay-id: alice\r\nConnection: x-overlay-id",
    "Connection: keep-alive, x-overlay-hop\r\nx-overlay-hop: alice",
    "x-overlay-hop: alice",
    "x-overlay-hop: base\r\nx-overlay-id: alice",
    "x-overlay-require: *",
    "x-overlay-require: web\r\nx-overlay-id: alice",
    "x-overlay-hops: 31",
    "x-overlay-hops: 32",
    "x-overlay-hops: 99999999999999999999",
    "x-overlay-route: web;env=alice;via=overlay;reason=owned",
    "baggage: overlay-id=alice",
    "Baggage: a=1, overlay-id=alice;p=q ,b=2",
    "baggage: a=1\r\nbaggage: overlay-id=alice",
    "baggage: overlay-id = alice",
    "baggage: overlay-id=%61lice, overlay-id=alice",
    "cookie: a=1; o=alice; b=2",
    "Cookie: o=alice\r\ncookie: o=alice",
    "tracestate: ov=alice,a=b",
    "x-preview: alice",
    "X-Preview: alice\r\nConnection: close, x-preview",
    "tracestate: sd-sandbox=alice",
    "baggage: sd-sandbox=alice,sd-routing-key=alice",
    "x_overlay_id: alice",
    "x-overlay_id: alice",
    "X_OVERLAY_HOP: alice",
    "x_overlay_require: alice",
    "traceparent: 00-{trace}-00f067aa0ba902b7-01",
    "b3: {trace}-00f067aa0ba902b7-1",
    "x-b3-traceid: {trace}\r\nx-b3-spanid: 00f067aa0ba902b7",
    "uber-trace-id: {trace}:00f067aa0ba902b7:0:1",
    "x-request-id: {trace}",
    "x-datadog-trace-id: 11803532876627986230\r\nx-datadog-tags: _dd.p.tid=4bf92f3577b34da6",
    "x-amzn-trace-id: Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Sampled=1",
    "x-cloud-trace-context: {trace}/67667974448284343;o=1",
    "x-forwarded-for: 127.0.0.2\r\nx-overlay-id: alice",
    "forwarded: for=127.0.0.2\r\nx-real-ip: 127.0.0.2\r\nx-overlay-id: alice",
    "true-client-ip: 127.0.0.2\r\ncf-connecting-ip: 127.0.0.2\r\nx-overlay-id: alice",
];

/// What only HTTP/1.1 can say: whole requests.
const FORGED_HTTP1: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n x-overlay-id: alice\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id : alice\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\nx-overlay-id: alice\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rx-overlay-id: alice\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx-overlay-id: alice\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: x-overlay-hop\r\n\r\n0\r\nx-overlay-hop: alice\r\nbaggage: overlay-id=alice\r\nx_overlay_id: alice\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nx-preview: alice\r\n\r\n",
];

/// A service that keeps everything that it was sent.
struct Service {
    address: SocketAddr,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Service {
    /// Answers each head with its name, and with a receipt that it has no right to give.
    fn new(name: &'static str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let all = said.clone();
        thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                let said = all.clone();
                thread::spawn(move || Self::serve(stream, name, &said));
            }
        });
        Self { address, said }
    }

    fn serve(mut stream: TcpStream, name: &str, said: &Mutex<Vec<u8>>) {
        let mut buffer = [0; 65536];
        let mut open = Vec::new();
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            said.lock().unwrap().extend_from_slice(&buffer[..read]);
            open.extend_from_slice(&buffer[..read]);
            while let Some(end) = whole(&open) {
                open.drain(..end);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nx-overlay-route: deep;env=forged\r\nContent-Length: {}\r\n\r\n{name}",
                    name.len()
                );
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }

    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.said.lock().unwrap())).to_ascii_lowercase()
    }
}

/// Where the first request ends, if it is here.
fn whole(read: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(read).to_ascii_lowercase();
    let head = text.find("\r\n\r\n")? + 4;
    if text[..head].contains("transfer-encoding: chunked") {
        let last = head + text[head..].find("0\r\n")?;
        let end = text[last..].find("\r\n\r\n")?;
        return Some(last + end + 4);
    }
    let length = text[..head].lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    Some(head + length.unwrap_or(0)).filter(|end| *end <= read.len())
}

/// A gateway, and the sidecar of the baseline's `web`; the overlay `alice` has a `web` of its own.
struct Place {
    running: Started,
    base: Service,
    alice: Service,
}

impl Place {
    fn new(engine: EngineChoice, traces: usize) -> Self {
        let (base, alice) = (Service::new("base"), Service::new("alice"));
        let trust: Trust = "127.0.0.2/32".parse().unwrap();
        let inbound = Role::Inbound { service: "web".parse().unwrap(), environment: None };
        let listeners = vec![
            stage::listener(Role::Gateway, "", None, trust.clone()),
            stage::listener(inbound, "", Some(base.address), trust),
        ];
        let carriers = CARRIERS.map(str::to_owned);
        let carriers = Carriers::parse(Some(&carriers), Some(&["header".to_owned(), "baggage".to_owned()]));
        let settings = Settings {
            engine,
            carriers: carriers.unwrap().into(),
            correlation: CorrelationSettings {
                traces,
                by_request_id: true,
                ..CorrelationSettings::default()
            },
            ..Settings::in_process(listeners)
        };
        let files = vec![
            stage::web("base", "mode: baseline", base.address),
            stage::web("alice", "mode: overlay, baselineId: base", alice.address),
        ];
        let place = Self { running: stage::start_as(settings, files.clone()), base, alice };
        place.running.control().apply(&files, Trigger::Change);
        place
    }

    fn listeners(&self) -> [SocketAddr; 2] {
        self.running.addresses().try_into().unwrap()
    }

    /// A trusted request with the key, so that there is something to be gained by its trace.
    fn begin(&self) {
        let fields = format!(
            "x-overlay-id: alice\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nx-request-id: {TRACE}"
        );
        for listener in self.listeners() {
            let answer = ask(
                TRUSTED,
                listener,
                &format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\nConnection: close\r\n\r\n"),
            );
            assert!(answer.ends_with("alice"), "{answer}");
        }
        self.forget();
    }

    fn forget(&self) {
        self.base.take();
        self.alice.take();
    }

    /// What a stranger got who sent `what`: nothing of the key, and nobody else did.
    fn check(&self, what: &str, answer: &str) -> Result<(), String> {
        let (base, alice) = (self.base.take(), self.alice.take());
        // Who requires an overlay that it may not choose is told so.
        let forbidden =
            answer.starts_with("HTTP/1.1 403") && what.to_ascii_lowercase().contains("x-overlay-require:");
        let refused = answer.starts_with("HTTP/1.1 400") || forbidden || answer.is_empty();
        let served = answer.starts_with("HTTP/1.1 200") && answer.ends_with("base");
        let answered = answer.to_ascii_lowercase();
        let wrong = match () {
            () if !alice.is_empty() => "it reached the overlay",
            () if !refused && !served => "it changed the answer",
            // A head is on its way before the end of its body is read; without that it is no request.
            () if refused && !base.is_empty() && !base.ends_with("chunked\r\n\r\n") => {
                "it was refused and arrived"
            }
            () if answered.contains("x-overlay-route") => "receipts were shown",
            () if base.contains("alice") || base.contains("_overlay") => "it arrived",
            () if base.contains(TRACE) || base.contains("11803532876627986230") => "its trace arrived",
            () if base.lines().any(|line| line.starts_with("x-overlay-") && line != "x-overlay-hops: 1") => {
                "something of ours arrived"
            }
            () => return Ok(()),
        };
        Err(format!("{what:?}: {wrong}\n  answer: {answer:?}\n  base: {base:?}\n  alice: {alice:?}"))
    }
}

/// Asks from an address of this machine.
fn ask(from: [u8; 4], to: SocketAddr, request: &str) -> String {
    let mut stream = ask::from(from, to);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The same in HTTP/2; an answer as HTTP/1.1 has it, or nothing where the stream was refused.
async fn ask_http2(to: SocketAddr, fields: &str) -> String {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let mut request = http::Request::get("http://x/");
    for line in fields.split("\r\n") {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name.to_ascii_lowercase(), value.trim());
    }
    // What belongs to one connection cannot be said, not even by this client.
    let Ok((answer, _)) = client.send_request(request.body(()).unwrap(), true) else { return String::new() };
    let Ok(answer) = answer.await else { return String::new() };
    let (head, mut body) = answer.into_parts();
    let mut text = format!("HTTP/1.1 {}\r\n{:?}\r\n\r\n", head.status, head.headers);
    while let Some(Ok(part)) = body.data().await {
        text.push_str(&String::from_utf8_lossy(&part));
    }
    text
}

#[test]
fn nothing_that_strangers_forge_means_anything_or_arrives_anywhere() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, 1024);
        place.begin();
        for listener in place.listeners() {
            for fields in FORGED {
                let fields = fields.replace("{trace}", TRACE);
                let close = if fields.to_ascii_lowercase().contains("connection:") {
                    ""
                } else {
                    "Connection: close\r\n"
                };
                let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n{close}\r\n");
                wrong.extend(place.check(&request, &ask(STRANGER, listener, &request)).err());
                let answer = runtime.block_on(ask_http2(listener, &fields));
                wrong.extend(place.check(&format!("HTTP/2 {fields}"), &answer).err());
                tried += 2;
            }
            for request in FORGED_HTTP1 {
                wrong.extend(place.check(request, &ask(STRANGER, listener, request)).err());
                tried += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
}

/// How many traces strangers name; `.ci/full` has them name a million.
fn flood() -> usize {
    std::env::var("OVERLANE_TRACES").map_or(5_000, |traces| traces.parse().unwrap())
}

#[test]
fn a_flood_of_traces_of_strangers_evicts_none_of_the_trusted() {
    let place = Place::new(EngineChoice::Auto, 64);
    place.begin();
    let [_, inbound] = place.listeners();
    let metric = |name: &str| ask::metric(place.running.admin(), name).unwrap();
    let remembered = metric("overlane_traces");
    let mut stream = TcpStream::connect(inbound).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let (mut buffer, mut answers) = ([0; 65536], 0);
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            answers += buffer[..read].windows(4).filter(|part| *part == b"base").count();
        }
        answers
    });
    for number in 0..flood() {
        let close = if number + 1 == flood() { "Connection: close\r\n" } else { "" };
        let trace = format!(
            "traceparent: 00-{number:032x}-00f067aa0ba902b7-01\r\nx-request-id: {number}\r\nx-overlay-id: alice\r\n"
        );
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{trace}{close}\r\n").as_bytes()).unwrap();
        if number % 1000 == 0 {
            place.forget();
        }
    }
    assert!(reading.join().unwrap() >= flood() - 1, "all but those that two reads cut are seen");
    assert_eq!((metric("overlane_traces"), metric("overlane_traces_evicted_total")), (remembered, 0));
    place.forget();
    let lost = format!(
        "GET / HTTP/1.1\r\nHost: x\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
    );
    assert!(ask(TRUSTED, inbound, &lost).ends_with("alice"), "the trusted one is still known");
}
