//! Running proxies, one for each engine, that all cases of a test process share; and proxies of one case's own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;

use overlane::control::{Control, Trigger};
use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits, ListenerSettings};
use overlane::process::{Prepared, Running};
use overlane::settings::Settings;
use overlane::upstream::Address;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::{Listener, Role};

use crate::panics;

/// How many gateways a shared proxy has: many more than cases at once. A request whose client went away with its case may be held
/// for a moment, and must not find the upstream of another one.
const SLOTS: usize = 64;

/// A shared proxy: a gateway for each of its slots, and behind each a baseline with one service.
struct Shared {
    running: Started,
    /// The one that rested longest first.
    free: Mutex<VecDeque<usize>>,
    freed: Condvar,
}

/// One gateway of a shared proxy, for one case at a time.
pub struct Slot {
    shared: &'static Shared,
    number: usize,
}

impl Slot {
    /// Waits for a free gateway, and puts `upstream` behind it: as service `web` of a baseline, and of the overlay
    /// `alice` with [`Slot::suffix`].
    #[must_use]
    pub fn lease(engine: EngineChoice, upstream: SocketAddr) -> Self {
        static PINGORA: OnceLock<Shared> = OnceLock::new();
        static AUTO: OnceLock<Shared> = OnceLock::new();
        let shared = match engine {
            EngineChoice::Pingora => &PINGORA,
            EngineChoice::Auto => &AUTO,
        };
        let shared = shared.get_or_init(|| Shared::start(engine));
        let mut free = shared.free.lock().unwrap();
        let number = loop {
            match free.pop_front() {
                Some(number) => break number,
                None => free = shared.freed.wait(free).unwrap(),
            }
        };
        drop(free);
        let suffix = format!("-{number:02}");
        shared.running.control().apply(&files(&suffix, upstream), Trigger::Change);
        Self { shared, number }
    }

    /// Where the gateway listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.running.addresses()[self.number]
    }

    /// Where the proxy's admin listener is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.shared.running.admin()
    }

    /// The proxy's control side.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        self.shared.running.control()
    }

    /// What the names of environments end with here.
    #[must_use]
    pub fn suffix(&self) -> String {
        format!("-{:02}", self.number)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.free.lock().unwrap().push_back(self.number);
        self.shared.freed.notify_one();
        panics::assert_none();
    }
}

impl Shared {
    fn start(engine: EngineChoice) -> Self {
        let nowhere = ([127, 0, 0, 1], 1).into();
        let suffixes = (0..SLOTS).map(|number| format!("-{number:02}"));
        let listeners = suffixes.clone().map(|suffix| listener(Role::Gateway, &suffix, None, Trust::Any));
        let running =
            start(engine, listeners.collect(), suffixes.flat_map(|suffix| files(&suffix, nowhere)).collect());
        Self { running, free: Mutex::new((0..SLOTS).collect()), freed: Condvar::new() }
    }
}

/// The blueprints of a baseline `base` and an overlay `alice`, both with `suffix`, that own the service `web`.
#[must_use]
pub fn files(suffix: &str, upstream: SocketAddr) -> Vec<FileChange> {
    files_at(suffix, &format!("http://{upstream}"))
}

/// The same with the service at a url.
#[must_use]
pub fn files_at(suffix: &str, url: &str) -> Vec<FileChange> {
    let base = format!(
        "name: base{suffix}\nrouting: {{mode: baseline, holdFor: 100ms}}\nservices: [{{name: web, expose: true, url: '{url}'}}]\n"
    );
    let alice = format!(
        "name: alice{suffix}\nrouting: {{mode: overlay, baselineId: base{suffix}}}\nservices: [{{name: web, url: '{url}'}}]\n"
    );
    vec![file(format!("base{suffix}.yaml"), base), file(format!("alice{suffix}.yaml"), alice)]
}

/// The file of the environment `name` with `suffix` is removed.
pub(crate) fn gone(name: &str, suffix: &str) -> FileChange {
    FileChange { path: format!("{name}{suffix}.yaml").into(), content: Content::Gone }
}

/// The file of the environment `name`, which exposes a service `web` of its own.
#[must_use]
pub fn web(name: &str, routing: &str, web: SocketAddr) -> FileChange {
    let services = format!("services: [{{name: web, expose: true, url: 'http://{web}'}}]");
    file(format!("{name}.yaml"), format!("name: {name}\nrouting: {{{routing}}}\n{services}\n"))
}

/// A file of a store.
#[must_use]
pub fn file(path: String, text: String) -> FileChange {
    let path: Arc<str> = path.into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

/// A listener on a free port for the baseline with `suffix`.
#[must_use]
pub fn listener(role: Role, suffix: &str, app: Option<SocketAddr>, trust: Trust) -> ListenerSettings {
    ListenerSettings {
        address: Address::Tcp(([127, 0, 0, 1], 0).into()),
        listener: Listener { role, baseline: Some(format!("base{suffix}").parse().unwrap()) },
        app: app.map(|app| format!("http://{app}").parse().unwrap()),
        trust,
    }
}

/// Starts a proxy.
#[must_use]
pub fn start(engine: EngineChoice, listeners: Vec<ListenerSettings>, files: Vec<FileChange>) -> Started {
    start_within(engine, Limits::default(), listeners, files)
}

/// Starts a proxy with limits of its own.
#[must_use]
pub fn start_within(
    engine: EngineChoice,
    limits: Limits,
    listeners: Vec<ListenerSettings>,
    files: Vec<FileChange>,
) -> Started {
    let settings = Settings { engine, limits, ..Settings::in_process(listeners) };
    start_as(settings, files)
}

/// Starts a proxy with settings of its own.
#[must_use]
pub fn start_as(settings: Settings, files: Vec<FileChange>) -> Started {
    panics::watch();
    Started(Some(Prepared::bind(settings).unwrap().start(files).unwrap()))
}

/// A running proxy; stopped when it is dropped, and then none of its workers may have panicked.
pub struct Started(Option<Running>);

impl Started {
    /// Begins to stop it; what it returns ends when it has stopped.
    #[must_use]
    pub fn stop_in_background(mut self) -> JoinHandle<bool> {
        self.0.take().unwrap().stop_in_background()
    }
}

impl Deref for Started {
    type Target = Running;

    fn deref(&self) -> &Running {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Its runtime must not be dropped on another one's thread.
        if let Some(running) = self.0.take() {
            drop(running.stop_in_background());
        }
        panics::assert_none();
    }
}
