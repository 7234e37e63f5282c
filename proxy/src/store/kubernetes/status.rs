//! The condition `Accepted` of objects: whether what they say is in force, of which generation, and what is wrong.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::Cluster;
use super::connection::{ANSWER, Call, Failure, Resource};
use super::object::{self, Kind, Named, Object, Part};
use crate::clock;
use crate::store::shared::Verdict;

const ACCEPTED: &str = "Accepted";
/// For more than so many, all objects are listed, instead of one after the other.
const MANY: usize = 50;
/// So many are written at once.
const AT_ONCE: usize = 8;

impl Cluster {
    /// Notes verdicts on objects that do not say so already.
    pub(super) async fn say(self: &Arc<Self>, verdicts: &[Verdict]) -> Result<(), Failure> {
        let all = if verdicts.len() > MANY { Some(self.by_name().await?) } else { None };
        let all = &all;
        let say = async |verdict: &Verdict| {
            let Some((name, Part::Environment)) = object::part(&verdict.name) else { return Ok(()) };
            let named = match all {
                Some(all) => all.get(name).cloned().unwrap_or_default(),
                None if object::is_name(name) => self.named(name).await?,
                None => return Ok(()),
            };
            self.say_of(name, &named, verdict).await
        };
        stream::iter(verdicts).map(say).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn by_name(&self) -> Result<HashMap<String, Named, RandomState>, Failure> {
        let mut named: HashMap<String, Named, RandomState> = HashMap::default();
        for kind in Kind::ALL {
            for object in self.all(kind).await?.0 {
                named.entry(object.name().to_owned()).or_default().set(kind, Some(object));
            }
        }
        Ok(named)
    }

    async fn say_of(&self, name: &str, named: &Named, verdict: &Verdict) -> Result<(), Failure> {
        let state = named.entry(name, Part::Environment).map(|entry| entry.revision);
        if state.as_ref() != Some(&verdict.revision) {
            // It is another one by now, of which more will be said.
            return Ok(());
        }
        for object in named.all() {
            let Some(conditions) = conditions(object, verdict.wrong.as_deref()) else { continue };
            let body = json!({
                "metadata": { "resourceVersion": object.resource_version() },
                "status": { "conditions": conditions },
            });
            let call = Call::new("patch", Resource::Status(object.kind));
            let call = Call {
                name: object.name(),
                query: "fieldManager=overlane-status",
                body: Some(&body),
                ..call
            };
            match self.connection.ask(call, ANSWER).await {
                // Others say the same, or it is another one by now.
                Err(failure) if !failure.is_conflict() && !failure.is_absent() => return Err(failure),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The conditions of an object with ours as it should be; none where it is so.
fn conditions(object: &Object, wrong: Option<&str>) -> Option<Vec<Value>> {
    let mut all = object.value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let (status, reason) = if wrong.is_none() { ("True", "InForce") } else { ("False", "Invalid") };
    let mut condition = json!({
        "type": ACCEPTED,
        "status": status,
        "reason": reason,
        "message": wrong.unwrap_or("proxies route by it"),
        "observedGeneration": object.value["metadata"]["generation"].as_i64().unwrap_or(0),
    });
    let known = all.iter().position(|one| one["type"] == ACCEPTED);
    let before = known.map(|at| all.remove(at));
    let since = before.as_ref().filter(|before| before["status"] == status);
    condition["lastTransitionTime"] = match since {
        Some(before) => before["lastTransitionTime"].clone(),
        None => seconds().into(),
    };
    if before.as_ref() == Some(&condition) {
        return None;
    }
    all.push(condition);
    Some(all)
}

/// Now, in whole seconds, as conditions have it.
fn seconds() -> String {
    let now = clock::now().to_string();
    now.split_once('.').map_or_else(|| now.clone(), |(seconds, _)| format!("{seconds}Z"))
}
