//! One request on its way: what it asked, what was decided, whom it is sent to.
//!
//! Engines ask an [`Exchange`] where to connect and apply its edits; they decide nothing. Until the
//! first byte has gone upstream a hold looks up again in the newest snapshot; from then on the
//! request keeps its own.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use foldhash::fast::RandomState;
use overlane_config::blueprint::OnUnavailable;
use overlane_config::carrier::trace::REQUEST_ID;
use overlane_config::carrier::{Carriers, FieldLines, Keys, Seen};
use overlane_config::lineage::{Policy, is_off_limits};
use overlane_config::name::{EnvironmentId, HeaderName, TOKEN_HEADER};
use overlane_config::route::receipt::{self, Hop, Marks, Own};
use overlane_config::route::{
    self, Decision, Edits, HOP_HEADER, HOPS_HEADER, MAX_HOPS, Problem, REQUIRE_HEADER, Reason, Receipt,
    Refusal, Request, Role, Served, To, Tried, Untraced, Via,
};
use overlane_config::time::UnixMillis;
use overlane_config::url::{Scheme, Url, split_authority};
use tokio::time::timeout;

use super::answer::{Answer, Failure, More, TOO_LARGE};
use super::asked::{Asked, Traced};
use super::bearer::{AUTHORIZATION, TOKEN};
use super::edge::{self, Entered, Visit};
use super::forwarded::Forwarding;
use super::grpc;
use super::leave::{Leave, leave};
use super::overload::{self, Limit};
use super::propagation::Propagation;
use super::redirect::{is_challenge, to_https};
use super::standing::{Right, Standing};
use super::times::Times;
use super::{Gate, Limits, Plane};
use crate::access::Line;
use crate::calls::Outcome;
use crate::capacity::{Guest, Seat};
use crate::clock;
use crate::correlation::Calls;
use crate::decisions::{Decided, KeyFrom, Note, Noted, note, write};
use crate::h1::request::{self, Head};
use crate::h1::{Known, Name};
use crate::metrics::{Counted, Event, Method, count, count_invalid_key, observe};
use crate::snapshot::Snapshot;
use crate::tokens::Refused as RefusedToken;
use crate::traces::Exchanged;
use crate::upstream::{Address, Endpoint, Upstream};

/// The names of our own headers, and of those that travel with them.
pub const ROUTE: Name<'_> = Name::of(route::ROUTE_HEADER);
const HOP: Name<'_> = Name::of(HOP_HEADER);
const HOPS: Name<'_> = Name::of(HOPS_HEADER);
const REQUIRE: Name<'_> = Name::of(REQUIRE_HEADER);
const BAGGAGE: Name<'_> = Name::of("baggage");
const COOKIE: Name<'_> = Name::of("cookie");
const X_REQUEST_ID: Name<'_> = Name::of(REQUEST_ID);
const STRICT_TRANSPORT_SECURITY: Name<'_> = Name::of("strict-transport-security");

/// How long a held request waits before it looks again, where nothing wakes it earlier.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Hosts that a worker knows of those that requests pass through to.
const MAX_OUTSIDE: usize = 1024;
/// How long a request that passes through waits for its host's name and connection.
const PASS_THROUGH_HOLD: Duration = Duration::from_secs(5);

/// What a request says about its way, in bytes of its head.
struct Inquiry<'h> {
    head: &'h Head<'h>,
    hop: Option<Cow<'h, str>>,
    require: Cow<'h, str>,
    /// Where the connection was meant to go, if it was intercepted.
    meant: Option<SocketAddr>,
    /// Whether its sender may know what there is.
    trusted: bool,
}

impl<'h> Inquiry<'h> {
    /// What somebody without a right says is not read, and marks only of who may choose any overlay. A requirement
    /// that came with the request counts before one that was restored with its key.
    fn read(head: &'h Head<'h>, standing: &Standing, key: &Key) -> Self {
        let (meant, trusted) = (standing.meant, standing.right.is_any());
        let let_in = key.visit.as_ref().is_some_and(|visit| visit.let_in());
        if (key.untrusted || standing.right == Right::Nobody) && !let_in {
            return Self { head, hop: None, require: Cow::default(), meant, trusted };
        }
        let mut required = required(head).map(String::from_utf8_lossy);
        let first = required.next().unwrap_or_default();
        let require = required.fold(first, |all, line| format!("{all},{line}").into());
        let hop = if trusted { head.values(HOP).next() } else { None };
        Self { head, hop: hop.map(String::from_utf8_lossy), require, meant, trusted }
    }

    fn with(self, restored: Option<&'h str>) -> Self {
        match restored {
            Some(restored) if self.require.is_empty() => Self { require: restored.into(), ..self },
            _ => self,
        }
    }

    fn request<'r>(&'r self, key: &'r Key) -> Request<'r> {
        Request {
            authority: self.head.authority,
            path: self.head.path,
            preview: key.visit.as_ref().and_then(|visit| visit.preview()),
            by_browser: key.visit.as_ref().is_some_and(|visit| visit.says()),
            keys: key.keys.as_ref(),
            // Who was let in by a secret is no stranger, whatever else was removed.
            untrusted: key.untrusted && key.keys.is_none(),
            hop: self.hop.as_deref(),
            require: &self.require,
        }
    }
}

/// The lines of a requirement; an empty one requires nothing, and is as none.
fn required<'b>(head: &Head<'b>) -> impl Iterator<Item = &'b [u8]> + use<'b> {
    head.values(REQUIRE).filter(|line| !line.is_empty())
}

/// Whose key counts, and what it is.
struct Key {
    /// The header that carries it at this listener.
    header: HeaderName,
    /// What that header is among those that somebody looks for.
    known: Known,
    /// The key that the request carries, where its sender may choose it.
    keys: Option<Keys>,
    /// Whether overlay headers must be removed: the sender may not choose what they name.
    untrusted: bool,
    /// Whether another carrier names another key.
    contradicted: bool,
    /// What a browser's request needs, at a gateway.
    visit: Option<Box<Visit>>,
}

impl Key {
    fn read(
        snapshot: &Snapshot,
        gate: &Gate,
        carriers: &Carriers,
        head: &Head<'_>,
        standing: &Standing,
    ) -> (Self, Option<Refusal>) {
        let right = &standing.right;
        let baseline = snapshot.table.baseline(gate.listener.baseline.as_ref());
        let header = baseline.map_or_else(HeaderName::default_key, |baseline| baseline.header.clone());
        let known = Name::of(header.as_str()).known();
        let mut key = Self { header, known, keys: None, untrusted: false, contradicted: false, visit: None };
        if *right == Right::Nobody {
            let refusal = match carriers.any(key.header.as_str(), &head.fields) {
                true => key.refused(head, standing),
                false => None,
            };
            let ours = [HOP, HOPS, REQUIRE, ROUTE];
            if !key.untrusted && ours.into_iter().any(|name| head.values(name).next().is_some()) {
                key.remove();
            }
            return (key, refusal);
        }
        let mut may_choose = true;
        let read = carriers.read(key.header.as_str(), &head.fields, |carrier, seen| match seen {
            Seen::Invalid(_) => count_invalid_key(carrier.name()),
            // Also what does not count here: somebody else may read it first.
            Seen::Key(keys) | Seen::Contradicts(keys) => may_choose &= right.may_choose_all(keys),
            Seen::Same => {}
        });
        match read {
            Ok(_) if !may_choose => {
                let refusal = key.refused(head, standing);
                (key, refusal)
            }
            Ok(arrived) => {
                (key.keys, key.contradicted) = (arrived.keys, arrived.contradicted);
                if key.contradicted {
                    count(Event::ContradictingCarriers);
                }
                (key, None)
            }
            Err(error) => {
                count_invalid_key("header");
                let refusal = Refusal::invalid_key(key.header.as_str(), &error);
                (key, Some(refusal))
            }
        }
    }

    /// Overlay headers of the request are removed, and counted.
    fn remove(&mut self) {
        self.untrusted = true;
        count(Event::UntrustedHeaders);
    }

    /// What it chooses, its sender may not choose: it is as if nothing was chosen, unless the request requires it.
    fn refused(&mut self, head: &Head<'_>, standing: &Standing) -> Option<Refusal> {
        self.remove();
        let token = standing.bearer.as_ref().and_then(|bearer| bearer.refused);
        let why = token.map(|why| format!("its token {why}"));
        required(head).next().map(|_| Refusal::untrusted(why.as_deref()))
    }

    /// Lets a browser's request in; what its host, page or cookie says counts where no carrier does, and a preview's
    /// host always.
    fn enter(
        &mut self,
        snapshot: &Snapshot,
        gate: &Gate,
        head: &Head<'_>,
        standing: &Standing,
    ) -> Result<(), Box<Answer>> {
        let Entered { visit, keys } = edge::enter(snapshot, gate, head, standing, self.keys.as_ref())?;
        if let Some(keys) = keys {
            self.contradicted |= self.keys.as_ref().is_some_and(|own| *own != keys);
            self.keys = Some(keys);
        }
        self.visit = visit;
        // Who has a token for one overlay, and chooses nothing, means that one.
        if self.keys.is_none() && !self.untrusted {
            let only = standing.bearer.as_ref().and_then(|bearer| bearer.only.as_ref());
            self.keys = only.map(Keys::one);
        }
        Ok(())
    }

    /// The name of its header.
    fn name(&self) -> Name<'_> {
        Name::told(self.header.as_str(), self.known)
    }

    /// The answer to a field that an application could take for one of ours.
    fn imitated(&self, carriers: &Carriers, head: &Head<'_>) -> Option<Answer> {
        let ours = [self.header.as_str(), HOP_HEADER, HOPS_HEADER, REQUIRE_HEADER, TOKEN_HEADER];
        let mut foreign = carriers.written_headers().map(|(_, name)| name.as_str());
        let imitated = head.fields.imitated(&ours);
        imitated.or_else(|| foreign.find_map(|name| head.fields.imitated(&[name]))).map(imitation)
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
    /// Whose request it is, where that is not whose listener and services these are.
    guest: Option<Guest>,
    /// How many requests may be at the upstream at once, where its blueprint says.
    max_requests: Option<NonZeroU32>,
}

impl Target {
    /// Whose request it is, where that is not who owns the upstream.
    fn guest_of_owner(&self) -> Option<Guest> {
        let owner = self.receipt.as_ref().map(|receipt| &receipt.environment);
        self.guest.filter(|_| owner != self.overlay.as_ref())
    }

    fn asked(&self) -> overload::Asked<'_> {
        let service = self.receipt.as_ref().map(|receipt| (&receipt.service, &receipt.environment));
        overload::Asked { overlay: self.overlay.as_ref(), service }
    }
}

/// What a request has of what is limited (see [`overload`]).
#[derive(Debug, Default)]
struct Seats {
    /// Among the worker's requests.
    worker: Option<Seat>,
    /// Among those that wait for an upstream.
    held: Option<Seat>,
    /// At the upstream of its target.
    upstream: Option<Seat>,
    /// Whether it is at that upstream once again.
    repeats: bool,
}

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
        let sampler = plane.traces.as_ref().map(|traces| traces.sampler);
        let mut propagation = match standing.right.is_any() {
            true => Propagation::begin(gate, sampler, head, &mut key.keys, &inquiry.require, started),
            false => Propagation::of_untrusted(gate, sampler, head, key.keys.is_some()),
        };
        if plane.request_ids && matches!(gate.listener.role, Role::Gateway) {
            propagation.identify(head);
        }
        let restored = propagation.require();
        let inquiry = inquiry.with(restored.as_ref().map(|require| &***require));
        let (hops, looping) =
            match standing.right.is_any().then(|| route::hops(head.values(HOPS))).transpose() {
                Ok(hops) => (hops.unwrap_or(0), None),
                Err(refusal) => (MAX_HOPS, Some(refusal)),
            };
        if looping.is_some() {
            count(Event::Loop);
        }
        let refusal = looping.or(refusal);
        let redirect = gate.redirect.filter(|_| !is_challenge(head.path));
        let target = match (&refusal, key.imitated(&plane.carriers, head), entered) {
            _ if redirect.is_some() => Err(to_https(head, redirect.unwrap_or_default())),
            (Some(refusal), ..) => Err(Answer::from(refusal)),
            (None, Some(answer), _) => Err(answer),
            (None, None, Err(answer)) => Err(*answer),
            (None, None, Ok(())) if head.body.is_longer_than(plane.limits.most_of_a_body()) => {
                Err(too_large(plane.limits.most_of_a_body()))
            }
            (None, None, Ok(())) => decide(plane, gate, &snapshot, &inquiry, &key, &Tried::default()),
        };
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

    /// Whether a field of the request's head stays behind, or is replaced by [`Exchange::add_lines`].
    /// What is for one hop stays behind besides.
    #[must_use]
    pub fn removes(&self, name: Name<'_>) -> bool {
        let Ok(target) = &self.target else {
            return false;
        };
        let (edits, carriers) = (&target.edits, &self.plane.carriers);
        (name.is(&self.key.name()) && edits.removes_own(carriers))
            || name.is(&HOP)
            || name.is(&HOPS)
            || name.is(&REQUIRE)
            || (name.is(&TOKEN) && self.forwards())
            || (name.is(&BAGGAGE) && !edits.baggage.is_untouched())
            || (!edits.cookie.is_untouched() && name.is(&COOKIE))
            || edits.removes_header(carriers, name.text())
            || (name.is(&ROUTE) && (!self.standing.right.is_any() || self.passes_through()))
            || self.propagation.removes(name)
            || (name.is(&AUTHORIZATION)
                && self.standing.bearer.as_ref().is_some_and(|bearer| bearer.in_authorization))
            || (name.is_forwarded()
                && self.forwards()
                && Forwarding::removes(name, self.standing.passed.is_some()))
    }

    fn forwards(&self) -> bool {
        self.gate.is_edge()
    }

    /// Appends the field lines that the request gets on its way upstream, each with its line end. Set
    /// afresh, they survive whatever a client nominates in `Connection`.
    pub fn add_lines(&self, head: &Head<'_>, out: &mut Vec<u8>) {
        let Ok(Target { edits, .. }) = &self.target else {
            return;
        };
        edits.write_lines(&self.plane.carriers, self.key.header.as_str(), out);
        if let Some(environment) = &edits.hop {
            line(out, HOP_HEADER, environment.as_str());
        }
        if edits.require || !self.passes_through() {
            // An application may forward it: so a loop through applications ends as well.
            line(out, HOPS_HEADER, decimal(self.hops + 1, &mut [0; 2]));
        }
        if edits.require {
            match self.propagation.require() {
                Some(restored) if required(head).next().is_none() => {
                    line(out, REQUIRE_HEADER, restored.as_bytes());
                }
                _ => required(head).for_each(|value| line(out, REQUIRE_HEADER, value)),
            }
        }
        self.propagation.add_lines(out);
        if self.forwards() {
            self.add_forwarded(head, out);
        }
    }

    /// For whom a gateway asks; what anybody but trusted hops said of it is replaced.
    fn add_forwarded(&self, head: &Head<'_>, out: &mut Vec<u8>) {
        let Standing { text, secure, passed, .. } = &*self.standing;
        let (hops, host) = match passed {
            Some(passed) => (&passed.hops[..], passed.host.as_deref()),
            None => (&[][..], None),
        };
        self.plane.forwarding.write(text, hops, *secure, host.unwrap_or(head.authority), out);
    }

    /// Whether a field of the response's head stays behind, or is replaced by [`Exchange::edit_response`].
    #[must_use]
    pub fn replaces_in_response(&self, name: Name<'_>) -> bool {
        (self.forwards() && edge::replaces(self.key.visit.as_deref(), name))
            || (name.is(&X_REQUEST_ID) && self.names_answers())
            || (name.is(&STRICT_TRANSPORT_SECURITY) && self.hsts().is_some())
    }

    /// Appends what a gateway adds to a response with this status; `fields` are those that came from upstream.
    pub fn edit_response(&self, status: u16, fields: &(impl FieldLines + ?Sized), out: &mut Vec<u8>) {
        if !self.forwards() {
            return;
        }
        self.add_answer_lines(out);
        let visit = self.key.visit.as_deref();
        edge::cookies(visit, fields, out);
        let at_preview = visit.is_some_and(|visit| visit.preview().is_some());
        // A preview's host has one overlay; elsewhere one address has as many answers as there are overlays.
        if !at_preview {
            for part in [b"Vary: ", self.key.header.as_str().as_bytes(), self.plane.carriers.vary(), b"\r\n"]
            {
                out.extend_from_slice(part);
            }
        }
        if visit.is_some_and(Visit::is_private) || (!at_preview && self.key.keys.is_some()) {
            line(out, "Cache-Control", "private");
        }
        if let Some(visit) = visit {
            let baseline = self.snapshot.table.baseline(self.gate.listener.baseline.as_ref());
            let place = baseline.map(|baseline| edge::Place { table: &self.snapshot.table, baseline });
            visit.write(place.as_ref(), status, fields, out);
        }
    }

    /// Appends the receipts to a response's head, if the request carried a key: those that came from
    /// upstream, those that the application's calls left, and our own. As in Proxy-Status, what is nearer
    /// to the origin comes first. `streams` where the length of the response is not known yet.
    ///
    /// # Errors
    /// The answer to give instead, where this is the first proxy and what the request requires is not met.
    pub fn add_receipts<'v>(
        &self,
        before: impl Iterator<Item = &'v [u8]>,
        streams: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Box<Answer>> {
        let Some((own, calls)) = self.own(streams) else {
            self.propagation.call_ends();
            return self.verify(&[]);
        };
        let left = calls.left.iter().map(|left| left.list());
        out.extend_from_slice(route::ROUTE_HEADER.as_bytes());
        out.extend_from_slice(b": ");
        let from = out.len();
        let assembled = receipt::assemble(before.map(|list| list as &[u8]).chain(left), Some(&own), out);
        if assembled.ignored > 0 {
            count(Event::ReceiptsIgnored);
        }
        if assembled.own {
            self.hop.store(own.hop.bits(), Ordering::Relaxed);
        }
        self.propagation.leave(&out[from..]);
        self.propagation.call_ends();
        self.verify(&out[from..])?;
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// The receipts of an answer of our own; the request that caused this one is told of them as well.
    #[must_use]
    pub fn own_receipts(&self) -> Option<Box<str>> {
        let list = self.tunnel_receipts()?;
        self.leave(&list);
        Some(list)
    }

    /// Those of a tunnel, of which the request that caused it is told ([`Self::leave`]) once they are about something:
    /// where HTTP is in it, each request has its own.
    #[must_use]
    pub fn tunnel_receipts(&self) -> Option<Box<str>> {
        self.propagation.call_ends();
        let (own, calls) = self.own(false)?;
        let mut list = Vec::new();
        receipt::assemble(calls.left.iter().map(|left| left.list()), Some(&own), &mut list);
        self.hop.store(own.hop.bits(), Ordering::Relaxed);
        String::from_utf8(list).ok().map(Into::into)
    }

    /// Tells the request that caused this one of its receipts.
    pub fn leave(&self, receipts: &str) {
        self.propagation.leave(receipts.as_bytes());
    }

    /// Our own part in the receipts, and what calls left, if the request carried a key.
    fn own(&self, streams: bool) -> Option<(Own<'_>, Calls)> {
        let target = self.target.as_ref().ok()?;
        let receipt = target.receipt.as_ref().filter(|_| self.key.keys.is_some())?;
        let (calls, partial) = match target.application {
            true => {
                let calls = self.propagation.take_calls(&self.gate);
                let missing = calls.missing;
                (calls, missing || streams)
            }
            false => (Calls::default(), false),
        };
        let marks = Marks::PARTIAL.when(partial);
        let marks = marks.and(Marks::CONTRADICTED.when(self.key.contradicted));
        let marks = marks.and(Marks::RESTORED.when(self.propagation.restored()));
        let hop = Hop::new(fastrand::u64(..));
        Some((Own { receipt, hop, marks, nearest: target.application }, calls))
    }

    /// Holds what the request requires against the receipts of the whole path.
    fn verify(&self, list: &[u8]) -> Result<(), Box<Answer>> {
        let Some(require) = self.require.as_deref().filter(|_| !self.passes_through()) else {
            return Ok(());
        };
        let (table, baseline) = (&self.snapshot.table, self.gate.listener.baseline.as_ref());
        let receipts = (!list.is_empty()).then_some(list);
        match route::verify(table, baseline, self.key.keys.as_ref(), require, receipts, clock::now()) {
            Ok(()) => Ok(()),
            Err(refusal) => {
                let receipts = receipts.map(|list| String::from_utf8_lossy(list).into());
                Err(Box::new(Answer::from(&refusal).with(More { receipts, ..More::default() })))
            }
        }
    }

    /// Whether answers say the request's id: at a gateway that gives requests ids.
    fn names_answers(&self) -> bool {
        self.plane.request_ids && matches!(self.gate.listener.role, Role::Gateway)
    }

    fn hsts(&self) -> Option<&str> {
        let said = self.plane.hsts.as_deref();
        said.filter(|_| self.standing.secure && matches!(self.gate.listener.role, Role::Gateway))
    }

    /// Appends the field lines that every answer has, whoever gives it.
    pub fn add_answer_lines(&self, out: &mut Vec<u8>) {
        if let Some(hsts) = self.hsts() {
            line(out, "Strict-Transport-Security", hsts);
        }
        if let Some(id) = self.propagation.request_id().filter(|_| self.names_answers()) {
            line(out, REQUEST_ID, id);
        }
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
    fn enter(&mut self) -> Result<(), Refused> {
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
    fn leave_upstream(&mut self) {
        let Ok(target) = &self.target else { return };
        if let Some(seat) = self.seats.upstream.take() {
            seat.leave(&target.upstream.requests);
        }
        if std::mem::take(&mut self.seats.repeats) {
            target.upstream.repeated();
        }
    }

    /// Gives back what it has in its worker.
    fn leave_worker(&mut self) {
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

    fn decide(&self, head: &[u8], snapshot: &Snapshot) -> Result<Target, Answer> {
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
    fn is_strangers(&self) -> bool {
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

    /// Notes how many bytes of the response's body were sent.
    pub fn body_sent(&mut self, bytes: u64) {
        self.sent_bytes = bytes;
    }

    /// Counts and logs the request, which ends `now`; `status` is 0 where no answer was sent. Only the
    /// first call counts.
    pub fn ended(&mut self, status: u16, now: Instant) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let target = self.target.as_ref().ok();
        let receipt = self.receipt();
        let counted = Counted {
            overlay: target.and_then(|target| target.overlay.as_ref()),
            service: receipt.map(|receipt| &receipt.service),
            environment: receipt.map(|receipt| &receipt.environment),
            // What the proxy answers itself is nobody's.
            via: receipt.filter(|_| self.is_upstreams()).map(|receipt| receipt.via),
            class: u8::try_from(status / 100).unwrap_or_default(),
            method: self.method,
            gate: &self.gate,
            delivered: target.is_some_and(|target| target.application),
        };
        let took = now.saturating_duration_since(self.started);
        // Who was held waited for an upstream that was not there.
        let added = self.times.added(self.started, now).filter(|_| !self.held_at_all);
        observe(&counted, took, added);
        if let Some(note) = self.noted.take() {
            self.write_down(note, status, took);
        }
        if let Some(traced) = self.traced.take() {
            self.hand_in(*traced, status, took);
        }
        if let Some(asked) = &self.logged {
            let own = self.failed.is_some() || self.refusal().is_some();
            if asked.sampled || matches!(status, 0 | 500..) || (own && status >= 400) {
                self.plane.access.log(&self.log_line(asked, status, took));
            }
        }
    }

    /// Writes its decision down, for whoever wants to look at it.
    fn write_down(&self, note: Box<Note>, status: u16, took: Duration) {
        let (target, receipt) = (self.target.as_ref().ok(), self.receipt());
        let overlay = || target.and_then(|target| target.overlay.as_ref()).map(EnvironmentId::as_str);
        let hop = self.hop.load(Ordering::Relaxed);
        let decided = Decided {
            started: self.started,
            took,
            upstream_took: self.times.upstream(),
            gate: self.gate.number,
            method: self.method,
            status,
            via: receipt.map(|receipt| receipt.via),
            reason: receipt.map(|receipt| receipt.reason),
            failed: self.failed.or_else(|| self.refusal().map(|answer| answer.reason)),
            key_from: self.key_from,
            generation: self.snapshot.generation,
            hop,
            key: self.key.keys.as_ref().map(Keys::as_str).or_else(overlay),
            service: receipt.map(|receipt| receipt.service.as_str()),
            environment: receipt.map(|receipt| receipt.environment.as_str()),
            upstream: self.endpoint.as_ref().map(|endpoint| &endpoint.address),
        };
        write(note, &decided);
    }

    /// Hands in what its spans are made of.
    fn hand_in(&self, Traced { ids, asked, called }: Traced, status: u16, took: Duration) {
        let Some(traces) = &self.plane.traces else { return };
        let refusal = self.refusal().map(|answer| answer.reason);
        let exchanged = Exchanged {
            ids,
            line: self.log_line(&asked, status, took).kept(),
            ended: SystemTime::now(),
            took,
            called: called.map(|at| took.saturating_sub(at.saturating_duration_since(self.started))),
            upstream: self.endpoint.clone(),
            secure: self.standing.secure,
            failed: self.failed.or(refusal),
            answered: self.is_upstreams() && refusal.is_none() && status != 0,
        };
        traces.hand_in(Box::new(exchanged));
    }

    /// Whether what was answered is the upstream's, in whole or in part.
    fn is_upstreams(&self) -> bool {
        self.failed.is_none() || self.cut
    }

    fn log_line<'l>(&'l self, asked: &'l Asked, status: u16, took: Duration) -> Line<&'l str> {
        let receipt = self.receipt();
        Line {
            timestamp: UnixMillis(clock::now().0.saturating_sub(millis(took))),
            role: self.gate.role(),
            method: self.method.as_str(),
            authority: &asked.authority,
            path: &asked.path,
            version: asked.version,
            status,
            bytes: self.sent_bytes,
            client: &self.standing.text,
            client_identity: self.standing.identity.as_deref(),
            token: self.standing.bearer.as_ref().and_then(|bearer| bearer.refused).map(RefusedToken::as_str),
            took,
            upstream: self.endpoint.as_ref().map(|endpoint| endpoint.text()),
            service: receipt.map(|receipt| receipt.service.as_str()),
            overlay: self.key.keys.as_ref().map(Keys::as_str),
            environment: receipt.map(|receipt| receipt.environment.as_str()),
            via: receipt.map(|receipt| receipt.via.as_str()),
            reason: self
                .failed
                .or_else(|| receipt.map(|receipt| receipt.reason.as_str()))
                .or_else(|| self.refusal().map(|answer| answer.reason)),
            request_id: asked.request_id.as_deref(),
            trace_id: asked.trace_id.as_deref(),
            generation: self.snapshot.generation,
            referer: asked.referer.as_deref(),
            agent: asked.agent.as_deref(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

/// A number of at most two digits as text.
fn decimal(number: u8, digits: &mut [u8; 2]) -> &[u8] {
    *digits = [b'0' + number / 10, b'0' + number % 10];
    &digits[usize::from(number < 10)..]
}

/// The answer to a header that an application could take for one of ours, and that nobody here reads.
fn imitation(name: &str) -> Answer {
    let message = format!("a header has underscores where `{name}` has dashes");
    let hint = Some(format!("send `{name}`, or leave it out"));
    Answer { hint, ..Answer::plain(400, "http_request_error", "malformed", message) }
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

/// Reads again a head that was right; `None` where it is gone already.
fn reread<R>(head: &[u8], with: impl FnOnce(&Head<'_>) -> R) -> Option<R> {
    request::parse(head, with).ok().flatten()
}

/// Decides an inquiry in a snapshot, and turns what it borrows into what can be kept.
fn decide(
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

thread_local! {
    /// The hosts that this worker's requests pass through to, so that their names are resolved and
    /// their connections kept as those of services are.
    static OUTSIDE: RefCell<HashMap<Url, Arc<Upstream>, RandomState>> = RefCell::default();
}

fn outside(url: Url, plane: &Plane) -> Arc<Upstream> {
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
