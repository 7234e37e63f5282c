//! Counting, by each worker on its own thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::name::EnvironmentId;
use tokio::sync::{mpsc, oneshot};

use super::durations::Observed;
use super::event::Event;
use super::labels::{Counted, Labels, Place};
use super::{Besides, Meter};
use crate::calls::Call;
use crate::capacity::Full;
use crate::plane::h2::budget::{Flood, Side};
use crate::plane::overload::{Limit, levels};
use crate::tls::accept::HandshakeFailure;
use crate::tokens::Refused as RefusedToken;

/// What one worker counts. The labels are kept, so nobody else gets their place.
#[derive(Default)]
struct Counting {
    requests: HashMap<Place, (Labels, Observed), RandomState>,
    besides: Besides,
}

thread_local! {
    static COUNTING: RefCell<Counting> = RefCell::default();
}

/// Counts an event on this thread.
pub fn count(event: Event) {
    COUNTING.with_borrow_mut(|counting| counting.besides.events[event as usize] += 1);
}

/// Counts on this thread a key that is no valid id, in the carrier with this name.
pub fn count_invalid_key(carrier: &str) {
    COUNTING.with_borrow_mut(|counting| match counting.besides.invalid.get_mut(carrier) {
        Some(count) => *count += 1,
        None => {
            counting.besides.invalid.insert(carrier.into(), 1);
        }
    });
}

/// Counts a failed handshake on this thread.
pub fn count_handshake_failure(failure: HandshakeFailure) {
    COUNTING.with_borrow_mut(|counting| counting.besides.handshake_failures[failure as usize] += 1);
}

/// Counts on this thread a token that gives no right.
pub fn count_refused_token(why: RefusedToken) {
    COUNTING.with_borrow_mut(|counting| counting.besides.tokens[why as usize] += 1);
}

/// Counts on this thread a connection of HTTP/2 that was ended for a flood.
pub fn count_flood(from: Side, flood: Flood) {
    COUNTING.with_borrow_mut(|counting| counting.besides.floods[from as usize][flood as usize] += 1);
}

/// Counts on this thread a request that is refused under a limit.
pub fn count_overload(limit: Limit, full: Full) {
    let share = usize::from(full != Full::All);
    COUNTING.with_borrow_mut(|counting| counting.besides.overloads[limit as usize][share] += 1);
}

/// Counts a call on this thread.
pub fn count_call(call: Call) {
    COUNTING.with_borrow_mut(|counting| *counting.besides.calls.entry(call).or_default() += 1);
}

/// Counts a finished request on this thread: how long it took, and how much of that was `added` to what its upstream took,
/// where one answered.
// So that a profile shows what it costs.
#[inline(never)]
pub fn observe(request: &Counted<'_>, took: Duration, added: Option<Duration>) {
    COUNTING.with_borrow_mut(|counting| {
        if let Some(added) = added {
            counting.besides.added.note(added);
        }
        let entry = counting.requests.entry(Place::of(request));
        let (_, observed) = entry.or_insert_with(|| (Labels::of(request), Observed::default()));
        observed.note(took);
    });
}

/// What this thread has counted.
pub(crate) fn counted() -> Meter {
    COUNTING.with_borrow(|counting| {
        let besides = counting.besides.clone();
        let mut meter = Meter { besides, levels: levels(), ..Meter::default() };
        for (labels, observed) in counting.requests.values() {
            meter.requests.entry(labels.clone()).or_default().add(observed);
        }
        meter
    })
}

/// Answers scrapes on a worker's thread until all doors are gone; forgets overlays that are gone.
pub(crate) async fn answer_scrapes(
    mut requests: mpsc::Receiver<oneshot::Sender<Meter>>,
    exists: impl Fn(&EnvironmentId) -> bool,
) {
    while let Some(reply) = requests.recv().await {
        COUNTING.with_borrow_mut(|counting| {
            counting.requests.retain(|_, (labels, _)| labels.overlay.as_ref().is_none_or(&exists));
        });
        let _ = reply.send(counted());
    }
}
