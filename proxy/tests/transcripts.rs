//! The command line's transcripts: what `transcripts/*.md` shows is what the binary prints.
//!
//! Each file is a session in a fresh folder. A block ```` ```yaml staging.yaml ```` writes a file; a
//! block ```` ```console ```` holds commands (`$ overlane …`, or `$ cat FILE`) and what follows them:
//! `? 1` where the exit code is not 0, then standard output, then standard error. `[..]` in an
//! expected line matches anything, and `> FILE` at the end of a command keeps its output.
//! `UPDATE_TRANSCRIPTS=1` rewrites the expectations that differ.
//!
//! Those that are about a store are played over every store that there is, with the same expectations: the entries of
//! another store stand for the files in `./environments`.
#![allow(clippy::unwrap_used, missing_docs)]

mod child;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_overlane");
/// The longest that a hub is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// The store, as transcripts have it.
const SHOWN: &str = "./environments";

#[path = "../../tests/src/etcd.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is a module of the harness, of which this takes a part")]
mod etcd;

#[path = "../../tests/src/kubernetes.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is a module of the harness, of which this takes a part")]
mod kubernetes;

/// What keeps the environments.
trait Kept {
    /// What `--store` says.
    fn address(&self) -> String;
    /// Writes an entry, as somebody else would.
    fn put(&self, name: &str, text: &str);
    /// What an entry holds.
    fn text(&self, name: &str) -> Option<String>;
}

/// An etcd, asked by its JSON gateway: what is tested is not asked about itself.
struct InEtcd(etcd::Etcd, tokio::runtime::Runtime);

impl InEtcd {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self(etcd::Etcd::start(), runtime)
    }
}

impl Kept for InEtcd {
    fn address(&self) -> String {
        format!("etcd:{}/overlane", self.0.at())
    }

    fn put(&self, name: &str, text: &str) {
        self.1.block_on(self.0.put(&format!("/overlane/{name}"), text.as_bytes()));
    }

    fn text(&self, name: &str) -> Option<String> {
        self.1.block_on(self.0.get(&format!("/overlane/{name}")))
    }
}

/// A cluster. What somebody else writes there is written by a command as well: others keep no text beside what it says.
struct InKubernetes(kubernetes::Kubernetes, tempfile::TempDir);

impl InKubernetes {
    fn start() -> Self {
        Self(kubernetes::Kubernetes::start(), tempfile::tempdir().unwrap())
    }

    fn object(&self, name: &str) -> Option<serde_json::Value> {
        ["baselines", "overlays"].iter().find_map(|resource| self.0.object(resource, name))
    }
}

impl Kept for InKubernetes {
    fn address(&self) -> String {
        self.0.address(None)
    }

    fn put(&self, name: &str, text: &str) {
        let file = self.1.path().join(name);
        fs::write(&file, text).unwrap();
        let mut command = Command::new(BINARY);
        let done = command.args(["apply", "--store", &self.address(), "--file"]).arg(file).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn text(&self, name: &str) -> Option<String> {
        let Some(name) = name.strip_suffix(".attached.yaml") else {
            let object = self.object(name.strip_suffix(".yaml")?)?;
            return Some(object["metadata"]["annotations"]["overlane.dev/text"].as_str()?.to_owned());
        };
        let record = serde_json::json!({
            "apiVersion": "overlane.dev/v1alpha1", "kind": "Attachment", "metadata": { "name": name },
            "spec": self.object(name)?["attached"],
        });
        Some(serde_yaml::to_string(&record).unwrap())
    }
}

/// A hub of a directory.
struct InHub {
    folder: tempfile::TempDir,
    hub: String,
    running: Child,
    /// So that what it says has somewhere to go.
    _lines: Receiver<String>,
}

impl InHub {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["run", "--store", ".", "--hub", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut running = child::overlane(&arguments, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = child::lines(&mut running);
        let hub = loop {
            let line = lines.recv_timeout(LIMIT).expect("a hub listens");
            let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if told["message"] == "listening" && told["role"] == "hub" {
                break told["address"].as_str().unwrap().to_owned();
            }
        };
        Self { folder, hub, running, _lines: lines }
    }

    /// What it says of all that it knows.
    fn entries(&self) -> String {
        let mut stream = TcpStream::connect(&self.hub).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let request =
            format!("GET /hub/v1/entries HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.hub);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for InHub {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

impl Kept for InHub {
    fn address(&self) -> String {
        format!("hub:http://{}", self.hub)
    }

    fn put(&self, name: &str, text: &str) {
        let beside = self.folder.path().join(".beside");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.folder.path().join(name)).unwrap();
        let (text, begun) = (serde_json::to_string(text).unwrap(), Instant::now());
        while !self.entries().contains(&text) {
            assert!(begun.elapsed() < LIMIT, "the hub does not see {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join(name)).ok()
    }
}

/// Whether `line` is what `pattern` says; `[..]` stands for anything.
fn matches(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once("[..]") else {
        return pattern == line;
    };
    let Some(after) = line.strip_prefix(start) else {
        return false;
    };
    let mut ends = after.char_indices().map(|(at, _)| at).chain([after.len()]);
    ends.any(|at| matches(rest, &after[at..]))
}

/// The words of a command line; single quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Runs a command line in `folder`; what follows `>` at its end is the file that its output goes to.
fn run_line(line: &str, folder: &Path, kept: Option<&dyn Kept>) -> String {
    let Some((command, file)) = line.split_once(" > ") else { return run(line, folder, kept).join("") };
    let [status, output, errors] = run(command, folder, kept);
    let file = folder.join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, output).unwrap();
    status + &errors
}

/// Runs a command in `folder`: its exit code where it is not 0, its output, its errors.
fn run(line: &str, folder: &Path, kept: Option<&dyn Kept>) -> [String; 3] {
    let words = words(line);
    let (program, arguments) = words.split_first().unwrap();
    if program == "cat" {
        let text = |file: &String| {
            if let Some((kept, name)) = kept.zip(file.strip_prefix("environments/")) {
                return kept.text(name).unwrap_or_else(|| panic!("{file} is not there"));
            }
            fs::read_to_string(folder.join(file)).unwrap_or_else(|e| format!("{file}: {e}\n"))
        };
        return [String::new(), arguments.iter().map(text).collect(), String::new()];
    }
    assert_eq!(program, "overlane", "a transcript runs overlane and cat, not `{line}`");
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OVERLANE_") || name == "RUST_LOG")
    {
        command.env_remove(name);
    }
    if let Some(kept) = kept {
        command.env("OVERLANE_STORE", kept.address());
    }
    let done = command.args(arguments).current_dir(folder).env("NO_COLOR", "1").output().unwrap();
    let status = match done.status.code() {
        Some(0) => String::new(),
        Some(code) => format!("? {code}\n"),
        None => format!("? {}\n", done.status),
    };
    let shown = |stream: &[u8]| {
        let mut text = String::from_utf8_lossy(stream).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        kept.map_or(text.clone(), |kept| text.replace(&kept.address(), SHOWN))
    };
    [status, shown(&done.stdout), shown(&done.stderr)]
}

/// Plays a transcript and returns it as it should read.
fn play(text: &str, folder: &Path, kept: Option<&dyn Kept>) -> String {
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(block) = line.strip_prefix("```").filter(|block| !block.is_empty()) else {
            continue;
        };
        let mut body = Vec::new();
        while let Some(line) = lines.next_if(|line| *line != "```") {
            body.push(line);
        }
        match block.split_once(' ') {
            Some((_, file)) => {
                if let Some((kept, name)) = kept.zip(file.strip_prefix("environments/")) {
                    kept.put(name, &(body.join("\n") + "\n"));
                }
                let path = folder.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, body.join("\n") + "\n").unwrap();
                body.iter().for_each(|line| writeln!(out, "{line}").unwrap());
            }
            None if block == "console" => out.push_str(&replay(&body, folder, kept)),
            None => body.iter().for_each(|line| writeln!(out, "{line}").unwrap()),
        }
    }
    out
}

/// The commands of a block and their output; an expectation that matches stays as it is written.
fn replay(body: &[&str], folder: &Path, kept: Option<&dyn Kept>) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < body.len() {
        let command = body[at].strip_prefix("$ ").unwrap_or_else(|| panic!("no command: `{}`", body[at]));
        let end =
            body[at + 1..].iter().position(|line| line.starts_with("$ ")).map_or(body.len(), |n| at + 1 + n);
        let expected = &body[at + 1..end];
        let actual = run_line(command, folder, kept);
        let actual: Vec<_> = actual.lines().collect();
        let same = expected.len() == actual.len()
            && expected.iter().zip(&actual).all(|(e, a)| matches(e, a.trim_end()));
        writeln!(out, "{}", body[at]).unwrap();
        for line in if same { expected } else { &actual[..] } {
            writeln!(out, "{}", line.trim_end()).unwrap();
        }
        at = end;
    }
    out
}

fn transcript(name: &str, kept: Option<&dyn Kept>) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name).with_extension("md");
    let text = fs::read_to_string(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let played = play(&text, folder.path(), kept);
    if kept.is_none() && std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        fs::write(&path, played).unwrap();
        return;
    }
    let differs = text.lines().zip(played.lines()).position(|(expected, actual)| expected != actual);
    if let Some(line) = differs.or_else(|| (text.lines().count() != played.lines().count()).then_some(0)) {
        panic!(
            "{}:{} differs from what overlane prints (UPDATE_TRANSCRIPTS=1 rewrites it); it should read:\n\n{played}",
            path.display(),
            line + 1,
        );
    }
}

macro_rules! transcripts {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[test]
        fn $name() {
            transcript(stringify!($name), None);
        })*

        #[test]
        fn every_transcript_is_played() {
            let mut files: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts"))
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            files.sort();
            let mut played = [$(stringify!($name)),*];
            played.sort_unstable();
            assert_eq!(files, played);
        }
    };
}

transcripts! {
    baselines_and_overlays
    attachments
    bench
    deleting
    explaining
    importing
    injecting
    labels_and_leases
    mistakes
    quick_apply
    rendering
    starting
}

/// The transcripts that are about what a store holds.
const ABOUT_STORES: [&str; 6] =
    ["baselines_and_overlays", "attachments", "deleting", "explaining", "quick_apply", "starting"];

#[test]
fn commands_and_their_errors_are_the_same_over_etcd() {
    for name in ABOUT_STORES {
        transcript(name, Some(&InEtcd::start()));
    }
}

#[test]
fn commands_and_their_errors_are_the_same_over_kubernetes() {
    // An object is one environment, so there is no file with several that could not be edited.
    for name in ABOUT_STORES.into_iter().filter(|name| *name != "deleting") {
        transcript(name, Some(&InKubernetes::start()));
    }
}

#[test]
fn commands_and_their_errors_are_the_same_over_a_hub() {
    for name in ABOUT_STORES {
        transcript(name, Some(&InHub::start()));
    }
}

#[test]
fn a_placeholder_matches_anything() {
    for (pattern, line, matching) in [
        ("a", "a", true),
        ("a", "b", false),
        ("[..]", "", true),
        ("a[..]c", "abbc", true),
        ("a[..]c", "abb", false),
        ("[..]b[..]d", "abcd", true),
    ] {
        assert_eq!(matches(pattern, line), matching, "{pattern} {line}");
    }
}
