//! PROXY protocol: a load balancer says whose connection it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits};
use overlane::settings::Settings;
use overlane::tls::TlsSettings;
use overlane::tls::certificates::Pair;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask::metrics;
use super::passage::{listen, tells};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\x0a\0\0\x01\x1f\x90\0\x50";

fn gateway(engine: EngineChoice, announcers: &str, tls: Option<TlsSettings>) -> (Started, SocketAddr) {
    let trust: Trust = "192.0.2.0/24".parse().unwrap();
    let settings = Settings {
        engine,
        proxy_protocol: vec![announcers.parse().unwrap()],
        limits: Limits { head: Duration::from_millis(500), ..Limits::default() },
        tls,
        ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, trust)])
    };
    let started = stage::start_as(settings, stage::files("", listen(tells)));
    let address = started.addresses()[0];
    (started, address)
}

/// Says `start`, and asks with a key; everything that is answered.
fn ask(address: SocketAddr, start: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: web\r\nx-overlay-id: alice\r\nConnection: close\r\n\r\n";
    stream.write_all(&[start, request].concat()).unwrap();
    let mut answer = String::new();
    // A connection that is closed with something unread is reset.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_client_that_a_balancer_names_is_trusted_or_not_and_forwarded() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (_started, address) = gateway(engine, "127.0.0.0/8", None);
        for (start, client, trusted) in [
            (&b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n"[..], "192.0.2.7", true),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 8080 80\r\n", "2001:db8::7", false),
            (V2, "192.0.2.1", true),
            (b"PROXY UNKNOWN\r\n", "127.0.0.1", false),
        ] {
            let answer = ask(address, start).to_lowercase();
            assert!(answer.starts_with("http/1.1 200"), "{answer}");
            assert!(answer.contains(&format!("\r\nx-forwarded-for: {client}\r\n")), "{answer}");
            assert_eq!(answer.contains("\r\nx-overlay-id: alice\r\n"), trusted, "{client}: {answer}");
        }
    }
}

#[test]
fn who_has_to_begin_with_a_header_and_does_not_is_not_served_and_nobody_else_may() {
    let (started, address) = gateway(EngineChoice::Auto, "127.0.0.0/8", None);
    for start in [&b""[..], b"PROXY TCP4 nobody\r\n"] {
        assert_eq!(ask(address, start), "");
    }
    let metrics = metrics(started.admin());
    assert!(metrics.contains("\noverlane_proxy_headers_refused_total 2\n"), "{metrics}");
    let (_started, address) = gateway(EngineChoice::Auto, "10.0.0.0/8", None);
    let answer = ask(address, b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n");
    // It is no request of a version that is spoken.
    assert!(answer.starts_with("HTTP/1.1 505"), "{answer}");
}

#[test]
fn the_header_comes_before_tls() {
    if Command::new("curl").arg("--version").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pair = Pair { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    std::fs::write(&pair.certificate, made.cert.pem()).unwrap();
    std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
    let authority = pair.certificate.display().to_string();
    let tls = TlsSettings { certificates: vec![pair], clients: None, only_13: false, roles: vec!["gateway"] };
    let (_started, address) = gateway(EngineChoice::Auto, "127.0.0.0/8", Some(tls));
    let port = address.port();
    let ran = Command::new("curl")
        .args(["-sSi", "--max-time", "10", "--haproxy-protocol", "--cacert", &authority])
        .args(["--resolve", &format!("localhost:{port}:127.0.0.1"), &format!("https://localhost:{port}/")])
        .output()
        .unwrap();
    let told = [ran.stdout, ran.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
    assert!(told.starts_with("HTTP/2 200") && told.contains("X-Forwarded-For: 127.0.0.1"), "{told}");
}
