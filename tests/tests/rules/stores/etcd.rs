//! Against a real etcd: what it is told, what it tells, and what becomes of those who follow it when it is killed, forgets,
//! or cannot be reached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use overlane::store::etcd::Etcd as Store;
use overlane::store::etcd::access::{Access, Password, User};
use overlane::store::shared::{Change, Changes, Commit, CommitError, Revision, Shared, WatchError};
use overlane::tls::certificates::Pair;
use overlane_tests::cable::{Cable, Plugged};
use overlane_tests::etcd::{self, Etcd, Tls, base64};
use serde_json::json;
use tokio::time::timeout;

use super::{commit, told, write};

/// Whatever is waited for comes long before.
const LONG: Duration = Duration::from_secs(30);

fn store(address: &str, access: Access) -> Store {
    Store::new(&address.parse().unwrap(), access).unwrap()
}

fn open(etcd: &Etcd) -> Store {
    store(&etcd.at().to_string(), Access::default())
}

fn texts(changes: &[Change]) -> Vec<(&str, Option<&str>)> {
    changes
        .iter()
        .map(|change| match change {
            Change::Put(entry) => (entry.name.as_str(), Some(entry.text.as_str())),
            Change::Gone(name) => (name.as_str(), None),
        })
        .collect()
}

#[tokio::test]
async fn what_is_written_is_listed_and_told_and_lies_below_the_prefix() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let empty = store.list().await.unwrap();
    assert_eq!(empty.entries, []);
    let mut watching = store.watch(&empty.revision).await.unwrap();
    let made = store
        .commit(&commit(vec![write("a.yaml", None, Some("1")), write("b.yaml", None, Some("2"))]))
        .await
        .unwrap();
    let changes = told(&mut watching, LONG).await.unwrap();
    assert_eq!(texts(&changes.changes), [("a.yaml", Some("1")), ("b.yaml", Some("2"))]);
    assert_eq!(changes.revision, made.revision);
    // What lies beside is nobody's.
    for key in [
        "/overlane/notes.txt",
        "/overlane/teams/c.yaml",
        "/overlane/.d.yaml",
        "/overlanes/e.yaml",
        "/overlane",
    ] {
        etcd.put(key, b"x").await;
    }
    let known = made.entries[0].as_ref();
    let gone = store.commit(&commit(vec![write("a.yaml", known, None)])).await.unwrap();
    assert_eq!(gone.entries, [None]);
    assert_eq!(texts(&told(&mut watching, LONG).await.unwrap().changes), [("a.yaml", None)]);
    let listing = store.list().await.unwrap();
    assert_eq!(listing.revision, gone.revision);
    assert_eq!(listing.entries.len(), 1);
    assert_eq!((listing.entries[0].name.as_str(), listing.entries[0].text.as_str()), ("b.yaml", "2"));
}

#[tokio::test]
async fn a_listing_of_many_pages_is_of_one_state_also_where_that_is_forgotten_meanwhile() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let text = "x".repeat(200);
    let mut state = None;
    for part in 0..110 {
        let writes =
            (0..100).map(|at| write(&format!("e{part:03}{at:02}.yaml"), None, Some(&text))).collect();
        state = Some(store.commit(&commit(writes)).await.unwrap().revision);
    }
    let listing = store.list().await.unwrap();
    assert_eq!(listing.entries.len(), 11_000);
    assert_eq!(Some(listing.revision), state);
    let (listing, ()) = tokio::join!(store.list(), async {
        for _ in 0..2 {
            etcd.compact().await;
        }
    });
    assert_eq!(listing.unwrap().entries.len(), 11_000);
}

#[tokio::test]
async fn of_two_who_write_the_same_one_wins_and_the_other_hears_it() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let first = store.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await.unwrap();
    let known = first.entries[0].clone();
    let again = store.commit(&commit(vec![write("a.yaml", None, Some("2"))])).await;
    assert_eq!(again, Err(CommitError::Conflict));
    store.commit(&commit(vec![write("a.yaml", known.as_ref(), Some("2"))])).await.unwrap();
    let stale = store.commit(&commit(vec![write("a.yaml", known.as_ref(), None)])).await;
    assert_eq!(stale, Err(CommitError::Conflict));
    // All or nothing.
    let both = commit(vec![write("b.yaml", None, Some("1")), write("a.yaml", None, Some("3"))]);
    assert_eq!(store.commit(&both).await, Err(CommitError::Conflict));
    // Its parent changed.
    let child = Commit {
        writes: vec![write("c.yaml", None, Some("1"))],
        unchanged: vec![("a.yaml".to_owned(), known.unwrap())],
        alone_since: None,
    };
    assert_eq!(store.commit(&child).await, Err(CommitError::Conflict));
    // Somebody wrote something.
    let alone = |since: &Revision| Commit {
        writes: vec![write("d.yaml", None, Some("1"))],
        unchanged: Vec::new(),
        alone_since: Some(since.clone()),
    };
    assert_eq!(store.commit(&alone(&first.revision)).await, Err(CommitError::Conflict));
    let now = store.list().await.unwrap();
    assert_eq!(now.entries.len(), 1);
    store.commit(&alone(&now.revision)).await.unwrap();
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_and_says_when_that_is_forgotten() {
    let mut etcd = Etcd::start();
    let store = open(&etcd);
    let start = store.list().await.unwrap().revision;
    let first = store.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await.unwrap();
    let second =
        store.commit(&commit(vec![write("a.yaml", first.entries[0].as_ref(), Some("2"))])).await.unwrap();
    let mut all = store.watch(&start).await.unwrap();
    let mut changes = told(&mut all, LONG).await.unwrap().changes;
    if changes.len() < 2 {
        changes.extend(told(&mut all, LONG).await.unwrap().changes);
    }
    assert_eq!(texts(&changes), [("a.yaml", Some("1")), ("a.yaml", Some("2"))]);
    let mut rest = store.watch(&first.revision).await.unwrap();
    assert_eq!(texts(&told(&mut rest, LONG).await.unwrap().changes), [("a.yaml", Some("2"))]);
    // Also across its death, whatever it was told last.
    etcd.kill();
    assert!(matches!(told(&mut rest, LONG).await, Err(WatchError::Fault(_))));
    assert!(store.watch(&first.revision).await.is_err_and(|error| matches!(error, WatchError::Fault(_))));
    etcd.again();
    let mut rest = store.watch(&first.revision).await.unwrap();
    assert_eq!(told(&mut rest, LONG).await.unwrap().revision, second.revision);
    etcd.compact().await;
    let forgotten = async {
        match store.watch(&start).await {
            Ok(mut watching) => told(&mut watching, LONG).await.unwrap_err(),
            Err(error) => error,
        }
    };
    assert_eq!(forgotten.await, WatchError::Compacted);
    assert!(store.watch(&second.revision).await.is_ok());
    let elsewhere = Revision::new("v1:other");
    assert!(store.watch(&elsewhere).await.is_err_and(|error| error == WatchError::Compacted));
}

#[tokio::test]
async fn an_etcd_that_was_put_back_to_an_earlier_state_is_listed_again() {
    let mut etcd = Etcd::start();
    let store = open(&etcd);
    for number in 0..5 {
        store.commit(&commit(vec![write(&format!("{number}.yaml"), None, Some("1"))])).await.unwrap();
    }
    let before = store.list().await.unwrap().revision;
    etcd.anew();
    let watched = store.watch(&before).await.err();
    // The first call may find that its connection has gone.
    let again =
        if watched == Some(WatchError::Compacted) { watched } else { store.watch(&before).await.err() };
    assert_eq!(again, Some(WatchError::Compacted));
    assert_eq!(store.list().await.unwrap().entries, []);
}

#[tokio::test]
async fn a_watch_that_nothing_comes_on_any_more_is_told_from_one_that_is_quiet() {
    let etcd = Etcd::start();
    let cable = Cable::to(etcd.at());
    let store = store(&cable.at().to_string(), Access::default());
    let start = store.list().await.unwrap().revision;
    let mut watching = store.watch(&start).await.unwrap();
    // Quiet: it is asked, and answers.
    let quiet = timeout(LONG, watching.next()).await.expect("a sign of life").unwrap().unwrap();
    assert_eq!(quiet, Changes { changes: Vec::new(), revision: start });
    cable.plug(Plugged::Silent);
    let gone = timeout(LONG, watching.next()).await.expect("given up").unwrap();
    assert!(matches!(&gone, Err(WatchError::Fault(fault)) if fault.0.contains("silent")), "{gone:?}");
    assert!(watching.next().await.is_none());
    cable.plug(Plugged::In);
    assert!(store.watch(&store.list().await.unwrap().revision).await.is_ok());
}

#[tokio::test]
async fn who_does_not_answer_is_left_for_who_does_and_errors_name_the_endpoint() {
    let mut etcd = Etcd::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Cable::to(etcd.at());
    silent.plug(Plugged::Silent);
    let address = format!("{nobody},{},{}", silent.at(), etcd.at());
    for _ in 0..3 {
        let store = store(&address, Access::default());
        timeout(LONG, store.list()).await.expect("in time").unwrap();
    }
    etcd.kill();
    let fault = store(&format!("{nobody},{}", etcd.at()), Access::default()).list().await.unwrap_err();
    for at in [nobody, etcd.at()] {
        assert!(fault.0.contains(&at.to_string()) && fault.0.contains("refused"), "{fault}");
    }
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_may_have_been_written_and_that_is_said() {
    let mut etcd = Etcd::start();
    let cable = Cable::to(etcd.at());
    let store = store(&cable.at().to_string(), Access::default());
    store.list().await.unwrap();
    cable.plug(Plugged::Silent);
    let lost = store.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await;
    assert!(matches!(&lost, Err(CommitError::Unsure(_))), "{lost:?}");
    // One that could not be sent was not written, and nothing else is said.
    etcd.kill();
    let unsent = open(&etcd).commit(&commit(vec![write("b.yaml", None, Some("1"))])).await;
    assert!(matches!(&unsent, Err(CommitError::Fault(_))), "{unsent:?}");
}

#[tokio::test]
async fn users_and_passwords_are_asked_for_as_the_token_needs_it() {
    let etcd = Etcd::start();
    etcd.ask_for_users().await;
    let access = |name: &str, password: &str| Access {
        user: Some(User { name: name.to_owned(), password: Password::Text(password.to_owned()) }),
        ..Access::default()
    };
    let at = etcd.at().to_string();
    for (access, why) in
        [(Access::default(), "set ETCDCTL_USER"), (access("overlane", "wrong"), "correct ETCDCTL_USER")]
    {
        let fault = store(&at, access).list().await.unwrap_err();
        assert!(fault.0.contains(why) && fault.0.contains(&at), "{fault}");
    }
    let elsewhere = store(&format!("{at}/other"), access("overlane", "secret"));
    let fault = elsewhere.list().await.unwrap_err();
    assert!(fault.0.contains("grant-permission"), "{fault}");
    let denied = elsewhere.watch(&Revision::new(1)).await.err().unwrap();
    assert!(
        matches!(&denied, WatchError::Fault(fault) if fault.0.contains("grant-permission")),
        "{denied:?}"
    );
    let store = store(&at, access("overlane", "secret"));
    let start = store.list().await.unwrap().revision;
    let mut watching = store.watch(&start).await.unwrap();
    store.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await.unwrap();
    told(&mut watching, LONG).await.unwrap();
    // Every change of users makes the tokens that there are void for what is written.
    let token =
        etcd.call("/v3/auth/authenticate", None, serde_json::json!({"name": "root", "password": "secret"}));
    let token = token.await["token"].as_str().unwrap().to_owned();
    let role = serde_json::json!({"name": "another"});
    etcd.call("/v3/auth/role/add", Some(&token), role).await;
    store.commit(&commit(vec![write("b.yaml", None, Some("1"))])).await.unwrap();
    told(&mut watching, LONG).await.unwrap();
    assert_eq!(store.list().await.unwrap().entries.len(), 2);
}

#[test]
fn a_password_goes_to_no_other_machine_in_the_clear() {
    let user = Some(User { name: "overlane".to_owned(), password: Password::Text("secret".to_owned()) });
    let access = Access { user, ..Access::default() };
    let opened = |address: &str, access: &Access| Store::new(&address.parse().unwrap(), access.clone()).err();
    for address in ["10.0.0.1:2379", "127.0.0.1:1,etcd.example.com", "http://[2001:db8::1]:2379/x"] {
        let why = opened(address, &access).expect("refused").0;
        assert!(why.contains("in the clear") && why.contains("https://") && !why.contains("secret"), "{why}");
        assert_eq!(opened(address, &Access { in_the_clear: true, ..access.clone() }), None);
        assert_eq!(opened(address, &Access::default()), None, "{address}: no password");
    }
    for address in ["https://10.0.0.1:2379", "127.9.0.1:2379,localhost,[::1]:2379"] {
        assert_eq!(opened(address, &access), None, "{address}");
    }
    let encrypted = Access { ca: Some("ca.crt".into()), ..access };
    assert_eq!(opened("10.0.0.1:2379", &encrypted), None);
}

#[tokio::test]
async fn what_is_attached_to_others_meanwhile_keeps_nobody_from_deleting_an_environment() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let made = commit(vec![write("a.yaml", None, Some("1")), write("b.yaml", None, Some("1"))]);
    let made = store.commit(&made).await.unwrap();
    let gone = |since: &Revision| Commit {
        writes: vec![write("a.attached.yaml", None, None), write("a.yaml", made.entries[0].as_ref(), None)],
        unchanged: Vec::new(),
        alone_since: Some(since.clone()),
    };
    // Leases of others are renewed, and somebody keeps something else there.
    for number in 0..20 {
        etcd.put("/overlane/b.attached.yaml", number.to_string().as_bytes()).await;
        etcd.put("/overlane/notes.txt", b"x").await;
    }
    store.commit(&gone(&made.revision)).await.unwrap();
    // What is attached to it itself, or an environment that may be its child, matters.
    let again = store.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await.unwrap();
    let known = again.entries[0].as_ref();
    let gone = |since: &Revision| Commit {
        writes: vec![write("a.attached.yaml", None, None), write("a.yaml", known, None)],
        unchanged: Vec::new(),
        alone_since: Some(since.clone()),
    };
    etcd.put("/overlane/a.attached.yaml", b"x").await;
    assert_eq!(store.commit(&gone(&again.revision)).await, Err(CommitError::Conflict));
    etcd.call("/v3/kv/deleterange", None, json!({"key": base64("/overlane/a.attached.yaml")})).await;
    etcd.put("/overlane/c.yaml", b"x").await;
    assert_eq!(store.commit(&gone(&again.revision)).await, Err(CommitError::Conflict));
    store.commit(&gone(&store.list().await.unwrap().revision)).await.unwrap();
}

/// Certificates of an authority, as files.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        settings.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(settings, key).unwrap();
        let made = Self { folder };
        std::fs::write(made.path("ca.crt"), authority.pem()).unwrap();
        for name in ["server", "client"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let settings =
                rcgen::CertificateParams::new(vec![etcd::host().to_string(), "localhost".to_owned()])
                    .unwrap();
            let certificate = settings.signed_by(&key, &authority).unwrap();
            std::fs::write(made.path(&format!("{name}.crt")), certificate.pem()).unwrap();
            std::fs::write(made.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")))
    }
}

#[tokio::test]
async fn tls_is_verified_both_ways() {
    let authority = Authority::new();
    let tls = Tls { pair: authority.pair("server"), clients: authority.path("ca.crt") };
    let etcd = Etcd::start_with(Some(tls));
    let (certificate, key) = authority.pair("client");
    let access = Access {
        ca: Some(authority.path("ca.crt")),
        pair: Some(Pair { certificate, key }),
        ..Access::default()
    };
    let at = etcd.at().to_string();
    let store = |scheme: &str, access: Access| store(&format!("{scheme}{at}"), access);
    for scheme in ["", "https://"] {
        store(scheme, access.clone()).list().await.unwrap();
    }
    let watching = store("", access.clone());
    let start = watching.list().await.unwrap().revision;
    let mut told_of = watching.watch(&start).await.unwrap();
    watching.commit(&commit(vec![write("a.yaml", None, Some("1"))])).await.unwrap();
    told(&mut told_of, LONG).await.unwrap();
    for (scheme, access) in [
        ("http://", access.clone()),
        ("https://", Access { pair: None, ..access.clone() }),
        ("https://", Access { ca: Some(Authority::new().path("ca.crt")), ..access }),
    ] {
        let fault = store(scheme, access).list().await.unwrap_err();
        assert!(fault.0.contains(&at), "{fault}");
    }
}

#[tokio::test]
async fn what_is_too_much_for_etcd_is_refused_with_the_remedy() {
    let etcd = Etcd::start();
    let store = Arc::new(open(&etcd));
    let many = commit((0..200).map(|at| write(&format!("{at}.yaml"), None, Some("x"))).collect());
    let large = commit(vec![write("a.yaml", None, Some(&"x".repeat(3 << 20)))]);
    for (too_much, remedy) in [(many, "--max-txn-ops"), (large, "--max-request-bytes")] {
        let error = store.commit(&too_much).await.unwrap_err();
        assert!(matches!(&error, CommitError::Fault(fault) if fault.0.contains(remedy)), "{error:?}");
    }
    assert_eq!(store.list().await.unwrap().entries, []);
}
