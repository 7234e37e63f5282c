//! The store, served to others.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::value::Told;
use super::{SettingsError, error};
use crate::hub::tokens::{HubSettings, Right};
use crate::hub::tunnels::TunnelPorts;

/// See [`HubSettings`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct HubFile {
    pub(super) address: Option<SocketAddr>,
    pub(super) tokens: Option<PathBuf>,
    pub(super) read_tokens: Option<PathBuf>,
    pub(super) open: Option<Right>,
    pub(super) tunnels: Option<Told<TunnelPorts>>,
}

/// How the store is served to others, if it is, and where the ports of tunnels are, if any are offered.
pub(super) fn checked(file: HubFile) -> Result<(Option<HubSettings>, Option<TunnelPorts>), SettingsError> {
    let HubFile { address, tokens, read_tokens, open, tunnels } = file;
    let wrong = |why| error(format!("`hub.tunnels`: {why}"), "such as `hub.example.com:20000-20999`");
    let tunnels = tunnels.map(|told| told.read(wrong)).transpose()?;
    match address {
        Some(address) => Ok((HubSettings::checked(address, tokens, read_tokens, open).map(Some)?, tunnels)),
        None if tokens.is_some() || read_tokens.is_some() || open.is_some() => Err(error(
            "tokens of a hub without a hub",
            "say where it listens with `--hub`; the token that is shown to another one is `--server-token-file`",
        )),
        None if tunnels.is_some() => {
            Err(error("tunnels without a hub", "say where the hub listens with `--hub`, or leave them out"))
        }
        None => Ok((None, None)),
    }
}
