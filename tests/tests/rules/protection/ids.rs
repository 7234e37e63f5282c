//! Ids of requests: each request at a gateway has one, upstream and in its answer.

use std::net::SocketAddr;

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::{ENGINES, ask, service};

fn gateway(
    engine: EngineChoice,
    trust: Trust,
    upstream: SocketAddr,
    request_ids: bool,
) -> (Started, SocketAddr) {
    let listener = stage::listener(Role::Gateway, "", None, trust);
    let settings = Settings { engine, request_ids, ..Settings::in_process(vec![listener]) };
    let started = stage::start_as(settings, stage::files("", upstream));
    let address = started.addresses()[0];
    (started, address)
}

fn get(address: SocketAddr, fields: &str) -> String {
    ask(address, format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"))
}

/// All ids that a head says.
fn ids(head: &str) -> Vec<&str> {
    let fields = head.split("\r\n\r\n").next().unwrap().lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(name, _)| name.eq_ignore_ascii_case("x-request-id")).map(|(_, value)| value).collect()
}

fn is_ours(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn each_request_has_one_id_upstream_and_in_its_answer_and_the_trusted_name_it() {
    let long = format!("x-request-id: {}\r\n", "a".repeat(129));
    for engine in ENGINES {
        for (trust, sent, kept) in [
            (Trust::Any, "", None),
            (Trust::Any, "x-request-id: theirs/1\r\n", Some("theirs/1")),
            (Trust::Any, "X-Request-ID:\r\n", None),
            (Trust::Any, "x-request-id: a\r\nx-request-id: b\r\n", None),
            (Trust::Any, "x-request-id: a b\r\n", None),
            (Trust::Any, &long, None),
            (Trust::Nobody, "", None),
            (Trust::Nobody, "x-request-id: theirs\r\n", None),
        ] {
            let (upstream, heads) = service("web");
            let (_running, address) = gateway(engine, trust, upstream, true);
            let answer = get(address, sent);
            let arrived = heads.recv().unwrap();
            let [upstream, client] = [ids(&arrived), ids(&answer)];
            assert_eq!(upstream, client, "{engine:?} {sent}: {arrived}{answer}");
            assert_eq!(upstream.len(), 1, "{engine:?} {sent}: {arrived}");
            assert!(
                kept.map_or_else(|| is_ours(upstream[0]), |kept| kept == upstream[0]),
                "{engine:?} {sent}: {upstream:?}"
            );
        }
    }
}

#[test]
fn an_answer_of_the_proxys_own_says_the_id_too_and_no_answer_does_where_requests_have_none() {
    for engine in ENGINES {
        let nowhere = ([127, 0, 0, 1], 1).into();
        let (_running, address) = gateway(engine, Trust::Any, nowhere, true);
        let refused = get(address, "x-request-id: theirs\r\n");
        assert!(refused.starts_with("HTTP/1.1 503") && ids(&refused) == ["theirs"], "{engine:?}: {refused}");
        let (upstream, heads) = service("web");
        let (_running, address) = gateway(engine, Trust::Any, upstream, false);
        assert!(ids(&get(address, "")).is_empty() && ids(&heads.recv().unwrap()).is_empty(), "{engine:?}");
    }
}
