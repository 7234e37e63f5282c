//! A whole Overlane: bind everything that can fail, load the store, serve, stop.

mod running;
mod source;
mod start;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::runtime::Handle;

pub use running::Running;

use crate::hub::tokens::HubTokens;
use crate::names::{Names, Reach};
use crate::panics;
use crate::plane::Gate;
use crate::plane::drain::Drain;
use crate::plane::worker::Bound;
use crate::settings::Settings;
use crate::store::StoreAddress;
use crate::tls::credentials::Credentials;
use crate::tls::upstreams::Upstreams;
use crate::tokens::keys::Tokens;

/// A process whose sockets are bound and that serves nobody yet.
pub struct Prepared {
    bound: Bound,
    parts: Parts,
}

/// What a process consists of besides its workers.
struct Parts {
    settings: Settings,
    sockets: Sockets,
    runtime: tokio::runtime::Runtime,
    names: Names,
    tls: Option<Arc<Credentials>>,
    upstreams: Arc<Upstreams>,
    tokens: Option<Arc<Tokens>>,
    drain: Drain,
    reach: Option<Arc<dyn Reach>>,
}

/// What the control side listens on.
struct Sockets {
    admin: (SocketAddr, TcpListener),
    probes: Option<(SocketAddr, TcpListener)>,
    hub: Option<(SocketAddr, TcpListener, Arc<HubTokens>)>,
}

/// Where it listens.
#[derive(Clone, Copy)]
struct Addresses {
    admin: SocketAddr,
    probes: Option<SocketAddr>,
    hub: Option<SocketAddr>,
}

impl Prepared {
    /// Binds every listener, and reads its certificates.
    ///
    /// # Errors
    /// An address that is taken or not ours, or a certificate that is of no use: that is a [`SettingsError`] inside.
    ///
    /// [`SettingsError`]: crate::settings::SettingsError
    pub fn bind(settings: Settings) -> io::Result<Self> {
        panics::watch();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .on_thread_start(yield_to_workers)
            .enable_all()
            .build()?;
        let (names, resolver) = Names::new();
        let drain = Drain::default();
        let tasks = Tasks { runtime: runtime.handle().clone(), drain: drain.clone() };
        tasks.spawn("name resolution", resolver);
        let tls = settings.tls.as_ref().map(Credentials::load).transpose().map_err(io::Error::other)?;
        let tls = tls.map(Arc::new);
        let upstreams = Arc::new(Upstreams::load(&settings.upstream_tls).map_err(io::Error::other)?);
        let tokens = settings.tokens.as_ref().map(Tokens::load).transpose().map_err(io::Error::other)?;
        let tokens = tokens.map(Arc::new);
        let bound = Bound::new(&settings, &names, tls.as_ref())?;
        let sockets = Sockets::bind(&settings)?;
        let parts = Parts { settings, sockets, runtime, names, tls, upstreams, tokens, drain, reach: None };
        Ok(Self { bound, parts })
    }

    /// The listeners, with the ports that they got.
    #[must_use]
    pub fn gates(&self) -> &[Arc<Gate>] {
        self.bound.gates()
    }

    /// Where its listeners are, with the ports that they got; those on unix sockets are left out.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        addresses(self.gates())
    }

    /// The control runtime, for what must be in place before anybody is served.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.parts.runtime
    }

    /// Reads blueprints from `store`, which may only be known once the ports are.
    #[must_use]
    pub fn with_store(mut self, store: StoreAddress) -> Self {
        self.parts.settings.store = Some(store);
        self
    }

    /// Reaches services by another way than their addresses.
    #[must_use]
    pub fn by_way_of(mut self, reach: Arc<dyn Reach>) -> Self {
        self.parts.reach = Some(reach);
        self
    }
}

impl Sockets {
    fn bind(settings: &Settings) -> io::Result<Self> {
        let admin = bind(settings.admin)?;
        let probes = settings.probes.map(bind).transpose()?;
        let hub = settings.hub.clone().map(|hub| {
            let tokens = HubTokens::load(hub.clone()).map_err(io::Error::other)?;
            let (address, socket) = bind(hub.address)?;
            io::Result::Ok((address, socket, Arc::new(tokens)))
        });
        Ok(Self { admin, probes, hub: hub.transpose()? })
    }

    fn addresses(&self) -> Addresses {
        let (probes, hub) = (self.probes.as_ref(), self.hub.as_ref());
        Addresses { admin: self.admin.0, probes: probes.map(|it| it.0), hub: hub.map(|it| it.0) }
    }
}

impl Addresses {
    fn all(self) -> impl Iterator<Item = SocketAddr> {
        [self.admin].into_iter().chain(self.probes).chain(self.hub)
    }
}

/// How much less of a busy processor a thread of the control side gets than a worker: half as much.
const NICE: i32 = 3;

/// Lets workers go first where there is not enough for all: a reload makes no request wait.
fn yield_to_workers() {
    // Linux counts this by thread; elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    if let Ok(first) = rustix::process::getpriority_process(Some(rustix::process::getpid())) {
        // Where it may not, nothing is lost but some microseconds.
        let _ = rustix::process::setpriority_process(None, first + NICE);
    }
}

/// A task of the control side that never ends.
type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where what a process cannot do without is run: where it panics, the process ends (docs/decisions/0023-panics.md).
struct Tasks {
    runtime: Handle,
    drain: Drain,
}

impl Tasks {
    fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (task, drain) = (self.runtime.spawn(task), self.drain.clone());
        self.runtime.spawn(async move {
            if task.await.is_err_and(|ended| ended.is_panic()) {
                drain.fail(what);
            }
        });
    }
}

fn addresses(gates: &[Arc<Gate>]) -> Vec<SocketAddr> {
    gates.iter().filter_map(|gate| gate.address.tcp()).collect()
}

fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let (address, mut sockets) = crate::plane::listen::bind(address, 1)?;
    let socket = sockets.pop().ok_or_else(|| io::Error::other("no socket"))?;
    Ok((address, socket))
}
