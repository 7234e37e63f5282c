//! A store that is served to others: those who follow it, commands from afar, and what a hub refuses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use overlane::cli::output::Output;
use overlane::cli::run_from;
use overlane::client::send;
use overlane::hub::tokens::{HubSettings, Right};
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::store::StoreAddress;
use overlane::store::hub::{Access, HubStore};
use overlane::store::shared::Shared;
use overlane::tls::TlsSettings;
use overlane_config::lineage::About;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::tls_listeners::Authority;

const PATIENCE: Duration = Duration::from_secs(20);
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
pub(super) const BASELINE: &str = "name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://127.0.0.1:1'}, {name: api, url: 'http://127.0.0.1:1'}]\n";

pub(super) fn overlay(id: &str, parent: &str) -> String {
    format!(
        "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: web, url: 'http://127.0.0.1:2'}}]\n"
    )
}

/// A hub's settings without tokens, on a free port of loopback.
pub(super) fn open() -> HubSettings {
    HubSettings { address: LOCAL, tokens: None, read_tokens: None, open: Right::Write }
}

pub(super) fn settings(store: StoreAddress) -> Settings {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    Settings { store: Some(store), ..Settings::in_process(listeners) }
}

/// A hub of a directory.
pub(super) fn hub_of(folder: &Path, hub: HubSettings) -> Started {
    stage::start_as(Settings { hub: Some(hub), ..settings(StoreAddress::directory(folder)) }, Vec::new())
}

pub(super) fn url(hub: &Started) -> String {
    format!("http://{}", hub.hub().unwrap())
}

/// A proxy whose store is a hub.
pub(super) fn follower(urls: &str) -> Started {
    stage::start_as(settings(format!("hub:{urls}").parse().unwrap()), Vec::new())
}

pub(super) fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn knows(proxy: &Started, id: &str) -> bool {
    proxy.control().published().load().table.environment(id).is_some()
}

/// Runs a command; its exit code, result and notes.
pub(super) fn command(arguments: &[&str]) -> (u8, String, String) {
    let (mut result, mut notes) = (Vec::new(), Vec::new());
    let arguments = ["overlane"].iter().chain(arguments).map(|&one| one.to_owned());
    let code = run_from(arguments, &mut Output::to(&mut result, &mut notes));
    (code, String::from_utf8(result).unwrap(), String::from_utf8(notes).unwrap())
}

/// A file to be applied.
pub(super) fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Asks a hub without its client.
pub(super) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", address.to_string());
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let response = runtime.block_on(send(&address.to_string(), request)).unwrap();
    (response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned())
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn what_is_written_at_a_hub_is_in_force_in_all_who_follow_it() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let hub = hub_of(store.path(), open());
    let server = url(&hub);
    let proxies = [follower(&server), follower(&server)];
    assert!(proxies.iter().all(|proxy| knows(proxy, "staging")), "a start waits for the hub");
    let alice = file(files.path(), "alice.yaml", &overlay("alice", "staging"));
    let (code, result, notes) = command(&["overlay", "create", "--file", &alice, "--server", &server]);
    assert_eq!((code, &*result), (0, "overlay alice created\n"), "{notes}");
    // Whoever wrote reads it at once.
    let (_, listed, _) = command(&["overlay", "list", "-o", "name", "--server", &server]);
    assert_eq!(listed, "alice\n");
    proxies.iter().for_each(|proxy| until("created", || knows(proxy, "alice")));
    let revision = hub.control().revision();
    assert!(revision.is_some());
    proxies.iter().for_each(|proxy| until("revision", || proxy.control().revision() == revision));
    // Somebody edits the directory of the hub.
    std::fs::write(store.path().join("bob.yaml"), overlay("bob", "alice")).unwrap();
    proxies.iter().for_each(|proxy| until("edited", || knows(proxy, "bob")));
    let (code, _, notes) = command(&["overlay", "delete", "alice", "--server", &server]);
    assert!(code == 1 && notes.contains("has overlays: bob"), "{notes}");
    let (code, result, _) = command(&["overlay", "delete", "bob", "alice", "--server", &server]);
    assert_eq!((code, &*result), (0, "overlay bob deleted\noverlay alice deleted\n"));
    proxies.iter().for_each(|proxy| until("deleted", || !knows(proxy, "alice") && !knows(proxy, "bob")));
    assert!(!store.path().join("alice.yaml").exists());
    // A hub of a hub.
    let second = stage::start_as(
        Settings { hub: Some(open()), ..settings(format!("hub:{server}").parse().unwrap()) },
        Vec::new(),
    );
    let (code, ..) = command(&["apply", "--file", &alice, "--server", &url(&second)]);
    assert_eq!(code, 0);
    proxies.iter().for_each(|proxy| until("created at the second", || knows(proxy, "alice")));
    assert!(store.path().join("alice.yaml").exists());
}

#[test]
fn a_hub_tells_what_is_around_a_change_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("staging.yaml", BASELINE);
    (0..10).for_each(|n| write(&format!("o{n}.yaml"), &overlay(&format!("o{n}"), "staging")));
    write("child.yaml", &overlay("child", "o3"));
    let hub = hub_of(folder.path(), open());
    let store = HubStore::new(url(&hub).parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let around = |changed: &[&str], named: &[&str], entries: &[&str]| {
        let ids = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect();
        let paths = entries.iter().map(|name| (*name).to_owned()).collect();
        let about = About { changed: ids(changed), named: ids(named), paths };
        let part = runtime.block_on(store.around(&about)).unwrap().expect("it can tell");
        assert_eq!(Some(part.revision), hub.control().revision());
        part.entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    assert_eq!(around(&["o3"], &[], &["o3.yaml"]), ["child.yaml", "o3.yaml", "staging.yaml"]);
    assert_eq!(around(&["new"], &["o3"], &["new.yaml"]), ["o3.yaml", "staging.yaml"]);
    assert_eq!(around(&["new"], &["nobody"], &["new.yaml"]), [""; 0]);
    assert_eq!(around(&[], &[], &["o4.yaml"]), ["o4.yaml", "staging.yaml"]);
    let named = (0..20_000).map(|n| format!("nobody-{n:05}").parse().unwrap()).collect();
    let much = About { named, ..About::default() };
    assert!(runtime.block_on(store.around(&much)).unwrap().is_none(), "all may be listed as well");
}

#[test]
fn a_hub_that_dies_is_replaced_by_the_next_and_what_was_last_good_stays_meanwhile() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    // An address of its own: whoever connects takes ports of 127.0.0.1, and this one is wanted again.
    let own = HubSettings { address: "127.0.0.78:0".parse().unwrap(), ..open() };
    let (first, second) = (hub_of(store.path(), open()), hub_of(store.path(), own));
    let both = format!("{},{}", url(&first), url(&second));
    let proxy = follower(&both);
    assert!(knows(&proxy, "staging"));
    assert!(first.stop_in_background().join().unwrap());
    std::fs::write(store.path().join("alice.yaml"), overlay("alice", "staging")).unwrap();
    until("the second tells it", || knows(&proxy, "alice"));
    let address = second.hub().unwrap();
    assert!(second.stop_in_background().join().unwrap());
    until("stale", || proxy.control().store_unreadable());
    assert!(knows(&proxy, "alice") && knows(&proxy, "staging"), "what was last good stays");
    std::fs::remove_file(store.path().join("alice.yaml")).unwrap();
    // Its socket goes with its runtime, for which nobody waits.
    until("it is closed", || std::net::TcpListener::bind(address).is_ok());
    // The same address again: its states are others, and everything is listed anew.
    let _again = hub_of(store.path(), HubSettings { address, ..open() });
    until("good again", || !proxy.control().store_unreadable() && !knows(&proxy, "alice"));
}

#[test]
fn what_would_be_wrong_is_not_written_whoever_asks() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    std::fs::write(store.path().join("alice.yaml"), overlay("alice", "staging")).unwrap();
    let hub = hub_of(store.path(), open());
    let address = hub.hub().unwrap();
    let listed = || ask(address, "GET", "/hub/v1/entries", &[], "").1;
    let before = listed();
    let revision = |name: &str| {
        let line = before.lines().find(|line| line.contains(&format!("\"name\":\"{name}\""))).unwrap();
        let (_, revision) = line.rsplit_once("\"revision\":\"").unwrap();
        revision.trim_end_matches("\"}}").to_owned()
    };
    let write = |name: &str, known: Option<String>, text: Option<&str>| {
        let known = known.map_or("null".to_owned(), |known| format!("{known:?}"));
        let text = text.map_or("null".to_owned(), |text| format!("{text:?}"));
        let commit = format!(
            r#"{{"writes":[{{"name":{name:?},"known":{known},"text":{text}}}],"unchanged":[],"aloneSince":null}}"#
        );
        ask(address, "POST", "/hub/v1/commit", &[JSON], &commit)
    };
    let cases = [
        (422, "no such parent", write("bob.yaml", None, Some(&overlay("bob", "stagin")))),
        (422, "no YAML", write("bob.yaml", None, Some("name: ["))),
        (422, "an orphan", write("staging.yaml", Some(revision("staging.yaml")), None)),
        (409, "another state", write("alice.yaml", Some("1".to_owned()), Some(&overlay("alice", "staging")))),
        (409, "it is there", write("alice.yaml", None, Some(&overlay("alice", "staging")))),
        (409, "it is not there", write("bob.yaml", Some("1".to_owned()), Some(&overlay("bob", "staging")))),
        (400, "a path", write("../bob.yaml", None, Some(&overlay("bob", "staging")))),
        (400, "a path", write("folder/bob.yaml", None, Some(&overlay("bob", "staging")))),
        (400, "hidden", write(".overlane.lock", None, Some("x"))),
        (
            400,
            "nothing",
            ask(
                address,
                "POST",
                "/hub/v1/commit",
                &[JSON],
                r#"{"writes":[],"unchanged":[],"aloneSince":null}"#,
            ),
        ),
        (400, "no JSON", ask(address, "POST", "/hub/v1/commit", &[JSON], "{")),
        (415, "a form", ask(address, "POST", "/hub/v1/commit", &[("content-type", "text/plain")], "{}")),
        (
            403,
            "another site",
            ask(address, "GET", "/hub/v1/entries", &[("origin", "http://evil.example")], ""),
        ),
    ];
    for (status, what, (answered, body)) in cases {
        assert_eq!(answered, status, "{what}: {body}");
    }
    assert_eq!(ask(address, "GET", "/hub/v1/entries?after=0.1", &[], "").0, 410);
    assert_eq!(listed(), before, "nothing was written");
    let (status, body) = write("bob.yaml", None, Some(&overlay("bob", "staging")));
    assert_eq!(status, 200, "{body}");
    assert!(store.path().join("bob.yaml").exists() && listed() != before);
    let (status, body) = write("alice.yaml", Some(revision("alice.yaml")), None);
    assert_eq!(status, 200, "{body}");
}

#[test]
fn tokens_say_who_may_read_and_who_may_write_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (store, keys) = (folder.path().join("store"), folder.path().join("keys"));
    std::fs::create_dir_all(&store).unwrap();
    std::fs::create_dir_all(&keys).unwrap();
    std::fs::write(store.join("staging.yaml"), BASELINE).unwrap();
    let authority = Authority::new(&keys, "ours");
    let pair = authority.issue("hub", &["localhost"]);
    let tls = TlsSettings { certificates: vec![pair], clients: None, only_13: false, roles: vec!["hub"] };
    let (write, read) = ("a-token-that-may-write", "a-token-that-may-read");
    let write_file = file(&keys, "write", &format!("{write}\n"));
    let read_file = file(&keys, "read", &format!("{read}\n"));
    let hub = HubSettings {
        tokens: Some(PathBuf::from(&write_file)),
        read_tokens: Some(PathBuf::from(&read_file)),
        open: Right::None,
        ..open()
    };
    let hub = stage::start_as(
        Settings { hub: Some(hub), tls: Some(tls), ..settings(StoreAddress::directory(&store)) },
        Vec::new(),
    );
    let server = format!("https://localhost:{}", hub.hub().unwrap().port());
    let ca = authority.pem().display().to_string();
    let alice = file(&keys, "alice.yaml", &overlay("alice", "staging"));
    let with = |more: &[&str], verb: &[&str]| {
        let mut arguments = verb.to_vec();
        arguments.extend(["--server", &server]);
        arguments.extend(more);
        command(&arguments)
    };
    let (list, create) = (["overlay", "list"], ["overlay", "create", "--file", &alice]);
    let (code, _, notes) = with(&["--server-token-file", &write_file], &list);
    assert!(code == 1 && notes.contains("UnknownIssuer"), "{notes}");
    let (code, _, notes) = with(&["--server-ca", &ca], &list);
    assert!(code == 1 && notes.contains("OVERLANE_SERVER_TOKEN"), "{notes}");
    let (code, _, notes) = with(&["--server-ca", &ca, "--server-token", "a-token-of-nobody"], &list);
    assert!(code == 1 && notes.contains("token"), "{notes}");
    let reads = ["--server-ca", &ca, "--server-token-file", &read_file];
    assert_eq!(with(&reads, &list).0, 0);
    let (code, _, notes) = with(&reads, &create);
    assert!(code == 1 && notes.contains("may read, and not write"), "{notes}");
    let access = Access { token: Some(read.to_owned()), ca: Some(authority.pem()), ..Access::default() };
    let address: StoreAddress = format!("hub:{server}").parse().unwrap();
    let proxy = stage::start_as(settings(address.with_access(&access)), Vec::new());
    assert!(knows(&proxy, "staging"));
    let (code, result, notes) = with(&["--server-ca", &ca, "--server-token-file", &write_file], &create);
    assert_eq!((code, &*result), (0, "overlay alice created\n"), "{notes}");
    until("created", || knows(&proxy, "alice"));
    let stale = |proxy: &Started| proxy.control().problems().iter().any(|why| why.starts_with("STALE"));
    assert!(!stale(&proxy));
    file(&keys, "read", "another-token-that-may-read\n");
    until("who follows with a token that was withdrawn is not told more", || stale(&proxy));
    file(&keys, "read", "\n");
    until("the hub says what is wrong", || {
        hub.files().problems().iter().any(|why| why.contains("there is no token"))
    });
}

#[test]
fn many_writers_through_a_hub_lose_nothing() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let hub = Arc::new(hub_of(store.path(), open()));
    let proxy = follower(&url(&hub));
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let (server, files) = (url(&hub), files.path());
            scope.spawn(move || {
                for n in 0..5 {
                    let id = format!("w{writer}-{n}");
                    let path = file(files, &format!("{id}.yaml"), &overlay(&id, "staging"));
                    let (code, _, notes) =
                        command(&["overlay", "create", "--file", &path, "--server", &server]);
                    assert_eq!(code, 0, "{notes}");
                    let port = format!("http://127.0.0.1:{}", 1000 + n);
                    let (code, _, notes) =
                        command(&["attach", &id, "web", "--url", &port, "--server", &server]);
                    assert_eq!(code, 0, "{notes}");
                    // Nothing can be deleted while others write, since they might build on it: then it says so.
                    let deleted = || {
                        let (code, _, notes) = command(&["overlay", "delete", &id, "--server", &server]);
                        assert!(code == 0 || notes.contains("nothing was written"), "{notes}");
                        code == 0
                    };
                    if n % 2 == 1 {
                        until("it is deleted", deleted);
                    }
                }
            });
        }
    });
    let expected: Vec<_> = (0..6).flat_map(|writer| [0, 2, 4].map(|n| format!("w{writer}-{n}"))).collect();
    let listed = command(&["overlay", "list", "-o", "name", "--server", &url(&hub)]).1;
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    let standing = || {
        proxy.control().lineages(|lineages| {
            lineages
                .standings()
                .map(|(id, _)| id.to_string())
                .filter(|id| id != "staging")
                .collect::<Vec<_>>()
        })
    };
    until("all of it is known", || standing() == expected);
}

#[test]
fn the_status_shows_who_is_behind_and_waiting_ends_when_nobody_is() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let hub = hub_of(store.path(), open());
    let server = url(&hub);
    let proxies = [follower(&server), follower(&server)];
    let standings = || {
        let (code, told, notes) = command(&["status", "-o", "json", "--server", &server]);
        assert_eq!(code, 0, "{notes}");
        let status: overlane::status::Status = serde_json::from_str(&told).unwrap();
        status.instances.iter().map(|seen| seen.status.as_str()).collect::<Vec<_>>()
    };
    until("all of them report", || standings() == ["SYNCED"; 3]);
    let alice = file(files.path(), "alice.yaml", &overlay("alice", "staging"));
    let create = ["overlay", "create", "--file", &alice, "--wait", "--timeout", "20s", "--server", &server];
    let (code, _, notes) = command(&create);
    assert!(code == 0 && notes.contains("3 proxies route it"), "{notes}");
    assert!(proxies.iter().all(|proxy| knows(proxy, "alice")));
    // What it owns has no address, and nobody waits for ever.
    let pending = overlay("bob", "staging").replace(", url: 'http://127.0.0.1:2'", "");
    let bob = file(files.path(), "bob.yaml", &pending);
    let (code, _, notes) =
        command(&["apply", "--file", &bob, "--wait", "--timeout", "300ms", "--server", &server]);
    assert!(code == 1 && notes.contains("`web` of `bob`: pending"), "{notes}");
    // Who stops takes its leave.
    let [first, second] = proxies;
    assert!(first.stop_in_background().join().unwrap());
    until("it is gone", || standings().len() == 2);
    let (_, table, _) = command(&["status", "--server", &server]);
    assert!(table.starts_with("INSTANCE") && table.contains("SYNCED"), "{table}");
    // A proxy alone.
    let admin = second.admin().to_string();
    let (code, told, notes) = command(&["status", "--admin", &admin]);
    assert!(code == 0 && told.lines().count() == 2 && told.contains("SYNCED"), "{told}{notes}");
    let (code, ..) = command(&["status", "--admin", "127.0.0.1:1"]);
    assert_eq!(code, 1);
}

#[test]
fn waiting_without_a_hub_asks_the_admin_listener() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let proxy = stage::start_as(settings(StoreAddress::directory(store.path())), Vec::new());
    let alice = file(files.path(), "alice.yaml", &overlay("alice", "staging"));
    let (at, admin) = (store.path().display().to_string(), proxy.admin().to_string());
    let (code, _, notes) = command(&["apply", "--file", &alice, "--wait", "--admin", &admin, "--store", &at]);
    assert!(code == 0 && notes.contains("1 proxy routes it"), "{notes}");
    assert!(knows(&proxy, "alice"));
}

#[test]
fn the_api_writes_on_conditions_and_says_every_mistake() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let hub = hub_of(store.path(), open());
    for address in [hub.admin(), hub.hub().unwrap()] {
        let blueprint = |port: u16| {
            format!(
                r#"{{"name":"alice","routing":{{"mode":"overlay","baselineId":"staging"}},"services":[{{"name":"web","url":"http://127.0.0.1:{port}"}}]}}"#
            )
        };
        let put = |fields: &[(&str, &str)], body: &str| {
            ask(address, "PUT", "/api/v1/overlays/alice", &[&[JSON], fields].concat(), body)
        };
        let get = |path: &str| ask(address, "GET", path, &[], "");
        assert_eq!(get("/api/v1/overlays/alice").0, 404);
        assert_eq!(put(&[("if-match", "*")], &blueprint(2)).0, 412, "it is not there");
        let (status, body) = put(&[("if-none-match", "*")], &blueprint(2));
        assert_eq!(status, 201, "{body}");
        assert_eq!(put(&[("if-none-match", "*")], &blueprint(3)).0, 412, "it is there");
        assert!(get("/api/v1/overlays/alice").1.contains("127.0.0.1:2"), "in force when it is answered");
        let listed: serde_json::Value =
            serde_json::from_str(&get("/api/v1/overlays?baseline=staging").1).unwrap();
        let tag = format!("\"{}\"", listed["items"][0]["revision"].as_str().unwrap());
        assert_eq!(put(&[("if-match", &tag)], &blueprint(3)).0, 200);
        assert_eq!(put(&[("if-match", &tag)], &blueprint(4)).0, 412, "it is another one now");
        let (status, body) = put(&[], &blueprint(4).replace("\"staging\"", "\"stagin\""));
        assert!(status == 422 && body.contains("did you mean") && body.contains("\"line\":1"), "{body}");
        let (status, body) = put(&[], &blueprint(4).replace("\"alice\"", "\"bob\""));
        assert!(status == 400 && body.contains("the path names"), "{body}");
        let attachment = "/api/v1/overlays/alice/attachments/web";
        assert_eq!(ask(address, "PUT", attachment, &[JSON], r#"{"url":"http://127.0.0.1:9"}"#).0, 201);
        assert!(get("/api/v1/overlays/alice/attachments").1.contains("127.0.0.1:9"));
        assert!(get("/api/v1/overlays/alice/lineage").1.contains("staging"));
        assert_eq!(ask(address, "DELETE", attachment, &[], "").0, 204);
        assert_eq!(ask(address, "DELETE", attachment, &[], "").0, 404);
        assert_eq!(ask(address, "DELETE", "/api/v1/baselines/staging", &[], "").0, 409);
        assert_eq!(ask(address, "DELETE", "/api/v1/overlays/alice", &[("if-match", &tag)], "").0, 412);
        assert_eq!(ask(address, "DELETE", "/api/v1/overlays/alice", &[], "").0, 204);
        assert_eq!(get("/api/v1/overlays/alice").0, 404);
        let files = r#"{"files":[{"path":"a.yaml","text":"name: ["}]}"#;
        let (status, body) = ask(address, "POST", "/api/v1/validate", &[JSON], files);
        assert!(status == 200 && body.contains("\"valid\":false"), "{body}");
        assert!(get("/openapi.json").1.contains("3.1.0"));
        let (status, _) =
            ask(address, "PUT", "/api/v1/overlays/alice", &[("content-type", "text/plain")], &blueprint(2));
        assert_eq!(status, 415);
    }
}

#[test]
fn a_link_is_made_over_the_api_and_only_who_made_it_gets_its_secret() {
    let store = tempfile::tempdir().unwrap();
    let exposed = BASELINE.replacen("{name: web,", "{name: web, expose: true,", 1);
    std::fs::write(store.path().join("staging.yaml"), exposed).unwrap();
    std::fs::write(store.path().join("alice.yaml"), overlay("alice", "staging")).unwrap();
    let hub = hub_of(store.path(), open());
    for address in [hub.admin(), hub.hub().unwrap()] {
        let shares = "/api/v1/overlays/alice/shares";
        let listed = || ask(address, "GET", shares, &[], "").1;
        let share = |path: &str, body: &str| ask(address, "POST", path, &[JSON], body);
        let (status, body) = share(shares, r#"{"ttl":"2h","service":"web"}"#);
        assert_eq!(status, 201, "{body}");
        let made: serde_json::Value = serde_json::from_str(&body).unwrap();
        let (id, url) = (made["id"].as_str().unwrap(), made["links"][0]["url"].as_str().unwrap());
        let secret = url.rsplit('.').next().unwrap();
        assert!(listed().contains(id), "in force when it is answered: {}", listed());
        let kept = std::fs::read_to_string(store.path().join("alice.attached.yaml")).unwrap();
        assert!(secret.len() >= 32 && !listed().contains(secret) && !kept.contains(secret), "{kept}");
        let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(kept.contains(&digest), "it lets in: {digest} in {kept}");
        let before = listed();
        assert_eq!(share(&format!("{shares}?dryRun=true"), "{}").0, 201);
        assert_eq!(listed(), before);
        for wrong in ["[null, null]", "", r#"{"ttl":"0s"}"#, r#"{"ttl":"soon"}"#, r#"{"for":"2h"}"#] {
            assert_eq!(share(shares, wrong).0, 400, "{wrong}");
        }
        assert_eq!(share(shares, r#"{"service":"api"}"#).0, 409, "it is not exposed");
        assert_eq!(share("/api/v1/overlays/nobody/shares", "{}").0, 404);
        assert_eq!(ask(address, "DELETE", &format!("{shares}/{id}"), &[], "").0, 204);
        assert!(!listed().contains(id));
        // Longer than a time can be said: until the last one, and what is written is read again.
        let (status, body) = share(shares, r#"{"ttl":"3000000d"}"#);
        assert!(status == 201 && body.contains("9999-12-30"), "{body}");
        let made: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(listed().contains(made["id"].as_str().unwrap()), "{}", listed());
    }
}

#[test]
fn a_directory_is_applied_parents_first_and_what_would_change_is_shown_before() {
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_of(store.path(), open());
    let server = url(&hub);
    until("an empty store is read", || hub.control().revision().is_some());
    file(files.path(), "1-child.yaml", &overlay("child", "alice"));
    file(files.path(), "2-alice.yaml", &overlay("alice", "staging"));
    file(files.path(), "3-staging.yaml", BASELINE);
    let folder = files.path().display().to_string();
    let diff = || command(&["diff", "--file", &folder, "--server", &server]);
    let (code, told, notes) = diff();
    assert!(code == 1 && told.contains("+name: alice"), "{told}{notes}");
    let (code, result, notes) = command(&["apply", "--file", &folder, "--server", &server]);
    assert_eq!(
        (code, &*result),
        (0, "baseline staging created\noverlay alice created\noverlay child created\n"),
        "{notes}"
    );
    let (code, told, notes) = diff();
    assert_eq!((code, &*told), (0, ""), "{notes}");
    file(files.path(), "2-alice.yaml", &overlay("alice", "staging").replace(":2", ":3"));
    let (code, told, _) = diff();
    assert!(code == 1 && told.contains("-services: [{name: web, url: 'http://127.0.0.1:2'}]"), "{told}");
    file(files.path(), "2-alice.yaml", &overlay("alice", "nobody"));
    let (code, _, notes) = diff();
    assert!(code == 2 && notes.contains("nobody"), "{notes}");
}

/// Tells what was written until now, line by line.
struct Lines(std::sync::mpsc::Sender<String>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Nobody reads any more: the command ends.
        let sent = self.0.send(String::from_utf8_lossy(bytes).into_owned());
        sent.map(|()| bytes.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_list_that_is_watched_shows_what_changes() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("staging.yaml"), BASELINE).unwrap();
    let hub = hub_of(store.path(), open());
    let (sender, told) = std::sync::mpsc::channel();
    let arguments = ["overlane", "overlay", "list", "--watch", "--server", &url(&hub)].map(str::to_owned);
    let watching =
        std::thread::spawn(move || run_from(arguments, &mut Output::to(Lines(sender), std::io::sink())));
    let mut seen = String::new();
    let mut until_told = |what: &str| {
        while !seen.contains(what) {
            seen.push_str(&told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} is not in {seen}")));
        }
    };
    std::fs::write(store.path().join("alice.yaml"), overlay("alice", "staging")).unwrap();
    until_told("alice");
    std::fs::remove_file(store.path().join("alice.yaml")).unwrap();
    until_told("DELETED");
    drop(told);
    std::fs::write(store.path().join("bob.yaml"), overlay("bob", "staging")).unwrap();
    assert_eq!(watching.join().unwrap(), 0, "a reader that goes away is no failure");
}

#[test]
fn who_follows_a_hub_that_cannot_read_its_store_is_stale_and_not_when_it_can_again() {
    let (parent, store) = (tempfile::tempdir().unwrap(), "store");
    let (path, away) = (parent.path().join(store), parent.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("staging.yaml"), BASELINE).unwrap();
    let hub = hub_of(&path, open());
    let proxy = follower(&url(&hub));
    assert!(knows(&proxy, "staging") && !proxy.control().store_unreadable());
    // As a volume looks that is not mounted.
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    until("stale", || proxy.control().store_unreadable());
    assert!(knows(&proxy, "staging"), "{:?}", proxy.control().problems());
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    until("fresh", || !proxy.control().store_unreadable());
    assert_eq!(proxy.control().problems(), Vec::<String>::new());
}

#[test]
fn only_its_own_page_asks_a_hub_that_is_open() {
    let store = tempfile::tempdir().unwrap();
    let hub = hub_of(store.path(), open());
    let address = hub.hub().unwrap();
    let origins = [
        (format!("http://{address}"), 200),
        ("http://127.0.0.1:1".to_owned(), 403),
        ("null".to_owned(), 403),
    ];
    for (origin, status) in origins {
        let fields = [("origin", &*origin), JSON];
        assert_eq!(ask(address, "GET", "/hub/v1/entries", &fields, "").0, status, "{origin}");
        assert_eq!(ask(address, "POST", "/api/v1/explain", &fields, "{}").0, status, "{origin}");
    }
    // A name of theirs that leads here (DNS rebinding).
    for fields in
        [&[("host", "evil.example")][..], &[("host", "evil.example"), ("origin", "http://evil.example")]]
    {
        assert_eq!(ask(address, "GET", "/hub/v1/entries", fields, "").0, 403, "{fields:?}");
    }
    assert_eq!(ask(address, "GET", "/hub/v1/entries", &[], "").0, 200);
}

#[test]
fn everybody_gets_the_page_of_a_hub_and_what_it_asks_wants_a_token() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("store")).unwrap();
    let tokens = PathBuf::from(file(folder.path(), "read", "a-token-that-may-read\n"));
    let closed = HubSettings { read_tokens: Some(tokens), open: Right::None, ..open() };
    let hub = hub_of(&folder.path().join("store"), closed);
    let address = hub.hub().unwrap();
    for path in ["/ui/", "/ui/page.js", "/ui/page.css"] {
        assert_eq!(ask(address, "GET", path, &[], "").0, 200, "{path}");
    }
    assert_eq!(ask(address, "GET", "/api/v1/status", &[], "").0, 401);
    let shown =
        [("authorization", "Bearer a-token-that-may-read"), ("origin", &*format!("http://{address}")), JSON];
    assert_eq!(ask(address, "GET", "/api/v1/status", &shown, "").0, 200);
    assert_eq!(ask(address, "POST", "/api/v1/explain", &shown, "{}").0, 200);
}
