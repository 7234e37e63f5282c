//! Deadlines of connections: coarse, and almost free to set.
//!
//! A connection keeps one slot for as long as it lives. Setting its deadline is a store into that
//! slot; one task per worker sleeps until the nearest deadline, and wakes whoever is late. Nothing is
//! registered or removed per request, no system call is made, and nothing crosses threads.

use std::cell::RefCell;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

/// Deadlines are late by at most this many milliseconds, so that one look serves many; a power of two.
const GRAIN: u64 = 16;
const NEVER: u64 = u64::MAX;
/// For how many milliseconds nothing was asked on a connection that is closed to make room: what was just
/// accepted is not.
const UNUSED: u64 = 1000;
/// A slot whose deadline has passed.
const PASSED: u64 = 0;

#[derive(Debug)]
struct Slot {
    /// In milliseconds of this thread.
    due: u64,
    waker: Option<Waker>,
    idle: Option<Idle>,
}

/// Of what nobody asks anything: it may be closed early, where room is needed.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// Of which listener.
    listener: usize,
    /// In milliseconds of this thread.
    since: u64,
}

#[derive(Debug)]
struct Watch {
    start: Instant,
    slots: Slab<Slot>,
    /// When the watching task looks next.
    look: u64,
    watcher: Option<Waker>,
}

thread_local! {
    static WATCH: RefCell<Watch> =
        RefCell::new(Watch { start: Instant::now(), slots: Slab::new(), look: NEVER, watcher: None });
}

impl Slot {
    fn pass(&mut self) {
        self.due = PASSED;
        self.idle = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Watch {
    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        since.as_secs() * 1000 + u64::from(since.subsec_millis())
    }

    fn arm(&mut self, slot: usize, at: Instant, idle: Option<Idle>) {
        let due = (self.millis(at) + GRAIN) & !(GRAIN - 1);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.due = due;
            slot.idle = idle;
        }
        if due < self.look {
            self.look = due;
            if let Some(watcher) = &self.watcher {
                watcher.wake_by_ref();
            }
        }
    }

    /// Wakes who is late, and notes when to look next.
    fn look(&mut self) {
        let now = self.millis(Instant::now());
        self.look = NEVER;
        for (_, slot) in &mut self.slots {
            if slot.due <= now && slot.due != PASSED {
                slot.pass();
            } else if slot.due != PASSED {
                self.look = self.look.min(slot.due);
            }
        }
    }
}

/// A deadline that can be set again and again. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Deadline {
    slot: usize,
}

impl Default for Deadline {
    fn default() -> Self {
        let slot =
            WATCH.with_borrow_mut(|watch| watch.slots.insert(Slot { due: NEVER, waker: None, idle: None }));
        Self { slot }
    }
}

impl Deadline {
    /// Sets it to `at`.
    pub fn arm(&self, at: Instant) {
        WATCH.with_borrow_mut(|watch| watch.arm(self.slot, at, None));
    }

    /// Sets it to `at` for a connection of a listener on which nothing is asked from now on: it passes earlier
    /// where others need the room ([`close_idle`]).
    pub fn arm_idle(&self, at: Instant, listener: usize) {
        WATCH.with_borrow_mut(|watch| {
            let since = watch.millis(Instant::now());
            watch.arm(self.slot, at, Some(Idle { listener, since }));
        });
    }

    /// Something is asked: it passes when it was set to.
    pub fn not_idle(&self) {
        WATCH.with_borrow_mut(|watch| {
            if let Some(slot) = watch.slots.get_mut(self.slot) {
                slot.idle = None;
            }
        });
    }

    /// Ready once it has passed; else the task is woken when it does.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        WATCH.with_borrow_mut(|watch| {
            let Some(slot) = watch.slots.get_mut(self.slot) else {
                return Poll::Pending;
            };
            if slot.due == PASSED {
                return Poll::Ready(());
            }
            if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                slot.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // At the end of the thread the slots may be gone already.
        let _ = WATCH.try_with(|watch| watch.borrow_mut().slots.try_remove(self.slot));
    }
}

/// How fast a peer has to be while it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// For how long it may move nothing.
    pub within: Duration,
    /// How many bytes per second it has to move on average over that time; 0: one byte at a time will do.
    pub rate: u32,
}

/// How long a peer is still waited for that has to move bytes: as long as its [`Pace`] has it, less what it
/// was waited for already; and each byte that it moves gives back the time in which it was due. So time in
/// which it is not waited for costs it nothing (docs/decisions/0027-minimum-rates.md).
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// For how long it was waited, less what was given back.
    used: Duration,
    /// Since when it is being waited for.
    since: Option<Instant>,
    /// How much it had moved then.
    moved: u64,
}

impl Patience {
    /// A wait begins for a peer that has `moved` so many bytes in all; says when it is over.
    pub fn begin(&mut self, now: Instant, moved: u64, pace: Pace) -> Instant {
        self.end(now);
        let bytes = moved - self.moved;
        (self.since, self.moved) = (Some(now), moved);
        self.used = match pace.rate {
            0 if bytes > 0 => Duration::ZERO,
            0 => self.used,
            rate => self.used.saturating_sub(Duration::from_secs(bytes) / rate),
        };
        now + pace.within.saturating_sub(self.used)
    }

    /// It is waited for no longer.
    pub fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.used += now.saturating_duration_since(since);
        }
    }
}

/// Lets the deadlines pass of at most `most` connections of a listener on which nothing was asked for the
/// longest time, and for a second at least; returns how many these are.
pub fn close_idle(listener: usize, most: usize) -> usize {
    WATCH.with_borrow_mut(|watch| {
        let now = watch.millis(Instant::now());
        let idle =
            |slot: &Slot| slot.idle.filter(|idle| idle.listener == listener && idle.since + UNUSED <= now);
        let mut found: Vec<_> =
            watch.slots.iter().filter_map(|(at, slot)| Some((idle(slot)?.since, at))).collect();
        let most = most.min(found.len());
        if most == 0 {
            return 0;
        }
        let (longest, _, _) = found.select_nth_unstable(most - 1);
        let longest: Vec<_> = longest.iter().map(|(_, at)| *at).collect();
        let last = found[most - 1].1;
        for at in longest.into_iter().chain([last]) {
            watch.slots[at].pass();
        }
        most
    })
}

/// Wakes every task that waits with a deadline, so that it looks around.
pub fn wake_all() {
    WATCH.with_borrow_mut(|watch| {
        for (_, slot) in &mut watch.slots {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    });
}

/// Watches over this thread's deadlines; never ends.
pub async fn watch() {
    loop {
        let left = WATCH.with_borrow_mut(|watch| {
            watch.look();
            match watch.look {
                NEVER => None,
                look => Some(Duration::from_millis(look.saturating_sub(watch.millis(Instant::now())))),
            }
        });
        let earlier = sooner();
        match left {
            None => earlier.await,
            Some(left) => drop(tokio::time::timeout(left, earlier).await),
        }
    }
}

/// Completes when a deadline was set that is nearer than the next look.
async fn sooner() {
    let looked = WATCH.with_borrow(|watch| watch.look);
    std::future::poll_fn(|cx| {
        WATCH.with_borrow_mut(|watch| {
            if watch.look < looked {
                watch.watcher = None;
                return Poll::Ready(());
            }
            watch.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Everything on one thread, as in a worker; without waiting for the clock of the wall.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime.block_on(async {
            tokio::select! {
                () = test => {}
                () = watch() => {}
            }
        });
    }

    #[test]
    fn a_deadline_passes_and_can_be_set_again() {
        run(async {
            let deadline = Deadline::default();
            for _ in 0..3 {
                let start = Instant::now();
                deadline.arm(start + Duration::from_millis(20));
                poll_fn(|cx| deadline.poll(cx)).await;
                assert!(start.elapsed() >= Duration::from_millis(20), "never early");
            }
        });
    }

    #[test]
    fn a_nearer_deadline_is_not_kept_waiting_by_a_later_one() {
        run(async {
            let (late, soon) = (Deadline::default(), Deadline::default());
            late.arm(Instant::now() + Duration::from_secs(3600));
            tokio::task::yield_now().await;
            soon.arm(Instant::now() + Duration::from_millis(1));
            tokio::select! {
                () = poll_fn(|cx| soon.poll(cx)) => {}
                () = poll_fn(|cx| late.poll(cx)) => panic!("the late one"),
            }
        });
    }

    #[test]
    fn a_deadline_that_was_put_off_does_not_pass() {
        let deadline = Deadline::default();
        deadline.arm(Instant::now());
        deadline.arm(Instant::now() + Duration::from_secs(3600));
        WATCH.with_borrow_mut(Watch::look);
        assert!(deadline.poll(&Context::from_waker(Waker::noop())).is_pending());
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_waiting_costs_patience_and_bytes_give_it_back() {
        let pace = Pace { within: 10 * SECOND, rate: 100 };
        let (start, mut patience) = (Instant::now(), Patience::default());
        let left = |over: Instant, now: u32| over - (start + now * SECOND);
        assert_eq!(left(patience.begin(start, 0, pace), 0), 10 * SECOND);
        patience.end(start + 4 * SECOND);
        // What the other side takes is not its fault.
        assert_eq!(left(patience.begin(start + 60 * SECOND, 100, pace), 60), 7 * SECOND);
        assert_eq!(left(patience.begin(start + 62 * SECOND, 100, pace), 62), 5 * SECOND);
        // However much it moves, it has no more than all of it.
        assert_eq!(left(patience.begin(start + 63 * SECOND, 1 << 40, pace), 63), 10 * SECOND);
        assert_eq!(left(patience.begin(start + 90 * SECOND, 1 << 40, pace), 90), Duration::ZERO);
    }

    #[test]
    fn without_a_rate_any_byte_will_do() {
        let pace = Pace { within: 10 * SECOND, rate: 0 };
        let (start, mut patience) = (Instant::now(), Patience::default());
        for second in [0, 9, 18, 27] {
            let over = patience.begin(start + second * SECOND, second.into(), pace);
            assert_eq!(over, start + (second + 10) * SECOND);
        }
        assert_eq!(patience.begin(start + 30 * SECOND, 27, pace), start + 37 * SECOND);
    }

    proptest::proptest! {
        #[test]
        fn who_keeps_the_pace_is_never_cut(waits in proptest::collection::vec((0_u64..10_000, 0_u64..10_000), 1..50)) {
            // Each wait is shorter than the patience, and brings what is due in it.
            let pace = Pace { within: 10 * SECOND, rate: 1000 };
            let (mut now, mut moved, mut patience) = (Instant::now(), 0, Patience::default());
            for (wait, pause) in waits {
                let over = patience.begin(now, moved, pace);
                now += Duration::from_millis(wait);
                proptest::prop_assert!(over >= now);
                patience.end(now);
                moved += wait;
                now += Duration::from_millis(pause);
            }
        }
    }

    #[test]
    fn who_was_idle_for_the_longest_time_goes_first_and_others_stay() {
        let now = Instant::now();
        let ready = |deadline: &Deadline| deadline.poll(&Context::from_waker(Waker::noop())).is_ready();
        let later = now + Duration::from_secs(3600);
        let [oldest, older, fresh, busy, elsewhere, asked] = std::array::from_fn(|_| Deadline::default());
        elsewhere.arm_idle(later, 2);
        busy.arm(later);
        for deadline in [&oldest, &older, &fresh, &asked] {
            deadline.arm_idle(later, 1);
        }
        asked.not_idle();
        let since = |deadline: &Deadline, ago: u64| {
            WATCH.with_borrow_mut(|watch| {
                // So that there is a time before.
                watch.start = now.checked_sub(Duration::from_secs(60)).expect("a minute ago");
                let now = watch.millis(Instant::now());
                watch.slots[deadline.slot].idle.as_mut().expect("idle").since = now - ago;
            });
        };
        for (deadline, ago) in [(&oldest, 9000), (&older, 5000), (&fresh, 0), (&elsewhere, 9000)] {
            since(deadline, ago);
        }
        assert_eq!(close_idle(1, 1), 1);
        assert_eq!([&oldest, &older].map(ready), [true, false]);
        assert_eq!(close_idle(1, 10), 1);
        assert_eq!(
            [&older, &fresh, &busy, &elsewhere, &asked].map(ready),
            [true, false, false, false, false]
        );
        assert_eq!(close_idle(1, 10), 0);
    }

    #[test]
    fn slots_are_given_back() {
        let before = WATCH.with_borrow(|watch| watch.slots.len());
        drop((Deadline::default(), Deadline::default()));
        assert_eq!(WATCH.with_borrow(|watch| watch.slots.len()), before);
    }
}
