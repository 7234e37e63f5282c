//! `overlane trace` as people run it, against listeners that answer what a test tells them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// Three hops: web calls payments-api, which calls the ledger.
const RECEIPTS: &str = "x-overlay-route: \
    ledger;env=staging;via=baseline;reason=not-owned;hop=c;parent=b, \
    payments-api;env=alice;via=overlay;reason=owned;hop=b;parent=a;restored, \
    search;env=staging;via=baseline;reason=not-owned;hop=d;parent=a, \
    web;env=staging;via=baseline;reason=not-owned;hop=a;partial\r\n";

fn trace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlane"));
    command.arg("trace").args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Reads one request, its body included.
fn request(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).unwrap();
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(read > 0, "cut off: {text}");
            continue;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return text;
        }
    }
}

/// A listener that gives one answer; its port, and the request when it came.
fn answering(status: &str, fields: &str, body: &str) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len());
    let port = listener.local_addr().unwrap().port();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = request(&stream);
        stream.write_all(answer.as_bytes()).unwrap();
        request
    });
    (port, served)
}

struct Ended {
    code: i32,
    out: String,
    notes: String,
    /// What the listener got.
    asked: String,
}

/// Runs it against a listener that answers so; `URL` in the arguments is the listener's.
fn traced(arguments: &[&str], status: &str, fields: &str, body: &str) -> Ended {
    let (port, served) = answering(status, fields, body);
    let url = format!("http://127.0.0.1:{port}/shop?x=1");
    let arguments: Vec<_> = arguments.iter().map(|a| if *a == "URL" { url.as_str() } else { a }).collect();
    let Output { status, stdout, stderr } = trace(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let asked = served.join().unwrap();
    Ended { code: status.code().unwrap(), out: text(stdout), notes: text(stderr), asked }
}

#[test]
fn the_tree_is_drawn_and_a_line_says_who_served() {
    let ended = traced(&["URL", "--key", "alice"], "200 OK", RECEIPTS, "hello");
    let (first, rest) = ended.out.split_once('\n').unwrap();
    assert!(first.contains("/shop?x=1: 200 OK in ") && first.ends_with(" ms"), "{first}");
    let expected = "\
web               staging   baseline (not-owned)     partial
├─ payments-api   alice     overlay (owned)          restored
│  └─ ledger      staging   baseline (not-owned)
└─ search         staging   baseline (not-owned)
`alice` served payments-api; others served web (staging), ledger (staging), search (staging).
";
    assert_eq!(rest, expected);
    assert!(ended.notes.starts_with("partial: calls of this service may be missing"), "{}", ended.notes);
    assert!(ended.notes.contains("\nrestored: the caller dropped the key"), "{}", ended.notes);
    assert_eq!(ended.code, 0);
}

#[test]
fn a_hop_that_failed_has_served_nothing() {
    let failed = "x-overlay-route: payments-api;env=alice;via=overlay;reason=unhealthy;hop=b;parent=a, \
        web;env=staging;via=baseline;reason=not-owned;hop=a\r\n";
    let ended = traced(&["URL", "--key", "alice"], "200 OK", failed, "swallowed");
    assert!(ended.out.ends_with("`alice` served nothing; others served web (staging).\n"), "{}", ended.out);
    assert!(ended.code == 1 && ended.notes.contains("`alice` served nothing"), "{}", ended.notes);
    let arguments = ["URL", "--key", "alice", "--require", "payments-api"];
    let ended = traced(&arguments, "200 OK", failed, "swallowed");
    assert!(ended.code == 1 && ended.notes.contains("no hop is known to have served it"), "{}", ended.notes);
}

#[test]
fn the_request_is_as_it_was_told() {
    let arguments =
        ["URL", "--key", "alice, bob", "-H", "x-a: 1", "-H", "Host: shop", "--require", "a,b", "-d", "body"];
    let asked = traced(&arguments, "200 OK", RECEIPTS, "").asked;
    assert!(asked.starts_with("POST /shop?x=1 HTTP/1.1\r\n") && asked.ends_with("\r\n\r\nbody"), "{asked}");
    let lines = ["x-overlay-id: alice, bob", "baggage: overlay-id=alice%2Cbob", "x-overlay-require: a, b"];
    for line in lines.iter().chain(&["x-a: 1", "host: shop"]) {
        assert_eq!(asked.lines().filter(|asked| asked == line).count(), 1, "{line} in {asked}");
    }
    let asked = traced(&["URL", "-X", "PUT", "-H", "X-Overlay-Id: alice"], "200 OK", RECEIPTS, "").asked;
    assert!(asked.starts_with("PUT /shop?x=1 HTTP/1.1\r\n") && !asked.contains("baggage"), "{asked}");
}

#[test]
fn what_is_no_answer_of_the_keys_environment_is_a_failure_that_says_what_to_do() {
    let refused = "overlane: required, and not called: `ledger` (not-reached)\nhint: send another request\n";
    let own = "Proxy-Status: overlane;error=http_request_denied\r\n";
    let problem = r#"{"detail":"no overlay `alice`","reason":"unknown","hint":"did you mean `alicia`?"}"#;
    let elsewhere = "x-overlay-route: web;env=staging;via=baseline;reason=unknown\r\n";
    for (arguments, status, fields, body, error, help) in [
        (&[][..], "200 OK", "", "", "no receipts came back", "ask a gateway of Overlane that trusts"),
        (&[], "200 OK", elsewhere, "", "`alice` served nothing", "nobody there knows this key"),
        (
            &[],
            "412 Precondition Failed",
            own,
            refused,
            "412 overlane: required, and not called: `ledger`",
            "send another",
        ),
        (&[], "404 Not Found", own, problem, "404 overlane: no overlay `alice` (unknown)", "did you mean"),
        (
            &["--require", "ledger"],
            "200 OK",
            RECEIPTS,
            "",
            "`ledger` is required, and was served by `staging`",
            "declare `ledger`",
        ),
        (
            &["--require", "payments-api,*,mail"],
            "200 OK",
            RECEIPTS,
            "",
            "`mail` is required, and no hop is known",
            "send a request",
        ),
    ] {
        let ended = traced(&[&["URL", "--key", "alice"], arguments].concat(), status, fields, body);
        assert_eq!(ended.code, 1, "{}{}", ended.out, ended.notes);
        let said = ended.notes.contains(&format!("error: {error}"))
            && ended.notes.contains(&format!("= help: {help}"));
        assert!(said, "{error}: {}", ended.notes);
    }
}

#[test]
fn an_application_that_failed_is_no_failure_of_routing() {
    let ended =
        traced(&["URL", "--key", "alice", "--require", "payments-api"], "500 Oops", RECEIPTS, "overlane: no");
    assert_eq!(
        (ended.code, ended.out.contains(": 500 Internal Server Error in ")),
        (0, true),
        "{}",
        ended.notes
    );
}

#[test]
fn receipts_that_cannot_be_read_are_left_out_and_said() {
    let fields = format!("{RECEIPTS}X-Overlay-Route: nonsense\r\n");
    let ended = traced(&["URL", "--key", "alice"], "200 OK", &fields, "");
    assert!(ended.notes.contains("1 line of x-overlay-route is no receipt"), "{}", ended.notes);
    assert_eq!(ended.code, 0);
}

#[test]
fn json_says_the_same() {
    let ended = traced(&["URL", "--key", "alice", "--require", "ledger", "--json"], "200 OK", RECEIPTS, "");
    let json: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(ended.code, 1);
    assert_eq!(
        (&json["status"], &json["key"][0], &json["require"][0]),
        (&200.into(), &"alice".into(), &"ledger".into())
    );
    assert_eq!(json["hops"].as_array().unwrap().len(), 4);
    let expected = serde_json::json!({
        "service": "payments-api", "environment": "alice", "via": "overlay", "reason": "owned",
        "hop": "b", "parent": "a", "marks": ["restored"],
    });
    assert_eq!(json["hops"][1], expected);
    assert!(json["problem"].as_str().unwrap().starts_with("`ledger` is required"), "{json}");
}

#[test]
fn what_cannot_be_sent_is_a_usage_error_and_nobody_there_a_failure() {
    for arguments in [
        &["http://127.0.0.1:1/"][..],
        &["127.0.0.1:1", "--key", "alice"],
        &["ftp://x/", "--key", "alice"],
        &["http://user@x/", "--key", "alice"],
        &["http://x/", "--key", "No Id"],
        &["http://x/", "-H", "x-overlay-id: No Id"],
        &["http://x/", "--key", "alice", "-H", "content-length: 3"],
    ] {
        let done = trace(arguments).output().unwrap();
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let done = trace(&[&format!("http://{closed}/"), "--key", "alice"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(said.contains(&closed.to_string()) && said.contains("refused"), "{said}");
}

/// A listener of `localhost` over TLS, and the file with its certificate.
fn answering_over_tls(folder: &Path) -> (u16, JoinHandle<bool>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("ca.pem"), cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
        // Who does not trust the certificate sends nothing.
        if stream.conn.complete_io(&mut stream.sock).is_err() || stream.conn.is_handshaking() {
            return false;
        }
        request(&mut stream);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{RECEIPTS}\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        true
    });
    (port, served)
}

#[test]
fn https_is_asked_where_its_certificate_is_trusted_and_only_there() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    answering_over_tls(other.path());
    for (trusted, exit) in [(folder.path(), 0), (other.path(), 1)] {
        let (port, served) = answering_over_tls(folder.path());
        let mut command = trace(&[&format!("https://localhost:{port}/"), "--key", "alice"]);
        let done = command.env("SSL_CERT_FILE", trusted.join("ca.pem")).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(exit), "{said}");
        assert_eq!(String::from_utf8_lossy(&done.stdout).contains("└─ search"), exit == 0);
        assert_eq!(said.contains("ertificate"), exit == 1, "{said}");
        assert_eq!(served.join().unwrap_or(false), exit == 0);
    }
}
