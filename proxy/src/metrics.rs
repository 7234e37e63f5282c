//! Metrics: counted by each worker for itself, merged when somebody asks.
//!
//! A worker counts on its own thread (`counting`): that takes no lock and touches no cache line of another thread. A scrape asks
//! each worker for a copy, its [`Meter`], and is told all of them as text (`text`). What is counted is an `event`, a request under
//! its `labels` with its `durations`, or a word of a closed list. Label values are names from blueprints, never bytes of a request.

mod counting;
mod durations;
mod event;
mod labels;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::name::EnvironmentId;
use overlane_config::route::Via;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub(crate) use counting::answer_scrapes;
#[cfg(test)]
pub(crate) use counting::counted;
pub use counting::{
    count, count_call, count_flood, count_handshake_failure, count_invalid_key, count_overload,
    count_refused_token, observe,
};
pub(crate) use durations::{BOUNDS, Observed};
pub use event::Event;
pub use labels::{Counted, Labels, Method, Origin};
pub use text::{ControlFigures, render};

use crate::calls::Call;
use crate::plane::h2::budget::{Flood, Side};
use crate::plane::overload::Limit;
use crate::tls::accept::HandshakeFailure;
use crate::tokens::Refused as RefusedToken;
use durations::{Added, add_each};
use event::EVENTS;

/// How many overlays have a label value of their own where nobody says; the rest are counted as `_other`.
pub const OVERLAY_LABELS: usize = 1000;

/// For how long a worker is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often each failure occurred.
type HandshakeFailures = [u64; HandshakeFailure::ALL.len()];

/// How often tokens were refused, for each reason.
type RefusedTokens = [u64; RefusedToken::ALL.len()];

/// How often each flood was ended, of clients and of upstreams.
type Floods = [[u64; Flood::ALL.len()]; Side::ALL.len()];

/// Requests that were refused, by the limit, and by whether all of it was taken or a share of it.
type Overloads = [[u64; 2]; Limit::ALL.len()];

/// The counts of one worker, or of all.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    requests: HashMap<Labels, Observed, RandomState>,
    besides: Besides,
    /// Requests in flight, and those of them that wait for an upstream.
    levels: [u64; 2],
    /// How many workers did not answer.
    missing: u32,
}

/// What is counted besides requests.
#[derive(Debug, Clone, Default)]
struct Besides {
    calls: HashMap<Call, u64, RandomState>,
    /// Keys that are no ids, by carrier.
    invalid: HashMap<Box<str>, u64, RandomState>,
    handshake_failures: HandshakeFailures,
    tokens: RefusedTokens,
    floods: Floods,
    overloads: Overloads,
    events: [u64; EVENTS],
    added: Added,
}

impl Besides {
    fn add(&mut self, other: Self) {
        for (call, own) in other.calls {
            *self.calls.entry(call).or_default() += own;
        }
        for (carrier, own) in other.invalid {
            *self.invalid.entry(carrier).or_default() += own;
        }
        add_each(&mut self.handshake_failures, &other.handshake_failures);
        add_each(&mut self.tokens, &other.tokens);
        add_each(self.floods.as_flattened_mut(), other.floods.as_flattened());
        add_each(self.overloads.as_flattened_mut(), other.overloads.as_flattened());
        add_each(&mut self.events, &other.events);
        self.added.add(&other.added);
    }
}

impl Meter {
    /// Requests by the overlay that their key named; those without under an empty name.
    #[must_use]
    pub fn requests_by_overlay(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, observed) in &self.requests {
            let overlay = labels.overlay.as_ref().map_or_else(String::new, ToString::to_string);
            *all.entry(overlay).or_default() += observed.count;
        }
        all
    }

    /// Those of them that the overlay itself answered.
    #[must_use]
    pub fn served_by_overlay(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, observed) in &self.requests {
            if let (Some(overlay), Some(Via::Overlay)) = (&labels.overlay, labels.via) {
                *all.entry(overlay.to_string()).or_default() += observed.count;
            }
        }
        all
    }

    /// Calls of the application, and how many there were of each kind.
    pub fn calls(&self) -> impl Iterator<Item = (&Call, u64)> {
        self.besides.calls.iter().map(|(call, count)| (call, *count))
    }

    /// What was added to requests; nothing where there were none.
    pub(crate) fn overhead(&self) -> Option<crate::stats::Counts> {
        let added = &self.besides.added;
        (added.count > 0).then(|| crate::stats::Counts {
            requests: added.count,
            errors: 0,
            seconds: added.seconds(),
            buckets: added.cumulative().collect(),
        })
    }

    /// Whether all workers answered.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// All requests by what they are counted under.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (&Labels, &Observed)> {
        self.requests.iter()
    }

    /// How many requests there were, by the overlay that their key named; one may come several times.
    pub(crate) fn by_overlay(&self) -> impl Iterator<Item = (&EnvironmentId, u64)> {
        self.requests.iter().filter_map(|(labels, observed)| Some((labels.overlay.as_ref()?, observed.count)))
    }

    fn add(&mut self, other: Self) {
        for (labels, own) in other.requests {
            self.requests.entry(labels).or_default().add(&own);
        }
        self.besides.add(other.besides);
        add_each(&mut self.levels, &other.levels);
    }
}

/// Where a worker is asked for its counts.
pub type MeterDoor = mpsc::Sender<oneshot::Sender<Meter>>;

/// The sum of all workers' counts; a worker that does not answer within 200 ms is left out.
pub async fn gather(doors: &[MeterDoor]) -> Meter {
    let mut sum = Meter::default();
    for door in doors {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            door.send(reply).await.ok()?;
            answer.await.ok()
        };
        match timeout(PATIENCE, asked).await {
            Ok(Some(meter)) => sum.add(meter),
            _ => sum.missing += 1,
        }
    }
    sum
}
