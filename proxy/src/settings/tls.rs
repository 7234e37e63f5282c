//! How listeners speak TLS.

use std::path::PathBuf;
use std::time::Duration;

use overlane_config::time::parse_duration;
use serde::Deserialize;

use super::{SettingsError, error};
use crate::plane::{ListenerSettings, role_name};
use crate::tls::certificates::Pair;
use crate::tls::{ClientSettings, TlsSettings};

/// See [`TlsSettings`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct TlsFile {
    certificates: Vec<PairFile>,
    client_ca: Option<PathBuf>,
    clients: Option<Clients>,
    /// A text or, since nobody writes the quotes, a number.
    min_version: Option<serde_yaml::Value>,
    listeners: Option<Vec<Speaker>>,
    pub(super) hsts: Option<String>,
}

/// See [`Pair`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairFile {
    certificate: PathBuf,
    key: PathBuf,
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

/// The file with what flags say in its place. A certificate given by them takes the place of all in the file.
pub(super) fn over(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    file: Option<TlsFile>,
) -> Result<Option<TlsFile>, SettingsError> {
    let pair = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(PairFile { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(error("`--tls-cert` without `--tls-key`", "name the certificate's key"));
        }
        (None, Some(_)) => {
            return Err(error("`--tls-key` without `--tls-cert`", "name the key's certificate"));
        }
    };
    if file.is_none() && pair.is_none() && client_ca.is_none() {
        return Ok(None);
    }
    let file = file.unwrap_or_default();
    Ok(Some(TlsFile {
        certificates: pair.map_or(file.certificates, |pair| vec![pair]),
        client_ca: client_ca.or(file.client_ca),
        ..file
    }))
}

impl TlsFile {
    /// The settings, where they fit to the listeners.
    pub(super) fn checked(
        self,
        listeners: &[ListenerSettings],
        hub: bool,
    ) -> Result<TlsSettings, SettingsError> {
        Ok(TlsSettings {
            certificates: certificates(self.certificates)?,
            clients: clients(self.client_ca, self.clients)?,
            only_13: only_13(self.min_version)?,
            roles: speakers(self.listeners, listeners, hub)?.into_iter().map(Speaker::as_str).collect(),
        })
    }
}

fn certificates(file: Vec<PairFile>) -> Result<Vec<Pair>, SettingsError> {
    if file.is_empty() {
        let hint = "give `--tls-cert` and `--tls-key`, or `tls.certificates` in the settings file";
        return Err(error("TLS without a certificate", hint));
    }
    let mut pairs: Vec<Pair> = Vec::new();
    for PairFile { certificate, key } in file {
        if pairs.iter().any(|other| other.certificate == certificate) {
            return Err(error(
                format!("`tls.certificates` names {} twice", certificate.display()),
                "name each certificate once",
            ));
        }
        pairs.push(Pair { certificate, key });
    }
    Ok(pairs)
}

/// Whose certificates are asked for, if any are.
fn clients(ca: Option<PathBuf>, clients: Option<Clients>) -> Result<Option<ClientSettings>, SettingsError> {
    match (ca, clients) {
        (Some(ca), clients) => Ok(Some(ClientSettings { ca, required: clients != Some(Clients::Optional) })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(error(
            "`tls.clients` without `tls.clientCa`",
            "name the authorities that issue their certificates",
        )),
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

/// Who speaks it. Unless somebody says which, those that others call do; the outbound listener is for the application beside it.
fn speakers(
    told: Option<Vec<Speaker>>,
    listeners: &[ListenerSettings],
    hub: bool,
) -> Result<Vec<Speaker>, SettingsError> {
    let known = |speaker: &Speaker| {
        hub && *speaker == Speaker::Hub
            || listeners.iter().any(|listener| role_name(&listener.listener.role) == speaker.as_str())
    };
    let speakers = told.unwrap_or_else(|| {
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
    Ok(speakers)
}

/// Whether the gateway speaks it.
pub(super) fn gateway_speaks(tls: Option<&TlsSettings>) -> bool {
    tls.is_some_and(|tls| tls.roles.contains(&Speaker::Gateway.as_str()))
}

/// For how long clients of the gateway are to come in TLS only.
pub(super) fn hsts(text: Option<&str>, tls: Option<&TlsSettings>) -> Result<Option<Duration>, SettingsError> {
    let Some(text) = text else { return Ok(None) };
    if !gateway_speaks(tls) {
        let hint = "name `gateway` in `tls.listeners`, or leave it out";
        return Err(error("`tls.hsts` without a gateway that speaks TLS", hint));
    }
    // None at all takes back what was said (RFC 6797, section 6.1.1).
    let time = parse_duration(text);
    time.map(Some).map_err(|why| error(format!("`tls.hsts: {text}`: {why}"), "write it as `365d`"))
}
