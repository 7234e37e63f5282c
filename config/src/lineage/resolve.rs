//! One blueprint against what stands: every reference checked, every inherited value filled in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::{DEFAULT_HOLD, Entry, Lineages, MAX_DEPTH, Policy, Resolved, Standing};
use crate::blueprint::{AttachedUrl, Blueprint, OnUnavailable, OnUnknown, Service};
use crate::diagnostic::{Diagnostic, Spanned, did_you_mean};
use crate::name::{EnvironmentId, HeaderName};
use crate::time::UnixMillis;
use crate::url::{Scheme, Url, UrlTemplate};

/// The search for names that were probably meant, over one [`Lineages::apply`] or [`Lineages::around`]: where everything is wrong
/// at once, it would cost far more than its hints are worth.
pub(super) struct Suggestions {
    /// How many more names it may look at.
    left: usize,
}

impl Default for Suggestions {
    fn default() -> Self {
        Self { left: 100_000 }
    }
}

impl Suggestions {
    fn near<'c>(
        &mut self,
        word: &str,
        count: usize,
        candidates: impl Iterator<Item = &'c str>,
    ) -> Option<String> {
        self.nearest(word, count, candidates).map(|near| format!("did you mean `{near}`?"))
    }

    /// The candidate that was probably meant; none where it would have to look at too many.
    pub(super) fn nearest<'c>(
        &mut self,
        word: &str,
        count: usize,
        candidates: impl Iterator<Item = &'c str>,
    ) -> Option<&'c str> {
        self.left = self.left.checked_sub(count)?;
        did_you_mean(word, candidates)
    }
}

/// Addresses attached to services, by the services' names.
type Attached<'l> = HashMap<&'l str, Vec<&'l Url>>;

impl Lineages {
    /// Checks every reference of `blueprint` against what stands; `None` where one is wrong.
    pub(super) fn resolve(
        &self,
        blueprint: &Arc<Blueprint>,
        names: &mut Suggestions,
        problems: &mut Vec<Diagnostic>,
    ) -> Option<Resolved> {
        let id = &blueprint.id.value;
        let errors_before = problems.iter().filter(|problem| problem.is_error()).count();
        let parent = match blueprint.parent() {
            None => None,
            Some(parent) => match self.parent(blueprint, parent, names) {
                Ok(resolved) => Some(resolved),
                Err(problem) => {
                    problems.push(*problem);
                    return None;
                }
            },
        };
        if let Some(parent) = parent {
            self.check_overlay(blueprint, parent, names, problems);
        }
        let template = match parent {
            None => blueprint.service_url.as_ref(),
            Some(_) => self.overlay_url(blueprint),
        };
        let attached = self.attached(blueprint, problems);
        let urls = blueprint
            .services
            .iter()
            .map(|service| self.urls(blueprint, service, &attached, template, problems))
            .collect();
        self.check_attachments(blueprint, problems);
        if problems.iter().filter(|problem| problem.is_error()).count() > errors_before {
            return None;
        }
        let mut by_name: Box<[u32]> = (0..).take(blueprint.services.len()).collect();
        by_name.sort_unstable_by_key(|at| &blueprint.services[*at as usize].name.value);
        let own_expiry = parent.and_then(|_| self.expiry(blueprint));
        Some(Resolved {
            blueprint: blueprint.clone(),
            parent: blueprint.parent().map(|parent| parent.value.clone()),
            baseline: parent.map_or_else(|| id.clone(), |parent| parent.baseline.clone()),
            depth: parent.map_or(0, |parent| parent.depth + 1),
            header: match (parent, &blueprint.header) {
                (Some(parent), _) => parent.header.clone(),
                (None, Some(header)) => header.value.clone(),
                (None, None) => HeaderName::default_key(),
            },
            previews: match (parent, &blueprint.preview_url) {
                (Some(parent), _) => parent.previews.clone(),
                (None, own) => own.as_ref().map(|own| own.value.clone()).unwrap_or_default().into(),
            },
            shares: self.attachments(id).iter().flat_map(|attached| &attached.shares).cloned().collect(),
            propagate: blueprint.propagate.unwrap_or_else(|| parent.is_none_or(|parent| parent.propagate)),
            on_unknown: match (parent, &blueprint.on_unknown) {
                (Some(parent), _) => parent.on_unknown,
                (None, Some(own)) => own.value,
                (None, None) => OnUnknown::Baseline,
            },
            policy: Policy {
                on_unavailable: blueprint.on_unavailable.unwrap_or_else(|| {
                    parent.map_or(OnUnavailable::Fail, |parent| parent.policy.on_unavailable)
                }),
                hold_for: blueprint
                    .hold_for
                    .unwrap_or_else(|| parent.map_or(DEFAULT_HOLD, |parent| parent.policy.hold_for)),
            },
            expires_at: own_expiry.into_iter().chain(parent.and_then(|parent| parent.expires_at)).min(),
            urls,
            by_name,
        })
    }

    /// When an overlay expires by itself: when its blueprint says, or later where that was extended. What never expires
    /// cannot be extended.
    #[must_use]
    pub fn expiry(&self, blueprint: &Blueprint) -> Option<UnixMillis> {
        let written = blueprint.expiry();
        // Of an entry that does not say when it was written, a ttl counts from when it is first extended.
        let expires = written.is_some() || blueprint.ttl.is_some();
        let extended = self.attachments(&blueprint.id.value).iter().filter_map(|record| record.expires_at);
        written.into_iter().chain(extended.filter(|_| expires)).max()
    }

    /// The ids that files declare, well or not.
    pub(super) fn declared(&self) -> impl Iterator<Item = &EnvironmentId> {
        let stays = move |(known, entry): &(&EnvironmentId, &Entry)| {
            !entry.claims.is_empty() || self.broken.contains_key(*known)
        };
        self.entries.iter().filter(stays).map(|(known, _)| known)
    }

    fn parent(
        &self,
        blueprint: &Arc<Blueprint>,
        parent: &Spanned<EnvironmentId>,
        names: &mut Suggestions,
    ) -> Result<&Resolved, Box<Diagnostic>> {
        let id = &blueprint.id.value;
        let error = |message: String| Diagnostic::error(&blueprint.source, parent.span, message).of(id);
        let entry = self.entries.get(&parent.value);
        match entry.and_then(|entry| entry.standing.as_ref()) {
            None => {
                let problem = error(format!("unknown parent `{}`", parent.value));
                let others = self.declared().filter(|known| *known != id).map(EnvironmentId::as_str);
                let near = names.near(parent.value.as_str(), self.entries.len(), others);
                Err(Box::new(problem.hint(near.unwrap_or_else(|| {
                    "`baselineId` names a baseline or another overlay of this store".to_owned()
                }))))
            }
            // Its own reason is told where it is: repeated here, a long chain would repeat it without end.
            Some(Standing::Refused(_)) => {
                let problem = error(format!("the parent `{}` cannot be used", parent.value));
                Err(Box::new(problem.hint("mend the parent first")))
            }
            Some(Standing::Resolved(resolved)) if resolved.depth == MAX_DEPTH => {
                let problem = error(format!(
                    "the lineage is deeper than {MAX_DEPTH}: `{}` already has {MAX_DEPTH} ancestors",
                    parent.value
                ));
                Err(Box::new(problem.hint("name an environment nearer to the baseline as parent")))
            }
            Some(Standing::Resolved(resolved)) => Ok(resolved),
        }
    }

    /// What an overlay may not do to its baseline, and what it should know about it.
    fn check_overlay(
        &self,
        blueprint: &Arc<Blueprint>,
        parent: &Resolved,
        names: &mut Suggestions,
        problems: &mut Vec<Diagnostic>,
    ) {
        let id = &blueprint.id.value;
        let error = |span, message: String| Diagnostic::error(&blueprint.source, span, message).of(id);
        if let Some(header) = blueprint.header.as_ref().filter(|header| header.value != parent.header) {
            let message = format!(
                "`headerName` is `{}` here and `{}` in the baseline `{}`",
                header.value, parent.header, parent.baseline
            );
            problems.push(
                error(header.span, message).hint("leave it out: the baseline's holds for all its overlays"),
            );
        }
        let Some(baseline) =
            self.entries.get(&parent.baseline).and_then(|entry| entry.standing.as_ref()?.resolved())
        else {
            return;
        };
        let claims = claims(blueprint, baseline);
        for service in &blueprint.services {
            for host in &service.hosts {
                if let Some(owner) = claimed_by_another(service, claims.get(&*host.value)) {
                    let message = format!(
                        "the host `{}` belongs to `{}` of `{}`",
                        host.value, owner.name.value, parent.baseline
                    );
                    problems
                        .push(error(host.span, message).hint("an overlay cannot claim anybody else's names"));
                }
            }
            let name = service.name.value.as_str();
            if !self.lineage(parent).any(|ancestor| ancestor.owns(name)) {
                let known = &baseline.blueprint.services;
                let near = names.near(name, known.len(), known.iter().map(|known| known.name.value.as_str()));
                let message = format!("`{}` has no service `{name}`: it is new", parent.baseline);
                problems.push(
                    error(service.name.span, message)
                        .warning()
                        .hint(near.unwrap_or_else(|| "fine, if it is meant so".to_owned())),
                );
            }
        }
    }

    /// An environment that stands and its ancestors, nearest first.
    fn lineage<'l>(&'l self, nearest: &'l Resolved) -> impl Iterator<Item = &'l Resolved> {
        let parent = |of: &&'l Resolved| self.standing(of.parent.as_ref()?)?.resolved();
        std::iter::successors(Some(nearest), parent)
    }

    /// The nearest `overlayUrl` of the lineage.
    fn overlay_url<'b>(&'b self, blueprint: &'b Blueprint) -> Option<&'b Spanned<UrlTemplate>> {
        let mut at = blueprint;
        loop {
            if at.overlay_url.is_some() {
                return at.overlay_url.as_ref();
            }
            at = &self.standing(&at.parent()?.value)?.resolved()?.blueprint;
        }
    }

    /// The addresses of a service: attached, else its own, else by template; none while pending.
    fn urls(
        &self,
        blueprint: &Arc<Blueprint>,
        service: &Service,
        attached: &Attached<'_>,
        template: Option<&Spanned<UrlTemplate>>,
        problems: &mut Vec<Diagnostic>,
    ) -> Arc<[Url]> {
        let id = &blueprint.id.value;
        if let Some(attached) = attached.get(service.name.value.as_str()) {
            return attached.iter().copied().cloned().collect();
        }
        for (url, span) in service.urls.iter().zip(&service.url_spans) {
            if let Some((message, hint)) = self.forbidden(url) {
                problems.push(Diagnostic::error(&blueprint.source, *span, message).of(id).hint(hint));
            }
        }
        if !service.urls.is_empty() {
            return service.urls.clone();
        }
        match template.map(|template| template.value.fill(&service.name.value, id)) {
            None => Arc::new([]),
            Some(Ok(url)) => match self.forbidden(&url) {
                None => Arc::new([url]),
                Some((message, hint)) => {
                    problems.push(
                        Diagnostic::error(&blueprint.source, service.name.span, message).of(id).hint(hint),
                    );
                    Arc::new([])
                }
            },
            Some(Err(why)) => {
                let message = format!("no url can be made for `{}`: {why}", service.name.value);
                problems.push(
                    Diagnostic::error(&blueprint.source, service.name.span, message)
                        .of(id)
                        .hint("give the service a `url:`"),
                );
                Arc::new([])
            }
        }
    }

    /// What is attached and may be. A record beside the blueprint: a bad one is not used, and takes nothing
    /// from the blueprint.
    fn attached(&self, blueprint: &Blueprint, problems: &mut Vec<Diagnostic>) -> Attached<'_> {
        let id = &blueprint.id.value;
        let mut attached = Attached::new();
        for attachment in self.attachments(id) {
            for one in attachment.services.iter().filter(|one| !self.has_lapsed(id, one)) {
                match self.forbidden(&one.url.value) {
                    None => attached.entry(one.service.value.as_str()).or_default().push(&one.url.value),
                    Some((message, hint)) => {
                        let problem = Diagnostic::error(&attachment.source, one.url.span, message);
                        problems.push(problem.of(id).warning().hint(hint));
                    }
                }
            }
        }
        attached
    }

    /// Why a blueprint may not lead there, and what to do.
    fn forbidden(&self, url: &Url) -> Option<(String, String)> {
        if url.scheme == Scheme::Unix {
            let path = std::path::Path::new(&*url.host);
            let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
            let allowed = !climbs && self.rules.unix_under.iter().any(|dir| path.starts_with(dir));
            return (!allowed).then(|| {
                (
                    format!("`{url}` is outside the directories allowed for unix sockets"),
                    "start with `--allow-unix DIR`".to_owned(),
                )
            });
        }
        let address: IpAddr = url.host.parse().ok()?;
        is_off_limits(address).then(|| {
            (
                format!("`{url}` is a link-local address, or one that serves a machine's credentials"),
                "such addresses serve a machine's own credentials; name the service's address".to_owned(),
            )
        })
    }

    fn check_attachments(&self, blueprint: &Arc<Blueprint>, problems: &mut Vec<Diagnostic>) {
        let id = &blueprint.id.value;
        let attachments = self.attachments(id);
        if attachments.is_empty() {
            return;
        }
        let owned: HashSet<_> = blueprint.services.iter().map(|service| &service.name.value).collect();
        for attachment in attachments {
            for AttachedUrl { service: name, .. } in &attachment.services {
                if !owned.contains(&name.value) {
                    let message = format!("`{id}` does not own `{}`: the address is not used", name.value);
                    problems.push(
                        Diagnostic::error(&attachment.source, name.span, message)
                            .of(id)
                            .warning()
                            .hint(format!("`overlane detach {id} {}` removes it", name.value)),
                    );
                }
            }
        }
    }
}

/// The services of `baseline` that have a host which `blueprint` claims, by host.
fn claims<'l>(blueprint: &'l Blueprint, baseline: &'l Resolved) -> HashMap<&'l str, Vec<&'l Service>> {
    let hosts = blueprint.services.iter().flat_map(|service| &service.hosts);
    let mut claims: HashMap<_, _> = hosts.map(|host| (&*host.value, Vec::new())).collect();
    if claims.is_empty() {
        return claims;
    }
    for service in &baseline.blueprint.services {
        for host in &service.hosts {
            if let Some(owners) = claims.get_mut(&*host.value) {
                owners.push(service);
            }
        }
    }
    claims
}

/// Whose host it is, if it is not the service's own. Several services of the baseline can share a host,
/// by path: a service may repeat its own.
fn claimed_by_another<'l>(service: &Service, owners: Option<&Vec<&'l Service>>) -> Option<&'l Service> {
    let owners = owners?;
    let shared = owners.iter().any(|owner| owner.name.value == service.name.value);
    owners.first().copied().filter(|_| !shared)
}

/// Whether nothing may lead to an address: it is only meaningful on its own link, or serves the credentials of
/// cloud machines elsewhere.
#[must_use]
pub fn is_off_limits(address: IpAddr) -> bool {
    match address.to_canonical() {
        // Alibaba Cloud, Azure's WireServer, Oracle Cloud.
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || matches!(v4.octets(), [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192])
        }
        IpAddr::V6(v6) => match v6.segments() {
            // AWS, Google Cloud.
            [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => true,
            // An address of IPv4 by way of NAT64 (RFC 6052, section 2.1).
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_off_limits(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
            }
            _ => v6.is_unicast_link_local(),
        },
    }
}
