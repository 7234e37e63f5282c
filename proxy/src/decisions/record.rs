//! What is in the words of a record, and how it is read.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlane_config::route::{Reason, Via};

use super::note::Decided;
use super::ring::{CUT, WORDS};
use super::{Decision, Filter, KeyFrom};
use crate::access::{loggable_part, loggable_path};
use crate::metrics::Method;

/// The words before the texts: when, how long, codes, generation, hop, and lengths.
const STARTED: usize = 0;
const TOOK: usize = 1;
pub(super) const CODES: usize = 2;
const GENERATION: usize = 3;
const HOP: usize = 4;
pub(super) const LENGTHS: usize = 5;
pub(super) const MORE_LENGTHS: usize = 6;
const TEXTS: usize = 7;

const VIAS: [Via; 3] = [Via::Overlay, Via::Ancestor, Via::Baseline];

/// What the address of an upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    None,
    V4,
    V6,
    Unix,
}

/// What is of closed lists, in one word.
pub(super) fn codes(decided: &Decided<'_>, peer: Peer) -> u64 {
    let via = decided.via.map_or(0, |via| 1 + via as u8);
    let reason = decided.reason.map_or(0, |reason| 1 + reason as u8);
    let [low, high] = decided.status.to_le_bytes();
    let method = decided.method.number();
    // Who has more listeners than that is told of another one's role.
    let gate = u8::try_from(decided.gate).unwrap_or(u8::MAX);
    u64::from_le_bytes([low, high, method, via, reason, decided.key_from as u8, peer as u8, gate])
}

/// A record as it was copied out of its slot.
pub(super) struct Record {
    words: [u64; WORDS],
    bytes: [u8; 8 * (WORDS - TEXTS)],
    lengths: [u8; 9],
}

/// A text of a record.
#[derive(Clone, Copy)]
struct Text<'r> {
    bytes: &'r [u8],
    cut: bool,
}

impl<'r> Text<'r> {
    /// The text; what was cut in the middle of a character ends before it.
    fn shown(self) -> Option<Cow<'r, str>> {
        let bytes = match self.bytes.utf8_chunks().last() {
            Some(last) if self.cut => &self.bytes[..self.bytes.len() - last.invalid().len()],
            _ => self.bytes,
        };
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes))
    }

    fn said(self) -> Option<String> {
        let shown = self.shown()?;
        Some(if self.cut { format!("{shown}...") } else { shown.into_owned() })
    }
}

impl Record {
    pub(super) fn of(words: [u64; WORDS]) -> Self {
        let mut bytes = [0; 8 * (WORDS - TEXTS)];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&words[TEXTS..]) {
            *to = word.to_le_bytes();
        }
        let mut lengths = [0; 9];
        lengths[..8].copy_from_slice(&words[LENGTHS].to_le_bytes());
        lengths[8] = words[MORE_LENGTHS].to_le_bytes()[0];
        Self { words, bytes, lengths }
    }

    fn text(&self, number: usize) -> Text<'_> {
        let length = |at: usize| usize::from(self.lengths[at] & !CUT);
        let from = (0..number).map(|at| length(at).next_multiple_of(8)).sum::<usize>();
        // What is written here is written by us; a length that does not fit is still no reason to fail.
        let bytes = self.bytes.get(from..from + length(number)).unwrap_or_default();
        Text { bytes, cut: self.lengths[number] & CUT != 0 }
    }

    fn code(&self, number: usize) -> u8 {
        self.words[CODES].to_le_bytes()[number]
    }

    fn status(&self) -> u16 {
        u16::from_le_bytes([self.code(0), self.code(1)])
    }

    pub(super) fn gate(&self) -> usize {
        usize::from(self.code(7))
    }

    /// Nanoseconds from the moment from which records count.
    pub(super) fn started(&self) -> u64 {
        self.words[STARTED]
    }

    /// How long it took, in nanoseconds.
    pub(super) fn took(&self) -> u64 {
        self.words[TOOK]
    }

    pub(super) fn has_key(&self) -> bool {
        !self.text(4).bytes.is_empty()
    }

    /// Whether it is a call that a request with a key may have caused, and has none.
    pub(super) fn lost_its_key(&self) -> bool {
        [KeyFrom::Lost, KeyFrom::Unclear].into_iter().any(|from| self.code(5) == from as u8)
    }

    fn hop(&self) -> Option<String> {
        let hop = self.words[HOP].to_le_bytes();
        (hop != [0; 8]).then(|| String::from_utf8_lossy(&hop).into_owned())
    }

    /// Whether it is asked for; `role` is that of its listener.
    pub(super) fn fits(&self, filter: &Filter, role: &str) -> bool {
        let is = |wanted: &Option<String>, number: usize| {
            let text = self.text(number);
            wanted.as_ref().is_none_or(|wanted| match text.cut {
                true => wanted.as_bytes().starts_with(text.bytes),
                false => wanted.as_bytes() == text.bytes,
            })
        };
        let statuses = filter.status.as_ref();
        statuses.is_none_or(|statuses| statuses.contain(self.status()))
            && filter.role.as_deref().is_none_or(|wanted| wanted == role)
            && is(&filter.service, 5)
            && is(&filter.request, 2)
            && filter.overlay.as_ref().is_none_or(|wanted| names(self.text(4).bytes, wanted))
            && filter.path.as_ref().is_none_or(|wanted| self.path().starts_with(&**wanted))
            && filter.trace.as_ref().is_none_or(|wanted| same_trace(self.text(3).bytes, wanted.as_bytes()))
    }

    /// Whether it is of the request that this id names: a trace, a request, or a hop of receipts.
    pub(super) fn is_of(&self, id: &str) -> bool {
        let request = self.text(2);
        let same_request = match request.cut {
            true => id.as_bytes().starts_with(request.bytes),
            false => !request.bytes.is_empty() && request.bytes == id.as_bytes(),
        };
        same_request
            || same_trace(self.text(3).bytes, id.as_bytes())
            || self.words[HOP].to_le_bytes() == id.as_bytes()
    }

    fn path(&self) -> String {
        let path = self.text(1);
        let shown = path.shown().unwrap_or_default();
        if path.cut { loggable_part(&shown) } else { loggable_path(&shown) }
    }

    fn upstream(&self) -> Option<String> {
        let text = self.text(7);
        let word = |at: usize| text.bytes.as_chunks::<8>().0.get(at).map(|bytes| u64::from_le_bytes(*bytes));
        let port = |word: u64| word.to_le_bytes().first_chunk().map_or(0, |low| u16::from_le_bytes(*low));
        match self.code(6) {
            code if code == Peer::V4 as u8 => {
                let ip = word(0)? >> 16;
                let ip = Ipv4Addr::from_bits(u32::try_from(ip).ok()?);
                Some(SocketAddr::new(IpAddr::V4(ip), port(word(0)?)).to_string())
            }
            code if code == Peer::V6 as u8 => {
                let ip = Ipv6Addr::from_bits(u128::from(word(0)?) << 64 | u128::from(word(1)?));
                Some(SocketAddr::new(IpAddr::V6(ip), port(word(2)?)).to_string())
            }
            code if code == Peer::Unix as u8 => text.said().map(|path| format!("unix:{path}")),
            _ => None,
        }
    }

    /// What it says; the listener's part and the time are the caller's to know.
    pub(super) fn decision(&self) -> Decision {
        let reasons = usize::from(self.code(4)).checked_sub(1).and_then(|at| Reason::ALL.get(at));
        let via = usize::from(self.code(3)).checked_sub(1).and_then(|at| VIAS.get(at));
        let failed = self.text(8).said();
        let text = |number| self.text(number).said();
        Decision {
            method: Method::numbered(self.code(2)).as_str().into(),
            authority: text(0).unwrap_or_default(),
            path: self.path(),
            request_id: text(2),
            trace: text(3),
            key: text(4),
            key_from: KeyFrom::ALL.get(usize::from(self.code(5))).copied().unwrap_or_default(),
            service: text(5),
            environment: text(6),
            via: via.map(|via| via.as_str().to_owned()),
            reason: failed.or_else(|| reasons.map(|reason| reason.as_str().to_owned())),
            status: self.status(),
            duration_ms: millis(self.words[TOOK]),
            upstream_ms: Some(self.words[MORE_LENGTHS] >> 8).filter(|took| *took > 0).map(millis),
            upstream: self.upstream(),
            hop: self.hop(),
            generation: self.words[GENERATION],
            ..Decision::default()
        }
    }
}

/// Nanoseconds as milliseconds, in whole microseconds.
fn millis(nanos: u64) -> f64 {
    nanos.div_ceil(1000) as f64 / 1000.0
}

/// Whether a key, which may be several ids, has this one.
fn names(key: &[u8], id: &str) -> bool {
    key.split(|byte| *byte == b',').any(|one| one.trim_ascii() == id.as_bytes())
}

/// Whether both are one trace's: of one of which only the low half is known, that counts.
fn same_trace(own: &[u8], id: &[u8]) -> bool {
    let half = |long: &[u8], short: &[u8]| {
        long.len() == 32 && short.len() == 16 && long[16..].eq_ignore_ascii_case(short)
    };
    !own.is_empty() && (own.eq_ignore_ascii_case(id) || half(own, id) || half(id, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_trace_id_is_the_same_trace_and_a_part_of_a_key_is_not_the_key() {
        let whole = b"0af7651916cd43dd8448eb211c80319c";
        assert!(same_trace(whole, b"8448eb211c80319c") && same_trace(b"8448eb211c80319c", whole));
        assert!(same_trace(whole, b"0AF7651916CD43DD8448EB211C80319C"));
        assert!(!same_trace(whole, b"0af7651916cd43dd") && !same_trace(b"", b""));
        assert!(names(b"alice, bob", "bob") && names(b"alice", "alice"));
        assert!(!names(b"alice", "ali") && !names(b"", "alice"));
    }

    #[test]
    fn closed_lists_are_numbered_as_they_are_declared() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?}");
        }
        for (at, via) in VIAS.into_iter().enumerate() {
            assert_eq!(via as usize, at, "{via:?}");
        }
        for (at, from) in KeyFrom::ALL.into_iter().enumerate() {
            assert_eq!(from as usize, at, "{from:?}");
        }
    }
}
