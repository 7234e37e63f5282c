//! Where an overlay is seen in a browser, and links that let others in: `overlane overlay share`.

use std::time::Duration;

use clap::Args;
use overlane_config::blueprint::hex;
use overlane_config::browser::PARAMETER;
use overlane_config::lineage::{Lineages, Standing};
use overlane_config::name::{EnvironmentId, ServiceName};
use serde_json::{Value, json};

use super::environment::{FormatArg, dry, ttl};
use super::output::{CliError, Format, Output};
use super::show::{Kind, not_found};
use crate::clock;
use crate::plane::edge::{Secret, digest};
use crate::store::StoreAddress;
use crate::store::open::{NewShare, OpenStore};

/// `overlane overlay share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The overlay
    id: EnvironmentId,
    /// How long the link lets anybody in, such as 2h; as long as the overlay is there where it is left out
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Link to this service; every exposed one otherwise
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// `overlane overlay unshare`.
#[derive(Debug, Args)]
pub struct UnshareArgs {
    /// The overlay
    id: EnvironmentId,
    /// Which link, as `overlane overlay shares ID` shows it
    #[arg(required_unless_present = "all")]
    share: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "share")]
    all: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// `overlane overlay shares`.
#[derive(Debug, Args)]
pub struct SharesArgs {
    /// The overlay
    id: EnvironmentId,
    #[command(flatten)]
    format: FormatArg,
}

/// Where the exposed services of an environment are seen in a browser: their names, and the addresses with their paths. Of
/// previews on this machine the gateway's port is `gateway`, where that is known.
pub(crate) fn links(
    id: &EnvironmentId,
    lineages: &Lineages,
    gateway: Option<u16>,
) -> Vec<(ServiceName, String)> {
    let Some(resolved) = lineages.standing(id).and_then(Standing::resolved) else { return Vec::new() };
    let previews = resolved.previews.at_port(gateway.unwrap_or(resolved.previews.port()));
    let link = |(service, path): (&ServiceName, &str)| {
        Some((service.clone(), previews.link(Some(service), id).ok()? + path))
    };
    lineages.exposed(id).into_iter().filter_map(link).collect()
}

/// Prints them, each on a line of its own.
pub(super) fn print_links(id: &EnvironmentId, lineages: &Lineages, out: &mut Output<'_>) {
    for (at, (service, link)) in links(id, lineages, None).iter().enumerate() {
        let label = if at == 0 { "Open:" } else { "" };
        out.note(format_args!("{label:5} {link}    ({service})"));
    }
}

fn resolved_overlay(id: &EnvironmentId, lineages: &Lineages) -> Result<(), CliError> {
    let resolved = lineages.standing(id).and_then(Standing::resolved);
    match resolved.map(|resolved| Kind::of(&resolved.blueprint)) {
        Some(Kind::Overlay) => Ok(()),
        Some(Kind::Baseline) => Err(CliError::failure(format!("`{id}` is a baseline"))
            .hint("what is shared is an overlay: everybody else's is the baseline anyway")),
        None => Err(not_found(id, Kind::Overlay, lineages)),
    }
}

/// A link that lets in whoever has it.
pub(crate) struct SharedLink {
    /// What is kept of it.
    pub(crate) kept: NewShare,
    /// Its addresses with the secret, by service.
    links: Vec<(ServiceName, String)>,
}

impl SharedLink {
    /// Makes one to the exposed services of an overlay, or to one of them. Of previews on this machine the gateway's port is
    /// `gateway`, where that is known.
    ///
    /// # Errors
    /// It is no overlay, or none that is in force, or nothing of it is exposed, and what to do.
    pub(crate) fn new(
        id: &EnvironmentId,
        lineages: &Lineages,
        gateway: Option<u16>,
        service: Option<&ServiceName>,
        ttl: Option<Duration>,
    ) -> Result<Self, CliError> {
        resolved_overlay(id, lineages)?;
        let mut links = links(id, lineages, gateway);
        links.retain(|(exposed, _)| service.is_none_or(|wanted| wanted == exposed));
        if links.is_empty() {
            let what = service.map_or_else(
                || format!("no service of `{id}` or its ancestors is exposed"),
                |service| format!("`{service}` is no exposed service of `{id}`"),
            );
            return Err(CliError::failure(what).hint("give it `expose: true` in its blueprint"));
        }
        let no_secret = || CliError::failure("the system has no randomness to give".to_owned());
        let secret = Secret::new().ok_or_else(no_secret)?;
        let hash = digest(secret.reveal());
        for (_, link) in &mut links {
            link.push_str(&format!("?{PARAMETER}={id}.{}", secret.reveal()));
        }
        let expires_at = ttl.map(|ttl| clock::now().after(ttl));
        Ok(Self { kept: NewShare { id: hex(&hash[..4]), hash, expires_at }, links })
    }

    fn until(&self) -> Option<String> {
        self.kept.expires_at.map(|at| at.to_string())
    }

    /// All of it, as JSON.
    pub(crate) fn value(&self, id: &EnvironmentId) -> Value {
        let link =
            |(service, url): &(ServiceName, String)| json!({ "service": service.as_str(), "url": url });
        let links: Vec<_> = self.links.iter().map(link).collect();
        json!({ "id": self.kept.id, "overlay": id.as_str(), "expiresAt": self.until(), "links": links })
    }
}

/// Makes a link that lets in whoever has it.
///
/// # Errors
/// See [`CliError`].
pub fn share(args: &ShareArgs, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let mut open = OpenStore::write(store)?;
    let id = &args.id;
    let shared = SharedLink::new(id, open.lineages(), None, args.service.as_ref(), args.ttl)?;
    open.share(id, &shared.kept, args.dry_run)?;
    let name = &shared.kept.id;
    match args.format.output {
        Format::Json | Format::Yaml => out.value(&shared.value(id), args.format.output),
        Format::Name => out.line(name),
        Format::Table | Format::Wide => {
            for (_, link) in &shared.links {
                out.line(link)?;
            }
            let until = shared.until().unwrap_or_else(|| "it is taken back or the overlay goes".to_owned());
            out.note(format_args!("Whoever has it gets in until {until}.{}", dry(args.dry_run)));
            out.note(format_args!("Take it back: overlane overlay unshare {id} {name} --store {store}"));
            Ok(())
        }
    }
}

/// Takes links back.
///
/// # Errors
/// See [`CliError`].
pub fn unshare(args: &UnshareArgs, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let mut open = OpenStore::write(store)?;
    let taken = open.unshare(&args.id, args.share.as_deref(), args.dry_run)?;
    taken.iter().try_for_each(|share| {
        out.line(format_args!("share {}/{share} deleted{}", args.id, dry(args.dry_run)))
    })
}

/// Shows the links that were given away; the secrets are not kept.
///
/// # Errors
/// See [`CliError`].
pub fn shares(args: &SharesArgs, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let open = OpenStore::read(store)?;
    resolved_overlay(&args.id, open.lineages())?;
    let attached = open.lineages().attachments(&args.id);
    let shares: Vec<_> = attached.iter().flat_map(|attached| &attached.shares).collect();
    let until = |at: Option<overlane_config::time::UnixMillis>| at.map(|at| at.to_string());
    match args.format.output {
        Format::Json | Format::Yaml => {
            let shown = shares
                .iter()
                .map(|share| json!({ "id": &*share.id.value, "expiresAt": until(share.expires_at) }))
                .collect();
            out.value(&serde_json::Value::Array(shown), args.format.output)
        }
        Format::Name => shares.iter().try_for_each(|share| out.line(&share.id.value)),
        Format::Table | Format::Wide if shares.is_empty() => {
            out.note(format_args!(
                "`{}` is not shared; `overlane overlay share {}` makes a link",
                args.id, args.id
            ));
            Ok(())
        }
        Format::Table | Format::Wide => {
            let now = clock::now();
            let status = |at: Option<overlane_config::time::UnixMillis>| match at {
                Some(at) if at <= now => "EXPIRED",
                _ => "OPEN",
            };
            let row = |share: &&overlane_config::blueprint::Share| {
                let expires = until(share.expires_at).unwrap_or_else(|| "never".to_owned());
                vec![share.id.value.to_string(), expires, status(share.expires_at).to_owned()]
            };
            out.table(&["ID", "EXPIRES", "STATUS"], &shares.iter().map(row).collect::<Vec<_>>())
        }
    }
}
