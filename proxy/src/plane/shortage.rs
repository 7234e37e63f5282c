//! What a worker does when it is out of file descriptors: it closes clients' connections that nobody uses, and does not
//! spin. Unused connections to upstreams stay: they are for requests on connections that are there already.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::deadline;
use crate::metrics::{Event, count};
use crate::upstream::Address;

/// How long accepting pauses: so often it is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// How often what nobody uses is closed, and a line is logged.
const AGAIN: Duration = Duration::from_secs(1);

thread_local! {
    static SHEDDING: Cell<bool> = const { Cell::new(false) };
}

/// Whether connections on which nobody has asked anything for a while are to end. Of this worker.
#[must_use]
pub fn is_shedding() -> bool {
    SHEDDING.get()
}

/// The shortage of one listener.
#[derive(Debug, Default)]
pub struct Shortage {
    since: Option<Instant>,
}

impl Shortage {
    /// Makes room, and waits a little, after accepting at `address` failed with `error`. Connections that cannot
    /// be accepted wait in the kernel's queue.
    pub async fn wait(&mut self, address: &Address, error: &io::Error) {
        count(Event::AcceptFailed);
        if self.since.is_none_or(|since| since.elapsed() >= AGAIN) {
            self.since = Some(Instant::now());
            tracing::warn!(%address, %error, "cannot accept connections: closing those that nobody uses");
            SHEDDING.set(true);
            deadline::wake_all();
        }
        sleep(PAUSE).await;
        SHEDDING.set(false);
    }
}
