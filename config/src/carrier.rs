//! Carriers: where the overlay key travels, and what it looks like inside.
//!
//! Whatever carrier a key arrives in, inside it is one [`Keys`]: the ids in order, as the text that
//! leaves in the header. It is kept inline so that reading a key allocates nothing.

pub mod baggage;
pub mod header;

use std::fmt;

use crate::name::{MAX_LABEL, is_label, printable};

/// The most ids that one request may name.
pub const MAX_KEYS: usize = 8;

const CAPACITY: usize = MAX_KEYS * (MAX_LABEL + 2);

/// The overlay ids that a request names: one to eight valid ids, in order, without duplicates.
#[derive(Clone, Copy)]
pub struct Keys {
    length: u16,
    bytes: [u8; CAPACITY],
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrived {
    /// The key: that of our own header, else that of `baggage`.
    pub keys: Option<Keys>,
    /// Whether a baggage member of ours was ignored because it holds no valid id.
    pub ignored: bool,
}

/// Reads the key from the lines of our own header and of `baggage`.
///
/// # Errors
/// Our own header holds what is no id.
pub fn read<'l>(
    own: impl IntoIterator<Item = &'l [u8]>,
    baggage: impl IntoIterator<Item = &'l [u8]>,
) -> Result<Arrived, InvalidKey> {
    if let Some(keys) = header::read(own)? {
        return Ok(Arrived { keys: Some(keys), ignored: false });
    }
    Ok(match baggage::read(baggage) {
        Ok(keys) => Arrived { keys, ignored: false },
        Err(_) => Arrived { keys: None, ignored: true },
    })
}

impl Keys {
    /// The ids in comma-separated `lists`; `None` where there is none at all.
    ///
    /// # Errors
    /// [`InvalidKey`] for the first item that is not an id, and for a ninth id.
    pub fn parse<'l>(lists: impl IntoIterator<Item = &'l [u8]>) -> Result<Option<Self>, InvalidKey> {
        let mut keys = Self { length: 0, bytes: [0; CAPACITY] };
        for list in lists {
            for item in list.split(|b| *b == b',') {
                let item = item.trim_ascii();
                if !item.is_empty() {
                    keys.push(item)?;
                }
            }
        }
        Ok((keys.length > 0).then_some(keys))
    }

    /// One id.
    #[must_use]
    pub fn one(id: &crate::name::EnvironmentId) -> Self {
        let mut keys = Self { length: 0, bytes: [0; CAPACITY] };
        keys.append(id.as_str().as_bytes());
        keys
    }

    /// Those ids for which `keep` holds; `None` where none is left.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Option<Self> {
        let mut keys = Self { length: 0, bytes: [0; CAPACITY] };
        for id in self.iter().filter(|id| keep(id)) {
            keys.append(id.as_bytes());
        }
        (keys.length > 0).then_some(keys)
    }

    /// The ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.as_str().split(", ")
    }

    /// The ids as they leave in a header: `a, b`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    fn push(&mut self, id: &[u8]) -> Result<(), InvalidKey> {
        if !is_label(id) {
            return Err(InvalidKey::NotAnId(printable(&String::from_utf8_lossy(id), 80)));
        }
        if self.length > 0 {
            if self.iter().any(|known| known.as_bytes() == id) {
                return Ok(());
            }
            if self.iter().count() == MAX_KEYS {
                return Err(InvalidKey::TooMany);
            }
        }
        self.append(id);
        Ok(())
    }

    fn append(&mut self, id: &[u8]) {
        for part in [if self.length > 0 { &b", "[..] } else { &[] }, id] {
            let at = usize::from(self.length);
            self.bytes[at..at + part.len()].copy_from_slice(part);
            self.length += u16::try_from(part.len()).unwrap_or_default();
        }
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Keys {}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
