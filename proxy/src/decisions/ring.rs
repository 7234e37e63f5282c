//! A ring of records: one worker writes, anybody reads. Neither waits for the other.
//!
//! Each slot is a seqlock: its number is odd while it is written, and says afterwards which record is in it. A reader copies
//! the words and looks at the number again; what changed meanwhile it does not take. The words are atomics, so that
//! a torn copy is only wrong and never undefined; the fences are those of Boehm, "Can seqlocks get along with programming
//! language memory models?" (2012), figures 4 and 6.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

/// The words of a record.
pub(super) const WORDS: usize = 47;
/// So many slots get memory at once, when the first of them is written.
const CHUNK: usize = 32;

/// A slot and its number: six lines of a cache.
#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    number: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Slot {
    fn empty() -> Self {
        Self { number: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

type Chunk = Box<[Slot]>;

/// Records of one worker: the last so many.
#[derive(Debug)]
pub(super) struct Ring {
    chunks: Box<[OnceLock<Chunk>]>,
    slots: usize,
    /// How many records were ever written.
    written: AtomicU64,
}

/// A record that is being written.
pub(super) struct Writing<'r> {
    slot: &'r Slot,
    ring: &'r Ring,
    /// How many records there are once it is whole.
    number: u64,
    at: usize,
}

impl Ring {
    /// A ring of so many slots, none of which has memory yet.
    pub(super) fn of(slots: usize) -> Self {
        let chunks = (0..slots.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { chunks, slots, written: AtomicU64::new(0) }
    }

    /// How many records it keeps.
    pub(super) fn slots(&self) -> u64 {
        self.slots as u64
    }

    /// How many records were ever written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Acquire)
    }

    /// Begins the record after `before` others, in the slot `place`. Only the ring's own worker may.
    pub(super) fn begin(&self, before: u64, place: usize) -> Option<Writing<'_>> {
        let chunk = self.chunks.get(place / CHUNK)?;
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::empty()).collect());
        let slot = chunk.get(place % CHUNK)?;
        slot.number.store(2 * before + 1, Relaxed);
        fence(Release);
        Some(Writing { slot, ring: self, number: before + 1, at: 0 })
    }

    /// The record after `before` others: nothing where it is not there any more, or not yet.
    pub(super) fn read(&self, before: u64) -> Option<[u64; WORDS]> {
        let place = usize::try_from(before % self.slots().max(1)).ok()?;
        let slot = self.chunks.get(place / CHUNK)?.get()?.get(place % CHUNK)?;
        let whole = 2 * (before + 1);
        if slot.number.load(Acquire) != whole {
            return None;
        }
        let words = slot.words.each_ref().map(|word| word.load(Relaxed));
        fence(Acquire);
        (slot.number.load(Relaxed) == whole).then_some(words)
    }
}

impl Writing<'_> {
    /// The next words; what does not fit is cut off.
    pub(super) fn put(&mut self, words: &[u64]) {
        let left = self.slot.words.get(self.at..).unwrap_or_default();
        left.iter().zip(words).for_each(|(slot, word)| slot.store(*word, Relaxed));
        self.at += words.len().min(left.len());
    }

    /// A text in whole words, at most `most` bytes of it. What it says is how long it was, as [`pack`] has it.
    pub(super) fn put_text(&mut self, text: &[u8], most: usize) -> u8 {
        let left = self.slot.words.get(self.at..).unwrap_or_default();
        let mut slots = left.iter();
        let length = pack(text, most.min(8 * left.len()), |word| {
            if let Some(slot) = slots.next() {
                slot.store(word, Relaxed);
            }
        });
        self.at = WORDS - slots.len();
        length
    }

    /// A word that was left out before.
    pub(super) fn set(&mut self, at: usize, word: u64) {
        if let Some(slot) = self.slot.words.get(at) {
            slot.store(word, Relaxed);
        }
    }

    /// It is whole.
    pub(super) fn end(self) {
        self.slot.number.store(2 * self.number, Release);
        self.ring.written.store(self.number, Release);
    }
}

/// That a text was longer than what is kept of it.
pub(super) const CUT: u8 = 0x80;

/// Puts at most `most` bytes of a text, as words; says how many bytes these are, with [`CUT`] where it was longer.
pub(super) fn pack(text: &[u8], most: usize, mut put: impl FnMut(u64)) -> u8 {
    let kept = text.get(..most.min(usize::from(!CUT))).unwrap_or(text);
    let cut = if kept.len() < text.len() { CUT } else { 0 };
    let (whole, rest) = kept.as_chunks::<8>();
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    whole.iter().for_each(|bytes| put(u64::from_le_bytes(*bytes)));
    match (rest.len(), kept.last_chunk::<8>()) {
        (0, _) => {}
        // Of the last eight bytes, those that are in no whole word.
        (left, Some(last)) => put(u64::from_le_bytes(*last) >> (8 * (8 - left))),
        (_, None) => put(word(rest)),
    }
    // Less than 128, as it was cut.
    kept.len() as u8 | cut
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    /// A record all of whose words follow from one number, so that a torn one is seen.
    fn whole(number: u64) -> [u64; WORDS] {
        std::array::from_fn(|at| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at as u32))
    }

    fn write(ring: &Ring, before: u64) {
        let mut writing = ring.begin(before, (before % ring.slots()) as usize).expect("a slot");
        writing.put(&whole(before));
        writing.end();
    }

    /// What is done to a ring, one whole step after another.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin,
        Put,
        End,
        Read(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Begin), Just(Step::Put), Just(Step::End), (0..40u64).prop_map(Step::Read)]
    }

    proptest! {
        /// Against a list that keeps the last so many: whatever happens in whichever order, what is read is what was
        /// written whole and is still kept.
        #[test]
        fn what_is_read_is_what_a_list_of_the_last_ones_has(slots in 1..70usize, steps in prop::collection::vec(step(), 1..400)) {
            let ring = Ring::of(slots);
            let mut kept: VecDeque<u64> = VecDeque::new();
            let mut writing: Option<Writing<'_>> = None;
            let mut written = 0;
            for step in steps {
                match step {
                    Step::Begin if writing.is_none() => {
                        writing = ring.begin(written, written as usize % slots);
                        // What is overwritten is gone from here on.
                        if kept.len() == slots { kept.pop_front(); }
                    }
                    Step::Put => if let Some(writing) = &mut writing {
                        let at = writing.at;
                        writing.put(&whole(written)[at..(at + 9).min(WORDS)]);
                    },
                    Step::End => if let Some(mut one) = writing.take() {
                        let at = one.at;
                        one.put(&whole(written)[at..]);
                        one.end();
                        kept.push_back(written);
                        written += 1;
                    },
                    Step::Begin => {}
                    Step::Read(back) => {
                        let number = (written + 2).saturating_sub(back);
                        let expected = kept.contains(&number).then(|| whole(number));
                        prop_assert_eq!(ring.read(number), expected, "{} of {}", number, written);
                    }
                }
            }
            prop_assert_eq!(ring.written(), written);
        }

        #[test]
        fn a_text_is_kept_up_to_its_bound(text in prop::collection::vec(any::<u8>(), 0..200), most in 0..200usize) {
            let mut bytes = Vec::new();
            let length = pack(&text, most, |word| bytes.extend(word.to_le_bytes()));
            let kept = text.len().min(most).min(127);
            prop_assert_eq!(usize::from(length & !CUT), kept);
            prop_assert_eq!(length & CUT != 0, kept < text.len());
            prop_assert_eq!(bytes.len(), kept.next_multiple_of(8));
            prop_assert_eq!(&bytes[..kept], &text[..kept]);
            prop_assert!(bytes[kept..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn no_torn_record_is_ever_returned() {
        const RECORDS: u64 = 200_000;
        let (ring, over) = (Ring::of(3), AtomicBool::new(false));
        let taken: u64 = std::thread::scope(|scope| {
            let reader = || {
                let mut taken = 0;
                loop {
                    let last = over.load(Acquire);
                    for number in ring.written().saturating_sub(3)..=ring.written() {
                        if let Some(words) = ring.read(number) {
                            assert_eq!(words, whole(number));
                            taken += 1;
                        }
                    }
                    if last {
                        return taken;
                    }
                }
            };
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            (0..RECORDS).for_each(|number| write(&ring, number));
            over.store(true, Release);
            readers.map(|reader| reader.join().expect("a reader")).iter().sum()
        });
        // Each finds the last three at the end.
        assert!(taken >= 6, "{taken}");
        assert_eq!(ring.written(), RECORDS);
    }

    #[test]
    fn memory_is_taken_when_it_is_used() {
        let ring = Ring::of(1000);
        let taken = || ring.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        assert_eq!(taken(), 0);
        write(&ring, 0);
        assert_eq!(taken(), 1);
        assert_eq!(ring.read(999), None);
    }
}
