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

/// How often a worker tidies up what it counts, while nobody asks for it.
const TIDY: Duration = Duration::from_secs(30);

/// What is counted at a place. The labels are kept, so nobody else gets it.
struct Entry {
    labels: Labels,
    observed: Observed,
    /// Whether anything was counted here since it was last tidied up.
    used: bool,
}

/// What one worker counts.
#[derive(Default)]
struct Counting {
    requests: HashMap<Place, Entry, RandomState>,
    /// How often it is still to be joined when it is tidied up: at the next time what was counted at the old places of names was
    /// counted lately, and at the one after it no more.
    joins: u8,
    besides: Besides,
}

impl Counting {
    /// Forgets overlays that are gone, and joins what was counted at several places.
    fn tidy(&mut self, exists: impl Fn(&EnvironmentId) -> bool) {
        self.requests.retain(|_, entry| entry.labels.overlay.as_ref().is_none_or(&exists));
        if self.joins > 0 {
            self.joins -= 1;
            self.join();
        }
        self.requests.values_mut().for_each(|entry| entry.used = false);
    }

    /// Joins what was counted under the same labels, where nothing is counted any more: a reload moves the names of the
    /// environments that it concerns.
    fn join(&mut self) {
        type Places = HashMap<Place, Entry, RandomState>;
        let (mut kept, left): (Places, Places) = self.requests.drain().partition(|(_, entry)| entry.used);
        let labels = |(place, entry): (&Place, &Entry)| (entry.labels.clone(), *place);
        let mut places: HashMap<Labels, Place, RandomState> = kept.iter().map(labels).collect();
        for (place, entry) in left {
            match places.get(&entry.labels).and_then(|at| kept.get_mut(at)) {
                Some(one) => one.observed.add(&entry.observed),
                None => {
                    places.insert(entry.labels.clone(), place);
                    kept.insert(place, entry);
                }
            }
        }
        self.requests = kept;
    }
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
        let new = || {
            counting.joins = 2;
            Entry { labels: Labels::of(request), observed: Observed::default(), used: false }
        };
        let Entry { observed, used, .. } = entry.or_insert_with(new);
        *used = true;
        observed.note(took);
    });
}

/// What this thread has counted.
pub(crate) fn counted() -> Meter {
    COUNTING.with_borrow(|counting| {
        let besides = counting.besides.clone();
        let mut meter = Meter { besides, levels: levels(), ..Meter::default() };
        for Entry { labels, observed, .. } in counting.requests.values() {
            meter.requests.entry(labels.clone()).or_default().add(observed);
        }
        meter
    })
}

/// Answers scrapes on a worker's thread until all doors are gone, and tidies up before each, and while nobody asks.
pub(crate) async fn answer_scrapes(
    mut requests: mpsc::Receiver<oneshot::Sender<Meter>>,
    exists: impl Fn(&EnvironmentId) -> bool,
) {
    loop {
        let asked = tokio::time::timeout(TIDY, requests.recv()).await;
        if asked.is_ok() || COUNTING.with_borrow(|counting| counting.joins > 0) {
            COUNTING.with_borrow_mut(|counting| counting.tidy(&exists));
        }
        match asked {
            Ok(Some(reply)) => drop(reply.send(counted())),
            Ok(None) => break,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::plane::Gate;

    #[test]
    fn what_was_counted_before_and_after_a_reload_is_kept_once_and_all_of_it() {
        let gate = Gate::of_tests();
        let count = |overlay: &str| {
            // As a reload has it: the same names at another place.
            let (overlay, service) = (overlay.parse().expect("id"), "web".parse().expect("name"));
            let request = Counted::of_tests(&overlay, &service, &gate);
            observe(&request, Duration::from_millis(2), None);
            (overlay, service)
        };
        let tidy = |gone: &str| {
            COUNTING.with_borrow_mut(|counting| counting.tidy(|id| id.as_str() != gone));
            COUNTING.with_borrow(|counting| counting.requests.len())
        };
        let kept: Vec<_> = (0..100).flat_map(|_| ["alice", "bob"].map(count)).collect();
        // Requests go on at the last places; these are the ones that stay, and the others are joined once nothing came there.
        let go_on = || {
            for (overlay, web) in &kept[kept.len() - 2..] {
                observe(&Counted::of_tests(overlay, web, &gate), Duration::from_millis(2), None);
            }
        };
        tidy("");
        go_on();
        assert_eq!(tidy(""), 2);
        go_on();
        assert_eq!(tidy(""), 2);
        let all =
            |counts: &[(&str, u64)]| counts.iter().map(|(id, count)| ((*id).to_owned(), *count)).collect();
        assert_eq!(counted().requests_by_overlay(), all(&[("alice", 102), ("bob", 102)]));
        assert_eq!(tidy("bob"), 1);
        assert_eq!(counted().requests_by_overlay(), all(&[("alice", 102)]));
    }

    #[test]
    fn what_two_listeners_count_alike_stays_apart_while_both_are_used() {
        let gates = [Gate::of_tests(), Gate { number: 1, ..Gate::of_tests() }];
        let (overlay, service) = ("alice".parse().expect("id"), "web".parse().expect("name"));
        for _ in 0..4 {
            for gate in &gates {
                observe(&Counted::of_tests(&overlay, &service, gate), Duration::from_millis(2), None);
            }
            COUNTING.with_borrow_mut(|counting| counting.tidy(|_| true));
            assert_eq!(COUNTING.with_borrow(|counting| counting.requests.len()), 2);
        }
        assert_eq!(COUNTING.with_borrow(|counting| counting.joins), 0, "nothing is left to be joined");
    }
}
