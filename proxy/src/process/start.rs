//! How a process starts, in the order in which its parts do.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::lineage::{FileChange, Rules};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

use super::source::{Source, followed, take_in};
use super::{Addresses, Parts, Prepared, Running, Sockets, Tasks};
use crate::access::{AccessLog, Written};
use crate::admin::{self, Admin, ReloadRequest};
use crate::answers;
use crate::clock;
use crate::control::Control;
use crate::decisions::Decisions;
use crate::hub::fleet::Fleet;
use crate::hub::tunnels::Tunnels;
use crate::hub::{self, Hub};
use crate::leases;
use crate::leftovers;
use crate::memory;
use crate::plane::{Gate, Plane};
use crate::settings::Settings;
use crate::snapshot::Published;
use crate::status;
use crate::store::cache::{Cache, keep};
use crate::store::hub::HubStore;
use crate::store::shared::verdict;
use crate::tls::credentials::Credentials;
use crate::tls::follow::{self, Files, Followed};
use crate::traces::{Exporting, Traces};
use crate::upstream::Address;

/// How often it is looked whether an overlay has expired: requests are told at once, this is for good.
const EXPIRE: Duration = Duration::from_secs(1);

impl Prepared {
    /// Takes in the blueprints, those of the store and `given` ones, and starts serving.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(self, given: Vec<FileChange>) -> io::Result<Running> {
        let Self { bound, parts } = self;
        let runtime = parts.runtime.handle().clone();
        let published = Arc::new(Published::default());
        let control = parts.control(&published);
        let serves = parts.sockets.hub.is_some();
        let (above, mut source) = followed(&parts.settings, serves).map_err(io::Error::other)?;
        let cache = parts.cache();
        take_in(given, source.as_mut(), cache.as_deref(), &control, &runtime);

        let at = parts.sockets.addresses();
        let own = own_addresses(bound.gates(), at);
        let mut telling = Telling::begin(&parts.settings, bound.gates(), &runtime);
        let plane = parts.plane(published.clone(), bound.gates().to_vec(), own.clone(), &mut telling);
        let plane = Arc::new(plane);
        let workers = bound.start(&plane, &parts.drain)?;

        let (reload, reloads) = mpsc::channel(8);
        let behind = source.as_ref().map(|source| source.behind(&control, &runtime));
        let admin = Admin {
            control,
            gates: plane.gates.clone(),
            doors: workers.doors().to_vec(),
            carriers: parts.settings.carriers.clone(),
            reload,
            drain: parts.drain.clone(),
            token: parts.settings.admin_token.as_deref().map(Arc::from),
            tls: parts.tls.clone(),
            upstreams: parts.upstreams.clone(),
            tokens: parts.tokens.clone(),
            files: parts.files(),
            cache,
            behind,
            instance: telling.instance,
            decisions: telling.decisions,
            spans: telling.exporting.as_ref().map(Exporting::figures),
            taps: Arc::new(Semaphore::new(admin::TAPS)),
            overlay_labels: parts.settings.overlay_labels,
        };
        let tasks = Tasks { runtime, drain: parts.drain.clone() };
        tasks.keep_up(&admin, published.clone(), &parts.settings);
        tasks.follow(source, reloads, &admin.control);
        tasks.follow_files(&admin.files, parts.settings.resync);
        tasks.speak_to(above, &admin);

        let (stopped, over) = watch::channel(false);
        let (tunnels, hub_tls) = (parts.tunnels(published, own), parts.hub_tls());
        tasks.listen(parts.sockets, &admin, tunnels, hub_tls, &over)?;
        Ok(Running {
            admin,
            at,
            workers,
            lame_duck: plane.limits.lame_duck,
            written: telling.written,
            exporting: telling.exporting,
            stopped,
            runtime: parts.runtime,
        })
    }
}

/// Addresses that no request may be sent to. Sidecars call each other's inbound listeners; nobody calls the
/// others from here.
fn own_addresses(gates: &[Arc<Gate>], at: Addresses) -> Vec<Address> {
    let edges = gates.iter().filter(|gate| gate.role() != "inbound").map(|gate| gate.address.clone());
    edges.chain(at.all().map(Address::Tcp)).collect()
}

impl Parts {
    fn control(&self, published: &Arc<Published>) -> Arc<Control> {
        let (names, reach) = (&self.names, self.reach.clone());
        let names = reach.map_or_else(|| names.clone(), |reach| names.by_way_of(reach));
        let rules = Rules { unix_under: self.settings.allow_unix.clone() };
        Arc::new(Control::new(rules, published.clone(), names))
    }

    fn cache(&self) -> Option<Arc<Cache>> {
        let (directory, store) = self.settings.cache.as_ref().zip(self.settings.store.as_ref())?;
        Some(Arc::new(Cache::new(directory, store)))
    }

    fn plane(
        &self,
        published: Arc<Published>,
        gates: Vec<Arc<Gate>>,
        own: Vec<Address>,
        telling: &mut Telling,
    ) -> Plane {
        let settings = &self.settings;
        Plane {
            published,
            gates,
            own,
            limits: settings.limits.clone(),
            engine: settings.engine,
            carriers: settings.carriers.clone(),
            passage: settings.passage.clone(),
            proxy_protocol: settings.proxy_protocol.clone(),
            forwarding: settings.forwarding.clone(),
            authorizer: settings.authorizer.clone(),
            tokens: self.tokens.clone(),
            tls: self.upstreams.clone(),
            names: self.names.clone(),
            access: telling.access.clone(),
            decisions: telling.decisions.clone(),
            traces: telling.traces.take(),
            request_ids: settings.request_ids,
            hsts: settings.hsts.map(|time| format!("max-age={}", time.as_secs()).into()),
        }
    }

    /// What is read from files that may change.
    fn files(&self) -> Files {
        let shared = |what, followed: Arc<dyn Followed>| (what, followed);
        let tls = self.tls.as_ref().map(|tls| shared("following certificates", tls.clone()));
        let upstreams = shared("following authorities", self.upstreams.clone());
        let tokens = self.tokens.as_ref().map(|tokens| shared("following keys of tokens", tokens.clone()));
        let of_hub = self.sockets.hub.as_ref();
        let of_hub = of_hub.map(|(_, _, tokens)| shared("following the hub's tokens", tokens.clone()));
        let all = [tls, Some(upstreams), tokens, of_hub];
        // Without files there is nothing to follow.
        Files::new(all.into_iter().flatten().filter(|(_, followed)| !followed.files().is_empty()))
    }

    fn tunnels(&self, published: Arc<Published>, own: Vec<Address>) -> Arc<Tunnels> {
        let at = self.sockets.hub.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |hub| hub.0.ip());
        Tunnels::new(self.settings.hub_tunnels.clone(), at, published, own)
    }

    /// What the hub shows, where it speaks TLS.
    fn hub_tls(&self) -> Option<Arc<Credentials>> {
        let speaks = self.settings.tls.as_ref().is_some_and(|tls| tls.roles.contains(&"hub"));
        self.tls.clone().filter(|_| speaks)
    }
}

/// What a process tells of its requests: lines, decisions, spans.
struct Telling {
    /// What it is called meanwhile.
    instance: Arc<str>,
    access: AccessLog,
    written: Written,
    decisions: Arc<Decisions>,
    traces: Option<Traces>,
    exporting: Option<Exporting>,
}

impl Telling {
    fn begin(settings: &Settings, gates: &[Arc<Gate>], runtime: &Handle) -> Self {
        let (access, written) =
            settings.access_log.map_or_else(AccessLog::off, |log| AccessLog::to(io::stdout(), log));
        let instance: Arc<str> = status::name().into();
        let decisions = Decisions::new(settings.decisions, settings.workers, instance.clone(), gates);
        let (traces, exporting) = spans(settings, &instance, runtime);
        Self { instance, access, written, decisions, traces, exporting }
    }
}

#[cfg(feature = "otlp")]
fn spans(settings: &Settings, instance: &str, runtime: &Handle) -> (Option<Traces>, Option<Exporting>) {
    settings.traces.clone().map(|traces| Exporting::begin(traces, instance, runtime)).unzip()
}

/// Settings that ask for them were refused.
#[cfg(not(feature = "otlp"))]
fn spans(_: &Settings, _: &str, _: &Handle) -> (Option<Traces>, Option<Exporting>) {
    (None, None)
}

impl Tasks {
    /// What has to be done again and again.
    fn keep_up(&self, admin: &Admin, published: Arc<Published>, settings: &Settings) {
        self.spawn("collecting old snapshots", async move { published.collect().await });
        self.spawn("expiring overlays", expire(admin.control.clone()));
        if let Some(behind) = &admin.behind {
            let used = leases::extend_used(admin.control.clone(), admin.doors.clone(), behind.clone());
            self.spawn("extending what is used", used);
        }
        if let Some((grace, behind)) = settings.remove_expired.zip(admin.behind.clone()) {
            self.spawn("removing what expired", leftovers::remove(admin.control.clone(), behind, grace));
        }
        if let Some(cache) = &admin.cache {
            self.runtime.spawn(keep(cache.clone(), admin.control.clone()));
        }
        self.runtime.spawn(memory::give_back());
    }

    /// Follows the store, where there is one.
    fn follow(&self, source: Option<Source>, reloads: mpsc::Receiver<ReloadRequest>, control: &Arc<Control>) {
        let Some(source) = source else { return };
        if let Source::Shared(follower, store) = &source {
            let said = verdict::say(store.clone(), follower.mirror().clone(), control.clone());
            self.spawn("saying in the store what is in force", said);
        }
        self.spawn("following the store", source.follow(reloads, control.clone()));
    }

    fn follow_files(&self, files: &Files, resync: Duration) {
        for (what, followed) in files.each() {
            self.spawn(what, follow::follow(followed, resync));
        }
    }

    /// Tells the hub that is followed, where one is, what it wants to know.
    fn speak_to(&self, hub: Option<Arc<HubStore>>, admin: &Admin) {
        let Some(hub) = hub else { return };
        self.spawn("answering the hub", answers::answer(hub.clone(), admin.clone()));
        self.spawn("reporting to the hub", status::report(hub, admin.clone()));
    }

    /// Opens what the control side listens on.
    fn listen(
        &self,
        sockets: Sockets,
        admin: &Admin,
        tunnels: Arc<Tunnels>,
        hub_tls: Option<Arc<Credentials>>,
        over: &watch::Receiver<bool>,
    ) -> io::Result<()> {
        if let Some((_, socket, tokens)) = sockets.hub {
            let behind = admin.behind.clone();
            let behind = behind.ok_or_else(|| io::Error::other("a hub needs a store to serve"))?;
            let (drain, fleet) = (self.drain.clone(), Fleet::default());
            let router = Hub { behind, tokens, tunnels, drain, admin: admin.clone(), fleet }.router();
            self.spawn("the hub", hub::serve(socket, hub_tls, router, over.clone()));
        }
        if let Some((_, socket)) = sockets.probes {
            let serving = admin::serve(socket, admin.clone().probes(), over.clone());
            self.spawn("the probes listener", serving);
        }
        let (_, socket) = sockets.admin;
        self.spawn("the admin listener", admin::serve(socket, admin.clone().router(), over.clone()));
        Ok(())
    }
}

/// Ends what expires, a second later at most. Never ends.
async fn expire(control: Arc<Control>) {
    loop {
        control.expire(clock::now());
        tokio::time::sleep(EXPIRE).await;
    }
}
