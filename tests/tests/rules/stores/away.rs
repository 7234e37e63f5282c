//! Proxies under load whose etcd is killed, cut off from one of them, and made to forget: no request fails, what is in
//! force is said to be STALE, and everybody comes to what the store says once it can be asked again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use overlane::clock;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::store::StoreAddress;
use overlane::store::open::{OpenStore, Put, WriteError};
use overlane_config::diagnostic::Source;
use overlane_config::route::Role;
use overlane_tests::cable::{Cable, Plugged};
use overlane_tests::etcd::Etcd;
use overlane_tests::stage::{self, Started};

use super::super::lost::{Line, field, local, serve};

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A service that answers with its port.
fn place() -> SocketAddr {
    let socket = local();
    let at = socket.local_addr().unwrap();
    serve(socket, move || at, |at, _| at.port().to_string());
    at
}

fn apply(store: &StoreAddress, id: &str, parent: Option<&str>, at: SocketAddr) -> Result<(), WriteError> {
    let routing = match parent {
        None => "mode: baseline".to_owned(),
        Some(parent) => format!("mode: overlay, baselineId: {parent}"),
    };
    let text = format!(
        "name: {id}\nrouting: {{{routing}}}\nservices: [{{name: web, expose: {}, url: 'http://{at}'}}]\n",
        parent.is_none()
    );
    let source = Arc::new(Source::new(format!("{id}.yaml").into(), text, None));
    OpenStore::write(store)?.put(&source, &Put::default(), clock::now()).map(|_| ())
}

/// A proxy, and who asks it without a pause.
struct Asked {
    running: Arc<Started>,
    over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    client: Option<thread::JoinHandle<()>>,
}

impl Asked {
    fn new(store: &StoreAddress) -> Self {
        let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
        let settings = Settings { store: Some(store.clone()), workers: 1, ..Settings::in_process(listeners) };
        let running = Arc::new(stage::start_as(settings, Vec::new()));
        let (over, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut line = Line::to(running.addresses()[0]);
        let client = {
            let (over, answers) = (over.clone(), answers.clone());
            thread::spawn(move || {
                while !over.load(SeqCst) {
                    let (head, _) = line.exchange("shop", "x-overlay-id: alice\r\n");
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                    assert!(field(&head, "x-overlay-route").unwrap().contains("env=alice"), "{head}");
                    answers.fetch_add(1, SeqCst);
                }
            })
        };
        Self { running, over, answers, client: Some(client) }
    }

    fn is_stale(&self) -> bool {
        self.running.control().problems().iter().any(|problem| problem.starts_with("STALE: etcd at"))
    }

    /// Where it sends requests of an overlay.
    fn sends(&self, id: &str) -> Option<u16> {
        let id = id.parse().unwrap();
        let snapshot = self.running.control().published().load();
        snapshot.table.own_routes(&id).next().map(|route| route.urls[0].port)
    }

    fn over(mut self) -> usize {
        self.over.store(true, SeqCst);
        self.client.take().unwrap().join().expect("no request failed");
        self.answers.load(SeqCst)
    }
}

#[test]
fn a_store_that_is_killed_cut_off_and_forgets_fails_no_request_and_everybody_comes_to_what_it_says() {
    let mut etcd = Etcd::start();
    let cables = [Cable::to(etcd.at()), Cable::to(etcd.at())];
    let store: StoreAddress = format!("etcd:{}", etcd.at()).parse().unwrap();
    let [first, second] = [place(), place()];
    apply(&store, "base", None, first).unwrap();
    apply(&store, "alice", Some("base"), first).unwrap();
    apply(&store, "bob", Some("base"), first).unwrap();
    let proxies = cables.each_ref().map(|cable| Asked::new(&format!("etcd:{}", cable.at()).parse().unwrap()));
    let all = |id: &str, at: Option<SocketAddr>| {
        for proxy in &proxies {
            until(id, || proxy.sends(id) == at.map(|at| at.port()) && !proxy.is_stale());
        }
    };
    all("alice", Some(first));

    etcd.kill();
    proxies.iter().for_each(|proxy| until("STALE", || proxy.is_stale()));
    let refused = apply(&store, "alice", Some("base"), second).unwrap_err();
    assert!(
        matches!(&refused, WriteError::Store(fault) if fault.0.contains(&etcd.at().to_string())),
        "{refused:?}"
    );
    etcd.again();
    apply(&store, "alice", Some("base"), second).unwrap();
    all("alice", Some(second));

    // One of them is cut off, and what changes meanwhile is forgotten.
    cables[0].plug(Plugged::Out);
    until("STALE", || proxies[0].is_stale());
    apply(&store, "alice", Some("base"), first).unwrap();
    OpenStore::write(&store).unwrap().delete(&"bob".parse().unwrap(), None, false).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(etcd.compact());
    until("the other one", || proxies[1].sends("alice") == Some(first.port()));
    assert_eq!(proxies[0].sends("alice"), Some(second.port()));
    cables[0].plug(Plugged::In);
    all("alice", Some(first));
    all("bob", None);

    let answers: Vec<_> = proxies.into_iter().map(Asked::over).collect();
    assert!(answers.iter().all(|count| *count > 100), "{answers:?} are no load");
}
