//! Load balancers before a gateway, and who says that it is one.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane::plane::forwarded::{Dialect, Forwarding};
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;
use super::passage::{listen, tells};

const HOP: [u8; 4] = [127, 0, 0, 1];
const TRUSTED: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 3];
/// Hops are in a trusted network: that is no right of those that they ask for.
const TRUST: &str = "127.0.0.0/31,127.0.0.2,192.0.2.0/24";

fn gateway(engine: EngineChoice, dialect: Dialect) -> (Started, SocketAddr) {
    let hops = ["127.0.0.1/32", "10.0.0.0/8"].map(|hop| hop.parse().unwrap());
    let settings = Settings {
        engine,
        forwarding: Forwarding { hops: hops.into(), dialect },
        ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, TRUST.parse().unwrap())])
    };
    let started = stage::start_as(settings, stage::files("", listen(tells)));
    let address = started.addresses()[0];
    (started, address)
}

/// Asks from an address of this machine, with a key; what arrived, in lower case.
fn ask(from: [u8; 4], to: SocketAddr, fields: &str) -> String {
    let mut stream = ask::from(from, to);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: web.example\r\nx-overlay-id: alice\r\nConnection: close\r\n{fields}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.to_lowercase()
}

/// The values of a field, joined.
fn field(answer: &str, name: &str) -> String {
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let values = body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    values.collect::<Vec<_>>().join(" | ")
}

#[test]
fn the_right_is_that_of_the_client_and_not_of_the_hop() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (_started, address) = gateway(engine, Dialect::XForwarded);
        for (from, fields, forwarded_for, trusted) in [
            (HOP, "X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7, 127.0.0.1", true),
            (HOP, "X-Forwarded-For: 198.51.100.7\r\n", "198.51.100.7, 127.0.0.1", false),
            // Strangers write what they like to the left of what a hop appends.
            (HOP, "X-Forwarded-For: 192.0.2.7, 198.51.100.7\r\n", "198.51.100.7, 127.0.0.1", false),
            (
                HOP,
                "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 198.51.100.7\r\n",
                "198.51.100.7, 127.0.0.1",
                false,
            ),
            (
                HOP,
                "X-Forwarded-For: 1.1.1.1, 192.0.2.7, 10.0.0.9\r\n",
                "192.0.2.7, 10.0.0.9, 127.0.0.1",
                true,
            ),
            (HOP, "X-Forwarded-For: 2001:db8::7\r\n", "2001:db8::7, 127.0.0.1", false),
            // A hop that names nobody, or nobody that there can be, vouches for nobody.
            (HOP, "", "127.0.0.1", false),
            (HOP, "X-Forwarded-For:\r\n", "127.0.0.1", false),
            (HOP, "X-Forwarded-For: unknown\r\n", "127.0.0.1", false),
            (HOP, "X-Forwarded-For: 192.0.2.7, _hidden\r\n", "127.0.0.1", false),
            (HOP, "Forwarded: for=192.0.2.7\r\n", "127.0.0.1", false),
            // Who is no hop asks for itself.
            (TRUSTED, "X-Forwarded-For: 198.51.100.7\r\n", "127.0.0.2", true),
            (STRANGER, "X-Forwarded-For: 192.0.2.7\r\n", "127.0.0.3", false),
            (STRANGER, "X-Forwarded-For: 192.0.2.7, 127.0.0.1\r\n", "127.0.0.3", false),
        ] {
            let arrived = ask(from, address, fields);
            assert_eq!(field(&arrived, "x-forwarded-for"), forwarded_for, "{fields}");
            assert_eq!(field(&arrived, "x-overlay-id") == "alice", trusted, "{from:?} {fields}");
        }
    }
}

#[test]
fn what_anybody_but_a_trusted_hop_says_of_a_client_is_gone() {
    let fields = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /a\r\nX-Forwarded-Server: a\r\nX-Forwarded-Ssl: on\r\nX-Forwarded-Scheme: https\r\nX-Real-IP: 192.0.2.7\r\nForwarded: for=192.0.2.7;proto=https\r\n";
    let others = ["port", "prefix", "server", "ssl", "scheme"].map(|name| format!("x-forwarded-{name}"));
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (_started, address) = gateway(engine, Dialect::XForwarded);
        for (from, client, proto, host) in [
            (TRUSTED, "127.0.0.2", "http", "web.example"),
            (STRANGER, "127.0.0.3", "http", "web.example"),
            (HOP, "192.0.2.7, 127.0.0.1", "https", "evil"),
        ] {
            let arrived = ask(from, address, fields);
            assert_eq!(field(&arrived, "x-forwarded-for"), client);
            assert_eq!(field(&arrived, "x-forwarded-proto"), proto);
            assert_eq!(field(&arrived, "x-forwarded-host"), host);
            assert_eq!(field(&arrived, "forwarded"), "", "it is not what these hops speak");
            for other in others.iter().map(|name| &**name).chain(["x-real-ip"]) {
                assert_eq!(!field(&arrived, other).is_empty(), from == HOP, "{from:?} {other}");
            }
        }
    }
}

#[test]
fn a_gateway_speaks_the_dialect_of_its_hops() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let (_started, address) = gateway(engine, Dialect::Rfc7239);
        let fields = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=\"[2001:db8::7]:80\";host=\"shop.example\";proto=https, for=10.0.0.9\r\n";
        let arrived = ask(HOP, address, fields);
        let expected = "for=\"[2001:db8::7]\";host=\"shop.example\";proto=https, for=10.0.0.9, for=127.0.0.1";
        assert_eq!((&*field(&arrived, "forwarded"), &*field(&arrived, "x-forwarded-for")), (expected, ""));
        let arrived = ask(STRANGER, address, fields);
        assert_eq!(field(&arrived, "forwarded"), "for=127.0.0.3;host=\"web.example\";proto=http");
        let (_started, address) = gateway(engine, Dialect::Both);
        for (said, trusted) in [("192.0.2.7", true), ("192.0.2.8", false)] {
            let arrived =
                ask(HOP, address, &format!("X-Forwarded-For: 192.0.2.7\r\nForwarded: for={said}\r\n"));
            let client = if trusted { "192.0.2.7, 127.0.0.1" } else { "127.0.0.1" };
            assert_eq!(field(&arrived, "x-forwarded-for"), client, "contradictions name nobody");
            assert_eq!(field(&arrived, "x-overlay-id") == "alice", trusted);
        }
    }
}
