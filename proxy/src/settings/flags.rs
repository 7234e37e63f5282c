//! The flags of `overlane run` and their variables, and how they are put over the file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::Url;

use super::SettingsError;
use super::file::File;
use super::gateway::TokensFile;
use super::hub::HubFile;
use super::tls;
use super::value::Told;
use crate::access::AccessFlag;
use crate::hub::tokens::Right;
use crate::hub::tunnels::TunnelPorts;
use crate::plane::EngineChoice;
use crate::plane::forwarded::Dialect;
use crate::plane::trust::Trust;
use crate::traces::TraceArgs;
use crate::upstream::Address;

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
    /// Remove overlays from an etcd or a cluster so long after they expired, or never; 24h by default at a hub where somebody may write, and never elsewhere
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

impl RunArgs {
    /// The file, with what flags and variables say in its place: whole lists take the place of whole lists. What they say
    /// of the access log and of traces is left out, which [`crate::access`] and [`crate::traces`] put over the file themselves.
    ///
    /// # Errors
    /// A certificate without its key, or the other way round.
    pub(super) fn over(self, file: File) -> Result<File, SettingsError> {
        let hub = file.hub.unwrap_or_default();
        Ok(File {
            cache: self.cache.or(file.cache),
            baseline: self.baseline.map(Told::Read).or(file.baseline),
            gateway: self.gateway.or(file.gateway),
            outbound: self.outbound.or(file.outbound),
            inbound: self.inbound.or(file.inbound),
            app: self.app.map(Told::Read).or(file.app),
            service: self.service.map(Told::Read).or(file.service),
            environment: self.environment.map(Told::Read).or(file.environment),
            trust: self.trust.map(Told::Read).or(file.trust),
            admin: self.admin.or(file.admin),
            probes: self.probes.or(file.probes),
            admin_token: self.admin_token.or(file.admin_token),
            hub: Some(HubFile {
                address: self.hub.or(hub.address),
                tokens: self.hub_tokens.or(hub.tokens),
                read_tokens: self.hub_read_tokens.or(hub.read_tokens),
                open: self.hub_open.or(hub.open),
                tunnels: self.hub_tunnels.map(Told::Read).or(hub.tunnels),
            }),
            remove_expired: self.remove_expired.or(file.remove_expired),
            workers: self.workers.or(file.workers),
            engine: self.engine.or(file.engine),
            request_ids: self.request_ids.or(file.request_ids),
            decisions: self.decisions.or(file.decisions),
            overlay_labels: self.overlay_labels.or(file.overlay_labels),
            redirect: self.redirect.or(file.redirect),
            allow_unix: list(self.allow_unix, file.allow_unix),
            socket_mode: self.socket_mode.or(file.socket_mode),
            proxy_protocol: list(self.proxy_protocol, file.proxy_protocol),
            trusted_hops: list(self.trusted_hops, file.trusted_hops),
            forwarded: self.forwarded.or(file.forwarded),
            tokens: TokensFile {
                keys: list(self.token_keys, file.tokens.keys),
                audience: self.token_audience.or(file.tokens.audience),
            },
            intercept: self.intercept.or(file.intercept),
            mark: self.mark.or(file.mark),
            tls: tls::over(self.tls_cert, self.tls_key, self.tls_client_ca, file.tls)?,
            ..file
        })
    }
}

fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}
