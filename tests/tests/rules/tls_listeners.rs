//! Listeners that speak TLS, with real peers: rustls as a client that can be asked, curl and openssl where they are.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits};
use overlane::settings::Settings;
use overlane::tls::certificates::Pair;
use overlane::tls::{ClientSettings, TlsSettings};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, version};

use super::ask::metrics;

const PATIENCE: Duration = Duration::from_secs(10);
const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Pingora];
/// How large a large body is.
const LARGE: usize = 4 << 20;

/// Somebody who issues certificates into a folder.
pub(super) struct Authority {
    folder: PathBuf,
    name: &'static str,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new(folder: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.join(name).with_extension("pem"), certificate.pem()).unwrap();
        let certificate = certificate.der().clone();
        Self { folder: folder.to_owned(), name, issuer: Issuer::new(params, key), certificate }
    }

    pub(super) fn pem(&self) -> PathBuf {
        self.folder.join(self.name).with_extension("pem")
    }

    /// Writes a certificate for these names: hosts, or URIs.
    pub(super) fn issue(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_until(file, names, 4000)
    }

    fn issue_until(&self, file: &str, names: &[&str], year: i32) -> Pair {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.subject_alt_names = names.iter().copied().map(name_of).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = self.folder.join(file);
        let pair = Pair { certificate: path.with_extension("crt"), key: path.with_extension("key") };
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        fs::write(&pair.certificate, certificate.pem()).unwrap();
        pair
    }
}

fn name_of(name: &str) -> SanType {
    match name.contains("://") {
        true => SanType::URI(name.try_into().unwrap()),
        false => SanType::DnsName(name.try_into().unwrap()),
    }
}

/// A gateway that speaks TLS, and what its certificates are issued by.
pub(super) struct Stage {
    pub(super) folder: tempfile::TempDir,
    pub(super) authority: Authority,
    /// Who issues the certificates that clients are asked for.
    pub(super) clients: Authority,
    started: Started,
}

/// What a gateway is started with.
#[derive(Default)]
pub(super) struct With {
    pub(super) engine: EngineChoice,
    pub(super) hosts: Vec<&'static [&'static str]>,
    pub(super) clients: Option<bool>,
    pub(super) only_13: bool,
    pub(super) trust: Option<&'static str>,
    pub(super) limits: Limits,
    pub(super) hsts: Option<Duration>,
}

impl Stage {
    pub(super) fn new(with: With) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "ours");
        let hosts = if with.hosts.is_empty() { vec![&["localhost"][..]] } else { with.hosts };
        let issue = |(at, hosts): (usize, &&[&str])| authority.issue(&at.to_string(), hosts);
        let clients = Authority::new(folder.path(), "clients");
        let asked = with.clients.map(|required| ClientSettings { ca: clients.pem(), required });
        let tls = TlsSettings {
            certificates: hosts.iter().enumerate().map(issue).collect(),
            clients: asked,
            only_13: with.only_13,
            roles: vec!["gateway"],
        };
        let trust = with.trust.map_or(Trust::Any, |trust| trust.parse().unwrap());
        let listener = stage::listener(Role::Gateway, "", None, trust);
        let settings = Settings {
            engine: with.engine,
            limits: with.limits,
            tls: Some(tls),
            hsts: with.hsts,
            ..Settings::in_process(vec![listener])
        };
        let started = stage::start_as(settings, stage::files("", upstream()));
        Self { folder, authority, clients, started }
    }

    fn of(engine: EngineChoice) -> Self {
        Self::new(With { engine, ..With::default() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.started.addresses()[0]
    }

    /// A client that trusts our certificates.
    fn client(&self) -> Client {
        Client::new(self.address(), &self.authority, None, &[&version::TLS13, &version::TLS12])
    }

    /// A client with a certificate of its own.
    fn client_with(&self, pair: &Pair) -> Client {
        Client::new(self.address(), &self.authority, Some(pair), &[&version::TLS13, &version::TLS12])
    }

    /// The value of a metric, by the beginning of its line.
    pub(super) fn metric(&self, line: &str) -> f64 {
        let text = metrics(self.started.admin());
        let found = text.lines().find_map(|known| known.strip_prefix(line));
        found.unwrap_or_else(|| panic!("no {line} in {text}")).trim().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub(super) fn until(&self, line: &str, value: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(line) != value {
            assert!(Instant::now() < until, "{line} is {}", self.metric(line));
        }
    }

    fn failures(&self, reason: &str) -> f64 {
        self.metric(&format!("overlane_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A client that remembers sessions.
struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Client {
    fn new(
        address: SocketAddr,
        authority: &Authority,
        pair: Option<&Pair>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain =
                    CertificateDer::pem_file_iter(&pair.certificate).unwrap().map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Self { address, config: Arc::new(config) }
    }

    fn with_protocols(mut self, protocols: &[&str]) -> Self {
        let config = Arc::make_mut(&mut self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Connects to `host`; what follows shows whether the handshake succeeds.
    fn open(&self, host: &'static str) -> Stream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let connection = ClientConnection::new(self.config.clone(), host.try_into().unwrap()).unwrap();
        StreamOwned::new(connection, stream)
    }

    /// Sends one request and reads everything until the end of the connection.
    fn ask(&self, host: &'static str, fields: &str) -> io::Result<(Stream, String)> {
        let mut stream = self.open(host);
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((stream, answer))
    }

    /// Whether a key of this client is believed.
    fn is_believed(&self) -> bool {
        let (_, answer) = self.ask("localhost", "x-overlay-id: alice\r\n").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let believed = answer.contains("env=alice;via=overlay;reason=owned");
        assert_eq!(believed, answer.contains("alice"), "{answer}");
        believed
    }
}

/// An upstream that answers with the head that arrived and the length of the body, or with much.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
    address
}

fn answer(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).ok().filter(|read| *read > 0)?;
        }
        let length =
            head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let text = match head.split(' ').nth(1) {
            Some("/large") => "x".repeat(LARGE),
            // More than what lies between can hold, whatever the kernel makes of its buffers.
            Some("/larger") => "x".repeat(16 * LARGE),
            _ => format!("{head}{}", body.len()),
        };
        let mut out = stream;
        let own = "Strict-Transport-Security: max-age=1";
        write!(out, "HTTP/1.1 200 OK\r\n{own}\r\nContent-Length: {}\r\n\r\n{text}", text.len()).ok()?;
    }
}

fn read_answer(stream: &mut Stream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

#[test]
fn requests_on_one_connection_are_served_and_upstreams_are_told_https() {
    for engine in ENGINES {
        let stage = Stage::of(engine);
        let client = stage.client().with_protocols(&["http/1.1"]);
        let mut stream = client.open("localhost");
        for _ in 0..2 {
            write!(stream, "GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let answer = read_answer(&mut stream);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /small HTTP/1.1"), "{answer}");
            assert!(answer.to_lowercase().contains("x-forwarded-proto: https"), "{answer}");
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        write!(stream, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n").unwrap();
        stream.write_all(&vec![b'y'; LARGE]).unwrap();
        assert!(read_answer(&mut stream).ends_with(&format!("\r\n\r\n{LARGE}")));
        write!(stream, "GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        assert!(read_answer(&mut stream).ends_with(&"x".repeat(LARGE)));
        // Without the word that this is the end, reading to it is an error.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{engine:?}");
    }
}

/// What an answer says of how its host is to be asked, line by line.
fn sts(answer: &str) -> Vec<&str> {
    let lines = answer.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(name, _)| name.eq_ignore_ascii_case("strict-transport-security"))
        .map(|(_, said)| said)
        .collect()
}

#[test]
fn answers_in_tls_say_once_for_how_long_browsers_come_in_tls_only_and_those_in_the_clear_do_not() {
    for engine in ENGINES {
        let hsts = Some(Duration::from_secs(365 * 24 * 3600));
        let stage = Stage::new(With { engine, hsts, ..With::default() });
        // The application's, and our own answer to a key that is none.
        for (fields, status) in [("", "200"), ("x-overlay-id: no key!\r\n", "400")] {
            let (_, answer) = stage.client().ask("localhost", fields).unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
            assert_eq!(sts(&answer), ["max-age=31536000"], "{answer}");
        }
        let (_, answer) = Stage::of(engine).client().ask("localhost", "").unwrap();
        assert_eq!(sts(&answer), ["max-age=1"], "the application's own: {answer}");
        let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
        let settings = Settings { engine, hsts, ..Settings::in_process(vec![listener]) };
        let clear = stage::start_as(settings, stage::files("", upstream()));
        let mut stream = TcpStream::connect(clear.addresses()[0]).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(sts(&answer), ["max-age=1"], "in the clear: {answer}");
    }
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() {
    for engine in ENGINES {
        let stage = Stage::of(engine);
        let mut stream = stage.client().open("localhost");
        write!(stream, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(read_answer(&mut stream).starts_with("HTTP/1.1 200"), "{engine:?}");
    }
}

#[test]
fn an_idle_connection_is_told_that_this_is_the_end() {
    for engine in ENGINES {
        let limits = Limits { idle: Duration::from_millis(30), ..Limits::default() };
        let stage = Stage::new(With { engine, limits, ..With::default() });
        let mut stream = stage.client().open("localhost");
        write!(stream, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        read_answer(&mut stream);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{engine:?}");
    }
}

#[test]
fn each_host_is_shown_its_certificate() {
    let hosts = vec![&["first.example"][..], &["*.shop.example"], &["www.shop.example"]];
    let stage = Stage::new(With { hosts, ..With::default() });
    let client = stage.client();
    let shown = |host| {
        // A client takes only a certificate that is for the host.
        let (stream, _) = client.ask(host, "").unwrap();
        stream.conn.peer_certificates().unwrap()[0].clone()
    };
    let own = shown("www.shop.example");
    assert_ne!(own, shown("api.shop.example"));
    assert_eq!(shown("api.shop.example"), shown("pay.shop.example"));
    shown("first.example");
    let error = client.ask("strange.example", "").unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    stage.until("overlane_tls_handshake_failures_total{reason=\"refused-by-client\"}", 1.0);
}

#[test]
fn sessions_are_resumed_also_after_a_new_certificate() {
    for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
        let stage = Stage::of(EngineChoice::Auto);
        let client = Client::new(stage.address(), &stage.authority, None, versions);
        let kind = || client.ask("localhost", "").unwrap().0.conn.handshake_kind().unwrap();
        assert_eq!(kind(), HandshakeKind::Full);
        assert_eq!(kind(), HandshakeKind::Resumed);
        stage.authority.issue("0", &["localhost"]);
        stage.started.tls().unwrap().look();
        assert_eq!(kind(), HandshakeKind::Resumed);
        assert_eq!(stage.metric("overlane_tls_handshakes_total{kind=\"full\"}"), 1.0);
        assert_eq!(stage.metric("overlane_tls_handshakes_total{kind=\"resumed\"}"), 2.0);
    }
}

#[test]
fn versions_below_the_least_and_protocols_that_are_not_spoken_are_refused() {
    let stage = Stage::new(With { only_13: true, ..With::default() });
    let old = Client::new(stage.address(), &stage.authority, None, &[&version::TLS12]);
    let error = old.ask("localhost", "").err().unwrap().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    assert!(stage.client().ask("localhost", "").is_ok());
    let other = stage.client().with_protocols(&["spdy/3"]);
    let error = other.ask("localhost", "").err().unwrap().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    stage.until("overlane_tls_handshake_failures_total{reason=\"incompatible\"}", 2.0);
}

#[test]
fn a_changed_certificate_is_shown_to_new_connections_and_old_ones_live_on() {
    let stage = Stage::of(EngineChoice::Auto);
    let mut old = stage.client().open("localhost");
    write!(old, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_answer(&mut old);
    let until = "overlane_certificate_expiry_timestamp_seconds";
    let name = format!("{until}{{name=\"{}\"}}", stage.folder.path().join("0.crt").display());
    let before = stage.metric(&name);
    stage.authority.issue_until("0", &["localhost"], 3000);
    // The files are watched.
    let deadline = Instant::now() + PATIENCE;
    while stage.metric(&name) == before {
        assert!(Instant::now() < deadline, "{:?}", stage.started.tls().unwrap().problems());
    }
    let (new, _) = stage.client().ask("localhost", "").unwrap();
    assert_ne!(new.conn.peer_certificates(), old.conn.peer_certificates());
    write!(old, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(read_answer(&mut old).starts_with("HTTP/1.1 200"));

    fs::write(stage.folder.path().join("0.key"), "nothing").unwrap();
    stage.until("overlane_certificate_reload_failures_total", 1.0);
    let (same, _) = stage.client().ask("localhost", "").unwrap();
    assert_eq!(same.conn.peer_certificates(), new.conn.peer_certificates());
    let mut admin = TcpStream::connect(stage.started.admin()).unwrap();
    write!(admin, "GET /readyz?verbose HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut told = String::new();
    admin.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("0.key has no key in PEM"), "{told}");
}

#[test]
fn a_request_in_the_clear_is_told_that_the_port_speaks_tls() {
    let stage = Stage::of(EngineChoice::Auto);
    let mut stream = TcpStream::connect(stage.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n").unwrap();
    stream.write_all(&[b'z'; 100_000]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("this port speaks TLS") && answer.contains("use https://"), "{answer}");
    assert_eq!(stage.failures("plain-http"), 1.0);
}

#[test]
fn what_is_no_tls_and_handshakes_that_do_not_go_on_end_and_are_counted() {
    let limits = Limits { head: Duration::from_millis(50), ..Limits::default() };
    let stage = Stage::new(With { limits, ..With::default() });
    let hello: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for (bytes, reason) in [
        (&b"\0\0\0\0\0\0\0\0"[..], "malformed"),
        (b"\x16\x03\x01\x00\x05hello", "malformed"),
        (&[0x16, 3, 1, 0xff, 0xff], "malformed"),
        (hello, "timeout"),
        (&hello[..1], "timeout"),
    ] {
        let before = stage.failures(reason);
        let mut stream = TcpStream::connect(stage.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        // An alert, or nothing; and then the end.
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(stage.failures(reason), before + 1.0, "{bytes:?}");
    }
    // Where the client's end does not race with the deadline.
    let stage = Stage::new(With::default());
    let mut stream = TcpStream::connect(stage.address()).unwrap();
    stream.write_all(hello).unwrap();
    drop(stream);
    stage.until("overlane_tls_handshake_failures_total{reason=\"closed\"}", 1.0);
    drop(TcpStream::connect(stage.address()).unwrap());
    stage.until("overlane_connections ", 0.0);
    assert_eq!(stage.failures("closed"), 1.0, "who only looks whether the port is open does not fail");
}

#[test]
fn a_client_that_does_not_read_does_not_stay_for_ever() {
    for engine in ENGINES {
        let limits = Limits { write: Duration::from_millis(50), ..Limits::default() };
        let stage = Stage::new(With { engine, limits, ..With::default() });
        let mut stream = stage.client().open("localhost");
        write!(stream, "GET /larger HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stage.until("overlane_connections ", 0.0);
    }
}

#[test]
fn a_stop_does_not_wait_for_handshakes_that_do_not_go_on() {
    let Stage { started, .. } = Stage::of(EngineChoice::Auto);
    let address = started.addresses()[0];
    let mut silent = TcpStream::connect(address).unwrap();
    silent.write_all(&[0x16]).unwrap();
    let began = Instant::now();
    let stopped = started.stop_in_background();
    stopped.join().unwrap();
    // The deadline of a handshake is ten seconds.
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn clients_without_a_good_certificate_are_refused_where_one_is_required() {
    for engine in ENGINES {
        let stage = Stage::new(With { engine, clients: Some(true), ..With::default() });
        let strangers = Authority::new(stage.folder.path(), "strangers");
        let good = stage.clients.issue("good", &["web.example"]);
        assert!(stage.client_with(&good).ask("localhost", "").unwrap().1.starts_with("HTTP/1.1 200"));
        for (client, alert) in [
            (stage.client(), "CertificateRequired"),
            (stage.client_with(&strangers.issue("bad", &["web.example"])), "UnknownCA"),
            (
                stage.client_with(&stage.clients.issue_until("old", &["web.example"], 2001)),
                "CertificateExpired",
            ),
        ] {
            let error = client.ask("localhost", "").err().unwrap().to_string();
            assert!(error.contains(alert), "{engine:?} {error}");
        }
        stage.until("overlane_tls_handshake_failures_total{reason=\"no-client-certificate\"}", 1.0);
        stage.until("overlane_tls_handshake_failures_total{reason=\"client-certificate\"}", 2.0);
    }
}

#[test]
fn who_shows_a_certificate_is_verified_each_time() {
    for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
        let stage = Stage::new(With { clients: Some(true), ..With::default() });
        let pair = stage.clients.issue("good", &["web.example"]);
        let client = Client::new(stage.address(), &stage.authority, Some(&pair), versions);
        for _ in 0..2 {
            let (stream, _) = client.ask("localhost", "").unwrap();
            // A session that is resumed would outlive certificate and authority.
            assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full));
        }
        Authority::new(stage.folder.path(), "clients");
        stage.started.tls().unwrap().look();
        let error = client.ask("localhost", "").err().unwrap().to_string();
        assert!(error.contains("fatal alert"), "{error}");
    }
}

#[test]
fn only_the_listeners_that_are_named_speak_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ours");
    let tls = TlsSettings {
        certificates: vec![authority.issue("0", &["localhost"])],
        clients: None,
        only_13: false,
        roles: vec!["inbound"],
    };
    let upstream = upstream();
    let inbound = Role::Inbound { service: "web".parse().unwrap(), environment: None };
    let listeners = vec![
        stage::listener(inbound, "", Some(upstream), Trust::Any),
        stage::listener(Role::Outbound { service: None, environment: None }, "", None, Trust::Any),
    ];
    let settings = Settings { tls: Some(tls), ..Settings::in_process(listeners) };
    let started = stage::start_as(settings, stage::files("", upstream));
    let [inbound, outbound] = [0, 1].map(|at| started.addresses()[at]);
    let client = Client::new(inbound, &authority, None, &[&version::TLS13]);
    let (_, answer) = client.ask("localhost", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("orwarded"), "{answer}");
    let mut stream = TcpStream::connect(outbound).unwrap();
    write!(stream, "GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn overlay_headers_are_believed_of_trusted_identities_only() {
    for engine in ENGINES {
        let trust = Some("10.0.0.0/8,identity:spiffe://mesh/gateway/*,identity:ci.example");
        let stage = Stage::new(With { engine, clients: Some(false), trust, ..With::default() });
        for (names, believed) in [
            (&["spiffe://mesh/gateway/1"][..], true),
            (&["ci.example"], true),
            (&["ci.example", "spiffe://mesh/web"], false),
            (&["ci.example.org"], false),
        ] {
            let client = stage.client_with(&stage.clients.issue("client", names));
            assert_eq!(client.is_believed(), believed, "{engine:?} {names:?}");
        }
        assert!(!stage.client().is_believed(), "{engine:?}");
        // A certificate may be left out; one that is shown must be good.
        let strangers = Authority::new(stage.folder.path(), "strangers");
        let refused = stage.client_with(&strangers.issue("bad", &["ci.example"])).ask("localhost", "");
        assert!(refused.err().unwrap().to_string().contains("UnknownCA"), "{engine:?}");
    }
}

/// Whether a program is there; where it is not, what it would show is not tested.
fn is_there(program: &str) -> bool {
    Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    [ran.stdout, ran.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat()
}

#[test]
fn curl_is_served_and_asked_for_its_certificate() {
    if !is_there("curl") {
        return;
    }
    let stage =
        Stage::new(With { clients: Some(true), trust: Some("identity:ci.example"), ..With::default() });
    let pair = stage.clients.issue("curl", &["ci.example"]);
    let (authority, port) = (stage.authority.pem(), stage.address().port());
    let (authority, url) = (authority.to_str().unwrap(), format!("https://localhost:{port}/"));
    let resolve = format!("localhost:{port}:127.0.0.1");
    let common = ["-sSi", "--max-time", "10", "--cacert", authority, "--resolve", &resolve];
    let shown = ["--cert", pair.certificate.to_str().unwrap(), "--key", pair.key.to_str().unwrap()];
    let key = ["-H", "x-overlay-id: alice", &url, &url];
    for (agreed, answered) in [("--http1.1", "HTTP/1.1 200 OK"), ("--http2", "HTTP/2 200")] {
        let told = run("curl", &[&common[..], &[agreed], &shown, &key].concat());
        assert_eq!(told.matches(answered).count(), 2, "{told}");
        assert_eq!(told.matches("env=alice;via=overlay;reason=owned").count(), 2, "{told}");
    }
    let told = run("curl", &[&common[..], &[&url]].concat());
    assert!(told.contains("certificate required"), "{told}");
    let plain = format!("http://127.0.0.1:{port}/");
    let told = run("curl", &["-sSi", "--max-time", "10", &plain]);
    assert!(told.starts_with("HTTP/1.1 400") && told.contains("this port speaks TLS"), "{told}");
}

#[test]
fn openssl_resumes_its_sessions_in_both_versions() {
    if !is_there("openssl") {
        return;
    }
    let stage = Stage::new(With { hosts: vec![&["first.example"], &["localhost"]], ..With::default() });
    let (authority, session) = (stage.authority.pem(), stage.folder.path().join("session"));
    let (authority, session) = (authority.to_str().unwrap(), session.to_str().unwrap());
    let address = stage.address().to_string();
    for version in ["-tls1_3", "-tls1_2"] {
        let connect = |kept: &str, wanted: &str| {
            let mut child = Command::new("openssl")
                .args(["s_client", "-connect", &address, "-servername", "localhost", "-CAfile", authority])
                .args(["-verify_return_error", "-verify_hostname", "localhost", "-alpn", "http/1.1"])
                .args(["-ign_eof", version, kept, session])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
            let ran = child.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&ran.stdout);
            assert!(told.contains("HTTP/1.1 200 OK") && told.contains(wanted), "{version} {kept}: {told}");
            assert!(told.contains("ALPN protocol: http/1.1"), "{told}");
            assert!(told.trim_end().ends_with("closed"), "{told}");
        };
        connect("-sess_out", "New, TLSv1.");
        connect("-sess_in", "Reused, TLSv1.");
    }
}
