//! Panics in our own code. They are made on purpose by whoever listens to the log: a line that is written in the middle
//! of an exchange panics. That is for a whole process, so these tests have one of their own.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::{Debug, Write as _};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use overlane::control::Trigger;
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::process::{Prepared, Running};
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const PATIENCE: Duration = Duration::from_secs(10);

/// The message at which the next panic happens.
static ARMED: Mutex<Option<&str>> = Mutex::new(None);
/// What the log said of panics.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listening;

impl Subscriber for Listening {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("overlane")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let armed = locked(&ARMED).take_if(|armed| line.0.contains(*armed));
        if let Some(message) = armed {
            panic!("on purpose, at `{message}`");
        }
        if line.0.contains("panic") {
            // As it would be shown without a log.
            let _ = writeln!(std::io::stderr(), "{}", line.0);
            locked(&TOLD).push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

fn locked<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One test at a time, since all share the log.
fn alone() -> MutexGuard<'static, ()> {
    static ONCE: Once = Once::new();
    static ALONE: Mutex<()> = Mutex::new(());
    ONCE.call_once(|| tracing::subscriber::set_global_default(Listening).unwrap());
    locked(&ALONE)
}

/// Answers `/`; `/slow` when it is told to, and then all that follow; `/cut` never.
fn upstream(go: Receiver<()>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let go = Arc::new(Mutex::new(go));
    thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let go = go.clone();
            thread::spawn(move || {
                while let Some(head) = read_head(&mut stream) {
                    if head.contains("/cut") {
                        return;
                    }
                    if head.contains("/slow") {
                        let _ = go.lock().unwrap().recv_timeout(PATIENCE);
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                }
            });
        }
    });
    address
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    // A reset is the end as well.
    let _ = stream.read_to_string(&mut text);
    text
}

/// Waits until the metrics say so.
fn until(running: &Running, name: &str, value: u64) {
    let end = Instant::now() + PATIENCE;
    let line = format!("{name} {value}\n");
    loop {
        let text = answer(ask(running.admin(), "/metrics"));
        if text.contains(&line) {
            return;
        }
        assert!(Instant::now() < end, "not {line:?} in:\n{text}");
    }
}

/// How many panics the metrics tell.
fn panics(running: &Running) -> u64 {
    let text = answer(ask(running.admin(), "/metrics"));
    text.lines().find_map(|line| line.strip_prefix("overlane_panics_total ")).unwrap().parse().unwrap()
}

#[test]
fn a_panic_ends_one_exchange_and_is_counted_and_told_with_its_place() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (go, told) = channel();
        let files = stage::files("", upstream(told));
        let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
        let settings = Settings { engine, ..Settings::in_process(vec![listener]) };
        let running = Prepared::bind(settings).unwrap().start(files).unwrap();
        let (gateway, before) = (running.addresses()[0], panics(&running));
        locked(&TOLD).clear();

        let innocent = ask(gateway, "/slow");
        until(&running, "overlane_active_requests", 1);
        *locked(&ARMED) = Some("the exchange failed");
        assert_eq!(
            answer(ask(gateway, "/cut")),
            "",
            "{engine:?}: nothing is said that could be taken for an answer"
        );
        until(&running, "overlane_panics_total", before + 1);
        go.send(()).unwrap();
        assert!(answer(innocent).starts_with("HTTP/1.1 200"), "{engine:?}");

        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut client = client.ready().await.unwrap();
            let mut ask = |path: &str| {
                let request = http::Request::get(format!("http://localhost{path}")).body(()).unwrap();
                client.send_request(request, true).unwrap().0
            };
            let innocent = ask("/slow");
            *locked(&ARMED) = Some("the exchange failed");
            let cut = ask("/cut").await.unwrap_err();
            assert!(cut.is_reset(), "{engine:?}: {cut}");
            go.send(()).unwrap();
            assert_eq!(innocent.await.unwrap().status(), 200, "{engine:?}: of the same connection");
            assert_eq!(ask("/").await.unwrap().status(), 200, "{engine:?}: and later");
            connection.abort();
            let _ = connection.await;
        });

        until(&running, "overlane_panics_total", before + 2);
        until(&running, "overlane_active_requests", 0);
        until(&running, "overlane_connections", 0);
        assert!(answer(ask(gateway, "/")).starts_with("HTTP/1.1 200"), "{engine:?}");
        let told = locked(&TOLD).clone();
        let right = |line: &String| line.contains("tests/panics.rs:") && line.contains("worker-0");
        assert!(told.len() == 2 && told.iter().all(right), "{told:#?}");
        assert!(running.stop(), "{engine:?}: it ends as it always does");
    }
}

#[test]
fn a_process_ends_and_says_that_it_failed_where_a_part_panics_that_it_cannot_do_without() {
    let _alone = alone();
    let (_go, told) = channel();
    let store = tempfile::tempdir().unwrap();
    let text = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, url: 'http://{}'}}]\n",
        upstream(told)
    );
    fs::write(store.path().join("base.yaml"), &text).unwrap();
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    let settings = Settings {
        store: Some(store.path().to_str().unwrap().parse().unwrap()),
        ..Settings::in_process(vec![listener])
    };
    let running = Prepared::bind(settings).unwrap().start(Vec::new()).unwrap();
    assert!(answer(ask(running.addresses()[0], "/")).starts_with("HTTP/1.1 200"));
    *locked(&ARMED) = Some("message=reloaded");
    fs::write(
        store.path().join("alice.yaml"),
        "name: alice\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: web}]\n",
    )
    .unwrap();
    assert!(running.reload(Trigger::Request).is_none(), "nobody is there to tell what came of it");
    running.until_told();
    assert!(!running.stop());
}
