//! What becomes of the heads: of the request on its way upstream, and of its response.

use overlane_config::carrier::FieldLines;
use overlane_config::carrier::trace::REQUEST_ID;
use overlane_config::route::{HOP_HEADER, HOPS_HEADER, REQUIRE_HEADER, Role};

use super::key::required;
use super::target::Target;
use super::{
    BAGGAGE, COOKIE, Exchange, HOP, HOPS, REQUIRE, ROUTE, STRICT_TRANSPORT_SECURITY, X_REQUEST_ID, line,
};
use crate::h1::Name;
use crate::h1::request::Head;
use crate::plane::bearer::{AUTHORIZATION, TOKEN};
use crate::plane::edge::{self, Visit};
use crate::plane::forwarded::Forwarding;
use crate::plane::standing::Standing;

impl Exchange {
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
}

/// A number of at most two digits as text.
fn decimal(number: u8, digits: &mut [u8; 2]) -> &[u8] {
    *digits = [b'0' + number / 10, b'0' + number % 10];
    &digits[usize::from(number < 10)..]
}
