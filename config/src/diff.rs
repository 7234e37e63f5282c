//! What changed between two generations, in words for the log.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::blueprint::Service;
use crate::diagnostic::Diagnostic;
use crate::lineage::{Applied, Lineages, Resolved, Standing};
use crate::name::EnvironmentId;
use crate::url::Url;

/// One environment whose standing is different now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The environment.
    pub environment: EnvironmentId,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new, or usable again.
    Added,
    /// It is gone.
    Removed,
    /// It became unusable, for this first reason.
    Refused(String),
    /// These things of it are different.
    Changed(Vec<String>),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.environment;
        match &self.kind {
            ChangeKind::Added => write!(f, "+{id}"),
            ChangeKind::Removed => write!(f, "-{id}"),
            ChangeKind::Refused(why) => write!(f, "!{id} ({why})"),
            ChangeKind::Changed(what) => write!(f, "~{id} ({})", what.join(", ")),
        }
    }
}

/// What became of each environment that `applied` touched, in order; those that are as before are left out.
#[must_use]
pub fn changes(lineages: &Lineages, applied: &Applied) -> Vec<Change> {
    let change = |id| difference(id, applied.before.get(id), lineages.standing(id));
    applied.changed.iter().filter_map(change).collect()
}

/// What became of `environment`; `None` where nothing did.
fn difference(
    environment: &EnvironmentId,
    before: Option<&Standing>,
    after: Option<&Standing>,
) -> Option<Change> {
    let kind = match (before, after) {
        (None, None) | (Some(Standing::Refused(_)), Some(Standing::Refused(_))) => return None,
        (Some(_), None) => ChangeKind::Removed,
        (None | Some(Standing::Refused(_)), Some(Standing::Resolved(_))) => ChangeKind::Added,
        (_, Some(Standing::Refused(why))) => {
            ChangeKind::Refused(why.first().map_or_else(String::new, Diagnostic::short))
        }
        (Some(Standing::Resolved(before)), Some(Standing::Resolved(after))) => {
            let what = differences(before, after);
            if what.is_empty() {
                return None;
            }
            ChangeKind::Changed(what)
        }
    };
    Some(Change { environment: environment.clone(), kind })
}

fn differences(before: &Resolved, after: &Resolved) -> Vec<String> {
    let mut what = Vec::new();
    let mut note = |differs: bool, name: &str| {
        if differs {
            what.push(name.to_owned());
        }
    };
    note(before.parent != after.parent, "parent");
    note(before.baseline != after.baseline, "baseline");
    note(before.header != after.header, "headerName");
    note(before.propagate != after.propagate, "propagateHeader");
    note(before.policy.on_unavailable != after.policy.on_unavailable, "onUnavailable");
    note(before.policy.hold_for != after.policy.hold_for, "holdFor");
    note(before.on_unknown != after.on_unknown, "onUnknown");
    note(before.expires_at != after.expires_at, "expiry");
    what.extend(services_changed(before, after));
    what
}

/// A service, and where it is.
type Placed<'r> = (&'r Service, &'r Arc<[Url]>);

fn services_changed(before: &Resolved, after: &Resolved) -> Vec<String> {
    // Mostly they are the same ones in the same order, of every environment of a file that was written anew.
    if services(before).map(routed).eq(services(after).map(routed)) {
        return Vec::new();
    }
    let mut what = Vec::new();
    let mut old: HashMap<_, _> = services(before).map(|placed| (&placed.0.name.value, placed)).collect();
    for placed in services(after) {
        let name = &placed.0.name.value;
        match old.remove(name) {
            None => what.push(format!("+service {name}")),
            Some(known) if routed(known) != routed(placed) => what.push(format!("service {name}")),
            Some(_) => {}
        }
    }
    let gone = services(before).map(|(service, _)| &service.name.value).filter(|name| old.contains_key(name));
    what.extend(gone.map(|name| format!("-service {name}")));
    what
}

fn services(resolved: &Resolved) -> impl Iterator<Item = Placed<'_>> {
    resolved.blueprint.services.iter().zip(&resolved.urls)
}

/// Everything of a service that routing depends on.
fn routed<'r>((service, urls): Placed<'r>) -> impl PartialEq + use<'r> {
    let hosts: Vec<_> = service.hosts.iter().map(|host| &host.value).collect();
    let path = service.path.as_ref().map(|path| &path.value);
    (&service.name.value, urls, service.expose, hosts, path, service.max_requests)
}
