//! Browsers at a gateway: how they enter an overlay, stay in it and leave it, and who does not get in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use overlane::control::Trigger;
use overlane::plane::EngineChoice;
use overlane::plane::edge::digest;
use overlane::plane::forwarded::Forwarding;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::blueprint::hex;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;

const PATIENCE: Duration = Duration::from_secs(10);
/// Who may choose an overlay, and who may not.
const TEAM: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 1];
/// A load balancer that speaks TLS with its clients, and what it says where that is one of the team.
const BALANCER: [u8; 4] = [127, 0, 0, 3];
const OVER_TLS: &str = "x-forwarded-for: 127.0.0.2\r\nx-forwarded-proto: https\r\n";
/// What was shared of `alice`.
const SECRET: &str = "0d1f3a5b7c9e0d1f3a5b7c9e0d1f3a5b7c9e0d1f";
const EXPIRED: &str = "ffffffffffffffffffffffffffffffffffffffff";
const SHOP: &str = "shop.staging.example.test";
const ALICE: &str = "web--alice.preview.example.test";
/// What a browser says that goes to a page.
const GOES: &str = "sec-fetch-mode: navigate\r\naccept: text/html\r\n";

/// A service that says who it is and what it was asked, and answers as `x-answer` says: lines between bars.
fn service(name: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            thread::spawn(move || serve(stream, name));
        }
    });
    address
}

fn serve(mut stream: TcpStream, name: &str) {
    let (mut open, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        open.extend_from_slice(&buffer[..read]);
        while let Some(end) = open.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&open[..end]).into_owned();
            open.drain(..end + 4);
            let more = head.lines().find_map(|line| line.strip_prefix("x-answer: ")).unwrap_or("200 OK");
            if head.contains("\r\nx-slow: ") {
                // Longer than a call takes that does not last.
                thread::sleep(Duration::from_millis(1100));
            }
            let (status, lines) = more.split_once('|').unwrap_or((more, ""));
            let lines: String =
                lines.split('|').filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
            let body = format!("{name}\n{head}");
            let answer = format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn file(name: &str, text: String) -> FileChange {
    let path: Arc<str> = format!("{name}.yaml").into();
    FileChange { path: path.clone(), content: Content::Text(Arc::new(Source::new(path, text, None))) }
}

/// A gateway: `web` is at its own host and changed by `alice`; `api` is exposed under no host, and changed by `bob`.
fn gateway(engine: EngineChoice) -> Started {
    let (base, alice, bob) = (service("base"), service("alice"), service("bob"));
    let trust: Trust = "127.0.0.2/32".parse().unwrap();
    let settings = Settings {
        engine,
        forwarding: Forwarding { hops: vec!["127.0.0.3/32".parse().unwrap()], ..Forwarding::default() },
        ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, trust)])
    };
    let files = vec![
        file(
            "base",
            format!(
                "name: base\nrouting: {{mode: baseline, holdFor: 10ms, previewUrl: 'http://preview.example.test:7480'}}\nservices:\n\
                 - {{name: web, hosts: [{SHOP}], url: 'http://{base}'}}\n\
                 - {{name: admin, hosts: [{SHOP}], path: /admin, url: 'http://{base}'}}\n\
                 - {{name: api, expose: true, url: 'http://{base}'}}\n- {{name: dead, hosts: [dead.example.test], url: 'http://127.0.0.1:9'}}\n- {{name: ledger, url: 'http://{base}'}}\n"
            ),
        ),
        file(
            "alice",
            format!(
                "name: alice\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: web, url: 'http://{alice}'}}]\n"
            ),
        ),
        file(
            "bob",
            format!(
                "name: bob\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: api, expose: true, url: 'http://{bob}'}}]\n"
            ),
        ),
        file(
            "old",
            format!(
                "name: old\nrouting: {{mode: overlay, baselineId: base, expiresAt: '2001-01-01T00:00:00Z'}}\nservices: [{{name: web, url: 'http://{alice}'}}]\n"
            ),
        ),
        file("dead", "name: dead\nrouting: {mode: overlay, baselineId: base, holdFor: 30s}\nservices: [{name: web, url: 'http://127.0.0.1:9'}]\n".to_owned()),
        file(
            "alice.attached",
            format!(
                "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: alice}}\nspec:\n  shares:\n  \
                 - {{id: a1, sha256: {}}}\n  - {{id: a2, sha256: {}, expiresAt: '2001-01-01T00:00:00Z'}}\n",
                hex(&digest(SECRET)),
                hex(&digest(EXPIRED)),
            ),
        ),
    ];
    let running = stage::start_as(settings, files.clone());
    running.control().apply(&files, Trigger::Change);
    running
}

/// Asks from an address of this machine; the target and the fields are as they go out.
fn ask(from: [u8; 4], to: SocketAddr, host: &str, target: &str, fields: &str) -> String {
    let (method, target) = target.split_once(' ').unwrap_or(("GET", target));
    let mut stream = ask::from(from, to);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Who answered: a service, or the gateway with a status.
fn who(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("nothing");
    match body.lines().next() {
        Some(name @ ("base" | "alice" | "bob")) => name.to_owned(),
        _ => status.to_owned(),
    }
}

/// The values of a field of an answer's head.
fn values<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let named = |line: &'a str| {
        let (own, value) = line.split_once(": ")?;
        own.eq_ignore_ascii_case(name).then_some(value)
    };
    head.lines().filter_map(named).collect()
}

/// On each engine: who answers a request from an address to a host, with these fields.
fn each(cases: &[([u8; 4], &str, &str, &str, &str)]) {
    let mut wrong = Vec::new();
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let gateway = gateway(engine);
        let address = gateway.addresses()[0];
        for (from, host, target, fields, expected) in cases {
            let answer = ask(*from, address, host, target, fields);
            if who(&answer) != *expected {
                wrong.push(format!(
                    "{engine:?} {from:?} {host}{target} {fields:?}: wanted {expected}, got {answer}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_previews_host_leads_to_a_service_as_its_overlay_has_it() {
    each(&[
        (TEAM, SHOP, "/", "", "base"),
        (TEAM, ALICE, "/", "", "alice"),
        (TEAM, "WEB--ALICE.Preview.Example.Test.", "/", "", "alice"),
        (TEAM, &format!("{ALICE}:7480"), "/a/b?c=d", "", "alice"),
        // Inherited from the baseline, and still in the overlay.
        (TEAM, "api--alice.preview.example.test", "/", "", "base"),
        (TEAM, "api--bob.preview.example.test", "/", "", "bob"),
        // What the overlay itself exposes first; else what the baseline does.
        (TEAM, "bob.preview.example.test", "/", "", "bob"),
        (TEAM, "alice.preview.example.test", "/", "", "alice"),
        (TEAM, "alice.preview.example.test", "/admin", "", "base"),
        (TEAM, "base.preview.example.test", "/", "", "base"),
        // Not exposed, not there, not any more.
        (TEAM, "ledger--alice.preview.example.test", "/", "", "404"),
        (TEAM, "web--nobody.preview.example.test", "/", "", "404"),
        (TEAM, "web--old.preview.example.test", "/", "", "410"),
        // The host says which overlay; a header that says another does not count.
        (TEAM, ALICE, "/", "x-overlay-id: bob\r\n", "alice"),
        (TEAM, "api--bob.preview.example.test", "/", "cookie: overlane=alice\r\n", "bob"),
    ]);
}

#[test]
fn strangers_get_into_no_overlay_whatever_they_send() {
    let pass = format!("cookie: overlane-pass-alice={SECRET}\r\n");
    let stale = format!("cookie: overlane-pass-alice={EXPIRED}\r\n");
    let others = format!("cookie: overlane-pass-bob={SECRET}\r\n");
    let at_preview = [
        "",
        "x-overlay-id: alice\r\n",
        "x-overlay-hop: alice\r\n",
        "cookie: overlane=alice\r\n",
        "cookie: __Host-overlane=alice\r\n",
        "cookie: overlane-pass-alice=\r\n",
        "cookie: overlane-pass-alice=a1\r\n",
        &stale,
        &others,
        "x-forwarded-for: 127.0.0.2\r\n",
        "x-forwarded-host: shop\r\n",
        "forwarded: for=127.0.0.2\r\n",
        "origin: http://web--alice.preview.example.test:7480\r\n",
        "referer: http://web--alice.preview.example.test:7480/\r\n",
    ];
    each(&at_preview.map(|fields| (STRANGER, ALICE, "/", fields, "404")));
    // What only chooses by a header is as if it chose nothing; what a browser says is refused, lest it is taken for the overlay.
    each(&[
        (STRANGER, SHOP, "/", "x-overlay-id: alice\r\n", "base"),
        (STRANGER, SHOP, "/", "cookie: __Host-overlane=alice\r\n", "base"),
        (STRANGER, SHOP, "/", "cookie: overlane=alice\r\n", "404"),
        (STRANGER, SHOP, "/", "cookie: overlane=alice.a1\r\n", "404"),
        (STRANGER, SHOP, "/", "cookie: overlane=alice.\r\n", "base"),
        (STRANGER, SHOP, "/", &format!("cookie: overlane=alice.{EXPIRED}\r\n"), "404"),
        (STRANGER, SHOP, "/", &format!("cookie: overlane=bob.{SECRET}\r\n"), "404"),
        (STRANGER, SHOP, "/", "origin: http://web--alice.preview.example.test:7480\r\n", "404"),
        (STRANGER, SHOP, "/", "referer: http://web--alice.preview.example.test:7480/\r\n", "404"),
        (STRANGER, ALICE, "/?overlay=alice", "", "404"),
        (STRANGER, ALICE, &format!("/?overlay=alice.{EXPIRED}"), "", "404"),
        (STRANGER, ALICE, &format!("/?overlay=bob.{SECRET}"), "", "404"),
        (STRANGER, "api--bob.preview.example.test", &format!("/?overlay=alice.{SECRET}"), "", "404"),
        (STRANGER, "api--bob.preview.example.test", "/", &pass, "404"),
        (STRANGER, SHOP, "/?overlay=alice", GOES, "404"),
        (STRANGER, SHOP, &format!("/?overlay=alice.{EXPIRED}"), GOES, "404"),
        (
            STRANGER,
            SHOP,
            "OPTIONS /",
            "origin: http://alice.preview.example.test:7480\r\naccess-control-request-method: PUT\r\n",
            "404",
        ),
        (
            STRANGER,
            ALICE,
            "OPTIONS /",
            "origin: http://evil.example.test\r\naccess-control-request-method: PUT\r\n",
            "404",
        ),
    ]);
}

#[test]
fn strangers_do_not_learn_what_there_is() {
    let gateway = gateway(EngineChoice::Auto);
    let from_stranger = |host: &str, target: &str, fields: &str| {
        ask(STRANGER, gateway.addresses()[0], host, target, &format!("{GOES}{fields}"))
    };
    let same = from_stranger(ALICE, "/", "");
    for host in [
        "web--nobody.preview.example.test",
        "web--old.preview.example.test",
        "base.preview.example.test",
        "a.b.preview.example.test",
    ] {
        assert_eq!(from_stranger(host, "/", ""), same, "{host}");
    }
    // Whether it comes back somewhere is the same for what is there and what is not.
    let state = "cookie: overlane-return-2d711642b726b044=";
    let back = |label: &str| who(&from_stranger(SHOP, "/?state=x", &format!("{state}{label}\r\n")));
    assert_eq!(back("alice"), back("nobody"));
    for (host, target, fields) in [
        (SHOP, "/.overlane", ""),
        (SHOP, "/?overlay=alice", ""),
        (SHOP, "/?overlay=nobody", ""),
        (ALICE, "/", ""),
        ("dead.example.test", "/", ""),
        (SHOP, "/", "x-answer: broken\r\n"),
        ("web--old.preview.example.test", "/", &format!("cookie: overlane-pass-old={SECRET}\r\n")),
    ] {
        let answer = from_stranger(host, target, fields);
        for told in ["alice", "bob", ".yaml", "shop.staging", "`base`", "127.0.0.1"] {
            assert!(!answer.contains(told), "{host}{target}: {told}: {answer}");
        }
    }
    let known = ask(TEAM, gateway.addresses()[0], "web--nobody.preview.example.test", "/", GOES);
    assert!(known.contains("http://alice.preview.example.test:7480/") && !known.contains("old."), "{known}");
}

#[test]
fn an_address_enters_by_a_cookie_and_is_cleaned_and_an_empty_one_leaves() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let gateway = gateway(engine);
        let goes = |target: &str, fields: &str| {
            ask(TEAM, gateway.addresses()[0], SHOP, target, &format!("{GOES}{fields}"))
        };
        let goes_over_tls = |target: &str, fields: &str| {
            ask(BALANCER, gateway.addresses()[0], SHOP, target, &format!("{GOES}{OVER_TLS}{fields}"))
        };
        let entered = goes("/a//b?x=1&overlay=alice&overlays=2", "");
        assert_eq!(who(&entered), "307", "{entered}");
        // Once more, to see that the cookie was taken; then the address is cleaned.
        let again = "/a//b?x=1&overlay=alice&overlays=2&overlay-set=1";
        assert_eq!(values(&entered, "location"), [again]);
        assert_eq!(values(&entered, "set-cookie"), ["overlane=alice; Path=/; HttpOnly; SameSite=Lax"]);
        assert_eq!(values(&entered, "cache-control"), ["no-store"]);
        let cookie = "cookie: a=1; overlane=alice; b=2\r\n";
        let cleaned = goes(again, cookie);
        assert_eq!(values(&cleaned, "location"), ["/a//b?x=1&overlays=2"], "{cleaned}");
        assert_eq!(values(&cleaned, "set-cookie").len(), 0);
        assert_eq!(who(&goes(again, "")), "400", "it takes no cookies");
        let inside = goes("/", cookie);
        assert_eq!(who(&inside), "alice");
        assert!(inside.contains("cookie: a=1; b=2\r\n"), "our cookie goes no further: {inside}");
        assert!(inside.contains("x-overlay-id: alice"), "{inside}");
        for leaves in ["/?overlay=", "/?overlay", "/?overlay=base"] {
            let left = goes(leaves, &format!("{cookie}sec-fetch-site: same-origin\r\n"));
            assert_eq!(values(&left, "set-cookie"), ["overlane=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"]);
            assert_eq!(values(&left, "location"), ["/"]);
            // Another site's page takes nobody out, nor a sibling's.
            for site in ["cross-site", "same-site"] {
                let asked = goes(leaves, &format!("{cookie}sec-fetch-site: {site}\r\n"));
                assert_eq!(
                    (who(&asked), values(&asked, "set-cookie").len()),
                    ("409".to_owned(), 0),
                    "{asked}"
                );
            }
        }
        let moved = goes("/x?overlay=bob", &format!("{cookie}sec-fetch-site: cross-site\r\n"));
        assert_eq!(who(&moved), "409", "{moved}");
        assert!(moved.contains("href=\"/x?overlay=bob\"") && moved.contains("href=\"/x\""), "{moved}");
        assert_eq!(who(&goes("/x?overlay=bob", &format!("{cookie}sec-fetch-site: none\r\n"))), "307");
        // Over TLS nobody else can set the cookie, and another site's frame keeps it.
        let tls = goes_over_tls("/?overlay=alice", "");
        assert_eq!(
            values(&tls, "set-cookie"),
            ["__Host-overlane=alice; Path=/; HttpOnly; Secure; SameSite=None"]
        );
        let framed = "sec-fetch-dest: iframe\r\nsec-fetch-site: cross-site\r\n";
        let framed = goes_over_tls("/?overlay=alice", framed);
        assert_eq!(
            values(&framed, "set-cookie"),
            ["__Host-overlane=alice; Path=/; HttpOnly; Secure; SameSite=None; Partitioned"]
        );
        let in_the_clear = goes_over_tls("/", "cookie: overlane=alice\r\n");
        assert!(in_the_clear.contains("without TLS"), "{in_the_clear}");
        // A request that shows nothing, and what is written wrong.
        assert_eq!(who(&ask(TEAM, gateway.addresses()[0], SHOP, "/?overlay=alice", "")), "base");
        for wrong in
            ["/?overlay=Not%20One", "/?overlay=Alice", "/?overlay=nobody", "/?overlay=alice_payments"]
        {
            assert_eq!(who(&goes(wrong, "")), "404", "{wrong}");
        }
        assert_eq!(who(&goes("/?%6Fverlay=alice", "")), "base", "as it is written");
        // Never to another host.
        let evil = goes("//evil.test/?overlay=alice", cookie);
        assert_eq!(values(&evil, "location"), ["/evil.test/"]);
    }
}

#[test]
fn who_was_in_an_overlay_that_went_is_told_so_and_never_served_by_the_baseline() {
    let gone = "origin: http://web--old.preview.example.test:7480\r\n";
    each(&[
        (TEAM, SHOP, "/", &format!("{GOES}cookie: overlane=nobody\r\n"), "404"),
        (TEAM, SHOP, "/", &format!("{GOES}cookie: overlane=old\r\n"), "410"),
        (TEAM, SHOP, "POST /", "cookie: overlane=nobody\r\ncontent-length: 0\r\n", "404"),
        (TEAM, SHOP, "POST /", &format!("{gone}content-length: 0\r\n"), "410"),
        (TEAM, SHOP, "/", "x-overlay-id: nobody\r\n", "base"),
        // Below the domain nothing is the baseline, however it is written wrong.
        (TEAM, "web.alice.preview.example.test", "/", "", "404"),
        (TEAM, "web---alice.preview.example.test", "/", "", "404"),
        (TEAM, "web--alice--2.preview.example.test", "/", "", "404"),
    ]);
    let gateway = gateway(EngineChoice::Auto);
    let told = ask(TEAM, gateway.addresses()[0], SHOP, "/", &format!("{GOES}cookie: overlane=old\r\n"));
    assert!(told.contains("href=\"/?overlay=\""), "{told}");
}

#[test]
fn a_previews_request_that_is_held_while_its_overlay_goes_is_never_the_baselines() {
    let gateway = gateway(EngineChoice::Auto);
    let address = gateway.addresses()[0];
    let held = thread::spawn(move || ask(TEAM, address, "web--dead.preview.example.test", "/", ""));
    // Its upstream refuses connections: it waits.
    let admin = gateway.admin();
    let waits = || ask::metrics(admin).contains("overlane_requests_in_flight{limit=\"held\"} 1");
    let end = std::time::Instant::now() + PATIENCE;
    while !waits() {
        assert!(std::time::Instant::now() < end, "it does not wait: {}", ask::metrics(admin));
        thread::yield_now();
    }
    let path: Arc<str> = "dead.yaml".into();
    gateway.control().apply(&[FileChange { path, content: Content::Gone }], Trigger::Change);
    let answer = held.join().unwrap();
    assert_eq!(who(&answer), "404", "{answer}");
}

#[test]
fn a_shared_link_lets_in_whoever_has_it_and_nobody_once_it_counts_no_more() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let gateway = gateway(engine);
        let ask = |host: &str, target: &str, fields: &str| {
            ask(STRANGER, gateway.addresses()[0], host, target, fields)
        };
        let entered = ask(ALICE, &format!("/a?b=c&overlay=alice.{SECRET}"), GOES);
        assert_eq!(values(&entered, "location"), ["/a?b=c"], "{entered}");
        assert_eq!(values(&entered, "referrer-policy"), ["no-referrer"]);
        let pass = format!("overlane-pass-alice={SECRET}");
        assert_eq!(
            values(&entered, "set-cookie"),
            [format!("{pass}; Path=/; Domain=preview.example.test; HttpOnly; SameSite=Lax")]
        );
        let tls = self::ask(
            BALANCER,
            gateway.addresses()[0],
            ALICE,
            &format!("/?overlay=alice.{SECRET}"),
            OVER_TLS,
        );
        assert!(values(&tls, "set-cookie")[0].ends_with("; HttpOnly; Secure; SameSite=None"), "{tls}");
        let pass = format!("cookie: {pass}; a=1\r\n");
        for (host, expected) in [
            (ALICE, "alice"),
            ("api--alice.preview.example.test", "base"),
            ("api--bob.preview.example.test", "404"),
            (SHOP, "base"),
        ] {
            assert_eq!(who(&ask(host, "/", &pass)), expected, "{host}");
        }
        let inside = ask(ALICE, "/", &format!("{pass}x-overlay-hop: bob\r\nbaggage: overlay-id=bob,a=1\r\n"));
        assert_eq!(who(&inside), "alice");
        assert!(
            !inside.contains(SECRET) && !inside.contains("bob") && inside.contains("cookie: a=1"),
            "{inside}"
        );
        assert_eq!(values(&inside, "cache-control"), ["private"], "others have no pass");
        assert!(
            values(&inside, "x-overlay-route")[0].contains("env=alice;via=overlay;reason=owned"),
            "{inside}"
        );
        // On a host without previews.
        let entered = ask(SHOP, &format!("/?overlay=alice.{SECRET}"), GOES);
        let cookie = format!("overlane=alice.{SECRET}");
        assert!(values(&entered, "set-cookie")[0].starts_with(&cookie), "{entered}");
        assert_eq!(who(&ask(SHOP, "/", &format!("cookie: {cookie}\r\n"))), "alice");
        // A sibling's host may have set others of the name.
        let tossed = format!("cookie: overlane-pass-alice=x; overlane-pass-alice={SECRET}\r\n");
        assert_eq!(who(&ask(ALICE, "/", &tossed)), "alice");
        // What it requires counts, as of anybody who may be there.
        let required =
            ask("api--alice.preview.example.test", "/", &format!("{pass}x-overlay-require: *\r\n"));
        assert_eq!(who(&required), "412", "{required}");
        let page = format!("{pass}origin: http://{ALICE}:7480\r\n");
        assert_eq!(who(&ask(SHOP, "/", &page)), "alice", "its page, and it has the pass");
        // Taken back, it lets nobody in, whatever cookies there are.
        let path: Arc<str> = "alice.attached.yaml".into();
        gateway.control().apply(&[FileChange { path, content: Content::Gone }], Trigger::Change);
        assert_eq!(who(&ask(ALICE, "/", &pass)), "404");
        assert_eq!(who(&ask(SHOP, "/", &format!("cookie: {cookie}\r\n"))), "404", "not the baseline, either");
    }
}

#[test]
fn what_a_previews_page_loads_stays_in_its_overlay() {
    let origin = "origin: http://web--alice.preview.example.test:7480\r\n";
    let referer = "referer: http://web--alice.preview.example.test:7480/a?b#c\r\n";
    let preflight = format!("{origin}access-control-request-method: PUT\r\n");
    let both = format!("{origin}cookie: overlane=bob\r\n");
    each(&[
        (TEAM, SHOP, "/", origin, "alice"),
        (TEAM, SHOP, "/", referer, "alice"),
        (TEAM, SHOP, "OPTIONS /", &preflight, "alice"),
        (TEAM, SHOP, "POST /", &both, "alice"),
        (TEAM, ALICE, "OPTIONS /", &preflight, "alice"),
        (TEAM, SHOP, "/", "origin: null\r\n", "base"),
        // Other programs' hosts.
        (TEAM, SHOP, "/", "origin: http://web--alice.preview.example.test\r\n", "base"),
        (TEAM, SHOP, "/", "origin: http://app.preview.example.test:7480\r\n", "base"),
        (TEAM, SHOP, "/", "origin: http://preview.example.test\r\n", "base"),
        (TEAM, SHOP, "/", &format!("{origin}x-overlay-id: bob\r\n"), "base"),
    ]);
    let gateway = gateway(EngineChoice::Auto);
    let goes =
        ask(TEAM, gateway.addresses()[0], &format!("{SHOP}:81"), "/a?b=c", &format!("{GOES}{referer}"));
    assert_eq!(values(&goes, "location"), [format!("http://{ALICE}:7480/a?b=c")], "{goes}");
    let posts =
        ask(TEAM, gateway.addresses()[0], SHOP, "POST /a", &format!("{GOES}{referer}content-length: 0\r\n"));
    assert_eq!(values(&posts, "location"), [format!("http://{ALICE}:7480/a")], "{posts}");
}

#[test]
fn a_preflight_that_cannot_show_its_pass_is_answered_for_pages_of_the_same_overlay() {
    let gateway = gateway(EngineChoice::Auto);
    let preflight = "access-control-request-method: PUT\r\naccess-control-request-headers: x-a, x-b\r\n";
    let ask = |host: &str, origin: &str| {
        ask(STRANGER, gateway.addresses()[0], host, "OPTIONS /", &format!("origin: {origin}\r\n{preflight}"))
    };
    let (page, api) = ("http://web--alice.preview.example.test:7480", "api--alice.preview.example.test");
    let answer = ask(api, page);
    assert_eq!(who(&answer), "204", "{answer}");
    for (name, value) in [
        ("access-control-allow-origin", page),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(values(&answer, name), [value]);
    }
    // The same for what is not there: nobody learns what is.
    let nobody = ask("api--nobody.preview.example.test", "http://web--nobody.preview.example.test:7480");
    assert_eq!(who(&nobody), "204");
    assert_eq!(who(&ask("api--bob.preview.example.test", page)), "404");
}

#[test]
fn redirects_and_cookies_of_an_application_stay_at_the_preview() {
    let alice = format!("http://{ALICE}:7480");
    for (host, answer, name, expected) in [
        (
            ALICE,
            format!("302 F|Location: https://{SHOP}/a?b=http://{SHOP}/"),
            "location",
            vec![format!("{alice}/a?b=http://{SHOP}/")],
        ),
        (ALICE, format!("302 F|Location: http://{SHOP}"), "location", vec![alice.clone()]),
        (
            ALICE,
            format!("302 F|Location: http://{SHOP}/admin/x"),
            "location",
            vec!["http://admin--alice.preview.example.test:7480/admin/x".to_owned()],
        ),
        (ALICE, "302 F|Location: /a".to_owned(), "location", vec!["/a".to_owned()]),
        (
            ALICE,
            "302 F|Location: https://elsewhere.test/".to_owned(),
            "location",
            vec!["https://elsewhere.test/".to_owned()],
        ),
        (SHOP, format!("302 F|Location: https://{SHOP}/a"), "location", vec![format!("https://{SHOP}/a")]),
        (
            ALICE,
            "200 OK|Set-Cookie: a=1; Domain=staging.example.test; Path=/|Set-Cookie: b=2".to_owned(),
            "set-cookie",
            vec!["a=1; Path=/".to_owned(), "b=2".to_owned()],
        ),
        (
            SHOP,
            "200 OK|Set-Cookie: a=1; Domain=staging.example.test".to_owned(),
            "set-cookie",
            vec!["a=1; Domain=staging.example.test".to_owned()],
        ),
        // An application cannot put its visitors into another overlay.
        (
            SHOP,
            "200 OK|Set-Cookie: overlane=bob|Set-Cookie: __Host-overlane=bob; Secure|Set-Cookie: c=3"
                .to_owned(),
            "set-cookie",
            vec!["c=3".to_owned()],
        ),
    ] {
        for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
            let gateway = gateway(engine);
            let host = format!("{host}:7480");
            let given = ask(TEAM, gateway.addresses()[0], &host, "/", &format!("x-answer: {answer}\r\n"));
            assert_eq!(values(&given, name), expected, "{engine:?} {host} {answer}: {given}");
        }
    }
}

#[test]
fn a_round_trip_through_another_host_comes_back_to_the_preview_that_it_left() {
    let back = format!("redirect_uri=https%3A%2F%2F{SHOP}%2Fback");
    let to = |more: &str| {
        format!("302 F|Location: https://login.test/authorize?client_id=a&state=St%2Bate{more}&{back}")
    };
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let gateway = gateway(engine);
        let ask =
            |host: &str, target: &str, fields: &str| ask(TEAM, gateway.addresses()[0], host, target, fields);
        let leave = |more: &str| {
            let left = ask(ALICE, "/login", &format!("{GOES}x-answer: {}\r\n", to(more)));
            let cookie = values(&left, "set-cookie").first().map(|cookie| (*cookie).to_owned());
            cookie.unwrap_or_else(|| panic!("{left}"))
        };
        let cookie = leave("");
        let end = "; Path=/; Domain=example.test; HttpOnly; SameSite=Lax; Max-Age=900";
        let cookie = cookie.strip_suffix(end).unwrap_or_else(|| panic!("{cookie}"));
        let (name, value) = cookie.split_once('=').unwrap();
        assert!(value.starts_with("web--alice."), "{value}");
        let back = format!("{GOES}cookie: a=1; {cookie}\r\n");
        let returned = ask(SHOP, "/back?code=c&state=St%2Bate", &back);
        assert_eq!(
            values(&returned, "location"),
            [format!("http://{ALICE}:7480/back?code=c&state=St%2Bate")],
            "{returned}"
        );
        assert_eq!(
            values(&returned, "set-cookie"),
            [format!("{name}=; Path=/; Domain=example.test; HttpOnly; SameSite=Lax; Max-Age=0")]
        );
        // Another state, another place, another browser, something that is no preview, a form that nobody announced.
        let form = "sec-fetch-site: cross-site\r\ncontent-length: 0\r\n";
        let elsewhere = back.replace("web--alice.", "evil.test.");
        for (target, fields) in [
            ("/back?code=c&state=other", &*back),
            ("/other?code=c&state=St%2Bate", &back),
            ("/back?code=c&state=St%2Bate", GOES),
            ("/back?code=c&state=St%2Bate", &elsewhere),
            ("POST /back", &format!("{back}{form}")),
        ] {
            assert_eq!(who(&ask(SHOP, target, fields)), "base", "{target} {fields}");
        }
        // As a form that the other site posts, its state in the body: there only, and of that site only.
        let cookie = leave("&response_mode=form_post");
        let cookie = cookie.split(';').next().unwrap();
        let back = format!("{GOES}cookie: {cookie}\r\n");
        assert_eq!(who(&ask(SHOP, "POST /back", &format!("{back}{form}"))), "307");
        assert_eq!(who(&ask(SHOP, "POST /account", &format!("{back}{form}"))), "base");
        let own = form.replace("cross-site", "same-origin");
        assert_eq!(who(&ask(SHOP, "POST /back", &format!("{back}{own}"))), "base");
        // However many were begun and not ended.
        let others: String = (0..20).map(|number| format!("overlane-return-{number}=x; ")).collect();
        let many = format!("{GOES}cookie: {others}{cookie}\r\n");
        assert_eq!(who(&ask(SHOP, "/back?code=c&state=St%2Bate", &many)), "307");
        // Over TLS it comes back from another site's form as well.
        let fields = format!("{GOES}x-answer: {}\r\n{OVER_TLS}", to(""));
        let tls = self::ask(BALANCER, gateway.addresses()[0], ALICE, "/login", &fields);
        assert!(values(&tls, "set-cookie")[0].contains("; Secure; SameSite=None"), "{tls}");
        // What a page fetches is no way to log in.
        let fetched = ask(ALICE, "/login", &format!("sec-fetch-mode: cors\r\nx-answer: {}\r\n", to("")));
        assert_eq!(values(&fetched, "set-cookie").len(), 0, "{fetched}");
    }
}

#[test]
fn no_shared_cache_mixes_environments() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let gateway = gateway(engine);
        for (host, fields, vary, private) in [
            (SHOP, "", true, false),
            (SHOP, "x-overlay-id: alice\r\n", true, true),
            (SHOP, "cookie: overlane=alice\r\n", true, true),
            (SHOP, "origin: http://web--alice.preview.example.test:7480\r\n", true, true),
            (ALICE, "", false, true),
        ] {
            let answer = ask(
                TEAM,
                gateway.addresses()[0],
                host,
                "/",
                &format!("{fields}x-answer: 200 OK|Vary: accept\r\n"),
            );
            let varies = values(&answer, "vary");
            assert_eq!(varies.first(), Some(&"accept"), "{answer}");
            assert_eq!(
                varies.get(1).copied(),
                vary.then_some("x-overlay-id, baggage, cookie, origin, referer"),
                "{engine:?} {host} {fields}"
            );
            assert_eq!(
                values(&answer, "cache-control").contains(&"private"),
                private,
                "{engine:?} {host} {fields}"
            );
        }
    }
}

#[test]
fn a_browser_is_shown_pages_that_load_nothing() {
    let gateway = gateway(EngineChoice::Auto);
    let ask = |target: &str, fields: &str| ask(TEAM, gateway.addresses()[0], SHOP, target, fields);
    let page = ask("/.overlane", &format!("{GOES}cookie: overlane=alice\r\n"));
    assert!(
        page.contains("are for `alice`, as the cookie says") && page.contains("href=\"/?overlay=\""),
        "{page}"
    );
    assert!(values(&page, "content-security-policy")[0].starts_with("default-src 'none'"), "{page}");
    let text = ask("/.overlane", "");
    assert!(text.contains("are for no overlay") && !text.contains('<'), "{text}");
    let refused = ask("/", &format!("{GOES}x-overlay-id: <b>\"&'\r\n"));
    let body = refused.split("\r\n\r\n").nth(1).unwrap_or_default();
    assert!(body.contains("`&lt;b&gt;\\&quot;&amp;\\&#39;`") && !body.contains("<b>"), "{refused}");
}

#[test]
fn a_call_that_takes_long_keeps_what_its_responses_head_needs() {
    let gateway = gateway(EngineChoice::Auto);
    let call = "content-type: application/grpc\r\nte: trailers\r\nx-slow: 1\r\nx-overlay-require: web\r\n";
    let answer = format!("{call}x-answer: 200 OK|Set-Cookie: a=1|Location: http://{SHOP}/a\r\n");
    let answer =
        ask(TEAM, gateway.addresses()[0], ALICE, "POST /", &format!("{answer}content-length: 0\r\n"));
    assert_eq!(who(&answer), "alice", "{answer}");
    assert_eq!(values(&answer, "set-cookie"), ["a=1"]);
    assert_eq!(values(&answer, "location"), [format!("http://{ALICE}:7480/a")]);
}
