//! The decision: from a request's key and address to who serves it.

use arrayvec::ArrayVec;

use super::{Decision, Listener, Problem, Reason, Refusal, Request, Role, Served, To, Trace, Tried, Via};
use crate::blueprint::{OnUnavailable, OnUnknown};
use crate::carrier::{Keys, MAX_KEYS};
use crate::diagnostic::did_you_mean;
use crate::name::{EnvironmentId, ServiceName, printable};
use crate::path::{agreed, is_plain};
use crate::preview::Preview;
use crate::table::{Baseline, Environment, Exposure, Hosts, Overlay, Owned, Route, RoutingTable, spellings};
use crate::time::UnixMillis;
use crate::url::{Url, split_authority};

/// Above this many environments, "did you mean" is not looked for: strangers choose the keys, and a refusal
/// must not cost more than 100 µs, however long the ids are.
const SUGGEST_AMONG: usize = 250;

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
        Role::Outbound { environment, .. } | Role::Inbound { environment, .. } => environment.as_ref(),
    };
    // A call from an overlay's service that lost its key, or never had one, is that overlay's. So is one
    // whose key was removed: who is not trusted has no say in it, not even by sending a key.
    let stamp = own.filter(|own| request.keys.is_none() && **own != baseline.id).map(Keys::one);
    let keys = request.keys.or(stamp.as_ref());
    if request.untrusted {
        trace.step(None, || "overlay headers were removed: the sender is not trusted".to_owned());
    }
    match (request.keys, &stamp) {
        (Some(keys), _) => trace.step(None, || format!("the request carries the key `{}`", keys.as_str())),
        (None, Some(keys)) => trace.step(None, || {
            format!("no key: stamped with `{}`, the environment of this sidecar", keys.as_str())
        }),
        (None, None) if request.untrusted => {}
        (None, None) => trace.step(None, || "the request carries no key".to_owned()),
    }
    let lookup = Lookup { untrusted: request.untrusted, ..Lookup::new(table, baseline, keys, now, tried) };
    let decided = match &listener.role {
        Role::Gateway => lookup.gateway(request, trace),
        Role::Outbound { .. } => lookup.outbound(request, trace),
        Role::Inbound { service, .. } => lookup.inbound(service, own.unwrap_or(&baseline.id), request, trace),
    };
    match decided {
        Ok(Some(mut served)) => {
            if request.untrusted {
                served.reason = Reason::Untrusted;
            }
            match lookup.require(request.require, &served) {
                Ok(()) => Decision::Serve(served),
                Err(refusal) => Decision::Refuse(refusal),
            }
        }
        Ok(None) => Decision::PassThrough(lookup.onward()),
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

fn never_good(id: &str, diagnostics: &[crate::diagnostic::Diagnostic]) -> Refusal {
    let message = format!("the blueprint of `{id}` was never good");
    broken(Refusal::new(Problem::BrokenBlueprint, message), diagnostics)
}

/// What a key's id names, at this listener and this time.
enum Named<'t, U> {
    Baseline,
    Overlay(&'t Overlay<U>),
    Expired(&'t Overlay<U>),
    Broken(&'t [crate::diagnostic::Diagnostic]),
    Unknown,
}

/// What one id of the key says about a service.
enum Asked<'t, U> {
    Found {
        route: &'t Route<U>,
        via: Via,
        reason: Reason,
        key: Option<&'t Overlay<U>>,
    },
    /// Owners there are, and none is available: the baseline, under this overlay's policy.
    Unavailable(&'t Overlay<U>),
    /// It is known here (an overlay, or the baseline itself) and has no such service.
    NotOwned(Option<&'t Overlay<U>>),
    /// It is not known here any more, or not at all.
    Missed(Reason),
}

pub(super) struct Lookup<'t, 'r, U> {
    table: &'t RoutingTable<U>,
    pub(super) baseline: &'t Baseline<U>,
    pub(super) keys: Option<&'r Keys>,
    /// The ids of the key, and what each names.
    named: ArrayVec<(&'r str, Named<'t, U>), MAX_KEYS>,
    untrusted: bool,
    now: UnixMillis,
    tried: &'r Tried,
}

impl<'t, 'r, U> Lookup<'t, 'r, U> {
    /// Looks the key's ids up, once.
    pub(super) fn new(
        table: &'t RoutingTable<U>,
        baseline: &'t Baseline<U>,
        keys: Option<&'r Keys>,
        now: UnixMillis,
        tried: &'r Tried,
    ) -> Self {
        let mut lookup = Self { table, baseline, keys, named: ArrayVec::new(), untrusted: false, now, tried };
        for id in keys.into_iter().flat_map(Keys::iter) {
            let named = lookup.find(id);
            lookup.named.push((id, named));
        }
        lookup
    }

    fn find(&self, id: &str) -> Named<'t, U> {
        if id == self.baseline.id.as_str() {
            return Named::Baseline;
        }
        match self.table.environment(id) {
            Some(Environment::Overlay(overlay)) if overlay.baseline == self.baseline.id => {
                if overlay.served_until.is_some_and(|at| at <= self.now) {
                    Named::Expired(overlay)
                } else {
                    Named::Overlay(overlay)
                }
            }
            Some(Environment::Refused(diagnostics)) => Named::Broken(diagnostics),
            _ => Named::Unknown,
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &'r str> {
        self.named.iter().map(|(id, _)| *id)
    }

    /// The live overlays that the key names, in order.
    pub(super) fn overlays(&self) -> impl Iterator<Item = &'t Overlay<U>> {
        self.named.iter().filter_map(|(_, named)| match named {
            Named::Overlay(overlay) => Some(*overlay),
            _ => None,
        })
    }

    /// What is the matter with the first id that names nothing here.
    fn missed(&self) -> Option<Reason> {
        self.named.iter().find_map(|(_, named)| match named {
            Named::Expired(_) => Some(Reason::Expired),
            Named::Unknown => Some(Reason::Unknown),
            Named::Baseline | Named::Overlay(_) | Named::Broken(_) => None,
        })
    }

    fn gateway(
        &self,
        request: &Request<'_>,
        trace: &mut impl Trace,
    ) -> Result<Option<Served<'t, U>>, Refusal> {
        if request.by_browser {
            self.all_known()?;
        }
        if request.preview.is_some() && self.keys.is_none() {
            return Err(self.no_route(host_of(request.authority), request.path));
        }
        let host = host_of(request.authority);
        // `OPTIONS *` asks about the whole server (RFC 9110, section 9.3.7): that is whoever has its root.
        let path = if request.path == "*" { "/" } else { request.path };
        let Some(exposure) = self.exposed(host, path, request.preview)? else {
            return Err(self.no_route(host, path));
        };
        trace.step(None, || {
            let host = match (&exposure.hosts, request.preview) {
                (_, Some(_)) => "a preview's host",
                (Hosts::One(host), None) => host,
                (Hosts::Every | Hosts::Previews, None) => "any host",
            };
            format!("host and path lead to `{}` ({host}, path {})", exposure.service, exposure.path)
        });
        self.upstream(exposure.service.as_str(), trace).map(Some)
    }

    /// What host and path lead to, by whatever reader of the path; at a `preview`'s host, whichever that names.
    fn exposed(
        &self,
        host: &str,
        path: &str,
        preview: Option<&Preview>,
    ) -> Result<Option<&'t Exposure>, Refusal> {
        let service = preview.and_then(|preview| preview.service());
        let rank = |exposure: &Exposure| match preview {
            Some(_) => service.is_none_or(|service| exposure.service.as_str() == service).then_some(false),
            None => exposure.takes(host),
        };
        let by_path = || self.exposures().any(|exposure| exposure.path.len() > 1 && rank(exposure).is_some());
        let lead = |path: &[u8]| self.longest(path, rank);
        if is_plain(path) || !by_path() {
            return Ok(lead(path.as_bytes()));
        }
        agreed(path, lead).map_err(|_| {
            let message = format!(
                "not everybody who reads the path `{}` is led to the same service",
                printable(path, 80)
            );
            let hint =
                "send it without dot segments, empty segments, backslashes, parameters and escapes of them";
            Refusal::new(Problem::AmbiguousPath, message).hint(hint)
        })
    }

    /// The exposures of the key's overlays, nearest first, and the baseline's.
    fn exposures(&self) -> impl Iterator<Item = &'t Exposure> {
        self.overlays().flat_map(|overlay| overlay.exposures.iter()).chain(self.baseline.exposures.iter())
    }

    /// The exposure with the highest rank that has the path, and then with the longest prefix; of equals the first.
    fn longest(&self, path: &[u8], rank: impl Fn(&Exposure) -> Option<bool>) -> Option<&'t Exposure> {
        let mut best: Option<((bool, usize), &'t Exposure)> = None;
        for exposure in self.exposures() {
            if let Some(rank) = rank(exposure)
                && exposure.has(path)
                && best.is_none_or(|(known, _)| (rank, exposure.path.len()) > known)
            {
                best = Some(((rank, exposure.path.len()), exposure));
            }
        }
        best.map(|(_, exposure)| exposure)
    }

    /// Whether each id of the key names something that is served.
    fn all_known(&self) -> Result<(), Refusal> {
        self.named.iter().try_for_each(|(id, named)| match *named {
            Named::Baseline | Named::Overlay(_) => Ok(()),
            Named::Expired(overlay) => Err(self.expired(overlay)),
            Named::Unknown => Err(self.unknown(id)),
            Named::Broken(diagnostics) => Err(never_good(id, diagnostics)),
        })
    }

    fn no_route(&self, host: &str, path: &str) -> Refusal {
        let exposed: Vec<_> = self
            .baseline
            .exposures
            .iter()
            .filter_map(|exposure| match &exposure.hosts {
                Hosts::Every => Some(format!("*{}", exposure.path)),
                Hosts::One(host) => Some(format!("{host}{}", exposure.path)),
                Hosts::Previews => None,
            })
            .take(10)
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
        if let Some(owned) = self.overlays().find_map(|overlay| overlay.owners(host).first()) {
            return Some(&owned.route.service);
        }
        self.baseline.service_at(host, port).or_else(|| {
            let at = |owned: &&'t Owned<U>| {
                let called = |url: &Url| url.port == port && spellings(&url.host).any(|own| own == host);
                owned.route.urls.iter().any(called)
            };
            self.overlays()
                .find_map(|overlay| overlay.owned().iter().find(at))
                .map(|owned| &owned.route.service)
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
            // Whoever marked it has decided already, by a snapshot that may be newer.
            Err(_) if request.hop.is_some() => None,
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
            _ if *own == self.baseline.id && self.keys.is_none() => (Via::Baseline, Reason::NoKey),
            _ if *own == self.baseline.id => (Via::Baseline, self.missed().unwrap_or(Reason::NotOwned)),
            _ if self.ids().any(|id| id == own.as_str()) => (Via::Overlay, Reason::Owned),
            _ => (Via::Ancestor, self.missed().unwrap_or(Reason::Inherited)),
        };
        Served {
            service,
            environment: own,
            via,
            reason,
            key: key.map(|overlay| &overlay.id),
            policy: key.map_or(self.baseline.policy, |overlay| overlay.policy),
            max_requests: found.filter(|found| found.environment == own).and_then(|found| found.max_requests),
            onward: self.onward(),
            to: To::Application,
        }
    }

    /// The nearest available owner of `service` over the keys in order, or the baseline's.
    fn upstream(&self, service: &str, trace: &mut impl Trace) -> Result<Served<'t, U>, Refusal> {
        let mut missed = None;
        let mut known = None;
        for (id, named) in &self.named {
            match self.ask(id, named, service, trace)? {
                Asked::Found { route, via, reason, key } => return Ok(self.served(route, via, reason, key)),
                Asked::Unavailable(overlay) => {
                    let because = self.tried.because.unwrap_or(Reason::Unhealthy);
                    return self.baseline_serves(service, because, Some(overlay), trace);
                }
                Asked::NotOwned(overlay) => {
                    known = known.or(overlay);
                }
                Asked::Missed(reason) => {
                    missed = missed.or(Some(reason));
                }
            }
        }
        let reason = match self.keys {
            Some(_) => missed.unwrap_or(Reason::NotOwned),
            None if self.untrusted => Reason::Untrusted,
            None => Reason::NoKey,
        };
        self.baseline_serves(service, reason, known, trace)
    }

    /// What one id of the key says about `service`.
    fn ask(
        &self,
        id: &str,
        named: &Named<'t, U>,
        service: &str,
        trace: &mut impl Trace,
    ) -> Result<Asked<'t, U>, Refusal> {
        let reject = self.baseline.on_unknown == OnUnknown::Reject;
        match *named {
            Named::Baseline => {
                trace.step(Some(&self.baseline.declared), || format!("`{id}` is the baseline itself"));
                Ok(match self.baseline.route(service) {
                    Some(route) => {
                        Asked::Found { route, via: Via::Baseline, reason: Reason::Owned, key: None }
                    }
                    None => Asked::NotOwned(None),
                })
            }
            Named::Overlay(overlay) => Ok(self.ask_overlay(overlay, service, trace)),
            Named::Expired(overlay) => {
                trace.step(Some(&overlay.declared), || format!("`{id}` has expired"));
                if reject { Err(self.expired(overlay)) } else { Ok(Asked::Missed(Reason::Expired)) }
            }
            Named::Unknown => {
                trace.step(None, || format!("nobody knows `{id}`"));
                if reject { Err(self.unknown(id)) } else { Ok(Asked::Missed(Reason::Unknown)) }
            }
            Named::Broken(diagnostics) => Err(never_good(id, diagnostics)),
        }
    }

    /// Once a key's lineage owns the service, its policy alone decides; later ids are not tried.
    fn ask_overlay(&self, overlay: &'t Overlay<U>, service: &str, trace: &mut impl Trace) -> Asked<'t, U> {
        let owners = overlay.owners(service);
        if owners.is_empty() {
            trace.step(Some(&overlay.declared), || {
                format!("nobody in the lineage {} owns `{service}`", lineage_of(overlay))
            });
            return Asked::NotOwned(Some(overlay));
        }
        let Some((route, because)) = self.nearest_available(overlay, owners) else {
            trace.step(Some(&overlay.declared), || {
                format!("no owner of `{service}` in the lineage is available: falls back")
            });
            return Asked::Unavailable(overlay);
        };
        trace.step(Some(&route.declared), || {
            let owner = &route.environment;
            format!("`{service}` is owned by `{owner}`, nearest in the lineage {}", lineage_of(overlay))
        });
        let own = route.environment == overlay.id;
        let (via, natural) =
            if own { (Via::Overlay, Reason::Owned) } else { (Via::Ancestor, Reason::Inherited) };
        Asked::Found { route, via, reason: because.unwrap_or(natural), key: Some(overlay) }
    }

    fn baseline_serves(
        &self,
        service: &str,
        reason: Reason,
        key: Option<&'t Overlay<U>>,
        trace: &mut impl Trace,
    ) -> Result<Served<'t, U>, Refusal> {
        let Some(route) = self.baseline.route(service) else {
            return Err(self.no_such_service(service));
        };
        trace.step(Some(&route.declared), || {
            format!("the baseline `{}` serves `{service}` ({})", self.baseline.id, reason.as_str())
        });
        Ok(self.served(route, Via::Baseline, reason, key))
    }

    /// The first owner that was not yet found unavailable, and why an earlier one was passed over.
    /// Without `onUnavailable: fallback` no owner is ever passed over.
    fn nearest_available(
        &self,
        overlay: &Overlay<U>,
        owners: &'t [Owned<U>],
    ) -> Option<(&'t Route<U>, Option<Reason>)> {
        if overlay.policy.on_unavailable == OnUnavailable::Fail || self.tried.unavailable.is_empty() {
            return owners.first().map(|owned| (&*owned.route, None));
        }
        let available = |owned: &Owned<U>| !self.tried.unavailable.contains(&owned.route.environment);
        let at = owners.iter().position(available)?;
        Some((&*owners[at].route, if at > 0 { self.tried.because } else { None }))
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
            max_requests: route.max_requests,
            onward: self.onward(),
            to: To::Upstream { route, marked: false },
        }
    }

    /// The keys that go upstream: all but those whose environment says `propagateHeader: false`.
    fn onward(&self) -> Option<Keys> {
        let keys = self.keys?;
        let propagates = |named: &Named<'t, U>| match named {
            Named::Overlay(overlay) | Named::Expired(overlay) => overlay.propagate,
            _ => self.baseline.propagate,
        };
        if self.named.iter().all(|(_, named)| propagates(named)) {
            return Some(keys.clone());
        }
        keys.filtered(|id| self.named.iter().any(|(own, named)| *own == id && propagates(named)))
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
    let host = match authority.as_bytes() {
        [b'[', ..] => split_authority(authority).map_or(authority, |(host, _)| host),
        bytes => &authority[..bytes.iter().position(|byte| *byte == b':').unwrap_or(bytes.len())],
    };
    host.strip_suffix('.').unwrap_or(host)
}

fn lower_case<'b>(text: &str, buffer: &'b mut [u8; 256]) -> Option<&'b str> {
    let lower = buffer.get_mut(..text.len())?;
    lower.copy_from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}
