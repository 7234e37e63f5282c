//! The key between a request's arrival and the calls that it causes: remembered, restored, counted.
//!
//! Inbound remembers the key under the request's trace; outbound restores it where a call came without
//! one. Where a keyed request has no trace yet, it is given one, which applications forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use overlane_config::carrier::Keys;
use overlane_config::carrier::trace::{REQUEST_ID, Span, TraceId, digits};
use overlane_config::name::ServiceName;
use overlane_config::route::Role;

use super::Gate;
use super::exchange::line;
use crate::calls::{Call, Language, Outcome};
use crate::correlation::{Calls, Found, Id, Trace};
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::count_call;
use crate::traces::{Sampler, SpanIds};

const TRACEPARENT: Name<'_> = Name::of("traceparent");
const TRACESTATE: Name<'_> = Name::of("tracestate");
const B3: Name<'_> = Name::of("b3");
const UBER_TRACE_ID: Name<'_> = Name::of("uber-trace-id");
const X_REQUEST_ID: Name<'_> = Name::of(REQUEST_ID);
const USER_AGENT: Name<'_> = Name::of("user-agent");

/// `00-<trace>-<span>-01` (W3C Trace Context).
type Traceparent = [u8; 55];
/// 32 hexadecimal digits.
type RequestId = [u8; 32];
/// The longest id of a request that its sender gives it.
const LONGEST_ID: usize = 128;

/// The digits of a trace's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits<'i> {
    /// All 32.
    Whole(&'i [u8]),
    /// The last 16: more are not known.
    Low([u8; 16]),
}

impl Digits<'_> {
    /// The digits.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Whole(digits) => digits,
            Self::Low(digits) => digits,
        }
    }
}

/// Where the trace of a span of ours comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Origin {
    /// It begins here.
    #[default]
    Here,
    /// The request brought it along.
    Came,
    /// The same, in other dialects besides.
    CameInSeveral,
}

/// What is done to the headers that name a request's trace.
#[derive(Debug, Default)]
struct TraceEdit {
    /// The span that what it is sent to belongs under, where that is one of ours.
    parent: Option<Traceparent>,
    /// What that span's trace has to do with the one that came.
    origin: Origin,
    /// The id that it gets here.
    request: Option<RequestId>,
    /// Whether all that its sender said of traces stays behind.
    replaces: bool,
}

/// What a request's key has to do with its trace.
#[derive(Debug, Default)]
pub struct Propagation {
    /// What is remembered under its trace and its request id; kept, since what is in use is not forgotten.
    known: [Option<Arc<Trace>>; 2],
    /// The same where it has several keys: kept so that this is not forgotten either.
    conflicted: [Option<Arc<Trace>>; 2],
    edit: TraceEdit,
    /// Which requests have spans, where any do.
    sampler: Option<Sampler>,
    /// The id that its sender gave it, and that it keeps; told where requests have ids.
    named: Option<Box<str>>,
    /// Whether the key came from what was remembered.
    restored: bool,
    /// What became of the key on the way to here, where an application makes a call and that is known.
    outcome: Option<Outcome>,
    /// Whether it counts as a request that is served here; true where it has a key.
    serving: Option<bool>,
    /// Whether its sender named a trace or a request id.
    traced: bool,
    /// Whether it is a call of a known request.
    calling: bool,
    /// Whether that call has told whom it reached.
    told: AtomicBool,
    /// Calls that nobody claimed before this request began to be served.
    unclaimed_before: u64,
}

/// Under what a request is remembered: its trace, its request id.
type Ids = [Option<Id>; 2];

fn ids(gate: &Gate, head: &Head<'_>) -> Ids {
    let trace = TraceId::read(head.fields.tracing());
    let request = head.values(X_REQUEST_ID).next();
    [
        trace.and_then(|trace| gate.correlation.of_trace(trace)),
        request.and_then(|id| gate.correlation.of_request(id)),
    ]
}

impl Propagation {
    /// What is to be done for a request whose key was read; sets `keys` where it is none and that of its
    /// trace is known. `require` is the requirement that came along.
    #[must_use]
    pub fn begin(
        gate: &Gate,
        sampler: Option<Sampler>,
        head: &Head<'_>,
        keys: &mut Option<Keys>,
        require: &str,
        now: Instant,
    ) -> Self {
        let mut begun = Self { sampler, ..Self::default() };
        if !gate.correlation.is_off() {
            match gate.listener.role {
                Role::Gateway if keys.is_some() => begun.trace(gate, head, ids(gate, head)),
                Role::Gateway => {}
                Role::Inbound { .. } => begun.arrive(gate, head, keys, require, now),
                Role::Outbound { .. } => begun.call(gate, head, keys, now),
            }
        }
        begun
    }

    /// A request whose sender may not name anybody's trace; `keyed` where it carries a key that it may choose.
    #[must_use]
    pub fn of_untrusted(gate: &Gate, sampler: Option<Sampler>, head: &Head<'_>, keyed: bool) -> Self {
        let names_trace = |(name, _): (&str, _)| !Name::of(name).is(&X_REQUEST_ID);
        let (needs, correlation) = (keyed && !gate.correlation.is_off(), &gate.correlation);
        let traced = head.fields.tracing().any(names_trace) || (needs && correlation.traces());
        let numbered = head.values(X_REQUEST_ID).next().is_some() || (needs && correlation.request_ids());
        let (parent, request) = (traced.then(|| begin_trace(sampler)), numbered.then(request_id));
        let edit = TraceEdit { parent, request, replaces: true, ..TraceEdit::default() };
        Self { edit, sampler, ..Self::default() }
    }

    /// Whether the request has spans, and what they are called: whatever it is sent to is told ours, of the trace that it
    /// is in. Where it is in none, one may begin here; but not `outside`, among those who are not ours.
    #[must_use]
    pub fn sample(&mut self, head: &Head<'_>, outside: bool) -> Option<SpanIds> {
        let sampler = self.sampler?;
        // What a tunnel is for, the requests in it say.
        if head.method == "CONNECT" {
            return None;
        }
        let came = head.values(TRACEPARENT).next().filter(|_| !self.edit.replaces);
        let (span, parent) = match &self.edit.parent {
            Some(begun) => (Span::read(begun).filter(Span::is_sampled)?, None),
            None if sampler.follows_callers && came.is_some_and(|came| !Span::may_be_sampled(came)) => {
                return None;
            }
            None => match came.and_then(Span::read) {
                Some(caller) if sampler.takes_call(&caller) => (caller, Some(caller.span)),
                Some(_) => return None,
                // One that is only named in another dialect goes on without us: two would fall apart.
                None if outside || self.is_in_a_trace(head) => return None,
                None => (Span::read(&sampled_root(sampler)?)?, None),
            },
        };
        if parent.is_some() {
            self.edit.origin = if names_it(head, &span) { Origin::CameInSeveral } else { Origin::Came };
        }
        let (server, client) = (fastrand::u64(1..), fastrand::u64(1..));
        // What else its flags say is of the trace.
        let flags = span.flags & 0b10 | 1;
        self.edit.parent = Some(Span { trace: span.trace, span: client, flags }.text());
        Some(SpanIds { trace: span.trace, parent, server, client, flags })
    }

    fn is_in_a_trace(&self, head: &Head<'_>) -> bool {
        !self.edit.replaces && TraceId::read(head.fields.tracing()).is_some()
    }

    /// Sees to it that the request has an id: its sender's, where that may give it one and has given a fit one, else one of
    /// our own.
    pub fn identify(&mut self, head: &Head<'_>) {
        if self.edit.request.is_some() {
            return;
        }
        let fit = |id: &&[u8]| (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
        let mut ids = head.values(X_REQUEST_ID);
        match (ids.next().filter(fit), ids.next()) {
            (Some(id), None) if !self.edit.replaces => {
                self.named = String::from_utf8(id.to_vec()).ok().map(Into::into);
            }
            _ => self.edit.request = Some(request_id()),
        }
    }

    /// The id of the request, where requests have ids.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        let given = self.edit.request.as_ref().and_then(|id| std::str::from_utf8(id).ok());
        given.or(self.named.as_deref())
    }

    /// The id with which the request goes on, if any.
    #[must_use]
    pub fn request_id_of<'i>(&'i self, head: &Head<'i>) -> Option<&'i [u8]> {
        match &self.edit.request {
            Some(given) => Some(given),
            None => head.values(X_REQUEST_ID).next().filter(|_| !self.edit.replaces),
        }
    }

    /// The id of the trace with which the request goes on, if any, in hexadecimal digits: all 32 where they are known.
    #[must_use]
    pub fn trace_id_of<'i>(&'i self, head: &Head<'i>) -> Option<Digits<'i>> {
        let whole = match &self.edit.parent {
            Some(own) => return own.get(3..35).map(Digits::Whole),
            None if self.edit.replaces => return None,
            None => head.values(TRACEPARENT).next().and_then(|parent| parent.get(3..)?.first_chunk()),
        };
        let whole = whole.filter(|id| TraceId::of_digits(id).is_some());
        let low = || TraceId::read(head.fields.tracing()).map(|id| Digits::Low(digits(id.get())));
        whole.map(|id| Digits::Whole(id)).or_else(low)
    }

    /// A request for the application behind this sidecar.
    fn arrive(&mut self, gate: &Gate, head: &Head<'_>, keys: &mut Option<Keys>, require: &str, now: Instant) {
        let mut ids = ids(gate, head);
        match &*keys {
            Some(keys) => {
                self.trace(gate, head, ids);
                let [trace, request] = &mut ids;
                *trace = trace.or_else(|| self.edit.trace(gate));
                *request = request.or_else(|| self.edit.request(gate));
                self.remember(gate, ids, keys, require, now);
            }
            None => {
                *keys = self.find(gate, ids, now);
                self.restored = keys.is_some();
            }
        }
        self.unclaimed_before = gate.correlation.unclaimed_calls();
        self.serving = Some(keys.is_some());
        gate.correlation.serving_begins(keys.is_some());
        if keys.is_some() {
            self.known.iter().flatten().for_each(|trace| trace.serving_begins());
        }
    }

    /// A call of the application beside this sidecar.
    fn call(&mut self, gate: &Gate, head: &Head<'_>, keys: &mut Option<Keys>, now: Instant) {
        let ids = ids(gate, head);
        let found = self.find(gate, ids, now);
        let contradicts = self.outcome == Some(Outcome::Contradicting);
        match (&*keys, found) {
            (Some(own), Some(known)) if *own != known => self.outcome = Some(Outcome::Contradicting),
            (Some(_), _) if !contradicts => self.outcome = Some(Outcome::Kept),
            (None, Some(known)) => {
                *keys = Some(known);
                self.restored = true;
                self.outcome = Some(Outcome::Restored);
            }
            _ => {}
        }
        if self.outcome == Some(Outcome::Contradicting) {
            // It is no call of that request.
            self.known = [None, None];
        }
        self.calling = self.known.iter().flatten().next().is_some();
        // One with a trace that is not known is another request's, which has no key.
        self.traced = ids.iter().any(Option::is_some);
        if !self.calling && (!self.traced || keys.is_some()) {
            gate.correlation.unclaimed_call();
        }
        self.known.iter().flatten().for_each(|trace| trace.call_begins());
    }

    /// Whether it is a call that a known request caused.
    #[must_use]
    pub fn is_caused(&self) -> bool {
        self.calling
    }

    /// Leaves the receipts of a call for the answer to the request that caused it.
    pub fn leave(&self, list: &[u8]) {
        if let Some(trace) = self.known.iter().flatten().next().filter(|_| self.calling) {
            trace.leave(list);
        }
    }

    /// The answer to a call is about to begin: whom it reached is told, and it is not under way any more. Later
    /// is too late: the application may answer in its turn before its sidecar knows that all was sent.
    pub fn call_ends(&self) {
        if self.calling && !self.told.swap(true, Ordering::SeqCst) {
            self.known.iter().flatten().for_each(|trace| trace.call_ends());
        }
    }

    /// What the calls of this request left so far. Where calls do not pass here, or cannot be told whose
    /// they are, they are missing.
    #[must_use]
    pub fn take_calls(&self, gate: &Gate) -> Calls {
        let mut calls = Calls::default();
        for trace in self.known.iter().flatten() {
            let Calls { left, missing } = trace.take();
            calls.left.extend(left);
            calls.missing |= missing;
        }
        calls.missing |= !gate.correlation.sees_calls()
            || self.known.iter().flatten().next().is_none()
            || gate.correlation.unclaimed_calls() != self.unclaimed_before;
        calls
    }

    fn remember(&mut self, gate: &Gate, ids: Ids, keys: &Keys, require: &str, now: Instant) {
        for (at, id) in ids.into_iter().enumerate() {
            match id.map(|id| gate.correlation.remember(id, keys, require, now)) {
                None | Some(Found::Unknown) => {}
                Some(Found::Known(trace)) => self.known[at] = Some(trace),
                Some(Found::Conflicted(trace)) => self.conflicted[at] = Some(trace),
            }
        }
    }

    /// The key of the first id that is known; none where two keys came under one.
    fn find(&mut self, gate: &Gate, ids: Ids, now: Instant) -> Option<Keys> {
        for (at, id) in ids.into_iter().enumerate() {
            match id.map(|id| gate.correlation.find(id, now)) {
                None | Some(Found::Unknown) => {}
                Some(Found::Conflicted(trace)) => {
                    self.conflicted[at] = Some(trace);
                    self.outcome = Some(Outcome::Contradicting);
                    return None;
                }
                Some(Found::Known(trace)) => return Some(self.known[at].insert(trace).keys().clone()),
            }
        }
        None
    }

    /// Gives a request with a key a trace where it has none, and a request id where that is asked for.
    fn trace(&mut self, gate: &Gate, head: &Head<'_>, [trace, request]: Ids) {
        let correlation = &gate.correlation;
        if trace.is_none() && correlation.traces() && TraceId::read(head.fields.tracing()).is_none() {
            self.edit.parent = Some(begin_trace(self.sampler));
        }
        if request.is_none() && correlation.request_ids() {
            self.edit.request = Some(request_id());
        }
    }

    /// The requirement that was restored with the key.
    #[must_use]
    pub fn require(&self) -> Option<Arc<Box<str>>> {
        if !self.restored {
            return None;
        }
        self.known.iter().flatten().find_map(|trace| trace.require())
    }

    /// Whether the key was restored.
    #[must_use]
    pub fn restored(&self) -> bool {
        self.restored
    }

    /// Whether a field of the request's head stays behind.
    #[must_use]
    pub fn removes(&self, name: Name<'_>) -> bool {
        name.is_tracing() && self.edit.removes(name)
    }

    /// Appends the field lines that name the request's trace, where it got one here, or a span of ours. One that begins here
    /// is named in all dialects that OpenTelemetry has everywhere, since a tracer that cannot read it begins another.
    pub fn add_lines(&self, out: &mut Vec<u8>) {
        match (&self.edit.parent, self.edit.origin) {
            (None, _) => {}
            (Some(parent), Origin::Came) => line(out, TRACEPARENT.text(), parent),
            (Some(parent), Origin::Here | Origin::CameInSeveral) => {
                out.extend_from_slice(&trace_lines(parent));
            }
        }
        if let Some(id) = &self.edit.request {
            line(out, REQUEST_ID, id);
        }
    }

    /// Counts the call of an application to the service `peer`, and says what became of the key, where that is known; `stamped` where it got the key of its own
    /// environment.
    pub fn count_call(
        &self,
        gate: &Gate,
        head: &Head<'_>,
        peer: &ServiceName,
        stamped: bool,
    ) -> Option<Outcome> {
        let outcome = match self.outcome {
            Some(outcome) => outcome,
            None if stamped => Outcome::Stamped,
            None if !gate.correlation.is_serving(true) => return None,
            None if self.traced && gate.correlation.works_without_key() => Outcome::Unclear,
            None => Outcome::Lost,
        };
        let lost = matches!(outcome, Outcome::Lost | Outcome::Contradicting);
        let language =
            if lost { Language::of_agent(head.values(USER_AGENT).next()) } else { Language::Unknown };
        let service = match &gate.listener.role {
            Role::Outbound { service, .. } => service.clone(),
            _ => None,
        };
        count_call(Call { service, peer: peer.clone(), outcome, language });
        Some(outcome)
    }

    /// The request is over.
    pub fn end(&self, gate: &Gate) {
        if let Some(keyed) = self.serving {
            gate.correlation.serving_ends(keyed);
        }
        if self.serving == Some(true) {
            self.known.iter().flatten().for_each(|trace| trace.serving_ends());
        }
        self.call_ends();
    }
}

impl TraceEdit {
    fn removes(&self, name: Name<'_>) -> bool {
        if self.replaces {
            return true;
        }
        // A trace that begins here has no state yet, and whatever stood in its place was no trace.
        let parents: &[Name<'_>] = match (&self.parent, self.origin) {
            (None, _) => &[],
            (Some(_), Origin::Here) => &[TRACEPARENT, TRACESTATE, B3, UBER_TRACE_ID],
            (Some(_), Origin::Came) => &[TRACEPARENT],
            (Some(_), Origin::CameInSeveral) => &[TRACEPARENT, B3, UBER_TRACE_ID],
        };
        parents.iter().any(|own| name.is(own)) || (self.request.is_some() && name.is(&X_REQUEST_ID))
    }

    fn trace(&self, gate: &Gate) -> Option<Id> {
        let parent = self.parent.as_ref()?;
        gate.correlation.of_trace(TraceId::read([("traceparent", &parent[..])])?)
    }

    fn request(&self, gate: &Gate) -> Option<Id> {
        gate.correlation.of_request(self.request.as_ref()?)
    }
}

/// The lines that name a trace, each `t` a digit of its id, each `s` one of its span, each `f` whether it is sampled.
const TRACE_LINES: [u8; 197] = *b"traceparent: 00-tttttttttttttttttttttttttttttttt-ssssssssssssssss-0f\r\n\
b3: tttttttttttttttttttttttttttttttt-ssssssssssssssss-f\r\n\
uber-trace-id: tttttttttttttttttttttttttttttttt:ssssssssssssssss:0:f\r\n";
/// Where the digits of its id begin in them; those of the span stand one further.
const TRACES: [usize; 3] = [16, 74, 142];
/// Where it is said in them whether it is sampled.
const SAMPLED: [usize; 3] = [67, 124, 194];

fn trace_lines(parent: &Traceparent) -> [u8; 197] {
    let mut lines = TRACE_LINES;
    for at in TRACES {
        lines[at..at + 32].copy_from_slice(&parent[3..35]);
        lines[at + 33..at + 49].copy_from_slice(&parent[36..52]);
    }
    for at in SAMPLED {
        lines[at] = b'0' + (parent[54] & 1);
    }
    lines
}

/// A trace that begins here: sampled where nobody says which are, since what tests with a key did is worth seeing.
fn begin_trace(sampler: Option<Sampler>) -> Traceparent {
    let low = fastrand::u64(1..);
    begun(low, sampler.is_none_or(|sampler| sampler.takes(low)))
}

/// The same, where it is sampled.
fn sampled_root(sampler: Sampler) -> Option<Traceparent> {
    let low = fastrand::u64(1..);
    sampler.takes(low).then(|| begun(low, true))
}

/// A trace whose id ends with these 64 bits.
fn begun(low: u64, sampled: bool) -> Traceparent {
    let trace = u128::from(fastrand::u64(1..)) << 64 | u128::from(low);
    Span { trace, span: fastrand::u64(1..), flags: u8::from(sampled) }.text()
}

/// Whether a request names the trace of this span in other dialects besides.
fn names_it(head: &Head<'_>, span: &Span) -> bool {
    // The low half.
    let own = TraceId::new(span.trace as u64).or_else(|| TraceId::new((span.trace >> 64) as u64));
    [B3, UBER_TRACE_ID].into_iter().any(|dialect| {
        head.values(dialect).next().is_some_and(|value| TraceId::read([(dialect.text(), value)]) == own)
    })
}

fn request_id() -> RequestId {
    let mut text = [0; 32];
    text[..16].copy_from_slice(&digits(fastrand::u64(..)));
    text[16..].copy_from_slice(&digits(fastrand::u64(..)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_begins_here_is_named_in_each_dialect() {
        let parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let lines = trace_lines(parent);
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let expected = format!(
            "traceparent: 00-{trace}-{span}-01\r\nb3: {trace}-{span}-1\r\nuber-trace-id: {trace}:{span}:0:1\r\n"
        );
        assert_eq!(std::str::from_utf8(&lines), Ok(&*expected));
        let unsampled = trace_lines(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        let expected = format!(
            "traceparent: 00-{trace}-{span}-00\r\nb3: {trace}-{span}-0\r\nuber-trace-id: {trace}:{span}:0:0\r\n"
        );
        assert_eq!(std::str::from_utf8(&unsampled), Ok(&*expected));
    }
}
