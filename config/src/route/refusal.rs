//! The answers that the proxy gives itself, as plain data.

use super::{REQUIRE_HEADER, Reason, Via};
use crate::blueprint::OnUnavailable;
use crate::diagnostic::Location;
use crate::lineage::Policy;
use crate::table::Route;

/// Why a request is answered by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Our own header holds what is no id: 400.
    InvalidKey,
    /// Readers of the path are led to different services: 400.
    AmbiguousPath,
    /// Nobody knows the key, and the baseline rejects such keys: 404.
    UnknownKey,
    /// The key's environment has expired, and the baseline rejects such keys: 410.
    ExpiredKey,
    /// The sender may not choose the overlay that the request requires: 403.
    Untrusted,
    /// No service is exposed there: 404.
    NoRoute,
    /// The marked request is not for this environment: 421 (RFC 9110, section 15.5.20).
    Misdirected,
    /// A required service would be served by another environment than the key's: 412.
    WrongEnvironment,
    /// A required service was not called on the whole path: 412.
    NotReached,
    /// Nobody can say whether a required service was served by the key's environment: 412.
    Unverified,
    /// The request goes round in circles: 508.
    Loop,
    /// There is no baseline to route to: 503.
    NoBaseline,
    /// The key's environment has no usable blueprint: 503.
    BrokenBlueprint,
    /// The owner's upstream is unavailable: 503.
    Unavailable(Reason),
}

impl Problem {
    /// The status code of the answer.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidKey | Self::AmbiguousPath => 400,
            Self::Untrusted => 403,
            Self::UnknownKey | Self::NoRoute => 404,
            Self::ExpiredKey => 410,
            Self::WrongEnvironment | Self::NotReached | Self::Unverified => 412,
            Self::Misdirected => 421,
            Self::NoBaseline | Self::BrokenBlueprint | Self::Unavailable(_) => 503,
            Self::Loop => 508,
        }
    }

    /// The word in the body and in `Proxy-Status` details.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidKey => "invalid-key",
            Self::AmbiguousPath => "malformed",
            Self::UnknownKey => "unknown",
            Self::ExpiredKey => "expired",
            Self::Untrusted => "untrusted",
            Self::NoRoute => "no-route",
            Self::Misdirected => "misdirected",
            Self::WrongEnvironment => "wrong-environment",
            Self::NotReached => "not-reached",
            Self::Unverified => "unverified",
            Self::Loop => "loop",
            Self::NoBaseline => "no-baseline",
            Self::BrokenBlueprint => "pending",
            Self::Unavailable(reason) => reason.as_str(),
        }
    }

    /// The proxy error type (RFC 9209, section 2.3).
    #[must_use]
    pub fn proxy_error(self) -> &'static str {
        match self {
            Self::InvalidKey | Self::AmbiguousPath => "http_request_error",
            Self::UnknownKey | Self::ExpiredKey | Self::NoRoute | Self::Misdirected => {
                "destination_not_found"
            }
            Self::Untrusted | Self::WrongEnvironment | Self::NotReached | Self::Unverified => {
                "http_request_denied"
            }
            Self::Loop => "proxy_loop_detected",
            Self::NoBaseline | Self::BrokenBlueprint => "proxy_configuration_error",
            Self::Unavailable(Reason::Refused) => "connection_refused",
            Self::Unavailable(_) => "destination_unavailable",
        }
    }
}

/// An answer of the proxy's own: what is wrong, what to do, and the blueprint line to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of problem.
    pub problem: Problem,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The blueprint line concerned.
    pub declared: Option<Location>,
}

impl Refusal {
    pub(super) fn new(problem: Problem, message: String) -> Self {
        Self { problem, message, hint: None, declared: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn at(mut self, declared: &Location) -> Self {
        self.declared = Some(declared.clone());
        self
    }

    /// The refusal of a key that is no id.
    #[must_use]
    pub fn invalid_key(header: &str, error: &crate::carrier::InvalidKey) -> Self {
        Self::new(Problem::InvalidKey, format!("header `{header}`: {error}"))
            .hint("send the id of an overlay, or leave the header out")
    }

    /// The refusal of a key that its sender may not choose, where the request requires it; `why`, where more is known
    /// than that. It is the same whether there is such an overlay or not.
    #[must_use]
    pub fn untrusted(why: Option<&str>) -> Self {
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let what = format!(
            "the request requires its overlay (`{REQUIRE_HEADER}`), and its sender may not choose it{why}"
        );
        Self::new(Problem::Untrusted, what)
            .hint("ask from where `--trust` has it, or with a right to this overlay")
    }

    /// The refusal when the upstream of `route` stays unavailable for `reason`, under `policy`.
    #[must_use]
    pub fn unavailable<U>(route: &Route<U>, reason: Reason, via: Via, policy: Policy, detail: &str) -> Self {
        let Route { service, environment, .. } = route;
        let what = match reason {
            Reason::Pending => "has no address yet",
            Reason::Refused => "refuses connections",
            _ => "does not answer",
        };
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        let waited = policy.hold_for.as_secs_f32();
        let message = format!("`{service}` of `{environment}` {what}{detail} (waited {waited} s)");
        let hint = match (reason, policy.on_unavailable) {
            _ if via == Via::Baseline && reason != Reason::Pending => {
                "start it, or correct its url".to_owned()
            }
            (Reason::Pending, _) => format!(
                "run `overlane attach {environment} {service} --url URL`, or give the service a `url:`"
            ),
            (_, OnUnavailable::Fail) => format!(
                "start it, or correct its url; `routing.onUnavailable: fallback` in the key's blueprint would let the next owner of `{service}` answer instead"
            ),
            (_, OnUnavailable::Fallback) => {
                "start it, or correct its url; no other owner is left to fall back to".to_owned()
            }
        };
        Self::new(Problem::Unavailable(reason), message).hint(hint).at(&route.declared)
    }
}
