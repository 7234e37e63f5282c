//! `overlane check`: preflight, before anything is started.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use overlane_config::diagnostic::Diagnostic;
use overlane_config::url::Url;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::output::{CliError, Output};
use crate::names::resolve_url;
use crate::plane::listen;
use crate::settings::{RunArgs, Settings, SettingsError};
use crate::store::StoreAddress;
use crate::store::cache::make_directory;
use crate::store::hub::Access;
use crate::store::open::OpenStore;
use crate::tls::TlsSettings;
use crate::tls::certificate::Said;
use crate::tls::certificates::Certificate;
use crate::tokens::keys::keyring;
use crate::upstream::Address;

/// How long an upstream has to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// `overlane check`: takes the flags of `run`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    run: RunArgs,
}

struct Checks<'o, 'w> {
    out: &'o mut Output<'w>,
    failed: usize,
}

impl Checks<'_, '_> {
    fn note(&mut self, what: &str, result: Result<String, (String, String)>) -> Result<(), CliError> {
        match result {
            Ok(detail) => {
                self.out.line(format_args!("√ {what}{}{detail}", if detail.is_empty() { "" } else { ": " }))
            }
            Err((problem, hint)) => {
                self.failed += 1;
                self.out.line(format_args!("× {what}: {problem}\n    hint: {hint}"))
            }
        }
    }
}

/// Checks settings, ports, the store, and whether every upstream resolves and accepts connections.
///
/// # Errors
/// A check failed; all were printed.
pub fn run(
    check: Check,
    store: Option<StoreAddress>,
    access: &Access,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let settings = Settings::merge(check.run, store)?.with_access(access);
    let mut checks = Checks { out, failed: 0 };
    let addresses = settings
        .listeners
        .iter()
        .map(|listener| listener.address.clone())
        .chain(settings.redirect.iter().map(|redirect| redirect.address.clone()))
        .chain([settings.admin].into_iter().chain(settings.probes).map(Address::Tcp))
        .chain(settings.hub.iter().map(|hub| Address::Tcp(hub.address)));
    for address in addresses {
        let free = listen::listen(&address, 1, settings.socket_mode).map(|_| String::new());
        let what = if address.tcp().is_some() { "port" } else { "socket" };
        checks.note(
            &format!("{what} {address} is free"),
            free.map_err(|error| {
                (error.to_string(), "end what listens there, or choose another address".to_owned())
            }),
        )?;
    }
    if let Some(tls) = &settings.tls {
        check_tls(tls, &mut checks)?;
    }
    for own in &settings.upstream_tls {
        let hosts: Vec<_> = own.hosts.iter().map(ToString::to_string).collect();
        let good = own.check().map(|()| String::new());
        let with_hint = |SettingsError { message, hint }| (message, hint.unwrap_or_default());
        checks.note(&format!("TLS to {}", hosts.join(", ")), good.map_err(with_hint))?;
    }
    if let Some(tokens) = &settings.tokens {
        let with_hint = |SettingsError { message, hint }| (message, hint.unwrap_or_default());
        let read = keyring(&tokens.keys, Some(&tokens.audience)).map(|_| String::new());
        checks.note(&format!("tokens for {} are verified", tokens.audience), read.map_err(with_hint))?;
    }
    if let Some(cache) = &settings.cache {
        let written = make_directory(cache).and_then(|()| tempfile::tempfile_in(cache));
        checks.note(
            &format!("the cache {} can be written", cache.display()),
            written.map(|_| String::new()).map_err(|error| {
                (error.to_string(), "name a directory that this user may write to".to_owned())
            }),
        )?;
    }
    let apps = settings.listeners.iter().filter_map(|listener| listener.app.clone());
    let mut urls: Vec<(String, Url)> = apps.map(|url| ("the application".to_owned(), url)).collect();
    if let Some(store) = &settings.store {
        urls.extend(check_store(store, &mut checks)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = BTreeSet::new();
    for (what, url) in urls.into_iter().filter(|(_, url)| seen.insert(url.to_string())) {
        let reached = runtime.block_on(reach(&url));
        checks.note(
            &format!("{what} at {url}"),
            reached.map_err(|why| (why, "start it, or correct its url".to_owned())),
        )?;
    }
    match checks.failed {
        0 => Ok(()),
        1 => Err(CliError::failure("1 check failed")),
        failed => Err(CliError::failure(format!("{failed} checks failed"))),
    }
}

/// Checks that certificates can be shown, and clients verified.
fn check_tls(tls: &TlsSettings, checks: &mut Checks<'_, '_>) -> Result<(), CliError> {
    let with_hint = |SettingsError { message, hint }| (message, hint.unwrap_or_default());
    for pair in &tls.certificates {
        let read = pair.read().and_then(|files| pair.parse(&files));
        let shown = |certificate: Certificate| {
            let Said { until, .. } = certificate.said;
            format!("for {} until {until}", certificate.said.names().join(", "))
        };
        let what = format!("the certificate {}", pair.certificate.display());
        checks.note(&what, read.map(shown).map_err(with_hint))?;
    }
    if let Some(clients) = &tls.clients {
        let read = clients.read().and_then(|file| clients.parse(&file)).map(|_| String::new());
        checks.note(&format!("clients are verified by {}", clients.ca.display()), read.map_err(with_hint))?;
    }
    Ok(())
}

/// Checks that the store can be read and is right; returns where its services are.
fn check_store(store: &StoreAddress, checks: &mut Checks<'_, '_>) -> Result<Vec<(String, Url)>, CliError> {
    let open = match OpenStore::read(store) {
        Ok(open) => open,
        Err(error) => {
            checks.note(
                "the store can be read",
                Err((CliError::from(error).message, "check its path and permissions".to_owned())),
            )?;
            return Ok(Vec::new());
        }
    };
    let lineages = open.lineages();
    if lineages.is_empty() {
        let hint = format!("overlane baseline create --file baseline.yaml --store {store}");
        checks.note("the store has environments", Err((format!("{store} is empty"), hint)))?;
        return Ok(Vec::new());
    }
    let errors: Vec<_> = lineages.diagnostics().into_iter().filter(Diagnostic::is_error).collect();
    let valid = match errors.first() {
        None => Ok(format!("{} environments in {store}", lineages.len())),
        Some(first) => {
            Err((first.short(), format!("`overlane validate {store}` shows all {}", errors.len())))
        }
    };
    checks.note("the blueprints are right", valid)?;
    let mut urls = Vec::new();
    for (id, resolved) in lineages.standings().filter_map(|(id, standing)| Some((id, standing.resolved()?))) {
        for (service, addresses) in resolved.blueprint.services.iter().zip(&resolved.urls) {
            urls.extend(addresses.iter().map(|url| (format!("{} of {id}", service.name.value), url.clone())));
        }
    }
    Ok(urls)
}

async fn reach(url: &Url) -> Result<String, String> {
    let addresses = resolve_url(url).await?;
    for address in &addresses {
        let connected = async {
            match address {
                Address::Tcp(address) => TcpStream::connect(address).await.map(|_| ()),
                Address::Unix(path) => UnixStream::connect(&**path).await.map(|_| ()),
            }
        };
        match timeout(CONNECT, connected).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("{address}: {error}")),
            Err(_) => {
                return Err(format!("{address}: no connection within {} s", CONNECT.as_secs()));
            }
        }
    }
    let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    Ok(shown.join(", "))
}
