//! Every protocol of clients with every protocol of upstreams, to an overlay, to the baseline, and by falling back.

mod client;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use overlane::control::Trigger;
use overlane::plane::EngineChoice;
use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_config::time::UnixMillis;
use overlane_tests::stage::{self, Started};

use client::Speaks;
use upstream::Seen;

const CLIENTS: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];
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
    base: Arc<Seen>,
    http2: bool,
    /// What the overlay owns.
    alice: String,
}

impl Stage {
    async fn new(http2: bool, limits: Limits) -> Self {
        Self::before(upstream::start(http2, "base").await, http2, limits).await
    }

    async fn before((address, base): (SocketAddr, Arc<Seen>), http2: bool, limits: Limits) -> Self {
        let scheme = if http2 { "h2c" } else { "http" };
        let (overlay, _) = upstream::start(http2, "alice").await;
        let service = |address: SocketAddr| {
            format!("services: [{{name: web, expose: true, url: '{scheme}://{address}'}}]")
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
        let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
        let running = stage::start_within(EngineChoice::Auto, limits, vec![listener], files);
        Self { running, base, http2, alice }
    }

    fn address(&self) -> SocketAddr {
        self.running.gates()[0].address
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
        for http2 in [false, true] {
            let stage = Arc::new(Stage::new(http2, limits.clone()).await);
            for client in CLIENTS {
                let over = tokio::time::timeout(Duration::from_secs(30), test(stage.clone(), client)).await;
                assert!(over.is_ok(), "{client:?}, HTTP/2 upstream: {http2}: it hangs");
            }
        }
    });
}

fn key(key: &str) -> String {
    format!("x-overlay-id: {key}\r\n")
}

#[test]
fn bodies_and_trailers_pass_and_the_key_travels() {
    each(&Limits::default(), async |stage, client| {
        for (id, who, receipt) in KEYS {
            let mut asked = client.ask(stage.address(), "/echo", &key(id)).await;
            asked.send(b"hello ").await;
            asked.send(b"world").await;
            asked.finish().await;
            let answer = asked.answer().await;
            assert_eq!((answer.status, &*answer.who, &*answer.key), (200, who, id), "{client:?}");
            assert!(answer.receipt.starts_with(&format!("web;{receipt}")), "{client:?}: {}", answer.receipt);
            let expected = (b"hello world".to_vec(), Some("11".to_owned()));
            assert_eq!(answer.end().await, Some(expected), "{client:?}, HTTP/2: {}", stage.http2);
        }
    });
}

#[test]
fn large_bodies_pass_both_ways_at_once() {
    each(&Limits::default(), async |stage, client| {
        let mut asked = client.ask(stage.address(), "/echo", &key("alice")).await;
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
        body: Duration::from_millis(40),
        upstream_read: Duration::from_millis(40),
        ..Limits::default()
    };
    each(&limits, async |stage, client| {
        let mut asked = client.ask(stage.address(), "/echo", &key("alice")).await;
        asked.send(b"one").await;
        let mut answer = asked.answer().await;
        assert_eq!(answer.read(3).await, b"one");
        // Longer than the deadlines, and how late they may be.
        tokio::time::sleep(Duration::from_millis(120)).await;
        answer.send(b"two").await;
        assert_eq!(answer.read(3).await, b"two", "{client:?}");
        answer.finish().await;
        assert_eq!(answer.end().await, Some((Vec::new(), Some("6".to_owned()))), "{client:?}");
    });
}

#[test]
fn interim_responses_pass() {
    each(&Limits::default(), async |stage, client| {
        let mut asked = client.ask(stage.address(), "/hints", &key("alice")).await;
        asked.finish().await;
        let answer = asked.answer().await;
        let hints = vec![(103, "</a>; rel=preload".to_owned())];
        assert_eq!((&answer.interim, answer.status), (&hints, 200), "{client:?}, HTTP/2: {}", stage.http2);
        assert_eq!(answer.end().await.unwrap().0, b"ok");
    });
}

#[test]
fn a_response_that_is_cut_is_seen_as_cut() {
    each(&Limits::default(), async |stage, client| {
        let mut answer = client.ask(stage.address(), "/half", "").await.answer().await;
        assert_eq!(answer.read(5).await, b"hello");
        answer.finish().await;
        assert_eq!(answer.end().await, None, "{client:?}, HTTP/2: {}", stage.http2);
    });
}

#[test]
fn who_goes_away_is_gone_for_the_upstream_too() {
    each(&Limits::default(), async |stage, client| {
        // Before the answer, and in the middle of it.
        let before = stage.base.streams.load(SeqCst);
        let mut asked = client.ask(stage.address(), "/silent", "").await;
        asked.send(b"x").await;
        while stage.base.streams.load(SeqCst) == before {
            tokio::task::yield_now().await;
        }
        asked.cancel();
        stage.base.cancelled.notified().await;
        let mut asked = client.ask(stage.address(), "/hang", "").await;
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
        for client in CLIENTS {
            runtime.block_on(async {
                let upstream = upstream::start_after(true, "base", path == "/goaway").await;
                let stage = Stage::before(upstream, true, Limits::default()).await;
                let mut asked = client.ask(stage.address(), path, GRPC).await;
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
        let stage = Stage::new(true, Limits::default()).await;
        for (fields, status, message) in [
            ("x-overlay-id: no key!\r\n", "3", "invalid-key"),
            ("x-overlay-id: alice\r\nx-overlay-require: bob\r\n", "9", "unverified"),
        ] {
            for client in CLIENTS {
                let mut asked = client.ask(stage.address(), "/grpc", &format!("{GRPC}{fields}")).await;
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
        let mut asked = client.ask(stage.address(), "/silent", &fields).await;
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
    for http2 in [false, true] {
        for client in CLIENTS {
            runtime.block_on(async {
                let stage = Stage::new(http2, limits.clone()).await;
                let mut asked = client.ask(stage.address(), "/echo", &key("alice")).await;
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
