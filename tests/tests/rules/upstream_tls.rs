//! TLS to upstreams whose authorities, certificates and names the settings tell: between two gateways.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::tls::upstreams::UpstreamTls;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::tls_listeners::{Authority, Stage, With};

/// A gateway before another one that speaks TLS for `localhost`.
fn before(back: &Stage, tls: UpstreamTls, limits: Limits) -> Started {
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    let settings = Settings { upstream_tls: vec![tls], limits, ..Settings::in_process(vec![listener]) };
    stage::start_as(settings, stage::files_at("", &format!("https://{}", back.address())))
}

/// Trusts this authority, for the name `localhost`.
fn trusting(authority: &Authority) -> UpstreamTls {
    UpstreamTls {
        hosts: vec!["127.0.0.1".parse().unwrap()],
        ca: Some(authority.pem()),
        pair: None,
        server_name: Some("localhost".try_into().unwrap()),
    }
}

fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(started: &Started) -> String {
    let request = "GET / HTTP/1.1\r\nHost: web\r\nx-overlay-id: alice\r\nConnection: close\r\n\r\n";
    send(started.addresses()[0], request)
}

#[test]
fn our_certificate_is_shown_to_who_asks_for_it() {
    let back =
        Stage::new(With { clients: Some(true), trust: Some("identity:front.example"), ..With::default() });
    let pair = back.clients.issue("front", &["front.example"]);
    let tls = UpstreamTls { pair: Some(pair), ..trusting(&back.authority) };
    let answer = get(&before(&back, tls, Limits::default()));
    // Only whom it knows may tell it a key.
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\nx-overlay-id: alice\r\n"), "{answer}");
    let answer = get(&before(&back, trusting(&back.authority), Limits::default()));
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
}

#[test]
fn new_authorities_come_into_force_and_what_is_of_no_use_does_not() {
    let back = Stage::new(With::default());
    let strange = Authority::new(back.folder.path(), "strange");
    let front = before(&back, trusting(&strange), Limits::default());
    let why = "its certificate is of an authority that is not trusted";
    assert!(get(&front).contains(why));
    let admin = |line: &str, fields: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
        send(front.admin(), &request)
    };
    let reload = || {
        admin("POST /api/v1/reload", "Content-Type: application/json\r\nContent-Length: 0\r\n");
        admin("GET /readyz?verbose", "")
    };
    fs::write(strange.pem(), "no certificate").unwrap();
    let told = reload();
    assert!(told.contains("strange.pem has no certificate in PEM"), "{told}");
    assert!(get(&front).contains(why), "what was last good stays in force");
    fs::copy(back.authority.pem(), strange.pem()).unwrap();
    let told = reload();
    assert!(!told.contains("strange.pem"), "{told}");
    // An address that failed is passed over for a moment.
    let until = Instant::now() + Duration::from_secs(10);
    while !get(&front).starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < until, "{}", get(&front));
    }
}

#[test]
fn sessions_are_resumed_by_whichever_worker() {
    let back = Stage::new(With::default());
    // No connection is kept.
    let limits = Limits { upstream_idle: Duration::ZERO, ..Limits::default() };
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    let settings = Settings {
        upstream_tls: vec![trusting(&back.authority)],
        limits,
        workers: 4,
        ..Settings::in_process(vec![listener])
    };
    let front = stage::start_as(settings, stage::files_at("", &format!("https://{}", back.address())));
    for _ in 0..5 {
        assert!(get(&front).starts_with("HTTP/1.1 200"));
        back.until("overlane_connections ", 0.0);
    }
    let resumed = back.metric("overlane_tls_handshakes_total{kind=\"resumed\"}");
    assert_eq!(resumed, 4.0, "only the first one begins from nothing");
}
