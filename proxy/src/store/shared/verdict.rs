//! Saying in the store itself whether what it holds is in force, where it has a place for that: so that who wrote an
//! environment by another way than ours sees what became of it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::diagnostic::Diagnostic;
use tokio::time::sleep;

use super::follow::name_of;
use super::{Revision, Shared, Verdict};
use crate::control::Control;
use crate::panics;
use crate::store::mirror::Mirror;

/// So long it is waited at least before anything is said: what changes at once is said at once, and of many who would
/// say the same the first one does.
const PAUSE: Duration = Duration::from_millis(500);
/// And up to so much longer.
const SPREAD: Duration = Duration::from_millis(1500);
/// So long is waited where it could not be said.
const RETRY: Duration = Duration::from_secs(30);
/// So many mistakes of one entry are told.
const TOLD: usize = 5;

/// What was said of entries, by name.
type Said = HashMap<Arc<str>, (Revision, Option<String>), RandomState>;

/// Says it for as long as the process lives.
pub async fn say(store: Arc<dyn Shared>, mirror: Arc<Mirror>, control: Arc<Control>) {
    if !store.takes_verdicts() {
        return;
    }
    let mut revisions = control.revisions();
    let mut generations = control.published().generations();
    let (mut said, mut refused) = (Said::default(), false);
    loop {
        revisions.borrow_and_update();
        generations.borrow_and_update();
        sleep(PAUSE + SPREAD.mul_f64(fastrand::f64())).await;
        let due = if mirror.is_current() { due(&mirror, &control, &said).await } else { Vec::new() };
        match if due.is_empty() { Ok(()) } else { store.say(&due).await } {
            Ok(()) => {
                said.retain(|name, _| mirror.revision_of(name).is_some());
                said.extend(due.into_iter().map(|one| (one.name.into(), (one.revision, one.wrong))));
            }
            Err(fault) => {
                // Not every account may, and the environments stand all the same.
                if !std::mem::replace(&mut refused, true) {
                    tracing::info!(%fault, "whether environments are in force is not said in the store");
                }
                sleep(RETRY).await;
                continue;
            }
        }
        let changed = tokio::select! {
            changed = revisions.changed() => changed,
            changed = generations.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What is not said yet. Not on a thread that serves the control side: a large store takes a moment.
async fn due(mirror: &Arc<Mirror>, control: &Arc<Control>, said: &Said) -> Vec<Verdict> {
    let (mirror, control) = (mirror.clone(), control.clone());
    let all = tokio::task::spawn_blocking(move || all(&mirror, &control)).await.unwrap_or_else(|ended| {
        panics::pass_on(ended);
        Vec::new()
    });
    let new = |one: &Verdict| {
        said.get(&*one.name).is_none_or(|(revision, wrong)| *revision != one.revision || *wrong != one.wrong)
    };
    all.into_iter().filter(new).collect()
}

fn all(mirror: &Mirror, control: &Control) -> Vec<Verdict> {
    let mut wrong: HashMap<String, Vec<Diagnostic>, RandomState> = HashMap::default();
    for diagnostic in control.lineages(overlane_config::lineage::Lineages::diagnostics) {
        if diagnostic.is_error() {
            wrong.entry(name_of(&diagnostic.path).to_owned()).or_default().push(diagnostic);
        }
    }
    let Some(everything) = mirror.everything() else { return Vec::new() };
    let verdict = |(name, kept): (Arc<str>, crate::store::mirror::Kept)| Verdict {
        wrong: wrong.get(&*name).map(|list| told(list)),
        name: name.to_string(),
        revision: kept.revision,
    };
    everything.entries.into_iter().map(verdict).collect()
}

/// Mistakes as one text.
fn told(mistakes: &[Diagnostic]) -> String {
    let mut text = String::new();
    for (number, mistake) in mistakes.iter().take(TOLD).enumerate() {
        let place =
            mistake.location.as_ref().map(|place| format!("line {}: ", place.line())).unwrap_or_default();
        let hint = mistake.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = write!(text, "{}{place}{}{hint}", if number == 0 { "" } else { "; " }, mistake.message);
    }
    if mistakes.len() > TOLD {
        let _ = write!(text, "; and {} more", mistakes.len() - TOLD);
    }
    text
}
