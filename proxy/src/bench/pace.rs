//! When requests are meant to leave: plain arithmetic over a time that the caller tells.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Load;

/// How requests are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// So many a second, on a fixed schedule (open loop).
    Rate(NonZeroU32),
    /// On each connection the next as soon as the last is answered (closed loop).
    Saturation,
}

/// One thread's part of a load. Times count from the start of the measurement.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How all threads together are paced.
    pub pace: Pace,
    /// Which of the threads this is.
    pub thread: usize,
    /// How many threads there are.
    pub threads: usize,
    /// This thread's connections.
    pub lanes: usize,
    /// From when on requests count.
    pub warmup: Duration,
    /// From when on nothing is sent.
    pub end: Duration,
}

impl Plan {
    /// The load, divided among its threads.
    #[must_use]
    pub fn split(load: &Load) -> Vec<Self> {
        let threads = load.threads.clamp(1, load.connections.max(1));
        let (each, rest) = (load.connections / threads, load.connections % threads);
        (0..threads)
            .map(|thread| Self {
                pace: load.pace,
                thread,
                threads,
                lanes: each + usize::from(thread < rest),
                warmup: load.warmup,
                end: load.warmup + load.duration,
            })
            .collect()
    }

    /// The intended time of this thread's request `number`, where there is a schedule: the threads
    /// take turns, so that all together send evenly.
    fn intended(&self, rate: NonZeroU32, number: u64) -> Duration {
        let turn = u128::from(number) * self.threads as u128 + self.thread as u128;
        let nanos = turn * 1_000_000_000 / u128::from(rate.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A connection's place in the schedule.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// The next of its requests; connections take turns too.
    next: u64,
    /// The intended time of the request that it carries.
    carries: Option<Duration>,
    /// It was free when its next request was due.
    due: bool,
}

/// Which connection sends when. It never looks at a clock.
#[derive(Debug)]
pub struct Pacer {
    plan: Plan,
    lanes: Vec<Lane>,
    /// The first request that is not due yet.
    cursor: u64,
}

impl Pacer {
    /// Nothing is sent yet.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let lanes = (0..plan.lanes as u64).map(|next| Lane { next, carries: None, due: false }).collect();
        Self { plan, lanes, cursor: 0 }
    }

    /// Names the connections that are free and should send now, each with how late that is; where
    /// there is no schedule, all of them, once.
    pub fn due(&mut self, now: Duration, mut ready: impl FnMut(usize, Option<Duration>)) {
        let Pace::Rate(rate) = self.plan.pace else {
            if self.cursor == 0 {
                (0..self.lanes.len()).for_each(|lane| ready(lane, None));
                self.cursor = 1;
            }
            return;
        };
        loop {
            let intended = self.plan.intended(rate, self.cursor);
            if intended > now || intended >= self.plan.end {
                return;
            }
            let at = usize::try_from(self.cursor % self.lanes.len() as u64).unwrap_or_default();
            // A connection that is busy sends it when it is free: late, and that counts.
            if self.lanes[at].carries.is_none() && self.lanes[at].next == self.cursor {
                self.lanes[at].due = true;
                ready(at, Some(now - intended));
            }
            self.cursor += 1;
        }
    }

    /// When [`Pacer::due`] should be asked again.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        match self.plan.pace {
            Pace::Rate(rate) => {
                Some(self.plan.intended(rate, self.cursor)).filter(|intended| *intended < self.plan.end)
            }
            Pace::Saturation => None,
        }
    }

    /// Whether the connection has a request to send as soon as it is free. What was due before the
    /// end on a free connection is sent even if the sender only looks at it later.
    #[must_use]
    pub fn owes(&self, lane: usize, now: Duration) -> bool {
        let lane = &self.lanes[lane];
        match self.plan.pace {
            Pace::Rate(_) => lane.due || (now < self.plan.end && lane.next < self.cursor),
            Pace::Saturation => now < self.plan.end,
        }
    }

    /// The connection sends its next request; the time that its latency counts from.
    pub fn sends(&mut self, lane: usize, now: Duration) -> Duration {
        let intended = match self.plan.pace {
            Pace::Rate(rate) => self.plan.intended(rate, self.lanes[lane].next),
            Pace::Saturation => now,
        };
        self.lanes[lane].next += self.lanes.len() as u64;
        self.lanes[lane].carries = Some(intended);
        self.lanes[lane].due = false;
        intended
    }

    /// The connection is free again; the intended time of what it carried, where that counts.
    pub fn finishes(&mut self, lane: usize) -> Option<Duration> {
        self.lanes[lane].carries.take().filter(|intended| *intended >= self.plan.warmup)
    }

    /// Whether the connection waits for an answer.
    #[must_use]
    pub fn carries(&self, lane: usize) -> bool {
        self.lanes[lane].carries.is_some()
    }

    /// Whether nothing is due any more.
    #[must_use]
    pub fn over(&self, now: Duration) -> bool {
        now >= self.plan.end && self.next_due().is_none()
    }

    /// From when on nothing is sent.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.plan.end
    }

    /// From when on requests count.
    #[must_use]
    pub fn warmup(&self) -> Duration {
        self.plan.warmup
    }

    /// Ends it earlier than planned.
    pub fn stop(&mut self, now: Duration) {
        self.plan.end = self.plan.end.min(now);
    }

    /// How long each request had waited at the end that was due and could not be sent.
    pub fn unsent(&self) -> impl Iterator<Item = Duration> + '_ {
        let rate = match self.plan.pace {
            Pace::Rate(rate) => Some(rate),
            Pace::Saturation => None,
        };
        let all = self.lanes.iter().flat_map(move |lane| {
            let numbers = (lane.next..).step_by(self.lanes.len());
            rate.into_iter().flat_map(move |rate| {
                numbers.clone().map(move |n| self.plan.intended(rate, n)).take_while(|at| *at < self.plan.end)
            })
        });
        all.filter(|intended| *intended >= self.plan.warmup).map(|intended| self.plan.end - intended)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;
    use crate::bench::tally::Tally;

    const MS: Duration = Duration::from_millis(1);
    const US: Duration = Duration::from_micros(1);

    fn load(pace: Pace, connections: usize, threads: usize) -> Load {
        let (warmup, duration, timeout) = (Duration::ZERO, 1000 * MS, 1000 * MS);
        Load { pace, connections, threads, warmup, duration, timeout }
    }

    fn rate(rate: u32) -> Pace {
        Pace::Rate(NonZeroU32::new(rate).unwrap())
    }

    /// What one thread measures of a server that answers after `serving`, except while it stalls.
    fn simulate(plan: Plan, serving: Duration, stall: std::ops::Range<Duration>) -> Tally {
        let mut tally = Tally::new();
        let mut pacer = Pacer::new(plan);
        let mut answers = BinaryHeap::new();
        let mut now = Duration::ZERO;
        loop {
            let mut ready = Vec::new();
            pacer.due(now, |lane, _| ready.push(lane));
            while let Some(&Reverse((at, lane))) = answers.peek()
                && at <= now
            {
                answers.pop();
                if let Some(intended) = pacer.finishes(lane) {
                    tally.answered(200, now - intended);
                }
                ready.push(lane);
            }
            for lane in ready {
                if pacer.owes(lane, now) {
                    pacer.sends(lane, now);
                    let done = now + serving;
                    answers.push(Reverse((if stall.contains(&done) { stall.end } else { done }, lane)));
                }
            }
            let next = answers.peek().map(|Reverse((at, _))| *at);
            match [next, pacer.next_due()].into_iter().flatten().min() {
                Some(time) => now = time,
                None => break,
            }
        }
        pacer.unsent().for_each(|waited| tally.unsent(waited));
        tally
    }

    fn near(actual: Option<f64>, expected: Duration) -> bool {
        (actual.unwrap() - expected.as_secs_f64() * 1e6).abs() < expected.as_secs_f64() * 2e4
    }

    #[test]
    fn requests_leave_evenly_whatever_the_number_of_threads() {
        for threads in [1, 2, 3] {
            let mut times = Vec::new();
            for plan in Plan::split(&load(rate(1000), 5, threads)) {
                let mut pacer = Pacer::new(plan);
                while let Some(now) = pacer.next_due() {
                    let mut ready = Vec::new();
                    pacer.due(now, |lane, late| ready.push((lane, late)));
                    assert_eq!(ready.len(), 1);
                    assert_eq!(ready[0].1, Some(Duration::ZERO));
                    times.push(pacer.sends(ready[0].0, now));
                    pacer.finishes(ready[0].0);
                }
            }
            times.sort();
            let expected: Vec<_> = (0..1000).map(|n| n * MS).collect();
            assert_eq!(times, expected, "{threads} threads");
        }
    }

    #[test]
    fn the_connections_are_divided_among_the_threads() {
        let lanes = |connections, threads| {
            Plan::split(&load(rate(1), connections, threads))
                .iter()
                .map(|plan| plan.lanes)
                .collect::<Vec<_>>()
        };
        assert_eq!(lanes(5, 2), [3, 2]);
        assert_eq!(lanes(1, 4), [1]);
    }

    #[test]
    fn a_server_that_stalls_once_shows_in_the_percentiles() {
        let stall = 300 * MS..600 * MS;
        let plan = Plan::split(&load(rate(1000), 4, 1)).remove(0);
        let tally = simulate(plan.clone(), 10 * US, stall.clone());
        // All that was due in these 300 of 1000 ms waited for the end of the stall, evenly spread.
        assert_eq!((tally.requests(), tally.unsent), (1000, 0));
        assert!(near(tally.percentile(50.0), 10 * US), "{:?}", tally.percentile(50.0));
        assert!(near(tally.percentile(85.0), 150 * MS), "{:?}", tally.percentile(85.0));
        assert!(near(tally.percentile(99.0), 290 * MS), "{:?}", tally.percentile(99.0));
        assert!(near(tally.max(), 300 * MS), "{:?}", tally.max());
        // A closed loop cannot see it: of its thousands of requests four waited.
        let closed = Plan { pace: Pace::Saturation, ..plan };
        let tally = simulate(closed, 10 * US, stall);
        assert!(near(tally.percentile(99.9), 10 * US), "{:?}", tally.percentile(99.9));
        assert!(near(tally.max(), 300 * MS), "{:?}", tally.max());
    }

    #[test]
    fn what_could_not_be_sent_counts_with_the_time_that_it_waited() {
        // One connection, and a server that takes ten times as long as there is time.
        let plan = Plan::split(&load(rate(1000), 1, 1)).remove(0);
        let tally = simulate(plan, 10 * MS, MS..MS);
        assert_eq!((tally.requests(), tally.unsent), (100, 900));
        assert!(near(tally.max(), 900 * MS), "{:?}", tally.max());
        assert_eq!(tally.latency.len(), 1000);
    }

    #[test]
    fn a_server_that_stalls_until_the_end_shows_too() {
        let plan = Plan::split(&load(rate(1000), 4, 1)).remove(0);
        let tally = simulate(plan, 100 * US, 500 * MS..1000 * MS);
        assert_eq!(tally.requests() + tally.unsent, 1000);
        assert!(near(tally.percentile(75.0), 250 * MS), "{:?}", tally.percentile(75.0));
    }

    #[test]
    fn what_is_sent_during_the_warmup_does_not_count() {
        let mut load = load(rate(1000), 4, 1);
        load.warmup = 250 * MS;
        let tally = simulate(Plan::split(&load).remove(0), 100 * US, Duration::ZERO..200 * MS);
        assert_eq!((tally.requests(), tally.unsent), (1000, 0));
        assert!(near(tally.max(), 100 * US), "{:?}", tally.max());
    }

    #[test]
    fn what_is_stopped_early_counts_what_was_due_by_then() {
        let mut pacer = Pacer::new(Plan::split(&load(rate(1000), 4, 1)).remove(0));
        pacer.stop(100 * MS);
        assert!(!pacer.over(100 * MS), "nobody looked at what was due yet");
        let mut free = Vec::new();
        pacer.due(100 * MS, |lane, _| free.push(lane));
        assert!(pacer.over(100 * MS));
        for lane in free {
            assert!(pacer.owes(lane, 101 * MS));
            pacer.sends(lane, 101 * MS);
            pacer.finishes(lane);
            assert!(!pacer.owes(lane, 102 * MS), "this one was late for its connection");
        }
        assert_eq!(pacer.unsent().count(), 96);
    }
}
