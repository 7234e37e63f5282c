//! The way to the upstream: seats, endpoints in turn, holding, falling back.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane_config::blueprint::OnUnavailable;
use overlane_config::route::{self, Decision, Problem, Reason, Refusal, Role, Served, To, Untraced, Via};
use tokio::time::timeout;

use super::key::Inquiry;
use super::target::{Target, decide};
use super::{Exchange, Refused};
use crate::capacity::Seat;
use crate::clock;
use crate::h1::request::{self, Head};
use crate::metrics::{Event, count};
use crate::plane::answer::{Answer, Failure};
use crate::plane::overload::{self, Limit};
use crate::snapshot::Snapshot;
use crate::upstream::Endpoint;

/// How long a held request waits before it looks again, where nothing wakes it earlier.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a request has of what is limited (see [`overload`]).
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// Among the worker's requests.
    pub(super) worker: Option<Seat>,
    /// Among those that wait for an upstream.
    pub(super) held: Option<Seat>,
    /// At the upstream of its target.
    pub(super) upstream: Option<Seat>,
    /// Whether it is at that upstream once again.
    pub(super) repeats: bool,
}

impl Exchange {
    /// Where to connect: the next endpoint in turn. Waits while none is available, as the policy
    /// says, and then falls back or fails. `head` is the request's, as it was read.
    ///
    /// # Errors
    /// The answer to give.
    pub async fn endpoint(&mut self, head: &[u8]) -> Result<Arc<Endpoint>, Refused> {
        if let Some(traced) = &mut self.traced {
            traced.called.get_or_insert_with(Instant::now);
        }
        let found = match self.enter() {
            Ok(()) => match self.endpoint_now() {
                Some(found) => found,
                // Boxed: it is rare, and would be part of every request's memory.
                None => Box::pin(self.find_endpoint(head)).await,
            },
            Err(refused) => Err(refused),
        };
        if let Err(Refused(answer)) = &found {
            self.failed = Some(answer.reason);
            let reasons = [Reason::Refused, Reason::Pending];
            let reason = reasons.into_iter().find(|reason| reason.as_str() == answer.reason);
            self.served_by_nobody(reason.unwrap_or(Reason::Unhealthy));
        }
        found
    }

    /// Notes what ended the exchange before its response was whole; `cut` where a part of it was sent.
    pub fn failed(&mut self, failure: Failure, cut: bool) {
        self.failed = Some(failure.reason());
        self.cut = cut;
        if failure.is_upstreams() {
            self.served_by_nobody(Reason::Unhealthy);
        }
    }

    /// The receipt says so: by a hop that failed no requirement is met.
    fn served_by_nobody(&mut self, reason: Reason) {
        if let Ok(Target { receipt: Some(receipt), .. }) = &mut self.target {
            receipt.reason = reason;
        }
    }

    /// Leaves the endpoint that was chosen to another engine, which asks for it next.
    pub fn hand_over(&mut self) {
        self.handed_over = true;
    }

    /// Takes its seat among the worker's requests, once.
    pub(super) fn enter(&mut self) -> Result<(), Refused> {
        let (Ok(target), None) = (&self.target, &self.seats.worker) else {
            return Ok(());
        };
        let most = self.plane.limits.requests;
        let own = match &self.gate.listener.role {
            Role::Gateway => None,
            Role::Outbound { environment, .. } | Role::Inbound { environment, .. } => environment.as_ref(),
        };
        let guest = target.guest.filter(|_| own.is_none() || own != target.overlay.as_ref());
        let seat = overload::enter(most, guest);
        let seat =
            seat.map_err(|full| Refused(overload::refuse(Limit::Requests, full, most, target.asked())))?;
        self.seats.worker = Some(seat);
        Ok(())
    }

    /// Where to connect, if nothing has to be waited for.
    fn endpoint_now(&mut self) -> Option<Result<Arc<Endpoint>, Refused>> {
        if std::mem::take(&mut self.handed_over) {
            return self.endpoint.clone().map(Ok);
        }
        if self.attempts > 0 {
            return None;
        }
        let endpoint = self.target.as_ref().ok()?.upstream.pick().ok()?;
        Some(self.chosen(endpoint))
    }

    async fn find_endpoint(&mut self, head: &[u8]) -> Result<Arc<Endpoint>, Refused> {
        loop {
            let target = match &self.target {
                Ok(target) => target,
                Err(answer) => return Err(Refused(answer.clone())),
            };
            let picked = match self.is_held_enough(target) {
                // Each was tried, and none answers: one that is not passed over any more does not end the hold.
                true => Err(self.last_reason),
                false => target.upstream.pick(),
            };
            match picked {
                Ok(endpoint) => return self.chosen(endpoint),
                Err(reason) if self.sent => return Err(Refused(self.unavailable(head, reason))),
                Err(reason) => self.hold(head, reason).await?,
            }
        }
    }

    fn is_held_enough(&self, target: &Target) -> bool {
        let known = target.upstream.endpoints().map_or(1, |endpoints| endpoints.list.len());
        self.attempts >= known
            && self.held_since.is_some_and(|since| since.elapsed() >= target.policy.hold_for)
    }

    fn chosen(&mut self, endpoint: Arc<Endpoint>) -> Result<Arc<Endpoint>, Refused> {
        let address = &endpoint.address;
        let application = self.target.as_ref().is_ok_and(|target| target.application);
        if self.plane.is_own(&endpoint) || (application && endpoint.leads_to(&self.gate.address)) {
            let message = format!("`{address}` is a listener of this proxy itself");
            let hint = "an upstream must lead to the service, not back to its proxy".to_owned();
            let answer =
                Answer { hint: Some(hint), ..Answer::plain(508, "proxy_loop_detected", "refused", message) };
            return Err(Refused(answer));
        }
        self.take_seat_upstream()?;
        if let Some(seat) = self.seats.held.take() {
            overload::waited(seat);
        }
        self.endpoint = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Takes its seat at the upstream, where it has none.
    fn take_seat_upstream(&mut self) -> Result<(), Refused> {
        let (Ok(target), None) = (&self.target, &self.seats.upstream) else {
            return Ok(());
        };
        let most = target.max_requests.map_or(self.plane.limits.upstream_requests, NonZeroU32::get);
        let seat = target.upstream.requests.take(most, target.guest_of_owner());
        let seat =
            seat.map_err(|full| Refused(overload::refuse(Limit::Upstream, full, most, target.asked())))?;
        self.seats.upstream = Some(seat);
        Ok(())
    }

    /// Gives back what it has at the upstream.
    pub(super) fn leave_upstream(&mut self) {
        let Ok(target) = &self.target else { return };
        if let Some(seat) = self.seats.upstream.take() {
            seat.leave(&target.upstream.requests);
        }
        if std::mem::take(&mut self.seats.repeats) {
            target.upstream.repeated();
        }
    }

    /// Gives back what it has in its worker.
    pub(super) fn leave_worker(&mut self) {
        self.seats.held.take().into_iter().for_each(overload::waited);
        self.seats.worker.take().into_iter().for_each(overload::leave);
    }

    /// Whether it may be sent to its upstream again, which did nothing about it.
    #[must_use]
    pub fn may_repeat(&mut self) -> bool {
        let may = self.seats.repeats || self.target.as_ref().is_ok_and(|target| target.upstream.may_repeat());
        self.seats.repeats = may;
        count(if may { Event::Repeated } else { Event::RepeatRefused });
        may
    }

    /// Notes that a connection was made to the endpoint that was chosen last.
    pub fn connected(&self) {
        if let (Ok(target), Some(endpoint)) = (&self.target, &self.endpoint) {
            target.upstream.reached(endpoint);
        }
    }

    /// Notes that no connection could be made to the endpoint that was chosen last.
    pub fn connect_failed(&mut self, reason: Reason, why: &str) {
        count(Event::ConnectFailed);
        self.attempts += 1;
        self.last_reason = reason;
        self.held_since.get_or_insert_with(Instant::now);
        if let Some(endpoint) = &self.endpoint {
            endpoint.failed(reason);
            self.last_failure = format!("{} ({why})", endpoint.address);
        }
        self.leave_upstream();
    }

    /// Waits a little for the upstream, or gives it up when it was held long enough.
    async fn hold(&mut self, head: &[u8], reason: Reason) -> Result<(), Refused> {
        let Ok(target) = &self.target else {
            return Ok(());
        };
        if !self.held_at_all {
            count(Event::Held);
        }
        self.held_at_all = true;
        let since = *self.held_since.get_or_insert_with(Instant::now);
        let mut left = target.policy.hold_for.saturating_sub(since.elapsed());
        if left.is_zero() {
            return self.give_up(head, reason);
        }
        if let Some((deadline, failure)) = self.deadline {
            left = left.min(deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let late = failure.answer(self.upstream_address());
                return Err(Refused(late.unwrap_or_else(|| self.unavailable(head, reason))));
            }
        }
        if self.seats.held.is_none() {
            let most = self.plane.limits.held;
            let seat = overload::wait(most, target.guest);
            let refused = |full| Refused(overload::refuse(Limit::Held, full, most, target.asked()));
            self.seats.held = Some(seat.map_err(refused)?);
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
        self.decide_again(head);
        Ok(())
    }

    fn decide_again(&mut self, head: &[u8]) {
        let newest = self.plane.published.load();
        if newest.generation == self.snapshot.generation {
            return;
        }
        let newest = Arc::clone(&newest);
        let target = self.decide(head, &newest);
        let owner = |target: &Result<Target, Answer>| {
            target
                .as_ref()
                .ok()
                .and_then(|target| target.receipt.as_ref().map(|receipt| receipt.environment.clone()))
        };
        if owner(&target) != owner(&self.target) {
            self.held_since = None;
            self.attempts = 0;
        }
        self.snapshot = newest;
        let stays = |old: &Target, new: &Target| Arc::ptr_eq(&old.upstream, &new.upstream);
        if !matches!((&self.target, &target), (Ok(old), Ok(new)) if stays(old, new)) {
            self.leave_upstream();
        }
        self.target = target;
        self.decided_anew = true;
    }

    /// Whether the request may go out on a connection that was just made to the endpoint that was chosen last.
    /// While it was being made the address may have been removed, and who listens there by now may be somebody
    /// else's: then a request of which nothing was sent is decided again, with its `head`.
    pub fn still_leads_there(&mut self, head: &[u8]) -> bool {
        if !self.sent {
            self.decide_again(head);
        }
        let (Ok(target), Some(endpoint)) = (&self.target, &self.endpoint) else {
            return false;
        };
        let leads = target.upstream.leads_to(endpoint, self.sent);
        if !leads {
            // Whoever is asked next was not tried yet.
            self.attempts = 0;
        }
        // Where it is another upstream that leads there, its seat is to be taken there.
        leads && self.take_seat_upstream().is_ok()
    }

    pub(super) fn decide(&self, head: &[u8], snapshot: &Snapshot) -> Result<Target, Answer> {
        let restored = self.propagation.require();
        reread(head, |head| {
            let restored = restored.as_ref().map(|require| &***require);
            let inquiry = Inquiry::read(head, &self.standing, &self.key).with(restored);
            decide(&self.plane, &self.gate, snapshot, &inquiry, &self.key, &self.tried)
        })
        .unwrap_or_else(|| Err(Answer::plain(500, "proxy_internal_error", "internal", "the proxy failed")))
    }

    /// The owner stays unavailable: the next one in the lineage, where the policy allows it.
    fn give_up(&mut self, head: &[u8], reason: Reason) -> Result<(), Refused> {
        let refused = Refused(self.unavailable(head, reason));
        let Ok(Target { policy, receipt: Some(receipt), application: false, .. }) = &self.target else {
            return Err(refused);
        };
        if policy.on_unavailable != OnUnavailable::Fallback || receipt.via == Via::Baseline {
            return Err(refused);
        }
        self.tried.unavailable.push(receipt.environment.clone());
        self.tried.because = Some(reason);
        let next = self.decide(head, &self.snapshot);
        // No other owner: what is wrong is that the first one is unavailable.
        if matches!(&next, Err(answer) if answer.reason == Problem::NoRoute.as_str()) {
            return Err(refused);
        }
        count(Event::FellBack);
        self.held_since = None;
        self.attempts = 0;
        self.leave_upstream();
        self.target = next;
        self.decided_anew = true;
        Ok(())
    }

    /// The answer when the upstream is unavailable for `reason`.
    fn unavailable(&self, head: &[u8], reason: Reason) -> Answer {
        let answer = self.why_unavailable(head, reason);
        if self.is_strangers() { answer.curt() } else { answer }
    }

    /// Whether somebody sent it who may not know what there is.
    pub(super) fn is_strangers(&self) -> bool {
        self.gate.is_edge() && !self.standing.right.is_any()
    }

    fn why_unavailable(&self, head: &[u8], reason: Reason) -> Answer {
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
        let refusal = reread(head, |head| {
            let inquiry = Inquiry::read(head, &self.standing, &self.key);
            let request = inquiry.request(&self.key);
            let (table, listener) = (&self.snapshot.table, &self.gate.listener);
            match route::decide(table, listener, &request, clock::now(), &self.tried, &mut Untraced) {
                Decision::Serve(Served { to: To::Upstream { route, .. }, policy, via, .. }) => {
                    Some(Refusal::unavailable(route, reason, via, policy, &detail))
                }
                Decision::Refuse(refusal) => Some(refusal),
                _ => None,
            }
        });
        refusal.flatten().as_ref().map_or_else(
            || Answer::plain(503, "destination_unavailable", reason.as_str(), "the upstream is unavailable"),
            Answer::from,
        )
    }
}

/// Reads again a head that was right; `None` where it is gone already.
fn reread<R>(head: &[u8], with: impl FnOnce(&Head<'_>) -> R) -> Option<R> {
    request::parse(head, with).ok().flatten()
}
