//! The stream of rules for consumers that decide alone: server-sent events.
//!
//! First a `RULE` for each environment, then one `SYNCED`; after that what changes, as `RULE` and `GONE`,
//! each time with a `SYNCED`. A reader that is slow skips generations, and sees the newest: nothing is
//! queued for it. The `id` of an event is the generation; who connects again gets everything again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::{Admin, problem};
use crate::clock;
use crate::messages::{Consumer, Place};
use crate::plane::drain::Stage;

/// How long the stream is silent at most: proxies between cut silent ones.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Who watches.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watcher {
    service: Option<String>,
    environment: Option<String>,
}

/// One stream.
struct Watch {
    admin: Admin,
    consumer: Consumer,
    generations: watch::Receiver<u64>,
    /// What the reader knows: who handles the messages of each key.
    known: BTreeMap<String, Option<String>>,
    synced: bool,
}

pub(super) async fn rules(State(admin): State<Admin>, Query(watcher): Query<Watcher>) -> Response {
    let snapshot = admin.control.published().load_full();
    let place = Place::of(admin.gates.iter().map(|gate| &gate.listener));
    let Watcher { service, environment } = &watcher;
    let consumer = match Consumer::new(&snapshot.table, &place, service.as_deref(), environment.as_deref()) {
        Ok(consumer) => consumer,
        Err(why) => return problem(StatusCode::BAD_REQUEST, &why),
    };
    // It decides by itself, and does not say what came.
    admin.gates.iter().for_each(|gate| gate.correlation.messages_come());
    let generations = admin.control.published().generations();
    let watch = Watch { admin, consumer, generations, known: BTreeMap::new(), synced: false };
    let events = stream::unfold(watch, async |mut watch| {
        let events = watch.next().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from(events)), watch))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(events)).into_response()
}

impl Watch {
    /// The next events; `None` when the process stops. Called only when the reader took those before.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.admin.drain.stage() >= Stage::Draining {
                return None;
            }
            self.generations.borrow_and_update();
            let events = self.events();
            if let Some(events) = events {
                return Some(events);
            }
            tokio::select! {
                () = self.admin.drain.reached(Stage::Draining) => return None,
                changed = tokio::time::timeout(KEEP_ALIVE, self.generations.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(": nothing new\n\n".to_owned()),
                },
            }
        }
    }

    /// What is different from what the reader knows; `None` where nothing is.
    fn events(&mut self) -> Option<String> {
        let snapshot = self.admin.control.published().load_full();
        let rules = self.consumer.rules(&snapshot.table, clock::now());
        let mut events = String::new();
        let mut event = |name: &str, data: serde_json::Value| {
            // Writing to memory does not fail.
            let _ = write!(events, "event: {name}\nid: {}\ndata: {data}\n\n", snapshot.generation);
        };
        for (key, handler) in &rules {
            if self.known.get(key) != Some(handler) {
                let mine = handler.as_deref() == Some(self.consumer.environment.as_str());
                event("RULE", json!({ "key": key, "environment": handler, "mine": mine }));
            }
        }
        for key in self.known.keys().filter(|key| !rules.contains_key(*key)) {
            event("GONE", json!({ "key": key }));
        }
        if self.synced && rules == self.known {
            return None;
        }
        event(
            "SYNCED",
            json!({ "generation": snapshot.generation, "service": self.consumer.service.as_str() }),
        );
        (self.known, self.synced) = (rules, true);
        Some(events)
    }
}
