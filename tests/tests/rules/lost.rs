//! The key is never lost: a load of many overlays over the same few connections, through an application that forwards
//! its tracer's header and nothing else, or not even that.
//!
//! `OVERLANE_REQUESTS` sets how many; `.ci/full` asks for a million.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use overlane::correlation::CorrelationSettings;
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask::{self, head};

const OVERLAYS: usize = 1000;
/// Connections on each side; requests of all overlays share them.
const CONNECTIONS: usize = 16;

fn requests() -> usize {
    std::env::var("OVERLANE_REQUESTS").map_or(10_000, |count| count.parse().unwrap())
}

/// The value of one of a head's fields.
pub(super) fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A connection over which whole exchanges go, one after the other.
pub(super) struct Line {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Line {
    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    pub(super) fn to(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// Sends a request and gives the body of its answer.
    pub(super) fn ask(&mut self, host: &str, fields: &str) -> String {
        self.exchange(host, fields).1
    }

    /// Sends a request and gives the head and the body of its answer.
    pub(super) fn exchange(&mut self, host: &str, fields: &str) -> (String, String) {
        write!(self.stream, "GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").unwrap();
        let answer = head(&mut self.reader).expect("an answer");
        let mut body = vec![0; field(&answer, "content-length").unwrap().parse().unwrap()];
        self.reader.read_exact(&mut body).unwrap();
        (answer, String::from_utf8(body).unwrap())
    }

    fn answer(&mut self, body: &str) -> bool {
        let length = body.len();
        write!(self.stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").is_ok()
    }
}

/// Answers each request with what `respond` makes of its head, on a thread per connection that has a state of its own.
pub(super) fn serve<S: Send + 'static>(
    listener: TcpListener,
    state: impl Fn() -> S + Send + 'static,
    respond: fn(&mut S, &str) -> String,
) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut state = state();
            std::thread::spawn(move || {
                let mut line = Line::over(stream);
                while let Some(head) = head(&mut line.reader) {
                    if !line.answer(&respond(&mut state, &head)) {
                        return;
                    }
                }
            });
        }
    });
}

pub(super) fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

pub(super) fn file(name: &str, text: &str) -> FileChange {
    let path: std::sync::Arc<str> = format!("{name}.yaml").into();
    let source = Source::new(path.clone(), text.to_owned(), None);
    FileChange { path, content: Content::Text(std::sync::Arc::new(source)) }
}

/// `web` and `ledger`, which every overlay owns as well, at one address.
fn files(ledger: SocketAddr) -> Vec<FileChange> {
    let base = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://127.0.0.1:1'}}, {{name: ledger, url: 'http://{ledger}'}}]\n"
    );
    let overlay = |number| {
        format!(
            "name: o{number}\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: ledger, url: 'http://{ledger}'}}]\n"
        )
    };
    let overlays: Vec<_> = (0..OVERLAYS).map(overlay).collect();
    vec![file("base", &base), file("overlays", &overlays.join("---\n"))]
}

/// The sidecar of `web`, whose application calls the ledger and answers with the key that arrived there.
fn sidecar(forwards: bool, correlation: CorrelationSettings) -> Started {
    let (application, ledger) = (local(), local());
    let inbound = Role::Inbound { service: "web".parse().unwrap(), environment: None };
    let outbound = Role::Outbound { service: Some("web".parse().unwrap()), environment: None };
    let listeners = vec![
        stage::listener(inbound, "", Some(application.local_addr().unwrap()), Trust::Any),
        stage::listener(outbound, "", None, Trust::Any),
    ];
    let settings =
        Settings { engine: EngineChoice::Auto, workers: 2, correlation, ..Settings::in_process(listeners) };
    let running = stage::start_as(settings, files(ledger.local_addr().unwrap()));
    let calls = running.addresses()[1];
    serve(ledger, || (), |(), head| field(head, "x-overlay-id").unwrap_or("none").to_owned());
    serve(
        application,
        move || (Line::to(calls), forwards),
        |(line, forwards), head| {
            let trace = field(head, "traceparent").filter(|_| *forwards);
            // The tracer names another span, as it does for each call.
            let fields = trace.map(|trace| format!("traceparent: {}-00f067aa0ba902b7-01\r\n", &trace[..35]));
            line.ask("ledger", &fields.unwrap_or_default())
        },
    );
    running
}

/// What arrived at the ledger: the right key, none, another one.
#[derive(Debug, PartialEq)]
struct Arrived {
    right: usize,
    none: usize,
    wrong: usize,
}

fn load(running: &Started, count: usize) -> Arrived {
    let inbound = running.addresses()[0];
    let (next, right, none, wrong) =
        (AtomicUsize::new(1), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut line = Line::to(inbound);
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    if number > count {
                        return;
                    }
                    let key = format!("o{}", number * 7919 % OVERLAYS);
                    // Spread over all 64 bits, and each its own.
                    let trace = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let fields = format!(
                        "x-overlay-id: {key}\r\ntraceparent: 00-{trace:032x}-b7ad6b7169203331-01\r\n"
                    );
                    let seen = line.ask("web", &fields);
                    let cell = if seen == key {
                        &right
                    } else if seen == "none" {
                        &none
                    } else {
                        &wrong
                    };
                    cell.fetch_add(1, SeqCst);
                }
            });
        }
    });
    Arrived { right: right.into_inner(), none: none.into_inner(), wrong: wrong.into_inner() }
}

/// The metric with these labels; 0 where it is not there.
pub(super) fn counted(running: &Started, metric: &str) -> usize {
    ask::metric(running.admin(), metric).map_or(0, |count| count.try_into().unwrap())
}

fn calls(running: &Started, result: &str) -> usize {
    let labels = format!("language=\"\",peer=\"ledger\",result=\"{result}\",service=\"web\"");
    counted(running, &format!("overlane_calls_total{{{labels}}}"))
}

#[test]
fn with_the_trace_forwarded_every_call_gets_its_key_and_none_another_ones() {
    let (running, count) = (sidecar(true, CorrelationSettings::default()), requests());
    assert_eq!(load(&running, count), Arrived { right: count, none: 0, wrong: 0 });
    assert_eq!((calls(&running, "restored"), calls(&running, "lost")), (count, 0));
}

#[test]
fn with_nothing_forwarded_every_loss_is_counted() {
    let (running, count) = (sidecar(false, CorrelationSettings::default()), requests());
    assert_eq!(load(&running, count), Arrived { right: 0, none: count, wrong: 0 });
    assert_eq!((calls(&running, "lost"), calls(&running, "restored")), (count, 0));
}

#[test]
fn with_ten_times_more_traces_than_it_holds_nothing_is_wrong_and_what_goes_early_is_counted() {
    let count = requests();
    let settings = CorrelationSettings { traces: count / 10, ..CorrelationSettings::default() };
    let running = sidecar(true, settings);
    // What is being served stays: so every call still gets its key.
    assert_eq!(load(&running, count), Arrived { right: count, none: 0, wrong: 0 });
    let places = (count / 10).div_ceil(8).next_power_of_two() * 8;
    let early = counted(&running, "overlane_traces_evicted_total");
    assert!(
        (count - places..count).contains(&early),
        "{early} of {count} went early, and there are {places} places"
    );
}
