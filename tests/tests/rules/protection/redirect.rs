//! The listener that sends clients to the one that speaks TLS.

use std::net::SocketAddr;

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits, RedirectSettings};
use overlane::settings::Settings;
use overlane::tls::TlsSettings;
use overlane::upstream::Address;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};
use tempfile::TempDir;

use super::{ENGINES, ask, service};
use crate::tls_listeners::Authority;

/// A gateway that speaks TLS, and the listener beside it.
fn gateway(engine: EngineChoice, port: Option<u16>, upstream: SocketAddr) -> (TempDir, Started) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Authority::new(folder.path(), "ours").issue("own", &["localhost"]);
    let tls = TlsSettings {
        certificates: vec![certificate],
        clients: None,
        only_13: false,
        roles: vec!["gateway"],
    };
    let settings = Settings {
        engine,
        tls: Some(tls),
        redirect: Some(RedirectSettings { address: Address::Tcp(([127, 0, 0, 1], 0).into()), port }),
        limits: Limits { body_bytes: Some(4), ..Limits::default() },
        ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, Trust::Nobody)])
    };
    (folder, stage::start_as(settings, stage::files("", upstream)))
}

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let fields = answer.split("\r\n\r\n").next()?.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[test]
fn who_comes_in_the_clear_is_sent_to_tls_and_nothing_goes_upstream() {
    for engine in ENGINES {
        let (upstream, heads) = service("web");
        let (_folder, running) = gateway(engine, None, upstream);
        let [tls, plain] = running.addresses()[..] else { panic!("two listeners") };
        for (request, target) in [
            ("GET /a?b=c HTTP/1.1\r\nHost: shop.example.com\r\n", "/a?b=c"),
            ("POST /a HTTP/1.1\r\nHost: Shop.example.com:80\r\nContent-Length: 3\r\n", "/a"),
            ("GET http://shop.example.com/a HTTP/1.1\r\nHost: x\r\n", "/a"),
            ("OPTIONS * HTTP/1.1\r\nHost: shop.example.com\r\n", "/"),
            // What a gateway would say of these, it says where they are sent.
            ("GET /a HTTP/1.1\r\nHost: shop.example.com\r\nx-overlay-id: _\r\n", "/a"),
            ("GET /a HTTP/1.1\r\nHost: shop.example.com\r\nx-overlay-hops: 99\r\n", "/a"),
            (
                "GET /.well-known/acme-challenge/../x HTTP/1.1\r\nHost: shop.example.com\r\n",
                "/.well-known/acme-challenge/../x",
            ),
        ] {
            let answer = ask(plain, format!("{request}Connection: close\r\n\r\nabc"));
            assert!(
                answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"),
                "{engine:?} {request}: {answer}"
            );
            let expected = format!("https://shop.example.com:{}{target}", tls.port());
            assert_eq!(field(&answer, "location"), Some(&*expected), "{engine:?} {request}");
            assert_eq!(
                field(&answer, "cache-control"),
                Some("no-store"),
                "{engine:?}: for ever only where TLS says so"
            );
            assert_eq!(field(&answer, "strict-transport-security"), None, "it means nothing in the clear");
        }
        let nameless = ask(plain, "GET / HTTP/1.0\r\n\r\n");
        assert!(nameless.starts_with("HTTP/1.1 400"), "{engine:?}: {nameless}");
        assert!(heads.try_recv().is_err(), "{engine:?}");
    }
}

#[test]
fn the_port_that_clients_know_is_said_and_443_is_not() {
    for (port, authority) in [(443, "shop"), (8443, "shop:8443")] {
        let (upstream, _heads) = service("web");
        let (_folder, running) = gateway(EngineChoice::Auto, Some(port), upstream);
        let answer =
            ask(running.addresses()[1], "GET / HTTP/1.1\r\nHost: shop:81\r\nConnection: close\r\n\r\n");
        assert_eq!(field(&answer, "location"), Some(&*format!("https://{authority}/")));
    }
}

#[test]
fn tokens_for_authorities_of_certificates_are_passed_on_as_any_request_at_the_gateway() {
    for engine in ENGINES {
        let (upstream, heads) = service("web");
        let (_folder, running) = gateway(engine, None, upstream);
        let token =
            "GET /.well-known/acme-challenge/evaG_fAD-6p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let answer = ask(running.addresses()[1], format!("{token}x-overlay-id: alice\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("web"), "{engine:?}: {answer}");
        let arrived = heads.recv().unwrap().to_lowercase();
        assert!(arrived.contains("x-forwarded-proto: http\r\n"), "{engine:?}: {arrived}");
        assert!(!arrived.contains("x-overlay-id"), "{engine:?}: the untrusted choose nothing: {arrived}");
        let large = ask(running.addresses()[1], format!("{token}Content-Length: 5\r\n\r\nabcde"));
        assert!(large.starts_with("HTTP/1.1 413"), "{engine:?}: limits hold: {large}");
    }
}
