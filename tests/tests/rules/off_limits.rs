//! What nobody may reach through a proxy, however it is spelled: its own admin listener, and addresses that serve a
//! machine's credentials. And what pages of other sites may not do at the admin listener.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

const PATIENCE: Duration = Duration::from_secs(20);

/// This machine, as hosts and as the system's resolver has them.
const HERE: &[&str] = &[
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "0.0.0.0",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::FFFF:0:0]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "127.1",
    "127.0.1",
    "0",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.1.",
    "localhost.",
];

/// Where clouds serve credentials.
const CLOUDS: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[FD00:0EC2:0:0:0:0:0:254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "169.254.169.254.",
];

fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn file(text: String) -> FileChange {
    let path: Arc<str> = "base.yaml".into();
    FileChange { path: path.clone(), content: Content::Text(Arc::new(Source::new(path, text, None))) }
}

/// A sidecar's outbound listener and a gateway. The first service of the baseline is exposed, with no url of its own.
fn start(engine: EngineChoice, services: &str) -> Started {
    let outbound = Role::Outbound { service: None, environment: None };
    let listeners = vec![
        stage::listener(outbound, "", None, Trust::Any),
        stage::listener(Role::Gateway, "", None, Trust::Any),
    ];
    let text = format!("name: base\nrouting: {{mode: baseline, holdFor: 0s}}\nservices: {services}\n");
    let settings = Settings { engine, ..Settings::in_process(listeners) };
    stage::start_as(settings, vec![file(text)])
}

/// How each attack through a proxy ended that was not refused.
fn through(outbound: SocketAddr, hosts: &[&str], port: u16, refused: fn(&str) -> bool) -> Vec<String> {
    let attack = |host: &str, tunnel: bool| {
        let end = "Connection: close\r\n\r\n";
        let page = format!("http://{host}:{port}/config_dump");
        let answer = match tunnel {
            false => ask(outbound, &format!("GET {page} HTTP/1.1\r\nHost: {host}:{port}\r\n{end}")),
            // Not HTTP, so that it would be passed on.
            true => {
                ask(outbound, &format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n\x16\x03\x01"))
            }
        };
        (!refused(&answer)).then(|| format!("{host}:{port}, tunnel {tunnel}: {answer:?}"))
    };
    thread::scope(|scope| {
        let attacks = hosts.iter().flat_map(|host| [(*host, false), (*host, true)]);
        let attacks: Vec<_> =
            attacks.map(|(host, tunnel)| scope.spawn(move || attack(host, tunnel))).collect();
        attacks.into_iter().filter_map(|attack| attack.join().unwrap()).collect()
    })
}

#[test]
fn the_admin_listener_is_reached_through_no_proxy() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let nowhere = "[{name: web, expose: true}]";
        let place = start(engine, nowhere);
        let (outbound, admin) = (place.addresses()[0], place.admin());
        assert!(
            ask(admin, "GET /config_dump HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .contains("generation")
        );
        // What does not resolve is not there: nothing listens on IPv6 either.
        let refused = |answer: &str| {
            let status = answer.split(' ').nth(1).unwrap_or_default();
            ["400", "403", "503", "508"].contains(&status) && !answer.contains("generation")
        };
        let wrong = through(outbound, HERE, admin.port(), refused);
        assert!(wrong.is_empty(), "{engine:?} {wrong:#?}");
        // The clearest of them are said to be what they are.
        for host in &HERE[..7] {
            let told = ask(
                outbound,
                &format!(
                    "GET http://{host}:{0}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                    admin.port()
                ),
            );
            assert!(told.starts_with("HTTP/1.1 508"), "{engine:?} {host}: {told}");
        }
    }
}

#[test]
fn a_blueprint_leads_to_no_listener_of_the_proxy_itself() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = start(engine, "[{name: web, expose: true}]");
        let (admin, gateway) = (place.admin().port(), place.addresses()[1]);
        for host in HERE {
            let text = format!(
                "name: base\nrouting: {{mode: baseline, holdFor: 1s}}\nservices: [{{name: web, expose: true, url: 'http://{host}:{admin}'}}]\n"
            );
            let report = place.control().apply(&[file(text)], overlane::control::Trigger::Change);
            let answer =
                ask(gateway, "GET /config_dump HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let refused = answer.starts_with("HTTP/1.1 508") || answer.starts_with("HTTP/1.1 503");
            assert!(refused && !answer.contains("\"generation\""), "{engine:?} {host} {report:?}: {answer}");
        }
    }
}

#[test]
fn no_proxy_leads_to_where_clouds_serve_credentials() {
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let place = start(engine, "[{name: web, expose: true}]");
        let refused = |answer: &str| {
            let status = answer.split(' ').nth(1).unwrap_or_default();
            (status == "403" || status == "503") && answer.contains("a link-local address")
                // Some resolvers do not know every spelling, which is as good.
                || status == "503" && answer.contains("does not resolve")
                || status == "400"
        };
        let wrong = through(place.addresses()[0], CLOUDS, 80, refused);
        assert!(wrong.is_empty(), "{engine:?} {wrong:#?}");
    }
}

#[test]
fn redirects_are_answers_and_are_not_followed() {
    let (secret, tempting) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (to, at) = (secret.local_addr().unwrap(), tempting.local_addr().unwrap());
    secret.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        for mut stream in tempting.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{to}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    let place = start(EngineChoice::Auto, "[{name: web, expose: true}]");
    let answer = ask(
        place.addresses()[0],
        &format!("GET http://{at}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    );
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    assert!(secret.accept().is_err(), "nobody came");
}

#[test]
fn pages_of_other_sites_change_and_read_nothing_at_the_admin_listener() {
    const JSON: &str = "Content-Type: application/json\r\n";
    let place = start(EngineChoice::Auto, "[{name: web, expose: true}]");
    let admin = place.admin();
    let question = r#"{"role":"gateway","host":"x","path":"/","headers":[]}"#;
    let own = format!("Host: {admin}\r\n");
    let mut wrong = Vec::new();
    let mut check = |method: &str, path: &str, fields: &str, expected: &[u16]| {
        let body = if method == "POST" { question } else { "" };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let answer = ask(admin, &request);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        if !expected.contains(&status) || answer.to_ascii_lowercase().contains("access-control-") {
            wrong.push(format!("{request:?}: {answer:?}"));
        }
    };
    // What is meant to be.
    for host in [&*own, "Host: localhost\r\n", "Host: localhost:7481\r\n", "Host: [::1]:7481\r\n"] {
        check("GET", "/config_dump", host, &[200]);
        check("POST", "/api/v1/explain", &format!("{host}{JSON}"), &[200]);
    }
    check("POST", "/api/v1/explain", &format!("{own}{JSON}Origin: http://{admin}\r\n"), &[200]);
    // A name of theirs that leads here (DNS rebinding).
    for host in [
        "",
        "Host:\r\n",
        "Host: evil.example\r\n",
        "Host: evil.example:7481\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: localhost@evil.example\r\n",
        "Host: evil.example#localhost\r\n",
        "Host: 2130706433\r\n",
        "Host: 127.1\r\n",
        "Host: localhost.\r\n",
        "Host: [::1].evil.example\r\n",
        "Host: evil.example\r\nX-Forwarded-Host: localhost\r\n",
    ] {
        check("GET", "/config_dump", host, &[400, 403]);
        check("GET", "/metrics", host, &[400, 403]);
        check("GET", "/ui/", host, &[400, 403]);
        check("POST", "/api/v1/reload", &format!("{host}{JSON}"), &[400, 403]);
        check("POST", "/api/v1/explain", &format!("{host}{JSON}"), &[400, 403]);
    }
    // Forms, and scripts that may send no more than a form can.
    for kind in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: text/plain; application/json\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: text/json\r\n",
        "Content-Type:\r\n",
    ] {
        for path in ["/api/v1/reload", "/api/v1/explain", "/api/v1/decide"] {
            check("POST", path, &format!("{own}{kind}"), &[415]);
        }
    }
    // What browsers say of where a request comes from.
    for origin in
        ["http://evil.example", "null", "https://localhost", "http://localhost:1", "http://127.0.0.1", "x"]
    {
        for (method, path) in [
            ("GET", "/config_dump"),
            ("POST", "/api/v1/reload"),
            ("POST", "/api/v1/decide"),
            ("GET", "/api/v1/watch"),
        ] {
            check(method, path, &format!("{own}{JSON}Origin: {origin}\r\n"), &[403]);
        }
    }
    // The question whether more is allowed than a form can, and other methods.
    let preflight = format!(
        "{own}Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
    );
    check("OPTIONS", "/api/v1/reload", &preflight, &[403]);
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        check(method, "/api/v1/reload", &format!("{own}{JSON}"), &[405]);
    }
    assert!(wrong.is_empty(), "{} got through:\n{}", wrong.len(), wrong.join("\n"));
}
