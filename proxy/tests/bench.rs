//! `overlane bench` as a process: what it counts, what it prints, how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    /// The heads of the requests.
    heads: Receiver<String>,
}

/// A server that lets `answer` write after each request head; it is told which connection it is.
fn server(answer: impl Fn(&mut TcpStream, usize) -> std::io::Result<()> + Send + Sync + 'static) -> Server {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (sender, heads) = channel();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for (number, stream) in socket.incoming().enumerate() {
            let (mut stream, sender, answer) = (stream.unwrap(), sender.clone(), answer.clone());
            thread::spawn(move || {
                while let Some(head) = read_head(&mut stream) {
                    let _ = sender.send(head);
                    if answer(&mut stream, number).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Server { address, heads }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn ok(stream: &mut TcpStream, _: usize) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlane"));
    command.arg("bench").args(arguments).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A short run against a server, on two connections.
fn against(server: &Server, more: &[&str]) -> Output {
    let url = format!("http://{}/path?q=1", server.address);
    let fixed = ["--url", &url, "--json", "--warmup", "0s", "--connections", "2"];
    let length = if more.contains(&"--duration") { &[][..] } else { &["--duration", "150ms"] };
    bench(&[&fixed[..], length, more].concat()).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_schedule_is_kept_and_each_request_is_accounted_for() {
    let server = server(ok);
    let done = against(&server, &["--rate", "200", "--header", "x-overlay-id: alice"]);
    assert!(done.status.success(), "{done:?}");
    let all = lines(&done);
    let [one] = &all[..] else { panic!("{all:?}") };
    let counted: f64 = ["requests", "errors", "unsent"].into_iter().map(|name| number(&one[name])).sum();
    assert_eq!(counted, 30.0, "200 a second for 150 ms: {one}");
    assert_eq!((&one["mode"], &one["rate"]), (&Value::from("rate"), &Value::from(200)));
    assert_eq!(one["status"]["200"], one["requests"]);
    assert_eq!(number(&one["bytes"]), number(&one["requests"]) * 40.0);
    let latency = &one["latency_us"];
    let order = ["min", "p50", "p90", "p99", "p99.9", "max"].map(|name| number(&latency[name]));
    assert!(order[0] > 0.0 && order.is_sorted(), "{latency}");
    assert!((order[0]..=order[5]).contains(&number(&latency["mean"])), "{latency}");
    assert!(number(&one["duration_s"]) >= 0.15 && number(&one["rps"]) > 0.0, "{one}");
    let head = server.heads.recv().unwrap();
    let expected =
        format!("GET /path?q=1 HTTP/1.1\r\nhost: {}\r\nx-overlay-id: alice\r\n\r\n", server.address);
    assert_eq!(head, expected);
}

#[test]
fn a_server_that_stalls_once_shows_in_the_latencies_of_all_that_was_due_meanwhile() {
    // Each connection has a request every 10 ms. The first is answered only when the second had its
    // twentieth, so that the first's requests waited 190, 180, 170, … ms.
    let (twentieth, stalled) = channel();
    let (stalled, count) = (Mutex::new(stalled), AtomicUsize::new(0));
    let server = server(move |stream, connection| {
        match connection {
            0 => drop(stalled.lock().unwrap().recv_timeout(LIMIT)),
            _ if count.fetch_add(1, Ordering::Relaxed) == 19 => {
                (0..100).for_each(|_| twentieth.send(()).unwrap());
            }
            _ => {}
        }
        ok(stream, connection)
    });
    let done = against(&server, &["--rate", "200", "--duration", "300ms"]);
    let one = &lines(&done)[0];
    assert_eq!(
        (&one["errors"], number(&one["requests"]) + number(&one["unsent"])),
        (&0.into(), 60.0),
        "{one}"
    );
    assert!(number(&one["latency_us"]["max"]) >= 180_000.0, "{one}");
    assert!(number(&one["latency_us"]["p90"]) >= 100_000.0, "six of sixty waited longer than that: {one}");
}

#[test]
fn without_a_rate_every_connection_is_kept_busy() {
    let server = server(ok);
    let done = against(&server, &["--threads", "2"]);
    let one = &lines(&done)[0];
    assert_eq!((&one["mode"], &one["rate"], &one["unsent"]), (&"saturation".into(), &Value::Null, &0.into()));
    assert!(number(&one["requests"]) > 2.0, "{one}");
}

#[test]
fn a_connection_that_the_server_closes_is_made_again_and_counted() {
    let server = server(|stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")?;
        stream.shutdown(std::net::Shutdown::Both)
    });
    let done = against(&server, &["--rate", "200"]);
    let one = &lines(&done)[0];
    assert_eq!(one["errors"], 0, "{one}");
    assert!(number(&one["requests"]) > 2.0, "{one}");
    assert_eq!(number(&one["reconnects"]), number(&one["requests"]) - 2.0, "all but the first two: {one}");
}

#[test]
fn what_gets_no_answer_is_an_error_and_not_a_latency() {
    let server = server(|stream, _| stream.shutdown(std::net::Shutdown::Both));
    let done = against(&server, &["--rate", "200"]);
    let one = &lines(&done)[0];
    assert_eq!(done.status.code(), Some(1));
    assert_eq!((&one["requests"], &one["error_kinds"]["closed"]), (&0.into(), &one["errors"]), "{one}");
    assert_eq!(
        (number(&one["errors"]) + number(&one["unsent"]), &one["status"]),
        (30.0, &serde_json::json!({}))
    );
    assert!(one["unsent"] != 0 || one["latency_us"]["p50"].is_null(), "{one}");
    let errors = String::from_utf8(done.stderr).unwrap();
    assert!(errors.contains(&format!("{0} requests failed: {0} closed", one["errors"])), "{errors}");
    assert!(errors.contains("error: no request was answered"), "{errors}");
}

#[test]
fn what_is_not_answered_in_time_counts_with_the_time_that_it_waited() {
    let server = server(|_, _| Ok(()));
    let done = against(&server, &["--rate", "100", "--timeout", "50ms"]);
    let one = &lines(&done)[0];
    let counted: f64 = ["errors", "unsent"].into_iter().map(|name| number(&one[name])).sum();
    assert_eq!((number(&one["requests"]), counted), (0.0, 15.0), "{one}");
    assert_eq!(one["errors"], one["error_kinds"]["timeout"]);
    assert!(number(&one["latency_us"]["max"]) >= 50_000.0, "{one}");
}

#[test]
fn answers_of_other_statuses_are_counted_and_said() {
    let server = server(|stream, _| {
        stream.write_all(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n0\r\n\r\n")
    });
    let done = against(&server, &["--rate", "200"]);
    let one = &lines(&done)[0];
    assert_eq!(one["status"]["503"], one["requests"]);
    let said = format!("answers other than 2xx: {} × 503", one["requests"]);
    assert!(String::from_utf8(done.stderr).unwrap().contains(&said));
}

#[test]
fn a_body_is_sent_whole_and_does_not_disturb_what_follows() {
    let server = server(|stream, connection| {
        let mut body = vec![0; 3_000_000];
        stream.read_exact(&mut body)?;
        assert!(body.iter().all(|byte| *byte == b'x'));
        ok(stream, connection)
    });
    let done = against(&server, &["--rate", "100", "--body-size", "3000000"]);
    let one = &lines(&done)[0];
    assert_eq!(one["errors"], 0, "{one}");
    assert!(number(&one["requests"]) > 2.0, "{one}");
    let head = server.heads.recv().unwrap();
    assert!(head.starts_with("POST /path?q=1 ") && head.contains("content-length: 3000000\r\n"), "{head}");
}

#[test]
fn several_cases_are_compared_with_the_first() {
    let (fast, slow) = (server(ok), server(ok));
    let named = [
        format!("fast=http://{}/", fast.address),
        format!("slow=http://{}/ x-overlay-id: alice", slow.address),
    ];
    let load =
        ["--rate", "200", "--duration", "100ms", "--warmup", "0s", "--connections", "2", "--rounds", "2"];
    let cases = ["--json", "--case", &named[0], "--case", &named[1]];
    let all = lines(&bench(&[&load[..], &cases].concat()).output().unwrap());
    let names: Vec<_> = all.iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["fast", "slow"]);
    assert_eq!(number(&all[0]["added_us"]["p50"]), 0.0);
    let medians = [0, 1].map(|at| number(&all[at]["latency_us"]["p50"]));
    assert!((number(&all[1]["added_us"]["p50"]) - (medians[1] - medians[0])).abs() < 0.01, "{all:?}");
    assert_eq!(all[0]["rounds"].as_array().unwrap().len(), 2);
    assert!(!fast.heads.recv().unwrap().contains("alice"));
    assert!(slow.heads.recv().unwrap().contains("x-overlay-id: alice"));
}

#[test]
fn sigint_ends_it_with_what_was_measured() {
    let server = server(ok);
    let url = format!("http://{}/", server.address);
    let child = bench(&["--url", &url, "--json", "--duration", "1h", "--warmup", "0s"]).spawn().unwrap();
    (0..100).for_each(|_| drop(server.heads.recv_timeout(LIMIT).unwrap()));
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(number(&lines(&done)[0]["requests"]) > 0.0);
    assert!(number(&lines(&done)[0]["duration_s"]) < LIMIT.as_secs_f64());
    assert!(String::from_utf8(done.stderr).unwrap().contains("interrupted"));
}

#[test]
fn the_mesh_is_measured_along_every_path_and_the_report_draws_it() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.html");
    let load =
        ["--rate", "200", "--duration", "60ms", "--warmup", "0s", "--rounds", "1", "--connections", "2"];
    let size = [
        "--overlays",
        "4",
        "--depth",
        "2,9",
        "--engine",
        "pingora",
        "--json",
        "--report",
        report.to_str().unwrap(),
    ];
    let done = bench(&[&load[..], &size].concat()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let all = lines(&done);
    let paths = ["direct", "baseline", "overlay", "ancestor", "not-owned", "fallback"];
    let of =
        |mode: &str| all.iter().filter(|one| one["mode"] == mode).map(|one| &one["path"]).collect::<Vec<_>>();
    assert_eq!(of("rate"), paths);
    assert_eq!(of("saturation"), paths);
    for one in &all {
        assert_eq!(number(&one["status"]["200"]), number(&one["requests"]), "{one}");
        let size = if one["path"] == "direct" { (Value::Null, Value::Null) } else { (4.into(), 2.into()) };
        assert_eq!((&one["overlays"], &one["depth"]), (&size.0, &size.1), "{one}");
        assert_eq!(one["engine"].as_str(), (one["path"] != "direct").then_some("pingora"), "{one}");
        assert_eq!(one["cpu_us"].is_number(), one["path"] != "direct" && cfg!(target_os = "linux"), "{one}");
    }
    let page = std::fs::read_to_string(report).unwrap();
    for path in paths {
        assert!(page.contains(&format!("<title>{path}</title>")), "no curve of {path}");
    }
    assert!(page.contains("<th scope=\"col\">P50 ADDS</th>"));
    for outside in ["src=", "href=", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "the page needs {outside}");
    }
}
