//! What outbound lets through that is no request to it: tunnels by CONNECT, and what is in them.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use overlane::plane::passage::PassageSettings;
use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, ListenerSettings};
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask::head;

const PATIENCE: Duration = Duration::from_secs(10);

/// A listener of a role for services of which `upstream` is all.
fn start(role: Role, upstream: SocketAddr, passage: PassageSettings) -> (Started, SocketAddr) {
    start_on(EngineChoice::Auto, role, upstream, passage)
}

fn start_on(
    engine: EngineChoice,
    role: Role,
    upstream: SocketAddr,
    passage: PassageSettings,
) -> (Started, SocketAddr) {
    let listener: ListenerSettings = stage::listener(role, "", None, Trust::Any);
    let settings = Settings { engine, passage, ..Settings::in_process(vec![listener]) };
    let running = stage::start_as(settings, stage::files("", upstream));
    let address = running.addresses()[0];
    (running, address)
}

fn outbound() -> Role {
    Role::Outbound { service: None, environment: None }
}

/// Each connection is given to `with`, on a thread of its own.
pub(super) fn listen(with: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let with = with.clone();
            std::thread::spawn(move || with(stream));
        }
    });
    address
}

/// Answers each request with its head.
pub(super) fn tells(stream: TcpStream) {
    let mut out = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(head) = head(&mut reader) {
        let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
    }
}

/// Sends back what arrives, after a greeting.
fn echoes(greeting: &'static str) -> impl Fn(TcpStream) + Send + Clone + 'static {
    move |mut stream| {
        stream.write_all(greeting.as_bytes()).unwrap();
        let mut copy = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut copy);
        let _ = copy.shutdown(std::net::Shutdown::Write);
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    /// Asks for a tunnel; returns the answer's head.
    fn connect(address: SocketAddr, target: &str, fields: &str) -> (Self, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n").unwrap();
        let mut client = Self(BufReader::new(stream));
        let told = head(&mut client.0).unwrap_or_default();
        (client, told)
    }

    fn says(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn hears(&mut self, expected: &str) {
        let mut heard = vec![0; expected.len()];
        self.0.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), expected);
    }

    /// The head of an answer, and its body.
    fn answer(&mut self) -> String {
        let head = head(&mut self.0).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    fn ends(mut self) {
        self.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

#[test]
fn what_is_no_http_is_passed_on_whoever_speaks_first() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        for (greeting, first) in [("", "\u{16}\u{3}\u{1} as TLS does"), ("220 hello\r\n", "EHLO me\r\n")] {
            let upstream = listen(echoes(greeting));
            let nowhere = ([127, 0, 0, 1], 1).into();
            let (_running, address) = start_on(engine, outbound(), nowhere, PassageSettings::default());
            let (mut client, told) = Client::connect(address, &upstream.to_string(), "");
            assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
            client.hears(greeting);
            client.says(first);
            client.hears(first);
            let large = "x".repeat(200_000);
            let mut writer = client.0.get_ref().try_clone().unwrap();
            let sent = large.clone();
            let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
            client.hears(&large);
            writing.join().unwrap();
            client.ends();
        }
    }
}

#[test]
fn requests_in_a_tunnel_are_requests_like_any_others() {
    let services = listen(tells);
    let outside = listen(tells);
    let (_running, address) = start(outbound(), services, PassageSettings::default());
    let key = "x-overlay-id: alice\r\n";
    // To a service, at whatever port.
    let (mut client, told) = Client::connect(address, "web:8080", "");
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    for _ in 0..2 {
        client.says(&format!("GET / HTTP/1.1\r\nHost: web:8080\r\n{key}\r\n"));
        let answer = client.answer();
        assert!(answer.contains("x-overlay-route: web;env=alice;via=overlay;reason=owned"), "{answer}");
        assert!(answer.contains("x-overlay-id: alice\r\n"), "{answer}");
    }
    client.ends();
    // And outside, where the key stays behind.
    let (mut client, _) = Client::connect(address, &outside.to_string(), "");
    client.says(&format!("GET / HTTP/1.1\r\nHost: {outside}\r\n{key}\r\n"));
    let answer = client.answer();
    assert!(answer.contains("GET / HTTP/1.1") && !answer.contains("alice"), "{answer}");
}

#[test]
fn http_2_is_spoken_in_tunnels() {
    if Command::new("curl").arg("--version").output().is_err() {
        return;
    }
    let services = listen(tells);
    let (_running, address) = start(outbound(), services, PassageSettings::default());
    let proxy = format!("http://{address}");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let ran = Command::new("curl")
            .args(["-sSi", "--max-time", "10", "--noproxy", "", "--proxytunnel", "-x", &proxy, version])
            .args(["-H", "x-overlay-id: alice", "http://web/"])
            .output()
            .unwrap();
        let told = [ran.stdout, ran.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
        assert!(told.contains("env=alice;via=overlay;reason=owned"), "{version}: {told}");
    }
}

#[test]
fn tunnels_that_lead_nowhere_are_refused_with_a_reason() {
    let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
    let upstream = listen(echoes(""));
    let only = PassageSettings { connect_ports: Some(vec![443]), ..PassageSettings::default() };
    let any = PassageSettings::default;
    let inbound = Role::Inbound { service: "web".parse().unwrap(), environment: None };
    for (role, passage, target, expected) in [
        (outbound(), any(), "127.0.0.1:2".to_owned(), "HTTP/1.1 503 "),
        (outbound(), only, upstream.to_string(), "HTTP/1.1 403 "),
        (outbound(), any(), "169.254.169.254:80".to_owned(), "HTTP/1.1 403 "),
        (outbound(), any(), "no-port".to_owned(), "HTTP/1.1 400 "),
        (Role::Gateway, any(), upstream.to_string(), "HTTP/1.1 405 "),
        (inbound, any(), upstream.to_string(), "HTTP/1.1 405 "),
    ] {
        let (_running, address) = start(role, nowhere, passage);
        let (_, told) = Client::connect(address, &target, "");
        assert!(told.starts_with(expected) && told.contains("Proxy-Status: overlane;"), "{target}: {told}");
    }
}

#[test]
fn a_tunnel_to_a_service_goes_to_the_owner_in_the_key_of_its_head() {
    let services = listen(echoes(""));
    let (_running, address) = start(outbound(), services, PassageSettings::default());
    let (mut client, told) = Client::connect(address, "web:443", "x-overlay-id: alice\r\n");
    assert!(told.contains("x-overlay-route: web;env=alice;via=overlay;reason=owned"), "{told}");
    client.says("\u{16}\u{3}\u{1}");
    client.hears("\u{16}\u{3}\u{1}");
    client.ends();
}
