//! What a request asks for: whose key counts, and what it says about its way.

use std::borrow::Cow;
use std::net::SocketAddr;

use overlane_config::carrier::{Carriers, Keys, Seen};
use overlane_config::name::{HeaderName, TOKEN_HEADER};
use overlane_config::route::{HOP_HEADER, HOPS_HEADER, REQUIRE_HEADER, Refusal, Request};

use super::{HOP, HOPS, REQUIRE, ROUTE};
use crate::h1::request::Head;
use crate::h1::{Known, Name};
use crate::metrics::{Event, count, count_invalid_key};
use crate::plane::Gate;
use crate::plane::answer::Answer;
use crate::plane::edge::{self, Entered, Visit};
use crate::plane::standing::{Right, Standing};
use crate::snapshot::Snapshot;

/// What a request says about its way, in bytes of its head.
pub(super) struct Inquiry<'h> {
    pub(super) head: &'h Head<'h>,
    pub(super) hop: Option<Cow<'h, str>>,
    pub(super) require: Cow<'h, str>,
    /// Where the connection was meant to go, if it was intercepted.
    pub(super) meant: Option<SocketAddr>,
    /// Whether its sender may know what there is.
    pub(super) trusted: bool,
}

impl<'h> Inquiry<'h> {
    /// What somebody without a right says is not read, and marks only of who may choose any overlay. A requirement
    /// that came with the request counts before one that was restored with its key.
    pub(super) fn read(head: &'h Head<'h>, standing: &Standing, key: &Key) -> Self {
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

    pub(super) fn with(self, restored: Option<&'h str>) -> Self {
        match restored {
            Some(restored) if self.require.is_empty() => Self { require: restored.into(), ..self },
            _ => self,
        }
    }

    pub(super) fn request<'r>(&'r self, key: &'r Key) -> Request<'r> {
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

/// Whose key counts, and what it is.
pub(super) struct Key {
    /// The header that carries it at this listener.
    pub(super) header: HeaderName,
    /// What that header is among those that somebody looks for.
    pub(super) known: Known,
    /// The key that the request carries, where its sender may choose it.
    pub(super) keys: Option<Keys>,
    /// Whether overlay headers must be removed: the sender may not choose what they name.
    pub(super) untrusted: bool,
    /// Whether another carrier names another key.
    pub(super) contradicted: bool,
    /// What a browser's request needs, at a gateway.
    pub(super) visit: Option<Box<Visit>>,
}

impl Key {
    pub(super) fn read(
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
    pub(super) fn enter(
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
    pub(super) fn name(&self) -> Name<'_> {
        Name::told(self.header.as_str(), self.known)
    }

    /// The answer to a field that an application could take for one of ours.
    pub(super) fn imitated(&self, carriers: &Carriers, head: &Head<'_>) -> Option<Answer> {
        let ours = [self.header.as_str(), HOP_HEADER, HOPS_HEADER, REQUIRE_HEADER, TOKEN_HEADER];
        let mut foreign = carriers.written_headers().map(|(_, name)| name.as_str());
        let imitated = head.fields.imitated(&ours);
        imitated.or_else(|| foreign.find_map(|name| head.fields.imitated(&[name]))).map(imitation)
    }
}

/// The lines of a requirement; an empty one requires nothing, and is as none.
pub(super) fn required<'b>(head: &Head<'b>) -> impl Iterator<Item = &'b [u8]> + use<'b> {
    head.values(REQUIRE).filter(|line| !line.is_empty())
}

/// The answer to a header that an application could take for one of ours, and that nobody here reads.
fn imitation(name: &str) -> Answer {
    let message = format!("a header has underscores where `{name}` has dashes");
    let hint = Some(format!("send `{name}`, or leave it out"));
    Answer { hint, ..Answer::plain(400, "http_request_error", "malformed", message) }
}
