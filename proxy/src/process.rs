//! A whole Overlane: bind everything that can fail, load the store, serve, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use overlane_config::lineage::{FileChange, Rules};
use tokio::sync::{mpsc, oneshot, watch};

use crate::access::AccessLog;
use crate::admin::{self, Admin, ReloadRequest};
use crate::control::{Control, Report, Trigger};
use crate::metrics::MeterDoor;
use crate::names::Names;
use crate::plane::worker::{Bound, Workers};
use crate::plane::{Gate, Plane};
use crate::settings::Settings;
use crate::snapshot::Published;
use crate::store::StoreAddress;
use crate::store::follow::{Follower, follow};
use crate::tls::{self, credentials::Credentials, upstreams::Upstreams};
use crate::upstream::Address;

/// A process whose sockets are bound and that serves nobody yet.
pub struct Prepared {
    settings: Settings,
    bound: Bound,
    admin: (SocketAddr, TcpListener),
    probes: Option<(SocketAddr, TcpListener)>,
    runtime: tokio::runtime::Runtime,
    names: Names,
    tls: Option<Arc<Credentials>>,
    upstreams: Arc<Upstreams>,
}

impl Prepared {
    /// Binds every listener, and reads its certificates.
    ///
    /// # Errors
    /// An address that is taken or not ours, or a certificate that is of no use: that is a [`SettingsError`] inside.
    ///
    /// [`SettingsError`]: crate::settings::SettingsError
    pub fn bind(settings: Settings) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()?;
        let (names, resolver) = Names::new();
        runtime.spawn(resolver);
        let tls = settings.tls.as_ref().map(Credentials::load).transpose().map_err(io::Error::other)?;
        let tls = tls.map(Arc::new);
        let upstreams = Arc::new(Upstreams::load(&settings.upstream_tls).map_err(io::Error::other)?);
        let Settings { listeners, workers, socket_mode, correlation, .. } = &settings;
        let bound = Bound::new(listeners, *workers, *socket_mode, &names, correlation, tls.as_ref())?;
        let admin = bind(settings.admin)?;
        let probes = settings.probes.map(bind).transpose()?;
        Ok(Self { settings, bound, admin, probes, runtime, names, tls, upstreams })
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
        &self.runtime
    }

    /// Reads blueprints from `store`, which may only be known once the ports are.
    #[must_use]
    pub fn with_store(mut self, store: StoreAddress) -> Self {
        self.settings.store = Some(store);
        self
    }

    /// Takes in the blueprints, those of the store and `given` ones, and starts serving.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(self, given: Vec<FileChange>) -> io::Result<Running> {
        let Self { settings, bound, admin, probes, runtime, names, tls, upstreams } = self;
        let published = Arc::new(Published::default());
        let rules = Rules { unix_under: settings.allow_unix.clone() };
        let control = Arc::new(Control::new(rules, published.clone(), names.clone()));
        let mut follower = settings.store.as_ref().map(|store| Follower::new(store, settings.resync));
        let mut changes = given;
        if let Some(follower) = &mut follower {
            let (read, problem) = follower.read_everything();
            changes.extend(read);
            control.store_problem(problem);
        }
        control.apply(&changes, Trigger::Start);
        // Sidecars call each other's inbound listeners; nobody calls the others from here.
        let edges =
            bound.gates().iter().filter(|gate| gate.role() != "inbound").map(|gate| gate.address.clone());
        let others = [admin.0].into_iter().chain(probes.as_ref().map(|probes| probes.0));
        let own = edges.chain(others.map(Address::Tcp)).collect();
        let access = if settings.access_log { AccessLog::to(io::stdout()) } else { AccessLog::off() };
        let gates = bound.gates().to_vec();
        let plane = Arc::new(Plane {
            published,
            gates: gates.clone(),
            own,
            limits: settings.limits,
            engine: settings.engine,
            carriers: settings.carriers.clone(),
            passage: settings.passage,
            proxy_protocol: settings.proxy_protocol,
            tls: upstreams.clone(),
            names,
            access,
        });
        let workers = bound.start(&plane)?;
        let retired = plane.published.clone();
        runtime.spawn(async move { retired.collect().await });
        let (reload, reloads) = mpsc::channel(8);
        let (draining, told) = watch::channel(false);
        let (stopped, over) = watch::channel(false);
        if let Some(follower) = follower {
            runtime.spawn(follow(follower, reloads, control.clone()));
        }
        if let Some(tls) = &tls {
            runtime.spawn(tls::follow::follow(tls.clone(), settings.resync));
        }
        if !settings.upstream_tls.is_empty() {
            runtime.spawn(tls::follow::follow(upstreams.clone(), settings.resync));
        }
        let token = settings.admin_token.map(Arc::from);
        let doors = workers.doors().to_vec();
        let state = Admin {
            control: control.clone(),
            gates: gates.clone(),
            doors,
            carriers: settings.carriers,
            reload: reload.clone(),
            draining: told,
            token,
            tls: tls.clone(),
            upstreams: upstreams.clone(),
        };
        let probes_at = probes.as_ref().map(|probes| probes.0);
        if let Some((_, socket)) = probes {
            runtime.spawn(admin::serve(socket, state.clone().probes(), over.clone()));
        }
        runtime.spawn(admin::serve(admin.1, state.router(), over));
        Ok(Running {
            control,
            workers,
            gates,
            admin: admin.0,
            probes: probes_at,
            reload,
            draining,
            stopped,
            runtime,
            tls,
            upstreams,
        })
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

/// A process that serves.
pub struct Running {
    control: Arc<Control>,
    workers: Workers,
    gates: Vec<Arc<Gate>>,
    admin: SocketAddr,
    probes: Option<SocketAddr>,
    reload: mpsc::Sender<ReloadRequest>,
    draining: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    tls: Option<Arc<Credentials>>,
    upstreams: Arc<Upstreams>,
}

impl Running {
    /// Begins to read all certificates again, and all authorities.
    pub fn read_certificates(&self) {
        let (tls, upstreams) = (self.tls.clone(), self.upstreams.clone());
        self.runtime.spawn_blocking(move || {
            tls.iter().for_each(|tls| tls.look());
            upstreams.look();
        });
    }

    /// What listeners show that speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Credentials>> {
        self.tls.as_ref()
    }

    /// The control side.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The listeners.
    #[must_use]
    pub fn gates(&self) -> &[Arc<Gate>] {
        &self.gates
    }

    /// Where its listeners are; those on unix sockets are left out.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.gates)
    }

    /// Where the admin listener is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where the listener with only probes and metrics is.
    #[must_use]
    pub fn probes(&self) -> Option<SocketAddr> {
        self.probes
    }

    /// The control runtime, for what belongs to neither workers nor store.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Where the workers are asked for their counts.
    #[must_use]
    pub fn doors(&self) -> &[MeterDoor] {
        self.workers.doors()
    }

    /// Reads the store now; `None` where there is none.
    #[must_use]
    pub fn reload(&self, trigger: Trigger) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.reload.blocking_send((trigger, reply)).ok()?;
        report.blocking_recv().ok()
    }

    /// Where a reload can be asked for from elsewhere.
    #[must_use]
    pub fn reload_door(&self) -> mpsc::Sender<ReloadRequest> {
        self.reload.clone()
    }

    /// Stops: not ready any more, clients are told, what is in flight is finished, and then the
    /// admin listener goes, which until then shows it all.
    pub fn stop(self) {
        self.draining.send_replace(true);
        self.workers.stop();
        self.stopped.send_replace(true);
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    }

    /// [`Running::stop`] on a thread of its own, for callers on a runtime.
    #[must_use]
    pub fn stop_in_background(self) -> JoinHandle<()> {
        std::thread::spawn(move || self.stop())
    }
}
