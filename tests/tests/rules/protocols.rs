//! Every protocol of clients with every protocol of upstreams, to an overlay, to the baseline, and by falling back.

mod client;
mod spans;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use overlane::control::Trigger;
use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::tls::TlsSettings;
use overlane::tls::certificates::Pair;
use overlane::tls::upstreams::UpstreamTls;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_config::time::UnixMillis;
use overlane_tests::stage::{self, Started};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use client::Speaks;
use upstream::Seen;
use wire::TRUSTED;

/// A key, who answers, and what the receipt says.
const KEYS: [(&str, &str, &str); 3] = [
    ("alice", "alice", "env=alice;via=overlay;reason=owned"),
    ("nobody", "base", "env=base;via=baseline;reason=unknown"),
    ("bob", "base", "env=base;via=baseline;reason=refused"),
];
/// More than all windows and buffers on the way.
const LARGE: usize = 3 * 1024 * 1024;

/// A gateway before a baseline, an overlay, and an overlay whose service is not there and that falls back.
struct Stage {
    running: Started,
    /// The same for clients that speak TLS.
    encrypted: Started,
    base: Arc<Seen>,
    upstream: Speaks,
    /// What the overlay owns.
    alice: String,
}

impl Stage {
    async fn new(upstream: Speaks, limits: Limits) -> Self {
        Self::before(upstream::start(upstream, "base").await, upstream, limits).await
    }

    async fn before((address, base): (SocketAddr, Arc<Seen>), upstream: Speaks, limits: Limits) -> Self {
        let (overlay, _) = upstream::start(upstream, "alice").await;
        let service = |address: SocketAddr| {
            let (scheme, port) = (upstream.scheme(), address.port());
            format!("services: [{{name: web, expose: true, url: '{scheme}://127.0.0.1:{port}'}}]")
        };
        let alice = service(overlay);
        let files = vec![
            file("base", "mode: baseline, holdFor: 0s", &service(address)),
            file("alice", "mode: overlay, baselineId: base", &alice),
            file(
                "bob",
                "mode: overlay, baselineId: base, holdFor: 0s, onUnavailable: fallback",
                // Nobody listens there.
                &service(([127, 0, 0, 1], 1).into()),
            ),
        ];
        let gateway = stage::listener(Role::Gateway, "", None, Trust::Any);
        let encrypted = stage::listener(Role::Gateway, "", None, Trust::Any);
        let own = Pair { certificate: TRUSTED.certificate.clone(), key: TRUSTED.key.clone() };
        let tls =
            TlsSettings { certificates: vec![own], clients: None, only_13: false, roles: vec!["gateway"] };
        let upstream_tls = UpstreamTls {
            hosts: vec!["127.0.0.1".parse().unwrap()],
            ca: Some(TRUSTED.certificate.clone()),
            pair: None,
            server_name: Some("localhost".try_into().unwrap()),
        };
        let settings = |listener, tls| Settings {
            limits: limits.clone(),
            tls,
            upstream_tls: vec![upstream_tls.clone()],
            ..Settings::in_process(vec![listener])
        };
        let running = stage::start_as(settings(gateway, None), files.clone());
        let encrypted = stage::start_as(settings(encrypted, Some(tls)), files);
        Self { running, encrypted, base, upstream, alice }
    }

    fn address(&self, client: Speaks) -> SocketAddr {
        let running = if client.protocol().is_some() { &self.encrypted } else { &self.running };
        running.addresses()[0]
    }
}

fn file(name: &str, routing: &str, services: &str) -> FileChange {
    let text = format!("name: {name}\nrouting: {{{routing}}}\n{services}\n");
    let path: Arc<str> = format!("{name}.yaml").into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

/// Runs a test for each pair of protocols.
fn each<F: Future<Output = ()>>(limits: &Limits, test: impl Fn(Arc<Stage>, Speaks) -> F) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for upstream in Speaks::ALL {
            let stage = Arc::new(Stage::new(upstream, limits.clone()).await);
            for client in Speaks::ALL {
                let over = tokio::time::timeout(Duration::from_secs(30), test(stage.clone(), client)).await;
                assert!(over.is_ok(), "{client:?}, upstream {upstream:?}: it hangs");
            }
        }
    });
}

fn key(key: &str) -> String {
    format!("x-overlay-id: {key}\r\n")
}

#[test]
fn a_body_that_becomes_too_large_is_refused_or_cut_in_every_protocol() {
    each(&Limits { body_bytes: Some(4), ..Limits::default() }, async |stage, client| {
        let mut asked = client.ask(stage.address(client), "/echo", "").await;
        asked.send(b"abc").await;
        asked.send(b"de").await;
        let answer = asked.answer().await;
        let status = answer.status;
        assert!(
            status == 413 || answer.end().await.is_none(),
            "{client:?}, upstream {:?}: {status}",
            stage.upstream
        );
    });
}

#[test]
fn bodies_and_trailers_pass_and_the_key_travels() {
    each(&Limits::default(), async |stage, client| {
        for (id, who, receipt) in KEYS {
            let mut asked = client.ask(stage.address(client), "/echo", &key(id)).await;
            asked.send(b"hello ").await;
            asked.send(b"world").await;
            asked.finish().await;
            let answer = asked.answer().await;
            assert_eq!((answer.status, &*answer.who, &*answer.key), (200, who, id), "{client:?}");
            assert!(answer.receipt.starts_with(&format!("web;{receipt}")), "{client:?}: {}", answer.receipt);
            let expected = (b"hello world".to_vec(), Some("11".to_owned()));
            assert_eq!(answer.end().await, Some(expected), "{client:?}, upstream {:?}", stage.upstream);
        }
    });
}

#[test]
fn large_bodies_pass_both_ways_at_once() {
    each(&Limits::default(), async |stage, client| {
        let mut asked = client.ask(stage.address(client), "/echo", &key("alice")).await;
        asked.send(b"x").await;
        let mut answer = asked.answer().await;
        answer.read(1).await;
        let mut echoed = 0;
        for _ in 0..LARGE / 65_536 {
            answer.send(&[b'y'; 65_536]).await;
            echoed += answer.read(65_536).await.len();
        }
        answer.finish().await;
        let (rest, length) = answer.end().await.unwrap();
        assert_eq!((rest.len() + echoed, length), (LARGE, Some((LARGE + 1).to_string())), "{client:?}");
    });
}

#[test]
fn each_piece_of_a_stream_arrives_before_the_next_is_sent() {
    // Streams are not cut for being silent, whatever the deadlines say.
    let limits = Limits {
        body: Duration::from_millis(250),
        upstream_read: Duration::from_millis(250),
        ..Limits::default()
    };
    each(&limits, async |stage, client| {
        let mut asked = client.ask(stage.address(client), "/echo", &key("alice")).await;
        asked.send(b"one").await;
        let mut answer = asked.answer().await;
        assert_eq!(answer.read(3).await, b"one");
        // Longer than the deadlines, and how late they may be.
        tokio::time::sleep(Duration::from_millis(400)).await;
        answer.send(b"two").await;
        assert_eq!(answer.read(3).await, b"two", "{client:?}");
        answer.finish().await;
        assert_eq!(answer.end().await, Some((Vec::new(), Some("6".to_owned()))), "{client:?}");
    });
}

#[test]
fn interim_responses_pass() {
    each(&Limits::default(), async |stage, client| {
        let mut asked = client.ask(stage.address(client), "/hints", &key("alice")).await;
        asked.finish().await;
        let answer = asked.answer().await;
        let hints = vec![(103, "</a>; rel=preload".to_owned())];
        assert_eq!(
            (&answer.interim, answer.status),
            (&hints, 200),
            "{client:?}, upstream {:?}",
            stage.upstream
        );
        assert_eq!(answer.end().await.unwrap().0, b"ok");
    });
}

#[test]
fn a_response_that_is_cut_is_seen_as_cut() {
    each(&Limits::default(), async |stage, client| {
        let mut answer = client.ask(stage.address(client), "/half", "").await.answer().await;
        assert_eq!(answer.read(5).await, b"hello");
        answer.finish().await;
        assert_eq!(answer.end().await, None, "{client:?}, upstream {:?}", stage.upstream);
    });
}

#[test]
fn who_goes_away_is_gone_for_the_upstream_too() {
    each(&Limits::default(), async |stage, client| {
        // Before the answer, and in the middle of it.
        let before = stage.base.streams.load(SeqCst);
        let mut asked = client.ask(stage.address(client), "/silent", "").await;
        asked.send(b"x").await;
        while stage.base.streams.load(SeqCst) == before {
            tokio::task::yield_now().await;
        }
        asked.cancel();
        stage.base.cancelled.notified().await;
        let mut asked = client.ask(stage.address(client), "/hang", "").await;
        asked.send(b"x").await;
        let mut answer = asked.answer().await;
        assert_eq!(answer.read(1).await, b"x");
        answer.cancel();
        stage.base.cancelled.notified().await;
    });
}

const GRPC: &str = "content-type: application/grpc\r\n";

#[test]
fn a_call_of_grpc_that_is_refused_unprocessed_is_sent_again() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for path in ["/refuse", "/goaway"] {
        for client in Speaks::ALL {
            runtime.block_on(async {
                let upstream = upstream::start_after(Speaks::Http2, "base", path == "/goaway").await;
                let stage = Stage::before(upstream, Speaks::Http2, Limits::default()).await;
                let mut asked = client.ask(stage.address(client), path, GRPC).await;
                asked.send(b"hello").await;
                asked.finish().await;
                let answer = asked.answer().await;
                assert_eq!(answer.status, 200, "{client:?} {path}");
                assert_eq!(
                    answer.end().await,
                    Some((b"hello".to_vec(), Some("5".to_owned()))),
                    "{client:?} {path}"
                );
            });
        }
    }
}

#[test]
fn errors_of_the_proxy_are_errors_of_grpc() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stage = Stage::new(Speaks::Http2, Limits::default()).await;
        for (fields, status, message) in [
            ("x-overlay-id: no key!\r\n", "3", "invalid-key"),
            ("x-overlay-id: alice\r\nx-overlay-require: bob\r\n", "9", "unverified"),
        ] {
            for client in Speaks::ALL {
                let mut asked = client.ask(stage.address(client), "/grpc", &format!("{GRPC}{fields}")).await;
                asked.finish().await;
                let answer = asked.answer().await;
                assert_eq!((answer.status, answer.field("grpc-status")), (200, Some(status)), "{fields}");
                assert_eq!(answer.field("content-type"), Some("application/grpc"));
                let told = answer.field("grpc-message").unwrap();
                assert!(told.contains(message), "{told}");
            }
        }
    });
}

#[test]
fn a_call_of_grpc_ends_at_its_deadline() {
    each(&Limits::default(), async |stage, client| {
        let fields = format!("{GRPC}grpc-timeout: 50m\r\n");
        let mut asked = client.ask(stage.address(client), "/silent", &fields).await;
        asked.finish().await;
        let answer = asked.answer().await;
        assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("4")), "{client:?}");
        stage.base.cancelled.notified().await;
    });
}

#[test]
fn a_stream_of_an_overlay_that_expires_ends_after_a_grace() {
    let limits = Limits { grace: Duration::from_millis(20), ..Limits::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for upstream in Speaks::ALL {
        for client in [Speaks::Http1, Speaks::Http2] {
            runtime.block_on(async {
                let stage = Stage::new(upstream, limits.clone()).await;
                let mut asked = client.ask(stage.address(client), "/echo", &key("alice")).await;
                asked.send(b"one").await;
                let mut answer = asked.answer().await;
                assert_eq!(answer.read(3).await, b"one");
                let expires = UnixMillis(overlane::clock::now().0 + 100);
                let routing = format!("mode: overlay, baselineId: base, expiresAt: '{expires}'");
                let alice = file("alice", &routing, &stage.alice);
                stage.running.control().apply(&[alice], Trigger::Change);
                assert_eq!(answer.end().await, None, "{client:?}");
            });
        }
    }
}

#[test]
fn no_more_requests_of_http_2_are_served_at_once_than_there_may_be() {
    let limits = Limits { connections: 4, ..Limits::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stage = Stage::new(Speaks::Http1, limits).await;
        let io = wire::connect(stage.address(Speaks::Http2), None).await;
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let ask = |sender: &mut h2::client::SendRequest<bytes::Bytes>| {
            let request = http::Request::post("http://web/hang").body(()).unwrap();
            sender.send_request(request, true).unwrap().0
        };
        let mut served = Vec::new();
        for _ in 0..4 {
            served.push(ask(&mut sender).await.unwrap());
        }
        let refused = ask(&mut sender).await.unwrap_err();
        assert_eq!(refused.reason(), Some(h2::Reason::REFUSED_STREAM));
        // And when one is over, there is room for another.
        served.pop();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while ask(&mut sender).await.is_err() {
            assert!(std::time::Instant::now() < until);
        }
    });
}

#[test]
fn an_address_that_is_removed_while_it_is_connected_to_gets_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let removed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stage = Stage::new(Speaks::Https1, Limits::default()).await;
        let service = format!("services: [{{name: web, url: 'https://{}'}}]", removed.local_addr().unwrap());
        let alice = file("alice", "mode: overlay, baselineId: base", &service);
        stage.running.control().apply(&[alice], Trigger::Change);
        let asked = async {
            let address = stage.address(Speaks::Http1);
            let mut asked = Speaks::Http1.ask(address, "/echo", &key("alice")).await;
            asked.finish().await;
            asked.answer().await
        };
        let shaken = async {
            let stream = removed.accept().await.unwrap().0;
            // A handshake has begun.
            stream.peek(&mut [0]).await.unwrap();
            let alice = FileChange { path: "alice.yaml".into(), content: Content::Gone };
            stage.running.control().apply(&[alice], Trigger::Change);
            let mut stream = wire::acceptor("http/1.1").accept(stream).await.unwrap();
            let mut read = Vec::new();
            let _ = stream.read_to_end(&mut read).await;
            read
        };
        let (answer, read) = tokio::join!(asked, shaken);
        assert_eq!((answer.status, &*answer.who), (200, "base"));
        assert!(answer.receipt.starts_with("web;env=base;via=baseline;reason=unknown"), "{}", answer.receipt);
        assert_eq!(String::from_utf8_lossy(&read), "");
    });
}
