//! The edits of a request's head, as plain data for every engine.

use super::{Served, To};
use crate::carrier::{Keys, baggage};
use crate::name::EnvironmentId;

/// What to do with `baggage` on the way upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaggageEdit {
    /// Leave it as it came.
    Untouched,
    /// Replace all lines by our own member, with the key that the request travels on with.
    Own,
    /// Replace all lines by this one.
    Set(Vec<u8>),
    /// Remove it.
    Remove,
}

/// The edits of a request's head on its way upstream: plain data for every engine.
///
/// Every engine also removes [`HOP_HEADER`](super::HOP_HEADER) and the key's header before it applies these, so that
/// what a client nominates in `Connection` or sends twice cannot survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits {
    /// The value of the key's header; `None` leaves it off.
    pub key: Option<Keys>,
    /// What becomes of `baggage`.
    pub baggage: BaggageEdit,
    /// The value of [`HOP_HEADER`](super::HOP_HEADER).
    pub hop: Option<EnvironmentId>,
    /// Whether [`REQUIRE_HEADER`](super::REQUIRE_HEADER) travels on.
    pub require: bool,
}

impl Edits {
    /// The edits for a request that is served; `lines` are the lines of its `baggage`.
    pub fn serve<'l, U>(served: &Served<'_, U>, lines: impl Iterator<Item = &'l [u8]> + Clone) -> Self {
        let hop = match &served.to {
            To::Upstream { route, marked: true } => Some(route.environment.clone()),
            _ => None,
        };
        Self {
            key: served.onward.clone(),
            baggage: edit_baggage(lines, served.onward.as_ref()),
            hop,
            require: true,
        }
    }

    /// Appends the line that `baggage` becomes to `out`; false where it has none, or is left as it came.
    pub fn write_baggage(&self, out: &mut Vec<u8>) -> bool {
        match (&self.baggage, &self.key) {
            (BaggageEdit::Own, Some(keys)) => baggage::write_own(keys, out),
            (BaggageEdit::Set(line), _) => out.extend_from_slice(line),
            _ => return false,
        }
        true
    }

    /// The edits for a request that passes through: nothing of ours leaves.
    pub fn pass_through<'l>(lines: impl Iterator<Item = &'l [u8]> + Clone) -> Self {
        Self { key: None, baggage: edit_baggage(lines, None), hop: None, require: false }
    }
}

fn edit_baggage<'l>(lines: impl Iterator<Item = &'l [u8]> + Clone, keys: Option<&Keys>) -> BaggageEdit {
    if keys.is_some() && baggage::foreign(lines.clone()).next().is_none() {
        return BaggageEdit::Own;
    }
    let ours = baggage::read(lines.clone());
    match (keys, ours) {
        // No key, and no member of ours or one that means nothing to us: it travels untouched.
        (None, Ok(None) | Err(_)) => BaggageEdit::Untouched,
        _ => baggage::rewrite(lines, keys).map_or(BaggageEdit::Remove, BaggageEdit::Set),
    }
}
