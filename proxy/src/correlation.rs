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
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use foldhash::quality::RandomState;
use overlane_config::carrier::Keys;
use overlane_config::carrier::trace::TraceId;

use crate::metrics::{Event, count};

/// The traces that share a hash; the least recently used of them makes room.
const WAYS: usize = 8;
/// The most bytes of receipts that calls of one trace leave.
const MAX_LEFT: usize = 16 * 1024;
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
/// with a secret. Never 0.
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
    /// Requests of the trace that are being served here.
    serving: AtomicU32,
    /// Calls of the application in the trace that are under way.
    calling: AtomicU32,
    /// What calls left, the newest first, until a response takes it.
    left: ArcSwapOption<Left>,
    /// Whether there was no room for what a call left.
    overflowed: AtomicBool,
}

/// The receipts that a call left.
#[derive(Debug)]
pub struct Left {
    list: Box<[u8]>,
    /// The bytes of this list and of those before.
    bytes: usize,
    before: Option<Arc<Left>>,
}

impl Left {
    /// One structured-field list.
    #[must_use]
    pub fn list(&self) -> &[u8] {
        &self.list
    }
}

/// What the calls of a trace left.
#[derive(Debug, Default)]
pub struct Calls {
    /// The receipts of each call, in the order of the calls.
    pub left: Vec<Arc<Left>>,
    /// Whether some are missing: of calls that are under way, or for which there was no room.
    pub missing: bool,
}

impl Trace {
    fn new(id: Id, keys: &Keys, require: &str) -> Self {
        let trace = Self {
            id,
            keys: keys.clone(),
            require: ArcSwapOption::empty(),
            conflicted: AtomicBool::new(false),
            serving: AtomicU32::new(0),
            calling: AtomicU32::new(0),
            left: ArcSwapOption::empty(),
            overflowed: AtomicBool::new(false),
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

    /// A request of the trace begins to be served here. What calls left after the answers to earlier ones
    /// is nobody's.
    pub fn serving_begins(&self) {
        if self.serving.fetch_add(1, Ordering::SeqCst) == 0 {
            drop(self.take());
        }
    }

    /// Its answer is over.
    pub fn serving_ends(&self) {
        self.serving.fetch_sub(1, Ordering::SeqCst);
    }

    /// The application begins a call.
    pub fn call_begins(&self) {
        self.calling.fetch_add(1, Ordering::SeqCst);
    }

    /// The call is over.
    pub fn call_ends(&self) {
        self.calling.fetch_sub(1, Ordering::SeqCst);
    }

    /// Leaves the receipts of a call for the answer to the request that made it.
    pub fn leave(&self, list: &[u8]) {
        let mut before = self.left.load_full();
        loop {
            let bytes = list.len() + before.as_ref().map_or(0, |before| before.bytes);
            if bytes > MAX_LEFT {
                self.overflowed.store(true, Ordering::SeqCst);
                return;
            }
            let new = Arc::new(Left { list: list.into(), bytes, before: before.clone() });
            let found = self.left.compare_and_swap(&before, Some(new));
            if found.as_ref().map(Arc::as_ptr) == before.as_ref().map(Arc::as_ptr) {
                return;
            }
            before = found.clone();
        }
    }

    /// Takes what the calls so far left: each is in one answer only.
    #[must_use]
    pub fn take(&self) -> Calls {
        let missing =
            self.overflowed.swap(false, Ordering::SeqCst) || self.calling.load(Ordering::SeqCst) > 0;
        let mut left: Vec<_> =
            std::iter::successors(self.left.swap(None), |left| left.before.clone()).collect();
        left.reverse();
        Calls { left, missing }
    }

    fn demand(&self, require: &str) {
        if require.is_empty() {
            return;
        }
        let known = self.require.load();
        if known.as_ref().is_none_or(|known| ***known != *require) {
            self.require.store(Some(Arc::new(require.into())));
        }
    }

    fn found(self: Arc<Self>) -> Found {
        match self.conflicted.load(Ordering::Relaxed) {
            true => Found::Conflicted(self),
            false => Found::Known(self),
        }
    }

    fn conflict(&self) {
        if !self.conflicted.swap(true, Ordering::Relaxed) {
            count(Event::TraceConflict);
        }
    }
}

/// Where a new trace goes.
struct Room {
    at: usize,
    /// What is there.
    before: Option<Arc<Trace>>,
    /// Whether that is not forgotten yet.
    lives: bool,
}

/// What is known of a trace.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Unknown,
    /// Its key.
    Known(Arc<Trace>),
    /// Several keys came under its id: none is restored. As long as this is kept, that is not forgotten.
    Conflicted(Arc<Trace>),
}

/// The traces that share a hash. Ids and times are kept beside the pointers: most are not followed.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set {
    /// The id of what each slot holds; 0 where there is nothing. Written after the slot.
    ids: [AtomicU64; WAYS],
    /// When it was last used, in milliseconds since the start.
    used: [AtomicU32; WAYS],
    slots: [ArcSwapOption<Trace>; WAYS],
}

/// Counts that each worker keeps in a cell of its own, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    /// Requests with a key that are being served.
    keyed: AtomicIsize,
    /// Requests without one.
    keyless: AtomicIsize,
}

impl Cell {
    fn of(&self, keyed: bool) -> &AtomicIsize {
        if keyed { &self.keyed } else { &self.keyless }
    }
}

/// What a process knows of traces; shared by its workers and listeners.
#[derive(Debug)]
pub struct Correlation {
    settings: CorrelationSettings,
    /// In milliseconds.
    ttl: u32,
    started: Instant,
    hasher: RandomState,
    sets: Box<[Set]>,
    serving: [Cell; CELLS],
    /// Whether the calls of the application pass here as well.
    sees_calls: AtomicBool,
    /// Calls of which nobody can tell which request caused them.
    unclaimed: AtomicU64,
    /// Whether the application consumes messages without a key.
    consumes: AtomicBool,
}

impl Correlation {
    /// A memory of this size, with nothing in it.
    #[must_use]
    pub fn new(settings: CorrelationSettings) -> Self {
        let sets = settings.traces.div_ceil(WAYS).next_power_of_two();
        Self {
            ttl: u32::try_from(settings.ttl.as_millis()).unwrap_or(u32::MAX),
            settings,
            started: Instant::now(),
            hasher: RandomState::default(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            serving: Default::default(),
            sees_calls: AtomicBool::new(false),
            unclaimed: AtomicU64::new(0),
            consumes: AtomicBool::new(false),
        }
    }

    /// Notes that the application's calls pass here.
    pub fn calls_pass_here(&self) {
        self.sees_calls.store(true, Ordering::Relaxed);
    }

    /// Notes a call of which nobody can tell which request caused it.
    pub fn unclaimed_call(&self) {
        self.unclaimed.fetch_add(1, Ordering::SeqCst);
    }

    /// How many such calls there were: who served a request meanwhile may have caused them.
    #[must_use]
    pub fn unclaimed_calls(&self) -> u64 {
        self.unclaimed.load(Ordering::SeqCst)
    }

    /// Notes that the application consumes messages, and one without a key came, or may come: what it calls for such a one
    /// has no key either.
    pub fn messages_come(&self) {
        self.consumes.store(true, Ordering::Relaxed);
    }

    /// Whether the application has something to do that has no key: a request that is served here, or a message. When it is
    /// done with a message nobody says.
    #[must_use]
    pub fn works_without_key(&self) -> bool {
        self.is_serving(false) || self.consumes.load(Ordering::Relaxed)
    }

    /// Whether the application's calls pass here, as far as they use the sidecar.
    #[must_use]
    pub fn sees_calls(&self) -> bool {
        self.sees_calls.load(Ordering::Relaxed)
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
        Some(Id(self.hasher.hash_one(id).max(1)))
    }

    /// Remembers that the key belongs to the trace.
    pub fn remember(&self, id: Id, keys: &Keys, require: &str, now: Instant) -> Found {
        let (set, now) = (self.set(id), self.millis(now));
        let mut made: Option<Arc<Trace>> = None;
        // Who finds a slot changed sees that somebody else got on.
        loop {
            if let Some(known) = self.known(set, id, now) {
                if known.keys != *keys {
                    known.conflict();
                }
                known.demand(require);
                return known.found();
            }
            let new = made.get_or_insert_with(|| Arc::new(Trace::new(id, keys, require)));
            let Room { at, before, lives } = self.room(set, now);
            // Shown since it was looked for.
            if lives
                && before.as_ref().is_some_and(|before| before.id == id)
                && set.places(id).next().is_some()
            {
                continue;
            }
            let found = set.slots[at].compare_and_swap(&before, Some(new.clone()));
            if found.as_ref().map(Arc::as_ptr) != before.as_ref().map(Arc::as_ptr) {
                continue;
            }
            if lives {
                count(Event::TraceEvicted);
            }
            set.show(at, new, now);
            self.settle(set, new, now);
            return new.clone().found();
        }
    }

    /// What is known of the trace; being asked for is a use.
    #[must_use]
    pub fn find(&self, id: Id, now: Instant) -> Found {
        match self.known(self.set(id), id, self.millis(now)) {
            None => Found::Unknown,
            Some(known) => known.found(),
        }
    }

    /// How many traces are remembered; looks at all of them.
    #[must_use]
    pub fn len(&self, now: Instant) -> usize {
        let now = self.millis(now);
        let live = |set: &Set, at: usize| {
            let held = set.slots[at].load();
            held.as_ref().is_some_and(|trace| !self.is_over(set, at, trace, now))
        };
        self.sets.iter().map(|set| (0..WAYS).filter(|at| live(set, *at)).count()).sum()
    }

    /// Notes that a request is being served here: with a key, or without.
    pub fn serving_begins(&self, keyed: bool) {
        self.cell().of(keyed).fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it is over.
    pub fn serving_ends(&self, keyed: bool) {
        self.cell().of(keyed).fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a request is being served here: with a key, or without.
    #[must_use]
    pub fn is_serving(&self, keyed: bool) -> bool {
        self.serving.iter().map(|cell| cell.of(keyed).load(Ordering::Relaxed)).sum::<isize>() > 0
    }

    fn cell(&self) -> &Cell {
        use std::sync::atomic::AtomicUsize;
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS);
        &self.serving[OWN.with(|own| *own)]
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

    /// Whether the trace in a slot was not used for so long that it is forgotten. What is being served is
    /// in use: who asks must hold no clone of it.
    fn is_over(&self, set: &Set, at: usize, trace: &Arc<Trace>, now: u32) -> bool {
        set.age(at, now) > self.ttl && Arc::strong_count(trace) == 1
    }

    fn known(&self, set: &Set, id: Id, now: u32) -> Option<Arc<Trace>> {
        for at in set.places(id) {
            let held = set.slots[at].load();
            if let Some(trace) = held.as_ref().filter(|trace| trace.id == id)
                && !self.is_over(set, at, trace, now)
            {
                set.used[at].store(now, Ordering::Relaxed);
                return Some(trace.clone());
            }
        }
        None
    }

    /// Where a new trace goes, and what is there: a free slot, else that of the longest unused. What is
    /// being served stays, and what another worker is putting there, where anything else can go.
    fn room(&self, set: &Set, now: u32) -> Room {
        let mut left_out = [false; WAYS];
        loop {
            let (at, shown) = set.oldest(now, &left_out);
            let held = set.slots[at].load();
            let stays = match held.as_ref() {
                None => shown != 0,
                // The guard that it is looked at through is no holder.
                Some(trace) => trace.id.0 != shown || Arc::strong_count(trace) > 1,
            };
            if !stays || left_out[at] {
                let lives = held.as_ref().is_some_and(|trace| !self.is_over(set, at, trace, now));
                return Room { at, before: held.clone(), lives };
            }
            left_out[at] = true;
        }
    }

    /// Two workers may remember one trace at once, in two slots; whoever comes later sees both. One key
    /// in two slots is found in the first of them; two keys are a conflict. A trace that was forgotten, and is
    /// still there, is none.
    fn settle(&self, set: &Set, new: &Arc<Trace>, now: u32) {
        for at in set.places(new.id) {
            let other = set.slots[at].load();
            let differs = |other: &&Arc<Trace>| other.id == new.id && other.keys != new.keys;
            if let Some(other) = other.as_ref().filter(differs)
                && !self.is_over(set, at, other, now)
            {
                other.conflict();
                new.conflict();
            }
        }
    }
}

impl Set {
    /// The slots that seem to hold the trace: one, unless it was remembered twice at once.
    fn places(&self, id: Id) -> impl Iterator<Item = usize> {
        (0..WAYS).filter(move |at| self.ids[*at].load(Ordering::SeqCst) == id.0)
    }

    /// The free or longest unused of the slots that are not left out, of all where all are; and the id
    /// that is shown there.
    fn oldest(&self, now: u32, left_out: &[bool; WAYS]) -> (usize, u64) {
        let mut oldest = (0, 0, 0);
        for (at, left_out) in left_out.iter().enumerate() {
            let shown = self.ids[at].load(Ordering::SeqCst);
            let age = if shown == 0 { u32::MAX } else { self.age(at, now) };
            // One more, so that the first of all is better than none.
            let rank = (u64::from(!left_out) << 33) + u64::from(age) + 1;
            if rank > oldest.0 {
                oldest = (rank, at, shown);
            }
        }
        (oldest.1, oldest.2)
    }

    fn age(&self, at: usize, now: u32) -> u32 {
        let used = self.used[at].load(Ordering::Relaxed);
        // Another worker's clock may have been read a little later than this one's.
        u32::try_from((now.wrapping_sub(used) as i32).max(0)).unwrap_or(0)
    }

    /// Makes what was just put into a slot found, unless it is gone already.
    fn show(&self, at: usize, new: &Arc<Trace>, now: u32) {
        self.used[at].store(now, Ordering::Relaxed);
        let id = &self.ids[at];
        loop {
            let shown = id.load(Ordering::SeqCst);
            let held = self.slots[at].load();
            let mine = held.as_ref().is_some_and(|held| Arc::ptr_eq(held, new));
            if !mine || id.compare_exchange(shown, new.id.0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod simulation;

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
            Found::Unknown | Found::Conflicted(_) => None,
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

    /// Its slot is the one that it comes back to; a worker once looked for another one forever.
    #[test]
    fn a_trace_that_was_forgotten_comes_back_as_a_new_one_with_and_without_room() {
        for others in [WAYS - 1, WAYS - 2] {
            let correlation = sized(WAYS);
            let start = Instant::now();
            let later = start + CorrelationSettings::default().ttl + Duration::from_millis(2);
            drop(correlation.remember(Id(1), &key("alice"), "web", start));
            for id in 2..2 + others as u64 {
                drop(correlation.remember(Id(id), &key("carol"), "", start + Duration::from_millis(1)));
            }
            let Found::Known(trace) = correlation.remember(Id(1), &key("bob"), "", later) else {
                panic!("a key of its own");
            };
            assert_eq!((trace.keys().as_str(), trace.require()), ("bob", None));
        }
    }

    #[test]
    fn what_is_being_served_is_not_forgotten() {
        let correlation = sized(WAYS);
        let start = Instant::now();
        let held = correlation.remember(Id(1), &key("alice"), "", start);
        for id in 2..100 {
            drop(correlation.remember(Id(id), &key("bob"), "", start + Duration::from_millis(id)));
        }
        let much_later = start + CorrelationSettings::default().ttl * 10;
        assert_eq!(restored(&correlation, 1, much_later).as_deref(), Some("alice"));
        drop(held);
    }

    #[test]
    fn two_keys_under_one_id_restore_nothing() {
        let correlation = sized(64);
        let now = Instant::now();
        drop(correlation.remember(Id(1), &key("alice"), "", now));
        assert!(matches!(correlation.remember(Id(1), &key("bob"), "", now), Found::Conflicted(_)));
        assert!(matches!(correlation.find(Id(1), now), Found::Conflicted(_)));
        assert!(matches!(correlation.remember(Id(1), &key("alice"), "", now), Found::Conflicted(_)));
    }

    #[test]
    fn a_conflict_is_not_forgotten_while_a_request_that_made_it_is_served() {
        let correlation = sized(WAYS);
        let start = Instant::now();
        drop(correlation.remember(Id(1), &key("alice"), "", start));
        let bobs = correlation.remember(Id(1), &key("bob"), "", start);
        for id in 2..100 {
            drop(correlation.remember(Id(id), &key("carol"), "", start + Duration::from_millis(id)));
        }
        let later = start + CorrelationSettings::default().ttl * 2;
        drop(correlation.remember(Id(1), &key("alice"), "", later));
        assert_eq!(restored(&correlation, 1, later), None, "it may be a call of bob's");
        drop(bobs);
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
        for id in 1..=10_240_u64 {
            let now = start + Duration::from_millis(id / 16);
            drop(correlation.remember(Id(id), &key(&format!("o{}", id % 1000)), "", now));
        }
        let end = start + Duration::from_secs(1);
        assert!(correlation.len(end) <= 1024);
        for id in 1..=10_240 {
            if let Some(key) = restored(&correlation, id, end) {
                assert_eq!(key, format!("o{}", id % 1000));
            }
        }
        assert!(restored(&correlation, 10_240, end).is_some(), "the newest is there");
    }

    #[test]
    fn workers_that_remember_at_once_lose_nothing() {
        let correlation = sized(1 << 16);
        let now = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for id in 1..=5_000_u64 {
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
            assert!(matches!(correlation.find(Id(1), now), Found::Conflicted(_)));
        }
    }

    proptest! {
        /// With room for all, it is a map in which a second key spoils the first.
        #[test]
        fn with_room_for_all_it_is_a_map(steps in prop::collection::vec((1u64..40, 0usize..3, any::<bool>()), 0..200)) {
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
