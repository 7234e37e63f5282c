//! The entries of the store: listed and followed from memory, written to the store.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use overlane_config::lineage::About;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Hub;
use super::wire::{Change, LINES, Line, Put, step};
use crate::admin::{problem, refused};
use crate::plane::drain::{Drain, Stage};
use crate::store::mirror::{Everything, Mirror, Unknown};
use crate::store::shared::{Commit, Revision};

/// How long a stream is silent at most: a third of what those who follow bear.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a reader waits for a state that another hub knows already.
const CATCH_UP: Duration = Duration::from_secs(5);
/// About as much is written at once, in bytes.
const CHUNK: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    after: Option<String>,
}

pub(super) async fn list_or_follow(State(hub): State<Hub>, Query(query): Query<After>) -> Response {
    match query.after {
        None => list(hub.behind.mirror()),
        Some(after) => follow(&hub, &Revision::new(after)).await,
    }
}

fn lines(body: Body) -> Response {
    ([(header::CONTENT_TYPE, LINES), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// All entries.
fn list(mirror: &Mirror) -> Response {
    match mirror.everything() {
        Some(everything) => told(everything),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the store could not be read yet"),
    }
}

/// What is around a change, so that who makes it need not read everything.
pub(super) async fn around(State(hub): State<Hub>, body: Bytes) -> Response {
    let change: Change = match serde_json::from_slice(&body) {
        Ok(change) => change,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let about = match About::try_from(change) {
        Ok(about) => about,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match hub.behind.around(&about).await {
        Ok(part) => told(part),
        Err(fault) => problem(StatusCode::SERVICE_UNAVAILABLE, &fault.to_string()),
    }
}

/// Entries, and at the end the state of which they are. Written while it is read, of what stood at the beginning.
fn told(Everything { entries, revision }: Everything) -> Response {
    let entries = entries.into_iter();
    let chunks = stream::unfold(Some((entries, revision)), async |left| {
        let (mut entries, revision) = left?;
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK {
            match entries.next() {
                Some((name, kept)) => Line::Put(Put::of(&name, &kept)).write(&mut chunk),
                None => {
                    Line::At(revision).write(&mut chunk);
                    return Some((Ok::<_, std::io::Error>(chunk.freeze()), None));
                }
            }
        }
        Some((Ok(chunk.freeze()), Some((entries, revision))))
    });
    lines(Body::from_stream(chunks))
}

/// Who follows. Nothing is queued for it: it holds its place in what is remembered for all.
struct Reader {
    mirror: Arc<Mirror>,
    drain: Drain,
    steps: watch::Receiver<u64>,
    told: u64,
}

/// What changes after a state, for as long as the process serves and can read its store. Where it cannot, it says so: who
/// follows then asks another hub, or knows that what it has is STALE.
async fn follow(hub: &Hub, after: &Revision) -> Response {
    let mirror = hub.behind.mirror().clone();
    if hub.drain.stage() >= Stage::Draining {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "this hub ends: ask another one");
    }
    if !mirror.is_current() {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "this hub cannot read its store: ask another one, or wait",
        );
    }
    // A hub beside this one was faster: its readers are not sent back in time.
    mirror.until(CATCH_UP, |mirror| mirror.after(after) != Err(Unknown::Ahead)).await;
    let Ok(told) = mirror.after(after) else {
        return problem(StatusCode::GONE, "this hub does not know that state: list everything again");
    };
    let reader = Reader { steps: mirror.steps(), mirror, drain: hub.drain.clone(), told };
    let chunks = stream::unfold(Some(reader), async |reader| {
        let mut reader = reader?;
        let (chunk, goes_on) = reader.next().await?;
        Some((Ok::<_, std::io::Error>(chunk), goes_on.then_some(reader)))
    });
    lines(Body::from_stream(chunks))
}

impl Reader {
    /// What is new, and whether there can be more; `None` when the process stops, or cannot read its store any more.
    async fn next(&mut self) -> Option<(Bytes, bool)> {
        loop {
            if self.drain.stage() >= Stage::Draining {
                return None;
            }
            self.steps.borrow_and_update();
            if !self.mirror.is_current() {
                return None;
            }
            let Some((new, told, now)) = self.mirror.since(self.told) else {
                return Some((Line::Forgotten.alone(), false));
            };
            self.told = told;
            if !new.is_empty() {
                let mut lines = new.iter().map(|new| new.written(step));
                let chunk = match new.len() {
                    1 => lines.next()?,
                    _ => lines
                        .fold(BytesMut::new(), |mut all, lines| {
                            all.extend_from_slice(&lines);
                            all
                        })
                        .freeze(),
                };
                return Some((chunk, true));
            }
            tokio::select! {
                () = self.drain.reached(Stage::Draining) => return None,
                changed = timeout(HEARTBEAT, self.steps.changed()) => match changed {
                    Ok(changed) => changed.ok()?,
                    Err(_) => return Some((Line::At(now).alone(), true)),
                },
            }
        }
    }
}

pub(super) async fn commit(State(hub): State<Hub>, body: Bytes) -> Response {
    let commit: Commit = match serde_json::from_slice(&body) {
        Ok(commit) => commit,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if commit.writes.is_empty() {
        return problem(StatusCode::BAD_REQUEST, "there is nothing to write");
    }
    match hub.behind.commit(commit).await {
        Ok(committed) => axum::Json(committed).into_response(),
        Err(error) => refused(error),
    }
}
