//! Capacities: how many requests may be somewhere at once, and who may take how much of it.
//!
//! Whose it is may take all of it. A guest may take as much as is free beside it: one who has as many
//! seats as are free gets no more (the dynamic thresholds of A. Choudhury and E. Hahne, "Dynamic Queue
//! Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998,
//! with α = 1). So one guest gets half at most, n of them leave one part in n + 1 free for whoever comes next, and
//! nobody has to say how many there are (docs/decisions/0028-overload.md).
//!
//! Counting takes no lock and no memory per request: workers share the capacity of an upstream.

use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use foldhash::fast::FixedState;
use overlane_config::name::EnvironmentId;

/// How many guests have seats that are counted for each; who comes beyond is as the owner until one leaves.
const GUESTS: usize = 64;

/// An environment that uses what is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest(NonZeroU32);

impl Guest {
    /// All keys together that nobody knows.
    pub const UNKNOWN: Self = Self(NonZeroU32::MIN);

    /// The guest with this id: two of four thousand million are one.
    #[must_use]
    pub fn named(id: &EnvironmentId) -> Self {
        let hash = FixedState::default().hash_one(id.as_str());
        Self(NonZeroU32::MIN.saturating_add((hash >> 32) as u32))
    }
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// The guest has so many, and no more are free.
    Share(u32),
}

/// One of the seats. Whoever has it gives it back by [`Seat::leave`].
#[derive(Debug)]
#[must_use]
pub struct Seat {
    /// Where its guest is counted.
    guest: Option<u8>,
}

impl Seat {
    /// Gives it back to where it was taken.
    pub fn leave(self, capacity: &Capacity) {
        if let (Some(at), Some(guests)) = (self.guest, capacity.guests.get()) {
            guests.0[usize::from(at)].fetch_sub(1, Relaxed);
        }
        capacity.taken.fetch_sub(1, Relaxed);
    }
}

/// Seats, and who has them.
#[derive(Debug, Default)]
pub struct Capacity {
    taken: AtomicU32,
    /// Made for the first guest: most upstreams have none.
    guests: OnceLock<Box<Guests>>,
}

impl Capacity {
    /// A seat, where at most `most` are taken at once; for the owner where there is no `guest`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(&self, most: u32, guest: Option<Guest>) -> Result<Seat, Full> {
        let before = self.taken.fetch_add(1, Relaxed);
        let seat = match (most.saturating_sub(before), guest) {
            (0, _) => Err(Full::All),
            (_, None) => Ok(Seat { guest: None }),
            (free, Some(guest)) => self.guests.get_or_init(Box::default).take(guest, free),
        };
        if seat.is_err() {
            self.taken.fetch_sub(1, Relaxed);
        }
        seat
    }

    /// How many seats are taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken.load(Relaxed)
    }
}

/// How many seats each guest has: who it is in the upper half of an entry, how many in the lower. Who is
/// looked for is at, or behind, the entry that its number says, before the first that was never used.
#[derive(Debug)]
struct Guests([AtomicU64; GUESTS]);

impl Default for Guests {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; GUESTS])
    }
}

/// What an entry says.
fn read(entry: u64) -> (u32, u32) {
    ((entry >> 32) as u32, entry as u32)
}

impl Guests {
    fn take(&self, guest: Guest, free: u32) -> Result<Seat, Full> {
        let own = u64::from(guest.0.get()) << 32;
        loop {
            let (at, entry) = match self.find(guest) {
                Some(found) => found,
                None => return Ok(Seat { guest: None }),
            };
            let (who, has) = read(entry);
            let next = match who == guest.0.get() {
                true if has >= free => return Err(Full::Share(has)),
                true => entry + 1,
                false => own | 1,
            };
            // Where somebody else was quicker, it may have been the same guest: it is looked for again.
            if self.0[at].compare_exchange_weak(entry, next, Relaxed, Relaxed).is_ok() {
                return Ok(Seat { guest: u8::try_from(at).ok() });
            }
        }
    }

    /// The entry of `guest`, else one that nobody needs; none where there are too many others.
    fn find(&self, guest: Guest) -> Option<(usize, u64)> {
        let first = guest.0.get() as usize;
        let mut vacant = None;
        for at in (0..GUESTS).map(|step| first.wrapping_add(step) % GUESTS) {
            let entry = self.0[at].load(Relaxed);
            let (who, has) = read(entry);
            if who == guest.0.get() {
                return Some((at, entry));
            }
            if has == 0 && vacant.is_none() {
                vacant = Some((at, entry));
            }
            if entry == 0 {
                break;
            }
        }
        vacant
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn guest(number: usize) -> Option<Guest> {
        (number > 0).then(|| Guest::named(&format!("overlay-{number}").parse().expect("id")))
    }

    /// Who sits, in the simplest way: a list.
    #[derive(Default)]
    struct Naive(Vec<usize>);

    impl Naive {
        fn may(&self, most: u32, who: usize) -> bool {
            let free = most.saturating_sub(self.0.len() as u32);
            let has = self.0.iter().filter(|other| **other == who).count() as u32;
            free > 0 && (who == 0 || has < free)
        }
    }

    proptest! {
        /// Takes and leaves in any order, the limit changing meanwhile as a reload changes it.
        #[test]
        fn seats_are_given_as_a_list_of_who_sits_would_give_them(
            steps in prop::collection::vec((any::<bool>(), 0..12usize, 0..40u32, any::<prop::sample::Index>()), 0..400),
        ) {
            let (capacity, mut naive, mut seats) = (Capacity::default(), Naive::default(), Vec::new());
            for (takes, who, most, which) in steps {
                if takes {
                    let may = naive.may(most, who);
                    let seat = capacity.take(most, guest(who));
                    prop_assert_eq!(seat.is_ok(), may, "{} of {}: {:?}", who, most, naive.0);
                    if let Ok(seat) = seat {
                        naive.0.push(who);
                        seats.push(seat);
                    }
                } else if !seats.is_empty() {
                    let at = which.index(seats.len());
                    naive.0.swap_remove(at);
                    seats.swap_remove(at).leave(&capacity);
                }
                prop_assert_eq!(capacity.taken() as usize, naive.0.len());
            }
        }
    }

    #[test]
    fn guests_who_take_what_they_can_leave_an_equal_part_free() {
        for guests in 1..=5 {
            let capacity = Capacity::default();
            let (mut has, mut seats) = (BTreeMap::new(), Vec::new());
            for round in 0..6000 {
                let who = 1 + round % guests;
                if let Ok(seat) = capacity.take(1200, guest(who)) {
                    *has.entry(who).or_insert(0u32) += 1;
                    seats.push(seat);
                }
            }
            let part = 1200 / (guests as u32 + 1);
            assert!(has.values().all(|has| has.abs_diff(part) <= 1), "{guests}: {has:?}");
            assert!(1200 - capacity.taken() >= part - 5);
        }
    }

    #[test]
    fn the_owner_takes_what_guests_leave_and_they_get_nothing_then() {
        let capacity = Capacity::default();
        let taken = |who| (0..100).filter(|_| capacity.take(100, guest(who)).is_ok()).count();
        assert_eq!((taken(1), taken(0), taken(2), taken(1)), (50, 50, 0, 0));
        assert_eq!(capacity.take(100, None).err(), Some(Full::All));
    }

    #[test]
    fn more_guests_than_are_counted_apart_are_served_and_nothing_is_lost() {
        let capacity = Capacity::default();
        let mut seats: Vec<_> = (1..=GUESTS * 2).map(|who| capacity.take(10_000, guest(who))).collect();
        assert!(seats.iter().all(Result::is_ok));
        while let Some(Ok(seat)) = seats.pop() {
            seat.leave(&capacity);
        }
        assert_eq!(capacity.taken(), 0);
        // Everybody is counted again.
        let taken = (0..100).filter(|_| capacity.take(100, guest(GUESTS * 2)).is_ok()).count();
        assert_eq!(taken, 50);
    }

    #[test]
    fn no_seat_is_lost_or_found_where_threads_share_a_capacity() {
        let capacity = Capacity::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let capacity = &capacity;
                scope.spawn(move || {
                    for round in 0..20_000 {
                        if let Ok(seat) = capacity.take(8, guest((thread + round) % 5)) {
                            assert!(capacity.taken() >= 1);
                            seat.leave(capacity);
                        }
                    }
                });
            }
        });
        assert_eq!(capacity.taken(), 0);
        let left: u64 = capacity
            .guests
            .get()
            .expect("guests")
            .0
            .iter()
            .map(|entry| entry.load(Relaxed) & 0xffff_ffff)
            .sum();
        assert_eq!(left, 0);
    }
}
