//! Settings: flags over `OVERLANE_*` over a file over defaults, and what is refused at start.
//!
//! One way: `flags` are put over the `file`, key by key; what comes of that is checked part by part, each in a file of its own,
//! and is [`Settings`], which the rest of the process takes. What the keys, flags, variables, types, defaults and meanings are is in
//! `docs/settings.md`, which tests hold to the schema, the command line and what is used (`reference/settings.rs`).

mod file;
mod flags;
mod gateway;
mod hub;
mod keys;
mod limits;
mod listeners;
#[cfg(test)]
mod tests;
mod tls;
mod upstream_tls;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use overlane_config::carrier::Carriers;

#[cfg(test)]
pub(crate) use file::complaint;
pub use flags::RunArgs;
pub use keys::carriers_of;

use crate::access::AccessSettings;
use crate::correlation::CorrelationSettings;
use crate::decisions;
use crate::hub::tokens::HubSettings;
use crate::hub::tunnels::TunnelPorts;
use crate::metrics;
use crate::plane::authorizer::Authorizer;
use crate::plane::forwarded::Forwarding;
use crate::plane::passage::PassageSettings;
use crate::plane::{EngineChoice, Limits, ListenerSettings, RedirectSettings};
use crate::store::StoreAddress;
use crate::store::hub::Access;
use crate::tls::TlsSettings;
use crate::tls::upstreams::UpstreamTls;
use crate::tokens::keys::TokenSettings;
use crate::traces::TraceSettings;
use crate::upstream::Address;
use file::File;
use listeners::Asked;
use value::{Told, duration, or_default, value};

/// Where a store is looked for when nobody says.
pub const DEFAULT_STORE: &str = "./environments";
/// Where the gateway listens when no listener is asked for.
pub const DEFAULT_GATEWAY: &str = "127.0.0.1:7480";
/// Where the admin listener is when nobody says.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:7481";
/// Whoever may write to a socket's file can send requests: its user and its group, as those of a sidecar's pod.
const DEFAULT_SOCKET_MODE: u32 = 0o660;
/// How often the store is checked even if no event came.
const DEFAULT_RESYNC: Duration = Duration::from_secs(5);
/// So long after it expired an overlay is removed from a hub's store when nobody says.
const DEFAULT_REMOVAL: Duration = Duration::from_secs(24 * 3600);

/// Everything that a process runs on, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the blueprints are; `None` where they are given by the caller.
    pub store: Option<StoreAddress>,
    /// The directory in which what was last good of the store is kept, if it is.
    pub cache: Option<PathBuf>,
    /// The listeners.
    pub listeners: Vec<ListenerSettings>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The listener with only probes and metrics.
    pub probes: Option<SocketAddr>,
    /// The token for what changes state.
    pub admin_token: Option<String>,
    /// How the store is served to others, if it is.
    pub hub: Option<HubSettings>,
    /// Where the ports of tunnels are at the hub, if it offers any.
    pub hub_tunnels: Option<TunnelPorts>,
    /// Worker threads.
    pub workers: usize,
    /// How requests are logged, if they are.
    pub access_log: Option<AccessSettings>,
    /// Whether each request at a gateway has an id.
    pub request_ids: bool,
    /// How many decisions are kept to be looked at.
    pub decisions: usize,
    /// How many overlays have a label value of their own in metrics.
    pub overlay_labels: usize,
    /// Where spans are sent, and which, if any are.
    pub traces: Option<TraceSettings>,
    /// The listener that sends clients to the gateway, which speaks TLS.
    pub redirect: Option<RedirectSettings>,
    /// For how long clients of the gateway are to come in TLS only.
    pub hsts: Option<Duration>,
    /// Directories below which `unix:` urls may be.
    pub allow_unix: Vec<String>,
    /// The permissions of listeners' unix sockets.
    pub socket_mode: u32,
    /// How often the store is checked even if no event came.
    pub resync: Duration,
    /// So long after they expired overlays are removed from the store, if they are.
    pub remove_expired: Option<Duration>,
    /// Deadlines and limits of the data plane.
    pub limits: Limits,
    /// Which engine carries exchanges.
    pub engine: EngineChoice,
    /// By what keys are restored, and for how long.
    pub correlation: CorrelationSettings,
    /// Where keys are read and written.
    pub carriers: Arc<Carriers>,
    /// From which networks connections to gateway and inbound begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// Who is believed at the gateway in what it says of its clients, and how that is said.
    pub forwarding: Forwarding,
    /// Which tokens the gateway takes, if any.
    pub tokens: Option<TokenSettings>,
    /// Who is asked what a request at the gateway may choose, where nothing else says.
    pub authorizer: Option<Authorizer>,
    /// What outbound lets through that is no request.
    pub passage: PassageSettings,
    /// How listeners speak TLS, if any does.
    pub tls: Option<TlsSettings>,
    /// How upstreams are spoken to in TLS, where that is not as the system has it.
    pub upstream_tls: Vec<UpstreamTls>,
}

/// A setting that cannot be, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SettingsError {}

pub(crate) fn error(message: impl Into<String>, hint: impl Into<String>) -> SettingsError {
    SettingsError { message: message.into(), hint: Some(hint.into()) }
}

impl Settings {
    /// Merges flags, environment and file, and checks the whole.
    ///
    /// # Errors
    /// A file that cannot be read, a value that cannot be, or settings that contradict each other.
    pub fn merge(flags: RunArgs, store: Option<StoreAddress>) -> Result<Self, SettingsError> {
        let file = flags.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let access_log = AccessSettings::merge(flags.access_log, file.access_log.clone())?;
        let traces = TraceSettings::merge(flags.traces.clone(), file.traces.clone())?;
        let mut file = flags.over(file)?;
        let store = value("store", store.map(Told::Read).or(file.store.take()))?;
        let (listeners, passage) = listening(&mut file)?;
        let (hub, hub_tunnels) = hub::checked(file.hub.take().unwrap_or_default())?;
        let hsts = file.tls.as_mut().and_then(|tls| tls.hsts.take());
        let tls = file.tls.take().map(|tls| tls.checked(&listeners, hub.is_some())).transpose()?;
        listeners::check_identities(&listeners, tls.as_ref())?;
        let redirect = gateway::redirect(file.redirect.take(), file.https_port, &listeners, tls.as_ref())?;
        let mut addresses =
            listeners.iter().map(|one| &one.address).chain(redirect.iter().map(|one| &one.address));
        let limits = limits::checked(&file, addresses.all(Address::is_local))?;
        let admin_token = file.admin_token.filter(|token| !token.is_empty());
        let engine = file.engine.unwrap_or_default();
        let store = or_default("store", store, DEFAULT_STORE)?;
        Ok(Self {
            remove_expired: remove_expired(
                file.remove_expired.as_deref(),
                &store,
                hub.as_ref().is_some_and(HubSettings::is_written_to),
            )?,
            store: Some(store),
            cache: file.cache,
            admin: listeners::admin(file.admin, admin_token.as_deref())?,
            probes: file.probes,
            admin_token,
            hub,
            hub_tunnels,
            workers: workers(file.workers)?,
            access_log,
            request_ids: file.request_ids.unwrap_or(false),
            decisions: decisions(file.decisions)?,
            overlay_labels: file.overlay_labels.unwrap_or(metrics::OVERLAY_LABELS),
            traces,
            redirect,
            hsts: tls::hsts(hsts.as_deref(), tls.as_ref())?,
            allow_unix: file.allow_unix.iter().map(|dir| absolute(dir)).collect::<Result<_, _>>()?,
            socket_mode: socket_mode(file.socket_mode)?,
            resync: duration("resync", file.resync.as_deref(), DEFAULT_RESYNC)?,
            limits,
            engine,
            correlation: keys::correlation(&file.correlation)?,
            carriers: keys::carriers(&file.carriers, &file.keep_for)?.into(),
            proxy_protocol: gateway::balancers("proxyProtocol", &file.proxy_protocol)?,
            forwarding: gateway::forwarding(&file.trusted_hops, file.forwarded, &listeners)?,
            tokens: gateway::tokens(file.tokens, &listeners)?,
            authorizer: gateway::authorizer(file.authorizer, &listeners)?,
            passage,
            tls,
            upstream_tls: upstream_tls::checked(file.upstream_tls, engine)?,
            listeners,
        })
    }

    /// The same, where the store is a hub that is spoken to so.
    #[must_use]
    pub fn with_access(mut self, access: &Access) -> Self {
        self.store = self.store.map(|store| store.with_access(access));
        self
    }

    /// Settings for a process whose blueprints and listeners are given by the caller, on free ports.
    #[must_use]
    pub fn in_process(listeners: Vec<ListenerSettings>) -> Self {
        Self {
            store: None,
            cache: None,
            listeners,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            probes: None,
            admin_token: None,
            hub: None,
            hub_tunnels: None,
            workers: 1,
            access_log: None,
            request_ids: false,
            decisions: decisions::KEPT,
            overlay_labels: metrics::OVERLAY_LABELS,
            traces: None,
            redirect: None,
            hsts: None,
            allow_unix: Vec::new(),
            socket_mode: DEFAULT_SOCKET_MODE,
            resync: DEFAULT_RESYNC,
            remove_expired: None,
            limits: Limits::default(),
            engine: EngineChoice::default(),
            correlation: CorrelationSettings::default(),
            carriers: Arc::default(),
            proxy_protocol: Vec::new(),
            forwarding: Forwarding::default(),
            tokens: None,
            authorizer: None,
            passage: PassageSettings::default(),
            tls: None,
            upstream_tls: Vec::new(),
        }
    }
}

/// The listeners that are asked for, and what outbound lets through.
fn listening(file: &mut File) -> Result<(Vec<ListenerSettings>, PassageSettings), SettingsError> {
    let asked = Asked {
        baseline: value("baseline", file.baseline.take())?,
        environment: value("environment", file.environment.take())?,
        service: value("service", file.service.take())?,
        app: value("app", file.app.take())?,
        gateway: file.gateway.take(),
        outbound: file.outbound.take(),
        inbound: file.inbound.take(),
        trust: value("trust", file.trust.take())?,
    };
    let serves = file.hub.as_ref().is_some_and(|hub| hub.address.is_some());
    let mut listeners = asked.listeners(serves)?;
    let passage = PassageSettings {
        connect_ports: file.connect_ports.take(),
        intercept: file.intercept.unwrap_or(false),
        mark: file.mark,
    };
    listeners::check_passage(&passage, &listeners)?;
    if passage.intercept {
        listeners.extend(listeners::beside_ipv4(&listeners));
    }
    Ok((listeners, passage))
}

/// How many workers there are; one per core by default.
fn workers(told: Option<usize>) -> Result<usize, SettingsError> {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match told.unwrap_or_else(cores) {
        workers @ 1..=1024 => Ok(workers),
        workers => Err(error(format!("`workers` is {workers}"), "between 1 and 1024")),
    }
}

/// When overlays that expired are removed from the store. By default only a hub does so that writes for others anyway; the files
/// of a directory are somebody's, and a hub's store is that hub's.
fn remove_expired(
    text: Option<&str>,
    store: &StoreAddress,
    writes_for_others: bool,
) -> Result<Option<Duration>, SettingsError> {
    let by_engine = store.is_kept_by_an_engine();
    match text {
        None => Ok((writes_for_others && by_engine).then_some(DEFAULT_REMOVAL)),
        Some("never") => Ok(None),
        Some(_) if !by_engine => Err(error(
            format!("`removeExpired` with the store {store}"),
            "only from an etcd or a cluster are overlays removed: leave it out, or write `never`",
        )),
        text => duration("removeExpired", text, DEFAULT_REMOVAL).map(Some),
    }
}

fn absolute(dir: &Path) -> Result<String, SettingsError> {
    match dir.is_absolute() {
        true => Ok(dir.display().to_string()),
        false => {
            Err(error(format!("`allowUnix: {}` is not absolute", dir.display()), "name a directory from `/`"))
        }
    }
}

fn decisions(told: Option<usize>) -> Result<usize, SettingsError> {
    match told.unwrap_or(decisions::KEPT) {
        kept @ ..=decisions::MOST_KEPT => Ok(kept),
        _ => Err(error(
            "`decisions` is more than 1000000",
            "each takes half a kilobyte of memory; 10000 are kept by default, and none with 0",
        )),
    }
}

fn socket_mode(text: Option<String>) -> Result<u32, SettingsError> {
    let Some(text) = text else { return Ok(DEFAULT_SOCKET_MODE) };
    let read = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
    read.ok_or_else(|| error(format!("`socketMode` is `{text}`"), "three octal digits, like \"0660\""))
}
