//! Carriers: where the overlay key travels, and what it looks like inside.
//!
//! Whatever carrier a key arrives in, inside it is one [`Keys`]: the ids in order, as the text that
//! leaves in the header. [`Carriers`] says which carriers are read, in order, and which are written.

pub mod baggage;
mod carriers;
pub mod cookie;
mod form;
pub mod header;
mod hosts;
mod percent;
mod preset;
pub mod trace;
pub mod tracestate;

use std::fmt;

use arrayvec::ArrayString;

use crate::name::{MAX_LABEL, is_label, printable};

pub use carriers::{Carrier, CarrierError, Carriers, Place, Seen};
pub use form::Form;
pub use hosts::{HostPattern, Hosts};
pub use preset::{PRESETS, Preset};

/// The most ids that one request may name.
pub const MAX_KEYS: usize = 8;

/// The overlay ids that a request names: one to eight valid ids, in order, without duplicates.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Ids);

/// One id, as nearly every request has it, is kept inline: reading it allocates nothing.
#[derive(Clone, PartialEq, Eq)]
enum Ids {
    One(ArrayString<MAX_LABEL>),
    Several(Box<str>),
}

/// Why a text names no overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidKey {
    /// An item is not a valid id; the text is escaped and shortened.
    NotAnId(String),
    /// More than eight ids.
    TooMany,
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnId(text) => write!(
                f,
                "`{text}` is not an overlay id: lower-case letters, digits and single dashes, at most {MAX_LABEL} bytes"
            ),
            Self::TooMany => write!(f, "more than {MAX_KEYS} overlay ids in one request"),
        }
    }
}

impl std::error::Error for InvalidKey {}

/// What the carriers of a request say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrived {
    /// The key: that of the first carrier that holds one.
    pub keys: Option<Keys>,
    /// Whether another carrier holds another key.
    pub contradicted: bool,
}

/// The field lines of a request's head, as carriers look at them.
pub trait FieldLines {
    /// The values of the lines with this name, whatever its case, in order.
    fn lines<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f [u8]> + Clone;
}

impl<N: AsRef<str>, V: AsRef<[u8]>> FieldLines for [(N, V)] {
    fn lines<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f [u8]> + Clone {
        let called = move |(own, _): &&(N, V)| own.as_ref().eq_ignore_ascii_case(name);
        self.iter().filter(called).map(|(_, value)| value.as_ref())
    }
}

impl Keys {
    /// The ids in comma-separated `lists`; `None` where there is none at all.
    ///
    /// # Errors
    /// [`InvalidKey`] for the first item that is not an id, and for a ninth id.
    pub fn parse<'l>(lists: impl IntoIterator<Item = &'l [u8]>) -> Result<Option<Self>, InvalidKey> {
        let mut lists = lists.into_iter();
        let Some(first) = lists.next() else { return Ok(None) };
        let second = lists.next();
        // Nearly every request has one id, on one line.
        match label(first) {
            Some(id) if second.is_none() => Ok(Some(Self::inline(id))),
            _ => Self::parse_lists(&mut [Some(first), second].into_iter().flatten().chain(lists)),
        }
    }

    fn parse_lists(lists: &mut dyn Iterator<Item = &[u8]>) -> Result<Option<Self>, InvalidKey> {
        let mut items = lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        items.try_fold(None, |keys, item| if item.is_empty() { Ok(keys) } else { Self::and(keys, item) })
    }

    /// These keys, and the id `item` after them, unless it is among them.
    fn and(keys: Option<Self>, item: &[u8]) -> Result<Option<Self>, InvalidKey> {
        let Some(id) = label(item) else {
            return Err(InvalidKey::NotAnId(printable(&String::from_utf8_lossy(item), 80)));
        };
        Ok(Some(match keys {
            None => Self::inline(id),
            Some(keys) if keys.iter().any(|known| known == id) => keys,
            Some(keys) if keys.iter().count() == MAX_KEYS => return Err(InvalidKey::TooMany),
            Some(keys) => keys.followed_by(id),
        }))
    }

    /// One id.
    #[must_use]
    pub fn one(id: &crate::name::EnvironmentId) -> Self {
        Self::inline(id.as_str())
    }

    /// Those ids for which `keep` holds; `None` where none is left.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Option<Self> {
        self.iter().filter(|id| keep(id)).fold(None, |keys: Option<Self>, id| {
            Some(keys.map_or_else(|| Self::inline(id), |keys| keys.followed_by(id)))
        })
    }

    /// The ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(self.as_str());
        std::iter::from_fn(move || {
            let text = rest?;
            let (id, after) = match &self.0 {
                Ids::One(_) => (text, None),
                Ids::Several(_) => {
                    text.split_once(", ").map_or((text, None), |(id, after)| (id, Some(after)))
                }
            };
            rest = after;
            Some(id)
        })
    }

    /// The id, where it is only one.
    fn only(&self) -> Option<&str> {
        match &self.0 {
            Ids::One(id) => Some(id),
            Ids::Several(_) => None,
        }
    }

    /// The ids as they leave in a header: `a, b`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Ids::One(id) => id,
            Ids::Several(text) => text,
        }
    }

    /// `id` is a label: it fits.
    fn inline(id: &str) -> Self {
        Self(Ids::One(ArrayString::from(id).unwrap_or_default()))
    }

    fn followed_by(&self, id: &str) -> Self {
        Self(Ids::Several([self.as_str(), ", ", id].concat().into()))
    }
}

fn label(item: &[u8]) -> Option<&str> {
    is_label(item).then(|| std::str::from_utf8(item).ok())?
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
