//! The spans of streams: of requests in HTTP/2, of calls of gRPC, of what lasts and what is reset.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::traces::TraceSettings;
use overlane_config::route::Role;
use overlane_tests::otlp::{Collector, Seen};
use overlane_tests::stage::{self, Started};

use super::GRPC;
use super::client::Speaks;
use super::upstream;
use super::wire;

const CLEAR: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];

/// A gateway whose spans a collector gets.
struct Traced {
    collector: Collector,
    running: Started,
    /// How many spans were looked at.
    seen: usize,
}

impl Traced {
    fn before(upstream: SocketAddr, speaks: Speaks) -> Self {
        let collector = Collector::start(&[]);
        let every = Duration::from_millis(10);
        let traces = TraceSettings { every, ..TraceSettings::of(&collector.url()).unwrap() };
        let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
        let settings = Settings { traces: Some(traces), ..Settings::in_process(vec![listener]) };
        let files = stage::files_at("", &format!("{}://{upstream}", speaks.scheme()));
        Self { collector, running: stage::start_as(settings, files), seen: 0 }
    }

    fn address(&self) -> SocketAddr {
        self.running.addresses()[0]
    }

    /// The spans of the next request that is over: of the proxy as its server, and as a client.
    fn next(&mut self) -> [Seen; 2] {
        let all = self.collector.spans(self.seen + 2);
        let [server, client] = &all[self.seen..] else { panic!("two spans: {all:#?}") };
        self.seen += 2;
        assert_eq!([&*server.kind, &*client.kind], ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"]);
        assert_eq!(client.parent, server.id);
        [server.clone(), client.clone()]
    }
}

/// What a span says of how a call ended: the status of HTTP, that of gRPC, and what is wrong, where it is an error.
fn ended(span: &Seen) -> [&str; 3] {
    let wrong = span.says("error.type");
    assert_eq!(span.error, !wrong.is_empty(), "{span:#?}");
    [span.says("http.response.status_code"), span.says("rpc.response.status_code"), wrong]
}

async fn call(client: Speaks, address: SocketAddr, path: &str, fields: &str) -> u16 {
    let mut asked = client.ask(address, path, fields).await;
    asked.send(b"hello").await;
    asked.finish().await;
    let answer = asked.answer().await;
    let status = answer.status;
    answer.end().await;
    status
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

#[test]
fn the_spans_of_a_call_of_grpc_have_its_status_and_are_errors_where_that_is_one() {
    block_on(async {
        for (client, speaks) in CLEAR.into_iter().flat_map(|client| CLEAR.map(|upstream| (client, upstream)))
        {
            let (upstream, _) = upstream::start(speaks, "base").await;
            let mut traced = Traced::before(upstream, speaks);
            for (number, status, of_server, of_client) in [
                ("0", "OK", false, false),
                ("5", "NOT_FOUND", false, true),
                ("14", "UNAVAILABLE", true, true),
                ("2", "UNKNOWN", true, true),
                // A number that stands for nothing is what clients take it for.
                ("99", "UNKNOWN", true, true),
            ] {
                // In trailers, and in a head that ends the answer.
                for path in [format!("/grpc/{number}"), format!("/grpc/{number}/only")] {
                    assert_eq!(call(client, traced.address(), &path, GRPC).await, 200);
                    let [server, called] = traced.next();
                    for (span, wrong) in [(&server, of_server), (&called, of_client)] {
                        let wrong = if wrong { status } else { "" };
                        assert_eq!(
                            ended(span),
                            ["200", status, wrong],
                            "{client:?} to {speaks:?}, {path}: {span:#?}"
                        );
                        assert_eq!(span.says("rpc.system.name"), "grpc");
                    }
                    assert_eq!(server.says("url.path"), path);
                }
            }
            // What is no call says nothing of the kind, whatever its trailers are.
            call(client, traced.address(), "/grpc/14", "").await;
            let [server, called] = traced.next();
            assert_eq!([ended(&server), ended(&called)], [["200", "", ""]; 2]);
            assert_eq!(server.says("rpc.system.name"), "");
        }
    });
}

#[test]
fn what_the_proxy_answers_to_a_call_of_grpc_is_told_as_its_client_reads_it() {
    block_on(async {
        let (upstream, _) = upstream::start(Speaks::Http2, "base").await;
        for client in CLEAR {
            let mut away = Traced::before(([127, 0, 0, 1], 1).into(), Speaks::Http2);
            call(client, away.address(), "/grpc", GRPC).await;
            let spans = away.next();
            assert_eq!(ended(&spans[0]), ["200", "UNAVAILABLE", "refused"], "{client:?}");
            assert_eq!(ended(&spans[1]), ["", "UNAVAILABLE", "refused"], "{client:?}: nobody answered");
            let mut late = Traced::before(upstream, Speaks::Http2);
            let fields = format!("{GRPC}grpc-timeout: 50m\r\n");
            call(client, late.address(), "/silent", &fields).await;
            let spans = late.next();
            assert_eq!(ended(&spans[0]), ["200", "DEADLINE_EXCEEDED", "timeout"], "{client:?}");
            assert_eq!(ended(&spans[1]), ["", "DEADLINE_EXCEEDED", "timeout"], "{client:?}");
        }
    });
}

#[test]
fn each_stream_of_a_connection_has_spans_of_its_own() {
    const STREAMS: u64 = 20;
    block_on(async {
        let (upstream, _) = upstream::start(Speaks::Http2, "base").await;
        let traced = Traced::before(upstream, Speaks::Http2);
        let io = wire::connect(traced.address(), None).await;
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let mut coming = Vec::new();
        for stream in 1..=STREAMS {
            let told = format!("00-{stream:032x}-{stream:016x}-01");
            let request = http::Request::get(format!("http://web/{stream}")).header("traceparent", told);
            coming.push(sender.send_request(request.body(()).unwrap(), true).unwrap().0);
        }
        for response in coming {
            assert_eq!(response.await.unwrap().status(), 200);
        }
        let all = traced.collector.spans(2 * STREAMS as usize);
        for stream in 1..=STREAMS {
            let trace = format!("{stream:032x}");
            let own: Vec<_> = all.iter().filter(|span| span.trace == trace).collect();
            let [server, client] = own[..] else { panic!("two spans of {trace}: {all:#?}") };
            assert_eq!([&server.parent, &client.parent], [&format!("{stream:016x}"), &server.id]);
            assert_eq!(server.says("url.path"), format!("/{stream}"));
            assert_eq!(server.says("network.protocol.version"), "2");
        }
        assert_eq!(all.len(), 2 * STREAMS as usize);
    });
}

#[test]
fn a_stream_that_lasts_has_spans_when_it_is_over_and_they_last_as_long() {
    block_on(async {
        for client in CLEAR {
            let (upstream, _) = upstream::start(Speaks::Http2, "base").await;
            let mut traced = Traced::before(upstream, Speaks::Http2);
            let mut asked = client.ask(traced.address(), "/lasts", GRPC).await;
            asked.send(b"one").await;
            let mut answer = asked.answer().await;
            assert_eq!(answer.read(3).await, b"one");
            // Another one comes and goes meanwhile.
            call(client, traced.address(), "/grpc", GRPC).await;
            let [short, _] = traced.next();
            assert_eq!(short.says("url.path"), "/grpc", "{client:?}");
            answer.send(b"two").await;
            assert_eq!(answer.read(3).await, b"two");
            answer.finish().await;
            answer.end().await.unwrap();
            for span in traced.next() {
                assert!(span.time.0 <= short.time.0 && short.time.1 <= span.time.1, "{span:?} {short:?}");
                assert_eq!(ended(&span), ["200", "", ""], "{client:?}: no status of gRPC came");
            }
        }
    });
}

#[test]
fn a_stream_that_is_reset_is_an_error_of_whoever_reset_it() {
    block_on(async {
        for client in CLEAR {
            let (upstream, seen) = upstream::start(Speaks::Http2, "base").await;
            let mut traced = Traced::before(upstream, Speaks::Http2);
            // The upstream, in the middle of its answer: once that has arrived.
            let mut asked = client.ask(traced.address(), "/half", GRPC).await;
            asked.send(b"x").await;
            let mut answer = asked.answer().await;
            assert_eq!(answer.read(5).await, b"hello");
            answer.finish().await;
            assert_eq!(answer.end().await, None);
            let spans = traced.next();
            assert_eq!(spans.each_ref().map(ended), [["200", "", "unhealthy"]; 2], "{client:?}");
            if client == Speaks::Http1 {
                // Who closes such a connection has sent a request that breaks off.
                continue;
            }
            // The client, while it waits and in the middle of the answer.
            for (path, status) in [("/silent", ""), ("/hang", "200")] {
                let mut asked = client.ask(traced.address(), path, GRPC).await;
                asked.send(b"x").await;
                if path == "/hang" {
                    let mut answer = asked.answer().await;
                    assert_eq!(answer.read(1).await, b"x");
                    answer.cancel();
                } else {
                    // It has arrived: the upstream is told.
                    while seen.streams.load(SeqCst) < 2 {
                        tokio::task::yield_now().await;
                    }
                    asked.cancel();
                }
                seen.cancelled.notified().await;
                let spans = traced.next();
                assert_eq!(
                    spans.each_ref().map(ended),
                    [[status, "", "client-gone"]; 2],
                    "{client:?} {path}"
                );
            }
        }
    });
}
