//! `overlane overlay extend`: more time for an overlay.

use std::time::Duration;

use clap::Args;
use overlane_config::lineage::Standing;
use overlane_config::name::EnvironmentId;
use overlane_config::time::{UnixMillis, parse_timestamp};

use super::environment::{dry, ttl};
use super::output::{CliError, Output};
use super::show::{Kind, not_found};
use crate::clock;
use crate::store::StoreAddress;
use crate::store::open::{OpenStore, Outcome};

/// `overlane overlay extend`.
#[derive(Debug, Args)]
pub struct Extend {
    /// The overlay
    id: EnvironmentId,
    /// How long it lives from now on at least, such as 4h
    #[arg(long, value_name = "DURATION", value_parser = ttl, required_unless_present = "until")]
    ttl: Option<Duration>,
    /// Until when it lives at least, such as 2027-01-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp, conflicts_with = "ttl")]
    until: Option<UnixMillis>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lets an overlay live longer; one that has expired lives again.
///
/// # Errors
/// See [`CliError`].
pub fn extend(args: &Extend, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let (id, now) = (&args.id, clock::now());
    let until = args.until.or_else(|| args.ttl.map(|ttl| now.after(ttl))).unwrap_or(now);
    if until <= now {
        return Err(CliError::usage(format!("`--until {until}` is over")).hint("name a time that is to come"));
    }
    let mut open = OpenStore::change(store)?;
    open.look_at(id)?;
    let kind = open.lineages().claims(id).next().map(|known| Kind::of(known));
    match kind {
        Some(Kind::Overlay) => {}
        Some(Kind::Baseline) => {
            return Err(CliError::failure(format!("`{id}` is a baseline: it never expires")));
        }
        None => {
            open.read_all()?;
            return Err(not_found(id, Kind::Overlay, open.lineages()));
        }
    }
    let (outcome, lives) = open.extend(id, until, None, args.dry_run)?;
    let dry = dry(args.dry_run);
    let became = match outcome {
        Outcome::Unchanged => "unchanged: it lives",
        _ => "extended",
    };
    out.line(format_args!("overlay {id} {became} until {lives}{dry}"))?;
    let parent = open.lineages().standing(id).and_then(Standing::resolved).and_then(|own| own.parent.clone());
    let parents = parent.and_then(|parent| {
        let resolved = open.lineages().standing(&parent)?.resolved()?;
        Some((parent, resolved.expires_at.filter(|at| *at < lives)?))
    });
    if let Some((parent, at)) = parents {
        out.note(format_args!(
            "warning: it expires with its parent `{parent}` at {at}, if that is not extended as well"
        ));
    }
    Ok(())
}
