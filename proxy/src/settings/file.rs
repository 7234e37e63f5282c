//! What a settings file says, before anything else is known.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::Url;
use serde::Deserialize;

use super::gateway::{AuthorizerFile, TokensFile};
use super::hub::HubFile;
use super::keys::{CarriersFile, CorrelationFile};
use super::limits::{MinRates, Timeouts};
use super::tls::TlsFile;
use super::upstream_tls::UpstreamTlsFile;
use super::value::Told;
use super::{SettingsError, error};
use crate::plane::EngineChoice;
use crate::plane::forwarded::Dialect;
use crate::plane::trust::Trust;
use crate::store::StoreAddress;
use crate::traces::TracesFile;
use crate::upstream::Address;

/// The settings file. Its keys are the flags' names in camelCase, and `timeouts` besides.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct File {
    pub(super) store: Option<Told<StoreAddress>>,
    pub(super) cache: Option<PathBuf>,
    pub(super) baseline: Option<Told<EnvironmentId>>,
    pub(super) gateway: Option<Address>,
    pub(super) outbound: Option<Address>,
    pub(super) inbound: Option<Address>,
    pub(super) app: Option<Told<Url>>,
    pub(super) service: Option<Told<ServiceName>>,
    pub(super) environment: Option<Told<EnvironmentId>>,
    pub(super) trust: Option<Told<Trust>>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) probes: Option<SocketAddr>,
    pub(super) admin_token: Option<String>,
    pub(super) hub: Option<HubFile>,
    pub(super) workers: Option<usize>,
    pub(super) engine: Option<EngineChoice>,
    pub(super) access_log: Option<serde_yaml::Value>,
    pub(super) request_ids: Option<bool>,
    pub(super) decisions: Option<usize>,
    pub(super) overlay_labels: Option<usize>,
    pub(super) traces: Option<TracesFile>,
    pub(super) redirect: Option<Address>,
    pub(super) https_port: Option<u16>,
    pub(super) allow_unix: Vec<PathBuf>,
    pub(super) socket_mode: Option<String>,
    pub(super) resync: Option<String>,
    pub(super) remove_expired: Option<String>,
    pub(super) timeouts: Timeouts,
    pub(super) min_rates: MinRates,
    pub(super) correlation: CorrelationFile,
    pub(super) carriers: CarriersFile,
    pub(super) keep_for: Vec<String>,
    pub(super) proxy_protocol: Vec<String>,
    pub(super) trusted_hops: Vec<String>,
    pub(super) forwarded: Option<Dialect>,
    pub(super) tokens: TokensFile,
    pub(super) authorizer: Option<AuthorizerFile>,
    pub(super) connect_ports: Option<Vec<u16>>,
    pub(super) intercept: Option<bool>,
    pub(super) mark: Option<u32>,
    pub(super) max_head_bytes: Option<usize>,
    pub(super) max_body_bytes: Option<u64>,
    pub(super) max_connections_per_client: Option<u32>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_requests: Option<u32>,
    pub(super) max_upstream_requests: Option<u32>,
    pub(super) max_held: Option<u32>,
    pub(super) tls: Option<TlsFile>,
    pub(super) upstream_tls: Vec<UpstreamTlsFile>,
}

impl File {
    /// What the file at a path says; an empty one says nothing.
    ///
    /// # Errors
    /// It cannot be read, or there is something in it that is no setting.
    pub(super) fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|why| {
            error(format!("cannot read the settings file {}: {why}", path.display()), "check the path")
        })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml::from_str(&text)
            .map_err(|why| error(format!("{}: {why}", path.display()), "docs/settings.md lists the settings"))
    }
}

/// What the reader says of a text that is no settings file; for the test of the schema.
#[cfg(test)]
pub(crate) fn complaint(text: &str) -> String {
    let file: Result<File, _> = serde_yaml::from_str(text);
    match file
        .map(|file| file.access_log.map(|access| crate::access::AccessSettings::merge(None, Some(access))))
    {
        Ok(Some(Err(why))) => why.message,
        Ok(_) => String::new(),
        Err(why) => why.to_string(),
    }
}
