//! `--server URL`: every command of a machine that cannot reach the store, by a hub that can.

use std::path::PathBuf;

use clap::Args;

use super::output::CliError;
use crate::store::StoreAddress;
use crate::store::hub::{Access, HubAddress};
use crate::tls::certificates::Pair;

/// Which hub, and how it is spoken to.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// A hub in place of a store: another Overlane, as http://HOST:PORT or https://HOST; several by commas
    #[arg(long, global = true, value_name = "URL", env = "OVERLANE_SERVER")]
    pub(super) server: Option<HubAddress>,
    /// The token that is shown to the hub
    #[arg(long, global = true, value_name = "TOKEN", env = "OVERLANE_SERVER_TOKEN", hide_env_values = true)]
    pub(super) server_token: Option<String>,
    /// A file with that token
    #[arg(long, global = true, value_name = "FILE", env = "OVERLANE_SERVER_TOKEN_FILE")]
    pub(super) server_token_file: Option<PathBuf>,
    /// Who issues the hub's certificate (PEM); whom the system trusts by default
    #[arg(long, global = true, value_name = "FILE", env = "OVERLANE_SERVER_CA")]
    server_ca: Option<PathBuf>,
    /// The certificate that is shown to the hub (PEM); needs --server-key
    #[arg(long, global = true, value_name = "FILE", env = "OVERLANE_SERVER_CERT")]
    server_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "OVERLANE_SERVER_KEY")]
    server_key: Option<PathBuf>,
}

impl ServerArgs {
    /// The store that is meant, if any is told, and how hubs are spoken to.
    ///
    /// # Errors
    /// A store and a hub are told, or only one of a certificate and its key.
    pub fn store(self, store: Option<StoreAddress>) -> Result<(Option<StoreAddress>, Access), CliError> {
        let pair = match (self.server_cert, self.server_key) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(CliError::usage("only one of `--server-cert` and `--server-key`")
                    .hint("give both, or none"));
            }
        };
        let token = self.server_token.filter(|token| !token.trim().is_empty());
        let access = Access { token, token_file: self.server_token_file, ca: self.server_ca, pair };
        let store = match (store, self.server) {
            (Some(store), Some(server)) => {
                return Err(CliError::usage(format!("`--store {store}` and `--server {server}`")).hint(
                    "a hub is a store: give one of them (OVERLANE_STORE and OVERLANE_SERVER count as well)",
                ));
            }
            (None, Some(server)) => Some(StoreAddress::Hub(server)),
            (store, None) => store,
        };
        Ok((store.map(|store| store.with_access(&access)), access))
    }
}
