//! More than can be served: who is refused, how, and who is not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use overlane::control::Trigger;
use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits};
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;

const BOUND: Duration = Duration::from_secs(20);

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "it does not come");
        std::thread::yield_now();
    }
}

/// An upstream that answers nobody until it is told to, and then everybody.
struct Holding {
    address: SocketAddr,
    arrived: Arc<AtomicUsize>,
    answers: Arc<(Mutex<bool>, Condvar)>,
}

impl Holding {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, answers) =
            (Arc::new(AtomicUsize::new(0)), Arc::new((Mutex::new(false), Condvar::new())));
        let (counted, told) = (arrived.clone(), answers.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, told) = (counted.clone(), told.clone());
                std::thread::spawn(move || Self::serve(stream, &counted, &told));
            }
        });
        Self { address, arrived, answers }
    }

    fn serve(mut stream: TcpStream, arrived: &AtomicUsize, answers: &(Mutex<bool>, Condvar)) {
        let mut read = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|length| length > 0) {
            read.push(byte[0]);
            if !read.ends_with(b"\r\n\r\n") {
                continue;
            }
            read.clear();
            arrived.fetch_add(1, SeqCst);
            let (told, condition) = answers;
            drop(condition.wait_while(told.lock().unwrap(), |told| !*told).unwrap());
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    }

    fn arrived(&self) -> usize {
        self.arrived.load(SeqCst)
    }

    fn answer(&self) {
        *self.answers.0.lock().unwrap() = true;
        self.answers.1.notify_all();
    }
}

fn file(name: &str, text: &str) -> FileChange {
    let path: Arc<str> = format!("{name}.yaml").into();
    let source = Source::new(path.clone(), format!("name: {name}\n{text}\n"), None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

/// A baseline with one service, at `url`, and overlays that own another one.
fn files(url: &str, fields: &str, overlays: &[&str]) -> Vec<FileChange> {
    let base = format!(
        "routing: {{mode: baseline, holdFor: 20s}}\nservices: [{{name: web, expose: true, url: '{url}'{fields}}}]"
    );
    let overlay =
        "routing: {mode: overlay, baselineId: base}\nservices: [{name: other, url: 'http://127.0.0.1:1'}]";
    let overlays = overlays.iter().map(|name| file(name, overlay));
    std::iter::once(file("base", &base)).chain(overlays).collect()
}

fn gateway(engine: EngineChoice, limits: Limits, files: Vec<FileChange>) -> Started {
    stage::start_within(engine, limits, vec![stage::listener(Role::Gateway, "", None, Trust::Any)], files)
}

fn address(proxy: &Started) -> SocketAddr {
    proxy.addresses()[0]
}

/// The answer to a request with this key, on a connection of its own.
fn ask(gateway: SocketAddr, key: &str) -> String {
    ask_with(gateway, key, "")
}

fn ask_with(gateway: SocketAddr, key: &str, fields: &str) -> String {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let key = if key.is_empty() { String::new() } else { format!("x-overlay-id: {key}\r\n") };
    write!(stream, "GET / HTTP/1.1\r\nHost: web\r\n{key}{fields}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Requests that are under way at `upstream`, one more for each of these keys.
fn under_way(gateway: SocketAddr, upstream: &Holding, keys: &[&'static str]) -> Vec<JoinHandle<String>> {
    let mut asked = Vec::new();
    for &key in keys {
        let before = upstream.arrived();
        asked.push(std::thread::spawn(move || ask(gateway, key)));
        until(|| upstream.arrived() > before);
    }
    asked
}

fn answered(asked: Vec<JoinHandle<String>>) {
    for asked in asked {
        let answer = asked.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[track_caller]
fn refused(answer: &str, words: &str) {
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    for part in ["Retry-After: 1\r\n", "(overload)", words] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
}

fn metric(proxy: &Started, name: &str) -> u64 {
    let metrics = ask::metrics(proxy.admin());
    let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{name}: {metrics}"))
}

const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Pingora];

#[test]
fn of_a_shared_service_an_overlay_gets_as_much_as_is_free_beside_it_and_the_owner_all() {
    for engine in ENGINES {
        let upstream = Holding::start();
        let files = files(&format!("http://{}", upstream.address), ", maxRequests: 8", &["alice", "bob"]);
        let proxy = gateway(engine, Limits::default(), files);
        let gateway = address(&proxy);
        let mut asked = under_way(gateway, &upstream, &["alice"; 4]);
        let answer = ask(gateway, "alice");
        refused(&answer, "`web` of `base` has 4 requests of `alice` in flight");
        assert!(answer.contains("x-overlay-route: web;env=base;via=baseline;reason=unhealthy"), "{answer}");
        // Others are served meanwhile.
        asked.extend(under_way(gateway, &upstream, &["bob"; 2]));
        refused(&ask(gateway, "bob"), "2 requests of `bob`");
        asked.extend(under_way(gateway, &upstream, &[""; 2]));
        refused(&ask(gateway, ""), "`web` of `base` has 8 requests in flight");
        refused(&ask(gateway, "alice"), "`web` of `base` has 8 requests in flight");
        assert_eq!(upstream.arrived(), 8, "nothing that was refused was sent");
        upstream.answer();
        answered(asked);
        until(|| metric(&proxy, "overlane_requests_in_flight{limit=\"requests\"}") == 0);
        answered((0..8).map(|_| std::thread::spawn(move || ask(gateway, ""))).collect());
        assert_eq!(metric(&proxy, "overlane_overload_refused_total{limit=\"upstream\",of=\"overlay\"}"), 2);
        assert_eq!(metric(&proxy, "overlane_overload_refused_total{limit=\"upstream\",of=\"all\"}"), 2);
        let of_alice = "overlane_requests_total{code_class=\"5xx\",method=\"GET\",overlay=\"alice\",service=\"web\",via=\"none\"}";
        assert_eq!(metric(&proxy, of_alice), 2);
    }
}

#[test]
fn of_a_workers_requests_an_overlay_gets_as_much_as_is_free_beside_it() {
    for engine in ENGINES {
        let upstream = Holding::start();
        let files = files(&format!("http://{}", upstream.address), "", &["alice", "bob"]);
        let limits = Limits { requests: 6, ..Limits::default() };
        let proxy = gateway(engine, limits, files);
        let gateway = address(&proxy);
        let mut asked = under_way(gateway, &upstream, &["alice"; 3]);
        refused(&ask(gateway, "alice"), "3 requests of `alice` are in flight");
        asked.extend(under_way(gateway, &upstream, &["nobody"]));
        asked.extend(under_way(gateway, &upstream, &["bob"]));
        // Keys that nobody knows are one.
        refused(&ask(gateway, "noone"), "1 requests of unknown keys are in flight");
        asked.extend(under_way(gateway, &upstream, &[""]));
        refused(&ask(gateway, ""), "this proxy's worker has 6 requests in flight");
        upstream.answer();
        answered(asked);
    }
}

#[test]
fn what_is_refused_is_served_by_nobody_else() {
    for engine in ENGINES {
        let (own, shared) = (Holding::start(), Holding::start());
        let mut files = files(&format!("http://{}", shared.address), "", &[]);
        files.push(file("alice", &format!(
            "routing: {{mode: overlay, baselineId: base, onUnavailable: fallback, holdFor: 0s}}\nservices: [{{name: web, maxRequests: 2, url: 'http://{}'}}]",
            own.address
        )));
        let proxy = gateway(engine, Limits::default(), files);
        let gateway = address(&proxy);
        // The owner has all of its own service.
        let asked = under_way(gateway, &own, &["alice"; 2]);
        refused(&ask(gateway, "alice"), "`web` of `alice` has 2 requests in flight");
        assert_eq!(shared.arrived(), 0);
        own.answer();
        answered(asked);
    }
}

#[test]
fn what_waits_for_a_dead_upstream_is_bounded_and_falls_back_to_nobody_for_that() {
    for engine in ENGINES {
        let shared = Holding::start();
        shared.answer();
        let mut files = files(&format!("http://{}", shared.address), "", &[]);
        let dead = "routing: {mode: overlay, baselineId: base, onUnavailable: fallback, holdFor: 20s}\nservices: [{name: web}]";
        files.extend(["alice", "bob"].map(|name| file(name, dead)));
        let limits = Limits { held: 4, ..Limits::default() };
        let proxy = gateway(engine, limits, files);
        let gateway = address(&proxy);
        let wait = |key: &'static str, waiting| {
            let asked = std::thread::spawn(move || ask(gateway, key));
            until(|| metric(&proxy, "overlane_requests_in_flight{limit=\"held\"}") == waiting);
            asked
        };
        let mut asked = vec![wait("alice", 1), wait("alice", 2)];
        refused(&ask(gateway, "alice"), "2 requests of `alice` wait for such upstreams");
        asked.push(wait("bob", 3));
        assert_eq!(shared.arrived(), 0);
        // Those that wait are not lost.
        let up = dead.replace("name: web", &format!("name: web, url: 'http://{}'", shared.address));
        proxy.control().apply(&["alice", "bob"].map(|name| file(name, &up)), Trigger::Change);
        answered(asked);
        until(|| metric(&proxy, "overlane_requests_in_flight{limit=\"held\"}") == 0);
    }
}

#[test]
fn a_reload_changes_limits_and_loses_no_count() {
    let upstream = Holding::start();
    let url = format!("http://{}", upstream.address);
    let proxy = gateway(EngineChoice::Auto, Limits::default(), files(&url, ", maxRequests: 2", &["alice"]));
    let gateway = address(&proxy);
    let mut asked = under_way(gateway, &upstream, &[""; 2]);
    refused(&ask(gateway, ""), "has 2 requests in flight");
    proxy.control().apply(&files(&url, ", maxRequests: 3", &["alice"]), Trigger::Change);
    asked.extend(under_way(gateway, &upstream, &[""]));
    refused(&ask(gateway, ""), "has 3 requests in flight");
    // Another address is another upstream; what is at the old one stays there.
    let other = Holding::start();
    proxy
        .control()
        .apply(&files(&format!("http://{}", other.address), ", maxRequests: 1", &["alice"]), Trigger::Change);
    let elsewhere = under_way(gateway, &other, &[""]);
    refused(&ask(gateway, ""), "has 1 requests in flight");
    upstream.answer();
    answered(asked);
    refused(&ask(gateway, ""), "has 1 requests in flight");
    other.answer();
    answered(elsewhere);
    answered(vec![std::thread::spawn(move || ask(gateway, ""))]);
}

#[test]
fn a_client_that_gives_up_gives_its_seat_back() {
    for engine in ENGINES {
        let upstream = Holding::start();
        let url = format!("http://{}", upstream.address);
        let proxy = gateway(engine, Limits::default(), files(&url, ", maxRequests: 1", &[]));
        let gateway = address(&proxy);
        let mut gone = TcpStream::connect(gateway).unwrap();
        gone.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        until(|| upstream.arrived() == 1);
        refused(&ask(gateway, ""), "has 1 requests in flight");
        // A reset: who only closes one side still wants the answer.
        socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
        drop(gone);
        if engine == EngineChoice::Pingora {
            // It looks for that only when there is something to send.
            upstream.answer();
        }
        until(|| metric(&proxy, "overlane_requests_in_flight{limit=\"requests\"}") == 0);
        let asked = std::thread::spawn(move || ask(gateway, ""));
        until(|| upstream.arrived() == 2);
        upstream.answer();
        answered(vec![asked]);
    }
}

#[test]
fn calls_of_grpc_are_refused_as_their_clients_may_try_again() {
    let upstream = Holding::start();
    let proxy = gateway(
        EngineChoice::Auto,
        Limits::default(),
        files(&format!("http://{}", upstream.address), ", maxRequests: 1", &[]),
    );
    let gateway = address(&proxy);
    let asked = under_way(gateway, &upstream, &[""]);
    let mut stream = TcpStream::connect(gateway).unwrap();
    write!(stream, "POST /s/m HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    for part in ["HTTP/1.1 200", "grpc-status: 14\r\n", "grpc-retry-pushback-ms: 1000\r\n", "(overload)"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    upstream.answer();
    answered(asked);
}

/// How many streams arrive where an upstream of HTTP/2 refuses each unprocessed, for so many requests at once.
fn streams_that_arrive_for(requests: usize) -> (usize, u64, u64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let upstream = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    runtime.spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                let mut first = Vec::new();
                while let Some(Ok((_, respond))) = connection.accept().await {
                    counted.fetch_add(1, SeqCst);
                    first.push(respond);
                    // All are there before any is refused.
                    if counted.load(SeqCst) >= requests {
                        first
                            .drain(..)
                            .for_each(|mut respond| respond.send_reset(h2::Reason::REFUSED_STREAM));
                    }
                }
            });
        }
    });
    let proxy = gateway(EngineChoice::Auto, Limits::default(), files(&format!("h2c://{upstream}"), "", &[]));
    let gateway = address(&proxy);
    let asked: Vec<_> = (0..requests).map(|_| std::thread::spawn(move || ask(gateway, ""))).collect();
    for asked in asked {
        let answer = asked.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    let counts =
        ["overlane_repeats_total", "overlane_repeats_refused_total"].map(|name| metric(&proxy, name));
    (count.load(SeqCst), counts[0], counts[1])
}

#[test]
fn what_an_upstream_refuses_under_load_is_repeated_for_a_part_only() {
    // Alone, each is sent three times.
    assert_eq!(streams_that_arrive_for(1), (3, 2, 0));
    let (arrived, repeats, refused) = streams_that_arrive_for(50);
    assert_eq!(arrived as u64, 50 + repeats);
    // A fifth of 50 at once, and fewer as there are fewer left; each may go twice more.
    assert!(repeats <= 2 * 10 + 2 * 3 && refused > 20, "{repeats} {refused}");
}

#[test]
fn a_dead_upstream_sees_few_attempts_however_many_wait_for_it() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let base = format!(
        "routing: {{mode: baseline, holdFor: 1s}}\nservices: [{{name: web, expose: true, url: 'http://{dead}'}}]"
    );
    let proxy = gateway(EngineChoice::Auto, Limits::default(), vec![file("base", &base)]);
    let gateway = address(&proxy);
    // Known to be dead: how many are under way when the first is refused is up to the machine.
    ask(gateway, "");
    let asked: Vec<_> = (0..100).map(|_| std::thread::spawn(move || ask(gateway, ""))).collect();
    for asked in asked {
        let answer = asked.join().unwrap();
        assert!(answer.contains("refuses connections") && answer.contains("(refused)"), "{answer}");
    }
    // One each 200 ms while requests wait.
    let attempts = metric(&proxy, "overlane_upstream_connect_failures_total");
    assert!(attempts < 50, "{attempts}");
}

#[test]
fn over_http_2_there_is_an_answer_as_well() {
    let upstream = Holding::start();
    let files = files(&format!("http://{}", upstream.address), ", maxRequests: 1", &[]);
    let proxy = gateway(EngineChoice::Auto, Limits::default(), files);
    let gateway = address(&proxy);
    let asked = under_way(gateway, &upstream, &[""]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
        let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("http://web/").body(Full::<Bytes>::default()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    });
    upstream.answer();
    answered(asked);
}

/// A connection on which one request was answered.
fn kept(gateway: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    again(&mut stream);
    stream
}

fn again(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\nok") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
}

#[test]
fn whoever_keeps_connections_open_without_using_them_keeps_nobody_out() {
    let upstream = Holding::start();
    upstream.answer();
    let limits = Limits { connections: 3, ..Limits::default() };
    let proxy = gateway(EngineChoice::Auto, limits, files(&format!("http://{}", upstream.address), "", &[]));
    let gateway = address(&proxy);
    let mut longest = kept(gateway);
    let mut silent = TcpStream::connect(gateway).unwrap();
    let mut shortest = kept(gateway);
    until(|| metric(&proxy, "overlane_connections ") == 3);
    // One has to go, and that is not the one that was used last.
    let mut next = kept(gateway);
    assert_eq!(metric(&proxy, "overlane_idle_connections_closed_total"), 1);
    silent.set_nonblocking(true).unwrap();
    longest.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let closed =
        [&mut longest, &mut silent].into_iter().filter_map(|stream| stream.read(&mut byte).ok()).count();
    assert_eq!(closed, 1);
    again(&mut shortest);
    again(&mut next);
}

#[test]
fn where_all_connections_are_in_use_the_next_one_waits_and_is_served() {
    let upstream = Holding::start();
    let limits = Limits { connections: 2, ..Limits::default() };
    let proxy = gateway(EngineChoice::Auto, limits, files(&format!("http://{}", upstream.address), "", &[]));
    let gateway = address(&proxy);
    let asked = under_way(gateway, &upstream, &[""; 2]);
    let waiting: Vec<_> = (0..3).map(|_| std::thread::spawn(move || ask(gateway, ""))).collect();
    until(|| metric(&proxy, "overlane_listener_full_total") == 1);
    assert_eq!((metric(&proxy, "overlane_connections "), upstream.arrived()), (2, 2));
    upstream.answer();
    answered(asked);
    answered(waiting);
}
