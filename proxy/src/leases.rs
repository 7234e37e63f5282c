//! Leases of overlays that live from their last use (`ttlFrom: use`): a proxy that saw one used has it live longer, in
//! the store, and rarely.
//!
//! Uses are read from the counts that workers keep anyway. Nobody is told of each use: a lease is extended once less
//! than half of it is left, and then as far as the last use says, so an overlay expires its ttl after that, however
//! many proxies there are. Each waits for a moment of its own; whoever finds that another came first writes nothing.

#[cfg(test)]
mod simulation;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::lineage::{Lineages, Standing};
use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;

use crate::clock;
use crate::control::Control;
use crate::metrics::{Meter, MeterDoor, gather};
use crate::pauses::Pauses;
use crate::store::behind::Behind;
use crate::store::open::{OpenStore, WriteError};

/// How often it is looked what was used, at most and at least. Between these it is an eighth of the shortest ttl.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Where leases cannot be extended from here, the longest pause before that is tried again, or a fourth of the shortest ttl; the first
/// ones are as [`LOOK`] says.
const RETRY: Duration = Duration::from_secs(300);

type Map<V> = HashMap<EnvironmentId, V, RandomState>;

/// Until when an overlay lives, and for how long after each use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    until: UnixMillis,
    ttl: Duration,
}

/// What one proxy knows of the uses of overlays that live from their last one.
#[derive(Debug, Default)]
struct Uses {
    /// How many requests there were when it was last looked.
    counts: Map<u64>,
    /// When each was last seen used, as far as that is later than its lease knows.
    last: Map<UnixMillis>,
    /// When a lease that ends then is extended, at the earliest.
    planned: Map<(UnixMillis, UnixMillis)>,
}

impl Uses {
    /// Takes in how many requests there were so far; `counts` holds the descendants' as well.
    fn note(&mut self, counts: Map<u64>, now: UnixMillis) {
        for (id, count) in &counts {
            if self.counts.get(id).copied().unwrap_or_default() < *count {
                self.last.insert(id.clone(), now);
            }
        }
        self.counts = counts;
    }

    /// Which leases are to be extended now, and until when. `random` is between 0 and 1.
    fn due(
        &mut self,
        now: UnixMillis,
        lease: impl Fn(&EnvironmentId) -> Option<Lease>,
        mut random: impl FnMut() -> f64,
    ) -> Vec<(EnvironmentId, UnixMillis)> {
        let mut due = Vec::new();
        let planned = &mut self.planned;
        self.last.retain(|id, last| {
            // What has expired is not used: its key is that of nobody.
            let lease = lease(id).filter(|lease| lease.until > now);
            // Ends are written in whole seconds: what is less than one later is the same.
            let extended = lease.map(|lease| UnixMillis(last.after(lease.ttl).0 / 1000 * 1000));
            let later = lease.zip(extended).filter(|(lease, extended)| *extended > lease.until);
            let Some((Lease { until, ttl }, extended)) = later else {
                planned.remove(id);
                return false;
            };
            let plan = planned.get(id).filter(|(of, _)| *of == until).map(|(_, at)| *at);
            let at = plan.unwrap_or_else(|| {
                let left = ttl.mul_f64(0.5 - 0.25 * random());
                UnixMillis(until.0.saturating_sub(UnixMillis(0).after(left).0))
            });
            planned.insert(id.clone(), (until, at));
            if at <= now {
                due.push((id.clone(), extended));
            }
            true
        });
        due
    }
}

/// The overlays that live from their last use.
fn leases(lineages: &Lineages) -> Map<Lease> {
    lineages.renewed().map(|(id, until, ttl)| (id.clone(), Lease { until, ttl })).collect()
}

/// How many requests there were with the key of each of these overlays, or of a descendant.
fn counts(meter: &Meter, leases: &Map<Lease>, lineages: &Lineages) -> Map<u64> {
    let mut counts: Map<u64> = Map::default();
    for (overlay, count) in meter.by_overlay() {
        let mut next = Some(overlay);
        while let Some(id) = next {
            if leases.contains_key(id) {
                *counts.entry(id.clone()).or_default() += count;
            }
            next = lineages.standing(id).and_then(Standing::resolved).and_then(|own| own.parent.as_ref());
        }
    }
    counts
}

/// Extends what is used, in the store, while anything can be published.
pub(crate) async fn extend_used(control: Arc<Control>, doors: Vec<MeterDoor>, behind: Behind) {
    let mut uses = Uses::default();
    let mut failing: Option<Pauses> = None;
    let mut generations = control.published().generations();
    loop {
        let leases = control.lineages(leases);
        if leases.is_empty() {
            if generations.changed().await.is_err() {
                return;
            }
            continue;
        }
        let shortest = leases.values().map(|lease| lease.ttl).min().unwrap_or(Duration::MAX);
        let look = (shortest / 8).clamp(LOOK.0, LOOK.1);
        // Who may only read is not heard any sooner for asking again and again.
        tokio::time::sleep(failing.as_mut().map_or(look, |pauses| pauses.next().max(look))).await;
        let meter = gather(&doors).await;
        if !meter.is_whole() {
            // What a worker counted that did not answer in time would look like uses when it does.
            continue;
        }
        let now = clock::now();
        uses.note(control.lineages(|lineages| counts(&meter, &leases, lineages)), now);
        let due = uses.due(now, |id| leases.get(id).copied(), fastrand::f64);
        if due.is_empty() {
            continue;
        }
        let written = behind.write(move |open, _| extend(open, &due, now)).await;
        let problem = written.err().map(|error| crate::cli::output::CliError::from(error).message);
        match &problem {
            Some(problem) if failing.is_none() => tracing::warn!(
                %problem, "leases of overlays that are used cannot be extended from here; others may do so"
            ),
            None if failing.is_some() => {
                tracing::info!("leases of overlays that are used can be extended again");
            }
            _ => {}
        }
        let longest = (shortest / 4).clamp(look, RETRY);
        failing = problem.map(|_| failing.unwrap_or_else(|| Pauses::new(look, longest)));
    }
}

/// Has these overlays live until then at least; those that are gone or have expired stay so.
fn extend(
    open: &mut OpenStore,
    due: &[(EnvironmentId, UnixMillis)],
    now: UnixMillis,
) -> Result<(), WriteError> {
    for (id, until) in due {
        match open.extend(id, *until, Some(now), false) {
            Ok(_) | Err(WriteError::NotFound(_) | WriteError::NeverExpires(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
