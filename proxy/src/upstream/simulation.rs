//! Whose turn it is and who is passed over, against a naive list, under a clock that is told; failures that are told late,
//! and addresses that come, go and come back.
//!
//! `OVERLANE_SEED=N` runs one seed, `OVERLANE_SEEDS=N` the first of them; one that fails is named.

use fastrand::Rng;

use super::*;
use crate::clock::told::tell;
use crate::simulation::each_seed;

const SEEDS: u64 = 200;
const STEPS: usize = 300;
const PORTS: u16 = 6;

/// An address as the rules have it.
#[derive(Debug, Clone, Default)]
struct Known {
    port: u16,
    /// Which of all endpoints that ever were it is: one that went and came back is another one.
    number: usize,
    /// Since when it is passed over, and how it failed last.
    failed: Option<(u64, Reason)>,
}

struct World {
    rng: Rng,
    upstream: Arc<Upstream>,
    now: u64,
    known: Vec<Known>,
    made: usize,
    turn: usize,
    /// What requests are on their way to: which endpoint it is, and the endpoint.
    picked: Vec<(usize, Arc<Endpoint>)>,
}

fn address(port: u16) -> Address {
    Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

impl World {
    fn new(seed: u64) -> Self {
        let urls: Vec<Url> = vec!["http://name.invalid:80".parse().expect("url")];
        let upstream = Upstream::new(urls.into(), &Names::none(), false);
        let mut world = Self {
            rng: Rng::with_seed(seed),
            upstream,
            // 0 is no time: it says that nothing failed.
            now: 1000,
            known: Vec::new(),
            made: 0,
            turn: 0,
            picked: Vec::new(),
        };
        world.resolve();
        world
    }

    /// Other addresses, in any order; those that stay keep how they fare.
    fn resolve(&mut self) {
        let mut ports: Vec<u16> = (1..=PORTS).filter(|_| self.rng.bool()).collect();
        self.rng.shuffle(&mut ports);
        let url = self.upstream.urls()[0].clone();
        let found: Vec<_> = ports.iter().map(|port| (url.clone(), address(*port))).collect();
        let problem = found.is_empty().then(|| "no such name".to_owned());
        self.upstream.resolved(found, problem);
        if ports.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.known);
        for port in ports {
            let same = before.iter().find(|known| known.port == port).cloned();
            self.known.push(same.unwrap_or_else(|| {
                self.made += 1;
                Known { port, number: self.made, failed: None }
            }));
        }
    }

    fn pick(&mut self) {
        let picked = self.upstream.pick();
        let count = self.known.len();
        if count == 0 {
            return assert_eq!(picked.err(), Some(Reason::Unhealthy));
        }
        let in_turn: Vec<_> = (0..count).map(|step| &self.known[(self.turn + step) % count]).collect();
        let is_over = |known: &&&Known| known.failed.is_none_or(|(at, _)| at + PASSED_OVER <= self.now);
        match (in_turn.iter().find(is_over), picked) {
            (Some(expected), Ok(picked)) => {
                assert_eq!(picked.address, address(expected.port), "whose turn it is");
                let number = expected.number;
                self.picked.push((number, picked));
                // This one finds out for the others, who pass it over as if it had failed now.
                let now = self.now;
                if let Some(failed) = self.known_as(number).and_then(|known| known.failed.as_mut()) {
                    failed.0 = now;
                }
            }
            (None, Err(reason)) => {
                assert_eq!(Some(reason), in_turn[0].failed.map(|(_, reason)| reason), "why nobody is there");
            }
            (expected, picked) => panic!("{expected:?} and {picked:?}"),
        }
        self.turn += usize::from(count > 1);
    }

    fn known_as(&mut self, number: usize) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.number == number)
    }

    /// What is on its way, and no longer is.
    fn arrives(&mut self) -> Option<(usize, Arc<Endpoint>)> {
        let at = (!self.picked.is_empty()).then(|| self.rng.usize(..self.picked.len()))?;
        Some(self.picked.swap_remove(at))
    }

    /// A connection was made.
    fn reach(&mut self) {
        let Some((number, endpoint)) = self.arrives() else { return };
        self.upstream.reached(&endpoint);
        if let Some(known) = self.known_as(number) {
            known.failed = None;
        }
    }

    /// A connection could not be made.
    fn fail(&mut self) {
        let Some((number, endpoint)) = self.arrives() else { return };
        let reason = if self.rng.bool() { Reason::Refused } else { Reason::Unhealthy };
        endpoint.failed(reason);
        let now = self.now;
        if let Some(known) = self.known_as(number) {
            known.failed = Some((now, reason));
        }
    }

    fn step(&mut self) {
        tell(self.now);
        match self.rng.u8(..11) {
            0..5 => self.pick(),
            5 | 6 => self.fail(),
            7 => drop(self.picked.pop()),
            8 => self.reach(),
            9 => self.now += self.rng.u64(..2 * PASSED_OVER),
            _ => self.resolve(),
        }
    }
}

#[test]
fn whatever_fails_and_moves_endpoints_take_turns_and_the_failed_are_passed_over_for_their_time() {
    each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
    });
}
