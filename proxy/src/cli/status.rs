//! `overlane status`: which proxies there are, and which state of the store each routes by.

use std::collections::BTreeMap;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::environment::FormatArg;
use super::output::{CliError, Format, Output};
use crate::client;
use crate::settings::DEFAULT_ADMIN;
use crate::status::{Instance, Seen, Status};
use crate::store::StoreAddress;
use crate::store::hub::{HubStore, Refused, whole};
use crate::store::shared::Fault;

/// `overlane status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The admin address of a proxy, where no hub is asked (`--server`); repeatable
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Whoever can be asked over HTTP: hubs, each alone, or admin listeners.
pub(super) enum Asked {
    Hub(String, Box<HubStore>),
    Admin(String),
}

impl Asked {
    /// All that are meant.
    pub(super) fn all(store: Option<&StoreAddress>, admin: &[String]) -> Vec<Self> {
        match store.and_then(StoreAddress::hub) {
            Some(hubs) => {
                hubs.each().map(|hub| Self::Hub(hub.to_string(), Box::new(HubStore::new(hub)))).collect()
            }
            None => admin.iter().cloned().map(Self::Admin).collect(),
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Hub(name, _) | Self::Admin(name) => name,
        }
    }

    /// Asks for something; with the status where that is not one of success.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refused> {
        let body = match self {
            Self::Hub(_, hub) => hub.ask_small(Method::GET, path, None, "").await?,
            Self::Admin(address) => admin_get(address, path).await?,
        };
        serde_json::from_slice(&body)
            .map_err(|why| Refused::Fault(Fault(format!("{} is of another version: {why}", self.name()))))
    }
}

impl Asked {
    /// Asks for something that goes on for as long as it is read.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, Refused> {
        match self {
            Self::Hub(_, hub) => Ok(hub.ask(Method::GET, path, None, whole("")).await?.into_body()),
            Self::Admin(address) => {
                let response = client::open(address, of_admin(path)?).await;
                let response = response.map_err(|why| Refused::Fault(Fault(why)))?;
                let (status, body) = (response.status(), response.into_body());
                if status.is_success() {
                    return Ok(body);
                }
                let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
                Err(refusal(address, status, &body))
            }
        }
    }
}

fn of_admin(path: &str) -> Result<Request<Full<Bytes>>, Refused> {
    // Listeners of ours take addresses and `localhost`, whatever the name was that led there.
    let request = Request::get(path).header(header::HOST, "localhost").body(Full::new(Bytes::new()));
    request.map_err(|why| Refused::Fault(Fault(why.to_string())))
}

/// Why an admin listener refuses something, in its own words.
fn refusal(address: &str, status: StatusCode, body: &[u8]) -> Refused {
    let told: Option<Value> = serde_json::from_slice(body).ok();
    let detail = told.as_ref().and_then(|told| told["detail"].as_str()).unwrap_or("no answer of ours");
    Refused::Status(status, format!("{address}: {detail}"))
}

async fn admin_get(address: &str, path: &str) -> Result<Bytes, Refused> {
    let response = client::send(address, of_admin(path)?).await.map_err(|why| Refused::Fault(Fault(why)))?;
    match response.status().is_success() {
        true => Ok(response.into_body()),
        false => Err(refusal(address, response.status(), response.body())),
    }
}

/// What all of them know; who does not answer is told.
pub(super) async fn ask_all(asked: &[Asked]) -> Result<(Status, Vec<String>), CliError> {
    let (mut faults, mut answers) = (Vec::new(), Vec::new());
    for one in asked {
        match one.get::<Status>("/api/v1/status").await {
            Ok(status) => answers.push(status),
            Err(refused) => faults.push(Fault::from(refused).0),
        }
    }
    if answers.is_empty() {
        return Err(CliError::failure(faults.join("\n"))
            .hint("name a hub with `--server URL`, or a proxy's admin listener with `--admin HOST:PORT`"));
    }
    Ok((merged(answers), faults))
}

/// What several hubs of the same store know: each proxy once, as the newest report has it.
fn merged(answers: Vec<Status>) -> Status {
    let mut revision = None;
    let mut instances: BTreeMap<String, Instance> = BTreeMap::new();
    for status in answers {
        for Seen { instance, .. } in status.instances {
            let older = |known: &Instance| known.generation <= instance.generation;
            if instances.get(&instance.id).is_none_or(older) {
                instances.insert(instance.id.clone(), instance);
            }
        }
        revision = match (revision, status.revision) {
            (Some(known), Some(other)) if !crate::store::shared::Revision::is_at_least(&other, &known) => {
                Some(known)
            }
            (known, other) => other.or(known),
        };
    }
    let instances = instances.into_values().map(|instance| instance.seen(revision.as_ref())).collect();
    Status { revision, instances }
}

/// Shows the proxies.
///
/// # Errors
/// Nobody answers.
pub fn run(args: &StatusArgs, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    let asked = Asked::all(store, &args.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, faults) = runtime.block_on(ask_all(&asked))?;
    faults.iter().for_each(|fault| out.note(format_args!("warning: {fault}")));
    match args.format.output {
        Format::Json | Format::Yaml => {
            let value = serde_json::to_value(&status).map_err(|why| CliError::failure(why.to_string()))?;
            out.value(&value, args.format.output)
        }
        Format::Name => status.instances.iter().try_for_each(|seen| out.line(&seen.instance.id)),
        Format::Table | Format::Wide => {
            let wide = args.format.output == Format::Wide;
            let rows: Vec<_> = status.instances.iter().map(|seen| row(seen, wide)).collect();
            let header =
                ["INSTANCE", "ROLES", "GENERATION", "REVISION", "STATUS", "PROBLEMS", "REQUESTS", "VERSION"];
            out.table(&header[..if wide { 8 } else { 6 }], &rows)?;
            for seen in &status.instances {
                let Instance { id, problems, .. } = &seen.instance;
                problems.iter().for_each(|problem| out.note(format_args!("{id}: {problem}")));
            }
            Ok(())
        }
    }
}

fn row(Seen { instance, status }: &Seen, wide: bool) -> Vec<String> {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let revision =
        instance.revision.as_ref().map_or_else(String::new, |revision| revision.as_str().to_owned());
    let mut row = vec![
        instance.id.clone(),
        or_none(instance.roles.join(",")),
        instance.generation.to_string(),
        or_none(revision),
        status.as_str().to_owned(),
        (instance.problems.len() + instance.unavailable.len()).to_string(),
    ];
    if wide {
        row.push(instance.requests.values().sum::<u64>().to_string());
        row.push(instance.version.clone());
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Standing;
    use crate::store::shared::Revision;

    #[test]
    fn a_proxy_that_two_hubs_know_is_there_once_as_it_is_now() {
        let status = |revision: u64, instances: &[(&str, u64)]| {
            let instance = |(id, generation): &(&str, u64)| Instance {
                id: (*id).to_owned(),
                generation: *generation,
                revision: Some(Revision::new(generation)),
                ..Instance::default()
            };
            let revision = Some(Revision::new(revision));
            let seen = instances.iter().map(|one| instance(one).seen(revision.as_ref())).collect();
            Status { instances: seen, revision }
        };
        let merged = merged(vec![status(5, &[("a", 4), ("b", 5)]), status(4, &[("a", 5), ("c", 4)])]);
        let told: Vec<_> = merged.instances.iter().map(|seen| (&*seen.instance.id, seen.status)).collect();
        assert_eq!(told, [("a", Standing::Synced), ("b", Standing::Synced), ("c", Standing::Stale)]);
        assert_eq!(merged.revision, Some(Revision::new(5)));
    }
}
