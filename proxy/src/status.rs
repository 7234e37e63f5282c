//! What a proxy says of itself: to its hub, and to whoever asks its admin listener.

use std::collections::BTreeMap;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::Method;
use overlane_config::table::Environment;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::admin::Admin;
use crate::metrics;
use crate::plane::drain::Stage;
use crate::store::hub::HubStore;
use crate::store::shared::Revision;

/// Where proxies report.
pub const INSTANCES: &str = "/hub/v1/instances";
/// How often a proxy reports where nothing changes.
pub const REPORT: Duration = Duration::from_secs(5);
/// The longest pause before a change is reported: a fleet does not speak at once.
const SOON: Duration = Duration::from_millis(50);
/// The most problems, and services without an address, of which a report tells.
const NAMED: usize = 50;
/// The most overlays, and pairs of services, of which a report has counts.
const COUNTED: usize = 200;

/// What a proxy says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Instance {
    /// Its name, the same for as long as it runs.
    pub id: String,
    /// The roles of its listeners.
    pub roles: Vec<String>,
    /// The version of the program.
    pub version: String,
    /// The generation in force.
    pub generation: u64,
    /// The state of the store in force, where that has any.
    pub revision: Option<Revision>,
    /// Whether it cannot read its store, so that what is in force may be old.
    pub stale: bool,
    /// What is wrong: the first of it.
    pub problems: Vec<String>,
    /// Services of overlays that have no address, as far as it knows: the first of them.
    pub unavailable: Vec<Unavailable>,
    /// Requests by overlay since it started; those without under an empty name. Only the most asked for.
    pub requests: BTreeMap<String, u64>,
    /// Those of them that the overlay itself answered.
    pub served: BTreeMap<String, u64>,
    /// What became of keys in the calls of its application since it started.
    pub calls: Vec<Calls>,
}

/// A service of an overlay that has no address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// The overlay.
    pub environment: String,
    /// The service.
    pub service: String,
    /// Why.
    pub why: String,
}

/// How often this became of the key in calls of one service to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Who calls.
    pub service: String,
    /// Who is called.
    pub peer: String,
    /// What became of the key, as metrics have it.
    pub result: String,
    /// What the caller is written in, where that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub language: String,
    /// How often.
    pub count: u64,
}

/// A proxy among others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// What it says.
    #[serde(flatten)]
    pub instance: Instance,
    /// Whether it routes by what the store says.
    pub status: Standing,
}

/// Whether a proxy routes by what the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Standing {
    /// It does.
    Synced,
    /// By something older.
    Stale,
}

impl Standing {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
        }
    }
}

/// What a hub, or a proxy alone, knows of proxies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state of the store, where it has any.
    pub revision: Option<Revision>,
    /// The proxies.
    pub instances: Vec<Seen>,
}

impl Instance {
    /// It, where the store is in this state.
    #[must_use]
    pub fn seen(self, now: Option<&Revision>) -> Seen {
        let reached = match (&self.revision, now) {
            (Some(own), Some(now)) => own.is_at_least(now),
            (own, now) => now.is_none() || own.is_some(),
        };
        let status = if self.stale || !reached { Standing::Stale } else { Standing::Synced };
        Seen { instance: self, status }
    }
}

/// A name for a process: its pod's or its machine's, and its number there.
#[must_use]
pub fn name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(machine);
    match MADE.fetch_add(1, Relaxed) {
        0 => format!("{host}/{}", process::id()),
        more => format!("{host}/{}.{more}", process::id()),
    }
}

impl Admin {
    /// What this process says of itself.
    pub async fn instance(&self) -> Instance {
        let snapshot = self.control.published().load_full();
        let mut roles: Vec<_> = self.gates.iter().map(|gate| gate.role().to_owned()).collect();
        roles.dedup();
        let mut problems = self.problems();
        problems.truncate(NAMED);
        let mut unavailable = Vec::new();
        let overlays = snapshot.table.environments().filter_map(|(id, environment)| match environment {
            Environment::Overlay(overlay) => Some((id, overlay)),
            _ => None,
        });
        for (id, owned) in
            overlays.flat_map(|(id, overlay)| overlay.owned().iter().map(move |owned| (id, owned)))
        {
            let upstream = &owned.route.upstream;
            let why = match (upstream.urls().is_empty(), upstream.endpoints()) {
                (true, _) => "pending".to_owned(),
                (false, Some(endpoints)) if endpoints.list.is_empty() => upstream.problem(),
                _ => continue,
            };
            let (environment, service) = (id.to_string(), owned.route.service.to_string());
            unavailable.push(Unavailable { environment, service, why });
            if unavailable.len() == NAMED {
                break;
            }
        }
        let meter = metrics::gather(&self.doors).await;
        let calls = meter.calls().take(COUNTED).map(|(call, count)| Calls {
            service: call.service.as_ref().map_or_else(String::new, ToString::to_string),
            peer: call.peer.to_string(),
            result: call.outcome.as_str().to_owned(),
            language: call.language.as_str().to_owned(),
            count,
        });
        Instance {
            id: self.instance.to_string(),
            roles,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: snapshot.generation,
            revision: self.control.revision(),
            stale: self.control.store_unreadable(),
            problems,
            unavailable,
            requests: most(meter.requests_by_overlay()),
            served: most(meter.served_by_overlay()),
            calls: calls.collect(),
        }
    }

    /// What this process alone knows of proxies: itself.
    pub async fn alone(&self) -> Status {
        let instance = self.instance().await;
        let revision = instance.revision.clone();
        Status { instances: vec![instance.seen(revision.as_ref())], revision }
    }
}

/// The largest of these.
fn most(all: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    if all.len() <= COUNTED {
        return all;
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.truncate(COUNTED);
    all.into_iter().collect()
}

/// Reports to the hub: at once what changes, and now and then that it is there. Takes its leave at the end.
pub async fn report(hub: Arc<HubStore>, admin: Admin) {
    let mut revisions = admin.control.revisions();
    loop {
        revisions.borrow_and_update();
        let instance = admin.instance().await;
        if let Ok(body) = serde_json::to_vec(&instance) {
            // A hub that is away is tried again.
            let _ = hub.ask_small(Method::POST, INSTANCES, Some("application/json"), body).await;
        }
        tokio::select! {
            () = admin.drain.reached(Stage::Draining) => break,
            changed = timeout(REPORT.mul_f64(0.75 + fastrand::f64() / 2.0), revisions.changed()) => match changed {
                Ok(Ok(())) => sleep(SOON.mul_f64(fastrand::f64())).await,
                Ok(Err(_)) => return,
                Err(_) => {}
            },
        }
    }
    let id: String = form_urlencoded::byte_serialize(admin.instance.as_bytes()).collect();
    let _ = hub.ask_small(Method::DELETE, &format!("{INSTANCES}?id={id}"), None, "").await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_or_cannot_read_its_store_is_stale() {
        let standing = |own: Option<&str>, stale, now: Option<&str>| {
            let revision = own.map(Revision::new);
            Instance { revision, stale, ..Instance::default() }.seen(now.map(Revision::new).as_ref()).status
        };
        use Standing::{Stale, Synced};
        assert_eq!(standing(Some("7"), false, Some("7")), Synced);
        assert_eq!(standing(Some("8"), false, Some("7")), Synced);
        assert_eq!(standing(Some("6"), false, Some("7")), Stale);
        assert_eq!(standing(Some("7"), true, Some("7")), Stale);
        assert_eq!(standing(Some("x.9"), false, Some("y.9")), Stale);
        assert_eq!(standing(None, false, Some("7")), Stale);
        assert_eq!(standing(None, false, None), Synced);
    }

    #[test]
    fn only_the_most_asked_for_are_told() {
        let all = (0..COUNTED as u64 + 5).map(|count| (count.to_string(), count)).collect();
        let told = most(all);
        assert_eq!(told.len(), COUNTED);
        assert!(!told.contains_key("4") && told.contains_key("5"));
    }
}
