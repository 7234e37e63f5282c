//! The binary as a process: signals, ports, settings, exit codes.
#![allow(clippy::unwrap_used, missing_docs)]

mod child;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use child::{lines, overlane};

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A running proxy and the lines that it logs; it is killed when the test is over.
struct Proxy {
    child: Child,
    lines: Receiver<String>,
    /// Role and address of every listener so far.
    listening: Vec<(String, SocketAddr)>,
}

impl Proxy {
    fn start(command: &mut Command) -> Self {
        Self::start_logging(command, Stdio::null())
    }

    /// The same, with the access log to `log`.
    fn start_logging(command: &mut Command, log: Stdio) -> Self {
        let mut child = command.stdout(log).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines(&mut child);
        Self { child, lines, listening: Vec::new() }
    }

    /// `run` with the arguments, on free ports and the store `environments` of `folder`.
    fn run(arguments: &[&str], folder: &Path) -> Self {
        let ports = ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
        let mut proxy = Self::start(&mut overlane(&[&ports[..], arguments].concat(), folder));
        proxy.ready();
        proxy
    }

    /// Reads the log until a line is as `wanted` says; fails with everything read.
    fn log(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + LIMIT;
        let mut seen = String::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("the line did not come; the log is:\n{seen}");
            };
            let value: Value = serde_json::from_str(&line).unwrap_or(Value::String(line.clone()));
            if value["message"] == "listening" {
                let address = value["address"].as_str().unwrap().parse().unwrap();
                self.listening.push((value["role"].as_str().unwrap().to_owned(), address));
            }
            if wanted(&value) {
                return value;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
    }

    /// Waits until it serves and its signal handlers are in place: the admin listener's line is the
    /// last of the start, and the kernel tells which signals are caught.
    fn ready(&mut self) {
        self.log(|line| line["message"] == "listening" && line["role"] == "admin");
        let until = Instant::now() + LIMIT;
        while !self.catches_signals() {
            assert!(Instant::now() < until, "signals are not caught");
            thread::yield_now();
        }
    }

    fn catches_signals(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        // SIGHUP, SIGINT, SIGTERM.
        [1, 2, 15].into_iter().all(|signal| caught & (1 << (signal - 1)) != 0)
    }

    fn address(&self, role: &str) -> SocketAddr {
        self.listening.iter().find(|(known, _)| known == role).unwrap().1
    }

    fn signal(&self, name: &str) {
        let done =
            Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(done.success());
    }

    fn exit(&mut self) -> ExitStatus {
        exit(&mut self.child)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, and kills it where that takes too long.
fn exit(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it did not end");
        }
        thread::yield_now();
    }
}

/// A service that answers each connection's first request with its name, when `go` says so.
struct Service {
    address: SocketAddr,
    /// A request arrived.
    arrived: Receiver<()>,
}

fn service(name: &'static str, go: Option<Receiver<()>>) -> Service {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (sender, arrived) = channel();
    thread::spawn(move || {
        for stream in socket.incoming() {
            let mut stream = stream.unwrap();
            read_head(&mut stream);
            let _ = sender.send(());
            if let Some(go) = &go {
                let _ = go.recv_timeout(LIMIT);
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
                name.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Service { address, arrived }
}

fn read_head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn ask(address: SocketAddr, key: Option<&str>) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let key = key.map_or_else(String::new, |key| format!("x-overlay-id: {key}\r\n"));
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\n{key}Connection: close\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn baseline(url: SocketAddr) -> String {
    format!(
        "name: staging\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://{url}', expose: true}}]\n"
    )
}

/// A folder with a store that holds one baseline.
fn folder(url: SocketAddr) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("environments")).unwrap();
    fs::write(folder.path().join("environments/staging.yaml"), baseline(url)).unwrap();
    folder
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_with_0() {
    let (go, told) = channel();
    let web = service("slow", Some(told));
    let folder = folder(web.address);
    let mut proxy = Proxy::run(&[], folder.path());
    let stream = ask(proxy.address("gateway"), None);
    web.arrived.recv_timeout(LIMIT).unwrap();
    proxy.signal("TERM");
    proxy.log(|line| line["message"].as_str().is_some_and(|message| message.starts_with("stopping")));
    go.send(()).unwrap();
    let answer = answer(stream);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow"), "{answer}");
    assert!(proxy.exit().success());
}

#[test]
fn sigint_ends_a_proxy_with_0_as_well() {
    let folder = folder(service("web", None).address);
    let mut proxy = Proxy::run(&[], folder.path());
    proxy.signal("INT");
    assert!(proxy.exit().success());
}

/// A proxy whose settings file says for how long it does what, and a client that keeps its connection.
fn with_timeouts(folder: &Path, timeouts: &str) -> Proxy {
    fs::write(folder.join("settings.yaml"), format!("timeouts: {{{timeouts}}}\n")).unwrap();
    Proxy::run(&["--config", "settings.yaml"], folder)
}

/// Asks for `path` and keeps the connection; returns the head of the answer.
fn ask_on(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let head = read_head(stream);
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body).unwrap();
    head
}

#[test]
fn after_sigterm_a_proxy_is_not_ready_and_serves_until_its_time_is_over_or_it_is_told_again() {
    for again in [None, Some("TERM"), Some("INT")] {
        let folder = folder(service("web", None).address);
        let time = if again.is_some() { "1h" } else { "1s" };
        let mut proxy = with_timeouts(folder.path(), &format!("lameDuck: {time}"));
        let (gateway, admin) = (proxy.address("gateway"), proxy.address("admin"));
        let mut kept = TcpStream::connect(gateway).unwrap();
        assert!(!ask_on(&mut kept, "/").contains("Connection: close"));
        let mut probe = TcpStream::connect(admin).unwrap();
        assert!(ask_on(&mut probe, "/readyz").starts_with("HTTP/1.1 200"));
        proxy.signal("TERM");
        proxy.log(|line| {
            line["message"].as_str().is_some_and(|message| message.starts_with("stopping: not ready"))
        });
        assert!(ask_on(&mut probe, "/readyz").starts_with("HTTP/1.1 503"));
        for stream in [&mut kept, &mut TcpStream::connect(gateway).unwrap()] {
            let head = ask_on(stream, "/");
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("Connection: close"), "{head}");
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it ends, as was said");
        }
        if let Some(signal) = again {
            proxy.signal(signal);
        }
        assert!(proxy.exit().success());
    }
}

#[test]
fn what_is_left_when_the_drain_limit_is_reached_or_another_signal_comes_is_closed_and_the_exit_code_is_0() {
    for (drain, why) in [("50ms", "the drain limit is reached"), ("1h", "told to stop at once")] {
        let (_go, told) = channel();
        let web = service("never", Some(told));
        let folder = folder(web.address);
        let mut proxy = with_timeouts(folder.path(), &format!("drain: {drain}, lameDuck: 1h"));
        let mut stream = ask(proxy.address("gateway"), None);
        web.arrived.recv_timeout(LIMIT).unwrap();
        proxy.signal("INT");
        proxy.log(|line| {
            line["message"].as_str().is_some_and(|message| message.starts_with("stopping: finishing"))
        });
        if drain == "1h" {
            proxy.signal("INT");
        }
        let line = proxy.log(|line| line["level"] == "WARN");
        assert_eq!(
            (&line["message"], &line["connections"]),
            (&format!("{why}: closing what is left").into(), &1.into())
        );
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        assert!(proxy.exit().success());
    }
}

#[test]
fn without_file_descriptors_a_proxy_waits_and_recovers() {
    let folder = folder(service("web", None).address);
    let mut command = Command::new("sh");
    let limited = r#"ulimit -n 40; exec "$@""#;
    command.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_overlane"), "run", "--workers", "1"]);
    command.args(["--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).current_dir(folder.path());
    let mut proxy = Proxy::start(command.stdin(Stdio::null()));
    proxy.ready();
    let (gateway, admin) = (proxy.address("gateway"), proxy.address("admin"));
    // They have begun to ask, so that nobody may close them.
    let begun = |_| {
        let mut stream = TcpStream::connect(gateway).unwrap();
        stream.write_all(b"GET / HT").unwrap();
        stream
    };
    let clients: Vec<_> = (0..60).map(begun).collect();
    let line = proxy.log(|line| line["level"] == "WARN");
    assert!(line["message"].as_str().unwrap().starts_with("cannot accept connections"), "{line}");
    assert!(line["error"].as_str().unwrap().contains("Too many open files"), "{line}");
    drop(clients);
    assert!(answer(ask(gateway, None)).ends_with("web"));
    let mut metrics = TcpStream::connect(admin).unwrap();
    write!(metrics, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let told = answer(metrics);
    let count = told.lines().find_map(|line| line.strip_prefix("overlane_accept_failures_total "));
    assert!(count.unwrap().parse::<u64>().unwrap() > 0);
}

#[test]
fn sighup_reads_the_store_again() {
    let (web, alice) = (service("web", None), service("alice", None));
    let folder = folder(web.address);
    let mut proxy = Proxy::run(&[], folder.path());
    let gateway = proxy.address("gateway");
    assert!(answer(ask(gateway, Some("alice"))).ends_with("web"));
    let overlay = format!(
        "name: alice\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: web, url: 'http://{}'}}]\n",
        alice.address
    );
    fs::write(folder.path().join("environments/alice.yaml"), overlay).unwrap();
    proxy.signal("HUP");
    // The watcher may have been faster; what is in force after the signal is what counts.
    proxy.log(|line| line["message"] == "reloaded" && line["trigger"] == "signal");
    let answer = answer(ask(gateway, Some("alice")));
    assert!(answer.ends_with("alice") && answer.contains("reason=owned"), "{answer}");
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    answer(stream)
}

/// Waits until a page of the admin listener says this.
fn until_says(address: SocketAddr, path: &str, words: &str) {
    let until = Instant::now() + LIMIT;
    loop {
        let said = get(address, path);
        if said.contains(words) {
            return;
        }
        assert!(Instant::now() < until, "{path} does not say {words:?}:\n{said}");
        thread::yield_now();
    }
}

#[test]
fn killed_and_started_without_its_store_it_serves_what_was_last_good_and_then_what_the_store_says() {
    let (old, new) = (service("old", None), service("new", None));
    let folder = folder(old.address);
    let (store, away) = (folder.path().join("environments"), folder.path().join("away"));
    let overlay = |until: &str| {
        format!(
            "name: alice\nrouting: {{mode: overlay, baselineId: staging, expiresAt: '{until}'}}\nservices: [{{name: web, url: 'http://{}'}}]\n",
            old.address
        )
    };
    fs::write(store.join("alice.yaml"), overlay("2020-01-01T00:00:00Z")).unwrap();
    let arguments = ["--cache", "kept"];
    let mut proxy = Proxy::run(&arguments, folder.path());
    until_says(proxy.address("admin"), "/metrics", "overlane_cache_writes_total{result=\"ok\"} 1\n");
    // A bad edit: what was good before is what is kept.
    fs::write(store.join("staging.yaml"), "name: [").unwrap();
    until_says(proxy.address("admin"), "/metrics", "overlane_cache_writes_total{result=\"ok\"} 2\n");
    proxy.signal("KILL");
    assert!(!proxy.exit().success());
    fs::rename(&store, &away).unwrap();

    let mut proxy = Proxy::start(&mut overlane(
        &["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cache", "kept"],
        folder.path(),
    ));
    proxy.log(|line| line["message"].as_str().is_some_and(|message| message.starts_with("STALE: ")));
    proxy.ready();
    let (gateway, admin) = (proxy.address("gateway"), proxy.address("admin"));
    assert!(answer(ask(gateway, None)).ends_with("old"));
    let expired = answer(ask(gateway, Some("alice")));
    assert!(expired.contains("reason=expired"), "{expired}");
    let ready = get(admin, "/readyz?verbose");
    assert!(
        ready.contains("200 OK")
            && ready.contains("problem: STALE: cannot read the directory ./environments"),
        "{ready}"
    );
    assert!(get(admin, "/metrics").contains("overlane_config_stale 1\n"));

    // Not mounted yet, then mounted with another baseline and no overlay.
    fs::create_dir(&store).unwrap();
    proxy.log(|line| line["problem"].as_str().is_some_and(|problem| problem.contains("is it mounted?")));
    assert!(answer(ask(gateway, None)).ends_with("old"));
    fs::write(away.join("staging.yaml"), baseline(new.address)).unwrap();
    fs::remove_file(away.join("alice.yaml")).unwrap();
    fs::remove_dir(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    proxy.log(|line| line["message"] == "the store can be read again");
    until_says(admin, "/metrics", "overlane_config_stale 0\n");
    until_says(admin, "/metrics", "overlane_overlays 0\n");
    assert!(answer(ask(gateway, None)).ends_with("new"));
    assert!(answer(ask(gateway, Some("alice"))).contains("reason=unknown"));
}

#[test]
fn a_cache_of_no_use_is_said_and_written_anew() {
    let web = service("web", None);
    let folder = folder(web.address);
    let mut proxy = Proxy::run(&["--cache", "kept"], folder.path());
    proxy.signal("TERM");
    assert!(proxy.exit().success());
    let kept = fs::read_dir(folder.path().join("kept")).unwrap().map(|entry| entry.unwrap().path());
    let kept =
        kept.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "cache")).unwrap();
    let good = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, good.replace("staging", "stagnig")).unwrap();
    let mut command = overlane(
        &["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cache", "kept"],
        folder.path(),
    );
    let mut proxy = Proxy::start(&mut command);
    let line = proxy.log(|line| line["message"] == "the cache is not used, and will be written anew");
    assert_eq!(line["error"], "is damaged: its checksum is another one");
    proxy.ready();
    until_says(proxy.address("admin"), "/metrics", "overlane_cache_writes_total{result=\"ok\"} 1\n");
    let body = |text: &str| text.split_once('\n').unwrap().1.lines().next().unwrap().to_owned();
    assert_eq!(body(&fs::read_to_string(&kept).unwrap()), body(&good));
}

#[test]
fn on_a_full_disk_nothing_is_acknowledged_and_the_old_file_stays() {
    let web = service("web", None);
    let folder = folder(web.address);
    let before = fs::read_to_string(folder.path().join("environments/staging.yaml")).unwrap();
    // Larger than what the limit below lets through.
    let large = before.clone() + &format!("# {}\n", "x".repeat(8192));
    fs::write(folder.path().join("large.yaml"), &large).unwrap();
    let limited = |arguments: &str| {
        // A write beyond the limit fails like one to a full disk, where the signal is ignored.
        let script =
            format!("trap '' XFSZ; ulimit -f 4; exec {} {arguments}", env!("CARGO_BIN_EXE_overlane"));
        Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder.path())
            .env("NO_COLOR", "1")
            .output()
            .unwrap()
    };
    let done = limited("baseline apply --file large.yaml");
    let errors = String::from_utf8(done.stderr).unwrap();
    assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0), "{errors}");
    assert!(errors.contains("environments/staging.yaml: File too large"), "{errors}");
    assert_eq!(fs::read_to_string(folder.path().join("environments/staging.yaml")).unwrap(), before);
    let names: Vec<_> = fs::read_dir(folder.path().join("environments"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.iter().all(|name| *name == *"staging.yaml" || *name == *".overlane.lock"), "{names:?}");
    let done = overlane(&["baseline", "apply", "--file", "large.yaml"], folder.path()).output().unwrap();
    assert!(done.status.success());
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flags in
        [["--gateway", &address, "--admin", "127.0.0.1:0"], ["--gateway", "127.0.0.1:0", "--admin", &address]]
    {
        let done = overlane(&[&["run"][..], &flags].concat(), folder.path()).output().unwrap();
        let errors = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&format!("cannot listen on {address}")), "{errors}");
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("settings.yaml"),
        "gateway: 127.0.0.2:0\noutbound: 127.0.0.2:0\nadmin: 127.0.0.2:0\nworkers: 1\n",
    )
    .unwrap();
    let mut command =
        overlane(&["run", "--config", "settings.yaml", "--admin", "127.0.0.4:0"], folder.path());
    let mut proxy =
        Proxy::start(command.env("OVERLANE_OUTBOUND", "127.0.0.3:0").env("OVERLANE_ADMIN", "127.0.0.3:0"));
    proxy.ready();
    let hosts: Vec<_> =
        proxy.listening.iter().map(|(role, address)| (role.as_str(), address.ip().to_string())).collect();
    let expected = [("gateway", "127.0.0.2"), ("outbound", "127.0.0.3"), ("admin", "127.0.0.4")];
    assert_eq!(hosts, expected.map(|(role, host)| (role, host.to_owned())));
}

#[test]
fn an_empty_store_prints_the_command_to_type_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::run(&[], folder.path());
    let line =
        proxy.log(|line| line["message"].as_str().is_some_and(|message| message.contains("type next")));
    let message = line["message"].as_str().unwrap();
    assert!(
        message.ends_with("overlane baseline create --file baseline.yaml --store ./environments"),
        "{message}"
    );
}

#[test]
fn the_command_printed_for_an_empty_store_gives_it_a_baseline() {
    let web = service("web", None);
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::run(&[], folder.path());
    let gateway = proxy.address("gateway");
    let before = answer(ask(gateway, None));
    assert!(before.starts_with("HTTP/1.1 503") && before.contains("baseline create"), "{before}");
    fs::write(folder.path().join("baseline.yaml"), baseline(web.address)).unwrap();
    let create = ["baseline", "create", "--file", "baseline.yaml", "--store", "./environments"];
    assert!(overlane(&create, folder.path()).output().unwrap().status.success());
    proxy.log(|line| line["changes"].as_str().is_some_and(|changes| changes.contains("+staging")));
    assert!(answer(ask(gateway, None)).ends_with("web"));
}

/// Writes a certificate for `localhost` that is its own authority, and its key.
fn write_certificate(folder: &Path) {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("tls.crt"), certificate.cert.pem()).unwrap();
    fs::write(folder.join("tls.key"), certificate.signing_key.serialize_pem()).unwrap();
}

/// Asks over TLS, trusting the certificate in the folder and showing it as well.
fn ask_tls(address: SocketAddr, folder: &Path) -> Result<String, rustls::Error> {
    use rustls::pki_types::pem::PemObject;
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(folder.join("tls.crt")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(folder.join("tls.key")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_root_certificates(roots);
    let config = std::sync::Arc::new(config.with_client_auth_cert(vec![certificate], key).unwrap());
    let connection = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    let mut answer = String::new();
    let asked = write!(stream, "GET /path?q HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .and_then(|()| stream.read_to_string(&mut answer));
    match asked {
        Ok(_) => Ok(answer),
        Err(error) => Err(error.downcast().unwrap()),
    }
}

#[test]
fn flags_make_a_proxy_speak_tls_and_sighup_reads_the_certificate_again() {
    let folder = folder(service("web", None).address);
    write_certificate(folder.path());
    let mut proxy = Proxy::run(&["--tls-cert", "tls.crt", "--tls-key", "tls.key"], folder.path());
    let gateway = proxy.address("gateway");
    assert!(ask_tls(gateway, folder.path()).unwrap().ends_with("web"));
    write_certificate(folder.path());
    proxy.signal("HUP");
    proxy.log(|line| line["message"] == "a new certificate is in force" && line["names"] == "localhost");
    assert!(ask_tls(gateway, folder.path()).unwrap().ends_with("web"));
    fs::write(folder.path().join("tls.key"), "").unwrap();
    proxy.signal("HUP");
    let line = proxy.log(|line| line["level"] == "WARN");
    assert!(line["message"].as_str().unwrap().contains("tls.key has no key in PEM"), "{line}");
    assert!(line["hint"].as_str().unwrap().contains("BEGIN PRIVATE KEY"), "{line}");
    proxy.signal("TERM");
    assert!(proxy.exit().success());
}

#[test]
fn the_access_log_names_clients_by_their_certificates() {
    let folder = folder(service("web", None).address);
    write_certificate(folder.path());
    let ca = ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1", "--access-log"];
    let tls = ["--tls-cert", "tls.crt", "--tls-key", "tls.key", "--tls-client-ca", "tls.crt"];
    let trust = ["--trust", "identity:localhost"];
    let mut command = overlane(&[&ca[..], &tls, &trust].concat(), folder.path());
    let mut proxy = Proxy::start_logging(&mut command, Stdio::piped());
    let log = proxy.child.stdout.take().unwrap();
    proxy.ready();
    assert!(ask_tls(proxy.address("gateway"), folder.path()).unwrap().ends_with("web"));
    let line = BufReader::new(log).lines().next().unwrap().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["overlane.client_identity"], &line["url.path"]),
        (&"localhost".into(), &"/path".into())
    );
}

#[test]
fn the_access_log_has_every_request_when_the_process_is_over() {
    let folder = folder(service("web", None).address);
    let flags =
        ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1", "--access-log"];
    let mut proxy = Proxy::start_logging(&mut overlane(&flags, folder.path()), Stdio::piped());
    let log = proxy.child.stdout.take().unwrap();
    proxy.ready();
    for _ in 0..100 {
        assert!(answer(ask(proxy.address("gateway"), None)).ends_with("web"));
    }
    proxy.signal("TERM");
    assert_eq!(BufReader::new(log).lines().count(), 100);
}

/// Runs a proxy that logs as `accessLog` of its settings says, and returns what it has logged when all were asked.
fn access_log(settings: &str, requests: &[&[u8]]) -> String {
    let folder = folder(service("web", None).address);
    fs::write(folder.path().join("settings.yaml"), settings).unwrap();
    let flags = ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let flags = [&flags[..], &["--config", "settings.yaml"]].concat();
    let mut proxy = Proxy::start_logging(&mut overlane(&flags, folder.path()), Stdio::piped());
    let mut log = proxy.child.stdout.take().unwrap();
    proxy.ready();
    for request in requests {
        let mut stream = TcpStream::connect(proxy.address("gateway")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 "), "{:?}", request.escape_ascii().to_string());
    }
    proxy.signal("TERM");
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn whatever_clients_send_the_log_has_one_line_for_each_request_and_no_secret() {
    let end = b"Connection: close\r\nCookie: a=SECRET\r\nAuthorization: Bearer SECRET\r\n\r\n";
    let head = |start: &[u8]| [start, b"\r\nHost: x\r\n", end].concat();
    let requests = [
        head(b"GET /a?token=SECRET HTTP/1.1"),
        head(b"GET /\"quoted\"\\ HTTP/1.1"),
        head("GET /\u{85}\u{9b}31m\u{2028}\u{202e} HTTP/1.1".as_bytes()),
        head(b"GET /a;jsessionid=SECRET/b HTTP/1.1"),
        head(b"GET /http://user:SECRET@host/ HTTP/1.1"),
        head(b"GET /a HTTP/1.1\r\nUser-Agent: \" - \x80\xff\t{\"a\":1}"),
        head(b"GET /a HTTP/1.1\r\nReferer: https://u:SECRET@shop/x?y=SECRET#SECRET"),
        head(b"GET /a HTTP/1.1\r\nx-request-id: \"],\"status\":500,\"x\":[\""),
        head(b"GET /%0d%0a%0d%0aHTTP/1.1%20200 HTTP/1.1"),
        head(b"GET /a\r\nGET /b HTTP/1.1"),
        head(b"GET /a HTTP/1.1\r\n injected: line"),
        b"GET /a HTTP/1.1\r\nHost: user:SECRET@x\r\n\r\n".to_vec(),
        b"\x1b[2J\x00\n\n".to_vec(),
        b"\"quoted\" / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ];
    let requests: Vec<_> = requests.iter().map(Vec::as_slice).collect();
    for format in ["json", "common", "combined"] {
        let log = access_log(&format!("accessLog: {format}\n"), &requests);
        assert_eq!(log.lines().count(), requests.len(), "{log}");
        assert!(!log.contains("SECRET"), "{log}");
        for line in log.split_terminator('\n') {
            assert!(
                !line.contains(|c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)),
                "{line:?}"
            );
            match format {
                "json" => assert!(serde_json::from_str::<Value>(line).unwrap()["overlane.role"] == "gateway"),
                _ => assert!(line.is_ascii() && line.contains(" role=gateway host="), "{line}"),
            }
        }
    }
}

#[test]
fn of_what_is_sampled_errors_are_logged_always_unless_told_otherwise() {
    let head = |line: &str| format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes();
    let good = head("GET / HTTP/1.1");
    let bad = [head("GET / HTTP/1.1\r\nx-overlay-id: _"), head("TRACE / HTTP/1.1")];
    let requests: Vec<_> = [vec![good; 20], bad.to_vec()].concat();
    let requests: Vec<_> = requests.iter().map(Vec::as_slice).collect();
    let statuses = |settings: &str| -> Vec<u64> {
        let log = access_log(settings, &requests);
        let status =
            |line| serde_json::from_str::<Value>(line).unwrap()["http.response.status_code"].as_u64();
        log.lines().map(|line| status(line).unwrap()).collect()
    };
    assert_eq!(statuses("accessLog: {sample: 0}"), [400, 405]);
    assert_eq!(statuses("accessLog: {sample: 0, errors: sampled}"), [405_u64; 0]);
    assert_eq!(statuses("accessLog: true").len(), 22);
    let some = statuses("accessLog: {sample: 0.5}");
    // All or none of twenty: once in half a million times.
    assert!((3..22).contains(&some.len()), "{some:?}");
}

#[test]
fn check_says_for_whom_and_how_long_certificates_are() {
    let folder = folder(service("web", None).address);
    write_certificate(folder.path());
    let ports = ["check", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let tls = ["--tls-cert", "tls.crt", "--tls-key", "tls.key", "--tls-client-ca", "tls.crt"];
    let done = overlane(&[&ports[..], &tls].concat(), folder.path()).output().unwrap();
    let told = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{told}");
    assert!(told.contains("√ the certificate tls.crt: for localhost until 4096-01-01T00:00:00Z\n"), "{told}");
    assert!(told.contains("√ clients are verified by tls.crt\n"), "{told}");
}

#[test]
fn check_makes_a_cache_that_only_its_owner_reads() {
    let folder = folder(service("web", None).address);
    let flags = ["check", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cache", "kept/here"];
    let done = overlane(&flags, folder.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    let mode = fs::metadata(folder.path().join("kept/here")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn the_demo_checks_itself() {
    let folder = tempfile::tempdir().unwrap();
    let done = overlane(&["demo", "--once"], folder.path()).output().unwrap();
    let report = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{report}");
    assert_eq!(report.lines().filter(|line| line.starts_with("ok ")).count(), 4, "{report}");
}

#[test]
fn a_completion_script_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, beginning) in [("bash", "_overlane() {"), ("zsh", "#compdef overlane"), ("fish", "# Print")] {
        let done = overlane(&["completion", shell], folder.path()).output().unwrap();
        let script = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && script.starts_with(beginning), "{}", &script[..200]);
    }
}

/// Resident memory of a process but for its code, in KiB.
fn resident(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_goes_back_while_nobody_asks_anything() {
    const CLIENTS: u64 = 300;
    let folder = folder(([127, 0, 0, 1], 1).into());
    let proxy = Proxy::run(&[], folder.path());
    let address = proxy.address("gateway");
    let before = resident(&proxy.child);
    // Heads that do not end, and are just not too large.
    let head = format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}", "x".repeat(60_000));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    let until = |what: &str, wanted: &dyn Fn(u64) -> bool| {
        let end = Instant::now() + LIMIT;
        while !wanted(resident(&proxy.child)) {
            assert!(Instant::now() < end, "{what}: {before} KiB, and now {}", resident(&proxy.child));
            thread::yield_now();
        }
    };
    until("it is held", &|now| now > before + CLIENTS * 50);
    drop(clients);
    // Pages on which something else lives stay.
    until("it goes back", &|now| now < before + CLIENTS * 40);
}

/// `run` as a service manager starts it: with a socket that it keeps, and told where to say how it is.
fn handed(socket: &TcpListener, told: &Path, folder: &Path) -> Proxy {
    let gateway = socket.local_addr().unwrap().to_string();
    let run = overlane(
        &["run", "--gateway", &gateway, "--admin", "127.0.0.1:0", "--config", "settings.yaml"],
        folder,
    );
    // The number of a process is only known once it is there.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"", "sh"]);
    shell.arg(run.get_program()).args(run.get_args()).current_dir(folder);
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("NOTIFY_SOCKET", told).env("WATCHDOG_USEC", "2000000");
    shell.stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
    let mut proxy = Proxy::start(&mut shell);
    proxy.ready();
    proxy
}

#[test]
fn who_connects_while_a_process_is_started_anew_that_was_handed_its_socket_is_served_by_the_next() {
    let folder = folder(service("web", None).address);
    fs::write(folder.path().join("settings.yaml"), "timeouts: {lameDuck: 0s}\n").unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let path = folder.path().join("told");
    let told = UnixDatagram::bind(&path).unwrap();
    told.set_read_timeout(Some(LIMIT)).unwrap();
    let until = |wanted: &str| {
        let mut bytes = [0; 256];
        while told
            .recv(&mut bytes)
            .map(|length| std::str::from_utf8(&bytes[..length]).unwrap().trim() != wanted)
            .unwrap()
        {}
    };
    let mut first = handed(&socket, &path, folder.path());
    assert_eq!(first.address("gateway"), at);
    until("READY=1");
    until("WATCHDOG=1");
    assert!(answer(ask(at, None)).ends_with("web"));
    first.signal("TERM");
    until("STOPPING=1");
    assert!(first.exit().success());
    let waiting = ask(at, None);
    let second = handed(&socket, &path, folder.path());
    assert!(answer(waiting).ends_with("web"));
    until("READY=1");
    drop(second);
}

#[test]
fn a_socket_that_is_handed_over_and_of_no_listener_is_told() {
    let folder = folder(service("web", None).address);
    fs::write(folder.path().join("settings.yaml"), "gateway: 127.0.0.1:0\n").unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = format!(
        "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"{}\" run --admin 127.0.0.1:0 --config settings.yaml",
        env!("CARGO_BIN_EXE_overlane")
    );
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &run])
        .current_dir(folder.path())
        .stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
    let mut proxy = Proxy::start(&mut shell);
    let at = socket.local_addr().unwrap().to_string();
    proxy.log(|line| {
        line["message"].as_str().is_some_and(|message| message.contains("of no listener"))
            && line["address"] == at.as_str()
    });
}

#[test]
fn what_the_command_line_says_goes_before_what_the_environment_says_in_other_words() {
    let folder = tempfile::tempdir().unwrap();
    let base = "name: base\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://127.0.0.1:1'}]\n";
    fs::create_dir(folder.path().join("own")).unwrap();
    fs::write(folder.path().join("own/base.yaml"), base).unwrap();
    let with = |arguments: &[&str], variables: &[(&str, &str)]| {
        let run = overlane(arguments, folder.path()).envs(variables.iter().copied()).output().unwrap();
        [run.stdout, run.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let server = ("OVERLANE_SERVER", "http://127.0.0.1:1");
    for arguments in [["--store", "own", "baseline", "list"], ["baseline", "list", "--store", "own"]] {
        let [out, said] = with(&arguments, &[server]);
        assert!(out.contains("base") && said.is_empty(), "{out}{said}");
    }
    let [_, said] = with(&["baseline", "list", "--server", server.1], &[("OVERLANE_STORE", "own")]);
    assert!(said.contains("127.0.0.1:1 cannot be reached"), "{said}");
    let [_, said] = with(&["baseline", "list"], &[server, ("OVERLANE_STORE", "own")]);
    assert!(said.contains("give one of them"), "{said}");
    let by_file = ["baseline", "list", "--server", server.1, "--server-token-file", "none"];
    let [_, said] = with(&by_file, &[("OVERLANE_SERVER_TOKEN", "of the environment")]);
    assert!(said.contains("cannot read the token none"), "{said}");
}

#[test]
fn the_level_of_the_log_is_changed_while_the_process_runs_and_what_is_no_level_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("environments")).unwrap();
    let arguments = ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let mut command = overlane(&arguments, folder.path());
    let mut proxy = Proxy::start(command.env("OVERLANE_LOG", "loud"));
    proxy.log(|line| line["message"].as_str().unwrap().starts_with("OVERLANE_LOG: `loud` is no level"));
    proxy.ready();
    let admin = proxy.address("admin");
    assert!(get(admin, "/logging").ends_with("{\"filter\":\"info\"}"));
    let put = |filter: &str| {
        let body = format!("{{\"filter\": \"{filter}\"}}");
        let mut stream = TcpStream::connect(admin).unwrap();
        let length = body.len();
        write!(
            stream,
            "PUT /logging HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(put("info;debug").contains("`info;debug` is no level of a log; write error, warn"));
    assert!(put("off").ends_with("{\"filter\":\"off\"}"));
    let base = "name: base\nrouting: {mode: baseline}\nservices: [{name: web, expose: true, url: 'http://127.0.0.1:1'}]\n";
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join("environments").join(name), text).unwrap();
        until_says(admin, "/config_dump", &format!("\"{}\"", name.trim_end_matches(".yaml")));
    };
    write("base.yaml", base);
    assert!(put("warn,overlane::control=info").contains("200 OK"));
    write("alice.yaml", "name: alice\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: web}]\n");
    let first = proxy.log(|line| line["message"] == "reloaded");
    assert!(first["changes"].as_str().unwrap().contains("alice"), "{first}");
}
