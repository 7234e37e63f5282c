//! Correlation: which key a trace belongs to.
//!
//! An application that does not forward the key mostly forwards its tracer's headers. Inbound remembers
//! the key under the trace's id; outbound asks for it when a call arrives without one. Two keys under
//! one id restore nothing. How it is built: docs/decisions/0015-correlation.md.
//!
//! Workers share the memory and wait for nobody: a slot is one pointer, which is read and exchanged as
//! a whole. It is bounded: where a new trace finds no room, the one longest unused is forgotten.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use foldhash::quality::RandomState;
use overlane_config::carrier::Keys;
use overlane_config::carrier::trace::TraceId;

use crate::metrics::{Event, count};

/// The traces that share a hash; the least recently used of them makes room.
const WAYS: usize = 8;
/// Cells over which workers spread what they count together.
const CELLS: usize = 16;

/// What is correlated, for how long, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrelationSettings {
    /// Whether a key is restored by the trace id.
    pub by_trace: bool,
    /// Whether it is also restored by `x-request-id`, where there is no trace id.
    pub by_request_id: bool,
    /// The most traces that are remembered.
    pub traces: usize,
    /// For how long after its last use.
    pub ttl: Duration,
}

impl Default for CorrelationSettings {
    fn default() -> Self {
        Self { by_trace: true, by_request_id: false, traces: 65_536, ttl: Duration::from_secs(300) }
    }
}

impl CorrelationSettings {
    /// The same for a listener that restores nothing, and so need not remember.
    #[must_use]
    pub fn without_memory(self) -> Self {
        Self { traces: 0, ..self }
    }
}

/// What a trace is remembered under. Ids come from the network: where they end up is told by a hash
/// with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(u64);

/// A trace whose key is known.
#[derive(Debug)]
pub struct Trace {
    id: Id,
    keys: Keys,
    /// The newest requirement that came with the key.
    require: ArcSwapOption<Box<str>>,
    /// Whether another key came under the same id.
    conflicted: AtomicBool,
    /// When it was last used, in milliseconds since the start.
    used: AtomicU32,
}

impl Trace {
    fn new(id: Id, keys: &Keys, require: &str, now: u32) -> Self {
        let trace = Self {
            id,
            keys: keys.clone(),
            require: ArcSwapOption::empty(),
            conflicted: AtomicBool::new(false),
            used: AtomicU32::new(now),
        };
        trace.demand(require);
        trace
    }

    /// The key.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The requirement that travels with it; `None` where there is none.
    #[must_use]
    pub fn require(&self) -> Option<Arc<Box<str>>> {
        self.require.load_full()
    }

    fn demand(&self, require: &str) {
        let known = self.require.load();
        if !require.is_empty() && known.as_ref().is_none_or(|known| ***known != *require) {
            self.require.store(Some(Arc::new(require.into())));
        }
    }

    fn found(self: &Arc<Self>, now: u32) -> Found {
        self.used.store(now, Ordering::Relaxed);
        match self.conflicted.load(Ordering::Relaxed) {
            true => Found::Conflicted,
            false => Found::Known(self.clone()),
        }
    }
}

/// What is known of a trace.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Unknown,
    /// Its key.
    Known(Arc<Trace>),
    /// Several keys came under its id: none is restored.
    Conflicted,
}

/// A place for a trace.
type Slot = ArcSwapOption<Trace>;

/// What a slot holds.
type Held = Guard<Option<Arc<Trace>>>;

#[derive(Debug, Default)]
struct Set([Slot; WAYS]);

/// A count that each worker keeps in a cell of its own, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicIsize);

/// What a process knows of traces; shared by its workers and listeners.
#[derive(Debug)]
pub struct Correlation {
    settings: CorrelationSettings,
    started: Instant,
    hasher: RandomState,
    sets: Box<[Set]>,
    serving: [Cell; CELLS],
}

impl Correlation {
    /// A memory of this size, with nothing in it.
    #[must_use]
    pub fn new(settings: CorrelationSettings) -> Self {
        let sets = settings.traces.div_ceil(WAYS).next_power_of_two();
        Self {
            settings,
            started: Instant::now(),
            hasher: RandomState::default(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            serving: Default::default(),
        }
    }

    /// Whether nothing is correlated.
    #[must_use]
    pub fn is_off(&self) -> bool {
        !self.settings.by_trace && !self.settings.by_request_id
    }

    /// Whether keys are restored by trace ids.
    #[must_use]
    pub fn traces(&self) -> bool {
        self.settings.by_trace
    }

    /// Whether keys are restored by request ids.
    #[must_use]
    pub fn request_ids(&self) -> bool {
        self.settings.by_request_id
    }

    /// What a trace is remembered under; `None` where traces are not.
    #[must_use]
    pub fn of_trace(&self, trace: TraceId) -> Option<Id> {
        self.settings.by_trace.then(|| Id(trace.get()))
    }

    /// What a request id is remembered under; `None` where request ids are not.
    #[must_use]
    pub fn of_request(&self, id: &[u8]) -> Option<Id> {
        if !self.settings.by_request_id || id.is_empty() {
            return None;
        }
        Some(Id(self.hasher.hash_one(id)))
    }

    /// Remembers that the key belongs to the trace.
    pub fn remember(&self, id: Id, keys: &Keys, require: &str, now: Instant) -> Found {
        let (set, now) = (self.set(id), self.millis(now));
        let mut made: Option<Arc<Trace>> = None;
        // Whoever fails to exchange a slot sees that somebody else did: all of them go on.
        loop {
            if let Some(known) = self.known(set, id, now) {
                return Self::meet(&known, keys, require, now);
            }
            let new = made.get_or_insert_with(|| Arc::new(Trace::new(id, keys, require, now)));
            let (slot, before) = self.room(set, now);
            let found = slot.compare_and_swap(&before, Some(new.clone()));
            if !same(&found, &before) {
                continue;
            }
            if before.as_ref().is_some_and(|before| !self.is_over(before, now)) {
                count(Event::TraceEvicted);
            }
            return self.settle(set, new);
        }
    }

    /// What is known of the trace; being asked for is a use.
    #[must_use]
    pub fn find(&self, id: Id, now: Instant) -> Found {
        let now = self.millis(now);
        match self.known(self.set(id), id, now) {
            None => Found::Unknown,
            Some(known) => known.found(now),
        }
    }

    /// How many traces are remembered; looks at all of them.
    #[must_use]
    pub fn len(&self, now: Instant) -> usize {
        let now = self.millis(now);
        let live = |slot: &&Slot| slot.load().as_ref().is_some_and(|trace| !self.is_over(trace, now));
        self.sets.iter().flat_map(|set| &set.0).filter(live).count()
    }

    /// Notes that a request with a key is being served here.
    pub fn serving_begins(&self) {
        self.cell().fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it is over.
    pub fn serving_ends(&self) {
        self.cell().fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a request with a key is being served here.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum::<isize>() > 0
    }

    fn cell(&self) -> &AtomicIsize {
        use std::sync::atomic::AtomicUsize;
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS);
        &self.serving[OWN.with(|own| *own)].0
    }

    fn set(&self, id: Id) -> &Set {
        let hash = self.hasher.hash_one(id.0);
        // The number of sets is a power of two.
        &self.sets[usize::try_from(hash & (self.sets.len() as u64 - 1)).unwrap_or(0)]
    }

    fn millis(&self, now: Instant) -> u32 {
        // Wraps after 49 days; ages are told by subtraction, which wraps along.
        now.saturating_duration_since(self.started).as_millis() as u32
    }

    /// Whether a trace was not used for so long that it is forgotten. What is being served is in use.
    fn is_over(&self, trace: &Arc<Trace>, now: u32) -> bool {
        let age = u128::from(now.wrapping_sub(trace.used.load(Ordering::Relaxed)));
        age > self.settings.ttl.as_millis() && Arc::strong_count(trace) == 1
    }

    fn known(&self, set: &Set, id: Id, now: u32) -> Option<Arc<Trace>> {
        set.0.iter().find_map(|slot| {
            let trace = slot.load();
            let trace = trace.as_ref().filter(|trace| trace.id == id)?;
            (!self.is_over(trace, now)).then(|| trace.clone())
        })
    }

    /// The same trace again.
    fn meet(known: &Arc<Trace>, keys: &Keys, require: &str, now: u32) -> Found {
        if known.keys != *keys && !known.conflicted.swap(true, Ordering::Relaxed) {
            count(Event::TraceConflict);
        }
        known.demand(require);
        known.found(now)
    }

    /// Where a new trace goes, and what is there: a free slot, else that of the trace which is over or
    /// longest unused. What is being served stays, where anything else can go.
    fn room<'s>(&self, set: &'s Set, now: u32) -> (&'s Slot, Held) {
        let [first, others @ ..] = &set.0;
        let held = first.load();
        let mut best = (self.worth(&held, now), first, held);
        for slot in others {
            let held = slot.load();
            let worth = self.worth(&held, now);
            if worth < best.0 {
                best = (worth, slot, held);
            }
        }
        (best.1, best.2)
    }

    /// How much would be lost with what a slot holds.
    fn worth(&self, held: &Held, now: u32) -> u64 {
        match held.as_ref() {
            None => 0,
            Some(trace) if self.is_over(trace, now) => 1,
            Some(trace) => {
                let age = now.wrapping_sub(trace.used.load(Ordering::Relaxed));
                // The guard that it is looked at through is no holder.
                let in_use = u64::from(Arc::strong_count(trace) > 1);
                2 + (in_use << 32) + u64::from(u32::MAX - age)
            }
        }
    }

    /// Two workers may remember one trace at once, in two slots. Whoever comes later sees both. One key
    /// in two slots is found in the first of them; two keys are a conflict.
    fn settle(&self, set: &Set, new: &Arc<Trace>) -> Found {
        for slot in &set.0 {
            let other = slot.load();
            let Some(other) = other.as_ref().filter(|other| other.id == new.id) else {
                continue;
            };
            if Arc::ptr_eq(other, new) {
                continue;
            }
            if other.keys != new.keys {
                other.conflicted.store(true, Ordering::Relaxed);
                new.conflicted.store(true, Ordering::Relaxed);
                count(Event::TraceConflict);
            }
        }
        new.found(new.used.load(Ordering::Relaxed))
    }
}

fn same(a: &Held, b: &Held) -> bool {
    a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Keys {
        Keys::parse([text.as_bytes()]).expect("valid").expect("a key")
    }

    fn sized(traces: usize) -> Correlation {
        Correlation::new(CorrelationSettings { traces, ..CorrelationSettings::default() })
    }

    fn restored(correlation: &Correlation, id: u64, now: Instant) -> Option<String> {
        match correlation.find(Id(id), now) {
            Found::Known(trace) => Some(trace.keys().as_str().to_owned()),
            Found::Unknown | Found::Conflicted => None,
        }
    }

    #[test]
    fn a_trace_is_forgotten_when_it_was_not_used_for_its_time_to_live() {
        let correlation = sized(64);
        let (start, ttl) = (Instant::now(), CorrelationSettings::default().ttl);
        drop(correlation.remember(Id(1), &key("alice"), "", start));
        let almost = start + ttl - Duration::from_millis(1);
        assert_eq!(restored(&correlation, 1, almost).as_deref(), Some("alice"), "a use refreshes it");
        assert_eq!(restored(&correlation, 1, almost + ttl).as_deref(), Some("alice"));
        let after = almost + ttl + ttl + Duration::from_millis(1);
        assert_eq!((restored(&correlation, 1, after), correlation.len(after)), (None, 0));
    }

    #[test]
    fn what_is_being_served_is_not_forgotten() {
        let correlation = sized(WAYS);
        let start = Instant::now();
        let held = correlation.remember(Id(0), &key("alice"), "", start);
        for id in 1..100 {
            drop(correlation.remember(Id(id), &key("bob"), "", start + Duration::from_millis(id)));
        }
        let much_later = start + CorrelationSettings::default().ttl * 10;
        assert_eq!(restored(&correlation, 0, much_later).as_deref(), Some("alice"));
        drop(held);
    }

    #[test]
    fn two_keys_under_one_id_restore_nothing() {
        let correlation = sized(64);
        let now = Instant::now();
        drop(correlation.remember(Id(1), &key("alice"), "", now));
        assert!(matches!(correlation.remember(Id(1), &key("bob"), "", now), Found::Conflicted));
        assert!(matches!(correlation.find(Id(1), now), Found::Conflicted));
        assert!(matches!(correlation.remember(Id(1), &key("alice"), "", now), Found::Conflicted));
    }

    #[test]
    fn the_newest_requirement_travels_with_the_key() {
        let correlation = sized(64);
        let now = Instant::now();
        for (require, expected) in [("", None), ("web", Some("web")), ("", Some("web")), ("*", Some("*"))] {
            let Found::Known(trace) = correlation.remember(Id(1), &key("alice"), require, now) else {
                panic!("unknown");
            };
            assert_eq!(trace.require().as_ref().map(|require| &***require), expected);
        }
    }

    #[test]
    fn beyond_its_bound_the_longest_unused_goes_and_nothing_is_wrong() {
        let correlation = sized(1024);
        let start = Instant::now();
        for id in 0..10_240_u64 {
            let now = start + Duration::from_millis(id / 16);
            drop(correlation.remember(Id(id), &key(&format!("o{}", id % 1000)), "", now));
        }
        let end = start + Duration::from_secs(1);
        assert!(correlation.len(end) <= 1024);
        for id in 0..10_240 {
            if let Some(key) = restored(&correlation, id, end) {
                assert_eq!(key, format!("o{}", id % 1000));
            }
        }
        assert!(restored(&correlation, 10_239, end).is_some(), "the newest is there");
    }

    #[test]
    fn workers_that_remember_at_once_lose_nothing() {
        let correlation = sized(1 << 16);
        let now = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for id in 0..5_000_u64 {
                        let key = key(&format!("o{id}"));
                        drop(correlation.remember(Id(id), &key, "", now));
                        assert_eq!(restored(&correlation, id, now).as_deref(), Some(key.as_str()));
                    }
                });
            }
        });
    }

    #[test]
    fn workers_that_bring_different_keys_at_once_always_see_the_conflict() {
        let now = Instant::now();
        for _ in 0..500 {
            let correlation = sized(WAYS);
            std::thread::scope(|scope| {
                for own in ["alice", "bob"] {
                    let correlation = &correlation;
                    scope.spawn(move || drop(correlation.remember(Id(1), &key(own), "", now)));
                }
            });
            assert!(matches!(correlation.find(Id(1), now), Found::Conflicted));
        }
    }

    proptest! {
        /// With room for all, it is a map in which a second key spoils the first.
        #[test]
        fn with_room_for_all_it_is_a_map(steps in prop::collection::vec((0u64..40, 0usize..3, any::<bool>()), 0..200)) {
            let correlation = sized(1 << 12);
            let now = Instant::now();
            let mut model: HashMap<u64, Option<usize>> = HashMap::new();
            for (id, own, asks) in steps {
                if !asks {
                    drop(correlation.remember(Id(id), &key(&format!("k{own}")), "", now));
                    model.entry(id).and_modify(|known| *known = known.filter(|known| *known == own)).or_insert(Some(own));
                }
                let expected = model.get(&id).copied().flatten().map(|own| format!("k{own}"));
                prop_assert_eq!(restored(&correlation, id, now), expected);
            }
        }
    }
}
