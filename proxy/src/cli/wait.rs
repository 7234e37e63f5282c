//! `--wait`: until every live proxy routes what was written, and what it owns has an address.

use std::time::{Duration, Instant};

use clap::Args;
use http::StatusCode;
use overlane_config::name::EnvironmentId;
use overlane_config::time::parse_duration;
use tokio::time::sleep;

use super::output::{CliError, Output};
use super::show::Kind;
use super::status::{Asked, ask_all};
use crate::api::Health;
use crate::settings::DEFAULT_ADMIN;
use crate::status::Seen;
use crate::store::StoreAddress;
use crate::store::hub::Refused;
use crate::store::shared::{Fault, Revision};

/// The pause between two looks at first, and at last.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// Whether and how long to wait.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Return when every live proxy routes it and its services have addresses: those that report to the hub of
    /// --server, or the one at --admin
    #[arg(long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration, requires = "wait")]
    timeout: Duration,
    /// The admin address of the proxy to wait for, where no hub is asked; repeatable
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN, requires = "wait")]
    admin: Vec<String>,
}

/// What was written.
pub(super) struct Wanted {
    pub(super) id: EnvironmentId,
    pub(super) kind: Kind,
    /// The state in which it is.
    pub(super) revision: Option<Revision>,
}

/// Waits, where that is asked for.
///
/// # Errors
/// It takes too long: who is missing.
pub(super) fn wait(
    args: &WaitArgs,
    wanted: &[Wanted],
    state: Option<&Revision>,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    if !args.wait {
        return Ok(());
    }
    let asked = Asked::all(Some(store), &args.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Instant::now();
    let mut pause = PAUSES[0];
    loop {
        let missing = runtime.block_on(missing(&asked, wanted, state));
        match missing {
            Ok(proxies) => {
                let proxies = if proxies == 1 {
                    "1 proxy routes".to_owned()
                } else {
                    format!("{proxies} proxies route")
                };
                out.note(format_args!("{proxies} it, after {} ms", begun.elapsed().as_millis()));
                return Ok(());
            }
            Err(missing) if begun.elapsed() + pause > args.timeout => {
                let time = args.timeout;
                return Err(CliError::failure(format!(
                    "it was written, and not everything was there within {time:?}:\n  {}",
                    missing.join("\n  ")
                )));
            }
            Err(_) => {}
        }
        runtime.block_on(async { sleep(pause).await });
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// How many proxies route it; or who and what is missing.
async fn missing(asked: &[Asked], wanted: &[Wanted], state: Option<&Revision>) -> Result<usize, Vec<String>> {
    let (status, mut missing) = ask_all(asked).await.map_err(|error| vec![error.message])?;
    let is_hub = asked.iter().any(|one| matches!(one, Asked::Hub(..)));
    for Seen { instance, .. } in &status.instances {
        let reached = match (state, &instance.revision) {
            (Some(state), Some(own)) => own.is_at_least(state),
            _ => !is_hub,
        };
        if !reached {
            let at = instance.revision.as_ref().map_or("no state", Revision::as_str);
            missing.push(format!(
                "{} routes by {at}{}",
                instance.id,
                if instance.stale { ", STALE" } else { "" }
            ));
        }
        let of_these = instance
            .unavailable
            .iter()
            .filter(|known| wanted.iter().any(|own| own.id.as_str() == known.environment));
        missing.extend(of_these.map(|known| {
            format!("{}: `{}` of `{}`: {}", instance.id, known.service, known.environment, known.why)
        }));
    }
    for one in asked {
        for own in wanted {
            missing.extend(ill(one, own, !is_hub).await);
        }
    }
    if missing.is_empty() { Ok(status.instances.len()) } else { Err(missing) }
}

/// What is not as it should be of one environment at one process.
async fn ill(asked: &Asked, own: &Wanted, exactly: bool) -> Vec<String> {
    let (id, at) = (&own.id, asked.name());
    let path = format!("/api/v1/{}s/{id}/health", own.kind.as_str());
    match asked.get::<Health>(&path).await {
        Err(Refused::Status(StatusCode::NOT_FOUND, _)) => vec![format!("{at} does not route `{id}`")],
        Err(refused) => vec![Fault::from(refused).0],
        Ok(health) if exactly && health.revision != own.revision => {
            vec![format!("{at} routes an older `{id}`")]
        }
        Ok(health) => {
            let ill = health.services.into_iter().filter_map(|known| Some((known.service, known.problem?)));
            ill.map(|(service, why)| format!("{at}: `{service}` of `{id}`: {why}")).collect()
        }
    }
}
