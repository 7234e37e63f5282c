//! What of a request's time was the upstream's, and what the proxy added.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use overlane::decisions::{Decision, Found};
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::stats::Stats;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::hub::{ask, until};
use super::passage::listen;

fn gateway(engine: EngineChoice, upstream: SocketAddr) -> (Started, SocketAddr) {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    let settings = Settings { engine, ..Settings::in_process(listeners) };
    let started = stage::start_as(settings, stage::files("", upstream));
    let address = started.addresses()[0];
    (started, address)
}

fn stats(started: &Started) -> Stats {
    serde_json::from_str(&ask(started.admin(), "GET", "/api/v1/stats", &[], "").1).unwrap()
}

fn decisions(started: &Started) -> Vec<Decision> {
    let (_, text) = ask(started.admin(), "GET", "/api/v1/decisions", &[], "");
    serde_json::from_str::<Found>(&text).unwrap().decisions
}

/// An upstream that says when a request is there, and answers when it is told to.
fn told() -> (SocketAddr, Receiver<()>, SyncSender<()>) {
    let (came, arrived) = sync_channel(1);
    let (answer, answers) = sync_channel::<()>(1);
    let answers = Arc::new(Mutex::new(answers));
    let address = listen(move |mut stream| {
        let mut read = [0; 4096];
        while stream.read(&mut read).is_ok_and(|length| length > 0) {
            came.send(()).unwrap();
            answers.lock().unwrap().recv().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (address, arrived, answer)
}

#[test]
fn what_the_upstream_took_is_told_and_all_the_rest_was_added() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (upstream, arrived, answer) = told();
        let (started, address) = gateway(engine, upstream);
        assert_eq!(stats(&started).overhead, None, "nobody has answered yet");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
        arrived.recv_timeout(Duration::from_secs(20)).unwrap();
        // The only worker answers a scrape when it waits: from here on it waits for the upstream.
        stats(&started);
        let waited = Instant::now();
        stats(&started);
        let waited = waited.elapsed().as_secs_f64() * 1000.0;
        answer.send(()).unwrap();
        let mut read = String::new();
        stream.read_to_string(&mut read).unwrap();
        assert!(read.ends_with("ok"), "{read}");
        until("it is written down", || !decisions(&started).is_empty());
        let decision = decisions(&started).remove(0);
        let upstream = decision.upstream_ms.expect("it answered");
        assert!(upstream >= waited && decision.duration_ms >= upstream, "{waited} of {decision:?}");
        let added = stats(&started).overhead.expect("it answered");
        let rest = decision.duration_ms - upstream - added.seconds * 1000.0;
        assert_eq!((added.requests, added.buckets.last().map(|(_, all)| *all)), (1, Some(1)));
        match engine {
            // Each is rounded to a microsecond.
            EngineChoice::Auto => {
                assert!(rest.abs() < 0.003, "{rest} ms are nobody's: {decision:?} {added:?}");
            }
            // It tells of no moment at which all is handed on.
            EngineChoice::Pingora => assert!(rest > -0.003, "{rest}: {decision:?} {added:?}"),
        }
    }
}

#[test]
fn what_no_upstream_answered_has_no_time_of_one_and_nothing_was_added() {
    let (started, address) = gateway(EngineChoice::Auto, ([127, 0, 0, 1], 1).into());
    assert_eq!(ask(address, "GET", "/", &[], "").0, 503);
    until("it is written down", || !decisions(&started).is_empty());
    assert_eq!((decisions(&started)[0].upstream_ms, stats(&started).overhead), (None, None));
}

#[test]
fn the_rest_of_a_long_response_is_nothing_that_the_proxy_added() {
    let (more, go_on) = sync_channel::<()>(1);
    let go_on = Arc::new(Mutex::new(go_on));
    let upstream = listen(move |mut stream| {
        let mut read = [0; 4096];
        let _ = stream.read(&mut read);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
        go_on.lock().unwrap().recv().unwrap();
        let _ = stream.write_all(b"k");
    });
    let (started, address) = gateway(EngineChoice::Auto, upstream);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
    while !read.ends_with(b"\r\n\r\no") {
        let length = stream.read(&mut chunk).unwrap();
        read.extend_from_slice(&chunk[..length]);
    }
    // The only worker answers when it waits: for the rest.
    stats(&started);
    let waited = Instant::now();
    stats(&started);
    let waited = waited.elapsed().as_secs_f64();
    more.send(()).unwrap();
    stream.read_to_end(&mut read).unwrap();
    until("it is written down", || !decisions(&started).is_empty());
    let (took, added) =
        (decisions(&started)[0].duration_ms / 1000.0, stats(&started).overhead.unwrap().seconds);
    assert!(
        added + waited <= took,
        "{added} s were added to {took} s, of which {waited} s were the upstream's"
    );
}
