//! The routing decision: pure functions of a table, a listener, a request and the time.
//!
//! [`decide`] is the request path and what `explain` shows; there is no second implementation. Its
//! result is plain data that any engine can apply: who serves the request ([`Served`]), which heads
//! to edit ([`Edits`]), or why it is refused ([`Refusal`]).

mod decide;
mod edits;
pub mod receipt;
mod refusal;
mod require;

use std::num::NonZeroU32;

use crate::carrier::Keys;
use crate::diagnostic::Location;
use crate::lineage::Policy;
use crate::name::{EnvironmentId, ServiceName};
use crate::preview::Preview;
use crate::table::Route;

pub use decide::decide;
pub use edits::{Edits, FieldEdit};
pub use receipt::Receipt;
pub use refusal::{Problem, Refusal};
pub use require::verify;

pub use crate::name::{HOP_HEADER, HOPS_HEADER, REQUIRE_HEADER, ROUTE_HEADER};

/// The most proxies that a request passes; more are a loop.
pub const MAX_HOPS: u8 = 32;

/// How many proxies a request has passed, as [`HOPS_HEADER`] says; what is no number counts as none.
///
/// # Errors
/// As many as there may be.
pub fn hops<'l>(mut lines: impl Iterator<Item = &'l [u8]>) -> Result<u8, Refusal> {
    let text = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let number = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.map(str::parse) {
        None => Ok(0),
        Some(Ok(hops)) if hops < MAX_HOPS => Ok(hops),
        // Also what is too large for any number here.
        Some(_) => Err(Refusal::new(Problem::Loop, format!("the request has passed {MAX_HOPS} proxies or more: they form a loop"))
            .hint("a url of a blueprint leads to a gateway or sidecar instead of the service; `overlane explain` shows where requests go")),
    }
}

/// What a listener stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The edge: host and path lead to an exposed service.
    Gateway,
    /// A service's own calls, by authority.
    Outbound {
        /// The service, where it is told.
        service: Option<ServiceName>,
        /// The environment of the calling service; calls without a key get an overlay's key.
        environment: Option<EnvironmentId>,
    },
    /// Before one service of one environment.
    Inbound {
        /// The service.
        service: ServiceName,
        /// Its environment; the listener's baseline where it is not told.
        environment: Option<EnvironmentId>,
    },
}

/// A listener, as far as routing is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// What it stands for.
    pub role: Role,
    /// The baseline that it is told; otherwise the only one in the store.
    pub baseline: Option<EnvironmentId>,
}

/// What the decision needs to know of a request. Headers from the untrusted are already gone.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    /// `Host`, or the authority of an absolute-form target.
    pub authority: &'r str,
    /// The path, without query.
    pub path: &'r str,
    /// What its host stands for, where it is a preview's; `keys` are then those that it names.
    pub preview: Option<&'r Preview>,
    /// Whether a browser says the key, by its host, its page or a cookie: nobody looks at receipts there, so what nobody
    /// knows, or has expired, is refused, whatever the baseline's policy.
    pub by_browser: bool,
    /// The key that it carries.
    pub keys: Option<&'r Keys>,
    /// Whether overlay headers were removed because its sender is not trusted.
    pub untrusted: bool,
    /// The value of [`HOP_HEADER`].
    pub hop: Option<&'r str>,
    /// The value of [`REQUIRE_HEADER`], lines joined by commas; empty where there is none.
    pub require: &'r str,
}

/// What happened to this request so far: owners that turned out to be unavailable.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    /// The environments whose upstream was unavailable for as long as the policy holds.
    pub unavailable: Vec<EnvironmentId>,
    /// Why the last of them was.
    pub because: Option<Reason>,
}

/// Whose answer it is, seen from the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The key's own environment.
    Overlay,
    /// An ancestor of it that is an overlay too.
    Ancestor,
    /// The baseline.
    Baseline,
}

impl Via {
    /// The one with this word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::Overlay, Self::Ancestor, Self::Baseline].into_iter().find(|via| via.as_str() == word)
    }

    /// The word in receipts, labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Ancestor => "ancestor",
            Self::Baseline => "baseline",
        }
    }
}

/// Why it is that environment: a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The key's environment owns the service.
    Owned,
    /// The nearest owner is an ancestor.
    Inherited,
    /// Only the baseline has the service.
    NotOwned,
    /// Nobody knows the key.
    Unknown,
    /// The key's environment has expired.
    Expired,
    /// The owner's upstream refused the connection.
    Refused,
    /// The owner's upstream has no address yet.
    Pending,
    /// The owner's upstream does not answer.
    Unhealthy,
    /// The sender may not name overlays.
    Untrusted,
    /// The request carries no key.
    NoKey,
}

impl Reason {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 10] = [
        Self::Owned,
        Self::Inherited,
        Self::NotOwned,
        Self::Unknown,
        Self::Expired,
        Self::Refused,
        Self::Pending,
        Self::Unhealthy,
        Self::Untrusted,
        Self::NoKey,
    ];

    /// Whether nobody served, where it is said of the environment that should have.
    #[must_use]
    pub fn is_failure(word: &str) -> bool {
        [Self::Refused, Self::Pending, Self::Unhealthy].into_iter().any(|failure| failure.as_str() == word)
    }

    /// The word in receipts, labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owned => "owned",
            Self::Inherited => "inherited",
            Self::NotOwned => "not-owned",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Pending => "pending",
            Self::Unhealthy => "unhealthy",
            Self::Untrusted => "untrusted",
            Self::NoKey => "no-key",
        }
    }
}

/// Where a request goes.
#[derive(Debug)]
pub enum To<'t, U> {
    /// To the upstream of a route; `marked` when the next sidecar must deliver it or refuse it.
    Upstream {
        /// The route.
        route: &'t Route<U>,
        /// Whether [`HOP_HEADER`] names the route's environment.
        marked: bool,
    },
    /// To the application behind this inbound listener.
    Application,
}

/// A request that is served: by whom, why, and with which key it travels on.
#[derive(Debug)]
pub struct Served<'t, U> {
    /// The service.
    pub service: &'t ServiceName,
    /// The environment that serves it.
    pub environment: &'t EnvironmentId,
    /// Whose answer that is, seen from the key.
    pub via: Via,
    /// Why.
    pub reason: Reason,
    /// The first known environment that the key names; for metrics.
    pub key: Option<&'t EnvironmentId>,
    /// What happens when the upstream is unavailable.
    pub policy: Policy,
    /// How many requests a proxy has there at once at most, where the service's blueprint says.
    pub max_requests: Option<NonZeroU32>,
    /// The keys with which it travels on, stamped ones included; `None` keeps our headers off it.
    pub onward: Option<Keys>,
    /// Where it goes.
    pub to: To<'t, U>,
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Decision<'t, U> {
    /// Serve it.
    Serve(Served<'t, U>),
    /// It is not for a service of ours: to its own authority, without our headers; with these keys where the
    /// key is kept for that host.
    PassThrough(Option<Keys>),
    /// Answer it here.
    Refuse(Refusal),
}

/// A witness of each step of a decision. The request path has none, and pays nothing.
pub trait Trace {
    /// Notes a step; `text` is only called where somebody reads it.
    fn step(&mut self, declared: Option<&Location>, text: impl FnOnce() -> String);
}

/// No witness.
pub struct Untraced;

impl Trace for Untraced {
    fn step(&mut self, _: Option<&Location>, _: impl FnOnce() -> String) {}
}

/// One step of a decision, and the blueprint line that caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was seen or decided.
    pub text: String,
    /// The blueprint line.
    pub declared: Option<Location>,
}

impl Trace for Vec<Step> {
    fn step(&mut self, declared: Option<&Location>, text: impl FnOnce() -> String) {
        self.push(Step { text: text(), declared: declared.cloned() });
    }
}

impl<U> Served<'_, U> {
    fn marked(self) -> Self {
        let to = match self.to {
            To::Upstream { route, .. } => To::Upstream { route, marked: true },
            To::Application => To::Application,
        };
        Self { to, ..self }
    }

    /// The receipt of this hop.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        Receipt {
            service: self.service.clone(),
            environment: self.environment.clone(),
            via: self.via,
            reason: self.reason,
        }
    }
}
