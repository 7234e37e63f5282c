//! The clocks: the one of the wall for expiry, and a monotonic one for everything else.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use overlane_config::time::UnixMillis;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// On the clock of the wall, by which files are dated and which may jump.
    pub wall: SystemTime,
    /// On the one that never goes back, by which it is told how long something lasts.
    pub steady: Instant,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

impl std::ops::Add<std::time::Duration> for Moment {
    type Output = Self;

    fn add(self, span: std::time::Duration) -> Self {
        Self { wall: self.wall + span, steady: self.steady + span }
    }
}

/// The nanoseconds of a span, of which 64 bits hold five hundred years; the library counts them in 128.
#[must_use]
pub fn nanos(span: std::time::Duration) -> u64 {
    span.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(span.subsec_nanos()))
}

/// What time it is.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the first call in this process; never goes back.
#[must_use]
pub fn monotonic_millis() -> u64 {
    #[cfg(test)]
    if let Some(now) = told::NOW.get() {
        return now;
    }
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock of a test's thread, where it is told what time it is.
#[cfg(test)]
pub(crate) mod told {
    use std::cell::Cell;

    thread_local!(pub(super) static NOW: Cell<Option<u64>> = const { Cell::new(None) });

    /// From now on it is so late on this thread.
    pub(crate) fn tell(now: u64) {
        NOW.set(Some(now));
    }
}
