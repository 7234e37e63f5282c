//! Receipts: who served each hop of a request, in the header of its response.
//!
//! A receipt is one item of a structured-field list (RFC 9651):
//! `payments-api;env=alice-payments;via=overlay;reason=owned;hop=k3vq7d2a;parent=bx52mr4e`. The list is
//! a tree, written from its leaves to its root: what is nearer to the origin comes first, and `parent`
//! names the hop that made the call. Each hop appears once; [`assemble`] has the rule.

mod read;

use std::fmt;
use std::str;

use arrayvec::ArrayVec;

use super::{Reason, Via};
use crate::name::{EnvironmentId, ServiceName};
use read::each;

/// The most items of a list.
pub const MAX_ITEMS: usize = 128;
/// The most bytes of a list.
pub const MAX_BYTES: usize = 8 * 1024;

/// What one proxy knows of who served: `payments-api;env=alice-payments;via=overlay;reason=owned`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The service.
    pub service: ServiceName,
    /// Who served it.
    pub environment: EnvironmentId,
    /// Whose answer that is, seen from the key.
    pub via: Via,
    /// Why.
    pub reason: Reason,
}

impl Receipt {
    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.parts(|part| out.extend_from_slice(part.as_bytes()));
    }

    fn parts(&self, mut part: impl FnMut(&str)) {
        label(self.service.as_str(), &mut part);
        part(";env=");
        label(self.environment.as_str(), &mut part);
        for rest in [";via=", self.via.as_str(), ";reason=", self.reason.as_str()] {
            part(rest);
        }
    }

    fn length(&self) -> usize {
        let mut length = 0;
        self.parts(|part| length += part.len());
        length
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = Ok(());
        self.parts(|part| written = written.and_then(|()| f.write_str(part)));
        written
    }
}

/// A label as a structured-field token, or as a string where it begins with a digit (RFC 9651, 3.3.4).
fn label(label: &str, part: &mut impl FnMut(&str)) {
    let quote = if label.starts_with(|first: char| first.is_ascii_alphabetic()) { "" } else { "\"" };
    [quote, label, quote].into_iter().for_each(part);
}

/// The name of one hop, unique in the tree: a letter and seven characters of base32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop([u8; Self::LENGTH]);

impl Hop {
    /// Of base32, in lower case (RFC 4648, section 6). A token begins with a letter; the first half are.
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    const LENGTH: usize = 8;

    /// The name that 39 of these bits make. They must be random: processes do not know of each other.
    #[must_use]
    pub fn new(random: u64) -> Self {
        let of = |bits: u64, letters| Self::ALPHABET[usize::from(bits.to_le_bytes()[0]) % letters];
        let mut name = [of(random, 16); Self::LENGTH];
        for (at, byte) in name.iter_mut().enumerate().skip(1) {
            *byte = of(random >> (5 * at - 1), 32);
        }
        Self(name)
    }

    /// The name as a number: its bytes as they are in memory, which is never 0.
    #[must_use]
    pub fn bits(&self) -> u64 {
        u64::from_le_bytes(self.0)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What is said of a hop besides who served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks(u8);

impl Marks {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Calls that it made may be missing.
    pub const PARTIAL: Self = Self(1);
    /// Its carriers named different keys.
    pub const CONTRADICTED: Self = Self(2);
    /// It came without the key, which its trace gave back.
    pub const RESTORED: Self = Self(4);
    /// Hops before this one were cut off.
    pub const TRUNCATED: Self = Self(8);

    const NAMES: [(Self, &str); 4] = [
        (Self::PARTIAL, "partial"),
        (Self::CONTRADICTED, "contradicted"),
        (Self::RESTORED, "restored"),
        (Self::TRUNCATED, "truncated"),
    ];

    /// These and those.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These where `holds`, else none.
    #[must_use]
    pub const fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::NONE }
    }

    /// Whether any of `others` is among them.
    #[must_use]
    pub const fn any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Those that are not among `others`.
    const fn except(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// The parameters that say so.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(mark, _)| self.any(*mark)).map(|(_, name)| name)
    }
}

/// One item of a list, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'v> {
    /// All of it, as it came; with parameters that nobody here knows.
    text: &'v str,
    /// The service.
    pub service: &'v str,
    /// Who served it.
    pub environment: &'v str,
    /// Whose answer that is, seen from the key.
    pub via: Via,
    /// Why; another version may know more reasons.
    pub reason: &'v str,
    /// Its name in the tree; a proxy that knows nothing of trees gives none.
    pub hop: Option<&'v str>,
    /// The hop that made the call; `None` at the root.
    pub parent: Option<&'v str>,
    /// What else is said of it.
    pub marks: Marks,
}

/// A value that is no list of receipts, or is longer than any of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Reads a list.
///
/// # Errors
/// It is malformed, and nothing in it counts.
pub fn parse(list: &[u8]) -> Result<Vec<Item<'_>>, Malformed> {
    let mut items = Vec::new();
    each(list, |item| items.push(item))?;
    Ok(items)
}

/// Our own part in [`assemble`].
#[derive(Debug, Clone, Copy)]
pub struct Own<'r> {
    /// Whom we sent the request to.
    pub receipt: &'r Receipt,
    /// What the item is called, where we add one.
    pub hop: Hop,
    /// What is said of this hop.
    pub marks: Marks,
    /// Whether the application itself is behind us, and no other proxy can be nearer to it.
    pub nearest: bool,
}

/// What became of the lists in [`assemble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembled {
    /// How many items were written.
    pub items: usize,
    /// How many lists were malformed, and left out.
    pub ignored: usize,
    /// Whether items were cut off.
    pub truncated: bool,
    /// Whether our own is among them.
    pub own: bool,
}

/// Appends one list to `out`, without line end: the items of `lists`, each once, and our own.
///
/// The lists are those that came in the response's head and those that the service's own calls left,
/// in the order of the calls. Who adds an own item is the parent of all items without one. The proxy
/// nearest to the application writes the item of a hop: where we are not that, and there is exactly one
/// item without a parent, which names the service that we called, ours is not added, and only its marks
/// go to the other. What exceeds the bounds is cut off from the front, so that every item that stays
/// keeps its parent, and the last item says `truncated`.
///
/// At most 8 KiB of each list are read, and nothing is allocated but in `out`.
pub fn assemble<'v>(
    lists: impl IntoIterator<Item = &'v [u8]>,
    own: Option<&Own<'_>>,
    out: &mut Vec<u8>,
) -> Assembled {
    let mut known = Known::default();
    lists.into_iter().for_each(|list| known.add(list));
    let items = known.items.as_slice();
    if items.is_empty() {
        // As it mostly is where no calls were made.
        own.inspect(|own| own.write(false, out));
        let items = usize::from(own.is_some());
        return Assembled { items, ignored: known.ignored, truncated: false, own: own.is_some() };
    }
    let mut roots = items.iter().enumerate().filter(|(_, item)| item.parent.is_none()).map(|(at, _)| at);
    let only = roots.next().filter(|_| roots.next().is_none());
    let nearer = own.and_then(|own| only.filter(|at| !own.nearest && own.is_said_by(&items[*at])));
    let added = own.filter(|_| nearer.is_none());
    let list = List { items, added, nearer: nearer.zip(own.map(|own| own.marks)) };
    let from = list.first_that_fits();
    let truncated = known.cut || from > 0;
    list.write(from, truncated, out);
    let own = added.is_some();
    Assembled { items: items.len() - from + usize::from(own), ignored: known.ignored, truncated, own }
}

impl Own<'_> {
    fn is_said_by(&self, item: &Item<'_>) -> bool {
        item.service == self.receipt.service.as_str()
    }

    fn length(&self, truncated: bool) -> usize {
        self.receipt.length() + ";hop=".len() + Hop::LENGTH + length(self.all_marks(truncated))
    }

    fn all_marks(&self, truncated: bool) -> Marks {
        // Who is not nearest adds an item only where nobody is: then the calls of that hop are not seen.
        self.marks.and(Marks::PARTIAL.when(!self.nearest)).and(Marks::TRUNCATED.when(truncated))
    }

    fn write(&self, truncated: bool, out: &mut Vec<u8>) {
        self.receipt.write(out);
        out.extend_from_slice(b";hop=");
        out.extend_from_slice(self.hop.as_str().as_bytes());
        write_marks(self.all_marks(truncated), out);
    }
}

/// The bytes of marks.
fn length(marks: Marks) -> usize {
    marks.names().map(|name| ";".len() + name.len()).sum()
}

fn write_marks(marks: Marks, out: &mut Vec<u8>) {
    for name in marks.names() {
        out.push(b';');
        out.extend_from_slice(name.as_bytes());
    }
}

/// The items that were read, each hop once; of too many the last.
#[derive(Default)]
struct Known<'v> {
    /// Room for all that are kept, and for one list more, which may turn out to be malformed.
    items: ArrayVec<Item<'v>, { 2 * MAX_ITEMS }>,
    ignored: usize,
    cut: bool,
}

impl<'v> Known<'v> {
    fn add(&mut self, list: &'v [u8]) {
        let before = self.items.len();
        let items = &mut self.items;
        let read = each(list, |item| {
            // An application may hand on the head of a call's answer, which the call left as well.
            let is_known = item.hop.is_some() && items.iter().any(|known| known.hop == item.hop);
            if !is_known {
                items.push(item);
            }
        });
        if read.is_err() {
            self.items.truncate(before);
            self.ignored += 1;
        }
        let excess = self.items.len().saturating_sub(MAX_ITEMS);
        self.items.drain(..excess);
        self.cut |= excess > 0;
    }
}

/// What is to be written.
struct List<'a, 'v> {
    items: &'a [Item<'v>],
    added: Option<&'a Own<'a>>,
    /// The item that stands for our own, and the marks that it gets.
    nearer: Option<(usize, Marks)>,
}

impl List<'_, '_> {
    /// The marks that an item gets here.
    fn marks(&self, at: usize, truncated: bool) -> Marks {
        let ours = self.nearer.filter(|(nearer, _)| *nearer == at).map_or(Marks::NONE, |(_, marks)| marks);
        let is_last = self.added.is_none() && at + 1 == self.items.len();
        ours.and(Marks::TRUNCATED.when(truncated && is_last)).except(self.items[at].marks)
    }

    fn parent(&self, at: usize) -> Option<Hop> {
        self.added.filter(|_| self.items[at].parent.is_none()).map(|own| own.hop)
    }

    fn first_that_fits(&self) -> usize {
        const SEPARATOR: usize = ", ".len();
        let mut room = MAX_BYTES + SEPARATOR;
        let mut places = MAX_ITEMS;
        if let Some(own) = self.added {
            room = room.saturating_sub(own.length(true) + SEPARATOR);
            places -= 1;
        }
        for at in (0..self.items.len()).rev() {
            let parent = self.parent(at).map_or(0, |_| ";parent=".len() + Hop::LENGTH);
            let length = self.items[at].text.len() + parent + length(self.marks(at, true)) + SEPARATOR;
            if length > room || places == 0 {
                return at + 1;
            }
            room -= length;
            places -= 1;
        }
        0
    }

    fn write(&self, from: usize, truncated: bool, out: &mut Vec<u8>) {
        for at in from..self.items.len() {
            if at > from {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(self.items[at].text.as_bytes());
            if let Some(parent) = self.parent(at) {
                out.extend_from_slice(b";parent=");
                out.extend_from_slice(parent.as_str().as_bytes());
            }
            write_marks(self.marks(at, truncated), out);
        }
        if let Some(own) = self.added {
            if from < self.items.len() {
                out.extend_from_slice(b", ");
            }
            own.write(truncated, out);
        }
    }
}
