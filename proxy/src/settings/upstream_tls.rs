//! How upstreams are spoken to in TLS.

use std::path::PathBuf;

use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::{SettingsError, error};
use crate::plane::EngineChoice;
use crate::tls::certificates::Pair;
use crate::tls::upstreams::UpstreamTls;

/// See [`UpstreamTls`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct UpstreamTlsFile {
    hosts: Vec<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
}

pub(super) fn checked(
    file: Vec<UpstreamTlsFile>,
    engine: EngineChoice,
) -> Result<Vec<UpstreamTls>, SettingsError> {
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
