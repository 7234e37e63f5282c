//! The routing decision: pure functions of a table, a listener, a request and the time.
//!
//! [`decide`] is the request path and what `explain` shows; there is no second implementation. Its
//! result is plain data that any engine can apply: who serves the request ([`Served`]), which heads
//! to edit ([`Edits`]), or why it is refused ([`Refusal`]).

use std::fmt;

use crate::blueprint::{OnUnavailable, OnUnknown};
use crate::carrier::{Keys, baggage};
use crate::diagnostic::{Location, did_you_mean};
use crate::name::{EnvironmentId, ServiceName, printable};
use crate::table::{Baseline, Environment, Exposure, Overlay, Policy, Route, RoutingTable};
use crate::time::UnixMillis;
use crate::url::split_authority;

/// The response header that says who answered: a structured-field list, one item per hop.
pub const ROUTE_HEADER: &str = "x-overlay-route";
/// The request header that demands that services are served by the key's own environment.
pub const REQUIRE_HEADER: &str = "x-overlay-require";
/// The request header with which one sidecar marks, for the next, the environment that it chose.
pub const HOP_HEADER: &str = "x-overlay-hop";

/// Above this many environments, "did you mean" is not looked for: it would cost too much per request.
const SUGGEST_AMONG: usize = 1000;

/// What a listener stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The edge: host and path lead to an exposed service.
    Gateway,
    /// A service's own calls, by authority.
    Outbound {
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
    /// The keys with which it travels on, stamped ones included; `None` keeps our headers off it.
    pub onward: Option<Keys>,
    /// Where it goes.
    pub to: To<'t, U>,
}

/// What is to be done with a request.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "boxing what every request gets would cost each one an allocation"
)]
pub enum Decision<'t, U> {
    /// Serve it.
    Serve(Served<'t, U>),
    /// It is not for a service of ours: to its own authority, without our headers.
    PassThrough,
    /// Answer it here.
    Refuse(Refusal),
}

/// Why a request is answered by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Our own header holds what is no id: 400.
    InvalidKey,
    /// Nobody knows the key, and the baseline rejects such keys: 404.
    UnknownKey,
    /// The key's environment has expired, and the baseline rejects such keys: 410.
    ExpiredKey,
    /// No service is exposed there: 404.
    NoRoute,
    /// The marked request is not for this environment: 421 (RFC 9110, section 15.5.20).
    Misdirected,
    /// A required service would be served by another environment than the key's: 412.
    WrongEnvironment,
    /// Nobody can say which environment a required service should be served by: 412.
    Unverified,
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
            Self::InvalidKey => 400,
            Self::UnknownKey | Self::NoRoute => 404,
            Self::ExpiredKey => 410,
            Self::WrongEnvironment | Self::Unverified => 412,
            Self::Misdirected => 421,
            Self::NoBaseline | Self::BrokenBlueprint | Self::Unavailable(_) => 503,
        }
    }

    /// The word in the body and in `Proxy-Status` details.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidKey => "invalid-key",
            Self::UnknownKey => "unknown",
            Self::ExpiredKey => "expired",
            Self::NoRoute => "no-route",
            Self::Misdirected => "misdirected",
            Self::WrongEnvironment => "wrong-environment",
            Self::Unverified => "unverified",
            Self::NoBaseline => "no-baseline",
            Self::BrokenBlueprint => "pending",
            Self::Unavailable(reason) => reason.as_str(),
        }
    }

    /// The proxy error type (RFC 9209, section 2.3).
    #[must_use]
    pub fn proxy_error(self) -> &'static str {
        match self {
            Self::InvalidKey => "http_request_error",
            Self::UnknownKey | Self::ExpiredKey | Self::NoRoute | Self::Misdirected => {
                "destination_not_found"
            }
            Self::WrongEnvironment | Self::Unverified => "http_request_denied",
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
    fn new(problem: Problem, message: String) -> Self {
        Self { problem, message, hint: None, declared: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn at(mut self, declared: &Location) -> Self {
        self.declared = Some(declared.clone());
        self
    }

    /// The refusal of a key that is no id.
    #[must_use]
    pub fn invalid_key(header: &str, error: &crate::carrier::InvalidKey) -> Self {
        Self::new(Problem::InvalidKey, format!("header `{header}`: {error}"))
            .hint("send the id of an overlay, or leave the header out")
    }

    /// The refusal when the upstream of `route` stays unavailable for `reason`, under `policy`.
    #[must_use]
    pub fn unavailable<U>(route: &Route<U>, reason: Reason, policy: Policy, detail: &str) -> Self {
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

/// Decides what happens to `request` at `listener`.
pub fn decide<'t, U>(
    table: &'t RoutingTable<U>,
    listener: &'t Listener,
    request: &Request<'_>,
    now: UnixMillis,
    tried: &Tried,
    trace: &mut impl Trace,
) -> Decision<'t, U> {
    let Some(baseline) = table.baseline(listener.baseline.as_ref()) else {
        return Decision::Refuse(no_baseline(table, listener));
    };
    trace.step(Some(&baseline.declared), || format!("the listener's baseline is `{}`", baseline.id));
    let own = match &listener.role {
        Role::Gateway => None,
        Role::Outbound { environment } | Role::Inbound { environment, .. } => environment.as_ref(),
    };
    // A call from an overlay's service that lost its key, or never had one, is that overlay's.
    let stamp =
        own.filter(|own| request.keys.is_none() && !request.untrusted && **own != baseline.id).map(Keys::one);
    let keys = request.keys.or(stamp.as_ref());
    match (request.keys, &stamp) {
        (Some(keys), _) => trace.step(None, || format!("the request carries the key `{}`", keys.as_str())),
        (None, Some(keys)) => trace.step(None, || {
            format!("no key: stamped with `{}`, the environment of this sidecar", keys.as_str())
        }),
        (None, None) if request.untrusted => {
            trace.step(None, || "overlay headers were removed: the sender is not trusted".to_owned());
        }
        (None, None) => trace.step(None, || "the request carries no key".to_owned()),
    }
    let lookup = Lookup { table, baseline, keys, untrusted: request.untrusted, now, tried };
    let decided = match &listener.role {
        Role::Gateway => lookup.gateway(request, trace),
        Role::Outbound { .. } => lookup.outbound(request, trace),
        Role::Inbound { service, .. } => lookup.inbound(service, own.unwrap_or(&baseline.id), request, trace),
    };
    match decided {
        Ok(Some(served)) => match lookup.require(request.require, &served) {
            Ok(()) => Decision::Serve(served),
            Err(refusal) => Decision::Refuse(refusal),
        },
        Ok(None) => Decision::PassThrough,
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn no_baseline<U>(table: &RoutingTable<U>, listener: &Listener) -> Refusal {
    if let Some(told) = &listener.baseline {
        let refusal = Refusal::new(Problem::NoBaseline, format!("the store has no baseline `{told}`"));
        return match table.environment(told.as_str()) {
            Some(Environment::Refused(diagnostics)) => broken(refusal, diagnostics),
            _ => refusal.hint(format!("add its blueprint, or start with another `--baseline` than `{told}`")),
        };
    }
    let known: Vec<_> = table.baselines().map(EnvironmentId::as_str).collect();
    if known.is_empty() {
        return Refusal::new(Problem::NoBaseline, "the store has no baseline".to_owned())
            .hint("run `overlane baseline create --file baseline.yaml`");
    }
    Refusal::new(Problem::NoBaseline, format!("the store has several baselines ({})", known.join(", ")))
        .hint("say which one this listener serves with `--baseline ID`")
}

fn broken(refusal: Refusal, diagnostics: &[crate::diagnostic::Diagnostic]) -> Refusal {
    let Some(first) = diagnostics.first() else {
        return refusal;
    };
    let refusal = Refusal { message: format!("{}: {}", refusal.message, first.message), ..refusal };
    Refusal { hint: first.hint.clone(), declared: first.location.clone(), ..refusal }
}

/// What a key's id names, at this listener and this time.
enum Named<'t, U> {
    Baseline,
    Overlay(&'t Overlay<U>),
    Expired(&'t Overlay<U>),
    Broken(&'t [crate::diagnostic::Diagnostic]),
    Unknown,
}

struct Lookup<'t, 'r, U> {
    table: &'t RoutingTable<U>,
    baseline: &'t Baseline<U>,
    keys: Option<&'r Keys>,
    untrusted: bool,
    now: UnixMillis,
    tried: &'r Tried,
}

impl<'t, U> Lookup<'t, '_, U> {
    fn named(&self, id: &str) -> Named<'t, U> {
        if id == self.baseline.id.as_str() {
            return Named::Baseline;
        }
        match self.table.environment(id) {
            Some(Environment::Overlay(overlay)) if overlay.baseline == self.baseline.id => {
                if overlay.expires_at.is_some_and(|at| at <= self.now) {
                    Named::Expired(overlay)
                } else {
                    Named::Overlay(overlay)
                }
            }
            Some(Environment::Refused(diagnostics)) => Named::Broken(diagnostics),
            _ => Named::Unknown,
        }
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.into_iter().flat_map(Keys::iter)
    }

    /// The live overlays that the key names, in order.
    fn overlays(&self) -> impl Iterator<Item = &'t Overlay<U>> {
        self.ids().filter_map(|id| match self.named(id) {
            Named::Overlay(overlay) => Some(overlay),
            _ => None,
        })
    }

    fn gateway(
        &self,
        request: &Request<'_>,
        trace: &mut impl Trace,
    ) -> Result<Option<Served<'t, U>>, Refusal> {
        let host = host_of(request.authority);
        let Some(exposure) = self.exposed(host, request.path) else {
            return Err(self.no_route(host, request.path));
        };
        trace.step(None, || {
            let host = exposure.host.as_deref().unwrap_or("any host");
            format!("host and path lead to `{}` ({host}, path {})", exposure.service, exposure.path)
        });
        self.upstream(exposure.service.as_str(), trace).map(Some)
    }

    /// The most specific exposure; where an overlay and the baseline are equal, the overlay's.
    fn exposed(&self, host: &str, path: &str) -> Option<&'t Exposure> {
        let overlays = self.overlays().flat_map(|overlay| overlay.exposures.iter());
        let mut best: Option<((bool, usize), &'t Exposure)> = None;
        for exposure in overlays.chain(self.baseline.exposures.iter()) {
            if let Some(specificity) = exposure.specificity(host, path)
                && best.is_none_or(|(known, _)| specificity > known)
            {
                best = Some((specificity, exposure));
            }
        }
        best.map(|(_, exposure)| exposure)
    }

    fn no_route(&self, host: &str, path: &str) -> Refusal {
        let exposed: Vec<_> = self
            .baseline
            .exposures
            .iter()
            .take(10)
            .map(|e| format!("{}{}", e.host.as_deref().unwrap_or("*"), e.path))
            .collect();
        let hint = if exposed.is_empty() {
            format!("give one service of `{}` `expose: true`, or several of them `hosts:`", self.baseline.id)
        } else {
            format!("exposed here: {}", exposed.join(", "))
        };
        let message =
            format!("no exposed service for host `{}`, path `{}`", printable(host, 80), printable(path, 80));
        Refusal::new(Problem::NoRoute, message).hint(hint).at(&self.baseline.declared)
    }

    fn outbound(
        &self,
        request: &Request<'_>,
        trace: &mut impl Trace,
    ) -> Result<Option<Served<'t, U>>, Refusal> {
        let Some(service) = self.called(request.authority) else {
            trace.step(None, || {
                format!(
                    "`{}` is no service of the key's lineage: passed through",
                    printable(request.authority, 80)
                )
            });
            return Ok(None);
        };
        trace.step(None, || format!("`{}` is the service `{service}`", printable(request.authority, 80)));
        self.upstream(service.as_str(), trace).map(Some)
    }

    /// The service that an authority names: by its name (whatever the port), else by its own url.
    fn called(&self, authority: &str) -> Option<&'t ServiceName> {
        let (host, port) = split_authority(authority).ok()?;
        let mut lower = [0; 256];
        let host = lower_case(host.strip_suffix('.').unwrap_or(host), &mut lower)?;
        let port = port.unwrap_or(80);
        if let Some(route) = self.baseline.route(host) {
            return Some(&route.service);
        }
        if let Some(route) = self.overlays().find_map(|overlay| overlay.owners(host).first()) {
            return Some(&route.service);
        }
        self.baseline.service_at(host, port).or_else(|| {
            let at = |route: &&'t std::sync::Arc<Route<U>>| {
                route.urls.iter().any(|url| *url.host == *host && url.port == port)
            };
            self.overlays().find_map(|overlay| overlay.owned().iter().find(at)).map(|route| &route.service)
        })
    }

    fn inbound(
        &self,
        service: &'t ServiceName,
        own: &'t EnvironmentId,
        request: &Request<'_>,
        trace: &mut impl Trace,
    ) -> Result<Option<Served<'t, U>>, Refusal> {
        if let Some(hop) = request.hop.filter(|hop| *hop != own.as_str()) {
            let message = format!(
                "the request was sent to `{service}` of `{}`, and this is `{own}`",
                printable(hop, 80)
            );
            return Err(Refusal::new(Problem::Misdirected, message)
                .hint("the sidecars have different generations, or a url leads to the wrong sidecar"));
        }
        let found = match self.upstream(service.as_str(), trace) {
            // The sidecar stands before the service whether a blueprint says so or not.
            Err(Refusal { problem: Problem::NoRoute, .. }) => None,
            found => Some(found?),
        };
        match found {
            Some(found) if found.environment != own && request.hop.is_none() && request.keys.is_some() => {
                trace.step(None, || {
                    format!(
                        "this sidecar stands before `{own}`: sent to `{}` once, marked",
                        found.environment
                    )
                });
                Ok(Some(found.marked()))
            }
            found => {
                trace.step(None, || "delivered to the application".to_owned());
                Ok(Some(self.delivered(service, own, found.as_ref())))
            }
        }
    }

    /// The application behind this sidecar serves; via and reason are still as seen from the key.
    fn delivered(
        &self,
        service: &'t ServiceName,
        own: &'t EnvironmentId,
        found: Option<&Served<'t, U>>,
    ) -> Served<'t, U> {
        let key = self.overlays().next();
        let (via, reason) = match found {
            Some(found) if found.environment == own => (found.via, found.reason),
            _ if *own == self.baseline.id => {
                (Via::Baseline, if self.keys.is_some() { Reason::NotOwned } else { Reason::NoKey })
            }
            _ if self.ids().any(|id| id == own.as_str()) => (Via::Overlay, Reason::Owned),
            _ => (Via::Ancestor, Reason::Inherited),
        };
        Served {
            service,
            environment: own,
            via,
            reason,
            key: key.map(|overlay| &overlay.id),
            policy: key.map_or(self.baseline.policy, |overlay| overlay.policy),
            onward: self.onward(),
            to: To::Application,
        }
    }

    /// The nearest available owner of `service` over the keys in order, or the baseline's.
    fn upstream(&self, service: &str, trace: &mut impl Trace) -> Result<Served<'t, U>, Refusal> {
        let mut missed = None;
        let mut first_known = None;
        let mut fell_back = false;
        for id in self.ids() {
            let overlay = match self.named(id) {
                Named::Baseline => {
                    trace.step(Some(&self.baseline.declared), || format!("`{id}` is the baseline itself"));
                    if let Some(route) = self.baseline.route(service) {
                        return Ok(self.served(route, Via::Baseline, Reason::Owned, None));
                    }
                    continue;
                }
                Named::Overlay(overlay) => overlay,
                Named::Expired(overlay) => {
                    trace.step(Some(&overlay.declared), || format!("`{id}` has expired"));
                    if self.baseline.on_unknown == OnUnknown::Reject {
                        return Err(self.expired(overlay));
                    }
                    missed.get_or_insert(Reason::Expired);
                    continue;
                }
                Named::Unknown => {
                    trace.step(None, || format!("nobody knows `{id}`"));
                    if self.baseline.on_unknown == OnUnknown::Reject {
                        return Err(self.unknown(id));
                    }
                    missed.get_or_insert(Reason::Unknown);
                    continue;
                }
                Named::Broken(diagnostics) => {
                    let refusal = Refusal::new(
                        Problem::BrokenBlueprint,
                        format!("the blueprint of `{id}` was never good"),
                    );
                    return Err(broken(refusal, diagnostics));
                }
            };
            first_known.get_or_insert(overlay);
            let owners = overlay.owners(service);
            if owners.is_empty() {
                trace.step(Some(&overlay.declared), || {
                    format!("nobody in the lineage {} owns `{service}`", lineage_of(overlay))
                });
                continue;
            }
            // Once a key's lineage owns the service, its policy alone decides; later ids are not tried.
            first_known = Some(overlay);
            match self.nearest_available(overlay, owners) {
                Some((route, reason)) => {
                    let own = route.environment == overlay.id;
                    let (via, natural) =
                        if own { (Via::Overlay, Reason::Owned) } else { (Via::Ancestor, Reason::Inherited) };
                    trace.step(Some(&route.declared), || {
                        format!(
                            "`{service}` is owned by `{}`, nearest in the lineage {}",
                            route.environment,
                            lineage_of(overlay)
                        )
                    });
                    return Ok(self.served(route, via, reason.unwrap_or(natural), Some(overlay)));
                }
                None => {
                    fell_back = true;
                    trace.step(Some(&overlay.declared), || {
                        format!("no owner of `{service}` in the lineage is available: falls back")
                    });
                    break;
                }
            }
        }
        let Some(route) = self.baseline.route(service) else {
            return Err(self.no_such_service(service));
        };
        let reason = match self.keys {
            _ if fell_back => self.tried.because.unwrap_or(Reason::Unhealthy),
            Some(_) => missed.unwrap_or(Reason::NotOwned),
            None if self.untrusted => Reason::Untrusted,
            None => Reason::NoKey,
        };
        trace.step(Some(&route.declared), || {
            format!("the baseline `{}` serves `{service}` ({})", self.baseline.id, reason.as_str())
        });
        Ok(self.served(route, Via::Baseline, reason, first_known))
    }

    /// The first owner that was not yet found unavailable, and why an earlier one was passed over.
    /// Without `onUnavailable: fallback` no owner is ever passed over.
    fn nearest_available(
        &self,
        overlay: &Overlay<U>,
        owners: &'t [std::sync::Arc<Route<U>>],
    ) -> Option<(&'t Route<U>, Option<Reason>)> {
        if overlay.policy.on_unavailable == OnUnavailable::Fail || self.tried.unavailable.is_empty() {
            return owners.first().map(|route| (&**route, None));
        }
        let available =
            |route: &std::sync::Arc<Route<U>>| !self.tried.unavailable.contains(&route.environment);
        let at = owners.iter().position(available)?;
        Some((&owners[at], if at > 0 { self.tried.because } else { None }))
    }

    fn served(
        &self,
        route: &'t Route<U>,
        via: Via,
        reason: Reason,
        key: Option<&'t Overlay<U>>,
    ) -> Served<'t, U> {
        Served {
            service: &route.service,
            environment: &route.environment,
            via,
            reason,
            key: key.map(|overlay| &overlay.id),
            policy: key.map_or(self.baseline.policy, |overlay| overlay.policy),
            onward: self.onward(),
            to: To::Upstream { route, marked: false },
        }
    }

    /// The keys that go upstream: all but those whose environment says `propagateHeader: false`.
    fn onward(&self) -> Option<Keys> {
        self.keys?.filtered(|id| match self.named(id) {
            Named::Overlay(overlay) | Named::Expired(overlay) => overlay.propagate,
            _ => self.baseline.propagate,
        })
    }

    /// Holds `x-overlay-require` against who serves at this hop; it beats fallback.
    fn require(&self, require: &str, served: &Served<'t, U>) -> Result<(), Refusal> {
        for required in require.split(',').map(str::trim).filter(|required| !required.is_empty()) {
            let everything = required == "*";
            if !everything && required != served.service.as_str() {
                continue;
            }
            let own = self.ids().any(|id| id == served.environment.as_str());
            let owns = |overlay: &'t Overlay<U>| {
                overlay.owners(served.service.as_str()).iter().any(|route| route.environment == overlay.id)
            };
            if everything
                && (self.keys.is_none()
                    || self.overlays().count()
                        < self.ids().filter(|id| *id != self.baseline.id.as_str()).count())
            {
                let message = format!(
                    "`{REQUIRE_HEADER}: *`, and what the key owns is not known here: {}",
                    served.reason.as_str()
                );
                return Err(
                    Refusal::new(Problem::Unverified, message).hint("send the key of an overlay that exists")
                );
            }
            if !own && (!everything || self.overlays().any(owns)) {
                let message = format!(
                    "`{}` is required from the key's own environment, and would be served by `{}` ({})",
                    served.service,
                    served.environment,
                    served.reason.as_str()
                );
                return Err(Refusal::new(Problem::WrongEnvironment, message)
                    .hint(format!("declare `{}` in the key's overlay, or require less", served.service)));
            }
        }
        Ok(())
    }

    fn unknown(&self, id: &str) -> Refusal {
        let refusal = Refusal::new(
            Problem::UnknownKey,
            format!("no overlay `{id}` over the baseline `{}`", self.baseline.id),
        );
        let known = self.table.environments().map(|(known, _)| known.as_str());
        match (self.table.len() <= SUGGEST_AMONG).then(|| did_you_mean(id, known)).flatten() {
            Some(suggestion) => refusal.hint(format!("did you mean `{suggestion}`?")),
            None => refusal.hint("`overlane overlay list` shows the overlays"),
        }
    }

    fn expired(&self, overlay: &Overlay<U>) -> Refusal {
        let when = overlay.expires_at.map_or_else(String::new, |at| format!(" at {at}"));
        Refusal::new(Problem::ExpiredKey, format!("the overlay `{}` expired{when}", overlay.id))
            .hint(format!(
                "run `overlane overlay apply --file FILE --ttl 4h` to give `{}` more time",
                overlay.id
            ))
            .at(&overlay.declared)
    }

    fn no_such_service(&self, service: &str) -> Refusal {
        Refusal::new(
            Problem::NoRoute,
            format!(
                "neither the key's lineage nor the baseline `{}` has the service `{service}`",
                self.baseline.id
            ),
        )
        .hint(format!("declare it in the blueprint of `{}`", self.baseline.id))
        .at(&self.baseline.declared)
    }
}

fn lineage_of<U>(overlay: &Overlay<U>) -> String {
    let chain = std::iter::once(&overlay.id).chain(overlay.ancestors.iter());
    chain.map(EnvironmentId::as_str).collect::<Vec<_>>().join(" → ")
}

/// The host of an authority, without port and trailing dot.
fn host_of(authority: &str) -> &str {
    let host = split_authority(authority).map_or(authority, |(host, _)| host);
    host.strip_suffix('.').unwrap_or(host)
}

fn lower_case<'b>(text: &str, buffer: &'b mut [u8; 256]) -> Option<&'b str> {
    let lower = buffer.get_mut(..text.len())?;
    lower.copy_from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

/// What to do with `baggage` on the way upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaggageEdit {
    /// Leave it as it came.
    Untouched,
    /// Replace all lines by this one.
    Set(Vec<u8>),
    /// Remove it.
    Remove,
}

/// The edits of a request's head on its way upstream: plain data for every engine.
///
/// Every engine also removes [`HOP_HEADER`] and the key's header before it applies these, so that
/// what a client nominates in `Connection` or sends twice cannot survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits {
    /// The value of the key's header; `None` leaves it off.
    pub key: Option<Keys>,
    /// What becomes of `baggage`.
    pub baggage: BaggageEdit,
    /// The value of [`HOP_HEADER`].
    pub hop: Option<EnvironmentId>,
    /// Whether [`REQUIRE_HEADER`] travels on.
    pub require: bool,
}

impl Edits {
    /// The edits for a request that is served; `lines` are the lines of its `baggage`.
    pub fn serve<'l, U>(served: &Served<'_, U>, lines: impl Iterator<Item = &'l [u8]> + Clone) -> Self {
        let hop = match &served.to {
            To::Upstream { route, marked: true } => Some(route.environment.clone()),
            _ => None,
        };
        Self { key: served.onward, baggage: edit_baggage(lines, served.onward.as_ref()), hop, require: true }
    }

    /// The edits for a request that passes through: nothing of ours leaves.
    pub fn pass_through<'l>(lines: impl Iterator<Item = &'l [u8]> + Clone) -> Self {
        Self { key: None, baggage: edit_baggage(lines, None), hop: None, require: false }
    }
}

fn edit_baggage<'l>(lines: impl Iterator<Item = &'l [u8]> + Clone, keys: Option<&Keys>) -> BaggageEdit {
    let ours = baggage::read(lines.clone());
    match (keys, ours) {
        // No key, and no member of ours or one that means nothing to us: it travels untouched.
        (None, Ok(None) | Err(_)) => BaggageEdit::Untouched,
        _ => baggage::rewrite(lines, keys).map_or(BaggageEdit::Remove, BaggageEdit::Set),
    }
}

/// One item of [`ROUTE_HEADER`]: `payments-api;env=alice-payments;via=overlay;reason=owned`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The service.
    pub service: ServiceName,
    /// Who served it.
    pub environment: EnvironmentId,
    /// Whose answer that is, seen from the key.
    pub via: Via,
    /// Why.
    pub reason: Reason,
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

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};env={}", Item(self.service.as_str()), Item(self.environment.as_str()))?;
        write!(f, ";via={};reason={}", self.via.as_str(), self.reason.as_str())
    }
}

/// A label as a structured-field token, or as a string where it begins with a digit (RFC 9651, 3.3.4).
struct Item<'l>(&'l str);

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with(|c: char| c.is_ascii_alphabetic()) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0)
        }
    }
}
