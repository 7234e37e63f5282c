//! The memory of traces against a naive one: a list that is searched from its start, under a clock that is told.
//!
//! One set, so that its bound is met all the time, and so that a seed says everything: which traces share a set is told by
//! a secret. `OVERLANE_SEED=N` runs one seed, `OVERLANE_SEEDS=N` the first of them; one that fails is named.

use fastrand::Rng;

use super::*;
use crate::simulation::each_seed;

const SEEDS: u64 = 200;
const STEPS: usize = 400;
/// Little enough that traces come back, and more than there are places.
const IDS: u64 = 14;
const KEYS: [&str; 3] = ["alice", "bob", "carol, dave"];
const REQUIREMENTS: [&str; 4] = ["", "", "web", "*"];

/// A trace as the rules have it.
#[derive(Debug, Default)]
struct Known {
    id: u64,
    keys: &'static str,
    require: &'static str,
    conflicted: bool,
    used: Millis,
    serving: u32,
    calling: u32,
    left: Vec<Vec<u8>>,
    overflowed: bool,
}

/// Milliseconds since the start.
type Millis = u64;

/// The naive memory, beside the one that is tested.
struct World {
    rng: Rng,
    memory: Correlation,
    start: Instant,
    now: Millis,
    /// Every trace that there ever was; that it is remembered says `remembered`.
    traces: Vec<Known>,
    /// Which of them are remembered, the longest unused first.
    remembered: Vec<usize>,
    /// What requests hold: which trace it is, and the trace.
    held: Vec<(usize, Arc<Trace>)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let settings = CorrelationSettings { traces: WAYS, ..CorrelationSettings::default() };
        let memory = Correlation::new(settings);
        let start = memory.started;
        Self {
            rng: Rng::with_seed(seed),
            memory,
            start,
            now: 0,
            traces: Vec::new(),
            remembered: Vec::new(),
            held: Vec::new(),
        }
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn holders(&self, of: usize) -> usize {
        self.held.iter().filter(|(held, _)| *held == of).count()
    }

    /// Forgets what was not used for its time to live, and is not held.
    fn forget(&mut self) {
        let ttl = u64::from(self.memory.ttl);
        let (now, traces) = (self.now, &self.traces);
        let held: Vec<usize> = self.held.iter().map(|(held, _)| *held).collect();
        self.remembered.retain(|of| now - traces[*of].used <= ttl || held.contains(of));
    }

    /// Uses what is remembered of an id.
    fn used(&mut self, id: u64) -> Option<usize> {
        let at = self.remembered.iter().position(|of| self.traces[*of].id == id)?;
        let of = self.remembered.remove(at);
        self.remembered.push(of);
        self.traces[of].used = self.now;
        Some(of)
    }

    /// A new trace; where there is no room, the longest unused makes some, and of those that are held only the
    /// last one does.
    fn add(&mut self, id: u64, keys: &'static str) -> usize {
        if self.remembered.len() == WAYS {
            let free = self.remembered.iter().position(|of| self.holders(*of) == 0);
            self.remembered.remove(free.unwrap_or(0));
        }
        self.traces.push(Known { id, keys, used: self.now, ..Known::default() });
        self.remembered.push(self.traces.len() - 1);
        self.traces.len() - 1
    }

    /// Holds what was found against what is expected, and keeps some of it.
    fn found(&mut self, expected: Option<usize>, found: Found) {
        let (conflicted, trace) = match found {
            Found::Unknown => {
                return assert_eq!(expected.map(|of| &self.traces[of]).map(|known| known.id), None);
            }
            Found::Known(trace) => (false, trace),
            Found::Conflicted(trace) => (true, trace),
        };
        let of = expected.unwrap_or_else(|| panic!("{trace:?} is remembered, and should be forgotten"));
        let known = &self.traces[of];
        assert_eq!((trace.keys().as_str(), conflicted), (known.keys, known.conflicted), "{known:?}");
        assert_eq!(trace.require().as_ref().map_or("", |require| &***require), known.require, "{known:?}");
        if self.rng.u8(..3) == 0 {
            self.held.push((of, trace));
        }
    }

    fn remember(&mut self) {
        let (id, keys) = (self.rng.u64(1..=IDS), KEYS[self.rng.usize(..KEYS.len())]);
        let require = REQUIREMENTS[self.rng.usize(..REQUIREMENTS.len())];
        let of = self.used(id).unwrap_or_else(|| self.add(id, keys));
        let known = &mut self.traces[of];
        known.conflicted |= known.keys != keys;
        if !require.is_empty() {
            known.require = require;
        }
        let key = Keys::parse([keys.as_bytes()]).expect("valid").expect("a key");
        let found = self.memory.remember(Id(id), &key, require, self.instant());
        assert!(!matches!(found, Found::Unknown));
        self.found(Some(of), found);
    }

    fn find(&mut self) {
        let id = self.rng.u64(1..=IDS);
        let expected = self.used(id);
        let found = self.memory.find(Id(id), self.instant());
        self.found(expected, found);
    }

    fn release(&mut self) {
        if !self.held.is_empty() {
            let at = self.rng.usize(..self.held.len());
            self.held.swap_remove(at);
        }
    }

    /// What requests, calls and their receipts do to a trace that somebody holds.
    fn serve(&mut self) {
        let Some((of, trace)) = self.rng.choice(&self.held).cloned() else { return };
        let known = &mut self.traces[of];
        match self.rng.u8(..7) {
            0 => {
                trace.serving_begins();
                if known.serving == 0 {
                    known.left.clear();
                    known.overflowed = false;
                }
                known.serving += 1;
            }
            1 if known.serving > 0 => {
                trace.serving_ends();
                known.serving -= 1;
            }
            2 => {
                trace.call_begins();
                known.calling += 1;
            }
            3 if known.calling > 0 => {
                trace.call_ends();
                known.calling -= 1;
            }
            4 => {
                let calls = trace.take();
                let left: Vec<_> = calls.left.iter().map(|left| left.list().to_vec()).collect();
                assert_eq!(left, std::mem::take(&mut known.left), "each once, in the order of the calls");
                assert_eq!(calls.missing, std::mem::take(&mut known.overflowed) || known.calling > 0);
            }
            _ => {
                let list = vec![b'r'; self.rng.usize(1..MAX_LEFT / 2)];
                trace.leave(&list);
                if known.left.iter().map(Vec::len).sum::<usize>() + list.len() <= MAX_LEFT {
                    known.left.push(list);
                } else {
                    known.overflowed = true;
                }
            }
        }
    }

    fn step(&mut self) {
        let ttl = u64::from(self.memory.ttl);
        // Never none: what was used at the same time has no order.
        self.now += if self.rng.u8(..20) == 0 { self.rng.u64(1..ttl * 2) } else { self.rng.u64(1..ttl / 8) };
        self.forget();
        match self.rng.u8(..10) {
            0..4 => self.remember(),
            4..7 => self.find(),
            7 | 8 => self.serve(),
            _ => self.release(),
        }
        self.forget();
        assert_eq!(self.memory.len(self.instant()), self.remembered.len());
    }
}

#[test]
fn whatever_happens_traces_are_remembered_and_forgotten_as_in_a_list() {
    each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
    });
}
