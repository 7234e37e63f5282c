//! The routing table: what requests are looked up in.
//!
//! The table is probed by key. Each overlay holds its services already resolved over its ancestors,
//! so a lookup costs the same whatever the number of overlays and the depth of the lineage. The
//! table is persistent in the functional sense: [`RoutingTable::compile`] shares everything with
//! its predecessor but the environments that changed.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

use crate::blueprint::{OnUnknown, Share};
use crate::diagnostic::{Diagnostic, Location};
use crate::lineage::{Lineages, Policy, Resolved, Standing};
use crate::name::{EnvironmentId, HeaderName, ServiceName};
use crate::preview::Previews;
use crate::time::UnixMillis;
use crate::url::{Scheme, Url};

type Environments<U> =
    imbl::GenericHashMap<EnvironmentId, Arc<Environment<U>>, RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// One service of one environment: where its requests go.
///
/// `U` is what the data plane attaches to each route (addresses, health); the core never looks at it.
#[derive(Debug)]
pub struct Route<U> {
    /// The environment that owns the service.
    pub environment: EnvironmentId,
    /// The service.
    pub service: ServiceName,
    /// Its addresses; none while it is *pending*.
    pub urls: Arc<[Url]>,
    /// How many requests a proxy has there at once at most, where its blueprint says.
    pub max_requests: Option<NonZeroU32>,
    /// Where the service is declared.
    pub declared: Location,
    /// What the data plane attached.
    pub upstream: U,
}

/// The hosts at the gateway that lead to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// Every host.
    Every,
    /// This one, in lower case.
    One(Box<str>),
    /// Preview hosts, which lead to every exposed service, and no others.
    Previews,
}

/// A host and path at the gateway that lead to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The hosts.
    pub hosts: Hosts,
    /// The path prefix, `/` for every path; it matches whole segments.
    pub path: Box<str>,
    /// The service.
    pub service: ServiceName,
}

impl Exposure {
    /// Whether requests to a host come here: and if so, whether it is named as one of its own.
    #[must_use]
    pub fn takes(&self, host: &str) -> Option<bool> {
        match &self.hosts {
            Hosts::Every => Some(false),
            Hosts::One(own) if own.eq_ignore_ascii_case(host) => Some(true),
            Hosts::One(_) | Hosts::Previews => None,
        }
    }

    /// How specific the match with a host and a path is: host before any host, then the longer path.
    /// `None` where it does not match.
    #[must_use]
    pub fn specificity(&self, host: &str, path: &[u8]) -> Option<(bool, usize)> {
        let named = self.takes(host)?;
        self.has(path).then_some((named, self.path.len()))
    }

    /// Whether this is one of its own hosts.
    #[must_use]
    pub fn is_at(&self, host: &str) -> bool {
        self.takes(host) == Some(true)
    }

    /// Whether a path is under this one.
    #[must_use]
    pub fn has(&self, path: &[u8]) -> bool {
        match path.strip_prefix(self.path.as_bytes()) {
            Some(rest) => rest.is_empty() || rest.starts_with(b"/") || self.path.ends_with('/'),
            None => false,
        }
    }
}

/// A complete, shared environment.
#[derive(Debug)]
pub struct Baseline<U> {
    /// Its id.
    pub id: EnvironmentId,
    /// The header that carries the key.
    pub header: HeaderName,
    /// Whether a key that nobody knows goes upstream.
    pub propagate: bool,
    /// What happens to a key that nobody knows.
    pub on_unknown: OnUnknown,
    /// What happens when its own upstreams are unavailable.
    pub policy: Policy,
    /// Where the environment is declared.
    pub declared: Location,
    /// Where the gateway leads.
    pub exposures: Box<[Exposure]>,
    /// Where its previews are.
    pub previews: Arc<Previews>,
    routes: HashMap<ServiceName, Arc<Route<U>>, RandomState>,
    authorities: HashMap<Box<str>, Vec<(u16, ServiceName)>, RandomState>,
}

impl<U> Baseline<U> {
    /// The route of `service`.
    #[must_use]
    pub fn route(&self, service: &str) -> Option<&Arc<Route<U>>> {
        self.routes.get(service)
    }

    /// All routes, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route<U>>> {
        self.routes.values()
    }

    /// The service whose own url has this host (in lower case) and port.
    #[must_use]
    pub fn service_at(&self, host: &str, port: u16) -> Option<&ServiceName> {
        self.authorities.get(host)?.iter().find(|(own, _)| *own == port).map(|(_, service)| service)
    }
}

/// A sparse environment over a parent.
#[derive(Debug)]
pub struct Overlay<U> {
    /// Its id.
    pub id: EnvironmentId,
    /// The baseline at the end of its lineage.
    pub baseline: EnvironmentId,
    /// Its ancestors, nearest first, the baseline last.
    pub ancestors: Box<[EnvironmentId]>,
    /// When it, or the first of its ancestors, expires, as it was written.
    pub expires_at: Option<UnixMillis>,
    /// Until when it is served: until it expires or, where that has been so already
    /// ([`RoutingTable::lapse`]), at no time.
    pub served_until: Option<UnixMillis>,
    /// Whether its key goes upstream.
    pub propagate: bool,
    /// What happens when an upstream is unavailable to requests with its key.
    pub policy: Policy,
    /// Where the environment is declared.
    pub declared: Location,
    /// What it and its ancestors below the baseline add at the gateway.
    pub exposures: Box<[Exposure]>,
    /// The links to it that were given to somebody.
    pub shares: Box<[Share]>,
    /// Every service owned below the baseline, by its name's hash and then nearest first.
    owned: Box<[Owned<U>]>,
}

impl<U> Clone for Overlay<U> {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            baseline: self.baseline.clone(),
            ancestors: self.ancestors.clone(),
            expires_at: self.expires_at,
            served_until: self.served_until,
            propagate: self.propagate,
            policy: self.policy,
            declared: self.declared.clone(),
            exposures: self.exposures.clone(),
            shares: self.shares.clone(),
            owned: self.owned.clone(),
        }
    }
}

/// A route, and the hash of its service's name beside it: a search then touches only this list, and
/// no name but that of what it found.
#[derive(Debug)]
pub struct Owned<U> {
    hash: u64,
    /// The route.
    pub route: Arc<Route<U>>,
}

impl<U> Clone for Owned<U> {
    fn clone(&self) -> Self {
        Self { hash: self.hash, route: self.route.clone() }
    }
}

/// The hash of a service's name; the same in every table, so that children can share what their
/// parents sorted. Names in a table are the operator's: nobody gains by colliding.
fn hash_of(service: &str) -> u64 {
    FixedState::default().hash_one(service)
}

impl<U> Overlay<U> {
    /// The owners of `service` in this lineage below the baseline, nearest first.
    #[must_use]
    pub fn owners(&self, service: &str) -> &[Owned<U>] {
        let hash = hash_of(service);
        let from = first_at_least(&self.owned, hash);
        let same_hash = self.owned[from..].iter().take_while(|owned| owned.hash == hash);
        // Two names with one hash stand one after the other, each whole.
        let other = same_hash.clone().take_while(|owned| owned.route.service.as_str() != service).count();
        let count = same_hash.skip(other).take_while(|owned| owned.route.service.as_str() == service).count();
        &self.owned[from + other..from + other + count]
    }

    /// Every route owned below the baseline; of several owners of one service, the nearest first.
    #[must_use]
    pub fn owned(&self) -> &[Owned<U>] {
        &self.owned
    }
}

/// Where the first entry with at least this hash stands in a list sorted by hash.
///
/// Hashes are evenly spread, so the hash itself says about where: a search by halves would touch
/// several cache lines of a deep lineage's list, this one touches one or two.
fn first_at_least<U>(owned: &[Owned<U>], hash: u64) -> usize {
    let guess = (u128::from(hash) * owned.len() as u128) >> u64::BITS;
    let mut at = usize::try_from(guess).unwrap_or_default();
    while at > 0 && owned[at - 1].hash >= hash {
        at -= 1;
    }
    while at < owned.len() && owned[at].hash < hash {
        at += 1;
    }
    at
}

/// What an id names.
#[derive(Debug)]
pub enum Environment<U> {
    /// A baseline.
    Baseline(Baseline<U>),
    /// An overlay.
    Overlay(Overlay<U>),
    /// A blueprint that was never good: its id is unavailable, for these reasons.
    Refused(Box<[Diagnostic]>),
}

impl<U> Environment<U> {
    /// The route of a service that this environment itself, `id`, owns.
    fn own_route(&self, id: &EnvironmentId, service: &ServiceName) -> Option<&Arc<Route<U>>> {
        match self {
            Self::Baseline(baseline) => baseline.route(service.as_str()),
            Self::Overlay(overlay) => overlay
                .owners(service.as_str())
                .first()
                .map(|owned| &owned.route)
                .filter(|route| route.environment == *id),
            Self::Refused(_) => None,
        }
    }
}

/// All environments, compiled.
#[derive(Debug)]
pub struct RoutingTable<U> {
    environments: Environments<U>,
    baselines: BTreeSet<EnvironmentId>,
    /// The baseline of listeners that are told none, found without a search.
    sole: Option<(EnvironmentId, Arc<Environment<U>>)>,
}

impl<U> Clone for RoutingTable<U> {
    fn clone(&self) -> Self {
        Self {
            environments: self.environments.clone(),
            baselines: self.baselines.clone(),
            sole: self.sole.clone(),
        }
    }
}

impl<U> Default for RoutingTable<U> {
    fn default() -> Self {
        Self {
            environments: Environments::with_hasher(RandomState::default()),
            baselines: BTreeSet::new(),
            sole: None,
        }
    }
}

impl<U> RoutingTable<U> {
    /// What `id` names.
    #[must_use]
    pub fn environment(&self, id: &str) -> Option<&Environment<U>> {
        self.environments.get(id).map(|environment| &**environment)
    }

    /// The routes that an environment itself owns.
    pub fn own_routes<'t>(&'t self, id: &'t EnvironmentId) -> impl Iterator<Item = &'t Arc<Route<U>>> {
        let (baseline, overlay) = match self.environment(id.as_str()) {
            Some(Environment::Baseline(baseline)) => (Some(baseline.routes()), None),
            Some(Environment::Overlay(overlay)) => (None, Some(overlay.owned().iter())),
            _ => (None, None),
        };
        let inherited = overlay.into_iter().flatten().map(|owned| &owned.route);
        let own = inherited.filter(move |route| route.environment == *id);
        baseline.into_iter().flatten().chain(own)
    }

    /// All ids and what they name, in no order.
    pub fn environments(&self) -> impl Iterator<Item = (&EnvironmentId, &Environment<U>)> {
        self.environments.iter().map(|(id, environment)| (id, &**environment))
    }

    /// The ids of all baselines, in order.
    pub fn baselines(&self) -> impl Iterator<Item = &EnvironmentId> {
        self.baselines.iter()
    }

    /// How many environments there are, refused ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.environments.len()
    }

    /// Whether there is no environment at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty()
    }

    /// The baseline of a listener: the one it is told, or the only one in the store. A baseline that
    /// was once the only one stays the default while it exists, so that adding a second one moves
    /// no traffic.
    #[must_use]
    pub fn baseline(&self, told: Option<&EnvironmentId>) -> Option<&Baseline<U>> {
        let environment = match told {
            Some(told) => self.environments.get(told)?,
            None => &self.sole.as_ref()?.1,
        };
        match environment.as_ref() {
            Environment::Baseline(baseline) => Some(baseline),
            _ => None,
        }
    }

    /// The successor of this table, in which the environments `changed` are as `lineages` has them.
    ///
    /// `changed` must hold, with an environment, all its descendants, as [`Lineages::apply`] returns
    /// it. Costs what `changed` costs. `attach` makes what the data plane keeps for a route; where the
    /// route had the same addresses before, it keeps what it had.
    #[must_use]
    pub fn compile<'c>(
        &self,
        lineages: &Lineages,
        changed: impl IntoIterator<Item = &'c EnvironmentId>,
        mut attach: impl FnMut(&EnvironmentId, &ServiceName, &Arc<[Url]>) -> U,
    ) -> Self
    where
        U: Clone,
    {
        let mut next = self.clone();
        let mut standing = Vec::new();
        for id in changed {
            next.environments.remove(id);
            next.baselines.remove(id);
            standing.extend(lineages.standing(id).map(|standing| (id, standing)));
        }
        // Parents before children: a child's services begin with its parent's.
        standing.sort_by_key(|(_, standing)| standing.depth());
        for (id, standing) in standing {
            let before = self.environment(id.as_str());
            let mut attach = |id: &EnvironmentId, service: &ServiceName, urls: &Arc<[Url]>| {
                let kept = before
                    .and_then(|before| before.own_route(id, service))
                    .filter(|route| route.urls == *urls);
                kept.map_or_else(|| attach(id, service, urls), |route| route.upstream.clone())
            };
            let environment = match standing {
                Standing::Refused(diagnostics) => Environment::Refused(diagnostics.clone().into()),
                Standing::Resolved(resolved) => match &resolved.parent {
                    None => Environment::Baseline(compile_baseline(id, resolved, &mut attach)),
                    Some(parent) => {
                        let parent = next.environment(parent.as_str());
                        let baseline = next.baseline(Some(&resolved.baseline));
                        Environment::Overlay(compile_overlay(id, resolved, parent, baseline, &mut attach))
                    }
                },
            };
            if let Environment::Baseline(_) = environment {
                next.baselines.insert(id.clone());
            }
            next.environments.insert(id.clone(), Arc::new(environment));
        }
        let sole = match &next.sole {
            Some((sole, _)) if next.baselines.contains(sole) => Some(sole),
            _ if next.baselines.len() == 1 => next.baselines.first(),
            _ => None,
        };
        next.sole = sole.and_then(|sole| Some((sole.clone(), next.environments.get(sole)?.clone())));
        next
    }
}

impl<U> RoutingTable<U> {
    /// The successor of this table in which these overlays have expired for good: a clock that goes back
    /// does not bring them back.
    #[must_use]
    pub fn lapse<'c>(&self, overlays: impl IntoIterator<Item = &'c EnvironmentId>) -> Self {
        let mut next = self.clone();
        for id in overlays {
            if let Some(Environment::Overlay(overlay)) = self.environment(id.as_str()) {
                let lapsed = Overlay { served_until: Some(UnixMillis(0)), ..overlay.clone() };
                next.environments.insert(id.clone(), Arc::new(Environment::Overlay(lapsed)));
            }
        }
        next
    }
}

/// The routes of an environment. A service that the baseline has too shares the baseline's copy of
/// its name: one that every lookup keeps in the cache, and less memory.
fn routes<U>(
    id: &EnvironmentId,
    resolved: &Resolved,
    baseline: Option<&Baseline<U>>,
    attach: &mut impl FnMut(&EnvironmentId, &ServiceName, &Arc<[Url]>) -> U,
) -> Vec<Arc<Route<U>>> {
    let services = resolved.blueprint.services.iter().zip(&resolved.urls);
    let route = |(service, urls): (&crate::blueprint::Service, &Arc<[Url]>)| {
        let name = &service.name.value;
        let shared = baseline.and_then(|baseline| baseline.route(name.as_str()));
        Arc::new(Route {
            environment: id.clone(),
            service: shared.map_or(name, |route| &route.service).clone(),
            urls: urls.clone(),
            max_requests: service.max_requests,
            declared: resolved.blueprint.location(service.name.span),
            upstream: attach(id, name, urls),
        })
    };
    services.map(route).collect()
}

fn compile_baseline<U>(
    id: &EnvironmentId,
    resolved: &Resolved,
    attach: &mut impl FnMut(&EnvironmentId, &ServiceName, &Arc<[Url]>) -> U,
) -> Baseline<U> {
    let routes = routes(id, resolved, None, attach);
    let mut authorities: HashMap<Box<str>, Vec<(u16, ServiceName)>, RandomState> = HashMap::default();
    for route in &routes {
        for url in route.urls.iter().filter(|url| url.scheme != Scheme::Unix) {
            for host in spellings(&url.host) {
                authorities.entry(host.into()).or_default().push((url.port, route.service.clone()));
            }
        }
    }
    Baseline {
        id: id.clone(),
        header: resolved.header.clone(),
        propagate: resolved.propagate,
        on_unknown: resolved.on_unknown,
        policy: resolved.policy,
        declared: resolved.blueprint.declared(),
        exposures: exposures(resolved, true),
        previews: resolved.previews.clone(),
        routes: routes.into_iter().map(|route| (route.service.clone(), route)).collect(),
        authorities,
    }
}

/// The spellings by which a host is called: itself, and for a Kubernetes service the short forms
/// that resolve to it (`ledger.staging.svc.cluster.local`, `ledger.staging.svc`, `ledger.staging`).
pub(crate) fn spellings(host: &str) -> impl Iterator<Item = &str> {
    let short = |suffix| host.strip_suffix(suffix);
    [Some(host), short(".cluster.local"), short(".svc.cluster.local")].into_iter().flatten()
}

fn compile_overlay<U>(
    id: &EnvironmentId,
    resolved: &Resolved,
    parent: Option<&Environment<U>>,
    baseline: Option<&Baseline<U>>,
    attach: &mut impl FnMut(&EnvironmentId, &ServiceName, &Arc<[Url]>) -> U,
) -> Overlay<U> {
    let with_hash = |route: Arc<Route<U>>| Owned { hash: hash_of(route.service.as_str()), route };
    let mut owned: Vec<_> = routes(id, resolved, baseline, attach).into_iter().map(with_hash).collect();
    let mut ancestors: Vec<_> = resolved.parent.iter().cloned().collect();
    let mut gates = exposures(resolved, false).into_vec();
    if let Some(Environment::Overlay(parent)) = parent {
        owned.extend(parent.owned.iter().cloned());
        ancestors.extend(parent.ancestors.iter().cloned());
        gates.extend(parent.exposures.iter().cloned());
    }
    // Stable: of several owners of one service, the nearest stays first.
    owned.sort_by(|a, b| (a.hash, &a.route.service).cmp(&(b.hash, &b.route.service)));
    Overlay {
        id: id.clone(),
        baseline: resolved.baseline.clone(),
        ancestors: ancestors.into(),
        expires_at: resolved.expires_at,
        served_until: resolved.expires_at,
        propagate: resolved.propagate,
        policy: resolved.policy,
        declared: resolved.blueprint.declared(),
        exposures: gates.into(),
        shares: resolved.shares.clone(),
        owned: owned.into(),
    }
}

/// What a blueprint exposes. A service with neither hosts nor path leads from every host in a
/// baseline, where it is the only such service, and in an overlay from none: an overlay cannot
/// claim its baseline's hosts. Preview hosts lead to all.
fn exposures(resolved: &Resolved, baseline: bool) -> Box<[Exposure]> {
    let exposed = || resolved.blueprint.services.iter().filter(|service| service.expose);
    let bare = |service: &&crate::blueprint::Service| service.hosts.is_empty() && service.path.is_none();
    let catch_all = baseline && exposed().filter(bare).count() == 1;
    let mut all = Vec::new();
    for service in exposed() {
        let path: Box<str> = service.path.as_ref().map_or("/", |path| &*path.value).into();
        let exposure = |hosts| Exposure { hosts, path: path.clone(), service: service.name.value.clone() };
        if service.hosts.is_empty() {
            let every = catch_all || !bare(&service);
            all.push(exposure(if every { Hosts::Every } else { Hosts::Previews }));
        }
        all.extend(service.hosts.iter().map(|host| exposure(Hosts::One(host.value.clone()))));
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(hash: u64, service: &str, environment: &str) -> Owned<()> {
        let source = Arc::new(crate::diagnostic::Source::new("f".into(), String::new(), None));
        Owned {
            hash,
            route: Arc::new(Route {
                environment: environment.parse().expect("an id"),
                service: service.parse().expect("a name"),
                urls: Arc::new([]),
                max_requests: None,
                declared: Location { source, span: crate::diagnostic::Span::default() },
                upstream: (),
            }),
        }
    }

    fn overlay(owned: Vec<Owned<()>>) -> Overlay<()> {
        let declared = owned[0].route.declared.clone();
        let id: EnvironmentId = "o".parse().expect("an id");
        let policy = Policy {
            on_unavailable: crate::blueprint::OnUnavailable::Fail,
            hold_for: std::time::Duration::ZERO,
        };
        let (baseline, ancestors, exposures, shares) =
            (id.clone(), Box::default(), Box::default(), Box::default());
        let owned = owned.into();
        Overlay {
            id,
            baseline,
            ancestors,
            expires_at: None,
            served_until: None,
            propagate: true,
            policy,
            declared,
            exposures,
            shares,
            owned,
        }
    }

    #[test]
    fn hashes_are_found_wherever_they_lie() {
        for hashes in [
            &[0, 0, 1, 2, 3][..],
            &[u64::MAX - 1, u64::MAX, u64::MAX],
            &[0, u64::MAX],
            &[1 << 63, (1 << 63) + 1, (1 << 63) + 2, (1 << 63) + 3],
        ] {
            let list: Vec<_> = hashes.iter().map(|hash| owned(*hash, "s", "e")).collect();
            for wanted in
                hashes.iter().flat_map(|hash| [hash.saturating_sub(1), *hash, hash.saturating_add(1)])
            {
                let expected = hashes.partition_point(|hash| *hash < wanted);
                assert_eq!(first_at_least(&list, wanted), expected, "{wanted} in {hashes:?}");
            }
        }
        assert_eq!(first_at_least::<()>(&[], 7), 0);
    }

    #[test]
    fn names_with_one_hash_are_told_apart() {
        let hash = hash_of("b");
        let list = [("a", "near"), ("a", "far"), ("b", "near"), ("b", "far"), ("c", "far")];
        let overlay = overlay(list.map(|(service, environment)| owned(hash, service, environment)).into());
        let found: Vec<_> =
            overlay.owners("b").iter().map(|owned| owned.route.environment.as_str()).collect();
        assert_eq!(found, ["near", "far"]);
        assert_eq!(overlay.owners("z").len(), 0);
    }
}
