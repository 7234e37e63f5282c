//! One request on its way: what it asked, what was decided, whom it is sent to.
//!
//! Engines ask an [`Exchange`] where to connect and apply its edits; they decide nothing. Until the
//! first byte has gone upstream a hold looks up again in the newest snapshot; from then on the
//! request keeps its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane_config::blueprint::OnUnavailable;
use overlane_config::carrier::{self, Keys, baggage};
use overlane_config::lineage::Policy;
use overlane_config::name::{EnvironmentId, HeaderName};
use overlane_config::route::{
    self, BaggageEdit, Decision, Edits, HOP_HEADER, Problem, REQUIRE_HEADER, Reason, Receipt, Refusal,
    Request, Served, To, Tried, Untraced, Via,
};
use overlane_config::url::{Scheme, Url, split_authority};
use tokio::time::timeout;

use super::answer::Answer;
use super::head::Head;
use super::{Gate, Plane};
use crate::clock;
use crate::metrics::{Event, Labels, count, method_label, observe};
use crate::snapshot::Snapshot;
use crate::upstream::{Address, Endpoint, Upstream};

/// How long a held request waits before it looks again, where nothing wakes it earlier.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a request that passes through waits for its host's name and connection.
const PASS_THROUGH_HOLD: Duration = Duration::from_secs(5);

/// What a request asks, owned, so that it can be decided again.
#[derive(Debug)]
pub struct Inquiry {
    authority: Box<str>,
    path: Box<str>,
    /// The key that a trusted sender put on it.
    keys: Option<Keys>,
    /// Whether overlay headers of an untrusted sender must be removed.
    untrusted: bool,
    hop: Option<Box<str>>,
    require: Box<str>,
    /// The lines of `baggage`.
    baggage: Vec<Box<[u8]>>,
    /// The header that carries the key at this listener.
    key_header: HeaderName,
    method: &'static str,
    client: IpAddr,
}

impl Inquiry {
    /// Reads what routing needs from a head; headers of the untrusted are not read.
    ///
    /// # Errors
    /// The refusal of a key that is no id.
    fn read(
        plane: &Plane,
        gate: &Gate,
        head: &Head<'_>,
        client: IpAddr,
    ) -> Result<Self, Box<(Self, Refusal)>> {
        let snapshot = plane.published.load();
        let baseline = snapshot.table.baseline(gate.listener.baseline.as_ref());
        let key_header = baseline.map_or_else(HeaderName::default_key, |baseline| baseline.header.clone());
        let trusted = gate.trust.covers(client);
        let mut inquiry = Self {
            authority: head.authority.into(),
            path: head.path.into(),
            keys: None,
            untrusted: false,
            hop: None,
            require: Box::default(),
            baggage: head.values("baggage").map(Box::from).collect(),
            method: method_label(head.method),
            client,
            key_header,
        };
        let ours = [inquiry.key_header.as_str(), HOP_HEADER, REQUIRE_HEADER, route::ROUTE_HEADER];
        if !trusted {
            inquiry.untrusted = ours.into_iter().any(|name| head.values(name).next().is_some())
                || !matches!(inquiry.baggage(), Ok(None));
            if inquiry.untrusted {
                count(Event::UntrustedHeaders);
            }
            return Ok(inquiry);
        }
        inquiry.hop = head.values(HOP_HEADER).next().map(|value| String::from_utf8_lossy(value).into());
        let required: Vec<_> = head.values(REQUIRE_HEADER).map(String::from_utf8_lossy).collect();
        inquiry.require = required.join(",").into();
        let lines = inquiry.baggage.iter().map(|line| &**line);
        match carrier::read(head.values(inquiry.key_header.as_str()), lines) {
            Ok(arrived) => {
                inquiry.keys = arrived.keys;
                if arrived.ignored {
                    count(Event::InvalidBaggage);
                }
            }
            Err(error) => {
                count(Event::InvalidHeader);
                let refusal = Refusal::invalid_key(inquiry.key_header.as_str(), &error);
                return Err(Box::new((inquiry, refusal)));
            }
        }
        Ok(inquiry)
    }

    fn baggage(&self) -> Result<Option<Keys>, overlane_config::carrier::InvalidKey> {
        baggage::read(self.baggage.iter().map(|line| &**line))
    }

    fn request(&self) -> Request<'_> {
        Request {
            authority: &self.authority,
            path: &self.path,
            keys: self.keys.as_ref(),
            untrusted: self.untrusted,
            hop: self.hop.as_deref(),
            require: &self.require,
        }
    }
}

/// Where a request goes, as decided in one snapshot.
#[derive(Debug)]
struct Target {
    upstream: Arc<Upstream>,
    edits: Edits,
    policy: Policy,
    /// Who serves it; `None` when it passes through.
    receipt: Option<Receipt>,
    /// The first known overlay that the key names.
    overlay: Option<EnvironmentId>,
    /// Whether the upstream is the application behind this sidecar.
    application: bool,
}

/// Why no upstream can be had.
#[derive(Debug)]
pub struct Refused(pub Answer);

/// One request on its way.
#[derive(Debug)]
pub struct Exchange {
    plane: Arc<Plane>,
    gate: Arc<Gate>,
    inquiry: Inquiry,
    tried: Tried,
    snapshot: Arc<Snapshot>,
    target: Result<Target, Answer>,
    held_since: Option<Instant>,
    /// The endpoint that it was last sent to.
    endpoint: Option<Arc<Endpoint>>,
    /// Whether bytes may have gone upstream.
    sent: bool,
    /// Where the last connection could not be made, and why; empty where none was tried.
    last_failure: String,
    /// Why no upstream could be had, where none could.
    failed: Option<&'static str>,
    started: Instant,
}

impl Exchange {
    /// Decides a request whose head was just read.
    #[must_use]
    pub fn new(plane: &Arc<Plane>, gate: &Arc<Gate>, head: &Head<'_>, client: IpAddr) -> Self {
        count(Event::RequestStarted);
        let snapshot = plane.published.load_full();
        let (inquiry, refusal) = match Inquiry::read(plane, gate, head, client) {
            Ok(inquiry) => (inquiry, None),
            Err(refused) => (refused.0, Some(refused.1)),
        };
        let target = match &refusal {
            Some(refusal) => Err(Answer::from(refusal)),
            None => decide(plane, gate, &snapshot, &inquiry, &Tried::default()),
        };
        let exchange = Self {
            plane: plane.clone(),
            gate: gate.clone(),
            inquiry,
            tried: Tried::default(),
            snapshot,
            target,
            held_since: None,
            endpoint: None,
            sent: false,
            last_failure: String::new(),
            failed: None,
            started: Instant::now(),
        };
        if exchange
            .receipt()
            .is_some_and(|receipt| matches!(receipt.reason, Reason::Unknown | Reason::Expired))
        {
            count(Event::UnknownOverlay);
        }
        exchange
    }

    /// The answer that the proxy gives itself, where it does.
    #[must_use]
    pub fn refusal(&self) -> Option<&Answer> {
        self.target.as_ref().err()
    }

    /// The edits of the head on its way upstream.
    #[must_use]
    pub fn edits(&self) -> Option<&Edits> {
        self.target.as_ref().ok().map(|target| &target.edits)
    }

    /// The header that carries the key.
    #[must_use]
    pub fn key_header(&self) -> &str {
        self.inquiry.key_header.as_str()
    }

    /// Whether the request's own overlay headers are to be removed: its sender is not trusted.
    #[must_use]
    pub fn untrusted(&self) -> bool {
        self.inquiry.untrusted
    }

    /// The listener that it came in at.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.inquiry.client
    }

    /// Deadlines and limits.
    #[must_use]
    pub fn limits(&self) -> &super::Limits {
        &self.plane.limits
    }

    /// The receipt to send, if the request carried a key.
    #[must_use]
    pub fn receipt_to_send(&self) -> Option<&Receipt> {
        self.receipt().filter(|_| self.inquiry.keys.is_some())
    }

    /// Whether the response comes from outside: nothing in it is a receipt.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.target.as_ref().is_ok_and(|target| target.receipt.is_none())
    }

    /// The address that it was last sent to.
    #[must_use]
    pub fn upstream_address(&self) -> Option<&Address> {
        self.endpoint.as_ref().map(|endpoint| &endpoint.address)
    }

    fn receipt(&self) -> Option<&Receipt> {
        self.target.as_ref().ok()?.receipt.as_ref()
    }

    /// Notes that bytes go upstream now: from here on the request keeps its snapshot.
    pub fn sending(&mut self) {
        self.sent = true;
    }

    /// Where to connect: the next endpoint in turn. Waits while none is available, as the policy
    /// says, and then falls back or fails.
    ///
    /// # Errors
    /// The answer to give.
    pub async fn endpoint(&mut self) -> Result<Arc<Endpoint>, Refused> {
        let found = self.find_endpoint().await;
        if let Err(Refused(answer)) = &found {
            self.failed = Some(answer.reason);
        }
        found
    }

    async fn find_endpoint(&mut self) -> Result<Arc<Endpoint>, Refused> {
        loop {
            let target = match &self.target {
                Ok(target) => target,
                Err(answer) => return Err(Refused(answer.clone())),
            };
            match target.upstream.pick() {
                Ok(endpoint) => return self.chosen(endpoint),
                Err(reason) if self.sent => return Err(Refused(self.unavailable(reason))),
                Err(reason) => self.hold(reason).await?,
            }
        }
    }

    fn chosen(&mut self, endpoint: Arc<Endpoint>) -> Result<Arc<Endpoint>, Refused> {
        let itself = |address| {
            let application = self.target.as_ref().is_ok_and(|target| target.application);
            self.plane.is_own(address) || (application && address == self.gate.address)
        };
        if let Address::Tcp(address) = endpoint.address
            && itself(address)
        {
            let message = format!("`{address}` is a listener of this proxy itself");
            let hint = "an upstream must lead to the service, not back to its proxy".to_owned();
            let answer =
                Answer { hint: Some(hint), ..Answer::plain(508, "proxy_loop_detected", "refused", message) };
            return Err(Refused(answer));
        }
        self.endpoint = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Notes that no connection could be made to the endpoint that was chosen last.
    pub fn connect_failed(&mut self, reason: Reason, why: &str) {
        count(Event::ConnectFailed);
        if let Some(endpoint) = &self.endpoint {
            endpoint.failed(reason);
            self.last_failure = format!("{} ({why})", endpoint.address);
        }
    }

    /// Waits a little for the upstream, or gives it up when it was held long enough.
    async fn hold(&mut self, reason: Reason) -> Result<(), Refused> {
        let Ok(target) = &self.target else {
            return Ok(());
        };
        if self.held_since.is_none() {
            count(Event::Held);
        }
        let since = *self.held_since.get_or_insert_with(Instant::now);
        let left = target.policy.hold_for.saturating_sub(since.elapsed());
        if left.is_zero() {
            return self.give_up(reason);
        }
        let mut generations = self.plane.published.generations();
        // A snapshot published since the decision is news already.
        let news = async {
            if *generations.borrow_and_update() == self.snapshot.generation {
                tokio::select! {
                    _ = generations.changed() => {}
                    () = target.upstream.changed() => {}
                }
            }
        };
        // Nothing tells when an endpoint is no longer passed over: look again.
        let _ = timeout(left.min(LOOK_AGAIN), news).await;
        self.decide_again();
        Ok(())
    }

    fn decide_again(&mut self) {
        let newest = self.plane.published.load();
        if newest.generation == self.snapshot.generation {
            return;
        }
        let newest = Arc::clone(&newest);
        let target = decide(&self.plane, &self.gate, &newest, &self.inquiry, &self.tried);
        let owner = |target: &Result<Target, Answer>| {
            target
                .as_ref()
                .ok()
                .and_then(|target| target.receipt.as_ref().map(|receipt| receipt.environment.clone()))
        };
        if owner(&target) != owner(&self.target) {
            self.held_since = None;
        }
        self.snapshot = newest;
        self.target = target;
    }

    /// The owner stays unavailable: the next one in the lineage, where the policy allows it.
    fn give_up(&mut self, reason: Reason) -> Result<(), Refused> {
        let refused = Refused(self.unavailable(reason));
        let Ok(Target { policy, receipt: Some(receipt), application: false, .. }) = &self.target else {
            return Err(refused);
        };
        if policy.on_unavailable != OnUnavailable::Fallback || receipt.via == Via::Baseline {
            return Err(refused);
        }
        self.tried.unavailable.push(receipt.environment.clone());
        self.tried.because = Some(reason);
        let next = decide(&self.plane, &self.gate, &self.snapshot, &self.inquiry, &self.tried);
        // No other owner: what is wrong is that the first one is unavailable.
        if matches!(&next, Err(answer) if answer.reason == Problem::NoRoute.as_str()) {
            return Err(refused);
        }
        count(Event::FellBack);
        self.held_since = None;
        self.target = next;
        Ok(())
    }

    /// The answer when the upstream is unavailable for `reason`.
    fn unavailable(&self, reason: Reason) -> Answer {
        let Ok(target) = &self.target else {
            return Answer::plain(500, "proxy_internal_error", "unavailable", "no target");
        };
        let problem = target.upstream.problem();
        let detail = if problem.is_empty() { self.last_failure.clone() } else { problem };
        if target.application || target.receipt.is_none() {
            let what = if target.application { "the application" } else { "the host" };
            let at = target.upstream.urls().first().map_or_else(String::new, |url| format!(" at {url}"));
            let how = if reason == Reason::Refused { "refuses connections" } else { "does not answer" };
            let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
            let error = Problem::Unavailable(reason).proxy_error();
            return Answer::plain(503, error, reason.as_str(), format!("{what}{at} {how}{detail}"));
        }
        let decision = route::decide(
            &self.snapshot.table,
            &self.gate.listener,
            &self.inquiry.request(),
            clock::now(),
            &self.tried,
            &mut Untraced,
        );
        match decision {
            Decision::Serve(Served { to: To::Upstream { route, .. }, policy, via, .. }) => {
                Answer::from(&Refusal::unavailable(route, reason, via, policy, &detail))
            }
            Decision::Refuse(refusal) => Answer::from(&refusal),
            _ => {
                Answer::plain(503, "destination_unavailable", reason.as_str(), "the upstream is unavailable")
            }
        }
    }

    /// Counts and logs the request; `status` is 0 where no answer was sent. Called once, at its end.
    pub fn ended(&self, status: u16) {
        let target = self.target.as_ref().ok();
        let receipt = self.receipt();
        let labels = Labels {
            overlay: target.and_then(|target| target.overlay.clone()),
            service: receipt.map(|receipt| receipt.service.clone()),
            via: receipt.map(|receipt| receipt.via),
            class: u8::try_from(status / 100).unwrap_or_default(),
            method: self.inquiry.method,
        };
        let took = self.started.elapsed();
        observe(labels, took);
        if self.plane.access.is_on() {
            self.plane.access.log(self.line(status, took));
        }
    }

    fn line(&self, status: u16, took: Duration) -> crate::access::Line {
        let receipt = self.receipt();
        crate::access::Line {
            timestamp: clock::now().to_string(),
            role: self.gate.role(),
            method: self.inquiry.method.to_owned(),
            authority: self.inquiry.authority.to_string(),
            path: self.inquiry.path.to_string(),
            status,
            client: self.inquiry.client.to_string(),
            duration_s: crate::access::seconds(took),
            upstream: self.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
            service: receipt.map(|receipt| receipt.service.to_string()),
            overlay: self.inquiry.keys.as_ref().map(|keys| keys.as_str().to_owned()),
            environment: receipt.map(|receipt| receipt.environment.to_string()),
            via: receipt.map(|receipt| receipt.via.as_str()),
            reason: self
                .failed
                .or_else(|| receipt.map(|receipt| receipt.reason.as_str()))
                .or_else(|| self.refusal().map(|answer| answer.reason)),
            generation: self.snapshot.generation,
        }
    }
}

/// However a request ends, also where its task is cut short or the engine gives it back unread.
impl Drop for Exchange {
    fn drop(&mut self) {
        count(Event::RequestEnded);
    }
}

/// Decides an inquiry in a snapshot, and turns what it borrows into what can be kept.
fn decide(
    plane: &Plane,
    gate: &Gate,
    snapshot: &Snapshot,
    inquiry: &Inquiry,
    tried: &Tried,
) -> Result<Target, Answer> {
    let lines = inquiry.baggage.iter().map(|line| &**line);
    match route::decide(
        &snapshot.table,
        &gate.listener,
        &inquiry.request(),
        clock::now(),
        tried,
        &mut Untraced,
    ) {
        Decision::Refuse(refusal) => Err(Answer::from(&refusal)),
        Decision::PassThrough => pass_through(plane, inquiry, Edits::pass_through(lines)),
        Decision::Serve(served) => {
            let mut edits = Edits::serve(&served, lines.clone());
            if inquiry.untrusted {
                // Also a member that is no valid id goes: nothing of an untrusted sender's travels on.
                edits.baggage =
                    baggage::rewrite(lines, edits.key.as_ref()).map_or(BaggageEdit::Remove, BaggageEdit::Set);
                edits.require = false;
            }
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
            })
        }
    }
}

fn pass_through(plane: &Plane, inquiry: &Inquiry, edits: Edits) -> Result<Target, Answer> {
    let (host, port) = match split_authority(&inquiry.authority) {
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
    let url = Url { scheme: Scheme::Http, host: host.to_ascii_lowercase().into(), port: port.unwrap_or(80) };
    if url.host.parse().is_ok_and(overlane_config::lineage::is_link_local) {
        return Err(Answer::plain(
            403,
            "destination_ip_prohibited",
            "refused",
            format!("`{}` is a link-local address", url.host),
        ));
    }
    Ok(Target {
        upstream: Upstream::new(Arc::new([url]), &plane.names, false),
        application: false,
        edits,
        policy: Policy { on_unavailable: OnUnavailable::Fail, hold_for: PASS_THROUGH_HOLD },
        receipt: None,
        overlay: None,
    })
}
