//! The edits of a request's head, as plain data for every engine.

use super::{Served, To};
use crate::browser::is_our_cookie;
use crate::carrier::{Carrier, Carriers, FieldLines, Keys, Place, baggage, cookie};
use crate::name::EnvironmentId;

/// What to do with all lines of a field on the way upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldEdit {
    /// Leave them as they came.
    Untouched,
    /// Replace them by our own members alone, with the key that the request travels on with.
    Own,
    /// Replace them by this line.
    Set(Vec<u8>),
    /// Remove them.
    Remove,
}

impl FieldEdit {
    /// Whether the lines stay as they came.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        matches!(self, Self::Untouched)
    }
}

/// How far the sender and the receiver of a request may see its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Among {
    /// Both are ours.
    Us,
    /// Whoever gets it is outside: nothing of ours leaves.
    Outside,
    /// Whoever sent it is not trusted: nothing that names an overlay travels on.
    Untrusted,
}

/// The edits of a request's head on its way upstream: plain data for every engine.
///
/// Every engine removes the fields that [`Edits::removes_own`] and [`Edits::removes_header`] tell, and our headers
/// that are for one hop, before it adds [`Edits::write_lines`], so that what a client nominates in `Connection` or
/// sends twice cannot survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits {
    /// The key in all carriers that are written; `None` leaves it off.
    pub key: Option<Keys>,
    /// What becomes of `baggage`.
    pub baggage: FieldEdit,
    /// What becomes of `cookie`.
    pub cookie: FieldEdit,
    /// The value of [`HOP_HEADER`](super::HOP_HEADER).
    pub hop: Option<EnvironmentId>,
    /// Whether [`REQUIRE_HEADER`](super::REQUIRE_HEADER) travels on.
    pub require: bool,
    among: Among,
    /// The written carriers, by number, that hold nothing of ours and travel on as they came.
    untouched: u64,
}

impl Edits {
    /// The edits for a request that is served; `untrusted` where overlay headers of its sender are removed.
    pub fn serve<U>(
        served: &Served<'_, U>,
        carriers: &Carriers,
        fields: &(impl FieldLines + ?Sized),
        untrusted: bool,
    ) -> Self {
        let hop = match &served.to {
            To::Upstream { route, marked: true } => Some(route.environment.clone()),
            _ => None,
        };
        let among = if untrusted { Among::Untrusted } else { Among::Us };
        let edits = Self::new(served.onward.clone(), hop, among, carriers, fields);
        Self { cookie: edits.edit_cookie(carriers, fields, is_our_cookie), ..edits }
    }

    /// The edits for a request that passes through to a host outside: nothing of ours leaves.
    pub fn pass_through(carriers: &Carriers, fields: &(impl FieldLines + ?Sized), untrusted: bool) -> Self {
        let among = if untrusted { Among::Untrusted } else { Among::Outside };
        Self::new(None, None, among, carriers, fields)
    }

    /// The edits for a request that passes through to a host for which the key is kept.
    pub fn keep(
        onward: Option<Keys>,
        carriers: &Carriers,
        fields: &(impl FieldLines + ?Sized),
        untrusted: bool,
    ) -> Self {
        let among = if untrusted { Among::Untrusted } else { Among::Us };
        Self::new(onward, None, among, carriers, fields)
    }

    fn new(
        key: Option<Keys>,
        hop: Option<EnvironmentId>,
        among: Among,
        carriers: &Carriers,
        fields: &(impl FieldLines + ?Sized),
    ) -> Self {
        let untouched = match (among, &key) {
            (Among::Us, None) => unread(carriers, fields),
            _ => 0,
        };
        let require = among == Among::Us;
        let (baggage, cookie) = (FieldEdit::Untouched, FieldEdit::Untouched);
        let mut edits = Self { key, baggage, cookie, hop, require, among, untouched };
        edits.baggage = edits.edit_baggage(carriers, fields);
        edits.cookie = edits.edit_cookie(carriers, fields, |_| false);
        edits
    }

    /// The carriers whose lines or members stay behind here.
    fn replaced<'c>(&self, carriers: &'c Carriers) -> impl Iterator<Item = &'c Carrier> + use<'c> {
        let untouched = self.untouched;
        let written = carriers.written().iter().enumerate();
        let written =
            written.filter(move |(number, _)| untouched & 1 << *number == 0).map(|(_, carrier)| carrier);
        let read = if self.among == Among::Untrusted { carriers.read_list() } else { &[] };
        written.chain(read)
    }

    fn edit_baggage(&self, carriers: &Carriers, fields: &(impl FieldLines + ?Sized)) -> FieldEdit {
        let lines = fields.lines("baggage");
        let writes = self.key.is_some() && carriers.writes_baggage();
        if lines.clone().next().is_none() {
            return if writes { FieldEdit::Own } else { FieldEdit::Untouched };
        }
        let ours = |key: &[u8]| {
            let named =
                |carrier: &Carrier| matches!(carrier.place(), Place::Baggage(name) if name.as_bytes() == key);
            (self.among != Among::Us && key == baggage::MEMBER.as_bytes())
                || self.replaced(carriers).any(named)
        };
        if writes && baggage::foreign(lines.clone(), ours).next().is_none() {
            return FieldEdit::Own;
        }
        if !writes && !baggage::any(lines.clone(), ours) {
            return FieldEdit::Untouched;
        }
        let mut own = Vec::new();
        self.write_own_members(carriers, &mut own);
        baggage::rewrite(lines, ours, &own).map_or(FieldEdit::Remove, FieldEdit::Set)
    }

    /// The cookies without those for which `ours` holds and, of an untrusted sender, without those that could name
    /// an overlay.
    fn edit_cookie(
        &self,
        carriers: &Carriers,
        fields: &(impl FieldLines + ?Sized),
        ours: impl Fn(&[u8]) -> bool,
    ) -> FieldEdit {
        let named = |key: &[u8]| {
            let is =
                |carrier: &Carrier| matches!(carrier.place(), Place::Cookie(name) if name.as_bytes() == key);
            self.among == Among::Untrusted && carriers.read_list().iter().any(is)
        };
        let ours = |key: &[u8]| ours(key) || named(key);
        if !cookie::any(fields.lines("cookie"), ours) {
            return FieldEdit::Untouched;
        }
        cookie::without(fields.lines("cookie"), ours).map_or(FieldEdit::Remove, FieldEdit::Set)
    }

    /// Appends our own members of `baggage`.
    fn write_own_members(&self, carriers: &Carriers, out: &mut Vec<u8>) {
        let Some(keys) = &self.key else { return };
        let start = out.len();
        for carrier in carriers.written() {
            if let Place::Baggage(_) = carrier.place() {
                if out.len() > start {
                    out.push(b',');
                }
                carrier.write(keys, out);
            }
        }
    }

    /// Whether the lines of the baseline's own header stay behind, or are replaced.
    #[must_use]
    pub fn removes_own(&self, carriers: &Carriers) -> bool {
        carriers.writes_own() || self.among != Among::Us
    }

    /// Whether the lines of this header stay behind, or are replaced, since it is a foreign carrier.
    #[must_use]
    pub fn removes_header(&self, carriers: &Carriers, name: &str) -> bool {
        (carriers.writes_headers() && self.replaces_header(carriers, name))
            || (self.among == Among::Untrusted && is_read(carriers, name))
    }

    fn replaces_header(&self, carriers: &Carriers, name: &str) -> bool {
        let mut headers = carriers.written_headers();
        headers.any(|(number, header)| {
            self.untouched & 1 << number == 0 && name.eq_ignore_ascii_case(header.as_str())
        })
    }

    /// Appends the field lines in which the key travels on, each with its line end; `own` is the baseline's
    /// own header.
    pub fn write_lines(&self, carriers: &Carriers, own: &str, out: &mut Vec<u8>) {
        if let Some(keys) = &self.key {
            for carrier in carriers.written() {
                match carrier.place() {
                    Place::Own => line(out, own, |out| out.extend_from_slice(keys.as_str().as_bytes())),
                    Place::Header(name) if !(carriers.writes_own() && name.as_str() == own) => {
                        line(out, name.as_str(), |out| carrier.write(keys, out));
                    }
                    _ => {}
                }
            }
        }
        match &self.baggage {
            FieldEdit::Own => line(out, "baggage", |out| self.write_own_members(carriers, out)),
            FieldEdit::Set(value) => line(out, "baggage", |out| out.extend_from_slice(value)),
            FieldEdit::Untouched | FieldEdit::Remove => {}
        }
        if let FieldEdit::Set(value) = &self.cookie {
            line(out, "cookie", |out| out.extend_from_slice(value));
        }
    }
}

/// Whether keys are read from this foreign header.
fn is_read(carriers: &Carriers, name: &str) -> bool {
    let named = |carrier: &Carrier| matches!(carrier.place(), Place::Header(header) if name.eq_ignore_ascii_case(header.as_str()));
    carriers.read_list().iter().any(named)
}

fn line(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    value(out);
    out.extend_from_slice(b"\r\n");
}

/// The numbers of the written carriers that hold what is no key: where no key replaces it, it travels on.
fn unread(carriers: &Carriers, fields: &(impl FieldLines + ?Sized)) -> u64 {
    let written = carriers.written().iter().enumerate();
    let foreign = written.filter(|(_, carrier)| *carrier.place() != Place::Own);
    let invalid = foreign.filter(|(_, carrier)| carrier.read("", fields).is_err());
    invalid.fold(0, |numbers, (number, _)| numbers | 1 << number)
}
