//! Leases under clocks that are told: proxies that see uses, look now and then, and write into one store or cannot,
//! against the naive rule.
//!
//! `OVERLANE_SEED=N` runs one seed, `OVERLANE_SEEDS=N` the first of them; one that fails is named.

use fastrand::Rng;

use super::*;
use crate::simulation::each_seed;

const SEEDS: u64 = 300;
const TTL: u64 = 8_000;
/// How often a proxy looks: an eighth of the ttl.
const LOOK: u64 = TTL / 8;
const STEP: u64 = 100;
/// How far the clocks of proxies are from each other at most.
const SKEW: u64 = 150;
const START: u64 = 1_000_000;

struct Proxy {
    uses: Uses,
    /// How far its clock is ahead.
    ahead: u64,
    served: u64,
    looks_at: u64,
    /// Until when the lease is, as far as it knows: it learns of changes a moment later.
    knows: u64,
    /// Until when it cannot reach the store.
    cut_until: u64,
}

impl Proxy {
    /// The clock of this proxy, which serves the overlay until its lease is over by it.
    fn clock(&self, now: u64) -> u64 {
        now + self.ahead
    }
}

struct World {
    rng: Rng,
    now: u64,
    proxies: Vec<Proxy>,
    /// The lease in the store.
    until: u64,
    last_use: u64,
    writes: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let count = rng.usize(1..=8);
        let until = START + TTL;
        let proxy = |rng: &mut Rng| Proxy {
            uses: Uses::default(),
            ahead: rng.u64(..=SKEW),
            served: 0,
            looks_at: START + rng.u64(..LOOK),
            knows: until,
            cut_until: 0,
        };
        let proxies = (0..count).map(|_| proxy(&mut rng)).collect();
        Self { rng, now: START, proxies, until, last_use: START, writes: 0 }
    }

    fn id() -> EnvironmentId {
        "alice".parse().expect("an id")
    }

    /// A request at one proxy, which serves it while the lease is not over by its own clock.
    fn request(&mut self) {
        let at = self.rng.usize(..self.proxies.len());
        let proxy = &mut self.proxies[at];
        if proxy.clock(self.now) < proxy.knows {
            proxy.served += 1;
            self.last_use = self.now;
        }
    }

    fn look(&mut self, at: usize) {
        let proxy = &mut self.proxies[at];
        let clock = UnixMillis(proxy.clock(self.now));
        proxy.uses.note(Map::from_iter([(Self::id(), proxy.served)]), clock);
        let known = Lease { until: UnixMillis(proxy.knows), ttl: Duration::from_millis(TTL) };
        let rng = &mut self.rng;
        let due = proxy.uses.due(clock, |_| Some(known), || rng.f64());
        if proxy.cut_until > self.now {
            return;
        }
        for (_, until) in due {
            // What `OpenStore::extend` does: nothing where another came first, or it is over.
            if until.0 > self.until && self.until > clock.0 {
                assert!(until.0 <= clock.0 + TTL, "nobody extends beyond a ttl from now");
                self.until = until.0;
                self.writes += 1;
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for at in 0..self.proxies.len() {
            // A change comes to each within a step, or when it can reach the store again.
            if self.proxies[at].cut_until <= self.now {
                self.proxies[at].knows = self.until;
            }
            if self.proxies[at].looks_at <= self.now {
                self.proxies[at].looks_at = self.now + LOOK;
                self.look(at);
            }
        }
    }
}

/// While it is used and somebody who sees that can write, it lives; and it is over a ttl after its last use.
fn run(seed: u64) {
    let mut world = World::new(seed);
    let idle_from = START + world.rng.u64(1..10) * TTL;
    let cuts = world.rng.bool();
    while world.now < idle_from {
        // Many more than are looked for: each proxy sees some in each eighth of the ttl.
        for _ in 0..world.proxies.len() {
            world.request();
        }
        world.step();
        if cuts && world.rng.u8(..20) == 0 {
            // All but the first may be cut off for a while.
            let at = world.rng.usize(..world.proxies.len());
            if let Some(proxy) = world.proxies[1..].get_mut(at) {
                proxy.cut_until = world.now + world.rng.u64(..TTL / 8);
            }
        }
        assert!(world.until > world.now + SKEW, "it is used, and over at {} of {}", world.until, world.now);
    }
    // After each write, more than half is left for half of the ttl.
    let lived = world.now - START;
    assert!(world.writes <= lived / (TTL / 2 - SKEW) + 1, "{} writes in {lived} ms", world.writes);
    let last = world.last_use;
    while world.now < last + 3 * TTL {
        world.step();
    }
    let (least, most) = (last + TTL, last + TTL + LOOK + SKEW + STEP);
    assert!((least..=most).contains(&world.until), "used at {last}, over at {}", world.until);
}

#[test]
fn what_is_used_lives_and_is_over_a_ttl_after_its_last_use_with_few_writes() {
    each_seed(SEEDS, run);
}

#[test]
fn a_lease_that_is_not_used_is_never_extended() {
    let mut world = World::new(1);
    while world.now < START + 3 * TTL {
        world.step();
    }
    assert_eq!((world.writes, world.until), (0, START + TTL));
}

#[test]
fn a_use_before_half_is_left_counts_although_nothing_is_written_then() {
    let mut uses = Uses::default();
    let lease = Lease { until: UnixMillis(TTL), ttl: Duration::from_millis(TTL) };
    let due = |uses: &mut Uses, now| uses.due(UnixMillis(now), |_| Some(lease), || 0.5);
    uses.note(Map::from_iter([(World::id(), 1)]), UnixMillis(1_000));
    assert_eq!(due(&mut uses, 1_000), []);
    assert_eq!(due(&mut uses, TTL / 2), [], "each waits for a moment of its own");
    assert_eq!(due(&mut uses, TTL * 5 / 8), [(World::id(), UnixMillis(1_000 + TTL))]);
    let over = Lease { until: UnixMillis(TTL - 1), ..lease };
    assert_eq!(uses.due(UnixMillis(TTL), |_| Some(over), || 0.5), [], "what is over stays so");
}
