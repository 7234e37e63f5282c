//! `overlane bench`: an open-loop load generator, and what it measures.
//!
//! At a constant rate every request has an intended time on a fixed schedule ([`pace`]), which late
//! answers never slow down, and its latency counts from that time: a server that stalls shows in
//! the latencies of all requests that were meant to leave meanwhile (no coordinated omission).
//! Without a rate, all connections send as fast as they get answers (saturation).
//!
//! [`mesh`] is what it measures by default, [`series`] measures one case after the other in rounds, and
//! [`report`] draws the result.
//!
//! The generator shares the machine with what it measures, so it is small: one thread with mio, a
//! request that is rendered once, and a parser that only finds where an answer ends ([`response`]).

mod alarm;
pub mod generator;
pub mod machine;
pub mod mesh;
pub mod pace;
pub mod plot;
pub mod report;
pub mod response;
pub mod series;
pub mod summary;
pub mod tally;
pub mod target;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use generator::Generator;
use pace::{Pace, Plan};
use tally::Tally;
use target::Target;

/// How often somebody who waits hears how far a measurement is.
const TICK: Duration = Duration::from_millis(200);

/// What load to put on a target.
#[derive(Debug, Clone)]
pub struct Load {
    /// When requests are meant to leave.
    pub pace: Pace,
    /// Connections, of all threads together.
    pub connections: usize,
    /// Threads that send.
    pub threads: usize,
    /// Before what is measured.
    pub warmup: Duration,
    /// What is measured.
    pub duration: Duration,
    /// The longest that a request waits for its answer, once it was sent.
    pub timeout: Duration,
}

/// What the threads of a measurement and those who wait for it share.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Control {
    /// Ends what runs; what was measured so far is kept.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether somebody ended it.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn answered(&self, more: u64) {
        self.answered.fetch_add(more, Ordering::Relaxed);
    }
}

/// Puts the load on the target and waits until it is over; `tick` hears how far it is: the time since
/// the start, and how many answers came.
///
/// # Errors
/// The target takes no connection, or no thread or socket can be had.
pub fn measure(
    target: &Target,
    load: &Load,
    control: &Arc<Control>,
    mut tick: impl FnMut(Duration, u64),
) -> io::Result<Tally> {
    control.answered.store(0, Ordering::Relaxed);
    let plans = Plan::split(load);
    let generators: io::Result<Vec<_>> =
        plans.into_iter().map(|plan| Generator::connect(target.clone(), plan, load.timeout)).collect();
    let (sender, tallies) = channel();
    let start = Instant::now();
    for generator in generators? {
        let (control, sender) = (control.clone(), sender.clone());
        std::thread::Builder::new().name("bench".to_owned()).spawn(move || {
            // Nobody is left to hear it where the measurement was given up.
            let _ = sender.send(generator.run(start, &control));
        })?;
    }
    drop(sender);
    let mut whole = Tally::new();
    loop {
        match tallies.recv_timeout(TICK) {
            Ok(tally) => whole.merge(&tally?),
            Err(RecvTimeoutError::Timeout) => {
                tick(start.elapsed(), control.answered.load(Ordering::Relaxed));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(whole),
        }
    }
}
