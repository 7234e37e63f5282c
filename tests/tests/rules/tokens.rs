//! Signed tokens at a gateway: what they open, and everything that they do not.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::tokens::keys::TokenSettings;
use overlane::tokens::{self, Audience, Claims, Kind, Overlays};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;
use super::passage::listen;

const PATIENCE: Duration = Duration::from_secs(10);
const AUDIENCE: &str = "staging";

/// Answers each request with its name and the head that arrived.
fn service(name: &'static str) -> SocketAddr {
    listen(move |stream| {
        let mut out = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines();
        loop {
            let head: Vec<String> =
                lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            if head.is_empty() {
                return;
            }
            let body = format!("{name}\n{}\n", head.join("\n").to_lowercase());
            let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    })
}

/// A gateway that trusts nobody, with the overlays `alice` and `bob` of a baseline.
struct Place {
    started: Started,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(engine: EngineChoice, trust: Trust) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, kind) in [("own", Kind::Ed25519), ("other", Kind::Ed25519), ("secret", Kind::Hmac)] {
            let made = tokens::make(kind).unwrap();
            fs::write(folder.path().join(name), made.private).unwrap();
            fs::write(folder.path().join(format!("{name}.pub")), made.public.unwrap_or_default()).unwrap();
        }
        let keys = ["own.pub", "secret"].map(|name| folder.path().join(name));
        let settings = Settings {
            engine,
            tokens: Some(TokenSettings { keys: keys.into(), audience: AUDIENCE.to_owned() }),
            ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, trust)])
        };
        let overlay = "mode: overlay, baselineId: base";
        let files = vec![
            stage::web("base", "mode: baseline", service("base")),
            stage::web("alice", overlay, service("alice")),
            stage::web("bob", overlay, service("bob")),
        ];
        Self { started: stage::start_as(settings, files), folder }
    }

    fn key(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn token(&self, key: &str, claims: &Claims) -> String {
        tokens::issue(claims, &tokens::signing_key(&self.key(key)).unwrap()).unwrap()
    }

    /// A good token for these overlays.
    fn token_for(&self, ids: &[&str]) -> String {
        self.token("own", &claims(ids))
    }

    /// Asks with these fields: the status or who served, and all that was said.
    fn ask(&self, fields: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.started.addresses()[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let who = match answer.starts_with("HTTP/1.1 200") {
            true => body.lines().next().unwrap_or_default().to_owned(),
            false => answer.get(9..12).unwrap_or_default().to_owned(),
        };
        (who, answer)
    }

    fn metric(&self, line: &str) -> bool {
        ask::metrics(self.started.admin()).contains(&format!("\n{line}\n"))
    }
}

fn now() -> u64 {
    overlane::clock::now().0 / 1000
}

fn claims(ids: &[&str]) -> Claims {
    let overlays = match ids {
        ["*"] => Overlays::Any,
        ids => Overlays::These(ids.iter().map(|id| id.parse().unwrap()).collect()),
    };
    Claims { aud: Audience::One(AUDIENCE.to_owned()), exp: now() + 3600, nbf: None, iat: None, overlays }
}

#[test]
fn a_token_opens_its_overlays_and_no_other_and_goes_no_further() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody);
        let [alice, both, any] = [&["alice"][..], &["alice", "bob"], &["*"]].map(|ids| place.token_for(ids));
        let hmac = place.token("secret", &claims(&["alice"]));
        let cases: [(&str, &str, &str); 16] = [
            (&alice, "x-overlay-id: alice", "alice"),
            (&hmac, "x-overlay-id: alice", "alice"),
            (&alice, "baggage: overlay-id=alice", "alice"),
            (&alice, "x-overlay-id: bob", "base"),
            (&alice, "x-overlay-id: alice, bob", "base"),
            (&alice, "x-overlay-id: bob, alice", "base"),
            // Another proxy may read another carrier first.
            (&alice, "x-overlay-id: alice\r\nbaggage: overlay-id=bob", "base"),
            (&both, "x-overlay-id: bob", "bob"),
            (&both, "x-overlay-id: bob, alice", "bob"),
            (&any, "x-overlay-id: bob", "bob"),
            (&any, "x-overlay-id: nobody", "base"),
            // A right is no choice, but where it is for one.
            (&both, "a: b", "base"),
            (&any, "a: b", "base"),
            (&alice, "a: b", "alice"),
            (&alice, "x-overlay-id:", "alice"),
            (&alice, "x-overlay-id: NO ID", "400"),
        ];
        for (token, fields, expected) in cases {
            for carried in [format!("x-overlay-token: {token}"), format!("Authorization: bearer {token}")] {
                let (who, answer) = place.ask(&format!("{carried}\r\n{fields}\r\n"));
                assert_eq!(who, expected, "{fields}: {answer}");
                assert!(!answer.contains(token) && !answer.contains("token"), "it went further: {answer}");
                let receipt = answer.contains("x-overlay-route: web;env=");
                assert_eq!(receipt, who != "base" && who != "400" || fields.contains("nobody"), "{answer}");
                let key = format!("x-overlay-id: {expected}");
                assert!(!["alice", "bob"].contains(&expected) || answer.contains(&key), "{answer}");
            }
        }
        let (who, answer) =
            place.ask(&format!("x-overlay-token: {alice}\r\nx-overlay-id: bob\r\nx-overlay-require: *\r\n"));
        assert_eq!(who, "403", "{answer}");
        assert!(answer.contains("(untrusted)") && !answer.contains(&alice), "{answer}");
    }
}

#[test]
fn what_a_guest_says_of_the_way_does_not_count() {
    let place = Place::new(EngineChoice::Auto, Trust::Nobody);
    let token = place.token_for(&["alice"]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let fields = format!(
        "x-overlay-token: {token}\r\nx-overlay-id: alice\r\nx-overlay-hop: bob\r\nx-overlay-hops: 31\r\nx-overlay-route: x;env=bob\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nx-request-id: mine\r\nx-overlay-require: web\r\n"
    );
    let (who, answer) = place.ask(&fields);
    assert_eq!(who, "alice", "{answer}");
    for gone in ["x-overlay-hop: bob", "env=bob", trace, "x-request-id: mine"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    assert!(answer.contains("x-overlay-hops: 1\n") && answer.contains("traceparent: 00-"), "{answer}");
    assert!(answer.contains("x-overlay-require: web\n"), "it may require what it may choose: {answer}");
}

#[test]
fn no_other_token_opens_anything_and_each_is_counted() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody);
        let good = place.token_for(&["alice"]);
        let with = |change: &dyn Fn(&mut Claims)| {
            let mut claims = claims(&["alice"]);
            change(&mut claims);
            place.token("own", &claims)
        };
        let (head, rest) = good.split_once('.').unwrap();
        let (said, signature) = rest.split_once('.').unwrap();
        let public = fs::read_to_string(place.key("own.pub")).unwrap();
        let none = BASE64.encode(r#"{"typ":"overlay+jwt","alg":"none"}"#);
        let plain = BASE64.encode(r#"{"typ":"JWT","alg":"EdDSA","kid":"x"}"#);
        let huge = format!("{good}{}", "A".repeat(20_000));
        let secret = place.token_for(&["bob"]);
        let (_, other_signature) = secret.rsplit_once('.').unwrap();
        let cases = [
            (with(&|c| c.exp = now() - 1), "expired"),
            (with(&|c| c.nbf = Some(now() + 600)), "not-yet-valid"),
            (with(&|c| c.aud = Audience::One("production".to_owned())), "audience"),
            (with(&|c| c.aud = Audience::Several(Vec::new())), "audience"),
            (place.token("other", &claims(&["alice"])), "key"),
            (format!("{head}.{said}.{other_signature}"), "signature"),
            (format!("{head}.{said}."), "signature"),
            (format!("{none}.{said}."), "malformed"),
            (format!("{none}.{said}.{signature}"), "malformed"),
            (format!("{head}.{said}"), "malformed"),
            (good[..good.len() - 2].to_owned(), "signature"),
            (good[10..].to_owned(), "malformed"),
            (huge, "malformed"),
            (public.trim().replace('"', ""), "malformed"),
            ("alice".to_owned(), "malformed"),
            ("*".to_owned(), "malformed"),
            (format!("{plain}.{said}.{signature}"), "type"),
            (format!("{good}\r\nx-overlay-token: {good}"), "several"),
            (format!("{good}, {good}"), "malformed"),
            (format!("{good}\r\nAuthorization: Bearer {secret}"), "several"),
        ];
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        for (token, why) in &cases {
            *counts.entry(*why).or_default() += 1;
            let (who, answer) = place.ask(&format!("x-overlay-token: {token}\r\nx-overlay-id: alice\r\n"));
            assert_eq!(who, "base", "{why} {token}: {answer}");
            assert!(!answer.contains("alice") && !answer.contains("token"), "{why}: {answer}");
        }
        for (why, count) in counts {
            let line = format!("overlane_tokens_refused_total{{reason=\"{why}\"}} {count}");
            assert!(place.metric(&line), "{line}");
        }
        let (who, answer) = place.ask(&format!(
            "x-overlay-token: {}\r\nx-overlay-id: alice\r\nx-overlay-require: *\r\n",
            cases[0].0
        ));
        assert!(who == "403" && answer.contains("its token has expired"), "{answer}");
    }
}

#[test]
fn an_applications_own_authorization_stays_as_it_is() {
    let place = Place::new(EngineChoice::Auto, Trust::Nobody);
    let token = place.token_for(&["alice"]);
    let plain = BASE64.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
    for own in [
        "Basic YTpi".to_owned(),
        format!("Bearer {plain}.e30.c2ln"),
        "Bearer".to_owned(),
        "Bearer a.b.c".to_owned(),
    ] {
        let (who, answer) = place.ask(&format!("x-overlay-token: {token}\r\nAuthorization: {own}\r\n"));
        assert_eq!(who, "alice", "{answer}");
        assert!(answer.contains(&format!("\nauthorization: {}\n", own.to_lowercase())), "{answer}");
    }
    // One of ours that is of no use is still nobody else's.
    let expired = place.token("own", &Claims { exp: 1, ..claims(&["alice"]) });
    let (who, answer) = place.ask(&format!("Authorization: Bearer {expired}\r\n"));
    assert!(who == "base" && !answer.contains("authorization"), "{answer}");
}

#[test]
fn a_token_is_worth_nothing_once_its_key_is_gone_also_where_it_was_just_used() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody);
        let token = place.token_for(&["alice"]);
        let ask = || place.ask(&format!("x-overlay-token: {token}\r\nx-overlay-id: alice\r\n")).0;
        assert_eq!([ask(), ask()], ["alice", "alice"]);
        let until = |expected: &str| {
            let end = Instant::now() + PATIENCE;
            while ask() != expected {
                assert!(Instant::now() < end, "still not {expected}");
                std::thread::yield_now();
            }
        };
        // The next key takes the place of the old one.
        fs::rename(place.key("other.pub"), place.key("own.pub")).unwrap();
        until("base");
        let next = place.token("other", &claims(&["alice"]));
        assert_eq!(place.ask(&format!("x-overlay-token: {next}\r\nx-overlay-id: alice\r\n")).0, "alice");
        assert_eq!(ask(), "base");
    }
}

#[test]
fn the_trusted_may_choose_whatever_their_token_says_and_it_goes_no_further() {
    let place = Place::new(EngineChoice::Auto, Trust::Any);
    let token = place.token_for(&["alice"]);
    for (fields, expected) in [("x-overlay-id: bob\r\n", "bob"), ("", "alice")] {
        let (who, answer) = place.ask(&format!("x-overlay-token: {token}\r\n{fields}"));
        assert!(who == expected && !answer.contains("token"), "{answer}");
    }
    let (who, answer) = place.ask("x-overlay-token: nonsense\r\nx-overlay-id: bob\r\n");
    assert!(who == "bob" && !answer.contains("token"), "{answer}");
    assert_eq!(
        place.ask("x_overlay_token: nonsense\r\n").0,
        "400",
        "it would be ours where underscores are dashes"
    );
}
