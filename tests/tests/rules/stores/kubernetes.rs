//! Against a stand-in for an API server: what it is told, what it tells, and what becomes of those who follow it when it
//! forgets, is restored, or refuses.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body_util::Full;
use overlane::client;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::store::kubernetes::Kubernetes as Store;
use overlane::store::shared::{Change, Commit, CommitError, Entry, Revision, Shared, WatchError};
use overlane::tls::certificates::Pair;
use overlane_config::route::Role;
use overlane_tests::cable::{Cable, Plugged};
use overlane_tests::kubernetes::{APPLY, Kubernetes, NAMESPACE};
use overlane_tests::stage::{self, Started};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::tls_listeners::Authority;

use super::{commit, told, write};

/// Whatever is waited for comes long before.
const LONG: Duration = Duration::from_secs(60);

fn store(address: &str) -> Store {
    Store::new(&address.strip_prefix("kubernetes:").unwrap().parse().unwrap()).unwrap()
}

fn open(cluster: &Kubernetes) -> Store {
    store(&cluster.address(None))
}

/// A baseline, with a comment.
fn baseline(id: &str, port: u16) -> String {
    format!(
        "# ours\nname: {id}\nrouting: {{mode: baseline}}\nservices:\n- {{name: web, url: 'http://127.0.0.1:{port}', image: 1.10}}\n"
    )
}

fn overlay(id: &str, parent: &str) -> String {
    format!(
        "name: {id}\nlabels: {{team: a}}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: web}}]\n"
    )
}

fn attachment(id: &str, url: &str) -> String {
    format!(
        "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata:\n  name: {id}\nspec:\n  services:\n  - name: web\n    url: {url}\n"
    )
}

fn text_of(change: &Change) -> (&str, Option<&str>) {
    match change {
        Change::Put(Entry { name, text, .. }) => (name, Some(text)),
        Change::Gone(name) => (name, None),
    }
}

fn texts(changes: &[Change]) -> Vec<(&str, Option<&str>)> {
    changes.iter().map(text_of).collect()
}

async fn entry(store: &Store, name: &str) -> Option<Entry> {
    store.list().await.unwrap().entries.into_iter().find(|entry| entry.name == name)
}

#[tokio::test]
async fn what_is_written_is_listed_and_told_as_it_was_written_and_is_an_object_for_others() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let empty = store.list().await.unwrap();
    assert_eq!(empty.entries, []);
    let mut watching = store.watch(&empty.revision).await.unwrap();
    let text = baseline("base", 1);
    let made = store.commit(&commit(vec![write("base.yaml", None, Some(&text))])).await.unwrap();
    let changes = told(&mut watching, LONG).await.unwrap();
    assert_eq!(texts(&changes.changes), [("base.yaml", Some(text.as_str())), ("base.attached.yaml", None)]);
    assert!(changes.revision.is_at_least(&made.revision), "{changes:?} {made:?}");
    let object = cluster.object("baselines", "base").unwrap();
    assert_eq!(object["spec"]["services"][0]["image"], "1.10");
    let overlay = overlay("alice", "base");
    store.commit(&commit(vec![write("alice.yaml", None, Some(&overlay))])).await.unwrap();
    told(&mut watching, LONG).await.unwrap();
    let object = cluster.object("overlays", "alice").unwrap();
    assert_eq!(
        (&object["metadata"]["labels"], &object["spec"]["labels"]),
        (&json!({"team": "a"}), &json!(null))
    );
    let known = entry(&store, "alice.yaml").await.unwrap();
    assert_eq!(known.text, overlay);
    let attached = attachment("alice", "http://127.0.0.1:7");
    let attach = write("alice.attached.yaml", None, Some(&attached));
    let done = store.commit(&commit(vec![attach])).await.unwrap();
    let changes = told(&mut watching, LONG).await.unwrap();
    // The environment is as it was.
    assert_eq!(changes.changes[0], Change::Put(known.clone()));
    assert!(
        matches!(&changes.changes[1], Change::Put(entry) if Some(&entry.revision) == done.entries[0].as_ref())
    );
    assert_eq!(
        cluster.object("overlays", "alice").unwrap()["attached"]["services"][0]["url"],
        "http://127.0.0.1:7"
    );
    let gone = commit(vec![
        write("alice.attached.yaml", done.entries[0].as_ref(), None),
        write("alice.yaml", Some(&known.revision), None),
    ]);
    assert_eq!(store.commit(&gone).await.unwrap().entries, [None, None]);
    assert_eq!(
        texts(&told(&mut watching, LONG).await.unwrap().changes),
        [("alice.yaml", None), ("alice.attached.yaml", None)]
    );
    assert_eq!(cluster.object("overlays", "alice"), None);
}

/// Applies an overlay on the server's side, as `kubectl apply --server-side`, Flux and Argo CD do.
async fn applied(cluster: &Kubernetes, name: &str, query: &str, object: &Value) -> (u16, Value) {
    let path = format!("/apis/overlane.dev/v1alpha1/namespaces/{NAMESPACE}/overlays/{name}?{query}");
    let at = cluster.at().to_string();
    let request = Request::patch(path).header("host", &at).header("content-type", APPLY);
    let request = request.body(Full::new(Bytes::from(object.to_string()))).unwrap();
    let answer = client::send(&at, request).await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap())
}

#[tokio::test]
async fn what_is_applied_on_the_servers_side_leaves_what_others_manage_and_conflicts_where_it_would_not() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let text = overlay("alice", "base");
    store.commit(&commit(vec![write("alice.yaml", None, Some(&text))])).await.unwrap();
    let record = attachment("alice", "http://127.0.0.1:7");
    store.commit(&commit(vec![write("alice.attached.yaml", None, Some(&record))])).await.unwrap();
    let alice = |parent: &str, labels: Value| {
        json!({
            "apiVersion": "overlane.dev/v1alpha1", "kind": "Overlay", "metadata": { "name": "alice", "labels": labels },
            "spec": {
                "routing": { "mode": "overlay", "baselineId": parent }, "services": [{ "name": "web" }],
            },
        })
    };
    // What says the same is shared, and keeps the text as it was written.
    let (code, _) =
        applied(&cluster, "alice", "fieldManager=argo", &alice("base", json!({"crew": "b"}))).await;
    assert_eq!(code, 200);
    let known = entry(&store, "alice.yaml").await.unwrap();
    assert!(known.text.contains("team: a") && known.text.contains("crew: b"), "{}", known.text);
    let (code, refused) = applied(&cluster, "alice", "fieldManager=argo", &alice("other", json!({}))).await;
    assert_eq!(code, 409, "{refused}");
    assert!(
        refused["message"].as_str().unwrap().contains("conflict with \"overlane\": .spec.routing.baselineId"),
        "{refused}"
    );
    assert_eq!(entry(&store, "alice.yaml").await.unwrap(), known, "nothing was changed");
    let forced = "fieldManager=argo&force=true";
    let (code, _) = applied(&cluster, "alice", forced, &alice("other", json!({}))).await;
    assert_eq!(code, 200);
    let known = entry(&store, "alice.yaml").await.unwrap();
    assert!(known.text.contains("baselineId: other"), "{}", known.text);
    assert!(known.text.contains("team: a"), "ours stays: {}", known.text);
    assert!(!known.text.contains("crew"), "what it does not say any more goes: {}", known.text);
    let kept = entry(&store, "alice.attached.yaml").await.unwrap();
    assert!(kept.text.contains("http://127.0.0.1:7"), "what is attached is nobody else's: {}", kept.text);
    // What the command line writes is written, and is its own from then on.
    let again = write("alice.yaml", Some(&known.revision), Some(&text));
    store.commit(&commit(vec![again])).await.unwrap();
    assert_eq!(entry(&store, "alice.yaml").await.unwrap().text, text);
    let (code, _) = applied(&cluster, "alice", "fieldManager=argo", &alice("other", json!({}))).await;
    assert_eq!(code, 409);
    let (code, refused) = applied(&cluster, "alice", "", &alice("base", json!({}))).await;
    assert_eq!(code, 422, "{refused}");
    // It makes what is not there.
    let mut bob = alice("base", json!({}));
    bob["metadata"]["name"] = "bob".into();
    assert_eq!(applied(&cluster, "bob", "fieldManager=argo", &bob).await.0, 200);
    assert!(entry(&store, "bob.yaml").await.unwrap().text.contains("baselineId: base"));
}

#[tokio::test]
async fn what_kubectl_changes_is_what_counts_and_what_others_noted_stays() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let text = overlay("alice", "base");
    store.commit(&commit(vec![write("alice.yaml", None, Some(&text))])).await.unwrap();
    let note = json!({"metadata": {"name": "alice", "annotations": {"example.com/note": "x"}, "finalizers": ["a/b"]}});
    cluster.apply("overlays", &note);
    assert_eq!(entry(&store, "alice.yaml").await.unwrap().text, text, "a note changes nothing");
    let label = json!({"metadata": {"name": "alice", "labels": {"app.kubernetes.io/managed-by": "argo"}}});
    cluster.apply("overlays", &label);
    let spec = json!({"metadata": {"name": "alice"}, "spec": {"routing": {"baselineId": "other"}}});
    cluster.apply("overlays", &spec);
    let changed = entry(&store, "alice.yaml").await.unwrap();
    assert!(
        changed.text.contains("baselineId: other") && changed.text.contains("team: a"),
        "{}",
        changed.text
    );
    assert!(changed.modified.is_some());
    let labels = text.replace("{team: a}", "{crew: b}");
    let again = write("alice.yaml", Some(&changed.revision), Some(&labels));
    store.commit(&commit(vec![again])).await.unwrap();
    assert_eq!(entry(&store, "alice.yaml").await.unwrap().text, labels);
    let metadata = cluster.object("overlays", "alice").unwrap()["metadata"].clone();
    assert_eq!(metadata["annotations"]["example.com/note"], "x");
    assert_eq!(metadata["finalizers"], json!(["a/b"]));
    assert_eq!(metadata["labels"]["crew"], "b");
    // What `kubectl apply` made is an entry as well, and one without `spec` no other's trouble.
    let bob = json!({
        "apiVersion": "overlane.dev/v1alpha1", "kind": "Overlay", "metadata": {"name": "bob"},
        "spec": {"routing": {"baselineId": "base"}, "services": [{"name": "web", "ports": [{"containerPort": 80}]}]},
    });
    cluster.apply("overlays", &bob);
    let bob = entry(&store, "bob.yaml").await.unwrap().text;
    assert_eq!(
        bob,
        "apiVersion: overlane.dev/v1alpha1\nkind: Overlay\nmetadata:\n  name: bob\nspec:\n  routing:\n    baselineId: base\n  services:\n  - name: web\n    ports:\n    - containerPort: 80\n"
    );
}

#[tokio::test]
async fn of_two_who_write_the_same_one_wins_and_the_other_hears_it_and_parents_are_held() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let base = write("base.yaml", None, Some(&baseline("base", 1)));
    let first = store.commit(&commit(vec![base.clone()])).await.unwrap();
    let known = first.entries[0].clone().unwrap();
    assert_eq!(store.commit(&commit(vec![base])).await, Err(CommitError::Conflict));
    let second = write("base.yaml", Some(&known), Some(&baseline("base", 2)));
    store.commit(&commit(vec![second])).await.unwrap();
    let stale = commit(vec![write("base.yaml", Some(&known), None)]);
    assert_eq!(store.commit(&stale).await, Err(CommitError::Conflict));
    // All or nothing.
    let both = commit(vec![
        write("alice.yaml", None, Some(&overlay("alice", "base"))),
        write("base.yaml", Some(&known), Some(&baseline("base", 3))),
    ]);
    assert_eq!(store.commit(&both).await, Err(CommitError::Conflict));
    assert_eq!(cluster.object("overlays", "alice"), None);
    // Its parent changed.
    let child = |known: &Revision| Commit {
        writes: vec![write("alice.yaml", None, Some(&overlay("alice", "base")))],
        unchanged: vec![("base.yaml".to_owned(), known.clone())],
        alone_since: None,
    };
    assert_eq!(store.commit(&child(&known)).await, Err(CommitError::Conflict));
    let now = entry(&store, "base.yaml").await.unwrap().revision;
    store.commit(&child(&now)).await.unwrap();
    // Somebody wrote something.
    let alone = |since: &Revision| Commit {
        writes: vec![write("bob.yaml", None, Some(&overlay("bob", "base")))],
        unchanged: Vec::new(),
        alone_since: Some(since.clone()),
    };
    assert_eq!(store.commit(&alone(&first.revision)).await, Err(CommitError::Conflict));
    let all = store.list().await.unwrap();
    assert_eq!(all.entries.len(), 2);
    let made = store.commit(&alone(&all.revision)).await.unwrap();
    assert!(store.list().await.unwrap().revision.is_at_least(&made.revision));
}

#[tokio::test]
async fn an_environment_becomes_one_of_the_other_kind_with_what_is_attached_to_it() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let base = store.commit(&commit(vec![write("a.yaml", None, Some(&baseline("a", 1)))])).await.unwrap();
    let attached = attachment("a", "http://127.0.0.1:7");
    store.commit(&commit(vec![write("a.attached.yaml", None, Some(&attached))])).await.unwrap();
    let turned = write("a.yaml", base.entries[0].as_ref(), Some(&overlay("a", "b")));
    store.commit(&commit(vec![turned])).await.unwrap();
    assert_eq!(cluster.object("baselines", "a"), None);
    let object = cluster.object("overlays", "a").unwrap();
    assert_eq!(object["attached"]["services"][0]["url"], "http://127.0.0.1:7");
    // Two of one name are seen, and what there is to do.
    cluster.apply(
        "baselines",
        &json!({
            "apiVersion": "overlane.dev/v1alpha1", "kind": "Baseline", "metadata": {"name": "a"},
            "spec": {"services": [{"name": "web"}]},
        }),
    );
    let both = entry(&store, "a.yaml").await.unwrap();
    assert!(both.text.contains("kind: Baseline") && both.text.contains("---\nname: a"), "{}", both.text);
    let start = store.list().await.unwrap().revision;
    let mut watching = store.watch(&start).await.unwrap();
    cluster.delete("overlays", "a");
    let left = told(&mut watching, LONG).await.unwrap();
    assert!(matches!(&left.changes[0], Change::Put(entry) if !entry.text.contains("---")), "{left:?}");
}

#[tokio::test]
async fn what_a_writer_noted_and_left_behind_is_finished_by_the_next_and_by_who_reads() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    store.commit(&commit(vec![write("base.yaml", None, Some(&baseline("base", 1)))])).await.unwrap();
    let known = entry(&store, "base.yaml").await.unwrap().revision;
    let note = json!({"id": "dead", "writes": [
        {"name": "base.yaml", "known": known.as_str(), "text": baseline("base", 2)},
        {"name": "alice.yaml", "known": null, "text": overlay("alice", "base")},
    ]});
    let journal = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "overlane-journal"},
        "data": {"writing": note.to_string()}});
    cluster.apply("configmaps", &journal);
    let again = write("base.yaml", Some(&known), Some(&baseline("base", 3)));
    assert_eq!(store.commit(&commit(vec![again])).await, Err(CommitError::Conflict));
    assert_eq!(entry(&store, "base.yaml").await.unwrap().text, baseline("base", 2));
    assert_eq!(entry(&store, "alice.yaml").await.unwrap().text, overlay("alice", "base"));
    // It is there already: nothing is done twice.
    cluster.delete("overlays", "alice");
    cluster.apply("configmaps", &journal);
    assert_eq!(entry(&store, "alice.yaml").await.unwrap().text, overlay("alice", "base"));
    assert_eq!(cluster.object("configmaps", "overlane-journal").unwrap()["data"], json!({}));
}

#[tokio::test]
async fn a_listing_of_many_pages_is_of_one_state_also_where_that_is_forgotten_meanwhile() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    for number in 0..1700 {
        cluster.apply("overlays", &json!({
            "apiVersion": "overlane.dev/v1alpha1", "kind": "Overlay", "metadata": {"name": format!("o{number}")},
            "spec": {"routing": {"baselineId": "base"}},
        }));
    }
    assert_eq!(store.list().await.unwrap().entries.len(), 1700);
    let pages =
        |cluster: &Kubernetes| cluster.requests().iter().filter(|asked| asked.contains("continue=")).count();
    assert_eq!(pages(&cluster), 3);
    let (listing, ()) = tokio::join!(store.list(), async {
        while pages(&cluster) == 3 {
            tokio::task::yield_now().await;
        }
        cluster.forget();
    });
    assert_eq!(listing.unwrap().entries.len(), 1700);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_and_says_when_that_is_forgotten_or_of_another_store() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    let start = store.list().await.unwrap().revision;
    store.commit(&commit(vec![write("base.yaml", None, Some(&baseline("base", 1)))])).await.unwrap();
    let mut watching = store.watch(&start).await.unwrap();
    let first = told(&mut watching, LONG).await.unwrap();
    cluster.cut();
    let cut = async {
        loop {
            match watching.next().await {
                Some(Ok(_))
                    if cluster.requests().iter().filter(|asked| asked.contains("watch=1")).count() < 4 => {}
                ended => return ended,
            }
        }
    };
    // Each is quiet until it ends, and then goes on by itself, from where it was.
    timeout(LONG, cut).await.unwrap().unwrap().unwrap();
    store.commit(&commit(vec![write("alice.yaml", None, Some(&overlay("alice", "base")))])).await.unwrap();
    let next = told(&mut watching, LONG).await.unwrap();
    assert_eq!(texts(&next.changes)[0].0, "alice.yaml");
    cluster.forget();
    let mut forgotten = store.watch(&start).await.unwrap();
    assert_eq!(told(&mut forgotten, LONG).await.unwrap_err(), WatchError::Compacted);
    assert!(store.watch(&next.revision).await.is_ok());
    for elsewhere in ["7", "v1:other"] {
        assert_eq!(store.watch(&Revision::new(elsewhere)).await.err(), Some(WatchError::Compacted));
    }
    cluster.anew();
    let mut ahead = store.watch(&first.revision).await.unwrap();
    assert_eq!(told(&mut ahead, LONG).await.unwrap_err(), WatchError::Compacted);
}

#[tokio::test]
async fn a_watch_that_nothing_comes_on_any_more_is_told_from_one_that_is_quiet() {
    let cluster = Kubernetes::start();
    let cable = Cable::to(cluster.at());
    let store = store(&cluster.address(Some(cable.at())));
    let start = store.list().await.unwrap().revision;
    let mut watching = store.watch(&start).await.unwrap();
    cable.plug(Plugged::Silent);
    // Whatever waits now waits for nothing but time.
    tokio::time::pause();
    let gone = async {
        loop {
            if let Err(gone) = watching.next().await.unwrap() {
                return gone;
            }
        }
    };
    let gone = timeout(LONG, gone).await.expect("given up");
    assert!(
        matches!(&gone, WatchError::Fault(fault) if fault.0.contains("silent") || fault.0.contains("does not")),
        "{gone:?}"
    );
    assert!(watching.next().await.is_none());
}

#[tokio::test]
async fn what_is_refused_is_said_with_the_remedy_and_where() {
    let fault = async |cluster: &Kubernetes| open(cluster).list().await.unwrap_err().0;
    let cluster = Kubernetes::start();
    cluster.forbid("list", "overlays");
    let forbidden = fault(&cluster).await;
    for part in ["kubernetes:staging", "resources: [overlays], verbs: [list]", "deploy/kubernetes/rbac.yaml"]
    {
        assert!(forbidden.contains(part), "{forbidden}");
    }
    let cluster = Kubernetes::start();
    cluster.undefine();
    assert!(fault(&cluster).await.contains("kubectl apply -f deploy/kubernetes/crds/"));
    let cluster = Kubernetes::start();
    let nowhere = store(&cluster.address(None).replace("staging", "nowhere"));
    let base = commit(vec![write("base.yaml", None, Some(&baseline("base", 1)))]);
    let CommitError::Fault(unknown) = nowhere.commit(&base).await.unwrap_err() else { panic!("no conflict") };
    assert!(unknown.0.contains("kubectl create namespace"), "{unknown}");
    cluster.forbid("create", "configmaps");
    let CommitError::Fault(journal) = open(&cluster).commit(&base).await.unwrap_err() else {
        panic!("no conflict")
    };
    assert!(journal.0.contains("resources: [configmaps], verbs: [create]"), "{journal}");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = store(&cluster.address(Some(dead))).list().await.unwrap_err();
    assert!(dead.0.contains("Connection refused"), "{dead}");
}

#[tokio::test]
async fn who_may_only_read_reads_also_where_something_is_left_behind() {
    let cluster = Kubernetes::start();
    for (verb, resource) in [("get", "configmaps"), ("create", "overlays")] {
        cluster.forbid(verb, resource);
    }
    cluster.apply(
        "configmaps",
        &json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "overlane-journal"}, "data": {"writing": "{}"}}),
    );
    assert_eq!(open(&cluster).list().await.unwrap().entries, []);
}

#[tokio::test]
async fn what_is_no_id_is_no_object_of_ours() {
    let cluster = Kubernetes::start();
    let store = open(&cluster);
    for name in ["a?dryRun=All.yaml", "a%2Fstatus.yaml", "..yaml", "a.b.yaml", "notes.txt"] {
        let refused =
            store.commit(&commit(vec![write(name, None, Some(&baseline("a", 1)))])).await.unwrap_err();
        assert!(matches!(&refused, CommitError::Fault(why) if why.0.contains("`ID.yaml`")), "{refused:?}");
    }
    let other =
        store.commit(&commit(vec![write("b.yaml", None, Some(&baseline("a", 1)))])).await.unwrap_err();
    assert!(
        matches!(&other, CommitError::Fault(why) if why.0.contains("an object of that name")),
        "{other:?}"
    );
    assert!(
        cluster.requests().iter().all(|asked| !asked.contains("dryRun") && !asked.contains("status")),
        "{:?}",
        cluster.requests()
    );
    // Objects of others may have dots in their names: those are not what is attached to ours.
    let dotted = json!({"apiVersion": "overlane.dev/v1alpha1", "kind": "Overlay",
        "metadata": {"name": "a.attached"}, "spec": {"routing": {"baselineId": "b"}}});
    cluster.apply("overlays", &dotted);
    assert_eq!(store.list().await.unwrap().entries[0].name, "a%2Eattached.yaml");
}

fn proxy(cluster: &Kubernetes) -> Started {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    let store = Some(cluster.address(None).parse().unwrap());
    stage::start_as(Settings { store, workers: 1, ..Settings::in_process(listeners) }, Vec::new())
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn who_looks_at_an_object_sees_whether_it_is_in_force_and_why_it_is_not() {
    let cluster = Kubernetes::start();
    let overlay = |parent: &str| {
        json!({
            "apiVersion": "overlane.dev/v1alpha1", "kind": "Overlay", "metadata": {"name": "alice"},
            "spec": {"routing": {"baselineId": parent}, "services": [{"name": "web"}]},
        })
    };
    cluster.apply("overlays", &overlay("base"));
    let condition =
        |kind: &str, name: &str| cluster.object(kind, name).unwrap()["status"]["conditions"][0].clone();
    let running = proxy(&cluster);
    until("invalid", || condition("overlays", "alice")["status"] == "False");
    let invalid = condition("overlays", "alice");
    assert_eq!((&invalid["type"], &invalid["reason"]), (&json!("Accepted"), &json!("Invalid")));
    let message = invalid["message"].as_str().unwrap();
    assert!(message.starts_with("line ") && message.contains("base"), "{message}");
    assert_eq!(invalid["observedGeneration"], 1);
    let base = json!({
        "apiVersion": "overlane.dev/v1alpha1", "kind": "Baseline", "metadata": {"name": "base"},
        "spec": {"services": [{"name": "web", "url": "http://127.0.0.1:1"}]},
    });
    cluster.apply("baselines", &base);
    for (kind, name) in [("baselines", "base"), ("overlays", "alice")] {
        until(name, || condition(kind, name)["status"] == "True");
        assert_eq!(condition(kind, name)["reason"], "InForce");
    }
    // What is said changes no environment, and is said once.
    let patches = || cluster.requests().iter().filter(|asked| asked.starts_with("PATCH")).count();
    assert_eq!(patches(), 3);
    cluster
        .apply("overlays", &json!({"metadata": {"name": "alice"}, "spec": {"services": [{"name": "api"}]}}));
    until("generation", || condition("overlays", "alice")["observedGeneration"] == 2);
    assert_eq!(patches(), 4);
    drop(running);
}

#[test]
fn a_proxy_that_may_not_say_what_is_in_force_serves_all_the_same() {
    let cluster = Kubernetes::start();
    for kind in ["baselines/status", "overlays/status"] {
        cluster.forbid("patch", kind);
    }
    let base = json!({
        "apiVersion": "overlane.dev/v1alpha1", "kind": "Baseline", "metadata": {"name": "base"},
        "spec": {"services": [{"name": "web", "url": "http://127.0.0.1:1"}]},
    });
    cluster.apply("baselines", &base);
    let running = proxy(&cluster);
    until("refused", || cluster.requests().iter().any(|asked| asked.starts_with("PATCH")));
    let id = "base".parse().unwrap();
    assert!(running.control().published().load().table.environment("base").is_some());
    assert!(running.control().lineages(|lineages| lineages.standing(&id).is_some()));
    assert_eq!(running.control().problems(), Vec::<String>::new());
}

/// An API server behind TLS that asks for a certificate of its clients.
fn in_tls(cluster: SocketAddr, own: &Pair, clients: &Path) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(clients).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let certificate = CertificateDer::from_pem_file(&own.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
    let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = tokio::net::TcpStream::connect(cluster).await.unwrap();
                // Whoever asks may go away.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    at
}

/// A plugin of a kubeconfig, which prints what it is told to.
fn plugin(folder: &Path, name: &str, status: &Value) -> Value {
    let version = "client.authentication.k8s.io/v1";
    let said = json!({ "apiVersion": version, "kind": "ExecCredential", "status": status });
    let (script, answer) = (folder.join(name), folder.join(format!("{name}.json")));
    std::fs::write(&answer, said.to_string()).unwrap();
    std::fs::write(&script, format!("#!/bin/sh\ncat '{}'\n", answer.display())).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    json!({ "exec": { "apiVersion": version, "command": script, "interactiveMode": "Never" } })
}

#[tokio::test]
async fn client_certificates_and_plugins_of_a_kubeconfig_let_us_in() {
    let cluster = Kubernetes::start();
    let folder = tempfile::tempdir().unwrap();
    let [authority, clients] = ["ours", "clients"].map(|name| Authority::new(folder.path(), name));
    let (own, shown) = (authority.issue("server", &["localhost"]), clients.issue("client", &["tester"]));
    let other = authority.issue("other", &["tester"]);
    let at = in_tls(cluster.at(), &own, &clients.pem());
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    let data = |path: &Path| base64::engine::general_purpose::STANDARD.encode(text(path));
    let of = |pair: &Pair| json!({ "client-certificate": pair.certificate, "client-key": pair.key });
    let inline = json!({
        "client-certificate-data": data(&shown.certificate), "client-key-data": data(&shown.key),
    });
    let by_plugin = plugin(
        folder.path(),
        "certificate",
        &json!({
            "clientCertificateData": text(&shown.certificate), "clientKeyData": text(&shown.key),
        }),
    );
    let token = |name: &str, token: &str| plugin(folder.path(), name, &json!({ "token": token }));
    let (tls, clear) = (format!("https://localhost:{}", at.port()), format!("http://{}", cluster.at()));
    for (number, (server, user, lets_in)) in [
        (&tls, of(&shown), true),
        (&tls, inline, true),
        (&tls, by_plugin, true),
        (&tls, of(&other), false),
        (&tls, json!({}), false),
        (&clear, token("good", "secret"), true),
        (&clear, token("bad", "another"), false),
    ]
    .into_iter()
    .enumerate()
    {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{
                "name": "double", "cluster": { "server": server, "certificate-authority": authority.pem() },
            }],
            "users": [{ "name": "tester", "user": user }],
            "contexts": [{ "name": "double", "context": { "cluster": "double", "user": "tester" } }],
        });
        let path = folder.path().join(format!("{number}.json"));
        std::fs::write(&path, config.to_string()).unwrap();
        let listed = store(&format!("kubernetes:{NAMESPACE}?kubeconfig={}", path.display())).list().await;
        assert_eq!(listed.is_ok(), lets_in, "{number}: {listed:?}");
    }
}
