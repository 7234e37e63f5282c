//! How a process ends (docs/decisions/0022-how-a-process-ends.md): everybody is told how far its end is.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::watch;

use super::deadline;

/// How far the end of the process is. It never goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    #[default]
    Serving,
    /// It is not ready any more, which others have to learn: new connections are still served, and answers
    /// say that theirs ends.
    Leaving,
    /// Nothing is accepted any more; what is in flight is finished.
    Draining,
    /// What is left is closed.
    Closing,
}

impl Stage {
    /// The next one, where somebody does not want to wait for it.
    #[must_use]
    fn next(self) -> Self {
        match self {
            Self::Serving => Self::Leaving,
            Self::Leaving => Self::Draining,
            Self::Draining | Self::Closing => Self::Closing,
        }
    }
}

/// The end of one process: who tells, and who is told. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    stage: watch::Sender<Stage>,
    failed: Arc<AtomicBool>,
}

impl Drain {
    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Says that it has come to `stage`, or is farther already.
    pub fn tell(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let farther = *now < stage;
            *now = stage.max(*now);
            farther
        });
    }

    /// Somebody asks for the end: it begins with `first`, and who asks again wants it sooner.
    pub fn ask(&self, first: Stage) {
        self.tell(match self.stage() {
            Stage::Serving => first,
            stage => stage.next(),
        });
    }

    /// Says that `what`, without which the process is of no use, has panicked: it ends as if it were told to.
    pub fn fail(&self, what: &str) {
        tracing::error!("{what} has panicked: the process ends");
        self.failed.store(true, Relaxed);
        self.tell(Stage::Draining);
    }

    /// Whether it ends because something failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Completes when it has come to `stage`, also if that was long ago.
    pub async fn reached(&self, stage: Stage) {
        // Whoever asks keeps the sender: there is no error.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }
}

thread_local! {
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Serving) };
}

/// Whether answers say that their connection ends. Of this worker.
#[must_use]
pub fn is_leaving() -> bool {
    STAGE.get() >= Stage::Leaving
}

/// Whether what waits for a client that asks nothing ends. Of this worker.
#[must_use]
pub fn is_draining() -> bool {
    STAGE.get() >= Stage::Draining
}

/// Tells this worker's connections how far the end is: those that wait wake up. `pingora` hears of it as
/// Pingora wants to.
pub async fn announce(drain: Drain, pingora: watch::Sender<bool>) {
    for stage in [Stage::Leaving, Stage::Draining] {
        drain.reached(stage).await;
        STAGE.set(stage);
    }
    pingora.send_replace(true);
    deadline::wake_all();
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_asks_again_wants_it_sooner_and_nothing_goes_back() {
        use Stage::{Closing, Draining, Leaving};
        let asked = |firsts: &[Stage]| {
            let drain = Drain::default();
            let stages = firsts.iter().map(|first| {
                drain.ask(*first);
                drain.stage()
            });
            stages.collect::<Vec<_>>()
        };
        assert_eq!(asked(&[Leaving; 4]), [Leaving, Draining, Closing, Closing]);
        assert_eq!(asked(&[Draining, Leaving, Leaving]), [Draining, Closing, Closing]);
        let drain = Drain::default();
        drain.tell(Draining);
        drain.tell(Leaving);
        assert_eq!(drain.stage(), Draining);
        let done = |stage| drain.reached(stage).now_or_never().is_some();
        assert_eq!([Leaving, Draining, Closing].map(done), [true, true, false]);
    }
}
