//! The schemes of upstream urls, each spoken by a real peer.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use overlane::plane::ListenerSettings;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::upstream::Address;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::{Listener, Role};
use overlane_tests::stage::{self, Started};

use super::ask;

fn gateway(url: &str, allow_unix: Vec<String>) -> (Started, SocketAddr) {
    let text = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, url: '{url}'}}]\n"
    );
    gateway_of(text, allow_unix)
}

fn gateway_of(text: String, allow_unix: Vec<String>) -> (Started, SocketAddr) {
    let source = Source::new("base.yaml".into(), text, None);
    let file = FileChange { path: "base.yaml".into(), content: Content::Text(Arc::new(source)) };
    let listener = ListenerSettings {
        address: Address::Tcp(([127, 0, 0, 1], 0).into()),
        listener: Listener { role: Role::Gateway, baseline: None },
        app: None,
        trust: Trust::Any,
    };
    let settings = Settings { allow_unix, ..Settings::in_process(vec![listener]) };
    let running = stage::start_as(settings, vec![file]);
    let address = running.addresses()[0];
    (running, address)
}

/// Posts `body` and returns everything that is answered until the connection closes.
fn post(gateway: SocketAddr, body: &str) -> String {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    write!(stream, "POST /p?q HTTP/1.1\r\nHost: web\r\nx-overlay-id: nobody\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let key = head.headers.get("x-overlay-id").map_or("none", |key| key.to_str().unwrap());
    let told = format!(
        "{:?} {} {} key={key} body={}",
        head.version,
        head.method,
        head.uri.path_and_query().unwrap(),
        String::from_utf8_lossy(&body)
    );
    Ok(Response::new(Full::new(told.into())))
}

#[test]
fn h2c_upstreams_are_spoken_to_in_http_2() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let upstream = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service_fn(echo)));
        }
    });
    let (_running, gateway) = gateway(&format!("h2c://{upstream}"), Vec::new());
    for _ in 0..3 {
        let answer = post(gateway, "hello");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/2.0 POST /p?q key=nobody body=hello"),
            "{answer}"
        );
        assert!(answer.contains("x-overlay-route: web;env=base;via=baseline;reason=unknown"), "{answer}");
    }
}

/// An upstream that echoes, in HTTP/2 or HTTP/1.1.
async fn echoing(http2: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let io = TokioIo::new(listener.accept().await.unwrap().0);
            if http2 {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(io, service_fn(echo)));
            } else {
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(io, service_fn(echo)));
            }
        }
    });
    upstream
}

#[test]
fn clients_of_http_2_are_served_many_streams_at_a_time_whatever_the_upstream_speaks() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (http2, scheme, version) in [(true, "h2c", "HTTP/2.0"), (false, "http", "HTTP/1.1")] {
        let upstream = runtime.block_on(echoing(http2));
        let (_running, gateway) = gateway(&format!("{scheme}://{upstream}"), Vec::new());
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
            let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let ask = |number: usize| {
                let mut sender = sender.clone();
                async move {
                    // Some fit into a window, some do not.
                    let body = "x".repeat(number * 10_000);
                    let request = Request::post("http://web/p?q")
                        .header("x-overlay-id", "nobody")
                        .body(Full::<Bytes>::from(body.clone()))
                        .unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let receipt = answer.headers()["x-overlay-route"].to_str().unwrap();
                    assert!(receipt.starts_with("web;env=base;via=baseline;reason=unknown"), "{receipt}");
                    let told = answer.collect().await.unwrap().to_bytes();
                    assert_eq!(told, format!("{version} POST /p?q key=nobody body={body}"));
                }
            };
            let streams: Vec<_> = (0..40).map(|number| tokio::spawn(ask(number))).collect();
            for stream in streams {
                tokio::time::timeout(Duration::from_secs(20), stream).await.unwrap().unwrap();
            }
        });
    }
}

/// An upstream of HTTP/2 that resets the stream of every request to `/reset`, and counts those.
async fn resetting() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let io = TokioIo::new(listener.accept().await.unwrap().0);
            let counted = counted.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let resets = request.uri().path() == "/reset";
                counted.fetch_add(usize::from(resets), SeqCst);
                async move { if resets { Err("reset") } else { Ok(Response::new(Full::<Bytes>::from("ok"))) } }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(io, answer));
        }
    });
    (upstream, count)
}

/// The answer to a request with this target, and nothing more.
fn get(gateway: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_call_whose_stream_is_reset_is_not_repeated_for_ever() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (upstream, resets) = runtime.block_on(resetting());
    let (_running, gateway) = gateway(&format!("h2c://{upstream}"), Vec::new());
    // There is a connection now, which all calls share.
    assert!(get(gateway, "/").starts_with("HTTP/1.1 200"));
    let answer = get(gateway, "/reset");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert_eq!(resets.load(SeqCst), 1, "the upstream has seen it: that is no connection that was closed");
}

#[test]
fn requests_that_their_client_gave_up_are_bounded() {
    let text = "name: base\nrouting: {mode: baseline, holdFor: 10s}\nservices: [{name: web, expose: true, url: 'http://127.0.0.1:1'}]\n";
    let (running, gateway) = gateway_of(text.to_owned(), Vec::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
        let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..20 {
            if sender.ready().await.is_err() {
                // Told to go: that is a bound as well.
                return;
            }
            let asked = (0..50).map(|_| {
                let request = Request::get("http://web/").body(Full::<Bytes>::default()).unwrap();
                tokio::time::timeout(Duration::from_millis(20), sender.send_request(request))
            });
            // Dropped, each is reset.
            for asked in asked.map(tokio::spawn).collect::<Vec<_>>() {
                let _ = asked.await;
            }
        }
    });
    let active = ask::metric(running.admin(), "overlane_active_requests").unwrap();
    assert!(active <= 200, "{active}");
}

#[test]
fn what_cannot_be_said_in_http_2_is_refused_at_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let upstream = runtime.block_on(echoing(true));
    let (_running, gateway) = gateway(&format!("h2c://{upstream}"), Vec::new());
    let answer = get(gateway, "/a<b");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn unix_sockets_are_connected_to_where_they_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nunix");
        }
    });
    let url = format!("unix:{}", path.display());
    let (_running, allowed) = gateway(&url, vec![folder.path().display().to_string()]);
    assert!(post(allowed, "").ends_with("unix"));
    let (running, _) = gateway(&url, Vec::new());
    assert!(
        running.control().problems()[0].contains("allowed for unix sockets"),
        "{:?}",
        running.control().problems()
    );
}

#[test]
fn names_are_resolved_in_the_background_and_the_first_request_waits_for_that() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nname");
        }
    });
    let (_running, address) = gateway(&format!("http://localhost:{port}"), Vec::new());
    assert!(post(address, "").ends_with("name"));
}
