//! Records as workers write them: what a request's head said is noted when it is read, the rest when the request is over.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane_config::route::{Reason, Via};

use super::KeyFrom;
use super::record::{CODES, LENGTHS, MORE_LENGTHS, Peer, codes};
use super::ring::{Ring, Writing, pack};
use crate::clock::nanos;
use crate::metrics::Method;
use crate::plane::propagation::Digits;
use crate::upstream::Address;

/// The most bytes of each text that are kept.
const AUTHORITY: usize = 48;
const PATH: usize = 96;
const REQUEST: usize = 64;
const TRACE: usize = 32;
const NAME: usize = 63;
/// Of a reason, or of the path of a unix socket.
const WORD: usize = 40;
/// The words that the texts of a head can have.
const NOTED: usize = (AUTHORITY + PATH + REQUEST + TRACE) / 8;
/// The most notes that a worker keeps for reuse.
const SPARE: usize = 256;

/// What a request's head said: it is gone when the request is over.
#[derive(Debug)]
pub struct Note {
    words: [u64; NOTED],
    used: usize,
    lengths: [u8; 8],
}

/// What of a head is noted.
#[derive(Debug, Clone, Copy)]
pub struct Noted<'h> {
    /// The authority that was called.
    pub authority: &'h str,
    /// The path, without query.
    pub path: &'h str,
    /// The request's id, as it goes upstream.
    pub request_id: Option<&'h [u8]>,
    /// The digits of the id of its trace.
    pub trace: Option<Digits<'h>>,
}

/// What is known when a request is over.
#[derive(Debug, Clone, Copy)]
pub struct Decided<'r> {
    /// When its head was read.
    pub started: Instant,
    /// How long it took from then on.
    pub took: Duration,
    /// How long its upstream took of that until its head was there, where one answered.
    pub upstream_took: Option<Duration>,
    /// The number of its listener.
    pub gate: usize,
    /// The method.
    pub method: Method,
    /// The status; 0 where no answer was sent.
    pub status: u16,
    /// Whose answer it was.
    pub via: Option<Via>,
    /// Why it went there.
    pub reason: Option<Reason>,
    /// Why it failed, or was refused, where it was; in place of `reason`.
    pub failed: Option<&'static str>,
    /// How it came by its key.
    pub key_from: KeyFrom,
    /// The generation of the table that decided.
    pub generation: u64,
    /// Its name in the receipts, as [`Hop::bits`] has it; 0 where it has none there.
    ///
    /// [`Hop::bits`]: overlane_config::route::receipt::Hop::bits
    pub hop: u64,
    /// The key.
    pub key: Option<&'r str>,
    /// The service.
    pub service: Option<&'r str>,
    /// The environment that answered.
    pub environment: Option<&'r str>,
    /// The address that answered.
    pub upstream: Option<&'r Address>,
}

/// What a worker writes with.
struct Hand {
    ring: Arc<Ring>,
    /// The moment from which records count.
    base: Instant,
    written: u64,
    place: usize,
    /// Notes that nobody uses.
    // Boxed so that a request under way has little of it in its own memory.
    #[allow(clippy::vec_box, reason = "they are lent as boxes")]
    spare: Vec<Box<Note>>,
}

thread_local! {
    static HAND: RefCell<Option<Hand>> = const { RefCell::new(None) };
}

/// From now on this thread's requests are written into that ring.
pub(super) fn take_up(ring: Arc<Ring>, base: Instant) {
    HAND.set(Some(Hand { ring, base, written: 0, place: 0, spare: Vec::new() }));
}

/// Notes what a request's head says; nothing where decisions are not kept.
#[must_use]
pub fn note<'h>(said: impl FnOnce() -> Noted<'h>) -> Option<Box<Note>> {
    HAND.with_borrow_mut(|hand| {
        let hand = hand.as_mut()?;
        let mut note = hand.spare.pop().unwrap_or_else(|| Box::new(Note::new()));
        note.fill(&said());
        Some(note)
    })
}

/// Writes the record of a request that is over.
pub fn write(note: Box<Note>, decided: &Decided<'_>) {
    HAND.with_borrow_mut(|hand| {
        let Some(hand) = hand else { return };
        hand.write(&note, decided);
        if hand.spare.len() < SPARE {
            hand.spare.push(note);
        }
    });
}

impl Note {
    fn new() -> Self {
        Self { words: [0; NOTED], used: 0, lengths: [0; 8] }
    }

    fn fill(&mut self, said: &Noted<'_>) {
        self.used = 0;
        let authority = self.put(said.authority.as_bytes(), AUTHORITY);
        let path = self.put(said.path.as_bytes(), PATH);
        let request = self.put(said.request_id.unwrap_or_default(), REQUEST);
        let trace = self.put(said.trace.as_ref().map(Digits::as_bytes).unwrap_or_default(), TRACE);
        self.lengths = [authority, path, request, trace, 0, 0, 0, 0];
    }

    fn put(&mut self, text: &[u8], most: usize) -> u8 {
        let mut places = self.words.get_mut(self.used..).unwrap_or_default().iter_mut();
        let length = pack(text, most, |word| {
            if let Some(place) = places.next() {
                *place = word;
            }
        });
        self.used = NOTED - places.len();
        length
    }
}

impl Hand {
    fn write(&mut self, note: &Note, decided: &Decided<'_>) {
        let Some(mut writing) = self.ring.begin(self.written, self.place) else { return };
        let since = decided.started.saturating_duration_since(self.base);
        // The lengths follow when they are known.
        writing.put(&[nanos(since), nanos(decided.took), 0, decided.generation, decided.hop, 0, 0]);
        writing.put(note.words.get(..note.used).unwrap_or_default());
        let mut lengths = note.lengths;
        lengths[4] = writing.put_text(decided.key.unwrap_or_default().as_bytes(), NAME);
        lengths[5] = writing.put_text(decided.service.unwrap_or_default().as_bytes(), NAME);
        lengths[6] = writing.put_text(decided.environment.unwrap_or_default().as_bytes(), NAME);
        let (peer, length) = match decided.upstream {
            None => (Peer::None, 0),
            Some(Address::Unix(path)) => (Peer::Unix, writing.put_text(path.as_bytes(), WORD)),
            Some(Address::Tcp(address)) => put_address(*address, &mut writing),
        };
        lengths[7] = length;
        let failed = decided.failed.map_or(0, |word| writing.put_text(word.as_bytes(), WORD));
        writing.set(CODES, codes(decided, peer));
        writing.set(LENGTHS, u64::from_le_bytes(lengths));
        // Two years of nanoseconds fit beside it; nobody waits for nothing, so none stands for nobody.
        let upstream_took = decided.upstream_took.map_or(0, |took| nanos(took).max(1));
        writing.set(MORE_LENGTHS, upstream_took << 8 | u64::from(failed));
        writing.end();
        self.written += 1;
        self.place = if self.place + 1 == self.ring.slots() as usize { 0 } else { self.place + 1 };
    }
}

/// An address is kept as it is in memory: to write it out costs more than all the rest.
fn put_address(address: SocketAddr, writing: &mut Writing<'_>) -> (Peer, u8) {
    let port = u64::from(address.port());
    match address.ip() {
        IpAddr::V4(ip) => {
            writing.put(&[u64::from(ip.to_bits()) << 16 | port]);
            (Peer::V4, 8)
        }
        IpAddr::V6(ip) => {
            let [high, low] = [ip.to_bits() >> 64, ip.to_bits()].map(|half| half as u64);
            writing.put(&[high, low, port]);
            (Peer::V6, 24)
        }
    }
}
