//! One request on its way: what it asked, what was decided, whom it is sent to.
//!
//! Engines ask an [`Exchange`] where to connect and apply its edits; they decide nothing. Until the
//! first byte has gone upstream a hold looks up again in the newest snapshot; from then on the
//! request keeps its own.
//!
//! By its stages: what is asked (`key`), what is decided (`target`), the way there (`reach`), what becomes of the heads (`heads`) and of
//! `receipts`, and the end (`ended`).

mod ended;
mod heads;
mod key;
mod reach;
mod receipts;
mod target;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use overlane_config::carrier::Keys;
use overlane_config::carrier::trace::REQUEST_ID;
use overlane_config::route::{
    self, HOP_HEADER, HOPS_HEADER, MAX_HOPS, REQUIRE_HEADER, Reason, Receipt, Refusal, Role, Tried,
};
use overlane_config::url::{Scheme, Url};

use super::answer::{Answer, Failure, TOO_LARGE};
use super::asked::{Asked, Traced};
use super::edge;
use super::grpc;
use super::leave::{Leave, leave};
use super::propagation::Propagation;
use super::redirect::{is_challenge, to_https};
use super::standing::Standing;
use super::times::Times;
use super::{Gate, Limits, Plane};
use crate::calls::Outcome;
use crate::decisions::{KeyFrom, Note, Noted, note};
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::{Event, Method, count};
use crate::snapshot::Snapshot;
use crate::upstream::{Address, Endpoint};
use key::{Inquiry, Key};
use reach::Seats;
use target::{Target, decide};

/// The names of our own headers, and of those that travel with them.
pub const ROUTE: Name<'_> = Name::of(route::ROUTE_HEADER);
const HOP: Name<'_> = Name::of(HOP_HEADER);
const HOPS: Name<'_> = Name::of(HOPS_HEADER);
const REQUIRE: Name<'_> = Name::of(REQUIRE_HEADER);
const BAGGAGE: Name<'_> = Name::of("baggage");
const COOKIE: Name<'_> = Name::of("cookie");
const X_REQUEST_ID: Name<'_> = Name::of(REQUEST_ID);
const STRICT_TRANSPORT_SECURITY: Name<'_> = Name::of("strict-transport-security");

/// Why no upstream can be had.
#[derive(Debug)]
pub struct Refused(pub Answer);

/// One request on its way.
pub struct Exchange {
    plane: Arc<Plane>,
    gate: Arc<Gate>,
    standing: Arc<Standing>,
    key: Key,
    propagation: Propagation,
    /// How many proxies it passed before this one.
    hops: u8,
    /// What the whole path is held against, where this is the first proxy.
    require: Option<Box<str>>,
    method: Method,
    tried: Tried,
    snapshot: Arc<Snapshot>,
    target: Result<Target, Answer>,
    seats: Seats,
    held_since: Option<Instant>,
    held_at_all: bool,
    /// Whether it goes elsewhere, or otherwise, than was decided first.
    decided_anew: bool,
    /// The endpoint that it was last sent to.
    endpoint: Option<Arc<Endpoint>>,
    /// Whether bytes may have gone upstream.
    sent: bool,
    /// Where the last connection could not be made, and why; empty where none was tried.
    last_failure: String,
    /// The same as a reason.
    last_reason: Reason,
    /// Why the upstream did not answer, or not all, where it did not.
    failed: Option<&'static str>,
    /// Whether that happened in the middle of its answer.
    cut: bool,
    /// Whether the endpoint that was chosen last is for another engine.
    handed_over: bool,
    /// Connections that could not be made to this target's endpoints.
    attempts: usize,
    /// Whether it was counted.
    counted: bool,
    /// How it came by its key.
    key_from: KeyFrom,
    /// What is kept of its head, where decisions are kept.
    noted: Option<Box<Note>>,
    /// Its name in the receipts, where it has one there.
    hop: AtomicU64,
    /// What the access log says of the request, where it is on.
    logged: Option<Box<Asked>>,
    /// What its spans say of the request, where it has any.
    traced: Option<Box<Traced>>,
    /// How many bytes of its response's body were sent.
    sent_bytes: u64,
    started: Instant,
    /// When it waited for its upstream.
    times: Times,
    /// Until when its client waits for it, where it said so, or it has to be over; and what it is if it is not.
    deadline: Option<(Instant, Failure)>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("target", &self.target)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// Decides a request whose head was just read, and whose sender has this standing.
    #[must_use]
    pub fn new(plane: &Arc<Plane>, gate: &Arc<Gate>, head: &Head<'_>, standing: Arc<Standing>) -> Self {
        count(Event::RequestStarted);
        let started = Instant::now();
        let snapshot = plane.published.load_full();
        let (mut key, refusal) = Key::read(&snapshot, gate, &plane.carriers, head, &standing);
        let entered = key.enter(&snapshot, gate, head, &standing);
        let inquiry = Inquiry::read(head, &standing, &key);
        let mut propagation =
            propagate(plane, gate, head, &standing, &mut key.keys, &inquiry.require, started);
        let restored = propagation.require();
        let inquiry = inquiry.with(restored.as_ref().map(|require| &***require));
        let (hops, looping) = passed(head, &standing);
        let target = first_target(plane, gate, &snapshot, &inquiry, &key, looping.or(refusal), entered);
        let target = target.map_err(|answer| match key.visit.as_ref().is_some_and(|visit| visit.says()) {
            true => edge::told(answer, &snapshot, gate, head, &standing),
            false => answer,
        });
        let outside = target.as_ref().is_ok_and(|target| target.receipt.is_none());
        let traced = propagation.sample(head, outside);
        let first = hops == 0 && !propagation.restored() && !propagation.is_caused();
        let require = (first && !inquiry.require.is_empty()).then(|| Box::from(&*inquiry.require));
        let mut exchange = Self {
            plane: plane.clone(),
            gate: gate.clone(),
            standing,
            key,
            hops,
            require,
            method: Method::of(head.method),
            tried: Tried::default(),
            snapshot,
            target,
            seats: Seats::default(),
            held_since: None,
            held_at_all: false,
            decided_anew: false,
            endpoint: None,
            sent: false,
            last_failure: String::new(),
            last_reason: Reason::Unhealthy,
            failed: None,
            cut: false,
            handed_over: false,
            attempts: 0,
            counted: false,
            key_from: KeyFrom::Absent,
            noted: note(|| noted(head, &propagation)),
            hop: AtomicU64::new(0),
            logged: plane.access.wants().map(|wanted| Box::new(Asked::of(head, &propagation, wanted))),
            traced: traced.map(|ids| Box::new(Traced::of(ids, head, &propagation))),
            sent_bytes: 0,
            started,
            times: Times::default(),
            deadline: deadline(head, &plane.limits, started),
            propagation,
        };
        // What a tunnel is for, the requests in it say.
        let outcome = if head.method == "CONNECT" { None } else { exchange.count_call(head) };
        exchange.key_from = exchange.came_by_its_key(outcome);
        if exchange
            .receipt()
            .is_some_and(|receipt| matches!(receipt.reason, Reason::Unknown | Reason::Expired))
        {
            count(Event::UnknownOverlay);
        }
        exchange
    }

    /// Counts what became of the key, where an application calls a service of ours.
    fn count_call(&self, head: &Head<'_>) -> Option<Outcome> {
        let (Role::Outbound { .. }, Ok(target)) = (&self.gate.listener.role, &self.target) else {
            return None;
        };
        let receipt = target.receipt.as_ref()?;
        let stamped = self.key.keys.is_none() && target.overlay.is_some();
        self.propagation.count_call(&self.gate, head, &receipt.service, stamped)
    }

    /// How it came by its key; `outcome` is what became of that where it is a call.
    fn came_by_its_key(&self, outcome: Option<Outcome>) -> KeyFrom {
        match outcome {
            Some(Outcome::Restored) => KeyFrom::Restored,
            Some(Outcome::Stamped) => KeyFrom::Stamped,
            Some(Outcome::Lost) => KeyFrom::Lost,
            Some(Outcome::Unclear) => KeyFrom::Unclear,
            Some(Outcome::Contradicting) => KeyFrom::Contradicting,
            Some(Outcome::Kept) | None if self.key.contradicted => KeyFrom::Contradicting,
            Some(Outcome::Kept) | None if self.propagation.restored() => KeyFrom::Restored,
            Some(Outcome::Kept) | None if self.key.keys.is_some() => KeyFrom::Arrived,
            Some(Outcome::Kept) | None if self.key.untrusted => KeyFrom::Untrusted,
            Some(Outcome::Kept) | None
                if self.target.as_ref().is_ok_and(|target| target.overlay.is_some()) =>
            {
                KeyFrom::Stamped
            }
            Some(Outcome::Kept) | None => KeyFrom::Absent,
        }
    }

    /// The answer that the proxy gives itself, where it does.
    #[must_use]
    pub fn refusal(&self) -> Option<&Answer> {
        self.target.as_ref().err()
    }

    /// What all workers share.
    #[must_use]
    pub fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// Deadlines and limits.
    #[must_use]
    pub fn limits(&self) -> &super::Limits {
        &self.plane.limits
    }

    /// Until when all of it has to be over, where its client or the settings say so, and what it is if it is not.
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, Failure)> {
        self.deadline
    }

    /// The same where the settings say so.
    #[must_use]
    pub fn must_end(&self) -> Option<Instant> {
        self.plane.limits.request.and_then(|limit| self.started.checked_add(limit))
    }

    /// Lets go of the snapshot: its response's head was sent, and from here on it may go on for as long as its peers
    /// like.
    pub fn let_go(&mut self) {
        let generation = self.snapshot.generation;
        self.snapshot = Arc::new(Snapshot { generation, ..Snapshot::default() });
    }

    /// What is returned completes when an exchange has to end that may go on for as long as its peers like; nothing where
    /// it goes nowhere.
    pub fn lasts(&self) -> Option<Leave> {
        let target = self.target.as_ref().ok()?;
        let environment = target.receipt.as_ref().map(|receipt| receipt.environment.clone());
        Some(leave(self.plane.clone(), target.upstream.clone(), environment))
    }

    /// Whether the response comes from outside: nothing in it is a receipt.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.target.as_ref().is_ok_and(|target| target.receipt.is_none())
    }

    /// The address that it was last sent to, for those who may know.
    #[must_use]
    pub fn upstream_address(&self) -> Option<&Address> {
        self.endpoint.as_ref().map(|endpoint| &endpoint.address).filter(|_| !self.is_strangers())
    }

    /// The authority of the url that led there.
    #[must_use]
    pub fn upstream_authority(&self) -> String {
        let url = self.endpoint.as_ref().map(|endpoint| &endpoint.url);
        url.filter(|url| url.scheme != Scheme::Unix).map_or_else(|| "localhost".to_owned(), Url::authority)
    }

    fn receipt(&self) -> Option<&Receipt> {
        self.target.as_ref().ok()?.receipt.as_ref()
    }

    /// Whether bytes may have gone upstream.
    #[must_use]
    pub fn was_sent(&self) -> bool {
        self.sent
    }

    /// Notes that bytes go upstream now: from here on the request keeps its snapshot.
    pub fn sending(&mut self) {
        self.sent = true;
    }

    /// Whether it was decided again since its head was read.
    #[must_use]
    pub fn was_decided_anew(&self) -> bool {
        self.decided_anew
    }

    /// Notes that it waits now, for whomever; says when, where the clock was read for that.
    pub fn pauses(&mut self) -> Option<Instant> {
        self.times.pause()
    }

    /// Notes that the head of the response is there.
    pub fn answered(&mut self) {
        self.times.answer();
    }

    /// Notes, for the log and the spans, that it came in HTTP/2.
    pub fn came_in_http2(&mut self) {
        let traced = self.traced.as_mut().map(|traced| &mut traced.asked);
        for asked in self.logged.as_deref_mut().into_iter().chain(traced) {
            asked.version = "2";
        }
    }

    /// Notes, for the spans of a call of gRPC, what it came to, where its upstream has said so by now.
    pub fn came_to(&mut self, grpc_status: impl FnOnce() -> Option<u8>) {
        if let Some(traced) = self.traced.as_mut().filter(|traced| traced.is_call) {
            traced.grpc_status = grpc_status().or(traced.grpc_status);
        }
    }

    /// Notes how many bytes of the response's body were sent.
    pub fn body_sent(&mut self, bytes: u64) {
        self.sent_bytes = bytes;
    }
}

/// However a request ends, also where its task is cut short or the engine gives it back unread.
impl Drop for Exchange {
    fn drop(&mut self) {
        // Cut short: by the end of the process, or of the engine that had it.
        self.ended(0, Instant::now());
        self.leave_upstream();
        self.leave_worker();
        count(Event::RequestEnded);
        self.propagation.end(&self.gate);
    }
}

/// Appends a field line.
pub(super) fn line(out: &mut Vec<u8>, name: &str, value: impl AsRef<[u8]>) {
    for part in [name.as_bytes(), b": ", value.as_ref(), b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What becomes of the key between a request and the calls that it causes.
fn propagate(
    plane: &Plane,
    gate: &Gate,
    head: &Head<'_>,
    standing: &Standing,
    keys: &mut Option<Keys>,
    require: &str,
    started: Instant,
) -> Propagation {
    let sampler = plane.traces.as_ref().map(|traces| traces.sampler);
    let mut propagation = match standing.right.is_any() {
        true => Propagation::begin(gate, sampler, head, keys, require, started),
        false => Propagation::of_untrusted(gate, sampler, head, keys.is_some()),
    };
    if plane.request_ids && matches!(gate.listener.role, Role::Gateway) {
        propagation.identify(head);
    }
    propagation
}

/// How many proxies a request passed, and what refuses it where those were too many.
fn passed(head: &Head<'_>, standing: &Standing) -> (u8, Option<Refusal>) {
    if !standing.right.is_any() {
        return (0, None);
    }
    match route::hops(head.values(HOPS)) {
        Ok(hops) => (hops, None),
        Err(refusal) => {
            count(Event::Loop);
            (MAX_HOPS, Some(refusal))
        }
    }
}

/// Where a request goes that was just read, unless something answers it before that is decided.
fn first_target(
    plane: &Plane,
    gate: &Gate,
    snapshot: &Snapshot,
    inquiry: &Inquiry<'_>,
    key: &Key,
    refusal: Option<Refusal>,
    entered: Result<(), Box<Answer>>,
) -> Result<Target, Answer> {
    let (head, longest) = (inquiry.head, plane.limits.most_of_a_body());
    if let Some(port) = gate.redirect.filter(|_| !is_challenge(head.path)) {
        return Err(to_https(head, port));
    }
    if let Some(refusal) = refusal {
        return Err(Answer::from(&refusal));
    }
    if let Some(answer) = key.imitated(&plane.carriers, head) {
        return Err(answer);
    }
    entered.map_err(|answer| *answer)?;
    if head.body.is_longer_than(longest) {
        return Err(too_large(longest));
    }
    decide(plane, gate, snapshot, inquiry, key, &Tried::default())
}

/// The answer to a body that says of itself that it is longer than `most` bytes.
fn too_large(most: u64) -> Answer {
    let message = format!("the request's body is larger than {most} bytes");
    let hint = Some("`maxBodyBytes` in the proxy's settings is the limit".to_owned());
    Answer { hint, ..Answer::plain(413, "http_request_error", TOO_LARGE, message) }
}

/// Until when a request has to be over, and what it is if it is not.
fn deadline(head: &Head<'_>, limits: &Limits, started: Instant) -> Option<(Instant, Failure)> {
    let after = |time: Option<Duration>, failure| Some((started.checked_add(time?)?, failure));
    let both = [after(grpc::timeout(head), Failure::Late), after(limits.request, Failure::Overdue)];
    both.into_iter().flatten().min_by_key(|(at, _)| *at)
}

/// What is kept of a head; `propagation` knows what becomes of the ids in it.
fn noted<'h>(head: &Head<'h>, propagation: &'h Propagation) -> Noted<'h> {
    Noted {
        authority: head.authority,
        path: head.path,
        request_id: propagation.request_id_of(head),
        trace: propagation.trace_id_of(head),
    }
}
