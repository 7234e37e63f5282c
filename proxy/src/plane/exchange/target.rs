//! Where a request goes, as decided in one snapshot.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::blueprint::OnUnavailable;
use overlane_config::carrier::Keys;
use overlane_config::lineage::{Policy, is_off_limits};
use overlane_config::name::EnvironmentId;
use overlane_config::route::{self, Decision, Edits, Reason, Receipt, To, Tried, Untraced};
use overlane_config::url::{Scheme, Url, split_authority};

use super::key::{Inquiry, Key};
use crate::capacity::Guest;
use crate::clock;
use crate::plane::answer::Answer;
use crate::plane::overload;
use crate::plane::{Gate, Plane};
use crate::snapshot::Snapshot;
use crate::upstream::Upstream;

/// Hosts that a worker knows of those that requests pass through to.
const MAX_OUTSIDE: usize = 1024;

/// How long a request that passes through waits for its host's name and connection.
const PASS_THROUGH_HOLD: Duration = Duration::from_secs(5);

thread_local! {
    /// The hosts that this worker's requests pass through to, so that their names are resolved and
    /// their connections kept as those of services are.
    static OUTSIDE: RefCell<HashMap<Url, Arc<Upstream>, RandomState>> = RefCell::default();
}

/// Where a request goes, as decided in one snapshot.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) upstream: Arc<Upstream>,
    pub(super) edits: Edits,
    pub(super) policy: Policy,
    /// Who serves it; `None` when it passes through.
    pub(super) receipt: Option<Receipt>,
    /// The first known overlay that the key names.
    pub(super) overlay: Option<EnvironmentId>,
    /// Whether the upstream is the application behind this sidecar.
    pub(super) application: bool,
    /// Whose request it is, where that is not whose listener and services these are.
    pub(super) guest: Option<Guest>,
    /// How many requests may be at the upstream at once, where its blueprint says.
    pub(super) max_requests: Option<NonZeroU32>,
}

impl Target {
    /// Whose request it is, where that is not who owns the upstream.
    pub(super) fn guest_of_owner(&self) -> Option<Guest> {
        let owner = self.receipt.as_ref().map(|receipt| &receipt.environment);
        self.guest.filter(|_| owner != self.overlay.as_ref())
    }

    pub(super) fn asked(&self) -> overload::Asked<'_> {
        let service = self.receipt.as_ref().map(|receipt| (&receipt.service, &receipt.environment));
        overload::Asked { overlay: self.overlay.as_ref(), service }
    }
}

/// Decides an inquiry in a snapshot, and turns what it borrows into what can be kept.
pub(super) fn decide(
    plane: &Plane,
    gate: &Gate,
    snapshot: &Snapshot,
    inquiry: &Inquiry<'_>,
    key: &Key,
    tried: &Tried,
) -> Result<Target, Answer> {
    let (carriers, fields) = (&plane.carriers, &inquiry.head.fields);
    let request = inquiry.request(key);
    match route::decide(&snapshot.table, &gate.listener, &request, clock::now(), tried, &mut Untraced) {
        Decision::Refuse(refusal) if gate.is_edge() && !inquiry.trusted => Err(Answer::from(&refusal).curt()),
        Decision::Refuse(refusal) => Err(Answer::from(&refusal)),
        Decision::PassThrough(onward) => pass_through(plane, inquiry, onward, key.untrusted),
        Decision::Serve(served) => {
            let edits = Edits::serve(&served, carriers, fields, key.untrusted);
            let (upstream, application) = match &served.to {
                To::Upstream { route, .. } => (route.upstream.clone(), false),
                To::Application => match &gate.app {
                    Some(app) => (app.clone(), true),
                    None => {
                        return Err(Answer::plain(
                            500,
                            "proxy_configuration_error",
                            "pending",
                            "this listener has no application",
                        ));
                    }
                },
            };
            Ok(Target {
                upstream,
                application,
                edits,
                policy: served.policy,
                receipt: Some(served.receipt()),
                overlay: served.key.cloned(),
                guest: match (served.key, served.reason) {
                    (Some(overlay), _) => Some(Guest::named(overlay)),
                    (None, Reason::Unknown | Reason::Expired) => Some(Guest::UNKNOWN),
                    (None, _) => None,
                },
                max_requests: served.max_requests,
            })
        }
    }
}

fn pass_through(
    plane: &Plane,
    inquiry: &Inquiry<'_>,
    onward: Option<Keys>,
    untrusted: bool,
) -> Result<Target, Answer> {
    let head = inquiry.head;
    let (host, port) = match split_authority(head.authority) {
        Ok(split) => split,
        Err(why) => {
            return Err(Answer::plain(
                400,
                "http_request_error",
                "no-route",
                format!("no usable authority: {why}"),
            ));
        }
    };
    let named = host.to_ascii_lowercase();
    let url = match inquiry.meant {
        // Its client has resolved the name, in a way that need not be ours.
        Some(meant) => Url { scheme: Scheme::Http, host: meant.ip().to_string().into(), port: meant.port() },
        None => Url { scheme: Scheme::Http, host: named.as_str().into(), port: port.unwrap_or(80) },
    };
    if head.method == "CONNECT" && inquiry.meant.is_none() && !plane.passage.lets_connect(url.port) {
        let what = format!("CONNECT to port {} is not allowed here", url.port);
        let hint = Some("add the port to `connectPorts` in the settings".to_owned());
        return Err(Answer { hint, ..Answer::plain(403, "http_request_denied", "refused", what) });
    }
    if url.host.parse().is_ok_and(is_off_limits) {
        let what =
            format!("`{}` is a link-local address, or one that serves a machine's credentials", url.host);
        return Err(Answer::plain(403, "destination_ip_prohibited", "refused", what));
    }
    let carriers = &plane.carriers;
    let edits = match carriers.keep_for.has(&named) {
        true => Edits::keep(onward, carriers, &head.fields, untrusted),
        false => Edits::pass_through(carriers, &head.fields, untrusted),
    };
    Ok(Target {
        upstream: outside(url, plane),
        application: false,
        edits,
        policy: Policy { on_unavailable: OnUnavailable::Fail, hold_for: PASS_THROUGH_HOLD },
        receipt: None,
        overlay: None,
        guest: None,
        max_requests: None,
    })
}

pub(super) fn outside(url: Url, plane: &Plane) -> Arc<Upstream> {
    OUTSIDE.with_borrow_mut(|known| {
        if let Some(upstream) = known.get(&url) {
            return upstream.clone();
        }
        // Whoever calls ever new hosts gains nothing by their being known.
        if known.len() >= MAX_OUTSIDE {
            known.clear();
        }
        let upstream = Upstream::outside(url.clone(), &plane.names);
        known.insert(url, upstream.clone());
        upstream
    })
}
