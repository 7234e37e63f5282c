//! Listeners on unix sockets: what a listener of TCP does, they do.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, ListenerSettings};
use overlane::settings::Settings;
use overlane::upstream::Address;
use overlane_config::route::{Listener, Role};
use overlane_tests::stage::{self, Started};

/// An application on a unix socket that answers with the head that it got.
fn application(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.extend(byte);
            }
            let length = head.len();
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(&head);
        }
    });
}

fn listener(role: Role, path: &Path, app: Option<&Path>) -> ListenerSettings {
    ListenerSettings {
        address: Address::Unix(path.display().to_string().into()),
        listener: Listener { role, baseline: None },
        app: app.map(|app| format!("unix:{}", app.display()).parse().unwrap()),
        trust: Trust::Any,
    }
}

/// A gateway on `gate.sock` before a sidecar on `side.sock` before an application on `app.sock`.
fn hops(folder: &Path, engine: EngineChoice) -> Started {
    let [gate, side, app] = ["gate.sock", "side.sock", "app.sock"].map(|name| folder.join(name));
    application(&app);
    let inbound = Role::Inbound { service: "web".parse().unwrap(), environment: "alice".parse().ok() };
    let listeners = vec![listener(Role::Gateway, &gate, None), listener(inbound, &side, Some(&app))];
    let allow_unix = vec![folder.display().to_string()];
    let settings = Settings { engine, allow_unix, workers: 2, ..Settings::in_process(listeners) };
    stage::start_as(settings, stage::files_at("", &format!("unix:{}", side.display())))
}

fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(b"GET /p HTTP/1.1\r\nHost: web\r\nx-overlay-id: alice\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn every_hop_can_be_a_unix_socket() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let folder = tempfile::tempdir().unwrap();
        let running = hops(folder.path(), engine);
        // More than workers: each of them accepts.
        for _ in 0..8 {
            let answer = ask(&folder.path().join("gate.sock"));
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /p HTTP/1.1"), "{answer}");
            assert!(answer.contains("x-overlay-id: alice"), "{answer}");
            assert!(
                answer.contains("X-Forwarded-For: 127.0.0.1"),
                "who is on this machine is loopback: {answer}"
            );
        }
        assert!(running.addresses().is_empty());
        running.stop_in_background().join().unwrap();
        for socket in ["gate.sock", "side.sock"] {
            assert!(!folder.path().join(socket).exists(), "{socket} is left behind");
        }
    }
}

#[test]
fn http_2_is_spoken_on_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let _running = hops(folder.path(), EngineChoice::Auto);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(folder.path().join("gate.sock")).await.unwrap();
        let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..3 {
            let request = Request::get("http://web/p").header("x-overlay-id", "alice");
            let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.headers()["x-overlay-route"].to_str().unwrap().contains("env=alice"));
        }
    });
}
