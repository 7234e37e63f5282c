//! What an exchange adds to the metrics does not depend on the engine that carried it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::spawn;
use std::time::{Duration, Instant};

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::stage;

use crate::ask::metrics;

const PATIENCE: Duration = Duration::from_secs(10);

/// Replies by the path, once on each connection.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = read_head(&mut stream);
            let reply = match head.split(' ').nth(1) {
                Some("/gone") => "",
                Some("/cut") => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
                Some("/broken") => "not http\r\n\r\n",
                Some("/empty") => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
                Some("/away") => "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                Some("/failed") => "HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
                Some("/hints") => {
                    "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
                }
                _ if head.starts_with("HEAD") => {
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
                }
                _ => "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            };
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    address
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Sends bytes and reads until the end.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What is counted, without what time alone decides.
fn counted(admin: SocketAddr) -> Vec<String> {
    let text = metrics(admin);
    let by_time = ["process_", "_seconds_sum", "_seconds_bucket", "_timestamp", "overlane_connections"];
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("overlane_") && !by_time.iter().any(|part| line.contains(part)))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// The requests that ended.
fn ended(lines: &[String]) -> u64 {
    let totals = lines.iter().filter(|line| line.starts_with("overlane_requests_total"));
    totals.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn after_all_kinds_of_exchanges(engine: EngineChoice) -> Vec<String> {
    let upstream = upstream();
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    let running = stage::start(engine, vec![listener], stage::files("", upstream));
    let (gateway, admin) = (running.addresses()[0], running.admin());
    let exchanges = [
        "GET / HTTP/1.1\r\n",
        "HEAD / HTTP/1.1\r\nx-overlay-id: alice\r\n",
        "POST /empty HTTP/1.1\r\nx-overlay-id: alice\r\nContent-Length: 0\r\n",
        "GET /away HTTP/1.1\r\nx-overlay-id: nobody\r\n",
        "REPORT /failed HTTP/1.1\r\n",
        "GET /hints HTTP/1.1\r\n",
        "POST /gone HTTP/1.1\r\nContent-Length: 0\r\n",
        "GET /cut HTTP/1.1\r\n",
        "GET /broken HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nx-overlay-id: NOT!\r\n",
        "GET / HTTP/1.1\r\nbaggage: overlay-id=NOT!\r\n",
    ];
    for exchange in exchanges {
        ask(gateway, &format!("{exchange}Host: x\r\nConnection: close\r\n\r\n"));
    }
    for refused in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/2.0\r\nHost: x\r\n\r\n"] {
        ask(gateway, refused);
    }
    // A client that goes away in the middle of its request: nobody sees the end but the metrics.
    let mut gone = TcpStream::connect(gateway).unwrap();
    gone.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc").unwrap();
    drop(gone);
    let begun = Instant::now();
    let lines = loop {
        let lines = counted(admin);
        let none_active = lines.iter().any(|line| line == "overlane_active_requests 0");
        if (none_active && ended(&lines) == exchanges.len() as u64 + 1) || begun.elapsed() > PATIENCE {
            break lines;
        }
        std::thread::yield_now();
    };
    running.stop_in_background().join().unwrap();
    lines
}

/// What the exchanges add to the total, where the one that its client broke off counts as `broken_off`.
fn totals(broken_off: &str) -> Vec<String> {
    let total = |class: &str, method: &str, overlay: &str, service: &str, via: &str, count: u64| {
        format!(
            "overlane_requests_total{{code_class=\"{class}\",method=\"{method}\",overlay=\"{overlay}\",service=\"{service}\",via=\"{via}\"}} {count}"
        )
    };
    let mut totals = [
        total(broken_off, "POST", "", "web", "none", 1),
        // Also the response that broke off: its status was sent.
        total("2xx", "GET", "", "web", "baseline", 4),
        total("2xx", "HEAD", "alice", "web", "overlay", 1),
        total("2xx", "POST", "alice", "web", "overlay", 1),
        total("3xx", "GET", "", "web", "baseline", 1),
        total("4xx", "GET", "", "", "none", 1),
        total("5xx", "GET", "", "web", "none", 1),
        total("5xx", "POST", "", "web", "none", 1),
        total("5xx", "_OTHER", "", "web", "baseline", 1),
    ];
    totals.sort();
    totals.to_vec()
}

/// The same with what is counted by status class apart.
fn apart(lines: Vec<String>) -> (Vec<String>, Vec<String>) {
    lines.into_iter().partition(|line| line.starts_with("overlane_requests_total"))
}

#[test]
fn both_engines_count_the_same() {
    let (pingora_totals, pingora) = apart(after_all_kinds_of_exchanges(EngineChoice::Pingora));
    let (auto_totals, auto) = apart(after_all_kinds_of_exchanges(EngineChoice::Auto));
    // A client that only closed its sending side could still read an answer: the express engine gives one, and counts
    // it. Pingora gives none, and counts the request as unanswered.
    assert_eq!(pingora_totals, totals("0xx"));
    assert_eq!(auto_totals, totals("4xx"));
    for line in [
        "overlane_refused_heads_total 2",
        "overlane_unknown_overlay_requests_total 1",
        "overlane_active_requests 0",
    ] {
        assert!(pingora.iter().any(|counted| counted == line), "{line} is not in {pingora:#?}");
    }
    assert_eq!(pingora, auto);
}
