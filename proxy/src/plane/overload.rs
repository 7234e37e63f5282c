//! What happens to requests of which there are too many: 503 with `Retry-After`, before anything is sent.
//!
//! A request takes a seat in its worker, one at the upstream that it goes to, and one among those that wait
//! where it has to. Who uses what is not its own gets a share ([`crate::capacity`]): the load test of one
//! overlay leaves room for the others. Nothing that is refused here is served by anybody else instead: that
//! would be a false green.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use overlane_config::name::{EnvironmentId, ServiceName};

use super::answer::Answer;
use crate::capacity::{Capacity, Full, Guest, Seat};
use crate::metrics::count_overload;

/// The word for it in answers and the log.
pub const OVERLOAD: &str = "overload";

/// How often the log says that requests are refused, on each worker.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What there can be too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A worker's requests.
    Requests,
    /// Requests at one service of one environment.
    Upstream,
    /// A worker's requests that wait for an upstream.
    Held,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Requests, Self::Upstream, Self::Held];

    /// The word for it in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Upstream => "upstream",
            Self::Held => "held",
        }
    }
}

/// The seats of one worker.
#[derive(Debug, Default)]
struct Worker {
    requests: Capacity,
    held: Capacity,
    told: RefCell<Told>,
}

/// When the log last said that requests are refused, and how many were since.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

thread_local! {
    static WORKER: Worker = Worker::default();
}

/// How many requests this worker has in flight, and how many of them wait.
#[must_use]
pub fn levels() -> [u64; 2] {
    WORKER.with(|worker| [worker.requests.taken().into(), worker.held.taken().into()])
}

/// Takes a seat among this worker's requests.
///
/// # Errors
/// Why there is none.
pub fn enter(most: u32, guest: Option<Guest>) -> Result<Seat, Full> {
    WORKER.with(|worker| worker.requests.take(most, guest))
}

/// Gives back what [`enter`] gave.
pub fn leave(seat: Seat) {
    WORKER.with(|worker| seat.leave(&worker.requests));
}

/// Takes a seat among those that wait.
///
/// # Errors
/// Why there is none.
pub fn wait(most: u32, guest: Option<Guest>) -> Result<Seat, Full> {
    WORKER.with(|worker| worker.held.take(most, guest))
}

/// Gives back what [`wait`] gave.
pub fn waited(seat: Seat) {
    WORKER.with(|worker| seat.leave(&worker.held));
}

/// Whose request it is, and what it asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The overlay that its key names, where it is known.
    pub overlay: Option<&'a EnvironmentId>,
    /// The service and its owner; none where the request passes through.
    pub service: Option<(&'a ServiceName, &'a EnvironmentId)>,
}

/// Counts and logs a request that is refused, and says why: there are `most` seats under this limit.
#[must_use]
pub fn refuse(limit: Limit, full: Full, most: u32, asked: Asked<'_>) -> Answer {
    count_overload(limit, full);
    let (message, hint) = words(limit, full, most, asked);
    tell(&message);
    let error = match limit {
        Limit::Requests => "http_request_denied",
        Limit::Upstream => "connection_limit_reached",
        Limit::Held => "destination_unavailable",
    };
    Answer { hint: Some(hint), ..Answer::plain(503, error, OVERLOAD, message) }
}

fn words(limit: Limit, full: Full, most: u32, asked: Asked<'_>) -> (String, String) {
    let whose = asked.overlay.map_or_else(|| "unknown keys".to_owned(), |id| format!("`{id}`"));
    let place = match asked.service {
        Some((service, owner)) => format!("`{service}` of `{owner}`"),
        None => "the host".to_owned(),
    };
    let message = match (limit, full) {
        (Limit::Requests, Full::All) => format!("this proxy's worker has {most} requests in flight"),
        (Limit::Requests, Full::Share(has)) => {
            format!("{has} requests of {whose} are in flight, and no more than that is left for all others")
        }
        (Limit::Upstream, Full::All) => format!("{place} has {most} requests in flight"),
        (Limit::Upstream, Full::Share(has)) => format!(
            "{place} has {has} requests of {whose} in flight, and no more than that is left for all others"
        ),
        (Limit::Held, Full::All) => {
            format!("{place} is unavailable, and {most} requests wait for such upstreams")
        }
        (Limit::Held, Full::Share(has)) => format!(
            "{place} is unavailable, and {has} requests of {whose} wait for such upstreams: no more than that is left for all others"
        ),
    };
    let hint = match (limit, full) {
        (Limit::Requests, Full::All) => "try again later; `maxRequests` in the proxy's settings is the limit".to_owned(),
        (Limit::Requests, Full::Share(_)) => {
            format!("send fewer at once: of `maxRequests` ({most}) an overlay gets as many as are free beside it")
        }
        (Limit::Upstream, Full::All) => {
            "try again later; `maxRequests` of the service in its blueprint, else `maxUpstreamRequests` in the proxy's settings, is the limit".to_owned()
        }
        (Limit::Upstream, Full::Share(_)) => format!(
            "send fewer at once: of the service's `maxRequests` ({most}) who inherits it gets as many as are free; an overlay with a service of its own gets all"
        ),
        (Limit::Held, _) => "start it, or correct its url; `maxHeld` in the proxy's settings is the limit".to_owned(),
    };
    (message, hint)
}

/// Logs the first of many, and from time to time how many there were.
fn tell(message: &str) {
    let refused = WORKER.with(|worker| {
        let mut told = worker.told.borrow_mut();
        told.untold += 1;
        let silent = told.at.is_some_and(|at| at.elapsed() < TOLD_EVERY);
        (!silent).then(|| {
            told.at = Some(Instant::now());
            std::mem::take(&mut told.untold)
        })
    });
    if let Some(refused) = refused {
        tracing::warn!(refused, "overload: requests are refused; the last one since {message}");
    }
}
