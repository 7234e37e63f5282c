//! Requirements: which services must be served by the key's own environment.
//!
//! They are checked twice. Each hop refuses what it sees to be wrong before it sends anything, which
//! is early, and knows only of itself. The first proxy holds the whole tree of receipts against them
//! before it passes the head on: there a service that was never called is seen, and so is one whose
//! refusal an application swallowed.

use super::decide::Lookup;
use super::receipt::{self, Item, Marks};
use super::{Problem, REQUIRE_HEADER, Reason, Refusal, Served, Tried};
use crate::carrier::Keys;
use crate::name::{EnvironmentId, printable};
use crate::table::{Overlay, RoutingTable};
use crate::time::UnixMillis;

/// The requirement that means every service that the key's overlays own.
const EVERYTHING: &str = "*";
/// The most services that a refusal names.
const NAMED: usize = 8;

/// Holds the value of [`REQUIRE_HEADER`], lines joined by commas, against the receipts of the whole
/// path, as [`receipt::assemble`] wrote them; an empty requirement is met.
///
/// One service that another environment served is enough to refuse. A service that no hop served was
/// not reached, if the tree is complete; where calls may be missing from it nobody can tell. Where hops
/// were cut off, one of those may have been wrong: then nothing is verified.
///
/// # Errors
/// It is not met, or nobody can tell whether it is: 412.
pub fn verify<'v, U>(
    table: &RoutingTable<U>,
    baseline: Option<&EnvironmentId>,
    keys: Option<&Keys>,
    require: &str,
    receipts: impl IntoIterator<Item = &'v [u8]>,
    now: UnixMillis,
) -> Result<(), Refusal> {
    if names(require).next().is_none() {
        return Ok(());
    }
    let Some(baseline) = table.baseline(baseline) else {
        return Err(unverified("there is no baseline to compare with"));
    };
    let tried = Tried::default();
    let lookup = Lookup::new(table, baseline, keys, now, &tried);
    let mut tree = Vec::new();
    let mut marks = Marks::NONE;
    for list in receipts {
        match receipt::parse(list) {
            Ok(items) => tree.extend(items),
            Err(receipt::Malformed) => marks = marks.and(Marks::PARTIAL),
        }
    }
    for item in &tree {
        // Who names no hop knows nothing of trees, and was not told of its service's calls.
        marks = marks.and(item.marks).and(Marks::PARTIAL.when(item.hop.is_none()));
    }
    if tree.is_empty() {
        marks = marks.and(Marks::PARTIAL);
    }
    lookup.verify(require, &tree, marks)
}

/// The services that a requirement names.
fn names(require: &str) -> impl Iterator<Item = &str> {
    require.split(',').map(str::trim).filter(|name| !name.is_empty())
}

impl<'t, U> Lookup<'t, '_, U> {
    /// Holds a requirement against who serves at this hop; it beats fallback.
    pub(super) fn require(&self, require: &str, served: &Served<'t, U>) -> Result<(), Refusal> {
        let service = served.service.as_str();
        for required in names(require) {
            let everything = required == EVERYTHING;
            if !everything && required != service {
                continue;
            }
            if everything && !self.knows_what_the_key_owns() {
                let message = format!(
                    "`{REQUIRE_HEADER}: *`, and what the key owns is not known here: {}",
                    served.reason.as_str()
                );
                return Err(
                    Refusal::new(Problem::Unverified, message).hint("send the key of an overlay that exists")
                );
            }
            if !self.is_own(served.environment.as_str()) && (!everything || self.key_owns(service)) {
                let message = format!(
                    "`{service}` is required from the key's own environment, and would be served by `{}` ({})",
                    served.environment,
                    served.reason.as_str()
                );
                return Err(Refusal::new(Problem::WrongEnvironment, message)
                    .hint(format!("declare `{service}` in the key's overlay, or require less")));
            }
        }
        Ok(())
    }

    /// Holds a requirement against the tree; `marks` are those of all its items.
    fn verify(&self, require: &str, tree: &[Item<'_>], marks: Marks) -> Result<(), Refusal> {
        let everything = names(require).any(|name| name == EVERYTHING);
        let named = |service: &str| names(require).any(|name| name == service);
        let demanded = |service: &str| named(service) || (everything && self.key_owns(service));
        if let Some(wrong) = tree.iter().find(|item| demanded(item.service) && !self.is_own(item.environment))
        {
            let Item { service, environment, reason, .. } = wrong;
            let message = format!(
                "`{service}` is required from the key's own environment, and was served by `{environment}` ({})",
                printable(reason, 80)
            );
            return Err(Refusal::new(Problem::WrongEnvironment, message)
                .hint(format!("declare `{service}` in the key's overlay, or require less")));
        }
        if everything && !self.knows_what_the_key_owns() {
            let message = format!("`{REQUIRE_HEADER}: *`, and what the key owns is not known here");
            return Err(
                Refusal::new(Problem::Unverified, message).hint("send the key of an overlay that exists")
            );
        }
        let owned = self
            .overlays()
            .filter(|_| everything)
            .flat_map(|overlay| overlay.owned().iter().filter(|owned| owned.route.environment == overlay.id));
        let services = owned.map(|owned| owned.route.service.as_str());
        // A hop whose own upstream failed was reached, and served by nobody.
        let served = |item: &Item<'_>| !(self.is_own(item.environment) && Reason::is_failure(item.reason));
        let mut missing: Vec<_> = names(require)
            .filter(|name| *name != EVERYTHING)
            .chain(services)
            .filter(|service| !tree.iter().any(|item| item.service == *service && served(item)))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if marks.any(Marks::TRUNCATED) {
            return Err(unverified("the receipts of this request were cut off: it took too many hops"));
        }
        if missing.is_empty() { Ok(()) } else { Err(not_seen(&missing, marks)) }
    }

    fn is_own(&self, environment: &str) -> bool {
        self.ids().any(|id| id == environment)
    }

    /// Whether one of the key's overlays itself owns the service.
    fn key_owns(&self, service: &str) -> bool {
        let itself = |overlay: &'t Overlay<U>| {
            overlay.owners(service).iter().any(|owned| owned.route.environment == overlay.id)
        };
        self.overlays().any(itself)
    }

    fn knows_what_the_key_owns(&self) -> bool {
        let overlays = self.ids().filter(|id| *id != self.baseline.id.as_str()).count();
        self.keys.is_some() && self.overlays().count() == overlays
    }
}

fn unverified(message: &str) -> Refusal {
    Refusal::new(Problem::Unverified, message.to_owned())
        .hint("`overlane trace` shows the hops that are known")
}

fn not_seen(missing: &[&str], marks: Marks) -> Refusal {
    let shown: Vec<_> =
        missing.iter().take(NAMED).map(|service| format!("`{}`", printable(service, 80))).collect();
    let more = missing.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let services = format!("{}{more}", shown.join(", "));
    if marks.any(Marks::PARTIAL) {
        let message = format!(
            "no hop is known to have served {services}, and calls of some hops may be missing from the receipts"
        );
        return Refusal::new(Problem::Unverified, message).hint(
            "put a sidecar before and behind every service on the path; `overlane trace` shows where hops are `partial`",
        );
    }
    Refusal::new(Problem::NotReached, format!("required, and not called: {services}"))
        .hint("send a request that calls it, or require less")
}
