//! `overlane overlay run`: a changed service as a local process, in its overlay for as long as it lives.
#![allow(clippy::unwrap_used, missing_docs)]

mod child;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use child::{lines, overlane};

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);
const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/app.py");

/// A store with a baseline, a gateway of it, and a file with an overlay that owns `web`.
struct World {
    folder: TempDir,
    gateway: SocketAddr,
    running: Child,
    /// Where the gateway is asked about itself.
    _lines: Receiver<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

/// Reads lines until one is as wanted; all that were read.
fn read_until(lines: &Receiver<String>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let until = Instant::now() + LIMIT;
    let mut seen = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            panic!("the line did not come:\n{}", seen.join("\n"));
        };
        let found = wanted(&line);
        seen.push(line);
        if found {
            return seen;
        }
    }
}

/// Answers every request with the same text.
fn service(text: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        for stream in socket.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    line.clear();
                }
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
                let _ = reader.get_mut().write_all(format!("{head}{text}").as_bytes());
            });
        }
    });
    address
}

impl World {
    fn new(image: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (web, ledger) = (service("the baseline's web"), service("the baseline's ledger"));
        let baseline = format!(
            "name: staging\nrouting: {{mode: baseline, holdFor: 0s}}\nservices:\n- {{name: web, expose: true, url: 'http://{web}'}}\n- {{name: ledger, url: 'http://{ledger}'}}\n"
        );
        let store = folder.path().join("environments");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("staging.yaml"), baseline).unwrap();
        let alice = format!(
            "name: alice\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: web{image}}}]\n"
        );
        fs::write(folder.path().join("alice.yaml"), alice).unwrap();
        let ports = ["run", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
        let mut running =
            overlane(&ports, folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines(&mut running);
        let listening = |role: &str, line: &str| {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            let there = value["message"] == "listening" && value["role"] == role;
            there.then(|| value["address"].as_str().unwrap().to_owned())
        };
        let seen = read_until(&lines, |line| listening("admin", line).is_some());
        let gateway = seen.iter().find_map(|line| listening("gateway", line)).unwrap().parse().unwrap();
        Self { folder, gateway, running, _lines: lines }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("environments")
    }

    /// The status and the body that the gateway answers with, to a request with the key `alice`.
    fn ask(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.gateway).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-overlay-id: alice\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn until(&self, what: &str, holds: impl Fn(&(u16, String)) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let answer = self.ask("/");
            if holds(&answer) {
                return answer.1;
            }
            assert!(begun.elapsed() < LIMIT, "{what}: {answer:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// `overlay run` with these arguments, once the command is in the overlay.
    fn start(&self, arguments: &[&str], with: impl FnOnce(&mut Command)) -> (Child, Receiver<String>) {
        let mut command =
            overlane(&[&["overlay", "run", "--file", "alice.yaml"], arguments].concat(), self.folder.path());
        with(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut child = command.spawn().unwrap();
        let lines = lines(&mut child);
        read_until(&lines, |line| line.contains("its calls go through"));
        (child, lines)
    }

    /// The same to its end: the exit code and what it prints.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let arguments = [&["overlay", "run", "--file", "alice.yaml"], arguments].concat();
        let done = overlane(&arguments, self.folder.path()).output().unwrap();
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn a_changed_service_is_in_its_overlay_while_its_command_runs_and_leaves_nothing_behind() {
    let world = World::new("");
    assert_eq!(world.ask("/").1, "the baseline's web", "nobody knows the overlay yet");
    let (mut child, lines) = world.start(&["--", "python3", APP, "at={port}"], |_| {});
    let told = world.until("in the overlay", |(status, body)| *status == 200 && body.starts_with('{'));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["words"][0], format!("at={}", told["PORT"].as_str().unwrap()));
    assert_eq!(told["HTTP_PROXY"], told["OVERLANE_OUTBOUND"]);
    assert_eq!(told["NO_PROXY"], "", "services are on loopback here");
    assert_eq!(world.ask("/call"), (200, "the baseline's ledger".to_owned()), "its calls go to the baseline");
    let record = fs::read_to_string(world.store().join("alice.attached.yaml")).unwrap();
    assert!(record.contains("expiresAt"), "{record}");
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15), "the signal came to the command");
    let said: Vec<_> = lines.iter().collect();
    assert!(said.iter().any(|line| line == "overlay alice deleted"), "{said:?}");
    let left: Vec<_> = fs::read_dir(world.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| name == "staging.yaml" || name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    world.until("gone", |(_, body)| body == "the baseline's web");
}

#[test]
fn the_exit_code_is_that_of_the_command_and_an_overlay_that_was_there_stays() {
    let world = World::new("");
    fs::copy(world.folder.path().join("alice.yaml"), world.store().join("alice.yaml")).unwrap();
    let (mut child, lines) = world.start(&["--", "python3", APP], |_| {});
    world.until("in the overlay", |(status, body)| *status == 200 && body.starts_with('{'));
    world.ask_and_break("/exit");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    drop(lines);
    assert!(world.store().join("alice.yaml").exists());
    assert!(!world.store().join("alice.attached.yaml").exists());
    world.until("pending", |(status, body)| *status == 503 && body.contains("pending"));
}

impl World {
    /// A request whose answer does not matter.
    fn ask_and_break(&self, path: &str) {
        let mut stream = TcpStream::connect(self.gateway).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-overlay-id: alice\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.read(&mut [0; 1]);
    }
}

#[test]
fn the_command_is_not_told_what_lets_us_into_stores_and_hubs() {
    let world = World::new("");
    let secrets = ["OVERLANE_SERVER_TOKEN", "OVERLANE_ADMIN_TOKEN", "ETCDCTL_USER", "ETCDCTL_PASSWORD"];
    let arguments = [
        "overlay",
        "run",
        "--file",
        "alice.yaml",
        "--",
        "sh",
        "-c",
        "env | grep -c =secret: && exit 8; exit 9",
    ];
    let mut command = overlane(&arguments, world.folder.path());
    let done = command.envs(secrets.map(|name| (name, "secret:x"))).output().unwrap();
    assert_eq!(done.status.code(), Some(9), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn an_overlay_that_was_made_for_a_command_ends_by_itself_and_is_made_anew_where_it_did() {
    let world = World::new("");
    let stored = world.store().join("alice.yaml");
    let (mut child, _lines) = world.start(&["--", "python3", APP], |_| {});
    let told = world.until("in the overlay", |(status, body)| *status == 200 && body.starts_with('{'));
    let text = fs::read_to_string(&stored).unwrap();
    assert!(text.contains("expiresAt"), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
    kill_application(&told);
    // An hour later.
    fs::remove_file(world.store().join("alice.attached.yaml")).unwrap();
    let (before, rest) = text.split_once("expiresAt").unwrap();
    let (colon, rest) = rest.split_once(": \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    fs::write(&stored, format!("{before}expiresAt{colon}: \"2020-01-01T00:00:00Z\"{after}")).unwrap();
    let (code, said) = world.run(&["--", "sh", "-c", "exit 9"]);
    assert_eq!(code, Some(9), "{said}");
    assert!(said.contains("overlay alice had expired, and is made anew"), "{said}");
    assert!(said.contains("overlay alice deleted"), "{said}");
    assert!(!stored.exists());
    world.until("gone", |(_, body)| body == "the baseline's web");
}

#[test]
fn where_it_is_killed_its_address_is_used_no_longer_than_its_lease_lasts() {
    let world = World::new("");
    let (mut child, _lines) = world.start(&["--lease", "3s", "--", "python3", APP], |_| {});
    let told = world.until("in the overlay", |(status, body)| *status == 200 && body.starts_with('{'));
    // Longer than the lease: it is renewed meanwhile.
    let renewed = || fs::read_to_string(world.store().join("alice.attached.yaml")).unwrap();
    let first = renewed();
    let begun = Instant::now();
    while renewed() == first {
        assert!(begun.elapsed() < LIMIT, "it is not renewed");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    world.until("lapsed", |(status, body)| *status == 503 && body.contains("pending"));
    assert!(world.store().join("alice.attached.yaml").exists(), "nobody cleaned up");
    kill_application(&told);
}

#[test]
fn an_overlay_that_another_run_has_made_lives_while_anything_is_run_in_it() {
    let world = World::new("");
    // Ten minutes before its end, and whoever made it is gone.
    let made = fs::read_to_string(world.folder.path().join("alice.yaml")).unwrap();
    let until = jiff::Timestamp::now() + Duration::from_secs(600);
    let made = made.replace("{mode: overlay", &format!("{{expiresAt: \"{until}\", mode: overlay"));
    fs::write(world.store().join("alice.yaml"), made).unwrap();
    let (mut child, _lines) = world.start(&["--lease", "3s", "--", "python3", APP], |_| {});
    let begun = Instant::now();
    let lives = || {
        let record = fs::read_to_string(world.store().join("alice.attached.yaml")).unwrap_or_default();
        let record: Value = serde_yaml::from_str(&record).unwrap_or_default();
        let at = record["spec"]["expiresAt"].as_str().unwrap_or_default().parse::<jiff::Timestamp>();
        at.is_ok_and(|at| at > until)
    };
    while !lives() {
        assert!(begun.elapsed() < LIMIT, "it is not extended");
        thread::sleep(Duration::from_millis(10));
    }
    send(&child, Signal::TERM);
    child.wait().unwrap();
    assert!(world.store().join("alice.yaml").exists(), "somebody else made it");
}

/// Ends the command that a killed `overlane` left behind, by what it told.
fn kill_application(told: &str) {
    let told: Value = serde_json::from_str(told).unwrap();
    let pid = Pid::from_raw(i32::try_from(told["pid"].as_i64().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn without_a_command_the_image_is_run_by_docker_which_is_a_fake_one_here() {
    let world = World::new(", image: 'org/web:1'");
    let bin = world.folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let docker = bin.join("docker");
    let record = world.folder.path().join("docker.txt");
    let script = format!("#!/bin/sh\necho \"$@\" > '{}'\nexec python3 '{APP}'\n", record.display());
    fs::write(&docker, script).unwrap();
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let (mut child, _lines) = world.start(&[], |command| {
        command.env("PATH", path);
    });
    world.until("in the overlay", |(status, body)| *status == 200 && body.starts_with('{'));
    send(&child, Signal::INT);
    child.wait().unwrap();
    let said = fs::read_to_string(record).unwrap();
    assert!(said.starts_with("run --rm --name overlane-alice-web-"), "{said}");
    assert!(
        said.contains(" --network host --env PORT --env HTTP_PROXY ") && said.ends_with(" org/web:1\n"),
        "{said}"
    );
}

#[test]
fn what_cannot_run_is_said_and_leaves_nothing_behind() {
    let world = World::new("");
    let (code, said) = world.run(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no command, and `web` has no `image`"), "{said}");
    let (code, said) = world.run(&["--", "sh", "-c", "exit 9"]);
    assert_eq!(code, Some(9), "{said}");
    assert!(said.contains("sh ended before it listened") && said.contains("overlay alice deleted"), "{said}");
    let (code, said) = world.run(&["--wait", "200ms", "--", "sleep", "100"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("sleep does not listen on 127.0.0.1:"), "{said}");
    let (code, said) = world.run(&["--", "/no/such/program"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot run /no/such/program"), "{said}");
    let (code, said) = world.run(&["--service", "wbe", "--", "true"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("did you mean `web`?"), "{said}");
    assert!(!world.store().join("alice.yaml").exists());
    fs::copy(world.folder.path().join("alice.yaml"), world.store().join("alice.yaml")).unwrap();
    let attach = ["attach", "alice", "web", "--url", "http://127.0.0.1:9"];
    assert!(overlane(&attach, world.folder.path()).output().unwrap().status.success());
    let (code, said) = world.run(&["--", "python3", APP]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`web` of `alice` is attached to http://127.0.0.1:9"), "{said}");
}

#[test]
fn an_image_needs_something_that_runs_images() {
    let world = World::new(", image: 'org/web:1'");
    let arguments = ["overlay", "run", "--file", "alice.yaml"];
    let done = overlane(&arguments, world.folder.path()).env("PATH", world.folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("neither docker nor podman is installed to run org/web:1"), "{said}");
    assert_eq!(done.status.code(), Some(1));
}
