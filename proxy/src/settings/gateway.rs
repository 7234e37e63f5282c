//! What only a gateway does: whom it believes, which tokens it takes, whom it asks, and where it has those who come in the clear go.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use overlane_config::route::Role;
use serde::Deserialize;

use super::tls::gateway_speaks;
use super::value::{at_least_one, duration, duration_or_none};
use super::{SettingsError, error};
use crate::plane::authorizer::Authorizer;
use crate::plane::forwarded::{Dialect, Forwarding};
use crate::plane::{ListenerSettings, RedirectSettings};
use crate::tls::TlsSettings;
use crate::tokens::keys::TokenSettings;
use crate::upstream::Address;

/// See [`TokenSettings`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TokensFile {
    pub(super) keys: Vec<PathBuf>,
    pub(super) audience: Option<String>,
}

/// See [`Authorizer`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct AuthorizerFile {
    url: String,
    timeout: Option<String>,
    #[serde(default)]
    copy_headers: Vec<String>,
    keep: Option<String>,
    at_once: Option<u32>,
}

/// Refuses what is asked for where no gateway could do it.
fn needs_gateway(listeners: &[ListenerSettings], key: &str, why: &str) -> Result<(), SettingsError> {
    match listeners.iter().any(|one| one.listener.role == Role::Gateway) {
        true => Ok(()),
        false => Err(error(format!("`{key}` without a gateway"), why)),
    }
}

/// Which load balancers are believed, and how they say for whom they ask.
pub(super) fn forwarding(
    hops: &[String],
    dialect: Option<Dialect>,
    listeners: &[ListenerSettings],
) -> Result<Forwarding, SettingsError> {
    if !hops.is_empty() {
        let why = "they stand before a gateway: say where it listens with `--gateway`, or leave them out";
        needs_gateway(listeners, "trustedHops", why)?;
    }
    Ok(Forwarding { hops: balancers("trustedHops", hops)?, dialect: dialect.unwrap_or_default() })
}

/// The networks of load balancers that a setting names.
pub(super) fn balancers(key: &str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    texts.iter().map(|text| balancer(key, text)).collect()
}

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

/// Which tokens are taken, if any.
pub(super) fn tokens(
    file: TokensFile,
    listeners: &[ListenerSettings],
) -> Result<Option<TokenSettings>, SettingsError> {
    let TokensFile { keys, audience } = file;
    match (keys.is_empty(), audience.filter(|audience| !audience.is_empty())) {
        (true, None) => Ok(None),
        (false, Some(audience)) => {
            let why = "a gateway takes them: say where it listens with `--gateway`, or leave them out";
            needs_gateway(listeners, "tokens", why)?;
            Ok(Some(TokenSettings { keys, audience }))
        }
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

/// Who is asked what a request may choose, if anybody is.
pub(super) fn authorizer(
    file: Option<AuthorizerFile>,
    listeners: &[ListenerSettings],
) -> Result<Option<Authorizer>, SettingsError> {
    if file.is_some() {
        let why = "it is asked by a gateway: say where it listens with `--gateway`, or leave it out";
        needs_gateway(listeners, "authorizer", why)?;
    }
    file.map(AuthorizerFile::read).transpose()
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
        Ok(Authorizer {
            timeout: duration("authorizer.timeout", self.timeout.as_deref(), by_default.timeout)?,
            copy_headers: self.copy_headers.iter().map(header).collect::<Result<_, _>>()?,
            keep: duration_or_none("authorizer.keep", self.keep.as_deref(), by_default.keep)?,
            at_once: at_least_one("authorizer.atOnce", self.at_once, by_default.at_once)?,
            ..by_default
        })
    }
}

/// The listener that sends clients to the gateway, if there is to be one.
pub(super) fn redirect(
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
