//! Settings: flags over `OVERLANE_*` over a file over defaults, and what is refused at start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use overlane_config::carrier::{CarrierError, Carriers, HostPattern};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Listener, Role};
use overlane_config::time::parse_duration;
use overlane_config::url::Url;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::access::{AccessFlag, AccessSettings};
use crate::correlation::CorrelationSettings;
use crate::decisions;
use crate::hub::tokens::{HubSettings, Right};
use crate::hub::tunnels::TunnelPorts;
use crate::metrics;
use crate::plane::authorizer::Authorizer;
use crate::plane::forwarded::{Dialect, Forwarding};
use crate::plane::passage::PassageSettings;
use crate::plane::trust::Trust;
use crate::plane::{EngineChoice, Limits, ListenerSettings, RedirectSettings, role_name};
use crate::store::StoreAddress;
use crate::store::hub::Access;
use crate::tls::certificates::Pair;
use crate::tls::upstreams::UpstreamTls;
use crate::tls::{ClientSettings, TlsSettings};
use crate::tokens::keys::TokenSettings;
use crate::traces::{TraceArgs, TraceSettings, TracesFile};
use crate::upstream::Address;

/// Where a store is looked for when nobody says.
pub const DEFAULT_STORE: &str = "./environments";
/// Where the gateway listens when no listener is asked for.
pub const DEFAULT_GATEWAY: &str = "127.0.0.1:7480";
/// Where the admin listener is when nobody says.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:7481";
/// Whoever may write to a socket's file can send requests: its user and its group, as those of a sidecar's pod.
const DEFAULT_SOCKET_MODE: u32 = 0o660;
/// For how long new connections are served after SIGTERM where others can reach a listener: so long it takes
/// until Kubernetes, or a load balancer, sends no more of them. With `drain` it fits into Kubernetes' own 30 s.
const LAME_DUCK: Duration = Duration::from_secs(5);
/// How often the store is checked even if no event came.
const DEFAULT_RESYNC: Duration = Duration::from_secs(5);
/// So long after it expired an overlay is removed from a hub's store when nobody says.
const DEFAULT_REMOVAL: Duration = Duration::from_secs(24 * 3600);
/// Ages of traces are counted in 32 bits of milliseconds.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// The flags of `overlane run`; each has an environment variable.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Settings file (YAML); flags and OVERLANE_* win over it
    #[arg(long, value_name = "FILE", env = "OVERLANE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Keep what was last good of the store in this directory, and start with it while the store cannot be read
    #[arg(long, value_name = "DIR", env = "OVERLANE_CACHE")]
    pub cache: Option<PathBuf>,
    /// The baseline that the listeners serve; the only one in the store by default
    #[arg(long, value_name = "ID", env = "OVERLANE_BASELINE")]
    pub baseline: Option<EnvironmentId>,
    /// Listen as ingress gateway; 127.0.0.1:7480 where no listener and no hub is asked for
    #[arg(long, value_name = "ADDR", env = "OVERLANE_GATEWAY")]
    pub gateway: Option<Address>,
    /// Listen for a service's own calls, as its HTTP proxy
    #[arg(long, value_name = "ADDR", env = "OVERLANE_OUTBOUND")]
    pub outbound: Option<Address>,
    /// Listen before a service; needs --app and --service
    #[arg(long, value_name = "ADDR", env = "OVERLANE_INBOUND")]
    pub inbound: Option<Address>,
    /// Connections come to --outbound that were meant for others (nftables, iptables)
    #[arg(
        long,
        env = "OVERLANE_INTERCEPT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub intercept: Option<bool>,
    /// The mark on connections to upstreams, so that they are not intercepted; needs CAP_NET_ADMIN
    #[arg(long, value_name = "N", env = "OVERLANE_MARK")]
    pub mark: Option<u32>,
    /// Where the application behind --inbound listens
    #[arg(long, value_name = "URL", env = "OVERLANE_APP")]
    pub app: Option<Url>,
    /// The service that this sidecar stands before
    #[arg(long, value_name = "NAME", env = "OVERLANE_SERVICE")]
    pub service: Option<ServiceName>,
    /// The environment of that service; the baseline by default
    #[arg(long, value_name = "ID", env = "OVERLANE_ENVIRONMENT")]
    pub environment: Option<EnvironmentId>,
    /// Whose overlay headers mean something: any, none, or networks (10.0.0.0/8,…) and identities (identity:NAME)
    #[arg(long, value_name = "any|none|CIDR,…", env = "OVERLANE_TRUST")]
    pub trust: Option<Trust>,
    /// Speak TLS with this certificate (PEM, intermediates after it) as gateway and inbound; needs --tls-key
    #[arg(long, value_name = "FILE", env = "OVERLANE_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", env = "OVERLANE_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Demand certificates of clients that these authorities issued (PEM)
    #[arg(long, value_name = "FILE", env = "OVERLANE_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,
    /// Connections from these networks begin with a header of the PROXY protocol (v1 or v2) at gateway and inbound
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', env = "OVERLANE_PROXY_PROTOCOL")]
    pub proxy_protocol: Vec<String>,
    /// Load balancers before the gateway, which are believed in what they say of their clients (X-Forwarded-For)
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', env = "OVERLANE_TRUSTED_HOPS")]
    pub trusted_hops: Vec<String>,
    /// How they, and the gateway, say for whom they ask; x-forwarded by default
    #[arg(long, value_enum, env = "OVERLANE_FORWARDED")]
    pub forwarded: Option<Dialect>,
    /// A key that verifies overlay tokens at the gateway (repeatable); needs --token-audience
    #[arg(long = "token-key", value_name = "FILE", env = "OVERLANE_TOKEN_KEY")]
    pub token_keys: Vec<PathBuf>,
    /// The audience that tokens have to name
    #[arg(long, value_name = "NAME", env = "OVERLANE_TOKEN_AUDIENCE")]
    pub token_audience: Option<String>,
    /// The admin listener
    #[arg(long, value_name = "ADDR", env = "OVERLANE_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// A second listener with only probes and metrics, which may be reachable from outside
    #[arg(long, value_name = "ADDR", env = "OVERLANE_PROBES")]
    pub probes: Option<SocketAddr>,
    /// Serve the store to other proxies and to the command line (`hub:URL`), here
    #[arg(long, value_name = "ADDR", env = "OVERLANE_HUB")]
    pub hub: Option<SocketAddr>,
    /// The tokens of those who may read from the hub and write to it, one on a line
    #[arg(long, value_name = "FILE", env = "OVERLANE_HUB_TOKENS")]
    pub hub_tokens: Option<PathBuf>,
    /// The tokens of those who may only read from the hub
    #[arg(long, value_name = "FILE", env = "OVERLANE_HUB_READ_TOKENS")]
    pub hub_read_tokens: Option<PathBuf>,
    /// What may be done at the hub without a token; by default nothing, or everything on loopback where there are none
    #[arg(long, value_enum, env = "OVERLANE_HUB_OPEN")]
    pub hub_open: Option<Right>,
    /// Let machines that nothing can reach tunnel services to this hub: the host by which others reach their ports here, and which ports, such as hub.example.com:20000-20999
    #[arg(long, value_name = "HOST[:PORTS]", env = "OVERLANE_HUB_TUNNELS")]
    pub hub_tunnels: Option<TunnelPorts>,
    /// Remove overlays from an etcd or a cluster so long after they expired, or never; 24h by default at a hub, and never elsewhere
    #[arg(long, value_name = "AFTER|never", env = "OVERLANE_REMOVE_EXPIRED")]
    pub remove_expired: Option<String>,
    /// The bearer token for everything on the admin listener that changes state
    #[arg(long, value_name = "TOKEN", env = "OVERLANE_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
    /// Worker threads; one per core by default
    #[arg(long, value_name = "N", env = "OVERLANE_WORKERS")]
    pub workers: Option<usize>,
    /// What carries requests: our own engine where it can, or Pingora for everything
    #[arg(long, value_enum, env = "OVERLANE_ENGINE")]
    pub engine: Option<EngineChoice>,
    /// Write one line per request to standard output: as JSON, or in the common or combined log format
    #[arg(
        long,
        env = "OVERLANE_ACCESS_LOG",
        value_name = "json|common|combined",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub access_log: Option<AccessFlag>,
    /// Listen in the clear, and send clients to the gateway, which speaks TLS
    #[arg(long, value_name = "ADDR", env = "OVERLANE_REDIRECT")]
    pub redirect: Option<Address>,
    /// Give each request at the gateway an id (`x-request-id`), and say it in the answer
    #[arg(
        long,
        env = "OVERLANE_REQUEST_IDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub request_ids: Option<bool>,
    /// How many decisions are kept to be looked at (`tap`, `why`); 10000 by default, 0 for none
    #[arg(long, value_name = "N", env = "OVERLANE_DECISIONS")]
    pub decisions: Option<usize>,
    /// How many overlays have a label of their own in metrics; 1000 by default, 0 for none. Beyond them it is `_other`
    #[arg(long, value_name = "N", env = "OVERLANE_OVERLAY_LABELS")]
    pub overlay_labels: Option<usize>,
    /// Where spans are sent, and which.
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Who may connect where a listener is a unix socket, as chmod has it; 0660 by default
    #[arg(long, value_name = "MODE", env = "OVERLANE_SOCKET_MODE")]
    pub socket_mode: Option<String>,
    /// Allow unix: urls below this directory in blueprints (repeatable)
    #[arg(long, value_name = "DIR", env = "OVERLANE_ALLOW_UNIX")]
    pub allow_unix: Vec<PathBuf>,
}

/// The settings file. Its keys are the flags' names in camelCase, and `timeouts` besides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    store: Option<String>,
    cache: Option<PathBuf>,
    baseline: Option<String>,
    gateway: Option<Address>,
    outbound: Option<Address>,
    inbound: Option<Address>,
    app: Option<String>,
    service: Option<String>,
    environment: Option<String>,
    trust: Option<String>,
    admin: Option<SocketAddr>,
    probes: Option<SocketAddr>,
    admin_token: Option<String>,
    hub: Option<HubFile>,
    workers: Option<usize>,
    engine: Option<EngineChoice>,
    access_log: Option<serde_yaml::Value>,
    request_ids: Option<bool>,
    decisions: Option<usize>,
    overlay_labels: Option<usize>,
    traces: Option<TracesFile>,
    redirect: Option<Address>,
    https_port: Option<u16>,
    allow_unix: Vec<PathBuf>,
    socket_mode: Option<String>,
    resync: Option<String>,
    remove_expired: Option<String>,
    timeouts: Timeouts,
    min_rates: MinRates,
    correlation: CorrelationFile,
    carriers: CarriersFile,
    keep_for: Vec<String>,
    proxy_protocol: Vec<String>,
    trusted_hops: Vec<String>,
    forwarded: Option<Dialect>,
    tokens: TokensFile,
    authorizer: Option<AuthorizerFile>,
    connect_ports: Option<Vec<u16>>,
    intercept: Option<bool>,
    mark: Option<u32>,
    max_head_bytes: Option<usize>,
    max_body_bytes: Option<u64>,
    max_connections_per_client: Option<u32>,
    max_connections: Option<usize>,
    max_requests: Option<u32>,
    max_upstream_requests: Option<u32>,
    max_held: Option<u32>,
    tls: Option<TlsFile>,
    upstream_tls: Vec<UpstreamTlsFile>,
}

/// What the reader says of a text that is no settings file; for the test of the schema.
#[cfg(test)]
pub(crate) fn complaint(text: &str) -> String {
    let file: Result<File, _> = serde_yaml::from_str(text);
    match file.map(|file| file.access_log.map(|access| AccessSettings::merge(None, Some(access)))) {
        Ok(Some(Err(why))) => why.message,
        Ok(_) => String::new(),
        Err(why) => why.to_string(),
    }
}

/// See [`UpstreamTls`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UpstreamTlsFile {
    hosts: Vec<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
}

/// See [`HubSettings`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct HubFile {
    address: Option<SocketAddr>,
    tokens: Option<PathBuf>,
    read_tokens: Option<PathBuf>,
    open: Option<Right>,
    tunnels: Option<String>,
}

/// See [`TlsSettings`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct TlsFile {
    certificates: Vec<PairFile>,
    client_ca: Option<PathBuf>,
    clients: Option<Clients>,
    /// A text or, since nobody writes the quotes, a number.
    min_version: Option<serde_yaml::Value>,
    listeners: Option<Vec<Speaker>>,
    hsts: Option<String>,
}

/// See [`Pair`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairFile {
    certificate: PathBuf,
    key: PathBuf,
}

/// See [`TokenSettings`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokensFile {
    keys: Vec<PathBuf>,
    audience: Option<String>,
}

/// See [`Authorizer`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthorizerFile {
    url: String,
    timeout: Option<String>,
    #[serde(default)]
    copy_headers: Vec<String>,
    keep: Option<String>,
    at_once: Option<u32>,
}

/// Whether clients have to show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Clients {
    Required,
    Optional,
}

/// A listener that can speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    Gateway,
    Outbound,
    Inbound,
    Hub,
}

impl Speaker {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Hub => "hub",
        }
    }
}

/// What a key is restored by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RestoredBy {
    Trace,
    RequestId,
}

/// See [`CorrelationSettings`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CorrelationFile {
    by: Option<Vec<RestoredBy>>,
    traces: Option<usize>,
    ttl: Option<String>,
}

/// See [`Carriers`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CarriersFile {
    read: Option<Vec<String>>,
    write: Option<Vec<String>>,
}

/// Deadlines; see [`Limits`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Timeouts {
    head: Option<String>,
    request: Option<String>,
    idle: Option<String>,
    body: Option<String>,
    write: Option<String>,
    connect: Option<String>,
    upstream_read: Option<String>,
    upstream_write: Option<String>,
    upstream_idle: Option<String>,
    grace: Option<String>,
    lame_duck: Option<String>,
    drain: Option<String>,
}

/// Bytes per second; see [`Limits`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MinRates {
    body: Option<u32>,
    write: Option<u32>,
}

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
        let file = flags.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let store = match (store, &file.store) {
            (Some(store), _) => store,
            (None, Some(text)) => parse("store", text)?,
            (None, None) => parse("store", DEFAULT_STORE)?,
        };
        let trust =
            flags.trust.map(Ok).or(file.trust.as_deref().map(|text| parse("trust", text))).transpose()?;
        let mut limits = limits(&file)?;
        let correlation = correlation(&file.correlation)?;
        let carriers = carriers(&file)?.into();
        let resync = duration("resync", file.resync.as_ref(), DEFAULT_RESYNC)?;
        let of_flags =
            TlsFlags { certificate: flags.tls_cert, key: flags.tls_key, client_ca: flags.tls_client_ca };
        let tls = of_flags.over(file.tls.as_ref())?;
        let named = |flag, key, text: &Option<String>| value(flag, key, text.as_deref());
        let asked = Asked {
            baseline: named(flags.baseline, "baseline", &file.baseline)?,
            environment: value(flags.environment, "environment", file.environment.as_deref())?,
            service: value(flags.service, "service", file.service.as_deref())?,
            app: value(flags.app, "app", file.app.as_deref())?,
            gateway: flags.gateway.or(file.gateway),
            outbound: flags.outbound.or(file.outbound),
            inbound: flags.inbound.or(file.inbound),
            trust,
        };
        let admin_token = flags.admin_token.or(file.admin_token).filter(|token| !token.is_empty());
        let admin = flags.admin.or(file.admin).map_or_else(|| parse("admin", DEFAULT_ADMIN), Ok)?;
        if !admin.ip().is_loopback() && admin_token.is_none() {
            return Err(error(
                format!("the admin listener at {admin} can be reached from other machines and has no token"),
                "set OVERLANE_ADMIN_TOKEN, or give probes and metrics a listener of their own with `--probes`",
            ));
        }
        let workers = flags.workers.or(file.workers).unwrap_or_else(default_workers);
        if workers == 0 || workers > 1024 {
            return Err(error(format!("`workers` is {workers}"), "between 1 and 1024"));
        }
        let allow_unix = if flags.allow_unix.is_empty() { file.allow_unix } else { flags.allow_unix };
        let absolute = |dir: PathBuf| match dir.is_absolute() {
            true => Ok(dir.display().to_string()),
            false => Err(error(
                format!("`allowUnix: {}` is not absolute", dir.display()),
                "name a directory from `/`",
            )),
        };
        let told = if flags.proxy_protocol.is_empty() { file.proxy_protocol } else { flags.proxy_protocol };
        let proxy_protocol =
            told.iter().map(|one| balancer("proxyProtocol", one)).collect::<Result<_, _>>()?;
        let told = if flags.trusted_hops.is_empty() { file.trusted_hops } else { flags.trusted_hops };
        let hops = told.iter().map(|one| balancer("trustedHops", one)).collect::<Result<_, _>>()?;
        let forwarding = Forwarding { hops, dialect: flags.forwarded.or(file.forwarded).unwrap_or_default() };
        let engine = flags.engine.or(file.engine).unwrap_or_default();
        let upstream_tls = upstream_tls(file.upstream_tls, engine)?;
        let serves = flags.hub.or(file.hub.as_ref().and_then(|hub| hub.address)).is_some();
        let mut listeners = asked.listeners(serves)?;
        let passage = PassageSettings {
            connect_ports: file.connect_ports,
            intercept: flags.intercept.or(file.intercept).unwrap_or(false),
            mark: flags.mark.or(file.mark),
        };
        check_passage(&passage, &listeners)?;
        if passage.intercept {
            listeners.extend(beside_ipv4(&listeners));
        }
        let authorizer = file.authorizer.map(AuthorizerFile::read).transpose()?;
        let tokens = tokens(flags.token_keys, flags.token_audience, file.tokens)?;
        let gateway = listeners.iter().any(|one| matches!(one.listener.role, Role::Gateway));
        if !forwarding.hops.is_empty() && !gateway {
            return Err(error(
                "`trustedHops` without a gateway",
                "they stand before a gateway: say where it listens with `--gateway`, or leave them out",
            ));
        }
        if tokens.is_some() && !gateway {
            return Err(error(
                "`tokens` without a gateway",
                "a gateway takes them: say where it listens with `--gateway`, or leave them out",
            ));
        }
        if authorizer.is_some() && !gateway {
            return Err(error(
                "`authorizer` without a gateway",
                "it is asked by a gateway: say where it listens with `--gateway`, or leave it out",
            ));
        }
        let told = file.hub.unwrap_or_default();
        let hub_tunnels = tunnels(flags.hub_tunnels, told.tunnels.as_deref())?;
        let hub = hub(flags.hub, flags.hub_tokens, flags.hub_read_tokens, flags.hub_open, told)?;
        if hub_tunnels.is_some() && hub.is_none() {
            return Err(error(
                "tunnels without a hub",
                "say where the hub listens with `--hub`, or leave them out",
            ));
        }
        let told = flags.remove_expired.or(file.remove_expired);
        let remove_expired = remove_expired(told.as_ref(), &store, hub.is_some())?;
        let tls = tls.map(|tls| tls.checked(&listeners, hub.is_some())).transpose()?;
        let redirect = redirect(flags.redirect.or(file.redirect), file.https_port, &listeners, tls.as_ref())?;
        let hsts = hsts(file.tls.as_ref().and_then(|tls| tls.hsts.as_ref()), tls.as_ref())?;
        let mut addresses =
            listeners.iter().map(|one| &one.address).chain(redirect.iter().map(|one| &one.address));
        let local = addresses.all(Address::is_local);
        limits.lame_duck = lame_duck(file.timeouts.lame_duck.as_ref(), local)?;
        check_identities(&listeners, tls.as_ref())?;
        Ok(Self {
            store: Some(store),
            cache: flags.cache.or(file.cache),
            listeners,
            admin,
            probes: flags.probes.or(file.probes),
            admin_token,
            hub,
            hub_tunnels,
            workers,
            access_log: AccessSettings::merge(flags.access_log, file.access_log)?,
            request_ids: flags.request_ids.or(file.request_ids).unwrap_or(false),
            decisions: decisions(flags.decisions.or(file.decisions))?,
            overlay_labels: flags.overlay_labels.or(file.overlay_labels).unwrap_or(metrics::OVERLAY_LABELS),
            traces: TraceSettings::merge(flags.traces, file.traces)?,
            redirect,
            hsts,
            allow_unix: allow_unix.into_iter().map(absolute).collect::<Result<_, _>>()?,
            socket_mode: socket_mode(flags.socket_mode.or(file.socket_mode))?,
            resync,
            remove_expired,
            limits,
            engine,
            correlation,
            carriers,
            proxy_protocol,
            forwarding,
            tokens,
            authorizer,
            passage,
            tls,
            upstream_tls,
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

fn decisions(told: Option<usize>) -> Result<usize, SettingsError> {
    match told.unwrap_or(decisions::KEPT) {
        kept @ ..=decisions::MOST_KEPT => Ok(kept),
        _ => Err(error(
            "`decisions` is more than 1000000",
            "each takes half a kilobyte of memory; 10000 are kept by default, and none with 0",
        )),
    }
}

/// What is intercepted of IPv6 comes to the loopback address of IPv6, where there is one.
fn beside_ipv4(listeners: &[ListenerSettings]) -> Option<ListenerSettings> {
    let outbound = listeners.iter().find(|one| matches!(one.listener.role, Role::Outbound { .. }))?;
    let (own, loopback) = (outbound.address.tcp()?, Ipv6Addr::LOCALHOST);
    let there = own.ip() == Ipv4Addr::LOCALHOST && std::net::TcpListener::bind((loopback, 0)).is_ok();
    let beside = SocketAddr::from((loopback, own.port()));
    there.then(|| ListenerSettings { address: beside.into(), ..outbound.clone() })
}

/// The network of load balancers that a setting names.
fn balancer(key: &str, text: &str) -> Result<IpNet, SettingsError> {
    let text = text.trim();
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
        error(
            format!("`{key}: {text}` is no network"),
            "name the networks of the load balancers: `10.0.0.0/8`, `192.0.2.7`",
        )
    })
}

fn upstream_tls(file: Vec<UpstreamTlsFile>, engine: EngineChoice) -> Result<Vec<UpstreamTls>, SettingsError> {
    if engine == EngineChoice::Pingora && !file.is_empty() {
        return Err(error(
            "`upstreamTls` with `engine: pingora`",
            "Pingora's engine verifies by the system's certificates only: use `engine: auto`",
        ));
    }
    file.into_iter().enumerate().map(|(number, one)| one.read(&format!("upstreamTls[{number}]"))).collect()
}

impl UpstreamTlsFile {
    fn read(self, at: &str) -> Result<UpstreamTls, SettingsError> {
        let host = |text: &String| {
            let wrong = |why| error(format!("`{at}.hosts`: {why}"), "name the hosts of the services' urls");
            text.parse().map_err(wrong)
        };
        let hosts: Vec<_> = self.hosts.iter().map(host).collect::<Result<_, _>>()?;
        if hosts.is_empty() {
            return Err(error(format!("`{at}.hosts` is empty"), "name the hosts of the services' urls"));
        }
        let pair = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(error(
                    format!("`{at}` has only one of `certificate` and `key`"),
                    "give both, or none",
                ));
            }
        };
        let name = |name: String| {
            ServerName::try_from(name.clone()).map_err(|_| {
                error(
                    format!("`{at}.serverName: {name:?}` is no name that a certificate can have"),
                    "give a host name or an address, or leave it out: then it is the url's host",
                )
            })
        };
        Ok(UpstreamTls { hosts, ca: self.ca, pair, server_name: self.server_name.map(name).transpose()? })
    }
}

fn check_passage(passage: &PassageSettings, listeners: &[ListenerSettings]) -> Result<(), SettingsError> {
    let outbound = |one: &ListenerSettings| matches!(one.listener.role, Role::Outbound { .. });
    if passage.intercept && !listeners.iter().any(|one| outbound(one) && one.address.tcp().is_some()) {
        return Err(error(
            "`--intercept` without `--outbound` at an address of TCP",
            "intercepted connections come to the outbound listener: say where it listens",
        ));
    }
    let Some(mark) = passage.mark else { return Ok(()) };
    let tried = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .and_then(|socket| socket.set_mark(mark));
    tried.map_err(|why| {
        error(
            format!("connections cannot be marked with {mark}: {why}"),
            "give the process CAP_NET_ADMIN, or leave `mark` out and exempt it by its user",
        )
    })
}

impl AuthorizerFile {
    fn read(self) -> Result<Authorizer, SettingsError> {
        let by_default: Authorizer = self.url.parse().map_err(|why| {
            error(
                format!("`authorizer.url`: {why}"),
                "name what answers 2xx where it grants: `http://127.0.0.1:9091/api/verify`",
            )
        })?;
        let header = |text: &String| {
            text.parse().map_err(|why| {
                error(
                    format!("`authorizer.copyHeaders`: {why}"),
                    "name fields of requests that it has to see",
                )
            })
        };
        let keep = match self.keep.as_deref() {
            // The only time that may be left out.
            Some("0" | "0s") => Duration::ZERO,
            _ => duration("authorizer.keep", self.keep.as_ref(), by_default.keep)?,
        };
        Ok(Authorizer {
            timeout: duration("authorizer.timeout", self.timeout.as_ref(), by_default.timeout)?,
            copy_headers: self.copy_headers.iter().map(header).collect::<Result<_, _>>()?,
            keep,
            at_once: at_least_one("authorizer.atOnce", self.at_once, by_default.at_once)?,
            ..by_default
        })
    }
}

fn tokens(
    keys: Vec<PathBuf>,
    audience: Option<String>,
    file: TokensFile,
) -> Result<Option<TokenSettings>, SettingsError> {
    let keys = if keys.is_empty() { file.keys } else { keys };
    match (keys.is_empty(), audience.or(file.audience).filter(|audience| !audience.is_empty())) {
        (true, None) => Ok(None),
        (false, Some(audience)) => Ok(Some(TokenSettings { keys, audience })),
        (false, None) => Err(error(
            "keys of tokens without an audience",
            "name this installation, as tokens do: `--token-audience staging`, or `tokens.audience`",
        )),
        (true, Some(_)) => Err(error(
            "an audience of tokens without a key",
            "name what verifies them: `--token-key FILE.pub`, or `tokens.keys`",
        )),
    }
}

fn socket_mode(text: Option<String>) -> Result<u32, SettingsError> {
    let Some(text) = text else { return Ok(DEFAULT_SOCKET_MODE) };
    let read = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
    read.ok_or_else(|| error(format!("`socketMode` is `{text}`"), "three octal digits, like \"0660\""))
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What was asked for about listeners, before it is known whether it fits together.
struct Asked {
    baseline: Option<EnvironmentId>,
    environment: Option<EnvironmentId>,
    service: Option<ServiceName>,
    app: Option<Url>,
    gateway: Option<Address>,
    outbound: Option<Address>,
    inbound: Option<Address>,
    trust: Option<Trust>,
}

impl Asked {
    /// Those that were asked for; where none was and the process does not serve its store to others either, a gateway.
    fn listeners(self, serves: bool) -> Result<Vec<ListenerSettings>, SettingsError> {
        let none = !serves && self.gateway.is_none() && self.outbound.is_none() && self.inbound.is_none();
        let gateway = if none { Some(parse("gateway", DEFAULT_GATEWAY)?) } else { self.gateway.clone() };
        let mut listeners = Vec::new();
        if let Some(address) = gateway {
            let trust = self.edge_trust("gateway", &address)?;
            listeners.push(self.listener(address, Role::Gateway, None, trust));
        }
        if let Some(address) = self.outbound.clone() {
            let role =
                Role::Outbound { service: self.service.clone(), environment: self.environment.clone() };
            let trust = self.edge_trust("outbound", &address)?;
            listeners.push(self.listener(address, role, None, trust));
        }
        match (self.inbound.clone(), &self.app, &self.service) {
            (Some(address), Some(app), Some(service)) => {
                let role = Role::Inbound { service: service.clone(), environment: self.environment.clone() };
                // Sidecars trust their peers unless told otherwise.
                listeners.push(self.listener(
                    address,
                    role,
                    Some(app.clone()),
                    self.trust.clone().unwrap_or(Trust::Any),
                ));
            }
            (Some(_), None, _) => {
                return Err(error(
                    "`--inbound` without `--app`",
                    "say where the application listens: `--app http://127.0.0.1:8080`",
                ));
            }
            (Some(_), _, None) => {
                return Err(error(
                    "`--inbound` without `--service`",
                    "say which service it is: `--service payments-api`",
                ));
            }
            (None, Some(_), _) => {
                return Err(error(
                    "`--app` without `--inbound`",
                    "say where requests for it arrive: `--inbound 0.0.0.0:8080`",
                ));
            }
            (None, None, _) => {}
        }
        Ok(listeners)
    }

    fn listener(&self, address: Address, role: Role, app: Option<Url>, trust: Trust) -> ListenerSettings {
        ListenerSettings { address, listener: Listener { role, baseline: self.baseline.clone() }, app, trust }
    }

    /// On loopback everybody is trusted; elsewhere somebody has to say who is.
    fn edge_trust(&self, name: &str, address: &Address) -> Result<Trust, SettingsError> {
        match &self.trust {
            Some(trust) => Ok(trust.clone()),
            None if address.is_local() => Ok(Trust::Any),
            None => Err(error(
                format!(
                    "the {name} listener at {address} can be reached from other machines, and nobody said whose overlay headers to trust"
                ),
                "add `--trust any`, `--trust none` or `--trust 10.0.0.0/8,…`",
            )),
        }
    }
}

/// What flags say of TLS.
struct TlsFlags {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

/// What was asked for about TLS, before it is known which listeners there are.
struct AskedTls {
    certificates: Vec<Pair>,
    clients: Option<ClientSettings>,
    only_13: bool,
    /// `None` where nobody says which.
    speakers: Option<Vec<Speaker>>,
}

impl TlsFlags {
    /// Merges them over the file. A certificate given by flags takes the place of all in the file.
    fn over(self, file: Option<&TlsFile>) -> Result<Option<AskedTls>, SettingsError> {
        let asked = file.is_some() || self.client_ca.is_some();
        let TlsFile { certificates, client_ca, clients, min_version, listeners, .. } =
            file.cloned().unwrap_or_default();
        let certificates: Vec<_> = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => vec![Pair { certificate, key }],
            (None, None) => certificates
                .into_iter()
                .map(|PairFile { certificate, key }| Pair { certificate, key })
                .collect(),
            (Some(_), None) => {
                return Err(error("`--tls-cert` without `--tls-key`", "name the certificate's key"));
            }
            (None, Some(_)) => {
                return Err(error("`--tls-key` without `--tls-cert`", "name the key's certificate"));
            }
        };
        if certificates.is_empty() {
            let hint = "give `--tls-cert` and `--tls-key`, or `tls.certificates` in the settings file";
            return if asked { Err(error("TLS without a certificate", hint)) } else { Ok(None) };
        }
        if let Some(twice) = certificates.iter().enumerate().find_map(|(at, pair)| {
            certificates[..at].iter().any(|other| other.certificate == pair.certificate).then_some(pair)
        }) {
            let path = twice.certificate.display();
            return Err(error(
                format!("`tls.certificates` names {path} twice"),
                "name each certificate once",
            ));
        }
        let clients = match (self.client_ca.or(client_ca), clients) {
            (Some(ca), clients) => Some(ClientSettings { ca, required: clients != Some(Clients::Optional) }),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(error(
                    "`tls.clients` without `tls.clientCa`",
                    "name the authorities that issue their certificates",
                ));
            }
        };
        Ok(Some(AskedTls { certificates, clients, only_13: only_13(min_version)?, speakers: listeners }))
    }
}

/// Whether TLS 1.2 is refused.
fn only_13(min_version: Option<serde_yaml::Value>) -> Result<bool, SettingsError> {
    let text = match min_version {
        None => return Ok(false),
        Some(serde_yaml::Value::Number(number)) => number.to_string(),
        Some(serde_yaml::Value::String(text)) => text,
        Some(_) => String::new(),
    };
    match &*text {
        "1.2" => Ok(false),
        "1.3" => Ok(true),
        _ => Err(error(
            format!("`tls.minVersion` is `{text}`"),
            "\"1.2\" or \"1.3\"; older ones are not spoken",
        )),
    }
}

impl AskedTls {
    /// The settings, where they fit to the listeners. Unless somebody says which, those that others call
    /// speak TLS; the outbound listener is for the application beside it.
    fn checked(self, listeners: &[ListenerSettings], hub: bool) -> Result<TlsSettings, SettingsError> {
        let known = |speaker: &Speaker| {
            hub && *speaker == Speaker::Hub
                || listeners.iter().any(|listener| role_name(&listener.listener.role) == speaker.as_str())
        };
        let speakers = self.speakers.unwrap_or_else(|| {
            [Speaker::Gateway, Speaker::Inbound, Speaker::Hub].into_iter().filter(known).collect()
        });
        if let Some(absent) = speakers.iter().find(|speaker| !known(speaker)) {
            let absent = absent.as_str();
            return Err(error(
                format!("`tls.listeners` names `{absent}`, and there is no such listener"),
                format!("give it an address (`--{absent}`), or leave it out"),
            ));
        }
        if speakers.is_empty() {
            return Err(error(
                "there are certificates, and no listener that speaks TLS",
                "name it: `tls: {listeners: [outbound]}` in the settings file",
            ));
        }
        Ok(TlsSettings {
            certificates: self.certificates,
            clients: self.clients,
            only_13: self.only_13,
            roles: speakers.into_iter().map(Speaker::as_str).collect(),
        })
    }
}

/// Where the ports of tunnels are, if any are offered.
fn tunnels(flag: Option<TunnelPorts>, file: Option<&str>) -> Result<Option<TunnelPorts>, SettingsError> {
    let parse = |text: &str| {
        text.parse().map_err(|why: String| {
            error(format!("`hub.tunnels`: {why}"), "such as `hub.example.com:20000-20999`")
        })
    };
    flag.map_or_else(|| file.map(parse).transpose(), |flag| Ok(Some(flag)))
}

/// How the store is served to others, if it is.
fn hub(
    address: Option<SocketAddr>,
    tokens: Option<PathBuf>,
    read_tokens: Option<PathBuf>,
    open: Option<Right>,
    file: HubFile,
) -> Result<Option<HubSettings>, SettingsError> {
    let (tokens, read_tokens) = (tokens.or(file.tokens), read_tokens.or(file.read_tokens));
    let open = open.or(file.open);
    match address.or(file.address) {
        Some(address) => HubSettings::checked(address, tokens, read_tokens, open).map(Some),
        None if tokens.is_none() && read_tokens.is_none() && open.is_none() => Ok(None),
        None => Err(error(
            "tokens of a hub without a hub",
            "say where it listens with `--hub`; the token that is shown to another one is `--server-token-file`",
        )),
    }
}

fn gateway_speaks(tls: Option<&TlsSettings>) -> bool {
    tls.is_some_and(|tls| tls.roles.contains(&Speaker::Gateway.as_str()))
}

/// The listener that sends clients to the gateway, if there is to be one.
fn redirect(
    address: Option<Address>,
    port: Option<u16>,
    listeners: &[ListenerSettings],
    tls: Option<&TlsSettings>,
) -> Result<Option<RedirectSettings>, SettingsError> {
    let Some(address) = address else {
        return match port {
            None => Ok(None),
            Some(_) => Err(error(
                "`httpsPort` without `redirect`",
                "say where clients arrive in the clear: `--redirect 0.0.0.0:80`",
            )),
        };
    };
    if !gateway_speaks(tls) {
        return Err(error(
            "`--redirect` without a gateway that speaks TLS",
            "give the gateway a certificate: `--tls-cert` and `--tls-key`",
        ));
    }
    let gateway = listeners.iter().find(|one| one.listener.role == Role::Gateway);
    let known = port.or(gateway.and_then(|gateway| gateway.address.tcp()).map(|_| 1));
    if known.is_none_or(|port| port == 0) {
        let hint = "`httpsPort: 443` in the settings file";
        return Err(error("nobody knows at which port clients reach the gateway", hint));
    }
    Ok(Some(RedirectSettings { address, port }))
}

/// For how long clients of the gateway are to come in TLS only.
fn hsts(text: Option<&String>, tls: Option<&TlsSettings>) -> Result<Option<Duration>, SettingsError> {
    let Some(text) = text else { return Ok(None) };
    if !gateway_speaks(tls) {
        let hint = "name `gateway` in `tls.listeners`, or leave it out";
        return Err(error("`tls.hsts` without a gateway that speaks TLS", hint));
    }
    // None at all takes back what was said (RFC 6797, section 6.1.1).
    let time = parse_duration(text);
    time.map(Some).map_err(|why| error(format!("`tls.hsts: {text}`: {why}"), "write it as `365d`"))
}

/// Identities are trusted only where somebody verifies them.
fn check_identities(listeners: &[ListenerSettings], tls: Option<&TlsSettings>) -> Result<(), SettingsError> {
    let verified = tls.is_some_and(|tls| tls.clients.is_some());
    if !verified && listeners.iter().any(|listener| listener.trust.asks_for_identity()) {
        return Err(error(
            "`--trust` names identities, and no listener asks clients for certificates",
            "give `--tls-client-ca` with `--tls-cert` and `--tls-key`",
        ));
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<File, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|why| {
        error(format!("cannot read the settings file {}: {why}", path.display()), "check the path")
    })?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_yaml::from_str(&text)
        .map_err(|why| error(format!("{}: {why}", path.display()), "docs/settings.md lists the settings"))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, SettingsError> {
    text.parse().map_err(|why: T::Err| SettingsError { message: format!("`{key}`: {why}"), hint: None })
}

fn value<T: std::str::FromStr<Err: std::fmt::Display>>(
    flag: Option<T>,
    key: &str,
    text: Option<&str>,
) -> Result<Option<T>, SettingsError> {
    flag.map(Ok).or(text.map(|text| parse(key, text))).transpose()
}

fn duration(key: &str, text: Option<&String>, default: Duration) -> Result<Duration, SettingsError> {
    let Some(text) = text else { return Ok(default) };
    match parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(error(format!("`{key}` is zero"), "every deadline needs a length, such as `10s`")),
        Err(why) => Err(error(format!("`{key}: {text}`: {why}"), "write it as `10s`, `1m30s` or `500ms`")),
    }
}

/// When overlays that expired are removed from the store. By default only a hub does so, which writes for others anyway; the files
/// of a directory are somebody's, and a hub's store is that hub's.
fn remove_expired(
    text: Option<&String>,
    store: &StoreAddress,
    serves: bool,
) -> Result<Option<Duration>, SettingsError> {
    let by_engine = store.is_kept_by_an_engine();
    match text {
        None => Ok((serves && by_engine).then_some(DEFAULT_REMOVAL)),
        Some(text) if text == "never" => Ok(None),
        Some(_) if !by_engine => Err(error(
            format!("`removeExpired` with the store {store}"),
            "only from an etcd or a cluster are overlays removed: leave it out, or write `never`",
        )),
        Some(_) => duration("removeExpired", text, DEFAULT_REMOVAL).map(Some),
    }
}

/// The carriers of a settings file, or the default ones.
///
/// # Errors
/// A file that cannot be read, or a carrier that cannot be.
pub fn carriers_of(file: Option<&Path>) -> Result<Carriers, SettingsError> {
    carriers(&file.map(read_file).transpose()?.unwrap_or_default())
}

fn carriers(file: &File) -> Result<Carriers, SettingsError> {
    let CarriersFile { read, write } = &file.carriers;
    let mut carriers = Carriers::parse(read.as_deref(), write.as_deref()).map_err(|wrong| {
        let CarrierError { place, message, hint } = wrong;
        error(format!("`carriers.{place}`: {message}"), hint)
    })?;
    let hosts = file.keep_for.iter().enumerate();
    let hosts = hosts.map(|(number, text)| {
        text.parse::<HostPattern>().map_err(|why| {
            error(format!("`keepFor[{number}]`: {why}"), "name hosts that are trusted with overlay keys")
        })
    });
    carriers.keep_for = hosts.collect::<Result<_, _>>()?;
    Ok(carriers)
}

fn correlation(file: &CorrelationFile) -> Result<CorrelationSettings, SettingsError> {
    let default = CorrelationSettings::default();
    let by = |what| file.by.as_ref().map(|by| by.contains(&what));
    let traces = file.traces.unwrap_or(default.traces);
    if !(1..=1 << 24).contains(&traces) {
        return Err(error(format!("`correlation.traces` is {traces}"), "between 1 and 16777216"));
    }
    let ttl = duration("correlation.ttl", file.ttl.as_ref(), default.ttl)?;
    if ttl > MAX_TTL {
        return Err(error("`correlation.ttl` is longer than 7 days", "at most `7d`"));
    }
    Ok(CorrelationSettings {
        by_trace: by(RestoredBy::Trace).unwrap_or(default.by_trace),
        by_request_id: by(RestoredBy::RequestId).unwrap_or(default.by_request_id),
        traces,
        ttl,
    })
}

/// For how long new connections are served after SIGTERM: nobody has to learn of it where only this machine can
/// reach the listeners, which are `local` then.
fn lame_duck(text: Option<&String>, local: bool) -> Result<Duration, SettingsError> {
    match text.map(String::as_str) {
        None if !local => Ok(LAME_DUCK),
        // The only time that may be left out.
        None | Some("0" | "0s") => Ok(Duration::ZERO),
        Some(_) => duration("timeouts.lameDuck", text, LAME_DUCK),
    }
}

fn at_least_one(key: &str, told: Option<u32>, default: u32) -> Result<u32, SettingsError> {
    match told.unwrap_or(default) {
        0 => Err(error(format!("`{key}` is 0"), "at least 1")),
        most => Ok(most),
    }
}

fn limits(file: &File) -> Result<Limits, SettingsError> {
    let default = Limits::default();
    let timeouts = &file.timeouts;
    let head_bytes = file.max_head_bytes.unwrap_or(default.head_bytes);
    if !(1024..=1024 * 1024).contains(&head_bytes) {
        return Err(error(format!("`maxHeadBytes` is {head_bytes}"), "between 1024 and 1048576"));
    }
    let connections = file.max_connections.unwrap_or(default.connections);
    if connections == 0 {
        return Err(error("`maxConnections` is 0", "at least 1"));
    }
    Ok(Limits {
        head: duration("timeouts.head", timeouts.head.as_ref(), default.head)?,
        idle: duration("timeouts.idle", timeouts.idle.as_ref(), default.idle)?,
        body: duration("timeouts.body", timeouts.body.as_ref(), default.body)?,
        body_rate: file.min_rates.body.unwrap_or(default.body_rate),
        write: duration("timeouts.write", timeouts.write.as_ref(), default.write)?,
        write_rate: file.min_rates.write.unwrap_or(default.write_rate),
        connect: duration("timeouts.connect", timeouts.connect.as_ref(), default.connect)?,
        upstream_read: duration(
            "timeouts.upstreamRead",
            timeouts.upstream_read.as_ref(),
            default.upstream_read,
        )?,
        upstream_write: duration(
            "timeouts.upstreamWrite",
            timeouts.upstream_write.as_ref(),
            default.upstream_write,
        )?,
        upstream_idle: duration(
            "timeouts.upstreamIdle",
            timeouts.upstream_idle.as_ref(),
            default.upstream_idle,
        )?,
        grace: duration("timeouts.grace", timeouts.grace.as_ref(), default.grace)?,
        lame_duck: default.lame_duck,
        drain: duration("timeouts.drain", timeouts.drain.as_ref(), default.drain)?,
        head_bytes,
        body_bytes: file.max_body_bytes,
        request: timeouts
            .request
            .as_ref()
            .map(|text| duration("timeouts.request", Some(text), Duration::ZERO))
            .transpose()?,
        client_connections: file
            .max_connections_per_client
            .map(|most| at_least_one("maxConnectionsPerClient", Some(most), most))
            .transpose()?,
        connections,
        requests: at_least_one("maxRequests", file.max_requests, default.requests)?,
        upstream_requests: at_least_one(
            "maxUpstreamRequests",
            file.max_upstream_requests,
            default.upstream_requests,
        )?,
        held: at_least_one("maxHeld", file.max_held, default.held)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn merge(flags: RunArgs) -> Result<Settings, SettingsError> {
        Settings::merge(flags, None)
    }

    #[test]
    fn who_only_serves_its_store_to_others_opens_no_gateway() {
        let hub = Some(([127, 0, 0, 1], 0).into());
        assert!(merge(RunArgs { hub, ..RunArgs::default() }).expect("settings").listeners.is_empty());
        let gateway = "127.0.0.1:0".parse().ok();
        assert_eq!(
            merge(RunArgs { hub, gateway, ..RunArgs::default() }).expect("settings").listeners.len(),
            1
        );
    }

    #[test]
    fn without_any_flag_there_is_a_gateway_on_loopback() {
        let settings = merge(RunArgs::default()).expect("defaults");
        let gateway = &settings.listeners[0];
        assert_eq!((gateway.address.to_string().as_str(), &gateway.trust), (DEFAULT_GATEWAY, &Trust::Any));
        assert_eq!(settings.admin.to_string(), DEFAULT_ADMIN);
    }

    #[test]
    fn an_edge_on_any_other_address_needs_an_explicit_trust() {
        let open = RunArgs { gateway: "0.0.0.0:0".parse().ok(), ..RunArgs::default() };
        assert!(merge(open.clone()).expect_err("refused").hint.expect("hint").contains("--trust"));
        assert!(merge(RunArgs { trust: Some(Trust::Nobody), ..open }).is_ok());
    }

    #[test]
    fn only_who_can_be_reached_from_elsewhere_is_a_lame_duck_unless_told() {
        let with = |gateway: &str, text: &str| {
            let mut file = tempfile::NamedTempFile::new().expect("file");
            file.write_all(text.as_bytes()).expect("write");
            let (gateway, config) = (gateway.parse().ok(), Some(file.path().to_owned()));
            merge(RunArgs { gateway, config, ..RunArgs::default() }).expect("settings").limits.lame_duck
        };
        let told = "timeouts: {lameDuck: 7s}";
        let never = "trust: any\ntimeouts: {lameDuck: 0s}";
        let cases = [("127.0.0.1:0", "", 0), ("127.0.0.1:0", told, 7), ("unix:/run/a.sock", "", 0)];
        for (gateway, text, seconds) in
            [("0.0.0.0:0", "trust: any", 5), ("0.0.0.0:0", never, 0)].into_iter().chain(cases)
        {
            assert_eq!(with(gateway, text).as_secs(), seconds, "{gateway} {text}");
        }
    }

    #[test]
    fn an_admin_listener_on_any_other_address_needs_a_token() {
        let open = RunArgs { admin: "0.0.0.0:0".parse().ok(), ..RunArgs::default() };
        assert!(merge(open.clone()).is_err());
        assert!(merge(RunArgs { admin_token: Some("t".to_owned()), ..open }).is_ok());
    }

    #[test]
    fn an_inbound_listener_needs_its_application_and_service() {
        let inbound = RunArgs { inbound: "127.0.0.1:0".parse().ok(), ..RunArgs::default() };
        assert!(merge(inbound.clone()).is_err());
        let app = "http://127.0.0.1:1".parse().ok();
        assert!(merge(RunArgs { app, ..inbound.clone() }).is_err());
        let app = "http://127.0.0.1:1".parse().ok();
        let whole = merge(RunArgs { app, service: "web".parse().ok(), ..inbound }).expect("whole");
        assert_eq!(whole.listeners.len(), 1, "a sidecar opens no gateway by itself");
    }

    #[test]
    fn flags_for_tls_take_the_place_of_the_certificates_in_the_file() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(
            b"tls: {certificates: [{certificate: a, key: b}, {certificate: c, key: d}], clientCa: ca, minVersion: 1.3}\n",
        )
        .expect("write");
        let config = Some(file.path().to_owned());
        let of_file = merge(RunArgs { config: config.clone(), ..RunArgs::default() }).expect("file").tls;
        let pair = |certificate: &str, key: &str| Pair { certificate: certificate.into(), key: key.into() };
        let expected = TlsSettings {
            certificates: vec![pair("a", "b"), pair("c", "d")],
            clients: Some(ClientSettings { ca: "ca".into(), required: true }),
            only_13: true,
            roles: vec!["gateway"],
        };
        assert_eq!(of_file, Some(expected.clone()));
        let flags = RunArgs { tls_cert: Some("x".into()), tls_key: Some("y".into()), ..RunArgs::default() };
        let both = merge(RunArgs { config, ..flags.clone() }).expect("both").tls;
        assert_eq!(both, Some(TlsSettings { certificates: vec![pair("x", "y")], ..expected }));
        assert!(merge(RunArgs { tls_key: None, ..flags.clone() }).is_err());
        assert!(merge(RunArgs { tls_cert: None, ..flags.clone() }).is_err());
        let outbound = "127.0.0.1:0".parse().ok();
        let refused = merge(RunArgs { outbound, ..flags }).expect_err("nobody speaks it");
        assert!(refused.message.contains("no listener that speaks TLS"), "{refused}");
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn what_expired_is_removed_from_an_engine_by_hubs_and_by_who_is_told_to() {
        let removed = |store: &str, hub: bool, told: Option<&str>| {
            let hub = hub.then(|| ([127, 0, 0, 1], 0).into());
            let flags = RunArgs { hub, remove_expired: told.map(str::to_owned), ..RunArgs::default() };
            let settings = Settings::merge(flags, Some(store.parse().expect("store")));
            settings.map(|settings| settings.remove_expired.map(|after| after.as_secs() / 3600))
        };
        let (etcd, directory) = ("etcd:127.0.0.1:1", "/tmp/x");
        assert_eq!(removed(etcd, true, None), Ok(Some(24)));
        assert_eq!(removed(etcd, true, Some("never")), Ok(None));
        assert_eq!(removed(etcd, false, None), Ok(None));
        assert_eq!(removed(etcd, false, Some("2h")), Ok(Some(2)));
        assert!(removed(etcd, true, Some("0s")).is_err());
        for store in [directory, "hub:http://127.0.0.1:1"] {
            assert_eq!(removed(store, true, None), Ok(None));
            assert_eq!(removed(store, true, Some("never")), Ok(None));
            let refused = removed(store, true, Some("2h")).expect_err(store);
            assert!(refused.message.contains(store), "{refused}");
        }
    }

    #[test]
    fn carriers_and_the_hosts_that_get_the_key_come_from_the_file() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(
            b"carriers: {read: [header, signadot, cookie:overlay]}\nkeepFor: ['*.partner.example']\n",
        )
        .expect("write");
        let carriers = carriers_of(Some(file.path())).expect("carriers");
        let names = |list: &[overlane_config::carrier::Carrier]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let read = names(carriers.read_list());
        assert_eq!((read.len(), &*read[0], &*read[9]), (10, "header", "cookie:overlay"));
        assert_eq!(names(carriers.written()), ["header", "baggage"]);
        assert!(carriers.keep_for.has("pay.partner.example") && !carriers.keep_for.has("partner.example"));
        assert_eq!(carriers_of(None), Ok(Carriers::default()));
    }

    #[test]
    fn flags_win_over_the_file_and_its_mistakes_are_errors() {
        let with = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().expect("file");
            file.write_all(text.as_bytes()).expect("write");
            let flags =
                RunArgs { config: Some(file.path().to_owned()), workers: Some(3), ..RunArgs::default() };
            merge(flags)
        };
        let settings = with(
            "workers: 2\ntimeouts: {head: 3s}\nminRates: {body: 0}\ngateway: 127.0.0.1:1\nstore: /tmp/x\n",
        )
        .expect("file");
        assert_eq!((settings.workers, settings.limits.head), (3, Duration::from_secs(3)));
        assert_eq!((settings.limits.body_rate, settings.limits.write_rate), (0, 240));
        for (text, word) in [
            ("worker: 2", "worker"),
            ("timeouts: {head: 0s}", "head"),
            ("timeouts: {lameDuck: soon}", "timeouts.lameDuck"),
            ("timeouts: {head: soon}", "soon"),
            ("minRates: {read: 5}", "read"),
            ("maxRequests: 0", "`maxRequests` is 0"),
            ("maxUpstreamRequests: 0", "`maxUpstreamRequests` is 0"),
            ("maxHeld: 0", "`maxHeld` is 0"),
            ("maxConnectionsPerClient: 0", "`maxConnectionsPerClient` is 0"),
            ("maxBodyBytes: -1", "maxBodyBytes"),
            ("timeouts: {request: 0s}", "`timeouts.request` is zero"),
            ("baseline: A", "baseline"),
            ("store: redis:x", "store"),
            ("carriers: {read: [header, sigandot]}", "`carriers.read[1]`: `sigandot` is no carrier"),
            (
                "carriers: {write: [\"header:x-overlay-hop\"]}",
                "`carriers.write[0]`: `x-overlay-hop` has a meaning",
            ),
            ("carriers: {wirte: [header]}", "wirte"),
            ("keepFor: [\"shop.example.com:80\"]", "`keepFor[0]`"),
            ("tls: {}", "TLS without a certificate"),
            ("tls: {certificates: [{certificate: a}]}", "key"),
            ("tls: {certificates: [{certificate: a, key: a}, {certificate: a, key: b}]}", "names a twice"),
            ("tls: {certificates: [{certificate: a, key: b}], minVersion: 1.1}", "`tls.minVersion` is `1.1`"),
            ("tls: {certificates: [{certificate: a, key: b}], clients: optional}", "`tls.clientCa`"),
            ("tls: {certificates: [{certificate: a, key: b}], listeners: [inbound]}", "names `inbound`"),
            ("tls: {certificates: [{certificate: a, key: b}], listeners: []}", "no listener that speaks TLS"),
            ("trustedHops: [10.0.0.0/33]", "`trustedHops: 10.0.0.0/33` is no network"),
            ("forwarded: x-real-ip", "forwarded"),
            ("trustedHops: [10.0.0.1]\noutbound: 127.0.0.1:1", "`trustedHops` without a gateway"),
            ("tokens: {keys: [a]}", "without an audience"),
            ("tokens: {audience: a}", "without a key"),
            ("tokens: {key: a}", "key"),
            ("authorizer: {url: 'https://a/b'}", "`authorizer.url`: only `http://`"),
            ("authorizer: {url: 'http://'}", "`authorizer.url`"),
            ("authorizer: {url: 'http://a/ b'}", "is no path"),
            ("authorizer: {url: 'http://a', timeout: 0s}", "`authorizer.timeout` is zero"),
            ("authorizer: {url: 'http://a', atOnce: 0}", "`authorizer.atOnce` is 0"),
            ("authorizer: {url: 'http://a', copyHeaders: [Host]}", "`authorizer.copyHeaders`"),
            ("authorizer: {url: 'http://a'}\noutbound: 127.0.0.1:1", "`authorizer` without a gateway"),
            ("tokens: {keys: [a], audience: b}\noutbound: 127.0.0.1:1", "`tokens` without a gateway"),
            ("traces: {endpoint: 'a:4318'}", "begins neither with"),
            ("traces: {endpoint: 'http://a', ratio: 2}", "the share of traces is 2"),
            ("traces: {url: 'http://a'}", "url"),
            ("trust: 'identity:spiffe://mesh/web'", "names identities"),
            ("tls: {certificates: [{certificate: a, key: b}]}\ntrust: 'identity:*'", "names identities"),
        ] {
            let refused = with(text).expect_err(text);
            assert!(refused.message.contains(word), "{text}: {refused}");
        }
    }
}
