//! Somebody else is asked whether a request may choose its overlay.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane::plane::authorizer::Authorizer;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::ask;
use super::passage::listen;

const PATIENCE: Duration = Duration::from_secs(10);
const GRANTS: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const REFUSES: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nnot me";
/// As a browser goes to a page.
const GOES: &str = "sec-fetch-mode: navigate\r\naccept: text/html\r\n";

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let lines: Vec<_> = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Answers each request with its name.
fn service(name: &'static str) -> SocketAddr {
    listen(move |stream| {
        let mut out = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader) {
            let body = format!("{name}\n{}", head.to_lowercase());
            let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    })
}

/// What an authorizer was asked, and what it answers.
#[derive(Default)]
struct Desk {
    asked: Mutex<Vec<String>>,
    answer: Mutex<String>,
    /// While it is closed nobody is answered.
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Desk {
    fn answers(&self, answer: &str) {
        answer.clone_into(&mut self.answer.lock().unwrap());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn close(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn serve(&self, stream: TcpStream) {
        let mut out = stream.try_clone().unwrap();
        let Some(head) = read_head(&mut BufReader::new(stream)) else { return };
        self.asked.lock().unwrap().push(head);
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        let _ = out.write_all(self.answer.lock().unwrap().as_bytes());
    }
}

/// A gateway that trusts nobody, before the overlay `alice`, and its authorizer.
struct Place {
    started: Started,
    desk: Arc<Desk>,
}

impl Place {
    fn new(engine: EngineChoice, trust: Trust, change: impl Fn(&mut Authorizer)) -> Self {
        let desk = Arc::new(Desk::default());
        let own = desk.clone();
        let place = listen(move |stream| own.serve(stream));
        Self::asking(engine, trust, &format!("http://{place}/verify?for=overlane"), desk, change)
    }

    fn asking(
        engine: EngineChoice,
        trust: Trust,
        url: &str,
        desk: Arc<Desk>,
        change: impl Fn(&mut Authorizer),
    ) -> Self {
        let mut authorizer: Authorizer = url.parse().unwrap();
        authorizer.copy_headers = vec!["x-team".parse().unwrap()];
        authorizer.keep = Duration::ZERO;
        change(&mut authorizer);
        let settings = Settings {
            engine,
            authorizer: Some(authorizer),
            ..Settings::in_process(vec![stage::listener(Role::Gateway, "", None, trust)])
        };
        let files = vec![
            stage::web("base", "mode: baseline, previewUrl: 'http://preview.test'", service("base")),
            stage::web("alice", "mode: overlay, baselineId: base", service("alice")),
        ];
        Self { started: stage::start_as(settings, files), desk }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.started.addresses()[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Asks with these fields: who served or the status, and all that was said.
    fn ask_at(&self, host: &str, target: &str, fields: &str) -> (String, String) {
        read(
            self.send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n")),
        )
    }

    fn ask(&self, fields: &str) -> (String, String) {
        self.ask_at("shop", "/a?b=c", fields)
    }

    fn metric(&self, line: &str) -> bool {
        ask::metrics(self.started.admin()).contains(&format!("\n{line}\n"))
    }
}

fn read(mut stream: TcpStream) -> (String, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let who = match answer.starts_with("HTTP/1.1 200") {
        true => body.lines().next().unwrap_or_default().to_owned(),
        false => answer.get(9..12).unwrap_or_default().to_owned(),
    };
    (who, answer)
}

#[test]
fn the_authorizer_is_asked_for_who_has_no_right_by_the_convention_of_forward_auth() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody, |_| {});
        place.desk.answers(GRANTS);
        let fields = "x-overlay-id: alice\r\nCookie: a=1\r\nCookie: b=2\r\nAuthorization: Basic YTpi\r\nX-Team: ours\r\nX-Forwarded-For: 10.0.0.1\r\n";
        let (who, answer) = place.ask(fields);
        assert_eq!(who, "alice", "{answer}");
        assert!(answer.contains("authorization: basic ytpi"), "it is the application's: {answer}");
        let asked = place.desk.take();
        let [question] = &asked[..] else { panic!("{asked:?}") };
        let question = question.to_lowercase();
        let mut lines = question.lines();
        assert_eq!(lines.next(), Some("get /verify?for=overlane http/1.1"));
        let lines: Vec<_> = lines.filter(|line| !line.starts_with("host: ")).collect();
        assert_eq!(
            lines,
            [
                "x-forwarded-method: get",
                "x-forwarded-proto: http",
                "x-forwarded-host: shop",
                "x-forwarded-uri: /a?b=c",
                "x-forwarded-for: 127.0.0.1",
                "x-overlay-id: alice",
                "cookie: a=1; b=2",
                "authorization: basic ytpi",
                "x-team: ours",
            ]
        );
        // Whatever a body is, it waits.
        let request = "POST /a HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nx-overlay-id: alice\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(read(place.send(request)).0, "alice");
    }
}

#[test]
fn nobody_is_asked_where_nothing_is_chosen_or_the_right_is_there() {
    let place = Place::new(EngineChoice::Auto, Trust::Nobody, |_| {});
    place.desk.answers(GRANTS);
    for fields in
        ["", "x-overlay-id:\r\n", "x-overlay-require: web\r\n", "x-overlay-hop: alice\r\n", "Cookie: a=1\r\n"]
    {
        assert_eq!(place.ask(fields).0, "base", "{fields}");
    }
    // Which of two a grant would be for is not known.
    assert_eq!(place.ask("x-overlay-id: alice\r\nbaggage: overlay-id=bob\r\n").0, "base");
    assert_eq!(place.ask("x-overlay-id: NO ID\r\n").0, "base");
    assert_eq!(place.desk.take(), [""; 0]);
    let trusted = Place::new(EngineChoice::Auto, Trust::Any, |_| {});
    trusted.desk.answers(REFUSES);
    assert_eq!(trusted.ask("x-overlay-id: alice\r\n").0, "alice");
    assert_eq!(trusted.desk.take(), [""; 0]);
}

#[test]
fn whatever_it_answers_but_2xx_gives_no_right() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody, |_| {});
        for answer in [
            REFUSES,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "200 OK",
            "",
        ] {
            place.desk.answers(answer);
            let (who, said) = place.ask("x-overlay-id: alice\r\n");
            assert!(who == "base" && !said.contains("x-overlay-route"), "{answer}: {said}");
            assert!(!said.contains("x-overlay-id: alice"), "{answer}: {said}");
            let (who, said) = place.ask("x-overlay-id: alice\r\nx-overlay-require: web\r\n");
            assert!(who == "403" && said.contains("(untrusted)"), "{answer}: {said}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place =
            Place::asking(engine, Trust::Nobody, &format!("http://{nobody}"), place.desk.clone(), |_| {});
        assert_eq!(place.ask("x-overlay-id: alice\r\n").0, "base");
        assert!(place.metric("overlane_authorizer_questions_total{result=\"failed\"} 1"));
        assert!(place.metric("overlane_untrusted_headers_total 1"));
    }
}

#[test]
fn it_is_waited_for_in_time_and_number_only_and_others_do_not_wait() {
    let place = Place::new(EngineChoice::Auto, Trust::Nobody, |authorizer| {
        authorizer.timeout = Duration::from_millis(300);
        authorizer.at_once = 1;
    });
    place.desk.answers(GRANTS);
    place.desk.close(true);
    let request = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nx-overlay-id: alice\r\n\r\n";
    let waiting = place.send(request);
    while place.desk.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    // The only seat is taken.
    assert_eq!(place.ask("x-overlay-id: alice\r\n").0, "base");
    assert_eq!(place.ask("").0, "base");
    assert_eq!(read(waiting).0, "base", "it was not answered in time");
    assert!(place.metric("overlane_authorizer_questions_total{result=\"busy\"} 1"));
    assert!(place.metric("overlane_authorizer_questions_total{result=\"failed\"} 1"));
    place.desk.close(false);
    assert_eq!(place.ask("x-overlay-id: alice\r\n").0, "alice");
}

#[test]
fn a_grant_holds_for_the_very_same_question_only() {
    let place = Place::new(EngineChoice::Auto, Trust::Nobody, |authorizer| {
        authorizer.keep = Duration::from_secs(3600);
    });
    place.desk.answers(GRANTS);
    let fields = "x-overlay-id: alice\r\nCookie: who=me\r\n";
    assert_eq!(place.ask(fields).0, "alice");
    place.desk.answers(REFUSES);
    assert_eq!((place.ask(fields).0.as_str(), place.desk.take().len()), ("alice", 1));
    for (host, target, other) in [
        ("shop", "/a?b=c", "x-overlay-id: alice\r\nCookie: who=you\r\n"),
        ("shop", "/a?b=c", "x-overlay-id: alice\r\n"),
        ("shop", "/a?b=c", "x-overlay-id: alice\r\nCookie: who=me\r\nAuthorization: Basic YTpi\r\n"),
        ("shop", "/a?b=c", "x-overlay-id: alice\r\nCookie: who=me\r\nX-Team: other\r\n"),
        ("shop", "/a?b=c", "x-overlay-id: bob\r\nCookie: who=me\r\n"),
        ("shop", "/a", fields),
        ("other", "/a?b=c", fields),
    ] {
        assert_eq!(place.ask_at(host, target, other).0, "base", "{host} {target} {other}");
        assert_eq!(place.desk.take().len(), 1, "{host} {target} {other}");
    }
    // A refusal is not kept.
    place.desk.answers(GRANTS);
    assert_eq!(place.ask("x-overlay-id: alice\r\nCookie: who=you\r\n").0, "alice");
}

#[test]
fn a_browser_that_goes_to_a_page_gets_what_it_is_to_do() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = Place::new(engine, Trust::Nobody, |_| {});
        let login = "HTTP/1.1 302 Found\r\nLocation: http://login.test/?rd=x\r\nSet-Cookie: csrf=1; Path=/\r\nX-Secret: s\r\nContent-Length: 2\r\n\r\ngo";
        place.desk.answers(login);
        for (host, target, fields) in [
            ("web--alice.preview.test", "/", String::new()),
            ("shop", "/?overlay=alice", String::new()),
            ("shop", "/", "x-overlay-id: alice\r\n".to_owned()),
            ("shop", "/", "cookie: overlane=alice\r\n".to_owned()),
        ] {
            let (who, answer) = place.ask_at(host, target, &format!("{GOES}{fields}"));
            assert_eq!(who, "302", "{host} {target}: {answer}");
            let lower = answer.to_lowercase();
            assert!(lower.contains("location: http://login.test/?rd=x\r\n"), "{answer}");
            assert!(
                lower.contains("set-cookie: csrf=1; path=/\r\n") && !lower.contains("x-secret"),
                "{answer}"
            );
            assert!(answer.ends_with("\r\n\r\ngo"), "{answer}");
            assert!(place.desk.take()[0].to_lowercase().contains("x-overlay-id: alice"), "{host}");
            // What a page loads is not sent to another page.
            let (who, _) = place.ask_at(host, target, &fields);
            assert!(who == "base" || who == "404", "{host} {target}: {who}");
            place.desk.take();
        }
        // Logged in, it gets in.
        place.desk.answers(GRANTS);
        assert_eq!(place.ask_at("web--alice.preview.test", "/", GOES).0, "alice");
        assert_eq!(place.ask_at("shop", "/", &format!("{GOES}cookie: overlane=alice\r\n")).0, "alice");
        let (who, answer) = place.ask_at("shop", "/?overlay=alice", GOES);
        assert!(who == "307" && answer.contains("overlane=alice"), "{answer}");
    }
}
