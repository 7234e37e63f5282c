//! A whole Overlane: bind everything that can fail, load the store, serve, stop.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use overlane_config::lineage::{FileChange, Rules};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::access::{AccessLog, Written};
use crate::admin::{self, Admin, ReloadRequest};
use crate::answers;
use crate::clock;
use crate::control::{Control, Report, Trigger};
use crate::decisions::Decisions;
use crate::hub::fleet::Fleet;
use crate::hub::tokens::HubTokens;
use crate::hub::tunnels::Tunnels;
use crate::hub::{self, Hub};
use crate::leases;
use crate::leftovers;
use crate::memory;
use crate::metrics::MeterDoor;
use crate::names::{Names, Reach};
use crate::panics;
use crate::plane::drain::{Drain, Stage};
use crate::plane::worker::{Bound, Workers};
use crate::plane::{Gate, Plane};
use crate::settings::Settings;
use crate::snapshot::Published;
use crate::status;
use crate::store::behind::{Behind, Keeper};
use crate::store::cache::{Cache, KeptText, keep};
use crate::store::directory::follow::{self as directory, Follower};
use crate::store::hub::HubStore;
use crate::store::mirror::Mirror;
use crate::store::shared::follow::{self as shared, SharedFollower};
use crate::store::shared::{Fault, Revision, Shared, verdict, write};
use crate::store::{Reached, StoreAddress};
use crate::tls::follow::{Files, Followed};
use crate::tls::{self, credentials::Credentials, upstreams::Upstreams};
use crate::tokens::keys::Tokens;
use crate::traces::Exporting;
use crate::upstream::Address;

/// How often it is looked whether an overlay has expired: requests are told at once, this is for good.
const EXPIRE: Duration = Duration::from_secs(1);
/// How long the end waits for the cache to be written.
const LAST_SAVE: Duration = Duration::from_millis(500);

/// A process whose sockets are bound and that serves nobody yet.
pub struct Prepared {
    settings: Settings,
    bound: Bound,
    admin: (SocketAddr, TcpListener),
    probes: Option<(SocketAddr, TcpListener)>,
    hub: Option<(SocketAddr, TcpListener, Arc<HubTokens>)>,
    runtime: tokio::runtime::Runtime,
    names: Names,
    tls: Option<Arc<Credentials>>,
    upstreams: Arc<Upstreams>,
    tokens: Option<Arc<Tokens>>,
    drain: Drain,
    reach: Option<Arc<dyn Reach>>,
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
        spawn(runtime.handle(), &drain, "name resolution", Box::pin(resolver));
        let tls = settings.tls.as_ref().map(Credentials::load).transpose().map_err(io::Error::other)?;
        let tls = tls.map(Arc::new);
        let upstreams = Arc::new(Upstreams::load(&settings.upstream_tls).map_err(io::Error::other)?);
        let tokens = settings.tokens.as_ref().map(Tokens::load).transpose().map_err(io::Error::other)?;
        let tokens = tokens.map(Arc::new);
        let bound = Bound::new(&settings, &names, tls.as_ref())?;
        let admin = bind(settings.admin)?;
        let probes = settings.probes.map(bind).transpose()?;
        let hub = settings.hub.clone().map(|hub| {
            let tokens = HubTokens::load(hub.clone()).map_err(io::Error::other)?;
            let (address, socket) = bind(hub.address)?;
            io::Result::Ok((address, socket, Arc::new(tokens)))
        });
        let hub = hub.transpose()?;
        Ok(Self {
            settings,
            bound,
            admin,
            probes,
            hub,
            runtime,
            names,
            tls,
            upstreams,
            tokens,
            drain,
            reach: None,
        })
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

    /// Reaches services by another way than their addresses.
    #[must_use]
    pub fn by_way_of(mut self, reach: Arc<dyn Reach>) -> Self {
        self.reach = Some(reach);
        self
    }

    /// Takes in the blueprints, those of the store and `given` ones, and starts serving.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(self, given: Vec<FileChange>) -> io::Result<Running> {
        let Self { settings, bound, admin, probes, hub, runtime, names, .. } = self;
        let Self { tls, upstreams, tokens, drain, reach, .. } = self;
        let published = Arc::new(Published::default());
        let of_services = reach.map_or_else(|| names.clone(), |reach| names.by_way_of(reach));
        let rules = Rules { unix_under: settings.allow_unix.clone() };
        let control = Arc::new(Control::new(rules, published.clone(), of_services));
        let (above, mut follower) = followed(&settings, hub.is_some()).map_err(io::Error::other)?;
        let cache = settings.cache.as_ref().zip(settings.store.as_ref());
        let cache = cache.map(|(directory, store)| Arc::new(Cache::new(directory, store)));
        take_in(given, follower.as_mut(), cache.as_deref(), &control, runtime.handle());
        let others = [admin.0].into_iter().chain(probes.as_ref().map(|probes| probes.0));
        let others = others.chain(hub.as_ref().map(|hub| hub.0));
        let behind = follower.as_ref().map(|follower| follower.behind(&control, runtime.handle()));
        let own = own_addresses(bound.gates(), others);
        let tunnels = Tunnels::new(
            settings.hub_tunnels,
            hub.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |hub| hub.0.ip()),
            published.clone(),
            own.clone(),
        );
        let (access, written) =
            settings.access_log.map_or_else(AccessLog::off, |log| AccessLog::to(io::stdout(), log));
        let gates = bound.gates().to_vec();
        let instance: Arc<str> = status::name().into();
        let decisions = Decisions::new(settings.decisions, settings.workers, instance.clone(), &gates);
        #[cfg(feature = "otlp")]
        let (traces, exporting) =
            settings.traces.map(|traces| Exporting::begin(traces, &instance, runtime.handle())).unzip();
        // Settings that ask for them were refused.
        #[cfg(not(feature = "otlp"))]
        let (traces, exporting) = (None, None::<Exporting>);
        let spans = exporting.as_ref().map(Exporting::figures);
        let plane = Arc::new(Plane {
            published,
            gates: gates.clone(),
            own,
            limits: settings.limits,
            engine: settings.engine,
            carriers: settings.carriers.clone(),
            passage: settings.passage,
            proxy_protocol: settings.proxy_protocol,
            forwarding: settings.forwarding,
            authorizer: settings.authorizer,
            tokens: tokens.clone(),
            tls: upstreams.clone(),
            names,
            access,
            decisions: decisions.clone(),
            traces,
            request_ids: settings.request_ids,
            hsts: settings.hsts.map(|time| format!("max-age={}", time.as_secs()).into()),
        });
        let workers = bound.start(&plane, &drain)?;
        let retired = plane.published.clone();
        let spawn = |what, task: Task| spawn(runtime.handle(), &drain, what, task);
        spawn("collecting old snapshots", Box::pin(async move { retired.collect().await }));
        spawn("expiring overlays", Box::pin(expire(control.clone())));
        if let Some(behind) = behind.clone() {
            let used = leases::extend_used(control.clone(), workers.doors().to_vec(), behind);
            spawn("extending what is used", Box::pin(used));
        }
        if let Some((grace, behind)) = settings.remove_expired.zip(behind.clone()) {
            let removing = leftovers::remove(control.clone(), behind, grace);
            spawn("removing what expired", Box::pin(removing));
        }
        if let Some(cache) = &cache {
            runtime.spawn(keep(cache.clone(), control.clone()));
        }
        runtime.spawn(memory::give_back());
        let (reload, reloads) = mpsc::channel(8);
        let (stopped, over) = watch::channel(false);
        if let Some(Source::Shared(follower, store)) = &follower {
            let said = verdict::say(store.clone(), follower.mirror().clone(), control.clone());
            spawn("saying in the store what is in force", Box::pin(said));
        }
        if let Some(follower) = follower {
            spawn("following the store", follower.follow(reloads, control.clone()));
        }
        let of_hub = hub.as_ref().map(|(_, _, tokens)| tokens);
        let files = files(tls.as_ref(), &upstreams, tokens.as_ref(), of_hub);
        for (what, followed) in files.each() {
            spawn(what, Box::pin(tls::follow::follow(followed, settings.resync)));
        }
        let state = Admin {
            control: control.clone(),
            gates: gates.clone(),
            doors: workers.doors().to_vec(),
            carriers: settings.carriers,
            reload: reload.clone(),
            drain: drain.clone(),
            token: settings.admin_token.map(Arc::from),
            tls: tls.clone(),
            upstreams: upstreams.clone(),
            tokens,
            files: files.clone(),
            cache: cache.clone(),
            behind: behind.clone(),
            instance,
            decisions,
            spans,
            taps: Arc::new(Semaphore::new(admin::TAPS)),
            overlay_labels: settings.overlay_labels,
        };
        if let Some(above) = above {
            spawn("answering the hub", Box::pin(answers::answer(above.clone(), state.clone())));
            spawn("reporting to the hub", Box::pin(status::report(above, state.clone())));
        }
        let probes_at = probes.as_ref().map(|probes| probes.0);
        let hub_at = hub.as_ref().map(|hub| hub.0);
        if let Some((_, socket, tokens)) = hub {
            let behind = behind.ok_or_else(|| io::Error::other("a hub needs a store to serve"))?;
            let speaks = settings.tls.as_ref().is_some_and(|tls| tls.roles.contains(&"hub"));
            let (admin, fleet) = (state.clone(), Fleet::default());
            let router = Hub { behind, tokens, tunnels, drain: drain.clone(), admin, fleet }.router();
            let serving = hub::serve(socket, tls.clone().filter(|_| speaks), router, over.clone());
            spawn("the hub", Box::pin(serving));
        }
        if let Some((_, socket)) = probes {
            let serving = admin::serve(socket, state.clone().probes(), over.clone());
            spawn("the probes listener", Box::pin(serving));
        }
        spawn("the admin listener", Box::pin(admin::serve(admin.1, state.router(), over)));
        Ok(Running {
            control,
            workers,
            gates,
            admin: admin.0,
            probes: probes_at,
            hub: hub_at,
            reload,
            drain,
            lame_duck: plane.limits.lame_duck,
            written,
            exporting,
            stopped,
            runtime,
            tls,
            files,
            cache,
        })
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

/// Runs what a process cannot do without: where it panics, the process ends (docs/decisions/0023-panics.md).
fn spawn(runtime: &Handle, drain: &Drain, what: &'static str, task: Task) {
    let (task, drain) = (runtime.spawn(task), drain.clone());
    runtime.spawn(async move {
        if task.await.is_err_and(|ended| ended.is_panic()) {
            drain.fail(what);
        }
    });
}

/// The store as it is followed, and the hub that it is, if it is one.
fn followed(settings: &Settings, for_others: bool) -> Result<(Option<Arc<HubStore>>, Option<Source>), Fault> {
    let hub = settings.store.as_ref().and_then(StoreAddress::hub);
    let hub = hub.map(|hub| Arc::new(HubStore::new(hub.clone())));
    let source = |store| match &hub {
        // One connection, for all that is asked of a hub.
        Some(hub) => Ok(Source::shared(hub.clone())),
        None => Source::of(store, settings.resync, for_others),
    };
    let source = settings.store.as_ref().map(source).transpose()?;
    Ok((hub, source))
}

/// A store that is followed.
enum Source {
    /// And where it is, and what others may know of it.
    Directory(Box<Follower>, (PathBuf, Arc<Mirror>)),
    /// And the store itself.
    Shared(SharedFollower, Arc<dyn Shared>),
}

impl Source {
    fn of(store: &StoreAddress, resync: Duration, for_others: bool) -> Result<Self, Fault> {
        Ok(match store.reach()? {
            Reached::Directory(path) => {
                let mirror = Arc::new(Mirror::counting(path.display().to_string()));
                let follower = Follower::new(path, resync);
                // Where nobody follows it through us, nothing is kept twice.
                let follower = if for_others { follower.mirrored(mirror.clone()) } else { follower };
                Self::Directory(Box::new(follower), (path.to_owned(), mirror))
            }
            Reached::Shared(store) => Self::shared(store),
        })
    }

    fn shared(store: Arc<dyn Shared>) -> Self {
        Self::Shared(SharedFollower::new(store.clone()), store)
    }

    /// The state of the store that is known, where it has any.
    fn revision(&self) -> Option<Revision> {
        match self {
            Self::Directory(_, (_, mirror)) => mirror.revision(),
            Self::Shared(follower, _) => follower.revision().cloned(),
        }
    }

    /// The store as it is served to others.
    fn behind(&self, control: &Arc<Control>, runtime: &Handle) -> Behind {
        let (keeper, mirror) = match self {
            Self::Directory(_, told) => {
                let (path, mirror) = told.clone();
                (Keeper::Directory(path), mirror)
            }
            Self::Shared(follower, store) => (Keeper::Shared(store.clone()), follower.mirror().clone()),
        };
        let followed = write::Followed { mirror, control: control.clone() };
        Behind::new(keeper, followed, runtime.clone())
    }

    fn remember(&mut self, lists: Vec<Vec<KeptText>>) -> Vec<Vec<FileChange>> {
        match self {
            Self::Directory(follower, _) => follower.remember(lists),
            Self::Shared(follower, _) => follower.remember(lists),
        }
    }

    /// Reads the whole store; what is different from what is known, and why it cannot be read.
    fn read_everything(&mut self, runtime: &Handle) -> (Vec<FileChange>, Option<String>) {
        match self {
            Self::Directory(follower, _) => follower.read_everything(),
            Self::Shared(follower, _) => runtime.block_on(follower.read_everything()),
        }
    }

    fn follow(self, reloads: mpsc::Receiver<ReloadRequest>, control: Arc<Control>) -> Task {
        match self {
            Self::Directory(follower, _) => Box::pin(directory::follow(*follower, reloads, control)),
            Self::Shared(follower, _) => Box::pin(shared::follow(follower, reloads, control)),
        }
    }
}

/// Takes in the blueprints, those of the store and `given` ones.
fn take_in(
    given: Vec<FileChange>,
    mut follower: Option<&mut Source>,
    cache: Option<&Cache>,
    control: &Control,
    runtime: &Handle,
) {
    let mut changes = given;
    if let Some(follower) = &mut follower {
        if let Some(cache) = cache {
            take_kept(cache, follower, control);
        }
        let (read, problem) = follower.read_everything(runtime);
        changes.extend(read);
        control.store_problem(problem);
    }
    control.apply(&changes, Trigger::Start);
    control.at_revision(follower.and_then(|follower| follower.revision()));
}

/// Addresses that no request may be sent to. Sidecars call each other's inbound listeners; nobody calls the
/// others from here.
fn own_addresses(gates: &[Arc<Gate>], others: impl Iterator<Item = SocketAddr>) -> Vec<Address> {
    let edges = gates.iter().filter(|gate| gate.role() != "inbound").map(|gate| gate.address.clone());
    edges.chain(others.map(Address::Tcp)).collect()
}

/// What is read from files that may change.
fn files(
    tls: Option<&Arc<Credentials>>,
    upstreams: &Arc<Upstreams>,
    tokens: Option<&Arc<Tokens>>,
    of_hub: Option<&Arc<HubTokens>>,
) -> Files {
    let shared = |what, followed: Arc<dyn Followed>| (what, followed);
    let tls = tls.map(|tls| shared("following certificates", tls.clone()));
    let upstreams = shared("following authorities", upstreams.clone());
    let tokens = tokens.map(|tokens| shared("following keys of tokens", tokens.clone()));
    let of_hub = of_hub.map(|tokens| shared("following the hub's tokens", tokens.clone()));
    let all = [tls, Some(upstreams), tokens, of_hub];
    // Without files there is nothing to follow.
    Files::new(all.into_iter().flatten().filter(|(_, followed)| !followed.files().is_empty()))
}

/// Begins with what was kept of the store when it was last read.
fn take_kept(cache: &Cache, follower: &mut Source, control: &Control) {
    match cache.load() {
        Ok(None) => {}
        Ok(Some(kept)) => {
            control.from_cache(kept.saved);
            for changes in follower.remember(kept.lists) {
                control.apply(&changes, Trigger::Cache);
            }
        }
        Err(error) => {
            let path = cache.path();
            tracing::warn!(%error, path = %path.display(), "the cache is not used, and will be written anew");
        }
    }
}

/// Ends what expires, a second later at most. Never ends.
async fn expire(control: Arc<Control>) {
    loop {
        control.expire(clock::now());
        tokio::time::sleep(EXPIRE).await;
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
    hub: Option<SocketAddr>,
    reload: mpsc::Sender<ReloadRequest>,
    drain: Drain,
    lame_duck: Duration,
    written: Written,
    exporting: Option<Exporting>,
    stopped: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    tls: Option<Arc<Credentials>>,
    files: Files,
    cache: Option<Arc<Cache>>,
}

impl Running {
    /// All that is read from files that may change.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Waits until it is told to stop.
    pub fn until_told(&self) {
        self.runtime.block_on(self.drain.reached(Stage::Leaving));
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

    /// Where the hub is.
    #[must_use]
    pub fn hub(&self) -> Option<SocketAddr> {
        self.hub
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

    /// The end of the process.
    #[must_use]
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Stops: not ready any more, and where it was told to leave new connections are served for some time;
    /// then what is in flight is finished, and at last the admin listener goes, which until then shows it all.
    /// False where it ends since something failed.
    pub fn stop(self) -> bool {
        if self.drain.stage() == Stage::Leaving && !self.lame_duck.is_zero() {
            let left = self.lame_duck;
            tracing::info!("stopping: not ready any more, new connections are served for {left:?}");
            let drained = self.drain.reached(Stage::Draining);
            // A second signal is sooner.
            let _ = self.runtime.block_on(async { timeout(left, drained).await });
        }
        tracing::info!("stopping: finishing what is in flight; another signal closes it");
        self.workers.stop();
        self.runtime.block_on(self.written.done());
        if let Some(exporting) = self.exporting {
            self.runtime.block_on(exporting.end());
        }
        if let Some(cache) = self.cache.clone() {
            // What changed within the last moments; a disk that hangs is not waited for.
            let control = self.control.clone();
            let saved = self.runtime.spawn_blocking(move || cache.save(&control));
            let _ = self.runtime.block_on(async { timeout(LAST_SAVE, saved).await });
        }
        self.stopped.send_replace(true);
        // Whoever waits for a name server is not waited for.
        self.runtime.shutdown_background();
        !self.drain.has_failed()
    }

    /// [`Running::stop`] on a thread of its own, for callers on a runtime.
    #[must_use]
    pub fn stop_in_background(self) -> JoinHandle<bool> {
        std::thread::spawn(move || self.stop())
    }
}
