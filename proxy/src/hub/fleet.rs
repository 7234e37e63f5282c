//! Who follows this hub, by what they say of themselves. Who falls silent is forgotten.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;

use super::Hub;
use super::questions::Questions;
use crate::admin::problem;
use crate::status::{Instance, REPORT};

/// Who is silent for so long is gone.
const SILENT: Duration = REPORT.saturating_mul(4);
/// The most proxies that are known; more are neither heard nor asked.
pub(super) const MOST: usize = 10_000;
/// The longest name of one, in bytes.
pub(super) const NAME: usize = 256;
/// The largest report, in bytes.
const REPORT_BYTES: usize = 256 * 1024;

/// The proxies that report.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    known: Arc<Mutex<BTreeMap<String, (Instance, Instant)>>>,
    /// What they are asked.
    pub questions: Arc<Questions>,
}

impl Fleet {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, (Instance, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what one says; false where there are too many.
    fn hear(&self, instance: Instance, now: Instant) -> bool {
        let mut known = self.known();
        if known.len() >= MOST && !known.contains_key(&instance.id) {
            forget(&mut known, now);
            if known.len() >= MOST {
                return false;
            }
        }
        known.insert(instance.id.clone(), (instance, now));
        true
    }

    /// Who is there.
    #[must_use]
    pub fn instances(&self, now: Instant) -> Vec<Instance> {
        let mut known = self.known();
        forget(&mut known, now);
        known.values().map(|(instance, _)| instance.clone()).collect()
    }
}

fn forget(known: &mut BTreeMap<String, (Instance, Instant)>, now: Instant) {
    known.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < SILENT);
}

pub(super) async fn hear(State(hub): State<Hub>, body: Bytes) -> Response {
    if body.len() > REPORT_BYTES {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "a report is smaller");
    }
    let instance: Instance = match serde_json::from_slice(&body) {
        Ok(instance) => instance,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if instance.id.is_empty() || instance.id.len() > NAME {
        return problem(StatusCode::BAD_REQUEST, "a proxy has a name of 1 to 256 bytes");
    }
    match hub.fleet.hear(instance, Instant::now()) {
        true => StatusCode::NO_CONTENT.into_response(),
        false => problem(StatusCode::SERVICE_UNAVAILABLE, "too many proxies report to this hub"),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Leaver {
    id: String,
}

pub(super) async fn leave(State(hub): State<Hub>, Query(leaver): Query<Leaver>) -> StatusCode {
    hub.fleet.known().remove(&leaver.id);
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str) -> Instance {
        Instance { id: id.to_owned(), ..Instance::default() }
    }

    #[test]
    fn who_falls_silent_is_forgotten_and_a_flood_of_names_is_bounded() {
        let (fleet, begun) = (Fleet::default(), Instant::now());
        let ids = |at| fleet.instances(at).into_iter().map(|instance| instance.id).collect::<Vec<_>>();
        assert!(fleet.hear(instance("a"), begun) && fleet.hear(instance("b"), begun));
        let later = begun + SILENT / 2;
        assert!(fleet.hear(instance("b"), later));
        assert_eq!(ids(later), ["a", "b"]);
        assert_eq!(ids(begun + SILENT), ["b"]);
        for n in 0..MOST {
            fleet.hear(instance(&n.to_string()), later);
        }
        assert!(!fleet.hear(instance("one more"), later) && fleet.hear(instance("b"), later));
        assert!(fleet.hear(instance("one more"), later + SILENT), "there is room again");
    }
}
