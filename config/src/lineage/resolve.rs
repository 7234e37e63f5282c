//! One blueprint against what stands: every reference checked, every inherited value filled in.

use std::sync::Arc;

use super::{DEFAULT_HOLD, Lineages, MAX_DEPTH, Policy, Resolved, Standing};
use crate::blueprint::{Blueprint, OnUnavailable, OnUnknown, Service};
use crate::diagnostic::{Diagnostic, Source, Spanned, did_you_mean};
use crate::name::{EnvironmentId, HeaderName};
use crate::url::{Scheme, Url, UrlTemplate};

impl Lineages {
    /// Checks every reference of `blueprint` against what stands; `None` where one is wrong.
    pub(super) fn resolve(
        &self,
        blueprint: &Arc<Blueprint>,
        problems: &mut Vec<Diagnostic>,
    ) -> Option<Resolved> {
        let id = &blueprint.id.value;
        let errors_before = problems.iter().filter(|problem| problem.is_error()).count();
        let parent = match blueprint.parent() {
            None => None,
            Some(parent) => match self.parent(blueprint, parent) {
                Ok(resolved) => Some(resolved),
                Err(problem) => {
                    problems.push(*problem);
                    return None;
                }
            },
        };
        if let Some(parent) = parent {
            self.check_overlay(blueprint, parent, problems);
        }
        let template = match parent {
            None => blueprint.service_url.as_ref(),
            Some(_) => self.overlay_url(blueprint),
        };
        let urls = blueprint
            .services
            .iter()
            .map(|service| self.urls(blueprint, service, template, problems))
            .collect();
        self.check_attachments(blueprint, problems);
        if problems.iter().filter(|problem| problem.is_error()).count() > errors_before {
            return None;
        }
        let own_expiry = parent.and_then(|_| blueprint.expiry());
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
        })
    }

    fn parent(
        &self,
        blueprint: &Arc<Blueprint>,
        parent: &Spanned<EnvironmentId>,
    ) -> Result<&Resolved, Box<Diagnostic>> {
        let id = &blueprint.id.value;
        let error = |message: String| Diagnostic::error(&blueprint.source, parent.span, message).of(id);
        match self.entries.get(&parent.value).and_then(|entry| entry.standing.as_ref()) {
            // It is being settled itself: that leads back here.
            None if self.entries.get(&parent.value).is_some_and(|entry| !entry.claims.is_empty()) => {
                let problem = error(format!("the lineage is a cycle through `{}`", parent.value));
                Err(Box::new(problem.hint("one of them must have a baseline as parent")))
            }
            None => {
                let problem = error(format!("unknown parent `{}`", parent.value));
                let known = self.entries.keys().filter(|known| *known != id).map(EnvironmentId::as_str);
                // Among very many environments the search would cost more than the hint is worth.
                let near = if self.entries.len() <= 10_000 {
                    did_you_mean(parent.value.as_str(), known)
                } else {
                    None
                };
                Err(Box::new(match near {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem.hint("`baselineId` names a baseline or another overlay of this store"),
                }))
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
    fn check_overlay(&self, blueprint: &Arc<Blueprint>, parent: &Resolved, problems: &mut Vec<Diagnostic>) {
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
        for service in &blueprint.services {
            let named = |other: &Service, host: &str| other.hosts.iter().any(|known| *known.value == *host);
            let same =
                baseline.blueprint.services.iter().find(|other| other.name.value == service.name.value);
            // Several services of the baseline can share a host, by path: a service may repeat its own.
            let claimed = |host: &&Spanned<Box<str>>| same.is_none_or(|same| !named(same, &host.value));
            for host in service.hosts.iter().filter(claimed) {
                if let Some(owner) = baseline
                    .blueprint
                    .services
                    .iter()
                    .find(|other| other.name.value != service.name.value && named(other, &host.value))
                {
                    let message = format!(
                        "the host `{}` belongs to `{}` of `{}`",
                        host.value, owner.name.value, parent.baseline
                    );
                    problems
                        .push(error(host.span, message).hint("an overlay cannot claim anybody else's names"));
                }
            }
            if !self.has_service(parent, service) {
                let names = baseline.blueprint.services.iter().map(|known| known.name.value.as_str());
                let message =
                    format!("`{}` has no service `{}`: it is new", parent.baseline, service.name.value);
                let warning = error(service.name.span, message).warning();
                problems.push(match did_you_mean(service.name.value.as_str(), names) {
                    Some(near) => warning.hint(format!("did you mean `{near}`?")),
                    None => warning.hint("fine, if it is meant so"),
                });
            }
        }
    }

    fn has_service(&self, parent: &Resolved, service: &Service) -> bool {
        let mut ancestor = Some(parent);
        while let Some(resolved) = ancestor {
            if resolved.blueprint.services.iter().any(|known| known.name.value == service.name.value) {
                return true;
            }
            ancestor = resolved.parent.as_ref().and_then(|id| self.standing(id)).and_then(Standing::resolved);
        }
        false
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
        template: Option<&Spanned<UrlTemplate>>,
        problems: &mut Vec<Diagnostic>,
    ) -> Arc<[Url]> {
        let id = &blueprint.id.value;
        let attached = self.attachments(id).iter().flat_map(|attachment| {
            let of_it = attachment.services.iter().filter(|(name, _)| name.value == service.name.value);
            of_it.map(|(_, url)| (&attachment.source, url))
        });
        let (refused, attached): (Vec<_>, Vec<_>) =
            attached.partition(|(_, url)| self.forbidden(&url.value).is_some());
        for (source, url) in refused {
            // A record beside the blueprint: a bad one is not used, and takes nothing from the blueprint.
            if let Some((message, hint)) = self.forbidden(&url.value) {
                problems.push(Diagnostic::error(source, url.span, message).of(id).warning().hint(hint));
            }
        }
        let own = || service.urls.iter().map(|url| (&blueprint.source, url)).collect();
        let given: Vec<(&Arc<Source>, &Spanned<Url>)> = if attached.is_empty() { own() } else { attached };
        for (source, url) in &given {
            if let Some(fault) = self.forbidden(&url.value) {
                problems.push(Diagnostic::error(source, url.span, fault.0).of(id).hint(fault.1));
            }
        }
        if !given.is_empty() {
            return given.iter().map(|(_, url)| url.value.clone()).collect();
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

    /// Why a blueprint may not lead there, and what to do.
    fn forbidden(&self, url: &Url) -> Option<(String, String)> {
        if url.scheme == Scheme::Unix {
            let below = |dir: &String| {
                std::path::Path::new(&*url.host).starts_with(dir) && !url.host.contains("/../")
            };
            let allowed = self.rules.unix_under.iter().any(below);
            return (!allowed).then(|| {
                (
                    format!("`{url}` is outside the directories allowed for unix sockets"),
                    "start with `--allow-unix DIR`".to_owned(),
                )
            });
        }
        let address: std::net::IpAddr = url.host.parse().ok()?;
        is_link_local(address).then(|| {
            (
                format!("`{url}` is a link-local address"),
                "such addresses serve a machine's own credentials; name the service's address".to_owned(),
            )
        })
    }

    fn check_attachments(&self, blueprint: &Arc<Blueprint>, problems: &mut Vec<Diagnostic>) {
        let id = &blueprint.id.value;
        for attachment in self.attachments(id) {
            for (name, _) in &attachment.services {
                if !blueprint.services.iter().any(|service| service.name.value == name.value) {
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

/// Whether an address is only meaningful on its own link: there the credentials of cloud machines are served.
#[must_use]
pub fn is_link_local(address: std::net::IpAddr) -> bool {
    match address.to_canonical() {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
